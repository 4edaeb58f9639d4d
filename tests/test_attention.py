"""transformers with attn_implementation="adamas": small random models, and caches that change."""

from __future__ import annotations

import copy
import gc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import printed

torch = pytest.importorskip("torch", reason='needs the extra "transformers"')
hf = pytest.importorskip("transformers", reason='needs the extra "transformers"')
pytest.importorskip("ml_dtypes", reason='needs the extra "transformers"')

from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: E402

from adamas_core import KVCache, Selection, decode_attention  # noqa: E402
from adamas_core.transformers import attention, register  # noqa: E402

pytestmark = pytest.mark.peers
PROMPT, NEW, BUDGET = 150, 12, 40
ALL = 10**6
SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
NOT_SDPA = ["gemma2", "gpt-oss"]  # a soft cap, and sinks
GPT_OSS = {
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
DEEPSEEK = {  # keys have a head_dim of 24, values one of 20
    "head_dim": 8,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 2,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
CACHES = {"dynamic": {}, "static": {"cache_implementation": "static"}}


@pytest.fixture(autouse=True, scope="module")
def names():
    """Attention of every kind that the tests ask for, and one thread for tiny matrices."""
    register(BUDGET)
    register(ALL, name="adamas-all")
    register(BUDGET, Selection(tail=0), name="adamas-pure")
    register(120, name="adamas-most")
    register(120, Selection(tail=0), name="adamas-most-pure")
    register(BUDGET, draft=6, name="adamas-draft")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def model(family, layers=2):
    torch.manual_seed(0)
    sizes = SIZES | {"num_hidden_layers": layers}
    if family == "llama":
        return hf.LlamaForCausalLM(hf.LlamaConfig(**sizes)).eval()
    if family == "qwen3":
        return hf.Qwen3ForCausalLM(hf.Qwen3Config(**sizes)).eval()
    if family == "deepseek":
        return hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(**sizes | DEEPSEEK)).eval()
    sizes |= {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 32}
    if family == "gpt-oss":
        net = hf.GptOssForCausalLM(hf.GptOssConfig(**sizes | GPT_OSS)).eval()
        for layer in net.model.layers:
            torch.nn.init.normal_(layer.self_attn.sinks, mean=1.0)
        return net
    sizes |= {"query_pre_attn_scalar": 16}
    if family == "gemma2":
        return hf.Gemma2ForCausalLM(hf.Gemma2Config(**sizes, attn_logit_softcapping=2.0)).eval()
    return hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**sizes)).eval()


