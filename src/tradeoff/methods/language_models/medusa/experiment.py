"""Self-distilled text, heads, their tree, and decoding with it next to other ways: what the study runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tradeoff.core.context import Context
from tradeoff.core.files import digest
from tradeoff.engines.decoding import NativeKernels, PromptLookup
from tradeoff.nn.decoder import TORCH
from tradeoff.nn.fit import FitConfig

from .backbone import Backbone
from .comparison import Tally, Way, compare, engine_way
from .cost import StepCost, measure_cost
from .decoding import MedusaDecoder
from .distillation import Distilled
from .errors import InvalidSetting
from .heads import MedusaHeads, frequent_tokens
from .peers import Decode, Peer, make_peers
from .prompts import KINDS
from .texts import Prompts, distilled, prompts_of
from .training import guess_ranks, head_accuracy, train_heads
from .tree import Calibration, calibrate_tree

Rows = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Settings:
    """Fields of the recipe; see there."""

    corpus: str
    prompts: int
    new_tokens: int
    held_out_prompts: int
    held_out_tokens: int
    num_heads: int
    draft_vocab: int | None
    training: FitConfig
    parts: Sequence[float]
    max_nodes: int
    nodes: int | None
    checked_prompts: int
    checked_tokens: int
    timed_prompts: int
    timed_tokens: int
    untrained: bool
    peers: Sequence[Peer]
    exit_layer: int


@dataclass(frozen=True)
class Texts:
    """Continuations to learn from and to choose a tree by, and prompts to decode."""

    train: Distilled
    held_out: Distilled
    prompts: Prompts


@dataclass(frozen=True)
class Trained:
    """Heads with their tree."""

    heads: MedusaHeads
    calibration: Calibration
    seconds: float


def run_comparison(backbone: Backbone, settings: Settings, seed: int, context: Context) -> Rows:
    """Train heads on each part of the texts and decode the timed prompts by every way in turn."""
    texts = load_texts(backbone, settings, context)
    backbone.model.kernels = NativeKernels()
    cost = measure_cost(backbone.model, _untrained(backbone, settings, texts), max_nodes=settings.max_nodes)
    trained = {
        ("medusa", part): train_part(backbone, settings, texts, part, seed, cost, context)
        for part in settings.parts
    }
    if settings.untrained:
        heads = _untrained(backbone, settings, texts)
        trained["untrained", 0.0] = Trained(heads, _calibrate(heads, texts, settings, cost, None), 0.0)
    ways = _ways(backbone, settings, trained)
    rows: Rows = {}
    with context.progress(len(KINDS) * settings.timed_prompts, "decoding side by side") as bar:
        for kind in KINDS:
            chosen = texts.prompts[kind][: settings.timed_prompts]
            tallies = compare(ways, chosen, settings.timed_tokens, advance=lambda: bar.advance(1))
            plain = tallies["plain|0.0"]
            for name, tally in tallies.items():
                variant, part = name.split("|")
                row = _speed(tally, plain)
                if (variant, float(part)) in trained:
                    row |= _heads(trained[variant, float(part)], texts.held_out.group(kind))
                rows[f"{variant}|{kind}|{part}"] = row
    return rows


def check_texts(backbone: Backbone, settings: Settings, seed: int, context: Context) -> Rows:
    """Decode all checked prompts plainly and with heads that were trained on all texts, and compare."""
    texts = load_texts(backbone, settings, context)
    backbone.model.kernels = NativeKernels()
    cost = measure_cost(backbone.model, _untrained(backbone, settings, texts), max_nodes=settings.max_nodes)
    found = train_part(backbone, settings, texts, settings.parts[-1], seed, cost, context)
    ways = {
        "plain": engine_way(backbone.model, None, backbone.end_tokens),
        "medusa": _way(backbone, found),
    }
    rows: Rows = {}
    with context.progress(len(KINDS) * settings.checked_prompts, "comparing texts") as bar:
        for kind in KINDS:
            chosen = texts.prompts[kind][: settings.checked_prompts]
            tallies = compare(ways, chosen, settings.checked_tokens, advance=lambda: bar.advance(1))
            rows[f"medusa|{kind}|{settings.parts[-1]}"] = _speed(tallies["medusa"], tallies["plain"])
    return rows


def load_texts(backbone: Backbone, settings: Settings, context: Context) -> Texts:
    """From the cache, or written now by the backbone."""
    backbone.model.kernels = TORCH  # which are the faster ones for many rows
    tested = max(settings.checked_prompts, settings.timed_prompts)
    held_out = prompts_of(backbone, settings.held_out_prompts, "held-out", settings.corpus, skip=tested)
    train = prompts_of(backbone, settings.prompts, "train", settings.corpus)
    return Texts(
        train=distilled(backbone, train, settings.new_tokens, context),
        held_out=distilled(backbone, held_out, settings.held_out_tokens, context),
        prompts=prompts_of(backbone, tested, "held-out", settings.corpus),
    )


def train_part(
    backbone: Backbone,
    settings: Settings,
    texts: Texts,
    part: float,
    seed: int,
    cost: StepCost,
    context: Context,
) -> Trained:
    """Heads that were trained on a part of the texts, from the cache or trained now, with their tree."""
    data = texts.train.first_tokens(round(part * texts.train.num_tokens))
    fresh = _fresh(backbone, settings, data)
    config = settings.training.model_copy(update={"seed": seed})

    def build(folder: Path) -> None:
        with context.progress(None, f"training heads on {data.num_tokens:,} tokens"):
            history = train_heads(fresh, data, config)
        fresh.save(folder)
        (folder / "seconds.txt").write_text(str(sum(history.column("seconds"))))

    key = {
        "medusa heads": fresh.config.backbone,
        "texts": digest([list(reply) for reply in data.replies]),
        "heads": settings.num_heads,
        "draft_vocab": settings.draft_vocab,
        "training": config.model_dump(mode="json"),
    }
    folder = context.cache(key, build)
    heads = MedusaHeads.load(folder, backbone.model)
    seconds = float((folder / "seconds.txt").read_text())
    return Trained(heads, _calibrate(heads, texts, settings, cost, settings.nodes), seconds)


def _calibrate(
    heads: MedusaHeads, texts: Texts, settings: Settings, cost: StepCost, nodes: int | None
) -> Calibration:
    found = calibrate_tree(
        heads, texts.held_out, cost, max_nodes=settings.max_nodes, limit=settings.timed_tokens
    )
    return found if nodes is None else found.with_nodes(nodes)


def _fresh(backbone: Backbone, settings: Settings, data: Distilled) -> MedusaHeads:
    vocab = backbone.model.config.vocab
    count = settings.draft_vocab
    tokens = None if count is None or count >= vocab else frequent_tokens(data.tokens, vocab, count)
    return MedusaHeads.from_backbone(backbone.model, settings.num_heads, draft_tokens=tokens)


def _untrained(backbone: Backbone, settings: Settings, texts: Texts) -> MedusaHeads:
    return _fresh(backbone, settings, texts.train)


def _way(backbone: Backbone, found: Trained) -> Way:
    decoder = MedusaDecoder(backbone.model, found.heads, found.calibration.paths)
    return engine_way(backbone.model, decoder.proposer, backbone.end_tokens)


def _ways(
    backbone: Backbone, settings: Settings, trained: dict[tuple[str, float], Trained]
) -> dict[str, Way]:
    model, ends = backbone.model, backbone.end_tokens
    ways: dict[str, Way] = {"plain|0.0": engine_way(model, None, ends)}
    ways |= {f"{variant}|{part}": _way(backbone, found) for (variant, part), found in trained.items()}
    ways["prompt-lookup|0.0"] = engine_way(model, PromptLookup(), ends)
    if settings.peers:
        if backbone.checkpoint is None:
            raise InvalidSetting("the decoders of transformers need a checkpoint; this backbone has none")
        for name, decode in make_peers(
            backbone.checkpoint, ends, settings.exit_layer, settings.peers
        ).items():
            ways[f"{name}|0.0"] = _peer_way(decode)
    return ways


def _peer_way(decode: Decode) -> Way:
    return lambda prompt, count: (decode(prompt, count), 0)


def _speed(tally: Tally, plain: Tally) -> dict[str, float]:
    row = {
        "identical": tally.identical / tally.texts,
        "tokens_per_second": tally.tokens / tally.seconds,
        "speedup": plain.decode_seconds / plain.tokens * tally.tokens / tally.decode_seconds,
    }
    if tally.steps:
        row["tokens_per_step"] = tally.tokens_per_step
    return row


def _heads(found: Trained, held_out: Distilled) -> dict[str, float]:
    ranks = guess_ranks(found.heads, held_out)
    return {
        "accuracy": head_accuracy(ranks, held_out)[0],
        "draft_tokens": float(len(found.calibration.paths)),
        "step_cost": found.calibration.cost[len(found.calibration.paths)],
        "parameters": float(found.heads.trained_parameters),
        "training_seconds": found.seconds,
    }
