"""Draw ``docs/figures/lowering.png``: a convolution as one matrix product, with real numbers.

Run from the repository root: ``python docs/figures/lowering.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matrices import BLUE, CELL, MUTED, ORANGE, arrow, canvas, matrix, outline, save, title, write

import im2col_conv as ic

TARGET = Path(__file__).with_suffix(".png")
WIDTH, HEIGHT = 1400, 520  # pixels

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
    figure, ax = canvas(WIDTH, HEIGHT)
    draw_matrices(ax, numbers())
    draw_labels(ax)
    draw_formulas(ax)
    return figure


if __name__ == "__main__":
    save(draw(), TARGET)
