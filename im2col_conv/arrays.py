"""What arrays may be given, what type comes out, and how a layout is read."""

from __future__ import annotations

import math
from ctypes import addressof, c_char
from functools import lru_cache
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt

__all__ = [
    "Array",
    "Layout",
    "address",
    "aligned",
    "by_group",
    "channels_first",
    "check_layout",
    "check_out",
    "check_type",
    "computing_type",
    "in_layout",
    "layout_shape",
    "logical_shape",
    "new_result",
    "numbers_in",
    "read_array",
    "result_type",
    "without_warnings",
]

Array: TypeAlias = npt.NDArray[Any]
Layout: TypeAlias = Literal["channels_first", "channels_last"]

# A decorator: what floating point does (overflow, NaN) stands in the results, without warnings.
without_warnings = np.errstate(all="ignore")

CACHE_LINE = 64  # bytes

# The index of an array's first number alone, as an array that is contiguous, for each ndim.
_FIRST = [(slice(0, 1),) * ndim for ndim in range(65)]

FITTING = "bool, integers but uint64, float16, float32, float64, complex64 or complex128"


def read_array(name: str, value: object) -> Array:
    """Return ``value`` as an array of a type that convolution has an answer for."""
    if type(value) is np.ndarray:  # as nearly always
        check_type(name, value.dtype)
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be lost: fill it first")
    try:
        array = np.asarray(value)
    except Exception as error:  # whatever its __array__ raises
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(f"{name} cannot be read as an array: {error}") from error
    check_type(name, array.dtype)
    return array


@lru_cache
def check_type(name: str, dtype: np.dtype[Any]) -> None:
    """Complain about a type that convolution has no answer for, in any byte order."""
    dtype = dtype.newbyteorder("=")
    if dtype.kind not in "biufc" or dtype in (np.longdouble, np.clongdouble):
        raise TypeError(f"{name} must hold {FITTING}, got {dtype}")
    if dtype == np.uint64:
        raise TypeError(f"{name} must hold {FITTING}, got uint64: int64 holds no such numbers")


def result_type(*arrays: Array) -> np.dtype[Any]:
    """Return the type of a result of ``arrays``; integers and bools give int64."""
    return _result_type(*[array.dtype for array in arrays])


@lru_cache
def _result_type(*types: np.dtype[Any]) -> np.dtype[Any]:
    common = np.result_type(*types).newbyteorder("=")
    return np.dtype(np.int64) if common.kind in "biu" else common


def computing_type(result: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type that sums are made in before they are rounded to ``result``."""
    return np.dtype(np.float32) if result == np.float16 else result


def check_layout(layout: object) -> None:
    """Complain about anything but the two names of layouts."""
    if not isinstance(layout, str):
        raise TypeError(f'layout must be "channels_first" or "channels_last", got {layout!r}')
    if layout not in ("channels_first", "channels_last"):
        raise ValueError(f'layout must be "channels_first" or "channels_last", got {layout!r}')


def channels_first(array: Array, layout: str) -> Array:
    """Return a view in the order (N, C, *spatial) of an array in ``layout``."""
    if layout == "channels_last" and array.ndim > 1:
        return array.transpose(0, -1, *range(1, array.ndim - 1))
    return array


def in_layout(array: Array, layout: str) -> Array:
    """Return a view in ``layout`` of an array in the order (N, C, *spatial)."""
    if layout == "channels_last":
        return array.transpose(0, *range(2, array.ndim), 1)
    return array


def logical_shape(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Return (N, C, *spatial) of a shape in ``layout``."""
    if layout == "channels_last" and len(shape) > 1:
        return (shape[0], shape[-1], *shape[1:-1])
    return shape


def layout_shape(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Return in ``layout`` the shape (N, C, *spatial)."""
    return (shape[0], *shape[2:], shape[1]) if layout == "channels_last" else shape


def new_result(shape: tuple[int, ...], dtype: np.dtype[Any], layout: str) -> Array:
    """Return an unfilled array of the shape (N, C, *spatial), contiguous in ``layout``."""
    return channels_first(np.empty(layout_shape(shape, layout), dtype), layout)


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return an unfilled array that begins where a line of the cache does.

    NumPy's own begin 16 bytes after one, as a rule. Then each vector of 64 bytes lies across two
    lines, and products take a fifth longer (docs/ideas.md).
    """
    nbytes = math.prod(shape) * dtype.itemsize
    memory = np.empty(nbytes + CACHE_LINE, np.uint8)
    first = -memory.ctypes.data % CACHE_LINE
    return memory[first : first + nbytes].view(dtype).reshape(shape)


def address(array: Array) -> int:
    """Return where the first number of an array is: its ``ctypes.data``, but sooner."""
    first: Any = array[_FIRST[array.ndim]]
    try:
        return addressof(c_char.from_buffer(first))
    except (TypeError, ValueError):  # read-only, or empty
        start: int = array.ctypes.data
        return start


def numbers_in(array: Array) -> int:
    """Return how many numbers lie from the first of an array to its last."""
    return (
        array.size
        if array.flags.c_contiguous
        else _span(array.shape, array.strides, array.itemsize)
    )


@lru_cache(maxsize=1024)
def _span(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> int:
    reaches = [(n - 1) * step for n, step in zip(shape, strides, strict=True)]
    if 0 in shape or any(reach < 0 or reach % itemsize for reach in reaches):
        return 0  # nothing, or no numbers that could be counted so
    return sum(reaches) // itemsize + 1


def by_group(array: Array, groups: int) -> Array:
    """Return a view [g, c, n, *o] of an array (N, C, *o), its channels cut in groups."""
    if groups == 1:
        return array.swapaxes(0, 1)[None]
    N, C, *cells = array.shape
    grouped = array.reshape(N, groups, C // groups, *cells)
    return grouped.swapaxes(0, 1).swapaxes(1, 2)


def check_out(
    out: object, shape: tuple[int, ...], dtype: np.dtype[Any], inputs: dict[str, Array]
) -> Array:
    """Return ``out`` if a result of this shape and type can be written to it unharmed."""
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"out must be a NumPy array that is not masked, got {type(out).__name__}")
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, as the result has, got {out.shape}")
    if out.dtype != dtype:
        raise TypeError(f"out must have type {dtype}, as the result has, got {out.dtype}")
    if not out.flags.writeable:
        raise ValueError("out must be writeable, got a read-only array")
    if not _has_own_cells(out):
        raise ValueError(
            f"out must have a cell of its own for each result, got strides {out.strides} for "
            f"shape {out.shape}"
        )
    for name, array in inputs.items():
        if np.may_share_memory(out, array) and _overlap(out, array):
            raise ValueError(f"out must not overlap {name}, which is still read while it is filled")
    return out


def _has_own_cells(array: Array) -> bool:
    """Say whether each axis steps over all that the axes of smaller steps span."""
    axes = zip(array.strides, array.shape, strict=True)
    span = array.itemsize
    for step, size in sorted((abs(step), size) for step, size in axes if size > 1):
        if step < span:
            return array.size == 0
        span += step * (size - 1)
    return True


def _overlap(a: Array, b: Array) -> bool:
    try:
        return bool(np.shares_memory(a, b, max_work=cast(Any, 10_000)))  # the stubs know 0 and -1
    except np.exceptions.TooHardError:
        return True
