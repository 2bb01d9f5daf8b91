"""GLM-4.7-Flash for Inference-PIO hosts: both generations of the plug-in interface over glint.Engine.

>>> plugin = create_glm_4_7_flash_plugin()                # the bundled model; or model_path="/models/GLM-4.7-Flash"
>>> print(plugin.generate_text("Explain quantum computing."))
"""

from __future__ import annotations

import functools
import json
import logging
import os
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, TypeVar, Union, cast

from ._glint import glint
from .config import ALIASES, ENGINE_FIELDS, GLM47FlashConfig
from .host import PluginMetadata, PluginType
from .model import PARAMETERS, GLM47FlashModel, Job
from .unsupported import with_unsupported

_log = logging.getLogger("glint.plugin")

ERROR_TEXT = "Error during generation"  # what hosts know as the answer of a call that failed

Message = Mapping[str, Any]
Prompt = Union[str, Sequence[int], Sequence[Message]]
F = TypeVar("F", bound=Callable[..., Any])


def _metadata() -> PluginMetadata:
    """The manifest beside this file, as the host's dataclass."""
    manifest = json.loads((Path(__file__).parent / "plugin_manifest.json").read_text(encoding="utf-8"))
    fields = {name: manifest[name] for name in PluginMetadata.__dataclass_fields__ if name in manifest}
    fields["plugin_type"] = PluginType(fields["plugin_type"])
    return PluginMetadata(**fields)


def _or_error_text(method: F) -> F:
    """With compat_errors, a failure is logged and becomes ERROR_TEXT."""

    @functools.wraps(method)
    def guarded(self: "GLM_4_7_Flash_Plugin", *args: Any, **kwargs: Any) -> Any:
        if not self.compat_errors:
            return method(self, *args, **kwargs)
        try:
            return method(self, *args, **kwargs)
        except Exception:
            _log.exception("%s failed", method.__name__)
            return ERROR_TEXT

    return cast(F, guarded)


