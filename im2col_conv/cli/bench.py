"""``im2col-conv bench``: this library against others, layer by layer, turn about."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import version
from statistics import geometric_mean

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

import im2col_conv as ic
from im2col_conv.cli.console import (
    NARROW,
    json_option,
    progress_console,
    text_console,
    write_json,
)
from im2col_conv.cli.doctor import processor_name
from im2col_conv.cli.layers import LAYERS
from im2col_conv.cli.peers import PEERS, Peer
from im2col_conv.cli.timing import Timing, threads_for_all, time_layer
from im2col_conv.config import configuration

__all__ = ["bench"]

_REPEATS = 15
_US = PEERS[0]


@click.command()
@click.option(
    "--layer",
    "names",
    metavar="NAME",
    multiple=True,
    type=click.Choice(list(LAYERS)),
    help="Time this layer; may be given more than once. Without it, all but tiny.",
)
@click.option("--list", "only_list", is_flag=True, help="List the layers and stop.")
@click.option(
    "--repeats",
    metavar="N",
    type=click.IntRange(min=1),
    default=_REPEATS,
    show_default=True,
    help="Turns of every contestant; the lower quartile counts.",
)
@json_option
def bench(names: tuple[str, ...], only_list: bool, repeats: int, as_json: bool) -> None:
    """Time this library against others, layer by layer.

    In float32, forward and backward, with as many threads for each as this library has workers:
    the classic lowering (one whole column matrix) in NumPy, and, where they are installed, PyTorch,
    ONNX Runtime (forward only) and JAX. Contestants take turns in one run, and their results are
    compared before anything is timed.

    A figure is this library's time over the other's: below 1, this library is faster.
    """
    if only_list:
        _list_layers(as_json)
        return
    workers, load, missing = ic.get_workers(), _load(), _missing()
    peers = [peer for peer in PEERS if peer not in missing]
    chosen = names or tuple(name for name in LAYERS if name != "tiny")
    console, bars = text_console(), progress_console()
    timings: list[Timing] = []
    with threads_for_all(workers):
        for name in track(
            chosen, "timing", console=bars, transient=True, disable=not bars.is_terminal
        ):
            timings += time_layer(LAYERS[name], peers, workers, repeats)
    if as_json:
        write_json(_record(timings, missing, workers, load, repeats))
    else:
        _report(timings, missing, console)
        if load > workers / 4:
            bars.print(
                f"\nOther programs were running (load {load:.1f}): the figures may be far off, "
                "most of all for contestants whose threads wait for one another."
            )


def _list_layers(as_json: bool) -> None:
    if as_json:
        write_json({name: layer._asdict() for name, layer in LAYERS.items()})
        return
    console = text_console()
    for name, layer in LAYERS.items():
        if console.width < NARROW:
            console.print(f"{name}\n  {layer}")
        else:
            console.print(f"{name:<18} {layer}")


def _missing() -> list[Peer]:
    """Return the peers of which a package cannot be imported."""
    return [peer for peer in PEERS if not peer.is_installed()]


def _load() -> float:
    """Return how many threads of the machine were at work in the last minute."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # not on Windows
        return 0.0


def _record(
    timings: list[Timing], missing: list[Peer], workers: int, load: float, repeats: int
) -> dict[str, object]:
    config = configuration()
    installed = [package for p in PEERS if p not in missing for package in p.packages]
    return {
        "versions": {**config.versions, **{package: version(package) for package in installed}},
        "processor": processor_name(),
        "kernels": [f"{library.name} {library.kernel}" for library in config.blas],
        "threads": workers,
        "load_before": load,
        "repeats": repeats,
        "skipped": {peer.name: peer.pip_command for peer in missing},
        "layers": [
            {
                "layer": timing.layer,
                "pass": timing.direction,
                "seconds": timing.seconds,
                "ratios": timing.ratios(_US.name),
            }
            for timing in timings
        ],
        "geometric_mean": dict(_means(timings)),
    }


def _report(timings: list[Timing], missing: list[Peer], console: Console) -> None:
    console.print("Time of this library over the other's (below 1, this library is faster)\n")
    if console.width < NARROW:
        _write_list(timings, console)
    else:
        _write_table(timings, console)
    for peer in missing:
        console.print(
            f"\n{peer.name} is skipped, since it is not installed:\n  {peer.pip_command}",
            soft_wrap=True,
        )


def _write_table(timings: list[Timing], console: Console) -> None:
    others = [name for name, _ in _means(timings)]
    table = Table(box=None, pad_edge=False, show_footer=True)
    table.add_column("layer", "geometric mean", no_wrap=True)
    table.add_column("pass")
    table.add_column("ms", justify="right")
    for name, mean in _means(timings):
        table.add_column(name, f"{mean:.2f}", justify="right")
    for timing in timings:
        ratios = timing.ratios(_US.name)
        table.add_row(
            timing.layer,
            timing.direction,
            f"{1e3 * timing.seconds[_US.name]:.2f}",
            *(f"{ratios[name]:.2f}" if name in ratios else "" for name in others),
        )
    console.print(table)


def _write_list(timings: list[Timing], console: Console) -> None:
    for timing in timings:
        milliseconds = 1e3 * timing.seconds[_US.name]
        console.print(f"{timing.layer}, {timing.direction}: {milliseconds:.2f} ms")
        for name, ratio in timing.ratios(_US.name).items():
            console.print(f"  {name:<12}{ratio:6.2f}")
    console.print("geometric mean")
    for name, mean in _means(timings):
        console.print(f"  {name:<12}{mean:6.2f}")


def _means(timings: list[Timing]) -> Iterator[tuple[str, float]]:
    """Yield the geometric mean of the ratios to each other contestant."""
    ratios = [timing.ratios(_US.name) for timing in timings]
    for name in dict.fromkeys(name for each in ratios for name in each):
        yield name, geometric_mean(each[name] for each in ratios if name in each)
