"""Depthwise layers: columns that are views of cells with channels innermost, and when."""

import numpy as np
import pytest

import im2col_conv as ic
from im2col_conv import reference
from im2col_conv.engine.choice import input_grad_plan, weight_grad_plan
from im2col_conv.engine.im2col.depthwise import (
    MANY_CHANNELS,
    SHORT_LINE,
    viewed_columns,
)
from im2col_conv.engine.im2col.forward import plan_forward
from im2col_conv.engine.im2col.phased import PhasedPlan
from im2col_conv.engine.plan import workers_for

pytestmark = pytest.mark.usefixtures("in_tiles")

MIB = 2**20

LAYERS = {
    # (N, *size, C), kernel, keywords, run
    "two axes": ((3, 9, 7, 5), (3, 2), {"padding": ((1, 0), (0, 1))}, 7),
    "one axis": ((2, 31, 6), (5,), {"padding": 2}, 31),
    "three axes": ((2, 6, 5, 8, 3), (2, 3, 1), {"padding": (1, 0, 2)}, 12),
    "dilation": ((2, 13, 11, 4), (3, 2), {"padding": (2, 1), "dilation": (2, 3)}, 10),
    "stride": ((2, 12, 17, 6), (3, 4), {"padding": 1, "stride": (2, 3)}, 6),
    "stride and dilation": ((2, 19, 17, 3), (2, 3), {"stride": (1, 2), "dilation": (3, 1)}, 8),
    "phases and dilation": ((2, 7, 25, 4), (2, 3), {"stride": (1, 2), "dilation": (1, 3)}, 10),
    "many channels": ((2, 8, 9, 130), (3, 3), {"padding": (0, 1), "stride": (1, 2)}, 1),
    "several runs and a rest": ((2, 4, 47, 150), (3, 5), {"padding": (1, 2)}, 24),
    "several runs, two phases": ((2, 3, 155, 70), (3, 7), {"stride": (1, 2)}, 38),
    "single cells": ((1, 16, 17, 300), (15, 15), {}, 1),
    "one output a line": ((4, 6, 3, 8), (2, 3), {"padding": (1, 0)}, 1),
    "uneven padding": ((2, 5, 6, 3), (3, 3), {"padding": ((0, 4), (5, 1))}, 10),
}
layers = pytest.mark.parametrize(
    ("shape", "kernel", "keywords", "run"), LAYERS.values(), ids=LAYERS
)


def layer_of(shape, kernel, keywords):
    N, *size, C = shape
    return ic.ConvGeometry.from_shapes((N, C, *size), (C, 1, *kernel), groups=C, **keywords)


def arrays_of(geometry, dtype, layout="channels_first"):
    """Return x, w, b and dout of small whole numbers."""
    rng = np.random.default_rng(5)
    shapes = (geometry.x_shape, geometry.w_shape, (geometry.F,), geometry.y_shape)
    low = 0 if np.dtype(dtype).kind == "u" else -4
    x, w, b, dout = (rng.integers(low, 5, shape).astype(dtype) for shape in shapes)
    if layout == "channels_last":
        x, dout = (np.ascontiguousarray(np.moveaxis(each, 1, -1)) for each in (x, dout))
    return x, w, b, dout


def passes(x, w, b, dout, **keywords):
    keywords = {"groups": len(w), "algorithm": "im2col", **keywords}
    return (ic.conv(x, w, b, **keywords), *ic.conv_grads(dout, x, w, **keywords))


def assert_equal_to_channels_first(found, wanted):
    for name, one, other in zip(("y", "dx", "dw", "db"), found, wanted, strict=True):
        turned = np.moveaxis(one, -1, 1) if name in ("y", "dx") else one
        np.testing.assert_array_equal(turned, other, err_msg=name)
        assert turned.dtype == other.dtype


@layers
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int32, np.uint8])
def test_columns_that_are_views_give_what_the_reference_gives(shape, kernel, keywords, run, dtype):
    geometry = layer_of(shape, kernel, keywords)
    views = viewed_columns(geometry, "channels_last", np.dtype(np.float32), 64 * MIB)
    assert views.run == run
    x, w, b, dout = arrays_of(geometry, dtype)
    if dtype == np.float16:  # sums that it holds
        x, w, dout = (np.clip(each, -1, 1) for each in (x, w, dout))
    given = {"groups": geometry.C, **keywords}
    wanted = (reference.conv(x, w, b, **given), *reference.conv_grads(dout, x, w, **given))
    x, dout = (np.moveaxis(each, 1, -1).copy() for each in (x, dout))
    found = passes(x, w, b, dout, layout="channels_last", **keywords)
    results = [other.astype(one.dtype) for one, other in zip(found, wanted, strict=True)]
    assert_equal_to_channels_first(found, results)


