"""Draw ``docs/figures/performance.png``: this library's time over that of others, layer by layer.

Run from the repository root: ``python docs/figures/performance.py``; another result file than
``benchmarks/results/standard.json`` may be named.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TARGET = Path(__file__).with_suffix(".png")
SOURCE = Path(__file__).parents[2] / "benchmarks" / "results" / "standard.json"
WIDTH, ROW, HEAD, FOOT = 1400, 34, 108, 74  # pixels

INK, MUTED, GRID, LOSS = "#1f2328", "#57606a", "#d8dee4", "#fdf3ec"
BLUE, ORANGE = "#0072b2", "#d55e00"  # Okabe and Ito: told apart with any colour vision
RIVALS = {"pytorch": ("PyTorch", BLUE, "o"), "classic": ("the classic way", ORANGE, "D")}
MEAN = "geometric mean"


def ratios(record: dict[str, Any], direction: str) -> dict[str, dict[str, float]]:
    """Return the ratios of one pass by layer, the geometric mean last.

    >>> case = {"layer": "lenet", "pass": "forward", "ratios": {"pytorch": 2.0}}
    >>> mean = {"forward": {"pytorch": 2.0}}
    >>> ratios({"cases": [case], "geometric_mean": mean}, "forward")
    {'lenet': {'pytorch': 2.0}, 'geometric mean': {'pytorch': 2.0}}
    """
    found = {case["layer"]: case["ratios"] for case in record["cases"] if case["pass"] == direction}
    return {**found, MEAN: record["geometric_mean"].get(direction, {})}


def limits(record: dict[str, Any]) -> tuple[float, float]:
    """Return the least and the largest ratio that is drawn, with some room around them."""
    found = [ratio for case in record["cases"] for name, ratio in case["ratios"].items()
             if name in RIVALS]  # fmt: skip
    return min(*found, 0.5) / 1.3, max(*found, 2) * 1.3


def draw_row(ax: Any, y: float, found: dict[str, float], size: float) -> None:
    """Draw the dots of one layer, joined by a line."""
    dots = {name: found[name] for name in RIVALS if name in found}
    ax.plot(list(dots.values()), [y] * len(dots), color=GRID, lw=3, zorder=2)
    for name, ratio in dots.items():
        _, color, marker = RIVALS[name]
        ax.plot(ratio, y, marker=marker, ms=size, color=color, mec="white", mew=1, zorder=3)


def draw_panel(ax: Any, found: dict[str, dict[str, float]], title: str, room: Any) -> None:
    """Draw one pass: a row a layer, equal at the line, losses on the tinted side."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    ax.set_xscale("log", base=2)
    ax.set_xlim(*room)
    ax.set_ylim(len(found) - 0.4, -0.6)
    ax.axvspan(1, room[1], color=LOSS, zorder=0)
    ax.axvline(1, color=INK, lw=1.4, zorder=1)
    ax.axhline(len(found) - 1.5, color=MUTED, lw=0.8)
    for y, (layer, each) in enumerate(found.items()):
        draw_row(ax, y, each, 10 if layer == MEAN else 8)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(length=0, labelsize=13, labelcolor=INK)
    ax.grid(axis="x", color=GRID, lw=0.8)
    ax.set_axisbelow(True)
    ax.spines[:].set_visible(False)
    ax.set_title(title, loc="left", fontsize=16, weight="bold", color=INK, pad=26)
    for x, text, side in ((0.96, "faster", "right"), (1.04, "slower", "left")):
        place = {"transform": ax.get_xaxis_transform(), "ha": side, "va": "bottom"}
        ax.text(x, 1.01, text, fontsize=13, color=MUTED, **place)


def draw(record: dict[str, Any]) -> Any:
    """Draw the figure of a record of times."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {each: ratios(record, each) for each in ("forward", "backward")}
    rows = list(panels["forward"])
    height = HEAD + ROW * len(rows) + FOOT
    figure = Figure(figsize=(WIDTH / 100, height / 100), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    bottom, top = FOOT / height, 1 - HEAD / height
    axes = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.06})
    figure.subplots_adjust(left=0.135, right=0.985, bottom=bottom, top=top)
    for ax, (direction, found) in zip(axes, panels.items(), strict=True):
        draw_panel(ax, found, direction.capitalize(), limits(record))
    axes[0].set_yticks(range(len(rows)), rows, fontsize=13)
    caption = "time of im2col_conv over that of the other, logarithmic"
    figure.text(0.985, 0.25 * bottom, caption, ha="right", fontsize=13, color=MUTED)
    machine = f"{record['processor']}, {record['threads']} threads, {record['date'][:10]}"
    figure.text(0.015, 0.25 * bottom, machine, fontsize=13, color=MUTED)
    handles = [
        axes[0].plot([], [], marker=marker, ms=9, ls="", color=color, label=f"over {name}")[0]
        for name, color, marker in RIVALS.values()
    ]
    figure.legend(
        handles=handles, loc="upper right", ncols=2, frameon=False, fontsize=14,
        bbox_to_anchor=(0.99, 1), handletextpad=0.2, labelcolor=INK,
    )  # fmt: skip
    return figure


if __name__ == "__main__":
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE
    figure = draw(json.loads(source.read_text(encoding="utf-8")))
    figure.savefig(TARGET, metadata={"Software": None}, pil_kwargs={"optimize": True})
