// test_attention.cpp: attention() against softmax(q k^T) v in double. Slots of the cache that no row may see
// are NaN in every case, so is scratch; what lies past the columns of an output row must stay as it was, and
// what scratch has for splits that are not used.
#include <algorithm>
#include <limits>

#include "check.h"
#include "kernel.h"

using namespace easel;

namespace {

struct Case {
    int head_dim, n_head, n_head_kv;
    int window;  // 0: global
    int n_cached, n_token;
    Mask mask;
    int n_split = 1;     // of the keys, however few there are
    float score = 2;     // standard deviation of the scores
    int more_slots = 0;  // of the cache, than it needs
    bool joint = false;  // K and V of heads of 512: see KvLayer
    KvSplits rule = {};  // for n_split 0

    AttentionShape shape() const { return {n_head, n_head_kv, head_dim, window}; }
    int n_slot() const { return (window ? window - 1 + n_token : n_cached + n_token) + more_slots; }
    KvSplits splits() const { return n_split ? KvSplits{n_split, n_split, 1} : rule; }
    int n_key() const { return n_cached + n_token - oldest(n_cached); }
    int oldest(int position) const { return window ? std::max(0, position - (window - 1)) : 0; }
};
std::ostream& operator<<(std::ostream& s, const Case& c) {
    return s << "head_dim " << c.head_dim << ", heads " << c.n_head << "/" << c.n_head_kv << ", window "
             << c.window << ", n_cached " << c.n_cached << ", n_token " << c.n_token
             << (c.mask == Mask::Causal ? ", causal" : ", canvas") << ", splits "
             << c.splits().used(c.n_key()) << " of " << c.splits().most << (c.joint ? ", joint" : "");
}

// q [n_token, n_head, head_dim]; k, v [n_head_kv, position, head_dim]: rounded to T.
template <class T>
struct Inputs {
    std::vector<float> q, k, v;

