"""Checkpoints against transformers: random tiny models of every family, GGUF files, and damaged ones."""

import argparse
import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tradeoff.core.errors import DataError
from tradeoff.data import checkpoints
from tradeoff.nn.decoder import (
    CheckpointError,
    Decoder,
    DecoderConfig,
    InvalidInput,
    MoEConfig,
    from_pretrained,
    save_pretrained,
    to_hf,
)
from tradeoff.nn.decoder.loading.files import converted_gguf

transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
COMMON = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
GROUPED = COMMON | {"num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
DEEPSEEK = COMMON | {
    "moe_intermediate_size": 12,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
    "kv_lora_rank": 10,
    "qk_rope_head_dim": 6,
    "qk_nope_head_dim": 8,
    "v_head_dim": 7,
    "num_nextn_predict_layers": 0,
}
MODELS = {
    "llama": ("LlamaConfig", GROUPED | {"tie_word_embeddings": True}),
    "llama3": ("LlamaConfig", GROUPED | {"rope_parameters": LLAMA3, "head_dim": 10}),
    "llama-linear": (
        "LlamaConfig",
        COMMON | {"rope_parameters": LINEAR},
    ),
    "llama-bias": ("LlamaConfig", GROUPED | {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("Qwen2Config", GROUPED),
    "qwen3": ("Qwen3Config", GROUPED | {"head_dim": 8}),
    "mistral": ("MistralConfig", GROUPED | {"sliding_window": 64}),
    "mixtral": ("MixtralConfig", GROUPED | {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "deepseek": ("DeepseekV3Config", DEEPSEEK | {"q_lora_rank": 9}),
    "deepseek-direct": ("DeepseekV3Config", DEEPSEEK | {"q_lora_rank": None, "rope_interleave": False}),
}


def hf_model(name: str):  # type: ignore[no-untyped-def]
    kind, values = MODELS[name]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**values)).eval()
    with torch.no_grad():
        for key, parameter in [*model.named_parameters(), *model.named_buffers()]:
            if "norm" in key or "bias" in key:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif key.endswith("mlp.gate.weight"):
                parameter.normal_(0, 0.5)
    return model


def ids(length: int = 40) -> torch.Tensor:
    return torch.randint(50, (2, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_equal_transformers_both_ways(name: str, tmp_path: Path) -> None:
    theirs = hf_model(name)
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    expected = theirs(ids()).logits
    scale = expected.abs().max()
    torch.testing.assert_close(ours(ids()) / scale, expected / scale, rtol=0, atol=1e-5)
    back = to_hf(ours)(ids()).logits
    torch.testing.assert_close(back / scale, expected / scale, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_other_rotary_style_would_show(tmp_path: Path) -> None:
    theirs = hf_model("llama")
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    wrong = Decoder(replace(ours.config, rope_style="interleaved")).eval()
    wrong.load_state_dict(ours.state_dict())
    assert not torch.allclose(wrong(ids()), theirs(ids()).logits, atol=1e-2)


def test_shards_types_and_round_trip(tmp_path: Path) -> None:
    theirs = hf_model("qwen2")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    ours = from_pretrained(tmp_path / "shards", torch.bfloat16)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.bfloat16}
    save_pretrained(ours, tmp_path / "again")
    again = from_pretrained(tmp_path / "again", torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), again.parameters(), strict=True))


def test_what_transformers_cannot_express(tmp_path: Path) -> None:
    for config, words in (
        (DecoderConfig(residual_multiplier=0.5), "residual_multiplier"),
        (DecoderConfig(norm="layer"), "norm"),
        (DecoderConfig(attention="mla", kv_rank=8, nope_dim=4, rope_dim=4, ffn=MoEConfig(4)), "latent_scale"),
        (DecoderConfig(attention="mla", kv_rank=8, nope_dim=4, rope_dim=4), "ffn is 'swiglu'"),
    ):
        with pytest.raises(CheckpointError, match=words):
            save_pretrained(Decoder(config), tmp_path)


def test_damaged_checkpoints(tmp_path: Path) -> None:
    hf_model("llama").save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    good, given = weights.read_bytes(), json.loads(config.read_text())

    def fails(words: str) -> None:
        with pytest.raises(CheckpointError, match=words):
            from_pretrained(tmp_path)

    weights.write_bytes(good[:-10])
    fails(f"{len(good) - 10} bytes; its header promises {len(good)}")
    weights.write_bytes(b"\xff" * 100)
    fails("no safetensors file")
    weights.write_bytes((20).to_bytes(8, "little") + b"x" * 92)
    fails("damaged header")
    weights.unlink()
    fails("no weight file")
    weights.write_bytes(good)
    tensors = load_file(weights)
    renamed = {("model.extra.weight" if key == "model.norm.weight" else key): t for key, t in tensors.items()}
    save_file(renamed, weights)
    fails("missing model.norm.weight; unexpected model.extra.weight")
    save_file(tensors | {"model.norm.weight": torch.ones(3)}, weights)
    fails(r"has shape \(3,\); the configuration asks for \(32,\)")
    for change, words in (
        ({"model_type": "gpt2"}, "'gpt2' are not known"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"attention_bias": True}, "both or none"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "'yarn'"),
    ):
        config.write_text(json.dumps(given | change))
        fails(words)
    config.write_text(json.dumps({key: value for key, value in given.items() if key != "vocab_size"}))
    fails("lacks vocab_size")
    config.write_text("[]")
    fails("no JSON object")
    config.unlink()
    fails("no config.json and 0 GGUF files")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        from_pretrained(tmp_path / "absent")
    with pytest.raises(InvalidInput, match="int8"):
        from_pretrained(tmp_path, torch.int8)


def write_gguf(model, path: Path) -> None:  # type: ignore[no-untyped-def]
    """A Llama model as llama.cpp stores it: rows of query and key are permuted."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    short = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
    }
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight":
            continue
        name = key.replace("model.layers.", "blk.")
        for theirs, ours in short.items():
            name = name.replace(theirs, ours)
        if "attn_q" in name or "attn_k" in name:
            heads = config.num_attention_heads if "attn_q" in name else config.num_key_value_heads
            width = tensor.shape[1]
            tensor = tensor.view(heads, 2, -1, width).transpose(1, 2).reshape(-1, width)
        writer.add_tensor(name, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def convert(path: str, cache: str, ready, results) -> None:  # type: ignore[no-untyped-def]
    torch.set_num_threads(1)
    ready.wait()
    results.put(from_pretrained(path, cache=Path(cache))(ids()).sum().item())


@pytest.mark.slow
def test_gguf_is_converted_once_by_two_processes(tmp_path: Path) -> None:
    model, cache = hf_model("llama"), tmp_path / "cache"
    file = tmp_path / "tiny.gguf"
    write_gguf(model, file)
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=convert, args=(str(file), str(cache), ready, results)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    sums = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    with torch.no_grad():
        expected = model(ids()).logits
        torch.testing.assert_close(from_pretrained(tmp_path, cache=cache)(ids()), expected, rtol=0, atol=1e-4)
    assert sums == pytest.approx([expected.sum().item()] * 2, abs=0.05)
    folders = [path for path in cache.iterdir() if path.is_dir()]
    assert [path.name.startswith("tiny-") for path in folders] == [True]
    data = file.read_bytes()
    for cut in (len(data) - 100, 40):
        file.write_bytes(data[:cut])
        with pytest.raises(CheckpointError, match=f"{cut} bytes"):
            from_pretrained(file, cache=cache)
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


TOKENS, LENGTH = 2000, 500


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_equals_transformers_on_real_text() -> None:
    try:
        file = checkpoints.smollm2()
    except DataError as error:
        pytest.skip(str(error))
    ours = from_pretrained(file)
    assert sum(parameter.numel() for parameter in ours.parameters()) == 134_515_008
    folder = converted_gguf(file)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = Path(argparse.__file__).read_text()
    batch = torch.tensor(tokenizer(text[:20_000])["input_ids"][:TOKENS]).view(-1, LENGTH)
    worst = 0.0
    for row in batch:
        expected, got = theirs(row[None]).logits[0], ours(row[None])[0]
        worst = max(worst, (expected - got).abs().max().item())
        best = expected.topk(2).values
        sure = best[:, 0] - best[:, 1] >= 2e-3
        assert (expected.argmax(-1) == got.argmax(-1))[sure].all()
    assert worst < 1e-3
