"""How time and memory grow with the work: one layer made larger in three ways."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from im2col_conv.cli.benchmark.layers import Layer

__all__ = ["FACTORS", "WAYS", "Step", "grown", "steps_of"]

FACTORS = (1, 4, 16, 64)
"""How many times the work of the first layer each step has; powers of two."""

WAYS = ("batch", "side", "channels")


class Step(NamedTuple):
    """One size of a layer that grows."""

    way: str
    factor: int
    layer: Layer


def steps_of(layer: Layer) -> Iterator[Step]:
    """Yield a layer at every size, in every way that it can grow."""
    for way in WAYS:
        for factor in FACTORS:
            yield Step(way, factor, grown(layer, way, factor))


def grown(layer: Layer, way: str, factor: int) -> Layer:
    """Return a layer with ``factor`` times the work, a power of two.

    By "batch", there are more images; by "side", the axes become longer, the last one first; by
    "channels", filters and channels become more, by turns.
    """
    name = layer.name if factor == 1 else f"{layer.name} {way} x{factor}"
    if way == "batch":
        return replace(layer, name=name, images=layer.images * factor)
    if way == "side":
        return replace(layer, name=name, size=_doubled(layer.size, factor))
    channels, filters = _doubled((layer.channels, layer.filters), factor)
    return replace(layer, name=name, channels=channels, filters=filters)


def _doubled(sizes: tuple[int, ...], factor: int) -> tuple[int, ...]:
    """Double sizes by turns, from the last to the first, until their product is factor times."""
    grown = list(sizes)
    for turn in range(factor.bit_length() - 1):
        grown[-1 - turn % len(grown)] *= 2
    return tuple(grown)
