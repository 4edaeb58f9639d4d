"""Small random models, in memory or in a file of every format, and the plainest attention."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from adamas_core.llama import Config, Llama, huggingface, load, rope
from adamas_core.llama.gguf import TENSOR_NAMES as GGUF_NAMES
from adamas_core.llama.weights import Layer, Weights

# The fixture out_of: arguments of a command to its status, stdout and stderr.
OutOf = Callable[..., tuple[int, str, str]]

# Trained models and their texts, beside the repository.
MODELS = Path(__file__).resolve().parents[2] / "shared" / "data" / "models"
needs_models = pytest.mark.skipif(not MODELS.is_dir(), reason=f"{MODELS} is absent")


def peer(name):
    """A library to compare with. If it is absent the test is skipped, but fails in CI."""
    try:
        return import_module(name)
    except ImportError:
        if os.environ.get("CI"):
            raise
        pytest.skip(f'{name} is absent; it comes with the extra "peers"')


# A decoder in memory, and attention for it


class DenseAttention:
    """Causal softmax attention over all keys and values so far, the plainest cache there is.

    `windows` are those of a config; without them every layer sees all.
    """

    def __init__(self, windows=None):
        self.k, self.v = {}, {}
        self.windows = windows

    def __call__(self, layer, q, k, v):
        if layer in self.k:
            k = np.concatenate([self.k[layer], k], axis=1)
            v = np.concatenate([self.v[layer], v], axis=1)
        self.k[layer], self.v[layer] = k, v
        (H, L, D), (H_kv, S, _) = q.shape, k.shape
        k, v = np.repeat(k, H // H_kv, axis=0), np.repeat(v, H // H_kv, axis=0)
        logits = q.astype(np.float64) @ k.swapaxes(1, 2) * D**-0.5  # (H, L, S)
        behind = np.arange(S - L, S)[:, None] - np.arange(S)  # (L, S)
        window = self.windows and self.windows[layer]
        logits[:, (behind < 0) | (behind >= (window or S))] = -np.inf
        p = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return p @ v / p.sum(axis=-1, keepdims=True)


def tiny(
    heads=4, kv_heads=2, bias=False, qk_norm=False, post_norms=False, tied=False, seed=0, **changes
):
    """A decoder with random weights, large enough for attention and positions to matter."""
    rng = np.random.default_rng(seed)
    D, E, F, V = 6, 20, 28, 50
    sizes = {"layers": 2, "hidden": E, "ffn": F, "vocab": V, "context": 64, "norm_eps": 1e-5}
    sizes |= {"heads": heads, "kv_heads": kv_heads, "head_dim": D}
    sizes |= {"ropes": (rope.scaled_rope(D, 100.0),) * 2, "windows": (None, None)}

    def random(*shape):
        return rng.normal(0, 1.5 / math.sqrt(shape[-1]), shape).astype(np.float32)

    def norm(n):
        return (1 + random(n)).astype(np.float32)

    rows = (heads + 2 * kv_heads) * D
    layers = [
        Layer(
            attention_norm=norm(E),
            qkv=random(rows, E),
            qkv_bias=random(rows) if bias else None,
            q_norm=norm(D) if qk_norm else None,
            k_norm=norm(D) if qk_norm else None,
            out=random(E, heads * D),
            out_bias=random(E) if bias else None,
            attention_post_norm=norm(E) if post_norms else None,
            ffn_norm=norm(E),
            gate_up=random(2 * F, E),
            down=random(E, F),
            ffn_post_norm=norm(E) if post_norms else None,
        )
        for _ in range(2)
    ]
    embedding = random(V, E) * 4
    head = embedding if tied else random(V, E) * 4
    return Llama(Config(**(sizes | changes)), Weights(embedding, layers, norm(E), head))


def by_hand(model, tokens, position=0):
    """Logits (L, V) in float64: one token and one head at a time, RoPE by complex numbers."""
    c, w = model.config, model.weights
    D, F, G = c.head_dim, c.ffn, c.heads // c.kv_heads

    def norm(x, weight):
        if weight is None:
            return x
        return x / math.sqrt(sum(value**2 for value in x) / len(x) + c.norm_eps) * weight

    def rope(x, t, angles):
        turn = np.exp(1j * (position + t) * np.array(angles.frequencies))
        z = (x[: D // 2] + 1j * x[D // 2 :]) * turn * angles.gain
        return np.concatenate([z.real, z.imag])

    def gate(g):
        if c.activation == "silu":
            return g / (1 + np.exp(-g))
        return g / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3)))

    xs = [w.embedding[t].astype(np.float64) * c.embedding_scale for t in tokens]
    for layer, angles, window in zip(w.layers, c.ropes, c.windows, strict=True):
        q, k, v = [], [], []
        for t, x in enumerate(xs):
            row = layer.qkv.astype(np.float64) @ norm(x, layer.attention_norm)
            if layer.qkv_bias is not None:
                row = row + layer.qkv_bias
            heads = list(row.reshape(-1, D))
            qs, ks, vs = np.split(np.array(heads), [c.heads, c.heads + c.kv_heads])
            if layer.q_norm is not None:
                qs = [norm(x, layer.q_norm) for x in qs]
                ks = [norm(x, layer.k_norm) for x in ks]
            q.append([rope(x, t, angles) * c.query_scale for x in qs])
            k.append([rope(x, t, angles) for x in ks])
            v.append(vs)
        for t in range(len(xs)):
            out = []
            seen = range(0 if window is None else max(t + 1 - window, 0), t + 1)
            for h in range(c.heads):
                scores = np.array([q[t][h] @ k[s][h // G] for s in seen]) / math.sqrt(D)
                p = np.exp(scores - scores.max())
                out.append(sum(p[i] / p.sum() * v[s][h // G] for i, s in enumerate(seen)))
            y = layer.out.astype(np.float64) @ np.concatenate(out)
            if layer.out_bias is not None:
                y = y + layer.out_bias
            x = xs[t] + norm(y, layer.attention_post_norm)
            g = layer.gate_up.astype(np.float64) @ norm(x, layer.ffn_norm)
            y = layer.down.astype(np.float64) @ (gate(g[:F]) * g[F:])
            xs[t] = x + norm(y, layer.ffn_post_norm)
    return np.array([w.head.astype(np.float64) @ norm(x, w.norm) for x in xs])


def assert_close(found, expected, tolerance=1e-5):
    """Equal up to a tolerance relative to the largest expected value."""
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


# A small model in the words of a Hugging Face config.json

CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 61,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000.0,
    "tie_word_embeddings": False,
}
LINEAR = {"rope_type": "linear", "factor": 3.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
GEMMA3 = {
    "model_type": "gemma3_text",
    "num_hidden_layers": 4,
    "sliding_window": 9,
    "rope_local_base_freq": 50.0,
    "query_pre_attn_scalar": 8,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}
KINDS = ["sliding_attention", "full_attention"]

FAMILIES = {
    "llama": {"model_type": "llama"},
    "llama MHA": {"model_type": "llama", "num_key_value_heads": 4},
    "llama MQA": {"model_type": "llama", "num_key_value_heads": 1},
    "llama tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama biases": {"model_type": "llama", "attention_bias": True},
    "llama wide heads": {"model_type": "llama", "head_dim": 12},
    "llama linear": {"model_type": "llama", "rope_scaling": LINEAR},
    "llama llama3": {"model_type": "llama", "rope_scaling": LLAMA3},
    "llama yarn": {"model_type": "llama", "rope_scaling": YARN},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "mistral wide window": {"model_type": "mistral", "sliding_window": 128},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 16},
    "qwen2 tied yarn": {"model_type": "qwen2", "rope_scaling": YARN, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3"},
    "qwen3 yarn": {"model_type": "qwen3", "rope_scaling": YARN | {"attention_factor": 1.25}},
    "qwen3 tied": {"model_type": "qwen3", "tie_word_embeddings": True},
    "mistral window": {"model_type": "mistral", "sliding_window": 11},
    "qwen2 window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 1,
    },
    "qwen3 window": {
        "model_type": "qwen3",
        "use_sliding_window": True,
        "sliding_window": 7,
        "layer_types": KINDS,
    },
    "gemma3": GEMMA3 | {"num_hidden_layers": 7},
    "gemma3 layer types": GEMMA3 | {"layer_types": KINDS * 2},
    "gemma3 linear": GEMMA3 | {"layer_types": KINDS * 2, "rope_scaling": LINEAR},
    "gemma3 scale": GEMMA3 | {"layer_types": KINDS * 2, "query_pre_attn_scalar": 13},
    "gemma3 head": GEMMA3 | {"layer_types": KINDS * 2, "tie_word_embeddings": False},
}
TOKENS = [(7 * i + i * i) % 61 for i in range(40)]


def logits(path, tokens=TOKENS):
    """The logits (L, V) of the model in a file."""
    model = load(path)
    return model.forward(tokens, 0, DenseAttention(model.config.windows), last=False)


def shapes(config):
    """Name and shape of every tensor of a Hugging Face folder."""
    E, F, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    D = config["head_dim"]
    rows, kv_rows = config["num_attention_heads"] * D, config["num_key_value_heads"] * D
    found = {"model.embed_tokens.weight": (V, E), "model.norm.weight": (E,)}
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (V, E)
    for i in range(config["num_hidden_layers"]):
        here = {
            "input_layernorm.weight": (E,),
            "post_attention_layernorm.weight": (E,),
            "self_attn.q_proj.weight": (rows, E),
            "self_attn.k_proj.weight": (kv_rows, E),
            "self_attn.v_proj.weight": (kv_rows, E),
            "self_attn.o_proj.weight": (E, rows),
            "mlp.gate_proj.weight": (F, E),
            "mlp.up_proj.weight": (F, E),
            "mlp.down_proj.weight": (E, F),
        }
        if config["model_type"] == "qwen2" or config.get("attention_bias"):
            here |= {f"self_attn.{n}_proj.bias": (rows if n == "q" else kv_rows,) for n in "qkv"}
        if config.get("attention_bias"):
            here["self_attn.o_proj.bias"] = (E,)
        if config["model_type"] == "gemma3_text":
            here |= {f"{when}_feedforward_layernorm.weight": (E,) for when in ("pre", "post")}
        if config["model_type"] in ("qwen3", "gemma3_text"):
            here |= {"self_attn.q_norm.weight": (D,), "self_attn.k_norm.weight": (D,)}
        found |= {f"model.layers.{i}.{name}": shape for name, shape in here.items()}
    return found


def random_weights(shapes, seed=0):
    """Values with a spread that makes attention and positions matter.

    The weights of norms are near 1. In Gemma's folder they stand for 1 plus the weight.
    """
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes.items():
        values = rng.normal(0, 1.5 / math.sqrt(shape[-1]), shape)
        weights[name] = (values + ("norm" in name)).astype(np.float32)
    return weights


def without(weights, name):
    """The weights except one."""
    return {other: values for other, values in weights.items() if other != name}


# Writers of every format


def write_huggingface(folder, config, weights, dtype=np.float32):
    """A Hugging Face folder: config.json and model.safetensors."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: values.astype(dtype) for name, values in weights.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def gguf_name(name, gemma=False):
    """llama.cpp's name of a Hugging Face tensor."""
    table = huggingface.GEMMA3_NAMES if gemma else huggingface.TENSOR_NAMES
    names = {their.removesuffix(".weight"): our for our, their in table.items()}
    parts = name.split(".")
    layer = parts[2] if parts[1] == "layers" else None
    stem = ".".join("{}" if part == layer else part for part in parts[:-1])
    return GGUF_NAMES[names[stem]].format(layer).replace("weight", parts[-1])


