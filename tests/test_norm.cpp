// test_norm.cpp: the kernels of norm.cu against double precision: norms, rotary angles, the way into the KV
// cache, both ends of a layer's feed-forward part.
#include <algorithm>

#include "check.h"
#include "kernel.h"

using namespace easel;

namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

constexpr float kEps = 1e-6f;

struct Shape {
    int n_row, n;
};

// Float results: the scale is a root of a sum of up to 8192 squares, added in parts of at most 32 and then in
// a tree, and up to five roundings follow: each below 2^-24 = 6e-8, about 1e-7 together.
// F16 results: one rounding to 11 bits, at most 2^-11.
template <class T>
constexpr double tolerance = sizeof(T) == 4 ? 4e-7 : 0x1p-11;

// row / rms(row) * weight; a null weight is 1.
Doubles rms(const Doubles& row, const float* weight, double eps = kEps) {
    double sum = 0;
    for (double v : row) sum += v * v;
    const double scale = 1 / std::sqrt(sum / double(row.size()) + eps);
    Doubles out(row.size());
    for (size_t i = 0; i < row.size(); i++) out[i] = row[i] * scale * (weight ? weight[i] : 1.0);
    return out;
}

Doubles row_of(const Floats& v, size_t r, int n) {
    return Doubles(v.begin() + r * n, v.begin() + (r + 1) * n);
}
void append(Doubles& to, const Doubles& row) {
    to.insert(to.end(), row.begin(), row.end());
}

// Device rows of padded(n) elements, all of them 7: what a kernel leaves alone still shows.
template <class T>
DeviceArray<T> filled_rows(int n_row, int n) {
    return to_device(std::vector<T>(size_t(n_row) * padded(n), host_from_f32<T>(7)));
}
template <class T>
bool padding_untouched(const std::vector<T>& rows, int n) {
    for (size_t i = 0; i < rows.size(); i++)
        if (int(i % padded(n)) >= n && host_f32(rows[i]) != 7) return false;
    return true;
}

DeviceArray<LoopState> device_state(int n_cached, int step) {
    LoopState state{};
    state.n_cached = n_cached;
    state.step = step;
    return to_device(std::vector<LoopState>{state});
}

template <class T>
std::vector<T> run_rms_norm(const Floats& x, const Floats* weight, int n_row, int n) {
    return every_schedule([&] {
        auto out = filled_rows<T>(n_row, n);
        const auto in = to_device(x), w = to_device(weight ? *weight : Floats(1));
        rms_norm<T>({}, out.data(), in.data(), weight ? w.data() : nullptr, n_row, n, kEps);
        return to_host(out);
    });
}

}  // namespace

TEMPLATE_TEST_CASE("rms_norm is that of double precision", "[norm]", float, F16) {
    // 33 and 5001: no vectors; 5000, 8192: several values a thread.
    const Shape s =
        GENERATE(Shape{5, 32}, Shape{1, 48}, Shape{3, 64}, Shape{3, 100}, Shape{4, 33}, Shape{1, 1},
                 Shape{3, 256}, Shape{3, 2816}, Shape{2, 5000}, Shape{1, 5001}, Shape{1, 8192});
    const int n_row = s.n_row, n = s.n;
    const Floats x = random_floats(size_t(n_row) * n, 1 + n, 3), weight = random_floats(n, 2);
    for (const Floats* w : {&weight, static_cast<const Floats*>(nullptr)}) {
        const auto out = run_rms_norm<TestType>(x, w, n_row, n);
        Doubles expected;
        for (int r = 0; r < n_row; r++) append(expected, rms(row_of(x, r, n), w ? w->data() : nullptr));
        INFO(n_row << " rows of " << n << (w ? "" : ", no weight"));
        CHECK(distance(from_rows(out, n), expected) < tolerance<TestType>);
        CHECK(padding_untouched(out, n));
    }
}

TEST_CASE("rms_norm of zero, tiny and uneven rows", "[norm]") {
    const int n = 100;
    Floats x(3 * n, 0.0f);
    for (int i = 0; i < n; i++) x[n + i] = 1e-5f * float(i % 7 - 3);  // eps counts
    x[2 * n + 99] = -1e4f;                                            // all in the last value
    const auto out = from_rows(run_rms_norm<float>(x, nullptr, 3, n), n);
    Doubles expected;
    for (int r = 0; r < 3; r++) append(expected, rms(row_of(x, r, n), nullptr));
    for (int i = 0; i < n; i++) REQUIRE(out[i] == 0);
    CHECK(std::fabs(out[2 * n + 99] + 10) < 4e-6);  // of 10, the tolerance
    CHECK(distance(Floats(out.begin() + n, out.begin() + 2 * n),
                   Doubles(expected.begin() + n, expected.begin() + 2 * n)) < tolerance<float>);
}

