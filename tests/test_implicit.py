"""The implicit way against the spine: equal on integers, whatever the geometry and the tiles."""

import ctypes
import threading
import time
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import im2col_conv as ic
from im2col_conv.engine import blas, choice, workers
from im2col_conv.engine.arithmetic import SMALL_PRODUCT
from im2col_conv.engine.implicit import arrangements, forward, input_grad, spread, weight_grad
from im2col_conv.engine.implicit.bands import Bands, bands_for
from im2col_conv.engine.implicit.inner import ChannelsInner
from im2col_conv.engine.implicit.outer import ChannelsOuter
from im2col_conv.engine.implicit.pairs import Axis, axes_between, places_of
from im2col_conv.engine.implicit.pointwise import Pointwise
from im2col_conv.engine.implicit.shifted import Shifted
from im2col_conv.engine.implicit.spread import Spread
from im2col_conv.engine.implicit.tile import Tile, sums_of_rows
from im2col_conv.engine.implicit.unrolled import Unrolled
from im2col_conv.engine.implicit.weights import Blockwise, Whole
from im2col_conv.engine.openblas import private_blas, why_not
from im2col_conv.engine.products import Bias, Operand, Products
from im2col_conv.engine.rule import WIDE
from im2col_conv.engine.workers import Scratch, drop_scratch
from im2col_conv.geometry import geometry_of

from .peak import peak_beyond

needs_blas = pytest.mark.skipif(private_blas() is None, reason=str(why_not()))

# Of short products, whatever the kernel: long ones are tested in test_long_products.py.
arrangement_for = partial(arrangements.arrangement_for, packs=False)
plan_forward = partial(forward.plan_forward, packs=False)
plan_weight_grad = partial(weight_grad.plan_weight_grad, packs=False)
plan_input_grad = partial(input_grad.plan_input_grad, packs=False)


@pytest.fixture(autouse=True, scope="module")
def _short_products():
    with pytest.MonkeyPatch.context() as patch:
        if private_blas() is not None:
            patch.setattr(private_blas(), "packs", False)
        yield


LAYERS = [
    # x_shape, w_shape, keywords, arrangement
    (
        (3, 70, 9, 13),
        (66, 70, 3, 2),
        {"padding": ((1, 2), (0, 1)), "stride": (2, 1)},
        ChannelsInner,
    ),
    ((2, 70, 11, 8), (130, 35, 4, 3), {"stride": (1, 3), "groups": 2, "padding": 2}, ChannelsInner),
    ((2, 150, 17), (20, 150, 3), {"padding": 1, "dilation": 2}, ChannelsInner),
    ((2, 530, 4, 5), (66, 530, 3, 3), {"padding": 1}, ChannelsInner),  # uneven pieces of both
    # windows whole, in every pass: uneven pieces, one chunk, three axes; and y alone
    ((2, 40, 5, 4), (132, 40, 3, 2), {"padding": ((1, 0), (0, 1)), "stride": (2, 3)}, Unrolled),
    ((1, 106, 3, 5), (130, 106, 3, 3), {"padding": 1, "dilation": (1, 2)}, Unrolled),
    ((1, 70, 11), (300, 70, 7), {"padding": 1, "stride": 2}, Unrolled),
    (
        (1, 34, 3, 4, 5),
        (131, 34, 2, 3, 3),
        {"padding": (0, 1, 1), "stride": (1, 2, 2), "dilation": (2, 1, 1)},
        Unrolled,
    ),
    ((1, 76, 9, 13), (260, 76, 3, 3), {"padding": (1, 1)}, Unrolled),
    ((2, 64, 9, 6), (66, 64, 4, 2), {"padding": 1}, ChannelsInner),
    ((1, 40, 5, 6, 7), (9, 40, 3, 3, 2), {"padding": 1, "stride": (1, 2, 1)}, ChannelsInner),
    ((4, 3, 31, 29), (25, 3, 3, 5), {"stride": (2, 3), "padding": 1}, Spread),
    ((5, 6, 14, 11), (70, 6, 5, 2), {"dilation": (1, 2)}, ChannelsOuter),
    ((2, 8, 6, 7, 40), (6, 4, 2, 3, 3), {"groups": 2, "dilation": (1, 2, 1)}, ChannelsOuter),
    ((2, 5, 33), (7, 5, 4), {"stride": 3, "padding": ((2, 1),)}, Spread),
    ((2, 1, 170), (70, 1, 9), {"padding": 4}, Spread),  # pieces of a line, blocks of filters
    ((3, 3, 8, 41), (66, 3, 3, 5), {"padding": (2, 9), "dilation": (2, 1)}, Spread),
    ((2, 3, 5, 6, 31), (9, 3, 2, 3, 3), {"padding": (1, 1, 4), "stride": (1, 2, 2)}, Spread),
    # large kernels of few channels, of one more, and along one axis
    ((3, 4, 40, 37), (9, 4, 12, 7), {"stride": (3, 2), "padding": (5, 0)}, Spread),
    ((2, 8, 30, 47), (6, 4, 26, 9), {"groups": 2, "stride": (1, 4), "padding": (3, 2)}, Spread),
    ((3, 5, 24, 27), (9, 5, 8, 7), {"stride": (3, 2), "padding": (0, 4)}, ChannelsInner),
    ((2, 4, 300), (7, 4, 51), {"stride": 2, "padding": 20}, ChannelsInner),
    ((2, 9, 13, 40), (70, 9, 3, 3), {"padding": (2, 1)}, ChannelsOuter),
    # y turned: a bias of two blocks, rows that see padding alone, groups, three axes, two runs
    ((2, 19, 5, 29), (80, 19, 3, 3), {"padding": (2, 1)}, ChannelsOuter),
    ((2, 18, 4, 23), (16, 18, 3, 3), {"padding": ((4, 1), (1, 5))}, ChannelsOuter),
    ((1, 18, 3, 4, 22), (32, 9, 2, 3, 4), {"groups": 2, "padding": 1}, ChannelsOuter),
    ((2, 1, 29, 71), (80, 1, 15, 14), {"padding": (3, 2), "stride": (3, 1)}, Spread),
    ((2, 3, 29, 71), (80, 3, 11, 9), {"padding": (3, 2), "stride": (3, 2)}, ChannelsOuter),
    ((2, 6, 5, 9, 24), (32, 3, 4, 4, 5), {"groups": 2, "padding": (1, 0, 1)}, ChannelsOuter),
    ((2, 70, 6, 43), (66, 70, 3, 3), {"padding": (1, 2)}, ChannelsInner),  # long lines
    ((3, 10, 19, 13), (10, 1, 3, 2), {"groups": 10, "padding": 1, "stride": (2, 1)}, Bands),
    ((2, 4, 9, 16, 5), (4, 1, 2, 3, 3), {"groups": 4, "dilation": (1, 3, 1)}, Bands),
    ((2, 6, 8, 21), (6, 1, 3, 3), {"groups": 6, "stride": (1, 2), "padding": 3}, Bands),
    (
        (5, 3, 31, 11),
        (3, 1, 4, 3),
        {"groups": 3, "stride": (3, 2), "padding": ((1, 2), (4, 0))},
        Bands,
    ),
    ((17, 4, 9, 10), (4, 1, 3, 2), {"groups": 4, "stride": (1, 2), "padding": 1}, Bands),
    ((2, 5, 17, 26), (5, 1, 3, 4), {"groups": 5, "padding": ((2, 1), (0, 3))}, Bands),  # long lines
    ((3, 4, 9, 50), (4, 1, 2, 5), {"groups": 4, "stride": (1, 2), "dilation": (2, 1)}, Bands),
    ((3, 130, 9, 13), (70, 130, 1, 1), {}, Pointwise),  # one chunk of filters, uneven pieces
    ((2, 256, 7, 5), (192, 128, 1, 1), {"groups": 2}, Pointwise),  # several chunks of C
    ((2, 300, 31), (128, 300, 1), {}, Pointwise),
    ((3, 512, 5, 7), (576, 512, 1, 1), {}, Pointwise),  # many weights; rows in one set
    ((3, 70, 9, 13), (130, 70, 1, 1), {}, Pointwise),  # more filters: dw turns x, not dout
    ((2, 256, 7, 5), (384, 128, 1, 1), {"groups": 2}, Pointwise),  # chunks of C
    ((2, 128, 31), (300, 128, 1), {}, Pointwise),
    ((3, 70, 1, 1), (66, 70, 1, 1), {}, Pointwise),  # a line of one position
    ((2, 1, 5, 6), (1, 1, 1, 1), {"groups": 1}, Pointwise),
    ((3, 1, 9, 30), (1, 1, 3, 2), {"padding": 1}, Spread),  # one plane for one plane
    # many images, which lie cell by cell where lines are short
    ((20, 3, 9, 11), (5, 3, 3, 2), {"stride": (2, 1), "padding": (1, 2)}, Spread),
    ((7, 2, 9, 8), (70, 2, 2, 3), {"stride": (1, 2), "padding": (0, 3), "dilation": 2}, Spread),
    ((6, 1, 12, 7), (3, 1, 5, 3), {"stride": 3, "padding": (4, 5)}, Spread),
    ((18, 1, 12, 7), (3, 1, 5, 3), {"stride": 3, "padding": (4, 5)}, ChannelsOuter),
    ((19, 3, 17), (4, 3, 5), {"stride": 2, "padding": 1}, Spread),
    ((16, 2, 3, 4, 5), (3, 2, 2, 1, 2), {"stride": (1, 2, 1), "padding": 1}, Spread),
    # several groups in a tile: lines of all images or of one, in rows of filters or not
    ((3, 21, 9, 11), (14, 3, 5, 2), {"groups": 7, "padding": (2, 1)}, ChannelsOuter),
    ((9, 35, 6, 7), (40, 7, 3, 2), {"groups": 5, "padding": ((0, 2), (1, 0))}, ChannelsOuter),
    ((2, 35, 6, 7, 23), (80, 7, 2, 3, 2), {"groups": 5, "padding": (1, 1, 2)}, ChannelsOuter),
    ((17, 12, 9, 10), (18, 2, 3, 2), {"groups": 6, "stride": (1, 2), "padding": 2}, ChannelsOuter),
    ((17, 12, 9, 10), (18, 2, 3, 2), {"groups": 6, "stride": (2, 1), "padding": 2}, ChannelsOuter),
    ((2, 5, 9, 27), (15, 1, 2, 3), {"groups": 5, "padding": 1}, ChannelsOuter),
    ((2, 24, 131), (16, 3, 9), {"groups": 8, "stride": 2, "padding": 3}, Spread),
    ((2, 210, 7, 9), (201, 70, 3, 2), {"groups": 3, "padding": (1, 2)}, ChannelsInner),
    ((2, 156, 5, 31), (69, 52, 2, 3), {"groups": 3, "stride": (1, 2)}, ChannelsInner),
    ((2, 156, 5, 45), (69, 52, 2, 3), {"groups": 3, "stride": (1, 2)}, ChannelsInner),  # long
    # lines of each phase: of one image, and by rows; of all, one without cells; groups; other axes
    ((2, 9, 13, 80), (70, 9, 3, 4), {"padding": (2, 1), "stride": (2, 3)}, ChannelsOuter),
    ((2, 19, 7, 61), (80, 19, 3, 3), {"padding": ((2, 0), (1, 3)), "stride": 2}, ChannelsOuter),
    ((9, 8, 14, 11), (70, 8, 5, 3), {"stride": (2, 3), "dilation": (1, 2)}, ChannelsOuter),
    ((8, 17, 6, 2), (5, 17, 2, 3), {"stride": 3, "padding": (1, 4)}, ChannelsOuter),
    ((3, 24, 9, 13), (16, 3, 3, 5), {"groups": 8, "stride": (1, 2), "padding": 1}, ChannelsOuter),
    ((2, 28, 9, 57), (32, 14, 3, 2), {"groups": 2, "stride": (1, 2), "padding": 1}, ChannelsOuter),
    ((2, 18, 131), (5, 18, 5), {"stride": 2, "padding": 3}, ChannelsOuter),
    (
        (1, 12, 3, 6, 50),
        (16, 6, 2, 3, 3),
        {"groups": 2, "stride": (1, 2, 2), "padding": 1, "dilation": (2, 1, 1)},
        ChannelsOuter,
    ),
    # rows of outputs that see padding alone
    ((3, 2, 1, 7), (4, 2, 1, 2), {"stride": 3, "padding": ((1, 0), (2, 1))}, Spread),
    ((2, 5, 4, 3, 6), (7, 5, 1, 1, 1), {"dilation": 2}, Pointwise),
]


