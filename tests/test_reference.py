"""The reference, judged by the note's examples, index by index sums, SciPy and PyTorch.

All numbers are small integers, so every comparison asks for equality.
"""

import ast
import inspect
import itertools
import math
import sys

import numpy as np
import pytest
import scipy.signal

from im2col_conv import reference
from im2col_conv.reference import (
    col2im,
    conv,
    conv_backward_naive,
    conv_forward_naive,
    conv_grads,
    conv_input_grad,
    conv_transpose,
    conv_weight_grad,
    im2col,
)

X_NOTE = np.arange(1, 26).reshape(1, 1, 5, 5)
W_NOTE = np.array([[[[1, 0, -1], [2, 0, -2], [1, 0, -1]]]])
W_PLUS = np.array([[[[0, 1, 0], [1, 1, 1], [0, 1, 0]]]])
PLAIN = {"stride": 1, "pad": 0}

# (x_shape, w_shape, geometry): no two sizes alike where they could be, one to three axes.
GEOMETRIES = {
    "plain": ((2, 3, 6, 5), (4, 3, 3, 2), {}),
    "stride leaves rows and columns": (
        (2, 1, 8, 7),
        (3, 1, 3, 2),
        {"stride": (3, 2), "padding": 0},
    ),
    "padding by axis": ((1, 2, 4, 5), (3, 2, 3, 2), {"padding": (1, 3)}),
    "padding by side": ((2, 2, 4, 3), (1, 2, 2, 3), {"padding": ((0, 2), (3, 1))}),
    "padding larger than kernel": ((1, 1, 3, 2), (2, 1, 2, 1), {"padding": (4, 2)}),
    "dilation by axis": ((1, 2, 7, 9), (3, 2, 3, 2), {"dilation": (2, 5)}),
    "everything": (
        (2, 4, 8, 9),
        (6, 2, 3, 2),
        {"stride": (2, 4), "padding": ((1, 0), (0, 3)), "dilation": (2, 3), "groups": 2},
    ),
    "depthwise, two filters a channel": ((2, 3, 5, 4), (6, 1, 2, 3), {"groups": 3, "stride": 2}),
    "1x1 kernel, stride": ((2, 3, 5, 4), (2, 3, 1, 1), {"stride": (3, 2)}),
    "stride larger than kernel": ((1, 2, 9, 7), (2, 2, 2, 1), {"stride": (5, 4)}),
    "kernel as large as the input": ((2, 2, 4, 3), (3, 2, 4, 3), {"stride": 2}),
    "valid": ((1, 2, 5, 6), (2, 2, 2, 3), {"padding": "valid", "stride": (1, 2)}),
    "same": ((1, 2, 5, 8), (3, 2, 2, 3), {"padding": "same", "stride": (2, 3)}),
    "one axis": (
        (3, 2, 11),
        (4, 2, 3),
        {"stride": 2, "padding": ((1, 2),), "dilation": 3},
    ),
    "three axes": (
        (1, 2, 4, 5, 3),
        (4, 1, 2, 3, 2),
        {"stride": (2, 1, 1), "padding": (0, 1, 2), "dilation": (2, 1, 3), "groups": 2},
    ),
}

every_geometry = pytest.mark.parametrize(
    ("x_shape", "w_shape", "geometry"), GEOMETRIES.values(), ids=GEOMETRIES.keys()
)


def integers(seed, *shape):
    return np.random.default_rng(seed).integers(-9, 10, shape)


def same_pair(size, kernel, stride, dilation):
    """TensorFlow's rule, written as its guide does: by the remainder of the size."""
    extent = dilation * (kernel - 1) + 1
    total = max(extent - (stride if size % stride == 0 else size % stride), 0)
    return total // 2, total - total // 2


def axis_rules(x_shape, w_shape, stride=1, padding=0, dilation=1, groups=1):
    """One (size, kernel, stride, before, after, dilation) per axis."""
    axes = len(x_shape) - 2
    strides = np.broadcast_to(stride, axes).tolist()
    dilations = np.broadcast_to(dilation, axes).tolist()
    if padding == "same":
        pads = list(map(same_pair, x_shape[2:], w_shape[2:], strides, dilations))
    elif padding == "valid":
        pads = [(0, 0)] * axes
    else:
        sides = np.reshape(padding, (-1, 1)) if np.ndim(padding) < 2 else padding
        pads = np.broadcast_to(sides, (axes, 2)).tolist()
    return [
        (n, k, s, p, q, d)
        for n, k, s, (p, q), d in zip(
            x_shape[2:], w_shape[2:], strides, pads, dilations, strict=True
        )
    ]


