"""GGUF files made with the public `gguf` package from the bundled model: Glint must give the same tokens as from the
safetensors. Also makes tests/data/gguf_blocks.gguf, against which the C++ decoders are tested:

    python tests/python/test_gguf.py tests/data/gguf_blocks.gguf
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf") if __name__ != "__main__" else __import__("gguf")

Q = gguf.GGMLQuantizationType
ROOT = Path(__file__).resolve().parents[2]
BLOCKS = "tests/data/gguf_blocks.gguf"
BLOCK_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
HALF_FIELDS = {  # byte offsets of the half-precision fields of a block
    "Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}  # fmt: skip


def write_blocks(path):
    """Random blocks of every type that Glint reads, and their values by gguf.quants."""
    random = np.random.default_rng(20)
    writer = gguf.GGUFWriter(str(path), "test")
    for name in BLOCK_TYPES:
        kind = Q[name]
        values, size = gguf.GGML_QUANT_SIZES[kind]
        rows, blocks = 3, 512 // values
        if name in HALF_FIELDS:
            data = random.integers(0, 256, (rows * blocks, size), dtype=np.uint8)
            for at in HALF_FIELDS[name]:
                scales = random.normal(0, 0.01, rows * blocks).astype(np.float16)
                scales[0] = np.float16(3e-7)  # subnormal
                data[:, at : at + 2] = scales[:, None].view(np.uint8)
            data = data.reshape(rows, blocks * size)
            expected = gguf.quants.dequantize(data, kind)
        else:
            expected = random.normal(0, 1, (rows, 512)).astype(np.float32)
            data = gguf.quants.quantize(expected, kind)
            expected = gguf.quants.dequantize(data, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
        writer.add_tensor(name + ".expected", np.ascontiguousarray(expected, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ---- the bundled model as a GGUF file ----


def read_checkpoint():
    """Every tensor of models/tiny as float32 (exact: they are bfloat16 or float32)."""
    tensors = {}
    for path in sorted((ROOT / "models/tiny").glob("*.safetensors")):
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        for name, t in json.loads(raw[8 : 8 + length]).items():
            if name == "__metadata__":
                continue
            begin, end = (8 + length + offset for offset in t["data_offsets"])
            if t["dtype"] == "BF16":
                bits = np.frombuffer(raw[begin:end], dtype="<u2").astype(np.uint32) << 16
                values = bits.view(np.float32)
            else:
                assert t["dtype"] == "F32"
                values = np.frombuffer(raw[begin:end], dtype="<f4")
            tensors[name] = values.reshape(t["shape"])
    return tensors


LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
    "eh_proj.weight": "nextn.eh_proj.weight",
    "enorm.weight": "nextn.enorm.weight",
    "hnorm.weight": "nextn.hnorm.weight",
    "shared_head.norm.weight": "nextn.shared_head_norm.weight",
    "embed_tokens.weight": "nextn.embed_tokens.weight",
    "shared_head.head.weight": "nextn.shared_head_head.weight",
}
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def converted(checkpoint, config, legacy=False, fused=False):
    """name -> float32 array, as llama.cpp's converter names and cuts them."""
    out = {NAMES[hf]: checkpoint[hf] for hf in NAMES}
    heads = config["num_attention_heads"]
    for layer in range(config["num_hidden_layers"] + 1):
        prefix, blk = f"model.layers.{layer}.", f"blk.{layer}."
        for hf, name in LAYER_NAMES.items():
            if prefix + hf in checkpoint:
                out[blk + name] = checkpoint[prefix + hf]
        kv_b = checkpoint[prefix + "self_attn.kv_b_proj.weight"]
        if legacy:
            out[blk + "attn_kv_b.weight"] = kv_b
        else:
            k, v = np.split(kv_b.reshape(heads, 448, 512), [192], axis=1)
            out[blk + "attn_k_b.weight"] = np.ascontiguousarray(k.transpose(0, 2, 1))
            out[blk + "attn_v_b.weight"] = np.ascontiguousarray(v)
        if prefix + "mlp.gate.weight" not in checkpoint:
            continue
        expert = {
            part: np.stack(
                [
                    checkpoint[f"{prefix}mlp.experts.{e}.{part}_proj.weight"]
                    for e in range(config["n_routed_experts"])
                ]
            )
            for part in ("gate", "up", "down")
        }
        out[blk + "ffn_down_exps.weight"] = expert["down"]
        if fused:
            out[blk + "ffn_gate_up_exps.weight"] = np.concatenate([expert["gate"], expert["up"]], axis=1)
        else:
            out[blk + "ffn_gate_exps.weight"] = expert["gate"]
            out[blk + "ffn_up_exps.weight"] = expert["up"]
    return out