@with_unsupported
class GLM_4_7_Flash_Plugin:  # noqa: N801 (the host's name)
    """The plug-in. It may be used at once: the model opens on first use. Thread-safe.

    Parameters of every call that generates: max_new_tokens, do_sample (False: greedy), temperature, top_p, top_k,
    min_p, repetition_penalty, presence_penalty, frequency_penalty, seed, logit_bias, stop, stop_ids, ignore_eos, chat,
    enable_thinking, clear_thinking, system, tools, literal. Others raise TypeError. What is not given has the value of
    `config`.

    Failures raise glint.Error, unless `compat_errors` is true: then generate_text, chat_completion, infer and
    infer_batch log them and answer "Error during generation", as hosts expect of older plug-ins, and initialize
    returns False.
    """

    def __init__(self, config: Optional[GLM47FlashConfig] = None, *, compat_errors: bool = False) -> None:
        self.metadata = _metadata()
        self.compat_errors = compat_errors
        self.model = GLM47FlashModel(config)
        self._initialized = False
        self._warned: "set[str]" = set()

    # ---- life ----

    @property
    def config(self) -> GLM47FlashConfig:
        return self.model.config

    @property
    def engine(self) -> "glint.Engine":
        """The glint.Engine; opens the model when it is not open."""
        return self.model.engine

    @property
    def is_loaded(self) -> bool:
        return self.model.loaded

    def initialize(self, config: Any = None, **kwargs: Any) -> bool:
        """Sets config attributes and opens the model. Not required.

        Attributes that Glint has (see GLM47FlashConfig) take effect; the others are kept in `config.extra`, and a
        warning names them once. A model that is open already is opened again only if its options change.
        """
        try:
            self._configure({**_config_values(config), **kwargs}, "initialize")
            self.model.engine  # noqa: B018 (opens it)
        except Exception:
            if not self.compat_errors:
                raise
            _log.exception("initialize failed")
            return False
        self._initialized = True
        return True

    def load_model(self, config: Any = None) -> GLM47FlashModel:
        """Opens the model (of `config`, if given) and returns it."""
        self._configure(_config_values(config), "load_model")
        self.model.engine  # noqa: B018 (opens it)
        return self.model

    def cleanup(self) -> bool:
        """Ends all requests and frees the model. The plug-in may be used again: the model opens anew."""
        self.model.close()
        self._initialized = False
        return True

    def __enter__(self) -> "GLM_4_7_Flash_Plugin":
        return self

    def __exit__(self, *_: object) -> None:
        self.cleanup()

    def supports_config(self, config: Any) -> bool:
        """Whether Glint can run a model of this config: an object or dict with config.json's names."""
        values = _config_values(config)
        if not values:
            return False
        c = GLM47FlashConfig.from_dict(values)
        return (
            c.model_type == "glm4_moe_lite"
            and (c.kv_lora_rank, c.qk_rope_head_dim, c.qk_nope_head_dim, c.v_head_dim) == (512, 64, 192, 256)
            and c.num_attention_heads == c.num_key_value_heads
            and (c.n_group, c.topk_group, c.scoring_func) == (1, 1, "sigmoid")
            and c.rope_scaling is None
        )

    # ---- generating ----

    @_or_error_text
    def generate_text(self, prompt: Prompt, max_new_tokens: Optional[int] = None, **kwargs: Any) -> str:
        """The answer to a user's message, at most 512 tokens by default.

        chat=False continues the text instead ("[gMASK]<sop>" is put before it if missing). By default the model answers
        without a think block; enable_thinking=True lets it think first, and the reasoning is left out.
        """
        return self._run_one(prompt, {"max_new_tokens": max_new_tokens, **_quick(kwargs)}).content

    @_or_error_text
    def chat_completion(
        self,
        messages: Union[str, Sequence[Message]],
        max_new_tokens: Optional[int] = 1024,
        as_dict: Optional[bool] = None,
        **kwargs: Any,
    ) -> Union[str, Dict[str, Any]]:
        """The assistant's answer to a conversation; it thinks first unless enable_thinking=False.

        Returns the content as text; with as_dict=True, and by default when `tools` are given, the whole message:
        {"role", "content", "reasoning_content", "tool_calls", "finish_reason"}, of which the middle two may be missing.
        """
        result = self._run_one(messages, {"max_new_tokens": max_new_tokens, **kwargs, "chat": True})
        if as_dict is None:
            as_dict = bool(kwargs.get("tools"))
        return {**result.message, "finish_reason": result.finish_reason} if as_dict else result.content

    def stream(self, prompt: Prompt, max_new_tokens: Optional[int] = None, **kwargs: Any) -> Iterator[str]:
        """The answer piece by piece, as the model writes it. Closing the iterator cancels the request.

        Takes what generate_text takes, or messages; with enable_thinking=True the reasoning comes first and ends with
        </think>. Wrong parameters raise here, not at the first piece.
        """
        job = self.model.job(prompt, {"max_new_tokens": max_new_tokens, **_quick(kwargs)})
        return self._pieces(job)

    def _pieces(self, job: Job) -> Iterator[str]:
        with self.model.start(job) as stream:
            for event in stream:
                if event.text:
                    yield event.text

    @_or_error_text
    def infer(self, data: Any) -> str:
        """Answers a text, messages, token ids (also floats, arrays, or a batch of one), or a dict of a request.

        A request is {"prompt" | "messages" | "ids": …} with parameters of generate_text beside it.
        """
        prompt, params = _request(data)
        return self._run_one(prompt, _quick(params)).content

    def infer_batch(self, requests: Sequence[Any], **kwargs: Any) -> List[str]:
        """Runs requests (as `infer` takes) together and returns the answers in their order.

        All are submitted before the first is awaited, and each answer is the same as alone. `kwargs` hold for all. A
        failure raises, after the others ended; with compat_errors that request's answer is the error text.
        """
        results: List[Any] = []
        jobs: List[Tuple[int, Job]] = []
        for i, request in enumerate(requests):
            try:
                prompt, params = _request(request)
                jobs.append((i, self.model.job(prompt, _quick({**kwargs, **params}))))
                results.append(None)
            except Exception as error:
                if not self.compat_errors:
                    raise
                results.append(error)
        for (i, _), result in zip(jobs, self.model.run(job for _, job in jobs)):
            results[i] = result
        for i, result in enumerate(results):
            if isinstance(result, Exception):
                if not self.compat_errors:
                    raise result
                _log.error("infer_batch: request %d failed: %s", i, result)
                results[i] = ERROR_TEXT
            else:
                results[i] = result.content
        return results

    def _run_one(self, prompt: Prompt, params: Mapping[str, Any]) -> "glint.ChatResult":
        job = self.model.job(prompt, params)
        return self.model.answer(job, self.model.start(job).result())

    # ---- text ----

    def tokenize(self, text: str, *, literal: bool = False) -> List[float]:
        """Token ids [n] as floats, as hosts carry them. Nothing is added. `literal`: tags are plain text."""
        return [float(token) for token in self.engine.encode(text, literal=literal)]

    def detokenize(self, token_ids: Any, *, skip_special_tokens: bool = False) -> str:
        """The text of token ids [n]: ints, floats or an array."""
        return self.engine.decode(_ids(token_ids), skip_special=skip_special_tokens)

    # ---- what it is ----

    def get_model_info(self) -> Dict[str, Any]:
        """The model that is open (opens it): numbers of this checkpoint, not of the real model."""
        return {
            "name": self.metadata.name,
            "architecture": self.metadata.model_architecture,
            **self.engine.info,
            "num_attention_heads": self.config.num_attention_heads,
            "num_experts": self.config.n_routed_experts,
            "experts_per_token": self.config.num_experts_per_tok,
        }

    def get_model_parameters(self) -> Dict[str, Any]:
        """Parameter counts of the model that is open (opens it). None is trainable: Glint only infers."""
        info = self.engine.info
        return {
            "total_parameters": info["n_parameters"],
            "trainable_parameters": 0,
            "weight_bytes": info["weight_bytes"],
            "active_weight_bytes": info["active_bytes"],
        }

    def get_model_config_template(self) -> GLM47FlashConfig:
        """A config with GLM-4.7-Flash's own numbers."""
        return GLM47FlashConfig()

    def validate_model_compatibility(self, config: Any) -> bool:
        """As supports_config."""
        return self.supports_config(config)

    def get_compiled_model(self) -> GLM47FlashModel:
        """The model; Glint's is compiled code in any case."""
        return self.model

    # ---- memory and batching: what has a counterpart in Glint (unsupported.py answers for the rest) ----

    def setup_memory_management(self, **kwargs: Any) -> bool:
        """Sets the options that decide memory: kv, max_context, cache_tokens, chunk_tokens, max_requests.

        False, with a warning, if none of them is among the arguments.
        """
        return self._set_options(kwargs, "setup_memory_management")

    def get_memory_stats(self) -> Dict[str, Any]:
        """Bytes of weights (mapped) and cache, and of this process. The model is not opened for it."""
        stats: Dict[str, Any] = {"model_loaded": self.is_loaded, "process_rss_bytes": _resident_bytes()}
        if self.is_loaded:
            info, state = self.engine.info, self.engine.stats()
            stats.update(
                weight_bytes=info["weight_bytes"],
                cache_bytes_a_token=info["cache_bytes_a_token"],
                cache_tokens=state["cache_tokens"],
                cache_tokens_used=state["cache_tokens_used"],
                cache_bytes=state["cache_tokens"] * info["cache_bytes_a_token"],
                cache_bytes_used=state["cache_tokens_used"] * info["cache_bytes_a_token"],
            )
        return stats

    def force_memory_cleanup(self) -> bool:
        """Frees all that the engine holds; the next use opens the model again. False while requests run."""
        if self.is_loaded:
            state = self.engine.stats()
            if state["running_requests"] or state["waiting_requests"]:
                _log.warning("force_memory_cleanup: requests are running; cancel them first, or call cleanup()")
                return False
            self.model.close()
        return True

    def setup_adaptive_batching(self, **kwargs: Any) -> bool:
        """Sets max_batch_size (max_requests): how many requests run at the same time.

        Batching is continuous and always on: each step takes what is there, so there is no batch size to adapt. False,
        with a warning, if no such option is among the arguments.
        """
        return self._set_options(kwargs, "setup_adaptive_batching")

    def get_optimal_batch_size(self, processing_time_ms: float = 0.0, tokens_processed: int = 0) -> int:
        """How many requests to hand in at once: max_requests. More wait; the measurements given change nothing."""
        del processing_time_ms, tokens_processed
        return self.config.max_requests

    def adjust_batch_size(self) -> Tuple[int, bool, Optional[str]]:
        """(max_requests, False, why nothing was adjusted)."""
        return self.config.max_requests, False, "batching is continuous: every step takes the requests that are there"

    def get_batching_status(self) -> Dict[str, Any]:
        """Requests running and waiting, and throughput so far. The model is not opened for it."""
        status: Dict[str, Any] = {
            "current_batch_size": 0,
            "max_batch_size": self.config.max_requests,
            "waiting_requests": 0,
            "continuous_batching": True,
            "adaptive_batching_enabled": False,
            "memory_pressure_ratio": 0.0,
            "performance_score": 0.0,
        }
        if self.is_loaded:
            state = self.engine.stats()
            tokens = state["prefill_tokens"] + state["decode_tokens"]
            status.update(
                current_batch_size=state["running_requests"],
                waiting_requests=state["waiting_requests"],
                memory_pressure_ratio=state["cache_tokens_used"] / max(1, state["cache_tokens"]),
                performance_score=tokens / state["step_s"] if state["step_s"] > 0 else 0.0,  # tokens per second
            )
        return status

    def get_resource_usage(self) -> Dict[str, Any]:
        """Of this process: resident bytes, CPU seconds, wall clock."""
        times = os.times()
        return {
            "process_rss_bytes": _resident_bytes(),
            "cpu_s": times.user + times.system,
            "time": time.time(),
        }

    def validate_file_access(self, file_path: "Union[str, os.PathLike[str]]") -> bool:
        """Whether the plug-in may read this file: it reads the model directory and nothing else."""
        path = Path(file_path).resolve()
        root = Path(self.config.model_path or glint.default_model_dir()).resolve()
        return path == root or root in path.parents

    def validate_network_access(self, host: str) -> bool:
        """False for every host: the plug-in opens no connections."""
        del host
        return False

    # ---- helpers ----

    def _configure(self, values: Mapping[str, Any], who: str) -> None:
        unknown = set(self.model.reconfigure(values)) - self._warned
        if unknown:
            self._warned |= unknown
            _log.warning("%s: Glint has no %s; kept in config.extra", who, ", ".join(sorted(unknown)))

    def _set_options(self, given: Mapping[str, Any], who: str) -> bool:
        self._configure(given, who)
        if not {ALIASES.get(name, name) for name in given} & set(ENGINE_FIELDS):
            _log.warning("%s: none of the arguments is an engine option (%s)", who, ", ".join(ENGINE_FIELDS))
            return False
        return True