def interleave(rows, head_dim):
    """Reorder the rows of q or k as llama.cpp's converter does for the architecture llama."""
    return rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(path, config, weights, kind="F32", extra=None, split_max_tensors=0):
    """A GGUF file as llama.cpp's converter makes it; `extra` holds more metadata and tensors.

    With `split_max_tensors` it is several files of at most that many tensors.
    """
    import gguf

    family = config["model_type"]
    arch = {"mistral": "llama", "gemma3_text": "gemma3"}.get(family, family)
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split_max_tensors)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    add_rope_scaling(writer, config)
    for name, value in (add_windows(config, arch) | (extra or {})).items():
        if isinstance(value, np.ndarray):
            writer.add_tensor(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        else:
            {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[
                type(value)
            ](name, value)
    quantization = gguf.GGMLQuantizationType[kind]
    for name, values in weights.items():
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            values = interleave(values, config["head_dim"])
        stored = gguf_name(name, arch == "gemma3")
        if values.ndim == 1:  # the converter keeps vectors float32
            less_one = arch == "gemma3" and "norm" in name
            writer.add_tensor(stored, values + np.float32(1) if less_one else values)
        else:
            packed = gguf.quants.quantize(values, quantization)
            writer.add_tensor(stored, packed, raw_dtype=quantization)
    return finish(writer, path)


def add_windows(config, arch):
    """The metadata of windows, and of Gemma 3's second RoPE and scale."""
    used = config.get("use_sliding_window", config["model_type"] in ("mistral", "gemma3_text"))
    found = {}
    if used and config.get("sliding_window"):
        found[f"{arch}.attention.sliding_window"] = config["sliding_window"]
        kinds = config.get("layer_types")
        if kinds is None and "max_window_layers" in config:
            first = config["max_window_layers"]
            kinds = [KINDS[i < first] for i in range(config["num_hidden_layers"])]
        if kinds is not None:
            flags = [kind == KINDS[0] for kind in kinds]
            found[f"{arch}.attention.sliding_window_pattern"] = flags
    if arch == "gemma3":
        found["gemma3.rope.freq_base_swa"] = config["rope_local_base_freq"]
        found["gemma3.attention.scale"] = config["query_pre_attn_scalar"] ** -0.5
    return found


def add_rope_scaling(writer, config):
    """The scaling of RoPE: for llama3 a tensor of divisors, for other kinds metadata."""
    import gguf

    scaling = config.get("rope_scaling")
    if scaling and scaling["rope_type"] == "llama3":
        plain = rope.scaled_rope(config["head_dim"], config["rope_theta"])[0]
        scaled = rope.scaled_rope(config["head_dim"], config["rope_theta"], scaling)[0]
        factors = np.divide(plain, scaled).astype(np.float32)
        writer.add_tensor("rope_freqs.weight", factors)
    elif scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling["rope_type"]))
        writer.add_rope_scaling_factor(scaling["factor"])
        if "original_max_position_embeddings" in scaling:
            writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])


