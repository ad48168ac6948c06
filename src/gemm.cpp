// gemm.cpp: y = x W^T for weights of any block type, the one fast part of the CPU backend. Called by
// reference.cpp.
//
// A task owns kTileRows rows of W: it turns kTileCols columns of them into floats (or int8 codes, see
// int8.h), transposes those into panels of 16 rows, and multiplies every token with them before it goes on.
// So a weight is dequantised once a pass, the panels (64 KiB) stay in the core's own cache, and y gathers one
// partial sum per kTileCols columns, always in that order.
#include "gemm.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "check.h"
#include "float_tiles.h"
#include "int8.h"
#include "parallel.h"
#include "simd.h"

namespace easel {

namespace {

constexpr int64_t kTileRows = 64, kTileCols = 256;  // 256: the longest block
constexpr int kLanes = kPanelCols;                  // rows in a panel
constexpr int64_t kGroup = 48;                      // tokens that are multiplied at once with all panels
constexpr int64_t kStride = kTileCols + kLanes;     // of copied rows: no power of two, see pack_rows()
static_assert(kTileCols == kInt8Cols && kLanes == kInt8Rows);

void multiply(const float* x, int64_t x_stride, int64_t n_token, const Panels& w, float* y, int64_t y_stride,
              bool add) {
    static const FloatMultiply fastest = float_variants()[0].multiply;
    fastest(x, x_stride, n_token, w, y, y_stride, add);
}

// rows [16, stride] to panel [n_k, 16].
void transpose_panel(const float* rows, int64_t stride, int64_t n_k, float* panel) {
    int64_t k = 0;
    for (; k + 8 <= n_k; k += 8)
        for (int r = 0; r < kLanes; r += 8)
            transpose_8x8(rows + r * stride + k, stride * 4, panel + k * kLanes + r, kLanes * 4);
    for (; k < n_k; k++)
        for (int i = 0; i < kLanes; i++) panel[k * kLanes + i] = rows[i * stride + k];
}

// Columns [c, c + n) of row r as floats; c and n are multiples of the type's block.
void row_segment(const Matrix& w, int64_t r, int64_t c, int64_t n, float* out) {
    to_float(w.type, w.data + r * w.stride() + row_bytes(w.type, c), out, n);
}

// Prefetches columns [c, c + kTileCols) of rows [r0, r0 + n_row) while those before them are multiplied: the
// hardware does not foresee short pieces of so many rows, far apart.
void prefetch_piece(const Matrix& w, int64_t r0, int64_t n_row, int64_t c) {
    const int64_t n = row_bytes(w.type, std::min(kTileCols, w.n_col - c)), stride = w.stride();
    const uint8_t* piece = w.data + r0 * stride + row_bytes(w.type, c);
    for (int64_t r = 0; r < n_row; r++, piece += stride) {
        for (int64_t i = 0; i < n; i += 64) __builtin_prefetch(piece + i, 0, 2);
        __builtin_prefetch(piece + n - 1, 0, 2);
    }
}

// Rows [t0, t1) of x [n_row, n_col] in pieces of kTileCols columns: piece c of row t at (c * n_row + t) *
// kStride. A copy, because rows that lie a power of two apart would push each other out of the nearest cache.
void pack_rows(const Rows& x, int64_t n_col, int64_t t0, int64_t t1, float* out) {
    for (int64_t c = 0; c < n_col; c += kTileCols, out += x.n_row * kStride)
        for (int64_t t = t0; t < t1; t++)
            std::copy_n(x.data + t * x.stride + c, std::min(kTileCols, n_col - c), out + t * kStride);
}

int64_t n_piece(int64_t n_col) {
    return (n_col + kTileCols - 1) / kTileCols;
}

// Makes x hold at least n items, of any value. Not by resize() alone, which may allocate for twice as many.
template <class T>
T* room_for(std::vector<T>& x, size_t n) {
    if (x.size() < n) {
        std::vector<T>().swap(x);
        x.resize(n);
    }
    return x.data();
}

// Rows [r0, r0 + n_row) of a job's matrix.
struct Tile {
    const GemmJob* job = nullptr;
    int64_t r0 = 0, n_row = 0;
};

// One task: rows [r0, r0 + n_row) of the job's matrix, n_row <= kTileRows; x: from pack_rows().
void gemm_tile(const GemmJob& job, const float* x, int64_t r0, int64_t n_row) {
    alignas(64) thread_local float rows[kLanes * kTileCols];
    alignas(64) thread_local float panels[kTileRows * kTileCols];
    const Matrix& w = job.w;
    for (int64_t c = 0; c < w.n_col; c += kTileCols, x += job.x.n_row * kStride) {
        const int64_t n_k = std::min(kTileCols, w.n_col - c);
        for (int64_t p = 0; p < n_row; p += kLanes) {
            const int64_t width = std::min<int64_t>(kLanes, n_row - p);
            if (w.type == Type::F32 && width == kLanes) {
                const uint8_t* first = w.data + (r0 + p) * w.stride() + c * 4;
                transpose_panel(reinterpret_cast<const float*>(first), w.n_col, n_k, panels + p * kTileCols);
                continue;
            }
            for (int64_t i = 0; i < width; i++) row_segment(w, r0 + p + i, c, n_k, rows + i * kTileCols);
            std::fill(rows + width * kTileCols, rows + kLanes * kTileCols, 0.0f);
            transpose_panel(rows, kTileCols, n_k, panels + p * kTileCols);
        }
        for (int64_t t = 0; t < job.x.n_row; t += kGroup)
            multiply(x + t * kStride, kStride, std::min(kGroup, job.x.n_row - t),
                     {panels, kLanes, kLanes * kTileCols, n_k, n_row}, job.y + t * job.y_stride + r0,
                     job.y_stride, c > 0);
    }
}

// The same in int8: x holds the job's activations, piece c of token t at x[c * job.x.n_row + t]. At the end
// it prefetches the first columns of `next`, the tile that this thread is likely to take then.
void gemm_tile_int8(const GemmJob& job, const Int8Activations* x, int64_t r0, int64_t n_row,
                    const Tile& next) {
    constexpr int64_t kTokensAtOnce = 24;  // 10 KiB of activations, beside 20 KiB of panels
    thread_local Int8Panel panels[kTileRows / kLanes];
    static const Int8Multiply multiply = int8_variants()[0].multiply;
    const Matrix& w = job.w;
    const Int8Codes codes = int8_codes(w.type);
    const size_t n_full = n_row / kLanes;
    for (int64_t c = 0; c < w.n_col; c += kTileCols, x += job.x.n_row) {
        const int64_t n_k = std::min(kTileCols, w.n_col - c);
        const int n_block = static_cast<int>(n_k / 32);
        for (int64_t p = 0; p < n_row; p += kLanes)
            int8_panel(w.type, w.data + (r0 + p) * w.stride() + row_bytes(w.type, c), w.stride(),
                       std::min<int64_t>(kLanes, n_row - p), n_k, panels[p / kLanes]);
        if (c + kTileCols < w.n_col)
            prefetch_piece(w, r0, n_row, c + kTileCols);
        else if (next.job)
            prefetch_piece(next.job->w, next.r0, next.n_row, 0);
        for (int64_t t = 0; t < job.x.n_row; t += kTokensAtOnce) {
            const int64_t n_token = std::min(kTokensAtOnce, job.x.n_row - t);
            float* y = job.y + t * job.y_stride + r0;
            multiply(codes, x + t, n_token, {panels, n_full}, n_block, y, job.y_stride, c > 0);
            const int64_t width = n_row % kLanes;  // of the last panel
            if (width == 0) continue;
            y += n_row - width;
            float edge[kTokensAtOnce * kLanes] = {};
            for (int64_t i = 0; i < n_token && c > 0; i++)
                std::copy_n(y + i * job.y_stride, width, edge + i * kLanes);
            multiply(codes, x + t, n_token, {panels + n_full, 1}, n_block, edge, kLanes, true);
            for (int64_t i = 0; i < n_token; i++) std::copy_n(edge + i * kLanes, width, y + i * job.y_stride);
        }
    }
}

bool in_int8(const GemmJob& job, CpuMath math) {
    return math == CpuMath::Int8 && has_int8(job.w.type);
}

// A job's activations as its tiles read them: one of the two.
struct Activations {
    const float* packed = nullptr;  // pack_rows()
    const Int8Activations* int8 = nullptr;
};

// Packs the activations of every job, once for jobs that have the same (q, k and v; gate and up).
std::vector<Activations> prepare(std::span<const GemmJob> jobs, CpuMath math) {
    thread_local std::vector<float> kept_floats;
    thread_local std::vector<Int8Activations> kept_int8;
    constexpr int64_t kRowsAtOnce = 8;
    struct Input {
        const GemmJob* job;
        bool int8;
        int64_t first_task, at;  // at: where its copy begins, in floats or in pieces of int8
    };
    std::vector<Input> inputs;
    std::vector<size_t> input(jobs.size());  // which one a job reads
    int64_t n_task = 0, n_float = 0, n_int8 = 0;
    for (size_t i = 0; i < jobs.size(); i++) {
        const GemmJob& job = jobs[i];
        const bool int8 = in_int8(job, math);
        const auto same = [&](const Input& in) {
            return in.int8 == int8 && in.job->x.data == job.x.data && in.job->x.n_row == job.x.n_row &&
                   in.job->x.stride == job.x.stride && in.job->w.n_col == job.w.n_col;
        };
        const auto found = std::find_if(inputs.begin(), inputs.end(), same);
        input[i] = static_cast<size_t>(found - inputs.begin());
        if (found != inputs.end()) continue;
        int64_t& n = int8 ? n_int8 : n_float;
        inputs.push_back({&job, int8, n_task, n});
        n_task += (job.x.n_row + kRowsAtOnce - 1) / kRowsAtOnce;
        n += job.x.n_row * n_piece(job.w.n_col) * (int8 ? 1 : kStride);
    }
    float* floats = room_for(kept_floats, n_float);
    Int8Activations* pieces = room_for(kept_int8, n_int8);
    parallel_for(n_task, [&](int64_t task) {
        const Input& in = *std::prev(std::upper_bound(
            inputs.begin(), inputs.end(), task, [](int64_t t, const Input& i) { return t < i.first_task; }));
        const Rows& x = in.job->x;
        const int64_t t0 = (task - in.first_task) * kRowsAtOnce, t1 = std::min(x.n_row, t0 + kRowsAtOnce);
        if (!in.int8) return pack_rows(x, in.job->w.n_col, t0, t1, floats + in.at);
        for (int64_t t = t0; t < t1; t++)
            int8_activations(x.data + t * x.stride, in.job->w.n_col, pieces + in.at + t, x.n_row);
    });
    std::vector<Activations> out(jobs.size());
    for (size_t i = 0; i < jobs.size(); i++) {
        const Input& in = inputs[input[i]];
        if (in.int8)
            out[i].int8 = pieces + in.at;
        else
            out[i].packed = floats + in.at;
    }
    return out;
}

int64_t n_tiles(const GemmJob& job, int64_t n_row) {
    return job.x.n_row ? (job.w.n_row + n_row - 1) / n_row : 0;
}

// Columns [c, c + n_col) of y = p W, n_col <= kTileCols.
void transposed_tile(float* y, int64_t y_stride, Rows p, const Matrix& w, int64_t c, int64_t n_col,
                     float skip) {
    constexpr int64_t kRows = kTransposedRows, kScan = 256;
    // Rows to prefetch ahead. F32 (kScan: none): attention's are contiguous, which the hardware foresees.
    const int64_t ahead = w.type == Type::F32 ? kScan : 16;
    alignas(64) thread_local float panel[kRows * kStride];
    thread_local std::vector<float> packed;
    room_for(packed, p.n_row * kRows);
    for (int64_t t = 0; t < p.n_row; t++) std::fill_n(y + t * y_stride + c, n_col, 0.0f);

    for (int64_t r0 = 0; r0 < w.n_row; r0 += kScan) {
        const int64_t n_scan = std::min(kScan, w.n_row - r0);
        float largest[kScan] = {};
        if (skip > 0)
            for (int64_t t = 0; t < p.n_row; t++)
                for (int64_t r = 0; r < n_scan; r++)
                    largest[r] = std::max(largest[r], std::fabs(p.data[t * p.stride + r0 + r]));
        int64_t active[kScan], n_active = 0;
        for (int64_t r = 0; r < n_scan; r++)
            if (largest[r] >= skip) active[n_active++] = r0 + r;

        for (int64_t a = 0; a < n_active; a += kRows) {
            const int64_t n = std::min(kRows, n_active - a);
            for (int64_t r = 0; r < n; r++) {
                if (a + r + ahead < n_active) prefetch_piece(w, active[a + r + ahead], 1, c);
                row_segment(w, active[a + r], c, n_col, panel + r * kStride);
            }
            const bool all = active[a + n - 1] - active[a] == n - 1;  // none is left out in between
            for (int64_t t = 0; t < p.n_row; t++) {
                const float* from = p.data + t * p.stride;
                if (all)
                    std::copy_n(from + active[a], n, packed.data() + t * kRows);
                else
                    for (int64_t r = 0; r < n; r++) packed[t * kRows + r] = from[active[a + r]];
            }
            multiply(packed.data(), kRows, p.n_row, {panel, kStride, kLanes, n, n_col}, y + c, y_stride,
                     true);
        }
    }
}

}  // namespace

void gemm(std::span<const GemmJob> jobs, CpuMath math) {
    // Smaller tiles where a core would have fewer than four: while the last ones run, other cores wait.
    int64_t n_row = kTileRows, n_tile = 0;
    for (;; n_row /= 2) {
        n_tile = 0;
        for (const GemmJob& job : jobs) n_tile += n_tiles(job, n_row);
        if (n_tile >= 4 * n_threads() || n_row == kLanes) break;
    }
    std::vector<int64_t> first(1, 0);  // first[i]: number of tiles before job i
    for (const GemmJob& job : jobs) first.push_back(first.back() + n_tiles(job, n_row));
    const std::vector<Activations> x = prepare(jobs, math);
    const auto tile = [&](int64_t i) -> Tile {
        if (i >= n_tile) return {};
        const size_t j = std::upper_bound(first.begin(), first.end(), i) - first.begin() - 1;
        const int64_t r0 = (i - first[j]) * n_row;
        return {&jobs[j], r0, std::min(n_row, jobs[j].w.n_row - r0)};
    };
    parallel_for(n_tile, [&](int64_t i) {
        const Tile t = tile(i);
        const Activations& in = x[t.job - jobs.data()];
        if (in.int8)
            gemm_tile_int8(*t.job, in.int8, t.r0, t.n_row, tile(i + n_threads()));
        else
            gemm_tile(*t.job, in.packed, t.r0, t.n_row);
    });
}

void gemm(float* y, Rows x, const Matrix& w, CpuMath math) {
    const GemmJob job{y, w.n_row, x, w};
    gemm({&job, 1}, math);
}

void gemm_serial(const GemmJob& job) {
    thread_local std::vector<float> kept;
    float* x = room_for(kept, job.x.n_row * n_piece(job.w.n_col) * kStride);
    pack_rows(job.x, job.w.n_col, 0, job.x.n_row, x);
    for (int64_t r0 = 0; job.x.n_row && r0 < job.w.n_row; r0 += kTileRows)
        gemm_tile(job, x, r0, std::min(kTileRows, job.w.n_row - r0));
}

int64_t copy_bytes(int64_t n_row, int64_t n_col, bool int8) {
    return n_row * n_piece(n_col) * static_cast<int64_t>(int8 ? sizeof(Int8Activations) : 4 * kStride);
}

void gemm_transposed(float* y, Rows p, const Matrix& w, float skip) {
    // Tasks: pieces of the columns, and of the tokens too when there are fewer pieces than cores.
    const int64_t n_piece = (w.n_col + kTileCols - 1) / kTileCols;
    const int64_t n_split =
        std::clamp<int64_t>((2 * n_threads() + n_piece - 1) / n_piece, 1, (p.n_row + 31) / 32);
    const int64_t n_token = (p.n_row + n_split - 1) / std::max<int64_t>(n_split, 1);
    parallel_for(n_piece * n_split, [&](int64_t i) {
        const int64_t c = i % n_piece * kTileCols, t = std::min(p.n_row, i / n_piece * n_token);
        const Rows part{p.data + t * p.stride, std::min(n_token, p.n_row - t), p.stride};
        transposed_tile(y + t * w.n_col, w.n_col, part, w, c, std::min(kTileCols, w.n_col - c), skip);
    });
}

void gemm_transposed_serial(float* y, int64_t y_stride, Rows p, const Matrix& w) {
    for (int64_t c = 0; c < w.n_col; c += kTileCols)
        transposed_tile(y, y_stride, p, w, c, std::min(kTileCols, w.n_col - c), 0);
}

}  // namespace easel
