"""The command line: what it says, how it ends, and that it can fail."""

import sys
from dataclasses import replace

import click
import numpy as np
import pytest
from click.testing import CliRunner

import im2col_conv as ic
from im2col_conv.cli import check, doctor, network, options
from im2col_conv.cli.app import app
from im2col_conv.cli.augment import jitter
from im2col_conv.cli.tolerance import share_of_tolerance
from im2col_conv.config import BlasLibrary
from im2col_conv.data import load_digits
from im2col_conv.engine import kernels
from tests.command_line import failure, run, run_json, run_python

# The group.


def test_runs_as_a_module():
    result = run_python("-m", "im2col_conv", "--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("im2col-conv ")


def test_help_names_every_command():
    output = run("--help").output
    for command in app.commands:
        assert f"\n  {command} " in output


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_one_line_says_how_to_get_it(missing):
    result = run_python(
        "-c",
        f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['im2col-conv']\n"
        "from im2col_conv.cli import main; main()",
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert 'python -m pip install "im2col-conv[cli]"' in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_import_error_of_our_own_is_not_taken_for_the_extra_s():
    result = run_python(
        "-c",
        "import sys; sys.modules['im2col_conv.cli.demo'] = None\n"
        "from im2col_conv.cli import main; main()",
    )
    assert result.returncode == 1
    assert "im2col_conv.cli.demo" in result.stderr
    assert "pip install" not in result.stderr


def test_importing_the_package_imports_neither_the_command_line_nor_what_it_draws_with():
    result = run_python(
        "-c",
        "import sys, im2col_conv\n"
        "print({'click', 'rich', 'matplotlib', 'im2col_conv.cli'} & set(sys.modules))",
    )
    assert result.stdout == "set()\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nonsense"], "nonsense"),
        (["demo", "--epochs", "0"], "--epochs"),
        (["demo", "--epochs", "many"], "--epochs"),
        (["demo", "--seed", "-1"], "--seed"),
        (["doctor", "--jsn"], "--jsn"),
    ],
)
def test_wrong_usage_ends_with_2_and_names_what_is_wrong(arguments, named):
    assert named in failure(run(*arguments), 2)


# The demo.


def test_demo_learns_to_read_digits():
    record = run_json("demo", "--epochs", 4, "--seed", 3)
    assert record["accuracy"] > 0.85
    assert (record["held_out"], record["epochs"], record["seed"]) == (497, 4, 3)
    assert 0 < record["gradient_error"] <= 1
    assert record["seconds"] > 0
    assert record["speedup_over_loops"] > 0
    assert [epoch["number"] for epoch in record["history"]] == [1, 2, 3, 4]
    assert record["history"][-1]["loss"] < record["history"][0]["loss"]


def test_demo_tells_the_held_out_figure_in_plain_text():
    result = run("demo", "--epochs", 1)
    assert result.exit_code == 0
    assert "of 497 held-out digits right, after" in " ".join(result.stdout.split())
    assert "\x1b" not in result.output
    assert "\r" not in result.output


def test_same_seed_same_network():
    first, second = (run_json("demo", "--epochs", 1, "--seed", 5)["history"] for _ in range(2))
    assert first == second


def test_demo_fails_where_a_gradient_is_wrong(monkeypatch):
    right = check._library
    monkeypatch.setattr(check, "_library", lambda step: [1.001 * a for a in right(step)])
    assert "more than rounding" in failure(run("demo", "--epochs", 1), 1)


def test_plot_is_written(tmp_path):
    picture = tmp_path / "digits.png"
    run_json("demo", "--epochs", 1, "--plot", picture)
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.fixture
def no_training(monkeypatch):
    def train(*_):
        pytest.fail("the training started")

    monkeypatch.setattr("im2col_conv.cli.demo.train", train)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("name", ["no/such/directory/digits.png", "digits.odd", "digits"])
