r"""The direct way: the products of the lowering, summed in registers, with no column stored.

Where a number of the column matrix stands in x is a sum of two offsets, one of its row and one of
its column,

.. math:: \text{cols}[k, p] = x[\alpha_k + \beta_p],

so that two short tables stand for the matrix, and a routine in machine code (``kernel``) goes
through them.
"""
