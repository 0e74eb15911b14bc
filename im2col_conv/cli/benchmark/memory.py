"""Measure the memory of one pass beyond its inputs and results, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from im2col_conv.cli.benchmark.layers import Layer

__all__ = ["COMPARED", "extra_memory"]

COMPARED = ("classic", "pytorch")
"""Peers whose first call compiles nothing, so that its memory is that of the computation."""


def extra_memory(layer: Layer, contestant: str, direction: str, threads: int) -> int | None:
    """Return the largest resident memory of one pass beyond its inputs and results.

    Parameters
    ----------
    layer : Layer
    contestant : str
        Its name.
    direction : {"forward", "backward"}
    threads : int

    Returns
    -------
    int or None
        In bytes; None where the contestant does not compute this.

    Raises
    ------
    ChildProcessError
        With the last line that the process wrote, where it failed.
    """
    order = {
        "layer": asdict(layer),
        "contestant": contestant,
        "direction": direction,
        "threads": threads,
    }
    command = [sys.executable, "-m", "im2col_conv.cli.benchmark.peak"]
    child = subprocess.run(
        command, input=json.dumps(order), capture_output=True, text=True, check=False
    )
    if child.returncode:
        last = (child.stderr.splitlines() or ["no word"])[-1]
        raise ChildProcessError(f"measuring {contestant} on {layer.name} failed: {last}")
    answer: dict[str, Any] = json.loads(child.stdout)
    extra: int | None = answer["bytes"]
    return extra
