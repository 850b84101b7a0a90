"""How a budget of weights is shared out over layers, to the unit."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Literal

from .errors import InfeasibleDensity

Distribution = Literal["uniform", "uniform_keep_first", "er", "erk"]

Shapes = Mapping[str, Sequence[int]]
"""Name of a weight -> its shape, ``(outputs, inputs, *kernel)``."""


def layer_densities(shapes: Shapes, density: float, distribution: Distribution = "erk") -> dict[str, float]:
    """Density of each layer such that all layers together have ``density``.

    ``erk`` (Erdős-Rényi-kernel; Mocanu et al., 2018; Evci et al., ICML 2020) makes a layer's density
    proportional to

        (outputs + inputs + kernel height + kernel width) / (outputs * inputs * kernel height * kernel width);

    a layer that would exceed 1 is dense and the others share what remains. ``er`` leaves the kernel's sides
    out. ``uniform_keep_first`` keeps the first layer dense and thins the others evenly.

    Raises:
        InfeasibleDensity: ``density`` is not in (0, 1], or the dense first layer alone exceeds it.
    """
    if not 0 < density <= 1:
        raise InfeasibleDensity(f"a density is above 0 and at most 1, not {density}")
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    if distribution == "uniform":
        return dict.fromkeys(shapes, float(density))
    if distribution == "uniform_keep_first":
        first, *others = shapes
        rest = sum(sizes[name] for name in others)
        budget = density * sum(sizes.values()) - sizes[first]
        if budget < 0 or (budget > 0 and not rest):
            raise InfeasibleDensity(
                f"{first} alone holds {sizes[first]:,} of {sum(sizes.values()):,} weights: it cannot stay "
                f"dense at an overall density of {density}"
            )
        return {first: 1.0, **dict.fromkeys(others, budget / rest if rest else 1.0)}
    return _erdos_renyi(shapes, sizes, density, kernel=distribution == "erk")


def _erdos_renyi(shapes: Shapes, sizes: Mapping[str, int], density: float, kernel: bool) -> dict[str, float]:
    used = {name: tuple(shape) if kernel else tuple(shape[:2]) for name, shape in shapes.items()}
    raw = {name: sum(shape) / prod(shape) for name, shape in used.items()}
    densities: dict[str, float] = {}
    while open_layers := [name for name in shapes if name not in densities]:
        budget = density * sum(sizes.values()) - sum(sizes[name] for name in densities)
        scale = budget / sum(raw[name] * sizes[name] for name in open_layers)
        largest = max(raw[name] for name in open_layers)
        if scale * largest <= 1:
            densities |= {name: scale * raw[name] for name in open_layers}
        else:
            densities |= {name: 1.0 for name in open_layers if raw[name] == largest}
    return {name: densities[name] for name in shapes}


def active_counts(shapes: Shapes, density: float, distribution: Distribution = "erk") -> dict[str, int]:
    """Number of weights that each layer keeps: ``round(d_l n_l)``, corrected to sum to ``round(d sum n_l)``.

    What rounding left over goes to the largest layer with room, one that stays neither empty nor full,
    then to the next.

    Raises:
        InfeasibleDensity: as :func:`layer_densities`, or a layer would keep no weight; the message names it
            and the least density that works.
    """
    counts = _counts(shapes, density, distribution)
    if empty := next((name for name, count in counts.items() if count < 1), None):
        least = _least_feasible(lambda d: min(_counts(shapes, d, distribution).values()) >= 1, density)
        raise InfeasibleDensity(
            f"{empty} would keep none of its {prod(shapes[empty]):,} weights at an overall density of "
            f"{density:g}; the least density that leaves every layer a weight is {least:.3g}"
        )
    return counts


def _counts(shapes: Shapes, density: float, distribution: Distribution) -> dict[str, int]:
    densities = layer_densities(shapes, density, distribution)
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    counts = {name: round(densities[name] * sizes[name]) for name in shapes}
    residue = round(density * sum(sizes.values())) - sum(counts.values())
    by_size = sorted(shapes, key=lambda name: -sizes[name])
    # A second round lets layers become full, or lose weights that rounding gave them: tiny layers only.
    for low, high in ((1, 1), (0, 0)):
        for name in by_size:
            if densities[name] < 1:
                room = min(max(counts[name] + residue, low), sizes[name] - high) - counts[name]
                given = room if room * residue > 0 else 0
                counts[name] += given
                residue -= given
    return counts


def _least_feasible(feasible: Callable[[float], bool], too_low: float) -> float:
    """The least density, rounded up to three digits, between one that is too low and 1."""
    low, high = too_low, 1.0
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if feasible(middle) else (middle, high)
    digits = float(f"{high:.3g}")
    return digits if feasible(digits) else float(f"{high * 1.005:.3g}")
