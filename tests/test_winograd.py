"""Winograd's way: exact in fractions, within a bound in floats, and no other than the textbook."""

import itertools
import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import im2col_conv as ic
from im2col_conv.engine.adjoint import adjoint_of
from im2col_conv.engine.jobs import Job, run_jobs
from im2col_conv.engine.openblas import private_blas, why_not
from im2col_conv.engine.plan import scratch_bytes
from im2col_conv.engine.winograd import plan as plans
from im2col_conv.engine.winograd.forward import forward
from im2col_conv.engine.winograd.transforms import arrays_for, transform_for
from im2col_conv.engine.workers import drop_scratch
from im2col_conv.prepared import PlainWeights

from .strategies import integers_like

BLAS = private_blas()
needs_blas = pytest.mark.skipif(BLAS is None, reason=str(why_not()))
tiles = pytest.mark.parametrize("tile", [2, 4])
types = pytest.mark.parametrize("dtype", [np.float32, np.float64])

MIB = 2**20
PYTHON = 200_000  # bytes of threads, tuples and arrays without their cells


def plan_of(geometry, dtype, tile=None, workspace=64 * MIB):
    """Return a fresh plan, for tiles of this size if one is given."""
    with pytest.MonkeyPatch.context() as patch:
        if tile is not None:
            patch.setattr(plans, "tile_for", lambda geometry: tile)
        return plans.plan_forward.__wrapped__(geometry, np.dtype(dtype), workspace)


def winograd(
    x, w, b=None, *, tile=None, dtype=None, workers=1, workspace=64 * MIB, y=None, **keywords
):
    geometry = ic.ConvGeometry.from_shapes(x.shape, w.shape, **keywords)
    plan = plan_of(geometry, dtype or x.dtype, tile, workspace)
    y = np.full(geometry.y_shape, np.nan, plan.dtype) if y is None else y
    run(plan, x, w, b, y, workers, workspace)
    return y


def run(plan, x, w, b, y, workers, workspace):
    job = Job(plan, lambda shared: forward(plan, BLAS, shared, x, PlainWeights(w), b, y))
    run_jobs([job], workers, workspace)


def winograd_dx(dout, w, x_shape, *, tile=None, workers=1, workspace=64 * MIB, **keywords):
    adjoint = adjoint_of(ic.ConvGeometry.from_shapes(x_shape, w.shape, **keywords))
    plan = plan_of(adjoint, dout.dtype, tile, workspace)
    dx = np.full(x_shape, np.nan, plan.dtype)

    def begin(shared):
        return forward(plan, BLAS, shared, dout, PlainWeights(w), None, dx, adjoint=True)

    run_jobs([Job(plan, begin)], workers, workspace)
    return dx


def flipped(w, groups):
    """Return the weights of the convolution of dout that makes dx."""
    F, C = len(w) // groups, w.shape[1]
    return w.reshape(groups, F, C, 3, 3)[..., ::-1, ::-1].swapaxes(1, 2).reshape(-1, F, 3, 3)


