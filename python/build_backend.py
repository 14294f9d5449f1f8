# SPDX-License-Identifier: MIT
"""PEP 517 backend of flash_mla: `make python`, then the staged package into a wheel.

Written out instead of using setuptools because an isolated `pip install .` would have to download it, and installing
this package must work without a network.  The Makefile is the only place that knows sources and flags; its variables
work here through the environment, e.g. `CUDA=0 pip install .`.  BUILD names the folder for object files.
"""

import base64
import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NAME = "flash_mla"
SUMMARY = "Multi-head latent attention (MLA) decoding over a paged KV cache, on NVIDIA GPUs and CPUs"


def _version():
    with open(os.path.join(ROOT, "include", "flash_mla.h"), encoding="utf-8") as f:
        parts = re.findall(r"#define FMLA_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", f.read())
    return ".".join(parts)


def _metadata():
    with open(os.path.join(ROOT, "docs", "python.md"), encoding="utf-8") as f:
        description = f.read()
    return (
        f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {_version()}\nSummary: {SUMMARY}\nLicense: MIT\n"
        f"Requires-Python: >=3.9\nDescription-Content-Type: text/markdown\n\n{description}"
    )


def _tag():
    return "cp39-abi3-" + re.sub(r"[-.]", "_", sysconfig.get_platform())


def _wheel_file():
    return f"Wheel-Version: 1.0\nGenerator: flash_mla build_backend\nRoot-Is-Purelib: false\nTag: {_tag()}\n"


def _stage(build):
    """Builds library and module; returns the folder that holds the package."""
    command = ["make", "-C", ROOT, f"-j{os.cpu_count() or 1}", "python", f"BUILD={build}", f"PYTHON={sys.executable}"]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except FileNotFoundError:
        raise RuntimeError("building flash_mla needs make and gcc; make was not found") from None
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}")
    return os.path.join(ROOT, build, "python")


def _build_dir():
    return os.environ.get("BUILD") or os.path.join("build", "wheel")


def _package_files(staged):
    for folder, folders, files in os.walk(os.path.join(staged, NAME)):
        folders[:] = sorted(f for f in folders if f != "__pycache__")
        for file in sorted(files):
            path = os.path.join(folder, file)
            yield os.path.relpath(path, staged).replace(os.sep, "/"), path


def _write_wheel(directory, contents):
    """contents: {name in the wheel: bytes}"""
    info = f"{NAME}-{_version()}.dist-info"
    with open(os.path.join(ROOT, "LICENSE"), "rb") as f:
        license_text = f.read()
    contents = {
        **contents,
        f"{info}/METADATA": _metadata().encode(),
        f"{info}/WHEEL": _wheel_file().encode(),
        f"{info}/LICENSE": license_text,
    }
    record = ""
    wheel = f"{NAME}-{_version()}-{_tag()}.whl"
    with zipfile.ZipFile(os.path.join(directory, wheel), "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in contents.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record += f"{name},sha256={digest},{len(data)}\n"
            z.writestr(_entry(name), data)
        z.writestr(_entry(f"{info}/RECORD"), record + f"{info}/RECORD,,\n")
    return wheel


def _entry(name):
    entry = zipfile.ZipInfo(name, date_time=(2025, 1, 1, 0, 0, 0))  # the same input gives the same wheel
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = (0o755 if name.endswith(".so") else 0o644) << 16
    return entry


# ---- the hooks of PEP 517 and PEP 660 -------------------------------------------------------------------------------


def get_requires_for_build_wheel(config_settings=None):
    return []


def get_requires_for_build_editable(config_settings=None):
    return []


def get_requires_for_build_sdist(config_settings=None):
    return []


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    contents = {}
    for name, path in _package_files(_stage(_build_dir())):
        with open(path, "rb") as f:
            contents[name] = f.read()
    return _write_wheel(wheel_directory, contents)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    """Points at the staged package; `make python` refreshes it after an edit."""
    return _write_wheel(wheel_directory, {f"{NAME}.pth": _stage(_build_dir()).encode() + b"\n"})


def build_sdist(sdist_directory, config_settings=None):
    base = f"{NAME}-{_version()}"
    listed = subprocess.run(["git", "-C", ROOT, "ls-files"], stdout=subprocess.PIPE, text=True, check=True).stdout
    with tarfile.open(os.path.join(sdist_directory, f"{base}.tar.gz"), "w:gz", format=tarfile.PAX_FORMAT) as tar:
        for name in listed.splitlines():
            tar.add(os.path.join(ROOT, name), f"{base}/{name}")
    return f"{base}.tar.gz"