TEST_CASE("rms_norm in F16 saturates", "[norm]") {
    const Floats x(64, 1.0f), weight(64, 1e6f);
    for (F16 v : run_rms_norm<F16>(x, &weight, 1, 64)) REQUIRE(host_f32(v) == 65504);
}

TEST_CASE("canvas_norm adds, and only after step 0", "[norm]") {
    const Shape s = GENERATE(Shape{8, 32}, Shape{1, 50}, Shape{3, 2816}, Shape{2, 5000}, Shape{1, 33});
    const int n_row = s.n_row, n = s.n;
    const int step = GENERATE(0, 1, 47);
    const Floats x = random_floats(size_t(n_row) * n, 3);
    const Floats add = step ? random_floats(x.size(), 4, 2) : Floats(x.size(), NAN);
    const Floats out = every_schedule([&] {
        const auto rows = to_device(x), more = to_device(add);
        const auto state = device_state(5, step);
        canvas_norm({}, rows.data(), more.data(), n_row, n, kEps, state.data());
        return to_host(rows);
    });
    Doubles expected;
    for (int r = 0; r < n_row; r++) {
        Doubles row = row_of(x, r, n);
        for (int i = 0; step && i < n; i++) row[i] += add[r * n + i];
        append(expected, rms(row, nullptr));
    }
    INFO(n_row << " rows of " << n << ", step " << step);
    CHECK(distance(out, expected) < tolerance<float>);
}

TEST_CASE("rotation is exact at every position", "[norm]") {
    struct Case {
        int n_cached, n_token, half;
        double theta;
    };
    const Case c = GENERATE(Case{0, 1, 8, 1e4}, Case{0, 5, 16, 1e4}, Case{1000, 7, 128, 1e4},
                            Case{262143, 1, 256, 1e6}, Case{261888, 256, 3, 1e4});
    Doubles freq(c.half);
    for (int i = 0; i < c.half; i++) freq[i] = std::pow(c.theta, -1.0 * i / c.half);
    const size_t n = size_t(c.n_token) * c.half;
    const Floats out = every_schedule([&] {
        const DeviceArray<float> cos(n), sin(n);
        const auto f = to_device(freq);
        const auto state = device_state(c.n_cached, 0);
        rotation({}, cos.data(), sin.data(), f.data(), c.n_token, c.half, state.data());
        Floats both = to_host(cos), second = to_host(sin);
        both.insert(both.end(), second.begin(), second.end());
        return both;
    });
    double worst = 0;
    for (size_t k = 0; k < n; k++) {
        const long double angle = static_cast<long double>(c.n_cached + int(k) / c.half) * freq[k % c.half];
        worst = std::max({worst, double(std::fabs(out[k] - std::cos(angle))),
                          double(std::fabs(out[n + k] - std::sin(angle)))});
    }
    // Half a unit in the last place of a float below 1 is 2^-25; the angle itself is off by up to 2^-36.
    CHECK(worst < 0x1p-25 + 0x1p-35);
}

