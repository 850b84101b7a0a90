"""The controller on a decoder: what it reads, when, and what survives a checkpoint."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from tradeoff.methods.language_models.dtop_p import (
    Activity,
    ControlConfig,
    ControlError,
    Controller,
    ControlWarning,
    StepError,
    expert_flops,
)
from tradeoff.nn.decoder import Decoder, DecoderConfig, InvalidInput, MoE, MoEConfig, Padded
from tradeoff.nn.fit import FitConfig, FitState, fit

MIXTURE = MoEConfig(experts=8, active=2, hidden=6, router="dtop_p", entropy=1e-3)
CONFIG = DecoderConfig(vocab=16, dim=16, layers=2, heads=2, max_len=32, ffn=MIXTURE)


def make(mixture: MoEConfig = MIXTURE, seed: int = 0) -> Decoder:
    return Decoder(replace(CONFIG, ffn=mixture, init_std=0.3), torch.Generator().manual_seed(seed))


def ids(seed: int = 0, batch: int = 4) -> torch.Tensor:
    return torch.randint(16, (batch, 12), generator=torch.Generator().manual_seed(seed))


def set_sizes(model: Decoder, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Experts of each token in each layer, from the routers' own answers."""
    found: list[torch.Tensor] = []
    handles = [
        layer.router.register_forward_hook(lambda router, args, routing: found.append(routing.mask.sum(1)))
        for layer in model.moe_layers
    ]
    model(tokens)
    for handle in handles:
        handle.remove()
    return found


def test_a_step_reports_what_the_routers_did():
    model = make()
    controller = Controller(model, 3)
    expected = set_sizes(model, ids())
    p = controller.p
    seen = controller.step()
    assert seen.per_layer == pytest.approx([float(sizes.float().mean()) for sizes in expected])
    assert seen.active == pytest.approx(sum(seen.per_layer) / 2)
    assert seen.spread == pytest.approx(
        sum(float(sizes.double().std(correction=0)) for sizes in expected) / 2
    )
    assert seen.threshold == (p,)
    assert controller.p == pytest.approx(p + 0.7 * (3 - seen.active) / 8)
    assert [float(layer.router.threshold) for layer in model.moe_layers] == [pytest.approx(controller.p)] * 2


def test_micro_batches_are_weighted_by_their_tokens():
    whole, parts = make(), make()
    one, two = Controller(whole), Controller(parts)
    tokens = ids(batch=6)
    whole(tokens)
    for part in tokens.split([1, 3, 2]):
        parts(part)
    assert one.step() == two.step()
    assert one.p == two.p


def test_padding_does_not_count():
    padded, plain = make(), make()
    one, two = Controller(padded), Controller(plain)
    padded(ids(batch=2), mask=Padded((12, 5)))
    plain(ids(batch=2)[:1])
    plain(ids(batch=2)[1:, :5])
    assert one.step() == two.step()


def test_a_step_of_padding_alone_is_skipped():
    model = make()
    controller = Controller(model)
    x = torch.randn(2, 3, 16)
    for layer in model.moe_layers:
        layer(x, torch.zeros(2, 3, dtype=torch.bool))
    before = controller.p
    with pytest.warns(ControlWarning, match="all tokens"):
        assert controller.step() is None
    assert controller.p == before
    assert not controller.history
    with pytest.raises(StepError):
        controller.step()


def test_steps_need_a_forward_pass_in_training():
    model = make()
    controller = Controller(model)
    with pytest.raises(RuntimeError, match="no forward pass"):
        controller.step()
    model(ids())
    controller.step()
    with pytest.raises(StepError):
        controller.step()
    model.eval()
    model(ids())
    with pytest.raises(StepError):
        controller.step()


def test_activation_checkpointing_counts_each_token_alike():
    plain, recomputed = make(), make()
    one, two = Controller(plain), Controller(recomputed)
    plain(ids()).sum().backward()
    checkpoint(recomputed, ids(), use_reentrant=False).sum().backward()
    first, second = one.step(), two.step()
    assert second.per_layer == pytest.approx(first.per_layer)
    assert one.p == pytest.approx(two.p)


