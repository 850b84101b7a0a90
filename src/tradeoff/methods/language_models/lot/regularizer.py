"""Learning from Teaching: a teacher and the students whose success at imitating it regularizes it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, IterableDataset

from tradeoff.nn.checkpoint import CheckpointMismatch, load_checkpoint, save_checkpoint
from tradeoff.nn.fit import TrainingDiverged

from .errors import InvalidSetting, InvalidStudent, MissingBatches, StudentDiverged
from .imitability import Metric, imitability
from .running_index import RunningIndex

StudentLoss = Literal["kl", "kl_ce", "symmetric_kl", "symmetric_kl_ce"]
Networks = Literal["teacher", "joint", "extra"]
Memory = Tensor | Sequence[Tensor]
TaskLoss = Callable[[Tensor, Tensor], Tensor]

IGNORED = -100
"""A target that neither the task nor the imitation counts, as in torch's cross-entropy."""


def cross_entropy(logits: Float[Tensor, "rows classes"], targets: Int64[Tensor, " rows"]) -> Tensor:
    """The default loss of the task."""
    return functional.cross_entropy(logits, targets)


@dataclass(frozen=True)
class Losses:
    """What one batch asks of each network; none of these reaches another network than its own.

    Attributes:
        teacher: ``task + alpha * mean penalty``; None where the teacher does not learn.
        students: of each student.
        stats: ``student_kl``, the mean divergence that students have to close and, where the teacher learns,
            ``task``, its own loss, and ``imitability``, its penalty before alpha.
    """

    teacher: Tensor | None
    students: list[Tensor]
    stats: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """The sum, whose gradient is each network's own."""
        students = torch.stack(self.students).sum()
        return students if self.teacher is None else self.teacher + students


