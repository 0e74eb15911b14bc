"""The pages: what they name is there."""

import re
from pathlib import Path

import pytest

import im2col_conv as ic

ROOT = Path(__file__).parents[1]
NOTE, INDEX = (
    (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("note.md", "api/index.md")
)
NAMED = re.findall(r"`(test_\w+)`(?: in `(tests/\w+\.py)`)?", NOTE)


def test_each_row_beside_the_note_names_a_test():
    rows = [line for line in NOTE.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith(("| ---", "| in the note"))]
    assert len(rows) > 15
    assert all("`test_" in row for row in rows)


@pytest.mark.parametrize(("name", "file"), NAMED)
def test_a_named_test_is_in_its_file(name, file):
    source = (ROOT / (file or "tests/test_reference.py")).read_text(encoding="utf-8")
    assert f"def {name}(" in source


def test_the_reference_has_every_public_name():
    assert sorted(re.findall(r"\(#im2col_conv\.(\w+)\)", INDEX)) == sorted(ic.__all__)
