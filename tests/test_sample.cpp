// test_sample.cpp: sample() and probabilities() of cuda/sample.cu against sample_row() and keep_largest().
#include <algorithm>
#include <limits>

#include "kernel.h"

namespace easel {

namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

// What lm_head() hands on for z [n_row, n_vocab].
template <class T>
struct Head {
    std::vector<T> z;              // [n_row, vocab_stride(n_vocab)]
    std::vector<TileStats> stats;  // [n_row, n_vocab_tile(n_vocab)]
    std::vector<float> stored;     // [n_row, n_vocab]: z as the stored values have it
};

template <class T>
Head<T> make_head(const std::vector<float>& values, int n_vocab) {
    const size_t n_row = values.size() / n_vocab, n_tile = n_vocab_tile(n_vocab),
                 stride = vocab_stride(n_vocab);
    Head<T> head{std::vector<T>(n_row * stride, host_from_f32<T>(kNone)),
                 std::vector<TileStats>(n_row * n_tile), values};
    for (size_t r = 0; r < n_row; r++)
        for (size_t t = 0; t < n_tile; t++) {
            const int first = static_cast<int>(t) * kVocabTile, end = std::min(first + kVocabTile, n_vocab);
            const float* v = &values[r * n_vocab];
            TileStats& s = head.stats[r * n_tile + t];
            s.argmax = static_cast<int32_t>(std::max_element(v + first, v + end) - v);
            s.max = v[s.argmax];
            const float offset = sizeof(T) == 4 ? 0.0f : s.max;
            double sum = 0, weighted = 0;
            for (int i = first; i < end; i++) {
                const double d = double{v[i]} - s.max;
                sum += std::exp(d);
                weighted += d * std::exp(d);
                T& z = head.z[r * stride + i];
                z = host_from_f32<T>(v[i] - offset);
                head.stored[r * n_vocab + i] = host_f32(z) + offset;
            }
            s.sum = static_cast<float>(sum);
            s.weighted = static_cast<float>(weighted);
        }
    return head;
}

// z as an F16 stores it: what a test starts from that wants the statistics to be those of the stored values.
template <class T>
std::vector<float> stored(const std::vector<float>& values, int n_vocab) {
    return make_head<T>(values, n_vocab).stored;
}

LoopState make_state(const SamplerConfig& sampler, int step = 0, uint64_t seed = 7) {
    LoopState state{};
    state.sampler = sampler;
    if (sampler.self_cond_drop < 0) state.sampler.self_cond_drop = 0;  // unless a test asks for it
    state.seed = seed;
    state.canvas = 3;
    state.step = step;
    return state;
}

float uniform(const LoopState& s, int row) {
    return random_uniform(random_word(s.seed, row, s.step, s.canvas, RandomStream::Draw));
}

struct Sampled {
    std::vector<RowStats> rows;
    std::vector<float> probs;  // [n_row, vocab_stride(n_vocab)], without prob_scale
    std::vector<uint8_t> live;
};

template <class T>
Sampled run_sample(const Head<T>& head, int n_vocab, const LoopState& state, const GivenTokens& given = {}) {
    const int n_row = static_cast<int>(head.stored.size()) / n_vocab, n_tile = n_vocab_tile(n_vocab);
    const size_t row_bytes = n_row * sizeof(RowStats), z_bytes = head.z.size() * sizeof(T);
    const auto bytes = every_schedule([&] {
        auto z = to_device(head.z);
        const auto stats = to_device(head.stats);
        DeviceArray<RowStats> rows(n_row);
        const auto device_state = to_device(std::vector{state});
        const auto live = to_device(std::vector<uint8_t>(n_tile, 0));
        const auto device_given = to_device(std::vector{given});
        sample(Stream{}, rows.data(), z.data(), live.data(), stats.data(), n_row, n_vocab,
               device_given.data(), device_state.data());
        const auto out_rows = to_host(rows);
        const auto out_z = to_host(z);
        std::vector<uint8_t> out(row_bytes + z_bytes);
        memcpy(out.data(), out_rows.data(), row_bytes);
        memcpy(out.data() + row_bytes, out_z.data(), z_bytes);
        const auto out_live = to_host(live);
        out.insert(out.end(), out_live.begin(), out_live.end());
        return out;
    });
    Sampled out{std::vector<RowStats>(n_row), {}, {bytes.end() - n_tile, bytes.end()}};
    std::vector<T> z(head.z.size());
    memcpy(out.rows.data(), bytes.data(), row_bytes);
    memcpy(z.data(), bytes.data() + row_bytes, z_bytes);
    out.probs = host_f32(z);
    for (float& p : out.probs) p /= prob_scale<T>();
    return out;
}

struct Tolerance {
    double entropy;      // nats
    double p, p_lowest;  // relative, absolute
    double u;            // how far a draw may be from its place in the cumulative sum
};
// float: entropies up to ln 2^18 have steps of 1e-6, half of one on each side; probabilities: exp to 2e-7 on
// both sides and the scale; sums to 1e-7 each for the draw.
constexpr Tolerance kFloat{2e-6, 1e-6, 1e-37, 1e-6};
// F16 with statistics of the stored z: half a step of the F16 probability, 2^-11, or of the smallest one,
// 2^-25 / 32768; z, up to 64, as float has steps of 8e-6.
constexpr Tolerance kF16{1e-5, 6e-4, 0x1p-39, 1e-5};
template <class T>
constexpr Tolerance tolerance = sizeof(T) == 4 ? kFloat : kF16;

// Worst errors over all rows, for the record; how many draws are those of the CPU.
struct Errors {
    double entropy = 0, p = 0;
    int n_draw = 0, n_same = 0;
};

// All rows against the CPU. values [n_row, n_vocab]: z that the expected numbers come from.
template <class T>
Errors check_rows(const std::vector<float>& values, const Head<T>& head, int n_vocab, const LoopState& state,
                  const Tolerance& tol) {
    const Sampled out = run_sample(head, n_vocab, state);
    Errors errors;
    for (size_t r = 0; r < out.rows.size(); r++) {
        const auto begin = values.begin() + static_cast<ptrdiff_t>(r) * n_vocab;
        std::vector<float> p(begin, begin + n_vocab);
        const SamplerConfig& c = state.sampler;
        const float u = uniform(state, static_cast<int>(r));
        const RowStats expected = sample_row(p, 1.0f, u, step_top_k(c, state.step), c.top_k_tail_correction);
        const RowStats& found = out.rows[r];
        INFO("row " << r << " of " << n_vocab << " entries, u " << u << " entropy " << expected.entropy);
        CHECK(found.argmax == expected.argmax);
        CHECK(std::fabs(found.log_prob - expected.log_prob) <= tol.entropy);
        CHECK(found.dropped == 0);
        errors.entropy = std::max(errors.entropy, std::fabs(double{found.entropy} - expected.entropy));

        REQUIRE(found.drawn >= 0);
        REQUIRE(found.drawn < n_vocab);
        double before = 0;
        for (int v = 0; v < found.drawn; v++) before += p[v];
        CHECK(before <= u + tol.u);
        CHECK(before + p[found.drawn] > u - tol.u);
        CHECK(p[found.drawn] > 0);
        errors.n_draw++;
        errors.n_same += found.drawn == expected.drawn;

        keep_largest(p, c.self_cond_top_k);
        const int stride = vocab_stride(n_vocab);
        int n_wrong = 0;
        for (int v = 0; v < stride; v++) {
            const double want = v < n_vocab ? p[v] : 0, have = out.probs[r * stride + v];
            const double error = std::fabs(have - want);
            if (!(error <= tol.p * want + tol.p_lowest)) n_wrong++;
            if (want == 0 && have != 0) n_wrong++;
            if (want > 1e-6) errors.p = std::max(errors.p, error / want);
        }
        CHECK(n_wrong == 0);
    }
    CHECK(errors.entropy <= tol.entropy);
    for (size_t t = 0; t < out.live.size(); t++) {  // live: where any row has something
        bool any = false;
        for (size_t r = 0; r < out.rows.size(); r++)
            for (int i = 0; i < kVocabTile; i++)
                any = any || out.probs[r * vocab_stride(n_vocab) + t * kVocabTile + i] != 0;
        CHECK(out.live[t] == any);
    }
    return errors;
}

// The same for z with statistics of its stored values.
template <class T>
Errors check_sample(const std::vector<float>& values, int n_vocab, const LoopState& state) {
    const auto exact = stored<T>(values, n_vocab);
    return check_rows(exact, make_head<T>(exact, n_vocab), n_vocab, state, tolerance<T>);
}

std::vector<float> rounded(std::vector<float> v, float steps) {  // with many ties
    for (float& x : v) x = std::round(x * steps) / steps;
    return v;
}

}  // namespace

