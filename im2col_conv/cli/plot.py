"""Draw what the network learnt: its first filters, what they see in one digit, its progress."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

    from im2col_conv.cli.network import Epoch

__all__ = ["Portrait", "check_target", "draw"]

Images = NDArray[np.float32]

_INK = "#1f4e79"
_LOSS = "#c1666b"
_COLUMNS = 8


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
    figure = _figure(figsize=(11, 6.2), dpi=150, layout="constrained", facecolor="white")
    left, right = np.ravel(figure.subfigures(1, 2, width_ratios=(1.12, 1), wspace=0.04))
    upper, lower = np.ravel(left.subfigures(2, 1, height_ratios=(1, 1.08)))
    _draw_filters(upper, portrait)
    _draw_maps(lower, portrait)
    _draw_progress(right, portrait)
    figure.savefig(path)


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


def _draw_filters(area: SubFigure, portrait: Portrait) -> None:
    area.suptitle("Filters of the first layer, 3x3", fontsize=12)
    limit = float(np.abs(portrait.filters).max())
    picture = _tiles(area, portrait.filters, cmap="RdBu_r", vmin=-limit, vmax=limit)
    bar = area.colorbar(picture, ax=area.axes, shrink=0.85, pad=0.02, aspect=14)
    bar.set_label("weight")
    bar.outline.set_visible(False)


def _draw_maps(area: SubFigure, portrait: Portrait) -> None:
    area.suptitle(f"What they see in a {portrait.label} (left): the feature maps", fontsize=12)
    one, many = np.ravel(area.subfigures(1, 2, width_ratios=(1, 4.6)))
    _tiles(one, portrait.digit[np.newaxis], columns=1, cmap="gray_r", vmin=0)
    picture = _tiles(many, portrait.maps, cmap="viridis", vmin=0)
    bar = many.colorbar(picture, ax=many.axes, shrink=0.85, pad=0.02, aspect=14)
    bar.set_label("after the ReLU")
    bar.outline.set_visible(False)


def _tiles(area: SubFigure, images: Images, columns: int = _COLUMNS, **options: Any) -> Any:
    """Draw the images as a grid on one scale of colours, and return the last."""
    options.setdefault("vmax", float(images.max()))
    rows = -(-len(images) // columns)
    axes = area.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    for ax, image in zip(axes, images, strict=False):
        picture = ax.imshow(image, interpolation="nearest", **options)
    return picture


def _draw_progress(area: SubFigure, portrait: Portrait) -> None:
    area.suptitle("Learning", fontsize=12)
    accuracy, loss = area.subplots(2, 1, sharex=True, height_ratios=(1.4, 1))
    numbers = [epoch.number for epoch in portrait.epochs]
    shares = [100 * epoch.accuracy for epoch in portrait.epochs]
    accuracy.plot(numbers, shares, color=_INK, marker="o", markersize=3.5)
    accuracy.annotate(
        f"{shares[-1]:.1f} %",
        (numbers[-1], shares[-1]),
        xytext=(0, -16),
        textcoords="offset points",
        ha="right",
        color=_INK,
        fontweight="bold",
    )
    accuracy.set_ylabel(f"right, of {portrait.held_out} held out (%)")
    loss.plot(numbers, [e.loss for e in portrait.epochs], color=_LOSS, marker="o", markersize=3.5)
    loss.set_yscale("log")
    loss.set_ylabel("training loss (cross-entropy)")
    loss.set_xlabel("epoch")
    loss.xaxis.get_major_locator().set_params(integer=True)
    for ax in (accuracy, loss):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", alpha=0.25)
