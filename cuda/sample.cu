// sample.cu: from a canvas row's z to its entropy, argmax and draw, and to the probabilities that the next
// step is conditioned on (SPEC sections 3, 8). forward.cpp calls sample() after lm_head(), and backend.cpp
// probabilities() for logits that come from outside.
//
// Sums over the tiles of a row are fixed point, integers in units of 2^-40 where the row's largest entry is
// 1: the same in any order, and running sums never fall, so that a draw lands on an entry that has weight.
#include "check.h"
#include "ops.h"
#include "tile.h"

namespace easel {

namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kLane = kVocabTile / 32;  // entries of a tile that a lane has: 4 lane .. 4 lane + 3

DEVICE int64_t fixed_point(float x) {
    return static_cast<int64_t>(x * 0x1p40f);
}
DEVICE float from_fixed(int64_t x) {
    return static_cast<float>(x) * 0x1p-40f;
}

// A lane's entries of a tile, one load; and back.
template <class T>
struct LaneOf {
    using type = uint2;
};
template <>
struct LaneOf<float> {
    using type = uint4;
};
template <class T>
using Lane = typename LaneOf<T>::type;

template <class T>
DEVICE Lane<T> load_lane(const T* tile) {
    if constexpr (sizeof(T) == 4)
        return load16(tile + threadIdx.x % 32 * kLane);
    else
        return load8(tile + threadIdx.x % 32 * kLane);
}
DEVICE void unpack(float (&v)[kLane], uint4 raw) {
    v[0] = __uint_as_float(raw.x), v[1] = __uint_as_float(raw.y);
    v[2] = __uint_as_float(raw.z), v[3] = __uint_as_float(raw.w);
}
DEVICE void unpack(float (&v)[kLane], uint2 raw) {
    v[0] = half_to_float(static_cast<uint16_t>(raw.x)), v[1] = half_to_float(raw.x >> 16);
    v[2] = half_to_float(static_cast<uint16_t>(raw.y)), v[3] = half_to_float(raw.y >> 16);
}
DEVICE void store_lane(float* tile, const float (&v)[kLane]) {
    store16(tile + threadIdx.x % 32 * kLane,
            {__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3])});
}
DEVICE void store_lane(F16* tile, const float (&v)[kLane]) {
    store8(tile + threadIdx.x % 32 * kLane, {pack_f16(v[0], v[1]), pack_f16(v[2], v[3])});
}

// Reduces the values of all threads by a commutative f, in a fixed order; every thread gets the result.
template <class V, class F>
DEVICE V block_reduce(V v, F f) {
    SHARED_ARRAY(V, part, kWarps);
    UNROLL for (int i = 16; i; i /= 2) v = f(v, __shfl_xor_sync(~0u, v, i));
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();  // part is complete
    v = part[0];
    for (int i = 1; i < kWarps; i++) v = f(v, part[i]);
    __syncthreads();  // all have read part: the next call may overwrite it
    return v;
}
DEVICE int64_t block_sum(int64_t v) {
    return block_reduce(v, [](int64_t a, int64_t b) { return a + b; });
}

// Exclusive prefix sum of v over the block's threads.
DEVICE int64_t block_sum_before(int64_t v) {
    SHARED_ARRAY(int64_t, part, kWarps);
    const int64_t sum = warp_running_sum(v);
    if (threadIdx.x % 32 == 31) part[threadIdx.x / 32] = sum;
    __syncthreads();  // part is complete
    int64_t before = sum - v;
    for (unsigned w = 0; w < threadIdx.x / 32; w++) before += part[w];
    __syncthreads();  // all have read part: the next call may overwrite it
    return before;
}

// Where a running sum first exceeds `target`.
struct Place {
    int index;     // -1: nowhere
    int64_t rest;  // target less the sum of what is before index
};

