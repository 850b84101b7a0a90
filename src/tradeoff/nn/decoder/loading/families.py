"""How published families of checkpoints name what a decoder consists of."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from tradeoff.nn.decoder.config import DecoderConfig, RopeScaling
from tradeoff.nn.decoder.errors import CheckpointError
from tradeoff.nn.decoder.moe_config import MoEConfig

Json = Mapping[str, Any]

KEYS = {
    "vocab": "vocab_size",
    "dim": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "max_len": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "init_std": "initializer_range",
}
GROUPED_KEYS = {"kv_heads": "num_key_value_heads", "head_dim": "head_dim"}
LATENT_KEYS = {
    "q_rank": "q_lora_rank",
    "kv_rank": "kv_lora_rank",
    "nope_dim": "qk_nope_head_dim",
    "rope_dim": "qk_rope_head_dim",
    "value_dim": "v_head_dim",
}

NAMES = {
    "embedding": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}
MIXTRAL_NAMES = NAMES | {
    "ffn.router": "block_sparse_moe.gate",
    "ffn.experts.gate": "block_sparse_moe.experts.*.w1",
    "ffn.experts.up": "block_sparse_moe.experts.*.w3",
    "ffn.experts.down": "block_sparse_moe.experts.*.w2",
}
DEEPSEEK_NAMES = NAMES | {
    "attention.query_down": "self_attn.q_a_proj",
    "attention.query_norm": "self_attn.q_a_layernorm",
    "attention.query_up": "self_attn.q_b_proj",
    "attention.latent_down": "self_attn.kv_a_proj_with_mqa",
    "attention.latent_norm": "self_attn.kv_a_layernorm",
    "attention.latent_up": "self_attn.kv_b_proj",
    "ffn.router": "mlp.gate",
    "ffn.router.bias": "mlp.gate.e_score_correction_bias",
    "ffn.experts.gate": "mlp.experts.*.gate_proj",
    "ffn.experts.up": "mlp.experts.*.up_proj",
    "ffn.experts.down": "mlp.experts.*.down_proj",
    "ffn.shared.gate": "mlp.shared_experts.gate_proj",
    "ffn.shared.up": "mlp.shared_experts.up_proj",
    "ffn.shared.down": "mlp.shared_experts.down_proj",
}
"""Our names -> theirs, without block and leaf; ``*`` counts the experts, which we stack."""


@dataclass(frozen=True)
class Family:
    """A family of checkpoints.

    Attributes:
        model_type: in ``config.json``.
        architecture: class of transformers.
        names: our names of tensors -> theirs.
        read: the fields of a configuration that this family sets in its own way.
        write: the entries of ``config.json`` that it has beside the common ones.
        belongs: whether a configuration of ours can be of this family.
    """

    model_type: str
    architecture: str
    names: Mapping[str, str]
    read: Callable[[Json], dict[str, Any]]
    write: Callable[[DecoderConfig], dict[str, Any]]
    belongs: Callable[[DecoderConfig], bool]

    def config(self, given: Json) -> DecoderConfig:
        """The configuration that a ``config.json`` describes.

        Raises:
            CheckpointError: it asks for something that the decoder does not have.
        """
        if given.get("hidden_act", "silu") != "silu":
            raise CheckpointError(f"hidden_act is {given['hidden_act']!r}; the decoder has silu here")
        latent = self.model_type == "deepseek_v3"
        keys = KEYS | (LATENT_KEYS if latent else GROUPED_KEYS)
        missing = [theirs for ours, theirs in KEYS.items() if ours in REQUIRED and theirs not in given]
        if missing:
            raise CheckpointError(f"the configuration lacks {', '.join(missing)}")
        values = {ours: given[theirs] for ours, theirs in keys.items() if given.get(theirs) is not None}
        if not latent:
            grouped = values.setdefault("kv_heads", values["heads"]) != values["heads"]
            values["attention"] = "gqa" if grouped else "mha"
        values["tie_embeddings"] = bool(given.get("tie_word_embeddings", False))
        window = given.get("sliding_window") if given.get("use_sliding_window", True) else None
        if window is not None:  # within the window, sliding attention is attention
            values["max_len"] = min(values["max_len"], window)
        return DecoderConfig(**values | _read_rope(given) | self.read(given))

    def describe(self, config: DecoderConfig) -> dict[str, Any]:
        """The ``config.json`` of a configuration.

        Raises:
            CheckpointError: the family cannot express it.
        """
        keys = LATENT_KEYS if config.is_latent else {}
        given: dict[str, Any] = {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "hidden_act": "silu",
            "tie_word_embeddings": config.tie_embeddings,
            **{theirs: getattr(config, ours) for ours, theirs in (KEYS | keys).items()},
            "intermediate_size": config.ffn_width,
            "rope_parameters": _write_rope(config),
        }
        if not config.is_latent:
            given |= {"num_key_value_heads": config.key_value_heads, "head_dim": config.head_width}
        given |= self.write(config)
        lost = _differences(config, self.config(given))
        if lost:
            raise CheckpointError(
                f"{self.architecture} of transformers has no {', '.join(lost)} as configured"
            )
        return given

    def tensor_names(self, ours: str, experts: int) -> list[str]:
        """Their names of one tensor of ours: one, or one for each expert."""
        parts = ours.split(".")
        prefix = ""
        if parts[0] == "blocks":
            prefix, parts = f"model.layers.{parts[1]}.", parts[2:]
        whole = ".".join(parts)
        stem, leaf = ".".join(parts[:-1]), parts[-1]
        if whole in self.names:
            name = self.names[whole]
            leaf = "" if whole == "ffn.router.bias" else ".weight"
        elif stem in self.names:
            name, leaf = self.names[stem], f".{leaf}"
        else:
            raise CheckpointError(f"{self.architecture} of transformers has no {ours}")
        name = f"{prefix}{name}{leaf}"
        return [name.replace("*", str(expert)) for expert in range(experts)] if "*" in name else [name]


REQUIRED = ("vocab", "dim", "layers", "heads", "hidden", "max_len")


def _read_rope(given: Json) -> dict[str, Any]:
    """Rotary base and scaling, from ``rope_parameters`` or, before transformers 5, from two entries."""
    old = {**(given.get("rope_scaling") or {}), "rope_theta": given.get("rope_theta", 10000.0)}
    rope = given.get("rope_parameters") or old
    kind = rope.get("rope_type", rope.get("type", "default"))
    base = {"rope_base": float(rope.get("rope_theta", 10000.0))}
    if kind == "default":
        return base
    if kind == "linear":
        return base | {"rope_scaling": RopeScaling("linear", rope["factor"])}
    if kind == "llama3":
        scaling = RopeScaling(
            "llama3",
            rope["factor"],
            rope["low_freq_factor"],
            rope["high_freq_factor"],
            rope["original_max_position_embeddings"],
        )
        return base | {"rope_scaling": scaling}
    raise CheckpointError(f"rotary scaling {kind!r} is not known; there are default, linear and llama3")


def _write_rope(config: DecoderConfig) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_base}
    scaling = config.rope_scaling
    if scaling is not None:
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling is not None and scaling.kind == "llama3":
        rope |= {
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.original_len,
        }
    return rope


def _differences(one: DecoderConfig, two: DecoderConfig) -> list[str]:
    """Fields that change what a model computes and differ."""

    def resolved(config: DecoderConfig) -> dict[str, Any]:
        ffn = config.ffn
        if isinstance(ffn, MoEConfig):
            ffn = replace(
                ffn,
                hidden=ffn.expert_width(config.ffn_width),
                dispatch="grouped",
                balance=0,
                entropy=0,
                z=0,
            )
        values = asdict(config) | {"ffn": ffn, "init": None, "init_std": None, "dropout": None}
        values |= {"hidden": config.ffn_width, "value_dim": config.value_width}
        if not config.is_latent:
            values |= {"attention": None, "kv_heads": config.key_value_heads, "head_dim": config.head_width}
        return values | {"attn_scale": config.score_scale}

    first, second = resolved(one), resolved(two)
    return [name for name in first if first[name] != second[name]]


def _llama(given: Json) -> dict[str, Any]:
    biases = bool(given.get("attention_bias", False)), bool(given.get("mlp_bias", False))
    if biases[0] != biases[1]:
        raise CheckpointError(f"attention_bias and mlp_bias are {biases}; the decoder has both or none")
    return {"bias": biases[0]}


def _mixtral(given: Json) -> dict[str, Any]:
    width = given["intermediate_size"]
    return {"ffn": MoEConfig(given["num_local_experts"], given["num_experts_per_tok"], width)}


def _write_mixtral(config: DecoderConfig) -> dict[str, Any]:
    moe = _moe(config)
    return {
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.active,
        "intermediate_size": moe.expert_width(config.ffn_width),
        "sliding_window": None,
    }


def _deepseek(given: Json) -> dict[str, Any]:
    if given.get("attention_bias"):
        raise CheckpointError("attention_bias of DeepSeek checkpoints is not known")
    moe = MoEConfig(
        experts=given["n_routed_experts"],
        active=given["num_experts_per_tok"],
        hidden=given["moe_intermediate_size"],
        router="sigmoid",
        normalize_gates=given.get("norm_topk_prob", True),
        gate_scale=given.get("routed_scaling_factor", 2.5),
        groups=given.get("n_group", 8),
        groups_kept=given.get("topk_group", 4),
        shared=given.get("n_shared_experts", 1),
        dense_layers=given.get("first_k_dense_replace", 3),
    )
    interleaved = given.get("rope_interleave", True)
    return {
        "attention": "mla",
        "latent_scale": False,
        "rope_style": "interleaved" if interleaved else "half",
        "ffn": moe,
    }


def _write_deepseek(config: DecoderConfig) -> dict[str, Any]:
    moe = _moe(config)
    return {
        "num_key_value_heads": config.heads,
        "v_head_dim": config.value_width,
        "n_routed_experts": moe.experts,
        "num_experts_per_tok": moe.active,
        "moe_intermediate_size": moe.expert_width(config.ffn_width),
        "norm_topk_prob": moe.normalize_gates,
        "routed_scaling_factor": moe.gate_scale,
        "n_group": moe.groups,
        "topk_group": moe.groups_kept,
        "n_shared_experts": moe.shared,
        "first_k_dense_replace": moe.dense_layers,
        "rope_interleave": config.rope_style == "interleaved",
        "num_nextn_predict_layers": 0,
    }


def _moe(config: DecoderConfig) -> MoEConfig:
    if not isinstance(config.ffn, MoEConfig):
        raise CheckpointError(f"the family has mixtures of experts; ffn is {config.ffn!r}")
    return config.ffn


FAMILIES = {
    family.model_type: family
    for family in (
        Family(
            "deepseek_v3",
            "DeepseekV3ForCausalLM",
            DEEPSEEK_NAMES,
            _deepseek,
            _write_deepseek,
            lambda config: config.is_latent,
        ),
        Family(
            "mixtral",
            "MixtralForCausalLM",
            MIXTRAL_NAMES,
            _mixtral,
            _write_mixtral,
            lambda config: isinstance(config.ffn, MoEConfig),
        ),
        Family(
            "qwen3",
            "Qwen3ForCausalLM",
            NAMES,
            lambda given: {"qk_norm": True, "bias": "qkv" if given.get("attention_bias") else False},
            lambda config: {"attention_bias": bool(config.bias), "use_sliding_window": False},
            lambda config: config.qk_norm,
        ),
        Family(
            "qwen2",
            "Qwen2ForCausalLM",
            NAMES,
            lambda given: {"bias": "qkv"},
            lambda config: {"use_sliding_window": False},
            lambda config: config.bias == "qkv",
        ),
        Family(
            "llama",
            "LlamaForCausalLM",
            NAMES,
            _llama,
            lambda config: {"attention_bias": bool(config.bias), "mlp_bias": bool(config.bias)},
            lambda config: True,
        ),
        Family(
            "mistral",
            "MistralForCausalLM",
            NAMES,
            lambda given: {},
            lambda config: {"sliding_window": None},
            lambda config: False,
        ),
    )
}
"""Known families; the first that a configuration can belong to is the one it is saved as."""


def family_of(given: Json) -> Family:
    """The family of a ``config.json``.

    Raises:
        CheckpointError: it is not known.
    """
    kind = given.get("model_type")
    if kind not in FAMILIES:
        raise CheckpointError(f"checkpoints of type {kind!r} are not known; there are {', '.join(FAMILIES)}")
    return FAMILIES[kind]
