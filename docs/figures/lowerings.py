"""Draw ``docs/figures/lowerings.png``: the memory of each lowering of the gallery, by formula.

Run from the repository root: ``python docs/figures/lowerings.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import im2col_conv as ic
from im2col_conv.gallery import LOWERINGS

TARGET = Path(__file__).with_suffix(".png")
WIDTH, HEIGHT = 1400, 620  # pixels
MOST = 15  # MiB; a longer bar is cut, and its label says so

INK, MUTED, GRID = "#1f2328", "#57606a", "#d8dee4"
# Okabe and Ito: told apart with any colour vision.
PARTS = {"image": ("#56b4e9", "the image, padded"), "weights": ("#e69f00", "weights, rearranged"),
         "own": ("#0072b2", "what the lowering unrolls or holds")}  # fmt: skip
IMAGE, WEIGHTS = ("image", "padded image"), ("weights", "U")
LAYERS = {
    "ResNet's stem: 3 → 64 channels, 224 × 224,\n7 × 7, stride 2":
        ic.ConvGeometry.from_shapes((1, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3),
    "A layer of its first stage: 64 → 64 channels,\n56 × 56, 3 × 3":
        ic.ConvGeometry.from_shapes((1, 64, 56, 56), (64, 64, 3, 3), padding=1),
}  # fmt: skip


def parts(name: str, geometry: ic.ConvGeometry) -> dict[str, float]:
    """Return the MiB of each part of a lowering in float32; nothing where it is not covered.

    >>> {part: round(mib, 2) for part, mib in parts("im2col", list(LAYERS.values())[1]).items()}
    {'image': 0.82, 'weights': 0.0, 'own': 6.89}
    """
    lowering, found = LOWERINGS[name], dict.fromkeys(PARTS, 0.0)
    if lowering.supports(geometry, np.float32) is not None:
        return {}
    for buffer, nbytes in lowering.buffers(geometry, np.dtype(np.float32)).items():
        part = "image" if buffer in IMAGE else "weights" if buffer in WEIGHTS else "own"
        found[part] += nbytes / 2**20
    return found


def draw_panel(ax: Any, geometry: ic.ConvGeometry) -> None:
    """Draw a bar for each lowering, with its sum at its end."""
    for y, name in enumerate(LOWERINGS):
        left = 0.0
        for part, mib in parts(name, geometry).items():
            ax.barh(y, mib, left=left, height=0.66, color=PARTS[part][0], zorder=2)
            left += mib
        style: dict[str, Any] = {"va": "center", "fontsize": 13, "color": INK if left else MUTED}
        label = f"{left:.1f}" if left else "does not cover this layer"
        if left > MOST:
            style |= {"ha": "right", "color": "white", "weight": "bold"}
            label += " →"
        ax.text(min(left, MOST - 0.4) + 0.2, y, label, **style)
    ax.set_xlim(0, MOST)


def dress(ax: Any, title: str) -> None:
    """Give a panel its scales, grid and letters."""
    ax.set_title(title, loc="left", fontsize=13, weight="bold", color=INK)
    ax.set_ylim(len(LOWERINGS) - 0.4, -0.6)
    ax.set_yticks(range(len(LOWERINGS)), list(LOWERINGS))
    ax.grid(axis="x", color=GRID, lw=0.8, zorder=0)
    ax.tick_params(length=0, which="both", labelsize=13, labelcolor=INK)
    ax.spines[:].set_visible(False)


def draw_legend(figure: Any) -> None:
    """Say what the colours are."""
    from matplotlib.patches import Patch

    handles = [Patch(color=color, label=label) for color, label in PARTS.values()]
    place: dict[str, Any] = {"loc": "upper center", "ncols": 3, "bbox_to_anchor": (0.5, 1)}
    figure.legend(handles=handles, frameon=False, fontsize=14, labelcolor=INK, **place)


def draw() -> Any:
    """Draw the figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(left=0.075, right=0.985, bottom=0.12, top=0.81, wspace=0.06)
    for ax, (title, geometry) in zip(axes, LAYERS.items(), strict=True):
        draw_panel(ax, geometry)
        dress(ax, title)
    note = "MiB beyond x, w and y, one image, float32, by the formulas that the tests measure"
    figure.text(0.985, 0.02, note, ha="right", fontsize=13, color=MUTED)
    draw_legend(figure)
    return figure


if __name__ == "__main__":
    draw().savefig(TARGET, metadata={"Software": None}, pil_kwargs={"optimize": True})