def out_shape(x_shape, w_shape, geometry):
    """Count the window positions one by one."""
    counts = []
    for n, k, s, p, q, d in axis_rules(x_shape, w_shape, **geometry):
        starts = range(-p, n + q, s)
        counts.append(sum(start + (k - 1) * d < n + q for start in starts))
    return (x_shape[0], w_shape[0], *counts)


def spelled_out(x, w, geometry):
    """Sum Python integers, index by index, over the taps that fall inside x; nothing is padded."""
    rules = axis_rules(x.shape, w.shape, **geometry)
    per_group = len(w) // geometry.get("groups", 1)
    y = np.zeros(out_shape(x.shape, w.shape, geometry), np.int64)
    for n, f, *at in np.ndindex(y.shape):
        first_channel = f // per_group * w.shape[1]
        for c, *tap in np.ndindex(w.shape[1:]):
            cell = [
                i * s + k * d - p for i, k, (_, _, s, p, _, d) in zip(at, tap, rules, strict=True)
            ]
            if all(0 <= a < size for a, size in zip(cell, x.shape[2:], strict=True)):
                y[n, f, *at] += int(x[n, first_channel + c, *cell]) * int(w[f, c, *tap])
    return y


def one_hots(shape):
    for index in np.ndindex(shape):
        e = np.zeros(shape, np.int64)
        e[index] = 1
        yield index, e


# The note's worked examples.


def test_note_forward_is_minus_8_everywhere():
    out, _ = conv_forward_naive(X_NOTE, W_NOTE, np.zeros(1), PLAIN)
    np.testing.assert_array_equal(out, np.full((1, 1, 3, 3), -8.0))


def note_dx_coefficients(w, at, stride=1):
    """Coefficients of a, b, c, ... in dx[at], the same gradient arriving at each filter."""
    _, cache = conv_forward_naive(X_NOTE, w, np.zeros(len(w)), {"stride": stride, "pad": 0})
    side = 3 if stride == 1 else 2
    return [
        conv_backward_naive(np.repeat(e, len(w), axis=1), cache)[0][0, 0, *at]
        for _, e in one_hots((1, 1, side, side))
    ]


def test_note_dx_at_the_corner_is_a():
    assert note_dx_coefficients(W_NOTE, (0, 0)) == [1, 0, 0, 0, 0, 0, 0, 0, 0]


def test_note_dx_at_1_1_is_2b_plus_e_for_filter_0():
    assert note_dx_coefficients(W_NOTE, (1, 1)) == [0, 2, 0, 0, 1, 0, 0, 0, 0]


def test_note_dx_at_1_1_is_a_plus_b_plus_d_for_filter_1():
    assert note_dx_coefficients(W_PLUS, (1, 1)) == [1, 1, 0, 1, 0, 0, 0, 0, 0]


def test_note_dx_at_1_1_is_a_plus_3b_plus_d_plus_e_for_both():
    both = np.concatenate([W_NOTE, W_PLUS])
    assert note_dx_coefficients(both, (1, 1)) == [1, 3, 0, 1, 1, 0, 0, 0, 0]


def test_note_table_of_dw_at_0_0():
    _, cache = conv_forward_naive(X_NOTE, W_NOTE, np.zeros(1), PLAIN)
    table = [conv_backward_naive(e, cache)[1][0, 0, 0, 0] for _, e in one_hots((1, 1, 3, 3))]
    assert table == [1, 2, 3, 6, 7, 8, 11, 12, 13]


def test_note_db_is_the_sum():
    _, cache = conv_forward_naive(X_NOTE, W_NOTE, np.zeros(1), PLAIN)
    assert conv_backward_naive(np.arange(1, 10).reshape(1, 1, 3, 3), cache)[2] == [45]


def test_note_stride_2_is_a_full_convolution_of_the_upsampled_gradient():
    w = np.arange(1, 10).reshape(1, 1, 3, 3)
    out, cache = conv_forward_naive(X_NOTE, w, np.zeros(1), {"stride": 2, "pad": 0})
    assert out.shape == (1, 1, 2, 2)
    dx, _, _ = conv_backward_naive(np.array([[[[3, -5], [7, 2]]]]), cache)
    upsampled = np.array([[3, 0, -5], [0, 0, 0], [7, 0, 2]])
    expected = scipy.signal.convolve(upsampled, w[0, 0], mode="full", method="direct")
    assert expected.shape == (5, 5)
    np.testing.assert_array_equal(dx[0, 0], expected)


def test_note_stride_2_takes_every_second_output_of_stride_1():
    w = np.arange(1, 10).reshape(1, 1, 3, 3)
    all_windows, _ = conv_forward_naive(X_NOTE, w, np.zeros(1), PLAIN)
    out, _ = conv_forward_naive(X_NOTE, w, np.zeros(1), {"stride": 2, "pad": 0})
    np.testing.assert_array_equal(out, all_windows[:, :, [[0], [2]], [0, 2]])


# The note's pair.


