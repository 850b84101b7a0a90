"""The hardware scheduler: what overlaps when operators are cut into tiles that flow through the resources.

Each operator becomes a chain of stages (:func:`tradeoff.nn.latency.fpga.stages`), and is cut into tiles that
fit the on-chip memory. A tile's message goes out while the next tile computes; operators overlap where no
data flows between them, and so do the images of a batch. The event simulation is list scheduling: a resource
that is free takes, of the stages that are ready, the one with the longest path still before it. A message
occupies the link for its bits and arrives one base latency later.

PolyMPCNet and RRNet have such a scheduler; its details are not published, so this one is our design.
"""

from __future__ import annotations

import csv
import heapq
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tradeoff.nn.latency.fpga import WORD, FPGALatency, Resource, Stage
from tradeoff.nn.plan import Plan

TILE_BYTES = 64 * 1024


@dataclass(frozen=True)
class Task:
    """An operator to be scheduled.

    Attributes:
        name: for the chart.
        stages: one after the other.
        inputs: indices of earlier tasks that must be complete.
        tiles: parts of equal size that may be in different stages at once.
    """

    name: str
    stages: tuple[Stage, ...]
    inputs: tuple[int, ...] = ()
    tiles: int = 1


@dataclass(frozen=True)
class Bar:
    """One stage of one tile on its resource: a bar of the chart, in seconds."""

    task: str
    tile: int
    resource: Resource
    start: float
    end: float


