"""Checkpoints of other projects: the same outputs, and the same tensors back."""

from __future__ import annotations

import re

import pytest
import torch

from hybridops import modules
from hybridops.interop import SOURCES, from_state_dict, to_state_dict
from tests import tolerances
from tests.interop.sources import (
    ATTENTION,
    BATCH,
    CHANNELS,
    CONV_LSTM,
    HIDDEN,
    KERNEL,
    KEY,
    QUERY,
    SPACE,
    STEPS,
    WIDTH,
    gnmt_plain,
    random_state_dict,
    unroll,
)

LOSSY = ("kamo_naoyuki", "espnet", "pytorch_tutorial")  # two biases that are added up; a bias of v

conv_lstm_sources = pytest.mark.parametrize("source", CONV_LSTM)
attention_sources = pytest.mark.parametrize("source", ATTENTION)
sources = pytest.mark.parametrize("source", SOURCES)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def conv_lstm_output(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    if isinstance(module, modules.FusedConvLSTM):
        return module(x)[0]
    states, output = None, []
    for x_t in x.unbind(1):
        states = module(x_t, states)
        output.append(states[0])
    return torch.stack(output, 1)


def attention_weights(module: torch.nn.Module, query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    weights = module(query, keys)
    return weights if isinstance(module, modules.FusedConcatAttention) else weights[1]


def test_every_source_is_here():
    assert set(SOURCES) == CONV_LSTM.keys() | ATTENTION.keys()


@conv_lstm_sources
def test_conv_lstm_outputs(source):
    state_dict, x = random_state_dict(source), randn(BATCH, STEPS, CHANNELS, *SPACE)
    module = from_state_dict(state_dict, source)
    torch.testing.assert_close(conv_lstm_output(module, x), unroll(source, state_dict, x), **tolerances.FLOAT64)


@attention_sources
def test_attention_weights(source):
    attend, _, query, key = ATTENTION[source]
    state_dict, inputs = random_state_dict(source), (randn(BATCH, query), randn(BATCH, STEPS, key))
    module = from_state_dict(state_dict, source)
    torch.testing.assert_close(attention_weights(module, *inputs), attend(state_dict, *inputs), **tolerances.FLOAT64)


def test_gnmt_without_a_normalised_v():
    state_dict, inputs = random_state_dict("gnmt"), (randn(BATCH, QUERY), randn(BATCH, STEPS, KEY))
    del state_dict["normalize_scalar"], state_dict["normalize_bias"]
    module = from_state_dict(state_dict, "gnmt")
    torch.testing.assert_close(module(*inputs)[1], gnmt_plain(state_dict, *inputs), **tolerances.FLOAT64)
    torch.testing.assert_close(to_state_dict(module, "gnmt"), state_dict, **tolerances.EXACT)


@pytest.mark.parametrize("source", [source for source in SOURCES if source not in LOSSY])
def test_round_trip(source):
    state_dict = random_state_dict(source)
    back = to_state_dict(from_state_dict(state_dict, source), source)
    torch.testing.assert_close(back, state_dict, **tolerances.EXACT)


@pytest.mark.parametrize("source", LOSSY)
def test_round_trip_keeps_the_outputs(source):
    """The sums come back in one place; from there on nothing changes."""
    state_dict = random_state_dict(source)
    back = to_state_dict(from_state_dict(state_dict, source), source)
    assert {key: tensor.shape for key, tensor in back.items()} == {
        key: tensor.shape for key, tensor in state_dict.items()
    }
    if source in CONV_LSTM:
        x = randn(BATCH, STEPS, CHANNELS, *SPACE)
        got, want = unroll(source, back, x), unroll(source, state_dict, x)
    else:
        attend, _, query, key = ATTENTION[source]
        inputs = randn(BATCH, query), randn(BATCH, STEPS, key)
        got, want = attend(back, *inputs), attend(state_dict, *inputs)
    torch.testing.assert_close(got, want, **tolerances.FLOAT64)
    again = to_state_dict(from_state_dict(back, source), source)
    torch.testing.assert_close(again, back, **tolerances.EXACT)


@pytest.mark.parametrize("gate_order", ["figo", "ogif"])
@conv_lstm_sources
def test_a_conv_lstm_of_ours_goes_there(source, gate_order):
    """Also one whose rows stand in another order, and that lacks what the source could have."""
    bias = source != "openstl"
    needs_peepholes = source.startswith("sladewinter")
    module = modules.FusedConvLSTM(
        CHANNELS,
        HIDDEN,
        KERNEL,
        bias=bias,
        peephole="spatial" if needs_peepholes else None,
        spatial_size=SPACE,
        gate_order=gate_order,
        dtype=torch.float64,
    )
    state_dict, x = to_state_dict(module, source), randn(BATCH, STEPS, CHANNELS, *SPACE)
    there = from_state_dict(state_dict, source)
    torch.testing.assert_close(conv_lstm_output(there, x), module(x)[0], **tolerances.FLOAT64)


@pytest.mark.parametrize("source", [source for source, (*_, query, key) in ATTENTION.items() if query != key])
def test_an_attention_of_ours_goes_there(source):
    has_bias = any("bias" in key for key in random_state_dict(source))
    query, scale = (ATTENTION[source][2], 2.0 if source == "espnet" else 1.0)
    module = modules.FusedAdditiveAttention(
        query, KEY, WIDTH, bias=has_bias and source != "tfa", scale=scale, dtype=torch.float64
    )
    there = from_state_dict(to_state_dict(module, source), source)
    inputs = randn(BATCH, query), randn(BATCH, STEPS, KEY)
    torch.testing.assert_close(there(*inputs), module(*inputs), **tolerances.FLOAT64)


def test_rows_stay_in_the_sources_order():
    state_dict = random_state_dict("ndrplz")
    module = from_state_dict(state_dict, "ndrplz")
    assert isinstance(module, modules.FusedConvLSTM)
    assert [cell.gate_order for cell in module.cell_list] == ["ifog", "ifog"]
    torch.testing.assert_close(dict(module.state_dict()), state_dict, **tolerances.EXACT)


def test_weights_are_copied():
    state_dict = random_state_dict("ndrplz")
    before = {key: tensor.clone() for key, tensor in state_dict.items()}
    module = from_state_dict(state_dict, "ndrplz")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    torch.testing.assert_close(state_dict, before, **tolerances.EXACT)


def test_layers_of_different_widths():
    state_dict = {
        "cell_list.0.conv.weight": torch.randn(20, 8, 3, 3),
        "cell_list.1.conv.weight": torch.randn(8, 7, 5, 5),
    }
    module = from_state_dict(state_dict, "torchgeo")
    output, (h_n, _) = module(torch.randn(2, 3, 3, 6, 5))
    assert output.shape == (2, 3, 2, 6, 5)
    assert [h.shape[1] for h in h_n] == [5, 2]
    torch.testing.assert_close(to_state_dict(module, "torchgeo"), state_dict, **tolerances.EXACT)


def test_prefix():
    state_dict = {f"encoder.lstm.{key}": tensor for key, tensor in random_state_dict("ndrplz").items()}
    others = {"encoder.lstm_norm.weight": torch.ones(3), "head.weight": torch.ones(3)}
    module = from_state_dict(state_dict | others, "ndrplz", prefix="encoder.lstm.")
    torch.testing.assert_close(to_state_dict(module, "ndrplz", prefix="encoder.lstm."), state_dict, **tolerances.EXACT)


def test_options_go_to_the_module():
    lstm = from_state_dict(
        random_state_dict("ndrplz"), "ndrplz", batch_first=False, save="recompute", backend="reference"
    )
    assert (lstm.batch_first, lstm.save, lstm.backend) == (False, "recompute", "reference")
    attention = from_state_dict(
        random_state_dict("speechbrain"), "speechbrain", scale=0.5, dropout=0.1, dtype=torch.float32
    )
    assert (attention.scale, attention.dropout, attention.v.weight.dtype) == (0.5, 0.1, torch.float32)


def test_keras_weights_may_be_arrays():
    state_dict = random_state_dict("keras.ConvLSTM")
    module = from_state_dict({key: tensor.numpy() for key, tensor in state_dict.items()}, "keras.ConvLSTM")
    torch.testing.assert_close(to_state_dict(module, "keras.ConvLSTM"), state_dict, **tolerances.EXACT)


def test_what_openstl_does_not_use_is_left_out():
    state_dict = random_state_dict("openstl")
    dead = {
        f"cell_list.{layer}.{name}.weight": torch.ones(1) for layer in range(2) for name in ("conv_o.0", "conv_last")
    }
    module = from_state_dict(state_dict | dead | {"conv_last.weight": torch.ones(1)}, "openstl")
    torch.testing.assert_close(to_state_dict(module, "openstl"), state_dict, **tolerances.EXACT)


def test_hzzone_without_peepholes():
    state_dict = {key: tensor for key, tensor in random_state_dict("hzzone").items() if "conv" in key}
    module = from_state_dict(state_dict, "hzzone")
    assert module.cell_list[0].peephole is None
    torch.testing.assert_close(to_state_dict(module, "hzzone"), state_dict, **tolerances.EXACT)


@pytest.mark.parametrize("source", ["aserdega", "sladewinter", "sladewinter_notebook", "hzzone"])
def test_one_peephole_a_channel(source):
    """(1, H, 1, 1): the frames may have any size then."""
    state_dict = {
        key: tensor if "conv." in key else tensor.mean((-1, -2)).reshape(1, HIDDEN, 1, 1)
        for key, tensor in random_state_dict(source).items()
    }
    module = from_state_dict(state_dict, source)
    assert module.cell_list[0].peephole.shape == (3, HIDDEN)
    torch.testing.assert_close(to_state_dict(module, source), state_dict, **tolerances.EXACT)
    x = randn(BATCH, STEPS, CHANNELS, 4, 9)
    torch.testing.assert_close(conv_lstm_output(module, x), unroll(source, state_dict, x), **tolerances.FLOAT64)


def test_peepholes_of_two_kinds_are_refused():
    state_dict = random_state_dict("hzzone") | {"Wcf": torch.ones(1, HIDDEN, 1, 1)}
    with pytest.raises(ValueError, match=r"^Wci must have shape \(1, 4, 1, 1\)"):
        from_state_dict(state_dict, "hzzone")


# ------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("source", [source for source in ATTENTION if source not in LOSSY])
def test_what_the_source_does_not_have_is_not_trained(source):
    """So that as many numbers are trained as in the source, and g and V apart."""
    state_dict = random_state_dict(source)
    module = from_state_dict(state_dict, source)
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    assert trained == sum(tensor.numel() for tensor in state_dict.values())


@pytest.mark.parametrize("source", ["gnmt", "tfa", "bentrevett", "keras.AdditiveAttention"])
def test_a_training_step_is_the_sources(source):
    attend, _, query, key = ATTENTION[source]
    state_dict, inputs = random_state_dict(source), (randn(BATCH, query), randn(BATCH, STEPS, key))
    module = from_state_dict(state_dict, source)
    theirs = {name: tensor.requires_grad_() for name, tensor in state_dict.items()}
    cost = torch.linspace(-1, 1, STEPS, dtype=torch.float64)
    (attend(theirs, *inputs) * cost).sum().backward()
    (module(*inputs)[1] * cost).sum().backward()
    with torch.no_grad():
        for tensor in (*theirs.values(), *module.parameters()):
            if tensor.grad is not None:
                tensor -= tensor.grad
    torch.testing.assert_close(
        to_state_dict(module, source), {name: t.detach() for name, t in theirs.items()}, **tolerances.FLOAT64
    )


# --------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("source", SOURCES)
def test_missing_and_unexpected_keys_are_named(source):
    state_dict = random_state_dict(source)
    required = next(iter(state_dict))
    state_dict["somebody.elses"] = state_dict.pop(required)
    with pytest.raises(
        ValueError, match=rf"^state_dict must have the keys of '{source}': missing .*unexpected .*elses"
    ):
        from_state_dict(state_dict, source)
    with pytest.raises(ValueError, match=rf"missing .*'{required.replace('.', '[.]')}'"):
        from_state_dict(state_dict, source)


def test_half_of_an_optional_group_is_missing_the_other_half():
    state_dict = random_state_dict("hzzone")
    del state_dict["Wcf"]
    with pytest.raises(ValueError, match=r"missing \['Wcf'\], unexpected \[\]"):
        from_state_dict(state_dict, "hzzone")


def test_a_bias_in_one_layer_only():
    state_dict = random_state_dict("ndrplz")
    del state_dict["cell_list.1.conv.bias"]
    with pytest.raises(ValueError, match=r"missing \['cell_list.1.conv.bias'\]"):
        from_state_dict(state_dict, "ndrplz")


def test_a_wrong_prefix_is_named():
    with pytest.raises(ValueError, match=r"the keys of 'd2l' under 'attention\.': missing .* unexpected \[\]"):
        from_state_dict(random_state_dict("d2l"), "d2l", prefix="attention.")


REFUSED = {
    "jhhuang96": ("conv.1.weight", "a norm"),
    "openstl": ("cell_list.1.conv_h.1.bias", "a norm"),
    "kamo_naoyuki": ("weight_ih_l0_reverse", "a second direction"),
    "tacotron2": ("location_layer.location_conv.conv.weight", "location-aware"),
    "espnet": ("mlp_att.weight", "location-aware"),
    "speechbrain": ("conv_loc.weight", "location-aware"),
    "opennmt": ("linear_cover.weight", "coverage"),
    "snntorch": ("reset_mechanism_val", "reset of the hidden state"),
}


@pytest.mark.parametrize(("source", "key", "why"), [(source, *rest) for source, rest in REFUSED.items()])
def test_what_the_fused_module_does_not_compute_is_refused(source, key, why):
    with pytest.raises(ValueError, match=f"^{key} of state_dict: the fused module does not compute .*{why}"):
        from_state_dict(random_state_dict(source) | {key: torch.zeros(())}, source)


def test_convolutional_peepholes_are_refused():
    with pytest.raises(ValueError, match=r"^weight_pi_l0 of state_dict: .* peepholes that are convolutions"):
        from_state_dict(random_state_dict("kamo_naoyuki") | {"weight_pi_l0": torch.ones(1)}, "kamo_naoyuki")


def test_snntorch_without_a_reset():
    settings = {"threshold": torch.tensor(1.0), "graded_spikes_factor": torch.tensor(1.0)}
    state_dict = random_state_dict("snntorch")
    module = from_state_dict(state_dict | settings | {"reset_mechanism_val": torch.tensor(2)}, "snntorch")
    torch.testing.assert_close(to_state_dict(module, "snntorch"), state_dict, **tolerances.EXACT)


@pytest.mark.parametrize(
    ("source", "key", "shape", "message"),
    [
        ("ndrplz", "cell_list.0.conv.weight", (16, 3), r"must have shape \(4H, C\+H, K\*\)"),
        ("ndrplz", "cell_list.0.conv.weight", (16, 4, 3, 3), r"must have 4H rows over C\+H channels"),
        ("ndrplz", "cell_list.1.conv.bias", (15,), r"must have shape \(16\)"),
        ("ndrplz", "cell_list.1.conv.weight", (16, 9, 3, 3), "layers of state_dict do not fit"),
        ("ndrplz", "cell_list.0.conv.weight", (16, 7, 2, 2), "kernel_size must be odd"),
        ("openstl", "cell_list.0.conv_h.0.weight", (16, 5, 3, 5), r"must have shape \(16, 4, 3, 5\)"),
        ("keras.ConvLSTM", "kernel", (16,), r"must have shape \(K\*, channels, 4H\)"),
        ("sladewinter", "convLSTMcell.W_co.weight", (4, 6, 6), r"must have shape \(4, 6, 5\)"),
        ("hzzone", "Wcf", (4, 6, 5), r"must have shape \(1, 4, H, W\)"),
        ("textbook.Attention", "attn.weight", (7, 13), r"must have shape \(7, 14\)"),
        ("bentrevett", "attn.weight", (7, 7), "must have more than 7 columns"),
        ("d2l", "W_k.weight", (6, 7), r"must have shape \(7, in\)"),
        ("allennlp", "_u_matrix", (6, 8), r"must have shape \(in, 7\)"),
        ("espnet", "mlp_enc.bias", (6,), r"must have shape \(7\)"),
        ("espnet", "gvec.bias", (2,), r"must have shape \(1\)"),
        ("gnmt", "normalize_scalar", (2,), r"must have shape \(1\)"),
        ("gnmt", "linear_att", (1, 7), r"must have shape \(7\)"),
    ],
)
def test_wrong_shapes_are_named(source, key, shape, message):
    message = f"^{re.escape(key)} {message}" if message.startswith("must") else message
    with pytest.raises(ValueError, match=message):
        from_state_dict(random_state_dict(source) | {key: torch.zeros(shape)}, source)


@pytest.mark.parametrize(
    "function", [lambda s: from_state_dict({}, s), lambda s: to_state_dict(torch.nn.LSTM(1, 1), s)]
)
def test_unknown_source(function):
    with pytest.raises(ValueError, match=r"^source must be one of .*'ndrplz', .*, got 'pytorch'"):
        function("pytorch")


def test_not_a_mapping():
    with pytest.raises(TypeError, match=r"^state_dict must be a mapping of names to tensors, got list"):
        from_state_dict([], "ndrplz")


ATTENTION_OF_OURS = modules.FusedAdditiveAttention(QUERY, KEY, WIDTH)


@pytest.mark.parametrize(
    ("module", "source", "error", "message"),
    [
        (torch.nn.LSTM(1, 1), "ndrplz", TypeError, "module must be ConvLSTM or ConvLSTMCell, got LSTM"),
        (ATTENTION_OF_OURS, "ndrplz", TypeError, "got FusedAdditiveAttention"),
        (modules.FusedConvLSTM(1, 1, 3), "d2l", TypeError, "module must be AdditiveAttention or ConcatAttention"),
        (modules.FusedConvLSTM(1, 1, 3, num_layers=2), "jhhuang96", ValueError, "must have one layer"),
        (modules.FusedConvLSTM(1, 1, 3, peephole="channel"), "ndrplz", ValueError, "there are none in 'ndrplz'"),
        (modules.FusedConvLSTM(1, 1, 3), "sladewinter", ValueError, "must have peepholes"),
        (modules.FusedConvLSTM(1, 1, 3), "openstl", ValueError, "must have no bias"),
        (modules.FusedAdditiveAttention(3, 4, 5, bias=True), "d2l", ValueError, "must have no bias"),
        (modules.FusedAdditiveAttention(3, 4, 5, activation="relu"), "d2l", ValueError, "must have activation 'tanh'"),
        (modules.FusedAdditiveAttention(3, 4, 5, scale=2.0), "d2l", ValueError, "must have scale 1, .* got 2"),
        (modules.FusedAdditiveAttention(5, 5, 5), "keras.AdditiveAttention", ValueError, "project by the identity"),
        (ATTENTION_OF_OURS, "textbook.Attention", ValueError, r"W of module must have shape \(7, 14\), got \(7, 11\)"),
        (ATTENTION_OF_OURS, "bentrevett", ValueError, "a query as wide as the sum, 7, got 5"),
        (ATTENTION_OF_OURS, "allennlp", ValueError, "a query as wide as the sum, 7, got 5"),
    ],
)
def test_what_the_source_has_no_place_for_is_refused(module, source, error, message):
    with pytest.raises(error, match=message):
        to_state_dict(module, source)
