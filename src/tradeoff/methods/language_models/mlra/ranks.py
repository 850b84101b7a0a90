"""Tensor parallelism for real: processes that share a model, held against one that has it alone.

Every rank is a process of its own (gloo over loopback, or nccl on GPUs). It builds the model from the seed,
shares it with the others, compares outputs and gradients with the whole model's, and counts what it sends.
"""

import multiprocessing
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes
from torch.utils._python_dispatch import TorchDispatchMode

from tradeoff.core.files import read_json, write_json
from tradeoff.nn.decoder import Decoder, DecoderConfig
from tradeoff.nn.decoder.parallel import full_tensors, parallelize

from .errors import RankFailed
from .traffic import rank_traffic

PROMPT, STEPS = 6, 3
"""Tokens of the prompt, and tokens that are decoded one by one behind it."""
COLLECTIVES = ("all_reduce", "all_reduce_", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast")
"""Operators by which distributed tensors communicate."""


@dataclass(frozen=True)
class RankReport:
    """What a run on several ranks showed.

    Attributes:
        ranks: processes.
        output_error: largest difference of a logit, over a whole pass and prompt with decoded tokens.
        gradient_error: largest difference of an element of a gradient.
        attention_bytes: that a rank gives into sums over ranks inside one attention layer for one decoded
            token, the mean over layers.
        total_bytes: that it gives into all collectives for one decoded token.
        cache_bytes: of one token in one layer of a rank's own cache.
    """

    ranks: int
    output_error: float
    gradient_error: float
    attention_bytes: float
    total_bytes: float
    cache_bytes: int


def run_ranks(
    configs: Mapping[str, DecoderConfig],
    ranks: int,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    timeout: float = 300.0,
) -> dict[str, RankReport]:
    """Share randomly initialized models among processes of this machine, and compare.

    Args:
        configs: name -> model, one after the other in the same processes; all matrices are drawn, whatever
            ``init`` says, so that attention counts.
        ranks: processes.
        timeout: seconds that a rank waits for the others.

    Raises:
        InvalidConfig: a model does not divide among so many ranks.
        RankFailed: a process died or raised; the message names its rank.
    """
    for config in configs.values():
        rank_traffic(config, ranks)
    with tempfile.TemporaryDirectory(prefix="tradeoff-ranks-") as folder:
        arguments = (ranks, folder, dict(configs), seed, dtype, timeout)
        try:
            # The server of forks imports torch once for all ranks.
            multiprocessing.set_forkserver_preload([__name__])
            start_processes(  # type: ignore[no-untyped-call]
                _work, arguments, nprocs=ranks, start_method="forkserver"
            )
        except ProcessExitedException as error:
            how = error.signal_name or f"exit status {error.exit_code}"
            raise RankFailed(f"rank {error.error_index} of {ranks} died: {how}") from None
        except ProcessRaisedException as error:
            last = str(error).strip().splitlines()[-1]
            raise RankFailed(f"rank {error.error_index} of {ranks} failed: {last}") from None
        found = [read_json(Path(folder, f"{rank}.json")) for rank in range(ranks)]
    return {name: _worst([RankReport(**each[name]) for each in found]) for name in configs}


def _worst(reports: Sequence[RankReport]) -> RankReport:
    names = [field.name for field in fields(RankReport)]
    return RankReport(**{name: max(getattr(each, name) for each in reports) for name in names})


class Traffic(TorchDispatchMode):
    """Counts the bytes that this process gives into collectives, by place.

    Attributes:
        place: under which what comes is counted.
        sent: place -> bytes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.place = "elsewhere"
        self.sent: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        namespace, _, name = function.name().partition("::")
        if namespace == "_c10d_functional" and name in COLLECTIVES:
            self.sent[self.place] += args[0].nbytes
        return function(*args, **(kwargs or {}))

    @contextmanager
    def inside(self, modules: list[nn.Module], place: str) -> Iterator[None]:
        """Count what these modules' forward passes give under ``place``."""

        def enter(module: nn.Module, arguments: Any) -> None:
            self.place = place

        def leave(module: nn.Module, arguments: Any, output: Any) -> None:
            self.place = "elsewhere"

        hooks = [module.register_forward_pre_hook(enter) for module in modules]
        hooks += [module.register_forward_hook(leave) for module in modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _work(
    rank: int,
    ranks: int,
    folder: str,
    configs: Mapping[str, DecoderConfig],
    seed: int,
    dtype: torch.dtype,
    timeout: float,
) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=timeout),
    )
    mesh = init_device_mesh("cpu", (ranks,))
    found = {name: asdict(_compare(config, mesh, seed, dtype)) for name, config in configs.items()}
    write_json(Path(folder, f"{rank}.json"), found)
    distributed.barrier()
    distributed.destroy_process_group()


def _compare(config: DecoderConfig, mesh: DeviceMesh, seed: int, dtype: torch.dtype) -> RankReport:
    """What one rank sees of one model."""
    alone, together = _model(config, seed, dtype), parallelize(_model(config, seed, dtype), mesh)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(config.vocab, (1, PROMPT + STEPS), generator=generator)
    with torch.no_grad():
        expected = alone(ids)
        errors = [_distance(together(ids), expected)]
        cache = together.new_cache(max_len=PROMPT + STEPS)
        errors.append(_distance(together(ids[:, :PROMPT], cache=cache), expected[:, :PROMPT]))
        traffic = Traffic()
        layers = [cast(nn.Module, block.attention) for block in together.blocks]
        with traffic.inside(layers, "attention"), traffic:
            for at in range(PROMPT, PROMPT + STEPS):
                step = together(ids[:, at : at + 1], cache=cache)
                errors.append(_distance(step, expected[:, at : at + 1]))
    alone.loss(ids).backward()  # type: ignore[no-untyped-call]
    together.loss(ids).backward()  # type: ignore[no-untyped-call]
    gradients = full_tensors(together, gradients=True)
    return RankReport(
        ranks=mesh.size(),
        output_error=max(errors),
        gradient_error=max(
            _distance(gradients[name], cast(Tensor, parameter.grad))
            for name, parameter in alone.named_parameters()
        ),
        attention_bytes=traffic.sent["attention"] / STEPS / config.layers,
        total_bytes=sum(traffic.sent.values()) / STEPS,
        cache_bytes=cache.bytes_per_token() // config.layers,
    )


def _model(config: DecoderConfig, seed: int, dtype: torch.dtype) -> Decoder:
    generator = torch.Generator().manual_seed(seed)
    model = Decoder(config, generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
    return model.to(dtype)


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a.detach() - b.detach()).abs().max())
