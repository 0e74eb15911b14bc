"""Several routines of machine code, one after another, in one call.

A call gives up the interpreter's lock and asks for it again when it is over. Where two threads run
short routines, they wait for each other longer than they work; so a task runs all of its own at
once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

from im2col_conv.engine.machine.assembler import Address, Assembler, Register
from im2col_conv.engine.machine.memory import loaded

__all__ = ["Told", "run_in_a_row"]

_RDI, _RBX, _RAX = Register(7), Register(3), Register(0)


class Told(NamedTuple):
    """A routine, the numbers of 8 bytes that it is told, and what must live until it has run."""

    routine: int
    numbers: ctypes.Array[ctypes.c_int64]
    kept: tuple[object, ...]


def run_in_a_row(all_told: Sequence[Told]) -> None:
    """Run routines in order, while other threads go on."""
    if not all_told:
        return
    steps = [step for each in all_told for step in (each.routine, ctypes.addressof(each.numbers))]
    table = (ctypes.c_int64 * (len(steps) + 1))(*steps)  # ends with a zero
    _runner()(ctypes.addressof(table))


@cache
def _runner() -> Callable[[int], None]:
    code = Assembler(double=False)
    code.push(_RBX)
    code.load_address(_RBX, Address(_RDI))
    code.label("next")
    code.load(_RDI, Address(_RBX, displacement=8))
    code.call(Address(_RBX))
    code.add_number(_RBX, 16)
    code.load(_RAX, Address(_RBX))
    code.compare_with_zero(_RAX)
    code.jump_if_not_zero("next")
    code.pop(_RBX)
    code.back()
    function: Any = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(loaded(code.finished()))
    run: Callable[[int], None] = function
    return run
