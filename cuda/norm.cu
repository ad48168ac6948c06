// norm.cu: what happens to a row of the residual stream between two products: RMS norms, the additions before
// them, rotary positions, the way into the KV cache. Each kernel reads a row once and leaves it in every form
// that the next products want. Called by forward.cpp.
//
// Float32 rows begin at multiples of 16 bytes where n is a multiple of 4.
#include "check.h"
#include "ops.h"
#include "tile.h"

namespace easel {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

template <int V>
DEVICE float sum_of_squares(const Values<float, V>& x, float sum) {
    UNROLL for (int j = 0; j < V; j++) sum = fmaf(x.v[j], x.v[j], sum);
    return sum;
}
template <int V>
DEVICE Values<float, V> scaled(const Values<float, V>& x, float scale) {
    Values<float, V> out;
    UNROLL for (int j = 0; j < V; j++) out.v[j] = x.v[j] * scale;
    return out;
}
template <int V>
DEVICE Values<float, V> scaled(const Values<float, V>& x, float scale, const Values<float, V>& weight) {
    Values<float, V> out;
    UNROLL for (int j = 0; j < V; j++) out.v[j] = x.v[j] * scale * weight.v[j];
    return out;
}

DEVICE float rms_scale(float sum, int n, float eps) {
    return 1 / sqrtf(sum / static_cast<float>(n) + eps);
}
// The scale for a row of n values; `sum` is this thread's part of their squares. The same for every thread.
DEVICE float block_rms_scale(float sum, int n, float eps) {
    SHARED_ARRAY(float, part, kWarps);
    sum = warp_sum(sum);
    __syncthreads();  // every thread has read the parts of the previous call
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();  // the parts are complete
    float all = 0;
    UNROLL for (int w = 0; w < kWarps; w++) all += part[w];
    return rms_scale(all, n, eps);
}

// A row of a block: thread i has the V values from V i on, then those V kThreads further on, and so on.
template <int V>
DEVICE int first_value() {
    return static_cast<int>(threadIdx.x) * V;
}
template <int V>
constexpr int kStride = (kThreads * V);

// f(std::integral_constant<int, V>) with the widest V that rows of n values allow.
template <class F>
void with_width(int n, F f) {
    if (n % 4 == 0)
        f(std::integral_constant<int, 4>());
    else
        f(std::integral_constant<int, 1>());
}

}  // namespace

// ---- plain norms ------------------------------------------------------------------------------------------

namespace {

// out = x / sqrt(mean(x^2) + eps) * weight, SPEC 2
//   out    [n_row, n] T, row stride ldo
//   x      [n_row, n] float32
//   weight [n] or null: 1
// Tile:   a row per block.
// Launch: grid n_row, 256 threads.
// Shared: a partial sum per warp.
// Why:    the second read of a row comes from L1, so the row needs no place in shared memory.
// Maths:  float32; a thread's sum, a tree over a warp, the warps in order.
// Check:  tests/test_norm.cpp.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    rms_norm_kernel(T* out, int ldo, const float* x, const float* weight, int n, float eps) {
    wait_for_last_launch();
    x += int64_t{blockIdx.x} * n;
    out += int64_t{blockIdx.x} * ldo;
    float sum = 0;
    for (int i = first_value<V>(); i < n; i += kStride<V>) sum = sum_of_squares(load<V>(x + i), sum);
    const float scale = block_rms_scale(sum, n, eps);
    for (int i = first_value<V>(); i < n; i += kStride<V>) {
        const auto own = load<V>(x + i);
        store(out + i, weight ? scaled(own, scale, load<V>(weight + i)) : scaled(own, scale));
    }
}

}  // namespace

template <class T>
void rms_norm(Stream stream, T* out, const float* x, const float* weight, int n_row, int n, float eps) {
    with_width(n, [&](auto v) {
        EASEL_LAUNCH((rms_norm_kernel<T, v.value>), n_row, kThreads, 0, stream, out, padded(n), x, weight, n,
                     eps);
    });
}

