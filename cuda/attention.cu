// attention.cu: attention of the rows of a pass over the KV cache, canvas or causal, with or without a window
// (SPEC 2.4). Flash attention on tensor cores for F16, a plain kernel for float; either may work on n_split
// parts of the keys at once, which merge_kernel joins in fixed order. Called by engine.cpp.
#include <climits>

#include "check.h"
#include "ops.h"
#include "tile.h"

namespace easel {

namespace {

// Positions [low, high).
struct Keys {
    int low, high;
};
// That any of the rows of tokens first .. last sees; all of these are in the cache.
DEVICE Keys visible(int first, int last, int n_cached, int n_token, int window, Mask mask) {
    if (mask == Mask::Canvas) first = 0, last = n_token - 1;
    return {window ? max(0, n_cached + first - (window - 1)) : 0, n_cached + last + 1};
}

// Key tiles [begin, end) of n_tile that this block works on: blockIdx.z counts the parts.
struct Part {
    int begin, end;
};
DEVICE Part part_of(int n_tile) {
    const int split = static_cast<int>(blockIdx.z), n_split = static_cast<int>(gridDim.z);
    return {n_tile * split / n_split, n_tile * (split + 1) / n_split};
}

// What a part leaves in scratch for each row: token n_head + head. acc is not divided by sum; sum is 0 if the
// part has no key that the row sees, and then acc may be anything.
//   scratch  [n_split, n_row] RowPart, then [n_split, n_row, head_dim] float32 acc
struct RowPart {
    float max, sum;
};
DEVICE RowPart* row_part(float* scratch, int split, int n_row) {
    return reinterpret_cast<RowPart*>(scratch) + int64_t{split} * n_row;
}
DEVICE float* acc_part(float* scratch, int split, int n_split, int n_row, int head_dim) {
    return scratch + int64_t{n_row} * (2 * n_split + int64_t{split} * head_dim);
}

constexpr int kThreads = 256;
constexpr int kRows = 64;  // of a block
// P goes into products as F16, times 2^12 so that small probabilities keep their bits: the sum has the same
// factor. ln 2^12:
constexpr float kShift = 8.31776617f;
constexpr float kNone = -INFINITY;  // the maximum of no scores

template <int HD>
struct AttentionTile {
    static constexpr int BLOCK_N = HD <= 256 ? 64 : 32;
    static constexpr int LD = tile_stride<F16>(HD);
    static constexpr int NS = BLOCK_N / 8;  // 8-key tiles of scores
    static constexpr int NO = HD / 2 / 8;   // 8-column tiles of a warp's half of the output
    static constexpr int KS = HD / 2 / 16;  // 16-column steps of a warp's half of q and k
    static constexpr int shared_bytes = 2 * BLOCK_N * LD * 2 + kThreads * NS * 16;
};

// n_row rows of a K or V head from `slot` on, around the ring, into shared memory; rows after these, up to
// BLOCK_N, repeat the last: scores of theirs are masked, but 0 times a row that nobody wrote may be NaN. A
// warp takes every eighth row.
template <int HD, int BYTES>
DEVICE void load_rows(F16* dst, const F16* head, int head_dim, int slot, int n_slot, int n_row) {
    constexpr int n_in_part = BYTES / 2;
    const int thread = threadIdx.x;
    for (int row = thread / 32; row < AttentionTile<HD>::BLOCK_N; row += kThreads / 32) {
        int from = slot + min(row, n_row - 1);
        if (from >= n_slot) from -= n_slot;
        for (int i = thread % 32 * n_in_part; i < head_dim; i += 32 * n_in_part)
            cp_async<BYTES>(dst + row * AttentionTile<HD>::LD + i, head + int64_t{from} * head_dim + i);
    }
}
// n keys from position `first` on: a group of cp.async.
template <int HD>
DEVICE void load_keys(F16* dst, const F16* head, int head_dim, int n_slot, int first, int n) {
    if (head_dim % 8 == 0)
        load_rows<HD, 16>(dst, head, head_dim, first % n_slot, n_slot, n);
    else
        load_rows<HD, 4>(dst, head, head_dim, first % n_slot, n_slot, n);
    cp_async_commit();
}

// out = softmax(q k^T) v, or a part of it into scratch.
//   out, q  [n_token, n_head, head_dim] F16, rows of padded(n_head head_dim); head_dim even, at most HD
//   cache   k, v [n_head_kv, n_slot, head_dim] F16
//   scratch see RowPart; not used if gridDim.z is 1
// Tile:   64 rows: the query heads that share a KV head, stacked (row = token group + head of the group), so
//         that they read a K or V tile once; 64 keys, 32 if HD is 512.
// Launch: grid (n_token group / 64, n_head_kv, n_split), 256 threads; warps 2 i, 2 i + 1 have rows 16 i ..
// Shared: K and V tile, and the scores that a pair of warps exchanges: 98 KiB for HD 256, 81 KiB for 512.
// Why:    q and the output stay in registers. Each warp of a pair has half of the columns: it multiplies its
//         half of q and k, adds the other's half of the scores, and multiplies the probabilities, which both
//         then have in registers, with its half of v. V is loaded during the scores, the next K during V.
// Maths:  scores, softmax and sums in float32 (online, __expf); P rounded to F16.
// Check:  tests/test_attention.cpp, against double.
template <int HD>
__global__ void __launch_bounds__(kThreads, 1)
    attention_kernel(F16* out, const F16* q, KvLayer<F16> cache, int n_token, AttentionShape shape, Mask mask,
                     float* scratch, const LoopState* state) {
    using Tile = AttentionTile<HD>;
    constexpr int BLOCK_N = Tile::BLOCK_N, LD = Tile::LD, NS = Tile::NS, NO = Tile::NO, KS = Tile::KS;
    SHARED_DYNAMIC(F16, shared);
    F16 *const k_smem = shared, *const v_smem = k_smem + BLOCK_N * LD;
    float4* const exchange = reinterpret_cast<float4*>(v_smem + BLOCK_N * LD);  // [8 warps, NS, 32 lanes]
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
    const int head_dim = shape.head_dim, n_cached = state->n_cached, kv_head = blockIdx.y;
    const int group = shape.n_head / shape.n_head_kv, n_row = n_token * group, first_row = blockIdx.x * kRows;
    const int ld = padded(shape.n_head * head_dim), half = warp % 2 * (HD / 2);

    const int first = first_row / group, last = min(first_row + kRows - 1, n_row - 1) / group;
    const Keys keys = visible(first, last, n_cached, n_token, shape.window, mask);
    // Keys that all rows see.
    const int low = visible(last, last, n_cached, n_token, shape.window, mask).low;
    const int high = visible(first, first, n_cached, n_token, shape.window, mask).high;
    const Part part = part_of((keys.high - keys.low + BLOCK_N - 1) / BLOCK_N);

    const auto load = [&](F16* dst, const F16* heads, int tile) {
        const int key = keys.low + tile * BLOCK_N;
        load_keys<HD>(dst, heads + int64_t{kv_head} * cache.n_slot * head_dim, head_dim, cache.n_slot, key,
                      min(BLOCK_N, keys.high - key));
    };

    if (head_dim < HD) {  // columns that no load writes
        for (int i = thread * 8; i < 2 * BLOCK_N * LD; i += kThreads * 8) store16(shared + i, {0, 0, 0, 0});
        __syncthreads();  // before a load writes beside them
    }
    if (part.begin < part.end) load(k_smem, cache.k, part.begin);

    // Of this lane's rows, own_row and own_row + 8: the end of what they see, and the A operand of q.
    const int own_row = first_row + warp / 2 * 16 + g;
    int end[2];
    uint32_t q_reg[KS][4];
    UNROLL for (int i = 0; i < 2; i++) {
        const int row = own_row + 8 * i, token = row / group;
        end[i] = visible(token, token, n_cached, n_token, shape.window, mask).high;
        const F16* src = q + int64_t{token} * ld + (kv_head * group + row % group) * head_dim;
        UNROLL for (int s = 0; s < KS; s++) {
            UNROLL for (int j = 0; j < 2; j++) {
                const int col = half + 16 * s + 8 * j + 2 * t;
                q_reg[s][i + 2 * j] =
                    row < n_row && col < head_dim ? *reinterpret_cast<const uint32_t*>(src + col) : 0;
            }
        }
    }

    float acc[NO][4], row_max[2] = {kNone, kNone}, sum[2] = {0, 0};  // sum: of this lane's columns
    UNROLL for (int n = 0; n < NO; n++) acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0;
    for (int tile = part.begin; tile < part.end; tile++) {
        cp_async_wait<0>();
        __syncthreads();  // K is there for all; all have used the V before
        load(v_smem, cache.v, tile);

        float score[NS][4];
        UNROLL for (int n = 0; n < NS; n++) score[n][0] = score[n][1] = score[n][2] = score[n][3] = 0;
        const F16* k_row = k_smem + (lane % 8 + lane / 16 * 8) * LD + half + lane / 8 % 2 * 8;
        UNROLL for (int s = 0; s < KS; s++) {
            UNROLL for (int n = 0; n < NS; n += 2) {
                uint32_t b[4];
                ldmatrix(b, k_row + n * 8 * LD + s * 16);
                mma_m16n8k16_f16(score[n], q_reg[s], b[0], b[1]);
                mma_m16n8k16_f16(score[n + 1], q_reg[s], b[2], b[3]);
            }
        }
        UNROLL for (int n = 0; n < NS; n++)
            exchange[(warp * NS + n) * 32 + lane] = {score[n][0], score[n][1], score[n][2], score[n][3]};
        __syncthreads();  // the other half of the scores is there; all have used K
        if (tile + 1 < part.end)
            load(k_smem, cache.k, tile + 1);
        else
            cp_async_commit();  // an empty group, for the count below
        UNROLL for (int n = 0; n < NS; n++) {
            const float4 other = exchange[((warp ^ 1) * NS + n) * 32 + lane];
            score[n][0] += other.x, score[n][1] += other.y, score[n][2] += other.z, score[n][3] += other.w;
        }

        const int key = keys.low + tile * BLOCK_N;
        if (key < low || key + BLOCK_N > high) {
            const int reach = mask == Mask::Causal && shape.window ? shape.window : INT_MAX;
            UNROLL for (int n = 0; n < NS; n++) {
                UNROLL for (int i = 0; i < 4; i++) {
                    const int back = end[i / 2] - (key + 8 * n + 2 * t + i % 2);  // the last key seen: 1
                    if (back < 1 || back > reach) score[n][i] = kNone;
                }
            }
        }

        // Online softmax: both warps of a pair do the same.
        float scale[2];
        UNROLL for (int i = 0; i < 2; i++) {
            float m = row_max[i];
            UNROLL for (int n = 0; n < NS; n++) m = fmaxf(m, fmaxf(score[n][2 * i], score[n][2 * i + 1]));
            m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
            m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
            const float base = m == kNone ? 0 : m;  // no key yet: exp(-inf - 0) is 0, -inf - -inf is NaN
            scale[i] = __expf(row_max[i] - base);
            row_max[i] = m;
            sum[i] *= scale[i];
            UNROLL for (int n = 0; n < NS; n++) {
                UNROLL for (int j = 2 * i; j < 2 * i + 2; j++) {
                    score[n][j] = __expf(score[n][j] - (base - kShift));
                    sum[i] += score[n][j];
                }
            }
        }
        if (__any_sync(~0u, scale[0] != 1 || scale[1] != 1)) UNROLL for (int n = 0; n < NO; n++) {
                acc[n][0] *= scale[0], acc[n][1] *= scale[0];
                acc[n][2] *= scale[1], acc[n][3] *= scale[1];
            }

        cp_async_wait<1>();
        __syncthreads();  // V is there for all
        const F16* v_row = v_smem + lane % 16 * LD + half + lane / 16 * 8;
        UNROLL for (int s = 0; s < BLOCK_N / 16; s++) {
            // Accumulators of two 8-key tiles are an A operand.
            const float(&p)[4] = score[2 * s], (&r)[4] = score[2 * s + 1];
            const uint32_t a[4] = {pack_f16(p[0], p[1]), pack_f16(p[2], p[3]), pack_f16(r[0], r[1]),
                                   pack_f16(r[2], r[3])};
            UNROLL for (int n = 0; n < NO; n += 2) {
                uint32_t b[4];
                ldmatrix_trans(b, v_row + s * 16 * LD + n * 8);
                mma_m16n8k16_f16(acc[n], a, b[0], b[1]);
                mma_m16n8k16_f16(acc[n + 1], a, b[2], b[3]);
            }
        }
    }

    const int n_split = gridDim.z, split = blockIdx.z, n_all = n_token * shape.n_head;
    UNROLL for (int i = 0; i < 2; i++) {
        sum[i] += __shfl_xor_sync(~0u, sum[i], 1);
        sum[i] += __shfl_xor_sync(~0u, sum[i], 2);
        const int row = own_row + 8 * i, token = row / group;
        const int head = kv_head * group + row % group, index = token * shape.n_head + head;
        if (row >= n_row) continue;
        if (n_split == 1) {
            const float inverse = 1 / sum[i];
            F16* dst = out + int64_t{token} * ld + head * head_dim;
            UNROLL for (int n = 0; n < NO; n++) {
                const int col = half + 8 * n + 2 * t;
                if (col < head_dim)
                    *reinterpret_cast<uint32_t*>(dst + col) =
                        pack_f16(acc[n][2 * i] * inverse, acc[n][2 * i + 1] * inverse);
            }
        } else {
            if (warp % 2 == 0 && t == 0) row_part(scratch, split, n_all)[index] = {row_max[i], sum[i]};
            if (part.begin == part.end) continue;
            float* dst = acc_part(scratch, split, n_split, n_all, head_dim) + int64_t{index} * head_dim;
            UNROLL for (int n = 0; n < NO; n++) {
                const int col = half + 8 * n + 2 * t;
                if (col < head_dim)
                    *reinterpret_cast<float2*>(dst + col) = {acc[n][2 * i], acc[n][2 * i + 1]};
            }
        }
    }
}

template <int HD>
void launch(Stream stream, F16* out, const F16* q, const KvLayer<F16>& cache, int n_token,
            const AttentionShape& shape, Mask mask, int n_split, float* scratch, const LoopState* state) {
    const int n_row = n_token * (shape.n_head / shape.n_head_kv);
    const dim3 grid((n_row + kRows - 1) / kRows, shape.n_head_kv, n_split);
    EASEL_LAUNCH(attention_kernel<HD>, grid, kThreads, AttentionTile<HD>::shared_bytes, stream, out, q, cache,
                 n_token, shape, mask, scratch, state);
}

// The same with plain multiply-adds.
//   As above, with float for F16.
// Tile:   one row; 32 keys, one a lane, for the scores; one column in 32 a lane, for the output.
// Launch: grid (n_token, n_head, n_split), 32 threads.
// Shared: 32 probabilities.
// Why:    tiles of float rows of 512 columns do not fit the shared memory of small cards, and this path is
//         for small models, whose tests ask for exactness.
// Maths:  float32, online softmax as above.
// Check:  tests/test_attention.cpp, against double.
__global__ void __launch_bounds__(32)
    attention_float_kernel(float* out, const float* q, KvLayer<float> cache, int n_token,
                           AttentionShape shape, Mask mask, float* scratch, const LoopState* state) {
    SHARED_ARRAY(float, prob, 32);
    const int lane = threadIdx.x, token = blockIdx.x, head = blockIdx.y, head_dim = shape.head_dim;
    const int kv_head = head / (shape.n_head / shape.n_head_kv), ld = padded(shape.n_head * head_dim);
    const Keys keys = visible(token, token, state->n_cached, n_token, shape.window, mask);
    const Part part = part_of((keys.high - keys.low + 31) / 32);
    const float* k_head = cache.k + int64_t{kv_head} * cache.n_slot * head_dim;
    const float* v_head = cache.v + int64_t{kv_head} * cache.n_slot * head_dim;
    q += int64_t{token} * ld + head * head_dim;

    float acc[kMaxHeadDim / 32] = {}, row_max = kNone, sum = 0;
    for (int tile = part.begin; tile < part.end; tile++) {
        const int key = keys.low + tile * 32, n = min(32, keys.high - key);
        float score = kNone;
        if (lane < n) {
            const float* k = k_head + int64_t{(key + lane) % cache.n_slot} * head_dim;
            score = 0;
            for (int i = 0; i < head_dim; i++) score += q[i] * k[i];
        }
        const float m = fmaxf(row_max, warp_max(score)), scale = expf(row_max - m);
        row_max = m;
        prob[lane] = expf(score - m);
        sum = sum * scale + prob[lane];
        __syncwarp();  // all of prob is there
        UNROLL for (int i = 0; i < kMaxHeadDim / 32; i++) acc[i] *= scale;
        for (int j = 0; j < n; j++) {
            const float* v = v_head + int64_t{(key + j) % cache.n_slot} * head_dim + lane;
            UNROLL for (int i = 0; i < kMaxHeadDim / 32; i++) {
                if (lane + 32 * i < head_dim) acc[i] += prob[j] * v[32 * i];
            }
        }
        __syncwarp();  // all have used prob
    }

    sum = warp_sum(sum);
    const int n_split = gridDim.z, split = blockIdx.z, n_all = n_token * shape.n_head;
    const int index = token * shape.n_head + head;
    if (n_split > 1 && lane == 0) row_part(scratch, split, n_all)[index] = {row_max, sum};
    float* dst = n_split == 1
                     ? out + int64_t{token} * ld + head * head_dim
                     : acc_part(scratch, split, n_split, n_all, head_dim) + int64_t{index} * head_dim;
    UNROLL for (int i = 0; i < kMaxHeadDim / 32; i++) {
        if (lane + 32 * i < head_dim) dst[lane + 32 * i] = n_split == 1 ? acc[i] / sum : acc[i];
    }
}

// out = sum over parts of acc exp(max - largest max) / sum over parts of sum exp(max - largest max)
//   out      [n_token, n_head, head_dim] T, rows of padded(n_head head_dim)
//   scratch  see RowPart
// Launch: grid (n_token n_head / 4), 128 threads: a row a warp.
// Maths:  float32, in order of parts; those without keys are left out.
// Check:  tests/test_attention.cpp.
template <class T>
__global__ void __launch_bounds__(128)
    merge_kernel(T* out, float* scratch, int n_split, int n_row, int n_head, int head_dim) {
    const int row = blockIdx.x * 4 + threadIdx.x / 32;
    if (row >= n_row) return;
    float m = kNone, sum = 0;
    for (int s = 0; s < n_split; s++) m = fmaxf(m, row_part(scratch, s, n_row)[row].max);
    for (int s = 0; s < n_split; s++) {
        const RowPart part = row_part(scratch, s, n_row)[row];
        sum += part.sum * expf(part.max - m);
    }
    T* dst = out + int64_t{row / n_head} * padded(n_head * head_dim) + row % n_head * head_dim;
    for (int col = threadIdx.x % 32; col < head_dim; col += 32) {
        float acc = 0;
        for (int s = 0; s < n_split; s++) {
            const RowPart part = row_part(scratch, s, n_row)[row];
            if (part.sum == 0) continue;
            acc += expf(part.max - m) *
                   acc_part(scratch, s, n_split, n_row, head_dim)[int64_t{row} * head_dim + col];
        }
        dst[col] = from_f32<T>(acc / sum);
    }
}

}  // namespace

template <class T>
void attention(Stream stream, T* out, const T* q, const KvLayer<T>& cache, int n_token,
               const AttentionShape& shape, Mask mask, int n_split, float* scratch, const LoopState* state) {
    const int head_dim = shape.head_dim;
    require(head_dim % 2 == 0 && head_dim >= 2 && head_dim <= kMaxHeadDim,
            "bug: attention is for even head_dim from 2 to 512");
    require(shape.n_head_kv > 0 && shape.n_head % shape.n_head_kv == 0,
            "bug: n_head is not a multiple of n_head_kv");
    require(n_token > 0 && n_split > 0 && (n_split == 1 || scratch),
            "bug: attention without tokens, parts or scratch");
    if constexpr (sizeof(T) == 4) {
        const dim3 grid(n_token, shape.n_head, n_split);
        EASEL_LAUNCH(attention_float_kernel, grid, 32, 0, stream, out, q, cache, n_token, shape, mask,
                     scratch, state);
    } else {
        const auto run = head_dim <= 32    ? launch<32>
                         : head_dim <= 64  ? launch<64>
                         : head_dim <= 128 ? launch<128>
                         : head_dim <= 256 ? launch<256>
                                           : launch<512>;
        run(stream, out, q, cache, n_token, shape, mask, n_split, scratch, state);
    }
    if (n_split == 1) return;
    const int n_row = n_token * shape.n_head;
    EASEL_LAUNCH(merge_kernel<T>, (n_row + 3) / 4, 128, 0, stream, out, scratch, n_split, n_row, shape.n_head,
                 head_dim);
}

template void attention(Stream, F16*, const F16*, const KvLayer<F16>&, int, const AttentionShape&, Mask, int,
                        float*, const LoopState*);
template void attention(Stream, float*, const float*, const KvLayer<float>&, int, const AttentionShape&, Mask,
                        int, float*, const LoopState*);

}  // namespace easel