def whole(rng, shape, dtype=np.float64):
    return rng.integers(-4, 5, shape).astype(dtype)


def all_passes(x, w, b, dout, **keywords):
    return (ic.conv(x, w, b, **keywords), *ic.conv_grads(dout, x, w, **keywords))


@needs_blas
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize(("x_shape", "w_shape", "keywords", "arrangement"), LAYERS)
def test_equals_the_spine(x_shape, w_shape, keywords, arrangement, dtype, layout):
    rng = np.random.default_rng(1)
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    assert isinstance(arrangement_for(geometry, "channels_first", "y"), arrangement)
    small = 1 if dtype == np.float16 else 4  # sums that float16 holds
    x, w, b, dout = (
        np.clip(whole(rng, shape), -small, small).astype(dtype)
        for shape in (x_shape, w_shape, w_shape[:1], geometry.y_shape)
    )
    if layout == "channels_last":
        x, dout = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, dout))
    one = all_passes(x, w, b, dout, layout=layout, algorithm="implicit", **keywords)
    other = all_passes(x, w, b, dout, layout=layout, algorithm="im2col", **keywords)
    for ours, theirs in zip(one, other, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("w_shape", "size", "turned"),
    [
        ((16, 18, 3, 3), (9, 65), True),  # lines of 63 outputs
        ((16, 18, 3, 3), (9, 66), False),  # a whole block of outputs
        ((24, 18, 3, 3), (9, 65), False),  # filters that fill no line of the cache
        ((16, 17, 3, 3), (9, 65), False),  # shallow windows
        ((16, 18, 3, 3), (9, 21), False),  # short lines, of all images
        ((16, 60, 3), (65,), False),  # along one axis
        ((16, 1, 14, 15), (14, 77), True),  # spread
        ((16, 1, 14, 14), (14, 76), False),
    ],
)
def test_y_is_made_in_rows_where_lines_are_no_whole_block(w_shape, size, turned):
    geometry = ic.ConvGeometry.from_shapes((2, w_shape[1], *size), w_shape)
    assert arrangement_for(geometry, "channels_first", "y").by_rows is turned
    assert not arrangement_for(geometry, "channels_first", "dx").by_rows
    assert not arrangement_for(geometry, "channels_first", "dout.T").by_rows


@pytest.mark.parametrize(("kernel", "taps"), [(7, [7]), (11, [6, 5]), (23, [8, 8, 7])])
def test_windows_too_deep_for_a_product_without_copies_are_cut_in_runs(kernel, taps):
    axes = Axis(1, kernel, 0, kernel, 1, 1), Axis(64, 64 + 8, 0, 9, 1, 1)
    lines = spread._Lines(Tile(axes, images=1, C=3, F=70), interleaved=False, by_rows=True)
    assert lines.depth.ravel().tolist() == [27 * each for each in taps]
    assert 64 * 64 * lines.depth.max() <= SMALL_PRODUCT


@needs_blas
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize(("x_shape", "w_shape", "keywords", "arrangement"), LAYERS)
def test_nothing_that_lay_in_the_buffers_is_read(
    x_shape, w_shape, keywords, arrangement, layout, monkeypatch
):
    def full_of_nan(shape, dtype):
        return np.full(shape, 255, dtype)  # bytes, which as floats are NaN

    rng = np.random.default_rng(3)
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    x, w, dout = (whole(rng, shape) for shape in (x_shape, w_shape, geometry.y_shape))
    if layout == "channels_last":
        x, dout = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, dout))
    keywords = {"layout": layout, **keywords}
    expected = all_passes(x, w, None, dout, algorithm="im2col", **keywords)
    drop_scratch()
    monkeypatch.setattr(workers, "aligned", full_of_nan)
    found = all_passes(x, w, None, dout, algorithm="implicit", **keywords)
    drop_scratch()
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@needs_blas
def test_gradients_made_apart_do_not_add_up_in_memory():
    shapes = (1, 300, 1001, 3), (64, 3, 11, 11), (1, 73, 248, 64)
    x, w, dout = (np.ones(shape, np.float32) for shape in shapes)

    def grads():
        keywords = {"stride": 4, "layout": "channels_last", "algorithm": "implicit"}
        return ic.conv_grads(dout, x, w, **keywords)

    with ic.set_workers(3), ic.set_workspace(2**21):  # which holds dw of three, or dx of two
        grads()  # lists of products
        drop_scratch()
        _, found = peak_beyond(grads)
    assert found <= 2**21


@needs_blas
@pytest.mark.parametrize(
    ("x_shape", "filters", "workspace"),
    [((1, 128, 18, 34), 64, 2**20), ((2, 128, 30, 31), 128, 2**21)],
)
@pytest.mark.parametrize("packs", [False, True])
def test_a_worker_who_makes_both_gradients_stays_inside_the_workspace(
    x_shape, filters, workspace, packs, monkeypatch
):
    monkeypatch.setattr(private_blas(), "packs", packs)
    x, w = np.ones(x_shape, np.float32), np.ones((filters, 128, 3, 3), np.float32)
    dout = np.ones((x_shape[0], filters, *x_shape[2:]), np.float32)

    def grads():
        return ic.conv_grads(dout, x, w, padding=1, algorithm="implicit")

    with ic.set_workers(1), ic.set_workspace(workspace):
        grads()  # lists of products
        drop_scratch()
        _, found = peak_beyond(grads)
    assert found <= workspace


