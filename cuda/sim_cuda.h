// sim_cuda.h: the names that CUDA gives a kernel, for the simulator (sim.h): keywords, types, barriers, warp
// functions, atomics, intrinsics. As in the CUDA C++ Programming Guide, except that every lane must reach a
// warp function, and every thread __syncthreads, at the same source line. Only what a kernel here may use:
// another name does not compile. `__shared__` is one of those, see SHARED in ptx.h.
#pragma once
#include <cmath>
#include <functional>
#include <type_traits>

#include "sim.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)

// Vector types: as large as aligned.
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) {
    return {x, y};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return {x, y, z, w};
}

#define threadIdx (easel::sim::fiber->tid)
#define blockIdx (easel::sim::block->idx)
#define blockDim (easel::sim::block->launch->block)
#define gridDim (easel::sim::block->launch->grid)

namespace easel::sim {

template <class In, class Out>
struct Slot {
    In in;
    Out out;
};

// One value per lane in, one out. finish(lanes, slot) sets slot(lane).out from all slot(lane).in.
template <class Out, class In, class F>
Out exchange(const char* op, uint32_t mask, In in, Site at, F finish) {
    Slot<In, Out> own{in, {}};
    collective(op, mask, &own, at, [&](uint32_t lanes, void* const* arg) {
        finish(lanes, [&](int l) -> Slot<In, Out>& { return *static_cast<Slot<In, Out>*>(arg[l]); });
    });
    return own.out;
}

// The same result for every lane: f over the values, lowest lane first.
template <class T, class F>
T fold(const char* op, uint32_t mask, T value, Site at, F f) {
    return exchange<T>(op, mask, value, at, [&](uint32_t lanes, auto slot) {
        T all = slot(std::countr_zero(lanes)).in;
        for_lanes(lanes & (lanes - 1), [&](int l) { all = f(all, slot(l).in); });
        for_lanes(lanes, [&](int l) { slot(l).out = all; });
    });
}

// Each lane reads the value of lane `source`.
template <class T>
T shuffle(const char* op, uint32_t mask, T value, int source, int width, Site at) {
    static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "as in CUDA");
    if (width < 1 || width > 32 || (width & (width - 1))) fault(at, "{}: width {}", op, width);
    if (!((mask & block->warps[fiber->warp].lanes) >> source & 1))
        fault(at, "{}: reads lane {}, which is not in mask {:08x}", op, source, mask);
    return exchange<T>(op, mask, std::pair{value, source}, at, [](uint32_t lanes, auto slot) {
        for_lanes(lanes, [&](int l) { slot(l).out = slot(slot(l).in.second).in.first; });
    });
}

