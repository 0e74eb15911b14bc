"""The oracle: convolution and its gradients by loops, slow and plain.

The first half is the code of the note (a note on the backward pass of a convolutional layer, by
Namra, dated July 14th, 2025), corrected where ``docs/errata.md`` says so: nested loops forward, and
backward by upsampling, padding and sliding the flipped filter. The second half is the same for any
number of spatial axes, dilation, groups and padding that differs from side to side.

Nothing here comes from the rest of the package, not even a size, so that it can judge the rest.

Integers and bools are computed in int64, which wraps; complex numbers in complex128; everything
else in float64. The note's pair always computes in float64.
"""

import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "col2im",
    "conv",
    "conv_backward_naive",
    "conv_forward_naive",
    "conv_grads",
    "conv_input_grad",
    "conv_transpose",
    "conv_weight_grad",
    "im2col",
]

Array: TypeAlias = NDArray[Any]
Float64: TypeAlias = NDArray[np.float64]
Cache: TypeAlias = tuple[Float64, Float64, Float64, Mapping[str, int]]
PerAxis: TypeAlias = int | Sequence[int]
Padding: TypeAlias = str | int | Sequence[int] | Sequence[tuple[int, int]]


# The note's code.


def conv_forward_naive(
    x: Array, w: Array, b: Array, conv_param: Mapping[str, int]
) -> tuple[Float64, Cache]:
    r"""Slide every filter over every image: the note's forward pass.

    .. math::

        out[n,f,i,j] = \sum_c \sum_h \sum_w
            x_{pad}[n, c, i \cdot stride + h, j \cdot stride + w] \; w[f,c,h,w] + b[f]

    Parameters
    ----------
    x : array, (N, C, H, W)
        Input images.
    w : array, (F, C, HH, WW)
        Filters.
    b : array, (F,)
        One bias a filter.
    conv_param : mapping
        Exactly the keys ``"stride"`` and ``"pad"``, integers.

    Returns
    -------
    out : float64 array, (N, F, H_out, W_out)
        Where ``H_out = 1 + (H + 2 * pad - HH) // stride``, and W_out likewise.
    cache : tuple
        ``(x, w, b, conv_param)`` for `conv_backward_naive`, where ``x`` is already padded.

    Examples
    --------
    The first example of the note: each row of `x` rises by 1, and the filter weighs the left
    neighbour minus the right one by 1 + 2 + 1.

    >>> import numpy as np
    >>> from im2col_conv.reference import conv_forward_naive
    >>> x = np.arange(1, 26).reshape(1, 1, 5, 5)
    >>> w = np.array([[[[1, 0, -1], [2, 0, -2], [1, 0, -1]]]])
    >>> out, cache = conv_forward_naive(x, w, np.zeros(1), {"stride": 1, "pad": 0})
    >>> out[0, 0]
    array([[-8., -8., -8.],
           [-8., -8., -8.],
           [-8., -8., -8.]])
    """
    stride, pad = _read_conv_param(conv_param)
    # Before any product: a product of two uint8 would wrap at 256.
    x, w, b = _float64("x", x), _float64("w", w), _float64("b", b)
    _check_note_shapes(x.shape, w.shape, b.shape)
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))

    N, F, HH, WW = x.shape[0], w.shape[0], w.shape[2], w.shape[3]
    H_out, W_out = _note_output_size(x.shape, w.shape, stride)
    out = np.zeros((N, F, H_out, W_out))
    for n in range(N):
        for f in range(F):
            for i in range(H_out):
                for j in range(W_out):
                    h_start, w_start = i * stride, j * stride
                    window = x[n, :, h_start : h_start + HH, w_start : w_start + WW]
                    out[n, f, i, j] = np.sum(window * w[f]) + b[f]
    return out, (x, w, b, conv_param)


