// test_memory.cpp: long prompts in passes of any size, what the memory plan promises, contexts that do not
// fit, experts in the host's memory, and what the cache keeps from one request to the next. On the CPU and on
// the simulator, or, built by `make test-gpu`, on a GPU.
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "backend.h"
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

std::vector<int32_t> random_ids(int n, uint32_t seed, int n_vocab) {
    std::vector<int32_t> ids(n);
    for (int i = 0; i < n; i++)
        ids[i] = random_token(random_word(seed, i, 0, 0, RandomStream::Init), n_vocab);
    return ids;
}

// The logits of a canvas after `prompt`, encoded from an empty cache in calls of `chunk` tokens.
std::vector<float> logits_after(Backend& backend, const Config& c, const std::vector<int32_t>& prompt,
                                size_t chunk) {
    backend.truncate(0);
    for (size_t at = 0; at < prompt.size(); at += chunk)
        backend.encode(std::span(prompt).subspan(at, std::min(chunk, prompt.size() - at)));
    std::vector<float> out(size_t(c.n_canvas) * c.n_vocab);
    backend.logits({random_ids(c.n_canvas, 2, c.n_vocab), {}, 1}, out);
    return out;
}

void check_chunks(Backend& backend, const Config& c, int n_prompt, double tolerance) {
    std::vector<int32_t> prompt = random_ids(n_prompt, 1, c.n_vocab);
    const auto expected = logits_after(backend, c, prompt, prompt.size());
    for (const int chunk : {1, 7, c.window - 1, c.window, c.window + 1}) {
        INFO("calls of " << chunk);
        CHECK(relative_error(logits_after(backend, c, prompt, chunk), expected) < tolerance);
    }
    // What is far beyond the window still counts, on global layers.
    prompt[3] = (prompt[3] + 1) % c.n_vocab;
    CHECK(relative_error(logits_after(backend, c, prompt, prompt.size()), expected) > 100 * tolerance);
}

std::shared_ptr<const Model> tiny() {
    static const auto model = load_model(fixture("tiny.gguf"));
    return model;
}

std::vector<int32_t> two_canvases(Backend& backend, const Config& c) {
    backend.truncate(0);
    backend.encode(random_ids(30, 1, c.n_vocab));
    GenerateParams params;
    params.max_canvases = 2;
    params.sampler.max_steps = 2;
    return backend.generate(params, {}).tokens;
}

}  // namespace

// ---- long prompts -----------------------------------------------------------------------------------------

// Sums in another order: float32 rounding.
TEST_CASE("memory: a prompt far beyond the window, on the CPU, in calls of any size") {
    const Config& c = tiny()->config;
    const auto backend = make_cpu_backend(tiny(), c.n_context);
    check_chunks(*backend, c, 400, 1e-6);
}

TEST_CASE("memory: a prompt far beyond the window, on the device, in calls of any size", "[slow]") {
    const Config& c = tiny()->config;
    const auto backend = make_cuda_backend(tiny(), {.n_context = 128, .exact = true});
    check_chunks(*backend, c, 3 * c.window + 5, 1e-6);
}

// Attention splits keys that there are, not those that there is room for.
TEST_CASE("memory: a larger context than needed changes no bit") {
    const Config& c = tiny()->config;
    const auto prompt = random_ids(30, 1, c.n_vocab);
    std::vector<std::vector<float>> logits;
    for (const int n_context : {30 + c.n_canvas, c.n_context}) {
        const auto backend = make_cuda_backend(tiny(), {.n_context = n_context, .n_encode = 24});
        logits.push_back(logits_after(*backend, c, prompt, prompt.size()));
    }
    CHECK(logits[0] == logits[1]);
}

