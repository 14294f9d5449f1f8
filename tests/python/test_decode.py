# SPDX-License-Identifier: MIT
"""flash_mla.decode against PyTorch in fp32, on fresh random inputs, at upstream's accuracy bars."""

import math

import flash_mla
import pytest
import torch
from reference import LSE_BAR, UPSTREAM_Q, check, make_batch

DTYPES = [torch.bfloat16, torch.float16]


def run(batch, **options):
    return flash_mla.decode(
        batch.q, batch.kv_cache, batch.block_table, batch.cache_seqlens, softmax_scale=batch.scale, **options
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("s_q", [1, 2, 5])
def test_accuracy(dtype, causal, s_q, device):
    batch = make_batch([0, 1, 63, 64, 65, 300, 517], s_q=s_q, dtype=dtype, device=device)
    check(*run(batch, causal=causal), batch.reference(causal=causal))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("s_q, h_q", [(1, 16), (2, 16), (3, 40), (1, 128)])
def test_upstream_bars_on_fresh_inputs(dtype, causal, s_q, h_q, device, fresh_inputs):
    """All bars of upstream unchanged, on inputs of upstream's size, which no run has seen before."""
    for lengths in ([0, 1, 2, 3, 63, 64, 65, 300, 517], [1] * 30, [4097, 2000]):
        batch = make_batch(lengths, s_q=s_q, h_q=h_q, dtype=dtype, device=device, q_std=UPSTREAM_Q)
        check(*run(batch, causal=causal), batch.reference(causal=causal), LSE_BAR)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_accuracy_of_a_long_request(dtype, device):
    batch = make_batch([4097], h_q=4, dtype=dtype, device=device)
    check(*run(batch), batch.reference())


@pytest.mark.parametrize("h_q, h_kv", [(1, 1), (3, 1), (9, 1), (63, 1), (64, 1), (126, 1), (128, 1), (1024, 1), (16, 2), (6, 3), (64, 8)])
def test_heads(h_q, h_kv, device):
    batch = make_batch([70, 1, 130], h_q=h_q, h_kv=h_kv, s_q=2, device=device)
    check(*run(batch, causal=True), batch.reference(causal=True))


@pytest.mark.parametrize("page", [1, 3, 16, 32, 64, 128, 256])
def test_page_sizes(page, device):
    batch = make_batch([200, 1, 64], page=page, device=device)
    check(*run(batch), batch.reference())


def test_latent_only(device):
    batch = make_batch([100, 7], d_qk=512, device=device)
    check(*run(batch), batch.reference())


def test_default_scale_is_that_of_q(device):
    batch = make_batch([100], device=device)
    batch.scale = 576**-0.5
    out, lse = flash_mla.decode(batch.q, batch.kv_cache, batch.block_table, batch.cache_seqlens)
    check(out, lse, batch.reference())


@pytest.mark.parametrize("window", [1, 50, 1000])
def test_window(window, device):
    batch = make_batch([3, 130, 400], s_q=2, device=device)
    check(*run(batch, causal=True, window=window), batch.reference(causal=True, window=window))


def test_attn_sink(device):
    batch = make_batch([0, 5, 200], device=device)
    sink = torch.randn(16, device=device)
    sink[0], sink[1] = math.inf, -math.inf
    check(*run(batch, attn_sink=sink), batch.reference(sink=sink))


@pytest.mark.parametrize("empty", [math.inf, -math.inf])
def test_empty_rows(empty, device):
    batch = make_batch([0, 2, 1], s_q=4, device=device)  # causal rows that see nothing, in requests of every kind
    out, lse = run(batch, causal=True, empty_lse=empty)
    check(out, lse, batch.reference(causal=True, empty=empty))
    assert (lse[0] == empty).all() and (out[0] == 0).all()
    assert (lse[1, :, :2] == empty).all() and torch.isfinite(lse[1, :, 2:]).all()


def test_empty_batch(device):
    batch = make_batch([5], device=device)
    out, lse = flash_mla.decode(batch.q[:0], batch.kv_cache, batch.block_table[:0], batch.cache_seqlens[:0])
    assert out.shape == (0, 1, 16, 512) and lse.shape == (0, 16, 1)


def test_large_batch(device):
    lengths = [1, 0, 2] * 7000
    batch = make_batch([1, 0, 2], h_q=1, device=device)
    q, table = batch.q.repeat(7000, 1, 1, 1), batch.block_table.repeat(7000, 1)
    lens = torch.tensor(lengths, dtype=torch.int32, device=device)
    out, lse = flash_mla.decode(q, batch.kv_cache, table, lens, softmax_scale=batch.scale)
    want = batch.reference()
    check(out[-3:], lse[-3:], want)
    assert torch.equal(out[:-3].reshape(6999, 3, -1), out[-3:].reshape(1, 3, -1).expand(6999, -1, -1))


def test_strided_inputs(device):
    """q a slice of a concatenation, a cache in a padded pool with any stride of its one head, a slice of a table."""
    batch = make_batch([100, 200], device=device, max_pages=9)
    wide = torch.full((2, 1, 20, 600), math.nan, dtype=torch.bfloat16, device=device)
    wide[:, :, 2:18, :576] = batch.q
    pages, page = batch.kv_cache.shape[:2]
    pool = torch.full((pages, page + 5, 584), math.nan, dtype=torch.bfloat16, device=device)
    pool[:, :page, :576] = batch.kv_cache[:, :, 0]
    cache = pool[:, :page, :576].as_strided((pages, page, 1, 576), ((page + 5) * 584, 584, 3, 1))
    out, lse = flash_mla.decode(
        wide[:, :, 2:18, :576], cache, batch.block_table[:, :5], batch.cache_seqlens.long(), softmax_scale=batch.scale
    )
    check(out, lse, batch.reference())


def test_out_and_lse_arguments(device):
    batch = make_batch([100, 200], s_q=2, device=device)
    out = torch.full((2, 2, 16, 640), 7.0, dtype=torch.bfloat16, device=device)
    lse = torch.full((2, 2, 16), 7.0, device=device)
    got = run(batch, out=out[..., :512], lse=lse.permute(0, 2, 1))
    assert got[0].data_ptr() == out.data_ptr() and got[1].data_ptr() == lse.data_ptr()
    check(out[..., :512], lse.permute(0, 2, 1), batch.reference())
    assert (out[..., 512:] == 7).all()
    again, _ = run(batch, lse=lse.permute(0, 2, 1))
    assert torch.equal(again, got[0])


def test_ragged_queries(device):
    counts, lengths = [2, 0, 3, 1], [100, 50, 64, 1]
    batch = make_batch(lengths, s_q=1, device=device)
    q = torch.randn(6, 16, 576, device=device).bfloat16()
    cu = torch.tensor([0, 2, 2, 5, 6], dtype=torch.int32, device=device)
    tail = (batch.kv_cache, batch.block_table, batch.cache_seqlens)
    scale = {"softmax_scale": batch.scale, "causal": True}
    out, lse = flash_mla.decode(q, *tail, cu_seqlens_q=cu, max_seqlen_q=3, **scale)
    assert out.shape == (6, 16, 512) and lse.shape == (16, 6)
    for i, n in enumerate(counts):
        if n:
            rows = slice(int(cu[i]), int(cu[i]) + n)
            alone = type(batch)(q[None, rows], tail[0], tail[1][i : i + 1], tail[2][i : i + 1], batch.scale)
            check(out[None, rows], lse[None, :, rows], alone.reference(causal=True))


def test_batch_invariant(device):
    batch = make_batch([700, 40, 300, 65], device=device)
    out, lse = run(batch, batch_invariant=True)
    check(out, lse, batch.reference())
    for i in range(4):
        alone, alone_lse = flash_mla.decode(
            batch.q[i : i + 1], batch.kv_cache, batch.block_table[i : i + 1], batch.cache_seqlens[i : i + 1],
            softmax_scale=batch.scale, batch_invariant=True,
        )  # fmt: skip
        assert torch.equal(alone[0], out[i]) and torch.equal(alone_lse[0], lse[i])


def test_merge_of_two_halves_is_the_whole(device):
    # fp16: the bars have room for one rounding to bf16, not for two halves and their merge
    batch = make_batch([256, 128, 0], dtype=torch.float16, device=device)
    whole = batch.reference()
    first = torch.tensor([128, 128, 0], dtype=torch.int32, device=device)
    halves = [
        flash_mla.decode(batch.q, batch.kv_cache, table, lens, softmax_scale=batch.scale, empty_lse=empty)
        for table, lens, empty in (
            (batch.block_table, first, math.inf),
            (batch.block_table[:, 2:], batch.cache_seqlens - first, -math.inf),
        )
    ]
    out, lse = flash_mla.merge(torch.stack([h[0] for h in halves]), torch.stack([h[1] for h in halves]))
    check(out, lse, whole)
    out, lse = flash_mla.merge(
        torch.stack([h[0] for h in halves]).float(), torch.stack([h[1] for h in halves]), empty_lse=-math.inf
    )
    assert out.dtype == torch.float32 and (lse[2] == -math.inf).all() and (out[2] == 0).all()
    none, none_lse = flash_mla.merge(
        torch.zeros(0, 2, 1, 4, 512, device=device), torch.zeros(0, 2, 4, 1, device=device)
    )
    assert (none == 0).all() and (none_lse == math.inf).all()


@pytest.mark.parametrize("slots_dtype", [torch.int64, torch.int32], ids=str)
def test_kv_append(slots_dtype, device):
    cache = torch.zeros(4, 16, 1, 576, dtype=torch.bfloat16, device=device)
    latent = torch.randn(5, 512, device=device).bfloat16()
    rope = torch.randn(5, 1, 64, device=device).bfloat16()[:, 0]
    slots = torch.tensor([3, -1, 17, 63, 0], dtype=slots_dtype, device=device)
    flash_mla.kv_append(latent, rope, slots, cache)
    want = torch.zeros(64, 576, dtype=torch.bfloat16, device=device)
    for i, slot in enumerate(slots.tolist()):
        if slot >= 0:
            want[slot] = torch.cat([latent[i], rope[i]])
    assert torch.equal(cache.view(64, 576), want)