FIRST = {  # (N, *size, C), kernel, keywords; each pass has half a million operations and more
    "two axes": ((2, 17, 13, 77), (3, 4), {"padding": ((1, 0), (2, 1))}),
    "one axis": ((3, 18, 670), (9,), {"padding": (2,)}),
    "three axes": ((2, 5, 9, 8, 50), (2, 3, 3), {"padding": (1, 0, 1)}),
    "stride": ((2, 23, 20, 140), (3, 4), {"padding": 1, "stride": (3, 2)}),
    "stride and dilation": ((3, 21, 18, 70), (3, 3), {"stride": (1, 2), "dilation": (2, 1)}),
}


@pytest.mark.parametrize(("shape", "kernel", "keywords"), FIRST.values(), ids=FIRST)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32])
def test_channels_that_come_first_are_laid_beside_each_other(shape, kernel, keywords, dtype):
    geometry = layer_of(shape, kernel, keywords)
    single = np.dtype(np.float32)
    assert viewed_columns(geometry, "channels_first", single, 64 * MIB) is not None
    strided = max(geometry.stride) > 1
    plan = input_grad_plan("im2col", geometry, "channels_first", single, single, 64 * MIB)
    assert isinstance(plan, PhasedPlan) is strided
    x, w, b, dout = arrays_of(geometry, dtype)
    if dtype == np.float16:  # sums that it holds
        x, w, dout = (np.clip(each, -1, 1) for each in (x, w, dout))
    given = {"groups": geometry.C, **keywords}
    wanted = (reference.conv(x, w, b, **given), *reference.conv_grads(dout, x, w, **given))
    for one, other in zip(passes(x, w, b, dout, **keywords), wanted, strict=True):
        np.testing.assert_array_equal(one, other.astype(one.dtype))
    with ic.set_workspace(2**18), ic.set_workers(3):
        parts = passes(x, w, b, dout, **keywords)
    for one, other in zip(parts, wanted, strict=True):
        np.testing.assert_array_equal(one, other.astype(one.dtype))


def test_integers_of_any_line_are_laid_beside_each_other():
    geometry = layer_of((2, 30, 33, 48), (3, 3), {"padding": 1})
    x, w, b, dout = arrays_of(geometry, np.int64)
    x[0, 0, 0], w[0], dout[-1, -1, -1] = 2**61 + 1, 3**30, -(2**60) - 7  # modulo 2**64
    last = [np.moveaxis(each, 1, -1).copy() for each in (x, dout)]
    wanted = passes(last[0], w, b, last[1], layout="channels_last", padding=1)
    assert_equal_to_channels_first(wanted, passes(x, w, b, dout, padding=1))
    whole = reference.conv(x, w, b, padding=1, groups=48)
    np.testing.assert_array_equal(ic.conv(x, w, b, padding=1, groups=48), whole)


@pytest.mark.parametrize(
    ("line", "channels", "dtype", "viewed"),
    [
        (SHORT_LINE - 1, 131, np.float32, True),  # 503,040 operations
        (SHORT_LINE, 129, np.float32, False),
        (SHORT_LINE, 129, np.int64, True),
        (SHORT_LINE - 1, 130, np.float32, False),  # 499,200
        (SHORT_LINE, 119, np.int64, False),  # 487,424
        (SHORT_LINE - 1, 131, np.complex64, False),
    ],
)
def test_channels_are_laid_beside_each_other_where_that_pays(line, channels, dtype, viewed):
    geometry = layer_of((2, 16, line + 3, channels), (1, 4), {})
    views = viewed_columns(geometry, "channels_first", np.dtype(dtype), 64 * MIB)
    assert (views is not None) is viewed


@pytest.mark.parametrize("layer", sorted(LAYERS.keys() - {"single cells"}))  # long as columns
@pytest.mark.parametrize("workspace", [2**15, 2**18])
def test_smaller_tiles_give_the_same(layer, workspace):
    shape, kernel, keywords, _ = LAYERS[layer]
    arrays = arrays_of(layer_of(shape, kernel, keywords), np.float32, "channels_last")
    whole = passes(*arrays, layout="channels_last", **keywords)
    with ic.set_workspace(workspace):
        parts = passes(*arrays, layout="channels_last", **keywords)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("stride", [1, 2])
