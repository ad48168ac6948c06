// head.cu: the output head: logits of every canvas row over the vocabulary, softcapped and divided by the
// temperature, with the statistics of each tile of the vocabulary in the epilogue. sample.cu goes on from
// these. Called by engine.cpp.
#include "check.h"
#include "weight_gemm.h"

namespace easel {

namespace {

constexpr int kWarps = kVocabTile / 16;
// 8-row tiles of the canvas; more of float do not fit the 99 KiB of the smallest card.
template <class T>
constexpr int n_token_tile = sizeof(T) == 4 ? 8 : 16;

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
// Tile:   128 words x 128 canvas rows (float: 64); a thread has words g, g + 8 of its warp's 16, of the rows
//         8 n + 2 t and 8 n + 2 t + 1.
// Launch: grid (n_canvas / 128, n_vocab_tile), 256 threads; warp w has words 16 w to 16 w + 15.
// Shared: WeightGemm's, 77 KiB for Q6_K; then 8 KiB of partial statistics in its place. 1 KiB beside it.
// Why:    no float32 [canvas, vocabulary] buffer: 16 bits a logit and 16 bytes a tile leave the chip. Canvas
//         tiles are the fastest index: what they both read of E comes from L2.
// Maths:  logits and statistics float32, sums in a fixed order: lanes by a butterfly, then warps in turn.
// Check:  tests/test_head.cpp.
template <Type TYPE, class T>
__global__ void __launch_bounds__(32 * kWarps)
    lm_head_kernel(T* z, TileStats* stats, uint8_t* live, float* logits, const T* x, int ldx,
                   const uint8_t* records, int n_tile, int n_chunk, int n_canvas, int n_vocab, float softcap,
                   const LoopState* state) {
    constexpr int kTokenTiles = n_token_tile<T>, kTokens = 8 * kTokenTiles;
    using Gemm = WeightGemm<TYPE, T, kWarps, kTokenTiles>;
    SHARED_DYNAMIC(uint8_t, shared);
    SHARED_ARRAY(int, row_of, kTokens);
    SHARED_ARRAY(float, tile_max, kTokens);
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
    const int base = blockIdx.x * kTokens, n_row = min(kTokens, n_canvas - base), vocab_tile = blockIdx.y;
    if (thread < kTokens) row_of[thread] = base + min(thread, n_row - 1);
    if (thread == 0 && blockIdx.x == 0) live[vocab_tile] = 0;
    __syncthreads();  // row_of is complete

    float acc[kTokenTiles][4];  // [n][2 h + j]: word g + 8 h of the warp's, canvas row 8 n + 2 t + j
    Gemm::multiply(acc, shared, records, vocab_tile * kWarps, n_tile, n_chunk, x, ldx, row_of, n_row);

    auto* part_max = reinterpret_cast<float*>(shared);  // [kWarps][kTokens]
    auto* part_argmax = reinterpret_cast<int*>(shared) + kWarps * kTokens;
    const int word = vocab_tile * kVocabTile + warp * 16 + g;
    const float temp = temperature(state->sampler, state->step);
    UNROLL for (int n = 0; n < kTokenTiles; n++) {
        UNROLL for (int j = 0; j < 2; j++) {
            const int row = 8 * n + 2 * t + j;
            float best = -INFINITY;
            int id = word;
            UNROLL for (int h = 0; h < 2; h++) {
                float& v = acc[n][2 * h + j];
                v = softcap * tanhf(v / softcap);
                const int w = word + 8 * h;
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
    int argmax = 0;   // of canvas row `thread`
    if (thread < kTokens) {
        float best = part_max[thread];
        argmax = part_argmax[thread];
        for (int w = 1; w < kWarps; w++)
            take_better(best, argmax, part_max[w * kTokens + thread], part_argmax[w * kTokens + thread]);
        tile_max[thread] = best;
    }
    __syncthreads();  // tile_max is complete, part_max has been read

    auto* part_sum = reinterpret_cast<float*>(shared);
    auto* part_weighted = part_sum + kWarps * kTokens;
    UNROLL for (int n = 0; n < kTokenTiles; n++) {
        UNROLL for (int j = 0; j < 2; j++) {
            const int row = 8 * n + 2 * t + j;
            const float max = tile_max[row];
            float sum = 0, weighted = 0;
            UNROLL for (int h = 0; h < 2; h++) {
                const float v = acc[n][2 * h + j], d = v - max, e = expf(d);
                if (e > 0) sum += e, weighted += d * e;
                if (row < n_row) {
                    T out = from_f32<T>(sizeof(T) == 4 ? v : d);
                    if constexpr (sizeof(T) == 2)
                        if (word + 8 * h >= n_vocab) out.bits = 0xfc00;  // -inf
                    z[int64_t{base + row} * vocab_stride(n_vocab) + word + 8 * h] = out;
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
    if (thread < n_row) {
        TileStats s{tile_max[thread], 0, 0, argmax};
        for (int w = 0; w < kWarps; w++) {
            s.sum += part_sum[w * kTokens + thread];
            s.weighted += part_weighted[w * kTokens + thread];
        }
        stats[int64_t{base + thread} * n_vocab_tile(n_vocab) + vocab_tile] = s;
    }
}

}  // namespace

template <class T>
void lm_head(Stream stream, T* z, TileStats* stats, uint8_t* live, float* logits, const T* x,
             const Weights& w, int n_canvas, float softcap, const LoopState* state) {
    static_assert(n_vocab_tile(kMaxVocab) <= 65535, "a grid has no room for more in y");
    const bool done = with_record(w.type, [&](auto type) {
        if constexpr (has_product<type.value, T>) {
            constexpr int kTokens = 8 * n_token_tile<T>;
            using Gemm = WeightGemm<type.value, T, kWarps, n_token_tile<T>>;
            static_assert(Gemm::shared_bytes >= 2 * kWarps * kTokens * 4);
            const dim3 grid((n_canvas + kTokens - 1) / kTokens, n_vocab_tile(w.n_row));
            EASEL_LAUNCH((lm_head_kernel<type.value, T>), grid, 32 * kWarps, Gemm::shared_bytes, stream, z,
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
