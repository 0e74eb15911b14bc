"""Draw what the network learnt: its first filters, what they see in one digit, its progress."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from im2col_conv.cli.network import Epoch

__all__ = ["Portrait", "check_target", "draw"]

Images = NDArray[np.float32]

_INK = "#1f4e79"
_LOSS = "#c1666b"
_ENLARGED = 8  # a pixel becomes this many squared, so that gaps can be narrower than pixels
_GAP = 0.12  # between two images, as a share of one


class Portrait(NamedTuple):
    """What is drawn of one trained network."""

    filters: Images  # (F, H, W)
    digit: Images  # (H, W)
    label: int
    maps: Images  # (F, H, W)
    epochs: Sequence[Epoch]
    held_out: int


def check_target(path: Path) -> None:
    """Raise where `draw` could not write ``path``, before anyone has waited for the picture."""
    kinds = _figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise ValueError(
            f"{path} must end in a type of picture: {', '.join(f'.{kind}' for kind in kinds)}"
        )
    existed = path.exists()
    with path.open("ab"):
        pass
    if not existed:
        path.unlink()


def draw(portrait: Portrait, path: Path) -> None:
    """Write the picture to ``path``, in the format that its ending names."""
    figure = _figure(figsize=(11, 6.6), dpi=150, layout="constrained", facecolor="white")
    axes = figure.subplot_mosaic("DDFFMM;AAALLL", height_ratios=(1.1, 1))
    limit = float(np.abs(portrait.filters).max())
    _draw_tiles(axes["D"], portrait.digit[np.newaxis], cmap="gray_r", vmin=0, vmax=1)
    axes["D"].set_title(f"A held-out digit: {portrait.label}")
    filters = _draw_tiles(axes["F"], portrait.filters, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes["F"].set_title("The first layer: filters")
    _add_bar(figure, axes["F"], filters, "weight")
    maps = _draw_tiles(axes["M"], portrait.maps, cmap="viridis", vmin=0)
    axes["M"].set_title("What each of them sees in it")
    _add_bar(figure, axes["M"], maps, "after the ReLU")
    _draw_accuracy(axes["A"], portrait)
    _draw_loss(axes["L"], portrait)
    figure.savefig(path, bbox_inches="tight", pad_inches=0.2)


def _figure(**options: Any) -> Figure:
    try:
        # Without pyplot: no window, no global state, the Agg backend.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'a picture needs matplotlib: python -m pip install "im2col-conv[plot]"'
        ) from error
    figure = Figure(**options)
    FigureCanvasAgg(figure)
    return figure


def _draw_tiles(axes: Axes, images: Images, **options: Any) -> AxesImage:
    """Draw the images as a square grid, on one scale of colours."""
    axes.set_axis_off()
    return axes.imshow(_grid(images), interpolation="nearest", **options)


def _grid(images: Images) -> Images:
    """Return the images side by side in one, with NaN, which is not drawn, between them."""
    columns = math.isqrt(len(images) - 1) + 1
    enlarged = images.repeat(_ENLARGED, axis=1).repeat(_ENLARGED, axis=2)
    gap = round(_GAP * enlarged.shape[1])
    height, width = (size + gap for size in enlarged.shape[1:])
    grid = np.full((-(-len(images) // columns) * height, columns * width), np.nan, np.float32)
    for i, image in enumerate(enlarged):
        top, left = i // columns * height, i % columns * width
        grid[top : top + image.shape[0], left : left + image.shape[1]] = image
    return grid[: grid.shape[0] - gap, : grid.shape[1] - gap]


def _add_bar(figure: Figure, axes: Axes, picture: AxesImage, label: str) -> None:
    # Set into the axes, so that it is exactly as tall as the picture.
    strip = axes.inset_axes((1.04, 0, 0.05, 1))
    bar = figure.colorbar(picture, cax=strip, label=label)
    bar.outline.set_visible(False)


def _draw_accuracy(axes: Axes, portrait: Portrait) -> None:
    shares = [100 * epoch.accuracy for epoch in portrait.epochs]
    _draw_curve(axes, portrait, shares, _INK)
    axes.set_title(f"Learning: {shares[-1]:.1f} % of {portrait.held_out} held-out digits right")
    axes.set_ylabel("held-out accuracy (%)")


def _draw_loss(axes: Axes, portrait: Portrait) -> None:
    _draw_curve(axes, portrait, [epoch.loss for epoch in portrait.epochs], _LOSS)
    axes.set_title("Learning: the loss")
    axes.set_yscale("log")
    axes.set_ylabel("training loss (cross-entropy)")


def _draw_curve(axes: Axes, portrait: Portrait, values: list[float], colour: str) -> None:
    numbers = [epoch.number for epoch in portrait.epochs]
    axes.plot(numbers, values, color=colour, marker="o", markersize=3.5)
    axes.set_xlabel("epoch")
    axes.locator_params(axis="x", integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
