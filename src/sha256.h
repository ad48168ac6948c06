// sha256.h: SHA-256 (FIPS 180-4) of bytes that come piece by piece. `easel fetch` checks its files with it.
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <string>

namespace easel {

class Sha256 {
  public:
    void add(std::span<const uint8_t> bytes);
    // 64 lower-case hex digits of everything added so far; more can be added after it.
    std::string hex() const;

  private:
    void block(const uint8_t* data);

    std::array<uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                   0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<uint8_t, 64> pending_{};  // the first n_byte_ % 64 are waiting for a whole block
    uint64_t n_byte_ = 0;
};

}  // namespace easel
