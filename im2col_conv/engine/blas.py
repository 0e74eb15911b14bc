"""Hold the process's BLAS to one thread while a call runs, and leave it as it was found."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController

__all__ = ["one_thread"]

_lock = threading.Lock()
_calls = 0
_found: list[int] = []


@cache
def _libraries() -> list[Any]:
    """Return the BLAS libraries of the process: NumPy has loaded its own before we are called."""
    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run the block with one BLAS thread a product.

    The setting belongs to the process, so calls that overlap in time share it: the first to come
    notes what it finds, the last to go puts that back.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _calls, _found
    with _lock:
        if _calls == 0:
            _found = [library.get_num_threads() for library in _libraries()]
            _set([1] * len(_found))
        _calls += 1


def _leave() -> None:
    global _calls
    with _lock:
        _calls -= 1
        if _calls == 0:
            _set(_found)


def _set(threads: list[int]) -> None:
    for library, wanted, found in zip(_libraries(), threads, _found, strict=True):
        if found != 1:
            library.set_num_threads(wanted)


def _end_calls() -> None:
    """Leave, in a forked child, the calls of the parent's other threads, which are not there."""
    global _calls, _lock
    _lock = threading.Lock()
    if _calls:
        _calls = 0
        _set(_found)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_end_calls)
