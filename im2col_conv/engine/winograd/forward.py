"""Forward, Winograd's way: chunk by chunk of tiles, to and fro between two buffers."""

from __future__ import annotations

import numpy as np

from im2col_conv.arrays import Array, by_group
from im2col_conv.engine.implicit.moves import move
from im2col_conv.engine.implicit.tile import row_of
from im2col_conv.engine.implicit.weights import Blockwise
from im2col_conv.engine.jobs import Work
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.products import Products
from im2col_conv.engine.winograd.plan import WinogradPlan, plan_forward
from im2col_conv.engine.winograd.stages import sizes_of, stages_of
from im2col_conv.engine.winograd.transforms import arrays_for
from im2col_conv.engine.winograd.weights import transform
from im2col_conv.engine.workers import Scratch
from im2col_conv.prepared import Room, Weights

__all__ = ["forward", "plan_forward"]


def forward(
    plan: WinogradPlan,
    blas: OpenBlas,
    shared: Scratch,
    x: Array,
    weights: Weights,
    b: Array | None,
    y: Array,
    *,
    adjoint: bool = False,
) -> Work:
    """Return what fills ``y`` (N, F, *out) with the convolution of ``x`` and ``w``, plus ``b``.

    Of the ``adjoint``, ``x`` is dout, ``y`` is dx, and ``w`` those of the forward pass.
    """
    G = plan.geometry.groups
    A_T, _, B_T = arrays_for(plan.tile, plan.dtype)
    x, y = by_group(x, G), by_group(y, G)

    def transformed(w: Array, room: Room) -> Blockwise:
        return transform(w, G, plan.tile, plan.dtype, room, adjoint=adjoint)

    key = ("winograd", G, plan.tile, plan.dtype, adjoint)
    U = weights.form(key, transformed, shared.array)
    bias = np.zeros(y.shape[:2], plan.dtype) if b is None else b.reshape(y.shape[:2])

    def fill(index: int, scratch: Scratch) -> None:
        place = plan.place(index)
        g, f, images = place.group, place.filters, place.images
        (h_in, w_in), (h, w) = place.cells, place.outs
        source, target = x[g, :, images, h_in, w_in], y[g, f, images, h, w]
        chunk = plan.chunk(place)
        stages, sizes = stages_of(chunk), sizes_of(chunk)
        one, other = (scratch.array(name, (plan.numbers,), plan.dtype) for name in ("one", "other"))
        move(blas, source, _image(one, source.shape))
        blas.run(stages.columns, B_T, one, _cleared(other, stages.columns, sizes.columns))
        blas.run(stages.rows, B_T, other, _cleared(one, stages.rows, sizes.rows))
        blas.run(stages.multiply, one, U.part(blas, scratch, slice(g, g + 1), place.part), other)
        blas.run(stages.back_rows, A_T, other, one)
        sums = _image(other, target.shape)
        sums[...] = bias[g, f].reshape(-1, 1, 1, 1)
        blas.run(stages.back_columns, A_T, one, other)
        move(blas, sums, target)

    return Work(fill)


def _cleared(memory: Array, products: Products, numbers: int) -> Array:
    """Return ``memory``, cleared if the products leave out what no cell goes into."""
    if not products.overwrites:
        memory[:numbers] = 0
    return memory


def _image(memory: Array, shape: tuple[int, ...]) -> Array:
    """Return a view [c, n, h, w] of the start of ``memory``, channels innermost."""
    c, n, h, w = shape
    row = row_of(c)
    cells = memory[: n * h * w * row].reshape(n, h, w, row)
    return cells[..., :c].transpose(3, 0, 1, 2)
