"""Tiles, workers, memory, BLAS threads: what must hold whatever the machine."""

import math
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

import im2col_conv as ic
from im2col_conv import reference
from im2col_conv.engine import choice, pool, processors
from im2col_conv.engine import workers as engine_workers
from im2col_conv.engine.arithmetic import (
    LEAST_PIECE,
    LONGEST_PIECE,
    FloatArithmetic,
    add_to_rows,
    sums_of,
)
from im2col_conv.engine.choice import forward_plan, input_grad_plan, weight_grad_plan
from im2col_conv.engine.im2col import forward as columns_forward
from im2col_conv.engine.im2col import gathering
from im2col_conv.engine.im2col.columns import columns_for, pays_by_image
from im2col_conv.engine.im2col.forward import plan_forward as plan_columns
from im2col_conv.engine.implicit import forward, input_grad, weight_grad
from im2col_conv.engine.openblas import is_private, private_blas
from im2col_conv.engine.plan import workers_for
from im2col_conv.engine.tiling import Tiling, cut, cut_evenly

from .peak import peak_beyond
from .strategies import cases, integers_like

pytestmark = pytest.mark.usefixtures("in_tiles")

PACKS = private_blas() is not None and private_blas().packs
plan_tap_by_tap = partial(forward.plan_forward, packs=PACKS)
plan_dx_tap_by_tap = partial(input_grad.plan_input_grad, packs=PACKS)
plan_dw_tap_by_tap = partial(weight_grad.plan_weight_grad, packs=PACKS)

MIB = 2**20
PYTHON = 200_000  # bytes of threads, tuples and arrays without their cells


def passes(x, w, b, dout, **keywords):
    """Return y, dx, dw, db."""
    return (ic.conv(x, w, b, **keywords), *ic.conv_grads(dout, x, w, **keywords))


def random_layer(x_shape, w_shape, dtype=np.float32, layout="channels_first", **keywords):
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    rng = np.random.default_rng(11)
    x, w, b, dout = (
        rng.standard_normal(shape).astype(dtype)
        for shape in (x_shape, w_shape, (geometry.F,), geometry.y_shape)
    )
    if layout == "channels_last":
        x, dout = (np.ascontiguousarray(np.moveaxis(each, 1, -1)) for each in (x, dout))
    return (x, w, b, dout), {"layout": layout, **keywords}


LAYERS = {
    "one image": ((1, 19, 125, 80), (33, 19, 3, 3), {"padding": 1}),
    "small images": ((190, 24, 9, 11), (40, 24, 3, 2), {"stride": (2, 1), "padding": (0, 1)}),
    "depthwise": ((7, 90, 75, 33), (180, 1, 3, 5), {"padding": (1, 2), "groups": 90}),
    "one channel": ((1, 1, 400, 211), (40, 1, 5, 3), {"dilation": (2, 1)}),
    "pointwise": ((8, 130, 30, 21), (70, 130, 1, 1), {}),
    "one axis": ((4, 10, 9000), (36, 10, 7), {"stride": 2, "padding": ((3, 0),)}),
    "three axes": ((4, 21, 11, 20, 17), (24, 21, 3, 2, 3), {"padding": "same"}),
    "windows apart": ((13, 5, 133, 123), (40, 5, 3, 4), {"stride": (3, 5)}),
    "groups": ((23, 60, 29, 17), (80, 12, 3, 3), {"padding": 1, "groups": 5}),
    "few positions": ((1, 130, 9, 7), (391, 130, 3, 2), {"padding": 1}),
    "shallow windows": ((190, 2, 27, 25), (18, 2, 3, 4), {"stride": (1, 2), "padding": (1, 0)}),
}
layers = pytest.mark.parametrize("layer", LAYERS)
layouts = pytest.mark.parametrize("layout", ["channels_first", "channels_last"])


@layouts
@layers
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_results_are_bit_for_bit_the_same_for_any_workers(layer, layout, dtype):
    x_shape, w_shape, keywords = LAYERS[layer]
    arrays, keywords = random_layer(x_shape, w_shape, dtype, layout, **keywords)
    with ic.set_workers(1):
        alone = passes(*arrays, **keywords)
    for workers in (2, 3, 8):
        with ic.set_workers(workers):
            together = passes(*arrays, **keywords)
        for one, other in zip(alone, together, strict=True):
            assert one.tobytes() == other.tobytes()


def test_layers_above_are_large_enough_to_be_shared():
    with ic.set_workers(8):
        for x_shape, w_shape, keywords in LAYERS.values():
            for each in ic.explain(x_shape, w_shape, **keywords).passes:
                assert each.workers > 1, (x_shape, each)


@pytest.mark.parametrize(
    ("plan_forward", "width", "workers"),
    [
        (plan_columns, 217, 1),  # 19.9987 MFLOP
        (plan_columns, 218, 2),
        (partial(forward.plan_forward, packs=False), 434, 1),  # 39.997 MFLOP
        (partial(forward.plan_forward, packs=False), 435, 2),
    ],
)
def test_passes_of_little_work_stay_with_the_caller(plan_forward, width, workers):
    geometry = ic.ConvGeometry.from_shapes((1, 8, 40, width), (16, 8, 3, 3), padding=1)
    types = [np.dtype(np.float32)] * (2 if plan_forward is plan_columns else 1)
    plan = plan_forward(geometry, "channels_first", *types, 64 * MIB)
    assert workers_for(plan, 2, 64 * MIB) == workers


@pytest.mark.parametrize(("width", "workers"), [(128, 1), (129, 2)])  # 39.9 and 40.2 million
def test_cells_of_depthwise_layers_count_as_work(width, workers):
    geometry = ic.ConvGeometry.from_shapes(
        (1, 100, 40, width), (100, 1, 3, 3), padding=1, groups=100
    )
    plan = plan_tap_by_tap(geometry, "channels_first", np.dtype(np.float32), 64 * MIB)
    assert workers_for(plan, 2, 64 * MIB) == workers


