"""Which way "auto" takes: each bound of the rule from both of its sides."""

import numpy as np
import pytest

import im2col_conv as ic
from im2col_conv.engine.rule import tap_by_tap_pays

Y, DW, DX = {"forward"}, {"weight_grad"}, {"input_grad"}
ALL = Y | DW | DX
NONE = set()
WIDE, PACKING = "SkylakeX", "Haswell"
LAYOUTS = ("channels_first", "channels_last")


class Library:
    """What the rule asks of a private BLAS that runs the kernels of a named processor."""

    types = frozenset({np.dtype(np.float32)})

    def __init__(self, kernel):
        self.kernel = kernel
        self.packs = kernel in ("Haswell", "Zen")


def pays_in(each, geometry, layout, library):
    return tap_by_tap_pays(each, geometry, layout, np.dtype(np.float32), library)


def taken(kernel, x_shape, w_shape, keywords, layout):
    """Return the passes that go tap by tap."""
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    library = Library(kernel)
    return {each for each in ALL if pays_in(each, geometry, layout, library)}


@pytest.mark.parametrize(
    ("kernel", "pays"),
    [
        ("SkylakeX", True),
        ("Cooperlake", True),
        ("Sapphirerapids", True),
        ("Haswell", True),
        ("Zen", True),
        ("Nehalem", False),
    ],
)
def test_the_kernel_of_the_library_decides(kernel, pays):
    for layout in LAYOUTS:
        found = taken(kernel, (4, 64, 30, 31), (24, 64, 3, 3), {}, layout)
        assert found == (ALL if pays else NONE)


def test_without_a_library_nothing_goes_tap_by_tap():
    geometry = ic.ConvGeometry.from_shapes((4, 64, 30, 31), (24, 64, 3, 3))
    assert not any(pays_in(each, geometry, "channels_first", None) for each in ALL)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "keywords", "expected"),
    [
        # work: 1.996 and 2.06 MFLOP
        ((2, 30, 9, 10), (33, 30, 3, 3), {}, NONE),
        ((2, 30, 9, 10), (34, 30, 3, 3), {}, ALL),
        # sums of 64 and 65 numbers: channels times taps, for dx filters times taps
        ((9, 16, 20, 31), (17, 16, 2, 2), {}, DX),
        ((9, 17, 20, 31), (16, 17, 2, 2), {}, Y | DW),
        ((9, 16, 2000), (17, 16, 4), {}, DX),
        ((9, 13, 20, 31), (16, 13, 1, 5), {}, ALL),
        ((9, 16, 20, 31), (13, 16, 5, 1), {}, ALL),
        # dx whose columns would be scattered: with a stride, or of more than twice as many filters
        ((9, 16, 20, 31), (15, 16, 2, 2), {"stride": (2, 1)}, DX),
        ((9, 7, 20, 31), (15, 7, 2, 2), {}, DX),
        # windows apart on both axes, and on one
        ((9, 40, 20, 31), (20, 40, 2, 3), {"stride": (2, 3)}, DX),
        ((9, 40, 20, 31), (20, 40, 2, 3), {"stride": (2, 2)}, ALL),
        # in groups: sums of 32 and 33 numbers
        ((9, 24, 20, 31), (24, 8, 2, 2), {"groups": 3}, NONE),
        ((9, 22, 20, 31), (22, 11, 3, 1), {"groups": 2}, ALL),
        ((9, 22, 20, 31), (20, 11, 3, 1), {"groups": 2}, Y | DW),
    ],
)
def test_columns_are_taken_where_copies_cost_little(x_shape, w_shape, keywords, expected):
    for layout in LAYOUTS:
        assert taken(WIDE, x_shape, w_shape, keywords, layout) == expected


def test_columns_of_one_cell_a_stride_apart_are_scattered():
    for layout in LAYOUTS:
        assert taken(WIDE, (9, 40, 20, 31), (70, 40, 1, 1), {"stride": (2, 1)}, layout) == NONE


