"""Prompts of three kinds, with held-out ones from other topics, modules and passages than those for training.

``chat``: questions about everyday topics, in the chat template of a model that has one. ``code``: signatures
and docstrings of the Python standard library, to be continued. ``prose``: first words of paragraphs.
"""

import ast
import random
import re
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from tradeoff.data import text

from .errors import InvalidSetting

Kind = Literal["chat", "code", "prose"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Split = Literal["train", "held-out"]
Encode = Callable[[str], Sequence[int]]
HELD_OUT = 4
"""Every fourth topic or module is held out."""
TOPICS = Path(__file__).with_name("topics.txt")

QUESTIONS = (
    "What is the most important thing to know about {}?",
    "Explain {} to a child.",
    "Write a short story about {}.",
    "Give me five tips about {}.",
    "Why do people care about {}?",
    "Write a short paragraph about {}.",
    "What are common mistakes people make about {}?",
    "List three facts about {}.",
)


def make_prompts(kind: Kind, count: int, split: Split, corpus: str = "foldoc", seed: int = 0) -> list[str]:
    """Different prompts of a kind, in random order; fewer are the first of more.

    Args:
        kind: which.
        count: how many.
        split: held-out prompts are about other topics, or from other modules and passages.
        corpus: that prose begins from, of :mod:`tradeoff.data.text`.
        seed: of the order.

    Raises:
        InvalidSetting: an unknown kind, or there are not so many prompts.
        DataError: the corpus is absent.
    """
    if kind not in KINDS:
        raise InvalidSetting(f"prompts are {', '.join(KINDS)}, not {kind!r}")
    every = list(_all_prompts(kind, split, corpus))
    if count > len(every):
        raise InvalidSetting(f"there are {len(every)} {kind} prompts ({split}), not {count}")
    random.Random(seed).shuffle(every)
    return every[:count]


def encode_prompts(prompts: Sequence[str], kind: Kind, tokenizer: Any, limit: int = 64) -> list[list[int]]:
    """Token ids; chat in the template of a tokenizer of transformers, if it has one, else as plain text.

    Args:
        prompts: of one kind.
        kind: which.
        tokenizer: of transformers, or anything with ``encode(text) -> ids``.
        limit: tokens that are kept of the beginning of code and prose.
    """
    if kind == "chat" and getattr(tokenizer, "chat_template", None):
        return [
            list(
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
                )
            )
            for prompt in prompts
        ]
    return [[int(token) for token in tokenizer.encode(prompt)][:limit] for prompt in prompts]


class ByteTokenizer:
    """A byte is a token; for models without a vocabulary of their own."""

    def encode(self, words: str) -> list[int]:
        """UTF-8."""
        return list(words.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """What is no UTF-8 becomes a replacement character."""
        return bytes(ids).decode(errors="replace")


@cache
def _all_prompts(kind: Kind, split: Split, corpus: str) -> tuple[str, ...]:
    if kind == "prose":
        return tuple(sorted(set(_prose(corpus, split))))
    sources = sorted(TOPICS.read_text().splitlines() if kind == "chat" else _modules())
    chosen = [x for i, x in enumerate(sources) if (i % HELD_OUT == 0) == (split == "held-out")]
    return tuple(sorted({prompt for x in chosen for prompt in (_chat(x) if kind == "chat" else _code(x))}))


def _chat(topic: str) -> Iterator[str]:
    return (question.format(topic) for question in QUESTIONS)


def _modules() -> list[str]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    return [str(path) for path in folder.glob("*.py") if not path.name.startswith("_")]


def _code(module: str) -> Iterator[str]:
    """Signature and first line of the docstring of every public function."""
    for node in ast.walk(ast.parse(Path(module).read_bytes())):
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        documented = ast.get_docstring(node)
        if documented:
            (first, *_) = documented.splitlines()
            yield f'def {node.name}({ast.unparse(node.args)}):\n    """{first}"""\n'


def _prose(corpus: str, split: Split) -> Iterator[str]:
    """The first twelve words of every paragraph that has at least twice as many."""
    found = text.read(corpus)
    part = found.train if split == "train" else found.validation
    for paragraph in re.split(rb"\n\s*\n", part):
        words = paragraph.decode(errors="ignore").split()
        if len(words) >= 24:
            yield " ".join(words[:12])