@pytest.mark.parametrize(("stride", "pad"), list(itertools.product((1, 2, 3), (0, 1, 2))))
def test_naive_pair_is_right_on_every_cell(stride, pad):
    x, w, b = integers(1, 2, 2, 6, 5), integers(2, 3, 2, 3, 2), integers(3, 3)
    conv_param = {"stride": stride, "pad": pad}
    geometry = {"stride": stride, "padding": pad}
    out, cache = conv_forward_naive(x, w, b, conv_param)
    assert out.dtype == np.float64
    np.testing.assert_array_equal(out, spelled_out(x, w, geometry) + b[:, None, None])

    dout = integers(4, *out.shape)
    dx, dw, db = conv_backward_naive(dout, cache)
    assert dx.shape == x.shape
    for index, e in one_hots(x.shape):
        assert dx[index] == np.sum(dout * spelled_out(e, w, geometry))
    for index, e in one_hots(w.shape):
        assert dw[index] == np.sum(dout * spelled_out(x, e, geometry))
    assert db.tolist() == [dout[:, f].sum() for f in range(3)]


def test_naive_cache_holds_the_padded_x():
    x, w, b = integers(5, 2, 1, 4, 3), integers(6, 2, 1, 3, 2), integers(7, 2)
    conv_param = {"stride": 1, "pad": 2}
    _, (x_padded, w_kept, b_kept, param_kept) = conv_forward_naive(x, w, b, conv_param)
    assert x_padded.shape == (2, 1, 8, 7)
    np.testing.assert_array_equal(x_padded[:, :, 2:-2, 2:-2], x)
    assert np.abs(x_padded).sum() == np.abs(x).sum()
    np.testing.assert_array_equal(w_kept, w)
    np.testing.assert_array_equal(b_kept, b)
    assert param_kept == conv_param


def test_naive_pair_takes_an_empty_batch():
    conv_param = {"stride": 2, "pad": 1}
    w = np.ones((3, 2, 3, 2))
    out, cache = conv_forward_naive(np.ones((0, 2, 6, 5)), w, np.ones(3), conv_param)
    assert out.shape == (0, 3, 3, 3)
    dx, dw, db = conv_backward_naive(out, cache)
    assert dx.shape == (0, 2, 6, 5)
    np.testing.assert_array_equal(dw, np.zeros(w.shape))
    np.testing.assert_array_equal(db, np.zeros(3))


@pytest.mark.parametrize(
    ("conv_param", "message"),
    [
        ({"stride": 1}, "no key 'pad'"),
        ({"pad": 1}, "no key 'stride'"),
        ({"stride": 1, "pad": 0, "padding": 0}, "the key 'padding'"),
        ({"stride": 0, "pad": 0}, "stride.* at least 1; it is 0"),
        ({"stride": 1, "pad": -1}, "pad.* at least 0; it is -1"),
    ],
)
def test_naive_forward_names_the_wrong_key(conv_param, message):
    with pytest.raises(ValueError, match=message):
        conv_forward_naive(X_NOTE, W_NOTE, np.zeros(1), conv_param)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "b_shape", "message"),
    [
        ((1, 2, 5), (3, 2, 2), (3,), r"\(N, C, H, W\)"),
        ((1, 2, 5, 4), (3, 1, 2, 2), (3,), "w needs 2 channels"),
        ((1, 2, 5, 4), (3, 2, 2, 2), (2,), r"b must have shape \(3,\); it has \(2,\)"),
        ((1, 2, 5, 4), (3, 2, 2, 5), (3,), "2x5 kernel does not fit in the 5x4"),
        ((1, 0, 5, 4), (3, 0, 2, 2), (3,), "must not be empty"),
    ],
)
def test_naive_forward_says_what_is_wrong_with_a_shape(x_shape, w_shape, b_shape, message):
    with pytest.raises(ValueError, match=message):
        conv_forward_naive(np.ones(x_shape), np.ones(w_shape), np.ones(b_shape), PLAIN)


def test_naive_backward_says_what_dout_should_be():
    _, cache = conv_forward_naive(X_NOTE, W_NOTE, np.zeros(1), PLAIN)
    with pytest.raises(ValueError, match=r"dout must have shape \(1, 1, 3, 3\)"):
        conv_backward_naive(np.zeros((1, 1, 3, 2)), cache)


def test_naive_pair_takes_real_numbers_only():
    with pytest.raises(TypeError, match="w has dtype complex128"):
        conv_forward_naive(X_NOTE, 1j * W_NOTE, np.zeros(1), PLAIN)


# The general geometry.


