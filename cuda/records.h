// records.h: weights as kernels read them. repack.cu writes records once, at load, from the blocks of the
// file; weight_gemm.h, linear.cu and embed.cu read them with decode() (decode.h). They are the file's bits in
// another order, except that the scales of Q4_K and Q5_K are unpacked from 6 bits to 8, which decode() would
// otherwise do for every chunk: 4 bytes more in 144 and 176. Matrices are padded to whole records (zeros).
//
// A matrix [n_row, n_col] is cut into row tiles of 16 and, along a row, into records of N_K columns; a record
// is the tile's scales, then one chunk for every 64 columns. Records of a tile follow each other, then comes
// the next tile. In a chunk each lane 4 g + t of a warp finds the values that mma.m16n8k16 wants of it as
// operand A: for k16 step s and register i, row g + 8 (i % 2), columns 16 s + 8 (i / 2) + 2 t + j, j = 0, 1.
//
// The code of (s, i, j), j = 1 always 16 bits above j = 0:
//
//   4-bit codes  [lane] 4 words: in word s, from bit 4 i on
//   6-bit        their lower four bits likewise, then [lane] 2 words with the upper two: in word s / 2, from
//                bit upper_bits(s, i) on
//   5-bit        [lane] words 0 to 3, then [lane] word 4: code p = 4 s + i < 15 in word p / 3, from bit
//                5 (p % 3) on; of code 15, bit w in bits 15 (j = 0) and 31 of word w
//   8-bit        [s / 2][lane] 4 words: in word 2 (s % 2) + i / 2, byte i % 2; code = value + 128
//   16-bit       [s][lane] 4 words: in word i
//   float        [16 rows][64 columns]
//
// Scales, [16 rows] in the order of scale_place(), so that a lane reads those of its two rows at once:
//   blocks of 32  [16 rows] f16 d of a row's two blocks; Q5_1: then f16 m likewise
//   Q4_K, Q5_K    [chunk][16 rows] 4 bytes: scales, then minima of a row's two sub-blocks of the chunk, of
//                 6 bits each; then [16 rows] f16 d, f16 dmin
//   Q6_K          [chunk][16 rows] int8 scales of a row's four sub-blocks of the chunk; then [16 rows] f16 d
#pragma once
#include <type_traits>

#include "quant.h"
#include "types.h"

namespace easel {

constexpr int kChunk = 64;  // columns

// What a record of `TYPE` is made of. Types without one are expanded at load, see record_type().
template <Type TYPE>
struct Record;

template <int N_K_, int SCALE_BYTES, int CHUNK_BYTES, int CODE_BITS, int OFFSET>
struct RecordShape {
    static constexpr int N_K = N_K_, scale_bytes = SCALE_BYTES, chunk_bytes = CHUNK_BYTES;
    static constexpr int n_chunk = N_K / kChunk, bytes = scale_bytes + n_chunk * chunk_bytes;
    static constexpr int code_bits = CODE_BITS;  // 16 and 32: floats, no scales
    static constexpr int offset = OFFSET;        // value = (code - offset) * scale + min; not IQ4_NL
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

// The type of record that weights of a file's type become, for products with activations of type T: F32 if
// T is float; else their own type, or F16 if that is not quantised or has no records.
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

}  // namespace easel
