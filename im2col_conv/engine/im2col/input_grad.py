"""Backward to the input, dx = col2im(W.T @ dout), in blocks of the input, or as a forward pass.

Windows overlap, so tiles of output positions add to the same cells. Therefore the *input* is cut:
a block is some channels of some images, and one worker makes all that is added to it, tile after
tile. The sums do not depend on who makes which block. Each column is made once, but where the cells
of one image are cut as well: then outputs whose windows lie across a cut are made for both sides.

With stride 1 the same sum, ordered by cells, is a convolution of dout, padded, with the flipped
weights: the note's flip and pad. A gather copies where a scatter reads, adds and writes; so where
dout has not many more channels than x, dx is made as a forward pass makes y.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from im2col_conv.arrays import Array, by_group
from im2col_conv.engine.adjoint import adjoint_of
from im2col_conv.engine.arithmetic import Arithmetic, arithmetic_for
from im2col_conv.engine.boxes import outputs_touching
from im2col_conv.engine.im2col.columns import (
    Columns,
    Shape,
    columns_for,
    cut_by_image,
    pays_by_image,
    tile_matrices,
)
from im2col_conv.engine.im2col.forward import ForwardPlan, forward, plan_forward
from im2col_conv.engine.im2col.gathering import phases_of
from im2col_conv.engine.im2col.scattering import put_phases, room_for_phases, scatter_tile
from im2col_conv.engine.jobs import Work
from im2col_conv.engine.plan import Plan
from im2col_conv.engine.tiling import TILE_BYTES, Tiling, affordable, cut, is_small, shares_for
from im2col_conv.engine.workers import Scratch
from im2col_conv.geometry import ConvGeometry
from im2col_conv.lowering import Ends, Slices, ends

__all__ = ["GatherPlan", "InputGradPlan", "gather", "gathers", "input_grad", "plan_input_grad"]

MOST_GATHERED = 6  # numbers of columns for each that would be scattered
MOST_FILTERS = 2  # for each channel, where a gather of dout is no larger than the scatter

ENOUGH_POSITIONS = 1024
BUFFER_BYTES = 2 * TILE_BYTES


@dataclass(frozen=True)
class InputGradPlan(Plan):
    """Tiles over (groups, N, *out), and blocks over (groups, N, C // groups, *size).

    A ``buffered`` block is added up beside ``dx``, whose type or memory order does not suit, or in
    several ``phases`` of its cells.
    """

    blocks: Tiling
    columns: Columns
    arithmetic: Arithmetic
    buffered: bool
    phases: int
    by_image: bool

    @property
    def tile_shape(self) -> Shape:
        """A whole tile: (images, groups, *positions)."""
        groups, images, *positions = self.tiling.step
        return (images, groups, *positions)


@dataclass(frozen=True)
class GatherPlan(Plan):
    """The plan of the forward pass that makes dx."""

    forward: ForwardPlan


@lru_cache(maxsize=256)
def plan_input_grad(
    geometry: ConvGeometry,
    layout: str,
    dout_type: np.dtype[Any],
    result: np.dtype[Any],
    workspace: int,
) -> InputGradPlan | GatherPlan:
    """Draw the plan of a pass to the input from shapes and types alone."""
    adjoint = _gathered(geometry)
    if adjoint is None:
        return _plan_scatter(geometry, layout, dout_type, result, workspace)
    w_bytes = math.prod(geometry.w_shape) * result.itemsize
    forward = plan_forward(adjoint, layout, dout_type, result, max(workspace - w_bytes, 0))
    return GatherPlan(
        tiling=forward.tiling,
        tasks=forward.tasks,
        worker_bytes=forward.worker_bytes,
        shared_bytes=forward.shared_bytes + w_bytes,
        work=forward.work,
        forward=forward,
    )


def gathers(geometry: ConvGeometry) -> bool:
    """Say whether dx is made as a forward pass makes y, by a gather and not by a scatter."""
    return _gathered(geometry) is not None


def _gathered(geometry: ConvGeometry) -> ConvGeometry | None:
    """Return the forward pass that makes dx with little work, if there is one."""
    # windows of dout, one for each cell, beside those of x, one for each output
    gathered, scattered = geometry.F * math.prod(geometry.size), geometry.C * geometry.positions
    few = geometry.F <= MOST_FILTERS * geometry.C and gathered <= MOST_GATHERED * scattered
    light = math.prod(geometry.w_shape) <= math.prod(geometry.y_shape)
    return adjoint_of(geometry) if few and light else None


def gather(plan: GatherPlan, dout: Array, w: Array, b: Array | None, dx: Array) -> Work:
    """Return what fills ``dx`` with the convolution of ``dout`` and ``w`` flipped, plus ``b``."""
    G, (F, C, *kernel) = plan.forward.columns.geometry.groups, w.shape
    flipped = np.flip(
        w.reshape(G, F // G, C, *kernel).swapaxes(1, 2), tuple(range(-len(kernel), 0))
    )
    return forward(plan.forward, dout, flipped.reshape(G * C, F // G, *kernel), b, dx)


def _plan_scatter(
    geometry: ConvGeometry,
    layout: str,
    dout_type: np.dtype[Any],
    result: np.dtype[Any],
    workspace: int,
) -> InputGradPlan:
    """Draw the blocks and tiles of a scatter."""
    arithmetic, columns = arithmetic_for(result), columns_for(geometry, layout)
    item = arithmetic.dtype.itemsize
    F = geometry.F // geometry.groups
    shared = 2 * geometry.F * geometry.gemm.K * item
    available = max(workspace - shared, 0)

    channels = _block_channels(geometry, item)
    unit = (
        channels * geometry.taps * item
        + F * arithmetic.operand_type(dout_type).itemsize
        + arithmetic.extra_bytes(F + channels * geometry.taps)
    )
    units = max(TILE_BYTES // unit, min(ENOUGH_POSITIONS, geometry.N * geometry.positions))
    units = affordable(geometry, units, unit, available)
    tiling = cut((geometry.groups, geometry.N, *geometry.out), units)

    phases = phases_of(geometry) if layout == "channels_first" else 1
    turned = (layout == "channels_last") != columns.rows
    buffered = result != arithmetic.dtype or turned or phases > 1
    depth = math.prod(tiling.step[:2]) * channels * item
    room = max(1, min(BUFFER_BYTES, available // 4) // depth)
    blocks = _blocks(geometry, tiling, channels, room if buffered else None)
    return InputGradPlan(
        tiling=tiling,
        tasks=blocks.boxes,
        worker_bytes=unit * tiling.cells + buffered * depth * _stored(blocks.step[3:], phases),
        shared_bytes=shared,
        work=geometry.flops,
        blocks=blocks,
        columns=columns,
        arithmetic=arithmetic,
        buffered=buffered,
        phases=phases,
        by_image=pays_by_image(geometry, channels),
    )


def _stored(cells: Shape, phases: int) -> int:
    """Return the cells of a block that is stored by phases, all as long as the first."""
    *outer, line = cells
    return math.prod(outer) * -(-line // phases) * phases


def _block_channels(geometry: ConvGeometry, item: int) -> int:
    """Return how many of a group's channels a block has: few enough for a tile, and for sharing."""
    C = geometry.C // geometry.groups
    positions = max(min(geometry.N * geometry.positions, ENOUGH_POSITIONS), 1)
    channels = max(1, min(C, TILE_BYTES // (positions * geometry.taps * item)))
    if not is_small(geometry.flops):
        images_together = max(1, ENOUGH_POSITIONS // geometry.positions)
        others = geometry.groups * max(1, geometry.N // images_together)
        shares = shares_for(geometry.flops)
        if C * others >= shares:  # else the cells of an image are shared
            channels = min(channels, C * others // shares)
    return -(-C // -(-C // channels))


def _blocks(geometry: ConvGeometry, tiling: Tiling, channels: int, room: int | None) -> Tiling:
    """Return the blocks: whole images, or where a buffer has ``room`` for fewer cells, parts."""
    C = geometry.C // geometry.groups
    most = math.prod(geometry.size) if room is None else room
    blocks = Tiling(
        (geometry.groups, geometry.N, C, *geometry.size),
        (*tiling.step[:2], channels, *cut(geometry.size, most).step),
    )
    return blocks if is_small(geometry.flops) else _shared_out(geometry, blocks)


def _shared_out(geometry: ConvGeometry, blocks: Tiling) -> Tiling:
    """Cut the first spatial axis as well where channels and images make too few blocks to share.

    A cut makes the outputs of some ``reach`` cells twice, so pieces are much longer than that.
    """
    pieces = -(-shares_for(geometry.flops) // max(blocks.boxes, 1))
    length = max(-(-geometry.size[0] // pieces), 8 * geometry.reach[0])
    step = (*blocks.step[:3], min(length, blocks.step[3]), *blocks.step[4:])
    return Tiling(blocks.extent, step)


def input_grad(
    plan: InputGradPlan,
    dout: Array,
    w: Array,
    b: Array | None,
    dx: Array,
) -> Work:
    """Return what fills ``dx`` with col2im(W.T @ dout), plus ``b`` (C,) in a transposed pass."""
    geometry, columns, arithmetic = plan.columns.geometry, plan.columns, plan.arithmetic
    dx, dout = by_group(dx, geometry.groups), by_group(dout, geometry.groups)
    weights = columns.unpacked(columns.weights(w, arithmetic.operand_type(w.dtype)))
    bias = None
    if b is not None:
        bias = b.reshape(geometry.groups, -1, *(1,) * (1 + geometry.ndim))

    def fill(index: int, scratch: Scratch) -> None:
        groups, images, channels, *cells = plan.blocks[index]
        block = dx[groups, channels, images, *cells]
        target = block[None]
        if plan.buffered:
            target = room_for_phases(columns, scratch, block, plan.phases, arithmetic.dtype)
        target[...] = 0 if bias is None else bias[groups, channels]
        W = columns.packed(weights[groups, :, channels])
        for box in _tiles(plan, tuple(cells)):
            part = dout[groups, :, images, *box]
            dout_type = arithmetic.operand_type(dout.dtype)
            douts = tile_matrices(scratch, "dout", part, dout_type, by_image=plan.by_image)
            cols, product = columns.empty(
                scratch, arithmetic.dtype, W.shape[0], block.shape[1], part.shape[2:]
            )
            # cols (g, m, K, L) = W.T (g, 1, K, F) @ dout (g, m, F, L), of all images or of one each
            product = cut_by_image(product, douts.shape[1])
            arithmetic.matmul(W.swapaxes(1, 2)[:, None], douts, product)
            scatter_tile(geometry, cols, target, box, tuple(cells))
        if plan.buffered:
            put_phases(target, block)

    return Work(fill)


def _tiles(plan: InputGradPlan, cells: Slices) -> Iterator[Slices]:
    """Yield the tiles of output positions whose windows may hold one of ``cells``."""
    starts, tiling = _touched(plan.columns.geometry, ends(cells), plan.tiling.step[2:])
    for index in range(tiling.boxes):
        yield tuple(
            [
                slice(start + tile.start, start + tile.stop)
                for start, tile in zip(starts, tiling[index], strict=True)
            ]
        )


@lru_cache(maxsize=64)
def _touched(
    geometry: ConvGeometry, cells: Ends, step: tuple[int, ...]
) -> tuple[list[int], Tiling]:
    """Return where the outputs start whose windows may hold one of ``cells``, and their tiles."""
    touching = outputs_touching(geometry, tuple(slice(*axis) for axis in cells))
    extent = tuple(axis.stop - axis.start for axis in touching)
    return [axis.start for axis in touching], Tiling(extent, step)
