"""The command line, ``im2col-conv``: a demonstration, an account, timings, a doctor."""

from __future__ import annotations

import sys

__all__ = ["main"]

_DRAWING = ("click", "rich")


def main() -> None:
    """Run the command line; without the extra that it draws with, say how to get it."""
    try:
        from im2col_conv.cli.app import app
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in _DRAWING:
            raise
        command = 'python -m pip install "im2col-conv[cli]"'
        sys.exit(f"im2col-conv needs {error.name} for its command line: {command}")
    app()
