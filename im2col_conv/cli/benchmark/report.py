"""Write a record for people: a table where it fits, a list where it does not."""

from __future__ import annotations

from typing import Any, Literal

from rich.console import Console
from rich.table import Table as RichTable

from im2col_conv.cli.benchmark.tables import Table, tabulate

__all__ = ["report", "write_table"]

_ANY = 10_000  # columns: what a table needs is asked for as if there were so many


def report(record: dict[str, Any], console: Console) -> None:
    """Write the table of a record, and who is not in it."""
    table = tabulate(record)
    write_table(table, console)
    for name, command in record["skipped"].items():
        console.print(
            f"\n{name} is skipped, since it is not installed:\n  {command}", soft_wrap=True
        )
    for name in record["contestants"]:
        if not any(name in (case.get("seconds") or case["bytes"]) for case in record["cases"]):
            console.print(f"\n{name} computes none of these layers.")


def write_table(table: Table, console: Console) -> None:
    """Write a table where it fits, a list where it does not."""
    console.print(f"{table.caption}\n")
    drawn = _drawn(table)
    if console.measure(drawn, options=console.options.update_width(_ANY)).maximum <= console.width:
        console.print(drawn)
    else:
        _write_list(table, console)


def _drawn(table: Table) -> RichTable:
    drawn = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in table.columns:
        # Headings of figures are wider than the figures, so they take a line a word.
        heading = column.heading.replace(" ", "\n") if column.format else column.heading
        justify: Literal["left", "right"] = "right" if column.format else "left"
        drawn.add_column(heading, justify=justify, vertical="bottom", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*_cells(table, row))
    return drawn


def _write_list(table: Table, console: Console) -> None:
    for row in table.rows:
        parts = list(zip(table.columns, _cells(table, row), strict=True))
        console.print(", ".join(text for column, text in parts if not column.format))
        for column, text in parts:
            if column.format and text:
                console.print(f"  {column.heading:<16}{text:>8}")


def _cells(table: Table, row: tuple[str | float | None, ...]) -> list[str]:
    return [column.write(cell) for column, cell in zip(table.columns, row, strict=True)]
