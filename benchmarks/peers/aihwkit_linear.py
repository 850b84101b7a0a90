"""aihwkit-lightning's linear layer on ideal tiles: its inputs rounded to 8 bits, nothing else wrong."""

from collections.abc import Callable

import torch
from torch import Tensor


def load_aihwkit(weight: Tensor, bias: Tensor, peak: float, tile: int = 128) -> Callable[[Tensor], Tensor]:
    """A layer with those weights, inputs clipped at ``peak`` and rounded to 255 steps, outputs as they are.

    Args:
        weight: float32 ``(outputs, inputs)``, rounded before.
        tile: inputs of a tile.
    """
    from aihwkit_lightning.nn import AnalogLinear
    from aihwkit_lightning.simulator.configs import TorchInferenceRPUConfig

    config = TorchInferenceRPUConfig()
    config.forward.inp_res = 254  # steps from -1 to 1
    config.forward.out_res = -1
    config.mapping.max_input_size = tile
    config.pre_post.input_range.enable = True
    config.pre_post.input_range.learn_input_range = False
    layer = AnalogLinear(weight.shape[1], weight.shape[0], True, rpu_config=config)
    layer.set_weights_and_biases(weight, bias)
    layer.input_range.data.fill_(peak)
    layer.eval()

    @torch.no_grad()
    def call(x: Tensor) -> Tensor:
        result: Tensor = layer(x)
        return result

    return call
