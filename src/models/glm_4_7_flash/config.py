"""The model's hyper-parameters, the generation defaults and the engine's options, as one object of plain fields.

The defaults are GLM-4.7-Flash's own numbers, by Hugging Face's names. A loaded checkpoint's config.json replaces them.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Type, TypeVar, Union

Self = TypeVar("Self", bound="GLM47FlashConfig")

# Fields that glint.Engine takes as they are.
ENGINE_FIELDS = (
    "device",
    "isa",
    "threads",
    "kv",
    "max_context",
    "cache_tokens",
    "chunk_tokens",
    "max_requests",
    "latent_eps",
    "window_tokens",
    "synthetic_layers",
)
# Fields that are the defaults of generation parameters.
GENERATION_FIELDS = (
    "max_new_tokens",
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)
# Names that hosts use for a field above.
ALIASES = {"max_batch_size": "max_requests"}


def _eos_ids() -> List[int]:
    return [154820, 154827, 154829]  # <|endoftext|>, <|user|>, <|observation|>: each ends an answer


@dataclasses.dataclass
class GLM47FlashConfig:
    """GLM-4.7-Flash: 31.2 B parameters, 3.3 B of them active for a token."""

    # Architecture. Attention is MLA: the heads share one latent of kv_lora_rank + qk_rope_head_dim numbers a token, so
    # num_key_value_heads says how many heads the latent is expanded to, not what is cached.
    model_type: str = "glm4_moe_lite"
    architectures: List[str] = dataclasses.field(default_factory=lambda: ["Glm4MoeLiteForCausalLM"])
    vocab_size: int = 154880
    hidden_size: int = 2048
    num_hidden_layers: int = 47
    num_nextn_predict_layers: int = 1
    num_attention_heads: int = 20
    num_key_value_heads: int = 20
    q_lora_rank: int = 768
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 192
    qk_rope_head_dim: int = 64
    v_head_dim: int = 256
    attention_bias: bool = False
    attention_dropout: float = 0.0
    intermediate_size: int = 10240  # of the dense layers: the first first_k_dense_replace
    first_k_dense_replace: int = 1
    moe_intermediate_size: int = 1536  # of one expert
    n_routed_experts: int = 64
    n_shared_experts: int = 1
    num_experts_per_tok: int = 4
    n_group: int = 1
    topk_group: int = 1
    topk_method: str = "noaux_tc"
    scoring_func: str = "sigmoid"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.8
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1e6
    rope_scaling: Optional[Dict[str, Any]] = None
    rope_interleave: bool = True
    partial_rotary_factor: float = 1.0
    max_position_embeddings: int = 202752
    tie_word_embeddings: bool = False
    eos_token_id: List[int] = dataclasses.field(default_factory=_eos_ids)
    pad_token_id: int = 154820
    dtype: str = "bfloat16"

    # Generation. Temperature and top-p are Z.ai's recommendation.
    max_new_tokens: int = 512
    do_sample: bool = True  # False: greedy
    temperature: float = 1.0
    top_p: float = 0.95
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # 1: off
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: Optional[int] = None  # None: a new one for each request

    # Engine; glint.EngineOptions says more. A 0 (or "") leaves the choice to the engine.
    model_path: Optional[str] = None  # None: $GLINT_MODEL, else the bundled model
    device: str = "cpu"
    isa: str = ""
    threads: int = 0
    kv: str = "auto"  # int16, with cuda bf16
    max_context: int = 0
    cache_tokens: int = 0
    chunk_tokens: int = 0
    max_requests: int = 64
    latent_eps: float = 0.0
    window_tokens: int = 0
    synthetic_layers: int = 0

    # Whatever else a host set: kept, and without effect.
    extra: Dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def field_names(cls) -> "frozenset[str]":
        return frozenset(f.name for f in dataclasses.fields(GLM47FlashConfig)) - {"extra"}

    @classmethod
    def architecture_names(cls) -> "frozenset[str]":
        """The fields that a checkpoint decides."""
        return cls.field_names() - set(ENGINE_FIELDS) - set(GENERATION_FIELDS) - {"model_path"}

    @classmethod
    def from_dict(cls: Type[Self], values: Mapping[str, Any], **kwargs: Any) -> Self:
        """A config of these values; names that are no field go to `extra`."""
        config = cls()
        config.update({**_normalised(values), **kwargs})
        return config

    @classmethod
    def from_pretrained(cls: Type[Self], model_dir: "Union[str, os.PathLike[str]]", **kwargs: Any) -> Self:
        """The config of a checkpoint directory: config.json, with generation_config.json's defaults.

        Raises FileNotFoundError without a config.json, ValueError when one of the two is no JSON object.
        """
        directory = Path(model_dir)
        values = _read_object(directory / "config.json")
        if (directory / "generation_config.json").is_file():
            values.update(_read_object(directory / "generation_config.json"))
        return cls.from_dict(values, **{"model_path": str(directory), **kwargs})

    def to_dict(self) -> Dict[str, Any]:
        """All fields and `extra`, flat; `from_dict` reads it back."""
        values = {name: getattr(self, name) for name in sorted(self.field_names())}
        return copy.deepcopy({**self.extra, **values})

    def update(self, values: Mapping[str, Any]) -> List[str]:
        """Sets what is a field, keeps the rest in `extra`, and returns the names of that rest."""
        unknown = []
        fields = self.field_names()
        for given, value in values.items():
            name = ALIASES.get(given, given)
            if name == "model_path" and value is not None:
                value = os.fspath(value)
            if name in fields:
                setattr(self, name, value)
            elif name == "extra":
                self.extra.update(value)
            else:
                self.extra[name] = value
                unknown.append(name)
        return unknown

    def engine_options(self) -> Dict[str, Any]:
        """The keyword arguments of glint.Engine."""
        options = {name: getattr(self, name) for name in ENGINE_FIELDS}
        if options["device"] == "auto":
            options["device"] = "cpu"
        return options


class GLM47DynamicConfig(GLM47FlashConfig):
    """A config whose names need not be known beforehand: any attribute may be set; unknown ones live in `extra`."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.field_names() or name == "extra":
            super().__setattr__(name, value)
        else:
            self.extra[name] = value

    def __getattr__(self, name: str) -> Any:
        extra = self.__dict__.get("extra", {})
        if name in extra:
            return extra[name]
        raise AttributeError(f"config has no {name!r}")


def _read_object(path: Path) -> Dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: found {type(values).__name__}; expected an object")
    return values


def _normalised(values: Mapping[str, Any]) -> Dict[str, Any]:
    """Config.json as newer transformers write it, in the field names of the official file."""
    out = dict(values)
    rope = out.pop("rope_parameters", None)
    if isinstance(rope, Mapping):
        for name in ("rope_theta", "partial_rotary_factor"):
            if name in rope:
                out.setdefault(name, rope[name])
    for old, new in (("torch_dtype", "dtype"), ("num_local_experts", "n_routed_experts")):
        if old in out:
            out.setdefault(new, out.pop(old))
    kinds = out.pop("mlp_layer_types", None)
    if isinstance(kinds, list):
        out.setdefault("first_k_dense_replace", kinds.count("dense"))
    if isinstance(out.get("eos_token_id"), int):
        out["eos_token_id"] = [out["eos_token_id"]]
    return out
