// reference.cpp: the CPU backend. It is the specification of the forward pass (SPEC section 2) and of the
// loop (section 3) in float32, one function per box, and the oracle of the device code. Created by the
// engine.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "backend.h"
#include "check.h"
#include "float_tiles.h"
#include "gemm.h"
#include "kv_cache.h"
#include "memory_plan.h"
#include "parallel.h"
#include "request_checks.h"
#include "vmath.h"

namespace easel {

namespace {

using Floats = std::vector<float>;

enum class Mask {
    Causal,  // encode: a token sees itself and what is before it, on sliding layers only the window
    Canvas,  // denoise: every row sees the prefix (on sliding layers its last window - 1 rows) and the whole
             // canvas
};

// cos and sin of every token's angles, [n_token, head_dim / 2].
struct Rotation {
    Floats cos, sin;
};

// Buffers of one pass over n tokens; sizes in floats.
struct Scratch {
    Floats x, h, a;                    // [n, n_embd]: residual stream, after attention, a normed input
    Floats q, k, v, o;                 // [n, n_head or n_head_kv, head_dim]
    Floats gate, up, branch, experts;  // [n, n_ff] twice, [n, n_embd] twice
    Floats router;                     // [n, n_expert]
    std::vector<int> chosen;           // [n, n_expert_used] expert numbers
    Floats weight;                     // the same: their weights
    Floats slot_x, slot_gate, slot_up, slot_out;  // a row per (token, expert) pair, grouped by expert
    Rotation rotation, rotation_swa;              // of global and of sliding layers
};

// out = x / sqrt(mean(x^2) + eps) * w, statistics in double; w may be null (no weight). out may be x.
void rms_norm(float* out, const float* x, const float* w, int64_t n, float eps) {
    const double sum = sum_of(n, [x](int64_t i) { return double{x[i]} * x[i]; });
    const float scale = static_cast<float>(1 / std::sqrt(sum / static_cast<double>(n) + eps));
    if (w)
        for (int64_t i = 0; i < n; i++) out[i] = x[i] * scale * w[i];
    else
        for (int64_t i = 0; i < n; i++) out[i] = x[i] * scale;
}

// The same for every row of x [n_row, n]. An empty w: no weight.
void rms_norm_rows(Floats& out, const Floats& x, const Floats& w, int64_t n, float eps) {
    out.resize(x.size());
    parallel_for(static_cast<int64_t>(x.size()) / n, [&](int64_t t) {
        rms_norm(out.data() + t * n, x.data() + t * n, w.empty() ? nullptr : w.data(), n, eps);
    });
}

// NeoX pairs (i, i + n/2), in place; cos, sin [n / 2].
void rope(float* x, const float* cos, const float* sin, int n) {
    for (int i = 0; i < n / 2; i++) {
        const float a = x[i], b = x[i + n / 2];
        x[i] = a * cos[i] - b * sin[i];
        x[i + n / 2] = b * cos[i] + a * sin[i];
    }
}

// Angles pos * theta^(-2i / head_dim) / freqs[i], in double: positions reach 262143. An empty freqs: all 1.
Rotation make_rotation(int pos, int n_token, int head_dim, double theta, const Floats& freqs) {
    const int half = head_dim / 2;
    Rotation r{Floats(size_t(n_token) * half), Floats(size_t(n_token) * half)};
    for (int i = 0; i < half; i++) {
        const double freq = std::pow(theta, -2.0 * i / head_dim) / (freqs.empty() ? 1.0 : double{freqs[i]});
        for (int t = 0; t < n_token; t++) {
            r.cos[size_t(t) * half + i] = static_cast<float>(std::cos((pos + t) * freq));
            r.sin[size_t(t) * half + i] = static_cast<float>(std::sin((pos + t) * freq));
        }
    }
    return r;
}

Rows rows(const Floats& x, int64_t n) {
    return {x.data(), static_cast<int64_t>(x.size()) / n, n};
}

// y = x W^T for all rows of x [n_token, w.n_col].
void linear(Floats& y, const Floats& x, const Matrix& w, CpuMath math) {
    const Rows in = rows(x, w.n_col);
    y.resize(in.n_row * w.n_row);
    gemm(y.data(), in, w, math);
}

// f(i) for every i < n, in pieces on all cores.
template <class F>
void for_all(size_t n, F f) {
    constexpr size_t kPiece = 4096;
    parallel_for(static_cast<int64_t>((n + kPiece - 1) / kPiece), [&](int64_t p) {
        const size_t end = std::min(n, (p + 1) * kPiece);
        for (size_t i = p * kPiece; i < end; i++) f(i);
    });
}

// x *= scale
void scale_all(Floats& x, float scale) {
    for_all(x.size(), [x = x.data(), scale](size_t i) { x[i] *= scale; });
}

// a += b
void add_all(Floats& a, const Floats& b) {
    for_all(a.size(), [a = a.data(), b = b.data()](size_t i) { a[i] += b[i]; });
}

// a = gelu(a) * b
void gelu_product(Floats& a, const Floats& b) {
    for_all(a.size(), [a = a.data(), b = b.data()](size_t i) { a[i] = gelu(a[i]) * b[i]; });
}

// out = D (gelu(G x) * (U x)) for all rows of x.
void mlp(Floats& out, const Floats& x, const Matrix& gate, const Matrix& up, const Matrix& down, Floats& g,
         Floats& u, CpuMath math) {
    const Rows in = rows(x, gate.n_col);
    g.resize(in.n_row * gate.n_row);
    u.resize(in.n_row * up.n_row);
    const GemmJob jobs[] = {{g.data(), gate.n_row, in, gate}, {u.data(), up.n_row, in, up}};
    gemm(jobs, math);
    gelu_product(g, u);
    linear(out, g, down, math);
}

// Weights of the softmax over one row of scores, in place.
void softmax(float* x, int64_t n) {
    const float max = largest(x, n);
    for (int64_t i = 0; i < n; i++) x[i] = exp_approx(x[i] - max);
    const float scale = static_cast<float>(1 / sum_of(n, [x](int64_t i) { return double{x[i]}; }));
    for (int64_t i = 0; i < n; i++) x[i] *= scale;
}

}  // namespace

class CpuBackend final : public Backend {
  public:
    CpuBackend(std::shared_ptr<const Model> model, int n_context, CpuMath math)
        : model_(std::move(model)),
          m_(*model_),
          c_(m_.config),
          n_context_(n_context),
          math_(math),
          cache_(c_, n_context) {}

