"""functional.attention_decoder: every back end against a loop over PyTorch's own cells, values and gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.decoder_problems import (
    CELLS,
    QUERIES,
    VARIANTS,
    fused_decoder,
    plain_decoder,
    problem,
)
from tests.problems import DTYPES, assert_parity

cells = pytest.mark.parametrize("cell", CELLS)
queries = pytest.mark.parametrize("query", QUERIES)
variants = pytest.mark.parametrize("variant", VARIANTS)


@cells
@queries
@variants
@pytest.mark.parametrize("dtype", DTYPES)
def test_variants(decoder_target, cell, query, variant, dtype):
    inputs, options = problem(cell, query, variant)
    check(decoder_target, inputs, options, dtype)


def check(target, inputs, options, dtype=torch.float64) -> None:
    options = {name: o.to(target.device) if isinstance(o, torch.Tensor) else o for name, o in options.items()}
    plain = partial(plain_decoder, **options)
    assert_parity(plain, fused_decoder, inputs, dtype, target.device, backend=target.backend, **options)
