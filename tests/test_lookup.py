"""Small layers, whose columns are looked up in one step."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import im2col_conv as ic
from im2col_conv import reference
from im2col_conv.arrays import channels_first, computing_type
from im2col_conv.engine import blas, workers
from im2col_conv.engine.blas import MOST_UNSHARED, may_share
from im2col_conv.engine.choice import forward_plan, input_grad_plan, weight_grad_plan
from im2col_conv.engine.im2col import lookup
from im2col_conv.engine.im2col.lookup import MOST_NUMBERS, LookupPlan

from .strategies import integers_like

MIB = 2**20
SINGLE = np.dtype(np.float32)

LAYERS = {  # x, w, keywords
    "two axes": ((1, 3, 9, 7), (5, 3, 3, 2), {"padding": ((1, 0), (0, 2))}),
    "several images": ((3, 2, 5, 9), (4, 2, 2, 3), {"padding": (0, 1)}),
    "several large images": ((2, 3, 13, 9), (4, 3, 2, 3), {"padding": (0, 1)}),
    "one axis": ((2, 4, 23), (7, 4, 5), {"padding": ((2, 4),), "stride": 2}),
    "three axes": ((1, 2, 4, 5, 6), (3, 2, 2, 3, 1), {"padding": (1, 0, 2)}),
    "stride and remainder": ((2, 3, 8, 11), (4, 3, 2, 3), {"stride": (3, 2), "padding": (0, 1)}),
    "stride larger than the kernel": ((1, 2, 13, 9), (3, 2, 2, 1), {"stride": (5, 3)}),
    "dilation": ((1, 3, 12, 10), (5, 3, 3, 2), {"dilation": (2, 3), "stride": (1, 2)}),
    "taps that meet nothing": ((2, 3, 2, 3), (4, 3, 5, 4), {"padding": ((4, 3), (3, 4))}),
    "groups": ((2, 6, 7, 5), (9, 2, 3, 2), {"groups": 3, "padding": 1, "stride": (2, 1)}),
    "depthwise": ((2, 5, 6, 11), (5, 1, 3, 2), {"groups": 5, "padding": (1, 0)}),
    "one cell": ((2, 3, 5, 4), (6, 3, 1, 1), {}),
    "one cell, groups, many": ((3, 4, 9, 11), (6, 2, 1, 1), {"groups": 2}),
    "one cell a stride apart": ((2, 3, 7, 5), (4, 3, 1, 1), {"stride": (2, 3)}),
    "one cell, padding": ((1, 3, 3, 4), (2, 3, 1, 1), {"padding": ((1, 0), (0, 2))}),
}
layers = pytest.mark.parametrize(
    ("x_shape", "w_shape", "keywords"), LAYERS.values(), ids=LAYERS.keys()
)
LAYOUTS = ["channels_first", "channels_last"]
layouts = pytest.mark.parametrize("layout", LAYOUTS)
TYPES = [np.float32, np.float64, np.float16, np.complex64, np.int8, np.int64, np.bool_]


def laid(array, layout):
    """Return (N, C, *cells) in a layout."""
    return array if layout == LAYOUTS[0] else np.ascontiguousarray(np.moveaxis(array, 1, -1))


def plans_of(geometry, layout="channels_first", dtype=SINGLE, workspace=64 * MIB):
    """Return the plans of the three passes among columns."""
    dtype = np.dtype(dtype)
    result = dtype if dtype.kind in "fc" else np.dtype(np.int64)
    asked = "im2col", geometry, layout
    return [
        forward_plan(*asked, dtype, result, workspace),
        weight_grad_plan(*asked, dtype, dtype, result, workspace),
        input_grad_plan(*asked, dtype, result, workspace),
    ]


@layers
@layouts
@pytest.mark.parametrize("dtype", TYPES)
def test_all_passes_of_small_layers(x_shape, w_shape, keywords, layout, dtype):
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    assert all(isinstance(plan, LookupPlan) for plan in plans_of(geometry, layout, dtype))
    shapes = x_shape, w_shape, (w_shape[0],), geometry.y_shape
    x, w, b, dout = (integers_like(seed, shape, dtype) for seed, shape in enumerate(shapes))
    if dtype == np.complex64:
        x, w, b, dout = (each * np.complex64(1 + 2j) for each in (x, w, b, dout))
    options = {**keywords, "layout": layout, "algorithm": "im2col"}
    for bias in (None, b):
        y = ic.conv(laid(x, layout), w, bias, **options)
        wanted = laid(reference.conv(x, w, bias, **keywords), layout)
        np.testing.assert_array_equal(y, wanted)
        assert y.dtype == (dtype if np.dtype(dtype).kind in "fc" else np.int64)
    found = ic.conv_grads(laid(dout, layout), laid(x, layout), w, **options)
    dx, dw, db = reference.conv_grads(dout, x, w, **keywords)
    np.testing.assert_array_equal(found.dx, laid(dx, layout))
    np.testing.assert_array_equal(found.dw, dw)
    np.testing.assert_array_equal(found.db, db)


@layouts
def test_a_transposed_pass_adds_its_bias(layout):
    x, w, b = (
        integers_like(n, shape) for n, shape in enumerate([(2, 3, 5, 4), (3, 4, 2, 3), (4,)])
    )
    keywords = {"stride": (2, 3), "padding": (0, 1), "output_padding": (1, 2)}
    y = ic.conv_transpose(laid(x, layout), w, b, layout=layout, **keywords)
    wanted = reference.conv_transpose(x, w, b, **keywords)
    np.testing.assert_array_equal(y, laid(wanted, layout))


def test_results_of_any_memory_order_are_filled():
    x, w = integers_like(1, (3, 2, 9, 12)), integers_like(2, (4, 2, 3, 2))
    wanted = reference.conv(x, w)
    for order in ((0, 1, 2, 3), (1, 0, 2, 3), (3, 2, 1, 0), (0, 2, 3, 1)):
        memory = np.full([2 * wanted.shape[axis] for axis in order], np.nan)
        out = memory[::2, ::-2, ::2, ::2].transpose(np.argsort(order))
        np.testing.assert_array_equal(ic.conv(x, w, out=out), wanted)
        assert np.isnan(memory[1::2]).all()


def test_an_axis_of_size_0():
    x, w, dout = np.zeros((2, 1, 0, 3)), np.ones((2, 1, 2, 3)), np.ones((2, 2, 1, 1))
    keywords = {"padding": ((1, 1), (0, 0)), "algorithm": "im2col"}
    y = ic.conv(x, w, [7.0, 5.0], **keywords)
    np.testing.assert_array_equal(y, np.tile([[[[7.0]], [[5.0]]]], (2, 1, 1, 1)))
    dx, dw, db = ic.conv_grads(dout, x, w, **keywords)
    assert dx.shape == x.shape
    np.testing.assert_array_equal(dw, np.zeros_like(w))
    np.testing.assert_array_equal(db, [2.0, 2.0])


def test_up_to_how_many_numbers_columns_are_looked_up():
    taps, images = 3, 4

    def looked_up(out):
        geometry = ic.ConvGeometry.from_shapes((images, 2, out + taps - 1), (5, 2, taps))
        return [isinstance(plan, LookupPlan) for plan in plans_of(geometry)]

    # y and dw read columns and cells of x, dx those of dout
    longest = (MOST_NUMBERS // images // 2 - taps + 1) // (taps + 1)
    assert looked_up(longest)[:2] == [True, True]
    assert looked_up(longest + 1)[:2] == [False, False]
    longest = (MOST_NUMBERS // images // 5 - taps * (taps - 1)) // (taps + 1)
    assert looked_up(longest)[2]
    assert not looked_up(longest + 1)[2]


def test_work_that_pays_for_two_workers_is_not_looked_up():
    few, many = (
        ic.ConvGeometry.from_shapes((1, 32, 6, 7), (filters, 32, 3, 3), padding=1)
        for filters in (800, 900)  # of 19 and 22 MFLOP
    )
    assert isinstance(plans_of(few)[0], LookupPlan)
    assert not isinstance(plans_of(many)[0], LookupPlan)


def test_a_small_workspace_is_kept():
    geometry = ic.ConvGeometry.from_shapes((1, 3, 9, 7), (5, 3, 3, 2))
    needed = plans_of(geometry)[0].worker_bytes
    assert isinstance(plans_of(geometry, workspace=needed)[0], LookupPlan)
    assert not isinstance(plans_of(geometry, workspace=needed - 1)[0], LookupPlan)


@layers
@layouts
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_buffers_are_no_larger_than_the_plan_says(
    x_shape, w_shape, keywords, layout, dtype, monkeypatch
):
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    x, dout = (
        channels_first(laid(integers_like(n, shape, dtype), layout), layout)
        for n, shape in enumerate((x_shape, geometry.y_shape))
    )
    w, dw = integers_like(2, w_shape, dtype), np.empty(w_shape, dtype)
    if dtype == np.int8:
        dw = np.empty(w_shape, np.int64)
    y, dx = (np.empty(shape, dw.dtype) for shape in (geometry.y_shape, x_shape))
    forward, weight_grad, input_grad = plans_of(geometry, layout, dtype)
    works = [
        (forward, lookup.forward(forward, x, w, None, y)),
        (weight_grad, lookup.weight_grad(weight_grad, dout, x, dw, None)),
        (input_grad, lookup.input_grad(input_grad, dout, w, None, dx)),
    ]
    for plan, work in works:
        scratch = workers.Scratch()
        work.task(0, scratch)
        weights = math.prod(w_shape) * computing_type(dw.dtype).itemsize  # copied to lie in order
        table = 0 if geometry.pointwise else lookup._table(geometry, plan.adjoint).nbytes
        assert scratch.nbytes + weights + table <= plan.worker_bytes


@layouts
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_infinity_that_meets_padding_leaves_dw_alone(layout, value):
    x, w = integers_like(1, (2, 2, 5, 6)), np.ones((3, 2, 3, 2))
    dout = integers_like(2, (2, 3, 5, 7))
    dout[1, 2, 0, 3] = value  # an output whose first row of taps is padding
    keywords = {"padding": 1}
    options = {**keywords, "layout": layout, "algorithm": "im2col"}
    dw = ic.conv_weight_grad(laid(dout, layout), laid(x, layout), w.shape, **options)
    finite = np.where(np.isfinite(dout), dout, 0)
    wanted = reference.conv_weight_grad(finite, x, w.shape, **keywords)
    cells = x[1, :, :2, 2:4]  # that taps of rows 1 and 2 meet
    with np.errstate(invalid="ignore"):
        wanted[2, :, 1:] += value * cells
    np.testing.assert_array_equal(dw, wanted)


def test_a_table_serves_all_calls_and_is_changed_by_none():
    geometry = ic.ConvGeometry.from_shapes((1, 2, 4), (3, 2, 3), padding=((2, 0),))
    table = lookup._table(geometry, False)
    expected = [
        [[0, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4], [0, 0, 5, 6], [0, 5, 6, 7], [5, 6, 7, 8]]
    ]
    np.testing.assert_array_equal(table, expected)
    assert lookup._table(geometry, False) is table
    assert not table.flags.writeable
    # of dout (3 filters, 4 outputs): through tap t, cell i meets output i + 2 - t
    np.testing.assert_array_equal(
        lookup._table(geometry, True)[0, :3], [[3, 4, 0, 0], [2, 3, 4, 0], [1, 2, 3, 4]]
    )


def test_threads_that_look_up_the_same_layer_get_the_same_bits():
    rng = np.random.default_rng(5)
    x, w, b = rng.standard_normal((2, 3, 9, 8)), rng.standard_normal((4, 3, 3, 2)), np.ones(4)
    alone = ic.conv(x, w, b, padding=1)
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda _: ic.conv(x, w, b, padding=1), range(200)))
    for y in results:
        np.testing.assert_array_equal(y, alone)


@pytest.mark.parametrize(
    ("sides", "dtype", "shared"),
    [
        ((64, 64, 64), "f4", False),
        ((64, 65, 64), "f4", True),
        ((2, MOST_UNSHARED // 4, 2), "f8", False),
        ((1, 64, 31), "f4", False),
        ((1, 64, 32), "f4", True),
        ((64, 32, 1), "f8", True),
        ((2, 32, 32), "c8", True),
    ],
)
def test_which_products_openblas_may_share(sides, dtype, shared, monkeypatch):
    monkeypatch.setattr(blas, "_is_openblas", lambda: True)
    assert may_share(*sides, np.dtype(dtype)) is shared


def test_of_other_libraries_only_the_smallest_products_are_taken_to_be_whole(monkeypatch):
    monkeypatch.setattr(blas, "_is_openblas", lambda: False)
    assert not may_share(13, 13, 12, np.dtype("f4"))
    assert may_share(13, 13, 13, np.dtype("f4"))


@pytest.mark.parametrize(("filters", "held"), [(20, 0), (21, 3)])
def test_products_that_are_not_shared_leave_the_threads_of_blas_alone(filters, held, monkeypatch):
    x, w = integers_like(1, (1, 12, 12, 10), "f4"), integers_like(2, (filters, 12, 3, 3), "f4")
    if not blas._is_openblas():
        pytest.skip("of other libraries all but the smallest products may be shared")
    holds, hold = [], workers.blas.hold
    monkeypatch.setattr(workers.blas, "hold", lambda: holds.append(hold()))
    y = ic.conv(x, w, padding=1, algorithm="im2col")
    np.testing.assert_array_equal(y, reference.conv(x, w, padding=1))
    ic.conv_weight_grad(y, x, w.shape, padding=1, algorithm="im2col")
    ic.conv_input_grad(y, w, x.shape, padding=1, algorithm="im2col")
    assert len(holds) == held
