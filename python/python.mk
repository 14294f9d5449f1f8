# SPDX-License-Identifier: MIT
#
# The Python package: `make python` stages it in $(BUILD)/python (importable through PYTHONPATH), `make check-python`
# tests it with PyTorch.  `pip install .` and setup.py go through the first (python/build_backend.py).

PYTHON  ?= python3
PY_DIR  := $(BUILD)/python/flash_mla
PY_EXT  := $(PY_DIR)/_C.abi3.so
PY_SRC  := $(wildcard python/*.c)
PY_OBJ  := $(patsubst %,$(BUILD)/obj/%.o,$(PY_SRC))
PY_FILES := $(shell find python/flash_mla -name '*.py' -o -name '*.pyi' -o -name py.typed)
PY_STAGED := $(patsubst python/%,$(BUILD)/python/%,$(PY_FILES))

.PHONY: python check-python check-python-asan check-python-gpu bench-python

python: $(PY_EXT) $(PY_STAGED)

$(BUILD)/obj/python/%.c.o: PY_INCLUDE = $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')
$(BUILD)/obj/python/%.c.o: python/%.c Makefile
	@mkdir -p $(@D)
	@test -f '$(PY_INCLUDE)/Python.h' || { echo 'Python.h of $(PYTHON) not found: install its development files' \
		'(Debian: apt-get install python3-dev)' >&2; exit 1; }
	$(CC) $(CPPFLAGS) -isystem '$(PY_INCLUDE)' $(CFLAGS) -MMD -MP -c -o $@ $<

# Only the module's entry point is visible: two copies of the library in one process do not meet.
$(PY_EXT): $(PY_OBJ) $(LIB)
	@mkdir -p $(@D)
	$(CC) -shared $(CFLAGS) $(LDFLAGS) -Wl,--exclude-libs,ALL -o $@ $(PY_OBJ) $(LIB) $(LDLIBS) -ldl

$(BUILD)/python/%: python/%
	@mkdir -p $(@D)
	@cp $< $@

check-python: python
	@BUILD='$(abspath $(BUILD))' PYTHON='$(PYTHON)' tests/python/run.sh

# The extension and the library under AddressSanitizer and UBSan, inside an unsanitised Python (so without leak checks;
# test_memory_stays_flat counts those).
ASAN_LIBS = $(shell $(CC) -print-file-name=libasan.so) $(shell $(CC) -print-file-name=libubsan.so)
check-python-asan:
	@$(MAKE) --no-print-directory python BUILD='$(BUILD)/python-asan' OPT=-O1 \
		EXTRA_CFLAGS='-fsanitize=address,undefined -fno-sanitize-recover=undefined'
	@PRELOAD='$(ASAN_LIBS)' PYTHON='$(PYTHON)' BUILD='$(abspath $(BUILD))/python-asan' \
		tests/python/run.sh --ignore=tests/python/test_wheel.py --ignore=tests/python/test_example.py \
		-k 'not inductor and not memory and not environment' -q

# The same suite on the GPU, with graphs, streams and the client contracts; fails without one.
check-python-gpu: python
	@FLASH_MLA_TEST_GPU=1 BUILD='$(abspath $(BUILD))' PYTHON='$(PYTHON)' tests/python/run.sh

bench-python: python $(SO)
	@BUILD='$(abspath $(BUILD))' PYTHON='$(PYTHON)' tests/python/run.sh bench
