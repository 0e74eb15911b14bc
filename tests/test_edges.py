"""Edges that must have an answer, the same from every function."""

import numpy as np
import pytest

import im2col_conv as ic
from im2col_conv import reference

pytestmark = pytest.mark.usefixtures("each_way")

LAYOUTS = pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
TYPES = pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32, np.complex128])


def ordered(array, layout):
    return np.moveaxis(array, 1, -1) if layout == "channels_last" else array


@LAYOUTS
@TYPES
def test_no_images(layout, dtype):
    x = ordered(np.zeros((0, 4, 5, 6), dtype), layout)
    w, b = np.ones((6, 2, 3, 2), dtype), np.ones(6, dtype)
    keywords = {"groups": 2, "stride": (1, 2), "padding": 1, "layout": layout}
    y = ic.conv(x, w, b, **keywords)
    assert y.shape == ordered(np.zeros((0, 6, 5, 4)), layout).shape
    dx, dw, db = ic.conv_grads(y, x, w, **keywords)
    assert dx.shape == x.shape
    assert dw.shape == w.shape
    assert db.shape == b.shape
    assert not dw.any()
    assert not db.any()
    t = ic.conv_transpose(y, w, groups=2, layout=layout)
    assert t.shape == ordered(np.zeros((0, 4, 7, 5)), layout).shape


def test_no_images_to_lower():
    cols = ic.im2col(np.zeros((0, 2, 5)), 3)
    assert cols.shape == (6, 0)
    assert ic.col2im(cols, (0, 2, 5), 3).shape == (0, 2, 5)


def test_cells_that_the_stride_leaves_unused_have_gradient_zero():
    x, w = np.ones((1, 1, 8, 9)), np.ones((1, 1, 2, 2))
    dx = ic.conv_grads(np.ones((1, 1, 3, 3)), x, w, stride=3).dx
    used = np.isin(np.arange(9) % 3, [0, 1])
    np.testing.assert_array_equal(dx[0, 0], np.outer(used[:8], used).astype(float))


def test_an_input_axis_of_size_0_is_padding_alone():
    y = ic.conv(np.zeros((2, 1, 0, 3)), np.ones((1, 1, 2, 3)), [7.0], padding=((1, 1), (0, 0)))
    np.testing.assert_array_equal(y, np.full((2, 1, 1, 1), 7.0))


@LAYOUTS
def test_the_gradient_of_an_input_axis_of_size_0_is_empty(layout):
    x, w, dout = np.zeros((2, 1, 0, 3)), np.ones((1, 1, 2, 3)), np.ones((2, 1, 1, 1))
    keywords = {"padding": ((1, 1), (0, 0)), "layout": layout}
    for dtype in (np.float32, np.float16):
        arrays = [ordered(dout, layout).astype(dtype), ordered(x, layout).astype(dtype)]
        dx, dw, db = ic.conv_grads(*arrays, w.astype(dtype), **keywords)
        assert dx.shape == ordered(x, layout).shape
        assert not dw.any()
        assert db == 2


def test_strides_and_dilations_larger_than_any_array():
    x = np.arange(30.0).reshape(1, 1, 10, 3)
    far = 2**62
    y = ic.conv(x, np.ones((1, 1, 3, 3)), stride=(1, far))
    np.testing.assert_array_equal(y, reference.conv(x, np.ones((1, 1, 3, 3)), stride=(1, 4)))
    y = ic.conv(x, np.ones((1, 1, 3, 1)), dilation=(1, far))
    np.testing.assert_array_equal(y, reference.conv(x, np.ones((1, 1, 3, 1))))
    dx = ic.conv_input_grad(np.ones((1, 1, 8, 1)), np.ones((1, 1, 3, 3)), x.shape, stride=(1, far))
    np.testing.assert_array_equal(dx[0, 0, :, 0], [1, 2, 3, 3, 3, 3, 3, 3, 2, 1])