class LoT(nn.Module):
    """Learning from Teaching regularization (Jin et al., NeurIPS 2024): what generalizes is easy to imitate.

    Students are trained to imitate the teacher, and the teacher to be imitated, on top of its task:

        L_teacher = task(z_t, y) + alpha * mean over students of T^2 KL(softmax(z_s/T) || softmax(z_t/T))
        L_student = [task(z_s, y) + alpha *] T^2 KL(softmax(z_t/T) || softmax(z_s/T))

    with the other network's output detached in each. Per step, all networks learn from one batch by the same
    forward values, then the students alone from ``student_steps - 1`` more. In the end students are thrown
    away: the teacher's architecture and the cost of using it stay as they are.

    Calling the module calls the teacher. Train it by :func:`tradeoff.methods.language_models.lot.train`, or
    in a loop of your own by :meth:`loader` and :meth:`step`.

    Args:
        teacher: the network to regularize; ``teacher(x)`` gives logits, classes last, or an object with
            ``logits``; an ``x`` that is a mapping is given as keyword arguments.
        students: how many, or the networks themselves.
        make_student: makes one; called with a random state of its own for each student.
        alpha: weight of the imitation.
        student_steps: N, updates of a student for each of the teacher.
        temperature: T.
        student_loss: the metric, and ``_ce`` where students also learn the task (``kl_ce`` in the paper's
            code for images and texts, ``kl`` for policies). With a symmetric metric both networks have it.
        alpha_warmup: steps over which alpha rises from 0.
        teacher_mode: how the teacher answers in additional batches: ``train`` with its dropout, ``eval``
            without. Its buffers, such as the statistics of batch norm, are left alone in both.
        task_loss: of logits ``(rows, classes)`` and targets ``(rows,)``.
        recurrent: networks are called as ``network(x, memory)`` and return ``(logits, memory)``; memory is
            None at first, a tensor or a tuple of tensors afterwards. It is carried from batch to batch,
            detached, for each network and, separately, for its additional batches.
        optimizer: makes the optimizer from parameter groups, one for each network, for :meth:`step`.
        clip_norm: largest norm of the gradient of each network.
        seed: of the students' weights and dropout and of the order of additional batches; the random
            numbers of the teacher are not touched.

    Attributes:
        stats: of the last joint batch, see :class:`Losses`.
        steps: updates of the teacher.
        extra_batches: the students' additional batches so far.
        memories: of recurrent networks.

    Raises:
        InvalidSetting: a setting is out of range.
        InvalidStudent: a student shares a tensor with another network, or is equal to the teacher.

    Example:
        >>> data = torch.utils.data.TensorDataset(torch.randn(64, 4), torch.arange(64) % 3)
        >>> batches = DataLoader(data, batch_size=16, shuffle=True)
        >>> lot = LoT(nn.Linear(4, 3), make_student=lambda: nn.Linear(4, 3), optimizer=torch.optim.Adam)
        >>> for (x, y), extra in lot.loader(batches):
        ...     stats = lot.step(x, y, extra)
        >>> sorted(stats)
        ['imitability', 'student_kl', 'task']
    """

    def __init__(
        self,
        teacher: nn.Module,
        students: int | Sequence[nn.Module] = 1,
        *,
        make_student: Callable[[], nn.Module] | None = None,
        alpha: float = 0.5,
        student_steps: int = 2,
        temperature: float = 1.5,
        student_loss: StudentLoss = "kl_ce",
        alpha_warmup: int = 0,
        teacher_mode: Literal["train", "eval"] = "train",
        task_loss: TaskLoss = cross_entropy,
        recurrent: bool = False,
        optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None = None,
        clip_norm: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check(alpha, student_steps, temperature, student_loss, alpha_warmup, teacher_mode, clip_norm)
        self.alpha, self.student_steps, self.temperature = float(alpha), student_steps, float(temperature)
        self.student_loss: StudentLoss = student_loss
        self.alpha_warmup, self.teacher_mode = alpha_warmup, teacher_mode
        self.task_loss, self.recurrent = task_loss, recurrent
        self.clip_norm, self.seed = clip_norm, seed
        self.teacher = teacher
        self.students = nn.ModuleList(_make_students(students, make_student, seed))
        _check_students(teacher, list(self.students))
        self.stats: dict[str, float] = {}
        self.steps = 0
        self.extra_batches = 0
        self.memories: dict[str, Memory | None] = {}
        groups = [{"params": list(network.parameters())} for network in self.networks]
        self.optimizer = optimizer(groups) if optimizer is not None else None

    @property
    def networks(self) -> list[nn.Module]:
        """The teacher, then the students."""
        return [self.teacher, *self.students]

    @property
    def metric(self) -> Metric:
        """What the imitation is measured by."""
        return "symmetric_kl" if self.student_loss.startswith("symmetric") else "kl"

    @property
    def current_alpha(self) -> float:
        """Alpha at this step."""
        return self.alpha * min(1.0, self.steps / self.alpha_warmup) if self.alpha_warmup else self.alpha

    def forward(self, x: Any, networks: Networks = "teacher") -> Any:
        """Logits of the teacher or, where students learn, ``(teacher's, [each student's])``.

        Args:
            x: inputs.
            networks: ``joint`` for a batch that all learn from, ``extra`` for one where the teacher is only
                asked.
        """
        if networks == "teacher":
            if self.recurrent and self.training:
                raise ValueError("a recurrent teacher in training is called by step, which keeps its memory")
            return self._call(self.teacher, x, None)
        if networks == "joint":
            z_t = self._call(self.teacher, x, "teacher")
        with self._own_random_state():
            if networks == "extra":
                z_t = self._ask_teacher(x)
            z_s = [self._call(s, x, f"{networks}-student-{i}") for i, s in enumerate(self.students)]
        return z_t, z_s

    def losses(
        self, z_t: Tensor, z_s: Sequence[Tensor], y: Tensor | None, *, teacher_learns: bool = True
    ) -> Losses:
        """Losses of all networks from their logits.

        Args:
            z_t: the teacher's logits ``(..., classes)``.
            z_s: each student's, of the same shape.
            y: targets ``(...,)``; those of -100 are left out. None where students imitate and no more.
            teacher_learns: False for additional batches, which give the teacher no loss.

        Raises:
            InvalidStudent: the shapes of teacher and student differ.
            StudentDiverged: a student's logits are not finite.
            TrainingDiverged: the teacher's are not.
            MissingBatches: the batch is empty, or lacks targets that are needed.
        """
        where = "the joint batch" if teacher_learns else "an additional batch"
        self.check_outputs(z_t, z_s, where)
        if y is None and (teacher_learns or self.student_loss.endswith("_ce")):
            raise MissingBatches(f"{where} has no targets; student_loss={self.student_loss!r} needs them")
        if y is not None:
            z_t, *z_s, y = _counted_rows(z_t, *z_s, y)
        if not z_t.numel():
            raise MissingBatches(f"{where} has no example that counts")
        student_kl = self.imitation(z_t, z_s)
        students = student_kl
        if self.student_loss.endswith("_ce"):
            tasks = [self.task_loss(z, cast(Tensor, y)) for z in z_s]
            students = [task + self.alpha * kl for task, kl in zip(tasks, student_kl, strict=True)]
        stats = {"student_kl": _mean(student_kl)}
        if not teacher_learns:
            return Losses(None, students, stats)
        task = self.task_loss(z_t, cast(Tensor, y))
        teacher, penalty = self.regularized(task, z_t, z_s)
        return Losses(teacher, students, {"task": float(task.detach()), "imitability": penalty, **stats})

    def regularized(self, task: Tensor, z_t: Tensor, z_s: Sequence[Tensor]) -> tuple[Tensor, float]:
        """The teacher's loss, and its penalty before alpha.

        With alpha 0 the loss is ``task`` itself, so that training is that of the teacher alone, bit for bit.
        """
        alpha = self.current_alpha
        with torch.set_grad_enabled(alpha > 0 and torch.is_grad_enabled()):
            penalties = [imitability(z_t, z, self.temperature, self.metric) for z in z_s]
            penalty = torch.stack(penalties).mean()
        return (task + alpha * penalty if alpha > 0 else task), float(penalty.detach())

    def imitation(self, z_t: Tensor, z_s: Sequence[Tensor]) -> list[Tensor]:
        """The divergence that each student has to close."""
        return [imitability(z, z_t, self.temperature, self.metric) for z in z_s]

    def check_outputs(self, z_t: Tensor, z_s: Sequence[Tensor], where: str) -> None:
        """Raise what :meth:`losses` does for logits that cannot be used."""
        for i, z in enumerate(z_s):
            if z.shape != z_t.shape:
                raise InvalidStudent(
                    f"the teacher's outputs have shape {tuple(z_t.shape)}, those of student {i} "
                    f"{tuple(z.shape)}; they must be equal"
                )
        if not bool(z_t.isfinite().all()):
            raise TrainingDiverged(f"the teacher's outputs are not finite in {where}")
        for i, z in enumerate(z_s):
            if not bool(z.isfinite().all()):
                raise StudentDiverged(i, where)

    def step(self, x: Any, y: Tensor, extra: Sequence[tuple[Any, Tensor]] = ()) -> dict[str, float]:
        """One update of the teacher and ``student_steps`` of each student.

        Args:
            x, y: the batch that all learn from.
            extra: ``student_steps - 1`` other batches for the students.

        Returns:
            ``stats`` of the joint batch, see :class:`Losses`.

        Raises:
            MissingBatches: ``extra`` has another length.
            InvalidSetting: there is no optimizer.
        """
        if len(extra) != self.student_steps - 1:
            raise MissingBatches(
                f"student_steps is {self.student_steps}, so a step takes {self.student_steps - 1} additional "
                f"batches, not {len(extra)}"
            )
        optimizer = self._optimizer()
        z_t, z_s = self(x, "joint")
        losses = self.losses(z_t, z_s, y)
        optimizer.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        self.clip()
        optimizer.step()
        self.steps, self.stats = self.steps + 1, losses.stats
        for inputs, targets in extra:
            self.student_step(inputs, targets, optimizer)
        return losses.stats

    def student_step(
        self, x: Any, y: Tensor | None = None, optimizer: torch.optim.Optimizer | None = None
    ) -> dict[str, float]:
        """One update of each student on an additional batch; the teacher, buffers included, stays as it is.

        Args:
            x: inputs.
            y: targets; None, so that the data needs no labels, where students imitate and no more (``kl``).
            optimizer: the one of all networks, if it is not :attr:`optimizer`.
        """
        optimizer = optimizer or self._optimizer()
        optimizer.zero_grad(set_to_none=True)  # which keeps it from the teacher
        z_t, z_s = self(x, "extra")
        losses = self.losses(z_t, z_s, y, teacher_learns=False)
        losses.total.backward()  # type: ignore[no-untyped-call]
        self._average_gradients()
        self.clip()
        optimizer.step()
        self.extra_batches += 1
        return losses.stats

    def loader(self, batches: DataLoader[Any]) -> Iterator[tuple[Any, list[Any]]]:
        """One pass over ``batches``, each with the students' additional ones, ready for :meth:`step`.

        Those come from the same data set by a running index of their own, see :class:`RunningIndex`.

        Raises:
            MissingBatches: the loader has no batch size or its data set no index, so none can be drawn.
        """
        if self.student_steps == 1:
            yield from ((batch, []) for batch in batches)
            return
        if batches.batch_size is None or isinstance(batches.dataset, IterableDataset):
            raise MissingBatches(
                "additional batches are drawn by index: give a DataLoader with a batch size and a data set "
                "with __getitem__, or batches of your own to step"
            )
        size = len(cast(Any, batches.dataset))
        index = RunningIndex(size, min(batches.batch_size, size), self.seed, self.extra_batches)
        extra = iter(
            DataLoader(
                batches.dataset,
                batch_sampler=index,
                num_workers=batches.num_workers,
                collate_fn=batches.collate_fn,
                pin_memory=batches.pin_memory,
                generator=torch.Generator(),  # else it would draw from the global one
            )
        )
        for batch in batches:
            yield batch, [next(extra) for _ in range(self.student_steps - 1)]

    def clip(self) -> None:
        """Limit the norm of each network's gradient to ``clip_norm``."""
        if self.clip_norm is not None:
            for network in self.networks:
                clip_grad_norm_(network.parameters(), self.clip_norm)

    def save(self, path: Path) -> None:
        """Write networks, optimizer, memories and counters of a loop of your own to one safetensors file."""
        state = self._optimizer().state_dict()
        tensors = {f"model/{name}": tensor for name, tensor in self.state_dict().items()}
        for index, entries in state["state"].items():
            for key, value in entries.items():
                tensors[f"optimizer/{index}/{key}"] = torch.as_tensor(value)
        for name, memory in self.memories.items():
            for i, tensor in enumerate(_parts(memory)):
                tensors[f"memory/{name}/{i}"] = tensor
        groups = [{k: v for k, v in group.items() if k != "params"} for group in state["param_groups"]]
        single = [name for name, memory in self.memories.items() if isinstance(memory, Tensor)]
        counters = {"steps": self.steps, "extra_batches": self.extra_batches}
        save_checkpoint(path, tensors, {**counters, "groups": groups, "single": single})

    def load(self, path: Path) -> None:
        """Go on from what :meth:`save` wrote.

        Raises:
            CheckpointMismatch: the file is damaged, or of other networks.
        """
        tensors, progress = load_checkpoint(path)
        model, entries, memories = _sorted_tensors(tensors)
        optimizer = self._optimizer()
        try:
            self.load_state_dict(model)
            own = optimizer.state_dict()["param_groups"]
            groups = [
                {**saved, "params": mine["params"]}
                for saved, mine in zip(progress["groups"], own, strict=True)
            ]
            optimizer.load_state_dict({"state": entries, "param_groups": groups})
            self.steps, self.extra_batches = progress["steps"], progress["extra_batches"]
            single = progress["single"]
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointMismatch(f"{path} is of other networks: {error}") from error
        self.memories = {
            name: parts[0] if name in single else tuple(parts) for name, parts in memories.items()
        }

    def _call(self, network: nn.Module, x: Any, stream: str | None) -> Tensor:
        """Logits; the memory of a recurrent network is that of ``stream``, None for an empty one."""
        arguments = () if isinstance(x, Mapping) else (x,)
        named = dict(x) if isinstance(x, Mapping) else {}
        if self.recurrent:
            memory = self.memories.get(stream) if stream is not None else None
            output, memory = network(*arguments, memory, **named)
            if stream is not None:
                self.memories[stream] = _detached(memory)
        else:
            output = network(*arguments, **named)
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        return logits

    @torch.no_grad()
    def _ask_teacher(self, x: Any) -> Tensor:
        """The teacher's logits for an additional batch; what the pass does to its buffers is undone."""
        modes = [(module, module.training) for module in self.teacher.modules()]
        buffers = [(buffer, buffer.clone()) for buffer in self.teacher.buffers()]
        if self.teacher_mode == "eval":
            self.teacher.eval()
        try:
            return self._call(self.teacher, x, "extra-teacher")
        finally:
            for module, mode in modes:
                module.training = mode
            for buffer, before in buffers:
                buffer.copy_(before)

    @contextmanager
    def _own_random_state(self) -> Iterator[None]:
        """Random numbers for students, so that the teacher has those it would have without them."""
        device = next((p.device for p in self.teacher.parameters()), torch.device("cpu"))
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            key = (torch.initial_seed(), self.seed, self.steps, self.extra_batches)
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
            yield

    def _average_gradients(self) -> None:
        """Over the processes of a distributed training."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for parameter in self.students.parameters():
                if parameter.grad is not None:
                    torch.distributed.all_reduce(parameter.grad)
                    parameter.grad /= torch.distributed.get_world_size()

    def _optimizer(self) -> torch.optim.Optimizer:
        if self.optimizer is None:
            raise InvalidSetting("give LoT an optimizer, such as optimizer=torch.optim.Adam, to call step")
        return self.optimizer


def _make_students(
    students: int | Sequence[nn.Module], make: Callable[[], nn.Module] | None, seed: int
) -> list[nn.Module]:
    if not isinstance(students, int):
        made = list(students)
    elif make is None:
        raise InvalidSetting("give make_student, a function that makes a student, or students themselves")
    else:
        made = []
        for i in range(students):
            with torch.random.fork_rng([]):
                torch.manual_seed(seed + 1 + i)
                made.append(make())
    if not made:
        raise InvalidSetting("there must be at least 1 student")
    return made


def _check(
    alpha: float,
    student_steps: int,
    temperature: float,
    student_loss: str,
    alpha_warmup: int,
    teacher_mode: str,
    clip_norm: float | None,
) -> None:
    if not 0 <= alpha < math.inf:
        raise InvalidSetting(f"alpha is {alpha}; it must not be negative")
    if student_steps < 1:
        raise InvalidSetting(f"student_steps is {student_steps}; a student learns at least once a step")
    if not 0 < temperature < math.inf:
        raise InvalidSetting(f"temperature is {temperature}; it must be positive")
    if student_loss not in get_args(StudentLoss):
        raise InvalidSetting(
            f"student_loss is {student_loss!r}; it is one of {', '.join(get_args(StudentLoss))}"
        )
    if alpha_warmup < 0:
        raise InvalidSetting(f"alpha_warmup is {alpha_warmup} steps; it must not be negative")
    if teacher_mode not in ("train", "eval"):
        raise InvalidSetting(f"teacher_mode is {teacher_mode!r}; it is train or eval")
    if clip_norm is not None and not clip_norm > 0:
        raise InvalidSetting(f"clip_norm is {clip_norm}; it must be positive")


def _check_students(teacher: nn.Module, students: Sequence[nn.Module]) -> None:
    owner: dict[int, str] = {}
    for name, network in (("the teacher", teacher), *((f"student {i}", s) for i, s in enumerate(students))):
        own = {t.data_ptr(): key for key, t in network.state_dict(keep_vars=True).items() if t.data_ptr()}
        shared = own.keys() & owner.keys()
        if shared:
            pointer = shared.pop()
            raise InvalidStudent(
                f"{name} shares the memory of {own[pointer]} with {owner[pointer]}; "
                "each network needs its own"
            )
        owner |= dict.fromkeys(own, name)
    weights = dict(teacher.named_parameters())
    for i, student in enumerate(students):
        pairs = [(p, weights.get(name)) for name, p in student.named_parameters()]
        if pairs and all(w is not None and w.shape == p.shape and torch.equal(p, w) for p, w in pairs):
            raise InvalidStudent(
                f"student {i} has the teacher's weights: it imitates perfectly and tells the teacher "
                "nothing; initialize it with another seed"
            )


def _counted_rows(*tensors: Tensor) -> list[Tensor]:
    """Logits as ``(rows, classes)`` and, last, targets as ``(rows,)``, without rows that do not count."""
    *logits, y = tensors
    flat = [z.flatten(0, -2) for z in logits]
    targets = y.flatten() if y.ndim == logits[0].ndim - 1 else y.flatten(0, -2)
    if targets.is_floating_point():
        return [*flat, targets]
    counted = targets != IGNORED
    return [*flat, targets] if bool(counted.all()) else [*(z[counted] for z in flat), targets[counted]]


def _mean(losses: Sequence[Tensor]) -> float:
    return sum(float(loss.detach()) for loss in losses) / len(losses)


def _detached(memory: Memory) -> Memory:
    return memory.detach() if isinstance(memory, Tensor) else tuple(part.detach() for part in memory)


def _parts(memory: Memory | None) -> Sequence[Tensor]:
    if memory is None:
        return ()
    return (memory,) if isinstance(memory, Tensor) else memory


def _sorted_tensors(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[int, dict[str, Tensor]], dict[str, list[Tensor]]]:
    """Of a checkpoint: those of the networks, of the optimizer by parameter, and of the memories."""
    model: dict[str, Tensor] = {}
    optimizer: dict[int, dict[str, Tensor]] = {}
    memories: dict[str, dict[int, Tensor]] = {}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        if kind == "model":
            model[name] = tensor
        elif kind == "optimizer":
            index, _, entry = name.partition("/")
            optimizer.setdefault(int(index), {})[entry] = tensor
        else:
            stream, _, number = name.partition("/")
            memories.setdefault(stream, {})[int(number)] = tensor
    return model, optimizer, {name: [parts[i] for i in sorted(parts)] for name, parts in memories.items()}
