// int8.cpp: activations to int8, and the dot products of int8.h, one variant for each instruction set. All of
// them compute, for every span of columns that shares a scale,
//   sum += float(dot) * (scale * d);  sum += min * d_sum
// where dot, of codes less their middle, is an exact integer, and both lines are fused multiply-adds: so they
// differ in speed alone.
#include "int8.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "simd.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif
#ifdef __aarch64__
#include <arm_neon.h>
#include <sys/auxv.h>
#endif

namespace easel {

// Rounds v [32] to block b of a piece. __restrict__: else the bytes of q might be those of v.
static void round_block(const float* __restrict__ v, int b, Int8Activations* __restrict__ out) {
    uint32_t top = 0;  // floats without their sign order as integers do, NaN above all
    for (int j = 0; j < 32; j++) top = std::max(top, std::bit_cast<uint32_t>(v[j]) & 0x7fffffff);
    const float largest = std::bit_cast<float>(top);
    const bool nothing = largest < 0x1p-100f;  // its inverse would be infinite
    const float inverse = nothing ? 0 : 127 / largest, d = nothing ? 0 : largest / 127;
    int8_t q[32];
    for (int j = 0; j < 32; j++)  // adding 1.5 * 2^23 rounds to the nearest integer
        q[j] = int8_t(std::bit_cast<int32_t>(v[j] * inverse + 0x1.8p23f) - std::bit_cast<int32_t>(0x1.8p23f));
    std::memcpy(out->q + b * 32, q, 32);
    int low = 0, high = 0;
    for (int j = 0; j < 16; j++) low += q[j], high += q[j + 16];
    out->d[b] = d;
    out->sum16[2 * b] = d * float(low);
    out->sum16[2 * b + 1] = d * float(high);
    out->sum32[b] = d * float(low + high);
    out->q_sum16[2 * b] = low;
    out->q_sum16[2 * b + 1] = high;
    out->q_sum32[b] = low + high;
}

void int8_activations(const float* x, int64_t n, Int8Activations* out, int64_t out_stride) {
    for (int64_t at = 0; at < n; at += kInt8Cols, out += out_stride)
        for (int b = 0; b < 8; b++) {
            const int64_t left = n - at - b * 32;
            if (left >= 32) {
                round_block(x + at + b * 32, b, out);
                continue;
            }
            float v[32] = {};
            if (left > 0) std::memcpy(v, x + at + b * 32, size_t(left) * 4);
            round_block(v, b, out);
        }
}

namespace {

constexpr int kRows = kInt8Rows;

// What a middle code adds to the dot product of span s: -middle * (sum of q).
template <int kSpan>
int32_t less_middle(const Int8Activations& x, int s, int middle) {
    return -middle * (kSpan == 16 ? x.q_sum16[s] : x.q_sum32[s]);
}

int32_t load4(const int8_t* q) {
    int32_t four;
    std::memcpy(&four, q, 4);
    return four;
}

// One panel after the other, in tiles of 3 tokens, the rest in tiles of 1.
template <auto tiles_of_3, auto tiles_of_1>
void multiply_by_three(Int8Codes codes, const Int8Activations* x, int64_t n_token,
                       std::span<const Int8Panel> panels, int n_block, float* y, int64_t y_stride, bool add) {
    for (const Int8Panel& panel : panels) {
        int64_t t = 0;
        for (; t + 3 <= n_token; t += 3)
            tiles_of_3(codes, x + t, panel, n_block, y + t * y_stride, y_stride, add);
        for (; t < n_token; t++) tiles_of_1(codes, x + t, panel, n_block, y + t * y_stride, y_stride, add);
        y += kRows;
    }
}

// ---------------------------------------------------------------- plain C++

void multiply_plain(Int8Codes codes, const Int8Activations* x, int64_t n_token,
                    std::span<const Int8Panel> panels, int n_block, float* y, int64_t y_stride, bool add) {
    const int span = codes.range == Int8Range::U6 ? 16 : 32;
    for (int64_t t = 0; t < n_token; t++)
        for (int row = 0; row < kRows * static_cast<int>(panels.size()); row++) {
            const Int8Panel& panel = panels[row / kRows];
            const int r = row % kRows;
            float sum = add ? y[t * y_stride + row] : 0;
            for (int s = 0; s < n_block * 32 / span; s++) {
                int32_t dot = 0;
                for (int c = s * span; c < (s + 1) * span; c++) {
                    const uint8_t w = panel.codes[(c / 4 * kRows + r) * 4 + c % 4];
                    dot +=
                        ((codes.range == Int8Range::S8 ? int8_t(w) : int32_t{w}) - codes.middle) * x[t].q[c];
                }
                sum = std::fma(float(dot), panel.scale[s][r] * x[t].d[s * span / 32], sum);
                if (codes.has_min)
                    sum = std::fma(panel.min[s][r], span == 16 ? x[t].sum16[s] : x[t].sum32[s], sum);
            }
            y[t * y_stride + row] = sum;
        }
}

#ifdef __x86_64__

// ---------------------------------------------------------------- AVX2
// vpmaddubsw multiplies unsigned by signed bytes and adds pairs, in 16 bits: as many products as kDepth says
// are added up before they must go to 32 bits (2 * 127 * highest code * kDepth stays below 2^15). A tile of
// 16 rows by 3 tokens: 6 sums of each kind and the operands fill the 16 registers.
#define AVX2 __attribute__((target("avx2,fma")))

template <int kSpan, int kDepth, bool kMin, int n>
AVX2 void tile_avx2(int middle, const Int8Activations* x, const Int8Panel& panel, int n_block, float* y,
                    int64_t y_stride, bool add) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256 sum[n][2];
    UNROLL for (int t = 0; t < n; t++) UNROLL for (int h = 0; h < 2; h++) sum[t][h] =
        add ? _mm256_loadu_ps(y + t * y_stride + 8 * h) : _mm256_setzero_ps();
    for (int s = 0; s < n_block * 32 / kSpan; s++) {
        const uint8_t* w = panel.codes + s * kSpan * kRows;
        const int8_t* q = x->q + s * kSpan;
        __m256i dot[n][2];
        UNROLL for (int k0 = 0; k0 < kSpan / 4; k0 += kDepth) {
            __m256i part[n][2] = {};
            TWICE for (int k = k0; k < k0 + kDepth; k++) {
                const __m256i* wk = reinterpret_cast<const __m256i*>(w + k * 4 * kRows);
                const __m256i w0 = _mm256_load_si256(wk), w1 = _mm256_load_si256(wk + 1);
                UNROLL for (int t = 0; t < n; t++) {
                    const __m256i a = _mm256_set1_epi32(load4(q + t * int64_t{sizeof(*x)} + 4 * k));
                    const __m256i p0 = _mm256_maddubs_epi16(w0, a), p1 = _mm256_maddubs_epi16(w1, a);
                    part[t][0] = _mm256_add_epi16(part[t][0], p0);
                    part[t][1] = _mm256_add_epi16(part[t][1], p1);
                }
            }
            UNROLL for (int t = 0; t < n; t++) UNROLL for (int h = 0; h < 2; h++) {
                const __m256i p = _mm256_madd_epi16(part[t][h], ones);
                dot[t][h] = k0 == 0 ? p : _mm256_add_epi32(dot[t][h], p);
            }
        }
        UNROLL for (int t = 0; t < n; t++) {
            const __m256 d = _mm256_set1_ps(x[t].d[s * kSpan / 32]);
            const __m256 d_sum = _mm256_set1_ps(kSpan == 16 ? x[t].sum16[s] : x[t].sum32[s]);
            const __m256i less = _mm256_set1_epi32(less_middle<kSpan>(x[t], s, middle));
            UNROLL for (int h = 0; h < 2; h++) {
                const __m256 scale = _mm256_mul_ps(_mm256_load_ps(panel.scale[s] + 8 * h), d);
                if (!kMin) dot[t][h] = _mm256_add_epi32(dot[t][h], less);
                sum[t][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[t][h]), scale, sum[t][h]);
                if (kMin) sum[t][h] = _mm256_fmadd_ps(_mm256_load_ps(panel.min[s] + 8 * h), d_sum, sum[t][h]);
            }
        }
    }
    UNROLL for (int t = 0; t < n; t++) UNROLL for (int h = 0; h < 2; h++)
        _mm256_storeu_ps(y + t * y_stride + 8 * h, sum[t][h]);
}

