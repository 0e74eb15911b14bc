"""The slips of docs/errata.md, shown on the note's own lines.

The functions named `printed_...` are the note's code as printed, wrong lines included.
"""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.signal

from im2col_conv.reference import (
    conv_backward_naive,
    conv_forward_naive,
    conv_input_grad,
    conv_weight_grad,
)

W_NOTE = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
W_PLUS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])


def printed_dx(dout, x_shape, w, stride, pad=0, *, step=None):
    """As printed; `step` mends the first slip only (the note moves its window by stride)."""
    step = stride if step is None else step
    N, C, H, W = x_shape
    F, _, HH, WW = w.shape
    H_out, W_out = dout.shape[2:]
    dx = np.zeros((N, C, H, W))
    if stride > 1:
        H_up = (H_out - 1) * stride + 1
        W_up = (W_out - 1) * stride + 1
        dout_upsampled = np.zeros((N, F, H_up, W_up))
        dout_upsampled[:, :, ::stride, ::stride] = dout
        dout = dout_upsampled
    dout_padded = np.pad(dout, ((0, 0), (0, 0), (HH - 1, HH - 1), (WW - 1, WW - 1)))
    w_flipped = w[:, :, ::-1, ::-1]
    for i in range(H):
        for j in range(W):
            h_start = i * step
            w_start = j * step
            h_end = h_start + HH
            w_end = w_start + WW
            dout_window = dout_padded[:, :, h_start:h_end, w_start:w_end]
            result = np.sum(
                dout_window[:, :, None, :, :] * w_flipped[None, :, :, :, :], axis=(3, 4)
            )
            dx[:, :, i, j] += np.sum(result, axis=1)
    if pad > 0:
        dx = dx[:, :, pad:-pad, pad:-pad]
    return dx


def printed_dw(dout_orig, x, w, stride):
    dw = np.zeros_like(w)
    HH, WW = w.shape[2:]
    for i in range(dout_orig.shape[2]):
        for j in range(dout_orig.shape[3]):
            h_start = i * stride
            w_start = j * stride
            x_slice = x[:, :, h_start : h_start + HH, w_start : w_start + WW]
            dout_slice = dout_orig[:, :, i, j]
            result = dout_slice[:, :, None, None, None] * x_slice[:, None, :, :, :]
            dw += np.sum(result, axis=0)
    return dw


def printed_out_cell(x, w, b, n, f, i, j):
    """One cell of the forward pass, stride 1."""
    HH, WW = w.shape[2:]
    window = x[n, :, i : i + HH, j : j + WW]
    return np.sum(window * w[f]) + b[f]