    int n_cached() const override { return cache_.n_token(); }

    int truncate(int n_token) override {
        check_truncate(n_cached(), n_token);
        return cache_.truncate(n_token);
    }

    int n_context() const override { return n_context_; }
    int n_encode() const override { return kCpuEncode; }
    MemoryPlan plan() const override { return plan_cpu(m_, n_context_); }

    void encode(std::span<const int32_t> tokens) override {
        check_tokens(c_, tokens);
        check_append(n_cached(), tokens.size(), n_context_);
        for (size_t at = 0; at < tokens.size(); at += kCpuEncode) {
            const auto chunk = tokens.subspan(at, std::min<size_t>(kCpuEncode, tokens.size() - at));
            embed(chunk);  // no norm here: only the canvas has one
            layers(Mask::Causal, static_cast<int>(chunk.size()));
            cache_.commit(static_cast<int>(chunk.size()));
        }
    }

    void logits(const LogitsRequest& request, std::span<float> out) override {
        check_logits_request(c_, request, out.size());
        check_room(c_, n_cached(), 1, n_context_);
        Floats soft;
        if (!request.prev_logits.empty()) {
            Floats probs(request.prev_logits.begin(), request.prev_logits.end());
            parallel_for(c_.n_canvas, [&](int64_t t) {
                sample_row(row(probs, t), request.prev_temperature, 0, 0, false);
                drop_unlikely(row(probs, t), soft_drop({}, 24));
            });
            soft_embedding(soft, probs);
        }
        Floats z;
        denoise(request.canvas, soft, z);
        std::copy(z.begin(), z.end(), out.begin());
    }

