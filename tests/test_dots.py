"""Depthwise dw by dots of lines, and when."""

import math
from itertools import product

import numpy as np
import pytest

import im2col_conv as ic
from im2col_conv import reference
from im2col_conv.arrays import channels_first, computing_type
from im2col_conv.engine.choice import way_of, weight_grad_plan
from im2col_conv.engine.im2col.depthwise import SHORT_LINE
from im2col_conv.engine.im2col.dots import (
    MOST_STORED,
    PIECE_BYTES,
    DotsPlan,
    plan_dots,
    weight_grad,
)
from im2col_conv.engine.im2col.stored import axis_of
from im2col_conv.engine.plan import workers_for
from im2col_conv.engine.workers import Scratch

pytestmark = pytest.mark.usefixtures("in_tiles")

MIB = 2**20
SINGLE = np.dtype(np.float32)

LAYERS = {  # x without groups, kernel, keywords
    "two axes": ((3, 5, 9, 7), (3, 2), {"padding": ((1, 0), (0, 1))}),
    "one axis": ((2, 6, 41), (31,), {"padding": 7}),
    "three axes": ((2, 3, 6, 5, 8), (2, 3, 1), {"padding": (1, 0, 2)}),
    "dilation": ((2, 4, 13, 11), (3, 2), {"padding": (2, 1), "dilation": (2, 3)}),
    "stride": ((2, 6, 12, 52), (3, 4), {"padding": 1, "stride": (2, 3)}),
    "stride larger than the kernel": ((2, 3, 11, 49), (2, 1), {"stride": (5, 3)}),
    "stride and dilation": ((2, 3, 19, 33), (2, 3), {"stride": (1, 2), "dilation": (3, 1)}),
    "both with a common factor": (
        (2, 3, 40, 70),
        (4, 3),
        {"stride": (6, 4), "dilation": (4, 2), "padding": (5, 3)},
    ),
    "uneven padding": ((2, 3, 5, 6), (3, 3), {"padding": ((0, 4), (5, 1))}),
    "taps that meet nothing": ((2, 3, 2, 3), (5, 4), {"padding": ((4, 3), (3, 4))}),
    "windows that end before the cells": (
        (2, 3, 1, 40),
        (3, 3),
        {"padding": ((7, 0), (1, 1)), "stride": (3, 1)},
    ),
    "several pieces": ((3, 4, 61, 53), (3, 4), {"padding": (1, 2)}),
}
layers = pytest.mark.parametrize(("x_shape", "kernel", "keywords"), LAYERS.values(), ids=LAYERS)
LAYOUTS = ["channels_first", "channels_last"]
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def laid(array, layout):
    """Return (N, C, *cells) in a layout."""
    return array if layout == LAYOUTS[0] else np.ascontiguousarray(np.moveaxis(array, 1, -1))


def test_no_more_is_stored_than_windows_see():
    axis = axis_of(size=10, out=4, kernel=5, stride=3, dilation=2, before=2)
    assert axis.length == 6  # padded cells 0 to 17, of which each phase has six
    assert [turn.offset for turn in axis.turns] == [
        0,
        0,
        1,
    ]  # taps at cells 0, 2, 4 of phases 0, 2, 1
    assert [turn.many for turn in axis.turns] == [2, 2, 1]
    assert [list(range(10)[turn.cells]) for turn in axis.turns] == [
        [1, 4, 7],
        [0, 3, 6, 9],
        [2, 5, 8],
    ]
    assert [turn.stored for turn in axis.turns] == [slice(1, 4), slice(0, 4), slice(1, 4)]
    padding = axis_of(size=50, out=2, kernel=3, stride=2, dilation=1, before=20)
    assert not any(range(50)[turn.cells] or range(3)[turn.stored] for turn in padding.turns)


def layer_of(x_shape, kernel, keywords):
    C = x_shape[1]
    return ic.ConvGeometry.from_shapes(x_shape, (C, 1, *kernel), groups=C, **keywords)


def whole_numbers(geometry, dtype):
    """Return x and dout of small whole numbers, complex ones among them."""
    rng = np.random.default_rng(6)
    most = 1 if dtype == np.float16 else 4  # sums that it holds
    given = []
    for shape in (geometry.x_shape, geometry.y_shape):
        numbers = rng.integers(-most, most + 1, shape).astype(dtype)
        if np.dtype(dtype).kind == "c":
            numbers += 1j * rng.integers(-most, most + 1, shape).astype(np.float32)
        given.append(numbers)
    return given


