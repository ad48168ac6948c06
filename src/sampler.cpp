// sampler.cpp: one row's distribution, acceptance and the stop rule (SPEC section 3). Called by the CPU loop.
#include "sampler.h"

#include <algorithm>
#include <numeric>

#include "check.h"
#include "vmath.h"

namespace easel {

void check_sampler(const SamplerConfig& c) {
    const auto finite = [](float x) { return std::isfinite(x); };
    require(c.max_steps >= 1 && c.max_steps <= 100000, "max steps is {}, expected 1 to 100000", c.max_steps);
    require(finite(c.t_min) && c.t_min >= 1e-3f && c.t_min <= 100, "t-min is {}, expected 0.001 to 100",
            c.t_min);
    require(finite(c.t_max) && c.t_max >= c.t_min && c.t_max <= 100,
            "t-max is {}, expected t-min ({}) to 100", c.t_max, c.t_min);
    require(finite(c.entropy_bound) && c.entropy_bound >= 0, "entropy bound is {}, expected 0 or more nats",
            c.entropy_bound);
    require(c.stability >= 0, "stability is {}, expected 0 or more steps", c.stability);
    require(finite(c.confidence) && c.confidence >= 0, "confidence is {}, expected 0 or more nats",
            c.confidence);
    require(c.top_k >= 0, "top-k is {}, expected 0 (all) or more", c.top_k);
    require((c.top_k_start > 0) == (c.top_k_end > 0) && c.top_k_start >= 0 && c.top_k_end >= 0,
            "top-k-start is {} and top-k-end {}, expected both or neither, 1 or more", c.top_k_start,
            c.top_k_end);
    require(c.self_cond_top_k >= 0, "self-cond-top-k is {}, expected 0 (all) or more", c.self_cond_top_k);
    require(
        (c.self_cond_drop >= 0 && c.self_cond_drop < 1) || c.self_cond_drop == SamplerConfig().self_cond_drop,
        "self-cond-drop is {}, expected 0 or more and less than 1", c.self_cond_drop);
}

// The k-th largest of x (k >= 1), and how many values equal to it belong to the k largest.
static std::pair<float, int> kth_largest(std::span<const float> x, int k) {
    std::vector<float> sorted(x.begin(), x.end());
    std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<>());
    const float threshold = sorted[k - 1];
    const auto above = std::count_if(x.begin(), x.end(), [&](float v) { return v > threshold; });
    return {threshold, k - static_cast<int>(above)};
}

// Calls drop(i) for every index that is not among the k largest values of x.
template <class Drop>
static void drop_small(std::span<const float> x, int k, Drop drop) {
    auto [threshold, n_equal] = kth_largest(x, k);
    for (size_t i = 0; i < x.size(); i++) {
        if (x[i] > threshold || (x[i] == threshold && n_equal-- > 0)) continue;
        drop(i);
    }
}

void keep_largest(std::span<float> probs, int k) {
    if (k <= 0 || k >= static_cast<int>(probs.size())) return;
    std::vector<float> copy(probs.begin(), probs.end());
    drop_small(copy, k, [&](size_t i) { probs[i] = 0; });
}

float drop_unlikely(std::span<float> probs, float drop) {
    const float least = drop / static_cast<float>(probs.size());
    const double dropped = sum_of(probs.size(), [&](size_t i) { return probs[i] < least ? probs[i] : 0.0f; });
    for (float& p : probs) p = p < least ? 0 : p;
    return static_cast<float>(dropped);
}

// x becomes exp(x - max), returned are sum and sum of (x - max) exp(x - max), in double.
static std::pair<double, double> exponentials(std::span<float> x, float max) {
    double sum = 0, weighted = 0;
    constexpr size_t kBlock = 256;  // float exponentials in a loop that vectorises, then exact sums
    float d[kBlock];
    for (size_t at = 0; at < x.size(); at += kBlock) {
        const size_t n = std::min(kBlock, x.size() - at);
        for (size_t i = 0; i < n; i++) d[i] = x[at + i] - max;
        for (size_t i = 0; i < n; i++) x[at + i] = exp_approx(d[i]);
        sum += sum_of(n, [&](size_t i) { return x[at + i]; });
        weighted += sum_of(n, [&](size_t i) { return double{d[i]} * x[at + i]; });
    }
    return {sum, weighted};
}

