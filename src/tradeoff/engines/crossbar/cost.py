"""What products cost: crossbars, cells and conversions by counting, energy, area and latency by a model.

The model follows ISAAC (Shafiee et al., ISCA 2016): power of each part while it works, a fixed cycle for one
read of all columns, one converter for each crossbar. No device is here: these figures are ``modelled``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tradeoff.core.metric import Metric, counted, modelled
from tradeoff.engines.crossbar.config import CrossbarConfig
from tradeoff.engines.crossbar.errors import InvalidConfig
from tradeoff.engines.crossbar.placement import Placement

ISAAC = Path(__file__).with_name("isaac_32nm.yaml")
MAX_BYTES = 1 << 16

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Component(BaseModel):
    """Parts of one kind in a unit.

    Attributes:
        count: how many.
        power: of all of them while they work, W.
        area: of all of them, mm^2.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: Annotated[int, Field(ge=1)]
    power: Amount
    area: Amount

    @property
    def power_each(self) -> float:
        return self.power / self.count

    @property
    def area_each(self) -> float:
        return self.area / self.count


class ComponentTable(BaseModel):
    """The parts of a unit of crossbars, with where their figures come from; see ``isaac_32nm.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    source: str
    node: str
    year: int
    cycle: Positive
    adc_rate: Positive
    adc_bits: Annotated[int, Field(ge=1)]
    reference_rows: Annotated[int, Field(ge=1)]
    reference_cols: Annotated[int, Field(ge=1)]
    crossbars_per_unit: Annotated[int, Field(ge=1)]
    adc: Component
    dac: Component
    sample_hold: Component
    crossbar: Component
    shift_add: Component
    input_register: Component
    output_register: Component

    @classmethod
    def load(cls, path: Path = ISAAC) -> Self:
        """Read a table.

        Raises:
            InvalidConfig: it is none; the message names what is wrong.
        """
        try:
            with path.open("rb") as file:
                text = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise InvalidConfig(f"cannot read {path}: {error.strerror or error}") from error
        if len(text) > MAX_BYTES:
            raise InvalidConfig(f"{path} has more than {MAX_BYTES:,} bytes")
        try:
            return cls.model_validate(yaml.safe_load(text))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InvalidConfig(f"{path} is no YAML: {error}") from error
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
            raise InvalidConfig(f"{path} is no table of components: {wrong}") from error


class LayerCost(BaseModel):
    """What a layer takes, and one of its products: one vector of inputs.

    Attributes:
        crossbars, cells: cells are those that hold weights, and the column of ones of ``offset``.
        array_cells: cells of all crossbars, padding included.
        conversions: of analog to digital, for one product.
        energy: of one product, J.
        area: mm^2.
        latency: of one product, s.
    """

    model_config = ConfigDict(frozen=True)

    crossbars: int
    cells: int
    array_cells: int
    conversions: int
    energy: float
    area: float
    latency: float

    def metrics(self) -> dict[str, Metric]:
        """The figures with their kinds."""
        numbers = self.model_dump()
        kinds = {"energy": modelled, "area": modelled, "latency": modelled}
        return {name: kinds.get(name, counted)(value) for name, value in numbers.items()}


def layer_cost(placement: Placement, table: ComponentTable | None = None) -> LayerCost:
    """What the layer of a placement costs.

    A converter without limit (``adc_bits=None``) is taken for one that represents every sum.
    """
    table = table or ComponentTable.load()
    config = placement.config
    bias = 1 if config.code.offset else 0
    columns = placement.outputs * placement.columns_per_output + bias
    conversions = config.cycles * columns * placement.row_blocks
    bits = config.lossless_adc_bits() if config.adc_bits is None else config.adc_bits
    adc_factor = 2.0 ** (bits - table.adc_bits)
    array_factor = config.rows * config.cols / (table.reference_rows * table.reference_cols)
    latency = config.cycles * max(table.cycle, config.cols / table.adc_rate)
    always_on = (
        array_factor * table.crossbar.power_each
        + _share(table, table.shift_add).power
        + _share(table, table.input_register).power
        + _share(table, table.output_register).power
    )
    lines = placement.inputs * placement.column_blocks * _dac_factor(config) * table.dac.power_each
    holds = columns * placement.row_blocks * table.sample_hold.power_each
    energy = latency * (placement.crossbars * always_on + lines + holds)
    energy += conversions * adc_factor * table.adc.power_each / table.adc_rate
    area_each = (
        array_factor * table.crossbar.area_each
        + adc_factor * table.adc.area_each
        + config.rows * _dac_factor(config) * table.dac.area_each
        + config.cols * table.sample_hold.area_each
        + _share(table, table.shift_add).area
        + _share(table, table.input_register).area
        + _share(table, table.output_register).area
    )
    return LayerCost(
        crossbars=placement.crossbars,
        cells=placement.cells + bias * placement.inputs,
        array_cells=placement.crossbars * config.rows * config.cols,
        conversions=conversions,
        energy=energy,
        area=placement.crossbars * area_each,
        latency=latency,
    )


def _share(table: ComponentTable, part: Component) -> Component:
    """What one crossbar has of a part that the crossbars of a unit share."""
    return Component(
        count=1, power=part.power / table.crossbars_per_unit, area=part.area / table.crossbars_per_unit
    )


def _dac_factor(config: CrossbarConfig) -> int:
    """A converter of v bits is taken for 2^v - 1 of one bit."""
    return (1 << config.dac_bits) - 1