@pytest.mark.parametrize(
    ("channels", "kernel", "last"), [(4, (3, 4), True), (3, (3, 4), False), (11, (1, 4), False)]
)
def test_few_channels_of_groups_that_come_last_go_as_columns(channels, kernel, last):
    shapes = (9, 2 * channels, 20, 31), (30, channels, *kernel)
    for kernels in (WIDE, PACKING):
        assert taken(kernels, *shapes, {"groups": 2}, "channels_first") == ALL
        assert taken(kernels, *shapes, {"groups": 2}, "channels_last") == (ALL if last else NONE)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "keywords", "expected"),
    [
        # filters: up to 64, or any if products are 128 numbers deep up to a stride of 2
        ((9, 31, 20, 31), (64, 31, 3, 3), {}, ALL),
        ((9, 31, 20, 31), (65, 31, 3, 3), {}, DX),
        ((9, 42, 20, 31), (65, 42, 3, 3), {}, DX),
        ((9, 43, 20, 31), (65, 43, 3, 3), {}, ALL),
        ((9, 43, 20, 31), (65, 43, 3, 3), {"stride": (2, 1)}, ALL),
        ((9, 43, 20, 31), (65, 43, 3, 3), {"stride": (3, 1)}, DX),
        ((9, 43, 20, 31), (64, 43, 3, 3), {"stride": (3, 1)}, ALL),
        ((9, 62, 20, 31), (128, 31, 3, 3), {"groups": 2}, ALL),
        ((9, 62, 20, 31), (130, 31, 3, 3), {"groups": 2}, DX),
        # which are those of planes: not of groups or along one axis
        ((9, 86, 20, 31), (130, 43, 3, 3), {"groups": 2}, DX),
        ((9, 43, 200), (64, 43, 3), {}, ALL),
        ((9, 43, 200), (65, 43, 3), {}, DX),
        # 100 outputs: for four times as many as filters, for dx as many
        ((1, 60, 12, 12), (25, 60, 3, 3), {}, ALL),
        ((1, 60, 12, 12), (26, 60, 3, 3), {}, DX),
        ((1, 60, 12, 12), (100, 60, 3, 3), {}, DX),
        ((1, 60, 12, 12), (101, 60, 3, 3), {}, NONE),
        # channels, but those of groups
        ((9, 4, 20, 31), (9, 4, 5, 5), {}, ALL),
        ((9, 3, 20, 31), (9, 3, 5, 5), {}, DX),
        ((9, 6, 20, 31), (8, 3, 5, 5), {"groups": 2}, ALL),
        # what the rule for any kernel leaves to columns
        ((9, 16, 20, 31), (17, 16, 2, 2), {}, DX),
        ((9, 40, 20, 31), (20, 40, 2, 3), {"stride": (2, 3)}, DX),
    ],
)
def test_many_filters_go_as_columns_where_a_kernel_packs(x_shape, w_shape, keywords, expected):
    for layout in LAYOUTS:
        assert taken(PACKING, x_shape, w_shape, keywords, layout) == expected


@pytest.mark.parametrize(
    ("kernel", "x_shape", "w_shape", "keywords", "first", "last"),
    [
        (WIDE, (8, 9, 60, 52), (5, 9, 1, 1), {}, ALL, ALL),
        (WIDE, (8, 9, 60, 52), (4, 9, 1, 1), {}, NONE, NONE),  # 1.8 MFLOP
        (WIDE, (80, 90, 8, 4), (40, 90, 1, 1), {}, ALL, ALL),
        (WIDE, (80, 90, 31, 1), (40, 90, 1, 1), {}, NONE, NONE),  # few positions
        (WIDE, (9, 70, 20, 31), (20, 70, 1, 1), {"padding": 1}, Y | DW, Y | DW),
        (PACKING, (8, 9, 60, 52), (5, 9, 1, 1), {}, Y | DX, DX),
        # 4.01 and 3.9997 MFLOP a group
        (WIDE, (2, 96, 4, 163), (64, 48, 1, 1), {"groups": 2}, Y | DX, DX),
        (WIDE, (2, 96, 3, 217), (64, 48, 1, 1), {"groups": 2}, NONE, NONE),
        (PACKING, (2, 96, 4, 163), (64, 48, 1, 1), {"groups": 2}, NONE, NONE),
    ],
)
def test_kernels_of_one_cell(kernel, x_shape, w_shape, keywords, first, last):
    assert taken(kernel, x_shape, w_shape, keywords, "channels_first") == first
    assert taken(kernel, x_shape, w_shape, keywords, "channels_last") == last


