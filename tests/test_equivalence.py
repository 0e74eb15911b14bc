"""The engine against the reference, and each map against its adjoint: equality, never closeness.

The numbers are small integers held in floats, so every sum is exact in whatever order it is made.
"""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import im2col_conv as ic
from im2col_conv import reference

from .strategies import Case, cases, integers_like

pytestmark = pytest.mark.usefixtures("each_way")

HOUSE = Case(
    (2, 6, 11, 13),
    (4, 3, 3, 5),
    {"stride": (2, 3), "padding": ((1, 2), (0, 3)), "dilation": (2, 1), "groups": 2},
)
DEPTHWISE = Case(
    (3, 6, 7, 4), (6, 1, 2, 3), {"stride": (1, 2), "padding": ((0, 1), (2, 0)), "groups": 6}
)
UNUSED_ROWS = Case((1, 2, 9, 8), (3, 2, 2, 3), {"stride": (4, 3)})
KERNEL_AS_LARGE = Case((2, 3, 5, 7), (4, 3, 5, 7), {})
POINTWISE = Case((2, 5, 6, 3), (4, 5, 1, 1), {"stride": (2, 1)})
MUCH_PADDING = Case((1, 2, 3), (2, 2, 2), {"padding": ((7, 4),)})
NAMED = [HOUSE, DEPTHWISE, UNUSED_ROWS, KERNEL_AS_LARGE, POINTWISE, MUCH_PADDING]

layouts = st.sampled_from(["channels_first", "channels_last"])
seeds = st.integers(0, 2**32 - 1)


def named(test):
    for case in NAMED:
        for layout in ("channels_first", "channels_last"):
            test = example(case=case, layout=layout, seed=7)(test)
    return test


def ordered(array, layout):
    return np.moveaxis(array, 1, -1) if layout == "channels_last" else array


def unordered(array, layout):
    return np.moveaxis(array, -1, 1) if layout == "channels_last" else array


def without_groups(case):
    return {name: value for name, value in case.keywords.items() if name != "groups"}


def arrays(case, seed):
    geometry = case.geometry
    shapes = (geometry.x_shape, geometry.w_shape, (geometry.F,), geometry.y_shape)
    return [integers_like(seed + i, shape) for i, shape in enumerate(shapes)]


@named
@given(case=cases(), layout=layouts, seed=seeds)
def test_forward_is_the_reference(case, layout, seed):
    x, w, b, _ = arrays(case, seed)
    y = ic.conv(ordered(x, layout), w, b, layout=layout, **case.keywords)
    np.testing.assert_array_equal(
        unordered(y, layout), reference.conv(x, w, b, **case.keywords), strict=True
    )


@named
@given(case=cases(), layout=layouts, seed=seeds)
def test_gradients_are_the_reference(case, layout, seed):
    x, w, _, dout = arrays(case, seed)
    grads = ic.conv_grads(
        ordered(dout, layout), ordered(x, layout), w, layout=layout, **case.keywords
    )
    dx, dw, db = reference.conv_grads(dout, x, w, **case.keywords)
    np.testing.assert_array_equal(unordered(grads.dx, layout), dx, strict=True)
    np.testing.assert_array_equal(grads.dw, dw, strict=True)
    np.testing.assert_array_equal(grads.db, db, strict=True)


@named
@given(case=cases(), layout=layouts, seed=seeds)
def test_gradients_one_at_a_time_are_the_gradients_together(case, layout, seed):
    x, w, _, dout = arrays(case, seed)
    x, dout = ordered(x, layout), ordered(dout, layout)
    keywords = {"layout": layout, **case.keywords}
    together = ic.conv_grads(dout, x, w, **keywords)
    np.testing.assert_array_equal(ic.conv_input_grad(dout, w, x.shape, **keywords), together.dx)
    np.testing.assert_array_equal(ic.conv_weight_grad(dout, x, w.shape, **keywords), together.dw)
    for name, grad in zip("xwb", together, strict=True):
        alone = ic.conv_grads(dout, x, w, needs=(name,), **keywords)
        assert [each is None for each in alone] == [name != other for other in "xwb"]
        np.testing.assert_array_equal(next(each for each in alone if each is not None), grad)


@named
@given(case=cases(), layout=layouts, seed=seeds)
def test_inner_products_agree(case, layout, seed):
    """<conv(x, w), g> == <x, dx> == <w, dw>, with equality."""
    x, w, _, g = arrays(case, seed)
    ordered_g, ordered_x = ordered(g, layout), ordered(x, layout)
    y = ic.conv(ordered_x, w, layout=layout, **case.keywords)
    dx, dw, _ = ic.conv_grads(ordered_g, ordered_x, w, layout=layout, **case.keywords)
    assert np.vdot(y, ordered_g) == np.vdot(ordered_x, dx) == np.vdot(w, dw)


@given(case=cases(), seed=seeds)
@example(case=HOUSE, seed=1)
def test_im2col_and_col2im_are_the_reference_and_adjoint(case, seed):
    """<im2col(x), c> == <x, col2im(c)>, with equality; groups play no part."""
    geometry = case.geometry
    x = integers_like(seed, geometry.x_shape)
    c = integers_like(seed + 1, geometry.cols_shape)
    keywords = without_groups(case)
    cols = ic.im2col(x, geometry.kernel, **keywords)
    image = ic.col2im(c, x.shape, geometry.kernel, **keywords)
    np.testing.assert_array_equal(cols, reference.im2col(x, geometry.kernel, **keywords))
    np.testing.assert_array_equal(image, reference.col2im(c, x.shape, geometry.kernel, **keywords))
    assert np.vdot(cols, c) == np.vdot(x, image)


