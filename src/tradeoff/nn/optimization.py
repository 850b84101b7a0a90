"""The optimizer of a training: parameter groups with rates and schedules of their own."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from tradeoff.nn.fit import FitConfig

Schedule = Literal["constant", "cosine", "one_cycle"]

_CONFIG_KEYS = ("learning_rate", "final_learning_rate", "weight_decay", "momentum", "schedule")
_ADAM_KEYS = ("betas", "eps")
"""What a parameter group may replace of the configuration, and what it may give beyond for Adam."""


def make_optimizer(
    model: nn.Module, config: "FitConfig", parameter_groups: Sequence[Mapping[str, Any]] | None
) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW over the given groups and, with the configuration's values, all other parameters.

    Raises:
        ValueError: a group has an unknown key or a tensor that is no trained parameter of the model, or there
            is nothing to train.
    """
    trained = {id(p): p for p in model.parameters() if p.requires_grad}
    keys = _CONFIG_KEYS if config.optimizer == "sgd" else (*_CONFIG_KEYS, *_ADAM_KEYS)
    groups = []
    for given in parameter_groups or ():
        unknown = given.keys() - {"params", *keys}
        if unknown:
            raise ValueError(
                f"parameter group has unknown keys {sorted(unknown)}; known: params, {', '.join(keys)}"
            )
        chosen = [given["params"]] if isinstance(given["params"], Tensor) else list(given["params"])
        if any(id(p) not in trained for p in chosen):
            raise ValueError(
                "a parameter group holds a tensor twice, or one that is no trained parameter of the model"
            )
        groups.append(_group([trained.pop(id(p)) for p in chosen], config, given))
    groups.append(_group(list(trained.values()), config, {}))
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("the model has no parameter to train")
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.nesterov
        )
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.learning_rate)


def _group(parameters: list[Tensor], config: "FitConfig", given: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: given.get(key, getattr(config, key)) for key in _CONFIG_KEYS}
    momentum = values["momentum"]
    constants = {"betas": (momentum, 0.999), **{key: given[key] for key in _ADAM_KEYS if key in given}}
    return {
        "params": parameters,
        "lr": values["learning_rate"],
        "base_lr": values["learning_rate"],
        "final_lr": values["final_learning_rate"],
        "schedule": values["schedule"],
        "weight_decay": values["weight_decay"],
        **({"momentum": momentum} if config.optimizer == "sgd" else constants),
    }


def learning_rate(group: Mapping[str, Any], config: "FitConfig", step: int, total: int) -> float:
    """Learning rate of a group at ``step`` (0-based) of ``total``."""
    base, final = group["base_lr"], group["final_lr"]
    if group["schedule"] == "constant":
        return float(base)
    if group["schedule"] == "cosine":
        return float(final + (base - final) * (1 + math.cos(math.pi * step / total)) / 2)
    warmup = config.warmup_fraction * total
    if step < warmup:
        return float(base * (step + 1) / (warmup + 1))
    return float(base + (final - base) * (step - warmup) / (total - warmup))
