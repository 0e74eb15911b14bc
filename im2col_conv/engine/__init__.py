"""How one lowering is run: arithmetic, tiles, buffers, workers.

The passes stand side by side, each a plan (drawn from shapes and types alone) and its execution::

    forward        y  = W @ cols             tiles of output positions
    weight_grad    dw = dout @ cols.T        the same tiles, in a fixed number of partial sums
    input_grad     dx = col2im(W.T @ dout)   blocks of channels, each scattered by one worker

They stand on ``gathering`` (how a tile is filled), ``columns`` (how it lies in memory), ``tiling``
(how large it is), ``arithmetic`` (how numbers of a type are multiplied), ``workers`` and ``blas``
(who does it), and ``settings``.
"""