def test_picture_that_cannot_be_written_is_refused_before_training(tmp_path, name):
    assert "digits" in failure(run("demo", "--plot", tmp_path / name), 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_training")
def test_picture_without_matplotlib_is_refused_before_training(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    output = failure(run("demo", "--plot", tmp_path / "digits.png"), 1)
    assert '"im2col-conv[plot]"' in output


def test_checking_the_target_leaves_an_old_picture_alone(tmp_path):
    from im2col_conv.cli.plot import check_target

    picture = tmp_path / "old.png"
    picture.write_bytes(b"old")
    check_target(picture)
    assert picture.read_bytes() == b"old"


def test_split_holds_497_digits_out():
    images = np.arange(1797, dtype=np.float32)
    digits = network.split(images, images.astype(np.int64), np.random.default_rng(0))
    assert len(digits.held_out_images) == 497
    parts = np.concatenate([digits.images, digits.held_out_images])
    np.testing.assert_array_equal(np.sort(parts), images)
    np.testing.assert_array_equal(digits.images, digits.labels)


def test_gradients_of_the_whole_network_are_those_of_finite_differences():
    rng = np.random.default_rng(0)
    images, labels = (array[:3] for array in load_digits())
    # In float64, so that small differences can be told; blank paper would sit on the ReLU's kink.
    layers = [
        replace(layer, w=layer.w.astype(float), b=layer.b.astype(float) + 0.1)
        for layer in network.network(rng)
    ]

    def loss():
        return network.loss_and_gradient(network.forward(layers, images)[1], labels)[0]

    inputs, scores = network.forward(layers, images)
    _, dscores = network.loss_and_gradient(scores, labels)
    for step in network.backward(layers, inputs, dscores):
        for weights, gradient in ((step.layer.w, step.dw), (step.layer.b, step.db)):
            at = np.unravel_index(np.abs(gradient).argmax(), gradient.shape)
            kept, nudge = weights[at], 1e-5
            weights[at] = kept + nudge
            above = loss()
            weights[at] = kept - nudge
            below = loss()
            weights[at] = kept
            assert (above - below) / (2 * nudge) == pytest.approx(gradient[at], rel=1e-4)


def test_jitter_moves_ink_and_adds_none():
    images, _ = load_digits()
    kept = images.copy()
    moved = jitter(images, np.random.default_rng(0))
    np.testing.assert_array_equal(images, kept)
    assert (moved.shape, moved.dtype) == (images.shape, np.float32)
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert np.abs(moved - images).max() > 0.5
    assert np.abs(moved.mean() / images.mean() - 1) < 0.1


def test_tolerance_lets_rounding_pass_and_nothing_else():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 40, 40)).astype(np.float32)
    expected, magnitude = a.astype(float) @ b.astype(float), np.abs(a) @ np.abs(b)
    assert 0 < share_of_tolerance(a @ b, expected, 40, magnitude) <= 1
    wrong = a @ b
    wrong[3, 4] += 1e-3 * magnitude[3, 4]
    assert share_of_tolerance(wrong, expected, 40, magnitude) > 1
    assert not share_of_tolerance(np.float32(np.nan) * wrong, expected, 40, magnitude) <= 1


# The doctor.

AVX512 = {"AVX2": True, "AVX512_SKX": True}
AVX2 = {"AVX2": True, "AVX512_SKX": False}


def openblas(kernel):
    return BlasLibrary(name="openblas", version="0.3.31", kernel=kernel, threads=2)


def judged(library, features):
    return kernels.judge(library.name, library.kernel, features)