def test_sizes_that_no_array_has_are_refused_in_no_time():
    x, w = np.ones((1, 1, 4)), np.ones((1, 1, 2))
    for call in (
        lambda: ic.conv(x, w, padding=10**30),
        lambda: ic.conv(np.ones((1, 1, 4, 4)), np.ones((1, 1, 2, 2)), padding=10**10),
        lambda: ic.conv_transpose(np.ones((1, 1, 4, 4)), np.ones((1, 1, 2, 2)), stride=10**10),
        lambda: ic.conv_input_grad(x, w, (1, 1, 10**30)),
        lambda: ic.explain((1, 1, 10**12, 10**12), (1, 1, 3, 3)),
        lambda: ic.explain((10**30, 1, 5), (1, 1, 3)),
        lambda: ic.ConvGeometry.from_shapes((10**9, 10**9, 5), (10**9, 10**9, 3)),
    ):
        with pytest.raises(ValueError, match="at most|more cells|more than an array can hold"):
            call()


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "keywords", "axis", "excess"),
    [
        ((1, 2, 4, 9), (3, 2, 5, 3), {}, 0, 1),
        ((1, 2, 9, 4), (3, 2, 3, 3), {"dilation": (1, 3)}, 1, 3),
        ((1, 2, 9, 4), (3, 2, 3, 8), {"padding": ((0, 0), (0, 2))}, 1, 2),
        ((1, 2, 0), (3, 2, 1), {}, 0, 1),
    ],
)
def test_an_empty_output_names_axis_and_excess(x_shape, w_shape, keywords, axis, excess):
    text = f"empty on spatial axis {axis}: the kernel is too large by {excess}"
    x, w = np.zeros(x_shape), np.zeros(w_shape)
    dout = np.zeros((1, 3, *(1,) * (x.ndim - 2)))
    window = dict(keywords)
    for call in (
        lambda: ic.conv(x, w, **keywords),
        lambda: ic.conv_grads(dout, x, w, **keywords),
        lambda: ic.conv_input_grad(dout, w, x_shape, **keywords),
        lambda: ic.conv_weight_grad(dout, x, w_shape, **keywords),
        lambda: ic.im2col(x, w_shape[2:], **window),
        lambda: ic.col2im(np.zeros((1, 1)), x_shape, w_shape[2:], **window),
        lambda: ic.explain(x_shape, w_shape, **keywords),
        lambda: ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords),
    ):
        with pytest.raises(ValueError, match=text):
            call()


def reached_by(x_shape, w_shape, place, keywords):
    """Return where y depends on the cell ``place`` of x, by the reference on ones."""
    one = np.zeros(x_shape)
    one[place] = 1
    return reference.conv(one, np.ones(w_shape), **keywords) != 0


NOT_FINITE = pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
X_SHAPE, W_SHAPE, Y_SHAPE = (2, 4, 6, 9), (6, 2, 3, 2), (2, 6, 4, 5)
KEYWORDS = {"stride": (2, 2), "padding": ((2, 1), (1, 1)), "groups": 2}


@LAYOUTS
@NOT_FINITE
@pytest.mark.parametrize("place", [(0, 0, 0, 0), (1, 3, 5, 8), (0, 2, 3, 4)])
def test_a_cell_of_x_that_is_not_finite_reaches_exactly_its_windows(layout, value, place):
    rng = np.random.default_rng(1)
    x, w = rng.uniform(1, 2, X_SHAPE), rng.uniform(1, 2, W_SHAPE)
    x[place] = value
    y = ic.conv(ordered(x, layout), w, layout=layout, **KEYWORDS)
    windows = reached_by(X_SHAPE, W_SHAPE, place, KEYWORDS)
    np.testing.assert_array_equal(~np.isfinite(y), ordered(windows, layout))

    dout = rng.uniform(1, 2, Y_SHAPE)
    dx, dw, db = ic.conv_grads(
        ordered(dout, layout), ordered(x, layout), w, layout=layout, **KEYWORDS
    )
    one = np.zeros(X_SHAPE)
    one[place] = 1
    _, taps, _ = reference.conv_grads(np.ones(Y_SHAPE), one, w, **KEYWORDS)
    np.testing.assert_array_equal(~np.isfinite(dw), taps != 0)
    assert np.isfinite(dx).all()
    assert np.isfinite(db).all()


@LAYOUTS
@NOT_FINITE
@pytest.mark.parametrize("place", [(0, 0, 0, 0), (1, 5, 3, 4), (1, 3, 2, 2)])
def test_an_output_gradient_that_is_not_finite_reaches_exactly_its_window(layout, value, place):
    """Also where the window hangs over the edge: padding is no cell, so infinity meets no zero."""
    rng = np.random.default_rng(2)
    x, w, dout = (rng.uniform(1, 2, shape) for shape in (X_SHAPE, W_SHAPE, Y_SHAPE))
    dout[place] = value
    dx, dw, db = ic.conv_grads(
        ordered(dout, layout), ordered(x, layout), w, layout=layout, **KEYWORDS
    )
    one = np.zeros(Y_SHAPE)
    one[place] = 1
    cells, taps, filters = reference.conv_grads(one, np.ones(X_SHAPE), np.ones(W_SHAPE), **KEYWORDS)
    np.testing.assert_array_equal(~np.isfinite(dx), ordered(cells != 0, layout))
    np.testing.assert_array_equal(~np.isfinite(dw), taps != 0)
    np.testing.assert_array_equal(~np.isfinite(db), filters != 0)
    clean = reference.conv_grads(np.where(one, 0, dout), x, w, **KEYWORDS)[1]
    np.testing.assert_allclose(dw[taps == 0], clean[taps == 0], rtol=1e-12)
    if not np.isnan(value):
        assert (dw[taps != 0] == value).all()


def test_col2im_makes_no_warning():
    assert np.isinf(ic.col2im(np.full((2, 2), 6e4, "f2"), (1, 1, 3), 2)).any()
    assert np.isinf(ic.col2im(np.full((2, 2), 1.7e308), (1, 1, 3), 2)).any()


