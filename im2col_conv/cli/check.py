"""Hold the library against the note's loops, on what a trained network computes."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import im2col_conv as ic
from im2col_conv.cli.network import Labels, Layer, Step, backward, forward, loss_and_gradient
from im2col_conv.cli.tolerance import share_of_tolerance

__all__ = ["RESULTS", "Check", "Checked", "check"]

Array = NDArray[Any]

RESULTS = ("y", "dx", "dw", "db")
_REPEATS = 7


class Checked(NamedTuple):
    """The results of one layer: largest error of each, as a share of its tolerance."""

    layer: str
    errors: dict[str, float]


class Check(NamedTuple):
    """All layers, and the seconds that either way took for the same results."""

    layers: list[Checked]
    engine_seconds: float
    loops_seconds: float

    @property
    def error(self) -> float:
        """The largest error of all, as a share of its tolerance; above 1 something is wrong."""
        return max(error for checked in self.layers for error in checked.errors.values())

    @property
    def speedup(self) -> float:
        """How many times as fast as the loops the library was."""
        return self.loops_seconds / self.engine_seconds


def check(layers: list[Layer], images: NDArray[np.float32], labels: Labels) -> Check:
    """Compute forward and backward of one batch in every layer, by the library and by loops."""
    inputs, scores = forward(layers, images)
    _, dscores = loss_and_gradient(scores, labels)
    steps = list(backward(layers, inputs, dscores))[::-1]

    library, _ = _timed(_library, steps)  # warms up caches and threads
    engine_seconds = median(_timed(_library, steps)[1] for _ in range(_REPEATS))
    loops, loops_seconds = _timed(_loops, steps)
    checked = [_compare(*each) for each in zip(steps, library, loops, strict=True)]
    return Check(checked, engine_seconds, loops_seconds)


def _timed(
    compute: Callable[[Step], tuple[Array, ...]], steps: list[Step]
) -> tuple[list[tuple[Array, ...]], float]:
    start = time.perf_counter()
    results = [compute(step) for step in steps]
    return results, time.perf_counter() - start


def _library(step: Step) -> tuple[Array, ...]:
    layer = step.layer
    geometry: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding}
    y = ic.conv(step.x, layer.w, layer.b, **geometry)
    gradients: tuple[Any, Any, Any] = ic.conv_grads(step.dout, step.x, layer.w, **geometry)
    return y, *gradients


def _loops(step: Step) -> tuple[Array, ...]:
    layer = step.layer
    geometry: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding}
    y = ic.reference.conv(step.x, layer.w, layer.b, **geometry)
    return y, *ic.reference.conv_grads(step.dout, step.x, layer.w, **geometry)


def _compare(step: Step, found: tuple[Array, ...], expected: tuple[Array, ...]) -> Checked:
    magnitudes = _loops(_absolute(step))
    terms = _terms(step)
    errors = {
        name: share_of_tolerance(ours, theirs, terms[name], magnitude)
        for name, ours, theirs, magnitude in zip(RESULTS, found, expected, magnitudes, strict=True)
    }
    return Checked(step.layer.name, errors)


def _absolute(step: Step) -> Step:
    layer = step.layer
    absolute = Layer(layer.name, np.abs(layer.w), np.abs(layer.b), layer.stride, layer.padding)
    return Step(absolute, np.abs(step.x), np.abs(step.dout), step.dw, step.db)


def _terms(step: Step) -> dict[str, int]:
    """Return how many products a cell of each result adds up, at most."""
    filters, taps = step.layer.w.shape[0], int(np.prod(step.layer.w.shape[2:]))
    positions = step.dout.size // filters
    # The bias is one more term of y.
    return {
        "y": step.layer.w[0].size + 1,
        "dx": filters * taps,
        "dw": positions,
        "db": positions,
    }
