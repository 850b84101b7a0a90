"""What a mixture of experts consists of."""

from dataclasses import dataclass

from tradeoff.nn.decoder.errors import InvalidConfig


@dataclass(frozen=True)
class MoEConfig:
    """A mixture of experts in place of the dense feed-forward layer.

    Attributes:
        experts: experts of a layer.
        hidden: width of an expert.
    """

    experts: int
    hidden: int

    def __post_init__(self) -> None:
        if self.experts < 1 or self.hidden < 1:
            raise InvalidConfig(f"{self.experts} experts of width {self.hidden}")
