// backend.cpp: the CUDA backend: requests, the KV cache, and the denoise loop as one graph of forward passes
// (forward.h). Implements Backend; made by the Engine (src/engine.cpp). Host code: kernels are behind ops.h,
// CUDA is behind device.h, so the same text runs on a GPU and in the simulator.
#include "backend.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <thread>
#include <utility>

#include "check.h"
#include "device.h"
#include "forward.h"
#include "host_ring.h"
#include "layout.h"
#include "load.h"
#include "memory_plan.h"
#include "profile.h"
#include "request_checks.h"

namespace easel {

using Clock = std::chrono::steady_clock;

static double ms_between(Clock::time_point a, Clock::time_point b) {
    return std::chrono::duration<double, std::milli>(b - a).count();
}

// T: F16, or float for exact results.
template <class T>
class DeviceBackend final : public Backend {
  public:
    DeviceBackend(std::shared_ptr<const Model> model, const DeviceOptions& options)
        : model_(std::move(model)),
          c_(model_->config),
          plan_(plan_gpu(*model_, options)),
          room_(c_, options),
          n_offload_(options.n_offload),
          index_(options.index),
          silence_(options.silence_ms),
          hang_(options.hang_ms),
          graph_loop_(options.graph_loop),
          memory_(plan_.total()),
          ring_(c_.n_canvas) {
        if (!options.overlap) in_order_.emplace();
        Arena arena = memory_.arena();
        w_ = lay_out_weights<T>(*model_, n_offload_, arena);
        cache_ = lay_out_cache<T>(*model_, room_, arena);
        b_ = lay_out_buffers<T>(*model_, room_, arena);
        clear_padding<T>(stream_.s, c_, room_, b_);
        load_stats_ = load_weights(stream_.s, *model_, n_offload_, w_, b_, forward_.experts, options.on_load);
        for (const KvLayer<T>& l : cache_) n_slot_ = std::min(n_slot_, l.n_slot);
    }
    ~DeviceBackend() override { drain(); }

    int n_cached() const override { return n_cached_; }
    int n_context() const override { return room_.n_context; }
    int n_encode() const override { return room_.n_token; }
    MemoryPlan plan() const override { return plan_; }
    LoadStats load_stats() const override { return load_stats_; }

    int truncate(int n_token) override {
        check_truncate(n_cached_, n_token);
        // A sliding layer's ring has lost what lies n_slot_ or more before the newest position ever written.
        const bool kept = n_token - (c_.window - 1) >= first_kept_ || first_kept_ == 0;
        n_cached_ = kept ? n_token : 0;
        if (n_cached_ == 0) first_kept_ = 0;
        return n_cached_;
    }

    void encode(std::span<const int32_t> tokens) override {
        use_device(index_);
        check_tokens(c_, tokens);
        check_append(n_cached_, tokens.size(), room_.n_context);
        const size_t chunk = room_.n_token;
        for (size_t at = 0; at < tokens.size(); at += chunk) {
            const auto part = tokens.subspan(at, std::min(chunk, tokens.size() - at));
            LoopState state{};
            state.n_cached = n_cached_;
            copy_to_device(stream_.s, b_.state, &state, sizeof state);
            copy_to_device(stream_.s, b_.prompt, part.data(), part.size_bytes());
            forward_.encode(stream_.s, b_.prompt, static_cast<int>(part.size()));
            finish(stream_.s);  // until here, `state` and `part` must live: they are being copied
            n_cached_ += static_cast<int>(part.size());
            written(n_cached_);
        }
    }

    void logits(const LogitsRequest& request, std::span<float> out) override {
        use_device(index_);
        check_logits_request(c_, request, out.size());
        check_room(c_, n_cached_, 1, room_.n_context);
        const size_t n = out.size();
        LoopState state{};
        state.sampler.t_min = state.sampler.t_max = 1;
        state.n_cached = n_cached_;
        state.step = request.prev_logits.empty() ? 0 : 1;
        copy_to_device(stream_.s, b_.state, &state, sizeof state);
        copy_to_device(stream_.s, b_.tokens, request.canvas.data(), request.canvas.size_bytes());
        const DeviceArray<float> logits(n);
        if (!request.prev_logits.empty()) {
            copy_to_device(stream_.s, logits.data(), request.prev_logits.data(), n * sizeof(float));
            probabilities<T>(stream_.s, b_.z, b_.live, logits.data(), request.prev_temperature, c_.n_canvas,
                             c_.n_vocab);
        }
        forward_.denoise(stream_.s, logits.data());
        written(n_cached_ + c_.n_canvas);
        copy_to_host(stream_.s, out.data(), logits.data(), n * sizeof(float));
        finish(stream_.s);
    }

