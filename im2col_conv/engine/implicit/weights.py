"""Weights as the products of one pass read them: made at once, or block by block where needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import product
from typing import Protocol

from im2col_conv.arrays import Array
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.workers import Scratch

__all__ = ["Arranged", "Blockwise", "Whole"]


class Arranged(Protocol):
    """Weights [g, block, ...] in the memory order of an arrangement."""

    @property
    def nbytes(self) -> int:
        """Their memory."""

    def part(self, blas: OpenBlas, scratch: Scratch, groups: slice, blocks: slice) -> Array:
        """Return some blocks of one group, or all of several."""


class Whole:
    """Weights that are there as a whole, often a view of those given."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self.nbytes: int = array.nbytes

    def part(self, blas: OpenBlas, scratch: Scratch, groups: slice, blocks: slice) -> Array:
        return self._array[groups, blocks]


Make = Callable[[OpenBlas, Scratch, int, int], None]


class Blockwise:
    """Weights of which each block is made by the first worker who needs it.

    So no worker waits until all are made, and a block is still in the cache of who multiplies by
    it. Another who needs it meanwhile waits for that block alone.

    Parameters
    ----------
    memory : ndarray
        [g, block, ...], unfilled.
    make : callable
        ``make(blas, scratch, g, block)`` fills one block.
    """

    def __init__(self, memory: Array, make: Make) -> None:
        self._memory = memory
        self._make = make
        groups, blocks = memory.shape[:2]
        self._made = [[False] * blocks for _ in range(groups)]
        self._making = [[threading.Lock() for _ in range(blocks)] for _ in range(groups)]
        self.nbytes: int = memory.nbytes

    def part(self, blas: OpenBlas, scratch: Scratch, groups: slice, blocks: slice) -> Array:
        needed = list(product(range(groups.start, groups.stop), range(blocks.start, blocks.stop)))
        for wait in (False, True):  # first those that nobody else is making
            for group, block in needed:
                making = self._making[group][block]
                if not self._made[group][block] and making.acquire(blocking=wait):
                    try:
                        self._make_once(blas, scratch, group, block)
                    finally:
                        making.release()
        return self._memory[groups, blocks]

    def _make_once(self, blas: OpenBlas, scratch: Scratch, group: int, block: int) -> None:
        if not self._made[group][block]:
            self._make(blas, scratch, group, block)
            self._made[group][block] = True