@needs_blas
@given(st.data())
def test_equals_the_spine_for_any_geometry(data):
    ndim = data.draw(st.integers(1, 3))
    groups = data.draw(st.integers(1, 3))
    C, F = (groups * data.draw(st.sampled_from([1, 2, 5, 33, 70])) for _ in range(2))
    if data.draw(st.booleans()):
        groups = F = C
    axes = st.tuples(*[st.integers(1, 3)] * ndim)
    kernel, stride, dilation = data.draw(axes), data.draw(axes), data.draw(axes)
    pads = st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * ndim)
    size = data.draw(st.tuples(*[st.integers(1, 9)] * ndim))
    shape = (data.draw(st.integers(0, 3)), C, *size)
    try:
        geometry = geometry_of(
            shape, (F, C // groups, *kernel), stride, data.draw(pads), dilation, groups
        )
    except ValueError:
        return
    rng = np.random.default_rng(0)
    x, w, b, dout = (
        whole(rng, s) for s in (geometry.x_shape, geometry.w_shape, F, geometry.y_shape)
    )
    keywords = {
        "stride": stride,
        "padding": geometry.padding,
        "dilation": dilation,
        "groups": groups,
    }
    with ic.set_workers(2):
        one = all_passes(x, w, b, dout, algorithm="implicit", **keywords)
    for ours, theirs in zip(
        one, all_passes(x, w, b, dout, algorithm="im2col", **keywords), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("arrangement", "w_shape", "kind"),
    [
        (ChannelsInner(False, False, 1), (1, 64, 70, 3, 3), Whole),
        (ChannelsInner(False, False, 1), (2, 64, 70, 3, 3), Whole),
        (ChannelsInner(False, False, 1), (2, 64, 150, 3, 3), Blockwise),  # many
        (ChannelsInner(False, False, 1), (1, 65, 70, 3, 3), Blockwise),
        (ChannelsInner(False, False, 1), (1, 64, 300, 3, 3), Blockwise),  # many
        (ChannelsInner(False, False, 1), (1, 64, 64, 4, 2), Whole),  # in the same sets of a cache
        (Pointwise(by_rows=True), (1, 70, 130, 1, 1), Whole),
        (Pointwise(by_rows=True), (1, 128, 130, 1, 1), Blockwise),
        (Pointwise(by_rows=True), (1, 64, 512, 1, 1), Blockwise),  # many
    ],
)
def test_one_small_block_of_weights_is_arranged_before_work_is_shared(arrangement, w_shape, kind):
    weights = np.ones(w_shape, np.float32)
    arranged = arrangement.forward_weights(weights, weights.dtype, Scratch().array)
    assert type(arranged) is kind
    if isinstance(arrangement, ChannelsInner):
        turned = weights.swapaxes(1, 2)  # C filters of F channels
        arranged = arrangement.input_grad_weights(turned, weights.dtype, Scratch().array)
        assert type(arranged) is kind


@pytest.mark.parametrize(
    ("by_rows", "w_shape", "kind"),
    [(True, (1, 512, 512), Blockwise), (True, (1, 511, 512), Whole), (False, (1, 512, 512), Whole)],
)
def test_many_pointwise_weights_are_copied_for_dx_by_rows(by_rows, w_shape, kind):
    weights = np.ones(w_shape, np.float32)
    arrangement = Pointwise(by_rows=by_rows)
    arranged = arrangement.input_grad_weights(weights, weights.dtype, Scratch().array)
    assert type(arranged) is kind


@needs_blas
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "alone", "many"),
    [
        ((1, 64, 56, 50), (64, 64, 3, 3), True, False),
        ((1, 256, 14, 13), (270, 256, 3, 3), False, True),
        ((1, 64, 30, 61), (56, 64, 3, 3), True, False),
        ((1, 64, 30, 47), (56, 64, 3, 3), False, False),  # 91 MFLOP
        ((2, 16, 120, 128), (24, 16, 3, 3), True, False),
        ((1, 200, 28, 29), (128, 200, 3, 3), True, True),
    ],
)
@pytest.mark.parametrize("packs", [False, True])
def test_two_workers_do_not_begin_with_the_same_copies(x_shape, w_shape, alone, many, packs):
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, padding=1)
    float32 = np.dtype(np.float32)
    plan = forward.plan_forward(geometry, "channels_first", float32, 2**26, packs=packs)
    assert (plan.at_product, plan.many_weights) == (alone, many)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "stride", "alone"),
    [
        ((1, 200, 28, 28), (128, 200, 3, 3), 1, True),
        ((1, 230, 28, 28), (128, 230, 3, 3), 1, False),  # many weights
        ((8, 64, 56, 112), (64, 64, 3, 3), (1, 2), False),  # cells apart
        ((8, 64, 56, 56), (64, 64, 3, 3), 1, True),  # as many outputs
    ],
)
def test_shifted_planes_are_copied_alone_where_they_are_few(x_shape, w_shape, stride, alone):
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, stride=stride, padding=1)
    float32 = np.dtype(np.float32)
    plan = forward.plan_forward(geometry, "channels_first", float32, 2**26, packs=True)
    assert plan.at_product == alone


@needs_blas
def test_help_is_asked_for_when_the_first_product_begins(monkeypatch):
    events, loaded, ask = [], forward.loaded, workers.pool.ask
    monkeypatch.setattr(forward, "loaded", lambda *given: events.append("loads") or loaded(*given))
    monkeypatch.setattr(workers.pool, "ask", lambda *given: events.append("asks") or ask(*given))
    rng = np.random.default_rng(4)
    x, w = (whole(rng, shape) for shape in ((1, 64, 56, 50), (64, 64, 3, 3)))
    with ic.set_workers(2):
        y = ic.conv(x, w, padding=1, algorithm="implicit")
    assert events[:2] == ["loads", "asks"]
    assert events.count("asks") == 1
    np.testing.assert_array_equal(y, ic.conv(x, w, padding=1, algorithm="im2col"))


@needs_blas
def test_a_helper_loads_cells_while_the_caller_arranges_weights(monkeypatch):
    begun, first = threading.Event(), {}
    caller, part, loaded = threading.get_ident(), Blockwise.part, forward.loaded

    def note(what, call):
        def noted(*arguments):
            here = threading.get_ident()
            first.setdefault("caller" if here == caller else "helper", what)
            if here == caller:
                assert begun.wait(10)
            begun.set()
            return call(*arguments)

        return noted

    monkeypatch.setattr(Blockwise, "part", note("weights", part))
    monkeypatch.setattr(forward, "loaded", note("cells", loaded))
    rng = np.random.default_rng(8)
    x, w = (whole(rng, shape) for shape in ((1, 256, 14, 13), (270, 256, 3, 3)))
    with ic.set_workers(2):
        y = ic.conv(x, w, padding=1, algorithm="implicit")
    assert first == {"caller": "weights", "helper": "cells"}
    assert not any(scratch.of_helper for scratch in workers._kept)
    np.testing.assert_array_equal(y, ic.conv(x, w, padding=1, algorithm="im2col"))


@needs_blas
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "keywords"),
    [
        ((4, 64, 40, 30), (96, 64, 3, 3), {"padding": 1}),
        ((2, 300, 9, 8), (270, 300, 3, 3), {"padding": 1}),  # weights that workers share
        ((32, 3, 33, 31), (16, 3, 5, 5), {"stride": (1, 2)}),
        ((4, 64, 57, 43), (64, 1, 3, 3), {"padding": 1, "groups": 64}),
        ((3, 130, 29, 31), (70, 130, 1, 1), {}),
        ((1, 512, 7, 7), (1024, 512, 1, 1), {}),  # chunks of channels
    ],
)
def test_same_bits_for_any_number_of_workers(x_shape, w_shape, keywords):
    rng = np.random.default_rng(2)
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    x, w, b, dout = (
        rng.standard_normal(s, dtype=np.float32)
        for s in (x_shape, w_shape, w_shape[:1], geometry.y_shape)
    )
    results = []
    for number in (1, 2, 3):
        with ic.set_workers(number):
            results.append(all_passes(x, w, b, dout, algorithm="implicit", **keywords))
    for other in results[1:]:
        for one, another in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, another)


@needs_blas
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize(("x_shape", "w_shape", "keywords", "arrangement"), LAYERS)
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_infinity_reaches_what_it_reaches_in_the_spine(
    x_shape, w_shape, keywords, arrangement, value, layout
):
    rng = np.random.default_rng(3)
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    x, w, dout = (rng.random(s) + 0.5 for s in (x_shape, w_shape, geometry.y_shape))
    for array in (x, dout):
        array.reshape(-1)[rng.integers(array.size)] = value
    if layout == "channels_last":
        x, dout = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, dout))
    keywords = {"layout": layout, **keywords}
    one = all_passes(x, w, None, dout, algorithm="implicit", **keywords)
    other = all_passes(x, w, None, dout, algorithm="im2col", **keywords)
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(theirs))


ORDERS = {
    "channels first": lambda a: np.ascontiguousarray(a),
    "channels last": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1),
    "images inside channels": lambda a: np.ascontiguousarray(a.swapaxes(0, 1)).swapaxes(0, 1),
    "images innermost": lambda a: np.asfortranarray(a),
    "backwards": lambda a: np.ascontiguousarray(a[::-1, ::-1, ::-1])[::-1, ::-1, ::-1],
    "part of more": lambda a: np.pad(a, 1)[1:-1, 1:-1, 1:-1, 1:-1],
    "one image for all": lambda a: np.broadcast_to(a[:1], a.shape),
    "one channel for all": lambda a: np.broadcast_to(a[:, :1], a.shape),
}


