"""Greedy decoding of transformers with the same weights: plain, prompt lookup, and self-speculation.

No smaller model of SmolLM2's family is in a package, so assisted decoding has the network's own first layers
as assistant (early exit), which needs no second checkpoint.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from tradeoff.core.errors import MissingExtra

Peer = Literal["transformers", "transformers prompt-lookup", "transformers assisted"]
Decode = Callable[[Sequence[int], int], list[int]]
"""Prompt and number of new tokens -> new tokens."""

LOOKUP_TOKENS = 3


def make_peers(
    checkpoint: str, end_tokens: Sequence[int], exit_layer: int, names: Sequence[Peer]
) -> dict[str, Decode]:
    """Decoders of transformers by name.

    Args:
        checkpoint: folder or name.
        end_tokens: that end a text.
        exit_layer: layers of the assistant.
        names: which.

    Raises:
        MissingExtra: transformers is absent.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise MissingExtra("transformers", "llm") from error
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model.eval()
    settings: dict[str, dict[str, int]] = {
        "transformers": {},
        "transformers prompt-lookup": {"prompt_lookup_num_tokens": LOOKUP_TOKENS},
        "transformers assisted": {"assistant_early_exit": exit_layer},
    }

    def decoder(extra: dict[str, int]) -> Decode:
        def decode(prompt: Sequence[int], count: int) -> list[int]:
            ids = torch.tensor([list(prompt)])
            with torch.inference_mode():
                out = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=count,
                    do_sample=False,
                    eos_token_id=list(end_tokens),
                    pad_token_id=end_tokens[0],
                    **extra,
                )
            return [int(token) for token in out[0, len(prompt) :]]

        return decode

    return {name: decoder(settings[name]) for name in names}
