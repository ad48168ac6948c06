// test_sampler.cpp: random numbers, one row's distribution, acceptance and the stop rule against plain
// restatements.
#include <algorithm>
#include <numeric>
#include <random>

#include "catch.h"
#include "check.h"
#include "sampler.h"

using namespace easel;

TEST_CASE("Philox gives the published known answer") {
    // Counter 0, key 0 (Salmon et al., SC 2011).
    CHECK(random_word(0, 0, 0, 0, RandomStream::Init) == 0x6627e8d5u);
    // Counter and key all ones, from the same table of known answers.
    CHECK(random_word(~uint64_t{0}, ~0u, ~0u, ~0u, static_cast<RandomStream>(~0u)) == 0x408f276du);
    CHECK(random_word(0x299f31d0'a4093822u, 0x243f6a88u, 0x85a308d3u, 0x13198a2eu,
                      static_cast<RandomStream>(0x03707344u)) == 0xd16cfe09u);
}

TEST_CASE("random tokens and uniforms stay in their range") {
    CHECK(random_token(0xffffffffu, 262144) == 262143);
    CHECK(random_token(0, 262144) == 0);
    CHECK(random_token(0x80000000u, 3) == 1);
    CHECK(random_uniform(0xffffffffu) < 1.0f);
    CHECK(random_uniform(0xffu) == 0.0f);
    CHECK(random_uniform(0x100u) == 0x1p-24f);
}

TEST_CASE("the temperature falls from t_max in even steps") {
    SamplerConfig c;
    CHECK(temperature(c, 0) == 0.8f);
    CHECK(temperature(c, 47) == Approx(0.4 + 0.4 / 48).epsilon(1e-6));
    c.max_steps = 1;
    CHECK(temperature(c, 0) == 0.8f);
}

TEST_CASE("top-k is annealed from start to end") {
    SamplerConfig c;
    CHECK(step_top_k(c, 5) == 0);
    c.top_k = 7;
    CHECK(step_top_k(c, 5) == 7);
    c.top_k_start = 100, c.top_k_end = 6, c.max_steps = 48;
    CHECK(step_top_k(c, 0) == 100);
    CHECK(step_top_k(c, 47) == 6);
    c.max_steps = 1;
    CHECK(step_top_k(c, 0) == 100);
}

namespace {

// What sample_row() must return, in double and in the most literal way.
struct Expected {
    std::vector<double> p;
    double entropy = 0;
    int argmax = 0, drawn = 0;
};

Expected expect_row(const std::vector<float>& logits, float t, float u, int top_k, bool tail) {
    const int n = static_cast<int>(logits.size());
    std::vector<float> z(logits);
    for (float& v : z) v /= t;
    std::vector<int> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return z[a] > z[b]; });
    const auto distribution = [&](int k) {
        std::vector<double> p(n, 0.0);
        double sum = 0;
        for (int i = 0; i < k; i++) sum += p[order[i]] = std::exp(double{z[order[i]]} - z[order[0]]);
        for (double& v : p) v /= sum;
        return p;
    };
    const auto entropy = [](const std::vector<double>& p) {
        double h = 0;
        for (double v : p)
            if (v > 0) h -= v * std::log(v);
        return h;
    };
    Expected e;
    e.p = distribution(top_k > 0 ? std::min(top_k, n) : n);
    e.entropy = entropy(tail ? distribution(n) : e.p);
    e.argmax = order[0];
    e.drawn = n - 1;
    double sum = 0;
    for (int v = n - 1; v >= 0; v--) sum += e.p[v];  // about 1
    double cumulative = 0;
    for (int v = 0; v < n; v++) {
        cumulative += e.p[v];
        if (cumulative > u * sum) {
            e.drawn = v;
            break;
        }
    }
    return e;
}

}  // namespace

