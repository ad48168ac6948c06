// engine.cpp: the CUDA backend: passes as lists of launches, and the denoise loop as one graph. Implements
// Backend; made by the Engine (src/engine.cpp). Host code: kernels are behind ops.h, CUDA is behind device.h,
// so the same text runs on a GPU and in the simulator.
#include <algorithm>
#include <chrono>
#include <optional>
#include <thread>
#include <utility>

#include "backend.h"
#include "check.h"
#include "device.h"
#include "host_ring.h"
#include "layout.h"
#include "load.h"
#include "memory_plan.h"
#include "offload.h"
#include "profile.h"
#include "request_checks.h"
#include "simulator.h"

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
          graph_loop_(options.graph_loop),
          memory_(arena_bytes()),
          ring_(c_.n_canvas) {
        if (!options.overlap) in_order_.emplace();
        Arena arena = memory_.arena();
        w_ = lay_out_weights<T>(*model_, n_offload_, arena);
        cache_ = lay_out_cache<T>(*model_, room_, arena);
        b_ = lay_out_buffers<T>(*model_, room_, arena);
        clear_padding<T>(stream_.s, c_, room_, b_);
        load_stats_ =
            load_weights<T>(stream_.s, *model_, n_offload_, w_, b_.loading, experts_, options.on_load);
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
        // A sliding layer's ring has lost what lies n_slot_ before the newest token ever written.
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
            encode_pass(stream_.s, b_.prompt, static_cast<int>(part.size()));
            finish(stream_.s);  // what was copied has to live until here
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
        denoise_pass(stream_.s, logits.data());
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
        } catch (...) {      // CUDA's error, or one of the callback's
            ring_.cancel();  // or the device would wait for a reader of its frames, for ever
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
        // The device may have moved on before it saw a cancellation: the cache holds at least what the answer
        // says.
        n_cached_ += (answer.steps.empty() ? 0 : static_cast<int>(answer.steps.size()) - 1) * c_.n_canvas;
        written(state.n_cached + c_.n_canvas);
        return answer;
    }

    // What profile.cpp and kernels.cpp measure.
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
                    marks_ = &marks;
                    denoise_step(stream_.s, {});
                    marks_ = nullptr;
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
    int64_t arena_bytes() const {
        Arena count;
        lay_out_weights<T>(*model_, n_offload_, count);
        lay_out_cache<T>(*model_, room_, count);
        lay_out_buffers<T>(*model_, room_, count);
        return count.bytes();
    }

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

    // Waits for the device, whatever comes of it.
    void drain() noexcept {
        try {
            use_device(index_);  // in a thread that has none, freeing would start the first GPU
            if (in_graph_) graph_ends(std::chrono::seconds(10), [] {});
            finish(stream_.s);
        } catch (...) {  // a failed launch: nothing left to save
        }
    }

    // The newest position that has been written: slots are shared by positions n_slot_ apart.
    void written(int end) { first_kept_ = std::max(first_kept_, end - n_slot_); }

    // ---- passes -------------------------------------------------------------------------------------------

    void mark(Stream s, Part part) {
        if (marks_) marks_->add(s, part);
    }

    // n tokens into the KV cache, at the positions after what is cached.
    void encode_pass(Stream s, const int32_t* tokens, int n) {
        embed(s, b_.x, tokens, n, w_.embd);  // no norm here: only the canvas has one
        layers(s, Mask::Causal, n);
        advance(s, n, b_.state);
    }

    // Canvas tokens and the probabilities of the step before (in z) in; z and its statistics out.
    void denoise_pass(Stream s, float* logits) {
        const int n = c_.n_canvas;
        mark(s, Part::Embed);
        embed(s, b_.x, b_.tokens, n, w_.embd);
        mark(s, Part::SoftEmbedding);
        soft_embedding(s, b_.in, b_.z, b_.live, w_.embd, w_.self_cond_norm, c_.rms_eps, n, b_.soft, b_.state);
        mark(s, Part::SelfCond);
        gate_up(s, b_.middle, b_.in, w_.self_cond_gate_up, n);
        linear(s, b_.dense, b_.middle, w_.self_cond_down, n);
        mark(s, Part::CanvasNorm);
        canvas_norm(s, b_.x, b_.dense, n, c_.n_embd, c_.rms_eps, b_.state);
        layers(s, Mask::Canvas, n);
        mark(s, Part::Head);
        lm_head(s, b_.z, b_.stats, b_.live, logits, b_.in, w_.output, n, c_.softcap, b_.state);
    }

    // All layers over the n rows of x; b_.in is rms(x) * output_norm afterwards (canvas only).
    void layers(Stream s, Mask mask, int n) {
        for (const LayerShape& l : c_.layers) {  // one table a kind of layer
            if (&l != first_of(l.global)) continue;
            rotation(s, l.global ? b_.cos : b_.cos_swa, l.global ? b_.sin : b_.sin_swa,
                     l.global ? w_.freq : w_.freq_swa, n, l.head_dim / 2, b_.state);
        }
        rms_norm(s, b_.in, b_.x, w_.layers[0].attn_norm, n, c_.n_embd, c_.rms_eps);
        experts_.begin(s, mask == Mask::Causal ? c_.n_layer - 1 : c_.n_layer);
        for (int l = 0; l < c_.n_layer; l++) {
            const LayerWeights& w = w_.layers[l];
            const bool last = l == c_.n_layer - 1;
            // Parts for the canvas alone: K and V of a token are the same bits in whatever pass it comes.
            const bool parts = mask == Mask::Canvas;
            project_qkv(s, w, cache_[l], n, parts);
            if (mask == Mask::Causal && last) break;  // an encode pass leaves K and V, nothing else
            const KeyParts split = parts ? key_parts(c_, l, room_) : KeyParts{};
            mark(s, Part::Attention);
            attention(s, b_.o_in, b_.q_in, cache_[l], n, w.shape, mask, split, b_.attention, b_.state);
            mark(s, Part::AttentionOut);
            const int n_part = parts ? linear_parts(w.o.n_row, n, room_.n_sm) : 1;
            linear(s, b_.o, b_.o_in, w.o, n, n_part);
            mark(s, Part::PostAttention);
            post_attention(s, b_.h, b_.ffn_in, b_.expert_in, b_.router_in, b_.x, b_.o, n_part,
                           w.post_attention_norm, w.ffn_norm, w.pre_ffw_norm_2, w.router_scale, n, c_.n_embd,
                           c_.rms_eps);
            feed_forward(s, w, l, n);
            mark(s, Part::LayerEnd);
            layer_end(s, b_.x, b_.in, b_.h, b_.dense, b_.slot_out, b_.slot_of, b_.weight, c_.n_expert_used,
                      w.post_ffw_norm_1, w.post_ffw_norm_2, w.post_ffw_norm,
                      mask == Mask::Canvas ? w.output_scale : w.enc_output_scale,
                      last ? w_.output_norm : w_.layers[l + 1].attn_norm, n, c_.n_embd, c_.rms_eps);
        }
    }

    const LayerShape* first_of(bool global) const {
        for (const LayerShape& l : c_.layers)
            if (l.global == global) return &l;
        return nullptr;
    }

    void project_qkv(Stream s, const LayerWeights& w, const KvLayer<T>& cache, int n, bool parts) {
        const bool global = w.shape.window == 0;
        const int n_qkv_row = w.q.n_row + w.k.n_row + (w.v.data ? w.v.n_row : 0);
        const int n_part = parts ? linear_parts(n_qkv_row, n, room_.n_sm) : 1;
        mark(s, Part::Qkv);
        // K and V leave most of a GPU idle, beside Q they cost little.
        linear(k_side_.fork(s), b_.k, b_.in, w.k, n, n_part);
        if (w.v.data) linear(v_side_.fork(s), b_.v, b_.in, w.v, n, n_part);
        linear(s, b_.q, b_.in, w.q, n, n_part);
        k_side_.join(s);
        if (w.v.data) v_side_.join(s);
        mark(s, Part::QkvNorm);
        qkv_norm(s, b_.q_in, cache, b_.q, b_.k, w.v.data ? b_.v : b_.k, n_part, w.q_norm, w.k_norm,
                 global ? b_.cos : b_.cos_swa, global ? b_.sin : b_.sin_swa, n, w.shape, c_.rms_eps,
                 b_.state);
    }

    // The dense branch into b_.dense, the experts' outputs into b_.slot_out; beside each other, but where
    // each part is timed.
    void feed_forward(Stream s, const LayerWeights& w, int layer, int n) {
        const Stream dense = marks_ ? s : dense_side_.fork(s);
        mark(s, Part::DenseUp);
        gate_up(dense, b_.middle, b_.ffn_in, w.gate_up, n);
        mark(s, Part::DenseDown);
        linear(dense, b_.dense, b_.middle, w.down, n);
        mark(s, Part::Router);
        route(s, b_.chosen, b_.weight, b_.router_in, w.router, w.expert_scale, n, c_.n_embd, c_.n_expert,
              c_.n_expert_used, b_.routing);
        const int n_slot = n * c_.n_expert_used;
        permute(s, b_.slot_of, b_.token_of, b_.groups, b_.chosen, n, c_.n_expert_used, c_.n_expert,
                expert_group<T>(c_.n_expert, n_slot));
        mark(s, Part::ExpertUp);
        experts_.need(s, layer);
        expert_gate_up(s, b_.slot_middle, b_.expert_in, w.expert_gate_up, b_.token_of, b_.groups, n_slot);
        mark(s, Part::ExpertDown);
        expert_down(s, b_.slot_out, b_.slot_middle, w.expert_down, b_.groups, n_slot);
        experts_.used(s, layer);
        if (!marks_) dense_side_.join(s);
    }

    // ---- the loop -----------------------------------------------------------------------------------------

    void denoise_step(Stream s, const LoopConditions& conditions) {
        denoise_pass(s, nullptr);
        mark(s, Part::Sample);
        sample(s, b_.rows, b_.z, b_.live, b_.stats, c_.n_canvas, c_.n_vocab, b_.given, b_.state);
        mark(s, Part::Accept);
        accept(s, b_.tokens, b_.argmax, b_.rows, c_.n_canvas, c_.n_vocab, b_.state, ring_.device(),
               conditions);
    }
    void begin_canvas(Stream s, const LoopConditions& conditions) {
        start_canvas(s, b_.tokens, c_.n_canvas, c_.n_vocab, b_.given, b_.state, conditions);
    }
    void finish_canvas(Stream s, const LoopConditions& conditions) {
        end_canvas(s, b_.argmax, c_.n_canvas, b_.state, ring_.device(), conditions);
    }
    void commit_canvas(Stream s) { encode_pass(s, b_.argmax, c_.n_canvas); }

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

    // Makes and runs a graph; if that fails, once more with launches in order, and if that is not refused, so
    // from then on.
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
            } catch (...) {  // it was something else
                in_order_.reset();
                throw;
            }
            overlap_refused_ = e.what();
        }
    }

    // What a driver refuses of it is seen before anything runs: the host can then launch all instead.
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
                "the host launches each step, as the graph of a whole answer cannot be made: {}", e.what());
        }
        return graph_loop_;
    }

    // Waits for the end of the graph. The device says itself that it has ended: a driver may call a stream
    // idle whose graph still loops (seen under WSL 2). False: it is idle, and has said nothing for `silence`.
    template <class Poll>
    bool graph_ends(std::chrono::milliseconds silence, const Poll& poll) {
        auto heard = Clock::now();
        for (uint32_t n_read = ring_.n_read(); !ring_.ended();) {
            const bool idle = finished(stream_.s);
            poll();
            if (!idle || ring_.n_read() != n_read) n_read = ring_.n_read(), heard = Clock::now();
            if (Clock::now() - heard > silence) break;
            std::this_thread::sleep_for(std::chrono::microseconds(50));
        }
        in_graph_ = false;
        return ring_.ended();
    }
    template <class Poll>
    void finish_graph(const Poll& poll) {
        require(graph_ends(silence_, poll),
                "the GPU is idle, but the graph of the answer has not said for {} s that it has ended "
                "(--host-loop does without this graph)",
                static_cast<double>(silence_.count()) / 1e3);
    }

    // Without any graph.
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
    const std::chrono::milliseconds silence_;
    bool graph_loop_, in_graph_ = false;  // answers are graphs; one has begun and not said that it has ended
    OwnStream stream_;
    ArenaMemory memory_;
    HostRing ring_;
    ModelWeights w_;
    Buffers<T> b_;
    std::vector<KvLayer<T>> cache_;
    ExpertStream experts_;
    SideStream k_side_, v_side_, dense_side_;
    std::unique_ptr<Graph> whole_;
    bool whole_in_order_ = false;  // how it was made
    // If asked for, or where a graph of launches that overlap is refused, and why.
    std::optional<LaunchesInOrder> in_order_;
    std::string overlap_refused_;
    Marks* marks_ = nullptr;  // while a step is profiled
    LoadStats load_stats_;
    std::string note_;  // for the next answer
    int n_cached_ = 0;
    int n_slot_ = INT32_MAX;  // of the smallest layer
    int first_kept_ = 0;      // positions before this one may have been overwritten in it
};

#ifdef EASEL_CUDA
DeviceProfile profile_cuda(std::shared_ptr<const Model> model, const DeviceOptions& options,
                           const ProfilePlan& plan) {
    use_device(options.index);
#else
DeviceProfile profile_simulator(std::shared_ptr<const Model> model, const DeviceOptions& options,
                                const ProfilePlan& plan) {
#endif
    const DeviceOptions o = fit_device(*model, options);
    if (o.exact) return measure(DeviceBackend<float>(std::move(model), o).measured(), plan);
    return measure(DeviceBackend<F16>(std::move(model), o).measured(), plan);
}

#ifdef EASEL_CUDA
std::unique_ptr<Backend> make_cuda_backend(std::shared_ptr<const Model> model, const DeviceOptions& options) {
    use_device(options.index);
#else
std::unique_ptr<Backend> make_simulator_backend(std::shared_ptr<const Model> model,
                                                const DeviceOptions& options) {
#endif
    const DeviceOptions o = fit_device(*model, options);
    if (o.exact) return std::make_unique<DeviceBackend<float>>(std::move(model), o);
    return std::make_unique<DeviceBackend<F16>>(std::move(model), o);
}

}  // namespace easel
