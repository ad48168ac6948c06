// test_gemm.cpp: the CPU products and the vector formulas against double.
#include <algorithm>
#include <atomic>

#include "blocks.h"
#include "catch.h"
#include "float_tiles.h"
#include "gemm.h"
#include "golden.h"
#include "parallel.h"
#include "vmath.h"

using namespace easel;

namespace {

// Of products of normal numbers: a sum of n is about sqrt(n), and its rounding some 2^-24 of that.
double largest_error(const std::vector<float>& a, const std::vector<float>& b) {
    double worst = 0;
    for (size_t i = 0; i < a.size(); i++) {
        if (!std::isfinite(a[i])) return INFINITY;
        worst = std::max(worst, std::fabs(double{a[i]} - b[i]));
    }
    return worst;
}

}  // namespace

TEST_CASE("gemm agrees with double at odd sizes, for several types") {
    for (auto [type, n_col] : {std::pair{Type::F32, 1},
                               {Type::F32, 37},
                               {Type::F32, 600},
                               {Type::BF16, 80},
                               {Type::Q8_0, 96},
                               {Type::Q5_0, 704},
                               {Type::Q4_K, 512},
                               {Type::Q6_K, 256}})
        for (int n_row : {1, 15, 16, 17, 65, 130})
            for (int n_token : {1, 5, 6, 7, 49}) {
                INFO(type_info(type).name << " " << n_row << "x" << n_col << ", " << n_token << " tokens");
                const Blocks w = normal_blocks(type, n_row, n_col, 1);
                const auto x = random_floats(size_t(n_token) * n_col, 2);
                std::vector<float> y(size_t(n_token) * n_row, NAN), expected(y.size());
                for (int t = 0; t < n_token; t++)
                    for (int r = 0; r < n_row; r++) {
                        double sum = 0;
                        for (int c = 0; c < n_col; c++)
                            sum += double{x[t * n_col + c]} * w.values[r * n_col + c];
                        expected[t * n_row + r] = static_cast<float>(sum);
                    }
                gemm(y.data(), {x.data(), n_token, n_col}, w.matrix);
                CHECK(largest_error(y, expected) < 1e-6 * std::sqrt(n_col));
            }
}

TEST_CASE("every instruction set agrees with 8 lanes bit for bit") {
    const auto variants = float_variants();
    REQUIRE(std::string(variants.back().name) == "8 lanes");
    // Without optimisation, or for a processor that cannot, 8 lanes round each product, which others do not.
    // A span's sum begins at 0: the second product is the first that is added to something.
    const float two[] = {1, 1 + 0x1p-12f};
    std::vector<float> rest(16), rows(32, -(1 + 0x1p-11f));
    std::fill_n(rows.begin() + 16, 16, two[1]);
    variants.back().multiply(two, 2, 1, Panels{rows.data(), 16, 32, 2, 16}, rest.data(), 16, false);
    const bool fused = rest[0] == 0x1p-24f;
    constexpr int64_t x_stride = 301, y_stride = 83;
    const auto w = random_floats(300 * 80, 12), x = random_floats(50 * x_stride, 13),
               start = random_floats(50 * y_stride, 14);
    for (int64_t n_k : {1, 31, 32, 33, 256, 300})
        for (int64_t n_col : {1, 15, 16, 17, 32, 40, 48, 63, 64, 80})
            for (int64_t n_token = 1; n_token < 50; n_token += n_token < 20 ? 1 : 14)
                for (bool add : {false, true})
                    for (const Panels& panels :
                         {Panels{w.data(), 16, 16 * n_k, n_k, n_col}, Panels{w.data(), 80, 16, n_k, n_col}}) {
                        std::vector<float> expected = start;
                        variants.back().multiply(x.data(), x_stride, n_token, panels, expected.data(),
                                                 y_stride, add);
                        for (const FloatVariant& v : variants) {
                            std::vector<float> y = start;
                            v.multiply(x.data(), x_stride, n_token, panels, y.data(), y_stride, add);
                            const bool same =
                                fused ? y == expected : largest_error(y, expected) < 1e-6 * std::sqrt(n_k);
                            if (same) continue;
                            FAIL_CHECK(v.name << ", " << n_token << " tokens, " << n_k << "x" << n_col
                                              << ", add " << add);
                        }
                    }
    std::string names;
    for (const FloatVariant& v : variants) names += std::string(names.empty() ? "" : ", ") + v.name;
    WARN("float by " << names << (fused ? ", fused" : ", 8 lanes not fused"));
}

TEST_CASE("several products at once, rows apart, and none at all") {
    const Blocks a = normal_blocks(Type::F32, 70, 24, 3), b = normal_blocks(Type::Q8_0, 33, 32, 4);
    const auto x = random_floats(9 * 40, 5);
    std::vector<float> ya(9 * 100, -1), yb(9 * 33, -1);
    gemm(std::vector<GemmJob>{{ya.data(), 100, {x.data(), 9, 40}, a.matrix},
                              {yb.data(), 33, {x.data(), 9, 40}, b.matrix},
                              {nullptr, 0, {nullptr, 0, 0}, a.matrix}});
    for (int t = 0; t < 9; t++) {
        double sum = 0;
        for (int c = 0; c < 24; c++) sum += double{x[t * 40 + c]} * a.values[69 * 24 + c];
        CHECK(ya[t * 100 + 69] == Approx(sum).margin(1e-5));
        CHECK(ya[t * 100 + 70] == -1);  // nothing past the row
    }
    CHECK(std::count(yb.begin(), yb.end(), -1.0f) == 0);
}