@needs_blas
@pytest.mark.parametrize("x_order", ORDERS)
@pytest.mark.parametrize("dout_order", ORDERS)
@pytest.mark.parametrize("y_order", ["channels first", "channels last", "part of more"])
def test_pointwise_layers_are_right_in_any_memory_order(x_order, dout_order, y_order):
    rng = np.random.default_rng(5)
    x, w, dout = (whole(rng, s) for s in ((3, 70, 4, 5), (66, 70, 1, 1), (3, 66, 4, 5)))
    x, dout = ORDERS[x_order](x), ORDERS[dout_order](dout)
    x.flags.writeable = dout.flags.writeable = False
    y = ORDERS[y_order](np.zeros(dout.shape))
    ic.conv(x, w, algorithm="implicit", out=y)
    np.testing.assert_array_equal(y, np.einsum("nchw,fc->nfhw", x, w[..., 0, 0]))
    dx, dw, db = ic.conv_grads(dout, x, w, algorithm="implicit")
    np.testing.assert_array_equal(dx, np.einsum("nfhw,fc->nchw", dout, w[..., 0, 0]))
    np.testing.assert_array_equal(dw[..., 0, 0], np.einsum("nfhw,nchw->fc", dout, x))
    np.testing.assert_array_equal(db, dout.sum(axis=(0, 2, 3)))


@needs_blas
@pytest.mark.parametrize("order", ["channels first", "channels last"])
def test_pointwise_forward_copies_no_image_and_no_weights(monkeypatch, order):
    names = []
    monkeypatch.setattr(Scratch, "array", lambda self, name, *_: names.append(name))
    rng = np.random.default_rng(6)
    x, y = (ORDERS[order](whole(rng, (2, C, 8, 9))) for C in (64, 128))
    w = whole(rng, (128, 64, 1, 1))
    ic.conv(x, w, algorithm="implicit", out=y)
    assert names == []
    np.testing.assert_array_equal(y, np.einsum("nchw,fc->nfhw", x, w[..., 0, 0]))


@needs_blas
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "keywords"),
    [
        ((2, 33, 5, 23), (21, 33, 3, 3), {"padding": (1, 2)}),  # long lines
        ((3, 34, 6, 7), (6, 17, 3, 2), {"stride": (1, 2), "groups": 2}),
        ((18, 2, 7, 6), (5, 2, 3, 3), {"stride": (1, 2), "padding": 1}),  # many images
        ((3, 5, 9, 8), (7, 5, 4, 3), {"padding": (2, 1)}),
        ((2, 6, 9, 8), (6, 1, 3, 3), {"groups": 6, "padding": (1, 2)}),
    ],
)
def test_images_may_lie_in_any_memory_order(x_shape, w_shape, keywords, order, layout):
    rng = np.random.default_rng(7)
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    given = [whole(rng, s) for s in (x_shape, w_shape, w_shape[:1], geometry.y_shape)]
    x, w, b, dout = given
    expected = all_passes(*given, algorithm="im2col", **keywords)
    x, dout, y = ORDERS[order](x), ORDERS[order](dout), np.zeros_like(dout)
    if "for all" in order:  # other numbers than before
        expected = all_passes(x, w, b, dout, algorithm="im2col", **keywords)
    else:
        y = ORDERS[order](y)
    if layout == "channels_last":
        x, dout, y = (np.moveaxis(a, 1, -1) for a in (x, dout, y))
    x.flags.writeable = dout.flags.writeable = False
    ic.conv(x, w, b, algorithm="implicit", layout=layout, out=y, **keywords)
    dx, dw, db = ic.conv_grads(dout, x, w, algorithm="implicit", layout=layout, **keywords)
    if layout == "channels_last":
        y, dx = np.moveaxis(y, -1, 1), np.moveaxis(dx, -1, 1)
    for ours, theirs in zip((y, dx, dw, db), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@needs_blas
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("w_shape", [(7, 6, 3, 3), (7, 6, 1, 1), (7, 40, 3, 3)])
def test_the_step_of_an_axis_of_one_does_not_matter(w_shape, layout):
    rng = np.random.default_rng(10)
    x, w = whole(rng, (3, w_shape[1], 9, 26)), whole(rng, w_shape)
    if layout == "channels_last":
        x = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    one = x[1:0:-1, :, 1:, :]  # an axis of one that goes backwards, in an array with gaps
    one = one if layout == "channels_first" else x[1:0:-1, :, 1:]
    ways = [ic.conv(one, w, layout=layout, algorithm=way) for way in ("implicit", "im2col")]
    np.testing.assert_array_equal(*ways)


@needs_blas
def test_long_lines_of_innermost_channels_are_used_where_they_lie(monkeypatch):
    names, array = [], Scratch.array

    def noted(self, name, *shape):
        names.append(name)
        return array(self, name, *shape)

    monkeypatch.setattr(Scratch, "array", noted)
    rng = np.random.default_rng(8)
    x, w, b, dout = (whole(rng, s) for s in ((2, 6, 25, 35), (9, 35, 3, 3), 9, (2, 6, 25, 9)))
    keywords = {"padding": 1, "layout": "channels_last", "algorithm": "implicit"}
    all_passes(x, w, b, dout, **keywords)
    assert not {"x", "dx", "y", "dout", "dout.T"}.intersection(names)


@pytest.mark.parametrize("shape", [(9001,), (9001, 1), (1, 9001), (3001, 3)])
def test_places_of_many_numbers_in_any_shape(shape):
    # np.unravel_index returns others for a column of more than 8192 numbers
    numbers = (np.arange(np.prod(shape)) * 7 % 504).reshape(shape)
    first, second, third = places_of(numbers, (7, 18, 4))
    np.testing.assert_array_equal(first * 72 + second * 4 + third, numbers)
    assert all((i >= 0).all() and (i < n).all() for i, n in ((first, 7), (second, 18), (third, 4)))


@needs_blas
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "keywords"),
    [
        ((7, 5, 17, 10), (9, 5, 6, 14), {"stride": (1, 4), "padding": ((4, 2), (13, 6))}),
        ((3, 17, 30, 33), (4, 17, 9, 12), {"stride": (1, 2), "padding": 5}),
        ((1, 1, 8300, 21), (1, 1, 3, 2), {}),  # as many lines, spread
    ],
)
def test_tiles_of_more_than_8192_products_are_right(x_shape, w_shape, keywords, layout):
    rng = np.random.default_rng(5)
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    x, w, b = whole(rng, x_shape, np.float32), whole(rng, w_shape), whole(rng, w_shape[:1])
    dout = whole(rng, geometry.y_shape, np.float32)
    w, b = w.astype(np.float32), b.astype(np.float32)
    if layout == "channels_last":
        x, dout = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, dout))
    with ic.set_workers(1):
        tap_by_tap, columns = (
            all_passes(x, w, b, dout, layout=layout, algorithm=each, **keywords)
            for each in ("implicit", "im2col")
        )
    for one, other in zip(tap_by_tap, columns, strict=True):
        np.testing.assert_array_equal(one, other)


@needs_blas
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize(("x_shape", "w_shape", "keywords", "arrangement"), LAYERS)
def test_numpy_multiplies_only_while_its_blas_is_held(
    x_shape, w_shape, keywords, arrangement, layout, monkeypatch
):
    """Elsewhere the setting of the process is left alone, so that it might take many threads."""

    def only_held(multiply):
        def checked(*arrays, **options):
            assert blas._calls == 1
            return multiply(*arrays, **options)

        return checked

    holds = []
    hold = blas.hold
    monkeypatch.setattr(blas, "hold", lambda: holds.append(hold()))
    for name in ("dot", "matmul"):
        monkeypatch.setattr(np, name, only_held(getattr(np, name)))
    rng = np.random.default_rng(2)
    x, w = (whole(rng, shape) for shape in (x_shape, w_shape))
    if layout == "channels_last":
        x = np.moveaxis(x, 1, -1)
    options = {"layout": layout, "algorithm": "implicit", **keywords}
    y = ic.conv(x, w, **options)
    ic.conv_input_grad(y, w, x.shape, **options)
    assert len(holds) == 2 * (arrangement is Bands)
    ic.conv_weight_grad(y, x, w.shape, **options)
    ic.conv_grads(y, x, w, **options)
    assert len(holds) == 2 * (arrangement is Bands) + 2


@needs_blas
def test_auto_multiplies_large_pointwise_layers_where_they_lie(monkeypatch):
    if private_blas().kernel not in WIDE:
        pytest.skip("auto takes the implicit way with wide kernels only")
    monkeypatch.setattr(choice, "direct_pays", lambda *_: False)

    def ways(x_shape, w_shape):
        geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape)
        passes = ("forward", "weight_grad", "input_grad")
        return {
            choice.way_of(each, "auto", geometry, "channels_first", np.dtype(np.float32))
            for each in passes
        }

    assert ways((8, 1024, 14, 14), (256, 1024, 1, 1)) == {"implicit"}
    assert ways((1, 256, 56, 56), (64, 256, 1, 1)) == {"implicit"}
    assert ways((1, 32, 16, 16), (32, 32, 1, 1)) == {"im2col"}  # little work


