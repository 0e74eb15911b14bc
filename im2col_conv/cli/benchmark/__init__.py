"""The benchmark: layers, contestants, and what is measured of them.

The way of a run, each step a module::

    layers                        the convolutions that are timed, by name
    data                          the arrays of one layer
    ours, classic, gemm,          a contestant each: from a layer and its data
    pytorch, onnx_runtime, xla    to what is called
    contestants                   all of them, by name
    agreement                     their results are held against one another
    timing, memory, growth        seconds, bytes, and both as the work grows
    record, report                JSON for programs, tables for people
"""
