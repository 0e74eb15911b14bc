"""What every lowering of the gallery is: a function of one image, its sizes, its source."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from im2col_conv.arrays import Array, Layout
from im2col_conv.geometry import ConvGeometry, expect_shape

__all__ = ["Lowering", "padded_cells", "padded_image", "tap_cells"]

_TYPES = ("float32", "float64")


@dataclass(frozen=True, kw_only=True)
class Lowering:
    r"""One way to make a convolution of matrix products, forward.

    Images come one at a time, and so do the groups of channels: c = C / groups channels, f =
    F / groups filters. What is stated of the buffers is for one image and group, since they are
    given back before the next.

    Attributes
    ----------
    name : str
    source : str
        Author, year and title of what it follows.
    matrices : str
        The shapes of its products, for one image and group.
    layout : {"channels_first", "channels_last"}
        How the result lies in memory.
    one : callable
        (x, w, y, geometry) fills ``y``, the result for one image and group: (f, \*out) or
        (\*out, f), from ``x`` (c, \*size) and ``w`` (f, c, \*kernel).
    gemms_of_one : callable
        (geometry, dtype): the matrix products of one image and group.
    buffers : callable
        (geometry, dtype): the bytes of every buffer of one image and group, by name. All of them
        are held at once.
    refuses : callable
        (geometry): why it does not cover a geometry, or None where it does.
    """

    name: str
    source: str
    matrices: str
    layout: Layout
    one: Callable[[Array, Array, Array, ConvGeometry], None]
    gemms_of_one: Callable[[ConvGeometry, np.dtype[Any]], int]
    buffers: Callable[[ConvGeometry, np.dtype[Any]], dict[str, int]]
    refuses: Callable[[ConvGeometry], str | None] = lambda geometry: None

    def supports(self, geometry: ConvGeometry, dtype: Any) -> str | None:
        """Return why it does not cover a geometry and a type, or None where it does."""
        if np.dtype(dtype).name not in _TYPES:
            return f"the gallery takes {' and '.join(_TYPES)}, got {np.dtype(dtype)}"
        return self.refuses(geometry)

    def gemms(self, geometry: ConvGeometry, dtype: Any) -> int:
        """Return how many matrix products a forward pass makes."""
        return geometry.N * geometry.groups * self.gemms_of_one(geometry, np.dtype(dtype))

    def extra_bytes(self, geometry: ConvGeometry, dtype: Any) -> int:
        """Return the bytes that a forward pass takes beside x, w and y."""
        return sum(self.buffers(geometry, np.dtype(dtype)).values()) if geometry.N else 0

    def forward(self, x: Array, w: Array, geometry: ConvGeometry) -> Array:
        r"""Return the convolution of ``x`` with ``w``.

        Parameters
        ----------
        x, w : ndarray
            (N, C, \*size) and (F, C // groups, \*kernel), of one type, float32 or float64.
        geometry : ConvGeometry

        Returns
        -------
        ndarray
            (N, F, \*out).

        Raises
        ------
        TypeError
            Where x and w are of different types.
        ValueError
            Where a shape is not the geometry's, or the lowering does not cover geometry or type.

        Examples
        --------
        >>> import numpy as np
        >>> from im2col_conv import ConvGeometry
        >>> from im2col_conv.gallery import LOWERINGS
        >>> x, w = np.arange(1.0, 6).reshape(1, 1, 5), np.array([[[1.0, 0, -1]]])
        >>> geometry = ConvGeometry.from_shapes(x.shape, w.shape, stride=2)
        >>> LOWERINGS["im2col"].forward(x, w, geometry)
        array([[[-2., -2.]]])
        """
        expect_shape("x", x.shape, geometry.x_shape, "(N, C, *size) of the geometry")
        expect_shape("w", w.shape, geometry.w_shape, "(F, C // groups, *kernel) of the geometry")
        if x.dtype != w.dtype:
            raise TypeError(f"x and w must have one type, got {x.dtype} and {w.dtype}")
        complaint = self.supports(geometry, x.dtype)
        if complaint is not None:
            raise ValueError(f"{self.name} does not cover this layer: {complaint}")
        last = self.layout == "channels_last"
        y = np.empty((geometry.N, *geometry.out, geometry.F) if last else geometry.y_shape, x.dtype)
        c, f = geometry.C // geometry.groups, geometry.F // geometry.groups
        for n in range(geometry.N):
            for g in range(geometry.groups):
                channels, filters = slice(g * c, g * c + c), slice(g * f, g * f + f)
                part = y[n, ..., filters] if last else y[n, filters]
                self.one(x[n, channels], w[filters], part, geometry)
        return np.moveaxis(y, -1, 1) if last else y


def padded_image(
    x: Array, geometry: ConvGeometry, layout: Layout = "channels_first", more: tuple[int, ...] = ()
) -> Array:
    """Return a copy of an image with its padding, and ``more`` zeros after each axis.

    Examples
    --------
    >>> g = ConvGeometry.from_shapes((1, 1, 2), (1, 1, 2), padding=((1, 2),))
    >>> padded_image(np.ones((1, 2)), g)
    array([[0., 1., 1., 0., 0.]])
    """
    size = tuple(p + m for p, m in zip(geometry.padded, more or (0,) * geometry.ndim, strict=True))
    inner = tuple(
        slice(before, before + size)
        for (before, _), size in zip(geometry.padding, geometry.size, strict=True)
    )
    if layout == "channels_last":
        image = np.zeros((*size, len(x)), x.dtype)
        image[inner] = np.moveaxis(x, 0, -1)
    else:
        image = np.zeros((len(x), *size), x.dtype)
        image[:, *inner] = x
    return image


def padded_cells(geometry: ConvGeometry) -> int:
    """Return the cells of one image and group with its padding."""
    return geometry.C // geometry.groups * math.prod(geometry.padded)


def tap_cells(geometry: ConvGeometry, tap: tuple[int, ...]) -> tuple[slice, ...]:
    """Return the cells of a padded image that one tap meets, one an output.

    Examples
    --------
    >>> g = ConvGeometry.from_shapes((1, 1, 9), (1, 1, 2), stride=2, dilation=3)
    >>> tap_cells(g, (1,)), g.out
    ((slice(3, 8, 2),), (3,))
    """
    axes = zip(tap, geometry.dilation, geometry.stride, geometry.out, strict=True)
    return tuple(slice(t * d, t * d + (out - 1) * s + 1, s) for t, d, s, out in axes)
