"""Finding and replacing activation sites, and folding batch norms, on torch modules."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tradeoff.nn import plan as op
from tradeoff.nn.plan import UntraceableModel, trace
from tradeoff.nn.polynomial import MaskedReLU, Polynomial
from tradeoff.nn.surgery import (
    Site,
    activation_sites,
    fold_batch_norm,
    replace_sites,
    split_shared_activations,
)

SHAPE = (3, 16, 16)


class Block(nn.Module):
    """One in-place ReLU module called twice, and a functional one."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Conv2d(channels, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += functional.relu(self.shortcut(x))
        return self.relu(out)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(8, 1), Block(8, 2))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x).relu())
        x = functional.dropout(x.mean((2, 3)), 0.5, self.training)
        return self.head(functional.silu(x))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    network = Network()
    network(torch.randn(8, *SHAPE))  # running statistics that are not the initial ones
    return network


NAMES = [
    "relu",
    "blocks.0.relu",
    "blocks.0.relu_2",
    "blocks.0.relu_3",
    "blocks.1.relu",
    "blocks.1.relu_2",
    "blocks.1.relu_3",
    "silu",
]


def test_sites_have_stable_names_shapes_and_paths(model: nn.Module) -> None:
    sites = activation_sites(model, SHAPE)
    assert [site.name for site in sites] == NAMES
    assert sites[0] == Site("relu", (8, 16, 16), "", "relu")
    assert sites[1] == Site("blocks.0.relu", (8, 16, 16), "blocks.0.relu", "relu")
    assert sites[2] == Site("blocks.0.relu_2", (8, 16, 16), "blocks.0", "relu")
    assert sites[3] == Site("blocks.0.relu_3", (8, 16, 16), "blocks.0.relu", "relu")
    assert sites[6].shape == (8, 8, 8)
    assert sites[7] == Site("silu", (8,), "", "silu")
    assert activation_sites(model.eval(), SHAPE) == sites
    assert activation_sites(nn.Linear(3, 3), (3,)) == []


def test_count_of_sites_equals_a_count_of_calls(model: nn.Module) -> None:
    """Every ReLU call of a real forward pass is one site with the size of its output."""
    sizes: list[int] = []
    split = split_shared_activations(model, SHAPE)
    for module in split.modules():
        if isinstance(module, nn.ReLU | nn.SiLU):
            module.register_forward_hook(lambda m, inputs, output: sizes.append(output[0].numel()))
    split(torch.randn(2, *SHAPE))
    assert sizes == [torch.Size(site.shape).numel() for site in activation_sites(model, SHAPE)]


def test_split_network_is_the_same_function_with_the_same_state(model: nn.Module) -> None:
    x = torch.randn(4, *SHAPE)
    split = split_shared_activations(model, SHAPE)
    assert set(split.state_dict()) == set(model.state_dict())
    assert {name for name, module in split.named_modules() if isinstance(module, nn.ReLU | nn.SiLU)} == set(
        NAMES
    )
    assert [site.name for site in activation_sites(split, SHAPE)] == NAMES
    for train in (True, False):
        model.train(train)
        split.train(train)
        torch.manual_seed(1)
        expected = model(x)
        torch.manual_seed(1)
        assert torch.equal(split(x), expected)
        assert split.training == train
    state = split.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_any_batch_size_and_gradients(model: nn.Module) -> None:
    split = split_shared_activations(model, SHAPE)
    for batch in (2, 5, 13):
        split(torch.randn(batch, *SHAPE)).sum().backward()
    assert all(parameter.grad is not None for parameter in split.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_replacement_touches_only_the_named_sites_of_a_copy(model: nn.Module) -> None:
    square = Polynomial(torch.tensor([[0.0], [0.5], [0.1]]).expand(3, 8))
    before = copy.deepcopy(model.state_dict())
    replaced = replace_sites(model, {"blocks.0.relu_3": square}, SHAPE)
    assert replaced.get_submodule("blocks.0.relu_3") is square
    assert set(replaced.state_dict()) == set(before) | {"blocks.0.relu_3.coefficients"}
    with torch.no_grad():
        replaced.stem.weight.zero_()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert [site.name for site in activation_sites(replaced, SHAPE)] == [
        n for n in NAMES if n != "blocks.0.relu_3"
    ]


def test_replacement_computes_what_it_says() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.ReLU())
    x = torch.randn(6, 3)
    replaced = replace_sites(model, {"1": nn.Tanh()}, (3,))
    torch.testing.assert_close(replaced(x), model[2](model[0](x).tanh()).relu())


def test_in_place_activation_read_again_is_replaced_consistently() -> None:
    """In ``y = relu_(x); y + x`` both terms are ReLU's output; so they stay after the replacement."""

    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.relu = nn.ReLU(inplace=True)
            self.second = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.second(self.relu(x)) + x

    model, x = PreActivation(), torch.randn(5, 4)
    torch.testing.assert_close(split_shared_activations(model, (4,))(x), model(x))
    tanh = model.first(x).tanh()
    torch.testing.assert_close(replace_sites(model, {"relu": nn.Tanh()}, (4,))(x), model.second(tanh) + tanh)


