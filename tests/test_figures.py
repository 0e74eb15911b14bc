"""The figures of matrices: drawn by their scripts, whole, with the numbers that these compute."""

import runpy
from pathlib import Path

import pytest

FIGURES = Path(__file__).parents[1] / "docs" / "figures"


@pytest.mark.parametrize("picture", ["lowering", "adjoint", "flip_and_pad"])
def test_matrices_are_drawn(monkeypatch, tmp_path, picture):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(FIGURES)
    script = runpy.run_path(str(FIGURES / f"{picture}.py"))
    figure, target = script["draw"](), tmp_path / "figure.png"
    script["save"](figure, target)
    assert target.read_bytes().startswith(b"\x89PNG")
    texts = [text for axes in figure.axes for text in axes.texts]
    edges = [text.get_window_extent() for text in texts]
    width, height = figure.canvas.get_width_height()
    assert min(edge.x0 for edge in edges) >= 0
    assert min(edge.y0 for edge in edges) >= 0
    assert max(edge.x1 for edge in edges) <= width
    assert max(edge.y1 for edge in edges) <= height
    shown = {text.get_text().replace("\N{MINUS SIGN}", "-") for text in texts}
    for name, array in script["numbers"]().items():
        assert {str(value) for value in array.flat} <= shown, name
