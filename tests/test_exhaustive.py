"""Proofs by exhaustion.

Each pass is linear in each of its two arguments, and its way through the code depends on shapes
and types alone. So if it is right on every pair of basis vectors (one cell 1, all others 0), it is
right on all inputs of these shapes. The truth is the index formula itself: output ``o`` and tap
``t`` meet cell ``i`` where ``o * stride + t * dilation - before == i``, as a 0/1 tensor T[o, i, t].

On one axis each pair is a call of its own, in float64. Then, on one axis and on two, the basis
vectors are stacked along the axes that a pass does not mix, images and filters: as columns in
float64 and int64, and in float64 tap by tap and the direct way.
"""

from itertools import product

import numpy as np
import pytest

import im2col_conv as ic
from im2col_conv.engine.machine.memory import why_not_run
from im2col_conv.engine.openblas import private_blas, why_not

pytestmark = pytest.mark.usefixtures("each_way")

SIZES, KERNELS, STRIDES, DILATIONS, PADS, GROUPS = (
    range(1, 8), range(1, 4), range(1, 4), range(1, 3), range(3), range(1, 3)
)  # fmt: skip


def meetings(size, kernel, stride, dilation, before, after):
    """Return T[o, i, t], or None where no window fits."""
    starts = [
        start
        for start in range(0, before + size + after, stride)
        if start + dilation * (kernel - 1) < before + size + after
    ]
    if not starts:
        return None
    o, i, t = np.ix_(starts, range(size), range(kernel))
    return (o + t * dilation - before == i).astype(np.int64)


def axis_box(longest):
    """Yield the keywords and T of each geometry of one axis."""
    for size, k, s, d, before, after in product(
        range(1, longest + 1), KERNELS, STRIDES, DILATIONS, PADS, PADS
    ):
        T = meetings(size, k, s, d, before, after)
        if T is not None:
            yield (s, d, (before, after)), T


def basis(shape):
    """Yield each place of an array of this shape, with the array that is 1 there alone."""
    for place in np.ndindex(shape):
        vector = np.zeros(shape)
        vector[place] = 1
        yield place, vector


def one_axis_cases(kernel_stride):
    for (s, d, pad), T in axis_box(max(SIZES)):
        if (T.shape[2], s) == kernel_stride:
            for groups in GROUPS:
                C, F = (2, 1) if groups == 1 else (2, 2)
                yield {"stride": s, "dilation": d, "padding": (pad,), "groups": groups}, C, F, T


