"""Medusa: heads that guess several tokens ahead, verified in one pass (Cai et al., ICML 2024)."""

from .backbone import Backbone, load_backbone
from .cost import StepCost, measure_cost
from .decoding import MedusaDecoder, MedusaProposer
from .distillation import Distilled, self_distill
from .errors import HeadsMismatch, InvalidSetting, InvalidTree
from .heads import HeadsConfig, MedusaHeads, frequent_tokens
from .joint import Adapters, padded_texts, train_jointly
from .layouts import export_heads, import_heads
from .training import guess_ranks, head_accuracy, head_training, medusa_loss, train_heads
from .tree import Calibration, calibrate_tree, cartesian, check_paths

__all__ = [
    "Adapters",
    "Backbone",
    "Calibration",
    "Distilled",
    "HeadsConfig",
    "HeadsMismatch",
    "InvalidSetting",
    "InvalidTree",
    "MedusaDecoder",
    "MedusaHeads",
    "MedusaProposer",
    "StepCost",
    "calibrate_tree",
    "cartesian",
    "check_paths",
    "export_heads",
    "frequent_tokens",
    "guess_ranks",
    "head_accuracy",
    "head_training",
    "import_heads",
    "load_backbone",
    "measure_cost",
    "medusa_loss",
    "padded_texts",
    "self_distill",
    "train_heads",
    "train_jointly",
]
