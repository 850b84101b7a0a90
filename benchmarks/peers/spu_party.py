"""One party of SPU 0.9.5 (two processes over brpc, SEMI2K on a 64-bit ring, Beaver "TrustedFirstParty").

That Beaver mode is what SPU uses unless a separate server for triples is deployed, which the package does
not bring: party 0 adjusts triples that both derive from exchanged seeds, and knows all of them. Its work is
part of the timed computation; its security is not that of a dealer who sees no messages.
"""

import re
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import spu.api as spu_api
import spu.libspu as libspu
from spu.utils import frontend
from worker import Arrays, serve

RECEIVER = 0
DETAILS = re.compile(r"Link details: total send bytes (\d+), recv bytes (\d+), send actions (\d+)")


def conv(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, w, window_strides=(1, 1), padding=((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def average_pool(x: jax.Array) -> jax.Array:
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def small_cnn(x: jax.Array, w1, b1, w2, b2, w3, b3) -> jax.Array:
    x = average_pool(jax.nn.relu(conv(x, w1) + b1))
    x = average_pool(jax.nn.relu(conv(x, w2) + b2))
    return x.reshape(x.shape[0], -1) @ w3 + b3


PROGRAMS: dict[str, Callable[..., jax.Array]] = {
    "relu": lambda x: jnp.maximum(x, 0),
    "square": lambda x: jnp.square(x),
    "matmul": lambda x, w: jnp.matmul(x, w),
    "conv": conv,
    "small_cnn": small_cnn,
}


def channels_last(workload: str, arrays: Arrays) -> list[np.ndarray]:
    """The arguments in the layout that suits SPU: NHWC images, HWIO kernels, (inputs, outputs) matrices."""
    arguments = {name: value for name, value in arrays.items() if name != "expected"}
    if workload == "conv":
        return [arguments["x"].transpose(0, 2, 3, 1), arguments["w"].transpose(2, 3, 1, 0)]
    if workload == "small_cnn":
        outputs, channels = arguments["w3"].shape[0], arguments["w2"].shape[0]
        side = int((arguments["w3"].shape[1] // channels) ** 0.5)
        last = arguments["w3"].reshape(outputs, channels, side, side).transpose(2, 3, 1, 0)
        return [
            arguments["x"].transpose(0, 2, 3, 1),
            arguments["w1"].transpose(2, 3, 1, 0),
            arguments["b1"],
            arguments["w2"].transpose(2, 3, 1, 0),
            arguments["b2"],
            last.reshape(-1, outputs),
            arguments["b3"],
        ]
    return list(arguments.values())


def pack(share: libspu.Share) -> bytes:
    parts = [share.meta, *share.share_chunks]
    return b"".join(struct.pack("<Q", len(part)) + part for part in parts)


def unpack(message: bytes) -> libspu.Share:
    parts, at = [], 0
    while at < len(message):
        (size,) = struct.unpack_from("<Q", message, at)
        parts.append(message[at + 8 : at + 8 + size])
        at += 8 + size
    share = libspu.Share()
    share.meta, share.share_chunks = parts[0], parts[1:]
    return share


class Computation:
    def __init__(self, system: "Spu", workload: str, arrays: Arrays) -> None:
        self.system = system
        self.workload = workload
        arguments = channels_last(workload, arrays)
        names = [f"in{index}" for index in range(len(arguments))]
        self.executable, _ = frontend.compile(
            frontend.Kind.JAX,
            PROGRAMS[workload],
            arguments,
            {},
            names,
            [libspu.Visibility.VIS_SECRET] * len(arguments),
            lambda outputs: [f"out{index}" for index in range(len(outputs))],
        )
        for name, argument in zip(names, arguments, strict=True):
            share = system.share(np.ascontiguousarray(argument))
            for runtime in (system.runtime, system.counting):
                runtime.set_var(name, share)
        self.revealed: np.ndarray | None = None

    def run(self, runtime: spu_api.Runtime | None = None) -> None:
        runtime = runtime or self.system.runtime
        runtime.run(self.executable)
        self.share = runtime.get_var("out0")
        self.revealed = self.system.open(self.share) if self.workload == "small_cnn" else None

    def reveal(self) -> np.ndarray | None:
        plain = self.revealed if self.workload == "small_cnn" else self.system.open(self.share)
        return plain.transpose(0, 3, 1, 2) if self.workload == "conv" and plain is not None else plain


class Spu:
    def __init__(self, rank: int, addresses: list[str], port: int) -> None:
        self.rank = rank
        description = libspu.link.Desc()
        description.recv_timeout_ms = 600_000
        description.http_timeout_ms = 600_000
        description.http_max_payload_size = 32 << 20  # as in the examples of its documentation
        for party, address in enumerate(addresses):
            description.add_party(f"party-{party}", f"{address}:{port}")
        self._folder = tempfile.TemporaryDirectory(prefix="spu-")
        self.log = Path(self._folder.name) / "log"
        options = libspu.logging.LogOptions()
        options.enable_console_logger = False
        options.system_log_path = str(self.log)
        libspu.logging.setup_logging(options)
        self.link = libspu.link.create_brpc(description, rank)
        config = libspu.RuntimeConfig(
            protocol=libspu.ProtocolKind.SEMI2K, field=libspu.FieldType.FM64, fxp_fraction_bits=18
        )
        config.beaver_type = libspu.RuntimeConfig.BeaverType.TrustedFirstParty
        self.io = spu_api.Io(2, config)
        self.runtime = spu_api.Runtime(self.link, config)
        config.enable_pphlo_profile = True
        self.counting = spu_api.Runtime(self.link.spawn(), config)

    def share(self, plain: np.ndarray) -> libspu.Share:
        """Party 0 splits an array and sends party 1 its part."""
        if self.rank == 0:
            shares = self.io.make_shares(plain, libspu.Visibility.VIS_SECRET)
            self.link.send(1, pack(shares[1]))
            return shares[0]
        return unpack(self.link.recv(0))

    def open(self, share: libspu.Share) -> np.ndarray | None:
        """The array behind the parties' shares, at the receiver; nothing at the other party."""
        if self.rank != RECEIVER:
            self.link.send(RECEIVER, pack(share))
            return None
        return self.io.reconstruct([share, unpack(self.link.recv(1))])

    def prepare(self, workload: str, arrays: Arrays) -> Computation:
        return Computation(self, workload, arrays)

    def count(self, computation: Computation) -> dict[str, float]:
        """Bytes and actions as SPU reports them ("Link details") for one execution."""
        before = self.log.stat().st_size
        computation.run(self.counting)
        with self.log.open() as log:
            log.seek(before)
            found = DETAILS.findall(log.read())
        sent, _, actions = (int(number) for number in found[-1])
        return {"sent_bytes": sent, "rounds": actions}


serve(Spu)
