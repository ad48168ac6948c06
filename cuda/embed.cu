// embed.cu: the embedding matrix E, read as rows: those of the canvas' tokens, and, weighted with the last
// step's probabilities, all of them (self-conditioning, SPEC 2.6). lm_head() of head.cu reads the same
// records as a product's weights. Called by forward.cpp.
#include <algorithm>
#include <cmath>

#include "check.h"
#include "decode.h"
#include "ops.h"
#include "tile.h"

namespace easel {

namespace {

// Record number `record` of row tile `tile`.
template <Type TYPE>
DEVICE const uint8_t* record_at(const uint8_t* records, int tile, int n_record, int record) {
    return records + (int64_t{tile} * n_record + record) * Record<TYPE>::bytes;
}
template <Type TYPE>
int n_record(const Weights& w) {
    return (w.n_col + Record<TYPE>::N_K - 1) / Record<TYPE>::N_K;
}

constexpr int kEmbedThreads = 128;

// embed: x = E[token] * scale
//   x        [n_token, n_embd] float32
//   tokens   [n_token]
//   records  E [n_vocab, n_embd], row tiles of n_record records
// Tile:   64 columns of a token per 4 threads, which act as the lanes of decode() that have the token's row.
// Launch: grid (n_token * n_chunk / 32), 128 threads.
// Shared: none.
// Why:    few bytes; what matters is that all of them are in flight at once.
// Maths:  F32 and F16 are exact. Other types are decoded to F16, off by up to 2^-10 of |d q| + |min|.
// Check:  tests/test_embed.cpp.
template <Type TYPE>
__global__ void __launch_bounds__(kEmbedThreads)
    embed_kernel(float* x, const int32_t* tokens, const uint8_t* records, int n_token, int n_embd,
                 int n_chunk, int n_record, float scale) {
    wait_for_last_launch();
    using R = Record<TYPE>;
    const int index = blockIdx.x * kEmbedThreads + threadIdx.x, t = index % 4;
    const int token = index / 4 / n_chunk, chunk = index / 4 % n_chunk;
    if (token >= n_token) return;
    const int id = tokens[token], row = id % 16;
    const uint8_t* record = record_at<TYPE>(records, id / 16, n_record, chunk / R::n_chunk);
    const uint8_t* data = record + R::scale_bytes + chunk % R::n_chunk * R::chunk_bytes;
    x += int64_t{token} * n_embd;
    if constexpr (R::code_bits == 32) {
        const float* values = reinterpret_cast<const float*>(data) + row * kChunk;
        for (int c = t; c < kChunk && chunk * kChunk + c < n_embd; c += 4)
            x[chunk * kChunk + c] = values[c] * scale;
    } else {
        uint32_t a[4][4];
        decode<TYPE>(a, record, data, chunk % R::n_chunk, row % 8 * 4 + t);
        UNROLL for (int s = 0; s < 4; s++) {
            UNROLL for (int i = 0; i < 4; i++) {  // columns 8 (i / 2) + 2 t + i % 2
                const uint32_t two = row < 8 ? a[s][i / 2 * 2] : a[s][i / 2 * 2 + 1];
                const int col = chunk * kChunk + 16 * s + i / 2 * 8 + 2 * t + i % 2;
                if (col < n_embd) x[col] = to_f32(F16{static_cast<uint16_t>(two >> (i % 2 * 16))}) * scale;
            }
        }
    }
}

// ---- the soft embedding: the list of live vocabulary tiles, partial sums over splits of these, then the sum
// of these, normed

constexpr int kSoftWarps = 8, kSoftThreads = 32 * kSoftWarps;
constexpr int kLiveThreads = 1024;

// live_tiles: list[0] = the number of tiles whose flag is set, list[1 ..] = these tiles, ascending.
//   list [1 + n_tile]
//   live [n_tile]
// Tile:   neighbouring vocabulary tiles per thread, two for a vocabulary of 262144.
// Launch: 1 block, 1024 threads. Nothing to do at step 0.
// Shared: 128 bytes: the count of each warp.
// Why:    prefix sums of one block keep the order, so that sums over the list are always the same.
// Maths:  integers.
// Check:  tests/test_embed.cpp.
__global__ void __launch_bounds__(kLiveThreads)
    live_tiles_kernel(int* list, const uint8_t* live, int n_tile, const LoopState* state) {
    wait_for_last_launch();
    if (state->step == 0) return;
    SHARED_ARRAY(int, count, kLiveThreads / 32);
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int n_own = (n_tile + kLiveThreads - 1) / kLiveThreads;
    const int begin = min(thread * n_own, n_tile), end = min(begin + n_own, n_tile);
    int own = 0;
    for (int tile = begin; tile < end; tile++) own += live[tile] != 0;
    const int sum = warp_running_sum(own);
    if (lane == 31) count[warp] = sum;
    __syncthreads();  // count is complete
    int at = 1 + sum - own;
    for (int w = 0; w < warp; w++) at += count[w];
    for (int tile = begin; tile < end; tile++)
        if (live[tile]) list[at++] = tile;
    if (thread == kLiveThreads - 1) list[0] = at - 1;
}

// What a block of soft_sum_kernel keeps in shared memory; behind it, the numbers of its vocabulary tiles.
template <Type TYPE, class T>
struct SoftTile {
    using R = Record<TYPE>;
    static constexpr int n_id = 128 / sizeof(T),
                         n_step = kVocabTile / n_id;  // ids a step, steps a tile
    static constexpr int ldp = tile_stride<T>(n_id), lde = tile_stride<T>(kSoftColumns);
    static constexpr int raw_bytes = sizeof(T) == 4 ? 0 : R::scale_bytes + R::chunk_bytes;  // of a warp

