# easel: `make demo` shows it at work, `make test` proves it. Everything is built under build/.
#   make            build/easel
#   make test       all tests            make asan     the unit tests under AddressSanitizer and UBSan
#   make fuzz       longer fuzzing       make format   clang-format over the tree
#   make cuda-build all of it through nvcc, for one architecture
#   make lib        build/libeasel.a     make install   PREFIX=/usr/local, DESTDIR for packages; make uninstall
#   make test-gpu   the kernel and loop tests on a GPU     make test-ptx  them without one, as nvcc compiled the kernels
#   make test-fake-gpu  the tests for a GPU, all of the program as it is there, with tests/ptx in place of GPU and
#                       driver; test-fake-gpu-short  of them, those of the host's code
#   make ptxas      registers, spills and occupancy of every kernel      make sass   what their main loops are made of
# Settings: CXX=clang++  MARCH=x86-64-v3 (default: native, the machine that builds)  BUILD=dir
#   WGMMA=0: without wgmma on sm_90a, HALF_SUMS=0: sums in float32 alone on GeForce cards (cuda/ptx.h), to compare
#   STRICT=1: what nvcc warns of is an error
#   NVCC=path (none: CPU only)  ARCH="80 90a" or native (default: native with a GPU, else all that are supported)
BUILD ?= build
CXX ?= g++
MARCH ?= native
OPT ?= -O3
ifeq ($(origin CXX),default)
CXX := g++
endif

EASEL ?= $(BUILD)/easel
# CUDA: with nvcc, the program also runs on GPUs; without it, on the CPU only.
NVCC ?= $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
GPU_CODES := $(if $(NVCC),$(shell $(NVCC) --list-gpu-code 2>/dev/null))
ALL_ARCHS := $(if $(NVCC),$(foreach a,80 86 89 90a 100 120,$(if $(filter sm_$(a:%a=%),$(GPU_CODES)),$(a))))
ARCH ?= $(if $(shell nvidia-smi -L 2>/dev/null),native,all)
ifeq ($(ARCH),native)
ARCHS := $(or $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader | awk '$$1 + 0 >= 8' | sort -u | sed 's/\.//; s/^90$$/90a/'),$(ALL_ARCHS))
else
ARCHS := $(if $(filter all,$(ARCH)),$(ALL_ARCHS),$(ARCH))
endif

DEPS := build/deps
VERSION := 0.1
COMMIT := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
WARN := -Wall -Wextra -Wno-missing-field-initializers -Wno-stringop-overflow -Wno-unknown-warning-option
CPPFLAGS := -Iinclude -Icuda -isystem $(DEPS)/usr/include
CXXFLAGS := -std=c++20 $(OPT) -march=$(MARCH) -g1 $(WARN) $(SAN)
LDFLAGS := -pthread $(SAN) $$(cat $(DEPS)/edit.libs)