    Answer generate(const GenerateParams& params, const FrameFn& on_frame) override {
        use_device(index_);
        check_generate(c_, params, n_cached_, room_.n_context);
        LoopState state = start_state(params);
        copy_to_device(stream_.s, b_.state, &state, sizeof state);
        if (state.has_given) {
            const GivenTokens given = given_tokens(params.given);
            copy_to_device(stream_.s, b_.given, &given, sizeof given);
            finish(stream_.s);
        }
        ring_.reset();

        Collector collect{on_frame, params.end_tokens};
        const auto start = Clock::now();
        const auto poll = [&] {
            ring_.poll([&](const Frame& f) {
                if (!collect.take(f)) ring_.cancel();
            });
            return collect.canvas_ended;
        };
        try {
            if (graph_loop_ && begin_graph())
                finish_graph(poll);
            else
                run_host_loop(poll);
            poll();
        } catch (...) {      // from CUDA or from the callback
            ring_.cancel();  // the device would wait for ever for a reader of its frames
            drain();
            written(n_cached_ + params.max_canvases * c_.n_canvas);
            throw;
        }
        copy_to_host(stream_.s, &state, b_.state, sizeof state);
        finish(stream_.s);
        Answer answer = collect.answer();
        answer.note = std::exchange(note_, {});
        answer.denoise_ms = static_cast<double>(state.denoise_ns) * 1e-6;
        answer.commit_ms = std::max(0.0, ms_between(start, Clock::now()) - answer.denoise_ms);
        // Of a cancelled answer, the device may have committed more canvases than it has: counted are those
        // that the answer has.
        n_cached_ += (answer.steps.empty() ? 0 : static_cast<int>(answer.steps.size()) - 1) * c_.n_canvas;
        written(state.n_cached + c_.n_canvas);
        return answer;
    }

    // What profile.cpp and bench_kernels.cpp measure.
    Measured<T> measured() {
        return {*this,
                c_,
                room_,
                w_,
                b_,
                cache_,
                stream_.s,
                load_stats_,
                [this](const GenerateParams& params) {
                    const LoopState state = start_state(params);
                    copy_to_device(stream_.s, b_.state, &state, sizeof state);
                    ring_.reset();
                    begin_canvas(stream_.s, {});
                    finish(stream_.s);
                },
                [this](Marks& marks) {
                    forward_.marks = &marks;
                    denoise_step(stream_.s, {});
                    forward_.marks = nullptr;
                    marks.add(stream_.s, Part::End);
                    finish(stream_.s);
                    ring_.poll([](const Frame&) {});
                },
                [this](const GenerateParams& params, bool graph) {
                    const bool before = std::exchange(graph_loop_, graph);
                    Answer answer = generate(params, {});
                    graph_loop_ = before;
                    return answer;
                },
                [this] {
                    Graph step;
                    step.launch([this](Stream s) { denoise_step(s, {}); });
                    return step.n_launch();
                },
                [this] { return overlap_refused_; }};
    }

  private:
    LoopState start_state(const GenerateParams& params) const {
        LoopState s{};
        s.sampler = params.sampler;
        s.seed = params.seed;
        s.max_canvases = params.max_canvases;
        require(params.end_tokens.size() <= kMaxEndTokens, "{} end tokens, expected at most {}",
                params.end_tokens.size(), kMaxEndTokens);
        s.n_end = static_cast<int>(params.end_tokens.size());
        std::copy(params.end_tokens.begin(), params.end_tokens.end(), s.end_tokens);
        s.n_cached = n_cached_;
        const std::vector<int32_t>& given = params.given.tokens;
        s.has_given = !given.empty();
        s.n_free = c_.n_canvas;
        for (int32_t id : given) s.n_free -= id >= 0;
        return s;
    }