def prompt(B=1, padding=0, seed=1):
    """Tokens (B, PROMPT) and their mask; the first sequence has padding in front."""
    ids = torch.randint(1, 256, (B, PROMPT), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    ids[0, :padding], mask[0, :padding] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def generated(net, name, inputs, **options):
    """New tokens (B, NEW) and their logits (NEW, B, V), greedily."""
    net.set_attn_implementation(name)
    given = {"max_new_tokens": NEW, "do_sample": False, "output_logits": True}
    out = net.generate(**inputs, **given | options, return_dict_in_generate=True)
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("padding", [None, 0, 37])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3", "gpt-oss", "deepseek"])
def test_greedy_text(family, padding, cache):
    """That of dense attention where the budget covers all, and close logits where it does not."""
    net = model(family)
    inputs = prompt() if padding is None else prompt(3, padding)
    text, logits = generated(net, "eager" if family in NOT_SDPA else "sdpa", inputs)
    found, near = generated(net, "adamas-all", inputs, **CACHES[cache])
    assert torch.equal(found, text)
    torch.testing.assert_close(near, logits, atol=1e-4, rtol=1e-4)
    errors = []
    for name in ("adamas-most", "adamas-most-pure"):
        _, near = generated(net, name, inputs, **CACHES[cache])
        errors.append(float((near[1] - logits[1]).abs().max() / logits[1].std()))
    assert 1e-6 < errors[0] < errors[1] < 0.5
    assert errors[0] < 0.1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-oss"])
def test_half_precision(dtype, family, cache):
    net = model(family).to(getattr(torch, dtype))
    dense = "eager" if family in NOT_SDPA else "sdpa"
    _, logits = generated(net, dense, prompt(2, 20), **CACHES[cache])
    _, near = generated(net, "adamas", prompt(2, 20), **CACHES[cache])
    assert near.dtype == logits.dtype
    assert float((near[1] - logits[1]).abs().max() / logits[1].float().std()) < 0.2


def test_inference_mode_counts_no_writes():
    net = model("llama")
    for options in CACHES.values():
        expected = generated(net, "adamas", prompt(2, 20), **options)
        with torch.inference_mode():
            found = generated(net, "adamas", prompt(2, 20), **options)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-oss"])
def test_a_prompt_in_chunks(family):
    net = model(family)
    _, logits = generated(net, "eager" if family in NOT_SDPA else "sdpa", prompt(2, 37))
    for options in CACHES.values():
        _, near = generated(net, "adamas-all", prompt(2, 37), prefill_chunk_size=64, **options)
        torch.testing.assert_close(near, logits, atol=1e-4, rtol=1e-4)
        _, near = generated(net, "adamas", prompt(2, 37), prefill_chunk_size=64, **options)
        whole = generated(net, "adamas", prompt(2, 37), **options)[1]
        torch.testing.assert_close(near, whole, atol=1e-4, rtol=1e-4)


def test_beams():
    net = model("llama")
    beams = {"num_beams": 3, "output_logits": False, "return_dict_in_generate": True}
    for name in ("sdpa", "adamas-all", "adamas"):
        net.set_attn_implementation(name)
        out = net.generate(**prompt(2, 37), max_new_tokens=NEW, do_sample=False, **beams)
        if name == "sdpa":
            expected = out
    assert out.sequences.shape == expected.sequences.shape
    net.set_attn_implementation("adamas-all")
    found = net.generate(**prompt(2, 37), max_new_tokens=NEW, do_sample=False, **beams)
    assert torch.equal(found.sequences, expected.sequences)


@pytest.mark.parametrize("name", ["adamas", "adamas-draft"])
def test_a_draft_is_verified(name):
    """Assisted decoding crops the cache after each rejected draft."""
    net, assistant = model("llama"), model("llama", layers=1)
    text, _ = generated(net, "sdpa", prompt())
    assistant.set_attn_implementation(name)
    found, _ = generated(net, "adamas-all", prompt(), assistant_model=assistant)
    assert torch.equal(found, text)
    sparse, _ = generated(net, name, prompt(), assistant_model=assistant)
    assert torch.equal(sparse[:, :1], text[:, :1])


@pytest.mark.parametrize("family", ["gemma3", "gemma2", "gpt-oss"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_as_one_graph(backend, family, padding=37):
    """By backends that compile no C++. The keys of aot_eager are new arrays in each step."""
    net = model(family)
    expected = generated(net, "adamas", prompt(2, padding), **CACHES["static"])
    config = hf.CompileConfig(fullgraph=True, backend=backend, mode=None)
    config._compile_all_devices = True
    all_known, follow = [], attention.Followed.follow

    def spy(self, k, v, known):
        all_known.append(known)
        follow(self, k, v, known)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention.Followed, "follow", spy)
        found = generated(
            net, "adamas", prompt(2, padding), compile_config=config, **CACHES["static"]
        )
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], atol=1e-4, rtol=1e-4)
    # The first step of both sequences is compared with the codes that `expected` left.
    assert set(all_known[2:]) == {backend == "eager"}
    torch._dynamo.reset()


# The attention function by itself, against the library, and over caches that change


class Module(torch.nn.Module):
    is_causal = True
    num_key_value_groups = 2


B, H, H_KV, D, ROOM = 2, 4, 2, 16, 256


def normal(*shape):
    return torch.randn(*shape)


def call(q, k, v, mask=None, name="adamas", module=None, **options):
    function = hf.AttentionInterface()[name]
    out, weights = function(module or Module(), q, k, v, mask, scaling=0.3, **options)
    assert weights is None
    return out


@pytest.mark.parametrize("name, tail", [("adamas", None), ("adamas-pure", 0)])
@pytest.mark.parametrize("starts", [[0, 0], [0, 70], [200, 5]])
def test_a_step_is_that_of_the_library(starts, name, tail):
    """Each sequence from its first token on, as a KVCache of that sequence alone gives it."""
    torch.manual_seed(0)
    q, k, v = normal(B, H, 1, D), normal(B, H_KV, 230, D), normal(B, H_KV, 230, D)
    mask = (torch.arange(230) >= torch.tensor(starts)[:, None])[:, None, None]
    out = call(q, k, v, mask, name)
    for b, start in enumerate(starts):
        cache = KVCache(selection=Selection(tail=tail))
        cache.append(k[b : b + 1, :, start:], v[b : b + 1, :, start:])
        one = decode_attention(q[b : b + 1], cache, BUDGET, scale=0.3)
        if 230 - start <= BUDGET:
            torch.testing.assert_close(out[b], one[0].transpose(0, 1))
        else:
            torch.testing.assert_close(out[b], one[0].transpose(0, 1), atol=2e-6, rtol=0)


