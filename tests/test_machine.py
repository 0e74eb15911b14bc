"""Machine code: what the assembler writes, where it runs, and that it stays inside its arrays."""

import ctypes
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from im2col_conv.engine.direct.kernel import Kind
from im2col_conv.engine.direct.moves import Again, Box, Moves
from im2col_conv.engine.direct.sums import Parts, Runs, Sums, Terms, Vectors
from im2col_conv.engine.direct.turns import Strip, Turns, side_of
from im2col_conv.engine.machine import memory
from im2col_conv.engine.machine.assembler import (
    AVX2,
    AVX512,
    Address,
    Assembler,
    Register,
    Vector,
)
from im2col_conv.engine.machine.memory import forms_here, loaded, why_not_run
from im2col_conv.engine.machine.program import Place, Program

from .guarded import guarded

runs_here = pytest.mark.skipif(why_not_run() is not None, reason=str(why_not_run()))

RAX, RBX, RSP, RBP, RSI, RDI = (Register(n) for n in (0, 3, 4, 5, 6, 7))
R9, R10, R12, R13, R15 = (Register(n) for n in (9, 10, 12, 13, 15))
Y0, Y5, Y9, Y15 = (Vector(n) for n in (0, 5, 9, 15))
Z3, Z9, Z13, Z15, Z19, Z25, Z26, Z27 = (Vector(n) for n in (3, 9, 13, 15, 19, 25, 26, 27))
Z5, Z28, Z29, Z30, Z31 = (Vector(n) for n in (5, 28, 29, 30, 31))
K1 = Vector(1)  # the mask of this number
NEAR, FAR = Address(RDI), Address(R13, R9, 4, -8)

# As the GNU assembler writes them, with four bytes of displacement.
INSTRUCTIONS = [
    (False, "load", (RAX, NEAR), "48 8b 84 27 00 00 00 00"),
    (False, "load", (R15, FAR), "4f 8b bc 8d f8 ff ff ff"),
    (False, "store", (NEAR, R10), "4c 89 94 27 00 00 00 00"),
    (False, "load_int32", (R10, Address(RSI, RAX)), "4c 63 94 06 00 00 00 00"),
    (False, "load_address", (RBP, Address(RBX, RBX, 2)), "48 8d ac 5b 00 00 00 00"),
    (False, "set_number", (R13, -2), "49 c7 c5 fe ff ff ff"),
    (False, "add", (R10, RSI), "4c 03 d6"),
    (False, "add", (RSI, FAR), "4b 03 b4 8d f8 ff ff ff"),
    (False, "add_number", (R13, -64), "49 81 c5 c0 ff ff ff"),
    (False, "compare", (R13, R15), "4d 3b ef"),
    (False, "compare_with", (R9, 4), "49 81 f9 04 00 00 00"),
    (False, "compare_with_zero", (R9,), "4d 85 c9"),
    (False, "exchange", (R10, FAR), "4f 87 94 8d f8 ff ff ff"),
    (False, "exchange_add", (NEAR, RAX), "f0 48 0f c1 84 27 00 00 00 00"),
    (False, "exchange_add", (FAR, R15), "f0 4f 0f c1 bc 8d f8 ff ff ff"),
    (False, "exchange_if_equal", (NEAR, R9), "f0 4c 0f b1 8c 27 00 00 00 00"),
    (False, "pause", (), "f3 90"),
    (False, "system_call", (), "0f 05"),
    (False, "push", (R12,), "41 54"),
    (False, "pop", (RBX,), "40 5b"),
    (False, "jump_to", (NEAR,), "48 ff a4 27 00 00 00 00"),
    (False, "call", (Address(RBX),), "48 ff 94 23 00 00 00 00"),
    (False, "back", (), "c3"),
    (False, "clear_upper_halves", (), "c5 f8 77"),
    (False, "load_vector", (Y9, FAR), "c4 01 7c 10 8c 8d f8 ff ff ff"),
    (False, "store_vector", (NEAR, Y5), "c4 e1 7c 11 ac 27 00 00 00 00"),
    (False, "store_masked", (NEAR, Y15, Y0), "c4 e2 05 2e 84 27 00 00 00 00"),
    (True, "store_masked", (NEAR, Y15, Y0), "c4 e2 05 2f 84 27 00 00 00 00"),
    (False, "load_one", (Y0, NEAR), "c4 e1 7e 10 84 27 00 00 00 00"),
    (True, "store_one", (NEAR, Y0), "c4 e1 7f 11 84 27 00 00 00 00"),
    (False, "broadcast", (Y15, Address(R12)), "c4 42 7d 18 bc 24 00 00 00 00"),
    (True, "broadcast", (Y5, NEAR), "c4 e2 7d 19 ac 27 00 00 00 00"),
    (
        False,
        "take_even",
        (Y9, FAR),
        "c4 01 34 c6 8c 8d f8 ff ff ff 88 c4 43 fd 01 c9 d8",
    ),
    (False, "copy_vector", (Y9, Y15), "c4 41 7c 28 cf"),
    (False, "lower_numbers", (Y9, Y5, Y15), "c4 41 54 14 cf"),
    (False, "higher_numbers", (Y0, Y15, Y9), "c4 c1 04 15 c1"),
    (False, "lower_pairs", (Y9, Y5, Y0), "c4 61 55 14 c8"),
    (False, "higher_pairs", (Y5, Y9, Y15), "c4 c1 35 15 ef"),
    (False, "lower_halves", (Y9, Y5, Y15), "c4 43 55 06 cf 20"),
    (False, "higher_halves", (Y0, Y15, Y9), "c4 c3 05 06 c1 31"),
    (False, "multiply_add", (Y0, Y15, Y9), "c4 c2 05 b8 c1"),
    (True, "multiply_add", (Y9, Y5, FAR), "c4 02 d5 b8 8c 8d f8 ff ff ff"),
]