    explicit Inputs(const Case& c) {
        const auto random = [&](size_t n, uint32_t seed, float scale) {
            auto values = random_floats(n, seed, scale);
            for (float& f : values) f = host_f32(host_from_f32<T>(f));
            return values;
        };
        const size_t n_kv = size_t(c.n_head_kv) * (c.n_cached + c.n_token) * c.head_dim;
        q = random(size_t(c.n_token) * c.n_head * c.head_dim, 1, c.score / std::sqrt(float(c.head_dim)));
        k = random(n_kv, 2, 1);
        v = random(n_kv, 3, 1);
        for (size_t i = 0; c.joint && i < n_kv; i++)
            if (!rotated(i % c.head_dim)) k[i] = v[i];
    }
    static bool rotated(size_t col) { return col % (kJointDim / 2) < kJointRotated / 2; }
    // As the cache has them: the positions that the first row sees, or a later one; NaN in other slots.
    std::vector<T> cache(const Case& c, const std::vector<float>& kv, const std::vector<int>& columns) const {
        const size_t n_position = c.n_cached + c.n_token, n = columns.size();
        std::vector<T> out(c.n_head_kv * c.n_slot() * n, host_from_f32<T>(NAN));
        for (size_t h = 0; h < size_t(c.n_head_kv); h++)
            for (size_t p = c.oldest(c.n_cached); p < n_position; p++)
                for (size_t i = 0; i < n; i++)
                    out[(h * c.n_slot() + p % c.n_slot()) * n + i] =
                        host_from_f32<T>(kv[(h * n_position + p) * c.head_dim + columns[i]]);
        return out;
    }
    // The columns as they stand in q and V; in K: all of these, or the rotated ones.
    static std::vector<int> columns(const Case& c, bool of_k) {
        std::vector<int> out(c.head_dim);
        for (int i = 0; i < c.head_dim; i++) out[i] = c.joint ? joint_column(i) : i;
        if (c.joint && of_k) std::erase_if(out, [](int col) { return !rotated(col); });
        return out;
    }
};

// The specification (SPEC 2.4), in double.
template <class T>
std::vector<double> expected(const Case& c, const Inputs<T>& in) {
    const int hd = c.head_dim, n_position = c.n_cached + c.n_token;
    std::vector<double> out(in.q.size());
    for (int t = 0; t < c.n_token; t++)
        for (int h = 0; h < c.n_head; h++) {
            const int kv_head = h / (c.n_head / c.n_head_kv);
            const int high = c.mask == Mask::Canvas ? n_position : c.n_cached + t + 1;
            const int low = c.oldest(c.mask == Mask::Canvas ? c.n_cached : c.n_cached + t);
            const float* q = &in.q[(size_t(t) * c.n_head + h) * hd];
            const float* k = &in.k[size_t(kv_head) * n_position * hd];
            const float* v = &in.v[size_t(kv_head) * n_position * hd];
            std::vector<double> score(high - low);
            for (int p = low; p < high; p++)
                for (int i = 0; i < hd; i++) score[p - low] += double(q[i]) * k[size_t(p) * hd + i];
            const double max = *std::max_element(score.begin(), score.end());
            double sum = 0;
            for (double& s : score) sum += s = std::exp(s - max);
            double* o = &out[(size_t(t) * c.n_head + h) * hd];
            for (int p = low; p < high; p++)
                for (int i = 0; i < hd; i++) o[i] += score[p - low] / sum * v[size_t(p) * hd + i];
        }
    return out;
}

constexpr uint32_t kUnwritten = 0xffffffff;  // NaN, also as two F16

// The rows of out, whose padding must be as it was before the launch.
template <class T>
std::vector<T> run(const Case& c, const Inputs<T>& in) {
    const int n_col = c.n_head * c.head_dim, ld = padded(n_col);
    const T untouched = host_from_f32<T>(-77);
    const auto order = in.columns(c, false);
    std::vector<float> q_placed(in.q.size());
    for (size_t i = 0; i < in.q.size(); i++)
        q_placed[i] = in.q[i / c.head_dim * c.head_dim + order[i % c.head_dim]];
    const auto q = to_device(to_rows<T>(q_placed, n_col));
    const auto k = to_device(in.cache(c, in.k, in.columns(c, true))), v = to_device(in.cache(c, in.v, order));
    const auto out = to_device(std::vector<T>(size_t(c.n_token) * ld, untouched));
    LoopState state{};
    state.n_cached = c.n_cached;
    const auto device_state = to_device(std::vector<LoopState>{state});
    const KvSplits splits = c.splits();
    const auto scratch =
        to_device(std::vector<uint32_t>(attention_scratch<T>(c.n_token, c.shape(), splits.most), kUnwritten));
    attention<T>(Stream{}, out.data(), q.data(), {k.data(), v.data(), c.n_slot(), c.joint}, c.n_token,
                 c.shape(), c.mask, splits, reinterpret_cast<float*>(scratch.data()), device_state.data());
    const auto left = to_host(scratch);
    const int64_t n_used = attention_scratch<T>(c.n_token, c.shape(), splits.used(c.n_key()));
    CHECK(std::count(left.begin() + n_used, left.end(), kUnwritten) == std::ssize(left) - n_used);
    auto rows = to_host(out);
    int n_touched = 0;
    for (int t = 0; t < c.n_token; t++)
        for (int i = n_col; i < ld; i++)
            n_touched += host_f32(rows[size_t(t) * ld + i]) != host_f32(untouched);
    CHECK(n_touched == 0);
    return rows;
}

// The largest distance of a head's output from that of the specification.
template <class T>
double worst(const Case& c, const std::vector<T>& rows, const Inputs<T>& in) {
    const auto found = from_rows(rows, c.n_head * c.head_dim);
    const auto want = expected(c, in);
    double result = 0;
    for (size_t i = 0; i < found.size(); i += c.head_dim)
        result = std::max(result, distance(std::vector(&found[i], &found[i] + c.head_dim),
                                           std::vector(&want[i], &want[i] + c.head_dim)));
    return result;
}

// F16: probabilities and output are rounded to 11 bits, each by 2^-11 (4.9e-4) of itself at most, and what is
// added up can be larger than the sum. float: a score is a sum of up to 512 products, each step of which is
// rounded by 2^-25 of some units, and its error is that of the probability.
template <class T>
constexpr double tolerance = sizeof(T) == 4 ? 6e-6 : 1e-3;

template <class T>
void check(const Case& c) {
    const Inputs<T> in(c);
    INFO(c);
    CHECK(worst(c, run<T>(c, in), in) < tolerance<T>);
}

}  // namespace

