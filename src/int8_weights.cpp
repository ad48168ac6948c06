// int8_weights.cpp: blocks of SPEC section 6 as codes, scales and minima: value = scale * (code - middle) +
// min, the same float that to_float() gives, bit for bit. Called by gemm.cpp, a panel of 16 rows at a time.
#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>

#include "int8.h"
#include "simd.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace easel {

namespace {

// One row of a piece: 256 codes and what they are scaled with, every 32 columns (U6: every 16).
struct Row {
    uint8_t code[kInt8Cols];
    float scale[16], min[16];
};

inline float half(const uint8_t* p) {
    const uint16_t h = uint16_t(p[0] | p[1] << 8);
#ifdef __F16C__
    return _cvtsh_ss(h);
#else
    return f16_to_f32(h);
#endif
}

// Bytes of a vector: no more than the target has registers for, or g++ takes it apart.
#ifdef __AVX2__
constexpr int kVec = 32;
#else
constexpr int kVec = 16;
#endif
typedef uint8_t Vec __attribute__((vector_size(kVec), aligned(1), may_alias));
typedef uint8_t Vec16 __attribute__((vector_size(16), aligned(1), may_alias));

inline Vec& at(uint8_t* p) {
    return *reinterpret_cast<Vec*>(p);
}
inline Vec load(const uint8_t* p) {
    return *reinterpret_cast<const Vec*>(p);
}
inline Vec16& at16(uint8_t* p) {
    return *reinterpret_cast<Vec16*>(p);
}
inline Vec16 load16(const uint8_t* p) {
    return *reinterpret_cast<const Vec16*>(p);
}

// Every byte shifted, so that bit `from` becomes bit `to`, and masked. Shifts of 16-bit elements are one
// instruction, those of bytes several; the mask removes what comes from the byte beside.
inline Vec moved(Vec v, int from, int to, uint8_t mask) {
    typedef uint16_t Wide __attribute__((vector_size(kVec)));
    return Vec(from < to ? Wide(v) << (to - from) : Wide(v) >> (from - to)) & mask;
}

// Byte j holds elements j and j + n.
template <int n>
inline void nibbles(const uint8_t* qs, uint8_t* code) {
    for (int j = 0; j < n; j += kVec) {
        const Vec q = load(qs + j);
        at(code + j) = q & 15;
        at(code + j + n) = q >> 4;
    }
}
template <>
inline void nibbles<16>(const uint8_t* qs, uint8_t* code) {
    const Vec16 q = load16(qs);
    at16(code) = q & 15;
    at16(code + 16) = q >> 4;
}

// 32 codes: nibbles of the 16 bytes at qs, and, if FIFTH, 16 more where bit j of the 32 at qh is set.
template <bool FIFTH>
inline void codes_of_32(const uint8_t* qs, const uint8_t* qh, uint8_t* code) {
    uint32_t bits = 0;
    if (FIFTH) std::memcpy(&bits, qh, 4);
#ifdef __AVX2__
    typedef uint64_t Long2 __attribute__((vector_size(16), aligned(1), may_alias));
    typedef uint64_t Long4 __attribute__((vector_size(32)));
    typedef uint32_t Words __attribute__((vector_size(32)));
    const Long2 q = *reinterpret_cast<const Long2*>(qs);
    Vec out = Vec(__builtin_shufflevector(q, q, 0, 1, 0, 1) >> Long4{0, 0, 4, 4}) & 15;
    if (FIFTH) {
        const Vec all = Vec(Words{} + bits), bit = Vec(Long4{} + 0x8040201008040201);
        const Vec own =
            __builtin_shufflevector(all, all, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,  //
                                    18, 18, 18, 18, 18, 18, 18, 18, 19, 19, 19, 19, 19, 19, 19, 19);
        out |= Vec((own & bit) != 0) & 16;
    }
    at(code) = out;
#else
    nibbles<16>(qs, code);
    if (!FIFTH) return;
    typedef uint32_t Words __attribute__((vector_size(16)));
    const Vec all = Vec(Words{} + bits), bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const Vec low = __builtin_shufflevector(all, all, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const Vec high = __builtin_shufflevector(all, all, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    at(code) |= Vec((low & bit) != 0) & 16;
    at(code + 16) |= Vec((high & bit) != 0) & 16;
#endif
}

// A block of 32: Q4_1 and Q5_1, with scale and minimum (LINE), Q4_0 and Q5_0, with a scale and a middle code.
template <int BITS, bool LINE>
void unpack_32(const uint8_t* b, int s, Row& row) {
    constexpr int high_at = LINE ? 4 : 2, nibbles_at = high_at + (BITS == 5 ? 4 : 0);
    codes_of_32<BITS == 5>(b + nibbles_at, b + high_at, row.code + 32 * s);
    row.scale[s] = half(b);
    if (LINE) row.min[s] = half(b + 2);
}

void unpack_q8_0(const uint8_t* b, int s, Row& row) {
    std::memcpy(row.code + 32 * s, b + 2, 32);
    row.scale[s] = half(b);
}

inline void look_up(const uint8_t* qs, const int8_t* table, uint8_t* code) {
    nibbles<16>(qs, code);
#ifdef __clang__
    for (int j = 0; j < 32; j++) code[j] = uint8_t(table[code[j]]);
#else  // one instruction
    const Vec16 values = load16(reinterpret_cast<const uint8_t*>(table));
    for (int j = 0; j < 32; j += 16) at16(code + j) = __builtin_shuffle(values, at16(code + j));
#endif
}

void unpack_iq4_nl(const uint8_t* b, int s, Row& row) {
    look_up(b + 2, kIq4Values<int8_t>, row.code + 32 * s);
    row.scale[s] = half(b);
}

void unpack_mxfp4(const uint8_t* b, int s, Row& row) {
    look_up(b + 1, kE2m1Doubled<int8_t>, row.code + 32 * s);
    const uint32_t e = b[0];  // 2^(e - 128); for e < 2 that is subnormal
    row.scale[s] = std::bit_cast<float>(e < 2 ? 0x00200000u << e : (e - 1) << 23);
}

void unpack_iq4_xs(const uint8_t* b, Row& row) {
    const float d = half(b);
    const int scales_h = b[2] | b[3] << 8;
    for (int i = 0; i < 8; i++) {
        const int sc = ((b[4 + i / 2] >> (i % 2 * 4)) & 15) | ((scales_h >> (2 * i)) & 3) << 4;
        look_up(b + 8 + 16 * i, kIq4Values<int8_t>, row.code + 32 * i);
        row.scale[i] = d * float(sc - 32);
    }
}

// Q4_K and Q5_K: 6-bit scales and minima in 12 bytes.
template <int BITS>
void unpack_q45_k(const uint8_t* b, Row& row) {
    const float d = half(b), dmin = half(b + 2);
    const uint8_t *s = b + 4, *qh = b + 16, *qs = b + (BITS == 5 ? 48 : 16);
    uint32_t word[3], six[4];  // six: a byte each, 8 scales, then 8 minima
    std::memcpy(word, s, 12);
    six[0] = word[0] & 0x3f3f3f3f;
    six[1] = (word[2] & 0x0f0f0f0f) | (word[0] >> 6 & 0x03030303) << 4;
    six[2] = word[1] & 0x3f3f3f3f;
    six[3] = (word[2] >> 4 & 0x0f0f0f0f) | (word[1] >> 6 & 0x03030303) << 4;
    uint8_t byte[16];
    std::memcpy(byte, six, 16);
    for (int i = 0; i < 8; i++) row.scale[i] = d * float(byte[i]);
    for (int i = 0; i < 8; i++) row.min[i] = -dmin * float(byte[8 + i]);
    for (int c = 0; c < 4; c++) nibbles<32>(qs + 32 * c, row.code + 64 * c);
    if (BITS == 5)
        for (int i = 0; i < 8; i++)
            for (int l = 0; l < 32; l += kVec) at(row.code + 32 * i + l) |= moved(load(qh + l), i, 4, 16);
}

void unpack_q2_k(const uint8_t* b, Row& row) {
    const float d = half(b + 80), dmin = half(b + 82);
    for (int i = 0; i < 8; i++)
        for (int l = 0; l < 32; l += kVec)
            at(row.code + 32 * i + l) = moved(load(b + 16 + i / 4 * 32 + l), i % 4 * 2, 0, 3);
    for (int s = 0; s < 16; s++) {
        row.scale[s] = d * float(b[s] & 15);
        row.min[s] = -dmin * float(b[s] >> 4);
    }
}

void unpack_q3_k(const uint8_t* b, Row& row) {
    const uint8_t *hmask = b, *qs = b + 32, *scales = b + 96;
    const float d = half(b + 108);
    for (int i = 0; i < 8; i++)
        for (int l = 0; l < 32; l += kVec)
            at(row.code + 32 * i + l) =
                moved(load(qs + i / 4 * 32 + l), i % 4 * 2, 0, 3) | moved(load(hmask + l), i, 2, 4);
    for (int s = 0; s < 16; s++) {
        const int low = s < 8 ? scales[s] & 15 : scales[s - 8] >> 4;
        row.scale[s] = d * float((low | ((scales[8 + s % 4] >> (s / 4 * 2)) & 3) << 4) - 32);
    }
}

void unpack_q6_k(const uint8_t* b, Row& row) {
    const float d = half(b + 208);
    for (int h = 0; h < 2; h++) {
        const uint8_t *ql = b + 64 * h, *qh = b + 128 + 32 * h;
        uint8_t* code = row.code + 128 * h;
        nibbles<64>(ql, code);
        for (int i = 0; i < 4; i++)
            for (int l = 0; l < 32; l += kVec) at(code + 32 * i + l) |= moved(load(qh + l), 2 * i, 4, 0x30);
    }
    for (int s = 0; s < 16; s++) {
        row.scale[s] = d * float(int8_t(b[192 + s]));
    }
}

template <void (*Unpack)(const uint8_t*, int, Row&)>
void row_32(const uint8_t* src, int64_t block_bytes, int64_t n_col, Row& row) {
    for (int s = 0; s < n_col / 32; s++) Unpack(src + s * block_bytes, s, row);
}
template <void (*Unpack)(const uint8_t*, Row&)>
void row_256(const uint8_t* src, int64_t, int64_t, Row& row) {
    Unpack(src, row);
}

struct Entry {
    Type type;
    Int8Codes codes;
    void (*unpack)(const uint8_t* src, int64_t block_bytes, int64_t n_col, Row& row);
};
constexpr Entry types[] = {
    {Type::Q4_0, {Int8Range::U4, false, 8}, row_32<unpack_32<4, false>>},
    {Type::Q4_1, {Int8Range::U4, true}, row_32<unpack_32<4, true>>},
    {Type::Q5_0, {Int8Range::U5, false, 16}, row_32<unpack_32<5, false>>},
    {Type::Q5_1, {Int8Range::U5, true}, row_32<unpack_32<5, true>>},
    {Type::Q8_0, {Int8Range::S8, false}, row_32<unpack_q8_0>},
    {Type::Q2_K, {Int8Range::U6, true}, row_256<unpack_q2_k>},
    {Type::Q3_K, {Int8Range::U6, false, 4}, row_256<unpack_q3_k>},
    {Type::Q4_K, {Int8Range::U4, true}, row_256<unpack_q45_k<4>>},
    {Type::Q5_K, {Int8Range::U5, true}, row_256<unpack_q45_k<5>>},
    {Type::Q6_K, {Int8Range::U6, false, 32}, row_256<unpack_q6_k>},
    {Type::IQ4_NL, {Int8Range::S8, false}, row_32<unpack_iq4_nl>},
    {Type::IQ4_XS, {Int8Range::S8, false}, row_256<unpack_iq4_xs>},
    {Type::MXFP4, {Int8Range::S8, false}, row_32<unpack_mxfp4>},
};

const Entry* find(Type type) {
    const auto e =
        std::find_if(std::begin(types), std::end(types), [&](const Entry& t) { return t.type == type; });
    return e == std::end(types) ? nullptr : e;
}

// Columns of 16 rows to panels: 4-byte groups of code change places as the floats of a transposed matrix do.
void interleave(const Row (&rows)[kInt8Rows], uint8_t* codes) {
    for (int k = 0; k < kInt8Cols / 4; k += 8)
        for (int r = 0; r < kInt8Rows; r += 8)
            transpose_8x8(rows[r].code + k * 4, sizeof(Row), codes + (k * kInt8Rows + r) * 4, kInt8Rows * 4);
}

}  // namespace

bool has_int8(Type type) {
    return find(type);
}

Int8Codes int8_codes(Type type) {
    const Entry* e = find(type);
    if (!e) std::abort();  // see has_int8()
    return e->codes;
}

void int8_panel(Type type, const uint8_t* src, int64_t stride, int64_t n_row, int64_t n_col,
                Int8Panel& panel) {
    const Entry* e = find(type);
    if (!e || n_row > kInt8Rows || n_col > kInt8Cols) std::abort();
    thread_local Row rows[kInt8Rows];
    const int64_t block_bytes = type_info(type).block_bytes;
    for (int64_t r = 0; r < kInt8Rows; r++) {
        if (r < n_row)
            e->unpack(src + r * stride, block_bytes, n_col, rows[r]);
        else
            rows[r] = {};
    }
    interleave(rows, panel.codes);
    const int n_span = e->codes.range == Int8Range::U6 ? 16 : 8;
    for (int s = 0; s < n_span; s += 8)
        for (int r = 0; r < kInt8Rows; r += 8) {
            transpose_8x8(rows[r].scale + s, sizeof(Row), panel.scale[s] + r, sizeof(panel.scale[0]));
            if (e->codes.has_min)
                transpose_8x8(rows[r].min + s, sizeof(Row), panel.min[s] + r, sizeof(panel.min[0]));
        }
}

}  // namespace easel