KEYWORDS = {
    "lower_numbers": ("interleave", {"high": False, "double": False}),
    "higher_numbers": ("interleave", {"high": True, "double": False}),
    "lower_pairs": ("interleave", {"high": False, "double": True}),
    "higher_pairs": ("interleave", {"high": True, "double": True}),
    "lower_halves": ("join_halves", {"high": False}),
    "higher_halves": ("join_halves", {"high": True}),
}


WIDER = [
    (AVX512, False, "load_vector", (Z9, FAR), "62 11 7c 48 10 8c 8d f8 ff ff ff"),
    (AVX512, False, "load_vector", (Z25, FAR), "62 01 7c 48 10 8c 8d f8 ff ff ff"),
    (AVX512, True, "load_vector", (Z19, NEAR), "62 e1 7c 48 10 9c 27 00 00 00 00"),
    (AVX512, False, "store_vector", (NEAR, Z30), "62 61 7c 48 11 b4 27 00 00 00 00"),
    (AVX512, False, "store_masked", (FAR, K1, Z5), "62 91 7c 49 11 ac 8d f8 ff ff ff"),
    (AVX512, True, "store_masked", (NEAR, K1, Z30), "62 61 fd 49 11 b4 27 00 00 00 00"),
    (AVX512, False, "load_mask", (K1, FAR), "c4 81 78 90 8c 8d f8 ff ff ff"),
    (AVX512, False, "broadcast", (Z31, NEAR), "62 62 7d 48 18 bc 27 00 00 00 00"),
    (AVX512, True, "broadcast", (Z15, FAR), "62 12 fd 48 19 bc 8d f8 ff ff ff"),
    (AVX512, False, "copy_vector", (Z25, Z15), "62 41 7c 48 28 cf"),
    (AVX512, False, "copy_vector", (Z3, Z28), "62 91 7c 48 28 dc"),
    (AVX512, False, "multiply_add", (Z13, Z28, Z31), "62 12 1d 40 b8 ef"),
    (AVX512, True, "multiply_add", (Z26, Z5, Z9), "62 42 d5 48 b8 d1"),
    (AVX512, False, "multiply_add", (Z27, Z29, FAR), "62 02 15 40 b8 9c 8d f8 ff ff ff"),
]