@pytest.mark.parametrize(("groups", "least", "most"), [(1, 3, 4), (8, 6, 8)])
def test_tiles_of_columns_are_as_large_as_pays(groups, least, most):
    geometry = ic.ConvGeometry.from_shapes((50, 16, 60, 41), (8, 16 // groups, 3, 3), groups=groups)
    types = [np.dtype(np.float32)] * 2
    plan = plan_columns(geometry, "channels_first", *types, 64 * MIB)
    assert least * MIB < plan.worker_bytes <= most * MIB


@pytest.mark.parametrize(("C", "rows"), [(19, False), (20, True)])
def test_windows_lie_as_rows_where_enough_channels_are_contiguous(C, rows):
    geometry = ic.ConvGeometry.from_shapes((2, 3 * C, 9, 7), (6, C, 3, 2), groups=3)
    assert columns_for(geometry, "channels_last").rows is rows
    assert columns_for(geometry, "channels_first").rows is False


@pytest.mark.parametrize(
    ("filters", "kernel", "rows"), [(168, (3, 2), True), (170, (3, 2), False), (400, (1, 1), True)]
)
def test_windows_of_few_positions_stand_upright(filters, kernel, rows):
    w_shape = (filters, 20, *kernel)  # 84 positions and as many filters of a group, or one more
    geometry = ic.ConvGeometry.from_shapes((2, 40, 9, 7), w_shape, groups=2)
    assert columns_for(geometry, "channels_last").rows is rows


FEW_POSITIONS = [  # x_shape, w_shape, keywords, tiles of positions, parts of the filters of each
    ((1, 70, 9, 7), (391, 70, 3, 2), {"padding": 1}, 1, 2),
    ((1, 70, 9, 7), (255, 70, 3, 3), {"padding": 1}, 1, 1),  # too few filters
    ((3, 130, 9, 11), (320, 130, 3, 3), {"padding": (1, 0)}, 3, 2),
    ((1, 60, 16, 13), (520, 60, 3, 3), {"padding": 1}, 2, 2),  # in four tasks, not eight
    ((1, 400, 7, 8), (530, 400, 3, 3), {"stride": (1, 2), "padding": 1}, 1, 4),
    ((2, 2048, 5, 6), (384, 2048, 1, 1), {}, 1, 3),  # columns are x as it is
    ((1, 140, 8, 8), (520, 70, 3, 3), {"padding": 1, "groups": 2}, 1, 2),
    ((1, 1, 21, 20), (256, 1, 12, 13), {}, 1, 1),  # 6.4 MFLOP
]


@pytest.mark.parametrize(("x_shape", "w_shape", "keywords", "tiles", "parts"), FEW_POSITIONS)
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_few_positions_are_shared_by_filters(
    x_shape, w_shape, keywords, tiles, parts, layout, dtype, monkeypatch
):
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    plan = plan_columns(geometry, layout, np.dtype(dtype), np.dtype(dtype), 64 * MIB)
    assert (plan.tiling.boxes, plan.parts, plan.tasks) == (tiles, parts, tiles * parts)
    gathered, gather_tile = [], columns_forward.gather_tile

    def gather_and_count(*arguments, **keywords):
        gathered.append(1)
        return gather_tile(*arguments, **keywords)

    monkeypatch.setattr(columns_forward, "gather_tile", gather_and_count)
    shapes = (x_shape, w_shape, (geometry.F,))
    x, w, b = (integers_like(seed, shape, dtype) for seed, shape in enumerate(shapes))
    wanted = reference.conv(x, w, b, **keywords).astype(dtype)
    if layout == "channels_last":
        x, wanted = (np.ascontiguousarray(np.moveaxis(each, 1, -1)) for each in (x, wanted))
    for workers in (1, 3):
        with ic.set_workers(workers):
            y = ic.conv(x, w, b, layout=layout, algorithm="im2col", **keywords)
        np.testing.assert_array_equal(y, wanted)
        assert workers > 1 or len(gathered) == tiles  # once by one worker, for all parts


@pytest.mark.parametrize(
    ("size", "C", "images"),
    [((21, 22), 40, range(2, 37)), ((21, 21), 80, [37])],  # lines of 20 outputs, and of 19
)
def test_a_depthwise_tile_has_the_planes_of_several_images(size, C, images):
    geometry = ic.ConvGeometry.from_shapes((37, C, *size), (C, 1, 3, 3), groups=C)
    plan = plan_tap_by_tap(geometry, "channels_first", np.dtype(np.float32), 64 * MIB)
    together, _, *outs = plan.tile_shape
    assert together in images
    assert tuple(outs) == geometry.out
    assert plan.tasks % 2 == 0  # as many for each of two workers
    numbers = plan.arrangement.numbers("y", C, together, size, geometry.out)
    assert numbers == together * C * geometry.positions


@settings(max_examples=40)
@given(case=cases(), workspace=st.sampled_from([1, 500, 5000, 10**6]), seed=st.integers(0, 99))
def test_results_are_right_however_small_the_workspace(case, workspace, seed):
    geometry = case.geometry
    x, w, b, dout = (
        integers_like(seed, shape)
        for shape in (geometry.x_shape, geometry.w_shape, (geometry.F,), geometry.y_shape)
    )
    wanted = (
        reference.conv(x, w, b, **case.keywords),
        *reference.conv_grads(dout, x, w, **case.keywords),
    )
    with ic.set_workspace(workspace):
        found = passes(x, w, b, dout, **case.keywords)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int16])
@layouts
@layers
def test_many_tiles_are_right(layer, layout, dtype):
    """The same numbers with a workspace that holds all and one that cuts every axis."""
    x_shape, w_shape, keywords = LAYERS[layer]
    (x, w, b, dout), keywords = random_layer(x_shape, w_shape, np.float32, layout, **keywords)
    arrays = [np.clip(np.round(2 * each), -2, 2).astype(dtype) for each in (x, w, b, dout)]
    whole = passes(*arrays, **keywords)
    with ic.set_workspace(200_000):
        cut_up = passes(*arrays, **keywords)
    if dtype == np.float16:  # sums in float32 are exact here, so each is rounded once
        exact = passes(*(each.astype(np.float64) for each in arrays), **keywords)
        for one, other in zip(whole, exact, strict=True):
            np.testing.assert_array_equal(one, other.astype(np.float16))
    for one, other in zip(whole, cut_up, strict=True):
        np.testing.assert_array_equal(one, other)


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "dtype", "keywords"),
    [
        ((1, 64, 768, 768), (64, 64, 3, 3), np.float32, {"padding": 1}),
        ((1, 2, 1500, 1600), (4, 2, 5, 3), np.float16, {"padding": 2}),
        ((1, 16, 400, 777), (24, 16, 3, 3), np.int32, {"stride": (1, 2)}),
        ((3, 16, 300, 377), (16, 1, 3, 3), np.float64, {"padding": 40, "groups": 16}),
        ((1, 64, 250, 300), (8, 64, 3, 3), np.float32, {"padding": 100, "dilation": 100}),
        ((2, 4, 500_000), (8, 4, 9), np.float32, {}),
        ((300, 32, 16, 15), (32, 32, 3, 3), np.complex64, {"padding": 1}),
        ((800, 3, 31, 33), (25, 3, 3, 3), np.float32, {"stride": 2, "padding": 1}),
        ((300, 4, 40, 12), (60, 4, 3, 4), np.float16, {}),
        ((12, 2, 200, 170), (9, 2, 5, 5), np.float64, {}),
        ((400, 24, 21, 20), (24, 1, 3, 3), np.float32, {"groups": 24}),
        ((9, 48, 90, 71), (48, 1, 3, 3), np.float16, {"stride": 2, "padding": 1, "groups": 48}),
        ((1, 32, 250, 300), (32, 1, 3, 3), np.float32, {"dilation": 100, "groups": 32}),
        ((2, 96, 9000), (96, 1, 31), np.float32, {"padding": 15, "groups": 96}),
        ((16, 12, 50, 40), (256, 12, 3, 5), np.float32, {"padding": (1, 2)}),  # y turned
    ],
)
@layouts
def test_memory_stays_inside_the_workspace(x_shape, w_shape, dtype, keywords, layout):
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    logical = (x_shape, geometry.y_shape)
    if layout == "channels_last":
        logical = tuple((shape[0], *shape[2:], shape[1]) for shape in logical)
    x, dout = (np.ones(shape, dtype) for shape in logical)
    w, b = np.ones(w_shape, dtype), np.ones(w_shape[0], dtype)
    keywords = {"layout": layout, **keywords}
    workspace = 32 * MIB if max(x_shape) == 768 else 8 * MIB
    whole = geometry.cols_nbytes(np.result_type(dtype, np.int8))
    with ic.set_workspace(workspace):
        for call in (
            lambda: ic.conv(x, w, b, **keywords),
            lambda: ic.conv_grads(dout, x, w, needs=("x",), **keywords),
            lambda: ic.conv_grads(dout, x, w, needs=("w", "b"), **keywords),
            lambda: ic.conv_grads(dout, x, w, **keywords),
        ):
            _, extra = peak_beyond(call)
            assert extra <= workspace, (extra / MIB, whole / MIB)