@given(case=cases(), seed=seeds)
def test_col2im_after_im2col_counts_the_windows(case, seed):
    geometry = case.geometry
    keywords = without_groups(case)
    x = integers_like(seed, geometry.x_shape)

    def there_and_back(image):
        cols = ic.im2col(image, geometry.kernel, **keywords)
        return ic.col2im(cols, image.shape, geometry.kernel, **keywords)

    np.testing.assert_array_equal(there_and_back(x), x * there_and_back(np.ones_like(x)))


@given(case=cases(), seed=seeds)
def test_forward_is_one_product_with_the_columns(case, seed):
    geometry = case.geometry
    x, w, _, _ = arrays(case, seed)
    keywords = without_groups(case)
    G = geometry.groups
    cols = ic.im2col(x, geometry.kernel, **keywords).reshape(G, geometry.gemm.K, -1)
    # y (G, F/G, N * out) = W (G, F/G, K) @ cols (G, K, N * out)
    y = w.reshape(G, -1, geometry.gemm.K) @ cols
    y = np.moveaxis(y.reshape(geometry.F, geometry.N, *geometry.out), 0, 1)
    np.testing.assert_array_equal(ic.conv(x, w, **case.keywords), y)


@given(case=cases(), seed=seeds, data=st.data())
def test_conv_transpose_is_the_reference(case, seed, data):
    geometry = case.geometry
    _, w, _, x = arrays(case, seed)
    b = integers_like(seed, (geometry.C,))
    output_padding = tuple(
        data.draw(st.integers(0, max(pair) - 1))
        for pair in zip(geometry.stride, geometry.dilation, strict=True)
    )
    keywords = {
        "stride": geometry.stride,
        "padding": geometry.padding,
        "dilation": geometry.dilation,
        "groups": geometry.groups,
        "output_padding": output_padding,
    }
    least = (
        (out - 1) * s + reach - before - after
        for out, s, reach, (before, after) in zip(
            geometry.out, geometry.stride, geometry.reach, geometry.padding, strict=True
        )
    )
    if any(low + extra < 1 for low, extra in zip(least, output_padding, strict=True)):
        return
    y = ic.conv_transpose(x, w, b, **keywords)
    np.testing.assert_array_equal(y, reference.conv_transpose(x, w, b, **keywords), strict=True)


@given(case=cases(least_images=1), seed=seeds)
def test_conv_transpose_to_the_size_of_x_is_the_input_gradient(case, seed):
    geometry = case.geometry
    _, w, _, dout = arrays(case, seed)
    keywords = {"stride": geometry.stride, "dilation": geometry.dilation, "groups": geometry.groups}
    y = ic.conv_transpose(dout, w, padding=geometry.padding, output_size=geometry.size, **keywords)
    dx = ic.conv_input_grad(dout, w, geometry.x_shape, padding=geometry.padding, **keywords)
    np.testing.assert_array_equal(y, dx, strict=True)


def test_conv_transpose_past_the_end_of_the_scatter_is_the_bias():
    # Three outputs reach 3 + 4 cells; dilation 4 lets three more be asked for: two are in the
    # scatter, which padding cut off, one is past its end.
    x, w = np.array([[[1, 2, 3]]]), np.array([[[1, 10]]])
    y = ic.conv_transpose(x, w, [5], dilation=4, padding=((0, 2),), output_padding=3)
    np.testing.assert_array_equal(y, [[[6, 7, 8, 5, 15, 25, 35, 5]]])


def test_depthwise_is_a_convolution_a_channel():
    x, w = integers_like(1, (2, 5, 7, 9)), integers_like(2, (5, 1, 3, 2))
    keywords = {"stride": (2, 1), "padding": ((1, 0), (0, 2))}
    alone = [ic.conv(x[:, c : c + 1], w[c : c + 1], **keywords) for c in range(5)]
    np.testing.assert_array_equal(
        ic.conv(x, w, groups=5, **keywords), np.concatenate(alone, axis=1)
    )


def spread(array):
    """The same numbers read-only, reversed in memory, with gaps, in Fortran order."""
    big = np.zeros(tuple(2 * size for size in array.shape), array.dtype, order="F")
    view = big[(slice(None, None, -2),) * array.ndim]
    view[...] = array
    view.flags.writeable = False
    return view


def unaligned(array):
    """The same numbers, each a byte past where its type belongs."""
    pairs = np.zeros(array.shape, [("byte", "u1"), ("number", array.dtype)])
    pairs["number"] = array
    return pairs["number"]


@settings(max_examples=50)
@given(case=cases(most_axes=2), seed=seeds, change=st.sampled_from([spread, unaligned]))
@example(case=POINTWISE, seed=1, change=unaligned)
def test_memory_order_of_the_arguments_makes_no_difference(case, seed, change):
    x, w, b, dout = arrays(case, seed)
    given_arrays = [change(each) for each in (x, w, b, dout)]
    y = ic.conv(*given_arrays[:3], **case.keywords)
    np.testing.assert_array_equal(y, ic.conv(x, w, b, **case.keywords))
    for one, other in zip(
        ic.conv_grads(given_arrays[3], *given_arrays[:2], **case.keywords),
        ic.conv_grads(dout, x, w, **case.keywords),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