namespace {

// x = (x + add) / rms(x + add), in place; at step 0 x / rms(x)
//   x, add [n_row, n] float32; add is not read at step 0
// Tile:   a row per block.
// Launch: grid n_row, 256 threads.
// Shared: a partial sum per warp.
// Why:    a thread writes x + add back to x and reads its own values again, so the row needs no place in
//         shared memory.
// Maths:  as rms_norm_kernel.
// Check:  tests/test_norm.cpp.
template <int V>
__global__ void __launch_bounds__(kThreads)
    canvas_norm_kernel(float* x, const float* add, int n, float eps, const LoopState* state) {
    wait_for_last_launch();
    x += int64_t{blockIdx.x} * n;
    add += int64_t{blockIdx.x} * n;
    const bool first_step = state->step == 0;
    float sum = 0;
    for (int i = first_value<V>(); i < n; i += kStride<V>) {
        auto own = load<V>(x + i);
        if (!first_step) {
            const auto more = load<V>(add + i);
            UNROLL for (int j = 0; j < V; j++) own.v[j] += more.v[j];
            store(x + i, own);
        }
        sum = sum_of_squares(own, sum);
    }
    const float scale = block_rms_scale(sum, n, eps);
    for (int i = first_value<V>(); i < n; i += kStride<V>) store(x + i, scaled(load<V>(x + i), scale));
}

}  // namespace

void canvas_norm(Stream stream, float* x, const float* add, int n_row, int n, float eps,
                 const LoopState* state) {
    with_width(n, [&](auto v) {
        EASEL_LAUNCH(canvas_norm_kernel<v.value>, n_row, kThreads, 0, stream, x, add, n, eps, state);
    });
}

// ---- into attention ---------------------------------------------------------------------------------------

namespace {

// cos_out, sin_out = cos, sin of (n_cached + row) * freq[i]
//   cos_out, sin_out [n_token, half] float32
//   freq             [half] double
// Tile:   an angle per thread.
// Launch: grid n_token half / 256, 256 threads.
// Shared: none.
// Why:    once per pass for all layers of a kind, so that its time matters little.
// Maths:  double: at position 262143 a float32 angle is off by up to 1/128.
// Check:  tests/test_norm.cpp.
__global__ void __launch_bounds__(kThreads)
    rotation_kernel(float* cos_out, float* sin_out, const double* freq, int n_token, int half,
                    const LoopState* state) {
    wait_for_last_launch();
    const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
    if (i >= n_token * half) return;
    const double angle = (state->n_cached + i / half) * freq[i % half];
    double sine, cosine;
    sincos(angle, &sine, &cosine);
    cos_out[i] = static_cast<float>(cosine);
    sin_out[i] = static_cast<float>(sine);
}

}  // namespace

void rotation(Stream stream, float* cos, float* sin, const double* freq, int n_token, int half,
              const LoopState* state) {
    EASEL_LAUNCH(rotation_kernel, (n_token * half + kThreads - 1) / kThreads, kThreads, 0, stream, cos, sin,
                 freq, n_token, half, state);
}

namespace {

// q_out = rope(rms(q) * q_norm); cache.k = rope(rms(k) * k_norm), cache.v = rms(v), by head. With a joint
// cache (KvLayer), the first 64 columns of each half rotate and no others: cache.k has only these, and q_out
// is multiplied by k_norm, too, in the others
//   p: see QkvNorm. q_out has rows of padded(n_head head_dim); cache [n_head_kv, n_slot, head_dim] T, of
//   which row t goes to slot (n_cached + t) % n_slot
// Tile:   a head of a token per warp: query heads, then K's, then V's.
// Launch: grid n_token (n_head + 2 n_head_kv) / 8, 256 threads.
// Shared: none.
// Why:    lane l has the pairs (i, i + head_dim / 2) for i = l, l + 32, ...: both halves of what the rotation
//         mixes are in its registers. Launch bounds of 2 blocks per SM: with more, ptxas saves registers by
//         issuing loads one after the other.
// Maths:  float32; the splits in order; a lane's sum, then a tree.
// Check:  tests/test_norm.cpp.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) qkv_norm_kernel(QkvNorm<T> p) {
    wait_for_last_launch();
    constexpr int N_PAIR = kMaxHeadDim / 2 / 32;  // of a lane, at most
    const int lane = threadIdx.x % 32, n = p.shape.head_dim, half = n / 2;
    const int n_head = p.shape.n_head, n_kv = p.shape.n_head_kv, n_job = n_head + 2 * n_kv;
    const int job = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
    const int row = job / n_job, head = job % n_job;
    if (row >= p.n_token) return;  // the whole warp

