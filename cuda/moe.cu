// moe.cu: which experts a token goes to, and the order of tokens by expert. The products with the experts are
// linear.cu's, their sum is layer_end() of norm.cu. Called by forward.cpp.
#include "check.h"
#include "ops.h"
#include "tile.h"

namespace easel {

namespace {

// ---- route ------------------------------------------------------------------------------------------------

constexpr int kTokens = 64, kExperts = 64;  // of a block
constexpr int kRouteLD = tile_stride<float>(kRouteColumns), kSumLD = kExperts + 8;
constexpr int kRouteThreads = 256, kChooseThreads = 128;

// partial[s] = x router^T over the s-th 192 columns.
//   partial [n_split, n_token, n_expert] float32
//   x       [n_token, n_embd] float32
//   router  [n_expert, n_embd] float32; V columns per copy: 4, or 1 if n_embd is not a multiple of 4
// Tile:   64 tokens x 64 experts. Of the columns each of four pairs of warps takes every fourth group of
//         four; a thread of a pair has 8 x 8 sums, of tokens t + 8 i and experts e + 8 j.
// Launch: grid (n_token / 64, n_expert / 64, n_split), 256 threads.
// Shared: 64 rows of x, then of the router, 98 KiB, zeros where there are none; the stride is an odd number
//         of 16 bytes, so that eight neighbouring rows are in different banks. In their place, at the end,
//         the sums of the four pairs.
// Why:    in float32, as it decides who is chosen; so the multiply-adds bound it: 64 x 64 x 192 at 128 per
//         clock are 6100 clocks of an SM, if all SMs take part: a canvas of 256 and 128 experts are 8 tiles,
//         15 splits of 2816 columns make 120 blocks. Reading shared memory takes as long with 8 x 8 sums per
//         thread, twice as long with 4 x 4. The second half of the columns arrives while the first is
//         multiplied. Splits do not depend on n_token: a token has the same logits in any pass.
// Maths:  float32 fused multiply-adds, then the pairs in order. Equal rows of the router give equal logits.
// Check:  tests/test_moe.cpp.
template <int V>
__global__ void __launch_bounds__(kRouteThreads, 1)
    router_kernel(float* partial, const float* x, const float* router, int n_token, int n_embd,
                  int n_expert) {
    wait_for_last_launch();
    SHARED_DYNAMIC(float, shared);  // rows of x, then of the router
    constexpr int kHalf = kRouteColumns / 2;
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const int first_token = blockIdx.x * kTokens, first_expert = blockIdx.y * kExperts;
    const int first_column = blockIdx.z * kRouteColumns;

    // Starts to copy the rows, each half of their columns as a group.
    UNROLL for (int half = 0; half < 2; half++) {
        constexpr int n_piece = kHalf / V;
        for (int i = thread; i < (kTokens + kExperts) * n_piece; i += kRouteThreads) {
            const int row = i / n_piece, col = half * kHalf + i % n_piece * V;
            const bool of_x = row < kTokens;
            const int from = of_x ? first_token + row : first_expert + row - kTokens;
            const bool there = from < (of_x ? n_token : n_expert) && first_column + col < n_embd;
            const float* src =
                (of_x ? x : router) + (there ? int64_t{from} * n_embd + first_column + col : 0);
            cp_async<4 * V>(shared + row * kRouteLD + col, src, there ? 4 * V : 0);
        }
        cp_async_commit();
    }

    // This pair's sums, over its columns.
    const int pair = warp / 2, t = warp % 2 * 4 + lane / 8, e = lane % 8;
    const float* const own_x = shared + t * kRouteLD;
    const float* const own_router = shared + (kTokens + e) * kRouteLD;
    float sum[8][8] = {};
    UNROLL for (int half = 0; half < 2; half++) {
        if (half == 0)
            cp_async_wait<1>();
        else
            cp_async_wait<0>();
        __syncthreads();  // this half of the columns is there
        for (int k = half * kHalf + 4 * pair; k < (half + 1) * kHalf; k += 16) {
            Values<float, 4> a[8];
            UNROLL for (int i = 0; i < 8; i++) a[i] = load<4>(own_x + 8 * i * kRouteLD + k);
            UNROLL for (int j = 0; j < 8; j++) {
                const auto b = load<4>(own_router + 8 * j * kRouteLD + k);
                UNROLL for (int i = 0; i < 8; i++) UNROLL for (int c = 0; c < 4; c++) sum[i][j] =
                    fmaf(a[i].v[c], b.v[c], sum[i][j]);
            }
        }
    }

    // The sums of the four pairs together.
    __syncthreads();  // all have used the rows: sums may take their place
    UNROLL for (int i = 0; i < 8; i++) UNROLL for (int j = 0; j < 8; j++)
        shared[(pair * kTokens + t + 8 * i) * kSumLD + e + 8 * j] = sum[i][j];
    __syncthreads();  // the sums are complete
    for (int i = thread; i < kTokens * kExperts; i += kRouteThreads) {
        const float* own = shared + i / kExperts * kSumLD + i % kExperts;
        const int token = first_token + i / kExperts, expert = first_expert + i % kExperts;
        if (token < n_token && expert < n_expert)
            partial[(int64_t{blockIdx.z} * n_token + token) * n_expert + expert] =
                own[0] + own[kTokens * kSumLD] + own[2 * kTokens * kSumLD] + own[3 * kTokens * kSumLD];
    }
}

struct Chosen {
    int expert;
    float weight;
};

// The experts of one token, by a warp: lane i < n_used gets the one with the i-th largest of logit
// [n_expert], shared, and its share of the softmax over those chosen.
//   Each round takes the expert that follows the last one in the order (larger logit, lower number): nothing
//   has to be marked, and whatever the logits are, NaN too, n_used different experts come out.
DEVICE Chosen choose(const float* logit, int n_expert, int n_used) {
    const int lane = threadIdx.x % 32;
    unsigned last_key = ~0u;
    int last = -1, expert = 0;
    for (int i = 0; i < n_used; i++) {
        unsigned best_key = 0;
        int best = kMaxExperts;  // none
        for (int e = lane; e < n_expert; e += 32) {
            const unsigned key = order_key(logit[e]);
            const bool left = key < last_key || (key == last_key && e > last);
            if (left && (best == kMaxExperts || key > best_key)) best_key = key, best = e;
        }
        last_key = __reduce_max_sync(~0u, best_key);
        last = __reduce_min_sync(~0u, best_key == last_key ? best : kMaxExperts);
        if (lane == i) expert = last;
    }
    const float own = logit[expert], largest = __shfl_sync(~0u, own, 0);
    const float part = lane < n_used ? expf(own - largest) : 0;
    return {expert, part / warp_sum(part)};
}

// chosen = the experts of the n_used largest logits, a logit being the sum of its n_split partial sums;
// weight = softmax over these times expert_scale
//   chosen, weight [n_token, n_used]
//   partial        [n_split, n_token, n_expert] float32
//   expert_scale   [n_expert]
// Tile:   a token per block; its threads add up the splits, eight loads in flight each, then a warp chooses.
// Launch: grid n_token, 128 threads.
// Shared: the logits, 4 KiB.
// Why:    a warp chooses without a barrier of the block in each of its n_used rounds.
// Maths:  float32, in order of splits.
// Check:  tests/test_moe.cpp.
__global__ void __launch_bounds__(kChooseThreads)
    choose_kernel(int* chosen, float* weight, const float* partial, const float* expert_scale, int n_split,
                  int n_token, int n_expert, int n_used) {
    wait_for_last_launch();
    SHARED_ARRAY(float, logit, kMaxExperts);
    const int thread = threadIdx.x;
    const int64_t token = blockIdx.x;
    for (int e = thread; e < n_expert; e += kChooseThreads) {
        float sum = 0;
        for (int p = 0; p < n_split; p += 8) {
            float v[8];
            UNROLL for (int i = 0; i < 8; i++) v[i] =
                p + i < n_split ? partial[((p + i) * int64_t{n_token} + token) * n_expert + e] : 0;
            UNROLL for (int i = 0; i < 8; i++) sum += v[i];
        }
        logit[e] = sum;
    }
    __syncthreads();  // the logits are complete
    if (thread >= 32) return;
    const Chosen own = choose(logit, n_expert, n_used);
    if (thread < n_used) {
        chosen[token * n_used + thread] = own.expert;
        weight[token * n_used + thread] = own.weight * expert_scale[own.expert];
    }
}

}  // namespace

void route(Stream stream, int* chosen, float* weight, const float* x, const float* router,
           const float* expert_scale, int n_token, int n_embd, int n_expert, int n_used, float* scratch) {
    require(n_expert <= kMaxExperts, "bug: more experts than route() has room for");
    require(n_used <= n_expert && n_used <= kMaxUsed, "bug: more experts a token than route() can choose");
    static_assert(kRouteColumns % 32 == 0 && kRouteLD % 8 == 4);
    const int n_split = (n_embd + kRouteColumns - 1) / kRouteColumns;
    const dim3 grid((n_token + kTokens - 1) / kTokens, (n_expert + kExperts - 1) / kExperts, n_split);
    constexpr size_t shared = sizeof(float) * (kTokens + kExperts) * kRouteLD;
    if (n_embd % 4 == 0)
        EASEL_LAUNCH(router_kernel<4>, grid, kRouteThreads, shared, stream, scratch, x, router, n_token,
                     n_embd, n_expert);
    else
        EASEL_LAUNCH(router_kernel<1>, grid, kRouteThreads, shared, stream, scratch, x, router, n_token,
                     n_embd, n_expert);
    EASEL_LAUNCH(choose_kernel, n_token, kChooseThreads, 0, stream, chosen, weight, scratch, expert_scale,
                 n_split, n_token, n_expert, n_used);
}

// ---- permute ----------------------------------------------------------------------------------------------

namespace {

constexpr int kSortWarps = 16, kSortThreads = 32 * kSortWarps;

// A stable counting sort of the pairs p = token n_used + i by chosen[p].
//   slot_of  [n_pair] where pair p went
//   token_of [n_pair] by slot
//   groups   [n_group] slots of an expert, `group` at most; experts with most pairs first, then empty groups
//   chosen   [n_pair]
// Tile:   one block; warp w has the w-th sixteenth of the pairs, 32 at a time.
// Launch: grid 1, 512 threads.
// Shared: a counter per warp and expert: 8 KiB for 128 experts, 64 for 1024; the pairs and groups of each
//         expert, 8 KiB.
// Why:    2048 pairs are too few for more blocks. With counters of its own a warp places its pairs
//         independently of the others; lanes with the same expert get their rank from a vote (match).
// Maths:  integers; the atomic additions only count, so their order does not show.
// Check:  tests/test_moe.cpp.
__global__ void __launch_bounds__(kSortThreads)
    permute_kernel(int* slot_of, int* token_of, ExpertGroup* groups, const int* chosen, int n_pair,
                   int n_used, int n_expert, int n_group, int group) {
    wait_for_last_launch();
    SHARED_DYNAMIC(int, count);                   // [kSortWarps, n_expert] pairs of a warp
    SHARED_ARRAY(int, total, kMaxExperts);        // pairs of an expert
    SHARED_ARRAY(int, n_own_group, kMaxExperts);  // groups of an expert
    // Then, in the places of count and total: the slot of a warp's next pair, and that of an expert's first.
    int *const next_slot = count, *const first_slot = total;
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    int *const own_count = count + warp * n_expert, *const own_next_slot = own_count;  // of this warp
    const int n_round = (n_pair + kSortThreads - 1) / kSortThreads;                    // of 32 pairs per warp
    const int begin = warp * n_round * 32;

    // Pairs by warp and expert, then by expert.
    for (int i = thread; i < kSortWarps * n_expert; i += kSortThreads) count[i] = 0;
    for (int i = thread; i < n_group; i += kSortThreads) groups[i] = {};
    __syncthreads();  // the counters are zero, the groups empty
    for (int r = 0; r < n_round; r++) {
        const int p = begin + 32 * r + lane;
        if (p < n_pair) atomicAdd(own_count + chosen[p], 1);
    }
    __syncthreads();  // the counters are complete
    for (int e = thread; e < n_expert; e += kSortThreads) {
        int sum = 0;
        for (int w = 0; w < kSortWarps; w++) sum += count[w * n_expert + e];
        total[e] = sum, n_own_group[e] = (sum + group - 1) / group;
    }
    __syncthreads();  // the totals are complete

    // An expert's first group comes after those of the experts with more pairs, its first slot after those of
    // the experts with lower numbers.
    constexpr int kOwn = kMaxExperts / kSortThreads;
    int first_group[kOwn], n_own[kOwn];  // of expert thread + i kSortThreads; its pairs
    UNROLL for (int i = 0; i < kOwn; i++) {
        const int e = thread + i * kSortThreads;
        if (e >= n_expert) continue;
        n_own[i] = total[e], first_group[i] = 0;
        for (int o = 0; o < n_expert; o++)
            if (total[o] > n_own[i] || (total[o] == n_own[i] && o < e)) first_group[i] += n_own_group[o];
    }
    __syncthreads();  // the totals have been read
    if (warp == 0) {
        int before = 0;
        for (int e0 = 0; e0 < n_expert; e0 += 32) {
            const int e = e0 + lane, n = e < n_expert ? total[e] : 0;
            const int sum = warp_running_sum(n);
            if (e < n_expert) first_slot[e] = before + sum - n;
            before += __shfl_sync(~0u, sum, 31);
        }
    }
    __syncthreads();  // the first slots are complete

    // The groups; where each warp's pairs of an expert begin.
    UNROLL for (int i = 0; i < kOwn; i++) {
        const int e = thread + i * kSortThreads;
        if (e >= n_expert) continue;
        const int end = first_slot[e] + n_own[i];
        ExpertGroup* to = groups + first_group[i];
        for (int at = first_slot[e]; at < end; at += group) *to++ = {e, at, min(at + group, end)};
    }
    for (int e = thread; e < n_expert; e += kSortThreads) {
        int next = first_slot[e];
        for (int w = 0; w < kSortWarps; w++) {
            const int n = count[w * n_expert + e];
            next_slot[w * n_expert + e] = next;
            next += n;
        }
    }
    __syncthreads();  // every warp knows where its pairs go

    // Each warp places its pairs.
    for (int r = 0; r < n_round; r++) {
        const int p = begin + 32 * r + lane;
        const int expert = p < n_pair ? chosen[p] : -1;
        const unsigned same = __match_any_sync(~0u, expert);
        const int rank = __popc(same & ((1u << lane) - 1));  // among the lanes with this expert
        const int slot = expert < 0 ? 0 : own_next_slot[expert] + rank;
        __syncwarp();  // all lanes have read their counter
        if (expert >= 0) {
            if (rank == 0) own_next_slot[expert] += __popc(same);
            slot_of[p] = slot;
            token_of[slot] = p / n_used;
        }
        __syncwarp();  // the warp's counters are up to date
    }
}

}  // namespace

void permute(Stream stream, int* slot_of, int* token_of, ExpertGroup* groups, const int* chosen, int n_token,
             int n_used, int n_expert, int group) {
    require(n_expert <= kMaxExperts, "bug: more experts than permute() has room for");
    const int n_pair = n_token * n_used;
    EASEL_LAUNCH(permute_kernel, 1, kSortThreads, sizeof(int) * kSortWarps * n_expert, stream, slot_of,
                 token_of, groups, chosen, n_pair, n_used, n_expert, n_group(n_expert, n_pair, group), group);
}

}  // namespace easel
