"""A decoder of words that decides at each step how much it looks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hybridops.checks import check_choice, check_number, check_positive_int, check_shape
from hybridops.layers.decoding import RecurrentState, TokenDecoder
from hybridops.layers.encoders import Memory
from hybridops.modules import FusedAdditiveAttention
from hybridops.reference.additive_attention import PreparedKeys


@dataclass(frozen=True, eq=False)
class AdaptiveState:
    """Of an AdaptiveTokenDecoder: R rows, m for each of the B entries of the memory."""

    keys: PreparedKeys  # B entries
    recurrent: RecurrentState

    def reorder(self, index: Tensor) -> AdaptiveState:
        return replace(self, recurrent=self.recurrent.reorder(index))

    def select(self, index: Tensor) -> AdaptiveState:
        return AdaptiveState(self.keys.index_select(index), self.recurrent.select(index))


class AdaptiveTokenDecoder(TokenDecoder):
    """Words to logits with adaptive attention, Lu et al. 2017, https://arxiv.org/abs/1612.01887.

        h_s, m_s = LSTM of x_s = [E[w_s]; relu(W_b pooled)]          V = relu(W_a values)
        c_s, lse_s = additive attention of h_s over V, and the log-sum-exp of its scores
        ĉ_s = β_s r_s + (1 - β_s) c_s                                logits_s = W_p dropout(ĉ_s + h_s)

        "sentinel":  r_s = σ(W_g [x_s; h_{s-1}]) ∘ tanh(m_s)         what the LSTM knows already
                     β_s = σ(v · tanh(W_s r_s + W_q h_s) - lse_s)    its share of a softmax that it is part of
        "global":    r_s = relu(W_r pooled)                          the whole image
                     β_s = σ(w · h_s + b)

    Args:
        vocab_size, embed_dim: words V, channels E of a word.
        hidden_dim, memory_dim, attn_dim: H of the state, D of the memory's values, A of the attention.
        pooled_dim: P of the memory's pooled; None: D.
        fallback: "sentinel" or "global", what there is in place of attention.
        dropout: of embedded words, and of what the vocabulary is applied to, in training.
        pad: the number of the word that only fills up.

    The weights (B, S, T) are those of the values in ĉ_s: they sum to 1 - β_s. A row whose memory is masked everywhere
    has β_s = 1 by the sentinel, and r_s alone in place of the context.

    Nothing that the LSTM reads depends on the attention, so that all steps of a sentence are one fused call of it.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        hidden_dim: int,
        memory_dim: int,
        attn_dim: int,
        *,
        pooled_dim: int | None = None,
        fallback: str = "sentinel",
        dropout: float = 0.0,
        pad: int = 0,
    ) -> None:
        super().__init__()
        check_positive_int("vocab_size", vocab_size)
        self.memory_dim = check_positive_int("memory_dim", memory_dim)
        self.pooled_dim = memory_dim if pooled_dim is None else check_positive_int("pooled_dim", pooled_dim)
        self.fallback = check_choice("fallback", fallback, ("sentinel", "global"))
        self.embedding = nn.Embedding(vocab_size, check_positive_int("embed_dim", embed_dim), padding_idx=pad)
        self.value_proj = nn.Linear(memory_dim, check_positive_int("hidden_dim", hidden_dim))
        self.pooled_proj = nn.Linear(self.pooled_dim, embed_dim + (hidden_dim if fallback == "global" else 0))
        self.cell = nn.LSTMCell(2 * embed_dim, hidden_dim)
        self.attention = FusedAdditiveAttention(hidden_dim, hidden_dim, attn_dim)
        if fallback == "sentinel":
            self.sentinel_gate = nn.Linear(2 * embed_dim + hidden_dim, hidden_dim)
            self.sentinel_proj = nn.Linear(hidden_dim, attn_dim, bias=False)
        else:
            self.beta = nn.Linear(hidden_dim, 1)
        self.dropout = nn.Dropout(check_number("dropout", dropout, 0.0, 1.0))
        self.vocabulary = nn.Linear(hidden_dim, vocab_size)

    def forward(self, tokens: Tensor, memory: Memory, *, need_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        check_shape("tokens", tokens, (memory.values.shape[0], "S"))
        logits, weights, _ = self._run(tokens, self.start(memory))
        return logits, weights if need_weights else None

    def start(self, memory: Memory) -> AdaptiveState:
        values, mask, pooled = memory
        check_shape("values", values, ("B", "T", self.memory_dim))
        check_shape("pooled", pooled, (values.shape[0], self.pooled_dim))
        if mask is not None:
            values = values.masked_fill(~mask[..., None], 0.0)
        keys = self.attention.prepare(torch.relu(self.value_proj(values)), mask=mask)
        pooled = torch.relu(self.pooled_proj(pooled))
        h = pooled.new_zeros(1, pooled.shape[0], self.cell.hidden_size)
        return AdaptiveState(keys, RecurrentState(h, h, pooled, pooled.shape[0]))

    def step(self, tokens: Tensor, state: AdaptiveState) -> tuple[Tensor, Tensor | None, AdaptiveState]:
        logits, weights, state = self._run(tokens[:, None], state)
        return logits[:, 0], weights[:, 0], state

    def _run(self, tokens: Tensor, state: AdaptiveState) -> tuple[Tensor, Tensor, AdaptiveState]:
        """logits (R, S, V) after tokens (R, S), weights (R, S, T), the state after them."""
        recurrent, embed_dim = state.recurrent, self.embedding.embedding_dim
        assert recurrent.c is not None
        whole = recurrent.pooled[:, None].expand(-1, tokens.shape[1], -1)
        x = torch.cat([self.dropout(self.embedding(tokens)), whole[..., :embed_dim]], 2)
        h, c = recurrent.h[0], recurrent.c[0]
        hidden, cells = [h], []
        for x_s in x.unbind(1):  # `nn.LSTM` gives no cells but the last
            h, c = self.cell(x_s, (h, c))
            hidden.append(h)
            cells.append(c)
        before, now = torch.stack(hidden[:-1], 1), torch.stack(hidden[1:], 1)
        context, weights, lse = self.attention(now, state.keys, need_lse=True)
        if self.fallback == "sentinel":
            instead = torch.sigmoid(self.sentinel_gate(torch.cat([x, before], 2))) * torch.tanh(torch.stack(cells, 1))
            energy = torch.tanh(self.sentinel_proj(instead) + self.attention.query_proj(now))
            beta = torch.sigmoid(self.attention.v(energy) - lse[..., None]).to(now.dtype)  # lse is float32 at least
        else:
            instead, beta = whole[..., embed_dim:], torch.sigmoid(self.beta(now))
        mixed = beta * instead + (1 - beta) * context
        logits = self.vocabulary(self.dropout(mixed + now))
        return logits, (1 - beta) * weights, replace(state, recurrent=replace(recurrent, h=h[None], c=c[None]))
