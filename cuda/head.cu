// head.cu: the output head: logits of every canvas row over the vocabulary, softcapped and divided by the
// temperature, with the statistics of each tile of the vocabulary in the epilogue. sample.cu goes on from
// these. Called by engine.cpp.
#include "check.h"
#include "weight_gemm.h"

namespace easel {

namespace {

constexpr int kWarps = 8;
// A block's row tiles of E a warp, and its 8-row tiles of the canvas: what fits the 99 KiB of the smallest
// card.
template <Type TYPE>
constexpr int n_row_tile = TYPE == Type::F32 ? 1 : 2;
template <Type TYPE>
constexpr int n_token_tile = TYPE == Type::F32 ? 8 : 16;
template <Type TYPE, class T>
using HeadGemm = WeightGemm<TYPE, T, kWarps, n_row_tile<TYPE>, n_token_tile<TYPE>, 1>;

// The better of two candidates for an argmax: the larger value, of equals the lower id.
DEVICE void take_better(float& z, int& id, float other_z, int other_id) {
    if (other_z > z || (other_z == z && other_id < id)) z = other_z, id = other_id;
}

// z = softcap tanh(E x / softcap) / temperature, and per 128 words max, sum e^(z - max), sum (z - max) e^(z -
// max).
//   z      [n_canvas, vocab_stride] T   F16: minus the tile's max; -inf past n_vocab
//   stats  [n_canvas, n_vocab_tile]
//   live   [n_vocab_tile]               becomes 0
//   logits [n_canvas, n_vocab]          softcap tanh(E x / softcap), or null
//   x      [n_canvas, n_embd] T         normed, row stride ldx
// Tile:   256 words x 128 canvas rows (float: 128 words, 64 rows); a thread has words g and
//         g + 8 of each of its warp's row tiles, of the canvas rows 8 n + 2 t and 8 n + 2 t + 1.
// Launch: grid (n_canvas / 128, n_vocab_tile / 2), 256 threads; four warps a vocabulary tile.
// Shared: WeightGemm's, for Q6_K 150 KiB, 94 on small cards; then 8 KiB of partial statistics in its place.
//         1.5 KiB beside it.
// Why:    no float32 [canvas, vocabulary] buffer: 16 bits a logit and 16 bytes a tile leave the chip. Canvas
//         tiles are the fastest index: what they both read of E comes from L2. The tile is as large as the
//         registers allow: 128 x 128 would be bound by reading the activations from L2.
// Maths:  logits and statistics float32, sums in a fixed order: lanes by a butterfly, then warps in turn.
// Check:  tests/test_head.cpp.
template <Type TYPE, class T>
__global__ void __launch_bounds__(32 * kWarps)
    lm_head_kernel(T* z, TileStats* stats, uint8_t* live, float* logits, const T* x, int ldx,
                   const uint8_t* records, int n_tile, int n_chunk, int n_canvas, int n_vocab, float softcap,
                   const LoopState* state) {
    using Gemm = HeadGemm<TYPE, T>;
    constexpr int MT = n_row_tile<TYPE>, NT = n_token_tile<TYPE>, kTokens = 8 * NT;
    constexpr int kTileWarps = kVocabTile / (16 * MT),
                  kTiles = kWarps / kTileWarps;  // warps a vocabulary tile
    SHARED_DYNAMIC(uint8_t, shared);
    SHARED_ARRAY(int, row_of, kTokens);
    SHARED_ARRAY(float, tile_max, kTiles* kTokens);
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
    const int base = blockIdx.x * kTokens, n_row = min(kTokens, n_canvas - base);
    const int first_tile = blockIdx.y * kTiles, n_own = min(kTiles, n_vocab_tile(n_vocab) - first_tile);
    if (thread < kTokens) row_of[thread] = base + min(thread, n_row - 1);
    __syncthreads();  // row_of is complete

    // [m][n][2 h + j]: word g + 8 h of the warp's row tile m, canvas row 8 n + 2 t + j
    float acc[MT][NT][4];
    const int n_record = n_chunk / Record<TYPE>::n_chunk;
    Gemm::multiply(acc, shared, records, first_tile * (kVocabTile / 16), n_tile, n_record, 0, n_record, x,
                   ldx, row_of, n_row, true);

    if (thread < n_own && blockIdx.x == 0) live[first_tile + thread] = 0;
    auto* part_max = reinterpret_cast<float*>(shared);  // [kWarps][kTokens]
    auto* part_argmax = reinterpret_cast<int*>(shared) + kWarps * kTokens;
    const auto word = [&](int i) {  // of acc[i / 2][.][i % 2 * 2 + .]
        return first_tile * kVocabTile + Gemm::row_tile(warp, i / 2) * 16 + i % 2 * 8 + g;
    };
    const float temp = temperature(state->sampler, state->step);
    UNROLL for (int n = 0; n < NT; n++) {
        UNROLL for (int j = 0; j < 2; j++) {
            const int row = 8 * n + 2 * t + j;
            float best = -INFINITY;
            int id = word(0);
            UNROLL for (int i = 0; i < 2 * MT; i++) {
                float& v = acc[i / 2][n][i % 2 * 2 + j];
                v = softcap * tanhf(v / softcap);
                const int w = word(i);
                if (logits && row < n_row && w < n_vocab) logits[int64_t{base + row} * n_vocab + w] = v;
                v = w < n_vocab ? v / temp : -INFINITY;
                take_better(best, id, v, w);
            }
            UNROLL for (int i = 4; i < 32; i *= 2)  // over the lanes of the same canvas row
                take_better(best, id, __shfl_xor_sync(~0u, best, i), __shfl_xor_sync(~0u, id, i));
            if (g == 0) part_max[warp * kTokens + row] = best, part_argmax[warp * kTokens + row] = id;
        }
    }
    __syncthreads();  // every warp's maxima are there
    // From here on thread i < kTiles kTokens also stands for canvas row i % kTokens of tile i / kTokens.
    const bool has_stats = thread < kTiles * kTokens;
    const int first_part = thread / kTokens * kTileWarps * kTokens + thread % kTokens;
    int argmax = 0;
    if (has_stats) {
        float best = part_max[first_part];
        argmax = part_argmax[first_part];
        for (int w = 1; w < kTileWarps; w++)
            take_better(best, argmax, part_max[first_part + w * kTokens],
                        part_argmax[first_part + w * kTokens]);
        tile_max[thread] = best;
    }
    __syncthreads();  // tile_max is complete, part_max has been read

    auto* part_sum = reinterpret_cast<float*>(shared);
    auto* part_weighted = part_sum + kWarps * kTokens;
    UNROLL for (int n = 0; n < NT; n++) {
        UNROLL for (int j = 0; j < 2; j++) {
            const int row = 8 * n + 2 * t + j;
            const float max = tile_max[warp / kTileWarps * kTokens + row];
            float sum = 0, weighted = 0;
            UNROLL for (int i = 0; i < 2 * MT; i++) {
                const float v = acc[i / 2][n][i % 2 * 2 + j], d = v - max, e = expf(d);
                if (e > 0) sum += e, weighted += d * e;
                if (row < n_row && warp / kTileWarps < n_own) {
                    T out = from_f32<T>(sizeof(T) == 4 ? v : d);
                    if constexpr (sizeof(T) == 2)
                        if (word(i) >= n_vocab) out.bits = 0xfc00;  // -inf
                    z[int64_t{base + row} * vocab_stride(n_vocab) + word(i)] = out;
                }
            }
            UNROLL for (int i = 4; i < 32; i *= 2) {
                sum += __shfl_xor_sync(~0u, sum, i);
                weighted += __shfl_xor_sync(~0u, weighted, i);
            }
            if (g == 0) part_sum[warp * kTokens + row] = sum, part_weighted[warp * kTokens + row] = weighted;
        }
    }
    __syncthreads();  // every warp's sums are there
    if (has_stats && thread % kTokens < n_row && thread / kTokens < n_own) {
        TileStats s{tile_max[thread], 0, 0, argmax};
        for (int w = 0; w < kTileWarps; w++) {
            s.sum += part_sum[first_part + w * kTokens];
            s.weighted += part_weighted[first_part + w * kTokens];
        }
        stats[int64_t{base + thread % kTokens} * n_vocab_tile(n_vocab) + first_tile + thread / kTokens] = s;
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
