r"""Threads that wait for tasks in machine code, and begin without a step of Python.

Each worker has a :class:`Block`: where tasks are drawn from, where its arrays begin, and room for
what routines are told. A task is some rows of a table of steps:

.. code-block:: text

    while a ticket is drawn that is less than the number of tasks:
        draw the next task from its own end of the row
        for each step: copy what the routine is told, add where arrays begin, and call it

Who shares his tasks writes the address of a block into the letter box of each helper, and wakes
those that sleep; works himself; and then takes back what was not begun, and waits for the rest. A
box has one of six states, which change in one instruction each:

.. code-block:: text

    IDLE -> TIRED               by who needs its processor
    IDLE or TIRED -> ASLEEP     by the helper, who has looked in vain for a while, or sees that
    any of these -> ASKED       by who asks, who wakes it if it slept
    ASKED -> WORKING            by the helper, who begins
    ASKED -> IDLE               by who asked, when nothing is left to do
    WORKING -> AWAITED          by who asked, when he goes to sleep until it is done
    WORKING or AWAITED -> IDLE  by the helper, who wakes him if he slept

A thread sleeps at an address of memory until another wakes it there: what Linux calls a futex
(Franke, Russell and Kirkwood, 2002).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from im2col_conv.arrays import aligned
from im2col_conv.engine.machine.assembler import AVX2, Address, Assembler, Register
from im2col_conv.engine.machine.memory import loaded, never_freed
from im2col_conv.engine.processors import HelperThread, Team, others

__all__ = [
    "ARRAYS",
    "MOST_NUMBERS",
    "PLACES",
    "Block",
    "make_room",
    "share",
    "shares_here",
]

ARRAYS = 8  # whose beginnings a block holds; the first is none, and begins at 0
MOST_NUMBERS = 32  # that a routine is told
PLACES = 4  # of which so many may be in an array

IDLE, TIRED, ASLEEP, ASKED, WORKING, AWAITED = range(6)
LOOKS = 5000  # before a thread goes to sleep: some 250 microseconds

_STEP = ("routine", "told", "numbers", *(f"array{n}" for n in range(PLACES)))
_BOX = ("state", "block")
_SHARED = ("own", "first", "end")
_HELP = ("box", "block")

_FUTEX, _WAIT, _WAKE = 202, 128, 129  # the system call, and what it does within one process

_RAX, _RCX, _RDX, _RBX, _RSI, _RDI = (Register(n) for n in (0, 1, 2, 3, 6, 7))
_R10, _R11, _R12, _R13 = (Register(n) for n in (10, 11, 12, 13))


class Block(NamedTuple):
    """What a worker is told: where tasks are drawn from, and where his arrays begin.

    Attributes
    ----------
    drawn : int
        The address of a number that counts the tasks that anybody drew.
    tasks : int
        How many there are.
    own : int
        The address of a number that counts those that were drawn from this end of the row.
    ranges : int
        The address of a table of where the steps of each task begin and end, from this end on.
    begins : tuple of int
    """

    drawn: int
    tasks: int
    own: int
    ranges: int
    begins: tuple[int, ...]

    def in_memory(self) -> ctypes.Array[ctypes.c_int64]:
        """Return it as machine code reads it, with room for what routines are told."""
        *fields, begins = self
        return _BLOCK(*fields, 0, *begins)


_FIELDS = Block._fields[:-1]
_BEGINS = 8 * len(_FIELDS)
_TOLD = _BEGINS + 8 * ARRAYS
_BLOCK = ctypes.c_int64 * (len(_FIELDS) + ARRAYS + MOST_NUMBERS)


def share(workers: Sequence[Block]) -> None:
    """Have tasks done by the caller, who is the first worker, and a helper for each other one.

    It returns when all are done. Where no helper is to be had, there are fewer.
    """
    routines, blocks = _routines(), [worker.in_memory() for worker in workers]
    own = ctypes.addressof(blocks[0])
    if len(blocks) == 1 or not shares_here():
        routines.work(own)
        return
    helpers = _taken(len(blocks) - 1)
    try:
        pairs = zip(helpers, blocks[1:], strict=False)
        rows = [n for helper, block in pairs for n in (helper.box, ctypes.addressof(block))]
        table = (ctypes.c_int64 * max(len(rows), 1))(*rows)
        first = ctypes.addressof(table)
        shared = (ctypes.c_int64 * len(_SHARED))(own, first, first + 8 * len(rows))
        routines.share(ctypes.addressof(shared))
    finally:
        _team.idle.extend(helpers)


def make_room() -> None:
    """Have helpers sleep who look for more work: other threads need their processors."""
    for helper in tuple(_team.idle):
        _routines().tire(helper.box)


def shares_here() -> bool:
    """Say whether threads can wait in machine code: under Linux."""
    return sys.platform == "linux"


# Helpers


class _Helper(HelperThread):
    """A thread that never comes back from machine code, and its letter box."""

    def __init__(self) -> None:
        super().__init__("im2col_conv in machine code")
        memory = aligned((len(_BOX),), np.dtype(np.int64))
        memory[:] = 0
        never_freed(memory)
        self.box = memory.ctypes.data

    def run(self) -> None:
        _routines().wait(self.box)


_team = Team(_Helper)


def _taken(number: int) -> list[_Helper]:
    """Return up to so many helpers that nobody else has."""
    processors = others()
    helpers: list[_Helper] = []
    while len(helpers) < number:
        helper = _team.take(processors)
        if helper is None:
            break
        helpers.append(helper)
    return helpers


# Their machine code


class _Routines(NamedTuple):
    work: Callable[[int], None]
    share: Callable[[int], None]
    wait: Callable[[int], None]
    tire: Callable[[int], None]


@cache
def _routines() -> _Routines:
    """Return the routines, which are written when they are first asked for."""
    code = Assembler(AVX2, double=False)
    _write_work(code)
    _write_share(code)
    _write_wait(code)
    _write_tire(code)
    start = loaded(code.finished())
    kind: Any = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    return _Routines(*(kind(start + code.place(name)) for name in _Routines._fields))


def _write_work(code: Assembler) -> None:
    """Do tasks of a block for as long as there are any."""
    block, step, end = _RBX, _R12, _R13
    code.label("work")
    for register in (block, step, end):
        code.push(register)
    code.load_address(block, Address(_RDI))
    code.label("draw")
    _draw(code, "drawn")
    code.compare(_RAX, _field(block, _FIELDS, "tasks"))
    code.jump_if_less("task")
    for register in (end, step, block):
        code.pop(register)
    code.back()
    code.label("task")
    _draw(code, "own")
    code.add(_RAX, _RAX)
    code.load(_R11, _field(block, _FIELDS, "ranges"))
    code.load(step, Address(_R11, _RAX, 8))
    code.load(end, Address(_R11, _RAX, 8, 8))
    code.label("step")
    code.compare(step, end)
    code.jump_if_zero("draw")
    _tell(code, block, step)
    code.load_address(_RDI, Address(block, displacement=_TOLD))
    code.call(_field(step, _STEP, "routine"))
    code.add_number(step, 8 * len(_STEP))
    code.jump("step")


def _draw(code: Assembler, name: str) -> None:
    """Take the next number that a field of the block points to."""
    code.load(_RCX, _field(_RBX, _FIELDS, name))
    code.set_number(_RAX, 1)
    code.exchange_add(Address(_RCX), _RAX)


def _tell(code: Assembler, block: Register, step: Register) -> None:
    """Copy what a step's routine is told, and add where its arrays begin."""
    code.load(_RSI, _field(step, _STEP, "told"))
    code.load(_RCX, _field(step, _STEP, "numbers"))
    code.label("number")
    code.load(_RAX, Address(_RSI, _RCX, 8, -8))
    code.store(Address(block, _RCX, 8, _TOLD - 8), _RAX)
    code.add_number(_RCX, -1)
    code.jump_if_not_zero("number")
    for place in range(PLACES):
        told = Address(block, displacement=_TOLD + 8 * place)
        code.load(_RCX, _field(step, _STEP, f"array{place}"))
        code.load(_RAX, Address(block, _RCX, 8, _BEGINS))
        code.add(_RAX, told)
        code.store(told, _RAX)


