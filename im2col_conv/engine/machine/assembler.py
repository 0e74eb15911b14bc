"""Machine code for x86-64 with AVX2 or AVX-512, instruction by instruction: no more than is needed.

An instruction is a few bytes: prefixes that say how wide it is and which registers are meant, a
number for what it does, and its operands. Every operand in memory is written alike here,

    base + counter * scale + displacement,

with four bytes of displacement, so that there is one way to understand and to test. The source is
the Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2 (Intel, 2024).
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np

__all__ = ["AVX2", "AVX512", "Address", "Assembler", "Form", "Register", "Vector"]


class Register(int):
    """One of the sixteen registers for integers and addresses, by the processor's number."""


class Vector(int):
    """One of the registers of vectors, by the processor's number."""


class Address(NamedTuple):
    """Where an operand lies in memory: at base + counter * scale + displacement."""

    base: Register
    counter: Register | None = None
    scale: int = 1
    displacement: int = 0


class Form(NamedTuple):
    """How instructions of vectors are written.

    Attributes
    ----------
    size : int
        Bytes of a vector.
    registers : int
        Of vectors. Where there are 32, instructions are those of AVX-512.
    """

    size: int
    registers: int

    @property
    def masks(self) -> bool:
        """Whether masks have registers of their own, with a bit for each number."""
        return self.registers > 16

    def lanes(self, dtype: np.dtype[Any]) -> int:
        """Return how many numbers a vector has."""
        return self.size // dtype.itemsize


AVX2, AVX512 = Form(32, 16), Form(64, 32)

_STACK = 4  # as a counter, it means that there is none
_SCALES = {1: 0, 2: 1, 4: 2, 8: 3}

_NO_PREFIX, _66, _F3, _F2 = range(4)  # of vector instructions, which a prefix tells apart
_0F, _0F38, _0F3A = 1, 2, 3  # the tables that their numbers are of
_Opcode: TypeAlias = tuple[int, int, int]  # a number, a prefix and a table