@layers
@layouts
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.complex64])
def test_dots_give_what_the_reference_gives(x_shape, kernel, keywords, dtype, layout):
    geometry = layer_of(x_shape, kernel, keywords)
    x, dout = whole_numbers(geometry, dtype)
    w = np.zeros(geometry.w_shape, dtype)
    keywords = {"groups": geometry.C, **keywords}
    _, dw, db = reference.conv_grads(dout, x, w, **keywords)
    x, dout = laid(x, layout), laid(dout, layout)
    keywords["layout"] = layout
    assert plan_dots(geometry, layout, x.dtype, 64 * MIB).tiling.boxes == 1
    for workspace in (64 * MIB, 2**16 * computing_type(x.dtype).itemsize):
        assert plan_dots(geometry, layout, x.dtype, workspace) is not None
        with ic.set_workspace(workspace), ic.set_workers(3):
            found = ic.conv_grads(dout, x, w, algorithm="im2col", needs=("w", "b"), **keywords)
        np.testing.assert_array_equal(found.dw, dw.astype(dtype))
        np.testing.assert_array_equal(found.db, db.astype(dtype))


def test_images_and_channels_are_cut_in_tiles_and_lines_in_pieces():
    geometry = layer_of((5, 4, 61, 53), (3, 4), {"padding": (1, 2)})
    plan = plan_dots(geometry, "channels_first", SINGLE, 2**19)
    assert plan.tiling.counts[:2] == (3, 4)
    x, dout = whole_numbers(geometry, np.float32)
    assert math.prod(axis.length for axis in plan.axes) * x.itemsize > PIECE_BYTES / 2
    keywords = {"groups": 4, "padding": (1, 2)}
    w = np.zeros(geometry.w_shape, np.float32)
    _, dw, db = reference.conv_grads(dout, x, w, **keywords)
    with ic.set_workspace(2**19), ic.set_workers(2):
        found = ic.conv_grads(dout, x, w, algorithm="im2col", needs=("w", "b"), **keywords)
        alone = ic.conv_grads(dout, x, w, algorithm="im2col", needs=("b",), **keywords)
    np.testing.assert_array_equal(found.dw, dw)
    np.testing.assert_array_equal(found.db, db)
    np.testing.assert_array_equal(alone.db, db)


def dw_without_padding(geometry, dout, x):
    """Return dw by loops over the outputs and taps that meet a cell: padding takes no part."""
    dw = np.zeros(geometry.w_shape, x.dtype)
    stride, dilation = geometry.stride, geometry.dilation
    for tap in product(*map(range, geometry.kernel)):
        for out in product(*map(range, geometry.out)):
            cell = tuple(
                o * s + t * d - before
                for o, s, t, d, (before, _) in zip(
                    out, stride, tap, dilation, geometry.padding, strict=True
                )
            )
            if all(0 <= i < size for i, size in zip(cell, geometry.size, strict=True)):
                terms = dout[(..., *out)] * x[(..., *cell)]
                dw[(slice(None), 0, *tap)] += terms.sum(axis=0)
    return dw


@pytest.mark.parametrize("stride", [(1, 1), (2, 1)])
@pytest.mark.parametrize("padding", [((1, 1), (2, 0)), ((0, 0), (0, 0))])
@pytest.mark.parametrize("infinite", ["x", "dout"])
@layouts
def test_infinity_meets_no_zero_beside_a_line(infinite, padding, stride, layout):
    keywords = {"padding": padding, "stride": stride}
    geometry = layer_of((2, 7, 6, 19), (3, 3), keywords)
    spoiled = 0
    for corner in product((0, -1), (0, -1), (0, -1)):
        x, dout = whole_numbers(geometry, np.float32)
        given = x if infinite == "x" else dout
        n, row, column = corner
        given[n, 1:3, row, column] = np.inf, np.nan
        with np.errstate(invalid="ignore"):
            wanted = dw_without_padding(geometry, dout, x)
        arrays = laid(dout, layout), laid(x, layout), geometry.w_shape
        found = ic.conv_weight_grad(
            *arrays, groups=7, layout=layout, algorithm="im2col", **keywords
        )
        assert np.isfinite(wanted).any()
        np.testing.assert_array_equal(found, wanted)
        spoiled += not np.isfinite(wanted).all()
    assert spoiled > 3  # a stride may leave the last row alone


