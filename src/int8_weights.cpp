// int8_weights.cpp: blocks of SPEC section 6 as codes, scales and minima: value = scale * code + min, the
// same float that to_float() gives, bit for bit. Called by gemm.cpp, a panel of 16 rows at a time.
#include <algorithm>
#include <array>
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

typedef uint8_t Vec16 __attribute__((vector_size(16), aligned(1), may_alias));

inline Vec16 load16(const uint8_t* p) {
    return *reinterpret_cast<const Vec16*>(p);
}
inline void store16(uint8_t* p, Vec16 v) {
    *reinterpret_cast<Vec16*>(p) = v;
}

// Byte j holds elements j and j + n.
template <int n>
inline void nibbles(const uint8_t* qs, uint8_t* code) {
    for (int j = 0; j < n; j += 16) {
        const Vec16 q = load16(qs + j);
        store16(code + j, q & 15);
        store16(code + j + n, q >> 4);
    }
}

// Bit j of the 32 at qh is worth 16 in code j.
inline void fifth_bits(const uint8_t* qh, uint8_t* code) {
    typedef uint32_t Vec4 __attribute__((vector_size(16)));
    uint32_t bits;
    std::memcpy(&bits, qh, 4);
    const Vec16 all = Vec16(Vec4{} + bits), bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const Vec16 low = __builtin_shufflevector(all, all, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const Vec16 high = __builtin_shufflevector(all, all, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    store16(code, load16(code) | (Vec16((low & bit) != 0) & 16));
    store16(code + 16, load16(code + 16) | (Vec16((high & bit) != 0) & 16));
}

// A block of 32 with a line (d, m) or around a middle code: Q4_0 Q4_1 Q5_0 Q5_1.
template <int BITS, bool LINE>
void unpack_32(const uint8_t* b, int s, Row& row) {
    constexpr int high_at = LINE ? 4 : 2, nibbles_at = high_at + (BITS == 5 ? 4 : 0);
    nibbles<16>(b + nibbles_at, row.code + 32 * s);
    if (BITS == 5) fifth_bits(b + high_at, row.code + 32 * s);
    row.scale[s] = half(b);
    row.min[s] = LINE ? half(b + 2) : -float(1 << (BITS - 1)) * row.scale[s];
}

void unpack_q8_0(const uint8_t* b, int s, Row& row) {
    std::memcpy(row.code + 32 * s, b + 2, 32);
    row.scale[s] = half(b);
}

constexpr std::array<int8_t, 16> iq4_values = {-127, -104, -83, -65, -49, -35, -22, -10,
                                               1,    13,   25,  38,  53,  69,  89,  113};
constexpr std::array<int8_t, 16> e2m1_doubled = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

inline void look_up(const uint8_t* qs, const std::array<int8_t, 16>& table, uint8_t* code) {
    nibbles<16>(qs, code);
#ifdef __clang__
    for (int j = 0; j < 32; j++) code[j] = uint8_t(table[code[j]]);
#else  // one instruction
    const Vec16 values = load16(reinterpret_cast<const uint8_t*>(table.data()));
    for (int j = 0; j < 32; j += 16) store16(code + j, __builtin_shuffle(values, load16(code + j)));
#endif
}

void unpack_iq4_nl(const uint8_t* b, int s, Row& row) {
    look_up(b + 2, iq4_values, row.code + 32 * s);
    row.scale[s] = half(b);
}

void unpack_mxfp4(const uint8_t* b, int s, Row& row) {
    look_up(b + 1, e2m1_doubled, row.code + 32 * s);
    const uint32_t e = b[0];  // 2^(e - 128); for e < 2 that is subnormal
    row.scale[s] = std::bit_cast<float>(e < 2 ? 0x00200000u << e : (e - 1) << 23);
}

void unpack_iq4_xs(const uint8_t* b, Row& row) {
    const float d = half(b);
    const int scales_h = b[2] | b[3] << 8;
    for (int i = 0; i < 8; i++) {
        const int sc = ((b[4 + i / 2] >> (i % 2 * 4)) & 15) | ((scales_h >> (2 * i)) & 3) << 4;
        look_up(b + 8 + 16 * i, iq4_values, row.code + 32 * i);
        row.scale[i] = d * float(sc - 32);
    }
}

// Q4_K and Q5_K: 6-bit scales and minima in 12 bytes.
template <int BITS>
void unpack_q45_k(const uint8_t* b, Row& row) {
    const float d = half(b), dmin = half(b + 2);
    const uint8_t *s = b + 4, *qh = b + 16, *qs = b + (BITS == 5 ? 48 : 16);
    for (int i = 0; i < 8; i++) {
        const int sc = i < 4 ? s[i] & 63 : (s[i + 4] & 15) | s[i - 4] >> 6 << 4;
        const int mn = i < 4 ? s[i + 4] & 63 : s[i + 4] >> 4 | s[i] >> 6 << 4;
        row.scale[i] = d * float(sc);
        row.min[i] = -dmin * float(mn);
    }
    for (int c = 0; c < 4; c++) nibbles<32>(qs + 32 * c, row.code + 64 * c);
    if (BITS == 5)
        for (int i = 0; i < 8; i++)
            for (int l = 0; l < 32; l += 16) {
                uint8_t* code = row.code + 32 * i + l;
                store16(code, load16(code) | (load16(qh + l) >> i & 1) << 4);
            }
}

void unpack_q2_k(const uint8_t* b, Row& row) {
    const float d = half(b + 80), dmin = half(b + 82);
    for (int i = 0; i < 8; i++)
        for (int l = 0; l < 32; l += 16)
            store16(row.code + 32 * i + l, load16(b + 16 + i / 4 * 32 + l) >> (i % 4 * 2) & 3);
    for (int s = 0; s < 16; s++) {
        row.scale[s] = d * float(b[s] & 15);
        row.min[s] = -dmin * float(b[s] >> 4);
    }
}

void unpack_q3_k(const uint8_t* b, Row& row) {
    const uint8_t *hmask = b, *qs = b + 32, *scales = b + 96;
    const float d = half(b + 108);
    for (int i = 0; i < 8; i++)
        for (int l = 0; l < 32; l += 16)
            store16(row.code + 32 * i + l,
                    (load16(qs + i / 4 * 32 + l) >> (i % 4 * 2) & 3) | (load16(hmask + l) >> i & 1) << 2);
    for (int s = 0; s < 16; s++) {
        const int low = s < 8 ? scales[s] & 15 : scales[s - 8] >> 4;
        row.scale[s] = d * float((low | ((scales[8 + s % 4] >> (s / 4 * 2)) & 3) << 4) - 32);
        row.min[s] = -4 * row.scale[s];
    }
}

void unpack_q6_k(const uint8_t* b, Row& row) {
    const float d = half(b + 208);
    for (int h = 0; h < 2; h++) {
        const uint8_t *ql = b + 64 * h, *qh = b + 128 + 32 * h;
        uint8_t* code = row.code + 128 * h;
        nibbles<64>(ql, code);
        for (int i = 0; i < 4; i++)
            for (int l = 0; l < 32; l += 16) {
                uint8_t* at = code + 32 * i + l;
                store16(at, load16(at) | (load16(qh + l) >> (2 * i) & 3) << 4);
            }
    }
    for (int s = 0; s < 16; s++) {
        row.scale[s] = d * float(int8_t(b[192 + s]));
        row.min[s] = -32 * row.scale[s];
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
    {Type::Q4_0, Int8Codes::U4, row_32<unpack_32<4, false>>},
    {Type::Q4_1, Int8Codes::U4, row_32<unpack_32<4, true>>},
    {Type::Q5_0, Int8Codes::U5, row_32<unpack_32<5, false>>},
    {Type::Q5_1, Int8Codes::U5, row_32<unpack_32<5, true>>},
    {Type::Q8_0, Int8Codes::S8, row_32<unpack_q8_0>},
    {Type::Q2_K, Int8Codes::U6, row_256<unpack_q2_k>},
    {Type::Q3_K, Int8Codes::U6, row_256<unpack_q3_k>},
    {Type::Q4_K, Int8Codes::U4, row_256<unpack_q45_k<4>>},
    {Type::Q5_K, Int8Codes::U5, row_256<unpack_q45_k<5>>},
    {Type::Q6_K, Int8Codes::U6, row_256<unpack_q6_k>},
    {Type::IQ4_NL, Int8Codes::S8, row_32<unpack_iq4_nl>},
    {Type::IQ4_XS, Int8Codes::S8, row_256<unpack_iq4_xs>},
    {Type::MXFP4, Int8Codes::S8, row_32<unpack_mxfp4>},
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
    const int n_span = e->codes == Int8Codes::U6 ? 16 : 8;
    for (int s = 0; s < n_span; s += 8)
        for (int r = 0; r < kInt8Rows; r += 8) {
            transpose_8x8(rows[r].scale + s, sizeof(Row), panel.scale[s] + r, sizeof(panel.scale[0]));
            transpose_8x8(rows[r].min + s, sizeof(Row), panel.min[s] + r, sizeof(panel.min[0]));
        }
}

}  // namespace easel
