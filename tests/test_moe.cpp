// test_moe.cpp: the router's choice and the grouping by expert of moe.cu against plain sorting.
#include <algorithm>
#include <numeric>
#include <random>

#include "check.h"
#include "kernel.h"

using namespace easel;

namespace {

using Floats = std::vector<float>;
using Ints = std::vector<int>;

struct Choice {
    Ints chosen;
    std::vector<double> weight;
};

Choice plain_route(const Floats& x, const Floats& router, const Floats& expert_scale, int n_token, int n_embd,
                   int n_used) {
    const int n_expert = int(expert_scale.size());
    Choice out;
    for (int t = 0; t < n_token; t++) {
        std::vector<double> logit(n_expert);
        for (int e = 0; e < n_expert; e++)
            for (int i = 0; i < n_embd; i++)
                logit[e] += double(x[size_t(t) * n_embd + i]) * router[size_t(e) * n_embd + i];
        Ints order(n_expert);
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logit[a] > logit[b]; });
        double sum = 0;
        for (int i = 0; i < n_used; i++) sum += std::exp(logit[order[i]] - logit[order[0]]);
        for (int i = 0; i < n_used; i++) {
            out.chosen.push_back(order[i]);
            out.weight.push_back(std::exp(logit[order[i]] - logit[order[0]]) / sum * expert_scale[order[i]]);
        }
    }
    return out;
}

struct Routed {
    int expert;
    float weight;
};

std::vector<Routed> run_route(const Floats& x, const Floats& router, const Floats& expert_scale, int n_token,
                              int n_embd, int n_used) {
    return every_schedule([&] {
        const size_t n = size_t(n_token) * n_used;
        const DeviceArray<int> chosen(n);
        const DeviceArray<float> weight(n);
        const auto dx = to_device(x), drouter = to_device(router), dscale = to_device(expert_scale);
        const int n_expert = int(expert_scale.size());
        const DeviceArray<float> scratch(route_scratch(n_token, n_embd, n_expert));
        route({}, chosen.data(), weight.data(), dx.data(), drouter.data(), dscale.data(), n_token, n_embd,
              n_expert, n_used, scratch.data());
        const Ints experts = to_host(chosen);
        const Floats weights = to_host(weight);
        std::vector<Routed> out;
        for (size_t i = 0; i < n; i++) out.push_back({experts[i], weights[i]});
        return out;
    });
}

void check_route(const Floats& x, const Floats& router, const Floats& expert_scale, int n_token, int n_embd,
                 int n_used, double tolerance) {
    const auto out = run_route(x, router, expert_scale, n_token, n_embd, n_used);
    const Choice expected = plain_route(x, router, expert_scale, n_token, n_embd, n_used);
    Ints chosen;
    Floats weight;
    for (const Routed& r : out) chosen.push_back(r.expert), weight.push_back(r.weight);
    INFO(n_token << " tokens of " << n_embd << ", " << n_used << " of " << expert_scale.size());
    CHECK(chosen == expected.chosen);
    CHECK(distance(weight, expected.weight) < tolerance);
}

// Whole numbers from -size to size.
Floats whole_numbers(size_t n, int size, uint32_t seed) {
    std::mt19937 engine(seed);
    Floats out(n);
    for (float& v : out) v = float(int(engine() % (2 * size + 1)) - size);
    return out;
}

// Runs permute() and checks it against plain sorting. Returns how many groups have slots.
int check_permute(const Ints& chosen, int n_token, int n_used, int n_expert, int group) {
    const size_t n_pair = chosen.size();
    INFO(n_token << " tokens, " << n_used << " of " << n_expert << ", groups of " << group);
    const Ints out = every_schedule([&] {
        const DeviceArray<int> slot_of(n_pair), token_of(n_pair);
        const DeviceArray<ExpertGroup> groups(n_group(n_expert, int(n_pair), group));
        const auto d = to_device(chosen);
        permute({}, slot_of.data(), token_of.data(), groups.data(), d.data(), n_token, n_used, n_expert,
                group);
        Ints all = to_host(slot_of);
        const Ints tokens = to_host(token_of);
        all.insert(all.end(), tokens.begin(), tokens.end());
        for (const ExpertGroup& g : to_host(groups)) all.insert(all.end(), {g.expert, g.begin, g.end});
        return all;
    });

    Ints order(n_pair), slot_of(n_pair), token_of(n_pair), first(n_expert + 1, 0);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return chosen[a] < chosen[b]; });
    for (size_t s = 0; s < n_pair; s++) slot_of[order[s]] = int(s), token_of[s] = order[s] / n_used;
    for (int e : chosen) first[e + 1]++;
    std::partial_sum(first.begin(), first.end(), first.begin());
    CHECK(Ints(out.begin(), out.begin() + n_pair) == slot_of);
    CHECK(Ints(out.begin() + n_pair, out.begin() + 2 * n_pair) == token_of);
    Ints by_size(n_expert), groups;
    std::iota(by_size.begin(), by_size.end(), 0);
    const auto size = [&](int e) { return first[e + 1] - first[e]; };
    std::stable_sort(by_size.begin(), by_size.end(), [&](int a, int b) { return size(a) > size(b); });
    for (int e : by_size)
        for (int s = first[e]; s < first[e + 1]; s += group)
            groups.insert(groups.end(), {e, s, std::min(s + group, first[e + 1])});
    const Ints got(out.begin() + 2 * n_pair, out.end());
    REQUIRE(groups.size() <= got.size());
    CHECK(Ints(got.begin(), got.begin() + groups.size()) == groups);
    for (size_t i = groups.size(); i < got.size(); i += 3) REQUIRE(got[i + 1] == got[i + 2]);
    return int(groups.size() / 3);
}

}  // namespace