TEMPLATE_TEST_CASE("attention: sizes of heads and groups", "[attention]", F16, float) {
    // From the smallest to the largest, even ones that are no multiple of 8, and in between.
    for (const int head_dim : {2, 16, 18, 32, 40, 64, 96, 128, 250, 256, 258, 384, 390, 510, 512})
        check<TestType>({head_dim, 2, 1, 24, 70, 9, Mask::Causal});
    for (const int group : {1, 2, 3, 8, 70}) {  // 70: a token's heads in two row tiles
        check<TestType>({16, group, 1, 0, 5, 11, Mask::Causal});
        check<TestType>({40, 2 * group, 2, 24, 90, 7, Mask::Canvas, 2});
    }
    for (const int group : {1, 2, 8}) {
        check<TestType>({256, 2 * group, 2, 40, 133, 10, Mask::Canvas});
        check<TestType>({512, group, 1, 0, 70, 10, Mask::Canvas});
        check<TestType>({512, group, 1, 0, 70, 10, Mask::Causal});
    }
}

TEMPLATE_TEST_CASE("attention: around the window, around the ring", "[attention]", F16, float) {
    constexpr int window = 70;
    for (const Mask mask : {Mask::Causal, Mask::Canvas})
        for (const int n_token : {1, 3, 37, 90})  // less and more than a row tile, a window
            for (const int n_cached : {0, 1, window - 2, window - 1, window, 5 * window + 3})
                for (const int more_slots : {0, 13})
                    check<TestType>({32, 2, 1, window, n_cached, n_token, mask, 1, 2, more_slots});
    // A window of one: each row sees itself; the canvas, itself.
    check<TestType>({32, 2, 1, 1, 0, 20, Mask::Causal});
    check<TestType>({32, 2, 1, 1, 50, 70, Mask::Causal, 2});
    check<TestType>({32, 2, 1, 1, 50, 20, Mask::Canvas});
}

TEMPLATE_TEST_CASE("attention: global", "[attention]", F16, float) {
    for (const Mask mask : {Mask::Causal, Mask::Canvas})
        for (const int n_cached : {0, 1, 63, 64, 65, 300})
            for (const int n_token : {1, 64, 65})
                check<TestType>({16, 2, 1, 0, n_cached, n_token, mask, 1, 2, 5});
}

TEMPLATE_TEST_CASE("attention: less and more than tiles of rows and keys", "[attention]", F16, float) {
    // Blocks have 128 rows and 32 keys, of heads of 512 half of that.
    for (const Mask mask : {Mask::Causal, Mask::Canvas}) {
        for (const int n_token : {63, 64, 65}) {
            for (const int n_key : {95, 96, 97})
                check<TestType>({16, 2, 1, 0, n_key - n_token, n_token, mask, 1, 2, 5});
            check<TestType>({256, 2, 1, 0, 32, n_token, mask});
            check<TestType>({512, 1, 1, 0, 32, n_token, mask});
        }
        for (const int n_key : {31, 32, 33, 64}) check<TestType>({256, 1, 1, 0, n_key - 8, 8, mask});
        for (const int n_key : {15, 16, 17, 32}) check<TestType>({512, 1, 1, 0, n_key - 8, 8, mask});
        // Around rings that are no multiple of a tile, with a window shorter than one.
        for (const int n_cached : {0, 30, 77}) {
            check<TestType>({256, 2, 1, 11, n_cached, 40, mask, 2, 2, 3});
            check<TestType>({512, 2, 1, 11, n_cached, 40, mask, 2, 2, 3});
        }
        check<TestType>({444, 3, 1, 30, 50, 30, mask, 3});
    }
}

