"""Draw matrices with numbers in their cells: what the figures of this folder share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

CELL = 48  # pixels

INK, MUTED, GRID, FACE = "#1f2328", "#57606a", "#b6bec8", "#f6f8fa"
BLUE, ORANGE, GREEN = (
    "#0072b2",
    "#d55e00",
    "#009e73",
)  # Okabe and Ito, for any colour vision
TINTS = {BLUE: "#cfe5f4", ORANGE: "#fbdcc6", GREEN: "#cdebdf"}


def write(ax: Any, x: float, y: float, text: str, size: float = 22, **style: Any) -> Any:
    """Write ``text`` at a pixel, ``size`` pixels high."""
    style = {"color": INK, "ha": "left", "va": "baseline"} | style
    return ax.text(x, y, text, fontsize=0.72 * size, **style)


def box(ax: Any, at: tuple[float, float], size: tuple[float, float], **style: Any) -> None:
    """Draw a rectangle from its upper left corner."""
    from matplotlib.patches import Rectangle

    ax.add_patch(Rectangle(at, *size, **style))


def outline(ax: Any, at: tuple[float, float], cells: tuple[int, int, int, int], color: str) -> None:
    """Frame the cells (row, column, rows, columns) of the matrix drawn at ``at``."""
    row, column, height, width = cells
    corner = at[0] + column * CELL, at[1] + row * CELL
    style = {"fill": False, "ec": color, "lw": 2.9, "joinstyle": "round", "zorder": 4}
    box(ax, corner, (width * CELL, height * CELL), **style)


def shade(ax: Any, corner: tuple[float, float], colors: list[str]) -> None:
    """Fill one cell: plain, in one tint, or in two tints on both sides of its diagonal."""
    from matplotlib.patches import Polygon

    fills = [TINTS[color] for color in colors] or [FACE]
    box(ax, corner, (CELL, CELL), fc=fills[0], ec="none", zorder=1)
    if len(fills) == 2:
        x, y = corner
        half = [(x + CELL, y), (x + CELL, y + CELL), (x, y + CELL)]
        ax.add_patch(Polygon(half, fc=fills[1], ec="none", zorder=1))
    box(ax, corner, (CELL, CELL), fill=False, ec=GRID, lw=0.9, zorder=2)


def matrix(
    ax: Any, at: tuple[float, float], values: np.ndarray, groups: dict[str, set[tuple[int, int]]]
) -> None:
    """Draw ``values`` as cells, those in ``groups`` in the colours they are listed under."""
    for (row, column), value in np.ndenumerate(values):
        corner = at[0] + column * CELL, at[1] + row * CELL
        colors = [color for color, cells in groups.items() if (row, column) in cells]
        shade(ax, corner, colors)
        label = str(value).replace("-", "\N{MINUS SIGN}")
        middle = corner[0] + CELL / 2, corner[1] + CELL / 2 + 1
        weight = "bold" if colors else "normal"
        write(ax, *middle, label, ha="center", va="center_baseline", weight=weight, zorder=5)


def title(ax: Any, x: float, y: float, name: str, note: str) -> None:
    """Name a matrix, with its meaning in a quieter colour behind the name."""
    write(ax, x, y, name, 26, family="monospace", weight="bold")
    write(ax, x + 16 * len(name) + 14, y, note, 21, color=MUTED)


def arrow(ax: Any, start: float, end: float, y: float) -> None:
    """Draw a horizontal arrow."""
    style = {"arrowstyle": "-|>,head_length=0.5,head_width=0.25", "lw": 2.2, "color": INK}
    style |= {"shrinkA": 0, "shrinkB": 0, "mutation_scale": 20}
    ax.annotate("", (end, y), (start, y), arrowprops=style)


def canvas(width: int, height: int) -> tuple[Any, Any]:
    """Return a white figure and axes over all of it, in pixels from the upper left."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    ax.set_axis_off()
    return figure, ax


def save(figure: Any, target: Path) -> None:
    """Write a figure, the same bytes on every day."""
    figure.savefig(target, metadata={"Software": None}, pil_kwargs={"optimize": True})
