// int8.h: products in int8: float activations rounded to 8 bits in blocks of 32, weights as the codes that
// their blocks hold. Called by gemm.cpp for CpuMath::Int8; tested by tests/test_int8.cpp.
#pragma once
#include <cstdint>
#include <span>

#include "quant.h"

namespace easel {

constexpr int kInt8Cols = 256;  // columns of a piece: the longest block
constexpr int kInt8Rows = 16;   // rows of a panel

// Up to 256 activations of one token: x[i] is about d[i / 32] * q[i]; zeros past the end of a row.
struct Int8Activations {
    alignas(32) int8_t q[kInt8Cols];  // -127 .. 127
    float d[8];                       // largest magnitude of 32 columns, over 127
    float sum32[8], sum16[16];        // d * (sum of q) over 32 and over 16 columns
    int32_t q_sum32[8], q_sum16[16];  // sum of q over 32 and over 16 columns
};

// Rounds x [n] to the ceil(n / 256) pieces at out[0], out[out_stride] .. A block of 32 with a value that is
// not finite gets a d that is not finite.
void int8_activations(const float* x, int64_t n, Int8Activations* out, int64_t out_stride);

// How a block type is multiplied: the range of its codes, and how many columns share a scale.
enum class Int8Range {
    U4,  // 0 .. 15, a scale every 32 columns
    U5,  // 0 .. 31, every 32
    U6,  // 0 .. 63, every 16
    S8,  // -128 .. 127, every 32
};
// A type has minima, or a middle code that stands for 0 (S8: 0).
struct Int8Codes {
    Int8Range range;
    bool has_min;
    int middle = 0;
};

// False for F32, F16 and BF16, which have no blocks: their products stay float.
bool has_int8(Type type);
Int8Codes int8_codes(Type type);

// 256 columns of 16 rows, ready to be multiplied: W[r, c] = scale * (code - middle) + min. scale and min are
// products of the block's fields, exact in float.
struct Int8Panel {
    // [64][16][4]: four columns of 16 rows, then the next four.
    alignas(64) uint8_t codes[kInt8Cols * kInt8Rows];
    float scale[16][kInt8Rows];  // of every 16 or 32 columns, by row
    float min[16][kInt8Rows];    // the same, if the type has minima
};

// Fills `panel` with columns [0, n_col) of n_row rows (at most 16; the others become zeros) whose blocks
// begin at src, `stride` bytes apart. n_col: a multiple of the type's block and at most 256.
void int8_panel(Type type, const uint8_t* src, int64_t stride, int64_t n_row, int64_t n_col,
                Int8Panel& panel);

// y[t, r] (+)= sum over n_block * 32 columns of x[t] * W[r], t < n_token, r < 16 rows of every panel; y's
// rows are y_stride apart. Every variant adds the same numbers in the same order: they agree bit for bit.
using Int8Multiply = void (*)(Int8Codes codes, const Int8Activations* x, int64_t n_token,
                              std::span<const Int8Panel> panels, int n_block, float* y, int64_t y_stride,
                              bool add);
struct Int8Variant {
    const char* name;  // "avx512-vnni", "avx2", "neon-dot", "plain"
    Int8Multiply multiply;
};
// The variants that this machine can run, fastest first; the last is plain C++.
std::span<const Int8Variant> int8_variants();

}  // namespace easel
