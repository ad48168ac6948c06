// attention.cu: attention of the rows of a pass over the KV cache, canvas or causal, with or without a window
// (SPEC 2.4). Flash attention on tensor cores for F16, a plain kernel for float; either may split the keys
// among blocks (KvSplits), whose results merge_splits_kernel joins in fixed order. Called by forward.cpp.
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
// Keys that any of the rows of tokens first .. last sees; all of them are in the cache.
DEVICE Keys visible(int first, int last, int n_cached, int n_token, int window, Mask mask) {
    if (mask == Mask::Canvas) first = 0, last = n_token - 1;
    return {window ? max(0, n_cached + first - (window - 1)) : 0, n_cached + last + 1};
}

// Splits that have work, from the number of keys that the rows of the whole pass see: the same in all blocks.
DEVICE int splits_used(const KvSplits& splits, int n_cached, int n_token, int window) {
    const Keys keys = visible(0, n_token - 1, n_cached, n_token, window, Mask::Canvas);
    return splits.used(keys.high - keys.low);
}
// Key tiles [begin, end) of n_tile that this block works on: blockIdx.z counts the splits.
struct Split {
    int begin, end;
};
DEVICE Split split_of(int n_tile, int n_split) {
    const int split = static_cast<int>(blockIdx.z);
    return {n_tile * split / n_split, n_tile * (split + 1) / n_split};
}

// What a split leaves in scratch for each row, number token n_head + head: the maximum of its scores and the
// sum of its exponentials. If it has no key that the row sees, sum is 0 and out is undefined. A single split
// writes its rows to their final place and nothing here.
//   scratch  [n_split, n_row] RowSplit, then [n_split, n_row, head_dim] T out, of the split's keys alone;
//            n_split: splits used
struct RowSplit {
    float max, sum;
};
DEVICE RowSplit* row_split(float* scratch, int split, int n_row) {
    return reinterpret_cast<RowSplit*>(scratch) + int64_t{split} * n_row;
}
template <class T>
DEVICE T* out_split(float* scratch, int split, int n_split, int n_row, int head_dim) {
    return reinterpret_cast<T*>(scratch + int64_t{n_row} * 2 * n_split) + int64_t{split} * n_row * head_dim;
}

constexpr int kThreads = 256;
// P goes into P v as F16, times 2^12 so that small probabilities keep their bits; the sum that divides the
// result has the same factor. ln 2^12:
constexpr float kShift = 8.31776617f;
constexpr float kNone = -INFINITY;  // the maximum of no scores

// Tile sizes for heads of up to HD columns. JOINT: K and V are joint, see KvLayer.
template <int HD, bool JOINT>
struct AttentionTile {
    static constexpr int M = 2;                                 // 16-row tiles of a group of warps
    static constexpr int W = HD <= 256 ? 2 : 4;                 // warps of a group
    static constexpr int BLOCK_M = kThreads / 32 / W * M * 16;  // rows of a block
    static constexpr int BLOCK_N = HD <= 256 ? 32 : 16;         // keys
    static constexpr int LD = tile_stride<F16>(HD);             // row stride of V, and of K:
    static constexpr int LDK = JOINT ? tile_stride<F16>(kJointRotated) : LD;
    static constexpr int KV = BLOCK_N * (LDK + LD);  // elements of a stage: a tile of K, then one of V
    static constexpr int COLS = HD / W;              // of a warp, in q, v and the output
    static constexpr int K_COLS = JOINT ? kJointRotated / W : COLS;  // and in k
    static constexpr int NS = BLOCK_N / 8;                           // 8-key tiles of scores
    static constexpr int NO = COLS / 8;                              // 8-column tiles of output
    static constexpr int KS = COLS / 16;                             // 16-column steps of q and k
    static constexpr int N_OCTET = 2 * M;                            // octets, 8 rows each, of a group
    static constexpr int OWN = N_OCTET / W;                          // of which a warp does the softmax
    // A thread's fragments of the group's 32 rows.
    using Query = uint32_t[M][KS][4];  // F16 of two columns
    using Scores = float[M][NS][4];
    using Probs = uint32_t[N_OCTET][NS];  // F16 of two keys
    using Output = float[M][NO][4];
    // What a warp passes to the others of its group: to each, partial scores of that warp's octets; to all,
    // the probabilities of its own octets, and the factor for what has been accumulated of their output.
    struct Given {
        float score[W - 1][OWN][2 * NS][32];  // score[i]: to warp ^ (i + 1)
        uint32_t p[OWN][NS][32];
        float scale[OWN][32];
    };
    static constexpr int shared_bytes = 2 * KV * 2 + kThreads / 32 * int{sizeof(Given)};
    static_assert(!JOINT || (HD == kJointDim && COLS == kJointDim / 4), "joint_place() is for quarters");
    static_assert(BLOCK_M == attention_rows(HD));
};

