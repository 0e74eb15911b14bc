"""``im2col-conv bench``: this library against others, layer by layer, turn about."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.progress import track

import im2col_conv as ic
from im2col_conv.cli.benchmark.contestants import PEERS, Contestant, with_algorithm
from im2col_conv.cli.benchmark.layers import LAYERS, SETS, DType, Layer, Layout
from im2col_conv.cli.benchmark.memory import COMPARED
from im2col_conv.cli.benchmark.ours import ALGORITHMS
from im2col_conv.cli.benchmark.record import check_target, write
from im2col_conv.cli.benchmark.report import report
from im2col_conv.cli.benchmark.run import MEASURES, Plan, run
from im2col_conv.cli.benchmark.timing import DIRECTIONS
from im2col_conv.cli.console import (
    NARROW,
    json_option,
    progress_console,
    text_console,
    write_json,
)

__all__ = ["bench"]

_REPEATS = 15


@click.command()
@click.option(
    "--measure",
    type=click.Choice(list(MEASURES)),
    default="time",
    show_default=True,
    help="Time; largest memory beyond inputs and results; or how both grow with the work.",
)
@click.option(
    "--layer",
    "names",
    metavar="NAME",
    multiple=True,
    type=click.Choice(list(LAYERS)),
    help="Measure this layer; may be given more than once. --list names them.",
)
@click.option(
    "--set",
    "sets",
    multiple=True,
    type=click.Choice(list(SETS)),
    help="Measure these layers: of two axes, or of one and three.  "
    "[default: standard; of growth, the layer growth]",
)
@click.option("--list", "only_list", is_flag=True, help="List the layers and stop.")
@click.option(
    "--layout",
    type=click.Choice(["channels_first", "channels_last"]),
    default="channels_first",
    show_default=True,
    help="The order of the axes of images.",
)
@click.option(
    "--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True
)
@click.option(
    "--algorithm",
    "algorithms",
    multiple=True,
    type=click.Choice(ALGORITHMS),
    default=["auto"],
    show_default=True,
    help="Run this library with it; may be given more than once, each a contestant.",
)
@click.option(
    "--prepared",
    is_flag=True,
    help="Give this library weights that im2col_conv.prepare has prepared before.",
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    type=click.Choice(list(PEERS)),
    help="Compare with this one; may be given more than once. Without it, all that are installed.",
)
@click.option(
    "--pass",
    "directions",
    multiple=True,
    type=click.Choice(DIRECTIONS),
    help="Run this pass alone.",
)
@click.option(
    "--threads",
    metavar="N",
    type=click.IntRange(min=1),
    help="Threads of every contestant.  [default: the workers of this library]",
)
@click.option(
    "--repeats",
    metavar="N",
    type=click.IntRange(min=1),
    default=_REPEATS,
    show_default=True,
    help="Turns of every contestant; the lower quartile counts.",
)
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the record to this file too, as JSON.",
)
@json_option
def bench(only_list: bool, output: Path | None, as_json: bool, **options: Any) -> None:
    """Time this library against others, layer by layer.

    Forward and backward, with as many threads for each as this library has workers: the classic
    lowering (one whole column matrix) in NumPy, and, where they are installed, PyTorch, ONNX
    Runtime (forward only) and JAX; as a limit, the bare matrix products of the lowering (gemm).
    Contestants take turns in one run, and their results are compared before anything is timed.

    A figure is this library's time over the other's: below 1, this library is faster.

    Memory, and growth, are measured of this library, the classic lowering and PyTorch.
    """
    if only_list:
        _list_layers(as_json)
        return
    if output is not None:
        check_target(output)
    plan, missing = _plan(**options)
    bars = progress_console()
    show = partial(
        track,
        description="measuring",
        console=bars,
        transient=True,
        disable=not bars.is_terminal,
    )
    record = {**run(plan, show), "skipped": {peer.name: peer.pip_command for peer in missing}}
    if output is not None:
        write(output, record)
    if as_json:
        write_json(record)
        return
    report(record, text_console())
    load = record["load_before"]
    if load > plan.threads / 4:
        bars.print(
            f"\nOther programs were running (load {load:.1f}): the figures may be far off, "
            "most of all for contestants whose threads wait for one another."
        )


def _plan(
    measure: str,
    algorithms: tuple[str, ...],
    prepared: bool,
    peers: tuple[str, ...],
    directions: tuple[str, ...],
    threads: int | None,
    repeats: int,
    **layers: Any,
) -> tuple[Plan, list[Contestant]]:
    """Return what to run, and the peers that are left out, since they are not installed."""
    found, missing = _peers(peers, measure)
    ours = (with_algorithm(each, prepared=prepared) for each in dict.fromkeys(algorithms))
    plan = Plan(
        measure,
        _layers(measure, **layers),
        (*ours, *found),
        tuple(direction for direction in DIRECTIONS if direction in (directions or DIRECTIONS)),
        threads or ic.get_workers(),
        repeats,
    )
    return plan, missing


def _peers(names: tuple[str, ...], measure: str) -> tuple[list[Contestant], list[Contestant]]:
    """Return the peers to compare with, and those that are not installed and not asked for."""
    known = tuple(PEERS) if measure == "time" else COMPARED
    for name in names:
        if name not in known:
            raise click.BadParameter(
                f"--measure {measure} compares with {' and '.join(known)}, not {name}",
                param_hint="--peer",
            )
    chosen = [PEERS[name] for name in dict.fromkeys(names or known)]
    missing = [peer for peer in chosen if not peer.is_installed()]
    if names and missing:
        raise ImportError(f"{missing[0].name} is not installed: {missing[0].pip_command}")
    return [peer for peer in chosen if peer not in missing], missing


def _layers(
    measure: str, names: tuple[str, ...], sets: tuple[str, ...], layout: Layout, dtype: DType
) -> tuple[Layer, ...]:
    chosen = [*names, *(name for each in sets for name in SETS[each])]
    if not chosen:
        chosen = ["growth"] if measure == "growth" else [*SETS["standard"]]
    layers = (LAYERS[name] for name in dict.fromkeys(chosen))
    return tuple(replace(layer, layout=layout, dtype=dtype) for layer in layers)


def _list_layers(as_json: bool) -> None:
    if as_json:
        write_json({name: asdict(layer) for name, layer in LAYERS.items()})
        return
    console = text_console()
    for name, layer in LAYERS.items():
        if console.width < NARROW:
            console.print(f"{name}\n  {layer}")
        else:
            console.print(f"{name:<18} {layer}")