def bound(x, w, b, tile, dtype, **keywords):
    r"""Return how far each output may be from the true one.

    A sum of k products, in any order, is within k u of the sum of their magnitudes, u = eps / 2,
    and steps that follow each other add their k (Higham, "Accuracy and stability of numerical
    algorithms", 2002, chapter 3; in place of k u it is k u / (1 - k u)). So

        |error| <= k u (|A^T| [sum_c (|G| |g| |G^T|) * (|B^T| |d| |B|)] |A| + |b|)

    with k = 1 + 9 for the rounded entries of G and the sum over nine taps, 2 n for the cells along
    both axes, C for the sum over channels, 2 n for the way back and 1 for b; A and B are exact. The
    matrix in brackets is Winograd's way itself, on magnitudes, with |A^T|, |G|, |B^T|, written out
    as a convolution for each cell of the tile.
    """
    geometry = ic.ConvGeometry.from_shapes(x.shape, w.shape, **keywords)
    G, (H, W), (Ho, Wo) = geometry.groups, geometry.size, geometry.out
    F, C = geometry.F // G, geometry.C // G
    A_T, both_G, B_T = (np.abs(a) for a in arrays_for(tile, np.dtype(np.float64)))
    n = len(B_T)
    U = np.einsum("kt,gfct->kgfc", both_G, np.abs(w).astype(float).reshape(G, F, C, 9))
    (top, _), (left, _) = geometry.padding
    th, tw = -(-Ho // tile), -(-Wo // tile)
    padded = np.zeros((geometry.N, geometry.C, th * tile + 2 + H, tw * tile + 2 + W))
    padded[:, :, top : top + H, left : left + W] = np.abs(x)
    result = np.zeros((geometry.N, geometry.F, th * tile, tw * tile))
    for r, q in itertools.product(range(th), range(tw)):
        d = padded[:, :, r * tile : r * tile + n, q * tile : q * tile + n]
        V = (B_T @ d @ B_T.T).reshape(-1, G, C, n * n)
        M = np.einsum("kgfc,ngck->ngfk", U, V).reshape(-1, geometry.F, n, n)
        result[:, :, r * tile : (r + 1) * tile, q * tile : (q + 1) * tile] = A_T @ M @ A_T.T
    if b is not None:
        result += np.abs(b).reshape(-1, 1, 1)
    k_u = (10 + 4 * n + C + 1) * np.finfo(dtype).eps / 2
    return k_u / (1 - k_u) * result[:, :, :Ho, :Wo]


def normal(seed, *shapes, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


# --- transforms -----------------------------------------------------------------------------------


def fractions(rng, *shape):
    return np.vectorize(Fraction)(rng.integers(-99, 100, shape))


@tiles
def test_the_transforms_are_correlation_exactly(tile):
    outs, cells, *matrices = transform_for(tile)
    A_T, G, B_T = (np.array(matrix, object) for matrix in matrices)
    rng = np.random.default_rng(tile)
    g, d = fractions(rng, 3, 3), fractions(rng, cells, cells)
    found = A_T @ ((G @ g @ G.T) * (B_T @ d @ B_T.T)) @ A_T.T
    for i, j in np.ndindex(outs, outs):
        assert found[i, j] == (g * d[i : i + 3, j : j + 3]).sum()
    for i, t, cell in np.ndindex(outs, 3, cells):  # the identity of the proof
        assert (A_T[i] * G[:, t] * B_T[:, cell]).sum() == int(cell == i + t)


@tiles
@types
def test_the_matrices_of_outputs_and_cells_are_exact_in_floats(tile, dtype):
    exact, arrays = transform_for(tile), arrays_for(tile, np.dtype(dtype))
    for matrix, array in ((exact.A_T, arrays.A_T), (exact.B_T, arrays.B_T)):
        assert [[Fraction(float(entry)) for entry in row] for row in array] == [*map(list, matrix)]
    both = np.kron(np.array(exact.G, object), np.array(exact.G, object))
    np.testing.assert_array_equal(arrays.G, both.astype(float).astype(dtype))


# --- results --------------------------------------------------------------------------------------

LAYERS = {
    "one tile": ((1, 1, 3, 3), (1, 1, 3, 3), {}),
    "one output of padding": ((2, 3, 1, 2), (2, 3, 3, 3), {"padding": ((2, 1), (1, 0))}),
    "remainders": ((2, 5, 13, 10), (7, 5, 3, 3), {"padding": 1}),
    "odd pairs": ((3, 4, 9, 14), (6, 4, 3, 3), {"padding": ((0, 2), (3, 1))}),
    "more padding than tile": ((1, 2, 3, 5), (3, 2, 3, 3), {"padding": ((9, 0), (7, 12))}),
    "groups": ((2, 6, 11, 8), (9, 2, 3, 3), {"padding": "same", "groups": 3}),
    "depthwise": ((2, 5, 7, 12), (10, 1, 3, 3), {"padding": (0, 1), "groups": 5}),
    "blocks": ((2, 130, 10, 17), (150, 130, 3, 3), {"padding": 1}),
    "a long row": ((1, 40, 4, 700), (24, 40, 3, 3), {"padding": (1, 2)}),
    "many images": ((37, 33, 6, 5), (70, 33, 3, 3), {"padding": 1}),
    "deep": ((3, 300, 6, 9), (65, 300, 3, 3), {"padding": 1}),
}
layers = pytest.mark.parametrize("layer", LAYERS)


@needs_blas
@layers
@tiles
@types
@pytest.mark.parametrize("workspace", [1, 64 * MIB])
def test_it_equals_conv_within_the_bound(layer, tile, dtype, workspace):
    x_shape, w_shape, keywords = LAYERS[layer]
    x, w, b = normal(5, x_shape, w_shape, w_shape[:1], dtype=dtype)
    wanted = ic.conv(*(each.astype(float) for each in (x, w, b)), **keywords)
    found = winograd(x, w, b, tile=tile, workspace=workspace, **keywords)
    assert found.dtype == dtype
    # In float64 what is wanted is rounded itself, within a bound that is smaller.
    limit = bound(x, w, b, tile, dtype, **keywords) * (2 if dtype is np.float64 else 1)
    assert (np.abs(found - wanted) <= limit).all()


@st.composite
def small_layers(draw, most_padding=5):
    groups = draw(st.integers(1, 3))
    padding = draw(st.tuples(*[st.tuples(*[st.integers(0, most_padding)] * 2)] * 2))
    size = [draw(st.integers(max(1, 3 - sum(pair)), 13)) for pair in padding]
    x_shape = (draw(st.integers(0, 3)), groups * draw(st.integers(1, 4)), *size)
    w_shape = (groups * draw(st.integers(1, 4)), x_shape[1] // groups, 3, 3)
    return x_shape, w_shape, {"padding": padding, "groups": groups}


@needs_blas
@settings(max_examples=60)
@given(
    layer=small_layers(),
    dtype=st.sampled_from([np.float32, np.float64]),
    workspace=st.sampled_from([1, 10**5, 10**7]),
    seed=st.integers(0, 99),
)
def test_tiles_of_two_are_exact_on_small_integers(layer, dtype, workspace, seed):
    """All entries of their matrices are halves and ones, so that nothing is rounded."""
    x_shape, w_shape, keywords = layer
    x, w, b = (integers_like(seed, each, dtype) for each in (x_shape, w_shape, w_shape[:1]))
    found = winograd(x, w, b, tile=2, workspace=workspace, **keywords)
    np.testing.assert_array_equal(found, ic.conv(x, w, b, **keywords))


@needs_blas
@settings(max_examples=60)
@given(layer=small_layers(), workspace=st.sampled_from([1, 10**5, 10**7]), seed=st.integers(0, 99))
def test_tiles_of_four_are_within_the_bound(layer, workspace, seed):
    x_shape, w_shape, keywords = layer
    x, w = normal(seed, x_shape, w_shape)
    found = winograd(x, w, tile=4, workspace=workspace, **keywords)
    wanted = ic.conv(x.astype(float), w.astype(float), **keywords)
    assert (np.abs(found - wanted) <= bound(x, w, None, 4, np.float32, **keywords)).all()


@needs_blas
@settings(max_examples=60)
@given(
    layer=small_layers(most_padding=2),
    workspace=st.sampled_from([1, 10**5, 10**7]),
    seed=st.integers(0, 99),
)
def test_dx_is_exact_on_small_integers_with_tiles_of_two(layer, workspace, seed):
    x_shape, w_shape, keywords = layer
    y_shape = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords).y_shape
    dout, w = (integers_like(seed, each, np.float32) for each in (y_shape, w_shape))
    found = winograd_dx(dout, w, x_shape, tile=2, workspace=workspace, **keywords)
    np.testing.assert_array_equal(found, ic.conv_input_grad(dout, w, x_shape, **keywords))


@needs_blas
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "padding", "groups"),
    [
        ((2, 5, 13, 10), (7, 5, 3, 3), 1, 1),
        ((3, 4, 9, 14), (6, 2, 3, 3), ((0, 2), (2, 1)), 2),
        ((2, 130, 10, 17), (150, 130, 3, 3), 2, 1),
    ],
)
@types
def test_dx_is_within_the_bound_of_tiles_of_four(x_shape, w_shape, padding, groups, dtype):
    keywords = {"padding": padding, "groups": groups}
    y_shape = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords).y_shape
    dout, w = normal(7, y_shape, w_shape, dtype=dtype)
    wanted = ic.conv_input_grad(dout.astype(float), w.astype(float), x_shape, **keywords)
    found = winograd_dx(dout, w, x_shape, tile=4, **keywords)
    adjoint = adjoint_of(ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords))
    limit = bound(
        dout, flipped(w, groups), None, 4, dtype, padding=adjoint.padding, groups=groups
    ) * (2 if dtype is np.float64 else 1)
    assert (np.abs(found - wanted) <= limit).all()
    again = winograd_dx(dout, w, x_shape, tile=4, workers=3, **keywords)
    assert found.tobytes() == again.tobytes()