    static GivenTokens given_tokens(const Given& given) {
        GivenTokens out{};
        std::copy(given.tokens.begin(), given.tokens.end(), out.tokens);
        int n_option_token = 0;
        for (size_t k = 0; k < given.choices.size(); k++) {
            const Choice& choice = given.choices[k];
            out.choices[k] = {choice.begin, choice.length(), static_cast<int>(choice.options.size()),
                              n_option_token};
            std::fill_n(out.tokens + choice.begin, choice.length(), -2 - static_cast<int32_t>(k));
            for (const auto& option : choice.options) {
                std::copy(option.begin(), option.end(), out.options + n_option_token);
                n_option_token += choice.length();
            }
        }
        return out;
    }

    // Waits for the device and ignores its errors.
    void drain() noexcept {
        try {
            use_device(index_);  // in a thread that has none, freeing would start the first GPU
            if (hung_) return;
            if (in_graph_) graph_ends(std::chrono::seconds(10), [] {});
            finish(stream_.s);
        } catch (...) {  // nothing is left to wait for
        }
    }

    // To be called when positions up to `end` have been written: positions n_slot_ apart share a slot.
    void written(int end) { first_kept_ = std::max(first_kept_, end - n_slot_); }

    // ---- the loop -----------------------------------------------------------------------------------------

    void denoise_step(Stream s, const LoopConditions& conditions) {
        forward_.denoise(s, nullptr);
        forward_.mark(s, Part::Sample);
        forward_.sample(s);
        forward_.mark(s, Part::Accept);
        accept(s, b_.tokens, b_.argmax, b_.rows, c_.n_canvas, c_.n_vocab, b_.state, ring_.device(),
               conditions);
    }
    void begin_canvas(Stream s, const LoopConditions& conditions) {
        start_canvas(s, b_.tokens, c_.n_canvas, c_.n_vocab, b_.given, b_.state, conditions);
    }
    void finish_canvas(Stream s, const LoopConditions& conditions) {
        end_canvas(s, b_.argmax, c_.n_canvas, b_.state, ring_.device(), conditions);
    }
    void commit_canvas(Stream s) { forward_.encode(s, b_.argmax, c_.n_canvas); }

    // One launch an answer: while there is a canvas { commit the one before; while not settled { step } }.
    std::unique_ptr<Graph> make_graph() {
        auto g = std::make_unique<Graph>();
        const LoopConditions c{g->condition(true), g->condition(false), g->condition(false)};
        g->loop(c.more, [&](Graph& canvas) {
            canvas.branch(c.commit, [&](Graph& b) { b.launch([&](Stream s) { commit_canvas(s); }); });
            canvas.launch([&](Stream s) { begin_canvas(s, c); });
            canvas.loop(c.denoise, [&](Graph& b) { b.launch([&](Stream s) { denoise_step(s, c); }); });
            canvas.launch([&](Stream s) { finish_canvas(s, c); });
        });
        g->instantiate();
        return g;
    }

    // Makes and runs a graph. If that fails, tries once more without overlapping launches; if that works,
    // launches stay in order from then on.
    template <class Attempt>
    void try_overlap(const Attempt& attempt) {
        try {
            attempt();
        } catch (const DeviceError&) {
            throw;
        } catch (const Error& e) {
            if (LaunchesInOrder::any()) throw;
            in_order_.emplace();
            try {
                attempt();
            } catch (...) {  // overlapping launches were not the reason
                in_order_.reset();
                throw;
            }
            overlap_refused_ = e.what();
        }
    }

    // False: the driver refuses the graph. That shows before anything has run, so the host can launch every
    // step instead.
    bool begin_graph() {
        try {
            try_overlap([&] {
                if (!whole_ || whole_in_order_ != LaunchesInOrder::any()) whole_ = make_graph();
                whole_in_order_ = LaunchesInOrder::any();
                whole_->run(stream_.s);
                in_graph_ = true;
            });
        } catch (const DeviceError&) {
            throw;
        } catch (const Error& e) {
            graph_loop_ = false;
            note_ = fmt::format(
                "the host launches every step: the graph of a whole answer cannot be created: {}", e.what());
        }
        return graph_loop_;
    }

