#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Runs the Python tests (or `run.sh bench`) against the package staged in $BUILD/python.
#
# PyTorch comes from a virtual environment of this project, made once and kept outside of the checkout under
# ${XDG_CACHE_HOME:-~/.cache}/flash-mla-c (about 5 GB: PyTorch's wheel brings its CUDA libraries).  Where it cannot be
# made (no network), $PYTHON serves if it has torch (and pytest, for more than tests/test_flash_mla.py); if it has not,
# the tests are skipped loudly, or fail when CI is set.  FLASH_MLA_TEST_GPU=1 (make check-python-gpu) takes the torch of
# $PYTHON first, a GPU machine's own, and fails instead of skipping or falling back to the CPU.
# FLASH_MLA_TEST_PYTHON=/path/to/python uses that interpreter and makes nothing.  The first line says what serves.
set -eu
cd "$(dirname "$0")/../.."
: "${BUILD:=$PWD/build}" "${PYTHON:=python3}"
requirements=tests/python/requirements.txt

has() { "$1" -c "import $2" 2>/dev/null; }

environment() {
	version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
	key=$(cksum <"$requirements" | cut -d' ' -f1)
	cache=${XDG_CACHE_HOME:-$HOME/.cache}/flash-mla-c
	venv=$cache/venv-$version-$key
	mkdir -p "$cache" || return 1
	(
		flock 9
		if [ ! -e "$venv/complete" ]; then
			echo "check-python: making $venv (once; downloads about 3 GB)" >&2
			rm -rf "$venv"
			"$PYTHON" -m venv "$venv" &&
				"$venv/bin/pip" install -q --disable-pip-version-check --no-cache-dir --retries 1 --timeout 20 -r "$requirements" >&2 &&
				touch "$venv/complete"
		fi
	) 9>"$cache/lock"
	[ -e "$venv/complete" ] && python=$venv/bin/python
}

if [ -n "${FLASH_MLA_TEST_PYTHON:-}" ]; then
	python=$FLASH_MLA_TEST_PYTHON
elif [ -n "${FLASH_MLA_TEST_GPU:-}" ] && has "$PYTHON" torch; then # a GPU machine comes with its own PyTorch
	python=$PYTHON
elif ! environment; then
	if has "$PYTHON" torch; then
		python=$PYTHON
		echo "check-python: the virtual environment could not be made (no network?), so the machine's own PyTorch serves"
	else
		echo "check-python: SKIP: no PyTorch: the virtual environment could not be made (no network?) and $PYTHON has none"
		[ -z "${CI:-}${FLASH_MLA_TEST_GPU:-}" ] # a skip is a failure in CI, and where the GPU was asked for
		exit
	fi
fi

"$python" -c 'import sys, torch; print("check-python: PyTorch", torch.__version__, "of", sys.executable)'

export PYTHONPATH="$BUILD/python${PYTHONPATH:+:$PYTHONPATH}" BUILD
if [ "${1:-}" = bench ]; then
	exec "$python" bench/python_overhead.py "$BUILD/libflash_mla.so"
fi
if [ -n "${PRELOAD:-}" ]; then # the sanitizers' runtimes, see python.mk
	LD_PRELOAD="$PRELOAD $(gcc -print-file-name=libstdc++.so.6)"
	export LD_PRELOAD ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1
fi
if has "$python" pytest; then
	"$python" -m pytest "$@"
else
	echo "check-python: SKIP: $python has no pytest; only tests/test_flash_mla.py runs"
fi
"$python" tests/test_flash_mla.py --quick ${FLASH_MLA_TEST_GPU:+--device cuda}