def conv_backward_naive(dout: Array, cache: Cache) -> tuple[Float64, Float64, Float64]:
    r"""Return the gradients of `conv_forward_naive`: the note's backward pass, corrected.

    .. math::

        dx &= (dout_{up} \text{ padded}) \star w_{flipped}, \text{ without the padding of } x \\
        dw[f,c,h,w] &= \sum_{n,i,j} dout[n,f,i,j] \;
            x_{pad}[n, c, i \cdot stride + h, j \cdot stride + w] \\
        db[f] &= \sum_{n,i,j} dout[n,f,i,j]

    ``dout_up`` is `dout` with stride - 1 zeros between neighbours, and after the last of them one
    zero for every row and column of the padded input that no window reached. ``⋆`` is
    cross-correlation, summed over the filters.

    Parameters
    ----------
    dout : array, (N, F, H_out, W_out)
        Gradient of a loss with respect to the output.
    cache : tuple
        What `conv_forward_naive` returned.

    Returns
    -------
    dx : float64 array, (N, C, H, W)
    dw : float64 array, (F, C, HH, WW)
    db : float64 array, (F,)

    Examples
    --------
    The note's example for stride 2, with a, b, c, d = 1, 2, 3, 4 and a filter of ones. Only the
    middle cell lies in all four windows.

    >>> import numpy as np
    >>> from im2col_conv.reference import conv_backward_naive, conv_forward_naive
    >>> x, w, b = np.zeros((1, 1, 5, 5)), np.ones((1, 1, 3, 3)), np.zeros(1)
    >>> _, cache = conv_forward_naive(x, w, b, {"stride": 2, "pad": 0})
    >>> dx, dw, db = conv_backward_naive(np.array([[[[1, 2], [3, 4]]]]), cache)
    >>> dx[0, 0]
    array([[ 1.,  1.,  3.,  2.,  2.],
           [ 1.,  1.,  3.,  2.,  2.],
           [ 4.,  4., 10.,  6.,  6.],
           [ 3.,  3.,  7.,  4.,  4.],
           [ 3.,  3.,  7.,  4.,  4.]])
    >>> db
    array([10.])
    """
    x, w, b, conv_param = cache
    stride, pad = _read_conv_param(conv_param)
    dout = _float64("dout", dout)
    _check_note_shapes(x.shape, w.shape, b.shape)
    _check_dout(dout, (len(x), len(w), *_note_output_size(x.shape, w.shape, stride)))

    dx_padded = _note_dx(dout, x.shape, w, stride)
    dw = _note_dw(dout, x, w.shape, stride)
    db = np.sum(dout, axis=(0, 2, 3))
    # The input had pad more rows and columns on each side than the caller's x.
    H, W = x.shape[2], x.shape[3]
    return dx_padded[:, :, pad : H - pad, pad : W - pad], dw, db


def _note_dx(dout: Float64, x_shape: tuple[int, ...], w: Float64, stride: int) -> Float64:
    """Slide the flipped filter over the upsampled, padded dout, as the note does for dx."""
    N, C, H, W = x_shape  # of the padded x
    F, HH, WW = w.shape[0], w.shape[2], w.shape[3]

    # H - HH + 1 rows would be the output for stride 1: every stride-th of them holds a gradient.
    # The note stops at the last gradient, and is short where the stride leaves rows unused.
    dout_upsampled = np.zeros((N, F, H - HH + 1, W - WW + 1))
    dout_upsampled[:, :, ::stride, ::stride] = dout
    dout_padded = np.pad(dout_upsampled, ((0, 0), (0, 0), (HH - 1, HH - 1), (WW - 1, WW - 1)))
    w_flipped = w[:, :, ::-1, ::-1]

    dx = np.zeros((N, C, H, W))
    for i in range(H):
        for j in range(W):
            # By 1, not by stride as in the note: the upsampling has already put the stride in.
            dout_window = dout_padded[:, :, i : i + HH, j : j + WW]
            result = np.sum(dout_window[:, :, None] * w_flipped[None], axis=(3, 4))  # (N, F, C)
            dx[:, :, i, j] = np.sum(result, axis=1)
    return dx


def _note_dw(dout: Float64, x: Float64, w_shape: tuple[int, ...], stride: int) -> Float64:
    """Add up, over the output positions, gradient times window, as the note does for dw."""
    HH, WW = w_shape[2], w_shape[3]
    dw = np.zeros(w_shape)
    for i in range(dout.shape[2]):
        for j in range(dout.shape[3]):
            h_start, w_start = i * stride, j * stride
            x_slice = x[:, :, h_start : h_start + HH, w_start : w_start + WW]
            dout_slice = dout[:, :, i, j]
            result = dout_slice[:, :, None, None, None] * x_slice[:, None]  # (N, F, C, HH, WW)
            dw += np.sum(result, axis=0)
    return dw


