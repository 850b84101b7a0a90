"""LoT as a library: losses and gradients against hand-written ones, randomness, bad input, checkpoints."""

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tradeoff.methods.language_models.lot import (
    InvalidSetting,
    InvalidStudent,
    LoT,
    MissingBatches,
    RunningIndex,
    StudentDiverged,
    imitability,
    train,
)
from tradeoff.nn.checkpoint import CheckpointMismatch
from tradeoff.nn.fit import Callback, FitConfig, TrainingDiverged, fit

METRICS = ("kl", "symmetric_kl")


def data(size: int = 48, classes: int = 3) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(size, 6, generator=generator), torch.arange(size) % classes)


def network(seed: int = 0, classes: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, classes)
    )


def adam(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=0.01)


def lot(**options: Any) -> LoT:
    return LoT(network(), **{"make_student": network_of_any_seed, "optimizer": adam, **options})


def network_of_any_seed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def kl_by_hand(p: Tensor, q: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(p/T) || softmax(q/T)) from the definition, a row at a time."""
    total = torch.zeros((), dtype=p.dtype)
    for row_p, row_q in zip(p, q, strict=True):
        a = (row_p / temperature).exp() / (row_p / temperature).exp().sum()
        b = (row_q / temperature).exp() / (row_q / temperature).exp().sum()
        total = total + (a * (a.log() - b.log())).sum()
    return temperature**2 * total / len(p)


@settings(max_examples=25)
@given(
    rows=st.integers(1, 5),
    classes=st.integers(2, 6),
    temperature=st.sampled_from([1.0, 1.5, 4.0]),
    metric=st.sampled_from(METRICS),
    seed=st.integers(0, 1000),
)
def test_imitability_and_gradient_are_those_of_the_definition(
    rows: int, classes: int, temperature: float, metric: Any, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    trained, reference = torch.randn(2, rows, classes, generator=generator, dtype=torch.float64).unbind()
    trained, reference = trained.requires_grad_(), reference.requires_grad_()
    loss = imitability(trained, reference, temperature, metric)
    by_hand = kl_by_hand(reference.detach(), trained, temperature)
    if metric == "symmetric_kl":
        by_hand = by_hand + kl_by_hand(trained, reference.detach(), temperature)
    torch.testing.assert_close(loss, by_hand)
    (gradient,) = torch.autograd.grad(loss, trained, retain_graph=True)
    (expected,) = torch.autograd.grad(by_hand, trained)
    torch.testing.assert_close(gradient, expected)
    assert torch.autograd.grad(loss, reference, allow_unused=True) == (None,)
    if metric == "kl":
        soft = [(z / temperature).softmax(1) for z in (trained, reference)]
        torch.testing.assert_close(gradient, temperature * (soft[0] - soft[1]) / rows)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 0.0}, "temperature is 0"),
        ({"temperature": torch.nan}, "nan"),
        ({"metric": "js"}, "'js'"),
    ],
)
def test_imitability_that_means_nothing(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidSetting, match=said):
        imitability(torch.zeros(2, 3), torch.zeros(2, 3), **options)
    with pytest.raises(InvalidSetting, match=r"\(2, 3\) and \(2, 4\)"):
        imitability(torch.zeros(2, 3), torch.zeros(2, 4))


def test_tokens_count_as_rows_and_half_precision_is_widened() -> None:
    trained, reference = torch.randn(2, 2, 5, 7).unbind()
    flat = imitability(trained.flatten(0, 1), reference.flatten(0, 1))
    torch.testing.assert_close(imitability(trained, reference), flat)
    half = imitability(trained.bfloat16(), reference.bfloat16())
    assert half.dtype == torch.float32


@pytest.mark.parametrize("student_loss", ["kl", "kl_ce", "symmetric_kl", "symmetric_kl_ce"])
@pytest.mark.parametrize("temperature", [1.0, 1.5, 4.0])
def test_losses_against_autograd_by_hand(student_loss: Any, temperature: float) -> None:
    generator = torch.Generator().manual_seed(1)
    z_t, z_s = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64).unbind()
    z_t, z_s, y = z_t.requires_grad_(), z_s.requires_grad_(), torch.tensor([0, 2, 1, 1])
    method = lot(student_loss=student_loss, temperature=temperature, alpha=0.7)
    losses = method.losses(z_t, [z_s], y)

    def mu(trained: Tensor, fixed: Tensor) -> Tensor:
        value = kl_by_hand(fixed.detach(), trained, temperature)
        if student_loss.startswith("symmetric"):
            value = value + kl_by_hand(trained, fixed.detach(), temperature)
        return value

    cross_entropy = nn.functional.cross_entropy
    teacher = cross_entropy(z_t, y) + 0.7 * mu(z_t, z_s)
    student = cross_entropy(z_s, y) + 0.7 * mu(z_s, z_t) if student_loss.endswith("ce") else mu(z_s, z_t)
    assert losses.teacher is not None
    torch.testing.assert_close(losses.teacher, teacher)
    torch.testing.assert_close(losses.students[0], student)
    gradients = torch.autograd.grad(losses.total, (z_t, z_s))
    torch.testing.assert_close(gradients, torch.autograd.grad(teacher + student, (z_t, z_s)))


def test_swapped_direction_is_another_regularizer() -> None:
    """What the exactness test above must tell apart."""
    trained, reference = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[0.0, 0.0, 3.0]])
    swapped = kl_by_hand(trained, reference, 1.5)
    assert float((imitability(trained, reference) - swapped).abs()) > 0.1


def test_targets_of_minus_100_do_not_count() -> None:
    z_t, z_s = torch.randn(2, 2, 3, 5).unbind()
    y = torch.tensor([[0, -100, 2], [4, -100, -100]])
    kept = y != -100
    method = lot()
    all_rows, counted = method.losses(z_t, [z_s], y), method.losses(z_t[kept], [z_s[kept]], y[kept])
    torch.testing.assert_close(all_rows.total, counted.total)


@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_alpha_0_is_plain_training_bit_for_bit(clip_norm: float | None) -> None:
    config = FitConfig(epochs=3, batch_size=16, optimizer="adam", learning_rate=0.01, clip_norm=clip_norm)
    plain = network()
    fit(plain, data(), None, config)
    method = lot(alpha=0.0, student_steps=3)
    train(method, data(), None, config)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(method.teacher.state_dict()[name], tensor), name


def test_alpha_0_is_plain_training_in_a_loop_of_ones_own() -> None:
    torch.manual_seed(5)
    plain = network()
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
    torch.manual_seed(5)
    for x, y in DataLoader(data(), batch_size=16, shuffle=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(x), y).backward()
        optimizer.step()
    method = lot(alpha=0.0, student_steps=3)
    torch.manual_seed(5)
    for (x, y), extra in method.loader(DataLoader(data(), batch_size=16, shuffle=True)):
        method.step(x, y, extra)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(method.teacher.state_dict()[name], tensor), name


def test_both_gradients_are_taken_before_either_step() -> None:
    """One step of SGD by hand, on both networks from the same values."""
    x, y = data()[:16]
    method = LoT(
        nn.Linear(6, 3),
        make_student=lambda: nn.Linear(6, 3),
        student_steps=1,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0),
    )
    teacher, student = copy.deepcopy(method.teacher), copy.deepcopy(method.students[0])
    z_t, z_s = teacher(x), student(x)
    cross_entropy = nn.functional.cross_entropy
    (cross_entropy(z_t, y) + 0.5 * kl_by_hand(z_s.detach(), z_t, 1.5)).backward()
    (cross_entropy(z_s, y) + 0.5 * kl_by_hand(z_t.detach(), z_s, 1.5)).backward()
    stats = method.step(x, y)
    for ours, by_hand in ((method.teacher, teacher), (method.students[0], student)):
        for mine, other in zip(ours.parameters(), by_hand.parameters(), strict=True):
            torch.testing.assert_close(mine, other - other.grad)
    assert stats["task"] == pytest.approx(float(cross_entropy(z_t, y).detach()))


class CountSteps(nn.Linear):
    """Counts its passes with gradient: those it learns from."""

    def __init__(self) -> None:
        super().__init__(6, 3)
        self.learned: list[Tensor] = []
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        (self.learned if torch.is_grad_enabled() else self.asked).append(x)
        return super().forward(x)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("through", ["fit", "loader"])
def test_students_step_n_times_and_see_every_example_equally_often(steps: int, through: str) -> None:
    examples = data(50)
    method = LoT(CountSteps(), make_student=CountSteps, student_steps=steps, optimizer=adam)
    if through == "fit":
        train(method, examples, None, FitConfig(epochs=5, batch_size=8, optimizer="adam", learning_rate=0.01))
    else:
        for _ in range(5):
            for (x, y), extra in method.loader(DataLoader(examples, 8, shuffle=True, drop_last=True)):
                method.step(x, y, extra)
    (student,) = method.students
    assert isinstance(student, CountSteps)
    assert isinstance(method.teacher, CountSteps)
    assert len(method.teacher.learned) == 30
    assert len(student.learned) == steps * 30
    assert len(method.teacher.asked) == (steps - 1) * 30
    for number, joint in enumerate(method.teacher.learned):
        own = student.learned[number * steps : (number + 1) * steps]
        assert torch.equal(own[0], joint)
        assert not any(torch.equal(extra, joint) for extra in own[1:])
    seen = Counter(float(row[0]) for batch in method.teacher.asked for row in batch)
    counts = [seen[float(row[0])] for row in examples.tensors[0]]
    assert sum(counts) == (steps - 1) * 240
    assert max(counts) - min(counts) <= 1


@given(size=st.integers(1, 30), batch=st.integers(1, 40), count=st.integers(1, 12))
def test_running_index_draws_evenly_and_goes_on_anywhere(size: int, batch: int, count: int) -> None:
    index = RunningIndex(size, batch, seed=3)
    drawn = [index.batch(number) for number in range(count)]
    counts = torch.cat(drawn).bincount(minlength=size)
    assert int(counts.max() - counts.min()) <= 1
    assert torch.equal(RunningIndex(size, batch, seed=3).batch(count - 1), drawn[-1])


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_additional_batches_leave_the_teacher_and_its_statistics_alone(mode: Any) -> None:
    method = lot(teacher_mode=mode).train()
    x, y = data()[:16]
    before = copy.deepcopy(method.state_dict())
    method.student_step(x, y)
    after = method.state_dict()
    teacher = [name for name in before if name.startswith("teacher")]
    assert any("running_mean" in name for name in teacher)
    assert all(torch.equal(before[name], after[name]) for name in teacher)
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("students"))
    assert all(module.training for module in method.teacher.modules())


def test_several_students_weigh_as_their_mean() -> None:
    one = lot(student_steps=1)
    three = LoT(network(), [copy.deepcopy(one.students[0]) for _ in range(3)], student_steps=1)
    for each in (one, three):
        each.eval()
    x, y = data()[:16]
    single, mean = (each.losses(*each(x, "joint"), y) for each in (one, three))
    assert single.teacher is not None
    assert mean.teacher is not None
    torch.testing.assert_close(mean.teacher, single.teacher)
    assert mean.stats["imitability"] == pytest.approx(single.stats["imitability"])
    other = LoT(network(), [one.students[0], network(8)], student_steps=1).eval()
    losses = other.losses(*other(x, "joint"), y)
    z_t, z_s = other(x, "joint")
    expected = torch.stack([imitability(z_t, z) for z in z_s]).mean()
    assert losses.stats["imitability"] == pytest.approx(float(expected.detach()))


def test_alpha_warms_up() -> None:
    method = lot(alpha=0.8, alpha_warmup=4, student_steps=1)
    seen = []
    for _ in range(6):
        seen.append(method.current_alpha)
        method.step(*data()[:16])
    assert seen == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 0.8])


def test_students_have_seeds_of_their_own() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    method = LoT(network(0), 2, make_student=network_of_any_seed, seed=0)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)
    first = [each[0].weight for each in (method.teacher, *method.students)]
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alpha": -0.1}, "-0.1"),
        ({"student_steps": 0}, "student_steps is 0"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"student_loss": "ce"}, "symmetric_kl_ce"),
        ({"students": 0}, "at least 1 student"),
        ({"make_student": None}, "make_student"),
        ({"alpha_warmup": -1}, "-1 steps"),
        ({"clip_norm": 0.0}, "clip_norm is 0"),
        ({"teacher_mode": "test"}, "train or eval"),
    ],
)
def test_bad_settings(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidSetting, match=said):
        lot(**options)


def test_bad_students() -> None:
    teacher = network()
    with pytest.raises(InvalidStudent, match="student 0 shares the memory of"):
        LoT(teacher, [teacher])
    shared = network(1)
    shared[1].running_mean = teacher[1].running_mean
    with pytest.raises(InvalidStudent, match=r"1\.running_mean with the teacher"):
        LoT(teacher, [shared])
    with pytest.raises(InvalidStudent, match="student 0 has the teacher's weights"):
        LoT(teacher, [copy.deepcopy(teacher)])
    method = LoT(teacher, [network(1, classes=4)], optimizer=adam, student_steps=1)
    with pytest.raises(InvalidStudent, match=r"\(16, 3\).*student 0 \(16, 4\)"):
        method.step(*data()[:16])


def test_missing_batches_and_optimizer() -> None:
    x, y = data()[:16]
    with pytest.raises(MissingBatches, match="1 additional batches, not 0"):
        lot().step(x, y)
    with pytest.raises(MissingBatches, match="an additional batch has no example"):
        lot().student_step(x, torch.full((16,), -100))
    with pytest.raises(MissingBatches, match="kl_ce"):
        lot().student_step(x)
    lot(student_loss="kl").student_step(x)
    with pytest.raises(InvalidSetting, match="optimizer"):
        lot(optimizer=None, student_steps=1).step(x, y)
    with pytest.raises(MissingBatches, match="by index"):
        next(lot().loader(DataLoader(data(), batch_size=None)))
    with pytest.raises(ValueError, match="random order"):
        train(lot(recurrent=True), data(), None, FitConfig(steps=1))


@pytest.mark.parametrize("when", ["joint", "extra"])
def test_a_student_that_diverged_is_named_and_the_teacher_is_unchanged(when: str) -> None:
    method = lot(students=2)
    before = {k: v.clone() for k, v in method.teacher.named_parameters()}
    x, y = data()[:16]
    with torch.no_grad():
        method.students[1][0].weight.fill_(torch.nan)
    with pytest.raises(StudentDiverged, match="student 1") as caught:
        method.step(x, y, [(x, y)]) if when == "joint" else method.student_step(x, y)
    assert caught.value.student == 1
    assert all(torch.equal(tensor, before[k]) for k, tensor in method.teacher.named_parameters())
    with torch.no_grad():
        method.teacher[0].weight.fill_(torch.nan)
    with pytest.raises(TrainingDiverged, match="teacher"):
        method.student_step(x, y)


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, state: Any) -> None:
        state.stop = state.step == self.step


class Killed(Exception):
    pass


class KillAt(StopAt):
    def on_step_end(self, state: Any) -> None:
        if state.step == self.step:
            raise Killed


def test_interrupted_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    config = FitConfig(epochs=4, batch_size=16, optimizer="adam", learning_rate=0.01, checkpoint_seconds=0)
    whole, parts = lot(student_steps=3), lot(student_steps=3)
    history = train(whole, data(), None, config, callbacks=[KillAt(99)])
    with pytest.raises(Killed):
        train(parts, data(), None, config, callbacks=[KillAt(7)], checkpoint=tmp_path / "c")
    again = lot(student_steps=3)
    resumed = train(again, data(), None, config, callbacks=[KillAt(99)], checkpoint=tmp_path / "c")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert resumed.column("imitability") == history.column("imitability")
    other = lot(student_steps=3, alpha=0.1)
    with pytest.raises(CheckpointMismatch, match="alpha"):
        train(other, data(), None, config, callbacks=[KillAt(99)], checkpoint=tmp_path / "c")


class Recurrent(nn.Module):
    """An LSTM that reads and returns its state."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
        h, memory = self.lstm(self.embedding(x), memory)
        return self.head(h), memory


