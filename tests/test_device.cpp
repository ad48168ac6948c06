// test_device.cpp: the CUDA backend as a whole against the CPU backend and the golden results: on the
// simulator, or, built by `make test-gpu`, on a GPU.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "backend.h"
#include "bench.h"
#include "catch.h"
#include "check.h"
#include "device.h"
#include "easel.h"
#include "files.h"
#include "golden.h"
#include "layout.h"
#include "memory_plan.h"
#ifndef EASEL_CUDA
#include "sim.h"
#endif

using namespace easel;

namespace {

std::unique_ptr<Backend> device_backend(const std::shared_ptr<const Model>& model, DeviceOptions options) {
    if (!options.n_context) options.n_context = model->config.n_context;
    return make_cuda_backend(model, options);
}

std::vector<int32_t> golden_prompt(const std::string& name) {
    return read_json(fixture(name + ".json"))["prompt"];
}

// What two passes give, without and with self-conditioning, [2, n_canvas, n_vocab].
std::vector<float> two_passes(Backend& backend, const Config& c, std::vector<int32_t> canvas,
                              const std::vector<float>& prev) {
    const size_t n = size_t(c.n_canvas) * c.n_vocab;
    std::vector<float> out(2 * n);
    backend.logits({canvas, {}, 1}, std::span(out).first(n));
    std::reverse(canvas.begin(), canvas.end());
    backend.logits({canvas, prev, 0.8f}, std::span(out).subspan(n));
    return out;
}

// Relative errors of rows of n values, sorted.
std::vector<double> row_errors(const std::vector<float>& a, const std::vector<float>& b, int n) {
    std::vector<double> out;
    for (size_t at = 0; at < a.size(); at += n)
        out.push_back(
            relative_error({a.begin() + at, a.begin() + at + n}, {b.begin() + at, b.begin() + at + n}));
    std::sort(out.begin(), out.end());
    return out;
}

// Every answer of `backend` to a prompt of its own, each from an empty cache.
std::vector<int32_t> answer(Backend& backend, const std::vector<int32_t>& prompt,
                            const GenerateParams& params) {
    backend.truncate(0);
    backend.encode(prompt);
    return backend.generate(params, {}).tokens;
}

}  // namespace

// Float32 sums in another order than the CPU's; that one has 5e-7 and 2e-6 here.
TEST_CASE("device: exact logits of the golden models") {
    for (const auto& [name, tolerance] : {std::pair{"tiny", 8e-7}, {"mixed", 3e-6}}) {
        const auto model = load_model(fixture(std::string(name) + ".gguf"));
        const auto backend = device_backend(model, {.exact = true});
        backend->encode(golden_prompt(name));
        check_logits(name, *backend, tolerance);
    }
}

#ifndef EASEL_CUDA
// Other splits of products and keys; a pass no longer than a canvas leaves their buffers no other room.
TEST_CASE("device: exact logits on GPUs of other sizes") {
    const auto model = load_model(fixture("mixed.gguf"));
    std::set<std::vector<float>> found;
    for (const int n : {1, 2, 5, 170}) {
        INFO(n << " SMs");
        sim::n_sm = n;
        const auto backend = device_backend(model, {.n_encode = 1, .exact = true});
        sim::n_sm = 132;
        backend->encode(golden_prompt("mixed"));
        check_logits("mixed", *backend, 3e-6);
        std::vector<float> logits(size_t(model->config.n_canvas) * model->config.n_vocab);
        backend->logits({std::vector<int32_t>(model->config.n_canvas, 7), {}, 1}, logits);
        found.insert(logits);
    }
    CHECK(found.size() > 1);  // the order of sums was another
}
#endif

// Widths, heads and expert sizes that fill no tile; tolerances as for the CPU.
TEST_CASE("device: exact logits and loops of transformers' models", "[slow]") {
    for (const std::string name : {"hf_small", "hf_two", "hf_long"}) {
        INFO(name);
        const auto model = load_model(converted(name));
        const auto backend = device_backend(model, {.exact = true});
        backend->encode(golden_prompt("hf/" + name));
        check_logits("hf/" + name, *backend, 3e-6);
        backend->truncate(0);
        check_generation("hf/" + name + ".cut.json", *backend, *model, 2e-6);
    }
}