RowStats sample_row(std::span<float> x, float t, float u, int top_k, bool tail_correction) {
    const int n_vocab = static_cast<int>(x.size());
    for (float& v : x) v /= t;
    RowStats out{};
    const auto top = std::find(x.begin(), x.end(), largest(x.data(), x.size()));
    out.argmax = top == x.end() ? 0 : static_cast<int32_t>(top - x.begin());  // end: x[0] is NaN

    std::vector<int> dropped;
    if (top_k > 0 && top_k < n_vocab) {
        dropped.reserve(n_vocab - top_k);
        drop_small(x, top_k, [&](size_t i) { dropped.push_back(static_cast<int>(i)); });
    }
    auto [sum, weighted] = exponentials(x, x[out.argmax]);
    const double full_entropy = std::log(sum) - weighted / sum;
    double entropy = full_entropy;
    if (!dropped.empty()) {
        for (int i : dropped) x[i] = 0;
        sum = weighted = 0;
        for (float e : x) {
            if (e == 0) continue;
            sum += e;
            weighted += e * std::log(double{e});
        }
        if (!tail_correction) entropy = std::log(sum) - weighted / sum;
    }
    out.entropy = static_cast<float>(std::max(entropy, 0.0));
    out.log_prob = static_cast<float>(-std::log(sum));  // the largest has e^0

    out.drawn = n_vocab - 1;
    double cumulative = 0;
    const double target = u * sum;
    for (int v = 0; v < n_vocab; v++) {
        cumulative += x[v];
        if (cumulative > target) {
            out.drawn = v;
            break;
        }
    }
    const float scale = static_cast<float>(1 / sum);
    for (float& e : x) e *= scale;
    return out;
}

void sample_choice(std::span<float> logits, int n_vocab, const Choice& choice, float t, float u,
                   std::span<RowStats> stats) {
    const int length = choice.length(), n = static_cast<int>(choice.options.size());
    float* rows = logits.data() + int64_t{choice.begin} * n_vocab;
    std::vector<double> p(n, 0);
    for (int o = 0; o < n; o++)
        for (int i = 0; i < length; i++) p[o] += rows[int64_t{i} * n_vocab + choice.options[o][i]] / t;
    const int best = static_cast<int>(std::max_element(p.begin(), p.end()) - p.begin());
    const double max = p[best];
    double sum = 0, weighted = 0;
    for (double& x : p) {
        const double d = x - max;
        x = std::exp(d);
        sum += x;
        weighted += d * x;
    }
    int drawn = 0;
    for (double before = p[0]; drawn + 1 < n && before <= u * sum; before += p[drawn]) drawn++;
    const double entropy = std::max(std::log(sum) - weighted / sum, 0.0);
    std::fill_n(rows, int64_t{length} * n_vocab, 0.0f);
    for (int i = 0; i < length; i++) {
        stats[choice.begin + i] = {static_cast<float>(entropy / length), choice.options[best][i],
                                   choice.options[drawn][i], static_cast<float>(-std::log(sum) / length), 0};
        for (int o = 0; o < n; o++)
            rows[int64_t{i} * n_vocab + choice.options[o][i]] += static_cast<float>(p[o] / sum);
    }
}

float accept(std::span<const float> entropy, float bound, int n_free, std::span<uint8_t> accepted) {
    std::vector<int> order(entropy.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return entropy[a] < entropy[b]; });
    int64_t before = 0;
    const int64_t limit = entropy_fixed(std::min(bound, 1e5f));  // past any sum; keeps the integer in range
    for (int i : order) {
        accepted[i] = before <= limit;
        before += entropy_fixed(entropy[i]);
    }
    return static_cast<float>(entropy_nats(before) / std::max(n_free, 1));
}

bool StopRule::update(std::span<const int32_t> argmax, float mean_entropy) {
    held_ = std::equal(argmax.begin(), argmax.end(), last_.begin(), last_.end()) ? held_ + 1 : 0;
    last_.assign(argmax.begin(), argmax.end());
    return held_ >= stability_ && mean_entropy < confidence_;
}

}  // namespace easel
