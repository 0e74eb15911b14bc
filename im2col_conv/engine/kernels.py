"""Whether the kernels of a BLAS library fit the processor: judgement over plain data.

OpenBLAS holds kernels for many processors and picks one set when it is loaded. It goes by the
processor's family number, so that on a processor newer than itself it may pick kernels that leave
half of the arithmetic units idle. The variable OPENBLAS_CORETYPE overrules it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Literal, NamedTuple

__all__ = ["Judgement", "export_line", "judge", "level_of", "processor_features"]

# NumPy's names for what a processor offers; newer versions group them into levels.
_LEVELS = {"AVX512": ("AVX512_SKX", "X86_V4"), "AVX2": ("AVX2", "X86_V3")}
_KERNELS = {
    "AVX512": frozenset({"skylakex", "cooperlake", "sapphirerapids"}),
    "AVX2": frozenset({"haswell", "zen", "excavator"}),
    "older": frozenset(
        {
            *("katmai", "coppermine", "northwood", "prescott", "banias", "atom", "core2"),
            *("penryn", "dunnington", "nehalem", "sandybridge", "nano"),
            *("athlon", "opteron", "opteron_sse3", "barcelona", "bobcat"),
            *("bulldozer", "piledriver", "steamroller"),
        }
    ),
}
_WANTED = {"AVX512": "SkylakeX", "AVX2": "Haswell"}
_NAMES = {"AVX512": "AVX-512", "AVX2": "AVX2"}


class Judgement(NamedTuple):
    """What is to be said of one library's kernel.

    Attributes
    ----------
    verdict : {"fits", "too old", "unknown"}
    reason : str
    coretype : str or None
        What OPENBLAS_CORETYPE should say; None where it is well as it is.
    """

    verdict: Literal["fits", "too old", "unknown"]
    reason: str
    coretype: str | None = None


def judge(name: str, kernel: str, features: Mapping[str, bool]) -> Judgement:
    """Judge whether a library's kernel makes use of what the processor offers.

    Parameters
    ----------
    name, kernel : str
        Of the library, as it says them.
    features : mapping
        NumPy's names of instruction sets, and whether the processor has them.

    Returns
    -------
    Judgement
    """
    if "openblas" not in name.lower():
        return Judgement("unknown", f"{name} picks its kernels in its own way")
    offered = level_of(features)
    if offered is None:
        return Judgement("unknown", "the processor has neither AVX2 nor AVX-512, as far as known")
    ranks = list(_KERNELS)
    rank = next((r for r in ranks if kernel.lower() in _KERNELS[r]), None)
    if rank is None:
        return Judgement("unknown", f"no kernel of the name {kernel} is known here")
    if ranks.index(rank) <= ranks.index(offered):
        return Judgement("fits", f"the kernel uses the processor's {_NAMES[offered]}")
    reason = f"the processor has {_NAMES[offered]}, which the {kernel} kernel does not use"
    return Judgement("too old", reason, _WANTED[offered])


def export_line(coretype: str, system: str) -> str:
    """Return the shell line that picks a kernel; ``system`` is a name as ``platform.system()``."""
    return f"{'set' if system == 'Windows' else 'export'} OPENBLAS_CORETYPE={coretype}"


def processor_features() -> dict[str, bool]:
    """Return what NumPy found out about the processor; nothing where it does not say."""
    try:
        # Private, but the only place where NumPy says it.
        return dict(import_module("numpy._core._multiarray_umath").__cpu_features__)
    except (ImportError, AttributeError):
        return {}


def level_of(features: Mapping[str, bool]) -> str | None:
    """Return the best level that the processor has, of those that kernels differ by.

    Examples
    --------
    >>> level_of({"AVX2": True, "AVX512_SKX": False})
    'AVX2'
    """
    return next(
        (level for level, names in _LEVELS.items() if any(features.get(n) for n in names)), None
    )
