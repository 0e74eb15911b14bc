r"""Winograd's way: fewer multiplications, for kernels of 3 by 3 that move by one cell.

A tile of m by m outputs sees n by n cells, n = m + 2. Along one axis there are matrices
:math:`A^T (m \times n)`, :math:`G (n \times 3)` and :math:`B^T (n \times n)` with

.. math:: y = A^T \left[ (G g) \odot (B^T d) \right]

for any three weights g and any n cells d (``transforms`` has the proof). Along two axes, with the
products added over the channels before the outer transform,

.. math:: Y_f = A^T \left[ \sum_c U_{fc} \odot V_c \right] A + b_f, \qquad
          U_{fc} = G g_{fc} G^T, \qquad V_c = B^T d_c B.

Each of the n² entries of the sum is a matrix product over tiles, channels and filters,
:math:`V_k\,(tiles \times C) \; U_k\,(C \times F)`. That makes n² multiplications for m² outputs in
place of 9 m²: 36 for 144 with m = 4, 16 for 36 with m = 2. The price is rounding: the transforms
subtract large numbers from each other. ``tests/test_winograd.py`` states a bound.

``tile`` says what a tile meets, ``stages`` how the five steps are products, ``weights`` makes U,
``plan`` cuts a pass into chunks and says what is covered, ``forward`` runs it.

After Winograd, "Arithmetic complexity of computations" (1980), and Lavin and Gray, "Fast algorithms
for convolutional neural networks" (2016).
"""
