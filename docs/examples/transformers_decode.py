"""A model of transformers decodes with attn_implementation="adamas": one line more than before.

The model is a small Llama with random weights, because an example should download nothing. Any
causal language model of transformers is used in the same way.
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from adamas_core.transformers import register

PROMPT, NEW = 1000, 6

register(budget=128)  # the name is "adamas"
register(budget=PROMPT + NEW, name="adamas-all")  # a budget that covers all tokens

torch.manual_seed(0)
torch.set_num_threads(1)  # the matrices are small
config = LlamaConfig(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=2,
    initializer_range=0.2,  # larger than usual, so that queries prefer few tokens
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=0,
)
model = LlamaForCausalLM(config).eval()  # or from_pretrained(..., attn_implementation="adamas")

# Two prompts of different lengths: the shorter one has padding in front.
ids = torch.randint(1, 512, (2, PROMPT))
mask = torch.ones_like(ids)
ids[0, :300], mask[0, :300] = 0, 0


def generate(attention: str, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
    """New tokens (2, NEW), and the logits (2, 512) of the second one."""
    model.set_attn_implementation(attention)
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=NEW,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return out.sequences[:, PROMPT:], out.logits[1]


text, logits = generate("sdpa")
for cache in ("dynamic", "static"):
    same, _ = generate("adamas-all", cache_implementation=cache)
    assert torch.equal(same, text)
    _, near = generate("adamas", cache_implementation=cache)
    difference = float((near - logits).abs().max() / logits.std())
    print(
        f"{cache}: the text of dense attention with all tokens; with 128 of {PROMPT} "
        f"logits differ by {difference:.3f} of their spread"
    )
    assert 0 < difference < 0.1
