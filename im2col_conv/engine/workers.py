"""Run numbered tasks on threads: the caller works too, and each thread has scratch of its own."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np

from im2col_conv.arrays import Array, aligned
from im2col_conv.engine import blas, pool

__all__ = ["Scratch", "run_tasks"]


class Scratch:
    """Buffers of one thread for one call, each known by a name and used again tile after tile."""

    def __init__(self) -> None:
        self._buffers: dict[str, Array | None] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return an unfilled array that shares its memory with the last one of this name."""
        nbytes = math.prod(shape) * dtype.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.nbytes < nbytes:
            buffer = self._buffers[name] = None  # given back before a larger one is asked for
            buffer = self._buffers[name] = aligned((nbytes,), np.dtype(np.uint8))
        return np.ndarray(shape, dtype, buffer)


Task = Callable[[int, Scratch], None]


def run_tasks(task: Task, tasks: int, workers: int) -> None:
    """Call ``task(i, scratch)`` for each i below ``tasks``, on at most ``workers`` threads.

    Products run on one BLAS thread. The first error of a task is raised here, when no task runs any
    more.
    """
    blas.hold()
    try:
        if min(workers, tasks) > 1:
            _share(task, tasks, min(workers, tasks))
        else:
            scratch = Scratch()
            for index in range(tasks):
                task(index, scratch)
    finally:
        blas.let_go()


def _share(task: Task, tasks: int, workers: int) -> None:
    """Let ``workers`` threads, the caller first, draw the tasks one after another."""
    numbers = count()
    failed = threading.Event()

    def work() -> None:
        scratch = Scratch()
        while not failed.is_set() and (index := next(numbers)) < tasks:
            try:
                task(index, scratch)
            except BaseException:
                failed.set()
                raise

    helpers = [each for _ in range(workers - 1) if (each := pool.ask(work)) is not None]
    try:
        work()
    finally:
        errors = [each.end() for each in helpers]
    for error in errors:
        if error is not None:
            raise error