// Signed codes: |w| times a with w's sign. A pair's 2 * 128 * 127 fits 16 bits, but not the sum of two: each
// goes to 32 bits at once.
template <int n>
AVX2 void tile_avx2_signed(const Int8Activations* x, const Int8Panel& panel, int n_block, float* y,
                           int64_t y_stride, bool add) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256 sum[n][2];
    UNROLL for (int t = 0; t < n; t++) UNROLL for (int h = 0; h < 2; h++) sum[t][h] =
        add ? _mm256_loadu_ps(y + t * y_stride + 8 * h) : _mm256_setzero_ps();
    for (int s = 0; s < n_block; s++) {
        const int8_t* q = x->q + s * 32;
        __m256i dot[n][2];
        UNROLL for (int h = 0; h < 2; h++) UNROLL for (int k = 0; k < 8; k++) {
            const __m256i w = _mm256_load_si256(
                reinterpret_cast<const __m256i*>(panel.codes + (s * 32 + k * 4) * kRows + 32 * h));
            const __m256i magnitude = _mm256_abs_epi8(w);
            UNROLL for (int t = 0; t < n; t++) {
                const __m256i a = _mm256_set1_epi32(load4(q + t * int64_t{sizeof(*x)} + 4 * k));
                const __m256i p =
                    _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(a, w)), ones);
                dot[t][h] = k == 0 ? p : _mm256_add_epi32(dot[t][h], p);
            }
        }
        UNROLL for (int t = 0; t < n; t++) {
            const __m256 d = _mm256_set1_ps(x[t].d[s]);
            UNROLL for (int h = 0; h < 2; h++) {
                const __m256 scale = _mm256_mul_ps(_mm256_load_ps(panel.scale[s] + 8 * h), d);
                sum[t][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[t][h]), scale, sum[t][h]);
            }
        }
    }
    UNROLL for (int t = 0; t < n; t++) UNROLL for (int h = 0; h < 2; h++)
        _mm256_storeu_ps(y + t * y_stride + 8 * h, sum[t][h]);
}