    // Waits for the end of the graph, which the device tells through the ring: a driver may call a stream
    // idle whose graph still loops (seen under WSL 2). False if the stream is idle and no frame has come for
    // `silence`. DeviceError if it is busy and no frame has come for hang_.
    template <class Poll>
    bool graph_ends(std::chrono::milliseconds silence, const Poll& poll) {
        auto step = Clock::now(), busy = step;  // times of the last frame, and when last seen busy
        for (uint32_t n_read = ring_.n_read(); !ring_.ended();) {
            const bool idle = finished(stream_.s);
            poll();
            const auto now = Clock::now();
            if (ring_.n_read() != n_read) n_read = ring_.n_read(), step = now;
            if (!idle) busy = now;
            if (now - std::max(step, busy) > silence) break;
            if (hang_.count() && now - step > hang_) give_up();
            std::this_thread::sleep_for(std::chrono::microseconds(50));
        }
        in_graph_ = false;
        return ring_.ended();
    }
    [[noreturn]] void give_up() {
        hung_ = true;
        ring_.cancel();
        abandon_device(stream_.s);
        throw DeviceError(fmt::format(
            "the GPU hangs: it has been busy for {} s without finishing a step (--host-loop uses no graph, "
            "--in-order no overlapping launches)",
            static_cast<double>(hang_.count()) / 1e3));
    }
    template <class Poll>
    void finish_graph(const Poll& poll) {
        require(graph_ends(silence_, poll),
                "the GPU is idle, but for {} s the answer's graph has not reported its end (--host-loop uses "
                "no graph)",
                static_cast<double>(silence_.count()) / 1e3);
    }

    // The same loop, with every kernel launched by the host.
    template <class Poll>
    void run_host_loop(const Poll& poll) {
        LoopState state{};
        while (!state.done) {
            begin_canvas(stream_.s, {});
            do {
                denoise_step(stream_.s, {});
                finish(stream_.s);
            } while (!poll());
            finish_canvas(stream_.s, {});
            copy_to_host(stream_.s, &state, b_.state, sizeof state);
            finish(stream_.s);
            if (!state.done) commit_canvas(stream_.s);
        }
    }

    std::shared_ptr<const Model> model_;
    const Config& c_;
    const MemoryPlan plan_;
    const Room room_;
    const int n_offload_, index_;
    const std::chrono::milliseconds silence_, hang_;
    bool graph_loop_, in_graph_ = false;  // an answer is a graph; one runs, as far as is known
    bool hung_ = false;                   // given up: nothing waits for the device any more
    OwnStream stream_;
    ArenaMemory memory_;
    HostRing ring_;
    ModelWeights w_;
    Buffers<T> b_;
    std::vector<KvLayer<T>> cache_;
    Forward<T> forward_{c_, room_, w_, b_, cache_};
    std::unique_ptr<Graph> whole_;
    bool whole_in_order_ = false;  // whole_ was made without overlapping launches
    // Set if the options say so, or if the driver refuses a graph of overlapping launches; and why it does.
    std::optional<LaunchesInOrder> in_order_;
    std::string overlap_refused_;
    LoadStats load_stats_;
    std::string note_;  // for the next answer
    int n_cached_ = 0;
    int n_slot_ = INT32_MAX;  // of the smallest layer
    int first_kept_ = 0;      // positions before this one may have been overwritten in it
};

DeviceProfile profile_cuda(std::shared_ptr<const Model> model, const DeviceOptions& options,
                           const ProfilePlan& plan) {
    use_device(options.index);
    const DeviceOptions o = fit_device(*model, options);
    if (o.exact) return measure(DeviceBackend<float>(std::move(model), o).measured(), plan);
    return measure(DeviceBackend<F16>(std::move(model), o).measured(), plan);
}

std::unique_ptr<Backend> make_cuda_backend(std::shared_ptr<const Model> model, const DeviceOptions& options) {
    use_device(options.index);
    const DeviceOptions o = fit_device(*model, options);
    if (o.exact) return std::make_unique<DeviceBackend<float>>(std::move(model), o);
    return std::make_unique<DeviceBackend<F16>>(std::move(model), o);
}

}  // namespace easel