def create_glm_4_7_flash_plugin(
    model_path: "Union[str, os.PathLike[str], None]" = None, *, compat_errors: bool = False, **config: Any
) -> GLM_4_7_Flash_Plugin:
    """A plug-in for the model in `model_path` (default: $GLINT_MODEL, else the bundled one), ready for use.

    `config` are fields of GLM47FlashConfig, e.g. threads=4 or temperature=0.7; others raise TypeError.
    `compat_errors`: see GLM_4_7_Flash_Plugin.
    """
    values = GLM47FlashConfig()
    unknown = values.update({"model_path": model_path, **config})
    if unknown:
        raise TypeError(f"unknown config field {', '.join(unknown)}; known: {', '.join(sorted(values.field_names()))}")
    return GLM_4_7_Flash_Plugin(values, compat_errors=compat_errors)


def _quick(params: Mapping[str, Any]) -> Dict[str, Any]:
    """generate_text's own default: an answer at once."""
    return {"enable_thinking": False, **params}


def _config_values(config: Any) -> Dict[str, Any]:
    """What a config object, dict or None says, by name."""
    if config is None:
        return {}
    if isinstance(config, GLM47FlashConfig):
        return config.to_dict()
    if isinstance(config, Mapping):
        return dict(config)
    if callable(getattr(config, "to_dict", None)):
        return dict(config.to_dict())
    if not hasattr(config, "__dict__"):
        return {}
    return {name: value for name, value in vars(config).items() if not name.startswith("_")}