template <bool kMin, int n>
AVX2 void tiles_avx2_of(Int8Codes codes, const Int8Activations* x, const Int8Panel& panel, int n_block,
                        float* y, int64_t y_stride, bool add) {
    switch (codes.range) {
        case Int8Range::U4:
            return tile_avx2<32, 8, kMin, n>(codes.middle, x, panel, n_block, y, y_stride, add);
        case Int8Range::U5:
            return tile_avx2<32, 4, kMin, n>(codes.middle, x, panel, n_block, y, y_stride, add);
        case Int8Range::U6:
            return tile_avx2<16, 2, kMin, n>(codes.middle, x, panel, n_block, y, y_stride, add);
        case Int8Range::S8:
            return tile_avx2_signed<n>(x, panel, n_block, y, y_stride, add);
    }
}

template <int n>
AVX2 void tiles_avx2(Int8Codes codes, const Int8Activations* x, const Int8Panel& panel, int n_block, float* y,
                     int64_t y_stride, bool add) {
    const auto tiles = codes.has_min ? tiles_avx2_of<true, n> : tiles_avx2_of<false, n>;
    tiles(codes, x, panel, n_block, y, y_stride, add);
}

// ---------------------------------------------------------------- AVX-512 VNNI
// vpdpbusd adds four products of unsigned by signed bytes to 32 bits at once: a panel's 16 rows are one
// register. A tile is up to 6 tokens by one or two panels: 12 sums in int32 and 12 in float, and a load of x
// serves two products. Signed codes become unsigned by adding 128, which is their middle then.
#define VNNI __attribute__((target("avx512f,avx512vnni")))
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // g++ 12: inside its own _mm512_cvtepi32_ps
#endif

