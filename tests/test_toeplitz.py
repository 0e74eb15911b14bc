"""Depthwise layers along one axis, channels first: squares of a Toeplitz matrix, and when."""

from itertools import product

import numpy as np
import pytest

import im2col_conv as ic
from im2col_conv import reference
from im2col_conv.engine.im2col.forward import forward, plan_forward
from im2col_conv.engine.im2col.input_grad import GatherPlan, plan_input_grad
from im2col_conv.engine.im2col.toeplitz import toeplitz_lines
from im2col_conv.engine.plan import workers_for
from im2col_conv.engine.workers import Scratch

pytestmark = pytest.mark.usefixtures("in_tiles")

MIB = 2**20
SINGLE = np.dtype(np.float32)

LAYERS = {  # x, taps, keywords
    "one square's reach": ((3, 5, 75), 17, {"padding": ((2, 7),)}),
    "one tap more": ((3, 5, 75), 18, {"padding": ((2, 7),)}),
    "many squares": ((2, 3, 90), 51, {"padding": 25}),
    "dilation": ((2, 3, 301), 7, {"padding": 4, "dilation": 5}),
    "stride": ((3, 4, 203), 9, {"padding": 2, "stride": 2}),
    "stride and dilation": ((2, 3, 310), 20, {"padding": 11, "stride": 2, "dilation": 3}),
    "a common factor": ((2, 3, 410), 30, {"padding": 7, "stride": 4, "dilation": 2}),
    "three phases": ((2, 3, 300), 14, {"padding": ((5, 0),), "stride": 3}),
    "more padding than cells": ((13, 2, 4), 9, {"padding": ((13, 8),)}),
    "a line that is a multiple": ((4, 3, 72), 9, {}),
}
layers = pytest.mark.parametrize(("x_shape", "taps", "keywords"), LAYERS.values(), ids=LAYERS)


def layer_of(x_shape, taps, keywords):
    C = x_shape[1]
    return ic.ConvGeometry.from_shapes(x_shape, (C, 1, taps), groups=C, **keywords)


def whole_numbers(geometry, dtype):
    """Return x, w, b and dout of small whole numbers, complex ones among them."""
    rng = np.random.default_rng(4)
    most = 1 if dtype == np.float16 else 4  # sums that it holds
    given = []
    for shape in (geometry.x_shape, geometry.w_shape, (geometry.C,), geometry.y_shape):
        numbers = rng.integers(-most, most + 1, shape).astype(dtype)
        if np.dtype(dtype).kind == "c":
            numbers += 1j * rng.integers(-most, most + 1, shape).astype(np.float32)
        given.append(numbers)
    return given


def squares_of(geometry, layout="channels_first", dtype=SINGLE, workspace=64 * MIB):
    plan = plan_forward(geometry, layout, dtype, dtype, workspace)
    assert plan.squares == toeplitz_lines(geometry, layout, dtype, workspace)
    return plan.squares


@layers
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.complex64])
def test_squares_give_what_the_reference_gives(x_shape, taps, keywords, dtype):
    geometry = layer_of(x_shape, taps, keywords)
    x, w, b, dout = whole_numbers(geometry, dtype)
    keywords = {"groups": geometry.C, **keywords}
    y = reference.conv(x, w, b, **keywords).astype(dtype)
    dx = reference.conv_input_grad(dout, w, x.shape, **keywords).astype(dtype)
    for workspace in (64 * MIB, 2**18):
        assert squares_of(geometry, workspace=workspace) is not None
        with ic.set_workspace(workspace), ic.set_workers(3):
            found = ic.conv(x, w, b, algorithm="im2col", **keywords)
            back = ic.conv_input_grad(dout, w, x.shape, algorithm="im2col", **keywords)
        np.testing.assert_array_equal(found, y)
        np.testing.assert_array_equal(back, dx)


def test_dx_is_made_by_squares_and_takes_a_bias():
    geometry = layer_of((2, 3, 75), 21, {"padding": ((4, 9),)})
    plan = plan_input_grad(geometry, "channels_first", SINGLE, SINGLE, 64 * MIB)
    assert isinstance(plan, GatherPlan)
    assert plan.forward.squares is not None
    x, w, b, dout = whole_numbers(geometry, np.float32)
    found = ic.conv_transpose(dout, w, b, padding=((4, 9),), groups=3)
    wanted = reference.conv_input_grad(dout, w, x.shape, padding=((4, 9),), groups=3)
    np.testing.assert_array_equal(found, wanted + b[:, None])


def test_images_and_channels_are_cut_in_tiles():
    geometry = layer_of((7, 9, 500), 31, {"padding": ((3, 30),)})
    squares = squares_of(geometry, workspace=2**18)
    assert min(squares.tiling.counts[:2]) > 1
    x, w, b, _ = whole_numbers(geometry, np.float32)
    keywords = {"padding": ((3, 30),), "groups": 9}
    with ic.set_workspace(2**18), ic.set_workers(2):
        found = ic.conv(x, w, b, algorithm="im2col", **keywords)
    np.testing.assert_array_equal(found, reference.conv(x, w, b, **keywords))