TEST_CASE("route chooses the largest logits", "[moe]") {
    struct Case {
        int n_token, n_embd, n_expert, n_used;
    };
    const Case c =
        GENERATE(Case{1, 32, 2, 1}, Case{7, 48, 9, 4}, Case{5, 33, 5, 2}, Case{3, 2816, 128, 8},
                 Case{2, 5000, 40, 8}, Case{1, 3077, 70, 3}, Case{4, 64, 1, 1}, Case{9, 256, 8, 8},
                 Case{2, 32, 32, 32}, Case{2, 16, 1024, 32}, Case{3, 1, 6, 3}, Case{70, 180, 130, 8});
    // Logits of size 1 that are sums of up to 5000 products, in parts and a tree: off by about 1e-7 each;
    // expf by 2e-7 more. (A choice could differ only where two logits are that close.)
    const Floats x = random_floats(size_t(c.n_token) * c.n_embd, 1, 1 / std::sqrt(float(c.n_embd))),
                 router = random_floats(size_t(c.n_expert) * c.n_embd, 2),
                 scale = random_floats(c.n_expert, 3);
    check_route(x, router, scale, c.n_token, c.n_embd, c.n_used, 1e-6);
}

TEST_CASE("route: the lower number wins a tie", "[moe]") {
    struct Case {
        int n_token, n_embd, n_expert, n_used;
    };
    const Case c = GENERATE(Case{5, 16, 128, 8}, Case{1, 8, 1024, 32}, Case{6, 33, 9, 9}, Case{3, 20, 32, 4},
                            Case{2, 3080, 33, 5});
    // Products of small whole numbers: logits are exact, and many are equal. What remains is expf, and a sum
    // and two products in float.
    const Floats x = whole_numbers(size_t(c.n_token) * c.n_embd, 1, 1),
                 router = whole_numbers(size_t(c.n_expert) * c.n_embd, 1, 2),
                 scale = random_floats(c.n_expert, 3);
    check_route(x, router, scale, c.n_token, c.n_embd, c.n_used, 4e-7);
}

TEST_CASE("route of equal logits takes the first experts, in order", "[moe]") {
    const int n_expert = GENERATE(4, 31, 128), n_used = GENERATE(1, 4);
    const Floats zero(3 * 64, 0.0f), one(3 * 64, 1.0f), scale(n_expert, 2.0f);
    for (const Floats& x : {zero, one}) {
        const auto out = run_route(x, Floats(size_t(n_expert) * 64, -0.5f), scale, 3, 64, n_used);
        for (size_t i = 0; i < out.size(); i++) {
            REQUIRE(out[i].expert == int(i) % n_used);
            REQUIRE(out[i].weight == 2.0f / float(n_used));  // exact: powers of two
        }
    }
}

TEST_CASE("route: the sign of a zero is no order, infinities are", "[moe]") {
    // Products of 1e-60 are zero in float, and a sum of nothing but negative ones is -0.
    const int n = 128;
    Floats router(6 * n, 0.0f);
    const float rows[] = {-1e-30f, 0, -INFINITY, 1e30f, 1e-30f, -INFINITY};
    for (int e = 0; e < 6; e++)
        for (int i = 0; i < n; i++) router[e * n + i] = rows[e];
    const auto out = run_route(Floats(n, 1e-30f), router, Floats(6, 1.0f), 1, n, 6);
    const Ints expected{3, 0, 1, 4, 2, 5};
    for (int i = 0; i < 6; i++) REQUIRE(out[i].expert == expected[i]);
    CHECK(std::fabs(out[0].weight - 1) < 1e-6);  // the others' logits are 128 less
    CHECK(out[5].weight == 0);
}

TEST_CASE("route stays within the experts when logits are NaN", "[moe]") {
    const auto out = run_route(Floats(2 * 40, NAN), random_floats(5 * 40, 1), Floats(5, 1.0f), 2, 40, 3);
    for (size_t i = 0; i < out.size(); i++) REQUIRE(out[i].expert == int(i) % 3);
}

