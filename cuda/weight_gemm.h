// weight_gemm.h: the main loop of every product with weights: row tiles of a records matrix (records.h) times
// activation rows, W x^T, accumulated in float32. Used by linear.cu and head.cu, which differ in what they do
// with the accumulators.
#pragma once
#include "decode.h"
#include "device.h"
#include "ops.h"
#include "tile.h"

namespace easel {

// Whether records of TYPE are multiplied with activations of type X, see record_type().
template <Type TYPE, class X>
constexpr bool has_product = std::is_same_v<X, float> == (TYPE == Type::F32);

// For F16 as x / (1 + e^-2y), y what tanh is taken of.
template <class T>
DEVICE float gelu_tanh(float x) {
    constexpr float a = 0.79788456080286536f, b = 0.044715f;
    if constexpr (sizeof(T) == 4) return 0.5f * x * (1 + tanhf(a * (x + b * x * x * x)));
    constexpr float minus_2 = -2 * kLog2e;
    return x * reciprocal_approx(1 + exp2_approx(x * fmaf(minus_2 * a * b, x * x, minus_2 * a)));
}

// acc = W x^T, one block's tile: multiply() is the main loop of linear_kernel and lm_head_kernel.
//   acc      [MT][NT] accumulators of mma.m16n8k16: rows of W down, rows of x across
//   records  W [n_row, n_col] as records of TYPE (records.h)
//   x        [., n_col] X, rows of padded(n_col)
// Tile:   N_WARP warps of MT row tiles of 16; 8 NT rows of x. Operands are swapped, weights are A (16 rows),
//         activations are B (8 columns), so that few rows of x waste little. A weight is decoded once for
//         all rows of x.
// Launch: 32 N_WARP threads, N_BLOCK blocks per SM, shared_bytes() of dynamic shared memory.
// Shared: STAGES x (64 columns of x, a chunk of the same columns of every row tile), a ring filled by
//         cp.async; the scales of records with several chunks come with the first chunk and are double
//         buffered behind the stages. Rows of x are padded or, 128 of them, swizzled as wgmma wants them,
//         piece i of 16 bytes at i ^ row % 8: no bank conflicts.
// Why:    a warp loads and reads its own weights, so the only barrier is one per chunk, for the activations.
//         All row tiles of a block share what is read of x from L2, those of a warp also what is read from
//         shared memory. The chunks of a record are unrolled, so that most addresses are a register plus a
//         constant: with 16 rows of x there are few products to hide other instructions behind.
// Maths:  W decoded to F16 (float X: exact), sums in float32 in order of columns; with HALF_SUMS see
//         add_product().
// Check:  tests/test_linear.cpp, tests/test_head.cpp.
template <Type TYPE, class X, int N_WARP, int MT, int NT, int N_BLOCK>
struct WeightGemm {
    using R = Record<TYPE>;
    static constexpr int N_THREAD = 32 * N_WARP, N_TILE = N_WARP * MT;
    static constexpr bool SWIZZLED = sizeof(X) == 2 && NT == 16;
    static constexpr int LDX = SWIZZLED ? kChunk : tile_stride<X>(kChunk);
    // A stage: activations, then a chunk of every row tile, preceded by its scales if a record is one chunk.
    // Scales of longer records have two slots, used in turn, behind the stages.
    static constexpr bool SCALES_APART = R::n_chunk > 1;
    static constexpr int x_bytes = 8 * NT * LDX * int{sizeof(X)};
    static constexpr int tile_bytes = SCALES_APART ? R::chunk_bytes : R::bytes;
    static constexpr int stage_bytes = x_bytes + N_TILE * tile_bytes;
    static constexpr int slot_bytes = SCALES_APART ? N_TILE * R::scale_bytes : 0;
    // Alignment of a stage, which begins with its activations: the period of the swizzle.
    static constexpr int kAlign = SWIZZLED ? 1024 : 16;
    static_assert(stage_bytes % kAlign == 0 && tile_bytes % 16 == 0);
    static constexpr int bytes_for(int stages) { return stages * stage_bytes + 2 * slot_bytes + kAlign - 16; }
    // Stages, 2 to 5, that fit a block's share of an SM's shared memory. An SM has 1 KiB more than a block
    // may have, block_bytes; each block takes 1 KiB of the SM's for the system, and its caller's arrays.
    static constexpr int n_stage(int block_bytes) {
        const int most = (block_bytes + 1024) / N_BLOCK - 1024 - kCallersBytes;
        int n = 5;
        while (n > 2 && bytes_for(n) > most) n--;
        return n;
    }
    static constexpr int kCallersBytes = 12 * 8 * NT;  // static shared arrays of a caller, at most
    static constexpr int STAGES = n_stage(kSharedBytes), own_bytes = bytes_for(STAGES);
    // Dynamic shared memory of a launch on the device in use, for as many stages as it has room for.
    static size_t shared_bytes() { return bytes_for(n_stage(max_shared_bytes())); }