TEMPLATE_TEST_CASE("sample agrees with the CPU", "[sample]", float, F16) {
    for (int n_vocab : {1, 100, 128, 129, 384, 400, 512, 5000})
        for (float scale : {0.0f, 0.3f, 4.0f, 20.0f}) {  // flat to peaked
            const Errors e = check_sample<TestType>(random_floats(size_t(n_vocab) * 3, n_vocab, scale),
                                                    n_vocab, make_state({}, n_vocab % 5));
            CHECK(e.n_same >= e.n_draw - 1);  // u next to a step of the cumulative sum: hardly ever
        }
}

TEMPLATE_TEST_CASE("sample agrees with the CPU at the real vocabulary", "[sample]", float, F16) {
    const int n_vocab = 262144;
    for (float scale : {0.5f, 8.0f}) {
        const Errors e =
            check_sample<TestType>(random_floats(2 * size_t(n_vocab), 5, scale), n_vocab, make_state({}));
        UNSCOPED_INFO("entropy " << e.entropy << " p " << e.p);
        CHECK(e.n_same >= 1);
    }
    // One z of 0 and a far-off tail that has all of the entropy, 0.005148811 nats.
    for (int peak : {14937, 262143}) {
        std::vector<float> z(n_vocab, -20.82862663269043f);
        z[peak] = 0;
        const Sampled out = run_sample(make_head<TestType>(z, n_vocab), n_vocab, make_state({}));
        CHECK(out.rows[0].entropy == Approx(0.005148811).epsilon(1e-5));
        CHECK(out.rows[0].argmax == peak);
    }
}

