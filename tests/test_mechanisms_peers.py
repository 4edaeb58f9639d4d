"""The mechanisms against the layers of transformers: small random weights, outputs to 1e-5.

RoPE is turned off (cos = 1 and sin = 0), because the mechanisms come after it.
"""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
from mechanism_checks import draws, unit
from tiny_model import peer

from adamas_core.lab.mechanisms import (
    delta_rule,
    differential,
    dsa_indexer,
    gated_attention,
    kimi_delta,
    latent_attention,
    linear_attention,
    softmax_attention,
)
from adamas_core.lab.mechanisms.tokens import rms_norm, sigmoid

pytestmark = pytest.mark.peers
E, L = 24, 40


def model(name):
    """A module of transformers, or a skip where its version lacks the model."""
    torch = peer("torch")
    peer("transformers")
    torch.manual_seed(0)
    try:
        return (
            torch,
            import_module(f"transformers.models.{name}.modeling_{name}"),
            import_module(f"transformers.models.{name}.configuration_{name}"),
        )
    except ImportError:
        pytest.skip(f"this transformers has no {name}")


def near(ours, theirs):
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5, atol=1e-5)


def no_rope(torch, width):
    return torch.ones(1, L, width), torch.zeros(1, L, width)


def causal_mask(torch):
    return torch.full((L, L), -torch.inf).triu(1)[None, None]


def hidden(torch):
    """Hidden states (1, L, E) for both sides."""
    x = torch.randn(1, L, E)
    return x, x.numpy().astype(np.float64)


def matrix(linear):
    """The matrix (in, out) of a linear layer."""
    return linear.weight.detach().numpy().astype(np.float64).T


def heads(x, count):
    """(1, L, heads D) as (heads, L, D)."""
    return x[0].reshape(L, count, -1).swapaxes(0, 1)


def joined(out):
    """(H, L, D) as (1, L, H D)."""
    return out.swapaxes(0, 1).reshape(1, L, -1)


@pytest.mark.parametrize("name", ["chunk", "recurrent"])
def test_gated_delta_net_of_qwen3_next(name):
    torch, theirs, _ = model("qwen3_next")
    q, k, v, alpha, beta = draws(0, (3, L, 8), (3, L, 8), (3, L, 6), (3, L), (3, L))
    k, alpha, beta = unit(k), sigmoid(3 + alpha), sigmoid(beta)
    given = [torch.tensor(x.swapaxes(0, 1)[None]).float() for x in (q, k, v, np.log(alpha), beta)]
    function = getattr(theirs, f"torch_{name}_gated_delta_rule")
    out, state = function(*given, output_final_state=True)
    inputs = q * 8**-0.5, k, v, alpha, beta
    for form in (delta_rule.parallel, delta_rule.chunked):
        near(joined(form(*inputs)), out.reshape(1, L, -1))
    near(delta_rule.start(*inputs[1:]).S, state[0])


@pytest.mark.parametrize("name", ["chunk", "recurrent"])
def test_kimi_delta_attention(name):
    torch, theirs, _ = model("kimi_linear")
    q, k, v, alpha, beta = draws(0, (3, L, 8), (3, L, 8), (3, L, 6), (3, L, 8), (3, L))
    k, alpha, beta = unit(k), sigmoid(3 + alpha), sigmoid(beta)
    given = [torch.tensor(x.swapaxes(0, 1)[None]).float() for x in (q, k, v, np.log(alpha), beta)]
    function = getattr(theirs, f"{name}_kimi_delta_attention")
    out, state = function(*given, initial_state=None, output_final_state=True)
    inputs = q * 8**-0.5, k, v, alpha, beta
    near(joined(kimi_delta.chunked(*inputs)), out.reshape(1, L, -1))
    near(kimi_delta.start(*inputs[1:]).S, state[0])


def test_gated_attention_of_qwen3_next():
    torch, theirs, settings = model("qwen3_next")
    config = settings.Qwen3NextConfig(
        hidden_size=E, num_attention_heads=4, num_key_value_heads=2, head_dim=8
    )
    config._attn_implementation = "eager"
    layer = theirs.Qwen3NextAttention(config, 0)
    x, y = hidden(torch)
    out, _ = layer(x, no_rope(torch, 8), causal_mask(torch))
    q, g = np.split(heads(y @ matrix(layer.q_proj), 4), 2, axis=-1)
    k, v = heads(y @ matrix(layer.k_proj), 2), heads(y @ matrix(layer.v_proj), 2)
    ours = gated_attention.parallel(rms_norm(q, 1e-6), rms_norm(k, 1e-6), v, g)
    near(joined(ours) @ matrix(layer.o_proj), out)


