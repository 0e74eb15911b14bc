"""The plan of a direct pass: what its sums are, and how large a tile is."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, TypeVar

import numpy as np

from im2col_conv.engine.adjoint import adjoint_of
from im2col_conv.engine.direct.cells import Cells, cells_of
from im2col_conv.engine.direct.kernel import Kind
from im2col_conv.engine.direct.kinds import form_for, kind_of
from im2col_conv.engine.machine.assembler import Form
from im2col_conv.engine.machine.crew import shares_here
from im2col_conv.engine.machine.program import Program
from im2col_conv.engine.plan import Pass, Plan
from im2col_conv.engine.tiling import EVEN, SHARES, Tiling, cut_evenly, overlap_of
from im2col_conv.geometry import ConvGeometry
from im2col_conv.lowering import Slices

__all__ = [
    "TYPES",
    "DirectPlan",
    "KeepingPlan",
    "covers",
    "cut_to_fit",
    "plan_direct",
    "shares_of",
    "work_of",
]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

TYPES = (np.dtype(np.float32), np.dtype(np.float64))

# Measured: docs/ideas.md.
TILE_BYTES = 2**22
LEAST_SHARED = 10**7
CELL_COST = 16  # operations in the time in which a number is copied or stored
SHARE_WORK = 5 * 10**6
FEW_COPIES = 2  # of each cell: for more, tiles are made fewer, and larger than the cache
FEWEST_SHARES = 2
MOST_TABLES = 24  # kept from call to call, of up to some hundred kilobytes each
MOST_PARTS = 100  # of outputs that meet the same taps, none of which is padding
MOST_PROGRAMS, MOST_TASKS_KEPT = 4, 32  # which keep their tables; and of how many tasks
_OF_LINES = (Kind.FILTERS, Kind.PLANES)  # whose vectors are read along lines of cells


@dataclass(frozen=True, kw_only=True)
class KeepingPlan(Plan):
    """A plan of any direct pass, which keeps tables and programs from call to call.

    Attributes
    ----------
    geometry : ConvGeometry
    form : Form
        Of the vectors.
    dtype : dtype
    last : bool
        Whether channels come last.
    """

    algorithm: ClassVar[str] = "direct"
    most_steps: ClassVar[int] = 256

    geometry: ConvGeometry
    form: Form
    dtype: np.dtype[Any]
    last: bool
    tables: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)
    programs: dict[Hashable, Program] = field(default_factory=dict, compare=False, repr=False)

    def program(self, key: K, draw: Callable[[K], Program]) -> Program:
        """Return the program that was drawn for ``key`` in an earlier call, or is drawn now."""
        return _kept(self.programs, MOST_PROGRAMS, key, draw)

    def table(self, key: K, draw: Callable[[K], T]) -> T:
        """Return tables that were drawn for ``key`` in an earlier call, or are drawn now."""
        return _kept(self.tables, MOST_TABLES, key, draw)

    @property
    def lanes(self) -> int:
        """The numbers of a vector."""
        return self.form.lanes(self.dtype)

    @property
    def least_shared(self) -> int:
        """What a pass must cost to be worth a second worker."""
        return LEAST_SHARED

    @property
    def holds_blas(self) -> bool:
        """Whether NumPy's BLAS has a part in it."""
        return False


@dataclass(frozen=True, kw_only=True)
class DirectPlan(KeepingPlan):
    """Tiles over (groups, N, *out) of a convolution, or of the one that makes dx.

    Attributes
    ----------
    kind : Kind
    flipped : bool
        Whether the geometry is that of dout with the weights flipped.
    copied_again : float
        How often a cell is copied, in the mean.
    """

    kind: Kind
    flipped: bool
    copied_again: float

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """A whole tile: (images, groups, *positions)."""
        groups, images, *positions = self.tiling.step
        return (images, groups, *positions)

    def cells(self, box: Slices) -> tuple[Cells, Slices]:
        """Return the cells that a box of outputs sees."""
        planes, phased = self.kind is Kind.PLANES, self.kind in _OF_LINES
        return cells_of(self.geometry, box, last=self.last, planes=planes, phased=phased)

    @property
    def turns(self) -> bool:
        """Whether results are made with filters side by side, and then turned."""
        return self.kind is Kind.OUTPUTS and not self.last


def _kept(kept: dict[Hashable, Any], most: int, key: K, draw: Callable[[K], T]) -> T:
    found: T | None = kept.get(key)
    if found is None:
        found = draw(key)
        if len(kept) < most:
            kept[key] = found
    return found


def covers(each: Pass, geometry: ConvGeometry) -> bool:
    """Say whether a pass can run the direct way: y always, dx where it is a convolution of dout.

    dw where threads share what is in machine code.

    Examples
    --------
    >>> geometry = ConvGeometry.from_shapes((2, 3, 9, 8), (4, 3, 3, 5), stride=(1, 2))
    >>> covers("forward", geometry), covers("input_grad", geometry)
    (True, False)
    """
    if each == "weight_grad":
        return shares_here()
    return each == "forward" or adjoint_of(geometry) is not None


