"""Random graphs of the kinds that sparse kernels are judged on; the same seed gives the same graph.

All but :func:`with_degrees` give undirected graphs: symmetric, without self loops, every entry one.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64, Int64

from tradeoff.nn.graphs.adjacency import MAX_NODES, Adjacency, from_edges

MAX_EDGES = 1 << 31
"""Undirected edges of one generated graph; more would not fit in the memory of the machines we know."""
CHUNK = 1 << 20
"""Random numbers drawn at a time."""
ROUNDS = 60
"""After which a graph that is too dense for its degree distribution is given up."""
WEIGHTED_ROUNDS = 3
"""Of :func:`with_degrees`, after which columns that are still missing are drawn with equal probability."""
QUADRANTS = (0.57, 0.19, 0.19, 0.05)
"""Of the Graph500 benchmark."""


def rmat(
    scale: int, edge_factor: int = 16, quadrants: tuple[float, float, float, float] = QUADRANTS, seed: int = 0
) -> Adjacency:
    """A recursive-matrix graph (Chakrabarti, Zhan, Faloutsos, SDM 2004), as Graph500 uses it.

    Args:
        scale: there are ``2^scale`` nodes.
        edge_factor: undirected edges drawn per node; those that repeat or are loops are dropped, which leaves
            fewer.
        quadrants: probabilities a, b, c, d of the four quarters of the matrix.

    Raises:
        ValueError: a size or probability is out of range.
    """
    _check(1 <= scale <= 31, f"scale must be from 1 to 31, not {scale}")
    _check(edge_factor >= 1, f"edge_factor must be at least 1, not {edge_factor}")
    _check(min(quadrants) >= 0 and abs(sum(quadrants) - 1) < 1e-9, f"{quadrants} are not four probabilities")
    num_nodes, count = 1 << scale, edge_factor << scale
    _check_size(num_nodes, count)
    generator = np.random.Generator(np.random.PCG64(seed))
    rows, columns = np.empty(count, np.uint32), np.empty(count, np.uint32)
    bounds = np.cumsum(quadrants)[:3].astype(np.float32)
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        row, column = np.zeros(size, np.uint32), np.zeros(size, np.uint32)
        for _ in range(scale):
            u = generator.random(size, np.float32)
            lower = u >= bounds[1]  # quadrants c and d
            right = (u >= bounds[0]) ^ lower | (u >= bounds[2])  # b and d
            row += row + lower
            column += column + right
        rows[start : start + size], columns[start : start + size] = row, column
    # Without renaming, the low numbers would be the hubs.
    names = generator.permutation(num_nodes).astype(np.uint32)
    name = f"rmat:{scale}:{edge_factor}"
    return from_edges(names[rows], names[columns], num_nodes, symmetric=True, self_loops=False, name=name)


def power_law(
    num_nodes: int,
    average_degree: float,
    exponent: float = 2.2,
    max_degree: int | None = None,
    seed: int = 0,
) -> Adjacency:
    """A graph whose degrees follow a power law (Chung and Lu, Annals of Combinatorics 2002).

    The end of an edge is node ``i`` with a probability in proportion to ``(i + i0)^(-1 / (exponent - 1))``;
    edges are drawn until there are ``num_nodes * average_degree / 2`` distinct ones. Nodes are then renamed
    at random.

    Args:
        exponent: of the degree distribution, above 2.
        max_degree: the degree to expect of the largest hub before repeats are dropped, which sets ``i0``; 1
            when not given.

    Raises:
        ValueError: a size is out of range, or the edges do not fit in the graph.
    """
    edges = _undirected_edges(num_nodes, average_degree)
    _check(exponent > 2, f"exponent must be above 2, not {exponent}")
    weights = _power_weights(
        num_nodes, 1 / (exponent - 1), None if max_degree is None else max_degree / (2 * edges)
    )
    generator = np.random.Generator(np.random.PCG64(seed))
    cumulative = np.cumsum(weights)
    cumulative /= cumulative[-1]

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        # The first ends in ascending order, which is no more than an order of the edges, are found faster.
        first = np.searchsorted(cumulative, np.sort(generator.random(count)), side="right")
        return np.minimum(first, num_nodes - 1), _pick(generator, cumulative, count)

    rows, columns = _distinct_edges(draw, num_nodes, edges, generator)
    names = generator.permutation(num_nodes)
    return from_edges(
        names[rows],
        names[columns],
        num_nodes,
        symmetric=True,
        name=f"pl:{num_nodes}:{average_degree:g}:{exponent:g}",
    )


def road(side: int, removed: float = 0.3, seed: int = 0) -> Adjacency:
    """A grid of ``side`` x ``side`` crossings, joined to their neighbors, with a part of the edges removed.

    Raises:
        ValueError: ``side`` or ``removed`` is out of range.
    """
    _check(side >= 1, f"side must be at least 1, not {side}")
    _check(0 <= removed <= 1, f"removed must be from 0 to 1, not {removed}")
    _check_size(side * side, 2 * side * side)
    node = np.arange(side * side, dtype=np.int64).reshape(side, side)
    rows = np.concatenate([node[:, :-1].ravel(), node[:-1].ravel()])
    columns = np.concatenate([node[:, 1:].ravel(), node[1:].ravel()])
    generator = np.random.Generator(np.random.PCG64(seed))
    kept = np.sort(generator.permutation(len(rows))[round(len(rows) * removed) :])
    return from_edges(rows[kept], columns[kept], side * side, symmetric=True, name=f"road:{side}:{removed:g}")


def community(
    num_nodes: int,
    average_degree: float,
    communities: int = 41,
    deviation: float = 0.9,
    inside: float = 0.8,
    seed: int = 0,
) -> Adjacency:
    """A graph of communities with log-normal degrees: a degree-corrected block model (Karrer, Newman, 2011).

    Node ``i`` belongs to community :func:`community_labels`. Edges are drawn until there are
    ``num_nodes * average_degree / 2`` distinct ones.

    Args:
        communities: how many, of about equal size.
        deviation: standard deviation of the logarithm of the expected degrees.
        inside: the part of the edges that is drawn within a community.

    Raises:
        ValueError: a size is out of range, or the edges do not fit in the graph.
    """
    edges = _undirected_edges(num_nodes, average_degree)
    _check(1 <= communities <= num_nodes, f"communities must be from 1 to {num_nodes:,}, not {communities}")
    _check(deviation >= 0, f"deviation must not be negative, not {deviation}")
    _check(0 <= inside <= 1, f"inside must be from 0 to 1, not {inside}")
    generator = np.random.Generator(np.random.PCG64(seed))
    cumulative = np.cumsum(generator.lognormal(0.0, deviation, num_nodes))
    cumulative /= cumulative[-1]
    labels = community_labels(num_nodes, communities)
    ends = np.append(0.0, cumulative[np.searchsorted(labels, np.arange(communities), side="right") - 1])

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        first = np.searchsorted(cumulative, np.sort(generator.random(count)), side="right")
        row, u = np.minimum(first, num_nodes - 1), generator.random(count)
        own = labels[row]
        within = ends[own] + u * (ends[own + 1] - ends[own])
        u = np.where(generator.random(count) < inside, within, u)
        return row, np.minimum(np.searchsorted(cumulative, u, side="right"), num_nodes - 1)

    rows, columns = _distinct_edges(draw, num_nodes, edges, generator)
    name = f"community:{num_nodes}:{average_degree:g}:{communities}:{deviation:g}"
    return from_edges(rows, columns, num_nodes, symmetric=True, name=name)


def community_labels(num_nodes: int, communities: int) -> Int64[np.ndarray, " nodes"]:
    """The community of each node of :func:`community`: consecutive nodes, in parts of about equal size."""
    return np.arange(num_nodes, dtype=np.int64) * communities // max(num_nodes, 1)


def with_degrees(degrees: Int64[np.ndarray, " nodes"], seed: int = 0, name: str = "degrees") -> Adjacency:
    """A directed graph whose rows have exactly these degrees.

    Columns are drawn with a probability in proportion to ``degrees + 1``, as hubs of real graphs are hubs
    both ways; a column that a row has already is drawn anew, at the end with equal probability. Rows are made
    block by block, so that memory stays near that of the result.

    Raises:
        ValueError: a degree is negative or above the number of nodes.
    """
    degrees = np.asarray(degrees, np.int64)
    num_nodes = len(degrees)
    _check(
        not num_nodes or 0 <= int(degrees.min()) <= int(degrees.max()) <= num_nodes,
        f"degrees must be from 0 to the number of nodes, {num_nodes:,}",
    )
    _check_size(num_nodes, int(degrees.sum()) // 2)
    generator = np.random.Generator(np.random.PCG64(seed))
    indptr = np.append(0, np.cumsum(degrees))
    indices = np.empty(int(indptr[-1]), np.int32 if num_nodes <= 1 << 31 else np.int64)
    cumulative = np.cumsum(degrees + 1.0)
    cumulative /= cumulative[-1] if num_nodes else 1
    start = 0
    while start < num_nodes:
        stop = max(start + 1, int(np.searchsorted(indptr, indptr[start] + 16 * CHUNK, side="right")) - 1)
        block = _block_columns(generator, degrees[start:stop], cumulative)
        indices[indptr[start] : indptr[stop]] = block
        start = stop
    return Adjacency(indptr, indices, None, name)


def _block_columns(
    generator: np.random.Generator, degrees: np.ndarray, cumulative: Float64[np.ndarray, " nodes"]
) -> np.ndarray:
    """Distinct ascending columns for each of some rows, row after row."""
    num_nodes = len(cumulative)
    finished: list[np.ndarray] = []
    keys = np.zeros(0, np.int64)  # of rows that still lack columns
    missing = degrees
    for attempt in range(ROUNDS):
        rows = np.repeat(np.arange(len(degrees)), missing)
        if attempt < WEIGHTED_ROUNDS:
            columns = _pick(generator, cumulative, len(rows))
        else:
            columns = generator.integers(0, num_nodes, len(rows))
        keys = _sorted_distinct(np.concatenate([keys, rows * num_nodes + columns]))
        rows = keys // num_nodes
        missing = np.where(missing > 0, degrees - np.bincount(rows, minlength=len(degrees)), 0)
        unfinished = missing[rows] > 0
        finished.append(keys[~unfinished])
        keys = keys[unfinished]
        if not len(keys):
            break
    for row in np.flatnonzero(
        missing
    ):  # rows that have almost every column: choose among those that they lack
        present = keys[keys // num_nodes == row] % num_nodes
        absent = np.setdiff1d(np.arange(num_nodes), present, assume_unique=True)
        added = generator.choice(absent, int(missing[row]), replace=False)
        finished.append(row * num_nodes + added)
    keys = np.concatenate([*finished, keys])
    keys.sort()
    return keys % num_nodes


def _distinct_edges(
    draw: Callable[[int], tuple[np.ndarray, np.ndarray]],
    num_nodes: int,
    edges: int,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw pairs until ``edges`` of them are distinct as undirected edges that are no loops."""
    keys = np.zeros(0, np.int64)
    for _ in range(ROUNDS):
        wanted = edges - len(keys)
        if wanted <= 0:
            break
        fresh = [keys]
        # A little more than is missing, since some will repeat.
        for size in _chunks(wanted + wanted // 8 + 16):
            row, column = draw(size)
            low, high = np.minimum(row, column), np.maximum(row, column)
            fresh.append((low * num_nodes + high)[low != high])
        keys = _sorted_distinct(np.concatenate(fresh))
    if len(keys) < edges:
        raise ValueError(
            f"only {len(keys):,} of {edges:,} edges could be drawn: they are too many for these degrees"
        )
    if len(keys) > edges:
        keys = np.delete(keys, generator.choice(len(keys), len(keys) - edges, replace=False, shuffle=False))
    return np.divmod(keys, num_nodes)


def _sorted_distinct(keys: np.ndarray) -> np.ndarray:
    """As ``np.unique``, which is slower."""
    keys.sort()
    return keys[np.append(True, keys[1:] != keys[:-1])] if len(keys) else keys


def _pick(generator: np.random.Generator, cumulative: np.ndarray, count: int) -> Int64[np.ndarray, " count"]:
    """Positions drawn by their probability, given as cumulative sums."""
    picked = np.empty(count, np.int64)
    start = 0
    for size in _chunks(count):
        picked[start : start + size] = np.searchsorted(cumulative, generator.random(size), side="right")
        start += size
    return np.minimum(picked, len(cumulative) - 1, out=picked)


def _chunks(count: int) -> list[int]:
    return [min(CHUNK, count - start) for start in range(0, count, CHUNK)]


def _power_weights(
    num_nodes: int, power: float, largest_share: float | None
) -> Float64[np.ndarray, " nodes"]:
    """``(i + i0)^-power``, where the first has ``largest_share`` of the sum; ``i0`` is 1 if not given."""
    nodes: Float64[np.ndarray, " nodes"] = np.arange(num_nodes, dtype=np.float64)
    if largest_share is None:
        return (nodes + 1) ** -power
    low, high = 1e-3, float(num_nodes) * 1e3
    for _ in range(60):
        shift = (low * high) ** 0.5
        weights = (nodes + shift) ** -power
        low, high = (shift, high) if weights[0] / weights.sum() > largest_share else (low, shift)
    return np.asarray(weights)


def _undirected_edges(num_nodes: int, average_degree: float) -> int:
    _check(num_nodes >= 1, f"a graph needs at least one node, not {num_nodes}")
    _check(
        0 <= average_degree <= num_nodes - 1,
        f"the average degree of {num_nodes:,} nodes is from 0 to {num_nodes - 1:,}, not {average_degree}",
    )
    edges = round(num_nodes * average_degree / 2)
    _check_size(num_nodes, edges)
    return edges


def _check_size(num_nodes: int, edges: int) -> None:
    _check(num_nodes <= MAX_NODES, f"{num_nodes:,} nodes are more than {MAX_NODES:,}")
    _check(edges <= MAX_EDGES, f"{edges:,} edges are more than {MAX_EDGES:,}")


def _check(condition: object, message: str) -> None:
    if not condition:
        raise ValueError(message)
