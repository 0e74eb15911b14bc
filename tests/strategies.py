"""Random geometries, every one of them valid, lopsided wherever they can be."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from im2col_conv import ConvGeometry


@dataclass(frozen=True)
class Case:
    """The arguments of one convolution, and the geometry that they make."""

    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]
    keywords: dict[str, Any]

    @property
    def geometry(self) -> ConvGeometry:
        return ConvGeometry.from_shapes(self.x_shape, self.w_shape, **self.keywords)


@st.composite
def cases(draw: st.DrawFn, *, most_axes: int = 3, least_images: int = 0) -> Case:
    ndim = draw(st.integers(1, most_axes))
    longest = {1: 12, 2: 8, 3: 5}[ndim]
    groups = draw(st.integers(1, 3))
    x_shape = [draw(st.integers(least_images, 3)), groups * draw(st.integers(1, 3))]
    w_shape = [groups * draw(st.integers(1, 3)), x_shape[1] // groups]
    stride, dilation, padding = [], [], []
    for _ in range(ndim):
        kernel = draw(st.integers(1, 4))
        step = draw(st.integers(1, 3))
        reach = step * (kernel - 1) + 1
        pair = draw(st.tuples(st.integers(0, 5), st.integers(0, 5)))
        x_shape.append(draw(st.integers(max(1, reach - sum(pair)), max(longest, reach))))
        w_shape.append(kernel)
        dilation.append(step)
        padding.append(pair)
        stride.append(draw(st.integers(1, 4)))
    word = draw(st.sampled_from([None, None, None, "same"]))
    keywords = {
        "stride": tuple(stride),
        "padding": word or tuple(padding),
        "dilation": tuple(dilation),
        "groups": groups,
    }
    return Case(tuple(x_shape), tuple(w_shape), keywords)


def small_integers(shape: tuple[int, ...], dtype: Any = np.float64) -> st.SearchStrategy[Any]:
    """Whole numbers so small that sums of their products are exact in ``dtype``."""
    return hnp.arrays(dtype, shape, elements=st.integers(-4, 4), fill=st.integers(-4, 4))


def integers_like(seed: int, shape: tuple[int, ...], dtype: Any = np.float64) -> Any:
    return np.random.default_rng([seed, *shape]).integers(-4, 5, shape).astype(dtype)
