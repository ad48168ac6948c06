// test_int8.cpp: products in int8: the blocks' codes, the rounding of activations, every instruction set
// against plain C++, every block type, whole passes and whole answers against the float path.
#include <algorithm>
#include <cstring>
#include <random>

#include "blocks.h"
#include "catch.h"
#include "chat.h"
#include "easel.h"
#include "gemm.h"
#include "golden.h"
#include "int8.h"
#include "parallel.h"

using namespace easel;

namespace {

constexpr Type kTypes[] = {Type::Q4_0,   Type::Q4_1,   Type::Q5_0, Type::Q5_1, Type::Q8_0,
                           Type::Q2_K,   Type::Q3_K,   Type::Q4_K, Type::Q5_K, Type::Q6_K,
                           Type::IQ4_NL, Type::IQ4_XS, Type::MXFP4};

// Activations as a model has them: most are near 0, one in fifty is ten times as large.
std::vector<float> activations(int64_t n, uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> x(n);
    for (float& v : x) v = normal(random) * (random() % 50 ? 1.0f : 10.0f);
    return x;
}

std::unique_ptr<Backend> int8_backend(const std::shared_ptr<const Model>& model) {
    return make_cpu_backend(model, model->config.n_context, CpuMath::Int8);
}

// The median over the canvas' rows of |a - b| / |b|.
double median_row_error(const std::vector<float>& a, const std::vector<float>& b, const Config& c) {
    std::vector<double> errors;
    for (auto at = a.begin(); at != a.end(); at += c.n_vocab) {
        const auto same = b.begin() + (at - a.begin());
        errors.push_back(relative_error({at, at + c.n_vocab}, {same, same + c.n_vocab}));
    }
    std::sort(errors.begin(), errors.end());
    return errors[errors.size() / 2];
}

int highest_code(Int8Range range) {
    return range == Int8Range::U4 ? 15 : range == Int8Range::U5 ? 31 : 63;
}

}  // namespace

TEST_CASE("int8: every type's codes, scales and minima are its values, bit for bit", "[int8]") {
    for (Type type : kTypes)
        for (int n_row : {16, 5}) {
            const int n_col = type_info(type).block_elems == 32 ? 192 : 256;
            INFO(type_info(type).name << ", " << n_row << " rows");
            const Blocks b = random_blocks(type, n_row, n_col, 1);
            Int8Panel panel;
            int8_panel(type, b.bytes.data(), b.matrix.stride(), n_row, n_col, panel);
            const Int8Codes codes = int8_codes(type);
            const int span = codes.range == Int8Range::U6 ? 16 : 32, highest = highest_code(codes.range);
            bool same = true, in_range = true;
            for (int r = 0; r < kInt8Rows; r++)
                for (int c = 0; c < n_col; c++) {
                    const uint8_t code = panel.codes[(c / 4 * kInt8Rows + r) * 4 + c % 4];
                    const bool is_signed = codes.range == Int8Range::S8;
                    const int number = (is_signed ? int8_t(code) : int{code}) - codes.middle;
                    const double value = double{panel.scale[c / span][r]} * number +
                                         (codes.has_min ? double{panel.min[c / span][r]} : 0);
                    in_range &= is_signed || code <= highest;
                    same &= static_cast<float>(value) == (r < n_row ? b.values[r * n_col + c] : 0);
                }
            CHECK(same);
            CHECK(in_range);
        }
    CHECK_FALSE(has_int8(Type::F32));
    CHECK_FALSE(has_int8(Type::F16));
    CHECK_FALSE(has_int8(Type::BF16));
}

