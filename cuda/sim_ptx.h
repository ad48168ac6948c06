// sim_ptx.h: the functions and words of ptx.h, which includes it, in the simulator (sim.h).
#pragma once
#include <chrono>
#include <iterator>

#include "quant.h"
#include "sim.h"

#define DEVICE inline
#define UNROLL
#define NO_UNROLL

#define SHARED(type, name)            \
    static const char name##_key = 0; \
    type& name = *static_cast<type*>(easel::sim::shared(&name##_key, sizeof(type)))
#define SHARED_ARRAY(type, name, n)   \
    static const char name##_key = 0; \
    type(&name)[n] = *static_cast<type(*)[n]>(easel::sim::shared(&name##_key, sizeof(type[n])))
#define SHARED_DYNAMIC(type, name) \
    type* name = static_cast<type*>(static_cast<void*>(easel::sim::block->dynamic))

#define EASEL_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    easel::sim::launch_on(stream, #kernel, kernel, grid, block, shared_bytes __VA_OPT__(, ) __VA_ARGS__)

namespace easel {

constexpr int kSharedBytes = static_cast<int>(sim::max_shared_bytes);

inline void set_condition(Condition c, bool value) {
    if (c) *c = value;
}
// Launches never overlap here; tests/ptx checks what a kernel does before it calls this.
inline void wait_for_last_launch() {}
inline uint64_t clock_ns() {
    return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// ---- loads and stores -------------------------------------------------------------------------------------

namespace sim {
template <class T>
T load(const char* op, const void* p, Site at) {
    check_aligned(op, p, sizeof(T), at);
    return *static_cast<const T*>(p);
}
template <class T>
void store(const char* op, void* p, T v, Site at) {
    check_aligned(op, p, sizeof(T), at);
    *static_cast<T*>(p) = v;
}
}  // namespace sim

inline uint4 load16(const void* p, EASEL_SIM_AT) {
    return sim::load<uint4>("load16", p, at);
}
inline uint2 load8(const void* p, EASEL_SIM_AT) {
    return sim::load<uint2>("load8", p, at);
}
inline void store16(void* p, uint4 v, EASEL_SIM_AT) {
    sim::store("store16", p, v, at);
}
inline void store8(void* p, uint2 v, EASEL_SIM_AT) {
    sim::store("store8", p, v, at);
}

template <class T>
T* kept(T* p) {
    return p;
}

template <int BYTES>
void cp_async(void* dst_shared, const void* src, EASEL_SIM_AT) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16);
    sim::async_copy(dst_shared, src, BYTES, BYTES, at);
}
template <int BYTES>
void cp_async(void* dst_shared, const void* src, int src_bytes, EASEL_SIM_AT) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16);
    sim::async_copy(dst_shared, src, BYTES, src_bytes, at);
}
inline void cp_async_commit() {
    sim::async_commit();
}
template <int N>
void cp_async_wait() {
    sim::async_wait(N);
}

inline void barrier_sync(int id, int n, EASEL_SIM_AT) {
    sim::named_barrier("bar.sync", id, n, at);
}

// ---- matrices ---------------------------------------------------------------------------------------------

namespace sim {
struct LdMatrix {
    const void* row;
    uint32_t* r;
};

template <bool TRANS>
void ldmatrix(const char* op, uint32_t (&r)[4], const void* row, Site at) {
    check_shared(op, row, 16, at);
    LdMatrix own{row, r};
    warp_collective(op, &own, at, [](uint32_t, void* const* arg) {
        for (int m = 0; m < 4; m++) {
            uint16_t matrix[8][8];
            for (int i = 0; i < 8; i++) memcpy(matrix[i], static_cast<LdMatrix*>(arg[8 * m + i])->row, 16);
            for (int l = 0; l < 32; l++) {
                const int a = l / 4, b = l % 4 * 2;
                uint32_t lo = TRANS ? matrix[b][a] : matrix[a][b];
                uint32_t hi = TRANS ? matrix[b + 1][a] : matrix[a][b + 1];
                static_cast<LdMatrix*>(arg[l])->r[m] = lo | hi << 16;
            }
        }
    });
}

inline uint32_t movmatrix(uint32_t a, Site at) {
    uint32_t own = a;
    warp_collective("movmatrix.trans", &own, at, [](uint32_t, void* const* arg) {
        uint16_t matrix[8][8];
        for (int l = 0; l < 32; l++) memcpy(&matrix[l / 4][l % 4 * 2], arg[l], 4);
        for (int l = 0; l < 32; l++)
            *static_cast<uint32_t*>(arg[l]) =
                matrix[l % 4 * 2][l / 4] | static_cast<uint32_t>(matrix[l % 4 * 2 + 1][l / 4]) << 16;
    });
    return own;
}

using Float8 __attribute__((vector_size(32))) = float;
using Uint8 __attribute__((vector_size(32))) = uint32_t;
using Half8 __attribute__((vector_size(16))) = uint16_t;

// out[i] = float of the 16 bits h[i], i < 8.
inline void halves_to_floats(const uint16_t* h, float* out) {
    Half8 bits;
    memcpy(&bits, h, sizeof bits);
    const Uint8 u = __builtin_convertvector(bits, Uint8);
    const Uint8 shifted = (u & 0x7fff)
                          << 13;  // exponent and mantissa in place, the exponent too small by 112
    const Float8 f = (Float8)shifted * 0x1p112f;  // a cast of vectors keeps the bits
    const Uint8 special = shifted >= 0x0f800000u ? Uint8{} + 0x7f800000u : Uint8{};  // infinities, NaN
    const Uint8 result = (Uint8)f | special | (u & 0x8000) << 16;
    memcpy(out, &result, sizeof result);
}

// d [16, 8] = a [16, 16] b [16, 8]
__attribute__((no_sanitize("address", "undefined"))) inline void multiply(const float (&a)[16][16],
                                                                          const float (&b)[16][8],
                                                                          float (&d)[16][8]) {
    for (int i = 0; i < 16; i += 4) {
        Float8 row, d0{}, d1{}, d2{}, d3{};
        for (int k = 0; k < 16; k++) {
            memcpy(&row, b[k], sizeof row);
            d0 += a[i][k] * row;
            d1 += a[i + 1][k] * row;
            d2 += a[i + 2][k] * row;
            d3 += a[i + 3][k] * row;
        }
        memcpy(d[i], &d0, sizeof d0);
        memcpy(d[i + 1], &d1, sizeof d1);
        memcpy(d[i + 2], &d2, sizeof d2);
        memcpy(d[i + 3], &d3, sizeof d3);
    }
}

struct Mma {
    float* d;  // [4]
    const uint32_t* a;
    uint32_t b0, b1;
};

// d += a b of the lanes' fragments, halves.
inline void mma(const char* op, float* d, const uint32_t* a, uint32_t b0, uint32_t b1, Site at) {
    Mma own{d, a, b0, b1};
    warp_collective(op, &own, at, [&](uint32_t, void* const* arg) {
        uint32_t a_words[16][8];
        uint16_t a_bits[16][16], b_bits[16][8];
        for (int l = 0; l < 32; l++) {
            const Mma& m = *static_cast<const Mma*>(arg[l]);
            const int g = l / 4, t = l % 4;
            a_words[g][t] = m.a[0];
            a_words[g + 8][t] = m.a[1];
            a_words[g][t + 4] = m.a[2];
            a_words[g + 8][t + 4] = m.a[3];
            for (int i = 0; i < 2; i++) {
                b_bits[2 * t + i][g] = static_cast<uint16_t>(m.b0 >> 16 * i);
                b_bits[2 * t + 8 + i][g] = static_cast<uint16_t>(m.b1 >> 16 * i);
            }
        }
        memcpy(a_bits, a_words, sizeof a_bits);
        float fa[16][16], fb[16][8], product[16][8];
        for (int i = 0; i < 16; i++)
            for (int k = 0; k < 16; k += 8) halves_to_floats(&a_bits[i][k], &fa[i][k]);
        for (int k = 0; k < 16; k++) halves_to_floats(b_bits[k], fb[k]);
        multiply(fa, fb, product);
        for (int l = 0; l < 32; l++) {
            float* out = static_cast<const Mma*>(arg[l])->d;
            const float *upper = &product[l / 4][l % 4 * 2], *lower = upper + 8 * 8;
            out[0] += upper[0];
            out[1] += upper[1];
            out[2] += lower[0];
            out[3] += lower[1];
        }
    });
}

// a b + c in one rounding. The double is exact but for bits that only matter as "more than a tie": the last
// bit of the float takes their place.
inline uint16_t fma_half(uint16_t a, uint16_t b, uint16_t c) {
    const double exact = double{f16_to_f32(a)} * f16_to_f32(b) + f16_to_f32(c);
    float f = static_cast<float>(exact);
    if (double{f} != exact && std::isfinite(f)) {
        uint32_t bits = std::bit_cast<uint32_t>(f);
        if (std::fabs(double{f}) > std::fabs(exact)) bits--;
        f = std::bit_cast<float>(bits | 1);
    }
    return f32_to_f16(f);
}

// f of the low halves and of the high ones.
template <class F, class... T>
uint32_t each_half(F f, T... x) {
    uint32_t lo = f(static_cast<uint16_t>(x)...), hi = f(static_cast<uint16_t>(x >> 16)...);
    return lo | hi << 16;
}
}  // namespace sim

inline void ldmatrix(uint32_t (&r)[4], const void* row, EASEL_SIM_AT) {
    sim::ldmatrix<false>("ldmatrix", r, row, at);
}
inline void ldmatrix_trans(uint32_t (&r)[4], const void* row, EASEL_SIM_AT) {
    sim::ldmatrix<true>("ldmatrix.trans", r, row, at);
}
inline uint32_t movmatrix_trans(uint32_t a, EASEL_SIM_AT) {
    return sim::movmatrix(a, at);
}
inline void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, EASEL_SIM_AT) {
    sim::mma("mma.m16n8k16.f16", d, a, b0, b1, at);
}
inline void mma_m16n8k16_f16_sums(uint32_t (&d)[2], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                  EASEL_SIM_AT) {
    float sums[4];
    for (int i = 0; i < 4; i++) sums[i] = f16_to_f32(static_cast<uint16_t>(d[i / 2] >> (i % 2 * 16)));
    sim::mma("mma.m16n8k16.f16 in f16", sums, a, b0, b1, at);
    for (int i = 0; i < 2; i++)
        d[i] = f32_to_f16(sums[2 * i]) | static_cast<uint32_t>(f32_to_f16(sums[2 * i + 1])) << 16;
}

constexpr bool kHalfSums = false;  // as on 9.0; tests/ptx runs the code for 8.6

// ---- warpgroup products (wgmma) ---------------------------------------------------------------------------

constexpr bool kWgmma = false;  // kernels use mma; their wgmma code is for tests/ptx

inline uint32_t shared_address(const void* p) {
    return sim::shared_address(p);
}

namespace sim {
// The 16 bytes, 8 values from k on, of column n of the matrix b of a wgmma.
inline const char* matrix_row(uint64_t b, int n, int k, Site at) {
    const uint32_t start = b << 4 & 0x3ffff, stride = b >> 32 << 4 & 0x3ffff;
    if (b >> 62 != 1 || b >> 46 & 0xffff || stride % 1024 || start % 1024 >= 128)
        fault(
            at,
            "wgmma: a matrix {:x} that is not swizzled by 128 bytes in rows of 8 from a multiple of 1024 on",
            b);
    const uint32_t p = start + n / 8 * stride + n % 8 * 128 + k * 2;
    const char* const row = shared_at(p ^ (p >> 7 & 7) << 4);
    check_shared("wgmma", row, 16, at);
    return row;
}
// d [64, 8 n_tile] += a b, as the threads of a warp have it: a mma for each 8 columns.
inline void multiply_matrix(float (*d)[4], int n_tile, const uint32_t (&a)[4], uint64_t b, Site at) {
    for (int n = 0; n < n_tile; n++) {
        uint32_t half[2];
        for (int i = 0; i < 2; i++)
            memcpy(&half[i], matrix_row(b, 8 * n + fiber->lane / 4, 8 * i, at) + fiber->lane % 4 * 4, 4);
        mma("wgmma", d[n], a, half[0], half[1], at);
    }
}
}  // namespace sim

template <int NT>
void wgmma_k16_f16(float (&d)[NT][4], const uint32_t (&a)[4], uint64_t b, EASEL_SIM_AT) {
    static_assert(NT == 8 || NT == 16);
    sim::product([&d, &a, b, at] { sim::multiply_matrix(d, NT, a, b, at); }, b, at);
}
inline void wgmma_fence() {
    sim::fiber->fenced = true;
}
inline void wgmma_commit() {
    sim::product_commit();
}
template <int N>
void wgmma_wait() {
    sim::product_wait(N);
}
template <int NT>
void wgmma_done(float (&)[NT][4]) {}
inline void fence_proxy_async() {}

// ---- bits and 16-bit floats -------------------------------------------------------------------------------

template <int LUT>
uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d = 0;
    for (int i = 0; i < 8; i++)
        if (LUT >> i & 1) d |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return d;
}
template <int HALF>
uint32_t twice(uint32_t a) {
    return (HALF ? a >> 16 : a & 0xffff) * 0x10001;
}
inline uint32_t hneg2(uint32_t a) {
    return a ^ 0x80008000;
}
inline uint32_t hfma2(uint32_t a, uint32_t b, uint32_t c) {
    return sim::each_half(sim::fma_half, a, b, c);
}
// Of these two the float result is exact, or has bits enough that rounding it again is as rounding once.
inline uint32_t hsub2(uint32_t a, uint32_t b) {
    return sim::each_half([](uint16_t x, uint16_t y) { return f32_to_f16(f16_to_f32(x) - f16_to_f32(y)); }, a,
                          b);
}
inline uint32_t hmul2(uint32_t a, uint32_t b) {
    return sim::each_half([](uint16_t x, uint16_t y) { return f32_to_f16(f16_to_f32(x) * f16_to_f32(y)); }, a,
                          b);
}
inline uint32_t pack_f16(float lo, float hi) {
    return f32_to_f16(lo) | static_cast<uint32_t>(f32_to_f16(hi)) << 16;
}
namespace sim {
inline float flush(float x) {  // .ftz
    return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x;
}
}  // namespace sim
inline float exp2_approx(float x) {
    return sim::flush(std::exp2(sim::flush(x)));
}
inline float reciprocal_approx(float x) {
    return sim::flush(1 / sim::flush(x));
}
inline float half_to_float(uint16_t h) {
    return f16_to_f32(h);
}
inline uint16_t float_to_half(float f) {
    return f32_to_f16(f);
}

}  // namespace easel
