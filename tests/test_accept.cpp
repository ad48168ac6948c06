// test_accept.cpp: the loop on the device (cuda/accept.cu) against accept() and StopRule of sampler.h, and
// against a small model of the CPU backend's loop.
#include <algorithm>
#include <chrono>
#include <thread>

#include "check.h"
#include "kernel.h"

namespace easel {

namespace {

constexpr int kVocab = 384;

// Memory that host and device see.
struct Mapped {
    explicit Mapped(size_t bytes) : host(mapped_alloc(bytes)) {}
    ~Mapped() { mapped_free(host); }
    Mapped(const Mapped&) = delete;
    void* host;
};

uint32_t read_now(const uint32_t& x) {
    return *static_cast<const volatile uint32_t*>(&x);
}
void write_now(uint32_t& x, uint32_t value) {
    *static_cast<volatile uint32_t*>(&x) = value;
}

// A frame as the host reads it.
struct Seen {
    FrameHeader header;
    std::vector<int32_t> tokens, argmax;
    std::vector<float> entropy, log_prob;
    std::vector<uint8_t> accepted;

    bool operator==(const Seen& o) const {
        return header.canvas == o.header.canvas && header.step == o.header.step &&
               header.mean_entropy == o.header.mean_entropy && header.temperature == o.header.temperature &&
               header.dropped == o.header.dropped && header.last == o.header.last && tokens == o.tokens &&
               argmax == o.argmax && entropy == o.entropy && log_prob == o.log_prob && accepted == o.accepted;
    }
};

struct HostRing {
    HostRing(int n_canvas, int n_slot)
        : n_canvas(n_canvas),
          n_slot(n_slot),
          header_memory(sizeof(RingHeader)),
          slot_memory(size_t(n_slot) * FrameSlot::bytes(n_canvas)) {}

    RingHeader& header() { return *static_cast<RingHeader*>(header_memory.host); }
    Ring ring() const {
        return {static_cast<RingHeader*>(mapped_device_address(header_memory.host)),
                static_cast<uint8_t*>(mapped_device_address(slot_memory.host)), n_slot,
                FrameSlot::bytes(n_canvas)};
    }
    // Frame number `tail`, which must be there; its slot is free afterwards.
    Seen take() {
        const uint32_t i = header().tail;
        const uint8_t* at =
            static_cast<uint8_t*>(slot_memory.host) + i % n_slot * size_t(FrameSlot::bytes(n_canvas));
        Seen s;
        const auto read = [&at](auto* to, int n) {
            memcpy(to, at, n * sizeof *to);
            at += n * sizeof *to;
        };
        s.tokens.resize(n_canvas), s.argmax.resize(n_canvas);
        s.entropy.resize(n_canvas), s.log_prob.resize(n_canvas), s.accepted.resize(n_canvas);
        read(&s.header, 1);
        read(s.tokens.data(), n_canvas);
        read(s.argmax.data(), n_canvas);
        read(s.entropy.data(), n_canvas);
        read(s.log_prob.data(), n_canvas);
        read(s.accepted.data(), n_canvas);
        write_now(header().tail, i + 1);
        return s;
    }
    bool has_frame() { return read_now(header().head) != header().tail; }

    int n_canvas, n_slot;
    Mapped header_memory, slot_memory;
};

LoopState make_state(const SamplerConfig& sampler, uint64_t seed = 5, int max_canvases = 1) {
    LoopState s{};
    s.sampler = sampler;
    s.seed = seed;
    s.max_canvases = max_canvases;
    return s;
}

// All positions are free, unless the state says how many are.
LoopState with_free(LoopState s, int n_canvas) {
    if (!s.n_free) s.n_free = n_canvas;
    return s;
}

// The buffers of a canvas on the device, and the launches over them.
struct Loop {
    Loop(int n_canvas, const LoopState& initial, int n_slot = 4, const GivenTokens& known = {})
        : n_canvas(n_canvas),
          given(to_device(std::vector{known})),
          tokens(n_canvas),
          argmax(n_canvas),
          state(to_device(std::vector{with_free(initial, n_canvas)})),
          ring(n_canvas, n_slot) {}

    void start(const LoopConditions& conditions = {}) {
        start_canvas(Stream{}, tokens.data(), n_canvas, kVocab, given.data(), state.data(), conditions);
    }
    void step(const std::vector<RowStats>& rows) {
        const auto device_rows = to_device(rows);
        accept(Stream{}, tokens.data(), argmax.data(), device_rows.data(), n_canvas, kVocab, state.data(),
               ring.ring(), {});
        finish(Stream{});
    }
    void end() { end_canvas(Stream{}, argmax.data(), n_canvas, state.data(), ring.ring(), {}); }
    LoopState now() const { return to_host(state)[0]; }

