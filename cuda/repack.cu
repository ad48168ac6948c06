// repack.cu: the blocks of a weight file (quant.h, SPEC section 6) to the records that kernels read
// (records.h): the same bits in another order, or, for types without records and where asked for, the values
// as 16-bit floats or floats. Runs once, at load: load.cpp.
#include "check.h"
#include "decode.h"
#include "ops.h"

namespace easel {

namespace {

// ---- blocks in the file
//
// Blocks<TYPE>::value() is element k of the block at b, bit for bit the float32 that to_float() gives.
// code(), for quantised types with records of their own, is what a record keeps of it besides scales.

// Blocks in a file are aligned to two bytes at least, except those of MXFP4, which have no 16-bit fields.
DEVICE uint32_t word16(const uint8_t* p) {
    return *reinterpret_cast<const uint16_t*>(p);
}
DEVICE float half_at(const uint8_t* p) {
    return half_to_float(static_cast<uint16_t>(word16(p)));
}
// Of 32 elements: byte j has elements j and j + 16.
DEVICE uint32_t nibble(const uint8_t* qs, int k) {
    return qs[k % 16] >> (k / 16 * 4) & 15;
}
DEVICE uint32_t nibble5(const uint8_t* qh, const uint8_t* qs, int k) {
    return nibble(qs, k) | (static_cast<uint32_t>(qh[k / 8]) >> (k % 8) & 1) << 4;
}
// An F16 (11 bits) times a scale and a code (13 bits together at most) is exact in a float, so value() rounds
// once, whether or not the compiler makes a fused multiply-add of it.
DEVICE float scaled(float d, int q) {
    return d * static_cast<float>(q);
}
DEVICE float scaled(float d, int q, float min) {
    return d * static_cast<float>(q) + min;
}

template <int ELEMS, int BYTES>
struct BlockShape {
    static constexpr int elems = ELEMS, bytes = BYTES;
};
template <Type TYPE>
struct Blocks;

template <>
struct Blocks<Type::F32> : BlockShape<1, 4> {
    DEVICE static float value(const uint8_t* b, int) {
        return __uint_as_float(word16(b) | word16(b + 2) << 16);
    }
};
template <>
struct Blocks<Type::F16> : BlockShape<1, 2> {
    DEVICE static float value(const uint8_t* b, int) { return half_at(b); }
};
template <>
struct Blocks<Type::BF16> : BlockShape<1, 2> {
    DEVICE static float value(const uint8_t* b, int) { return __uint_as_float(word16(b) << 16); }
};
template <>
struct Blocks<Type::Q4_0> : BlockShape<32, 18> {
    DEVICE static uint32_t code(const uint8_t* b, int k) { return nibble(b + 2, k); }
    DEVICE static float value(const uint8_t* b, int k) {
        return scaled(half_at(b), static_cast<int>(code(b, k)) - 8);
    }
};
template <>
struct Blocks<Type::Q4_1> : BlockShape<32, 20> {
    DEVICE static float value(const uint8_t* b, int k) {
        return scaled(half_at(b), static_cast<int>(nibble(b + 4, k)), half_at(b + 2));
    }
};
template <>
struct Blocks<Type::Q5_0> : BlockShape<32, 22> {
    DEVICE static uint32_t code(const uint8_t* b, int k) { return nibble5(b + 2, b + 6, k); }
    DEVICE static float value(const uint8_t* b, int k) {
        return scaled(half_at(b), static_cast<int>(code(b, k)) - 16);
    }
};
template <>
struct Blocks<Type::Q5_1> : BlockShape<32, 24> {
    DEVICE static uint32_t code(const uint8_t* b, int k) { return nibble5(b + 4, b + 8, k); }
    DEVICE static float value(const uint8_t* b, int k) {
        return scaled(half_at(b), static_cast<int>(code(b, k)), half_at(b + 2));
    }
};
template <>
struct Blocks<Type::Q8_0> : BlockShape<32, 34> {
    DEVICE static uint32_t code(const uint8_t* b, int k) { return b[2 + k] ^ 128u; }
    DEVICE static float value(const uint8_t* b, int k) {
        return scaled(half_at(b), static_cast<int>(code(b, k)) - 128);
    }
};
template <>
struct Blocks<Type::IQ4_NL> : BlockShape<32, 18> {
    DEVICE static uint32_t code(const uint8_t* b, int k) { return nibble(b + 2, k); }
    DEVICE static float value(const uint8_t* b, int k) {
        return scaled(half_at(b), static_cast<int>(iq4_values(code(b, k)) & 255) - 128);
    }
};
template <>
struct Blocks<Type::MXFP4> : BlockShape<32, 17> {
    DEVICE static float value(const uint8_t* b, int k) {
        const uint32_t e = b[0], q = nibble(b + 1, k);
        const float d = __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);  // 2^(e - 128)
        const int m = static_cast<int>(__byte_perm(0x03020100, 0x0c080604, q & 7) & 255);
        return scaled(d, q & 8 ? -m : m);
    }
};
template <>
struct Blocks<Type::Q2_K> : BlockShape<256, 84> {
    DEVICE static float value(const uint8_t* b, int k) {
        const int q = b[16 + k / 128 * 32 + k % 32] >> (k % 128 / 32 * 2) & 3, s = b[k / 16];
        return scaled(half_at(b + 80) * static_cast<float>(s & 15), q,
                      -(half_at(b + 82) * static_cast<float>(s >> 4)));
    }
};
template <>
struct Blocks<Type::Q3_K> : BlockShape<256, 110> {
    DEVICE static float value(const uint8_t* b, int k) {
        const int low = b[32 + k / 128 * 32 + k % 32] >> (k % 128 / 32 * 2) & 3,
                  high = b[k % 32] >> (k / 32) & 1;
        const int s = k / 16, sc_low = b[96 + s % 8] >> (s / 8 * 4) & 15;
        const int sc = sc_low | (b[104 + s % 4] >> (s / 4 * 2) & 3) << 4;
        return scaled(half_at(b + 108) * static_cast<float>(sc - 32), low + 4 * high - 4);
    }
};
// Q4_K and Q5_K: the block begins with d, dmin and 12 bytes `s`, the 6-bit scales and minima of 8 sub-blocks.
struct KScale {
    int scale, min;
};
DEVICE KScale k_scale(const uint8_t* b, int i) {  // of sub-block i
    const uint8_t* s = b + 4;
    if (i < 4) return {s[i] & 63, s[i + 4] & 63};
    return {(s[i + 4] & 15) | s[i - 4] >> 6 << 4, s[i + 4] >> 4 | s[i] >> 6 << 4};
}
DEVICE float value_k(const uint8_t* b, int k, uint32_t code) {
    const KScale s = k_scale(b, k / 32);
    return scaled(half_at(b) * static_cast<float>(s.scale), static_cast<int>(code),
                  -(half_at(b + 2) * static_cast<float>(s.min)));
}
template <>
struct Blocks<Type::Q4_K> : BlockShape<256, 144> {
    DEVICE static uint32_t code(const uint8_t* b, int k) {
        return b[16 + k / 64 * 32 + k % 32] >> (k / 32 % 2 * 4) & 15;
    }
    DEVICE static float value(const uint8_t* b, int k) { return value_k(b, k, code(b, k)); }
};
template <>
struct Blocks<Type::Q5_K> : BlockShape<256, 176> {
    DEVICE static uint32_t code(const uint8_t* b, int k) {
        const uint32_t low = b[48 + k / 64 * 32 + k % 32] >> (k / 32 % 2 * 4) & 15;
        return low | (static_cast<uint32_t>(b[16 + k % 32]) >> (k / 32) & 1) << 4;
    }
    DEVICE static float value(const uint8_t* b, int k) { return value_k(b, k, code(b, k)); }
};
template <>
struct Blocks<Type::Q6_K> : BlockShape<256, 210> {
    DEVICE static uint32_t code(const uint8_t* b, int k) {
        const uint32_t low = b[k / 128 * 64 + k % 64] >> (k / 64 % 2 * 4) & 15;
        return low | (static_cast<uint32_t>(b[128 + k / 128 * 32 + k % 32]) >> (k / 32 % 4 * 2) & 3) << 4;
    }
    DEVICE static float value(const uint8_t* b, int k) {
        const int sc = static_cast<int8_t>(b[192 + k / 16]);
        return scaled(half_at(b + 208) * static_cast<float>(sc), static_cast<int>(code(b, k)) - 32);
    }
};
template <>
struct Blocks<Type::IQ4_XS> : BlockShape<256, 136> {
    DEVICE static float value(const uint8_t* b, int k) {
        const int i = k / 32;
        const uint32_t high = word16(b + 2) >> (2 * i) & 3;
        const int sc = (b[4 + i / 2] >> (i % 2 * 4) & 15) | static_cast<int>(high << 4);
        return scaled(half_at(b) * static_cast<float>(sc - 32),
                      static_cast<int>(iq4_values(nibble(b + 8 + 16 * i, k % 32)) & 255) - 128);
    }
};

// ---- records

// One row tile in the file; rows of n_block blocks, n_low and n_high of them in the matrix from this tile on.
template <Type FROM>
struct TileRows {
    const uint8_t *low, *high;
    int n_low, n_high, n_block;

