// test_linear.cpp: products with weights against double precision, every record type, odd sizes.
#include <algorithm>
#include <random>

#include "check.h"
#include "weights.h"

using namespace easel;

namespace {

// out [n_row of x, n_row of w] = x w^T in double
std::vector<double> product(const std::vector<float>& x, const float* w, int n_row, int n_col) {
    const size_t n_token = x.size() / n_col;
    std::vector<double> out(n_token * n_row);
    for (size_t t = 0; t < n_token; t++)
        for (int r = 0; r < n_row; r++) {
            double sum = 0;
            for (int c = 0; c < n_col; c++) sum += double{x[t * n_col + c]} * w[size_t(r) * n_col + c];
            out[t * n_row + r] = sum;
        }
    return out;
}

double gelu_of(double x) {
    return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}

// What activations of type X look like: rounded once.
template <class X>
std::vector<float> rounded(std::vector<float> v) {
    for (float& x : v) x = host_f32(host_from_f32<X>(x));
    return v;
}

// Weights are rounded to F16 on their way to the tensor core, and scales before that: 2^-11 at most a
// product, of random sign, so that a sum of n has about 0.3 of it; a type with minima subtracts two such
// numbers, which makes it twice that.
template <class X>
constexpr double tolerance = std::is_same_v<X, float> ? 3e-7 : 8e-4;

template <class X>
void check_linear(Type type, int n_token, int n_row, int n_col, int n_split = 1) {
    INFO(type_info(type).name << ": " << n_token << " tokens, " << n_row << " x " << n_col << ", " << n_split
                              << " splits");
    const auto x = rounded<X>(random_floats(size_t(n_token) * n_col, 1));
    const TestWeights w = make_weights<X>(type, n_row, n_col, 2);
    const auto x_device = to_device(to_rows<X>(x, n_col));
    const auto out = every_schedule([&] {
        const DeviceArray<float> y(size_t(n_split) * n_token * n_row);
        linear(Stream{}, y.data(), x_device.data(), w.w, n_token, n_split);
        const std::vector<float> parts = to_host(y);
        std::vector<float> sum(parts.begin(), parts.begin() + n_token * n_row);
        for (size_t i = sum.size(); i < parts.size(); i++) sum[i % sum.size()] += parts[i];
        return sum;
    });
    CHECK(distance(out, product(x, w.values.data(), n_row, n_col)) < tolerance<X>);
}

constexpr Type kAll[] = {Type::F32,  Type::F16,    Type::BF16,   Type::Q4_0, Type::Q4_1, Type::Q5_0,
                         Type::Q5_1, Type::Q8_0,   Type::Q2_K,   Type::Q3_K, Type::Q4_K, Type::Q5_K,
                         Type::Q6_K, Type::IQ4_NL, Type::IQ4_XS, Type::MXFP4};

}  // namespace

TEMPLATE_TEST_CASE("linear: every type", "", F16, float) {
    for (const Type type : kAll)
        check_linear<TestType>(type, 19, 40, type_info(type).block_elems == 256 ? 512 : 160);
}

TEMPLATE_TEST_CASE("linear: sizes", "", F16, float) {
    check_linear<TestType>(Type::F32, 1, 1, 1);
    check_linear<TestType>(Type::F32, 65, 17, 24);
    check_linear<TestType>(Type::Q8_0, 64, 64, 64);
    check_linear<TestType>(Type::Q8_0, 130, 150, 96);
    check_linear<TestType>(Type::Q4_K, 7, 129, 768);
    check_linear<TestType>(Type::Q5_0, 33, 65, 704);
    check_linear<TestType>(Type::Q4_K, 7, 129, 1280, 3);
    check_linear<TestType>(Type::Q8_0, 65, 40, 96, 4);  // more splits than records
}

