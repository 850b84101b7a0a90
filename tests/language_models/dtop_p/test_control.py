"""The control law on a simulated plant, its limits and its bad inputs."""

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch

from tradeoff.methods.language_models.dtop_p import ControlConfig, ControlError, ThresholdControl, diagnose
from tradeoff.methods.language_models.dtop_p.control import HIGHEST

SIZES = [(2, 8), (4, 16), (8, 64), (16, 128)]
SCALES = (1.0, 1.5, 0.8, 2.0)
STEPS = 100
SETTLED = 60


def plant(experts: int, draws: int = 10) -> Callable[[float, float], float]:
    """Mean size of the sets of 1,000 tokens with normal logits, by threshold and scale of the softmax."""
    logits = torch.randn(draws, 1000, experts, generator=torch.Generator().manual_seed(experts))
    logits = (logits - logits.mean(-1, keepdim=True)) / logits.std(-1, correction=0, keepdim=True)
    tokens = itertools.cycle(logits.sort(-1, descending=True).values)

    def respond(threshold: float, scale: float) -> float:
        probabilities = (scale * next(tokens)).softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        return float((before < threshold).sum(1).double().mean())

    return respond


def drive(
    law: ThresholdControl, respond: Callable[[float, float], float], scales: Sequence[float]
) -> list[float]:
    """Active counts of ``STEPS`` steps at each scale."""
    counts = []
    for scale in scales:
        for _ in range(STEPS):
            counts.append(respond(float(law.threshold), scale))
            law.update(torch.tensor([counts[-1]]))
    return counts


def settling(counts: Sequence[float], target: float) -> int:
    """Steps until the count stays within 5 % of the target."""
    outside = [step for step, count in enumerate(counts) if abs(count - target) > 0.05 * target]
    return outside[-1] + 1 if outside else 0


def follows(target: int, experts: int, config: ControlConfig, scales: Sequence[float] = SCALES) -> bool:
    """Whether a controller settles after every change of the plant and is quiet at the end."""
    law = ThresholdControl(target, experts, config)
    counts = torch.tensor(drive(law, plant(experts), scales)).view(len(scales), STEPS)
    settled = all(settling(part.tolist(), target) <= SETTLED for part in counts)
    return settled and all(float(part[-50:].std()) < 0.05 * target for part in counts)


@pytest.mark.parametrize(("target", "experts"), SIZES)
def test_the_count_follows_the_target_through_changes_of_the_plant(target, experts):
    assert follows(target, experts, ControlConfig())


@pytest.mark.parametrize(("target", "experts"), SIZES)
def test_too_high_gains_fail(target, experts):
    assert not follows(target, experts, ControlConfig(proportional=2, integral=1), SCALES[:1])


@pytest.mark.parametrize(("target", "experts"), [(2, 8), (4, 16), (4, 64), (2, 32), (4, 128)])
def test_errors_in_units_of_the_target_settle_where_it_is_a_small_part(target, experts):
    law = ThresholdControl(target, experts, ControlConfig(error_scale="target"))
    assert (law.proportional, law.integral) == (0.05, 0.05)
    assert settling(drive(law, plant(experts), [1.0]), target) <= 30
    if experts > 8 * target:
        assert ThresholdControl(target, experts, ControlConfig()).error_scale == "target"


@pytest.mark.parametrize(("target", "experts"), SIZES)
def test_saturation_does_not_wind_up(target, experts):
    law = ThresholdControl(target, experts, ControlConfig())
    for _ in range(200):
        law.update(torch.tensor([1.0]))
    assert float(law.threshold) == pytest.approx(HIGHEST)
    assert float(law.error_sum) <= (HIGHEST - law.first) / law.integral + 1e-3
    assert settling(drive(law, plant(experts), [1.5]), target) <= SETTLED


def test_the_law_by_hand():
    law = ThresholdControl(4, 16, ControlConfig(proportional=0.5, integral=0.2, first_threshold=0.3))
    law.update(torch.tensor([2.0]))
    assert float(law.threshold) == pytest.approx(0.3 + 0.5 * 2 / 16 + 0.2 * 2 / 16)
    law.update(torch.tensor([5.0]))
    assert float(law.threshold) == pytest.approx(0.3 - 0.5 / 16 + 0.2 * 1 / 16)
    assert float(law.frozen) == pytest.approx((0.3875 + 0.28125) / 2)


def test_the_running_mean_is_what_the_law_reads():
    law = ThresholdControl(4, 16, ControlConfig(proportional=1, integral=0, first_threshold=0.5, beta=0.75))
    for count, mean in ((2.0, 2.0), (6.0, 3.0), (4.0, 3.25)):
        law.update(torch.tensor([count]))
        assert float(law.threshold) == pytest.approx(0.5 + (4 - mean) / 16)


def test_a_loop_without_a_count_rests():
    law = ThresholdControl(2, 8, ControlConfig(), loops=2)
    before = law.threshold.clone()
    law.update(torch.tensor([1.0, float("nan")]))
    assert float(law.threshold[0]) > float(before[0])
    assert float(law.threshold[1]) == float(before[1])
    law.update(torch.tensor([1.0, 1.0]))
    assert torch.isfinite(law.threshold).all()


def test_the_threshold_of_evaluation_is_the_mean_of_the_last_hundred_steps():
    law = ThresholdControl(4, 16, ControlConfig())
    assert float(law.frozen) == law.first
    thresholds = [float(law.update(torch.tensor([3 + (step % 7) / 3]))) for step in range(130)]
    assert float(law.frozen) == pytest.approx(sum(thresholds[-100:]) / 100, abs=1e-6)


def test_half_types_do_not_round_the_state():
    law = ThresholdControl(4, 16, ControlConfig(first_threshold=0.3))
    law.update(torch.tensor([3.7]))
    before = law.threshold.clone()
    assert torch.equal(law.bfloat16().threshold, before)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"proportional": -1.0}, "proportional gain is -1.0"),
        ({"integral": float("nan")}, "integral gain is nan"),
        ({"proportional": float("inf")}, "proportional gain is inf"),
        ({"first_threshold": 0.0}, "first threshold is 0.0"),
        ({"first_threshold": 1.1}, "first threshold is 1.1"),
        ({"beta": 1.0}, "beta is 1.0"),
        ({"control": "expert"}, "'expert'"),
        ({"error_scale": "tokens"}, "'tokens'"),
    ],
)
def test_bad_configurations(arguments, words):
    with pytest.raises(ControlError, match=words):
        ControlConfig(**arguments)


@pytest.mark.parametrize("target", [0.5, 17, float("nan")])
def test_bad_targets(target):
    with pytest.raises(ValueError, match=f"a target of {target} active of 16"):
        ThresholdControl(target, 16, ControlConfig())


@pytest.mark.parametrize(
    ("counts", "at_limit", "state"),
    [
        ([4.0] * 5, False, "starting"),
        ([4.1, 3.9] * 25, False, "holding"),
        ([7.0, 2.0] * 25, False, "oscillating"),
        ([2.0] * 50, False, "off target"),
        ([2.0] * 50, True, "saturated"),
        ([16 - 0.1 * step for step in range(50)], False, "off target"),
    ],
)
def test_diagnosis(counts, at_limit, state):
    found = diagnose(counts, [at_limit] * len(counts), 4)
    assert found.state == state
    assert str(found).startswith(state)
