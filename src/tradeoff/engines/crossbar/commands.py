"""Run your network in resistive crossbars with stuck cells, and see what it costs.

Accuracy over chips of any fault rate, and crossbars, energy, area and latency of a network or of matrices.
"""

from __future__ import annotations

import json as json_
import sys
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from tradeoff.engines.crossbar import CrossbarConfig, CrossbarModel, CrossbarReport, FaultModel

app = typer.Typer(
    help="Networks in resistive crossbars: exact products with sliced cells, converters and stuck cells.",
    no_args_is_help=True,
    add_completion=False,
)

Rows = Annotated[int, typer.Option(help="Word lines of a crossbar.")]
Cols = Annotated[int, typer.Option(help="Bit lines of a crossbar.")]
CellBits = Annotated[int, typer.Option(help="Bits that a cell holds.")]
WeightBits = Annotated[int, typer.Option(help="Bits of an integer weight.")]
ActBits = Annotated[int, typer.Option(help="Bits of an integer input.")]
DacBits = Annotated[int, typer.Option(help="Bits of an input that a word line takes in a cycle.")]
AdcBits = Annotated[str, typer.Option(help="Bits of a converter, or ideal.")]
AdcRange = Annotated[str, typer.Option(help="saturate or scaled.")]
EncodingOption = Annotated[str, typer.Option(help="offset, twos_complement or differential.")]
Components = Annotated[
    Path | None, typer.Option(help="YAML table of parts; that of ISAAC at 32 nm when not given.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


@app.command()
def simulate(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Option(help="minilm, the folder of a BERT encoder, or an architecture such as lenet_300_100."),
    ],
    task: Annotated[str, typer.Option(help="debian-sections, fashion-mnist, digits, or a folder of images.")],
    weights: Annotated[
        Path | None, typer.Option(help="Of the trained classifier (safetensors); trained here if absent.")
    ] = None,
    fault_preset: Annotated[str | None, typer.Option(help="hfo2 or none.")] = None,
    rate: Annotated[
        list[float] | None, typer.Option(help="Part of the cells that is stuck; repeatable.")
    ] = None,
    on_share: Annotated[float, typer.Option(help="Part of the stuck cells at low resistance.")] = 0.84,
    sigma_program: Annotated[float, typer.Option(help="Spread of programmed conductances.")] = 0.0,
    sigma_read: Annotated[float, typer.Option(help="Spread of a conductance at each access.")] = 0.0,
    seeds: Annotated[int, typer.Option(min=1, help="Chips for each rate.")] = 10,
    examples: Annotated[int | None, typer.Option(min=1, help="Score on the first so many only.")] = None,
    rows: Rows = 128,
    cols: Cols = 128,
    cell_bits: CellBits = 1,
    weight_bits: WeightBits = 8,
    act_bits: ActBits = 8,
    dac_bits: DacBits = 1,
    adc_bits: AdcBits = "8",
    adc_range: AdcRange = "saturate",
    encoding: EncodingOption = "offset",
    slow: Annotated[
        bool, typer.Option("--slow", help="Go through every cycle and slice even where one product is exact.")
    ] = False,
    components: Components = None,
    out: Annotated[Path | None, typer.Option(help="Where the JSON document goes.")] = None,
    json: Json = False,
) -> None:
    """Accuracy of a network on chips with defects, beside that of the network itself, and what it takes."""
    from tradeoff.core.files import prepare_file
    from tradeoff.engines.crossbar import ComponentTable, to_crossbar

    config = _config(rows, cols, cell_bits, weight_bits, act_bits, dac_bits, adc_bits, adc_range, encoding)
    settings = list(_settings(fault_preset, rate, on_share, sigma_program, sigma_read))
    table = ComponentTable.load(components) if components else ComponentTable.load()
    if out is not None:
        prepare_file(out)
    load = (context.obj or {}).get("load_workload")
    if load is None:
        raise typer.BadParameter("these verbs were mounted without workloads; call tradeoff crossbar")
    with redirect_stdout(sys.stderr) if json else nullcontext():
        workload = load(model, task, weights, 0)
        test = _first(workload.test, examples)
        placed = to_crossbar(
            workload.model,
            config,
            calibration=_batches(workload.train, 512, 64),
            include=workload.layers,
            path="slow" if slow else "auto",
        )
        document = _sweep(placed, workload.model, test, settings, seeds)
    placed.reset()
    placed(test[[0]][0])
    report = placed.report(table)
    document = {
        "model": model,
        "task": task,
        "config": _plain(config),
        "examples": len(test),
        **document,
        "report": report.document(),
    }
    text = json_.dumps(document, indent=1, allow_nan=False)
    if out is not None:
        out.write_text(text + "\n")
    if json:
        typer.echo(text)
        return
    console = _console()
    console.print(_accuracies(document))
    console.print(_costs(report, "one example"))


@app.command()
def cost(
    shape: Annotated[
        list[str], typer.Option(help="OUTPUTSxINPUTS of a matrix, such as 768x3072; repeatable.")
    ],
    rows: Rows = 128,
    cols: Cols = 128,
    cell_bits: CellBits = 1,
    weight_bits: WeightBits = 8,
    act_bits: ActBits = 8,
    dac_bits: DacBits = 1,
    adc_bits: AdcBits = "8",
    encoding: EncodingOption = "offset",
    components: Components = None,
    json: Json = False,
) -> None:
    """What matrices take, and one product with each."""
    from tradeoff.engines.crossbar import ComponentTable, CrossbarReport, LayerReport, Placement, layer_cost

    config = _config(rows, cols, cell_bits, weight_bits, act_bits, dac_bits, adc_bits, "saturate", encoding)
    table = ComponentTable.load(components) if components else ComponentTable.load()
    layers = [
        LayerReport(text, sides, layer_cost(Placement(config, *sides), table), 0, 1, True)
        for text, sides in ((text, _shape(text)) for text in shape)
    ]
    report = CrossbarReport(tuple(layers), table.name)
    if json:
        typer.echo(json_.dumps(report.document(), indent=1, allow_nan=False))
    else:
        _console().print(_costs(report, "one product each"))


def _config(
    rows: int,
    cols: int,
    cell_bits: int,
    weight_bits: int,
    act_bits: int,
    dac_bits: int,
    adc_bits: str,
    adc_range: str,
    encoding: str,
) -> CrossbarConfig:
    from tradeoff.engines.crossbar import CrossbarConfig

    if adc_bits != "ideal" and not adc_bits.isdecimal():
        raise typer.BadParameter(f"a number of bits or ideal, not {adc_bits!r}", param_hint="--adc-bits")
    return CrossbarConfig(
        rows=rows,
        cols=cols,
        cell_bits=cell_bits,
        weight_bits=weight_bits,
        act_bits=act_bits,
        dac_bits=dac_bits,
        adc_bits=None if adc_bits == "ideal" else int(adc_bits),
        adc_range=adc_range,  # type: ignore[arg-type]
        encoding=encoding,  # type: ignore[arg-type]
    )


def _settings(
    preset: str | None, rates: list[float] | None, on_share: float, sigma_program: float, sigma_read: float
) -> Iterator[FaultModel]:
    """The statistics to run: the preset's, or a sweep over rates."""
    from dataclasses import replace

    from tradeoff.engines.crossbar import FaultModel

    if preset is not None and rates:
        raise typer.BadParameter("give either --fault-preset or --rate")
    found = (
        [FaultModel.preset(preset or "none")]
        if not rates
        else [FaultModel.at_rate(rate, on_share) for rate in rates]
    )
    for faults in found:
        yield replace(faults, sigma_program=sigma_program, sigma_read=sigma_read)


def _sweep(
    placed: CrossbarModel, model: Any, test: Any, settings: list[FaultModel], seeds: int
) -> dict[str, Any]:
    """Accuracies: of the network, without defects, and of chips."""
    from tradeoff.core.metric import measured, simulated
    from tradeoff.engines.crossbar import FaultModel
    from tradeoff.nn.fit import evaluate

    placed.reprogram(FaultModel())
    clean = evaluate(placed, test)
    rows = []
    for faults in settings:
        accuracies = []
        for seed in range(seeds):
            placed.reprogram(faults, seed=seed)
            accuracies.append(evaluate(placed, test))
        rows.append({"faults": asdict(faults), "accuracy": accuracies, "kind": "simulated"})
    return {
        "accuracy_float": measured(evaluate(model, test)).model_dump(mode="json"),
        "accuracy_without_defects": simulated(clean).model_dump(mode="json"),
        "chips": rows,
    }


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    return console


def _accuracies(document: dict[str, Any]) -> Table:
    from statistics import fmean, stdev

    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for heading in ("cells", "chips", "accuracy", "deviation", "least", "most"):
        table.add_column(heading, justify="left" if heading == "cells" else "right")
    for name, key in (("floating point", "accuracy_float"), ("no defects", "accuracy_without_defects")):
        table.add_row(name, "", f"{document[key]['value']:.4f}", "", "", "")
    for row in document["chips"]:
        faults, found = row["faults"], row["accuracy"]
        name = f"{faults['p_stuck_on']:.4g} stuck on, {faults['p_stuck_off']:.4g} off"
        spread = f"{stdev(found):.4f}" if len(found) > 1 else ""
        table.add_row(
            name, str(len(found)), f"{fmean(found):.4f}", spread, f"{min(found):.4f}", f"{max(found):.4f}"
        )
    return table


def _costs(report: CrossbarReport, work: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title=f"{work}; energy, area and latency are modelled ({report.table})",
        title_justify="left",
        box=SIMPLE_HEAD,
        header_style="bold",
        pad_edge=False,
    )
    headings = ("layer", "crossbars", "cells", "conversions", "products", "energy [nJ]", "area [mm2]")
    for heading in (*headings, "latency [us]"):
        table.add_column(heading, justify="left" if heading == "layer" else "right")

    def add(name: str, metrics: dict[str, Any]) -> None:
        value = {key: metric.value for key, metric in metrics.items()}
        table.add_row(
            name,
            *(f"{value[key]:,.0f}" for key in ("crossbars", "cells", "conversions", "products")),
            f"{1e9 * value['total_energy']:,.1f}",
            f"{value['area']:.3f}",
            f"{1e6 * value['total_latency']:.2f}",
        )

    for layer in report.layers:
        add(layer.name, layer.metrics())
    table.add_section()
    add("all", report.totals)
    return table


def _first(split: Any, count: int | None) -> Any:
    """The first examples of a split, as a split."""
    from torch import arange
    from torch.utils.data import TensorDataset

    return split if count is None else TensorDataset(*split[arange(min(count, len(split)))])


def _batches(split: Any, count: int, size: int) -> Iterator[Any]:
    """Inputs of the first examples, batch by batch."""
    from torch import arange
    from torch import split as parts

    for positions in parts(arange(min(count, len(split))), size):
        yield split[positions][0]


def _plain(config: CrossbarConfig) -> dict[str, Any]:
    return {**asdict(config), "pair": config.pair.__name__}


def _shape(text: str) -> tuple[int, int]:
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise typer.BadParameter(f"OUTPUTSxINPUTS, not {text!r}", param_hint="--shape")
    return int(sides[0]), int(sides[1])