template <int kSpan, bool kMin, bool kSigned, int p, int n>
VNNI void tile_vnni(int middle, const Int8Activations* x, const Int8Panel* panels, int n_block, float* y,
                    int64_t y_stride, bool add) {
    __m512 sum[n][p];
    UNROLL for (int t = 0; t < n; t++) UNROLL for (int h = 0; h < p; h++) sum[t][h] =
        add ? _mm512_loadu_ps(y + t * y_stride + kRows * h) : _mm512_setzero_ps();
    for (int s = 0; s < n_block * 32 / kSpan; s++) {
        const int8_t* q = x->q + s * kSpan;
        __m512i dot[n][p];
        UNROLL for (int t = 0; t < n; t++) UNROLL for (int h = 0; h < p; h++) dot[t][h] =
            kMin ? _mm512_setzero_si512() : _mm512_set1_epi32(less_middle<kSpan>(x[t], s, middle));
        UNROLL for (int k = 0; k < kSpan / 4; k++) {
            __m512i w[p];
            UNROLL for (int h = 0; h < p; h++) {
                w[h] = _mm512_load_si512(panels[h].codes + (s * kSpan + k * 4) * kRows);
                if (kSigned) w[h] = _mm512_xor_si512(w[h], _mm512_set1_epi32(int(0x80808080)));
            }
            UNROLL for (int t = 0; t < n; t++) {
                const __m512i a = _mm512_set1_epi32(load4(q + t * int64_t{sizeof(*x)} + 4 * k));
                UNROLL for (int h = 0; h < p; h++) dot[t][h] = _mm512_dpbusd_epi32(dot[t][h], w[h], a);
            }
        }
        __m512 scale[p], min[p];
        UNROLL for (int h = 0; h < p; h++) {
            scale[h] = _mm512_load_ps(panels[h].scale[s]);
            min[h] = _mm512_load_ps(panels[h].min[s]);
        }
        UNROLL for (int t = 0; t < n; t++) {
            const __m512 d = _mm512_set1_ps(x[t].d[s * kSpan / 32]);
            const __m512 d_sum = _mm512_set1_ps(kSpan == 16 ? x[t].sum16[s] : x[t].sum32[s]);
            UNROLL for (int h = 0; h < p; h++) {
                const __m512 both = _mm512_mul_ps(scale[h], d);
                sum[t][h] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t][h]), both, sum[t][h]);
                if (kMin) sum[t][h] = _mm512_fmadd_ps(min[h], d_sum, sum[t][h]);
            }
        }
    }
    UNROLL for (int t = 0; t < n; t++) UNROLL for (int h = 0; h < p; h++)
        _mm512_storeu_ps(y + t * y_stride + kRows * h, sum[t][h]);
}

template <int p, int n>
VNNI void tiles_vnni(Int8Codes codes, const Int8Activations* x, const Int8Panel* panels, int n_block,
                     float* y, int64_t y_stride, bool add) {
    auto tile = codes.has_min ? tile_vnni<32, true, false, p, n> : tile_vnni<32, false, false, p, n>;
    if (codes.range == Int8Range::U6)
        tile = codes.has_min ? tile_vnni<16, true, false, p, n> : tile_vnni<16, false, false, p, n>;
    if (codes.range == Int8Range::S8) tile = tile_vnni<32, false, true, p, n>;
    tile(codes.range == Int8Range::S8 ? 128 : codes.middle, x, panels, n_block, y, y_stride, add);
}

void multiply_vnni(Int8Codes codes, const Int8Activations* x, int64_t n_token,
                   std::span<const Int8Panel> panels, int n_block, float* y, int64_t y_stride, bool add) {
    constexpr decltype(&tiles_vnni<1, 1>) tiles[2][6] = {
        {tiles_vnni<1, 1>, tiles_vnni<1, 2>, tiles_vnni<1, 3>, tiles_vnni<1, 4>, tiles_vnni<1, 5>,
         tiles_vnni<1, 6>},
        {tiles_vnni<2, 1>, tiles_vnni<2, 2>, tiles_vnni<2, 3>, tiles_vnni<2, 4>, tiles_vnni<2, 5>,
         tiles_vnni<2, 6>}};
    const int64_t n_tile = (n_token + 5) / 6;
    while (!panels.empty()) {
        const size_t n_panel = std::min<size_t>(2, panels.size());
        for (int64_t i = 0; i < n_tile; i++) {  // of about the same size
            const int64_t t = i * n_token / n_tile, n = (i + 1) * n_token / n_tile - t;
            tiles[n_panel - 1][n - 1](codes, x + t, panels.data(), n_block, y + t * y_stride, y_stride, add);
        }
        panels = panels.subspan(n_panel);
        y += n_panel * kRows;
    }
}

#endif

#ifdef __aarch64__

