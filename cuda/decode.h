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

// 1024 in both halves. The last bit of its mantissa counts 1: a code that is put there is added.
constexpr uint32_t k1024 = 0x64006400;
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
    uint32_t scale[4][2], min[4][2];  // min: only if has_min
};
template <Type TYPE>
constexpr bool has_min = TYPE == Type::Q4_K || TYPE == Type::Q5_K || TYPE == Type::Q5_1;

template <Type TYPE>
DEVICE void read_scales(ChunkScales& out, const uint8_t* scales, int chunk, int g) {
    constexpr uint32_t k1152 = 0x64806480;
    if constexpr (TYPE == Type::Q4_K || TYPE == Type::Q5_K) {
        const uint2 bytes = load8(scales + (chunk * 8 + g) * 8), floats = load8(scales + 256 + g * 8);
        UNROLL for (int h = 0; h < 2; h++) {
            const uint32_t own = h ? bytes.y : bytes.x, d_dmin = h ? floats.y : floats.x;
            const uint32_t scale = hmul2(hsub2(bytes_plus_1024<0, 1>(own), k1024), twice<0>(d_dmin));
            const uint32_t min = hmul2(hsub2(bytes_plus_1024<2, 3>(own), k1024), hneg2(twice<1>(d_dmin)));
            UNROLL for (int s = 0; s < 4; s++) {
                out.scale[s][h] = s < 2 ? twice<0>(scale) : twice<1>(scale);
                out.min[s][h] = s < 2 ? twice<0>(min) : twice<1>(min);
            }
        }
    } else if constexpr (TYPE == Type::Q6_K) {
        const uint2 bytes = load8(scales + (chunk * 8 + g) * 8);
        const uint32_t d = reinterpret_cast<const uint32_t*>(scales + 256)[g];  // of both rows
        UNROLL for (int h = 0; h < 2; h++) {
            // Signed bytes: flipping the upper bit adds 128.
            const uint32_t own = (h ? bytes.y : bytes.x) ^ 0x80808080, own_d = h ? twice<1>(d) : twice<0>(d);
            const uint32_t scale[2] = {hmul2(hsub2(bytes_plus_1024<0, 1>(own), k1152), own_d),
                                       hmul2(hsub2(bytes_plus_1024<2, 3>(own), k1152), own_d)};
            UNROLL for (int s = 0; s < 4; s++) out.scale[s][h] =
                s % 2 ? twice<1>(scale[s / 2]) : twice<0>(scale[s / 2]);
        }
    } else {
        const uint2 d = load8(scales + g * 8);
        uint2 m{};
        if constexpr (has_min<TYPE>) m = load8(scales + 64 + g * 8);
        UNROLL for (int h = 0; h < 2; h++) {
            const uint32_t own_d = h ? d.y : d.x, own_m = h ? m.y : m.x;
            UNROLL for (int s = 0; s < 4; s++) {
                out.scale[s][h] = s < 2 ? twice<0>(own_d) : twice<1>(own_d);
                out.min[s][h] = s < 2 ? twice<0>(own_m) : twice<1>(own_m);
            }
        }
    }
}

DEVICE void load_words(uint32_t* out, const uint8_t* p) {  // four
    const uint4 v = load16(p);
    out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
}

// A lane's codes of a chunk, one struct for each layout of records.h.
//   load()      reads the lane's words
//   pair(s, i)  the two codes of k16 step s and register i less their offset, in F16
template <Type TYPE, int BITS = Record<TYPE>::code_bits>
struct Codes;

template <Type TYPE>
struct Codes<TYPE, 4> {
    uint32_t words[4];

    DEVICE void load(const uint8_t* data, int lane) { load_words(words, data + lane * 16); }
    DEVICE uint32_t pair(int s, int i) const {
        const int up = i % 2 * 4;
        const uint32_t code = and_or(words[s] >> (i / 2 * 8), 0x000f000fu << up, k1024);
        return less_offset<Record<TYPE>::offset>(code, up);
    }
};

template <Type TYPE>
struct Codes<TYPE, 6> {
    uint32_t low[4], high[2];

    DEVICE void load(const uint8_t* data, int lane) {
        load_words(low, data + lane * 16);
        const uint2 v = load8(data + 512 + lane * 8);
        high[0] = v.x, high[1] = v.y;
    }
    DEVICE uint32_t pair(int s, int i) const {
        const int up = i % 2 * 4;
        uint32_t code = and_or(low[s] >> (i / 2 * 8), 0x000f000fu << up, k1024);
        code = and_or(shift(high[s / 2], upper_bits(s, i) - up - 4), 0x00300030u << up, code);
        return less_offset<Record<TYPE>::offset>(code, up);
    }
};