def test_what_explain_says_of_scratch_memory_holds():
    x_shape, w_shape, keywords = LAYERS["one image"]
    (x, w, b, dout), keywords = random_layer(x_shape, w_shape, **keywords)
    for workers, workspace in ((1, 64 * MIB), (2, 64 * MIB), (2, 3 * MIB)):
        with ic.set_workers(workers), ic.set_workspace(workspace):
            said = [each.scratch for each in ic.explain(x_shape, w_shape, padding=1).passes]
            _, forward = peak_beyond(lambda: ic.conv(x, w, b, **keywords))
            _, weight = peak_beyond(lambda: ic.conv_grads(dout, x, w, needs=("w",), **keywords))
            _, image = peak_beyond(lambda: ic.conv_grads(dout, x, w, needs=("x",), **keywords))
        for found, most in zip((forward, weight, image), said, strict=True):
            assert found <= most + PYTHON
            assert most <= max(workspace, 3 * w.nbytes + 19 * 9 * 50 * 4)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "keywords", "layout"),
    [
        ((1, 3, 220, 201), (64, 3, 7, 5), {"stride": 2, "padding": 3}, "channels_first"),
        ((6, 40, 70, 61), (40, 1, 3, 5), {"groups": 40, "padding": 1}, "channels_last"),
        ((6, 40, 70, 61), (40, 1, 3, 5), {"groups": 40, "stride": (1, 2)}, "channels_last"),
    ],
)
def test_a_tile_takes_the_scratch_memory_that_its_plan_says(x_shape, w_shape, keywords, layout):
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    single = np.dtype(np.float32)
    (x, w, b, dout), keywords = random_layer(x_shape, w_shape, layout=layout, **keywords)
    keywords["algorithm"] = "im2col"
    dx = input_grad_plan("im2col", geometry, layout, single, single, 64 * MIB)
    dw = weight_grad_plan("im2col", geometry, layout, single, single, single, 64 * MIB)
    for plan, call in (
        (
            plan_columns(geometry, layout, single, single, 64 * MIB),
            lambda: ic.conv(x, w, b, **keywords),
        ),
        (dx, lambda: ic.conv_input_grad(dout, w, x.shape, **keywords)),
        (dw, lambda: ic.conv_weight_grad(dout, x, w_shape, **keywords)),
    ):
        said = plan.worker_bytes + plan.shared_bytes
        with ic.set_workers(1):
            ic.set_workspace(64 * MIB)  # no buffers of earlier calls
            _, found = peak_beyond(call)
        assert said / 3 <= found <= said + PYTHON  # results that lie as they should need none


@pytest.mark.skipif(private_blas() is None, reason="needs the extra fast")
def test_tap_by_tap_the_buffer_between_sums_and_dw_is_counted():
    (x, w, _, dout), keywords = random_layer((1, 270, 22, 19), (200, 270, 3, 3), padding=(1, 0))
    geometry = ic.ConvGeometry.from_shapes(x.shape, w.shape, padding=(1, 0))
    plan = plan_dw_tap_by_tap(geometry, "channels_first", x.dtype, 64 * MIB)
    keywords["algorithm"] = "implicit"
    with ic.set_workers(1):
        ic.set_workspace(64 * MIB)  # no buffers of earlier calls
        _, found = peak_beyond(lambda: ic.conv_weight_grad(dout, x, w.shape, **keywords))
    assert found <= plan.worker_bytes + plan.shared_bytes + PYTHON


@pytest.mark.skipif(private_blas() is None, reason="needs the extra fast")
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "keywords"),
    [
        ((8, 128, 14, 15), (128, 16, 3, 3), {"padding": 1}),
        ((16, 64, 23, 24), (96, 8, 3, 3), {"padding": 1, "stride": 2}),
        ((4, 320, 14, 13), (320, 40, 3, 3), {"padding": 1, "stride": (2, 1)}),
    ],
)
def test_several_groups_take_the_memory_that_the_plan_says(x_shape, w_shape, keywords, layout):
    keywords = {"groups": 8, **keywords}
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    (x, w, b, dout), keywords = random_layer(x_shape, w_shape, layout=layout, **keywords)
    keywords["algorithm"] = "implicit"
    for draw, call in (
        (plan_tap_by_tap, lambda: ic.conv(x, w, b, **keywords)),
        (plan_dx_tap_by_tap, lambda: ic.conv_input_grad(dout, w, x.shape, **keywords)),
        (plan_dw_tap_by_tap, lambda: ic.conv_weight_grad(dout, x, w_shape, **keywords)),
    ):
        plan = draw(geometry, layout, x.dtype, 64 * MIB)
        assert plan.tile_shape[1] > 1
        said = plan.worker_bytes + plan.shared_bytes
        with ic.set_workers(1):
            ic.set_workspace(64 * MIB)  # no buffers of earlier calls
            _, found = peak_beyond(call)
        assert said / 3 <= found <= said + PYTHON


