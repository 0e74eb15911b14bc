"""``im2col-conv explain``: what the lowering of a layer does, and for a tiny one, the matrices."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console

import im2col_conv as ic
from im2col_conv.cli.console import json_option, text_console, write_json
from im2col_conv.cli.options import PADDING, PER_AXIS, SHAPE
from im2col_conv.explorer import page

__all__ = ["explain"]

_MOST_ROWS, _MOST_COLUMNS = 40, 30


@click.command()
@click.option("--x", "x_shape", type=SHAPE, required=True, help="N,C,*spatial, such as 1,3,5,7.")
@click.option("--w", "w_shape", type=SHAPE, required=True, help="F,C/groups,*kernel, as 4,3,3,2.")
@click.option("--stride", type=PER_AXIS, default=1, show_default=True, help="1, or 2,1.")
@click.option("--padding", type=PADDING, default=0, show_default=True, help="1, or 1:2,0:3.")
@click.option("--dilation", type=PER_AXIS, default=1, show_default=True, help="1, or 2,1.")
@click.option("--groups", type=int, default=1, show_default=True, help="C for depthwise.")
@click.option("--dtype", default="float32", show_default=True, help="The type of x and w.")
@click.option(
    "--html",
    "target",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page that shows, in a browser, what each number of a small layer is tied to.",
)
@json_option
def explain(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    dtype: str,
    target: Path | None,
    as_json: bool,
) -> None:
    """Say what the lowering of a layer does.

    The matrices with their shapes, the operations, the bytes of the column matrix and of the
    scratch memory that is used instead, the tiles. For a tiny layer also the column matrix itself,
    of an input whose cells count 1, 2, 3, with the window that each column came from.

    Try `im2col-conv explain --x 1,1,3,4 --w 1,1,2,2`, and with --html layer.html the same layer as
    a page: point at a number, and see what it is made of and what it goes into.
    """
    told = ic.explain(
        x_shape,
        w_shape,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        dtype=dtype,
    )
    if target is not None:
        target.write_text(page(told.geometry), encoding="utf-8")
    rows, columns = told.geometry.cols_shape
    tiny = rows <= _MOST_ROWS and columns <= _MOST_COLUMNS
    if as_json:
        write_json(_record(told, tiny))
        return
    console = text_console()
    console.print(str(told))
    if tiny:
        _draw(told.geometry, console)
    else:
        console.print(
            f"\nThe column matrix is drawn where it has at most {_MOST_ROWS} rows and "
            f"{_MOST_COLUMNS} columns."
        )
    if target is not None:
        console.print(f"\nThe explorer of this layer is in {target}: open it in a browser.")


def _record(told: Any, tiny: bool) -> dict[str, Any]:
    geometry = told.geometry
    return {
        "geometry": asdict(geometry),
        "out": geometry.out,
        "gemm": geometry.gemm._asdict(),
        "dtype": str(told.dtype),
        "flops": told.flops,
        "cols_shape": geometry.cols_shape,
        "cols_nbytes": told.cols_nbytes,
        "passes": [asdict(each) for each in told.passes],
        "cols": _counted(geometry)[1].tolist() if tiny else None,
    }


def _counted(geometry: ic.ConvGeometry) -> tuple[Any, Any]:
    """Return an input whose cells count 1, 2, 3, and its column matrix: 0 is padding."""
    x = np.arange(1, 1 + np.prod(geometry.x_shape, dtype=int)).reshape(geometry.x_shape)
    cols = ic.im2col(
        x,
        geometry.kernel,
        stride=geometry.stride,
        padding=geometry.padding,
        dilation=geometry.dilation,
    )
    return x, cols


def _draw(geometry: ic.ConvGeometry, console: Console) -> None:
    x, cols = _counted(geometry)
    digits = len(str(x.size))
    for n, image in enumerate(x):
        for c, channel in enumerate(image):
            console.print(f"\nx[{n}, {c}]")
            _print_lines(
                console, _lines(np.atleast_2d(channel).reshape(-1, channel.shape[-1]), digits)
            )
    console.print("\nThe columns, each the window of one output (. is padding, outside x):")
    if 12 + (digits + 1) * cols.shape[1] <= console.width:
        _draw_upright(geometry, cols, digits, console)
    console.print()
    for column, (n, *o) in enumerate(np.ndindex(geometry.N, *geometry.out)):
        line = " ".join(_lines(cols[:, column][None], digits))
        console.print(f"column {column}: y[{n}, :, {_places(o)}] sees {_window(geometry, n, o)}")
        if 12 + (digits + 1) * cols.shape[1] > console.width:
            console.print(f"  {line}", soft_wrap=True)


def _draw_upright(geometry: ic.ConvGeometry, cols: Any, digits: int, console: Console) -> None:
    console.print("(c, tap)")
    names = [f"({c}, {_places(tap)})" for c, *tap in np.ndindex(geometry.C, *geometry.kernel)]
    width = max(map(len, names))
    for name, line in zip(names, _lines(cols, digits), strict=True):
        console.print(f"{name:<{width}} |{line}", soft_wrap=True)


def _window(geometry: ic.ConvGeometry, n: int, o: list[int]) -> str:
    """Return the slice of x that output ``o`` sees, as it would be written were x padded with 0."""
    axes = []
    for out, s, d, reach, (before, _) in zip(
        o, geometry.stride, geometry.dilation, geometry.reach, geometry.padding, strict=True
    ):
        start = out * s - before
        axes.append(f"{start}:{start + reach}" + (f":{d}" if d > 1 else ""))
    return f"x[{n}, :, {', '.join(axes)}]"


def _lines(matrix: Any, digits: int) -> list[str]:
    return [" ".join(f"{cell or '.':>{digits}}" for cell in row) for row in matrix.tolist()]


def _print_lines(console: Console, lines: list[str]) -> None:
    for line in lines:
        console.print(f"  {line}", soft_wrap=True)


def _places(index: Any) -> str:
    return ", ".join(map(str, index))
