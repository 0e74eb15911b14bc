"""Programs of machine code and the threads that run them: each task once, whoever runs it."""

import ctypes
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from im2col_conv.engine import processors
from im2col_conv.engine.direct.moves import Again, Box, Moves
from im2col_conv.engine.machine import crew
from im2col_conv.engine.machine.assembler import AVX2, Address, Assembler, Register
from im2col_conv.engine.machine.memory import loaded, why_not_run
from im2col_conv.engine.machine.program import Need, Place, Program, Step
from im2col_conv.engine.processors import MOST_HELPERS, Team

from .guarded import guarded

pytestmark = pytest.mark.skipif(why_not_run() is not None, reason=str(why_not_run()))
shares = pytest.mark.skipif(not crew.shares_here(), reason="threads share tasks under Linux")

RAX, RCX, RDX, RDI, R8 = (Register(n) for n in (0, 1, 2, 7, 8))
SLOTS = 8


def counting():
    """Return a routine that adds 1 to a number of 8 bytes, and to nothing else."""
    code = Assembler(AVX2, double=False)
    code.load(RDX, Address(RDI))
    code.load(RAX, Address(RDX))
    code.add_number(RAX, 1)
    code.store(Address(RDX), RAX)
    code.back()
    return loaded(code.finished())


def meeting():
    """Return a routine that says that it has begun, and waits a while for another to say so too.

    It is told where to say so, where the other one does, and where to note that both have.
    """
    code = Assembler(AVX2, double=False)
    for register, slot in ((RDX, 0), (RCX, 1), (R8, 2)):
        code.load(register, Address(RDI, displacement=8 * slot))
    code.set_number(RAX, 1)
    code.exchange(RAX, Address(RDX))
    code.set_number(RDX, 10**9)
    code.label("look")
    code.load(RAX, Address(RCX))
    code.compare_with_zero(RAX)
    code.jump_if_not_zero("met")
    code.pause()
    code.add_number(RDX, -1)
    code.jump_if_not_zero("look")
    code.back()
    code.label("met")
    code.store(Address(R8), RAX)
    code.back()
    return loaded(code.finished())


LONG = np.dtype(np.int64)
ONE = Need(1, 8, LONG, True)


def counters(tasks, steps=1):
    """Return a program whose tasks each count, ``steps`` times, in a place of their own."""
    routine = counting()
    return Program(
        [
            [Step(routine, (Place(0, SLOTS * task),), (ONE,), (), None)] * steps
            for task in range(tasks)
        ]
    )


def line(numbers=4):
    return Moves([Box(0, 0, (numbers,), (), ())], Again(1, 0, 0), 1, 4)


def test_each_task_is_run_once_for_any_number_of_workers():
    for tasks in (1, 2, 3, 10, 77):
        program = counters(tasks, steps=3)
        for workers in (1, 2, 3, MOST_HELPERS + 3):
            places = np.zeros(SLOTS * tasks, np.int64)
            program.run([[places]] * workers)
            assert (places[::SLOTS] == 3).all()
            assert places.sum() == 3 * tasks


def test_a_task_may_be_run_alone():
    program, places = counters(5), np.zeros(5 * SLOTS, np.int64)
    for task, times in enumerate((2, 0, 1, 0, 3)):
        for _ in range(times):
            program.run_task(task, [places])
    assert places[::SLOTS].tolist() == [2, 0, 1, 0, 3]


def test_steps_of_a_task_are_run_in_order():
    steps = [line().of(Place(0), Place(1)), line().of(Place(1), Place(2))]
    first, second, third = (np.full(4, n, np.float32) for n in (1, 2, 3))
    Program([steps]).run([[first, second, third]])
    assert (third == 1).all()
    first[:] = 7
    Program([steps[::-1]]).run([[first, second, third]])
    assert (third == 1).all()
    assert (second == 7).all()


def test_each_worker_has_arrays_of_its_own():
    program = Program([[line().of(Place(0), Place(1))]] * 20)
    own = [np.zeros(4, np.float32) for _ in range(3)]
    program.run([[np.full(4, n + 1, np.float32), mine] for n, mine in enumerate(own)])
    for n, mine in enumerate(own):
        assert set(mine) in ({n + 1}, {0})  # 0 where others were done before it began
    assert (own[0] == 1).all() or any(mine.any() for mine in own[1:])


@shares
def test_tasks_run_at_the_same_time_whether_helpers_slept_or_not():
    routine, needs = meeting(), (ONE, Need(1, 8, LONG, False), ONE)
    tasks = [
        [Step(routine, tuple(Place(0, SLOTS * at) for at in at_once), needs, (), None)]
        for at_once in ((0, 1, 2), (1, 0, 3))
    ]
    program = Program(tasks)
    for pause in (0, 0, 0.02, 0, 0.1):
        time.sleep(pause)  # a helper goes to sleep after less than a millisecond
        said = np.zeros(4 * SLOTS, np.int64)
        program.run([[said]] * 2)
        assert said[::SLOTS].tolist() == [1, 1, 1, 1]


@shares
def test_helpers_sleep_when_others_need_their_processors():
    program = counters(4)
    for _ in range(5):
        program.run([[np.zeros(4 * SLOTS, np.int64)]] * 2)
        crew.make_room()
        time.sleep(0.05)
        states = [ctypes.c_int64.from_address(helper.box).value for helper in crew._team.idle]
        assert states == [crew.ASLEEP] * len(states)
        assert states