def test_the_floor_is_a_row_of_output_and_two_copies_of_w():
    (x, w, b, dout), keywords = random_layer((1, 32, 90, 70), (48, 32, 3, 3), padding=1)
    floor = 32 * 9 * 70 * 4 + 2 * w.nbytes
    with ic.set_workspace(1):
        for call in (
            lambda: ic.conv(x, w, b, **keywords),
            lambda: ic.conv_grads(dout, x, w, needs=("x",), **keywords),
            lambda: ic.conv_grads(dout, x, w, needs=("w", "b"), **keywords),
        ):
            assert peak_beyond(call)[1] <= floor + PYTHON


def test_buffers_wait_for_the_next_call_and_are_given_back():
    (x, w, b, _), keywords = random_layer((4, 30, 40, 33), (20, 30, 3, 3), padding=1)
    with ic.set_workspace(16 * MIB):
        ic.conv(x, w, b, **keywords)
        waiting = sum(scratch.nbytes for scratch in engine_workers._kept)
        assert 0 < waiting <= min(engine_workers.KEPT_BYTES, 16 * MIB)
    assert not engine_workers._kept


@pytest.mark.parametrize("filters", [1, 3, 31, 32, 700])
@pytest.mark.parametrize("lines", [1, 5, 409])
@pytest.mark.parametrize("part", [np.s_[:], np.s_[:, ::2]], ids=["whole", "with gaps"])
def test_a_bias_is_added_to_each_row(filters, lines, part):
    rng = np.random.default_rng(filters)
    rows, b = rng.integers(-9, 10, (3, lines, filters)), rng.integers(-9, 10, filters)
    wanted = rows.copy()
    wanted[part] += b
    add_to_rows(rows[part], b)
    np.testing.assert_array_equal(rows, wanted)


def test_buffers_of_an_earlier_call_make_room_before_others_are_made():
    scratch = engine_workers.Scratch()
    with scratch:
        scratch.array("a", (1000,), np.dtype(np.float32))
    with scratch:
        scratch.array("b", (500,), np.dtype(np.float64))
        scratch.array("c", (10,), np.dtype(np.float64))
        assert scratch.nbytes == 4080
        assert scratch.array("b", (500,), np.dtype(np.float64)).ctypes.data % 64 == 0


def test_what_a_buffer_holds_is_known_until_it_is_asked_for_again():
    scratch, double = engine_workers.Scratch(), np.dtype(np.float64)
    with scratch:
        held = scratch.array("x", (3,), double)
        scratch.know("x", (slice(2), 1), held)
        assert scratch.known("x", (slice(2), 1)) is held
        assert scratch.known("x", (slice(3), 1)) is None
        scratch.array("x", (2,), double)
        assert scratch.known("x", (slice(2), 1)) is None
        scratch.know("x", 1, held)
    assert scratch.known("x", 1) is None


@pytest.mark.parametrize("workspace", [1, MIB, 64 * MIB])  # apart, apart, at once
@layers
def test_gradients_at_once_are_those_of_each_alone(layer, workspace):
    x_shape, w_shape, keywords = LAYERS[layer]
    (x, w, _, dout), keywords = random_layer(x_shape, w_shape, **keywords)
    with ic.set_workspace(workspace):
        together = ic.conv_grads(dout, x, w, **keywords)
        dx = ic.conv_grads(dout, x, w, needs=("x",), **keywords).dx
        _, dw, db = ic.conv_grads(dout, x, w, needs=("w", "b"), **keywords)
    for one, other in zip(together, (dx, dw, db), strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "keywords", "plan"),
    [
        ((2, 5, 9, 7), (6, 5, 3, 2), {"padding": ((1, 2), (0, 1))}, "GatherPlan"),
        ((3, 6, 8, 10), (9, 2, 2, 3), {"groups": 3, "dilation": (2, 1)}, "GatherPlan"),
        ((2, 5, 9, 7), (6, 5, 3, 2), {"padding": ((1, 3), (0, 1))}, "InputGradPlan"),  # pads off
        ((2, 5, 9, 7), (6, 5, 3, 2), {"stride": (1, 2)}, "InputGradPlan"),
        ((2, 2, 9, 7), (6, 2, 3, 2), {}, "InputGradPlan"),  # many filters
        ((1, 9, 3, 3), (9, 9, 3, 3), {}, "InputGradPlan"),  # large weights
        # windows of dout 6 times as many as of x, and 7, as of a kernel that covers an axis
        ((2, 6, 6, 8), (6, 1, 6, 1), {"groups": 6}, "GatherPlan"),
        ((2, 6, 7, 8), (6, 1, 7, 1), {"groups": 6}, "InputGradPlan"),
    ],
)
@layouts
def test_dx_among_columns_by_gather_and_by_scatter(x_shape, w_shape, keywords, plan, layout):
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    double = np.dtype(np.float64)
    drawn = input_grad_plan("im2col", geometry, layout, double, double, 64 * MIB)
    assert type(drawn).__name__ == plan
    (x, w, _, dout), keywords = random_layer(x_shape, w_shape, np.float64, layout, **keywords)
    w, dout = np.rint(9 * w), np.rint(9 * dout)
    dx = ic.conv_input_grad(dout, w, x.shape, algorithm="im2col", **keywords)
    back = (lambda a: np.moveaxis(a, -1, 1)) if layout == "channels_last" else (lambda a: a)
    keywords.pop("layout")
    expected = reference.conv_input_grad(back(dout), w, x_shape, **keywords)
    np.testing.assert_array_equal(back(dx), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.complex128, np.int64, np.int8])
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "keywords"),
    [
        ((5, 3, 9, 13), (7, 3, 2, 3), {}),
        ((3, 2, 31, 40), (66, 2, 3, 3), {"padding": ((1, 0), (2, 1))}),
        ((4, 6, 17, 11), (4, 3, 3, 2), {"groups": 2, "stride": (2, 1)}),
        ((3, 4, 9, 10), (6, 4, 1, 1), {}),
        ((2, 1, 90), (5, 1, 1), {}),  # windows of one number
        ((3, 2, 5, 6, 7), (4, 2, 2, 3, 1), {"dilation": (2, 1, 1)}),
    ],
)
@layouts
def test_shallow_columns_of_several_images_are_multiplied_where_they_lie(
    x_shape, w_shape, keywords, dtype, layout
):
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    assert pays_by_image(geometry, w_shape[1])
    assert_equal_to_the_reference(x_shape, w_shape, keywords, dtype, layout)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "groups"),
    [
        ((3, 4, 9, 10), (4, 1, 2, 3), 4),  # depthwise
        ((3, 30, 9, 10), (7, 30, 2, 4), 1),  # deep windows
        ((3, 2, 8, 9), (5, 2, 2, 1), 1),  # small images
    ],
)
def test_other_columns_are_multiplied_at_once(x_shape, w_shape, groups):
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, groups=groups)
    assert not pays_by_image(geometry, w_shape[1])