TEST_CASE("gemm_transposed agrees with double, and leaves out only what is small") {
    for (auto [type, n_col] : {std::pair{Type::F32, 20}, {Type::Q8_0, 288}, {Type::Q6_K, 512}})
        for (int n_row : {1, 63, 300})
            for (int n_token : {1, 7, 64}) {
                const Blocks w = normal_blocks(type, n_row, n_col, 6);
                auto p = random_floats(size_t(n_token) * n_row, 7);
                for (size_t i = 0; i < p.size(); i += 2) p[i] = 0;
                std::vector<float> y(size_t(n_token) * n_col, NAN), expected(y.size());
                for (int t = 0; t < n_token; t++)
                    for (int c = 0; c < n_col; c++) {
                        double sum = 0;
                        for (int r = 0; r < n_row; r++)
                            sum += double{p[t * n_row + r]} * w.values[r * n_col + c];
                        expected[t * n_col + c] = static_cast<float>(sum);
                    }
                INFO(type_info(type).name << " " << n_row << "x" << n_col << ", " << n_token << " tokens");
                if (n_row == 1) continue;  // all p are zero: checked below
                gemm_transposed(y.data(), {p.data(), n_token, n_row}, w.matrix, 1e-30f);
                CHECK(largest_error(y, expected) < 1e-6 * std::sqrt(n_row));
                gemm_transposed_serial(y.data(), n_col, {p.data(), n_token, n_row}, w.matrix);
                CHECK(largest_error(y, expected) < 1e-6 * std::sqrt(n_row));
            }
    const Blocks w = normal_blocks(Type::F32, 3, 16, 8);
    std::vector<float> y(16, NAN);
    const std::vector<float> p{0.001f, 1.0f, -0.001f};
    gemm_transposed(y.data(), {p.data(), 1, 3}, w.matrix, 0.01f);
    for (int c = 0; c < 16; c++) CHECK(y[c] == w.values[16 + c]);
}

TEST_CASE("results do not depend on the number of threads") {
    const Blocks w = normal_blocks(Type::Q4_K, 300, 512, 9);
    const auto x = random_floats(50 * 512, 10), p = random_floats(50 * 300, 11);
    std::vector<std::vector<float>> results;
    for (int n : {1, 2, 5}) {
        set_threads(n);
        std::vector<float> y(50 * 300), s(50 * 512);
        gemm(y.data(), {x.data(), 50, 512}, w.matrix);
        gemm_transposed(s.data(), {p.data(), 50, 300}, w.matrix, 0);
        y.insert(y.end(), s.begin(), s.end());
        results.push_back(y);
    }
    set_threads(0);
    CHECK(results[0] == results[1]);
    CHECK(results[0] == results[2]);
}

TEST_CASE("parallel_for calls every index once, nested calls too") {
    set_threads(3);
    std::vector<std::atomic<int>> count(1000);
    for (int round = 0; round < 50; round++)
        parallel_for(100, [&](int64_t i) { parallel_for(10, [&](int64_t j) { count[i * 10 + j]++; }); });
    set_threads(0);
    for (auto& c : count) CHECK(c == 50);
    parallel_for(0, [](int64_t) { FAIL("called for nothing"); });
}

TEST_CASE("exp, tanh and gelu keep their stated errors") {
    double exp_error = 0, tanh_error = 0, gelu_error = 0;
    for (double x = -87; x < 88; x += 0.00137) {
        const float f = static_cast<float>(x);
        exp_error = std::max(exp_error, std::fabs(exp_approx(f) / std::exp(double{f}) - 1));
        const double t = std::tanh(double{f} / 8), tf = tanh_approx(f / 8);
        if (t != 0) tanh_error = std::max(tanh_error, std::fabs(tf / t - 1));
        const double u = std::sqrt(2 / M_PI) * (f + 0.044715 * f * double{f} * f);
        const double g = f / (1 + std::exp(-2 * u));
        gelu_error = std::max(gelu_error, std::fabs(gelu(f) - g) / (std::fabs(f) + 1e-30));
    }
    CHECK(exp_error < 2e-7);
    CHECK(tanh_error < 4e-7);
    CHECK(gelu_error < 1e-6);  // exp(-2u) at u near 40 carries u's own rounding
    CHECK(exp_approx(0) == 1);
    CHECK(exp_approx(-1000) == 0);
    CHECK(exp_approx(-INFINITY) == 0);
    CHECK(std::isnan(exp_approx(NAN)));
    CHECK(tanh_approx(0) == 0);
    CHECK(tanh_approx(100) == 1);
    CHECK(tanh_approx(-100) == -1);
    CHECK(std::fabs(gelu(-50)) < 1e-30f);
    CHECK(gelu(50) == 50);
}
