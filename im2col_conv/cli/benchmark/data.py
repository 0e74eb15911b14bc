"""The arrays of one layer, and what a contestant makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from im2col_conv.cli.benchmark.layers import Layer

__all__ = ["Array", "Data", "NotCoveredError", "Runs", "random_data"]

Array = NDArray[Any]


class NotCoveredError(Exception):
    """A contestant has no way to compute this layer."""


class Data(NamedTuple):
    """The arrays of one layer, in its type; images and their gradients in its layout."""

    x: Array
    w: Array
    b: Array
    dout: Array


class Runs(NamedTuple):
    """What is timed: y, and the tuple dx, dw, db; None for what the contestant does not do.

    Each contestant gives its own kind of array; ``to_numpy`` turns one that has the axes of
    images into a NumPy array in the layer's layout.
    """

    forward: Callable[[], Any] | None = None
    backward: Callable[[], tuple[Any, ...]] | None = None
    to_numpy: Callable[[Any], Array] = np.asarray


def random_data(layer: Layer) -> Data:
    """Return normally distributed arrays for a layer, the same ones every time."""
    rng = np.random.default_rng(0)
    shapes = (layer.x_shape, layer.w_shape, (layer.filters,), layer.y_shape)
    return Data(*(rng.standard_normal(shape, dtype=layer.dtype) for shape in shapes))
