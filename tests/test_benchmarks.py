"""The benchmark: contestants agree, records are whole, wrong options are named. No time counts."""

import json
import math
import random
import runpy
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

import im2col_conv as ic
from im2col_conv.cli.benchmark import classic, growth, peak, timing
from im2col_conv.cli.benchmark.contestants import PEERS, Contestant, contestant, with_algorithm
from im2col_conv.cli.benchmark.layers import LAYERS, SETS
from im2col_conv.engine.openblas import private_blas, why_not
from tests.command_line import ROOT, failure, run, run_json, run_python

TINY = ("--layer", "tiny", "--repeats", 1)

ONE_AXIS = {"size": (9,), "kernel": (4,), "stride": (3,), "padding": (2,)}
THREE_AXES = {
    "size": (3, 7, 6),
    "kernel": (1, 3, 2),
    "stride": (1, 2, 1),
    "padding": (0, 1, 2),
}
KINDS = [
    LAYERS["tiny"],
    replace(LAYERS["tiny"], name="lopsided", groups=1, stride=(1, 2), padding=(0, 1)),
    replace(LAYERS["tiny"], name="depthwise", filters=8, groups=4, kernel=(2, 3)),
    replace(LAYERS["tiny"], name="one axis", **ONE_AXIS),
    replace(LAYERS["tiny"], name="three axes", **THREE_AXES),
]
KINDS += [replace(layer, layout="channels_last", name=f"{layer.name}, last") for layer in KINDS]


def installed(peer):
    return all(find_spec(package) for package in peer.packages)


@pytest.fixture
def no_peers(monkeypatch):
    for package in ("torch", "onnxruntime", "onnx", "jax"):
        monkeypatch.setitem(sys.modules, package, None)


# Contestants.


@pytest.mark.parametrize("layer", KINDS, ids=lambda layer: layer.name)
def test_classic_lowering_equals_the_loops(layer):
    rng = np.random.default_rng(0)
    x, w, b, dout = (
        rng.integers(-4, 5, shape).astype(float)
        for shape in (layer.x_shape, layer.w_shape, layer.filters, layer.y_shape)
    )
    given = layer.geometry
    given.pop("layout")
    first, last = (1, -1) if layer.layout == "channels_last" else (1, 1)
    x_first, dout_first = (np.moveaxis(array, last, first) for array in (x, dout))
    y = ic.reference.conv(x_first, w, b, **given)
    dx, dw, db = ic.reference.conv_grads(dout_first, x_first, w, **given)
    np.testing.assert_array_equal(classic.forward(layer, x, w, b), np.moveaxis(y, first, last))
    found = classic.backward(layer, x, w, dout)
    for mine, right in zip(found, (np.moveaxis(dx, first, last), dw, db), strict=True):
        np.testing.assert_array_equal(mine, right)


def contestants_on_every_kind(name):
    """Return, by layer and type, the directions in which a peer took part and agreed."""
    pair = [contestant("im2col_conv"), contestant(name)]
    found = {}
    for layer in KINDS:
        for dtype in ("float32", "float64"):
            timings = timing.time_layer(replace(layer, dtype=dtype), pair, 1, 1)
            found[f"{layer.name} {dtype}"] = [
                each.direction for each in timings if name in each.seconds
            ]
    return found


BOTH = ["forward", "backward"]
DONE = {  # by what each does: first or last, one axis or more, float32 or float64
    "classic": lambda last, one_axis, double: BOTH,
    "gemm": lambda last, one_axis, double: BOTH,
    "pytorch": lambda last, one_axis, double: [] if last and one_axis else BOTH,
    "onnxruntime": lambda last, one_axis, double: [] if last or double else ["forward"],
}


@pytest.mark.parametrize("name", DONE)
def test_a_peer_agrees_with_this_library_on_every_kind_of_layer(name):
    if not installed(PEERS[name]):
        pytest.skip(f"needs {' and '.join(PEERS[name].packages)}")
    # In a process of its own: these libraries start threads, and some warn as they are imported.
    result = run_python(
        "-c",
        "import json\n"
        "from im2col_conv.cli.benchmark import timing\n"
        "from tests.test_benchmarks import contestants_on_every_kind\n"
        "timing._rest = lambda: None\n"
        f"print(json.dumps(contestants_on_every_kind({name!r})))",
    )
    assert result.returncode == 0, result.stderr
    for kind, directions in json.loads(result.stdout).items():
        traits = (", last" in kind, "one axis" in kind, "float64" in kind)
        assert directions == DONE[name](*traits), kind


