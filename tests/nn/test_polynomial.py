import numpy as np
import pytest
import torch
from torch import nn

from tradeoff.nn.plan import dumps, loads, trace
from tradeoff.nn.polynomial import (
    ChannelStatistics,
    MaskedReLU,
    Polynomial,
    SiteShapeMismatch,
    approximation_error,
    distribution_aware,
    evaluate,
    gated_relu,
)


def least_squares(mean: float, std: float, degree: int) -> np.ndarray:
    """Fit ReLU on a dense grid weighted by the normal density: the slow, obvious reference."""
    t = np.linspace(-12, 12, 240_001)
    weight = np.exp(-t * t / 2)
    x = mean + std * t
    powers = np.vander(t, degree + 1, increasing=True)
    gram = powers.T @ (powers * weight[:, None])
    in_t = np.linalg.solve(gram, powers.T @ (weight * np.maximum(x, 0)))
    polynomial = np.polynomial.Polynomial(in_t)(np.polynomial.Polynomial([-mean / std, 1 / std]))
    return polynomial.coef if degree else np.array([in_t[0]])


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_distribution_aware_coefficients_equal_weighted_least_squares(degree: int) -> None:
    generator = np.random.default_rng(degree)
    for _ in range(100):
        mean, std = generator.uniform(-2, 2), generator.uniform(0.3, 3)
        ours = distribution_aware(torch.tensor([mean]).double(), torch.tensor([std]).double(), degree)
        np.testing.assert_allclose(ours[:, 0].numpy(), least_squares(mean, std, degree), atol=1e-6)


def test_closed_forms_of_the_paper() -> None:
    mean, std = torch.tensor([0.7, -1.2, 0.0]).double(), torch.tensor([1.5, 0.4, 2.0]).double()
    z = mean / std
    normal = torch.distributions.Normal(torch.zeros(3).double(), torch.ones(3).double())
    phi, cdf = normal.log_prob(z).exp(), normal.cdf(z)
    expected = torch.stack([std * phi / 2 * (1 + z * z), cdf - z * phi, phi / (2 * std)])
    torch.testing.assert_close(distribution_aware(mean, std, 2), expected)
    torch.testing.assert_close(distribution_aware(mean, std, 1), torch.stack([std * phi, cdf]))


def test_residual_table_for_the_standard_normal() -> None:
    zero, one = torch.zeros(1), torch.ones(1)
    errors = [approximation_error(zero, one, degree).item() for degree in (1, 2, 3, 4)]
    assert errors == pytest.approx([0.0908, 0.0113, 0.0113, 0.0046], abs=1e-4)
    x = torch.randn(2_000_000, 1, generator=torch.Generator().manual_seed(0)).double()
    for degree, error in zip((1, 2, 3, 4), errors, strict=True):
        residual = x.clamp(min=0) - evaluate(x, distribution_aware(zero.double(), one.double(), degree))
        assert residual.square().mean().item() == pytest.approx(error, rel=0.01)
    assert (x.clamp(min=0) - x).square().mean().item() == pytest.approx(0.5, rel=0.01)


