"""The gradient to the input as a convolution of its own: the note's flip and pad."""

from __future__ import annotations

from dataclasses import replace

from im2col_conv.geometry import ConvGeometry

__all__ = ["adjoint_of"]


def adjoint_of(geometry: ConvGeometry) -> ConvGeometry | None:
    """Return the convolution of dout, with the flipped weights, that makes dx; None without one.

    It needs a stride of 1, no more padding than a window reaches, and cells.

    Examples
    --------
    >>> geometry = ConvGeometry.from_shapes((2, 3, 9, 8), (4, 3, 3, 5), padding=(1, 0))
    >>> adjoint = adjoint_of(geometry)
    >>> adjoint.x_shape, adjoint.w_shape, adjoint.padding
    ((2, 4, 9, 4), (3, 4, 3, 5), ((1, 1), (4, 4)))
    """
    padding = tuple(
        (reach - 1 - before, reach - 1 - after)
        for reach, (before, after) in zip(geometry.reach, geometry.padding, strict=True)
    )
    if set(geometry.stride) != {1} or min(map(min, padding)) < 0 or 0 in geometry.size:
        return None
    return replace(geometry, C=geometry.F, F=geometry.C, size=geometry.out, padding=padding)