@pytest.mark.parametrize(
    ("form", "double", "name", "operands", "expected"),
    [*((AVX2, *each) for each in INSTRUCTIONS), *WIDER],
)
def test_instructions_are_written_as_other_assemblers_do(form, double, name, operands, expected):
    code = Assembler(form, double=double)
    method, keywords = KEYWORDS.get(name, (name, {}))
    getattr(code, method)(*operands, **keywords)
    assert code.finished().hex(" ") == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("jump", "e9 01 00 00 00 c3 e9 f5 ff ff ff"),
        ("jump_if_zero", "0f 84 01 00 00 00 c3 0f 84 f3 ff ff ff"),
        ("jump_if_not_zero", "0f 85 01 00 00 00 c3 0f 85 f3 ff ff ff"),
        ("jump_if_less", "0f 8c 01 00 00 00 c3 0f 8c f3 ff ff ff"),
        ("call_place", "e8 01 00 00 00 c3 e8 f5 ff ff ff"),
    ],
)
def test_jumps_are_told_how_far_they_are(name, expected):
    code = Assembler(AVX2, double=False)
    code.label("first")
    getattr(code, name)("second")
    code.back()
    code.label("second")
    getattr(code, name)("first")
    assert code.finished().hex(" ") == expected
    assert code.place("second") == len(bytes.fromhex(expected)) // 2 + 1


def test_older_instructions_have_sixteen_registers():
    for operands in ((Z19, Z5, Z9), (Z5, Z19, Z9), (Z5, Z9, Z19)):
        with pytest.raises(ValueError, match="sixteen registers"):
            Assembler(AVX2, double=False).multiply_add(*operands)


def test_the_register_of_the_stack_is_no_counter():
    with pytest.raises(ValueError, match="stack"):
        Assembler(AVX2, double=False).load(RAX, Address(RDI, RSP))


# --- where it runs --------------------------------------------------------------------------------


@runs_here
def test_code_runs_and_is_written_no_more():
    code = Assembler(AVX2, double=False)
    code.load(RAX, Address(RDI))
    code.add_number(RAX, 5)
    code.back()
    address = loaded(code.finished())
    number = ctypes.c_int64(37)
    run = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(address)
    assert run(ctypes.addressof(number)) == 42
    if sys.platform == "linux":
        with open("/proc/self/maps") as maps:
            spans = [line.split() for line in maps]
        rights = [
            rest[0]
            for span, *rest in spans
            if int(span.split("-")[0], 16) <= address < int(span.split("-")[1], 16)
        ]
        assert rights == ["r-xp"]


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("machine", "aarch64", "this is aarch64"),
        ("platform", "win32", "this is win32"),
        ("features", {"SSE42": True}, "no AVX2"),
        ("features", {"AVX2": True, "FMA3": False}, "no AVX2 with multiply-adds"),
        ("loaded", OSError("not allowed"), "not allowed"),
    ],
)
def test_where_it_cannot_run_it_is_said_why(monkeypatch, name, value, complaint):
    monkeypatch.setattr(memory.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory, "processor_features", lambda: {"AVX2": True})
    if name == "machine":
        monkeypatch.setattr(memory.platform, "machine", lambda: value)
    elif name == "platform":
        monkeypatch.setattr(memory.sys, "platform", value)
    elif name == "features":
        monkeypatch.setattr(memory, "processor_features", lambda: value)
    else:

        def refuse(code):
            raise value

        monkeypatch.setattr(memory, "loaded", refuse)
    assert complaint in memory.why_not_run.__wrapped__()


@runs_here
def test_a_system_that_forbids_it_is_an_error(monkeypatch):
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    library = SimpleNamespace(mprotect=kind(lambda *_: -1))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda *_, **__: library)
    with pytest.raises(OSError, match="cannot be made executable"):
        loaded(b"\xc3")


# --- copies ---------------------------------------------------------------------------------------


def filled(count, dtype):
    array = guarded(count, dtype)
    array[...] = np.arange(1, count + 1)
    return array


@runs_here
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("step", [0, 1, 2, 3])
@pytest.mark.parametrize("numbers", [1, 3, 4, 7, 8, 9, 31, 40])
def test_lines_are_copied_and_nothing_around_them(dtype, step, numbers):
    boxes = [Box(2, 1, (2, numbers), (5,), (numbers + 1,)), Box(0, 100, (1,), (), ())]
    moves = Moves(boxes, Again(3, 7, 120), step, np.dtype(dtype).itemsize)
    source = filled(2 + 5 + (numbers - 1) * step + 2 * 7 + 1, dtype)
    target = filled(100 + 2 * 120 + 1, dtype)
    expected = target.copy()
    for time in range(3):
        for line in range(2):
            first = 2 + 5 * line + 7 * time
            to = 1 + (numbers + 1) * line + 120 * time
            expected[to : to + numbers] = [source[first + i * step] for i in range(numbers)]
        expected[100 + 120 * time] = source[7 * time]
    copy = Program([[moves.of(Place(0), Place(1))]])
    copy.run([[source, target]])
    np.testing.assert_array_equal(target, expected)
    with pytest.raises(ValueError, match=f"need {target.size} numbers"):
        copy.run([[source, target[:-1]]])