// Calls of one size, but passes of another: the ring of a sliding layer is as long as its window and a pass.
TEST_CASE("memory: a prompt in passes of several sizes", "[slow]") {
    const Config& c = tiny()->config;
    const auto prompt = random_ids(5 * c.window, 1, c.n_vocab);
    std::vector<float> expected;
    for (const int n_encode : {128, 33, c.n_canvas}) {
        const auto backend =
            make_cuda_backend(tiny(), {.n_context = 128, .n_encode = n_encode, .exact = true});
        CHECK(backend->n_encode() == n_encode);
        const auto logits = logits_after(*backend, c, prompt, prompt.size());
        if (expected.empty()) expected = logits;
        CHECK(relative_error(logits, expected) < 1e-6);
    }
}

// ---- the plan ---------------------------------------------------------------------------------------------

TEST_CASE("memory: a backend takes what the plan says and no more") {
    const auto mixed = load_model(fixture("mixed.gguf"));
    const auto check = [](const std::shared_ptr<const Model>& model, DeviceOptions o) {
        o.n_sm = n_sm();
        const MemoryPlan plan = plan_gpu(*model, o);
        INFO("context " << o.n_context << ", plan " << plan.total());
        o.memory_limit = plan.total();  // so more would have failed
        const auto before = device_memory().used;
        const auto backend = make_cuda_backend(model, o);
        backend->encode(random_ids(5, 1, model->config.n_vocab));
        GenerateParams params;
        params.sampler.max_steps = 1;
        backend->generate(params, {});
        CHECK(static_cast<double>(device_memory().peak - before) > 0.98 * static_cast<double>(plan.total()));
        CHECK(backend->plan().total() == plan.total());
        CHECK(backend->n_context() == o.n_context);
    };
    check(tiny(), {.n_context = 200});
    check(tiny(), {.n_context = 90, .n_encode = 40, .n_offload = 3});
    check(tiny(), {.n_context = 90, .exact = true});
    check(mixed, {.n_context = 90});
#ifndef EASEL_CUDA
    const DeviceOptions small{.n_context = 90, .n_encode = 1};
    std::set<int64_t> totals;
    for (const int n : {1, 3, 132, 170}) {
        sim::n_sm = n;
        check(tiny(), small);
        totals.insert(make_cuda_backend(tiny(), small)->plan().total());
    }
    sim::n_sm = 132;
    CHECK(totals.size() >= 3);  // else it was not asked
#endif
    limit_device_memory(0);
}

TEST_CASE("memory: a context that does not fit is refused with the largest that does") {
    const auto total = [](int n) { return plan_gpu(*tiny(), {.n_context = n, .n_encode = 24}).total(); };
    DeviceOptions o{.n_context = 2000, .n_encode = 24, .memory_limit = total(1000)};
    try {
        make_cuda_backend(tiny(), o);
        FAIL("it was not refused");
    } catch (const Error& e) {
        const std::string text = e.what();
        INFO(text);
        CHECK(text.find("a context of 2000 needs ") == 0);
        CHECK(text.find(" GB are available: the largest that fits is 10") != std::string::npos);
        const int largest = std::stoi(text.substr(text.find("(-c ") + 4));
        CHECK(total(largest) <= o.memory_limit);
        CHECK(total(largest + 1) > o.memory_limit);
        o.n_context = 0;  // and that is the default
        CHECK(make_cuda_backend(tiny(), o)->n_context() == largest);
    }
    o = {.n_encode = 24};
    CHECK(fit_gpu(*tiny(), o, int64_t{1} << 40).n_context == tiny()->config.n_context);
    o.memory_limit = 1000000;
    CHECK_THROWS_WITH(make_cuda_backend(tiny(), o),
                      Catch::Contains("no context fits; a smaller quantisation"));
    CHECK_THROWS_WITH(make_cuda_backend(tiny(), {.n_encode = 0}),
                      "an encode pass of 0 tokens, expected 1 to 16384");
    CHECK_THROWS_WITH(make_cuda_backend(tiny(), {.n_encode = 16385}),
                      "an encode pass of 16385 tokens, expected 1 to 16384");
    // Where the experts are what is too much, how many layers' have to go.
    o.memory_limit = total(25) - 1000;
    CHECK_THROWS_WITH(make_cuda_backend(tiny(), o), Catch::Contains("(--expert-offload 3)"));
    o.n_offload = 3;
    CHECK(make_cuda_backend(tiny(), o)->n_context() >= 25);
    o.n_offload = 7;
    CHECK_THROWS_WITH(make_cuda_backend(tiny(), o),
                      Catch::Contains("--expert-offload is 7 layers") && Catch::Contains("expected 0 to 6"));
    limit_device_memory(0);
}