def finish(writer, path):
    """Write all that a GGUFWriter was given."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_llama2c(path, config, weights):
    """A .bin file of llama2.c, first version."""
    N, V = config["num_hidden_layers"], config["vocab_size"]
    tied = config["tie_word_embeddings"]
    E, H = config["hidden_size"], config["num_attention_heads"]
    header = [E, config["intermediate_size"], N, H, config["num_key_value_heads"]]
    header += [V if tied else -V, config["max_position_embeddings"]]
    with path.open("wb") as file:
        file.write(struct.pack("<7i", *header))
        weights["model.embed_tokens.weight"].tofile(file)
        for name in (
            "input_layernorm",
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "post_attention_layernorm",
            "mlp.gate_proj",
            "mlp.down_proj",
            "mlp.up_proj",
        ):
            for i in range(N):
                values = weights[f"model.layers.{i}.{name}.weight"]
                if name.endswith(("q_proj", "k_proj")):
                    values = interleave(values, E // H)
                values.tofile(file)
        weights["model.norm.weight"].tofile(file)
        np.zeros(config["max_position_embeddings"] * E // H, np.float32).tofile(file)
        if not tied:
            weights["lm_head.weight"].tofile(file)
    return path


# A model that reads letters, for the command line

LETTERS_CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


def write_letters_model(folder):
    """The paths of a llama2.c model of LETTERS_CONFIG and of its tokenizer: bytes and letters."""
    model, tokenizer = folder / "model.bin", folder / "tokenizer.bin"
    write_llama2c(model, LETTERS_CONFIG, random_weights(shapes(LETTERS_CONFIG)))
    pieces = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{i:02X}>" for i in range(256))]
    pieces += [" ", *"abcdefghijklmnopqrstuvwxyz.,!?ABCDEFGHIJ"]
    with tokenizer.open("wb") as file:
        file.write(np.int32(7).tobytes())
        for i, piece in enumerate(pieces[:300]):
            text = piece.encode()
            file.write(np.float32(-i).tobytes() + np.int32(len(text)).tobytes() + text)
    return model, tokenizer