    T probs[2][kSoftTokens * ldp];
    T embd[2][n_id * lde];
    uint8_t raw[kSoftWarps * raw_bytes + 16];  // + 16: not empty for float
};

// What probabilities are divided by if products are summed in F16: those of a row add up to 32768
// (prob_scale()), so a sixteenth keeps sums in F16's range for embeddings of up to 32.
template <class T>
constexpr float kShrink = kHalfSums && sizeof(T) == 2 ? 16 : 1;
// Two F16 divided by kShrink.
DEVICE uint32_t shrunk(uint32_t two) {
    return hmul2(two, 0x2c002c00);  // 1 / 16
}

// acc += a [32, K] b [K, 64], a and b in shared memory; acc[m][n] is laid out as the accumulators of
// mma.m16n8k16 of rows 16 m .. and columns 8 n .., for float, too.
template <int K>
DEVICE void multiply_32(float (&acc)[2][8][4], const float* a, int lda, const float* b, int ldb) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int m = 0; m < 2; m++)
        for (int n = 0; n < 8; n++)
            for (int i = 0; i < 4; i++) {
                const float *x = a + (16 * m + g + i / 2 * 8) * lda, *y = b + n * 8 + 2 * t + i % 2;
                float sum = 0;
                for (int j = 0; j < K; j++) sum += x[j] * y[j * ldb];
                acc[m][n][i] += sum;
            }
}
// With F16, a fragment of b serves both row tiles of a. Unrolled, the loop over K would not leave the
// registers that a step's loads need.
template <int K>
DEVICE void multiply_32(float (&acc)[2][8][4], const F16* a, int lda, const F16* b, int ldb) {
    constexpr int N_STEP = kHalfSums ? 2 : 1;  // k16 steps at once
    const int lane = threadIdx.x % 32;
    NO_UNROLL for (int j = 0; j < K; j += 16 * N_STEP) {
        uint32_t x[N_STEP][2][4];
        UNROLL for (int s = 0; s < N_STEP; s++) {
            UNROLL for (int m = 0; m < 2; m++) {
                ldmatrix(x[s][m], a + (16 * m + lane % 16) * lda + j + 16 * s + lane / 16 * 8);
                if constexpr (kHalfSums) UNROLL for (int i = 0; i < 4; i++) x[s][m][i] = shrunk(x[s][m][i]);
            }
        }
        UNROLL for (int n = 0; n < 8; n += 2) {
            uint32_t sums[2][2][2];
            UNROLL for (int s = 0; s < N_STEP; s++) {
                uint32_t y[4];
                ldmatrix_trans(y, b + (j + 16 * s + lane % 16) * ldb + n * 8 + lane / 16 * 8);
                UNROLL for (int m = 0; m < 2; m++) {
                    add_product<kHalfSums>(acc[m][n], sums[m][0], x[s][m], y[0], y[1], s);
                    add_product<kHalfSums>(acc[m][n + 1], sums[m][1], x[s][m], y[2], y[3], s);
                }
            }
        }
    }
}

