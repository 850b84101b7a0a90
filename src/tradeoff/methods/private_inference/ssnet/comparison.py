"""What a network costs among different servers, thresholds and protections, before anything is run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from tradeoff.engines import shamir
from tradeoff.nn.plan import Plan


@dataclass(frozen=True)
class Setting:
    """One way to run a network.

    Attributes:
        servers, threshold: n servers, of which any t learn nothing.
        security: ``semi-honest``, ``abort`` or ``robust``.
        nonlinear: ``strict``, or ``masked``, which shows the servers about how large values are.
    """

    servers: int = 3
    threshold: int = 1
    security: Literal["semi-honest", "abort", "robust"] = "semi-honest"
    nonlinear: Literal["strict", "masked"] = "strict"

    def options(self, program: shamir.Program) -> shamir.Program:
        """The program in this setting."""
        return program.with_options(
            servers=self.servers,
            threshold=self.threshold,
            security=self.security,
            nonlinear=self.nonlinear,
        )


@dataclass(frozen=True)
class SettingCost:
    """What an inference costs in a setting.

    Attributes:
        setting: the setting.
        rounds: messages that must wait for one another.
        online: bytes that all parties send; offline: bytes that the dealer sends.
        link_seconds: of rounds and bytes on the link, no computing.
    """

    setting: Setting
    rounds: int
    online: int
    offline: int
    link_seconds: float


def compare_settings(
    plan: Plan, settings: Iterable[Setting], *, batch: int = 1, link: str = "wan"
) -> list[SettingCost]:
    """The predicted cost of a network in every setting, exact in rounds and bytes.

    Args:
        plan: of the network; its weights do not matter.
        batch: images an inference.
        link: emulated link whose time is told.

    Raises:
        ValueError: a setting that there is not.

    Example:
        >>> import torch
        >>> from tradeoff.nn.plan import trace
        >>> plan = trace(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()), (4,))
        >>> for cost in compare_settings(plan, [Setting(), Setting(nonlinear="masked")]):
        ...     print(cost.setting.nonlinear, cost.rounds, cost.online)
        strict 11 5904
        masked 6 648
    """
    program = shamir.Program(plan, shamir.Options())
    return [_cost(setting, setting.options(program), batch, link) for setting in settings]


def _cost(setting: Setting, program: shamir.Program, batch: int, link: str) -> SettingCost:
    total = total_cost(program, batch)
    server = shamir.cost(program, batch, link, party=setting.servers - 1)
    return SettingCost(setting, total.rounds, total.sent, total.offline, server.link_seconds)


@dataclass(frozen=True)
class Total:
    """Rounds, bytes that all parties send online, and bytes from the dealer."""

    rounds: int
    sent: int
    offline: int


def total_cost(program: shamir.Program, batch: int) -> Total:
    """The predicted cost of one inference over all parties."""
    options = program.options
    parties = (*options.scheme.servers, options.client)
    totals = [shamir.cost(program, batch, party=party).total for party in parties]
    return Total(
        max(total.rounds for total in totals),
        sum(total.sent for total in totals),
        sum(total.offline for total in totals),
    )
