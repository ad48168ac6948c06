// blocks.h: made-up weight matrices of any block type, with the floats that they stand for.
#pragma once
#include <cstring>
#include <random>
#include <vector>

#include "model.h"
#include "quant.h"

namespace easel {

// Normally distributed, reproducible.
inline std::vector<float> random_floats(size_t n, uint32_t seed, float scale = 1) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> v(n);
    for (float& x : v) x = normal(engine);
    return v;
}

// Blocks of random bytes: every code and scale occurs. Scales that are halves are -100 to 100 times `unit`.
inline void random_blocks(Type type, uint8_t* blocks, int64_t n_bytes, uint32_t seed, float unit) {
    std::mt19937 random(seed);
    for (int64_t i = 0; i < n_bytes; i++) blocks[i] = static_cast<uint8_t>(random());
    for (uint8_t* b = blocks; b < blocks + n_bytes; b += type_info(type).block_bytes) {
        const auto put_half = [&](int offset) {
            const uint16_t h = f32_to_f16(unit * static_cast<float>(static_cast<int>(random() % 201) - 100));
            std::memcpy(b + offset, &h, 2);
        };
        switch (type) {
            case Type::Q2_K:
                put_half(80), put_half(82);
                break;
            case Type::Q3_K:
                put_half(108);
                break;
            case Type::Q6_K:
                put_half(208);
                break;
            case Type::Q4_1:
            case Type::Q5_1:
            case Type::Q4_K:
            case Type::Q5_K:
                put_half(0), put_half(2);
                break;
            case Type::MXFP4:  // the smallest exponents too
                b[0] = static_cast<uint8_t>(random() % 4 ? 120 + random() % 8 : random() % 3);
                break;
            default:
                put_half(0);
        }
    }
}

struct Blocks {
    std::vector<uint8_t> bytes;
    std::vector<float> values;  // [n_row, n_col]
    Matrix matrix;

    Blocks(Type type, int64_t n_row, int64_t n_col)
        : bytes(n_row * row_bytes(type, n_col)),
          values(n_row * n_col),
          matrix{type, bytes.data(), n_row, n_col} {}
    Blocks(const Blocks&) = delete;  // matrix points into it
    Blocks(Blocks&&) = default;
    void decode() {
        for (int64_t r = 0; r < matrix.n_row; r++)
            to_float(matrix.type, matrix.data + r * matrix.stride(), values.data() + r * matrix.n_col,
                     matrix.n_col);
    }
};

inline Blocks random_blocks(Type type, int64_t n_row, int64_t n_col, uint32_t seed) {
    Blocks b(type, n_row, n_col);
    random_blocks(type, b.bytes.data(), static_cast<int64_t>(b.bytes.size()), seed, 0.001f);
    b.decode();
    return b;
}

// Of normally distributed weights, for types that from_float() writes.
inline Blocks normal_blocks(Type type, int64_t n_row, int64_t n_col, uint32_t seed) {
    Blocks b(type, n_row, n_col);
    const auto source = random_floats(b.values.size(), seed);
    for (int64_t r = 0; r < n_row; r++)
        from_float(type, source.data() + r * n_col, b.bytes.data() + r * b.matrix.stride(), n_col);
    b.decode();
    return b;
}

}  // namespace easel
