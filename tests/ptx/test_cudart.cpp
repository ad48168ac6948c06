// test_cudart.cpp: that cudart.cpp refuses what CUDA does, and runs the rest in any order that is allowed;
// and what device_cuda.cpp makes of it. Only `make test-fake-gpu` has these: a GPU does not promise to be
// that bad.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <thread>

#include "device.h"
#include "files.h"
#include "golden.h"
#include "ops.h"

using namespace easel;

namespace {

// The error of a capture; afterwards the device is as before.
std::string captured(const Graph::Launches& launches) {
    const std::string text = error_of([&] { Graph().launch(launches); });
    CHECK(cudaGetLastError() == cudaSuccess);
    CHECK(error_of([] { Graph().launch([](Stream) {}); }).empty());
    return text;
}
// The same in the body of a loop in a loop.
std::string captured_in_loop(const Graph::Launches& launches) {
    const std::string text = error_of([&] {
        Graph g;
        const Condition outer = g.condition(false), inner = g.condition(false);
        g.loop(outer, [&](Graph& body) { body.loop(inner, [&](Graph& most) { most.launch(launches); }); });
    });
    CHECK(cudaGetLastError() == cudaSuccess);
    return text;
}

struct Pinned {
    int* p;
    explicit Pinned(size_t n) : p(static_cast<int*>(pinned_alloc(n * sizeof(int)))) {}
    ~Pinned() { pinned_free(p); }
};

}  // namespace

TEST_CASE("cudart: a capture that breaks the rules is refused, in a loop too") {
    const DeviceArray<int> a(4);
    const Pinned pinned(2);
    int pageable = 1;
    OwnStream other;
    Event event;
    const auto both = [](const char* expected, const Graph::Launches& launches) {
        CHECK_THAT(captured(launches), Catch::Contains(expected));
        CHECK_THAT(captured_in_loop(launches), Catch::Contains(expected));
    };
    const auto copy = [&](const int* from) {
        return [&a, from](Stream s) { copy_to_device(s, a.data(), from, sizeof(int)); };
    };
    CHECK(captured(copy(pinned.p + 1)).empty());
    CHECK(captured_in_loop(copy(pinned.p + 1)).empty());
    both("cudaErrorInvalidValue", [&](Stream s) { copy_to_device(s, a.data(), pinned.p + 1, 8); });
    both("cudaErrorStreamCaptureUnsupported", copy(&pageable));
    both("cudaErrorStreamCaptureUnsupported", [](Stream s) { finish(s); });
    both("cudaErrorStreamCaptureUnsupported", [](Stream s) { finished(s); });
    both("cudaErrorStreamCaptureIsolation", [&](Stream s) {
        event.record(other.s);
        event.hold(s);
    });
    both("cudaErrorCapturedEvent", [&](Stream s) {
        event.record(s);
        event.wait();
    });
    both("cudaErrorStreamCaptureUnjoined", [&](Stream s) {
        event.record(s);
        event.hold(other.s);
        fill_zero(other.s, a.data(), 4);
        fill_zero(s, a.data() + 1, 4);
    });
    finish(other.s);
    // What a launcher throws ends the capture, and nothing more.
    both("of mine", [&](Stream s) {
        fill_zero(s, a.data(), 4);
        fail("of mine");
    });
}

TEST_CASE("cudart: an error is told once, and does no harm to what comes after") {
    Event plain, timed(true);
    OwnStream s;
    CHECK_THAT(error_of([&] { plain.ms_since(timed); }), Catch::Contains("cudaErrorInvalidResourceHandle"));
    CHECK_THAT(error_of([&] { fill_zero(s.s, &plain, 4); }), Catch::Contains("cudaErrorInvalidValue"));
    CHECK_THAT(error_of([&] { device_alloc(size_t{1} << 40); }), Catch::Contains("out of GPU memory"));
    const DeviceArray<int> a(1);
    fill_zero(s.s, a.data(), 4);
    do CHECK((finished(s.s), cudaGetLastError()) == cudaSuccess);  // "not yet" is no error
    while (!finished(s.s));
    CHECK(a.to_host(s.s)[0] == 0);
    CHECK(cudaGetLastError() == cudaSuccess);
}

TEST_CASE("cudart: a graph with an unused condition, one of another graph, and no body") {
    Graph g, other;
    g.condition(true);
    CHECK_THAT(error_of([&] { g.instantiate(); }), Catch::Contains("result 5"));
    const Condition c = other.condition(false);
    CHECK_THAT(error_of([&] { g.loop(c, [](Graph&) {}); }), Catch::Contains("cudaErrorInvalidValue"));
    const DeviceArray<int> v(1);
    const auto body = [&](Graph& b) { b.launch([&](Stream s) { fill_zero(s, v.data(), 4); }); };
    other.branch(c, body);
    CHECK_THAT(error_of([&] { other.branch(c, body); }), Catch::Contains("cudaErrorInvalidValue"));
    other.instantiate();
    Graph empty;
    CHECK_THAT(error_of([&] { empty.loop(empty.condition(false), [](Graph&) {}); }),
               Catch::Contains("without a body"));
}

TEST_CASE("cudart: a driver that is too old is told, and not used") {
    std::string why;
    CHECK(cuda_devices(&why).size() == 1);
    setenv("EASEL_FAKE_GPU_DRIVER", "12030", 1);
    CHECK(cuda_devices(&why).empty());
    CHECK(why == "the driver is for CUDA 12.3, 12.4 or later is needed (driver 550)");
    unsetenv("EASEL_FAKE_GPU_DRIVER");
}