def in_group(f, c, C, F, groups):
    """Return the weight's channel index at which filter f meets channel c, or None."""
    return c % (C // groups) if f // (F // groups) == c // (C // groups) else None


one_axis = pytest.mark.parametrize("kernel_stride", list(product(KERNELS, STRIDES)))
needs_blas = pytest.mark.skipif(private_blas() is None, reason=str(why_not()))
runs_here = pytest.mark.skipif(why_not_run() is not None, reason=str(why_not_run()))
every_way = pytest.mark.parametrize(
    ("dtype", "algorithm"),
    [
        (np.float64, "im2col"),
        (np.int64, "im2col"),
        pytest.param(np.float64, "implicit", marks=needs_blas),
        pytest.param(np.float64, "direct", marks=runs_here),
    ],
)


@one_axis
def test_forward_on_one_axis(kernel_stride):
    for keywords, C, F, T in one_axis_cases(kernel_stride):
        out, size, k = T.shape
        for (f, cg, t), w in basis((F, C // keywords["groups"], k)):
            for (_, c, i), x in basis((1, C, size)):
                wanted = np.zeros((1, F, out))
                if in_group(f, c, C, F, keywords["groups"]) == cg:
                    wanted[0, f] = T[:, i, t]
                assert np.array_equal(ic.conv(x, w, **keywords), wanted), (keywords, x, w)


@one_axis
def test_input_gradient_on_one_axis(kernel_stride):
    for keywords, C, F, T in one_axis_cases(kernel_stride):
        out, size, k = T.shape
        for (f, cg, t), w in basis((F, C // keywords["groups"], k)):
            for (_, g, o), dout in basis((1, F, out)):
                wanted = np.zeros((1, C, size))
                if f == g:
                    c = f // (F // keywords["groups"]) * (C // keywords["groups"]) + cg
                    wanted[0, c] = T[o, :, t]
                dx = ic.conv_input_grad(dout, w, (1, C, size), **keywords)
                assert np.array_equal(dx, wanted), (keywords, dout, w)


@one_axis
def test_weight_gradient_on_one_axis(kernel_stride):
    for keywords, C, F, T in one_axis_cases(kernel_stride):
        out, size, k = T.shape
        w_shape = (F, C // keywords["groups"], k)
        for (_, f, o), dout in basis((1, F, out)):
            for (_, c, i), x in basis((1, C, size)):
                wanted = np.zeros(w_shape)
                cg = in_group(f, c, C, F, keywords["groups"])
                if cg is not None:
                    wanted[f, cg] = T[o, i]
                dw = ic.conv_weight_grad(dout, x, w_shape, **keywords)
                assert np.array_equal(dw, wanted), (keywords, dout, x)


@one_axis
def test_lowering_on_one_axis(kernel_stride):
    for keywords, C, _, T in one_axis_cases(kernel_stride):
        out, size, k = T.shape
        groups = keywords.pop("groups")
        if groups > 1:  # the lowering knows none
            continue
        S = np.einsum("cd,nm,oit->ctnodmi", np.eye(C), np.eye(2), T).reshape(C * k * 2 * out, -1)
        x_shape = (2, C, size)
        for column, (_, x) in enumerate(basis((C, 2, size))):
            x = x.swapaxes(0, 1)
            assert np.array_equal(ic.im2col(x, k, **keywords).ravel(), S[:, column]), keywords
        for row, (_, cols) in enumerate(basis((C * k, 2 * out))):
            image = ic.col2im(cols, x_shape, k, **keywords).swapaxes(0, 1)
            assert np.array_equal(image.ravel(), S[row]), keywords


def check_stacked(axes, groups, dtype, algorithm):
    """Check all three passes on all basis vectors of C = 2 channels at once."""
    stride, dilation, padding = zip(*(keywords for keywords, _ in axes), strict=True)
    keywords = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    keywords["algorithm"] = algorithm
    out, size, kernel = zip(*(T.shape for _, T in axes), strict=True)
    T = axes[0][1]
    for _, other in axes[1:]:
        product_shape = [a * b for a, b in zip(T.shape, other.shape, strict=True)]
        T = np.einsum("oit,pju->opijtu", T, other).reshape(product_shape)
    P, X, K = T.shape
    C, D = 2, 2 // groups
    own = np.eye(C, dtype=dtype).reshape(C, groups, D)  # channel c is channel d of group g

    # Images: every cell of every channel. Filters: every tap of every channel of every group.
    x = np.eye(C * X, dtype=dtype).reshape(C * X, C, *size)
    F = C * K
    w = np.tile(np.eye(D * K, dtype=dtype), (groups, 1)).reshape(F, D, *kernel)
    y = np.einsum("cgd,oit->cigdto", own, T).reshape(C * X, F, *out)
    assert np.array_equal(ic.conv(x, w, **keywords), y), keywords

    # Images: every output of every filter.
    dout = np.eye(F * P, dtype=dtype).reshape(F * P, F, *out)
    dx = np.einsum("cgd,oit->gdtoci", own, T).reshape(F * P, C, *size)
    assert np.array_equal(ic.conv_input_grad(dout, w, dx.shape, **keywords), dx), keywords

    # Filters of a group: every output. Calls: every cell of every channel.
    dout = np.tile(np.eye(P, dtype=dtype), (groups, 1)).reshape(1, groups * P, *out)
    dw = np.einsum("cgd,oit->cigodt", own, T).reshape(C * X, groups * P, D, *kernel)
    for image, wanted in zip(x, dw, strict=True):
        found = ic.conv_weight_grad(dout, image[None], wanted.shape, **keywords)
        assert np.array_equal(found, wanted), keywords


@every_way
@pytest.mark.parametrize("groups", GROUPS)
def test_one_axis_stacked(groups, dtype, algorithm):
    for axis in axis_box(max(SIZES)):
        check_stacked([axis], groups, dtype, algorithm)


@every_way
def test_two_axes_on_a_fixed_sample(dtype, algorithm):
    axes = list(axis_box(3))
    for one, other, groups in np.random.default_rng(0).integers(2**30, size=(500, 3)):
        pair = [axes[one % len(axes)], axes[other % len(axes)]]
        check_stacked(pair, GROUPS[groups % len(GROUPS)], dtype, algorithm)


@pytest.mark.whole_box
@every_way
def test_two_axes_on_the_whole_box(dtype, algorithm):
    for pair in product(axis_box(3), repeat=2):
        for groups in GROUPS:
            check_stacked(pair, groups, dtype, algorithm)