    // wgmma where a block has 128 rows of activations. It is asynchronous: the stage of the previous chunk
    // may still be read when a new chunk is loaded, so one stage less is in flight.
    static constexpr bool ASYNC = kWgmma && SWIZZLED;
    static constexpr int AHEAD = ASYNC ? STAGES - 2 : STAGES - 1;  // chunks in flight

    // Accumulators in F16 where the tensor cores are the bound: with 128 rows of activations.
    static constexpr bool HALF_SUMS = kHalfSums && SWIZZLED;

    // Row tile m of a warp, counted within the block. The four that a warpgroup multiplies with one wgmma,
    // one of each warp, are neighbours.
    DEVICE static int row_tile(int warp, int m) { return warp / 4 * (4 * MT) + 4 * m + warp % 4; }

    // What a block multiplies of W: the N_TILE row tiles from `tile` on (acc of tiles past the end is
    // undefined), the columns of n_own records from first_record on.
    struct Part {
        const uint8_t* records;
        int n_tile, n_record;  // of W: row tiles, records of each
        int tile, first_record, n_own;
    };
    // The rows of x that it multiplies these with.
    struct Rows {
        const X* x;
        int ldx;
        const int* row_of;  // [8 NT], shared: rows of x, all of them valid; the first n_row count
        int n_row;
    };

