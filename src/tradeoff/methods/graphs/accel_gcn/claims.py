"""What the paper says, as checks over the outcomes of the study."""

import math
from functools import partial

from tradeoff.core import Claim, Finding, Outcomes, Verdict
from tradeoff.core.errors import MissingOutcome
from tradeoff.core.statistics import compare, geometric_mean

_LOW_DEGREE = 32  # non-zeros a warp: graphs of smaller average degree are those that the block level is for
_EQUAL_LOSS = 1e-4


def _graphs(outcomes: Outcomes, job: str) -> list[str]:
    """Names of the graphs of a job, in their order.

    Raises:
        MissingOutcome: there is none.
    """
    names = list(dict.fromkeys(str(outcome.trial.setting["graph"]) for outcome in outcomes.where(job=job)))
    if not names:
        raise MissingOutcome(f"no outcome of a {job}")
    return names


def smaller_metadata(outcomes: Outcomes) -> Finding:
    """Warp-level over block-level bytes on graphs of low degree: near 12, the warps of a block."""
    numbers: dict[str, float] = {}
    for name in _graphs(outcomes, "partition"):
        cells = outcomes.where(job="partition", graph=name)
        if cells.where("accel-gcn").mean("average_degree") < _LOW_DEGREE:
            ours, warps = (cells.where(v).values("metadata_bytes") for v in ("accel-gcn", "warp-chunks"))
            numbers[f"ratio of {name}"] = min(b / a for a, b in zip(ours, warps, strict=True))
    if not numbers:
        raise MissingOutcome("no graph of low average degree")
    verdict = Verdict.HOLDS if min(numbers.values()) >= 9 else Verdict.FAILS
    return Finding(verdict=verdict, numbers={**numbers, "threshold": 9})


def better_balance(outcomes: Outcomes) -> Finding:
    """The schedule ends before that of warp-level groups on every graph of low degree, at every seed."""
    numbers: dict[str, float | str | int] = {}
    holds = True
    for name in _graphs(outcomes, "partition"):
        cells = outcomes.where(job="partition", graph=name)
        ours, warps = cells.where("accel-gcn").paired(cells.where("warp-chunks"), "imbalance")
        numbers[f"{name}, blocks"], numbers[f"{name}, warps"] = max(ours), min(warps)
        if cells.where("accel-gcn").mean("average_degree") < _LOW_DEGREE:
            holds &= all(a < b for a, b in zip(ours, warps, strict=True))
    return Finding(verdict=Verdict.HOLDS if holds else Verdict.FAILS, numbers=numbers)


def equal_training(outcomes: Outcomes) -> Finding:
    """The last losses of training by blocks and by torch.sparse differ by rounding only."""
    numbers: dict[str, float] = {}
    for name in _graphs(outcomes, "training"):
        cells = outcomes.where(job="training", graph=name)
        ours, theirs = cells.where("accel-gcn").paired(cells.where("torch"), "training_loss")
        numbers[f"difference on {name}"] = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    holds = max(numbers.values()) <= _EQUAL_LOSS
    return Finding(
        verdict=Verdict.HOLDS if holds else Verdict.FAILS, numbers={**numbers, "limit": _EQUAL_LOSS}
    )


def faster_than(peer: str, factor: float, outcomes: Outcomes) -> Finding:
    """The peer's time on the same GPU over ours, by the interval of its geometric mean over graphs.

    Each is compared with the product by rows, with which it took turns: seconds of one trial say nothing
    about those of another. The widths and seeds of a graph are one value, since a graph that suits us does so
    at each of them.

    Raises:
        MissingOutcome: there was no GPU, or the peer was not there.
    """
    cells = outcomes.where(job="product", device="cuda")
    if not cells:
        raise MissingOutcome("no product was timed on a GPU")
    if not cells.where(peer):
        raise MissingOutcome(f"{peer} was not timed")
    ratios: dict[str, list[float]] = {}
    for cell in cells.where(peer).cells():
        setting = cell[0].trial.setting
        same = cells.where("accel-gcn", graph=setting["graph"], width=setting["width"])
        ours, theirs = same.paired(cell, "slowdown")
        ratios.setdefault(str(setting["graph"]), []).extend(b / a for a, b in zip(ours, theirs, strict=True))
    speedups = {name: geometric_mean(values) for name, values in ratios.items()}
    logs = [math.log(value) for value in speedups.values()]
    finding = compare(logs, [math.log(factor)] * len(logs))
    numbers: dict[str, float | str | int] = {"speedup": geometric_mean(speedups.values()), "paper": factor}
    numbers |= {f"speedup on {name}": value for name, value in speedups.items()}
    return Finding(verdict=finding.verdict, numbers=numbers)


CLAIMS = (
    Claim(
        "One record a block needs at least 9 times fewer bytes than one a warp on graphs of low degree.",
        "section III (block-level partition)",
        smaller_metadata,
    ),
    Claim(
        "Blocks of equal degree share the work more evenly than warp-level groups on graphs of low degree.",
        "section III (degree sorting and block-level partition)",
        better_balance,
    ),
    Claim("Training gives the losses that torch.sparse gives, to 1e-4.", "section IV", equal_training),
    Claim("1.17 times as fast as cuSPARSE on average.", "abstract", partial(faster_than, "cusparse", 1.17)),
    Claim(
        "1.86 times as fast as GNNAdvisor on average.", "abstract", partial(faster_than, "gnnadvisor", 1.86)
    ),
    Claim(
        "2.94 times as fast as GraphBLAST on average.", "abstract", partial(faster_than, "graphblast", 2.94)
    ),
)
