"""What the paper states, as checks over the study's outcomes."""

from tradeoff.core import Claim, Finding, Outcomes, Verdict
from tradeoff.core.claims import all_hold
from tradeoff.core.errors import MissingOutcome
from tradeoff.core.statistics import better, compare, times_better

Numbers = dict[str, int | float | str]
OURS = ("mlra2", "mlra4")
RANKS = 4
OUTPUT_ERROR, GRADIENT_ERROR = 1e-5, 1e-4
WORSE = 0.03
"""Part of MLA's loss by which MLRA-4 may be worse before the claim fails."""


def a_third_of_the_traffic(outcomes: Outcomes) -> Finding:
    """Bytes of MLA's cache over those of both variants, for a rank of four: exact counts."""
    cells = {name: outcomes.where(name, part="traffic", ranks=RANKS) for name in ("mla", *OURS)}
    sizes = {name: cell.mean("kv_bytes_per_token") for name, cell in cells.items()}
    exact = all(sizes["mla"] == 3 * sizes[name] for name in OURS)
    numbers: Numbers = {f"ratio of {name}": sizes["mla"] / sizes[name] for name in OURS}
    return Finding(verdict=Verdict.HOLDS if exact else Verdict.FAILS, numbers=numbers)


def no_more_cache(outcomes: Outcomes) -> Finding:
    """On a single rank the caches are equally large."""
    cells = {name: outcomes.where(name, part="traffic", ranks=1) for name in ("mla", *OURS)}
    sizes = {name: cell.mean("kv_bytes_per_token") for name, cell in cells.items()}
    equal = len(set(sizes.values())) == 1
    return Finding(verdict=Verdict.HOLDS if equal else Verdict.FAILS, numbers={**sizes})


def _longest(outcomes: Outcomes) -> int:
    contexts = [int(each or 0) for each in outcomes.where("mla", part="decode").settings("context")]
    if not contexts:
        raise MissingOutcome("no cache was read")
    return max(contexts)


def faster_than_sharded(outcomes: Outcomes) -> Finding:
    """At the longest context, against MLA on as many ranks."""
    cell = outcomes.where(part="decode", ranks=RANKS, context=_longest(outcomes))
    theirs = cell.where("mla")
    return all_hold(
        {
            "of mlra4": times_better(cell.where("mlra4"), theirs, "decode_seconds", 1.6),
            "of mlra2": times_better(cell.where("mlra2"), theirs, "decode_seconds", 2.0),
        }
    )


def faster_than_data_parallel(outcomes: Outcomes) -> Finding:
    """At the longest context, a rank of four against a device that serves MLA alone."""
    cell = outcomes.where(part="decode", context=_longest(outcomes))
    return times_better(cell.where("mlra4", ranks=RANKS), cell.where("mla", ranks=1), "decode_seconds", 2.8)


def ranks_agree(outcomes: Outcomes) -> Finding:
    """The worst of all variants and numbers of ranks."""
    cells = outcomes.where(part="ranks")
    if not len(cells):
        raise MissingOutcome("no model was shared")
    output, gradient = max(cells.values("output_error")), max(cells.values("gradient_error"))
    agree = output < OUTPUT_ERROR and gradient < GRADIENT_ERROR
    numbers: Numbers = {"output error": output, "gradient error": gradient, "runs": len(cells)}
    return Finding(verdict=Verdict.HOLDS if agree else Verdict.FAILS, numbers=numbers)


def one_sum_a_layer(outcomes: Outcomes) -> Finding:
    """Bytes that MLRA's ranks give into sums for a token and layer, beside those of MHA's."""
    found = {
        f"{name} on {ranks}": outcomes.where(name, part="ranks", ranks=ranks).mean("allreduce_bytes")
        for name in ("mha", *OURS)
        for ranks in outcomes.where(name, part="ranks").settings("ranks")
    }
    if not any(name.startswith("mha") for name in found) or len(found) < 2:
        raise MissingOutcome("needs mha and mlra on several ranks")
    equal = len(set(found.values())) == 1
    return Finding(verdict=Verdict.HOLDS if equal else Verdict.FAILS, numbers={**found})


def as_good_as_mla(outcomes: Outcomes) -> Finding:
    """The loss of MLRA-4 is at most 3 % above MLA's."""
    ours, theirs = outcomes.where("mlra4", part="quality").paired(
        outcomes.where("mla", part="quality"), "loss"
    )
    limit = [(1 + WORSE) * loss for loss in theirs]
    finding = compare(limit, ours)
    low = {name: value for name, value in finding.numbers.items() if name in ("seeds", "low", "high")}
    return Finding(
        verdict=finding.verdict,
        numbers={
            "mlra4": sum(ours) / len(ours),
            "mla": sum(theirs) / len(theirs),
            "room below the limit": finding.numbers["difference"],
            **low,
        },
    )


def better_than_gla4(outcomes: Outcomes) -> Finding:
    """MLRA-4 against GLA-4, which reads as much."""
    return better(outcomes.where("mlra4", part="quality"), outcomes.where("gla4", part="quality"), "loss")


def best_of_all(outcomes: Outcomes) -> Finding:
    """MLRA-4 against every variant that is no MLRA."""
    quality = outcomes.where(part="quality")
    others = [name for name in quality.variants if name not in OURS]
    if not others:
        raise MissingOutcome("nothing was trained beside")
    return all_hold(
        {f"beside {name}": better(quality.where("mlra4"), quality.where(name), "loss") for name in others}
    )


CLAIMS = (
    Claim(
        "On four ranks each reads exactly a third of the cache that MLA's ranks read, in the paper's model",
        "abstract: 4-way tensor parallelism (576 / 192 numbers)",
        a_third_of_the_traffic,
    ),
    Claim("On one rank the cache is as large as MLA's", "the method's definition", no_more_cache),
    Claim(
        "On four ranks MLRA-4 attends more than 1.6 times, MLRA-2 more than 2 times faster than MLA on four",
        "abstract: 2.8 times over MLA on an H100; the bounds for a processor are ours",
        faster_than_sharded,
    ),
    Claim(
        "On four ranks MLRA-4 attends more than 2.8 times faster than MLA under data parallelism",
        "abstract: 2.8 times, measured against data-parallel MLA on an H100",
        faster_than_data_parallel,
    ),
    Claim(
        "Processes that share a model give the logits and gradients of one process",
        "the method's definition (1e-5 and 1e-4 in float32)",
        ranks_agree,
    ),
    Claim(
        "The sum over branches costs no communication beyond the one sum that multi-head attention needs",
        "method: the sum merges with that of the output projection",
        one_sum_a_layer,
    ),
    Claim(
        "At equal parameters the loss of MLRA-4 is at most 3 % above MLA's",
        "abstract: perplexity; the margin for small models is ours",
        as_good_as_mla,
    ),
    Claim(
        "At equal parameters MLRA-4 has a lower loss than GLA-4, which reads as much",
        "abstract: perplexity",
        better_than_gla4,
    ),
    Claim(
        "At equal parameters MLRA-4 has a lower loss than every other variant",
        "abstract: state-of-the-art perplexity, at 2.9 billion parameters",
        best_of_all,
    ),
)
