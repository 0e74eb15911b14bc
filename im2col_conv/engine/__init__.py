"""How one lowering is run: four ways, and what they share.

::

    choice      which way a pass runs: named, or by a fixed rule
    im2col      the spine: columns tile by tile; NumPy alone, every geometry and type
    implicit    the same products tap by tap, read where the input lies; a private BLAS
    direct      the same products summed in registers, by machine code of this package
    winograd    fewer multiplications for kernels of 3 by 3, less exact, only if asked for

They stand on ``jobs`` (one pass, or both gradients, as tasks), ``tiling`` (how large a tile is),
``plan`` (what a pass takes), ``arithmetic`` (how numbers of a type are multiplied), ``workers``,
``pool``, ``processors`` and ``blas`` (who does it, and where), ``products``, ``copies`` and
``openblas`` (lists of small products, copies from one memory order to another, and the library that
does them), ``machine`` (an assembler, and memory to run what it writes), ``kernels`` (which kernels
fit the processor) and ``settings``.
"""
