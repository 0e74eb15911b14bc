"""The gallery against the reference; its memory and its products against what it does."""

import ast
import math
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

import im2col_conv as ic
from im2col_conv import reference
from im2col_conv.gallery import LOWERINGS
from tests.strategies import Case, cases, integers_like
from tests.test_equivalence import DEPTHWISE, HOUSE, MUCH_PADDING, POINTWISE, UNUSED_ROWS

every = pytest.mark.parametrize("lowering", LOWERINGS.values(), ids=LOWERINGS.keys())
EXACT = [each for each in LOWERINGS.values() if each.name != "fft"]
SQUARE = Case((2, 6, 7, 10), (4, 3, 3, 3), {"padding": ((1, 0), (2, 1)), "groups": 2})
LAYERS = [
    ic.ConvGeometry.from_shapes((1, 24, 41, 30), (17, 24, 3, 3), padding=((1, 1), (0, 2))),
    ic.ConvGeometry.from_shapes((2, 24, 30, 41), (40, 12, 3, 3), padding=1, groups=2),
    ic.ConvGeometry.from_shapes((1, 12, 50, 60), (33, 12, 5, 4), stride=(2, 3)),
]


@st.composite
def any_cases(draw):
    """Geometries of all kinds, and as often those that Winograd takes."""
    if draw(st.booleans()):
        return draw(cases())
    groups = draw(st.integers(1, 3))
    C, F = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    size = draw(st.tuples(st.integers(3, 9), st.integers(3, 9)))
    padding = draw(st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2))
    shape = (draw(st.integers(0, 2)), C, *size)
    return Case(shape, (F, C // groups, 3, 3), {"padding": padding, "groups": groups})


def named(test):
    for case in (HOUSE, DEPTHWISE, UNUSED_ROWS, POINTWISE, MUCH_PADDING, SQUARE):
        test = example(case=case, seed=7)(test)
    return test


def supported(lowering, case):
    return lowering.supports(case.geometry, np.float64) is None


@pytest.mark.parametrize("lowering", EXACT, ids=lambda each: each.name)
@named
@given(case=any_cases(), seed=st.integers(0, 2**32 - 1))
def test_is_the_reference_to_the_last_bit(lowering, case, seed):
    assume(supported(lowering, case))
    x, w = (integers_like(seed, shape) for shape in (case.x_shape, case.w_shape))
    y = lowering.forward(x, w, case.geometry)
    np.testing.assert_array_equal(y, reference.conv(x, w, **case.keywords), strict=True)


def fft_bound(x, w, geometry):
    """Return how far an output of the FFT may be off.

    A transform of n numbers is off by at most 7 log2(n) eps/2 of its norm (Higham, Accuracy and
    Stability of Numerical Algorithms, section 24.1); there are three, and c products are added.
    """
    groups = geometry.groups
    norms = np.sqrt((x**2).sum(axis=tuple(range(2, x.ndim)))).reshape(len(x), groups, w.shape[1])
    weights = np.sqrt((w**2).sum(axis=tuple(range(2, w.ndim)))).reshape(groups, -1, w.shape[1])
    scale = np.einsum("ngc,gfc->ngf", norms, weights).reshape(len(x), len(w))
    terms = 3 * 7 * max(math.log2(math.prod(geometry.padded)), 1) / 2 + w.shape[1] + 4
    return terms * np.finfo(x.dtype).eps * scale.reshape(*scale.shape, *(1,) * geometry.ndim)


@named
@given(case=any_cases(), seed=st.integers(0, 2**32 - 1))
def test_fft_is_the_reference_but_for_rounding(case, seed):
    x, w = (integers_like(seed, shape) for shape in (case.x_shape, case.w_shape))
    y = LOWERINGS["fft"].forward(x, w, case.geometry)
    expected = reference.conv(x, w, **case.keywords)
    assert y.shape == expected.shape
    assert np.all(np.abs(y - expected) <= fft_bound(x, w, case.geometry))


def normal(geometry, dtype):
    rng = np.random.default_rng(1)
    return (rng.standard_normal(s).astype(dtype) for s in (geometry.x_shape, geometry.w_shape))


def keywords(geometry):
    return {name: getattr(geometry, name) for name in ("stride", "padding", "dilation", "groups")}


@pytest.mark.parametrize("geometry", LAYERS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@every
def test_is_conv_but_for_rounding(lowering, geometry, dtype):
    if lowering.supports(geometry, dtype) is not None:
        pytest.skip("not covered")
    x, w = normal(geometry, dtype)
    y = lowering.forward(x, w, geometry)
    assert y.dtype == dtype
    expected = ic.conv(x.astype(float), w.astype(float), **keywords(geometry))
    magnitude = ic.conv(abs(x).astype(float), abs(w).astype(float), **keywords(geometry))
    K = geometry.gemm.K + 1
    tolerance = K * np.finfo(dtype).eps * magnitude
    if lowering.name == "fft":
        tolerance = fft_bound(x, w, geometry)
    if lowering.name == "winograd":
        # Row by row of A, G and B the entries add up to 3, 3/2 and 2 in size at most, along both
        # axes to 9, 9/4 and 4; the bound of each product grows so, with 12 roundings of the stages.
        largest = math.prod((9, 2.25, 4)) * np.abs(x).max() * np.abs(w).max()
        c = geometry.C // geometry.groups
        tolerance = (c + 12) * np.finfo(dtype).eps * largest * c
    assert np.all(np.abs(y - expected) <= tolerance)


def traced(lowering, geometry):
    """Return the most bytes that are held beside the result."""
    x, w = normal(geometry, np.float32)
    y = lowering.forward(x, w, geometry)
    tracemalloc.start()
    try:
        y = lowering.forward(x, w, geometry)
        return tracemalloc.get_traced_memory()[1] - y.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("geometry", LAYERS, ids=str)
@every
def test_memory_is_the_formula(lowering, geometry):
    if lowering.supports(geometry, np.float32) is not None:
        pytest.skip("not covered")
    extra, formula = traced(lowering, geometry), lowering.extra_bytes(geometry, np.float32)
    # Beside it, a ufunc of strided arrays buffers 8192 numbers of each of three operands, and the
    # interpreter holds some objects.
    assert formula - 2**10 <= extra <= formula + 3 * 8192 * 4 + 2**13


@pytest.mark.parametrize("geometry", LAYERS, ids=str)
@every
def test_products_are_as_many_as_stated(lowering, geometry, monkeypatch):
    if lowering.supports(geometry, np.float32) is not None:
        pytest.skip("not covered")
    made, matmul = [], np.matmul

    def counted(a, b, out):
        assert a.ndim == b.ndim == out.ndim == 2
        made.append((a.shape, b.shape))
        return matmul(a, b, out=out)

    x, w = normal(geometry, np.float32)
    monkeypatch.setattr(np, "matmul", counted)
    lowering.forward(x, w, geometry)
    assert len(made) == lowering.gemms(geometry, np.float32)


@every
def test_the_table_of_the_page_says_so(lowering):
    page = Path(__file__).parents[1] / "docs" / "lowering.md"
    row = re.search(rf"^\| {lowering.name} \|.*", page.read_text(encoding="utf-8"), re.M | re.I)
    _, _, products, _, formula, measured, _ = row[0].split("|")
    layer = ic.ConvGeometry.from_shapes((1, 64, 56, 56), (64, 64, 3, 3), padding=1)
    assert int(products.split()[-1]) == lowering.gemms(layer, np.float32)
    assert float(formula) == round(lowering.extra_bytes(layer, np.float32) / 2**20, 2)
    assert float(measured) == pytest.approx(traced(lowering, layer) / 2**20, abs=0.02)


@every
def test_each_names_its_source_with_a_year(lowering):
    assert re.search(r"^[A-Z].* [(](19|20)[0-9]{2}[)], ", lowering.source)


@every
def test_no_images_take_no_memory_and_no_products(lowering):
    geometry = ic.ConvGeometry.from_shapes((0, 2, 9, 8), (3, 2, 3, 3))
    assert lowering.extra_bytes(geometry, np.float32) == 0
    assert lowering.gemms(geometry, np.float32) == 0


def test_which_geometries_are_refused():
    one_axis = ic.ConvGeometry.from_shapes((1, 2, 9), (3, 2, 3))
    dilated = ic.ConvGeometry.from_shapes((1, 2, 9, 8), (3, 2, 3, 3), dilation=(2, 1))
    strided = ic.ConvGeometry.from_shapes((1, 2, 9, 8), (3, 2, 3, 3), stride=(1, 2))
    wide = ic.ConvGeometry.from_shapes((1, 2, 9, 8), (3, 2, 3, 5))
    refused = {
        str(geometry): {
            name for name, each in LOWERINGS.items() if each.supports(geometry, np.float32)
        }
        for geometry in (one_axis, dilated, strided, wide)
    }
    assert list(refused.values()) == [
        {"mec", "im2win", "winograd"},
        {"mec", "winograd"},
        {"winograd"},
        {"winograd"},
    ]


@pytest.mark.parametrize(
    ("name", "keywords", "words"),
    [
        ("mec", {"dilation": (2, 1)}, "mec does not cover this layer.*adjacent.*dilation [(]2, 1"),
        ("winograd", {"stride": (1, 2)}, "winograd does not cover.*stride [(]1, 2[)]"),
    ],
)
def test_a_refusal_says_why(name, keywords, words):
    x, w = np.ones((1, 2, 9, 8)), np.ones((3, 2, 3, 3))
    geometry = ic.ConvGeometry.from_shapes(x.shape, w.shape, **keywords)
    with pytest.raises(ValueError, match=words):
        LOWERINGS[name].forward(x, w, geometry)


@every
def test_wrong_arrays_are_refused(lowering):
    x, w = np.ones((1, 2, 9, 8)), np.ones((3, 2, 3, 3))
    geometry = ic.ConvGeometry.from_shapes(x.shape, w.shape)
    with pytest.raises(ValueError, match=r"x must have shape \(1, 2, 9, 8\)"):
        lowering.forward(x[:, :1], w, geometry)
    with pytest.raises(ValueError, match=r"w must have shape \(3, 2, 3, 3\)"):
        lowering.forward(x, w[:2], geometry)
    with pytest.raises(TypeError, match="one type, got float64 and float32"):
        lowering.forward(x, w.astype(np.float32), geometry)
    with pytest.raises(ValueError, match="takes float32 and float64, got int64"):
        lowering.forward(x.astype(np.int64), w.astype(np.int64), geometry)


def test_nothing_but_the_command_line_imports_the_gallery():
    package = Path(ic.__file__).parent
    importers = {
        str(path.relative_to(package).parts[0])
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("im2col_conv.gallery")
    }
    assert importers <= {"gallery", "cli"}
