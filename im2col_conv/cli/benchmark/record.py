"""The record of a run, as JSON for programs: where it ran, what ran, and what was found."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from im2col_conv.cli.benchmark.contestants import Contestant
from im2col_conv.cli.benchmark.layers import Layer
from im2col_conv.cli.doctor import processor_name
from im2col_conv.config import configuration

__all__ = ["check_target", "circumstances", "processor_load", "write"]


def circumstances(
    contestants: Iterable[Contestant], layers: Iterable[Layer], threads: int
) -> dict[str, Any]:
    """Return what a figure depends on beside the code: date, machine, versions, layers."""
    config = configuration()
    contestants = tuple(contestants)
    packages = (package for each in contestants for package in each.packages)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {**config.versions, **{package: version(package) for package in packages}},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "processors": os.cpu_count(),
        "blas": [asdict(library) for library in config.blas],
        "workspace": config.workspace,
        "threads": threads,
        "contestants": [each.name for each in contestants],
        "layers": {layer.name: asdict(layer) for layer in layers},
    }


def processor_load() -> float:
    """Return how many threads of the machine were at work in the last minute."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # not on Windows
        return 0.0


def check_target(path: Path) -> None:
    """Raise OSError where `write` could not write, before anyone has waited for the figures."""
    existed = path.exists()
    with path.open("ab"):
        pass
    if not existed:
        path.unlink()


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a record to a file."""
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