TEMPLATE_TEST_CASE("sample with top-k agrees with the CPU", "[sample]", float, F16) {
    for (int n_vocab : {400, 5000}) {
        const auto random = random_floats(n_vocab, n_vocab + 1, 3);
        int n_same = 0, n_draw = 0;
        for (const auto& z : {random, rounded(random, 4), rounded(random, 0.2f)})
            for (int k : {1, 2, 10, 60, n_vocab - 1, n_vocab, n_vocab + 5}) {
                SamplerConfig c;
                c.top_k = k;
                c.top_k_tail_correction = k == 10 || k == n_vocab - 1;
                INFO("top_k " << k);
                const Errors e = check_sample<TestType>(z, n_vocab, make_state(c, 1, k));
                n_same += e.n_same;
                n_draw += e.n_draw;
            }
        CHECK(n_same >= n_draw - 1);
    }
}

TEMPLATE_TEST_CASE("sample with self-cond-top-k agrees with the CPU", "[sample]", float, F16) {
    for (int n_vocab : {100, 3000}) {
        const auto random = random_floats(n_vocab, n_vocab + 2, 2);
        for (const auto& z : {random, rounded(random, 2)})
            for (int k : {0, 7, 300})
                for (int keep : {1, 5, 7, 40, n_vocab - 1, n_vocab}) {
                    SamplerConfig c;
                    c.top_k = k;
                    c.self_cond_top_k = keep;
                    INFO("top_k " << k << " self_cond_top_k " << keep);
                    check_sample<TestType>(z, n_vocab, make_state(c, 2, keep));
                }
    }
}

TEST_CASE("sample with top-k at the real vocabulary agrees with the CPU", "[sample]") {
    const int n_vocab = 262144;
    const auto z = random_floats(n_vocab, 6, 4);
    for (int k : {40, 3000}) {  // fewer than tiles, and more
        SamplerConfig c;
        c.top_k = k;
        c.self_cond_top_k = 16;
        check_sample<float>(z, n_vocab, make_state(c));
        check_sample<F16>(rounded(z, 8), n_vocab, make_state(c));
    }
}

