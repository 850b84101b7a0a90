"""SNL, the best gradient-based selection before AutoReP: soft masks under an L1 penalty.

Cho, Joshi, Reagen, Garg, Hegde: "Selective Network Linearization for Efficient Private Inference", ICML 2022.
Written from the paper. Each position outputs ``c ReLU(x) + (1 - c) x`` with a trained share ``c`` that starts
at 1; the penalty ``lambda * |c|_1`` pushes shares to 0 and grows while their count falls too slowly. When the
count meets the budget, shares are rounded and the network is finetuned with distillation.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tradeoff.nn.checkpoint import claim_folder, weights_digest
from tradeoff.nn.fit import Callback, FitConfig, FitState, History, Indexable, fit
from tradeoff.nn.losses import distillation, frozen_copy
from tradeoff.nn.polynomial import check_site_shape, gated_relu
from tradeoff.nn.selection import top_k
from tradeoff.nn.surgery import activation_sites, replace_sites

from .replacement import NoReLUSites
from .site import ReplacementConfig
from .training import AutoReP, check_budget


class SoftReLU(nn.Module):
    """``c ReLU(x) + (1 - c) x`` with a trained share ``c`` in [0, 1] per position.

    Args:
        shape: of one image at this site.
        site: name for error messages.
    """

    identity: Tensor

    def __init__(self, shape: tuple[int, ...], site: str = "") -> None:
        super().__init__()
        self.site = site
        self.share = nn.Parameter(torch.ones(shape))
        self.register_buffer("identity", torch.tensor([[0.0], [1.0]]).repeat(1, shape[0]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        check_site_shape(self.site, self.share, x)
        return gated_relu(x, self.share, self.identity, hard=False)


class SelectiveLinearization:
    """Cut the ReLUs of a trained network to a budget by SNL.

    Args:
        model: trained, with ReLUs; it is left as it is and distilled from.
        budget: ReLUs per image to keep at most.
        input_shape: of one image, without the batch.
        penalty: weight of the mean share in the loss at the start.
        growth: factor of the penalty at each check that finds the count above a straight line to the budget.
        check_every: steps between two checks.
        threshold: a share at or below it counts as a dropped ReLU.
        temperature: of the distillation.

    Raises:
        InvalidBudget: the budget is negative or not an integer.
        NoReLUSites: the model has no ReLU.
    """

    def __init__(
        self,
        model: nn.Module,
        budget: int,
        input_shape: tuple[int, ...],
        *,
        penalty: float = 10.0,
        growth: float = 1.1,
        check_every: int = 10,
        threshold: float = 0.01,
        temperature: float = 4.0,
    ) -> None:
        found = activation_sites(model, input_shape)
        if not found:
            raise NoReLUSites(f"{type(model).__name__} has no ReLU to linearize")
        self.budget, self.input_shape = check_budget(budget), tuple(input_shape)
        self.penalty, self.growth, self.check_every = penalty, growth, check_every
        self.threshold, self.temperature = threshold, temperature
        self.teacher: nn.Module = frozen_copy(model)
        self.network = replace_sites(model, {s.name: SoftReLU(s.shape, s.name) for s in found}, input_shape)
        self.total = sum(site.share.numel() for site in self.sites().values())
        self.rounded: AutoReP | None = None

    def sites(self) -> dict[str, SoftReLU]:
        """Return the soft activations by name."""
        return {module.site: module for module in self.network.modules() if isinstance(module, SoftReLU)}

    def fit(
        self,
        train: Indexable,
        validation: Indexable | None,
        replacement: FitConfig,
        finetuning: FitConfig,
        *,
        score_learning_rate: float | None = None,
        checkpoint: Path | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> History:
        """Run both phases. Steps that the first one leaves, as its budget is met early, go to the second.

        Args:
            train: training split.
            validation: chooses among epochs of the second phase; None keeps the last.
            replacement: of the first phase.
            finetuning: of the second, with ``steps`` if ``replacement`` has ``steps``.
            score_learning_rate: constant rate of the shares; by default that of ``replacement``.
            checkpoint: folder to resume from and to write to.
            callbacks: of :func:`tradeoff.nn.fit.fit`.

        Raises:
            CheckpointMismatch: ``checkpoint`` holds a training of another network, budget or pressure.
        """
        if checkpoint is not None:
            claim_folder(checkpoint, self._settings(score_learning_rate))
        pressure = _Pressure(self)
        group = {
            "params": [site.share for site in self.sites().values()],
            "learning_rate": score_learning_rate or replacement.learning_rate,
            "schedule": "constant",
            "weight_decay": 0.0,
        }
        history = fit(
            self.network,
            train,
            None,
            replacement,
            loss=self.loss,
            parameter_groups=[group],
            callbacks=[pressure, *callbacks],
            checkpoint=checkpoint and checkpoint / "replacement.safetensors",
        )
        if finetuning.steps is not None and replacement.steps is not None:
            left = replacement.steps - pressure.steps
            finetuning = finetuning.model_copy(update={"steps": finetuning.steps + left})
        self.rounded = self._round()
        folder = checkpoint and checkpoint / "finetuning"
        second = self.rounded.fit(
            train, validation, replacement, finetuning, checkpoint=folder, callbacks=callbacks
        )
        return History(history.epochs + second.epochs)

    def _settings(self, score_learning_rate: float | None) -> dict[str, Any]:
        """What a training depends on beside the two :class:`FitConfig`, which checkpoints compare."""
        return {
            "budget": self.budget,
            "check_every": self.check_every,
            "growth": self.growth,
            "network": weights_digest(self.network.state_dict()),
            "penalty": self.penalty,
            "score_learning_rate": score_learning_rate,
            "temperature": self.temperature,
            "threshold": self.threshold,
        }

    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return cross-entropy, distillation and the L1 penalty for one batch."""
        outputs = model(inputs)
        with torch.no_grad():
            expected = self.teacher(inputs)
        share = torch.stack([site.share.abs().sum() for site in self.sites().values()]).sum() / self.total
        loss = functional.cross_entropy(outputs, targets) + distillation(outputs, expected, self.temperature)
        return loss + self.penalty * share

    def relu_count(self) -> int:
        """Return the ReLUs per image that are left; before rounding, the shares above the threshold."""
        if self.rounded is not None:
            return self.rounded.relu_count()
        return sum(int((site.share > self.threshold).sum()) for site in self.sites().values())

    def finalize(self) -> nn.Module:
        """Return the network of plain modules, in evaluation mode."""
        return (self.rounded or self._round()).finalize()

    def _round(self) -> AutoReP:
        """The network with the largest shares as ReLUs, the others as identities, ready to be finetuned."""
        found = self.sites()
        shares = torch.cat([site.share.detach().flatten() for site in found.values()])
        kept = top_k(shares, min(self.budget, self.relu_count()))
        masks = {}
        parts = torch.split(kept, [site.share.numel() for site in found.values()])
        for (name, site), part in zip(found.items(), parts, strict=True):
            masks[name] = part.reshape(site.share.shape)
        plain = _with_plain_relus(self.network)
        config = ReplacementConfig(polynomial="identity")
        return AutoReP(
            plain,
            self.budget,
            self.input_shape,
            config,
            teacher=self.teacher,
            temperature=self.temperature,
            positions=masks,
        )


def _with_plain_relus(network: nn.Module) -> nn.Module:
    result = copy.deepcopy(network)
    for path, module in list(result.named_modules()):
        if isinstance(module, SoftReLU):
            result.set_submodule(path, nn.ReLU())
    return result


class _Pressure(Callback):
    """Keeps shares in [0, 1], raises the penalty while the count is late, ends the phase at the budget."""

    def __init__(self, method: SelectiveLinearization) -> None:
        self.method = method
        self.steps = 0

    def on_step_end(self, state: FitState) -> None:
        method = self.method
        self.steps = state.step
        with torch.no_grad():
            for site in method.sites().values():
                site.share.clamp_(0, 1)
        if state.step % method.check_every:
            return
        count = method.relu_count()
        if count <= method.budget:
            state.stop = True
        due = method.total - (method.total - method.budget) * state.step / state.total_steps
        if count > due:
            method.penalty *= method.growth

    def state_dict(self) -> dict[str, float]:
        return {"penalty": self.method.penalty, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.method.penalty, self.steps = state["penalty"], int(state["steps"])
