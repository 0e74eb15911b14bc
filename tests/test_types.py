"""Types: exact integers up to wrapping, float16 rounded once, complex adjoints, mixtures."""

from itertools import product

import numpy as np
import pytest

import im2col_conv as ic
from im2col_conv import reference

pytestmark = pytest.mark.usefixtures("each_way")

INTEGERS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64]
GEOMETRY = {"stride": (2, 1), "padding": ((1, 0), (0, 2)), "dilation": (1, 2), "groups": 2}
X_SHAPE, W_SHAPE, Y_SHAPE = (2, 6, 7, 5), (10, 3, 3, 2), (2, 10, 3, 5)


def extreme(rng, shape, dtype):
    """Numbers over the whole range of an integer type, its ends among them."""
    info = np.iinfo(dtype)
    numbers = rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    numbers[rng.random(shape) < 0.2] = info.min
    numbers[rng.random(shape) < 0.2] = info.max
    return numbers


def wrapped(objects):
    """Python ints modulo 2**64, as int64."""
    return (objects % 2**64).astype(np.uint64).view(np.int64)


def by_python_ints(x, w, dout):
    """y, dx and dw of GEOMETRY in Python ints, straight from the index formula."""
    G, (N, _, *size), (F, D, *kernel) = 2, x.shape, w.shape
    y, dx, dw = (np.zeros(shape, object) for shape in (Y_SHAPE, X_SHAPE, W_SHAPE))
    x, w, dout = (each.astype(object) for each in (x, w, dout))
    places = product(range(N), range(F), range(D), *map(range, kernel), *map(range, Y_SHAPE[2:]))
    for n, f, d, t, u, o, p in places:
        i, j = o * 2 + t - 1, p + u * 2
        if 0 <= i < size[0] and 0 <= j < size[1]:
            c = f // (F // G) * D + d
            y[n, f, o, p] += x[n, c, i, j] * w[f, d, t, u]
            dx[n, c, i, j] += dout[n, f, o, p] * w[f, d, t, u]
            dw[f, d, t, u] += dout[n, f, o, p] * x[n, c, i, j]
    return y, dx, dw


@pytest.mark.parametrize("x_type", INTEGERS)
@pytest.mark.parametrize("w_type", [np.int8, np.uint32, np.int64])
def test_integers_are_python_ints_modulo_2_64(x_type, w_type):
    rng = np.random.default_rng(3)
    x, w = extreme(rng, X_SHAPE, x_type), extreme(rng, W_SHAPE, w_type)
    dout = extreme(rng, Y_SHAPE, w_type)
    y, dx, dw = by_python_ints(x, w, dout)
    grads = ic.conv_grads(dout, x, w, **GEOMETRY)
    np.testing.assert_array_equal(ic.conv(x, w, **GEOMETRY), wrapped(y), strict=True)
    np.testing.assert_array_equal(grads.dx, wrapped(dx), strict=True)
    np.testing.assert_array_equal(grads.dw, wrapped(dw), strict=True)
    db = wrapped(dout.astype(object).sum(axis=(0, 2, 3)))
    np.testing.assert_array_equal(grads.db, db, strict=True)


def test_sums_of_many_large_products_are_exact():
    """A float64 would round them: K is far longer than one piece, all limbs are nearly full."""
    C, F, L = 4000, 9, 3
    rng = np.random.default_rng(13)
    x = rng.integers(2**31 - 2**20, 2**31, (1, C, L), dtype=np.int32) | 0x3FF001
    w = rng.integers(2**31 - 2**20, 2**31, (F, C, 1), dtype=np.int32) | 0x3FF001
    wanted = w[:, :, 0].astype(object) @ x[0].astype(object)
    assert wanted.min() > 2**73
    np.testing.assert_array_equal(ic.conv(x, w)[0], wrapped(wanted))


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_one_limb_fills_all_53_bits(dtype):
    info = np.iinfo(dtype)
    x = np.full((1, 70_000, 1), info.max, dtype)
    wanted = int(info.max) * int(info.min or info.max) * 70_000
    w = np.full((4, 70_000, 1), info.min or info.max, dtype)
    assert (ic.conv(x, w) == wanted).all()


def test_bool_counts():
    x, w = np.ones((1, 3, 4), bool), np.ones((5, 3, 2), bool)
    np.testing.assert_array_equal(ic.conv(x, w), np.full((1, 5, 3), 6), strict=True)
    np.testing.assert_array_equal(ic.conv(x, w[:1]), np.full((1, 1, 3), 6), strict=True)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_float16_is_rounded_once(layout):
    rng = np.random.default_rng(5)
    x, w, b, dout = (
        rng.standard_normal(shape).astype(np.float16) for shape in (X_SHAPE, W_SHAPE, 10, Y_SHAPE)
    )
    last = layout == "channels_last"
    order = (lambda a: np.moveaxis(a, 1, -1)) if last else (lambda a: a)
    back = (lambda a: np.moveaxis(a, -1, 1)) if last else (lambda a: a)
    keywords = {"layout": layout, **GEOMETRY}
    y = ic.conv(order(x), w, b, **keywords)
    grads = ic.conv_grads(order(dout), order(x), w, **keywords)
    wanted = (reference.conv(x, w, b, **GEOMETRY), *reference.conv_grads(dout, x, w, **GEOMETRY))
    for found, exact in zip((back(y), back(grads.dx), grads.dw, grads.db), wanted, strict=True):
        assert found.dtype == np.float16
        # Half a step of float16, and what float32 sums of up to 2 * 3 * 5 * 10 terms may stray.
        step = np.spacing(np.abs(exact).astype(np.float16)).astype(float)
        assert (np.abs(found - exact) <= 0.5 * step + 300 * 2**-24 * 16).all()