// A row of the block. token: -1 past the last row; end: one past the last key that it sees.
struct Row {
    int token, head, end;
};

// threadIdx.x, hidden from the compiler by a shuffle: what depends on it is computed anew in each tile
// instead of staying in registers, of which there are too few.
DEVICE int thread_again() {
    return __shfl_sync(~0u, static_cast<int>(threadIdx.x), threadIdx.x % 32);
}

// Where a thread works. Each warp numbers the octets of its group's 32 rows such that its own are 0, W, ..:
// its number o is the group's octet o ^ (warp % W), which is own octet o / W of warp ^ (o % W). In the mma
// fragments of row tile o / 2 it is rows g (o even, so all own ones) or g + 8 (o odd).
template <class Tile>
struct Place {
    static constexpr int W = Tile::W;
    int warp, lane, col;
    typename Tile::Given* given;
    const typename Tile::Given* taken[W];  // from warp ^ i

    DEVICE explicit Place(F16* shared) {
        const int thread = thread_again();
        warp = thread / 32, lane = thread % 32, col = warp % W * Tile::COLS;
        given = reinterpret_cast<typename Tile::Given*>(shared + 2 * Tile::KV) + warp;
        UNROLL for (int i = 0; i < W; i++) taken[i] = given + ((warp ^ i) - warp);
    }
    // The row of the block that this lane has in an octet.
    DEVICE int row(int octet) const { return (warp / W * Tile::N_OCTET + (octet ^ warp % W)) * 8 + lane / 4; }
    // The others of the group have written what they give.
    DEVICE void wait_for_group() const { barrier_sync(1 + warp / W, 32 * W); }
};

// Starts to copy n_row rows of a head of K and V, from `slot` on around the ring, into shared memory; rows
// after these, up to BLOCK_N, repeat the last: their scores are masked, but 0 times a row that nobody wrote
// may be NaN. A warp takes every eighth row, BYTES per lane and copy.
template <int HD, bool JOINT, int BYTES>
DEVICE void load_rows(F16* dst, const KvLayer<F16>& cache, int kv_head, int head_dim, int slot, int n_row) {
    using Tile = AttentionTile<HD, JOINT>;
    constexpr int BLOCK_N = Tile::BLOCK_N, LD = Tile::LD, LDK = Tile::LDK, n_in_copy = BYTES / 2;
    const int thread = thread_again(), warp = thread / 32, lane = thread % 32;
    UNROLL for (int first = 0; first < BLOCK_N; first += kThreads / 32) {
        const int row = first + warp;
        int from = slot + min(row, n_row - 1);
        if (from >= cache.n_slot) from -= cache.n_slot;
        UNROLL for (int col = 0; col < HD; col += 32 * n_in_copy) {
            const int i = col + lane * n_in_copy;
            if (i >= head_dim) break;
            const int64_t kv_row = kv_head * cache.n_slot + from, at = kv_row * head_dim + i;
            if constexpr (!JOINT)
                cp_async<BYTES>(dst + row * LDK + i, cache.k + at);
            else if (i < kJointRotated)
                cp_async<BYTES>(dst + row * LDK + i, cache.k + kv_row * kJointRotated + i);
            cp_async<BYTES>(dst + BLOCK_N * LDK + row * LD + i, cache.v + at);
        }
    }
}

// ---- steps of attention_kernel, numbered as in its comment