def test_jax_agrees_and_takes_part_only_with_every_processor():
    if not installed(PEERS["jax"]):
        pytest.skip("needs jax")
    result = run_python(
        "-c",
        "from im2col_conv.cli.benchmark.contestants import contestant\n"
        "from im2col_conv.cli.benchmark.timing import time_layer\n"
        "from im2col_conv.cli.benchmark.xla import _processors\n"
        "from tests.test_benchmarks import KINDS\n"
        "pair = [contestant('im2col_conv'), contestant('jax')]\n"
        "for layer in KINDS[3:5] + KINDS[5:6]:\n"
        "    for threads in (_processors(), _processors() + 1):\n"
        "        print(*('jax' in t.seconds for t in time_layer(layer, pair, threads, 1)))",
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "True True\nFalse False\n" * 3


def test_an_algorithm_that_does_not_cover_a_layer_takes_no_part():
    ours = [with_algorithm("auto"), with_algorithm("im2col"), with_algorithm("no such word")]
    for timed in timing.time_layer(LAYERS["tiny"], ours, 1, 1):
        assert set(timed.seconds) == {"im2col_conv", "im2col_conv im2col"}


@pytest.mark.parametrize("algorithm", ["auto", "im2col"])
def test_prepared_weights_are_prepared_once(monkeypatch, algorithm):
    given, prepare = [], ic.prepare
    monkeypatch.setattr(ic, "prepare", lambda w: given.append(w) or prepare(w))
    ours = with_algorithm(algorithm, prepared=True)
    assert ours.name == contestant(ours.name).name
    timing.time_layer(LAYERS["tiny"], [ours], 1, 3)
    assert len(given) == 1
    timing.time_layer(LAYERS["tiny"], [with_algorithm(algorithm)], 1, 3)
    assert len(given) == 1


@pytest.mark.usefixtures("no_peers")
@pytest.mark.parametrize(
    ("direction", "result"), [("forward", "y"), ("backward", "dx")], ids=["forward", "backward"]
)
def test_a_peer_that_differs_stops_the_benchmark(monkeypatch, direction, result):
    def set_up(layer, data, threads):
        runs = classic.set_up(layer, data, threads)
        forward = lambda: runs.forward() + 1e-3  # noqa: E731
        backward = lambda: tuple(array + 1e-3 for array in runs.backward())  # noqa: E731
        return runs._replace(**{direction: {"forward": forward, "backward": backward}[direction]})

    monkeypatch.setitem(PEERS, "classic", Contestant("wrong", set_up))
    output = failure(run("bench", *TINY), 1)
    assert f"tiny: {result} of wrong differs from that of im2col_conv" in output


# Records.


def check_circumstances(record, measure):
    assert record["measure"] == measure
    assert {"python", "numpy", "scipy", "im2col-conv"} <= set(record["versions"])
    for field in ("date", "system", "processor", "processors", "workspace", "threads", "repeats"):
        assert record[field], field
    for library in record["blas"]:
        assert set(library) >= {"name", "version", "kernel", "threads"}
    assert {case["layer"] for case in record["cases"]} == set(record["layers"])


@pytest.mark.usefixtures("no_peers")
def test_peers_that_are_missing_are_skipped_and_it_is_said_how_to_get_them():
    record = run_json("bench", *TINY, "--algorithm", "auto", "--algorithm", "im2col")
    assert record["skipped"] == {
        "pytorch": "python -m pip install torch",
        "onnxruntime": "python -m pip install onnxruntime onnx",
        "jax": "python -m pip install jax",
    }
    check_circumstances(record, "time")
    assert record["contestants"] == ["im2col_conv", "im2col_conv im2col", "classic", "gemm"]
    assert [(each["layer"], each["pass"]) for each in record["cases"]] == [
        ("tiny", "forward"),
        ("tiny", "backward"),
    ]
    for case in record["cases"]:
        assert list(case["seconds"]) == record["contestants"]
        for seconds in case["seconds"].values():
            assert 0 < seconds["minimum"] <= seconds["lower_quartile"] <= seconds["median"]
            assert seconds["turns"] == 1
        assert list(case["ratios"]) == record["contestants"][1:]
    assert set(record["geometric_mean"]) == {"forward", "backward"}
    assert set(record["geometric_mean"]["forward"]) == set(record["contestants"][1:])
    assert record["threads"] == ic.get_workers()


def test_every_contestant_that_is_installed_runs():
    result = run_python("-m", "im2col_conv", "bench", *map(str, TINY), "--json")
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    check_circumstances(record, "time")
    there = ["im2col_conv", *(name for name, peer in PEERS.items() if installed(peer))]
    assert record["contestants"] == there
    assert list(record["cases"][0]["seconds"]) == there
    for name in there[1:]:
        assert set(PEERS[name].packages) <= set(record["versions"])


@pytest.mark.usefixtures("no_peers")
def test_the_record_is_written_to_a_file_too(tmp_path):
    target = tmp_path / "record.json"
    options = ("--pass", "backward", "--threads", 1, "--layout", "channels_last")
    record = run_json("bench", *TINY, *options, "--dtype", "float64", "--output", target)
    assert json.loads(target.read_text()) == record
    assert [each["pass"] for each in record["cases"]] == ["backward"]
    assert record["threads"] == 1
    assert record["layers"]["tiny"]["layout"] == "channels_last"
    assert record["layers"]["tiny"]["dtype"] == "float64"


def test_ratio_is_our_time_over_theirs():
    ours, theirs = timing.Seconds(3.0, 4.0, 1.0, 9), timing.Seconds(6.0, 6.0, 6.0, 9)
    timed = timing.Timing("tiny", "forward", {"im2col_conv": ours, "classic": theirs})
    assert timed.ratios("im2col_conv") == {"classic": 0.5}
    assert timed.ratios("absent") == {}


def test_what_takes_long_gets_fewer_turns(monkeypatch):
    monkeypatch.setattr(timing, "_rest", lambda: None)
    monkeypatch.setattr(timing, "_seconds", lambda work, calls: work())
    found = timing.turn_about({"long": lambda: 4.0, "short": lambda: 0.5}, 5)
    assert {name: each.turns for name, each in found.items()} == {"long": 3, "short": 5}


# Memory and growth.


@pytest.fixture
def told_memory():
    try:
        peak.check_system()
    except OSError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("no_peers", "told_memory")
def test_memory_of_the_classic_way_is_the_column_matrix_at_least():
    record = run_json("bench", "--measure", "memory", "--layer", "resnet_2_1x1")
    check_circumstances(record, "memory")
    for case in record["cases"]:
        assert case["column_matrix"] == 256 * 56 * 56 * 4
        assert set(case["bytes"]) == {"im2col_conv", "classic"}
        assert case["bytes"]["classic"] > 0.9 * case["column_matrix"]


@pytest.mark.usefixtures("no_peers")
@pytest.mark.parametrize("measure", ["memory", "growth"])
def test_a_system_that_does_not_tell_memory_is_named_before_anything_runs(
    monkeypatch, tmp_path, measure
):
    monkeypatch.setattr("im2col_conv.cli.benchmark.run.time_layer", None)
    monkeypatch.setattr(peak, "_PROCESS", tmp_path / "absent")
    output = failure(run("bench", "--measure", measure, "--layer", "tiny"), 1)
    assert "VmHWM in /proc/self/status, which this system does not have" in " ".join(output.split())


@pytest.mark.usefixtures("told_memory")
def test_memory_of_what_a_contestant_does_not_do_is_none():
    layer = replace(KINDS[3], layout="channels_last")
    assert peak.extra_bytes(layer, "onnxruntime", "forward", 1) is None
    assert peak.extra_bytes(layer, "im2col_conv no_such_word", "forward", 1) is None


@pytest.mark.usefixtures("no_peers", "told_memory")
def test_growth_records_time_and_memory_of_an_output(monkeypatch):
    monkeypatch.setattr(growth, "FACTORS", (1, 4))
    record = run_json("bench", "--measure", "growth", *TINY, "--pass", "forward")
    check_circumstances(record, "growth")
    assert [(case["way"], case["factor"]) for case in record["cases"]] == [
        (way, factor) for way in growth.WAYS for factor in (1, 4)
    ]
    for case in record["cases"]:
        for name in ("im2col_conv", "classic"):
            quartile = case["seconds"][name]["lower_quartile"]
            assert case["seconds_per_output"][name] == quartile / case["outputs"]
            assert case["bytes_per_output"][name] == case["bytes"][name] / case["outputs"]
    assert record["cases"][0]["outputs"] == 2 * 6 * 4 * 4
    assert len({json.dumps(case["bytes"]) for case in record["cases"][::2]}) == 1


@pytest.mark.parametrize("layer", [LAYERS["growth"], *KINDS[3:5]], ids=lambda layer: layer.name)
@pytest.mark.parametrize("factor", [1, 2, 4, 64])
def test_a_grown_layer_has_as_many_times_the_work(layer, factor):
    many = {way: growth.grown(layer, way, factor) for way in growth.WAYS}
    assert many["batch"].images == factor * layer.images
    assert np.prod(many["side"].size) == factor * np.prod(layer.size)
    assert many["channels"].channels * many["channels"].filters == (
        factor * layer.channels * layer.filters
    )
    assert growth.grown(layer, "side", 2).size[-1] == 2 * layer.size[-1]


# Words for people.


@pytest.mark.usefixtures("no_peers")
@pytest.mark.parametrize("columns", [30, 40, 100])
def test_figures_fit_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("im2col_conv.cli.benchmark.run.processor_load", lambda: 0.0)
    result = run("bench", *TINY)
    assert result.exit_code == 0
    for part in ("tiny", "forward", "backward", "classic", "geometric mean"):
        assert part in result.stdout
    figures, _, _ = result.stdout.partition("pytorch is skipped")
    assert max(map(len, figures.splitlines())) <= columns
    assert "\x1b" not in result.output
    assert "\r" not in result.output


@pytest.mark.usefixtures("no_peers", "told_memory")
@pytest.mark.parametrize("measure", ["memory", "growth"])
def test_memory_and_growth_in_words(monkeypatch, measure):
    monkeypatch.setattr(growth, "FACTORS", (1,))
    monkeypatch.setenv("COLUMNS", "100")
    result = run("bench", "--measure", measure, *TINY, "--pass", "backward")
    assert result.exit_code == 0, result.output
    assert "beyond inputs and results" in result.stdout
    assert "backward" in result.stdout


def test_a_reader_that_leaves_ends_it_quietly():
    command = [sys.executable, "-m", "im2col_conv", "bench", "--list", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout.readline() == "{\n"
        process.stdout.close()
        assert process.stderr.read() == ""


def test_list_of_layers():
    lines = run("bench", "--list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(LAYERS)
    assert "128 x 56 x 56 -> 128, 3x3, groups 128" in "\n".join(lines)
    assert "1 x 3 x 16 x 112 x 112 -> 64, 3x7x7, stride 1x2x2" in "\n".join(lines)
    assert run_json("bench", "--list")["lenet"]["kernel"] == [5, 5]


def test_layers_are_convolutions():
    assert len(SETS["standard"]) == 14
    for layer in (*LAYERS.values(), *KINDS[:5]):
        given = {key: value for key, value in layer.geometry.items() if key != "layout"}
        geometry = ic.ConvGeometry.from_shapes(layer.x_shape, layer.w_shape, **given)
        assert geometry.y_shape == layer.y_shape


# Wrong options.


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--layer", "resnet_99"), "resnet_99"),
        (("--set", "all"), "all"),
        (("--measure", "heat"), "heat"),
        (("--repeats", "0"), "--repeats"),
        (("--threads", "0"), "--threads"),
        (("--layout", "nchw"), "nchw"),
        (("--dtype", "int8"), "int8"),
        (("--algorithm", "fft"), "fft"),
        (("--peer", "caffe"), "caffe"),
        (("--pass", "sideways"), "sideways"),
        (("--measure", "memory", "--peer", "jax"), "compares with classic and pytorch, not jax"),
    ],
)
def test_wrong_options_end_with_2_and_are_named(arguments, named):
    assert named in " ".join(failure(run("bench", *arguments), 2).split())


@pytest.fixture
def no_run(monkeypatch):
    monkeypatch.setattr("im2col_conv.cli.bench.run", lambda *_: pytest.fail("it ran"))


@pytest.mark.usefixtures("no_run")
def test_a_record_that_cannot_be_written_is_refused_before_anything_runs(tmp_path):
    output = failure(run("bench", "--output", tmp_path / "no" / "record.json"), 1)
    assert "record.json" in output
    kept = tmp_path / "kept.json"
    kept.write_text("old")
    failure(run("bench", "--peer", "caffe", "--output", kept), 2)
    assert kept.read_text() == "old"


@pytest.mark.usefixtures("no_run", "no_peers")
def test_a_peer_that_is_asked_for_and_missing_ends_it():
    output = failure(run("bench", "--peer", "pytorch"), 1)
    assert "pytorch is not installed: python -m pip install torch" in output


# Documents and pictures.


@pytest.fixture(scope="module")
def table():
    return runpy.run_path(str(ROOT / "benchmarks" / "table.py"))


def made_up(ratio):
    return {
        "measure": "time",
        "date": "2030-01-02T03:04:05+00:00",
        "versions": {"numpy": "9.9"},
        "processor": "abacus",
        "threads": 3,
        "repeats": 5,
        "blas": [{"name": "openblas", "version": "0.9", "kernel": "Bead"}],
        "contestants": ["im2col_conv", "pytorch", "classic"],
        "layers": {"lenet": {"dtype": "float32", "layout": "channels_first"}},
        "cases": [
            {
                "layer": "lenet",
                "pass": direction,
                "seconds": {"im2col_conv": {"lower_quartile": 0.002}},
                "ratios": {"pytorch": ratio, "classic": 0.5},
            }
            for direction in ("forward", "backward")
        ],
        "geometric_mean": {each: {"pytorch": ratio} for each in ("forward", "backward")},
    }


def test_losses_stand_out_in_markdown(table):
    text = table["markdown"](made_up(1.25))
    assert "| lenet | forward | 2.00 | **1.25** | 0.50 |" in text
    assert "3 threads on abacus" in text
    assert "openblas 0.9 (Bead kernels)" in text
    assert "**" not in table["markdown"](made_up(1.001))


@pytest.mark.parametrize("document", ["benchmarks/README.md", "docs/performance.md"])
def test_tables_of_documents_are_those_of_the_result_files(table, document):
    text = (ROOT / document).read_text(encoding="utf-8")
    assert table["filled"](text) == text


@pytest.fixture(scope="module")
def choice():
    return runpy.run_path(str(ROOT / "benchmarks" / "choice.py"))


@pytest.mark.skipif(private_blas() is None, reason=str(why_not()))
def test_the_choice_is_timed_on_random_layers(choice):
    record = choice["run"](layers=2, seed=3, workers=1, flops=(1e5, 1e6))
    assert len(record["cases"]) == 2 * 2 * 3
    json.dumps(record)
    for case in record["cases"]:
        seconds = case["seconds"]
        assert {"im2col", "implicit"} <= set(seconds) <= {"im2col", "implicit", "direct"}
        assert case["regret"] == seconds[case["auto"]] / min(seconds.values())
        assert case["layer"] in record["layers"]


def test_random_layers_have_the_work_that_is_asked_for(choice):
    rng = random.Random(5)
    for _ in range(200):
        layer = choice["draw_layer"](rng, (1e6, 3e6))
        work = 2 * layer.filters * layer.positions * math.prod(layer.w_shape[1:])
        assert 1e6 <= work <= 3e6


def test_regret_is_summed_up_by_pass_and_layout(choice):
    cases = [
        {"layout": layout, "pass": each, "regret": regret, "layer": f"of {regret}"}
        for layout, each, regret in [("last", "f", 1.0), ("last", "f", 4.0), ("first", "f", 1.0)]
    ]
    lines = choice["table"]({"cases": cases}).splitlines()[2:]
    assert lines == [
        "| first | f | 1 | 100% | 1.00 | 1.0 | of 1.0 |",
        "| last | f | 2 | 50% | 2.00 | 4.0 | of 4.0 |",
        "| all | | 3 | 67% | 1.59 | 4.0 | of 4.0 |",
    ]


def test_the_table_of_the_choice_is_that_of_its_result_file(choice):
    record = json.loads((ROOT / "benchmarks" / "results" / "choice.json").read_text("utf-8"))
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert choice["table"](record) in text


@pytest.mark.parametrize("picture", ["performance", "growth"])
def test_pictures_are_drawn_from_records(monkeypatch, tmp_path, picture):
    pytest.importorskip("matplotlib")
    script = runpy.run_path(str(ROOT / "docs" / "figures" / f"{picture}.py"))
    record = made_up(1.25)
    for case in record["cases"]:
        figures = {"im2col_conv": 2e-9, "pytorch": 1e-9}
        case |= {"way": "batch", "factor": 4}
        case |= dict.fromkeys(("seconds_per_output", "bytes_per_output"), figures)
    target = tmp_path / "figure.png"
    script["draw"](record).savefig(target)
    assert target.read_bytes().startswith(b"\x89PNG")
