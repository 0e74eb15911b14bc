"""The matrices and the operator against the functions that they stand for: equality throughout."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.linalg import LinearOperator, lsqr, svds

import im2col_conv as ic
from im2col_conv import reference
from tests.strategies import cases, integers_like
from tests.test_equivalence import (
    DEPTHWISE,
    HOUSE,
    KERNEL_AS_LARGE,
    MUCH_PADDING,
    POINTWISE,
    UNUSED_ROWS,
)

seeds = st.integers(0, 2**32 - 1)


def named(test):
    for case in (HOUSE, DEPTHWISE, UNUSED_ROWS, KERNEL_AS_LARGE, POINTWISE, MUCH_PADDING):
        test = example(case=case, seed=7)(test)
    return test


def integers(seed, *shapes):
    return [integers_like(seed + i, shape, np.int64) for i, shape in enumerate(shapes)]


def complex_integers(seed, *shapes):
    return [
        real + 1j * imaginary
        for real, imaginary in zip(
            integers(seed, *shapes), integers(seed + 9, *shapes), strict=True
        )
    ]


def lowered_by(case):
    return {name: value for name, value in case.keywords.items() if name != "groups"}


@named
@given(case=cases(), seed=seeds)
def test_the_lowering_matrix_is_im2col_and_its_transpose_col2im(case, seed):
    g = case.geometry
    S, keywords = ic.lowering_matrix(g), lowered_by(case)
    x, cols = integers(seed, g.x_shape, g.cols_shape)
    for module in (ic, reference):
        np.testing.assert_array_equal(
            S @ x.ravel(), module.im2col(x, g.kernel, **keywords).ravel(), strict=True
        )
        np.testing.assert_array_equal(
            S.T @ cols.ravel(), module.col2im(cols, g.x_shape, g.kernel, **keywords).ravel()
        )


@named
@given(case=cases(), seed=seeds)
def test_the_lowering_matrix_is_a_selection(case, seed):
    g = case.geometry
    S = ic.lowering_matrix(g)
    assert isinstance(S, csr_array)
    assert S.dtype == np.int64
    assert S.shape == (np.prod(g.cols_shape), np.prod(g.x_shape))
    assert set(S.data) <= {1}
    assert set(np.diff(S.indptr)) <= {0, 1}
    padding_or_cell = reference.im2col(np.ones(g.x_shape, int), g.kernel, **lowered_by(case))
    np.testing.assert_array_equal(np.diff(S.indptr), padding_or_cell.ravel())
    windows = (S.T @ S).toarray()  # diagonal: by how many windows each cell is covered
    assert np.count_nonzero(windows - np.diag(np.diag(windows))) == 0


@named
@given(case=cases(), seed=seeds)
def test_the_matrix_of_a_layer_is_conv_and_its_transpose_flip_and_pad(case, seed):
    g = case.geometry
    x, w, dout = integers(seed, g.x_shape, g.w_shape, g.y_shape)
    A = ic.conv_matrix(w, g)
    assert isinstance(A, csr_array)
    for module in (ic, reference):
        y = module.conv(x, w, **case.keywords)
        np.testing.assert_array_equal(A @ x.ravel(), y.ravel(), strict=True)
        dx = module.conv_input_grad(dout, w, g.x_shape, **case.keywords)
        np.testing.assert_array_equal(A.T @ dout.ravel(), dx.ravel(), strict=True)


@given(case=cases(), seed=seeds)
def test_the_adjoint_of_a_complex_layer_is_conjugated(case, seed):
    g = case.geometry
    x, w, dout = complex_integers(seed, g.x_shape, g.w_shape, g.y_shape)
    A, operator = ic.conv_matrix(w, g), ic.conv_operator(w, g.x_shape, **case.keywords)
    dx = reference.conv_input_grad(dout, w, g.x_shape, **case.keywords).ravel()
    np.testing.assert_array_equal(A.conj().T @ dout.ravel(), dx, strict=True)
    np.testing.assert_array_equal(operator.H @ dout.ravel(), dx, strict=True)
    np.testing.assert_array_equal(operator.T @ dout.ravel(), A.T @ dout.ravel(), strict=True)
    assert np.vdot(operator @ x.ravel(), dout) == np.vdot(x, dx)


@named
@given(case=cases(), seed=seeds)
def test_the_operator_is_the_matrix(case, seed):
    g = case.geometry
    x, w, dout = integers(seed, g.x_shape, g.w_shape, g.y_shape)
    A, operator = ic.conv_matrix(w, g), ic.conv_operator(w, g.x_shape, **case.keywords)
    assert isinstance(operator, LinearOperator)
    assert operator.shape == A.shape
    assert operator.dtype == A.dtype == np.int64
    assert operator.matvec(x.ravel()).shape == A.shape[:1]
    assert operator.matvec(x.reshape(-1, 1)).shape == (A.shape[0], 1)
    np.testing.assert_array_equal(operator.matvec(x.ravel()), A @ x.ravel(), strict=True)
    np.testing.assert_array_equal(operator.rmatvec(dout.ravel()), A.T @ dout.ravel(), strict=True)
    xs, douts = integers(seed + 2, (A.shape[1], 3), (A.shape[0], 2))
    np.testing.assert_array_equal(operator.matmat(xs), A @ xs, strict=True)
    np.testing.assert_array_equal(operator.rmatmat(douts), A.T @ douts, strict=True)
    np.testing.assert_array_equal(operator @ xs[:, :0], A @ xs[:, :0], strict=True)


@settings(max_examples=30)
@given(case=cases(), seed=seeds)
def test_the_weight_gradient_is_dout_by_the_selection(case, seed):
    g = case.geometry
    x, dout = integers(seed, g.x_shape, g.y_shape)
    cols = (ic.lowering_matrix(g) @ x.ravel()).reshape(g.groups, g.gemm.K, g.gemm.N)
    by_filter = np.moveaxis(dout, 1, 0).reshape(g.groups, g.gemm.M, g.gemm.N)
    # dw (G, F/G, K) = dout (G, F/G, N * out) @ cols.T (G, N * out, K)
    dw = by_filter @ cols.swapaxes(1, 2)
    np.testing.assert_array_equal(
        dw.reshape(g.w_shape), reference.conv_weight_grad(dout, x, g.w_shape, **case.keywords)
    )


@pytest.mark.parametrize(
    ("given_type", "of_matrix", "of_operator"),
    [
        (np.bool_, np.int64, np.int64),
        (np.uint8, np.int64, np.int64),
        (np.float16, np.float32, np.float16),
        (np.float32, np.float32, np.float32),
        (np.float64, np.float64, np.float64),
        (np.complex64, np.complex64, np.complex64),
    ],
)
def test_types(given_type, of_matrix, of_operator):
    w = np.array([[[1, 0, 1]]], given_type)
    g = ic.ConvGeometry.from_shapes((2, 1, 5), w.shape)
    A, operator = ic.conv_matrix(w, g), ic.conv_operator(w, g.x_shape)
    assert A.dtype == of_matrix
    assert operator.dtype == of_operator
    assert (operator @ np.ones(10, given_type)).dtype == of_operator
    assert A.nnz == 2 * 3 * 2  # zeros of w are not stored


def test_weights_that_are_not_finite_stay_in_their_windows():
    w = np.array([[[np.nan, 1.0, np.inf]]])
    g = ic.ConvGeometry.from_shapes((1, 1, 5), w.shape, padding=1)
    A = ic.conv_matrix(w, g).toarray()
    np.testing.assert_array_equal(A[0], [1, np.inf, 0, 0, 0])
    np.testing.assert_array_equal(A[1], [np.nan, 1, np.inf, 0, 0])


def test_many_windows_over_one_cell_are_counted():
    g = ic.ConvGeometry.from_shapes((1, 1, 1, 1), (1, 1, 21, 20), padding=((20, 20), (19, 19)))
    assert (ic.lowering_matrix(g).T @ ic.lowering_matrix(g)).toarray() == [[420]]


def test_the_lowering_matrix_takes_the_memory_that_it_says():
    g = ic.ConvGeometry.from_shapes((2, 8, 40, 50), (4, 8, 3, 4), padding=1)
    ic.lowering_matrix(GEOMETRY)  # imports
    tracemalloc.start()
    try:
        S = ic.lowering_matrix(g)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    entries = S.shape[0]
    assert S.data.nbytes + S.indices.nbytes + S.indptr.nbytes <= 24 * entries + 8
    assert peak < 1.5 * 24 * entries


def test_prepared_weights_and_later_changes():
    w = integers_like(3, (2, 3, 2, 3))
    g = ic.ConvGeometry.from_shapes((2, 3, 5, 4), w.shape)
    operator, x = ic.conv_operator(w, g.x_shape), integers_like(4, g.x_shape).ravel()
    before = operator @ x
    np.testing.assert_array_equal(ic.conv_operator(ic.prepare(w), g.x_shape) @ x, before)
    np.testing.assert_array_equal(ic.conv_matrix(ic.prepare(w), g) @ x, before)
    w[...] = 0
    np.testing.assert_array_equal(operator @ x, before)


def test_solvers_find_what_was_lowered():
    x = integers_like(5, (2, 3, 6, 5))
    w = integers_like(6, (7, 3, 2, 3)) + np.eye(7, 18).reshape(7, 3, 2, 3)
    operator = ic.conv_operator(w, x.shape, padding=((1, 0), (1, 1)))
    A = ic.conv_matrix(w, ic.ConvGeometry.from_shapes(x.shape, w.shape, padding=((1, 0), (1, 1))))
    assert np.linalg.matrix_rank(A.toarray()) == x.size
    found, stop, *_ = lsqr(operator, operator @ x.ravel(), atol=1e-14, btol=1e-14)
    assert stop in (1, 2)
    np.testing.assert_allclose(found.reshape(x.shape), x, atol=1e-9)
    largest = svds(operator, 1, return_singular_vectors=False, rng=0)
    np.testing.assert_allclose(largest, np.linalg.norm(A.toarray(), 2), rtol=1e-9)


def test_a_layer_that_no_matrix_could_hold():
    # 64 * 64 * 9 * 256**2 entries would be 39 GB.
    w = np.zeros((64, 64, 3, 3), np.float32)
    w[range(64), range(64), 1, 1] = 2
    operator = ic.conv_operator(w, (1, 64, 256, 256), padding=1)
    x = np.arange(operator.shape[1], dtype=np.float32) % 7
    np.testing.assert_array_equal(operator.rmatvec(operator @ x), 4 * x)


def test_scipy_is_not_imported_before_it_is_used():
    code = "import sys, im2col_conv; sys.exit('scipy.sparse' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


GEOMETRY = ic.ConvGeometry.from_shapes((2, 6, 7, 5), (4, 3, 3, 2), groups=2)


@pytest.mark.parametrize("geometry", [(2, 6, 7, 5), None, "valid", ic.ConvGeometry])
@pytest.mark.parametrize(
    "function", [ic.lowering_matrix, lambda g: ic.conv_matrix(np.ones((4, 3, 3, 2)), g)]
)
def test_what_is_no_geometry_is_refused(function, geometry):
    with pytest.raises(TypeError, match=r"geometry must be a ConvGeometry.*got "):
        function(geometry)


@pytest.mark.parametrize(
    ("w", "error", "message"),
    [
        (np.ones((4, 6, 3, 2)), ValueError, r"w must have shape \(4, 3, 3, 2\).*\(4, 6, 3, 2\)"),
        (np.ones((4, 3, 2, 3)), ValueError, r"w must have shape \(4, 3, 3, 2\).*\(4, 3, 2, 3\)"),
        (np.ones(3), ValueError, r"w must have shape \(4, 3, 3, 2\).*\(3,\)"),
        (np.full((4, 3, 3, 2), "a"), TypeError, "w must hold bool, integers"),
    ],
)
def test_weights_that_do_not_fit_are_refused(w, error, message):
    with pytest.raises(error, match=message):
        ic.conv_matrix(w, GEOMETRY)


@pytest.mark.parametrize(
    ("w", "x_shape", "keywords", "error", "message"),
    [
        (np.ones((4, 3, 3, 2)), (2, 5, 7, 5), {"groups": 2}, ValueError, "groups must divide"),
        (np.ones((4, 3, 3, 2)), (2, 5, 7, 5), {}, ValueError, "x_shape"),
        (np.ones((4, 3, 3, 2)), (2, 3, 7), {}, ValueError, "x_shape must have as many axes"),
        (np.ones((4, 3, 3, 2)), (2, 3, 2, 5), {}, ValueError, "too large by 1"),
        (np.ones((4, 3, 3, 2)), 7, {}, TypeError, "x_shape must be a shape"),
        (np.ones((4, 3, 3, 2)), (2, 3, 7, 5), {"stride": 0}, ValueError, "stride must be at"),
        (np.ones((4, 3, 3, 2)), (2, 3, 7, 5), {"stride": 1.5}, TypeError, "stride must be an int"),
        (np.ones((4, 3)), (2, 3), {}, ValueError, "w must have at least one spatial axis"),
        (np.full((4, 3, 3, 2), None), (2, 3, 7, 5), {}, TypeError, "w must hold bool, integers"),
    ],
)
def test_an_operator_that_cannot_be_is_refused(w, x_shape, keywords, error, message):
    with pytest.raises(error, match=message):
        ic.conv_operator(w, x_shape, **keywords)


def test_vectors_that_do_not_fit_are_refused():
    operator = ic.conv_operator(np.ones((4, 3, 3, 2)), GEOMETRY.x_shape, groups=2)
    with pytest.raises(ValueError, match="dimension mismatch"):
        operator.matvec(np.ones(3))
