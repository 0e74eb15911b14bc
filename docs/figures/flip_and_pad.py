"""Draw ``docs/figures/flip_and_pad.png``: the note's way to dx, with a stride and an unused row.

Run from the repository root: ``python docs/figures/flip_and_pad.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matrices import (
    BLUE,
    CELL,
    GREEN,
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
WIDTH, HEIGHT = 1400, 570  # pixels
SIZE, KERNEL, STRIDE = (6, 5), (3, 3), 2
CELL_SHOWN = (2, 2)

DOUT_AT, UP_AT, PADDED_AT = (36, 62), (212, 62), (446, 62)
W_AT, FLIP_AT, DX_AT = (844, 62), (844, 280), (1124, 62)

Cells = set[tuple[int, int]]


def numbers() -> dict[str, np.ndarray]:
    """Compute every step, and check that the last is the library's gradient.

    >>> made = numbers()
    >>> {name: array.shape for name, array in made.items() if name in ("up", "padded", "dx")}
    {'up': (4, 3), 'padded': (8, 7), 'dx': (6, 5)}
    >>> made["up"]
    array([[1, 0, 2],
           [0, 0, 0],
           [3, 0, 4],
           [0, 0, 0]])
    """
    dout = np.array([[1, 2], [3, 4]])
    w = np.array([[1, 0, -1], [2, 3, -2], [1, 5, 2]])
    up = np.zeros([size - k + 1 for size, k in zip(SIZE, KERNEL, strict=True)], int)
    up[::STRIDE, ::STRIDE] = dout
    padded = np.pad(up, [(k - 1, k - 1) for k in KERNEL])
    flipped = w[::-1, ::-1]
    dx = ic.conv(padded[None, None], flipped[None, None])[0, 0]
    wanted = ic.conv_input_grad(dout[None, None], w[None, None], (1, 1, *SIZE), stride=STRIDE)
    if not np.array_equal(dx, wanted[0, 0]):
        raise AssertionError("flip and pad is not the gradient of the input")
    return {"dout": dout, "up": up, "padded": padded, "w": w, "flipped": flipped, "dx": dx}


def gradients(array: np.ndarray) -> Cells:
    """List the cells that hold a gradient, none of which is zero here."""
    return set(zip(*(axis.tolist() for axis in array.nonzero()), strict=True))


def row(array: np.ndarray, i: int) -> Cells:
    """List the cells of a row."""
    return {(i, j) for j in range(array.shape[1])}


def draw_steps(ax: Any, made: dict[str, np.ndarray]) -> None:
    """Draw dout, upsampled, and padded."""
    up, padded = made["up"], made["padded"]
    matrix(ax, DOUT_AT, made["dout"], {GREEN: gradients(made["dout"])})
    matrix(ax, UP_AT, up, {GREEN: gradients(up), ORANGE: row(up, len(up) - 1)})
    unused = KERNEL[0] - 1 + len(up) - 1
    inner = {(unused, KERNEL[1] - 1 + j) for j in range(up.shape[1])}
    matrix(ax, PADDED_AT, padded, {GREEN: gradients(padded), ORANGE: inner})
    outline(ax, PADDED_AT, (KERNEL[0] - 1, KERNEL[1] - 1, *up.shape), MUTED)
    outline(ax, PADDED_AT, (*CELL_SHOWN, *KERNEL), BLUE)
    title(ax, DOUT_AT[0], DOUT_AT[1] - 16, "dout", "2 × 2")
    write(ax, UP_AT[0], UP_AT[1] - 16, "upsampled, 4 × 3", 21, color=MUTED)
    write(ax, PADDED_AT[0], PADDED_AT[1] - 16, "padded by 2 each side, 8 × 7", 21, color=MUTED)
    arrow(ax, DOUT_AT[0] + 2 * CELL + 14, UP_AT[0] - 14, 110)
    arrow(ax, UP_AT[0] + 3 * CELL + 20, PADDED_AT[0] - 20, 110)


def draw_result(ax: Any, made: dict[str, np.ndarray]) -> None:
    """Draw the filter, its flip and dx."""
    dx, corners = made["dx"], {(0, 0), (0, 2), (2, 0), (2, 2)}
    matrix(ax, W_AT, made["w"], {})
    matrix(ax, FLIP_AT, made["flipped"], {BLUE: corners})
    outline(ax, FLIP_AT, (0, 0, *KERNEL), BLUE)
    matrix(ax, DX_AT, dx, {BLUE: {CELL_SHOWN}, ORANGE: row(dx, len(dx) - 1)})
    outline(ax, DX_AT, (*CELL_SHOWN, 1, 1), BLUE)
    title(ax, W_AT[0], W_AT[1] - 16, "w", "3 × 3")
    write(ax, FLIP_AT[0], FLIP_AT[1] - 16, "w, flipped", 21, color=MUTED)
    title(ax, DX_AT[0], DX_AT[1] - 16, "dx", "6 × 5")
    arrow(ax, FLIP_AT[0] + 3 * CELL + 24, DX_AT[0] - 24, FLIP_AT[1] + 1.5 * CELL)
    write(ax, 1056, FLIP_AT[1] + 1.5 * CELL - 14, "slide by 1", 20, ha="center", color=MUTED)


def written_sum(made: dict[str, np.ndarray]) -> str:
    """Write out the products of the window that is shown, zeros left out.

    >>> written_sum(numbers())
    'dx[2, 2] = 1·2 + 2·1 + 3·(−1) + 4·1 = 5'
    """
    i, j = CELL_SHOWN
    window = made["padded"][i : i + KERNEL[0], j : j + KERNEL[1]]
    pairs = zip(window.ravel(), made["flipped"].ravel(), strict=True)
    terms = [f"{g}·{v}" if v >= 0 else f"{g}·({v})" for g, v in pairs if g]
    text = f"dx[{i}, {j}] = {' + '.join(terms)} = {made['dx'][i, j]}"
    return text.replace("-", "\N{MINUS SIGN}")


def draw_notes(ax: Any, made: dict[str, np.ndarray]) -> None:
    """Say what the colours are, and write the sum."""
    x, left = DOUT_AT[0], {"color": MUTED}
    notes = [
        (306, GREEN, "the gradients,"),
        (334, MUTED, "zeros between them"),
        (362, MUTED, "for the stride of 2"),
        (404, ORANGE, "zeros for the last row of x,"),
        (432, MUTED, "which no window holds:"),
        (460, MUTED, "its gradient is 0"),
    ]
    for y, color, text in notes:
        weight = "normal" if color == MUTED else "bold"
        write(ax, x, y, text, 21, **left | {"color": color, "weight": weight})
    write(ax, PADDED_AT[0], 504, "Window times flipped filter:", 21, **left)
    write(ax, PADDED_AT[0], 542, written_sum(made), 25, family="monospace")
    write(ax, DX_AT[0], DX_AT[1] + 6 * CELL + 34, "= col2im(W.T @ dout)", 22, family="monospace")


def draw() -> Any:
    """Draw the figure."""
    made = numbers()
    figure, ax = canvas(WIDTH, HEIGHT)
    draw_steps(ax, made)
    draw_result(ax, made)
    draw_notes(ax, made)
    return figure


if __name__ == "__main__":
    save(draw(), TARGET)