    // Where this warp's head lies and where it goes.
    const bool is_q = head < n_head, is_v = head >= n_head + n_kv, is_k = !is_q && !is_v;
    const int kv_head = is_v ? head - n_head - n_kv : head - n_head;
    const float* x = is_q ? p.q + (int64_t{row} * n_head + head) * n
                          : (is_v ? p.v : p.k) + (int64_t{row} * n_kv + kv_head) * n;
    const int64_t stride = int64_t{p.n_token} * (is_q ? n_head : n_kv) * n;  // to the next split
    const bool joint = p.cache.joint;
    const int64_t slot = (p.state->n_cached + row) % p.cache.n_slot;
    const int64_t kv_row = kv_head * int64_t{p.cache.n_slot} + slot;
    T* out = is_q   ? p.q_out + int64_t{row} * padded(n_head * n) + head * n
             : is_v ? p.cache.v + kv_row * n
                    : p.cache.k + kv_row * (joint ? kJointRotated : n);

    // Columns i and i + half, i = lane + 32 j, from the splits.
    float a[N_PAIR] = {}, b[N_PAIR] = {}, sum = 0;
    NO_UNROLL for (int s = 0; s < p.n_split; s++) {  // the loads of a split do not wait for each other
        UNROLL for (int j = 0; j < N_PAIR; j++) {
            const int i = lane + 32 * j;
            if (i < half) a[j] += x[s * stride + i], b[j] += x[s * stride + i + half];
        }
    }
    UNROLL for (int j = 0; j < N_PAIR; j++) sum = fmaf(b[j], b[j], fmaf(a[j], a[j], sum));
    const float scale = rms_scale(warp_sum(sum), n, p.eps);

    // Normed, weighted and rotated.
    const float* weight = is_q ? p.q_norm : p.k_norm;
    const float *cos = p.cos + int64_t{row} * half, *sin = p.sin + int64_t{row} * half;
    UNROLL for (int j = 0; j < N_PAIR; j++) {
        const int i = lane + 32 * j;
        if (i >= half) break;
        float lo = a[j] * scale, hi = b[j] * scale;
        const bool rotates = !joint || i < kJointRotated / 2;
        if (is_k && !rotates) continue;
        if (is_q && !rotates) {
            lo *= weight[i] * p.k_norm[i];
            hi *= weight[i + half] * p.k_norm[i + half];
        } else if (!is_v) {
            const float x0 = lo * weight[i], x1 = hi * weight[i + half], c = cos[i], s = sin[i];
            lo = x0 * c - x1 * s;
            hi = x1 * c + x0 * s;
        }
        const int at = joint && !is_k ? joint_place(i) : i;
        out[at] = from_f32<T>(lo);
        out[at + (joint && is_k ? kJointRotated / 2 : half)] = from_f32<T>(hi);
    }
}

}  // namespace

template <class T>
void qkv_norm(Stream stream, const QkvNorm<T>& p) {
    require(p.shape.head_dim % 2 == 0 && p.shape.head_dim <= kMaxHeadDim,
            "bug: head_dim is to be even and at most 512");
    require(!p.cache.joint || p.shape.head_dim == kJointDim, "bug: joint K and V are for heads of 512");
    require(p.n_token <= p.cache.n_slot, "bug: more tokens than the cache has slots");
    const int n_job = p.n_token * (p.shape.n_head + 2 * p.shape.n_head_kv);
    EASEL_LAUNCH(qkv_norm_kernel<T>, (n_job + kWarps - 1) / kWarps, kThreads, 0, stream, p);
}

// ---- between attention and the next layer -----------------------------------------------------------------

