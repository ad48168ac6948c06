// device_memory.cpp: counts the device memory that is taken, and keeps it below a limit: see device.h. Called
// by the two implementations of device_alloc() and device_free().
#include <algorithm>
#include <map>
#include <mutex>

#include "check.h"
#include "device.h"

namespace easel {

namespace {

std::mutex mutex;
DeviceMemory memory;
std::map<void*, int64_t> sizes;

}  // namespace

DeviceMemory device_memory() {
    std::lock_guard lock(mutex);
    return memory;
}

void limit_device_memory(int64_t limit) {
    std::lock_guard lock(mutex);
    memory.limit = limit;
    memory.peak = memory.used;
}

void check_alloc(size_t bytes) {
    std::lock_guard lock(mutex);
    require(!memory.limit || memory.used + static_cast<int64_t>(bytes) <= memory.limit,
            "out of GPU memory: {:.2f} GB asked for, {:.2f} of the {:.2f} GB of --memory-limit are taken",
            static_cast<double>(bytes) / 1e9, static_cast<double>(memory.used) / 1e9,
            static_cast<double>(memory.limit) / 1e9);
}

void* count_alloc(void* p, size_t bytes) {
    std::lock_guard lock(mutex);
    sizes[p] = static_cast<int64_t>(bytes);
    memory.used += static_cast<int64_t>(bytes);
    memory.peak = std::max(memory.peak, memory.used);
    return p;
}

void count_free(void* p) noexcept {
    std::lock_guard lock(mutex);
    const auto it = sizes.find(p);
    if (it == sizes.end()) return;
    memory.used -= it->second;
    sizes.erase(it);
}

}  // namespace easel