// soft_sum: partial[split] = probs[:, ids of the split] E[ids of the split, :], the ids those of an
// equal share of the live tiles
//   partial  [n_split, n_canvas, ld] float32, ld = padded(n_embd)
//   list     [1 + n_vocab_tile] as live_tiles leaves it
//   probs    [n_canvas, ldp] T, 0 past n_vocab; tiles that are not live are not read
//   records  E [n_vocab, n_embd], n_tile row tiles of tile_bytes
// Tile:   128 tokens x 128 columns; warp w has 32 tokens (w % 4) and 64 columns (w / 4). A step of the main
//         loop is 64 ids (float: 32) of a live tile.
// Launch: grid (n_canvas / 128, n_embd / 128, n_split), 256 threads. Nothing to do at step 0.
// Shared: 2 x (probabilities 128 x 64, embeddings 64 x 128) F16 + 8 chunks of records: 78 KiB for Q6_K, 86
//         for F16; float 69. Then 4 bytes for each vocabulary tile of the split.
// Why:    a product as large as lm_head's. During a step's mma the next step arrives; each warp decodes one
//         of its 8 chunks of E, ahead of the mma, so that a step has one barrier. Token tiles are the
//         fastest index, so that the second of them finds its part of E in L2. Late in an answer few tiles
//         are live.
// Maths:  E in F16 (float: exact), float32 accumulation in order of the ids (F16 sums: see kShrink).
// Check:  tests/test_embed.cpp.
template <Type TYPE, class T>
__global__ void __launch_bounds__(kSoftThreads, 2)
    soft_sum_kernel(float* partial, const int* list, const T* probs, const uint8_t* records, int n_canvas,
                    int ldp, int ld, int n_tile, int tile_bytes, const LoopState* state) {
    wait_for_last_launch();
    using R = Record<TYPE>;
    using Tile = SoftTile<TYPE, T>;
    if (state->step == 0) return;
    SHARED_DYNAMIC(Tile, tile);
    const int thread = threadIdx.x, warp = warp_index(), lane = thread % 32;
    const int first_token = blockIdx.x * kSoftTokens, first_column = blockIdx.y * kSoftColumns;
    const int split = blockIdx.z;
    const int n_live = list[0], n_in_split = (n_live + gridDim.z - 1) / gridDim.z;
    const int first_live = split * n_in_split, n_own = max(0, min(n_in_split, n_live - first_live));
    const int end = n_own * Tile::n_step;                    // of steps
    int* const own_live = reinterpret_cast<int*>(tile + 1);  // [n_own] live tiles of this split
    for (int i = thread; i < n_own; i += kSoftThreads) own_live[i] = list[1 + first_live + i];
    __syncthreads();  // `own_live` is complete
    const auto first_id = [&](int step) {
        return own_live[step / Tile::n_step] * kVocabTile + step % Tile::n_step * Tile::n_id;
    };

    // The chunk of E that this warp loads and decodes in each step: of row tile warp % 4 of the step's four
    // (float: two).
    const int chunk = first_column / kChunk + warp / 4, own_tile = warp % 4;
    const bool has_chunk = chunk * kChunk < ld;
    const auto record_of = [&](int step) {
        const int row_tile = min(first_id(step) / 16 + own_tile, n_tile - 1);
        return records + int64_t{row_tile} * tile_bytes + chunk / R::n_chunk * R::bytes;
    };
    uint8_t* const raw = tile->raw + warp * Tile::raw_bytes;
    const auto load_embd = [&](int step) {  // starts to copy the chunk to `raw`
        if (sizeof(T) == 4 || step >= end || !has_chunk) return;
        const uint8_t* const record = record_of(step) + lane * 16;
        copy_async<R::scale_bytes>(raw + lane * 16, record, lane);
        copy_async<R::chunk_bytes>(raw + R::scale_bytes + lane * 16,
                                   record + R::scale_bytes + chunk % R::n_chunk * R::chunk_bytes, lane);
    };
    const auto place_embd = [&](int step) {  // decodes it into tile->embd
        if (step >= end || !has_chunk) return;
        T* out = tile->embd[step % 2] + own_tile * 16 * Tile::lde + warp / 4 * kChunk;
        if constexpr (sizeof(T) == 4) {
            if (own_tile >= Tile::n_id / 16) return;
            const uint8_t* record = record_of(step);
            for (int i = lane; i < 16 * kChunk / 4; i += 32)
                store16(out + i / 16 * Tile::lde + i % 16 * 4, load16(record + 16 * i));
        } else {
            uint32_t a[4][4];
            decode<TYPE>(a, raw, raw + R::scale_bytes, chunk % R::n_chunk, lane);
            out += lane / 4 * Tile::lde + lane % 4 * 2;
            UNROLL for (int s = 0; s < 4; s++) {
                UNROLL for (int i = 0; i < 4; i++) {
                    T* two = out + i % 2 * 8 * Tile::lde + 16 * s + i / 2 * 8;
                    *reinterpret_cast<uint32_t*>(two) = a[s][i];
                }
            }
        }
    };
    // In each step a thread copies the same 16 bytes of every 32nd row of probabilities.
    constexpr int n_part = 8, n_in_part = Tile::n_id / n_part, row_step = kSoftThreads / n_part;
    const int first_row = thread / n_part, part = thread % n_part * n_in_part;
    const int own_probs = (first_token + first_row) * ldp + part;  // below 2^31
    const auto load_probs = [&](int step) {
        if (step >= end) return;
        const T* const from = probs + own_probs + first_id(step);
        UNROLL for (int i = 0; i < kSoftTokens; i += row_step)  // zeros past the canvas
            cp_async<16>(tile->probs[step % 2] + (first_row + i) * Tile::ldp + part, from + i * ldp,
                         first_token + first_row + i < n_canvas ? 16 : 0);
    };

    float acc[2][8][4] = {};
    const int own_token = warp % 4 * 32;
    const bool has_output = has_chunk && first_token + own_token < n_canvas;
    load_embd(0);
    cp_async_commit();
    cp_async_wait<0>();
    __syncwarp();  // the chunk is there for all lanes; no other warp reads it
    place_embd(0);
    __syncwarp();  // all lanes have decoded: `raw` is free
    load_embd(1);
    load_probs(0);
    cp_async_commit();
    for (int step = 0; step < end; step++) {
        cp_async_wait<0>();
        // This step's probabilities have arrived and its rows of E are decoded; the step before, whose places
        // are written next, has been used.
        __syncthreads();
        place_embd(step + 1);
        __syncwarp();  // all lanes have decoded: `raw` is free
        load_embd(step + 2);
        load_probs(step + 1);
        cp_async_commit();
        if (has_output)
            multiply_32<Tile::n_id>(acc, tile->probs[step % 2] + own_token * Tile::ldp, Tile::ldp,
                                    tile->embd[step % 2] + warp / 4 * kChunk, Tile::lde);
    }
    cp_async_wait<0>();

    if (!has_output) return;
    UNROLL for (int m = 0; m < 2; m++) {
        UNROLL for (int h = 0; h < 2; h++) {
            const int row = first_token + own_token + 16 * m + 8 * h + lane / 4;
            if (row >= n_canvas) continue;
            float* out = partial + (int64_t{split} * n_canvas + row) * ld + chunk * kChunk + lane % 4 * 2;
            UNROLL for (int n = 0; n < 8; n++)
                store(out + 8 * n,
                      Values<float, 2>{acc[m][n][2 * h] * kShrink<T>, acc[m][n][2 * h + 1] * kShrink<T>});
        }
    }
}