@every_geometry
def test_conv_is_the_sum_spelled_out(x_shape, w_shape, geometry):
    x, w, b = integers(11, *x_shape), integers(12, *w_shape), integers(13, w_shape[0])
    expected = spelled_out(x, w, geometry)
    y = conv(x, w, **geometry)
    assert y.dtype == np.int64
    np.testing.assert_array_equal(y, expected)
    bias = b.reshape(-1, *(1,) * (x.ndim - 2))
    np.testing.assert_array_equal(conv(x, w, b, **geometry), expected + bias)


@every_geometry
def test_every_cell_of_every_gradient(x_shape, w_shape, geometry):
    """conv is linear in x and in w, so one unit vector gives each cell of a gradient exactly."""
    x, w = integers(21, *x_shape), integers(22, *w_shape)
    dout = integers(23, *out_shape(x_shape, w_shape, geometry))
    dx, dw, db = conv_grads(dout, x, w, **geometry)
    assert (dx.shape, dw.shape) == (x_shape, w_shape)
    for index, e in one_hots((1, *x_shape[1:])):
        expected = np.sum(dout * spelled_out(e, w, geometry), axis=tuple(range(1, dout.ndim)))
        np.testing.assert_array_equal(dx[:, *index[1:]], expected)
    for index, e in one_hots(w_shape):
        assert dw[index] == np.sum(dout * spelled_out(x, e, geometry))
    assert db.tolist() == [dout[:, f].sum() for f in range(len(w))]


@every_geometry
def test_gradients_are_adjoints(x_shape, w_shape, geometry):
    x, w = integers(31, *x_shape), integers(32, *w_shape)
    y = conv(x, w, **geometry)
    dout = integers(33, *y.shape)
    dx = conv_input_grad(dout, w, x_shape, **geometry)
    dw = conv_weight_grad(dout, x, w_shape, **geometry)
    assert np.sum(dout * y) == np.sum(dx * x) == np.sum(dw * w) != 0


@every_geometry
def test_complex_gradients_are_conjugated_adjoints(x_shape, w_shape, geometry):
    x = integers(34, *x_shape) + 1j * integers(35, *x_shape)
    w = integers(36, *w_shape) + 1j * integers(37, *w_shape)
    y = conv(x, w, **geometry)
    dout = integers(38, *y.shape) + 1j * integers(39, *y.shape)
    dx, dw, db = conv_grads(dout, x, w, **geometry)
    inner = np.vdot(dout, y)
    assert inner.imag != 0
    assert np.vdot(dx, x) == np.vdot(dw, w) == inner
    np.testing.assert_array_equal(db, dout.sum(axis=(0, *range(2, dout.ndim))))


@every_geometry
def test_im2col_is_the_conv_of_unit_filters(x_shape, w_shape, geometry):
    """Row (c, tap) of the columns is what a filter with a single 1 at (c, tap) picks."""
    geometry = {k: v for k, v in geometry.items() if k != "groups"}
    x, kernel = integers(41, *x_shape), w_shape[2:]
    cols = im2col(x, kernel, **geometry)
    picked = [spelled_out(x, e[None], geometry).ravel() for _, e in one_hots((x_shape[1], *kernel))]
    np.testing.assert_array_equal(cols, picked)


@every_geometry
def test_col2im_is_the_adjoint_of_im2col(x_shape, w_shape, geometry):
    geometry = {k: v for k, v in geometry.items() if k != "groups"}
    x, kernel = integers(42, *x_shape), w_shape[2:]
    cols = im2col(x, kernel, **geometry)
    g = integers(43, *cols.shape)
    back = col2im(g, x_shape, kernel, **geometry)
    assert back.shape == x_shape
    for index, e in one_hots((1, *x_shape[1:])):
        hits = im2col(e, kernel, **geometry)
        per_image = np.sum(hits[:, None] * g.reshape(len(g), x_shape[0], -1), axis=(0, 2))
        np.testing.assert_array_equal(back[:, *index[1:]], per_image)


@every_geometry
def test_the_four_products(x_shape, w_shape, geometry):
    if geometry.get("groups", 1) > 1:
        w_shape = (w_shape[0], x_shape[1], *w_shape[2:])
        geometry = {k: v for k, v in geometry.items() if k != "groups"}
    x, w = integers(44, *x_shape), integers(45, *w_shape)
    dout = integers(46, *out_shape(x_shape, w_shape, geometry))
    cols = im2col(x, w_shape[2:], **geometry)
    w_rows = w.reshape(len(w), -1)
    dout_rows = np.moveaxis(dout, 1, 0).reshape(len(w), -1)

    y_rows = np.moveaxis(conv(x, w, **geometry), 1, 0).reshape(len(w), -1)
    dx, dw, db = conv_grads(dout, x, w, **geometry)
    np.testing.assert_array_equal(y_rows, w_rows @ cols)
    np.testing.assert_array_equal(dw, (dout_rows @ cols.T).reshape(w_shape))
    lowered_dx = col2im(w_rows.T @ dout_rows, x_shape, w_shape[2:], **geometry)
    np.testing.assert_array_equal(dx, lowered_dx)
    np.testing.assert_array_equal(db, dout_rows.sum(axis=1))


