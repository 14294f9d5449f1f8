# SPDX-License-Identifier: MIT
"""Everything around the numbers: errors, plans, other array types, threads, old PyTorch, introspection."""

import copy
import gc
import inspect
import math
import os
import subprocess
import sys
import threading
import time

import flash_mla
import ml_dtypes
import numpy as np
import pytest
import torch
from reference import check, make_batch


def call(batch, **changes):
    a = {name: changes.pop(name, getattr(batch, name)) for name in ("q", "kv_cache", "block_table", "cache_seqlens")}
    return flash_mla.decode(*a.values(), **{"softmax_scale": batch.scale, **changes})


# ---- errors name the argument, the value and the limit ---------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, words, change",
    [
        (ValueError, ["q", "[2, 16, 576]"], lambda b: {"q": b.q[:, 0]}),
        (ValueError, ["q", "dtype", "fp16"], lambda b: {"q": b.q.float()}),
        (ValueError, ["q", "stride"], lambda b: {"q": b.q.transpose(2, 3).contiguous().transpose(2, 3)}),
        (ValueError, ["kv_cache", "dtype"], lambda b: {"kv_cache": b.kv_cache.half()}),
        (ValueError, ["kv_cache"], lambda b: {"kv_cache": b.kv_cache[..., :512]}),
        (ValueError, ["block_table", "int32"], lambda b: {"block_table": b.block_table.long()}),
        (ValueError, ["block_table", "3"], lambda b: {"block_table": b.block_table[[0, 1, 1]]}),
        (ValueError, ["cache_seqlens", "2", "1"], lambda b: {"cache_seqlens": b.cache_seqlens[:1]}),
        (ValueError, ["cache_seqlens"], lambda b: {"cache_seqlens": b.cache_seqlens.float()}),
        (ValueError, ["h_q", "5", "2"], lambda b: {"q": b.q[:, :, :5], "kv_cache": b.kv_cache.expand(-1, -1, 2, -1)}),
        (ValueError, ["head_dim_v", "256", "512"], lambda b: {"head_dim_v": 256}),
        (ValueError, ["softmax_scale", "nan"], lambda b: {"softmax_scale": math.nan}),
        (ValueError, ["window", "-1"], lambda b: {"window": -1}),
        (ValueError, ["empty_lse", "0"], lambda b: {"empty_lse": 0.0}),
        (ValueError, ["out", "dtype"], lambda b: {"out": torch.empty(2, 1, 16, 512, device=b.q.device)}),
        (ValueError, ["lse", "fp32"], lambda b: {"lse": torch.empty(2, 16, 1, device=b.q.device).half()}),
        (ValueError, ["attn_sink", "16"], lambda b: {"attn_sink": torch.empty(15, device=b.q.device)}),
        (TypeError, ["q", "list"], lambda b: {"q": [1.0]}),
        (TypeError, ["kv_cache", "str"], lambda b: {"kv_cache": "cache"}),
        (TypeError, ["kv_cache cannot be taken"], lambda b: {"kv_cache": torch.zeros(2, 2).to_sparse()}),
        (TypeError, ["block_table cannot be taken"], lambda b: {"block_table": b.block_table.to("meta")}),
        (ValueError, ["block_table", "NULL"], lambda b: {"block_table": None}),
        (TypeError, ["softmax_scale", "'x'"], lambda b: {"softmax_scale": "x"}),
        (TypeError, ["window", "1.5"], lambda b: {"window": 1.5}),
    ],
)
def test_errors(kind, words, change, device):
    batch = make_batch([10, 100], device=device)
    before = torch.full((2, 1, 16, 512), 3.0, dtype=batch.q.dtype, device=device)
    changes = change(batch)
    changes.setdefault("out", before)
    with pytest.raises(kind) as caught:
        call(batch, **changes)
    for word in words:
        assert word in str(caught.value)
    assert (before == 3).all(), "a rejected call wrote something"


