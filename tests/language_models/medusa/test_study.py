"""Prompts, the comparison, the claims, and the verbs as a user types them."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tradeoff.core import Outcome, Outcomes, Trial, Verdict, measured
from tradeoff.core.errors import DeviceError, RecipeError
from tradeoff.methods.language_models.medusa import InvalidSetting, distillation, serving
from tradeoff.methods.language_models.medusa.claims import (
    faster_than_plain,
    faster_than_transformers,
    heads_learn,
    more_text_helps,
    same_text,
    several_tokens_a_step,
    speed_is_explained,
    untrained_heads_cost_nothing,
)
from tradeoff.methods.language_models.medusa.commands import app
from tradeoff.methods.language_models.medusa.comparison import compare
from tradeoff.methods.language_models.medusa.prompts import KINDS, ByteTokenizer, encode_prompts, make_prompts
from tradeoff.methods.language_models.medusa.serving import serve
from tradeoff.methods.language_models.medusa.study import MedusaStudy


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_prompts_are_others(kind: str) -> None:
    train, held_out = (make_prompts(kind, 60, split, corpus="python") for split in ("train", "held-out"))
    assert not set(train) & set(held_out)
    assert len(set(train)) == 60
    assert make_prompts(kind, 9, "train", corpus="python") == train[:9]
    ids = encode_prompts(train, kind, ByteTokenizer(), limit=20)
    assert all(0 < len(row) <= 20 for row in ids) or kind == "chat"


def test_too_many_prompts_are_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"there are \d+ chat prompts .*, not 5000"):
        make_prompts("chat", 5000, "held-out")
    with pytest.raises(InvalidSetting, match="chat, code, prose"):
        make_prompts("poems", 1, "train")  # type: ignore[arg-type]


class Ticking:
    """A clock that only moves when a way to decode says so."""

    now = 0.0

    def wall(self) -> float:
        return self.now

    def cpu(self) -> float:
        return self.now


def test_comparison_takes_the_prompts_pass_off() -> None:
    clock = Ticking()

    def way(per_token: float, text: list[int]):
        def decode(prompt: list[int], count: int) -> tuple[list[int], int]:
            clock.now += 10 + per_token * (count - 1)
            return text[:count], count - 1

        return decode

    ways = {"plain": way(2.0, [1, 2, 3, 4]), "fast": way(1.0, [1, 2, 3, 4]), "other": way(1.0, [1, 2, 9, 4])}
    found = compare(ways, [[5], [6]], 4, clock=clock)
    assert [found[name].decode_seconds for name in ways] == [12, 6, 6]
    assert [found[name].identical for name in ways] == [2, 2, 0]
    assert found["plain"].seconds == 32
    assert found["fast"].tokens_per_step == 1


def outcome(
    variant: str, kind: str, part: float = 0.0, seed: int = 0, prompts: int = 3, **values: float
) -> Outcome:
    trial = Trial(variant=variant, setting={"kind": kind, "part": part, "prompts": prompts}, seed=seed)
    return Outcome(trial=trial, metrics={name: measured(value) for name, value in values.items()})


def outcomes(identical: float = 1.0, speedup: float = 1.5, guesses: float = 0.0) -> Outcomes:
    rows = []
    for kind in KINDS:
        rows.append(
            outcome("medusa", kind, 1.0, 0, 67, identical=identical, speedup=speedup, tokens_per_step=speedup)
        )
        for seed in range(3):
            shared = {"identical": 1.0, "step_cost": 1.2}
            for part, tokens in ((0.25, 1.4), (1.0, 1.8 + 0.01 * seed)):
                speed = speedup + 0.01 * seed
                rows.append(
                    outcome(
                        "medusa",
                        kind,
                        part,
                        seed,
                        **shared,
                        accuracy=0.3,
                        speedup=speed,
                        tokens_per_step=tokens,
                    )
                )
            rows.append(
                outcome(
                    "untrained",
                    kind,
                    0.0,
                    seed,
                    identical=1.0,
                    accuracy=0.02,
                    speedup=1.0,
                    draft_tokens=guesses,
                )
            )
            rows.append(outcome("transformers", kind, 0.0, seed, speedup=0.8))
    return Outcomes(rows)


def test_claims_hold_and_fail() -> None:
    claims = (
        same_text,
        faster_than_plain,
        several_tokens_a_step,
        more_text_helps,
        heads_learn,
        speed_is_explained,
        untrained_heads_cost_nothing,
        faster_than_transformers,
    )
    assert [claim(outcomes()).verdict for claim in claims] == [Verdict.HOLDS] * len(claims)
    assert same_text(outcomes()).numbers["prompts"] == 201
    assert same_text(outcomes(identical=0.98)).verdict is Verdict.FAILS
    assert faster_than_plain(outcomes(speedup=1.1)).verdict is Verdict.FAILS
    assert several_tokens_a_step(outcomes(speedup=1.1)).verdict is Verdict.FAILS
    assert speed_is_explained(outcomes(speedup=1.1)).verdict is Verdict.FAILS
    assert untrained_heads_cost_nothing(outcomes(guesses=4)).verdict is Verdict.FAILS


@pytest.mark.parametrize(
    ("change", "message"),
    [("parts=[1.0,0.5]", "parts"), ("parts=[0.5]", "last part"), ("checked_prompts=2", "differ")],
)
def test_recipes_that_say_nothing_are_refused(change: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        MedusaStudy().load_recipe("smoke", [change])


def test_verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of one's own from its prompts to text; here the random one over bytes."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("\n".join(f"prompt number {i}" for i in range(16)))
    run = CliRunner().invoke
    training = (
        "train --model random --data prompts.txt --new-tokens 12 --epochs 3 --draft-vocab 0 --max-nodes 4"
    )
    done = run(app, [*training.split(), "--out", "heads", "--export", "vllm", "--heads", "2"])
    assert done.exit_code == 0, done.output
    assert "tokens per step" in done.output
    assert {path.name for path in Path("heads").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tree.json",
    }
    assert Path("vllm/config.json").is_file()
    texts = []
    for heads in (["--heads", "heads"], []):
        done = run(app, ["generate", "some text", "--model", "random", "--max-new-tokens", "10", *heads])
        assert done.exit_code == 0, done.output
        texts.append(done.stdout)
    assert texts[0] == texts[1]
    done = run(
        app, ["generate", "x", "--model", "random", "--max-new-tokens", "6", "--heads", "heads", "--compare"]
    )
    assert "plainly" in done.output
    done = run(app, ["chat", "--model", "random"], input="hello\n")
    assert isinstance(done.exception, InvalidSetting)
    Path("heads/tree.json").write_text('{"paths": 3}')
    done = run(app, ["generate", "x", "--model", "random", "--heads", "heads"])
    assert "tree.json holds no tree" in str(done.exception)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ("--out file", InvalidSetting, "cannot write to file"),
        ("--out heads --export file", InvalidSetting, "cannot write to file"),
        (
            "--out heads --export there --layout public --draft-vocab 99",
            InvalidSetting,
            "not 99 tokens; use vllm",
        ),
        ("--out heads --data absent.txt", InvalidSetting, "cannot read prompts from absent.txt"),
        ("--out heads --data bytes", InvalidSetting, "cannot read prompts from bytes: .*utf-8"),
        ("--out heads --data file", InvalidSetting, "has 1 prompts"),
        ("--out heads --new-tokens 999", InvalidSetting, "999 new ones exceed the model's context of 512"),
        ("--out heads --device tpu9", DeviceError, "'tpu9' cannot be used"),
    ],
)
def test_what_cannot_end_well_is_refused_before_the_model_writes(
    words: str, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distillation, "_continue", lambda *_: pytest.fail("the model wrote"))
    Path("file").write_text("one prompt")
    Path("bytes").write_bytes(b"\xff\xfe")
    Path("prompts.txt").write_text("\n".join(f"prompt number {i}" for i in range(8)))
    given = ["train", "--model", "random", "--data", "prompts.txt", *words.split()]
    assert isinstance(CliRunner().invoke(app, given).exception, error)
    with pytest.raises(error, match=message):
        CliRunner().invoke(app, given, catch_exceptions=False)


def test_a_text_that_ends_within_a_character_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve("random", None)
    text = "ab \N{GREEK SMALL LETTER ALPHA}".encode()
    monkeypatch.setattr(serving, "stream", lambda *_, **__: ([token] for token in text[:-1]))
    parts = list(served.stream([1], 4))
    assert parts == [(1, "a"), (1, "b"), (1, " "), (1, ""), (0, "\ufffd")]
    monkeypatch.setattr(serving, "stream", lambda *_, **__: ([token] for token in text))
    assert [part for _, part in served.stream([1], 5)] == ["a", "b", " ", "", "\N{GREEK SMALL LETTER ALPHA}"]


def test_a_second_stage_keeps_the_new_model(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from tradeoff.methods.language_models.medusa import MedusaHeads
    from tradeoff.methods.language_models.medusa.serving import train_for
    from tradeoff.nn.decoder.loading import from_pretrained

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"prompt number {i}" for i in range(8)))
    train_for(
        "random",
        tmp_path / "heads",
        prompts=prompts,
        new_tokens=8,
        epochs=1,
        stage=2,
        draft_vocab=None,
        max_nodes=2,
    )
    MedusaHeads.load(tmp_path / "heads", from_pretrained(tmp_path / "heads" / "backbone"))
