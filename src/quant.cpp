// quant.cpp: the block types of SPEC section 6, to float32 and back.
// to_float() is the inner half of the CPU GEMM (gemm.cpp): plain loops of fixed trip counts, which the
// compiler turns into vector code. from_float() serves `easel convert` and the tests. Blocks of 17, 18, 22,
// 34, 110 or 210 bytes stand one after the other, so nothing here is aligned: bytes or memcpy.
#include "quant.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>

// dst is float and src is bytes: unless told, the compiler must assume that they overlap.
#define RESTRICT __restrict__
// g++ unrolls a loop of 16 into scalar code before it looks for vectors; clang does not.
#ifdef __clang__
#define KEEP_LOOP
#else
#define KEEP_LOOP _Pragma("GCC unroll 1")
#endif

namespace easel {

// ---------------------------------------------------------------- halves
// Every case is computed and one is picked by a mask: no branch, so that a row of them becomes vector code.

static inline uint32_t pick(bool condition, uint32_t yes, uint32_t no) {
    uint32_t mask = 0u - uint32_t(condition);
    return (yes & mask) | (no & ~mask);
}

float f16_to_f32(uint16_t h) {
    uint32_t sign = uint32_t(h & 0x8000) << 16, bits = h & 0x7fff;
    uint32_t normal = (bits << 13) + (112u << 23);  // exponent bias 15 to 127
    uint32_t subnormal = std::bit_cast<uint32_t>(float(int32_t(bits)) * 0x1p-24f);
    uint32_t special = (bits << 13) | 0x7f800000;  // infinity, NaN with its payload
    uint32_t value = pick(bits < 0x0400, subnormal, normal);
    return std::bit_cast<float>(sign | pick(bits >= 0x7c00, special, value));
}

uint16_t f32_to_f16(float f) {
    uint32_t u = std::bit_cast<uint32_t>(f), sign = (u >> 16) & 0x8000, bits = u & 0x7fffffff;
    uint32_t normal = (bits - (112u << 23) + 0x0fff + ((bits >> 13) & 1)) >> 13;
    bool is_small = bits < 0x38800000;  // 2^-14
    // Beside 0.5 the last place is worth 2^-24, as in a subnormal half: the addition rounds.
    float small = std::bit_cast<float>(pick(is_small, bits, 0));
    uint32_t subnormal = std::bit_cast<uint32_t>(small + 0.5f) - 0x3f000000;
    uint32_t nan = 0x7e00 | ((bits >> 13) & 0x03ff);
    uint32_t value = pick(is_small, subnormal, normal);
    value = pick(bits >= 0x477ff000, 0x7c00, value);  // 65520 and up round to infinity
    return uint16_t(sign | pick(bits > 0x7f800000, nan, value));
}

float bf16_to_f32(uint16_t h) {
    return std::bit_cast<float>(uint32_t(h) << 16);
}

uint16_t f32_to_bf16(float f) {
    uint32_t u = std::bit_cast<uint32_t>(f);
    uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    return uint16_t((u & 0x7fffffff) > 0x7f800000 ? (u >> 16) | 0x40 : rounded);
}

namespace {

inline uint16_t load16(const uint8_t* p) {
    return uint16_t(p[0] | p[1] << 8);
}

// A block's scale. Nearly all are normal: a branch that is always predicted beats computing every case.
inline float load_half(const uint8_t* p) {
    uint32_t h = load16(p);
    if ((h & 0x7fff) - 0x0400 < 0x7800) [[likely]]
        return std::bit_cast<float>((h & 0x8000) << 16 | (((h & 0x7fff) << 13) + (112u << 23)));
    return f16_to_f32(uint16_t(h));
}

// ---------------------------------------------------------------- blocks to float
// The product of a half (11 bits), a scale and a code (12 bits together at most) fits the 24 bits of a float,
// so it is exact: value = (d * sc) * q - dmin * mn has one rounding, whether or not the compiler fuses it.

template <int N>
inline void scaled(const int8_t* RESTRICT q, float d, float* RESTRICT dst) {
    KEEP_LOOP for (int i = 0; i < N; i++) dst[i] = d * float(q[i]);
}

template <int N>
inline void scaled_minus(const uint8_t* RESTRICT q, float d, float m, float* RESTRICT dst) {
    KEEP_LOOP for (int i = 0; i < N; i++) dst[i] = d * float(q[i]) - m;
}

// The 32 values of a block whose byte j holds elements j and j + 16.
inline void nibbles(const uint8_t* RESTRICT qs, int offset, float d, float m, float* RESTRICT dst) {
    KEEP_LOOP for (int j = 0; j < 16; j++) dst[j] = d * float((qs[j] & 15) - offset) + m;
    KEEP_LOOP for (int j = 0; j < 16; j++) dst[j + 16] = d * float((qs[j] >> 4) - offset) + m;
}

constexpr auto bits = [] {
    std::array<uint32_t, 32> bit{};
    for (int j = 0; j < 32; j++) bit[size_t(j)] = 1u << j;
    return bit;
}();

// The same with a fifth bit: bit j of the little-endian qh [4] belongs to element j.
inline void nibbles5(const uint8_t* RESTRICT qs, const uint8_t* qh, int offset, float d, float m,
                     float* RESTRICT dst) {
    uint32_t high = load16(qh) | uint32_t(load16(qh + 2)) << 16;
    int32_t q[32];
    for (size_t j = 0; j < 32; j++) q[j] = high & bits[j] ? 16 - offset : -offset;
    KEEP_LOOP for (int j = 0; j < 16; j++) dst[j] = d * float((qs[j] & 15) + q[j]) + m;
    KEEP_LOOP for (int j = 0; j < 16; j++) dst[j + 16] = d * float((qs[j] >> 4) + q[j + 16]) + m;
}

void decode_q4_0(const uint8_t* b, float* dst) {
    nibbles(b + 2, 8, load_half(b), -0.0f, dst);
}
void decode_q4_1(const uint8_t* b, float* dst) {
    nibbles(b + 4, 0, load_half(b), load_half(b + 2), dst);
}
void decode_q5_0(const uint8_t* b, float* dst) {
    nibbles5(b + 6, b + 2, 16, load_half(b), -0.0f, dst);
}
void decode_q5_1(const uint8_t* b, float* dst) {
    nibbles5(b + 8, b + 4, 0, load_half(b), load_half(b + 2), dst);
}
void decode_q8_0(const uint8_t* b, float* dst) {
    scaled<32>(reinterpret_cast<const int8_t*>(b + 2), load_half(b), dst);
}

void decode_q2_k(const uint8_t* b, float* dst) {
    const uint8_t *scales = b, *qs = b + 16;
    float d = load_half(b + 80), dmin = load_half(b + 82);
    for (int i = 0; i < 8; i++) {  // i = half * 4 + shift / 2
        uint8_t q[32];
        for (int l = 0; l < 32; l++) q[l] = (qs[i / 4 * 32 + l] >> (i % 4 * 2)) & 3;
        for (int k = 0; k < 2; k++) {
            uint8_t s = scales[2 * i + k];
            scaled_minus<16>(q + 16 * k, d * float(s & 15), dmin * float(s >> 4), dst + 32 * i + 16 * k);
        }
    }
}

void decode_q3_k(const uint8_t* b, float* dst) {
    const uint8_t *hmask = b, *qs = b + 32, *scales = b + 96;
    float d = load_half(b + 108);
    for (int i = 0; i < 8; i++) {
        int8_t q[32];
        for (int l = 0; l < 32; l++)
            q[l] = int8_t(((qs[i / 4 * 32 + l] >> (i % 4 * 2)) & 3) + ((hmask[l] >> i) & 1) * 4 - 4);
        for (int s = 2 * i; s < 2 * i + 2; s++) {
            int low = s < 8 ? scales[s] & 15 : scales[s - 8] >> 4;
            int sc = low | ((scales[8 + s % 4] >> (s / 4 * 2)) & 3) << 4;
            scaled<16>(q + s % 2 * 16, d * float(sc - 32), dst + 16 * s);
        }
    }
}

// The 6-bit scales and minima of Q4_K and Q5_K in 12 bytes, four at a time.
struct Scales6 {
    uint8_t sc[8], mn[8];
};
inline Scales6 load_scales6(const uint8_t* p) {
    uint32_t w[3];
    std::memcpy(w, p, 12);
    uint32_t four[4] = {w[0] & 0x3f3f3f3f, (w[2] & 0x0f0f0f0f) | (w[0] >> 2 & 0x30303030),  //
                        w[1] & 0x3f3f3f3f, (w[2] >> 4 & 0x0f0f0f0f) | (w[1] >> 2 & 0x30303030)};
    return std::bit_cast<Scales6>(four);
}

// Q4_K and Q5_K, which has the fifth bits in qh: bit i of byte l for element l of sub-block i.
template <int BITS>
void decode_q45_k(const uint8_t* b, float* dst) {
    float d = load_half(b), dmin = load_half(b + 2);
    Scales6 s = load_scales6(b + 4);
    const uint8_t *qh = b + 16, *qs = b + (BITS == 5 ? 48 : 16);
    for (int i = 0; i < 8; i += 2, qs += 32, dst += 64) {
        uint8_t q[64], bit0 = uint8_t(1 << i), bit1 = uint8_t(2 << i);
        for (int l = 0; l < 32; l++) q[l] = (qs[l] & 15) | (BITS == 5 && qh[l] & bit0 ? 16 : 0);
        for (int l = 0; l < 32; l++) q[l + 32] = qs[l] >> 4 | (BITS == 5 && qh[l] & bit1 ? 16 : 0);
        scaled_minus<32>(q, d * float(s.sc[i]), dmin * float(s.mn[i]), dst);
        scaled_minus<32>(q + 32, d * float(s.sc[i + 1]), dmin * float(s.mn[i + 1]), dst + 32);
    }
}

void decode_q6_k(const uint8_t* b, float* dst) {
    float d = load_half(b + 208);
    for (int h = 0; h < 2; h++) {
        const uint8_t *ql = b + 64 * h, *qh = b + 128 + 32 * h, *scales = b + 192 + 8 * h;
        int8_t q[128];
        for (int l = 0; l < 32; l++) {
            q[l] = int8_t(((ql[l] & 15) | (qh[l] & 3) << 4) - 32);
            q[l + 32] = int8_t(((ql[l + 32] & 15) | (qh[l] >> 2 & 3) << 4) - 32);
            q[l + 64] = int8_t((ql[l] >> 4 | (qh[l] >> 4 & 3) << 4) - 32);
            q[l + 96] = int8_t((ql[l + 32] >> 4 | qh[l] >> 6 << 4) - 32);
        }
        for (int i = 0; i < 8; i++)
            scaled<16>(q + 16 * i, d * float(int8_t(scales[i])), dst + 128 * h + 16 * i);
    }
}

// As nibbles(), through a table.
inline void look_up(const uint8_t* RESTRICT qs, const float* table, float d, float* RESTRICT dst) {
    KEEP_LOOP for (int j = 0; j < 16; j++) dst[j] = d * table[qs[j] & 15];
    KEEP_LOOP for (int j = 0; j < 16; j++) dst[j + 16] = d * table[qs[j] >> 4];
}

void decode_iq4_nl(const uint8_t* b, float* dst) {
    look_up(b + 2, kIq4Values<float>, load_half(b), dst);
}

void decode_iq4_xs(const uint8_t* b, float* dst) {
    float d = load_half(b);
    int scales_h = load16(b + 2);
    for (int i = 0; i < 8; i++) {
        int sc = ((b[4 + i / 2] >> (i % 2 * 4)) & 15) | ((scales_h >> (2 * i)) & 3) << 4;
        look_up(b + 8 + 16 * i, kIq4Values<float>, d * float(sc - 32), dst + 32 * i);
    }
}

void decode_mxfp4(const uint8_t* b, float* dst) {
    uint32_t e = b[0];  // 2^(e - 128); for e < 2 that is subnormal
    look_up(b + 1, kE2m1Doubled<float>, std::bit_cast<float>(e < 2 ? 0x00200000u << e : (e - 1) << 23), dst);
}

template <int ELEMS, int BYTES, void (*Decode)(const uint8_t*, float*)>
void decode_row(const uint8_t* src, float* dst, int64_t n) {
    for (; n > 0; n -= ELEMS, src += BYTES, dst += ELEMS) Decode(src, dst);
}

void decode_f32(const uint8_t* src, float* dst, int64_t n) {
    std::memcpy(dst, src, size_t(n) * 4);
}
void encode_f32(const float* src, uint8_t* dst, int64_t n) {
    std::memcpy(dst, src, size_t(n) * 4);
}

template <float (*Convert)(uint16_t)>
void decode_16(const uint8_t* RESTRICT src, float* RESTRICT dst, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        std::memcpy(&h, src + 2 * i, 2);
        dst[i] = Convert(h);
    }
}
template <uint16_t (*Convert)(float)>
void encode_16(const float* RESTRICT src, uint8_t* RESTRICT dst, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint16_t h = Convert(src[i]);
        std::memcpy(dst + 2 * i, &h, 2);
    }
}

