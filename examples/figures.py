"""What the tasks' pictures share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


@contextmanager
def save_figure(path: Path, rows: int, columns: int, size: float) -> Iterator[np.ndarray]:
    """A grid of axes (rows, columns), `size` inches each, saved as a PNG at the end. No display, no global state."""
    figure = Figure(figsize=(columns * size, rows * size), layout="constrained")
    FigureCanvasAgg(figure)
    yield figure.subplots(rows, columns, squeeze=False)
    figure.savefig(path, dpi=100)