@pytest.mark.parametrize(
    ("kernel", "features", "verdict", "coretype"),
    [
        ("SkylakeX", AVX512, "fits", None),
        ("Cooperlake", AVX512, "fits", None),
        ("SapphireRapids", {"X86_V3": True, "X86_V4": True}, "fits", None),
        ("Haswell", AVX512, "too old", "SkylakeX"),
        ("Zen", AVX512, "too old", "SkylakeX"),
        ("Sandybridge", AVX512, "too old", "SkylakeX"),
        ("Nehalem", {"X86_V4": True}, "too old", "SkylakeX"),
        ("Haswell", AVX2, "fits", None),
        ("Zen", {"X86_V3": True}, "fits", None),
        ("SkylakeX", AVX2, "fits", None),
        ("Nehalem", AVX2, "too old", "Haswell"),
        ("Prescott", AVX2, "too old", "Haswell"),
        ("Nehalem", {}, "unknown", None),
        ("Nehalem", {"SSE42": True, "AVX2": False}, "unknown", None),
        ("neoversen1", {"NEON": True}, "unknown", None),
        ("unknown", AVX512, "unknown", None),
    ],
)
def test_judgement_of_an_openblas_kernel(kernel, features, verdict, coretype):
    judgement = judged(openblas(kernel), features)
    assert (judgement.verdict, judgement.coretype) == (verdict, coretype)
    assert judgement.reason


def test_other_libraries_are_not_judged():
    blis = BlasLibrary(name="blis", version="1.0", kernel="haswell", threads=2)
    assert judged(blis, AVX512).verdict == "unknown"


def test_line_that_picks_a_kernel():
    line = "OPENBLAS_CORETYPE=SkylakeX"
    assert kernels.export_line("SkylakeX", "Linux") == f"export {line}"
    assert kernels.export_line("SkylakeX", "Windows") == f"set {line}"


def doctored(monkeypatch, *blas):
    config = doctor.configuration()
    made_up = type(config)(config.versions, blas, workers=3, workspace=2**20)
    monkeypatch.setattr(doctor, "configuration", lambda: made_up)
    monkeypatch.setattr(doctor, "processor_features", lambda: AVX512)
    monkeypatch.setattr(doctor.platform, "system", lambda: "Linux")


def test_doctor_prints_the_line_that_mends_it_once_and_ends_well(monkeypatch):
    doctored(monkeypatch, openblas("Haswell"), openblas("Haswell"))
    result = run("doctor")
    assert result.exit_code == 0
    assert result.stdout.count("export OPENBLAS_CORETYPE=SkylakeX\n") == 1
    assert "before Python starts" in " ".join(result.stdout.split())


def test_doctor_has_nothing_to_say_where_kernels_fit(monkeypatch):
    doctored(monkeypatch, openblas("SkylakeX"))
    assert "OPENBLAS_CORETYPE" not in run("doctor").stdout


def test_doctor_in_a_narrow_terminal_keeps_the_line_whole(monkeypatch):
    doctored(monkeypatch, openblas("Haswell"))
    monkeypatch.setenv("COLUMNS", "40")
    lines = run("doctor").stdout.splitlines()
    assert "  export OPENBLAS_CORETYPE=SkylakeX" in lines
    assert max(map(len, lines)) <= 40


def test_doctor_json(monkeypatch):
    doctored(monkeypatch, openblas("Haswell"), openblas("SkylakeX"))
    record = run_json("doctor")
    assert [library["verdict"] for library in record["blas"]] == ["too old", "fits"]
    assert record["advice"] == ["export OPENBLAS_CORETYPE=SkylakeX"]
    assert (record["workers"], record["workspace"]) == (3, 2**20)
    assert {"python", "numpy", "scipy", "threadpoolctl", "click"} <= set(record["versions"])
    assert record["processor"]


def test_doctor_of_this_machine():
    record = run_json("doctor")
    assert record["workers"] == ic.get_workers()
    assert record["workspace"] == ic.get_workspace()


def test_features_are_none_where_numpy_does_not_say(monkeypatch):
    assert all(isinstance(has, bool) for has in kernels.processor_features().values())
    monkeypatch.setitem(sys.modules, "numpy._core._multiarray_umath", None)
    assert kernels.processor_features() == {}