// ---------------------------------------------------------------- float to blocks
// Every encoder minimises the plain squared error. Eight sub-blocks go side by side, one a lane: eight scales
// are searched at once and no sum crosses lanes. Codes are always taken with the scales as they were stored.

typedef float Lanes __attribute__((vector_size(32)));
#pragma GCC diagnostic ignored \
    "-Wpsabi"  // without AVX, passing Lanes has no fixed ABI; it stays inside this file

inline Lanes min(Lanes a, Lanes b) {
    return a < b ? a : b;
}
inline Lanes max(Lanes a, Lanes b) {
    return a > b ? a : b;
}
inline Lanes abs(Lanes a) {
    return a < 0 ? -a : a;
}
// To the nearest integer; |a| must be under 2^22, where adding 1.5 * 2^23 drops the fraction.
inline Lanes round(Lanes a) {
    return (a + 0x1.8p23f) - 0x1.8p23f;
}
inline Lanes code(Lanes a, float lowest, float highest) {
    return round(min(max(a, Lanes{} + lowest), Lanes{} + highest));
}
// a / b, and 0 where b is 0.
inline Lanes ratio(Lanes a, Lanes b) {
    Lanes quotient = a / (b == 0 ? Lanes{} + 1 : b);
    return b == 0 ? Lanes{} : quotient;
}