// q of all rows of the group, this warp's columns; 0 where there is no row or column.
template <class Tile>
DEVICE void load_q(typename Tile::Query& q_reg, const F16* q, const Row* rows, int ld, int head_dim,
                   const Place<Tile>& at) {
    UNROLL for (int m = 0; m < Tile::M; m++) {
        UNROLL for (int i = 0; i < 2; i++) {
            const Row row = rows[at.row(2 * m + i)];
            const F16* src = q + int64_t{row.token} * ld + row.head * head_dim;
            UNROLL for (int s = 0; s < Tile::KS; s++) {
                UNROLL for (int j = 0; j < 2; j++) {
                    const int col = at.col + 16 * s + 8 * j + at.lane % 4 * 2;
                    q_reg[m][s][i + 2 * j] =
                        row.token >= 0 && col < head_dim ? *reinterpret_cast<const uint32_t*>(src + col) : 0;
                }
            }
        }
    }
}

// 1. score = q k^T, of all rows, over this warp's columns: partial scores. Other warps are given those of
// their rows.
template <class Tile>
DEVICE void multiply_q_k(typename Tile::Scores& score, const typename Tile::Query& q, const F16* k_smem,
                         const F16* v_smem, const Place<Tile>& at) {
    constexpr int W = Tile::W, LDK = Tile::LDK;
    const int k_key = at.lane % 8 + at.lane / 16 * 8, k_col = at.lane / 8 % 2 * 8;
    const F16* const k_row = k_smem + k_key * LDK + at.warp % W * Tile::K_COLS + k_col;
    const F16* const kv_row = v_smem + k_key * Tile::LD + at.col + k_col;  // joint: K's other columns are V's
    UNROLL for (int n = 0; n < Tile::NS; n += 2) {
        UNROLL for (int s = 0; s < Tile::KS; s++) {
            uint32_t b[4];
            const bool in_k = 16 * s < Tile::K_COLS;
            ldmatrix(b, in_k ? k_row + n * 8 * LDK + s * 16 : kv_row + n * 8 * Tile::LD + s * 16);
            UNROLL for (int m = 0; m < Tile::M; m++) {
                mma_m16n8k16_f16(score[m][n], q[m][s], b[0], b[1]);
                mma_m16n8k16_f16(score[m][n + 1], q[m][s], b[2], b[3]);
            }
        }
        UNROLL for (int o = 0; o < Tile::N_OCTET; o++) {
            if (o % W == 0) continue;
            UNROLL for (int i = 0; i < 4; i++) at.given->score[o % W - 1][o / W][2 * n + i][at.lane] =
                score[o / 2][n + i / 2][o % 2 * 2 + i % 2];
        }
    }
}

// 2. score of own rows: this warp's partial scores and those that the others gave.
template <class Tile>
DEVICE void add_partial_scores(typename Tile::Scores& score, const Place<Tile>& at) {
    constexpr int W = Tile::W;
    UNROLL for (int k = 0; k < Tile::OWN; k++) {
        UNROLL for (int i = 0; i < 2 * Tile::NS; i++) {
            const auto part = [&](int of) { return at.taken[of]->score[of - 1][k][i][at.lane]; };
            float& x = score[k * W / 2][i / 2][i % 2];
            x += part(1);
            if constexpr (W == 4) x += part(2) + part(3);  // each warp: (0 + 1) + (2 + 3)
        }
    }
}

// No score of own rows with keys that they do not see: those past their end and those more than `reach`
// before it. key: the tile's first.
template <class Tile>
DEVICE void mask_scores(typename Tile::Scores& score, const Row* rows, int key, int reach,
                        const Place<Tile>& at) {
    UNROLL for (int k = 0; k < Tile::OWN; k++) {
        const int end = rows[at.row(k * Tile::W)].end;
        UNROLL for (int n = 0; n < Tile::NS; n++) {
            UNROLL for (int i = 0; i < 2; i++) {
                const int back = end - (key + 8 * n + at.lane % 4 * 2 + i);  // 1: the last key seen
                if (back < 1 || back > reach) score[k * Tile::W / 2][n][i] = kNone;
            }
        }
    }
}

