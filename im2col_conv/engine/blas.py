"""Hold the process's BLAS to one thread while it multiplies for a call, and put it back."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import ThreadpoolController

from im2col_conv.engine.openblas import is_private

__all__ = ["LEAST_THREADED", "hold", "let_go", "may_share"]

# Operations from which OpenBLAS shares the first products, of complex numbers with a vector; and
# multiplications up to which it shares none of two real matrices.
LEAST_THREADED, MOST_UNSHARED = 2**12, 2**18


class _Library(NamedTuple):
    """How one BLAS library is asked for its number of threads, and told."""

    get: Callable[[], int]
    set: Callable[[int], object]


_lock = threading.Lock()
_calls = 0
_found: list[tuple[_Library, int]] = []


def may_share(M: int, K: int, N: int, dtype: np.dtype[Any]) -> bool:
    """Say whether the process's BLAS might share a product (M, K) @ (K, N) among its threads."""
    if min(M, N) > 1 and dtype.kind != "c" and _is_openblas():
        return M * K * N > MOST_UNSHARED
    return 2 * M * K * N >= LEAST_THREADED


def hold() -> None:
    """From here to :func:`let_go`, a product takes one BLAS thread.

    The setting belongs to the process, so calls that overlap in time share it: the first to come
    notes what it finds, the last to go puts that back.
    """
    global _calls, _found
    libraries = _libraries()
    with _lock:
        if _calls == 0:
            _found = [(each, threads) for each in libraries if (threads := each.get()) != 1]
            for library, _ in _found:
                library.set(1)
        _calls += 1


def let_go() -> None:
    """End what :func:`hold` began."""
    global _calls
    with _lock:
        _calls -= 1
        if _calls == 0:
            _put_back()


def _put_back() -> None:
    for library, threads in _found:
        library.set(threads)


@cache
def _libraries() -> list[_Library]:
    """Return the BLAS libraries of the process: NumPy has loaded its own before we are called.

    The private one is not among them. It takes one thread whatever was found, and if a call put
    that back, products of another that add to the same numbers would race.
    """
    return [_library(each) for each in _controllers()]


@cache
def _is_openblas() -> bool:
    found = [each.internal_api for each in _controllers()]
    return set(found) == {"openblas"}


def _controllers() -> list[Any]:
    controllers = ThreadpoolController().select(user_api="blas").lib_controllers
    return [each for each in controllers if not is_private(each.filepath)]


def _library(controller: Any) -> _Library:
    """Return the library's own functions where they may be called directly.

    Since 3.8 threadpoolctl lets only one thread set the number of an OpenBLAS whose threads belong
    to the process, and quietly does nothing for others. Calls here come from any thread, and agree
    among themselves. It is also several times as fast.
    """
    if controller.internal_api == "openblas" and controller.threading_layer != "openmp":
        for prefix, suffix in product(("", "scipy_"), ("", "64_", "_64")):
            names = [f"{prefix}openblas_{verb}_num_threads{suffix}" for verb in ("get", "set")]
            if all(hasattr(controller.dynlib, name) for name in names):
                get, set_ = (controller.dynlib[name] for name in names)
                get.argtypes, set_.argtypes, set_.restype = [], [ctypes.c_int], None
                return _Library(get, set_)
    return _Library(controller.get_num_threads, controller.set_num_threads)


def _start_anew() -> None:
    """Give a forked child what its parent's calls had found: they do not run on in it."""
    global _calls
    if _calls:
        _calls = 0
        _put_back()
    _lock.release()


if hasattr(os, "register_at_fork"):  # with the lock, so that no child is born halfway into a call
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_start_anew
    )