def _read_conv_param(conv_param: Mapping[str, int]) -> tuple[int, int]:
    for key in ("stride", "pad"):
        if key not in conv_param:
            raise ValueError(f"conv_param has no key {key!r}; it needs 'stride' and 'pad'")
    for key in conv_param:
        if key not in ("stride", "pad"):
            raise ValueError(f"conv_param has the key {key!r}; it takes 'stride' and 'pad' only")
    stride = _at_least(1, "conv_param['stride']", conv_param["stride"])
    return stride, _at_least(0, "conv_param['pad']", conv_param["pad"])


def _float64(name: str, array: Array) -> Float64:
    array = np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} has dtype {array.dtype}; the note's code takes real numbers")
    return array.astype(np.float64)


def _check_note_shapes(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], b_shape: tuple[int, ...]
) -> None:
    if len(x_shape) != 4:
        raise ValueError(f"x must be (N, C, H, W); it has shape {x_shape}")
    _check_shapes(x_shape, w_shape, groups=1)
    _check_bias(b_shape, w_shape[0])


def _note_output_size(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], stride: int
) -> tuple[int, int]:
    """Count the windows down and across; `x_shape` is that of the padded x."""
    _, _, H, W = x_shape
    _, _, HH, WW = w_shape
    if HH > H or WW > W:
        raise ValueError(f"a {HH}x{WW} kernel does not fit in the {H}x{W} padded input")
    return 1 + (H - HH) // stride, 1 + (W - WW) // stride


# The same for any geometry.


def conv(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
) -> Array:
    r"""Slide every filter over every image, in any number of dimensions.

    With one index `i` for all spatial axes,

    .. math::

        y[n,f,i] = \sum_{c,k} x_{pad}[n, c, i \cdot stride + k \cdot dilation] \; w[f,c,k] + b[f]

    where `c` runs over the channels of the group of filter `f`.

    Parameters
    ----------
    x : array, (N, C, \*spatial)
        Input.
    w : array, (F, C // groups, \*kernel)
        Filters.
    b : array, (F,), optional
        One bias a filter.
    stride, dilation : int or one int a spatial axis
        Step of the window, and step between the taps inside it.
    padding : int, one int or one (before, after) pair a spatial axis, "valid" or "same"
        Zeros around the input. "same" gives ``ceil(size / stride)`` outputs, the odd zero after.
    groups : int
        Filters and channels are cut into so many groups, which do not see each other.

    Returns
    -------
    y : array, (N, F, \*out)
        ``out = 1 + (size + before + after - ((kernel - 1) * dilation + 1)) // stride`` an axis.

    Examples
    --------
    >>> import numpy as np
    >>> from im2col_conv.reference import conv
    >>> x = np.array([[[1, 2, 3, 4, 5]]])
    >>> w = np.array([[[1, 10]]])
    >>> conv(x, w)
    array([[[21, 32, 43, 54]]])
    >>> conv(x, w, np.array([100]), stride=2, padding=((1, 0),), dilation=2)
    array([[[120, 142]]])
    """
    x, w, bias = _computed(x=x, w=w, b=np.False_ if b is None else b)
    sizes = _conv_sizes(x.shape, w.shape, stride, padding, dilation, groups)
    N, F = len(x), len(w)
    if b is not None:
        _check_bias(bias.shape, F)
    x = _pad(x, sizes.before, sizes.after)

    y = np.zeros((N, F, *sizes.out), x.dtype)
    for filters, channels in _groups(F, x.shape[1], groups):
        for n in range(N):
            for f in range(filters.start, filters.stop):
                for at in np.ndindex(sizes.out):
                    window = x[n, channels][:, *_window(_times(at, sizes.stride), sizes)]
                    y[n, f, *at] = np.sum(window * w[f])
    return y if b is None else y + bias.reshape(F, *(1,) * len(sizes.out))


