"""Networks in resistive crossbars: exact integer products with sliced cells, converters and stuck cells.

Example::

    from tradeoff.engines.crossbar import CrossbarConfig, FaultModel, to_crossbar

    chip = FaultModel.preset("hfo2", seed=0)
    placed = to_crossbar(model, CrossbarConfig(adc_bits=8), chip, calibration=batches)
    logits = placed(images)
    print(placed.report().totals)  # crossbars, cells, conversions, energy, area, latency
    placed.reprogram(seed=1)  # another chip
"""

from tradeoff.engines.crossbar.config import CrossbarConfig
from tradeoff.engines.crossbar.convert import CrossbarModel, CrossbarReport, LayerReport, to_crossbar
from tradeoff.engines.crossbar.cost import Component, ComponentTable, LayerCost, layer_cost
from tradeoff.engines.crossbar.encodings import ENCODINGS, Encoding, PairMapping, two_column
from tradeoff.engines.crossbar.errors import CrossbarError, InvalidConfig, InvalidOperand, NotCalibrated
from tradeoff.engines.crossbar.faults import FREE, PRESETS, STUCK_OFF, STUCK_ON, FaultModel
from tradeoff.engines.crossbar.layers import CrossbarConv2d, CrossbarLinear
from tradeoff.engines.crossbar.placement import Placement
from tradeoff.engines.crossbar.quantization import InputRange, calibrate, quantize_weights

__all__ = [
    "ENCODINGS",
    "FREE",
    "PRESETS",
    "STUCK_OFF",
    "STUCK_ON",
    "Component",
    "ComponentTable",
    "CrossbarConfig",
    "CrossbarConv2d",
    "CrossbarError",
    "CrossbarLinear",
    "CrossbarModel",
    "CrossbarReport",
    "Encoding",
    "FaultModel",
    "InputRange",
    "InvalidConfig",
    "InvalidOperand",
    "LayerCost",
    "LayerReport",
    "NotCalibrated",
    "PairMapping",
    "Placement",
    "calibrate",
    "layer_cost",
    "quantize_weights",
    "to_crossbar",
    "two_column",
]