# Everything but main and what differs with and without CUDA.
LIB_OBJ := $(patsubst src/%.cpp,$(BUILD)/obj/%.o,$(filter-out src/main.cpp src/no_cuda.cpp,$(wildcard src/*.cpp)))
KERNELS := $(patsubst cuda/%.cu,%,$(wildcard cuda/*.cu))
ifneq ($(NVCC),)
CUDA_HOME := $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
# A distribution's CUDA has its headers in /usr/include, which must stay behind the compiler's own.
CUDA_FLAGS := -DEASEL_CUDA $(if $(filter-out /usr,$(CUDA_HOME)),-isystem $(CUDA_HOME)/include)
CUDA_LIBS := -L$(CUDA_HOME)/lib64 -lcudart_static -ldl -lrt
NVCC_FLAGS := -std=c++20 -O3 -t0 -Iinclude -Icuda -Xcompiler=-Wall $(if $(STRICT),-Werror=all-warnings) $(if $(filter 0,$(WGMMA)),-DEASEL_NO_WGMMA) \
  $(if $(filter 0,$(HALF_SUMS)),-DEASEL_NO_HALF_SUMS) \
  $(foreach a,$(ARCHS),-gencode arch=compute_$(a),code=sm_$(a))
BACKENDS := CPU and CUDA for $(addprefix sm_,$(ARCHS))
NVCC_VERSION := $(shell $(NVCC) --version | sed -n 's/^Cuda compilation tools, release \([^,]*\),.*/nvcc \1/p')
CUDA_OBJ := $(BUILD)/obj/cuda/$(subst $(eval ) ,-,$(strip $(ARCHS)))
DEVICE_OBJ := $(addprefix $(CUDA_OBJ)/,$(addsuffix .o,$(KERNELS) backend forward layout load device_memory offload profile bench_kernels device_cuda))
else
BACKENDS := CPU
NVCC_VERSION := no nvcc
DEVICE_OBJ := $(BUILD)/obj/no_cuda.o $(BUILD)/obj/sim/layout.o
endif
# The kernels, for the simulator: the tests run them on the CPU.
SIM_OBJ := $(addprefix $(BUILD)/obj/sim/,$(addsuffix .o,$(KERNELS) backend forward layout load device_memory offload profile bench_kernels device_sim))
# Of tests/ptx, what has CUDA's headers.
FAKE_GPU := cudart cudart_device test_cudart
PTX_OBJ := $(patsubst tests/%.cpp,$(BUILD)/obj/tests/%.o,$(filter-out $(FAKE_GPU:%=tests/ptx/%.cpp),$(wildcard tests/ptx/*.cpp)))
TEST_OBJ := $(patsubst tests/%.cpp,$(BUILD)/obj/tests/%.o,$(wildcard tests/*.cpp)) $(PTX_OBJ)
SOURCES := $(wildcard include/*.h src/*.cpp src/*.h cuda/*.h cuda/*.cu cuda/*.cpp tests/*.cpp tests/*.h tests/ptx/*.cpp tests/ptx/*.h tests/fuzz/*.cpp tests/library/*.cpp)

.PHONY: all deps demo lib install uninstall test test-gpu test-ptx traffic unit-gpu unit-fake-gpu test-fake-gpu test-fake-gpu-short cuda-build ptxas sass unit asan fuzz fuzz-short format format-check clean FORCE
all: $(EASEL)

$(EASEL): $(BUILD)/obj/main.o $(LIB_OBJ) $(DEVICE_OBJ) $(EASEL).archs
	$(CXX) $(filter %.o,$^) $(LDFLAGS) $(CUDA_LIBS) -o $@
	@echo "built $@: $(BACKENDS)"
# Changes when the program is to be built for something else.
$(EASEL).archs: FORCE
	@mkdir -p $(@D)
	@echo '$(BACKENDS)' | cmp -s - $@ || echo '$(BACKENDS)' >$@
FORCE:

# What objects are compiled with: they are made anew when it changes. It is compared here and not by a recipe, so that
# `make -n` tells what there is to do.
FLAGS := $(strip $(CXX) $(CPPFLAGS) $(CXXFLAGS))
ifneq ($(FLAGS),$(shell cat $(BUILD)/obj/flags 2>/dev/null))
$(BUILD)/obj/flags: FORCE
endif
$(BUILD)/obj/flags:
	@mkdir -p $(@D)
	@echo '$(FLAGS)' >$@
ifneq ($(NVCC),)
DEVICE_FLAGS := $(strip $(NVCC) $(NVCC_FLAGS))
ifneq ($(DEVICE_FLAGS),$(shell cat $(CUDA_OBJ)/flags 2>/dev/null))
$(CUDA_OBJ)/flags: FORCE
endif
$(CUDA_OBJ)/flags:
ifneq ($(shell printf 'nvcc 12.4\n%s\n' "$(NVCC_VERSION)" | sort -V | head -n 1),nvcc 12.4)
	@echo "$(NVCC) is $(NVCC_VERSION), expected 12.4 or later; make NVCC= builds for the CPU alone" >&2; exit 1
endif
	@mkdir -p $(@D)
	@echo '$(DEVICE_FLAGS)' >$@
endif

$(BUILD)/unit: $(TEST_OBJ) $(LIB_OBJ) $(SIM_OBJ)
	$(CXX) $^ $(LDFLAGS) $$(cat $(DEPS)/catch.libs) -o $@

$(BUILD)/obj/%.o: src/%.cpp $(BUILD)/obj/flags | $(DEPS)/ready
	@mkdir -p $(@D)
	$(CXX) $(CPPFLAGS) $(CXXFLAGS) -MMD -MP -c $< -o $@

$(CUDA_OBJ)/%.o: cuda/%.cu $(CUDA_OBJ)/flags | $(DEPS)/ready
	@mkdir -p $(@D)
	$(NVCC) $(NVCC_FLAGS) -MMD -MP -MF $(@:.o=.d) -c $< -o $@
$(CUDA_OBJ)/%.o: cuda/%.cpp $(CUDA_OBJ)/flags $(BUILD)/obj/flags | $(DEPS)/ready
	@mkdir -p $(@D)
	$(CXX) $(CUDA_FLAGS) $(CPPFLAGS) $(CXXFLAGS) -DEASEL_ARCHS='"$(ARCHS)"' -MMD -MP -c $< -o $@

$(BUILD)/obj/sim/%.o: cuda/%.cu $(BUILD)/obj/flags | $(DEPS)/ready
	@mkdir -p $(@D)
	$(CXX) $(CPPFLAGS) $(CXXFLAGS) -MMD -MP -x c++ -c $< -o $@
$(BUILD)/obj/sim/%.o: cuda/%.cpp $(BUILD)/obj/flags | $(DEPS)/ready
	@mkdir -p $(@D)
	$(CXX) $(CPPFLAGS) $(CXXFLAGS) -MMD -MP -c $< -o $@

$(BUILD)/obj/tests/%.o: tests/%.cpp $(BUILD)/obj/flags | $(DEPS)/ready
	@mkdir -p $(@D)
	$(CXX) $(CPPFLAGS) -Isrc -Itests $(CXXFLAGS) -O1 -MMD -MP -c $< -o $@

# Without this g++ makes no vector code of a ?: between floats. Nothing reads the exception flags.
$(BUILD)/obj/reference.o $(BUILD)/obj/sampler.o: CXXFLAGS += -fno-trapping-math

# The demo model is part of the program. What --version tells is compiled anew when it changes.
$(BUILD)/obj/demo.o: src/demo.gguf
$(BUILD)/obj/models.o: models.txt
$(BUILD)/obj/line_input.o: CPPFLAGS += $$(cat $(DEPS)/edit.flags)
$(BUILD)/obj/trace_page.o: src/trace.html
FACTS := -DEASEL_VERSION='"$(VERSION)"' -DEASEL_COMMIT='"$(COMMIT)"' -DEASEL_CUDA_COMPILER='"$(NVCC_VERSION)"'
$(BUILD)/obj/version.o: CPPFLAGS += $(FACTS)
$(BUILD)/obj/version.o: $(BUILD)/obj/version.facts
$(BUILD)/obj/version.facts: FORCE
	@mkdir -p $(@D)
	@echo "$(FACTS)" | cmp -s - $@ || echo "$(FACTS)" >$@

# The library and all of the program for others. The headers are what easel.h includes.
PREFIX ?= /usr/local
override PREFIX := $(abspath $(PREFIX))
ROOT := $(DESTDIR)$(PREFIX)
# To make, and to the rm of `make uninstall`, a name with a blank would be two.
NO_BLANKS = $(if $(word 2,$(ROOT)),$(error PREFIX and DESTDIR give "$(ROOT)", expected a folder without blanks in its name))
HEADERS := easel.h backend.h chat.h error.h gguf.h model.h quant.h sampler.h tokenizer.h
INSTALLED := bin/easel lib/libeasel.a lib/pkgconfig/easel.pc share/man/man1/easel.1 \
  share/bash-completion/completions/easel share/zsh/site-functions/_easel share/fish/vendor_completions.d/easel.fish \
  $(addprefix include/easel/,$(HEADERS))
lib: $(BUILD)/libeasel.a
$(BUILD)/libeasel.a: $(LIB_OBJ) $(DEVICE_OBJ) $(EASEL).archs
	rm -f $@
	$(AR) rcs $@ $(filter %.o,$^)
install: $(EASEL) $(BUILD)/libeasel.a
	$(NO_BLANKS)mkdir -p $(sort $(dir $(addprefix $(ROOT)/,$(INSTALLED))))
	install -s -m 755 $(EASEL) $(ROOT)/bin/easel
	install -m 644 $(BUILD)/libeasel.a $(ROOT)/lib
	install -m 644 $(addprefix include/,$(HEADERS)) $(ROOT)/include/easel
	printf '%s\n' 'prefix=$(PREFIX)' 'Name: easel' 'Description: DiffusionGemma from GGUF files (C++20)' \
	  'Version: $(VERSION)' 'Cflags: -I$${prefix}/include' \
	  'Libs: -L$${prefix}/lib -leasel -pthread $(CUDA_LIBS)' >$(ROOT)/lib/pkgconfig/easel.pc
	$(EASEL) man >$(ROOT)/share/man/man1/easel.1
	$(EASEL) completion bash >$(ROOT)/share/bash-completion/completions/easel
	$(EASEL) completion zsh >$(ROOT)/share/zsh/site-functions/_easel
	$(EASEL) completion fish >$(ROOT)/share/fish/vendor_completions.d/easel.fish
uninstall:
	$(NO_BLANKS)rm -f $(addprefix $(ROOT)/,$(INSTALLED))
	cd $(ROOT) && rmdir -p --ignore-fail-on-non-empty $(sort $(dir $(INSTALLED))) 2>/dev/null || true

deps: $(DEPS)/ready
$(DEPS)/ready: tools/deps.sh
	@CXX='$(CXX)' sh tools/deps.sh $(DEPS)

-include $(wildcard $(BUILD)/obj/*.d $(BUILD)/obj/tests/*.d $(BUILD)/obj/tests/ptx/*.d $(BUILD)/obj/sim/*.d $(CUDA_OBJ)/*.d $(CUDA_OBJ)/gpu/*.d)

demo: $(EASEL)
	sh tools/demo.sh $(EASEL)

unit: $(BUILD)/unit
	$(BUILD)/unit $(UNIT_FILTER)

test:
	@BUILD=$(BUILD) CXX='$(CXX)' sh tests/run.sh

asan:
	$(MAKE) BUILD=build/asan OPT=-O1 SAN="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer" UNIT_FILTER="~[slow]" unit

include tests/gpu.mk

# libFuzzer targets; clang only. FUZZ_SECONDS a target.
FUZZ_SECONDS ?= 60
FUZZ := $(patsubst tests/fuzz/%.cpp,build/fuzz/%,$(wildcard tests/fuzz/*.cpp))
build/fuzz/%: tests/fuzz/%.cpp $(wildcard src/*.cpp include/*.h tests/*.h) | $(DEPS)/ready
	@mkdir -p $(@D)
	clang++ -std=c++20 -O1 -g1 $(CPPFLAGS) -DFMT_HEADER_ONLY -Itests -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
	  $< $(addprefix src/,$(shell sed -n 's|^// sources: ||p' $<)) -pthread -o $@
fuzz: $(FUZZ)
	@for f in $(FUZZ); do sh tests/fuzz.sh $$f $(FUZZ_SECONDS) || exit 1; done
fuzz-short:
	$(MAKE) FUZZ_SECONDS=10 fuzz

format:
	clang-format -i $(SOURCES)
format-check:
	clang-format --dry-run -Werror $(SOURCES)

clean:
	rm -rf $(BUILD)
