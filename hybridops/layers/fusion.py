"""Fusion of two vectors of different kinds, of an image and of a text say: v (B, V) and q (B, Q) give one (B, D).

D is the attribute `dim`. Sequences of vectors are fused in `layers.co_attention`, decisions by `LateFusion`.

Each raises TypeError or ValueError where an argument, or the shape of an input, is not as it says.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hybridops.checks import accumulation_dtype, check_bool, check_choice, check_number, check_positive_int, check_shape

FUSIONS = ("concat", "product", "elementwise", "gated", "bilinear", "mcb", "mlb", "mfb")


class VectorFusion(nn.Module):
    """What all fusions of vectors are: v (B, v_dim), q (B, q_dim) -> (B, dim)."""

    def __init__(self, v_dim: int, q_dim: int, dim: int) -> None:
        super().__init__()
        self.v_dim, self.q_dim = check_positive_int("v_dim", v_dim), check_positive_int("q_dim", q_dim)
        self.dim = dim

    def forward(self, v: Tensor, q: Tensor) -> Tensor:
        self.check(v, q)
        return self.fuse(v, q)

    def check(self, v: Tensor, q: Tensor) -> None:
        check_shape("v", v, ("B", self.v_dim))
        check_shape("q", q, (v.shape[0], self.q_dim))

    def fuse(self, v: Tensor, q: Tensor) -> Tensor:
        raise NotImplementedError


class ConcatFusion(VectorFusion):
    """[v; q], early fusion: D = V + Q."""

    def __init__(self, v_dim: int, q_dim: int) -> None:
        super().__init__(v_dim, q_dim, v_dim + q_dim)

    def fuse(self, v: Tensor, q: Tensor) -> Tensor:
        return torch.cat([v, q], 1)


class ElementwiseFusion(VectorFusion):
    """v ∘ q (Antol et al. 2015, https://arxiv.org/abs/1505.00468); with an `out_dim` its products are among the sums:

        tanh(W_v v + W_q q + W_vq (v ∘ q) + b)

    Args:
        in_dim: channels of v, and of q.
        out_dim: D of the second form; None: the first, D = in_dim.

    In the first form, leave at least one of the factors without a tanh: two squashed factors
    learn slowly, or not at all.
    """

    def __init__(self, in_dim: int, out_dim: int | None = None) -> None:
        super().__init__(in_dim, in_dim, in_dim if out_dim is None else check_positive_int("out_dim", out_dim))
        self.proj = None if out_dim is None else nn.Linear(3 * in_dim, out_dim)  # W_v, W_q and W_vq side by side

    def fuse(self, v: Tensor, q: Tensor) -> Tensor:
        return v * q if self.proj is None else torch.tanh(self.proj(torch.cat([v, q, v * q], 1)))


class GatedFusion(VectorFusion):
    """α_1 v + α_2 q, with α = softmax(W [v; q] + b): two weights for each row, D = in_dim, the channels of v and of q.

    `weights` gives α (B, 2).
    """

    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim, in_dim, in_dim)
        self.gate = nn.Linear(2 * in_dim, 2)

    def weights(self, v: Tensor, q: Tensor) -> Tensor:
        self.check(v, q)
        return torch.softmax(self.gate(torch.cat([v, q], 1)), 1)

    def fuse(self, v: Tensor, q: Tensor) -> Tensor:
        weights = self.weights(v, q)
        return weights[:, :1] * v + weights[:, 1:] * q


class BilinearFusion(VectorFusion):
    """f_d = vᵀ W_d q + b_d: a matrix W_d (V, Q) for each of `out_dim` outputs, V·Q·D weights."""

    def __init__(self, v_dim: int, q_dim: int, out_dim: int) -> None:
        super().__init__(v_dim, q_dim, out_dim)
        self.bilinear = nn.Bilinear(v_dim, q_dim, check_positive_int("out_dim", out_dim))

    def fuse(self, v: Tensor, q: Tensor) -> Tensor:
        weight = self.bilinear.weight  # whose dtype it takes, also where autocast made the inputs of another
        out: Tensor = self.bilinear(v.to(weight.dtype), q.to(weight.dtype))
        return out


class CompactBilinearPooling(VectorFusion):
    """MCB: the outer product v qᵀ, hashed to D numbers (Fukui et al. 2016, https://arxiv.org/abs/1606.01847).

        Ψ(x)_d = Σ_{i: h_i = d} s_i x_i                         the count sketch, h_i and s_i = ±1 drawn once
        f      = irfft(rfft(Ψ_v(v)) · rfft(Ψ_q(q)), n = D)      f_d = Σ_{h_i + h'_j = d mod D} s_i s'_j v_i q_j

    Args:
        out_dim: D, even or odd; the paper's is 16,000, for V = Q = 2,048.
        normalize: whether f becomes sign(f) √|f|, and that a vector of length 1.

    No parameters; h and s are buffers of the state dict, so what was trained with them is loaded with them. The
    transforms are in float32, or float64.
    """

    v_hash: Tensor  # (V,), in [0, D)
    q_hash: Tensor  # (Q,)
    v_sign: Tensor  # (V,), 1 or -1
    q_sign: Tensor  # (Q,)

    def __init__(self, v_dim: int, q_dim: int, out_dim: int = 16000, *, normalize: bool = True) -> None:
        super().__init__(v_dim, q_dim, check_positive_int("out_dim", out_dim))
        self.normalize = check_bool("normalize", normalize)
        for name, size in ("v", v_dim), ("q", q_dim):
            self.register_buffer(f"{name}_hash", torch.randint(out_dim, (size,)))
            self.register_buffer(f"{name}_sign", torch.randint(2, (size,)) * 2.0 - 1.0)

    def fuse(self, v: Tensor, q: Tensor) -> Tensor:
        if v.shape[0] == 0:  # which MKL does not transform
            return v.new_zeros(0, self.dim)
        spectrum = self._spectrum(v, self.v_hash, self.v_sign) * self._spectrum(q, self.q_hash, self.q_sign)
        fused: Tensor = torch.fft.irfft(spectrum, n=self.dim)
        return (normalized(fused) if self.normalize else fused).to(v.dtype)

    def _spectrum(self, x: Tensor, index: Tensor, sign: Tensor) -> Tensor:
        x = x.to(accumulation_dtype(x.dtype)) * sign
        spectrum: Tensor = torch.fft.rfft(x.new_zeros(x.shape[0], self.dim).index_add(1, index, x))
        return spectrum


class FactorizedBilinearPooling(VectorFusion):
    """MFB: a bilinear form of rank k for each output (Yu et al. 2017, https://arxiv.org/abs/1708.01471).

        z   = dropout((U v + b) ∘ (W q + b'))          D·k channels
        f_d = Σ_{j < k} z_{dk + j}                      then sign(f) √|f|, and that a vector of length 1

    Args:
        out_dim, factors: D and k.
        activation: of both factors, "identity" or "tanh".
        dropout: of the product, in training.
        normalize: whether the last line's second half is done.

    MLB (Kim et al. 2017, https://arxiv.org/abs/1610.04325) is factors=1, activation="tanh", normalize=False, and a
    linear layer after it.
    """

    def __init__(
        self,
        v_dim: int,
        q_dim: int,
        out_dim: int,
        *,
        factors: int = 5,
        activation: str = "identity",
        dropout: float = 0.0,
        normalize: bool = True,
    ) -> None:
        super().__init__(v_dim, q_dim, check_positive_int("out_dim", out_dim))
        self.factors = check_positive_int("factors", factors)
        self.activation = check_choice("activation", activation, ("identity", "tanh"))
        self.normalize = check_bool("normalize", normalize)
        self.v_proj = nn.Linear(v_dim, out_dim * factors)
        self.q_proj = nn.Linear(q_dim, out_dim * factors)
        self.dropout = nn.Dropout(check_number("dropout", dropout, 0.0, 1.0))

    def fuse(self, v: Tensor, q: Tensor) -> Tensor:
        v, q = self.v_proj(v), self.q_proj(q)
        if self.activation == "tanh":
            v, q = torch.tanh(v), torch.tanh(q)
        fused: Tensor = self.dropout(v * q).unflatten(1, (self.dim, self.factors)).sum(2)
        return normalized(fused) if self.normalize else fused


class WeightedVoting(nn.Module):
    """Decisions of M models into one, with weights w_m >= 0, Σ_m w_m = 1.

    Takes *logits* (..., C) of each model and gives logits, so the loss and the argmax stay what they are:

        average="probabilities":  log Σ_m w_m softmax(logits_m)         the document's Σ_m w_m P_m, as log-probabilities
        average="logits":         Σ_m w_m logits_m                      scores before the softmax (Wang et al. 2016,
                                                                        https://arxiv.org/abs/1608.00859)
    Args:
        num_models: M.
        weights: at the start; None: 1/M each.
        average: what is averaged.
        learned: whether the weights are trained, as a softmax of `scores`; a weight of 0 stays 0.
    """

    scores: Tensor

    def __init__(
        self,
        num_models: int,
        *,
        weights: Sequence[float] | None = None,
        average: str = "probabilities",
        learned: bool = True,
    ) -> None:
        super().__init__()
        self.num_models = check_positive_int("num_models", num_models)
        self.average = check_choice("average", average, ("probabilities", "logits"))
        given = [1.0 / num_models] * num_models if weights is None else list(weights)
        if len(given) != num_models or min(given) < 0.0 or abs(sum(given) - 1.0) > 1e-6:
            raise ValueError(f"weights must be {num_models} numbers >= 0 that sum to 1, got {given}")
        scores = torch.tensor(given).log()
        if check_bool("learned", learned):
            self.scores = nn.Parameter(scores)
        else:
            self.register_buffer("scores", scores)

    @property
    def weights(self) -> Tensor:
        """w (M,)."""
        return torch.softmax(self.scores, 0)

    def forward(self, logits: Sequence[Tensor]) -> Tensor:
        """Of M tensors of the same shape."""
        if len(logits) != self.num_models:
            raise ValueError(f"logits must be of {self.num_models} models, got {len(logits)}")
        for number, one in enumerate(logits):
            check_shape(f"logits[{number}]", one, logits[0].shape)
        stacked = torch.stack(tuple(logits), -1)  # (..., C, M)
        if self.average == "logits":
            return stacked @ self.weights.to(stacked.dtype)
        return torch.logsumexp(torch.log_softmax(stacked, -2) + torch.log_softmax(self.scores, 0), -1)


class LateFusion(nn.Module):
    """The decisions of two models: P = α P_v + (1 − α) P_q, of logits (B, C) each, as logits.

    Args:
        alpha: α, at the start.
        average, learned: as in `WeightedVoting`, which this is of two.
    """

    def __init__(self, alpha: float = 0.5, *, average: str = "probabilities", learned: bool = False) -> None:
        super().__init__()
        check_number("alpha", alpha, 0.0, 1.0)
        self.voting = WeightedVoting(2, weights=(alpha, 1.0 - alpha), average=average, learned=learned)

    def forward(self, v_logits: Tensor, q_logits: Tensor) -> Tensor:
        out: Tensor = self.voting((v_logits, q_logits))
        return out


def vector_fusion(kind: str, in_dim: int, out_dim: int, *, dropout: float = 0.0) -> VectorFusion:
    """The fusion of this name, one of `FUSIONS`, of two vectors of in_dim channels.

    out_dim is the D of those that can choose it, dropout that of "mlb" and "mfb". "product" is v ∘ q, "elementwise" the
    other form of `ElementwiseFusion`.
    """
    check_choice("fusion", kind, FUSIONS)
    if kind == "concat":
        return ConcatFusion(in_dim, in_dim)
    if kind == "product":
        return ElementwiseFusion(in_dim)
    if kind == "elementwise":
        return ElementwiseFusion(in_dim, out_dim)
    if kind == "gated":
        return GatedFusion(in_dim)
    if kind == "bilinear":
        return BilinearFusion(in_dim, in_dim, out_dim)
    if kind == "mcb":
        return CompactBilinearPooling(in_dim, in_dim, out_dim)
    if kind == "mlb":
        return FactorizedBilinearPooling(
            in_dim, in_dim, out_dim, factors=1, activation="tanh", dropout=dropout, normalize=False
        )
    return FactorizedBilinearPooling(in_dim, in_dim, out_dim, dropout=dropout)


def signed_sqrt(x: Tensor, eps: float = 1e-8) -> Tensor:
    """sign(x) √|x|, to within √eps, and with a slope of 1 / (2 √eps) at 0 where that of √ is infinite."""
    out: Tensor = x / (torch.sqrt(x.abs() + eps) + eps**0.5)
    return out


def normalized(x: Tensor) -> Tensor:
    """The signed square root (B, D), each row of it a vector of length 1; zeros stay zeros."""
    x = signed_sqrt(x)
    length = x.norm(dim=1, keepdim=True)
    return x / torch.where(length > 0.0, length, 1.0)
