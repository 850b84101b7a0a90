"""One party of MPyC (B. Schoenmakers, https://github.com/lschoe/mpyc) that runs a network on Shamir shares.

A script of its own, run by an interpreter that has MPyC and NumPy, with this project or without::

    python mpyc_party.py -M3 --no-log network.npz out

``network.npz`` is what :func:`tradeoff.methods.private_inference.ssnet.peers.write_network` writes. Party
i writes ``out/i.json``: seconds from the shared input to the opened result, bytes that it sent in that time,
and the result. Comparisons and truncations are MPyC's vectorized ones.
"""

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from mpyc.runtime import mpc


def taps(shape: tuple[int, ...], kernel: Any, stride: Any, padding: Any) -> Any:
    """Flat indices (channels, window, positions) of a (channels, height, width) tensor; its size: outside."""
    channels, height, width = shape
    inside = np.arange(channels * height * width).reshape(shape)
    widths = ((0, 0), *((p, p) for p in padding))
    padded = np.pad(inside, widths, constant_values=inside.size)
    size = [(n - k) // s + 1 for n, k, s in zip(padded.shape[1:], kernel, stride, strict=True)]
    windows = [
        padded[
            :,
            i : i + (size[0] - 1) * stride[0] + 1 : stride[0],
            j : j + (size[1] - 1) * stride[1] + 1 : stride[1],
        ]
        for i, j in itertools.product(range(kernel[0]), range(kernel[1]))
    ]
    return np.stack([window.reshape(channels, -1) for window in windows], axis=1), size


def shared(kind: Any, array: Any) -> Any:
    """Party 0's array as a shared one."""
    return mpc.input(kind.array(np.asarray(array, float)), senders=0)


async def infer(kind: Any, layers: list[dict[str, Any]], weights: dict[str, Any], x: Any, shape: Any) -> Any:
    """Logits of one image, shared."""
    for number, layer in enumerate(layers):
        if layer["kind"] == "Convolution":
            index, size = taps(shape, layer["kernel"], layer["stride"], layer["padding"])
            outside = mpc.np_append(mpc.np_reshape(x, (-1,)), kind.array(np.zeros(1)))
            columns = outside[index.reshape(-1, index.shape[2])]
            x = weights[f"{number}.weight"] @ columns + weights[f"{number}.bias"]
            shape = (x.shape[0], *size)
        elif layer["kind"] == "MaxPool":
            index, size = taps(shape, layer["kernel"], layer["stride"], (0, 0))
            flat = mpc.np_reshape(x, (-1,))
            candidates = [flat[index[:, tap].reshape(-1)] for tap in range(index.shape[1])]
            while len(candidates) > 1:
                pairs = zip(candidates[::2], candidates[1::2], strict=False)
                rest = candidates[-1:] if len(candidates) % 2 else []
                candidates = [mpc.np_maximum(a, b) for a, b in pairs] + rest
            shape = (shape[0], *size)
            x = mpc.np_reshape(candidates[0], (shape[0], -1))
        elif layer["kind"] == "ReLU":
            x = x * (x >= 0)
        elif layer["kind"] == "Linear":
            x = weights[f"{number}.weight"] @ mpc.np_reshape(x, (-1, 1)) + weights[f"{number}.bias"]
            shape = (x.shape[0], 1, 1)
        elif layer["kind"] != "Flatten":
            raise ValueError(f"no {layer['kind']} here")
    return x


async def main(network: str, out: str) -> None:
    """Share, compute, open, write what it took."""
    arrays = np.load(network)
    layers = json.loads(str(arrays["layers"]))
    kind = mpc.SecFxp(32, int(arrays["frac_bits"]))
    async with mpc:
        weights = {name: shared(kind, arrays[name]) for name in arrays.files if "." in name}
        await mpc.gather(list(weights.values()))
        await mpc.barrier()
        logits, before, started = [], sent(), time.perf_counter()
        for image in arrays["x"]:
            x = shared(kind, image.reshape(image.shape[0], -1))
            result = await infer(kind, layers, weights, x, image.shape)
            logits.append(np.asarray(await mpc.output(result), float).reshape(-1).tolist())
        seconds = time.perf_counter() - started
        document = {"seconds": seconds, "bytes": sent() - before, "logits": logits}
    Path(out, f"{mpc.pid}.json").write_text(json.dumps(document))


def sent() -> int:
    """Bytes that this party sent so far."""
    peers = (peer for peer in mpc.parties if peer.pid != mpc.pid)
    return sum(peer.protocol.nbytes_sent for peer in peers)


if __name__ == "__main__":
    mpc.run(main(*sys.argv[-2:]))
