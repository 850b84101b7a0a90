"""Decoding on a CPU beside torch and transformers: products of a few rows, passes and whole loops.

    python benchmarks/decoding.py
    python benchmarks/decoding.py --rounds 3 --output out.json

SmolLM2-135M in float32, one thread, processor seconds.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from spmm import facts, replace_table

from tradeoff.core.timing import ProcessorClock, SideBySide, side_by_side
from tradeoff.data import checkpoints
from tradeoff.engines.decoding import NativeKernels, Oracle, generate, step_timings
from tradeoff.nn.decoder import TORCH, Decoder, from_pretrained, to_hf

HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs" / "results" / "benchmarks" / "decoding.json"
README = HERE / "README.md"
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 17)
CONTEXT = 200
GUESSES = 4
"""Tokens that the oracle guesses at a time."""


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    before = facts()
    model = from_pretrained(checkpoints.smollm2())
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **before,
        "rounds": options.rounds,
        "context": CONTEXT,
        "guesses": GUESSES,
        "linear": linear_rows(model, options.rounds),
        "steps": step_rows(model, options.rounds),
        "loops": loop_rows(model, options.tokens, options.rounds),
    }
    document["verdicts"] = verdicts(document)
    print(markdown(document))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    if options.output == RESULTS:
        replace_table(README, "decoding", markdown(document))


def linear_rows(model: Decoder, rounds: int) -> list[dict[str, Any]]:
    """All matrices of the model times 1 to 17 rows, and reading the matrices once."""
    matrices = [module.weight.detach() for module in model.modules() if isinstance(module, torch.nn.Linear)]
    matrices.append(model.embedding.weight.detach())
    native = NativeKernels().linear

    def products(linear: Callable[..., torch.Tensor], count: int) -> Callable[[], object]:
        inputs = {matrix.shape[1]: torch.randn(count, matrix.shape[1]) for matrix in matrices}

        def run() -> None:
            for matrix in matrices:
                linear(inputs[matrix.shape[1]], matrix, None)

        return run

    def read() -> None:
        for matrix in matrices:
            matrix.sum()

    candidates: dict[str, Callable[[], object]] = {"read": read}
    for count in ROWS:
        candidates[f"ours {count}"] = products(native, count)
        candidates[f"torch {count}"] = products(TORCH.linear, count)
    timed = timings(candidates, rounds)
    return [
        {
            "rows": count,
            "seconds": seconds(timed, {"ours": f"ours {count}", "torch": f"torch {count}", "read": "read"}),
            "torch": timed.ratio(f"torch {count}", f"ours {count}"),
            "relative": timed.ratio(f"ours {count}", "ours 1"),
            "read": timed.ratio(f"ours {count}", "read"),
        }
        for count in ROWS
    ]


def step_rows(model: Decoder, rounds: int) -> list[dict[str, Any]]:
    """Passes of the whole model behind a text, with native kernels and with torch's."""
    timed = {}
    for name, kernels in (("ours", NativeKernels()), ("torch", TORCH)):
        model.kernels = kernels
        timed[name] = step_timings(model, ROWS, CONTEXT, rounds)
    return [
        {
            "rows": count,
            "seconds": {name: found.timings[str(count)].median for name, found in timed.items()},
            "relative": {name: found.ratio(str(count), "1") for name, found in timed.items()},
        }
        for count in ROWS
    ]


