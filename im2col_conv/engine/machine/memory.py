"""Memory that the processor may run, whether it can run what is written here, in which forms."""

from __future__ import annotations

import ctypes
import mmap
import platform
import sys
from functools import cache

from im2col_conv.engine.kernels import level_of, processor_features
from im2col_conv.engine.machine.assembler import AVX2, AVX512, Form

__all__ = ["forms_here", "loaded", "never_freed", "why_not_run"]


def loaded(code: bytes) -> int:
    """Return the address of ``code`` in memory that may be read and run, and written no more.

    Raises
    ------
    OSError
        Where the system does not let a process run what it has written.
    """
    memory = mmap.mmap(-1, len(code), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if protect(address, len(code), mmap.PROT_READ | mmap.PROT_EXEC):
        raise OSError(ctypes.get_errno(), "memory cannot be made executable")
    never_freed(memory)
    return address


def never_freed(memory: object) -> None:
    """Keep an object for as long as the process lives: threads may run in it to its very end."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(memory))


@cache
def forms_here() -> tuple[Form, ...]:
    """Return the forms that vectors of sums may have, those of most numbers first."""
    wide = level_of(processor_features()) == "AVX512"
    return (AVX512, AVX2) if wide else (AVX2,)


@cache
def why_not_run() -> str | None:
    """Say why code of :class:`~im2col_conv.engine.machine.assembler.Assembler` cannot run here.

    None where it can: on x86-64 with AVX2, under a system whose functions take their first argument
    where those of Linux and macOS do.
    """
    if platform.machine().lower() not in ("x86_64", "amd64") or sys.maxsize < 2**32:
        return f"it is machine code for x86-64, and this is {platform.machine()}"
    if sys.platform not in ("linux", "darwin"):
        return f"it is written for Linux and macOS, and this is {sys.platform}"
    features = processor_features()
    if level_of(features) is None or not features.get(
        "FMA3", True
    ):  # newer NumPy names both as one
        return "the processor has no AVX2 with multiply-adds, as far as known"
    try:
        address = loaded(b"\xc3")
    except OSError as error:
        return str(error)
    ctypes.CFUNCTYPE(None)(address)()
    return None