    int n_canvas;
    DeviceArray<GivenTokens> given;
    DeviceArray<int32_t> tokens, argmax;
    DeviceArray<LoopState> state;
    HostRing ring;
};

// The CPU backend's loop, a step at a time.
struct HostLoop {
    HostLoop(const LoopState& s, int n_canvas)
        : state(with_free(s, n_canvas)),
          n_canvas(n_canvas),
          stop(s.sampler.stability, s.sampler.confidence) {}

    Seen step(const std::vector<RowStats>& rows, int canvas, int step) {
        const SamplerConfig& c = state.sampler;
        Seen s;
        s.accepted.resize(n_canvas);
        float dropped = 0;
        for (const RowStats& r : rows) {
            s.entropy.push_back(r.entropy), s.log_prob.push_back(r.log_prob), s.argmax.push_back(r.argmax);
            dropped = std::max(dropped, r.dropped);
        }
        const float mean_entropy = accept(s.entropy, c.entropy_bound, state.n_free, s.accepted);
        for (int i = 0; i < n_canvas; i++)
            s.tokens.push_back(
                s.accepted[i]
                    ? (c.greedy ? rows[i].argmax : rows[i].drawn)
                    : random_token(random_word(state.seed, i, step, canvas, RandomStream::Renoise), kVocab));
        const bool stable = stop.update(s.argmax, mean_entropy);
        s.header = {
            canvas, step, mean_entropy, temperature(c, step), dropped, stable || step + 1 == c.max_steps};
        return s;
    }

