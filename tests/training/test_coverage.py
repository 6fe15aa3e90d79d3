"""The doubly stochastic penalty by hand."""

from __future__ import annotations

import pytest
import torch

from hybridops.training import doubly_stochastic_penalty
from tests import tolerances


def test_the_penalty_by_hand():
    weights = torch.tensor([[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], [[0.0, 0.25, 0.75], [9.0, 9.0, 9.0]]]).double()
    mask = torch.tensor([[True, True], [True, False]])
    # (1 - 1.5)² + (1 - .5)² + 1 = 1.5;  1 + .75² + .25² = 1.625
    expected = torch.tensor((1.5 + 1.625) / 2).double()
    torch.testing.assert_close(doubly_stochastic_penalty(weights, mask), expected, **tolerances.FLOAT64)
    torch.testing.assert_close(doubly_stochastic_penalty(weights[:1]), torch.tensor(1.5).double(), **tolerances.FLOAT64)


def test_its_gradient():
    weights = torch.rand(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: doubly_stochastic_penalty(w, torch.rand(2, 3) < 2), weights)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"weights must have shape \(B, S, T\), got \(3, 5\)"):
        doubly_stochastic_penalty(torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"mask must have shape \(3, 5\), got \(3, 4\)"):
        doubly_stochastic_penalty(torch.zeros(3, 5, 2), torch.ones(3, 4, dtype=torch.bool))
