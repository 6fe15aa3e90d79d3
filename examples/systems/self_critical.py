"""Self-critical training (Rennie et al. 2017) of the captioner with attention over regions: CIDEr-D of what it draws
itself is the reward, the other captions drawn for the same image are the baseline (Luo 2020).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from examples.data.drawn_scenes import Vocabulary
from examples.systems import captioning, scene_captions
from examples.systems.scene_captions import LONGEST, Batch, Data, repeat
from examples.systems.table import Options, Row, Speed
from hybridops.evaluation import CiderD
from hybridops.layers import sample
from hybridops.models import ImageCaptioner
from hybridops.training import freeze, self_critical_loss

EPOCHS, SAMPLES, LEARNING_RATE = 4, 5, 2e-4


def run(options: Options) -> list[Row]:
    data = scene_captions.load(options)
    # no dropout: what is drawn and what gives log-probabilities have to be the same model
    model = scene_captions.captioner("spatial", len(data.vocabulary), dropout=0.0)
    model.load_state_dict(captioning.trained("spatial", data, options)[0].state_dict())
    model.eval()
    before = scene_captions.judge(scene_captions.describe(model, data.test, data), data.test)
    freeze(model.encoder)
    loss = partial(reward_loss, data=data, metric=CiderD(references(data, range(len(data.train)))))
    scene_captions.train(
        model, data, options, epochs=EPOCHS, loss=loss, learning_rate=LEARNING_RATE, title="self-critical"
    )
    after = scene_captions.judge(scene_captions.describe(model, data.test, data), data.test)
    where, note = f"{len(data.train)} drawn scenes, {EPOCHS} epochs", "baseline: before, by cross-entropy"
    rows = [
        Row("self-critical", where, "CIDEr-D", after["cider"], before["cider"], "> before",
            after["cider"] > before["cider"], note),
        Row("self-critical", where, "hallucinated objects (CHAIRi)", after["chair_i"], before["chair_i"], "<= before",
            after["chair_i"] <= before["chair_i"], note),
    ]  # fmt: skip
    others = [metric for metric in after if metric not in ("cider", "chair_i")]
    return rows + [Row("self-critical", where, name, after[name], before[name], "as it is", True) for name in others]


def reward_loss(model: ImageCaptioner, batch: Batch, data: Data, metric: CiderD) -> Tensor:
    """Captions are drawn a word at a time, and their log-probabilities come from one pass over what was drawn."""
    memory = model.encode(batch.images)
    start = torch.full((len(batch.images),), Vocabulary.START)
    with torch.no_grad():
        found = sample(
            model.decoder.step, model.decoder.start(memory), start, end=Vocabulary.END, max_length=LONGEST,
            num_samples=SAMPLES,
        )  # fmt: skip
    before = torch.cat([start.repeat_interleave(SAMPLES)[:, None], found.tokens[:, :-1]], 1)
    logits, _ = model.decoder(before, repeat(memory, SAMPLES))
    log_probs = logits.log_softmax(2).gather(2, found.tokens[..., None]).squeeze(2)
    texts = references(data, batch.number.tolist())

    def reward(tokens: Tensor, lengths: Tensor) -> Tensor:
        pairs = zip(tokens.flatten(0, 1), lengths.flatten(), strict=True)
        words = [spell(data.vocabulary, row[:length]) for row, length in pairs]
        scores = metric([text for text in texts for _ in range(tokens.shape[1])], words)
        return torch.tensor(scores).view(lengths.shape)

    parts = (part.unflatten(0, (-1, SAMPLES)) for part in (log_probs, found.tokens, found.lengths))
    return self_critical_loss(*parts, reward).loss


def references(data: Data, numbers: list[int] | range) -> list[list[str]]:
    return [[f"{text} <end>" for text in data.train.drawn.scenes[number].captions] for number in numbers]


def spell(vocabulary: Vocabulary, words: Tensor) -> str:
    """With the end token if it came: without it in the reward captions stop anywhere."""
    return vocabulary.decode(words) + (" <end>" if len(words) and words[-1] == Vocabulary.END else "")


def speed(options: Options) -> list[Speed]:
    """Those of examples/systems/captioning.py."""
    return []