@dataclass(frozen=True)
class Schedule:
    """When each stage runs.

    Attributes:
        makespan: seconds from the first stage to the last result.
        sequential: seconds if nothing overlapped: the sum of the formulas.
        busy: seconds that each resource works.
        bars: the chart.
        images: that were scheduled together.
    """

    makespan: float
    sequential: float
    busy: dict[Resource, float]
    bars: tuple[Bar, ...]
    images: int = 1

    @property
    def bound(self) -> float:
        """Seconds an image takes at least, however many are in flight: those of the busiest resource."""
        return max(self.busy.values(), default=0.0) / self.images

    @property
    def throughput(self) -> float:
        """Images a second."""
        return self.images / self.makespan if self.makespan else math.inf

    def utilization(self) -> dict[Resource, float]:
        """Part of the makespan in which each resource works."""
        return {name: seconds / self.makespan for name, seconds in self.busy.items()} if self.makespan else {}

    def energy(self, watts: float) -> float:
        """Joules of both boards together, if they draw ``watts`` all the time."""
        return watts * self.makespan

    def save(self, path: Path) -> None:
        """Write the chart's bars: CSV if the path ends so, else JSON with the sums."""
        if path.suffix == ".csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, ["task", "tile", "resource", "start", "end"])
                writer.writeheader()
                writer.writerows(self.rows())
            return
        document = {
            "makespan": self.makespan,
            "sequential": self.sequential,
            "busy": self.busy,
            "images": self.images,
            "bars": self.rows(),
        }
        path.write_text(json.dumps(document, indent=2) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """The chart as JSON values, in order of time."""
        return [
            {"task": bar.task, "tile": bar.tile, "resource": bar.resource, "start": bar.start, "end": bar.end}
            for bar in sorted(self.bars, key=lambda bar: (bar.start, bar.end))
        ]


def tasks(plan: Plan, latency: FPGALatency, *, tile_bytes: int = TILE_BYTES, images: int = 1) -> list[Task]:
    """The operators of a network, for each image apart.

    Args:
        latency: whose batch is one image here: several are several graphs.
        tile_bytes: of an operator's result that fit the on-chip memory.
        images: in flight together.

    Raises:
        MissingLatency: the model does not know an operator.
    """
    shapes = {operator.name: operator.shape for operator in plan}
    place = {operator.name: index for index, operator in enumerate(plan)}
    found = []
    for image in range(images):
        for operator in plan:
            size = math.prod(operator.shape) * WORD // 8
            found.append(
                Task(
                    operator.name if images == 1 else f"{operator.name} of image {image}",
                    tuple(latency.operator(operator, shapes)),
                    tuple(image * len(plan) + place[name] for name in operator.inputs),
                    max(1, math.ceil(size / tile_bytes)),
                )
            )
    return found


def schedule(work: Sequence[Task], latency: FPGALatency, *, images: int = 1) -> Schedule:
    """Simulate the execution of tasks on one pair of boards.

    Args:
        work: of :func:`tasks`, or made by hand; a task's inputs come before it.
        latency: rates and the base latency.
        images: that the tasks belong to.

    Raises:
        ValueError: a task reads a later one, or has no tile.
    """
    for index, task in enumerate(work):
        if task.tiles < 1 or any(not 0 <= source < index for source in task.inputs):
            raise ValueError(f"task {task.name}: its inputs must be earlier tasks, its tiles at least one")
    return _Simulation(work, latency).run(images)


class _Simulation:
    def __init__(self, work: Sequence[Task], latency: FPGALatency) -> None:
        self.work = work
        self.latency = latency
        self.order = count()
        self.users: list[list[int]] = [[] for _ in work]
        for index, task in enumerate(work):
            for source in set(task.inputs):
                self.users[source].append(index)
        self.after = self._remaining()
        self.missing = [len(set(task.inputs)) for task in work]
        self.tiles_left = [task.tiles for task in work]
        self.ready: dict[Resource, list[tuple[float, int, int, int, int]]] = {
            "words": [],
            "bits": [],
            "link": [],
        }
        self.free: dict[Resource, bool] = dict.fromkeys(self.ready, True)
        self.events: list[tuple[float, int, str, tuple[Any, ...]]] = []
        self.bars: list[Bar] = []
        self.now = 0.0

    def _remaining(self) -> list[float]:
        """Seconds of the longest path from the start of each task to the end, if no tiles overlap."""
        longest = [0.0] * len(self.work)
        for index in reversed(range(len(self.work))):
            following = max((longest[user] for user in self.users[index]), default=0.0)
            longest[index] = self.latency.seconds(list(self.work[index].stages)) + following
        return longest

    def run(self, images: int) -> Schedule:
        for index in [index for index, missing in enumerate(self.missing) if not missing]:
            self._start(index)
        self._dispatch()
        while self.events:
            self.now, _, kind, arguments = heapq.heappop(self.events)
            if kind == "free":
                self.free[arguments[0]] = True
            else:
                self._arrived(*arguments)
            if not self.events or self.events[0][0] > self.now:
                self._dispatch()
        busy: dict[Resource, float] = dict.fromkeys(self.ready, 0.0)
        for bar in self.bars:
            busy[bar.resource] += bar.end - bar.start
        sequential = sum(self.latency.seconds(list(task.stages)) for task in self.work)
        return Schedule(self.now, sequential, busy, tuple(self.bars), images)

    def _start(self, index: int) -> None:
        """All inputs of a task are there."""
        for tile in range(self.work[index].tiles):
            self._enqueue(index, tile, 0)

    def _enqueue(self, index: int, tile: int, position: int) -> None:
        """A tile is ready for a stage, or done."""
        task = self.work[index]
        if position < len(task.stages):
            entry = (-self.after[index], next(self.order), index, tile, position)
            heapq.heappush(self.ready[task.stages[position].resource], entry)
            return
        self.tiles_left[index] -= 1
        if self.tiles_left[index] == 0:
            for user in self.users[index]:
                self.missing[user] -= 1
                if not self.missing[user]:
                    self._start(user)

    def _dispatch(self) -> None:
        for resource, waiting in self.ready.items():
            if self.free[resource] and waiting:
                *_, index, tile, position = heapq.heappop(waiting)
                task = self.work[index]
                size = task.stages[position].work * self.latency.batch / task.tiles
                end = self.now + size / self.latency.rate(resource)
                self.free[resource] = False
                self.bars.append(Bar(task.name, tile, resource, self.now, end))
                arrival = end + self.latency.base_latency * (resource == "link")
                heapq.heappush(self.events, (end, next(self.order), "free", (resource,)))
                heapq.heappush(
                    self.events, (arrival, next(self.order), "arrival", (index, tile, position + 1))
                )

    def _arrived(self, index: int, tile: int, position: int) -> None:
        self._enqueue(index, tile, position)