// Online softmax of own rows: row_max with this tile's scores, p = 2^12 exp(score - row_max), added to sum;
// scale: the factor for sums that were made with the row_max before. Other warps are given p and scale.
template <class Tile>
DEVICE void softmax(typename Tile::Probs& p, float (&scale)[Tile::N_OCTET], float (&row_max)[Tile::OWN],
                    float (&sum)[Tile::OWN], typename Tile::Scores& score, const Place<Tile>& at) {
    constexpr int W = Tile::W, NS = Tile::NS;
    UNROLL for (int k = 0; k < Tile::OWN; k++) {
        float(&s)[NS][4] = score[k * W / 2];
        float largest = row_max[k];
        UNROLL for (int n = 0; n < NS; n++) largest = fmaxf(largest, fmaxf(s[n][0], s[n][1]));
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
        // No key yet: exp(-inf - 0) is 0, -inf - -inf would be NaN.
        const float base = largest == kNone ? 0 : largest;
        scale[k * W] = at.given->scale[k][at.lane] = exponential<F16>(row_max[k] - base);
        row_max[k] = largest;
        sum[k] *= scale[k * W];
        UNROLL for (int n = 0; n < NS; n++) {
            UNROLL for (int i = 0; i < 2; i++) {
                s[n][i] = exponential<F16>(s[n][i] - (base - kShift));
                sum[k] += s[n][i];
            }
            p[k * W][n] = at.given->p[k][n][at.lane] = pack_f16(s[n][0], s[n][1]);
        }
    }
}

// p and scale of the other warps' rows.
template <class Tile>
DEVICE void take_probs(typename Tile::Probs& p, float (&scale)[Tile::N_OCTET], const Place<Tile>& at) {
    constexpr int W = Tile::W;
    UNROLL for (int o = 0; o < Tile::N_OCTET; o++) {
        if (o % W == 0) continue;
        UNROLL for (int n = 0; n < Tile::NS; n++) p[o][n] = at.taken[o % W]->p[o / W][n][at.lane];
        scale[o] = at.taken[o % W]->scale[o / W][at.lane];
    }
}

// acc *= scale, unless no row has a new maximum.
template <class Tile>
DEVICE void rescale(typename Tile::Output& acc, const float (&scale)[Tile::N_OCTET]) {
    UNROLL for (int m = 0; m < Tile::M; m++) {
        const float low = scale[2 * m], high = scale[2 * m + 1];
        if (!__any_sync(~0u, low != 1 || high != 1)) continue;
        UNROLL for (int n = 0; n < Tile::NO; n++) {
            acc[m][n][0] *= low, acc[m][n][1] *= low;
            acc[m][n][2] *= high, acc[m][n][3] *= high;
        }
    }
}

// 3. acc += p v, of all rows, this warp's columns.
template <class Tile>
DEVICE void multiply_p_v(typename Tile::Output& acc, const typename Tile::Probs& p, const F16* v_smem,
                         const Place<Tile>& at) {
    const F16* v_row = v_smem + at.lane % 16 * Tile::LD + at.col + at.lane / 16 * 8;
    UNROLL for (int s = 0; s < Tile::NS; s += 2) {
        UNROLL for (int n = 0; n < Tile::NO; n += 2) {
            uint32_t b[4];
            ldmatrix_trans(b, v_row + s * 8 * Tile::LD + n * 8);
            UNROLL for (int m = 0; m < Tile::M; m++) {
                const auto &low = p[2 * m], &high = p[2 * m + 1];
                const uint32_t a[4] = {low[s], high[s], low[s + 1], high[s + 1]};
                mma_m16n8k16_f16(acc[m][n], a, b[0], b[1]);
                mma_m16n8k16_f16(acc[m][n + 1], a, b[2], b[3]);
            }
        }
    }
}