TEST_CASE("memory: where memory is short, passes are smaller before a context is refused") {
    const auto total = [](int n_encode) {
        return plan_gpu(*tiny(), {.n_context = 4000, .n_encode = n_encode}).total();
    };
    const DeviceOptions o{.n_context = 4000};
    CHECK(fit_gpu(*tiny(), o, total(2048)).n_encode == 2048);
    CHECK(fit_gpu(*tiny(), o, total(2048) - 1).n_encode == 1024);
    CHECK(fit_gpu(*tiny(), o, total(512)).n_encode == 512);
    CHECK_THROWS_WITH(fit_gpu(*tiny(), o, total(512) - 1), Catch::Contains("a context of 4000 needs"));
    CHECK(fit_gpu(*tiny(), {}, total(512)).n_context >= 4000);
}

TEST_CASE("memory: as few experts as it takes stay in the host's memory") {
    const auto model = synthetic_shapes("26b-a4b", "q4_k_m");
    const auto total = [&](int n_context, int n_encode, int n_offload) {
        return plan_gpu(*model, {.n_context = n_context, .n_encode = n_encode, .n_offload = n_offload})
            .total();
    };
    DeviceOptions o{.n_offload = kFewestOffloaded};
    const auto fit = [&](int64_t available) { return fit_gpu(*model, o, available); };
    CHECK(fit(total(8192, 2048, 0)).n_offload == 0);
    CHECK(fit(total(8192, 2048, 0)).n_encode == 2048);
    // A context of 2048 is worth that all are on the device, in small passes.
    CHECK(fit(total(2048, 512, 0)).n_offload == 0);
    CHECK(fit(total(2048, 512, 0)).n_context >= 2048);
    CHECK(fit(total(2048, 512, 0) - 1).n_offload == 3);  // less than three win nothing
    CHECK(fit(total(8192, 512, 8)).n_offload == 8);
    CHECK(fit(total(8192, 512, 8)).n_encode == 512);
    CHECK(fit(total(8192, 512, 8) - 1).n_offload == 9);
    CHECK(fit(total(300, 512, 30)).n_offload == 30);
    CHECK(fit(total(300, 512, 30)).n_context < 8192);
    CHECK_THROWS_WITH(fit(total(257, 512, 30) - 1),
                      Catch::Contains("no context fits; a smaller quantisation"));
    o.n_context = 20000;  // one that is asked for is worth any
    CHECK(fit(total(20000, 512, 0)).n_offload == 0);
    CHECK(fit(total(20000, 512, 0) - 1).n_offload == 3);
    CHECK(fit(total(20000, 512, 0) - 1).n_context == 20000);
    CHECK_THROWS_WITH(fit(total(10000, 512, 30)), Catch::Contains("the largest that fits is 1"));
    // But no more than half of the host's memory, unless it is said how many.
    o = {.n_encode = 512, .n_offload = kFewestOffloaded, .memory_limit = total(300, 512, 30)};
    const int64_t host = plan_gpu(*model, {.n_context = 300, .n_offload = 30}).host;
    if (host_memory() / 2 < host && free_device_bytes() - kDeviceSlack >= o.memory_limit)
        CHECK_THROWS_WITH(make_cuda_backend(model, o), Catch::Contains("are more than half of the host's"));
    limit_device_memory(0);
}

