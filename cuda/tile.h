// tile.h: what kernels with tiles in shared memory share: their row stride, and sums and maxima of a warp.
#pragma once
#include "ptx.h"

namespace easel {

// Row stride, in elements, of a tile of `n` columns in shared memory: 16 bytes of padding. Where n columns
// are a multiple of 32 bytes, the stride is an odd number of 16-byte pieces: the eight rows that ldmatrix
// reads at once are in different banks.
template <class T>
constexpr int tile_stride(int n) {
    return n + 16 / static_cast<int>(sizeof(T));
}

// Sums and maxima over the lanes of a warp, the same for every lane, in a fixed order.
template <class V>
DEVICE V warp_sum(V v) {
    UNROLL for (int i = 16; i; i /= 2) v += __shfl_xor_sync(~0u, v, i);
    return v;
}
DEVICE float warp_max(float v) {
    UNROLL for (int i = 16; i; i /= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, i));
    return v;
}
// Inclusive prefix sum over the lanes of a warp.
template <class V>
DEVICE V warp_running_sum(V v) {
    UNROLL for (int i = 1; i < 32; i *= 2) {
        const V before = __shfl_up_sync(~0u, v, i);
        if (threadIdx.x % 32 >= static_cast<unsigned>(i)) v += before;
    }
    return v;
}

// Which warp of its block this is. The shuffle tells the compiler that all lanes agree: branches on it need
// no reconvergence.
DEVICE int warp_index() {
    const int thread = threadIdx.x;
    return __shfl_sync(~0u, thread / 32, 0);
}

// A warp starts an asynchronous copy of N bytes, a multiple of 16. dst and src are the lane's own: 16 `lane`
// bytes after the beginning.
template <int N>
DEVICE void copy_async(void* dst, const void* src, int lane) {
    static_assert(N % 16 == 0);
    UNROLL for (int i = 0; i < N; i += 32 * 16) if (i + lane * 16 < N)
        cp_async<16>(static_cast<uint8_t*>(dst) + i, static_cast<const uint8_t*>(src) + i);
}

// acc += the sums of mma_m16n8k16_f16_sums().
DEVICE void add_halves(float (&acc)[4], const uint32_t (&sums)[2]) {
    UNROLL for (int i = 0; i < 4; i++) acc[i] +=
        half_to_float(static_cast<uint16_t>(sums[i / 2] >> (i % 2 * 16)));
}
// acc += a b, F16 operands, for k16 step number `step`; the number of steps is even. With HALF_SUMS the
// products of two steps are summed in F16, in `sums`, before acc takes them: a rounding to 11 bits every 16
// columns, as each operand has had one.
template <bool HALF_SUMS>
DEVICE void add_product(float (&acc)[4], uint32_t (&sums)[2], const uint32_t (&a)[4], uint32_t b0,
                        uint32_t b1, int step) {
    if constexpr (!HALF_SUMS) {
        mma_m16n8k16_f16(acc, a, b0, b1);
    } else {
        if (step % 2 == 0) sums[0] = sums[1] = 0;
        mma_m16n8k16_f16_sums(sums, a, b0, b1);
        if (step % 2 == 1) add_halves(acc, sums);
    }
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