TEST_CASE("int8: activations are rounded to half a step of their block", "[int8]") {
    for (int n : {32, 96, 256, 704}) {
        auto x = activations(n, 2);
        std::fill_n(x.begin(), 32, 0.0f);
        std::vector<Int8Activations> a((n + 255) / 256 * 3);
        int8_activations(x.data(), n, a.data(), 3);
        for (int c = 0; c < static_cast<int>(a.size()) / 3 * 256; c++) {
            const Int8Activations& piece = a[c / 256 * 3];
            const int b = c % 256 / 32;
            const float value = c < n ? x[c] : 0, d = piece.d[b];
            CHECK(std::fabs(d * piece.q[c % 256] - value) <= 0.5001f * d);
            if (c % 32) continue;
            float largest = 0;
            for (int i = c; i < std::min(n, c + 32); i++) largest = std::max(largest, std::fabs(x[i]));
            CHECK(d == largest / 127);
            int sum[2] = {};
            for (int i = 0; i < 32; i++) sum[i / 16] += piece.q[b * 32 + i];
            CHECK(piece.q_sum32[b] == sum[0] + sum[1]);
            CHECK(piece.q_sum16[2 * b] == sum[0]);
            CHECK(piece.q_sum16[2 * b + 1] == sum[1]);
            CHECK(piece.sum32[b] == d * static_cast<float>(sum[0] + sum[1]));
            CHECK(piece.sum16[2 * b] == d * static_cast<float>(sum[0]));
            CHECK(piece.sum16[2 * b + 1] == d * static_cast<float>(sum[1]));
        }
    }
    float x[32] = {1e-38f};
    Int8Activations a;
    int8_activations(x, 32, &a, 1);
    CHECK(a.d[0] == 0);
    for (float bad : {NAN, INFINITY}) {  // a broken model shows, as it does in float
        x[7] = bad;
        int8_activations(x, 32, &a, 1);
        CHECK_FALSE(std::isfinite(a.d[0]));
    }
}

TEST_CASE("int8: every instruction set agrees with plain C++ bit for bit", "[int8]") {
    const auto variants = int8_variants();
    REQUIRE(std::string(variants.back().name) == "plain");
    std::mt19937 random(3);
    std::vector<Int8Activations> x(19);
    // Extremes too: the largest sums that the narrow accumulators must hold.
    for (size_t t = 0; t < x.size(); t++) {
        auto v = activations(256, static_cast<uint32_t>(t));
        if (t % 3 == 1) std::fill(v.begin(), v.end(), t % 2 ? 1.0f : -1.0f);
        int8_activations(v.data(), 256, &x[t], 1);
    }
    for (const Int8Codes codes :
         {Int8Codes{Int8Range::U4, true}, Int8Codes{Int8Range::U4, false, 8}, Int8Codes{Int8Range::U5, true},
          Int8Codes{Int8Range::U5, false, 16}, Int8Codes{Int8Range::U6, true},
          Int8Codes{Int8Range::U6, false, 32}, Int8Codes{Int8Range::S8, false}})
        for (int extreme = 0; extreme < 3; extreme++) {
            const int mask = highest_code(codes.range);
            std::vector<Int8Panel> panels(3);
            std::normal_distribution<float> normal;
            for (Int8Panel& panel : panels) {
                for (uint8_t& c : panel.codes) {
                    const int any = static_cast<int>(random());
                    c = static_cast<uint8_t>(codes.range == Int8Range::S8
                                                 ? (extreme == 0   ? any
                                                    : extreme == 1 ? 127
                                                                   : -128)
                                                 : (extreme == 0 ? any & mask : mask));
                }
                for (auto& row : panel.scale)
                    for (float& s : row) s = normal(random);
                for (auto& row : panel.min)
                    for (float& s : row) s = normal(random);
            }
            for (size_t n_panel : {1, 2, 3})
                for (int n_block : {1, 3, 8})
                    for (int n_token : {1, 2, 3, 4, 5, 6, 7, 19})
                        for (bool add : {false, true}) {
                            constexpr int stride = 53;
                            const auto start = activations(n_token * stride, 4);
                            const std::span in(panels.data(), n_panel);
                            std::vector<float> expected = start;
                            variants.back().multiply(codes, x.data(), n_token, in, n_block, expected.data(),
                                                     stride, add);
                            for (const Int8Variant& v : variants) {
                                INFO(v.name << ", range " << static_cast<int>(codes.range) << ", minima "
                                            << codes.has_min << ", " << n_panel << " panels, " << n_block
                                            << " blocks, " << n_token << " tokens, add " << add);
                                std::vector<float> y = start;
                                v.multiply(codes, x.data(), n_token, in, n_block, y.data(), stride, add);
                                CHECK(std::memcmp(y.data(), expected.data(), y.size() * 4) == 0);
                            }
                        }
        }
    std::string names;
    for (const Int8Variant& v : variants) names += std::string(names.empty() ? "" : ", ") + v.name;
    WARN("int8 by " << names);
}

