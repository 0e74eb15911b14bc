"""``im2col-conv demo``: train on handwritten digits, check the gradients, say how fast it was."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from im2col_conv.cli.check import RESULTS, Check, check
from im2col_conv.cli.console import json_option, progress_console, text_console, write_json
from im2col_conv.cli.network import Epoch, Layer, Split, forward, network, split, train
from im2col_conv.cli.plot import Portrait, check_target, draw
from im2col_conv.data import load_digits

__all__ = ["demo"]

_EPOCHS = 25
_CHECKED = 25  # images whose gradients the loops compute too, in about a second
_LINES = 5  # progress lines where there is no terminal


@click.command()
@json_option
@click.option(
    "--plot",
    "picture",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw filters, feature maps and the learning curve into FILE (.png, .svg, .pdf).",
)
@click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Picks the split, the first weights and the order of learning.",
)
@click.option(
    "--epochs",
    metavar="N",
    type=click.IntRange(min=1),
    default=_EPOCHS,
    show_default=True,
    help="Passes over the training digits.",
)
def demo(as_json: bool, picture: Path | None, seed: int, epochs: int) -> None:
    """Train a network on handwritten digits, and check its gradients.

    A small convolutional network learns 1,300 digits of 8x8 pixels in a few seconds and is judged
    on 497 that it has not seen. All its layers run forward and backward through this library. Then
    the gradients of one batch are held against plain nested loops.

    Ends with status 1 if a gradient is off by more than rounding can explain.
    """
    if picture is not None:
        check_target(picture)
    rng = np.random.default_rng(seed)
    digits, layers = split(*load_digits(), rng), network(rng)
    console = text_console()
    console.quiet = as_json

    start = time.perf_counter()
    history = _follow(train(layers, digits, epochs, rng), epochs, console, as_json)
    seconds = time.perf_counter() - start
    held_out = len(digits.held_out_images)
    console.print(
        f"Read {history[-1].accuracy:.1%} of {held_out} held-out digits right, "
        f"after {seconds:.1f} s of training."
    )
    checked = check(layers, digits.images[:_CHECKED], digits.labels[:_CHECKED])
    _report(checked, console)
    if picture is not None:
        draw(_portrait(layers, digits, history), picture)
        console.print(f"\nPicture: {picture}", soft_wrap=True)
    if as_json:
        write_json(
            {
                "accuracy": history[-1].accuracy,
                "held_out": held_out,
                "seed": seed,
                "epochs": epochs,
                "seconds": seconds,
                "gradient_error": checked.error,
                "gradient_errors": {each.layer: each.errors for each in checked.layers},
                "speedup_over_loops": checked.speedup,
                "history": [epoch._asdict() for epoch in history],
            }
        )
    if not checked.error <= 1:
        raise click.ClickException("the library and the loops differ by more than rounding")


def _follow(training: Iterable[Epoch], epochs: int, console: Console, as_json: bool) -> list[Epoch]:
    """Run the training to its end: a bar on a terminal, a few lines in a pipe."""
    bars = progress_console()
    lines = not (bars.is_terminal or as_json)
    every = -(-epochs // _LINES)
    history = []
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn())
    with Progress(*columns, console=bars, transient=True, disable=not bars.is_terminal) as bar:
        task = bar.add_task("learning", total=epochs)
        for epoch in training:
            history.append(epoch)
            bar.update(task, advance=1, description=_short(epoch))
            if lines and (epoch.number % every == 0 or epoch.number == epochs):
                console.print(f"epoch {epoch.number:3d}  {_short(epoch)}")
    return history


def _short(epoch: Epoch) -> str:
    return f"loss {epoch.loss:.3f}  held out {epoch.accuracy:.1%}"


def _report(checked: Check, console: Console) -> None:
    console.print(
        "\nGradients of one batch, against the note's nested loops: largest error, as a share of "
        "what rounding can explain (above 100% is wrong)"
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("layer")
    for name in RESULTS:
        table.add_column(name, justify="right")
    for each in checked.layers:
        table.add_row(each.layer, *(f"{each.errors[name]:.2%}" for name in RESULTS))
    console.print(table)
    console.print(
        f"\nThe library took {1e3 * checked.engine_seconds:.1f} ms for that batch, the loops "
        f"{1e3 * checked.loops_seconds:.0f} ms: {checked.speedup:.0f} times as fast."
    )


def _portrait(layers: list[Layer], digits: Split, history: list[Epoch]) -> Portrait:
    image, label = digits.held_out_images[:1], int(digits.held_out_labels[0])
    inputs, _ = forward(layers, image)
    return Portrait(
        filters=layers[0].w[:, 0],
        digit=image[0, 0],
        label=label,
        maps=inputs[1][0],
        epochs=history,
        held_out=len(digits.held_out_images),
    )