namespace {

// h = x + rms(o) * post_attention_norm; ffn_in = rms(h) * ffn_norm; expert_in = rms(h) * pre_ffw_norm_2;
// router_in = rms(h) * router_scale / sqrt(n)
//   p: see PostAttention. ffn_in, expert_in have rows of padded(n).
//   router_factor: 1 / sqrt(n)
// Tile:   a row per block.
// Launch: grid n_row, 256 threads.
// Shared: the row, first o, then h, 11 KiB at n = 2816; a thread reads what it has written, so no barrier
//         guards it. A partial sum per warp.
// Why:    three products want the same row under the same norm: one read of it. Launch bounds as in
//         qkv_norm_kernel.
// Maths:  as rms_norm_kernel; the splits of o in order.
// Check:  tests/test_norm.cpp.
template <class T, int V>
__global__ void __launch_bounds__(kThreads, 2)
    post_attention_kernel(PostAttention<T> p, float router_factor) {
    wait_for_last_launch();
    constexpr int N_FLIGHT = 4;  // loads in flight per thread
    SHARED_DYNAMIC(float, row);
    const int n = p.n;
    const int64_t at = int64_t{blockIdx.x} * n, at_out = int64_t{blockIdx.x} * padded(n);
    const int64_t stride = int64_t{gridDim.x} * n;  // to the next split

    // o, from its splits.
    float sum = 0;
    for (int i = first_value<V>(); i < n; i += kStride<V>) {
        Values<float, V> own{};
        NO_UNROLL for (int first = 0; first < p.n_split; first += N_FLIGHT) {
            Values<float, V> part[N_FLIGHT];
            UNROLL for (int f = 0; f < N_FLIGHT; f++) {
                part[f] = {};
                if (first + f < p.n_split) part[f] = load<V>(p.o + (first + f) * stride + at + i);
            }
            UNROLL for (int f = 0; f < N_FLIGHT; f++) UNROLL for (int j = 0; j < V; j++) own.v[j] +=
                part[f].v[j];
        }
        store(row + i, own);
        sum = sum_of_squares(own, sum);
    }
    const float o_scale = block_rms_scale(sum, n, p.eps);

    // h = x + rms(o) * post_attention_norm
    sum = 0;
    for (int i = first_value<V>(); i < n; i += kStride<V>) {
        auto own = scaled(load<V>(row + i), o_scale, load<V>(p.post_attention_norm + i));
        const auto residual = load<V>(p.x + at + i);
        UNROLL for (int j = 0; j < V; j++) own.v[j] += residual.v[j];
        store(p.h + at + i, own);
        store(row + i, own);
        sum = sum_of_squares(own, sum);
    }
    const float scale = block_rms_scale(sum, n, p.eps);

    // ffn_in, expert_in and router_in, each rms(h) times a weight.
    for (int i = first_value<V>(); i < n; i += kStride<V>) {
        const auto own = load<V>(row + i);
        store(p.ffn_in + at_out + i, scaled(own, scale, load<V>(p.ffn_norm + i)));
        store(p.expert_in + at_out + i, scaled(own, scale, load<V>(p.pre_ffw_norm_2 + i)));
        store(p.router_in + at + i, scaled(scaled(own, scale, load<V>(p.router_scale + i)), router_factor));
    }
}

}  // namespace

template <class T>
void post_attention(Stream stream, const PostAttention<T>& p) {
    with_width(p.n, [&](auto v) {
        EASEL_LAUNCH((post_attention_kernel<T, v.value>), p.n_row, kThreads, sizeof(float) * p.n, stream, p,
                     1 / sqrtf(static_cast<float>(p.n)));
    });
}

