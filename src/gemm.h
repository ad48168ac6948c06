// gemm.h: products of float activations with matrices of any block type, on all cores. Used by reference.cpp.
#pragma once
#include <cstdint>
#include <span>

#include "backend.h"

namespace easel {

// Rows of activations: row t is at data + t * stride.
struct Rows {
    const float* data = nullptr;
    int64_t n_row = 0, stride = 0;
};

// y[t, r] = sum over c of x[t, c] * w[r, c]; y's rows are y_stride apart.
struct GemmJob {
    float* y;
    int64_t y_stride;
    Rows x;
    Matrix w;
};

// All jobs at once, spread over all cores by tiles of rows of w: a tile is dequantised once and used for
// every token. Every output is summed in one fixed order, whatever the number of threads. CpuMath::Int8:
// products with block types round x to int8 (see int8.h).
void gemm(std::span<const GemmJob> jobs, CpuMath math = CpuMath::Float);
// y [x.n_row, w.n_row], contiguous
void gemm(float* y, Rows x, const Matrix& w, CpuMath math = CpuMath::Float);

// The same product, in float, on the calling thread alone, for loops that are parallel outside.
void gemm_serial(const GemmJob& job);

// Bytes of the copy that a product makes of its activations [n_row, n_col]. A thread that calls gemm() keeps
// the memory of its largest copies in float and in int8, one that calls gemm_serial() that of its largest.
int64_t copy_bytes(int64_t n_row, int64_t n_col, bool int8);

// Rows of w that gemm_transposed() takes at once: a thread keeps so many floats for every row of p.
constexpr int64_t kTransposedRows = 128;
// y[t, c] = sum over r of p[t, r] * w[r, c], y [p.n_row, w.n_col] contiguous: the soft embedding and
// attention's P V. Rows r whose every |p[t, r]| is below `skip` are left out.
void gemm_transposed(float* y, Rows p, const Matrix& w, float skip);
void gemm_transposed_serial(float* y, int64_t y_stride, Rows p, const Matrix& w);

}  // namespace easel