// In weight [n], shared. Called by all threads, which all get the result.
DEVICE Place find_place(const int64_t* weight, int n, int64_t target) {
    SHARED(Place, found);
    const int n_own = (n + kThreads - 1) / kThreads, first = threadIdx.x * n_own;
    const int end = min(first + n_own, n);
    if (threadIdx.x == 0) found = {-1, 0};
    int64_t own = 0;
    for (int i = first; i < end; i++) own += weight[i];
    int64_t rest = target - block_sum_before(own);  // its barriers: found is -1 before it is set
    if (rest >= 0 && rest < own) {
        int i = first;
        while (i < end - 1 && rest >= weight[i]) rest -= weight[i++];
        found = {i, rest};
    }
    __syncthreads();  // found is set
    const Place place = found;
    __syncthreads();  // all have read found: the next call may set it
    return place;
}
// In the weights of a warp, kLane per lane, in order: the index, which all lanes get. Nowhere: the last.
DEVICE int find_in_warp(const int64_t (&weight)[kLane], int64_t target) {
    const int64_t own = weight[0] + weight[1] + weight[2] + weight[3], sum = warp_running_sum(own);
    const unsigned exceeding = __ballot_sync(~0u, sum > target);
    const int lane = exceeding ? __ffs(static_cast<int>(exceeding)) - 1 : 31;
    int64_t before = sum - own;
    int i = 0;
    UNROLL for (int j = 0; j < kLane - 1; j++) {
        before += weight[j];
        if (before <= target) i = j + 1;
    }
    return lane * kLane + __shfl_sync(~0u, i, lane);
}

// One row of z, with the statistics of its tiles.
template <class T>
struct ZRow {
    T* z;                    // [vocab_stride(n_vocab)]
    const TileStats* stats;  // [n_tile]
    int n_tile;
};

// The lowest id of the largest z.
template <class T>
DEVICE int find_argmax(const ZRow<T>& row) {
    uint64_t best = 0;
    for (int tile = threadIdx.x; tile < row.n_tile; tile += kThreads) {
        const TileStats s = row.stats[tile];
        best = max(best, uint64_t{order_key(s.max)} << 32 | ~static_cast<uint32_t>(s.argmax));
    }
    best = block_reduce(best, [](uint64_t a, uint64_t b) { return max(a, b); });
    return static_cast<int>(~static_cast<uint32_t>(best));
}

// The k largest of a row: larger keys than `key`, and of the equal ones those up to id `last`.
struct Cut {
    uint32_t key;
    int last;
};
DEVICE bool keeps(const Cut& cut, uint32_t key, int id) {
    return key > cut.key || (key == cut.key && id <= cut.last);
}

// The k-th largest of many keys; of the n_equal keys that equal it, n_kept are among the k largest.
struct Selected {
    uint32_t key;
    int n_kept, n_equal;
};

// Radix selection, 8 bits per round. for_each(f) calls f for this thread's keys; together the threads have at
// least k.
template <class ForEach>
DEVICE Selected select_largest(int k, ForEach for_each) {
    constexpr int kBins = 256;
    SHARED_ARRAY(int, count, kBins);
    SHARED(Selected, found);
    Selected s{0, k, 0};
    for (int shift = 24; shift >= 0; shift -= 8) {
        if (threadIdx.x < kBins) count[threadIdx.x] = 0;
        __syncthreads();  // counts are 0; all have read `found`
        for_each([&](uint32_t key) {
            if (key >> shift >> 8 == s.key) atomicAdd(&count[key >> shift & (kBins - 1)], 1);
        });
        __syncthreads();                                            // counts are complete
        const int bin = kBins - 1 - static_cast<int>(threadIdx.x);  // the largest keys first
        const int n = bin >= 0 ? count[bin] : 0, above = static_cast<int>(block_sum_before(n));
        if (above < s.n_kept && s.n_kept <= above + n)
            found = {s.key << 8 | static_cast<uint32_t>(bin), s.n_kept - above, n};
        __syncthreads();  // found is set
        s = found;
    }
    return s;
}

// Calls f(v, offset, tile) for those of this warp's tiles whose largest entry has a key of `low` or more, v
// being the lane's entries as stored, v + offset their z; skip(tile) for the warp's other tiles.
template <class T, class F, class Skip>
DEVICE void for_each_tile(const ZRow<T>& row, uint32_t low, F f, Skip skip) {
    for (int tile = threadIdx.x / 32; tile < row.n_tile; tile += kWarps) {
        const TileStats stats = row.stats[tile];
        if (order_key(stats.max) < low) {
            skip(tile);
            continue;
        }
        float v[kLane];
        unpack(v, load_lane(row.z + tile * kVocabTile));
        f(v, z_offset<T>(stats), tile);
    }
}