@needs_blas
def test_fresh_products_overwrite_and_the_others_add():
    a, b, c = np.array([1.0, 2.0]), np.array([3.0, 5.0]), np.full(3, np.nan)
    rows, fresh = np.array([0, 0, 2]), np.array([True, False, True])
    products = Products(1, 1, 2, Operand(0, 2), Operand(0, 1), Operand(rows, 1), fresh=fresh)
    private_blas().run(products, a, b, c)
    np.testing.assert_array_equal(c, [26, np.nan, 13])


@pytest.mark.parametrize("part", [np.s_[:], np.s_[..., :5], np.s_[:, 1:4], np.s_[:, 1:4, :2, 1:]])
def test_sums_of_rows_are_of_all_rows(part):
    memory = whole(np.random.default_rng(9), (3, 5, 4, 6))[part]
    np.testing.assert_array_equal(sums_of_rows(memory), memory.sum(axis=(0, 1, 2)))


@needs_blas
def test_products_may_use_the_gaps_of_an_array_and_nothing_beyond():
    products = Products(2, 2, 1, Operand(0, 1), Operand(0, 2), Operand(0, 5))  # C reaches 7 numbers
    a, b, room = np.ones(2), np.array([3.0, 5.0]), np.zeros((3, 5))
    private_blas().run(products, a, b, room[:2, :2])
    np.testing.assert_array_equal(room, [[3, 5, 0, 0, 0], [3, 5, 0, 0, 0], [0] * 5])
    private_blas().run(products, a, b, room.reshape(1, 3, 5)[::-1, :2, :2])  # one goes no way back
    between = np.zeros(20, [("number", np.float64), ("other", np.int8)])["number"]
    for other in (room[:2, :1], room[1::-1, :2], room[:0], between):
        with pytest.raises(ValueError, match="the products need 7 numbers"):
            private_blas().run(products, a, b, other)


@needs_blas
def test_many_workers_make_each_block_of_weights_once():
    made, memory, meet = [], np.zeros((2, 5, 3)), threading.Barrier(6)

    def make(blas, scratch, group, block):
        time.sleep(0.01)  # so that the others have come, and wait
        made.append((group, block))
        memory[group, block] = 10 * group + block

    weights, found = Blockwise(memory, make), []

    def ask():
        meet.wait()
        found.append(weights.part(private_blas(), Scratch(), slice(1, 2), slice(1, 5)).copy())

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [(1, 1), (1, 2), (1, 3), (1, 4)]
    assert len(found) == 6
    for each in found:
        np.testing.assert_array_equal(each[0, :, 0], [11, 12, 13, 14])


@needs_blas
def test_a_block_that_failed_is_made_again():
    memory, tries = np.zeros((1, 1)), []

    def make(blas, scratch, group, block):
        tries.append(block)
        if len(tries) == 1:
            raise MemoryError
        memory[group, block] = 7

    weights = Blockwise(memory, make)
    with pytest.raises(MemoryError):
        weights.part(private_blas(), Scratch(), slice(0, 1), slice(0, 1))
    assert weights.part(private_blas(), Scratch(), slice(0, 1), slice(0, 1)) == 7


@needs_blas
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_tiles_of_dx_may_see_no_output(layout):
    x, w = np.ones((1, 256, 114, 136), np.float32), np.ones((4, 256, 1, 1), np.float32)
    keywords = {"stride": 3, "layout": layout}
    geometry = ic.ConvGeometry.from_shapes(x.shape, w.shape, stride=3)
    dout = np.ones(geometry.y_shape, np.float32)
    if layout == "channels_last":
        x, dout = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, dout))
    one = ic.conv_input_grad(dout, w, x.shape, algorithm="implicit", **keywords)
    other = ic.conv_input_grad(dout, w, x.shape, algorithm="im2col", **keywords)
    np.testing.assert_array_equal(one, other)


@needs_blas
def test_tiles_of_dx_may_see_no_whole_window():
    rng = np.random.default_rng(9)
    x, w = (whole(rng, shape).astype(np.float32) for shape in ((1, 121, 26, 5), (400, 121, 2, 4)))
    geometry = ic.ConvGeometry.from_shapes(x.shape, w.shape, stride=(12, 2))
    dout, workspace = whole(rng, geometry.y_shape).astype(np.float32), 1679360
    plan = plan_input_grad(geometry, "channels_first", np.dtype(np.float32), workspace)
    assert isinstance(plan.arrangement, Unrolled)
    assert plan.tiling.step[2] == 7  # rows 14 to 20 lie between the windows
    with ic.set_workspace(workspace):
        one, other = (
            ic.conv_input_grad(dout, w, x.shape, algorithm=each, stride=(12, 2))
            for each in ("implicit", "im2col")
        )
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("layout", "images", "turned"),
    [("channels_last", 15, True), ("channels_last", 16, False), ("channels_first", 15, False)],
)
def test_planes_of_few_images_are_turned_first(layout, images, turned):
    geometry = ic.ConvGeometry.from_shapes((images, 3, 8, 9), (3, 1, 3, 3), groups=3)
    assert bands_for(geometry, layout, for_dw=False, packs=False).turned is turned


@needs_blas
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
def test_depthwise_tiles_take_the_memory_that_is_counted(layout, stride):
    x = np.ones((3, 5, 17, 13), np.float32)
    geometry = ic.ConvGeometry.from_shapes(x.shape, (5, 1, 3, 2), stride=stride, groups=5)
    y = np.ones(geometry.y_shape, np.float32)
    if layout == "channels_last":
        x, y = (np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1) for a in (x, y))
    bands = bands_for(geometry, layout, for_dw=False, packs=False)
    scratch, blas = Scratch(), private_blas()
    whole = tuple(slice(0, size) for size in geometry.size)
    tile = Tile(
        axes_between(geometry, tuple(slice(0, out) for out in geometry.out), whole), 3, 5, 5
    )
    images = [a.swapaxes(0, 1) for a in (x, y)]
    bands.load(blas, scratch, "x", images[0], tile, x.dtype)
    made = bands.room(scratch, "y", images[1], tile, y.dtype)
    bands.store(blas, scratch, "y", made, images[1], tile, None)
    counted = sum(bands.numbers(name, 5, 3, geometry.size, geometry.out) for name in ("x", "y"))
    assert scratch.nbytes <= counted * x.itemsize


@needs_blas
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "keywords", "workspace", "arrangement"),
    [
        ((1, 3, 40), (7, 3, 50), {"padding": 2500, "dilation": 100}, 2**19, Spread),
        (
            (1, 33, 3, 2, 4),
            (213, 33, 4, 4, 3),
            {"padding": ((3, 3), (3, 3), (0, 2)), "stride": (1, 2, 3), "dilation": 2},
            2**22,
            Unrolled,
        ),
    ],
)
def test_tiles_that_see_the_same_cells_at_other_taps_load_their_own(
    x_shape, w_shape, keywords, workspace, arrangement, layout
):
    rng = np.random.default_rng(8)
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    plan = plan_weight_grad(geometry, layout, np.dtype(np.float64), workspace)
    assert isinstance(plan.arrangement, arrangement)
    assert plan.tiling.boxes > 1
    x, w, dout = (
        whole(rng, shape).astype(np.float64) for shape in (x_shape, w_shape, geometry.y_shape)
    )
    if layout == "channels_last":
        x, dout = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, dout))
    keywords = {"layout": layout, **keywords}
    expected = all_passes(x, w, None, dout, algorithm="im2col", **keywords)
    with ic.set_workspace(workspace):
        found = all_passes(x, w, None, dout, algorithm="implicit", **keywords)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@needs_blas
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("made", ["y", "dx", "dout.T"])
def test_whole_windows_take_the_memory_that_is_counted(layout, made):
    x = np.ones((2, 40, 5, 4), np.float32)
    w_shape, padding, stride = (132, 40, 3, 2), ((1, 0), (0, 1)), (2, 3)
    geometry = ic.ConvGeometry.from_shapes(x.shape, w_shape, padding=padding, stride=stride)
    y = np.ones(geometry.y_shape, np.float32)
    if layout == "channels_last":
        x, y = (np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1) for a in (x, y))
    lie, scratch, blas = arrangement_for(geometry, layout, made), Scratch(), private_blas()
    assert isinstance(lie, Unrolled)
    boxes = [tuple(slice(0, size) for size in sizes) for sizes in (geometry.out, geometry.size)]
    tile = Tile(axes_between(geometry, *boxes), 2, 40, 132)
    images = {"x": x.swapaxes(0, 1), "y": y.swapaxes(0, 1)}
    images |= {"dx": images["x"], "dout": images["y"], "dout.T": images["y"]}
    result, given = {"y": ("y", "x"), "dx": ("dx", "dout"), "dout.T": ("dout.T", "x")}[made]
    lie.load(blas, scratch, given, images[given], tile, x.dtype)
    sums = lie.room(scratch, result, images[result], tile, x.dtype)
    if made != "dout.T":
        lie.store(blas, scratch, result, sums, images[result], tile, None)
    channels = {"x": 40, "dx": 40, "y": 132, "dout": 132, "dout.T": 132}
    counted = sum(
        lie.numbers(name, channels[name], 2, geometry.size, geometry.out)
        for name in (result, given)
    )
    assert scratch.nbytes <= counted * x.itemsize
    assert scratch.nbytes > 0.8 * counted * x.itemsize