@pytest.mark.parametrize(
    ("images", "channels", "size", "kernel", "stride", "wide", "packing"),
    [
        # work: 0.29 and 0.31 MFLOP
        (9, 8, (9, 23), (3, 5), 1, NONE, NONE),
        (9, 8, (9, 24), (3, 5), 1, ALL, Y | DX),
        # a line of all images: 32 outputs and 33
        (2, 30, (40, 20), (5, 5), 1, Y | DX, Y | DX),
        (3, 30, (40, 15), (5, 5), 1, ALL, Y | DX),
        (1, 30, (40, 36), (5, 5), 1, Y | DX, Y | DX),
        (1, 30, (40, 37), (5, 5), 1, ALL, Y | DX),
        # no dots: lines of phases shorter than 16, lines that are mostly zeros
        (2, 90, (40, 32), (3, 3), 2, ALL, ALL),
        (2, 90, (40, 33), (3, 3), 2, Y | DX, Y | DX),
        (5, 90, (7, 9), (5, 5), 1, ALL, ALL),
        (5, 90, (7, 10), (5, 5), 1, Y | DX, Y | DX),
        (9, 64, (999,), (9,), 1, NONE, NONE),  # one axis
        (3, 24, (9, 10, 11), (3, 3, 2), 1, Y | DX, Y | DX),
    ],
)
def test_depthwise_layers(images, channels, size, kernel, stride, wide, packing):
    shapes = (images, channels, *size), (channels, 1, *kernel)
    keywords = {"groups": channels, "stride": stride}
    assert taken(WIDE, *shapes, keywords, "channels_first") == wide
    assert taken(PACKING, *shapes, keywords, "channels_first") == packing


@pytest.mark.parametrize(
    ("images", "channels", "size", "kernel", "stride", "wide", "packing"),
    [
        # channels, and taps, of views
        (3, 16, (40, 41), (3, 5), 1, NONE, NONE),
        (3, 15, (40, 41), (3, 5), 1, Y | DX, Y | DX),
        (3, 16, (40, 41), (4, 4), (2, 1), Y | DX, DX),
        (3, 64, (9, 10, 11), (3, 3, 3), 1, Y | DX, DX),
        (3, 64, (9, 10, 11), (7, 2, 2), 1, Y | DX, Y | DX),
        # dw by bands: of channels, images or outputs of a line; dots, or views, of the others
        (16, 8, (20, 41), (4, 4), 1, ALL, Y | DX),
        (16, 7, (20, 41), (4, 4), 1, Y | DX, Y | DX),
        (15, 8, (20, 62), (4, 4), 1, Y | DX, Y | DX),
        (15, 8, (20, 63), (4, 4), 1, ALL, Y | DX),
        (16, 64, (20, 41), (3, 5), 1, NONE, NONE),
        (16, 8, (20, 9, 10), (4, 2, 2), 1, Y | DX, Y | DX),
        (16, 8, (20, 32), (4, 4), (1, 2), Y | DX, Y | DX),  # lines of 15
        (16, 8, (20, 34), (4, 4), (1, 2), ALL, Y | DX),
    ],
)
def test_depthwise_layers_whose_channels_come_last(
    images, channels, size, kernel, stride, wide, packing
):
    shapes = (images, channels, *size), (channels, 1, *kernel)
    keywords = {"groups": channels, "stride": stride}
    assert taken(WIDE, *shapes, keywords, "channels_last") == wide
    assert taken(PACKING, *shapes, keywords, "channels_last") == packing
