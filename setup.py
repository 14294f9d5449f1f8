# SPDX-License-Identifier: MIT
"""The classic entry: `python setup.py install` and `python setup.py bdist_wheel`.

Both go through the backend that `pip install .` uses; setuptools is not needed.
"""

import os
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(ROOT, "python"))

import build_backend  # noqa: E402


def main(arguments):
    command, options = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command == "bdist_wheel":
        target = options[options.index("--dist-dir") + 1] if "--dist-dir" in options else os.path.join(ROOT, "dist")
        os.makedirs(target, exist_ok=True)
        print(os.path.join(target, build_backend.build_wheel(target)))
    elif command == "install":
        with tempfile.TemporaryDirectory() as target:
            wheel = os.path.join(target, build_backend.build_wheel(target))
            pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--force-reinstall"]
            return subprocess.call([*pip, *options, wheel])
    else:
        print(
            "usage: python setup.py install [options of pip install]\n       python setup.py bdist_wheel [--dist-dir DIR]"
        )
        return 0 if command in ("--help", "-h") else 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
