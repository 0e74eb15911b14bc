"""The index lemmas of docs/equivalence.md, as statements over all integers, one spatial axis each.

A lemma is a function of integers that returns what is ``given`` and what is claimed. Its arguments
are any integers at all: ``proofs/check.py`` hands Z3 the unknowns, and asks for a counterexample.
The same functions run on plain numbers, where tests hold them against the library's own sizes.

Floor division is stated by its quotient and its remainder, which are unknowns of their own. Z3 does
not find by itself that a product grows with its factors; where a proof needs that, the lemma is
given an instance of ``products_keep_order``, which stands first and is proved first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from z3 import And, If, Implies

Number: TypeAlias = Any  # an int or an unknown of Z3
Claim: TypeAlias = Any  # a bool or a formula of Z3


class Axis(NamedTuple):
    """The numbers of one spatial axis, with the names of ConvGeometry."""

    size: Number
    before: Number
    after: Number
    kernel: Number
    stride: Number
    dilation: Number
    steps: Number  # (padded - reach) // stride, the quotient
    unused: Number  # (padded - reach) % stride, the remainder

    @property
    def padded(self) -> Number:
        """The size of the input with its padding."""
        return self.before + self.size + self.after

    @property
    def reach(self) -> Number:
        """Cells from a window's first tap to its last, both counted."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def out(self) -> Number:
        """The number of outputs."""
        return self.steps + 1

    @property
    def upsampled(self) -> Number:
        """The length of the gradient with zeros between its numbers and for unused cells."""
        return self.padded - self.reach + 1

    @property
    def margin(self) -> Number:
        """Zeros on each side of the upsampled gradient."""
        return self.reach - 1

    @property
    def is_right(self) -> Claim:
        """What ConvGeometry has checked or computed."""
        return And(
            self.size >= 0,
            self.before >= 0,
            self.after >= 0,
            self.kernel >= 1,
            self.stride >= 1,
            self.dilation >= 1,
            self.padded >= self.reach,
            self.padded - self.reach == self.stride * self.steps + self.unused,
            0 <= self.unused,
            self.unused < self.stride,
        )


class Lemma(NamedTuple):
    """What is assumed, and what follows from it."""

    given: Claim
    claim: Claim


def within(index: Number, size: Number) -> Claim:
    """Say that ``index`` counts one of so many, from 0."""
    return And(0 <= index, index < size)


def products_keep_order(a: Number, b: Number, s: Number) -> Lemma:
    """A product grows with its factor: a <= b is a s <= b s for s >= 1, and so for <."""
    return Lemma(s >= 1, And((a <= b) == (a * s <= b * s), (a < b) == (a * s < b * s)))


def known(lemma: Lemma) -> Claim:
    """Return a lemma that is proved as something given."""
    return Implies(lemma.given, lemma.claim)


def cell(axis: Axis, o: Number, t: Number) -> Number:
    """Return the cell of the padded input where output o and tap t meet."""
    return o * axis.stride + t * axis.dilation


def flipped(axis: Axis, t: Number) -> Number:
    """Return where the flip of the filter puts tap t."""
    return axis.kernel - 1 - t


def place(axis: Axis, a: Number, t: Number) -> Number:
    """Return the place in the padded gradient that flipped tap t of the window at a is over."""
    return a + t * axis.dilation


def place_of_gradient(axis: Axis, o: Number) -> Number:
    """Return the place in the padded gradient where dout[o] stands."""
    return axis.margin + o * axis.stride


# Numbers.


def quotients_are_unique(s: Number, q: Number, r: Number, other: Number, rest: Number) -> Lemma:
    """A number has one quotient and one remainder."""
    return Lemma(
        And(
            s * q + r == s * other + rest,
            within(r, s),
            within(rest, s),
            known(products_keep_order(q + 1, other, s)),
            known(products_keep_order(other + 1, q, s)),
        ),
        And(q == other, r == rest),
    )


def rows_are_numbered_once(
    rows: Number, columns: Number, i: Number, j: Number, row: Number, column: Number
) -> Lemma:
    """In C order no two entries share a number, and all lie within the size."""
    return Lemma(
        And(
            within(i, rows),
            within(j, columns),
            within(row, rows),
            within(column, columns),
            known(products_keep_order(0, i, columns)),
            known(products_keep_order(i + 1, rows, columns)),
            known(quotients_are_unique(columns, i, j, row, column)),
        ),
        And(
            within(i * columns + j, rows * columns),
            Implies(i * columns + j == row * columns + column, And(i == row, j == column)),
        ),
    )


