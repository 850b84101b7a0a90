"""Ranks that share a decoder compute what one process computes: four processes over gloo."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing
from torch.distributed.device_mesh import init_device_mesh

from tradeoff.nn.decoder import Decoder, DecoderConfig, InvalidConfig, InvalidInput, MoEConfig
from tradeoff.nn.decoder.parallel import full_tensors, parallelize

BASE = DecoderConfig(vocab=16, dim=12, layers=1, heads=8, head_dim=4, hidden=16, max_len=32, init_std=0.3)
LATENT = replace(BASE, attention="mla", head_dim=None, q_rank=6, kv_rank=16, nope_dim=4, rope_dim=4)
CONFIGS = {
    "mha": replace(BASE, tie_embeddings=False, bias=True, qk_norm=True),
    "gqa": replace(BASE, attention="gqa", kv_heads=2, attention_gate=True),
    "mqa": replace(BASE, attention="mqa", ffn="gelu"),
    "moe": replace(BASE, ffn=MoEConfig(4, hidden=8, shared=1, router="dtop_p")),
    **{name: replace(LATENT, attention=name) for name in ("mla", "gla2", "gla4", "mlra2", "mlra4")},
    "mla-direct": replace(LATENT, q_rank=None, attention_gate=True, bias=True),
}


def make(config: DecoderConfig) -> Decoder:
    model = Decoder(config, torch.Generator().manual_seed(3)).double()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def compare(config: DecoderConfig, mesh) -> None:  # type: ignore[no-untyped-def]
    ids = torch.randint(16, (2, 9), generator=torch.Generator().manual_seed(5))
    alone, together = make(config), parallelize(make(config), mesh)
    logits = together(ids)
    torch.testing.assert_close(logits, alone(ids), rtol=0, atol=1e-10)
    alone.loss(ids).backward()
    together.loss(ids).backward()
    whole, gradients = full_tensors(together), full_tensors(together, gradients=True)
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(whole[name], parameter.detach(), rtol=0, atol=0)
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=0, atol=1e-10, msg=name)
    with torch.no_grad():
        cache = together.new_cache(batch=2, max_len=9)
        steps = [together(part, cache=cache) for part in ids.split([4, 1, 4], 1)]
        torch.testing.assert_close(torch.cat(steps, 1), alone(ids), rtol=0, atol=1e-10)
    assert cache.bytes_per_token() == alone.new_cache(max_len=1).bytes_per_token(mesh.size())
    with pytest.raises(InvalidInput, match="0 to 16 exceed the vocabulary"):
        together(torch.tensor([[0, 16]]))


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=4)
    meshes = [
        init_device_mesh("cpu", (4 // ranks, ranks), mesh_dim_names=("data", "tensor")) for ranks in (1, 2, 4)
    ]
    for name, config in CONFIGS.items():
        for mesh in meshes[0 if name in ("gqa", "mlra4") else 1 :]:
            compare(config, mesh["tensor"])
    with pytest.raises(InvalidConfig, match="6 heads do not divide among 4 ranks"):
        parallelize(Decoder(replace(BASE, heads=6)), meshes[2]["tensor"])
    with pytest.raises(InvalidConfig, match="18 tokens of the vocabulary"):
        parallelize(Decoder(replace(BASE, vocab=18)), meshes[2]["tensor"])
    with pytest.raises(InvalidConfig, match="17 hidden units do not divide among 2"):
        parallelize(Decoder(replace(BASE, hidden=17)), meshes[1]["tensor"])
    with pytest.raises(InvalidConfig, match="2 dimensions"):
        parallelize(Decoder(BASE), meshes[1])
    Path(folder, f"done{rank}").touch()
    distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_equal_one_process(tmp_path: Path) -> None:
    multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=4)
    assert len(list(tmp_path.glob("done*"))) == 4
