"""Checks that every tensor of an op has the sizes that the kernels index."""

from __future__ import annotations

from torch import Tensor

from hybridops.checks import check_shape


def check_sizes(**sizes: tuple[Tensor | None, tuple[int | str, ...]]) -> None:
    """Raises unless each tensor has its shape. name=(tensor or None, shape), where a letter is any size."""
    for name, (tensor, shape) in sizes.items():
        if tensor is not None:
            check_shape(name, tensor, shape)


def check_pairs(q: Tensor, k: Tensor, v: Tensor) -> tuple[int, int, int, int]:
    """Raises unless the shapes fit together; returns B, S, T, A."""
    check_shape("q", q, ("B", "S", "A"))
    batch, queries, width = q.shape
    check_sizes(k=(k, (batch, "T", width)), v=(v, (width,)))
    return batch, queries, k.shape[1], width


def check_convolution(
    w_hh: Tensor,  # (4H,H,KY,KX)
    peephole: Tensor | None,  # (3,H) or (3,Y,X,H)
    pixels: tuple[int, ...],  # (B,Y,X)
    **states: Tensor | None,  # (B,Y,X,H)
) -> int:
    """Raises unless the shapes fit together; returns H."""
    check_shape("w_hh", w_hh, ("4H", "H", "KY", "KX"))
    hidden, kernel = w_hh.shape[1], tuple(w_hh.shape[2:])
    if any(size % 2 == 0 for size in kernel):
        raise ValueError(f"w_hh must have an odd kernel, got {kernel}")
    per_channel = peephole is not None and peephole.dim() == 2
    check_sizes(
        w_hh=(w_hh, (4 * hidden, hidden, *kernel)),
        peephole=(peephole, (3, *(() if per_channel else pixels[1:]), hidden)),
        **{name: (state, (*pixels, hidden)) for name, state in states.items()},
    )
    return hidden
