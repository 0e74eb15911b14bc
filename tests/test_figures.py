"""The figures of matrices: drawn by their scripts, whole, with the numbers that these compute."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from im2col_conv.gallery import LOWERINGS

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"


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


def test_the_memory_of_each_lowering_is_drawn():
    pytest.importorskip("matplotlib")
    script = runpy.run_path(str(FIGURES / "lowerings.py"))
    panels = script["draw"]().axes
    page = (ROOT / "docs" / "lowering.md").read_text(encoding="utf-8")
    for panel, geometry in zip(panels, script["LAYERS"].values(), strict=True):
        mib = {
            name: each.extra_bytes(geometry, np.float32) / 2**20
            for name, each in LOWERINGS.items()
            if each.supports(geometry, np.float32) is None
        }
        drawn = [text.get_text().removesuffix(" →") for text in panel.texts]
        assert drawn == [
            f"{mib[name]:.1f}" if name in mib else "does not cover this layer" for name in LOWERINGS
        ]
        largest = max(mib, key=mib.get)
        assert re.search(rf"{largest} (takes {mib[largest]:.0f} MiB|most) on", page, re.I)
        assert min(mib, key=mib.get) == "chunked"