    // Block i of row `row` of the tile; null where the matrix has none.
    DEVICE const uint8_t* block(int row, int i) const {
        if (i >= n_block || row % 8 >= (row < 8 ? n_low : n_high)) return nullptr;
        return (row < 8 ? low : high) + (int64_t{row % 8} * n_block + i) * Blocks<FROM>::bytes;
    }
};

// What a record of type TO keeps of element (row, col): its code, or its bits as a float; 0 past the matrix.
template <Type FROM, Type TO>
DEVICE uint32_t element(const TileRows<FROM>& rows, int row, int col) {
    using B = Blocks<FROM>;
    const uint8_t* b = rows.block(row, col / B::elems);
    const int k = col % B::elems;
    if (!b) return 0;
    if constexpr (FROM == TO && B::bytes / B::elems == 2)
        return word16(b);
    else if constexpr (FROM == TO && B::elems > 1)
        return B::code(b, k);
    else if constexpr (TO == Type::F16)
        return from_f32<F16>(B::value(b, k)).bits;
    else
        return __float_as_uint(B::value(b, k));
}

// The scales of a record whose first column is `col`.
template <Type TYPE>
DEVICE void write_scales(uint8_t* out, const TileRows<TYPE>& rows, int col, int lane) {
    auto* words = reinterpret_cast<uint16_t*>(out);
    const auto field = [&](int row, int block, int offset) {
        const uint8_t* b = rows.block(row, col / Blocks<TYPE>::elems + block);
        return static_cast<uint16_t>(b ? word16(b + offset) : 0);
    };
    const int row = lane / 2, half = lane % 2, place = scale_place(row);
    if constexpr (TYPE == Type::Q4_K || TYPE == Type::Q5_K) {
        const uint8_t* b = rows.block(row, col / Blocks<TYPE>::elems);
        for (int chunk = 0; chunk < 4; chunk++) {
            const KScale s = b ? k_scale(b, 2 * chunk + half) : KScale{0, 0};
            uint8_t* four = out + (chunk * 16 + place) * 4;
            four[half] = static_cast<uint8_t>(s.scale);
            four[2 + half] = static_cast<uint8_t>(s.min);
        }
        words[128 + 2 * place + half] = field(row, 0, 2 * half);
    } else if constexpr (TYPE == Type::Q6_K) {
        for (int chunk = 0; chunk < 4; chunk++)
            words[(chunk * 16 + place) * 2 + half] = field(row, 0, 192 + 4 * chunk + 2 * half);
        if (half == 0) words[128 + place] = field(row, 0, 208);
    } else {
        words[2 * place + half] = field(row, half, 0);
        if constexpr (TYPE == Type::Q5_1) words[32 + 2 * place + half] = field(row, half, 2);
    }
}

// One chunk of a record, columns col to col + 64.
template <Type FROM, Type TO>
DEVICE void write_chunk(uint8_t* out, const TileRows<FROM>& rows, int col, int lane) {
    constexpr int bits = Record<TO>::code_bits;
    if constexpr (bits == 32) {
        for (int i = lane; i < 16 * kChunk; i += 32)
            reinterpret_cast<uint32_t*>(out)[i] = element<FROM, TO>(rows, i / kChunk, col + i % kChunk);
        return;
    }
    const int g = lane / 4, t = lane % 4;
    const auto at = [&](int s, int i, int j) {
        return element<FROM, TO>(rows, g + i % 2 * 8, col + 16 * s + i / 2 * 8 + 2 * t + j);
    };
    if constexpr (bits == 16) {
        for (int s = 0; s < 4; s++) {
            uint32_t w[4];
            UNROLL for (int i = 0; i < 4; i++) w[i] = at(s, i, 0) | at(s, i, 1) << 16;
            store16(out + (s * 32 + lane) * 16, make_uint4(w[0], w[1], w[2], w[3]));
        }
    } else if constexpr (bits == 8) {
        for (int s = 0; s < 4; s += 2) {
            uint32_t w[4] = {};
            UNROLL for (int i = 0; i < 16; i++) {  // step s + i / 8, register i / 2 % 4, value i % 2
                const uint32_t code = at(s + i / 8, i / 2 % 4, i % 2);
                w[i / 8 * 2 + i / 4 % 2] |= code << (i / 2 % 2 * 8 + i % 2 * 16);
            }
            store16(out + s / 2 * 512 + lane * 16, make_uint4(w[0], w[1], w[2], w[3]));
        }
    } else if constexpr (bits == 5) {
        uint32_t w[5] = {};
        UNROLL for (int p = 0; p < 16; p++) {  // step p / 4, register p % 4
            const uint32_t codes = at(p / 4, p % 4, 0) | at(p / 4, p % 4, 1) << 16;
            if (p < 15)
                w[p / 3] |= codes << (p % 3 * 5);
            else
                UNROLL for (int bit = 0; bit < 5; bit++) w[bit] |= (codes >> bit & 0x00010001) << 15;
        }
        store16(out + lane * 16, make_uint4(w[0], w[1], w[2], w[3]));
        reinterpret_cast<uint32_t*>(out + 512)[lane] = w[4];
    } else {
        auto* high_words = reinterpret_cast<uint32_t*>(out + 512);
        for (int s = 0; s < 4; s += 2) {
            uint32_t low[2] = {}, high = 0;
            UNROLL for (int i = 0; i < 16; i++) {  // step s + i / 8, register i / 2 % 4, value i % 2
                const int step = i / 8, place = i / 2 % 4, half = i % 2 * 16;
                const uint32_t code = at(s + step, place, i % 2);
                low[step] |= (code & 15) << (4 * place + half);
                if constexpr (bits == 6) high |= (code >> 4) << (upper_bits(s + step, place) + half);
            }
            store8(out + lane * 16 + 4 * s, make_uint2(low[0], low[1]));
            if constexpr (bits == 6) high_words[2 * lane + s / 2] = high;
        }
    }
}

constexpr int kWarps = 4;

// records = the tiles of `rows`, permuted (TO = FROM) or expanded.
//   rows     see RowTiles; rows of n_block blocks
//   records  [n_tile, n_record] records of type TO
// Tile:   one record per warp. Each lane collects the codes of its own operands, byte by byte.
// Launch: grid (n_tile * n_record / 4), 128 threads.
// Shared: none.
// Why:    bytes that several lanes read come from L1, and a warp's writes are coalesced. Loading is bound by
//         the file and the bus; simple is fast enough.
// Maths:  values are exactly those of to_float(), then rounded to nearest.
// Check:  tests/test_repack.cpp.
template <Type FROM, Type TO>
__global__ void __launch_bounds__(32 * kWarps)
    repack_kernel(uint8_t* records, RowTiles rows, int n_tile, int n_block, int n_record) {
    wait_for_last_launch();
    using R = Record<TO>;
    const int index = blockIdx.x * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
    const int tile = index / n_record, record = index % n_record;
    if (tile >= n_tile) return;
    // Rows of low, and of high, before this tile.
    const int before = static_cast<int>(tile * (rows.stride / (int64_t{n_block} * Blocks<FROM>::bytes)));
    const TileRows<FROM> own{rows.low + tile * rows.stride, rows.high + tile * rows.stride,
                             rows.n_low - before, rows.n_high - before, n_block};
    uint8_t* out = records + int64_t{index} * R::bytes;
    if constexpr (R::scale_bytes > 0) write_scales<TO>(out, own, record * R::N_K, lane);
    for (int chunk = 0; chunk < R::n_chunk; chunk++)
        write_chunk<FROM, TO>(out + R::scale_bytes + chunk * R::chunk_bytes, own,
                              record * R::N_K + chunk * kChunk, lane);
}

// Calls f(std::integral_constant<Type, TYPE>) for any type that a file can have.
template <class F>
void with_type(Type type, F f) {
#define EASEL_TYPE(name) \
    case Type::name:     \
        return f(std::integral_constant<Type, Type::name>());
    switch (type) {
        EASEL_TYPE(F32)
        EASEL_TYPE(F16)
        EASEL_TYPE(BF16)
        EASEL_TYPE(Q4_0)
        EASEL_TYPE(Q4_1)
        EASEL_TYPE(Q5_0)
        EASEL_TYPE(Q5_1)
        EASEL_TYPE(Q8_0)
        EASEL_TYPE(Q2_K)
        EASEL_TYPE(Q3_K)
        EASEL_TYPE(Q4_K)
        EASEL_TYPE(Q5_K)
        EASEL_TYPE(Q6_K)
        EASEL_TYPE(IQ4_NL)
        EASEL_TYPE(IQ4_XS)
        EASEL_TYPE(MXFP4)
    }
#undef EASEL_TYPE
}

}  // namespace

void repack(Stream stream, Type from, Type to, const RowTiles& rows, int n_tile, int n_col,
            uint8_t* records) {
    bool done = false;
    with_type(from, [&](auto f) {
        with_record(to, [&](auto t) {
            constexpr Type FROM = f.value, TO = t.value;
            if constexpr (FROM == TO || Record<TO>::code_bits >= 16) {
                require(n_col % Blocks<FROM>::elems == 0, "bug: a row is not whole blocks");
                const int n_record = (n_col + Record<TO>::N_K - 1) / Record<TO>::N_K;
                const int n_warp = n_tile * n_record;
                if (n_warp > 0)
                    EASEL_LAUNCH((repack_kernel<FROM, TO>), (n_warp + kWarps - 1) / kWarps, 32 * kWarps, 0,
                                 stream, records, rows, n_tile, n_col / Blocks<FROM>::elems, n_record);
                done = true;
            }
        });
    });
    require(done, "bug: blocks cannot become records of that type");
}

}  // namespace easel