def _write_share(code: Assembler) -> None:
    """Ask helpers, work, and wait until those who began are done."""
    shared, help_ = _RBX, _R12
    code.label("share")
    for register in (shared, help_):
        code.push(register)
    code.load_address(shared, Address(_RDI))
    _for_each_help(code, "ask", _ask)
    code.load(_RDI, _field(shared, _SHARED, "own"))
    code.call_place("work")
    _for_each_help(code, "end", _end)
    for register in (help_, shared):
        code.pop(register)
    code.back()


def _for_each_help(code: Assembler, name: str, write: Callable[[Assembler, str], None]) -> None:
    """Write a loop over rows of boxes and blocks, with the box in register 7."""
    code.load(_R12, _field(_RBX, _SHARED, "first"))
    code.label(name)
    code.compare(_R12, _field(_RBX, _SHARED, "end"))
    code.jump_if_zero(f"{name}, all")
    code.load(_RDI, _field(_R12, _HELP, "box"))
    write(code, f"{name}, next")
    code.label(f"{name}, next")
    code.add_number(_R12, 8 * len(_HELP))
    code.jump(name)
    code.label(f"{name}, all")


def _ask(code: Assembler, next_: str) -> None:
    code.load(_RAX, _field(_R12, _HELP, "block"))
    code.store(_field(_RDI, _BOX, "block"), _RAX)
    code.set_number(_RAX, ASKED)
    code.exchange(_RAX, _field(_RDI, _BOX, "state"))
    code.compare_with(_RAX, ASLEEP)
    code.jump_if_not_zero(next_)
    _wake(code)