// F16 rounds to 2^-11; through six and fifteen layers that becomes 8.8e-4 and 2.95e-3 (measured: the blocks
// of "mixed" have scales that are rounded as well). Where two experts' logits are closer than that, a row
// takes another expert than on the CPU, and it and all that see it differ by far more. With random weights
// that is not rare; hence the median over the rows of several canvases.
// Where sums are rounded to 11 bits as both operands are (kHalfSums, cards with 99 KiB of shared memory a
// block), that is 3 roundings instead of 2: 1.22 times the error.
TEST_CASE("device: logits with 16-bit activations stay close to the CPU's", "[slow]") {
    const double more = max_shared_bytes() == 99 << 10 ? 1.25 : 1;
    for (const auto& [name, tolerance] : {std::pair{"tiny", 1e-3}, {"mixed", 3.3e-3}}) {
        const auto model = load_model(fixture(std::string(name) + ".gguf"));
        const Config& c = model->config;
        const auto gpu = device_backend(model, {}), cpu = make_cpu_backend(model, c.n_context);
        gpu->encode(golden_prompt(name));
        cpu->encode(golden_prompt(name));
        const auto prev = read_f32(fixture(std::string(name) + ".logits0.f32"));
        std::vector<double> errors;
        for (uint32_t i = 0; i < 4; i++) {
            std::vector<int32_t> canvas(c.n_canvas);
            for (int k = 0; k < c.n_canvas; k++)
                canvas[k] = random_token(random_word(1, k, 0, i, RandomStream::Init), c.n_vocab);
            for (double e :
                 row_errors(two_passes(*gpu, c, canvas, prev), two_passes(*cpu, c, canvas, prev), c.n_vocab))
                errors.push_back(e);
        }
        std::sort(errors.begin(), errors.end());
        const double median = errors[errors.size() / 2];
        INFO(name << ": median " << median << ", nine of ten below " << errors[errors.size() * 9 / 10]);
        CHECK(median < tolerance * more);
        CHECK(median > 1e-5);  // else it was not 16-bit
        CHECK(errors[errors.size() * 9 / 10] < 4e-3 * more);
    }
}

// A global layer of the real one's heads has K and V jointly; with K's matrix for V as well it has both. The
// results differ by where F16 rounds, and from the CPU's not more than those of others do.
TEST_CASE("device: K and V of a global layer, joint and apart") {
    const auto toy = synthetic_model("toy", "q8_0");
    Model joint = *toy, apart = *toy;
    for (Model* m : {&joint, &apart}) {
        std::vector<float>& weight = m->layers[1].k_norm;
        for (size_t i = 0; i < weight.size(); i++)
            weight[i] = 0.2f + 0.002f * static_cast<float>(i * 37 % 101);
    }
    apart.layers[1].v = apart.layers[1].k;
    const Config& c = joint.config;
    CHECK(plan_gpu(joint, {.n_context = 1000}).kv < plan_gpu(apart, {.n_context = 1000}).kv * 3 / 4);
    const auto same = [](Model& m) { return std::shared_ptr<const Model>(&m, [](const Model*) {}); };
    std::vector<int32_t> prompt(90), canvas(c.n_canvas);
    for (int i = 0; i < 90; i++)
        prompt[i] = random_token(random_word(2, i, 0, 0, RandomStream::Init), c.n_vocab);
    for (int i = 0; i < c.n_canvas; i++)
        canvas[i] = random_token(random_word(3, i, 0, 0, RandomStream::Init), c.n_vocab);
    std::vector<std::vector<float>> logits;
    for (const auto& backend :
         {make_cpu_backend(same(joint), 200), device_backend(same(joint), {.n_context = 200}),
          device_backend(same(apart), {.n_context = 200})}) {
        backend->encode(prompt);
        logits.emplace_back(size_t(c.n_canvas) * c.n_vocab);
        backend->logits({canvas, {}, 1}, logits.back());
    }
    const auto median = [&](int a, int b) {
        const auto errors = row_errors(logits[a], logits[b], c.n_vocab);
        return errors[errors.size() / 2];
    };
    INFO("CPU to joint " << median(0, 1) << ", to apart " << median(0, 2) << "; these two " << median(1, 2));
    CHECK(median(0, 1) < 1e-3);
    CHECK(median(0, 1) < 2 * median(0, 2));
    CHECK(median(1, 2) > 0);
    CHECK(median(1, 2) < 1e-3);
}

