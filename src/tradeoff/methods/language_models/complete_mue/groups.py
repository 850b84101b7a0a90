"""From a plan to a model that is ready to train: initial values, multipliers, parameter groups."""

import dataclasses
import fnmatch
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tradeoff.nn.decoder import Decoder, MoEConfig

from .anatomy import Anatomy, anatomy_of, without_numbers
from .errors import TransferError
from .plan import Base, Plan, Row, make_plan


class ParameterGroups(list[dict[str, Any]]):
    """Parameter groups for ``torch.optim.AdamW``, one for each set of values.

    Attributes:
        plan: where the values come from.
        multipliers: handles of the hooks that scale outputs; none for a common decoder, which has its own
            factors.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], plan: Plan, multipliers: list[RemovableHandle]
    ) -> None:
        super().__init__(groups)
        self.plan, self.multipliers = plan, multipliers

    def table(self) -> Table:
        """Every tensor's values, for people."""
        return self.plan.table()

    def for_fit(self) -> list[dict[str, Any]]:
        """The same as :func:`tradeoff.nn.fit.fit` names them, whose schedule then scales each rate."""
        names = {"params": "params", "lr": "learning_rate"}
        return [{names.get(key, key): value for key, value in group.items()} for group in self]

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """Make sure that an optimizer trains these tensors with these values, before its first step.

        Raises:
            TransferError: it has other tensors, as one that was made before has, or other values.

        Warns:
            UserWarning: it does not decouple the decay, so that decays mean something else.
        """
        theirs = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        mine = {id(p): group for group in self for p in group["params"]}
        if theirs.keys() != mine.keys():
            raise TransferError(
                f"the optimizer has {len(theirs)} tensors, of which {len(theirs.keys() & mine.keys())} are "
                f"among the {len(mine)} that were parametrized; make it from the groups, after parametrize"
            )
        for key, group in mine.items():
            for name in ("lr", "weight_decay", "eps", "betas"):
                if theirs[key].get(name) != group[name]:
                    raise TransferError(
                        f"the optimizer has {name} {theirs[key].get(name)} where the rules give {group[name]}"
                    )
        decoupled = isinstance(optimizer, torch.optim.AdamW) or optimizer.defaults.get(
            "decoupled_weight_decay", False
        )
        if not decoupled and any(group["weight_decay"] for group in self):
            warnings.warn(
                f"{type(optimizer).__name__} does not decouple decay from the gradient; use AdamW",
                stacklevel=2,
            )


def parametrize(
    model: nn.Module,
    base: Base,
    *,
    batch_tokens: float | None = None,
    total_tokens: float | None = None,
    anatomy: Anatomy | None = None,
    generator: torch.Generator | None = None,
) -> ParameterGroups:
    """Draw the weights of ``model`` anew, set its multipliers, and give its parameter groups.

    >>> from torch.optim import AdamW
    >>> from tradeoff.methods.language_models.complete_mue import Base, Tuned
    >>> from tradeoff.nn.decoder import Decoder, DecoderConfig
    >>> small = DecoderConfig(dim=64, hidden=256, heads=4, layers=2)
    >>> base = Base(Decoder(small), Tuned(learning_rate=2**-7, weight_decay=0.1), 2**14, 2**24)
    >>> model = Decoder(DecoderConfig(dim=256, hidden=1024, heads=16, layers=8))
    >>> groups = parametrize(model, base, batch_tokens=2**16, total_tokens=2**28)
    >>> optimizer = AdamW(groups)
    >>> groups.plan.row("blocks.0.attention.query.weight").learning_rate == 2**-7 / 4 / 2
    True

    Args:
        model: the target. A common decoder gets its own multipliers; in other models hooks scale the
            modules that the anatomy names.
        base: the small model and what was tuned on it.
        batch_tokens, total_tokens: of the target's training; the base's when not given.
        anatomy: of a model that is not known here.
        generator: draws the weights; None for torch's global one.

    Raises:
        UnknownRole: a tensor has no role.
        TransferError: see :func:`make_plan` and :func:`carry_out`.
    """
    plan = make_plan(model, base, batch_tokens=batch_tokens, total_tokens=total_tokens, anatomy=anatomy)
    return carry_out(plan, model, base, anatomy=anatomy, generator=generator)