def loop_rows(model: Decoder, tokens: int, rounds: int) -> dict[str, Any]:
    """Greedy texts of so many tokens behind a short prompt: seconds a token, the prompt included."""
    prompt = torch.arange(1000, 1004)
    peer = to_hf(model).eval()
    model.kernels = NativeKernels()
    text = generate(model, prompt, tokens).ids
    oracle = Oracle([prompt.tolist() + text], GUESSES)

    def loop(kernels: Any, proposer: Oracle | None = None) -> Callable[[], list[int]]:
        def run() -> list[int]:
            model.kernels = kernels
            return generate(model, prompt, tokens, proposer=proposer).ids

        return run

    def transformers() -> list[int]:
        out = peer.generate(
            prompt[None],
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return out[0, len(prompt) :].tolist()

    candidates: dict[str, Callable[[], list[int]]] = {
        "plain": loop(NativeKernels()),
        "plain, torch's products": loop(TORCH),
        "transformers": transformers,
        "oracle": loop(NativeKernels(), oracle),
    }
    same = {name: run() == text for name, run in candidates.items()}
    timed = timings(candidates, rounds)
    return {
        name: {
            "seconds": timed.timings[name].median / tokens,
            "ratio": timed.ratio(name, "plain"),
            "same": same[name],
        }
        for name in candidates
    }


def verdicts(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was aimed at, with the figure that decides."""
    linear = {row["rows"]: row for row in document["linear"]}
    steps = {row["rows"]: row for row in document["steps"]}
    oracle = document["loops"]["oracle"]["ratio"][0]
    beside_torch = min(linear[count]["torch"][0] for count in range(2, 9))
    return [
        at_most("products of 6 rows: times those of one row", linear[6]["relative"][0], 1.6),
        at_least("products of 2 to 8 rows: times as fast as torch's, at worst", beside_torch, 1.0),
        at_most("a pass of 5 rows: times one of one row", steps[5]["relative"]["ours"][0], 1.5),
        at_least(f"an oracle of {GUESSES} guesses: times as fast as the plain loop", 1 / oracle, 2.5),
    ]


def at_most(target: str, value: float, limit: float) -> dict[str, Any]:
    return {"target": f"{target} (at most {limit})", "value": value, "met": value <= limit}


def at_least(target: str, value: float, limit: float) -> dict[str, Any]:
    return {"target": f"{target} (at least {limit})", "value": value, "met": value >= limit}


def timings(candidates: Mapping[str, Callable[[], object]], rounds: int) -> SideBySide:
    with torch.inference_mode():
        return side_by_side(candidates, rounds=rounds, clock=ProcessorClock())


def seconds(timed: SideBySide, names: Mapping[str, str]) -> dict[str, float]:
    return {name: timed.timings[candidate].median for name, candidate in names.items()}


def markdown(document: Mapping[str, Any]) -> str:
    """Tables of README.md."""
    host = document["host"]
    lines = [
        f"SmolLM2-135M, float32, one thread, context {document['context']}; {host['processor']}, "
        f"{host['cores']} cores; {document['date'][:10]}.",
        "",
        *table(
            [
                "rows",
                "products, ms",
                "torch",
                "one row",
                "reading",
                "pass, ms",
                "one row",
                "torch's",
                "one row",
            ],
            [
                [
                    str(linear["rows"]),
                    milliseconds(linear["seconds"]["ours"]),
                    *(times(linear[name][0]) for name in ("torch", "relative", "read")),
                    milliseconds(step["seconds"]["ours"]),
                    times(step["relative"]["ours"][0]),
                    milliseconds(step["seconds"]["torch"]),
                    times(step["relative"]["torch"][0]),
                ]
                for linear, step in zip(document["linear"], document["steps"], strict=True)
            ],
        ),
        "",
        *table(
            ["loop", "ms a token", "times plain", "same text"],
            [
                [name, milliseconds(row["seconds"]), interval(row["ratio"]), "yes" if row["same"] else "no"]
                for name, row in document["loops"].items()
            ],
        ),
        "",
    ]
    for verdict in document["verdicts"]:
        word = "met" if verdict["met"] else "**not met**"
        lines.append(f"- {word}: {verdict['target']}: {verdict['value']:.2f}")
    return "\n".join(lines)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (headings, ["---"] * len(headings), *rows)]


def milliseconds(value: float) -> str:
    return f"{1e3 * value:.1f}"


def times(value: float) -> str:
    return f"{value:.2f}x"


def interval(ratio: Sequence[float]) -> str:
    return f"{ratio[0]:.2f}x ({ratio[1]:.2f} to {ratio[2]:.2f})"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=32, help="of a text (default 32)")
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"JSON file (default {RESULTS})")
    return parser.parse_args()


if __name__ == "__main__":
    main()