def add_metadata(writer, config, tokenizer, without=()):
    c = config

    def add(method, key, value):
        if key not in without:
            getattr(writer, "add_" + method)(key, value)

    for key, value in {
        "block_count": c["num_hidden_layers"] + 1,
        "nextn_predict_layers": 1,
        "context_length": c["max_position_embeddings"],
        "embedding_length": c["hidden_size"],
        "feed_forward_length": c["intermediate_size"],
        "attention.head_count": c["num_attention_heads"],
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": c["q_lora_rank"],
        "attention.kv_lora_rank": 512,
        "attention.key_length": 576,
        "attention.value_length": 512,
        "attention.key_length_mla": 256,
        "attention.value_length_mla": 256,
        "leading_dense_block_count": 1,
        "expert_feed_forward_length": c["moe_intermediate_size"],
        "expert_count": c["n_routed_experts"],
        "expert_used_count": c["num_experts_per_tok"],
        "expert_shared_count": 1,
        "expert_group_count": 1,
        "expert_group_used_count": 1,
        "expert_gating_func": 2,
        "rope.dimension_count": 64,
        "vocab_size": c["vocab_size"],
    }.items():
        add("uint32", "deepseek2." + key, value)
    add("float32", "deepseek2.attention.layer_norm_rms_epsilon", 1e-5)
    add("float32", "deepseek2.rope.freq_base", 1e6)
    add("float32", "deepseek2.expert_weights_scale", 1.8)
    add("bool", "deepseek2.expert_weights_norm", True)
    vocab = [f"[PAD{i}]" for i in range(c["vocab_size"])]
    types = [5] * c["vocab_size"]
    for text, i in tokenizer["model"]["vocab"].items():
        vocab[i], types[i] = text, 1
    for t in tokenizer["added_tokens"]:
        vocab[t["id"]], types[t["id"]] = t["content"], 3 if t["special"] else 4
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("glm4")
    writer.add_token_list(vocab)
    writer.add_token_types(types)
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    for key, index in (("eos", 0), ("eot", 1), ("eom", 2)):
        add("uint32", f"tokenizer.ggml.{key}_token_id", c["eos_token_id"][index])


@pytest.fixture(scope="module")
def tiny():
    directory = ROOT / "models/tiny"
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    return read_checkpoint(), config, tokenizer


def make(path, tiny, kind, without=(), split=0, **form):
    """Writes the bundled model; matrices of type `kind`, F32 where its blocks do not fit."""
    checkpoint, config, tokenizer = tiny
    writer = gguf.GGUFWriter(str(path), "deepseek2", split_max_tensors=split)
    add_metadata(writer, config, tokenizer, without)
    for name, values in converted(checkpoint, config, **form).items():
        if values.ndim == 1 or "ffn_gate_inp" in name or values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] != 0:
            writer.add_tensor(name, np.ascontiguousarray(values))
        else:
            writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


GREEDY = {"temperature": 0, "max_tokens": 48}
PROMPTS = ("story", "wiki", "code", "tool")


def answers(path, golden):
    import glint

    with glint.Engine(path) as engine:
        assert engine.info["has_mtp"]
        return [engine.generate(golden[name]["text"], **GREEDY).ids for name in PROMPTS]


@pytest.fixture(scope="module")
def from_safetensors(golden):
    return answers(ROOT / "models/tiny", golden)


def test_block_fixture_is_current(tmp_path):
    write_blocks(tmp_path / "blocks.gguf")
    made = gguf.GGUFReader(str(tmp_path / "blocks.gguf"))
    kept = gguf.GGUFReader(str(ROOT / BLOCKS))
    assert [t.name for t in made.tensors] == [t.name for t in kept.tensors]
    for a, b in zip(made.tensors, kept.tensors):
        assert a.tensor_type == b.tensor_type and np.array_equal(a.data, b.data), a.name