def test_errors_that_only_the_host_sees(device):
    if device.type != "cpu":
        pytest.skip("lengths and page indices on a GPU are not read back")
    batch = make_batch([10, 100], device=device)
    with pytest.raises(ValueError, match=r"cache_seqlens\[0\] is -1"):
        call(batch, cache_seqlens=torch.tensor([-1, 5], dtype=torch.int32))
    table = batch.block_table.clone()
    table[1, 1] = 99
    with pytest.raises(ValueError, match=r"block_table\[1, 1\] is 99, kv_cache has \d+ pages"):
        call(batch, block_table=table)
    with pytest.raises(ValueError, match=r"slot_mapping\[0\] is 9999"):
        flash_mla.kv_append(batch.q[:1, 0, 0, :512], batch.q[:1, 0, 0, 512:], torch.tensor([9999]), batch.kv_cache)


def test_compatible_call_uses_its_own_argument_names(device):
    batch = make_batch([10], device=device)
    a = (batch.q, batch.kv_cache.half(), batch.block_table, batch.cache_seqlens, 512)
    with pytest.raises(ValueError, match="k_cache") as caught:
        flash_mla.flash_mla_with_kvcache(*a)
    assert "kv_cache" not in str(caught.value)
    with pytest.raises(ValueError, match="block_table is None"):
        flash_mla.flash_mla_with_kvcache(a[0], batch.kv_cache, None, None, 512)
    with pytest.raises(TypeError, match="tile_scheduler_metadata"):
        flash_mla.flash_mla_with_kvcache(a[0], batch.kv_cache, *a[2:], "plan", None)
    with pytest.raises(ValueError, match="num_splits"):
        plan = torch.zeros(1, 8, dtype=torch.int32, device=device)
        wrong = torch.zeros(7, dtype=torch.int32, device=device)
        flash_mla.flash_mla_with_kvcache(a[0], batch.kv_cache, *a[2:], plan, wrong)


def test_unbuilt_features_say_what_is_missing(device):
    batch = make_batch([10], device=device)
    a = (batch.q, batch.kv_cache, batch.block_table, batch.cache_seqlens, 512, None, None)
    with pytest.raises(NotImplementedError, match="sparse decoding"):
        flash_mla.flash_mla_with_kvcache(*a, indices=torch.zeros(1, 1, 64, dtype=torch.int32), is_fp8_kvcache=True)
    with pytest.raises(NotImplementedError, match="FP8"):
        flash_mla.flash_mla_with_kvcache(*a, is_fp8_kvcache=True)
    with pytest.raises(NotImplementedError, match="FP8"):
        flash_mla.flash_mla_with_kvcache(*a, descale_k=torch.ones(1))
    with pytest.raises(NotImplementedError, match="topk_length"):
        flash_mla.flash_mla_with_kvcache(*a, topk_length=torch.ones(1))
    with pytest.raises(NotImplementedError, match="sparse prefill"):
        flash_mla.flash_mla_sparse_fwd(batch.q[0], batch.kv_cache[0], None, 1.0)
    for name in ("flash_attn_varlen_func", "flash_attn_varlen_qkvpacked_func", "flash_attn_varlen_kvpacked_func"):
        with pytest.raises(NotImplementedError, match="prefill"):
            getattr(flash_mla, name)(None)


def test_names_and_signatures():
    import flash_mla.flash_mla_interface as interface

    for name in ("get_mla_metadata", "flash_mla_with_kvcache", "flash_mla_sparse_fwd", "FlashMLASchedMeta",
                 "flash_attn_varlen_func", "flash_attn_varlen_qkvpacked_func", "flash_attn_varlen_kvpacked_func"):  # fmt: skip
        assert getattr(interface, name) is getattr(flash_mla, name)
    assert flash_mla.__version__.count(".") == 2 and interface.__version__ == flash_mla.__version__
    assert list(inspect.signature(flash_mla.flash_mla_with_kvcache).parameters)[:16] == [
        "q", "k_cache", "block_table", "cache_seqlens", "head_dim_v", "tile_scheduler_metadata", "num_splits",
        "softmax_scale", "causal", "is_fp8_kvcache", "indices", "attn_sink", "extra_k_cache",
        "extra_indices_in_kvcache", "topk_length", "extra_topk_length",
    ]  # fmt: skip
    assert list(inspect.signature(flash_mla.get_mla_metadata).parameters) == [
        "cache_seqlens", "num_q_tokens_per_head_k", "num_heads_k", "num_heads_q", "is_fp8_kvcache", "topk",
    ]  # fmt: skip
    for name in flash_mla.__all__:
        assert getattr(flash_mla, name).__doc__
    assert os.path.exists(os.path.join(os.path.dirname(flash_mla.__file__), "py.typed"))


