"""Who runs in the benchmark: this library, the classic lowering, and other libraries.

A contestant sets itself up for one layer, its data converted and its kernels compiled, and hands
back what is timed. Other libraries are imported when the benchmark runs, never before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from im2col_conv.cli.benchmark import classic, gemm, onnx_runtime, ours, pytorch, xla
from im2col_conv.cli.benchmark.data import Data, Runs
from im2col_conv.cli.benchmark.layers import Layer

__all__ = ["LIBRARY", "PEERS", "Contestant", "contestant", "with_algorithm"]

LIBRARY = "im2col_conv"
"""The name of this library among the contestants."""

_PREPARED = "prepared"


@dataclass(frozen=True)
class Contestant:
    """One contestant.

    Attributes
    ----------
    name : str
    set_up : callable
        From a layer, its data and a number of threads to what is timed.
    packages : tuple of str
        What pip installs for it, under the names that they are imported by.
    convolves : bool
        Whether its results are those of the convolution.
    """

    name: str
    set_up: Callable[[Layer, Data, int], Runs]
    packages: tuple[str, ...] = ()
    convolves: bool = True

    def is_installed(self) -> bool:
        """Say whether all its packages can be imported."""
        try:
            for package in self.packages:
                import_module(package)
        except ImportError:
            return False
        return True

    @property
    def pip_command(self) -> str:
        """The line that installs it."""
        return f"python -m pip install {' '.join(self.packages)}"


PEERS = {
    peer.name: peer
    for peer in (
        Contestant("classic", classic.set_up),
        Contestant("pytorch", pytorch.set_up, ("torch",)),
        Contestant("onnxruntime", onnx_runtime.set_up, ("onnxruntime", "onnx")),
        Contestant("jax", xla.set_up, ("jax",)),
        Contestant("gemm", gemm.set_up, convolves=False),
    )
}
"""All but this library, by name; ``gemm`` is no convolution but the limit of a lowered one."""


def with_algorithm(algorithm: str, *, prepared: bool = False) -> Contestant:
    """Return this library as a contestant, by one of its algorithms; maybe w is prepared."""
    name = LIBRARY if algorithm == "auto" else f"{LIBRARY} {algorithm}"
    return Contestant(name + f" {_PREPARED}" * prepared, ours.set_up_with(algorithm, prepared))


def contestant(name: str) -> Contestant:
    """Return a contestant by its name."""
    if name in PEERS:
        return PEERS[name]
    words = name.removeprefix(LIBRARY).split()
    algorithm = next((word for word in words if word != _PREPARED), "auto")
    return with_algorithm(algorithm, prepared=_PREPARED in words)
