"""The largest memory of a block."""

import pytest

from tradeoff.core import memory

MB = 2**20


def test_a_block_has_a_peak_of_its_own() -> None:
    with memory.peak_memory() as large:
        ballast = bytearray(b"x") * (200 * MB)
    del ballast
    with memory.peak_memory() as small:
        sum(range(10))
    assert small.bytes > MB
    if memory._RESET.exists():
        assert large.bytes - small.bytes > 100 * MB


def test_where_peaks_cannot_be_reset_the_process_counts(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(memory, "_RESET", tmp_path / "absent" / "file")
    with memory.peak_memory() as peak:
        pass
    assert peak.bytes > MB