@layouts
def test_what_is_summed_again_is_conjugated(layout):
    geometry = layer_of((2, 3, 6, 19), (3, 4), {"padding": 2})
    x, dout = whole_numbers(geometry, np.complex64)
    keywords = {"padding": 2, "groups": 3}
    wanted = reference.conv_weight_grad(dout, x, geometry.w_shape, **keywords)
    x[0, 1, 2, 3] = np.nan
    arrays = laid(dout, layout), laid(x, layout), geometry.w_shape
    found = ic.conv_weight_grad(*arrays, layout=layout, algorithm="im2col", **keywords)
    assert not np.isfinite(found[1]).any()
    np.testing.assert_array_equal(found[::2], wanted[::2])


@pytest.mark.parametrize(("layout", "counts"), [(LAYOUTS[0], (1, 4)), (LAYOUTS[1], (2, 3))])
def test_results_do_not_depend_on_the_workers(layout, counts):
    geometry = layer_of((9, 50, 31, 37), (3, 4), {"padding": (1, 2)})
    plan = plan_dots(geometry, layout, SINGLE, 64 * MIB)
    assert plan.tiling.counts[:2] == counts  # where channels come last, 17 of them are read at once
    assert plan.shared_bytes == counts[0] * 50 * (12 + 1) * 4
    assert workers_for(plan, 5, 64 * MIB) > 2
    rng = np.random.default_rng(3)
    x, dout, w = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in (geometry.x_shape, geometry.y_shape, geometry.w_shape)
    )
    x, dout = laid(x, layout), laid(dout, layout)
    keywords, found = {"padding": (1, 2), "groups": 50, "layout": layout}, []
    for workers in (1, 2, 5):
        with ic.set_workers(workers):
            found.append(ic.conv_grads(dout, x, w, algorithm="im2col", **keywords)[1:])
    for dw, db in found[1:]:
        np.testing.assert_array_equal(dw, found[0][0])
        np.testing.assert_array_equal(db, found[0][1])


def test_a_tile_has_no_more_channels_than_there_are():
    geometry = layer_of((2, 50, 19, 18), (5, 4), {})  # in blocks of 17
    plan = plan_dots(geometry, LAYOUTS[1], SINGLE, 64 * MIB)
    assert plan.tiling.step[:2] == (2, 50)


def is_dotted(geometry, layout="channels_first", dtype=SINGLE, workspace=64 * MIB):
    plan = weight_grad_plan("im2col", geometry, layout, dtype, dtype, dtype, workspace)
    return isinstance(plan, DotsPlan)


@pytest.mark.parametrize(
    ("channels", "kernel", "dtype", "dotted"),
    [
        (7, (1, 2), SINGLE, True),
        (8, (1, 7), SINGLE, False),
        (8, (2, 4), SINGLE, True),
        (63, (2, 4), SINGLE, True),
        (64, (3, 5), SINGLE, False),
        (64, (4, 4), SINGLE, True),
        (64, (2, 2), np.dtype(np.complex64), True),
        (7, (15,), SINGLE, False),
        (64, (16,), SINGLE, True),
        (64, (3,), np.dtype(np.complex64), True),
    ],
)
def test_channels_that_come_last_are_turned_where_it_pays(channels, kernel, dtype, dotted):
    geometry = layer_of((2, channels, 40, 41)[: 2 + len(kernel)], kernel, {})
    assert is_dotted(geometry, "channels_last", dtype) is dotted
    assert is_dotted(geometry, "channels_first", dtype)
    assert way_of("weight_grad", "auto", geometry, "channels_last", dtype) == "im2col"
    many = layer_of((16, 9, 9, 8, 60), (2, 2, 2), {})  # bands are for two axes
    assert way_of("weight_grad", "auto", many, "channels_last", SINGLE) == "im2col"


