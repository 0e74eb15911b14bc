"""docs/note.md: the tests that it names are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "note.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(test_\w+)`(?: in `(tests/\w+\.py)`)?", PAGE)


def test_each_row_names_a_test():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith(("| ---", "| in the note"))]
    assert len(rows) > 15
    assert all("`test_" in row for row in rows)


@pytest.mark.parametrize(("name", "file"), NAMED)
def test_a_named_test_is_in_its_file(name, file):
    source = (ROOT / (file or "tests/test_reference.py")).read_text(encoding="utf-8")
    assert f"def {name}(" in source
