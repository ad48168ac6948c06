// test_head.cpp: the output head against double precision: logits, what is stored of them, tile statistics.
#include <algorithm>

#include "weights.h"

using namespace easel;

namespace {

template <class T>
void check_head(Type type, int n_canvas, int n_vocab, int n_embd, float t) {
    INFO(type_info(type).name << ": canvas " << n_canvas << ", vocabulary " << n_vocab << ", width "
                              << n_embd);
    constexpr float softcap = 30;
    auto x = random_floats(size_t(n_canvas) * n_embd, 1,
                           4);  // logits of several tens, where the softcap bends them
    for (float& v : x) v = host_f32(host_from_f32<T>(v));
    const TestWeights w = make_weights<T>(type, n_vocab, n_embd, 2);
    LoopState state{};
    state.sampler.t_min = state.sampler.t_max = t;
    const auto x_device = to_device(to_rows<T>(x, n_embd));
    const auto state_device = to_device(std::vector{state});
    const size_t n_tile = n_vocab_tile(n_vocab), stride = vocab_stride(n_vocab);
    const DeviceArray<T> z_device(n_canvas * stride);
    const DeviceArray<TileStats> stats_device(n_canvas * n_tile);
    const DeviceArray<float> logits_device(size_t(n_canvas) * n_vocab);
    const auto live = to_device(std::vector<uint8_t>(n_tile, 1));
    const auto stats = every_schedule([&] {
        lm_head(Stream{}, z_device.data(), stats_device.data(), live.data(), logits_device.data(),
                x_device.data(), w.w, n_canvas, softcap, state_device.data());
        return to_host(stats_device);
    });
    CHECK(to_host(live) == std::vector<uint8_t>(n_tile, 0));
    const auto z = to_host(z_device);
    const auto logits = to_host(logits_device);

    std::vector<double> expected(size_t(n_canvas) * n_vocab);
    for (int r = 0; r < n_canvas; r++)
        for (int v = 0; v < n_vocab; v++) {
            double sum = 0;
            for (int i = 0; i < n_embd; i++)
                sum += double{x[size_t(r) * n_embd + i]} * w.values[size_t(v) * n_embd + i];
            expected[size_t(r) * n_vocab + v] = softcap * std::tanh(sum / softcap);
        }
    // Float32 sums; or weights rounded to F16, twice where a type has minima.
    CHECK(distance(logits, expected) < (sizeof(T) == 4 ? 5e-7 : 8e-4));

    // Everything else follows from these logits, whatever their own error.
    for (int r = 0; r < n_canvas; r++)
        for (size_t tile = 0; tile < n_tile; tile++) {
            const TileStats& s = stats[r * n_tile + tile];
            const int begin = static_cast<int>(tile) * kVocabTile,
                      end = std::min(n_vocab, begin + kVocabTile);
            const float* l = logits.data() + size_t(r) * n_vocab;
            const int argmax = static_cast<int>(std::max_element(l + begin, l + end) - l);
            double sum = 0, weighted = 0;
            const double max = double{l[argmax]} / t;
            for (int v = begin; v < end; v++) {
                const double d = l[v] / t - max;
                sum += std::exp(d);
                weighted += d * std::exp(d);
                // F16 has 11 bits, of the distance to the tile's maximum.
                const double stored = host_f32(z[r * stride + v]) + (sizeof(T) == 4 ? 0 : double{s.max});
                CHECK(std::fabs(stored - l[v] / t) <= (sizeof(T) == 4 ? 1e-5 : 1e-5 + std::fabs(d) / 2048));
            }
            CHECK(s.argmax == argmax);
            CHECK(s.max == (sizeof(T) == 4 ? l[argmax] / t : l[argmax] * (1 / t)));
            CHECK(std::fabs(s.sum - sum) < 1e-5 * sum);  // float32 sums of 128 terms
            CHECK(std::fabs(s.weighted - weighted) < 1e-5 * (1 + std::fabs(weighted)));
            for (int v = end; v < begin + kVocabTile; v++) CHECK(host_f32(z[r * stride + v]) == -INFINITY);
        }
}

}  // namespace

TEMPLATE_TEST_CASE("lm_head: logits and statistics", "", F16, float) {
    check_head<TestType>(Type::Q6_K, 24, 400, 256, 0.8f);
    check_head<TestType>(Type::F32, 1, 128, 48, 0.4f);
    check_head<TestType>(Type::Q8_0, 130, 129, 192, 1);
    check_head<TestType>(Type::BF16, 9, 1, 20, 0.5f);
}

// Equal logits: the lowest id wins, across lanes, warps and within them.
TEMPLATE_TEST_CASE("lm_head: ties go to the lowest id", "", F16, float) {
    const int n_vocab = 300, n_embd = 32;
    const TestWeights zero = [&] {
        TestWeights w = make_weights<TestType>(Type::F32, n_vocab, n_embd, 1);
        fill_zero(Stream{}, w.records.data(), w.records.bytes());
        return w;
    }();
    const auto x = to_device(to_rows<TestType>(random_floats(3 * n_embd, 2), n_embd));
    const auto state = to_device(std::vector{LoopState{}});
    const DeviceArray<TestType> z(3 * vocab_stride(n_vocab));
    const DeviceArray<TileStats> stats(3 * n_vocab_tile(n_vocab));
    const DeviceArray<uint8_t> live(n_vocab_tile(n_vocab));
    lm_head(Stream{}, z.data(), stats.data(), live.data(), nullptr, x.data(), zero.w, 3, 30.0f, state.data());
    const auto s = to_host(stats);
    for (size_t i = 0; i < s.size(); i++) CHECK(s[i].argmax == int(i % 3) * kVocabTile);
}