// The cut that leaves the k largest, 0 < k < n_vocab. scratch [n_tile], shared: overwritten.
template <class T>
DEVICE Cut find_cut(const ZRow<T>& row, int k, int64_t* scratch) {
    // The k-th largest entry is no less than the k-th largest tile maximum: tiles below that do not matter.
    uint32_t low = 0;
    if (k <= row.n_tile)
        low = select_largest(k, [&](auto f) {
                  for (int t = threadIdx.x; t < row.n_tile; t += kThreads) f(order_key(row.stats[t].max));
              }).key;
    const auto skip_nothing = [](int) {};
    const Selected s = select_largest(k, [&](auto f) {
        for_each_tile(
            row, low,
            [&](const float(&v)[kLane], float offset, int) {
                UNROLL for (int i = 0; i < kLane; i++) f(order_key(v[i] + offset));
            },
            skip_nothing);
    });
    if (s.n_kept == s.n_equal) return {s.key, INT32_MAX};

    // Not all of the equal ones are kept: find the id of the last that is.
    const bool first_lane = threadIdx.x % 32 == 0;
    for_each_tile(
        row, s.key,
        [&](const float(&v)[kLane], float offset, int tile) {
            int n = 0;
            UNROLL for (int i = 0; i < kLane; i++) n += order_key(v[i] + offset) == s.key;
            n = __reduce_add_sync(~0u, n);
            if (first_lane) scratch[tile] = n;
        },
        [&](int tile) {
            if (first_lane) scratch[tile] = 0;
        });
    __syncthreads();  // scratch is complete
    const Place place = find_place(scratch, row.n_tile, s.n_kept - 1);
    const int tile = max(place.index, 0);
    float v[kLane];
    int64_t equal[kLane];
    unpack(v, load_lane(row.z + tile * kVocabTile));
    UNROLL for (int i = 0; i < kLane; i++) equal[i] = order_key(v[i] + z_offset<T>(row.stats[tile])) == s.key;
    return {s.key, tile * kVocabTile + find_in_warp(equal, place.rest)};
}

// Over a row, fixed point: the sum of e = exp(z - max_z), and that of (z - max_z) e.
struct Sums {
    int64_t sum, weighted;
};

// Over all entries, from the statistics of the tiles. weight [n_tile], shared, becomes each tile's sum.
DEVICE Sums sum_all(const TileStats* stats, int n_tile, float max_z, int64_t* weight) {
    Sums own{0, 0};
    for (int tile = threadIdx.x; tile < n_tile; tile += kThreads) {
        const TileStats s = stats[tile];
        const float d = s.max - max_z, e = exponential<float>(d);
        weight[tile] = fixed_point(s.sum * e);
        own.sum += weight[tile];
        own.weighted += fixed_point((s.weighted + d * s.sum) * e);
    }
    return {block_sum(own.sum), block_sum(own.weighted)};  // barriers: weight is complete
}

// Over the entries that the cut keeps; weight likewise.
template <class T>
DEVICE Sums sum_kept(const ZRow<T>& row, const Cut& cut, float max_z, int64_t* weight) {
    Sums own{0, 0};
    const int lane = threadIdx.x % 32;
    for_each_tile(
        row, cut.key,
        [&](const float(&v)[kLane], float offset, int tile) {
            float sum = 0, weighted = 0;
            UNROLL for (int i = 0; i < kLane; i++) {
                if (!keeps(cut, order_key(v[i] + offset), tile * kVocabTile + lane * kLane + i)) continue;
                const float d = v[i] + (offset - max_z), e = exponential<float>(d);
                sum += e;
                weighted += d * e;
            }
            sum = warp_sum(sum);
            weighted = warp_sum(weighted);
            if (lane) return;
            weight[tile] = fixed_point(sum);
            own.sum += weight[tile];
            own.weighted += fixed_point(weighted);
        },
        [&](int tile) {
            if (lane == 0) weight[tile] = 0;
        });
    return {block_sum(own.sum), block_sum(own.weighted)};
}

