# gpu.mk: the kernels' tests on a GPU, as PTX, and on a stand-in for CUDA's runtime; what ptxas and nvdisasm say of the
# kernels. Included by the Makefile, which has the settings.

# The tests of kernels and of the whole backend, for a GPU. Those with kernels of their own go through nvcc.
GPU_TESTS := linear head attention norm moe embed sample accept device memory
GPU_KERNEL_TESTS := $(CUDA_OBJ)/gpu/test_ptx.o $(CUDA_OBJ)/gpu/test_repack.o
GPU_OBJ := $(GPU_TESTS:%=$(CUDA_OBJ)/gpu/test_%.o) $(GPU_KERNEL_TESTS) $(BUILD)/obj/tests/unit_main.o
$(GPU_KERNEL_TESTS): $(CUDA_OBJ)/gpu/%.o: tests/%.cpp $(CUDA_OBJ)/flags | $(DEPS)/ready
	@mkdir -p $(@D)
	$(NVCC) $(NVCC_FLAGS) -x cu -Isrc -Itests -isystem $(DEPS)/usr/include -MMD -MP -MF $(@:.o=.d) -c $< -o $@
$(CUDA_OBJ)/gpu/%.o: tests/%.cpp $(CUDA_OBJ)/flags $(BUILD)/obj/flags | $(DEPS)/ready
	@mkdir -p $(@D)
	$(CXX) $(CUDA_FLAGS) $(CPPFLAGS) -Isrc -Itests $(CXXFLAGS) -O1 -MMD -MP -c $< -o $@
$(CUDA_OBJ)/unit-gpu: $(GPU_OBJ) $(LIB_OBJ) $(DEVICE_OBJ)
	$(CXX) $^ $(LDFLAGS) $(CUDA_LIBS) $$(cat $(DEPS)/catch.libs) -o $@
unit-gpu: $(CUDA_OBJ)/unit-gpu
test-gpu: $(if $(NVCC),unit-gpu)
	@if [ -z "$(NVCC)" ]; then echo "SKIPPED test-gpu: there is no nvcc"; else sh tests/gpu.sh $(CUDA_OBJ)/unit-gpu $(GPU_TESTS); fi

# That nvcc takes the program and the GPU tests without a warning, for one architecture, and that the program starts
# where there is no driver.
cuda-build:
ifeq ($(NVCC),)
	@echo "SKIPPED cuda-build: there is no nvcc"
else
	$(MAKE) ARCH=90a EASEL=$(BUILD)/cuda/easel all unit-gpu
	CXX='$(CXX)' sh tools/launches.sh >/dev/null
	$(BUILD)/cuda/easel info
endif

# Registers, spills and occupancy of every kernel, and the instructions of the main loops, for one architecture.
PTXAS_ARCH ?= 90a
PTXAS_FLAGS = $(filter-out -gencode arch=% -t0,$(NVCC_FLAGS))
ptxas: | $(DEPS)/ready
	@CXX='$(CXX)' sh tools/ptxas.sh "$(NVCC)" $(PTXAS_ARCH) $(PTXAS_FLAGS)
sass:
	@python3 tools/sass.py "$(NVCC)" $(PTXAS_ARCH) $(PTXAS_FLAGS)

# The tests without a GPU, but with the kernels as nvcc compiled them (tests/ptx/code.h); and what accesses of the kernels
# to memory cost.
PTX := $(patsubst cuda/%.cu,$(BUILD)/ptx/%.ptx,$(wildcard cuda/*.cu)) $(BUILD)/ptx/test_ptx.ptx $(BUILD)/ptx/test_repack.ptx
PTX_FLAGS := $(strip $(NVCC) $(PTXAS_ARCH) $(filter-out -Werror=%,$(PTXAS_FLAGS)))
ifneq ($(PTX_FLAGS),$(shell cat $(BUILD)/ptx/flags 2>/dev/null))
$(BUILD)/ptx/flags: FORCE
endif
$(BUILD)/ptx/flags:
	@mkdir -p $(@D)
	@echo '$(PTX_FLAGS)' >$@
TO_PTX = @mkdir -p $(@D); $(NVCC) $(PTXAS_FLAGS) -ptx -x cu -Isrc -Itests -isystem $(DEPS)/usr/include -arch=compute_
$(BUILD)/ptx/test_%.ptx: tests/test_%.cpp $(wildcard cuda/*.h include/*.h tests/*.h) $(BUILD)/ptx/flags | $(DEPS)/ready
	$(TO_PTX)$(PTXAS_ARCH) $< -o $@
$(BUILD)/ptx/%.ptx: cuda/%.cu $(wildcard cuda/*.h include/*.h) $(BUILD)/ptx/flags | $(DEPS)/ready
	$(TO_PTX)$(PTXAS_ARCH) $< -o $@
# What is not the same on 8.6: products without wgmma but with sums in F16, and with the least shared memory.
PTX_86 := $(patsubst %,$(BUILD)/ptx-86/%.ptx,linear head embed peak)
$(PTX_86): $(BUILD)/ptx-86/%.ptx: cuda/%.cu $(wildcard cuda/*.h include/*.h) $(BUILD)/ptx/flags | $(DEPS)/ready
	$(TO_PTX)86 $< -o $@
ifeq ($(NVCC),)
test-ptx traffic test-fake-gpu test-fake-gpu-short:
	@echo "SKIPPED $@: there is no nvcc"
else
test-ptx: $(BUILD)/unit $(PTX) $(PTX_86)
	EASEL_PTX=$(BUILD)/ptx $(BUILD)/unit '~[slow]'
	EASEL_PTX=$(BUILD)/ptx-86 EASEL_PTX_SHARED_KIB=99 $(BUILD)/unit 'linear*,gate_up*,expert*,lm_head*,soft_emb*,mma_peak*,device: logits w*'
# The GPU tests without a GPU: what they are on one, but with tests/ptx/cudart.cpp in place of CUDA's runtime.
FAKE_GPU_OBJ := $(FAKE_GPU:%=$(CUDA_OBJ)/gpu/%.o)
$(FAKE_GPU_OBJ): $(CUDA_OBJ)/gpu/%.o: tests/ptx/%.cpp $(CUDA_OBJ)/flags $(BUILD)/obj/flags | $(DEPS)/ready
	@mkdir -p $(@D)
	$(CXX) $(CUDA_FLAGS) $(CPPFLAGS) -Itests $(CXXFLAGS) -O1 -MMD -MP -c $< -o $@
$(CUDA_OBJ)/unit-fake-gpu: $(GPU_OBJ) $(LIB_OBJ) $(DEVICE_OBJ) $(FAKE_GPU_OBJ) $(PTX_OBJ)
	$(CXX) $^ $(LDFLAGS) $$(cat $(DEPS)/catch.libs) -o $@
unit-fake-gpu: $(CUDA_OBJ)/unit-fake-gpu
test-fake-gpu test-fake-gpu-short: $(PTX)
	$(MAKE) ARCH=90a unit-fake-gpu
	EASEL_PTX=$(BUILD)/ptx sh tests/fake_gpu.sh $(BUILD)/obj/cuda/90a/unit-fake-gpu $(if $(filter %-short,$@),short)
traffic: $(BUILD)/unit $(PTX)
	EASEL_PTX_TRAFFIC=1 EASEL_PTX=$(BUILD)/ptx $(BUILD)/unit 'attention: the*,linear: sizes*,linear: every*,gate_up*,expert*,lm_head: l*,soft_emb*,[norm],[moe]'
endif
