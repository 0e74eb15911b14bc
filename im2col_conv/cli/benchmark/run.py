"""The runner: what is measured, of whom, on which layers; and the record of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from statistics import geometric_mean
from typing import Any

import numpy as np

from im2col_conv.cli.benchmark.contestants import Contestant
from im2col_conv.cli.benchmark.growth import Step, steps_of
from im2col_conv.cli.benchmark.layers import Layer
from im2col_conv.cli.benchmark.memory import extra_memory
from im2col_conv.cli.benchmark.peak import check_system
from im2col_conv.cli.benchmark.record import circumstances, processor_load
from im2col_conv.cli.benchmark.timing import Timing, threads_for_all, time_layer

__all__ = ["MEASURES", "Plan", "run"]

Case = dict[str, Any]
Track = Callable[[Sequence[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Plan:
    """What a run does; the first contestant is the one that the others are compared with."""

    measure: str
    layers: tuple[Layer, ...]
    contestants: tuple[Contestant, ...]
    directions: tuple[str, ...]
    threads: int
    repeats: int


def run(plan: Plan, track: Track = iter) -> Case:
    """Measure, and return the record.

    Parameters
    ----------
    plan : Plan
    track : callable, optional
        What the loop over layers goes through, to show how far it is.

    Returns
    -------
    dict
        ``cases`` hold the figures; the rest says under which circumstances they were found.
    """
    if plan.measure != "time":
        check_system()
    layers = plan.layers
    if plan.measure == "growth":
        layers = tuple(step.layer for layer in layers for step in steps_of(layer))
    record: Case = {"measure": plan.measure, "load_before": processor_load()}
    with threads_for_all(plan.threads):
        cases = list(MEASURES[plan.measure](plan, track))
        # Now that all libraries are loaded, for some are when they are first needed.
        record |= circumstances(plan.contestants, layers, plan.threads)
    if plan.measure == "time":
        record["geometric_mean"] = _means(cases)
    return {**record, "repeats": plan.repeats, "cases": cases}


def _times(plan: Plan, track: Track) -> Iterator[Case]:
    for layer in track(plan.layers):
        for timing in _timed(plan, layer):
            yield {
                "layer": timing.layer,
                "pass": timing.direction,
                "seconds": {name: each._asdict() for name, each in timing.seconds.items()},
                "ratios": timing.ratios(plan.contestants[0].name),
            }


def _memories(plan: Plan, track: Track) -> Iterator[Case]:
    for layer in track(plan.layers):
        for direction in plan.directions:
            entries = layer.groups * layer.depth * layer.positions
            yield {
                "layer": layer.name,
                "pass": direction,
                "column_matrix": entries * np.dtype(layer.dtype).itemsize,
                "bytes": _bytes(plan, layer, direction),
            }


def _growths(plan: Plan, track: Track) -> Iterator[Case]:
    found: dict[str, list[Case]] = {}  # the first size is that of every way
    for step in track([step for layer in plan.layers for step in steps_of(layer)]):
        if step.layer.name not in found:
            found[step.layer.name] = list(_step(plan, step))
        for case in found[step.layer.name]:
            yield {"way": step.way, "factor": step.factor, **case}


def _step(plan: Plan, step: Step) -> Iterator[Case]:
    outputs = prod(step.layer.y_shape)
    for timing in _timed(plan, step.layer):
        nbytes = _bytes(plan, step.layer, timing.direction)
        seconds = {name: each._asdict() for name, each in timing.seconds.items()}
        quartiles = {name: each.lower_quartile for name, each in timing.seconds.items()}
        yield {
            "layer": timing.layer,
            "pass": timing.direction,
            "outputs": outputs,
            "seconds": seconds,
            "seconds_per_output": {name: each / outputs for name, each in quartiles.items()},
            "bytes": nbytes,
            "bytes_per_output": {name: each / outputs for name, each in nbytes.items()},
        }


MEASURES: dict[str, Callable[[Plan, Track], Iterator[Case]]] = {
    "time": _times,
    "memory": _memories,
    "growth": _growths,
}
"""What can be measured, each with the function that yields its cases."""


def _timed(plan: Plan, layer: Layer) -> list[Timing]:
    return time_layer(layer, plan.contestants, plan.threads, plan.repeats, plan.directions)


def _bytes(plan: Plan, layer: Layer, direction: str) -> dict[str, int]:
    found = {
        each.name: extra_memory(layer, each.name, direction, plan.threads)
        for each in plan.contestants
    }
    return {name: nbytes for name, nbytes in found.items() if nbytes is not None}


def _means(cases: list[Case]) -> dict[str, dict[str, float]]:
    """Return the geometric mean of the ratios to each contestant, by pass."""
    ratios: dict[str, dict[str, list[float]]] = {}
    for case in cases:
        for name, ratio in case["ratios"].items():
            ratios.setdefault(case["pass"], {}).setdefault(name, []).append(ratio)
    return {
        direction: {name: geometric_mean(each) for name, each in by_name.items()}
        for direction, by_name in ratios.items()
    }
