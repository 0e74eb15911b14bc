"""``im2col-conv doctor``: what the library runs on, and what would make it faster."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click
from rich.console import Console

from im2col_conv.cli.console import json_option, text_console, write_json
from im2col_conv.config import BlasLibrary, Configuration, configuration
from im2col_conv.engine.kernels import Judgement, export_line, judge, processor_features

__all__ = ["doctor", "processor_name"]

_OPTIONAL = ("click", "rich", "matplotlib", "torch", "onnx", "onnxruntime", "jax")
_STYLES = {"fits": "green", "too old": "yellow", "unknown": ""}
_LABEL = 15


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what the library runs on, and what would make it faster.

    Versions, processor, BLAS libraries with their kernels and threads, workers and workspace. Where
    a kernel is older than the processor, the line that mends it is printed.
    """
    config, features = configuration(), processor_features()
    judgements = [judge(library.name, library.kernel, features) for library in config.blas]
    if as_json:
        write_json(_record(config, judgements))
    else:
        _report(config, judgements, text_console())


def processor_name() -> str:
    """Return what the processor calls itself, as far as the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:  # Linux alone has this file
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine() or "unknown"


def _record(config: Configuration, judgements: list[Judgement]) -> dict[str, object]:
    return {
        "versions": {**config.versions, **_optional_versions()},
        "processor": processor_name(),
        "blas": [
            {**asdict(library), **judgement._asdict()}
            for library, judgement in zip(config.blas, judgements, strict=True)
        ],
        "private_blas": config.private_blas,
        "machine_code": config.machine_code,
        "workers": config.workers,
        "workspace": config.workspace,
        "advice": _advice(judgements),
    }


def _report(config: Configuration, judgements: list[Judgement], console: Console) -> None:
    for package, number in {**config.versions, **_optional_versions()}.items():
        _fact(console, package, number)
    _fact(console, "processor", processor_name())
    _fact(console, "private BLAS", config.private_blas)
    _fact(console, "machine code", config.machine_code)
    _fact(console, "workers", str(config.workers))
    _fact(console, "workspace", f"{config.workspace / 2**20:g} MiB")
    for library, judgement in zip(config.blas, judgements, strict=True):
        console.print()
        _judged(console, library, judgement)
    for line in _advice(judgements):
        console.print(
            "\nOpenBLAS has better kernels for this processor, about twice as fast in its matrix "
            "products. It picks them when it is loaded, so set this before Python starts:\n"
        )
        # In one piece whatever the width, since it is there to be copied.
        console.print(f"  {line}", style="bold", soft_wrap=True)


def _judged(console: Console, library: BlasLibrary, judgement: Judgement) -> None:
    _fact(console, "BLAS", f"{library.name} {library.version}")
    _fact(console, "threads", str(library.threads))
    _fact(console, "kernel", f"{library.kernel}: {judgement.verdict}", _STYLES[judgement.verdict])
    console.print(judgement.reason, style="dim")


def _fact(console: Console, label: str, fact: str, style: str = "") -> None:
    console.print(f"{label:<{_LABEL}}{fact}", style=style)


def _advice(judgements: list[Judgement]) -> list[str]:
    wanted = {judgement.coretype for judgement in judgements if judgement.coretype}
    return [export_line(coretype, platform.system()) for coretype in sorted(wanted)]


def _optional_versions() -> dict[str, str]:
    found = {}
    for package in _OPTIONAL:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