def test_dots_are_for_depthwise_layers_of_long_lines():
    geometry = layer_of((2, 6, 20, 21), (3, 2), {})
    assert is_dotted(geometry)
    assert is_dotted(geometry, dtype=np.dtype(np.float16))
    assert not is_dotted(geometry, dtype=np.dtype(np.int64))
    assert not is_dotted(geometry, workspace=2**13)
    assert not is_dotted(ic.ConvGeometry.from_shapes((2, 6, 20, 21), (12, 1, 3, 2), groups=6))
    assert not is_dotted(ic.ConvGeometry.from_shapes((2, 1, 20, 21), (1, 1, 3, 2)))
    for line, dotted in ((SHORT_LINE, True), (SHORT_LINE - 1, False)):
        assert is_dotted(layer_of((2, 6, 20, line), (3, 1), {"stride": (2, 1)})) is dotted
    assert is_dotted(layer_of((2, 6, 15, 39), (9, 9), {"stride": 2}))  # 8 x 20 of each phase
    for size, dotted in ((4, True), (3, False)):  # 4 + 4 is twice 4
        sparse = layer_of((2, 6, size, size), (3, 3), {"dilation": 2, "padding": 2})
        stored = (size + 4) ** 2
        assert (stored <= MOST_STORED * size**2) is dotted
        assert is_dotted(sparse) is dotted


class Copying:
    """A private BLAS that copies with NumPy and counts."""

    types = frozenset({SINGLE})

    def __init__(self):
        self.copied = 0

    def copy(self, copies, source, target):
        self.copied += 1
        target[...] = source


@pytest.mark.parametrize(("stride", "copied"), [(1, 2), (2, 1)])
def test_channels_that_come_last_are_turned_in_one_copy_but_for_phases(stride, copied):
    geometry = layer_of((3, 9, 20, 40), (3, 4), {"stride": stride})
    dout, x = (
        np.moveaxis(laid(each, LAYOUTS[1]), -1, 1) for each in whole_numbers(geometry, SINGLE)[::-1]
    )
    found = []
    for layout, blas in ((LAYOUTS[1], Copying()), (LAYOUTS[1], None), (LAYOUTS[0], Copying())):
        plan = plan_dots(geometry, layout, SINGLE, 64 * MIB)
        dw = np.empty(geometry.w_shape, SINGLE)
        work = weight_grad(plan, blas, dout, x, dw, None)
        work.task(0, Scratch())
        work.finish(1)
        found.append(dw)
        assert blas is None or blas.copied == (copied if layout == LAYOUTS[1] else 0)
    for dw in found[1:]:
        np.testing.assert_array_equal(dw, found[0])


def test_sums_of_many_tiles_count_as_memory():
    geometry = layer_of((2000, 3, 9, 10), (7, 7), {"padding": 3})
    assert plan_dots(geometry, LAYOUTS[0], SINGLE, 196_608) is not None
    assert plan_dots(geometry, LAYOUTS[0], SINGLE, 163_840) is None  # has room for the tiles alone


@layouts
def test_no_images_make_zeros(layout):
    geometry = layer_of((0, 3, 20, 21), (3, 4), {})
    x, dout = (laid(np.zeros(shape), layout) for shape in (geometry.x_shape, geometry.y_shape))
    w = np.ones(geometry.w_shape)
    found = ic.conv_grads(dout, x, w, groups=3, layout=layout, algorithm="im2col")
    assert not found.dw.any()
    assert not found.db.any()


@layouts
@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_tiles_take_the_memory_that_is_counted(dtype, order, layout):
    for x_shape, kernel, keywords in LAYERS.values():
        geometry = layer_of(x_shape, kernel, keywords)
        for workspace in (2**16, 2**18, 64 * MIB):
            plan = plan_dots(geometry, layout, np.dtype(dtype), workspace)
            if plan is None:
                continue
            assert 4 * plan.worker_bytes + plan.shared_bytes <= workspace
            x, dout = whole_numbers(geometry, dtype)
            dw, scratch = np.empty(geometry.w_shape, dtype), Scratch()
            given, seen = (channels_first(laid(each, order), order) for each in (dout, x))
            weight_grad(plan, Copying(), given, seen, dw, None).task(0, scratch)
            sums = 2 * plan.tiling.step[1] * geometry.taps * x.itemsize
            if dtype == np.complex64:  # x conjugated, where a sum is not finite
                sums += math.prod(plan.tiling.step[:2]) * math.prod(geometry.size) * x.itemsize
            assert scratch.nbytes + sums <= plan.worker_bytes + 2 * 64  # where buffers begin
