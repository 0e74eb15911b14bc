"""Results that are made with filters side by side, and then turned to lines of outputs."""

from __future__ import annotations

import math

import numpy as np

from im2col_conv.engine.boxes import joined, places_of
from im2col_conv.engine.direct.moves import Again, Box, Moves
from im2col_conv.engine.direct.turns import Turns, side_of, strips_of

__all__ = ["turned_to_lines"]


def turned_to_lines(
    made: tuple[int, ...], given: tuple[int, ...], into: tuple[int, ...], itemsize: int
) -> list[Turns | Moves]:
    """Return what turns y[n, *outs, f] to y[n, f, *outs], which lie so: squares, and the rest."""
    n, F, *outs = made
    side = side_of(itemsize)
    (*outer, line), apart = joined(tuple(outs), into[2:])
    far = [math.prod((*outer, line)[axis + 1 :]) * F for axis in range(len(outer) + 1)]
    again = Again(n, given[0], into[0])
    if line < side or side > F:
        box = Box(0, 0, (F, *outer, line), (1, *far[:-1]), (into[1], *apart[:-1]))
        return [Moves([box], again, F, itemsize)]
    lines = zip(places_of(outer, far[:-1]), places_of(outer, apart[:-1]), strict=True)
    strips = strips_of(lines, line, F, F, side)
    return [Turns(strips, F, np.arange(F) * into[1], again, itemsize)]
