# SPDX-License-Identifier: MIT
#
# FlashMLA-C.  `make help` lists the targets.  Sources are found by wildcard: a new file in src/, src/ref/, src/cpu/,
# src/cuda/, cli/ or tests/ needs no line here.
#
#   CUDA=0             build without CUDA although nvcc is there
#   OPENMP=0           build without OpenMP
#   HIP=0              build without AMD code objects although clang-19 is there
#   BUILD=DIR          build folder (default build)
#   EXTRA_CFLAGS=...   e.g. -fsanitize=address,undefined

CC      ?= gcc
BUILD   ?= build
PREFIX  ?= /usr/local
DESTDIR ?=
LIBDIR  ?= $(PREFIX)/lib

VERSION := $(shell sed -n 's/^\#define FMLA_VERSION_[MP][A-Z]* *//p' include/flash_mla.h | paste -sd.)
MAJOR   := $(firstword $(subst ., ,$(VERSION)))

CPPFLAGS += -D_GNU_SOURCE -Iinclude -Isrc
OPT      ?= -O3 -g
WARN     ?= -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes \
	$(if $(findstring clang,$(CC)),-Wno-sign-conversion -Wno-pass-failed) # not part of gcc's -Wconversion
CFLAGS    = -std=c11 $(OPT) $(WARN) -fPIC -fvisibility=hidden -ffp-contract=off $(OMP) $(EXTRA_CFLAGS)
LDLIBS    = -lm -ldl

# OpenMP where the compiler has it; the library is complete without.
OPENMP ?= $(shell echo 'int main(void){return 0;}' | $(CC) -fopenmp -xc - -o /dev/null 2>/dev/null && echo 1 || echo 0)
OMP    := $(if $(filter 1,$(OPENMP)),-fopenmp,-fopenmp-simd -Wno-unknown-pragmas)