    // early: the kernel has not called wait_for_last_launch(); it is called here, when loads of the first
    // weights have started. Only for weights that nothing in a pass writes: all but experts, which may be
    // copied in. Ends with a barrier: `shared` is free again.
    DEVICE static void multiply(float (&acc)[MT][NT][4], uint8_t* shared, const Part& w, const Rows& rows,
                                bool early) {
        static_assert(AHEAD > 0 && own_bytes <= kSharedBytes - kCallersBytes);
        const int thread = threadIdx.x, warp = warp_index(), lane = thread % 32;
        shared = kept(shared + -shared_address(shared) % kAlign);
        // Byte offsets of this warp's row tiles in a stage, and of their scales in a slot.
        const int own_tiles = x_bytes + warp * (MT * tile_bytes), own_scales = warp * (MT * R::scale_bytes);

        // In place of a row tile past the end, a warp takes the last one. If the whole warpgroup is past the
        // end (none), it loads no weights and multiplies nothing (idle); with wgmma it multiplies whatever is
        // in shared memory, as ptxas makes wgmma in a branch wait for one another.
        const bool none = w.tile + row_tile(warp / 4 * 4, 0) >= w.n_tile, idle = none && !ASYNC;
        const uint8_t* src[MT];
        UNROLL for (int m = 0; m < MT; m++) {
            const int own = min(w.tile + row_tile(warp, m), w.n_tile - 1);
            src[m] = w.records + (int64_t{own} * w.n_record + w.first_record) * R::bytes + lane * 16;
        }
        // A thread copies the same piece of 16 bytes of the same N_COPY rows of every chunk.
        constexpr int n_part = kChunk * int{sizeof(X)} / 16, row_step = N_THREAD / n_part;
        constexpr int N_COPY = 8 * NT / row_step;
        static_assert(N_COPY * row_step == 8 * NT && (!SWIZZLED || row_step % 8 == 0));
        const int row = thread / n_part, part = thread % n_part;
        const X* from[N_COPY];
        UNROLL for (int i = 0; i < N_COPY; i++) from[i] =
            rows.x + rows.row_of[row + i * row_step] * rows.ldx + w.first_record * R::N_K +
            part * (16 / int{sizeof(X)});
        const int to = (row * LDX + piece(row, part)) * int{sizeof(X)};

        // Start copies into the stage at offset `stage`: of chunk c of the record that comes `later` records
        // after the one that src and from point at. Scales that are apart go to the slot at offset `slot`.
        const auto load_weights = [&](int stage, int slot, int later, int c) {
            UNROLL for (int m = 0; m < MT; m++) {
                const uint8_t* const record = src[m] + later * R::bytes;
                if (SCALES_APART && c == 0)
                    copy_async<R::scale_bytes>(shared + slot + own_scales + m * R::scale_bytes + lane * 16,
                                               record, lane);
                copy_async<tile_bytes>(shared + stage + own_tiles + m * tile_bytes + lane * 16,
                                       record + (SCALES_APART ? R::scale_bytes + c * R::chunk_bytes : 0),
                                       lane);
            }
        };
        const auto load_rows = [&](int stage, int later, int c) {
            UNROLL for (int i = 0; i < N_COPY; i++)  // zeros for rows that do not count
                cp_async<16>(shared + stage + to + i * (row_step * LDX * int{sizeof(X)}),
                             from[i] + later * R::N_K + c * kChunk, row + i * row_step < rows.n_row ? 16 : 0);
        };

        UNROLL for (int m = 0; m < MT; m++) UNROLL for (int n = 0; n < NT; n++) acc[m][n][0] = acc[m][n][1] =
            acc[m][n][2] = acc[m][n][3] = 0;
        uint32_t a[MT][4][4];
        constexpr int all_stages = STAGES * stage_bytes;
        const auto first_weights = [&](int i) {
            if (i / R::n_chunk < w.n_own && !none)
                load_weights(i * stage_bytes, all_stages + i / R::n_chunk * slot_bytes, i / R::n_chunk,
                             i % R::n_chunk);
        };
        if (early) {
            UNROLL for (int i = 0; i < AHEAD; i++) first_weights(i);
            wait_for_last_launch();
        }
        UNROLL for (int i = 0; i < AHEAD; i++) {
            if (!early) first_weights(i);
            if (i / R::n_chunk < w.n_own) load_rows(i * stage_bytes, i / R::n_chunk, i % R::n_chunk);
            cp_async_commit();
        }
        int use = 0, fill = AHEAD * stage_bytes;  // offsets of the stages to multiply, to load into
        int slot = all_stages, other_slot = all_stages + slot_bytes;  // scales of this record, of the next
        for (int record = 0; record < w.n_own; record++) {
            UNROLL for (int c = 0; c < R::n_chunk; c++) {
                cp_async_wait<AHEAD - 1>();
                if constexpr (ASYNC) fence_proxy_async();
                // This chunk has arrived for all threads; the one that is about to be overwritten has been
                // used by all.
                __syncthreads();
                const int later = (c + AHEAD) / R::n_chunk, next = (c + AHEAD) % R::n_chunk;
                if (record + later < w.n_own) {
                    if (!none) load_weights(fill, later % 2 ? other_slot : slot, later, next);
                    load_rows(fill, later, next);
                }
                cp_async_commit();
                const uint8_t* const tiles = shared + use + own_tiles;
                const X* const chunk_x = reinterpret_cast<const X*>(shared + use);
                use = use + stage_bytes == all_stages ? 0 : use + stage_bytes;
                fill = fill + stage_bytes == all_stages ? 0 : fill + stage_bytes;
                if (idle) continue;
                if constexpr (sizeof(X) == 4) {
                    add_floats(acc, reinterpret_cast<const float*>(tiles), chunk_x, rows.n_row, lane);
                } else {
                    UNROLL for (int m = 0; m < MT; m++) {
                        if constexpr (ASYNC) wgmma_wait<MT - 1>();  // a[m] of the chunk before has been used
                        const uint8_t* const own = tiles + m * tile_bytes;
                        if constexpr (SCALES_APART)
                            decode<TYPE>(a[m], shared + slot + own_scales + m * R::scale_bytes, own, c, lane);
                        else
                            decode<TYPE>(a[m], own, own + R::scale_bytes, c, lane);
                        if constexpr (ASYNC) start_products(acc[m], a[m], chunk_x, rows.n_row);
                    }
                    if constexpr (!ASYNC) add_products(acc, a, chunk_x, rows.n_row, lane);
                }
            }
            UNROLL for (int m = 0; m < MT; m++) src[m] += R::bytes;
            UNROLL for (int i = 0; i < N_COPY; i++) from[i] += R::N_K;
            const int used = slot;
            slot = other_slot, other_slot = used;
        }
        if constexpr (ASYNC) {
            wgmma_wait<0>();
            UNROLL for (int m = 0; m < MT; m++) wgmma_done(acc[m]);
        }
        cp_async_wait<0>();
        __syncthreads();  // the caller may use `shared` for something else
    }

