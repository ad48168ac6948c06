// moe.cu: which experts a token goes to, and in which order the experts find their tokens. The products with
// the experts are linear.cu's, their sum is layer_end() of norm.cu. Called by engine.cpp.
#include "check.h"
#include "ops.h"
#include "tile.h"

namespace easel {

namespace {

// ---- route ------------------------------------------------------------------------------------------------

constexpr int kTokens = 4;      // of a block
constexpr int kExperts = 4;     // of a warp at a time
constexpr int kColumns = 3072;  // of x in shared memory at a time
constexpr int kRouteWarps = 16, kRouteThreads = 32 * kRouteWarps;

struct Chosen {
    int expert;
    float weight;
};

// The experts of one token, by a warp: lane i < n_used gets the one with the i-th largest of logit
// [n_expert], shared, and its part of the softmax over all that are chosen.
//   Each round takes the first expert after the one taken last, in order of (largest logit, lowest number):
//   nothing has to be marked, and whatever the logits are, NaN too, n_used different experts come out.
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

// chosen = the n_used largest of x router^T; weight = softmax over them * expert_scale
//   chosen, weight [n_token, n_used]
//   x              [n_token, n_embd] float32
//   router         [n_expert, n_embd] float32
//   expert_scale   [n_expert]
// Tile:   4 tokens a block; 4 experts a warp at a time, all columns: 16 sums a lane.
// Launch: grid n_token / 4, 512 threads. Lane l of a warp has columns V l .. V l + V - 1 of every 32 V.
// Shared: 4 rows of x, at most 3072 columns of them, and 4 rows of logits: 46 KiB for 2816 and 128 experts.
// Why:    what bounds it is reading the router, 1.4 MB a block at 64 bytes a clock, and all blocks together
//         from L2: with fewer tokens a block that is the limit, with more the multiply-adds of one SM.
// Maths:  float32 fused multiply-adds; a lane's sum, a tree, then parts of 3072 columns in order. Equal
//         rows of the router give equal logits.
// Check:  tests/test_moe.cpp.
template <int V>
__global__ void __launch_bounds__(kRouteThreads, 1)
    route_kernel(int* chosen, float* weight, const float* x, const float* router, const float* expert_scale,
                 int n_token, int n_embd, int n_expert, int n_used) {
    SHARED_DYNAMIC(float, shared);
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const int n_column = min(n_embd, kColumns), first_token = static_cast<int>(blockIdx.x) * kTokens;
    float* const logit = shared;                        // [kTokens, n_expert]: whole 16 bytes
    float* const x_smem = shared + kTokens * n_expert;  // [kTokens, n_column]

    for (int base = 0; base < n_embd; base += kColumns) {
        const int n = min(kColumns, n_embd - base);
        __syncthreads();  // all have read the columns before
        for (int t = 0; t < kTokens; t++) {
            const float* row = x + int64_t{min(first_token + t, n_token - 1)} * n_embd + base;
            for (int i = V * thread; i < n; i += V * kRouteThreads)
                *reinterpret_cast<Values<float, V>*>(x_smem + t * n_column + i) = load<V>(row + i);
        }
        __syncthreads();  // x_smem is complete

        for (int e0 = warp * kExperts; e0 < n_expert; e0 += kRouteWarps * kExperts) {
            float sum[kTokens][kExperts] = {};
            const float* row[kExperts];
            UNROLL for (int e = 0; e < kExperts; e++) row[e] =
                router + int64_t{min(e0 + e, n_expert - 1)} * n_embd + base;
            for (int i = V * lane; i < n; i += V * 32) {
                Values<float, V> w[kExperts];
                UNROLL for (int e = 0; e < kExperts; e++) w[e] = load<V>(row[e] + i);
                UNROLL for (int t = 0; t < kTokens; t++) {
                    const auto own = load<V>(x_smem + t * n_column + i);
                    UNROLL for (int e = 0; e < kExperts; e++) UNROLL for (int j = 0; j < V; j++) sum[t][e] =
                        fmaf(own.v[j], w[e].v[j], sum[t][e]);
                }
            }
            UNROLL for (int t = 0; t < kTokens; t++) {
                UNROLL for (int e = 0; e < kExperts; e++) {
                    const float all = warp_sum(sum[t][e]);
                    if (lane == 0 && e0 + e < n_expert) {
                        float& out = logit[t * n_expert + e0 + e];
                        out = base ? out + all : all;
                    }
                }
            }
        }
    }
    __syncthreads();  // the logits are complete

    const int token = first_token + warp;
    if (warp >= kTokens || token >= n_token) return;
    const Chosen own = choose(logit + warp * n_expert, n_expert, n_used);
    if (lane < n_used) {
        chosen[int64_t{token} * n_used + lane] = own.expert;
        weight[int64_t{token} * n_used + lane] = own.weight * expert_scale[own.expert];
    }
}

}  // namespace

void route(Stream stream, int* chosen, float* weight, const float* x, const float* router,
           const float* expert_scale, int n_token, int n_embd, int n_expert, int n_used) {
    require(n_expert <= kMaxExperts, "bug: more experts than route() has room for");
    require(n_used <= n_expert && n_used <= kMaxUsed, "bug: more experts a token than route() can choose");
    const size_t shared = sizeof(float) * kTokens * (n_expert + min(n_embd, kColumns));
    const int n_block = (n_token + kTokens - 1) / kTokens;
    if (n_embd % 4 == 0)
        EASEL_LAUNCH(route_kernel<4>, n_block, kRouteThreads, shared, stream, chosen, weight, x, router,
                     expert_scale, n_token, n_embd, n_expert, n_used);
    else
        EASEL_LAUNCH(route_kernel<1>, n_block, kRouteThreads, shared, stream, chosen, weight, x, router,
                     expert_scale, n_token, n_embd, n_expert, n_used);
}

// ---- permute ----------------------------------------------------------------------------------------------

namespace {

constexpr int kSortWarps = 16, kSortThreads = 32 * kSortWarps;

// A stable counting sort of the pairs p = token n_used + i by chosen[p].
//   slot_of  [n_pair] where pair p went
//   token_of [n_pair] by slot
//   first    [n_expert + 1]
//   chosen   [n_pair]
// Tile:   one block; warp w has the w-th sixteenth of the pairs, 32 at a time.
// Launch: grid 1, 512 threads.
// Shared: a counter a warp and expert: 8 KiB for 128 experts, 64 for 1024.
// Why:    2048 pairs are too few for more blocks. Counters of its own let a warp place its pairs without the
//         others: lanes with the same expert find their rank among them by a vote.
// Maths:  integers; the atomic additions are counts, whose order does not show.
// Check:  tests/test_moe.cpp.
__global__ void __launch_bounds__(kSortThreads)
    permute_kernel(int* slot_of, int* token_of, int* first, const int* chosen, int n_pair, int n_used,
                   int n_expert) {
    SHARED_DYNAMIC(int, count);             // [kSortWarps, n_expert]: pairs, then the next slot
    SHARED_ARRAY(int, total, kMaxExperts);  // of an expert; then its first slot
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const int n_round = (n_pair + kSortThreads - 1) / kSortThreads;  // of 32 pairs, of each warp
    const int begin = warp * n_round * 32;
    int* const own = count + warp * n_expert;

    for (int i = thread; i < kSortWarps * n_expert; i += kSortThreads) count[i] = 0;
    __syncthreads();  // the counters are zero
    for (int r = 0; r < n_round; r++) {
        const int p = begin + 32 * r + lane;
        if (p < n_pair) atomicAdd(own + chosen[p], 1);
    }
    __syncthreads();  // the counters are complete

    for (int e = thread; e < n_expert; e += kSortThreads) {
        int sum = 0;
        for (int w = 0; w < kSortWarps; w++) sum += count[w * n_expert + e];
        total[e] = sum;
    }
    __syncthreads();  // the totals are complete
    if (warp == 0) {
        int before = 0;
        for (int e0 = 0; e0 < n_expert; e0 += 32) {
            const int e = e0 + lane, n = e < n_expert ? total[e] : 0;
            int sum = n;  // over this lane and those below
            UNROLL for (int i = 1; i < 32; i *= 2) {
                const int below = __shfl_up_sync(~0u, sum, i);
                if (lane >= i) sum += below;
            }
            if (e < n_expert) first[e] = total[e] = before + sum - n;
            before += __shfl_sync(~0u, sum, 31);
        }
        if (lane == 0) first[n_expert] = before;
    }
    __syncthreads();  // the first slots are complete
    for (int e = thread; e < n_expert; e += kSortThreads) {
        int next = total[e];
        for (int w = 0; w < kSortWarps; w++) {
            const int n = count[w * n_expert + e];
            count[w * n_expert + e] = next;
            next += n;
        }
    }
    __syncthreads();  // every warp knows where its pairs go

    for (int r = 0; r < n_round; r++) {
        const int p = begin + 32 * r + lane;
        const int expert = p < n_pair ? chosen[p] : -1;
        const unsigned same = __match_any_sync(~0u, expert);
        const int rank = __popc(same & ((1u << lane) - 1));
        const int slot = expert < 0 ? 0 : own[expert] + rank;
        __syncwarp();  // all lanes have read their counter
        if (expert >= 0) {
            if (rank == 0) own[expert] += __popc(same);
            slot_of[p] = slot;
            token_of[slot] = p / n_used;
        }
        __syncwarp();  // the counters are up to date
    }
}

}  // namespace

void permute(Stream stream, int* slot_of, int* token_of, int* first, const int* chosen, int n_token,
             int n_used, int n_expert) {
    require(n_expert <= kMaxExperts, "bug: more experts than permute() has room for");
    EASEL_LAUNCH(permute_kernel, 1, kSortThreads, sizeof(int) * kSortWarps * n_expert, stream, slot_of,
                 token_of, first, chosen, n_token * n_used, n_used, n_expert);
}

}  // namespace easel