LIB_SRC := $(filter-out src/portable/cuda.c,$(wildcard src/*.c src/ref/*.c src/cpu/*.c src/portable/*.c))

# CUDA where nvcc is found and CUDA=0 is not said.
NVCC ?= $(shell command -v nvcc 2>/dev/null)
CUDA ?= $(if $(NVCC),1,0)
CU_SRC := $(wildcard src/cuda/*.cu src/portable/*.cu)
ifeq ($(CUDA)$(if $(CU_SRC),1),11)
CUDA_HOME ?= $(abspath $(dir $(realpath $(NVCC)))/..)
NVCCFLAGS ?= -O3 -std=c++17 -gencode arch=compute_90a,code=sm_90a -Xptxas -v
# The portable kernels: one PTX, assembled for every architecture; newer ones compile the PTX itself.
PORTABLE_CUDA := -O3 -std=c++17 -gencode arch=compute_80,code=[compute_80,sm_80,sm_86,sm_89,sm_90,sm_100,sm_120]
$(BUILD)/obj/src/portable/%.cu.o: NVCCFLAGS = $(PORTABLE_CUDA)
$(BUILD)/obj/src/portable/generic.cu.o: NVCCFLAGS = $(PORTABLE_CUDA) -gencode arch=compute_75,code=sm_75
LIB_SRC   += $(wildcard src/cuda/*.c) src/portable/cuda.c $(CU_SRC)
CPPFLAGS  += -DFMLA_WITH_CUDA -I$(CUDA_HOME)/include
LDLIBS    += -L$(CUDA_HOME)/lib64 -lcudart_static -ldl -lrt -lpthread
CUDA_NOTE := with CUDA ($(NVCC))
else
CUDA_NOTE := without CUDA ($(if $(filter 0,$(CUDA)),$(if $(NVCC),CUDA=0,no nvcc found),no CUDA sources))
endif
ifneq ($(wildcard src/cpu/backend.c),)
CPPFLAGS += -DFMLA_WITH_CPU
endif

LIB_OBJ  := $(patsubst %,$(BUILD)/obj/%.o,$(LIB_SRC))
SO       := $(BUILD)/libflash_mla.so
SONAME   := libflash_mla.so.$(MAJOR)
LIB      := $(BUILD)/libflash_mla.a
INNER_LIB := $(BUILD)/obj/inner.a
OBJCOPY  ?= objcopy

# Pieces that the command, the tests and the GPU checks share: the case table, input data, comparison.
SHARED_OBJ := $(patsubst %,$(BUILD)/obj/%.o,$(filter-out tests/test_% tests/fuzz_%,$(wildcard tests/*.c)))

CLI_SRC  := $(wildcard cli/*.c) bench/cpu_probe.c
CLI_OBJ  := $(patsubst %,$(BUILD)/obj/%.o,$(CLI_SRC))
CLI      := $(if $(CLI_SRC),$(BUILD)/flashmla)

FUZZERS  := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/fuzz_*.c))
TESTS    := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/test_*.c))
TESTS    := $(filter-out $(if $(shell command -v $(CXX)),,%/test_portable),$(TESTS)) # which compiles a .cu as C++
EXAMPLES := $(patsubst examples/%.c,$(BUILD)/examples/%,$(wildcard examples/*.c))

.PHONY: all lib cli examples demo check check-gpu bench bench-gpu lint format install mutants fuzz coverage help clean tests fuzzers
.DELETE_ON_ERROR:
.SECONDARY:

all: lib cli

help:
	@echo 'FlashMLA-C $(VERSION), $(CUDA_NOTE)'
	@echo '  make            the library and the command'
	@echo '  make lib        $(SO), $(LIB)'
	@echo '  make cli        $(BUILD)/flashmla'
	@echo '  make demo       builds, decodes a real serving batch on the CPU, verifies it'
	@echo '  make check      all tests of the CPU side (installs what they need where it may)'
	@echo '  make check-gpu  parity of the GPU backend with the reference; fails where no GPU runs it'
	@echo '  make bench      speed of the CPU backend; make bench-gpu: of the GPU backend'
	@echo '  make python     stages the Python package in $(BUILD)/python; make check-python tests it with PyTorch'
	@echo '  make lint       clang-format, warnings, cppcheck; make format applies clang-format'
	@echo '  make mutants    plants known bugs one by one and expects the tests to fail'
	@echo '  make fuzz       long fuzzing (FUZZ_SECONDS=600 a target)'
	@echo '  make coverage   lines of src/ that the tests run'
	@echo '  make install    PREFIX=$(PREFIX) DESTDIR=$(DESTDIR)'
	@echo 'Options: CUDA=0 OPENMP=0 BUILD=DIR EXTRA_CFLAGS=... CC=...'

lib: $(SO) $(LIB) $(BUILD)/flash_mla.pc
	@echo 'libflash_mla $(VERSION) $(CUDA_NOTE)'

cli: $(CLI)
examples: $(EXAMPLES)
tests: $(TESTS) $(CLI) $(EXAMPLES) lib
fuzzers: $(FUZZERS)

$(BUILD)/obj/%.c.o: %.c Makefile
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

# Host code of kernels needs nothing of libstdc++.
$(BUILD)/obj/%.cu.o: %.cu Makefile
	@mkdir -p $(@D)
	$(NVCC) $(CPPFLAGS) $(NVCCFLAGS) -Xcompiler -fPIC,-fvisibility=hidden,-fno-exceptions,-fno-threadsafe-statics -MMD -MP -c -o $@ $<

# The portable kernels as OpenCL C: one self-contained text, compiled by the device's driver at run time.
OPENCL_SOURCE := $(BUILD)/obj/src/portable/kernels.cl
$(OPENCL_SOURCE): $(wildcard src/portable/*.h) src/plan_core.h src/plan_types.h Makefile
	@mkdir -p $(@D)
	$(CC) -E -P -x c -std=c11 -DPK_OPENCL -Isrc -o $@ src/portable/kernels.h
$(BUILD)/obj/src/portable/opencl_source.c.o: CPPFLAGS += -DPK_OPENCL_FILE='"$(OPENCL_SOURCE)"'
$(BUILD)/obj/src/portable/opencl_source.c.o: $(OPENCL_SOURCE)

# The portable kernels as AMD code objects, where a clang with lld for them is found; HIP=0 leaves them out.
HIP_CLANG ?= $(and $(shell command -v ld.lld-19),$(shell command -v clang-19))
HIP ?= $(if $(HIP_CLANG),1,0)
HIP_OBJECTS := $(if $(filter 1,$(HIP)),$(foreach a,gfx90a gfx942,$(BUILD)/obj/src/portable/$(a).co))
$(BUILD)/obj/src/portable/gfx%.co: $(wildcard src/portable/*.h) src/plan_core.h src/plan_types.h Makefile
	@mkdir -p $(@D)
	$(HIP_CLANG) -x hip --offload-arch=gfx$* --cuda-device-only --no-gpu-bundle-output -nogpuinc -nogpulib -O3 \
		-DPK_HIP_BARE -DPK_WAVES -Isrc -o $@ src/portable/kernels.h
$(BUILD)/obj/src/portable/hip_objects.c.o: CPPFLAGS += $(if $(HIP_OBJECTS),-DPK_GFX90A_FILE='"$(firstword \
	$(HIP_OBJECTS))"' -DPK_GFX942_FILE='"$(lastword $(HIP_OBJECTS))"')
$(BUILD)/obj/src/portable/hip_objects.c.o: $(HIP_OBJECTS)

# The public archive holds one object in which everything but the API is local, so that no inner name can clash with a
# caller's; the tests link the inner one.
$(INNER_LIB): $(LIB_OBJ)
	@rm -f $@
	$(AR) rcs $@ $^

$(LIB): $(LIB_OBJ)
	@rm -f $@
	$(LD) -r -o $(BUILD)/obj/flash_mla.o $^
	$(OBJCOPY) --localize-hidden $(BUILD)/obj/flash_mla.o
	$(AR) rcs $@ $(BUILD)/obj/flash_mla.o

$(SO): $(LIB_OBJ) src/flash_mla.map
	$(CC) -shared $(CFLAGS) $(LDFLAGS) -Wl,-soname,$(SONAME) -Wl,--version-script=src/flash_mla.map -Wl,-z,defs \
		-o $(SO).$(VERSION) $(LIB_OBJ) $(LDLIBS)
	ln -sf $(notdir $(SO)).$(VERSION) $(BUILD)/$(SONAME)
	ln -sf $(SONAME) $(SO)

# Always written anew: PREFIX may have changed.
.PHONY: $(BUILD)/flash_mla.pc
$(BUILD)/flash_mla.pc:
	@mkdir -p $(@D)
	@printf '%s\n' 'prefix=$(PREFIX)' 'includedir=$${prefix}/include' 'libdir=$(LIBDIR)' '' 'Name: flash_mla' \
		'Description: multi-head latent attention decoding over a paged KV cache' 'Version: $(VERSION)' \
		'Cflags: -I$${includedir}' 'Libs: -L$${libdir} -lflash_mla' 'Libs.private: $(LDLIBS) $(OMP)' >$@

# The command has a copy of its own of what finds OpenCL: the library's is local to it.
$(BUILD)/flashmla: $(CLI_OBJ) $(SHARED_OBJ) $(BUILD)/obj/src/portable/cl_api.c.o $(LIB)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(BUILD)/examples/%: $(BUILD)/obj/examples/%.c.o $(LIB)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)

# Counts allocations of the library's own code.
$(BUILD)/tests/test_properties: LDFLAGS += $(foreach f,malloc calloc realloc aligned_alloc posix_memalign,-Wl,--wrap=$(f))

$(BUILD)/tests/test_cli: $(filter-out %/flashmla.c.o,$(CLI_OBJ))

$(BUILD)/tests/test_%: $(BUILD)/obj/tests/test_%.c.o $(SHARED_OBJ) $(INNER_LIB)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -lcmocka $(LDLIBS)

# Host tests of a CUDA kernel: decode_mma.cu as C++, see tests/mma_emulator.cpp.
$(BUILD)/obj/tests/mma_emulator.cpp.o: tests/mma_emulator.cpp Makefile
	@mkdir -p $(@D)
	$(CXX) $(CPPFLAGS) -Itests -std=c++17 $(OPT) -O1 -Wall -Wextra -Wno-unknown-pragmas $(EXTRA_CFLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/tests/test_portable: $(BUILD)/obj/tests/mma_emulator.cpp.o
$(BUILD)/tests/test_portable: LDLIBS += -lstdc++

# The command's parts, for the fuzz targets: the linker takes what they use.
$(BUILD)/obj/cli.a: $(CLI_OBJ)
	@rm -f $@
	$(AR) rcs $@ $(filter-out %/flashmla.c.o,$^)

# Needs clang and -fsanitize=fuzzer-no-link in EXTRA_CFLAGS, see tests/fuzz.sh.
$(BUILD)/tests/fuzz_%: $(BUILD)/obj/tests/fuzz_%.c.o $(BUILD)/obj/cli.a $(SHARED_OBJ) $(INNER_LIB)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -fsanitize=fuzzer -o $@ $^ $(LDLIBS)

demo: cli
	$(BUILD)/flashmla bench --backend cpu --workload azure-conv --b 32 --h-q 16,64,128 --verify --svg $(BUILD)/demo.svg

check:
	@tests/check.sh
	@$(MAKE) --no-print-directory check-python CUDA=0 BUILD=$(BUILD)/cpu

# One program each, linked with the static library and the static CUDA runtime: they run on any machine with a driver.
GPU_CHECK_OBJ := $(patsubst %,$(BUILD)/obj/%.o,$(wildcard tests/gpu/*.c))
$(BUILD)/check_gpu: $(GPU_CHECK_OBJ) $(SHARED_OBJ) $(INNER_LIB)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)

check-gpu: $(if $(findstring FMLA_WITH_CUDA,$(CPPFLAGS)),$(BUILD)/check_gpu $(CLI))
	@status=0; $(MAKE) --no-print-directory check-python-gpu || status=1; tests/gpu/run.sh $(BUILD) && exit $$status

bench: cli
	$(BUILD)/flashmla bench --backend cpu

GPU_BENCH_OBJ := $(patsubst %,$(BUILD)/obj/%.o,$(wildcard bench/gpu/*.c bench/gpu/*.cu)) $(BUILD)/obj/cli/svg.c.o
$(BUILD)/obj/bench/gpu/bench.c.o: CPPFLAGS += -DBENCH_COMMIT='"$(shell git describe --always --dirty 2>/dev/null)"'
$(BUILD)/obj/bench/gpu/bench.c.o: $(wildcard bench/baselines/h200_*.csv)
$(BUILD)/bench_gpu: $(GPU_BENCH_OBJ) $(LIB)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)

bench-gpu: $(if $(findstring FMLA_WITH_CUDA,$(CPPFLAGS)),$(BUILD)/bench_gpu)
	@mkdir -p bench/results
	$(BUILD)/bench_gpu --csv bench/results/h200.csv --svg $(BUILD)/roofline.svg

C_FILES = $(shell git ls-files '*.c' '*.h' '*.cu' '*.cuh')
lint:
	@tests/lint.sh

format:
	clang-format -i $(C_FILES)

mutants:
	@tests/mutants.sh

fuzz:
	@tests/fuzz.sh $${FUZZ_SECONDS:-600}

coverage:
	@tests/coverage.sh

install: lib cli
	install -d '$(DESTDIR)$(PREFIX)/include' '$(DESTDIR)$(LIBDIR)/pkgconfig'
	install -m 644 include/flash_mla.h '$(DESTDIR)$(PREFIX)/include/'
	install -m 644 $(LIB) '$(DESTDIR)$(LIBDIR)/'
	install -m 755 $(SO).$(VERSION) '$(DESTDIR)$(LIBDIR)/'
	ln -sf $(notdir $(SO)).$(VERSION) '$(DESTDIR)$(LIBDIR)/$(SONAME)'
	ln -sf $(SONAME) '$(DESTDIR)$(LIBDIR)/$(notdir $(SO))'
	install -m 644 $(BUILD)/flash_mla.pc '$(DESTDIR)$(LIBDIR)/pkgconfig/'
ifneq ($(CLI),)
	install -d '$(DESTDIR)$(PREFIX)/bin'
	install -m 755 $(CLI) '$(DESTDIR)$(PREFIX)/bin/'
endif

clean:
	rm -rf $(BUILD)

include python/python.mk

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