// A value that the arithmetic below can take: NaN becomes 0, infinity 3e8, more than any block holds (at
// most 65504 * 127 * 32, in Q6_K), and what is nearer to 0 than to the smallest half (2^-24) becomes 0.
inline float clean(float x) {
    float bounded = std::min(std::max(x, -3e8f), 3e8f);
    return std::fabs(x) >= 0x1p-25f ? bounded : 0.0f;
}

// src [n_sub, LEN], n_sub <= 8; missing lanes are zeros.
template <int LEN>
void load_lanes(const float* src, int n_sub, Lanes* x) {
    for (int j = 0; j < LEN; j++) x[j] = Lanes{};
    for (int s = 0; s < n_sub; s++)
        for (int j = 0; j < LEN; j++) x[j][s] = clean(src[s * LEN + j]);
}

// Stores the nearest finite half and returns its value.
inline float store_half(float f, uint8_t* dst) {
    uint16_t h = f32_to_f16(std::min(std::max(f, -65504.0f), 65504.0f));
    std::memcpy(dst, &h, 2);
    return f16_to_f32(h);
}

// The same for a scale, but rounded up where halves are subnormal, thus coarse: too large a scale costs less
// than codes that saturate.
inline float store_scale(float f, uint8_t* dst) {
    float up = std::copysign(std::ceil(std::fabs(f) * 0x1p24f) * 0x1p-24f, f);
    return store_half(std::fabs(f) < 0x1p-14f ? up : f, dst);
}