# ---- plans -----------------------------------------------------------------------------------------------------------


def test_plan_rows_and_splits(device):
    lens = torch.tensor([5000, 0, 3, 700], dtype=torch.int32, device=device)
    kind = (2, 0) if device.type == "cuda" else (1, 0)
    plan = flash_mla.plan(lens, h_q=16)
    assert plan.parts.shape == (flash_mla.plan_parts(h_q=16, device=kind), 8) and plan.parts.dtype == torch.int32
    splits = plan.splits.tolist()
    assert splits[0] == 0 and len(splits) == 5 and splits == sorted(splits)
    assert flash_mla.plan(lens[:1], h_q=16).parts.shape == plan.parts.shape
    parts = torch.zeros_like(plan.parts).repeat(2, 1)
    into = flash_mla.plan(lens.long(), h_q=16, parts=parts, splits=torch.empty_like(plan.splits))
    assert into.parts is parts and torch.equal(parts[: len(plan.parts)], plan.parts)
    assert torch.equal(into.splits, plan.splits)


def test_no_plan_changes_a_result(device):
    batch = make_batch([300, 5, 64, 0], device=device)
    want = batch.reference()
    good = flash_mla.plan(batch.cache_seqlens, h_q=16)
    old = flash_mla.plan(batch.cache_seqlens // 3, h_q=16)
    idle = torch.full((3, 8), 2**31 - 1, dtype=torch.int32, device=device)
    zeros = torch.zeros(1, 8, dtype=torch.int32, device=device)
    noise = torch.randint(-(2**31), 2**31 - 1, (5, 8), dtype=torch.int32, device=device)
    tagged = noise.clone()
    tagged[:, 7] = good.parts[0, 7]
    unsplit = torch.arange(5, dtype=torch.int32, device=device)
    for plan in (None, good, old, (torch.cat([good.parts, idle]), good.splits), (zeros, unsplit * 0), (noise, unsplit),
                 (tagged, noise[0, :5].contiguous())):  # fmt: skip
        check(*call(batch, plan=plan), want)


# ---- other arrays ----------------------------------------------------------------------------------------------------


def as_numpy(x):
    x = x.cpu()
    return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if x.dtype == torch.bfloat16 else x.numpy()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_numpy(dtype):
    batch = make_batch([300, 5, 0], dtype=dtype)
    a = [as_numpy(x) for x in (batch.q, batch.kv_cache, batch.block_table, batch.cache_seqlens)]
    out, lse = flash_mla.decode(*a, softmax_scale=batch.scale)
    assert isinstance(out, np.ndarray) and out.dtype == a[0].dtype and lse.dtype == np.float32
    check(torch.from_numpy(out.astype(np.float32)), torch.from_numpy(lse), batch.reference())
    meta, splits = flash_mla.get_mla_metadata(a[3].astype(np.int64), 16, 1)
    assert isinstance(splits, np.ndarray) and np.asarray(meta).shape == meta.shape
    compatible, _ = flash_mla.flash_mla_with_kvcache(*a, 512, meta, splits, batch.scale)
    assert np.array_equal(compatible.view(np.uint16), out.view(np.uint16))
    cache = np.zeros((2, 4, 1, 576), a[0].dtype)
    flash_mla.kv_append(a[0][0, 0, :3, :512], a[0][0, 0, :3, 512:], np.array([7, 0, -1]), cache)
    assert np.array_equal(cache[1, 3, 0].view(np.uint16), a[0][0, 0, 0].view(np.uint16))
    cache.flags.writeable = False
    with pytest.raises(ValueError, match="kv_cache is a read-only array"):
        flash_mla.kv_append(a[0][0, 0, :3, :512], a[0][0, 0, :3, 512:], np.array([7, 0, -1]), cache)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_jax(dtype):
    jax = pytest.importorskip("jax")
    cpu = jax.devices("cpu")[0]
    batch = make_batch([300, 5, 0], dtype=dtype)
    a = [jax.device_put(as_numpy(x), cpu) for x in (batch.q, batch.kv_cache, batch.block_table, batch.cache_seqlens)]
    out, lse = flash_mla.decode(*a, softmax_scale=batch.scale)
    assert isinstance(out, jax.Array) and out.dtype == a[0].dtype and isinstance(lse, jax.Array)
    check(torch.from_numpy(np.array(out, np.float32)), torch.from_numpy(np.array(lse)), batch.reference())
    with pytest.raises(TypeError, match="kv_cache is a JAX array"):
        flash_mla.kv_append(a[0][0, 0, :3, :512], a[0][0, 0, :3, 512:], a[3], a[1])


def test_cupy():
    """CuPy's current stream gets the work, its pool makes the results; fp16, which it has everywhere."""
    cupy = pytest.importorskip("cupy")
    if not torch.cuda.is_available():
        pytest.skip("CuPy needs a GPU")
    batch = make_batch([300, 5, 0], dtype=torch.float16, device="cuda")
    torch.cuda.synchronize()
    a = [cupy.from_dlpack(x) for x in (batch.q, batch.kv_cache, batch.block_table, batch.cache_seqlens)]
    late = cupy.zeros_like(a[0])
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        plan = flash_mla.plan(a[3].astype("int64"), h_q=16)
        flash_mla.decode(*a, softmax_scale=batch.scale, plan=plan)  # makes the workspace
        late[...] = a[0]
        out, lse = flash_mla.decode(late, *a[1:], softmax_scale=batch.scale, plan=plan)
    stream.synchronize()
    assert isinstance(out, cupy.ndarray) and out.dtype == a[0].dtype and lse.dtype == cupy.float32
    assert isinstance(plan.parts, cupy.ndarray)
    check(torch.from_dlpack(out), torch.from_dlpack(lse), batch.reference())


class Exporter:
    """Only __dlpack__, as arrays of frameworks that flash_mla has never heard of."""

    def __init__(self, x):
        self.x, self.shape, self.dtype = x, tuple(x.shape), x.dtype

    def __dlpack__(self, **options):
        return self.x.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.x.__dlpack_device__()


def test_dlpack_objects(device):
    batch = make_batch([300, 5, 0], device=device)
    a = [Exporter(x) for x in (batch.q, batch.kv_cache, batch.block_table, batch.cache_seqlens)]
    out = torch.empty(3, 1, 16, 512, dtype=torch.bfloat16, device=device)
    lse = torch.empty(3, 16, 1, device=device)
    flash_mla.decode(*a, softmax_scale=batch.scale, out=out, lse=lse)
    check(out, lse, batch.reference())


class OldTensor(torch.Tensor):
    """A tensor as before PyTorch 2.10: no exchange table, only attributes."""

    __dlpack_c_exchange_api__ = None


def test_tensors_without_exchange_table(device):
    batch = make_batch([300, 5, 0], s_q=2, device=device)
    out = torch.empty(3, 2, 16, 512, dtype=torch.bfloat16, device=device).as_subclass(OldTensor)
    lse = torch.empty(3, 16, 2, device=device).as_subclass(OldTensor)
    a = [x.as_subclass(OldTensor) for x in (batch.q, batch.kv_cache, batch.block_table, batch.cache_seqlens)]
    want = batch.reference(causal=True)
    assert flash_mla._C.decode(*a, None, None, None, None, out, lse, batch.scale, True, 0, 0, 512, 0)[0] is out
    check(out.as_subclass(torch.Tensor), lse.as_subclass(torch.Tensor), want)
    out, lse = flash_mla._C.decode(*a, None, None, None, None, None, None, batch.scale, True, 0, 0, 512, 0)
    assert type(out) is OldTensor  # made by torch.Tensor.new_empty, not through C
    check(out.as_subclass(torch.Tensor), lse.as_subclass(torch.Tensor), want)


# ---- behaviour -------------------------------------------------------------------------------------------------------


def test_modes_and_subclasses(device):
    batch = make_batch([300, 5], device=device)
    want = batch.reference()
    with torch.inference_mode():
        out, lse = call(batch)
        assert out.is_inference()
    check(out, lse, want)
    check(*call(batch, q=torch.nn.Parameter(batch.q)), want)
    out, _ = call(batch, q=batch.q.clone().requires_grad_())
    assert not out.requires_grad


def test_results_are_ordinary_tensors(device):
    batch = make_batch([300, 5], s_q=3, device=device)
    out, lse = call(batch)
    for x, shape, dtype in ((out, (2, 3, 16, 512), torch.bfloat16), (lse, (2, 16, 3), torch.float32)):
        assert type(x) is torch.Tensor and x.shape == shape and x.dtype == dtype and x.device == batch.q.device
        assert x.is_contiguous() and x._base is None and not x.requires_grad and not x.is_inference()
        storage = x.untyped_storage()
        assert storage.nbytes() == x.numel() * x.element_size()
        assert not hasattr(storage, "resizable") or storage.resizable()  # older PyTorch does not tell
        assert torch.equal(copy.deepcopy(x), x) and (x + x).shape == shape
    with pytest.raises(RuntimeError, match="memory"):  # the allocator's own words
        call(batch, q=batch.q[:1].expand(1 << 40, -1, -1, -1))


def test_results_belong_to_the_caching_allocator(device):
    """record_stream keeps the memory of a result from being handed out while another stream still reads it."""
    if device.type != "cuda":
        pytest.skip("streams need a GPU")
    batch = make_batch([300, 5], device=device)
    side, waits = torch.cuda.Stream(), {}
    for recorded in (False, True):
        torch.cuda.synchronize()
        out, _ = call(batch)
        address = out.data_ptr()
        with torch.cuda.stream(side):
            torch.cuda._sleep(50_000_000)
        if recorded:
            out.record_stream(side)
        del out
        again, _ = call(batch)
        waits[recorded] = again.data_ptr() != address
        del again
    assert waits == {False: False, True: True}


def test_threads(device):
    """Several threads at once, each with shapes of its own; the GIL is free while the library works."""
    batches = [make_batch([100 + 37 * i, 5 * i], h_q=4 * i + 4, device=device) for i in range(4)]
    wants = [b.reference() for b in batches]
    failures = []

    def work(i):
        try:
            stream = torch.cuda.stream(torch.cuda.Stream()) if device.type == "cuda" else torch.inference_mode()
            with stream:
                for _ in range(20):
                    out, lse = call(batches[i])
            if device.type == "cuda":
                torch.cuda.synchronize()
            check(out, lse, wants[i])
        except BaseException as error:
            failures.append(error)

    if device.type == "cuda":
        torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures, failures


def test_other_threads_run_meanwhile(device):
    """The GIL is free while the library works: a counting thread goes on during calls that take milliseconds."""
    if device.type != "cpu":
        pytest.skip("a call on a GPU only enqueues")
    batch = make_batch([20000], h_q=128)
    out, lse = call(batch)
    a = (batch.q, batch.kv_cache, batch.block_table, batch.cache_seqlens, None, None, None, None, out, lse)
    switch, ticks, done = sys.getswitchinterval(), [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0)  # gives the GIL away, to get it back as soon as nobody holds it

    ticker = threading.Thread(target=tick, daemon=True)
    sys.setswitchinterval(1.0)  # nobody is forced to give it away
    try:
        ticker.start()
        inside = 0
        for _ in range(5):
            begin = time.perf_counter()
            flash_mla._C.decode(*a, batch.scale, False, 0, 0, 512, 0)  # torch.empty would release the GIL, too
            end = time.perf_counter()
            inside += sum(begin < t < end for t in ticks)
    finally:
        sys.setswitchinterval(switch)
        done.set()
        ticker.join()
    assert inside > 0


def test_memory_stays_flat(device):
    """Neither references nor native memory leak: 5,000 calls, good and bad, in threads that come and go."""
    batch = make_batch([3, 1], h_q=1, device=device)
    lens64 = batch.cache_seqlens.long()
    counts = []

    def work():
        for _ in range(250):
            call(batch, cache_seqlens=lens64)
            with pytest.raises(ValueError):
                call(batch, window=-1)

    def resident():
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * 4096

    for i in range(20):
        t = threading.Thread(target=work)
        t.start()
        t.join()
        if i in (4, 19):
            gc.collect()
            tensors = sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())
            counts.append((sys.getrefcount(batch.q), sys.getrefcount(lens64), tensors, resident()))
    assert counts[0][:3] == counts[1][:3]
    assert counts[1][3] - counts[0][3] < 8 << 20


def test_environment_is_checked():
    code = "import flash_mla; flash_mla.backends()"
    environment = {**os.environ, "FMLA_CPU": "abacus"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode and "FMLA_CPU" in done.stderr and "abacus" in done.stderr
