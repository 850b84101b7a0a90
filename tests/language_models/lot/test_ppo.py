"""Policies: plain PPO, and LoT on top of it."""

from typing import Any

import numpy as np
import pytest
import torch

from tradeoff.methods.language_models.lot import InvalidSetting
from tradeoff.methods.language_models.lot.ppo import (
    PPO,
    Agent,
    LoTPPO,
    PolicyLoTSettings,
    PPOSettings,
    Rollout,
)

pytest.importorskip("gymnasium", reason="pip install 'tradeoff[control]'")

SMALL = PPOSettings(environments=2, rollout=32, epochs=2)


class Recorded:
    """Keeps the rollouts of a PPO."""

    def __init__(self, method: PPO) -> None:
        self.rollouts: list[Rollout] = []
        play = method.play

        def recorded() -> Rollout:
            self.rollouts.append(play())
            return self.rollouts[-1]

        method.play = recorded  # type: ignore[method-assign]
        self.result = method.train(6 * 64)


def test_alpha_0_plays_as_plain_ppo_does() -> None:
    plain, with_student = (
        PPO("CartPole-v1", SMALL, seed=3),
        LoTPPO("CartPole-v1", SMALL, seed=3, lot=PolicyLoTSettings(alpha=0.0)),
    )
    one, other = Recorded(plain), Recorded(with_student)
    assert one.result.returns == other.result.returns
    for a, b in zip(one.rollouts, other.rollouts, strict=True):
        assert torch.equal(a.observations, b.observations)
        assert torch.equal(a.actions, b.actions)
    for p, q in zip(plain.agent.parameters(), with_student.agent.parameters(), strict=True):
        assert torch.equal(p, q)
    changed = LoTPPO("CartPole-v1", SMALL, seed=3, lot=PolicyLoTSettings(alpha=0.5))
    changed.train(6 * 64)
    pairs = zip(plain.agent.actor.parameters(), changed.agent.actor.parameters(), strict=True)
    assert not any(torch.equal(p, q) for p, q in pairs)


def test_students_never_act_and_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    method = LoTPPO("CartPole-v1", SMALL, lot=PolicyLoTSettings(obs_num=2, students=2))
    assert len(method.lot.students) == 2
    alphas, sizes, playing = [], [], [False]
    forward, play, regularized = Agent.forward, method.play, method.lot.regularized

    def watched(agent: Agent, observation: torch.Tensor) -> torch.Tensor:
        assert not playing[0] or agent is method.agent
        return forward(agent, observation)

    def watched_play() -> Rollout:
        playing[0] = True
        rollout = play()
        playing[0] = False
        sizes.append(len(method.queue))
        return rollout

    def watched_loss(*arguments: Any) -> Any:
        alphas.append((method.updates, method.lot.alpha))
        return regularized(*arguments)

    monkeypatch.setattr(Agent, "forward", watched)
    monkeypatch.setattr(method, "play", watched_play)
    monkeypatch.setattr(method.lot, "regularized", watched_loss)
    method.train(5 * 64)
    assert sizes == [0, 1, 2, 2, 2]
    assert {alpha for update, alpha in alphas if update == 0} == {0.0}
    assert {alpha for update, alpha in alphas if update > 0} == {0.5}


def test_advantages_are_those_of_the_definition() -> None:
    """Sum of (discount lambda)^k delta up to the end of the episode, by a double loop."""
    method = PPO("CartPole-v1", SMALL)
    random = np.random.default_rng(0)
    rewards, values = (torch.from_numpy(random.normal(size=(6, 2))).float() for _ in range(2))
    dones = torch.from_numpy(random.random((6, 2)) < 0.3).float()
    following, done = torch.randn(2), torch.tensor([0.0, 1.0])
    ours = method._advantages(rewards, values, dones, following, done)
    ends, ahead = torch.cat((dones[1:], done[None])), torch.cat((values[1:], following[None]))
    for t in range(6):
        for e in range(2):
            expected, weight = 0.0, 1.0
            for k in range(t, 6):
                alive = 1 - float(ends[k, e])
                expected += weight * float(rewards[k, e] + 0.99 * alive * ahead[k, e] - values[k, e])
                if not alive:
                    break
                weight *= 0.99 * 0.95
            assert float(ours[t, e]) == pytest.approx(expected, abs=1e-4)


def test_ppo_learns() -> None:
    """Twice the return of chance, which is 20 to 25."""
    result = PPO("CartPole-v1", PPOSettings(learning_rate=0.001)).train(8_000)
    assert result.mean_return() > 50


def test_other_environments_are_refused() -> None:
    with pytest.raises(InvalidSetting, match="discrete actions, a vector"):
        PPO("Pendulum-v1", SMALL)
    with pytest.raises(InvalidSetting, match="gymnasium cannot make Nowhere-v1"):
        PPO("Nowhere-v1", SMALL)


def test_no_episode_no_return() -> None:
    with pytest.raises(ValueError, match="no episode ended"):
        PPO("CartPole-v1", SMALL).result.mean_return()