// out = softmax(q k^T) v, of rows (token, query head); or, of a split of the keys, into scratch.
//   out, q  [n_token, n_head, head_dim] F16, rows of padded(n_head head_dim); head_dim even, at most HD
//   cache   k, v [n_head_kv, n_slot, head_dim] F16; joint: k [., kJointRotated], and q in the order of v
//   scratch see RowSplit; not used if there is one split
// Tile:   128 rows, 64 if HD is 512: the query heads that share a KV head, stacked (row = token group + head
//         of the group), so that they read a K or V tile once; 32 keys, 16 if HD is 512.
// Launch: grid (n_token group / BLOCK_M, n_head_kv, splits.most), 256 threads; groups of two warps, four if
//         HD is 512, share 32 rows.
// Shared: two stages of a K and a V tile, what the warps of a group pass to each other, the rows: HD 256
//         94 KiB, 512 81, joint 57.
// Why:    q and the output stay in registers, as each warp of a group has at most 128 of the columns. A warp
//         multiplies its columns of q and k, passes the other warps the partial scores of their rows, and
//         adds up the partial scores of its own rows, a half or a quarter of the 32. It passes their
//         probabilities to the others, and multiplies those of all 32 rows with its columns of v. With 32
//         rows a fragment of k or v feeds four mma. The next tile is loaded meanwhile. There is one barrier
//         of the block per tile, so that the softmax of one group overlaps the mma of others.
//
//         A group of two warps (of four: a quarter of the columns and one octet of rows each):
//
//           32 rows of q, out    | columns 0 .. HD/2: warp 0 | columns HD/2 .. HD: warp 1 |
//           1. q k^T             each warp over its columns, all 32 rows: W partial scores
//           2. sum, softmax      rows 0-7, 16-23: warp 0;  rows 8-15, 24-31: warp 1
//           3. p v               each warp its columns, all 32 rows
//
//         Between 1 and 2 they pass each other partial scores, between 2 and 3 probabilities.
// Maths:  scores, softmax and sums in float32 (online; fast exp); P rounded to F16. The order of sums is the
//         same whichever warp has a row.
// Check:  tests/test_attention.cpp, against double.
template <int HD, bool JOINT>
__global__ void __launch_bounds__(kThreads, 1)
    attention_kernel(F16* out, const F16* q, KvLayer<F16> cache, int n_token, AttentionShape shape, Mask mask,
                     KvSplits splits, float* scratch, const LoopState* state) {
    wait_for_last_launch();
    using Tile = AttentionTile<HD, JOINT>;
    constexpr int W = Tile::W, BLOCK_M = Tile::BLOCK_M, BLOCK_N = Tile::BLOCK_N, LDK = Tile::LDK;
    constexpr int KV = Tile::KV, NO = Tile::NO, N_OCTET = Tile::N_OCTET, OWN = Tile::OWN;
    SHARED(Keys, seen);         // that every row of the block sees: tiles within need no mask
    SHARED(int, n_split_smem);  // for the end: the loop has no register for it
    SHARED_ARRAY(Row, rows, BLOCK_M);
    SHARED_DYNAMIC(F16, shared);  // two stages of K [BLOCK_N, LDK], V [BLOCK_N, LD]; then Given, per warp
    const int head_dim = shape.head_dim, n_cached = state->n_cached, kv_head = blockIdx.y;
    const int group = shape.n_head / shape.n_head_kv, n_row = n_token * group;
    const int thread = threadIdx.x, first_row = blockIdx.x * BLOCK_M, ld = padded(shape.n_head * head_dim);

    // Tokens first .. last; of the keys that any of them sees, this block's are begin .. stop - 1.
    const int first = first_row / group, last = min(first_row + BLOCK_M - 1, n_row - 1) / group;
    const int n_used = splits_used(splits, n_cached, n_token, shape.window);
    if (static_cast<int>(blockIdx.z) >= n_used) return;  // the whole block
    const Keys keys = visible(first, last, n_cached, n_token, shape.window, mask);
    const Split split = split_of((keys.high - keys.low + BLOCK_N - 1) / BLOCK_N, n_used);
    const int begin = keys.low + split.begin * BLOCK_N, stop = min(keys.low + split.end * BLOCK_N, keys.high);

    const auto load = [&](int key, int stage) {
        const int n = min(BLOCK_N, stop - key), slot = key % cache.n_slot;
        F16* const dst = shared + stage * KV;
        if (JOINT || head_dim % 8 == 0)
            load_rows<HD, JOINT, 16>(dst, cache, kv_head, head_dim, slot, n);
        else
            load_rows<HD, JOINT, 4>(dst, cache, kv_head, head_dim, slot, n);
        cp_async_commit();
    };

    if (head_dim < HD) {  // columns that no load writes
        for (int i = thread * 8; i < 2 * KV; i += kThreads * 8) store16(shared + i, {0, 0, 0, 0});
        __syncthreads();  // before a load writes beside them
    }
    if (begin < stop) load(begin, 0);
    if (thread == 0) {
        seen = {visible(last, last, n_cached, n_token, shape.window, mask).low,
                visible(first, first, n_cached, n_token, shape.window, mask).high};
        n_split_smem = n_used;
    }
    if (thread < BLOCK_M) {
        const int row = first_row + thread, token = row / group;
        rows[thread] = {row < n_row ? token : -1, kv_head * group + row % group,
                        visible(token, token, n_cached, n_token, shape.window, mask).high};
    }
    __syncthreads();  // seen, n_split_smem and rows are there

    typename Tile::Query q_reg;
    load_q(q_reg, q, rows, ld, head_dim, Place<Tile>(shared));
    typename Tile::Output acc = {};
    float row_max[OWN], sum[OWN] = {};  // of own rows; sum: over this lane's keys
    UNROLL for (int k = 0; k < OWN; k++) row_max[k] = kNone;
    for (int key = begin, stage = 0; key < stop; key += BLOCK_N, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();  // this K and V tile is there for all; all have used the previous one
        const Place<Tile> at(shared);
        if (key + BLOCK_N < stop) load(key + BLOCK_N, stage ^ 1);
        const F16 *const k_smem = shared + stage * KV, *const v_smem = k_smem + BLOCK_N * LDK;

        typename Tile::Scores score = {};
        multiply_q_k(score, q_reg, k_smem, v_smem, at);
        at.wait_for_group();  // the other warps' partial scores are there
        add_partial_scores(score, at);
        if (key < seen.low || key + BLOCK_N > seen.high)
            mask_scores(score, rows, key, mask == Mask::Causal && shape.window ? shape.window : INT_MAX, at);
        typename Tile::Probs p;
        float scale[N_OCTET];
        softmax(p, scale, row_max, sum, score, at);
        at.wait_for_group();  // the other rows' probabilities are there
        take_probs(p, scale, at);
        rescale<Tile>(acc, scale);
        multiply_p_v(acc, p, v_smem, at);
    }

    // out = acc / sum, the sum over all lanes' keys.
    const int n_split = n_split_smem, n_all = n_token * shape.n_head;
    const Place<Tile> after(shared);
    UNROLL for (int k = 0; k < OWN; k++) {
        sum[k] += __shfl_xor_sync(~0u, sum[k], 1);
        sum[k] += __shfl_xor_sync(~0u, sum[k], 2);
        after.given->score[0][k][0][after.lane] = 1 / sum[k];
    }
    after.wait_for_group();  // the other rows' 1 / sum are there, in `score`
    UNROLL for (int o = 0; o < N_OCTET; o++) {
        const Row row = rows[after.row(o)];
        const float(&values)[NO][4] = acc[o / 2];
        const int first_value = o % 2 * 2, index = row.token * shape.n_head + row.head;
        if (row.token < 0) continue;
        if (n_split > 1 && o % W == 0 && after.lane % 4 == 0)
            row_split(scratch, blockIdx.z, n_all)[index] = {row_max[o / W], sum[o / W]};
        if (begin >= stop) continue;
        const float inverse = after.taken[o % W]->score[0][o / W][0][after.lane];
        F16* dst = n_split == 1 ? out + int64_t{row.token} * ld + row.head * head_dim
                                : out_split<F16>(scratch, blockIdx.z, n_split, n_all, head_dim) +
                                      int64_t{index} * head_dim;
        UNROLL for (int n = 0; n < NO; n++) {
            const int place = after.col + 8 * n + after.lane % 4 * 2;
            const int col = JOINT ? joint_column(place) : place;
            if (col < head_dim)
                *reinterpret_cast<uint32_t*>(dst + col) =
                    pack_f16(values[n][first_value] * inverse, values[n][first_value + 1] * inverse);
        }
    }
}