// The scale s with the least sum of (x - s q)^2 for codes q in lowest .. -lowest - 1. The value furthest from
// 0 goes to the lowest code or near it, so s has either sign.
template <int LEN>
Lanes fit_scale(const Lanes* x, float lowest) {
    Lanes top{}, best{}, best_gain{};
    for (int j = 0; j < LEN; j++) top = abs(x[j]) > abs(top) ? x[j] : top;
    for (float inside = -0.5f; inside <= 3; inside += 0.25f) {  // under 0 the top is clipped
        Lanes inverse = ratio(Lanes{} + (lowest + inside), top);
        Lanes xq{}, qq{};
        for (int j = 0; j < LEN; j++) {
            Lanes q = code(x[j] * inverse, lowest, -lowest - 1);
            xq += x[j] * q, qq += q * q;
        }
        // With the best s for these codes the error is sum x^2 - gain.
        Lanes s = ratio(xq, qq), gain = s * xq;
        best = gain > best_gain ? s : best;
        best_gain = max(gain, best_gain);
    }
    return best;
}

struct Line {
    Lanes scale, low;
};

// The line low + scale q with the least squared error for codes 0 .. highest. `below`: low must be <= 0, as
// in the K types.
template <int LEN>
Line fit_line(const Lanes* x, float highest, bool below) {
    constexpr float N = LEN;
    Lanes lo = below ? min(x[0], Lanes{}) : x[0], hi = x[0];
    for (int j = 1; j < LEN; j++) lo = min(x[j], lo), hi = max(x[j], hi);
    Line best{{}, lo};
    Lanes best_cost = Lanes{} + INFINITY;
    // Takes codes from (x - lo) * inverse + shift; cost is their best line's error less the constant sum (x -
    // lo)^2.
    auto attempt = [&](Lanes inverse, Lanes shift) {
        Lanes q1{}, q2{}, y1{}, yq{};
        for (int j = 0; j < LEN; j++) {
            Lanes y = x[j] - lo, q = code(y * inverse + shift, 0, highest);
            q1 += q, q2 += q * q, y1 += y, yq += y * q;
        }
        Lanes s = ratio(N * yq - q1 * y1, N * q2 - q1 * q1), o = (y1 - s * q1) / N;
        if (below) {
            s = o > -lo ? ratio(yq + lo * q1, q2) : s;
            o = min(o, -lo);
        }
        Lanes cost = s * (s * q2 - 2 * yq + 2 * o * q1) + o * (N * o - 2 * y1);
        best.scale = cost < best_cost ? s : best.scale;
        best.low = cost < best_cost ? o + lo : best.low;
        best_cost = min(cost, best_cost);
    };
    for (float wider = -2; wider <= 1; wider += 0.5f)  // past 0 the top is clipped
        attempt(ratio(Lanes{} + (highest + wider), hi - lo), Lanes{});
    attempt(ratio(Lanes{} + 1, best.scale),
            ratio(lo - best.low, best.scale));  // the codes nearest to that line
    return best;
}

