// weight_gemm.h: the main loop of every product with weights: row tiles of a records matrix (records.h) times
// activation rows, W x^T, accumulated in float32. Used by linear.cu and head.cu, which differ in what they do
// with the accumulators.
#pragma once
#include "ops.h"
#include "records.h"
#include "tile.h"

namespace easel {

// Whether records of TYPE are multiplied with activations of type X, see record_type().
template <Type TYPE, class X>
constexpr bool has_product = std::is_same_v<X, float> == (TYPE == Type::F32);

DEVICE float gelu_tanh(float x) {
    return 0.5f * x * (1 + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
}

// acc = W x^T for one block: MT row tiles of 16 a warp, and up to 8 NT activation rows.
//   Swapped operands: weights are operand A (16 rows), activations operand B (8 columns), so that few rows
//   of activations waste little. A weight is decoded once for all of them.
//   Shared: STAGES x (a chunk of 64 columns of every row tile, the same columns of the activations), filled
//   by cp.async, STAGES - 1 ahead; the scales of a record come with its first chunk into slots of their own.
//   Why: a warp loads and reads its own weights, so one barrier a chunk, for the activations, is all there
//   is. Every row tile of a block shares what it reads of the activations, from L2, and every tile of a warp
//   what it reads from shared memory.
template <Type TYPE, class X, int N_WARP, int MT, int NT>
struct WeightGemm {
    using R = Record<TYPE>;
    static constexpr int N_THREAD = 32 * N_WARP, N_TILE = N_WARP * MT;
    static constexpr int LDX = tile_stride<X>(kChunk);
    static constexpr int data_bytes = N_TILE * R::chunk_bytes, x_bytes = 8 * NT * LDX * int{sizeof(X)};
    static constexpr int bytes_for(int stages) {
        return stages * (data_bytes + x_bytes) + (R::n_chunk == 1 ? stages : 2) * N_TILE * R::scale_bytes;
    }
    // 4 if two blocks then fit the 100 KiB of the smallest cards' SMs, a KiB of the system's and the callers'
    // static arrays beside each; else 3 if one block's 99 KiB hold them, with those arrays.
    static constexpr int kMostBytes = 98 * 1024;
    static constexpr int STAGES = bytes_for(4) <= 48 * 1024 ? 4 : bytes_for(3) <= kMostBytes ? 3 : 2;
    static constexpr int N_SCALE = R::n_chunk == 1 ? STAGES : 2;
    static constexpr int shared_bytes = bytes_for(STAGES);

    // records: the matrix, n_tile row tiles of n_record records; warp w of the block has MT tiles from tile +
    // MT w on (tiles past the end repeat the last), of these the columns of n_own records from first_record
    // on. row_of [8 NT], shared: rows of x, all of them valid; n_row of them count. Ends with a barrier:
    // `shared` is free again.
    DEVICE static void multiply(float (&acc)[MT][NT][4], uint8_t* shared, const uint8_t* records, int tile,
                                int n_tile, int n_record, int first_record, int n_own, const X* x, int ldx,
                                const int* row_of, int n_row) {
        static_assert(shared_bytes <= kMostBytes && R::scale_bytes / 16 <= 32);
        const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
        uint8_t* const data = shared + warp * (MT * R::chunk_bytes);
        X* const x_smem = reinterpret_cast<X*>(shared + STAGES * data_bytes);
        uint8_t* const scales = shared + STAGES * (data_bytes + x_bytes) + warp * (MT * R::scale_bytes);
        const uint8_t* src[MT];
        UNROLL for (int m = 0; m < MT; m++) src[m] =
            records + (int64_t{min(tile + MT * warp + m, n_tile - 1)} * n_record + first_record) * R::bytes;
        x += first_record * R::N_K;
        const int n_chunk = n_own * R::n_chunk;

        // A thread copies the same 16 bytes of the same rows of every chunk.
        constexpr int n_part = kChunk * int{sizeof(X)} / 16, row_step = N_THREAD / n_part;
        constexpr int N_COPY = 8 * NT / row_step;
        static_assert(N_COPY * row_step == 8 * NT);
        const int row = thread / n_part, part = thread % n_part * (16 / int{sizeof(X)});
        const int n_copied_row = (n_row + 15) / 16 * 16;
        int from[N_COPY];  // elements of x
        UNROLL for (int i = 0; i < N_COPY; i++) from[i] = row_of[row + i * row_step] * ldx + part;
        X* const to = x_smem + row * LDX + part;

        const auto load = [&](int chunk) {  // the next one
            const int stage = chunk % STAGES;
            if (chunk % R::n_chunk == 0) {
                uint8_t* const slot = scales + chunk / R::n_chunk % N_SCALE * (N_TILE * R::scale_bytes);
                UNROLL for (int m = 0; m < MT; m++) {
                    if (lane < R::scale_bytes / 16)
                        cp_async<16>(slot + m * R::scale_bytes + lane * 16, src[m] + lane * 16);
                    src[m] += R::scale_bytes;
                }
            }
            UNROLL for (int m = 0; m < MT; m++) {
                uint8_t* const slot = data + stage * data_bytes + m * R::chunk_bytes;
                UNROLL for (int i = 0; i < R::chunk_bytes / 16; i += 32) if (i + lane < R::chunk_bytes / 16)
                    cp_async<16>(slot + (i + lane) * 16, src[m] + (i + lane) * 16);
                src[m] += R::chunk_bytes;
            }
            UNROLL for (int i = 0; i < N_COPY; i++) {
                if (row + i * row_step < n_copied_row)
                    cp_async<16>(to + (stage * 8 * NT + i * row_step) * LDX, x + from[i]);
                from[i] += kChunk;
            }
        };

        UNROLL for (int m = 0; m < MT; m++) UNROLL for (int n = 0; n < NT; n++) acc[m][n][0] = acc[m][n][1] =
            acc[m][n][2] = acc[m][n][3] = 0;
        for (int chunk = 0; chunk < STAGES - 1; chunk++) {
            if (chunk < n_chunk) load(chunk);
            cp_async_commit();
        }
        for (int chunk = 0; chunk < n_chunk; chunk++) {
            cp_async_wait<STAGES - 2>();
            __syncthreads();  // this chunk has arrived for all; the chunk before it has been used by all
            if (chunk + STAGES - 1 < n_chunk) load(chunk + STAGES - 1);
            cp_async_commit();
            add_chunk(acc, scales + chunk / R::n_chunk % N_SCALE * (N_TILE * R::scale_bytes),
                      data + chunk % STAGES * data_bytes, chunk % R::n_chunk,
                      x_smem + chunk % STAGES * (8 * NT * LDX), n_row, lane);
        }
        cp_async_wait<0>();
        __syncthreads();  // the caller may use `shared` for something else
    }

  private:
    DEVICE static void add_chunk(float (&acc)[MT][NT][4], const uint8_t* scales, const uint8_t* data,
                                 int chunk, const X* x, int n_row, int lane) {
        if constexpr (sizeof(X) == 4) {
            const auto* w = reinterpret_cast<const float*>(data);
            const int g = lane / 4, t = lane % 4;
            for (int m = 0; m < MT; m++)
                for (int n = 0; n < NT && 8 * n < n_row; n++)
                    for (int i = 0; i < 4; i++) {
                        const float* a = w + (16 * m + g + i / 2 * 8) * kChunk;
                        const float* b = x + (8 * n + 2 * t + i % 2) * LDX;
                        float sum = 0;
                        for (int k = 0; k < kChunk; k++) sum += a[k] * b[k];
                        acc[m][n][i] += sum;
                    }
        } else {
            uint32_t a[MT][4][4];
            UNROLL for (int m = 0; m < MT; m++)
                decode<TYPE>(a[m], scales + m * R::scale_bytes, data + m * R::chunk_bytes, chunk, lane);
            const X* row = x + (lane % 8 + lane / 16 * 8) * LDX + lane / 8 % 2 * 8;  // ldmatrix, 16 rows of x
            UNROLL for (int n = 0; n < NT; n += 2) {
                if (8 * n >= n_row) break;  // the same for all lanes
                UNROLL for (int s = 0; s < 4; s++) {
                    uint32_t b[4];
                    ldmatrix(b, row + 8 * n * LDX + 16 * s);
                    UNROLL for (int m = 0; m < MT; m++) {
                        mma_m16n8k16_f16(acc[m][n], a[m][s], b[0], b[1]);
                        mma_m16n8k16_f16(acc[m][n + 1], a[m][s], b[2], b[3]);
                    }
                }
            }
        }
    }
};

}  // namespace easel