@runs_here
def test_copies_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="before its array"):
        Moves([Box(0, 0, (2, 4), (-1,), (4,))], Again(1, 0, 0), 1, 4)
    with pytest.raises(ValueError, match="nothing to copy"):
        Moves([Box(0, 0, (0,), (), ())], Again(1, 0, 0), 1, 4)


@runs_here
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("vectors", [1, 3])
def test_strips_are_turned_and_nothing_around_them(dtype, vectors):
    itemsize = np.dtype(dtype).itemsize
    lanes = side_of(itemsize)
    rows, columns, times = 2 * lanes + 3, vectors * lanes, 2
    source_step, target_step = columns + 5, 2 * lanes + 1
    strips = [Strip(2, 0, vectors, 0), Strip(2 + lanes * source_step, lanes, vectors, 0)]
    again = Again(times, source_step, columns * target_step)
    rng = np.random.default_rng(vectors)
    order = rng.permutation(columns)
    turns = Turns(strips, source_step, order * target_step, again, itemsize)
    source = filled(2 + (2 * lanes - 1) * source_step + columns + source_step, dtype)
    target = filled(2 * columns * target_step - 1, dtype)
    given = np.zeros(rows * source_step, dtype)
    given[: source.size] = source
    given = given.reshape(rows, source_step)
    expected = np.append(target, 0).reshape(times, columns, target_step)
    for time in range(times):
        expected[time, order, :-1] = given[time : time + 2 * lanes, 2 : 2 + columns].T
    turn = Program([[turns.of(Place(0), Place(1))]])
    turn.run([[source, target]])
    np.testing.assert_array_equal(target, expected.ravel()[:-1])
    with pytest.raises(ValueError, match=f"need {source.size} numbers"):
        turn.run([[source[:-1], target]])
    with pytest.raises(ValueError, match=f"need {target.size} numbers"):
        turn.run([[source, target[:-1]]])


@runs_here
def test_strips_need_no_more_than_their_own_columns():
    targets = np.array([0, 4, 8, 12, 900, 4, 8, 12])
    turns = Turns([Strip(0, 900, 1, 0), Strip(0, 0, 1, 4)], 4, targets, Again(1, 0, 0), 8)
    source, target = np.arange(16.0), np.zeros(916)
    Program([[turns.of(Place(0), Place(1))]]).run([[source, target]])
    np.testing.assert_array_equal(target[900:], source.reshape(4, 4).T.ravel())


@runs_here
def test_strips_that_cannot_be_are_refused():
    once, targets = Again(1, 0, 0), 8 * np.arange(8)
    for strips in ([], [Strip(0, 0, 0, 0)]):
        with pytest.raises(ValueError, match="nothing to turn"):
            Turns(strips, 8, targets, once, 4)
    for strip, step, places in (
        (Strip(-1, 0, 1, 0), 8, targets),
        (Strip(0, 0, 1, 0), -8, targets),
        (Strip(0, 0, 1, 0), 8, -targets),
    ):
        with pytest.raises(ValueError, match="before its array"):
            Turns([strip], step, places, once, 4)
    with pytest.raises(ValueError, match="none of the 8 targets"):
        Turns([Strip(0, 0, 1, 1)], 8, targets, once, 4)


# --- sums -----------------------------------------------------------------------------------------

PART = st.integers(0, 20)


def by_hand(kind, terms, runs, steps, vectors, parts, arrays, expected):
    """Fill ``expected`` number by number, as the class of sums says."""
    A, B, D = arrays
    by_number = kind in (Kind.FILTERS, Kind.OUTPUTS)
    lane_of_d = kind in (Kind.OUTPUTS, Kind.CHANNELS)
    for a, b, c, d in zip(*parts, strict=True):
        for row_a, row_b, row_c, row_d, rows in zip(*runs, strict=True):
            for i in range(rows):
                for vector_b, vector_c, vector_d, numbers in zip(*vectors, strict=True):
                    for lane in range(numbers):
                        in_a = a + row_a + i * steps[0] * by_number + terms.a
                        in_a = in_a + (vector_d + lane) * (kind is Kind.CHANNELS)
                        in_b = b + row_b + i * steps[0] * (not by_number) + terms.b
                        in_d = d + row_d + i * (kind is Kind.FILTERS)
                        in_d += (vector_d + lane) * lane_of_d
                        total = D[in_d] + (A[in_a] * B[in_b + vector_b + lane]).sum()
                        expected[c + row_c + i * steps[1] + vector_c + lane] = total