TEST_CASE("sample_row agrees with the definition") {
    std::mt19937 random(3);
    std::normal_distribution<float> normal(0, 4);
    for (int n : {2, 3, 31, 257, 5000})
        for (int k : {0, 1, 2, n / 2, n, n + 5})
            for (bool tail : {false, true}) {
                std::vector<float> logits(n);
                for (float& v : logits) v = std::round(normal(random) * 8) / 8;  // with ties
                const float t = 0.4f + 0.01f * static_cast<float>(n % 40);
                const float u = random_uniform(static_cast<uint32_t>(random()));
                const Expected e = expect_row(logits, t, u, k, tail);
                std::vector<float> p(logits);
                const RowStats s = sample_row(p, t, u, k, tail);
                INFO("n " << n << " k " << k);
                CHECK(s.argmax == e.argmax);
                CHECK(s.drawn == e.drawn);
                CHECK(std::fabs(s.entropy - e.entropy) < 1e-5);
                double worst = 0;
                for (int i = 0; i < n; i++) worst = std::max(worst, std::fabs(p[i] - e.p[i]));
                CHECK(worst < 1e-6);  // float probabilities: 2^-24 and the exponential's 2e-7
            }
}

TEST_CASE("a distribution on one token has no entropy, whatever the draw") {
    std::vector<float> logits(1000, -30.0f);
    logits[400] = 30.0f;
    const RowStats s = sample_row(logits, 0.4f, 0.999999f, 0, false);
    CHECK(s.argmax == 400);
    CHECK(s.drawn == 400);
    CHECK(s.entropy == 0.0f);
    CHECK(logits[400] == 1.0f);
}

TEST_CASE("a far-off tail over a large vocabulary still counts in the entropy") {
    // One logit of 0 and 262143 of -20.8286: the exact entropy is 0.005148811 nats, just above the default
    // threshold; sums in float would lose it.
    for (int peak : {0, 14937, 262143}) {
        std::vector<float> logits(262144, -20.82862663269043f);
        logits[peak] = 0;
        CHECK(sample_row(logits, 1.0f, 0.5f, 0, false).entropy == Approx(0.005148811).epsilon(1e-5));
    }
}

TEST_CASE("keep_largest keeps exactly k, the lowest ids among equals") {
    std::vector<float> p{0.1f, 0.2f, 0.1f, 0.4f, 0.1f, 0.1f};
    keep_largest(p, 3);
    CHECK(p == std::vector<float>{0.1f, 0.2f, 0, 0.4f, 0, 0});
    keep_largest(p, 0);
    CHECK(p[3] == 0.4f);
    keep_largest(p, 6);
    CHECK(p[3] == 0.4f);
}

TEST_CASE("drop_unlikely drops what is below the limit") {
    std::vector<float> p{0.125f, 0.0625f, 0.3125f, 0.5f};  // a quarter of 0.5: 0.125 is not below it
    CHECK(drop_unlikely(p, 0.5f) == 0.0625f);
    CHECK(p == std::vector<float>{0.125f, 0, 0.3125f, 0.5f});
}

TEST_CASE("what has no probability is not drawn, though the draw is 0") {
    std::vector<float> logits{0, 5, 4};
    CHECK(sample_row(logits, 1, 0, 2, false).drawn == 1);
    std::vector<float> rows{0, 2000};
    std::vector<RowStats> stats(1);
    sample_choice(rows, 2, {0, {{0}, {1}}}, 1, 0, stats);
    CHECK(stats[0].drawn == 1);
}

TEST_CASE("acceptance agrees with the definition") {
    std::mt19937 random(5);
    std::exponential_distribution<float> exponential(8);
    for (int round = 0; round < 300; round++) {
        const int n = round % 7 == 0 ? 1 : 1 + static_cast<int>(random() % 256);
        std::vector<float> h(n);
        for (float& v : h)
            v = round % 3 ? exponential(random) : std::round(exponential(random) * 50) / 64;  // ties
        std::vector<uint8_t> accepted(n, 9);
        const float mean = accept(h, 0.1f, static_cast<int>(h.size()), accepted);

        std::vector<int> order(n);
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int x, int y) { return h[x] < h[y]; });
        double before = 0;
        int count = 0;
        for (int i : order) {
            if (std::fabs(before - 0.1f) > 1e-9) CHECK(accepted[i] == (before <= 0.1f));
            count += accepted[i];
            before += h[i];
        }
        CHECK(accepted[order[0]] == 1);
        CHECK(count == std::count(accepted.begin(), accepted.end(), 1));
        CHECK(mean == Approx(before / n).epsilon(1e-6));
    }
}