// Two canvases and an end in the third; an end in the first.
TEST_CASE("device: the exact loop gives the golden tokens step by step", "[slow]") {
    const auto model = load_model(fixture("tiny.gguf"));
    check_generation("tiny.cut2.json", *device_backend(model, {.exact = true}), *model, 8e-7);
    check_generation("tiny.cut1.json", *device_backend(model, {.exact = true, .graph_loop = false}), *model,
                     8e-7);
}

// The ring of a sliding layer holds its window and one pass: with passes of 24, 39 tokens, fewer than prompt
// and canvas have.
TEST_CASE("device: a prompt in small passes, through the ring") {
    const auto model = load_model(fixture("tiny.gguf"));
    const auto prompt = golden_prompt("tiny");
    REQUIRE(static_cast<int>(prompt.size()) > model->config.window - 1 + 24);
    const auto backend = device_backend(model, {.n_encode = 1, .exact = true});
    for (const size_t chunk : {size_t{1}, size_t{7}, prompt.size()}) {
        backend->truncate(0);
        for (size_t at = 0; at < prompt.size(); at += chunk)
            backend->encode(std::span(prompt).subspan(at, std::min(chunk, prompt.size() - at)));
        check_logits("tiny", *backend, 8e-7);
    }
}

// The self-conditioning MLP has a width of its own: zeros beside its rows change nothing.
TEST_CASE("device: a self-conditioning MLP wider than the layers'") {
    const auto model = load_model(fixture("tiny.gguf"));
    auto wide = std::make_shared<Model>(*model);
    const int n_embd = wide->config.n_embd, n_ff = wide->config.n_ff_self_cond, n_wide = 5 * n_ff + 3;
    wide->config.n_ff_self_cond = n_wide;
    std::vector<float> gate(size_t(n_wide) * n_embd), up(gate.size()), down(gate.size());
    const auto row = [](const Matrix& m, int64_t r, float* out) {
        to_float(m.type, m.data + r * m.stride(), out, m.n_col);
    };
    for (int r = 0; r < n_ff; r++) {
        row(model->self_cond_gate, r, gate.data() + size_t(r) * n_embd);
        row(model->self_cond_up, r, up.data() + size_t(r) * n_embd);
    }
    for (int r = 0; r < n_embd; r++) row(model->self_cond_down, r, down.data() + size_t(r) * n_wide);
    const auto matrix = [](const std::vector<float>& v, int64_t n_row, int64_t n_col) {
        return Matrix{Type::F32, reinterpret_cast<const uint8_t*>(v.data()), n_row, n_col};
    };
    wide->self_cond_gate = matrix(gate, n_wide, n_embd);
    wide->self_cond_up = matrix(up, n_wide, n_embd);
    wide->self_cond_down = matrix(down, n_embd, n_wide);
    GenerateParams params;
    params.sampler = model->config.sampler;
    params.seed = 3;
    params.max_canvases = 2;
    std::vector<std::vector<int32_t>> answers;
    for (const std::shared_ptr<const Model>& m :
         {std::shared_ptr<const Model>(model), std::shared_ptr<const Model>(wide)}) {
        const auto backend = device_backend(m, {.n_context = 64, .exact = true});
        backend->encode(std::vector<int32_t>{2, 3, 4});
        answers.push_back(backend->generate(params, {}).tokens);
    }
    CHECK(!answers[0].empty());
    CHECK(answers[0] == answers[1]);
}

TEST_CASE("device: truncate keeps what the ring still has, and says when it has not") {
    const auto model = load_model(fixture("tiny.gguf"));
    const auto prompt = golden_prompt("tiny");
    const auto backend = device_backend(model, {.n_encode = 1, .exact = true});
    const std::vector<int32_t> other(5, 7);
    backend->encode(std::span(prompt).first(30));
    backend->encode(other);
    CHECK(backend->truncate(30) == 30);
    backend->encode(std::span(prompt).subspan(30));
    check_logits("tiny", *backend, 8e-7);
    // 40 tokens and a canvas have been written: the ring of 39 has lost the window before token 20.
    CHECK(backend->truncate(20) == 0);
    CHECK(backend->n_cached() == 0);
    backend->encode(prompt);
    check_logits("tiny", *backend, 8e-7);
    CHECK_THROWS_AS(backend->truncate(static_cast<int>(prompt.size()) + 1), Error);
}