def test_col2im_of_im2col_counts_the_windows():
    """Three windows of 3 overlap down the 5 rows; two lie side by side across the 6 columns."""
    x = integers(47, 2, 2, 5, 6)
    back = col2im(im2col(x, 3, stride=(1, 3)), x.shape, 3, stride=(1, 3))
    np.testing.assert_array_equal(back, x * np.array([1, 2, 3, 2, 1])[:, None])


@pytest.mark.parametrize("mode", ["valid", "full"])
def test_scipy_correlates_the_same(mode):
    x, w = integers(51, 1, 1, 7, 5), integers(52, 1, 1, 2, 4)
    padding = {"valid": 0, "full": (1, 3)}[mode]
    expected = scipy.signal.correlate(x[0, 0], w[0, 0], mode=mode, method="direct")
    np.testing.assert_array_equal(conv(x, w, padding=padding)[0, 0], expected)


def test_scipy_convolves_dx_and_correlates_dw():
    x, w = integers(53, 1, 1, 7, 5), integers(54, 1, 1, 2, 4)
    dout = integers(55, 1, 1, 6, 2)
    dx, dw, _ = conv_grads(dout, x, w)
    full = scipy.signal.convolve(dout[0, 0], w[0, 0], mode="full", method="direct")
    valid = scipy.signal.correlate(x[0, 0], dout[0, 0], mode="valid", method="direct")
    np.testing.assert_array_equal(dx[0, 0], full)
    np.testing.assert_array_equal(dw[0, 0], valid)


def test_dilation_is_a_kernel_with_holes():
    x, w = integers(56, 2, 3, 9, 8), integers(57, 4, 3, 3, 2)
    holes = np.zeros((4, 3, 5, 4), np.int64)
    holes[:, :, ::2, ::3] = w
    geometry = {"stride": (2, 1), "padding": (1, 2)}
    dilated = conv(x, w, dilation=(2, 3), **geometry)
    np.testing.assert_array_equal(dilated, conv(x, holes, **geometry))


def test_groups_are_separate_convolutions():
    x, w = integers(58, 2, 6, 5, 4), integers(59, 4, 3, 2, 3)
    halves = [conv(x[:, 3 * g : 3 * g + 3], w[2 * g : 2 * g + 2]) for g in range(2)]
    np.testing.assert_array_equal(conv(x, w, groups=2), np.concatenate(halves, axis=1))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation"),
    list(itertools.product(range(1, 8), range(1, 5), range(1, 5), (1, 2))),
)
def test_same_gives_ceil_of_size_over_stride(size, kernel, stride, dilation):
    x, w = integers(61, 1, 1, size), integers(62, 1, 1, kernel)
    y = conv(x, w, padding="same", stride=stride, dilation=dilation)
    assert y.shape == (1, 1, math.ceil(size / stride))
    pair = same_pair(size, kernel, stride, dilation)
    explicit = conv(x, w, padding=(pair,), stride=stride, dilation=dilation)
    np.testing.assert_array_equal(y, explicit)


def test_same_puts_the_odd_cell_after():
    x, w = np.array([[[1, 2, 3]]]), np.array([[[10, 1]]])
    assert conv(x, w, padding="same").tolist() == [[[12, 23, 30]]]


# conv_transpose.


TRANSPOSED = {
    "plain": ((2, 3, 4, 5), (3, 2, 2, 3), {}),
    "stride and output padding": (
        (1, 2, 3, 4),
        (2, 3, 3, 2),
        {"stride": (3, 2), "output_padding": (2, 1), "padding": (1, 0)},
    ),
    "padding by side": (
        (2, 2, 4, 3),
        (2, 1, 3, 2),
        {"stride": 2, "padding": ((0, 2), (1, 0))},
    ),
    "groups and dilation": (
        (1, 4, 3, 4),
        (4, 3, 2, 3),
        {"groups": 2, "dilation": (3, 2), "stride": (1, 3), "output_padding": (0, 2)},
    ),
    "output padding by dilation": (
        (1, 2, 4, 3),
        (2, 1, 2, 2),
        {"dilation": (3, 2), "output_padding": (2, 1)},
    ),
    "one axis": ((2, 3, 5), (3, 2, 4), {"stride": 3, "padding": 2, "output_padding": 1}),
    "three axes": (
        (1, 2, 2, 3, 2),
        (2, 2, 2, 1, 3),
        {"stride": (1, 2, 3), "padding": (0, 0, 1), "output_padding": (0, 1, 2)},
    ),
}


