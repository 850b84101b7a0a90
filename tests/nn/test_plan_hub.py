"""Every architecture of the hub can be read: sites, replacement, plan, and a result equal to torch's."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tradeoff.nn import plan as op
from tradeoff.nn.models import ARCHITECTURES, build
from tradeoff.nn.plan import UnsupportedLayer, trace
from tradeoff.nn.surgery import activation_sites, replace_sites, split_shared_activations

GATED = {"efficientnet_b2"}
"""Squeeze and excitation multiplies two tensors: no engine does."""

LIGHT_AT_224 = ["resnet18", "mobilenet_v2", "small_cnn"]


def network(arch: str, shape: tuple[int, int, int]) -> nn.Module:
    """An architecture whose batch normalizations have seen data, in evaluation mode."""
    torch.manual_seed(0)
    model = build(arch, 5, shape)
    with torch.no_grad():
        model(torch.randn(4, *shape))
    return model.eval()


def with_relus(model: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
    """The network with ReLU for ReLU6 and SiLU."""
    others = [site.name for site in activation_sites(model, shape) if site.kind != "relu"]
    return replace_sites(model, {name: nn.ReLU() for name in others}, shape)


def compare(model: nn.Module, shape: tuple[int, int, int], batch: int) -> op.Plan:
    plan = trace(model, shape)
    x = torch.randn(batch, *shape)
    with torch.no_grad():
        expected = model(x).numpy()
    np.testing.assert_allclose(plan.evaluate(x.numpy()), expected, rtol=1e-4, atol=1e-4)
    return plan


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_architecture_at_8_pixels(arch: str) -> None:
    shape = (1, 8, 8)
    model = network(arch, shape)
    sites = activation_sites(model, shape)
    assert all(site.name == site.path for site in sites)  # one module for each call
    split, x = split_shared_activations(model, shape), torch.randn(2, *shape)
    torch.testing.assert_close(split(x), model(x))
    assert set(split.state_dict()) == set(model.state_dict())
    if arch in GATED:
        with pytest.raises(UnsupportedLayer, match=r"gate \(Sigmoid\)"):
            trace(with_relus(model, shape), shape)
        return
    if any(site.kind != "relu" for site in sites):
        with pytest.raises(UnsupportedLayer, match="replace it by ReLU"):
            trace(model, shape)
    plan = compare(with_relus(model, shape), shape, 2)
    assert {site.name: site.shape for site in sites} == {
        operator.name: operator.shape for operator in plan if isinstance(operator, op.ReLU)
    }
    assert plan.relu_count == sum(math.prod(site.shape) for site in sites)
    assert not any(isinstance(operator, op.Affine) for operator in plan if arch != "wrn22_8")


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 33, 47)])
@pytest.mark.parametrize("arch", ["resnet18", "resnet20", "pair_cnn"])
def test_other_sizes(arch: str, shape: tuple[int, int, int]) -> None:
    model = build(arch, 5, shape)
    assert trace(model, shape).relu_count == sum(
        math.prod(site.shape) for site in activation_sites(model, shape)
    )


@pytest.mark.parametrize("arch", [arch for arch in LIGHT_AT_224 if arch in ARCHITECTURES])
def test_imagenet_size(arch: str) -> None:
    shape = (3, 224, 224)
    compare(with_relus(network(arch, shape), shape), shape, 1)


def test_rewrites_of_the_small_networks() -> None:
    for arch, shape in (("small_cnn", (1, 8, 8)), ("pair_cnn", (1, 8, 16))):
        plan = trace(network(arch, shape), shape)
        x = np.random.default_rng(0).normal(size=(3, *shape))
        cheaper = op.fold_average_pool(op.swap_relu_maxpool(plan))
        assert not any(isinstance(operator, op.AveragePool) for operator in cheaper)
        np.testing.assert_allclose(cheaper.evaluate(x), plan.evaluate(x), rtol=1e-9, atol=1e-12)


def test_pair_network_has_the_sites_of_the_experiment() -> None:
    """5 sites, 4,096 ReLUs on two digits side by side."""
    sites = activation_sites(build("pair_cnn", 10, (1, 8, 16)), (1, 8, 16))
    assert len(sites) == 5
    assert sum(math.prod(site.shape) for site in sites) == 4096
