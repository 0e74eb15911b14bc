"""What the library runs on: versions, BLAS libraries, workers, workspace."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from threadpoolctl import threadpool_info

from im2col_conv.engine.machine.memory import forms_here, why_not_run
from im2col_conv.engine.openblas import private_blas, why_not
from im2col_conv.engine.settings import get_workers, get_workspace

__all__ = ["BlasLibrary", "Configuration", "configuration", "show_config"]


@dataclass(frozen=True)
class BlasLibrary:
    """One BLAS library that the process has loaded.

    Attributes
    ----------
    name, version, kernel : str
        As the library says; the kernel is the processor family that its code is written for.
    threads : int
        Threads that it uses outside this library's calls.
    """

    name: str
    version: str
    kernel: str
    threads: int


@dataclass(frozen=True)
class Configuration:
    """What the library runs on; its ``str`` is a readable list."""

    versions: dict[str, str]
    blas: tuple[BlasLibrary, ...]
    workers: int
    workspace: int
    private_blas: str = "not asked for"
    machine_code: str = "not asked for"

    def __str__(self) -> str:
        """One fact a line."""
        lines = [f"{name:<14}{number}" for name, number in self.versions.items()]
        lines += [
            f"{'BLAS':<14}{library.name} {library.version}, {library.kernel} kernel, "
            f"{library.threads} threads"
            for library in self.blas
        ]
        lines.append(f"{'private BLAS':<14}{self.private_blas}")
        lines.append(f"{'machine code':<14}{self.machine_code}")
        lines.append(f"{'workers':<14}{self.workers}")
        lines.append(f"{'workspace':<14}{self.workspace / 2**20:g} MiB")
        return "\n".join(lines)


def configuration() -> Configuration:
    """Return what the library runs on.

    Examples
    --------
    >>> sorted(configuration().versions)
    ['im2col-conv', 'numpy', 'python', 'scipy', 'threadpoolctl']
    """
    versions = {"python": platform.python_version()}
    for package in ("im2col-conv", "numpy", "scipy", "threadpoolctl"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that is not installed
            versions[package] = "unknown"
    blas = tuple(
        BlasLibrary(
            name=str(library.get("internal_api", "unknown")),
            version=str(library.get("version", "unknown")),
            kernel=str(library.get("architecture", "unknown")),
            threads=int(library.get("num_threads", 0)),
        )
        for library in threadpool_info()
        if library.get("user_api") == "blas"
    )
    machine_code = why_not_run() or f"x86-64 with {_instructions()}"
    return Configuration(
        versions, blas, get_workers(), get_workspace(), _private_blas(), machine_code
    )


def _instructions() -> str:
    return "AVX-512" if any(form.masks for form in forms_here()) else "AVX2"


def _private_blas() -> str:
    library = private_blas()
    return why_not() or "none" if library is None else f"{library.kernel} kernel, one thread"


def show_config() -> Configuration:
    """Print what the library runs on, and return it for programs.

    Returns
    -------
    Configuration
        With the fields ``versions``, ``blas``, ``workers``, ``workspace``, ``private_blas`` and
        ``machine_code``, which says whether ``algorithm="direct"`` can run, or why not.

    Examples
    --------
    >>> config = show_config()                                        # doctest: +ELLIPSIS
    python        3...
    >>> config.workspace == get_workspace()
    True
    """
    config = configuration()
    print(config)
    return config