def test_latent_attention_of_deepseek_v3():
    torch, theirs, settings = model("deepseek_v3")
    config = settings.DeepseekV3Config(
        hidden_size=E,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=None,
        kv_lora_rank=10,
        qk_rope_head_dim=4,
        qk_nope_head_dim=6,
        v_head_dim=7,
        rope_interleave=False,
    )
    config._attn_implementation = "eager"
    layer = theirs.DeepseekV3Attention(config, 0)
    x, y = hidden(torch)
    out, _ = layer(x, no_rope(torch, 4), causal_mask(torch))
    q, q_rope = np.split(heads(y @ matrix(layer.q_proj), 4), [6], axis=-1)
    c, k_rope = np.split(y @ matrix(layer.kv_a_proj_with_mqa), [10], axis=-1)
    up = matrix(layer.kv_b_proj).reshape(10, 4, 13).swapaxes(0, 1)  # (H, D_c, D + D_v)
    weights = latent_attention.Weights(*np.split(up, [6], axis=-1))
    for form in (latent_attention.parallel, latent_attention.absorbed):
        ours = form(q, q_rope, rms_norm(c, 1e-6), k_rope, weights)
        near(joined(ours) @ matrix(layer.o_proj), out)


def test_the_indexer_of_deepseek_v32():
    torch, theirs, settings = model("deepseek_v32")
    config = settings.DeepseekV32Config(
        hidden_size=E, q_lora_rank=12, index_n_heads=3, index_head_dim=8, qk_rope_head_dim=4
    )
    config.index_topk = 9
    layer = theirs.DeepseekV32Indexer(config, 0)
    x, y = hidden(torch)
    low = torch.randn(1, L, 12)
    indices = layer(x, low, no_rope(torch, 4), causal_mask(torch)[0], None)[0].numpy()
    q_index = heads(low.numpy() @ matrix(layer.wq_b), 3)
    k = y @ matrix(layer.wk)
    k = k - k.mean(axis=-1, keepdims=True)
    k_index = k / np.sqrt((k**2).mean(axis=-1, keepdims=True) + 1e-6)
    w = heads(y @ matrix(layer.weights_proj), 3)[..., 0] * 3**-0.5 * 8**-0.5
    scores = dsa_indexer.index(q_index, k_index, w)
    mask = dsa_indexer.chosen(scores, 9)
    for t in range(8, L):
        assert indices[t].max() <= t
        # Tokens that no indexer head scores above 0 have equal scores, so compare these.
        ours, theirs = np.sort(scores[t][mask[t]]), np.sort(scores[t][indices[t]])
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_differential_attention_of_diffllama():
    torch, theirs, settings = model("diffllama")
    config = settings.DiffLlamaConfig(
        hidden_size=E, num_attention_heads=8, num_key_value_heads=4, head_dim=6
    )
    config._attn_implementation = "eager"
    layer = theirs.DiffLlamaAttention(config, 2)
    x, y = hidden(torch)
    out, _ = layer(x, no_rope(torch, 6), causal_mask(torch))
    q, k = heads(y @ matrix(layer.q_proj), 8), heads(y @ matrix(layer.k_proj), 4)
    v = np.concatenate(np.split(heads(y @ matrix(layer.v_proj), 4), 2), axis=-1)  # (2, L, 12)
    vectors = (layer.lambda_q1, layer.lambda_k1, layer.lambda_q2, layer.lambda_k2)
    vectors = [vector.detach().numpy().astype(np.float64) for vector in vectors]
    lam = differential.lambda_of(*vectors, layer.lambda_init)
    ours = differential.difference(q, k, v, lam)
    ours = (1 - layer.lambda_init) * rms_norm(ours, config.rms_norm_eps)
    near(joined(ours) @ matrix(layer.o_proj), out)


def test_lightning_attention_of_minimax():
    torch, theirs, settings = model("minimax")
    config = settings.MiniMaxConfig(
        hidden_size=E, num_attention_heads=4, head_dim=6, block_size=16, num_hidden_layers=3
    )
    layer = theirs.MiniMaxLightningAttention(config, 1)
    x, y = hidden(torch)
    out = layer(x, no_rope(torch, 6), None)[0]
    qkv = y @ matrix(layer.qkv_proj)
    q, k, v = np.split(heads(qkv * sigmoid(qkv), 4), 3, axis=-1)
    decay = np.exp(-layer.slope_rate.numpy().astype(np.float64)[:, 0, 0])
    for form in (linear_attention.parallel, linear_attention.chunked):
        ours = rms_norm(joined(form(q, k, v, decay, False)), 1e-6)
        ours = sigmoid(y @ matrix(layer.output_gate)) * ours
        near(ours @ matrix(layer.out_proj), out)


@pytest.mark.parametrize("H_kv", [4, 2, 1])
def test_softmax_attention_of_torch(H_kv):
    torch = peer("torch")
    q, k, v = draws(0, (4, L, 8), (H_kv, L, 8), (H_kv, L, 8))
    given = [torch.tensor(x) for x in (q, k, v)]
    attention = torch.nn.functional.scaled_dot_product_attention
    near(softmax_attention.parallel(q, k, v), attention(*given, is_causal=True, enable_gqa=True))