// The smallest id whose running sum of probabilities exceeds u; n_vocab - 1 if there is none.
template <class T>
DEVICE int draw(const ZRow<T>& row, const Cut& cut, float u, int64_t sum, const int64_t* weight,
                int n_vocab) {
    const int64_t target = static_cast<int64_t>(double{u} * static_cast<double>(sum));
    const Place place = find_place(weight, row.n_tile, target);
    if (place.index < 0) return n_vocab - 1;
    // Within the tile, the draw falls on the same fraction of the sum as its entries make it here. That is
    // not weight[]: z has been rounded to T, and relative to the tile's own maximum entries keep more bits.
    const TileStats stats = row.stats[place.index];
    const float offset = z_offset<T>(stats);
    const int first = place.index * kVocabTile, lane = threadIdx.x % 32;
    float v[kLane];
    int64_t w[kLane];
    unpack(v, load_lane(row.z + first));
    UNROLL for (int i = 0; i < kLane; i++) {
        const bool kept = keeps(cut, order_key(v[i] + offset), first + lane * kLane + i);
        w[i] = kept ? fixed_point(exponential<float>(v[i] + (offset - stats.max))) : 0;
    }
    const int64_t total = warp_sum(w[0] + w[1] + w[2] + w[3]);
    const double share = static_cast<double>(place.rest) / static_cast<double>(weight[place.index]);
    const int64_t rest = static_cast<int64_t>(share * static_cast<double>(total));
    return first + find_in_warp(w, min(rest, total - 1));
}

// ---- from z to the probabilities that the next step is conditioned on

// shift [n_tile], shared: what is to be added to a tile's z, p = exp(z + shift) * scale; -inf where the whole
// tile becomes 0: the cut keeps nothing of it, or it has less than `least`, or its largest p is 0 as a T.
// live becomes 1 for the other tiles. Returns, fixed point, what tiles with less than `least` had.
template <class T>
DEVICE int64_t shift_tiles(float* shift, uint8_t* live, const ZRow<T>& row, const Cut& cut, float max_z,
                           float scale, float least) {
    int64_t dropped = 0;
    for (int tile = threadIdx.x; tile < row.n_tile; tile += kThreads) {
        const TileStats s = row.stats[tile];
        const float e = exponential<T>(s.max - max_z), mass = s.sum * e;  // of all entries, kept or not
        const bool cut_off = !keeps(cut, order_key(s.max), s.argmax), unlikely = mass < least;
        if (unlikely && !cut_off) dropped += fixed_point(mass);
        const bool zero = cut_off || unlikely || to_f32(from_f32<T>(e * scale)) == 0;
        shift[tile] = zero ? -INFINITY : z_offset<T>(s) - max_z;
        if (!zero) live[tile] = 1;
    }
    return block_sum(dropped);  // its barriers: shift is complete
}

// z = exp(z + shift) * scale where the cut keeps it, else 0.
template <class T>
DEVICE void store_probabilities(const ZRow<T>& row, const float* shift, const Cut& cut, float scale) {
    constexpr int BATCH = 4;  // loads in flight
    const int lane = threadIdx.x % 32;
    for (int first = threadIdx.x / 32 * BATCH; first < row.n_tile; first += kWarps * BATCH) {
        Lane<T> raw[BATCH];
        UNROLL for (int b = 0; b < BATCH; b++) {
            raw[b] = {};
            if (first + b < row.n_tile && shift[first + b] > -INFINITY)
                raw[b] = load_lane(row.z + (first + b) * kVocabTile);
        }
        UNROLL for (int b = 0; b < BATCH; b++) {
            const int tile = first + b;
            if (tile >= row.n_tile) break;
            float v[kLane], p[kLane];
            unpack(v, raw[b]);
            const float add = shift[tile];
            UNROLL for (int i = 0; i < kLane; i++) p[i] = exponential<T>(v[i] + add) * scale;
            if (cut.key > 0 && add > -INFINITY) {
                const float offset = z_offset<T>(row.stats[tile]);
                const int id = tile * kVocabTile + lane * kLane;
                UNROLL for (int i = 0; i < kLane; i++) {
                    if (!keeps(cut, order_key(v[i] + offset), id + i)) p[i] = 0;
                }
            }
            store_lane(row.z + tile * kVocabTile, p);
        }
    }
}