// 64 KB for one thread, then 38 for another, then 64 again.
TEST_CASE("cudart: a kernel keeps the shared memory that it has been allowed") {
    const DeviceArray<int> slot_of(2), token_of(2), chosen(2);
    const auto run = [&](int n_expert) {
        const OwnStream s;
        const DeviceArray<ExpertGroup> groups(n_expert);
        fill_zero(s.s, chosen.data(), 8);
        permute(s.s, slot_of.data(), token_of.data(), groups.data(), chosen.data(), 2, 1, n_expert, 32);
        finish(s.s);
    };
    run(1000);
    std::thread([&] { run(600); }).join();
    CHECK(error_of([&] { run(1000); }).empty());
}

// Work of two streams is done in either order, unless one holds the other; host memory is read late.
TEST_CASE("cudart: streams run in any order, held ones in theirs") {
    const DeviceArray<int> a(1);
    const Pinned two(2);
    OwnStream s, t;
    two.p[0] = 1, two.p[1] = 2;
    bool last_of[2] = {};
    for (int i = 0; i < 200; i++) {
        copy_to_device(s.s, a.data(), two.p, 4);
        copy_to_device(t.s, a.data(), two.p + 1, 4);
        finish(i % 2 ? s.s : t.s);
        finish(i % 2 ? t.s : s.s);
        last_of[a.to_host(s.s)[0] - 1] = true;
        SideStream side;
        copy_to_device(side.fork(s.s), a.data(), two.p, 4);
        side.join(s.s);
        copy_to_device(s.s, a.data(), two.p + 1, 4);
        CHECK(a.to_host(s.s)[0] == 2);
    }
    CHECK(last_of[0]);
    CHECK(last_of[1]);
}

// What a graph is given in order runs in order; branches beside each other in any.
TEST_CASE("cudart: nodes of a graph run in any order that the edges allow") {
    const DeviceArray<int> a(3);
    const Pinned two(2);
    OwnStream s;
    SideStream side;
    two.p[0] = 1, two.p[1] = 2;
    Graph g;
    const Condition always = g.condition(true), never = g.condition(false);
    g.launch([&](Stream c) {  // a[0]: 1 or 2; a[1]: 2
        const Stream beside = side.fork(c);
        copy_to_device(beside, a.data(), two.p, 4);
        copy_to_device(beside, a.data() + 1, two.p, 4);
        copy_to_device(c, a.data(), two.p + 1, 4);
        side.join(c);
        copy_to_device(c, a.data() + 1, two.p + 1, 4);
        fill_zero(c, a.data() + 2, 4);
    });
    g.branch(never, [&](Graph& b) { b.launch([&](Stream c) { fill_zero(c, a.data(), 12); }); });
    g.branch(always, [&](Graph& b) {
        b.launch([&](Stream c) { copy_to_device(c, a.data() + 2, two.p, 4); });
        b.launch([&](Stream c) { copy_on_device(c, a.data() + 1, a.data() + 2, 4); });
    });
    g.launch([&](Stream c) { copy_on_device(c, a.data() + 2, a.data() + 1, 4); });
    CHECK(g.n_launch() == 8);
    g.instantiate();
    bool was[2] = {};
    for (int i = 0; i < 50; i++) {
        g.run(s.s);
        g.run(s.s);
        const auto out = a.to_host(s.s);
        was[out[0] - 1] = true;
        CHECK(out[1] == 1);
        CHECK(out[2] == 1);
    }
    CHECK(was[0]);
    CHECK(was[1]);
}

// In a process of its own: it is the last that this one does with the device.
TEST_CASE("cudart: nothing is given back to a device that hangs") {
    const pid_t child = fork();
    if (child == 0) {
        int64_t free = 0;
        {
            const DeviceArray<int> array(1 << 20);
            const OwnStream stream;
            const Event event;
            const Pinned pinned(1);
            const Graph graph;
            free = free_device_bytes();
            abandon_device(stream.s);
        }
        _exit(free_device_bytes() == free ? 0 : 1);
    }
    int status = -1;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
    const int64_t free = free_device_bytes();
    { const DeviceArray<int> array(1 << 20); }
    CHECK(free_device_bytes() == free);
}

// Copies of experts, frames and steps in whatever order this seed takes them; where the driver refuses the
// graph, the host launches the steps, and the answer says so.
TEST_CASE("cudart: an answer by the host, by a graph, and with offloaded experts") {
    const auto model = load_model(fixture("tiny.gguf"));
    const char* const what = std::getenv("EASEL_FAKE_GPU_REFUSES");
    const bool refused = what && what != std::string("overlap");  // the host need not launch the steps then
    GenerateParams params;
    params.sampler = model->config.sampler;
    params.sampler.max_steps = 1;
    params.max_canvases = 2;
    std::vector<int32_t> expected;
    for (const DeviceOptions& options : {DeviceOptions{.n_context = 60, .graph_loop = false},
                                         {.n_context = 60},
                                         {.n_context = 60, .overlap = false},
                                         {.n_context = 60, .n_offload = 5}}) {
        const auto backend = make_cuda_backend(model, options);
        backend->encode(std::vector<int32_t>{2, 3, 4});
        int n_frame = 0;
        const Answer answer = backend->generate(params, [&](const Frame&) { return ++n_frame > 0; });
        if (expected.empty()) expected = answer.tokens;
        CHECK(answer.tokens.size() == size_t(2 * model->config.n_canvas));
        CHECK(answer.tokens == expected);
        CHECK(n_frame == 2);
        CHECK(answer.note.empty() == !(refused && options.graph_loop));
    }
}