@pytest.mark.parametrize("channels", [19, 20, 21])
def test_a_few_windows_that_lie_as_rows_meet_their_weights(channels):
    x, w = (
        integers_like(seed, shape, np.float32)
        for seed, shape in enumerate(((1, channels, 3, 6), (4, channels, 2, 3)))
    )
    rows = columns_for(ic.ConvGeometry.from_shapes(x.shape, w.shape), "channels_last").rows
    assert rows == (channels >= 20)
    y = ic.conv(np.moveaxis(x, 1, -1), w, layout="channels_last", algorithm="im2col")
    np.testing.assert_array_equal(y, np.moveaxis(reference.conv(x, w), 1, -1))


def test_a_bias_of_shallow_columns_reaches_its_filter_alone():
    x, w, b = np.zeros((3, 2, 9, 13)), np.ones((4, 2, 2, 3)), np.array([np.inf, 5, np.nan, -2])
    y = ic.conv(x, w, b, algorithm="im2col")
    np.testing.assert_array_equal(y, np.broadcast_to(b[:, None, None], y.shape))


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "keywords"),
    [
        ((2, 3, 9, 27), (4, 3, 2, 3), {"stride": (1, 2), "padding": ((0, 1), (1, 0))}),
        ((2, 3, 9, 41), (4, 3, 3, 4), {"stride": (1, 3), "dilation": (1, 2), "padding": (0, 1)}),
        ((1, 2, 18, 55), (3, 2, 4, 5), {"stride": (1, 4), "dilation": (2, 2), "padding": (0, 3)}),
        ((1, 2, 7, 60), (3, 2, 5, 5), {"stride": (1, 4), "dilation": (1, 6), "padding": (2, 9)}),
        ((2, 2, 5, 4, 30), (3, 2, 2, 2, 3), {"stride": (1, 1, 2), "padding": (0, 1, 4)}),
        ((2, 9, 4, 30), (8, 9, 2, 3), {"stride": (1, 2), "padding": 1}),
    ],
)
@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int8])
@layouts
def test_windows_a_stride_apart_are_gathered_by_phases(x_shape, w_shape, keywords, dtype, layout):
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    phases = gathering.phases_of(geometry)
    whole = tuple((0, outs) for outs in geometry.out)
    assert phases == geometry.stride[-1]
    assert gathering._band(geometry, whole, phases).dense
    types = np.dtype(dtype), np.result_type(dtype, np.int8)
    dx = input_grad_plan("im2col", geometry, layout, *types, 64 * MIB)
    assert dx.phases == (phases if layout == "channels_first" else 1)
    assert_equal_to_the_reference(x_shape, w_shape, keywords, dtype, layout)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@layouts
def test_one_image_of_few_channels_is_shared_though_it_is_added_up_beside_dx(dtype, layout):
    geometry = ic.ConvGeometry.from_shapes((1, 3, 224, 200), (64, 3, 7, 5), stride=2, padding=3)
    single = np.dtype(dtype)
    plan = input_grad_plan("im2col", geometry, layout, single, single, 64 * MIB)
    assert plan.buffered
    assert (plan.tasks, plan.blocks.step[-2:]) == (4, (56, 200))


@pytest.mark.parametrize("workspace", [MIB, 2 * MIB, 8 * MIB])
@layouts
def test_a_block_that_is_added_up_beside_dx_stays_as_small_as_its_room(workspace, layout):
    geometry = ic.ConvGeometry.from_shapes((1, 8, 900, 400), (16, 8, 3, 5), stride=2)
    single = np.dtype(np.float32)
    plan = input_grad_plan("im2col", geometry, layout, single, single, workspace)
    assert plan.buffered
    assert plan.worker_bytes + plan.shared_bytes <= workspace


@layouts
def test_windows_that_do_not_overlap_are_copied_from_where_they_lie(layout, monkeypatch):
    monkeypatch.setattr(gathering, "gather", None)  # not tap by tap, sparse as they are
    x_shape, w_shape, keywords = (2, 3, 45, 80), (4, 3, 3, 4), {"stride": (4, 4)}
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    assert gathering.phases_of(geometry) == 1
    assert_equal_to_the_reference(x_shape, w_shape, keywords, np.float32, layout)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("short", [(7, 9), (40, 60), (1, 5), (300, 20)])
@pytest.mark.parametrize("long", [5, LEAST_PIECE, LONGEST_PIECE, 2 * LONGEST_PIECE, 2500])
def test_products_with_one_long_side_are_right_in_pieces(batch, short, long):
    arithmetic, (M, K) = FloatArithmetic(np.dtype(np.float32)), short
    A, B = integers_like(1, (*batch, M, K)), integers_like(2, (*batch, K, long))
    wide, deep = (np.full((*batch, *shape), np.nan, np.float32) for shape in ((M, long), (M, M)))
    arithmetic.matmul(A.astype(np.float32), B.astype(np.float32), wide)
    np.testing.assert_array_equal(wide, A @ B)
    rows = wide.astype(np.float64).swapaxes(-2, -1)
    arithmetic.matmul_deep(wide, rows.astype(np.float32), deep)
    np.testing.assert_array_equal(deep, wide.astype(np.float64) @ rows)


def assert_equal_to_the_reference(x_shape, w_shape, keywords, dtype, layout):
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    arrays = [
        integers_like(seed, shape, dtype)
        for seed, shape in enumerate((x_shape, w_shape, (geometry.F,), geometry.y_shape))
    ]
    x, w, b, dout = arrays
    wanted = (reference.conv(x, w, b, **keywords), *reference.conv_grads(dout, x, w, **keywords))
    images = layout == "channels_last"
    if images:
        x, dout = (np.ascontiguousarray(np.moveaxis(each, 1, -1)) for each in (x, dout))
    found = passes(x, w, b, dout, layout=layout, algorithm="im2col", **keywords)
    for name, one, other in zip(("y", "dx", "dw", "db"), found, wanted, strict=True):
        turned = np.moveaxis(one, -1, 1) if images and name in ("y", "dx") else one
        np.testing.assert_array_equal(turned, other.astype(turned.dtype), err_msg=name)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_large_sums_of_dw_are_cut_by_channels(layout):
    x_shape, w_shape = (12, 37, 9, 8), (320, 37, 3, 4)  # 37 channels in runs of 5, the last of 2
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, padding=1)
    double = np.dtype(np.float64)
    plan = weight_grad_plan("im2col", geometry, layout, double, double, double, 64 * MIB)
    assert (plan.sums, plan.channels, plan.tasks) == (1, 5, 8)
    (x, w, _, dout), keywords = random_layer(x_shape, w_shape, np.float64, layout, padding=1)
    x, dout = np.rint(9 * x), np.rint(9 * dout)
    _, dw, db = ic.conv_grads(dout, x, w, needs=("w", "b"), algorithm="im2col", **keywords)
    if layout == "channels_last":
        x, dout = (np.moveaxis(each, -1, 1) for each in (x, dout))
    np.testing.assert_array_equal(dw, reference.conv_weight_grad(dout, x, w_shape, padding=1))
    np.testing.assert_array_equal(db, dout.sum(axis=(0, 2, 3)))