def text(number: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, 5, (4, 10), generator=torch.Generator().manual_seed(number))
    return ids[:, :-1], ids[:, 1:]


def recurrent() -> LoT:
    torch.manual_seed(0)
    return LoT(Recurrent(), make_student=Recurrent, recurrent=True, optimizer=adam)


def test_memories_are_kept_apart_and_saved(tmp_path: Path) -> None:
    whole = recurrent()
    for number in range(6):
        whole.step(*text(number), [text(100 + number)])
    assert set(whole.memories) == {"teacher", "joint-student-0", "extra-teacher", "extra-student-0"}
    first = recurrent()
    for number in range(3):
        first.step(*text(number), [text(100 + number)])
    first.save(tmp_path / "c")
    again = recurrent()
    again.load(tmp_path / "c")
    assert (again.steps, again.extra_batches) == (3, 3)
    for number in range(3, 6):
        again.step(*text(number), [text(100 + number)])
    for name, tensor in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    by_hand = Recurrent()
    by_hand.load_state_dict(first.teacher.state_dict())
    memory = first.memories["teacher"]
    expected = by_hand(text(3)[0], memory)[0]
    with torch.no_grad():
        torch.testing.assert_close(first(text(3)[0], "joint")[0], expected)
    assert not torch.equal(first.memories["teacher"][0], first.memories["extra-teacher"][0])


def test_a_checkpoint_of_other_networks_is_refused(tmp_path: Path) -> None:
    lot().save(tmp_path / "c")
    with pytest.raises(CheckpointMismatch, match="other networks"):
        recurrent().load(tmp_path / "c")


def test_the_teacher_is_what_evaluation_sees() -> None:
    method = lot().eval()
    x, _ = data()[:16]
    assert torch.equal(method(x), method.teacher(x))
