"""Read geometry arguments: ints and tuples of ints, one an axis, in one canonical form."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Literal, SupportsIndex, TypeAlias

import numpy as np

__all__ = [
    "LARGEST",
    "Padding",
    "PerAxis",
    "axis_pairs",
    "axis_sizes",
    "integer",
    "is_plain",
    "per_axis",
    "shape_of",
]

LARGEST = int(np.iinfo(np.intp).max)

PerAxis: TypeAlias = SupportsIndex | Sequence[SupportsIndex]
Padding: TypeAlias = (
    Literal["valid", "same"]
    | SupportsIndex
    | Sequence[SupportsIndex]
    | Sequence[Sequence[SupportsIndex]]
)


def is_plain(value: object) -> bool:
    """Say whether ``value`` is made of nothing but ints, words and tuples.

    Then it may be looked up: values that are equal without being alike, as 1 and True and 1.0 are,
    cannot be taken for one another.
    """
    if type(value) is tuple:
        return all(map(is_plain, value))
    return type(value) is int or type(value) is str


def integer(name: str, value: object, least: int) -> int:
    """Return ``value`` as an int that is at least ``least``."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be an int, got {value}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # whether it can be is the question
    except TypeError:
        raise TypeError(f"{name} must be an int, got {_quote(value)}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    if number > LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST}, the largest size, got {number}")
    return number


def per_axis(name: str, value: object, ndim: int, least: int) -> tuple[int, ...]:
    """Return one int for each of ``ndim`` spatial axes, from one int for all or one each."""
    if _is_sequence(value):
        items = _items(name, value, ndim, "one int a spatial axis")
        return tuple(integer(f"{name}[{axis}]", item, least) for axis, item in enumerate(items))
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int or one int a spatial axis, got {_quote(value)}")
    return (integer(name, value, least),) * ndim


def axis_pairs(value: object, ndim: int) -> tuple[tuple[int, int], ...]:
    """Return padding as one (before, after) pair for each of ``ndim`` spatial axes."""
    if not _is_sequence(value):
        return tuple((cells, cells) for cells in per_axis("padding", value, ndim, 0))
    items = _items("padding", value, ndim, "one int or one (before, after) pair a spatial axis")
    if not any(_is_sequence(item) for item in items):
        return tuple((cells, cells) for cells in per_axis("padding", items, ndim, 0))
    return tuple(_pair(f"padding[{axis}]", item) for axis, item in enumerate(items))


def axis_sizes(name: str, value: object, ndim: int) -> tuple[int, ...]:
    """Return ``ndim`` sizes, each at least 1."""
    return per_axis(name, value, ndim, 1)


def shape_of(name: str, value: object) -> tuple[int, ...]:
    """Return ``value`` as a tuple of sizes."""
    if type(value) is tuple and all(type(size) is int and 0 <= size <= LARGEST for size in value):
        return value
    if not _is_sequence(value):
        raise TypeError(f"{name} must be a shape, a tuple of ints, got {_quote(value)}")
    sizes = list(value)  # type: ignore[call-overload]
    return tuple(integer(f"{name}[{axis}]", size, 0) for axis, size in enumerate(sizes))


def _pair(name: str, value: object) -> tuple[int, int]:
    if not _is_sequence(value):
        raise TypeError(
            f"{name} must be a (before, after) pair, as the other axes have, got {_quote(value)}"
        )
    items = list(value)  # type: ignore[call-overload]
    if len(items) != 2:
        raise ValueError(f"{name} must be a (before, after) pair, got {_quote(value)}")
    before, after = (integer(f"{name}[{side}]", item, 0) for side, item in enumerate(items))
    return before, after


def _items(name: str, value: object, ndim: int, wanted: str) -> list[object]:
    items: list[object] = list(value)  # type: ignore[call-overload]
    if len(items) != ndim:
        raise ValueError(
            f"{name} must have {wanted}, that is {ndim} of them, got {len(items)}: {_quote(value)}"
        )
    return items


def _is_sequence(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def _quote(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
