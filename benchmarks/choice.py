"""Ask of random layers whether "auto" takes the quickest way.

From the repository root::

    python benchmarks/choice.py                                     # draw layers and print a table
    python benchmarks/choice.py --layers 90 --seed 4 --output FILE  # keep every figure as JSON

*Regret* is the time of the way that "auto" takes over the time of the quickest one: 1 where that is
the same. Each pass of each layer runs all ways that there are turn about, as contestants of the
benchmark do.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import geometric_mean
from typing import Any, Literal, cast

import numpy as np

import im2col_conv as ic
from im2col_conv.cli.benchmark.data import random_data
from im2col_conv.cli.benchmark.layers import Layer, Layout
from im2col_conv.cli.benchmark.record import circumstances, write
from im2col_conv.cli.benchmark.timing import turn_about
from im2col_conv.engine.choice import way_of
from im2col_conv.engine.direct.plan import covers
from im2col_conv.engine.machine.memory import why_not_run
from im2col_conv.engine.openblas import private_blas

Pass = Literal["forward", "weight_grad", "input_grad"]
Case = dict[str, Any]

LAYOUTS: tuple[Layout, ...] = ("channels_first", "channels_last")
FLOPS = (2 * 10**6, 6 * 10**8)  # of a pass
TURNS = 5


def draw_layer(rng: random.Random, flops: tuple[float, float] = FLOPS) -> Layer:
    """Return a layer of one to three axes that could stand in a network, lopsided as a rule."""
    while True:
        axes = rng.choice([1, 2, 2, 2, 2, 3])
        largest, kernels = {
            1: (2000, [1, 3, 5, 9, 15]),
            2: (150, [1, 3, 3, 3, 5, 7]),
            3: (32, [1, 3, 3]),
        }[axes]
        kernel, stride = rng.choice(kernels), rng.choice([1, 1, 1, 2, 3])
        C, F = (rng.choice([1, 2, 3, 4, 8, 16, 24, 32, 64, 96, 128, 256]) for _ in range(2))
        groups = rng.choice(
            [1, 1, 1, 1, *(g for g in (2, 4, 8, 16, 32, 64) if C % g == F % g == 0)]
        )
        layer = Layer(
            name="",
            images=rng.choice([1, 2, 4, 8, 16, 32]),
            channels=C,
            size=tuple(rng.randint(4, largest // rng.choice([1, 3, 8])) for _ in range(axes)),
            filters=F,
            kernel=(kernel,) * axes,
            stride=(stride,) * axes,
            padding=(rng.choice([0, kernel // 2]),) * axes,
            groups=groups,
        )
        if min(layer.out) > 0 and flops[0] <= geometry_of(layer).flops <= flops[1]:
            return replace(layer, name=name_of(layer))


def geometry_of(layer: Layer) -> ic.ConvGeometry:
    """Return the geometry of a layer, whatever its layout."""
    x_shape = (layer.images, layer.channels, *layer.size)
    options = {name: value for name, value in layer.geometry.items() if name != "layout"}
    return ic.ConvGeometry.from_shapes(x_shape, layer.w_shape, **options)


def name_of(layer: Layer) -> str:
    """Return the sizes of a layer: N,C,H x W -> F, kernel, stride, padding, groups."""
    size = " x ".join(map(str, layer.size))
    rest = (layer.filters, layer.kernel[0], layer.stride[0], layer.padding[0], layer.groups)
    return f"{layer.images},{layer.channels},{size} -> {','.join(map(str, rest))}"


def cases_of(layer: Layer) -> Iterator[Case]:
    """Yield what each pass took, each way, and which "auto" takes."""
    x, w, b, dout = random_data(layer)
    options = layer.geometry
    works: dict[Pass, Callable[[str], object]] = {
        "forward": lambda way: ic.conv(x, w, b, algorithm=way, **options),
        "weight_grad": lambda way: ic.conv_weight_grad(dout, x, w.shape, algorithm=way, **options),
        "input_grad": lambda way: ic.conv_input_grad(dout, w, x.shape, algorithm=way, **options),
    }
    geometry = geometry_of(layer)
    for each, work in works.items():
        measured = turn_about({way: partial(work, way) for way in ways_of(each, geometry)}, TURNS)
        seconds = {way: each_way.lower_quartile for way, each_way in measured.items()}
        taken = way_of(each, "auto", geometry, layer.layout, np.dtype(layer.dtype))
        regret = seconds[taken] / min(seconds.values())
        yield {
            "layer": layer.name,
            "layout": layer.layout,
            "pass": each,
            "auto": taken,
            "seconds": seconds,
            "regret": regret,
        }


def ways_of(each: Pass, geometry: ic.ConvGeometry) -> list[str]:
    """Return the exact ways in which a pass can run here."""
    runs = why_not_run() is None and covers(each, geometry)
    library = private_blas() is not None
    return ["im2col", *["implicit"] * library, *["direct"] * runs]


def run(layers: int, seed: int, workers: int, flops: tuple[float, float] = FLOPS) -> Case:
    """Return the record of so many layers, in both layouts."""
    rng = random.Random(seed)
    drawn = [draw_layer(rng, flops) for _ in range(layers)]
    with ic.set_workers(workers):
        cases = [
            case
            for layer in drawn
            for layout in LAYOUTS
            for case in cases_of(replace(layer, layout=layout))
        ]
    return {
        "measure": "choice",
        **circumstances([], [], workers),
        "layers": {layer.name: asdict(layer) for layer in drawn},
        "seed": seed,
        "cases": cases,
    }


def table(record: Case) -> str:
    """Return the regret by layout and pass, with the worst layer."""
    lines = [
        "| layout | pass | cases | auto takes the quickest | regret | worst | where |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    cases = cast("list[Case]", record["cases"])
    for layout, each in sorted({(case["layout"], case["pass"]) for case in cases}):
        some = [case for case in cases if (case["layout"], case["pass"]) == (layout, each)]
        lines.append(f"| {layout} | {each} | {row_of(some)} |")
    lines.append(f"| all | | {row_of(cases)} |")
    return "\n".join(lines)


def row_of(cases: list[Case]) -> str:
    """Return the columns of some cases."""
    right = sum(case["regret"] == 1 for case in cases) / len(cases)
    mean = geometric_mean([case["regret"] for case in cases])
    worst = max(cases, key=lambda case: float(case["regret"]))
    return f"{len(cases)} | {right:.0%} | {mean:.2f} | {worst['regret']:.1f} | {worst['layer']}"


def main() -> None:
    parser = argparse.ArgumentParser(description='Ask whether "auto" takes the quickest way.')
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=ic.get_workers())
    parser.add_argument("--output", type=Path, help="keep every figure here, as JSON")
    arguments = parser.parse_args()
    record = run(arguments.layers, arguments.seed, arguments.workers)
    print(table(record))
    if arguments.output:
        write(arguments.output, record)


if __name__ == "__main__":
    main()
