"""A private OpenBLAS beside NumPy's: batches of small products, and transposed copies.

NumPy offers one product a call, and its library may run kernels older than the processor. The extra
``fast`` brings a second OpenBLAS, which is opened here by ctypes and belongs to this package alone:
it runs kernels that fit the processor, always on one thread, and does not touch NumPy's.

This is the only module that calls C. It takes no addresses, but
:class:`~im2col_conv.engine.products.Products` and :class:`~im2col_conv.engine.copies.Copies`, which
have proved their bounds.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_char_p, c_double, c_float, c_int, c_void_p
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import ThreadpoolController

from im2col_conv.arrays import Array
from im2col_conv.engine.copies import Copies
from im2col_conv.engine.kernels import judge, processor_features
from im2col_conv.engine.products import Products

__all__ = ["INSTALL", "OpenBlas", "is_private", "private_blas", "why_not"]

INSTALL = 'pip install "im2col-conv[fast]"'

_PACKAGE, _CORETYPE = "scipy_openblas32", "OPENBLAS_CORETYPE"
_PACKING = frozenset({"Haswell", "Zen"})  # for AVX2; AVX-512's spare small products
# Numbers of a copy that is over sooner than another thread wakes up to take the lock meanwhile.
SHORT_COPY = 2**14

_LETTERS = {"s": (np.dtype(np.float32), c_float), "d": (np.dtype(np.float64), c_double)}


class _Functions(NamedTuple):
    """The C functions of one type of number."""

    gemm_batch: Any
    omatcopy: Any
    short_omatcopy: Any  # which keeps the interpreter's lock


class OpenBlas:
    """One opened library.

    Attributes
    ----------
    kernel : str
        The processor family that its code is written for.
    packs : bool
        Whether its kernel is known to copy the operands of small products too, as of large ones.
    types : frozenset of dtype
        What it multiplies.
    """

    def __init__(self, path: Path) -> None:
        """Open the library and find every function, or raise OSError or AttributeError."""
        library, short = ctypes.CDLL(str(path)), ctypes.PyDLL(str(path))
        self._one_thread = short.scipy_openblas_set_num_threads
        self._one_thread.argtypes, self._one_thread.restype = [c_int], None
        corename = library.scipy_openblas_get_corename
        corename.restype = c_char_p
        self.kernel: str = corename().decode()
        self.packs = self.kernel in _PACKING
        self._functions = {
            dtype: _functions(library, short, letter, number)
            for letter, (dtype, number) in _LETTERS.items()
        }
        self.types = frozenset(self._functions)

    def run(
        self, products: Products, a: Array, b: Array, c: Array, bias: Array | None = None
    ) -> None:
        """Do each of the ``products``, in order: C += A @ B.

        With two threads, products that add to the same cells of C would race; and since whoever
        limits the threads of a process may set ours as well, one is asked for each time.
        """
        self._one_thread(1)
        products.run(self._functions[c.dtype].gemm_batch, a, b, c, bias)

    def copy(self, copies: Copies, source: Array, target: Array) -> None:
        """Do the ``copies`` from one array to another."""
        functions = self._functions[source.dtype]
        short = copies.size < SHORT_COPY
        copies.run(functions.short_omatcopy if short else functions.omatcopy, source, target)


def _functions(library: ctypes.CDLL, short: ctypes.PyDLL, letter: str, number: Any) -> _Functions:
    gemm_batch = library[f"scipy_cblas_{letter}gemm_batch"]
    gemm_batch.argtypes = [c_int, *[c_void_p] * 13, c_int, c_void_p]
    gemm_batch.restype = None
    copies = [each[f"scipy_cblas_{letter}omatcopy"] for each in (library, short)]
    for omatcopy in copies:
        omatcopy.argtypes = [c_int] * 4 + [number, c_void_p, c_int, c_void_p, c_int]
        omatcopy.restype = None
    return _Functions(gemm_batch, *copies)


def private_blas() -> OpenBlas | None:
    """Return the private library, opened when first asked for, or None where there is none."""
    library = _found()
    return library if isinstance(library, OpenBlas) else None


def why_not() -> str | None:
    """Say why there is no private library; None where there is one."""
    library = _found()
    return None if isinstance(library, OpenBlas) else library


def is_private(path: str) -> bool:
    """Say whether a library is the one that belongs to this package, opened or not."""
    spec = find_spec(_PACKAGE)
    folders = spec.submodule_search_locations or () if spec else ()
    return any(Path(folder).resolve() in Path(path).parents for folder in folders)


@cache
def _found() -> OpenBlas | str:
    try:
        with _fitting_kernel():
            package = import_module(_PACKAGE)
            return OpenBlas(_path(package))
    except ImportError as error:
        if error.name == _PACKAGE:
            return f"the extra fast is not installed: {INSTALL}"
        return f"scipy_openblas32 cannot be imported: {error}"
    except OSError as error:
        return f"the library of scipy_openblas32 cannot be loaded: {error}"
    except AttributeError as error:
        return f"scipy_openblas32 lacks a function, a newer one has it: {error}"


def _path(package: Any) -> Path:
    """Return the shared library of the package; other files may lie beside it."""
    names = {".so", ".dylib", ".dll"}
    for path in sorted(Path(package.get_lib_dir()).glob("libscipy_openblas*")):
        if names.intersection(path.suffixes):
            return path
    raise OSError(f"no shared library in {package.get_lib_dir()}")


@contextmanager
def _fitting_kernel() -> Iterator[None]:
    """Load the library with a kernel that fits the processor, unless the user has named one.

    OpenBLAS goes by the processor's family number when it is loaded and knows only families older
    than itself. So where NumPy's OpenBLAS has picked a kernel too old, this one is told.
    """
    coretype = None if _CORETYPE in os.environ else _wanted_kernel()
    if coretype is None:
        yield
        return
    os.environ[_CORETYPE] = coretype
    try:
        yield
    finally:
        del os.environ[_CORETYPE]


def _wanted_kernel() -> str | None:
    features = processor_features()
    judgements = [
        judge("openblas", library["architecture"], features)
        for library in ThreadpoolController().info()
        if library["internal_api"] == "openblas"
    ]
    return next((j.coretype for j in judgements if j.coretype), None)