    Answer generate(const GenerateParams& params, const FrameFn& on_frame) override {
        check_generate(c_, params, n_cached(), n_context_);
        Answer answer;
        std::vector<int32_t> commit;
        for (int canvas = 0; canvas < params.max_canvases; canvas++) {
            auto start = std::chrono::steady_clock::now();
            const auto lap = [&start] {
                const auto now = std::chrono::steady_clock::now();
                return std::chrono::duration<double, std::milli>(now - std::exchange(start, now)).count();
            };
            if (canvas > 0) encode(commit);
            answer.commit_ms += lap();
            const bool finished =
                denoise_canvas(params, canvas, on_frame, commit, answer.steps.emplace_back());
            answer.denoise_ms += lap();
            if (!finished) {
                answer.finish = Finish::Cancelled;
                return answer;
            }
            for (const RowStats& s : stats_) {
                if (std::find(params.end_tokens.begin(), params.end_tokens.end(), s.argmax) !=
                    params.end_tokens.end()) {
                    answer.finish = Finish::Stop;
                    return answer;
                }
                answer.tokens.push_back(s.argmax);
                answer.log_prob.push_back(s.log_prob);
                answer.entropy.push_back(s.entropy);
            }
        }
        return answer;
    }

  private:
    std::span<float> row(Floats& x, int64_t t) const {
        return {x.data() + t * c_.n_vocab, size_t(c_.n_vocab)};
    }

    // Denoises one canvas, from noise. The last step's argmax goes to `commit`, its statistics to stats_.
    // Returns false if the callback cancelled.
    bool denoise_canvas(const GenerateParams& params, int canvas_number, const FrameFn& on_frame,
                        std::vector<int32_t>& commit, int& n_step) {
        const SamplerConfig& s = params.sampler;
        const int n = c_.n_canvas;
        const auto random = [&](int position, int step, RandomStream stream) {
            return random_word(params.seed, position, step, canvas_number, stream);
        };
        const Given& given = params.given;
        const auto is_given = [&](int64_t i) { return !given.tokens.empty() && given.tokens[i] >= 0; };
        int n_free = 0;
        for (int i = 0; i < n; i++) n_free += !is_given(i);
        std::vector<int32_t> tokens(n);
        for (int i = 0; i < n; i++)
            tokens[i] =
                is_given(i) ? given.tokens[i] : random_token(random(i, 0, RandomStream::Init), c_.n_vocab);

        StopRule stop(s.stability, s.confidence);
        std::vector<RowStats>& stats = stats_;
        stats.resize(n);
        std::vector<uint8_t> chosen(n);  // 1: the position belongs to a choice (infill)
        for (const Choice& choice : given.choices)
            std::fill_n(chosen.begin() + choice.begin, choice.length(), uint8_t{1});
        // z: logits, then the probabilities that the next step is conditioned on
        Floats z, soft, entropy(n), log_prob(n);
        std::vector<uint8_t> accepted(n);
        commit.resize(n);
        for (int step = 0; step < s.max_steps; step++) {
            denoise(tokens, soft, z);
            const float t = temperature(s, step);
            const auto uniform = [&](int i) { return random_uniform(random(i, step, RandomStream::Draw)); };
            parallel_for(n, [&](int64_t i) {
                if (chosen[i]) return;
                if (is_given(i)) {
                    const std::span<float> p = row(z, i);
                    std::fill(p.begin(), p.end(), 0.0f);
                    p[given.tokens[i]] = 1;
                    stats[i] = {0, given.tokens[i], given.tokens[i], 0, 0};
                    return;
                }
                stats[i] = sample_row(row(z, i), t, uniform(static_cast<int>(i)), step_top_k(s, step),
                                      s.top_k_tail_correction);
                keep_largest(row(z, i), s.self_cond_top_k);
                stats[i].dropped = drop_unlikely(row(z, i), soft_drop(s, n_bit()));
            });
            for (const Choice& choice : given.choices)
                sample_choice(z, c_.n_vocab, choice, t, uniform(choice.begin), stats);
            float dropped = 0;
            for (int i = 0; i < n; i++) {
                dropped = std::max(dropped, stats[i].dropped);
                entropy[i] = stats[i].entropy;
                log_prob[i] = stats[i].log_prob;
                commit[i] = stats[i].argmax;
            }
            const float mean_entropy = accept(entropy, s.entropy_bound, n_free, accepted);
            for (int i = 0; i < n; i++)
                tokens[i] = accepted[i] ? (s.greedy ? stats[i].argmax : stats[i].drawn)
                                        : random_token(random(i, step, RandomStream::Renoise), c_.n_vocab);
            n_step = step + 1;
            const bool stable = stop.update(commit, mean_entropy);
            const bool last = stable || n_step == s.max_steps;
            if (on_frame && !on_frame({canvas_number, step, tokens, commit, entropy, log_prob, accepted,
                                       mean_entropy, t, dropped, last}))
                return false;
            if (last) break;
            soft_embedding(soft, z);
        }
        return true;
    }

