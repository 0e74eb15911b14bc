"""Layers that the benchmark knows by name."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

__all__ = ["LAYERS", "SETS", "DType", "Layer", "Layout"]

Layout = Literal["channels_first", "channels_last"]
DType = Literal["float32", "float64"]


@dataclass(frozen=True)
class Layer:
    """A convolution by its sizes; those of the axes are in the order of the spatial axes."""

    name: str
    images: int
    channels: int
    size: tuple[int, ...]
    filters: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    groups: int = 1
    layout: Layout = "channels_first"
    dtype: DType = "float32"

    @property
    def axes(self) -> int:
        """The number of spatial axes."""
        return len(self.size)

    @property
    def out(self) -> tuple[int, ...]:
        """The spatial sizes of the output."""
        axes = zip(self.size, self.kernel, self.stride, self.padding, strict=True)
        return tuple((size + 2 * pad - taps) // step + 1 for size, taps, step, pad in axes)

    @property
    def x_shape(self) -> tuple[int, ...]:
        """The shape of the input, in its layout."""
        return self._in_layout(self.channels, self.size)

    @property
    def w_shape(self) -> tuple[int, ...]:
        """(F, C // groups, *kernel), whatever the layout."""
        return self.filters, self.channels // self.groups, *self.kernel

    @property
    def y_shape(self) -> tuple[int, ...]:
        """The shape of the output, in its layout."""
        return self._in_layout(self.filters, self.out)

    @property
    def positions(self) -> int:
        """Output positions of all images: the columns of the column matrix."""
        return self.images * prod(self.out)

    @property
    def depth(self) -> int:
        """Channels of a group times taps: the rows of the column matrix of a group."""
        return prod(self.w_shape[1:])

    @property
    def geometry(self) -> dict[str, Any]:
        """What ``im2col_conv.conv`` takes beside the arrays."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "groups": self.groups,
            "layout": self.layout,
        }

    def _in_layout(self, channels: int, size: tuple[int, ...]) -> tuple[int, ...]:
        if self.layout == "channels_last":
            return self.images, *size, channels
        return self.images, channels, *size

    def __str__(self) -> str:
        """Say the sizes, and of the rest what is not usual."""
        text = (
            f"{_times(self.images, self.channels, *self.size)} -> {self.filters}, "
            f"{'x'.join(map(str, self.kernel))}"
        )
        half = tuple(taps // 2 for taps in self.kernel)
        usual = {"stride": (1,) * self.axes, "padding": half}
        odd = {k: getattr(self, k) for k, v in usual.items() if getattr(self, k) != v}
        parts = [text, *(f"{k} {_short(v)}" for k, v in odd.items())]
        return ", ".join(parts + ([f"groups {self.groups}"] if self.groups > 1 else []))


def _times(*sizes: int) -> str:
    return " x ".join(map(str, sizes))


def _short(sizes: tuple[int, ...]) -> str:
    return str(sizes[0]) if len(set(sizes)) == 1 else "x".join(map(str, sizes))


def _layer(
    name: str,
    images: int,
    channels: int,
    size: tuple[int, ...],
    filters: int,
    kernel: int | tuple[int, ...] = 3,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Layer:
    """Return a layer; one int stands for all axes."""

    def each(value: int | tuple[int, ...]) -> tuple[int, ...]:
        return (value,) * len(size) if isinstance(value, int) else value

    return Layer(
        name, images, channels, size, filters, each(kernel), each(stride), each(padding), groups
    )


_STANDARD = (
    _layer("vgg_1_2", 1, 64, (224, 224), 64),
    _layer("resnet_stem", 1, 3, (224, 224), 64, kernel=7, stride=2, padding=3),
    _layer("resnet_2", 8, 64, (56, 56), 64),
    _layer("resnet_3", 8, 128, (28, 28), 128),
    _layer("resnet_4", 8, 256, (14, 14), 256),
    _layer("resnet_5", 8, 512, (7, 7), 512),
    _layer("resnet_3_stride_2", 8, 128, (56, 56), 128, stride=2),
    _layer("resnet_4_1x1", 8, 1024, (14, 14), 256, kernel=1, padding=0),
    _layer("resnet_2_1x1", 1, 256, (56, 56), 64, kernel=1, padding=0),
    _layer("mobilenet_dw", 8, 128, (56, 56), 128, groups=128),
    _layer("lenet", 64, 6, (14, 14), 16, kernel=5, padding=0),
    _layer("cs231n", 100, 3, (31, 31), 25, stride=2),
    _layer("cifar", 128, 32, (32, 32), 32),
    _layer("one_image", 1, 16, (32, 32), 16),
)

# One axis: a second of speech at 16 kHz, and keywords from 40 cepstral coefficients a frame.
# Three: clips of 16 frames of 112 x 112 and what deeper layers make of them, time first.
_AXES = (
    _layer("wav2vec_0", 1, 1, (16000,), 512, kernel=10, stride=5, padding=0),
    _layer("wav2vec_1", 1, 512, (3199,), 512, stride=2, padding=0),
    _layer("wav2vec_position", 1, 768, (199,), 768, kernel=128, padding=64, groups=16),
    _layer("keyword_0", 100, 40, (98,), 16),
    _layer("keyword_1", 100, 16, (98,), 24, kernel=9, stride=2, padding=4),
    _layer("c3d_1", 1, 3, (16, 112, 112), 64),
    _layer("c3d_5", 1, 512, (2, 7, 7), 512),
    _layer("r3d_stem", 1, 3, (16, 112, 112), 64, (3, 7, 7), (1, 2, 2), (1, 3, 3)),
    _layer("r3d_3", 1, 128, (8, 28, 28), 128),
    _layer("r2plus1d_time", 1, 144, (16, 56, 56), 64, (3, 1, 1), 1, (1, 0, 0)),
)

# What came after them: depthwise, in groups, windows apart; of MobileNetV2 (Sandler et al., 2018),
# EfficientNet (Tan and Le, 2019), ConvNeXt (Liu et al., 2022), ResNeXt (Xie et al., 2017), ViT
# (Dosovitskiy et al., 2021), Inception-v3 (Szegedy et al., 2016), Whisper (Radford et al., 2023)
# and Conformer (Gulati et al., 2020).
_MODERN = (
    _layer("mobilenet_v2_dw_56", 8, 144, (56, 56), 144, stride=2, groups=144),
    _layer("mobilenet_v2_dw_28", 8, 192, (28, 28), 192, groups=192),
    _layer("mobilenet_v2_dw_7", 8, 960, (7, 7), 960, groups=960),
    _layer("efficientnet_dw_14", 8, 672, (14, 14), 672, kernel=5, padding=2, groups=672),
    _layer("convnext_dw_56", 8, 96, (56, 56), 96, kernel=7, padding=3, groups=96),
    _layer("convnext_dw_14", 8, 384, (14, 14), 384, kernel=7, padding=3, groups=384),
    _layer("convnext_stem", 8, 3, (224, 224), 96, kernel=4, stride=4, padding=0),
    _layer("convnext_down", 8, 96, (56, 56), 192, kernel=2, stride=2, padding=0),
    _layer("vit_patches", 8, 3, (224, 224), 768, kernel=16, stride=16, padding=0),
    _layer("resnext_2", 8, 128, (56, 56), 128, groups=32),
    _layer("resnext_4", 8, 512, (14, 14), 512, groups=32),
    _layer("inception_1x7", 8, 192, (17, 17), 192, (1, 7), 1, (0, 3)),
    _layer("whisper_0", 1, 80, (3000,), 384),
    _layer("conformer_dw", 4, 256, (500,), 256, kernel=31, padding=15, groups=256),
)

# Sizes that the others have not: large kernels, few channels or filters, no padding, kernels of one
# cell with a stride; of ResNet (He et al., 2016), DQN (Mnih et al., 2015), AlexNet (Krizhevsky,
# 2014), U-Net (Ronneberger et al., 2015), SRCNN (Dong et al., 2014), pix2pix (Isola et al., 2017),
# SqueezeNet (Iandola et al., 2016), ShuffleNet (Zhang et al., 2018), AlphaGo Zero (Silver et al.,
# 2017), EEGNet (Lawhern et al., 2018), a net for sentences (Kim, 2014), VoxNet (Maturana and
# Scherer, 2015).
_APPLICATIONS = (
    _layer("resnet18_shortcut", 8, 64, (56, 56), 128, kernel=1, stride=2, padding=0),
    _layer("resnet50_shortcut", 8, 256, (56, 56), 512, kernel=1, stride=2, padding=0),
    _layer("dqn_1", 32, 4, (84, 84), 32, kernel=8, stride=4, padding=0),
    _layer("dqn_2", 32, 32, (20, 20), 64, kernel=4, stride=2, padding=0),
    _layer("dqn_3", 32, 64, (9, 9), 64, padding=0),
    _layer("alexnet_1", 8, 3, (224, 224), 64, kernel=11, stride=4, padding=2),
    _layer("alexnet_2", 8, 64, (27, 27), 192, kernel=5, padding=2),
    _layer("unet_1", 1, 1, (572, 572), 64, padding=0),
    _layer("unet_3", 1, 64, (284, 284), 128, padding=0),
    _layer("srcnn_1", 1, 1, (256, 256), 64, kernel=9, padding=4),
    _layer("srcnn_3", 1, 32, (256, 256), 1, kernel=5, padding=2),
    _layer("pix2pix_judge", 4, 512, (31, 31), 1, kernel=4),
    _layer("squeezenet_3", 8, 128, (55, 55), 16, kernel=1, padding=0),
    _layer("shufflenet_2", 8, 240, (28, 28), 60, kernel=1, padding=0, groups=3),
    _layer("go", 8, 256, (19, 19), 256),
    _layer("eegnet_time", 16, 1, (22, 400), 8, (1, 64), 1, (0, 32)),
    _layer("eegnet_space", 16, 8, (22, 401), 16, (22, 1), 1, 0, groups=8),
    _layer("sentences", 64, 300, (50,), 100, kernel=5, padding=0),
    _layer("voxnet_1", 8, 1, (32, 32, 32), 32, kernel=5, stride=2, padding=0),
)

_OTHERS = (
    _layer("growth", 1, 32, (28, 28), 32),
    _layer("tiny", 2, 4, (7, 7), 6, stride=2, groups=2),
)

LAYERS = {layer.name: layer for layer in (*_STANDARD, *_AXES, *_MODERN, *_APPLICATIONS, *_OTHERS)}
"""By name; ``growth`` is where growth starts, ``tiny`` is there to try the benchmark."""

SETS = {
    "standard": tuple(layer.name for layer in _STANDARD),
    "axes": tuple(layer.name for layer in _AXES),
    "modern": tuple(layer.name for layer in _MODERN),
    "applications": tuple(layer.name for layer in _APPLICATIONS),
}
"""Names of layers that are timed together."""