TEST_CASE("memory: a container may have less of the host's memory") {
    const TempDir root;
    const auto write = [&](const std::string& path, const char* text) {
        std::filesystem::create_directories(std::filesystem::path(root / path).parent_path());
        root.write(path, text);
    };
    const int64_t all = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
    CHECK(host_memory(root.path()) == all);
    write("proc/self/cgroup", "4:memory:/v1\n0::/outer/inner\n");
    CHECK(host_memory(root.path()) == all);
    write("sys/fs/cgroup/outer/inner/memory.max", "max\n");
    CHECK(host_memory(root.path()) == all);
    write("sys/fs/cgroup/outer/memory.max", "123456789\n");
    CHECK(host_memory(root.path()) == 123456789);
    write("sys/fs/cgroup/outer/inner/memory.max", "1048576\n");
    CHECK(host_memory(root.path()) == 1048576);
    write("proc/self/cgroup", "0::/\n");  // as it is seen from inside
    CHECK(host_memory(root.path()) == all);
    write("sys/fs/cgroup/memory.max", "4096");
    CHECK(host_memory(root.path()) == 4096);
    CHECK(host_memory() <= all);
}

#ifdef EASEL_CUDA
TEST_CASE("memory: an engine tells what experts outside the GPU cost") {
    EngineOptions o{.model = fixture("tiny.gguf"), .n_context = 300, .device = "cuda"};
    o.memory_limit = plan_gpu(*tiny(), {.n_context = 300, .n_offload = 3}).total();
    CHECK(Engine(o).note().find("the experts of 3 layers, ") == 0);
    o.n_offload = 0;
    CHECK_THROWS_WITH(Engine(o), Catch::Contains("(--expert-offload 3)"));
    o.memory_limit = 0;
    CHECK(Engine(o).note().empty());
    limit_device_memory(0);
}
#endif

TEST_CASE("memory: a limit on the CPU bounds what is beside the mapped file") {
    const auto beside = [](int n) {
        const MemoryPlan p = plan_cpu(*tiny(), n);
        return p.kv + p.scratch;
    };
    CHECK(fit_cpu(*tiny(), 1000, beside(1000)) == 1000);
    CHECK(fit_cpu(*tiny(), 0, beside(1000)) == 1000);
    CHECK_THROWS_WITH(fit_cpu(*tiny(), 1001, beside(1000)), Catch::Contains("the largest that fits is 1000"));
    CHECK_THROWS_WITH(fit_cpu(*tiny(), 0, 1000), Catch::Contains("no context fits"));
    Engine engine({.model = fixture("tiny.gguf"), .device = "cpu", .memory_limit = beside(1000)});
    CHECK(engine.n_context() == 1000);
}

