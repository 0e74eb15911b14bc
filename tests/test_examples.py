"""The worked examples, at a small size."""

import doctest
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the extra plot is not installed")

from examples import deblur


def test_the_doctests_of_the_example():
    result = doctest.testmod(deblur)
    assert result.attempted == 1
    assert result.failed == 0


def test_the_picture_is_a_photograph():
    x = deblur.picture()
    assert x.shape == (3, 1, 280, 280)
    assert len(np.unique(x)) > 200
    assert 0 <= x.min() < 0.1 < 0.9 < x.max() <= 1


def test_a_blurred_picture_is_found_again(tmp_path, capsys):
    file = tmp_path / "deblur.png"
    before, after = deblur.main(str(file), every=4)
    assert after < before / 2
    assert file.read_bytes().startswith(b"\x89PNG")
    told = re.findall(r"[0-9.]+", capsys.readouterr().out)
    assert told == ["255", f"{before:.2f}", f"{after:.2f}"]


def test_the_figure_of_the_page_is_what_the_example_gives(tmp_path):
    page = Path(__file__).parents[1] / "docs" / "equivalence.md"
    told = re.search(r"falls from\s([0-9.]+) to ([0-9.]+) of", page.read_text(encoding="utf-8"))
    errors = deblur.main(str(tmp_path / "deblur.jpg"))
    assert errors == pytest.approx([float(each) for each in told.groups()], abs=0.1)


def test_the_error_is_measured_where_the_blurred_picture_is():
    x, w = deblur.picture(every=8), np.zeros((1, 1, 3, 5))
    w[0, 0, 1, 2] = 1  # a camera that stands still
    y = deblur.blurred(x, w)
    np.testing.assert_array_equal(deblur.middle(x, w), y)
    assert deblur.error(y, deblur.middle(x, w)) == 0
    assert deblur.error(y + 1 / 255, y) == pytest.approx(1)
