"""What "auto" takes on a machine whose private BLAS runs the kernels of a named processor."""

import numpy as np

from im2col_conv.engine.rule import tap_by_tap_pays


def library_with(kernel_name):
    """Return what the rules ask of a library."""

    class Library:
        types = frozenset({np.dtype(np.float32)})
        kernel = kernel_name
        packs = kernel_name in ("Haswell", "Zen")

    return Library()


def pays_in(each, geometry, layout, library):
    """Say whether a float32 pass goes tap by tap."""
    return tap_by_tap_pays(each, geometry, layout, np.dtype(np.float32), library)
