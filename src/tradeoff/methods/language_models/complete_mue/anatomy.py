"""Which tensor of a model plays which role: common decoders, Llama-like and Mixtral models, and your own."""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from tradeoff.nn.decoder import Decoder, MoEConfig

from .errors import TransferError, UnknownRole
from .rules import Role


@dataclass(frozen=True)
class Experts:
    """The mixture of a layer.

    Attributes:
        total: routed experts, E.
        active: of them that a token passes, k; the mean where it varies, as with top-p.
        width: hidden units of a routed expert, f.
        shared_width: hidden units of all shared experts together.

    Raises:
        TransferError: a number is out of range.
    """

    total: int
    active: float
    width: int
    shared_width: int = 0

    def __post_init__(self) -> None:
        if not (1 <= self.active <= self.total and self.width >= 1 and self.shared_width >= 0):
            raise TransferError(
                f"{self.active:g} active of {self.total} experts of width {self.width}, "
                f"{self.shared_width} shared"
            )

    @property
    def active_width(self) -> float:
        """Hidden units that are added into one token's output: k f + f_shared."""
        return self.active * self.width + self.shared_width

    @property
    def share(self) -> float:
        """Part of the tokens that an expert sees, k / E."""
        return self.active / self.total

    @classmethod
    def grouped(cls, groups: Sequence[tuple[int, float]], width: int, shared_width: int = 0) -> "Experts":
        """Experts balanced in groups, each with its number of experts and of active ones."""
        return cls(sum(total for total, _ in groups), sum(k for _, k in groups), width, shared_width)


@dataclass(frozen=True)
class Anatomy:
    """Sizes of a model and roles of its tensors.

    Attributes:
        width: of the residual stream.
        depth: blocks.
        roles: pattern of names, with layer and expert numbers written as ``*`` -> role. The first that fits
            counts.
        experts: of each block; None for dense ones.
        head_width: of queries and keys; None if it never changes.
        tied: the embedding is the output matrix, too.
        branches: patterns of the modules whose output is added to the residual stream.
        logits: the module whose output are the logits.
        mixtures: patterns of the modules whose output sums over experts with gates that sum to 1.
    """

    width: int
    depth: int
    roles: Mapping[str, Role]
    experts: Experts | None = None
    head_width: int | None = None
    tied: bool = False
    branches: Sequence[str] = ()
    logits: str | None = None
    mixtures: Sequence[str] = ()

    def role(self, name: str) -> Role | None:
        """The role of a tensor by its name, or None."""
        plain = without_numbers(name)
        return next((r for pattern, r in self.roles.items() if fnmatch.fnmatchcase(plain, pattern)), None)


def without_numbers(name: str) -> str:
    """``blocks.3.ffn.up.weight`` as ``blocks.*.ffn.up.weight``."""
    return re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "*", name)


@dataclass(frozen=True)
class Tensor:
    """All tensors of one name up to numbers; they are alike.

    Attributes:
        name: without numbers.
        shape: of one.
        count: how many there are.
    """

    name: str
    role: Role
    shape: tuple[int, ...]
    count: int

    @property
    def fan_in(self) -> int:
        """Inputs of a matrix as torch lays it out; 1 for vectors and embeddings, whose rows are inputs."""
        return self.shape[-1] if self.role.is_matrix and self.role is not Role.EMBEDDING else 1


def tensors(model: nn.Module, anatomy: Anatomy) -> dict[str, Tensor]:
    """The parameters of a model by name without numbers; a tied one stands once, by its first name.

    Raises:
        UnknownRole: a parameter has no role; all such names are listed.
        TransferError: tensors of one name differ in shape.
    """
    found: dict[str, Tensor] = {}
    unknown = []
    for name, parameter in model.named_parameters():  # which lists a shared parameter once
        plain, role, shape = without_numbers(name), anatomy.role(name), tuple(parameter.shape)
        if role is None or (role.is_matrix and len(shape) < 2):
            unknown.append(
                f"{name} {shape}" if role is None else f"{name} {shape}, which is no matrix but {role}"
            )
            continue
        before = found.get(plain)
        if before is not None and before.shape != shape:
            raise TransferError(f"{name} has shape {shape}, others of its name have {before.shape}")
        found[plain] = Tensor(plain, role, shape, before.count + 1 if before else 1)
    if unknown:
        raise UnknownRole(
            f"{len(unknown)} tensors have no role: {', '.join(unknown[:8])}"
            f"{', ...' if len(unknown) > 8 else ''}; give an Anatomy whose roles name them"
        )
    return found