TEST_CASE("device: an answer is the same again, in the graph, by the host, after others", "[slow]") {
    const auto model = load_model(fixture("tiny.gguf"));
    const auto prompt = golden_prompt("tiny");
    const std::vector<int32_t> short_prompt{2, 9, 30};
    GenerateParams params;
    params.sampler.max_steps = 6;
    params.max_canvases = 2;
    const auto graph = device_backend(model, {}), host = device_backend(model, {.graph_loop = false});
    const auto first = answer(*graph, prompt, params);
    params.seed = 5;
    const auto second = answer(*graph, short_prompt, params);
    CHECK(first != second);
    CHECK(second == answer(*host, short_prompt, params));
    params.seed = 0;
    CHECK(first == answer(*graph, prompt, params));
    CHECK(first == answer(*host, prompt, params));
}

TEST_CASE("device: the same passes give the same bits again") {
    const auto model = load_model(fixture("tiny.gguf"));
    const auto prompt = golden_prompt("tiny");
    const auto prev = read_f32(fixture("tiny.logits0.f32"));
    const std::vector<int32_t> canvas(prompt.begin(), prompt.begin() + model->config.n_canvas);
    const auto run = [&](Backend& backend) {
        backend.truncate(0);
        backend.encode(prompt);
        return two_passes(backend, model->config, canvas, prev);
    };
    const auto one = device_backend(model, {}), other = device_backend(model, {});
    const auto first = run(*one);
    for (Backend* backend : {one.get(), other.get()}) {
        const auto again = run(*backend);
        REQUIRE(again.size() == first.size());
        CHECK(std::memcmp(again.data(), first.data(), first.size() * sizeof(float)) == 0);
    }
}

TEST_CASE("device: the sampler's approximations are the CPU's", "[slow]") {
    const auto model = load_model(fixture("tiny.gguf"));
    const auto prompt = golden_prompt("tiny");
    const auto gpu = device_backend(model, {.exact = true});
    const auto cpu = make_cpu_backend(model, model->config.n_context);
    GenerateParams params;
    params.seed = 3;
    const SamplerConfig file = model->config.sampler;
    const auto check = [&](const char* what, auto change) {
        INFO(what);
        params.sampler = file;
        params.sampler.max_steps = 8;
        change(params.sampler);
        CHECK(answer(*gpu, prompt, params) == answer(*cpu, prompt, params));
    };
    check("top-k", [](SamplerConfig& s) { s.top_k = 20; });
    check("top-k with the tail's entropy",
          [](SamplerConfig& s) { s.top_k = 3, s.top_k_tail_correction = true; });
    check("top-k by step", [](SamplerConfig& s) { s.top_k_start = 100, s.top_k_end = 2; });
    check("self-cond-top-k", [](SamplerConfig& s) { s.self_cond_top_k = 4; });
    check("greedy", [](SamplerConfig& s) { s.greedy = true; });
    check("stability", [](SamplerConfig& s) { s.stability = 2, s.confidence = 1; });
    check("one step", [](SamplerConfig& s) { s.max_steps = 1; });
}

TEST_CASE("device: given tokens and choices are the CPU's, and the next answer has none", "[slow]") {
    const auto model = load_model(fixture("tiny.gguf"));
    const auto prompt = golden_prompt("tiny");
    const int n = model->config.n_canvas;
    const auto cpu = make_cpu_backend(model, model->config.n_context);
    GenerateParams params;
    params.seed = 4;
    params.sampler.max_steps = 6;
    const auto plain = answer(*cpu, prompt, params);
    params.given.tokens.assign(n, -1);
    for (int i : {0, 7, 8, n - 1}) params.given.tokens[i] = 40 + i;
    params.given.choices = {{3, {{50, 51}, {52, 53}, {50, 53}}}, {10, {{60}, {61}}}};
    const auto expected = answer(*cpu, prompt, params);
    for (const bool graph_loop : {true, false}) {
        const auto gpu = device_backend(model, {.exact = true, .graph_loop = graph_loop});
        gpu->encode(prompt);
        int n_frame = 0;
        const Answer a = gpu->generate(params, [&](const Frame& f) {
            n_frame++;
            check_given(f, params.given);
            return true;
        });
        CHECK(n_frame > 1);
        CHECK(a.tokens == expected);
        CHECK(a.log_prob.size() == a.tokens.size());
        CHECK(a.log_prob[7] == 0);
        GenerateParams next = params;
        next.given = {};
        CHECK(answer(*gpu, prompt, next) == plain);
    }
}