// What an atomic does in one step: *p = f(*p); returns the old value.
template <class T, class F>
T atomic_update(T* p, F f) {
    T old, next;
    __atomic_load(p, &old, __ATOMIC_RELAXED);
    do next = f(old);
    while (!__atomic_compare_exchange(p, &old, &next, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}

}  // namespace easel::sim

#define EASEL_SIM_AT easel::sim::Site at = easel::sim::Site::here()

// ---- barriers ---------------------------------------------------------------------------------------------

inline void __syncthreads(EASEL_SIM_AT) {
    easel::sim::block_barrier("__syncthreads", false, at);
}
inline int __syncthreads_or(int p, EASEL_SIM_AT) {
    return easel::sim::block_barrier("__syncthreads_or", p, at) != 0;
}
inline int __syncthreads_and(int p, EASEL_SIM_AT) {
    return easel::sim::block_barrier("__syncthreads_and", !p, at) == 0;
}
inline void __syncwarp(unsigned mask = ~0u, EASEL_SIM_AT) {
    easel::sim::collective("__syncwarp", mask, nullptr, at, [](uint32_t, void* const*) {});
}
inline void __threadfence_system() {}

// ---- warp functions ---------------------------------------------------------------------------------------

// A segment is `width` lanes, a power of two. Outside of it a lane reads itself.
template <class T>
T __shfl_sync(unsigned mask, T v, int lane, int width = 32, EASEL_SIM_AT) {
    int first = easel::sim::fiber->lane & -width;
    return easel::sim::shuffle("__shfl_sync", mask, v, first | (lane & (width - 1)), width, at);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, EASEL_SIM_AT) {
    int l = easel::sim::fiber->lane, from = l - static_cast<int>(delta & 31);
    return easel::sim::shuffle("__shfl_up_sync", mask, v, from < (l & -width) ? l : from, width, at);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int lane_mask, int width = 32, EASEL_SIM_AT) {
    int l = easel::sim::fiber->lane, from = l ^ (lane_mask & 31);  // may be in a segment before, not after
    return easel::sim::shuffle("__shfl_xor_sync", mask, v, from > (l | (width - 1)) ? l : from, width, at);
}

inline unsigned __ballot_sync(unsigned mask, int p, EASEL_SIM_AT) {
    unsigned own = p ? 1u << easel::sim::fiber->lane : 0;
    return easel::sim::fold("__ballot_sync", mask, own, at, std::bit_or());
}
inline int __any_sync(unsigned mask, int p, EASEL_SIM_AT) {
    return easel::sim::fold("__any_sync", mask, int{p != 0}, at, std::bit_or());
}
template <class T>
unsigned __match_any_sync(unsigned mask, T v, EASEL_SIM_AT) {
    return easel::sim::exchange<unsigned>("__match_any_sync", mask, v, at, [](uint32_t lanes, auto slot) {
        easel::sim::for_lanes(lanes, [&](int a) {
            easel::sim::for_lanes(lanes,
                                  [&](int b) { slot(a).out |= unsigned{slot(a).in == slot(b).in} << b; });
        });
    });
}

// T is int or unsigned; a sum wraps.
template <class T>
T __reduce_add_sync(unsigned mask, T v, EASEL_SIM_AT) {
    static_assert(std::is_integral_v<T> && sizeof(T) == 4, "as in CUDA");
    return static_cast<T>(
        easel::sim::fold("__reduce_add_sync", mask, static_cast<unsigned>(v), at, std::plus()));
}
template <class T>
T __reduce_min_sync(unsigned mask, T v, EASEL_SIM_AT) {
    static_assert(std::is_integral_v<T> && sizeof(T) == 4, "as in CUDA");
    return easel::sim::fold("__reduce_min_sync", mask, v, at, [](T a, T b) { return a < b ? a : b; });
}
template <class T>
T __reduce_max_sync(unsigned mask, T v, EASEL_SIM_AT) {
    static_assert(std::is_integral_v<T> && sizeof(T) == 4, "as in CUDA");
    return easel::sim::fold("__reduce_max_sync", mask, v, at, [](T a, T b) { return a < b ? b : a; });
}

// ---- atomics ----------------------------------------------------------------------------------------------

template <class T>
T atomicAdd(T* p, std::type_identity_t<T> v) {
    if constexpr (std::is_integral_v<T>) return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
    return easel::sim::atomic_update(p, [&](T old) { return old + v; });
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> v) {
    return easel::sim::atomic_update(p, [&](T old) { return old < v ? v : old; });
}

// ---- numbers ----------------------------------------------------------------------------------------------

inline unsigned __float_as_uint(float f) {
    return std::bit_cast<unsigned>(f);
}
inline int __float_as_int(float f) {
    return std::bit_cast<int>(f);
}
inline float __uint_as_float(unsigned u) {
    return std::bit_cast<float>(u);
}

inline int __popc(unsigned x) {
    return std::popcount(x);
}
inline int __ffs(int x) {
    return __builtin_ffs(x);
}
// Byte i of the result is byte (selector >> 4 * i & 7) of b:a. The instruction, prmt, can repeat its sign
// instead; the function cannot, it clears the bits that ask for that.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const uint64_t bytes = uint64_t{b} << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; i++)
        result |= static_cast<unsigned>(bytes >> (8 * (selector >> (4 * i) & 7)) & 255) << (8 * i);
    return result;
}

#define EASEL_SIM_MIN_MAX(T)  \
    inline T min(T a, T b) {  \
        return b < a ? b : a; \
    }                         \
    inline T max(T a, T b) {  \
        return a < b ? b : a; \
    }
EASEL_SIM_MIN_MAX(int)
EASEL_SIM_MIN_MAX(unsigned)
EASEL_SIM_MIN_MAX(long)
EASEL_SIM_MIN_MAX(unsigned long)
EASEL_SIM_MIN_MAX(long long)
EASEL_SIM_MIN_MAX(unsigned long long)
#undef EASEL_SIM_MIN_MAX
inline float min(float a, float b) {
    return std::fmin(a, b);
}
inline float max(float a, float b) {
    return std::fmax(a, b);
}