def scattered(x, w, stride=1, padding=0, output_padding=0, dilation=1, groups=1):
    """Add index by index into the cells that exist; no longer array, no crop."""
    rules = axis_rules(x.shape, w.shape, stride, padding, dilation)
    added = np.broadcast_to(output_padding, x.ndim - 2).tolist()
    out = [
        (n - 1) * s + (k - 1) * d + 1 - p - q + more
        for (n, k, s, p, q, d), more in zip(rules, added, strict=True)
    ]
    per_group = len(w) // groups
    y = np.zeros((len(x), w.shape[1] * groups, *out), np.int64)
    for n, c, *at in np.ndindex(x.shape):
        for f, *tap in np.ndindex(w.shape[1:]):
            cell = [
                i * s + k * d - p for i, k, (_, _, s, p, _, d) in zip(at, tap, rules, strict=True)
            ]
            if all(0 <= a < size for a, size in zip(cell, out, strict=True)):
                product = int(x[n, c, *at]) * int(w[c, f, *tap])
                y[n, c // per_group * w.shape[1] + f, *cell] += product
    return y


every_transposed = pytest.mark.parametrize(
    ("x_shape", "w_shape", "geometry"), TRANSPOSED.values(), ids=TRANSPOSED.keys()
)


@every_transposed
def test_conv_transpose_is_the_scatter_spelled_out(x_shape, w_shape, geometry):
    x, w = integers(71, *x_shape), integers(72, *w_shape)
    expected = scattered(x, w, **geometry)
    np.testing.assert_array_equal(conv_transpose(x, w, **geometry), expected)
    b = integers(73, expected.shape[1])
    bias = b.reshape(-1, *(1,) * (x.ndim - 2))
    np.testing.assert_array_equal(conv_transpose(x, w, b, **geometry), expected + bias)


@every_geometry
def test_conv_transpose_is_the_input_gradient(x_shape, w_shape, geometry):
    """With the rows that the stride leaves unused as output padding."""
    rules = axis_rules(x_shape, w_shape, **geometry)
    rest = tuple((n + p + q - (k - 1) * d - 1) % s for n, k, s, p, q, d in rules)
    pads = tuple((p, q) for _, _, _, p, q, _ in rules)
    w = integers(74, *w_shape)
    dout = integers(75, *out_shape(x_shape, w_shape, geometry))
    dx = conv_input_grad(dout, w, x_shape, **geometry)
    transposed = {**geometry, "padding": pads, "output_padding": rest}
    np.testing.assert_array_equal(conv_transpose(dout, w, **transposed), dx)


def test_conv_transpose_does_not_conjugate():
    x, w = np.array([[[1j, 2]]]), np.array([[[3j, 1]]])
    assert conv_transpose(x, w).tolist() == [[[-3, 7j, 2]]]


def test_conv_transpose_is_zero_past_its_end():
    x, w = np.array([[[1, 2]]]), np.array([[[3]]])
    y = conv_transpose(x, w, np.array([7]), stride=3, output_padding=2)
    assert y.tolist() == [[[10, 7, 7, 13, 7, 7]]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"padding": "same"}, "takes no padding"),
        ({"output_padding": 2, "stride": 2}, "less than max"),
        ({"padding": 3}, r"size 0 .*padding \(3, 3\) takes all 6"),
        ({"groups": 2}, "must divide"),
    ],
)
def test_conv_transpose_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        conv_transpose(np.ones((1, 3, 5)), np.ones((3, 2, 2)), **arguments)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "message"),
    [
        ((1, 3, 0), (3, 2, 4), "must not be empty"),
        ((1, 3, 5), (3, 0, 2), "must not be empty"),
        ((1, 3, 5), (3, 2, 2, 2), "same number of axes"),
    ],
)
def test_conv_transpose_says_what_is_wrong_with_a_shape(x_shape, w_shape, message):
    with pytest.raises(ValueError, match=message):
        conv_transpose(np.ones(x_shape), np.ones(w_shape))


def test_conv_transpose_wants_the_channels_of_x():
    with pytest.raises(ValueError, match="with the channels of x"):
        conv_transpose(np.ones((1, 2, 5)), np.ones((3, 2, 2)))


# PyTorch.