inline float top_lane(Lanes a) {
    float top = a[0];
    for (int s = 1; s < 8; s++) top = std::max(top, a[s]);
    return top;
}

// The codes of x [LEN] under low + scale q, a sub-block after the other: q [8, LEN].
template <int LEN>
void store_codes(const Lanes* x, Lanes scale, Lanes low, float highest, uint8_t* q) {
    Lanes inverse = ratio(Lanes{} + 1, scale);
    for (int j = 0; j < LEN; j++) {
        Lanes c = code((x[j] - low) * inverse, 0, highest);
        for (int s = 0; s < 8; s++) q[LEN * s + j] = uint8_t(c[s]);
    }
}

// The squared error of the codes that store_codes() gives, by lane.
template <int LEN>
Lanes squared_error(const Lanes* x, Lanes scale, Lanes low, float highest) {
    Lanes inverse = ratio(Lanes{} + 1, scale), sum{};
    for (int j = 0; j < LEN; j++) {
        Lanes e = x[j] - (scale * code((x[j] - low) * inverse, 0, highest) + low);
        sum += e * e;
    }
    return sum;
}

// q [2 N], of which the low four bits count, to N bytes.
template <int N>
inline void pack_nibbles(const uint8_t* q, uint8_t* dst) {
    for (int l = 0; l < N; l++) dst[l] = uint8_t((q[l] & 15) | q[l + N] << 4);
}