@torch.no_grad()
def carry_out(
    plan: Plan,
    model: nn.Module,
    base: Base,
    *,
    anatomy: Anatomy | None = None,
    generator: torch.Generator | None = None,
) -> ParameterGroups:
    """What :func:`parametrize` does with a plan that is there already.

    Raises:
        TransferError: a multiplier is needed that the anatomy has no place for.
    """
    rows = {row.name: row for row in plan.rows}
    groups: dict[tuple[float, float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        row = rows[without_numbers(name)]
        _draw(parameter, row, generator)
        groups.setdefault((row.learning_rate, row.weight_decay, row.eps), []).append(parameter)
    multipliers = _set_multipliers(model, plan, base, anatomy or anatomy_of(model))
    return ParameterGroups(
        (
            {"params": parameters, "lr": rate, "weight_decay": decay, "eps": eps, "betas": plan.betas}
            for (rate, decay, eps), parameters in groups.items()
        ),
        plan,
        multipliers,
    )


def _draw(parameter: Tensor, row: Row, generator: torch.Generator | None) -> None:
    if row.std:
        parameter.normal_(0.0, row.std, generator=generator)
    else:
        parameter.fill_(row.fill)


def _set_multipliers(model: nn.Module, plan: Plan, base: Base, anatomy: Anatomy) -> list[RemovableHandle]:
    if isinstance(model, Decoder):
        _scale_decoder(model, plan, base)
        return []
    if plan.attention_multiplier != 1:
        raise TransferError(
            f"attention scores must be scaled by {plan.attention_multiplier:g}, which needs a common "
            "decoder; keep the width of heads"
        )
    factors: dict[nn.Module, float] = {}
    for what, factor, patterns in (
        ("residual branches", plan.residual_multiplier, anatomy.branches),
        ("logits", plan.logits_multiplier, [anatomy.logits] if anatomy.logits else []),
        ("mixtures", plan.gate_multiplier, anatomy.mixtures),
    ):
        if factor == 1:
            continue
        found = [module for name, module in model.named_modules() if _fits(name, patterns)]
        if not found:
            raise TransferError(
                f"{what} must be scaled by {factor:g}, but the anatomy names no module for it"
            )
        for module in found:
            factors[module] = factors.get(module, 1.0) * factor
    return [module.register_forward_hook(_Scale(factor)) for module, factor in factors.items()]


def _fits(module: str, patterns: Sequence[str]) -> bool:
    plain = without_numbers(f"{module}.").removesuffix(".")
    return any(fnmatch.fnmatchcase(plain, pattern) for pattern in patterns)


class _Scale:
    """A hook that scales a module's output, or the first of several."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] * self.factor, *output[1:])
        return output * self.factor


def _scale_decoder(model: Decoder, plan: Plan, base: Base) -> None:
    """The base's own multipliers times those of the plan: the same again, if it is done twice."""
    if base.config is None:
        raise TransferError("a common decoder needs one as its base")
    model.config = dataclasses.replace(
        model.config,
        residual_multiplier=base.config.residual_multiplier * plan.residual_multiplier,
        logits_multiplier=base.config.logits_multiplier * plan.logits_multiplier,
        embedding_multiplier=base.config.embedding_multiplier,
        attn_scale=base.config.score_scale * plan.attention_multiplier,
        ffn=_with_gates(model.config.ffn, plan.gate_multiplier),
    )
    blocks: Any = model.blocks
    for block in blocks:
        block.multiplier = model.config.residual_multiplier
        block.attention.scale = model.config.score_scale
    for layer in model.moe_layers:
        layer.config = layer.router.config = _with_gates(layer.config, plan.gate_multiplier)


F = TypeVar("F")


def _with_gates(ffn: F, scale: float) -> F:
    """A mixture whose gates sum to ``scale`` over a token's experts; a dense layer as it is."""
    if not isinstance(ffn, MoEConfig):
        return ffn
    return dataclasses.replace(ffn, normalize_gates=True, gate_scale=scale)
