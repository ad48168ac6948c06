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

// Which warp of its block this is: by way of a shuffle, so that the compiler knows that all lanes agree, and
// what depends on it branches without a rendezvous.
DEVICE int warp_index() {
    const int thread = threadIdx.x;
    return __shfl_sync(~0u, thread / 32, 0);
}

// A warp starts to copy N bytes, a multiple of 16: dst and src are those of this lane, 16 bytes each.
template <int N>
DEVICE void copy_async(void* dst, const void* src, int lane) {
    static_assert(N % 16 == 0);
    UNROLL for (int i = 0; i < N; i += 32 * 16) if (i + lane * 16 < N)
        cp_async<16>(static_cast<uint8_t*>(dst) + i, static_cast<const uint8_t*>(src) + i);
}

// V neighbouring values of a row, loaded and stored at once: p is a multiple of their size.
template <class T, int V>
struct alignas(V * sizeof(T)) Values {
    T v[V];
};
template <int V>
DEVICE Values<float, V> load(const float* p) {
    return *reinterpret_cast<const Values<float, V>*>(p);
}
template <class T, int V>
DEVICE void store(T* p, const Values<float, V>& x) {
    Values<T, V> out;
    UNROLL for (int j = 0; j < V; j++) out.v[j] = from_f32<T>(x.v[j]);
    *reinterpret_cast<Values<T, V>*>(p) = out;
}

}  // namespace easel