# --- tiling ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extent", "cells", "shares", "step"),
    [
        ((64, 32, 32), 15 * 1024, 4, (8, 32, 32)),  # eight, not five
        ((100, 16, 16), 9000, 2, (25, 16, 16)),
        ((1, 56, 5), 140, 2, (1, 28, 5)),  # even as it is
        ((3, 7), 14, 4, (2, 7)),  # three images are for no four workers
    ],
)
def test_a_tiling_for_several_workers_gives_each_as_many_boxes(extent, cells, shares, step):
    tiling = cut_evenly(extent, cells, shares)
    assert tiling.step == step
    assert tiling.boxes % shares == 0 or extent[0] < shares


@given(extent=st.lists(st.integers(0, 9), min_size=1, max_size=4), cells=st.integers(1, 400))
def test_a_tiling_holds_each_cell_once_in_boxes_of_at_most_so_many(extent, cells):
    tiling = cut(tuple(extent), cells)
    seen = np.zeros(extent, int)
    for index in range(tiling.boxes):
        box = tiling[index]
        seen[box] += 1
        assert math.prod(part.stop - part.start for part in box) <= cells
    assert (seen == 1).all()


def test_a_tiling_counts_in_c_order():
    starts = [tuple(part.start for part in Tiling((3, 5), (2, 2))[i]) for i in range(6)]
    assert starts == [(0, 0), (0, 2), (0, 4), (2, 0), (2, 2), (2, 4)]


# --- workers --------------------------------------------------------------------------------------


def test_every_task_runs_once():
    done = np.zeros(500, int)

    def task(index, scratch):
        done[index] += 1

    engine_workers.run_tasks(task, 500, 5)
    assert (done == 1).all()


def test_an_error_in_a_task_is_raised_and_ends_the_rest():
    caller = threading.get_ident()
    helper_failed = threading.Event()

    def fail_on_helper(index, scratch):
        if threading.get_ident() == caller:
            assert helper_failed.wait(10)
        else:
            helper_failed.set()
            raise KeyError(index)

    with pytest.raises(KeyError):
        engine_workers.run_tasks(fail_on_helper, 10**9, 2)

    def fail(index, scratch):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        engine_workers.run_tasks(fail, 3, 2)


@pytest.mark.parametrize("at_product", [False, True])
def test_helpers_are_asked_at_once_or_at_the_first_product(at_product, monkeypatch):
    events, ask, caller = [], pool.ask, threading.get_ident()

    def ask_and_note(*arguments):
        events.append("asked")
        return ask(*arguments)

    def task(index, scratch):
        if threading.get_ident() == caller:
            events.append("copies")
            scratch.begin_product()
            scratch.begin_product()
            events.append("multiplies")

    monkeypatch.setattr(pool, "ask", ask_and_note)
    engine_workers.run_tasks(task, 1, 3, at_product=at_product)
    assert events == ["copies", "multiplies"]  # alone
    events.clear()
    both = threading.Barrier(3, timeout=10)

    def wait_for_all(index, scratch):
        task(index, scratch)
        both.wait()

    engine_workers.run_tasks(wait_for_all, 3, 3, at_product=at_product)
    first = ["copies", *["asked"] * 2] if at_product else [*["asked"] * 2, "copies"]
    assert events == [*first, "multiplies"]
    assert not any(scratch.of_helper for scratch in engine_workers._kept)


def test_an_error_before_the_first_product_asks_nobody(monkeypatch):
    def fail(index, scratch):
        raise ZeroDivisionError

    monkeypatch.setattr(pool, "ask", lambda *_: pytest.fail("asked"))
    with pytest.raises(ZeroDivisionError):
        engine_workers.run_tasks(fail, 9, 3, at_product=True)
    with engine_workers.lend_scratch() as scratch:
        scratch.begin_product()  # nobody waits any more


COPIES_ALONE = [  # x_shape, w_shape, keywords, whether the caller copies alone
    ((1, 3, 224, 222), (64, 3, 7, 7), {"stride": 2, "padding": 3}, True),
    ((1, 3, 113, 111), (64, 3, 7, 7), {"stride": 2, "padding": 3}, False),  # 59 MFLOP
    ((8, 20, 40, 41), (64, 20, 3, 3), {"padding": 1}, True),
    ((8, 300, 40, 41), (16, 300, 3, 3), {"padding": 1}, False),  # columns of 5.5 MB
    ((16, 64, 13, 13), (192, 64, 5, 5), {"stride": 2}, False),  # lines of five
    ((1, 20, 67, 61), (520, 20, 1, 1), {"stride": 2}, False),  # 21 MFLOP
    ((1, 40, 9, 17), (1024, 40, 3, 3), {"padding": 1}, False),  # whose tiles workers share
    ((4, 40, 32, 17), (64, 40, 3, 3), {"padding": 1}, True),
    ((4, 42, 32, 16), (66, 42, 3, 3), {"padding": 1}, True),
    ((4, 44, 32, 15), (66, 44, 3, 3), {"padding": 1}, False),
]


