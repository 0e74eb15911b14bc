"""Convolution and its gradients: arguments are checked here, then a plan of the engine is run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, SupportsIndex

import numpy as np
import numpy.typing as npt

from im2col_conv.arguments import Padding, PerAxis, shape_of
from im2col_conv.arrays import (
    Array,
    Layout,
    channels_first,
    check_layout,
    check_out,
    in_layout,
    layout_shape,
    logical_shape,
    new_result,
    read_array,
    result_type,
    without_warnings,
)
from im2col_conv.engine.choice import (
    ALGORITHMS,
    forward_job,
    forward_plan,
    input_grad_job,
    input_grad_plan,
    weight_grad_job,
    weight_grad_plan,
)
from im2col_conv.engine.jobs import Job, run_jobs
from im2col_conv.engine.settings import get_workers, get_workspace
from im2col_conv.geometry import ConvGeometry, expect_shape, geometry_of
from im2col_conv.lowering import last
from im2col_conv.prepared import PlainWeights, PreparedWeights, Weights, read_weights
from im2col_conv.transposed import transposed_geometry

__all__ = [
    "ConvGrads",
    "conv",
    "conv_grads",
    "conv_input_grad",
    "conv_transpose",
    "conv_weight_grad",
]

_WORDS = ", ".join(f'"{word}"' for word in ALGORITHMS)


class ConvGrads(NamedTuple):
    """The gradients of a convolution; None for those that were not asked for."""

    dx: Array | None
    dw: Array | None
    db: Array | None


@without_warnings
def conv(
    x: npt.ArrayLike,
    w: npt.ArrayLike | PreparedWeights,
    b: npt.ArrayLike | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: SupportsIndex = 1,
    layout: Layout = "channels_first",
    algorithm: str = "auto",
    out: Array | None = None,
) -> Array:
    r"""Convolve ``x`` with the filters ``w``, as convolutional layers do (cross-correlation).

    .. math:: y[n, f, o] = b[f] + \sum_{c, t} x[n, c, o \cdot \text{stride}
              + t \cdot \text{dilation} - \text{before}] \, w[f, c, t]

    Parameters
    ----------
    x : array_like
        (N, C, \*spatial), or (N, \*spatial, C) with ``layout="channels_last"``.
    w : array_like or PreparedWeights
        (F, C // groups, \*kernel), whatever the layout.
    b : array_like, optional
        (F,).
    stride, dilation : int or one int a spatial axis
    padding : int, one int or one (before, after) pair a spatial axis, "valid" or "same"
        "same" gives ceil(size / stride) outputs, the odd cell of padding after.
    groups : int
        Filters of one group see the channels of that group alone; ``groups=C`` is depthwise.
    layout : {"channels_first", "channels_last"}
        The order of the axes of ``x``, ``out`` and the result.
    algorithm : {"auto", "im2col", "implicit", "direct", "winograd"}
        How it is computed. "auto" takes "direct" or "implicit" where a fixed rule says that it
        pays, else "im2col". "implicit" and "winograd" need the extra ``fast``, "direct" a processor
        with AVX2 under Linux or macOS.
    out : ndarray, optional
        Where the result is written; it must have the result's shape and type.

    Returns
    -------
    ndarray
        (N, F, \*out) in ``layout``. Its type is that of ``np.result_type`` of the arrays given;
        integers and bools give int64, exact modulo 2**64; float16 is computed in float32 and
        rounded once.

    Raises
    ------
    TypeError
        Where an array holds no fitting numbers or an argument is of the wrong kind.
    ValueError
        Where the sizes do not fit one another, a word is unknown, or the algorithm that it names
        does not cover the geometry, the type or the workspace.
    ImportError
        Where the algorithm needs the extra ``fast`` and it is missing.

    See Also
    --------
    conv_grads : Its gradients.

    Notes
    -----
    Windows are unrolled into columns (Chellapilla, Puri and Simard, 2006) tile by tile, and each
    tile is one matrix product, in 2 N F prod(out) C / groups prod(kernel) operations in all. Beyond
    the result it takes the workspace of memory (:func:`im2col_conv.set_workspace`), whatever the
    size of ``x``. NaN and infinity reach the results whose windows hold them, without a warning.

    ``algorithm="implicit"`` makes the same products tap by tap, of the input as it lies, in
    float16, float32 and float64.

    ``algorithm="direct"`` stores no column either: where a number of the column matrix stands in
    ``x`` is the sum of two offsets, of its row and of its column, and machine code that this
    package writes goes through a table of each (after the indirect convolution of Dukhan, 2019). It
    makes results, and the gradient to ``x`` where the stride is 1 and no padding more than a window
    reaches, in the same types; other gradients take "auto".

    ``algorithm="winograd"`` (kernels of 3 by 3, stride and dilation 1; Lavin and Gray, 2016) makes
    a quarter to four ninths of the multiplications, and rounds more. On standard normal numbers and
    up to 256 channels its largest error is 5e-6 of the largest output in float32 and 1e-14 in
    float64; it grows with the channels, and NaN and infinity reach every output of the tiles of 4
    by 4 or 2 by 2 that see them. The weights are transformed first, into up to four times their
    memory: :func:`im2col_conv.prepare` keeps that between calls. The gradient to ``x`` is made so
    too where no padding is more than 2; the one to ``w`` takes "auto".

    Examples
    --------
    >>> conv([[[1, 2, 3, 4, 5]]], [[[1, 0, -1]]], stride=2)
    array([[[-2, -2]]])
    >>> conv(np.ones((1, 1, 2, 3)), np.ones((1, 1, 3, 3)), [10.0], padding=1)
    array([[[[14., 16., 14.],
             [14., 16., 14.]]]])
    """
    _check_words(layout, algorithm)
    x, weights = channels_first(read_array("x", x), layout), read_weights("w", w)
    b, w = None if b is None else read_array("b", b), weights.array
    geometry = geometry_of(
        x.shape, w.shape, stride, padding, dilation, groups, names=(_in_order("x", layout), "w")
    )
    if b is not None:
        expect_shape("b", b.shape, (geometry.F,), "one number for each filter")
    arrays = (x, w) if b is None else (x, w, b)
    dtype, workspace = result_type(*arrays), get_workspace()
    plan = forward_plan(algorithm, geometry, layout, x.dtype, dtype, workspace)
    if out is None:
        y = new_result(geometry.y_shape, dtype, layout)
    else:
        inputs = dict(zip(("x", "w", "b"), arrays, strict=False))
        out = check_out(out, layout_shape(geometry.y_shape, layout), dtype, inputs)
        y = channels_first(np.asarray(out), layout)
    run_jobs([forward_job(plan, x, weights, b, y)], get_workers(), workspace)
    return in_layout(y, layout) if out is None else out


@without_warnings
def conv_grads(
    dout: npt.ArrayLike,
    x: npt.ArrayLike,
    w: npt.ArrayLike | PreparedWeights,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: SupportsIndex = 1,
    layout: Layout = "channels_first",
    algorithm: str = "auto",
    needs: Collection[str] = ("x", "w", "b"),
) -> ConvGrads:
    r"""Return the gradients of :func:`conv`, given that of its result.

    .. math:: dx[n, c, i] = \sum_{f, t, o:\, o s + t d - p = i} dout[n, f, o]\, \bar w[f, c, t],
              \qquad dw[f, c, t] = \sum_{n, o} dout[n, f, o]\, \bar x[n, c, o s + t d - p],
              \qquad db[f] = \sum_{n, o} dout[n, f, o]

    with stride s, dilation d and padding p; the bar is the complex conjugate.

    Parameters
    ----------
    dout : array_like
        The gradient of the result, of its shape: (N, F, \*out) in ``layout``.
    x, w : array_like
        As they were given to :func:`conv`.
    stride, padding, dilation, groups, layout, algorithm
        As they were given to :func:`conv`.
    needs : collection of {"x", "w", "b"}
        Which gradients to compute.

    Returns
    -------
    ConvGrads
        (dx, dw, db), of the shapes of x, w and b; None for what is not in ``needs``. The type is
        that of ``np.result_type`` of the arrays given, as in :func:`conv`.

    Raises
    ------
    TypeError
        Where an array holds no fitting numbers or an argument is of the wrong kind.
    ValueError
        Where the sizes do not fit one another or a word is unknown.

    Notes
    -----
    dw is ``dout @ cols.T``, dx is the scatter :func:`im2col_conv.col2im` of ``W.T @ dout``, each
    tile by tile in the operations and the workspace of a forward pass. Cells that no window holds
    have gradient zero.

    Examples
    --------
    >>> dx, dw, db = conv_grads([[[1, 10]]], [[[1, 2, 3, 4, 5]]], [[[1, 0, -1]]], stride=2)
    >>> dx, dw, db
    (array([[[  1,   0,   9,   0, -10]]]), array([[[31, 42, 53]]]), array([11]))
    """
    _check_words(layout, algorithm)
    needs = _check_needs(needs)
    dout = channels_first(read_array("dout", dout), layout)
    x, weights = channels_first(read_array("x", x), layout), read_weights("w", w)
    w = weights.array
    geometry = geometry_of(
        x.shape, w.shape, stride, padding, dilation, groups, names=(_in_order("x", layout), "w")
    )
    _expect_dout(dout, geometry, layout)
    dtype, workspace = result_type(dout, x, w), get_workspace()
    dx = new_result(geometry.x_shape, dtype, layout) if "x" in needs else None
    dw = np.empty(geometry.w_shape, dtype) if "w" in needs else None
    db = np.empty(geometry.F, dtype) if "b" in needs else None
    jobs = []
    if dw is not None or db is not None:
        jobs.append(_weight_grad(geometry, dout, x, dw, db, layout, algorithm, dtype))
    if dx is not None:
        jobs.append(_input_grad(geometry, dout, weights, dx, layout, algorithm))
    run_jobs(jobs, get_workers(), workspace)
    return ConvGrads(None if dx is None else in_layout(dx, layout), dw, db)


@without_warnings
def conv_input_grad(
    dout: npt.ArrayLike,
    w: npt.ArrayLike | PreparedWeights,
    x_shape: Sequence[SupportsIndex],
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: SupportsIndex = 1,
    layout: Layout = "channels_first",
    algorithm: str = "auto",
) -> Array:
    r"""Return the gradient of :func:`conv` to its input, which need not be at hand.

    Parameters
    ----------
    dout : array_like
        The gradient of the result: (N, F, \*out) in ``layout``.
    w : array_like
        (F, C // groups, \*kernel).
    x_shape : tuple of int
        The shape of the input, in ``layout``.
    stride, padding, dilation, groups, layout, algorithm
        As they were given to :func:`conv`.

    Returns
    -------
    ndarray
        dx, of ``x_shape``: see :func:`conv_grads`.

    Raises
    ------
    TypeError
        Where an array holds no fitting numbers or an argument is of the wrong kind.
    ValueError
        Where the sizes do not fit one another or a word is unknown.

    Notes
    -----
    col2im(W.T @ dout), block by block of the input, or the same sum ordered by cells; time and
    memory as in :func:`conv`.

    Examples
    --------
    >>> conv_input_grad([[[1, 10]]], [[[1, 0, -1]]], (1, 1, 6), stride=2)
    array([[[  1,   0,   9,   0, -10,   0]]])
    """
    _check_words(layout, algorithm)
    dout, weights = channels_first(read_array("dout", dout), layout), read_weights("w", w)
    w = weights.array
    shape = logical_shape(shape_of("x_shape", x_shape), layout)
    geometry = geometry_of(
        shape, w.shape, stride, padding, dilation, groups, names=(_in_order("x_shape", layout), "w")
    )
    _expect_dout(dout, geometry, layout)
    dx = new_result(geometry.x_shape, result_type(dout, w), layout)
    job = _input_grad(geometry, dout, weights, dx, layout, algorithm)
    run_jobs([job], get_workers(), get_workspace())
    return in_layout(dx, layout)


@without_warnings
def conv_weight_grad(
    dout: npt.ArrayLike,
    x: npt.ArrayLike,
    w_shape: Sequence[SupportsIndex],
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: SupportsIndex = 1,
    layout: Layout = "channels_first",
    algorithm: str = "auto",
) -> Array:
    r"""Return the gradient of :func:`conv` to its weights, which need not be at hand.

    Parameters
    ----------
    dout : array_like
        The gradient of the result: (N, F, \*out) in ``layout``.
    x : array_like
        The input, in ``layout``.
    w_shape : tuple of int
        (F, C // groups, \*kernel).
    stride, padding, dilation, groups, layout, algorithm
        As they were given to :func:`conv`.

    Returns
    -------
    ndarray
        dw, of ``w_shape``: see :func:`conv_grads`.

    Raises
    ------
    TypeError
        Where an array holds no fitting numbers or an argument is of the wrong kind.
    ValueError
        Where the sizes do not fit one another or a word is unknown.

    Notes
    -----
    ``dout @ cols.T``, tile by tile; time and memory as in :func:`conv`.

    Examples
    --------
    >>> conv_weight_grad([[[1, 10]]], [[[1, 2, 3, 4, 5]]], (1, 1, 3), stride=2)
    array([[[31, 42, 53]]])
    """
    _check_words(layout, algorithm)
    dout = channels_first(read_array("dout", dout), layout)
    x = channels_first(read_array("x", x), layout)
    shape = shape_of("w_shape", w_shape)
    geometry = geometry_of(
        x.shape, shape, stride, padding, dilation, groups, names=(_in_order("x", layout), "w_shape")
    )
    _expect_dout(dout, geometry, layout)
    dtype = result_type(dout, x)
    dw = np.empty(geometry.w_shape, dtype)
    job = _weight_grad(geometry, dout, x, dw, None, layout, algorithm, dtype)
    run_jobs([job], get_workers(), get_workspace())
    return dw


@without_warnings
def conv_transpose(
    x: npt.ArrayLike,
    w: npt.ArrayLike | PreparedWeights,
    b: npt.ArrayLike | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    output_padding: PerAxis = 0,
    output_size: PerAxis | None = None,
    dilation: PerAxis = 1,
    groups: SupportsIndex = 1,
    layout: Layout = "channels_first",
) -> Array:
    r"""Scatter ``x`` through the filters ``w``: the adjoint of a convolution, plus ``b``.

    .. math:: y[n, c, i] = b[c] + \sum_{f, t, o:\; o \cdot \text{stride} + t \cdot \text{dilation}
              - \text{before} = i} x[n, f, o] \, w[f, c, t]

    Parameters
    ----------
    x : array_like
        (N, C_in, \*spatial) in ``layout``.
    w : array_like
        (C_in, C_out // groups, \*kernel). Complex weights are not conjugated.
    b : array_like, optional
        (C_out,).
    stride, dilation : int or one int a spatial axis
    padding : int, one int or one (before, after) pair a spatial axis, or "valid"
        The padding of the convolution that this is the adjoint of: cells that are cut off.
    output_padding : int or one int a spatial axis
        Cells added at the end, less than stride or dilation, the larger.
    output_size : int or one int a spatial axis, optional
        The size of the result, instead of ``output_padding``, within the same bounds.
    groups : int
    layout : {"channels_first", "channels_last"}

    Returns
    -------
    ndarray
        (N, C_out, \*out) in ``layout``, where out is (spatial - 1) stride + dilation (kernel - 1)
        + 1 - before - after + output_padding. Types as in :func:`conv`.

    Raises
    ------
    TypeError
        Where an array holds no fitting numbers or an argument is of the wrong kind.
    ValueError
        Where the sizes do not fit one another, or ``output_size`` is out of reach: the message
        names the possible ones.

    Notes
    -----
    Where output_padding < stride, this is ``conv_input_grad`` of the same geometry and runs as it.
    After Dumoulin and Visin, "A guide to convolution arithmetic for deep learning" (2016).

    Examples
    --------
    >>> conv_transpose([[[1, 10]]], [[[1, 2, 3]]], stride=2)
    array([[[ 1,  2, 13, 20, 30]]])
    >>> conv_transpose([[[1, 10]]], [[[1, 2, 3]]], stride=2, padding=1, output_size=4)
    array([[[ 2, 13, 20, 30]]])
    """
    check_layout(layout)
    x, weights = channels_first(read_array("x", x), layout), read_weights("w", w)
    b, w = None if b is None else read_array("b", b), weights.array
    sizes = transposed_geometry(
        x.shape,
        w.shape,
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        output_size=output_size,
        dilation=dilation,
        groups=groups,
        name=_in_order("x", layout),
    )
    arrays = [x, w]
    if b is not None:
        expect_shape("b", b.shape, (sizes.channels,), "one number for each channel of the result")
        arrays.append(b)
    dtype = result_type(*arrays)
    y = new_result((sizes.N, sizes.channels, *sizes.out), dtype, layout)
    if sizes.out != sizes.reached:
        y[...] = 0 if b is None else b.reshape(-1, *(1,) * len(sizes.out))
    if sizes.adjoint_of is not None:
        reached = y[last(slice(cells) for cells in sizes.reached)]
        job = _scatter(sizes.adjoint_of, x, weights, b, reached, layout, "auto")
        run_jobs([job], get_workers(), get_workspace())
    return in_layout(y, layout)


def _input_grad(
    geometry: ConvGeometry,
    dout: Array,
    weights: Weights,
    dx: Array,
    layout: Layout,
    algorithm: str,
) -> Job:
    """Return the job of dx, the adjoint: complex weights are conjugated."""
    if weights.array.dtype.kind == "c":
        weights = PlainWeights(weights.array.conj())
    return _scatter(geometry, dout, weights, None, dx, layout, algorithm)


def _scatter(
    geometry: ConvGeometry,
    dout: Array,
    weights: Weights,
    b: Array | None,
    dx: Array,
    layout: Layout,
    algorithm: str,
) -> Job:
    plan = input_grad_plan(algorithm, geometry, layout, dout.dtype, dx.dtype, get_workspace())
    return input_grad_job(plan, dout, weights, b, dx)


def _weight_grad(
    geometry: ConvGeometry,
    dout: Array,
    x: Array,
    dw: Array | None,
    db: Array | None,
    layout: Layout,
    algorithm: str,
    dtype: np.dtype[np.generic],
) -> Job:
    plan = weight_grad_plan(
        algorithm, geometry, layout, x.dtype, dout.dtype, dtype, get_workspace()
    )
    return weight_grad_job(plan, dout, x, dw, db)


def _check_words(layout: object, algorithm: object) -> None:
    check_layout(layout)
    if not isinstance(algorithm, str):
        raise TypeError(f"algorithm must be one of {_WORDS}, got {algorithm!r}")
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {_WORDS}, got {algorithm!r}")


def _check_needs(needs: object) -> Collection[str]:
    if isinstance(needs, str) or not isinstance(needs, Collection):
        raise TypeError(f'needs must be a collection such as ("x", "w", "b"), got {needs!r}')
    unknown = [name for name in needs if not isinstance(name, str) or name not in ("x", "w", "b")]
    if unknown:
        raise ValueError(f'needs must hold no names but "x", "w" and "b", got {unknown[0]!r}')
    return needs


def _expect_dout(dout: Array, geometry: ConvGeometry, layout: Layout) -> None:
    meaning = "that of the result of the forward pass"
    given = layout_shape(dout.shape, layout) if dout.ndim > 1 else dout.shape
    expect_shape("dout", given, layout_shape(geometry.y_shape, layout), meaning)


def _in_order(name: str, layout: Layout) -> str:
    """Return the name under which complaints about sizes speak of an array."""
    return name if layout == "channels_first" else f"{name} (in the order N, C, *spatial)"
