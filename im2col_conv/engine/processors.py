"""Where threads run: a helper elsewhere than who asks it, if the system lets us say so.

A thread that is woken is put where it ran last or where its waker runs. Some systems, virtual
machines above all, put it beside the waker although another processor is idle, and move it only
milliseconds later: longer than a layer takes (docs/performance.md). So as long as a call shares its
work, the calling thread keeps to the processor on which it is, and helpers to the others of those
that it may use.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress
from functools import cache
from typing import Generic, TypeVar

__all__ = ["MOST_HELPERS", "HelperThread", "Team", "others", "parted"]

MOST_HELPERS = max(os.cpu_count() or 1, 4)


class HelperThread(threading.Thread):
    """A thread that can be told where to run, and keeps no process alive."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._processors: Set[int] = frozenset()

    def go_to(self, processors: Set[int]) -> None:
        """Use these processors from now on; as before, if there are none or the system refuses."""
        if processors and processors != self._processors and self.native_id is not None:
            with suppress(OSError):
                os.sched_setaffinity(self.native_id, processors)
                self._processors = processors


H = TypeVar("H", bound=HelperThread)


class Team(Generic[H]):
    """Helpers of one kind: those that are idle, and how many there are.

    Parameters
    ----------
    new : callable
        Makes a helper, which has yet to start.
    """

    def __init__(self, new: Callable[[], H]) -> None:
        self.idle: list[H] = []
        self.started = 0
        self._new = new
        self._starting = threading.Lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._start_anew)

    def take(self, processors: Set[int]) -> H | None:
        """Return a helper that nobody else has, on one of the ``processors``; None for none."""
        try:
            helper: H | None = self.idle.pop()
        except IndexError:
            helper = self._one_more()
        if helper is not None:
            helper.go_to(processors)
        return helper

    def _one_more(self) -> H | None:
        with self._starting:
            if self.started == MOST_HELPERS:
                return None
            helper = self._new()
            try:
                helper.start()
            except RuntimeError:  # no thread is to be had, or the interpreter is about to exit
                return None
            self.started += 1
            return helper

    def _start_anew(self) -> None:
        """Forget, in a forked child, the parent's threads, which do not exist there."""
        self.idle.clear()
        self.started, self._starting = 0, threading.Lock()


def others() -> Set[int]:
    """Return the processors that the calling thread may use and is not on, as far as known."""
    own = _current()
    return _allowed() - {own()} if own is not None else frozenset()


@contextmanager
def parted() -> Iterator[Set[int]]:
    """Keep the calling thread where it is, and yield the processors that are left for helpers.

    None are, and nothing is changed, where the system does not tell, refuses, or has but one.
    """
    allowed, own = _allowed(), _current()
    if own is None or len(allowed) < 2:
        yield frozenset()
        return
    here = {own()}
    try:
        os.sched_setaffinity(0, here)
    except OSError:
        yield frozenset()
        return
    try:
        yield allowed - here
    finally:
        with suppress(OSError):  # processors that are gone meanwhile
            os.sched_setaffinity(0, allowed)


def _allowed() -> Set[int]:
    try:
        return os.sched_getaffinity(0)
    except (AttributeError, OSError):  # a system that does not know of this, or let us ask
        return frozenset()


@cache
def _current() -> Callable[[], int] | None:
    """Return what tells the processor of the calling thread, on Linux."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    try:
        sched_getcpu = ctypes.PyDLL(None).sched_getcpu
    except (OSError, AttributeError):  # a C library that does not tell
        return None
    sched_getcpu.argtypes, sched_getcpu.restype = [], ctypes.c_int
    return sched_getcpu if sched_getcpu() >= 0 else None