TEMPLATE_TEST_CASE("attention: splits of the keys", "[attention]", F16, float) {
    for (const int n_split : {1, 2, 3, 7, 40})  // 40: more than there are tiles of keys
        for (const Mask mask : {Mask::Causal, Mask::Canvas}) {
            check<TestType>({32, 4, 2, 0, 300, 33, mask, n_split});
            check<TestType>({32, 4, 2, 100, 300, 70, mask, n_split});
            check<TestType>({18, 4, 2, 100, 0, 5, mask, n_split});
            check<TestType>({256, 2, 1, 0, 100, 5, mask, n_split});
            check<TestType>({512, 2, 1, 0, 100, 5, mask, n_split});
        }
    // Parts whose keys some rows of a tile do not see: the window is shorter than a tile.
    check<TestType>({32, 1, 1, 8, 200, 64, Mask::Causal, 2});
    check<TestType>({32, 1, 1, 8, 0, 64, Mask::Causal, 3});
}

TEST_CASE("attention: how many splits keys are worth") {
    const auto used = [](KvSplits splits, std::vector<int> n_keys) {
        for (int& n : n_keys) n = splits.used(n);
        return n_keys;
    };
    using Numbers = std::vector<int>;
    // A wave of one, two and four splits; three, of which 8 would be two waves and two thirds.
    CHECK(used({8, 1}, {1, 512, 513, 1024, 1025, 1536, 1537, 3584, 3585, 262144}) ==
          Numbers{1, 1, 2, 2, 3, 3, 4, 7, 8, 8});
    CHECK(used({8, 2}, {1, 511, 512, 1024, 1025, 1536, 1537, 2560, 2561, 3584, 3585, 262144}) ==
          Numbers{1, 1, 2, 2, 2, 2, 4, 4, 6, 6, 8, 8});
    CHECK(used({8, 4}, {1, 511, 512, 767, 768, 1024, 2048, 2049, 3584, 3585, 262144}) ==
          Numbers{1, 1, 2, 2, 3, 4, 4, 4, 4, 8, 8});
    CHECK(used({8, 3}, {768, 1536, 2560, 2561, 3072, 3073, 262144}) == Numbers{3, 3, 3, 6, 6, 6, 6});
    // More than there may be; fewer than a wave.
    CHECK(used({8, 132}, {2047, 2048, 262144}) == Numbers{7, 8, 8});
    CHECK(used({1, 4}, {1, 262144}) == Numbers{1, 1});
    CHECK(used({}, {1, 262144}) == Numbers{1, 1});
}

TEMPLATE_TEST_CASE("attention: as many splits as the keys are worth", "[attention]", F16, float) {
    const auto check_with = [](KvSplits rule, Case c) {
        c.n_split = 0;
        c.rule = rule;
        check<TestType>(c);
    };
    // Room for eight: on both sides of where one becomes two, two four, and so on to eight, then far beyond.
    for (const int n_key : {3, 511, 512, 1536, 1537, 2560, 2561, 3584, 3585, 9000})
        check_with({8, 2}, {16, 2, 1, 0, n_key - 3, 3, Mask::Canvas});
    for (const int n_key : {20, 511, 512, 767, 768, 1023, 1024, 3584, 3585})
        check_with({8, 4}, {34, 3, 1, 0, n_key - 20, 20, Mask::Canvas});
    // Room for fewer than the keys are worth.
    for (const int n_key : {511, 3585}) check_with({2, 2}, {16, 2, 1, 0, n_key - 3, 3, Mask::Canvas});
    // Behind a window the keys do not become more.
    for (const int n_cached : {0, 500, 752, 753, 5000})
        check_with({4, 4}, {32, 2, 1, 1008, n_cached, 17, Mask::Canvas, 0, 2, 5});
    // Fewer of a pass' rows than a split has keys see them: what is used goes by the last row's.
    for (const int n_token : {511, 512, 600}) {
        check_with({8, 8}, {16, 2, 1, 0, 0, n_token, Mask::Causal});
        check_with({8, 8}, {16, 2, 1, 40, 100, n_token, Mask::Causal});
    }
    for (const int head_dim : {256, 512})
        for (const int n_cached : {3, 700}) {
            check_with({8, 2}, {head_dim, 2, 1, 0, n_cached, 9, Mask::Canvas});
            check_with({4, 4}, {head_dim, 2, 1, 600, n_cached, 9, Mask::Canvas});
        }
}