TEST_CASE("sample: top-k goes from start to end with the steps", "[sample]") {
    const int n_vocab = 400;
    SamplerConfig c;
    c.max_steps = 5;
    c.top_k_start = 100;
    c.top_k_end = 4;
    for (int step = 0; step < 5; step++) {
        const auto z = random_floats(n_vocab, step + 20);
        check_sample<float>(z, n_vocab, make_state(c, step));
        const Sampled out = run_sample(make_head<float>(z, n_vocab), n_vocab, make_state(c, step));
        const auto n_kept =
            std::count_if(out.probs.begin(), out.probs.begin() + n_vocab, [](float p) { return p > 0; });
        CHECK(n_kept == 100 - 24 * step);
    }
}

TEMPLATE_TEST_CASE("sample: ties go to the lowest ids", "[sample]", float, F16) {
    const int n_vocab = 1000;
    std::vector<float> z(n_vocab, -1.0f);
    for (int i : {999, 640, 517, 300, 301}) z[i] = 2.5f;  // five equal maxima in four tiles
    z[0] = -0.0f, z[900] = 0.0f;                          // equal too
    const auto kept = [&](int k, int self_cond) {
        SamplerConfig c;
        c.top_k = k;
        c.self_cond_top_k = self_cond;
        const Sampled out = run_sample(make_head<TestType>(z, n_vocab), n_vocab, make_state(c));
        CHECK(out.rows[0].argmax == 300);
        std::vector<int> ids;
        for (int i = 0; i < vocab_stride(n_vocab); i++)
            if (out.probs[i] > 0) ids.push_back(i);
        return ids;
    };
    using Ids = std::vector<int>;
    CHECK(kept(1, 0) == Ids{300});
    CHECK(kept(2, 0) == Ids{300, 301});
    CHECK(kept(4, 0) == Ids{300, 301, 517, 640});
    CHECK(kept(4, 3) == Ids{300, 301, 517});
    CHECK(kept(0, 3) == Ids{300, 301, 517});
    CHECK(kept(5, 0) == Ids{300, 301, 517, 640, 999});
    CHECK(kept(6, 0) == Ids{0, 300, 301, 517, 640, 999});
    CHECK(kept(8, 0) == Ids{0, 1, 300, 301, 517, 640, 900, 999});
    CHECK(kept(0, 0).size() == size_t(n_vocab));
}

TEST_CASE("sample: draws follow the distribution", "[sample]") {
    // 100 rows of one distribution over three far tiles: how often each entry is drawn is what u, uniform,
    // makes of it, and each draw is the CPU's.
    const int n_vocab = 400, n_row = 100;
    std::vector<float> z(n_vocab, -200.0f);
    z[3] = std::log(0.5f), z[127] = std::log(0.1f), z[128] = std::log(0.15f), z[399] = std::log(0.25f);
    std::vector<float> rows;
    for (int r = 0; r < n_row; r++) rows.insert(rows.end(), z.begin(), z.end());
    const LoopState state = make_state({});
    const Sampled out = run_sample(make_head<F16>(rows, n_vocab), n_vocab, state);
    std::vector<int> count(n_vocab);
    for (int r = 0; r < n_row; r++) {
        const float u = uniform(state, r);
        const int expected = u < 0.5f ? 3 : u < 0.6f ? 127 : u < 0.75f ? 128 : 399;
        // Steps of the F16 probabilities are a little off: 2^-11.
        if (std::min({std::fabs(u - 0.5f), std::fabs(u - 0.6f), std::fabs(u - 0.75f)}) > 1e-3f)
            CHECK(out.rows[r].drawn == expected);
        count[out.rows[r].drawn]++;
    }
    CHECK(count[3] + count[127] + count[128] + count[399] == n_row);
    CHECK(std::abs(count[3] - n_row / 2) < 20);  // 4 sigma
}

