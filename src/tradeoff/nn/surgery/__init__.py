"""Reading and changing torch models through torch.fx: activation sites, replacement, batch-norm folding."""

from tradeoff.nn.plan.errors import UntraceableModel
from tradeoff.nn.surgery.folding import fold_batch_norm
from tradeoff.nn.surgery.sites import Site, activation_sites, replace_sites, split_shared_activations
from tradeoff.nn.surgery.tracer import TracedModel, trace_model

__all__ = [
    "Site",
    "TracedModel",
    "UntraceableModel",
    "activation_sites",
    "fold_batch_norm",
    "replace_sites",
    "split_shared_activations",
    "trace_model",
]
