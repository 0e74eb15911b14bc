"""Small layers, whose columns are looked up in one step."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

import im2col_conv as ic
from im2col_conv import reference
from im2col_conv.engine import blas, workers
from im2col_conv.engine.blas import MOST_UNSHARED, may_share
from im2col_conv.engine.choice import forward_plan, input_grad_plan, weight_grad_plan
from im2col_conv.engine.im2col import lookup
from im2col_conv.engine.im2col.lookup import MOST_NUMBERS, LookupPlan

from .peak import peak_beyond
from .strategies import integers_like

MIB = 2**20
PYTHON = 40_000  # bytes of tuples, and of arrays without their cells
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
LARGE = [  # that take much of one kind of memory
    ((4, 4, 15, 15), (4, 4, 3, 3), {"padding": ((0, 0), (1, 0))}),  # columns
    ((3, 6, 9, 9), (2, 6, 3, 3), {"padding": 1}),
    ((4, 8, 9, 9), (16, 8, 3, 3), {"padding": 1}),  # a dw of each image
    ((3, 1, 40), (125, 1, 1), {"padding": ((1, 0),)}),  # y of one term
    ((1, 12, 3), (900, 12, 3), {}),  # weights
    ((1, 10, 3), (253, 10, 3), {"stride": 2, "padding": ((1, 0),)}),
    ((1, 3, 24, 24), (64, 3, 3, 3), {"padding": 1}),  # dw that is made again
    ((1, 20, 24, 20), (3, 20, 3, 2), {"stride": 2}),
]
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


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.int64, np.complex128])
@pytest.mark.parametrize("contiguous", [True, False])
def test_a_call_takes_no_more_than_the_plan_says(layout, dtype, contiguous):
    for x_shape, w_shape, keywords in (*LAYERS.values(), *LARGE):
        geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
        dout, x, w = (
            laid(integers_like(n, shape, dtype), layout)
            for n, shape in enumerate((geometry.y_shape, x_shape, w_shape))
        )
        w = integers_like(2, w_shape, dtype)
        if not contiguous:
            dout, x, w = (np.asfortranarray(each) for each in (dout, x, w))
        if np.dtype(dtype).kind in "fc":
            dout.flat[-1] = np.inf
        options = {**keywords, "layout": layout, "algorithm": "im2col"}
        shape = laid(np.empty(x_shape), layout).shape
        calls = (
            lambda x=x, w=w, o=options: ic.conv(x, w, **o),
            lambda d=dout, x=x, w=w, o=options: ic.conv_weight_grad(d, x, w.shape, **o),
            lambda d=dout, w=w, s=shape, o=options: ic.conv_input_grad(d, w, s, **o),
        )
        for plan, call in zip(plans_of(geometry, layout, dtype), calls, strict=True):
            if isinstance(plan, LookupPlan):
                with ic.set_workspace(plan.worker_bytes), ic.set_workers(1):
                    _, taken = peak_beyond(call)
                assert taken <= plan.worker_bytes + PYTHON, (plan, taken)


@layouts
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.complex128])
def test_infinity_that_meets_padding_leaves_dw_alone(layout, value, dtype):
    x, w = integers_like(1, (2, 2, 5, 6), dtype), np.ones((3, 2, 3, 2), dtype)
    dout = integers_like(2, (2, 3, 4, 6), dtype)
    dout[1, 2, 3, 1] = value  # an output whose last row of taps is padding, as is none before it
    keywords = {"padding": ((0, 1), (0, 1))}
    options = {**keywords, "layout": layout, "algorithm": "im2col"}
    dw = ic.conv_weight_grad(laid(dout, layout), laid(x, layout), w.shape, **options)
    finite = np.where(np.isfinite(dout), dout, 0)
    wanted = reference.conv_weight_grad(finite, x, w.shape, **keywords)
    np.testing.assert_array_equal(dw[2, :, 2], wanted[2, :, 2])
    np.testing.assert_array_equal(dw[:2], wanted[:2])
    assert not np.isfinite(dw[2, :, :2]).any()


def test_all_partial_sums_of_a_dw_that_meets_infinity_are_added():
    x, w = integers_like(1, (1, 2, 30, 28)), np.ones((4, 2, 3, 3))
    dout = integers_like(2, (1, 4, 30, 28))
    dout[0, 3, 0, 0] = np.nan
    geometry = ic.ConvGeometry.from_shapes(x.shape, w.shape, padding=1)
    least = plans_of(geometry, dtype=np.float64)[1].worker_bytes
    with ic.set_workspace(least):
        plan = plans_of(geometry, dtype=np.float64, workspace=least)[1]
        assert plan.otherwise.tasks > 1
        dw = ic.conv_weight_grad(dout, x, w.shape, padding=1, algorithm="im2col")
    wanted = reference.conv_weight_grad(np.nan_to_num(dout), x, w.shape, padding=1)
    np.testing.assert_array_equal(dw[:3], wanted[:3])
    np.testing.assert_array_equal(dw[3, :, 0], wanted[3, :, 0])
    assert np.isnan(dw[3, :, 1:, 1:]).all()


@layouts
def test_an_infinite_weight_leaves_cells_alone_that_it_does_not_meet(layout):
    w, dout = np.ones((2, 1, 3)), np.ones((1, 2, 4))
    w[1, 0, 1] = np.inf
    options = {"stride": 2, "layout": layout, "algorithm": "im2col"}
    shape = laid(np.empty((1, 1, 9)), layout).shape
    dx = ic.conv_input_grad(laid(dout, layout), w, shape, **options)
    wanted = [2, np.inf, 4, np.inf, 4, np.inf, 4, np.inf, 2]
    np.testing.assert_array_equal(dx.ravel(), wanted)


def test_no_images_and_one_gradient_alone():
    geometry = ic.ConvGeometry.from_shapes((0, 3, 5, 6), (4, 3, 2, 3))
    assert not any(isinstance(plan, LookupPlan) for plan in plans_of(geometry))
    x, w, dout = np.ones((2, 3, 5, 6)), np.ones((4, 3, 2, 3)), np.ones((2, 4, 4, 4))
    dx, dw, db = ic.conv_grads(dout, x, w, needs=("b",), algorithm="im2col")
    assert (dx, dw) == (None, None)
    np.testing.assert_array_equal(db, np.full(4, 32.0))


@pytest.mark.parametrize(("stride", "looked_up"), [(2, True), (3, False)])
def test_dx_that_would_multiply_zeros_is_scattered(stride, looked_up):
    kernel = (stride, stride)
    geometry = ic.ConvGeometry.from_shapes(
        (1, 400, 2 * stride, 2 * stride), (30, 400, *kernel), stride=stride
    )
    assert isinstance(plans_of(geometry)[2], LookupPlan) is looked_up


@pytest.mark.parametrize(("channels", "looked_up"), [(800, True), (900, False)])
def test_dx_counts_its_zeros_as_work(channels, looked_up):
    geometry = ic.ConvGeometry.from_shapes((1, channels, 10, 10), (30, channels, 2, 2), stride=2)
    plan = plans_of(geometry)[2]  # of 19 and 22 MFLOP, 5 of which are not zero
    assert isinstance(plan, LookupPlan) is looked_up


def test_setting_the_workspace_gives_tables_back():
    ic.conv(np.ones((1, 2, 7, 8)), np.ones((3, 2, 3, 3)), algorithm="im2col")
    assert lookup._table.cache_info().currsize > 0
    with ic.set_workspace(MIB):
        assert lookup._table.cache_info().currsize == 0


def test_a_table_says_where_numbers_stand_and_serves_all_calls():
    geometry = ic.ConvGeometry.from_shapes((1, 2, 4), (3, 2, 3), padding=((2, 0),))
    table = lookup._table(geometry, False)
    expected = [
        [[0, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4], [0, 0, 5, 6], [0, 5, 6, 7], [5, 6, 7, 8]]
    ]
    np.testing.assert_array_equal(table, expected)
    assert lookup._table(geometry, False) is table
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


@pytest.mark.parametrize(
    ("found", "alone"),
    [(["openblas", "openblas"], True), (["openblas", "mkl"], False), (["mkl"], False), ([], False)],
)
def test_of_other_libraries_only_the_smallest_products_are_taken_to_be_whole(
    found, alone, monkeypatch
):
    controllers = [SimpleNamespace(internal_api=name) for name in found]
    monkeypatch.setattr(blas, "_controllers", lambda: controllers)
    monkeypatch.setattr(blas, "_is_openblas", blas._is_openblas.__wrapped__)
    assert not may_share(13, 13, 12, np.dtype("f4"))
    assert may_share(13, 13, 13, np.dtype("f4")) is not alone


def test_dw_of_one_weight_a_filter_is_a_product_with_a_vector():
    geometry = ic.ConvGeometry.from_shapes((1, 1, 40), (64, 1, 1))
    forward, weight_grad, _ = plans_of(geometry)
    assert isinstance(forward, LookupPlan)
    assert not forward.holds_blas
    assert weight_grad.holds_blas


def test_each_group_is_a_product_of_its_own():
    sides = (1, 12, 12, 10), (84, 3, 3, 3)
    together, apart = (
        ic.ConvGeometry.from_shapes(x_shape, w_shape, padding=1, groups=groups)
        for groups, x_shape, w_shape in ((1, sides[0], (84, 12, 3, 3)), (4, *sides))
    )
    assert plans_of(together)[0].holds_blas
    assert not plans_of(apart)[0].holds_blas


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
