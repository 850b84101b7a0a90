"""The order in which students see their additional batches."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import Sampler


class RunningIndex(Sampler[list[int]]):
    """Batches of positions that run through a data set in a new random order each pass, without end.

    A batch may span two passes, so that after any number of batches no position was drawn more than once
    more than another. Batch ``n`` depends on the arguments and ``n`` alone: a run that was interrupted goes
    on with the batch it would have had.

    Args:
        size: of the data set.
        batch_size: positions of a batch.
        seed: of the orders.
        first: number of the batch that iterating begins with.
    """

    def __init__(self, size: int, batch_size: int, seed: int = 0, first: int = 0) -> None:
        if size < 1 or batch_size < 1:
            raise ValueError(f"cannot draw batches of {batch_size} from {size} examples")
        self.size, self.batch_size, self.seed, self.first = size, batch_size, seed, first
        self._orders: dict[int, np.ndarray] = {}

    def batch(self, number: int) -> Int64[Tensor, " batch"]:
        """Positions of the batch with this number, from 0."""
        start = number * self.batch_size
        passes = range(start // self.size, (start + self.batch_size - 1) // self.size + 1)
        self._orders = {each: self._order(each) for each in passes}
        begin = start - passes[0] * self.size
        joined = np.concatenate([self._orders[each] for each in passes])
        return torch.from_numpy(joined[begin : begin + self.batch_size])

    def __iter__(self) -> Iterator[list[int]]:
        number = self.first
        while True:
            yield self.batch(number).tolist()
            number += 1

    def _order(self, number: int) -> np.ndarray:
        if number in self._orders:
            return self._orders[number]
        return np.random.default_rng((self.seed, number)).permutation(self.size)
