"""What the rules are compared with: one rate for all, and experts that are scaled as if each were alone."""

import dataclasses
import math

from torch import nn

from .anatomy import Anatomy, anatomy_of
from .plan import Base, Plan, make_plan
from .rules import Role


def standard_plan(model: nn.Module, base: Base) -> Plan:
    """The standard parametrization: variances fall as 1/fan-in, all tensors have the base's rate and decay.

    Gates sum to 1 over the active experts, and each expert's way back has its own width as fan-in. Equal to
    the rules where the target is the base.
    """
    anatomy = experts_alone(anatomy_of(model))
    plan, tuned = make_plan(model, base, anatomy=anatomy), base.tuned
    rows = []
    for row in plan.rows:
        changes: dict[str, float] = {"learning_rate": tuned.learning_rate, "eps": tuned.eps}
        changes["weight_decay"] = tuned.weight_decay if row.role.is_matrix else row.weight_decay
        if row.role is Role.OUTPUT or row.role is Role.ROUTER:
            changes["std"] = tuned.init_std * math.sqrt(row.base_fan_in / row.fan_in)
        rows.append(row.model_copy(update=changes))
    return plan.model_copy(
        update={
            "rows": tuple(rows),
            "betas": tuned.betas,
            "residual_multiplier": 1.0,
            "logits_multiplier": 1.0,
            "attention_multiplier": 1.0,
        }
    )


def per_expert_plan(
    model: nn.Module, base: Base, batch_tokens: float | None = None, total_tokens: float | None = None
) -> Plan:
    """The rules, but each expert is scaled as a layer of its own, and gates sum to 1."""
    anatomy = experts_alone(anatomy_of(model))
    return make_plan(model, base, batch_tokens=batch_tokens, total_tokens=total_tokens, anatomy=anatomy)


def experts_alone(anatomy: Anatomy) -> Anatomy:
    """The same with a fan-in of one expert's width, as if no other was added to its output."""
    if anatomy.experts is None:
        return anatomy
    alone = dataclasses.replace(anatomy.experts, active=1, shared_width=0)
    return dataclasses.replace(anatomy, experts=alone)