namespace {

// f1 = rms(dense) * post_ffw_norm_1; f2 = rms(sum_i weight[i] slot_out[slot_of[i]]) * post_ffw_norm_2;
// x = (h + rms(f1 + f2) * post_ffw_norm) * scale; next_in = rms(x) * next_norm
//   p: see LayerEnd. next_in has rows of padded(n).
// Tile:   a row per block.
// Launch: grid n_row, 256 threads.
// Shared: the row, in turn the experts' sum, f1 + f2, x; 11 KiB at n = 2816; a thread reads what it has
//         written, so no barrier guards it. The token's slots and weights; a partial sum per warp.
// Why:    the experts' outputs, dense and h are read, n_used + 2 rows, and all that is left of the layer is
//         done on the sum at once.
// Maths:  float32; the experts in the router's order, one fused multiply-add each.
// Check:  tests/test_norm.cpp.
template <class T, int V>
__global__ void __launch_bounds__(kThreads) layer_end_kernel(LayerEnd<T> p) {
    wait_for_last_launch();
    constexpr int N_FLIGHT = 8;  // loads in flight per thread
    SHARED_DYNAMIC(float, row);
    SHARED_ARRAY(const float*, expert_out, kMaxUsed);
    SHARED_ARRAY(float, expert_weight, kMaxUsed);
    const int thread = threadIdx.x, n = p.n, n_used = p.n_used;
    const int64_t at = int64_t{blockIdx.x} * n, at_out = int64_t{blockIdx.x} * padded(n);
    if (thread < n_used) {
        const int64_t pair = int64_t{blockIdx.x} * n_used + thread;
        expert_out[thread] = p.slot_out + int64_t{p.slot_of[pair]} * n;
        expert_weight[thread] = p.weight[pair];
    }
    __syncthreads();  // expert_out and expert_weight are complete

    // The experts' weighted sum, and the scales of both branches.
    float dense_sum = 0, mix_sum = 0;
    for (int i = first_value<V>(); i < n; i += kStride<V>) {
        const auto own_dense = load<V>(p.dense + at + i);  // in flight with the experts'
        Values<float, V> mix{};
        for (int first = 0; first < n_used; first += N_FLIGHT) {
            Values<float, V> part[N_FLIGHT];
            UNROLL for (int e = 0; e < N_FLIGHT; e++) {
                part[e] = {};
                if (first + e < n_used) part[e] = load<V>(expert_out[first + e] + i);
            }
            UNROLL for (int e = 0; e < N_FLIGHT; e++) {
                const float w = first + e < n_used ? expert_weight[first + e] : 0;
                UNROLL for (int j = 0; j < V; j++) mix.v[j] = fmaf(w, part[e].v[j], mix.v[j]);
            }
        }
        store(row + i, mix);
        mix_sum = sum_of_squares(mix, mix_sum);
        dense_sum = sum_of_squares(own_dense, dense_sum);
    }
    const float dense_scale = block_rms_scale(dense_sum, n, p.eps);
    const float mix_scale = block_rms_scale(mix_sum, n, p.eps);

    // f1 + f2 = rms(dense) * post_ffw_norm_1 + rms(mix) * post_ffw_norm_2
    float sum = 0;
    for (int i = first_value<V>(); i < n; i += kStride<V>) {
        auto own = scaled(load<V>(p.dense + at + i), dense_scale, load<V>(p.post_ffw_norm_1 + i));
        const auto f2 = scaled(load<V>(row + i), mix_scale, load<V>(p.post_ffw_norm_2 + i));
        UNROLL for (int j = 0; j < V; j++) own.v[j] += f2.v[j];
        store(row + i, own);
        sum = sum_of_squares(own, sum);
    }
    const float branch_scale = block_rms_scale(sum, n, p.eps);

    // x = (h + rms(f1 + f2) * post_ffw_norm) * scale
    sum = 0;
    for (int i = first_value<V>(); i < n; i += kStride<V>) {
        auto own = scaled(load<V>(row + i), branch_scale, load<V>(p.post_ffw_norm + i));
        const auto residual = load<V>(p.h + at + i);
        UNROLL for (int j = 0; j < V; j++) own.v[j] = (residual.v[j] + own.v[j]) * p.scale;
        store(p.x + at + i, own);
        store(row + i, own);
        sum = sum_of_squares(own, sum);
    }
    if (!p.next_norm) return;

    // next_in = rms(x) * next_norm
    const float scale = block_rms_scale(sum, n, p.eps);
    for (int i = first_value<V>(); i < n; i += kStride<V>)
        store(p.next_in + at_out + i, scaled(load<V>(row + i), scale, load<V>(p.next_norm + i)));
}

}  // namespace

template <class T>
void layer_end(Stream stream, const LayerEnd<T>& p) {
    require(p.n_used <= kMaxUsed, "bug: more experts a token than layer_end() has room for");
    with_width(p.n, [&](auto v) {
        EASEL_LAUNCH((layer_end_kernel<T, v.value>), p.n_row, kThreads, sizeof(float) * p.n, stream, p);
    });
}

template void rms_norm(Stream, F16*, const float*, const float*, int, int, float);
template void rms_norm(Stream, float*, const float*, const float*, int, int, float);
template void qkv_norm(Stream, const QkvNorm<F16>&);
template void qkv_norm(Stream, const QkvNorm<float>&);
template void post_attention(Stream, const PostAttention<F16>&);
template void post_attention(Stream, const PostAttention<float>&);
template void layer_end(Stream, const LayerEnd<F16>&);
template void layer_end(Stream, const LayerEnd<float>&);

}  // namespace easel