TEMPLATE_TEST_CASE("qkv_norm norms, rotates and fills the cache", "[norm]", float, F16) {
    struct Case {
        int n_cached, n_token, n_head, n_head_kv, head_dim, n_slot;
        bool v_is_k, joint = false;
    };
    const Case c = GENERATE(Case{0, 1, 2, 1, 16, 8, false},     // one row
                            Case{0, 5, 4, 2, 32, 5, true},      // a full cache
                            Case{13, 6, 3, 3, 50, 16, false},   // wraps: 13-15, 0-2; uneven pairs
                            Case{1023, 3, 2, 1, 256, 7, true},  // many times round
                            Case{40, 9, 8, 2, 64, 64, false},   // blocks of 8 heads over tokens
                            Case{0, 2, 1, 1, 2, 2, false},      // a single pair
                            Case{7, 2, 3, 1, 130, 8, false}, Case{3, 3, 2, 1, 512, 4, true},
                            Case{3, 4, 4, 2, 512, 5, true, true});
    if (c.joint && std::is_same_v<TestType, float>) return;  // of F16 alone
    const int n_split = GENERATE(1, 2, 7);
    const int hd = c.head_dim, half = hd / 2, n_q = c.n_head * hd, n_kv = c.n_head_kv * hd;
    const Floats q = random_floats(size_t(n_split) * c.n_token * n_q, 1, 2),
                 k = random_floats(size_t(n_split) * c.n_token * n_kv, 2, 0.1f),
                 v = random_floats(size_t(n_split) * c.n_token * n_kv, 3, 5), q_weight = random_floats(hd, 4),
                 k_weight = random_floats(hd, 5);
    Floats angle = random_floats(size_t(c.n_token) * half, 6, 3);
    const auto rotated = [&](int i) { return !c.joint || i % half < kJointRotated / 2; };
    for (size_t i = 0; i < angle.size(); i++)
        if (!rotated(static_cast<int>(i % half))) angle[i] = 0;
    Floats cos(angle.size()), sin(angle.size());
    for (size_t i = 0; i < angle.size(); i++) cos[i] = std::cos(angle[i]), sin[i] = std::sin(angle[i]);

    const int k_dim = c.joint ? kJointRotated : hd;
    const size_t q_size = size_t(c.n_token) * padded(n_q), n_kv_row = size_t(c.n_head_kv) * c.n_slot,
                 k_size = n_kv_row * k_dim, v_size = n_kv_row * hd;
    const auto out = every_schedule([&] {
        const auto q_out = filled_rows<TestType>(c.n_token, n_q);
        const auto k_cache = to_device(std::vector<TestType>(k_size, host_from_f32<TestType>(9))),
                   v_cache = to_device(std::vector<TestType>(v_size, host_from_f32<TestType>(9)));
        const auto dq = to_device(q), dk = to_device(k), dv = to_device(v), dqw = to_device(q_weight),
                   dkw = to_device(k_weight), dc = to_device(cos), ds = to_device(sin);
        const auto state = device_state(c.n_cached, 3);
        qkv_norm<TestType>({}, {.q_out = q_out.data(),
                                .cache = {k_cache.data(), v_cache.data(), c.n_slot, c.joint},
                                .q = dq.data(),
                                .k = dk.data(),
                                .v = c.v_is_k ? dk.data() : dv.data(),
                                .n_split = n_split,
                                .q_norm = dqw.data(),
                                .k_norm = dkw.data(),
                                .cos = dc.data(),
                                .sin = ds.data(),
                                .n_token = c.n_token,
                                .shape = {c.n_head, c.n_head_kv, hd, 0},
                                .eps = kEps,
                                .state = state.data()});
        auto all = to_host(q_out);
        for (const auto& more : {to_host(k_cache), to_host(v_cache)})
            all.insert(all.end(), more.begin(), more.end());
        return all;
    });

    const auto head = [&](const Floats& x, int t, int n_head, int h, const float* weight, bool rotate) {
        Doubles row = row_of(x, size_t(t) * n_head + h, hd);
        for (int p = 1; p < n_split; p++)
            for (int i = 0; i < hd; i++) row[i] += x[((size_t(p) * c.n_token + t) * n_head + h) * hd + i];
        row = rms(row, weight);
        for (int i = 0; rotate && i < half; i++) {
            const double a = row[i], b = row[i + half], co = cos[t * half + i], si = sin[t * half + i];
            row[i] = a * co - b * si;
            row[i + half] = b * co + a * si;
        }
        return row;
    };
    // Of a joint layer, the columns in their places.
    const auto placed = [&](const Doubles& row) {
        Doubles out = row;
        for (int i = 0; c.joint && i < hd; i++) out[i] = row[joint_column(i)];
        return out;
    };
    Doubles expected_q, expected_k(k_size, 9.0), expected_v(v_size, 9.0);
    for (int t = 0; t < c.n_token; t++) {
        for (int h = 0; h < c.n_head; h++) {
            Doubles row = head(q, t, c.n_head, h, q_weight.data(), true);
            for (int i = 0; i < hd; i++) row[i] *= rotated(i) ? 1 : k_weight[i];
            append(expected_q, placed(row));
        }
        for (int h = 0; h < c.n_head_kv; h++) {
            const size_t at = size_t(h) * c.n_slot + (c.n_cached + t) % c.n_slot;
            const Doubles kh = head(k, t, c.n_head_kv, h, k_weight.data(), true),
                          vh = placed(head(c.v_is_k ? k : v, t, c.n_head_kv, h, nullptr, false));
            auto k_out = expected_k.begin() + at * k_dim;
            for (int i = 0; i < hd; i++)
                if (rotated(i)) *k_out++ = kh[i];
            std::copy(vh.begin(), vh.end(), expected_v.begin() + at * hd);
        }
    }
    const std::vector<TestType> q_rows(out.begin(), out.begin() + q_size);
    const Floats k_out = host_f32(std::vector<TestType>(out.begin() + q_size, out.begin() + q_size + k_size)),
                 v_out = host_f32(std::vector<TestType>(out.begin() + q_size + k_size, out.end()));
    INFO("head_dim " << hd << ", " << c.n_cached << " cached");
    CHECK(distance(from_rows(q_rows, n_q), expected_q) < tolerance<TestType>);
    CHECK(padding_untouched(q_rows, n_q));
    CHECK(distance(k_out, expected_k) < tolerance<TestType>);
    CHECK(distance(v_out, expected_v) < tolerance<TestType>);
    for (size_t i = 0; i < v_size; i++)  // slots of other positions are as they were
        if (expected_v[i] == 9) REQUIRE((k_out[i / hd * k_dim] == 9 && v_out[i] == 9));
}