def _end(code: Assembler, next_: str) -> None:
    _change(code, _RDI, ASKED, IDLE)
    code.jump_if_zero(next_)
    code.set_number(_RCX, LOOKS)
    code.label("is it done")
    code.load(_RAX, _field(_RDI, _BOX, "state"))
    code.compare_with(_RAX, WORKING)
    code.jump_if_not_zero("is it done, slept")
    code.pause()
    code.add_number(_RCX, -1)
    code.jump_if_not_zero("is it done")
    _change(code, _RDI, WORKING, AWAITED)
    code.label("is it done, slept")
    code.load(_RAX, _field(_RDI, _BOX, "state"))
    code.compare_with(_RAX, AWAITED)
    code.jump_if_not_zero(next_)
    _sleep(code, AWAITED)
    code.jump("is it done, slept")


def _write_wait(code: Assembler) -> None:
    """Do what is asked for, again and again; it never ends."""
    box = _RBX
    code.label("wait")
    code.push(box)
    code.load_address(box, Address(_RDI))
    code.label("awake")
    code.set_number(_RCX, LOOKS)
    code.label("look")
    code.load(_RAX, _field(box, _BOX, "state"))
    code.compare_with(_RAX, ASKED)
    code.jump_if_zero("begin")
    code.compare_with(_RAX, TIRED)
    code.jump_if_zero("lie down")
    code.pause()
    code.add_number(_RCX, -1)
    code.jump_if_not_zero("look")
    code.label("lie down")
    for state in (IDLE, TIRED):
        _change(code, box, state, ASLEEP)
    code.label("slept")
    code.load(_RAX, _field(box, _BOX, "state"))
    code.compare_with(_RAX, ASLEEP)
    code.jump_if_not_zero("awake")
    code.load_address(_RDI, Address(box))
    _sleep(code, ASLEEP)
    code.jump("slept")
    code.label("begin")
    _change(code, box, ASKED, WORKING)
    code.jump_if_not_zero("awake")
    code.load(_RDI, _field(box, _BOX, "block"))
    code.call_place("work")
    code.set_number(_RAX, IDLE)
    code.exchange(_RAX, _field(box, _BOX, "state"))
    code.compare_with(_RAX, AWAITED)
    code.jump_if_not_zero("awake")
    code.load_address(_RDI, Address(box))
    _wake(code)
    code.jump("awake")


def _write_tire(code: Assembler) -> None:
    code.label("tire")
    _change(code, _RDI, IDLE, TIRED)
    code.back()


def _change(code: Assembler, box: Register, old: int, new: int) -> None:
    """Change a state, if it is the old one: as a jump that follows finds out."""
    code.set_number(_RAX, old)
    code.set_number(_RCX, new)
    code.exchange_if_equal(_field(box, _BOX, "state"), _RCX)


def _wake(code: Assembler) -> None:
    """Wake the thread that sleeps at the state of the box in register 7."""
    for register, number in ((_RAX, _FUTEX), (_RSI, _WAKE), (_RDX, 1)):
        code.set_number(register, number)
    code.system_call()


def _sleep(code: Assembler, state: int) -> None:
    """Sleep at the state of the box in register 7, if it is this one, until somebody wakes."""
    for register, number in ((_RAX, _FUTEX), (_RSI, _WAIT), (_RDX, state), (_R10, 0)):
        code.set_number(register, number)
    code.system_call()


def _field(base: Register, fields: tuple[str, ...], name: str) -> Address:
    return Address(base, displacement=8 * fields.index(name))
