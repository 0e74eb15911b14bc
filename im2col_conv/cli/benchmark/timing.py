"""Time contestants on one layer: checked against one another first, then turn about."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

import im2col_conv as ic
from im2col_conv.cli.benchmark.agreement import check_agreement, results_of
from im2col_conv.cli.benchmark.contestants import Contestant
from im2col_conv.cli.benchmark.data import Data, Runs, random_data
from im2col_conv.cli.benchmark.layers import Layer

__all__ = ["DIRECTIONS", "Seconds", "Timing", "threads_for_all", "time_layer", "turn_about"]

DIRECTIONS = ("forward", "backward")

_LEAST_SECONDS = 2e-2  # what is shorter is run several times in a row
_MOST_SECONDS = 10  # the turns of one contestant are so many that they take no longer
_GLANCE_SECONDS = 0.01  # how often we look whether the process has come to rest
_MOST_GLANCES = 50


class Seconds(NamedTuple):
    """What the turns of one contestant took, and how many there were."""

    lower_quartile: float
    median: float
    minimum: float
    turns: int


class Timing(NamedTuple):
    """The seconds of one layer and direction, by contestant."""

    layer: str
    direction: str
    seconds: dict[str, Seconds]

    def ratios(self, name: str) -> dict[str, float]:
        """Return the time of one contestant over that of each other; lower quartiles count."""
        if name not in self.seconds:
            return {}
        times = {other: seconds.lower_quartile for other, seconds in self.seconds.items()}
        return {other: times[name] / times[other] for other in times if other != name}


@contextmanager
def threads_for_all(threads: int) -> Iterator[None]:
    """Give this library and NumPy's own matrix products as many threads as the others get."""
    with ic.set_workers(threads), threadpool_limits(threads, user_api="blas"):
        yield


def time_layer(
    layer: Layer,
    contestants: Sequence[Contestant],
    threads: int,
    repeats: int,
    directions: Sequence[str] = DIRECTIONS,
) -> list[Timing]:
    """Set up every contestant, compare their results, and time them in each direction.

    Raises
    ------
    ArithmeticError
        Where two contestants differ by more than rounding.
    """
    data = random_data(layer)
    runs = {each: each.set_up(layer, data, threads) for each in contestants}
    timings = []
    for direction in directions:
        works = _checked_works(layer, data, runs, direction)
        timings.append(Timing(layer.name, direction, turn_about(works, repeats)))
    return timings


def _checked_works(
    layer: Layer, data: Data, runs: dict[Contestant, Runs], direction: str
) -> dict[str, Callable[[], Any]]:
    """Return what is timed in one direction, of those that do it and agree."""
    found = {each: results_of(run, direction) for each, run in runs.items()}
    able = {each: results for each, results in found.items() if results is not None}
    convolved = {each.name: results for each, results in able.items() if each.convolves}
    check_agreement(layer, data, direction, convolved)
    return {each.name: getattr(runs[each], direction) for each in able}


def turn_about(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Seconds]:
    """Return the seconds of each, over turns in which each runs once."""
    once = {name: _seconds(work, 1) for name, work in works.items()}
    calls = {name: math.ceil(_LEAST_SECONDS / seconds) for name, seconds in once.items()}
    turns = {name: math.ceil(_MOST_SECONDS / seconds) for name, seconds in once.items()}
    measured: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats):
        for name in (each for each in works if turn < turns[each]):
            _rest()
            _seconds(works[name], calls[name])  # wakes the threads, fills the caches with our data
            measured[name].append(_seconds(works[name], calls[name]))
    return {name: _summary(seconds) for name, seconds in measured.items()}


def _rest() -> None:
    """Wait until no thread of this process is busy.

    Threads that have nothing more to do spin for a while, in case more comes: those of PyTorch for
    some 10 ms, of ONNX Runtime for 50, of OpenBLAS for 100. The next contestant would pay for it.
    """
    for _ in range(_MOST_GLANCES):
        start = time.process_time()
        time.sleep(_GLANCE_SECONDS)
        if time.process_time() - start < _GLANCE_SECONDS / 10:
            return


def _summary(seconds: list[float]) -> Seconds:
    quartile, middle = (float(each) for each in np.quantile(seconds, (0.25, 0.5)))
    return Seconds(quartile, middle, min(seconds), len(seconds))


def _seconds(work: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - start) / calls