TEST_CASE("sample in F16 is as near as F16 is", "[sample]") {
    // Expected from z as it was before it became F16; the statistics are those of lm_head's float32.
    // Entropy: the statistics alone. Probabilities: z - its tile's maximum, up to 8 where p > 1e-6 counts, is
    // rounded by up to 2^-9, p once more by 2^-11. A tile is drawn exactly, an entry within it by the p.
    const int n_vocab = 5000;
    const auto z = random_floats(4 * n_vocab, 31, 1.5f);
    const Tolerance tol{2e-6, 1.5 * 0x1p-8, 0x1p-30, 0x1p-8};
    const Errors e = check_rows(z, make_head<F16>(z, n_vocab), n_vocab, make_state({}), tol);
    UNSCOPED_INFO("entropy " << e.entropy << " p " << e.p);
    CHECK(e.p > 1e-4);  // else nothing was rounded
}

TEMPLATE_TEST_CASE("sample drops unlikely tiles, less than it may", "[sample]", float, F16) {
    // Peaked rows over 40 tiles: most tiles weigh little in each row, and some little in all.
    const int n_vocab = 5000, n_row = 4, stride = vocab_stride(n_vocab), n_tile = n_vocab_tile(n_vocab);
    auto z = random_floats(size_t(n_row) * n_vocab, 51, 3);
    for (int r = 0; r < n_row; r++)
        for (int v = 0; v < n_vocab; v++) z[size_t(r) * n_vocab + v] -= 0.4f * (v / kVocabTile);
    z = stored<TestType>(z, n_vocab);
    const auto head = make_head<TestType>(z, n_vocab);
    SamplerConfig c;
    const Sampled whole = run_sample(head, n_vocab, make_state(c));
    for (float drop : {1e-2f, 0x1p-10f, 1e-5f}) {
        c.self_cond_drop = drop;
        const Sampled out = run_sample(head, n_vocab, make_state(c));
        int n_live = 0, n_dropped = 0;
        std::vector<uint8_t> any(n_tile, 0);
        for (int r = 0; r < n_row; r++) {
            double dropped = 0;
            for (int t = 0; t < n_tile; t++) {
                double mass = 0, kept = 0;
                for (int i = 0; i < kVocabTile; i++) {
                    const size_t at = size_t(r) * stride + t * kVocabTile + i;
                    mass += whole.probs[at], kept += out.probs[at];
                }
                CHECK((kept == 0 || kept == mass));
                const double least = drop / n_tile;
                CHECK((kept == 0) == (mass < least));  // none is as near as rounding to it
                if (kept == 0) dropped += mass, n_dropped++;
                any[t] = any[t] || kept > 0;
            }
            CHECK(dropped < drop);
            CHECK(out.rows[r].dropped == Approx(dropped).epsilon(2e-3).margin(1e-9));
            CHECK(out.rows[r].entropy == whole.rows[r].entropy);
            CHECK(out.rows[r].drawn == whole.rows[r].drawn);
        }
        for (int t = 0; t < n_tile; t++) {
            CHECK(out.live[t] == any[t]);
            n_live += any[t];
        }
        INFO("drop " << drop << ": " << n_live << " of " << n_tile << " live");
        CHECK(n_live > 5);
        CHECK(n_live < n_tile);
        CHECK(n_dropped > n_row * (n_tile - n_live));  // rows differ
    }
    // The default: as little as the type rounds away.
    CHECK(soft_drop({}, 24) == 0x1p-24f);
    CHECK(soft_drop({}, 11) == 0x1p-10f);
}

