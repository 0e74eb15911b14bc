r"""Forward, the direct way, and dx as the forward pass of dout: no column is ever stored.

The column matrix is all in x, and where its number of row k and column p lies is a sum,

.. math:: \text{cols}[k, p] = x[\alpha_k + \beta_p],

of where the tap and channel k is, seen from a window's first cell, and where the window p is. So
the product W cols needs two short tables in place of the matrix, and one routine that adds them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from im2col_conv.arrays import Array
from im2col_conv.engine.direct.cells import steps_of
from im2col_conv.engine.direct.copied import fill, numbers_of_copy
from im2col_conv.engine.direct.plan import DirectPlan
from im2col_conv.engine.direct.tasks import (
    Lies,
    Of,
    program_of,
    room_for,
    steps_of_lines,
    task_of,
    whole_program,
)
from im2col_conv.engine.direct.weights import arranged
from im2col_conv.engine.jobs import AtOnce, Work
from im2col_conv.engine.machine.crew import shares_here
from im2col_conv.engine.machine.program import Program
from im2col_conv.engine.workers import Scratch, lend_scratch
from im2col_conv.prepared import Weights

__all__ = ["forward"]


def forward(
    plan: DirectPlan, shared: Scratch, x: Array, weights: Weights, b: Array | None, y: Array
) -> Work | AtOnce:
    """Return what fills ``y`` (N, F, *out) with the convolution of ``x``, plus ``b``."""
    geometry, dtype = plan.geometry, plan.dtype
    lies = Lies(steps_of(x, dtype), steps_of_lines(y, dtype, last=plan.last))
    program = whole_program(plan, lies)

    bias = shared.array("bias", (geometry.F + 2 * plan.lanes,), dtype)
    bias[: geometry.F] = 0 if b is None else b
    bias[geometry.F :] = 0

    def arrange(workers: int) -> Array:
        key = "direct", plan.kind, plan.last, plan.flipped, geometry.groups, plan.form, dtype
        return weights.form(key, partial(arranged, plan, workers), shared.array)

    if program is not None and shares_here():
        return AtOnce(partial(_run, program, shared, arrange, [x, y, bias]))
    W = arrange(1)

    def task(index: int, scratch: Scratch) -> None:
        own = plan.step(index, partial(task_of, plan))
        one, at = (program, index) if program else (program_of(plan, lies, [index]), 0)
        numbers = one.numbers_in(Of.COPY)
        if lies.x is None:
            numbers = numbers_of_copy(plan, own.cells, *own.sizes)
        copy = scratch.array("cells of x", (numbers,), dtype)
        if lies.x is None:
            fill(own.cells, copy, x[own.seen])
        sums = y if lies.y is not None else room_for(plan, scratch, own)
        turned = scratch.array("y turned", (one.numbers_in(Of.TURNED),), dtype)
        one.run_task(at, [x, sums, bias, W, copy, turned])
        if lies.y is None:
            y[own.made] = sums

    return Work(task)


def _run(
    program: Program,
    shared: Scratch,
    arrange: Callable[[int], Array],
    arrays: Sequence[Array],
    workers: int,
) -> None:
    """Arrange weights and run all tasks, each worker with a copy of cells of its own."""
    W, (*_, bias) = arrange(workers), arrays
    with ExitStack() as stack:
        lent = [stack.enter_context(lend_scratch()) for _ in range(workers - 1)]
        own = [
            [
                each.array(name, (program.numbers_in(array),), bias.dtype)
                for name, array in (("cells of x", Of.COPY), ("y turned", Of.TURNED))
            ]
            for each in (shared, *lent)
        ]
        program.run([[*arrays, W, *memory] for memory in own])
