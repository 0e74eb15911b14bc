"""Where the commands write: facts to stdout, progress to stderr, one JSON object for programs."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console

__all__ = ["NARROW", "json_option", "progress_console", "text_console", "write_json"]

NARROW = 60
"""Columns below which a table is written as a list."""

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object and nothing else."
)


def text_console() -> Console:
    """Return where people read: no highlighting by guess, no [brackets] taken for markup."""
    return Console(highlight=False, markup=False)


def progress_console() -> Console:
    """Return where progress is drawn, so that it never mixes with what is piped on."""
    return Console(stderr=True, highlight=False)


def write_json(record: dict[str, Any]) -> None:
    """Print the one object of ``--json``."""
    click.echo(json.dumps(record, indent=2, allow_nan=False))
