"""Published parameter counts, shapes, one module per activation call, weights in and out."""

import pytest
import torch
from torch import nn

from tradeoff.nn.models import ARCHITECTURES, ArchMismatch, build, load_weights, save_weights

PUBLISHED_PARAMETERS = {
    # arch, classes, input: parameters
    ("resnet18", 1000, (3, 224, 224)): 11_689_512,
    ("resnet18", 10, (3, 32, 32)): 11_173_962,
    ("resnet20", 10, (3, 32, 32)): 272_474,
    ("wrn22_8", 10, (3, 32, 32)): 17_158_106,
    ("vgg16", 1000, (3, 224, 224)): 138_365_992,
    ("vgg16", 10, (3, 32, 32)): 14_728_266,
    ("mobilenet_v2", 1000, (3, 224, 224)): 3_504_872,
    ("lenet_300_100", 10, (1, 28, 28)): 266_610,
    ("efficientnet_b2", 1000, (3, 224, 224)): 9_109_994,
}


@pytest.fixture(autouse=True)
def _no_random_initialization(monkeypatch):
    """Random weights of a hundred million parameters take seconds that these tests do not need."""
    for name in ("kaiming_normal_", "kaiming_uniform_", "uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)


@pytest.mark.parametrize(("case", "parameters"), PUBLISHED_PARAMETERS.items(), ids=str)
def test_parameter_count_is_the_published_one(case, parameters):
    with torch.device("meta"):
        model = build(*case)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("side", [8, 16, 28, 32, 64, 96, 224])
def test_forward_at_every_size(arch, side):
    with torch.device("meta"):
        model = build(arch, 7, (1, side, side)).eval()
        assert model(torch.empty(2, 1, side, side)).shape == (2, 7)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_trains_on_8_pixels_and_on_rectangles(arch):
    for shape in ((1, 8, 8), (3, 8, 16)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = build(arch, 4, shape)
        for p in model.parameters():
            p.data.fill_(0.01)
        loss = model(torch.randn(2, *shape)).square().sum()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_activation_call_is_its_own_module(arch):
    with torch.device("meta"):
        model = build(arch, 10, (3, 32, 32)).eval()
        calls: dict[str, int] = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.ReLU | nn.ReLU6 | nn.SiLU):
                module.register_forward_hook(
                    lambda *_, name=name: calls.__setitem__(name, calls.get(name, 0) + 1)
                )
        model(torch.empty(1, 3, 32, 32))
    assert calls
    assert set(calls.values()) == {1}
    graph = torch.fx.symbolic_trace(model).graph
    functional = {n.target for n in graph.nodes if n.op in ("call_function", "call_method")}
    assert not functional & {torch.relu, nn.functional.relu, "relu"}


def test_unknown_architecture_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'resnet18'"):
        build("ResNet-18", 10, (3, 32, 32))
    with pytest.raises(ValueError, match="at least 2"):
        build("resnet18", 1, (3, 32, 32))
    for shape in ((3, 4, 4), (32, 32), (0, 32, 32)):
        with pytest.raises(ValueError, match="input_shape"):
            build("resnet18", 10, shape)


def test_weights_round_trip_and_mismatches(tmp_path):
    model, path = build("small_cnn", 10, (1, 8, 8)), tmp_path / "w.safetensors"
    for index, p in enumerate(model.parameters()):
        p.data.fill_(index)
    save_weights(model, path)
    other = build("small_cnn", 10, (1, 8, 8))
    load_weights(other, path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))

    with pytest.raises(ArchMismatch, match=r"fc\.weight \(model \(7, 128\), file \(10, 128\)\)"):
        load_weights(build("small_cnn", 7, (1, 8, 8)), path)
    with pytest.raises(ArchMismatch, match=r"missing bn1\.bias.* and \d+ more"):
        load_weights(build("pair_cnn", 10, (1, 8, 8)), path)
    with pytest.raises(FileNotFoundError, match="no weight file"):
        load_weights(other, tmp_path / "absent")
    for content in (b"", path.read_bytes()[:-3], b"\xff" * 100):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(ArchMismatch, match="not a safetensors file"):
            load_weights(other, tmp_path / "bad")


def test_weights_without_batch_counters_load(tmp_path):
    """Other libraries' files may lack them."""
    from safetensors.torch import save_file

    model, path = build("pair_cnn", 10, (1, 8, 8)), tmp_path / "w.safetensors"
    for p in model.parameters():
        p.data.fill_(0.5)
    save_file({k: v for k, v in model.state_dict().items() if not k.endswith("tracked")}, path)
    load_weights(build("pair_cnn", 10, (1, 8, 8)), path)


def test_weights_that_are_not_numbers_are_refused_by_name(tmp_path):
    network = build("small_cnn", 10, (1, 8, 8))
    for p in network.parameters():
        p.data.fill_(0.5)
    next(network.parameters()).data.view(-1)[3] = float("nan")
    name = next(iter(dict(network.named_parameters())))
    save_weights(network, tmp_path / "nan.safetensors")
    with pytest.raises(ArchMismatch, match=f"NaN or infinity in {name}"):
        load_weights(build("small_cnn", 10, (1, 8, 8)), tmp_path / "nan.safetensors")
