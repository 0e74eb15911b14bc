"""The explorer: one HTML page on which a layer's matrices show what ties their numbers together.

The page computes everything in the reader's browser; nothing is fetched. Here it gets the layer
that it opens with, the numbers that it takes as x, w and dout, and the bounds of what it can show.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from im2col_conv.geometry import ConvGeometry

__all__ = ["LIMITS", "MOST_CELLS", "numbers", "page"]

LIMITS = {
    "channels": (1, 3),
    "height": (1, 12),
    "width": (1, 12),
    "filters": (1, 3),
    "kernel_height": (1, 5),
    "kernel_width": (1, 5),
    "stride_height": (1, 4),
    "stride_width": (1, 4),
    "dilation_height": (1, 4),
    "dilation_width": (1, 4),
    "top": (0, 4),
    "bottom": (0, 4),
    "left": (0, 4),
    "right": (0, 4),
}
"""The least and the most of each setting of the page."""

MOST_CELLS = 1000
"""The largest column matrix that the page draws."""


def page(geometry: ConvGeometry) -> str:
    """Return the explorer as the text of an HTML page that opens with ``geometry``.

    Parameters
    ----------
    geometry : ConvGeometry
        One image, one group, two spatial axes, and no larger than `LIMITS` and `MOST_CELLS` allow.

    Returns
    -------
    str
        A page that needs no other file and no network, about 45 kB.

    Raises
    ------
    TypeError
        Where ``geometry`` is none.
    ValueError
        Where the page cannot show it; the message says what would fit.

    Examples
    --------
    >>> from im2col_conv import ConvGeometry
    >>> made = page(ConvGeometry.from_shapes((1, 1, 4, 5), (2, 1, 2, 3)))
    >>> made.startswith("<!DOCTYPE html>"), '"width": 5' in made
    (True, True)
    """
    if not isinstance(geometry, ConvGeometry):
        raise TypeError(f"geometry must be a ConvGeometry, got {type(geometry).__name__}")
    settings = _settings(geometry)
    start = {"settings": settings, "limits": LIMITS, "most_cells": MOST_CELLS, **_pools()}
    template = files(__name__).joinpath("page.html").read_text(encoding="utf-8")
    return template.replace("__START__", json.dumps(start))


def numbers(geometry: ConvGeometry) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return x, w and dout with the numbers that the page gives them.

    Examples
    --------
    >>> from im2col_conv import ConvGeometry
    >>> x, w, dout = numbers(ConvGeometry.from_shapes((1, 1, 2, 3), (2, 1, 1, 2)))
    >>> x.tolist(), w.shape, dout.shape
    ([[[[1, 2, 3], [4, 5, 6]]]], (2, 1, 1, 2), (1, 2, 2, 2))
    """
    pools = _pools()
    shapes = {"x": geometry.x_shape, "w": geometry.w_shape, "dout": geometry.y_shape}
    x, w, dout = (
        np.array(pools[name][: int(np.prod(shape))]).reshape(shape)
        for name, shape in shapes.items()
    )
    return x, w, dout


def _pools() -> dict[str, list[int]]:
    """Return as many numbers as the largest layer takes; a smaller one takes the first."""
    rng = np.random.default_rng(4)
    C, F = LIMITS["channels"][1], LIMITS["filters"][1]
    cells = LIMITS["height"][1] * LIMITS["width"][1]
    taps = LIMITS["kernel_height"][1] * LIMITS["kernel_width"][1]
    # No zeros: those that are seen are padding, or were put between gradients.
    return {
        "x": list(range(1, C * cells + 1)),
        "w": rng.choice([-2, -1, 1, 2], F * C * taps).tolist(),
        "dout": rng.choice([-2, -1, 1, 2, 3], F * MOST_CELLS).tolist(),
    }


def _settings(geometry: ConvGeometry) -> dict[str, int]:
    if geometry.N != 1 or geometry.groups != 1 or geometry.ndim != 2:
        raise ValueError(
            "the explorer shows one image, one group and two spatial axes, such as x (1, 2, 5, 6) "
            f"and w (3, 2, 3, 2); got {geometry}"
        )
    values = (geometry.C, *geometry.size, geometry.F, *geometry.kernel, *geometry.stride)
    values += (*geometry.dilation, *geometry.padding[0], *geometry.padding[1])
    settings = dict(zip(LIMITS, values, strict=True))
    for name, value in settings.items():
        least, most = LIMITS[name]
        if not least <= value <= most:
            raise ValueError(
                f"the explorer shows {name.replace('_', ' ')} from {least} to {most}, got {value}"
            )
    rows, columns = geometry.cols_shape
    if rows * columns > MOST_CELLS:
        raise ValueError(
            f"the explorer shows column matrices of up to {MOST_CELLS} cells; this one has "
            f"{rows} x {columns} = {rows * columns}: make the input, the kernel or the channels "
            "smaller, or the stride larger"
        )
    return settings
