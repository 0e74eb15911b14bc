"""Draw ``docs/figures/adjoint.png``: col2im, column by column, and all columns added.

Run from the repository root: ``python docs/figures/adjoint.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matrices import (
    BLUE,
    CELL,
    INK,
    MUTED,
    ORANGE,
    arrow,
    canvas,
    matrix,
    outline,
    save,
    title,
    write,
)

import im2col_conv as ic

TARGET = Path(__file__).with_suffix(".png")
WIDTH, HEIGHT = 1400, 520  # pixels
SHAPE, KERNEL = (3, 4), (2, 2)
WINDOWS = {0: BLUE, 4: ORANGE}  # output position: colour
MEET = (1, 1)  # the cell that both windows hold

COLS_AT = (66, 62)
IMAGES = {0: (470, 62), 4: (740, 62), None: (1130, 62)}
SUM_AT, COUNT_AT = (66, 372), (1130, 332)


def numbers() -> dict[str, np.ndarray]:
    """Compute the columns of the gradient, and check that their scatter is dx.

    >>> made = numbers()
    >>> made["dcols"][:, 4].tolist(), int(made["dx"][MEET]), int(made["count"][MEET])
    ([2, 4, 6, 8], 18, 4)
    """
    w = np.array([[[[1, 2], [3, 4]]]])
    dout = np.array([[[[1, 2, 1], [3, 2, 1]]]])
    dcols, shape = w.reshape(1, -1).T @ dout.reshape(1, -1), (1, 1, *SHAPE)
    dx = ic.col2im(dcols, shape, KERNEL)[0, 0]
    if not np.array_equal(dx, ic.conv_input_grad(dout, w, shape)[0, 0]):
        raise AssertionError("col2im(W.T @ dout) is not the gradient of the input")
    count = ic.col2im(ic.im2col(np.ones(shape, int), KERNEL), shape, KERNEL)[0, 0]
    return {"dcols": dcols, "dx": dx, "count": count}


def alone(dcols: np.ndarray, position: int) -> np.ndarray:
    """Scatter one column, the others zero.

    >>> alone(numbers()["dcols"], 4)
    array([[0, 0, 0, 0],
           [0, 2, 4, 0],
           [0, 6, 8, 0]])
    """
    only = np.zeros_like(dcols)
    only[:, position] = dcols[:, position]
    return ic.col2im(only, (1, 1, *SHAPE), KERNEL)[0, 0]


def corner(position: int) -> tuple[int, int]:
    """Return the first cell of an output position's window."""
    return divmod(position, SHAPE[1] - KERNEL[1] + 1)


def window_cells(position: int) -> set[tuple[int, int]]:
    """List the cells of a window.

    >>> sorted(window_cells(0) & window_cells(4)) == [MEET]
    True
    """
    top, left = corner(position)
    return {(top + i, left + j) for i in range(KERNEL[0]) for j in range(KERNEL[1])}


def draw_columns(ax: Any, dcols: np.ndarray) -> None:
    """Draw dcols with two of its columns in colour."""
    taps = len(dcols)
    matrix(ax, COLS_AT, dcols, {c: {(k, o) for k in range(taps)} for o, c in WINDOWS.items()})
    for o, color in WINDOWS.items():
        outline(ax, COLS_AT, (0, o, taps, 1), color)
    title(ax, COLS_AT[0], COLS_AT[1] - 16, "dcols", "4 taps × 6 outputs")
    write(ax, COLS_AT[0], COLS_AT[1] + taps * CELL + 34, "= W.T @ dout", 25, family="monospace")
    arrow(ax, COLS_AT[0] + 6 * CELL + 20, IMAGES[0][0] - 20, 134)
    write(ax, COLS_AT[0] + 6 * CELL + 58, 120, "col2im", 20, ha="center", family="monospace")


def draw_images(ax: Any, made: dict[str, np.ndarray]) -> None:
    """Draw what each of two columns gives alone, and the sum of all."""
    for o, color in WINDOWS.items():
        matrix(ax, IMAGES[o], alone(made["dcols"], o), {color: window_cells(o)})
        outline(ax, IMAGES[o], (*corner(o), *KERNEL), color)
        write(ax, IMAGES[o][0], IMAGES[o][1] - 16, f"column {o} alone", 21, color=MUTED)
    matrix(ax, IMAGES[None], made["dx"], {c: window_cells(o) for o, c in WINDOWS.items()})
    for o, color in WINDOWS.items():
        outline(ax, IMAGES[None], (*corner(o), *KERNEL), color)
    title(ax, IMAGES[None][0], IMAGES[None][1] - 16, "dx", "all six added")
    for x, sign in ((701, "+"), (1097, "=")):
        write(ax, x, 142, sign, 34, ha="center")
    write(ax, 1005, 142, "+ four more", 21, ha="center", color=MUTED)


def draw_sum(ax: Any, dcols: np.ndarray) -> None:
    """Write out the sum of the cell that four windows hold."""
    holders = [o for o in range(dcols.shape[1]) if MEET in window_cells(o)]
    x, y = SUM_AT
    write(ax, x, y, "The cell that both windows hold is in four:", 21, color=MUTED)
    write(ax, x, y + 46, f"dx[{MEET[0]}, {MEET[1]}] =", 26, family="monospace")
    x += 190
    for place, o in enumerate(holders):
        top, left = corner(o)
        tap = (MEET[0] - top) * KERNEL[1] + MEET[1] - left
        color = WINDOWS.get(o, INK)
        text = {"family": "monospace", "weight": "bold" if o in WINDOWS else "normal"}
        write(ax, x, y + 46, str(dcols[tap, o]), 26, color=color, **text)
        note = {"color": color if o in WINDOWS else MUTED, "ha": "center"}
        write(ax, x + 8, y + 78, f"col. {o}", 17, **note)
        write(ax, x + 48, y + 46, "+" if place < len(holders) - 1 else "=", 26, family="monospace")
        x += 98
    total = sum(alone(dcols, o)[MEET] for o in holders)
    write(ax, x, y + 46, str(total), 26, family="monospace", weight="bold")


def draw_count(ax: Any, count: np.ndarray) -> None:
    """Draw how many windows hold each cell."""
    matrix(ax, COUNT_AT, count, {})
    write(ax, COUNT_AT[0], COUNT_AT[1] - 16, "windows of each cell", 21, color=MUTED)
    right = COUNT_AT[0] - 24
    style = {"ha": "right", "color": MUTED}
    write(ax, right, COUNT_AT[1] + 46, "col2im(im2col(ones))", 22, ha="right", family="monospace")
    write(ax, right, COUNT_AT[1] + 82, "the adjoint of im2col,", 21, **style)
    write(ax, right, COUNT_AT[1] + 110, "not its inverse", 21, **style)


def draw() -> Any:
    """Draw the figure."""
    made = numbers()
    figure, ax = canvas(WIDTH, HEIGHT)
    draw_columns(ax, made["dcols"])
    draw_images(ax, made)
    draw_sum(ax, made["dcols"])
    draw_count(ax, made["count"])
    return figure


if __name__ == "__main__":
    save(draw(), TARGET)
