"""Tables of sweeps and of coordinate checks, as the commands print them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, get_args

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from .coordinates import coordinate_check, residual_stream
from .errors import TransferError
from .layouts import Layout
from .training import Parametrization, Run, Setup, Sweep, sweep, train, windows


def sweep_table(
    setup: Setup,
    targets: Sequence[str],
    parametrizations: Sequence[str],
    start: int,
    seed: int,
    device: str,
    progress: Callable[[str], None],
) -> Table:
    """Sweep the base, then every target under every parametrization from the base's best rate on.

    Raises:
        TransferError: no such parametrization or layout, or no target.
    """
    _check_parametrizations(parametrizations)
    if not targets:
        raise TransferError("no target: give widths other than the base's, or layouts")
    for target in targets:  # before hours go into the base
        setup.decoder(Layout(target))
        setup.tokens(Layout(target))

    def evaluate(layout: Layout, name: Any, exponent: int) -> Run:
        run = train(setup, layout, name, 2.0**exponent, seed, device)
        progress(
            f"{name} {layout} at 2^{exponent}: " + ("diverged" if run.loss is None else f"{run.loss:.4f}")
        )
        return run

    base = sweep(partial(evaluate, Layout("base"), "complete-mue"), start)
    found: dict[tuple[str, str], Sweep] = {("base", "all"): base}
    for name in parametrizations:
        for target in targets:
            found[target, name] = sweep(partial(evaluate, Layout(target), name), base.best)
    return _table(found, base)


def _check_parametrizations(names: Sequence[str]) -> None:
    known = get_args(Parametrization)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise TransferError(f"no parametrization {', '.join(unknown)!r}; there are {', '.join(known)}")


def _table(found: Mapping[tuple[str, str], Sweep], base: Sweep) -> Table:
    exponents = sorted({exponent for each in found.values() for exponent in each.runs})
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("target")
    table.add_column("parametrization")
    for title in (*(f"2^{exponent}" for exponent in exponents), "best", "drift", "regret"):
        table.add_column(title, justify="right", no_wrap=True)
    for (target, name), each in found.items():
        losses = [each.runs.get(exponent) for exponent in exponents]
        table.add_row(
            target,
            name,
            *("" if run is None else "diverged" if run.loss is None else f"{run.loss:.3f}" for run in losses),
            f"{each.optimum:.2f}",
            f"{each.optimum - base.optimum:+.2f}",
            f"{100 * each.regret(base.best):.1f} %",
        )
    return table


def coordinate_table(
    setup: Setup, sizes: Mapping[str, Sequence[str]], parametrizations: Sequence[str], rate: float, steps: int
) -> Table:
    """Slopes for each axis and parametrization.

    Raises:
        TransferError: no such parametrization, a size that is no number, or no axis with two sizes.
    """
    _check_parametrizations(parametrizations)
    axes = {letter: listed for letter, listed in sizes.items() if len(listed) > 1}
    if not axes:
        raise TransferError("a slope needs two sizes or more, of width or depth")
    for letter, listed in axes.items():
        for size in listed:
            setup.decoder(Layout(f"{letter}{size}"))
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for title in ("axis", "parametrization", "first block", "last block", "logits"):
        table.add_column(title)
    text = windows(setup)[0]
    step = torch.arange(setup.batch)
    batches = [text[step + setup.batch * index] for index in range(steps + 1)]
    for letter, listed in axes.items():
        for name in parametrizations:
            numbers = [float(size) for size in listed]

            def build(size: float, seed: int, letter: str = letter, name: Any = name) -> Any:
                return setup.build(Layout(f"{letter}{size:g}"), name, rate, seed)

            slopes = coordinate_check(build, numbers, batches, residual_stream).slopes()
            axis = "width" if letter == "w" else "depth"
            table.add_row(
                f"{axis} {', '.join(listed)}", name, *(f"{slope:+.2f}" for slope in slopes.values())
            )
    return table