def case(H, W, HH, WW, stride, seed=0):
    """Return dout, x_shape and w without a zero in them, so that no mistake can hide."""
    rng = np.random.default_rng(seed)
    out = ((H - HH) // stride + 1, (W - WW) // stride + 1)
    dout = rng.integers(1, 10, (2, 3, *out))
    return dout, (2, 2, H, W), rng.integers(1, 10, (3, 2, HH, WW))


def note_dout(*letters):
    side = 3 if len(letters) == 9 else 2
    return np.array(letters).reshape(1, 1, side, side)


def full_convolution(a, b):
    return scipy.signal.convolve(a, b, mode="full", method="direct")


def valid_correlation(a, b):
    return scipy.signal.correlate(a, b, mode="valid", method="direct")


# 1. The window of the dx loop moves by stride.


@pytest.mark.parametrize(("H", "W", "HH", "WW"), [(5, 5, 3, 3), (6, 4, 2, 3), (4, 5, 1, 2)])
def test_printed_dx_is_right_for_stride_1(H, W, HH, WW):
    dout, x_shape, w = case(H, W, HH, WW, 1)
    expected = conv_input_grad(dout, w, x_shape)
    np.testing.assert_array_equal(printed_dx(dout, x_shape, w, 1), expected)


def test_printed_dx_raises_for_the_note_stride_2_example():
    dout, x_shape, w = case(5, 5, 3, 3, stride=2)
    with pytest.raises(ValueError, match="could not be broadcast"):
        printed_dx(dout, x_shape, w, 2)
    expected = conv_input_grad(dout, w, x_shape, stride=2)
    np.testing.assert_array_equal(printed_dx(dout, x_shape, w, 2, step=1), expected)


def test_printed_dx_is_silently_wrong_for_a_1x1_kernel():
    dout, w = np.array([[[[1, 2]]]]), np.array([[[[10]]]])
    assert printed_dx(dout, (1, 1, 1, 3), w, 2).tolist() == [[[[10, 20, 0]]]]
    assert conv_input_grad(dout, w, (1, 1, 1, 3), stride=2).tolist() == [[[[10, 0, 20]]]]


def test_printed_dx_is_silently_wrong_for_a_single_output():
    dout, w = np.ones((1, 1, 1, 1), int), np.arange(1, 7).reshape(1, 1, 2, 3)
    wrong = [[[[1, 3, 0], [0, 0, 0]]]]
    assert printed_dx(dout, (1, 1, 2, 3), w, 2).tolist() == wrong
    assert conv_input_grad(dout, w, (1, 1, 2, 3), stride=2).tolist() == w.tolist()


SMALL = [
    (H, W, HH, WW, stride)
    for H, W, HH, WW, stride in itertools.product(
        range(1, 6), range(1, 6), range(1, 5), range(1, 5), (2, 3)
    )
    if HH <= H and WW <= W
]


def what_becomes_of(printed, expected):
    try:
        return "right" if np.array_equal(printed(), expected) else "silently wrong"
    except ValueError:
        return "raises"


def test_when_printed_dx_raises_and_when_it_is_silently_wrong():
    """The sentence of errata 1, on every small geometry."""
    seen = set()
    for H, W, HH, WW, stride in SMALL:
        dout, x_shape, w = case(H, W, HH, WW, stride)
        axes = ((H, HH), (W, WW))
        if not all(k == 1 or (n == k <= 3 and stride == 2) for n, k in axes):
            says = "raises"
        elif all(k == 1 and n <= stride for n, k in axes):
            says = "right"
        else:
            says = "silently wrong"
        expected = conv_input_grad(dout, w, x_shape, stride=stride)
        happens = what_becomes_of(lambda: printed_dx(dout, x_shape, w, stride), expected)  # noqa: B023
        assert happens == says, (H, W, HH, WW, stride)
        seen.add(happens)
    assert seen == {"raises", "right", "silently wrong"}


# 2. Rows that the stride leaves unused.


def test_step_1_alone_raises_where_rows_are_unused():
    dout, x_shape, w = case(6, 5, 3, 3, stride=2)
    with pytest.raises(ValueError, match="could not be broadcast"):
        printed_dx(dout, x_shape, w, 2, step=1)
    dx = conv_input_grad(dout, w, x_shape, stride=2)
    assert dx.shape == x_shape
    assert not dx[:, :, 5].any()
    np.testing.assert_array_equal(dx[:, :, :5], conv_input_grad(dout, w, (2, 2, 5, 5), stride=2))


def test_when_step_1_alone_raises():
    """The sentence of errata 2, on every small geometry."""
    seen = set()
    for H, W, HH, WW, stride in SMALL:
        dout, x_shape, w = case(H, W, HH, WW, stride)
        rests = ((HH, (H - HH) % stride), (WW, (W - WW) % stride))
        fits = all(rest == 0 or k == 1 or (k == 2 and rest == 1) for k, rest in rests)
        expected = conv_input_grad(dout, w, x_shape, stride=stride)
        happens = what_becomes_of(
            lambda: printed_dx(dout, x_shape, w, stride, step=1),  # noqa: B023
            expected,
        )
        assert happens == ("right" if fits else "raises"), (H, W, HH, WW, stride)
        seen.add(happens)
    assert seen == {"raises", "right"}


# 3. Arithmetic in the type of the inputs.


def test_printed_forward_wraps_small_integers():
    x, w, b = np.full((1, 1, 1, 2), 200, np.uint8), np.full((1, 1, 1, 2), 2, np.uint8), np.zeros(1)
    assert printed_out_cell(x, w, b, 0, 0, 0, 0) == 144 + 144
    assert conv_forward_naive(x, w, b, {"stride": 1, "pad": 0})[0].tolist() == [[[[800.0]]]]


def test_printed_dw_raises_for_integer_weights():
    x, w = np.ones((1, 1, 3, 4)), np.ones((1, 1, 2, 2), int)
    dout = np.full((1, 1, 2, 3), 0.5)
    with pytest.raises(TypeError, match="Cannot cast ufunc 'add' output"):
        printed_dw(dout, x, w, 1)
    np.testing.assert_array_equal(conv_weight_grad(dout, x, w.shape), np.full(w.shape, 3.0))


def test_printed_dw_wraps_in_the_type_of_w():
    x, w = np.full((1, 1, 1, 2), 100), np.ones((1, 1, 1, 2), np.int8)
    dout = np.full((1, 1, 1, 1), 3)
    assert printed_dw(dout, x, w, 1).tolist() == [[[[44, 44]]]]
    assert conv_weight_grad(dout, x, w.shape).tolist() == [[[[300, 300]]]]


# 4. H, W and x after padding.


def test_printed_dx_needs_the_padded_sizes():
    x, w = np.arange(12).reshape(1, 1, 3, 4), np.arange(1, 5).reshape(1, 1, 2, 2)
    out, cache = conv_forward_naive(x, w, np.zeros(1), {"stride": 1, "pad": 1})
    dout = np.arange(1, out.size + 1).reshape(out.shape)
    dx = conv_backward_naive(dout, cache)[0]
    assert cache[0].shape == (1, 1, 5, 6)
    np.testing.assert_array_equal(printed_dx(dout, cache[0].shape, w, 1, pad=1), dx)
    assert printed_dx(dout, x.shape, w, 1, pad=1).shape == (1, 1, 1, 2)


def test_formula_means_the_padded_x():
    x, w = np.arange(1, 13).reshape(1, 1, 3, 4), np.arange(1, 5).reshape(1, 1, 2, 2)
    out, _ = conv_forward_naive(x, w, np.zeros(1), {"stride": 1, "pad": 1})
    assert out[0, 0, 0, 0] == w[0, 0, 1, 1] * x[0, 0, 0, 0]
    assert out[0, 0, 0, 0] != np.sum(x[0, 0, :2, :2] * w[0, 0])


# 5. dX = dY * W_flipped.


def test_dx_is_a_convolution_with_w_not_with_its_flip():
    w = np.arange(1, 7).reshape(2, 3)
    dout = np.array([[3, -1, 4], [1, 5, -9]])
    dx = conv_input_grad(dout[None, None], w[None, None], (1, 1, 3, 5))[0, 0]
    flipped = w[::-1, ::-1]
    np.testing.assert_array_equal(dx, full_convolution(dout, w))
    np.testing.assert_array_equal(dx, valid_correlation(np.pad(dout, ((1, 1), (2, 2))), flipped))
    assert not np.array_equal(dx, full_convolution(dout, flipped))


def test_for_the_note_filter_the_printed_equation_turns_the_sign():
    dout = note_dout(1, 2, 3, 4, 5, 6, 7, 8, 9)
    dx = conv_input_grad(dout, W_NOTE[None, None], (1, 1, 5, 5))[0, 0]
    assert dx[0, 0] == 1
    np.testing.assert_array_equal(full_convolution(dout[0, 0], W_NOTE[::-1, ::-1]), -dx)


# 6. Two filters share the letters of one gradient.


def test_each_filter_has_its_own_dout():
    w = np.stack([W_NOTE, W_PLUS])[:, None]
    a, b, d, e = (np.zeros((1, 2, 3, 3), int) for _ in range(4))
    for letter, at in zip((a, b, d, e), ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True):
        letter[0, 0, *at], letter[0, 1, *at] = 1, 100
    from_each = [conv_input_grad(g, w, (1, 1, 5, 5))[0, 0, 1, 1] for g in (a, b, d, e)]
    # a_1 + (2 b_0 + b_1) + d_1 + e_0
    assert from_each == [100, 102, 100, 1]


# 7. What the += of dx is for.


def test_dx_needs_no_plus():
    """The loop with = in place of +=, into NaN: every cell is visited, and = is enough."""
    dout, x_shape, w = case(5, 4, 3, 2, 1)
    dout_padded = np.pad(dout, ((0, 0), (0, 0), (2, 2), (1, 1)))
    dx = np.full(x_shape, np.nan)
    for i in range(5):
        for j in range(4):
            window = dout_padded[:, :, i : i + 3, j : j + 2]
            dx[:, :, i, j] = np.einsum("nfhw,fchw->nc", window, w[:, :, ::-1, ::-1])
    np.testing.assert_array_equal(dx, printed_dx(dout, x_shape, w, 1))


# 8. Where the windows of stride 2 stand.


def test_stride_2_has_four_windows():
    """Gradient 1 at one output, filter of ones: dx marks the window of that output."""
    corners = []
    for at in np.ndindex(2, 2):
        dout = np.zeros((1, 1, 2, 2))
        dout[0, 0, *at] = 1
        dx = conv_input_grad(dout, np.ones((1, 1, 3, 3)), (1, 1, 5, 5), stride=2)[0, 0]
        corners.append(tuple(np.argwhere(dx)[0].tolist()))
        assert dx.sum() == 9
    assert corners == [(0, 0), (0, 2), (2, 0), (2, 2)]


# 9. X over dY, or dY over X.


def test_sliding_x_over_dout_turns_dw_around():
    x, dout = np.arange(1, 21).reshape(4, 5), np.array([[1, 2, 4], [8, 16, 32]])
    dw = conv_weight_grad(dout[None, None], x[None, None], (1, 1, 3, 3))[0, 0]
    np.testing.assert_array_equal(valid_correlation(x, dout), dw)
    np.testing.assert_array_equal(valid_correlation(dout, x), dw[::-1, ::-1])
    assert not np.array_equal(dw, dw[::-1, ::-1])


# 10. Channels are not a third dimension.


def test_the_filter_does_not_slide_over_channels():
    x, w = np.ones((1, 4, 5, 6)), np.ones((2, 4, 3, 3))
    out, _ = conv_forward_naive(x, w, np.zeros(2), {"stride": 1, "pad": 0})
    assert out.shape == (1, 2, 3, 4)
    with pytest.raises(ValueError, match="w needs 4 channels"):
        conv_forward_naive(x, w[:, :3], np.zeros(2), {"stride": 1, "pad": 0})


# 11. What the example filters cannot show.


def test_note_filters_hide_a_forgotten_flip():
    np.testing.assert_array_equal(W_NOTE[::-1, ::-1], -W_NOTE)
    np.testing.assert_array_equal(W_NOTE[::-1], W_NOTE)
    np.testing.assert_array_equal(W_PLUS[::-1, ::-1], W_PLUS)
    lopsided = np.arange(1, 10).reshape(3, 3)
    turned = [lopsided, lopsided[::-1], lopsided[:, ::-1], lopsided[::-1, ::-1]]
    assert len({t.tobytes() for t in turned}) == 4


# The document itself.


def test_errata_cites_every_test_here_and_no_other():
    text = (Path(__file__).parents[1] / "docs" / "errata.md").read_text(encoding="utf-8")
    cited = set(re.findall(r"`(test_\w+)`", text))
    here = {name for name in globals() if name.startswith("test_")}
    assert cited == here - {"test_errata_cites_every_test_here_and_no_other"}