def test_evaluation_has_the_mean_of_the_last_thresholds_and_leaves_training_alone():
    model = make()
    controller = Controller(model, 3)
    thresholds = []
    for step in range(5):
        model(ids(step))
        controller.step()
        thresholds.append(controller.p)
    model.eval()
    for layer in model.moe_layers:
        assert float(layer.router.threshold) == pytest.approx(sum(thresholds) / 5)
    model(ids(9))
    model.train()
    assert float(model.moe_layers[0].router.threshold) == pytest.approx(thresholds[-1])
    assert controller.p == thresholds[-1]


def test_each_layer_can_have_a_threshold_of_its_own():
    model = make()
    controller = Controller(model, 3, ControlConfig(control="layer"))
    for step in range(150):
        model(ids(step, batch=8))
        controller.step()
    last = list(controller.history)[-50:]
    for layer in range(2):
        assert sum(one.per_layer[layer] for one in last) / 50 == pytest.approx(3, rel=0.05)
    assert len(set(controller.p)) == 2
    assert controller.diagnosis().state == "holding"


def test_the_target_may_change():
    model = make()
    controller = Controller(model, 2)
    for target in (2, 3):
        controller.target_active = target
        for step in range(100):
            model(ids(step, batch=8))
            controller.step()
        assert sum(one.active for one in list(controller.history)[-40:]) / 40 == pytest.approx(
            target, rel=0.05
        )
    with pytest.raises(ControlError, match="a target of 9"):
        controller.target_active = 9


def test_too_high_gains_are_named():
    model = make()
    controller = Controller(model, 2, ControlConfig(proportional=4, integral=3))

    def drive() -> None:
        for step in range(60):
            model(ids(step))
            controller.step()

    with pytest.warns(ControlWarning, match="oscillating"):
        drive()
    assert controller.diagnosis().state == "oscillating"
    assert "halve both gains" in str(controller.diagnosis())


def test_cut_sets_are_counted():
    cut, free = make(replace(MIXTURE, max_active=2, threshold=0.9)), make(replace(MIXTURE, threshold=0.9))
    activity = Activity(cut.moe_layers)
    cut(ids())
    tally = activity.take()
    sizes = set_sizes(free, ids())[0]
    assert 0 < int(tally.truncated[0]) == int((sizes > 2).sum())
    assert int(tally.slots[0]) == int(sizes.clamp_max(2).sum())
    assert int(tally.loads[0].sum()) == int(tally.slots[0])
    activity.close()
    cut(ids())
    assert activity.passes == 0


def test_truncation_is_reported():
    model = make(replace(MIXTURE, max_active=1))
    controller = Controller(model, 2, ControlConfig(first_threshold=0.999))
    model(ids())
    assert controller.step().truncated == 1.0
    for _ in range(60):
        model(ids())
        controller.step()
    assert controller.diagnosis().state == "saturated"


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_the_meter_equals_counted_products(activation):
    layer = MoE(16, replace(MIXTURE, activation=activation, dispatch="loop", threshold=0.8))
    activity = Activity([layer])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(torch.randn(30, 16))
    router = 2 * 30 * 16 * 8
    slots = int(activity.take().slots[0])
    assert slots > 30
    assert expert_flops(layer, slots) == counter.get_total_flops() - router


def test_flops_are_reported_beside_those_of_top_k():
    model = make()
    controller = Controller(model, 2)
    model(ids())
    seen = controller.step()
    slot = 2 * 3 * 16 * 6
    assert seen.flops == slot * round(sum(seen.per_layer) * 48)
    assert seen.top_k_flops == slot * 2 * 48 * 2


def run(
    model: Decoder, controller: Controller, optimizer: torch.optim.Optimizer, steps: range
) -> list[float]:
    losses = []
    for step in steps:
        loss = model.loss(ids(step)) + model.aux_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        controller.step()
        losses.append(loss.item())
    return losses


def test_a_resumed_training_is_the_same():
    model = make()
    controller = Controller(model, 3)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    run(model, controller, optimizer, range(10))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    losses = run(model, controller, optimizer, range(10, 20))

    resumed = make(seed=1)
    again = Controller(resumed, 3)
    other = torch.optim.AdamW(resumed.parameters(), 1e-2)
    resumed.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    assert run(resumed, again, other, range(10, 20)) == losses
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


