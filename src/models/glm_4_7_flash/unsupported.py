"""The part of the host's interface that Glint has no counterpart for: one table, one way to answer for each kind.

Nothing pretends. A call that should switch something on says no and logs what to use instead; a question is answered
truthfully; a call whose result would be a computation raises NotImplementedError.
"""

from __future__ import annotations

import enum
import logging
from typing import Any, Callable, Dict, NamedTuple, Type, TypeVar

_log = logging.getLogger("glint.plugin")


class Answer(enum.Enum):
    """How a method without a counterpart answers."""

    REFUSE = "logs a warning and returns False"
    OFF = "returns True: what it would end or undo is never on"
    STATS = 'returns {"supported": False, "enabled": False, "reason": …}'
    NONE = "returns None"
    RAISE = "raises NotImplementedError"


class Entry(NamedTuple):
    answer: Answer
    reason: str


_FAMILIES = {
    "Weights are mapped from the checkpoint's files and the operating system pages them; the cache has a fixed size"
    " (cache_tokens)": {
        "enable_tensor_paging": Answer.REFUSE,
        "enable_smart_swap": Answer.REFUSE,
        "setup_predictive_memory_optimization": Answer.REFUSE,
        "start_predictive_memory_management": Answer.REFUSE,
        "stop_predictive_memory_management": Answer.OFF,
        "record_tensor_access": Answer.REFUSE,
    },
    "Kernels are fused when Glint is compiled and chosen when a model is opened (device, isa)": {
        "optimize_model": Answer.REFUSE,
        "setup_kernel_fusion": Answer.REFUSE,
        "apply_kernel_fusion": Answer.REFUSE,
        "get_fusion_manager": Answer.NONE,
    },
    "This build computes on the CPU and holds no CUDA cache; force_memory_cleanup() frees what the engine holds": {
        "clear_cuda_cache": Answer.REFUSE,
    },
    "A checkpoint is run as it is; choose a pruned checkpoint by model_path instead": {
        "setup_model_surgery": Answer.REFUSE,
        "enable_model_surgery": Answer.REFUSE,
        "perform_model_surgery": Answer.RAISE,
        "restore_model_from_surgery": Answer.RAISE,
        "analyze_model_for_surgery": Answer.RAISE,
        "get_surgery_stats": Answer.STATS,
    },
    "There is no disk pipeline; generate_text, stream and infer_batch run the whole model": {
        "setup_pipeline": Answer.REFUSE,
        "execute_pipeline": Answer.RAISE,
        "create_pipeline_stages": Answer.RAISE,
        "get_pipeline_manager": Answer.NONE,
        "get_pipeline_stats": Answer.STATS,
    },
    "Parts of the model are not offloaded; weights are mapped, so that pages not in use need no memory": {
        "setup_disk_offloading": Answer.REFUSE,
        "enable_disk_offloading": Answer.REFUSE,
        "offload_model_parts": Answer.REFUSE,
        "predict_model_part_access": Answer.RAISE,
        "get_offloading_stats": Answer.STATS,
    },
    "Activations have a fixed size (chunk_tokens) and stay in memory": {
        "setup_activation_offloading": Answer.REFUSE,
        "enable_activation_offloading": Answer.REFUSE,
        "offload_activations": Answer.REFUSE,
        "predict_activation_access": Answer.RAISE,
        "get_activation_offloading_stats": Answer.STATS,
    },
    "A checkpoint's own shards are mapped as they are; they are not cut again": {
        "enable_sharding": Answer.REFUSE,
        "disable_sharding": Answer.OFF,
        "shard_model": Answer.REFUSE,
        "prepare_inference_context": Answer.RAISE,
        "execute_with_shards": Answer.RAISE,
        "cleanup_inference_context": Answer.NONE,
        "get_sharding_stats": Answer.STATS,
    },
    "The model runs on one device; several devices are not simulated": {
        "setup_distributed_simulation": Answer.REFUSE,
        "enable_distributed_execution": Answer.REFUSE,
        "partition_model_for_distributed": Answer.REFUSE,
        "get_distributed_simulation_manager": Answer.NONE,
        "get_virtual_gpu_simulator": Answer.NONE,
        "execute_with_distributed_simulation": Answer.RAISE,
        "get_distributed_stats": Answer.STATS,
        "synchronize_partitions": Answer.REFUSE,
        "pipeline_synchronize": Answer.REFUSE,
        "get_synchronization_manager": Answer.NONE,
        "setup_virtual_execution": Answer.REFUSE,
        "enable_virtual_execution": Answer.REFUSE,
        "execute_with_virtual_execution": Answer.RAISE,
        "get_virtual_execution_manager": Answer.NONE,
        "get_virtual_device_simulator": Answer.NONE,
        "get_virtual_execution_stats": Answer.STATS,
    },
    "Weights stay in the checkpoint's format; the cache's format is the option kv": {
        "setup_tensor_compression": Answer.REFUSE,
        "compress_model_weights": Answer.REFUSE,
        "decompress_model_weights": Answer.OFF,
        "compress_activations": Answer.REFUSE,
        "enable_adaptive_compression": Answer.REFUSE,
        "get_compression_stats": Answer.STATS,
    },
    "Glint isolates nothing by itself; run the host in a container for that": {
        "initialize_security": Answer.REFUSE,
        "cleanup_security": Answer.OFF,
    },
}

UNSUPPORTED: Dict[str, Entry] = {
    name: Entry(answer, reason) for reason, methods in _FAMILIES.items() for name, answer in methods.items()
}

T = TypeVar("T")


def _method(name: str, entry: Entry) -> Callable[..., Any]:
    def answer(self: Any, *args: Any, **kwargs: Any) -> Any:
        del self, args, kwargs
        if entry.answer is Answer.RAISE:
            raise NotImplementedError(f"{name}: {entry.reason}")
        if entry.answer is Answer.STATS:
            return {"supported": False, "enabled": False, "reason": entry.reason}
        if entry.answer is Answer.OFF:
            return True
        _log.warning("%s does nothing. %s.", name, entry.reason)
        return False if entry.answer is Answer.REFUSE else None

    answer.__name__ = name
    answer.__qualname__ = f"GLM_4_7_Flash_Plugin.{name}"
    answer.__doc__ = f"Not supported: {entry.answer.value}. {entry.reason}."
    return answer


def with_unsupported(cls: Type[T]) -> Type[T]:
    """Class decorator: adds the methods of the table. A method of the class itself is never replaced."""
    for name, entry in UNSUPPORTED.items():
        if name in vars(cls):
            raise TypeError(f"{cls.__name__}.{name} exists and is in the table of what is unsupported")
        setattr(cls, name, _method(name, entry))
    return cls
