// test_embed.cpp: token embeddings and the soft embedding (embed.cu) against double, for every type of
// records.
#include <algorithm>

#include "check.h"
#include "kernel.h"
#include "records.h"

using namespace easel;

namespace {

// A matrix as a file's blocks, its values, and its records on the device.
struct Embedding {
    int n_vocab, n_embd;
    std::vector<float> values;    // [n_vocab, n_embd] of the blocks, float32
    std::vector<float> as_large;  // what an F16 decode may be off relative to: |d q| + |min|
    DeviceArray<uint8_t> records;
    Weights weights;
};

Embedding make_embedding(Type type, Type to, int n_vocab, int n_embd, uint32_t seed, float sigma = 0.3f) {
    Embedding e{n_vocab, n_embd, {}, {}, {}, {}};
    const int64_t stride = row_bytes(type, n_embd);
    std::vector<uint8_t> bytes(n_vocab * stride);
    auto source = random_floats(size_t(n_vocab) * n_embd, seed, sigma);
    if (type == Type::IQ4_NL) {  // has no from_float(): scales of about 1 / 256, any codes
        std::mt19937 random(seed);
        for (uint8_t& b : bytes) b = static_cast<uint8_t>(random());
        for (size_t i = 0; i < bytes.size(); i += 18) bytes[i + 1] = 0x1c;
    } else {
        for (int r = 0; r < n_vocab; r++)
            from_float(type, source.data() + int64_t{r} * n_embd, bytes.data() + r * stride, n_embd);
    }
    e.values.resize(source.size());
    e.as_large.resize(source.size());
    std::vector<float> m(n_embd);
    const int code_begin = type == Type::Q5_1 ? 4 : type == Type::Q4_K || type == Type::Q5_K ? 16 : 0;
    for (int r = 0; r < n_vocab; r++) {
        uint8_t* row = bytes.data() + r * stride;
        float* values = e.values.data() + int64_t{r} * n_embd;
        to_float(type, row, values, n_embd);
        std::fill(m.begin(), m.end(), 0.0f);
        if (code_begin) {  // all codes 0: what is left is the minimum
            std::vector<uint8_t> copy(row, row + stride);
            const int block_bytes = type_info(type).block_bytes;
            for (int64_t b = 0; b < stride; b += block_bytes)
                std::fill_n(copy.begin() + b + code_begin, block_bytes - code_begin, uint8_t{0});
            to_float(type, copy.data(), m.data(), n_embd);
        }
        for (int c = 0; c < n_embd; c++)
            e.as_large[int64_t{r} * n_embd + c] = std::fabs(values[c]) + 2 * std::fabs(m[c]);
    }
    const auto blocks = to_device(bytes);
    e.records = DeviceArray<uint8_t>(records_bytes(to, n_vocab, n_embd));
    e.weights = {to, e.records.data(), n_vocab, n_embd};
    repack(Stream{}, type, to, {blocks.data(), blocks.data() + 8 * stride, 16 * stride, n_vocab, n_vocab - 8},
           e.weights.n_tile(), n_embd, e.records.data());
    finish(Stream{});
    return e;
}

std::vector<float> embedded(const Embedding& e, const std::vector<int32_t>& tokens) {
    return every_schedule([&] {
        const auto t = to_device(tokens);
        const DeviceArray<float> x(tokens.size() * e.n_embd);
        embed(Stream{}, x.data(), t.data(), int(tokens.size()), e.weights);
        return to_host(x);
    });
}

// Rows that sum to 1, few large entries and many small ones, as a softmax gives them.
std::vector<float> random_probs(int n_canvas, int n_vocab, uint32_t seed) {
    auto p = random_floats(size_t(n_canvas) * n_vocab, seed, 4);
    for (int t = 0; t < n_canvas; t++) {
        float* row = p.data() + int64_t{t} * n_vocab;
        double sum = 0;
        for (int v = 0; v < n_vocab; v++) sum += row[v] = std::exp(row[v] - 12);
        for (int v = 0; v < n_vocab; v++) row[v] = static_cast<float>(row[v] / sum);
    }
    return p;
}

// As sample() leaves them: 0 past n_vocab.
template <class T>
std::vector<T> stored_probs(const std::vector<float>& p, int n_vocab) {
    const int stride = vocab_stride(n_vocab);
    std::vector<T> out(p.size() / n_vocab * stride, host_from_f32<T>(0));
    for (size_t i = 0; i < p.size(); i++)
        out[i / n_vocab * stride + i % n_vocab] = host_from_f32<T>(p[i] * prob_scale<T>());
    return out;
}

LoopState at_step(int step) {
    LoopState s{};
    s.step = step;
    return s;
}

template <class T>
std::vector<T> soft(const Embedding& e, const std::vector<T>& probs, const std::vector<float>& norm,
                    float eps, int step, const std::vector<uint8_t>& live) {
    const int n_canvas = int(probs.size()) / vocab_stride(e.n_vocab);
    return every_schedule([&] {
        const auto p = to_device(probs);
        const auto flags = to_device(live);
        const auto w = to_device(norm);
        const auto state = to_device(std::vector{at_step(step)});
        const DeviceArray<T> out(size_t(n_canvas) * padded(e.n_embd));
        const int n_split = soft_splits(n_canvas, e.n_embd, 132);
        const DeviceArray<float> scratch(soft_scratch(n_canvas, e.n_embd, e.n_vocab, n_split));
        soft_embedding(Stream{}, out.data(), p.data(), flags.data(), e.weights, w.data(), eps, n_canvas,
                       n_split, scratch.data(), state.data());
        return to_host(out);
    });
}
template <class T>
std::vector<T> soft(const Embedding& e, const std::vector<T>& probs, const std::vector<float>& norm,
                    float eps, int step) {
    return soft(e, probs, norm, eps, step, std::vector<uint8_t>(n_vocab_tile(e.n_vocab), 1));
}

// rms(probs E sqrt(n_embd)) * norm in double, from the probabilities and values as they are stored.
std::vector<double> expected_soft(const Embedding& e, const std::vector<float>& probs,
                                  const std::vector<float>& norm, double eps) {
    const int n_canvas = int(probs.size()) / e.n_vocab, n = e.n_embd;
    std::vector<double> out(size_t(n_canvas) * n, 0);
    for (int t = 0; t < n_canvas; t++) {
        double* row = out.data() + int64_t{t} * n;
        for (int v = 0; v < e.n_vocab; v++)
            for (int c = 0; c < n; c++)
                row[c] += double{probs[int64_t{t} * e.n_vocab + v]} * e.values[int64_t{v} * n + c];
        double squares = 0;
        for (int c = 0; c < n; c++) squares += row[c] * row[c] * n;
        for (int c = 0; c < n; c++) row[c] *= std::sqrt(n) / std::sqrt(squares / n + eps) * norm[c];
    }
    return out;
}

// Runs the op and returns its distance from double; checks that the padding is zero.
template <class T>
double soft_distance(const Embedding& e, int n_canvas, uint32_t seed, float eps = 1e-6f) {
    auto norm = random_floats(e.n_embd, seed + 1, 0.2f);
    for (float& w : norm) w += 1;
    const auto probs = random_probs(n_canvas, e.n_vocab, seed);
    const auto out = soft(e, stored_probs<T>(probs, e.n_vocab), norm, eps, 1);
    const auto all = host_f32(out);
    for (size_t i = 0; i < all.size(); i++)
        if (int(i) % padded(e.n_embd) >= e.n_embd && all[i] != 0) return INFINITY;
    return distance(from_rows(out, e.n_embd), expected_soft(e, probs, norm, eps));
}

// F16: probabilities, embeddings and the result are rounded, by 2^-11 of each at most (embeddings with a
// minimum by more); these are independent, and products average most of it away.
constexpr double kF16Distance = 1e-3;
// float: sums of up to 5000 products in float32.
constexpr double kFloatDistance = 1e-6;

}  // namespace

