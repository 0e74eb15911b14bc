"""docs/equivalence.md: the lines that it quotes stand in the code, its lemmas in proofs/."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "equivalence.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"In code:\s`([^`]+)`\s+in\s+`([^`]+\.py)`", PAGE)


def test_each_section_with_a_theorem_quotes_a_line():
    theorems = [part for part in PAGE.split("\n## ") if "**Theorem.**" in part]
    assert len(theorems) == 6
    assert all("In code:" in part and ">>> " in part for part in theorems)
    assert len(QUOTED) == PAGE.count("In code:")


@pytest.mark.parametrize(("line", "file"), QUOTED)
def test_a_quoted_line_is_a_line_of_the_code(line, file):
    lines = [each.strip() for each in (ROOT / file).read_text(encoding="utf-8").splitlines()]
    assert line in lines


def test_the_table_of_lemmas_has_each_once():
    tree = ast.parse((ROOT / "proofs" / "lemmas.py").read_text(encoding="utf-8"))
    stated = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and ast.unparse(node.returns) == "Lemma"
    ]
    table = PAGE.split("| by machine | lemma |")[1].split("\n\n")[0]
    assert sorted(re.findall(r"`(\w+)`", table)) == sorted(stated)