    // x = E[token] * sqrt(n_embd)
    void embed(std::span<const int32_t> tokens) {
        const int64_t d = c_.n_embd;
        const float scale = std::sqrt(static_cast<float>(d));
        // A larger pass gets new buffers of exactly its size: grown ones would double, beyond the plan.
        if (tokens.size() * d > s_.x.capacity()) s_ = {};
        s_.x.resize(tokens.size() * d);
        parallel_for(static_cast<int64_t>(tokens.size()), [&](int64_t t) {
            float* x = s_.x.data() + t * d;
            to_float(m_.token_embd.type, m_.token_embd.data + tokens[t] * m_.token_embd.stride(), x, d);
            for (int64_t i = 0; i < d; i++) x[i] *= scale;
        });
    }

    // soft = (probs E) * sqrt(n_embd), probs [n_canvas, n_vocab]. A word that has probability 0 in every row
    // costs nothing.
    void soft_embedding(Floats& soft, const Floats& probs) const {
        soft.resize(size_t(c_.n_canvas) * c_.n_embd);
        gemm_transposed(soft.data(), rows(probs, c_.n_vocab), m_.token_embd,
                        std::numeric_limits<float>::min());
        const float scale = std::sqrt(static_cast<float>(c_.n_embd));
        scale_all(soft, scale);
    }

    // One denoise pass: canvas tokens and the soft embedding of the step before (empty: none) in, softcapped
    // logits [n_canvas, n_vocab] out. Leaves the KV cache as it was.
    void denoise(std::span<const int32_t> tokens, const Floats& soft, Floats& z) {
        embed(tokens);
        if (!soft.empty()) {  // the first step has no estimate to start from: its contribution is exactly 0
            rms_norm_rows(s_.a, soft, m_.self_cond_norm, c_.n_embd, c_.rms_eps);
            mlp(s_.branch, s_.a, m_.self_cond_gate, m_.self_cond_up, m_.self_cond_down, s_.gate, s_.up,
                math_);
            add_all(s_.x, s_.branch);
        }
        rms_norm_rows(s_.x, s_.x, {}, c_.n_embd, c_.rms_eps);
        layers(Mask::Canvas, c_.n_canvas);
        cache_.discard();
        rms_norm_rows(s_.a, s_.x, m_.output_norm, c_.n_embd, c_.rms_eps);
        linear(z, s_.a, m_.output, math_);
        parallel_for(c_.n_canvas, [&](int64_t t) {
            const float cap = c_.softcap;
            for (float& v : row(z, t)) v = cap * tanh_approx(v / cap);
        });
    }