// A rounded activation is at most 1/254 of its block's largest away; what is left is the float path's own
// rounding. Over all outputs the errors are independent: about 1/254 / sqrt(3) times what a block's largest
// exceeds its root mean square by.
TEST_CASE("int8: products of every block type agree with the float path", "[int8]") {
    for (Type type : kTypes)
        for (auto [n_row, n_token] : {std::pair{1, 1}, {16, 3}, {70, 50}, {33, 24}, {130, 7}}) {
            const int n_col = type_info(type).block_elems == 32 ? 352 : 512;
            INFO(type_info(type).name << " " << n_row << "x" << n_col << ", " << n_token << " tokens");
            const Blocks b = random_blocks(type, n_row, n_col, 5);
            const auto x = activations(int64_t{n_token} * n_col, 6);
            std::vector<float> y(n_token * n_row, NAN), expected(y.size());
            const Rows in{x.data(), n_token, n_col};
            gemm(expected.data(), in, b.matrix);
            gemm(y.data(), in, b.matrix, CpuMath::Int8);
            bool within = true;
            for (int t = 0; t < n_token; t++)
                for (int r = 0; r < n_row; r++) {
                    double bound = 0;
                    for (int c = 0; c < n_col; c += 32) {
                        double largest = 0, weights = 0;
                        for (int i = c; i < c + 32; i++) {
                            largest = std::max(largest, std::fabs(double{x[t * n_col + i]}));
                            weights += std::fabs(double{b.values[r * n_col + i]});
                        }
                        bound += largest / 254 * weights * 1.001;
                    }
                    within &= std::fabs(double{y[t * n_row + r]} - expected[t * n_row + r]) <= bound;
                }
            CHECK(within);
            if (n_row * n_token > 100) CHECK(relative_error(y, expected) < 0.012);
        }
}

TEST_CASE("int8: several products at once, types without blocks too, with any number of threads", "[int8]") {
    const Blocks a = random_blocks(Type::Q4_K, 300, 512, 7), b = random_blocks(Type::Q8_0, 33, 512, 8);
    const auto w = activations(40 * 512, 9), x = activations(50 * 512, 10);
    const Matrix floats{Type::F32, reinterpret_cast<const uint8_t*>(w.data()), 40, 512};
    std::vector<float> expected(50 * 40);
    gemm(expected.data(), {x.data(), 50, 512}, floats);
    std::vector<std::vector<float>> results;
    for (int n : {1, 2, 5, 20}) {
        set_threads(n);
        std::vector<float> ya(50 * 310, -1), yb(50 * 33, -1), yc(50 * 40);
        const Rows in{x.data(), 50, 512};
        gemm(std::vector<GemmJob>{{ya.data(), 310, in, a.matrix},
                                  {yb.data(), 33, in, b.matrix},
                                  {yc.data(), 40, in, floats},
                                  {nullptr, 0, {nullptr, 0, 0}, a.matrix}},
             CpuMath::Int8);
        CHECK(yc == expected);
        CHECK(ya[49 * 310 + 300] == -1);  // nothing past the row
        CHECK(std::count(yb.begin(), yb.end(), -1.0f) == 0);
        ya.insert(ya.end(), yb.begin(), yb.end());
        results.push_back(ya);
    }
    set_threads(0);
    for (const auto& r : results) CHECK(r == results[0]);
}

