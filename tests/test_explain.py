"""What the library says of itself."""

import re
import subprocess
import sys

import numpy as np
import pytest

import im2col_conv as ic


def test_explain_tells_the_matrices_and_the_work():
    e = ic.explain((2, 6, 11, 13), (4, 3, 3, 5), stride=(2, 3), padding=1, groups=2, dtype="f8")
    assert e.geometry == ic.ConvGeometry.from_shapes(
        (2, 6, 11, 13), (4, 3, 3, 5), stride=(2, 3), padding=1, groups=2
    )
    assert e.flops == e.geometry.flops
    assert e.cols_nbytes == 90 * 2 * 6 * 4 * 8
    forward, weight, image = e.passes
    assert forward.product == "y (2, 48) = W (2, 45) @ cols (45, 48)"
    assert weight.product == "dw (2, 45) = dout (2, 48) @ cols.T (48, 45)"
    assert image.product == "dx (3, 286) = W flipped (3, 30) @ cols of dout (30, 286)"
    assert [each.tile for each in e.passes] == [(2, 2, 6, 4), (2, 2, 6, 4), (2, 2, 11, 13)]
    for each in e.passes:
        assert (each.tiles, each.workers) == (1, 1)
    text = str(e)
    assert "(2, 6, 11, 13) * (4, 3, 3, 5) -> (2, 4, 6, 4)" in text
    assert "column matrix     (90, 48), 33.8 KiB if it were whole" in text
    assert all(each.product in text for each in e.passes)


def test_explain_of_a_large_layer_stays_inside_the_workspace():
    with ic.set_workspace(16 * 2**20), ic.set_workers(2):
        for each in ic.explain((4, 64, 768, 700), (96, 64, 3, 3), padding=1).passes:
            assert each.tiles > 100
            assert each.workers == 2
            assert 0 < each.scratch <= 16 * 2**20


def test_fewer_workers_run_where_the_workspace_does_not_hold_a_tile_for_each():
    with ic.set_workspace(16 * 2**20), ic.set_workers(64):
        for each in ic.explain((4, 64, 768, 700), (96, 64, 3, 3), padding=1).passes:
            assert 4 <= each.workers < 64
            assert each.scratch <= 16 * 2**20


@pytest.mark.parametrize("dtype", ["wrong", "U3", object, np.uint64, ">u8", ("f4", (2,)), None, 3])
def test_explain_refuses_types_by_name(dtype):
    with pytest.raises(TypeError, match="^dtype must"):
        ic.explain((1, 1, 3), (1, 1, 3), dtype=dtype)


@pytest.mark.parametrize("shape", [None, 5, {2, 4, 6}, "123", iter((1, 1, 3))])
def test_explain_refuses_shapes_by_name(shape):
    with pytest.raises(TypeError, match="^x_shape must be a shape"):
        ic.explain(shape, (1, 1, 3))
    with pytest.raises(TypeError, match="^w_shape must be a shape"):
        ic.explain((1, 1, 3), shape)


def test_show_config_prints_what_it_returns(capsys):
    config = ic.show_config()
    printed = capsys.readouterr().out
    assert printed == f"{config}\n"
    assert config.versions["numpy"] == np.__version__
    assert re.search(rf"^numpy +{re.escape(np.__version__)}$", printed, re.MULTILINE)
    assert config.workers == ic.get_workers()
    assert config.workspace == ic.get_workspace()
    assert f"workspace     {ic.get_workspace() / 2**20:g} MiB" in printed
    assert all(library.kernel in printed for library in config.blas)


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()


def test_importing_the_package_imports_no_extra():
    extras = {"click", "rich", "matplotlib", "torch", "onnxruntime", "jax", "onnx"}
    loaded = run("import sys, im2col_conv; print(*(name.split('.')[0] for name in sys.modules))")
    assert not extras & set(loaded)
    assert "im2col_conv.reference" in run("import sys, im2col_conv; print(*sys.modules)")


def test_the_reference_imports_nothing_of_the_package():
    import ast
    from pathlib import Path

    tree = ast.parse(Path(ic.reference.__file__).read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.split(".")[0])
    assert imported <= set(sys.stdlib_module_names) | {"numpy"}


def test_dx_is_said_to_be_gathered_where_it_is():
    def product(size, **keywords):
        return ic.explain((2, 3, *size), (4, 3, 3, 2), dtype=int, **keywords).passes[2].product

    looked_up = product((9, 8), stride=2)
    assert looked_up == "dx (3, 144) = W flipped (3, 24) @ cols of dout (24, 144)"
    gathered = product((90, 80))
    assert gathered == "dx (3, 14400) = W flipped (3, 24) @ cols of dout (24, 14400)"
    assert product((90, 80), stride=2) == "dx = col2im(W.T (18, 4) @ dout (4, 3520))"