@needs_blas
@pytest.mark.parametrize(("padding", "out"), [((0, 2), (19, 36)), (((1, 0), (2, 1)), (20, 35))])
def test_asked_for_by_name_it_makes_dx_and_leaves_dw_to_auto(padding, out):
    x, w, dout = normal(9, (2, 40, 21, 34), (30, 40, 3, 3), (2, 30, *out))
    wanted = winograd_dx(dout, w, x.shape, padding=padding)
    for weights in (w, ic.prepare(w)):
        keywords = {"padding": padding, "algorithm": "winograd"}
        dx, dw, db = ic.conv_grads(dout, x, weights, **keywords)
        np.testing.assert_array_equal(dx, wanted)
        np.testing.assert_array_equal(
            ic.conv_input_grad(dout, weights, x.shape, **keywords), wanted
        )
        exact = ic.conv_grads(dout, x, w, padding=padding)
        assert dx.tobytes() != exact.dx.tobytes()
        np.testing.assert_array_equal(dw, exact.dw)
        np.testing.assert_array_equal(db, exact.db)


@needs_blas
def test_dx_of_more_padding_than_a_window_reaches_is_left_to_auto():
    dout, w = normal(9, (2, 30, 25, 34), (30, 40, 3, 3))
    keywords = {"x_shape": (2, 40, 21, 34), "padding": (3, 1)}
    np.testing.assert_array_equal(
        ic.conv_input_grad(dout, w, algorithm="winograd", **keywords),
        ic.conv_input_grad(dout, w, **keywords),
    )


