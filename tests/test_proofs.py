"""The proofs by machine: each lemma is proved, each changed sign is found, all fits the library."""

import ast
import dataclasses
import importlib.util
import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

import im2col_conv as ic
from im2col_conv import reference
from im2col_conv.lowering import tap_slices, whole
from tests.strategies import cases, integers_like

z3 = pytest.importorskip("z3", reason="the extra proofs is not installed")

from proofs import check, lemmas  # noqa: E402

SOURCE = Path(lemmas.__file__).read_text()
NAMES = [lemma.__name__ for lemma in lemmas.LEMMAS]
OPPOSITE = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.LtE: ast.GtE,
    ast.Lt: ast.Gt,
    ast.GtE: ast.LtE,
    ast.Gt: ast.Lt,
    ast.Eq: ast.NotEq,
}


def signs(tree):
    """Yield each sign of the statements, as a node and where it stands.

    The hints are not mutated, since they are instances of lemmas and so true whatever stands in
    them; nor are the comparisons of ``is_right``, most of which only say that sizes are sizes.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "known":
            continue
        if isinstance(node, ast.BinOp | ast.UnaryOp) and isinstance(
            node.op, ast.Add | ast.Sub | ast.USub
        ):
            yield node
        if isinstance(node, ast.Compare) and type(node.ops[0]) in OPPOSITE:
            yield node
        if getattr(node, "name", "") == "is_right":
            yield from (each for each in signs(node) if isinstance(each, ast.BinOp))
        else:
            yield from signs(node)


def turned(number):
    """Return the module with one sign turned around, and the line where that is."""
    tree = ast.parse(SOURCE)
    node = list(signs(tree))[number]
    if isinstance(node, ast.UnaryOp):
        node.op = ast.UAdd()
    elif isinstance(node, ast.BinOp):
        node.op = OPPOSITE[type(node.op)]()
    else:
        node.ops = [OPPOSITE[type(node.ops[0])]()]
    spec = importlib.util.spec_from_loader("turned", loader=None)
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__name__"] = lemmas.__name__
    exec(compile(tree, "turned", "exec"), module.__dict__)
    return module, f"line {node.lineno}: {ast.unparse(node)}"


def refuted_with(module):
    """Return the lemmas that have a counterexample among small numbers."""
    return {lemma.__name__ for lemma in module.LEMMAS if check.counterexample(lemma, check.SMALL)}


@pytest.fixture(scope="module")
def refutations():
    """Which lemmas each turned sign refutes."""
    found = {}
    for number in range(len(list(signs(ast.parse(SOURCE))))):
        module, where = turned(number)
        found[number, where] = refuted_with(module)
    return found


@pytest.mark.parametrize("lemma", lemmas.LEMMAS, ids=NAMES)
def test_is_proved(lemma):
    assert check.verdict(lemma) == "proved"


def test_no_lemma_is_forgotten():
    written = [
        function.__name__
        for _, function in inspect.getmembers(lemmas, inspect.isfunction)
        if inspect.signature(function).return_annotation == "Lemma"
    ]
    assert sorted(written) == sorted(NAMES)


def test_each_turned_sign_refutes_a_lemma(refutations):
    assert len(refutations) > 50
    assert [where for where, refuted in refutations.items() if not refuted] == []


@pytest.mark.parametrize("name", NAMES)
def test_each_lemma_is_refuted_by_a_turned_sign(name, refutations):
    assert any(name in refuted for refuted in refutations.values())


def lemma_axis(g, axis=0):
    """Return the numbers of one axis of a geometry, as the lemmas name them."""
    return lemmas.Axis(
        size=g.size[axis],
        before=g.padding[axis][0],
        after=g.padding[axis][1],
        kernel=g.kernel[axis],
        stride=g.stride[axis],
        dilation=g.dilation[axis],
        steps=g.out[axis] - 1,
        unused=g.unused[axis],
    )


@given(case=cases())
def test_each_geometry_is_what_the_lemmas_assume(case):
    g = case.geometry
    for at in range(g.ndim):
        axis = lemma_axis(g, at)
        assert z3.is_true(z3.simplify(axis.is_right))
        assert (axis.padded, axis.reach, axis.out) == (g.padded[at], g.reach[at], g.out[at])


@given(case=cases(most_axes=1, least_images=1))
def test_the_cells_and_the_slices_of_the_lemmas_are_those_of_im2col(case):
    g, axis = case.geometry, lemma_axis(case.geometry)
    x = np.broadcast_to(np.arange(1, axis.size + 1), g.x_shape)
    cols = ic.lowering_matrix(g) @ x.ravel()
    cols = cols.reshape(g.C, axis.kernel, g.N, axis.out)[0, :, 0]
    meetings = list(tap_slices(g, whole(g.out), whole(g.size)))
    for t, ((tap,), (outputs,), _) in enumerate(meetings):
        assert tap == t
        numbers = [lemmas.cell(axis, o, t) - axis.before for o in range(axis.out)]
        expected = [i + 1 if 0 <= i < axis.size else 0 for i in numbers]
        assert cols[t].tolist() == expected
        shift = t * axis.dilation - axis.before
        first, last = -(shift // axis.stride), (axis.size - 1 - shift) // axis.stride
        run = [o for o in range(axis.out) if first <= o < last + 1]
        assert run == list(range(outputs.start, outputs.stop))


@given(case=cases(most_axes=1))
def test_flip_and_pad_by_the_places_of_the_lemmas_is_the_gradient(case):
    g, axis = case.geometry, lemma_axis(case.geometry)
    g = dataclasses.replace(g, C=1, F=1, groups=1)
    dout, w = integers_like(1, g.y_shape), integers_like(2, g.w_shape)
    padded = np.zeros((g.N, axis.upsampled + 2 * axis.margin))
    for o in range(axis.out):
        padded[:, lemmas.place_of_gradient(axis, o)] = dout[:, 0, o]
    dx = np.zeros((g.N, axis.padded))
    for a in range(axis.padded):
        for t in range(axis.kernel):
            dx[:, a] += padded[:, lemmas.place(axis, a, t)] * w[0, 0, lemmas.flipped(axis, t)]
    dx = dx[:, None, axis.before : axis.before + axis.size]
    keywords = {"stride": g.stride, "padding": g.padding, "dilation": g.dilation}
    for module in (ic, reference):
        grad = module.conv_input_grad(dout, w, g.x_shape, **keywords)
        np.testing.assert_array_equal(grad, dx, strict=True)


def without_the_flip(axis: lemmas.Axis, o: lemmas.Number, t: lemmas.Number) -> lemmas.Lemma:
    there = lemmas.place(axis, lemmas.cell(axis, o, t), t)
    return lemmas.Lemma(axis.is_right, there == lemmas.place_of_gradient(axis, o))


def a_margin_without_dilation(axis: lemmas.Axis) -> lemmas.Lemma:
    windows = axis.upsampled + 2 * (axis.kernel - 1) - axis.reach + 1
    return lemmas.Lemma(axis.is_right, windows == axis.padded)


def no_zeros_for_the_unused(axis: lemmas.Axis) -> lemmas.Lemma:
    shorter = (axis.out - 1) * axis.stride + 1
    return lemmas.Lemma(axis.is_right, shorter + 2 * axis.margin - axis.reach + 1 == axis.padded)


def windows_that_move_by_the_stride(axis: lemmas.Axis, a: lemmas.Number) -> lemmas.Lemma:
    inside = a * axis.stride + axis.reach <= axis.upsampled + 2 * axis.margin
    return lemmas.Lemma(lemmas.And(axis.is_right, lemmas.within(a, axis.padded)), inside)


@pytest.mark.parametrize(
    "wrong",
    [
        without_the_flip,
        a_margin_without_dilation,
        no_zeros_for_the_unused,
        windows_that_move_by_the_stride,
    ],
)
def test_what_is_often_got_wrong_is_refuted(wrong):
    assert check.verdict(wrong).startswith("REFUTED by ")


def nothing_is_so(i: lemmas.Number) -> lemmas.Lemma:
    """Nothing is so."""
    return lemmas.Lemma(lemmas.And(i < 0, i > 0), i == 7)


def too_hard(x: lemmas.Number, y: lemmas.Number, z: lemmas.Number) -> lemmas.Lemma:
    """No cube is the sum of two."""
    positive = lemmas.And(x >= 1, y >= 1, z >= 1)
    return lemmas.Lemma(positive, x * x * x + y * y * y != z * z * z)


def test_what_is_not_proved_is_said_and_counted(capsys, monkeypatch):
    monkeypatch.setattr(check, "SECONDS", 0.2)
    wrong = (no_zeros_for_the_unused, nothing_is_so, too_hard)
    assert check.main((*lemmas.LEMMAS[:1], *wrong)) == 3
    lines = capsys.readouterr().out.splitlines()[1:]
    starts = ("proved ", "REFUTED by ", "EMPTY: ", "NOT PROVED: ")
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True))


def test_the_command_prints_a_line_a_lemma():
    done = subprocess.run(
        [sys.executable, check.__file__], check=True, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["proved"] * len(NAMES)
    assert all(f" {name}: " in line for line, name in zip(lines, NAMES, strict=True))


def test_the_command_fails_where_a_sign_is_turned(tmp_path):
    shutil.copytree(Path(check.__file__).parent, tmp_path / "proofs")
    right, wrong = "return axis.kernel - 1 - t", "return axis.kernel - 1 + t"
    assert right in SOURCE
    (tmp_path / "proofs" / "lemmas.py").write_text(SOURCE.replace(right, wrong))
    command = [sys.executable, tmp_path / "proofs" / "check.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "REFUTED by " in done.stdout


def test_the_command_says_how_to_get_z3():
    code = f"import sys, runpy; sys.modules['z3'] = None; runpy.run_path({check.__file__!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'pip install "im2col-conv[proofs]"' in done.stderr