class Assembler:
    """Bytes of machine code, with names for places to jump to.

    Parameters
    ----------
    form : Form
        Of the vectors.
    double : bool
        Whether they hold numbers of 64 bits, and not of 32.

    Examples
    --------
    >>> code = Assembler(AVX2, double=False)
    >>> code.add_number(Register(0), 1)
    >>> code.back()
    >>> code.finished().hex(" ")
    '48 81 c0 01 00 00 00 c3'
    """

    def __init__(self, form: Form, *, double: bool) -> None:
        self._form, self._double = form, double
        self._code = bytearray()
        self._labels: dict[str, int] = {}
        self._jumps: list[tuple[int, str]] = []

    def finished(self) -> bytes:
        """Return the code, with each jump told how far it is."""
        code = bytearray(self._code)
        for at, label in self._jumps:
            code[at : at + 4] = (self._labels[label] - at - 4).to_bytes(4, "little", signed=True)
        return bytes(code)

    def label(self, name: str) -> None:
        """Give this place a name."""
        self._labels[name] = len(self._code)

    def place(self, name: str) -> int:
        """Return how many bytes lie before a named place."""
        return self._labels[name]

    # Integers and addresses

    def load(self, target: Register, source: Address) -> None:
        """Set ``target`` to 8 bytes of memory."""
        self._integer(0x8B, target, source)

    def store(self, target: Address, source: Register) -> None:
        """Set 8 bytes of memory."""
        self._integer(0x89, source, target)

    def load_int32(self, target: Register, source: Address) -> None:
        """Set ``target`` to 4 bytes of memory, with their sign."""
        self._integer(0x63, target, source)

    def load_address(self, target: Register, source: Address) -> None:
        """Set ``target`` to where an operand lies."""
        self._integer(0x8D, target, source)

    def set_number(self, target: Register, number: int) -> None:
        """Set ``target`` to ``number``."""
        self._integer(0xC7, Register(0), target)
        self._number(number)

    def add(self, target: Register, source: Address | Register) -> None:
        """Add to ``target``."""
        self._integer(0x03, target, source)

    def add_number(self, target: Register, number: int) -> None:
        """Add ``number`` to ``target``."""
        self._integer(0x81, Register(0), target)
        self._number(number)

    def compare(self, left: Register, right: Address | Register) -> None:
        """Compare, for a jump that follows."""
        self._integer(0x3B, left, right)

    def compare_with_zero(self, register: Register) -> None:
        """Compare with zero, for a jump that follows."""
        self._integer(0x85, register, register)

    def compare_with(self, register: Register, number: int) -> None:
        """Compare with ``number``, for a jump that follows."""
        self._integer(0x81, Register(7), register)
        self._number(number)

    def push(self, register: Register) -> None:
        """Lay ``register`` on the stack."""
        self._code += bytes([0x40 | register >> 3, 0x50 | register & 7])

    def pop(self, register: Register) -> None:
        """Take ``register`` from the stack."""
        self._code += bytes([0x40 | register >> 3, 0x58 | register & 7])

    # What several threads do to the same memory

    def exchange(self, register: Register, place: Address) -> None:
        """Exchange ``register`` and 8 bytes of memory, before or after all others do."""
        self._integer(0x87, register, place)

    def exchange_add(self, place: Address, register: Register) -> None:
        """Add ``register`` to 8 bytes of memory, and set it to what they were: all at once."""
        self._at_once(0xC1, register, place)

    def exchange_if_equal(self, place: Address, register: Register) -> None:
        """Set 8 bytes of memory to ``register`` if register 0 equals them, else it to them.

        A jump that follows finds out whether they were equal.
        """
        self._at_once(0xB1, register, place)

    def pause(self) -> None:
        """Wait a moment: others change what this thread looks at."""
        self._code += b"\xf3\x90"

    def system_call(self) -> None:
        """Have Linux do what register 0 says; it changes that one, 1 and 11."""
        self._code += b"\x0f\x05"

    # Jumps

    def jump(self, label: str) -> None:
        """Go on at ``label``."""
        self._jump(b"\xe9", label)

    def jump_if_zero(self, label: str) -> None:
        """Go on at ``label`` if the last result was zero, or if what was compared is equal."""
        self._jump(b"\x0f\x84", label)

    def jump_if_less(self, label: str) -> None:
        """Go on at ``label`` if the left of what was compared is the less."""
        self._jump(b"\x0f\x8c", label)

    def jump_if_not_zero(self, label: str) -> None:
        """Go on at ``label`` if it was not."""
        self._jump(b"\x0f\x85", label)

    def jump_to(self, target: Address) -> None:
        """Go on where 8 bytes of memory say."""
        self._integer(0xFF, Register(4), target)

    def call(self, target: Address) -> None:
        """Run a function that begins where 8 bytes of memory say."""
        self._integer(0xFF, Register(2), target)

    def call_place(self, label: str) -> None:
        """Run a function that begins at ``label``."""
        self._jump(b"\xe8", label)

    def back(self) -> None:
        """Return to the caller."""
        self._code += b"\xc3"

    # Vectors

    def load_vector(self, target: Vector, source: Address) -> None:
        """Set ``target`` to a vector of memory."""
        self._vector((0x10, _NO_PREFIX, _0F), target, Vector(0), source)

    def store_vector(self, target: Address, source: Vector) -> None:
        """Set a vector of memory."""
        self._vector((0x11, _NO_PREFIX, _0F), source, Vector(0), target)

    def load_mask(self, mask: Vector, source: Address) -> None:
        """Set ``mask`` to one in memory: where masks have registers of their own, to two bytes."""
        if self._form.masks:
            self._vex((0x90, _NO_PREFIX, _0F), mask, Vector(0), source, bits_256=False)
        else:
            self.load_vector(mask, source)

    def store_masked(self, target: Address, mask: Vector, source: Vector) -> None:
        """Set those numbers in memory whose mask is one, or has its highest bit."""
        if self._form.masks:
            prefix, wide = (_66, True) if self._double else (_NO_PREFIX, False)
            self._evex((0x11, prefix, _0F), source, Vector(0), target, wide=wide, mask=mask)
        else:
            number = 0x2F if self._double else 0x2E
            self._vex((number, _66, _0F38), source, mask, target)

    def broadcast(self, target: Vector, source: Address) -> None:
        """Set every number of ``target`` to one in memory."""
        number = 0x19 if self._double else 0x18
        wide = self._double and self._form.masks
        self._vector((number, _66, _0F38), target, Vector(0), source, wide=wide)

    def copy_vector(self, target: Vector, source: Vector) -> None:
        """Set ``target`` to ``source``."""
        self._vector((0x28, _NO_PREFIX, _0F), target, Vector(0), source)

    def multiply_add(self, target: Vector, left: Vector, right: Vector | Address) -> None:
        """Add ``left`` times ``right`` to ``target``, rounded once."""
        self._vector((0xB8, _66, _0F38), target, left, right, wide=self._double)

    # Those that are written for AVX2 alone

    def load_one(self, target: Vector, source: Address) -> None:
        """Set the first number of ``target`` to one in memory, and the others to zero."""
        self._vex((0x10, _F2 if self._double else _F3, _0F), target, Vector(0), source)

    def store_one(self, target: Address, source: Vector) -> None:
        """Set one number in memory to the first of ``source``."""
        self._vex((0x11, _F2 if self._double else _F3, _0F), source, Vector(0), target)

    def take_even(self, target: Vector, source: Address) -> None:
        """Set ``target`` to its even numbers of 32 bits, and those of 32 bytes of memory."""
        two_and_two, inner_parts_exchanged = 0x88, 0xD8
        self._vex((0xC6, _NO_PREFIX, _0F), target, target, source)
        self._code.append(two_and_two)
        self._vex((0x01, _66, _0F3A), target, Vector(0), target, wide=True)
        self._code.append(inner_parts_exchanged)

    def interleave(
        self, target: Vector, left: Vector, right: Vector, *, high: bool, double: bool
    ) -> None:
        """Set ``target`` to numbers of both in turn: the lower or the higher two of each half.

        Of 64 bits, where ``double``, one of each half; else of 32.
        """
        prefix = _66 if double else _NO_PREFIX
        self._vex((0x15 if high else 0x14, prefix, _0F), target, left, right)

    def join_halves(self, target: Vector, left: Vector, right: Vector, *, high: bool) -> None:
        """Set ``target`` to the lower halves of both, or the higher ones."""
        self._vex((0x06, _66, _0F3A), target, left, right)
        self._code.append(0x31 if high else 0x20)

    def clear_upper_halves(self) -> None:
        """Clear the upper halves of all vectors, without which older code would run slowly."""
        self._code += b"\xc5\xf8\x77"

    # Forms

    def _integer(self, number: int, register: Register, other: Address | Register) -> None:
        self._code += bytes([_wide(register, other), number])
        self._operand(register, other)

    def _at_once(self, number: int, register: Register, place: Address) -> None:
        """Write an instruction of the second table, during which no other meets the memory."""
        self._code += bytes([0xF0, _wide(register, place), 0x0F, number])
        self._operand(register, place)

    def _vector(
        self,
        opcode: _Opcode,
        register: Vector,
        second: Vector,
        other: Vector | Address,
        *,
        wide: bool = False,
    ) -> None:
        """Write an instruction of vectors that all forms have."""
        if self._form.masks:
            self._evex(opcode, register, second, other, wide=wide)
        else:
            self._vex(opcode, register, second, other, wide=wide)

    def _vex(
        self,
        opcode: _Opcode,
        register: Vector,
        second: Vector,
        other: Vector | Address,
        *,
        wide: bool = False,
        bits_256: bool = True,
    ) -> None:
        """Write an instruction of AVX2: its prefix holds the high bits of registers inverted."""
        (number, prefix, table), (counter, base) = opcode, _parts(other)
        if max(register, second, base) > 15:
            raise ValueError("an instruction of AVX2 has sixteen registers of vectors")
        high = register >> 3 << 7 | counter >> 3 << 6 | base >> 3 << 5
        last = wide << 7 | (second ^ 15) << 3 | bits_256 << 2 | prefix
        self._code += bytes([0xC4, high ^ 0xE0 | table, last, number])
        self._operand(register, other)

    def _evex(
        self,
        opcode: _Opcode,
        register: Vector,
        second: Vector,
        other: Vector | Address,
        *,
        wide: bool,
        mask: int = 0,
    ) -> None:
        """Write an instruction of AVX-512; a register that is the last operand has a bit more."""
        (number, prefix, table), (counter, base) = opcode, _parts(other)
        if not isinstance(other, Address):
            counter = base >> 4 << 3
        high = register >> 3 << 7 | counter >> 3 << 6 | (base >> 3 & 1) << 5 | register >> 4 << 4
        middle = wide << 7 | (second & 15 ^ 15) << 3 | 4 | prefix
        last = (self._form.size // 32) << 5 | (second >> 4 ^ 1) << 3 | mask
        self._code += bytes([0x62, (high & 0xFF) ^ 0xF0 | table, middle, last, number])
        self._operand(register, other)

    def _operand(self, register: int, other: int | Address) -> None:
        """Write which register is meant, and where the other operand is."""
        field = (register & 7) << 3
        if not isinstance(other, Address):
            self._code.append(0xC0 | field | other & 7)
            return
        counter, base = _parts(other)
        if other.counter is not None and counter == _STACK:
            raise ValueError("the stack's register cannot be a counter")
        in_four_bytes, by_index = 0x80, 4
        self._code += bytes([in_four_bytes | field | by_index])
        self._code.append(_SCALES[other.scale] << 6 | (counter & 7) << 3 | base & 7)
        self._number(other.displacement)

    def _number(self, number: int) -> None:
        self._code += number.to_bytes(4, "little", signed=True)

    def _jump(self, number: bytes, label: str) -> None:
        self._code += number
        self._jumps.append((len(self._code), label))
        self._number(0)


def _wide(register: int, other: int | Address) -> int:
    """Return the prefix that says that operands have 64 bits, and holds three of registers."""
    counter, base = _parts(other)
    return 0x48 | register >> 3 << 2 | counter >> 3 << 1 | base >> 3


def _parts(other: int | Address) -> tuple[int, int]:
    """Return the counter and the base of an operand; a register is a base alone."""
    if not isinstance(other, Address):
        return 0, other
    return _STACK if other.counter is None else other.counter, other.base
