"""The plan: every value of every tensor of a target, before anything is built or trained."""

import math
import warnings
from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import nn

from tradeoff.nn.decoder import Decoder

from .anatomy import Anatomy, Tensor, anatomy_of, tensors, without_numbers
from .errors import TransferError
from .rules import Ratios, Role, Tuned, scaled_betas, values

SMALLEST_BETA = 0.5
"""Below it, the first moment is hardly a mean any more."""


class Row(BaseModel):
    """The values of all tensors of one name.

    Attributes:
        name: with layer and expert numbers as ``*``.
        count: of tensors.
        fan_in: inputs that count; for what leads out of experts the active width.
        base_fan_in: the same in the base.
        share: rho, the part of tokens over that of the base's experts.
        std, fill: of the initial values; they are all ``fill`` where ``std`` is 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    role: Role
    shape: tuple[int, ...]
    count: int
    fan_in: float
    base_fan_in: float
    share: float
    std: float
    fill: float
    learning_rate: float
    weight_decay: float
    eps: float


class Plan(BaseModel):
    """All that the target needs: :func:`tradeoff.methods.language_models.complete_mue.parametrize` carries
    it out.

    Attributes:
        width_ratio, depth_ratio, batch_ratio, tokens_ratio: target over base.
        steps_ratio: by what the schedule is stretched.
        residual_multiplier: factor of each residual branch.
        logits_multiplier: factor of the logits.
        attention_multiplier: factor of the attention scores beside that of the base, by 1/head width.
        gate_multiplier: factor of gates that sum to 1 over the active experts; 1 in a dense model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: tuple[Row, ...]
    betas: tuple[float, float]
    width_ratio: float
    depth_ratio: float
    batch_ratio: float
    tokens_ratio: float
    steps_ratio: float
    residual_multiplier: float
    logits_multiplier: float
    attention_multiplier: float
    gate_multiplier: float
    optimizer: Literal["AdamW, decay per step = rate x decay"] = "AdamW, decay per step = rate x decay"

    def row(self, name: str) -> Row:
        """The row of a tensor, numbers in its name or not."""
        return next(row for row in self.rows if row.name == without_numbers(name))

    def table(self) -> Table:
        """For people."""
        table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, caption=self.caption())
        table.add_column("tensor", overflow="fold")
        table.add_column("role")
        for title in ("fan-in", "base", "rho", "initial", "rate", "decay", "eps"):
            table.add_column(title, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(
                f"{row.name} {'x'.join(map(str, row.shape))}" + (f" ({row.count})" if row.count > 1 else ""),
                row.role,
                f"{row.fan_in:g}" if row.role.is_matrix else "",
                f"{row.base_fan_in:g}" if row.role.is_matrix else "",
                f"{row.share:.3g}",
                f"N(0, {row.std:.4g}^2)" if row.std else f"{row.fill:g}",
                f"{row.learning_rate:.4g}",
                f"{row.weight_decay:.4g}",
                f"{row.eps:.3g}",
            )
        return table

    def caption(self) -> str:
        """What is the same for all tensors."""
        return (
            f"betas {self.betas[0]:.6g}, {self.betas[1]:.6g}; steps x {self.steps_ratio:g}; multipliers: "
            f"residual branches {self.residual_multiplier:g}, logits {self.logits_multiplier:g}, attention "
            f"scores {self.attention_multiplier:g}, gates that sum to 1 {self.gate_multiplier:g}; "
            f"{self.optimizer}"
        )


class Base:
    """The small model on which hyper-parameters were tuned.

    Args:
        model: it; on torch's ``meta`` device it costs nothing.
        tuned: what was found.
        batch_tokens: tokens of a step.
        total_tokens: tokens of the training.
        anatomy: roles of its tensors; not needed for the models of :func:`anatomy_of`.

    Raises:
        TransferError: a number of tokens is not positive, or a step has more of them than the training.
    """

    def __init__(
        self,
        model: nn.Module,
        tuned: Tuned,
        batch_tokens: float,
        total_tokens: float,
        anatomy: Anatomy | None = None,
    ) -> None:
        _check_tokens(batch_tokens, total_tokens)
        self.tuned, self.batch_tokens, self.total_tokens = tuned, batch_tokens, total_tokens
        self.config = model.config if isinstance(model, Decoder) else None
        self.anatomy = anatomy or anatomy_of(model)
        self.tensors = tensors(model, self.anatomy)

    @property
    def active_width(self) -> float:
        """Hidden units of the feed-forward layer that are added into one token's output.

        Raises:
            TransferError: no tensor tells.
        """
        if self.anatomy.experts is not None:
            return self.anatomy.experts.active_width
        found = [tensor for tensor in self.tensors.values() if tensor.role is Role.FFN_OUT]
        if not found:
            raise TransferError(
                "the base has no tensor of the role 'ffn out', so that experts have no width to go by"
            )
        return found[0].fan_in


def make_plan(
    model: nn.Module,
    base: Base,
    *,
    batch_tokens: float | None = None,
    total_tokens: float | None = None,
    anatomy: Anatomy | None = None,
) -> Plan:
    """The values of every tensor of ``model``, which is left as it is (and may be on the ``meta`` device).

    Args:
        model: the target.
        batch_tokens, total_tokens: of the target's training; the base's when not given.
        anatomy: roles of its tensors, where :func:`anatomy_of` does not know them.

    Raises:
        UnknownRole: a tensor has no role.
        TransferError: the two models differ in more than sizes and experts, or a value leaves its range.
    """
    anatomy = anatomy or anatomy_of(model)
    batch_tokens, total_tokens = batch_tokens or base.batch_tokens, total_tokens or base.total_tokens
    _check_tokens(batch_tokens, total_tokens)
    ratios = Ratios(
        anatomy.width / base.anatomy.width,
        anatomy.depth / base.anatomy.depth,
        batch_tokens / base.batch_tokens,
        total_tokens / base.total_tokens,
    )
    tuned = base.tuned
    if anatomy.tied and tuned.output == "variance":
        raise TransferError("tied embeddings have one variance: choose the output form 'multiplier'")
    betas = scaled_betas(tuned.betas, ratios)
    if betas[0] < SMALLEST_BETA <= tuned.betas[0]:
        warnings.warn(
            f"the first beta becomes {betas[0]:.3g}; a smaller batch would serve better", stacklevel=2
        )
    experts = anatomy.experts
    head = 1.0
    if anatomy.head_width and base.anatomy.head_width:
        head = base.anatomy.head_width / anatomy.head_width
    return Plan(
        rows=tuple(_rows(tensors(model, anatomy), anatomy, base, ratios)),
        betas=betas,
        width_ratio=ratios.width,
        depth_ratio=ratios.depth,
        batch_ratio=ratios.batch,
        tokens_ratio=ratios.tokens,
        steps_ratio=ratios.steps,
        residual_multiplier=ratios.depth**-tuned.alpha,
        logits_multiplier=1 / ratios.width if tuned.output == "multiplier" else 1.0,
        attention_multiplier=head,
        gate_multiplier=experts.active if experts else 1.0,
    )


def _check_tokens(batch: float, total: float) -> None:
    if not 0 < batch <= total < math.inf:
        raise TransferError(
            f"steps of {batch:g} tokens in a training of {total:g}: expected 0 < step <= training"
        )


def _rows(found: dict[str, Tensor], anatomy: Anatomy, base: Base, ratios: Ratios) -> Iterator[Row]:
    _check_sets(found, base)
    experts, old = anatomy.experts, base.anatomy.experts
    share = (experts.share if experts else 1.0) / (old.share if old else 1.0)
    sparse = experts is not None and experts.share < 1
    for name, tensor in found.items():
        fan_in, base_fan_in = _fans(tensor, anatomy, base)
        mine = share if tensor.role.is_routed else 1.0
        made = values(tensor.role, base.tuned, ratios, fan_in / base_fan_in, mine, sparse)
        yield Row(
            name=name,
            role=tensor.role,
            shape=tensor.shape,
            count=tensor.count,
            fan_in=fan_in,
            base_fan_in=base_fan_in,
            share=mine,
            **vars(made),
        )


def _fans(tensor: Tensor, anatomy: Anatomy, base: Base) -> tuple[float, float]:
    """Fan-in that counts, and that of the tensor's counterpart in the base."""
    match tensor.role:
        case Role.EXPERT_OUT | Role.SHARED_OUT:
            if anatomy.experts is None:
                raise TransferError(f"{tensor.name} belongs to experts, but the anatomy has none")
            return anatomy.experts.active_width, base.active_width
        case Role.FFN_OUT:
            return tensor.fan_in, base.active_width
        case role if role.is_feed_forward and role.is_matrix:
            return tensor.fan_in, base.anatomy.width
        case _:
            return tensor.fan_in, base.tensors[tensor.name].fan_in if tensor.role.is_matrix else 1.0


def _check_sets(found: dict[str, Tensor], base: Base) -> None:
    """Both must have the same tensors, those of feed-forward layers aside."""
    mine, theirs = (
        {t.name for t in each.values() if not (t.role.is_feed_forward or t.role is Role.BIAS)}
        for each in (found, base.tensors)
    )
    if mine != theirs:
        raise TransferError(
            "base and target have different tensors: "
            f"only the base {sorted(theirs - mine)}, only the target {sorted(mine - theirs)}"
        )
