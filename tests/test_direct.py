"""The direct way against the spine: equal on integers, whatever the geometry and the tiles."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import im2col_conv as ic
from im2col_conv.engine import choice
from im2col_conv.engine.direct import cells as direct_cells
from im2col_conv.engine.direct import forward as direct_forward
from im2col_conv.engine.direct import kinds as direct_kinds
from im2col_conv.engine.direct import plan as direct_plan
from im2col_conv.engine.direct import tasks as direct_tasks
from im2col_conv.engine.direct import weight_grad as direct_weight_grad
from im2col_conv.engine.direct.cells import Cells, cells_of, parts_of
from im2col_conv.engine.direct.kernel import Kind
from im2col_conv.engine.direct.plan import MOST_PROGRAMS, MOST_TABLES, plan_direct
from im2col_conv.engine.direct.sums import FARTHEST
from im2col_conv.engine.machine import crew
from im2col_conv.engine.machine.assembler import AVX2, AVX512
from im2col_conv.engine.machine.crew import shares_here
from im2col_conv.engine.machine.memory import forms_here, why_not_run
from im2col_conv.engine.machine.program import Program
from im2col_conv.engine.workers import Scratch, drop_scratch

from .peak import peak_beyond
from .strategies import cases, integers_like

pytestmark = pytest.mark.skipif(why_not_run() is not None, reason=str(why_not_run()))

SINGLE = np.dtype(np.float32)
FORMS = forms_here()
LAYOUTS = FIRST, LAST = ("channels_first", "channels_last")

LAYERS = [
    # x_shape, w_shape, keywords, kinds of y where channels come first, and last
    ((3, 5, 9, 13), (20, 5, 3, 2), {"padding": ((1, 2), (0, 1))}, "filters", "outputs"),
    ((2, 3, 31, 29), (25, 3, 5, 7), {"stride": (2, 3), "padding": (2, 3)}, "filters", "outputs"),
    ((2, 12, 11, 8), (18, 4, 4, 3), {"stride": (1, 3), "groups": 3}, "filters", "outputs"),
    ((2, 7, 40), (7, 7, 3), {"padding": 1, "dilation": 2}, "filters", "outputs"),
    ((1, 4, 5, 6, 7), (9, 4, 3, 3, 2), {"padding": 1, "stride": (1, 2, 1)}, "filters", "outputs"),
    ((2, 3, 17, 12), (2, 3, 3, 4), {"padding": (1, 2)}, "planes", "outputs"),
    ((3, 21, 14, 19), (21, 1, 3, 5), {"padding": (1, 2), "groups": 21}, "planes", "channels"),
    ((2, 6, 9, 7), (12, 1, 3, 3), {"stride": 2, "padding": 1, "groups": 6}, "planes", "outputs"),
    ((2, 35, 50), (35, 1, 9), {"padding": 4, "groups": 35}, "planes", "channels"),
    ((1, 5, 6, 7, 8), (5, 1, 2, 3, 3), {"groups": 5, "dilation": (1, 2, 1)}, "planes", "channels"),
    ((2, 8, 6, 10), (33, 8, 1, 1), {}, "filters", "outputs"),
    ((1, 4, 10, 10), (6, 4, 2, 2), {"stride": (2, 5)}, "filters", "outputs"),  # phases no tap meets
    ((2, 2, 3, 4), (7, 2, 3, 4), {"padding": 5}, "filters", "outputs"),  # windows all padding
    ((1, 3, 4, 9), (5, 3, 2, 3), {}, "filters", "outputs"),  # lines of one less than a vector
    ((2, 7, 6, 9), (7, 1, 2, 3), {"groups": 7}, "planes", "channels"),  # and channels
    ((2, 1, 6, 9), (1, 1, 2, 3), {}, "planes", "channels"),
]


def plan_of(geometry, layout, workspace):
    return plan_direct(geometry, layout, SINGLE, workspace, forms_here(), flipped=False)


def arrays_of(x_shape, w_shape, keywords, layout, dtype=np.float32):
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    shapes = (x_shape, w_shape, w_shape[:1], geometry.y_shape)
    x, w, b, dout = (integers_like(place, shape, dtype) for place, shape in enumerate(shapes))
    if layout == "channels_last":
        x, dout = (np.ascontiguousarray(np.moveaxis(each, 1, -1)) for each in (x, dout))
    return x, w, b, dout


def both(x, w, b, dout, **keywords):
    """Return y with a bias and without, dx, dw and db."""
    gradients = ic.conv_grads(dout, x, w, **keywords)
    return ic.conv(x, w, b, **keywords), ic.conv(x, w, **keywords), *gradients


@pytest.fixture(params=FORMS, ids=str)
def form(request, monkeypatch):
    """Have vectors one form alone."""
    monkeypatch.setattr(choice, "forms_here", lambda: (request.param,))
    return request.param


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize(("x_shape", "w_shape", "keywords", "first", "last"), LAYERS)
def test_equals_the_spine(form, x_shape, w_shape, keywords, first, last, dtype, layout):
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    plan = plan_of(geometry, layout, 2**26)
    if layout == LAST or first == "planes":
        assert plan.kind is Kind(first if layout == FIRST else last)
    arrays = arrays_of(x_shape, w_shape, keywords, layout, dtype)
    equals_the_spine(arrays, keywords, layout)


@pytest.mark.parametrize("kind", ["filters", "outputs"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "keywords"), [each[:3] for each in LAYERS if each[3] == "filters"]
)
def test_both_kinds_equal_the_spine_where_channels_come_first(
    form, x_shape, w_shape, keywords, dtype, kind, monkeypatch
):
    monkeypatch.setattr(direct_kinds, "TURN_COST", math.inf if kind == "filters" else -math.inf)
    # Plans are kept by their workspace too.
    workspace = 2**26 + (64 if kind == "filters" else 128)
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    assert plan_of(geometry, FIRST, workspace).kind is Kind(kind)
    arrays = arrays_of(x_shape, w_shape, keywords, FIRST, dtype)
    equals_the_spine(arrays, keywords, FIRST, workspace=workspace)


def test_filters_side_by_side_pay_where_lines_would_leave_half_of_wide_vectors_empty():
    for channels, kind in ((57, Kind.FILTERS), (58, Kind.OUTPUTS)):
        geometry = ic.ConvGeometry.from_shapes((1, channels, 9, 8), (32, channels, 1, 1))
        plan = plan_direct(geometry, FIRST, SINGLE, 2**26, (AVX512, AVX2), flipped=False)
        # 0.35 of each of 57 or 58 terms: 19.95 and 20.3
        assert plan.kind is kind
        assert plan.form is (AVX2 if kind is Kind.FILTERS else AVX512)


@pytest.mark.parametrize(("channels", "copied"), [(511, False), (512, True)])
def test_cells_that_meet_in_few_lines_of_the_cache_are_copied_further_apart(channels, copied):
    x, w, _, _ = arrays_of((1, channels, 3, 14), (17, channels, 1, 2), {}, LAST)
    geometry = ic.ConvGeometry.from_shapes((1, channels, 3, 14), w.shape)
    y = ic.conv(x, w, layout=LAST, algorithm="direct")
    np.testing.assert_array_equal(y, ic.conv(x, w, layout=LAST, algorithm="im2col"))
    plan = choice.forward_plan("direct", geometry, LAST, SINGLE, SINGLE, ic.get_workspace())
    program = plan.programs[next(key for key in plan.programs if key != "weights")]
    numbers = 3 * 14 * (channels + 16) + FORMS[0].lanes(SINGLE)
    assert program.numbers_in(direct_tasks.Of.COPY) == (numbers if copied else 0)


@pytest.mark.parametrize("channels", [139, 141])
def test_filters_side_by_side_pay_where_lines_leave_vectors_empty(channels):
    geometry = ic.ConvGeometry.from_shapes((1, channels, 9, 28), (16, channels, 1, 1))
    plan = plan_direct(geometry, FIRST, SINGLE, 2**26, (AVX2,), flipped=False)
    # lines of 28 take 32 numbers, 16 filters no more: a seventh of all terms is saved
    assert (plan.kind is Kind.OUTPUTS) is (channels / 7 > direct_kinds.TURN_COST)


@given(st.data())
def test_equals_the_spine_for_any_geometry(data):
    case = data.draw(cases())
    layout = data.draw(st.sampled_from(LAYOUTS))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    arrays = arrays_of(case.x_shape, case.w_shape, case.keywords, layout, dtype)
    workers = data.draw(st.integers(1, 3))
    workspace = data.draw(st.sampled_from([2**26, 2**18]))
    forms = data.draw(st.sampled_from([(form,) for form in FORMS]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "forms_here", lambda: forms)
        equals_the_spine(arrays, case.keywords, layout, workers, workspace)


def equals_the_spine(arrays, keywords, layout, workers=2, workspace=2**26):
    with ic.set_workers(workers), ic.set_workspace(workspace):
        found = both(*arrays, algorithm="direct", layout=layout, **keywords)
    expected = both(*arrays, algorithm="im2col", layout=layout, **keywords)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == arrays[0].dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("x_shape", "w_shape", "keywords", "first", "last"), LAYERS)
def test_a_small_workspace_cuts_every_axis_and_changes_no_bit(
    x_shape, w_shape, keywords, first, last, layout
):
    rng = np.random.default_rng(3)
    arrays = arrays_of(x_shape, w_shape, keywords, layout)
    arrays = [rng.standard_normal(each.shape).astype(np.float32) for each in arrays]
    whole = both(*arrays, algorithm="direct", layout=layout, **keywords)
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    uncut = plan_of(geometry, layout, 2**26)
    workspace = uncut.shared_bytes + 3 * uncut.worker_bytes  # a tile may take a quarter of it
    with ic.set_workspace(workspace), ic.set_workers(3):
        cut = ic.conv(*arrays[:3], algorithm="direct", layout=layout, **keywords)
    assert plan_of(geometry, layout, workspace).tiling.boxes > 1
    np.testing.assert_array_equal(cut, whole[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "keywords"),
    [
        ((6, 12, 40, 31), (40, 12, 3, 5), {"padding": (1, 2)}),
        ((2, 96, 70, 61), (96, 1, 5, 3), {"padding": (2, 1), "groups": 96}),
    ],
)
def test_same_bits_for_any_number_of_workers(x_shape, w_shape, keywords, layout):
    rng = np.random.default_rng(4)
    arrays = arrays_of(x_shape, w_shape, keywords, layout)
    arrays = [rng.standard_normal(each.shape).astype(np.float32) for each in arrays]
    results = []
    for workers in (1, 2, 5):
        with ic.set_workers(workers):
            results.append(both(*arrays, algorithm="direct", layout=layout, **keywords))
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    assert plan_of(geometry, layout, ic.get_workspace()).tasks > 1
    for other in results[1:]:
        for one, same in zip(results[0], other, strict=True):
            assert one.tobytes() == same.tobytes()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize(("x_shape", "w_shape", "keywords", "first", "last"), LAYERS)
def test_infinity_reaches_the_windows_that_hold_it(
    x_shape, w_shape, keywords, first, last, value, layout
):
    x, w, b, dout = arrays_of(x_shape, w_shape, keywords, layout)
    w[w == 0] = 1
    for array in (x, dout):
        array[tuple(size // 2 for size in array.shape)] = value
        array[(0,) * array.ndim] = value
    found = both(x, w, b, dout, algorithm="direct", layout=layout, **keywords)
    expected = both(x, w, b, dout, algorithm="im2col", layout=layout, **keywords)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("x_shape", "w_shape", "keywords", "first", "last"), LAYERS)
def test_nothing_that_lay_in_the_buffers_is_read(
    x_shape, w_shape, keywords, first, last, layout, monkeypatch
):
    array = Scratch.array

    def poisoned(self, name, shape, dtype):
        memory = array(self, name, shape, dtype)
        memory[...] = np.nan
        return memory

    monkeypatch.setattr(Scratch, "array", poisoned)
    arrays = arrays_of(x_shape, w_shape, keywords, layout)
    found = both(*arrays, algorithm="direct", layout=layout, **keywords)
    expected = both(*arrays, algorithm="im2col", layout=layout, **keywords)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


ORDERS = ["as it is", "backwards", "every other", "read-only", "other axes first", "another type"]


def in_order(array, order):
    if order == "backwards":
        return array[::-1, :, ::-1].copy()[::-1, :, ::-1]
    if order == "every other":
        larger = np.zeros([2 * size for size in array.shape], array.dtype)
        view = larger[tuple(slice(1, None, 2) for _ in array.shape)]
        view[...] = array
        return view
    if order == "read-only":
        array = array.copy()
        array.flags.writeable = False
    if order == "other axes first":
        return np.asfortranarray(array)
    return array.astype(np.int8) if order == "another type" else array


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("x_shape", "w_shape", "keywords", "first", "last"), LAYERS[:9])
def test_arrays_may_lie_in_any_memory_order(x_shape, w_shape, keywords, first, last, order, layout):
    x, w, b, dout = arrays_of(x_shape, w_shape, keywords, layout)
    expected = both(x, w, b, dout, algorithm="im2col", layout=layout, **keywords)
    given = [in_order(each, order) for each in (x, w, b, dout) if each.ndim > 1]
    before = [each.copy() for each in given]
    x, w, dout = given
    with_floats = b.astype(np.float32), np.float32
    found = (
        ic.conv(x, w, with_floats[0], algorithm="direct", layout=layout, **keywords),
        ic.conv_input_grad(
            dout.astype(np.float32) if order == "another type" else dout,
            w, x.shape, algorithm="direct", layout=layout, **keywords,
        ),
    )  # fmt: skip
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[2])
    for one, other in zip(given, before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("x_shape", "w_shape", "keywords", "first", "last"), LAYERS)
def test_out_may_have_gaps_that_stay_as_they_were(x_shape, w_shape, keywords, first, last, layout):
    x, w, b, dout = arrays_of(x_shape, w_shape, keywords, layout)
    expected = ic.conv(x, w, b, algorithm="im2col", layout=layout, **keywords)
    for step in (1, 2):  # along the last axis, so that lines can be stored, or not
        larger = np.full([2 * size for size in dout.shape], 7, np.float32)
        steps = [slice(None, None, 2)] * (dout.ndim - 1) + [slice(0, dout.shape[-1] * step, step)]
        out = larger[tuple(steps)]
        ic.conv(x, w, b, algorithm="direct", layout=layout, out=out, **keywords)
        np.testing.assert_array_equal(out, expected)
        out[...] = 7
        assert (larger == 7).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cells_without_padding_are_read_where_they_are(layout, monkeypatch):
    sizes = {}
    array = Scratch.array

    def noted(self, name, shape, dtype):
        sizes[name] = math.prod(shape)
        return array(self, name, shape, dtype)

    monkeypatch.setattr(Scratch, "array", noted)
    x, w, b, _ = arrays_of((4, 6, 20, 30), (10, 6, 3, 5), {}, layout)
    ic.conv(x, w, b, algorithm="direct", layout=layout)
    assert sizes["cells of x"] == sizes.get("y", 0) == 0
    ic.conv(x, w, b, algorithm="direct", layout=layout, padding=1)
    assert sizes["cells of x"] > 0 == sizes.get("y", 0)
    x, w, b, _ = arrays_of((4, 16, 20, 30), (16, 1, 3, 5), {"padding": 1, "groups": 16}, layout)
    ic.conv(x, w, b, algorithm="direct", layout=layout, padding=1, groups=16)
    assert (sizes["cells of x"] == 0) is (layout == LAST)  # where outputs come in parts


def test_outputs_in_parts_are_as_many_as_taps_that_padding_leaves_out():
    cells = Cells((9, 4), (3, 5), (1, 2), (2, 1), (2, 3), (11, 8), True, False, False)
    parts = parts_of(cells)
    met = np.zeros(cells.outs, int)
    for part in parts:
        assert not part.cells.padded
        first, outs = part.first_output, part.cells.outs
        outs = tuple(slice(o, o + n) for o, n in zip(first, outs, strict=True))
        met[outs] += math.prod(part.cells.kernel)
    axes = cells.outs, cells.kernel, cells.stride, cells.dilation, cells.before, cells.inside
    taps = [
        [sum(0 <= o * s - b + t * d < n for t in range(k)) for o in range(outs)]
        for outs, k, s, d, b, n in zip(*axes, strict=True)
    ]
    np.testing.assert_array_equal(met, np.outer(*taps))
    assert len(parts) == 2 * 3


@pytest.mark.parametrize(("most", "padding"), [(8, 1), (100, 4)])
def test_more_parts_than_pay_and_windows_all_padding_are_copied(most, padding, monkeypatch):
    monkeypatch.setattr(direct_tasks, "MOST_PARTS", most)
    arrays = arrays_of((2, 20, 9, 11), (20, 1, 3, 3), {"padding": padding, "groups": 20}, LAST)
    named = {"layout": LAST, "groups": 20, "padding": padding}
    found = both(*arrays, algorithm="direct", **named)
    for one, other in zip(found, both(*arrays, algorithm="im2col", **named), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_threads_do_not_wait_in_machine_code_others_run_its_tasks(layout, monkeypatch):
    for module in (crew, direct_plan, direct_forward):
        monkeypatch.setattr(module, "shares_here", lambda: False)
    keywords = {"padding": (1, 2)}
    x, w, b, dout = arrays_of((9, 11, 40, 34), (21, 11, 3, 5), keywords, layout)
    threads = set()
    run_task = Program.run_task

    def noted(self, index, arrays):
        threads.add(threading.get_ident())
        run_task(self, index, arrays)

    monkeypatch.setattr(Program, "run_task", noted)
    with ic.set_workers(3):
        found = both(x, w, b, dout, algorithm="direct", layout=layout, **keywords)
    assert threads
    expected = both(x, w, b, dout, algorithm="im2col", layout=layout, **keywords)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    geometry = ic.ConvGeometry.from_shapes((9, 11, 40, 35), (21, 11, 3, 5), padding=(1, 2))
    assert choice.way_of(DW, "direct", geometry, layout, SINGLE) != "direct"


def test_cells_further_apart_than_a_table_tells_are_copied():
    geometry = ic.ConvGeometry.from_shapes((1, 2, 3, 9), (4, 2, 3, 2))
    cells, _ = cells_of(geometry, (slice(0, 1), slice(0, 8)), last=False)
    assert cells.steps_in_place((54, 27, 9, 1), 2, 4) is not None
    assert cells.steps_in_place((54, FARTHEST // 4 + 1, 9, 1), 2, 4) is None
    assert cells.steps_in_place((54, 27, 9, 2), 2, 4) is None


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("x_shape", "w_shape"),
    [((6, 20, 70, 61), (24, 20, 3, 5)), ((2, 90, 20, 31), (300, 90, 3, 5))],
)
def test_tiles_take_the_memory_that_is_counted(x_shape, w_shape, layout):
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, padding=(1, 2))
    x, w, b, _ = arrays_of(x_shape, w_shape, {"padding": (1, 2)}, layout)
    for workspace in (2**26, 2**22):
        plan = plan_of(geometry, layout, workspace)
        said = plan.shared_bytes + 2 * plan.worker_bytes
        with ic.set_workers(2), ic.set_workspace(workspace):
            drop_scratch()
            plan.tables.clear()
            plan.programs.clear()
            _, taken = peak_beyond(
                lambda: ic.conv(x, w, b, algorithm="direct", layout=layout, padding=(1, 2))
            )
        assert taken <= min(said, workspace) + 2**17


FAR_APART = ic.ConvGeometry.from_shapes((1, 32, 250, 300), (32, 1, 3, 3), dilation=100, groups=32)


def test_tiles_are_larger_than_the_cache_where_windows_are_far_apart():
    small, large = (plan_of(FAR_APART, "channels_last", workspace) for workspace in (2**23, 2**26))
    assert small.copied_again > 4
    assert large.copied_again < 2
    assert large.worker_bytes > direct_plan.TILE_BYTES


def test_only_so_many_tables_are_kept():
    geometry = ic.ConvGeometry.from_shapes((1, 8, 90, 50), (8, 8, 3, 3), padding=40, dilation=40)
    x, w, _, _ = arrays_of(
        (1, 8, 90, 50), (8, 8, 3, 3), {"padding": 40, "dilation": 40}, LAYOUTS[0]
    )
    workspace = 400_000
    plan = plan_of(geometry, "channels_first", workspace)
    assert plan.tiling.boxes > MOST_TABLES
    with ic.set_workspace(workspace):
        y = ic.conv(x, w, algorithm="direct", padding=40, dilation=40)
    np.testing.assert_array_equal(y, ic.conv(x, w, algorithm="im2col", padding=40, dilation=40))
    assert len(plan.tables) == MOST_TABLES


def test_only_so_many_programs_are_kept():
    x, w, _, _ = arrays_of((2, 4, 9, 13), (5, 4, 3, 2), {}, FIRST)
    geometry = ic.ConvGeometry.from_shapes(x.shape, w.shape)
    plan = choice.forward_plan("direct", geometry, FIRST, SINGLE, SINGLE, ic.get_workspace())
    expected = ic.conv(x, w, algorithm="im2col")
    for gap in range(2 * MOST_PROGRAMS):
        wider = np.zeros((*x.shape[:-1], x.shape[-1] + gap), np.float32)
        wider[..., : x.shape[-1]] = x
        y = ic.conv(wider[..., : x.shape[-1]], w, algorithm="direct")
        np.testing.assert_array_equal(y, expected)
    assert len(plan.programs) == MOST_PROGRAMS


@pytest.mark.parametrize("layout", LAYOUTS)
def test_prepared_weights_are_arranged_once(layout, monkeypatch):
    x, w, b, dout = arrays_of((2, 12, 20, 30), (20, 12, 3, 5), {"padding": 2}, layout)
    kept = ic.prepare(w)
    expected = both(x, w, b, dout, algorithm="im2col", layout=layout, padding=2)
    for _ in range(2):
        found = both(x, kept, b, dout, algorithm="direct", layout=layout, padding=2)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        assert "2 forms" in repr(kept)


def test_prepared_weights_serve_both_layouts():
    x, w, _, _ = arrays_of((2, 40, 9, 30), (32, 40, 2, 3), {}, FIRST)
    kept = ic.prepare(w)
    expected = ic.conv(x, w, algorithm="im2col")
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    geometry = ic.ConvGeometry.from_shapes(x.shape, w.shape)
    plans = [plan_direct(geometry, each, SINGLE, 2**26, FORMS, flipped=False) for each in LAYOUTS]
    assert {plan.kind for plan in plans} == {Kind.OUTPUTS}  # whose terms are in another order
    y = ic.conv(last, kept, layout=LAST, algorithm="direct")
    np.testing.assert_array_equal(np.moveaxis(y, -1, 1), expected)
    np.testing.assert_array_equal(ic.conv(x, kept, algorithm="direct"), expected)


def test_gradients_take_the_direct_way_where_it_covers_them():
    x, w, _, dout = arrays_of((2, 6, 20, 30), (10, 6, 3, 5), {"stride": 2}, "channels_first")
    geometry = ic.ConvGeometry.from_shapes(x.shape, w.shape, stride=2)
    ways = [choice.way_of(each, "direct", geometry, "channels_first", SINGLE) for each in (DX, DW)]
    assert [each == "direct" for each in ways] == [False, shares_here()]
    found = ic.conv_grads(dout, x, w, algorithm="direct", stride=2)
    expected = ic.conv_grads(dout, x, w, algorithm="im2col", stride=2)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_transposed_passes_may_be_direct_and_add_their_bias(monkeypatch):
    monkeypatch.setattr(choice, "_quickest", lambda *_: "direct")
    x, w = integers_like(1, (2, 6, 9, 13), np.float32), integers_like(2, (6, 4, 3, 2), np.float32)
    b = integers_like(3, (4,), np.float32)
    found = ic.conv_transpose(x, w, b, padding=(1, 0))
    monkeypatch.undo()
    expected = ic.conv_transpose(x.astype(int), w.astype(int), b.astype(int), padding=(1, 0))
    np.testing.assert_array_equal(found, expected)


# --- weights --------------------------------------------------------------------------------------


def plan_of_dw(x_shape, w_shape, layout=FIRST, workspace=2**26, **keywords):
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    return choice.weight_grad_plan("direct", geometry, layout, SINGLE, SINGLE, SINGLE, workspace)


def gradients(dout, x, w, algorithm, **keywords):
    _, dw, db = ic.conv_grads(dout, x, w, needs=("w", "b"), algorithm=algorithm, **keywords)
    return dw, db


shares = pytest.mark.skipif(not shares_here(), reason="threads share tasks under Linux")


@shares
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "keywords"),
    [
        ((6, 12, 40, 31), (40, 12, 3, 5), {"padding": (1, 2)}),  # channels fill blocks of rows
        ((16, 3, 40, 31), (25, 3, 3, 6), {"stride": (1, 2)}),  # taps do
        ((19, 7, 45, 31), (14, 7, 1, 1), {}),  # filters that come last are read as they are
        ((14, 30, 25, 31), (18, 5, 3, 2), {"groups": 6, "padding": (1, 1)}),
        ((3, 9, 4000), (20, 9, 7), {"dilation": 3, "padding": 4}),
        ((2, 5, 9, 14, 21), (17, 5, 2, 3, 3), {"stride": (1, 1, 2), "padding": (1, 0, 2)}),
    ],
)
def test_dw_and_db_are_partial_sums_of_several_tasks(x_shape, w_shape, keywords, dtype, layout):
    x, w, _, dout = arrays_of(x_shape, w_shape, keywords, layout, dtype)
    plan = plan_of_dw(x_shape, w_shape, layout, **keywords)
    assert isinstance(plan, direct_weight_grad.WeightGradPlan)
    assert plan.tasks > 1
    expected = gradients(dout, x, w, "im2col", layout=layout, **keywords)
    for workers in (1, 2, 5):
        with ic.set_workers(workers):
            found = gradients(dout, x, w, "direct", layout=layout, **keywords)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


@shares
def test_dw_is_left_to_others_where_it_would_take_too_many_sums_or_other_types():
    shapes = (4, 40, 60, 61), (50, 40, 3, 3)
    assert plan_of_dw(*shapes).algorithm == "direct"
    assert plan_of_dw(*shapes, workspace=2**20).algorithm != "direct"
    geometry = ic.ConvGeometry.from_shapes(*shapes)
    half, double = np.dtype(np.float16), np.dtype(np.float64)
    for types in ((half, half, half), (SINGLE, double, double), (double, SINGLE, double)):
        plan = choice.weight_grad_plan("direct", geometry, FIRST, *types, 2**26)
        assert plan.algorithm != "direct"


@shares
@pytest.mark.parametrize("filters", [9, 30])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dw_of_images_further_apart_than_a_table_tells(filters, layout, monkeypatch):
    monkeypatch.setattr(choice, "forms_here", lambda: (AVX2,))
    sizes, array = {}, Scratch.array

    def noted(self, name, shape, dtype):
        sizes[name] = math.prod(shape)
        return array(self, name, shape, dtype)

    monkeypatch.setattr(Scratch, "array", noted)
    shapes = (5, 6, 9, 14), (filters, 6, 1, 1)
    x, w, _, dout = arrays_of(*shapes, {}, layout)
    expected = gradients(dout, x, w, "im2col", layout=layout)
    turned = filters > 16 or layout == FIRST
    for farthest, copies in ((FARTHEST, False), (3000, True)):
        monkeypatch.setattr(direct_cells, "FARTHEST", farthest)
        plan_of_dw(*shapes, layout).programs.clear()
        found = gradients(dout, x, w, "direct", layout=layout)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        assert (sizes["cells of x, for dw"] > 0) is copies
        assert (sizes["dout.T"] > 0) is (copies or turned)
    plan_of_dw(*shapes, layout).programs.clear()


@shares
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_zeros_of_padding_that_meet_infinity_make_no_nan_of_dw(value, layout):
    keywords = {"padding": (1, 2)}
    x, w, _, dout = arrays_of((3, 6, 12, 17), (9, 6, 3, 5), keywords, layout)
    x[x == 0] = 1
    place = (1, 4, 0, 3) if layout == FIRST else (1, 0, 3, 4)
    dout[place] = value
    found = gradients(dout, x, w, "direct", layout=layout, **keywords)
    expected = gradients(dout, x, w, "im2col", layout=layout, **keywords)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.isfinite(found[0][4]).any()  # taps that see padding alone where dout is not finite


@shares
@pytest.mark.parametrize(("channels", "copied"), [(511, False), (512, True)])
def test_x_is_copied_for_dw_where_its_cells_meet_in_few_lines_of_the_cache(channels, copied):
    shapes = (1, channels, 3, 14), (17, channels, 1, 1)
    x, w, _, dout = arrays_of(*shapes, {}, LAST)
    found = gradients(dout, x, w, "direct", layout=LAST)
    for one, other in zip(found, gradients(dout, x, w, "im2col", layout=LAST), strict=True):
        np.testing.assert_array_equal(one, other)
    (program,) = plan_of_dw(*shapes, LAST, ic.get_workspace()).programs.values()
    assert (program.numbers_in(direct_weight_grad.Of.COPY) > 0) is copied


@shares
@pytest.mark.parametrize("layout", LAYOUTS)
def test_partial_sums_take_the_memory_that_is_counted(layout):
    shapes = (6, 20, 70, 61), (24, 20, 3, 5)
    x, w, _, dout = arrays_of(*shapes, {"padding": (1, 2)}, layout)
    for workspace in (2**26, 2**23):
        plan = plan_of_dw(*shapes, layout, workspace, padding=(1, 2))
        assert plan.algorithm == "direct"
        said = plan.shared_bytes + 2 * plan.worker_bytes
        with ic.set_workers(2), ic.set_workspace(workspace):
            drop_scratch()
            plan.tables.clear()
            plan.programs.clear()
            _, taken = peak_beyond(
                lambda: gradients(dout, x, w, "direct", layout=layout, padding=(1, 2))
            )
        assert taken <= min(said, workspace) + 2**17


# --- what is refused ------------------------------------------------------------------------------


def test_types_that_no_vector_holds_are_refused():
    x, w = np.ones((1, 2, 9, 9), int), np.ones((3, 2, 3, 3), int)
    with pytest.raises(ValueError, match=r'"direct" computes in float32 or float64, got int64'):
        ic.conv(x, w, algorithm="direct")
    with pytest.raises(ValueError, match="got complex128"):
        ic.conv(x.astype(np.complex64), w, algorithm="direct")


def test_a_machine_that_cannot_run_it_is_said_why(monkeypatch):
    monkeypatch.setattr(choice, "why_not_run", lambda: "this is a toaster")
    x, w = np.ones((1, 2, 9, 9), np.float32), np.ones((3, 2, 3, 2), np.float32)
    with pytest.raises(ValueError, match=r'"direct" cannot run here: this is a toaster'):
        ic.conv(x, w, algorithm="direct", padding=7)  # a geometry that no other test has planned


def test_a_workspace_that_holds_no_tile_is_refused():
    x, w = np.ones((1, 64, 90, 90), np.float32), np.ones((40, 64, 7, 7), np.float32)
    with ic.set_workspace(1000), pytest.raises(ValueError, match=r'"direct" needs a workspace of'):
        ic.conv(x, w, algorithm="direct")


# --- who takes it ---------------------------------------------------------------------------------

Y, DX, DW = "forward", "input_grad", "weight_grad"
LARGE = ((4, 24, 60, 61), (20, 24, 3, 3))


def way(each, x_shape, w_shape, layout="channels_first", dtype=SINGLE, **keywords):
    geometry = ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)
    return choice.way_of(each, "auto", geometry, layout, dtype)


def test_auto_leaves_windows_far_apart_that_a_small_workspace_cuts():
    for workspace, algorithm in ((2**23, "im2col"), (2**26, "direct")):
        plan = choice.forward_plan("auto", FAR_APART, LAST, SINGLE, SINGLE, workspace)
        assert plan.algorithm == algorithm


def test_auto_leaves_it_where_it_cannot_run(monkeypatch):
    monkeypatch.setattr(choice, "why_not_run", lambda: "forbidden")
    assert way(Y, *LARGE) != "direct"


@pytest.mark.parametrize("dtype", [np.int64, np.complex64])
def test_auto_leaves_other_types_to_other_ways(dtype):
    assert way(Y, *LARGE) == "direct"
    assert way(Y, *LARGE, dtype=np.dtype(dtype)) != "direct"


def test_auto_falls_back_where_no_tile_fits():
    geometry = ic.ConvGeometry.from_shapes((9, 64, 90, 90), (4, 64, 7, 7))
    for workspace, algorithm in ((2**26, "direct"), (1000, "im2col")):
        plan = choice.forward_plan("auto", geometry, "channels_first", SINGLE, SINGLE, workspace)
        assert plan.algorithm == algorithm


@pytest.mark.parametrize(
    ("each", "layout", "x_shape", "w_shape", "keywords", "taken"),
    [
        # work: 0.0990 and 0.101 MFLOP
        (Y, FIRST, (1, 5, 12, 11), (10, 5, 3, 3), {"padding": (1, 0)}, False),
        (Y, FIRST, (1, 5, 16, 9), (10, 5, 3, 3), {"padding": (1, 0)}, True),
        (Y, LAST, (1, 5, 12, 11), (10, 5, 3, 3), {"padding": (1, 0)}, False),
        (Y, LAST, (1, 5, 16, 9), (10, 5, 3, 3), {"padding": (1, 0)}, True),
        (DW, FIRST, (1, 5, 12, 11), (10, 5, 3, 3), {"padding": (1, 0)}, False),
        (DW, FIRST, (1, 5, 16, 9), (10, 5, 3, 3), {"padding": (1, 0)}, True),
        # of each channel alone: 0.0998 and 0.101 MFLOP
        (Y, FIRST, (1, 18, 14, 24), (18, 1, 3, 3), {"padding": (1, 0), "groups": 18}, False),
        (Y, FIRST, (1, 18, 15, 24), (18, 1, 3, 3), {"padding": (1, 0), "groups": 18}, True),
        (DX, LAST, (1, 18, 14, 22), (18, 1, 3, 3), {"padding": (1, 1), "groups": 18}, False),
        (DX, LAST, (1, 18, 14, 23), (18, 1, 3, 3), {"padding": (1, 1), "groups": 18}, True),
        # two filters of each, but for dx where channels come last; and three
        (Y, FIRST, (9, 18, 25, 4), (36, 1, 3, 3), {"groups": 18}, True),
        (Y, LAST, (3, 18, 15, 24), (36, 1, 3, 3), {"groups": 18}, True),
        (DX, FIRST, (3, 18, 15, 24), (36, 1, 3, 3), {"groups": 18}, True),
        (DX, LAST, (3, 18, 15, 24), (36, 1, 3, 3), {"groups": 18}, False),
        (Y, LAST, (3, 18, 15, 24), (54, 1, 3, 3), {"groups": 18}, False),
        (DW, FIRST, (9, 20, 30, 31), (40, 1, 3, 3), {"groups": 20}, False),
        # one channel in all is no such layer
        (Y, LAST, (9, 1, 30, 31), (1, 1, 3, 3), {}, False),
        (DW, FIRST, (9, 1, 30, 31), (40, 1, 3, 3), {}, True),
        # lines of 1 and 2, where channels come first, and filters where they come last
        (Y, FIRST, (9, 24, 90, 3), (20, 24, 3, 3), {}, False),
        (Y, FIRST, (9, 24, 90, 4), (20, 24, 3, 3), {}, True),
        (Y, LAST, (9, 24, 90, 3), (5, 24, 3, 3), {}, True),
        (Y, LAST, (9, 24, 90, 3), (4, 24, 3, 3), {}, False),
        # numbers added to a result of dx that are none of dout: 999 and 1001
        (DX, FIRST, (9, 20, 30, 31), (764, 20, 3, 3), {}, True),
        (DX, FIRST, (9, 20, 30, 31), (765, 20, 3, 3), {}, False),
        (DX, FIRST, (9, 20, 30, 31), (900, 20, 3, 3), {"padding": 1}, True),
        # dx of 5 and 6 channels in a block of 16: 3.2 and 2.7 times as much as is needed
        (DX, LAST, (9, 5, 30, 31), (24, 5, 3, 3), {"padding": 1}, False),
        (DX, LAST, (9, 6, 30, 31), (24, 6, 3, 3), {"padding": 1}, True),
        # with the zeros around dout: 3.05 and 2.85
        (DX, LAST, (9, 6, 30, 31), (24, 6, 3, 3), {}, False),
        (DX, LAST, (9, 6, 30, 31), (24, 6, 3, 3), {"padding": (1, 0)}, True),
        # dx with a stride is no convolution of dout
        (DX, FIRST, (9, 8, 30, 31), (24, 8, 3, 3), {"stride": (1, 2)}, False),
        # kernels of one cell: 3.99 and 4.05 MFLOP, channels
        (Y, FIRST, (1, 32, 30, 31), (67, 32, 1, 1), {}, False),
        (Y, FIRST, (1, 32, 30, 31), (68, 32, 1, 1), {}, True),
        (Y, FIRST, (9, 128, 30, 31), (40, 128, 1, 1), {}, True),
        (Y, FIRST, (9, 129, 30, 31), (40, 129, 1, 1), {}, False),
        # for dx, 49290 and 50220 outputs
        (DX, FIRST, (53, 8, 30, 31), (9, 8, 1, 1), {}, False),
        (DX, FIRST, (54, 8, 30, 31), (9, 8, 1, 1), {}, True),
        # where channels come last, 5.95 and 6.01 MFLOP, and filters
        (Y, LAST, (1, 32, 30, 31), (100, 32, 1, 1), {}, False),
        (Y, LAST, (1, 32, 30, 31), (101, 32, 1, 1), {}, True),
        (Y, LAST, (9, 64, 30, 31), (7, 64, 1, 1), {}, False),
        (Y, LAST, (9, 64, 30, 31), (8, 64, 1, 1), {}, True),
        # for dx and dw, 15.2 and 22.9 MFLOP, channels and filters
        *(
            (each, LAST, x_shape, w_shape, {}, taken)
            for each in (DX, DW)
            for x_shape, w_shape, taken in (
                ((2, 64, 30, 31), (64, 64, 1, 1), False),
                ((3, 64, 30, 31), (64, 64, 1, 1), True),
                ((9, 63, 30, 31), (70, 63, 1, 1), False),
                ((9, 70, 30, 31), (63, 70, 1, 1), False),
            )
        ),
        # for dw where channels come first, 0.98 and 1.01 MFLOP, channels
        (DW, FIRST, (1, 16, 30, 31), (33, 16, 1, 1), {}, False),
        (DW, FIRST, (1, 16, 30, 31), (34, 16, 1, 1), {}, True),
        (DW, FIRST, (99, 2, 30, 31), (40, 2, 1, 1), {}, False),
        (DW, FIRST, (99, 3, 30, 31), (40, 3, 1, 1), {}, True),
        # filters of dw
        (DW, FIRST, (9, 20, 30, 31), (1, 20, 3, 3), {}, False),
        (DW, FIRST, (1, 20, 30, 31), (1, 20, 3, 3), {}, True),
        (DW, FIRST, (9, 20, 30, 31), (2, 20, 3, 3), {}, True),
        (DW, LAST, (9, 20, 30, 31), (4, 20, 3, 3), {}, False),
        (DW, LAST, (9, 20, 30, 31), (5, 20, 3, 3), {}, True),
    ],
)
def test_auto_takes_it_on_one_side_of_each_bound(each, layout, x_shape, w_shape, keywords, taken):
    if each == DW and not shares_here():
        pytest.skip("threads share what is in machine code under Linux")
    assert (way(each, x_shape, w_shape, layout, **keywords) == "direct") is taken


def test_small_passes_are_one_task_and_others_come_in_parts():
    small = ic.ConvGeometry.from_shapes((1, 8, 20, 30), (8, 8, 3, 3))
    large = ic.ConvGeometry.from_shapes((8, 64, 40, 31), (64, 64, 3, 3))
    for layout in LAYOUTS:
        assert plan_of(small, layout, 2**26).tasks == 1
        assert plan_of(large, layout, 2**26).tasks >= 8
    assert direct_plan.covers("forward", small)
    assert direct_plan.covers("weight_grad", small) is shares_here()


def test_explain_names_it_and_says_that_dx_is_gathered():
    explanation = ic.explain((2, 3, 91, 80), (4, 3, 3, 2))  # which no other test has planned
    y, _, dx = explanation.passes
    assert y.algorithm == dx.algorithm == "direct"
    assert dx.product == "dx (3, 14560) = W flipped (3, 24) @ cols of dout (24, 14560)"


def test_what_the_library_runs_on_tells_of_machine_code(capsys):
    name = "AVX2" if forms_here() == (AVX2,) else "AVX-512"
    assert ic.show_config().machine_code == f"x86-64 with {name}"
    assert f"machine code  x86-64 with {name}\n" in capsys.readouterr().out
