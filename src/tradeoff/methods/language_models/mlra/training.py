"""Training of small decoders that differ in their attention and nothing else."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import pydantic
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tradeoff.core.memory import peak_memory
from tradeoff.data import text
from tradeoff.nn.decoder import Decoder, DecoderConfig
from tradeoff.nn.fit import Callback, FitConfig, FitState, fit

from .variants import convert, parameter_count

WIDTH_MULTIPLE = 4
"""Of which feed-forward widths are multiples: small models come close to equal, and four ranks can share."""


class Setup(pydantic.BaseModel):
    """Data, size and training, alike for all variants.

    Output projections start at zero and other matrices with the deviation 1 / sqrt(dim), which at the paper's
    width is its 0.02; small models that start with 0.02 hardly learn in some hundred steps.

    Attributes:
        corpus: of :func:`tradeoff.data.text.load`, or a text file.
        tokenizer: ``bytes``, or ``bpe:4096`` for as many byte pairs.
        length: tokens of a sequence.
        batch: sequences of a step.
        held_out: sequences of the validation part on which the loss is measured.
        dim, layers, heads: of the model.
        hidden: feed-forward width of ``mha``, from which the other variants' follow; None for 8/3 of ``dim``.
        kv_rank: numbers of a token's latents together; None for four heads' widths.
        learning_rate: the highest, of AdamW; it rises linearly in ``warmup_fraction`` of the steps, and falls
            linearly to a tenth.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    corpus: str = "foldoc"
    tokenizer: str = "bytes"
    length: int = Field(default=64, ge=2)
    batch: int = Field(default=16, ge=1)
    steps: int = Field(default=300, ge=1)
    held_out: int = Field(default=512, ge=1)
    dim: int = Field(default=128, ge=8)
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=8, ge=1)
    hidden: int | None = Field(default=None, ge=1)
    kv_rank: int | None = Field(default=None, ge=4)
    learning_rate: float = Field(default=5e-3, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    warmup_fraction: float = Field(default=0.1, gt=0, lt=1)

    def decoder(self, variant: str) -> DecoderConfig:
        """The model of a variant, with as many parameters as that of ``mha``.

        Raises:
            InvalidConfig: the variant does not fit the sizes.
        """
        training, _ = _windows(self)
        return self.decoder_of(variant, training.tokens.vocabulary)

    def decoder_of(self, variant: str, vocabulary: int) -> DecoderConfig:
        """The same for a known vocabulary; reads no text."""
        plain = DecoderConfig(
            vocab=vocabulary,
            dim=self.dim,
            layers=self.layers,
            heads=self.heads,
            hidden=self.hidden,
            max_len=self.length,
            init="zero_out",
            init_std=self.dim**-0.5,
        )
        return convert(plain, variant, multiple=WIDTH_MULTIPLE, kv_rank=self.kv_rank)


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        loss: on the held-out sequences, in nats a token.
        parameters: of the model.
        seconds: of the training, processor time.
        peak_memory: bytes.
    """

    loss: float
    parameters: int
    seconds: float
    peak_memory: int


def train(
    setup: Setup,
    variant: str,
    seed: int = 0,
    device: str = "cpu",
    advance: Callable[[float], None] | None = None,
) -> tuple[Decoder, Run]:
    """Train a variant; weights and the order of the data follow from the seed, alike for all variants.

    Args:
        advance: told each step.

    Raises:
        DataError: the text is absent.
        InvalidConfig: the variant does not fit the sizes.
        TrainingDiverged: the loss became infinite or NaN.
    """
    training, held_out = _windows(setup)
    config = setup.decoder(variant)
    model = Decoder(config, torch.Generator().manual_seed(seed)).to(device)
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    gains = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    fitting = FitConfig(
        steps=setup.steps,
        batch_size=setup.batch,
        optimizer="adamw",
        learning_rate=setup.learning_rate,
        final_learning_rate=setup.learning_rate / 10,
        schedule="one_cycle",
        warmup_fraction=setup.warmup_fraction,
        weight_decay=setup.weight_decay,
        clip_norm=1.0,
        seed=seed,
    )
    with peak_memory() as peak:
        started = time.process_time()
        fit(
            model,
            training,
            None,
            fitting,
            loss=token_loss,
            parameter_groups=[
                {"params": decayed, "betas": (0.9, 0.95)},
                {"params": gains, "betas": (0.9, 0.95), "weight_decay": 0.0},
            ],
            callbacks=[_Advance(advance)] if advance else [],
        )
        seconds = time.process_time() - started
    loss = held_out_loss(model, held_out, setup.held_out)
    return model, Run(loss, parameter_count(config), seconds, peak.bytes)


def token_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of the next token, in nats."""
    return functional.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten())


@torch.no_grad()
def held_out_loss(model: nn.Module, sequences: text.Windows, count: int) -> float:
    """Mean loss on ``count`` sequences that are spread evenly over the text."""
    device = next(model.parameters()).device
    positions = torch.linspace(0, len(sequences) - 1, min(count, len(sequences))).long()
    model.eval()
    total: float = sum(
        float(token_loss(model, *(each.to(device) for each in sequences[part]))) * len(part)
        for part in torch.split(positions, 64)
    )
    return total / len(positions)


@lru_cache(maxsize=4)
def _windows(setup: Setup) -> tuple[text.Windows, text.Windows]:
    """Training and validation sequences."""
    parts = (text.load(setup.corpus, split, tokenizer=setup.tokenizer) for split in ("train", "validation"))
    training, validation = (part.windows(setup.length) for part in parts)
    return training, validation


class _Advance(Callback):
    """Tells somebody of each step."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        self.advance = advance

    def on_step_end(self, state: FitState) -> None:
        self.advance(1)