@needs_blas
def test_prepared_weights_keep_a_form_of_each_pass():
    x, w, dout = normal(9, (2, 4, 9, 12), (3, 4, 3, 3), (2, 3, 9, 12))
    prepared = ic.prepare(w)
    for _ in range(2):
        y = ic.conv(x, prepared, padding=1, algorithm="winograd")
        dx = ic.conv_input_grad(dout, prepared, x.shape, padding=1, algorithm="winograd")
        np.testing.assert_array_equal(y, ic.conv(x, w, padding=1, algorithm="winograd"))
        np.testing.assert_array_equal(
            dx, ic.conv_input_grad(dout, w, x.shape, padding=1, algorithm="winograd")
        )
    assert "2 forms" in repr(prepared)


@needs_blas
def test_no_images_give_no_outputs():
    x, w = normal(1, (0, 3, 6, 9), (4, 3, 3, 3))
    assert winograd(x, w, padding=1).shape == (0, 4, 6, 9)


@needs_blas
@tiles
def test_any_strides_are_read_and_written(tile):
    x, w, b = normal(3, (2, 5, 11, 14), (7, 5, 3, 3), (7,))
    wanted = winograd(x, w, b, tile=tile, padding=((1, 0), (2, 1)))

    def elsewhere(array):
        """Return the same numbers in reverse order, with gaps, transposed."""
        shape = [2 * size for size in array.shape[::-1]]
        view = np.full(shape, np.nan, array.dtype)[tuple(slice(None, None, -2) for _ in shape)].T
        view[...] = array
        return view

    def last(array):
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)

    for view in (elsewhere, last):
        y = view(np.zeros_like(wanted))
        arrays = [view(each) if each.ndim == 4 else elsewhere(each) for each in (x, w, b)]
        found = winograd(*arrays, tile=tile, padding=((1, 0), (2, 1)), y=y)
        assert found is y
        np.testing.assert_array_equal(found, wanted)


