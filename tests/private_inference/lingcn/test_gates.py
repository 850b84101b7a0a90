"""Which activations stay, and how scores learn it."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tradeoff.methods.private_inference.lingcn import Gates, effective, layer_wise, structural, unstructured
from tradeoff.methods.private_inference.lingcn.activations import GatedActivation, NodePolynomial


def slow(first: list[float], second: list[float]) -> list[list[bool]]:
    """The choice written out joint by joint."""
    pairs = [sorted([(a, 0), (b, 1)], key=lambda pair: pair[0]) for a, b in zip(first, second, strict=True)]
    smaller = sum(pair[0][0] for pair in pairs) > 0
    larger = sum(pair[1][0] for pair in pairs) > 0
    chosen = [[False] * len(pairs), [False] * len(pairs)]
    for joint, pair in enumerate(pairs):
        chosen[pair[0][1]][joint] = smaller
        chosen[pair[1][1]][joint] = larger
    return chosen


def test_choices_equal_those_of_the_slow_reference() -> None:
    generator = np.random.default_rng(0)
    for index in range(10_000):
        joints = int(generator.integers(1, 8))
        scores = generator.integers(-3, 4, (2, joints)) / 4.0  # ties are frequent, sums are exact
        if index % 10 == 0:
            scores = -np.abs(scores)
        found = structural(torch.from_numpy(scores))
        assert found.tolist() == slow(*scores.tolist())
        assert len(set(found.sum(0).tolist())) == 1


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3), st.lists(st.floats(-1, 1), min_size=3, max_size=3))
def test_all_joints_keep_equally_many(first: list[float], second: list[float]) -> None:
    counts = structural(torch.tensor([first, second])).sum(0)
    assert (counts == counts[0]).all()


def test_the_other_rules() -> None:
    scores = torch.tensor([[0.5, -0.1], [-0.3, 0.2]])
    assert layer_wise(scores).tolist() == [[True, True], [False, False]]
    assert unstructured(scores).tolist() == [[True, False], [False, True]]
    with pytest.raises(ValueError, match="structural, layer-wise, unstructured"):
        Gates(3, "random")  # type: ignore[arg-type]


def test_gradients_pass_the_step_weighted_by_softplus() -> None:
    gates = Gates(4)
    gates.learn()
    upstream = torch.randn(2, 4)
    (gates() * upstream).sum().backward()
    expected = torch.nn.functional.softplus(gates.scores.detach()) * upstream
    assert torch.allclose(gates.scores.grad, expected)


def closed(weight: float, steps: int) -> int:
    """Gates of three layers that close in so many steps of the penalty alone."""
    torch.manual_seed(0)
    layers = [Gates(5) for _ in range(3)]
    for gates in layers:
        gates.learn()
    optimizer = torch.optim.SGD([gates.scores for gates in layers], lr=0.01)
    for _ in range(steps):
        loss = weight * torch.stack([gates() for gates in layers]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return int(sum((1 - gates().detach()).sum() for gates in layers))


def test_the_penalty_alone_closes_everything_and_nothing_closes_without() -> None:
    assert closed(10.0, 200) == 30
    assert closed(0.0, 200) == 0


def test_effective_levels() -> None:
    two = torch.ones(1, 2, 3)
    one = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])
    assert effective(torch.cat([two, one, torch.zeros(1, 2, 3)])) == 3
    sparse = torch.tensor([[[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]])  # one joint alone holds both levels
    assert effective(sparse) == 2


def test_frozen_gates_stay() -> None:
    gates = Gates(3)
    gates.learn()
    gates.scores.data.fill_(-1.0)
    gates.freeze()
    gates.scores.data.fill_(1.0)
    assert not gates().any()


@pytest.mark.parametrize("shared", [False, True])
def test_quadratics(shared: bool) -> None:
    polynomial = NodePolynomial(3, shared=shared)
    polynomial.w2.data.fill_(5.0)  # beyond the clip
    x = torch.randn(2, 4, 6, 3)
    assert torch.allclose(polynomial(x), 0.2 * 2.0 * x * x + 0.5 * x + 0.2)
    quadratic, linear, constant = polynomial.coefficients()
    assert quadratic.tolist() == pytest.approx([0.4] * 3)
    assert (linear.tolist(), constant.tolist()) == ([0.5] * 3, pytest.approx([0.2] * 3))
    paper = NodePolynomial(3, "paper")
    assert torch.allclose(paper(x), 0.01 * 0.005 * x * x + x)
    assert not paper.b.requires_grad
    assert torch.isfinite(polynomial(torch.full((1, 1, 1, 3), 300.0, dtype=torch.float16))).all()


def test_gated_activations() -> None:
    site, x = GatedActivation(), torch.randn(2, 3, 4, 2)
    result = site(x, torch.tensor([1.0, 0.0]))
    assert torch.equal(result[..., 0], x[..., 0].relu())
    assert torch.equal(result[..., 1], x[..., 1])


def test_distillation_equals_values_by_hand() -> Any:
    from tradeoff.methods.private_inference.lingcn import Distillation, two_level_loss
    from tradeoff.methods.private_inference.lingcn.training import attention

    student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    ours, theirs = (
        torch.tensor([[[[1.0, 2.0]]]]),
        torch.tensor([[[[2.0, 1.0]]]]),
    )  # one channel, frame, two joints
    assert attention(ours)[0].tolist() == pytest.approx([1 / 17**0.5, 4 / 17**0.5])
    ce = float(np.log(1 + np.exp(1.0)))  # the label is the second
    p = 1 / (1 + np.exp([2 / 4, -2 / 4]))
    q = 1 / (1 + np.exp([-1 / 4, 1 / 4]))
    kl = float((p * (np.log(p) - np.log(q))).sum()) * 16
    maps = ((1 - 4) ** 2 + (4 - 1) ** 2) / 17 / 2
    loss = two_level_loss(
        (student, [ours]), (teacher, [theirs]), torch.tensor([1]), Distillation(logits=0.3, features=10.0)
    )
    assert float(loss) == pytest.approx(0.7 * ce + 0.3 * kl + 5.0 * maps, rel=1e-6)
    alone = two_level_loss(
        (student, [ours]), (teacher, [theirs]), torch.tensor([1]), Distillation(logits=0.0, features=0.0)
    )
    assert float(alone) == pytest.approx(ce, rel=1e-6)
