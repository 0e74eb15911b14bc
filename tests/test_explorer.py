"""The explorer: what it refuses, and in a browser, that its ties and numbers are the library's."""

import re
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

import im2col_conv as ic
from im2col_conv.explorer import LIMITS, MOST_CELLS, numbers, page
from tests.command_line import failure, run, run_json

# (x, w, keywords): lopsided, with remainders, padding that differs by side, and dilation.
LAYERS = {
    "plain": ((1, 1, 4, 5), (2, 1, 2, 3), {}),
    "remainders": ((1, 1, 8, 6), (2, 1, 3, 2), {"stride": (3, 2)}),
    "padded": ((1, 2, 3, 4), (3, 2, 2, 3), {"stride": (1, 2), "padding": ((2, 0), (1, 3))}),
    "dilated": ((1, 2, 7, 6), (1, 2, 3, 2), {"dilation": (2, 3), "stride": (2, 1), "padding": 1}),
    "single": ((1, 3, 1, 2), (2, 3, 1, 1), {"stride": (1, 3)}),
    "gaps": ((1, 1, 7, 9), (2, 1, 2, 2), {"stride": (4, 3), "dilation": (1, 2)}),
}


def geometry_of(name):
    x_shape, w_shape, keywords = LAYERS[name]
    return ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords)


# The page as text.


def test_page_asks_for_nothing_from_elsewhere():
    text = page(geometry_of("plain"))
    assert "__START__" not in text
    assert not re.search(r"https?:|//\w+\.|@import|src=|fetch\(|XMLHttp|url\(", text)