template <int HD, bool JOINT = false>
void launch(Stream stream, F16* out, const F16* q, const KvLayer<F16>& cache, int n_token,
            const AttentionShape& shape, Mask mask, const KvSplits& splits, float* scratch,
            const LoopState* state) {
    const int n_row = n_token * (shape.n_head / shape.n_head_kv);
    using Tile = AttentionTile<HD, JOINT>;
    constexpr int BLOCK_M = Tile::BLOCK_M;
    const dim3 grid((n_row + BLOCK_M - 1) / BLOCK_M, shape.n_head_kv, splits.most);
    EASEL_LAUNCH((attention_kernel<HD, JOINT>), grid, kThreads, Tile::shared_bytes, stream, out, q, cache,
                 n_token, shape, mask, splits, scratch, state);
}

// The same with plain multiply-adds.
//   As above, with float for F16; never joint.
// Tile:   one row; 32 keys, one per lane, for the scores; every 32nd column per lane for the output.
// Launch: grid (n_token, n_head, splits.most), 32 threads.
// Shared: 32 probabilities.
// Why:    tiles of float rows of 512 columns do not fit the shared memory of small cards, and this path is
//         for small models, whose tests ask for exactness.
// Maths:  float32, online softmax as above.
// Check:  tests/test_attention.cpp, against double.
__global__ void __launch_bounds__(32)
    attention_float_kernel(float* out, const float* q, KvLayer<float> cache, int n_token,
                           AttentionShape shape, Mask mask, KvSplits splits, float* scratch,
                           const LoopState* state) {
    wait_for_last_launch();
    SHARED_ARRAY(float, prob, 32);
    const int lane = threadIdx.x, token = blockIdx.x, head = blockIdx.y, head_dim = shape.head_dim;
    const int kv_head = head / (shape.n_head / shape.n_head_kv), ld = padded(shape.n_head * head_dim);
    const int n_split = splits_used(splits, state->n_cached, n_token, shape.window);
    if (static_cast<int>(blockIdx.z) >= n_split) return;  // the whole block
    const Keys keys = visible(token, token, state->n_cached, n_token, shape.window, mask);
    const Split split = split_of((keys.high - keys.low + 31) / 32, n_split);
    const float* k_head = cache.k + int64_t{kv_head} * cache.n_slot * head_dim;
    const float* v_head = cache.v + int64_t{kv_head} * cache.n_slot * head_dim;
    q += int64_t{token} * ld + head * head_dim;

    float acc[kMaxHeadDim / 32] = {}, row_max = kNone, sum = 0;
    for (int tile = split.begin; tile < split.end; tile++) {
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
    const int n_all = n_token * shape.n_head, index = token * shape.n_head + head;
    if (n_split > 1 && lane == 0) row_split(scratch, blockIdx.z, n_all)[index] = {row_max, sum};
    float* dst = n_split == 1 ? out + int64_t{token} * ld + head * head_dim
                              : out_split<float>(scratch, blockIdx.z, n_split, n_all, head_dim) +
                                    int64_t{index} * head_dim;
    UNROLL for (int i = 0; i < kMaxHeadDim / 32; i++) {
        if (lane + 32 * i < head_dim) dst[lane + 32 * i] = acc[i] / sum;
    }
}

// out = (sum over splits of weight out_split) / (sum over splits of weight), weight = sum exp(max - largest
// max); nothing to do if one split was used
//   out      [n_token, n_head, head_dim] T, rows of padded(n_head head_dim)
//   scratch  see RowSplit
// Tile:   a row per warp, every 32nd pair of columns per lane.
// Launch: grid (n_token n_head / 4), 128 threads.
// Shared: none.
// Why:    a launch of its own needs no counters in memory, and the order of the sums is fixed.
// Maths:  float32, in order of splits; those without keys are left out.
// Check:  tests/test_attention.cpp.
template <class T>
__global__ void __launch_bounds__(128)
    merge_splits_kernel(T* out, float* scratch, KvSplits splits, int n_token, AttentionShape shape,
                        const LoopState* state) {
    wait_for_last_launch();
    const int row = blockIdx.x * 4 + threadIdx.x / 32;
    const int n_head = shape.n_head, head_dim = shape.head_dim, n_row = n_token * n_head;
    const int n_split = splits_used(splits, state->n_cached, n_token, shape.window);
    if (n_split == 1 || row >= n_row) return;
    float m = kNone, sum = 0;
    for (int s = 0; s < n_split; s++) m = fmaxf(m, row_split(scratch, s, n_row)[row].max);
    const int lane_col = threadIdx.x % 32 * 2;
    Values<float, 2> acc[kMaxHeadDim / 64] = {};
    for (int s = 0; s < n_split; s++) {
        const RowSplit split = row_split(scratch, s, n_row)[row];
        if (split.sum == 0) continue;
        const float weight = split.sum * expf(split.max - m);
        sum += weight;
        const T* src =
            out_split<T>(scratch, s, n_split, n_row, head_dim) + int64_t{row} * head_dim + lane_col;
        UNROLL for (int i = 0; i < kMaxHeadDim / 64; i++) {
            if (lane_col + 64 * i >= head_dim) continue;
            const auto values = *reinterpret_cast<const Values<T, 2>*>(src + 64 * i);
            UNROLL for (int j = 0; j < 2; j++) acc[i].v[j] += weight * to_f32(values.v[j]);
        }
    }
    T* dst = out + int64_t{row / n_head} * padded(n_head * head_dim) + row % n_head * head_dim + lane_col;
    UNROLL for (int i = 0; i < kMaxHeadDim / 64; i++) {
        if (lane_col + 64 * i >= head_dim) continue;
        UNROLL for (int j = 0; j < 2; j++) acc[i].v[j] /= sum;
        store(dst + 64 * i, acc[i]);
    }
}

}  // namespace

