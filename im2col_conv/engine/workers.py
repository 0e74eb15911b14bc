"""Run numbered tasks on threads: the caller works too, and each thread has scratch of its own."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from im2col_conv.arrays import Array, aligned
from im2col_conv.engine import blas, pool
from im2col_conv.engine.machine.crew import make_room
from im2col_conv.engine.processors import parted

__all__ = ["Scratch", "Task", "drop_scratch", "lend_scratch", "run_tasks"]


KEPT_BYTES = 2**25  # of all buffers that wait for the next call
TINY_BYTES = 2**14  # of buffers that are always kept

_kept: list[Scratch] = []


class Scratch:
    """Buffers of one thread, each known by a name and used again tile after tile, call after call.

    New memory costs a page fault every 4 KiB: more than a small layer does with it.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Array | None] = {}
        self._used: set[str] = set()
        self._known: dict[str, tuple[object, Array]] = {}
        self._waits: Callable[[], None] | None = None
        self.of_helper = False
        self.nbytes = 0

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return an unfilled array that shares its memory with the last one of this name."""
        nbytes = math.prod(shape) * dtype.itemsize
        self._known.pop(name, None)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.nbytes < nbytes:
            # What an earlier call left is given back before anything new is asked for.
            self._buffers = {each: self._buffers[each] for each in self._used}
            buffer = self._buffers[name] = None
            buffer = self._buffers[name] = aligned((nbytes,), np.dtype(np.uint8))
            self.nbytes = sum(each.nbytes for each in self._buffers.values() if each is not None)
        self._used.add(name)
        return np.ndarray(shape, dtype, buffer)

    def know(self, name: str, what: object, array: Array) -> None:
        """Note what ``array`` holds, until another of this name is asked for."""
        self._known[name] = what, array

    def known(self, name: str, what: object) -> Array | None:
        """Return the array of this name if it holds just ``what``."""
        held, array = self._known.get(name, (None, None))
        return array if held == what else None

    def let_wait(self, what: Callable[[], None]) -> None:
        """Have ``what`` wait until this thread's first product begins."""
        self._waits = what

    def begin_product(self) -> None:
        """Say that a product begins, in which others find the interpreter's lock free."""
        if self._waits is not None:
            waits, self._waits = self._waits, None
            waits()

    def __enter__(self) -> Scratch:
        """Use these buffers for a call."""
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Leave them to a later call, if they are small."""
        self._used.clear()
        self._known.clear()
        self._waits, self.of_helper = None, False
        if self.nbytes <= TINY_BYTES or self.nbytes + _waiting() <= KEPT_BYTES:
            _kept.append(self)


def _waiting() -> int:
    return sum(scratch.nbytes for scratch in _kept)


def lend_scratch() -> Scratch:
    """Return buffers to use under ``with``: those of an earlier call, if there are any."""
    try:
        return _kept.pop()
    except IndexError:
        return Scratch()


def drop_scratch() -> None:
    """Give back the memory that waits for the next call."""
    _kept.clear()


Task = Callable[[int, Scratch], None]


def run_tasks(
    task: Task, tasks: int, workers: int, *, holds_blas: bool = True, at_product: bool = False
) -> None:
    """Call ``task(i, scratch)`` for each i below ``tasks``, on at most ``workers`` threads.

    Where ``holds_blas``, its products run on one BLAS thread. Helpers are asked at once, or
    ``at_product``: when a task of the caller first says that its product begins. The first error of
    a task is raised here, when no task runs any more.
    """
    if holds_blas:
        blas.hold()
    try:
        if min(workers, tasks) > 1:
            _share(task, tasks, min(workers, tasks), at_product=at_product)
        else:
            with lend_scratch() as scratch:
                for index in range(tasks):
                    task(index, scratch)
    finally:
        if holds_blas:
            blas.let_go()


class _Row:
    """Tasks in a row, which are drawn from both ends.

    Neighbours often read the same cells or weights. So a worker goes on to the next one, and two
    workers do not begin beside each other.
    """

    def __init__(self, tasks: int) -> None:
        self._first, self._end = 0, tasks
        self._drawing = threading.Lock()

    def draw(self, *, last: bool) -> int | None:
        """Return the first task that is left, or the last; None where none is."""
        with self._drawing:
            if self._first >= self._end:
                return None
            if last:
                self._end -= 1
                return self._end
            self._first += 1
            return self._first - 1

    def clear(self) -> None:
        """Let nobody draw any more."""
        with self._drawing:
            self._end = self._first


def _share(task: Task, tasks: int, workers: int, *, at_product: bool) -> None:
    """Let ``workers`` threads draw the tasks: the caller from the front, the next from behind."""
    row = _Row(tasks)
    helpers: list[pool.Help] = []

    def work(number: int, scratch: Scratch) -> None:
        while (index := row.draw(last=number % 2 == 1)) is not None:
            try:
                task(index, scratch)
            except BaseException:
                row.clear()
                raise

    def help_out(number: int) -> None:
        with lend_scratch() as scratch:
            scratch.of_helper = True
            work(number, scratch)

    with parted() as left, lend_scratch() as own:

        def ask() -> None:
            make_room()
            asked = (pool.ask(partial(help_out, number), left) for number in range(1, workers))
            helpers.extend(each for each in asked if each is not None)

        try:
            if at_product:
                own.let_wait(ask)
            else:
                ask()
            work(0, own)
        finally:
            errors = [each.end() for each in helpers]
    for error in errors:
        if error is not None:
            raise error