def test_result_can_be_copied_pickled_and_replaced_again(model: nn.Module) -> None:
    x = torch.randn(2, *SHAPE)
    replaced = replace_sites(model.eval(), {"blocks.0.relu": nn.Tanh()}, SHAPE)
    expected = replaced(x)
    twin = copy.deepcopy(replaced)
    with torch.no_grad():
        twin.stem.weight.zero_()
    assert torch.equal(replaced(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(replaced))(x), expected)  # noqa: S301 - written one line above
    again = replace_sites(replaced, {"blocks.0.relu_2": nn.Identity()}, SHAPE)
    assert isinstance(again.get_submodule("blocks.0.relu"), nn.Tanh)
    assert isinstance(again.get_submodule("blocks.0.relu_2"), nn.Identity)


def test_state_moves_between_two_replacements(model: nn.Module) -> None:
    def replaced() -> nn.Module:
        polynomials = {name: Polynomial(torch.rand(3, 8)) for name in NAMES if name != "silu"}
        return replace_sites(model.eval(), polynomials, SHAPE)

    first, second, x = replaced(), replaced(), torch.randn(2, *SHAPE)
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))


def test_replaced_network_becomes_a_plan_with_the_same_names(model: nn.Module) -> None:
    """The way of a compressed network: masks at some sites, polynomials at others, then a plan."""
    sites = activation_sites(model, SHAPE)
    coefficients = torch.full((3, 8), 0.25)
    modules: dict[str, nn.Module] = {site.name: Polynomial(coefficients) for site in sites[::2]}
    modules |= {site.name: MaskedReLU(torch.rand(site.shape) < 0.5, coefficients) for site in sites[1::2]}
    replaced, x = replace_sites(model.eval(), modules, SHAPE), torch.randn(2, *SHAPE)
    plan = trace(replaced, SHAPE)
    kept = {operator.name: operator for operator in plan if isinstance(operator, op.MaskedReLU)}
    assert list(kept) == NAMES[1::2]
    assert plan.relu_count == sum(int(replaced.get_submodule(name).mask.sum()) for name in kept)
    torch.testing.assert_close(
        torch.from_numpy(plan.evaluate(x.numpy())).float(), replaced(x), rtol=1e-4, atol=1e-4
    )


def test_unknown_site_is_refused_with_the_nearest_name(model: nn.Module) -> None:
    with pytest.raises(KeyError, match=r"did you mean 'blocks\.0\.relu'"):
        replace_sites(model, {"blocks.0.relv": nn.Identity()}, SHAPE)


def test_hugging_face_resnet(require: Callable[[object, str], None]) -> None:
    try:
        from transformers import ResNetConfig, ResNetForImageClassification
    except ImportError:
        require(False, "transformers is not installed; run: pip install 'tradeoff[llm]'")
    config = ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3
    )
    model, x = ResNetForImageClassification(config).eval(), torch.randn(2, 3, 32, 32)
    split = split_shared_activations(model, (3, 32, 32))
    torch.testing.assert_close(split(x), model(x).logits)
    assert set(split.state_dict()) == set(model.state_dict())
    assert len(activation_sites(model, (3, 32, 32))) == 5


def test_control_flow_on_values_is_located() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu() if x.max() > 0 else x

    with pytest.raises(UntraceableModel, match=r"at 1 \(test_surgery\.py:\d+"):
        activation_sites(nn.Sequential(nn.Linear(3, 3), Branch()), (3,))


def test_functional_training_flags_are_refused() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))
            self.register_buffer("var", torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return functional.batch_norm(x, self.mean, self.var, training=self.training)

    with pytest.raises(UntraceableModel, match=r"batch_norm.*training flag"):
        replace_sites(Norm(), {}, (3,))


def test_dropout_that_is_always_active_is_refused() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.dropout(x, training=True)

    with pytest.raises(UntraceableModel, match=r"dropout.*training flag"):
        replace_sites(Noise(), {}, (3,))


def test_batch_norms_are_folded(model: nn.Module) -> None:
    x = torch.randn(4, *SHAPE)
    folded = fold_batch_norm(model.train(), SHAPE)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert not folded.training
    assert model.training
    torch.testing.assert_close(folded(x), model.eval()(x), rtol=1e-4, atol=1e-4)
    assert folded.get_submodule("blocks.1.conv2").bias is not None


def test_batch_norms_that_cannot_be_folded_stay() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)
            self.first, self.second, self.third = (nn.BatchNorm2d(2) for _ in range(3))
            self.plain = nn.BatchNorm2d(2, track_running_stats=False)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(self.conv(x))
            x = self.second(self.conv(self.third(x)))
            return self.plain(x)

    model, x = Shared().eval(), torch.randn(4, 2, 3, 3)
    folded = fold_batch_norm(model, (2, 3, 3))
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == 4
    torch.testing.assert_close(folded(x), model(x))