def test_numbers_are_whole_and_take_the_shapes():
    geometry = geometry_of("padded")
    x, w, dout = numbers(geometry)
    assert (x.shape, w.shape, dout.shape) == (geometry.x_shape, geometry.w_shape, geometry.y_shape)
    assert {a.dtype.kind for a in (x, w, dout)} == {"i"}
    assert 0 not in w
    assert 0 not in dout


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "keywords", "message"),
    [
        ((2, 1, 4, 5), (2, 1, 2, 3), {}, "one image, one group and two spatial axes"),
        ((1, 2, 4, 5), (2, 1, 2, 3), {"groups": 2}, "one image, one group and two spatial axes"),
        ((1, 1, 4), (2, 1, 2), {}, "one image, one group and two spatial axes"),
        ((1, 1, 13, 5), (2, 1, 2, 3), {}, "height from 1 to 12, got 13"),
        ((1, 1, 4, 5), (4, 1, 2, 3), {}, "filters from 1 to 3, got 4"),
        ((1, 1, 4, 5), (2, 1, 2, 3), {"padding": ((0, 0), (0, 5))}, "right from 0 to 4, got 5"),
        ((1, 3, 12, 12), (1, 3, 3, 3), {}, "up to 1000 cells; this one has 27 x 100 = 2700"),
    ],
)
def test_page_says_what_it_can_show(x_shape, w_shape, keywords, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        page(ic.ConvGeometry.from_shapes(x_shape, w_shape, **keywords))


def test_page_takes_a_geometry():
    with pytest.raises(TypeError, match="must be a ConvGeometry, got tuple"):
        page((1, 1, 4, 5))


def test_explain_writes_the_page(tmp_path):
    target = tmp_path / "layer.html"
    layer = ("--x", "1,2,3,4", "--w", "3,2,2,3", "--stride", "1,2", "--padding", "2:0,1:3")
    result = run("explain", *layer, "--html", target)
    assert result.exit_code == 0, result.output
    assert "layer.html" in result.output
    assert target.read_text(encoding="utf-8") == page(geometry_of("padded"))
    record = run_json("explain", *layer, "--html", target)
    assert record["out"] == list(geometry_of("padded").out)


def test_explain_refuses_a_page_of_a_large_layer(tmp_path):
    target = tmp_path / "layer.html"
    large = ("--x", "1,64,56,56", "--w", "64,64,3,3", "--html", target)
    assert "the explorer shows channels from 1 to 3, got 64" in failure(run("explain", *large), 1)
    assert not target.exists()


# What the library says of every number and every tie. Cells are (matrix, index).


def up_indices(geometry):
    """Return dout's positions, counted from 1, upsampled and padded: 0 is a zero put in."""
    reach, stride = geometry.reach, geometry.stride
    stride_1 = [p - r + 1 for p, r in zip(geometry.padded, reach, strict=True)]
    up = np.zeros((geometry.F, *stride_1), int)
    counted = np.arange(1, 1 + np.prod(geometry.y_shape)).reshape(geometry.y_shape[1:])
    up[:, :: stride[0], :: stride[1]] = counted
    return np.pad(up, ((0, 0), *((r - 1, r - 1) for r in reach)))


def library_numbers(geometry):
    """Return {matrix: {index: value}} of what the page shows, padding of dx aside."""
    x, w, dout = numbers(geometry)
    names = ("stride", "padding", "dilation")
    same = {name: getattr(geometry, name) for name in names}
    dx, dw, _ = ic.conv_grads(dout, x, w, **same)
    rows, of_dout = w.reshape(geometry.F, -1), dout.reshape(geometry.F, -1)
    lowered = (geometry.C, *geometry.kernel, *geometry.out)
    up = np.append(0, dout)[up_indices(geometry)]
    arrays = {
        "cols": ic.im2col(x, geometry.kernel, **same).reshape(lowered),
        "w": w,
        "y": ic.conv(x, w, **same)[0],
        "dout": dout[0],
        "dcols": (rows.T @ of_dout).reshape(lowered),
        "dw": dw,
        "dx": dx[0],
        "dxflip": dx[0],
        "up": up,
        "flip": w[:, :, ::-1, ::-1],
    }
    padded = np.pad(x[0], ((0, 0), *geometry.padding))
    (top, _), (left, _) = geometry.padding
    shown = {name: dict(np.ndenumerate(array)) for name, array in arrays.items()}
    shown["x"] = {(c, i - top, j - left): v for (c, i, j), v in np.ndenumerate(padded)}
    return shown


def library_edges(geometry):
    """Return the pairs (cell, cell whose sum holds it), by index arrays through the library."""
    F, C, kernel, out = geometry.F, geometry.C, geometry.kernel, geometry.out
    (top, _), (left, _) = geometry.padding
    steps = {"stride": geometry.stride, "dilation": geometry.dilation}
    padded = [(c, i - top, j - left) for c, i, j in np.ndindex(C, *geometry.padded)]
    counted = np.arange(len(padded)).reshape(1, C, *geometry.padded)
    met = ic.im2col(counted, kernel, **steps).reshape(C, *kernel, *out)
    edges = set()
    for at, cell in np.ndenumerate(met):
        edges |= {(("x", padded[cell]), ("cols", at)), (("dcols", at), ("dx", padded[cell]))}
        for f in range(F):
            (c, t, u), o = at[:3], at[3:]
            weight, output = (f, c, t, u), (f, *o)
            edges |= {(("w", weight), ("y", output)), (("cols", at), ("y", output))}
            edges |= {(("w", weight), ("dcols", at)), (("dout", output), ("dcols", at))}
            edges |= {(("dout", output), ("dw", weight)), (("cols", at), ("dw", weight))}
    return edges | flip_edges(geometry, padded)


def flip_edges(geometry, padded):
    F, C, kernel = geometry.F, geometry.C, geometry.kernel
    up = up_indices(geometry)
    outputs = list(np.ndindex(F, *geometry.out))
    edges = {(("dout", outputs[v - 1]), ("up", at)) for at, v in np.ndenumerate(up) if v}
    for f, c, t, u in np.ndindex(F, C, *kernel):
        other = (f, c, kernel[0] - 1 - t, kernel[1] - 1 - u)
        edges.add((("w", (f, c, t, u)), ("flip", other)))
    places, counted = list(np.ndindex(up.shape)), np.arange(up.size).reshape(1, *up.shape)
    slid = ic.im2col(counted, kernel, dilation=geometry.dilation)
    slid = slid.reshape(F, *kernel, *geometry.padded)
    images = np.array(padded).reshape(C, *geometry.padded, 3)
    for (f, t, u, i, j), place in np.ndenumerate(slid):
        for c in range(C):
            sum_ = ("dxflip", tuple(map(int, images[c, i, j])))
            edges.add((("up", places[place]), sum_))
            if up[places[place]]:  # of a zero that was put in, no weight matters
                edges.add((("flip", (f, c, t, u)), sum_))
    return edges


TWINS = [("x", "dx", "dxflip"), ("cols", "dcols"), ("w", "dw"), ("y", "dout")]


def closure(starts, neighbours):
    seen, waiting = set(), list(starts)
    while waiting:
        new = neighbours[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def library_ties(edges, *cells):
    """Return {class: cells} that pointing at ``cells`` together must show."""
    into, made_of = defaultdict(set), defaultdict(set)
    for one, other in edges:
        into[one].add(other)
        made_of[other].add(one)
    twins = {
        (twin, index)
        for name, index in cells
        for twin in next((names for names in TWINS if name in names), (name,))
    } - {*cells}
    hidden = twins | {*cells}
    return {
        "self": {*cells},
        "twin": twins,
        "from": closure(hidden, made_of) - hidden,
        "into": closure(hidden, into) - hidden,
    }


# In a browser.


def browser_path():
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if found := shutil.which(name):
            return found
    return None


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason='playwright is missing: pip install "im2col-conv[browser]"'
    )
    with sync_api.sync_playwright() as playwright:
        path = browser_path() or playwright.chromium.executable_path
        if not Path(path).exists():
            pytest.skip("no browser: apt-get install chromium, or playwright install chromium")
        # A root user, as in a container, has no sandbox.
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Open the page of a layer; in the end, nothing may have been complained of or fetched."""
    contexts, complaints, requests = [], [], []

    def open_page(layer, **options):
        target = tmp_path / "page.html"
        target.write_text(page(geometry_of(layer)), encoding="utf-8")
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 2400}} | options))
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(10_000)
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(target.as_uri())
        assert tab.locator("td.self").count() == 1
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert {url.split(":")[0] for url in requests} <= {"file", "data"}
    assert len([url for url in requests if url.startswith("file")]) == len(contexts)


def shown_cells(tab, selector="td"):
    """Return {matrix: {index: (value, dropped)}} of the cells that ``selector`` picks."""
    script = "all => all.map(td => [td.dataset.m, td.dataset.i, td.textContent, td.className])"
    shown = defaultdict(dict)
    for name, index, text, classes in tab.locator(selector).evaluate_all(script):
        value = int(text.replace("\N{MINUS SIGN}", "-"))
        shown[name][tuple(map(int, index.split(",")))] = (value, "outside" in classes.split())
    return shown


def cells_of_class(tab, name):
    shown = shown_cells(tab, f"td.{name}")
    return {(matrix, index) for matrix, cells in shown.items() for index in cells}


def expect_numbers(tab, geometry):
    shown, wanted = shown_cells(tab), library_numbers(geometry)
    assert shown.keys() == wanted.keys()
    for name, cells in wanted.items():
        kept = {
            index: value
            for index, (value, outside) in shown[name].items()
            if not (outside and name in ("dx", "dxflip"))
        }
        assert kept == cells, name
    assert shown["dx"] == shown["dxflip"]  # in the padding too
    assert shown["dx"].keys() == shown["x"].keys()


def locate(tab, cell):
    name, index = cell
    return tab.locator(f'td[data-m="{name}"][data-i="{",".join(map(str, index))}"]')


def expect_ties(tab, edges, *cells):
    for name, tied in library_ties(edges, *cells).items():
        assert cells_of_class(tab, name) == tied, (cells, name)


@pytest.mark.parametrize("layer", LAYERS)
def test_numbers_are_the_librarys(opened, layer):
    expect_numbers(opened(layer), geometry_of(layer))


@pytest.mark.parametrize("layer", LAYERS)
def test_pointing_shows_what_the_library_ties(opened, layer):
    tab, geometry = opened(layer), geometry_of(layer)
    edges = library_edges(geometry)
    for name, cells in library_numbers(geometry).items():
        places = list(cells)
        for index in {places[0], places[len(places) // 2], places[-1]}:
            locate(tab, (name, index)).hover()
            expect_ties(tab, edges, (name, index))


@pytest.mark.parametrize("layer", ["remainders", "dilated"])
def test_the_ties_of_every_cell(opened, layer):
    tab, edges = opened(layer), library_edges(geometry_of(layer))
    scripted = """td => td.dispatchEvent(
        new PointerEvent("pointerover", {bubbles: true, pointerType: "mouse"}))"""
    for name in ("x", "w", "y", "up"):
        for index in shown_cells(tab, f'td[data-m="{name}"]')[name]:
            locate(tab, (name, index)).evaluate(scripted)
            expect_ties(tab, edges, (name, index))


@pytest.mark.parametrize("name", ["cols", "dcols"])
@pytest.mark.parametrize("layer", ["padded", "dilated"])
def test_the_head_of_a_column_stands_for_all_of_it(opened, layer, name):
    tab, geometry = opened(layer), geometry_of(layer)
    edges = library_edges(geometry)
    for o in np.ndindex(geometry.out):
        tab.locator(f'th[data-m="{name}"][data-i="{o[0]},{o[1]}"]').hover()
        taps = np.ndindex(geometry.C, *geometry.kernel)
        expect_ties(tab, edges, *((name, (*tap, *o)) for tap in taps))
        said = tab.locator(f'[data-sum="{name}"]').text_content()
        assert said.startswith(f"column ({o[0]}, {o[1]}) of {name}")


def test_the_keyboard_reaches_the_head_of_a_column(opened):
    tab, geometry = opened("padded"), geometry_of("padded")
    edges = library_edges(geometry)
    locate(tab, ("cols", (0, 0, 0, 0, 1))).click()
    tab.keyboard.press("Escape")
    tab.keyboard.press("ArrowUp")
    tab.keyboard.press("ArrowUp")  # there is none
    taps = list(np.ndindex(geometry.C, *geometry.kernel))
    expect_ties(tab, edges, *(("cols", (*tap, 0, 1)) for tap in taps))
    tab.keyboard.press("ArrowRight")
    expect_ties(tab, edges, *(("cols", (*tap, 0, 2)) for tap in taps))
    tab.keyboard.press("Enter")
    locate(tab, ("x", (1, 1, 1))).hover()
    expect_ties(tab, edges, *(("cols", (*tap, 0, 2)) for tap in taps))
    tab.keyboard.press("ArrowDown")
    expect_ties(tab, edges, ("cols", (0, 0, 0, 0, 2)))
    tab.keyboard.press("Enter")  # what is held moves with the focus, and so is let go here
    locate(tab, ("x", (1, 1, 2))).hover()
    expect_ties(tab, edges, ("x", (1, 1, 2)))


def written_sums(tab):
    """Return what the panel says: {matrix: (value, the sum as it is written out)}."""
    said = {}
    for line in tab.locator("[data-sum]").all():
        head = line.locator("b").text_content()
        written = line.evaluate("p => p.childNodes[1].nodeValue ?? ''").removeprefix(" = ")
        value, terms = (
            text.replace("\N{MINUS SIGN}", "-") for text in (head.split(" = ")[1], written)
        )
        said[line.get_attribute("data-sum")] = (int(value), terms)
    return said


def evaluated(terms):
    factors = [term.split("·") for term in terms.split(" + ")]
    return sum(np.prod([int(factor.strip("()")) for factor in term]) for term in factors)


@pytest.mark.parametrize("layer", ["remainders", "padded", "dilated"])
def test_sums_are_written_out(opened, layer):
    tab, shown = opened(layer), library_numbers(geometry_of(layer))
    checked = set()
    for name in ("y", "dcols", "dw", "dx", "up", "flip"):
        for index in list(shown[name])[:: max(1, len(shown[name]) // 4)]:
            locate(tab, (name, index)).hover()
            said = written_sums(tab)
            assert said[name][0] == shown[name][index]
            for one in said.keys() - {"x", "w", "dout"}:
                value, terms = said[one]
                if "[" not in terms:  # else it is a copy of the one cell that is named
                    assert (evaluated(terms) if terms else 0) == value
                    checked |= {one} if terms else set()
    assert checked >= {"y", "dcols", "dw", "dxflip"}


def test_a_cell_that_no_window_holds_says_so(opened):
    tab = opened("remainders")
    locate(tab, ("dx", (0, 7, 0))).hover()
    assert "no window holds this cell" in tab.locator('[data-sum="dx"]').text_content()
    assert cells_of_class(tab, "into") == set()


def test_a_click_holds_and_escape_lets_go(opened):
    tab = opened("plain")
    locate(tab, ("x", (0, 1, 2))).click()
    locate(tab, ("x", (0, 0, 0))).hover()
    assert cells_of_class(tab, "self") == {("x", (0, 1, 2))}
    tab.keyboard.press("Escape")
    locate(tab, ("x", (0, 3, 4))).hover()
    assert cells_of_class(tab, "self") == {("x", (0, 3, 4))}


def test_keyboard_alone(opened):
    tab, edges = opened("padded"), library_edges(geometry_of("padded"))
    tab.locator("#examples button").last.focus()
    tab.keyboard.press("Tab")
    expect_ties(tab, edges, ("x", (0, -2, -1)))
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight", "ArrowUp", "ArrowDown"):
        tab.keyboard.press(key)
    expect_ties(tab, edges, ("x", (0, 0, 1)))
    tab.keyboard.press("End")
    tab.keyboard.press("ArrowRight")  # there is none
    expect_ties(tab, edges, ("x", (0, 0, 6)))
    tab.keyboard.press("Tab")
    expect_ties(tab, edges, ("x", (1, -2, -1)))
    tab.keyboard.press("Shift+Tab")
    expect_ties(tab, edges, ("x", (0, 0, 6)))
    tab.keyboard.press("Enter")
    locate(tab, ("x", (1, 1, 1))).hover()
    expect_ties(tab, edges, ("x", (0, 0, 6)))


@pytest.mark.parametrize("layer", ["dilated", "padded"])
def test_on_a_phone(opened, layer):
    size = {"width": 390, "height": 844}
    tab = opened(layer, viewport=size, has_touch=True, is_mobile=True, color_scheme="dark")
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    edges = library_edges(geometry_of(layer))
    shown = library_numbers(geometry_of(layer))
    pointed = cells_of_class(tab, "self")
    locate(tab, ("x", (0, 0, 0))).evaluate(
        """td => td.dispatchEvent(
            new PointerEvent("pointerover", {bubbles: true, pointerType: "touch"}))"""
    )
    assert cells_of_class(tab, "self") == pointed  # a finger that scrolls points at nothing
    for name in ("x", "y", "dw", "up"):
        cell = (name, list(shown[name])[-1])
        locate(tab, cell).tap()
        expect_ties(tab, edges, cell)
        box = locate(tab, cell).bounding_box()
        assert min(box["width"], box["height"]) >= 24  # WCAG 2.2, target size
        assert tab.locator("#told").bounding_box()["height"] < 0.4 * size["height"]
    head = tab.locator("th.column").last
    head.tap()
    assert min(head.bounding_box()["width"], head.bounding_box()["height"]) >= 24
    assert tab.locator("[data-sum]").first.text_content().startswith("column (")
    assert tab.evaluate("document.documentElement.scrollWidth") == 390


def test_the_page_stays_where_it_is_when_the_sum_grows(opened):
    tab = opened("padded", viewport={"width": 1280, "height": 700})
    tab.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    tops = set()
    for cell in [("flip", (0, 0, 0, 0)), ("dxflip", (1, 0, 3)), ("up", (0, 0, 0))]:
        locate(tab, cell).evaluate("td => td.click()")
        tops.add(locate(tab, ("dxflip", (0, 0, 0))).bounding_box()["y"])
    assert len(tops) == 1


def set_fields(tab, **fields):
    for name, value in fields.items():
        tab.locator(f"#{name}").fill(str(value))


def test_settings_make_another_layer(opened):
    tab = opened("plain")
    fields = geometry_of("dilated")
    set_fields(tab, channels=fields.C, height=7, width=6, filters=1, top=1, bottom=1, left=1)
    set_fields(tab, right=1, kernel_height=3, kernel_width=2, stride_height=2)
    set_fields(tab, dilation_height=2, dilation_width=3)
    expect_numbers(tab, fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kernel_height": 0}, "weights w: height must be a whole number from 1 to 5"),
        ({"width": ""}, "input x: width must be a whole number from 1 to 12"),
        ({"top": 1.5}, "padding: top must be a whole number from 0 to 4"),
        ({"kernel_width": 3, "dilation_width": 3}, "reaches over 7 cells in width"),
        ({"height": 12, "width": 12, "channels": 3}, "up to 1000 can be read here"),
    ],
)
def test_settings_that_cannot_be_are_explained(opened, fields, message):
    tab = opened("plain")
    before = {name: tab.locator(f"#{name}").input_value() for name in fields}
    set_fields(tab, **fields)
    assert message in tab.get_by_role("alert").text_content()
    assert not tab.locator("#matrices").is_visible()
    assert tab.locator('[aria-invalid="true"]').get_attribute("id") in fields
    set_fields(tab, **before)
    assert tab.locator('[aria-invalid="true"]').count() == 0
    assert not tab.locator("#complaint").is_visible()
    expect_numbers(tab, geometry_of("plain"))


def test_bounds_are_the_modules(opened):
    tab = opened("plain")
    for name, bounds in LIMITS.items():
        field = tab.locator(f"#{name}")
        assert tuple(int(field.get_attribute(end)) for end in ("min", "max")) == bounds
    assert tab.evaluate("START.most_cells") == MOST_CELLS


def test_examples_are_layers(opened):
    tab = opened("single")
    buttons = tab.locator("#examples button").all()
    for button in buttons:
        button.click()
        assert not tab.locator("#complaint").is_visible()
        assert shown_cells(tab)["dx"] == shown_cells(tab)["dxflip"]
    assert len(buttons) >= 4


def test_every_grid_has_a_name_and_one_stop(opened):
    tab = opened("padded")
    grids = tab.get_by_role("grid").all()
    names = [grid.get_attribute("aria-label") for grid in grids]
    assert len(set(names)) == len(names) == 21
    assert all(grid.locator('td[tabindex="0"]').count() == 1 for grid in grids)
    assert tab.get_by_role("gridcell", name="y[2, 1, 0] is").count() == 1
    assert tab.get_by_label("channels").input_value() == "2"


CONTRAST = """() => {
    const parts = (text) => text.match(/[0-9.]+/g).map(Number);
    const light = (v) => (v /= 255, v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const shine = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
    const behind = (e) => { for (; e; e = e.parentElement) {
        const c = parts(getComputedStyle(e).backgroundColor);
        if (c.length === 3 || c[3] > 0) return c; } return [255, 255, 255]; };
    const texts = [...document.querySelectorAll("td, th, p, label, legend, button, h3, li, input")];
    return Math.min(...texts.filter((e) => e.checkVisibility()).map((e) => {
        const [a, b] = [shine(parts(getComputedStyle(e).color)), shine(behind(e))];
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); })); }"""


@pytest.mark.parametrize("x_cell", [(0, 1, 2), (1, -2, 0)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(opened, scheme, x_cell):
    tab = opened("padded", color_scheme=scheme)
    locate(tab, ("x", x_cell)).hover()
    assert tab.evaluate(CONTRAST) >= 4.5  # WCAG 2, level AA