# Every weight of the bundled model is a bfloat16 number: BF16 and F32 hold it exactly, and F16 all but those below 6e-5,
# which it rounds by 3e-8.
@pytest.mark.parametrize(
    ("kind", "form"),
    [("BF16", {}), ("F32", {"legacy": True}), ("F16", {"fused": True}), ("BF16", {"legacy": True, "fused": True})],
)
def test_same_tokens_as_the_checkpoint(tmp_path, tiny, golden, from_safetensors, kind, form):
    make(tmp_path / "model.gguf", tiny, Q[kind], **form)
    assert answers(tmp_path, golden) == from_safetensors


def mean_logprob(path, golden):
    """Nats a token that the model gives to the golden greedy continuations (teacher forcing)."""
    import glint

    with glint.Engine(path) as engine:
        total, n = 0.0, 0
        for name in PROMPTS:
            prompt = engine.encode(golden[name]["text"])
            scores = engine.score(list(prompt) + golden[name]["greedy_ids"])[len(prompt) - 1 :]
            total, n = total + float(sum(scores)), n + len(scores)
        return total / n


# Rounding costs likelihood: 8 bits next to nothing, 4 bits by plain rounding something, a wrong decoder several nats.
@pytest.mark.parametrize(("kind", "limit"), [("Q8_0", 0.005), ("Q4_0", 0.05)])
def test_block_types_load_and_answer(tmp_path, tiny, golden, kind, limit):
    make(tmp_path / "model.gguf", tiny, Q[kind])
    loss = mean_logprob(ROOT / "models/tiny", golden) - mean_logprob(tmp_path, golden)
    assert abs(loss) < limit


def test_missing_gating_function_means_sigmoid(tmp_path, tiny, golden, from_safetensors):
    without = ("deepseek2.expert_gating_func", "deepseek2.expert_weights_scale", "tokenizer.ggml.eot_token_id")
    make(tmp_path / "model.gguf", tiny, Q.BF16, without=without)
    assert answers(tmp_path, golden) == from_safetensors
    import glint

    with glint.Engine(tmp_path) as engine:
        assert engine.info["eos_ids"] == [8128, 8135, 8137]


def test_split_files(tmp_path, tiny, golden, from_safetensors):
    make(tmp_path / "m.gguf", tiny, Q.BF16, split=60)
    assert len(list(tmp_path.glob("m-0000*.gguf"))) > 1
    assert answers(tmp_path, golden) == from_safetensors


def test_types_that_are_not_read(tmp_path, tiny):
    import glint

    checkpoint, config, tokenizer = tiny
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(str(path), "deepseek2")
    add_metadata(writer, config, tokenizer)
    writer.add_tensor("token_embd.weight", np.zeros((8192, 84), dtype=np.uint8), raw_dtype=Q.Q2_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(glint.Error, match="token_embd.weight: found Q2_K, expected F32"):
        glint.Engine(tmp_path)


@pytest.mark.parametrize("kind", ["bf16", "q8_0", "q4_0", "q4_k"])
def test_exported_files_are_gguf(tmp_path, tiny, golden, from_safetensors, kind):
    """`glint export`, read by the public package and by Glint."""
    command = os.environ.get("GLINT_COMMAND", str(ROOT / "glint"))
    if not Path(command).exists():
        pytest.skip("no glint command: run make")
    path = tmp_path / "model.gguf"
    subprocess.run([command, "export", "-m", "models/tiny", "-o", path, "--type", kind], check=True, cwd=ROOT)
    reader = gguf.GGUFReader(str(path))
    wanted = converted(*tiny[:2])
    assert {t.name for t in reader.tensors} == set(wanted)
    worst = 0.0
    for t in reader.tensors:
        got = gguf.quants.dequantize(t.data, t.tensor_type).reshape(wanted[t.name].shape)
        error = np.sqrt(np.mean((got - wanted[t.name]) ** 2) / np.mean(wanted[t.name] ** 2))
        worst = max(worst, float(error))
    # As for normal values in tests/weights/gguf_test.cpp; trained rows have a little wider tails.
    assert worst <= {"bf16": 0, "q8_0": 0.01, "q4_0": 0.13, "q4_k": 0.12}[kind]
    if kind == "bf16":
        assert answers(tmp_path, golden) == from_safetensors


if __name__ == "__main__":
    write_blocks(sys.argv[1])