TEST_CASE("permute sorts by expert and keeps the order", "[moe]") {
    enum Kind { Any, OneExpert, EmptyOnes, Last };
    struct Case {
        int n_token, n_used, n_expert, group;
        Kind kind;
    };
    const Case c = GENERATE(
        Case{1, 1, 1, 32, Any}, Case{1, 8, 128, 32, Any}, Case{256, 8, 128, 32, Any}, Case{33, 2, 4, 64, Any},
        Case{31, 3, 9, 32, EmptyOnes}, Case{100, 1, 16, 32, OneExpert}, Case{7, 4, 1024, 32, Last},
        Case{301, 8, 1000, 32, Any}, Case{513, 1, 40, 128, EmptyOnes}, Case{8192, 8, 128, 128, Any});
    const size_t n_pair = size_t(c.n_token) * c.n_used;
    Ints chosen(n_pair);
    std::mt19937 engine(5);
    for (int t = 0; t < c.n_token; t++) {
        Ints experts(c.n_expert);
        std::iota(experts.begin(), experts.end(), 0);
        for (int i = 0; i < c.n_used; i++) {  // different ones, in any order
            std::swap(experts[i], experts[i + engine() % (c.n_expert - i)]);
            int e = experts[i];
            if (c.kind == OneExpert) e = 11;
            if (c.kind == EmptyOnes) e = e / 2 * 2;  // not different then: harder, not easier
            if (c.kind == Last) e = c.n_expert - 1 - i;
            chosen[size_t(t) * c.n_used + i] = e;
        }
    }
    check_permute(chosen, c.n_token, c.n_used, c.n_expert, c.group);
}

// Slots of each expert: none, a group's, one less and more; as many groups as there can be, where each expert
// has one slot more than full groups.
TEST_CASE("permute makes groups of an expert's slots", "[moe]") {
    struct Case {
        Ints counts;
        int group, n_filled, n_group;
    };
    const Case c =
        GENERATE(Case{{32, 33, 0, 1, 31, 64, 65}, 32, 10, 13}, Case{{64, 65, 0, 129, 63}, 64, 7, 9},
                 Case{{128, 127, 300, 129, 0}, 128, 7, 10}, Case{{0, 0, 100, 0}, 32, 4, 7},
                 Case{{33, 1, 1, 65}, 32, 7, 7}, Case{{1, 257, 129}, 128, 6, 6},
                 Case{{0, 1, 0, 1, 0, 0}, 32, 2, 2}, Case{{32}, 32, 1, 1}, Case{{33}, 32, 2, 2});
    Ints chosen;
    for (size_t e = 0; e < c.counts.size(); e++) chosen.insert(chosen.end(), c.counts[e], int(e));
    std::shuffle(chosen.begin(), chosen.end(), std::mt19937(3));
    const int n_slot = int(chosen.size()), n_expert = int(c.counts.size());
    CHECK(check_permute(chosen, n_slot, 1, n_expert, c.group) == c.n_filled);
    CHECK(n_group(n_expert, n_slot, c.group) == c.n_group);
}

// n_group() is the most that any counts of slots give, by trying them all.
TEST_CASE("permute: groups there can be", "[moe]") {
    for (int group = 1; group <= 5; group++) {
        Ints most(25, 0);  // of `n` experts, by slots
        for (int n = 1; n <= 6; n++) {
            Ints next(most.size(), 0);
            for (int s = 0; s < int(next.size()); s++)
                for (int own = n == 1 ? s : 0; own <= s; own++)
                    next[s] = std::max(next[s], most[s - own] + (own + group - 1) / group);
            most = next;
            for (int s = 1; s < int(most.size()); s++) {
                INFO(n << " experts, " << s << " slots, groups of " << group);
                REQUIRE(n_group(n, s, group) == most[s]);
            }
        }
    }
}

// The buffer is for a pass of any length up to the longest: passes with fewer slots have smaller groups.
TEMPLATE_TEST_CASE("permute: room for the groups of every pass", "[moe]", F16, float) {
    int most = 0;
    for (int n_slot = 1; n_slot <= 20000; n_slot++) {
        most = std::max(most, n_group(128, n_slot, expert_group<TestType>(128, n_slot)));
        REQUIRE(max_groups<TestType>(128, n_slot) == most);
    }
}

TEST_CASE("route and permute refuse what they have no room for", "[moe]") {
    const auto run_route = [](int n_expert, int n_used) {
        route({}, nullptr, nullptr, nullptr, nullptr, nullptr, 1, 32, n_expert, n_used, nullptr);
    };
    CHECK_THROWS_AS(run_route(1025, 8), Error);
    CHECK_THROWS_AS(run_route(8, 9), Error);
    CHECK_THROWS_AS(run_route(64, 33), Error);
    CHECK_THROWS_AS(permute({}, nullptr, nullptr, nullptr, nullptr, 1, 1, 1025, 32), Error);
}
