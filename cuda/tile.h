// tile.h: what kernels with tiles in shared memory share: their row stride, and sums and maxima of a warp.
#pragma once
#include "ptx.h"

namespace easel {

// Elements between rows of a tile of `n` columns: 16 bytes more than a multiple of 128 keep ldmatrix free of
// bank conflicts, and each row begins at a multiple of 16.
template <class T>
constexpr int tile_stride(int n) {
    return n + 16 / static_cast<int>(sizeof(T));
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
