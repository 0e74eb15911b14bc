"""The group of commands, and what becomes of errors."""

from __future__ import annotations

from typing import Any

import click

from im2col_conv.cli.bench import bench
from im2col_conv.cli.compare import compare
from im2col_conv.cli.demo import demo
from im2col_conv.cli.doctor import doctor
from im2col_conv.cli.explain import explain
from im2col_conv.config import configuration

__all__ = ["app"]


class _Commands(click.Group):
    """Commands whose foreseeable errors are one line, not a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends quietly where the reader of a pipe has gone
        except (ValueError, TypeError, ArithmeticError, OSError, ImportError) as error:
            raise click.ClickException(" ".join(str(error).split())) from error


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"im2col-conv {configuration().versions['im2col-conv']}")
        ctx.exit()


@click.group(
    cls=_Commands,
    name="im2col-conv",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
def app() -> None:
    """Convolution on the CPU, forward and backward, lowered to matrix multiplication.

    New here? `im2col-conv demo` trains a network that reads handwritten digits, and shows that
    its gradients are those of plain loops.

    Every command takes --help, and --json for programs.
    """


app.add_command(demo)
app.add_command(explain)
app.add_command(bench)
app.add_command(compare)
app.add_command(doctor)