def test_arrays_need_not_follow_any_order_in_memory(stride):
    keywords = {"padding": (1, 0), "stride": stride}
    geometry = layer_of((3, 9, 8, 5), (3, 2), keywords)
    x, w, b, dout = arrays_of(geometry, np.float32)
    wanted = passes(x, w, b, dout, **keywords)
    # channels last in name only, and every second number of a larger array
    turned = [np.moveaxis(each, 1, -1) for each in (x, dout)]
    assert_equal_to_channels_first(
        passes(turned[0], w, b, turned[1], layout="channels_last", **keywords), wanted
    )
    apart = [np.repeat(each, 2, axis=-1)[..., ::2] for each in turned]
    keywords |= {"layout": "channels_last", "groups": 5, "algorithm": "im2col"}
    out = np.zeros((*turned[1].shape[:-1], 10), np.float32)[..., ::2]
    ic.conv(apart[0], w, b, out=out, **keywords)
    np.testing.assert_array_equal(np.moveaxis(out, -1, 1), wanted[0])
    _, dw, _ = ic.conv_grads(apart[1], apart[0], w, **keywords)
    np.testing.assert_array_equal(dw, wanted[2])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("stride", [1, 2])
def test_an_infinite_gradient_meets_no_padding(dtype, value, stride):
    keywords = {"padding": (2, 1), "stride": stride}
    geometry = layer_of((2, 6, 7, 4), (3, 3), keywords)
    x, w, _, dout = arrays_of(geometry, dtype)
    x[x == 0] = 1  # infinity times a zero of x is NaN
    dout[1, 2, 0, 1] = value
    keywords |= {"groups": 4, "algorithm": "im2col"}
    wanted = ic.conv_weight_grad(dout, x, w.shape, **keywords)
    x, dout = (np.moveaxis(each, 1, -1).copy() for each in (x, dout))
    found = ic.conv_weight_grad(dout, x, w.shape, layout="channels_last", **keywords)
    np.testing.assert_array_equal(found, wanted)
    assert 0 < np.isfinite(found[2]).sum() < 9  # taps that meet padding there stay finite