// soft_norm: out = rms(scale * sum of the partials) * norm
//   out      [n_canvas, ld] T, ld = padded(n_embd), zero past n_embd
//   partial  [n_split, n_canvas, ld] float32
//   norm     [n_embd]
// Tile:   a row per block.
// Launch: grid (n_canvas), 256 threads.
// Shared: ld floats, the row; a partial sum per warp.
// Why:    the partials of the 26B model, 12 splits for 132 SMs, are 33 MiB: they are read once.
// Maths:  float32, splits in order; zeros at step 0, when the partials have not been written.
// Check:  tests/test_embed.cpp.
template <class T>
__global__ void __launch_bounds__(kSoftThreads)
    soft_norm_kernel(T* out, const float* partial, const float* norm, float eps, float scale, int n_split,
                     int n_canvas, int n_embd, int ld, const LoopState* state) {
    wait_for_last_launch();
    SHARED_DYNAMIC(float, row);
    SHARED_ARRAY(float, part, kSoftWarps);
    const int thread = threadIdx.x;
    out += int64_t{blockIdx.x} * ld;
    if (state->step == 0) {
        for (int c = thread; c < ld; c += kSoftThreads) out[c] = from_f32<T>(0);
        return;
    }
    partial += int64_t{blockIdx.x} * ld;
    float squares = 0;
    for (int c = thread; c < n_embd; c += kSoftThreads) {
        float sum = 0;
        for (int s = 0; s < n_split; s++) sum += partial[int64_t{s} * n_canvas * ld + c];
        row[c] = sum * scale;
        squares += row[c] * row[c];
    }
    squares = warp_sum(squares);
    if (thread % 32 == 0) part[thread / 32] = squares;
    __syncthreads();  // `part` is complete; each thread reads only its own of `row`
    squares = 0;
    for (int w = 0; w < kSoftWarps; w++) squares += part[w];
    const float factor = 1 / sqrtf(squares / static_cast<float>(n_embd) + eps);
    for (int c = thread; c < ld; c += kSoftThreads)
        out[c] = from_f32<T>(c < n_embd ? row[c] * factor * norm[c] : 0);
}

}  // namespace

