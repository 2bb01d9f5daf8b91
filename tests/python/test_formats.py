"""Other programs' quantised checkpoints, made from the bundled model and compared with their own values.

Each test quantises the first layers and the head in one scheme, loads the checkpoint, and scores a text with the
reference backend; a second checkpoint holds the same values dequantised here, in float32. Both must give the same
log-probs but for the noise of fp32.

The packers are written here, in numpy, by the arithmetic that the formats document: the programs that own the formats
(llm-compressor with compressed-tensors, AutoAWQ, GPTQModel, bitsandbytes, modelopt) all need torch, gigabytes of it.
"""

import json
import re
import shutil
import struct
import subprocess

import numpy as np
import pytest

import glint

TEXT = "[gMASK]<sop>Once upon a time there was a little dragon who was afraid of the dark. Every night"
NUMPY = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "F8_E4M3": "u1", "I8": "i1", "U8": "u1", "I32": "<i4", "I64": "<i8"}
GROUP = 32  # columns; the experts' down_proj has 64
# Layers 0 to 2 and the head; everything else stays BF16, as mixed checkpoints in the wild.
QUANTISED = re.compile(r"(lm_head|model\.layers\.[0-2]\.(self_attn\.\w+_proj(_with_mqa)?|mlp\.(?!gate\.).*_proj))\.weight")


# ---- safetensors: tensors are (dtype name, array) ----


def read_model(directory):
    tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        for name, t in header.items():
            if name != "__metadata__":
                begin, end = (8 + length + o for o in t["data_offsets"])
                array = np.frombuffer(data[begin:end], NUMPY[t["dtype"]]).reshape(t["shape"])
                tensors[name] = (t["dtype"], array)
    return tensors