@pytest.mark.parametrize(
    ("shape", "kernel", "keywords", "phases", "unseen"),
    [
        ((2, 9, 11, 5), (3, 4), {"stride": (2, 3), "padding": (1, 2)}, 6, 0),
        ((2, 9, 11, 5), (2, 2), {"stride": (1, 3)}, 2, 1),  # every third column sees no tap
        ((2, 9, 14, 5), (3, 2), {"stride": (2, 4), "dilation": (1, 2)}, 4, 4),  # taps 0 and 2 of 4
        ((2, 12, 13, 5), (3, 3), {"stride": 2, "dilation": (2, 3)}, 2, 2),
        ((2, 7, 8, 5), (1, 1), {"stride": 2, "padding": (2, 3)}, 1, 3),  # more than a window
        ((2, 8, 9, 5), (3, 3), {"stride": (5, 1), "padding": ((0, 4), (1, 1))}, 3, 2),
        ((3, 17, 4), (5,), {"stride": 2, "padding": 2}, 2, 0),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_dx_with_a_stride_is_made_phase_by_phase(shape, kernel, keywords, phases, unseen, dtype):
    geometry = layer_of(shape, kernel, keywords)
    single = np.dtype(np.float32)
    plan = input_grad_plan("im2col", geometry, "channels_last", single, single, 64 * MIB)
    assert (len(plan.phases), len(plan.unseen)) == (phases, unseen)
    _, w, _, dout = arrays_of(geometry, dtype)
    given = {"groups": geometry.C, **keywords}
    wanted = reference.conv_input_grad(dout, w, geometry.x_shape, **given)
    found = ic.conv_input_grad(
        np.moveaxis(dout, 1, -1).copy(),
        w,
        shape,
        layout="channels_last",
        algorithm="im2col",
        **given,
    )
    np.testing.assert_array_equal(np.moveaxis(found, -1, 1), wanted.astype(found.dtype))


@pytest.mark.parametrize(("stride", "phased"), [((4, 4), True), ((1, 17), False), ((1, 1), False)])
def test_dx_of_many_phases_is_scattered(stride, phased):
    geometry, single = layer_of((2, 19, 30, 20), (2, 2), {"stride": stride}), np.dtype(np.float32)
    plan = input_grad_plan("im2col", geometry, "channels_last", single, single, 64 * MIB)
    assert isinstance(plan, PhasedPlan) is phased


def test_phases_are_taken_where_all_of_them_are_views_and_fit_the_workspace():
    single = np.dtype(np.float32)
    geometry = layer_of((1, 13, 21, 155), (12, 12), {"stride": (4, 4)})  # mostly weights
    kinds = set()
    for workspace in range(50_000, 1_000_000, 5_000):
        plan = input_grad_plan("im2col", geometry, "channels_last", single, single, workspace)
        kinds.add(type(plan))
        if isinstance(plan, PhasedPlan):
            assert plan.worker_bytes + plan.shared_bytes <= workspace
            assert all(phase.plan.views for phase in plan.phases)
    assert len(kinds) == 2


def test_cells_that_see_no_tap_get_the_bias_of_a_transposed_layer():
    y = np.ones((1, 2, 3, 4), np.float32)  # channels last
    w, b = np.full((4, 1, 1, 2), 3, np.float32), np.array([5, 6, 7, 8], np.float32)
    x = ic.conv_transpose(y, w, b, stride=3, groups=4, layout="channels_last")
    wanted = np.tile(b, (1, 4, 8, 1))
    wanted[:, ::3, [0, 1, 3, 4, 6, 7]] += 3
    np.testing.assert_array_equal(x, wanted)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_results_do_not_depend_on_the_workers(dtype):
    geometry = layer_of((5, 40, 41, 70), (3, 3), {"padding": 1})
    rng = np.random.default_rng(2)
    shapes = (geometry.x_shape, geometry.w_shape, (70,), geometry.y_shape)
    x, w, b, dout = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    x, dout = (np.moveaxis(each, 1, -1).copy() for each in (x, dout))
    results = []
    for workers in (1, 2, 5):
        with ic.set_workers(workers):
            results.append(passes(x, w, b, dout, layout="channels_last", padding=1))
    for other in results[1:]:
        for one, again in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, again)


def test_columns_are_views_only_where_that_is_cheap():
    single = np.dtype(np.float32)
    geometry = layer_of((2, 30, 33, 48), (3, 3), {"padding": 1})
    assert viewed_columns(geometry, "channels_last", single, 64 * MIB) is not None
    assert viewed_columns(geometry, "channels_first", single, 64 * MIB) is None
    assert viewed_columns(geometry, "channels_last", np.dtype(np.complex64), 64 * MIB) is None
    assert viewed_columns(geometry, "channels_last", single, 2**12) is None
    grouped = ic.ConvGeometry.from_shapes((2, 48, 30, 33), (96, 1, 3, 3), groups=48)
    assert viewed_columns(grouped, "channels_last", single, 64 * MIB) is None  # two filters each
    one = ic.ConvGeometry.from_shapes((2, 1, 30, 33), (1, 1, 3, 3))
    assert viewed_columns(one, "channels_last", single, 64 * MIB) is None
    sparse = layer_of((1, 200, 200, 8), (2, 2), {"dilation": 150})  # 50 x 50 windows of four cells
    assert viewed_columns(sparse, "channels_last", single, 64 * MIB) is None


@pytest.mark.parametrize(
    ("channels", "stride", "phases"),
    [(MANY_CHANNELS - 1, 2, 2), (MANY_CHANNELS, 2, 1), (MANY_CHANNELS - 1, 1, 1)],
)
def test_few_channels_a_stride_apart_are_stored_by_phases(channels, stride, phases):
    geometry = layer_of((2, 30, 33, channels), (3, 3), {"stride": (1, stride)})
    views = viewed_columns(geometry, "channels_last", np.dtype(np.float32), 64 * MIB)
    assert views.phases == phases
    assert views.run == (1 if phases < stride else geometry.out[-1])


@pytest.mark.parametrize(("channels", "tasks"), [(91, 1), (92, 4)])  # 19.8 and 20.01 million
def test_cells_count_as_work_that_is_worth_sharing(channels, tasks):
    geometry, single = layer_of((4, 40, 41, channels), (3, 5), {}), np.dtype(np.float32)
    for plan in (
        plan_forward(geometry, "channels_last", single, single, 64 * MIB),
        weight_grad_plan("im2col", geometry, "channels_last", single, single, single, 64 * MIB),
    ):
        assert (plan.tasks, workers_for(plan, 2, 64 * MIB)) == (tasks, min(tasks, 2))
