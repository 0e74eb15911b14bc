"""Every size of a convolution, and every complaint about a size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from im2col_conv.arguments import (
    LARGEST,
    Padding,
    PerAxis,
    axis_pairs,
    integer,
    is_plain,
    per_axis,
    shape_of,
)

__all__ = ["ConvGeometry", "Gemm", "expect_shape", "geometry_of"]


MOST_CELLS = LARGEST // 16  # of the largest type


class Gemm(NamedTuple):
    """The sizes of a matrix product: (M, K) times (K, N) gives (M, N)."""

    M: int
    N: int
    K: int


@dataclass(frozen=True, kw_only=True)
class ConvGeometry:
    r"""All sizes of one convolution, checked once and used by every pass.

    Along a spatial axis of ``size`` cells, output ``o`` and tap ``t`` meet at cell

    .. math:: i = o \cdot \text{stride} + t \cdot \text{dilation} - \text{before}

    and there are as many outputs as fit:

    .. math:: \text{out} = \lfloor (\text{before} + \text{size} + \text{after}
              - \text{reach}) / \text{stride} \rfloor + 1, \qquad
              \text{reach} = \text{dilation} \cdot (\text{kernel} - 1) + 1.

    Use :meth:`from_shapes`; the fields are already canonical.

    Attributes
    ----------
    N, C, F : int
        Images, channels, filters.
    size, kernel, stride, dilation : tuple of int
        One int a spatial axis.
    padding : tuple of (int, int)
        Cells of zeros (before, after) on each spatial axis.
    groups : int
        Groups of channels that do not see each other; ``groups=C`` is depthwise.

    Examples
    --------
    >>> g = ConvGeometry.from_shapes((2, 6, 11, 13), (4, 3, 3, 5), stride=(2, 3),
    ...                              dilation=(2, 1), padding=((1, 2), (0, 3)), groups=2)
    >>> g.out, g.y_shape, g.cols_shape
    ((5, 4), (2, 4, 5, 4), (90, 40))
    >>> g.gemm                                  # one such product for each of the groups
    Gemm(M=2, N=40, K=45)
    >>> print(g)
    (2, 6, 11, 13) * (4, 3, 3, 5) -> (2, 4, 5, 4)
      stride (2, 3)  padding (1+2, 0+3)  dilation (2, 1)  groups 2
    """

    N: int
    C: int
    F: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    def __post_init__(self) -> None:
        """Refuse what cannot be a convolution, also from ``dataclasses.replace``."""
        ndim = len(self.size)
        if ndim == 0:
            raise ValueError("size must have at least one spatial axis, got ()")
        for name, least in (("N", 0), ("C", 1), ("F", 1), ("groups", 1)):
            self._set(name, integer(name, getattr(self, name), least))
        self._set("size", shape_of("size", self.size))
        for name in ("kernel", "stride", "dilation"):
            self._set(name, per_axis(name, getattr(self, name), ndim, 1))
        self._set("padding", axis_pairs(self.padding, ndim))
        for name, channels in (("C", self.C), ("F", self.F)):
            if channels % self.groups:
                raise ValueError(
                    f"groups must divide {name}: got groups={self.groups} and {name}={channels}"
                )
        self._refuse_empty_output()
        self._refuse_what_no_array_holds()

    def __hash__(self) -> int:
        """Hash the fields once: every call looks up its plan by the geometry."""
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, field.name) for field in fields(self)))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _refuse_empty_output(self) -> None:
        for axis, (out, reach, padded) in enumerate(
            zip(self.out, self.reach, self.padded, strict=True)
        ):
            if out < 1:
                before, after = self.padding[axis]
                raise ValueError(
                    f"the output would be empty on spatial axis {axis}: the kernel is too large "
                    f"by {reach - padded}. It reaches over {reach} cells (kernel "
                    f"{self.kernel[axis]}, dilation {self.dilation[axis]}) and the input has "
                    f"{padded} (size {self.size[axis]}, padding {before}+{after})"
                )

    def _refuse_what_no_array_holds(self) -> None:
        for name, shape in (("x", self.x_shape), ("w", self.w_shape), ("the output", self.y_shape)):
            if math.prod(shape) > MOST_CELLS:
                raise ValueError(
                    f"{name} would have {math.prod(shape)} cells, more than an array can hold: "
                    f"its shape is {shape}, with size {self.size}, stride {self.stride} and "
                    f"padding {self.padding}"
                )

    @classmethod
    def from_shapes(
        cls,
        x_shape: Sequence[int],
        w_shape: Sequence[int],
        *,
        stride: PerAxis = 1,
        padding: Padding = 0,
        dilation: PerAxis = 1,
        groups: int = 1,
    ) -> ConvGeometry:
        r"""Return the geometry of a convolution of ``x`` with ``w``.

        Parameters
        ----------
        x_shape : tuple of int
            (N, C, \*spatial).
        w_shape : tuple of int
            (F, C // groups, \*kernel).
        stride, dilation : int or one int a spatial axis
        padding : int, one int or one (before, after) pair a spatial axis, "valid" or "same"
            "same" gives ceil(size / stride) outputs, the odd cell after.
        groups : int

        Raises
        ------
        TypeError
            Where an argument is not made of ints.
        ValueError
            Where the sizes do not fit one another.

        Examples
        --------
        >>> ConvGeometry.from_shapes((1, 3, 8, 5), (4, 3, 3, 2), stride=2, padding="same").padding
        ((0, 1), (0, 1))
        """
        return geometry_of(
            shape_of("x_shape", x_shape),
            shape_of("w_shape", w_shape),
            stride,
            padding,
            dilation,
            groups,
            names=("x_shape", "w_shape"),
        )

    @cached_property
    def ndim(self) -> int:
        """The number of spatial axes."""
        return len(self.size)

    @cached_property
    def reach(self) -> tuple[int, ...]:
        """Cells from a window's first tap to its last, both counted."""
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))

    @cached_property
    def padded(self) -> tuple[int, ...]:
        """The size of the input with its padding."""
        return tuple(
            before + size + after
            for size, (before, after) in zip(self.size, self.padding, strict=True)
        )

    @cached_property
    def out(self) -> tuple[int, ...]:
        """The size of the output: one int a spatial axis."""
        return tuple(
            (padded - reach) // stride + 1 if padded >= reach else 0
            for padded, reach, stride in zip(self.padded, self.reach, self.stride, strict=True)
        )

    @cached_property
    def unused(self) -> tuple[int, ...]:
        """Cells at the end of the padded input that the stride leaves in no window."""
        return tuple(
            (padded - reach) % stride
            for padded, reach, stride in zip(self.padded, self.reach, self.stride, strict=True)
        )

    @cached_property
    def x_shape(self) -> tuple[int, ...]:
        r"""(N, C, \*size)."""
        return (self.N, self.C, *self.size)

    @cached_property
    def w_shape(self) -> tuple[int, ...]:
        r"""(F, C // groups, \*kernel)."""
        return (self.F, self.C // self.groups, *self.kernel)

    @cached_property
    def y_shape(self) -> tuple[int, ...]:
        r"""(N, F, \*out)."""
        return (self.N, self.F, *self.out)

    @cached_property
    def depthwise(self) -> bool:
        """Whether there are several channels and each sees itself alone, by one filter."""
        return self.C == self.F == self.groups > 1

    @cached_property
    def pointwise(self) -> bool:
        """Whether every output sees the one cell at its own place."""
        unpadded = not any(map(any, self.padding))
        return self.taps == 1 and unpadded and set(self.stride) == {1}

    @cached_property
    def taps(self) -> int:
        """The number of taps of one channel's kernel."""
        return math.prod(self.kernel)

    @cached_property
    def positions(self) -> int:
        """The number of output positions of one image."""
        return math.prod(self.out)

    @cached_property
    def cols_shape(self) -> tuple[int, int]:
        """The column matrix: (C * taps, N * positions)."""
        return (self.C * self.taps, self.N * self.positions)

    @cached_property
    def gemm(self) -> Gemm:
        """The forward product of one group: W (M, K) @ cols (K, N)."""
        return Gemm(
            M=self.F // self.groups,
            N=self.N * self.positions,
            K=self.C // self.groups * self.taps,
        )

    @cached_property
    def flops(self) -> int:
        """Floating-point operations of one pass: a multiplication and an addition a term."""
        return 2 * self.groups * math.prod(self.gemm)

    def cols_nbytes(self, dtype: npt.DTypeLike) -> int:
        """Bytes of the whole column matrix in ``dtype``."""
        return math.prod(self.cols_shape) * np.dtype(dtype).itemsize

    def __str__(self) -> str:
        """One line: shapes, then what is not the default."""
        parts = [f"{self.x_shape} * {self.w_shape} -> {self.y_shape}"]
        if set(self.stride) != {1}:
            parts.append(f"stride {self.stride}")
        if self.padding != ((0, 0),) * self.ndim:
            pads = ", ".join(f"{before}+{after}" for before, after in self.padding)
            parts.append(f"padding ({pads})")
        if set(self.dilation) != {1}:
            parts.append(f"dilation {self.dilation}")
        if self.groups != 1:
            parts.append(f"groups {self.groups}")
        return "  ".join(parts)


def geometry_of(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    stride: object,
    padding: object,
    dilation: object,
    groups: object,
    *,
    names: tuple[str, str] = ("x", "w"),
) -> ConvGeometry:
    """Return the geometry of two shapes; complaints call them by ``names``."""
    arguments = (x_shape, w_shape, stride, padding, dilation, groups, names)
    if is_plain(stride) and is_plain(padding) and is_plain(dilation) and is_plain(groups):
        return _geometry_of_plain(*arguments)
    return _geometry_of(*arguments)


def _geometry_of(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    stride: object,
    padding: object,
    dilation: object,
    groups: object,
    names: tuple[str, str],
) -> ConvGeometry:
    ndim = len(w_shape) - 2
    _expect_axes(x_shape, w_shape, names)
    return _fitted(
        x_shape,
        w_shape,
        per_axis("stride", stride, ndim, 1),
        _padding_argument(padding, ndim),
        per_axis("dilation", dilation, ndim, 1),
        integer("groups", groups, 1),
        names,
    )


_geometry_of_plain = lru_cache(maxsize=1024)(_geometry_of)


@lru_cache(maxsize=1024)
def _fitted(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    stride: tuple[int, ...],
    padding: str | tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    groups: int,
    names: tuple[str, str],
) -> ConvGeometry:
    """Return the geometry of canonical arguments; seen ones come from a cache."""
    _expect_channels(x_shape, w_shape, groups, names)
    size, kernel = x_shape[2:], w_shape[2:]
    if isinstance(padding, str):
        padding = _named_padding(padding, size, kernel, stride, dilation)
    return ConvGeometry(
        N=x_shape[0],
        C=x_shape[1],
        F=w_shape[0],
        size=size,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )


def expect_shape(name: str, given: tuple[int, ...], wanted: tuple[int, ...], meaning: str) -> None:
    """Complain where the argument ``name`` has not the shape that the geometry calls for."""
    if given != wanted:
        raise ValueError(f"{name} must have shape {wanted}, {meaning}, got {given}")


def _expect_axes(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], names: tuple[str, str]
) -> None:
    x_name, w_name = names
    if len(w_shape) < 3:
        raise ValueError(
            f"{w_name} must have at least one spatial axis, (F, C // groups, *kernel), "
            f"got shape {w_shape}"
        )
    if len(x_shape) != len(w_shape):
        raise ValueError(
            f"{x_name} must have as many axes as {w_name}: (N, C, *spatial) with "
            f"{len(w_shape) - 2} spatial, got {x_name} of shape {x_shape} and "
            f"{w_name} of shape {w_shape}"
        )


