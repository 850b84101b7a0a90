"""The table that the command prints."""

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.table import Table

from .training import Run


def run_table(runs: Mapping[str, tuple[Run, float]]) -> Table:
    """Trainings by router, each with its wall-clock seconds."""
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("router")
    for title in ("loss", "active", "deviation", "by layer", "p", "MFLOP/token", "seconds"):
        table.add_column(title, justify="right")
    for name, (run, seconds) in runs.items():
        layers = range(len(run.per_layer[0]) if run.per_layer else 0)
        table.add_row(
            name,
            f"{run.loss:.3f}",
            f"{run.last_active:.2f}" if run.active else "",
            f"{run.last_deviation:.2f}" if run.active else "",
            " ".join(f"{run.layer_active(layer):.1f}" for layer in layers),
            f"{run.threshold[-1]:.3f}" if run.threshold else "",
            f"{run.flops_per_token / 1e6:.3f}",
            f"{seconds:.1f}",
        )
    return table
