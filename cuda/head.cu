// head.cu: the output head: logits of every canvas row over the vocabulary, softcapped and divided by the
// temperature, with the statistics of each tile of the vocabulary in the epilogue. sample.cu goes on from
// these. Called by forward.cpp.
#include "check.h"
#include "weight_gemm.h"

namespace easel {

namespace {

constexpr int kWarps = 8;
// Row tiles of E per warp, and 8-row tiles of the canvas per block: what fits the smallest card's 99 KiB.
template <Type TYPE>
constexpr int n_row_tile = TYPE == Type::F32 ? 1 : 2;
template <Type TYPE>
constexpr int n_token_tile = TYPE == Type::F32 ? 8 : 16;
template <Type TYPE, class T>
using HeadGemm = WeightGemm<TYPE, T, kWarps, n_row_tile<TYPE>, n_token_tile<TYPE>, 1>;

// A candidate for a row's argmax.
struct Best {
    float z;
    int id;
};
// The larger z, of equals the lower id; without a branch.
DEVICE Best better(Best a, Best b) {
    const bool take = (b.z > a.z) | ((b.z == a.z) & (b.id < a.id));
    return {take ? b.z : a.z, take ? b.id : a.id};
}
DEVICE Best from_lane_xor(Best b, int i) {
    return {__shfl_xor_sync(~0u, b.z, i), __shfl_xor_sync(~0u, b.id, i)};
}

// Sums over a part of a row's vocabulary tile, d = z - the tile's max: of e^d, of d e^d.
struct Sums {
    float sum, weighted;
};
DEVICE Sums operator+(Sums a, Sums b) {
    return {a.sum + b.sum, a.weighted + b.weighted};
}
DEVICE Sums from_lane_xor(Sums s, int i) {
    return {__shfl_xor_sync(~0u, s.sum, i), __shfl_xor_sync(~0u, s.weighted, i)};
}

// Reduces v element by element over the 8 lanes 4 g + t of the same t; lane g gets the result of element g.
// Reduce-scatter: in each step a lane gives half of its elements to its partner and combines the other half
// with the partner's, by both(a, b).
template <class T, class F>
DEVICE T reduce_8(T (&v)[8], int g, F both) {
    UNROLL for (int n = 4; n; n /= 2) {
        const bool upper = g & n;
        UNROLL for (int k = 0; k < n; k++) v[k] =
            both(upper ? v[k + n] : v[k], from_lane_xor(upper ? v[k] : v[k + n], 4 * n));
    }
    return v[0];
}

// softcap tanh(x / softcap); for F16 as 1 - 2 / (1 + e^2y), off by 2^-22 of the softcap.
template <class T>
DEVICE float softcapped(float x, float softcap) {
    if constexpr (sizeof(T) == 4) return softcap * tanhf(x / softcap);
    const float e = exp2_approx(x * (2 * kLog2e / softcap));
    return fmaf(-2 * softcap, reciprocal_approx(1 + e), softcap);
}

// Stores a row tile's 16 logits of 8 canvas rows. Lane 4 g + t passes d[h][j], of vocabulary id g + 8 h and
// canvas row 2 t + j, and z, where canvas row g has the tile's first id. Transposed, the lane stores four ids
// of row g, from 8 (t % 2) + 4 (t / 2) on, so that four lanes fill a sector of 32 bytes. All lanes call it;
// those whose row g does not count store nothing.
DEVICE void store_tile(F16* z, const float (&d)[2][2], int t, bool counts) {
    const uint32_t upper = movmatrix_trans(pack_f16(d[0][0], d[0][1]));  // ids 2 t, 2 t + 1
    const uint32_t lower = movmatrix_trans(pack_f16(d[1][0], d[1][1]));  // 8 + 2 t, 8 + 2 t + 1
    const bool odd = t % 2;
    const uint32_t other = __shfl_xor_sync(~0u, odd ? upper : lower, 1);
    if (counts) store8(z + 8 * odd + 4 * (t / 2), odd ? make_uint2(other, lower) : make_uint2(upper, other));
}

// z = softcap tanh(E x / softcap) / temperature, and per 128 ids max, sum e^(z - max), sum (z - max) e^(z -
// max).
//   z      [n_canvas, vocab_stride] T   F16: minus the tile's max; -inf past n_vocab
//   stats  [n_canvas, n_vocab_tile]
//   live   [n_vocab_tile]               becomes 0
//   logits [n_canvas, n_vocab]          softcap tanh(E x / softcap), or null
//   x      [n_canvas, n_embd] T         normed, row stride ldx
//   records                             E [n_vocab, n_embd], n_tile row tiles of n_chunk chunks
// Tile:   256 ids x 128 canvas rows (float: 128 ids, 64 rows); a thread has ids g and
//         g + 8 of each of its warp's row tiles, of the canvas rows 8 n + 2 t and 8 n + 2 t + 1.
// Launch: grid (n_canvas / 128, n_vocab_tile / 2), 256 threads; four warps per vocabulary tile. Float: grid
//         (n_canvas / 64, n_vocab_tile), all eight warps.
// Shared: WeightGemm's, for Q6_K 150 KiB, 94 on small cards; then 8 KiB of partial statistics in its place.
//         1.5 KiB of static arrays beside it.
// Why:    no float32 [canvas, vocabulary] buffer: 16 bits a logit and 16 bytes a tile leave the chip. Canvas
//         tiles are the fastest index, so that the second of them finds its part of E in L2. The tile is as
//         large as the registers allow: 128 x 128 would be bound by reading the activations from L2.
// Maths:  logits and statistics float32 (F16 sums: see WeightGemm); sums in a fixed order: lanes by a tree,
//         then warps in turn.
// Check:  tests/test_head.cpp.
template <Type TYPE, class T>
__global__ void __launch_bounds__(32 * kWarps)
    lm_head_kernel(T* z, TileStats* stats, uint8_t* live, float* logits, const T* x, int ldx,
                   const uint8_t* records, int n_tile, int n_chunk, int n_canvas, int n_vocab, float softcap,
                   const LoopState* state) {
    using Gemm = HeadGemm<TYPE, T>;
    constexpr int MT = n_row_tile<TYPE>, NT = n_token_tile<TYPE>, kTokens = 8 * NT;
    constexpr int kTileWarps = kVocabTile / (16 * MT);  // of a vocabulary tile
    constexpr int kTiles = kWarps / kTileWarps, kStats = kTiles * kTokens;
    SHARED_DYNAMIC(uint8_t, shared);
    SHARED_ARRAY(int, row_of, kTokens);
    SHARED_ARRAY(float, tile_max, kStats);
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
    const int base = blockIdx.x * kTokens, n_row = min(kTokens, n_canvas - base);
    const int first_tile = blockIdx.y * kTiles, n_own = min(kTiles, n_vocab_tile(n_vocab) - first_tile);
    if (thread < kTokens) row_of[thread] = base + min(thread, n_row - 1);
    __syncthreads();  // row_of is complete

    // [m][n][2 h + j]: id g + 8 h of the warp's row tile m, canvas row 8 n + 2 t + j
    float acc[MT][NT][4];
    const int n_record = n_chunk / Record<TYPE>::n_chunk;
    Gemm::multiply(acc, shared, {records, n_tile, n_record, first_tile * (kVocabTile / 16), 0, n_record},
                   {x, ldx, row_of, n_row}, true);

    if (thread < n_own && blockIdx.x == 0) live[first_tile + thread] = 0;
    const auto id = [&](int m, int h) {  // of acc[m][.][2 h + .]
        return first_tile * kVocabTile + Gemm::row_tile(warp, m) * 16 + 8 * h + g;
    };
    // Added to z, to make it -inf past n_vocab. There acc is finite, in vocabulary tiles with any id at all.
    float outside[MT][2];
    UNROLL for (int m = 0; m < MT; m++) UNROLL for (int h = 0; h < 2; h++) outside[m][h] =
        id(m, h) < n_vocab ? 0 : -INFINITY;
    // Canvas rows are dealt with 32 at a time, four 8-row tiles from `first` on. Of these a lane has eight in
    // acc: number k is row 2 t + k % 2 of tile first + k / 2. reduce_8() gives it the result of number g.
    const auto row_of_number = [&](int first, int k) { return 8 * (first + k / 2) + 2 * t + k % 2; };
    const float temp = temperature(state->sampler, state->step), per_temp = 1 / temp;

    auto* const part_best = reinterpret_cast<Best*>(shared);  // [kWarps][kTokens]
    UNROLL for (int first = 0; first < NT; first += 4) {
        Best best[8];
        UNROLL for (int k = 0; k < 8; k++) {
            best[k] = {-INFINITY, id(0, 0)};
            UNROLL for (int m = 0; m < MT; m++) {
                UNROLL for (int h = 0; h < 2; h++) {
                    float& v = acc[m][first + k / 2][2 * h + k % 2];
                    v = softcapped<T>(v, softcap);
                    if (logits && row_of_number(first, k) < n_row && id(m, h) < n_vocab)
                        logits[int64_t{base + row_of_number(first, k)} * n_vocab + id(m, h)] = v;
                    v = sizeof(T) == 4 ? v / temp + outside[m][h] : fmaf(v, per_temp, outside[m][h]);
                    if (v > best[k].z) best[k] = {v, id(m, h)};  // ids ascend
                }
            }
        }
        part_best[warp * kTokens + row_of_number(first, g)] = reduce_8(best, g, better);
    }
    __syncthreads();  // every warp's maxima are there
    // Thread i < kTiles kTokens puts together the statistics of canvas row i % kTokens, tile i / kTokens.
    const bool has_stats = thread < kTiles * kTokens;
    const int first_part = thread / kTokens * kTileWarps * kTokens + thread % kTokens;
    Best best{};
    if (has_stats) {
        best = part_best[first_part];
        for (int w = 1; w < kTileWarps; w++) best = better(best, part_best[first_part + w * kTokens]);
        tile_max[thread] = best.z;
    }
    __syncthreads();  // tile_max is complete, part_best has been read

    auto* const part_sums = reinterpret_cast<Sums*>(shared);
    const bool has_tile = warp / kTileWarps < n_own;
    z += int64_t{base} * vocab_stride(n_vocab);
    UNROLL for (int first = 0; first < NT; first += 4) {
        Sums sums[8] = {};
        UNROLL for (int n = first; n < first + 4; n++) {
            const float* const max = tile_max + warp / kTileWarps * kTokens + 8 * n + 2 * t;
            UNROLL for (int m = 0; m < MT; m++) {
                float d[2][2];
                UNROLL for (int h = 0; h < 2; h++) {
                    UNROLL for (int j = 0; j < 2; j++) {
                        const float v = acc[m][n][2 * h + j];
                        d[h][j] = v - max[j];
                        const float e = exponential<T>(d[h][j]);
                        Sums& own = sums[2 * (n - first) + j];
                        if (e > 0) own = own + Sums{e, d[h][j] * e};
                        const int row = 8 * n + 2 * t + j;
                        if (sizeof(T) == 4 && has_tile && row < n_row)
                            z[int64_t{row} * vocab_stride(n_vocab) + id(m, h)] = from_f32<T>(v);
                    }
                }
                if constexpr (sizeof(T) == 2)
                    store_tile(z + int64_t{8 * n + g} * vocab_stride(n_vocab) + id(m, 0) - g, d, t,
                               has_tile && 8 * n + g < n_row);
            }
        }
        part_sums[warp * kTokens + row_of_number(first, g)] =
            reduce_8(sums, g, [](Sums a, Sums b) { return a + b; });
    }
    __syncthreads();  // every warp's sums are there
    if (has_stats && thread % kTokens < n_row && thread / kTokens < n_own) {
        Sums all{};
        for (int w = 0; w < kTileWarps; w++) all = all + part_sums[first_part + w * kTokens];
        stats[int64_t{base + thread % kTokens} * n_vocab_tile(n_vocab) + first_tile + thread / kTokens] = {
            best.z, all.sum, all.weighted, best.id};
    }
}

}  // namespace

template <class T>
void lm_head(Stream stream, T* z, TileStats* stats, uint8_t* live, float* logits, const T* x,
             const Weights& w, int n_canvas, float softcap, const LoopState* state) {
    static_assert(n_vocab_tile(kMaxVocab) <= 65535, "a grid has no room for more in y");
    const bool done = with_record(w.type, [&](auto type) {
        if constexpr (has_product<type.value, T>) {
            using Gemm = HeadGemm<type.value, T>;
            constexpr int kTokens = 8 * n_token_tile<type.value>, kTiles = 16 * Gemm::N_TILE / kVocabTile;
            static_assert(Gemm::bytes_for(2) >= 2 * kWarps * kTokens * 4);
            static_assert((1 + kTiles) * kTokens * 4 <= Gemm::kCallersBytes);
            const dim3 grid((n_canvas + kTokens - 1) / kTokens,
                            (n_vocab_tile(w.n_row) + kTiles - 1) / kTiles);
            EASEL_LAUNCH((lm_head_kernel<type.value, T>), grid, 32 * kWarps, Gemm::shared_bytes(), stream, z,
                         stats, live, logits, x, padded(w.n_col), w.data, w.n_tile(),
                         padded(w.n_col) / kChunk, n_canvas, w.n_row, softcap, state);
        } else {
            fail("bug: an output matrix of a type that these activations are not multiplied with");
        }
    });
    require(done, "bug: an output matrix of a type that has no records");
}

template void lm_head(Stream, F16*, TileStats*, uint8_t*, float*, const F16*, const Weights&, int, float,
                      const LoopState*);
template void lm_head(Stream, float*, TileStats*, uint8_t*, float*, const float*, const Weights&, int, float,
                      const LoopState*);

}  // namespace easel