@pytest.mark.parametrize(
    "keywords",
    [
        {"padding": ((40, 11),)},
        {"padding": ((6, 9),), "stride": 3},
        {"padding": 100, "stride": 2, "dilation": 3},
    ],
)
def test_long_lines_are_cut(keywords):
    geometry = layer_of((2, 3, 8000), 31, keywords)
    squares = squares_of(geometry, workspace=2**17)
    assert squares.tiling.counts[2] > 1
    x, w, b, _ = whole_numbers(geometry, np.float32)
    keywords = {"groups": 3, **keywords}
    with ic.set_workspace(2**17), ic.set_workers(2):
        found = ic.conv(x, w, b, algorithm="im2col", **keywords)
        np.testing.assert_array_equal(found, reference.conv(x, w, b, **keywords))
        cut = squares.tiling.step[2] * geometry.stride[0]
        x[1, 2, cut] = np.nan
        found = ic.conv(x, w, b, algorithm="im2col", **keywords)
    whole = ic.conv(x.astype(np.float64), w, b, algorithm="im2col", **keywords)
    np.testing.assert_array_equal(found, whole)
    assert np.isnan(found[1, 2]).any()
    assert np.isfinite(found[:, :2]).all()


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("cell", [0, 40, -1])
def test_infinity_reaches_the_outputs_whose_windows_hold_it(cell, stride):
    keywords = {"padding": ((9, 4),), "stride": stride}
    geometry = layer_of((3, 5, 100), 13, keywords)
    x, w, b, _ = whole_numbers(geometry, np.float32)
    w[...] = 1
    finite = reference.conv(x, w, b, groups=5, **keywords)
    x[1, 2:4, cell] = np.inf, np.nan
    found = ic.conv(x, w, b, groups=5, algorithm="im2col", **keywords)
    holds = np.zeros(geometry.out, bool)
    for o, t in product(range(geometry.out[0]), range(13)):
        holds[o] |= o * stride + t - 9 == cell % 100
    assert holds.any()
    assert not holds.all()
    finite[1, 2, holds], finite[1, 3, holds] = np.inf, np.nan
    np.testing.assert_array_equal(found, finite)


def test_results_do_not_depend_on_the_workers():
    geometry = layer_of((5, 61, 700), 31, {"padding": 15})
    plan = plan_forward(geometry, "channels_first", SINGLE, SINGLE, 64 * MIB)
    assert plan.tasks % 4 == 0
    assert workers_for(plan, 3, 64 * MIB) == 3
    rng = np.random.default_rng(3)
    shapes = (geometry.x_shape, geometry.w_shape, (61,))
    x, w, b = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    found = []
    for workers in (1, 2, 5):
        with ic.set_workers(workers):
            found.append(ic.conv(x, w, b, padding=15, groups=61))
    for y in found[1:]:
        np.testing.assert_array_equal(y, found[0])


def test_squares_are_for_long_windows_of_single_channels_that_come_first():
    geometry = layer_of((2, 6, 200), 9, {})
    assert squares_of(geometry) is not None
    assert squares_of(geometry, dtype=np.dtype(np.complex64)) is not None
    assert squares_of(geometry, "channels_last") is None
    assert squares_of(geometry, dtype=np.dtype(np.int64)) is None
    assert squares_of(geometry, workspace=2**14) is None
    assert squares_of(ic.ConvGeometry.from_shapes((2, 6, 200), (12, 1, 9), groups=6)) is None
    assert squares_of(ic.ConvGeometry.from_shapes((2, 1, 200), (1, 1, 9))) is None
    for line, squared in ((108, True), (107, False)):  # 2 * 100 * 5 and 2 * 99 * 5 numbers
        assert (squares_of(layer_of((2, 6, line), 9, {})) is not None) is squared
    assert squares_of(layer_of((2, 6, 2000), 4, {})) is None
    for dilation, squared in ((6, True), (7, False)):  # 64 and 80 rows for 9 taps
        sparse = layer_of((2, 6, 200), 9, {"dilation": dilation})
        assert (squares_of(sparse) is not None) is squared


def test_tiles_take_the_memory_that_is_counted():
    for x_shape, taps, keywords in LAYERS.values():
        geometry = layer_of(x_shape, taps, keywords)
        for workspace in (2**16, 2**17, 2**19, 64 * MIB):
            plan = plan_forward(geometry, "channels_first", SINGLE, SINGLE, workspace)
            if plan.squares is None:
                continue
            assert 4 * plan.worker_bytes + plan.shared_bytes <= workspace
            x, w, b, y = whole_numbers(geometry, np.float32)
            scratch = Scratch()
            forward(plan, x, w, b, y).task(0, scratch)
            images, channels, out = plan.tiling.step
            others = images * channels * out * x.itemsize  # of a tap, where y is not finite
            assert scratch.nbytes + others <= plan.worker_bytes + 3 * 64  # where buffers begin
