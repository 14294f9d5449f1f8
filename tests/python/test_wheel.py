# SPDX-License-Identifier: MIT
"""The wheel: built by pip without a network, installed into fresh virtual environments, used there."""

import glob
import os
import subprocess
import sys
import sysconfig
import venv

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
WITHOUT_TORCH = """
import sys, flash_mla, flash_mla.flash_mla_interface, flash_mla.adapters.vllm
assert "torch" not in sys.modules, "torch was imported"
assert flash_mla.__file__.startswith(sys.prefix), flash_mla.__file__
import array, ctypes
class Array:  # no NumPy here either: the array interface by hand
    def __init__(self, code, shape, typestr, dtype, values=None):
        n = 1
        for s in shape: n *= s
        self.memory = array.array(code, values if values is not None else [0] * n)
        self.shape, self.dtype = shape, dtype
        self.__array_interface__ = dict(data=(self.memory.buffer_info()[0], False), shape=shape, typestr=typestr,
                                        version=3, strides=None)
half = dict(code="H", typestr="<f2", dtype="float16")
q = Array(shape=(1, 1, 2, 576), **half)
cache = Array(shape=(1, 4, 1, 576), values=[0x3C00] * 4 * 576, **half)
table = Array("i", (1, 1), "<i4", "int32")
lens = Array("i", (1,), "<i4", "int32", [3])
out = Array(shape=(1, 1, 2, 512), **half)
lse = Array("f", (1, 2, 1), "<f4", "float32")
flash_mla.decode(q, cache, table, lens, out=out, lse=lse)
assert set(out.memory) == {0x3C00} and abs(lse.memory[0] - 1.0986123) < 1e-6, (out.memory[0], lse.memory[0])
print("decoded without torch:", flash_mla.__version__, [b["name"] for b in flash_mla.backends()])
"""
WITH_TORCH = """
import sys, torch, flash_mla
assert flash_mla.__file__.startswith(sys.prefix), flash_mla.__file__
q, cache = torch.zeros(1, 1, 2, 576).half(), torch.ones(1, 4, 1, 576).half()
table, lens = torch.zeros(1, 1, dtype=torch.int32), torch.tensor([3], dtype=torch.int32)
meta, splits = flash_mla.get_mla_metadata(lens, 2, 1)
out, lse = flash_mla.flash_mla_with_kvcache(q, cache, table, lens, 512, meta, splits)
assert (out == 1).all() and torch.allclose(lse, torch.tensor(3.0).log())
assert (torch.ops.flash_mla.merge(out[None], lse[None], None, 0)[0] == 1).all()
print("decoded with torch", torch.__version__)
"""


def run(*command, **environment):
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PIP_FIND_LINKS", "PYTHONHOME")}
    clean.setdefault("CUDA", "0")  # the packaging is under test; GPU kernels take minutes to compile
    done = subprocess.run(command, cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def fresh(folder):
    venv.create(folder, with_pip=True)
    python = os.path.join(folder, "bin", "python")
    return python, run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()


def share_torch(site_packages):
    """The new environment sees PyTorch of the one that runs the tests, without a copy."""
    with open(os.path.join(site_packages, "torch.pth"), "w") as f:
        f.write(sysconfig.get_path("purelib") + "\n")


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    return str(tmp_path_factory.mktemp("build"))


def test_pip_install(tmp_path, build):
    python, site_packages = fresh(tmp_path / "env")
    run(python, "-m", "pip", "install", "--no-index", ".", BUILD=build)
    print(run(python, "-c", WITHOUT_TORCH))
    run(python, "-m", "pip", "check")
    share_torch(site_packages)
    print(run(python, "-c", WITH_TORCH))
    run(python, "-m", "pip", "uninstall", "-y", "flash_mla")
    assert not os.path.exists(os.path.join(site_packages, "flash_mla"))


def test_setup_py_install(tmp_path, build):
    python, site_packages = fresh(tmp_path / "env")
    run(python, "setup.py", "install", BUILD=build)
    share_torch(site_packages)
    print(run(python, "-c", WITH_TORCH))


def test_one_wheel_for_every_python(tmp_path, build):
    """Built once, imported by every CPython >= 3.9 found here; only the stable ABI is used."""
    run(sys.executable, "setup.py", "bdist_wheel", "--dist-dir", str(tmp_path), BUILD=build)
    (wheel,) = glob.glob(str(tmp_path / "*.whl"))
    assert "-cp39-abi3-" in wheel
    others = glob.glob(os.path.expanduser("~/.pyenv/versions/*/bin/python")) + glob.glob("/usr/bin/python3.*[0-9]")
    tried = set()
    for python in [sys.executable, *others]:
        version = subprocess.run(
            [python, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True
        )
        key = tuple(map(int, version.stdout.split())) if version.returncode == 0 else (0, 0)
        if key < (3, 9) or key in tried:
            continue
        tried.add(key)
        target = tmp_path / f"lib{key[1]}"
        run(sys.executable, "-m", "zipfile", "-e", wheel, str(target))
        code = WITHOUT_TORCH.replace("assert flash_mla.__file__.startswith(sys.prefix), flash_mla.__file__", "")
        code = "import sys; sys.modules['torch'] = None\n" + code.replace('"torch" not in sys.modules', "True")
        print(key, run(python, "-c", code, PYTHONPATH=str(target)))
    symbols = run("nm", "-D", "--defined-only", glob.glob(str(target / "flash_mla" / "_C.abi3.so"))[0])
    assert [line.split()[-1] for line in symbols.splitlines()] == ["PyInit__C"]
    print("imported by", sorted(tried))
