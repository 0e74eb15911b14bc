"""Draw ``docs/figures/lowering.png``: a convolution as one matrix product, with real numbers.

Run from the repository root: ``python docs/figures/lowering.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import im2col_conv as ic

TARGET = Path(__file__).with_suffix(".png")
WIDTH, HEIGHT, CELL = 1400, 520, 48  # pixels

INK, MUTED, GRID, FACE = "#1f2328", "#57606a", "#b6bec8", "#f6f8fa"
BLUE, ORANGE = "#0072b2", "#d55e00"  # Okabe and Ito: told apart with any colour vision
TINTS = {BLUE: "#cfe5f4", ORANGE: "#fbdcc6"}

KERNEL = (2, 3)
WINDOWS = {0: BLUE, 4: ORANGE}  # output position: colour

X_AT, COLS_AT, W_AT, Y_AT = (36, 62), (526, 62), (206, 376), (526, 376)
PANEL = 1016


def numbers() -> dict[str, np.ndarray]:
    """Compute the matrices of the figure, and check that the product is the convolution.

    >>> {name: matrix.shape for name, matrix in numbers().items()}
    {'x': (4, 5), 'cols': (6, 9), 'W': (2, 6), 'y': (2, 9)}
    """
    x = np.arange(1, 21).reshape(1, 1, 4, 5)
    w = np.array([[[[2, 0, -1], [0, 1, 0]]], [[[0, 1, 0], [1, 1, 1]]]])
    cols, rows = ic.im2col(x, KERNEL), w.reshape(2, -1)
    y = ic.conv(x, w)[0].reshape(2, -1)
    if not np.array_equal(rows @ cols, y):
        raise AssertionError("W @ cols is not the convolution")
    return {"x": x[0, 0], "cols": cols, "W": rows, "y": y}


def window_cells(position: int, width: int) -> set[tuple[int, int]]:
    """List the (row, column) cells of an input that the window of an output position covers.

    >>> sorted(window_cells(0, width=5) & window_cells(4, width=5))
    [(1, 1), (1, 2)]
    """
    top, left = divmod(position, width - KERNEL[1] + 1)
    return {(top + i, left + j) for i in range(KERNEL[0]) for j in range(KERNEL[1])}


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


def draw_matrices(ax: Any, arrays: dict[str, np.ndarray]) -> None:
    """Draw the input, its columns, the filters and the result, and join what belongs together."""
    width = arrays["x"].shape[1]
    taps, filters = len(arrays["cols"]), len(arrays["W"])
    windows = {color: window_cells(o, width) for o, color in WINDOWS.items()}
    columns = {color: {(row, o) for row in range(taps)} for o, color in WINDOWS.items()}
    matrix(ax, X_AT, arrays["x"], windows)
    matrix(ax, COLS_AT, arrays["cols"], columns)
    matrix(ax, W_AT, arrays["W"], {})
    matrix(ax, Y_AT, arrays["y"], columns)
    for o, color in WINDOWS.items():
        outline(ax, X_AT, (*min(window_cells(o, width)), *KERNEL), color)
        outline(ax, COLS_AT, (0, o, taps, 1), color)
        outline(ax, Y_AT, (0, o, filters, 1), color)
        x, top = COLS_AT[0] + (o + 0.5) * CELL, COLS_AT[1] + taps * CELL
        ax.plot([x, x], [top, Y_AT[1]], color=color, lw=2.9, solid_capstyle="butt")


def draw_labels(ax: Any) -> None:
    """Name the matrices and the two ways between the input and its columns."""
    title(ax, X_AT[0], X_AT[1] - 16, "x", "4 × 5 input")
    title(ax, COLS_AT[0], COLS_AT[1] - 16, "cols", "6 taps × 9 outputs")
    title(ax, W_AT[0], W_AT[1] + 2 * CELL + 32, "W", "2 filters × 6 taps")
    title(ax, Y_AT[0], Y_AT[1] + 2 * CELL + 32, "y = W @ cols", "2 filters × 9 outputs")
    left, right = X_AT[0] + 5 * CELL + 22, COLS_AT[0] - 22
    middle, code = (left + right) / 2, {"ha": "center", "family": "monospace"}
    arrow(ax, left, right, 118)
    write(ax, middle, 104, "im2col", 25, **code)
    arrow(ax, right, left, 200)
    write(ax, middle, 186, "col2im", 25, **code)
    write(ax, middle, 232, "overlapping", 21, ha="center", color=MUTED)
    write(ax, middle, 259, "cells add", 21, ha="center", color=MUTED)


def draw_formulas(ax: Any) -> None:
    """Write the three products that the columns serve."""
    formulas = [
        ("Forward", "y = W @ cols", "one GEMM"),
        ("Backward, filters", "dw = dout @ cols.T", "one GEMM"),
        ("Backward, input", "dx = col2im(W.T @ dout)", "one GEMM, then a scatter-add"),
    ]
    for top, (head, formula, note) in zip((62, 219, 376), formulas, strict=True):
        write(ax, PANEL, top + 17, head, 21, weight="bold", color=MUTED)
        write(ax, PANEL, top + 56, formula, 25, family="monospace")
        write(ax, PANEL, top + 91, note, 21, color=MUTED)


def draw() -> Any:
    """Draw the figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    ax.set_axis_off()
    draw_matrices(ax, numbers())
    draw_labels(ax)
    draw_formulas(ax)
    return figure


if __name__ == "__main__":
    draw().savefig(TARGET, metadata={"Software": None}, pil_kwargs={"optimize": True})