# Types of options.


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (options.SHAPE, "1,3,5,7", (1, 3, 5, 7)),
        (options.SHAPE, "4", (4,)),
        (options.PER_AXIS, "2", 2),
        (options.PER_AXIS, "2,1", (2, 1)),
        (options.PADDING, "1", 1),
        (options.PADDING, "1,0", (1, 0)),
        (options.PADDING, "1:2,0:3", ((1, 2), (0, 3))),
        (options.PADDING, "1:2", ((1, 2),)),
        (options.PADDING, "1,0:3", ((1, 1), (0, 3))),
        (options.PADDING, "same", "same"),
        (options.PADDING, "valid", "valid"),
    ],
)
def test_sizes_are_read_as_the_library_takes_them(kind, text, value):
    assert kind.convert(text, None, None) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (options.SHAPE, "1,x"),
        (options.SHAPE, ""),
        (options.SHAPE, "1,,2"),
        (options.PER_AXIS, "1.5"),
        (options.PADDING, "full"),
        (options.PADDING, "1:2:3"),
        (options.PADDING, ":1"),
    ],
)
def test_sizes_that_cannot_be_read_are_quoted(kind, text):
    with pytest.raises(click.BadParameter, match=f"'{text}' is not"):
        kind.convert(text, None, None)


# Explain.


def explained(*arguments, columns=200):
    runner = CliRunner(env={"COLUMNS": str(columns)})
    result = runner.invoke(app, ["explain", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


TINY = ("--x", "1,2,3,4", "--w", "2,2,2,3", "--stride", "2,1", "--padding", "1:0,0:1")


def test_explain_draws_the_columns_and_where_they_came_from():
    output = explained(*TINY)
    assert str(ic.explain((1, 2, 3, 4), (2, 2, 2, 3), stride=(2, 1), padding=((1, 0), (0, 1)))) in (
        output
    )
    x = np.arange(1, 25).reshape(1, 2, 3, 4)
    cols = ic.im2col(x, (2, 3), stride=(2, 1), padding=((1, 0), (0, 1)))
    rows = [line for line in output.splitlines() if line.startswith("(") and "|" in line]
    drawn = [
        [0 if cell == "." else int(cell) for cell in row.split("|")[1].split()] for row in rows
    ]
    np.testing.assert_array_equal(drawn, cols)
    assert rows[-1].startswith("(1, 1, 2)")
    seen = [line for line in output.splitlines() if line.startswith("column ")][1:]
    assert len(seen) == cols.shape[1]
    # Window of output (1, 1): rows 1 and 2, columns 1 to 3.
    assert seen[4] == "column 4: y[0, :, 1, 1] sees x[0, :, 1:3, 1:4]"


def test_explain_in_a_narrow_terminal_lists_the_columns():
    output = explained("--x", "1,1,5,6", "--w", "1,1,2,2", columns=40)
    assert "column 19: y[0, :, 3, 4]" in output
    assert "\n  22 23 28 29\n" in output  # the last window, in one line
    assert "|" not in output


def test_explain_as_json():
    record = run_json("explain", *TINY, "--dtype", "float64", "--groups", "1")
    assert record["out"] == [2, 3]
    assert record["gemm"] == {"M": 2, "N": 6, "K": 12}
    assert record["cols_nbytes"] == 12 * 6 * 8
    assert [each["name"][:7] for each in record["passes"]] == ["forward", "weight ", "input g"]
    assert len(record["cols"]) == 12
    large = run_json("explain", "--x", "8,64,56,56", "--w", "64,64,3,3", "--padding", "same")
    assert large["cols"] is None
    assert large["flops"] == 2 * 8 * 64 * 56 * 56 * 64 * 9


def test_explain_of_a_large_layer_says_why_it_draws_nothing():
    assert "The column matrix is drawn where" in explained("--x", "1,9,9,9", "--w", "9,9,3,3")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--x", "1,1,3,4", "--w", "1,1,5,2"), 1, "kernel is too large by 2"),
        (("--x", "1,1,3,4", "--w", "1,1,2,2", "--dtype", "text"), 1, "dtype must be"),
        (("--x", "1,1,a", "--w", "1,1,2"), 2, "'1,1,a' is not ints"),
        (("--x", "1,1,3"), 2, "Missing option '--w'"),
    ],
)
def test_explain_of_what_cannot_be(arguments, code, text):
    assert text in failure(run("explain", *arguments), code)
