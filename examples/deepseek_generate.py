# SPDX-License-Identifier: MIT
"""Greedy generation with a Hugging Face DeepSeek-V3 model whose attention is flash_mla over a paged latent cache.

    python examples/deepseek_generate.py [--dtype float16|bfloat16] [--device cpu|cuda] [--tokens 64]

The model has random weights and few layers, but the real dimensions of multi-head latent attention: 512 latent values
and 64 rope values per token.  What changes is the attention of each layer, in the "absorbed" form of DeepSeek-V2
(arXiv 2405.04434, section 2.1): kv_b_proj is split into W_UK, folded into the query, and W_UV, applied to the output,
so that all heads attend to the latent vectors themselves:

    hidden -> q_nope, q_rope, latent, k_rope          the model's own projections, norms and rotary embedding
    flash_mla.kv_append(latent, k_rope, slots, cache)
    q = [q_nope W_UK, q_rope]                         [tokens, heads, 512 + 64]
    out = flash_mla.decode(q, cache, ...)             [tokens, heads, 512]
    hidden = o_proj(out W_UV)

Prompts of different lengths run as one ragged step, then every step decodes one token per request.

The result is compared with the model's own generate() and eager attention, in the same dtype.  The two round at
different places (W_UK before or after the product with the cache), so the logits differ by a little noise.  A token may
differ only where the model's own logits of the two candidates are closer than that noise moves them apart, and only if
the noise is small: a tie.  Ties are printed with both numbers, and the request goes on with the model's token, so that
every one of its tokens is checked.  Exit status 1 if a token differs that is no tie.  float16 has few ties, bfloat16
rounds eight times as coarsely and has more.
"""

import argparse
import sys

import flash_mla
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

PAGE = 64
SMALL_NOISE = 0.15  # of the standard deviation of the logits


