// sha256.cpp: sections 4.1.2, 5.1.1 and 6.2.2 of FIPS 180-4, with its letters. Used by fetch.cpp.
#include "sha256.h"

#include <bit>
#include <cstring>

#include "check.h"

namespace easel {

namespace {

// Section 4.2.2: the first 32 bits of the fractional parts of the cube roots of the first 64 primes.
constexpr uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

}  // namespace

void Sha256::block(const uint8_t* data) {
    uint32_t w[64];
    for (int t = 0; t < 16; t++)
        w[t] = uint32_t{data[4 * t]} << 24 | uint32_t{data[4 * t + 1]} << 16 |
               uint32_t{data[4 * t + 2]} << 8 | data[4 * t + 3];
    for (int t = 16; t < 64; t++) {
        const uint32_t s0 = std::rotr(w[t - 15], 7) ^ std::rotr(w[t - 15], 18) ^ w[t - 15] >> 3;
        const uint32_t s1 = std::rotr(w[t - 2], 17) ^ std::rotr(w[t - 2], 19) ^ w[t - 2] >> 10;
        w[t] = s1 + w[t - 7] + s0 + w[t - 16];
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    for (int t = 0; t < 64; t++) {
        const uint32_t sum1 = std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25);
        const uint32_t t1 = h + sum1 + ((e & f) ^ (~e & g)) + K[t] + w[t];
        const uint32_t sum0 = std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22);
        const uint32_t t2 = sum0 + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    const uint32_t add[] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; i++) state_[i] += add[i];
}

void Sha256::add(std::span<const uint8_t> bytes) {
    const size_t n_pending = n_byte_ % 64;
    n_byte_ += bytes.size();
    if (n_pending > 0) {
        const size_t n = std::min(bytes.size(), 64 - n_pending);
        if (n > 0) std::memcpy(pending_.data() + n_pending, bytes.data(), n);
        if (n_pending + n < 64) return;
        block(pending_.data());
        bytes = bytes.subspan(n);
    }
    for (; bytes.size() >= 64; bytes = bytes.subspan(64)) block(bytes.data());
    if (!bytes.empty()) std::memcpy(pending_.data(), bytes.data(), bytes.size());
}

std::string Sha256::hex() const {
    Sha256 last = *this;
    const uint64_t n_bit = n_byte_ * 8;
    // One bit, zeros up to 8 bytes before a block's end, the length in bits.
    uint8_t padding[72] = {0x80};
    const size_t n_padding = 1 + (119 - n_byte_ % 64) % 64;
    for (int i = 0; i < 8; i++) padding[n_padding + i] = static_cast<uint8_t>(n_bit >> (56 - 8 * i));
    last.add({padding, n_padding + 8});
    std::string text;
    for (const uint32_t word : last.state_) text += fmt::format("{:08x}", word);
    return text;
}

}  // namespace easel