@pytest.mark.parametrize(("x_shape", "w_shape", "keywords", "alone"), COPIES_ALONE)
def test_a_caller_copies_alone_what_its_first_product_needs(
    x_shape, w_shape, keywords, alone, monkeypatch
):
    dtype = np.dtype(np.float32)
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    plan = plan_columns(geometry, "channels_first", dtype, dtype, 64 * MIB)
    assert plan.at_product == alone
    events, gather_tile, ask = [], columns_forward.gather_tile, pool.ask

    def note(event, call):
        def noted(*arguments, **keywords):
            events.append(event)
            return call(*arguments, **keywords)

        return noted

    monkeypatch.setattr(columns_forward, "gather_tile", note("gathers", gather_tile))
    monkeypatch.setattr(pool, "ask", note("asks", ask))
    x, w = (integers_like(seed, shape, dtype) for seed, shape in enumerate((x_shape, w_shape)))
    with ic.set_workers(2):
        y = ic.conv(x, w, algorithm="im2col", **keywords)
    np.testing.assert_array_equal(y, reference.conv(x, w, **keywords))
    assert events[0] == ("gathers" if alone else "asks")
    assert events.count("asks") == 1
    for workers in (plan.tasks // 2, plan.tasks // 2 + 1):  # enough tasks, and too few
        events.clear()
        with ic.set_workers(workers):
            ic.conv(x, w, algorithm="im2col", **keywords)
        assert workers == 1 or (events[0] == "gathers") == (alone and plan.tasks >= 2 * workers)


def blas_threads(*, private=False):
    """Return the threads of each BLAS of the process, but for the private one; or of that one."""
    return [
        each["num_threads"]
        for each in threadpool_info()
        if each["user_api"] == "blas" and is_private(each["filepath"]) == private
    ]


def test_products_run_on_one_blas_thread_and_the_setting_comes_back():
    for found in (2, 3):
        with threadpool_limits(found, user_api="blas"):
            before = blas_threads()
            inside = []

            def note(index, scratch, inside=inside):
                inside.append(blas_threads())

            engine_workers.run_tasks(note, 3, 2)
            assert inside == [[1] * len(before)] * 3
            assert blas_threads() == before

            def fail(index, scratch):
                raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                engine_workers.run_tasks(fail, 3, 2)
            assert blas_threads() == before


def test_the_first_of_overlapping_calls_to_end_leaves_the_others_their_one_thread():
    inside = []

    def call_within(index, scratch):
        engine_workers.run_tasks(lambda *_: None, 1, 1)
        inside.append(blas_threads())

    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        engine_workers.run_tasks(call_within, 1, 1)
        assert inside == [[1] * len(before)]
        assert blas_threads() == before


@pytest.mark.skipif(private_blas() is None, reason="needs the extra fast")
def test_a_call_that_ends_does_not_give_the_private_blas_of_another_more_threads():
    """Two threads of it would race for results to which several products of a batch add."""
    arrays, keywords = random_layer((1, 24, 30, 21), (40, 24, 3, 2))

    def call_within(index, scratch):
        ic.conv(*arrays[:3], algorithm="implicit", **keywords)
        assert blas_threads(private=True) == [1]

    with threadpool_limits(2, user_api="blas"):
        assert blas_threads(private=True) == [2]
        engine_workers.run_tasks(call_within, 1, 1)
        assert blas_threads(private=True) == [1]


@pytest.mark.parametrize(("filters", "held"), [(2, False), (22, False), (23, True)])
def test_products_that_blas_does_not_share_leave_its_threads_alone(filters, held, monkeypatch):
    x, w = integers_like(1, (1, 1, 5, 6), np.float32), integers_like(2, (filters, 1, 3, 2), "f4")
    holds, hold = [], engine_workers.blas.hold
    monkeypatch.setattr(engine_workers.blas, "hold", lambda: holds.append(hold()))
    for algorithm in ("auto", "im2col"):
        y = ic.conv(x, w, algorithm=algorithm)
        np.testing.assert_array_equal(y, reference.conv(x, w))
    assert len(holds) == 2 * held


@pytest.mark.parametrize("length", [58, 59, 66, 67, 90])
def test_products_of_complex_numbers_with_a_vector_are_never_shared(length):
    rng = np.random.default_rng(length)
    x, w = (rng.standard_normal((*shape, 2)) @ [1, 1j] for shape in ((1, 60, length), (1, 60, 1)))
    results = []
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"):
            results.append(ic.conv(x, w))
    np.testing.assert_array_equal(*results)


def test_a_plan_is_drawn_once_for_each_library(monkeypatch):
    monkeypatch.setattr(choice, "direct_pays", lambda *_: False)
    geometry = ic.ConvGeometry.from_shapes((2, 64, 20, 23), (70, 64, 3, 3))
    single = np.dtype(np.float32)
    asked = "auto", geometry, "channels_first", single, single, 64 * MIB
    plan = forward_plan(*asked)
    assert plan.algorithm == ("im2col" if private_blas() is None else "implicit")
    assert forward_plan(*asked) is plan
    monkeypatch.setattr(choice, "private_blas", lambda: None)
    assert forward_plan(*asked).algorithm == "im2col"


def test_what_is_kept_of_a_plan_is_bounded():
    x, w = np.ones((2000, 3, 7, 6), np.float32), np.ones((4, 3, 3, 2), np.float32)
    geometry = ic.ConvGeometry.from_shapes(x.shape, w.shape)
    with ic.set_workspace(20_000):
        plan = forward_plan("im2col", geometry, "channels_first", x.dtype, x.dtype, 20_000)
        assert plan.tasks > plan.most_steps
        ic.conv(x, w, algorithm="im2col")
    assert len(plan.steps) == plan.most_steps
    band = plan.steps[0].band
    for apart in range(1, 2 * gathering.MOST_LIES):
        with ic.set_workspace(20_000):
            ic.conv(np.ones((2000, 3, 7, 6 + apart), np.float32)[..., :6], w, algorithm="im2col")
    assert len(band.lies) == gathering.MOST_LIES


def test_calls_of_any_thread_hold_blas_to_one_thread():
    """threadpoolctl lets the first thread alone set the number, and ignores others in silence."""
    inside = []

    def call():
        engine_workers.run_tasks(lambda *_: inside.append(blas_threads()), 1, 1)

    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        for _ in range(2):
            thread = threading.Thread(target=call)
            thread.start()
            thread.join()
            call()
            assert blas_threads() == before
    assert inside == [[1] * len(before)] * 4


def test_many_threads_calling_at_once_agree_and_leave_blas_as_it_was():
    arrays, keywords = random_layer((9, 24, 30, 21), (40, 24, 3, 2), stride=(2, 1))
    wanted = passes(*arrays, **keywords)
    wrong = []

    def call():
        for _ in range(2):
            found = passes(*arrays, **keywords)
            if any(a.tobytes() != b.tobytes() for a, b in zip(found, wanted, strict=True)):
                wrong.append(found)

    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert blas_threads() == before
    assert not wrong


def test_helpers_are_used_again_and_are_no_more_than_so_many():
    for workers in (2, 1000):
        for _ in range(50):
            engine_workers.run_tasks(lambda *_: None, 1000, workers)
    helpers = [each for each in threading.enumerate() if each.name == "im2col_conv"]
    assert 1 <= len(helpers) <= processors.MOST_HELPERS


def test_tasks_that_call_others_do_not_wait_for_helpers_in_use():
    inner = np.zeros(200, int)

    def task(index, scratch):
        def count(i, scratch):
            inner[10 * index + i] += 1

        engine_workers.run_tasks(count, 10, 5)

    engine_workers.run_tasks(task, 20, 1000)
    assert (inner == 1).all()


def test_a_call_does_without_helpers_that_are_not_to_be_had(monkeypatch):
    monkeypatch.setattr(pool, "_team", processors.Team(pool._Helper))

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done = []
    engine_workers.run_tasks(lambda index, scratch: done.append(index), 20, 4)
    assert done == list(range(20))


def test_a_call_does_not_wait_for_a_helper_that_has_yet_to_wake():
    asleep = pool._Helper()  # and never started
    done = []
    late = pool.Help(lambda: done.append("late"), asleep)
    assert late.end() is None
    assert pool._team.idle.pop() is asleep
    on_time = pool.Help(lambda: done.append("on time"), asleep)
    asleep.given.get().begin()
    asleep.given.get().begin()
    assert on_time.end() is None
    assert done == ["on time"]
    assert pool._team.idle.pop() is asleep


def test_the_helpers_of_a_call_are_there_for_the_next():
    all_of_them = threading.Barrier(processors.MOST_HELPERS + 1, timeout=20)
    for _ in range(20):
        engine_workers.run_tasks(lambda *_: None, 1000, processors.MOST_HELPERS + 1)
        engine_workers.run_tasks(lambda *_: all_of_them.wait(), processors.MOST_HELPERS + 1, 1000)


needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two processors and a system that tells which",
)