    // All layers over the n tokens in s_.x, whose positions follow the cached ones.
    void layers(Mask mask, int n) {
        // Cleared here, not at the end: a pass that throws (out of memory) must not leave its angles behind.
        s_.rotation = s_.rotation_swa = {};
        for (const LayerShape& l : c_.layers) {
            Rotation& r = l.global ? s_.rotation : s_.rotation_swa;
            if (r.cos.empty())
                r = make_rotation(n_cached(), n, l.head_dim, l.global ? c_.rope_theta : c_.rope_theta_swa,
                                  l.global ? m_.rope_freqs : Floats());
        }
        for (int l = 0; l < c_.n_layer; l++) {
            const Layer& w = m_.layers[l];
            const bool keys_only = mask == Mask::Causal && l == c_.n_layer - 1;  // encode leaves K and V
            project_qkv(l, n, keys_only ? 0 : c_.n_head);
            if (keys_only) break;
            attention(l, mask, n);
            linear(s_.a, s_.o, w.o, math_);
            rms_norm_rows(s_.a, s_.a, w.post_attention_norm, c_.n_embd, c_.rms_eps);
            s_.h = s_.x;
            add_all(s_.h, s_.a);
            feed_forward(w);
            const float scale = mask == Mask::Canvas ? w.output_scale : w.enc_output_scale;
            for_all(s_.x.size(), [x = s_.x.data(), h = s_.h.data(), branch = s_.branch.data(),
                                  scale](size_t i) { x[i] = (h[i] + branch[i]) * scale; });
        }
    }

    // q, k and v of the n tokens in s_.x, normed and rotated; k and v go to the end of the cache. n_head 0:
    // no q.
    void project_qkv(int layer, int n, int n_head) {
        const Layer& w = m_.layers[layer];
        const int hd = w.shape.head_dim, n_kv = w.shape.n_head_kv, half = hd / 2;
        rms_norm_rows(s_.a, s_.x, w.attn_norm, c_.n_embd, c_.rms_eps);
        s_.k.resize(int64_t{n} * w.k.n_row);
        const Rows in = rows(s_.a, c_.n_embd);
        std::vector<GemmJob> jobs{{s_.k.data(), w.k.n_row, in, w.k}};
        if (n_head) {
            s_.q.resize(int64_t{n} * w.q.n_row);
            jobs.push_back({s_.q.data(), w.q.n_row, in, w.q});
        }
        if (w.v) {
            s_.v.resize(int64_t{n} * w.v.n_row);
            jobs.push_back({s_.v.data(), w.v.n_row, in, w.v});
        }
        gemm(jobs, math_);
        if (!w.v) s_.v = s_.k;  // the raw projection, before k's norm and rotation

        const Rotation& r = w.shape.global ? s_.rotation : s_.rotation_swa;
        cache_.extend(layer, n);
        parallel_for(n, [&](int64_t t) {
            const float *cos = r.cos.data() + t * half, *sin = r.sin.data() + t * half;
            for (int h = 0; h < n_head; h++) {
                float* q = s_.q.data() + (t * n_head + h) * hd;
                rms_norm(q, q, w.q_norm.data(), hd, c_.rms_eps);
                rope(q, cos, sin, hd);
            }
            for (int h = 0; h < n_kv; h++) {
                float *k = cache_.k(layer, h, n_cached()) + t * hd,
                      *v = cache_.v(layer, h, n_cached()) + t * hd;
                rms_norm(k, s_.k.data() + (t * n_kv + h) * hd, w.k_norm.data(), hd, c_.rms_eps);
                rope(k, cos, sin, hd);
                rms_norm(v, s_.v.data() + (t * n_kv + h) * hd, nullptr, hd, c_.rms_eps);
            }
        });
    }