@lru_cache(maxsize=256)
def plan_direct(
    geometry: ConvGeometry,
    layout: str,
    dtype: np.dtype[Any],
    workspace: int,
    forms: tuple[Form, ...],
    *,
    flipped: bool,
) -> DirectPlan:
    """Draw the tiles of a forward pass, or ``flipped``, of the one that makes dx."""
    run = adjoint_of(geometry) if flipped else geometry
    assert run is not None  # or it would not be covered
    last = layout == "channels_last"
    kind = kind_of(run, forms, dtype, last=last)
    form = form_for(run, kind, forms, dtype)
    lanes = form.lanes(dtype)
    shared = _shared_numbers(run, kind, lanes) * dtype.itemsize
    tiling = _tiles(run, kind, dtype, lanes, workspace - shared, last=last)
    return DirectPlan(
        tiling=tiling,
        tasks=tiling.boxes,
        worker_bytes=_tile_bytes(run, kind, tiling, dtype, lanes, last=last),
        copied_again=_copied_again(run, tiling, last=last),
        shared_bytes=shared,
        work=work_of(run),
        geometry=run,
        kind=kind,
        form=form,
        dtype=dtype,
        last=last,
        flipped=flipped,
    )


def work_of(geometry: ConvGeometry) -> int:
    """Return the operations that could be done in the time of a pass."""
    numbers = math.prod(geometry.x_shape) + math.prod(geometry.y_shape)
    return geometry.flops + CELL_COST * numbers


def shares_of(geometry: ConvGeometry) -> int:
    """Return in how many parts a pass should come, for workers to share."""
    work = work_of(geometry)
    return 1 if work < LEAST_SHARED else max(2, min(SHARES, work // SHARE_WORK))


def _shared_numbers(geometry: ConvGeometry, kind: Kind, lanes: int) -> int:
    """Return the numbers of weights as they are read, and of a bias: all, whether copied or not."""
    filters = geometry.F // geometry.groups
    rows = geometry.C // geometry.groups * geometry.taps * geometry.groups
    row = -(-filters // (2 * lanes)) * 2 * lanes if kind is Kind.OUTPUTS else filters
    return rows * row + geometry.F + 4 * lanes


def _tiles(
    geometry: ConvGeometry,
    kind: Kind,
    dtype: np.dtype[Any],
    lanes: int,
    available: int,
    *,
    last: bool,
) -> Tiling:
    """Return tiles whose copy of cells the cache holds, and as many as workers may share.

    Fewer and larger ones, where they would see the same cells again and again.
    """
    most, found = max(available, 0) // 4, []
    for room in (min(TILE_BYTES, most), most):
        shares = shares_of(geometry)
        while True:
            tiling = _cut(geometry, kind, dtype, lanes, room, shares, last=last)
            again = _copied_again(geometry, tiling, last=last)
            if again <= FEW_COPIES:
                return tiling
            found.append((again, tiling))
            if shares <= FEWEST_SHARES:
                break
            shares //= 2
    return min(found, key=lambda each: each[0])[1]


def _cut(
    geometry: ConvGeometry,
    kind: Kind,
    dtype: np.dtype[Any],
    lanes: int,
    room: int,
    shares: int,
    *,
    last: bool,
) -> Tiling:
    """Return at least so many tiles, which take no more than so much room if they can."""
    groups = 1 if kind is Kind.CHANNELS else geometry.groups  # which are all in one vector
    return cut_to_fit(
        (groups, geometry.N, *geometry.out),
        shares,
        (0, *overlap_of(geometry)),
        lambda tiling: _tile_bytes(geometry, kind, tiling, dtype, lanes, last=last) <= room,
    )


def cut_to_fit(
    extent: tuple[int, ...],
    shares: int,
    overlap: Sequence[float],
    fits: Callable[[Tiling], bool],
) -> Tiling:
    """Return at least so many tiles, and so small that they fit, if any do."""
    cells = max(-(-math.prod(extent) // shares), 1)
    while True:
        tiling = cut_evenly(extent, cells, min(shares, EVEN), overlap)
        if cells == 1 or fits(tiling):
            return tiling
        cells = max(1, cells * 2 // 3)


def _copied_again(geometry: ConvGeometry, tiling: Tiling, *, last: bool) -> float:
    """Return how often a cell is copied, in the mean: tiles of windows far apart see the same."""
    tile, whole = (
        cells_of(geometry, tuple(slice(0, n) for n in outs), last=last)[0].numbers(1, 1)
        for outs in (tiling.step[2:], geometry.out)
    )
    return math.prod(tiling.counts[2:]) * tile / whole


def _tile_bytes(
    geometry: ConvGeometry,
    kind: Kind,
    tiling: Tiling,
    dtype: np.dtype[Any],
    lanes: int,
    *,
    last: bool,
) -> int:
    """Return what a worker takes: the copy of a tile's cells, its results, and its tables."""
    groups, images, *outs = tiling.step
    if not all(tiling.step):
        return 0
    cells, _ = cells_of(geometry, tuple(slice(0, n) for n in outs), last=last, phased=not last)
    if kind is Kind.CHANNELS:
        groups = geometry.groups
    channels, filters = (n // geometry.groups * groups for n in (geometry.C, geometry.F))
    made = images * filters * math.prod(outs)
    numbers = cells.numbers(images, channels) + lanes + made
    return numbers * dtype.itemsize + _table_bytes(cells, images, channels, filters, lanes)


def _table_bytes(cells: Cells, images: int, channels: int, filters: int, lanes: int) -> int:
    """Return about what the tables of a tile take when they are made: some numbers for each row."""
    copied = (1 if cells.last else channels) * cells.phases * math.prod(cells.extent[:-1])
    lines = math.prod(cells.outs[:-1])
    vectors = lines * -(-(filters if cells.last else cells.outs[-1]) // lanes)
    terms = channels * math.prod(cells.kernel)
    return 150 * (copied + vectors + lines + images * filters) + 40 * terms
