"""Image captioning: a sentence about an image, from the whole of it, its regions, its objects or their graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hybridops.checks import check_choice, check_positive_int, check_shape
from hybridops.layers.adaptive import AdaptiveTokenDecoder
from hybridops.layers.decoding import AttentionTokenDecoder, RecurrentTokenDecoder, TokenDecoder
from hybridops.layers.encoders import ConvEncoder, Memory
from hybridops.layers.graph import GraphConvolution, RelationGraph
from hybridops.layers.objects import ObjectEncoder
from hybridops.layers.pooling import MeanPooling
from hybridops.layers.search import Hypotheses, search_best

CONTEXTS = ("global", "spatial", "adaptive", "objects")


class ImageCaptioner(nn.Module):
    """An encoder of an image, and a decoder that writes a sentence about it.

    What the decoder has of the image (`context`):

        "global"    one vector, see `image_at`: Vinyals et al. 2015, https://arxiv.org/abs/1411.4555
        "spatial"   attention over regions at every word, h_{s-1} asking, with a gate on what it gives:
                    Xu et al. 2015, https://arxiv.org/abs/1502.03044
        "adaptive"  attention that a word may do without: Lu et al. 2017, https://arxiv.org/abs/1612.01887
        "objects"   as "spatial", over the objects in given boxes

    Args:
        vocab_size: words V.
        embed_dim, hidden_dim: channels of a word, of a state.
        attn_dim: of the attention; None: hidden_dim.
        context: "global", "spatial", "adaptive" or "objects".
        encoder: gives a Memory of images, of "objects" of images, boxes and a mask, and has its channels as `dim`;
            None: a `ConvEncoder` of RGB images, for objects an `ObjectEncoder` of one's map.
        image_at: where "global" takes the image in: as the state at the start ("initial"), before the first word
            ("first") or beside every word ("every").
        fallback: what "adaptive" has in place of attention: "sentinel" or "global", see `AdaptiveTokenDecoder`.
        cell: "lstm" or "gru"; "adaptive" takes "lstm" alone.
        dropout: of words and states, in training.
        pad, start, end: numbers of the words that fill up, begin and end a sentence.

    Shape: images (B, 3, height, width) or what else the encoder takes; tokens int64 (B, S), beginning with `start`;
    of "objects" boxes (B, O, 4) and box_mask None or boolean (B, O), see `ObjectEncoder`. Gives logits (B, S, V), of
    the word after each of tokens.

    Raises:
        TypeError, ValueError: an argument, or the shape of an input, is not as said here.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int = 256,
        hidden_dim: int = 256,
        attn_dim: int | None = None,
        *,
        context: str = "spatial",
        encoder: nn.Module | None = None,
        image_at: str = "initial",
        fallback: str = "sentinel",
        cell: str = "lstm",
        dropout: float = 0.0,
        pad: int = 0,
        start: int = 1,
        end: int = 2,
    ) -> None:
        super().__init__()
        self.context = check_choice("context", context, CONTEXTS)
        self.start_token, self.end_token = start, end
        if encoder is None:
            encoder = ConvEncoder(3)
            if context == "objects":
                encoder = ObjectEncoder(encoder.layers, encoder.dim, hidden_dim)
        self.encoder = encoder
        dim: Any = encoder.dim
        self.memory_dim = check_positive_int("dim of encoder", dim)
        sizes = vocab_size, embed_dim, hidden_dim, self.memory_dim
        attn_dim = hidden_dim if attn_dim is None else attn_dim
        self.decoder: TokenDecoder
        if context == "global":
            self.decoder = RecurrentTokenDecoder(*sizes, pooled_at=image_at, cell=cell, dropout=dropout, pad=pad)
        elif context == "adaptive":
            check_choice("cell", cell, ("lstm",))
            self.decoder = AdaptiveTokenDecoder(*sizes, attn_dim, fallback=fallback, dropout=dropout, pad=pad)
        else:
            self.decoder = AttentionTokenDecoder(
                *sizes, attn_dim, cell=cell, context_gate=True, dropout=dropout, pad=pad
            )

    def encode(self, images: Tensor, boxes: Tensor | None = None, box_mask: Tensor | None = None) -> Memory:
        if self.context != "objects" and boxes is not None:
            raise ValueError(f"boxes must be None where context is {self.context!r}, got {tuple(boxes.shape)}")
        memory: Memory = self.encoder(images, boxes, box_mask) if self.context == "objects" else self.encoder(images)
        return memory

    def forward(
        self, images: Tensor, tokens: Tensor, boxes: Tensor | None = None, box_mask: Tensor | None = None
    ) -> Tensor:
        return self.attend(images, tokens, boxes, box_mask, need_weights=False)[0]

    def attend(
        self,
        images: Tensor,
        tokens: Tensor,
        boxes: Tensor | None = None,
        box_mask: Tensor | None = None,
        *,
        need_weights: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Logits, and the attention's weights (B, S, T) over regions or objects, for pictures and for
        `training.doubly_stochastic_penalty`; None of "global".
        """
        check_shape("tokens", tokens, (images.shape[0], "S"))
        logits, weights = self.decoder(tokens, self.encode(images, boxes, box_mask), need_weights=need_weights)
        return logits, weights

    @torch.no_grad()
    def generate(
        self,
        images: Tensor,
        boxes: Tensor | None = None,
        box_mask: Tensor | None = None,
        *,
        max_length: int = 20,
        beam_size: int = 1,
        length_penalty: float = 1.0,
        need_weights: bool = False,
    ) -> Hypotheses:
        """The best sentences, (B,): each the likeliest word after the other, with beam_size > 1 of a beam search."""
        start = torch.full((images.shape[0],), self.start_token, device=images.device)
        state = self.decoder.start(self.encode(images, boxes, box_mask))
        return search_best(
            self.decoder, state, start, end=self.end_token, max_length=max_length, beam_size=beam_size,
            length_penalty=length_penalty, need_weights=need_weights,
        )  # fmt: skip


class SceneGraphCaptioner(ImageCaptioner):
    """Objects that hear of each other before a sentence is written about them.

        R = softmax_j MLP([o_i; o_j; s_ij])                    o'_i = o_i + W Σ_j R_ij o_j + b

    and attention over the o' at every word. s_ij is where box j is, seen from box i, see `box_relations`. W and b are 0
    at first: training starts with the objects alone.

    Args:
        vocab_size, embed_dim, hidden_dim, attn_dim, encoder, options: as of `ImageCaptioner` with context "objects".
        graph_dim: channels of the hidden layer that R is made of; None: hidden_dim.
        num_layers: how often o becomes o', each time with weights and an R of its own.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int = 256,
        hidden_dim: int = 256,
        attn_dim: int | None = None,
        *,
        graph_dim: int | None = None,
        num_layers: int = 1,
        encoder: nn.Module | None = None,
        cell: str = "lstm",
        dropout: float = 0.0,
        pad: int = 0,
        start: int = 1,
        end: int = 2,
    ) -> None:
        super().__init__(
            vocab_size, embed_dim, hidden_dim, attn_dim, context="objects", encoder=encoder, cell=cell, dropout=dropout,
            pad=pad, start=start, end=end,
        )  # fmt: skip
        dim, layers = self.memory_dim, range(check_positive_int("num_layers", num_layers))
        graph_dim = hidden_dim if graph_dim is None else graph_dim
        self.relations = nn.ModuleList(RelationGraph(dim, graph_dim) for _ in layers)
        self.convolutions = nn.ModuleList(GraphConvolution(dim, dim, normalize=False) for _ in layers)
        for parameter in self.convolutions.parameters():
            nn.init.zeros_(parameter)
        self.pooling = MeanPooling()

    def encode(self, images: Tensor, boxes: Tensor | None = None, box_mask: Tensor | None = None) -> Memory:
        values, mask, _ = super().encode(images, boxes, box_mask)
        for relation, convolution in zip(self.relations, self.convolutions, strict=True):
            values = values + convolution(values, relation(values, boxes, mask), mask)
        return Memory(values, mask, self.pooling(values, mask))
