"""Draw ``docs/figures/growth.png``: time and memory for each output, as a layer grows.

Run from the repository root: ``python docs/figures/growth.py``; another result file than
``benchmarks/results/growth.json`` may be named.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TARGET = Path(__file__).with_suffix(".png")
SOURCE = Path(__file__).parents[2] / "benchmarks" / "results" / "growth.json"
WIDTH, HEIGHT = 1400, 820  # pixels

INK, MUTED, GRID = "#1f2328", "#57606a", "#d8dee4"
# Okabe and Ito: told apart with any colour vision.
CONTESTANTS = {
    "im2col_conv": ("im2col_conv", "#009e73", "s"),
    "pytorch": ("PyTorch", "#0072b2", "o"),
    "classic": ("the classic way", "#d55e00", "D"),
}
STROKES: dict[str, Any] = {"forward": "-", "backward": (0, (3, 2))}
WAYS = {
    "batch": "more images",
    "side": "larger images",
    "channels": "more channels: an output takes more",
}
FIGURES = {
    "seconds_per_output": ("ns for each output", 1e9),
    "bytes_per_output": ("bytes for each output,\nbeyond inputs and results", 1),
}


def curve(
    record: dict[str, Any], way: str, direction: str, figure: str, name: str
) -> dict[int, float]:
    """Return one figure of one contestant by how many times the first work it is.

    >>> case = {"way": "batch", "pass": "forward", "factor": 4, "bytes_per_output": {"classic": 36}}
    >>> curve({"cases": [case]}, "batch", "forward", "bytes_per_output", "classic")
    {4: 36}
    """
    return {
        case["factor"]: case[figure][name]
        for case in record["cases"]
        if (case["way"], case["pass"]) == (way, direction) and name in case[figure]
    }


def draw_panel(ax: Any, record: dict[str, Any], way: str, figure: str) -> None:
    """Draw one figure of all contestants as the layer grows in one way."""
    scale = FIGURES[figure][1]
    for name, (_, color, marker) in CONTESTANTS.items():
        for direction, stroke in STROKES.items():
            points = curve(record, way, direction, figure, name)
            # Nothing at all has no place on a logarithmic scale.
            values = [scale * value or float("nan") for value in points.values()]
            style = {"color": color, "ls": stroke, "marker": marker, "ms": 7, "lw": 2}
            ax.plot(list(points), values, **style, mec="white", mew=0.8)


def dress(ax: Any) -> None:
    """Give a panel its scales, grid and letters."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks([1, 4, 16, 64])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda factor, _: f"×{factor:g}"))
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(color=GRID, lw=0.8)
    ax.tick_params(length=0, which="both", labelsize=13, labelcolor=INK)
    ax.spines[:].set_visible(False)


def draw_legend(figure: Any) -> None:
    """Say which colour is whose, and which stroke is which pass."""
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"mec": "white", "ms": 9, "lw": 2}
    handles = [
        Line2D([], [], color=color, marker=marker, label=name, **style)
        for name, color, marker in CONTESTANTS.values()
    ]
    handles += [
        Line2D([], [], color=MUTED, ls=stroke, lw=2, label=direction)
        for direction, stroke in STROKES.items()
    ]
    place: dict[str, Any] = {
        "loc": "upper center",
        "ncols": len(handles),
        "bbox_to_anchor": (0.5, 1),
    }
    figure.legend(handles=handles, frameon=False, fontsize=14, labelcolor=INK, **place)


def draw(record: dict[str, Any]) -> Any:
    """Draw the figure of a record of growth."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(FIGURES), len(WAYS), sharex=True, sharey="row")
    figure.subplots_adjust(left=0.085, right=0.985, bottom=0.09, top=0.87, wspace=0.06, hspace=0.1)
    for row, (name, (label, _)) in zip(axes, FIGURES.items(), strict=True):
        for ax, way in zip(row, WAYS, strict=True):
            draw_panel(ax, record, way, name)
            dress(ax)
        row[0].set_ylabel(label, fontsize=14, color=INK)
    for ax, title in zip(axes[0], WAYS.values(), strict=True):
        ax.set_title(title, loc="left", fontsize=13, weight="bold", color=INK)
    figure.text(0.985, 0.015, "work, logarithmic", ha="right", fontsize=13, color=MUTED)
    machine = f"{record['processor']}, {record['threads']} threads, {record['date'][:10]}"
    figure.text(0.015, 0.015, machine, fontsize=13, color=MUTED)
    draw_legend(figure)
    return figure


if __name__ == "__main__":
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE
    figure = draw(json.loads(source.read_text(encoding="utf-8")))
    figure.savefig(TARGET, metadata={"Software": None}, pil_kwargs={"optimize": True})
