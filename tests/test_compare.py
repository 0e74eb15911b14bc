"""``im2col-conv compare``."""

import numpy as np
import pytest

from im2col_conv.cli import compare
from im2col_conv.gallery import LOWERINGS
from tests.command_line import failure, run, run_json, run_python

LAYER = ("--x", "1,4,9,12", "--w", "6,2,3,3", "--padding", "1:2,0:3", "--groups", "2")


def test_every_lowering_is_in_the_record():
    record = run_json("compare", *LAYER)
    rows = {row["lowering"]: row for row in record["lowerings"]}
    assert list(rows) == ["conv", *LOWERINGS]
    assert record["not_covered"] == {}
    for name, row in rows.items():
        assert row["seconds"] > 0
        assert row["error"] < 1e-5, name
    assert rows["im2col"]["gemms"] == 2
    # Two channels of 12 by 15 with padding, and 18 by 130 columns, 4 bytes each.
    assert rows["im2col"]["bytes_stated"] == 4 * (2 * 12 * 15 + 18 * 10 * 13)
    assert rows["im2col"]["bytes_measured"] >= rows["im2col"]["bytes_stated"]


def test_memory_is_measured_beside_the_result():
    result, extra = compare._extra_bytes(lambda: np.zeros(2**17))
    assert result.nbytes == 2**20
    assert extra < 2**13
    _, extra = compare._extra_bytes(lambda: (lambda kept: kept + 1)(np.zeros(2**17)))
    assert 2**20 <= extra < 2**20 + 2**13


def test_the_error_is_a_share_of_the_largest_output():
    assert compare._error(np.array([1.0, -8.0, 2.5]), np.array([1.0, -8.0, 2.0])) == 0.5 / 8


def test_both_shapes_at_once():
    _, x, _, w, *others = LAYER
    assert (
        run_json("compare", "--shapes", x, w, *others)["geometry"]
        == (run_json("compare", *LAYER)["geometry"])
    )


def test_what_is_not_covered_is_said():
    result = run("compare", *LAYER, "--stride", "2,1", "--repeats", "1")
    assert result.exit_code == 0, result.output
    assert "winograd does not cover this layer: it needs stride" in " ".join(result.output.split())


@pytest.mark.parametrize("columns", [30, 60, 200])
def test_the_table_fits_any_width(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    output = run("compare", *LAYER, "--repeats", "1").output
    table = output[output.index("lowering" if columns > 60 else "im2col") :]
    assert max(map(len, table.splitlines())) <= columns
    for name in LOWERINGS:
        assert name in table


def test_in_a_pipe_there_is_no_colour():
    result = run_python("-m", "im2col_conv", "compare", *LAYER, "--repeats", "1")
    assert (result.returncode, result.stderr) == (0, "")
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--x", "1,4,9", "--w", "6,2,3,3"), 1, "x_shape"),
        (("--x", "0,4,9,12", "--w", "6,4,3,3"), 1, "at least one image"),
        (("--x", "a", "--w", "6,4,3,3"), 2, "--x"),
        (("--x", "1,4,9,12"), 2, "give --x and --w, or both as --shapes"),
        (("--shapes", "1,4,9,12", "6,4,3,3", "--w", "6,4,3,3"), 2, "give --x and --w, or both"),
        (("--x", "1,4,9,12", "--w", "6,4,3,3", "--dtype", "int8"), 2, "--dtype"),
    ],
)
def test_wrong_layers_end_with_a_line(arguments, code, words):
    assert words in failure(run("compare", *arguments), code)
