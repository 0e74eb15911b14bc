"""Our library as a contestant, by any of its algorithms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import im2col_conv as ic
from im2col_conv.cli.benchmark.data import Data, NotCoveredError, Runs
from im2col_conv.cli.benchmark.layers import Layer

__all__ = ["ALGORITHMS", "set_up_with"]

ALGORITHMS = ("auto", "im2col", "implicit", "direct", "winograd")
"""What ``im2col_conv.conv`` takes as ``algorithm``."""


def set_up_with(algorithm: str, prepared: bool) -> Callable[[Layer, Data, int], Runs]:
    """Return the function that sets up this library with an algorithm and, maybe, prepared w."""

    def set_up(layer: Layer, data: Data, _: int) -> Runs:
        x, given, b, dout = data
        w = ic.prepare(given) if prepared else given
        options = {**layer.geometry, "algorithm": algorithm}

        def forward() -> Any:
            return ic.conv(x, w, b, **options)

        def backward() -> tuple[Any, ...]:
            return tuple(ic.conv_grads(dout, x, w, **options))

        if algorithm == "auto":
            return Runs(forward, backward)
        # Only "auto" covers every layer; the others say so by ValueError.
        return Runs(_or_not_covered(forward), _or_not_covered(backward))

    return set_up


def _or_not_covered(work: Callable[[], Any]) -> Callable[[], Any]:
    def guarded() -> Any:
        try:
            return work()
        except ValueError as error:
            raise NotCoveredError(str(error)) from error

    return guarded
