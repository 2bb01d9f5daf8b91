"""What goes into an Engine and what comes out, as types."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, TypedDict, Union

from ._native import Usage

Message = Mapping[str, Any]
"""{"role": "system" | "user" | "assistant" | "tool", "content": …} as in OpenAI's API, "tool_calls" and
"reasoning_content" included."""


class EngineOptions(TypedDict, total=False):
    """Keyword arguments of `Engine`; a 0 (or "") leaves the choice to the engine."""

    device: str  # "cpu", or "reference": slow, the definition of every result
    isa: str  # cpu: generic, avx2, avx512, avx512vnni, avx512bf16, amx; "": the best that the machine has
    threads: int  # cpu: 0 is one a core
    kv: str  # cache format: "int16", "f16", "bf16", "fp8", "int8", "int4", "f32"; "auto" is int16, on cuda bf16
    weights: str  # int4, int8, nf4, fp8 or bf16: quantise while loading; "": as stored
    max_context: int  # tokens a request may hold, prompt and answer; 0: the model's limit
    cache_tokens: int  # tokens the whole cache holds; 0: what fits into a share of the free memory
    chunk_tokens: int  # rows a step at most; longer prompts are read in chunks; 0: 512, or 2048 on a device with room
    touch_ahead_bytes: int  # of a host's cache: memory asked of the system before a step needs it; 0: none
    max_requests: int  # requests that run at the same time; more wait
    latent_eps: float  # 0: the config's rms_norm_eps; 1e-6: bit parity with Hugging Face
    window_tokens: int  # sliding-window attention; 0: dense
    prefix_cache: bool  # default True: prompts that begin as earlier ones did start behind what is still in the cache
    cache_dir: str  # what the prefix cache kept is written here and found again after a restart; "": nowhere
    cache_dir_bytes: int  # at most; 0: 16 GiB
    synthetic_layers: int  # > 0: random weights of the real shape, no tokenizer without model_dir


class Sampling(TypedDict, total=False):
    """Keyword arguments of every call that generates. `None` means the default."""

    max_tokens: Optional[int]  # default 512; 0: until the context is full
    temperature: Optional[float]  # 0: greedy; default 1.0, the model's recommendation
    top_p: Optional[float]  # (0, 1]; default 0.95, likewise
    top_k: Optional[int]  # 0: all; default 0
    min_p: Optional[float]  # [0, 1): drops tokens below this share of the likeliest one; default 0
    repetition_penalty: Optional[float]  # default 1: off
    presence_penalty: Optional[float]  # default 0
    frequency_penalty: Optional[float]  # default 0
    seed: Optional[int]  # the same seed gives the same tokens, alone or in a batch; default: random, in usage.seed
    logit_bias: Optional[Mapping[int, float]]  # token id → what is added to its logit
    logprobs: Optional[int]  # 0: of each chosen token; n ≤ 20: of the n likeliest too; default: none
    stop: Union[str, Sequence[str], None]  # texts that end the answer; not part of it
    stop_ids: Optional[Sequence[int]]  # token ids that end it, besides the model's own
    ignore_eos: Optional[bool]  # go on after the model's end tokens
    constraint: Union[str, Mapping[str, Any], None]  # the answer's form: {"json_schema": …} and so on, see engine.hpp
    priority: Optional[int]  # default 0; the smaller is admitted first; nobody starves
    timeout_s: Optional[float]  # ends with finish_reason "timeout" so long after it was submitted; default: never
    skip_special: Optional[bool]  # default True: special tokens do not appear in text


class EngineStats(TypedDict):
    """Counters since the engine opened, and its state now."""

    steps: int
    running_requests: int
    waiting_requests: int
    prefill_tokens: int
    decode_tokens: int
    step_s: float  # seconds inside steps
    cache_tokens: int  # size of the cache in tokens
    cache_tokens_used: int  # held by running requests
    cache_tokens_kept: int  # kept for prompts that begin with them; given up when needed
    cached_tokens: int  # prompt tokens found in the cache
    evicted_tokens: int  # kept tokens given up
    preemptions: int
    disk_loaded_tokens: int  # read from cache_dir
    disk_bytes: int  # what lies in it
    disk_files: int


class ModelInfo(TypedDict):
    """What was loaded."""

    model_dir: str
    backend: str  # e.g. "cpu (avx2)"
    n_layers: int
    vocab: int
    n_parameters: int
    weight_bytes: int
    active_bytes: int  # weight bytes that a decoded token reads
    cache_bytes_a_token: int
    max_context: int  # tokens
    has_mtp: bool
    eos_ids: List[int]


@dataclasses.dataclass(frozen=True)
class Generation:
    """A finished answer.

    `finish_reason` is "eos" (one of the model's end tokens), "stop" (a stop text or id: `stop_string`), "length"
    (max_tokens or the context), "timeout" (timeout_s) or "cancelled".
    """

    text: str
    ids: List[int]  # end token included
    finish_reason: str
    usage: Usage  # token counts; queue_s, prefill_s, decode_s in seconds; seed; logits_hash
    stop_string: str = ""
    logprobs: Optional[List[float]] = None  # [len(ids)], of the model's own distribution, when asked for
    top_logprobs: Optional[List[List[Tuple[int, float]]]] = None  # [len(ids)][n] of (token id, logprob)

    def __str__(self) -> str:
        return self.text


@dataclasses.dataclass(frozen=True)
class ChatResult:
    """A finished answer of the assistant, taken apart."""

    content: str
    reasoning_content: str
    tool_calls: List[Dict[str, Any]]  # OpenAI's: {"id", "type", "function": {"name", "arguments": JSON text}}
    generation: Generation  # the text as the model wrote it

    @property
    def finish_reason(self) -> str:
        """As in `Generation`, but "tool_calls" when the model called tools and was not cut off."""
        reason = self.generation.finish_reason
        return "tool_calls" if self.tool_calls and reason == "eos" else reason

    @property
    def message(self) -> Dict[str, Any]:
        """The answer as a message, to append to the conversation."""
        message: Dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning_content:
            message["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
        return message

    def __str__(self) -> str:
        return self.content