def _expect_channels(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], groups: int, names: tuple[str, str]
) -> None:
    x_name, w_name = names
    C, F = x_shape[1], w_shape[0]
    if C == 0:
        raise ValueError(f"{x_name} must have at least one channel, got shape {x_shape}")
    if 0 in w_shape:
        raise ValueError(f"{w_name} must have no axis of size 0, got shape {w_shape}")
    if C % groups:
        raise ValueError(
            f"groups must divide the channels of {x_name}: got groups={groups} and {C} channels "
            f"({x_name} has shape {x_shape})"
        )
    if F % groups:
        raise ValueError(
            f"groups must divide the filters of {w_name}: got groups={groups} and {F} filters "
            f"({w_name} has shape {w_shape})"
        )
    if w_shape[1] != C // groups:
        raise ValueError(
            f"{w_name} must have C // groups = {C} // {groups} = {C // groups} channels on its "
            f"second axis, got {w_shape[1]} ({x_name} has shape {x_shape}, {w_name} {w_shape})"
        )


def _padding_argument(padding: object, ndim: int) -> str | tuple[tuple[int, int], ...]:
    if not isinstance(padding, str):
        return axis_pairs(padding, ndim)
    if padding not in ("valid", "same"):
        raise ValueError(f'padding must be ints, "valid" or "same", got {padding!r}')
    return padding


def _named_padding(
    word: str,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[tuple[int, int], ...]:
    if word == "valid":
        return ((0, 0),) * len(size)
    pairs = []
    for cells, k, s, d in zip(size, kernel, stride, dilation, strict=True):
        out = -(-cells // s)
        total = max((out - 1) * s + d * (k - 1) + 1 - cells, 0)
        pairs.append((total // 2, total - total // 2))
    return tuple(pairs)