// Q4_0 Q4_1 Q5_0 Q5_1: d, then m where there is a LINE, the fifth bits where there are 5 BITS, nibbles.
template <int BITS, bool LINE>
void encode_32(const float* src, uint8_t* dst, int64_t n) {
    constexpr float half_range = 1 << (BITS - 1), highest = 2 * half_range - 1;
    constexpr int high_at = LINE ? 4 : 2, nibbles_at = high_at + (BITS == 5 ? 4 : 0), bytes = nibbles_at + 16;
    for (int64_t n_sub; n > 0; n -= 32 * n_sub, src += 32 * n_sub) {
        n_sub = std::min<int64_t>(n / 32, 8);
        Lanes x[32];
        load_lanes<32>(src, int(n_sub), x);
        Line line = LINE ? fit_line<32>(x, highest, false) : Line{fit_scale<32>(x, -half_range), {}};
        Lanes scale{}, low{};
        for (int s = 0; s < n_sub; s++) {
            scale[s] = store_scale(line.scale[s], dst + bytes * s);
            low[s] = LINE ? store_half(line.low[s], dst + bytes * s + 2) : -half_range * scale[s];
        }
        uint8_t codes[256];
        store_codes<32>(x, scale, low, highest, codes);
        for (int s = 0; s < n_sub; s++, dst += bytes) {
            const uint8_t* q = codes + 32 * s;
            uint32_t high = 0;
            for (int j = 0; j < 32; j++) high |= uint32_t(q[j] >> 4) << j;
            if (BITS == 5) std::memcpy(dst + high_at, &high, 4);
            pack_nibbles<16>(q, dst + nibbles_at);
        }
    }
}

void encode_q8_0(const float* src, uint8_t* dst, int64_t n) {
    for (; n > 0; n -= 32, src += 32, dst += 34) {
        float x[32];
        uint32_t top = 0;  // floats without their sign order as integers do
        for (int j = 0; j < 32; j++) x[j] = clean(src[j]);
        for (int j = 0; j < 32; j++) top = std::max(top, std::bit_cast<uint32_t>(x[j]) & 0x7fffffff);
        float d = store_scale(std::bit_cast<float>(top) / 127, dst), inverse = d == 0 ? 0 : 1 / d;
        int8_t* q = reinterpret_cast<int8_t*>(dst + 2);
        for (int j = 0; j < 32; j++) {
            float v = std::min(std::max(x[j] * inverse, -127.0f), 127.0f);
            q[j] = int8_t(std::bit_cast<int32_t>(v + 0x1.8p23f) - std::bit_cast<int32_t>(0x1.8p23f));
        }
    }
}