def _request(data: Any) -> Tuple[Prompt, Dict[str, Any]]:
    """The prompt and the parameters of what `infer` takes."""
    if isinstance(data, Mapping):
        params = dict(data)
        names = [name for name in ("prompt", "messages", "ids") if name in params]
        if len(names) != 1:
            raise ValueError(f"request: found {sorted(params)}; expected exactly one of prompt, messages, ids")
        prompt = params.pop(names[0])
        return (_ids(prompt) if names[0] == "ids" else prompt), params
    if isinstance(data, str) or (isinstance(data, Sequence) and data and isinstance(data[0], Mapping)):
        return cast(Prompt, data), {}
    return _ids(data), {}


def _ids(values: Any) -> List[int]:
    """Token ids of a list or array of ints or whole floats; a batch of one is opened."""
    listed = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(listed, Sequence) or isinstance(listed, (str, bytes)):
        raise TypeError(f"found {type(values).__name__}; expected a text, messages, a request or token ids")
    if len(listed) == 1 and isinstance(listed[0], Sequence) and not isinstance(listed[0], str):
        listed = listed[0]
    out = []
    for value in listed:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
            raise TypeError(f"token id: found {value!r}; expected a whole number")
        out.append(int(value))
    return out


def _resident_bytes() -> int:
    """Resident memory of this process; 0 where /proc is not."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


__all__ = ["ERROR_TEXT", "PARAMETERS", "GLM_4_7_Flash_Plugin", "create_glm_4_7_flash_plugin"]
