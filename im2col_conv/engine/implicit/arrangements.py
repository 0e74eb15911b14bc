"""Which arrangement of a tile's numbers suits a geometry: a rule from measurements."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

from im2col_conv.engine.adjoint import adjoint_of
from im2col_conv.engine.implicit.bands import bands_for, is_depthwise
from im2col_conv.engine.implicit.inner import ChannelsInner
from im2col_conv.engine.implicit.lines import BLOCK
from im2col_conv.engine.implicit.outer import ChannelsOuter
from im2col_conv.engine.implicit.pointwise import Pointwise
from im2col_conv.engine.implicit.shifted import Shifted
from im2col_conv.engine.implicit.spread import Spread
from im2col_conv.engine.implicit.tile import SPARE, Arrangement
from im2col_conv.engine.implicit.unrolled import Unrolled
from im2col_conv.geometry import ConvGeometry

__all__ = ["Made", "arrangement_for"]

# Measured: docs/ideas.md.
FEW = 200  # channels times taps of the last two axes
FEWEST = 4  # channels, with the taps of two axes however many
MANY = 16  # channels that are deep enough for a product where they lie innermost
DEEP, DEEPEST = 16, 100  # channels times taps of the axis before the last
# Images that make a long line of short ones: where channels come last, or lines lie by phases.
FEW_IMAGES = 8
MANY_PHASED = 32  # channels of dx with a stride that lie better innermost
DEEP_PHASED = 12  # as DEEP, where channels come last, with a stride
# Channels that come last and are better left so, where lines are short for dw; filters for y.
MANY_TURNED, MANY_TURNED_SHORT, FEW_FILTERS = 24, 12, 32
LONG_LINE = 20
WORTH_TURNING = 160, 200  # numbers of a window, for y to be made in rows of filters: outer, spread
LEAST_FILTERS = 2, 8  # for each output of all images, to copy windows and not weights: y; dx, dw
MOST_WEIGHTS = 2**22  # of one group, so that the workspace holds its windows as well
MANY_IMAGES = 16  # that make a product of one output of each
# Where a kernel copies all operands, and then of those above only FEW_IMAGES, LONG_LINE
# and MANY_IMAGES: channels below which dx is better spread, and from which they lie better
# innermost; outputs of all images in a line, below which they are too few for a product; filters,
# and channels times taps of a line, of large products.
FEW_SPREAD, MANY_PACKED = 5, 32
SHORT_LINE, MANY_FILTERS, DEEP_SHIFTED = 32, 32, 96

Made: TypeAlias = Literal["y", "dx", "dout.T"]
"""What a tile makes, by name; for dw it is the part of dout that is read."""


def arrangement_for(geometry: ConvGeometry, layout: str, made: Made, *, packs: bool) -> Arrangement:
    """Return how a tile lies: by the channels that an output sees, and where they lie.

    And by whether the library's kernel ``packs``: copies the operands of small products too.
    """
    last = layout == "channels_last"
    if is_depthwise(geometry):
        return bands_for(geometry, layout, for_dw=made == "dout.T", packs=packs)
    if geometry.pointwise:
        return Pointwise(by_rows=last, packed=packs and made != "dout.T")
    of = _of_packed_products if packs else _of_short_products
    return of(geometry, made, last=last)


def _of_packed_products(geometry: ConvGeometry, made: Made, *, last: bool) -> Arrangement:
    """Return how a tile lies for products whose operands are copied all the same.

    Then a product should be large, and there is no need to choose for it between rows and columns.
    """
    channels, one = geometry.C // geometry.groups, geometry.groups == 1
    if one and geometry.ndim > 1 and _large_products_pay(geometry, made, last=last):
        return Shifted(last, kernel=geometry.kernel[-1], stride=geometry.stride[-2])
    phases = geometry.kernel[-1] < geometry.stride[-1]  # some of which no tap meets
    if phases or (one and made == "dx" and channels < FEW_SPREAD):
        return _spread(geometry, last=last, by_rows=last)
    if channels < MANY_PACKED or (made != "dx" and not last):
        return _outer(geometry, made, last=last, by_rows=False)
    return _inner(geometry, last=last)


def _large_products_pay(geometry: ConvGeometry, made: Made, *, last: bool) -> bool:
    """Say whether planes are sooner shifted, so that a product takes many of their lines."""
    if made == "dx":
        many = max(geometry.F, MANY_PACKED) <= geometry.C
        return many and adjoint_of(geometry) is not None
    deep = max(geometry.stride) <= 2 and geometry.C * geometry.kernel[-1] >= DEEP_SHIFTED
    alone = last and geometry.C >= MANY_PACKED and geometry.stride[-1] > 1  # as ``inner`` has them
    line = geometry.out[-1] * (1 if alone else geometry.N)
    return line < SHORT_LINE or (geometry.F >= MANY_FILTERS and deep)


def _of_short_products(geometry: ConvGeometry, made: Made, *, last: bool) -> Arrangement:
    """Return how a tile lies for products that a kernel makes of operands where they are."""
    channels = geometry.C // geometry.groups
    rows = channels * math.prod(geometry.kernel[-2:-1])
    deep = _least_rows(geometry, last=last)
    if deep <= rows <= DEEPEST and _lines_pay(geometry, made, last=last):
        turns = _turns(geometry, made, WORTH_TURNING[0])
        return _outer(geometry, made, last=last, by_rows=turns)
    few = rows * geometry.kernel[-1] <= FEW or (channels <= FEWEST and geometry.ndim > 1)
    if few and not (last and channels >= MANY):
        turns = _turns(geometry, made, WORTH_TURNING[1])
        return _spread(geometry, last=last, by_rows=last or turns)
    if _unrolls(geometry, made):
        return Unrolled(geometry.kernel, geometry.stride, geometry.reach, by_rows=made == "dout.T")
    return _inner(geometry, last=last)


def _inner(geometry: ConvGeometry, *, last: bool) -> ChannelsInner:
    stride, long = geometry.stride[-1], geometry.out[-1] >= LONG_LINE
    return ChannelsInner(stride == 1 and not long, planes=long and not last, stride=stride)


def _spread(geometry: ConvGeometry, *, last: bool, by_rows: bool) -> Spread:
    short = geometry.out[-1] < LONG_LINE
    return Spread(
        short and (not last or geometry.N >= MANY_IMAGES),
        kernel=geometry.kernel[-1],
        stride=geometry.stride[-1],
        reach=geometry.reach[-1],
        by_rows=by_rows,
    )


def _least_rows(geometry: ConvGeometry, *, last: bool) -> int:
    """Return the channels, times taps of the axis before the last, that pay for such lines."""
    groups = geometry.groups > 1
    if geometry.stride[-1] == 1:
        return 1 if groups else DEEP
    if last:
        return DEEP_PHASED
    return 1 if geometry.ndim == 2 or (groups and geometry.ndim > 2) else DEEP


def _lines_pay(geometry: ConvGeometry, made: Made, *, last: bool) -> bool:
    """Say whether few channels are well laid line under line."""
    phased = geometry.stride[-1] == 1 or _phases_pay(geometry, made, last=last)
    return phased and (not last or _turning_pays(geometry, made))


def _phases_pay(geometry: ConvGeometry, made: Made, *, last: bool) -> bool:
    """Say whether cells that are a stride apart are well laid in lines of each phase.

    Not those of long strides: phases that no tap meets would be copied as well.
    """
    if geometry.kernel[-1] < geometry.stride[-1]:
        return False
    channels = geometry.C // geometry.groups
    if made == "dx":
        return channels < MANY_PHASED
    if last and made == "y":
        return channels < MANY
    many = geometry.groups > 1 or (geometry.N >= FEW_IMAGES and not last)
    return geometry.out[-1] >= LONG_LINE or many


def _turning_pays(geometry: ConvGeometry, made: Made) -> bool:
    """Say whether few channels that come last are sooner laid line under line than left so."""
    channels, long = geometry.C // geometry.groups, geometry.out[-1] >= LONG_LINE
    few = geometry.groups == geometry.stride[-1] == 1 and channels <= FEWEST
    if geometry.ndim == 1 or few:
        return False
    if made == "y":
        return channels < MANY or (long and geometry.F // geometry.groups <= FEW_FILTERS)
    if made == "dx":
        return channels < MANY_TURNED and channels % SPARE > 0
    return channels < (MANY if long else MANY_TURNED_SHORT) and (
        long or _lie_cell_by_cell(geometry)
    )


def _outer(geometry: ConvGeometry, made: Made, *, last: bool, by_rows: bool) -> ChannelsOuter:
    """Return lines under each other; where channels come last, y has rows of filters already."""
    together = geometry.out[-1] < LONG_LINE
    if last and made == "y":
        together = together and _lie_cell_by_cell(geometry)
        by_rows = not together
    return ChannelsOuter(interleaved=together, by_rows=by_rows, stride=geometry.stride[-1])


def _lie_cell_by_cell(geometry: ConvGeometry) -> bool:
    """Say whether short lines that come last are better of all images; those of groups always."""
    return geometry.groups > 1 or geometry.N >= FEW_IMAGES


def _turns(geometry: ConvGeometry, made: Made, deep: int) -> bool:
    """Say whether y is sooner made in rows of filters, and turned, than in lines of outputs."""
    filters, channels = (n // geometry.groups for n in (geometry.F, geometry.C))
    return (
        made == "y"
        and geometry.ndim > 1
        and LONG_LINE <= geometry.out[-1] < BLOCK
        and filters % SPARE == 0
        and channels * geometry.taps >= deep
    )


def _unrolls(geometry: ConvGeometry, made: Made) -> bool:
    """Say whether windows are sooner copied than weights are arranged."""
    least = LEAST_FILTERS[made != "y"] * geometry.N * geometry.positions
    few = math.prod(geometry.w_shape) <= MOST_WEIGHTS
    return geometry.groups == 1 and least <= geometry.F and few
