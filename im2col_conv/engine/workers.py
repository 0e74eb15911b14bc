"""Run numbered tasks on threads: the caller works too, and each thread has scratch of its own."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from itertools import count
from typing import Any

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine import blas

__all__ = ["Scratch", "run_tasks"]


class Scratch:
    """Buffers of one thread for one call, each known by a name and used again tile after tile."""

    def __init__(self) -> None:
        self._buffers: dict[str, Array] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return an unfilled array that shares its memory with the last one of this name."""
        nbytes = math.prod(shape) * dtype.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.nbytes < nbytes:
            buffer = self._buffers[name] = np.empty(nbytes, np.uint8)
        return np.ndarray(shape, dtype, buffer)


Task = Callable[[int, Scratch], None]


def run_tasks(task: Task, tasks: int, workers: int) -> None:
    """Call ``task(i, scratch)`` for each i below ``tasks``, on at most ``workers`` threads.

    Products run on one BLAS thread. The first error of a task is raised here, when no task runs any
    more.
    """
    with blas.one_thread():
        if min(workers, tasks) > 1:
            _share(task, tasks, min(workers, tasks))
        else:
            scratch = Scratch()
            for index in range(tasks):
                task(index, scratch)


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

    helpers = [_submit(copy_context().run, work) for _ in range(workers - 1)]
    try:
        work()
    finally:
        # A helper that has not begun has nothing left to do: other calls may keep the pool busy.
        errors = [helper.exception() for helper in helpers if not helper.cancel()]
    for error in errors:
        if error is not None:
            raise error


_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()
_POOL_THREADS = max(os.cpu_count() or 1, 4)


def _submit(run: Callable[[Callable[[], None]], None], work: Callable[[], None]) -> Future[None]:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(_POOL_THREADS, thread_name_prefix="im2col_conv")
        return _pool.submit(run, work)


def _forget_pool() -> None:
    """Start anew in a forked child, where the parent's threads do not exist."""
    global _pool, _pool_lock
    _pool = None
    _pool_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
