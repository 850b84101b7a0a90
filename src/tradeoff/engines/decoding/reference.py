"""What the native kernels compute, slowly and obviously, in the precision of their arguments.

The oracle of ``native/decoding.cpp``. Nothing here promises equal bits for equal rows.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def linear(
    weight: Float[Tensor, "outputs width"], x: Float[Tensor, "rows width"]
) -> Float[Tensor, "rows outputs"]:
    """``x W^T``."""
    return (x[:, None] * weight).sum(-1)


def swiglu(gate: Float[Tensor, "rows width"], up: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
    """``gate / (1 + exp(-gate)) * up``."""
    return gate / (1 + (-gate).exp()) * up


def tree_attention(
    query: Float[Tensor, "batch heads new width"],
    keys: Float[Tensor, "batch kv_heads slots width"],
    values: Float[Tensor, "batch kv_heads slots value_width"],
    offsets: Sequence[int],
    paths: Sequence[Sequence[int]],
    scale: float,
) -> Float[Tensor, "batch heads new value_width"]:
    """Softmax attention, one query at a time, each over its own sequence of slots.

    Query n of row b sees the slots before ``offsets[b]``, then ``offsets[b] + paths[n]``.
    """
    batch, heads, new, _ = query.shape
    group = heads // keys.shape[1]
    out = query.new_zeros(batch, heads, new, values.shape[-1])
    for b in range(batch):
        for n in range(new):
            slots = [*range(offsets[b]), *(offsets[b] + slot for slot in paths[n])]
            for head in range(heads):
                scores = keys[b, head // group, slots] @ query[b, head, n] * scale
                out[b, head, n] = torch.softmax(scores, 0) @ values[b, head // group, slots]
    return out
