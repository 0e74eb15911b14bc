r"""FFT: a convolution is a product of numbers where both are written as waves.

.. math:: \hat Y[f, \omega] = \sum_c \hat X[c, \omega] \; \overline{\hat W[f, c, \omega]}

with the kernel, its taps set apart by the dilation, among zeros to the size of the padded image.
The product wraps around at the end, but no window reaches past it, so the outputs are not touched.
Those that the stride skips are computed and thrown away. No GEMM is made: per filter the channels
are multiplied place by place and added.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.fft  # type: ignore[import-untyped]

from im2col_conv.arrays import Array
from im2col_conv.gallery.interface import Lowering, padded_cells, padded_image, tap_cells
from im2col_conv.geometry import ConvGeometry

__all__ = ["FFT"]


def _one(x: Array, w: Array, y: Array, geometry: ConvGeometry) -> None:
    axes = tuple(range(1, geometry.ndim + 1))
    X = scipy.fft.rfftn(padded_image(x, geometry), axes=axes)
    kernel = np.zeros((len(x), *geometry.padded), x.dtype)
    taps = tuple(
        slice(0, reach, d) for reach, d in zip(geometry.reach, geometry.dilation, strict=True)
    )
    outputs = tap_cells(geometry, (0,) * geometry.ndim)
    for f, filter_ in enumerate(w):
        kernel[:, *taps] = filter_
        W = scipy.fft.rfftn(kernel, axes=axes)
        np.conjugate(W, out=W)
        W *= X
        y[f] = scipy.fft.irfftn(W.sum(axis=0), geometry.padded)[outputs]
        del W


def _buffers(geometry: ConvGeometry, dtype: np.dtype[Any]) -> dict[str, int]:
    c = geometry.C // geometry.groups
    *others, last = geometry.padded
    waves = math.prod(others) * (last // 2 + 1)
    return {
        "kernel among zeros": padded_cells(geometry) * dtype.itemsize,
        "waves of the image": c * waves * 2 * dtype.itemsize,
        "waves of a filter": c * waves * 2 * dtype.itemsize,
        "waves of a result": waves * 2 * dtype.itemsize,
        "one result": math.prod(geometry.padded) * dtype.itemsize,
    }


FFT = Lowering(
    name="fft",
    source="Mathieu, Henaff and LeCun (2013), Fast Training of Convolutional Networks through FFTs",
    matrices="no GEMM: products place by place over all frequencies",
    layout="channels_first",
    one=_one,
    gemms_of_one=lambda geometry, dtype: 0,
    buffers=_buffers,
)