class PagedCache:
    """Pages of all layers for a batch of requests; page numbers are drawn from a shuffled free list."""

    def __init__(self, model, requests, max_tokens):
        config, weight = model.config, model.model.embed_tokens.weight
        width = -(-max_tokens // PAGE)
        pages = requests * width
        row = config.kv_lora_rank + config.qk_rope_head_dim
        self.layers = [weight.new_zeros(pages, PAGE, 1, row) for _ in range(config.num_hidden_layers)]
        free = torch.randperm(pages, device=weight.device)
        self.block_table = free.view(requests, width).int()
        self.lengths = torch.zeros(requests, dtype=torch.int32, device=weight.device)

    def begin_step(self, counts):
        """Makes room for counts[i] new tokens of request i; their positions and slots, request after request."""
        self.counts = counts
        device = self.lengths.device
        request = torch.repeat_interleave(torch.arange(len(counts), device=device), torch.tensor(counts, device=device))
        first = torch.tensor([0, *counts], device=device).cumsum(0)
        positions = torch.arange(len(request), device=device) - first[request] + self.lengths[request]
        self.slots = self.block_table[request, positions // PAGE].long() * PAGE + positions % PAGE
        self.lengths += torch.tensor(counts, dtype=torch.int32, device=device)
        self.cu_seqlens_q = first.int()
        return positions


class LatentAttention(torch.nn.Module):
    """Stands in for DeepseekV3Attention and uses its weights."""

    def __init__(self, attention, rotate, cache):
        super().__init__()
        self.its, self.rotate, self.cache = attention, rotate, cache
        nope, heads = attention.qk_nope_head_dim, attention.num_heads
        up = attention.kv_b_proj.weight.view(heads, nope + attention.v_head_dim, attention.kv_lora_rank)
        self.w_uk, self.w_uv = up[:, :nope], up[:, nope:]

    def forward(self, hidden_states, position_embeddings, **kwargs):
        its, cache = self.its, self.cache
        _, n, _ = hidden_states.shape  # one row with the new tokens of all requests
        q = its.q_b_proj(its.q_a_layernorm(its.q_a_proj(hidden_states))).view(1, n, its.num_heads, its.qk_head_dim)
        q_nope, q_rope = q.split([its.qk_nope_head_dim, its.qk_rope_head_dim], dim=-1)
        latent, k_rope = its.kv_a_proj_with_mqa(hidden_states).split([its.kv_lora_rank, its.qk_rope_head_dim], dim=-1)
        latent = its.kv_a_layernorm(latent)
        cos, sin = position_embeddings
        q_rope, k_rope = self.rotate(q_rope, k_rope.view(1, n, 1, its.qk_rope_head_dim), cos, sin, unsqueeze_dim=2)

        kv_cache = cache.layers[its.layer_idx]
        flash_mla.kv_append(latent[0], k_rope[0, :, 0], cache.slots, kv_cache)
        q = torch.cat([torch.einsum("nhd,hdc->nhc", q_nope[0], self.w_uk), q_rope[0]], dim=-1)
        step = {"softmax_scale": its.scaling, "causal": True}
        if max(cache.counts) == min(cache.counts) == 1:
            out, _ = flash_mla.decode(q.unsqueeze(1), kv_cache, cache.block_table, cache.lengths, **step)
            out = out.squeeze(1)
        else:
            out, _ = flash_mla.decode(
                q, kv_cache, cache.block_table, cache.lengths,
                cu_seqlens_q=cache.cu_seqlens_q, max_seqlen_q=max(cache.counts), **step,
            )  # fmt: skip
        out = torch.einsum("nhc,hvc->nhv", out, self.w_uv)
        return its.o_proj(out.reshape(1, n, -1)), None


def make_model(dtype, device, seed=0):
    """Random weights, large enough that attention decides the next token.

    All feed-forward layers are dense: rounding can send a token to another expert, a jump in the logits that would say
    nothing about attention.
    """
    torch.manual_seed(seed)
    config = DeepseekV3Config(
        vocab_size=256, hidden_size=256, intermediate_size=512, num_hidden_layers=3, first_k_dense_replace=3,
        num_attention_heads=16, num_key_value_heads=16, q_lora_rank=128, kv_lora_rank=512, qk_rope_head_dim=64,
        qk_nope_head_dim=64, v_head_dim=64, initializer_range=0.08, num_mtp_layers=0, bos_token_id=None,
        eos_token_id=None, max_position_embeddings=512, attn_implementation="eager",
    )  # fmt: skip
    return DeepseekV3ForCausalLM(config).to(device=device, dtype=dtype).eval()


@torch.inference_mode()
def own_generation(model, prompts, tokens):
    """(tokens [tokens], logits [tokens, vocab]) of each prompt, alone, by the model's own generate()."""
    result = []
    for prompt in prompts:
        run = model.generate(
            prompt[None], max_new_tokens=tokens, do_sample=False, return_dict_in_generate=True, output_logits=True,
            attention_mask=torch.ones_like(prompt[None]),
        )  # fmt: skip
        result.append((run.sequences[0, len(prompt) :], torch.cat(run.logits).float()))
    return result


def use_flash_mla(model, requests, max_tokens):
    """Swaps the attention of every layer; returns the cache that they share."""
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as modeling

    rotate = modeling.apply_rotary_pos_emb_interleave if model.config.rope_interleave else modeling.apply_rotary_pos_emb
    cache = PagedCache(model, requests, max_tokens)
    for layer in model.model.layers:
        layer.self_attn = LatentAttention(layer.self_attn, rotate, cache)
    return cache


@torch.inference_mode()
def step(model, cache, new_tokens):
    """Runs new_tokens[i] of request i; logits [requests, vocab] behind the last of each."""
    positions = cache.begin_step([len(t) for t in new_tokens])
    last = cache.cu_seqlens_q[1:].long() - 1
    logits = model(
        torch.cat(new_tokens)[None], position_ids=positions[None], use_cache=False, logits_to_keep=last
    ).logits
    return logits[0].float()


def compare(model, prompts, tokens):
    """Over `tokens` greedy tokens of each prompt: sentences about ties, about mismatches, the noise, the model's own."""
    own = own_generation(model, prompts, tokens)
    cache = use_flash_mla(model, len(prompts), max(map(len, prompts)) + tokens)
    ties, mismatches, noise = [], [], 0.0
    feed = prompts
    for t in range(tokens):
        logits = step(model, cache, feed)
        feed = []
        for i, (own_tokens, own_logits) in enumerate(own):
            ours, theirs = int(logits[i].argmax()), int(own_tokens[t])
            difference = float((logits[i] - own_logits[t]).abs().max())
            noise = max(noise, difference)
            if ours != theirs:
                gap = float(own_logits[t, theirs] - own_logits[t, ours])
                text = f"request {i}, token {t}: {ours} instead of {theirs}, whose logit is {gap:.5f} higher; "
                text += f"the two sets of logits differ by up to {difference:.5f}"
                tie = gap <= 2 * difference and difference <= SMALL_NOISE * float(own_logits.std())
                (ties if tie else mismatches).append(text)
            feed.append(own_tokens[t : t + 1])
    return ties, mismatches, noise, own


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16"))
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 5, 63, 64, 100, 130], help="of the prompts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = make_model(getattr(torch, options.dtype), options.device, options.seed)
    prompts = [torch.randint(model.config.vocab_size, (n,), device=options.device) for n in options.lengths]
    ties, mismatches, noise, own = compare(model, prompts, options.tokens)
    for text in ties:
        print("tie:", text)
    for text in mismatches:
        print("MISMATCH:", text)
    total = options.tokens * len(prompts)
    spread = torch.cat([logits for _, logits in own]).std()
    print(
        f"{total - len(ties) - len(mismatches)} of {total} tokens equal, {len(ties)} ties, {len(mismatches)} mismatches; "
        f"{options.dtype} on {options.device}, prompts of {options.lengths} tokens; logits differ by at most {noise:.4f} "
        f"(their standard deviation is {spread:.2f}), {len(set(torch.cat([t for t, _ in own]).tolist()))} different tokens"
    )
    return 1 if mismatches else 0


if __name__ == "__main__":
    sys.exit(main())