TEST_CASE("embed reads the rows of tokens, at both ends and in any order") {
    struct Case {
        Type type;
        int n_embd;
    };
    uint32_t seed = 1;
    for (auto [type, n_embd] : {Case{Type::F32, 48},
                                {Type::F32, 100},
                                {Type::F32, 33},
                                {Type::F16, 48},
                                {Type::F16, 100},
                                {Type::Q4_0, 32},
                                {Type::Q4_0, 96},
                                {Type::Q5_0, 96},
                                {Type::Q5_1, 32},
                                {Type::Q5_1, 160},
                                {Type::Q8_0, 96},
                                {Type::IQ4_NL, 96},
                                {Type::Q4_K, 256},
                                {Type::Q5_K, 768},
                                {Type::Q6_K, 512}}) {
        INFO(type_info(type).name << " n_embd " << n_embd);
        const int n_vocab = 45;  // 3 row tiles, the last one with 13 rows
        const Embedding e = make_embedding(type, type, n_vocab, n_embd, seed++);
        std::vector<int32_t> tokens{44, 0, 15, 16, 7, 8, 44, 31, 32, 23};
        for (int v = 0; v < n_vocab; v++) tokens.push_back(n_vocab - 1 - v);
        const auto x = embedded(e, tokens);
        const float scale = std::sqrt(static_cast<float>(n_embd));
        const bool exact = type_info(type).block_elems == 1;
        double worst = 0;
        for (size_t i = 0; i < x.size(); i++) {
            const size_t at = size_t(tokens[i / n_embd]) * n_embd + i % n_embd;
            const double error = std::fabs(double{x[i]} - e.values[at] * scale);
            // Scale, minimum and result are rounded to F16, by 2^-11 each; 2^-24 is F16's beside 0.
            const double allowed = exact ? 0 : scale * (0x1p-10 * e.as_large[at] + 0x1p-24);
            if (error > allowed) worst = std::max(worst, allowed > 0 ? error / allowed : INFINITY);
        }
        CHECK(worst == 0);
        CHECK(embedded(e, {44}) == std::vector<float>(x.begin(), x.begin() + n_embd));
    }
}

