"""The side-by-side timings: figures that belong together, and the command a user types."""

import json

import numpy as np
import pytest
import scipy.sparse
import torch
from typer.testing import CliRunner

from tradeoff.core.errors import DataError, StoreError
from tradeoff.data.graphs import load_structure
from tradeoff.engines.kernels import BackendError, OperandError
from tradeoff.engines.kernels.bench import OURS, Peer, bench, copy_rate, peers_of, torch_peer
from tradeoff.engines.kernels.commands import app


def test_a_row_has_all_figures(random_graph) -> None:
    slow = Peer("slow", lambda graph: lambda x: [torch.zeros(10) for _ in range(500)], most_seconds=0.0)
    before = torch.get_num_threads()
    graph = random_graph(80, 80, 0.1, 1)
    rows = list(bench([("g", graph)], [3, 16], [1, 2], [*peers_of(["torch", "scipy"]), slow], rounds=2))
    assert torch.get_num_threads() == before
    assert [(row.columns, row.threads) for row in rows] == [(3, 1), (16, 1), (3, 2), (16, 2)]
    for row in rows:
        assert set(row.seconds) == ({OURS, "torch", "scipy"} if row.threads == 1 else {OURS, "torch"})
        assert set(row.seconds_out) == {OURS, "torch"}
        assert set(row.ratios) == set(row.seconds) - {OURS}
        assert row.error < 1e-5
        assert min(*row.seconds.values(), row.compulsory, row.gather, row.share, row.bound) > 0
        assert row.gflops == pytest.approx(2e-9 * row.nnz * row.columns / row.seconds[OURS])


def test_both_forms_of_torch_give_the_product(random_graph, features) -> None:
    graph, x = random_graph(20, 15, 0.3, 1), features(15, 8, seed=2)
    peer, out = torch_peer(), torch.empty(20, 8)
    assert peer.into is not None
    peer.into(graph)(x, out)
    assert torch.allclose(out, graph.to_dense() @ x, atol=1e-5)
    assert torch.allclose(peer.prepare(graph)(x), out)


def test_unknown_peers() -> None:
    with pytest.raises(BackendError, match="no peer 'mkl'; there are torch, scipy"):
        peers_of(["torch", "mkl"])
    assert copy_rate(1) > 0


def test_the_verb_alone_knows_generated_graphs() -> None:
    words = ["bench", "--graph", "pl:100:4", "--dim", "2", "--rounds", "1", "--peers", "torch", "--json", "-"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert '"graph": "pl:100:4"' in done.stdout
    missing = CliRunner().invoke(app, ["bench", "--graph", "debian"])
    assert missing.exit_code == 2


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--threads", "1,999999"), SystemExit),
        (("--dim", "²"), SystemExit),
        (("--seed", "-1"), SystemExit),
        (("--json", "/tmp"), StoreError),
        (("--json", "/dev/null/rows.json"), StoreError),
        (("--dim", "1000000000000"), OperandError),
        (("--graph", "empty.npz"), DataError),
    ],
)
def test_what_is_wrong_is_named_before_anything_is_timed(
    words: tuple[str, str], error: type[Exception], tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scipy.sparse.save_npz("empty.npz", scipy.sparse.csr_array((0, 0)))
    monkeypatch.setattr("tradeoff.engines.kernels.bench.copy_rate", None)
    graph = () if words[0] == "--graph" else ("--graph", "pl:100:4")
    done = CliRunner().invoke(app, ["bench", *graph, *words])
    assert done.exit_code == (2 if error is SystemExit else 1)
    assert isinstance(done.exception, error)


def test_the_folder_of_the_rows_is_made(tmp_path) -> None:
    rows = tmp_path / "new" / "rows.json"
    words = ["bench", "--graph", "pl:9:2", "--dim", "1", "--rounds", "1", "--peers", "", "--json", str(rows)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert json.loads(rows.read_text())["rows"][0]["nodes"] == 9


@pytest.mark.slow
def test_the_command(tradeoff, tmp_path) -> None:
    file = tmp_path / "graph.npz"
    scipy.sparse.save_npz(file, scipy.sparse.csr_array(np.array([[0.0, 2], [1, 1]])))
    done = tradeoff(
        "kernels", "bench", "--graph", str(file), "--dim", "4", "--rounds", "1", "--json", "-", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert (row["nodes"], row["nnz"], row["columns"]) == (2, 3, 4)
    # A data set, whose loader the command line gives to the engine.
    done = tradeoff(
        *("kernels", "bench", "--graph", "debian-small", "--dim", "4", "--rounds", "1", "--json", "-"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert row["nodes"] == load_structure("debian-small").num_nodes
    bad = tradeoff("kernels", "bench", "--graph", "rod:10", cwd=tmp_path)
    assert bad.returncode == 2
    assert "did you mean 'road'?" in bad.stderr