    LoopState state;
    int n_canvas;
    StopRule stop;
};

// Rows with entropies of one of several kinds: spread, with ties, nearly all zero, all equal, tiny.
std::vector<RowStats> random_rows(int n, int kind, std::mt19937& random) {
    std::exponential_distribution<float> exponential(8);
    std::vector<RowStats> rows(n);
    for (RowStats& r : rows) {
        const float e = exponential(random);
        r.entropy = kind == 0   ? e
                    : kind == 1 ? std::round(e * 50) / 64
                    : kind == 2 ? (random() % 8 ? 0.0f : e)
                    : kind == 3 ? 0.0625f
                                : e * 1e-4f;
        r.argmax = static_cast<int32_t>(random() % kVocab);
        r.drawn = static_cast<int32_t>(random() % kVocab);
        r.log_prob = -exponential(random);
        r.dropped = 1e-3f * exponential(random);
    }
    return rows;
}

}  // namespace

TEST_CASE("accept decides as the CPU does", "[accept]") {
    std::mt19937 random(1);
    int n_all = 0, n_one = 0;
    for (int round = 0; round < 400; round++) {
        const int n = round % 9 == 0 ? 1 : 1 + static_cast<int>(random() % (round % 5 ? 48 : 256));
        SamplerConfig c;
        c.entropy_bound = std::vector{0.1f, 0.0f, 1.0f, 1e30f, 0.0625f}[round / 5 % 5];
        c.greedy = round % 2;
        LoopState state = make_state(c, round);
        if (round % 3 == 0) state.n_free = (n + 1) / 2;
        const auto rows = random_rows(n, round % 5, random);
        Loop loop(n, state, 1);
        loop.start();
        loop.step(rows);
        const Seen expected = HostLoop(state, n).step(rows, 0, 0);
        INFO("round " << round << ", " << n << " positions");
        REQUIRE(loop.ring.take() == expected);
        CHECK(to_host(loop.tokens) == expected.tokens);
        CHECK(to_host(loop.argmax) == expected.argmax);
        const auto n_accepted = std::count(expected.accepted.begin(), expected.accepted.end(), 1);
        n_all += n_accepted == n, n_one += n_accepted == 1;
    }
    CHECK(n_all > 50);
    CHECK(n_all < 350);
    CHECK(n_one > 20);
}

TEST_CASE("a canvas begins with the given tokens, and noise elsewhere", "[accept]") {
    constexpr int n = 40;
    LoopState state = make_state({});
    GivenTokens given{};
    std::fill_n(given.tokens, kMaxCanvas, GivenTokens::kFree);
    given.tokens[0] = 7, given.tokens[39] = 0;
    given.tokens[5] = given.tokens[6] = -2;  // a choice begins with noise
    for (bool has_given : {false, true}) {
        state.has_given = has_given;
        Loop loop(n, state, 1, given);
        loop.start();
        const auto tokens = to_host(loop.tokens);
        for (int i = 0; i < n; i++) {
            const int32_t noise = random_token(random_word(state.seed, i, 0, 0, RandomStream::Init), kVocab);
            CHECK(tokens[i] == (has_given && given.tokens[i] >= 0 ? given.tokens[i] : noise));
        }
    }
}

TEST_CASE("accept decides the same whatever the order of threads", "[accept]") {
    std::mt19937 random(2);
    for (int n : {1, 7, 24, 32, 33, 256, 1000, 1024})
        for (int kind : {0, 1}) {
            const LoopState state = make_state({}, n);
            const std::vector steps{random_rows(n, kind, random), random_rows(n, 4, random)};
            const auto tokens = every_schedule([&] {
                Loop loop(n, state);
                loop.start();
                HostLoop host(state, n);
                for (int step = 0; step < 2; step++) {
                    loop.step(steps[step]);
                    REQUIRE(loop.ring.take() == host.step(steps[step], 0, step));
                }
                return to_host(loop.tokens);
            });
            CHECK(tokens.size() == size_t(n));
        }
}

TEST_CASE("start_canvas makes the noise of its canvas", "[accept]") {
    for (int n : {1, 8, 256, 1000}) {
        LoopState state = make_state({}, 0x123456789abcdef0u);
        state.canvas = 2, state.step = 17, state.held = 3, state.n_cached = 99, state.n_frame = 5;
        Loop loop(n, state);
        loop.start();
        std::vector<int32_t> expected(n);
        for (int i = 0; i < n; i++)
            expected[i] = random_token(random_word(state.seed, i, 0, 2, RandomStream::Init), kVocab);
        CHECK(to_host(loop.tokens) == expected);
        const LoopState now = loop.now();
        CHECK(now.step == 0);
        CHECK(now.held == 0);
        CHECK(now.canvas == 2);
        CHECK(now.n_cached == 99);
        CHECK(now.n_frame == 5);
    }
}

TEST_CASE("advance counts tokens into the cache", "[accept]") {
    LoopState state = make_state({});
    state.n_cached = 40;
    const auto device = to_device(std::vector{state});
    advance(Stream{}, 32, device.data());
    advance(Stream{}, 1, device.data());
    CHECK(to_host(device)[0].n_cached == 73);
}

TEST_CASE("whole answers go as on the CPU", "[accept]") {
    // Steps whose argmax canvas changes for a while and then holds, whose entropies fall: three canvases.
    std::mt19937 random(3);
    int n_stable = 0, n_out_of_steps = 0;
    for (int stability : {0, 1, 2})
        for (int n : {1, 24, 40})
            for (int round = 0; round < 6; round++) {
                SamplerConfig c;
                c.stability = stability;
                c.max_steps = 9;
                c.greedy = round == 1;
                const LoopState initial = make_state(c, round, 3);
                Loop loop(n, initial, 3);
                uint32_t n_frame = 0;
                // Also from canvas to canvas: yet a first step never counts as one that held.
                std::vector<RowStats> rows = random_rows(n, 0, random);
                for (int canvas = 0; canvas < 3; canvas++) {
                    loop.start();
                    HostLoop host(initial, n);
                    const int moving = static_cast<int>(random() % 12) * (round % 2);
                    const int calm = static_cast<int>(random() % 3);
                    bool last = false;
                    for (int step = 0; !last; step++) {
                        const auto fresh = random_rows(n, step >= calm ? 4 : 0, random);
                        for (int i = 0; i < n; i++) {
                            const int32_t argmax = rows[i].argmax;
                            rows[i] = fresh[i];
                            if (step >= moving) rows[i].argmax = argmax;
                        }
                        // One position alone may change: the last, or any.
                        if (random() % 3 == 0)
                            rows[random() % 2 ? n - 1 : random() % n].argmax =
                                static_cast<int32_t>(random() % kVocab);
                        loop.step(rows);
                        const Seen expected = host.step(rows, canvas, step);
                        INFO("stability " << stability << " n " << n << " canvas " << canvas << " step "
                                          << step);
                        REQUIRE(loop.ring.take() == expected);
                        REQUIRE(to_host(loop.tokens) == expected.tokens);
                        last = expected.header.last;
                        const LoopState now = loop.now();
                        CHECK(now.step == step + 1);
                        CHECK(now.n_frame == ++n_frame);
                        CHECK(now.done == 0);
                        n_stable += last && step + 1 < c.max_steps;
                        n_out_of_steps += last && step + 1 == c.max_steps;
                    }
                    loop.end();
                    const LoopState now = loop.now();
                    CHECK(now.done == (canvas == 2));
                    CHECK(now.canvas == std::min(canvas + 1, 2));
                    if (now.done) CHECK(now.finish == int(Finish::Length));
                }
            }
    CHECK(n_stable > 20);
    CHECK(n_out_of_steps > 10);
}

TEST_CASE("an end token in the argmax canvas ends the answer", "[accept]") {
    for (int n : {1, 33, 1000})
        for (int place : {-1, 0, n - 1})
            for (int canvas : {0, 1}) {
                LoopState state = make_state({}, 5, 2);
                state.canvas = canvas;
                state.n_end = kMaxEndTokens;
                for (int i = 0; i < kMaxEndTokens; i++) state.end_tokens[i] = 100 + i;
                std::vector<int32_t> argmax(n, 99);
                if (place >= 0) argmax[place] = place ? 100 : 100 + kMaxEndTokens - 1;
                Loop loop(n, state);
                loop.argmax = to_device(argmax);
                loop.end();
                const LoopState now = loop.now();
                CHECK(now.done == (place >= 0 || canvas == 1));
                if (now.done) CHECK(now.finish == int(place >= 0 ? Finish::Stop : Finish::Length));
                CHECK(now.canvas == (now.done ? canvas : 1));
                CHECK(loop.ring.header().ended == uint32_t(now.done));
            }
    LoopState state = make_state({}, 5, 2);
    state.end_tokens[0] = 99;  // but n_end is 0
    Loop loop(8, state);
    loop.argmax = to_device(std::vector<int32_t>(8, 99));
    loop.end();
    CHECK(loop.now().done == 0);
}

TEST_CASE("cancelling ends the answer after a frame", "[accept]") {
    std::mt19937 random(4);
    const LoopState state = make_state({}, 5, 2);
    Loop loop(16, state);
    loop.start();
    const auto rows = random_rows(16, 0, random);
    loop.step(rows);
    CHECK(loop.now().done == 0);
    write_now(loop.ring.header().cancel, 1);
    loop.step(rows);
    LoopState now = loop.now();
    CHECK(now.done == 1);
    CHECK(now.finish == int(Finish::Cancelled));
    CHECK(now.n_frame == 2);  // the frame of that step is there
    loop.end();
    now = loop.now();
    CHECK(now.finish == int(Finish::Cancelled));
    CHECK(now.canvas == 0);
}

TEST_CASE("a cancelled frame without a slot writes nothing", "[accept]") {
    std::mt19937 random(9);
    const auto first = random_rows(70, 0, random), second = random_rows(70, 1, random);
    const auto tokens = every_schedule([&] {
        Loop loop(70, make_state({}), 1);
        loop.start();
        loop.step(first);
        write_now(loop.ring.header().cancel, 1);
        loop.step(second);
        const Seen seen = loop.ring.take();
        REQUIRE(seen == HostLoop(make_state({}), 70).step(first, 0, 0));
        CHECK(loop.now().finish == int(Finish::Cancelled));
        return seen.tokens;
    });
    CHECK(tokens.size() == 70);
}

TEST_CASE("cancelling between a canvas' last frame and its end", "[accept]") {
    LoopState state = make_state({}, 5, 2);
    Loop loop(16, state);
    loop.argmax = to_device(std::vector<int32_t>(16, 1));
    write_now(loop.ring.header().cancel, 1);
    loop.end();
    CHECK(loop.now().done == 1);
    CHECK(loop.now().finish == int(Finish::Cancelled));
    CHECK(loop.now().canvas == 0);
    CHECK(loop.ring.header().ended == 1);
}

namespace {

// A graph that runs whole answers over the rows of `steps`, one after the other, whatever the canvas.
struct GraphRun {
    GraphRun(int n_canvas, const LoopState& initial, int n_slot, const std::vector<RowStats>& rows)
        : loop(n_canvas, initial, n_slot), rows(to_device(rows)), stream(make_stream()) {
        const LoopConditions c{graph.condition(true), graph.condition(false), graph.condition(false)};
        graph.loop(c.more, [&](Graph& canvas) {
            canvas.branch(c.commit, [&](Graph& g) {
                g.launch([&](Stream s) { advance(s, n_canvas, loop.state.data()); });
            });
            canvas.launch([&](Stream s) {
                start_canvas(s, loop.tokens.data(), n_canvas, kVocab, loop.given.data(), loop.state.data(),
                             c);
            });
            canvas.loop(c.denoise, [&](Graph& g) {
                g.launch([&](Stream s) {
                    accept(s, loop.tokens.data(), loop.argmax.data(), this->rows.data(), n_canvas, kVocab,
                           loop.state.data(), loop.ring.ring(), c);
                });
            });
            canvas.launch([&](Stream s) {
                end_canvas(s, loop.argmax.data(), n_canvas, loop.state.data(), loop.ring.ring(), c);
            });
        });
        graph.instantiate();
    }
    ~GraphRun() {
        write_now(loop.ring.header().cancel, 1);  // a failed test leaves it waiting for the host
        free_stream(stream);
    }