TEST_CASE("device: what self-conditioning leaves out is bounded, and nothing if that is asked for",
          "[slow]") {
    const auto model = load_model(fixture("tiny.gguf"));
    const auto backend = device_backend(model, {});
    backend->encode(golden_prompt("tiny"));
    GenerateParams params;
    params.sampler.max_steps = 4;
    params.sampler.t_min = params.sampler.t_max = 0.05f;  // peaked rows: the vocabulary has only four tiles
    float most = 0;
    const auto dropped = [&](float limit) {
        most = 0;
        return [&most, limit](const Frame& f) {
            most = std::max(most, f.dropped);
            CHECK(f.dropped <= limit);
            return true;
        };
    };
    backend->generate(params, dropped(0x1p-10f));
    CHECK(most > 0);
    params.sampler.self_cond_drop = 0;
    backend->generate(params, dropped(0));
}

TEST_CASE("device: an answer that is stopped ends there, and does not disturb the next", "[slow]") {
    const auto model = load_model(fixture("tiny.gguf"));
    for (const bool graph_loop : {true, false})
        check_stopped(*device_backend(model, {.graph_loop = graph_loop}),
                      *device_backend(model, {.graph_loop = graph_loop}));
}

TEST_CASE("device: what does not fit the context is refused before anything is computed") {
    check_refusals(*device_backend(load_model(fixture("tiny.gguf")), {.n_context = 40}));
}

// The whole way of a user's request, with the model that is part of the program.
TEST_CASE("device: the demo model answers as on the CPU") {
    Engine engine({.device = "cpu"});
    const auto model = std::make_shared<const Model>(
        std::make_shared<const Gguf>(Gguf::from_memory(demo_model(), "demo model")));
    const auto exact = device_backend(model, {.n_context = 512, .exact = true});
    const auto fast = device_backend(model, {.n_context = 512});
    for (const char* text : {"What is 47 + 35?", "Sort 52, 17, 31"}) {
        INFO(text);
        Request request;
        request.messages = {{Role::User, text}};
        request.n_token = 32;
        request.sampler = model->config.sampler;
        request.sampler->max_steps = 16;
        const Result expected = engine.generate(request);
        GenerateParams params;
        params.sampler = *request.sampler;
        params.end_tokens = engine.tokenizer().end_of_generation;
        CHECK(answer(*exact, engine.prompt_ids(request), params) == expected.ids);
        // In 16 bits draws may differ on the way; the answer is the same text.
        CHECK(engine.tokenizer().decode(answer(*fast, engine.prompt_ids(request), params), false) ==
              expected.text);
    }
}

TEST_CASE("device: options of the other kind are refused, and noted where auto comes to it") {
    const auto refusal = [](const EngineOptions& options) { return error_of([&] { Engine{options}; }); };
    CHECK(refusal({.model = "none.gguf", .device = "cpu", .n_offload = 1, .exact = true}) ==
          "device is cpu, expected cuda, cuda:N or auto for --expert-offload, --exact");
    CHECK(refusal({.device = "cpu", .graph_loop = false, .overlap = false}) ==
          "device is cpu, expected cuda, cuda:N or auto for --host-loop, --in-order");
    CHECK(refusal({.model = "none.gguf", .device = "cuda:2", .cpu_math = CpuMath::Int8}) ==
          "device is cuda:2, expected cpu or auto for --cpu-math int8");
    for (const char* name : {"", "gpu", "cuda:", "cuda:-1", "cuda:1x", "cuda:99999999999"})
        CHECK(refusal({.model = "none.gguf", .device = name}) ==
              fmt::format("device is {}, expected auto, cpu, cuda or cuda:N", name));

    const Engine engine({.n_context = 64, .cpu_math = CpuMath::Int8, .exact = true});
    INFO(engine.note());
    if (engine.device() == "CPU")
        check_has(engine.note(), {"the CPU is used", "; ignored on a CPU: --exact"});
    else
        CHECK(engine.note() == "ignored on a GPU: --cpu-math int8");
    CHECK(Engine({.n_context = 64, .device = "cpu", .cpu_math = CpuMath::Int8}).note().empty());
    // Who brings a backend decides alone.
    const auto make = [](std::shared_ptr<const Model> model) { return make_cpu_backend(model, 64); };
    CHECK(Engine({.device = "cpu", .exact = true, .make_backend = make}).note().empty());
}

