"""Prepared weights: a copy that nobody changes, and forms that are made once."""

import copy
import pickle
import threading

import numpy as np
import pytest

import im2col_conv as ic
from im2col_conv.prepared import PreparedWeights, prepare


def weights(dtype=np.float32):
    return np.random.default_rng(8).standard_normal((4, 3, 3, 2)).astype(dtype)


def pickled(value):
    return pickle.loads(pickle.dumps(value))


def test_it_owns_a_read_only_copy():
    given = weights()
    prepared = prepare(given)
    kept = given.copy()
    given[...] = 7
    np.testing.assert_array_equal(prepared.array, kept)
    assert (prepared.shape, prepared.dtype, prepared.ndim) == ((4, 3, 3, 2), np.float32, 4)
    with pytest.raises(ValueError, match="read-only"):
        prepared.array[0] = 1


def test_a_view_with_gaps_becomes_contiguous():
    given = weights().transpose(0, 3, 2, 1)[:, ::-1]
    prepared = prepare(given)
    assert prepared.array.flags.c_contiguous
    np.testing.assert_array_equal(prepared.array, given)


def test_preparing_again_changes_nothing():
    prepared = prepare(weights())
    assert prepare(prepared) is prepared


def test_it_stands_for_its_array():
    given, x = weights(), np.ones((2, 3, 7, 5), np.float32)
    prepared = prepare(given)
    np.testing.assert_array_equal(ic.conv(x, prepared), ic.conv(x, given))
    assert np.asarray(prepared).dtype == np.float32
    assert np.asarray(prepared, np.float64).dtype == np.float64
    changed = np.array(prepared)
    changed[...] = 0
    np.testing.assert_array_equal(prepared.array, given)


def test_a_form_is_made_once_for_each_key():
    prepared, calls = prepare(weights()), []

    def make(array, room):
        calls.append(array)
        return array * 2

    first = prepared.form(("double", 2), make, np.empty)
    assert prepared.form(("double", 2), make, np.empty) is first
    assert not first.flags.writeable
    prepared.form(("double", 3), make, np.empty)
    assert len(calls) == 2
    assert all(array is prepared.array for array in calls)


def test_a_form_that_failed_is_tried_again():
    prepared = prepare(weights())
    with pytest.raises(ZeroDivisionError):
        prepared.form("key", lambda array, room: 1 // 0, np.empty)
    assert prepared.form("key", lambda array, room: array.copy(), np.empty).shape == prepared.shape


def test_many_threads_make_a_form_once():
    prepared, meet, calls, found = prepare(weights()), threading.Barrier(8), [], []

    def make(array, room):
        calls.append(1)
        return array + 1

    def ask():
        meet.wait(10)
        found.append(prepared.form("key", make, np.empty))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len({id(form) for form in found}) == 1


def test_the_repr_says_what_is_kept():
    prepared = prepare(weights())
    assert repr(prepared) == "<PreparedWeights (4, 3, 3, 2) float32, 0 forms in 0.0 MiB>"
    prepared.form("key", lambda array, room: np.zeros(2**18, np.float32), np.empty)
    assert repr(prepared) == "<PreparedWeights (4, 3, 3, 2) float32, 1 form in 1.0 MiB>"


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickled])
def test_copies_begin_without_forms(again):
    prepared = prepare(weights())
    prepared.form("key", lambda array, room: array.copy(), np.empty)
    other = again(prepared)
    assert isinstance(other, PreparedWeights)
    assert "0 forms" in repr(other)
    np.testing.assert_array_equal(other.array, prepared.array)


def test_what_holds_no_fitting_numbers_is_refused():
    with pytest.raises(TypeError, match="^w must hold"):
        prepare(np.array(["a"]))
    with pytest.raises(TypeError, match="^w is a masked array"):
        prepare(np.ma.masked_array([1.0], [True]))