@runs_here
@pytest.mark.parametrize("form", forms_here(), ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", list(Kind))
@given(seed=st.integers(0, 2**32 - 1))
def test_sums_are_those_of_plain_loops_and_stay_inside_their_arrays(kind, dtype, form, seed):
    rng = np.random.default_rng(seed)
    lanes = form.lanes(np.dtype(dtype))
    K, R, V, P = (int(n) for n in rng.integers(1, (9, 4, 7, 4)))
    most = 31  # rows of a run
    c_step = (lanes + 1) * V
    terms = Terms(rng.integers(0, 40, K), rng.integers(0, 40, K))
    rows = rng.integers(1, most, R)
    runs = Runs(
        rng.integers(0, 20, R),
        rng.integers(0, 20, R),
        np.arange(R) * most * c_step,
        rng.integers(0, 5, R),
        rows,
    )
    steps = int(rng.integers(0, 9)), c_step
    vectors = Vectors(
        rng.integers(0, 30, V),
        np.arange(V) * (lanes + 1),
        rng.integers(0, 10, V),
        rng.integers(0, lanes + 1, V),
    )
    parts = Parts(
        rng.integers(0, 20, P),
        rng.integers(0, 20, P),
        np.arange(P) * R * most * c_step,
        rng.integers(0, 6, P),
    )
    vectors.numbers[0] = max(vectors.numbers[0], 1)
    together = int(rng.integers(1, 7))
    of = form, np.dtype(dtype), kind
    sums = Sums(*of, terms, runs, steps, vectors, parts, together=together)
    A, B, C, D = (guarded(sums.reach[name], dtype) for name in "abcd")
    for array in (A, B, D):
        array[...] = rng.integers(-4, 5, array.size)
    C[...] = 777
    expected = C.copy()
    by_hand(kind, terms, runs, steps, vectors, parts, (A, B, D), expected)
    program = Program([[sums.of(*(Place(array) for array in range(4)))]])
    program.run([[A, B, C, D]])
    np.testing.assert_array_equal(C, expected)
    for short in range(4):
        arrays = [
            array[: array.size - (place == short)] for place, array in enumerate((A, B, C, D))
        ]
        with pytest.raises(ValueError, match=f"numbers of {np.dtype(dtype)} in array {short}"):
            program.run([arrays])


ONE, NONE = np.ones(1, int), np.zeros(1, int)


def small_sums(**other):
    given = {
        "terms": Terms(NONE, NONE),
        "runs": Runs(NONE, NONE, NONE, NONE, ONE),
        "vectors": Vectors(NONE, NONE, NONE, 8 * ONE),
        "parts": Parts(NONE, NONE, NONE, NONE),
        "steps": (1, 8),
        **other,
    }
    return Sums(AVX2, np.dtype(np.float32), Kind.FILTERS, **given, together=2)


@runs_here
@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ({"terms": Terms(NONE - 1, NONE)}, "begins before its array"),
        ({"runs": Runs(NONE, NONE, NONE, NONE, NONE)}, "empty"),
        ({"steps": (-1, 8)}, "begins before its array"),
        ({"vectors": Vectors(NONE, NONE, NONE, 9 * ONE)}, "a vector holds 8 numbers, got 9"),
        ({"terms": Terms(NONE, NONE + 2**29)}, "further than"),
    ],
)
def test_sums_that_cannot_be_are_refused(other, complaint):
    with pytest.raises(ValueError, match=complaint):
        small_sums(**other)


@runs_here
def test_sums_refuse_other_types_and_results_that_are_frozen():
    sums = small_sums()
    program = Program([[sums.of(*(Place(array) for array in range(4)))]])
    arrays = [np.zeros(sums.reach[name], np.float32) for name in "abcd"]
    with pytest.raises(ValueError, match="float64"):
        program.run([[arrays[0].astype(float), *arrays[1:]]])
    arrays[2].flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        program.run([arrays])
