"""Accel-GCN: the computed schedule, the network, the study's claims, and the verb for one's own graph."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

pytest.importorskip("torch_geometric", reason="torch-geometric is missing: pip install 'tradeoff[graphs]'")

from tradeoff.cli import main
from tradeoff.core import Outcome, Outcomes, Trial, Verdict, counted, measured, modelled
from tradeoff.core.errors import EngineError, MissingOutcome, RecipeError
from tradeoff.data.graphs import load
from tradeoff.engines.kernels import Graph, PartitionMismatch, cost_meter
from tradeoff.engines.kernels.device_timing import DeviceClock, threads
from tradeoff.methods.graphs.accel_gcn import (
    GCN,
    BlockPartition,
    accel_gcn_costs,
    bench,
    check_product,
    claims,
    imbalance,
    makespan,
    row_per_warp_costs,
    time_products,
    train,
    warp_chunk_costs,
)
from tradeoff.methods.graphs.accel_gcn.study import AccelGCN
from tradeoff.nn.graphs import generate


def graph_of(text: str, seed: int = 0) -> Graph:
    arrays = generate(text, seed)
    return Graph.from_csr(arrays.indptr, arrays.indices, arrays.values)


def graph_with(degrees: list[int]) -> Graph:
    indptr = torch.tensor([0, *degrees]).cumsum(0)
    indices = torch.cat([torch.arange(degree) for degree in degrees])
    return Graph.from_csr(indptr, indices, num_columns=max(degrees))


def test_costs_are_those_of_the_longest_warp() -> None:
    graph = graph_with([5, 0, 70, 3, 3, 1000, 200])
    assert row_per_warp_costs(graph, warps=3).tolist() == [70, 1000, 200]
    # 5 | 32 32 6 | 3 | 3 | 31 x 32, 8 | 6 x 32, 8, twelve at a time
    assert warp_chunk_costs(graph).tolist() == [32, 32, 32, 32]
    assert warp_chunk_costs(graph_with([5, 1]), warps=1).tolist() == [5, 1]
    # Degrees 3, 5, 70 (3 warps of 24), 200 (12 warps of 17), then segments of 384, 384 and 232.
    assert accel_gcn_costs(BlockPartition.from_graph(graph)).tolist() == [3, 5, 24, 17, 32, 32, 32]
    assert accel_gcn_costs(BlockPartition.from_graph(graph, compat=True)).tolist() == [
        3,
        5,
        24,
        32,
        32,
        32,
        32,
    ]


def slow_makespan(costs: list[int], slots: int) -> int:
    free = [0] * slots
    for cost in costs:
        first = free.index(min(free))
        free[first] += cost
    return max(free)


def test_schedule_is_that_of_a_slow_simulation() -> None:
    generator = np.random.default_rng(0)
    for slots in (1, 2, 7, 100):
        costs = generator.integers(1, 50, 60)
        assert makespan(costs, slots) == slow_makespan(costs.tolist(), slots)
    assert makespan(np.array([], np.int64)) == 0
    assert imbalance(np.array([4, 4]), nnz=8, warps=1, slots=2) == 1.0
    assert imbalance(np.array([], np.int64), nnz=0) == 1.0
    with pytest.raises(ValueError, match="slot"):
        makespan(np.array([1]), 0)


@pytest.mark.parametrize(
    ("text", "average", "limit", "ratio"),
    [
        ("pl200k", 15.45, 1.2, 9),
        ("pl1m", 9.8, 1.2, 9),
        ("road1m", 2.8, 1.05, 9),
    ],
)
def test_balance_and_metadata(text: str, average: float, limit: float, ratio: float) -> None:
    """On skewed and road-like graphs blocks end near the ideal, where a row a warp does not."""
    graph = graph_of(text)
    assert graph.nnz / graph.num_rows == pytest.approx(average, rel=0.01)
    partition = BlockPartition.from_graph(graph)
    ours = imbalance(accel_gcn_costs(partition), graph.nnz)
    chunks = imbalance(warp_chunk_costs(graph), graph.nnz)
    rows = imbalance(row_per_warp_costs(graph), graph.nnz)
    assert ours <= limit
    assert ours < chunks
    assert rows > limit
    assert partition.stats().metadata_ratio >= ratio


def test_balance_on_debian(require) -> None:
    """The largest hub alone, uncut, would take hundreds of times as long as even work."""
    try:
        arrays = load("debian").graph
    except ValueError as error:
        require(False, str(error))
    graph = Graph.from_csr(arrays.indptr, arrays.indices)
    partition = BlockPartition.from_graph(graph)
    ours = imbalance(accel_gcn_costs(partition), graph.nnz)
    assert ours <= 1.6
    assert ours < imbalance(warp_chunk_costs(graph), graph.nnz)
    assert imbalance(row_per_warp_costs(graph), graph.nnz) > 100
    assert partition.stats().metadata_ratio >= 9


def test_unsorted_rows_miss_the_balance() -> None:
    """As large blocks of rows in their own order: blocks of mixed degrees wait for their longest row."""
    graph = graph_of("pl:20000:15")
    partition = BlockPartition.from_graph(graph)
    sorted_end = imbalance(accel_gcn_costs(partition), graph.nnz, slots=100)
    mixed = np.minimum(row_per_warp_costs(graph), 384)
    assert imbalance(mixed, graph.nnz, slots=100) > 1.5 * sorted_end


def test_published_widths_pad_more_on_dense_graphs() -> None:
    graph = graph_of("community:3000:300")
    balanced, compat = (BlockPartition.from_graph(graph, compat=compat) for compat in (False, True))
    assert balanced.stats().padding < compat.stats().padding
    ends = [imbalance(accel_gcn_costs(p), graph.nnz, slots=100) for p in (balanced, compat)]
    assert ends[0] < ends[1]


@pytest.fixture(scope="module")
def small() -> tuple[Graph, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    data = load("debian-small")
    graph = Graph.from_csr(data.graph.indptr, data.graph.indices).normalize("sym", self_loops=True)
    return graph, data.x, data.y, data.train, data.test


def test_training_gives_equal_losses_and_learns(small) -> None:
    graph, x, y, train_mask, test_mask = small
    partition = BlockPartition.from_graph(graph)
    results = []
    for options in (
        {"strategy": "rows"},
        {"strategy": "buckets", "partition": partition},
        {"conv": torch_sparse},
    ):
        torch.manual_seed(0)
        adjacency = graph.to_torch() if "conv" in options else graph
        model = GCN(x.shape[1], 32, out_dim=int(y.max()) + 1, **options)
        results.append(train(model, x, adjacency, y, train_mask, test_mask, epochs=15))
    for other in results[1:]:
        torch.testing.assert_close(
            torch.tensor(other.losses), torch.tensor(results[0].losses), rtol=0, atol=1e-4
        )
    assert results[0].losses[-1] < results[0].losses[0] - 0.5
    assert results[0].accuracy > 0.4  # of 16 classes of equal size
    assert all(result.epoch_seconds > 0 for result in results)


def torch_sparse(in_dim: int, out_dim: int) -> torch.nn.Module:
    from torch_geometric.nn import GCNConv

    return GCNConv(in_dim, out_dim, normalize=False)


def test_network_uses_its_partition(small) -> None:
    graph, x, *_ = small
    partition = BlockPartition.from_graph(graph)
    model = GCN(x.shape[1], 8, out_dim=3, layers=3, strategy="buckets", partition=partition)
    with cost_meter() as meter:
        assert model(x, graph).shape == (len(x), 3)
    assert [call.kernel.endswith("-buckets") for call in meter.calls] == [True] * 3
    with pytest.raises(PartitionMismatch):
        model(x[:5], Graph.from_edge_index(torch.tensor([[0, 1], [1, 2]]), num_nodes=5))
    with pytest.raises(ValueError, match="at least one layer"):
        GCN(4, out_dim=2, layers=0)
    with pytest.raises(ValueError, match="at least two"):
        train(model, x, graph, *small[2:], epochs=1)


def test_wrong_products_are_found() -> None:
    graph, x = graph_of("pl:500:6"), torch.randn(500, 9)
    partition = BlockPartition.from_graph(graph)
    products = bench.our_products(graph, x, partition)
    products |= bench.peer_products(graph, x, ["torch", "scipy", "pyg"])
    errors = check_product(graph, x, products)
    assert errors.keys() == {"rows", "buckets", "torch", "scipy", "pyg"}
    assert max(errors.values()) < 1e-5
    with pytest.raises(bench.WrongProduct, match="shifted"):
        check_product(graph, x, {"shifted": lambda: products["rows"]().roll(1, 0)})
    with pytest.raises(bench.WrongProduct, match="nan"):
        check_product(graph, x, {"nan": lambda: products["rows"]() * torch.nan})


def test_products_are_timed_beside_peers() -> None:
    graph = graph_of("pl:500:6")
    (first, second) = time_products(graph, [4, 8], peers=["scipy"], rounds=2)
    assert (first.width, second.width) == (4, 8)
    assert first.seconds.keys() == {"rows", "buckets", "scipy"}
    assert first.speedup("rows", "scipy") == first.timings.ratio("scipy", "rows")[0] > 0
    assert first.seconds["scipy"] == first.timings.timings["scipy"].median
    with pytest.raises(ValueError, match="no peer 'mkl'"):
        bench.available_peers("cpu", ["mkl"])
    assert bench.available_peers("cpu", ["cusparse", "torch"]) == ["torch"]


def test_products_are_timed_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, original = [], bench.side_by_side

    def spied(calls: dict[str, Any], **options: Any) -> Any:
        seen.append((torch.get_num_threads(), options.get("sample_seconds", "as usual")))
        return original(calls, **options)

    monkeypatch.setattr(bench, "side_by_side", spied)
    with threads(2):
        time_products(graph_of("pl:200:6"), [4], rounds=1)
        assert seen == [(1, "as usual")]
        assert torch.get_num_threads() == 2


def cut(graph: str, variant: str, degree: float, values: list[tuple[float, float]]) -> list[Outcome]:
    """Made-up outcomes of partitions: bytes and imbalance, one for each seed."""
    return [
        Outcome(
            trial=Trial(variant=variant, setting={"job": "partition", "graph": graph}, seed=seed),
            metrics={
                "metadata_bytes": counted(size),
                "imbalance": modelled(end),
                "average_degree": counted(degree),
            },
        )
        for seed, (size, end) in enumerate(values)
    ]


def product(
    variant: str,
    slowdown: float,
    device: str = "cuda",
    graph: str = "g",
    width: int = 64,
    seed: int = 0,
    seconds: float = 1.0,
) -> Outcome:
    setting = {"job": "product", "graph": graph, "width": width, "device": device}
    metrics = {"product_seconds": measured(seconds), "slowdown": measured(slowdown)}
    return Outcome(trial=Trial(variant=variant, setting=setting, seed=seed), metrics=metrics)


def test_claims_of_metadata_and_balance() -> None:
    ours = cut("a", "accel-gcn", 10, [(100, 1.1), (100, 1.2)])
    dense = cut("b", "accel-gcn", 300, [(100, 1.3)]) + cut("b", "warp-chunks", 300, [(100, 1.1)])
    good = Outcomes([*ours, *cut("a", "warp-chunks", 10, [(1100, 2.0), (1000, 2.0)]), *dense])
    assert claims.smaller_metadata(good).verdict is Verdict.HOLDS
    assert claims.better_balance(good).verdict is Verdict.HOLDS
    bad = Outcomes([*ours, *cut("a", "warp-chunks", 10, [(1100, 2.0), (800, 1.2)])])
    assert claims.smaller_metadata(bad).verdict is Verdict.FAILS
    assert claims.better_balance(bad).verdict is Verdict.FAILS
    with pytest.raises(MissingOutcome):
        claims.smaller_metadata(Outcomes())
    with pytest.raises(MissingOutcome, match="low average degree"):
        claims.smaller_metadata(Outcomes(dense))


def test_claim_of_equal_training() -> None:
    def made(other: float) -> Outcomes:
        return Outcomes(
            Outcome(
                trial=Trial(variant=variant, setting={"job": "training", "graph": "g"}),
                metrics={"training_loss": measured(loss)},
            )
            for variant, loss in (("accel-gcn", 0.5), ("torch", other))
        )

    assert claims.equal_training(made(0.50005)).verdict is Verdict.HOLDS
    assert claims.equal_training(made(0.501)).verdict is Verdict.FAILS


def test_claims_of_speed_are_undecided_without_a_gpu_or_the_peer() -> None:
    on_cpu = Outcomes([product("accel-gcn", 1.0, "cpu"), product("cusparse", 9.0, "cpu")])
    alone = Outcomes([product("accel-gcn", 1.0)])
    speed = [claim for claim in AccelGCN.claims if "times as fast" in claim.text]
    assert [claim.check.args[1] for claim in speed] == [1.17, 1.86, 2.94]
    for outcomes in (Outcomes(), on_cpu, alone):
        for claim in speed:
            finding = claim.evaluate(outcomes)
            assert finding.verdict is Verdict.UNDECIDED
            assert "reason" in finding.numbers

    def timed(*ratios: float) -> Outcomes:
        pairs = [
            [product("accel-gcn", 1.0, graph=f"g{n}"), product("cusparse", ratio, graph=f"g{n}")]
            for n, ratio in enumerate(ratios)
        ]
        return Outcomes(outcome for pair in pairs for outcome in pair)

    assert speed[0].evaluate(timed(1.3, 1.4, 1.35)).verdict is Verdict.HOLDS
    assert speed[0].evaluate(timed(1.04, 1.05, 1.06)).verdict is Verdict.FAILS
    assert speed[0].evaluate(timed(0.8, 1.9, 1.2)).verdict is Verdict.UNDECIDED
    assert speed[0].evaluate(timed(1.3)).verdict is Verdict.UNDECIDED
    assert speed[1].evaluate(timed(1.3, 1.4, 1.35)).verdict is Verdict.UNDECIDED


def test_speed_is_compared_by_turns_and_a_graph_counts_once() -> None:
    cusparse = next(claim for claim in AccelGCN.claims if "cuSPARSE" in claim.text)

    def sweep(graph: str, faster: float) -> list[Outcome]:
        """The peer ran on a machine that was twice as busy, as its seconds tell and its slowdown does not."""
        return [
            outcome
            for width in (16, 32, 64)
            for seed in range(3)
            for outcome in (
                product("accel-gcn", 0.5, graph=graph, width=width, seed=seed, seconds=1.0),
                product("cusparse", 0.5 * faster, graph=graph, width=width, seed=seed, seconds=2 * faster),
            )
        ]

    one = cusparse.evaluate(Outcomes(sweep("a", 1.3)))
    assert one.verdict is Verdict.UNDECIDED  # nine products of one graph are one value
    assert one.numbers["speedup"] == pytest.approx(1.3)
    several = Outcomes([*sweep("a", 1.3), *sweep("b", 1.4), *sweep("c", 1.35)])
    finding = cusparse.evaluate(several)
    assert finding.verdict is Verdict.HOLDS
    assert [finding.numbers[f"speedup on {name}"] for name in "abc"] == pytest.approx([1.3, 1.4, 1.35])


def test_training_is_timed_on_one_thread_and_until_a_gpu_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Counted(torch.nn.Linear):
        def forward(self, x: torch.Tensor, adjacency: object) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return super().forward(x)

    x, y, every = torch.randn(9, 4), torch.zeros(9, dtype=torch.long), torch.ones(9, dtype=torch.bool)
    with threads(2):
        train(Counted(4, 2), x, Graph.from_coo([0], [0]), y, every, every, epochs=3)
        assert seen[:3] == [1] * 3
        assert torch.get_num_threads() == 2
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    assert DeviceClock("cuda").wall() > 0
    assert waited == [torch.device("cuda")]
    assert DeviceClock("cpu").wall() <= DeviceClock("cpu").cpu()
    assert len(waited) == 1


def test_recipes() -> None:
    method = AccelGCN()
    recipe = method.load_recipe("default")
    jobs = {trial.setting["job"] for trial in method.trials(recipe)}
    assert jobs == {"partition", "product", "training"}
    for change, message in (
        ("training.data=[cora-like]", "none of"),
        ("warps=33", "less than or equal to 32"),
        ("products.peers=[mkl]", "products.peers"),
        ("products.widths=[0]", "greater than or equal to 1"),
        ("training.epochs=1", "greater than or equal to 2"),
    ):
        with pytest.raises(RecipeError, match=message):
            method.load_recipe("smoke", [change])


def test_products_on_a_gpu_need_one() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    method = AccelGCN()
    recipe = method.load_recipe("smoke", ["products.device=cuda", "products.peers=[cusparse]"])
    trial = next(trial for trial in method.trials(recipe) if trial.setting["job"] == "product")
    with pytest.raises(EngineError, match="no CUDA device"):
        method.run(trial, recipe, None)


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return int(ended.value.code or 0)


def test_bench_of_a_graph_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "graph.npz"
    generate("pl:400:6").save(path)
    words = ["--dim", "4:8:4", "--rounds", "1", "--epochs", "2", "--json", str(tmp_path / "out.json")]
    assert run("accel-gcn", "bench", "--graph", str(path), *words) == 0
    printed = capsys.readouterr()
    assert "times fewer than one record a warp" in printed.out
    assert "mean" in printed.out
    assert "cusparse is not installed, or does not run on cpu" in printed.err
    document = json.loads((tmp_path / "out.json").read_text())
    assert [row["width"] for row in document["products"]] == [4, 8]
    losses = [document["training"][name]["losses"] for name in ("rows", "buckets", "torch.sparse")]
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--graph", "absent.npz"), "absent.npz"),
        (("--graph", "debain"), "no graph 'debain'"),
        (("--dim", "0"), "first:last:step"),
        (("--dim", "8:4:0"), "first:last:step"),
        (("--peers", "mkl"), "no peer 'mkl'"),
        (("--device", "tpu"), "cpu, cuda or auto"),
        (("--warps", "40"), "warps"),
        (("--epochs", "1"), "at least 2"),
        (("--json", "/tmp"), "it is a folder"),
        (("--json", "/dev/null/out.json"), "cannot write into /dev/null"),
        (("--graph", "empty.npz"), "has no nodes"),
        (("--peers", "scipy, mkl"), "no peer 'mkl'"),
    ],
)
def test_bench_names_what_is_wrong(
    capsys: pytest.CaptureFixture[str],
    change: tuple[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    scipy.sparse.save_npz("empty.npz", scipy.sparse.csr_array((0, 0)))
    monkeypatch.setattr(bench, "time_products", None)  # it would be too late
    options = {"--graph": "pl:50:3", "--dim": "4", "--epochs": "0"}
    options[change[0]] = change[1]
    status = run("accel-gcn", "bench", *(word for pair in options.items() for word in pair))
    assert status == (1 if change[0] == "--json" else 2)
    assert message in capsys.readouterr().err.replace("\n", " ")
