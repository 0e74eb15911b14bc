"""Measure the largest resident memory of one call, in this process: what `memory` starts.

The kernel keeps the largest size of a process, VmHWM, and sets it back to the present size, VmRSS,
on request. A small layer is computed first, so that starting threads does not count; it is so small
that no memory which it leaves behind could hide what is measured. Nor do pages of code that are
loaded meanwhile count, RssFile.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from im2col_conv.cli.benchmark.contestants import contestant
from im2col_conv.cli.benchmark.data import NotCoveredError, random_data
from im2col_conv.cli.benchmark.layers import Layer
from im2col_conv.cli.benchmark.timing import threads_for_all

__all__ = ["check_system", "extra_bytes"]

_PROCESS = Path("/proc/self")
_SMALL = 16  # images of the first layer are at most so long, and have so many channels


def check_system() -> None:
    """Raise OSError where the system does not tell the largest memory of a process."""
    try:
        _forget_peak()
        _bytes("VmHWM"), _bytes("RssFile")
    except (OSError, LookupError):
        raise OSError(
            "memory is measured by VmHWM in /proc/self/status, which this system does not have"
        ) from None


def extra_bytes(layer: Layer, name: str, direction: str, threads: int) -> int | None:
    """Return the bytes of one pass beyond inputs and results; None where it cannot be computed."""
    set_up = contestant(name).set_up
    first = _small(layer)
    try:
        with threads_for_all(threads):
            warm = getattr(set_up(first, random_data(first), threads), direction)
            work = getattr(set_up(layer, random_data(layer), threads), direction)
            return None if work is None or warm is None else _grown(work, warm)
    except NotCoveredError:
        return None


def _grown(work: Callable[[], Any], warm: Callable[[], Any]) -> int:
    warm()
    _forget_peak()
    before = _bytes("VmRSS") - _bytes("RssFile")
    results = work()
    after = _bytes("VmHWM") - _bytes("RssFile")
    arrays = results if isinstance(results, tuple) else (results,)
    sizes: list[int] = [array.nbytes for array in arrays]
    return max(0, after - before - sum(sizes))


def _small(layer: Layer) -> Layer:
    """Return a layer of the same kind that takes next to no memory."""
    depthwise = layer.groups == layer.channels
    channels = layer.channels if depthwise else _SMALL * layer.groups
    return replace(
        layer,
        images=1,
        channels=channels,
        filters=layer.filters if depthwise else channels,
        size=tuple(max(taps, _SMALL) for taps in layer.kernel),
    )


def _forget_peak() -> None:
    (_PROCESS / "clear_refs").write_text("5")


def _bytes(field: str) -> int:
    lines = (_PROCESS / "status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return 1024 * int(fields[field].removesuffix("kB"))


def main() -> None:
    """Read what to measure from stdin, and print the answer."""
    order = json.load(sys.stdin)
    sizes: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in order["layer"].items()
    }
    found = extra_bytes(Layer(**sizes), order["contestant"], order["direction"], order["threads"])
    json.dump({"bytes": found}, sys.stdout)


if __name__ == "__main__":
    main()