@shares
@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two processors",
)
def test_helpers_are_told_to_run_elsewhere_than_their_caller(monkeypatch):
    allowed = os.sched_getaffinity(0)
    here = min(allowed)
    monkeypatch.setattr(processors, "_current", lambda: lambda: here)
    counters(4).run([[np.zeros(4 * SLOTS, np.int64)]] * 2)
    helper = crew._team.idle[-1]
    assert os.sched_getaffinity(helper.native_id) == allowed - {here}
    assert os.sched_getaffinity(0) == allowed


@shares
def test_a_caller_waits_for_helpers_long_after_its_own_tasks():
    numbers = 10**7
    program = Program([[line(numbers).of(Place(0), Place(1, numbers * task))] for task in range(2)])
    source = np.ones(numbers, np.float32)
    for _ in range(10):
        target = np.zeros(2 * numbers, np.float32)
        program.run([[source, target]] * 2)
        assert (target == 1).all()


@shares
def test_many_callers_at_once_get_their_own_results():
    program, wrong = counters(9), []

    def call():
        for _ in range(300):
            places = np.zeros(9 * SLOTS, np.int64)
            program.run([[places]] * 3)
            if places[::SLOTS].tolist() != [1] * 9:
                wrong.append(places)

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    helpers = [each for each in threading.enumerate() if isinstance(each, crew._Helper)]
    assert 1 <= len(helpers) <= MOST_HELPERS
    assert len(crew._team.idle) == len(set(crew._team.idle)) == len(helpers)


def test_without_helpers_the_caller_does_it_all(monkeypatch):
    monkeypatch.setattr(crew, "_team", Team(crew._Helper))

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    places = np.zeros(9 * SLOTS, np.int64)
    counters(9).run([[places]] * 3)
    assert places[::SLOTS].tolist() == [1] * 9
    monkeypatch.setattr(crew._team, "started", MOST_HELPERS)
    counters(9).run([[places]] * 3)
    monkeypatch.setattr(crew, "shares_here", lambda: False)
    counters(9).run([[places]] * 3)
    assert places[::SLOTS].tolist() == [3] * 9


@shares
def test_a_forked_child_has_helpers_of_its_own():
    program, places = counters(9), np.zeros(9 * SLOTS, np.int64)
    program.run([[places]] * 2)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert not crew._team.idle
            program.run([[places]] * 2)
            code = 0 if places[::SLOTS].tolist() == [2] * 9 and len(crew._team.idle) == 1 else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("last", ["", "time.sleep(0.05)", "os._exit(0)", "sys.exit(0)"])
def test_a_process_ends_while_helpers_wait(last):
    code = f"""
        import os, sys, time
        import numpy as np
        import im2col_conv as ic

        with ic.set_workers(2):
            x, w = np.ones((2, 16, 40, 50), np.float32), np.ones((24, 16, 3, 3), np.float32)
            assert ic.conv(x, w, algorithm="direct")[0, 0, 0, 0] == 144
        {last}
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=120, check=False)
    assert done.returncode == 0


# --- what is refused, and what stays --------------------------------------------------------------


def test_arrays_that_steps_would_leave_are_refused():
    program = Program([[line().of(Place(0, 3), Place(1, 2))], [line().of(Place(0), Place(1, 5))]])
    assert (program.numbers_in(0), program.numbers_in(1), program.numbers_in(2)) == (7, 9, 0)
    source, target = guarded(7, np.float32), guarded(9, np.float32)
    source[:] = 1
    program.run([[source, target]])
    assert target.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1]
    with pytest.raises(ValueError, match=r"need 7 numbers of 4 bytes in array 0, got .*\(6,\)"):
        program.run([[source[:-1], target]])
    with pytest.raises(ValueError, match=r"need 9 numbers of 4 bytes in array 1, got .*\(8,\)"):
        program.run([[source, target], [source, target[:-1]]])
    with pytest.raises(ValueError, match="float64"):
        program.run([[source, np.zeros(9)]])
    with pytest.raises(ValueError, match="numbers of 4 bytes in array 1$"):
        program.run([[source, None]])
    frozen = np.zeros(9, np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="writeable array 1"):
        program.run([[source, frozen]])
    program.run([[frozen, target, None]])


def test_programs_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="begins before its array: at -1"):
        Program([[line().of(Place(0), Place(1, -1))]])
    with pytest.raises(ValueError, match=f"{crew.ARRAYS - 1} arrays at most"):
        Program([[line().of(Place(0), Place(crew.ARRAYS - 1))]])
    with pytest.raises(ValueError, match=f"told {crew.MOST_NUMBERS} numbers at most"):
        Program([[Step(0, (Place(0),), (ONE,), (0,) * crew.MOST_NUMBERS, None)]])


def test_what_steps_read_lives_as_long_as_the_program():
    program = Program([[line(1000).of(Place(0), Place(1))]])
    gc.collect()
    junk = [np.zeros(3, np.int64) for _ in range(1000)]
    target = np.zeros(1000, np.float32)
    program.run([[np.ones(1000, np.float32), target]])
    assert (target == 1).all()
    assert len(junk) == 1000


def test_programs_keep_no_array():
    class Watched(np.ndarray):
        pass

    program = Program([[line().of(Place(0), Place(1))]] * 3)
    kept = np.zeros(8, np.float32).view(Watched)
    gone = []
    import weakref

    weakref.finalize(kept, gone.append, True)
    program.run([[np.ones(4, np.float32), kept]] * 2)
    del kept
    gc.collect()
    assert gone
