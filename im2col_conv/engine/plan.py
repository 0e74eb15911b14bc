"""What every pass's plan says of itself, and how many workers it has room for."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

from im2col_conv.arrays import Array
from im2col_conv.engine.blas import LEAST_THREADED
from im2col_conv.engine.tiling import SMALL_FLOPS, Tiling

__all__ = ["Pass", "Plan", "scratch_bytes", "total_of", "workers_for", "workers_for_all"]

Pass: TypeAlias = Literal["forward", "input_grad", "weight_grad"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The tiles of one pass and the scratch memory that they take.

    Attributes
    ----------
    tiling : Tiling
        What one product is made for.
    tasks : int
        What the workers draw from: tiles, or runs of tiles that must stay in order.
    worker_bytes, shared_bytes : int
        Scratch memory of each worker, and of the call whatever its workers.
    work : int
        Floating-point operations of the pass, or as many as large products do in its time.
    at_product : bool
        Whether helpers are asked when the caller's first product begins, not before its copies.
    """

    algorithm: ClassVar[str] = "im2col"
    most_steps: ClassVar[int] = 16  # kept from call to call, of up to some ten kilobytes each

    tiling: Tiling
    tasks: int
    worker_bytes: int
    shared_bytes: int
    work: int
    at_product: bool = False
    steps: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def least_shared(self) -> int:
        """What a pass must cost to be worth a second worker."""
        return SMALL_FLOPS

    @property
    def holds_blas(self) -> bool:
        """Whether NumPy's BLAS makes products of the pass that it might share among threads."""
        return self.work >= LEAST_THREADED

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """A whole tile: (images, groups, *positions)."""
        return self.tiling.step

    def step(self, key: K, draw: Callable[[K], T]) -> T:
        """Return what was drawn for ``key`` in an earlier call, or is drawn now."""
        step: T | None = self.steps.get(key)
        if step is None:
            step = draw(key)
            if len(self.steps) < self.most_steps:
                self.steps[key] = step
        return step


def workers_for(plan: Plan, workers: int, workspace: int) -> int:
    """Return how many of ``workers`` the pass is worth and the workspace holds."""
    if plan.tasks == 1 or plan.work < plan.least_shared:
        return 1
    room = (workspace - plan.shared_bytes) // max(plan.worker_bytes, 1)
    return max(1, min(workers, room, plan.tasks))


def workers_for_all(plans: Sequence[Plan], workers: int, workspace: int) -> int:
    """Return how many of ``workers`` several passes are worth at once; 0 where they do not fit.

    A worker who goes on from one pass to the next keeps the buffers of both.
    """
    shared = sum(plan.shared_bytes for plan in plans)
    room = (workspace - shared) // max(1, sum(plan.worker_bytes for plan in plans))
    worth = sum(plan.work for plan in plans) >= min(plan.least_shared for plan in plans)
    tasks = sum(plan.tasks for plan in plans)
    return min(workers if worth else 1, room, tasks)


def scratch_bytes(plan: Plan, workers: int, workspace: int) -> int:
    """Return the scratch memory that the pass takes with so many workers, in bytes."""
    return plan.shared_bytes + plan.worker_bytes * workers_for(plan, workers, workspace)


def total_of(sums: Array) -> Array:
    """Add partial sums to the first, in order."""
    total: Array = sums[0]
    for partial in sums[1:]:
        total += partial
    return total
