"""LinGCN: structural linearization of graph networks for encrypted inference (Peng et al., NeurIPS 2023)."""

from .activations import NodePolynomial
from .encryption import to_program
from .folding import FoldedNetwork, StructuralError, fold
from .gates import Gates, effective, layer_wise, structural, unstructured
from .network import BACKBONES, STGCN, Shape
from .training import Distillation, linearize, polynomialize, train_teacher, two_level_loss

__all__ = [
    "BACKBONES",
    "STGCN",
    "Distillation",
    "FoldedNetwork",
    "Gates",
    "NodePolynomial",
    "Shape",
    "StructuralError",
    "effective",
    "fold",
    "layer_wise",
    "linearize",
    "polynomialize",
    "structural",
    "to_program",
    "train_teacher",
    "two_level_loss",
    "unstructured",
]
