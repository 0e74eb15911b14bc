"""Threads that wait for work, so that handing some to one of them costs a few microseconds.

A helper that is idle stands in a list and waits at a queue of its own. Whoever wants help takes one
off the list and gives it work; where none is idle and there are enough of them, he does without.
So no call waits for a helper that another one has.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Set
from contextvars import copy_context
from queue import SimpleQueue

from im2col_conv.engine.processors import HelperThread, Team

__all__ = ["Help", "ask"]


class Help:
    """Work that was handed to a helper: it begins soon, unless it is ended before that.

    A helper is idle again as soon as its work is over or was ended: also where it has yet to wake,
    and will find that there is nothing to do.
    """

    def __init__(self, work: Callable[[], None], helper: _Helper) -> None:
        self._work = [work]  # who takes it out, the helper or the end, decides whether it is done
        self._helper = helper
        self._context = copy_context()  # NumPy keeps there what it warns of
        self._error: BaseException | None = None
        self._over = threading.Lock()
        self._over.acquire()
        helper.given.put(self)

    def begin(self) -> None:
        """Do the work, in the helper's thread."""
        try:
            work = self._work.pop()
        except IndexError:
            return
        try:
            self._context.run(work)
        except BaseException as error:  # which is the asker's to raise
            self._error = error
        _team.idle.append(self._helper)
        self._over.release()

    def end(self) -> BaseException | None:
        """Wait for the work, or see that it does not begin any more; return what it raised."""
        try:
            self._work.pop()
        except IndexError:
            self._over.acquire()
        else:
            _team.idle.append(self._helper)
        return self._error


class _Helper(HelperThread):
    """A thread that does what it is given, again and again."""

    def __init__(self) -> None:
        super().__init__("im2col_conv")
        self.given: SimpleQueue[Help] = SimpleQueue()

    def run(self) -> None:
        while True:
            self.given.get().begin()


_team = Team(_Helper)


def ask(work: Callable[[], None], processors: Set[int]) -> Help | None:
    """Have ``work`` done by a helper, if one is to be had, on one of the ``processors``."""
    helper = _team.take(processors)
    return None if helper is None else Help(work, helper)