template <Type TYPE>
struct Codes<TYPE, 5> {
    // Word w has codes 3 w to 3 w + 2; shifted, its third code at bit w, in reach of a mantissa, and above
    // it, at 5 + w, bit w of code 15.
    uint32_t words[5], shifted[5];

    DEVICE void load(const uint8_t* data, int lane) {
        load_words(words, data + lane * 16);
        words[4] = reinterpret_cast<const uint32_t*>(data + 512)[lane];
        UNROLL for (int w = 0; w < 5; w++) shifted[w] = words[w] >> (10 - w);
    }
    DEVICE uint32_t pair(int s, int i) const {
        const int p = 4 * s + i, w = p / 3;
        uint32_t code = k1024;
        int up = 5;
        if (p == 15) {
            UNROLL for (int bit = 0; bit < 5; bit++) code = and_or(shifted[bit], 0x00200020u << bit, code);
        } else {
            up = p % 3 == 2 ? w : p % 3 * 5;
            code = and_or(p % 3 == 2 ? shifted[w] : words[w], 0x001f001fu << up, code);
        }
        return less_offset<Record<TYPE>::offset>(code, up);
    }
};

template <Type TYPE>
struct Codes<TYPE, 8> {
    uint32_t words[8];

    DEVICE void load(const uint8_t* data, int lane) {
        load_words(words, data + lane * 16);
        load_words(words + 4, data + 512 + lane * 16);
    }
    DEVICE uint32_t pair(int s, int i) const {
        const uint32_t word = words[2 * s + i / 2];
        const uint32_t code = i % 2 ? bytes_plus_1024<1, 3>(word) : bytes_plus_1024<0, 2>(word);
        return less_offset<Record<TYPE>::offset>(code, 0);
    }
};

// IQ4_NL: a code is the index of one of 16 values. Of four codes, in bits 0-15 of x, the values plus 128, a
// byte each. __byte_perm() looks at bits 0-2 of each code.
DEVICE uint32_t iq4_values(uint32_t x) {
    const uint32_t low = __byte_perm(0x3f2d1801, 0x766a5d4f, x);   // of codes 0-7
    const uint32_t high = __byte_perm(0xa6998d81, 0xf1d9c5b5, x);  // of codes 8-15
    return __byte_perm(low, high, 0x3210 | (x >> 1 & 0x4444));     // chosen by bit 3
}
template <>
struct Codes<Type::IQ4_NL, 4> {
    uint32_t values[2][4];  // iq4_values(): [j][s], byte i

    DEVICE void load(const uint8_t* data, int lane) {
        uint32_t words[4];
        load_words(words, data + lane * 16);
        UNROLL for (int s = 0; s < 4; s++) {
            values[1][s] = iq4_values(words[s] >> 16);
            values[0][s] = iq4_values(words[s]);
        }
    }
    DEVICE uint32_t pair(int s, int i) const {
        const uint32_t two = __byte_perm(values[0][s], values[1][s], i | (4 + i) << 4);
        return less_offset<128>(bytes_plus_1024<0, 1>(two), 0);
    }
};

// Operand A of a chunk: a[s][i], register i of k16 step s, in F16. `scales` and `data` are those of the
// chunk's record and of the chunk itself, 16-byte aligned, in any memory.
template <Type TYPE>
DEVICE void decode(uint32_t (&a)[4][4], const uint8_t* scales, const uint8_t* data, int chunk, int lane) {
    if constexpr (Record<TYPE>::code_bits == 16) {
        UNROLL for (int s = 0; s < 4; s++) load_words(a[s], data + (s * 32 + lane) * 16);
    } else {
        ChunkScales of;
        read_scales<TYPE>(of, scales, chunk, lane / 4);
        Codes<TYPE> codes;
        codes.load(data, lane);
        UNROLL for (int s = 0; s < 4; s++) {
            UNROLL for (int i = 0; i < 4; i++) {
                const uint32_t q = codes.pair(s, i), scale = of.scale[s][i % 2];
                if constexpr (has_min<TYPE>)
                    a[s][i] = hfma2(q, scale, of.min[s][i % 2]);
                else
                    a[s][i] = hmul2(q, scale);
            }
        }
    }
}

}  // namespace easel