// ---------------------------------------------------------------- NEON
// sdot adds four products of signed bytes to 32 bits; unsigned codes are all under 128, so they are the same
// as signed bytes. A tile of 16 rows by 3 tokens: 24 of 32 registers are sums.
#ifdef __clang__
#define NEON_DOT __attribute__((target("dotprod")))
#else
#define NEON_DOT __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#if defined(__clang__) && __clang_major__ < 16 && !defined(__ARM_FEATURE_DOTPROD)
// Older clang's arm_neon.h has this only if every function may use it.
NEON_DOT inline int32x4_t vdotq_s32(int32x4_t sum, int8x16_t w, int8x16_t a) {
    __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(w), "w"(a));
    return sum;
}
#endif

template <int kSpan, bool kMin, int n>
NEON_DOT void tile_neon(int middle, const Int8Activations* x, const Int8Panel& panel, int n_block, float* y,
                        int64_t y_stride, bool add) {
    float32x4_t sum[n][4];
    UNROLL for (int t = 0; t < n; t++) UNROLL for (int v = 0; v < 4; v++) sum[t][v] =
        add ? vld1q_f32(y + t * y_stride + 4 * v) : vdupq_n_f32(0);
    for (int s = 0; s < n_block * 32 / kSpan; s++) {
        const int8_t* q = x->q + s * kSpan;
        int32x4_t dot[n][4];
        UNROLL for (int t = 0; t < n; t++) UNROLL for (int v = 0; v < 4; v++) dot[t][v] =
            vdupq_n_s32(kMin ? 0 : less_middle<kSpan>(x[t], s, middle));
        TWICE for (int k = 0; k < kSpan / 4; k++) {
            int8x16_t a[n];
            UNROLL for (int t = 0; t < n; t++) a[t] =
                vreinterpretq_s8_s32(vdupq_n_s32(load4(q + t * int64_t{sizeof(*x)} + 4 * k)));
            UNROLL for (int v = 0; v < 4; v++) {
                const int8x16_t w =
                    vreinterpretq_s8_u8(vld1q_u8(panel.codes + (s * kSpan + k * 4) * kRows + 16 * v));
                UNROLL for (int t = 0; t < n; t++) dot[t][v] = vdotq_s32(dot[t][v], w, a[t]);
            }
        }
        UNROLL for (int t = 0; t < n; t++) {
            const float32x4_t d_sum = vdupq_n_f32(kSpan == 16 ? x[t].sum16[s] : x[t].sum32[s]);
            UNROLL for (int v = 0; v < 4; v++) {
                const float32x4_t scale =
                    vmulq_n_f32(vld1q_f32(panel.scale[s] + 4 * v), x[t].d[s * kSpan / 32]);
                sum[t][v] = vfmaq_f32(sum[t][v], vcvtq_f32_s32(dot[t][v]), scale);
                if (kMin) sum[t][v] = vfmaq_f32(sum[t][v], vld1q_f32(panel.min[s] + 4 * v), d_sum);
            }
        }
    }
    UNROLL for (int t = 0; t < n; t++) UNROLL for (int v = 0; v < 4; v++)
        vst1q_f32(y + t * y_stride + 4 * v, sum[t][v]);
}

template <int n>
NEON_DOT void tiles_neon(Int8Codes codes, const Int8Activations* x, const Int8Panel& panel, int n_block,
                         float* y, int64_t y_stride, bool add) {
    auto tile = codes.has_min ? tile_neon<32, true, n> : tile_neon<32, false, n>;
    if (codes.range == Int8Range::U6) tile = codes.has_min ? tile_neon<16, true, n> : tile_neon<16, false, n>;
    tile(codes.middle, x, panel, n_block, y, y_stride, add);
}

#endif

}  // namespace

std::span<const Int8Variant> int8_variants() {
    static const std::vector<Int8Variant> variants = [] {
        std::vector<Int8Variant> v;
#ifdef __x86_64__
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni"))
            v.push_back({"avx512-vnni", multiply_vnni});
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
            v.push_back({"avx2", multiply_by_three<tiles_avx2<3>, tiles_avx2<1>>});
#endif
#ifdef __aarch64__
        if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP)
            v.push_back({"neon-dot", multiply_by_three<tiles_neon<3>, tiles_neon<1>>});
#endif
        v.push_back({"plain", multiply_plain});
        return v;
    }();
    return variants;
}

}  // namespace easel
