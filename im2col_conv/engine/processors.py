"""Where threads run: a helper elsewhere than who asks it, if the system lets us say so.

A thread that is woken is put where it ran last or where its waker runs. Some systems, virtual
machines above all, put it beside the waker although another processor is idle, and move it only
milliseconds later: longer than a small layer takes (docs/performance.md). So a helper is told which
processors it may use: those of the asking thread, but for the one on which that thread is.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Set
from functools import cache

__all__ = ["others"]


def others() -> Set[int]:
    """Return the processors that the calling thread may use, without its own; none if not known."""
    current = _current()
    if current is None:
        return frozenset()
    try:
        return os.sched_getaffinity(0) - {current()}
    except OSError:  # a system that does not let us ask
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
