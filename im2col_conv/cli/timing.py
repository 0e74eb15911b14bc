"""Time contestants on one layer: checked against one another first, then turn about."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from im2col_conv.cli import classic
from im2col_conv.cli.layers import Layer
from im2col_conv.cli.peers import Data, Peer, Runs
from im2col_conv.cli.tolerance import share_of_tolerance

__all__ = ["Timing", "threads_for_all", "time_layer"]

_LEAST_SECONDS = 2e-3  # what is shorter is run several times in a row


class Timing(NamedTuple):
    """The seconds of one layer and direction, by contestant."""

    layer: str
    direction: str
    seconds: dict[str, float]

    def ratios(self, name: str) -> dict[str, float]:
        """Return the time of one contestant over that of each other."""
        others = self.seconds.items()
        return {other: self.seconds[name] / seconds for other, seconds in others if other != name}


def threads_for_all(threads: int) -> AbstractContextManager[Any]:
    """Give NumPy's own matrix products the threads that the other contestants have."""
    limits: AbstractContextManager[Any] = threadpool_limits(threads, user_api="blas")
    return limits


def time_layer(layer: Layer, peers: Sequence[Peer], threads: int, repeats: int) -> list[Timing]:
    """Set up every contestant, compare their results, and time them forward and backward.

    Raises
    ------
    ArithmeticError
        Where two contestants differ by more than rounding.
    """
    data = _random_data(layer)
    runs = {peer.name: peer.set_up(layer, data, threads) for peer in peers}
    _compare(layer, data, runs)
    forward = {name: run.forward for name, run in runs.items()}
    backward = {name: run.backward for name, run in runs.items() if run.backward is not None}
    return [
        Timing(layer.name, "forward", _turn_about(forward, repeats)),
        Timing(layer.name, "backward", _turn_about(backward, repeats)),
    ]


def _random_data(layer: Layer) -> Data:
    rng = np.random.default_rng(0)
    out = layer.out_size
    shapes = (
        layer.x_shape,
        layer.w_shape,
        (layer.filters,),
        (layer.images, layer.filters, out, out),
    )
    return Data(*(rng.standard_normal(shape, dtype=np.float32) for shape in shapes))


def _compare(layer: Layer, data: Data, runs: dict[str, Runs]) -> None:
    """Hold the results of every contestant against those of the first."""
    absolute = Data(*(np.abs(array) for array in data))
    magnitudes = (
        classic.forward(layer, absolute.x, absolute.w, absolute.b),
        *classic.backward(layer, absolute.x, absolute.w, absolute.dout),
    )
    positions = data.dout.size // layer.filters
    terms = (
        data.w[0].size + 1,
        layer.filters // layer.groups * layer.kernel**2,
        positions,
        positions,
    )
    expected = _results(next(iter(runs.values())))
    for name, run in runs.items():
        for result, *arrays in zip(
            ("y", "dx", "dw", "db"), _results(run), expected, terms, magnitudes, strict=False
        ):
            if not share_of_tolerance(*arrays) <= 1:
                raise ArithmeticError(
                    f"{layer.name}: {result} of {name} differs from that of {next(iter(runs))} "
                    "by more than rounding"
                )


def _results(run: Runs) -> list[Any]:
    backward = () if run.backward is None else run.backward()
    return [np.asarray(array) for array in (run.forward(), *backward)]


def _turn_about(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the lower quartile of the seconds of each, over turns in which each runs once."""
    calls = {name: math.ceil(_LEAST_SECONDS / _seconds(work, 1)) for name, work in works.items()}
    measured: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            # Untimed: the threads of the one before come to rest, and the caches hold our data.
            work()
            measured[name].append(_seconds(work, calls[name]))
    return {name: float(np.quantile(seconds, 0.25)) for name, seconds in measured.items()}


def _seconds(work: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - start) / calls