    // o = softmax(q k^T) v for the n newest tokens [n, n_head, head_dim]. No 1/sqrt(head_dim): the
    // weight of q's norm contains it.
    void attention(int layer, Mask mask, int n) {
        const LayerShape& shape = m_.layers[layer].shape;
        constexpr int kBlock = kCpuRows;
        const int hd = shape.head_dim, group = c_.n_head / shape.n_head_kv,
                  n_block = (n + kBlock - 1) / kBlock;
        const int64_t stride = int64_t{c_.n_head} * hd;
        s_.o.resize(n * stride);
        parallel_for(int64_t{c_.n_head} * n_block, [&](int64_t task) {
            const int h = static_cast<int>(task / n_block), t0 = static_cast<int>(task % n_block) * kBlock;
            const int n_row = std::min(kBlock, n - t0), window = c_.window;
            // Keys [low, high): all that some row of the block sees. low is rounded down to a multiple of
            // kSpan, so that a row's sums are the same bits wherever its block, or its pass, begins.
            const auto oldest = [&](int pos) { return shape.global ? 0 : std::max(0, pos - (window - 1)); };
            const int first = mask == Mask::Canvas ? n_cached() : n_cached() + t0;
            const int low = oldest(first) / kSpan * kSpan;
            const int high = mask == Mask::Canvas ? n_cached() + n : n_cached() + t0 + n_row,
                      n_key = high - low;
            const auto keys = [&](const float* p) {
                return Matrix{Type::F32, reinterpret_cast<const uint8_t*>(p), n_key, hd};
            };
            thread_local Floats score;
            grow(score, size_t(n_row) * n_key, size_t(kBlock) * n_context_);
            const Rows q{s_.q.data() + t0 * stride + h * hd, n_row, stride};
            gemm_serial({score.data(), n_key, q, keys(cache_.k(layer, h / group, low))});
            for (int i = 0; i < n_row; i++) {
                float* s = score.data() + int64_t{i} * n_key;
                const int pos = mask == Mask::Canvas ? first : first + i;
                const int begin = oldest(pos) - low, end = mask == Mask::Canvas ? n_key : pos + 1 - low;
                std::fill(s, s + begin, 0.0f);
                softmax(s + begin, end - begin);
                std::fill(s + end, s + n_key, 0.0f);
            }
            gemm_transposed_serial(s_.o.data() + t0 * stride + h * hd, stride, {score.data(), n_row, n_key},
                                   keys(cache_.v(layer, h / group, low)));
        });
    }

    // branch = rms(dense(h) + experts(h)), each with norms of its own (SPEC 2.2).
    void feed_forward(const Layer& w) {
        const int64_t d = c_.n_embd;
        rms_norm_rows(s_.a, s_.h, w.ffn_norm, d, c_.rms_eps);
        mlp(s_.branch, s_.a, w.gate, w.up, w.down, s_.gate, s_.up, math_);
        rms_norm_rows(s_.branch, s_.branch, w.post_ffw_norm_1, d, c_.rms_eps);
        route(w);
        rms_norm_rows(s_.a, s_.h, w.pre_ffw_norm_2, d, c_.rms_eps);
        mix_experts(w);
        rms_norm_rows(s_.experts, s_.experts, w.post_ffw_norm_2, d, c_.rms_eps);
        add_all(s_.branch, s_.experts);
        rms_norm_rows(s_.branch, s_.branch, w.post_ffw_norm, d, c_.rms_eps);
    }