// ---- rows whose token is given, and choices

// Probabilities of a row, all 0.
template <class T>
DEVICE void clear_row(T* row, int n_tile) {
    const float zero[kLane] = {};
    for (int tile = threadIdx.x / 32; tile < n_tile; tile += kWarps)
        store_lane(row + tile * kVocabTile, zero);
}

// Row, statistics and live tile of a position whose token is certain.
template <class T>
DEVICE void give(T* row, uint8_t* live, RowStats* stats, int token, int n_tile) {
    clear_row(row, n_tile);
    __syncthreads();  // the row is 0
    if (threadIdx.x) return;
    row[token] = from_f32<T>(prob_scale<T>());
    live[token / kVocabTile] = 1;
    *stats = {0, token, token, 0, 0};
}

// All rows of a choice, as sample_choice() of sampler.h: option o has the softmax of the sum of its tokens'
// z. z, tile_stats, stats as those of sample(), from the choice's first row on.
template <class T>
DEVICE void choose(T* z, const TileStats* tile_stats, uint8_t* live, RowStats* stats,
                   const GivenTokens::Span& choice, const int32_t* options, float u, int n_tile) {
    static_assert(kMaxOptions <= kThreads, "a thread has an option");
    SHARED_ARRAY(double, score, kMaxOptions);
    SHARED_ARRAY(float, prob, kMaxOptions);
    const int o = threadIdx.x, n = choice.n_option, length = choice.length;
    const int64_t stride = int64_t{n_tile} * kVocabTile;
    if (o < n) {
        double sum = 0;
        for (int i = 0; i < length; i++) {
            const int token = options[o * length + i];
            sum += to_f32(z[i * stride + token]) +
                   z_offset<T>(tile_stats[int64_t{i} * n_tile + token / kVocabTile]);
        }
        score[o] = sum;
    }
    __syncthreads();  // scores are complete; all have read z, which is cleared next
    for (int i = 0; i < length; i++) clear_row(z + i * stride, n_tile);
    if (o == 0) {
        int best = 0, drawn = 0;
        for (int k = 1; k < n; k++)
            if (score[k] > score[best]) best = k;
        double sum = 0, weighted = 0;
        const double max_score = score[best];
        for (int k = 0; k < n; k++) {
            const double d = score[k] - max_score;
            score[k] = exp(d);
            sum += score[k];
            weighted += d * score[k];
        }
        for (double before = score[0]; drawn + 1 < n && before <= u * sum; before += score[drawn]) drawn++;
        for (int k = 0; k < n; k++) prob[k] = static_cast<float>(score[k] / sum);
        const float entropy = static_cast<float>(fmax(log(sum) - weighted / sum, 0.0) / length);
        for (int i = 0; i < length; i++)
            stats[i] = {entropy, options[best * length + i], options[drawn * length + i],
                        static_cast<float>(-log(sum) / length), 0};
    }
    __syncthreads();  // rows are 0, prob is complete
    if (o >= n) return;
    for (int i = 0; i < length; i++) {  // of the options with the same token at i, the first adds up all
        const int token = options[o * length + i];
        float sum = 0;
        bool first = true;
        for (int k = 0; k < n; k++) {
            if (options[k * length + i] != token) continue;
            first = first && k >= o;
            sum += prob[k];
        }
        if (!first) continue;
        z[i * stride + token] = from_f32<T>(sum * prob_scale<T>());
        live[token / kVocabTile] = 1;
    }
}

}  // namespace