TEST_CASE("qkv_norm refuses what it has no room for", "[norm]") {
    const auto run = [](int n_token, int head_dim, int n_slot, bool joint = false) {
        QkvNorm<float> p{};
        p.cache = {nullptr, nullptr, n_slot, joint};
        p.n_token = n_token;
        p.shape = {1, 1, head_dim, 0};
        qkv_norm({}, p);
    };
    CHECK_THROWS_AS(run(1, 514, 8), Error);
    CHECK_THROWS_AS(run(1, 33, 8), Error);
    CHECK_THROWS_AS(run(9, 32, 8), Error);
    CHECK_THROWS_AS(run(1, 256, 8, true), Error);
}

TEMPLATE_TEST_CASE("post_attention leaves h and three norms of it", "[norm]", float, F16) {
    const Shape s = GENERATE(Shape{8, 32}, Shape{1, 48}, Shape{3, 100}, Shape{2, 33}, Shape{2, 2816},
                             Shape{1, 5000}, Shape{1, 8192});
    const int n_row = s.n_row, n = s.n;
    const int n_split = GENERATE(1, 3, 7);
    Floats x = random_floats(size_t(n_row) * n, 1, 4), o = random_floats(n_split * x.size(), 2, 0.2f);
    for (int p = 0; p < n_split; p++)  // a row of zeros stays one
        std::fill_n(o.begin() + p * x.size(), n, 0.0f);
    if (n_row > 1) std::fill(x.begin(), x.begin() + n, 0.0f);
    const Floats post = random_floats(n, 3), ffn = random_floats(n, 4), pre = random_floats(n, 5),
                 router = random_floats(n, 6);
    const size_t size = x.size(), rows = size_t(n_row) * padded(n);
    const Floats out = every_schedule([&] {
        const DeviceArray<float> h(size), router_in(size);
        const auto ffn_in = filled_rows<TestType>(n_row, n), expert_in = filled_rows<TestType>(n_row, n);
        const auto dx = to_device(x), d_o = to_device(o), dpost = to_device(post), dffn = to_device(ffn),
                   dpre = to_device(pre), drouter = to_device(router);
        post_attention<TestType>({}, {.h = h.data(),
                                      .ffn_in = ffn_in.data(),
                                      .expert_in = expert_in.data(),
                                      .router_in = router_in.data(),
                                      .x = dx.data(),
                                      .o = d_o.data(),
                                      .n_split = n_split,
                                      .post_attention_norm = dpost.data(),
                                      .ffn_norm = dffn.data(),
                                      .pre_ffw_norm_2 = dpre.data(),
                                      .router_scale = drouter.data(),
                                      .n_row = n_row,
                                      .n = n,
                                      .eps = kEps});
        Floats all;
        for (const Floats& part :
             {to_host(h), to_host(router_in), host_f32(to_host(ffn_in)), host_f32(to_host(expert_in))})
            all.insert(all.end(), part.begin(), part.end());
        return all;
    });
    Doubles h, router_in, ffn_in, expert_in;
    for (int r = 0; r < n_row; r++) {
        Doubles row = row_of(o, r, n);
        for (int p = 1; p < n_split; p++)
            for (int i = 0; i < n; i++) row[i] += o[(size_t(p) * n_row + r) * n + i];
        row = rms(row, post.data());
        for (int i = 0; i < n; i++) row[i] += x[r * n + i];
        append(h, row);
        append(ffn_in, rms(row, ffn.data()));
        append(expert_in, rms(row, pre.data()));
        for (double v : rms(row, router.data())) router_in.push_back(v / std::sqrt(double(n)));
    }
    const auto part = [&](size_t at, size_t count) {
        return Floats(out.begin() + at, out.begin() + at + count);
    };
    const Floats ffn_rows = part(2 * size, rows), expert_rows = part(2 * size + rows, rows);
    INFO(n_row << " rows of " << n);
    CHECK(distance(part(0, size), h) < tolerance<float>);
    CHECK(distance(part(size, size), router_in) < tolerance<float>);
    CHECK(distance(from_rows(ffn_rows, n), ffn_in) < tolerance<TestType>);
    CHECK(distance(from_rows(expert_rows, n), expert_in) < tolerance<TestType>);
    CHECK(padding_untouched(ffn_rows, n));
    CHECK(padding_untouched(expert_rows, n));
}

