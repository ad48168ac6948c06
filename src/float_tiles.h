// float_tiles.h: products of float activations with panels of weights, for every instruction set that has its
// own. What gemm.cpp is made of; tested by tests/test_gemm.cpp.
#pragma once
#include <cstdint>
#include <span>

namespace easel {

constexpr int kPanelCols = 16;
// Products are added to y by the sums of so many k: what begins at a multiple of it is the same, to the bit,
// whatever else is in the product.
constexpr int kSpan = 32;

// A matrix W [n_k, n_col] in panels of 16 columns: W[k, j] is at data[j / 16 * panel_stride + k * row_stride
// + j % 16]. The last panel is full, whatever n_col.
struct Panels {
    const float* data;
    int64_t row_stride, panel_stride;
    int64_t n_k, n_col;
};

// y[t, j] (+)= sum over k of x[t, k] * W[k, j], t < n_token; rows of x and y are x_stride and y_stride apart.
// Every variant adds the same products in the same order, and a build for processors with fused multiply-adds
// fuses them in all of them: then they agree bit for bit.
using FloatMultiply = void (*)(const float* x, int64_t x_stride, int64_t n_token, const Panels& w, float* y,
                               int64_t y_stride, bool add);
struct FloatVariant {
    const char* name;  // "avx512", "8 lanes"
    FloatMultiply multiply;
};
// Those that this machine can run, fastest first; the last is for any processor.
std::span<const FloatVariant> float_variants();

}  // namespace easel
