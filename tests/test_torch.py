"""PyTorch as an oracle, where it is installed (pip install torch)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import im2col_conv as ic
from im2col_conv.engine.openblas import private_blas

from .strategies import cases, integers_like

pytestmark = pytest.mark.usefixtures("each_way")

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")

needs_blas = pytest.mark.skipif(private_blas() is None, reason="needs the extra fast")

FORWARD = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}
TRANSPOSED = {1: torch.conv_transpose1d, 2: torch.conv_transpose2d, 3: torch.conv_transpose3d}


def tensors(*arrays):
    return [torch.tensor(each, requires_grad=True) for each in arrays]


@given(case=cases(least_images=1), seed=st.integers(0, 2**20))
@pytest.mark.parametrize(
    ("dtype", "algorithm"),
    [
        (np.float64, "im2col"),
        pytest.param(np.float64, "implicit", marks=needs_blas),
        (np.complex128, "auto"),
    ],
)
def test_conv_and_its_gradients(dtype, algorithm, case, seed):
    geometry, keywords = case.geometry, {**case.keywords, "algorithm": algorithm}
    shapes = (geometry.x_shape, geometry.w_shape, (geometry.F,), geometry.y_shape)
    x, w, b, dout = (integers_like(seed + i, shape).astype(dtype) for i, shape in enumerate(shapes))
    if dtype == np.complex128:
        x, w, dout = (each * (1 + 2j) + each[..., ::-1] * 1j for each in (x, w, dout))
    tx, tw, tb = tensors(x, w, b)
    # PyTorch knows no padding that differs before and after, so it is given a padded input.
    pads = [cells for pair in reversed(geometry.padding) for cells in pair]
    ty = FORWARD[geometry.ndim](
        torch.nn.functional.pad(tx, pads),
        tw,
        tb,
        stride=geometry.stride,
        dilation=geometry.dilation,
        groups=geometry.groups,
    )
    ty.backward(torch.tensor(dout))
    np.testing.assert_array_equal(ic.conv(x, w, b, **keywords), ty.detach().numpy())
    for found, wanted in zip(
        ic.conv_grads(dout, x, w, **keywords), (tx.grad, tw.grad, tb.grad), strict=True
    ):
        np.testing.assert_array_equal(found, wanted.numpy())


@given(case=cases(least_images=1), seed=st.integers(0, 2**20), data=st.data())
def test_conv_transpose(case, seed, data):
    geometry = case.geometry
    x, w, b = (
        integers_like(seed + i, shape)
        for i, shape in enumerate((geometry.y_shape, geometry.w_shape, (geometry.C,)))
    )
    keywords = {
        "stride": geometry.stride,
        "padding": tuple(before for before, _ in geometry.padding),
        "dilation": geometry.dilation,
        "groups": geometry.groups,
        "output_padding": tuple(
            data.draw(st.integers(0, max(pair) - 1))
            for pair in zip(geometry.stride, geometry.dilation, strict=True)
        ),
    }
    try:
        wanted = TRANSPOSED[geometry.ndim](*map(torch.tensor, (x, w, b)), **keywords)
    except RuntimeError:
        with pytest.raises(ValueError, match="the result would have"):
            ic.conv_transpose(x, w, b, **keywords)
    else:
        np.testing.assert_array_equal(ic.conv_transpose(x, w, b, **keywords), wanted.numpy())


@given(case=cases(most_axes=2, least_images=1), seed=st.integers(0, 2**20))
def test_unfold_and_fold(case, seed):
    geometry = case.geometry
    if geometry.ndim != 2:
        return
    x, c = (integers_like(seed, shape) for shape in (geometry.x_shape, geometry.cols_shape))
    window = {
        "stride": geometry.stride,
        "padding": tuple(before for before, _ in geometry.padding),
        "dilation": geometry.dilation,
    }
    try:
        unfolded = torch.nn.functional.unfold(torch.tensor(x), geometry.kernel, **window).numpy()
    except RuntimeError:  # without the padding after, nothing fits
        with pytest.raises(ValueError, match="the output would be empty"):
            ic.im2col(x, geometry.kernel, **window)
        return
    cols = ic.im2col(x, geometry.kernel, **window)
    c = np.resize(c, cols.shape)
    by_image = np.moveaxis(cols.reshape(cols.shape[0], geometry.N, -1), 1, 0)
    np.testing.assert_array_equal(by_image, unfolded)
    columns = np.moveaxis(c.reshape(c.shape[0], geometry.N, -1), 1, 0).copy()
    folded = torch.nn.functional.fold(
        torch.tensor(columns), geometry.size, geometry.kernel, **window
    )
    np.testing.assert_array_equal(ic.col2im(c, x.shape, geometry.kernel, **window), folded.numpy())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("algorithm", ["im2col", pytest.param("implicit", marks=needs_blas)])
def test_a_real_layer_is_as_near_as_rounding_allows(dtype, layout, algorithm):
    rng = np.random.default_rng(12)
    x, w, b = (rng.standard_normal(s).astype(dtype) for s in ((4, 48, 31, 26), (40, 24, 3, 5), 40))
    tx, tw, tb = tensors(x, w, b)
    ty = torch.conv2d(tx, tw, tb, stride=(2, 1), padding=(1, 2), groups=2)
    dout = rng.standard_normal(ty.shape).astype(dtype)
    ty.backward(torch.tensor(dout))
    last = layout == "channels_last"
    keywords = {"stride": (2, 1), "padding": (1, 2), "groups": 2, "layout": layout}
    keywords["algorithm"] = algorithm
    order = (lambda a: np.moveaxis(a, 1, -1)) if last else (lambda a: a)
    y = ic.conv(order(x), w, b, **keywords)
    dx, dw, db = ic.conv_grads(order(dout), order(x), w, **keywords)
    terms = {"y": 24 * 15, "dx": 20 * 15, "dw": 4 * 16 * 26, "db": 4 * 16 * 26}
    wanted = {"y": order(ty.detach().numpy()), "dx": order(tx.grad.numpy()), "dw": tw.grad.numpy()}
    wanted["db"] = tb.grad.numpy()
    for (name, count), found in zip(terms.items(), (y, dx, dw, db), strict=True):
        # Each side strays at most count * eps * sum |terms|; terms are mostly below 4 * 4.
        most = 2 * count * np.finfo(dtype).eps * np.sqrt(count) * 4
        assert np.abs(found - wanted[name]).max() <= most
