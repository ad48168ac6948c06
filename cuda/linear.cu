// linear.cu: products with weights, of all tokens with one matrix or of each token with its experts, plain or
// as a gated pair with its gelu product. One kernel; the matrix is read as records (records.h), whatever its
// type. Called by forward.cpp; max_row_square() by load.cpp.
#include "check.h"
#include "device.h"
#include "weight_gemm.h"

namespace easel {

namespace {

// The activation rows of a block, in tiles of 8: many, or, only for experts of passes with few slots, few.
template <class X>
constexpr int kMany = kManyRows<X> / 8;
constexpr int kFew = kFewRows / 8;
// Blocks that an SM's registers and shared memory have to suffice for.
template <int N_TOKEN_TILE>
constexpr int n_block = N_TOKEN_TILE == kFew ? 2 : 1;
// Warps of a block, row tiles of a warp.
template <class X>
constexpr int n_warp = sizeof(X) == 4 ? 4 : 8;
template <class X>
constexpr int n_row_tile = sizeof(X) == 4 ? 1 : 2;
template <Type TYPE, class X, int N_TOKEN_TILE>
using LinearGemm = WeightGemm<TYPE, X, n_warp<X>, n_row_tile<X>, N_TOKEN_TILE, n_block<N_TOKEN_TILE>>;

// out[s] = scale * x[row(s)] W^T, or, gated, scale * gelu(x[row(s)] gate^T) * (x[row(s)] up^T), for the slots
// s of a group, which are one expert's; without groups, slots are the tokens.
//   out      [n_token, n_out] Y, row stride ldo; n_token: slots in all
//   x        [., n_col] X, row stride ldx
//   records  n_expert matrices of n_tile row tiles of n_chunk chunks, expert_bytes each
//   groups   [n_group(n_expert, n_token, slots per block)]; null: one matrix, slots 0 to n_token - 1
//   token_of [n_token] row of x for a slot; null: the slot itself
// Split-K: block z of gridDim.z multiplies its share of the columns, into out + z n_token ldo; the reader
//         adds these up.
// Tile:   256 rows x 128 or 32 slots (float: 64 x 64); gated: half of the rows are gate's, half up's, so both
//         meet in one thread's registers.
// Launch: grid (n_tile / 16, groups or n_token / 128, n_split), 256 threads; float: grid (n_tile / 4, groups
//         or n_token / 64, n_split), 128 threads.
// Shared: WeightGemm's, for Q4_K 131 KiB, 83 on small cards (128 slots), or 73 and 48 (32 slots); the rows'
//         numbers.
// Why:    the experts of a canvas have 16 tokens on average: 8-token steps waste little, and a block with
//         all of an expert's tokens reads and decodes each weight once. The bounds then are how many bytes
//         of weights are in flight, and what is read of the activations beside them: room for 32 slots
//         instead of 128 lets two blocks into an SM. An expert with more slots has several groups, next to
//         each other in the grid: their blocks run at the same time, and what the first reads of the weights
//         the others find in L2. One block for all groups would read the weights from memory for each:
//         between two groups, the blocks of all SMs read more than L2 holds. A product of all tokens is bound
//         by what its blocks read from L2, so its tile is as large as an SM's registers allow.
// Maths:  float32 accumulation in order of columns (F16 sums: see WeightGemm). Gelu in float32.
// Check:  tests/test_linear.cpp.
template <Type TYPE, bool GATED, int N_TOKEN_TILE, class X, class Y>
__global__ void __launch_bounds__(32 * n_warp<X>, n_block<N_TOKEN_TILE>)
    linear_kernel(Y* out, int ldo, int n_out, const X* x, int ldx, const uint8_t* records,
                  int64_t expert_bytes, int n_tile, int n_chunk, const ExpertGroup* groups,
                  const int* token_of, int n_token, float scale) {
    constexpr int kTokens = 8 * N_TOKEN_TILE, N_ROW_TILE = n_row_tile<X>;
    using Gemm = LinearGemm<TYPE, X, N_TOKEN_TILE>;
    SHARED_DYNAMIC(uint8_t, shared);
    SHARED_ARRAY(int, row_of, kTokens);
    const int thread = threadIdx.x, g = thread % 32 / 4, t = thread % 4, tile = blockIdx.x * Gemm::N_TILE;
    int begin = blockIdx.y * kTokens, end = min(begin + kTokens, n_token);
    if (N_TOKEN_TILE == kFew || groups) {
        wait_for_last_launch();
        const ExpertGroup own = groups[blockIdx.y];
        if (own.begin == own.end) return;  // the whole block
        begin = own.begin, end = own.end, records += own.expert * expert_bytes;
    }
    const int n_record = n_chunk / Record<TYPE>::n_chunk;
    int first_record = 0, n_own = n_record;
    if constexpr (N_TOKEN_TILE != kFew) {
        const int split = blockIdx.z, n_split = gridDim.z;
        first_record = n_record * split / n_split, n_own = n_record * (split + 1) / n_split - first_record;
        out += int64_t{split} * n_token * ldo;
    }

    const int n_row = end - begin;
    if (thread < kTokens) {
        const int slot = begin + min(thread, n_row - 1);
        row_of[thread] = token_of ? token_of[slot] : slot;
    }
    __syncthreads();  // row_of is complete
    float acc[N_ROW_TILE][N_TOKEN_TILE][4];
    Gemm::multiply(acc, shared, {records, n_tile, n_record, tile, first_record, n_own},
                   {x, ldx, row_of, n_row}, N_TOKEN_TILE != kFew && !groups);

    // A warp's row tiles are four apart (Gemm::row_tile()). Of each tile a lane has output g, and, if not
    // gated, output g + 8.
    constexpr int N_OUT = GATED ? 8 : 16;
    const int first_out = (tile + Gemm::row_tile(thread / 32, 0)) * N_OUT + g;
    Y* row = out + int64_t{begin + 2 * t} * ldo + first_out;
    UNROLL for (int n = 0; n < N_TOKEN_TILE; n++) {
        if (n > 0 && 8 * n >= n_row) break;  // the same for all
        UNROLL for (int j = 0; j < 2; j++) {
            const bool counts = 8 * n + 2 * t + j < n_row;
            UNROLL for (int m = 0; m < N_ROW_TILE; m++) {
                const float low = acc[m][n][j], high = acc[m][n][2 + j];  // rows g and g + 8
                const int i = 4 * N_OUT * m;
                if constexpr (GATED) {
                    const Y y = from_f32<Y>(gelu_tanh<Y>(low) * high * scale);
                    if (counts && first_out + i < n_out) row[i] = y;
                } else {
                    if (counts && first_out + i < n_out) row[i] = from_f32<Y>(low * scale);
                    if (counts && first_out + i + 8 < n_out) row[i + 8] = from_f32<Y>(high * scale);
                }
            }
            row += j == 0 ? ldo : 7 * ldo;  // to slot 2 t + 1, then to 2 t of the next eight
        }
    }
}

constexpr int kSquareWarps = 4;

// max = the largest sum of squares of a row.
//   max      [1], 0 before the launch
//   records  n_tile row tiles of n_chunk chunks, of all experts
// Tile:   a row tile per warp.
// Launch: grid (n_tile / 4), 128 threads.
// Shared: none.
// Why:    once, at load; bound by reading the weights.
// Maths:  weights decoded to F16, float32 sums. Non-negative floats order as their bits: an atomic integer
//         maximum, the same in any order.
// Check:  tests/test_linear.cpp.
template <Type TYPE>
__global__ void __launch_bounds__(32 * kSquareWarps)
    max_row_square_kernel(float* max, const uint8_t* records, int n_tile, int n_chunk) {
    wait_for_last_launch();
    using R = Record<TYPE>;
    const int lane = threadIdx.x % 32, tile = blockIdx.x * kSquareWarps + threadIdx.x / 32;
    if (tile >= n_tile) return;  // a whole warp
    records += int64_t{tile} * (n_chunk / R::n_chunk) * R::bytes;
    float sum[2] = {};  // this lane's part of rows g and g + 8
    for (int chunk = 0; chunk < n_chunk; chunk++) {
        const uint8_t* record = records + int64_t{chunk / R::n_chunk} * R::bytes;
        uint32_t a[4][4];
        decode<TYPE>(a, record, record + R::scale_bytes + chunk % R::n_chunk * R::chunk_bytes,
                     chunk % R::n_chunk, lane);
        UNROLL for (int s = 0; s < 4; s++) {
            UNROLL for (int i = 0; i < 4; i++) {
                const float x = half_to_float(a[s][i] & 0xffff), y = half_to_float(a[s][i] >> 16);
                sum[i % 2] += x * x + y * y;
            }
        }
    }
    UNROLL for (int h = 0; h < 2; h++) {
        sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
        sum[h] += __shfl_xor_sync(~0u, sum[h], 2);  // over the four lanes of a row
    }
    const float largest = warp_max(fmaxf(sum[0], sum[1]));
    if (lane == 0) atomicMax(reinterpret_cast<int*>(max), __float_as_int(largest));
}

template <bool GATED, int N_TOKEN_TILE, class X, class Y>
void launch(Stream stream, Y* out, int ldo, const X* x, const Weights& w, const ExpertGroup* groups,
            const int* token_of, int n_token, int n_split = 1) {
    require(w.gated == GATED, "bug: a gated pair is no plain matrix");
    require(groups || N_TOKEN_TILE != kFew, "bug: without experts this kernel waits for no launch");
    static_assert(16 * n_warp<X> * n_row_tile<X> == kMatrixRows<X>);
    const bool done = with_record(w.type, [&](auto type) {
        if constexpr (has_product<type.value, X>) {
            constexpr int kTokens = 8 * N_TOKEN_TILE;
            using Gemm = LinearGemm<type.value, X, N_TOKEN_TILE>;
            const int n_y =
                groups ? n_group(w.n_expert, n_token, kTokens) : (n_token + kTokens - 1) / kTokens;
            const dim3 grid((w.n_tile() + Gemm::N_TILE - 1) / Gemm::N_TILE, n_y, n_split);
            EASEL_LAUNCH((linear_kernel<type.value, GATED, N_TOKEN_TILE, X, Y>), grid, Gemm::N_THREAD,
                         Gemm::shared_bytes(), stream, out, ldo, GATED ? w.n_row / 2 : w.n_row, x,
                         padded(w.n_col), w.data, w.expert_bytes(), w.n_tile(), padded(w.n_col) / kChunk,
                         groups, token_of, n_token, w.scale);
        } else {
            fail("bug: weights of a type that these activations are not multiplied with");
        }
    });
    require(done, "bug: weights of a type that has no records");
}

}  // namespace

void max_row_square(Stream stream, float* max, const Weights& w) {
    fill_zero(stream, max, sizeof(float));
    with_record(w.type, [&](auto type) {
        if constexpr (has_product<type.value, F16>) {
            const int n_tile = w.n_tile() * w.n_expert;
            EASEL_LAUNCH(max_row_square_kernel<type.value>, (n_tile + kSquareWarps - 1) / kSquareWarps,
                         32 * kSquareWarps, 0, stream, max, w.data, n_tile, padded(w.n_col) / kChunk);
        } else {
            fail("bug: weights of a type that has no F16 product");
        }
    });
}

template <class T>
void linear(Stream stream, float* out, const T* x, const Weights& w, int n_token, int n_split) {
    launch<false, kMany<T>>(stream, out, w.n_row, x, w, nullptr, nullptr, n_token, n_split);
}
template <class T>
void gate_up(Stream stream, T* out, const T* x, const Weights& w, int n_token) {
    launch<true, kMany<T>>(stream, out, padded(w.n_row / 2), x, w, nullptr, nullptr, n_token);
}
template <class T>
void expert_gate_up(Stream stream, T* out, const T* x, const Weights& w, const int* token_of,
                    const ExpertGroup* groups, int n_slot) {
    if constexpr (sizeof(T) == 2)
        if (expert_group<T>(w.n_expert, n_slot) == kFewRows)
            return launch<true, kFew>(stream, out, padded(w.n_row / 2), x, w, groups, token_of, n_slot);
    launch<true, kMany<T>>(stream, out, padded(w.n_row / 2), x, w, groups, token_of, n_slot);
}
template <class T>
void expert_down(Stream stream, float* out, const T* x, const Weights& w, const ExpertGroup* groups,
                 int n_slot) {
    if constexpr (sizeof(T) == 2)
        if (expert_group<T>(w.n_expert, n_slot) == kFewRows)
            return launch<false, kFew>(stream, out, w.n_row, x, w, groups, nullptr, n_slot);
    launch<false, kMany<T>>(stream, out, w.n_row, x, w, groups, nullptr, n_slot);
}

template void linear(Stream, float*, const F16*, const Weights&, int, int);
template void linear(Stream, float*, const float*, const Weights&, int, int);
template void gate_up(Stream, F16*, const F16*, const Weights&, int);
template void gate_up(Stream, float*, const float*, const Weights&, int);
template void expert_gate_up(Stream, F16*, const F16*, const Weights&, const int*, const ExpertGroup*, int);
template void expert_gate_up(Stream, float*, const float*, const Weights&, const int*, const ExpertGroup*,
                             int);
template void expert_down(Stream, float*, const F16*, const Weights&, const ExpertGroup*, int);
template void expert_down(Stream, float*, const float*, const Weights&, const ExpertGroup*, int);

}  // namespace easel