template <class T>
void attention(Stream stream, T* out, const T* q, const KvLayer<T>& cache, int n_token,
               const AttentionShape& shape, Mask mask, const KvSplits& splits, float* scratch,
               const LoopState* state) {
    const int head_dim = shape.head_dim;
    require(head_dim % 2 == 0 && head_dim >= 2 && head_dim <= kMaxHeadDim,
            "bug: attention is for even head_dim from 2 to 512");
    require(shape.n_head_kv > 0 && shape.n_head % shape.n_head_kv == 0,
            "bug: n_head is not a multiple of n_head_kv");
    require(n_token > 0 && splits.most > 0 && (splits.most == 1 || scratch),
            "bug: attention without tokens, splits or scratch");
    require(splits.in_wave > 0 && splits.least > 0, "bug: splits of keys without a wave or keys");
    require(!cache.joint || (sizeof(T) == 2 && head_dim == kJointDim),
            "bug: joint K and V are for heads of 512 in F16");
    if constexpr (sizeof(T) == 4) {
        const dim3 grid(n_token, shape.n_head, splits.most);
        EASEL_LAUNCH(attention_float_kernel, grid, 32, 0, stream, out, q, cache, n_token, shape, mask, splits,
                     scratch, state);
    } else {
        const auto run = head_dim <= 32    ? launch<32>
                         : head_dim <= 64  ? launch<64>
                         : head_dim <= 128 ? launch<128>
                         : head_dim <= 256 ? launch<256>
                         : cache.joint     ? launch<512, true>
                                           : launch<512>;
        run(stream, out, q, cache, n_token, shape, mask, splits, scratch, state);
    }
    if (splits.most == 1) return;
    EASEL_LAUNCH(merge_splits_kernel<T>, (n_token * shape.n_head + 3) / 4, 128, 0, stream, out, scratch,
                 splits, n_token, shape, state);
}

template void attention(Stream, F16*, const F16*, const KvLayer<F16>&, int, const AttentionShape&, Mask,
                        const KvSplits&, float*, const LoopState*);
template void attention(Stream, float*, const float*, const KvLayer<float>&, int, const AttentionShape&, Mask,
                        const KvSplits&, float*, const LoopState*);

}  // namespace easel
