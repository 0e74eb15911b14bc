"""The two settings of the process: how many workers, and how much scratch memory a call takes."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

from im2col_conv.arguments import integer
from im2col_conv.engine.im2col.lookup import drop_tables
from im2col_conv.engine.workers import drop_scratch

__all__ = ["Setting", "get_workers", "get_workspace", "set_workers", "set_workspace"]

T = TypeVar("T")


def _nothing() -> None:
    pass


class Setting(Generic[T]):
    """A value that took effect when it was set; under ``with``, the old one comes back on exit.

    The value is the process's. Where blocks of several threads overlap, each brings back what it
    found when it began, in the order in which they end.
    """

    def __init__(
        self, values: dict[str, T], name: str, value: T, after: Callable[[], None] = _nothing
    ) -> None:
        self._values = values
        self._name = name
        self._before = values[name]
        self._after = after
        values[name] = value
        after()

    def __enter__(self) -> None:
        """Leave the value as it was set."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Bring back the value from before."""
        self._values[self._name] = self._before
        self._after()

    def __repr__(self) -> str:
        return f"{self._name} = {self._values[self._name]}"


def _usable_cpus() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


_values = {"workers": _usable_cpus(), "workspace": 64 * 2**20}


def set_workers(workers: int) -> Setting[int]:
    """Set how many threads a call may use, for the whole process.

    Parameters
    ----------
    workers : int
        At least 1. Results do not depend on it, bit for bit.

    Returns
    -------
    Setting
        May be used under ``with``: on exit the old value comes back.

    Raises
    ------
    TypeError, ValueError
        Where ``workers`` is not an int or is less than 1.

    Notes
    -----
    On Linux, while a call shares its work, the calling thread keeps to the processor on which it
    is, and its helpers to the others of those that it may use. When the call ends, it may use all
    of them again.

    Examples
    --------
    >>> before = get_workers()
    >>> with set_workers(3):
    ...     get_workers()
    3
    >>> get_workers() == before
    True
    """
    return Setting(_values, "workers", integer("workers", workers, 1))


def get_workers() -> int:
    """Return how many threads a call may use; at first, the CPUs that the process may use.

    Examples
    --------
    >>> get_workers() >= 1
    True
    """
    return _values["workers"]


def set_workspace(nbytes: int) -> Setting[int]:
    """Set the scratch memory that a call may take, all its workers together.

    A call takes no more than this or its floor, whichever is larger. The floor is the columns of
    one output row for one worker and two copies of ``w`` in the type that is computed in. Up to
    32 MiB of it wait for the next call, and up to 32 MiB of tables that tell how the cells of small
    layers lie; setting the workspace gives them back.

    Parameters
    ----------
    nbytes : int
        At least 1.

    Returns
    -------
    Setting
        May be used under ``with``: on exit the old value comes back.

    Raises
    ------
    TypeError, ValueError
        Where ``nbytes`` is not an int or is less than 1.

    Examples
    --------
    >>> with set_workspace(8 * 2**20):
    ...     get_workspace()
    8388608
    """
    return Setting(_values, "workspace", integer("nbytes", nbytes, 1), _give_back)


def _give_back() -> None:
    """Give back what waits for the next call."""
    drop_scratch()
    drop_tables()


def get_workspace() -> int:
    """Return the scratch memory that a call may take, in bytes; at first 64 MiB.

    Examples
    --------
    >>> get_workspace()
    67108864
    """
    return _values["workspace"]