def test_a_signaling_nan_makes_no_warning():
    signaling = np.array([0x7FA00000], "u4").view("f4")
    one, w = np.ones((1, 1, 1)), signaling.reshape(1, 1, 1)
    assert np.isnan(ic.conv(one, w, signaling))
    assert np.isnan(ic.conv_transpose(one, w, signaling, output_padding=0))
    assert np.isnan(ic.conv_grads(one, one, w).dx)


def test_not_finite_makes_no_warning_whoever_works():
    x = np.full((8, 4, 30, 40), np.inf)
    w = np.ones((32, 4, 3, 3))
    w[:, 0] = -1
    for workers in (1, 2):
        with ic.set_workers(workers):  # warnings are errors here
            assert np.isnan(ic.conv(x, w)).all()
    big = np.full((1, 1, 3), 60000, np.float16)
    assert np.isinf(ic.conv(big, np.ones((1, 1, 3), np.float16))).all()


# --- out ------------------------------------------------------------------------------------------


@LAYOUTS
@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64])
def test_out_is_filled_whatever_was_in_it(layout, dtype):
    rng = np.random.default_rng(4)
    x, w, b = (rng.integers(-3, 4, shape).astype(dtype) for shape in (X_SHAPE, W_SHAPE, 6))
    y = ic.conv(ordered(x, layout), w, b, layout=layout, **KEYWORDS)
    for sentinel in (77, -123 if dtype == np.int64 else np.nan):
        for steps in (1, 2, -1):
            room = np.full(tuple(3 * size for size in y.shape), sentinel, dtype)
            out = room[tuple(slice(0, size) for size in y.shape)]
            if steps != 1:
                out = room[(..., slice(None, None, steps))][
                    tuple(slice(0, size) for size in y.shape)
                ]
            outside = room.copy()
            given = ic.conv(ordered(x, layout), w, b, layout=layout, out=out, **KEYWORDS)
            assert given is out
            np.testing.assert_array_equal(out, y, strict=True)
            out[...] = sentinel  # nothing beside it was written to
            np.testing.assert_array_equal(room, outside)


def test_out_that_does_not_fit_is_refused_before_anything_is_written():
    x, w = np.ones((1, 2, 5)), np.ones((3, 2, 2))
    buffer = np.full(100, 7.0)
    frozen = np.zeros((1, 3, 4))
    frozen.flags.writeable = False
    shared = np.ones(40)
    strided = np.lib.stride_tricks.as_strided
    cases = [
        (ValueError, r"out must have shape \(1, 3, 4\)", np.zeros((1, 3, 5)), x),
        (TypeError, "out must have type float64", np.zeros((1, 3, 4), np.float32), x),
        (TypeError, "out must be a NumPy array", [[[0.0] * 4] * 3], x),
        (ValueError, "read-only", frozen, x),
        (ValueError, "overlap x", shared[:12].reshape(1, 3, 4), shared[8:18].reshape(1, 2, 5)),
        (
            ValueError,
            "cell of its own",
            strided(buffer, (1, 3, 4), (0, 0, 8)),
            x,
        ),
        (ValueError, "cell of its own", strided(buffer, (1, 3, 4), (8, 8, 8)), x),
        (TypeError, "not masked", np.ma.masked_array(np.zeros((1, 3, 4)), mask=True), x),
    ]
    for error, text, out, image in cases:
        before = np.copy(out)
        with pytest.raises(error, match=text):
            ic.conv(image, w, out=out)
        np.testing.assert_array_equal(out, before)


def test_out_may_lie_between_the_cells_of_x():
    both = np.ones((1, 1, 24))
    x, out = both[:, :, ::2], both[:, :, 1:21:2]
    np.testing.assert_array_equal(ic.conv(x, np.ones((1, 1, 3)), out=out), np.full((1, 1, 10), 3.0))


def test_out_without_images():
    out = np.empty((0, 1, 10))
    assert ic.conv(np.ones((0, 2, 12)), np.ones((1, 2, 3)), out=out) is out


def test_nothing_given_is_changed():
    rng = np.random.default_rng(9)
    for dtype in (np.float32, np.float16, np.int64, np.complex64):
        arrays = [rng.integers(-3, 4, s).astype(dtype) for s in (X_SHAPE, W_SHAPE, 6, Y_SHAPE)]
        copies = [each.copy() for each in arrays]
        for each in arrays:
            each.flags.writeable = False
        x, w, b, dout = arrays
        ic.conv(x, w, b, **KEYWORDS)
        ic.conv_grads(dout, x, w, **KEYWORDS)
        ic.conv_transpose(dout, w, groups=2)
        ic.im2col(x, 2)
        for each, copy in zip(arrays, copies, strict=True):
            np.testing.assert_array_equal(each, copy)


def test_results_are_the_callers_own():
    """A pointwise convolution or an im2col of one tap must not hand out a view of its input."""
    x = np.ones((1, 2, 3))
    for result in (ic.im2col(x, 1), ic.col2im(x[0], (1, 2, 3), 1), ic.conv(x, np.ones((2, 2, 1)))):
        assert not np.shares_memory(result, x)
        assert result.flags.writeable
