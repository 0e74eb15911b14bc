"""The sizes of a transposed convolution, and the convolution that it is the adjoint of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from im2col_conv.arguments import axis_pairs, axis_sizes, integer, per_axis
from im2col_conv.geometry import ConvGeometry

__all__ = ["TransposedGeometry", "transposed_geometry"]


@dataclass(frozen=True, kw_only=True)
class TransposedGeometry:
    r"""The result of a transposed convolution: its size, and the part that anything reaches.

    Along an axis of ``size`` cells the scatter without padding is
    :math:`\text{length} = (\text{size} - 1) \cdot \text{stride} + \text{reach}` cells long, and
    the result is its cells :math:`[\text{before}, \text{before} + \text{out})`. Cells past the
    scatter's end are zero; the others are ``reached``.

    Attributes
    ----------
    N, channels : int
        Images and channels of the result.
    out : tuple of int
        The size of the result.
    reached : tuple of int
        The size of its part that the scatter reaches.
    adjoint_of : ConvGeometry or None
        The convolution from the reached part to the given array; None where nothing is reached.
    """

    N: int
    channels: int
    out: tuple[int, ...]
    reached: tuple[int, ...]
    adjoint_of: ConvGeometry | None


def transposed_geometry(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    *,
    stride: object,
    padding: object,
    output_padding: object,
    output_size: object,
    dilation: object,
    groups: object,
    name: str,
) -> TransposedGeometry:
    """Return the sizes of ``conv_transpose``; complaints call its input by ``name``."""
    groups = integer("groups", groups, 1)
    _expect_weights(x_shape, w_shape, groups, name)
    ndim = len(w_shape) - 2
    if isinstance(padding, str):
        _expect_valid(padding)
        padding = 0
    extra = per_axis("output_padding", output_padding, ndim, 0)
    if output_size is not None:
        if any(extra):
            raise ValueError(
                f"give output_padding or output_size, not both: got output_padding="
                f"{output_padding!r} and output_size={output_size!r}"
            )
        output_size = axis_sizes("output_size", output_size, ndim)
    return _fitted(
        x_shape,
        w_shape,
        per_axis("stride", stride, ndim, 1),
        axis_pairs(padding, ndim),
        extra,
        output_size,
        per_axis("dilation", dilation, ndim, 1),
        groups,
    )


@lru_cache(maxsize=1024)
def _fitted(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    output_padding: tuple[int, ...],
    output_size: tuple[int, ...] | None,
    dilation: tuple[int, ...],
    groups: int,
) -> TransposedGeometry:
    """Return the sizes for canonical arguments; seen ones come from a cache."""
    kernel = w_shape[2:]
    lengths = [
        (size - 1) * s + d * (k - 1) + 1
        for size, k, s, d in zip(x_shape[2:], kernel, stride, dilation, strict=True)
    ]
    least = tuple(
        length - before - after for length, (before, after) in zip(lengths, padding, strict=True)
    )
    spare = tuple(max(pair) - 1 for pair in zip(stride, dilation, strict=True))
    out = _chosen_size(least, spare, output_padding, output_size)
    pads = [before for before, _ in padding]
    reached = tuple(
        min(cells, length - before)
        for cells, length, before in zip(out, lengths, pads, strict=True)
    )
    channels = w_shape[1] * groups
    adjoint_of = None
    if min(reached) >= 1:
        adjoint_of = ConvGeometry(
            N=x_shape[0],
            C=channels,
            F=w_shape[0],
            size=reached,
            kernel=kernel,
            stride=stride,
            padding=tuple(
                (before, length - before - cells)
                for cells, length, before in zip(reached, lengths, pads, strict=True)
            ),
            dilation=dilation,
            groups=groups,
        )
    return TransposedGeometry(
        N=x_shape[0], channels=channels, out=out, reached=reached, adjoint_of=adjoint_of
    )


def _expect_valid(padding: str) -> None:
    if padding == "same":
        raise ValueError(
            'padding="same" has no meaning for conv_transpose, since several sizes lead to the '
            "same output: give ints or (before, after) pairs, and output_size to pick the size"
        )
    if padding != "valid":
        raise ValueError(f'padding must be ints or "valid", got {padding!r}')


def _expect_weights(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], groups: int, name: str
) -> None:
    if len(w_shape) < 3:
        raise ValueError(
            f"w must have at least one spatial axis, (C_in, C_out // groups, *kernel), "
            f"got shape {w_shape}"
        )
    if len(x_shape) != len(w_shape):
        raise ValueError(
            f"{name} must have as many axes as w: (N, C_in, *spatial) with "
            f"{len(w_shape) - 2} spatial, got {name} of shape {x_shape} and w of shape {w_shape}"
        )
    if 0 in w_shape:
        raise ValueError(f"w must have no axis of size 0, got shape {w_shape}")
    if 0 in x_shape[1:]:
        raise ValueError(f"{name} must have no axis of size 0 but the batch, got shape {x_shape}")
    if x_shape[1] != w_shape[0]:
        raise ValueError(
            f"w must have C_in = {x_shape[1]} entries on its first axis, one for each channel of "
            f"{name}, got {w_shape[0]} ({name} has shape {x_shape}, w {w_shape})"
        )
    if x_shape[1] % groups:
        raise ValueError(
            f"groups must divide the channels of {name}: got groups={groups} and "
            f"{x_shape[1]} channels ({name} has shape {x_shape})"
        )


def _chosen_size(
    least: tuple[int, ...],
    spare: tuple[int, ...],
    output_padding: tuple[int, ...],
    output_size: tuple[int, ...] | None,
) -> tuple[int, ...]:
    out = []
    for axis, (low, extra) in enumerate(zip(least, spare, strict=True)):
        size = low + output_padding[axis] if output_size is None else output_size[axis]
        possible = f"{low} to {low + extra} cells" if extra else f"{low} cells"
        if not low <= size <= low + extra:
            given = f"output_size[{axis}]={size} is out of reach"
            if output_size is None:
                given = (
                    f"output_padding[{axis}]={output_padding[axis]} is more than {extra}, "
                    "which is the larger of stride and dilation less one"
                )
            raise ValueError(f"{given}: on spatial axis {axis} the result can have {possible}")
        if size < 1:
            raise ValueError(
                f"the result would have {size} cells on spatial axis {axis}: padding takes away "
                f"all that the kernel gives, and the result can have {possible}"
            )
        out.append(size)
    return tuple(out)
