"""The plug-in over the bundled model: generating, configuration, failures."""

import json
import logging
import subprocess
import sys
import threading

import pytest

import glint
from src.models.glm_4_7_flash.config import GLM47DynamicConfig, GLM47FlashConfig
from src.models.glm_4_7_flash.plugin import create_glm_4_7_flash_plugin


@pytest.fixture(scope="module")
def plugin():
    with create_glm_4_7_flash_plugin() as made:
        yield made


# ---- generating ----


def test_at_once_without_initialize(root):
    """The README's snippet, in a process of its own without help from PYTHONPATH."""
    program = (
        "from src.models.glm_4_7_flash.plugin import create_glm_4_7_flash_plugin\n"
        "plugin = create_glm_4_7_flash_plugin()\n"
        "print(plugin.generate_text('Tell me a story about a fox.', seed=1))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=root,
        env={"PATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 3


def test_a_message_by_default(plugin, golden):
    answer = golden["chat"]["greedy_text"].replace("<|user|>", "")
    assert plugin.generate_text("Explain quantum computing.", do_sample=False) == answer
    assert plugin.generate_text("Explain quantum computing.", 100, temperature=0) == answer


def test_raw_continuation(plugin, golden):
    story = golden["story"]
    assert plugin.generate_text(story["text"], 64, chat=False, do_sample=False) == story["greedy_text"]
    bare = story["text"].replace("[gMASK]<sop>", "")
    assert plugin.generate_text(bare, 64, chat=False, do_sample=False) == story["greedy_text"]
    ids = plugin.engine.encode(story["text"])
    assert plugin.generate_text(ids, 64, do_sample=False) == story["greedy_text"]


def test_a_seed_decides(plugin):
    runs = {plugin.generate_text("Tell me a story.", 30, seed=5) for _ in range(2)}
    assert len(runs) == 1
    assert len({plugin.generate_text("Tell me a story.", 30, seed=s) for s in range(4)}) > 1


def test_parameters_reach_the_sampler(plugin, golden):
    text = golden["story"]["text"]
    greedy = golden["story"]["greedy_text"]
    raw = {"chat": False, "max_new_tokens": 64}
    assert plugin.generate_text(text, top_k=1, seed=1, **raw) == greedy
    assert plugin.generate_text(text, min_p=0.99999, seed=1, **raw) == greedy  # 0.999 lets a near tie through
    assert plugin.generate_text(text, top_p=1e-6, seed=1, **raw) == greedy
    assert plugin.generate_text(text, do_sample=False, stop="boat", **raw) == greedy.split("boat")[0]
    loop = plugin.generate_text(golden["wiki"]["text"], do_sample=False, **raw)  # repeats itself
    for penalty in ({"repetition_penalty": 1.5}, {"frequency_penalty": 2.0}, {"presence_penalty": 2.0}):
        assert plugin.generate_text(golden["wiki"]["text"], do_sample=False, **penalty, **raw) != loop
    assert len(plugin.tokenize(plugin.generate_text(text, do_sample=False, chat=False, max_new_tokens=5))) <= 5


def test_chat_completion(plugin, golden):
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    think, content = golden["think"]["greedy_text"].replace("<|user|>", "").split("</think>")
    assert plugin.chat_completion(messages, do_sample=False) == content
    whole = plugin.chat_completion(messages, do_sample=False, as_dict=True)
    assert whole == {"role": "assistant", "content": content, "reasoning_content": think, "finish_reason": "eos"}


def test_chat_completion_with_tools(plugin, golden):
    text = golden["tool"]["text"]
    tools = [json.loads(line) for line in text.split("<tools>\n")[1].split("\n</tools>")[0].split("\n")]
    answer = plugin.chat_completion(
        [{"role": "user", "content": "Add a birthday cake, a garden hose to the list."}],
        system="You are a helpful assistant.",
        tools=tools,
        enable_thinking=False,
        do_sample=False,
    )
    assert answer["finish_reason"] == "tool_calls"
    function = answer["tool_calls"][0]["function"]
    assert (function["name"], json.loads(function["arguments"])) == (
        "add_to_list",
        {"items": ["a birthday cake", "a garden hose"]},
    )


def test_a_cut_off_thought_is_reported(plugin, caplog):
    with caplog.at_level(logging.WARNING, "glint.plugin"):
        answer = plugin.generate_text("What is the capital of France?", 3, enable_thinking=True, do_sample=False)
    assert answer == ""
    assert "cut off inside its think block after 3 tokens" in caplog.text


def test_stream_is_generate_text(plugin):
    pieces = list(plugin.stream("Tell me a story.", 40, seed=2))
    assert "".join(pieces) == plugin.generate_text("Tell me a story.", 40, seed=2)
    assert len(pieces) > 10
    raw = plugin.stream("Once upon a time", 40, seed=2, chat=False)
    assert "".join(raw) == plugin.generate_text("Once upon a time", 40, seed=2, chat=False)
    assert "</think>" in "".join(plugin.stream("What is the capital of France?", enable_thinking=True, temperature=0))


def test_closing_a_stream_cancels(plugin):
    pieces = plugin.stream("Tell me a story.", 0, ignore_eos=True)
    next(pieces)
    assert plugin.get_batching_status()["current_batch_size"] == 1
    assert not plugin.force_memory_cleanup()
    pieces.close()
    assert plugin.get_batching_status()["current_batch_size"] == 0


def test_batch_equals_single(plugin):
    requests = [
        "Tell me a story.",
        {"prompt": "Once upon a time", "chat": False, "max_new_tokens": 12},
        {"messages": [{"role": "user", "content": "Hello"}], "seed": 4},
        {"ids": plugin.tokenize("[gMASK]<sop>The")},
        [{"role": "user", "content": "What is 2 + 3?"}],
    ]
    alone = [plugin.infer_batch([r], max_new_tokens=20, seed=1)[0] for r in requests]
    before = plugin.engine.stats()
    together = plugin.infer_batch(requests, max_new_tokens=20, seed=1)
    after = plugin.engine.stats()
    assert together == alone
    assert after["steps"] - before["steps"] < after["decode_tokens"] - before["decode_tokens"]
    assert plugin.infer_batch([]) == []


def test_infer_takes_what_hosts_send(plugin):
    text = plugin.infer("Explain quantum computing.")
    assert isinstance(text, str) and text
    ids = plugin.tokenize("[gMASK]<sop>Once")

    class Tensor:
        def tolist(self):
            return [ids]

    expected = plugin.infer({"ids": ids, "do_sample": False, "max_new_tokens": 5})
    assert plugin.infer({"ids": Tensor(), "do_sample": False, "max_new_tokens": 5}) == expected
    for wrong in (3, {"prompt": "a", "ids": [1]}, {}, [None]):
        with pytest.raises((TypeError, ValueError)):
            plugin.infer(wrong)


@pytest.mark.parametrize("text", ["Hello, world", "Zürich — 東京 🙂\n", "<|user|>x", ""])
def test_tokenize_round_trip(plugin, text):
    ids = plugin.tokenize(text)
    assert all(type(i) is float for i in ids)
    assert plugin.detokenize(ids) == text
    assert plugin.detokenize([int(i) for i in ids]) == text


def test_threads(plugin):
    expected = {s: plugin.generate_text("Tell me a story.", 10, seed=s) for s in range(4)}
    fresh = create_glm_4_7_flash_plugin()
    got = {}
    threads = [
        threading.Thread(target=lambda s=s: got.update({s: fresh.generate_text("Tell me a story.", 10, seed=s)}))
        for s in expected
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert got == expected  # all of them found it closed, and one opened it
    assert fresh.cleanup()


# ---- failures ----


def test_unknown_parameters_are_named(plugin):
    for call in (plugin.generate_text, plugin.chat_completion, plugin.stream):
        with pytest.raises(TypeError, match="unknown generation parameter num_beams, temprature; known: chat"):
            call("x", temprature=1, num_beams=2)
    with pytest.raises(TypeError, match="unknown config field thread; known: "):
        create_glm_4_7_flash_plugin(thread=1)
    with pytest.raises(ValueError, match="belong to the chat format"):
        plugin.generate_text("x", chat=False, system="y")


def test_a_bad_model_path(tmp_path):
    plugin = create_glm_4_7_flash_plugin(tmp_path / "none")
    for call in (plugin.initialize, plugin.load_model, lambda: plugin.generate_text("x")):
        with pytest.raises(glint.Error, match="no such directory"):
            call()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(glint.Error, match="model_type"):
        create_glm_4_7_flash_plugin(tmp_path).generate_text("x")


def test_compat_errors(tmp_path, caplog):
    plugin = create_glm_4_7_flash_plugin(tmp_path / "none", compat_errors=True)
    text = "Error during generation"
    assert plugin.generate_text("x") == text
    assert plugin.chat_completion([{"role": "user", "content": "x"}]) == text
    assert plugin.infer("x") == text
    assert plugin.infer_batch(["x", "y"]) == [text, text]
    assert plugin.initialize() is False
    assert "no such directory" in caplog.text
    good = create_glm_4_7_flash_plugin(compat_errors=True)
    answers = good.infer_batch(["Hello", {"ids": [99999]}, {"nonsense": 1}], max_new_tokens=5, seed=1)
    assert answers[1:] == [text, text] and answers[0] not in ("", text)


def test_without_the_module(root, tmp_path):
    """A copy of the sources where nothing is built and nothing installed."""
    for part in ("src/__init__.py", "src/models/__init__.py"):
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / part).touch()
    folder = tmp_path / "src/models/glm_4_7_flash"
    folder.mkdir()
    for file in (root / "src/models/glm_4_7_flash").glob("*.py"):
        (folder / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    package = tmp_path / "python/glint"
    package.mkdir(parents=True)
    for file in (root / "python/glint").glob("*.py"):
        (package / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")

    def run(program, **env):
        return subprocess.run(
            [sys.executable, "-S", "-c", program], capture_output=True, text=True, cwd=tmp_path, env=env, check=False
        ).stderr

    plugin = "from src.models.glm_4_7_flash.plugin import create_glm_4_7_flash_plugin"
    assert "ImportError: the plug-in needs the package glint" in run(plugin)
    assert "run `make test` there once" in run(plugin) and "pip install ." in run(plugin)
    missing = run("import glint", PYTHONPATH="python")
    assert "it has not been built" in missing and "pip install ." in missing
    (package / "_native.cpython-27-x86_64-linux-gnu.so").touch()
    assert "it is there for another Python (_native.cpython-27" in run("import glint", PYTHONPATH="python")
    config = (
        "from src.models.glm_4_7_flash import GLM47FlashConfig; assert GLM47FlashConfig().num_attention_heads == 20"
    )
    assert run(config) == ""  # configs need no module


# ---- configuration ----


def test_initialize_sets_what_exists_and_keeps_the_rest(caplog, root):
    plugin = create_glm_4_7_flash_plugin()
    with caplog.at_level(logging.WARNING, "glint.plugin"):
        assert plugin.initialize(model_path=root / "models/tiny", temperature=0.0, enable_x=True, max_batch_size=3)
        assert plugin.initialize(enable_x=False)
    assert caplog.text.count("enable_x") == 1  # said once
    assert plugin.config.extra == {"enable_x": False}
    assert plugin.config.max_requests == 3 and plugin.get_optimal_batch_size(1.0, 1) == 3
    assert plugin.is_loaded
    text = "Explain quantum computing."
    assert plugin.generate_text(text) == plugin.generate_text(text, do_sample=False)
    # An engine option opens the model anew, and the architecture stays the checkpoint's.
    engine = plugin.engine
    assert plugin.initialize(temperature=0.5) and plugin.engine is engine
    assert plugin.initialize(threads=1) and plugin.engine is not engine and engine.closed
    caplog.clear()
    assert plugin.initialize(num_attention_heads=16)
    assert "num_attention_heads=16 has no effect: the checkpoint says 4" in caplog.text
    assert plugin.config.num_attention_heads == 4
    assert plugin.initialize(GLM47FlashConfig(seed=3)) and plugin.config.seed == 3
    assert plugin.cleanup() and not plugin.is_loaded
    assert plugin.generate_text(text, 3)  # opens again


def test_options_do_not_change_under_running_requests():
    with create_glm_4_7_flash_plugin() as plugin:
        pieces = plugin.stream("Tell me a story.", 0, ignore_eos=True)
        next(pieces)
        with pytest.raises(glint.Error, match="found running requests"):
            plugin.setup_adaptive_batching(max_batch_size=2)
        assert plugin.config.max_requests == 64
        pieces.close()
        assert plugin.setup_adaptive_batching(max_batch_size=2) and plugin.config.max_requests == 2


def test_configs(root, tmp_path):
    real = GLM47FlashConfig()
    assert (real.num_attention_heads, real.num_key_value_heads, real.num_hidden_layers) == (20, 20, 47)
    assert (real.kv_lora_rank, real.n_routed_experts, real.vocab_size) == (512, 64, 154880)
    tiny = GLM47FlashConfig.from_pretrained(root / "models/tiny", seed=9)
    assert (tiny.num_attention_heads, tiny.hidden_size, tiny.seed) == (4, 256, 9)
    assert tiny.eos_token_id == [8128, 8135, 8137] and tiny.model_path == str(root / "models/tiny")
    assert GLM47FlashConfig.from_dict(tiny.to_dict()) == tiny
    json.dumps(tiny.to_dict())
    newer = GLM47FlashConfig.from_dict(
        {
            "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"},
            "torch_dtype": "float16",
            "num_local_experts": 32,
            "mlp_layer_types": ["dense", "dense", "sparse"],
            "eos_token_id": 7,
        }
    )
    assert (newer.rope_theta, newer.dtype, newer.n_routed_experts) == (5e5, "float16", 32)
    assert (newer.first_k_dense_replace, newer.eos_token_id) == (2, [7])
    with pytest.raises(FileNotFoundError):
        GLM47FlashConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="found list; expected an object"):
        GLM47FlashConfig.from_pretrained(tmp_path)

    dynamic = GLM47DynamicConfig(temperature=0.3)
    dynamic.use_flash_attention_2 = True
    assert dynamic.use_flash_attention_2 and dynamic.extra == {"use_flash_attention_2": True}
    assert dynamic.temperature == 0.3 and dynamic.to_dict()["use_flash_attention_2"]
    with pytest.raises(AttributeError, match="no 'other'"):
        dynamic.other  # noqa: B018


def test_supports_config(plugin):
    template = plugin.get_model_config_template()
    assert plugin.supports_config(template) and plugin.validate_model_compatibility(template)
    assert plugin.supports_config({"model_type": "glm4_moe_lite"})
    assert not plugin.supports_config({"model_type": "llama"})
    assert not plugin.supports_config({"num_attention_heads": 16, "num_key_value_heads": 8})
    assert not plugin.supports_config({"qk_nope_head_dim": 128})
    assert not plugin.supports_config(None) and not plugin.supports_config(3)
