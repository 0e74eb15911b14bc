r"""A layer as sparse matrices, and as an operator that never forms one.

The columns are a selection of the input's cells, :math:`\text{cols} = S x`, and the layer is
:math:`y = A x` with :math:`A = (W \otimes I) S` for one image. ``docs/equivalence.md`` proves the
backward pass with these letters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from im2col_conv.arguments import Padding, PerAxis, shape_of
from im2col_conv.arrays import Array, computing_type, result_type
from im2col_conv.functional import conv, conv_input_grad
from im2col_conv.geometry import ConvGeometry, expect_shape, geometry_of
from im2col_conv.prepared import PreparedWeights, prepare, read_weights

if TYPE_CHECKING:  # SciPy is imported where it is used: our own import stays short
    from scipy.sparse import csr_array  # type: ignore[import-untyped]
    from scipy.sparse.linalg import LinearOperator  # type: ignore[import-untyped]

__all__ = ["conv_matrix", "conv_operator", "lowering_matrix"]


def lowering_matrix(geometry: ConvGeometry) -> csr_array:
    r"""Return the matrix of im2col: zeros and ones, at most one in a row.

    .. math:: S[(c, t, n, o), (n', c', i)] = \begin{cases} 1 & n = n',\ c = c',\
              i = o \cdot \text{stride} + t \cdot \text{dilation} - \text{before} \\
              0 & \text{else.} \end{cases}

    So :math:`\text{cols} = S x`, and its transpose adds the columns back: col2im is
    :math:`S^T`.

    Parameters
    ----------
    geometry : ConvGeometry
        Its groups and filters play no part.

    Returns
    -------
    scipy.sparse.csr_array
        int64, (C \* taps \* N \* positions, N \* C \* prod(size)): rows in the order of
        ``cols.ravel()``, columns in that of ``x.ravel()``.

    Raises
    ------
    TypeError
        Where ``geometry`` is not a ConvGeometry.

    See Also
    --------
    conv_matrix : The whole layer.

    Notes
    -----
    Time and memory grow with the columns: 24 bytes for each of their entries, half as much again
    while it is made. It is for study and for small layers.

    Examples
    --------
    Five cells, a kernel of 2 with dilation 2, stride 2, one cell of padding before:

    >>> g = ConvGeometry.from_shapes((1, 1, 5), (1, 1, 2), stride=2, dilation=2, padding=((1, 0),))
    >>> S = lowering_matrix(g)
    >>> S.toarray()
    array([[0, 0, 0, 0, 0],
           [0, 1, 0, 0, 0],
           [0, 1, 0, 0, 0],
           [0, 0, 0, 1, 0]])

    The first row meets padding. Both equations, in integers:

    >>> from im2col_conv import col2im, im2col
    >>> how = {"stride": 2, "dilation": 2, "padding": ((1, 0),)}
    >>> x = np.array([[[3, 1, 4, 1, 5]]])
    >>> cols = im2col(x, 2, **how)
    >>> bool((S @ x.ravel() == cols.ravel()).all())                     # cols == S @ x
    True
    >>> bool((S.T @ cols.ravel() == col2im(cols, x.shape, 2, **how).ravel()).all())
    True
    """
    from scipy.sparse import csr_array

    _expect_geometry(geometry)
    cell, met = _cells(geometry)
    ends = np.concatenate([[0], np.cumsum(met)])
    ones = np.ones(ends[-1], np.int64)
    shape = (met.size, geometry.N * geometry.C * math.prod(geometry.size))
    return csr_array((ones, cell[met], ends), shape=shape)


def conv_matrix(w: npt.ArrayLike | PreparedWeights, geometry: ConvGeometry) -> csr_array:
    r"""Return the matrix of a whole layer without bias: :math:`y = A x`.

    .. math:: A = I_N \otimes \big( (\mathrm{diag}(W_1, \dots, W_G) \otimes I_P) \, S \big)

    for N images, groups with the weights :math:`W_g` of shape (F / G, C / G \* taps), P output
    positions, and S the :func:`lowering_matrix` of one image. Its adjoint is the backward pass:
    :math:`dx = A^H dout`.

    Parameters
    ----------
    w : array_like
        (F, C // groups, \*kernel).
    geometry : ConvGeometry

    Returns
    -------
    scipy.sparse.csr_array
        (N \* F \* positions, N \* C \* prod(size)): rows in the order of ``y.ravel()``, columns in
        that of ``x.ravel()``. Of the type of ``w``, but int64 for integers and bools, and float32
        for float16. Weights that are zero are not stored.

    Raises
    ------
    TypeError
        Where ``w`` holds no fitting numbers or ``geometry`` is not a ConvGeometry.
    ValueError
        Where ``w`` has not the shape that the geometry says.

    See Also
    --------
    conv_operator : The same map, without the matrix.

    Notes
    -----
    Time and memory grow with its entries that are not zero, N F positions C / groups taps at most:
    as many as the layer has multiplications.

    Examples
    --------
    A layer of one row, stride 2, as a matrix; its transpose is the flip and pad of the reference:

    >>> g = ConvGeometry.from_shapes((1, 1, 6), (1, 1, 3), stride=2)
    >>> w = np.array([[[7, 8, 9]]])
    >>> A = conv_matrix(w, g)
    >>> A.toarray()
    array([[7, 8, 9, 0, 0, 0],
           [0, 0, 7, 8, 9, 0]])
    >>> from im2col_conv import reference
    >>> reference.conv_input_grad(np.array([[[1, 10]]]), w, (1, 1, 6), stride=2)
    array([[[ 7,  8, 79, 80, 90,  0]]])
    >>> A.T @ [1, 10]
    array([ 7,  8, 79, 80, 90,  0])

    The last cell is in no window: its column is zero.
    """
    from scipy.sparse import block_diag, coo_array, csr_array, eye_array, kron

    _expect_geometry(geometry)
    w = read_weights("w", w).array
    expect_shape("w", w.shape, geometry.w_shape, "(F, C // groups, *kernel) of the geometry")
    w = w.astype(computing_type(result_type(w)), copy=False)
    M, _, K = geometry.gemm
    # y (F, P) = W (F, C * taps) @ cols (C * taps, P) is (W kron I_P) applied to cols.ravel().
    W = block_diag([coo_array(each) for each in w.reshape(geometry.groups, M, K)])
    images, positions = (eye_array(n, dtype=w.dtype) for n in (geometry.N, geometry.positions))
    one_image = lowering_matrix(replace(geometry, N=1)).astype(w.dtype)
    A = kron(images, kron(W, positions, format="csr") @ one_image, format="csr")
    return csr_array(A, dtype=w.dtype)  # where nothing is stored, kron forgets the type


def conv_operator(
    w: npt.ArrayLike | PreparedWeights,
    x_shape: Sequence[SupportsIndex],
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: SupportsIndex = 1,
) -> LinearOperator:
    r"""Return a layer without bias as a linear operator, for the iterative solvers of SciPy.

    It multiplies as :func:`conv_matrix` does and never forms the matrix: ``A @ x.ravel()`` is
    :func:`im2col_conv.conv`, and ``A.H @ dout.ravel()`` its adjoint,
    :func:`im2col_conv.conv_input_grad`.

    Parameters
    ----------
    w : array_like
        (F, C // groups, \*kernel). It is copied: a later change is not seen.
    x_shape : tuple of int
        (N, C, \*spatial).
    stride, padding, dilation, groups
        As :func:`im2col_conv.conv` takes them.

    Returns
    -------
    scipy.sparse.linalg.LinearOperator
        (N \* F \* positions, N \* C \* prod(size)), with both products of vectors and of
        matrices. Its type is that of the result for an ``x`` of the type of ``w``.

    Raises
    ------
    TypeError
        Where ``w`` holds no fitting numbers or an argument is of the wrong kind.
    ValueError
        Where the sizes do not fit one another.

    Notes
    -----
    A product takes the time and memory of one pass; with a matrix of k columns, of one pass with k
    times the images. For solvers of least squares see Paige and Saunders, "LSQR: an algorithm for
    sparse linear equations and sparse least squares" (1982).

    Examples
    --------
    >>> A = conv_operator([[[1, 2, 1]]], (1, 1, 4), padding=1)
    >>> A @ np.array([1, 0, 0, 5])
    array([ 2,  1,  5, 10])

    Blurred, and found again:

    >>> from scipy.sparse.linalg import lsqr
    >>> found, *_ = lsqr(A, [2, 1, 5, 10], atol=1e-12, btol=1e-12)
    >>> np.abs(found.round(9))
    array([1., 0., 0., 5.])
    """
    from scipy.sparse.linalg import LinearOperator

    weights = prepare(w)
    shape = shape_of("x_shape", x_shape)
    g = geometry_of(shape, weights.shape, stride, padding, dilation, groups, names=("x_shape", "w"))
    how: dict[str, Any] = {
        "stride": g.stride,
        "padding": g.padding,
        "dilation": g.dilation,
        "groups": g.groups,
    }

    def times(vectors: Array) -> Array:
        return _as_batches(lambda x: conv(x, weights, **how), vectors, g.x_shape, g.y_shape)

    def adjoint_times(vectors: Array) -> Array:
        def input_grad(dout: Array) -> Array:
            return conv_input_grad(dout, weights, (len(dout), *g.x_shape[1:]), **how)

        return _as_batches(input_grad, vectors, g.y_shape, g.x_shape)

    return LinearOperator(
        (math.prod(g.y_shape), math.prod(g.x_shape)),
        matvec=lambda x: times(x).ravel(),
        rmatvec=lambda dout: adjoint_times(dout).ravel(),
        matmat=times,
        rmatmat=adjoint_times,
        dtype=result_type(weights.array),
    )


def _cells(geometry: ConvGeometry) -> tuple[Array, Array]:
    """Return, for each entry of cols.ravel(), the cell of x.ravel() and whether there is one."""
    # Axes (c, *t, n, *o); the axes of a cell of x are (n, c, *i).
    ndim, axes = geometry.ndim, 2 + 2 * geometry.ndim
    c = _along(np.arange(geometry.C), axes, 0)
    cell, met = _along(np.arange(geometry.N), axes, 1 + ndim) * geometry.C + c, np.True_
    for axis, size in enumerate(geometry.size):
        t = _along(np.arange(geometry.kernel[axis]), axes, 1 + axis)
        o = _along(np.arange(geometry.out[axis]), axes, 2 + ndim + axis)
        i = o * geometry.stride[axis] + t * geometry.dilation[axis] - geometry.padding[axis][0]
        cell, met = cell * size + i, met & (i >= 0) & (i < size)
    return cell.ravel(), np.broadcast_to(met, cell.shape).ravel()


def _along(numbers: Array, axes: int, axis: int) -> Array:
    """Return a view of ``numbers`` on one of so many axes."""
    return numbers.reshape(*(-1 if each == axis else 1 for each in range(axes)))


def _as_batches(
    run: Callable[[Array], Array], vectors: Array, given: tuple[int, ...], result: tuple[int, ...]
) -> Array:
    """Run k columns, each of them a batch of the shape ``given``, as one batch; return columns."""
    k = 1 if vectors.ndim == 1 else vectors.shape[1]
    batch = vectors.T.reshape(k * given[0], *given[1:])
    return run(batch).reshape(k, math.prod(result)).T


def _expect_geometry(geometry: object) -> None:
    if not isinstance(geometry, ConvGeometry):
        raise TypeError(
            f"geometry must be a ConvGeometry, such as ConvGeometry.from_shapes(x_shape, w_shape), "
            f"got {type(geometry).__name__}"
        )
