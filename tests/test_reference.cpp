// test_reference.cpp: whole passes and the whole loop of the CPU backend against independent double-precision
// results.
#include <algorithm>

#include "backend.h"
#include "catch.h"
#include "golden.h"

using namespace easel;

namespace {

std::unique_ptr<Backend> backend_for(const std::shared_ptr<const Model>& model) {
    return make_cpu_backend(model, model->config.n_context);
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
        params.n_canvas = 2;
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
    run([](SamplerConfig& s) { s.greedy = true; },
        [](const Frame& f) {
            for (size_t i = 0; i < f.tokens.size(); i++)
                if (f.accepted[i]) CHECK(f.tokens[i] == f.argmax[i]);
            return true;
        });
}
