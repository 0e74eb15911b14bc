"""The spine: windows gathered tile by tile into columns, one product a tile, col2im back.

::

    forward        y  = W @ cols             tiles of output positions
    weight_grad    dw = dout @ cols.T        the same tiles, in a fixed number of partial sums
    input_grad     dx = col2im(W.T @ dout)   blocks of channels, each scattered by one worker

It needs NumPy alone, and takes every geometry and type. ``gathering`` says how a tile is filled,
``columns`` how it lies in memory, ``scattering`` how it is added to the cells. Small layers have no
tiles: ``lookup`` makes all their columns in one step, in every pass. Of layers in which
each channel sees itself alone, columns may be views: ``depthwise`` multiplies them number by number
where channels lie beside each other, ``dots`` makes dw of them where channels come first,
``toeplitz`` y and dx of single lines (``stored`` says how both lay out their cells), and ``phased``
makes dx, with a stride, as forward passes.
"""