def test_distribution_aware_refuses_what_it_cannot_fit() -> None:
    with pytest.raises(ValueError, match="degree"):
        distribution_aware(torch.zeros(1), torch.ones(1), 5)
    with pytest.raises(ValueError, match="standard deviation"):
        distribution_aware(torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize("shape", [(4, 3, 5, 2), (4, 3, 6), (4, 3)])
@pytest.mark.parametrize("degree", [0, 1, 2, 4])
def test_gated_relu_equals_its_definition_and_passes_gradcheck(shape: tuple[int, ...], degree: int) -> None:
    generator = torch.Generator().manual_seed(degree)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    coefficients = torch.randn(degree + 1, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    soft = torch.rand(shape[1:], generator=generator, dtype=torch.float64, requires_grad=True)
    hard = soft.detach() > 0.5
    rows = coefficients.reshape(degree + 1, 3, *[1] * (len(shape) - 2))
    polynomial = sum(rows[i] * x**i for i in range(degree + 1))
    for gate, is_hard in ((soft, False), (hard, True)):
        expected = gate * x.clamp(min=0) + (~gate if is_hard else 1 - gate) * polynomial
        torch.testing.assert_close(gated_relu(x, gate, coefficients, hard=is_hard), expected)
    assert torch.autograd.gradcheck(lambda *a: gated_relu(*a, hard=False), (x, soft, coefficients))
    assert torch.autograd.gradcheck(lambda x, c: gated_relu(x, hard, c), (x, coefficients))
    gate = hard.double().requires_grad_()
    upstream = torch.randn(shape, generator=generator, dtype=torch.float64)
    (gated_relu(x, gate, coefficients) * upstream).sum().backward()
    torch.testing.assert_close(gate.grad, (upstream * (x.clamp(min=0) - polynomial)).sum(0).detach())


@pytest.mark.parametrize("hard", [True, False])
def test_gated_relu_is_the_same_in_both_memory_orders(hard: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 5, 2, generator=generator, dtype=torch.float64)
    gate = torch.rand(3, 5, 2, generator=generator, dtype=torch.float64)
    gate = (gate > 0.5).double() if hard else gate
    coefficients = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    results = []
    for memory in (torch.contiguous_format, torch.channels_last):
        inputs = [t.detach().clone() for t in (x, gate, coefficients)]
        inputs[0] = inputs[0].contiguous(memory_format=memory)
        for tensor in inputs:
            tensor.requires_grad_()
        y = gated_relu(*inputs, hard=hard)
        assert y.is_contiguous(memory_format=memory)
        y.square().sum().backward()
        results.append([y, *(tensor.grad for tensor in inputs)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_polynomial_is_evaluated_per_channel_and_trains() -> None:
    module = Polynomial(torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 1.0]]))
    x = torch.tensor([[[[2.0]], [[-3.0]]]])
    assert module(x).flatten().tolist() == [1 + 4 + 12, 9]
    module(x).sum().backward()
    assert module.coefficients.grad.tolist() == [[1, 1], [2, -3], [4, 9]]
    constant = Polynomial(torch.tensor([[1.5, 2.5]]))
    assert constant(x).flatten().tolist() == [1.5, 2.5]


def test_masked_relu_keeps_relu_bit_for_bit_where_the_mask_says() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(3, 4, 4, generator=generator) > 0.5
    module = MaskedReLU(mask, torch.randn(3, 3, generator=generator))
    x = torch.randn(5, 3, 4, 4, generator=generator)
    y = module(x)
    assert torch.equal(y[:, mask], x.relu()[:, mask])
    torch.testing.assert_close(y[:, ~mask], evaluate(x, module.coefficients)[:, ~mask])
    assert module.relu_count == int(mask.sum())
    assert set(module.state_dict()) == {"mask", "coefficients"}


def test_masked_relu_without_polynomial_passes_the_other_positions() -> None:
    mask = torch.tensor([[[True, False]]])
    module = MaskedReLU(mask, None)
    assert module(torch.tensor([[[[-2.0, -3.0]]]])).flatten().tolist() == [0, -3]
    assert set(module.state_dict()) == {"mask"}
    plan = trace(nn.Sequential(module, nn.Flatten()), (1, 1, 2))
    assert loads(dumps(plan)).digest == plan.digest
    assert plan.evaluate(np.array([[[[-2.0, -3.0]]]])).ravel().tolist() == [0, -3]


def test_masked_relu_names_the_site_when_the_image_size_changes() -> None:
    module = MaskedReLU(torch.ones(3, 4, 4, dtype=torch.bool), torch.zeros(3, 3), site="layer1.relu")
    with pytest.raises(SiteShapeMismatch, match=r"layer1\.relu.*\(3, 4, 4\).*\(3, 8, 8\)") as caught:
        module(torch.zeros(1, 3, 8, 8))
    assert caught.value.expected == (3, 4, 4)
    with pytest.raises(TypeError, match="boolean"):
        MaskedReLU(torch.ones(3, 4, 4), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="channels"):
        MaskedReLU(torch.ones(3, 4, 4, dtype=torch.bool), torch.zeros(3, 2))


def test_channel_statistics_follow_batch_normalization() -> None:
    ours, theirs = ChannelStatistics(3), torch.nn.BatchNorm2d(3, affine=False)
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(8, 3, 4, 4, generator=generator)
    ours.update(first)
    torch.testing.assert_close(ours.mean, first.mean((0, 2, 3)))
    theirs.running_mean, theirs.running_var = ours.mean.clone(), ours.variance.clone()
    for _ in range(5):
        x = 2 * torch.randn(8, 3, 4, 4, generator=generator) + 1
        ours.update(x)
        theirs(x)
    torch.testing.assert_close(ours.mean, theirs.running_mean)
    # Batch normalization keeps the unbiased variance; the fit needs that of the batch: n / (n - 1) apart.
    torch.testing.assert_close(ours.variance, theirs.running_var, rtol=1e-2, atol=0)
    torch.testing.assert_close(ours.std, ours.variance.sqrt())
