"""A gallery of lowerings: how a convolution is made of matrix products, one way a module.

For study: plain functions, forward only, on one interface. The engine imports none of it.
"""

from im2col_conv.gallery.chunked import CHUNKED
from im2col_conv.gallery.fft import FFT
from im2col_conv.gallery.im2col import IM2COL
from im2col_conv.gallery.im2row import IM2ROW
from im2col_conv.gallery.im2win import IM2WIN
from im2col_conv.gallery.indirect import INDIRECT
from im2col_conv.gallery.interface import Lowering
from im2col_conv.gallery.kn2col import KN2COL
from im2col_conv.gallery.kn2row import KN2ROW
from im2col_conv.gallery.mec import MEC
from im2col_conv.gallery.winograd import WINOGRAD

__all__ = ["LOWERINGS", "Lowering"]

LOWERINGS = {
    lowering.name: lowering
    for lowering in (
        IM2COL,
        IM2ROW,
        CHUNKED,
        MEC,
        IM2WIN,
        KN2ROW,
        KN2COL,
        INDIRECT,
        WINOGRAD,
        FFT,
    )
}
"""By name."""