TEST_CASE("soft_embedding in float agrees with double") {
    uint32_t seed = 100;
    for (int n_vocab : {384, 400, 512, 5000, 37})
        for (auto [n_canvas, n_embd] :
             {std::pair{1, 200}, {8, 48}, {24, 128}, {130, 32}, {3, 33}, {129, 129}}) {
            if (n_vocab == 5000 && n_canvas * n_embd > 4000) continue;  // only longer
            INFO("n_vocab " << n_vocab << " n_canvas " << n_canvas << " n_embd " << n_embd);
            const Embedding e = make_embedding(Type::F32, Type::F32, n_vocab, n_embd, seed);
            CHECK(soft_distance<float>(e, n_canvas, seed++) < kFloatDistance);
        }
}

TEST_CASE("soft_embedding in F16 agrees with double") {
    uint32_t seed = 200;
    for (int n_vocab : {384, 400, 512, 5000, 37})
        for (auto [n_canvas, n_embd] :
             {std::pair{1, 200}, {8, 48}, {24, 128}, {130, 32}, {3, 33}, {129, 129}}) {
            if (n_vocab == 5000 && n_canvas > 100) continue;
            INFO("n_vocab " << n_vocab << " n_canvas " << n_canvas << " n_embd " << n_embd);
            const Embedding e = make_embedding(Type::F32, Type::F16, n_vocab, n_embd, seed);
            CHECK(soft_distance<F16>(e, n_canvas, seed++) < kF16Distance);
        }
}

TEST_CASE("soft_embedding reads every type of records") {
    uint32_t seed = 300;
    for (auto [type, n_embd] : {std::pair{Type::Q4_0, 96},
                                {Type::Q5_0, 192},
                                {Type::Q5_1, 32},
                                {Type::Q8_0, 160},
                                {Type::IQ4_NL, 96},
                                {Type::Q4_K, 256},
                                {Type::Q5_K, 256},
                                {Type::Q6_K, 512},
                                {Type::F16, 40}}) {
        INFO(type_info(type).name << " n_embd " << n_embd);
        const Embedding e = make_embedding(type, type, 700, n_embd, seed);
        CHECK(soft_distance<F16>(e, 40, seed++) < kF16Distance);
    }
}

TEST_CASE("soft_embedding is zero at step 0, whatever the probabilities hold") {
    const Embedding e = make_embedding(Type::F32, Type::F32, 400, 48, 400);
    const Embedding h = make_embedding(Type::Q8_0, Type::Q8_0, 400, 96, 401);
    const std::vector<float> nan(size_t(8) * vocab_stride(400), NAN);
    for (float v : soft(e, nan, std::vector<float>(48, 1), 1e-6f, 0)) CHECK(v == 0);
    for (F16 v : soft(h, stored_probs<F16>(nan, vocab_stride(400)), std::vector<float>(96, 1), 1e-6f, 0))
        CHECK(v.bits == 0);
}

