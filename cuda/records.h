// records.h: weights as kernels read them. repack.cu writes records once, at load, from the blocks of the
// file; weight_gemm.h, linear.cu and embed.cu read them with decode(). The file's bits in another order; but
// the scales of Q4_K and Q5_K are unpacked from 6 bits to 8, which decode() would otherwise do for every
// chunk: 4 bytes more in 144 and 176. Matrices are padded to whole records (zeros).
//
// A matrix [n_row, n_col] is cut into row tiles of 16 and, along a row, into records of N_K columns; a record
// is the tile's scales, then one chunk for every 64 columns. Records of a tile follow each other, then comes
// the next tile. In a chunk each lane 4 g + t of a warp finds the values that mma.m16n8k16 wants of it as
// operand A: for k16 step s and register i, row g + 8 (i % 2), columns 16 s + 8 (i / 2) + 2 t + j, j = 0, 1.
//
//   4-bit codes  [lane] 4 words, one a step s: bits 4 i (j = 0) and 16 + 4 i (j = 1)
//   6-bit        those of their first four bits, then [lane] 2 words, s / 2: the others from bit
//                upper_bits(s, i) on, and 16 more for j = 1
//   5-bit        [lane] words 0 to 3, then [lane] word 4: of p = 4 s + i < 15, word p / 3, from bit 5 (p % 3)
//                on, and 16 more for j = 1; of p = 15, bit w in bits 15 and 31 of word w
//   8-bit        [s / 2][lane] 4 words, 2 (s % 2) + i / 2: bytes i % 2 and 2 + i % 2; code = value + 128
//   16-bit       [s][lane] 4 words, i: halves j
//   float        [16 rows][64 columns]
// Scales, [16 rows] in the order of scale_place(), so that a lane reads those of its two rows at once:
//   blocks of 32  [16 rows] f16 d of a row's two blocks; Q5_1: then f16 m likewise
//   Q4_K, Q5_K    [chunk][16 rows] 4 bytes: scales, then minima of a row's two sub-blocks of the chunk, of
//                 6 bits each; then [16 rows] f16 d, f16 dmin
//   Q6_K          [chunk][16 rows] int8 scales of a row's four sub-blocks of the chunk; then [16 rows] f16 d
#pragma once
#include <type_traits>

#include "ptx.h"
#include "quant.h"