@needs_blas
def test_types_may_differ_from_that_of_the_result():
    x, w, b = normal(3, (2, 5, 11, 14), (7, 5, 3, 3), (7,))
    wanted = winograd(*(each.astype(float) for each in (x, w, b)))
    found = winograd(x.astype(">f4"), w.astype(float), b, dtype=np.float64)
    np.testing.assert_array_equal(found, wanted)


@needs_blas
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@tiles
def test_what_is_not_finite_stays_in_the_tiles_that_see_it(tile, wrong):
    x, w = normal(3, (2, 3, 17, 22), (4, 3, 3, 3))
    wanted = winograd(x, w, tile=tile, padding=1)
    x[1, 2, 9, 10] = wrong
    found = winograd(x, w, tile=tile, padding=1)
    window = np.zeros(found.shape, bool)
    window[1, :, 8:11, 9:12] = True
    near = np.zeros(found.shape, bool)
    rows, columns = (slice((i - 1) // tile * tile, ((i + 1) // tile + 1) * tile) for i in (9, 10))
    near[1, :, rows, columns] = True
    assert not np.isfinite(found[window]).any()
    np.testing.assert_array_equal(found[~near], wanted[~near])


# --- errors that the documents state --------------------------------------------------------------


@needs_blas
@pytest.mark.parametrize(
    ("tile", "dtype", "most"),
    [
        (2, np.float32, 1e-6),
        (4, np.float32, 5e-6),
        (2, np.float64, 2e-15),
        (4, np.float64, 1e-14),
    ],
)
@pytest.mark.parametrize("channels", [16, 64, 256])
def test_the_error_on_normal_numbers_relative_to_the_largest_result(tile, dtype, most, channels):
    x, w = normal(channels, (1, channels, 26, 31), (32, channels, 3, 3), dtype=dtype)
    exact = in_long_doubles(x, w)
    error = np.abs(winograd(x, w, tile=tile, padding=1) - exact).max() / np.abs(exact).max()
    assert error <= most
    # dx of the adjoint layer is the same sum
    adjoint = flipped(w, 1)
    found = winograd_dx(x, adjoint, exact.shape, tile=tile, padding=1)
    assert np.abs(found - exact).max() / np.abs(exact).max() <= most


def in_long_doubles(x, w):
    """Return the convolution with a padding of 1."""
    padded = np.pad(x.astype(np.longdouble), ((0, 0), (0, 0), (1, 1), (1, 1)))
    H, W = x.shape[2:]
    return sum(
        np.einsum("fc,nchw->nfhw", w[:, :, i, j], padded[:, :, i : i + H, j : j + W])
        for i, j in np.ndindex(3, 3)
    )


# --- the engine's promises ------------------------------------------------------------------------


@needs_blas
@layers
def test_results_are_bit_for_bit_the_same_for_any_workers(layer):
    x_shape, w_shape, keywords = LAYERS[layer]
    arrays = normal(11, x_shape, w_shape, w_shape[:1])
    alone = winograd(*arrays, workers=1, **keywords)
    for workers in (2, 3):
        assert winograd(*arrays, workers=workers, **keywords).tobytes() == alone.tobytes()


@pytest.mark.parametrize("x_shape", [(1, 64, 90, 70), (8, 256, 14, 14), (8, 512, 7, 7)])
def test_layers_of_many_channels_are_shared(x_shape):
    geometry = ic.ConvGeometry.from_shapes(x_shape, (x_shape[1],) * 2 + (3, 3), padding=1)
    assert plan_of(geometry, np.float32).tasks >= 4


@needs_blas
@pytest.mark.parametrize("workspace", [1, 3 * MIB, 64 * MIB])
@pytest.mark.parametrize("workers", [1, 2])
@layers
def test_memory_stays_inside_what_the_plan_says(layer, workers, workspace):
    x_shape, w_shape, keywords = LAYERS[layer]
    x, w, b = normal(2, x_shape, w_shape, w_shape[:1])
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    plan = plan_of(geometry, x.dtype, workspace=workspace)
    y = winograd(x, w, b, workspace=workspace, **keywords)  # lists of products are kept from now on
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        drop_scratch()
        run(plan, x, w, b, y, workers, workspace)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak <= scratch_bytes(plan, workers, workspace) + PYTHON
    tile = 2 * (plan.tile + 2) ** 2 * (max(w_shape[:2]) + 16) * x.itemsize
    taps = 3 * 9 * (w_shape[1] + 32) * min(w_shape[0], 64) * x.itemsize  # of a block of filters
    floor = plan.shared_bytes + tile + taps
    assert scratch_bytes(plan, workers, workspace) <= max(workspace, floor)


@needs_blas
@layers
def test_nothing_given_is_changed(layer):
    x_shape, w_shape, keywords = LAYERS[layer]
    given_ = normal(4, x_shape, w_shape, w_shape[:1])
    before = [each.copy() for each in given_]
    for each in given_:
        each.flags.writeable = False
    winograd(*given_, **keywords)
    for each, old in zip(given_, before, strict=True):
        assert each.tobytes() == old.tobytes()


# --- what is covered ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("w_shape", "keywords", "dtype", "words"),
    [
        ((4, 3, 5, 3), {}, np.float32, r"kernel of 3 by 3, got \(5, 3\)"),
        ((4, 3, 3, 3), {"stride": (1, 2)}, np.float32, r"stride of 1, got \(1, 2\)"),
        ((4, 3, 3, 3), {"dilation": (2, 1)}, np.float32, r"dilation of 1, got \(2, 1\)"),
        ((4, 3, 3, 3), {}, np.int64, "float32 or float64, got int64"),
        ((4, 3, 3, 3), {}, np.complex64, "float32 or float64, got complex64"),
        ((4, 3, 3), {}, np.float32, r"kernel of 3 by 3, got \(3,\)"),
        ((4, 3, 3, 3, 3), {}, np.float32, r"kernel of 3 by 3, got \(3, 3, 3\)"),
    ],
)
def test_what_is_not_covered_is_said_in_words(w_shape, keywords, dtype, words):
    x_shape = (2, 3, 9, 10, 11)[: len(w_shape)]
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    reason = plans.covers(geometry, np.dtype(dtype))
    assert reason is not None
    with pytest.raises(ValueError, match=words):
        raise ValueError(reason)


@types
def test_what_is_covered(dtype):
    geometry = ic.ConvGeometry.from_shapes((0, 4, 9, 10), (6, 2, 3, 3), padding=7, groups=2)
    assert plans.covers(geometry, np.dtype(dtype)) is None


@pytest.mark.parametrize(
    ("out", "tile"), [((224, 224), 4), ((7, 7), 4), ((6, 6), 2), ((2, 90), 2), ((3, 4), 4)]
)
def test_the_tile_is_the_one_with_fewer_multiplications(out, tile):
    geometry = ic.ConvGeometry.from_shapes((2, 3, *out), (4, 3, 3, 3), padding=1)
    assert plans.tile_for(geometry) == tile
    four, two = ((m + 2) ** 2 * math.prod(math.ceil(size / m) for size in out) for m in (4, 2))
    assert (four < two) == (tile == 4)