void embed(Stream stream, float* x, const int32_t* tokens, int n_token, const Weights& embd) {
    require(!embd.gated && embd.n_expert == 1, "bug: an embedding is one matrix");
    const int n_chunk = padded(embd.n_col) / kChunk, n_thread = 4 * n_token * n_chunk;
    const bool done = with_record(embd.type, [&](auto type) {
        constexpr Type TYPE = type.value;
        EASEL_LAUNCH(embed_kernel<TYPE>, (n_thread + kEmbedThreads - 1) / kEmbedThreads, kEmbedThreads, 0,
                     stream, x, tokens, embd.data, n_token, embd.n_col, n_chunk, n_record<TYPE>(embd),
                     std::sqrt(static_cast<float>(embd.n_col)));
    });
    require(done, "bug: the embedding's type has no records");
}

template <class T>
void soft_embedding(Stream stream, T* out, const T* probs, const uint8_t* live, const Weights& embd,
                    const float* norm, float eps, int n_canvas, int n_split, float* scratch,
                    const LoopState* state) {
    require(!embd.gated && embd.n_expert == 1, "bug: an embedding is one matrix");
    const int n_vocab = embd.n_row, n_embd = embd.n_col, ld = padded(n_embd);
    const int n_tile = n_vocab_tile(n_vocab);
    // At least 2 tiles per split while all are live, or blocks would mostly start up and store.
    const int n_in_split = std::max(2, (n_tile + n_split - 1) / n_split);
    n_split = (n_tile + n_in_split - 1) / n_in_split;
    int* const list = reinterpret_cast<int*>(scratch);
    float* const partial = scratch + soft_list(n_vocab);
    EASEL_LAUNCH(live_tiles_kernel, 1, kLiveThreads, 0, stream, list, live, n_tile, state);
    bool done = false;
    with_record(embd.type, [&](auto type) {
        constexpr Type TYPE = type.value;
        if constexpr ((sizeof(T) == 4) == (TYPE == Type::F32)) {
            const dim3 grid((n_canvas + kSoftTokens - 1) / kSoftTokens,
                            (ld + kSoftColumns - 1) / kSoftColumns, n_split);
            const size_t shared_bytes = sizeof(SoftTile<TYPE, T>) + n_in_split * sizeof(int);
            EASEL_LAUNCH((soft_sum_kernel<TYPE, T>), grid, kSoftThreads, shared_bytes, stream, partial, list,
                         probs, embd.data, n_canvas, vocab_stride(n_vocab), ld, embd.n_tile(),
                         n_record<TYPE>(embd) * Record<TYPE>::bytes, state);
            done = true;
        }
    });
    require(done, "bug: embeddings of a type that the activations do not go with");
    const float scale = std::sqrt(static_cast<float>(n_embd)) / prob_scale<T>();
    EASEL_LAUNCH(soft_norm_kernel<T>, n_canvas, kSoftThreads, ld * sizeof(float), stream, out, partial, norm,
                 eps, scale, n_split, n_canvas, n_embd, ld, state);
}

template void soft_embedding(Stream, F16*, const F16*, const uint8_t*, const Weights&, const float*, float,
                             int, int, float*, const LoopState*);
template void soft_embedding(Stream, float*, const float*, const uint8_t*, const Weights&, const float*,
                             float, int, int, float*, const LoopState*);

}  // namespace easel
