"""Which way "auto" takes: one rule from the geometry, the type, the processor and the private BLAS.

Columns copy a cell once for each tap that meets it, and then a product takes as many numbers as it
can. Tap by tap a cell is copied once, or once for each tap of one axis, and products are many and
small. So columns are taken where copies cost little beside the products, or small products take
long. The direct way copies nothing but padding; it is the quicker one unless vectors would be half
empty, or a kernel has one cell, so that nothing need be copied anyway. Nothing is timed at run
time: the bounds were measured (docs/ways.md).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from im2col_conv.engine.im2col import dots
from im2col_conv.engine.im2col.input_grad import gathers
from im2col_conv.engine.implicit.bands import is_depthwise
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.plan import Pass
from im2col_conv.geometry import ConvGeometry

__all__ = ["direct_pays", "tap_by_tap_pays"]

WIDE = frozenset({"SkylakeX", "Cooperlake", "Sapphirerapids"})  # kernels for AVX-512

LEAST_FLOPS, LEAST_FLOPS_OF_PLANES, LEAST_FLOPS_OF_GROUP = 2 * 10**6, 3 * 10**5, 4 * 10**6
SHALLOW, SHALLOW_OF_GROUPS = 64, 32  # numbers that a result is the sum of
LEAST_POSITIONS = 32  # of an image, for kernels of one cell
FEW_ROWS = 12  # channels of a group, which come last, times taps of the axis before the last
# Where a kernel copies all operands: outputs of all images for each filter; channels; filters of a
# group; channels times taps of the last axis.
LEAST_OUTPUTS, FEW_CHANNELS, FEW_FILTERS, DEEP = 4, 4, 64, 128
# Of depthwise layers whose channels come last, for bands and not views: less channels, or so many
# taps; for y where a kernel copies all operands.
FEW_PLANES, MANY_TAPS, MANY_TAPS_PACKED = 16, 16, 28
# For bands to make dw sooner than dots: outputs of all images in a line; where channels come last,
# those of one image, or images; channels.
LINE_OF_ALL, LINE_OF_ONE, MANY_IMAGES, SOME_PLANES = 33, 60, 16, 8

# For the direct way, operations; outputs of a line where channels come first, or filters of a group
# where they come last. For dx: terms that are added beside those of a window that is all inside,
# and where channels come last, how many times more it does than is needed.
LEAST_FLOPS_DIRECT = 10**5
SHORTEST_LINE, FEWEST_SIDE_BY_SIDE = 2, 5
MOST_ADDED, MOST_WASTED, SIDE_BY_SIDE = 1000, 3, 16
FEWEST_FILTERS_OF_DW, FEW_FLOPS_OF_DW = 2, 10**6
# Of kernels of one cell, by what comes first: operations, channels, outputs of all images; for dw
# operations and channels.
LEAST_FLOPS_OF_ONE, MOST_CHANNELS, LEAST_OUTPUTS_OF_DX = 4 * 10**6, 128, 5 * 10**4
LEAST_FLOPS_OF_DW, FEWEST_CHANNELS = 10**6, 3
# And where channels come last: operations, filters; for dx and dw operations, filters and channels.
LEAST_FLOPS_OF_ONE_LAST, FEWEST_FILTERS = 6 * 10**6, 8
LEAST_FLOPS_OF_DEEP, FEWEST_OF_DEEP = 2 * 10**7, 64


def direct_pays(each: Pass, geometry: ConvGeometry, layout: str) -> bool:
    """Say whether a layer that the direct way covers is better summed in registers."""
    last = layout == "channels_last"
    made, read = (n // geometry.groups for n in (geometry.F, geometry.C))
    if geometry.flops < LEAST_FLOPS_DIRECT:
        return False
    if each == "weight_grad":
        return _sums_of_outputs_pay(geometry, made, read, last=last)
    if geometry.groups > 1 and read == 1 and made <= 2:
        return made == 1 or not last or each == "forward"
    if geometry.taps == 1:
        return _sums_of_channels_pay(each, geometry, made, read, last=last)
    if each == "input_grad":
        return _zeros_cost_little(geometry, made, read, last=last)
    return made >= FEWEST_SIDE_BY_SIDE if last else geometry.out[-1] >= SHORTEST_LINE


def _sums_of_outputs_pay(geometry: ConvGeometry, made: int, read: int, *, last: bool) -> bool:
    """Say whether dw is better summed in registers, output by output, than made by large products.

    To arrange dout takes long beside the sums where filters are few.
    """
    if read == 1 and geometry.groups > 1:
        return False
    if geometry.taps == 1:
        enough = geometry.flops >= LEAST_FLOPS_OF_DW and read >= FEWEST_CHANNELS
        return _is_deep(geometry, made, read) if last else enough
    if last:
        return made >= FEWEST_SIDE_BY_SIDE
    return made >= FEWEST_FILTERS_OF_DW or geometry.flops < FEW_FLOPS_OF_DW


def _sums_of_channels_pay(
    each: Pass, geometry: ConvGeometry, made: int, read: int, *, last: bool
) -> bool:
    """Say whether kernels of one cell are better summed in registers than made by one product."""
    if each == "input_grad":
        outputs = geometry.N * geometry.positions
        return _is_deep(geometry, made, read) if last else outputs >= LEAST_OUTPUTS_OF_DX
    if last:
        return geometry.flops >= LEAST_FLOPS_OF_ONE_LAST and made >= FEWEST_FILTERS
    return geometry.flops >= LEAST_FLOPS_OF_ONE and read <= MOST_CHANNELS


def _is_deep(geometry: ConvGeometry, made: int, read: int) -> bool:
    return geometry.flops >= LEAST_FLOPS_OF_DEEP and min(made, read) >= FEWEST_OF_DEEP


def _zeros_cost_little(geometry: ConvGeometry, made: int, read: int, *, last: bool) -> bool:
    """Say whether dx as a convolution does little more than is needed: it adds up padding too."""
    inputs, outputs = math.prod(geometry.size), geometry.positions
    if last:
        side_by_side = -(-read // SIDE_BY_SIDE) * SIDE_BY_SIDE
        return side_by_side * inputs <= MOST_WASTED * read * outputs
    return made * geometry.taps * (inputs - outputs) <= MOST_ADDED * outputs


def tap_by_tap_pays(
    each: Pass,
    geometry: ConvGeometry,
    layout: str,
    dtype: np.dtype[Any],
    blas: OpenBlas | None,
) -> bool:
    """Say whether a layer is better multiplied tap by tap where it lies than as columns."""
    if blas is None or dtype not in blas.types or not (blas.packs or blas.kernel in WIDE):
        return False
    last = layout == "channels_last"
    if geometry.depthwise:
        enough = geometry.flops >= LEAST_FLOPS_OF_PLANES
        return (
            enough
            and is_depthwise(geometry)
            and _bands_pay(each, geometry, dtype, last=last, packs=blas.packs)
        )
    if geometry.flops < LEAST_FLOPS:
        return False
    if geometry.pointwise:
        return _pieces_pay(each, geometry, last=last, packs=blas.packs)
    if blas.packs and not _packing_pays(each, geometry):
        return False
    return _copies_cost_much(each, geometry, last=last)


def _copies_cost_much(each: Pass, geometry: ConvGeometry, *, last: bool) -> bool:
    """Say whether columns take long to copy, or for dx to scatter, beside what they save."""
    summed, shallow = geometry.C, SHALLOW
    if geometry.groups > 1:
        rows = geometry.C // geometry.groups * math.prod(geometry.kernel[-2:-1])
        if last and rows < FEW_ROWS:
            return False  # to turn so few channels takes as long
        shallow = SHALLOW_OF_GROUPS
    if each == "input_grad":
        if not gathers(geometry):
            return geometry.taps > 1
        summed = geometry.F
    elif _windows_are_apart(geometry):
        return False
    return summed // geometry.groups * geometry.taps > shallow


def _windows_are_apart(geometry: ConvGeometry) -> bool:
    """Say whether there is a stride, and along no axis more taps than it."""
    pairs = zip(geometry.kernel, geometry.stride, strict=True)
    return max(geometry.stride) > 1 and all(taps <= stride for taps, stride in pairs)


def _packing_pays(each: Pass, geometry: ConvGeometry) -> bool:
    """Say whether a kernel that copies the operands of each product has few of them to copy.

    Not if outputs are few beside the filters, so that weights take longer to arrange than columns
    to copy, or channels so few that columns cost less anyway. Many filters make columns cheap, but
    products of shifted planes are as large, if they are deep.
    """
    channels, filters = geometry.C // geometry.groups, geometry.F // geometry.groups
    outputs = geometry.N * geometry.positions
    if each == "input_grad":
        return filters <= outputs
    if geometry.groups == 1 and channels < FEW_CHANNELS:
        return False
    planes = geometry.groups == 1 and geometry.ndim > 1 and max(geometry.stride) <= 2
    deep = planes and channels * geometry.kernel[-1] >= DEEP
    return LEAST_OUTPUTS * filters <= outputs and (deep or filters <= FEW_FILTERS)


def _pieces_pay(each: Pass, geometry: ConvGeometry, *, last: bool, packs: bool) -> bool:
    """Say whether kernels of one cell are better multiplied in small products.

    Results that OpenBLAS makes where they belong pay with any kernel.
    """
    if geometry.positions < LEAST_POSITIONS:
        return False
    placed = each == "input_grad" or (each == "forward" and not last)
    if geometry.groups == 1:
        return placed or not packs
    return placed and not packs and geometry.flops >= geometry.groups * LEAST_FLOPS_OF_GROUP


def _bands_pay(
    each: Pass, geometry: ConvGeometry, dtype: np.dtype[Any], *, last: bool, packs: bool
) -> bool:
    """Say whether bands of planes are better than views, or for dw than dots."""
    if each != "weight_grad":
        many = MANY_TAPS_PACKED if packs and each == "forward" else MANY_TAPS
        return not last or geometry.C < FEW_PLANES or geometry.taps >= many
    if last:
        return not packs and _bands_beat_turned_dots(geometry, dtype)
    short = packs or geometry.N * geometry.out[-1] < LINE_OF_ALL
    return not (short and dots.has_lines(geometry, dtype))


def _bands_beat_turned_dots(geometry: ConvGeometry, dtype: np.dtype[Any]) -> bool:
    """Say whether bands make dw sooner than dots of channels that come last, which are turned."""
    turned = dots.has_lines(geometry, dtype) and dots.turning_pays(geometry, dtype)
    many = geometry.N >= MANY_IMAGES or geometry.out[-1] >= LINE_OF_ONE
    return turned and geometry.ndim == 2 and geometry.C >= SOME_PLANES and many
