"""``python -m im2col_conv`` is ``im2col-conv``."""

from im2col_conv.cli import main

main()
