"""Proximal policy optimization, plain and with students: the setting of LoT where data is not given."""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pydantic
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn.utils import clip_grad_norm_

from tradeoff.core.errors import MissingExtra

from .errors import InvalidSetting
from .imitability import imitability
from .regularizer import Losses, LoT


class PPOSettings(pydantic.BaseModel):
    """What PPO is tuned by (Schulman et al., 2017); defaults are CleanRL's for classic control.

    Attributes:
        environments: played side by side.
        rollout: steps of each between two updates.
        minibatches, epochs: parts of a rollout, and passes over it.
        learning_rate: falls linearly to 0.
        discount, gae: gamma and lambda of advantage estimation.
        clip: largest change of a ratio of probabilities, and of a value, that is rewarded.
        entropy, value: weights in the loss.
        max_norm: of the gradient of each network.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    environments: int = Field(default=4, ge=1)
    rollout: int = Field(default=128, ge=2)
    minibatches: int = Field(default=4, ge=1)
    epochs: int = Field(default=4, ge=1)
    learning_rate: float = Field(default=2.5e-4, gt=0)
    discount: float = Field(default=0.99, gt=0, le=1)
    gae: float = Field(default=0.95, ge=0, le=1)
    clip: float = Field(default=0.2, gt=0)
    entropy: float = Field(default=0.01, ge=0)
    value: float = Field(default=0.5, ge=0)
    max_norm: float = Field(default=0.5, gt=0)


class PolicyLoTSettings(pydantic.BaseModel):
    """What LoT is tuned by where policies learn.

    Attributes:
        alpha: weight of the penalty; 0 in the first update, when the students know nothing.
        student_steps: passes of the students over the queue after each update.
        temperature: T.
        students: how many.
        obs_num: rollouts whose observations the queue holds.
        student_weight_decay: of the students alone.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    alpha: float = Field(default=0.5, ge=0)
    student_steps: int = Field(default=1, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    students: int = Field(default=1, ge=1)
    obs_num: int = Field(default=10, ge=1)
    student_weight_decay: float = Field(default=1e-4, ge=0)


class Agent(nn.Module):
    """Policy and value of a vector of observations: two hidden layers of 64 units each, orthogonal start."""

    def __init__(self, observations: int, actions: int) -> None:
        super().__init__()
        self.actor = _layers(observations, actions, last_gain=0.01)
        self.critic = _layers(observations, 1, last_gain=1.0)

    def forward(self, observation: Float[Tensor, "batch observations"]) -> Float[Tensor, "batch actions"]:
        """Logits of the policy."""
        out: Tensor = self.actor(observation)
        return out

    def value(self, observation: Float[Tensor, "batch observations"]) -> Float[Tensor, " batch"]:
        """Expected return."""
        out: Tensor = self.critic(observation).squeeze(-1)
        return out


def _layers(inputs: int, outputs: int, last_gain: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, following, gain in ((inputs, 64, 2**0.5), (64, 64, 2**0.5), (64, outputs, last_gain)):
        linear = nn.Linear(width, following)
        nn.init.orthogonal_(linear.weight, gain)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


@dataclass
class Rollout:
    """Steps of all environments; the first dimension is ``steps * environments`` once flattened."""

    observations: Tensor
    actions: Tensor
    log_probabilities: Tensor
    values: Tensor
    advantages: Tensor

    def rows(self, positions: Tensor) -> "Rollout":
        """Some of the steps."""
        return Rollout(*(getattr(self, name)[positions] for name in self.__dataclass_fields__))

    @property
    def returns(self) -> Tensor:
        """What values are to predict."""
        return self.advantages + self.values


@dataclass
class PPOResult:
    """What a training gave.

    Attributes:
        returns: of each finished episode, in order.
        student_kl: after each update, KL from the teacher's policy to the students', on the last rollout.
        seconds: of the training.
    """

    returns: list[float] = field(default_factory=list)
    student_kl: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def mean_return(self, last: int = 20) -> float:
        """Over the last episodes.

        Raises:
            ValueError: no episode ended.
        """
        if not self.returns:
            raise ValueError("no episode ended within the training; give it more steps")
        return float(np.mean(self.returns[-last:]))


class PPO:
    """Proximal policy optimization for discrete actions and vectors of observations.

    Args:
        environment: a name that gymnasium knows.
        settings: of the algorithm.
        seed: of weights, actions, environments and mini-batches.

    Raises:
        MissingExtra: gymnasium is not installed.
        InvalidSetting: no such environment, or its actions or observations are of another kind.
    """

    def __init__(self, environment: str, settings: PPOSettings | None = None, seed: int = 0) -> None:
        self.settings = settings or PPOSettings()
        self.environments = _environments(environment, self.settings.environments)
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)
        self.agent = self.make_agent(seed)
        self.optimizer = self.make_optimizer()
        self.updates = 0
        self.result = PPOResult()

    def make_agent(self, seed: int) -> Agent:
        """An agent for the environment."""
        observations = int(np.prod(self.environments.single_observation_space.shape))
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            return Agent(observations, int(self.environments.single_action_space.n))

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Of the agent."""
        return torch.optim.Adam(self.agent.parameters(), lr=self.settings.learning_rate, eps=1e-5)

    def train(self, steps: int) -> PPOResult:
        """Play about ``steps`` steps, over all environments together, and learn after each rollout."""
        started = time.perf_counter()
        total = max(1, steps // (self.settings.rollout * self.settings.environments))
        self._observation, _ = self.environments.reset(seed=self.seed)
        self._done = np.zeros(self.settings.environments, bool)
        self._sums = np.zeros(self.settings.environments)
        for update in range(total):
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.learning_rate * (1 - update / total)
            self.learn(self.play())
            self.updates += 1
        self.environments.close()
        self.result.seconds = time.perf_counter() - started
        return self.result

    @torch.no_grad()
    def play(self) -> Rollout:
        """One rollout with the agent's policy."""
        length = self.settings.rollout
        columns: dict[str, list[Tensor]] = {name: [] for name in ("o", "a", "l", "v", "r", "d")}
        for _ in range(length):
            observation = _tensor(self._observation)
            policy = Categorical(logits=self.agent(observation))
            action = torch.multinomial(policy.probs, 1, generator=self.generator).squeeze(1)
            columns["o"].append(observation)
            columns["a"].append(action)
            columns["l"].append(_log_probability(policy, action))
            columns["v"].append(self.agent.value(observation))
            columns["d"].append(_tensor(self._done))
            columns["r"].append(_tensor(self._step(action.numpy())))
        stacked = {name: torch.stack(column) for name, column in columns.items()}
        following = self.agent.value(_tensor(self._observation))
        advantages = self._advantages(
            stacked["r"], stacked["v"], stacked["d"], following, _tensor(self._done)
        )
        named = (stacked["o"], stacked["a"], stacked["l"], stacked["v"], advantages)
        return Rollout(*(column.flatten(0, 1) for column in named))

    def learn(self, rollout: Rollout) -> None:
        """Passes over one rollout in mini-batches."""
        size = len(rollout.actions)
        for _ in range(self.settings.epochs):
            order = torch.randperm(size, generator=self.generator)
            for positions in order.chunk(self.settings.minibatches):
                self.step(rollout.rows(positions))

    def step(self, batch: Rollout) -> None:
        """One update of the agent."""
        loss = self.loss(self.agent(batch.observations), batch)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(self.agent.parameters(), self.settings.max_norm)
        self.optimizer.step()

    def loss(self, logits: Float[Tensor, "batch actions"], batch: Rollout) -> Tensor:
        """Clipped surrogate, clipped value loss and entropy, with advantages normalized in the batch."""
        settings, policy = self.settings, Categorical(logits=logits)
        ratio = (_log_probability(policy, batch.actions) - batch.log_probabilities).exp()
        advantages = (batch.advantages - batch.advantages.mean()) / (batch.advantages.std() + 1e-8)
        clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
        gain = torch.minimum(advantages * ratio, advantages * clipped).mean()
        value = self.agent.value(batch.observations)
        near = batch.values + (value - batch.values).clamp(-settings.clip, settings.clip)
        errors = torch.maximum((value - batch.returns) ** 2, (near - batch.returns) ** 2)
        entropy: Tensor = policy.entropy().mean()  # type: ignore[no-untyped-call]
        return settings.value * errors.mean() / 2 - gain - settings.entropy * entropy

    def _step(self, actions: np.ndarray) -> np.ndarray:
        """One step of all environments; finished ones start again at once."""
        self._observation, rewards, terminated, truncated, _ = self.environments.step(actions)
        self._done = np.logical_or(terminated, truncated)
        self._sums += rewards
        for i in np.flatnonzero(self._done):
            self.result.returns.append(float(self._sums[i]))
            self._sums[i] = 0.0
        return np.asarray(rewards)

    def _advantages(
        self, rewards: Tensor, values: Tensor, dones: Tensor, following: Tensor, done: Tensor
    ) -> Float[Tensor, "steps environments"]:
        """Generalized advantage estimation (Schulman et al., ICLR 2016)."""
        discount, decay = self.settings.discount, self.settings.gae
        advantages = torch.zeros_like(rewards)
        last = torch.zeros_like(following)
        for t in reversed(range(len(rewards))):
            alive = 1 - (done if t == len(rewards) - 1 else dones[t + 1])
            ahead = following if t == len(rewards) - 1 else values[t + 1]
            delta = rewards[t] + discount * ahead * alive - values[t]
            last = delta + discount * decay * alive * last
            advantages[t] = last
        return advantages


class LoTPPO(PPO):
    """PPO whose policy is also to be easy to imitate (Jin et al., NeurIPS 2024).

    Students learn from each mini-batch's observations and, after each update, from those of the last
    ``obs_num`` rollouts. They never act. With alpha 0 the agent is that of :class:`PPO`, bit for bit.

    Args:
        environment, settings, seed: as for :class:`PPO`.
        lot: of the students.
    """

    def __init__(
        self,
        environment: str,
        settings: PPOSettings | None = None,
        seed: int = 0,
        lot: PolicyLoTSettings | None = None,
    ) -> None:
        self.lot_settings = lot or PolicyLoTSettings()
        self.queue: deque[Tensor] = deque(maxlen=self.lot_settings.obs_num)
        super().__init__(environment, settings, seed)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Of the agent and the students."""
        options, settings = self.lot_settings, self.settings
        seeds = range(self.seed + 1, self.seed + 1 + options.students)

        def adam(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
            for group in groups[1:]:
                group["weight_decay"] = options.student_weight_decay
            return torch.optim.Adam(groups, lr=settings.learning_rate, eps=1e-5)

        self.lot = LoT(
            self.agent,
            [self.make_agent(seed) for seed in seeds],
            alpha=options.alpha,
            temperature=options.temperature,
            student_loss="kl",
            optimizer=adam,
            clip_norm=settings.max_norm,
            seed=self.seed,
        )
        self._students_generator = torch.Generator().manual_seed(self.seed + 1)
        assert self.lot.optimizer is not None
        return self.lot.optimizer

    def learn(self, rollout: Rollout) -> None:
        """Passes over the rollout for all, then over the queue for the students."""
        self.lot.alpha = self.lot_settings.alpha if self.updates else 0.0
        super().learn(rollout)
        self.queue.append(rollout.observations)
        observations = torch.cat(list(self.queue))
        size = len(rollout.actions) // self.settings.minibatches
        for _ in range(self.lot_settings.student_steps):
            order = torch.randperm(len(observations), generator=self._students_generator)
            for positions in torch.split(order, size):
                self.lot.student_step(observations[positions])
        with torch.no_grad():
            z_t, z_s = self.lot(rollout.observations, "joint")
            kl = torch.stack([imitability(z, z_t, temperature=1.0) for z in z_s]).mean()
        self.result.student_kl.append(float(kl))

    def step(self, batch: Rollout) -> None:
        """One update of the agent and of each student, from the same outputs."""
        z_t, z_s = self.lot(batch.observations, "joint")
        self.lot.check_outputs(z_t, z_s, "a mini-batch")
        teacher, _ = self.lot.regularized(self.loss(z_t, batch), z_t, z_s)
        self.optimizer.zero_grad()
        losses = Losses(teacher, self.lot.imitation(z_t, z_s))
        losses.total.backward()  # type: ignore[no-untyped-call]
        self.lot.clip()
        self.optimizer.step()
        self.lot.steps += 1


def _environments(name: str, count: int) -> Any:
    try:
        import gymnasium
        from gymnasium.vector import AutoresetMode, SyncVectorEnv
    except ImportError as error:
        raise MissingExtra("gymnasium", "control") from error
    makers = [lambda: gymnasium.make(name) for _ in range(count)]
    try:
        environments = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
    except gymnasium.error.Error as error:
        raise InvalidSetting(f"gymnasium cannot make {name}: {error}") from None
    actions, observations = environments.single_action_space, environments.single_observation_space
    if not isinstance(actions, gymnasium.spaces.Discrete) or len(observations.shape or ()) != 1:
        raise InvalidSetting(f"{name} has {actions} and {observations}; expected discrete actions, a vector")
    return environments


def _log_probability(policy: Categorical, actions: Tensor) -> Tensor:
    out: Tensor = policy.log_prob(actions)  # type: ignore[no-untyped-call]
    return out


def _tensor(values: np.ndarray) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)
