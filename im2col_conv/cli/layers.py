"""Layers that the benchmark knows by name."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["LAYERS", "Layer"]


class Layer(NamedTuple):
    """A two-dimensional convolution of square images with square filters."""

    name: str
    images: int
    channels: int
    size: int
    filters: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    groups: int = 1

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        return self.images, self.channels, self.size, self.size

    @property
    def w_shape(self) -> tuple[int, int, int, int]:
        """(F, C // groups, HH, WW)."""
        return self.filters, self.channels // self.groups, self.kernel, self.kernel

    @property
    def out_size(self) -> int:
        """Rows, and columns, of the output."""
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    def __str__(self) -> str:
        """Say the sizes, and of the rest what is not usual."""
        text = (
            f"{self.images} x {self.channels} x {self.size} x {self.size} -> {self.filters}, "
            f"{self.kernel}x{self.kernel}"
        )
        usual = {"stride": 1, "padding": self.kernel // 2, "groups": 1}
        odd = [f"{k} {getattr(self, k)}" for k, v in usual.items() if getattr(self, k) != v]
        return ", ".join([text, *odd])


LAYERS = {
    layer.name: layer
    for layer in (
        Layer("resnet_stem", 1, 3, 224, 64, kernel=7, stride=2, padding=3),
        Layer("vgg_1_2", 1, 64, 224, 64),
        Layer("resnet_2", 8, 64, 56, 64),
        Layer("resnet_3", 8, 128, 28, 128),
        Layer("resnet_4", 8, 256, 14, 256),
        Layer("resnet_5", 8, 512, 7, 512),
        Layer("resnet_3_stride_2", 8, 128, 56, 128, stride=2),
        Layer("resnet_4_1x1", 8, 1024, 14, 256, kernel=1, padding=0),
        Layer("resnet_2_1x1", 1, 256, 56, 64, kernel=1, padding=0),
        Layer("mobilenet_dw", 8, 128, 56, 128, groups=128),
        Layer("lenet", 64, 6, 14, 16, kernel=5, padding=0),
        Layer("cs231n", 100, 3, 31, 25, stride=2),
        Layer("cifar", 128, 32, 32, 32),
        Layer("one_image", 1, 16, 32, 16),
        Layer("tiny", 2, 4, 7, 6, stride=2, groups=2),
    )
}
"""By name; ``tiny`` is there to try the benchmark, not to learn from."""