    Loop loop;
    DeviceArray<RowStats> rows;
    Graph graph;
    Stream stream;
};

}  // namespace

TEST_CASE("a graph loops through canvases and waits for a slow host", "[accept][waits]") {
    std::mt19937 random(6);
    for (int n_slot : {1, 3}) {
        const int n = n_slot == 1 ? 1000 : 24;
        SamplerConfig c;
        c.max_steps = 7;
        LoopState initial = make_state(c, 8, 3);
        initial.n_cached = 10;
        const auto rows = random_rows(n, 0, random);  // never confident: 7 steps a canvas
        GraphRun run(n, initial, n_slot, rows);
        run.graph.run(run.stream);
        HostRing& ring = run.loop.ring;
        int n_full = 0;
        for (int frame = 0; frame < 21; frame++) {
            if (frame % 5 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(10));
            while (!ring.has_frame()) std::this_thread::yield();
            const uint32_t n_waiting = read_now(ring.header().head) - ring.header().tail;
            const Seen seen = ring.take();  // at once: a frame must be whole when it is published
            HostLoop host(initial, n);
            REQUIRE(seen == host.step(rows, frame / 7, frame % 7));
            CHECK(n_waiting <= static_cast<uint32_t>(n_slot));
            n_full += n_waiting == static_cast<uint32_t>(n_slot);
        }
        CHECK(n_full >= 3);
        finish(run.stream);
        CHECK_FALSE(ring.has_frame());
        const LoopState now = run.loop.now();
        CHECK(now.done == 1);
        CHECK(now.finish == int(Finish::Length));
        CHECK(now.n_frame == 21);
        CHECK(now.n_cached == 10 + 2 * n);  // encoded before canvases 1 and 2
    }
}

TEST_CASE("an answer of one canvas that holds still ends in its second step", "[accept]") {
    std::mt19937 random(7);
    LoopState initial = make_state({}, 9, 4);
    const auto rows = random_rows(32, 4, random);
    initial.n_end = 1;
    initial.end_tokens[0] = rows[31].argmax;
    GraphRun run(32, initial, 4, rows);
    run.graph.run(run.stream);
    finish(run.stream);
    CHECK(run.loop.now().finish == int(Finish::Stop));
    CHECK(run.loop.now().n_frame == 2);
    CHECK(run.loop.now().n_cached == 0);
    CHECK(run.loop.ring.take().header.last == 0);
    CHECK(run.loop.ring.take().header.last == 1);
}

TEST_CASE("cancelling ends the wait for a host that takes no frames", "[accept][waits]") {
    std::mt19937 random(8);
    const auto rows = random_rows(16, 0, random);
    GraphRun run(16, make_state({}, 9, 4), 2, rows);
    run.graph.run(run.stream);
    RingHeader& header = run.loop.ring.header();
    while (read_now(header.head) < 2) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    CHECK_FALSE(finished(run.stream));
    write_now(header.cancel, 1);
    finish(run.stream);
    const LoopState now = run.loop.now();
    CHECK(now.done == 1);
    CHECK(now.finish == int(Finish::Cancelled));
    CHECK(now.n_frame == 2);  // the third had no place
    CHECK(header.head == 2);
    CHECK(now.canvas == 0);
}

TEST_CASE("a canvas has 1 to 1024 positions", "[accept]") {
    LoopState state = make_state({});
    const auto device = to_device(std::vector{state});
    CHECK_THROWS_AS(start_canvas(Stream{}, nullptr, kMaxCanvas + 1, kVocab, nullptr, device.data(), {}),
                    Error);
    CHECK_THROWS_AS(start_canvas(Stream{}, nullptr, 0, kVocab, nullptr, device.data(), {}), Error);
}

}  // namespace easel