TEMPLATE_TEST_CASE("gate_up: gelu of one half times the other", "", F16, float) {
    using Y = TestType;
    for (const auto& [type, n_token, n_ff, n_col] : {std::tuple{Type::Q4_K, 21, 44, 256},
                                                     {Type::F32, 3, 24, 48},
                                                     {Type::Q6_K, 70, 8, 256},
                                                     {Type::Q5_K, 12, 40, 256},
                                                     {Type::Q5_1, 9, 33, 64}}) {
        INFO(type_info(type).name << " " << n_ff);
        const auto x = rounded<TestType>(random_floats(size_t(n_token) * n_col, 3));
        const TestWeights w = make_weights<TestType>(type, 2 * n_ff, n_col, 4, true);
        const auto x_device = to_device(to_rows<TestType>(x, n_col));
        const auto out = every_schedule([&] {
            const DeviceArray<Y> y(size_t(n_token) * padded(n_ff));
            fill_zero(Stream{}, y.data(), y.bytes());
            gate_up(Stream{}, y.data(), x_device.data(), w.w, n_token);
            return to_host(y);
        });
        const auto both = product(x, w.values.data(), 2 * n_ff, n_col);
        std::vector<double> expected;
        for (int t = 0; t < n_token; t++)
            for (int i = 0; i < n_ff; i++) {
                const double* row = both.data() + size_t(t) * 2 * n_ff;
                expected.push_back(gelu_of(row[i]) * row[n_ff + i]);
            }
        CHECK(distance(from_rows(out, n_ff), expected) < (sizeof(Y) == 4 ? 5e-7 : 1e-3));
        // The padding that the next product reads must stay zero.
        for (size_t i = 0; i < out.size(); i++)
            if (int(i % padded(n_ff)) >= n_ff) CHECK(host_f32(out[i]) == 0);
    }
}

// Slots of experts in odd numbers: none, one, a group, more, several; rows picked through token_of. In groups
// of 32 slots, which few slots ask for, and in those of 128 that a larger number does (float: 64). With empty
// groups, and with as many groups as there can be.
TEMPLATE_TEST_CASE("expert_gate_up and expert_down", "", F16, float) {
    using Y = TestType;
    struct Case {
        std::vector<int> counts;
        int group, n_empty, n_empty_float;  // of F16; groups without slots
    };
    const Case c =
        GENERATE(Case{{0, 1, 97, 32, 33, 3, 0, 16}, 32, 3, 3}, Case{{1, 97, 33, 1, 1, 1, 1, 33}, 32, 0, 1},
                 Case{{0, 1, 140, 16, 3}, 128, 1, 1}, Case{{129, 1, 129}, 128, 0, 0});
    const std::vector<int>& counts = c.counts;
    const int n_ff = 24, n_col = 256, n_token = 30, n_expert = int(counts.size());
    std::vector<int> first{0}, token_of;
    for (int n : counts) {
        for (int i = 0; i < n; i++) token_of.push_back((i * 7 + n) % n_token);
        first.push_back(first.back() + n);
    }
    const int n_slot = first.back(), group = expert_group<Y>(n_expert, n_slot);
    CHECK(group == (sizeof(Y) == 2 ? c.group : 64));
    std::vector<ExpertGroup> groups;
    for (int e = 0; e < n_expert; e++)
        for (int s = first[e]; s < first[e + 1]; s += group)
            groups.push_back({e, s, std::min(s + group, first[e + 1])});
    const size_t n_empty = sizeof(Y) == 2 ? c.n_empty : c.n_empty_float;
    REQUIRE(groups.size() + n_empty == size_t(n_group(n_expert, n_slot, group)));
    groups.resize(groups.size() + n_empty, {1 << 20, n_slot, n_slot});  // nothing of theirs is read
    std::shuffle(groups.begin(), groups.end(), std::mt19937(4));        // any order will do
    const auto x = rounded<TestType>(random_floats(size_t(n_token) * n_col, 5));
    const TestWeights up = make_weights<TestType>(Type::Q4_K, 2 * n_ff, n_col, 6, true, n_expert);
    const TestWeights down = make_weights<Y>(Type::F32, 50, n_ff, 7, false, n_expert);
    const auto x_device = to_device(to_rows<TestType>(x, n_col));
    const auto token_device = to_device(token_of);
    const auto groups_device = to_device(groups);
    const DeviceArray<Y> middle(size_t(n_slot) * padded(n_ff));
    const auto got = every_schedule([&] {
        fill_zero(Stream{}, middle.data(), middle.bytes());
        expert_gate_up(Stream{}, middle.data(), x_device.data(), up.w, token_device.data(),
                       groups_device.data(), n_slot);
        return to_host(middle);
    });
    const auto out = every_schedule([&] {
        const DeviceArray<float> y(size_t(n_slot) * 50);
        expert_down(Stream{}, y.data(), middle.data(), down.w, groups_device.data(), n_slot);
        return to_host(y);
    });
    std::vector<double> expected, expected_out;
    const std::vector<float> middle_rows = from_rows(got, n_ff);
    for (int e = 0; e < n_expert; e++)
        for (int s = first[e]; s < first[e + 1]; s++) {
            const std::vector<float> row(x.begin() + token_of[s] * n_col,
                                         x.begin() + (token_of[s] + 1) * n_col);
            const auto both = product(row, up.values.data() + size_t(e) * 2 * n_ff * n_col, 2 * n_ff, n_col);
            for (int i = 0; i < n_ff; i++) expected.push_back(gelu_of(both[i]) * both[n_ff + i]);
            const std::vector<float> in(middle_rows.begin() + s * n_ff, middle_rows.begin() + (s + 1) * n_ff);
            const auto y = product(in, down.values.data() + size_t(e) * 50 * n_ff, 50, n_ff);
            expected_out.insert(expected_out.end(), y.begin(), y.end());
        }
    CHECK(distance(middle_rows, expected) < (sizeof(Y) == 4 ? 5e-7 : 1e-3));
    CHECK(distance(out, expected_out) < tolerance<Y>);
}

