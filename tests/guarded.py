"""Arrays between pages that nobody may touch: who reads or writes past their end is stopped."""

import ctypes
import mmap

import numpy as np

PAGE = mmap.PAGESIZE
NOBODY = 0


def guarded(count, dtype):
    """Return ``count`` numbers of zero that end where a forbidden page begins."""
    nbytes = count * np.dtype(dtype).itemsize
    inner = -(-max(nbytes, 1) // PAGE) * PAGE
    memory = mmap.mmap(-1, inner + 2 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (start, start + PAGE + inner):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(page), PAGE, NOBODY) == 0
    return np.frombuffer(memory, dtype, count, PAGE + inner - nbytes)
