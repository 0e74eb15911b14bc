"""Where lines of y and dout lie: in the image itself or in a copy, as rows or as columns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from im2col_conv.arrays import Array, by_group
from im2col_conv.engine.implicit.moves import last_to, move, move_images
from im2col_conv.engine.implicit.pairs import Axis, places_of
from im2col_conv.engine.implicit.tile import Shape, Tile, row_of
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.workers import Scratch

__all__ = [
    "BLOCK",
    "OUTPUTS",
    "axes_outside",
    "blocks",
    "group_of",
    "grouped",
    "images_inner",
    "lines_at",
    "load_outputs",
    "load_rows",
    "output_numbers",
    "room_for_outputs",
    "room_for_rows",
    "row_steps",
    "steps",
    "store_outputs",
    "store_rows",
]

BLOCK = 64  # filters, or positions, of one product
OUTPUTS = ("y", "dout", "dout.T")
ALIASED = 4096  # bytes from row to row that put all rows in the same few sets of the cache


def grouped(image: Array, groups: int) -> Array:
    """Return ``image[g c, n, *cells]`` as a view [c, n, g, *cells]; without g if it is one group.

    So groups are one more axis of a tile, along which outputs meet the cells of their own alone.
    """
    if groups == 1:
        return image
    apart = by_group(image.swapaxes(0, 1), groups)  # [g, c, n, *cells]
    return apart.transpose(1, 2, 0, *range(3, apart.ndim))


def axes_outside(tile: Tile, together: int) -> tuple[Axis, Axis]:
    """Return the axes of a tile's images, of which so many lie ``together``, and of its groups."""
    images, groups = (
        Axis(many, many, 0, 1, 1, 1) for many in (tile.images // together, tile.groups)
    )
    return images, groups


def output_numbers(name: str, interleaved: bool, f: int, n: int, outs: Shape) -> int:
    """Return the numbers in the memory of y, dout or dout.T."""
    if name == "dout.T" and not interleaved:
        return n * math.prod(outs) * row_of(f)
    return f * row_of(n * math.prod(outs))


def room_for_outputs(
    scratch: Scratch, name: str, interleaved: bool, image: Array, dtype: np.dtype[Any]
) -> Array:
    """Return memory (f, image, *outer, line) for y or dout: the image, if it can be."""
    f, n, *outer, last = image.shape
    if interleaved:
        return scratch.array(name, (f, 1, *outer, last * n), dtype)
    if _has_lines(image, dtype) and (name == "y" or image.strides[0] % ALIASED):
        return image
    cells = math.prod(image.shape[1:])
    return scratch.array(name, (f, row_of(cells)), dtype)[:, :cells].reshape(image.shape)


def room_for_rows(scratch: Scratch, name: str, image: Array, dtype: np.dtype[Any]) -> Array:
    """Return memory (n, *outs, f) for ``image[f, n, *outs]``: the image itself, if it can be."""
    rows = _rows_of(image)
    if _has_lines(rows, dtype):
        return rows
    memory = scratch.array(name, (*rows.shape[:-1], row_of(len(image))), dtype)
    return memory[..., : len(image)]


def load_rows(
    blas: OpenBlas, scratch: Scratch, name: str, image: Array, dtype: np.dtype[Any]
) -> Array:
    """Return memory (n, *outs, f) with the numbers of ``image[f, n, *outs]``."""
    memory = room_for_rows(scratch, name, image, dtype)
    if not np.may_share_memory(memory, image):
        move(blas, image, last_to(0, memory))
    return memory


def store_rows(blas: OpenBlas, memory: Array, image: Array) -> None:
    """Fill ``image`` with the numbers of its memory; nothing if they are the same."""
    if not np.may_share_memory(memory, image):
        move(blas, last_to(0, memory), image)


def _rows_of(image: Array) -> Array:
    return image.transpose(*range(1, image.ndim), 0)


def row_steps(memory: Array) -> Shape:
    """Return the numbers from one row (n, *outer, out) to the next, and along each other axis."""
    *outer, out = [max(step // memory.itemsize, memory.shape[-1]) for step in memory.strides[:-1]]
    return (out, *outer)


def load_outputs(
    blas: OpenBlas,
    scratch: Scratch,
    name: str,
    interleaved: bool,
    image: Array,
    dtype: np.dtype[Any],
) -> Array:
    """Return memory with the numbers of dout, or of dout.T with its channels innermost."""
    if name == "dout.T" and not interleaved:
        return load_rows(blas, scratch, name, image, dtype)
    memory = room_for_outputs(scratch, name, interleaved, image, dtype)
    store_outputs(blas, interleaved, memory, image, back=True)
    return memory


def store_outputs(
    blas: OpenBlas, interleaved: bool, memory: Array, image: Array, *, back: bool = False
) -> None:
    """Fill ``image`` with the numbers of its memory, or ``back``; nothing if they are the same."""
    if memory is image:
        return
    f, n, *outs = image.shape
    images = last_to(1, memory.reshape(f, *outs, n)) if interleaved else memory
    move_images(blas, *((image, images) if back else (images, image)))


def images_inner(memory: Array, shape: Shape, *, by_rows: bool) -> Array:
    """Return a view [c, n, *cells] of memory in which n is innermost, and c next, ``by_rows``."""
    c, n, *cells = shape
    if by_rows:
        return last_to(0, last_to(0, memory.reshape(*cells, c, n)))
    return last_to(1, memory.reshape(c, *cells, n))


def _has_lines(image: Array, dtype: np.dtype[Any]) -> bool:
    """Say whether products can read the lines of the last axis, and not only a copy."""
    *outer, item = image.strides
    line = image.shape[-1] * dtype.itemsize
    return (
        image.dtype == dtype
        and image.flags.aligned
        and (item == dtype.itemsize or image.shape[-1] == 1)
        and all(
            size == 1 or (step >= line and step % dtype.itemsize == 0)
            for size, step in zip(image.shape[:-1], outer, strict=True)
        )
    )


def steps(memory: Array) -> Shape:
    """Return the numbers from one line to the next, along each axis but the last."""
    line = memory.shape[-1]
    return tuple(max(step // memory.itemsize, line) for step in memory.strides[:-1])


def lines_at(out: Array, axes: tuple[Axis, ...], apart: Shape) -> Array:
    """Return where lines of outputs begin among those of a filter; axis 1 is that of groups.

    Axis 0 is ``apart[1]`` numbers apart, the axes after that of groups ``apart[2:]``.
    """
    (image, _, *outer), steps = places_of(out, [axis.outs for axis in axes]), apart[1:]
    begin: Array = sum(
        (index * step for index, step in zip((image, *outer), steps, strict=True)),
        np.zeros_like(out),
    )
    return begin


def group_of(out: Array, axes: tuple[Axis, ...]) -> Array:
    """Return the group of each line of outputs."""
    return places_of(out, [axis.outs for axis in axes])[1]


def blocks(filters: int, axes: int) -> tuple[Array, Array]:
    """Return first and how many of each block of filters, along the first of some axes."""
    first = np.arange(0, filters, BLOCK).reshape(-1, *[1] * (axes - 1))
    return first, np.minimum(filters - first, BLOCK)
