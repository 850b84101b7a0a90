"""Polynomial activations: trainable, masked with ReLU, and fitted to the distribution of their input.

A polynomial of degree ``d`` with one set of coefficients per channel is an array of shape
``(d + 1, channels)`` whose row ``i`` multiplies ``x ** i``. Channels are dimension 1 of the input (the
first after the batch), so the same array serves feature maps ``(batch, channels, height, width)`` and
vectors ``(batch, features)``.

Distribution-aware coefficients (DaPa) are those of AutoReP (Peng et al., ICCV 2023): the
least-squares polynomial for ReLU under the normal distribution that was measured at the input. In the
basis of Hermite polynomials the normal equations are diagonal, because derivatives of ReLU are a step
and then a delta: one formula serves every degree.
"""

import math
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, distributed, nn

from tradeoff.core.errors import TradeoffError


class SiteShapeMismatch(TradeoffError, ValueError):
    """A mask met an input of another size: masks are tied to the height and width they were made for."""

    def __init__(self, site: str, expected: tuple[int, ...], got: tuple[int, ...]) -> None:
        super().__init__(
            f"activation {site or '(unnamed)'} was made for images of shape {expected} but got {got}; "
            "use the input size that the model was compressed for"
        )
        self.site = site
        self.expected = expected
        self.got = got


class PolynomialDivergence(TradeoffError, ArithmeticError):
    """A polynomial activation met or produced values that are not finite."""

    def __init__(
        self, site: str, channel: int, sigma: float, c2: float, damping: str = "quad_scale or clip_c2"
    ) -> None:
        super().__init__(
            f"values are no longer finite at {site or '(unnamed)'}, channel {channel} (standard deviation "
            f"{sigma:.3g}, quadratic coefficient {c2:.3g}); lower the learning rate, clip gradients, or damp "
            f"the quadratic with {damping}"
        )
        self.site = site
        self.channel = channel
        self.sigma = sigma
        self.c2 = c2


def _horner(x: Tensor, rows: Tensor) -> Tensor:
    """Evaluate sum_i rows[i] x^i; each row broadcasts against one image of ``x``."""
    result = rows[-1]
    for row in reversed(rows[:-1]):
        result = torch.addcmul(row, result, x)
    return result if result.shape == x.shape else result.expand_as(x).clone()


def evaluate(
    x: Float[Tensor, "batch channels *rest"], coefficients: Float[Tensor, "terms channels"]
) -> Tensor:
    """Return the polynomial of each channel, ``sum_i coefficients[i] x^i``."""
    return _horner(x, coefficients.reshape(*coefficients.shape, *([1] * (x.dim() - 2))))