def anatomy_of(model: nn.Module) -> Anatomy:
    """The anatomy of a common decoder, or of a Llama, Mistral, Qwen or Mixtral model of transformers.

    Raises:
        UnknownRole: the model is none of these.
    """
    if isinstance(model, Decoder):
        return _decoder(model)
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind in ("llama", "mistral", "qwen2", "qwen3", "mixtral"):
        return _hugging_face(model, kind)
    raise UnknownRole(f"{type(model).__name__} is no model whose tensors are known here; give an Anatomy")


_DECODER_ROLES = {
    "embedding.weight": Role.EMBEDDING,
    "positions.weight": Role.EMBEDDING,
    "blocks.*.attention.query_norm.weight": Role.QK_GAIN,
    "blocks.*.attention.key_norm.weight": Role.QK_GAIN,
    "blocks.*.ffn.down.weight": Role.FFN_OUT,
    "blocks.*norm.weight": Role.GAIN,
    "blocks.*.bias": Role.BIAS,
    "blocks.*.attention.*.weight": Role.HIDDEN,
    "blocks.*.attention.latent_up": Role.HIDDEN,
    "blocks.*.ffn.gate.weight": Role.FFN_IN,
    "blocks.*.ffn.up.weight": Role.FFN_IN,
    "blocks.*.ffn.router.weight": Role.ROUTER,
    "blocks.*.ffn.router.gain": Role.ROUTER_GAIN,
    "blocks.*.ffn.experts.gate": Role.EXPERT_IN,
    "blocks.*.ffn.experts.up": Role.EXPERT_IN,
    "blocks.*.ffn.experts.down": Role.EXPERT_OUT,
    "blocks.*.ffn.shared.gate.weight": Role.SHARED_IN,
    "blocks.*.ffn.shared.up.weight": Role.SHARED_IN,
    "blocks.*.ffn.shared.down.weight": Role.SHARED_OUT,
    "norm.weight": Role.FINAL_GAIN,
    "norm.bias": Role.FINAL_BIAS,
    "head.weight": Role.OUTPUT,
}


def _decoder(model: Decoder) -> Anatomy:
    config = model.config
    experts = None
    if isinstance(config.ffn, MoEConfig):
        width = config.ffn.expert_width(config.ffn_width)
        experts = Experts(config.ffn.experts, config.ffn.active, width, config.ffn.shared * width)
    return Anatomy(
        width=config.dim,
        depth=config.layers,
        roles=_DECODER_ROLES,
        experts=experts,
        head_width=config.score_width,
        tied=config.tie_embeddings,
    )


_HUGGING_FACE_ROLES = {
    "model.embed_tokens.weight": Role.EMBEDDING,
    "model.layers.*.self_attn.q_norm.weight": Role.QK_GAIN,
    "model.layers.*.self_attn.k_norm.weight": Role.QK_GAIN,
    "model.layers.*norm.weight": Role.GAIN,
    "model.layers.*.self_attn.*.weight": Role.HIDDEN,
    "model.layers.*.bias": Role.BIAS,
    "model.layers.*.mlp.down_proj.weight": Role.FFN_OUT,
    "model.layers.*.mlp.gate.weight": Role.ROUTER,
    "model.layers.*.mlp.*_proj.weight": Role.FFN_IN,
    "model.layers.*.mlp.experts.gate_up_proj": Role.EXPERT_IN,
    "model.layers.*.mlp.experts.down_proj": Role.EXPERT_OUT,
    "model.norm.weight": Role.FINAL_GAIN,
    "lm_head.weight": Role.OUTPUT,
}


def _hugging_face(model: nn.Module, kind: str) -> Anatomy:
    config: Any = model.config
    experts = None
    if kind == "mixtral":
        experts = Experts(config.num_local_experts, config.num_experts_per_tok, config.intermediate_size)
    return Anatomy(
        width=config.hidden_size,
        depth=config.num_hidden_layers,
        roles=_HUGGING_FACE_ROLES,
        experts=experts,
        head_width=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        tied=bool(config.tie_word_embeddings),
        branches=("model.layers.*.self_attn", "model.layers.*.mlp"),
        logits="lm_head",
        mixtures=("model.layers.*.mlp",) if experts else (),
    )
