"""The data that the package ships."""

from importlib.resources import files

import numpy as np

from im2col_conv.data import load_digits


def test_shapes_and_types():
    images, labels = load_digits()
    assert (images.shape, images.dtype) == ((1797, 1, 8, 8), np.float32)
    assert (labels.shape, labels.dtype) == ((1797,), np.int64)


def test_ink_goes_from_paper_to_black_in_sixteenths():
    images, _ = load_digits()
    assert (images.min(), images.max()) == (0, 1)
    np.testing.assert_array_equal(images * 16, np.round(images * 16))


def test_each_digit_is_there_as_often_as_in_the_source():
    _, labels = load_digits()
    counts = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.bincount(labels).tolist() == counts


def test_first_image_is_the_source_s_first_row():
    images, labels = load_digits()
    assert (16 * images[0, 0, 0]).astype(int).tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    assert labels[0] == 0


def test_arrays_are_fresh_and_writable():
    first, second = load_digits(), load_digits()
    for one, other in zip(first, second, strict=True):
        expected = other.copy()
        one[:] = 7
        np.testing.assert_array_equal(other, expected)


def test_file_loads_without_pickle():
    with files("im2col_conv.data").joinpath("digits.npz").open("rb") as file:
        stored = np.load(file, allow_pickle=False)
        assert {name: stored[name].dtype for name in stored} == {
            "images": np.uint8,
            "labels": np.uint8,
        }


def test_licence_lies_beside_the_data():
    licence = files("im2col_conv.data").joinpath("LICENSE-digits.md").read_text("utf-8")
    for part in ("CC BY 4.0", "E. Alpaydin, C. Kaynak", "10.24432/C50P49", "Changes made"):
        assert part in licence