def test_several_tokens_are_a_step_only_where_drafts_are_allowed():
    torch.manual_seed(0)
    q, k, v = normal(1, H, 5, D), normal(1, H_KV, 230, D), normal(1, H_KV, 230, D)
    mask = torch.arange(230) <= torch.arange(225, 230)[:, None]
    dense = sdpa_attention_forward(Module(), q, k, v, mask[None, None], scaling=0.3)[0]
    assert torch.equal(call(q, k, v, mask[None, None]), dense)
    out = call(q, k, v, mask[None, None], "adamas-draft")
    cache = KVCache()
    cache.append(k, v)
    expected = decode_attention(q, cache, BUDGET, scale=0.3)[0].transpose(0, 1)
    torch.testing.assert_close(out[0], expected, atol=2e-6, rtol=0)
    assert not torch.allclose(out, dense, atol=1e-4)


DENSE = {
    "a hole in the mask": {"mask": torch.arange(230).ne(7)[None, None, None].expand(B, 1, 1, 230)},
    "a mask per head": {"mask": torch.ones(B, H, 1, 230, dtype=torch.bool)},
    "a bias": {"mask": torch.linspace(-1, 0, 230).expand(B, 1, 1, 230)},
    "a window": {"sliding_window": 100},
    "no causal mask": {"is_causal": False},
    "a position bias": {"position_bias": torch.linspace(-1, 0, 230).expand(1, H, 1, 230)},
}


@pytest.mark.parametrize("case", DENSE)
def test_what_is_dense(case):
    torch.manual_seed(0)
    q, k, v = normal(B, H, 1, D), normal(B, H_KV, 230, D), normal(B, H_KV, 230, D)
    options = dict(DENSE[case])
    mask = options.pop("mask", None)
    expected = sdpa_attention_forward(Module(), q, k, v, mask, scaling=0.3, **options)[0]
    assert torch.equal(call(q, k, v, mask, **options), expected)
    assert not torch.equal(call(q, k, v), expected)


def test_gradients_and_dropout_are_dense():
    torch.manual_seed(0)
    q, k, v = normal(B, H, 1, D), normal(B, H_KV, 230, D), normal(B, H_KV, 230, D)
    for x in (q, k, v):
        x.requires_grad_()
        call(q, k, v).sum().backward()
        assert x.grad is not None and bool(x.grad.any())
        x.requires_grad_(False)
    assert float((call(q, k, v, dropout=0.5) == 0).sum()) == 0


@pytest.mark.parametrize("name, tail", [("adamas", None), ("adamas-pure", 0)])
@pytest.mark.parametrize("Dv", [D, 7])
@pytest.mark.parametrize("softmax", [{}, {"soft_cap": 0.7}, {"sink_logits": [1.0, 3.0, -1.0, 2.0]}])
def test_caps_sinks_and_values_of_their_own_head_dim(softmax, Dv, name, tail):
    """A step is that of the library, and a parameter that could have gradients may be the sinks."""
    torch.manual_seed(0)
    q, k, v = normal(B, H, 1, D), normal(B, H_KV, 230, D), normal(B, H_KV, 230, Dv)
    sinks = softmax.get("sink_logits")
    options = {
        "softcap": softmax.get("soft_cap"),
        "s_aux": None if sinks is None else torch.nn.Parameter(torch.tensor(sinks)),
    }
    with torch.no_grad():
        out = call(q, k, v, name=name, **options)
    cache = KVCache(selection=Selection(tail=tail))
    cache.append(k, v)
    expected = decode_attention(q, cache, BUDGET, scale=0.3, **softmax)
    assert out.shape == (B, 1, H, Dv)
    torch.testing.assert_close(out, expected.transpose(1, 2), atol=2e-6, rtol=0)


def test_other_values_at_the_place_of_a_layer():
    """Codes of values with another head_dim are not those of these values."""
    torch.manual_seed(0)
    q, k, module = normal(1, H, 1, D), normal(1, H_KV, 99, D), Module()
    for Dv in (7, D, 9):
        v = normal(1, H_KV, 99, Dv)
        assert torch.equal(call(q, k, v, module=module), call(q, k, v))


SPECIAL = {"softcap": {"softcap": 50.0}, "s_aux": {"s_aux": torch.zeros(H)}}