@needs_blas
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_whole_windows_are_added_beside_the_bias_of_a_transposed_pass(layout, monkeypatch):
    rng = np.random.default_rng(5)
    shapes = (1, 400, 3, 4), (400, 90, 3, 2), (90,)
    x, w, b = (whole(rng, shape).astype(np.float32) for shape in shapes)
    geometry = ic.ConvGeometry.from_shapes(
        (1, 90, 6, 14), shapes[1], stride=(2, 3), padding=((1, 0), (0, 2))
    )
    assert isinstance(arrangement_for(geometry, layout, "dx"), Unrolled)
    monkeypatch.setattr(choice, "tap_by_tap_pays", lambda *given: given[-1] is not None)
    if layout == "channels_last":
        x = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    keywords = {"stride": (2, 3), "padding": (1, 0), "output_padding": (1, 2), "layout": layout}
    one = ic.conv_transpose(x, w, b, **keywords)
    monkeypatch.setattr(choice, "private_blas", lambda: None)
    np.testing.assert_array_equal(one, ic.conv_transpose(x, w, b, **keywords))


@pytest.mark.parametrize(
    ("images", "filters", "made"),
    [
        *[(1, 97, set()), (1, 98, {"y"}), (2, 195, set()), (2, 196, {"y"}), (1, 391, {"y"})],
        (1, 392, {"y", "dx", "dout.T"}),
    ],
)
def test_windows_are_whole_where_filters_are_many_times_the_outputs(images, filters, made):
    geometry = ic.ConvGeometry.from_shapes((images, 35, 9, 9), (filters, 35, 3, 3))
    assert geometry.positions == 49
    assert unrolled_in(geometry) == made
    groups = ic.ConvGeometry.from_shapes((images, 70, 9, 9), (2 * filters, 35, 3, 3), groups=2)
    assert unrolled_in(groups) == set()  # their tiles have several groups


def unrolled_in(geometry):
    found = {
        each: arrangement_for(geometry, "channels_last", each) for each in ("y", "dx", "dout.T")
    }
    return {each for each, arrangement in found.items() if isinstance(arrangement, Unrolled)}


@pytest.mark.parametrize(
    ("groups", "images", "arrangement"),
    [(1, 7, Spread), (1, 8, Spread), (2, 1, ChannelsOuter), (2, 7, ChannelsOuter)],
)
def test_lines_of_groups_lie_under_each_other_however_few_channels(groups, images, arrangement):
    shape, w_shape = (images, 3 * groups, 12, 9), (5 * groups, 3, 3, 2)
    geometry = ic.ConvGeometry.from_shapes(shape, w_shape, groups=groups)
    for layout, made in product(("channels_first", "channels_last"), ("y", "dx", "dout.T")):
        found = arrangement_for(geometry, layout, made)
        assert isinstance(found, arrangement)
        assert found.interleaved is (layout == "channels_first" or groups > 1)


@needs_blas
@pytest.mark.parametrize(
    ("images", "groups", "workspace", "joined"),
    [
        (3, 7, 2**26, 7),  # one worker's work
        (3, 7, 2**20, 2),  # as memory has it
        (3, 7, 2**18, 1),
        (3, 7, 2**16, 1),
        (40, 9, 2**26, 5),  # two parts of 91 MFLOP
        (40, 16, 2**26, 4),  # three parts of 162, or better four
        (40, 1, 2**26, 1),
    ],
)
def test_a_tile_has_as_many_groups_as_workers_and_memory_let_it(images, groups, workspace, joined):
    shape, w_shape = (images, 9 * groups, 12, 13), (10 * groups, 9, 3, 3)
    geometry = ic.ConvGeometry.from_shapes(shape, w_shape, padding=1, groups=groups)
    for draw in (plan_forward, plan_weight_grad, plan_input_grad):
        plan = draw(geometry, "channels_first", np.dtype(np.float32), workspace)
        assert plan.tile_shape[1] == joined
        assert plan.worker_bytes + plan.shared_bytes <= workspace


def test_several_groups_are_refused_no_workspace_that_one_fits():
    geometry = ic.ConvGeometry.from_shapes(
        (16, 240, 9, 4), (60, 4, 3, 2), groups=60, stride=(1, 2), padding=(2, 1)
    )
    for workspace, draw in product(
        (2**19, 2**20, 2**22), (plan_forward, plan_weight_grad, plan_input_grad)
    ):
        plan = draw(geometry, "channels_first", np.dtype(np.float32), workspace)
        assert plan.worker_bytes + plan.shared_bytes <= workspace


@needs_blas
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("channels", [2, 40])
def test_images_without_cells_have_gradients_tap_by_tap(channels, groups):
    x, w = np.ones((2, channels, 0, 7)), np.ones((6, channels // groups, 2, 3))
    keywords = {"padding": (2, 1), "groups": groups, "algorithm": "implicit"}
    y = ic.conv(x, w, **keywords)
    assert y.shape == (2, 6, 3, 7)
    assert not y.any()
    dx, dw, db = ic.conv_grads(np.ones_like(y), x, w, **keywords)
    assert dx.shape == x.shape
    assert not dw.any()
    np.testing.assert_array_equal(db, 42)


def test_less_groups_than_workers_could_share_are_cut():
    geometry = ic.ConvGeometry.from_shapes((16, 40, 21, 22), (40, 20, 5, 5), groups=2)
    for draw in (plan_forward, plan_weight_grad, plan_input_grad):
        assert draw(geometry, "channels_first", np.dtype(np.float32), 2**26).tasks == 4


@needs_blas
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "stride", "arrangement"),
    [
        ((9, 20, 16, 17), (20, 3, 3, 2), 1, ChannelsOuter),
        ((17, 20, 16, 17), (20, 3, 4, 3), (1, 2), ChannelsOuter),
        ((2, 120, 12, 13), (120, 50, 3, 2), (2, 1), ChannelsInner),
    ],
)
def test_each_group_has_its_own_bias_in_a_transposed_pass(
    x_shape, w_shape, stride, arrangement, layout, monkeypatch
):
    rng = np.random.default_rng(8)
    x, w, b = (whole(rng, shape) for shape in (x_shape, w_shape, (4 * w_shape[1],)))
    shape = ic.conv_transpose(x, w, stride=stride, groups=4).shape
    geometry = ic.ConvGeometry.from_shapes(shape, w_shape, stride=stride, groups=4)
    assert isinstance(arrangement_for(geometry, layout, "dx"), arrangement)
    monkeypatch.setattr(choice, "tap_by_tap_pays", lambda *given: given[-1] is not None)
    if layout == "channels_last":
        x = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    found = ic.conv_transpose(x, w, b, stride=stride, groups=4, layout=layout)
    monkeypatch.setattr(choice, "private_blas", lambda: None)
    expected = ic.conv_transpose(x, w, b, stride=stride, groups=4, layout=layout)
    np.testing.assert_array_equal(found, expected)


def test_windows_are_not_whole_where_weights_leave_them_no_room():
    for channels, arrangement in ((450, Unrolled), (470, ChannelsInner)):
        geometry = ic.ConvGeometry.from_shapes((1, channels, 5, 5), (1000, channels, 3, 3))
        assert isinstance(arrangement_for(geometry, "channels_first", "y"), arrangement)


@pytest.mark.parametrize("images", [1, 2, 3, 5, 7, 16])
def test_tiles_are_cut_where_neighbours_see_the_fewest_cells(images):
    geometry = ic.ConvGeometry.from_shapes((images, 90, 9, 37, 41), (70, 90, 5, 1, 1))
    plan = plan_forward(geometry, "channels_first", np.dtype(np.float32), 2**26)
    _, depth, height, line = plan.tiling.step[1:-1]
    assert depth == geometry.out[0]
    assert height < geometry.out[1]
    assert line == geometry.out[2]


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "for_dw", "interleaved", "rows"),
    [
        ((31, 32), 3, 1, False, False, 6),  # 29 rows, lines of 30
        ((31, 32), 3, 1, True, False, 6),
        ((31, 31), 3, 1, True, True, 8),  # lines of 29
        ((31, 22), 3, 1, False, False, 6),
        ((31, 21), 3, 1, False, True, 8),
        ((18, 9), 7, 1, False, True, 12),  # 12 rows of outputs, each of which sees seven
        ((18, 9), 7, 1, True, True, 6),
        ((17, 9), 6, 1, False, True, 12),
        ((18, 9), 6, 1, False, True, 7),
        ((25, 9), 7, 2, False, True, 5),
    ],
)
def test_bands_are_as_high_as_pays(size, kernel, stride, for_dw, interleaved, rows):
    w_shape = (3, 1, kernel, 3)
    geometry = ic.ConvGeometry.from_shapes((2, 3, *size), w_shape, stride=(stride, 1), groups=3)
    bands = bands_for(geometry, "channels_first", for_dw=for_dw, packs=False)
    assert (bands.interleaved, bands.rows) == (interleaved, rows)


