"""Say what a lowering does before it is done: matrices, operations, bytes, tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from im2col_conv.arguments import Padding, PerAxis
from im2col_conv.arrays import check_type, result_type
from im2col_conv.engine.choice import forward_plan, input_grad_plan, weight_grad_plan
from im2col_conv.engine.direct.plan import DirectPlan
from im2col_conv.engine.im2col.input_grad import GatherPlan
from im2col_conv.engine.im2col.lookup import LookupPlan
from im2col_conv.engine.plan import Plan, scratch_bytes, workers_for
from im2col_conv.engine.settings import get_workers, get_workspace
from im2col_conv.geometry import ConvGeometry

__all__ = ["Explanation", "Pass", "explain"]


@dataclass(frozen=True)
class Pass:
    """One of the three passes: its products and what they take.

    Attributes
    ----------
    name : str
    product : str
        The matrix product of one group, with shapes.
    algorithm : str
        How it is run.
    tiles : int
        Tiles that the product is made in.
    tile : tuple of int
        Images, groups, and the output positions of each axis of a tile.
    workers : int
        Threads that share them.
    scratch : int
        Bytes of scratch memory, all workers together.
    """

    name: str
    product: str
    algorithm: str
    tiles: int
    tile: tuple[int, ...]
    workers: int
    scratch: int


@dataclass(frozen=True)
class Explanation:
    """What the lowering of one layer does; its ``str`` is a readable account.

    Attributes
    ----------
    geometry : ConvGeometry
    dtype : numpy.dtype
        The type of x, w and dout.
    flops : int
        Operations of each pass.
    cols_nbytes : int
        Bytes of the whole column matrix, which only im2col itself makes.
    passes : tuple of Pass
        Forward, backward to the weights, backward to the input.
    """

    geometry: ConvGeometry
    dtype: np.dtype[Any]
    flops: int
    cols_nbytes: int
    passes: tuple[Pass, ...]

    def __str__(self) -> str:
        """Tell the sizes, then each pass."""
        geometry = self.geometry
        lines = [
            str(geometry),
            f"type              {self.dtype}",
            f"column matrix     {geometry.cols_shape}, {_bytes(self.cols_nbytes)} if it were whole",
            f"work of a pass    {_count(self.flops)}FLOP",
        ]
        if geometry.groups > 1:
            lines.append(f"groups            {geometry.groups}, each with the products below")
        for each in self.passes:
            images, groups, *positions = each.tile
            lines += [
                "",
                f"{each.name}",
                f"  product         {each.product}",
                f"  algorithm       {each.algorithm}",
                f"  tiles           {each.tiles} of {images} x {groups} x {tuple(positions)} "
                "(images, groups, positions)",
                f"  workers         {each.workers}",
                f"  scratch memory  {_bytes(each.scratch)}",
            ]
        return "\n".join(lines)


def explain(
    x_shape: Sequence[SupportsIndex],
    w_shape: Sequence[SupportsIndex],
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: SupportsIndex = 1,
    dtype: npt.DTypeLike = np.float32,
) -> Explanation:
    r"""Say what the lowering of a layer does, without doing it.

    Parameters
    ----------
    x_shape : tuple of int
        (N, C, \*spatial).
    w_shape : tuple of int
        (F, C // groups, \*kernel).
    stride, padding, dilation, groups
        As :func:`im2col_conv.conv` takes them.
    dtype : data type
        Of x, w and dout.

    Returns
    -------
    Explanation
        Sizes, operations, bytes and tiles of the three passes with the workers and the workspace
        that are set; ``print`` it.

    Raises
    ------
    TypeError
        Where an argument is of the wrong kind, or ``dtype`` has no convolution.
    ValueError
        Where the sizes do not fit one another.

    Notes
    -----
    Nothing of the size of x is made.

    Examples
    --------
    >>> e = explain((8, 64, 56, 56), (32, 64, 3, 3), padding=1)
    >>> e.geometry.gemm, e.cols_nbytes, e.flops
    (Gemm(M=32, N=25088, K=576), 57802752, 924844032)
    >>> [each.name for each in e.passes]
    ['forward', 'weight gradient', 'input gradient']
    """
    try:
        given = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"dtype must be a data type of numbers, got {dtype!r}") from None
    if dtype is None:  # which NumPy takes for float64
        raise TypeError("dtype must be a data type of numbers, got None")
    check_type("dtype", given)
    geometry = ConvGeometry.from_shapes(
        x_shape,  # type: ignore[arg-type]
        w_shape,  # type: ignore[arg-type]
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,  # type: ignore[arg-type]
    )
    return Explanation(
        geometry=geometry,
        dtype=given,
        flops=geometry.flops,
        cols_nbytes=geometry.cols_nbytes(given),
        passes=_passes(geometry, given),
    )


def _passes(geometry: ConvGeometry, given: np.dtype[Any]) -> tuple[Pass, ...]:
    M, N, K = geometry.gemm
    result, workspace, layout = result_type(np.empty(0, given)), get_workspace(), "channels_first"
    forward = forward_plan("auto", geometry, layout, given, result, workspace)
    weight_grad = weight_grad_plan("auto", geometry, layout, given, given, result, workspace)
    input_grad = input_grad_plan("auto", geometry, layout, given, result, workspace)
    return (
        _pass("forward", f"y ({M}, {N}) = W ({M}, {K}) @ cols ({K}, {N})", forward),
        _pass(
            "weight gradient", f"dw ({M}, {K}) = dout ({M}, {N}) @ cols.T ({N}, {K})", weight_grad
        ),
        _pass("input gradient", _dx_product(geometry, input_grad), input_grad),
    )


def _dx_product(geometry: ConvGeometry, plan: Plan) -> str:
    M, N, K = geometry.gemm
    if isinstance(plan, GatherPlan | LookupPlan | DirectPlan):
        C, cells = geometry.C // geometry.groups, geometry.N * math.prod(geometry.size)
        depth = M * geometry.taps
        return f"dx ({C}, {cells}) = W flipped ({C}, {depth}) @ cols of dout ({depth}, {cells})"
    return f"dx = col2im(W.T ({K}, {M}) @ dout ({M}, {N}))"


def _pass(name: str, product: str, plan: Plan) -> Pass:
    workers, workspace = get_workers(), get_workspace()
    return Pass(
        name=name,
        product=product,
        algorithm=plan.algorithm,
        tiles=plan.tiling.boxes,
        tile=plan.tile_shape,
        workers=workers_for(plan, workers, workspace),
        scratch=scratch_bytes(plan, workers, workspace),
    )


def _bytes(number: int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if number < 1024:
            return f"{number} bytes" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1024  # type: ignore[assignment]
    return f"{number:.1f} GiB"


def _count(number: float) -> str:
    for unit in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} T"