@needs_affinity
def test_a_helper_runs_elsewhere_than_its_asker():
    allowed, found = os.sched_getaffinity(0), {}
    both = threading.Barrier(2)

    def task(index, scratch):
        found[threading.current_thread().name] = os.sched_getaffinity(0)
        both.wait(20)

    engine_workers.run_tasks(task, 2, 2)
    helper, caller = found.pop("im2col_conv"), *found.values()
    assert len(caller) == 1
    assert helper == allowed - caller
    assert os.sched_getaffinity(0) == allowed


@needs_affinity
def test_a_call_that_fails_leaves_its_thread_where_it_may_run():
    allowed = os.sched_getaffinity(0)
    with pytest.raises(ZeroDivisionError):
        engine_workers.run_tasks(lambda index, scratch: 1 / 0, 20, 2)
    assert os.sched_getaffinity(0) == allowed


@needs_affinity
@pytest.mark.parametrize("refused", ["sched_setaffinity", "sched_getaffinity"])
def test_helpers_work_where_the_system_refuses_to_part_threads(monkeypatch, refused):
    asked = []

    def refuse(*given):
        asked.append(given)
        raise PermissionError

    monkeypatch.setattr(os, refused, refuse)
    with processors.parted() as left:
        assert left == frozenset()
    done = []
    engine_workers.run_tasks(lambda index, scratch: done.append(index), 50, 3)
    assert sorted(done) == list(range(50))
    assert len(asked) == 2


@needs_affinity
def test_a_helper_that_may_not_be_moved_works_where_it_is(monkeypatch):
    def refuse(thread, cpus):
        raise PermissionError

    helper = pool._Helper()
    helper.start()
    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    helper.go_to({-1})
    begun = threading.Event()
    work = pool.Help(begun.set, helper)
    assert begun.wait(20)
    assert work.end() is None


def test_without_a_c_library_that_tells_threads_go_where_they_like(monkeypatch):
    monkeypatch.setattr(processors, "_current", lambda: None)
    with processors.parted() as left:
        assert left == frozenset()


def test_helpers_keep_no_array_of_a_call():
    array = np.zeros(3)
    gone = weakref.ref(array)
    both = threading.Barrier(2, timeout=10)

    def task(index, scratch, array=array):
        both.wait()

    engine_workers.run_tasks(task, 2, 2)
    del array, task
    for _ in range(1000):
        if gone() is None:
            break
        time.sleep(0.01)
    assert gone() is None


def test_a_call_at_the_exit_of_the_interpreter():
    """When no new thread may be started any more."""
    code = """
        import atexit, numpy as np, im2col_conv as ic
        ic.set_workers(3)
        x, w = np.ones((4, 16, 60, 60)), np.ones((16, 16, 3, 3))
        atexit.register(lambda: print(ic.conv(x, w).sum()))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == 4 * 16 * 58 * 58 * 144
    assert not done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_that_is_forked_during_a_call_finds_blas_as_it_was():
    inside, forked = threading.Event(), threading.Event()

    def task(index, scratch):
        inside.set()
        assert forked.wait(20)

    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        call = threading.Thread(target=engine_workers.run_tasks, args=(task, 1, 1))
        call.start()
        assert inside.wait(10)
        child = os.fork()
        if child == 0:
            found = [blas_threads()]
            engine_workers.run_tasks(lambda *_: found.append(blas_threads()), 1, 1)
            found.append(blas_threads())
            os._exit(0 if found == [before, [1] * len(before), before] else 1)
        forked.set()
        call.join()
        _, status = os.waitpid(child, 0)
        assert blas_threads() == before
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_workers_of_its_own():
    arrays, keywords = random_layer(*LAYERS["one image"][:2], **LAYERS["one image"][2])
    with ic.set_workers(3):
        wanted = ic.conv(*arrays[:3], **keywords)
        child = os.fork()
        if child == 0:
            try:
                meet = threading.Barrier(2, timeout=20)
                engine_workers.run_tasks(lambda index, scratch: meet.wait(), 2, 2)
                same = ic.conv(*arrays[:3], **keywords).tobytes() == wanted.tobytes()
            except BaseException:
                same = False
            os._exit(0 if same else 1)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("set_value", "get_value", "name"),
    [
        (ic.set_workers, ic.get_workers, "workers"),
        (ic.set_workspace, ic.get_workspace, "nbytes"),
    ],
)
def test_settings(set_value, get_value, name):
    before = get_value()
    with set_value(5):
        assert get_value() == 5
        set_value(7)
        assert get_value() == 7
        with pytest.raises(ZeroDivisionError), set_value(np.int64(9)):
            assert get_value() == 9
            raise ZeroDivisionError
        assert get_value() == 7
    assert get_value() == before
    for wrong, error in ((0, ValueError), (-1, ValueError), (2.0, TypeError), (None, TypeError)):
        with pytest.raises(error, match=f"^{name} must be"):
            set_value(wrong)
        assert get_value() == before
    seen = []
    with set_value(3):
        thread = threading.Thread(target=lambda: seen.append(get_value()))
        thread.start()
        thread.join()
    assert seen == [3]


def test_default_workers_are_the_cpus_that_the_process_may_use():
    if hasattr(os, "sched_getaffinity"):
        assert ic.get_workers() == len(os.sched_getaffinity(0))
    else:
        assert ic.get_workers() == os.cpu_count()


@pytest.mark.parametrize("kept", [1, 2])
@pytest.mark.parametrize("order", ["C", "F"])
def test_sums_are_added_up_in_the_type_that_is_asked_for(order, kept):
    array = np.ones((2, 3, 29, 31), np.float16, order=order)
    array[1] = 5  # 5 x 29 x 31 is more than float16 can tell from its neighbours
    total = sums_of(array, np.dtype(np.float32), kept)
    assert total.dtype == np.float32
    assert np.array_equal(total, array.astype(np.float64).sum(axis=tuple(range(kept, 4))))
