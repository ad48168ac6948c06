// float_tiles.h: products of float activations with panels of weights, a variant for each instruction set.
// Called by gemm.cpp; tested by tests/test_gemm.cpp.
#pragma once
#include <cstdint>
#include <span>

namespace easel {

constexpr int kPanelCols = 16;
// Products of so many consecutive k are summed first, then these sums are added to y in order. So a product
// that is split at multiples of kSpan, or has zeros added before one, gives the same bits.
constexpr int kSpan = 32;

// A matrix W [n_k, n_col] in panels of 16 columns: W[k, j] is at data[j / 16 * panel_stride + k * row_stride
// + j % 16]. The last panel is full, whatever n_col.
struct Panels {
    const float* data;
    int64_t row_stride, panel_stride;
    int64_t n_k, n_col;
};

// y[t, j] (+)= sum over k of x[t, k] * W[k, j], t < n_token; rows of x and y are x_stride and y_stride apart.
// Every variant adds the same products in the same order. In a build for processors with fused multiply-add
// all of them fuse, and agree bit for bit.
using FloatMultiply = void (*)(const float* x, int64_t x_stride, int64_t n_token, const Panels& w, float* y,
                               int64_t y_stride, bool add);
struct FloatVariant {
    const char* name;  // "avx512", "8 lanes"
    FloatMultiply multiply;
};
// The variants that this machine can run, fastest first; the last runs on any processor.
std::span<const FloatVariant> float_variants();

}  // namespace easel
