"""Weights that are used again and again, and keep what an algorithm makes of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt

from im2col_conv.arrays import Array, aligned, read_array

__all__ = ["PlainWeights", "PreparedWeights", "Room", "Weights", "prepare", "read_weights"]


class Form(Protocol):
    """What weights may keep: an array, or anything else that knows its memory."""

    @property
    def nbytes(self) -> int:
        """The memory."""


T = TypeVar("T", bound=Form)
Room: TypeAlias = Callable[[str, tuple[int, ...], np.dtype[Any]], Array]
"""What returns unfilled memory for a name, a shape and a type."""


class PreparedWeights:
    """A copy of weights that nobody can change, and the forms of it that were made so far.

    Made by :func:`prepare`. It may stand wherever weights are asked for, in many threads at once,
    and in calls of any geometry: a form is made by the first call that needs it, and kept as long
    as this object.

    Attributes
    ----------
    array : ndarray
        The weights, contiguous and read-only.
    shape, dtype, ndim
        Those of ``array``.
    """

    def __init__(self, w: npt.ArrayLike) -> None:
        self.array = _frozen(np.array(read_array("w", w), order="C"))
        self._forms: dict[Hashable, Form] = {}
        self._making = threading.RLock()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weights."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the weights."""
        return self.array.dtype

    @property
    def ndim(self) -> int:
        """The number of their axes."""
        return self.array.ndim

    def form(self, key: Hashable, make: Callable[[Array, Room], T], room: Room) -> T:
        """Return what ``make`` makes of the weights; it is called once for each ``key``.

        Parameters
        ----------
        key : hashable
            All that the form depends on besides the weights: the algorithm, its sizes, the type.
        make : callable
            Is given :attr:`array` and where to get memory, and returns what is kept: an array,
            which becomes read-only, or anything that knows its ``nbytes`` and that many threads may
            use.
        room : callable
            Memory that is lent for a call; what is kept gets memory of its own.

        Returns
        -------
        what ``make`` returned
        """
        found = self._forms.get(key)
        if found is None:
            with self._making:  # threads that want the same form wait for the first of them
                found = self._forms.get(key)
                if found is None:
                    found = make(self.array, _own_room)
                    if isinstance(found, np.ndarray):
                        _frozen(found)
                    self._forms[key] = found
        return cast(T, found)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        """Return the weights, for whoever takes any array; a copy may be written to."""
        return np.array(self.array, dtype, copy=copy)

    def __reduce__(self) -> tuple[type[PreparedWeights], tuple[Array]]:
        """Pickle and copy the weights alone: forms are made again where they are needed."""
        return (type(self), (self.array,))

    def __repr__(self) -> str:
        kept = sum(form.nbytes for form in self._forms.values()) / 2**20
        forms = f"{len(self._forms)} form{'s' * (len(self._forms) != 1)}"
        return f"<PreparedWeights {self.shape} {self.dtype}, {forms} in {kept:.1f} MiB>"


class PlainWeights(NamedTuple):
    """Weights that are used once: forms of them are made and not kept."""

    array: Array

    def form(self, key: Hashable, make: Callable[[Array, Room], T], room: Room) -> T:
        """Return ``make(array, room)``."""
        return make(self.array, room)


Weights: TypeAlias = PreparedWeights | PlainWeights


def read_weights(name: str, value: object) -> Weights:
    """Return prepared weights as they are, and anything else as an array of a fitting type."""
    return value if isinstance(value, PreparedWeights) else PlainWeights(read_array(name, value))


def prepare(w: npt.ArrayLike) -> PreparedWeights:
    r"""Return weights to be used again and again, which keep what an algorithm makes of them.

    Some algorithms re-arrange or transform the weights first, which for small images takes as long
    as the convolution itself. Prepared weights keep the result from call to call. They are a copy:
    weights that have changed, in training, say, are prepared anew.

    Parameters
    ----------
    w : array_like
        (F, C // groups, \*kernel).

    Returns
    -------
    PreparedWeights
        ``w`` itself if it is prepared already.

    Raises
    ------
    TypeError
        Where ``w`` holds no fitting numbers.
    ValueError
        Where ``w`` cannot be read as an array.

    Notes
    -----
    The copy and the forms take memory as long as the object lives; its ``repr`` says how much.

    Examples
    --------
    >>> import numpy as np
    >>> import im2col_conv as ic
    >>> w = prepare(np.ones((4, 3, 3, 3), np.float32))
    >>> w
    <PreparedWeights (4, 3, 3, 3) float32, 0 forms in 0.0 MiB>
    >>> x = np.ones((2, 3, 7, 5), np.float32)
    >>> ic.conv(x, w, padding=1).shape
    (2, 4, 7, 5)
    """
    return w if isinstance(w, PreparedWeights) else PreparedWeights(w)


def _own_room(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    return aligned(shape, dtype)


def _frozen(array: Array) -> Array:
    array.flags.writeable = False
    return array
