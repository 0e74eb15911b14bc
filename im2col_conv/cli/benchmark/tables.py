"""The table that a record holds, for the terminal and for documents alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

__all__ = ["Column", "Table", "tabulate"]

_NAMES = {
    "classic": "classic",
    "pytorch": "PyTorch",
    "onnxruntime": "ONNX Runtime",
    "jax": "JAX",
    "gemm": "GEMM alone",
}


class Column(NamedTuple):
    """The heading of a column, and how its figures are written; text has no format."""

    heading: str
    format: str = ""
    is_ratio: bool = False

    def write(self, cell: str | float | None) -> str:
        """Return what stands in the table for a cell; nothing for None."""
        return "" if cell is None else format(cell, self.format)


class Table(NamedTuple):
    """What the figures are, the columns, and rows of a cell for each."""

    caption: str
    columns: tuple[Column, ...]
    rows: list[tuple[str | float | None, ...]]


def tabulate(record: dict[str, Any]) -> Table:
    """Return the table of a record of any measure."""
    return {"time": _of_time, "memory": _of_memory, "growth": _of_growth}[record["measure"]](record)


def _of_time(record: dict[str, Any]) -> Table:
    cases, base = record["cases"], record["contestants"][0]
    others = list(_in_order(record, (case["ratios"] for case in cases)))
    columns = (
        Column("layer"),
        Column("pass"),
        Column("ms", ".2f"),
        *(Column(_NAMES.get(name, name), ".2f", is_ratio=True) for name in others),
    )
    rows = [
        (
            case["layer"],
            case["pass"],
            1e3 * case["seconds"][base]["lower_quartile"] if base in case["seconds"] else None,
            *(case["ratios"].get(name) for name in others),
        )
        for case in cases
    ]
    for direction, means in record["geometric_mean"].items():
        rows.append(("geometric mean", direction, None, *(means.get(name) for name in others)))
    caption = f"Time of {base} over the other's (below 1, {base} is faster)"
    return Table(caption, columns, rows)


def _of_memory(record: dict[str, Any]) -> Table:
    cases = record["cases"]
    names = list(_in_order(record, (case["bytes"] for case in cases)))
    columns = (
        Column("layer"),
        Column("pass"),
        Column("column matrix", ".1f"),
        *(Column(_NAMES.get(name, name), ".1f") for name in names),
    )
    rows = [
        (
            case["layer"],
            case["pass"],
            case["column_matrix"] / 2**20,
            *(_scaled(case["bytes"].get(name), 2**-20) for name in names),
        )
        for case in cases
    ]
    return Table("Largest memory beyond inputs and results, in MiB", columns, rows)


def _of_growth(record: dict[str, Any]) -> Table:
    cases = record["cases"]
    names = list(_in_order(record, (case["seconds"] for case in cases)))
    columns = (
        Column("by"),
        Column("work", "d"),
        Column("pass"),
        *(Column(f"{_NAMES.get(name, name)} ns", ".3g") for name in names),
        *(Column(f"{_NAMES.get(name, name)} bytes", ".1f") for name in names),
    )
    rows = [
        (
            case["way"],
            case["factor"],
            case["pass"],
            *(_scaled(case["seconds_per_output"].get(name), 1e9) for name in names),
            *(case["bytes_per_output"].get(name) for name in names),
        )
        for case in cases
    ]
    caption = "Nanoseconds, and bytes of memory beyond inputs and results, for each output"
    return Table(caption, columns, rows)


def _in_order(record: dict[str, Any], found: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield the contestants that have a figure in any case."""
    present = {name for case in found for name in case}
    return (name for name in record["contestants"] if name in present)


def _scaled(figure: float | None, scale: float) -> float | None:
    return None if figure is None else scale * figure