TEMPLATE_TEST_CASE("soft_embedding leaves out tiles of the vocabulary that are not live", "[embed]", float,
                   F16) {
    using T = TestType;
    const int n_vocab = 5000, n_embd = 96, n_canvas = 9, n_tile = n_vocab_tile(n_vocab);
    const Type type = sizeof(T) == 4 ? Type::F32 : Type::Q8_0;
    const Embedding e = make_embedding(type, type, n_vocab, n_embd, 700);
    const std::vector<float> norm(n_embd, 1);
    std::mt19937 random(8);
    for (int kind : {0, 1, 2, 3, 4}) {  // some; few; the last alone, which is not whole; none; all
        std::vector<uint8_t> live(n_tile);
        for (int t = 0; t < n_tile; t++)
            live[t] = kind == 0   ? random() % 2
                      : kind == 1 ? random() % 16 == 0
                      : kind == 2 ? t == n_tile - 1
                                  : kind == 4;
        auto probs = random_probs(n_canvas, n_vocab, 701 + kind);
        auto stored = stored_probs<T>(probs, n_vocab);  // of dead tiles NaN: they are not to be read
        for (size_t i = 0; i < probs.size(); i++) {
            const int v = int(i) % n_vocab;
            if (live[v / kVocabTile]) continue;
            probs[i] = 0;
            stored[i / n_vocab * vocab_stride(n_vocab) + v] = host_from_f32<T>(NAN);
        }
        INFO("kind " << kind);
        const auto out = from_rows(soft(e, stored, norm, 1e-6f, 1, live), n_embd);
        CHECK(distance(out, expected_soft(e, probs, norm, 1e-6)) <
              (sizeof(T) == 4 ? kFloatDistance : kF16Distance));
    }
}

TEST_CASE("soft_embedding of one certain token is its row, normed") {
    const int n_vocab = 400, n_embd = 48;
    const Embedding e = make_embedding(Type::F32, Type::F32, n_vocab, n_embd, 500);
    const std::vector<int> tokens{0, 399, 63, 64, 200};
    std::vector<float> probs(tokens.size() * n_vocab, 0);
    for (size_t t = 0; t < tokens.size(); t++) probs[t * n_vocab + tokens[t]] = 1;
    const std::vector<float> norm(n_embd, 1);
    const auto out = from_rows(soft(e, stored_probs<float>(probs, n_vocab), norm, 1e-6f, 7), n_embd);
    CHECK(distance(out, expected_soft(e, probs, norm, 1e-6)) < 3e-7);  // a few roundings of a float
    // eps counts: it is that of the mean square of the scaled row, here about 0.09 n_embd.
    const auto damped = from_rows(soft(e, stored_probs<float>(probs, n_vocab), norm, 10.0f, 7), n_embd);
    CHECK(distance(damped, expected_soft(e, probs, norm, 10)) < 3e-7);
    CHECK(distance(damped, expected_soft(e, probs, norm, 1e-6)) > 0.1);
}

TEST_CASE("soft_embedding in F16 has room for embeddings of up to 32") {
    const int n_vocab = 400, n_embd = 48;
    const Embedding e = make_embedding(Type::F16, Type::F16, n_vocab, n_embd, 501, 10);
    std::vector<float> probs(n_vocab, 0);
    probs[77] = 1;  // certain: its row is 2^15 times as large on the way
    const auto row = e.values.begin() + 77 * n_embd;
    CHECK(*std::max_element(row, row + n_embd) > 20);
    const auto out = soft(e, stored_probs<F16>(probs, n_vocab), std::vector<float>(n_embd, 1), 1e-6f, 3);
    CHECK(distance(from_rows(out, n_embd), expected_soft(e, probs, std::vector<float>(n_embd, 1), 1e-6)) <
          kF16Distance);
}

TEST_CASE("the embedding refuses types that do not go with the activations") {
    const Embedding e = make_embedding(Type::F32, Type::F32, 32, 32, 600);
    const DeviceArray<F16> out(64), probs(128);
    const DeviceArray<float> norm(32), scratch(soft_scratch(1, 32, 32, 1));
    const DeviceArray<uint8_t> live(1);
    const auto state = to_device(std::vector{at_step(0)});
    CHECK_THROWS_AS(soft_embedding(Stream{}, out.data(), probs.data(), live.data(), e.weights, norm.data(),
                                   1e-6f, 1, 1, scratch.data(), state.data()),
                    Error);
}
