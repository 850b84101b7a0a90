"""Decoding with drafts: guesses of several tokens, in a tree, that one pass of the model verifies.

Example::

    from tradeoff.engines.decoding import NativeKernels, PromptLookup, Sample, generate

    model.kernels = NativeKernels()  # a decoder of tradeoff.nn.decoder, float32 on a CPU
    out = generate(model, ids, max_new_tokens=64, proposer=PromptLookup())
    print(out.ids, out.tokens_per_step, out.seconds)  # the ids of plain greedy decoding
    out = generate(model, ids, max_new_tokens=64, acceptance=Sample(temperature=0.7, top_p=0.9))
"""

from tradeoff.engines.decoding.acceptance import (
    Acceptance,
    Decision,
    Greedy,
    Rejection,
    Sample,
    Typical,
    Verified,
)
from tradeoff.engines.decoding.drafts import Draft, Front, Oracle, PromptLookup, Proposer
from tradeoff.engines.decoding.errors import DecodingError, InvalidDraft, InvalidRequest, NonFiniteLogits
from tradeoff.engines.decoding.kernels import NativeKernels
from tradeoff.engines.decoding.loop import Generation, generate, generate_batch, stream
from tradeoff.engines.decoding.timing import step_seconds, step_timings
from tradeoff.engines.decoding.verification import Processor

__all__ = [
    "Acceptance",
    "Decision",
    "DecodingError",
    "Draft",
    "Front",
    "Generation",
    "Greedy",
    "InvalidDraft",
    "InvalidRequest",
    "NativeKernels",
    "NonFiniteLogits",
    "Oracle",
    "Processor",
    "PromptLookup",
    "Proposer",
    "Rejection",
    "Sample",
    "Typical",
    "Verified",
    "generate",
    "generate_batch",
    "step_seconds",
    "step_timings",
    "stream",
]
