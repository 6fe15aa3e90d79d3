"""What every back end implements: one module a family, with these functions, and one `BackEnd` that names them.

The layout is one for all of them: images stand time-major and channels-last, with two spatial dimensions, or three,
S* = (Y,X) or (Z,Y,X) (see layouts.py). `acc` is the accumulation dtype, float32, or float64 for float64. Masks are
boolean, True = may be attended. formulas/ has the equations, and the symbols.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple, Protocol

from torch import Tensor

# ----------------------------------------------------------------------------------------------------------- ConvLSTM


class Save(enum.IntEnum):
    """What a forward keeps of each step for its backward; by number in the compiled ops."""

    NOTHING = 0
    CELLS = 1
    GATES = 2


class ConvLSTMInputs(NamedTuple):
    x: Tensor  # (T,B,S*,C) any strides
    h0: Tensor | None  # (B,S*,H), None = zeros
    c0: Tensor | None  # (B,S*,H) acc, None = zeros
    w_ih: Tensor  # (4H,C,K*), rows in the gate order f, i, g, o
    w_hh: Tensor  # (4H,H,K*)
    bias: Tensor | None  # (4H)
    peephole: Tensor | None  # (3,H) or (3,S*,H), rows f, i, o


class ConvLSTMStates(NamedTuple):
    hs: Tensor  # (T,B,S*,H)
    cs: Tensor  # (T,B,S*,H) acc; with Save.NOTHING the last alone, (1,B,S*,H)
    gates: Tensor | None  # (T,B,S*,4H) after their nonlinearity, with Save.GATES


class StateGradients(NamedTuple):
    """Upstream gradients; None = zeros."""

    hs: Tensor | None  # (T,B,S*,H) any strides
    h_n: Tensor | None  # (B,S*,H)
    c_n: Tensor | None  # (B,S*,H)


class ConvLSTMImpl(Protocol):
    def conv_lstm_forward(self, inputs: ConvLSTMInputs, save: Save, /) -> ConvLSTMStates: ...

    def conv_lstm_backward(
        self, grads: StateGradients, inputs: ConvLSTMInputs, states: ConvLSTMStates, need_dh0: bool, /
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The gradients da (T,B,S*,4H) of the pre-activations, dh0 (B,S*,H) if needed, dc0 (B,S*,H) acc. Gates that
        were not saved are computed anew. It may be run over a chunk of the steps: h0, c0 are the states before it, and
        grads.h_n, grads.c_n the dh0, dc0 of the chunk behind it.
        """
        ...

    def input_gradient(self, da: Tensor, weight: Tensor, dx: Tensor, /) -> None:
        """Writes dx (T,B,S*,C) = weightᵀ * da, of x in weight * x; dx is contiguous."""
        ...

    def weight_gradients(self, da: Tensor, factors: Sequence[Tensor], dweights: Sequence[Tensor], /) -> None:
        """Adds the gradient of the weight in weight * x, for each x (T,B,S*,C) of one or two factors, to its dweight
        (4H,C,K*) acc, which is contiguous.
        """
        ...


# -------------------------------------------------------------------------------------------------- additive attention


class Activation(NamedTuple):
    kind: str  # one of checks.ACTIVATIONS
    negative_slope: float  # of leaky_relu


class AttentionInputs(NamedTuple):
    q: Tensor  # (B,S,A)
    k: Tensor  # (B,T,A)
    v: Tensor  # (A,)
    value: Tensor  # (B,T,D)
    mask: Tensor | None  # three dimensions, broadcastable to (B,S,T)
    score_bias: Tensor | None  # broadcastable to (B,S,T)


