# SPDX-License-Identifier: MIT
"""examples/deepseek_generate.py: a DeepSeek-V3 model generates the same tokens through flash_mla as with its own eager
attention; and the comparison notices an attention that is a little wrong."""

import os
import sys

import flash_mla
import pytest
import torch

pytest.importorskip("transformers")
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "examples"))
import deepseek_generate as example


def setup(device, dtype, lengths):
    model = example.make_model(dtype, device)
    return model, [torch.randint(model.config.vocab_size, (n,), device=device) for n in lengths]


def test_64_tokens_equal_those_of_the_model(device):
    model, prompts = setup(device, torch.float16, [1, 64, 130])
    ties, mismatches, noise, own = example.compare(model, prompts, 64)
    print("noise", noise, *ties, sep="\n")
    assert not mismatches
    assert len(ties) <= 4, "more than 2 % of the tokens are ties"
    assert noise < 0.04, "fp16 rounding explains a hundredth of the spread of the logits (1.3)"
    assert len(set(torch.cat([tokens for tokens, _ in own]).tolist())) > 30, "the model repeats itself"


@pytest.mark.parametrize("wrong", ["scale", "length", "page"])
def test_a_wrong_attention_is_noticed(wrong, device, monkeypatch):
    decode = flash_mla.decode

    def broken(q, kv_cache, block_table, cache_seqlens, **options):
        if wrong == "scale":
            options["softmax_scale"] *= 1.2
        elif wrong == "length":
            cache_seqlens = torch.clamp(cache_seqlens - 1, min=1)
        else:
            block_table = block_table.flip(0)
        return decode(q, kv_cache, block_table, cache_seqlens, **options)

    monkeypatch.setattr(flash_mla, "decode", broken)
    model, prompts = setup(device, torch.float16, [20, 64])
    _, mismatches, _, _ = example.compare(model, prompts, 8)
    assert mismatches