# Sizes.


def out_counts_the_windows(axis: Axis, o: Number) -> Lemma:
    """Window o lies in the padded input exactly where o is one of the ``out``."""
    return Lemma(
        And(
            axis.is_right,
            known(products_keep_order(o, axis.steps, axis.stride)),
            known(products_keep_order(axis.steps + 1, o, axis.stride)),
            known(products_keep_order(0, o, axis.stride)),
        ),
        And(0 <= o * axis.stride, o * axis.stride + axis.reach <= axis.padded)
        == within(o, axis.out),
    )


def the_last_window_leaves_the_unused(axis: Axis) -> Lemma:
    """The last window ends where the ``unused`` cells begin."""
    return Lemma(
        axis.is_right,
        (axis.out - 1) * axis.stride + axis.reach == axis.padded - axis.unused,
    )


def pairs_meet_in_the_used_cells(axis: Axis, o: Number, t: Number) -> Lemma:
    """Each output and tap meet in the padded input, the last of them before ``unused`` cells."""
    used = axis.padded - axis.unused
    return Lemma(
        And(
            axis.is_right,
            within(o, axis.out),
            within(t, axis.kernel),
            known(products_keep_order(o, axis.steps, axis.stride)),
            known(products_keep_order(0, o, axis.stride)),
            known(products_keep_order(t, axis.kernel - 1, axis.dilation)),
            known(products_keep_order(0, t, axis.dilation)),
        ),
        And(
            within(cell(axis, o, t), used),
            cell(axis, axis.out - 1, axis.kernel - 1) == used - 1,
        ),
    )


def a_tap_meets_a_run_of_outputs(
    axis: Axis, o: Number, t: Number, q: Number, r: Number, last: Number, rest: Number
) -> Lemma:
    """Tap t meets cells of x in the outputs from ceil(-shift / stride) on: im2col's slices."""
    shift = t * axis.dilation - axis.before
    return Lemma(
        And(
            axis.is_right,
            shift == axis.stride * q + r,  # q = shift // stride
            within(r, axis.stride),
            axis.size - 1 - shift == axis.stride * last + rest,  # last = (size - 1 - shift) // s
            within(rest, axis.stride),
            known(products_keep_order(-q, o, axis.stride)),
            known(products_keep_order(o, -q - 1, axis.stride)),
            known(products_keep_order(o, last, axis.stride)),
            known(products_keep_order(last + 1, o, axis.stride)),
        ),
        within(cell(axis, o, t) - axis.before, axis.size) == And(-q <= o, o < last + 1),
    )


def transposed_sizes(axis: Axis, out: Number, extra: Number) -> Lemma:
    """Of the sizes that ``output_padding`` < stride makes, each leads back to the same output."""
    return Lemma(
        And(
            axis.is_right,
            within(extra, axis.stride),
            axis.size == (out - 1) * axis.stride + axis.reach - axis.before - axis.after + extra,
            known(quotients_are_unique(axis.stride, axis.steps, axis.unused, out - 1, extra)),
        ),
        And(axis.out == out, axis.unused == extra),
    )


def same_gives_a_stride_th_of_the_size(axis: Axis, m: Number, rest: Number, total: Number) -> Lemma:
    """The padding that "same" adds gives ceil(size / stride) outputs."""
    needed = (m - 1) * axis.stride + axis.reach - axis.size
    return Lemma(
        And(
            axis.is_right,
            axis.size == axis.stride * m - rest,  # m = ceil(size / stride)
            within(rest, axis.stride),
            total == If(needed > 0, needed, 0),
            axis.before + axis.after == total,
            known(products_keep_order(axis.steps + 1, m - 1, axis.stride)),
            known(products_keep_order(m, axis.steps, axis.stride)),
        ),
        axis.out == m,
    )


# The padded gradient.


