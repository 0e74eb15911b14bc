"""``im2col-conv compare``: every lowering of the gallery on one layer."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Any, TypeAlias

import click
import numpy as np
from numpy.typing import NDArray

import im2col_conv as ic
from im2col_conv.cli.benchmark.report import write_table
from im2col_conv.cli.benchmark.tables import Column, Table
from im2col_conv.cli.benchmark.timing import threads_for_all
from im2col_conv.cli.console import json_option, text_console, write_json
from im2col_conv.cli.options import PADDING, PER_AXIS, SHAPE
from im2col_conv.gallery import LOWERINGS, Lowering

__all__ = ["compare"]

Array = NDArray[Any]
_Shape: TypeAlias = tuple[int, ...]

_COLUMNS = (
    Column("lowering"),
    Column("ms", ".2f"),
    Column("KiB stated", ".1f"),
    Column("KiB measured", ".1f"),
    Column("GEMMs", "d"),
    Column("error", ".1e"),
)


@click.command()
@click.option("--x", "x_shape", type=SHAPE, help="N,C,*spatial, such as 1,3,5,7.")
@click.option("--w", "w_shape", type=SHAPE, help="F,C/groups,*kernel, as 4,3,3,2.")
@click.option("--shapes", metavar="X W", type=SHAPE, nargs=2, help="Both in place of --x and --w.")
@click.option("--stride", type=PER_AXIS, default=1, show_default=True, help="1, or 2,1.")
@click.option("--padding", type=PADDING, default=0, show_default=True, help="1, or 1:2,0:3.")
@click.option("--dilation", type=PER_AXIS, default=1, show_default=True, help="1, or 2,1.")
@click.option("--groups", type=int, default=1, show_default=True, help="C for depthwise.")
@click.option(
    "--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True
)
@click.option(
    "--repeats",
    metavar="N",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Runs of every lowering; the median counts.",
)
@json_option
def compare(
    x_shape: _Shape | None,
    w_shape: _Shape | None,
    shapes: tuple[_Shape, _Shape] | None,
    dtype: str,
    repeats: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Run every lowering of the gallery on one layer, forward.

    im2col, im2row, chunks of it, MEC, im2win, kn2row, kn2col, the indirect buffer, Winograd and
    FFT, as plain functions for study, beside this library's own conv. Of each the time, the memory
    beyond x, w and y by its formula and measured, the matrix products, and the greatest difference
    from conv in float64, as a share of its largest output.

    Try `im2col-conv compare --x 1,16,28,28 --w 32,16,3,3 --padding 1`.
    """
    geometry = ic.ConvGeometry.from_shapes(*_given(x_shape, w_shape, shapes), **options)
    if geometry.N == 0:
        raise ValueError(f"x must have at least one image, got {geometry.x_shape}")
    with threads_for_all(ic.get_workers()):
        record = _record(geometry, np.dtype(dtype), repeats)
    if as_json:
        write_json(record)
        return
    console = text_console()
    console.print(f"{geometry}\n")
    write_table(_table(record), console)
    for name, complaint in record["not_covered"].items():
        console.print(f"\n{name} does not cover this layer: {complaint}")


def _given(
    x_shape: _Shape | None, w_shape: _Shape | None, both: tuple[_Shape, _Shape] | None
) -> tuple[_Shape, _Shape]:
    """Return the shapes of x and w, however they were given."""
    if both is not None and x_shape is w_shape is None:
        return both
    if both is None and x_shape is not None and w_shape is not None:
        return x_shape, w_shape
    raise click.UsageError(
        "give --x and --w, or both as --shapes, such as --shapes 1,3,5,7 4,3,3,2"
    )


def _record(geometry: ic.ConvGeometry, dtype: np.dtype[Any], repeats: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x, w = (
        rng.standard_normal(shape).astype(dtype) for shape in (geometry.x_shape, geometry.w_shape)
    )
    names = ("stride", "padding", "dilation", "groups")
    options = {name: getattr(geometry, name) for name in names}
    exact = ic.conv(x.astype(np.float64), w.astype(np.float64), **options)
    complaints = {name: each.supports(geometry, dtype) for name, each in LOWERINGS.items()}
    library = partial(ic.conv, x, w, **options)
    rows = [
        {
            "lowering": "conv",
            "seconds": _seconds(library, repeats),
            "bytes_stated": None,
            "bytes_measured": None,
            "gemms": None,
            "error": _error(library(), exact),
        }
    ]
    rows += [
        _row(each, x, w, geometry, exact, repeats)
        for name, each in LOWERINGS.items()
        if complaints[name] is None
    ]
    return {
        "geometry": asdict(geometry),
        "dtype": str(dtype),
        "threads": ic.get_workers(),
        "lowerings": rows,
        "not_covered": {name: why for name, why in complaints.items() if why is not None},
    }


def _row(
    lowering: Lowering, x: Array, w: Array, geometry: ic.ConvGeometry, exact: Array, repeats: int
) -> dict[str, Any]:
    def run() -> Array:
        return lowering.forward(x, w, geometry)

    y, measured = _extra_bytes(run)
    return {
        "lowering": lowering.name,
        "seconds": _seconds(run, repeats),
        "bytes_stated": lowering.extra_bytes(geometry, x.dtype),
        "bytes_measured": measured,
        "gemms": lowering.gemms(geometry, x.dtype),
        "error": _error(y, exact),
    }


def _extra_bytes(run: Callable[[], Array]) -> tuple[Array, int]:
    """Return a result, and the most bytes that were held beside it on the way."""
    tracemalloc.start()
    try:
        y = run()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return y, peak - y.nbytes


def _seconds(run: Callable[[], Array], repeats: int) -> float:
    run()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return median(found)


def _error(y: Array, exact: Array) -> float:
    return float(np.abs(y - exact).max() / np.abs(exact).max())


def _table(record: dict[str, Any]) -> Table:
    rows: list[tuple[str | float | None, ...]] = [
        (
            row["lowering"],
            1e3 * row["seconds"],
            None if row["bytes_stated"] is None else row["bytes_stated"] / 2**10,
            None if row["bytes_measured"] is None else row["bytes_measured"] / 2**10,
            row["gemms"],
            row["error"],
        )
        for row in record["lowerings"]
    ]
    caption = (
        f"Forward, {record['dtype']}, {record['threads']} threads; memory beyond x, w and y, by "
        "formula and measured; error as a share of the largest output"
    )
    return Table(caption, _COLUMNS, rows)