@every_geometry
def test_torch_agrees(x_shape, w_shape, geometry):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rules = axis_rules(x_shape, w_shape, **geometry)
    x, w, b = integers(81, *x_shape), integers(82, *w_shape), integers(83, w_shape[0])
    tx, tw, tb = (torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (x, w, b))
    pads = [side for _, _, _, p, q, _ in reversed(rules) for side in (p, q)]
    function = getattr(torch.nn.functional, f"conv{len(rules)}d")
    ty = function(
        torch.nn.functional.pad(tx, pads),
        tw,
        tb,
        stride=tuple(rule[2] for rule in rules),
        dilation=tuple(rule[5] for rule in rules),
        groups=geometry.get("groups", 1),
    )
    dout = integers(84, *ty.shape)
    expected = torch.autograd.grad(ty, (tx, tw, tb), torch.tensor(dout, dtype=torch.float64))
    np.testing.assert_array_equal(conv(x, w, b, **geometry), ty.detach())
    for ours, theirs in zip(conv_grads(dout, x, w, **geometry), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_torch_conjugates_the_same():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = integers(85, 2, 2, 5, 4) + 1j * integers(86, 2, 2, 5, 4)
    w = integers(87, 3, 2, 2, 3) + 1j * integers(88, 3, 2, 2, 3)
    tx, tw = (torch.tensor(a, requires_grad=True) for a in (x, w))
    ty = torch.nn.functional.conv2d(tx, tw, stride=(2, 1))
    dout = integers(89, *ty.shape) + 1j * integers(90, *ty.shape)
    expected = torch.autograd.grad(ty, (tx, tw), torch.tensor(dout))
    np.testing.assert_array_equal(conv(x, w, stride=(2, 1)), ty.detach())
    for ours, theirs in zip(conv_grads(dout, x, w, stride=(2, 1)), expected, strict=False):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "geometry"),
    [case for name, case in TRANSPOSED.items() if name != "padding by side"],
    ids=[name for name in TRANSPOSED if name != "padding by side"],
)
def test_torch_transposes_the_same(x_shape, w_shape, geometry):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, w = integers(91, *x_shape), integers(92, *w_shape)
    function = getattr(torch.nn.functional, f"conv_transpose{x.ndim - 2}d")
    expected = function(torch.tensor(x).double(), torch.tensor(w).double(), **geometry)
    np.testing.assert_array_equal(conv_transpose(x, w, **geometry), expected)


# Types and edges.


@pytest.mark.parametrize(
    ("x_type", "w_type", "computed"),
    [
        (np.bool_, np.bool_, np.int64),
        (np.uint8, np.int8, np.int64),
        (np.float16, np.float16, np.float64),
        (np.int64, np.float32, np.float64),
        (np.complex64, np.float64, np.complex128),
        (np.int8, np.complex64, np.complex128),
    ],
)
def test_types_computed_in(x_type, w_type, computed):
    x, w = np.ones((2, 1, 4, 3), x_type), np.ones((2, 1, 3, 2), w_type)
    y = conv(x, w)
    np.testing.assert_array_equal(y, np.full((2, 2, 2, 2), 6))
    results = [y, *conv_grads(np.ones(y.shape, x_type), x, w), conv_transpose(x, w[:1])]
    assert {a.dtype for a in results} == {np.dtype(computed)}
    assert im2col(x, 2).dtype == x_type


def test_bias_takes_part_in_the_type():
    ones = np.ones((1, 1, 2), np.int8)
    assert conv(ones, ones, np.array([0.5])).tolist() == [[[2.5]]]
    assert conv_transpose(ones, ones, np.array([0.5])).tolist() == [[[1.5, 2.5, 1.5]]]


def test_integers_wrap_at_64_bits():
    large = np.array([[[2**62, 2**62, 2**62]]])
    ones = np.ones((1, 1, 2), np.int64)
    assert conv(large, ones).tolist() == [[[-(2**63), -(2**63)]]]
    assert conv(large, ones, np.array([-1])).tolist() == [[[2**63 - 1, 2**63 - 1]]]
    assert conv_grads(large[..., :2], large, ones)[2].tolist() == [-(2**63)]
    assert conv_transpose(large[..., :2], ones).tolist() == [[[2**62, -(2**63), 2**62]]]
    assert col2im(large[0].repeat(2, 0)[:, :2], (1, 1, 3), 2).tolist() == [
        [[2**62, -(2**63), 2**62]]
    ]


@pytest.mark.parametrize("dtype", [object, "U1", "M8[s]", np.longdouble])
def test_other_types_are_refused(dtype):
    bad = np.zeros((1, 1, 3), dtype)
    with pytest.raises(TypeError, match="x has dtype"):
        conv(bad, np.ones((1, 1, 2)))
    with pytest.raises(TypeError, match="x has dtype"):
        im2col(bad, 2)


@every_geometry
def test_batch_of_zero(x_shape, w_shape, geometry):
    x, w = np.ones((0, *x_shape[1:])), np.ones(w_shape)
    y = conv(x, w, **geometry)
    assert y.shape == (0, *out_shape(x_shape, w_shape, geometry)[1:])
    dx, dw, db = conv_grads(y, x, w, **geometry)
    assert dx.shape == x.shape
    np.testing.assert_array_equal(dw, np.zeros(w_shape))
    np.testing.assert_array_equal(db, np.zeros(len(w)))
    sizes = {k: v for k, v in geometry.items() if k != "groups"}
    cols = im2col(x, w_shape[2:], **sizes)
    assert cols.shape == (x_shape[1] * math.prod(w_shape[2:]), 0)
    assert col2im(cols, x.shape, w_shape[2:], **sizes).shape == x.shape