@pytest.mark.parametrize(("size", "rows"), [((16, 40), 4), ((19, 9), 4), ((11, 40), 3)])
def test_bands_are_low_where_a_kernel_packs_but_for_dw(size, rows):
    geometry = ic.ConvGeometry.from_shapes((2, 3, *size), (3, 1, 3, 4), groups=3)
    for made in ("y", "dx", "dout.T"):
        lie = arrangements.arrangement_for(geometry, "channels_first", made, packs=True)
        assert (lie.rows == rows) is (made != "dout.T")


@needs_blas
def test_a_depthwise_layer_of_no_images_has_no_outputs():
    x, w, dout = (np.zeros(shape) for shape in ((0, 3, 9, 7), (3, 1, 2, 3), (0, 3, 8, 5)))
    y, dx, dw, db = all_passes(x, w, np.ones(3), dout, groups=3, algorithm="implicit")
    assert (y.shape, dx.shape) == (dout.shape, x.shape)
    assert not dw.any()
    assert not db.any()


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "keywords", "first", "last"),
    [
        # many filters, deep lines and a stride of 2 at most, one by one; as many as channels for dx
        ((4, 32, 9, 24), (32, 32, 3, 3), {}, "shifted shifted shifted", "shifted shifted shifted"),
        ((4, 32, 9, 24), (31, 32, 3, 3), {}, "outer outer shifted", "inner inner shifted"),
        ((4, 31, 9, 24), (32, 31, 3, 3), {}, "outer outer outer", "outer outer outer"),
        ((4, 32, 9, 24), (33, 32, 3, 3), {}, "shifted shifted inner", "shifted shifted inner"),
        (
            (4, 32, 9, 24),
            (32, 32, 3, 3),
            {"stride": (2, 1)},
            "shifted shifted inner",
            "shifted shifted inner",
        ),
        (
            (4, 32, 9, 24),
            (32, 32, 3, 3),
            {"stride": (3, 1)},
            "outer outer inner",
            "inner inner inner",
        ),
        (
            (4, 32, 9, 24),
            (32, 32, 3, 3),
            {"padding": 3},
            "shifted shifted inner",
            "shifted shifted inner",
        ),
        # few outputs in the lines of all images: 30 and 32
        ((3, 9, 9, 12), (9, 9, 3, 3), {}, "shifted shifted outer", "shifted shifted outer"),
        ((4, 9, 9, 10), (9, 9, 3, 3), {}, "outer outer outer", "outer outer outer"),
        # those of one image, if channels that come last lie innermost and lines have a stride
        (
            (4, 32, 9, 64),
            (9, 32, 3, 3),
            {"stride": (1, 2)},
            "outer outer inner",
            "shifted shifted inner",
        ),
        (
            (4, 32, 9, 66),
            (9, 32, 3, 3),
            {"stride": (1, 2)},
            "outer outer inner",
            "inner inner inner",
        ),
        (
            (4, 31, 9, 64),
            (9, 31, 3, 3),
            {"stride": (1, 2)},
            "outer outer outer",
            "outer outer outer",
        ),
        # channels: 4 are spread for dx, from 32 on they lie innermost
        ((4, 4, 9, 24), (9, 4, 3, 3), {}, "outer outer spread", "outer outer spread"),
        ((4, 5, 9, 24), (9, 5, 3, 3), {}, "outer outer outer", "outer outer outer"),
        ((4, 31, 240), (90, 31, 3), {}, "outer outer outer", "outer outer outer"),
        ((4, 32, 240), (90, 32, 3), {}, "outer outer inner", "inner inner inner"),
        # phases that no tap meets
        (
            (4, 64, 9, 80),
            (9, 64, 3, 2),
            {"stride": (1, 3)},
            "spread spread spread",
            "shifted shifted spread",
        ),
        (
            (4, 64, 9, 80),
            (9, 64, 3, 3),
            {"stride": (1, 3)},
            "outer outer inner",
            "shifted shifted inner",
        ),
        # groups
        ((4, 64, 9, 24), (64, 32, 3, 3), {"groups": 2}, "outer outer inner", "inner inner inner"),
        ((4, 62, 9, 24), (64, 31, 3, 3), {"groups": 2}, "outer outer outer", "outer outer outer"),
        ((4, 8, 9, 24), (64, 4, 3, 3), {"groups": 2}, "outer outer outer", "outer outer outer"),
    ],
)
def test_how_tiles_lie_where_a_kernel_packs(x_shape, w_shape, keywords, first, last):
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    names = {Spread: "spread", ChannelsOuter: "outer", ChannelsInner: "inner", Shifted: "shifted"}
    for layout, expected in (("channels_first", first), ("channels_last", last)):
        lie = partial(arrangements.arrangement_for, geometry, layout, packs=True)
        assert " ".join(names[type(lie(made))] for made in ("y", "dout.T", "dx")) == expected


@pytest.mark.parametrize("made", ["y", "dout.T", "dx"])
def test_kernels_of_one_cell_have_large_pieces_where_a_kernel_packs_but_for_dw(made):
    geometry = ic.ConvGeometry.from_shapes((2, 30, 40, 41), (50, 30, 1, 1))
    for packs in (False, True):
        lie = arrangements.arrangement_for(geometry, "channels_first", made, packs=packs)
        assert lie.packed is (packs and made != "dout.T")


@needs_blas
@pytest.mark.parametrize("by_rows", [True, False], ids=["bias of rows", "bias of columns"])
def test_no_product_touches_what_lies_beside_its_arrays(by_rows):
    rng = np.random.default_rng(4)
    count, m, n, k = 5, 3, 4, 6
    each = np.arange(count)
    A, B, C = Operand(each * m * k, k), Operand(0, n), Operand(each * m * n, n)
    set_, bias = each != 2, Bias(each, by_rows)
    products = Products(m, n, k, A, B, C, fresh=set_, bias=bias)
    *sizes, ones = products.reach
    assert (*sizes, ones) == (90, 24, 60, *((7, 4) if by_rows else (8, 3)))
    room = [np.full(size + 200, np.nan) for size in sizes]
    a, b, c, numbers = arrays = [space[100:-100] for space in room]
    for array in arrays:
        array[:] = rng.random(array.size)
    expected = a.reshape(count, m, k) @ b.reshape(k, n)
    expected[2] += c.reshape(count, m, n)[2]
    for i in each[set_]:
        expected[i] += numbers[i : i + m, None] if by_rows else numbers[i : i + n]
    private_blas().run(products, *arrays)
    np.testing.assert_allclose(c.reshape(count, m, n), expected, rtol=1e-14)
    for space in room:
        assert np.isnan(space[:100]).all()
        assert np.isnan(space[-100:]).all()
    for short in range(4):
        given = [array[: array.size - (i == short)] for i, array in enumerate(arrays)]
        with pytest.raises(ValueError, match="the products need"):
            private_blas().run(products, *given)
    with pytest.raises(ValueError, match="need a bias"):
        private_blas().run(products, a, b, c)


def test_a_list_that_runs_twice_at_once_has_two_tables_of_addresses():
    products = Products(1, 1, 1, Operand(0, 1), Operand(0, 1), Operand(0, 1))
    arrays = {name: np.ones(1) for name in "abcdef"}

    def run(names, gemm_batch):
        products.run(gemm_batch, *(arrays[name] for name in names), None)

    def told(arguments):
        return [ctypes.c_int64.from_address(arguments[place]).value for place in (7, 9, 12)]

    def gemm_batch(*arguments):
        run("def", lambda *others: seen.append(told(others)))
        seen.append(told(arguments))  # unchanged by the other run

    seen = []
    for names in ("abc", "fbd"):  # tables are made, and then moved
        run(names, gemm_batch)
        expected = [[arrays[name].ctypes.data for name in each] for each in ("def", names)]
        assert seen[-2:] == expected


@needs_blas
def test_a_list_runs_numbers_of_either_size_wherever_they_lie():
    rng = np.random.default_rng(3)
    at = Operand(np.array([0, 4]), 2)
    products = Products(2, 2, 2, at, at, at, fresh=True, bias=Bias(np.array([1, 0]), by_rows=True))
    for dtype in (np.float32, np.float64, np.float32, np.float32):
        a, b, c = rng.integers(-9, 9, (3, 2, 2, 2)).astype(dtype)
        bias = rng.integers(-9, 9, 3).astype(dtype)
        private_blas().run(products, a, b, c, bias)
        np.testing.assert_array_equal(c, a @ b + np.stack((bias[1:], bias[:2]))[..., None])


@pytest.mark.parametrize(
    "a", [Operand(-1, 6), Operand(0, 5)], ids=["before its array", "rows that overlap"]
)
def test_products_refuse_matrices_that_cannot_be(a):
    with pytest.raises(ValueError, match="a matrix of the products"):
        Products(3, 4, 6, a, Operand(0, 4), Operand(0, 4))


