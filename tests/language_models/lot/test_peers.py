"""The other regularizers, against their formulas by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from tradeoff.methods.language_models.lot.baselines import SAM, distilled, mixup, r_drop, task_loss
from tradeoff.methods.language_models.lot.tasks import log_probabilities, score
from tradeoff.nn.fit import FitConfig, fit


def examples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 4, generator=generator), torch.arange(8) % 3


def test_sam_steps_by_the_gradient_at_the_worst_point_nearby() -> None:
    x, y = examples()
    torch.manual_seed(0)
    network = nn.Linear(4, 3)
    by_hand = nn.Linear(4, 3)
    by_hand.load_state_dict(network.state_dict())
    sam = SAM(rho=0.5)
    config = FitConfig(steps=1, batch_size=8, learning_rate=1.0, momentum=0.0, schedule="constant")
    fit(network, TensorDataset(x, y), None, config, loss=sam.loss, callbacks=[sam])
    parameters = list(by_hand.parameters())
    gradients = torch.autograd.grad(functional.cross_entropy(by_hand(x), y), parameters)
    norm = sum(float(g.square().sum()) for g in gradients) ** 0.5
    moved = [p + 0.5 * g / norm for p, g in zip(parameters, gradients, strict=True)]
    weight, bias = (m.detach().requires_grad_() for m in moved)
    sharp = torch.autograd.grad(functional.cross_entropy(x @ weight.T + bias, y), (weight, bias))
    for ours, before, gradient in zip(network.parameters(), parameters, sharp, strict=True):
        torch.testing.assert_close(ours, before - gradient)


def test_r_drop_joins_two_passes() -> None:
    x, y = examples()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))
    torch.manual_seed(1)
    loss = r_drop(weight=0.8)(network, x, y)
    torch.manual_seed(1)
    p, q = (z.softmax(1) for z in network(torch.cat((x, x))).chunk(2))
    task = -(p.log()[range(8), y].mean() + q.log()[range(8), y].mean()) / 2
    both = ((p - q) * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(loss, task + 0.4 * both)
    without = r_drop(weight=0.8)(network.eval(), x, y)
    torch.testing.assert_close(without, functional.cross_entropy(network(x), y))


def test_mixup_of_linear_networks_is_linear_in_the_share() -> None:
    x, y = examples()
    network = nn.Linear(4, 3)
    torch.manual_seed(2)
    loss = mixup(alpha=0.4)(network, x, y)
    torch.manual_seed(2)
    share = float(torch.distributions.Beta(0.4, 0.4).sample())
    other = torch.randperm(8)
    logs = (share * network(x) + (1 - share) * network(x[other])).log_softmax(1)
    by_hand = -(share * logs[range(8), y] + (1 - share) * logs[range(8), y[other]]).mean()
    torch.testing.assert_close(loss, by_hand)


def test_distilled_adds_the_imitation_of_a_finished_network() -> None:
    x, y = examples()
    network, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    loss = distilled(teacher, temperature=2.0)(network, x, y)
    p, q = (teacher(x) / 2).softmax(1), (network(x) / 2).softmax(1)
    kl = 4 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(loss, functional.cross_entropy(network(x), y) + kl)
    loss.backward()
    assert teacher.weight.grad is None


def test_label_smoothing_on_texts() -> None:
    logits, y = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    loss = task_loss(0.1)(nn.Identity(), logits, y)
    logs = logits.log_softmax(-1)
    by_hand = -(0.9 * logs.gather(-1, y[..., None]).squeeze(-1) + 0.1 * logs.mean(-1)).mean()
    torch.testing.assert_close(loss, by_hand)


def test_scores_are_means_over_all_targets_and_of_probabilities() -> None:
    x, y = torch.randn(10, 4, 6), torch.randint(0, 3, (10, 4))
    first, second = nn.Linear(6, 3), nn.Linear(6, 3)
    probabilities = ((first(x).softmax(-1) + second(x).softmax(-1)) / 2).flatten(0, 1)
    by_hand = -probabilities.detach()[range(40), y.flatten()].log().mean()
    loss, accuracy = score(log_probabilities(first, second), (x, y), batch_size=3)
    assert loss == pytest.approx(float(by_hand), rel=1e-5)
    assert accuracy == pytest.approx(float((probabilities.argmax(1) == y.flatten()).float().mean()))
