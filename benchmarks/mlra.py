"""A decoded token with this project's attention beside torch's and transformers', by turns.

    python benchmarks/mlra.py                    # contexts of 4 k and 16 k, about two minutes
    python benchmarks/mlra.py --contexts 1k

One thread, processor seconds. GQA: one layer's attention over keys and values, this project's and torch's
`scaled_dot_product_attention(enable_gqa=True)`. MLA: one token through a decoder of one layer with the
published widths and 16 heads, behind a prompt: this project's (absorbed, with two kinds of products) and
transformers' DeepSeek-V3 with the same weights, which caches keys and values.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from spmm import facts
from torch.nn import functional

from tradeoff.core.timing import ProcessorClock, SideBySide, side_by_side
from tradeoff.methods.language_models.mlra import DecodeKernels
from tradeoff.methods.language_models.mlra.decode import parse_contexts
from tradeoff.nn.decoder import TORCH, Causal, Visibility, from_pretrained

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "benchmarks" / "mlra.json"
OURS = "tradeoff"
ROUNDS = 9
WIDTHS = {
    "hidden_size": 2048,
    "num_hidden_layers": 1,
    "first_k_dense_replace": 1,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": 1024,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
"""Of transformers' configuration: one layer, without experts."""


def grouped(context: int) -> SideBySide:
    """GQA with 16 query and 4 key heads of 128."""
    query = torch.randn(1, 16, 1, 128)
    keys, values = torch.randn(2, 1, 4, context, 128)
    visible, kernels = Visibility(Causal(), (context - 1,), 1), DecodeKernels()

    def ours() -> torch.Tensor:
        return kernels.attention(query, keys, values, visible, 128**-0.5)

    def peer() -> torch.Tensor:
        return functional.scaled_dot_product_attention(query, keys, values, enable_gqa=True)

    torch.testing.assert_close(ours(), peer())
    return timed({OURS: ours, "torch enable_gqa": peer})


def latent(context: int) -> SideBySide:
    """MLA in a decoder of one layer; the logits of all must agree."""
    import transformers

    theirs = transformers.DeepseekV3ForCausalLM(
        transformers.DeepseekV3Config(
            **WIDTHS, vocab_size=256, intermediate_size=256, max_position_embeddings=context + 1
        )
    ).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        model = from_pretrained(folder)
    ids = torch.randint(256, (1, context), generator=torch.Generator().manual_seed(1))
    new = ids[:, :1]
    cache = model.new_cache(max_len=context + 1)
    model(ids, cache=cache)
    past = theirs(ids, use_cache=True).past_key_values

    def ours(kernels: object) -> Callable[[], torch.Tensor]:
        def step() -> torch.Tensor:
            model.kernels = kernels  # type: ignore[assignment]
            logits = model(new, cache=cache)
            cache.rollback(1)
            return logits

        return step

    def peer() -> torch.Tensor:
        logits: torch.Tensor = theirs(new, past_key_values=past, use_cache=True).logits
        past.crop(-1)
        return logits

    candidates = {OURS: ours(DecodeKernels()), f"{OURS}, plain products": ours(TORCH), "transformers": peer}
    expected = candidates[OURS]()
    for step in candidates.values():
        torch.testing.assert_close(step(), expected, rtol=0, atol=1e-3)
    return timed(candidates)


def timed(candidates: dict[str, Callable[[], torch.Tensor]]) -> SideBySide:
    """Candidates by turns."""
    return side_by_side(candidates, rounds=ROUNDS, clock=ProcessorClock())


@torch.no_grad()
def main() -> None:
    """Time, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contexts", default="4k,16k")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("attention", "context", "implementation", "ms", "times ours")
    rows = []
    for context in parse_contexts(arguments.contexts.split(",")):
        for name, measure in (("gqa", grouped), ("mla", latent)):
            times = measure(context)
            for each, timing in times.timings.items():
                ratio = times.ratio(each, OURS)
                rows.append(
                    {
                        "attention": name,
                        "context": context,
                        "implementation": each,
                        "milliseconds": 1e3 * timing.median,
                        "times_ours": ratio,
                    }
                )
                shown = f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})"
                table.add_row(name, f"{context:,}", each, f"{1e3 * timing.median:.2f}", shown)
    Console().print(table)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({**facts(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
