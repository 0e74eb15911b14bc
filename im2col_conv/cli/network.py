"""A small convolutional network, trained forward and backward through this library alone.

The dense layer too is a convolution: its kernel is as large as its input, so it has one output
cell an image. What is left to plain NumPy is the ReLU, the softmax and Adam.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import im2col_conv as ic
from im2col_conv.cli.augment import jitter

__all__ = [
    "Epoch",
    "Layer",
    "Split",
    "Step",
    "accuracy",
    "backward",
    "forward",
    "loss_and_gradient",
    "network",
    "split",
    "train",
]

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

_HELD_OUT = 497
_BATCH = 50
_LEARNING_RATE = 3e-3
_MEAN_DECAY, _SQUARE_DECAY = 0.9, 0.99


@dataclass(frozen=True, eq=False)
class Layer:
    """One convolution and its weights, which training updates in place."""

    name: str
    w: Floats
    b: Floats
    stride: int
    padding: int


class Split(NamedTuple):
    """Digits to learn from, and digits held out to judge what was learnt."""

    images: Floats
    labels: Labels
    held_out_images: Floats
    held_out_labels: Labels


class Step(NamedTuple):
    """What one layer read and was handed back in one backward pass, and what it learns from."""

    layer: Layer
    x: Floats
    dout: Floats
    dw: Floats
    db: Floats


class Epoch(NamedTuple):
    """How one pass over the training digits went: its number (from 1), loss and accuracy."""

    number: int
    loss: float
    accuracy: float


def split(images: Floats, labels: Labels, rng: np.random.Generator) -> Split:
    """Shuffle the digits and hold some out."""
    order = rng.permutation(len(images))
    held_out, learnt = order[:_HELD_OUT], order[_HELD_OUT:]
    return Split(images[learnt], labels[learnt], images[held_out], labels[held_out])


def network(rng: np.random.Generator) -> list[Layer]:
    """Return the untrained layers: 8x8 pixels to 8x8, to 4x4, to 4x4, to the ten digits."""
    return [
        _layer("conv1", (16, 1, 3, 3), 1, 1, rng),
        _layer("conv2", (32, 16, 3, 3), 2, 1, rng),
        _layer("conv3", (64, 32, 3, 3), 1, 1, rng),
        _layer("dense", (10, 64, 4, 4), 1, 0, rng),
    ]


def forward(layers: list[Layer], images: Floats) -> tuple[list[Floats], Floats]:
    """Return what each layer reads, and the ten scores of each image."""
    inputs = [images]
    for layer in layers[:-1]:
        inputs.append(np.maximum(_apply(layer, inputs[-1]), 0))
    return inputs, _apply(layers[-1], inputs[-1])


def backward(layers: list[Layer], inputs: list[Floats], dscores: Floats) -> Iterator[Step]:
    """Yield the steps of the backward pass, from the last layer to the first."""
    dout = dscores
    for layer, x in zip(reversed(layers), reversed(inputs), strict=True):
        # Nothing learns from the gradient of the images themselves.
        needs = ("w", "b") if layer is layers[0] else ("x", "w", "b")
        gradients: tuple[Any, Any, Any] = ic.conv_grads(
            dout, x, layer.w, stride=layer.stride, padding=layer.padding, needs=needs
        )
        dx, dw, db = gradients
        yield Step(layer, x, dout, dw, db)
        if "x" in needs:
            # x came out of a ReLU, whose derivative is 1 where it let something through.
            dout = dx * (x > 0)


def loss_and_gradient(scores: Floats, labels: Labels) -> tuple[float, Floats]:
    """Return the mean cross-entropy of the softmax of (N, 10, 1, 1) scores, and its gradient."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    log_shares = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    right = (np.arange(len(labels)), labels, 0, 0)
    dscores = np.exp(log_shares)
    dscores[right] -= 1
    return float(-log_shares[right].mean()), dscores / np.float32(len(labels))


def accuracy(layers: list[Layer], images: Floats, labels: Labels) -> float:
    """Return the share of images whose highest score is that of their label."""
    _, scores = forward(layers, images)
    return float(np.mean(scores.argmax(axis=1).ravel() == labels))


def train(
    layers: list[Layer], digits: Split, epochs: int, rng: np.random.Generator
) -> Iterator[Epoch]:
    """Train the layers in place, and yield once an epoch how it stands."""
    update = _Adam(layers)
    batches = -(-len(digits.images) // _BATCH)
    for epoch in range(epochs):
        losses = []
        for i, batch in enumerate(np.array_split(rng.permutation(len(digits.images)), batches)):
            inputs, scores = forward(layers, jitter(digits.images[batch], rng))
            loss, dscores = loss_and_gradient(scores, digits.labels[batch])
            # The rate falls to zero along a line, so that the last steps settle.
            rate = _LEARNING_RATE * (1 - (epoch * batches + i) / (epochs * batches))
            update(list(backward(layers, inputs, dscores)), rate)
            losses.append(loss)
        held_out = accuracy(layers, digits.held_out_images, digits.held_out_labels)
        yield Epoch(epoch + 1, float(np.mean(losses)), held_out)


def _layer(
    name: str, shape: tuple[int, ...], stride: int, padding: int, rng: np.random.Generator
) -> Layer:
    # He's scale keeps the variance of what a ReLU lets through the same from layer to layer.
    scale = np.sqrt(2 / np.prod(shape[1:]))
    w = (scale * rng.standard_normal(shape)).astype(np.float32)
    return Layer(name, w, np.zeros(shape[0], np.float32), stride, padding)


def _apply(layer: Layer, x: Floats) -> Floats:
    return ic.conv(x, layer.w, layer.b, stride=layer.stride, padding=layer.padding)


class _Adam:
    """Adam (Kingma and Ba, 2015): steps scaled by running means of gradients and their squares."""

    def __init__(self, layers: list[Layer]) -> None:
        self._moments = {
            layer.name: [(np.zeros_like(p), np.zeros_like(p)) for p in (layer.w, layer.b)]
            for layer in layers
        }
        self._steps = 0

    def __call__(self, steps: list[Step], rate: float) -> None:
        self._steps += 1
        # The running means start at zero; this undoes their pull towards it.
        mean_share = 1 - _MEAN_DECAY**self._steps
        square_share = 1 - _SQUARE_DECAY**self._steps
        for step in steps:
            layer = step.layer
            for p, g, (mean, square) in zip(
                (layer.w, layer.b), (step.dw, step.db), self._moments[layer.name], strict=True
            ):
                mean += (1 - _MEAN_DECAY) * (g - mean)
                square += (1 - _SQUARE_DECAY) * (g * g - square)
                p -= rate * (mean / mean_share) / (np.sqrt(square / square_share) + 1e-8)
