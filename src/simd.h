// simd.h: what the CPU's products share: how their loops are unrolled, and blocks of 8 x 8 transposed.
#pragma once
#include <cstdint>

// UNROLL: for loops over a tile, whose sums are registers only if unrolled. TWICE: for loops over columns;
// unrolled further, g++ moves their loads so far ahead that the sums no longer fit.
#define UNROLL _Pragma("GCC unroll 8")
#define TWICE _Pragma("GCC unroll 2")

namespace easel {

// Eight rows of eight 32-bit elements of any type become columns; in_stride and out_stride: bytes between
// rows.
inline void transpose_8x8(const void* in, int64_t in_stride, void* out, int64_t out_stride) {
    const auto row = [&](int i) { return static_cast<const char*>(in) + i * in_stride; };
    const auto column = [&](int i) { return static_cast<char*>(out) + i * out_stride; };
#ifdef __AVX2__
    typedef uint32_t Vec8 __attribute__((vector_size(32), aligned(4), may_alias));
    // Pairs of elements as one element of 64 bits, for which g++ finds cheaper instructions.
    typedef uint64_t Pairs __attribute__((vector_size(32)));
    Vec8 a[8];
    Pairs b[8], c[8];
    for (int i = 0; i < 8; i++) a[i] = *reinterpret_cast<const Vec8*>(row(i));
    for (int i = 0; i < 8; i += 2) {
        b[i] = Pairs(__builtin_shufflevector(a[i], a[i + 1], 0, 8, 1, 9, 4, 12, 5, 13));
        b[i + 1] = Pairs(__builtin_shufflevector(a[i], a[i + 1], 2, 10, 3, 11, 6, 14, 7, 15));
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            c[i + 2 * j] = __builtin_shufflevector(b[i + j], b[i + j + 2], 0, 4, 2, 6);
            c[i + 2 * j + 1] = __builtin_shufflevector(b[i + j], b[i + j + 2], 1, 5, 3, 7);
        }
    const auto store = [&](int i, Pairs v) { *reinterpret_cast<Vec8*>(column(i)) = Vec8(v); };
    for (int i = 0; i < 4; i++) {
        store(i, __builtin_shufflevector(c[i], c[i + 4], 0, 1, 4, 5));
        store(i + 4, __builtin_shufflevector(c[i], c[i + 4], 2, 3, 6, 7));
    }
#else  // four blocks of 4 x 4
    typedef uint32_t Vec4 __attribute__((vector_size(16), aligned(4), may_alias));
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 8; j += 4) {
            Vec4 a[4], b[4];
            for (int k = 0; k < 4; k++) a[k] = reinterpret_cast<const Vec4*>(row(i + k))[j / 4];
            for (int k = 0; k < 2; k++) {
                b[k] = __builtin_shufflevector(a[2 * k], a[2 * k + 1], 0, 4, 1, 5);
                b[k + 2] = __builtin_shufflevector(a[2 * k], a[2 * k + 1], 2, 6, 3, 7);
            }
            const auto store = [&](int k, Vec4 v) { reinterpret_cast<Vec4*>(column(j + k))[i / 4] = v; };
            for (int k = 0; k < 4; k += 2) {
                store(k, __builtin_shufflevector(b[k], b[k + 1], 0, 1, 4, 5));
                store(k + 1, __builtin_shufflevector(b[k], b[k + 1], 2, 3, 6, 7));
            }
        }
#endif
}

}  // namespace easel