namespace easel {

constexpr int kChunk = 64;  // columns

// What a record of `TYPE` is made of. Types that are not here are expanded at load, see record_type().
template <Type TYPE>
struct Record;

template <int N_K_, int SCALE_BYTES, int CHUNK_BYTES, int CODE_BITS, int OFFSET>
struct RecordShape {
    static constexpr int N_K = N_K_, scale_bytes = SCALE_BYTES, chunk_bytes = CHUNK_BYTES;
    static constexpr int n_chunk = N_K / kChunk, bytes = scale_bytes + n_chunk * chunk_bytes;
    static constexpr int code_bits = CODE_BITS;  // 16 and 32: floats, no scales
    static constexpr int offset = OFFSET;        // value = (code - offset) * scale + min
};
template <>
struct Record<Type::Q4_0> : RecordShape<64, 64, 512, 4, 8> {};
template <>
struct Record<Type::Q5_0> : RecordShape<64, 64, 640, 5, 16> {};
template <>
struct Record<Type::Q5_1> : RecordShape<64, 128, 640, 5, 0> {};
template <>
struct Record<Type::Q8_0> : RecordShape<64, 64, 1024, 8, 128> {};
template <>
struct Record<Type::IQ4_NL> : RecordShape<64, 64, 512, 4, 0> {};
template <>
struct Record<Type::Q4_K> : RecordShape<256, 320, 512, 4, 0> {};
template <>
struct Record<Type::Q5_K> : RecordShape<256, 320, 640, 5, 0> {};
template <>
struct Record<Type::Q6_K> : RecordShape<256, 288, 768, 6, 32> {};
template <>
struct Record<Type::F16> : RecordShape<64, 0, 2048, 16, 0> {};
template <>
struct Record<Type::F32> : RecordShape<64, 0, 4096, 32, 0> {};

struct RecordInfo {
    int n_k, bytes;
};
// Calls f(std::integral_constant<Type, TYPE>) for a type that has records; false if it has none.
template <class F>
constexpr bool with_record(Type type, F f) {
#define EASEL_RECORD(name) \
    case Type::name:       \
        return f(std::integral_constant<Type, Type::name>()), true;
    switch (type) {
        EASEL_RECORD(Q4_0)
        EASEL_RECORD(Q5_0)
        EASEL_RECORD(Q5_1)
        EASEL_RECORD(Q8_0)
        EASEL_RECORD(IQ4_NL)
        EASEL_RECORD(Q4_K)
        EASEL_RECORD(Q5_K)
        EASEL_RECORD(Q6_K)
        EASEL_RECORD(F16)
        EASEL_RECORD(F32)
        default:
            return false;
    }
#undef EASEL_RECORD
}

// The records that weights of a file's type become, for products with activations of type T: all float if
// these are float; else their own bits, and what has no records, rounded to F16.
template <class T>
Type record_type(Type type) {
    if (std::is_same_v<T, float>) return Type::F32;
    const bool quantised = with_record(type, [](auto) {}) && type_info(type).block_elems > 1;
    return quantised ? type : Type::F16;
}

inline RecordInfo record_info(Type type) {
    RecordInfo info{};
    with_record(type, [&](auto t) { info = {Record<t.value>::N_K, Record<t.value>::bytes}; });
    return info;
}

// Bytes of a matrix as records.
inline int64_t records_bytes(Type type, int64_t n_row, int64_t n_col) {
    const RecordInfo r = record_info(type);
    return (n_row + 15) / 16 * ((n_col + r.n_k - 1) / r.n_k) * r.bytes;
}

#ifndef EASEL_CUDA  // kernels' code

// Where row 0 to 15 of a tile stands among the scales: g and g + 8 are neighbours.
DEVICE constexpr int scale_place(int row) {
    return row % 8 * 2 + row / 8;
}
// Where a word has what follows the first four of six bits of the codes of step s and register i: such that
// one shift brings those of i, even, and of i + 1 next to these four, as they stand in the word of the first.
DEVICE constexpr int upper_bits(int s, int i) {
    const int pair = s % 2 * 2 + i / 2;
    return pair / 2 * 8 + pair % 2 * 2 + i % 2 * 4;
}

// Bytes `low` and `high` of x with 0x64 above each: 1024 + byte as two f16.
template <int LOW, int HIGH>
DEVICE uint32_t bytes_plus_1024(uint32_t x) {
    return __byte_perm(x, 0x64646464, 0x4040 | LOW | HIGH << 8);
}
// (x & mask) | bits, in one instruction: the compiler makes two of it where both are constants.
DEVICE uint32_t and_or(uint32_t x, uint32_t mask, uint32_t bits) {
    return lop3<0xea>(x, mask, bits);
}
// x >> n, or << -n.
DEVICE uint32_t shift(uint32_t x, int n) {
    return n >= 0 ? x >> n : x << -n;
}
// Codes less OFFSET, two f16, of x, which has them `up` bits above its halves' last and 1024 above: each half
// is 1024 + 2^up code. Exact.
template <int OFFSET>
DEVICE uint32_t less_offset(uint32_t x, int up) {
    const auto f16 = [](int v) {  // of 1 to 2047, twice
        int e = 0;
        while (v >> (e + 1)) e++;
        return static_cast<uint32_t>((15 + e) << 10 | ((v << (10 - e)) & 1023)) * 0x10001;
    };
    if (!up) return hsub2(x, f16(1024 + OFFSET));
    return hfma2(x, static_cast<uint32_t>(15 - up) * 0x04000400, f16((1024 >> up) + OFFSET) ^ 0x80008000);
}
// Scale and minimum of rows g (h = 0) and g + 8 (h = 1), for each k16 step of a chunk: an f16 twice. Products
// of an f16 and a small integer, rounded once.
struct ChunkScales {
    uint32_t scale[4][2], min[4][2];
};

template <Type TYPE>
DEVICE void read_scales(ChunkScales& out, const uint8_t* scales, int chunk, int g) {
    constexpr uint32_t k1024 = 0x64006400, k1152 = 0x64806480;
    constexpr bool sub_blocks = Record<TYPE>::n_chunk > 1;
    const uint2 both = load8(scales + ((sub_blocks ? chunk * 8 : 0) + g) * 8);  // of the two rows
    uint2 more{};
    if constexpr (TYPE == Type::Q4_K || TYPE == Type::Q5_K) more = load8(scales + 256 + g * 8);
    if constexpr (TYPE == Type::Q5_1) more = load8(scales + 64 + g * 8);
    if constexpr (TYPE == Type::Q6_K) more.x = reinterpret_cast<const uint32_t*>(scales + 256)[g];
    UNROLL for (int h = 0; h < 2; h++) {
        const uint32_t own = h ? both.y : both.x, other = h ? more.y : more.x;
        if constexpr (TYPE == Type::Q4_K || TYPE == Type::Q5_K) {
            const uint32_t scale = hmul2(hsub2(bytes_plus_1024<0, 1>(own), k1024), twice<0>(other));
            const uint32_t min = hmul2(hsub2(bytes_plus_1024<2, 3>(own), k1024), hneg2(twice<1>(other)));
            UNROLL for (int step = 0; step < 4; step++) {
                out.scale[step][h] = step < 2 ? twice<0>(scale) : twice<1>(scale);
                out.min[step][h] = step < 2 ? twice<0>(min) : twice<1>(min);
            }
        } else if constexpr (TYPE == Type::Q6_K) {
            // Signed bytes; with the upper bit flipped, 128 more than their value.
            const uint32_t s = own ^ 0x80808080, d = h ? twice<1>(more.x) : twice<0>(more.x);
            const uint32_t scale[2] = {hmul2(hsub2(bytes_plus_1024<0, 1>(s), k1152), d),
                                       hmul2(hsub2(bytes_plus_1024<2, 3>(s), k1152), d)};
            UNROLL for (int step = 0; step < 4; step++) {
                out.scale[step][h] = step % 2 ? twice<1>(scale[step / 2]) : twice<0>(scale[step / 2]);
                out.min[step][h] = 0;
            }
        } else {
            UNROLL for (int step = 0; step < 4; step++) {
                out.scale[step][h] = step < 2 ? twice<0>(own) : twice<1>(own);
                out.min[step][h] = step < 2 ? twice<0>(other) : twice<1>(other);
            }
        }
    }
}

// Values of IQ4_NL plus 128: of the four codes in bits 0-15 of x, a byte each.
DEVICE uint32_t iq4_values(uint32_t x) {
    const uint32_t low = __byte_perm(0x3f2d1801, 0x766a5d4f, x);   // if the code's fourth bit, which is not
    const uint32_t high = __byte_perm(0xa6998d81, 0xf1d9c5b5, x);  // looked at, is 0; if it is 1
    return __byte_perm(low, high, 0x3210 | (x >> 1 & 0x4444));
}

// Operand A of a chunk: a[s][i], register i of k16 step s, in F16. `scales` and `data` are those of the
// chunk's record and of the chunk itself, 16-byte aligned, in any memory.
template <Type TYPE>
DEVICE void decode(uint32_t (&a)[4][4], const uint8_t* scales, const uint8_t* data, int chunk, int lane) {
    using R = Record<TYPE>;
    if constexpr (R::code_bits == 16) {
        UNROLL for (int s = 0; s < 4; s++) {
            const uint4 v = load16(data + (s * 32 + lane) * 16);
            a[s][0] = v.x, a[s][1] = v.y, a[s][2] = v.z, a[s][3] = v.w;
        }
    } else {
        ChunkScales f;
        read_scales<TYPE>(f, scales, chunk, lane / 4);
        uint32_t third[5];
        uint32_t low[8], high[2] = {};  // words of codes, or IQ4_NL's values; bits past the fourth of six
        if constexpr (R::code_bits == 8) {
            const uint4 v = load16(data + lane * 16), w = load16(data + 512 + lane * 16);
            low[0] = v.x, low[1] = v.y, low[2] = v.z, low[3] = v.w;
            low[4] = w.x, low[5] = w.y, low[6] = w.z, low[7] = w.w;
        } else {
            const uint4 v = load16(data + lane * 16);
            low[0] = v.x, low[1] = v.y, low[2] = v.z, low[3] = v.w;
            if constexpr (TYPE == Type::IQ4_NL) {
                UNROLL for (int s = 0; s < 4; s++) low[4 + s] = iq4_values(low[s] >> 16),
                                                           low[s] = iq4_values(low[s]);
            }
            if constexpr (R::code_bits == 5) {
                low[4] = reinterpret_cast<const uint32_t*>(data + 512)[lane];
                // Of word w, the third code is now at bit w; what is above it is the last code's bit w, 5 +
                // w.
                UNROLL for (int w = 0; w < 5; w++) third[w] = low[w] >> (10 - w);
            }
            if constexpr (R::code_bits == 6) {
                const uint2 w = load8(data + 512 + lane * 8);
                high[0] = w.x, high[1] = w.y;
            }
        }
        UNROLL for (int s = 0; s < 4; s++) {
            UNROLL for (int i = 0; i < 4; i++) {
                // q = the code less its offset, twice, in f16. 0x6400 is 1024, whose last mantissa bit is 1.
                constexpr bool iq4 = TYPE == Type::IQ4_NL;
                constexpr int offset = iq4 ? 128 : R::offset;
                constexpr uint32_t k1024 = 0x64006400;
                uint32_t code;
                int up = 0;
                if constexpr (R::code_bits == 8) {
                    const uint32_t word = low[2 * s + i / 2];
                    code = i % 2 ? bytes_plus_1024<1, 3>(word) : bytes_plus_1024<0, 2>(word);
                } else if constexpr (iq4) {
                    const uint32_t two = __byte_perm(low[s], low[4 + s], i | (4 + i) << 4);
                    code = bytes_plus_1024<0, 1>(two);
                } else if constexpr (R::code_bits == 5) {
                    const int p = 4 * s + i, w = p / 3;
                    if (p == 15) {
                        up = 5;
                        code = k1024;
                        UNROLL for (int bit = 0; bit < 5; bit++) code =
                            and_or(third[bit], 0x00200020u << bit, code);
                    } else {
                        up = p % 3 == 2 ? w : p % 3 * 5;
                        code = and_or(p % 3 == 2 ? third[w] : low[w], 0x001f001fu << up, k1024);
                    }
                } else {
                    up = i % 2 * 4;
                    code = and_or(low[s] >> (i / 2 * 8), 0x000f000fu << up, k1024);
                    if constexpr (R::code_bits == 6)
                        code = and_or(shift(high[s / 2], upper_bits(s, i) - up - 4), 0x00300030u << up, code);
                }
                const uint32_t q = less_offset<offset>(code, up);
                constexpr bool has_min = TYPE == Type::Q4_K || TYPE == Type::Q5_K || TYPE == Type::Q5_1;
                if constexpr (has_min)
                    a[s][i] = hfma2(q, f.scale[s][i % 2], f.min[s][i % 2]);
                else
                    a[s][i] = hmul2(q, f.scale[s][i % 2]);
            }
        }
    }
}

#endif

}  // namespace easel