@pytest.mark.parametrize(("channels", "arrangement"), [(15, Spread), (16, ChannelsInner)])
def test_many_channels_that_lie_innermost_are_taken_as_they_lie(channels, arrangement):
    geometry = ic.ConvGeometry.from_shapes((1, channels, 65), (8, channels, 3), stride=2)
    assert isinstance(arrangement_for(geometry, "channels_last", "y"), arrangement)


@pytest.mark.parametrize(
    ("images", "channels", "line", "groups", "laid"),
    [
        # channels first: dx below 32 channels; long lines, many images or groups
        (7, 31, 20, 1, "y dx dw, last: "),
        (7, 32, 20, 1, "y dw, last: "),
        (7, 12, 19, 1, "dx, last: y dx"),
        (8, 12, 19, 1, "y dx dw, last: y dx"),
        (1, 12, 19, 2, "y dx dw, last: y dx"),
        # channels last: y below 16; dx below 24, not 16; dw of long lines, or of groups below 12
        (8, 11, 19, 1, "y dx dw, last: y dx"),
        (1, 11, 19, 2, "y dx dw, last: y dx dw"),
        (1, 15, 20, 1, "y dx dw, last: y dx dw"),
        (1, 16, 20, 1, "y dx dw, last: "),
        (1, 23, 20, 1, "y dx dw, last: dx"),
        (1, 24, 20, 1, "y dx dw, last: "),
        # few channels
        (1, 1, 20, 1, "y dx dw, last: "),
        (1, 1, 20, 2, "y dx dw, last: "),
        (1, 3, 20, 1, "y dx dw, last: "),
        (1, 3, 20, 2, "y dx dw, last: "),
        (1, 4, 20, 1, "y dx dw, last: y dx dw"),
        (1, 4, 20, 2, "y dx dw, last: y dx dw"),
    ],
)
def test_cells_a_stride_apart_are_laid_in_lines_of_each_phase(images, channels, line, groups, laid):
    x_shape, w_shape = (images, channels * groups, 9, 2 * line + 2), (8, channels, 3, 3)
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, stride=(1, 2), groups=groups)
    found = {
        layout: [
            name
            for made, name in (("y", "y"), ("dx", "dx"), ("dout.T", "dw"))
            if isinstance(arrangement_for(geometry, layout, made), ChannelsOuter)
        ]
        for layout in ("channels_first", "channels_last")
    }
    first, last = (" ".join(names) for names in found.values())
    assert f"{first}, last: {last}" == laid


@pytest.mark.parametrize(("stride", "laid"), [(3, True), (4, False), (17, False)])
def test_phases_that_no_tap_meets_are_not_laid(stride, laid):
    shapes = (8, 6, 60, 40 * stride), (16, 6, 3, 3)
    geometry = ic.ConvGeometry.from_shapes(*shapes, stride=(1, stride))
    for layout, made in product(("channels_first", "channels_last"), ("y", "dx", "dout.T")):
        assert isinstance(arrangement_for(geometry, layout, made), ChannelsOuter) is laid


def test_along_three_axes_lines_of_each_phase_have_many_channels_or_groups():
    for channels, groups, laid in ((5, 1, False), (6, 1, True), (2, 2, True)):
        shapes = (9, channels * groups, 7, 8, 9), (8, channels, 2, 3, 3)
        geometry = ic.ConvGeometry.from_shapes(*shapes, stride=2, groups=groups)
        lie = arrangement_for(geometry, "channels_first", "y")
        assert isinstance(lie, ChannelsOuter) is laid


@pytest.mark.parametrize(
    ("channels", "made", "laid"), [(15, "y", False), (16, "y", True), (32, "dx", False)]
)
def test_along_one_axis_lines_of_each_phase_have_many_channels(channels, made, laid):
    geometry = ic.ConvGeometry.from_shapes((3, channels, 99), (9, channels, 5), stride=2)
    assert not isinstance(arrangement_for(geometry, "channels_last", made), ChannelsOuter)
    assert isinstance(arrangement_for(geometry, "channels_first", made), ChannelsOuter) is laid


@pytest.mark.parametrize(
    ("images", "channels", "line", "filters", "y", "dx", "dw"),
    [
        (1, 4, 30, 9, False, False, False),
        (1, 5, 30, 64, True, True, True),
        (1, 15, 20, 64, True, True, True),
        (1, 16, 20, 33, False, False, False),
        (1, 16, 20, 32, True, False, False),
        (1, 16, 19, 32, False, False, False),
        (1, 23, 20, 32, True, True, False),
        (1, 24, 20, 32, True, False, False),
        (7, 11, 19, 64, True, True, False),
        (8, 11, 19, 64, True, True, True),
        (8, 12, 19, 64, True, True, False),
        (8, 23, 19, 32, False, True, False),
    ],
)
def test_few_channels_that_lie_innermost_are_laid_line_under_line(
    images, channels, line, filters, y, dx, dw
):
    x_shape, w_shape = (images, channels, 40, line + 2), (filters, channels, 4, 3)
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape)
    for made, laid in (("y", y), ("dx", dx), ("dout.T", dw)):
        lie = arrangement_for(geometry, "channels_last", made)
        assert isinstance(lie, ChannelsOuter) is laid
        if laid and made == "y":  # its rows are there already
            assert lie.interleaved is (line < 20 and images >= 8)
            assert lie.by_rows is not lie.interleaved
    along = ic.ConvGeometry.from_shapes((1, 20, 99), (9, 20, 3))
    assert not isinstance(arrangement_for(along, "channels_last", "y"), ChannelsOuter)


@pytest.mark.parametrize(("images", "sums"), [(8, 1), (21, 2)])
def test_sums_of_dw_are_as_few_as_their_positions_pay_for(images, sums):
    geometry = ic.ConvGeometry.from_shapes((images, 1024, 14, 14), (256, 1024, 1, 1))
    plan = plan_weight_grad(geometry, "channels_first", np.dtype(np.float32), 2**26)
    assert (plan.sums, plan.tasks) == (sums, 4 * sums)


@pytest.mark.parametrize("groups", [1, 3])
def test_dw_of_one_cell_turns_the_side_of_fewer_channels(groups):
    shapes = (2, 6 * groups, 5, 7), (8 * groups, 6, 1, 1)
    more_filters = ic.ConvGeometry.from_shapes(*shapes, groups=groups)
    more_channels = replace(more_filters, C=8 * groups, F=6 * groups)
    as_many = replace(more_filters, F=6 * groups)
    dtype = np.dtype(np.float32)
    for geometry, layout, exchanged in (
        (more_filters, "channels_first", True),
        (more_channels, "channels_first", False),
        (as_many, "channels_first", False),
        (more_filters, "channels_last", False),
    ):
        plan = plan_weight_grad(geometry, layout, dtype, 2**26)
        assert plan.exchanged is exchanged
        assert plan.geometry == (more_channels if exchanged else geometry)


@needs_blas
@pytest.mark.parametrize(("layout", "filters"), [("channels_first", 300), ("channels_last", 2048)])
def test_db_alone_of_exchanged_layers(layout, filters):
    rng = np.random.default_rng(5)
    x, w = np.ones((2, 128, 5, 7)), np.ones((filters, 128, 1, 1))
    dout = rng.integers(-9, 9, (2, filters, 5, 7)).astype(float)
    geometry = ic.ConvGeometry.from_shapes(x.shape, w.shape)
    assert plan_weight_grad(geometry, layout, x.dtype, 2**26).exchanged
    if layout == "channels_last":
        x, dout = np.moveaxis(x, 1, -1), np.moveaxis(dout, 1, -1)
    keywords = {"needs": ("b",), "layout": layout, "algorithm": "implicit"}
    _, _, db = ic.conv_grads(dout, x, w, **keywords)
    outputs = (0, 1, 2) if layout == "channels_last" else (0, 2, 3)
    assert np.array_equal(db, dout.sum(axis=outputs))


def test_chunks_of_few_weights_of_one_cell_are_one_task():
    geometry = ic.ConvGeometry.from_shapes((8, 64, 56, 50), (256, 64, 1, 1))
    plan = plan_weight_grad(geometry, "channels_last", np.dtype(np.float32), 2**26)
    assert (plan.sums, plan.chunks.boxes) == (8, 1)


@pytest.mark.parametrize(
    ("channels", "filters", "exchanged"),
    [(256, 1024, True), (255, 1024, False), (256, 1025, False), (1024, 256, False)],
)
def test_dw_of_many_weights_of_one_cell_reads_the_longer_rows_once(channels, filters, exchanged):
    geometry = ic.ConvGeometry.from_shapes((2, channels, 5, 7), (filters, channels, 1, 1))
    plan = plan_weight_grad(geometry, "channels_last", np.dtype(np.float32), 2**26)
    assert plan.exchanged is exchanged


def test_implicit_without_the_library_says_what_to_install(monkeypatch):
    monkeypatch.setattr("im2col_conv.engine.choice.private_blas", lambda: None)
    with pytest.raises(ImportError, match="private BLAS"):
        ic.conv(np.ones((1, 1, 4, 5)), np.ones((1, 1, 3, 3)), algorithm="implicit")
    assert ic.conv(np.ones((1, 1, 4, 5)), np.ones((1, 1, 3, 3))).shape == (1, 1, 2, 3)