  private:
    // Where a row of activations has its piece i: elements from the row's start.
    DEVICE static int piece(int row, int i) { return (SWIZZLED ? i ^ row % 8 : i) * (16 / int{sizeof(X)}); }

    // acc += W x^T of a chunk, in float.
    DEVICE static void add_floats(float (&acc)[MT][NT][4], const float* w, const X* x, int n_row, int lane) {
        const int g = lane / 4, t = lane % 4;
        for (int m = 0; m < MT; m++)
            for (int n = 0; n < NT && 8 * n < n_row; n++)
                for (int i = 0; i < 4; i++) {
                    const float* a = w + (16 * m + g + i / 2 * 8) * kChunk;
                    const X* b = x + (8 * n + 2 * t + i % 2) * LDX;
                    float sum = 0;
                    for (int k = 0; k < kChunk; k++) sum += a[k] * b[k];
                    acc[m][n][i] += sum;
                }
    }

    // acc += a x^T of a chunk. Each ldmatrix reads 16 rows of x, of which a lane addresses, in k16 step s,
    // piece 2 s + lane / 8 % 2 of row lane % 8 + lane / 16 * 8.
    DEVICE static void add_products(float (&acc)[MT][NT][4], const uint32_t (&a)[MT][4][4], const X* x,
                                    int n_row, int lane) {
        x += (lane % 8 + lane / 16 * 8) * LDX;
        const int first = piece(lane, lane / 8 % 2);
        UNROLL for (int n = 0; n < NT; n += 2) {
            if (n > 0 && 8 * n >= n_row) break;  // the same for all lanes
            uint32_t sums[MT][2][2];
            UNROLL for (int s = 0; s < 4; s++) {
                uint32_t b[4];
                ldmatrix(b, x + 8 * n * LDX + (SWIZZLED ? first ^ 16 * s : first + 16 * s));
                UNROLL for (int m = 0; m < MT; m++) {
                    add_product<HALF_SUMS>(acc[m][n], sums[m][0], a[m][s], b[0], b[1], s);
                    add_product<HALF_SUMS>(acc[m][n + 1], sums[m][1], a[m][s], b[2], b[3], s);
                }
            }
        }
    }

    // The same by wgmma, for one row tile of each warp of a warpgroup. Asynchronous: acc and a must not be
    // touched before a wgmma_wait().
    DEVICE static void start_products(float (&acc)[NT][4], const uint32_t (&a)[4][4], const X* x, int n_row) {
        if (n_row <= 64)  // the same for all warps; half of the columns of acc do
            start_products_of(reinterpret_cast<float(&)[8][4]>(acc), a, x);
        else
            start_products_of(acc, a, x);
    }
    template <int N>
    DEVICE static void start_products_of(float (&acc)[N][4], const uint32_t (&a)[4][4], const X* x) {
        wgmma_fence();
        UNROLL for (int s = 0; s < 4; s++) wgmma_k16_f16(acc, a[s], wgmma_matrix(x + 16 * s));
        wgmma_commit();
    }
};

}  // namespace easel