// sample: p = softmax(z) of a row, over its top_k largest z if that is asked for; H = ln s - w / s, s and w
// the sums of e^d and d e^d, d = z - max z; the argmax; the smallest v with cumsum(p)[v] > u; z becomes
// p * prob_scale<T>(), but 0 for those that are not among the self_cond_top_k largest, and in tiles that have
// less than self_cond_drop / n_tile of the row: together less than self_cond_drop. Rows whose token is given
// have it for certain; the first row of a choice does all of its rows.
//   rows  [n_canvas]
//   z     [n_canvas, vocab_stride(n_vocab)]  in, as lm_head() leaves it; out, p
//   live  [n_vocab_tile(n_vocab)]  becomes 1 where a p is not 0
//   stats [n_canvas, n_vocab_tile(n_vocab)]
//   given see GivenTokens; read if state->has_given
// Tile:   a row per block; a warp takes the 128 entries of a TileStats at a time, 4 per lane in one load.
// Launch: grid n_canvas, 512 threads.
// Shared: 8 bytes per vocabulary tile, 16 KiB for 262144: its weight; later, in 4 of them, what is added to
//         z.
// Why:    two blocks an SM hold 256 rows in one wave. Sums and the draw's tile come from the statistics, so
//         that without top-k z is read once, and not at all in tiles that become 0. A cut looks only at tiles
//         that reach the k-th largest tile maximum, k of them but for ties.
// Maths:  exp float32 (fast for F16 outputs), sums float32 in a tile, int64 over tiles; n_vocab up to 2^20.
// Check:  tests/test_sample.cpp against sample_row() and keep_largest().
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    sample_kernel(RowStats* rows, T* z, uint8_t* live, const TileStats* stats, int n_vocab,
                  const GivenTokens* given, const LoopState* state) {
    wait_for_last_launch();
    SHARED_DYNAMIC(int64_t, weight);  // [n_tile]
    const int n_tile = n_vocab_tile(n_vocab), canvas_row = blockIdx.x;
    const ZRow<T> row{z + int64_t{canvas_row} * vocab_stride(n_vocab), stats + int64_t{canvas_row} * n_tile,
                      n_tile};
    const SamplerConfig& config = state->sampler;
    const float u =
        random_uniform(random_word(state->seed, canvas_row, state->step, state->canvas, RandomStream::Draw));
    const int token = state->has_given ? given->tokens[canvas_row] : GivenTokens::kFree;
    if (token >= 0) return give(row.z, live, rows + canvas_row, token, n_tile);
    if (token != GivenTokens::kFree) {
        const GivenTokens::Span choice = given->choices[-2 - token];
        if (choice.begin == canvas_row)
            choose(row.z, row.stats, live, rows + canvas_row, choice, given->options + choice.option, u,
                   n_tile);
        return;
    }

    const int argmax = find_argmax(row);
    const float max_z = row.stats[argmax / kVocabTile].max;
    if (threadIdx.x == 0) rows[canvas_row].argmax = argmax;

    // Entropy and draw, over the top_k largest entries.
    Sums sums = sum_all(row.stats, n_tile, max_z, weight), entropy_sums = sums;
    Cut cut{0, INT32_MAX};  // keeps all: no entry has key 0
    const int top_k = step_top_k(config, state->step);
    const bool is_cut = top_k > 0 && top_k < n_vocab;
    if (is_cut) {
        cut = find_cut(row, top_k, weight);
        sums = sum_kept(row, cut, max_z, weight);
        if (!config.top_k_tail_correction) entropy_sums = sums;
    }
    if (threadIdx.x == 0) {
        const double s = static_cast<double>(entropy_sums.sum) * 0x1p-40;
        const double entropy = log(s) - static_cast<double>(entropy_sums.weighted) * 0x1p-40 / s;
        rows[canvas_row].entropy = fmaxf(static_cast<float>(entropy), 0.0f);
        rows[canvas_row].log_prob = -logf(from_fixed(sums.sum));  // the largest has e^0
    }
    const float scale = prob_scale<T>() / from_fixed(sums.sum);
    const int drawn = draw(row, cut, u, sums.sum, weight, n_vocab);
    if (threadIdx.x == 0) rows[canvas_row].drawn = drawn;

    // What the next step is conditioned on: of these entries, the self_cond_top_k largest.
    const int keep = config.self_cond_top_k;
    if (keep > 0 && keep < (is_cut ? top_k : n_vocab)) cut = find_cut(row, keep, weight);

    __syncthreads();  // all have read weight, whose place `shift` takes, and z, which is overwritten
    float* const shift = reinterpret_cast<float*>(weight);
    constexpr int kBits = sizeof(T) == 4 ? 24 : 11;  // of T's significand
    const float least = soft_drop(config, kBits) / static_cast<float>(n_tile) * from_fixed(sums.sum);
    const int64_t dropped = shift_tiles(shift, live, row, cut, max_z, scale, least);
    if (threadIdx.x == 0) rows[canvas_row].dropped = from_fixed(dropped) / from_fixed(sums.sum);
    store_probabilities(row, shift, cut, scale);
}

