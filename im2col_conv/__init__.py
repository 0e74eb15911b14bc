"""Convolution on the CPU, forward and backward, lowered to matrix multiplication.

The way of the data, each step a module::

    arguments, arrays   what is given, read and checked
    geometry            every size: ConvGeometry, and transposed for conv_transpose
    lowering            im2col, a gather, and col2im, its exact adjoint
    prepared            weights that keep what an algorithm makes of them
    engine              the three passes, tile by tile: y = W @ cols, dw = dout @ cols.T,
                        dx = col2im(W.T @ dout); as columns, implicitly, directly, or Winograd's way
    functional, note    the functions that people call
    matrices            a layer as sparse matrices and as an operator, for proofs and solvers
    reference           nested loops and flip-and-pad: slow, plain, independent of all above
"""

from im2col_conv import reference
from im2col_conv.config import show_config
from im2col_conv.engine.settings import get_workers, get_workspace, set_workers, set_workspace
from im2col_conv.explain import explain
from im2col_conv.functional import (
    ConvGrads,
    conv,
    conv_grads,
    conv_input_grad,
    conv_transpose,
    conv_weight_grad,
)
from im2col_conv.geometry import ConvGeometry
from im2col_conv.lowering import col2im, im2col
from im2col_conv.matrices import conv_matrix, conv_operator, lowering_matrix
from im2col_conv.note import conv_backward, conv_forward
from im2col_conv.prepared import PreparedWeights, prepare

__all__ = [
    "ConvGeometry",
    "ConvGrads",
    "PreparedWeights",
    "col2im",
    "conv",
    "conv_backward",
    "conv_forward",
    "conv_grads",
    "conv_input_grad",
    "conv_matrix",
    "conv_operator",
    "conv_transpose",
    "conv_weight_grad",
    "explain",
    "get_workers",
    "get_workspace",
    "im2col",
    "lowering_matrix",
    "prepare",
    "reference",
    "set_workers",
    "set_workspace",
    "show_config",
]
