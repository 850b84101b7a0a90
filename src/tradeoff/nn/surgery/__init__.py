"""Reading and changing torch models through torch.fx: activation sites, replacement, batch-norm folding."""

from tradeoff.nn.plan.errors import UntraceableModel
from tradeoff.nn.surgery.folding import fold_batch_norm
from tradeoff.nn.surgery.sites import (
    PoolingSite,
    Site,
    activation_sites,
    pooling_sites,
    replace_sites,
    split_shared_activations,
    with_relus,
)
from tradeoff.nn.surgery.tracer import TracedModel, trace_model

__all__ = [
    "PoolingSite",
    "Site",
    "TracedModel",
    "UntraceableModel",
    "activation_sites",
    "fold_batch_norm",
    "pooling_sites",
    "replace_sites",
    "split_shared_activations",
    "trace_model",
    "with_relus",
]