TEMPLATE_TEST_CASE("sample: given tokens and choices, as the CPU has them", "[sample]", float, F16) {
    const int n_vocab = 400, n_row = 9, stride = vocab_stride(n_vocab);
    const auto z = stored<TestType>(random_floats(size_t(n_row) * n_vocab, 61, 2), n_vocab);
    const auto head = make_head<TestType>(z, n_vocab);
    // Rows 0, 4 given; rows 2, 3 one of four texts with tokens in common; row 8 one of two equal ones.
    const Choice pair{2, {{5, 130}, {5, 399}, {260, 130}, {5, 7}}}, twin{8, {{9}, {9}}};
    GivenTokens given{};
    std::fill_n(given.tokens, kMaxCanvas, GivenTokens::kFree);
    given.tokens[0] = 399, given.tokens[4] = 0;
    given.tokens[2] = given.tokens[3] = -2, given.tokens[8] = -3;
    given.choices[0] = {2, 2, 4, 0};
    given.choices[1] = {8, 1, 2, 8};
    int at = 0;
    for (const Choice* choice : {&pair, &twin})
        for (const auto& option : choice->options)
            for (int32_t id : option) given.options[at++] = id;
    for (int seed = 0; seed < 8; seed++) {
        LoopState state = make_state({}, 0, seed);
        state.has_given = 1;
        const Sampled out = run_sample(head, n_vocab, state, given);
        auto expected = z;
        std::vector<RowStats> rows(n_row);
        for (int r : {1, 5, 6, 7})
            rows[r] = sample_row(std::span(expected).subspan(size_t(r) * n_vocab, n_vocab), 1,
                                 uniform(state, r), 0, false);
        for (const Choice* choice : {&pair, &twin})
            sample_choice(expected, n_vocab, *choice, 1, uniform(state, choice->begin), rows);
        for (int r : {0, 4}) {
            std::fill_n(expected.begin() + r * n_vocab, n_vocab, 0.0f);
            expected[r * n_vocab + given.tokens[r]] = 1;
            rows[r] = {0, given.tokens[r], given.tokens[r], 0, 0};
        }
        const Tolerance tol = tolerance<TestType>;
        for (int r = 0; r < n_row; r++) {
            INFO("seed " << seed << " row " << r);
            CHECK(out.rows[r].argmax == rows[r].argmax);
            CHECK(out.rows[r].drawn == rows[r].drawn);
            CHECK(std::fabs(out.rows[r].entropy - rows[r].entropy) <= tol.entropy);
            CHECK(std::fabs(out.rows[r].log_prob - rows[r].log_prob) <= tol.entropy);
            int n_wrong = 0;
            for (int v = 0; v < stride; v++) {
                const double want = v < n_vocab ? expected[r * n_vocab + v] : 0,
                             have = out.probs[r * stride + v];
                if (!(std::fabs(have - want) <= tol.p * want + tol.p_lowest)) n_wrong++;
            }
            CHECK(n_wrong == 0);
        }
        // Without has_given nothing of it counts.
        state.has_given = 0;
        CHECK(run_sample(head, n_vocab, state, given).rows[0].entropy > 0);
    }
}

TEMPLATE_TEST_CASE("probabilities agree with the CPU", "[sample]", float, F16) {
    for (int n_vocab : {1, 100, 128, 400, 5000})
        for (float t : {0.4f, 1.0f}) {
            const int n_row = 3, stride = vocab_stride(n_vocab);
            const auto logits = random_floats(size_t(n_vocab) * n_row, n_vocab + 4, 5);
            const auto found = every_schedule([&] {
                const auto device_logits = to_device(logits);
                DeviceArray<TestType> probs(size_t(stride) * n_row);
                const auto live = to_device(std::vector<uint8_t>(n_vocab_tile(n_vocab), 0));
                probabilities(Stream{}, probs.data(), live.data(), device_logits.data(), t, n_row, n_vocab);
                CHECK(to_host(live) == std::vector<uint8_t>(n_vocab_tile(n_vocab), 1));
                return to_host(probs);
            });
            std::vector<float> expected(size_t(stride) * n_row);
            for (int r = 0; r < n_row; r++) {
                std::copy_n(logits.begin() + r * n_vocab, n_vocab, expected.begin() + r * stride);
                sample_row(std::span(expected).subspan(size_t(r) * stride, n_vocab), t, 0, 0, false);
            }
            int n_wrong = 0;
            for (size_t i = 0; i < expected.size(); i++) {
                const double have = host_f32(found[i]) / prob_scale<TestType>(), want = expected[i];
                const Tolerance tol = tolerance<TestType>;
                if (!(std::fabs(have - want) <= tol.p * want + tol.p_lowest)) n_wrong++;
            }
            CHECK(n_wrong == 0);
        }
}

}  // namespace easel
