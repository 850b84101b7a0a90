"""What attention remembers of the text before, in tensors that are allocated once."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tradeoff.nn.decoder.errors import CacheError, CacheOverflow

EntryShapes = Mapping[str, tuple[int | None, int]]
"""Stored quantity -> (heads, width); heads None for one that all heads share."""


class KVCache:
    """Keys and values, or latents, of every layer; each row of the batch has a length of its own.

    New tokens are *pending* behind the committed ones until :meth:`commit` or :meth:`select` keeps them; the
    next :meth:`append` overwrites what was not kept. Lengths live on the host, so that no operation waits for
    a device. Stored numbers carry no gradient.

    Args:
        layers: layers of the model.
        batch: rows.
        max_len: slots of a row.
        entry_shapes: what is stored of a token in one layer.
        dtype: of the storage; what is appended is converted.
        device: of the storage.

    Attributes:
        storage: name -> tensor ``(layer, batch, head, position, width)``; shared entries have no ``head``.
        lengths: committed tokens of every row.
        pending: tokens of the last append, until they are kept.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        max_len: int,
        entry_shapes: EntryShapes,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch < 1 or max_len < 1:
            raise CacheError(f"a cache of {batch} rows with {max_len} slots")
        self.layers = layers
        self.max_len = max_len
        self.entry_shapes = dict(entry_shapes)
        self.storage = {
            name: torch.zeros(
                (layers, batch, max_len, width) if heads is None else (layers, batch, heads, max_len, width),
                dtype=dtype,
                device=device,
            )
            for name, (heads, width) in entry_shapes.items()
        }
        self.lengths = (0,) * batch
        self.pending = 0

    @property
    def batch(self) -> int:
        """Rows."""
        return len(self.lengths)

    @property
    def length(self) -> int:
        """Committed tokens, where every row has the same number.

        Raises:
            CacheError: the rows differ.
        """
        if min(self.lengths) != max(self.lengths):
            raise CacheError(f"the rows have different lengths: {self.lengths}")
        return self.lengths[0]

    def require(self, new: int) -> None:
        """Check that ``new`` tokens fit behind every row.

        Raises:
            CacheOverflow: they do not; nothing was written.
        """
        if max(self.lengths) + new > self.max_len:
            raise CacheOverflow(
                f"{new} tokens behind {max(self.lengths)} exceed the cache's {self.max_len} slots"
            )

    @torch.no_grad()
    def append(self, layer: int, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Write new tokens of one layer behind the committed ones; lengths do not change.

        Args:
            entries: for every stored quantity ``(batch, head, new, width)``, or ``(batch, new, width)``.

        Returns:
            For every quantity a view of all slots up to the longest row's last new one.

        Raises:
            CacheOverflow: they do not fit; nothing was written.
        """
        new = next(iter(entries.values())).shape[-2]
        self.require(new)
        self.pending = new
        views = {}
        stop = max(self.lengths) + new
        aligned = min(self.lengths) == stop - new
        for name, tensor in entries.items():
            slots = self.storage[name][layer]
            if aligned:
                slots.narrow(-2, self.lengths[0], new).copy_(tensor)
            else:
                for row, start in enumerate(self.lengths):
                    slots[row].narrow(-2, start, new).copy_(tensor[row])
            views[name] = slots.narrow(-2, 0, stop)
        return views

    def commit(self, new: int | Sequence[int]) -> None:
        """Keep the first ``new`` pending tokens, of all rows alike or row by row.

        Raises:
            CacheError: more than are pending.
        """
        counts = (new,) * self.batch if isinstance(new, int) else tuple(new)
        if len(counts) != self.batch or not all(0 <= count <= self.pending for count in counts):
            raise CacheError(f"cannot commit {new} of {self.pending} pending tokens in {self.batch} rows")
        self.lengths = tuple(length + count for length, count in zip(self.lengths, counts, strict=True))
        self.pending = 0

    def rollback(self, tokens: int | Sequence[int]) -> None:
        """Forget the last committed tokens (and all pending ones).

        Raises:
            CacheError: a row has fewer.
        """
        counts = (tokens,) * self.batch if isinstance(tokens, int) else tuple(tokens)
        if len(counts) != self.batch or not all(
            0 <= count <= length for count, length in zip(counts, self.lengths, strict=True)
        ):
            raise CacheError(f"cannot roll back {tokens} tokens of rows with {self.lengths}")
        self.lengths = tuple(length - count for length, count in zip(self.lengths, counts, strict=True))
        self.pending = 0

    def select(self, indices: Sequence[int] | Sequence[Sequence[int]]) -> None:
        """Keep the listed pending tokens, in this order, in every layer: the accepted path of a tree.

        Args:
            indices: into the pending tokens, for all rows alike or one list a row.

        Raises:
            CacheError: an index is out of range or repeated.
        """
        chosen = self._per_row(indices)
        for path in chosen:
            if len(set(path)) != len(path) or not all(0 <= index < self.pending for index in path):
                raise CacheError(f"cannot select {list(path)} of {self.pending} pending tokens")
        for row, path in enumerate(chosen):
            if path == tuple(range(len(path))):
                continue  # in place already
            start = self.lengths[row]
            source = torch.tensor(path) + start
            for tensor in self.storage.values():
                slots = tensor[:, row]
                kept = slots.index_select(-2, source.to(slots.device))
                slots.narrow(-2, start, len(path)).copy_(kept)
        self.lengths = tuple(length + len(path) for length, path in zip(self.lengths, chosen, strict=True))
        self.pending = 0

    def fork(self, copies: int = 1) -> "KVCache":
        """A cache of its own, every row ``copies`` times side by side; pending tokens are left out.

        Raises:
            CacheError: no copy.
        """
        if copies < 1:
            raise CacheError(f"cannot make {copies} copies of {self.batch} rows")
        return self._with_rows([row for row in range(self.batch) for _ in range(copies)])

    def batch_select(self, rows: Sequence[int]) -> "KVCache":
        """A cache of its own that consists of the listed rows, which may repeat; pending tokens are left out.

        Raises:
            CacheError: no row, or one that is not there.
        """
        if not rows or not all(0 <= row < self.batch for row in rows):
            raise CacheError(f"cannot select rows {list(rows)} of {self.batch}")
        return self._with_rows(rows)

    def bytes_per_token(self, tp: int = 1) -> int:
        """Bytes of one token in all layers on one rank of ``tp``: heads are split, the rest repeats.

        Raises:
            CacheError: no rank.
        """
        if tp < 1:
            raise CacheError(f"a cache shared among {tp} ranks")
        return self.layers * sum(
            (width if heads is None else -(-heads // tp) * width) * self.storage[name].element_size()
            for name, (heads, width) in self.entry_shapes.items()
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the whole storage."""
        return sum(tensor.nbytes for tensor in self.storage.values())

    def _with_rows(self, rows: Sequence[int]) -> "KVCache":
        other = KVCache(self.layers, 1, 1, {})
        other.max_len, other.entry_shapes = self.max_len, dict(self.entry_shapes)
        other.lengths = tuple(self.lengths[row] for row in rows)
        other.storage = {
            name: tensor.index_select(1, torch.tensor(rows, device=tensor.device))
            for name, tensor in self.storage.items()
        }
        return other

    def _per_row(self, indices: Sequence[int] | Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        if not indices or isinstance(indices[0], int):
            return [tuple(int(index) for index in indices)] * self.batch  # type: ignore[arg-type]
        if len(indices) != self.batch:
            raise CacheError(f"{len(indices)} selections for {self.batch} rows")
        return [tuple(path) for path in indices]  # type: ignore[arg-type]
