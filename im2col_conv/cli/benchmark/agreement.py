"""Hold the results of contestants against one another, before anything is timed."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from im2col_conv.cli.benchmark import classic
from im2col_conv.cli.benchmark.data import Array, Data, NotCoveredError, Runs
from im2col_conv.cli.benchmark.layers import Layer
from im2col_conv.cli.tolerance import share_of_tolerance

__all__ = ["check_agreement", "results_of"]

_NAMES = {"forward": ("y",), "backward": ("dx", "dw", "db")}


def results_of(run: Runs, direction: str) -> list[Array] | None:
    """Return what a contestant computes in one direction; None where it does not do this."""
    work = getattr(run, direction)
    if work is None:
        return None
    try:
        found = work()
    except NotCoveredError:
        return None
    images, *others = found if direction == "backward" else (found,)
    return [run.to_numpy(images), *map(np.asarray, others)]


def check_agreement(
    layer: Layer, data: Data, direction: str, found: dict[str, list[Array]]
) -> None:
    """Compare what every contestant computes in one direction with what the first does.

    Raises
    ------
    ArithmeticError
        Where two contestants differ by more than rounding.
    """
    if not found:
        return
    bounds = list(_bounds(layer, data, direction))
    first, *others = found
    for name in others:
        pairs = zip(_NAMES[direction], found[name], found[first], bounds, strict=True)
        for result, ours, theirs, (terms, magnitude) in pairs:
            if not share_of_tolerance(ours, theirs, terms, magnitude) <= 1:
                raise ArithmeticError(
                    f"{layer.name}: {result} of {name} differs from that of {first} "
                    "by more than rounding"
                )


def _bounds(layer: Layer, data: Data, direction: str) -> Iterator[tuple[int, Array]]:
    """Yield the terms of a cell of each result, and the same sums over absolute values."""
    x, w, b, dout = (np.abs(array) for array in data)
    if direction == "forward":
        yield layer.depth + 1, classic.forward(layer, x, w, b)
        return
    terms = layer.filters // layer.groups * prod(layer.kernel), layer.positions, layer.positions
    yield from zip(terms, classic.backward(layer, x, w, dout), strict=True)