class Texts:
    """Random sequences as a data set for ``fit``."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, positions):
        rows = torch.cat([ids(int(position), 1) for position in positions])
        return rows[:, :-1], rows[:, 1:]


def train(model: Decoder, controller: Controller, steps_done: int | None = None, checkpoint=None):
    callback = controller.callback()

    def loss(wrapped, inputs, targets):
        logits = wrapped(inputs)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()) + model.aux_loss()

    class Interrupt(type(callback)):
        def on_step_end(self, state: FitState) -> None:
            if state.step == steps_done:
                raise KeyboardInterrupt
            super().on_step_end(state)

    callback.__class__ = Interrupt
    config = FitConfig(steps=12, batch_size=8, optimizer="adamw", learning_rate=0.01, checkpoint_seconds=0)
    fit(model, Texts(), None, config, loss=loss, callbacks=[callback], checkpoint=checkpoint)


def test_the_callback_of_fit_goes_on_after_an_interruption(tmp_path):
    whole = make()
    one = Controller(whole, 3)
    train(whole, one)
    assert len(one.history) == 12
    broken = make()
    with pytest.raises(KeyboardInterrupt):
        train(broken, Controller(broken, 3), 7, tmp_path / "state")
    resumed = make()
    two = Controller(resumed, 3)
    train(resumed, two, None, tmp_path / "state")
    assert list(two.history) == list(one.history)
    assert two.p == one.p
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_without_a_controller_starts_at_the_first_threshold():
    plain, model = make(seed=1), make()
    controller = Controller(model, 3, ControlConfig(first_threshold=0.4))
    for step in range(3):
        model(ids(step))
        controller.step()
    with pytest.warns(ControlWarning, match=r"starts at its first threshold, 0\.4"):
        model.load_state_dict(plain.state_dict())
    assert controller.p == pytest.approx(0.4)
    assert float(model.moe_layers[0].router.threshold) == pytest.approx(0.4)
    model(ids())
    controller.step()


def test_half_types_are_controlled_by_full_thresholds():
    model = make()
    controller = Controller(model, 3)
    model.bfloat16()
    model(ids())
    controller.step()
    assert model.moe_layers[0].router.threshold.dtype == torch.float32
    assert float(model.moe_layers[0].router.threshold) == controller.p


def test_a_copy_of_the_model_has_a_controller_of_its_own():
    model = make()
    Controller(model, 3)
    other = copy.deepcopy(model)
    other(ids())
    other.moe_controller.step()
    assert other.moe_controller.p != model.moe_controller.p
    assert float(other.moe_layers[0].router.threshold) == other.moe_controller.p
    with pytest.raises(StepError):
        model.moe_controller.step()


def test_logits_that_are_no_numbers_name_the_layer():
    model = make()
    Controller(model)
    with torch.no_grad():
        model.blocks[1].ffn.router.weight.fill_(float("nan"))
    with pytest.raises(InvalidInput, match="layer 1"):
        model(ids())


def test_what_cannot_be_controlled():
    with pytest.raises(ControlError, match="no layer has a router"):
        Controller(make(replace(MIXTURE, router="top_k")))
    with pytest.raises(ControlError, match="a target of 9"):
        Controller(make(), 9)
    model = make()
    Controller(model)
    with pytest.raises(ControlError, match="has a controller already"):
        Controller(model)
    uneven = torch.nn.Sequential(MoE(16, MIXTURE), MoE(16, replace(MIXTURE, experts=4)))
    with pytest.raises(ControlError, match="4 and 8 experts"):
        Controller(uneven)


def test_layers_share_one_threshold_and_still_differ():
    """One p over normalized logits: a layer's gain decides how many experts it takes."""
    model = make()
    controller = Controller(model, 3)
    with torch.no_grad():
        model.blocks[0].ffn.router.gain.fill_(4.0)
    for step in range(60):
        model(ids(step))
        controller.step()
    seen = controller.history[-1]
    assert seen.per_layer[0] < 2.0 < seen.per_layer[1]
    assert all(a != b for a, b in itertools.pairwise(seen.per_layer))