TEMPLATE_TEST_CASE("attention: room for more splits changes no bit", "[attention]", F16, float) {
    for (const int n_key : {90, 600}) {  // one, two
        Case c{64, 2, 1, 0, n_key - 20, 20, Mask::Canvas, 0};
        c.rule = {8, 2};
        const Inputs<TestType> in(c);
        const auto large = every_schedule([&] { return run<TestType>(c, in); }, 2);
        c.rule.most = c.rule.used(n_key);
        const auto just = run<TestType>(c, in);
        INFO(c);
        CHECK(from_rows(large, 128) == from_rows(just, 128));
    }
}

TEMPLATE_TEST_CASE("attention: the model's own shapes", "[attention]", F16, float) {
    check<TestType>({256, 2, 1, 1024, 1500, 33, Mask::Canvas, 2});
    check<TestType>({256, 2, 1, 1024, 1030, 33, Mask::Causal});
    Case joint{512, 8, 1, 0, 1000, 9, Mask::Canvas, 3};
    joint.joint = sizeof(TestType) == 2;
    check<TestType>(joint);
    joint.n_split = 0;
    joint.rule = {8, 2};  // two of them
    check<TestType>(joint);
}

TEST_CASE("attention: K and V joint", "[attention]") {
    // Each place has a column, and each column a place.
    for (int i = 0; i < kJointDim; i++) {
        const int half = i / 256 * 256;
        CHECK(joint_column(half + joint_place(i % 256)) == i);
    }
    const auto joint = [](Case c) {
        c.joint = true;
        check<F16>(c);
    };
    for (const Mask mask : {Mask::Causal, Mask::Canvas}) {
        for (const int group : {1, 2, 8}) joint({512, 2 * group, 2, 0, 70, 10, mask});
        for (const int n_key : {15, 16, 17, 32}) joint({512, 1, 1, 0, n_key - 8, 8, mask});
        for (const int n_token : {63, 64, 65}) joint({512, 1, 1, 0, 32, n_token, mask});
        for (const int n_split : {2, 7, 40}) joint({512, 2, 1, 0, 100, 5, mask, n_split});
        joint({512, 2, 1, 0, 40, 12, mask, 2, 2, 3});
    }
    Case c{512, 3, 1, 0, 40, 23, Mask::Canvas, 2};
    c.joint = true;
    const Inputs<F16> in(c);
    CHECK(worst(c, every_schedule([&] { return run<F16>(c, in); }, 2), in) < tolerance<F16>);
}

TEMPLATE_TEST_CASE("attention: large scores", "[attention]", F16, float) {
    // Where exp(score) is infinite, or zero, in float. float: the error of a score near 300, some times 2^-24
    // of it, is that of its probability.
    for (const int n_split : {1, 3})
        for (const float score : {50.0f, 100.0f}) {
            const Case c{64, 4, 2, 0, 200, 20, Mask::Causal, n_split, score};
            const Inputs<TestType> in(c);
            INFO(c);
            CHECK(worst(c, run<TestType>(c, in), in) < (sizeof(TestType) == 4 ? 1e-4 : 1e-3));
        }
}