// What `easel bench step` prints: every part is there, and the costs are those of the shapes.
TEST_CASE("device: the profile of a step") {
    const auto model = load_model(fixture("mixed.gguf"));
    const Config& c = model->config;
    const ProfilePlan plan{.step = true, .prefill = {30}, .n_prefix = 100, .n_repeat = 1};
    const DeviceProfile p = profile_cuda(model, {.n_context = 200}, plan);
    REQUIRE(p.parts.size() == 18);
    double flop = 0;
    for (const Timing& part : p.parts) {
        INFO(part.name);
        CHECK(part.ms > 0);
        flop += part.flop;
    }
    // A multiply-add for each weight a token meets, and for each key and value.
    double expected = 2.0 * c.n_vocab * c.n_embd + 3.0 * c.n_embd * c.n_ff;
    for (const LayerShape& l : c.layers) {
        const int n_key = (l.global ? 100 : c.window - 1) + c.n_canvas, n_v = l.global ? 0 : l.n_head_kv;
        expected += double(c.n_embd) * l.head_dim * (2 * c.n_head + l.n_head_kv + n_v);
        expected += 2.0 * l.head_dim * c.n_head * n_key + double(c.n_embd) * c.n_expert;
        expected += 3.0 * c.n_embd * (c.n_ff + c.n_ff_exp * c.n_expert_used);
    }
    CHECK(flop == Approx(2 * expected * c.n_canvas));
    CHECK(denoise_flop(*model, 100) == Approx(2 * expected * c.n_canvas));
    CHECK(p.graph.ms > 0);
    CHECK(p.host.ms > 0);
    CHECK(p.host.launches == p.n_launch);
    CHECK(p.graph.launches == 0.5);  // an answer of two steps
    CHECK(p.n_launch > 12 * c.n_layer);
    CHECK(p.n_launch < 20 * c.n_layer);
    CHECK(p.copy_gbs > 0);
    CHECK(p.read_gbs > 0);
    CHECK(p.l2_gbs > 0);
    CHECK(p.mma_tflops > 0);
    REQUIRE(p.prefill.size() == 1);
    CHECK(p.prefill[0].ms > 0);
    REQUIRE(p.load.size() == 1);
    const LoadStats& load = p.load[0];
    CHECK(load.bytes > 0);
    CHECK(load.repack_ms > 0);
#ifndef EASEL_CUDA  // where they may overlap
    CHECK(load.read_ms + load.copy_ms + load.repack_ms <= load.total_ms * 1.01);
#endif
    const std::string table = profile_tables(p, *model, plan);
    for (const char* text : {"experts gate, up", "lm head", "floor ms", "a step inside an answer",
                             "every launch by the host", "prefill", "repack s"})
        CHECK(table.find(text) != std::string::npos);
}

