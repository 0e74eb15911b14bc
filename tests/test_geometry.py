"""Sizes, and what is said where they do not fit: which number stands in which role."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import given

import im2col_conv as ic
from im2col_conv import ConvGeometry

from .strategies import cases

HOUSE = ConvGeometry.from_shapes(
    (2, 6, 11, 13),
    (4, 3, 3, 5),
    stride=(2, 3),
    padding=((1, 2), (0, 3)),
    dilation=(2, 1),
    groups=2,
)


def test_the_house_example():
    assert HOUSE.x_shape == (2, 6, 11, 13)
    assert HOUSE.w_shape == (4, 3, 3, 5)
    assert HOUSE.y_shape == (2, 4, 5, 4)
    assert HOUSE.reach == (5, 5)
    assert HOUSE.padded == (14, 16)
    assert HOUSE.unused == (1, 2)
    assert HOUSE.gemm == (4 // 2, 2 * 5 * 4, 3 * 3 * 5)
    assert HOUSE.cols_shape == (6 * 15, 2 * 20)
    assert HOUSE.flops == 2 * (2 * 4 * 5 * 4) * 45
    assert HOUSE.cols_nbytes("float64") == 90 * 40 * 8


@given(case=cases())
def test_out_is_the_largest_number_of_windows_that_fit(case):
    g = case.geometry
    for axis in range(g.ndim):
        end = (g.out[axis] - 1) * g.stride[axis] + g.dilation[axis] * (g.kernel[axis] - 1) + 1
        padded = g.size[axis] + sum(g.padding[axis])
        assert g.out[axis] >= 1
        assert end <= padded < end + g.stride[axis]
        assert g.unused[axis] == padded - end


@given(case=cases())
def test_same_gives_ceil_of_size_by_stride_with_the_odd_cell_after(case):
    keywords = {**case.keywords, "padding": "same"}
    g = ConvGeometry.from_shapes(case.x_shape, case.w_shape, **keywords)
    assert g.out == tuple(-(-size // s) for size, s in zip(g.size, g.stride, strict=True))
    for (before, after), unused in zip(g.padding, g.unused, strict=True):
        assert 0 <= after - before <= 1
        assert unused == 0 or (before, after) == (0, 0)


def test_a_geometry_is_frozen_hashable_and_checked_again_when_replaced():
    with pytest.raises(FrozenInstanceError):
        HOUSE.N = 3
    assert hash(HOUSE) == hash(replace(HOUSE, N=2))
    assert replace(HOUSE, N=5).y_shape == (5, 4, 5, 4)
    with pytest.raises(ValueError, match="empty on spatial axis 1"):
        replace(HOUSE, kernel=(3, 17))
    with pytest.raises(ValueError, match="groups must divide C: got groups=4 and C=6"):
        replace(HOUSE, groups=4)
    with pytest.raises(TypeError, match="stride must be an int"):
        replace(HOUSE, stride=1.5)


def test_all_ways_to_say_the_same_are_the_same():
    ways = [
        {"padding": 1, "stride": 2},
        {"padding": (1, 1), "stride": (2, 2)},
        {"padding": [[1, 1], (1, 1)], "stride": np.array([2, 2])},
        {"padding": np.array([[1, 1], [1, 1]]), "stride": np.int8(2)},
        {"padding": np.array(1), "stride": [np.uint64(2), 2]},
    ]
    assert len({ConvGeometry.from_shapes((1, 2, 7, 9), (3, 2, 3, 4), **way) for way in ways}) == 1
    assert (
        len({ConvGeometry.from_shapes((1, 2, 7), (3, 2, 3), padding=p) for p in (0, "valid")}) == 1
    )


def test_what_is_equal_to_an_int_seen_before_is_still_no_int():
    x, w = np.zeros((1, 2, 7, 9)), np.zeros((3, 2, 3, 4))
    ic.conv(x, w, stride=1, padding=1, dilation=(1, 1), groups=1)
    ic.conv(x, w, stride=(1, 1), padding=((1, 1), (0, 1)), dilation=1)
    for name in ("stride", "padding", "dilation", "groups"):
        for value in (True, 1.0, np.True_, (1, True), (1.0, 1), np.float32(1)):
            with pytest.raises(TypeError, match=name):
                ic.conv(x, w, **{name: value})
    with pytest.raises(TypeError, match=r"padding\[1\]\[1\] must be an int, got True"):
        ic.conv(x, w, padding=((1, 1), (0, True)))
    with pytest.raises(TypeError, match=r"x_shape\[0\] must be an int, got True"):
        ic.conv_input_grad(np.zeros((1, 3, 5, 6)), w, (True, 2, 7, 9))


X, W = (1, 6, 9, 8), (4, 3, 2, 5)


@pytest.mark.parametrize(
    ("keywords", "error", "text"),
    [
        ({"groups": 3}, ValueError, "groups must divide the filters of w: got groups=3 and 4 fil"),
        ({"groups": 4}, ValueError, "groups must divide the channels of x: got groups=4 and 6 ch"),
        ({"groups": 1}, ValueError, r"w must have C // groups = 6 // 1 = 6 channels .* got 3 \(x"),
        ({"groups": 0}, ValueError, "groups must be at least 1, got 0"),
        ({"groups": 2.0}, TypeError, "groups must be an int, got 2.0"),
        ({"groups": True}, TypeError, "groups must be an int, got True"),
        ({"groups": (2,)}, TypeError, r"groups must be an int, got \(2,\)"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"stride": (1, -2)}, ValueError, r"stride\[1\] must be at least 1, got -2"),
        ({"stride": (1, 2, 3)}, ValueError, r"stride must have .* 2 of them, got 3: \(1, 2, 3\)"),
        ({"stride": "2"}, TypeError, "stride must be an int or one int a spatial axis, got '2'"),
        ({"stride": {1, 2}}, TypeError, "stride must be an int"),
        ({"stride": None}, TypeError, "stride must be an int or one int a spatial axis, got None"),
        ({"stride": (1, 2.0)}, TypeError, r"stride\[1\] must be an int, got 2.0"),
        ({"stride": np.array([1.0, 2.0])}, TypeError, r"stride\[0\] must be an int"),
        ({"dilation": 0}, ValueError, "dilation must be at least 1, got 0"),
        ({"dilation": (1,)}, ValueError, "dilation must have .* got 1"),
        ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
        ({"padding": "full"}, ValueError, 'padding must be ints, "valid" or "same", got \'full\''),
        ({"padding": b"same"}, TypeError, "padding must be an int"),
        ({"padding": ((1, 2), (3,))}, ValueError, r"padding\[1\] must be a \(before, after\) pair"),
        ({"padding": ((1, 2), 3)}, TypeError, r"padding\[1\] must be a \(before, after\) pair, as"),
        ({"padding": ((1, 2), (3, -4))}, ValueError, r"padding\[1\]\[1\] must be at least 0"),
        ({"padding": (1, 2, 3, 4)}, ValueError, "padding must have .* got 4"),
        ({"padding": 1.5}, TypeError, "padding must be an int"),
        ({"stride": bytearray(b"12")}, TypeError, "stride must be an int"),
    ],
)
def test_complaints_about_arguments(keywords, error, text):
    keywords = {"groups": 2, **keywords}
    x, w = np.zeros(X), np.zeros(W)
    with pytest.raises(error, match=text):
        ic.conv(x, w, **keywords)
    with pytest.raises(error):
        ic.conv_grads(np.zeros((1, 4, 8, 4)), x, w, **keywords)
    with pytest.raises(error):
        ic.conv_input_grad(np.zeros((1, 4, 8, 4)), w, X, **keywords)
    with pytest.raises(error):
        ic.conv_weight_grad(np.zeros((1, 4, 8, 4)), x, W, **keywords)
    if "groups" not in text:  # channels stand elsewhere in transposed weights
        with pytest.raises(error):
            ic.conv_transpose(np.zeros((1, 4, 8, 4)), w, **keywords)
    with pytest.raises(error):
        ic.explain(X, W, **keywords)
    window = {name: value for name, value in keywords.items() if name != "groups"}
    if window:
        with pytest.raises(error):
            ic.im2col(x, (2, 5), **window)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "text"),
    [
        ((3, 5), (2, 3), "w must have at least one spatial axis"),
        ((3, 5, 7), (2, 5, 3, 3), r"x must have as many axes as w.*: .* with 2 spatial"),
        ((3, 0, 7), (2, 0, 3), "x must have at least one channel"),
        ((3, 5, 7), (0, 5, 3), "w must have no axis of size 0"),
        ((3, 5, 7), (2, 5, 0), "w must have no axis of size 0"),
        ((3, 5, 7), (2, 4, 3), "w must have C // groups = 5 // 1 = 5 channels"),
    ],
)
def test_complaints_about_shapes(x_shape, w_shape, text):
    with pytest.raises(ValueError, match=text):
        ic.conv(np.zeros(x_shape), np.zeros(w_shape))
    with pytest.raises(ValueError, match=text.replace("x must", "x_shape must", 1)):
        ic.conv_input_grad(np.zeros(1), np.zeros(w_shape), x_shape)
    with pytest.raises(ValueError, match=text.replace("w must", "w_shape must", 1)[:30]):
        ic.conv_weight_grad(np.zeros(1), np.zeros(x_shape), w_shape)


def test_complaints_about_the_other_arrays():
    x, w = np.zeros((2, 3, 7, 5)), np.zeros((4, 3, 2, 3))
    wanted = r"dout must have shape \(2, 4, 6, 3\), .* got \(2, 4, 6, 4\)"
    for call in (
        lambda: ic.conv_grads(np.zeros((2, 4, 6, 4)), x, w),
        lambda: ic.conv_input_grad(np.zeros((2, 4, 6, 4)), w, x.shape),
        lambda: ic.conv_weight_grad(np.zeros((2, 4, 6, 4)), x, w.shape),
    ):
        with pytest.raises(ValueError, match=wanted):
            call()
    with pytest.raises(
        ValueError, match=r"dout must have shape \(2, 6, 4, 3\), .* got \(2, 4, 6, 4\)"
    ):
        ic.conv_input_grad(
            np.zeros((2, 4, 6, 4)), np.zeros((3, 3, 2, 2)), (2, 7, 5, 3), layout="channels_last"
        )
    with pytest.raises(ValueError, match=r"b must have shape \(4,\), .* got \(3,\)"):
        ic.conv(x, w, np.zeros(3))
    with pytest.raises(ValueError, match=r"b must have shape \(4,\), .* got \(\)"):
        ic.conv(x, w, 1.0)
    with pytest.raises(ValueError, match=r"b must have shape \(3,\), .* got \(4,\)"):
        ic.conv_transpose(np.zeros((1, 4, 2, 2)), w, np.zeros(4))
    with pytest.raises(ValueError, match=r"cols must have shape \(18, 36\), .* got \(18, 35\)"):
        ic.col2im(np.zeros((18, 35)), x.shape, (2, 3))
    with pytest.raises(TypeError, match=r"x_shape must be a shape, a tuple of ints, got 7"):
        ic.conv_input_grad(np.zeros((2, 4, 6, 3)), w, 7)
    with pytest.raises(TypeError, match=r"x_shape\[1\] must be an int, got 3.0"):
        ic.conv_input_grad(np.zeros((2, 4, 6, 3)), w, (2, 3.0, 7, 5))


def test_complaints_about_words():
    x, w, dout = np.zeros((2, 3, 7)), np.zeros((4, 3, 2)), np.zeros((2, 4, 6))
    for keywords, error, text in (
        ({"algorithm": "fft"}, ValueError, "algorithm must be .* got 'fft'"),
        ({"algorithm": None}, TypeError, "algorithm must be .* got None"),
        ({"layout": "NHWC"}, ValueError, "layout must be .* got 'NHWC'"),
        ({"layout": 1}, TypeError, "layout must be .* got 1"),
    ):
        for call in (
            lambda k=keywords: ic.conv(x, w, **k),
            lambda k=keywords: ic.conv_grads(dout, x, w, **k),
            lambda k=keywords: ic.conv_input_grad(dout, w, x.shape, **k),
            lambda k=keywords: ic.conv_weight_grad(dout, x, w.shape, **k),
        ):
            with pytest.raises(error, match=text):
                call()
    with pytest.raises(ValueError, match="needs must hold no names but .* got 'dw'"):
        ic.conv_grads(dout, x, w, needs=("x", "dw"))
    with pytest.raises(ValueError, match="needs must hold no names but"):
        ic.conv_grads(dout, x, w, needs=[np.array(["x", "w"])])
    with pytest.raises(TypeError, match="needs must be a collection"):
        ic.conv_grads(dout, x, w, needs="xw")
    assert ic.conv_grads(dout, x, w, needs=()) == (None, None, None)


# --- transposed -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "error", "text"),
    [
        ({"padding": "same"}, ValueError, 'padding="same" has no meaning for conv_transpose'),
        ({"padding": "full"}, ValueError, "padding must be ints or \"valid\", got 'full'"),
        (
            {"output_padding": 2},
            ValueError,
            r"output_padding\[0\]=2 is more than 1.* 0 .*can have 9 to 10",
        ),
        (
            {"output_padding": (0, 3)},
            ValueError,
            r"output_padding\[1\]=3 is more than 2.* 1 .*10 to 12 cell",
        ),
        ({"output_padding": -1}, ValueError, "output_padding must be at least 0"),
        (
            {"output_size": (8, 11)},
            ValueError,
            r"output_size\[0\]=8 is out of reach: on spatial axis 0 .* 9 to 10",
        ),
        (
            {"output_size": (9, 13)},
            ValueError,
            r"output_size\[1\]=13 is out of reach: on spatial axis 1 .* 10 to 12",
        ),
        ({"output_size": 9, "output_padding": 1}, ValueError, "output_padding or output_size, not"),
        ({"groups": 3}, ValueError, "groups must divide the channels of x: got groups=3 and 4"),
        ({"padding": (5, 0)}, ValueError, "the result would have -1 cells on spatial axis 0"),
    ],
)
def test_complaints_about_transposed_sizes(keywords, error, text):
    x, w = np.zeros((1, 4, 4, 3)), np.zeros((4, 2, 3, 4))
    keywords = {"stride": (2, 3), **keywords}
    with pytest.raises(error, match=text):
        ic.conv_transpose(x, w, **keywords)


def test_complaints_about_transposed_shapes():
    w = np.zeros((4, 2, 3, 4))
    with pytest.raises(ValueError, match="w must have C_in = 5 entries on its first axis.* got 4"):
        ic.conv_transpose(np.zeros((1, 5, 4, 3)), w)
    with pytest.raises(ValueError, match="x must have as many axes as w"):
        ic.conv_transpose(np.zeros((1, 4, 3)), w)
    with pytest.raises(ValueError, match="w must have at least one spatial axis"):
        ic.conv_transpose(np.zeros((1, 4)), w[:, :, 0, 0])
    with pytest.raises(ValueError, match="w must have no axis of size 0"):
        ic.conv_transpose(np.zeros((1, 4, 4, 3)), w[:, :0])
    with pytest.raises(ValueError, match="x must have no axis of size 0 but the batch"):
        ic.conv_transpose(np.zeros((1, 4, 0, 3)), w)


def test_output_size_and_output_padding_pick_the_same():
    x, w = np.ones((1, 4, 4, 3)), np.ones((4, 2, 3, 4))
    for extra in (0, 1):
        by_size = ic.conv_transpose(x, w, stride=2, output_size=(9 + extra, 8 + extra))
        by_padding = ic.conv_transpose(x, w, stride=2, output_padding=extra)
        np.testing.assert_array_equal(by_size, by_padding, strict=True)
    np.testing.assert_array_equal(
        ic.conv_transpose(x, w, padding="valid"), ic.conv_transpose(x, w, output_padding=(0, 0))
    )
    np.testing.assert_array_equal(
        ic.conv_transpose(x, w, padding=np.array([1, 0])), ic.conv_transpose(x, w, padding=(1, 0))
    )


# --- the note's interface -------------------------------------------------------------------------


def test_the_notes_pair_is_the_naive_pair():
    rng = np.random.default_rng(2)
    x, w, b = (rng.integers(-3, 4, s).astype(float) for s in ((2, 3, 8, 9), (4, 3, 3, 2), 4))
    conv_param = {"stride": 2, "pad": 1}
    out, cache = ic.conv_forward(x, w, b, conv_param)
    naive, naive_cache = ic.reference.conv_forward_naive(x, w, b, conv_param)
    np.testing.assert_array_equal(out, naive, strict=True)
    dout = rng.integers(-3, 4, out.shape).astype(float)
    for fast, slow in zip(
        ic.conv_backward(dout, cache),
        ic.reference.conv_backward_naive(dout, naive_cache),
        strict=True,
    ):
        np.testing.assert_array_equal(fast, slow, strict=True)


@pytest.mark.parametrize(
    ("conv_param", "error", "text"),
    [
        ({"stride": 1}, ValueError, "lacks 'pad'"),
        ({"pad": 1}, ValueError, "lacks 'stride'"),
        ({"stride": 1, "pad": 0, "dilation": 2}, ValueError, "got 'dilation'"),
        ({"stride": 1, "padding": 0}, ValueError, "got 'padding'"),
        ([1, 0], TypeError, "conv_param must be a dict"),
        ({"stride": 0, "pad": 0}, ValueError, r'conv_param\["stride"\] must be at least 1'),
        ({"stride": 1, "pad": -1}, ValueError, r'conv_param\["pad"\] must be at least 0'),
        ({"stride": 1, "pad": "same"}, TypeError, r'conv_param\["pad"\] must be an int'),
    ],
)
def test_complaints_about_conv_param(conv_param, error, text):
    with pytest.raises(error, match=text):
        ic.conv_forward(np.zeros((1, 1, 3, 3)), np.zeros((1, 1, 2, 2)), [0.0], conv_param)


def test_the_type_of_b_counts_in_all_results_of_the_notes_pair():
    x, w = np.ones((1, 1, 3, 4), np.float32), np.ones((1, 1, 2, 2), np.float32)
    out, cache = ic.conv_forward(x, w, np.ones(1), {"stride": 1, "pad": 0})
    grads = ic.conv_backward(out.astype(np.float32), cache)
    assert {each.dtype for each in (out, *grads)} == {np.dtype(np.float64)}


def test_complaints_about_the_cache():
    with pytest.raises(TypeError, match="cache must be what conv_forward returned"):
        ic.conv_backward(np.zeros((1, 1, 2, 2)), (1, 2, 3, 4))
    with pytest.raises(TypeError, match="cache must be what conv_forward returned"):
        ic.conv_backward(np.zeros((1, 1, 2, 2)), None)
