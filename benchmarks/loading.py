"""Reading a checkpoint and writing with it, in processes of their own: seconds and memory, beside transformers.

    python benchmarks/loading.py

SmolLM2-135M in float32 from a safetensors folder that is in the page cache, one thread, processor seconds. What a
process holds before it reads (Python, torch, transformers) is taken off its memory.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from decoding import replace_table, table
from spmm import facts

HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs" / "results" / "benchmarks" / "loading.json"
README = HERE / "README.md"
CARD = HERE.parent / "src" / "tradeoff" / "methods" / "language_models" / "medusa" / "card.md"
CANDIDATES = ("tradeoff", "tradeoff, three heads", "transformers")
PROMPT = list(range(1000, 1064))
GUESSED = 4096
FIELDS = ("load_seconds", "load_bytes", "kept_bytes", "token_seconds", "decode_bytes")


def main() -> None:
    options = arguments()
    if options.child:
        print(json.dumps(measure(options.child, options.tokens)))
        return
    before = facts()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CANDIDATES}
    for _ in range(options.rounds):
        for name in CANDIDATES:
            command = [sys.executable, __file__, "--child", name, "--tokens", str(options.tokens)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **before,
        "rounds": options.rounds,
        "prompt": len(PROMPT),
        "tokens": options.tokens,
        "rows": {
            name: {field: median(row[field] for row in rows) for field in FIELDS}
            for name, rows in found.items()
        },
    }
    print(markdown(document))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    if options.output == RESULTS:
        for page in (README, CARD):
            replace_table(page, "loading", markdown(document))


def measure(name: str, tokens: int) -> dict[str, float]:
    """Of this process: the reading, and a greedy text."""
    import torch
    from transformers import LlamaForCausalLM  # noqa: F401  # before anything is measured, as our own

    from tradeoff.core.memory import peak_memory
    from tradeoff.data import checkpoints
    from tradeoff.methods.language_models.medusa import MedusaDecoder  # noqa: F401
    from tradeoff.nn.decoder.loading.files import converted_gguf

    torch.set_num_threads(1)
    folder = converted_gguf(checkpoints.smollm2())
    for file in folder.glob("*.safetensors"):
        file.read_bytes()  # into the page cache
    make = _transformers if name == "transformers" else _ours
    base = psutil.Process().memory_info().rss
    with peak_memory() as loading:
        started = time.process_time()
        write = make(folder, heads=name.endswith("heads"))
        load_seconds = time.process_time() - started
    kept = psutil.Process().memory_info().rss
    with torch.inference_mode(), peak_memory() as decoding:
        write(2)  # warms up
        started = time.process_time()
        write(1)
        first = time.process_time() - started
        write(tokens)
        whole = time.process_time() - started - first
    return {
        "load_seconds": load_seconds,
        "load_bytes": loading.bytes - base,
        "kept_bytes": kept - base,
        "token_seconds": (whole - first) / (tokens - 1),
        "decode_bytes": decoding.bytes - base,
    }


def _ours(folder: Path, heads: bool) -> Callable[[int], object]:
    import torch

    from tradeoff.engines.decoding import NativeKernels, generate
    from tradeoff.methods.language_models.medusa import MedusaDecoder, MedusaHeads
    from tradeoff.nn.decoder import from_pretrained

    model = from_pretrained(folder)
    model.kernels = NativeKernels()
    if not heads:
        return lambda count: generate(model, PROMPT, count)
    made = MedusaHeads.from_backbone(model, 3, draft_tokens=torch.arange(GUESSED))
    decoder = MedusaDecoder(model, made, [(0,), (1,), (2,), (0, 0), (0, 0, 0)])
    return lambda count: decoder.generate(PROMPT, count)


def _transformers(folder: Path, heads: bool) -> Callable[[int], object]:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([PROMPT])

    def write(count: int) -> object:
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )

    return write


def markdown(document: Mapping[str, Any]) -> str:
    """The table of README.md and of Medusa's card."""
    host = document["host"]
    heading = (
        f"SmolLM2-135M, float32, one thread, {document['tokens']} tokens behind {document['prompt']}; "
        f"{host['processor']}, {host['cores']} cores; {document['date'][:10]}."
    )
    columns = ["", "loading, s", "at most, MB", "then, MB", "a token, ms", "decoding at most, MB"]
    rows = [
        [
            name,
            f"{row['load_seconds']:.2f}",
            *(f"{row[field] / 1e6:,.0f}" for field in ("load_bytes", "kept_bytes")),
            f"{1e3 * row['token_seconds']:.0f}",
            f"{row['decode_bytes'] / 1e6:,.0f}",
        ]
        for name, row in document["rows"].items()
    ]
    return "\n".join([heading, "", *table(columns, rows)])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32, help="of a text (default 32)")
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"JSON file (default {RESULTS})")
    parser.add_argument("--child", choices=CANDIDATES, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
