import pytest
import torch
from torch import nn

from tradeoff.data.images import ImageData, load
from tradeoff.nn.fit import FitConfig, fit
from tradeoff.nn.models import build

PAIR_SHAPE = (1, 8, 16)
PAIR_TOTAL = 4096


@pytest.fixture(scope="session")
def pairs() -> ImageData:
    return load("digit-pairs")


@pytest.fixture(scope="session")
def trained(pairs: ImageData) -> nn.Module:
    """The all-ReLU network of the pair task, trained far enough for what replaces its ReLUs to matter."""
    torch.manual_seed(0)
    network = build("pair_cnn", 10, PAIR_SHAPE)
    config = FitConfig(steps=500, batch_size=128, optimizer="adam", learning_rate=0.008)
    fit(network, pairs.train, None, config)
    return network.eval()


@pytest.fixture
def fresh() -> nn.Module:
    """An untrained network of the pair task whose batch norms have statistics of their own."""
    torch.manual_seed(1)
    network = build("pair_cnn", 10, PAIR_SHAPE)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
    return network.eval()