class AdditiveAttentionImpl(Protocol):
    """One with `takes_attended_keys = True` is given on a CPU only the keys that may be attended, where few are."""

    def additive_scores_forward(
        self, q: Tensor, k: Tensor, v: Tensor, activation: Activation, prepared: tuple[Tensor, Tensor] | None = None, /
    ) -> Tensor:
        """Σ_a v_a act(q + k), (B,S,T) acc."""
        ...

    def additive_scores_backward(
        self, grad_scores: Tensor, q: Tensor, k: Tensor, v: Tensor, activation: Activation, /
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dq, dk, dv, each in its own dtype, from grad_scores (B,S,T) acc."""
        ...

    def additive_attention_forward(
        self,
        inputs: AttentionInputs,
        activation: Activation,
        scale: float,
        prepared: tuple[Tensor, Tensor] | None = None,
        need_weights: bool = True,
        /,
    ) -> tuple[Tensor, Tensor]:
        """context (B,S,D) and weights (B,S,T), in the dtype of value; weights that are not needed may be anything."""
        ...

    def prepare_keys(self, k: Tensor, kind: str, /) -> tuple[Tensor, Tensor] | None:
        """What the scores otherwise compute of the keys at every call; None = nothing."""
        ...


# --------------------------------------------------------------------------------------------------- attention decoder


class DecoderInputs(NamedTuple):
    """All of one dtype but cell0 and score_bias (acc), mask (boolean) and lengths (int64).

    Where the back end packs weights, key, value and mask of a forward may have B/m entries, each for m rows next to
    each other.
    """

    x_gates: Tensor  # (B,S,GH)
    key: Tensor  # (B,T,A), projected
    value: Tensor  # (B,T,D)
    v: Tensor  # (A)
    h0: Tensor  # (B,H)
    cell0: Tensor | None  # (B,H) acc, None: a GRU
    context0: Tensor | None  # (B,D), query "current" alone; None: zeros
    w_q: Tensor  # (A,H)
    b_q: Tensor | None  # (A)
    w_c: Tensor  # (GH,D), rows may be strided
    w_h: Tensor  # (GH,H)
    b_h: Tensor | None  # (GH), of a GRU alone
    w_beta: Tensor | None  # (D,H), None: no context gate
    b_beta: Tensor | None  # (D)
    mask: Tensor | None  # (B,T), True = may be attended
    score_bias: Tensor | None  # (B,S,T) acc
    keep: Tensor | None  # (B,S,T), dropout of the weights: 0 or 1/(1-p)
    lengths: Tensor | None  # (B)
    # (A,C,K), of the weights before: of the last ones and of their sum (C 2), or of their sum (1); no back end takes it
    location: Tensor | None = None


class DecoderOptions(NamedTuple):
    activation: Activation
    scale: float
    cell: str  # "lstm" | "gru"
    query: str  # "previous" | "current"


class DecoderStates(NamedTuple):
    """The results; the rest are for the backward, and None where nothing was to be saved."""

    output: Tensor  # (B,S,H)
    h_n: Tensor  # (B,H); no backward reads it, nor cell_n
    cell_n: Tensor | None  # (B,H) acc, None: a GRU
    context: Tensor  # (B,S,D), after the context gate
    weights: Tensor  # (B,S,T), after keep
    cells: Tensor | None = None  # (B,S,H) acc, of an LSTM
    gates: Tensor | None = None  # (B,S,GH), after their nonlinearity
    hidden_n: Tensor | None = None  # (B,S,H), a'_n of a GRU
    queries: Tensor | None = None  # (B,S,A)
    alpha: Tensor | None = None  # (B,S,T), before keep; anything behind the end of a row
    beta: Tensor | None = None  # (B,S,D), the context gate, None: there is none
    ungated: Tensor | None = None  # (B,S,D), the context before the gate, None: there is no gate


class DecoderUpstreamGrads(NamedTuple):
    """Of the results; each may be None: zeros."""

    output: Tensor | None  # (B,S,H)
    h_n: Tensor | None  # (B,H)
    cell_n: Tensor | None  # (B,H)
    context: Tensor | None  # (B,S,D)
    weights: Tensor | None  # (B,S,T)


class DecoderGradients(NamedTuple):
    """Steps behind the end of a row have zeros."""

    da: Tensor  # (B,S,GH), of x_gates
    da_h: Tensor  # (B,S,GH), of W_h h_{s-1} + b_h; the same tensor for an LSTM
    dq: Tensor  # (B,S,A)
    dcontext: Tensor  # (B,S,D), of the context before the gate
    dscores: Tensor  # (B,S,T) acc, of e: zero where masked
    dbeta: Tensor | None  # (B,S,D), of W_β h' + b_β; None: no gate
    dh0: Tensor  # (B,H)
    dcell0: Tensor | None  # (B,H) acc, None: a GRU
    dcontext0: Tensor | None  # (B,D), None: query "previous"
    # where there is a location; elsewhere they follow from dscores in one product for all steps
    dkey: Tensor | None = None  # (B,T,A)
    dv: Tensor | None = None  # (A)
    dlocation: Tensor | None = None  # (A,C,K)


class AttentionDecoderImpl(Protocol):
    """`takes_attended_keys` as of AdditiveAttentionImpl."""

    def attention_decoder_forward(self, inputs: DecoderInputs, options: DecoderOptions, save: bool, /) -> DecoderStates:
        """Of at least one step. Where there is `pack_weights`, it may be given what `prepare_keys` and that made."""
        ...

    def attention_decoder_backward(
        self, grads: DecoderUpstreamGrads, inputs: DecoderInputs, options: DecoderOptions, states: DecoderStates, /
    ) -> DecoderGradients:
        """What is sequential of it. It reads no value of inputs.x_gates, states.h_n and states.cell_n."""
        ...

    def additive_scores_backward(
        self, grad_scores: Tensor, q: Tensor, k: Tensor, v: Tensor, activation: Activation, /
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As that of AdditiveAttentionImpl."""
        ...


# ----------------------------------------------------------------------------------------------------- the back end


@dataclass(frozen=True)
class BackEnd:
    """A back end, as `backends.register` takes it.

    Attributes:
        name: by which `backend=` names it.
        families: by the name of a family ("conv_lstm", "additive_attention"), the module that implements it; none of a
            back end that cannot be imported here.
        priority: by device type, where it may be chosen unasked; the highest that takes a call runs it.
        unavailable_reason: (device type or None = any) -> None, or why it is not here.
        unsupported_reason: (family, a tensor, spatial dimensions) -> None, or why it does not take such a call.
        description: what it runs on here.
    """

    name: str
    families: Mapping[str, ModuleType]
    priority: Mapping[str, int]
    unavailable_reason: Callable[[str | None], str | None]
    unsupported_reason: Callable[[str, Tensor, int], str | None]
    description: Callable[[], str]
