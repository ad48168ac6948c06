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
    Vec8 a[8], b[8];
    for (int i = 0; i < 8; i++) a[i] = in_row(i);
    for (int i = 0; i < 8; i += 2) {
        b[i] = __builtin_shufflevector(a[i], a[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        b[i + 1] = __builtin_shufflevector(a[i], a[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            a[i + j] = __builtin_shufflevector(b[i + j], b[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            a[i + j + 2] = __builtin_shufflevector(b[i + j], b[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; i++) {
        out_row(i) = __builtin_shufflevector(a[i], a[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        out_row(i + 4) = __builtin_shufflevector(a[i], a[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

}  // namespace easel