TEST_CASE("acceptance at the edges") {
    std::vector<uint8_t> accepted(3);
    accept(std::vector<float>{5, 5, 5}, 0.0f, 3, accepted);
    CHECK(accepted == std::vector<uint8_t>{1, 0, 0});  // the first always is
    accept(std::vector<float>{0, 0, 0}, 0.0f, 3, accepted);
    CHECK(accepted == std::vector<uint8_t>{1, 1, 1});  // sums of exactly the bound are accepted
    accept(std::vector<float>{12, 12, 12}, 1e30f, 3, accepted);
    CHECK(accepted == std::vector<uint8_t>{1, 1, 1});
    CHECK(accept(std::vector<float>{0, 0, 0}, 0.1f, 0, accepted) == 0);  // all of it is given
    // What is no number adds nothing.
    for (const float x : {NAN, INFINITY, -INFINITY}) CHECK(entropy_fixed(x) == 0);
    CHECK(accept(std::vector<float>{NAN, NAN, NAN}, 0.1f, 3, accepted) == 0);
}

TEST_CASE("a canvas ends when it has held still and is confident") {
    const std::vector<int32_t> a{1, 2}, b{1, 3};
    StopRule one(1, 0.005f);
    CHECK_FALSE(one.update(a, 0.0f));  // the first step never counts as stable
    CHECK(one.update(a, 0.0049f));
    CHECK_FALSE(one.update(a, 0.005f));  // strictly below
    CHECK_FALSE(one.update(b, 0.0f));
    CHECK(one.update(b, 0.0f));
    StopRule two(2, 0.005f);
    CHECK_FALSE(two.update(a, 0));
    CHECK_FALSE(two.update(a, 0));
    CHECK(two.update(a, 0));
    CHECK_FALSE(two.update(b, 0));
    StopRule none(0, 0.005f);
    CHECK(none.update(a, 0));
}

TEST_CASE("sampler settings out of range are named") {
    const auto message = [](auto change) -> std::string {
        SamplerConfig c;
        change(c);
        try {
            check_sampler(c);
        } catch (const Error& e) {
            return e.what();
        }
        return "";
    };
    CHECK(message([](SamplerConfig&) {}).empty());
    CHECK(message([](SamplerConfig& c) { c.max_steps = 0; }).find("max steps is 0") == 0);
    CHECK(message([](SamplerConfig& c) { c.t_min = 0; }).find("t-min is 0") == 0);
    CHECK(message([](SamplerConfig& c) { c.t_max = 0.1f; }).find("t-max is 0.1") == 0);
    CHECK(message([](SamplerConfig& c) { c.t_max = NAN; }).find("t-max is nan") == 0);
    CHECK(message([](SamplerConfig& c) { c.entropy_bound = -1; }).find("entropy bound is -1") == 0);
    CHECK(message([](SamplerConfig& c) { c.stability = -1; }).find("stability is -1") == 0);
    CHECK(message([](SamplerConfig& c) { c.confidence = -1; }).find("confidence is -1") == 0);
    CHECK(message([](SamplerConfig& c) { c.top_k = -1; }).find("top-k is -1") == 0);
    CHECK(message([](SamplerConfig& c) { c.top_k_start = 4; }).find("top-k-start is 4") == 0);
    CHECK(message([](SamplerConfig& c) { c.self_cond_top_k = -2; }).find("self-cond-top-k is -2") == 0);
    CHECK(message([](SamplerConfig& c) { c.max_steps = 100001; }).find("max steps is 100001") == 0);
    CHECK(message([](SamplerConfig& c) { c.t_min = c.t_max = 101; }).find("t-min is 101") == 0);
    CHECK(message([](SamplerConfig& c) { c.t_max = 101; }).find("t-max is 101") == 0);
    CHECK(message([](SamplerConfig& c) { c.entropy_bound = INFINITY; }).find("entropy bound is inf") == 0);
    CHECK(message([](SamplerConfig& c) { c.confidence = INFINITY; }).find("confidence is inf") == 0);
    CHECK(message([](SamplerConfig& c) { c.top_k_start = c.top_k_end = -1; }).find("top-k-start is -1") == 0);
    CHECK(message([](SamplerConfig& c) { c.self_cond_drop = 1; }).find("self-cond-drop is 1") == 0);
    CHECK(message([](SamplerConfig& c) { c.self_cond_drop = -0.5f; }).find("self-cond-drop is -0.5") == 0);
}
