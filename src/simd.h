// simd.h: what the CPU's products share: how their loops are unrolled, and blocks of 8 x 8 transposed.
#pragma once
#include <cstdint>

// Loops over a tile must be unrolled, so that its sums are registers; those over columns by two only, or g++
// moves their loads so far ahead that the sums no longer fit.
#define UNROLL _Pragma("GCC unroll 8")
#define TWICE _Pragma("GCC unroll 2")

namespace easel {

// Eight rows of eight 32-bit elements of any type become columns; in_stride and out_stride: bytes between
// rows.
inline void transpose_8x8(const void* in, int64_t in_stride, void* out, int64_t out_stride) {
    typedef uint32_t Vec8 __attribute__((vector_size(32), aligned(4), may_alias));
    const auto in_row = [&](int i) {
        return *reinterpret_cast<const Vec8*>(static_cast<const char*>(in) + i * in_stride);
    };
    const auto out_row = [&](int i) -> Vec8& {
        return *reinterpret_cast<Vec8*>(static_cast<char*>(out) + i * out_stride);
    };
    // Pairs of elements as one of 64 bits: so g++ finds the cheaper instructions.
    typedef uint64_t Vec4 __attribute__((vector_size(32)));
    Vec8 a[8];
    Vec4 b[8], c[8];
    for (int i = 0; i < 8; i++) a[i] = in_row(i);
    for (int i = 0; i < 8; i += 2) {
        b[i] = Vec4(__builtin_shufflevector(a[i], a[i + 1], 0, 8, 1, 9, 4, 12, 5, 13));
        b[i + 1] = Vec4(__builtin_shufflevector(a[i], a[i + 1], 2, 10, 3, 11, 6, 14, 7, 15));
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            c[i + 2 * j] = __builtin_shufflevector(b[i + j], b[i + j + 2], 0, 4, 2, 6);
            c[i + 2 * j + 1] = __builtin_shufflevector(b[i + j], b[i + j + 2], 1, 5, 3, 7);
        }
    for (int i = 0; i < 4; i++) {
        out_row(i) = Vec8(__builtin_shufflevector(c[i], c[i + 4], 0, 1, 4, 5));
        out_row(i + 4) = Vec8(__builtin_shufflevector(c[i], c[i + 4], 2, 3, 6, 7));
    }
}

}  // namespace easel
