"""Masks over the weights of a network: drawn, projected, moved while it trains, counted and stored.

``MaskSet.random(maskable_weights(model), 0.05)`` draws masks of an exact number of weights;
:class:`SparseTraining` keeps them through any training loop and, with a rule such as :class:`RigL`, moves
them; :class:`ADMM` and :class:`SLR` train toward a sparse network instead; :class:`FlopMeter` counts what a
training costs.
"""

from .densities import Distribution, active_counts, layer_densities
from .errors import InfeasibleDensity, MaskError
from .flops import FlopMeter, forward_flops, layer_rows, rigl_average_flops, training_flops
from .mask_set import MaskSet
from .rules import SET, DropAndGrow, Explore, Layer, RigL, SparseMomentum, SparseRule, Static, drop_and_grow
from .splitting import ADMM, SLR
from .training import NonFiniteGradient, SparseTraining, fit_sparse
from .weights import maskable_weights

__all__ = [
    "ADMM",
    "SET",
    "SLR",
    "Distribution",
    "DropAndGrow",
    "Explore",
    "FlopMeter",
    "InfeasibleDensity",
    "Layer",
    "MaskError",
    "MaskSet",
    "NonFiniteGradient",
    "RigL",
    "SparseMomentum",
    "SparseRule",
    "SparseTraining",
    "Static",
    "active_counts",
    "drop_and_grow",
    "fit_sparse",
    "forward_flops",
    "layer_densities",
    "layer_rows",
    "maskable_weights",
    "rigl_average_flops",
    "training_flops",
]
