"""The note's own interface: a forward and a backward function that hand a cache to each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from im2col_conv.arguments import per_axis
from im2col_conv.arrays import Array, read_array, result_type
from im2col_conv.functional import conv, conv_grads

__all__ = ["conv_backward", "conv_forward"]

Cache = tuple[Array, Array, Array, Mapping[str, Any]]


def conv_forward(
    x: npt.ArrayLike, w: npt.ArrayLike, b: npt.ArrayLike, conv_param: Mapping[str, Any]
) -> tuple[Array, Cache]:
    r"""Run a convolutional layer forward, with the note's interface.

    Parameters
    ----------
    x : array_like
        (N, C, H, W), or any number of spatial axes.
    w : array_like
        (F, C, HH, WW).
    b : array_like
        (F,).
    conv_param : dict
        With exactly the keys "stride" and "pad", each an int or one int a spatial axis.

    Returns
    -------
    out : ndarray
        (N, F, H', W'), H' = 1 + (H + 2 pad - HH) // stride.
    cache : tuple
        (x, w, b, conv_param), for :func:`conv_backward`.

    Raises
    ------
    TypeError
        Where an array holds no fitting numbers or an argument is of the wrong kind.
    ValueError
        Where the sizes do not fit one another, or ``conv_param`` has another key or lacks one.

    Notes
    -----
    Time and memory as in :func:`im2col_conv.conv`. Unlike the note's code, the cache holds x as it
    was given and not padded, and the result has the type of the arrays.

    Examples
    --------
    >>> x = [[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]]
    >>> out, cache = conv_forward(x, [[[[1.0, 10.0]]]], [0.5], {"stride": 1, "pad": 0})
    >>> out
    array([[[[21.5, 32.5],
             [54.5, 65.5]]]])
    """
    x, w, b = read_array("x", x), read_array("w", w), read_array("b", b)
    stride, pad = _read(conv_param, w.ndim - 2)
    return conv(x, w, b, stride=stride, padding=pad), (x, w, b, dict(conv_param))


def conv_backward(dout: npt.ArrayLike, cache: Cache) -> tuple[Array, Array, Array]:
    r"""Run a convolutional layer backward, with the note's interface.

    Parameters
    ----------
    dout : array_like
        (N, F, H', W'), the gradient of the result of :func:`conv_forward`.
    cache : tuple
        What :func:`conv_forward` returned beside it.

    Returns
    -------
    dx, dw, db : ndarray
        The gradients, of the shapes of x, w and b.

    Raises
    ------
    TypeError
        Where ``dout`` holds no fitting numbers or ``cache`` is no cache.
    ValueError
        Where ``dout`` has not the shape of the result.

    Notes
    -----
    Time and memory as in :func:`im2col_conv.conv_grads`.

    Examples
    --------
    >>> x = [[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]]
    >>> out, cache = conv_forward(x, [[[[1.0, 10.0]]]], [0.5], {"stride": 1, "pad": 0})
    >>> dx, dw, db = conv_backward([[[[1.0, 0.0], [0.0, 1.0]]]], cache)
    >>> dx
    array([[[[ 1., 10.,  0.],
             [ 0.,  1., 10.]]]])
    >>> dw, db
    (array([[[[6., 8.]]]]), array([2.]))
    """
    if not isinstance(cache, tuple) or [type(each) for each in cache[:3]] != [np.ndarray] * 3:
        raise TypeError(
            f"cache must be what conv_forward returned, (x, w, b, conv_param), "
            f"got {type(cache).__name__}"
        )
    x, w, b, conv_param = cache
    stride, pad = _read(conv_param, w.ndim - 2)
    dout = read_array("dout", dout)
    dout = dout.astype(result_type(dout, b), copy=False)  # b has its part in the gradients' type
    dx, dw, db = conv_grads(dout, x, w, stride=stride, padding=pad)
    return dx, dw, db  # type: ignore[return-value]  # all three are asked for


def _read(conv_param: object, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if not isinstance(conv_param, Mapping):
        raise TypeError(
            f'conv_param must be a dict with the keys "stride" and "pad", got {conv_param!r}'
        )
    for key in conv_param:
        if key not in ("stride", "pad"):
            raise ValueError(f'conv_param must have the keys "stride" and "pad" alone, got {key!r}')
    if len(conv_param) < 2:
        missing = "pad" if "stride" in conv_param else "stride"
        raise ValueError(f'conv_param must have the keys "stride" and "pad", it lacks {missing!r}')
    return (
        per_axis('conv_param["stride"]', conv_param["stride"], ndim, 1),
        per_axis('conv_param["pad"]', conv_param["pad"], ndim, 0),
    )