    // Experts and weights of every token, from h itself: softmax over the n_expert_used largest logits (ties:
    // the lower number), times the expert's own scale.
    void route(const Layer& w) {
        const int64_t d = c_.n_embd, n = static_cast<int64_t>(s_.h.size()) / d, k = c_.n_expert_used;
        const float scale = 1 / std::sqrt(static_cast<float>(d));
        rms_norm_rows(s_.a, s_.h, w.router_scale, d, c_.rms_eps);
        scale_all(s_.a, scale);
        linear(s_.router, s_.a, w.router, CpuMath::Float);  // rounding would tip near ties
        s_.chosen.resize(n * k);
        s_.weight.resize(n * k);
        parallel_for(n, [&](int64_t t) {
            thread_local std::vector<int> order;
            order.resize(c_.n_expert);
            const float* logit = s_.router.data() + t * c_.n_expert;
            std::iota(order.begin(), order.end(), 0);
            std::partial_sort(order.begin(), order.begin() + k, order.end(), [&](int a, int b) {
                return logit[a] > logit[b] || (logit[a] == logit[b] && a < b);
            });
            float* weight = s_.weight.data() + t * k;
            for (int64_t i = 0; i < k; i++) weight[i] = logit[order[i]];
            softmax(weight, k);
            for (int64_t i = 0; i < k; i++) {
                s_.chosen[t * k + i] = order[i];
                weight[i] *= w.down_exps_scale[order[i]];
            }
        });
    }

    // experts[t] = sum over its experts of weight * D_e (gelu(G_e a) * (U_e a)). The pairs are grouped by
    // expert, so that each expert's rows are read once a pass; the sum runs in the order of the router's
    // choice.
    void mix_experts(const Layer& w) {
        const int64_t d = c_.n_embd, ff = c_.n_ff_exp, k = c_.n_expert_used;
        const int64_t n = static_cast<int64_t>(s_.a.size()) / d, n_slot = n * k;
        std::vector<int64_t> first(c_.n_expert + 1, 0), slot(n_slot);
        for (int e : s_.chosen) first[e + 1]++;
        std::partial_sum(first.begin(), first.end(), first.begin());
        std::vector<int64_t> next(first.begin(), first.end() - 1);
        for (int64_t i = 0; i < n_slot; i++) slot[i] = next[s_.chosen[i]]++;

        s_.slot_x.resize(n_slot * d);
        s_.slot_gate.resize(n_slot * ff);
        s_.slot_up.resize(n_slot * ff);
        s_.slot_out.resize(n_slot * d);
        parallel_for(n, [&](int64_t t) {
            for (int64_t i = t * k; i < (t + 1) * k; i++)
                std::copy_n(s_.a.data() + t * d, d, s_.slot_x.data() + slot[i] * d);
        });
        std::vector<GemmJob> up, down;
        for (int e = 0; e < c_.n_expert; e++) {
            const int64_t at = first[e], n_row = first[e + 1] - at;
            const Rows in{s_.slot_x.data() + at * d, n_row, d},
                middle{s_.slot_gate.data() + at * ff, n_row, ff};
            up.push_back({s_.slot_gate.data() + at * ff, ff, in, w.gate_exps.expert(e)});
            up.push_back({s_.slot_up.data() + at * ff, ff, in, w.up_exps.expert(e)});
            down.push_back({s_.slot_out.data() + at * d, d, middle, w.down_exps.expert(e)});
        }
        gemm(up, math_);
        gelu_product(s_.slot_gate, s_.slot_up);
        gemm(down, math_);
        s_.experts.assign(n * d, 0.0f);
        parallel_for(n, [&](int64_t t) {
            float* y = s_.experts.data() + t * d;
            for (int64_t i = t * k; i < (t + 1) * k; i++) {
                const float* x = s_.slot_out.data() + slot[i] * d;
                for (int64_t j = 0; j < d; j++) y[j] += s_.weight[i] * x[j];
            }
        });
    }

    // The significant bits of activations, for soft_drop(). Int8 ones have fewer than the 11 of F16.
    int n_bit() const { return math_ == CpuMath::Int8 ? 11 : 24; }

    std::shared_ptr<const Model> model_;
    const Model& m_;
    const Config& c_;
    int n_context_;
    CpuMath math_;
    KvCache cache_;
    std::vector<RowStats> stats_;  // of the last step
    Scratch s_;
};

std::unique_ptr<Backend> make_cpu_backend(std::shared_ptr<const Model> model, int n_context, CpuMath math) {
    return std::make_unique<CpuBackend>(std::move(model), n_context, math);
}

}  // namespace easel
