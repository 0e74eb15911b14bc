"""Which way a pass runs: the one that was named, or for "auto" a fixed rule from measurements.

Nothing is timed at run time: geometry, type and the kernel of the private BLAS decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, Literal, ParamSpec, TypeAlias

import numpy as np

from im2col_conv.arrays import Array, computing_type
from im2col_conv.engine.adjoint import adjoint_of
from im2col_conv.engine.im2col import dots, lookup
from im2col_conv.engine.im2col import forward as im2col_forward
from im2col_conv.engine.im2col import input_grad as im2col_input_grad
from im2col_conv.engine.im2col import weight_grad as im2col_weight_grad
from im2col_conv.engine.im2col.depthwise import is_viewed
from im2col_conv.engine.im2col.input_grad import gathers
from im2col_conv.engine.im2col.phased import PhasedPlan, input_grad_by_phases, plan_phases
from im2col_conv.engine.implicit import forward as implicit_forward
from im2col_conv.engine.implicit import input_grad as implicit_input_grad
from im2col_conv.engine.implicit import weight_grad as implicit_weight_grad
from im2col_conv.engine.implicit.arrangements import LONG_LINE, Made, arrangement_for
from im2col_conv.engine.implicit.bands import bands_for, is_depthwise
from im2col_conv.engine.implicit.inner import ChannelsInner
from im2col_conv.engine.implicit.outer import ChannelsOuter
from im2col_conv.engine.implicit.plan import ImplicitPlan
from im2col_conv.engine.implicit.shifted import Shifted
from im2col_conv.engine.implicit.spread import Spread
from im2col_conv.engine.implicit.tile import SET_BYTES
from im2col_conv.engine.implicit.weight_grad import CHEAP_SUM
from im2col_conv.engine.jobs import Job, Work
from im2col_conv.engine.openblas import OpenBlas, private_blas, why_not
from im2col_conv.engine.plan import Pass, Plan
from im2col_conv.engine.winograd import forward as winograd_forward
from im2col_conv.engine.winograd import plan as winograd_plan
from im2col_conv.engine.workers import Scratch
from im2col_conv.geometry import ConvGeometry
from im2col_conv.prepared import Weights

__all__ = [
    "ALGORITHMS",
    "forward_job",
    "forward_plan",
    "input_grad_job",
    "input_grad_plan",
    "way_of",
    "weight_grad_job",
    "weight_grad_plan",
]

KEPT = 256  # plans of each pass
ALGORITHMS = ("auto", "im2col", "implicit", "winograd")

P = ParamSpec("P")

Way: TypeAlias = Literal["im2col", "implicit", "winograd"]

MADE: dict[Pass, Made] = {"forward": "y", "weight_grad": "dout.T", "input_grad": "dx"}

# Measured: docs/ideas.md.
WIDE = frozenset({"SkylakeX", "Cooperlake", "Sapphirerapids"})  # kernels for AVX-512
# Where a kernel copies all operands: filters of a group that are few, and the most; numbers that a
# tap of the other axes sees; outputs of the last two axes.
FEW_PACKED, MOST_PACKED, DEEP_PACKED, LONG_PACKED = 64, 256, 48, 100
LEAST_FLOPS, LEAST_SCATTERED = 2 * 10**6, 10**6  # and where columns would be scattered
# Of groups: work of all; outputs of all images in a short line, for less than so many channels
# times taps of the axis before the last (for dx where channels come last); weights of an output.
LEAST_FLOPS_OF_GROUPS, LEAST_LINE_OF_GROUPS, FEW_ROWS = 10**6, 16, (12, 16)
FEW_IMAGES, DEEP_WINDOW = 3, 128  # for dw where channels come last: images; numbers of a sum
MOST_WEIGHTS: dict[Pass, int] = {"forward": 2**15, "weight_grad": 2**18}
LEAST_LINE, LEAST_LINE_READ = 2, 12  # outputs; for dw where channels come last
# Of depthwise layers: in all; outputs of a line; those times taps.
LEAST_FLOPS_OF_PLANES, LEAST_LINE_OF_PLANES, LEAST_SUM_OF_PLANES = 3 * 10**5, 5, 300
MOST_DOTTED = 32  # outputs of a line, up to which dots make dw sooner; narrow kernels: always
# Of channels that come last, for bands to make dw sooner than dots: outputs of a line, or images,
# for less than so many taps or more; channels.
LEAST_LINE_BANDED, LEAST_IMAGES_BANDED, MANY_TAPS_BANDED, LEAST_PLANES = 60, (16, 8), 20, 8
SHALLOW, SHALLOWEST = 64, 20  # numbers that a result is the sum of; where lines are long
LEAST_LINE_SHALLOW = 33  # outputs of a long line, which counts for two axes
FEW_CHANNELS = 8  # which do not pay for windows apart where channels come last
MOST_FILTERS = 24  # of shallow windows where channels come last
LINE_BYTES, FEW_SETS = 2**6, 4  # of the first cache; of its sets
# Of pointwise layers: positions of an image; for dw weights, or channels that come last, as of
# depthwise layers below; work and weights of one of several groups.
LEAST_POSITIONS, LEAST_WEIGHTS, LEAST_CHANNELS = 32, 2**10, 16
LEAST_FLOPS_OF_GROUP, LEAST_WEIGHTS_OF_GROUP = 4 * 10**6, 2**9
# Of depthwise layers whose columns are views.
MOST_TAPS, MOST_TAPS_STRIDED, MANY_CHANNELS = 15, 25, 64


def way_of(
    each: Pass, algorithm: str, geometry: ConvGeometry, layout: str, result: np.dtype[Any]
) -> Way:
    """Return how a pass runs whose result has the type ``result``.

    Raises
    ------
    ValueError
        Where the named algorithm does not cover the geometry or the type.
    ImportError
        Where the library that it needs is missing.
    """
    if algorithm == "im2col":
        return "im2col"
    dtype, blas = computing_type(result), private_blas()
    if algorithm == "auto":
        return "implicit" if _implicit_pays(each, geometry, layout, dtype, blas) else "im2col"
    if blas is None:
        raise ImportError(f'algorithm="{algorithm}" needs a private BLAS: {why_not()}')
    if dtype not in blas.types:
        raise ValueError(f'algorithm="{algorithm}" computes in float32 or float64, got {dtype}')
    if algorithm == "implicit":
        return "implicit"
    complaint = winograd_plan.covers(geometry, dtype)
    if complaint is not None:
        raise ValueError(f'algorithm="winograd" does not cover this: {complaint}')
    if each == "forward" or (each == "input_grad" and adjoint_of(geometry) is not None):
        return "winograd"
    return way_of(each, "auto", geometry, layout, result)


def _implicit_pays(
    each: Pass,
    geometry: ConvGeometry,
    layout: str,
    dtype: np.dtype[Any],
    blas: OpenBlas | None,
) -> bool:
    """Say whether a layer is better multiplied tap by tap where it lies than as columns."""
    if blas is None or dtype not in blas.types:
        return False
    if not (_packed_products_pay(each, geometry, layout) if blas.packs else blas.kernel in WIDE):
        return False
    if geometry.depthwise and geometry.ndim == 1:
        return False
    last = layout == "channels_last"
    if last and each == "weight_grad" and dots.has_lines(geometry, dtype):
        turned = dots.turning_pays(geometry, dtype)  # else views pay
        if blas.packs or not (turned and _bands_beat_dots(geometry)):
            return False
    if last and is_viewed(geometry, layout, dtype) and _views_pay(each, geometry, packs=blas.packs):
        return False
    if is_depthwise(geometry):
        return _bands_pay(each, geometry, layout, packs=blas.packs)
    if geometry.pointwise:
        return _plain_products_pay(each, geometry, last=last)
    if geometry.groups > 1:
        return _groups_pay(each, geometry, layout)
    flops = geometry.flops
    if each == "input_grad" and not gathers(geometry):
        return flops >= LEAST_SCATTERED and not _scatter_pays(geometry, dtype, last=last)
    if each == "input_grad":
        return flops >= LEAST_FLOPS and geometry.F * geometry.taps > SHALLOW
    line = geometry.out[-1] * (geometry.N if geometry.stride[-1] == 1 else 1)
    least = LEAST_LINE_READ if each == "weight_grad" and last else LEAST_LINE
    enough = flops >= LEAST_FLOPS and line >= least
    return enough and not _gather_pays(each, geometry, dtype, last=last)


def _packed_products_pay(each: Pass, geometry: ConvGeometry, layout: str) -> bool:
    """Say whether products whose operands the kernel copies are sooner done than those of columns.

    Columns are copied once more for them, which tells where filters are few.
    """
    filters = geometry.F // geometry.groups
    if geometry.pointwise:
        written = each == "forward" and layout == "channels_first"  # where it lies, with its bias
        return geometry.groups == 1 and (written or each == "input_grad")
    if each == "input_grad":
        return filters <= MOST_PACKED
    if filters < FEW_PACKED:
        return True
    lie = arrangement_for(geometry, layout, MADE[each], packs=True)
    if isinstance(lie, Shifted):
        length = math.prod(geometry.out[-2:])
    elif isinstance(lie, ChannelsInner) and lie.interleaved:
        length = geometry.N * geometry.out[-1]
    else:
        return False
    deep = geometry.C * geometry.kernel[-1] >= DEEP_PACKED
    return deep and length >= LONG_PACKED and filters <= MOST_PACKED


def _views_pay(each: Pass, geometry: ConvGeometry, *, packs: bool) -> bool:
    """Say whether depthwise columns that are views are better multiplied than bands of planes."""
    channels, strided = geometry.C, max(geometry.stride) > 1
    many = channels >= MANY_CHANNELS
    if packs and each == "forward" and geometry.ndim > 2 and many:
        return True
    most = MOST_TAPS_STRIDED if strided and many and each != "input_grad" else MOST_TAPS
    slow = each == "input_grad" if strided else each == "weight_grad"
    return geometry.taps <= most and (many or (channels >= LEAST_CHANNELS and not slow))


def _bands_pay(each: Pass, geometry: ConvGeometry, layout: str, *, packs: bool) -> bool:
    """Say whether a depthwise layer has lines that are worth a product."""
    bands = bands_for(geometry, layout, for_dw=each == "weight_grad", packs=packs)
    line = geometry.out[-1] * (geometry.N if bands.interleaved else 1)
    short = line <= MOST_DOTTED or packs
    dotted = layout == "channels_first" and short
    long = {
        "forward": line >= LEAST_LINE_OF_PLANES,
        "weight_grad": line * geometry.taps >= LEAST_SUM_OF_PLANES and not dotted,
        "input_grad": True,
    }
    return geometry.flops >= LEAST_FLOPS_OF_PLANES and long[each]


def _bands_beat_dots(geometry: ConvGeometry) -> bool:
    """Say whether dw of turned channels, which come last, is sooner made by bands than by dots."""
    images, line = geometry.N, geometry.out[-1]
    many = images >= LEAST_IMAGES_BANDED[geometry.taps >= MANY_TAPS_BANDED]
    return geometry.ndim == 2 and geometry.C >= LEAST_PLANES and (many or line >= LEAST_LINE_BANDED)


def _groups_pay(each: Pass, geometry: ConvGeometry, layout: str) -> bool:
    """Say whether groups, of which a tile holds several, are better multiplied tap by tap.

    Not where windows are sooner copied, or where many weights would be arranged for few outputs.
    """
    copied = _are_apart(geometry) and (each != "input_grad" or geometry.taps == 1)
    if geometry.flops < LEAST_FLOPS_OF_GROUPS or copied:
        return False
    arrangement = arrangement_for(geometry, layout, MADE[each], packs=False)
    rows = geometry.C // geometry.groups * math.prod(geometry.kernel[-2:-1])
    if isinstance(arrangement, Spread):
        return arrangement.interleaved and _short_lines_pay(each, geometry)
    last = layout == "channels_last"
    few = FEW_ROWS[last and each == "input_grad"]
    if isinstance(arrangement, ChannelsOuter) and rows < few:
        if geometry.out[-1] >= LONG_LINE:
            strided = geometry.stride[-1] > 1
            return not last and (each == "input_grad" or (each == "forward" and not strided))
        if not _short_lines_pay(each, geometry):
            return False
    shallow = geometry.C // geometry.groups * geometry.taps < DEEP_WINDOW
    if last and each == "weight_grad" and geometry.N < FEW_IMAGES and shallow:
        return False
    outputs, weights = geometry.N * geometry.positions, math.prod(geometry.w_shape)
    return each not in MOST_WEIGHTS or weights <= MOST_WEIGHTS[each] * outputs


def _short_lines_pay(each: Pass, geometry: ConvGeometry) -> bool:
    """Say whether lines of all images are worth a product, for groups of few channels."""
    one_filter = geometry.groups == geometry.F
    enough = geometry.N * geometry.out[-1] >= LEAST_LINE_OF_GROUPS
    return enough and not (each == "input_grad" and one_filter)


def _plain_products_pay(each: Pass, geometry: ConvGeometry, *, last: bool) -> bool:
    """Say whether a layer whose columns are its image is better multiplied in small products."""
    if geometry.positions < LEAST_POSITIONS:
        return False
    weights, groups = math.prod(geometry.w_shape), geometry.groups
    if groups > 1:
        covered = each == "input_grad" or (each == "forward" and not last)
        enough = geometry.flops >= groups * LEAST_FLOPS_OF_GROUP
        return covered and enough and weights >= groups * LEAST_WEIGHTS_OF_GROUP
    many = weights >= LEAST_WEIGHTS or (last and geometry.C >= LEAST_CHANNELS)
    return geometry.flops >= LEAST_FLOPS and (each != "weight_grad" or many)


def _gather_pays(each: Pass, geometry: ConvGeometry, dtype: np.dtype[Any], *, last: bool) -> bool:
    """Say whether the columns of y or dw cost little beside what tap by tap would load."""
    many = last and geometry.F > MOST_FILTERS and not _outputs_collide(geometry, dtype)
    laid = last and geometry.stride[-1] == 1 and _is_laid(each, geometry)
    least = SHALLOWEST if _lines_are_long(each, geometry, last=last) else SHALLOW
    deep = geometry.C * geometry.taps > least
    shallow = geometry.F > 1 and not (many or laid or deep)
    # With a stride, x is loaded for each chunk of filters.
    again = max(geometry.stride) > 1 and each == "weight_grad"
    few = geometry.C < FEW_CHANNELS
    wide = 2 * geometry.F >= geometry.C or geometry.taps == 1  # so that copies take less than work
    once = _are_apart(geometry) and wide and (not last or few or (again and geometry.taps == 1))
    large = math.prod(geometry.w_shape) * dtype.itemsize > CHEAP_SUM
    return shallow or once or (again and large)


def _lines_are_long(each: Pass, geometry: ConvGeometry, *, last: bool) -> bool:
    """Say whether shallow windows of several rows have lines that are worth small products."""
    read = each != "weight_grad" or last or geometry.stride[-1] > 1
    long = geometry.out[-1] >= LEAST_LINE_SHALLOW
    return read and long and geometry.ndim == 2 and geometry.kernel[0] > 1


def _are_apart(geometry: ConvGeometry) -> bool:
    """Say whether no two windows of a layer with a stride overlap."""
    pairs = zip(geometry.kernel, geometry.stride, strict=True)
    return max(geometry.stride) > 1 and all(k <= s for k, s in pairs)


def _is_laid(each: Pass, geometry: ConvGeometry) -> bool:
    """Say whether few channels that come last are laid line under line for short products."""
    return isinstance(
        arrangement_for(geometry, "channels_last", MADE[each], packs=False), ChannelsOuter
    )


def _scatter_pays(geometry: ConvGeometry, dtype: np.dtype[Any], *, last: bool) -> bool:
    """Say whether columns of dx are cells as they are, which are sooner put in their places."""
    strided = geometry.taps == 1 and max(geometry.stride) > 1
    small = math.prod(geometry.w_shape) * dtype.itemsize <= CHEAP_SUM
    return strided and geometry.ndim > 1 and small and not last


def _outputs_collide(geometry: ConvGeometry, dtype: np.dtype[Any]) -> bool:
    """Say whether images cell by cell make products of outputs that are in each other's way.

    Where channels come last, one output of all images is a matrix whose rows are an image apart:
    they fall in few sets of the first cache. Rows that are no whole lines of it are written twice.
    """
    arrangement = arrangement_for(geometry, "channels_last", "y", packs=False)
    if not isinstance(arrangement, Spread) or not arrangement.interleaved:
        return False
    row = geometry.F * dtype.itemsize
    return row % LINE_BYTES != 0 and geometry.positions * row % (SET_BYTES // FEW_SETS) == 0


def _kept(draw: Callable[P, Plan]) -> Callable[P, Plan]:
    """Keep the plans that were drawn, each by all that it follows from: the private BLAS too."""
    anew: Callable[..., Plan] = draw
    kept: Callable[..., Plan] = lru_cache(maxsize=KEPT)(
        lambda _, *given, **named: anew(*given, **named)
    )

    @wraps(draw)
    def plan(*given: P.args, **named: P.kwargs) -> Plan:
        return kept(private_blas(), *given, **named)

    return plan


@_kept
def forward_plan(
    algorithm: str,
    geometry: ConvGeometry,
    layout: str,
    x_type: np.dtype[Any],
    result: np.dtype[Any],
    workspace: int,
) -> Plan:
    """Return the plan of a forward pass."""
    way = way_of("forward", algorithm, geometry, layout, result)
    if way == "winograd":
        return winograd_plan.plan_forward(geometry, computing_type(result), workspace)
    if way == "implicit":
        plan = implicit_forward.plan_forward(
            geometry, layout, computing_type(result), workspace, packs=_blas().packs
        )
        if _fits(plan, algorithm, workspace):
            return plan
    return lookup.plan_lookup("forward", geometry, layout, result, workspace) or (
        im2col_forward.plan_forward(geometry, layout, x_type, result, workspace)
    )


@_kept
def weight_grad_plan(
    algorithm: str,
    geometry: ConvGeometry,
    layout: str,
    x_type: np.dtype[Any],
    dout_type: np.dtype[Any],
    result: np.dtype[Any],
    workspace: int,
) -> Plan:
    """Return the plan of a backward pass to the weights."""
    if way_of("weight_grad", algorithm, geometry, layout, result) == "implicit":
        plan = implicit_weight_grad.plan_weight_grad(
            geometry, layout, computing_type(result), workspace, packs=_blas().packs
        )
        if _fits(plan, algorithm, workspace):
            return plan
    tiles = im2col_weight_grad.plan_weight_grad(
        geometry, layout, x_type, dout_type, result, workspace
    )
    return (
        lookup.plan_lookup("weight_grad", geometry, layout, result, workspace, tiles)
        or dots.plan_dots(geometry, layout, result, workspace)
        or tiles
    )


@_kept
def input_grad_plan(
    algorithm: str,
    geometry: ConvGeometry,
    layout: str,
    dout_type: np.dtype[Any],
    result: np.dtype[Any],
    workspace: int,
) -> Plan:
    """Return the plan of a backward pass to the input."""
    way = way_of("input_grad", algorithm, geometry, layout, result)
    if way == "winograd":
        adjoint = adjoint_of(geometry)
        assert adjoint is not None  # or it would not be the way
        return winograd_plan.plan_forward(adjoint, computing_type(result), workspace)
    if way == "implicit":
        plan = implicit_input_grad.plan_input_grad(
            geometry, layout, computing_type(result), workspace, packs=_blas().packs
        )
        if _fits(plan, algorithm, workspace):
            return plan
    tiles = im2col_input_grad.plan_input_grad(geometry, layout, dout_type, result, workspace)
    return (
        lookup.plan_lookup("input_grad", geometry, layout, result, workspace, tiles)
        or plan_phases(geometry, layout, dout_type, result, workspace)
        or tiles
    )


def _fits(plan: Plan, algorithm: str, workspace: int) -> bool:
    """Say whether one tile fits the workspace; complain where the algorithm was named."""
    needed = plan.shared_bytes + plan.worker_bytes
    if needed > workspace and algorithm == "implicit":
        raise ValueError(
            f'algorithm="implicit" needs a workspace of {needed} bytes for this layer, and '
            f"{workspace} are set: see set_workspace"
        )
    return needed <= workspace


def forward_job(plan: Plan, x: Array, w: Weights, b: Array | None, y: Array) -> Job:
    """Return the job that fills ``y`` as the plan says."""

    def begin(shared: Scratch) -> Work:
        if isinstance(plan, lookup.LookupPlan):
            return lookup.forward(plan, x, w.array, b, y)
        if isinstance(plan, im2col_forward.ForwardPlan):
            return im2col_forward.forward(plan, x, w.array, b, y)
        if isinstance(plan, winograd_plan.WinogradPlan):
            return winograd_forward.forward(plan, _blas(), shared, x, w, b, y)
        assert isinstance(plan, ImplicitPlan)
        return implicit_forward.forward(plan, _blas(), shared, x, w, b, y)

    return Job(plan, begin)


def weight_grad_job(plan: Plan, dout: Array, x: Array, dw: Array | None, db: Array | None) -> Job:
    """Return the job that fills ``dw`` and ``db`` as the plan says; what is None is left out."""

    def begin(shared: Scratch) -> Work:
        if isinstance(plan, lookup.LookupPlan):
            return lookup.weight_grad(plan, dout, x, dw, db)
        if isinstance(plan, im2col_weight_grad.WeightGradPlan):
            return im2col_weight_grad.weight_grad(plan, dout, x, dw, db)
        if isinstance(plan, dots.DotsPlan):
            return dots.weight_grad(plan, private_blas(), dout, x, dw, db)
        assert isinstance(plan, implicit_weight_grad.WeightGradPlan)
        return implicit_weight_grad.weight_grad(plan, _blas(), shared, dout, x, dw, db)

    return Job(plan, begin)


def input_grad_job(plan: Plan, dout: Array, w: Weights, b: Array | None, dx: Array) -> Job:
    """Return the job that fills ``dx`` as the plan says."""

    def begin(shared: Scratch) -> Work:
        if isinstance(plan, lookup.LookupPlan):
            return lookup.input_grad(plan, dout, w.array, b, dx)
        if isinstance(plan, im2col_input_grad.InputGradPlan):
            return im2col_input_grad.input_grad(plan, dout, w.array, b, dx)
        if isinstance(plan, PhasedPlan):
            return input_grad_by_phases(plan, dout, w.array, b, dx)
        if isinstance(plan, im2col_input_grad.GatherPlan):
            return im2col_input_grad.gather(plan, dout, w.array, b, dx)
        if isinstance(plan, winograd_plan.WinogradPlan):
            return winograd_forward.forward(plan, _blas(), shared, dout, w, b, dx, adjoint=True)
        assert isinstance(plan, ImplicitPlan)
        return implicit_input_grad.input_grad(plan, _blas(), shared, dout, w, b, dx)

    return Job(plan, begin)


def _blas() -> OpenBlas:
    blas = private_blas()
    assert blas is not None  # or there would be no such plan
    return blas