// The published model's shapes and types. A 24 GB card has 25.7e9 bytes; desktops take up to 1.
TEST_CASE("memory: the 26B model in Q4_K_M on cards of 24 and 16 GB") {
    const auto model = synthetic_shapes("26b-a4b", "q4_k_m");
    const MemoryPlan p = plan_gpu(*model, {.n_context = 8192});
    INFO(p.weights << " " << p.kv << " " << p.scratch);
    CHECK(p.total() + kDeviceSlack < int64_t{20'000'000'000});
    CHECK(p.total() - p.weights < int64_t{1'030'000'000});
    CHECK(fit_gpu(*model, {}, int64_t{24'000'000'000} - kDeviceSlack).n_context >= 131072);
    // Sliding layers are flat, global ones linear, 12.5 KiB a token with K and V joint; nothing else grows.
    const MemoryPlan large = plan_gpu(*model, {.n_context = 65536});
    CHECK(large.kv - p.kv == (65536 - 8192) * int64_t{12800});
    CHECK(large.scratch == p.scratch);
    CHECK(large.weights == p.weights);
    // Attention in whole waves: 32 blocks a split of the keys, in layer 5, which is global, 64. Of an H200's
    // 132 SMs, a 4090's 128, a 5090's 170, a GPU with few.
    const auto splits = [&](int layer, int n_context, int n_sm) {
        DeviceOptions o{.n_context = n_context};
        o.n_sm = n_sm;
        return kv_splits(model->config, layer, Room(model->config, o));
    };
    for (const auto& [n_sm, sliding, global] :
         {std::tuple{132, 4, 2}, {128, 4, 2}, {170, 4, 2}, {40, 3, 1}}) {
        CHECK(splits(0, 65536, n_sm).most == sliding);
        CHECK(splits(5, 65536, n_sm).most == 8);
        CHECK(splits(5, 65536, n_sm).in_wave == global);
        CHECK(splits(5, 256, n_sm).most == 1);
        // However large the room is: of each length as many as if the room ended there.
        for (const int l : {0, 5}) {
            const KvSplits room = splits(l, 262144, n_sm);
            const int n_most = l ? 262144 : model->config.window - 1 + 256;
            for (int n = 1; n <= n_most; n += n < 5000 ? 1 : 977)
                if (splits(l, n, n_sm).most != room.used(n)) FAIL(l << ", " << n << " keys");
        }
    }
    CHECK(splits(5, 262144, 132).used(1024 + 256) == 2);
    // Attention's output; Q, K and V of sliding layers, of global ones.
    for (const auto& [n_sm, out, sliding, global] :
         {std::tuple{132, 6, 2, 1}, {128, 5, 2, 1}, {170, 7, 2, 2}, {188, 8, 2, 2}, {40, 1, 1, 1}}) {
        CHECK(linear_splits(2816, 256, n_sm) == out);
        CHECK(linear_splits(8192, 256, n_sm) == sliding);
        CHECK(linear_splits(9216, 256, n_sm) == global);
    }
    // 16 GB: some layers' experts stay in the host's memory.
    const DeviceOptions small{.n_context = 8192, .n_encode = 512, .n_offload = 8};
    CHECK(plan_gpu(*model, small).total() < int64_t{15'500'000'000});
    CHECK_THROWS_WITH(fit_gpu(*model, {}, int64_t{15'500'000'000}), Catch::Contains("--expert-offload"));
}

TEST_CASE("memory: loading tells where its time went") {
    const auto backend = make_cuda_backend(tiny(), {.n_context = 60});
    const LoadStats s = backend->load_stats();
    CHECK(s.bytes > 1000000);
    for (const double ms : {s.read_ms, s.copy_ms, s.repack_ms}) {
        CHECK(ms > 0);
        CHECK(ms <= s.total_ms);
    }
}

// ---- experts in the host's memory -------------------------------------------------------------------------

TEST_CASE("memory: offloaded experts change no bit", "[slow]") {
    const Config& c = tiny()->config;
    const auto prompt = random_ids(30, 1, c.n_vocab);
    std::vector<float> expected;
    std::vector<int32_t> tokens;
    for (const int n : {0, 1, 5, 6}) {
        for (const bool graph_loop : {true, false}) {
            if (!graph_loop && n != 5) continue;
            INFO(n << " layers, graph " << graph_loop);
            const auto backend = make_cuda_backend(
                tiny(), {.n_context = 100, .n_encode = 24, .n_offload = n, .graph_loop = graph_loop});
            const auto logits = logits_after(*backend, c, prompt, prompt.size());
            const auto answer = two_canvases(*backend, c);
            if (expected.empty()) expected = logits, tokens = answer;
            CHECK(logits == expected);
            CHECK(answer == tokens);
            CHECK((backend->plan().host > 0) == (n > 0));
        }
    }
}

TEST_CASE("memory: offloaded layers are spread, and two places suffice for all") {
    int n = 0;
    for (int l = 0; l < 30; l++) {
        CHECK(is_offloaded(l, 30, 30));
        CHECK_FALSE(is_offloaded(l, 30, 0));
        CHECK(is_offloaded(l, 30, 1) == (l == 14));
        n += is_offloaded(l, 30, 7);
        if (l > 0) CHECK_FALSE((is_offloaded(l, 30, 15) && is_offloaded(l - 1, 30, 15)));
    }
    CHECK(n == 7);
    const auto model = synthetic_shapes("26b-a4b", "q4_k_m");
    const MemoryPlan none = plan_gpu(*model, {.n_context = 1000}),
                     all = plan_gpu(*model, {.n_context = 1000, .n_offload = 30});
    CHECK(all.host > int64_t{15'000'000'000});
    CHECK(none.weights - all.weights > all.host * 27 / 30);
    CHECK(none.weights - all.weights < all.host * 29 / 30);
    INFO(offload_cost(all));
    CHECK(offload_cost(all).find("the experts of 30 layers, 15.37 GB,") == 0);
}

#ifndef EASEL_CUDA
TEST_CASE("memory: a capture copies from pinned memory, and nothing waits in it") {
    const DeviceArray<int> a(1);
    int pageable = 1;
    int* pinned = static_cast<int*>(pinned_alloc(2 * sizeof(int)));
    const auto capture = [&](const Graph::Launches& launches) {
        return error_of([&] { Graph().launch(launches); });
    };
    CHECK(capture([&](Stream s) { copy_to_device(s, a.data(), pinned + 1, sizeof(int)); }).empty());
    check_has(capture([&](Stream s) { copy_to_device(s, a.data(), pinned + 2, sizeof(int)); }),
              {"not pinned"});
    check_has(capture([&](Stream s) { copy_to_device(s, a.data(), &pageable, sizeof(int)); }),
              {"not pinned"});
    check_has(capture([&](Stream s) { finish(s); }), {"captured"});
    check_has(capture([&](Stream s) { copy_to_host(s, &pageable, a.data(), sizeof(int)); }), {"captured"});
    pinned_free(pinned);
}

TEST_CASE("memory: where a driver refuses the graph, the host launches the steps", "[slow]") {
    const Config& c = tiny()->config;
    static const auto expected = two_canvases(*make_cuda_backend(tiny(), {.n_context = 100}), c);
    sim::refusal = GENERATE(sim::Refusal::Instantiate, sim::Refusal::Launch);
    const auto backend = make_cuda_backend(tiny(), {.n_context = 100});
    backend->encode(random_ids(30, 1, c.n_vocab));
    GenerateParams params;
    params.max_canvases = 2;
    params.sampler.max_steps = 2;
    const Answer answer = backend->generate(params, {});
    sim::refusal = sim::Refusal::Never;
    CHECK(answer.tokens == expected);
    CHECK(answer.note.find("the host launches every step") == 0);
    CHECK(two_canvases(*backend, c) == expected);
}

TEST_CASE("memory: a graph that never says that it has ended is given up") {
    const Config& c = tiny()->config;
    const auto backend = make_cuda_backend(tiny(), {.n_context = 100, .silence_ms = 50});
    sim::refusal = sim::Refusal::Silent;
    check_has(error_of([&] { two_canvases(*backend, c); }), {"0.05 s", "--host-loop"});
    sim::refusal = sim::Refusal::Never;
    CHECK(two_canvases(*backend, c) == two_canvases(*make_cuda_backend(tiny(), {.n_context = 100}), c));
}

// A step takes longer than a millisecond here, so it counts as one that never ends.
TEST_CASE("memory: a graph that runs and ends no step is a device that is lost") {
    const auto before = device_memory().used;
    {
        const auto backend = make_cuda_backend(tiny(), {.n_context = 100, .hang_ms = 1});
        std::string text;
        try {
            two_canvases(*backend, tiny()->config);
        } catch (const DeviceError& e) {
            text = e.what();
        }
        check_has(text, {"the GPU hangs", "0.001 s", "--host-loop"});
    }
    CHECK(device_memory().used == before);
}
#endif

// ---- from one request to the next -------------------------------------------------------------------------

TEST_CASE("memory: on the device, an answer as long as a pass can be taken back", "[slow]") {
    const Config& c = tiny()->config;
    const auto prompt = random_ids(40, 1, c.n_vocab);
    const auto backend =
        make_cuda_backend(tiny(), {.n_context = 200, .n_encode = 2 * c.n_canvas, .exact = true});
    const auto expected = logits_after(*backend, c, prompt, prompt.size());
    GenerateParams params;
    params.max_canvases = 2;
    params.sampler.max_steps = 2;
    backend->generate(params, {});
    CHECK(backend->truncate(40) == 40);
    std::vector<float> logits(expected.size());
    backend->logits({random_ids(c.n_canvas, 2, c.n_vocab), {}, 1}, logits);
    CHECK(logits == expected);
    params.max_canvases = 3;
    backend->generate(params, {});
    CHECK(backend->truncate(40) == 0);  // of a longer one, the window is lost
}

TEST_CASE("memory: on the CPU, sliding layers drop what is long past") {
    const Config& c = tiny()->config;
    const auto backend = make_cpu_backend(tiny(), c.n_context);
    const auto prompt = random_ids(4000, 1, c.n_vocab);
    backend->encode(prompt);
    CHECK(backend->n_cached() == 4000);
    // What is kept before the window: kCpuReserve, and up to a pass more.
    CHECK(backend->truncate(4000 - kCpuReserve) == 4000 - kCpuReserve);
    const auto shorter = std::vector(prompt.begin(), prompt.begin() + 4000 - kCpuReserve);
    std::vector<float> logits(size_t(c.n_canvas) * c.n_vocab);
    backend->logits({random_ids(c.n_canvas, 2, c.n_vocab), {}, 1}, logits);
    const auto fresh = make_cpu_backend(tiny(), c.n_context);
    CHECK(relative_error(logits, logits_after(*fresh, c, shorter, shorter.size())) < 1e-6);
    CHECK(backend->truncate(1000) == 0);
    CHECK(backend->n_cached() == 0);
    CHECK(relative_error(logits_after(*backend, c, shorter, 100), logits) < 1e-6);
}

TEST_CASE("memory: the next request reuses all that it shares with what is cached") {
    Engine engine({.model = fixture("tiny.gguf"), .device = "cpu"}),
        other({.model = fixture("tiny.gguf"), .device = "cpu"});
    const int n_canvas = engine.model().config.n_canvas, n_vocab = engine.model().config.n_vocab;
    Request r;
    r.prompt_ids = random_ids(30, 1, n_vocab);
    r.ignore_eos = true;
    r.n_token = 3 * n_canvas;
    r.sampler = engine.model().config.sampler;
    r.sampler->max_steps = 4;
    const Result first = engine.generate(r);
    CHECK(first.n_reused == 0);
    REQUIRE(static_cast<int>(first.ids.size()) == 3 * n_canvas);
    for (const double ms : {first.encode_ms, first.denoise_ms, first.commit_ms}) CHECK(ms > 0);
    // The answer as the next prompt has it: all canvases but the last have been encoded.
    r.prompt_ids.insert(r.prompt_ids.end(), first.ids.begin(), first.ids.end());
    r.prompt_ids.push_back(7);
    const Result second = engine.generate(r);
    CHECK(second.n_reused == 30 + 2 * n_canvas);
    CHECK(second.n_lost == 0);
    CHECK(second.ids == other.generate(r).ids);
    // A prompt that leaves the answer in its middle.
    r.prompt_ids.resize(30 + n_canvas + 5);
    r.prompt_ids.push_back(9);
    CHECK(engine.generate(r).n_reused == 30 + n_canvas + 5);
    CHECK(engine.generate(r).n_reused == 30 + n_canvas + 6);

    // So much comes after a common beginning that it is gone.
    r.n_token = n_canvas;
    r.prompt_ids = random_ids(3900, 2, n_vocab);
    engine.generate(r);
    r.prompt_ids.resize(300);
    r.n_best = 2;  // which is told with the second answer, too
    while (other.generate(r).seed == r.seed) r.seed++;
    const Result lost = engine.generate(r);
    CHECK(lost.seed == r.seed + 1);
    CHECK(lost.n_reused == 0);
    CHECK(lost.n_lost == 300);
    CHECK(lost.note.find("300 tokens of the prompt are encoded again") == 0);
    CHECK(lost.ids == other.generate(r).ids);
}

TEST_CASE("memory: an engine that works on an answer takes no other") {
    Engine engine({.model = fixture("tiny.gguf"), .n_context = 64, .device = "cpu"});
    Request r;
    r.n_token = 24;
    r.sampler = engine.model().config.sampler;
    r.sampler->max_steps = 1;
    r.prompt_ids = std::vector<int32_t>(40, 5);
    const auto ids = engine.generate(r).ids;
    std::string text;
    const auto again = [&](const Frame&) {
        text = error_of([&] { engine.generate(r); });
        return true;
    };
    CHECK(engine.generate(r, again).ids == ids);
    CHECK(text == "this Engine is still generating another answer; it makes one at a time");
    CHECK_THROWS_AS(engine.generate(r, [](const Frame&) -> bool { throw Error("stop"); }), Error);
    CHECK(engine.generate(r).ids == ids);
}

TEST_CASE("memory: a prompt one token too long is refused, and nothing is encoded") {
    Engine engine({.model = fixture("tiny.gguf"), .n_context = 64, .device = "cpu"});
    Request r;
    r.n_token = 24;
    r.sampler = engine.model().config.sampler;
    r.sampler->max_steps = 1;
    r.prompt_ids = std::vector<int32_t>(41, 5);
    CHECK_THROWS_WITH(engine.generate(r),
                      Catch::Contains("41 prompt tokens and 1 canvas of 24 tokens need 65 "
                                      "tokens, the context has 64"));
    CHECK(engine.backend().n_cached() == 0);
    CHECK_THROWS_WITH(Engine({.model = fixture("tiny.gguf"), .n_context = -1, .device = "cpu"}),
                      "context is -1, expected 1 to 4096");
    r.prompt_ids.pop_back();
    CHECK(engine.generate(r).n_prompt == 40);
}

TEST_CASE("memory: an answer ends after 2048 tokens, or where the context does") {
    Request r;
    r.prompt_ids = std::vector<int32_t>(30, 5);
    r.ignore_eos = true;
    r.sampler = tiny()->config.sampler;
    r.sampler->max_steps = 1;
    for (const auto& [n_context, n_token] : {std::pair{0, 2048}, {103, 72}, {101, 48}}) {
        Engine engine({.model = fixture("tiny.gguf"), .n_context = n_context, .device = "cpu"});
        CHECK(static_cast<int>(engine.generate(r).ids.size()) == n_token);
    }
}

// Progress comes after every pass, and can stop the prompt there.
TEST_CASE("memory: a long prompt can be stopped between two passes") {
    Engine engine({.model = fixture("tiny.gguf"), .device = "cpu"});
    Request r;
    r.prompt_ids = random_ids(2000, 1, engine.model().config.n_vocab);
    std::vector<int> done;
    const Result result = engine.generate(r, {}, [&](int n, int total) {
        CHECK(total == 2000);
        done.push_back(n);
        return n < 1000;
    });
    CHECK(done == std::vector{512, 1024});
    CHECK(result.finish == Finish::Cancelled);
    CHECK(result.steps.empty());
    CHECK(engine.backend().n_cached() == 1024);
}