def conv_grads(
    dout: Array,
    x: Array,
    w: Array,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
) -> tuple[Array, Array, Array]:
    r"""Return the gradients of `conv` with respect to input, weights and bias.

    They are the adjoints of the linear maps ``x -> conv(x, w)``, ``w -> conv(x, w)`` and
    ``b -> b``: with :math:`\langle u, v \rangle = \sum \bar u v`,

    .. math::

        \langle dout, conv(x, w) \rangle = \langle dx, x \rangle = \langle dw, w \rangle

    so complex `w` enters dx conjugated, and complex `x` enters dw conjugated.

    Parameters
    ----------
    dout : array, (N, F, \*out)
        Gradient of a loss with respect to the output of `conv`.
    x, w, stride, padding, dilation, groups
        As given to `conv`.

    Returns
    -------
    dx : array, (N, C, \*spatial)
        See `conv_input_grad`.
    dw : array, (F, C // groups, \*kernel)
        See `conv_weight_grad`.
    db : array, (F,)
        `dout` summed over everything but its filters.

    Examples
    --------
    >>> import numpy as np
    >>> from im2col_conv.reference import conv_grads
    >>> x, w = np.array([[[1, 2, 3, 4, 5]]]), np.array([[[1, 10]]])
    >>> dx, dw, db = conv_grads(np.array([[[1, 2]]]), x, w, stride=2)
    >>> dx
    array([[[ 1, 10,  2, 20,  0]]])
    >>> dw, db
    (array([[[ 7, 10]]]), array([3]))
    """
    dout, x, w = _computed(dout=dout, x=x, w=w)
    dx = conv_input_grad(
        dout, w, x.shape, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    dw = conv_weight_grad(
        dout, x, w.shape, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    return dx, dw, np.sum(dout, axis=(0, *range(2, dout.ndim)))


def conv_input_grad(
    dout: Array,
    w: Array,
    x_shape: Sequence[int],
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
) -> Array:
    r"""Return dx: slide the dilated, flipped filter over the upsampled, padded dout.

    .. math::

        dx_{pad}[n,c,a] = \sum_f \sum_k dout_{up}[n, f, a - k \cdot dilation] \; \bar w[f,c,k]

    where ``dout_up[i * stride] = dout[i]`` and zero elsewhere; dx is ``dx_pad`` without the
    padding. Rows that the stride leaves unused get zero.

    Parameters
    ----------
    dout : array, (N, F, \*out)
        Gradient of a loss with respect to the output of `conv`.
    w, stride, padding, dilation, groups
        As given to `conv`.
    x_shape : sequence of int
        The shape of the input, (N, C, \*spatial); a stride leaves several possible.

    Returns
    -------
    dx : array, (N, C, \*spatial)

    Examples
    --------
    >>> import numpy as np
    >>> from im2col_conv.reference import conv_input_grad
    >>> conv_input_grad(np.array([[[1, 2]]]), np.array([[[1, 10]]]), (1, 1, 5), stride=2)
    array([[[ 1, 10,  2, 20,  0]]])
    """
    dout, w = _computed(dout=dout, w=w)
    x_shape = tuple(x_shape)
    sizes = _conv_sizes(x_shape, w.shape, stride, padding, dilation, groups)
    N, C, F = x_shape[0], x_shape[1], len(w)
    _check_dout(dout, (N, F, *sizes.out))

    margin = tuple(extent - 1 for extent in sizes.extent)
    dout_padded = _pad(_upsample(dout, sizes), margin, margin)
    w_flipped = np.flip(w.conj(), axis=tuple(range(2, w.ndim)))

    dx = np.zeros((N, C, *sizes.padded), dout.dtype)
    over_taps = tuple(range(3, dout.ndim + 1))
    for at in np.ndindex(sizes.padded):
        dout_window = dout_padded[:, :, *_window(at, sizes)]
        for filters, channels in _groups(F, C, groups):
            products = dout_window[:, filters, None] * w_flipped[None, filters]
            dx[:, channels, *at] = np.sum(products, axis=(1, *over_taps))
    return _crop(dx, sizes.before, x_shape[2:])


def conv_weight_grad(
    dout: Array,
    x: Array,
    w_shape: Sequence[int],
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
) -> Array:
    r"""Return dw: over all output positions, add gradient times window.

    .. math::

        dw[f,c,k] = \sum_{n,i} dout[n,f,i] \; \bar x_{pad}[n, c, i \cdot stride + k \cdot dilation]

    Parameters
    ----------
    dout : array, (N, F, \*out)
        Gradient of a loss with respect to the output of `conv`.
    x, stride, padding, dilation, groups
        As given to `conv`.
    w_shape : sequence of int
        The shape of the weights, (F, C // groups, \*kernel); a stride leaves several possible.

    Returns
    -------
    dw : array, (F, C // groups, \*kernel)

    Examples
    --------
    >>> import numpy as np
    >>> from im2col_conv.reference import conv_weight_grad
    >>> x = np.array([[[1, 2, 3, 4, 5]]])
    >>> conv_weight_grad(np.array([[[1, 2]]]), x, (1, 1, 2), stride=2)
    array([[[ 7, 10]]])
    """
    dout, x = _computed(dout=dout, x=x)
    w_shape = tuple(w_shape)
    sizes = _conv_sizes(x.shape, w_shape, stride, padding, dilation, groups)
    F, C = w_shape[0], x.shape[1]
    _check_dout(dout, (len(x), F, *sizes.out))
    x = _pad(x, sizes.before, sizes.after).conj()

    dw = np.zeros(w_shape, dout.dtype)
    one_a_tap = (1,) * (x.ndim - 2)
    for at in np.ndindex(sizes.out):
        x_slice = x[:, :, *_window(_times(at, sizes.stride), sizes)]
        dout_slice = dout[:, :, *at].reshape(len(x), F, 1, *one_a_tap)
        for filters, channels in _groups(F, C, groups):
            dw[filters] += np.sum(dout_slice[:, filters] * x_slice[:, None, channels], axis=0)
    return dw


def conv_transpose(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    output_padding: PerAxis = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
) -> Array:
    r"""Scatter every input cell, times the filter, into the output: the adjoint of `conv`.

    .. math::

        full[n,f, i \cdot stride + k \cdot dilation] &\mathrel{+}= x[n,c,i] \; w[c,f,k] \\
        y[n,f,o] &= full[n, f, before + o] + b[f]

    `full` is zero past its end. Complex weights are not conjugated.

    Parameters
    ----------
    x : array, (N, C, \*spatial)
        Input.
    w : array, (C, F // groups, \*kernel)
        Filters; C comes first, as it does for the `conv` that this is the adjoint of.
    b : array, (F,), optional
        One bias an output channel.
    stride, dilation, groups
        As for `conv`.
    padding : int, one int or one (before, after) pair a spatial axis, or "valid"
        Cells cut off the full scatter at each side.
    output_padding : int or one int a spatial axis
        Cells added after, from 0 to ``max(stride, dilation) - 1``.

    Returns
    -------
    y : array, (N, F, \*out)
        ``out = (size - 1) * stride + (kernel - 1) * dilation + 1 - before - after
        + output_padding`` an axis.

    Examples
    --------
    >>> import numpy as np
    >>> from im2col_conv.reference import conv_transpose
    >>> x, w = np.array([[[1, 2]]]), np.array([[[1, 10, 100]]])
    >>> conv_transpose(x, w, stride=2)
    array([[[  1,  10, 102,  20, 200]]])
    >>> conv_transpose(x, w, np.array([3]), stride=2, padding=((2, 0),), output_padding=1)
    array([[[105,  23, 203,   3]]])
    """
    x, w, bias = _computed(x=x, w=w, b=np.False_ if b is None else b)
    _check_transposed_shapes(x.shape, w.shape, groups)
    sizes = _transposed_sizes(x.shape, w.shape, stride, padding, output_padding, dilation)
    N, C, F = len(x), len(w), w.shape[1] * groups
    if b is not None:
        _check_bias(bias.shape, F)

    full = np.zeros((N, F, *sizes.padded), x.dtype)
    for channels, filters in _groups(C, F, groups):
        for n in range(N):
            for c in range(channels.start, channels.stop):
                for at in np.ndindex(x.shape[2:]):
                    window = _window(_times(at, sizes.stride), sizes)
                    full[n, filters][:, *window] += x[n, c, *at] * w[c]
    y = _crop(full, sizes.before, sizes.out)
    return y if b is None else y + bias.reshape(F, *(1,) * len(sizes.out))


def im2col(
    x: Array,
    kernel_size: PerAxis,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
) -> Array:
    r"""Write every window of the input as a column.

    .. math::

        cols[(c, k), (n, i)] = x_{pad}[n, c, i \cdot stride + k \cdot dilation]

    Parameters
    ----------
    x : array, (N, C, \*spatial)
        Input.
    kernel_size : int or one int a spatial axis
        Size of the window.
    stride, padding, dilation
        As for `conv`.

    Returns
    -------
    cols : array, (C * prod(kernel_size), N * prod(out))
        Rows over (c, \*tap), columns over (n, \*out), both in C order; of the type of `x`.

    Examples
    --------
    >>> import numpy as np
    >>> from im2col_conv.reference import im2col
    >>> im2col(np.array([[[1, 2, 3, 4, 5]]]), 3)
    array([[1, 2, 3],
           [2, 3, 4],
           [3, 4, 5]])
    """
    x = np.asarray(x)
    _computed(x=x)  # nothing is computed, but the same types are taken
    N, C, kernel, sizes = _lowered_sizes(x.shape, kernel_size, stride, padding, dilation)
    x = _pad(x, sizes.before, sizes.after)
    cols = np.zeros((C, *kernel, N, *sizes.out), x.dtype)
    for entries, cells in _column_entries(C, kernel, sizes):
        cols[entries] = x[cells]
    return cols.reshape(C * math.prod(kernel), N * math.prod(sizes.out))


def col2im(
    cols: Array,
    x_shape: Sequence[int],
    kernel_size: PerAxis,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
) -> Array:
    r"""Add every column back into its window: the adjoint of `im2col`, not its inverse.

    .. math::

        x_{pad}[n, c, i \cdot stride + k \cdot dilation] \mathrel{+}= cols[(c, k), (n, i)]

    Parameters
    ----------
    cols : array, (C * prod(kernel_size), N * prod(out))
        Columns, ordered as `im2col` orders them.
    x_shape : sequence of int
        The shape of the image, (N, C, \*spatial).
    kernel_size, stride, padding, dilation
        As for `im2col`.

    Returns
    -------
    x : array, (N, C, \*spatial)

    Examples
    --------
    Three windows cover the middle cell, so it comes back three times.

    >>> import numpy as np
    >>> from im2col_conv.reference import col2im, im2col
    >>> x = np.array([[[1, 2, 3, 4, 5]]])
    >>> col2im(im2col(x, 3), x.shape, 3)
    array([[[1, 4, 9, 8, 5]]])
    """
    (cols,) = _computed(cols=cols)
    x_shape = tuple(x_shape)
    N, C, kernel, sizes = _lowered_sizes(x_shape, kernel_size, stride, padding, dilation)
    expected = (C * math.prod(kernel), N * math.prod(sizes.out))
    if cols.shape != expected:
        raise ValueError(f"cols must have shape {expected}; it has {cols.shape}")
    cols = cols.reshape(C, *kernel, N, *sizes.out)
    x = np.zeros((N, C, *sizes.padded), cols.dtype)
    for entries, cells in _column_entries(C, kernel, sizes):
        x[cells] += cols[entries]
    return _crop(x, sizes.before, x_shape[2:])


# Sizes.


class _Sizes(NamedTuple):
    """One number a spatial axis each."""

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    extent: tuple[int, ...]  # cells that the dilated kernel spans
    before: tuple[int, ...]  # padding
    after: tuple[int, ...]
    padded: tuple[int, ...]  # the input with its padding
    out: tuple[int, ...]


def _conv_sizes(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    stride: PerAxis,
    padding: Padding,
    dilation: PerAxis,
    groups: int,
) -> _Sizes:
    _check_shapes(x_shape, w_shape, groups)
    return _sizes(x_shape[2:], w_shape[2:], stride, padding, dilation)


def _lowered_sizes(
    x_shape: tuple[int, ...],
    kernel_size: PerAxis,
    stride: PerAxis,
    padding: Padding,
    dilation: PerAxis,
) -> tuple[int, int, tuple[int, ...], _Sizes]:
    """Return N, C, the kernel and the sizes for `im2col` and `col2im`."""
    kernel = _per_axis(1, "kernel_size", kernel_size, len(x_shape) - 2)
    _check_shapes(x_shape, (1, *x_shape[1:2], *kernel), groups=1)
    sizes = _sizes(x_shape[2:], kernel, stride, padding, dilation)
    return x_shape[0], x_shape[1], kernel, sizes


def _sizes(
    spatial: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: PerAxis,
    padding: Padding,
    dilation: PerAxis,
) -> _Sizes:
    axes = len(spatial)
    stride = _per_axis(1, "stride", stride, axes)
    dilation = _per_axis(1, "dilation", dilation, axes)
    extent = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    if isinstance(padding, str) and padding == "same":
        pads = [_same(*axis) for axis in zip(spatial, extent, stride, strict=True)]
    else:
        pads = _pads(padding, axes)
    before, after = tuple(p for p, _ in pads), tuple(p for _, p in pads)
    padded = tuple(n + p + q for n, p, q in zip(spatial, before, after, strict=True))
    for axis in range(axes):
        if padded[axis] < extent[axis]:
            raise ValueError(
                f"the output would have no cell on spatial axis {axis}: the kernel spans "
                f"{extent[axis]}, {extent[axis] - padded[axis]} more than the padded input's "
                f"{padded[axis]}"
            )
    out = tuple(1 + (p - e) // s for p, e, s in zip(padded, extent, stride, strict=True))
    return _Sizes(stride, dilation, extent, before, after, padded, out)


def _same(size: int, extent: int, stride: int) -> tuple[int, int]:
    """Return the padding that gives ceil(size / stride) outputs, the odd cell after."""
    out = -(-size // stride)
    total = max((out - 1) * stride + extent - size, 0)
    return total // 2, total - total // 2


def _transposed_sizes(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    stride: PerAxis,
    padding: Padding,
    output_padding: PerAxis,
    dilation: PerAxis,
) -> _Sizes:
    """Return the sizes of `conv_transpose`; `padded` is its scatter, long enough to be cropped."""
    if isinstance(padding, str) and padding == "same":
        raise ValueError('conv_transpose takes no padding="same"')
    axes = len(x_shape) - 2
    stride = _per_axis(1, "stride", stride, axes)
    dilation = _per_axis(1, "dilation", dilation, axes)
    added = _per_axis(0, "output_padding", output_padding, axes)
    pads = _pads(padding, axes)
    extent = tuple((k - 1) * d + 1 for k, d in zip(w_shape[2:], dilation, strict=True))
    out, padded = [], []
    for axis, (before, after) in enumerate(pads):
        limit = max(stride[axis], dilation[axis])
        if added[axis] >= limit:
            raise ValueError(
                f"output_padding on spatial axis {axis} is {added[axis]}; it must be less than "
                f"max(stride, dilation) = {limit}"
            )
        full = (x_shape[2 + axis] - 1) * stride[axis] + extent[axis]
        size = full - before - after + added[axis]
        if size < 1:
            raise ValueError(
                f"the output would have size {size} on spatial axis {axis}: the padding "
                f"({before}, {after}) takes all {full} cells of the scatter"
            )
        out.append(size)
        padded.append(max(full, before + size))
    befores, afters = tuple(p for p, _ in pads), tuple(p for _, p in pads)
    return _Sizes(stride, dilation, extent, befores, afters, tuple(padded), tuple(out))


def _pads(padding: Padding, axes: int) -> list[tuple[int, int]]:
    """Return one (before, after) pair a spatial axis."""
    if isinstance(padding, str):
        if padding != "valid":
            raise ValueError(f'padding is {padding!r}; the names are "valid" and "same"')
        return [(0, 0)] * axes
    if isinstance(padding, Iterable) and all(isinstance(pair, Iterable) for pair in padding):
        pairs = [_per_axis(0, "padding", pair, 2) for pair in padding]
        if len(pairs) != axes:
            raise ValueError(f"padding has {len(pairs)} pairs for {axes} spatial axes")
        return [(before, after) for before, after in pairs]
    return [(both, both) for both in _per_axis(0, "padding", padding, axes)]


def _per_axis(least: int, name: str, value: Any, axes: int) -> tuple[int, ...]:
    """Return one int a spatial axis, none below `least`."""
    if not isinstance(value, Iterable):
        return (_at_least(least, name, value),) * axes
    values = tuple(_at_least(least, name, v) for v in value)
    if len(values) != axes:
        raise ValueError(f"{name} {values} has {len(values)} entries; it needs {axes}")
    return values


def _at_least(least: int, name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int; it is {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}; it is {number}")
    return number


# Types and shapes.


def _computed(**given: Array | np.bool) -> list[Array]:
    """Return the arrays in the one type in which all of them are computed."""
    arrays = {name: np.asarray(array) for name, array in given.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in "biufc" or array.dtype.char in "gG":
            raise TypeError(f"{name} has dtype {array.dtype}, which is not supported")
    kind = np.result_type(*(array.dtype for array in arrays.values())).kind
    dtype = {"c": np.complex128, "f": np.float64}.get(kind, np.int64)
    return [array.astype(dtype) for array in arrays.values()]


def _check_shapes(x_shape: tuple[int, ...], w_shape: tuple[int, ...], groups: int) -> None:
    shapes = f"x has shape {x_shape} and w {w_shape}"
    if len(x_shape) < 3 or len(w_shape) != len(x_shape):
        raise ValueError(f"x and w need the same number of axes, 3 or more: {shapes}")
    if x_shape[1] == 0 or 0 in w_shape:
        raise ValueError(f"channels, filters and kernel must not be empty: {shapes}")
    groups = _at_least(1, "groups", groups)
    if x_shape[1] % groups or w_shape[0] % groups:
        raise ValueError(f"groups={groups} must divide channels and filters: {shapes}")
    if w_shape[1] != x_shape[1] // groups:
        raise ValueError(f"with groups={groups}, w needs {x_shape[1] // groups} channels: {shapes}")


def _check_transposed_shapes(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], groups: int
) -> None:
    shapes = f"x has shape {x_shape} and w {w_shape}"
    if len(x_shape) < 3 or len(w_shape) != len(x_shape):
        raise ValueError(f"x and w need the same number of axes, 3 or more: {shapes}")
    if 0 in x_shape[1:] or 0 in w_shape:
        raise ValueError(f"channels, cells, filters and kernel must not be empty: {shapes}")
    if x_shape[1] != w_shape[0]:
        raise ValueError(f"w must be (C, F // groups, *kernel) with the channels of x: {shapes}")
    if x_shape[1] % _at_least(1, "groups", groups):
        raise ValueError(f"groups={groups} must divide the channels: {shapes}")


def _check_bias(b_shape: tuple[int, ...], F: int) -> None:
    if b_shape != (F,):
        raise ValueError(f"b must have shape ({F},); it has {b_shape}")


def _check_dout(dout: Array, expected: tuple[int, ...]) -> None:
    if dout.shape != expected:
        raise ValueError(f"dout must have shape {expected}; it has {dout.shape}")


# Windows.


def _times(at: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(i * s for i, s in zip(at, stride, strict=True))


def _window(start: tuple[int, ...], sizes: _Sizes) -> tuple[slice, ...]:
    """Return the slices of the dilated window whose first cell is `start`."""
    axes = zip(start, sizes.extent, sizes.dilation, strict=True)
    return tuple(slice(first, first + extent, d) for first, extent, d in axes)


def _groups(F: int, C: int, groups: int) -> Iterator[tuple[slice, slice]]:
    """Yield the filters and the channels of each group."""
    f, c = F // groups, C // groups
    for g in range(groups):
        yield slice(g * f, g * f + f), slice(g * c, g * c + c)


def _pad(array: Array, before: tuple[int, ...], after: tuple[int, ...]) -> Array:
    return np.pad(array, ((0, 0), (0, 0), *zip(before, after, strict=True)))


def _crop(array: Array, before: tuple[int, ...], size: tuple[int, ...]) -> Array:
    cells = tuple(slice(p, p + n) for p, n in zip(before, size, strict=True))
    return array[:, :, *cells]


def _upsample(dout: Array, sizes: _Sizes) -> Array:
    """Put dout where stride 1 would have put it; zero elsewhere, the unused rows included."""
    out_of_stride_1 = tuple(p - e + 1 for p, e in zip(sizes.padded, sizes.extent, strict=True))
    upsampled = np.zeros((*dout.shape[:2], *out_of_stride_1), dout.dtype)
    upsampled[:, :, *(slice(None, None, s) for s in sizes.stride)] = dout
    return upsampled


def _column_entries(
    C: int, kernel: tuple[int, ...], sizes: _Sizes
) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    r"""Yield where (c, \*tap, all n, \*out) lies in the columns and in the padded input."""
    every_n = slice(None)
    for c in range(C):
        for tap in np.ndindex(kernel):
            for at in np.ndindex(sizes.out):
                axes = zip(at, sizes.stride, tap, sizes.dilation, strict=True)
                cell = tuple(i * s + k * d for i, s, k, d in axes)
                yield (c, *tap, every_n, *at), (every_n, c, *cell)
