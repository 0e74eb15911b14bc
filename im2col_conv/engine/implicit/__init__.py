r"""The implicit way: the products of the lowering, read from the input itself.

The column matrix is not stored, but where it is small beside W. Cut by tap, the three products are

.. math:: y = \sum_t W_t x_t + b, \qquad dx_t \mathrel{+}= W_t^T dout, \qquad
          dW_t = dout \, x_t^T,

where :math:`x_t` are the cells that tap t meets. With channels innermost in memory, the cells that
one tap meets along one line of outputs are the rows of a matrix, which BLAS reads where they lie::

    y  line (L, F) += x line (L, C) @ W_t  (C, F)       forward
    dx line (L, C) += y line (L, F) @ W_t' (F, C)       input_grad
    W_t     (C, F) += x line.T (C, L) @ y line (L, F)   weight_grad

How the numbers of a tile lie in memory is an *arrangement*, one module each: ``inner``, ``outer``,
``spread``, ``shifted``, ``unrolled``, ``bands``, ``pointwise``; ``arrangements`` picks one from the
geometry and the kernel of the library, ``plan`` draws the tiles, ``pairs`` says which lines meet at
which tap, ``lines`` and ``moves`` where lines lie and how they get there, ``weights`` when weights
are arranged. But for ``spread``, ``shifted`` and ``unrolled``, outputs whose tap falls on padding
are left out of a line, so no padding is stored, and infinity and NaN reach exactly the windows that
hold them.
"""
