import pytest
import torch

from tradeoff.nn.losses import distillation, over_budget


def test_distillation_is_the_scaled_divergence_and_spares_the_teacher() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(6, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(6, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    loss = distillation(student, teacher, temperature=4.0)
    p, q = torch.softmax(teacher / 4, 1), torch.softmax(student / 4, 1)
    torch.testing.assert_close(loss, 16 * (p * (p / q).log()).sum() / 6)
    loss.backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
    assert distillation(teacher, teacher).item() == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="temperature"):
        distillation(student, teacher, temperature=0.0)


def test_no_gradient_within_the_budget() -> None:
    used = torch.tensor(0.3, requires_grad=True)
    for budget, loss, slope in ((0.2, 0.1, 1.0), (0.3, 0.0, 0.0), (0.4, 0.0, 0.0)):
        used.grad = None
        value = over_budget(used, budget)
        value.backward()
        assert value.item() == pytest.approx(loss)
        assert used.grad.item() == slope
