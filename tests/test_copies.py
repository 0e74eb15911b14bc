"""Copies: every number arrives, nothing beside the target is touched, others are refused."""

import numpy as np
import pytest

from im2col_conv.arrays import address
from im2col_conv.engine.copies import copies_for, copy_lines
from im2col_conv.engine.implicit.moves import move, move_images, move_matrix
from im2col_conv.engine.openblas import private_blas, why_not

needs_blas = pytest.mark.skipif(private_blas() is None, reason=str(why_not()))


def laid(shape, order, dtype=np.float32):
    """Return numbers with room around them, their axes from outside to inside as in ``order``."""
    room = np.full([shape[axis] + 2 for axis in order], -1, dtype)
    inside = room[(slice(1, -1),) * len(shape)]
    inside[...] = np.arange(inside.size).reshape(inside.shape)
    return room, inside.transpose(np.argsort(order))


ORDERS = [(0, 1, 2, 3), (1, 0, 2, 3), (1, 2, 3, 0), (2, 3, 0, 1), (2, 3, 1, 0), (0, 2, 1, 3)]
WAYS = {
    "image by image": lambda source, target: move(private_blas(), source, target),
    "all images": lambda source, target: move_images(private_blas(), source, target),
    "as a matrix": lambda source, target: move_matrix(private_blas(), source, target),
    "lines": copy_lines,
}


@needs_blas
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(5, 3, 7, 9), (70, 2, 9, 11), (1, 1, 1, 1), (3, 0, 2, 2)])
@pytest.mark.parametrize("source_order", ORDERS)
@pytest.mark.parametrize("target_order", ORDERS)
def test_a_copy_fills_its_target_and_nothing_else(source_order, target_order, shape, way):
    _, source = laid(shape, source_order)
    room, target = laid(shape, target_order)
    source += 1
    WAYS[way](source, target)
    np.testing.assert_array_equal(target, source)
    target[...] = -1
    assert (room == -1).all()


NUMBERS = np.arange(60.0).reshape(3, 4, 5)
READ_ONLY = NUMBERS.copy()
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    "array",
    [
        NUMBERS,
        NUMBERS[1:, ::2, 3:],
        NUMBERS[::-1, :, 1],
        NUMBERS[:, 2:2],
        NUMBERS[1, 2, 3:4].reshape(()),
        READ_ONLY[1:],
    ],
    ids=["whole", "with gaps", "backwards", "empty", "one number", "read-only"],
)
def test_the_address_of_an_array_is_that_of_its_first_number(array):
    assert address(array) == array.ctypes.data


def test_lines_of_other_types_are_converted():
    source, target = np.arange(12, dtype=np.int32).reshape(3, 4), np.zeros((3, 4))
    copy_lines(source, target)
    np.testing.assert_array_equal(target, source)


@needs_blas
def test_copies_refuse_arrays_that_lie_otherwise():
    source, target = np.ones((3, 20, 30), np.float32), np.zeros((20, 30, 3), np.float32)
    turned = target.transpose(2, 0, 1)
    copies = copies_for(source, turned, each_image=False)
    private_blas().copy(copies, source, turned)
    assert (target == 1).all()
    for other in (turned[:, :-1], np.zeros((3, 20, 30), np.float32), turned.astype(np.float64)):
        with pytest.raises(ValueError, match="copies are of arrays that lie as"):
            private_blas().copy(copies, source, other)
    target.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        private_blas().copy(copies, source, target.transpose(2, 0, 1))
