// decode.h: from a chunk of a record (records.h) to operand A of mma.m16n8k16: codes to F16, times scales,
// plus minima. The innermost work of every product with weights: weight_gemm.h; also of linear.cu, embed.cu.
#pragma once
#include "ptx.h"
#include "records.h"

namespace easel {

// Position of a row, 0 to 15, of a tile among the scales: rows g and g + 8 are neighbours.
DEVICE constexpr int scale_place(int row) {
    return row % 8 * 2 + row / 8;
}
// 6-bit codes: where the word of upper bits has the upper two of the code of k16 step s and register i.
// decode() shifts the word of lower bits right by 8 (i / 2), which leaves the lower four of an even i at bit
// 0 and of i + 1 at bit 4: one shift of the word of upper bits brings theirs to bits 4 and 8.
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
// Two codes less OFFSET, as F16, exact. Each half of x is the F16 number 1024 + 2^up code: the code is in its
// mantissa, `up` bits above the last one.
template <int OFFSET>
DEVICE uint32_t less_offset(uint32_t x, int up) {
    const auto f16 = [](int v) {  // an integer, 1 to 2047, as F16 in both halves
        int e = 0;
        while (v >> (e + 1)) e++;
        return static_cast<uint32_t>((15 + e) << 10 | ((v << (10 - e)) & 1023)) * 0x10001;
    };
    if (!up) return hsub2(x, f16(1024 + OFFSET));
    return hfma2(x, static_cast<uint32_t>(15 - up) * 0x04000400, f16((1024 >> up) + OFFSET) ^ 0x80008000);
}
// What codes are multiplied with, and what is then added, [k16 step of a chunk][h] of rows g (h = 0) and
// g + 8 (h = 1): an F16 in both halves. Of K-quants, the product of an F16 and a small integer, rounded once.
struct ChunkScales {
    uint32_t scale[4][2], min[4][2];
};

template <Type TYPE>
DEVICE void read_scales(ChunkScales& out, const uint8_t* scales, int chunk, int g) {
    constexpr uint32_t k1024 = 0x64006400, k1152 = 0x64806480;
    constexpr bool sub_blocks = Record<TYPE>::n_chunk > 1;
    const uint2 both = load8(scales + ((sub_blocks ? chunk * 8 : 0) + g) * 8);  // a word of each row
    uint2 more{};  // of each row d and dmin (Q4_K, Q5_K) or m (Q5_1); Q6_K: in x, d of both rows
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
            // Signed bytes: flipping the upper bit adds 128.
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

// Values of IQ4_NL plus 128, a byte each, of the four codes in bits 0-15 of x. __byte_perm() looks at bits
// 0-2 of each.
DEVICE uint32_t iq4_values(uint32_t x) {
    const uint32_t low = __byte_perm(0x3f2d1801, 0x766a5d4f, x);   // of codes 0-7
    const uint32_t high = __byte_perm(0xa6998d81, 0xf1d9c5b5, x);  // of codes 8-15
    return __byte_perm(low, high, 0x3210 | (x >> 1 & 0x4444));     // chosen by bit 3
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
        uint32_t low[8], high[2] = {};  // words of codes, or IQ4_NL's values; upper bits of 6-bit codes
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
                // Word w has its third code at bit w now, and bit w of code 15 above it, at 5 + w.
                UNROLL for (int w = 0; w < 5; w++) third[w] = low[w] >> (10 - w);
            }
            if constexpr (R::code_bits == 6) {
                const uint2 w = load8(data + 512 + lane * 8);
                high[0] = w.x, high[1] = w.y;
            }
        }
        UNROLL for (int s = 0; s < 4; s++) {
            UNROLL for (int i = 0; i < 4; i++) {
                // q: two codes less their offset, F16. 0x6400 is 1024, whose last mantissa bit counts 1: a
                // code that is put into its mantissa is added.
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

}  // namespace easel
