// memory_plan.h: what running a model takes (MemoryPlan of backend.h), and the context that fits what there
// is: on the CPU (src/cpu_memory.cpp) and on a GPU (cuda/layout.cpp). The backends keep to it; the engine,
// `easel info` and `easel bench` ask beforehand.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "backend.h"

namespace easel {

// The largest n in [least, most] for which fits(n), which holds up to some n and not beyond; 0: for none.
int largest_that_fits(int least, int most, const std::function<bool(int)>& fits);

// Bytes of memory that the host has for this process: what is built in, or less, where a control group (a
// container; of cgroup v2) or one that it is in has a limit. root: where proc and sys are mounted.
int64_t host_memory(const std::filesystem::path& root = "/");

// ---- CPU

// Tokens of an encode pass on the CPU, which bounds its buffers.
constexpr int kCpuEncode = 512;
// Query rows that a thread attends with at once there: it holds their scores, over all keys.
constexpr int kCpuRows = 48;
// Tokens before the window that the CPU's cache of a sliding layer keeps: an answer of the default length can
// be taken back. It drops what is older once another kCpuEncode have come.
constexpr int kCpuReserve = 2048;
// Tokens that the CPU's cache of a sliding layer holds at most: before its oldest go, and in a pass.
int cpu_sliding_rows(const Config& config, int n_context);
// What the CPU backend takes with as many threads as there are now: the mapped file, K and V of n_context
// tokens, buffers of the largest pass.
MemoryPlan plan_cpu(const Model& model, int n_context);
// The context asked for, or, for 0, the largest, whose KV cache and buffers are within `limit` bytes. Error
// if there is none: what is needed, the limit, and the largest that fits.
int fit_cpu(const Model& model, int n_context, int64_t limit);

// ---- GPU

// What the CUDA backend takes on the device with these options, n_context and n_encode as they are. Its
// construction and answers stay within that; logits() takes more for what it returns.
MemoryPlan plan_gpu(const Model& model, const DeviceOptions& options);
// The options with the context, the pass and, if it says kFewestOffloaded, the layers that fit into
// `available` bytes. Error if there are none: what is needed, what there is, and the largest context that
// fits.
DeviceOptions fit_gpu(const Model& model, const DeviceOptions& options, int64_t available);
// Of a plan with offloaded experts: "the experts of 8 layers, 4.12 GB, stay in the host's memory and cross
// the bus at every step: 165 ms at 25 GB/s ...".
std::string offload_cost(const MemoryPlan& plan);
// Bytes of the device's memory that are left to the driver and to kernels' own.
constexpr int64_t kDeviceSlack = 256 << 20;

}  // namespace easel
