"""What other projects compute from their state dicts, stated anew and as shortly as it can be; float64.

A ConvLSTM source is a step (weights of a layer by their keys, x, h, c) -> (h, c), an attention source
(weights, query (B, Q), keys (B, T, K)) -> attention weights (B, T). Which file says so is in the tables of
hybridops/interop.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, sigmoid, tanh

StateDict = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
BATCH, STEPS, CHANNELS, HIDDEN, SPACE, KERNEL = 2, 3, 3, 4, (6, 5), (3, 5)
QUERY, KEY, WIDTH = 5, 6, 7


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=tuple(size // 2 for size in weight.shape[2:]))


# ------------------------------------------------------------------------------------------------------- ConvLSTM


def documents_step(w: StateDict, x, h, c):
    f, i, g, o = conv(torch.cat([x, h], 1), w["conv.weight"], w["conv.bias"]).chunk(4, 1)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def ndrplz_step(w: StateDict, x, h, c):  # torchgeo's, metnet's and snntorch's too
    i, f, o, g = conv(torch.cat([x, h], 1), w["conv.weight"], w.get("conv.bias")).chunk(4, 1)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def aserdega_step(w: StateDict, x, h, c):
    i, f, o, g = conv(torch.cat([x, h], 1), w["conv.weight"], w["conv.bias"]).chunk(4, 1)
    c_new = sigmoid(f + w["Wcf"] * c) * c + sigmoid(i + w["Wci"] * c) * tanh(g)
    return sigmoid(o + w["Wco"] * c_new) * tanh(c_new), c_new


def sladewinter_step(w: StateDict, x, h, c):
    i, f, g, o = conv(torch.cat([x, h], 1), w["conv.weight"], w["conv.bias"]).chunk(4, 1)
    p_i, p_f, p_o = (w[key] for gate in "ifo" for key in w if f"W_c{gate}" in key)
    c_new = sigmoid(f + p_f * c) * c + sigmoid(i + p_i * c) * tanh(g)
    return sigmoid(o + p_o * c_new) * tanh(c_new), c_new


def jhhuang96_step(w: StateDict, x, h, c):
    i, f, g, o = conv(torch.cat([x, h], 1), w["conv.0.weight"], w["conv.0.bias"]).split(h.shape[1], 1)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def openstl_step(w: StateDict, x, h, c):
    both = zip(conv(x, w["conv_x.0.weight"]).chunk(4, 1), conv(h, w["conv_h.0.weight"]).chunk(4, 1), strict=True)
    i, f, g, o = (of_x + of_h for of_x, of_h in both)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def hzzone_step(w: StateDict, x, h, c):
    i, f, g, o = conv(torch.cat([x, h], 1), w["_conv.weight"], w["_conv.bias"]).chunk(4, 1)
    c_new = sigmoid(f + w["Wcf"] * c) * c + sigmoid(i + w["Wci"] * c) * tanh(g)
    return sigmoid(o + w["Wco"] * c_new) * tanh(c_new), c_new


def kamo_naoyuki_step(w: StateDict, x, h, c):
    w_ih, w_hh, b_ih, b_hh = w.values()
    i, f, g, o = (conv(x, w_ih, b_ih) + conv(h, w_hh, b_hh)).chunk(4, 1)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def keras_step(w: StateDict, x, h, c):  # recurrent_activation="sigmoid", padding="same"
    hwio = {key: w[key].permute(3, 2, 0, 1) for key in ("kernel", "recurrent_kernel")}
    i, f, g, o = (conv(x, hwio["kernel"], w["bias"]) + conv(h, hwio["recurrent_kernel"])).chunk(4, 1)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def cat(channels: int, name: str = "conv") -> Shapes:
    return {f"{name}.weight": (4 * HIDDEN, channels + HIDDEN, *KERNEL), f"{name}.bias": (4 * HIDDEN,)}


def peepholes(pattern: str, *batch: int) -> Shapes:
    return {pattern.format(gate): (*batch, HIDDEN, *SPACE) for gate in "fio"}


def apart(channels: int, weight_ih: str, weight_hh: str) -> Shapes:
    return {weight_ih: (4 * HIDDEN, channels, *KERNEL), weight_hh: (4 * HIDDEN, HIDDEN, *KERNEL)}


def keras_shapes(channels: int) -> Shapes:
    weights = {"kernel": (*KERNEL, channels, 4 * HIDDEN), "recurrent_kernel": (*KERNEL, HIDDEN, 4 * HIDDEN)}
    return weights | {"bias": (4 * HIDDEN,)}


STACKED = "cell_list.{layer}.{key}"

# source: its step, what a layer over so many channels has, and the name of that in the state dict
CONV_LSTM: dict[str, tuple[Callable, Callable[[int], Shapes], str]] = {
    "textbook.ConvLSTMCell": (documents_step, cat, "{key}"),
    "ndrplz": (ndrplz_step, cat, STACKED),
    "torchgeo": (ndrplz_step, lambda channels: {"conv.weight": cat(channels)["conv.weight"]}, STACKED),
    "metnet": (ndrplz_step, cat, STACKED),
    "aserdega": (aserdega_step, lambda channels: cat(channels) | peepholes("Wc{}"), STACKED),
    "sladewinter": (
        sladewinter_step,
        lambda channels: cat(channels) | peepholes("W_c{}.weight"),
        "convLSTMcell.{key}",
    ),
    "sladewinter_notebook": (
        sladewinter_step,
        lambda channels: cat(channels) | peepholes("W_c{}"),
        "convLSTMcell.{key}",
    ),
    "jhhuang96": (jhhuang96_step, lambda channels: cat(channels, "conv.0"), "{key}"),
    "openstl": (openstl_step, lambda channels: apart(channels, "conv_x.0.weight", "conv_h.0.weight"), STACKED),
    "hzzone": (hzzone_step, lambda channels: cat(channels, "_conv") | peepholes("Wc{}", 1), "{key}"),
    "snntorch": (ndrplz_step, cat, "{key}"),
    "kamo_naoyuki": (
        kamo_naoyuki_step,
        lambda channels: (
            apart(channels, "weight_ih", "weight_hh") | {"bias_ih": (4 * HIDDEN,), "bias_hh": (4 * HIDDEN,)}
        ),
        "{key}_l{layer}",
    ),
    "keras.ConvLSTM": (keras_step, keras_shapes, "{key}"),
}


def conv_lstm_shapes(source: str) -> Shapes:
    """Of two layers, where the source has more than one."""
    _, layer_shapes, name = CONV_LSTM[source]
    return {
        name.format(key=key, layer=layer): shape
        for layer, channels in enumerate([CHANNELS, HIDDEN] if "{layer}" in name else [CHANNELS])
        for key, shape in layer_shapes(channels).items()
    }


def unroll(source: str, state_dict: StateDict, x: Tensor) -> Tensor:
    """The output (B, T, H, S*) of the last layer."""
    step, layer_shapes, name = CONV_LSTM[source]
    for layer in range(2 if "{layer}" in name else 1):
        weights = {key: state_dict[name.format(key=key, layer=layer)] for key in layer_shapes(CHANNELS)}
        h = c = x.new_zeros(x.shape[0], HIDDEN, *x.shape[3:])
        output = []
        for x_t in x.unbind(1):
            h, c = step(weights, x_t, h, c)
            output.append(h)
        x = torch.stack(output, 1)
    return x


# ---------------------------------------------------------------------------------------------- additive attention


def concat(names: tuple[str, str]) -> Callable:
    attn, v = names

    def attend(w: StateDict, query, keys):
        query = query[:, None].expand(-1, keys.shape[1], -1)
        energy = tanh(F.linear(torch.cat([query, keys], 2), w[f"{attn}.weight"], w[f"{attn}.bias"]))
        return F.linear(energy, w[f"{v}.weight"]).squeeze(2).softmax(1)

    return attend


def linears(names: tuple[str, str, str], scale: float = 1.0) -> Callable:
    """v·tanh(W q + U k), each an nn.Linear with or without a bias."""

    def attend(w: StateDict, query, keys):
        of_query, of_key, v = ((w[f"{name}.weight"], w.get(f"{name}.bias")) for name in names)
        energy = tanh(F.linear(query, *of_query)[:, None] + F.linear(keys, *of_key))
        return (scale * F.linear(energy, *v).squeeze(2)).softmax(1)

    return attend


def allennlp(w: StateDict, query, keys):
    energy = tanh((query @ w["_w_matrix"])[:, None] + keys @ w["_u_matrix"])
    return (energy @ w["_v_vector"]).squeeze(2).softmax(1)


def gnmt(w: StateDict, query, keys):
    energy = F.linear(query, w["linear_q.weight"])[:, None] + F.linear(keys, w["linear_k.weight"])
    v = w["linear_att"] / w["linear_att"].norm() * w["normalize_scalar"]
    return (tanh(energy + w["normalize_bias"]) @ v).softmax(1)


def gnmt_plain(w: StateDict, query, keys):
    energy = F.linear(query, w["linear_q.weight"])[:, None] + F.linear(keys, w["linear_k.weight"])
    return (tanh(energy) @ w["linear_att"]).softmax(1)


def tfa(w: StateDict, query, keys):
    energy = (query @ w["query_layer/kernel"])[:, None] + keys @ w["memory_layer/kernel"]
    v = w["attention_g"] * w["attention_v"] * w["attention_v"].square().sum().rsqrt()
    return (v * tanh(energy + w["attention_b"])).sum(2).softmax(1)


def keras_attention(w: StateDict, query, keys):
    return (w["scale"] * tanh(query[:, None] + keys)).sum(2).softmax(1)


def shapes(query: str, key: str, v: str, *biased: str) -> Shapes:
    sizes = {query: (WIDTH, QUERY), key: (WIDTH, KEY), v: (1, WIDTH)}
    return {f"{name}.weight": size for name, size in sizes.items()} | {
        f"{name}.bias": sizes[name][:1] for name in biased
    }


def concat_shapes(attn: str, v: str, keys: int) -> Shapes:
    return {f"{attn}.weight": (WIDTH, WIDTH + keys), f"{attn}.bias": (WIDTH,), f"{v}.weight": (1, WIDTH)}


GNMT = {"linear_q.weight": (WIDTH, QUERY), "linear_k.weight": (WIDTH, KEY), "linear_att": (WIDTH,)}
TFA = {"query_layer/kernel": (QUERY, WIDTH), "memory_layer/kernel": (KEY, WIDTH), "attention_v": (WIDTH,)}
TACOTRON2 = ("query_layer.linear_layer", "memory_layer.linear_layer", "v.linear_layer")

# source: its attention weights, the shapes in its state dict, and the widths of query and keys
ATTENTION: dict[str, tuple[Callable, Shapes, int, int]] = {
    "textbook.Attention": (concat(("attn", "v")), concat_shapes("attn", "v", WIDTH), WIDTH, WIDTH),
    "bentrevett": (concat(("attn", "v")), concat_shapes("attn", "v", KEY), WIDTH, KEY),
    "bentrevett_fc": (concat(("attn_fc", "v_fc")), concat_shapes("attn_fc", "v_fc", KEY), WIDTH, KEY),
    "opennmt": (
        linears(("linear_query", "linear_context", "v")),
        shapes("linear_query", "linear_context", "v", "linear_query"),
        QUERY,
        KEY,
    ),
    "joeynmt": (
        linears(("query_layer", "key_layer", "energy_layer")),
        shapes("query_layer", "key_layer", "energy_layer"),
        QUERY,
        KEY,
    ),
    "allennlp": (
        allennlp,
        {"_w_matrix": (WIDTH, WIDTH), "_u_matrix": (KEY, WIDTH), "_v_vector": (WIDTH, 1)},
        WIDTH,
        KEY,
    ),
    "espnet": (
        linears(("mlp_dec", "mlp_enc", "gvec"), scale=2.0),
        shapes("mlp_dec", "mlp_enc", "gvec", "mlp_enc", "gvec"),
        QUERY,
        KEY,
    ),
    "tacotron2": (linears(TACOTRON2), shapes(*TACOTRON2), QUERY, KEY),
    "speechbrain": (
        linears(("mlp_dec", "mlp_enc", "mlp_attn")),
        shapes("mlp_dec", "mlp_enc", "mlp_attn", "mlp_enc", "mlp_dec"),
        QUERY,
        KEY,
    ),
    "d2l": (linears(("W_q", "W_k", "w_v")), shapes("W_q", "W_k", "w_v"), QUERY, KEY),
    "pytorch_tutorial": (linears(("Wa", "Ua", "Va")), shapes("Wa", "Ua", "Va", "Wa", "Ua", "Va"), QUERY, KEY),
    "gnmt": (gnmt, GNMT | {"normalize_scalar": (1,), "normalize_bias": (WIDTH,)}, QUERY, KEY),
    "tfa": (tfa, TFA | {"attention_g": (), "attention_b": (WIDTH,)}, QUERY, KEY),
    "keras.AdditiveAttention": (keras_attention, {"scale": (WIDTH,)}, WIDTH, WIDTH),
}


def random_state_dict(source: str) -> StateDict:
    """Scaled so that sums are of order one."""
    wanted = conv_lstm_shapes(source) if source in CONV_LSTM else ATTENTION[source][1]
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.randn(shape, generator=generator, dtype=torch.float64) / torch.Size(shape[1:]).numel() ** 0.5
        for key, shape in wanted.items()
    }