class _GatedReLU(torch.autograd.Function):
    """y = h ReLU(x) + (1 - h) p(x), with all reductions over the batch done once per power of x.

    The gradients of the coefficients and of the gate need only the sums over the batch of ``g x^i`` and of
    ``g ReLU(x)``; masks and coefficients are applied to those sums, not to every image. Channels are the
    dimension ``axis`` of one image; gate and coefficients are broadcast accordingly.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, coefficients: Tensor, hard: bool, axis: int) -> Tensor:
        gate = gate.contiguous()
        rows = _rows(coefficients.detach(), gate, axis)
        ctx.save_for_backward(x, gate, coefficients)
        ctx.hard, ctx.axis = hard, axis
        polynomial = _horner(x, rows)
        if hard:
            return torch.where(gate.bool(), x.clamp(min=0), polynomial)
        return torch.lerp(polynomial, x.clamp(min=0), gate)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, coefficients = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        rows, positive = _rows(coefficients, gate, ctx.axis), x > 0
        need_x, need_gate, need_coefficients, *_ = ctx.needs_input_grad
        grad_x = grad_gate = grad_coefficients = None
        if need_x:
            grad_x = _slope(x, positive, gate, rows, ctx.hard).mul_(gradient)
        if not (need_gate or need_coefficients):
            return grad_x, None, None, None, None
        first_product = product = gradient * x
        moments = [gradient.sum(0), product.sum(0)]
        for _power in range(2, len(coefficients)):
            product = product * x
            moments.append(product.sum(0))
        if need_gate:
            replaced = sum(row * moment for row, moment in zip(rows, moments, strict=False))
            grad_gate = (first_product * positive).sum(0) - replaced
        if need_coefficients:
            share = 1 - gate.to(x.dtype)
            others = [d for d in range(gate.dim()) if d != ctx.axis]
            weighted = [moment * share for moment in moments[: len(coefficients)]]
            grad_coefficients = torch.stack([w.sum(others) if others else w for w in weighted])
        return grad_x, grad_gate, grad_coefficients, None, None


def _rows(coefficients: Tensor, gate: Tensor, axis: int) -> Tensor:
    """View coefficients (terms, channels) so that each row broadcasts against one image."""
    shape = [1] * gate.dim()
    shape[axis] = -1
    return coefficients.reshape(len(coefficients), *shape)


def _slope(x: Tensor, positive: Tensor, gate: Tensor, rows: Tensor, hard: bool) -> Tensor:
    """Derivative of the output by the input."""
    powers = torch.arange(1, len(rows), dtype=x.dtype, device=x.device).reshape(-1, *([1] * gate.dim()))
    slope = _horner(x, rows[1:] * powers) if len(rows) > 1 else torch.zeros_like(x)
    return (
        torch.where(gate.bool(), positive, slope) if hard else torch.lerp(slope, positive.to(x.dtype), gate)
    )


def gated_relu(
    x: Float[Tensor, "batch channels *rest"],
    gate: Float[Tensor, "channels ..."],
    coefficients: Float[Tensor, "terms channels"],
    *,
    hard: bool = True,
) -> Float[Tensor, "batch channels *rest"]:
    """Return ``gate * ReLU(x) + (1 - gate) * p(x)``, differentiable in all three arguments.

    Args:
        x: input; the gate is broadcast over the batch.
        gate: one value per position of an image. If ``hard``, only zeros and ones: the output then is
            bit for bit ReLU(x) where the gate is one.
        coefficients: of the polynomial, see the module's docstring.
        hard: whether the gate is a choice or a mixture.
    """
    result: Tensor
    if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        # In its own memory order, so that nothing is read across rows.
        arguments = x.permute(0, 2, 3, 1), gate.permute(1, 2, 0), coefficients, hard, 2
        result = _GatedReLU.apply(*arguments).permute(0, 3, 1, 2)  # type: ignore[no-untyped-call]
    else:
        result = _GatedReLU.apply(x.contiguous(), gate, coefficients, hard, 0)  # type: ignore[no-untyped-call]
    return result


class Polynomial(nn.Module):
    """A trainable polynomial activation with one set of coefficients per channel.

    Args:
        coefficients: (degree + 1, channels), row ``i`` multiplies ``x ** i``.

    Example:
        >>> square = Polynomial(torch.tensor([[0.0], [0.0], [1.0]]))
        >>> square(torch.tensor([[3.0]])).item()
        9.0
    """

    def __init__(self, coefficients: Float[Tensor, "terms channels"]) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(_checked(coefficients))

    def forward(self, x: Float[Tensor, "batch channels *rest"]) -> Float[Tensor, "batch channels *rest"]:
        return evaluate(x, self.coefficients)

    def extra_repr(self) -> str:
        terms, channels = self.coefficients.shape
        return f"degree={terms - 1}, channels={channels}"


class StraightThroughQuadratic(nn.Module):
    """``y = s w1 x^2 + w2 x + b``, which starts as (nearly) the identity: X2act of PolyMPCNet / PASNet.

    A trained network keeps running when its ReLUs are swapped for it, and the quadratic grows from there
    (straight-through polynomial activation initialization, STPAI). There is one triple of trained numbers for
    the site, or one for each channel.

    Args:
        shape: of one image at this site, (channels, height, width) or (features,).
        site: name for error messages.
        scale: the factor ``s``, or ``sqrt_n`` for ``constant / sqrt(N)`` with N elements of an image, which
            makes the gradient of w1, a sum over N squares, as large as that of other weights (the papers).
        constant: of ``sqrt_n``; the papers do not give its value. Small ones stay nearly linear for long.
        start: w1, w2 and b at the start; the published code has (0.005, 1, 0).
        clip: largest magnitude of ``s w1``.
        ramp_steps: training steps over which the quadratic part grows from nothing.
        per_channel: a triple for each channel.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> swapped = StraightThroughQuadratic((1, 1, 1), start=(0.0, 1.0, 0.0))
        >>> swapped(torch.tensor([[[[-3.0]]]])).item()
        -3.0
    """

    iteration: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        site: str = "",
        *,
        scale: float | Literal["sqrt_n"] = 1.0,
        constant: float = 10.0,
        start: tuple[float, float, float] = (0.005, 1.0, 0.0),
        clip: float | None = None,
        ramp_steps: int = 0,
        per_channel: bool = False,
    ) -> None:
        super().__init__()
        factor = constant / math.sqrt(math.prod(shape)) if scale == "sqrt_n" else scale
        if not factor > 0 or ramp_steps < 0 or (clip is not None and not clip > 0):
            raise ValueError(
                f"scale, constant and clip must be positive and ramp_steps not negative, got {scale}, "
                f"{constant}, {clip} and {ramp_steps}"
            )
        self.site, self.factor, self.clip, self.ramp_steps = site, factor, clip, ramp_steps
        self.channels = shape[0]
        w1, w2, b = start
        self.weights = nn.Parameter(
            torch.tensor([[b], [w2], [w1]]).repeat(1, self.channels if per_channel else 1)
        )
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Float[Tensor, "batch channels *rest"]) -> Float[Tensor, "batch channels *rest"]:
        if self.training and self.ramp_steps:
            self.iteration += 1
        return evaluate(x, self._rows())

    def _rows(self) -> Float[Tensor, "3 channels"]:
        """Coefficients of 1, x and x^2 as they are in use; one column where the site has one triple."""
        ramp = min(1.0, int(self.iteration) / self.ramp_steps) if self.ramp_steps else 1.0
        square = self.weights[2:] * (self.factor * ramp)
        if self.clip is not None:
            square = square.clamp(-self.clip, self.clip)
        return torch.cat([self.weights[:2], square])

    def effective_coefficients(self) -> Float[Tensor, "3 channels"]:
        """The coefficients in use, for each channel: those of a :class:`Polynomial` that equals this one."""
        return self._rows().expand(3, self.channels)

    def extra_repr(self) -> str:
        return f"factor={self.factor:.3g}, channels={self.channels}"


@torch.no_grad()
def locate_divergence(
    model: nn.Module, inputs: Tensor, kinds: tuple[type[nn.Module], ...], damping: str
) -> PolynomialDivergence:
    """Return the error that names the first polynomial site whose result is not finite for ``inputs``.

    Args:
        kinds: modules with a name ``site`` and ``effective_coefficients()``.
        damping: what the message advises.
    """
    found: list[PolynomialDivergence] = []

    def inspect(site: Any, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        broken = ~torch.isfinite(output.transpose(0, 1).flatten(1)).all(1)
        if not found and bool(broken.any()):
            channel = int(torch.nonzero(broken)[0])
            coefficients = site.effective_coefficients()
            c2 = float(coefficients[2, channel]) if len(coefficients) > 2 else 0.0
            found.append(
                PolynomialDivergence(site.site, channel, float(arguments[0][:, channel].std()), c2, damping)
            )

    handles = [
        module.register_forward_hook(inspect) for module in model.modules() if isinstance(module, kinds)
    ]
    training = model.training
    try:
        model.eval()(inputs)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    nowhere = PolynomialDivergence("the outputs", 0, float("nan"), float("nan"), damping)
    return found[0] if found else nowhere


class MaskedReLU(nn.Module):
    """ReLU at chosen positions of the image, a polynomial per channel (or nothing) at the others.

    Args:
        mask: (channels, height, width) or (features,), True where ReLU stays. A buffer.
        coefficients: (degree + 1, channels), trainable; None lets the other positions pass unchanged.
        site: name used in error messages.

    Raises:
        SiteShapeMismatch: in the forward pass, if an image has another shape than the mask.
    """

    mask: Tensor

    def __init__(
        self,
        mask: Bool[Tensor, "channels ..."],
        coefficients: Float[Tensor, "terms channels"] | None,
        site: str = "",
    ) -> None:
        super().__init__()
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be boolean, not {mask.dtype}")
        if coefficients is not None and (mask.dim() < 1 or mask.shape[0] != coefficients.shape[-1]):
            raise ValueError(
                f"mask {tuple(mask.shape)} and coefficients {tuple(coefficients.shape)} differ in channels"
            )
        self.register_buffer("mask", mask.detach().clone())
        self.coefficients = None if coefficients is None else nn.Parameter(_checked(coefficients))
        self.site = site

    @property
    def relu_count(self) -> int:
        """Number of positions per image that keep their ReLU."""
        return int(self.mask.sum())

    def forward(self, x: Float[Tensor, "batch channels *rest"]) -> Float[Tensor, "batch channels *rest"]:
        check_site_shape(self.site, self.mask, x)
        if self.coefficients is None:
            return torch.where(self.mask, x.clamp(min=0), x)
        return gated_relu(x, self.mask, self.coefficients)

    def extra_repr(self) -> str:
        others = "identity" if self.coefficients is None else f"degree={len(self.coefficients) - 1}"
        return f"{self.relu_count} of {self.mask.numel()} ReLUs kept, {others}"


def check_site_shape(site: str, mask: Tensor, x: Tensor) -> None:
    """Raise :class:`SiteShapeMismatch` unless each image of ``x`` has the shape of ``mask``."""
    if x.shape[1:] != mask.shape:
        raise SiteShapeMismatch(site, tuple(mask.shape), tuple(x.shape[1:]))


def _checked(coefficients: Tensor) -> Tensor:
    if coefficients.dim() != 2 or len(coefficients) < 1:
        raise ValueError(
            f"coefficients must have shape (degree + 1, channels), got {tuple(coefficients.shape)}"
        )
    return coefficients.detach().clone()


def relu_hermite(z: Float[Tensor, " channels"], degree: int) -> Float[Tensor, "terms channels"]:
    """Return the Hermite coefficients of ``ReLU(t + z)`` under standard normal ``t``.

    Row ``n`` is ``E[ReLU(t + z) He_n(t)] / n!`` with the probabilists' polynomials ``He_n``: the best
    polynomial of any degree is the sum of the first rows times ``He_n(t)``.
    """
    phi = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    cdf = 0.5 * torch.erfc(-z / math.sqrt(2))
    rows = [z * cdf + phi, cdf]
    previous, current = torch.zeros_like(z), torch.ones_like(z)  # He_{n-3}(-z), He_{n-2}(-z)
    for n in range(2, degree + 1):
        rows.append(current * phi / math.factorial(n))
        previous, current = current, -z * current - (n - 2) * previous
    return torch.stack(rows[: degree + 1])


def distribution_aware(
    mean: Float[Tensor, " channels"], std: Float[Tensor, " channels"], degree: int = 2
) -> Float[Tensor, "terms channels"]:
    """Return the polynomial of each channel that is nearest to ReLU for inputs N(mean, std^2).

    It minimizes ``E[(ReLU(x) - p(x))^2]`` (DaPa of AutoReP). For degree 2 and z = mean/std this is
    c2 = phi(z)/(2 std), c1 = Phi(z) - z phi(z), c0 = std phi(z) (1 + z^2)/2. Computed in float64.

    Args:
        mean: of the input, per channel.
        std: standard deviation (not the variance), per channel, positive.
        degree: 1 to 4.

    Raises:
        ValueError: for another degree or a standard deviation that is not positive.
    """
    if degree not in (1, 2, 3, 4):
        raise ValueError(f"degree must be 1, 2, 3 or 4, not {degree}")
    if not bool((std > 0).all()):
        raise ValueError("every standard deviation must be positive")
    mu, sigma = mean.double(), std.double()
    hermite = sigma * relu_hermite(mu / sigma, degree)
    # He_n(t) in powers of t, then t = (x - mu) / sigma in powers of x.
    in_t = torch.zeros_like(hermite)
    for n, row in enumerate(_hermite_powers(degree)):
        for power, factor in enumerate(row):
            in_t[power] += factor * hermite[n]
    coefficients = torch.zeros_like(hermite)
    for n in range(degree + 1):
        for power in range(n + 1):
            coefficients[power] += in_t[n] * math.comb(n, power) * (-mu) ** (n - power) / sigma**n
    return coefficients.to(mean.dtype)


def _hermite_powers(degree: int) -> list[list[int]]:
    """Coefficients of He_0 ... He_degree, lowest power first: He_{n+1} = t He_n - n He_{n-1}."""
    table = [[1], [0, 1]]
    for n in range(1, degree):
        shifted = [0, *table[n]]
        table.append([a - n * b for a, b in zip(shifted, [*table[n - 1], 0, 0], strict=True)])
    return table[: degree + 1]


def approximation_error(mean: Tensor, std: Tensor, degree: int) -> Tensor:
    """Return ``E[(ReLU(x) - p(x))^2]`` for the polynomial of :func:`distribution_aware`, per channel."""
    mu, sigma = mean.double(), std.double()
    z = mu / sigma
    phi = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    cdf = 0.5 * torch.erfc(-z / math.sqrt(2))
    energy = (1 + z * z) * cdf + z * phi
    factorials = torch.tensor([float(math.factorial(n)) for n in range(degree + 1)], dtype=torch.float64)
    explained = (relu_hermite(z, degree) ** 2 * factorials.unsqueeze(1)).sum(0)
    return sigma * sigma * (energy - explained)


class ChannelStatistics(nn.Module):
    """Running mean and variance per channel, as batch normalization keeps them, without normalizing.

    Args:
        channels: number of channels (dimension 1 of the input).
        momentum: weight of the newest batch. The first batch counts in full.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, channels: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, x: Float[Tensor, "batch channels *rest"]) -> None:
        """Take one batch into account: of all processes together, where training is distributed."""
        dims = [0, *range(2, x.dim())]
        variance, mean = _over_all_processes(*torch.var_mean(x, dims, correction=0))
        weight = self.momentum if int(self.batches) else 1.0
        self.mean.lerp_(mean.to(self.mean.dtype), weight)
        self.variance.lerp_(variance.to(self.variance.dtype), weight)
        self.batches += 1

    @property
    def std(self) -> Tensor:
        return self.variance.sqrt()


def _over_all_processes(variance: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Variance and mean of the union of all processes' batches, which are of equal size."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return variance, mean
    moments = torch.stack([mean, variance + mean * mean])
    distributed.all_reduce(moments)
    mean, square = moments / distributed.get_world_size()
    return square - mean * mean, mean