def gradients_fill_each_stride_th_place(axis: Axis, o: Number) -> Lemma:
    """Of the upsampled places, the multiples of the stride are one for each output."""
    return Lemma(
        And(
            axis.is_right,
            known(products_keep_order(o, axis.steps, axis.stride)),
            known(products_keep_order(axis.steps + 1, o, axis.stride)),
            known(products_keep_order(0, o, axis.stride)),
        ),
        within(place_of_gradient(axis, o) - axis.margin, axis.upsampled) == within(o, axis.out),
    )


def windows_by_one_are_the_padded_cells(axis: Axis) -> Lemma:
    """The padded gradient has as many windows, moved by 1, as the padded input has cells."""
    return Lemma(
        axis.is_right,
        axis.upsampled + 2 * axis.margin - axis.reach + 1 == axis.padded,
    )


def windows_stay_inside(axis: Axis, a: Number, t: Number) -> Lemma:
    """The window at each cell of the padded input lies in the padded gradient."""
    return Lemma(
        And(
            axis.is_right,
            within(a, axis.padded),
            within(t, axis.kernel),
            known(products_keep_order(t, axis.kernel - 1, axis.dilation)),
            known(products_keep_order(0, t, axis.dilation)),
        ),
        within(place(axis, a, t), axis.upsampled + 2 * axis.margin),
    )


def without_zeros_for_the_unused_windows_are_missing(axis: Axis) -> Lemma:
    """An upsampled gradient that ends with the last number has ``unused`` windows too few."""
    shorter = (axis.out - 1) * axis.stride + 1
    return Lemma(
        axis.is_right,
        shorter + 2 * axis.margin - axis.reach + 1 == axis.padded - axis.unused,
    )


def the_crop_is_x(axis: Axis, i: Number) -> Lemma:
    """Cells of x are those of the padded input but ``before`` first and ``after`` last ones."""
    return Lemma(
        axis.is_right,
        within(i, axis.size)
        == And(axis.before <= i + axis.before, i + axis.before < axis.padded - axis.after),
    )


# The bijection.


def the_flip_is_its_own_inverse(axis: Axis, t: Number) -> Lemma:
    """Flipping keeps taps taps, and flipping twice gives back the tap."""
    return Lemma(
        axis.is_right,
        And(
            within(flipped(axis, t), axis.kernel) == within(t, axis.kernel),
            flipped(axis, flipped(axis, t)) == t,
        ),
    )


def a_pair_finds_its_gradient(axis: Axis, o: Number, t: Number) -> Lemma:
    """Where output and tap meet, the flipped tap lies over this output's gradient."""
    return Lemma(
        axis.is_right,
        place(axis, cell(axis, o, t), flipped(axis, t)) == place_of_gradient(axis, o),
    )


def a_gradient_finds_its_pair(axis: Axis, o: Number, a: Number, t: Number) -> Lemma:
    """A flipped tap that lies over the gradient of o sits at the cell where o and the tap meet."""
    return Lemma(
        And(axis.is_right, place(axis, a, t) == place_of_gradient(axis, o)),
        a == cell(axis, o, flipped(axis, t)),
    )


def no_two_pairs_meet_alike(axis: Axis, o: Number, t: Number, other: Number, tap: Number) -> Lemma:
    """Two outputs and taps with the same cell and the same flipped tap are one."""
    return Lemma(
        And(
            axis.is_right,
            cell(axis, o, t) == cell(axis, other, tap),
            flipped(axis, t) == flipped(axis, tap),
            known(products_keep_order(o, other, axis.stride)),
            known(products_keep_order(other, o, axis.stride)),
        ),
        And(o == other, t == tap),
    )


LEMMAS: tuple[Callable[..., Lemma], ...] = (
    products_keep_order,
    quotients_are_unique,
    rows_are_numbered_once,
    out_counts_the_windows,
    the_last_window_leaves_the_unused,
    pairs_meet_in_the_used_cells,
    a_tap_meets_a_run_of_outputs,
    transposed_sizes,
    same_gives_a_stride_th_of_the_size,
    gradients_fill_each_stride_th_place,
    windows_by_one_are_the_padded_cells,
    windows_stay_inside,
    without_zeros_for_the_unused_windows_are_missing,
    the_crop_is_x,
    the_flip_is_its_own_inverse,
    a_pair_finds_its_gradient,
    a_gradient_finds_its_pair,
    no_two_pairs_meet_alike,
)