template <class T>
void sample(Stream stream, RowStats* rows, T* z, uint8_t* live, const TileStats* stats, int n_canvas,
            int n_vocab, const GivenTokens* given, const LoopState* state) {
    require(n_canvas >= 1 && n_vocab >= 1 && n_vocab <= kMaxVocab, "bug: sample() has a wrong shape");
    const size_t shared_bytes = n_vocab_tile(n_vocab) * sizeof(int64_t);
    EASEL_LAUNCH(sample_kernel<T>, n_canvas, kThreads, shared_bytes, stream, rows, z, live, stats, n_vocab,
                 given, state);
}

// probabilities: probs = softmax(logits / temperature) * prob_scale<T>()
//   probs  [n_canvas, vocab_stride(n_vocab)]  0 past n_vocab
//   live   [n_vocab_tile(n_vocab)]  becomes 1
//   logits [n_canvas, n_vocab] float32
// Tile:   a row per block, entry i by thread i % 512.
// Launch: grid n_canvas, 512 threads.
// Shared: a number per warp.
// Why:    for single calls with logits from outside: plain.
// Maths:  float32, the sum in double in a fixed order.
// Check:  tests/test_sample.cpp against sample_row().
template <class T>
__global__ void __launch_bounds__(kThreads)
    probabilities_kernel(T* probs, uint8_t* live, const float* logits, float temperature, int n_vocab) {
    wait_for_last_launch();
    const int n_stride = vocab_stride(n_vocab);
    if (blockIdx.x == 0)
        for (int tile = threadIdx.x; tile < n_vocab_tile(n_vocab); tile += kThreads) live[tile] = 1;
    const float* x = logits + int64_t{blockIdx.x} * n_vocab;
    T* p = probs + int64_t{blockIdx.x} * n_stride;
    float max_z = -INFINITY;
    for (int i = threadIdx.x; i < n_vocab; i += kThreads) max_z = fmaxf(max_z, x[i] / temperature);
    max_z = block_reduce(max_z, [](float a, float b) { return fmaxf(a, b); });
    double sum = 0;
    for (int i = threadIdx.x; i < n_vocab; i += kThreads) sum += expf(x[i] / temperature - max_z);
    sum = block_reduce(sum, [](double a, double b) { return a + b; });
    const float scale = static_cast<float>(prob_scale<T>() / sum);
    for (int i = threadIdx.x; i < n_stride; i += kThreads)
        p[i] = from_f32<T>(i < n_vocab ? exponential<T>(x[i] / temperature - max_z) * scale : 0.0f);
}

template <class T>
void probabilities(Stream stream, T* probs, uint8_t* live, const float* logits, float temperature,
                   int n_canvas, int n_vocab) {
    require(n_canvas >= 1 && n_vocab >= 1 && temperature > 0,
            "bug: probabilities() has a wrong shape or temperature");
    EASEL_LAUNCH(probabilities_kernel<T>, n_canvas, kThreads, 0, stream, probs, live, logits, temperature,
                 n_vocab);
}

template void sample(Stream, RowStats*, F16*, uint8_t*, const TileStats*, int, int, const GivenTokens*,
                     const LoopState*);
template void sample(Stream, RowStats*, float*, uint8_t*, const TileStats*, int, int, const GivenTokens*,
                     const LoopState*);
template void probabilities(Stream, F16*, uint8_t*, const float*, float, int, int);
template void probabilities(Stream, float*, uint8_t*, const float*, float, int, int);

}  // namespace easel