def test_conv_transpose_of_a_batch_of_zero():
    y = conv_transpose(np.ones((0, 2, 4)), np.ones((2, 3, 2)), stride=2)
    assert y.shape == (0, 3, 8)


def test_no_argument_is_written_to():
    x, w, b = integers(93, 2, 2, 6, 5), integers(94, 3, 2, 3, 2), integers(95, 3)
    dout = integers(96, 2, 3, 4, 4)
    for array in (x, w, b, dout):
        array.flags.writeable = False
    _, cache = conv_forward_naive(x, w, b, PLAIN)
    kept = [a.copy() for a in cache[:3]]
    conv_backward_naive(dout, cache)
    for array, before in zip(cache, kept, strict=False):
        np.testing.assert_array_equal(array, before)
    np.testing.assert_array_equal(conv(x, w, b), conv_forward_naive(x, w, b, PLAIN)[0])
    dx, dw, _ = conv_grads(dout, x, w)
    np.testing.assert_array_equal(conv_transpose(dout, w), dx)
    assert dw.shape == w.shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stride": 0}, "stride must be at least 1; it is 0"),
        ({"stride": (1, 2, 3)}, r"stride \(1, 2, 3\) has 3 entries; it needs 2"),
        ({"dilation": 3}, "spatial axis 0: the kernel spans 7, 1 more than .* 6"),
        ({"padding": -1}, "padding must be at least 0"),
        ({"padding": "full"}, "'full'"),
        ({"padding": ((1, 2),)}, "1 pairs for 2"),
        ({"padding": ((1, 2, 3), (1, 2, 3))}, "has 3 entries; it needs 2"),
        ({"groups": 3}, "groups=3 must divide"),
        ({"groups": 2}, "w needs 1 channels"),
        ({"groups": 0}, "groups must be at least 1"),
    ],
)
def test_conv_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        conv(np.ones((1, 2, 6, 5)), np.ones((4, 2, 3, 2)), **arguments)


@pytest.mark.parametrize("name", ["stride", "padding", "dilation", "groups"])
def test_a_fraction_is_the_wrong_kind(name):
    with pytest.raises(TypeError, match=f"{name} must be an int; it is 1.5"):
        conv(np.ones((1, 2, 6, 5)), np.ones((4, 2, 3, 2)), **{name: 1.5})


def test_a_pair_for_one_axis_is_two_ints_too_many():
    with pytest.raises(ValueError, match="it needs 1"):
        conv(np.ones((1, 1, 5)), np.ones((1, 1, 2)), padding=(1, 2))


@pytest.mark.parametrize(
    ("x_shape", "w_shape"), [((1, 0, 4), (2, 0, 2)), ((1, 1, 4), (0, 1, 2)), ((1, 1, 4), (2, 1, 0))]
)
def test_nothing_but_the_batch_may_be_empty(x_shape, w_shape):
    with pytest.raises(ValueError, match="must not be empty"):
        conv(np.ones(x_shape), np.ones(w_shape))


@pytest.mark.parametrize(("x_shape", "w_shape"), [((1, 4), (1, 4)), ((1, 1, 4), (1, 1, 2, 2))])
def test_x_and_w_have_as_many_axes(x_shape, w_shape):
    with pytest.raises(ValueError, match="same number of axes"):
        conv(np.ones(x_shape), np.ones(w_shape))


def test_gradients_check_what_arrives():
    w = np.ones((4, 2, 3, 2))
    with pytest.raises(ValueError, match=r"dout must have shape \(1, 4, 4, 4\)"):
        conv_input_grad(np.ones((1, 4, 4, 3)), w, (1, 2, 6, 5))
    with pytest.raises(ValueError, match=r"dout must have shape \(1, 4, 4, 4\)"):
        conv_weight_grad(np.ones((1, 4, 3, 4)), np.ones((1, 2, 6, 5)), w.shape)
    with pytest.raises(ValueError, match=r"cols must have shape \(12, 16\)"):
        col2im(np.ones((12, 15)), (1, 2, 6, 5), (3, 2))
    with pytest.raises(ValueError, match=r"b must have shape \(4,\)"):
        conv(np.ones((1, 2, 6, 5)), w, np.ones(1))


def test_reference_imports_numpy_and_the_standard_library_only():
    tree = ast.parse(inspect.getsource(reference))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {
        getattr(node, "module", None) or alias.name for node in imports for alias in node.names
    }
    assert "numpy" in names
    assert all(getattr(node, "level", 0) == 0 for node in imports)
    assert {name.split(".")[0] for name in names} <= {"numpy", *sys.stdlib_module_names}