@pytest.mark.parametrize("special", SPECIAL)
def test_what_is_refused_with_a_cap_or_sinks(special):
    options = SPECIAL[special]
    q, k = normal(1, H, 1, D), normal(1, H_KV, 60, D)
    with pytest.raises(ValueError, match=r"dropout=0\.1 with softcap or s_aux; expected dropout=0"):
        call(q, k, k, dropout=0.1, **options)
    with pytest.raises(ValueError, match="position_bias with softcap or s_aux; expected none"):
        call(q, k, k, position_bias=torch.zeros(1, H, 1, 60), **options)
    with pytest.raises(ValueError, match=r"gradients with softcap or s_aux; expected a call under"):
        call(q.requires_grad_(), k, k, **options)
    with torch.no_grad():
        call(q, k, k, **options)


def test_sinks_that_ask_for_gradients_are_refused():
    q, k = normal(1, H, 1, D), normal(1, H_KV, 60, D)
    with pytest.raises(ValueError, match=r"gradients with softcap or s_aux"):
        call(q, k, k, s_aux=torch.nn.Parameter(torch.zeros(H)))


def test_weights_are_refused():
    k = normal(1, H_KV, 60, D)
    with pytest.raises(ValueError, match="adamas attention: output_attentions=True; expected"):
        call(normal(1, H, 1, D), k, k, output_attentions=True)
    call(normal(1, H, 1, D), k, k, output_attentions=None)


class Conversation:
    """A cache of transformers, and attention over it: with codes, and with codes made anew."""

    def __init__(self, kind, name):
        config = hf.LlamaConfig(**SIZES | {"num_hidden_layers": 1})
        self.cache = (
            hf.DynamicCache() if kind == "dynamic" else hf.StaticCache(config, max_cache_len=ROOM)
        )
        self.kind, self.name, self.module = kind, name, Module()
        self.length = 0

    def add(self, n, values=None):
        """Write n random tokens; the keys and values of all tokens, and the mask."""
        new = normal(B, H_KV, n, D)
        k, v = self.cache.update(new, normal(B, H_KV, n, D) if values is None else values, 0)
        self.length += n
        seen = torch.arange(k.shape[2]) <= torch.arange(self.length - n, self.length)[:, None]
        return k, v, seen[None, None].expand(B, 1, n, -1)

    def step(self):
        q = normal(B, H, 1, D)
        k, v, mask = self.add(1)
        found = call(q, k, v, mask, self.name, self.module)
        held = dict(attention.LAYERS)
        attention.LAYERS.clear()
        expected = call(q, k, v, mask, self.name)
        attention.LAYERS.clear()
        attention.LAYERS.update(held)
        assert torch.equal(found, expected)

    def crop(self, n):
        n = min(n, self.length)
        self.cache.crop(-n)
        self.length -= n


STEPS = ["step", "step", "step", "chunk", "unseen", "other"]
CHANGES = ["crop", "crop many", "swap", "same", "reset", "key", "value", "copy"]


