"""Prove the lemmas of ``proofs/lemmas.py`` for all integers with Z3: ``python proofs/check.py``.

Z3 is asked for integers for which what is given holds and what is claimed does not. Where there are
none, the lemma is proved. It is also asked whether anything at all is as given: a lemma about
nothing would prove nothing. One line a lemma; the command fails unless each is proved.
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

try:
    import z3
except ImportError as error:
    raise ImportError('Z3 is missing: python -m pip install "im2col-conv[proofs]"') from error

sys.path.insert(0, str(Path(__file__).parents[1]))

from proofs.lemmas import LEMMAS, Axis, Lemma

SECONDS = 60  # for each question; Z3 5.4 takes less than one, 4.13 up to ten
SMALL = 3  # counterexamples are first looked for among small numbers, where they are found at once


def unknowns(lemma: Callable[..., Lemma]) -> list[Any]:
    """Return an unknown integer for each argument of a lemma, and for each number of its axis."""
    parameters = inspect.signature(lemma, eval_str=True).parameters
    return [
        kind.annotation(*map(z3.Int, Axis._fields)) if name == "axis" else z3.Int(name)
        for name, kind in parameters.items()
    ]


def solution(*formulas: Any) -> str | None:
    """Return integers for which all formulas hold, as text, or None where there are none."""
    solver = z3.Solver()
    solver.set(timeout=round(1000 * SECONDS), random_seed=0)
    solver.add(*formulas)
    answer = solver.check()
    if answer == z3.unknown:
        raise TimeoutError(f"Z3 gave up: {solver.reason_unknown()}")
    if answer == z3.unsat:
        return None
    model = solver.model()
    return ", ".join(f"{unknown.name()} = {model[unknown]}" for unknown in model)


def counterexample(lemma: Callable[..., Lemma], largest: int | None = None) -> str | None:
    """Return integers that refute a lemma, none of them beyond ``largest``, or None."""
    arguments = unknowns(lemma)
    given, claim = lemma(*arguments)
    numbers = [n for each in arguments for n in (each if isinstance(each, tuple) else (each,))]
    bounds = [] if largest is None else [z3.And(-largest <= n, n <= largest) for n in numbers]
    return solution(given, z3.Not(claim), *bounds)


def verdict(lemma: Callable[..., Lemma]) -> str:
    """Return "proved", or what is wrong with a lemma."""
    try:
        found = counterexample(lemma, SMALL) or counterexample(lemma)
        if found is not None:
            return f"REFUTED by {found}"
        if solution(lemma(*unknowns(lemma)).given) is None:
            return "EMPTY: nothing is as given"
    except TimeoutError as error:
        return f"NOT PROVED: {error}"
    return "proved"


def main(lemmas: Iterable[Callable[..., Lemma]] = LEMMAS) -> int:
    """Print a line for each lemma; return how many are not proved."""
    print(f"Z3 {z3.get_version_string()}, all integers, one axis")
    unproved = 0
    for lemma in lemmas:
        start = time.perf_counter()
        said = verdict(lemma)
        unproved += said != "proved"
        claim = (lemma.__doc__ or "").replace("``", "")
        print(f"{said}  {time.perf_counter() - start:5.2f} s  {lemma.__name__}: {claim}")
    return unproved


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