// What `easel bench kernels` prints; the file of figures goes to $EASEL_BENCH_JSON for tests/bench.sh.
TEST_CASE("device: each kernel alone, and the figures as JSON") {
    const auto model = synthetic_model("toy", "q4_k_m");
    const Config& c = model->config;
    const ProfilePlan plan{.step = true, .kernels = true, .prefill = {64}, .n_prefix = 80, .n_repeat = 1};
    const DeviceProfile p = profile_cuda(model, {.n_context = 160}, plan);
    double bytes = 0, flop = 0, of_parts = 0;
    for (const Timing& k : p.kernels) {
        INFO(k.name);
        CHECK(k.ms > 0);
        bytes += k.n * k.bytes;
        flop += k.n * k.flop;
    }
    for (const Timing& part : p.parts) of_parts += part.flop;
    CHECK(flop == Approx(of_parts));
    CHECK(bytes > static_cast<double>(p.load[0].bytes));  // every weight, and the embedding twice
    const auto times = [&](const char* name) {
        int n = 0;
        for (const Timing& k : p.kernels) n += k.name.starts_with(name) ? k.n : 0;
        return n;
    };
    CHECK(times("expert_gate_up Q4_K 512x256") == c.n_layer);
    CHECK(times("attention 4 heads 64 keys 95") == 1);  // sliding: the window of 64, less one, and the canvas
    CHECK(times("attention 4 heads 512 keys 112") == 1);
    CHECK(times("lm_head") == 1);

    const std::string table = profile_tables(p, *model, plan);
    for (const char* text : {"kernel alone", "expert_down", "sample"})
        CHECK(table.find(text) != std::string::npos);
    nlohmann::ordered_json j{{"commit", "test"}, {"gpu", {{"device", "simulator"}, {"model", "toy"}}}};
    j["gpu"].update(nlohmann::ordered_json::parse(profile_json(p, *model, plan)));
    CHECK(j["gpu"]["step"]["parts"].size() == 18);
    CHECK(j["gpu"]["kernels"].size() == p.kernels.size());
    CHECK(j["gpu"]["prefill"][0]["tokens"] == 64);
    CHECK(j["gpu"]["load"][0]["bytes"] == p.load[0].bytes);
    if (const char* path = std::getenv("EASEL_BENCH_JSON")) std::ofstream(path) << j.dump(2) << "\n";
}

// With equal shares an expert has 4 of 32 tokens, the fullest of 16 by chance about 8. With shares that fall
// as 1 / rank^2 most tokens want the same few experts, and some get none.
TEST_CASE("device: made-up routers spread the tokens as asked") {
    const ProfilePlan plan{.step = true, .n_repeat = 1};
    const DeviceProfile even = profile_cuda(synthetic_model("toy", "q8_0"), {.n_context = 64}, plan);
    const DeviceProfile skewed = profile_cuda(synthetic_model("toy", "q8_0", 2), {.n_context = 64}, plan);
    INFO("even: " << even.experts_used << " experts, the fullest " << even.expert_tokens
                  << "; skewed: " << skewed.experts_used << ", " << skewed.expert_tokens);
    CHECK(even.experts_used >= 15);
    CHECK(even.expert_tokens <= 11);
    CHECK(skewed.experts_used < 15);
    CHECK(skewed.expert_tokens > 12);
}

// Where most tokens of a pass want the same expert, it has several groups of slots (permute()); in short
// passes each has one.
TEST_CASE("device: experts with many tokens, at once and few at a time") {
    const auto model = synthetic_model("toy", "q8_0", 2);
    const Config& c = model->config;
    std::vector<int32_t> prompt(150), canvas(c.n_canvas);
    for (size_t i = 0; i < prompt.size(); i++) prompt[i] = int32_t(i * 37 % 400);
    REQUIRE(expert_group<F16>(c.n_expert, int(prompt.size()) * c.n_expert_used) == kFewRows);
    const auto backend = device_backend(model, {.n_context = 256, .n_encode = 256});
    std::vector<std::vector<float>> logits;
    for (const size_t chunk : {size_t{25}, prompt.size()}) {
        backend->truncate(0);
        for (size_t at = 0; at < prompt.size(); at += chunk)
            backend->encode(std::span(prompt).subspan(at, chunk));
        logits.emplace_back(size_t(c.n_canvas) * c.n_vocab);
        backend->logits({canvas, {}, 1}, logits.back());
    }
    // The median: sums of attention over tiles of other keys may tip a router.
    CHECK(row_errors(logits[1], logits[0], c.n_vocab)[c.n_canvas / 2] < 1e-3);
}

#ifndef EASEL_CUDA
TEST_CASE("device: the profile of a step where a driver refuses the graph") {
    const ProfilePlan plan{.step = true, .n_repeat = 1};
    sim::refusal = GENERATE(sim::Refusal::Instantiate, sim::Refusal::Launch);
    const DeviceProfile p = profile_cuda(synthetic_model("toy", "q8_0"), {.n_context = 64}, plan);
    sim::refusal = sim::Refusal::Never;
    CHECK(p.graph.ms == 0);
    CHECK(p.host.ms > 0);
}
#endif