TEST_CASE("max_row_square: the longest row of all experts") {
    for (const Type type : {Type::Q4_K, Type::Q5_1, Type::F32}) {
        const int n_row = 40, n_col = 256;
        const TestWeights w = make_weights<F16>(type, 2 * n_row, n_col, 8, true, 3);
        double expected = 0;
        for (size_t r = 0; r < w.values.size() / n_col; r++) {
            double sum = 0;
            for (int c = 0; c < n_col; c++) sum += double{w.values[r * n_col + c]} * w.values[r * n_col + c];
            expected = std::max(expected, sum);
        }
        const DeviceArray<float> max(1);
        max_row_square(Stream{}, max.data(), w.w);
        CHECK(std::fabs(to_host(max)[0] - expected) < 2e-3 * expected);  // F16 weights, squared
    }
}

TEST_CASE("mma_peak: makes as many products as it is asked for") {
    const int n_block = 2, n_step = 4;
    const DeviceArray<float> sums(256 * n_block);
    const uint32_t one = 0x3c003c00, half = 0x38003800;  // twice, in F16
    std::vector<uint32_t> words(kPeakWords, one);
    mma_peak(Stream{}, sums.data(), n_block, n_step, to_device(words).data());
    CHECK(to_host(sums) == std::vector<float>(256 * n_block, 1024 * n_step));
    std::fill_n(words.begin() + kPeakWords / 6, kPeakWords / 6, half);  // every other step
    mma_peak(Stream{}, sums.data(), n_block, n_step, to_device(words).data());
    CHECK(to_host(sums) == std::vector<float>(256 * n_block, 1024 * n_step * 3 / 4));
    CHECK_THROWS_AS(mma_peak(Stream{}, sums.data(), n_block, 3, nullptr), Error);
}

TEST_CASE("read_memory: reads every word") {
    std::mt19937 random(1);
    for (const int n : {4, 1000, 2'000'004}) {
        std::vector<uint32_t> words(n);
        uint32_t expected = 0, all = 0;
        for (uint32_t& w : words) expected ^= w = random();
        const auto device_words = to_device(words);
        const DeviceArray<uint32_t> out(20);
        read_memory(Stream{}, out.data(), 20, reinterpret_cast<const uint8_t*>(device_words.data()), 4 * n);
        for (const uint32_t part : to_host(out)) all ^= part;
        CHECK(all == expected);
        // Another share each pass: of three, an odd number, each word counts once.
        read_memory(Stream{}, out.data(), 20, reinterpret_cast<const uint8_t*>(device_words.data()), 4 * n,
                    3);
        all = 0;
        for (const uint32_t part : to_host(out)) all ^= part;
        CHECK(all == expected);
    }
}
