// test_reference.cpp: whole passes and the whole loop of the CPU backend against independent double-precision
// results.
#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <future>
#include <new>
#if defined __GLIBC__ && __GLIBC_MINOR__ >= 33
#include <malloc.h>
#define HAS_MALLINFO2
#endif

#include "backend.h"
#include "bench.h"
#include "catch.h"
#include "easel.h"
#include "files.h"
#include "golden.h"
#include "memory_plan.h"
#include "parallel.h"

using namespace easel;

// Allocations of this thread until one fails; below 0: none does. Not inlined, or g++ would see free() at
// work on what a new expression gave.
static thread_local int64_t n_until_failure = -1;

[[gnu::noinline]] void* operator new(size_t n) {
    if (n_until_failure >= 0 && n_until_failure-- == 0) throw std::bad_alloc();
    if (void* p = std::malloc(std::max<size_t>(n, 1))) return p;
    throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(size_t n, const std::nothrow_t&) noexcept {  // stable_sort's
    return std::malloc(std::max<size_t>(n, 1));
}
[[gnu::noinline]] void operator delete(void* p) noexcept {
    std::free(p);
}
[[gnu::noinline]] void operator delete(void* p, size_t) noexcept {
    std::free(p);
}

namespace {

std::unique_ptr<Backend> backend_for(const std::shared_ptr<const Model>& model) {
    return make_cpu_backend(model, model->config.n_context);
}

// Some layers of a synthetic model. What the last one attends to is left out of an encode pass.
std::shared_ptr<const Model> some_layers(const std::shared_ptr<const Model>& whole,
                                         std::initializer_list<int> layers) {
    Model m = *whole;
    m.layers.clear();
    m.config.layers.clear();
    for (const int l : layers) {
        m.layers.push_back(whole->layers[l]);
        m.config.layers.push_back(whole->config.layers[l]);
    }
    m.config.n_layer = static_cast<int>(layers.size());
    m.config.n_context = 8192;
    return {new Model(m), [whole](const Model* p) { delete p; }};  // whole has the weights
}

// Of the toy model: 0 is sliding, with a window of 64, 1 global.
std::shared_ptr<const Model> layers_of_toy(std::initializer_list<int> layers) {
    return some_layers(synthetic_model("toy", "q8_0"), layers);
}

// Bytes in use of the heap; 0 where nobody counts them.
int64_t heap_bytes() {
#ifdef HAS_MALLINFO2
    const auto m = mallinfo2();
    return static_cast<int64_t>(m.uordblks + m.hblkhd);
#else
    return 0;
#endif
}

// What a prompt of n tokens takes on one core.
struct Cost {
    double seconds;  // processor time
    int64_t bytes;
};
Cost cost_of_prompt(const std::shared_ptr<const Model>& model, int n) {
    std::vector<int32_t> prompt(n);
    for (int i = 0; i < n; i++) prompt[i] = i * 7919 % model->config.n_vocab;
    const int64_t before = heap_bytes();
    const auto backend = make_cpu_backend(model, n);
    const std::clock_t start = std::clock();
    backend->encode(prompt);
    return {double(std::clock() - start) / CLOCKS_PER_SEC, heap_bytes() - before};
}

}  // namespace

// Float32 rounding through six layers: 2e-7 is what a plain float32 implementation reaches
// (fixtures/README.md).
TEST_CASE("logits of the float32 golden model") {
    const auto model = load_model(fixture("tiny.gguf"));
    const auto backend = backend_for(model);
    const std::vector<int32_t> prompt = read_json(fixture("tiny.json"))["prompt"];
    backend->encode(prompt);
    check_logits("tiny", *backend, 6e-7);
}

// One layer in each block type; scales in half precision make larger activations, so rounding weighs more:
// 1e-6.
TEST_CASE("logits of the golden model of all block types") {
    const auto model = load_model(fixture("mixed.gguf"));
    const auto backend = backend_for(model);
    const std::vector<int32_t> prompt = read_json(fixture("mixed.json"))["prompt"];
    backend->encode(prompt);
    check_logits("mixed", *backend, 2.5e-6);
}

TEST_CASE("the cache is the same however the prompt is cut") {
    const auto model = load_model(fixture("tiny.gguf"));
    const std::vector<int32_t> prompt = read_json(fixture("tiny.json"))["prompt"];
    const int window = model->config.window;
    REQUIRE(static_cast<int>(prompt.size()) > 2 * window);
    for (int chunk : {1, 7, window - 1, window, window + 1}) {
        const auto backend = backend_for(model);
        for (size_t at = 0; at < prompt.size(); at += chunk)
            backend->encode(std::span(prompt).subspan(at, std::min<size_t>(chunk, prompt.size() - at)));
        check_logits("tiny", *backend, 6e-7);
    }
}

// So that an answer does not depend on what the cache held before.
TEST_CASE("the cache is the same to the bit") {
    for (const auto& model : {load_model(fixture("tiny.gguf")), layers_of_toy({0, 1, 0})}) {
        const Config& c = model->config;
        const std::vector<int32_t> canvas(c.n_canvas, 5);
        std::vector<int32_t> prompt(300);
        for (size_t i = 0; i < prompt.size(); i++) prompt[i] = static_cast<int32_t>(i * 7919 % c.n_vocab);
        const auto logits = [&](size_t chunk) {
            const auto backend = backend_for(model);
            for (size_t at = 0; at < prompt.size(); at += chunk)
                backend->encode(std::span(prompt).subspan(at, std::min(chunk, prompt.size() - at)));
            std::vector<float> z(size_t(c.n_canvas) * c.n_vocab);
            backend->logits({canvas, {}, 1}, z);
            return z;
        };
        const std::vector<float> whole = logits(prompt.size());
        for (size_t chunk : {1, 7, 63, 64, 65, 100}) CHECK(logits(chunk) == whole);
    }
}

TEST_CASE("truncate forgets exactly what came after") {
    const auto model = load_model(fixture("tiny.gguf"));
    const std::vector<int32_t> prompt = read_json(fixture("tiny.json"))["prompt"];
    const auto backend = backend_for(model);
    const std::vector<int32_t> other(20, 7);
    backend->encode(std::span(prompt).first(10));
    backend->encode(other);
    backend->truncate(10);
    CHECK(backend->n_cached() == 10);
    backend->encode(std::span(prompt).subspan(10));
    check_logits("tiny", *backend, 6e-7);
    CHECK_THROWS_AS(backend->truncate(static_cast<int>(prompt.size()) + 1), Error);
}

// The files have seven decimals of the mean entropy; the logits differ by 6e-7 relative.
TEST_CASE("generation gives the golden tokens step by step") {
    const auto model = load_model(fixture("tiny.gguf"));
    for (const char* name : {"tiny.json", "tiny.cut1.json", "tiny.cut2.json"})
        check_generation(name, *backend_for(model), *model, 5e-7);
}

TEST_CASE("the same seed gives the same answer again, another seed another") {
    const auto model = load_model(fixture("tiny.gguf"));
    const auto backend = backend_for(model);
    const std::vector<int32_t> prompt = read_json(fixture("tiny.json"))["prompt"];
    backend->encode(prompt);
    const auto answer = [&](uint64_t seed) {
        GenerateParams params;
        params.seed = seed;
        params.max_canvases = 2;
        const Answer a = backend->generate(params, {});
        backend->truncate(static_cast<int>(prompt.size()));
        return a.tokens;
    };
    const auto first = answer(1);
    CHECK(first == answer(1));
    CHECK(first != answer(uint64_t{1} << 32 | 1));  // the high half of the seed counts
}

TEST_CASE("an answer that is stopped ends there, and does not disturb the next") {
    const auto model = load_model(fixture("tiny.gguf"));
    check_stopped(*backend_for(model), *backend_for(model));
}

TEST_CASE("what does not fit the context is refused before anything is computed") {
    check_refusals(*make_cpu_backend(load_model(fixture("tiny.gguf")), 40));
}

// The approximations must be what they say, not merely run: with everything kept they change nothing, and
// with one candidate every draw is the argmax and no entropy is left.
TEST_CASE("sampler approximations at their limits") {
    const auto model = load_model(fixture("tiny.gguf"));
    const auto backend = backend_for(model);
    const std::vector<int32_t> prompt = read_json(fixture("tiny.json"))["prompt"];
    const auto run = [&](auto change, const FrameFn& on_frame = {}) {
        backend->truncate(0);
        backend->encode(prompt);
        GenerateParams params;
        params.seed = 3;
        change(params.sampler);
        return backend->generate(params, on_frame).tokens;
    };
    const auto exact = run([](SamplerConfig&) {});
    CHECK(exact == run([](SamplerConfig& s) { s.top_k = 512, s.self_cond_top_k = 512; }));
    CHECK(exact == run([](SamplerConfig& s) { s.top_k = 9, s.top_k_start = 512, s.top_k_end = 512; }));
    CHECK(exact != run([](SamplerConfig& s) { s.self_cond_top_k = 1; }));
    run([](SamplerConfig& s) { s.top_k = 1; },
        [](const Frame& f) {
            CHECK(f.mean_entropy == 0);
            CHECK(std::equal(f.tokens.begin(), f.tokens.end(), f.argmax.begin()));
            return true;
        });
    run([](SamplerConfig& s) { s.top_k = 1, s.top_k_tail_correction = true; },
        [](const Frame& f) {
            if (f.step == 0) CHECK(f.mean_entropy > 0.01f);
            return true;
        });
    for (const float limit : {0.0f, 0.5f}) {
        float most = 0;
        run([&](SamplerConfig& s) { s.self_cond_drop = limit; },
            [&](const Frame& f) {
                most = std::max(most, f.dropped);
                return true;
            });
        CHECK(most <= limit);
        CHECK((most > 0) == (limit > 0));
    }
    run([](SamplerConfig& s) { s.greedy = true; },
        [](const Frame& f) {
            for (size_t i = 0; i < f.tokens.size(); i++)
                if (f.accepted[i]) CHECK(f.tokens[i] == f.argmax[i]);
            return true;
        });
}

// The 26B model's shapes: linear in tokens but for global attention; KV grows on global layers alone.
TEST_CASE("prompts: work and memory by arithmetic") {
    const auto model = synthetic_shapes("26b-a4b", "q4_k_m");
    const Config& c = model->config;
    double attention = 0,
           kv_row = 0;  // multiply-adds of one token with one key; bytes of K and V of one token
    for (int l = 0; l < c.n_layer; l++) {
        const LayerShape& y = c.layers[l];
        if (y.global && l + 1 < c.n_layer) attention += 2.0 * c.n_head * y.head_dim;
        if (y.global) kv_row += 4.0 * 2 * y.n_head_kv * y.head_dim;
    }
    // Past the window, a thousand tokens more cost more by what global layers' queries do with a thousand
    // keys.
    const auto flop = [&](int n) { return encode_flop(*model, n); };
    for (const int n : {4000, 32000, 128000})
        CHECK((flop(n + 2000) - flop(n + 1000)) - (flop(n + 1000) - flop(n)) ==
              Approx(2 * attention * 1000 * 1000).epsilon(1e-6));
    const MemoryPlan small = plan_cpu(*model, 8192), large = plan_cpu(*model, 65536);
    CHECK(static_cast<double>(large.kv - small.kv) == kv_row * (65536 - 8192));
    // A thread holds the scores of some rows over all keys.
    CHECK(large.scratch - small.scratch == 4 * int64_t{n_threads()} * kCpuRows * (65536 - 8192));
    CHECK(large.weights == small.weights);
    CHECK(large.n_encode == std::max(kCpuEncode, c.n_canvas));
    CHECK((large.host == 0 && large.n_offload == 0));
    // A global layer may have a V of its own, and the MLP of self-conditioning a width.
    Model other = *model;
    Layer& layer = other.layers[5];
    REQUIRE((layer.shape.global && !layer.v));
    layer.v = layer.k;
    const double v = 2.0 * layer.shape.head_dim * c.n_embd, more = 1000.0 * c.n_embd;
    other.self_cond_gate.n_row += 1000, other.self_cond_up.n_row += 1000, other.self_cond_down.n_col += 1000;
    CHECK(encode_flop(other, 100) - flop(100) == Approx(2 * 100 * v));
    CHECK(denoise_flop(other, 100) - denoise_flop(*model, 100) == Approx(2 * c.n_canvas * (v + 3 * more)));
    Model wide = *model;
    wide.config.n_ff_self_cond = wide.config.n_ff + 1000;
    CHECK(plan_cpu(wide, 8192).scratch - small.scratch == 4 * int64_t{kCpuEncode} * 2 * 1000);
}

// The quotient of two prompts' least times comes near that of their multiply-adds, however busy the machine
// is.
TEST_CASE("prompts: work and memory as measured grow like that") {
    set_threads(1);
    for (const bool global : {false, true}) {
        const auto model = global ? layers_of_toy({0, 1, 1}) : layers_of_toy({0, 0, 0});
        const double expected = encode_flop(*model, 4096) / encode_flop(*model, 1024);
        CHECK(expected > (global ? 6 : 4));
        CHECK(expected < (global ? 10 : 4.2));
        double quotient = 1e30, least[2] = {1e30, 1e30};
        for (int i = 0; i < 20 && quotient > 1.3 * expected; i++) {
            least[0] = std::min(least[0], cost_of_prompt(model, 1024).seconds);
            least[1] = std::min(least[1], cost_of_prompt(model, 4096).seconds);
            quotient = least[1] / least[0];
        }
        INFO(least[0] << " s, " << least[1] << " s, expected " << expected << " times as much");
        CHECK(quotient <= 1.3 * expected);
        // What sliding layers hold is all there after 3,500 tokens.
        const int64_t half = cost_of_prompt(model, 4096).bytes, all = cost_of_prompt(model, 8192).bytes;
        const MemoryPlan plan = plan_cpu(*model, 8192);
        INFO(half << " bytes, then " << all << ", KV by plan " << plan.kv);
        CHECK(all <= plan.kv + plan.scratch);
        if (!global) CHECK(all <= half + half / 10);
    }
    set_threads(0);
}

// The most bytes that a backend holds while it encodes and answers; the last call takes what is left.
static int64_t most_taken(const std::shared_ptr<const Model>& model, int n_context,
                          const std::vector<int>& calls, CpuMath math) {
    const Config& c = model->config;
    const int64_t before = heap_bytes();
    const auto backend = make_cpu_backend(model, n_context, math);
    int64_t most = 0;
    for (int n : calls) {
        n = std::min(n, n_context - c.n_canvas - backend->n_cached());
        backend->encode(std::vector<int32_t>(n, 5));
        most = std::max(most, heap_bytes() - before);
    }
    GenerateParams params;
    params.sampler.max_steps = 2;
    params.sampler.confidence = 0;
    backend->generate(params, [&](const Frame&) {
        most = std::max(most, heap_bytes() - before);
        return true;
    });
    CHECK(backend->n_cached() == n_context - c.n_canvas);
    return most;
}

static void check_taken(const std::shared_ptr<const Model>& model, int n_context,
                        const std::vector<int>& calls, CpuMath math) {
    set_threads(1);
    const MemoryPlan plan = plan_cpu(*model, n_context);
    // On a new thread, which has kept nothing of earlier products.
    const int64_t most = std::async(std::launch::async, most_taken, model, n_context, calls, math).get();
    INFO(most << " bytes at a context of " << n_context << ", by plan KV " << plan.kv << " and buffers "
              << plan.scratch);
    CHECK(most <= plan.kv + plan.scratch);
    set_threads(0);
}

// Room for K and V grows with the prompt, but not past what the context can need: whatever the calls' sizes,
// and with a canvas at the end.
TEST_CASE("prompts: what is taken stays within the plan") {
    const bool global = GENERATE(false, true);
    INFO((global ? "global" : "sliding"));
    const auto model = global ? layers_of_toy({1, 1, 1}) : layers_of_toy({0, 0, 0});
    for (const int n_context : {600, 1100, 2500, 5000})
        check_taken(model, n_context, {300, 220, 1, 777, 5000}, CpuMath::Float);
}

// In a model with several experts a token, the largest buffers are those of products.
TEST_CASE("prompts: what is taken stays within the plan, several experts a token", "[slow]") {
    const CpuMath math = GENERATE(CpuMath::Float, CpuMath::Int8);
    INFO((math == CpuMath::Int8 ? "int8" : "float"));
    check_taken(some_layers(synthetic_model("mid", "q4_k_m"), {0, 5, 0}), 768, {512}, math);
}

TEST_CASE("an answer of what is no number is an error") {
    const TempDir dir;
    std::ifstream file(fixture("tiny.gguf"), std::ios::binary);
    std::string bytes{std::istreambuf_iterator<char>(file), {}};
    const Gguf gguf = Gguf::open(fixture("tiny.gguf"));
    const Tensor* down = gguf.find_tensor("blk.0.ffn_down.weight");
    REQUIRE(down);
    // All bits set: NaN as a float, as a half, as a block's scale.
    const std::string_view rows(reinterpret_cast<const char*>(down->data), down->bytes);
    const size_t at = bytes.find(rows);
    REQUIRE(at != bytes.npos);
    std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(at), rows.size(), '\xff');
    Engine engine({.model = dir.write("nan.gguf", bytes), .device = "cpu"});
    Request request;
    request.prompt_ids = {2};
    for (const int top_k : {0, 5}) {
        request.sampler = SamplerConfig{.top_k = top_k};
        request.n_token = 1;
        check_has(error_of([&] { engine.generate(request); }), {"the model computed NaN or infinity"});
    }
}

// The pass that fails is longer than those after it, so that its buffers are theirs.
TEST_CASE("a pass that runs out of memory anywhere leaves nothing to the next") {
    const auto model = load_model(fixture("tiny.gguf"));
    const Config& c = model->config;
    const std::vector<int32_t> prompt(30, 7), canvas(c.n_canvas, 9), before(10, 5), longest(60, 3);
    set_threads(1);  // all that is allocated is by this thread
    const auto logits = [&](Backend& backend) {
        std::vector<float> out(size_t(c.n_canvas) * c.n_vocab);
        backend.truncate(0);
        backend.encode(prompt);
        backend.logits({canvas, {}, 1}, out);
        return out;
    };
    const auto backend = backend_for(model);
    const auto expected = logits(*backend_for(model));
    backend->encode(longest);
    int n_failed = 0;
    for (bool failed = true; failed;) {
        backend->truncate(0);
        backend->encode(before);
        n_until_failure = n_failed;
        try {
            backend->encode(longest);
            failed = false;
        } catch (const std::bad_alloc&) {
            n_failed++;
        }
        n_until_failure = -1;
        if (logits(*backend) != expected) FAIL("after a failure at allocation " << n_failed);
    }
    CHECK(n_failed > 10);
    set_threads(0);
}