def write_model(directory, model_dir, tensors, quantization):
    directory.mkdir()
    shutil.copy(model_dir / "tokenizer.json", directory)
    config = json.loads((model_dir / "config.json").read_text())
    if quantization:
        config["quantization_config"] = quantization
    (directory / "config.json").write_text(json.dumps(config))
    header, blobs, offset = {}, [], 0
    # Wider types first: every tensor is aligned to its elements.
    for name, (dtype, array) in sorted(tensors.items(), key=lambda t: -np.dtype(NUMPY[t[1][0]]).itemsize):
        blob = np.ascontiguousarray(array, NUMPY[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + len(blob)]}
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(directory / "model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.writelines(blobs)


# ---- numbers ----


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bf16(x):
    """Bits, rounded to nearest even."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def f8_values():
    codes = np.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    value = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    return value.astype(np.float32)


F8 = f8_values()
F8_ALL = np.concatenate([F8, [np.nan], -F8, [np.nan]]).astype(np.float32)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], np.float32)  # fmt: skip


def nearest(values, x):
    """Index of the value nearest to x; values ascend."""
    return np.searchsorted((values[1:] + values[:-1]) / 2, x).astype(np.uint8)


def to_f8(x):
    return nearest(F8, np.minimum(np.abs(x), 448)) | (np.signbit(x).astype(np.uint8) << 7)


def to_e2m1(x):
    return nearest(E2M1, np.abs(x)) | (np.signbit(x).astype(np.uint8) << 3)


def from_e2m1(u):
    return np.where(u >= 8, -E2M1[u & 7], E2M1[u & 7])


def groups(w, size=GROUP):
    return w.reshape(w.shape[0], -1, size)


def absmax(w):
    return np.maximum(np.abs(w).max(axis=-1, keepdims=True), np.float32(1e-8))


def pack_words(codes, bits, axis, order=None):
    """Unsigned codes along `axis` into 32-bit words, the first in the lowest bits; order: which code comes i-th."""
    codes = np.moveaxis(codes, axis, -1).astype(np.uint32)
    n = 32 // bits
    codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % n)])
    codes = codes.reshape(*codes.shape[:-1], -1, n)
    words = np.zeros(codes.shape[:-1], np.uint32)
    for i, source in enumerate(order or range(n)):
        words |= codes[..., source] << np.uint32(bits * i)
    return np.moveaxis(words, -1, axis).view(np.int32)


def integers(w, bits, symmetric, scale_dtype):
    """codes [N, K] from 0, scales and zero points [N, K/g], values [N, K]."""
    g, top = groups(w), 2**bits - 1
    if symmetric:
        scale, zero = absmax(g) / (top / 2), np.full((*g.shape[:2], 1), 2 ** (bits - 1))
    else:
        low, high = np.minimum(g.min(-1, keepdims=True), 0), np.maximum(g.max(-1, keepdims=True), 0)
        scale = np.maximum(high - low, np.float32(1e-6)) / top
        zero = np.clip(np.rint(-low / scale), 1, top).astype(np.int64)
    scale = (from_bf16(to_bf16(scale)) if scale_dtype == "BF16" else scale.astype(np.float16).astype(np.float32))
    codes = np.clip(np.rint(g / scale) + zero, 0, top).astype(np.int64)
    values = scale * (codes - zero).astype(np.float32)
    return codes.reshape(w.shape), scale[..., 0], zero[..., 0], values.reshape(w.shape)


# ---- the formats: (base name, values) → tensors, dequantised values ----


def ct_fp8(base, w):
    scale = from_bf16(to_bf16(absmax(w) / 448))
    codes = to_f8(w / scale)
    return {".weight": ("F8_E4M3", codes), ".weight_scale": ("BF16", to_bf16(scale))}, F8_ALL[codes] * scale


def modelopt_fp8(base, w):
    scale = np.float32(np.abs(w).max() / 448)
    codes = to_f8(w / scale)
    one = np.array(scale, np.float32)
    tensors = {".weight": ("F8_E4M3", codes), ".weight_scale": ("F32", one), ".input_scale": ("F32", one)}
    return tensors, F8_ALL[codes] * scale


def block_fp8(base, w):
    n, k = w.shape
    full = np.zeros((-(-n // 128) * 128, -(-k // 128) * 128), np.float32)
    full[:n, :k] = w
    blocks = full.reshape(full.shape[0] // 128, 128, full.shape[1] // 128, 128)
    scale = np.maximum(np.abs(blocks).max(axis=(1, 3)), 1e-8).astype(np.float32) / np.float32(448)
    spread = np.repeat(np.repeat(scale, 128, 0), 128, 1)[:n, :k]
    codes = to_f8(w / spread)
    return {".weight": ("F8_E4M3", codes), ".weight_scale_inv": ("F32", scale)}, F8_ALL[codes] * spread


def ct_int8(base, w):
    scale = absmax(w) / np.float32(127.5)
    codes = np.clip(np.rint(w / scale), -128, 127).astype(np.int8)
    return {".weight": ("I8", codes), ".weight_scale": ("F32", scale)}, codes.astype(np.float32) * scale


def ct_int4(base, w, symmetric=True):
    codes, scale, zero, values = integers(w, 4, symmetric, "BF16")
    tensors = {
        ".weight_packed": ("I32", pack_words(codes, 4, 1)),
        ".weight_scale": ("BF16", to_bf16(scale)),
        ".weight_shape": ("I64", np.array(w.shape)),
    }
    if not symmetric:
        tensors[".weight_zero_point"] = ("I32", pack_words(zero, 4, 0))
    return tensors, values


def ct_int4_asymmetric(base, w):
    return ct_int4(base, w, symmetric=False)


def awq(base, w):
    codes, scale, zero, values = integers(w, 4, False, "F16")
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        ".qweight": ("I32", pack_words(codes.T, 4, 1, order)),
        ".qzeros": ("I32", pack_words(zero.T, 4, 1, order)),
        ".scales": ("F16", scale.T),
    }, values


def gptq_tensors(codes, scale, zero, g_idx):
    return {
        ".qweight": ("I32", pack_words(codes.T, 4, 0)),
        ".qzeros": ("I32", pack_words(zero.T - 1, 4, 1)),
        ".scales": ("F16", scale.T),
        ".g_idx": ("I32", g_idx),
    }


def gptq(base, w):
    codes, scale, zero, values = integers(w, 4, True, "F16")
    return gptq_tensors(codes, scale, zero, np.arange(w.shape[1]) // GROUP), values


def gptq_act_order(base, w):
    """Columns in the order of their norms share groups."""
    order = np.argsort(-np.square(w).sum(0), kind="stable")
    codes, scale, zero, values = integers(w[:, order], 4, False, "F16")
    back = np.argsort(order)
    return gptq_tensors(codes[:, back], scale, zero, back // GROUP), values[:, back]


def nvfp4(base, w, modelopt=False):
    g = groups(w, 16)
    top = np.float32(np.abs(w).max())
    # The scale of all scales: their largest becomes the largest FP8, 448.
    whole = top / np.float32(6 * 448) if modelopt else np.float32(6 * 448) / top
    scale = absmax(g) / 6
    codes8 = to_f8(scale / whole if modelopt else scale * whole)
    scale = F8_ALL[codes8] * whole if modelopt else F8_ALL[codes8] / whole
    codes = to_e2m1(g / np.maximum(scale, np.float32(1e-30)))
    values = (from_e2m1(codes) * scale).reshape(w.shape)
    codes = codes.reshape(w.shape)
    packed, codes8 = ("U8", codes[:, ::2] | codes[:, 1::2] << 4), ("F8_E4M3", codes8[..., 0])
    if modelopt:
        one = np.array(whole, np.float32)
        return {".weight": packed, ".weight_scale": codes8, ".weight_scale_2": ("F32", one)}, values
    one = np.array([whole], np.float32)
    return {".weight_packed": packed, ".weight_scale": codes8, ".weight_global_scale": ("F32", one),
            ".input_global_scale": ("F32", one)}, values  # fmt: skip


def modelopt_nvfp4(base, w):
    return nvfp4(base, w, modelopt=True)


def mxfp4(base, w):
    g = groups(w, 32)
    exponent = np.floor(np.log2(absmax(g))) - 2
    scale = np.exp2(exponent).astype(np.float32)
    codes = to_e2m1(np.clip(g / scale, -6, 6))
    values = (from_e2m1(codes) * scale).reshape(w.shape)
    codes = codes.reshape(w.shape)
    packed = codes[:, ::2] | codes[:, 1::2] << 4
    return {".weight_packed": ("U8", packed), ".weight_scale": ("U8", exponent[..., 0] + 127)}, values


def nf4(base, w):
    """bitsandbytes with double quantisation."""
    blocks = w.reshape(-1, 64)
    outer = absmax(blocks)[:, 0]
    offset = np.float32(outer.mean())
    padded = np.pad(outer - offset, (0, -len(outer) % 256)).reshape(-1, 256)
    nested = np.maximum(np.abs(padded).max(1), np.float32(1e-8)).astype(np.float32)
    book = np.sort(np.concatenate([[0, 1], np.linspace(-0.99, 0.99, 254)])).astype(np.float32)
    codes8 = nearest(book, (padded / nested[:, None]).ravel()[: len(outer)])
    scale = book[codes8] * np.repeat(nested, 256)[: len(outer)] + offset
    codes = nearest(NF4, blocks / scale[:, None])
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(w.shape), "nested_blocksize": 256,
             "nested_dtype": "float32", "nested_offset": float(offset)}  # fmt: skip
    flat = codes.ravel()
    return {
        ".weight": ("U8", (flat[::2] << 4 | flat[1::2])[:, None]),
        ".weight.absmax": ("U8", codes8),
        ".weight.quant_map": ("F32", NF4),
        ".weight.nested_absmax": ("F32", nested),
        ".weight.nested_quant_map": ("F32", book),
        ".weight.quant_state.bitsandbytes__nf4": ("U8", np.frombuffer(json.dumps(state).encode(), np.uint8)),
    }, (NF4[codes] * scale[:, None]).reshape(w.shape)


def bnb_int8(base, w):
    scb = absmax(w)
    codes = np.rint(w * (127 / scb)).astype(np.int8)
    return {".weight": ("I8", codes), ".SCB": ("F32", scb[:, 0])}, codes.astype(np.float32) * (scb / np.float32(127))


def compressed(fmt, **weights):
    return {"quant_method": "compressed-tensors", "format": fmt, "ignore": ["lm_head", "re:.*mlp.gate"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}  # fmt: skip


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "checkpoint_format": "gptq"}
# name: packer, quantization_config, scheme that `glint inspect` names
FORMATS = {
    "ct-fp8": (ct_fp8, compressed("float-quantized", num_bits=8, type="float"), "compressed-tensors fp8"),
    "ct-int8": (ct_int8, compressed("int-quantized", num_bits=8), "compressed-tensors int8"),
    "ct-int4": (ct_int4, compressed("pack-quantized", num_bits=4, group_size=GROUP), "compressed-tensors int4"),
    "ct-int4-asymmetric": (
        ct_int4_asymmetric,
        compressed("pack-quantized", num_bits=4, group_size=GROUP, symmetric=False),
        "compressed-tensors int4",
    ),
    "ct-nvfp4": (nvfp4, compressed("nvfp4-pack-quantized", num_bits=4, group_size=16), "compressed-tensors nvfp4"),
    "ct-mxfp4": (mxfp4, compressed("mxfp4-pack-quantized", num_bits=4, group_size=32), "compressed-tensors mxfp4"),
    "block-fp8": (block_fp8, {"quant_method": "fp8", "weight_block_size": [128, 128]}, "block fp8"),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}, "awq"),
    "gptq": (gptq, {**GPTQ, "sym": True, "desc_act": False}, "gptq"),
    "gptq-act-order": (gptq_act_order, {**GPTQ, "sym": False, "desc_act": True}, "gptq"),
    "bnb-nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes nf4"),
    "bnb-int8": (bnb_int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes int8"),
    "modelopt-nvfp4": (modelopt_nvfp4, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt nvfp4"),
    "modelopt-fp8": (modelopt_fp8, {"quant_method": "modelopt", "quant_algo": "FP8"}, "compressed-tensors fp8"),
}


def score(directory, device):
    with glint.Engine(directory, device=device) as engine:
        return np.array(engine.score(TEXT))


@pytest.fixture(scope="module")
def model(root):
    return read_model(root / "models/tiny")


@pytest.fixture(scope="module")
def plain_scores(root):
    return score(root / "models/tiny", "reference")


def convert(model, pack):
    """The quantised checkpoint's tensors, and the same values as floats."""
    quantised, floats = {}, {}
    for name, (dtype, array) in model.items():
        if not QUANTISED.fullmatch(name):
            quantised[name] = floats[name] = (dtype, array)
            continue
        base = name[: -len(".weight")]
        tensors, values = pack(base, from_bf16(array))
        assert values.dtype == np.float32 and values.shape == array.shape
        for suffix, tensor in tensors.items():
            quantised[base + suffix] = tensor
        floats[name] = ("F32", values)
    return quantised, floats


@pytest.mark.parametrize("name", FORMATS)
def test_scores_are_those_of_the_dequantised_values(name, root, model, plain_scores, tmp_path):
    pack, quantization, scheme = FORMATS[name]
    quantised, floats = convert(model, pack)
    write_model(tmp_path / "quantised", root / "models/tiny", quantised, quantization)
    write_model(tmp_path / "floats", root / "models/tiny", floats, None)
    found = score(tmp_path / "quantised", "reference")
    expected = score(tmp_path / "floats", "reference")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    # The quantisation did something, and little: a wrong nibble order scores like noise, ten nats a token.
    assert 1e-4 < np.abs(found - plain_scores).max()
    assert abs(found.mean() - plain_scores.mean()) < 0.5

    command = root / "glint"
    if command.exists():
        out = subprocess.run([command, "inspect", "--json", "-m", tmp_path / "quantised"], capture_output=True, check=True)
        report = json.loads(out.stdout)
        assert report["schemes"][scheme]["tensors"] == sum(bool(QUANTISED.fullmatch(n)) for n in model)
        assert report["unknown"]["tensors"] == 0
    shutil.rmtree(tmp_path / "quantised")
    shutil.rmtree(tmp_path / "floats")


def test_damage_is_named(root, model, tmp_path):
    quantised, _ = convert(model, ct_int4)
    base = "model.layers.1.mlp.experts.5.up_proj"

    def refused(name, change, *parts):
        tensors = dict(quantised)
        change(tensors)
        write_model(tmp_path / name, root / "models/tiny", tensors, FORMATS["ct-int4"][1])
        with pytest.raises(glint.Error) as error:
            glint.Engine(tmp_path / name, device="reference")
        for part in parts:
            assert part in str(error.value)
        shutil.rmtree(tmp_path / name)

    scale = base + ".weight_scale"
    refused("half", lambda t: t.pop(scale), scale, "no such tensor")
    refused("groups", lambda t: t.update({scale: ("BF16", t[scale][1][:, :7])}), scale, "7 groups a row")
    nan = quantised[scale][1].copy()
    nan[3, 1] = 0x7FC0
    refused("nan", lambda t: t.update({scale: ("BF16", nan)}), scale, "1 of 512 scales NaN or infinite")
    refused("scheme", lambda t: t.update({base + ".trellis": ("I32", np.zeros((2, 2)))}), base + ".trellis", "does not have")
