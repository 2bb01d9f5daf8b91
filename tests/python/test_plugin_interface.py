"""Both generations of the host's interface: every name is there, and what is not supported does not pretend."""

import importlib
import inspect
import json
import logging

import pytest

from src.models.glm_4_7_flash.host import PluginMetadata, PluginType
from src.models.glm_4_7_flash.plugin import GLM_4_7_Flash_Plugin, create_glm_4_7_flash_plugin
from src.models.glm_4_7_flash.unsupported import UNSUPPORTED, Answer

NEWER = "initialize cleanup infer generate_text load_model tokenize detokenize infer_batch"
OLDER = """
initialize load_model infer cleanup supports_config tokenize detokenize generate_text chat_completion
get_model_info get_model_parameters get_model_config_template validate_model_compatibility
optimize_model get_compiled_model clear_cuda_cache
setup_memory_management enable_tensor_paging enable_smart_swap get_memory_stats force_memory_cleanup
start_predictive_memory_management stop_predictive_memory_management
setup_kernel_fusion apply_kernel_fusion get_fusion_manager
setup_adaptive_batching get_optimal_batch_size adjust_batch_size get_batching_status
setup_model_surgery enable_model_surgery perform_model_surgery restore_model_from_surgery analyze_model_for_surgery
get_surgery_stats
setup_pipeline execute_pipeline create_pipeline_stages get_pipeline_manager get_pipeline_stats
setup_disk_offloading enable_disk_offloading offload_model_parts predict_model_part_access get_offloading_stats
setup_activation_offloading enable_activation_offloading offload_activations predict_activation_access
get_activation_offloading_stats
enable_sharding disable_sharding shard_model prepare_inference_context execute_with_shards cleanup_inference_context
get_sharding_stats
initialize_security validate_file_access validate_network_access get_resource_usage cleanup_security
setup_distributed_simulation enable_distributed_execution partition_model_for_distributed
get_distributed_simulation_manager get_virtual_gpu_simulator execute_with_distributed_simulation get_distributed_stats
synchronize_partitions pipeline_synchronize get_synchronization_manager
setup_virtual_execution execute_with_virtual_execution
setup_tensor_compression compress_model_weights decompress_model_weights compress_activations get_compression_stats
enable_adaptive_compression
"""


@pytest.fixture(scope="module")
def plugin():
    with create_glm_4_7_flash_plugin() as made:
        yield made


@pytest.mark.parametrize("name", sorted(set((NEWER + " " + OLDER).split())))
def test_every_method_is_there_and_documented(plugin, name):
    method = getattr(plugin, name)
    assert callable(method) and inspect.getdoc(method)


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_unsupported_methods_do_not_pretend(plugin, name, caplog):
    entry = UNSUPPORTED[name]
    method = getattr(plugin, name)
    caplog.set_level(logging.WARNING, "glint.plugin")
    if entry.answer is Answer.RAISE:
        with pytest.raises(NotImplementedError, match=f"^{name}: "):
            method("x", y=1)
        return
    answer = method(y=1)
    if entry.answer is Answer.STATS:
        assert answer == {"supported": False, "enabled": False, "reason": entry.reason}
        return
    assert answer is {Answer.REFUSE: False, Answer.OFF: True, Answer.NONE: None}[entry.answer]
    assert (f"{name} does nothing. {entry.reason}." in caplog.text) == (entry.answer is not Answer.OFF)


def test_off_is_only_for_what_ends_something():
    assert sorted(n for n, e in UNSUPPORTED.items() if e.answer is Answer.OFF) == [
        "cleanup_security",
        "decompress_model_weights",
        "disable_sharding",
        "stop_predictive_memory_management",
    ]


def test_supported_families_do_the_real_thing(plugin):
    assert plugin.get_memory_stats()["model_loaded"] is False
    assert plugin.setup_memory_management(cache_tokens=4096, kv="f32", max_context=1024)
    info = plugin.get_model_info()
    assert info["n_parameters"] == 39_332_288 and info["num_attention_heads"] == 4 and info["max_context"] == 1024
    stats = plugin.get_memory_stats()
    assert stats["cache_tokens"] >= 4096 and stats["weight_bytes"] > 70e6 and stats["process_rss_bytes"] > 1e6
    assert stats["cache_bytes"] == stats["cache_tokens"] * stats["cache_bytes_a_token"]
    assert stats["cache_bytes_a_token"] == info["cache_bytes_a_token"] == 7 * 576 * 4  # seven layers, fp32
    assert plugin.setup_memory_management(nonsense=1) is False
    assert plugin.setup_adaptive_batching(max_batch_size=2)
    assert plugin.get_optimal_batch_size(10.0, 100) == 2 and plugin.adjust_batch_size()[:2] == (2, False)
    assert plugin.get_model_parameters()["total_parameters"] == 39_332_288
    assert plugin.infer_batch(["Hello"] * 3, max_new_tokens=4, seed=1)[0]
    status = plugin.get_batching_status()
    assert status["max_batch_size"] == 2 and status["performance_score"] > 0
    assert plugin.get_compiled_model() is plugin.load_model()
    assert plugin.get_resource_usage()["cpu_s"] > 0
    assert plugin.force_memory_cleanup() and not plugin.is_loaded


def test_access(plugin, root, tmp_path):
    assert plugin.validate_file_access(root / "models/tiny/config.json")
    assert not plugin.validate_file_access("/etc/passwd")
    assert not plugin.validate_file_access(root / "models/tiny/../../README.md")
    assert plugin.validate_network_access("example.org") is False


def test_metadata_is_the_manifest(plugin, root):
    manifest = json.loads((root / "src/models/glm_4_7_flash/plugin_manifest.json").read_text(encoding="utf-8"))
    keys = """name version author description plugin_type dependencies compatibility model_architecture model_size
    required_memory_gb supported_modalities license tags model_family num_parameters test_coverage validation_passed
    main_class_path entry_point input_types output_types created_at updated_at""".split()
    assert sorted(manifest) == sorted(keys)
    assert set(PluginMetadata.__dataclass_fields__) <= set(manifest)
    assert plugin.metadata.plugin_type is PluginType.MODEL_COMPONENT
    assert plugin.metadata.num_parameters == manifest["num_parameters"] == 31_221_488_576
    assert manifest["required_memory_gb"] * 1e9 > 2 * manifest["num_parameters"]  # bf16
    for name, value in manifest.items():
        if name in PluginMetadata.__dataclass_fields__ and name != "plugin_type":
            assert getattr(plugin.metadata, name) == value
    module, _, cls = manifest["main_class_path"].rpartition(".")
    found = importlib.import_module(module)
    assert getattr(found, cls) is GLM_4_7_Flash_Plugin
    assert getattr(found, manifest["entry_point"]) is create_glm_4_7_flash_plugin
    version = (root / "CMakeLists.txt").read_text(encoding="utf-8").split("project(glint VERSION ")[1].split()[0]
    assert manifest["version"] == version


def test_package_exports(root):
    package = importlib.import_module("src.models.glm_4_7_flash")
    for name in package.__all__:
        assert inspect.isclass(getattr(package, name)) or callable(getattr(package, name))
    with pytest.raises(AttributeError):
        package.nothing  # noqa: B018