// Q4_K and Q5_K, which adds the fifth bits.
template <int BITS>
void encode_q45_k(const float* src, uint8_t* dst, int64_t n) {
    constexpr float highest = (1 << BITS) - 1;
    for (; n > 0; n -= 256, src += 256) {
        Lanes x[32];
        load_lanes<32>(src, 8, x);
        Line line = fit_line<32>(x, highest, true);
        float d = store_scale(top_lane(line.scale) / 63, dst);
        float dmin = store_scale(top_lane(-line.low) / 63, dst + 2);
        // Rounding the scale to a code moves the best low; the codes beside the nearest are tried as well.
        Lanes nearest = code(ratio(line.scale, Lanes{} + d), 0, 63);
        Lanes sc{}, mn{}, least = Lanes{} + INFINITY;
        for (float step : {0.0f, -1.0f, 1.0f}) {
            Lanes s = code(nearest + step, 0, 63), scale = d * s, inverse = ratio(Lanes{} + 1, scale), gap{};
            for (int j = 0; j < 32; j++) gap += scale * code((x[j] - line.low) * inverse, 0, highest) - x[j];
            Lanes m = code(ratio(gap / 32, Lanes{} + dmin), 0, 63);
            Lanes error = squared_error<32>(x, scale, -dmin * m, highest);
            sc = error < least ? s : sc;
            mn = error < least ? m : mn;
            least = min(error, least);
        }
        uint8_t* packed = dst + 4;
        for (int i = 0; i < 4; i++) {
            int sc_lo = int(sc[i]), sc_hi = int(sc[i + 4]), mn_lo = int(mn[i]), mn_hi = int(mn[i + 4]);
            packed[i] = uint8_t(sc_lo | sc_hi >> 4 << 6);
            packed[i + 4] = uint8_t(mn_lo | mn_hi >> 4 << 6);
            packed[i + 8] = uint8_t((sc_hi & 15) | (mn_hi & 15) << 4);
        }
        dst += 16;
        uint8_t q[256];
        store_codes<32>(x, d * sc, -dmin * mn, highest, q);
        if (BITS == 5) {
            for (int l = 0; l < 32; l++) {
                int high = 0;
                for (int s = 0; s < 8; s++) high |= q[32 * s + l] >> 4 << s;
                dst[l] = uint8_t(high);
            }
            dst += 32;
        }
        for (int c = 0; c < 4; c++, dst += 32) pack_nibbles<32>(q + 64 * c, dst);
    }
}

void encode_q6_k(const float* src, uint8_t* dst, int64_t n) {
    for (; n > 0; n -= 256, src += 256, dst += 210) {
        Lanes x[2][16], scale[2];
        for (int h = 0; h < 2; h++) {
            load_lanes<16>(src + 128 * h, 8, x[h]);
            scale[h] = fit_scale<16>(x[h], -32);
        }
        float d = store_scale(top_lane(max(abs(scale[0]), abs(scale[1]))) / 127, dst + 208);
        for (int h = 0; h < 2; h++) {
            Lanes nearest = code(ratio(scale[h], Lanes{} + d), -128, 127), sc{}, least = Lanes{} + INFINITY;
            for (float step : {0.0f, -1.0f, 1.0f}) {
                Lanes s = code(nearest + step, -128, 127);
                Lanes error = squared_error<16>(x[h], d * s, -32 * d * s, 63);
                sc = error < least ? s : sc;
                least = min(error, least);
            }
            for (int s = 0; s < 8; s++) dst[192 + 8 * h + s] = uint8_t(int8_t(sc[s]));
            uint8_t q[128];
            store_codes<16>(x[h], d * sc, -32 * d * sc, 63, q);
            pack_nibbles<64>(q, dst + 64 * h);
            for (int l = 0; l < 32; l++)
                dst[128 + 32 * h + l] =
                    uint8_t(q[l] >> 4 | q[l + 32] >> 4 << 2 | q[l + 64] >> 4 << 4 | q[l + 96] >> 4 << 6);
        }
    }
}

struct Entry {
    TypeInfo info;
    void (*decode)(const uint8_t* src, float* dst, int64_t n);
    void (*encode)(const float* src, uint8_t* dst, int64_t n);  // may be null
};