TEST_CASE("attention: many small probabilities count", "[attention]") {
    // The first key has nearly all of the probability, 4,000 others have 1.1e-7 each, of which F16 alone
    // would keep a single bit. Their sum is the result: the first one's value is zero.
    Case c{16, 1, 1, 0, 4000, 1, Mask::Canvas};
    Inputs<F16> in(c);
    std::fill(in.q.begin(), in.q.end(), 0.0f);
    std::fill(in.k.begin(), in.k.end(), 0.0f);
    std::fill(in.v.begin(), in.v.end(), 1.0f);
    in.q[0] = 1;
    in.k[0] = 16;  // exp(-16) = 1.1e-7
    std::fill_n(in.v.begin(), 16, 0.0f);
    // 11 bits of each probability, all rounded alike, and of the result: at most 4.9e-4 twice.
    CHECK(worst(c, run<F16>(c, in), in) < 1e-3);
}

TEMPLATE_TEST_CASE("attention: any order of threads", "[attention]", F16, float) {
    for (const Case& c :
         {Case{64, 2, 1, 40, 133, 20, Mask::Causal, 1}, Case{40, 4, 2, 0, 133, 35, Mask::Canvas, 2},
          Case{18, 2, 2, 30, 70, 33, Mask::Causal, 5}, Case{512, 3, 1, 0, 40, 23, Mask::Canvas, 2},
          Case{256, 2, 1, 40, 70, 33, Mask::Causal}, Case{256, 2, 1, 0, 90, 20, Mask::Canvas, 2}}) {
        const Inputs<TestType> in(c);
        INFO(c);
        CHECK(worst(c, every_schedule([&] { return run<TestType>(c, in); }, 2), in) < tolerance<TestType>);
    }
}

TEST_CASE("attention: a row's bits do not depend on its place in a tile", "[attention]") {
    // In a pass of another length a token has another place.
    for (const int head_dim : {256, 512}) {
        const Case c{head_dim, 1, 1, 0, 30, 70, Mask::Canvas};
        Inputs<F16> in(c);
        for (size_t i = head_dim; i < in.q.size(); i++) in.q[i] = in.q[i - head_dim];  // equal rows
        const auto found = from_rows(run<F16>(c, in), head_dim);
        INFO(c);
        CHECK(std::equal(found.begin() + head_dim, found.end(), found.begin()));
    }
}

TEST_CASE("attention: refuses what it cannot do", "[attention]") {
    const auto launch = [](AttentionShape shape, int n_token, KvSplits splits) {
        attention<float>(Stream{}, nullptr, nullptr, {}, n_token, shape, Mask::Causal, splits, nullptr,
                         nullptr);
    };
    CHECK_THROWS_AS(launch({2, 1, 33, 0}, 1, {}), Error);
    CHECK_THROWS_AS(launch({2, 1, 514, 0}, 1, {}), Error);
    CHECK_THROWS_AS(launch({3, 2, 32, 0}, 1, {}), Error);
    CHECK_THROWS_AS(launch({2, 1, 32, 0}, 1, {2}), Error);  // no scratch
    CHECK_THROWS_AS(launch({2, 1, 32, 0}, 0, {}), Error);
    CHECK_THROWS_AS(launch({2, 1, 32, 0}, 1, {1, 0}), Error);
    CHECK_THROWS_AS(launch({2, 1, 32, 0}, 1, {1, 1, 0}), Error);
    const auto joint = [](auto value, int head_dim) {
        using T = decltype(value);
        attention<T>(Stream{}, nullptr, nullptr, {nullptr, nullptr, 8, true}, 1, {2, 1, head_dim, 0},
                     Mask::Causal, {}, nullptr, nullptr);
    };
    CHECK_THROWS_AS(joint(F16{}, 256), Error);
    CHECK_THROWS_AS(joint(0.0f, 512), Error);
    CHECK(attention_scratch<F16>(10, {4, 2, 32, 0}, 1) == 0);
}
