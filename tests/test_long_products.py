"""Long products, for kernels that copy all operands, against the spine."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import im2col_conv as ic
from im2col_conv.engine import workers
from im2col_conv.engine.adjoint import adjoint_of
from im2col_conv.engine.implicit import arrangements, forward, input_grad, weight_grad
from im2col_conv.engine.implicit.arrangements import arrangement_for
from im2col_conv.engine.implicit.pairs import axes_between
from im2col_conv.engine.implicit.shifted import Shifted
from im2col_conv.engine.implicit.tile import Tile
from im2col_conv.engine.openblas import private_blas, why_not
from im2col_conv.engine.plan import workers_for
from im2col_conv.engine.workers import Scratch, drop_scratch

pytestmark = pytest.mark.skipif(private_blas() is None, reason=str(why_not()))

PLANS = forward.plan_forward, weight_grad.plan_weight_grad, input_grad.plan_input_grad
MADE = "y", "dout.T", "dx"
LAYERS = [
    # x_shape, w_shape, keywords
    ((3, 35, 9, 13), (66, 35, 3, 2), {"padding": ((1, 2), (0, 1))}),
    ((2, 40, 11, 8), (33, 40, 4, 3), {"padding": 2, "dilation": (1, 2)}),
    ((1, 37, 14, 9), (256, 37, 3, 3), {"padding": (1, 0)}),  # two chunks of filters
    ((2, 256, 6, 11), (130, 256, 3, 2), {"padding": (0, 1)}),  # and of channels, for dx
    ((2, 19, 10, 57), (70, 19, 5, 3), {"stride": (2, 1), "padding": (2, 1)}),  # lines of phases
    ((2, 19, 11, 25), (70, 19, 3, 4), {"stride": (3, 2), "padding": (0, 5), "dilation": (2, 1)}),
    ((2, 6, 5, 7, 8), (9, 6, 3, 2, 3), {"padding": (1, 0, 1)}),
    ((1, 20, 4, 6, 9), (65, 20, 2, 3, 2), {"stride": (2, 2, 1), "dilation": (1, 1, 2)}),
    ((2, 34, 1, 9), (7, 34, 3, 3), {"padding": ((2, 3), (4, 1))}),  # lines that see padding alone
    ((3, 33, 8, 1), (12, 33, 2, 3), {"padding": ((0, 0), (2, 3))}),
    ((2, 33, 9, 7), (64, 33, 1, 3), {"padding": (0, 1)}),
]
POINTWISE = [
    # pieces of positions and of channels, of one image and of all; chunks; one channel, or filter
    ((2, 300, 31, 37), (270, 300, 1, 1), {}),
    ((3, 35, 700), (256, 35, 1), {}),
    ((2, 512, 5, 7), (40, 512, 1, 1), {}),
    ((3, 512, 9, 4), (768, 512, 1, 1), {}),
    ((2, 140, 9, 11), (46, 70, 1, 1), {"groups": 2}),
    ((2, 1, 40, 41), (7, 1, 1, 1), {}),
    ((2, 9, 5, 4, 3), (1, 9, 1, 1, 1), {}),
]
every_layout = pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
every_layer = pytest.mark.parametrize(("x_shape", "w_shape", "keywords"), LAYERS)
every_layer_of_all = pytest.mark.parametrize(
    ("x_shape", "w_shape", "keywords"), [*LAYERS, *POINTWISE]
)


@pytest.fixture(autouse=True, scope="module")
def _all_layers_shifted():
    """Let planes be shifted wherever they can be, and not only where that pays."""

    def covered(geometry, made, *, last):
        return made != "dx" or adjoint_of(geometry) is not None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(private_blas(), "packs", True)
        patch.setattr(arrangements, "_large_products_pay", covered)
        for draw in PLANS:
            draw.cache_clear()
        yield
    for draw in PLANS:
        draw.cache_clear()


def whole(rng, shape, dtype=np.float64):
    return rng.integers(-4, 5, shape).astype(dtype)


def arrays_of(rng, x_shape, w_shape, layout, keywords, make=whole):
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    x, w, b, dout = (make(rng, s) for s in (x_shape, w_shape, w_shape[:1], geometry.y_shape))
    if layout == "channels_last":
        x, dout = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, dout))
    return x, w, b, dout


def all_passes(x, w, b, dout, **keywords):
    return (ic.conv(x, w, b, **keywords), *ic.conv_grads(dout, x, w, **keywords))


def both_ways(x, w, b, dout, **keywords):
    ways = (
        all_passes(x, w, b, dout, algorithm=each, **keywords) for each in ("implicit", "im2col")
    )
    return zip(*ways, strict=True)


@every_layout
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@every_layer_of_all
def test_equals_the_spine(x_shape, w_shape, keywords, dtype, layout):
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    lie = arrangement_for(geometry, layout, "y", packs=True)
    assert isinstance(lie, Shifted) or lie.packed
    small = 1 if dtype == np.float16 else 4  # sums that float16 holds

    def make(rng, shape):
        return np.clip(whole(rng, shape), -small, small).astype(dtype)

    arrays = arrays_of(np.random.default_rng(1), x_shape, w_shape, layout, keywords, make)
    for ours, theirs in both_ways(*arrays, layout=layout, **keywords):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@every_layout
@every_layer_of_all
def test_nothing_that_lay_in_the_buffers_is_read(x_shape, w_shape, keywords, layout, monkeypatch):
    def full_of_nan(shape, dtype):
        return np.full(shape, 255, dtype)  # bytes, which as floats are NaN

    arrays = arrays_of(np.random.default_rng(2), x_shape, w_shape, layout, keywords)
    drop_scratch()
    monkeypatch.setattr(workers, "aligned", full_of_nan)
    found = all_passes(*arrays, algorithm="implicit", layout=layout, **keywords)
    drop_scratch()
    assert all(np.isfinite(each).all() for each in found)


@every_layout
@every_layer_of_all
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_infinity_reaches_what_it_reaches_in_the_spine(x_shape, w_shape, keywords, value, layout):
    rng = np.random.default_rng(3)
    positive = lambda rng, shape: rng.random(shape) + 0.5  # noqa: E731
    x, w, b, dout = arrays_of(rng, x_shape, w_shape, layout, keywords, positive)
    for array in (x, dout):
        array.reshape(-1)[rng.integers(array.size)] = value
    for ours, theirs in both_ways(x, w, b, dout, layout=layout, **keywords):
        np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(theirs))


@every_layout
def test_infinity_at_an_edge_meets_no_padding(layout):
    x, dout = np.ones((1, 33, 5, 6)), np.full((1, 40, 5, 8), np.inf)
    if layout == "channels_last":
        x, dout = (np.moveaxis(a, 1, -1) for a in (x, dout))
    keywords = {"padding": (1, 2), "layout": layout, "algorithm": "implicit"}
    assert (ic.conv_weight_grad(dout, x, (40, 33, 3, 3), **keywords) == np.inf).all()


@every_layout
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "keywords"),
    [
        ((5, 64, 40, 30), (96, 64, 3, 3), {"padding": 1}),
        ((2, 300, 12, 13), (256, 300, 3, 3), {"padding": 1}),  # chunks of filters
        ((3, 70, 61, 33), (130, 70, 3, 3), {"stride": 2}),
        ((3, 260, 61, 33), (512, 260, 1, 1), {}),
    ],
)
def test_same_bits_for_any_number_of_workers(x_shape, w_shape, keywords, layout):
    normal = lambda rng, shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    arrays = arrays_of(np.random.default_rng(5), x_shape, w_shape, layout, keywords, normal)
    results = []
    for number in (1, 2, 3):
        with ic.set_workers(number):
            results.append(all_passes(*arrays, algorithm="implicit", layout=layout, **keywords))
    for other in results[1:]:
        for one, another in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, another)


ORDERS = {
    "as it is": lambda a: a,
    "reversed": lambda a: np.ascontiguousarray(a[::-1, ::-1, ::-1])[::-1, ::-1, ::-1],
    "images innermost": np.asfortranarray,
    "images inside channels": lambda a: np.ascontiguousarray(a.swapaxes(0, 1)).swapaxes(0, 1),
    "part of more": lambda a: np.pad(a, 1)[(slice(1, -1),) * a.ndim],
    "lines with gaps": lambda a: np.repeat(a, 2, axis=2)[:, :, ::2],
    "images reversed": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "one image for all": lambda a: np.broadcast_to(a[:1], a.shape),
    "one row for all": lambda a: np.broadcast_to(a[:, :1], a.shape),
    "one number for all": lambda a: np.broadcast_to(a[..., :1], a.shape),
}


@every_layout
@pytest.mark.parametrize("order", ORDERS)
def test_any_memory_order_is_right(order, layout):
    rng = np.random.default_rng(6)
    keywords = {"padding": ((1, 0), (0, 2)), "layout": layout}
    x, w, b, dout = arrays_of(
        rng, (3, 34, 6, 7), (35, 34, 3, 2), layout, {"padding": keywords["padding"]}
    )
    x, dout = (ORDERS[order](a) for a in (x, dout))
    for ours, theirs in both_ways(x, w, b, dout, **keywords):
        np.testing.assert_array_equal(ours, theirs)
    if not order.endswith("for all"):
        y = ORDERS[order](np.zeros(dout.shape))
        ic.conv(x, w, b, algorithm="implicit", out=y, **keywords)
        np.testing.assert_array_equal(y, ic.conv(x, w, b, algorithm="im2col", **keywords))


@every_layout
def test_y_and_dout_are_used_where_they_lie(layout, monkeypatch):
    keywords = {"padding": 1}
    arrays = arrays_of(np.random.default_rng(7), (2, 34, 6, 7), (36, 34, 3, 3), layout, keywords)
    names = []
    given = Scratch.array
    monkeypatch.setattr(
        Scratch, "array", lambda self, name, *rest: names.append(name) or given(self, name, *rest)
    )
    x, w, b, dout = arrays
    ic.conv(x, w, b, algorithm="implicit", layout=layout, **keywords)
    assert set(names) == {"weights", "x"}
    names.clear()
    ic.conv_input_grad(dout, w, x.shape, algorithm="implicit", layout=layout, **keywords)
    assert set(names) == {"weights", "dout"}
    names.clear()
    ic.conv_weight_grad(dout, x, w.shape, algorithm="implicit", layout=layout, **keywords)
    assert set(names) == {"x", "sums", "dw"}


@every_layout
@every_layer
def test_memory_is_what_the_plan_counts(x_shape, w_shape, keywords, layout):
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    blas, dtype = private_blas(), np.dtype(np.float64)
    outs, cells = (tuple(slice(0, n) for n in size) for size in (geometry.out, geometry.size))
    tile = Tile(axes_between(geometry, outs, cells), geometry.N, geometry.C, geometry.F)
    # not where their numbers would be used, so that each has a copy
    x, y = (np.zeros(shape, np.float32) for shape in (geometry.x_shape, geometry.y_shape))
    x, y = x.swapaxes(0, 1), y.swapaxes(0, 1)
    for name, image in {"x": x, "dx": x, "y": y, "dout": y, "dout.T": y}.items():
        made = {"dx": "dx", "dout": "dx"}.get(name, "y")
        lie = arrangement_for(geometry, layout, made, packs=True)
        if not isinstance(lie, Shifted):
            continue  # dx with a stride
        scratch = Scratch()
        lie.load(blas, scratch, name, image, tile, dtype)
        counted = lie.numbers(name, len(image), geometry.N, geometry.size, geometry.out)
        assert 0.8 * counted * dtype.itemsize < scratch.nbytes <= counted * dtype.itemsize


@every_layout
@pytest.mark.parametrize(("filters", "positions"), [(1, 1), (1, 6), (5, 1)])
def test_one_filter_or_one_output_may_lie_anyhow(filters, positions, layout):
    x, w, b, dout = arrays_of(
        np.random.default_rng(8),
        (3, 34, 3, positions + 2),
        (filters, 34, 3, 3),
        layout,
        {},
    )
    for order in (lambda a: a, lambda a: a[::-1, ::-1, ::-1, ::-1], lambda a: a.copy(order="F")):
        for ours, theirs in both_ways(x, w, b, order(dout), layout=layout):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("w_shape", [(1, 256, 120, 3, 3), (1, 70, 130, 3, 3)])
def test_what_sums_are_turned_in_is_counted(w_shape):
    lie, scratch = Shifted(by_rows=False, kernel=3, stride=1), Scratch()
    sums = np.zeros(lie.weight_sums(w_shape), np.float32)
    lie.unpack(private_blas(), scratch, sums, np.zeros(w_shape, np.float32))
    counted = lie.unpacking(w_shape[1:]) * sums.itemsize
    assert 0.9 * counted < scratch.nbytes <= counted


@pytest.mark.parametrize(("channels", "positions"), [(256, 1024), (255, 1023), (520, 2050)])
@every_layout
def test_packed_products_are_as_large_as_they_may_be(channels, positions, layout):
    geometry = ic.ConvGeometry.from_shapes((1, channels, positions), (channels, channels, 1))
    lie = arrangement_for(geometry, layout, "y", packs=True)
    blas, scratch, dtype = private_blas(), Scratch(), np.dtype(np.float32)
    x, y = (np.zeros((channels, 1, positions), dtype) for _ in range(2))
    if layout == "channels_last":
        x, y = (np.zeros((1, positions, channels), dtype).transpose(2, 0, 1) for _ in range(2))
    w = np.ones((1, channels, channels, 1), dtype)
    weights = lie.forward_weights(w, dtype, scratch.array)
    chunks = channels // lie.chunk(channels)
    W = weights.part(blas, scratch, slice(0, 1), slice(0, chunks))
    lists = []

    class Library:
        def run(self, products, *arrays):
            lists.append(products)

    lie.forward(Library(), None, x.reshape(*x.shape[:2], -1), W, y, None)
    assert [products.count for products in lists] == [-(-channels // 256) * -(-positions // 1024)]


@given(st.data())
def test_equals_the_spine_for_any_geometry(data):
    ndim = data.draw(st.integers(2, 3))
    C, F = (data.draw(st.sampled_from([1, 2, 5, 33, 128])) for _ in range(2))
    axes = st.tuples(*[st.integers(1, 3)] * ndim)
    kernel, stride, dilation = data.draw(axes), data.draw(axes), data.draw(axes)
    if data.draw(st.booleans()):
        stride = (1,) * ndim
    pads = data.draw(st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * ndim))
    size = data.draw(st.tuples(*[st.integers(1, 9)] * ndim))
    shape = (data.draw(st.integers(0, 3)), C, *size)
    keywords = {"stride": stride, "padding": pads, "dilation": dilation}
    layout = data.draw(st.sampled_from(["channels_first", "channels_last"]))
    try:
        arrays = arrays_of(np.random.default_rng(0), shape, (F, C, *kernel), layout, keywords)
    except ValueError:
        return
    with ic.set_workers(2):
        for ours, theirs in both_ways(*arrays, layout=layout, **keywords):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "shared"),
    [
        ((1, 40, 36, 27), (30, 40, 3, 3), False),  # 18.4 million operations
        ((1, 40, 40, 27), (30, 40, 3, 3), True),  # 20.5
        ((1, 40, 33, 25), (300, 40, 1, 1), False),  # 19.8
        ((1, 40, 34, 25), (300, 40, 1, 1), True),  # 20.4
    ],
)
def test_long_products_are_shared_sooner_than_short_ones(x_shape, w_shape, shared):
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape)
    given = geometry, "channels_first", np.dtype(np.float32), 2**26
    short, long = (forward.plan_forward(*given, packs=packs) for packs in (False, True))
    assert short.tasks == 1
    assert (long.tasks > 1) is shared
    assert (workers_for(long, 2, 2**26) == 2) is shared


@every_layout
@pytest.mark.parametrize("draw", PLANS)
def test_four_workers_have_room_for_what_few_lines_see(draw, layout):
    geometry = ic.ConvGeometry.from_shapes((1, 64, 90, 700), (96, 64, 3, 3), padding=1)
    plan = draw(geometry, layout, np.dtype(np.float32), 2**24, packs=True)
    assert isinstance(plan.arrangement, Shifted)
    assert workers_for(plan, 4, 2**24) == 4
