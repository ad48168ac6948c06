// memory_plan.h: the memory that running a model takes (MemoryPlan of backend.h), and the largest context for
// which it suffices: on the CPU (src/cpu_memory.cpp) and on a GPU (cuda/layout.cpp). The backends keep to the
// plan; the engine, `easel info` and `easel bench` ask for it beforehand.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "backend.h"

namespace easel {

// The largest n in [least, most] with fits(n), or 0. fits() must be true up to some n and false beyond.
int largest_that_fits(int least, int most, const std::function<bool(int)>& fits);

// Bytes of host memory for this process: all that the machine has, or the least limit of the process's
// control group (a container's; cgroup v2) and those around it. root: where proc and sys are, for tests.
int64_t host_memory(const std::filesystem::path& root = "/");

// ---- CPU

// Tokens of an encode pass on the CPU, which bounds its buffers.
constexpr int kCpuEncode = 512;
// Query rows of an attention task on the CPU: a thread holds their scores over all keys.
constexpr int kCpuRows = 48;
// Tokens older than the window that the CPU's cache of a sliding layer keeps, so that truncate() can undo an
// answer of the default length. Older ones are dropped, at least kCpuEncode at a time.
constexpr int kCpuReserve = 2048;
// The most tokens in the CPU's cache of a sliding layer: window and reserve, those that are not dropped yet,
// and those of the running pass.
int cpu_sliding_rows(const Config& config, int n_context);
// What the CPU backend takes with the current number of threads: the mapped file, K and V of n_context
// tokens, buffers of the largest pass.
MemoryPlan plan_cpu(const Model& model, int n_context);
// n_context, or if that is 0 the largest context, whose KV cache and buffers are within `limit` bytes. Error
// if there is none: what is needed, the limit, and the largest that fits.
int fit_cpu(const Model& model, int n_context, int64_t limit);

// ---- GPU

// What the CUDA backend takes on the device with exactly these options. Its construction and answers stay
// within that; logits() allocates more, for its result.
MemoryPlan plan_gpu(const Model& model, const DeviceOptions& options);
// The options with n_encode and, if they are 0 and kFewestOffloaded, n_context and n_offload set so that the
// plan fits `available` bytes. Error if none does: what is needed, what there is, and the largest context
// that fits.
DeviceOptions fit_gpu(const Model& model, const DeviceOptions& options, int64_t available);
// Of a plan with offloaded experts: "the experts of 8 layers, 4.12 GB, stay in the host's memory and cross
// the bus at every step: 165 ms at 25 GB/s ...".
std::string offload_cost(const MemoryPlan& plan);
// Bytes of device memory that no plan takes: for the driver, and for kernels' own use.
constexpr int64_t kDeviceSlack = 256 << 20;

}  // namespace easel