// Fifteen layers of random weights, one a block type, multiply every rounding and tip the router: a row's
// median error is 8 to 12 % of its logits (16-bit activations: 0.3 %). A wrong code or minimum leaves nothing
// in common.
TEST_CASE("int8: logits of the golden model of all block types", "[int8]") {
    const auto model = load_model(fixture("mixed.gguf"));
    const Config& c = model->config;
    const auto backend = int8_backend(model);
    backend->encode(read_json(fixture("mixed.json"))["prompt"].get<std::vector<int32_t>>());
    const std::vector<int32_t> canvas = read_json(fixture("mixed.json"))["canvas"];
    const auto expected = read_f32(fixture("mixed.logits0.f32"));
    std::vector<float> logits(expected.size());
    backend->logits({canvas, {}, 1}, logits);
    CHECK(median_row_error(logits, expected, c) < 0.15);
}

// What the demo model knows.
constexpr const char* kPrompts[] = {
    "What is 47 + 35?", "What is the capital of France?", "Reverse the word \"canvas\".", "Count to 7.",
    "Hello!",           "Sort these numbers: 52, 17, 33."};

// Weights that were trained damp what is rounded, where the prompt is one of those that they were trained on:
// 0.2 to 0.3 % of the logits, measured, in either pass, in the median of the prompts.
TEST_CASE("int8: logits of the demo model", "[int8]") {
    const auto file = std::make_shared<Gguf>(Gguf::from_memory(demo_model(), "demo"));
    const auto model = std::make_shared<Model>(file);
    const Tokenizer tokenizer(*file);
    const Config& c = model->config;
    std::mt19937 random(11);
    std::vector<int32_t> canvas(c.n_canvas);
    for (int32_t& id : canvas) id = static_cast<int32_t>(random() % c.n_vocab);
    std::vector<double> error[2];
    for (const char* prompt : kPrompts) {
        const Message message{Role::User, prompt};
        std::vector<float> z[2][2];
        for (int i = 0; i < 2; i++) {
            const auto backend = make_cpu_backend(model, c.n_context, i ? CpuMath::Int8 : CpuMath::Float);
            backend->encode(render_chat(tokenizer, "", {&message, 1}, {}));
            for (auto& logits : z[i]) logits.resize(size_t(c.n_canvas) * c.n_vocab);
            backend->logits({canvas, {}, 1}, z[i][0]);
            backend->logits({canvas, z[0][0], 0.8f}, z[i][1]);
        }
        for (int pass : {0, 1}) error[pass].push_back(relative_error(z[1][pass], z[0][pass]));
    }
    for (auto& e : error) {
        std::sort(e.begin(), e.end());
        CHECK(e[e.size() / 2] < 0.0035);
        CHECK(e[0] > 0);
    }
}

TEST_CASE("int8: the float32 golden model has nothing to round", "[int8]") {
    const auto model = load_model(fixture("tiny.gguf"));
    const auto backend = int8_backend(model);
    backend->encode(read_json(fixture("tiny.json"))["prompt"].get<std::vector<int32_t>>());
    check_logits("tiny", *backend, 6e-7);
}

TEST_CASE("int8: the demo model gives the same answers as in float", "[int8]") {
    EngineOptions options;
    options.device = "cpu";
    Engine exact(options);
    options.cpu_math = CpuMath::Int8;
    Engine fast(options);
    for (const char* prompt : kPrompts)
        for (uint64_t seed : {1, 2, 3}) {
            INFO(prompt << ", seed " << seed);
            Request request;
            request.messages = {{Role::User, prompt}};
            request.seed = seed;
            CHECK(fast.generate(request).text == exact.generate(request).text);
        }
}
