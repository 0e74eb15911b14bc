"""Passes as work for several threads: one alone, or both gradients of a layer at once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import NamedTuple

from im2col_conv.engine.plan import Plan, workers_for, workers_for_all
from im2col_conv.engine.workers import Scratch, Task, drop_scratch, lend_scratch, run_tasks

__all__ = ["AtOnce", "Job", "Work", "in_a_row", "run_alone", "run_jobs"]


def _nothing(workers: int) -> None:
    pass


class Work(NamedTuple):
    """What a pass has to do: its tasks, which workers may share, and what comes after them."""

    task: Task
    finish: Callable[[int], None] = _nothing


class AtOnce(NamedTuple):
    """A pass whose tasks need no interpreter: what runs them all, with so many workers."""

    run: Callable[[int], None]


class Job(NamedTuple):
    """A pass: its plan, and what begins it, given the buffers that its workers share."""

    plan: Plan
    begin: Callable[[Scratch], Work | AtOnce]


def run_jobs(jobs: Sequence[Job], workers: int, workspace: int) -> None:
    """Run passes that do not depend on one another, at once where the workspace holds them all.

    At once, a worker who finds nothing more to do in one pass goes on with the next.
    """
    apart = [workers_for(job.plan, workers, workspace) for job in jobs]
    if len(jobs) < 2:
        _run(jobs, apart, max(apart, default=1))
        return
    together = workers_for_all([job.plan for job in jobs], workers, workspace)
    if together >= max(apart):
        _run(jobs, apart, together)
        return
    for job, alone in zip(jobs, apart, strict=True):
        drop_scratch()  # what one pass leaves for later calls the workspace does not hold as well
        _run([job], [alone], alone)


def _run(jobs: Sequence[Job], apart: Sequence[int], together: int) -> None:
    """Run passes: those that need no interpreter each alone, after all others."""
    with lend_scratch() as shared:
        works = [job.begin(shared) for job in jobs]
        others, last = [], []
        for job, work, alone in zip(jobs, works, apart, strict=True):
            if isinstance(work, AtOnce):
                last.append(partial(work.run, alone))
            else:
                others.append((job.plan, work, alone))
        if len(others) == 1:
            run_alone(*others[0])
        elif others:
            _run_together(others, together)
        for run in last:
            run()


def run_alone(plan: Plan, work: Work, workers: int) -> None:
    """Run a pass with so many workers."""
    at_product = plan.at_product and plan.tasks >= 2 * workers
    run_tasks(work.task, plan.tasks, workers, holds_blas=plan.holds_blas, at_product=at_product)
    work.finish(workers)


def _run_together(others: Sequence[tuple[Plan, Work, int]], workers: int) -> None:
    tasks = [plan.tasks for plan, _, _ in others]
    task = in_a_row([work.task for _, work, _ in others], tasks)
    holds_blas = any(plan.holds_blas for plan, _, _ in others)
    run_tasks(task, sum(tasks), workers, holds_blas=holds_blas)
    for _, work, _ in others:
        work.finish(workers)


def in_a_row(tasks: Sequence[Task], counts: Sequence[int]) -> Task:
    """Return the task of several, ``counts`` of each, that are numbered one after another."""
    ends = list(accumulate(counts))

    def task(index: int, scratch: Scratch) -> None:
        at = bisect_right(ends, index)
        tasks[at](index - ends[at] + counts[at], scratch)

    return task