template <int ELEMS, int BYTES, void (*Decode)(const uint8_t*, float*)>
constexpr Entry read_only(Type type, const char* name) {
    return {{type, name, ELEMS, BYTES, false}, decode_row<ELEMS, BYTES, Decode>, nullptr};
}

template <int ELEMS, int BYTES, void (*Decode)(const uint8_t*, float*)>
constexpr Entry writable(Type type, const char* name, void (*encode)(const float*, uint8_t*, int64_t)) {
    return {{type, name, ELEMS, BYTES, true}, decode_row<ELEMS, BYTES, Decode>, encode};
}

constexpr Entry types[] = {
    {{Type::F32, "F32", 1, 4, true}, decode_f32, encode_f32},
    {{Type::F16, "F16", 1, 2, true}, decode_16<f16_to_f32>, encode_16<f32_to_f16>},
    {{Type::BF16, "BF16", 1, 2, true}, decode_16<bf16_to_f32>, encode_16<f32_to_bf16>},
    writable<32, 18, decode_q4_0>(Type::Q4_0, "Q4_0", encode_32<4, false>),
    writable<32, 20, decode_q4_1>(Type::Q4_1, "Q4_1", encode_32<4, true>),
    writable<32, 22, decode_q5_0>(Type::Q5_0, "Q5_0", encode_32<5, false>),
    writable<32, 24, decode_q5_1>(Type::Q5_1, "Q5_1", encode_32<5, true>),
    writable<32, 34, decode_q8_0>(Type::Q8_0, "Q8_0", encode_q8_0),
    read_only<256, 84, decode_q2_k>(Type::Q2_K, "Q2_K"),
    read_only<256, 110, decode_q3_k>(Type::Q3_K, "Q3_K"),
    writable<256, 144, decode_q45_k<4>>(Type::Q4_K, "Q4_K", encode_q45_k<4>),
    writable<256, 176, decode_q45_k<5>>(Type::Q5_K, "Q5_K", encode_q45_k<5>),
    writable<256, 210, decode_q6_k>(Type::Q6_K, "Q6_K", encode_q6_k),
    read_only<32, 18, decode_iq4_nl>(Type::IQ4_NL, "IQ4_NL"),
    read_only<256, 136, decode_iq4_xs>(Type::IQ4_XS, "IQ4_XS"),
    read_only<32, 17, decode_mxfp4>(Type::MXFP4, "MXFP4"),
};

const Entry& entry(Type type) {
    for (const Entry& e : types)
        if (e.info.type == type) return e;
    std::abort();  // a Type only comes from find_type() or type_by_name()
}

}  // namespace

const TypeInfo* find_type(uint32_t type) {
    for (const Entry& e : types)
        if (uint32_t(e.info.type) == type) return &e.info;
    return nullptr;
}

const TypeInfo& type_info(Type type) {
    return entry(type).info;
}

std::optional<Type> type_by_name(std::string_view name) {
    auto upper = [](char c) { return c >= 'a' && c <= 'z' ? char(c - 'a' + 'A') : c; };
    for (const Entry& e : types)
        if (std::ranges::equal(name, std::string_view(e.info.name), {}, upper)) return e.info.type;
    return std::nullopt;
}

int64_t row_bytes(Type type, int64_t n) {
    const TypeInfo& info = type_info(type);
    return n / info.block_elems * info.block_bytes;
}

void to_float(Type type, const void* src, float* dst, int64_t n) {
    const Entry& e = entry(type);
    if (n & (e.info.block_elems - 1)) std::abort();  // part of a block
    e.decode(static_cast<const uint8_t*>(src), dst, n);
}

void from_float(Type type, const float* src, void* dst, int64_t n) {
    const Entry& e = entry(type);
    if (!e.encode || n & (e.info.block_elems - 1)) std::abort();  // see TypeInfo::from_float
    e.encode(src, static_cast<uint8_t*>(dst), n);
}

}  // namespace easel
