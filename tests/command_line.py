"""Run the command line, in this process or in one of its own."""

import json
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from im2col_conv.cli.app import app

ROOT = Path(__file__).parents[1]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run_json(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def run_python(*arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT
    )


def failure(result, code):
    """Return the output of a run that ended with ``code`` and without a traceback."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return result.output
