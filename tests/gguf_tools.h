// gguf_tools.h: what the tests and the fuzzer of the GGUF reader share: reading everything that a file claims
// to hold, and bytes whose end is guarded.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "gguf.h"

namespace easel {

// Reads every byte that an opened file promises to be readable, so that a wrong promise is seen.
inline uint64_t read_everything(const Gguf& file) {
    uint64_t sum = 0;
    const auto add = [&](const uint8_t* p, size_t n) {
        for (size_t i = 0; i < n; i++) sum = sum * 31 + p[i];
    };
    for (const auto& [key, value] : file.values()) {
        add(reinterpret_cast<const uint8_t*>(key.data()), key.size());
        add(value.data, value.end - value.data);
        for (std::string_view s : value.string) add(reinterpret_cast<const uint8_t*>(s.data()), s.size());
        if (value.is_number()) sum += static_cast<uint64_t>(to_integer(value)) + (to_double(value) > 0);
        if (value.is_array() && value.item != ValueType::String)
            for (uint64_t i = 0; i < value.count; i++) sum += item_to_double(value, i) > 0;
    }
    for (const Tensor& t : file.tensors()) {
        add(reinterpret_cast<const uint8_t*>(t.name.data()), t.name.size());
        add(t.data, t.bytes);
        sum += t.shape().size();
    }
    return sum;
}

// A copy of `bytes` that ends where a page begins that nobody may read: one byte too many crashes in every
// build, not only under AddressSanitizer.
class Guarded {
  public:
    explicit Guarded(std::string_view bytes) : size_(bytes.size()) {
        const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        mapped_ = (size_ + page - 1) / page * page + page;
        base_ = static_cast<uint8_t*>(
            mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        mprotect(base_ + mapped_ - page, page, PROT_NONE);
        first_ = base_ + mapped_ - page - size_;
        if (size_) std::memcpy(first_, bytes.data(), size_);
    }
    ~Guarded() { munmap(base_, mapped_); }
    Guarded(const Guarded&) = delete;
    Guarded& operator=(const Guarded&) = delete;

    std::span<uint8_t> bytes() const { return {first_, size_}; }

  private:
    size_t size_, mapped_;
    uint8_t *base_, *first_;
};

}  // namespace easel
