"""The README's picture: how many times as fast as plain PyTorch, of the results that compare.py saved.

python benchmarks/plot.py [benchmarks/results/<machine>] [--out docs/pictures/speed.png]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # this file is run by its path

from benchmarks.measure import ROOT
from examples.figures import save_figure

MACHINE = ROOT / "benchmarks" / "results" / "amd-epyc-avx512-bf16-2-threads"
SHOWN = {  # family, workload, task: how it is called
    ("conv_lstm", "document", ""): "ConvLSTM (4, 5, 3→16, 64², 3)",
    ("conv_lstm", "small", ""): "ConvLSTM (8, 10, 1→64, 32², 3)",
    ("conv_lstm", "moving_mnist", ""): "ConvLSTM (4, 10, 16→128, 16², 5)",
    ("conv_lstm", "long", ""): "ConvLSTM (1, 100, 16→32, 32², 3)",
    ("additive_attention", "gnmt", "attention "): "attention (32, 50, 50, 512)",
    ("additive_attention", "captioning", "attention "): "attention (8, 50, 196, 512)",
    ("additive_attention", "long", "attention "): "attention (1, 256, 2048, 256)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("machine", nargs="?", type=Path, default=MACHINE)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures" / "speed.png")
    arguments = parser.parse_args()
    with save_figure(arguments.out, rows=1, columns=2, size=5.2) as axes:
        axes[0, 0].figure.set_size_inches(10.4, 3.6)
        for ax, task in zip(axes[0], ("training", "inference"), strict=True):
            draw(ax, arguments.machine, task)


def draw(ax: Any, machine: Path, task: str) -> None:
    names, times = [], []
    for (family, workload, prefix), name in SHOWN.items():
        rows = json.loads((machine / f"{family}.json").read_text())["tables"][""]
        (found,) = (
            row["speed-up"]
            for row in rows
            if (row["workload"], row["task"], row["variant"]) == (workload, prefix + task, "native")
        )
        names.append(name)
        times.append(found)
    bars = ax.barh(names, times, color=["#3b6ea5" if "LSTM" in name else "#c8643c" for name in names])
    ax.bar_label(bars, [f"{each:.1f}×" if each < 10 else f"{each:.0f}×" for each in times], padding=3, fontsize=8)
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set(xscale="log", xlim=(0.8, 400), title=f"{task}: times as fast as plain PyTorch")
    ax.set_xticks([1, 10, 100], ["1×", "10×", "100×"])
    ax.invert_yaxis()
    ax.tick_params(labelsize=8, labelleft=task == "training")


if __name__ == "__main__":
    main()