TEMPLATE_TEST_CASE("layer_end joins the branches", "[norm]", float, F16) {
    struct Case {
        int n_row, n, n_used;
        bool last;
    };
    const Case c = GENERATE(Case{1, 32, 1, false}, Case{5, 48, 2, false}, Case{3, 100, 8, true},
                            Case{2, 33, 9, false}, Case{2, 2816, 8, false}, Case{1, 5000, 2, true},
                            Case{1, 8192, 1, false}, Case{2, 64, 32, false}, Case{1, 65, 17, true});
    const int n = c.n;
    const size_t size = size_t(c.n_row) * n, n_slot = size_t(c.n_row) * c.n_used;
    const Floats h = random_floats(size, 1, 3), slot_out = random_floats(n_slot * n, 3, 0.5f),
                 weight = random_floats(n_slot, 4), norm1 = random_floats(n, 5), norm2 = random_floats(n, 6),
                 post = random_floats(n, 7), next = random_floats(n, 8);
    Floats dense = random_floats(size, 2, 10);
    if (c.n_row > 1) std::fill(dense.begin(), dense.begin() + n, 0.0f);
    const float scale = 0.37f;
    std::vector<int> slot_of(n_slot);
    for (size_t i = 0; i < n_slot; i++) slot_of[i] = int(i);
    std::shuffle(slot_of.begin(), slot_of.end(), std::mt19937(9));

    const Floats out = every_schedule([&] {
        const DeviceArray<float> x(size);
        const auto next_in = filled_rows<TestType>(c.n_row, n);
        const auto dh = to_device(h), ddense = to_device(dense), dslots = to_device(slot_out),
                   dweight = to_device(weight), d1 = to_device(norm1), d2 = to_device(norm2),
                   dpost = to_device(post), dnext = to_device(next);
        const auto dslot_of = to_device(slot_of);
        layer_end<TestType>({}, {.x = x.data(),
                                 .next_in = next_in.data(),
                                 .h = dh.data(),
                                 .dense = ddense.data(),
                                 .slot_out = dslots.data(),
                                 .slot_of = dslot_of.data(),
                                 .weight = dweight.data(),
                                 .n_used = c.n_used,
                                 .post_ffw_norm_1 = d1.data(),
                                 .post_ffw_norm_2 = d2.data(),
                                 .post_ffw_norm = dpost.data(),
                                 .scale = scale,
                                 .next_norm = c.last ? nullptr : dnext.data(),
                                 .n_row = c.n_row,
                                 .n = n,
                                 .eps = kEps});
        Floats all = to_host(x), second = host_f32(to_host(next_in));
        all.insert(all.end(), second.begin(), second.end());
        return all;
    });
    Doubles x, next_in;
    for (int r = 0; r < c.n_row; r++) {
        Doubles mix(n);
        for (int i = 0; i < c.n_used; i++) {
            const size_t pair = size_t(r) * c.n_used + i;
            for (int j = 0; j < n; j++)
                mix[j] += double(weight[pair]) * slot_out[size_t(slot_of[pair]) * n + j];
        }
        Doubles f = rms(row_of(dense, r, n), norm1.data());
        const Doubles f2 = rms(mix, norm2.data());
        for (int j = 0; j < n; j++) f[j] += f2[j];
        f = rms(f, post.data());
        for (int j = 0; j < n; j++) f[j] = (h[r * n + j] + f[j]) * scale;
        append(x, f);
        append(next_in, rms(f, next.data()));
    }
    const Floats rows(out.begin() + size, out.end());
    INFO(c.n_row << " rows of " << n << ", " << c.n_used << " experts");
    CHECK(distance(Floats(out.begin(), out.begin() + size), x) < tolerance<float>);
    if (c.last)
        CHECK(std::all_of(rows.begin(), rows.end(), [](float v) { return v == 7; }));
    else
        CHECK(distance(from_rows(rows, n), next_in) < tolerance<TestType>);
    CHECK(padding_untouched(rows, n));
}
