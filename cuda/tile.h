// tile.h: products of small matrices in shared memory, one warp each, for kernels that are written once for
// F16 (tensor cores) and for float (plain multiply-adds, where exactness is asked for).
//
// Accumulators acc[n][4] are those of mma.m16n8k16, whatever the type: lane 4 g + t holds, of the 16 x 8 tile
// n, (row g, column 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1). Rows in shared memory begin at multiples of 16
// bytes; a row stride of 16 bytes more than a multiple of 128 keeps ldmatrix free of bank conflicts.
#pragma once
#include "ptx.h"

namespace easel {

DEVICE void mma_m16n8k16(F16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    mma_m16n8k16_f16(d, a, b0, b1);
}
// Elements between rows of a tile of `n` columns.
template <class T>
constexpr int tile_stride(int n) {
    return n + 16 / static_cast<int>(sizeof(T));
}

// acc [16, 8 NT] += a [16, k] b^T, b [8 NT, k]; a, b shared, row strides lda, ldb; k a multiple of 16, NT
// even.
template <int NT, class T>
DEVICE void multiply_nt(float (&acc)[NT][4], const T* a, int lda, const T* b, int ldb, int k) {
    const int lane = threadIdx.x % 32;
    if constexpr (sizeof(T) == 4) {
        const int g = lane / 4, t = lane % 4;
        for (int n = 0; n < NT; n++)
            for (int i = 0; i < 4; i++) {
                const T *x = a + (g + i / 2 * 8) * lda, *y = b + (n * 8 + 2 * t + i % 2) * ldb;
                float sum = 0;
                for (int j = 0; j < k; j++) sum += x[j] * y[j];
                acc[n][i] += sum;
            }
    } else {
        for (int j = 0; j < k; j += 16) {
            uint32_t x[4];
            ldmatrix(x, a + lane % 16 * lda + j + lane / 16 * 8);
            UNROLL for (int n = 0; n < NT; n += 2) {
                uint32_t y[4];
                ldmatrix(y, b + (n * 8 + lane % 8 + lane / 16 * 8) * ldb + j + lane / 8 % 2 * 8);
                mma_m16n8k16_f16(acc[n], x, y[0], y[1]);
                mma_m16n8k16_f16(acc[n + 1], x, y[2], y[3]);
            }
        }
    }
}

// acc [16, 8 NT] += a [16, k] b, b [k, 8 NT]; as above.
template <int NT, class T>
DEVICE void multiply_nn(float (&acc)[NT][4], const T* a, int lda, const T* b, int ldb, int k) {
    const int lane = threadIdx.x % 32;
    if constexpr (sizeof(T) == 4) {
        const int g = lane / 4, t = lane % 4;
        for (int n = 0; n < NT; n++)
            for (int i = 0; i < 4; i++) {
                const T *x = a + (g + i / 2 * 8) * lda, *y = b + n * 8 + 2 * t + i % 2;
                float sum = 0;
                for (int j = 0; j < k; j++) sum += x[j] * y[j * ldb];
                acc[n][i] += sum;
            }
    } else {
        for (int j = 0; j < k; j += 16) {
            uint32_t x[4];
            ldmatrix(x, a + lane % 16 * lda + j + lane / 16 * 8);
            UNROLL for (int n = 0; n < NT; n += 2) {
                uint32_t y[4];
                ldmatrix_trans(y, b + (j + lane % 16) * ldb + n * 8 + lane / 16 * 8);
                mma_m16n8k16_f16(acc[n], x, y[0], y[1]);
                mma_m16n8k16_f16(acc[n + 1], x, y[2], y[3]);
            }
        }
    }
}

// Sums and maxima over the lanes of a warp, the same for every lane, in a fixed order.
DEVICE float warp_sum(float v) {
    UNROLL for (int i = 16; i; i /= 2) v += __shfl_xor_sync(~0u, v, i);
    return v;
}
DEVICE float warp_max(float v) {
    UNROLL for (int i = 16; i; i /= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, i));
    return v;
}

}  // namespace easel
