"""Write the figures of result files as Markdown.

From the repository root::

    python benchmarks/table.py benchmarks/results/standard.json     # print its table
    python benchmarks/table.py --fill benchmarks/README.md          # renew the tables in documents

In a document, a table stands between ``<!-- table: standard.json -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from im2col_conv.cli.benchmark.tables import Column, tabulate

RESULTS = Path(__file__).parent / "results"

PLACE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown(record: dict[str, Any]) -> str:
    """Return the table of a record, losses in bold, and under which circumstances it was made."""
    table = tabulate(record)
    marks = ("---:" if column.format else "---" for column in table.columns)
    rows = [
        [column.heading for column in table.columns],
        [*marks],
        *(
            [cell_text(*each) for each in zip(table.columns, row, strict=True)]
            for row in table.rows
        ),
    ]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"{table.caption}. {circumstances(record)}", "", *lines, ""])


def cell_text(column: Column, cell: str | float | None) -> str:
    text = column.write(cell)
    # What is rounded to 1.00 is no loss.
    return f"**{text}**" if column.is_ratio and text and float(text) > 1 else text


def circumstances(record: dict[str, Any]) -> str:
    layers = record["layers"].values()
    kinds = sorted({f"{layer['dtype']}, {layer['layout'].replace('_', ' ')}" for layer in layers})
    blas = dict.fromkeys(
        f"{library['name']} {library['version']} ({library['kernel']} kernels)"
        for library in record["blas"]
    )
    parts = [
        "; ".join(kinds),
        f"{record['threads']} threads on {record['processor']}",
        ", ".join(f"{name} {number}" for name, number in record["versions"].items()),
        ", ".join(blas),
        record["date"][:10],
    ]
    if record["measure"] != "memory":
        parts.insert(2, f"lower quartile of {record['repeats']} turns")
    return "; ".join(parts) + "."


def filled(document: str) -> str:
    """Return a document with every table made anew from its result file."""

    def renewed(place: re.Match[str]) -> str:
        record = json.loads((RESULTS / place[2]).read_text(encoding="utf-8"))
        return f"{place[1]}{markdown(record)}{place[3]}"

    return PLACE.sub(renewed, document)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the figures of result files as Markdown.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument(
        "--fill", action="store_true", help="the files are documents, whose tables are renewed"
    )
    arguments = parser.parse_args()
    for path in arguments.files:
        text = path.read_text(encoding="utf-8")
        if arguments.fill:
            path.write_text(filled(text), encoding="utf-8")
        else:
            print(markdown(json.loads(text)))


if __name__ == "__main__":
    main()