@pytest.mark.parametrize("name", ["adamas", "adamas-pure"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@given(changes=st.lists(st.sampled_from(STEPS + CHANGES), max_size=12), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_codes_follow_whatever_happens(kind, name, changes, seed):
    """To the bit: attention over codes that followed is attention over codes made anew."""
    torch.manual_seed(seed)
    main, other = Conversation(kind, name), Conversation(kind, name)
    other.module = main.module
    for conversation in (main, other):
        conversation.add(90)
        conversation.step()
    for change in [*changes, "step"]:
        if main.length > ROOM - 30:
            main.crop(150)
        layer = main.cache.layers[0]
        if change == "crop":
            main.crop(2)
        elif change == "crop many":
            main.crop(37)
        elif change == "swap":
            main.cache.reorder_cache(torch.tensor([1, 0]))
        elif change == "same":
            main.cache.reorder_cache(torch.tensor([1, 1]))
        elif change == "reset":
            main.cache.reset()
            main.length = 0
            main.add(80)
        elif change == "chunk":
            main.add(9)
        elif change == "key" and main.length:
            layer.keys[1, 0, main.length // 2, 3] += 1
        elif change == "value" and main.length:
            layer.values[0, 1, main.length // 3, 5] += 1
        elif change == "copy":
            main.cache = copy.deepcopy(main.cache)
        elif change == "other":
            other.step()
        elif change == "unseen" and main.length:  # tokens that another attention saw
            main.crop(1)
            main.add(1)
        main.step()


def test_values_alone_may_change():
    """As where an adapter changes the values of the same tokens."""
    torch.manual_seed(0)
    q, k, v = normal(B, H, 1, D), normal(B, H_KV, 230, D), normal(B, H_KV, 230, D)
    module = Module()
    call(q, k, v, module=module)
    assert torch.equal(call(q, k, 2 * v, module=module), call(q, k, 2 * v))


def test_codes_of_a_cache_that_is_gone_are_freed():
    attention.LAYERS.clear()
    modules = [Module() for _ in range(3)]
    for module in modules:
        k = normal(1, H_KV, 99, D)
        call(normal(1, H, 1, D), k, k, module=module)
        del k
        gc.collect()
    assert len(attention.LAYERS) == 1


@pytest.mark.parametrize("cache", CACHES)
def test_codes_follow_keys_that_the_model_makes_anew(cache, monkeypatch):
    """The keys of each layer of DeepSeek are gone when the next layer runs. Codes are not."""
    attention.LAYERS.clear()
    kept, follow = [], attention.Followed.follow

    def spy(self, k, v, known):
        kept.append((self.k_rows.same(k), known))
        follow(self, k, v, known)

    monkeypatch.setattr(attention.Followed, "follow", spy)
    generated(model("deepseek"), "adamas", prompt(), **CACHES[cache])
    # The first step of a layer encodes all tokens.
    assert kept == [(PROMPT + i, False) for i in range(1, NEW - 1) for _ in range(2)]


def test_a_step_that_fails_leaves_no_codes(monkeypatch):
    attention.LAYERS.clear()
    q, k = normal(1, H, 1, D), normal(1, H_KV, 99, D)
    module, another = Module(), Module()
    call(q, k, k, module=another)
    call(q, k, k, module=module)
    assert len(attention.LAYERS) == 2
    monkeypatch.setattr(attention, "attend_tail", lambda *rest, softmax: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call(q, k, k, module=module)
    assert len(attention.LAYERS) == 1


def test_the_operator():
    """Its schema, its fake, and that it changes none of its arguments."""
    q, k = normal(B, H, 1, D), normal(B, H_KV, 99, D)
    mask = torch.ones(B, 1, 1, 99, dtype=torch.bool)
    sinks = torch.nn.Parameter(torch.ones(H))
    plain = (None, None)
    for case in (
        (q, k, k, mask, 0.3, *plain),
        (q, k, k[..., :7], None, None, *plain),
        (q, k[:, :, :9], k[:, :, :9], None, 1.0, *plain),
        (q, k[:, :, :9], k[:, :, :9], None, 1.0, 2.0, sinks.detach()),
        (q, k, k, None, 1.0, 2.0, sinks.detach()),
    ):
        torch.library.opcheck(torch.ops.adamas_core.step, (*case, 1, 1, 0))
        for window in (None, 5):
            torch.library.opcheck(torch.ops.adamas_core.dense, (*case, window, True))
    for operator in (torch.ops.adamas_core.step, torch.ops.adamas_core.dense):
        assert torch.Tag.cudagraph_unsafe in operator.default.tags
    mask[0, 0, 0, 50] = False
    found = torch.ops.adamas_core.step(q, k, k, mask, 0.3, *plain, 1, 1, 0)
    assert torch.equal(found, sdpa_attention_forward(Module(), q, k, k, mask, scaling=0.3)[0])
    with torch.no_grad():
        found = torch.ops.adamas_core.step(q, k, k, mask, 0.3, 2.0, sinks, 1, 1, 0)
        dense = torch.ops.adamas_core.dense(q, k, k, mask, 0.3, 2.0, sinks, None, True)
    assert torch.equal(found, dense)


def test_register_takes_a_name():
    with pytest.raises(TypeError, match="register: name=7; expected a str"):
        register(name=7)
    register(300, name="adamas-twice")
    register(BUDGET, name="adamas-twice")
    q, k = normal(1, H, 1, D), normal(1, H_KV, 99, D)
    assert torch.equal(call(q, k, k, name="adamas-twice"), call(q, k, k))


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_a_missing_library_is_named(missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "try: import adamas_core.transformers\n"
        "except ImportError as error: print(error)"
    )
    assert 'pip install "adamas-core[transformers]"' in printed(code)


def test_nothing_else_imports_them():
    code = (
        "import adamas_core, sys; adamas_core.encode\n"
        "print({'torch', 'transformers'} & {*sys.modules})"
    )
    assert printed(code) == "set()"
