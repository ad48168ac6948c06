# easel: `make demo` shows it at work, `make test` proves it. Everything is built under build/.
#   make            build/easel
#   make test       all tests            make asan     the unit tests under AddressSanitizer and UBSan
#   make fuzz       longer fuzzing       make format   clang-format over the tree
# Settings: CXX=clang++  MARCH=x86-64-v3 (default: native, the machine that builds)  BUILD=dir
BUILD ?= build
CXX ?= g++
MARCH ?= native
OPT ?= -O3
ifeq ($(origin CXX),default)
CXX := g++
endif

DEPS := build/deps
COMMIT := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
WARN := -Wall -Wextra -Wno-missing-field-initializers -Wno-stringop-overflow -Wno-unknown-warning-option
CPPFLAGS := -Iinclude -Icuda -isystem $(DEPS)/usr/include -DFMT_HEADER_ONLY
CXXFLAGS := -std=c++20 $(OPT) -march=$(MARCH) -g1 $(WARN) $(SAN)
LDFLAGS := -pthread $(SAN)

LIB_OBJ := $(patsubst src/%.cpp,$(BUILD)/obj/%.o,$(filter-out src/main.cpp,$(wildcard src/*.cpp)))
# The kernels, for the simulator: the tests run them on the CPU.
SIM_OBJ := $(patsubst cuda/%.cu,$(BUILD)/obj/sim/%.o,$(filter-out cuda/device_cuda.cu,$(wildcard cuda/*.cu))) $(BUILD)/obj/sim/device_sim.o
TEST_OBJ := $(patsubst tests/%.cpp,$(BUILD)/obj/tests/%.o,$(wildcard tests/*.cpp))
SOURCES := $(wildcard include/*.h src/*.cpp src/*.h cuda/*.h cuda/*.cu cuda/*.cpp tests/*.cpp tests/*.h tests/fuzz/*.cpp)

.PHONY: all deps demo test unit asan fuzz format format-check clean
all: $(BUILD)/easel

$(BUILD)/easel: $(BUILD)/obj/main.o $(LIB_OBJ)
	$(CXX) $^ $(LDFLAGS) -o $@
	@echo "built $@: CPU only (this version has no CUDA backend yet)"

$(BUILD)/unit: $(TEST_OBJ) $(LIB_OBJ) $(SIM_OBJ)
	$(CXX) $^ $(LDFLAGS) $$(cat $(DEPS)/catch.libs) -o $@

$(BUILD)/obj/%.o: src/%.cpp | $(DEPS)/ready
	@mkdir -p $(@D)
	$(CXX) $(CPPFLAGS) $(CXXFLAGS) -MMD -MP -c $< -o $@

$(BUILD)/obj/sim/%.o: cuda/%.cu | $(DEPS)/ready
	@mkdir -p $(@D)
	$(CXX) $(CPPFLAGS) $(CXXFLAGS) -MMD -MP -x c++ -c $< -o $@
$(BUILD)/obj/sim/%.o: cuda/%.cpp | $(DEPS)/ready
	@mkdir -p $(@D)
	$(CXX) $(CPPFLAGS) $(CXXFLAGS) -MMD -MP -c $< -o $@

$(BUILD)/obj/tests/%.o: tests/%.cpp | $(DEPS)/ready
	@mkdir -p $(@D)
	$(CXX) $(CPPFLAGS) -Isrc -Itests $(CXXFLAGS) -O1 -MMD -MP -c $< -o $@

# The demo model is part of the program; the commit is part of --version.
$(BUILD)/obj/demo.o: src/demo.gguf
$(BUILD)/obj/main.o: CPPFLAGS += -DEASEL_COMMIT='"$(COMMIT)"'

deps: $(DEPS)/ready
$(DEPS)/ready: tools/deps.sh
	@CXX=$(CXX) sh tools/deps.sh $(DEPS)

-include $(wildcard $(BUILD)/obj/*.d $(BUILD)/obj/tests/*.d $(BUILD)/obj/sim/*.d)

demo: $(BUILD)/easel
	sh tools/demo.sh $(BUILD)/easel

unit: $(BUILD)/unit
	$(BUILD)/unit

test:
	@BUILD=$(BUILD) CXX=$(CXX) sh tests/run.sh

asan:
	$(MAKE) BUILD=build/asan OPT=-O1 SAN="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer" unit

# libFuzzer targets; clang only. FUZZ_SECONDS a target.
FUZZ_SECONDS ?= 60
FUZZ := $(patsubst tests/fuzz/%.cpp,build/fuzz/%,$(wildcard tests/fuzz/*.cpp))
build/fuzz/%: tests/fuzz/%.cpp $(wildcard src/*.cpp include/*.h tests/*.h) | $(DEPS)/ready
	@mkdir -p $(@D)
	clang++ -std=c++20 -O1 -g1 $(CPPFLAGS) -Itests -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
	  $< $(addprefix src/,$(shell sed -n 's|^// sources: ||p' $<)) -pthread -o $@
fuzz: $(FUZZ)
	@for f in $(FUZZ); do sh tests/fuzz.sh $$f $(FUZZ_SECONDS) || exit 1; done

format:
	clang-format -i $(SOURCES)
format-check:
	clang-format --dry-run -Werror $(SOURCES)

clean:
	rm -rf $(BUILD)