def test_float16_sums_beyond_its_own_precision():
    """2048 + 1 is 2048 in float16: one rounding at the end keeps what one a step would lose."""
    x = np.ones((1, 4096, 1), np.float16)
    w = np.ones((1, 4096, 1), np.float16)
    assert ic.conv(x, w).item() == 4096
    assert ic.conv_grads(np.ones((1, 1, 4096), np.float16), x.swapaxes(1, 2), w[:, :1]).db == 4096


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_gradients_are_adjoints(dtype):
    rng = np.random.default_rng(6)

    def numbers(shape):
        return (rng.integers(-4, 5, shape) + 1j * rng.integers(-4, 5, shape)).astype(dtype)

    x, w, dout = numbers(X_SHAPE), numbers(W_SHAPE), numbers(Y_SHAPE)
    y = ic.conv(x, w, **GEOMETRY)
    dx, dw, db = ic.conv_grads(dout, x, w, **GEOMETRY)
    np.testing.assert_array_equal(y, reference.conv(x, w, **GEOMETRY))
    for found, wanted in zip(
        (dx, dw, db), reference.conv_grads(dout, x, w, **GEOMETRY), strict=True
    ):
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, wanted)
    assert np.vdot(y, dout) == np.vdot(x, dx) == np.vdot(w, dw)


def test_conv_transpose_does_not_conjugate():
    x, w = np.array([[[1 + 1j, 2j]]]), np.array([[[1j, 3]]])
    y = ic.conv_transpose(x, w)
    np.testing.assert_array_equal(y, [[[1j - 1, 3 + 3j - 2, 6j]]])
    dx = ic.conv_input_grad(x, w, (1, 1, 3))
    np.testing.assert_array_equal(ic.conv_transpose(x, w.conj()), dx)


@pytest.mark.parametrize(
    ("types", "wanted"),
    [
        ((np.int8, np.float32, np.float32), np.float32),
        ((np.int32, np.float32, np.float32), np.float64),
        ((np.float16, np.int8, np.bool_), np.float16),
        ((np.float16, np.float32, np.float64), np.float64),
        ((np.float32, np.complex64, np.float64), np.complex128),
        ((np.uint8, np.bool_, np.int16), np.int64),
        ((">f4", "<f4", ">f4"), np.float32),
        ((">i2", "<i4", ">i8"), np.int64),
        ((">c8", "<f4", ">f4"), np.complex64),
    ],
)
def test_result_type_is_that_of_all_the_arrays(types, wanted):
    rng = np.random.default_rng(8)
    x, w, b = (
        rng.integers(0, 2, shape).astype(dtype)
        for shape, dtype in zip((X_SHAPE, W_SHAPE, (10,)), types, strict=True)
    )
    y = ic.conv(x, w, b, **GEOMETRY)
    np.testing.assert_array_equal(
        y, reference.conv(x, w, b, **GEOMETRY).astype(wanted), strict=True
    )
    assert y.dtype.isnative
    grads = ic.conv_grads(y.real.astype(types[2]), x, w, **GEOMETRY)
    assert {each.dtype for each in grads} == {np.dtype(wanted)}
    transposed = ic.conv_transpose(y.real.astype(types[0]), w, np.zeros(6, types[2]), groups=2)
    assert transposed.dtype == wanted


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((1, 1, 3), object),
        np.zeros((1, 1, 3), "U1"),
        np.zeros((1, 1, 3), "M8[s]"),
        np.zeros((1, 1, 3), np.longdouble),
        np.zeros((1, 1, 3), np.clongdouble),
        np.zeros((1, 1, 3), np.uint64),
        np.zeros((1, 1, 3), ">u8"),
        np.zeros((1, 1, 3), np.dtype(np.longdouble).newbyteorder()),
        [[[1, 2], [3]]],
        type("Raises", (), {"__array__": lambda self, *_, **__: 1 / 0})(),
        np.ma.masked_array(np.zeros((1, 1, 3)), mask=True),
        None,
    ],
)
def test_other_types_are_refused_by_name(values):
    good = np.zeros((1, 1, 3))
    refused = (TypeError, ValueError) if isinstance(values, list) else TypeError
    with pytest.raises(refused, match="^x "):
        ic.conv(values, good)
    with pytest.raises(refused, match="^w "):
        ic.conv(good, values)
    with pytest.raises(refused, match="^dout "):
        ic.conv_grads(values, good, good)
    with pytest.raises(refused, match="^x "):
        ic.im2col(values, 2)
    with pytest.raises(refused, match="^cols "):
        ic.col2im(values, (1, 1, 3), 2)


def test_col2im_adds_as_conv_does():
    cols = np.full((3, 4), 100, np.int8)
    image = ic.col2im(cols, (1, 1, 6), 3)
    np.testing.assert_array_equal(image, [[[100, 200, 300, 300, 200, 100]]], strict=True)
    cols = np.array(
        [[2048, 1.5], [1, 1.5]], np.float16
    )  # in float16, 1.5 + 1 fits, 2048 + 1 does not
    np.testing.assert_array_equal(
        ic.col2im(cols, (1, 1, 3), 2), np.array([[[2048, 2.5, 1.5]]], np.float16), strict=True
    )
    assert ic.im2col(np.zeros((1, 1, 3), np.int8), 2).dtype == np.int8
    assert ic.im2col(np.zeros((1, 1, 3), bool), 2).dtype == bool
