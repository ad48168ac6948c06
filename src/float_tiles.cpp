// float_tiles.cpp: the products of float_tiles.h, tile by tile. A tile is some tokens by some panels, whose
// sums are registers. Called by gemm.cpp.
//
// In every tile, 32 products are summed at a time and these sums are added up one after the other, so that
// long sums round little more than short ones. They add up on the stack, not in y, whose rows may lie a power
// of two apart and push each other out of the cache.
#include "float_tiles.h"

#include <algorithm>
#include <vector>

#include "simd.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace easel {

namespace {

// y [n_token, n_panel * 16] (+)= x W, of as many tokens and panels as the function is made for.
using Tile = void (*)(const float* x, int64_t x_stride, const Panels& w, float* y, int64_t y_stride,
                      bool add);

// tiles[p - 1][n - 1] takes n tokens by p panels.
template <int kPanels, int kTokens>
void multiply(const Tile (&tiles)[kPanels][kTokens], const float* x, int64_t x_stride, int64_t n_token,
              Panels w, float* y, int64_t y_stride, bool add) {
    float edge[kTokens * kPanelCols] = {};
    for (int64_t n_panel; w.n_col > 0; w.n_col -= n_panel * kPanelCols) {
        n_panel = std::clamp<int64_t>(w.n_col / kPanelCols, 1, kPanels);
        const int64_t n_tile = (n_token + kTokens - 1) / kTokens;
        for (int64_t i = 0; i < n_tile; i++) {  // of about the same size
            const int64_t t0 = i * n_token / n_tile, n = (i + 1) * n_token / n_tile - t0;
            const Tile tile = tiles[n_panel - 1][n - 1];
            float* out = y + t0 * y_stride;
            if (w.n_col >= kPanelCols) {
                tile(x + t0 * x_stride, x_stride, w, out, y_stride, add);
                continue;
            }
            for (int64_t t = 0; t < n && add; t++)
                std::copy_n(out + t * y_stride, w.n_col, edge + t * kPanelCols);
            tile(x + t0 * x_stride, x_stride, w, edge, kPanelCols, add);
            for (int64_t t = 0; t < n; t++) std::copy_n(edge + t * kPanelCols, w.n_col, out + t * y_stride);
        }
        w.data += n_panel * w.panel_stride;
        y += n_panel * kPanelCols;
    }
}

// ---------------------------------------------------------------- 8 lanes, of whatever the compiler may use
// A panel is two vectors; with 6 tokens, 12 of 16 registers are sums.

typedef float Vec8 __attribute__((vector_size(32), aligned(4), may_alias));

Vec8 load8(const float* p) {
    return *reinterpret_cast<const Vec8*>(p);
}

template <int n>
void tile_8(const float* x, int64_t x_stride, const Panels& w, float* y, int64_t y_stride, bool add) {
    Vec8 total[n][2];
    for (int t = 0; t < n; t++)
        for (int h = 0; h < 2; h++) total[t][h] = add ? load8(y + t * y_stride + 8 * h) : Vec8{};
    for (int64_t k0 = 0; k0 < w.n_k; k0 += kSpan) {
        const int64_t end = std::min(w.n_k, k0 + kSpan);
        Vec8 sum[n][2] = {};
        for (int64_t k = k0; k < end; k++) {
            const float* row = w.data + k * w.row_stride;
            const Vec8 w0 = load8(row), w1 = load8(row + 8);
            for (int t = 0; t < n; t++) {
                const float a = x[t * x_stride + k];
                sum[t][0] += a * w0;
                sum[t][1] += a * w1;
            }
        }
        for (int t = 0; t < n; t++)
            for (int h = 0; h < 2; h++) total[t][h] += sum[t][h];
    }
    for (int t = 0; t < n; t++)
        for (int h = 0; h < 2; h++) *reinterpret_cast<Vec8*>(y + t * y_stride + 8 * h) = total[t][h];
}

constexpr Tile kTiles8[1][6] = {{tile_8<1>, tile_8<2>, tile_8<3>, tile_8<4>, tile_8<5>, tile_8<6>}};

void multiply_8(const float* x, int64_t x_stride, int64_t n_token, const Panels& w, float* y,
                int64_t y_stride, bool add) {
    multiply(kTiles8, x, x_stride, n_token, w, y, y_stride, add);
}

#ifdef __x86_64__

// ---------------------------------------------------------------- AVX-512
// A panel is one vector. Two of them and 8 tokens: 16 of 32 registers are sums, and a load of x serves two
// multiply-adds.
#define AVX512 __attribute__((target("avx512f")))

template <int p, int n>
AVX512 void tile_avx512(const float* x, int64_t x_stride, const Panels& w, float* y, int64_t y_stride,
                        bool add) {
    __m512 total[n][p];
    UNROLL for (int t = 0; t < n; t++) UNROLL for (int h = 0; h < p; h++) total[t][h] =
        add ? _mm512_loadu_ps(y + t * y_stride + 16 * h) : _mm512_setzero_ps();
    // Makes g++ forget y. Else it keeps the addresses of its rows until the end, in vector registers for lack
    // of others, and in tiles of 6 or 7 tokens wk is on the stack.
    __asm__("" : "+m"(y), "+m"(y_stride));
    for (int64_t k0 = 0; k0 < w.n_k; k0 += kSpan) {
        const int64_t end = std::min(w.n_k, k0 + kSpan);
        __m512 sum[n][p];
        UNROLL for (int t = 0; t < n; t++) UNROLL for (int h = 0; h < p; h++) sum[t][h] = _mm512_setzero_ps();
        for (int64_t k = k0; k < end; k++) {
            const float* row = w.data + k * w.row_stride;
            __m512 wk[p];
            UNROLL for (int h = 0; h < p; h++) wk[h] = _mm512_loadu_ps(row + h * w.panel_stride);
            UNROLL for (int t = 0; t < n; t++) {
                const __m512 a = _mm512_set1_ps(x[t * x_stride + k]);
                UNROLL for (int h = 0; h < p; h++) sum[t][h] = _mm512_fmadd_ps(a, wk[h], sum[t][h]);
            }
        }
        UNROLL for (int t = 0; t < n; t++) UNROLL for (int h = 0; h < p; h++) total[t][h] =
            _mm512_add_ps(total[t][h], sum[t][h]);
    }
    UNROLL for (int t = 0; t < n; t++) UNROLL for (int h = 0; h < p; h++)
        _mm512_storeu_ps(y + t * y_stride + 16 * h, total[t][h]);
}

constexpr Tile kTilesAvx512[2][8] = {
    {tile_avx512<1, 1>, tile_avx512<1, 2>, tile_avx512<1, 3>, tile_avx512<1, 4>, tile_avx512<1, 5>,
     tile_avx512<1, 6>, tile_avx512<1, 7>, tile_avx512<1, 8>},
    {tile_avx512<2, 1>, tile_avx512<2, 2>, tile_avx512<2, 3>, tile_avx512<2, 4>, tile_avx512<2, 5>,
     tile_avx512<2, 6>, tile_avx512<2, 7>, tile_avx512<2, 8>}};

void multiply_avx512(const float* x, int64_t x_stride, int64_t n_token, const Panels& w, float* y,
                     int64_t y_stride, bool add) {
    multiply(kTilesAvx512, x, x_stride, n_token, w, y, y_stride, add);
}

#endif

}  // namespace

std::span<const FloatVariant> float_variants() {
    static const std::vector<FloatVariant> variants = [] {
        std::vector<FloatVariant> v;
#ifdef __x86_64__
        if (__builtin_cpu_supports("avx512f")) v.push_back({"avx512", multiply_avx512});
#endif
        v.push_back({"8 lanes", multiply_8});
        return v;
    }();
    return variants;
}

}  // namespace easel
