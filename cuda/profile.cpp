// profile.cpp: ceilings of the device, a denoise step part by part and inside an answer, prompts; see
// profile.h.
#include "profile.h"

#include <time.h>

#include <algorithm>

#include "request_checks.h"

namespace easel {

namespace {

// Milliseconds of CPU time of this thread.
double thread_ms() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) * 1e3 + static_cast<double>(t.tv_nsec) * 1e-6;
}

// Operands for mma_peak(): numbers in [0.5, 1) of random sign. With equal ones, or zeros, tensor cores need
// less power and may run faster than with any real product. Odd steps take back what even ones have added, so
// that sums in F16 stay in range.
std::vector<uint32_t> peak_words() {
    std::vector<uint32_t> words(kPeakWords);
    constexpr int n = kPeakWords / 6;
    for (int i = 0; i < kPeakWords; i++) {
        const auto bits = random_word(1, i, 0, 0, RandomStream::Init);
        words[i] = (static_cast<uint32_t>(bits) & 0x83ff83ff) | 0x38003800;
        if (i >= n && i < 2 * n) words[i] = words[i - n] ^ 0x80008000;
    }
    return words;
}

// The device's ceilings: GB/s of a copy and of reads, TFLOP/s of tensor cores. Best of some runs.
void measure_ceilings(Stream s, DeviceProfile& out) {
#ifdef EASEL_CUDA
    constexpr int64_t kCopy = int64_t{1} << 30;
    constexpr int kStep = 10000, kBlocks = 2048, kPasses = 512;
#else
    constexpr int64_t kCopy = 1 << 16;
    constexpr int kStep = 4, kBlocks = 2, kPasses = 2;
#endif
    constexpr int kRuns = 8;
    constexpr int64_t kCached = 4 << 20;  // within the L2 cache of any GPU
    const int64_t bytes = std::min(kCopy, free_device_bytes() / 4);
    const DeviceArray<uint8_t> a(bytes), b(bytes);
    const DeviceArray<float> sums(size_t{256} * kBlocks);
    const DeviceArray<uint32_t> reads(kBlocks);
    const DeviceArray<uint32_t> words(s, peak_words());
    int64_t filled = std::min<int64_t>(bytes, words.bytes());  // `a` is filled with repeated peak_words()
    copy_on_device(s, a.data(), words.data(), filled);
    for (; filled < bytes; filled = std::min(2 * filled, bytes))
        copy_on_device(s, a.data() + filled, a.data(), std::min(filled, bytes - filled));
    for (int i = 0; i < kRuns; i++) {
        Event start(true), copied(true), read(true), cached(true), end(true);
        start.record(s);
        copy_on_device(s, b.data(), a.data(), bytes);
        copied.record(s);
        read_memory(s, reads.data(), kBlocks, a.data(), bytes);
        read.record(s);
        read_memory(s, reads.data(), kBlocks, a.data(), std::min(kCached, bytes), kPasses);
        cached.record(s);
        mma_peak(s, sums.data(), kBlocks, kStep, words.data());
        end.record(s);
        end.wait();
        const auto best = [](double& rate, double n, double ms) { rate = std::max(rate, n / ms); };
        const double n_byte = static_cast<double>(bytes);
        best(out.copy_gbs, 2e-6 * n_byte, copied.ms_since(start));
        best(out.read_gbs, 1e-6 * n_byte, read.ms_since(copied));
        best(out.l2_gbs, 1e-6 * std::min<double>(kCached, n_byte) * kPasses, cached.ms_since(read));
        best(out.mma_tflops, 1e-9 * 2 * 16 * 8 * 16 * 16 * 8 * kStep * kBlocks, end.ms_since(cached));
    }
}

// Bytes and FLOP of each part of a step after n_prefix tokens.
template <class T>
std::vector<Timing> step_parts(const Measured<T>& m, int n_prefix) {
    const Config& c = m.config;
    const ModelWeights& w = m.weights;
    std::vector<Timing> parts(kParts);
    for (int p = 0; p < kParts; p++) parts[p].name = kPartNames[p];
    const auto add = [&](Part part, const Timing& t) {
        parts[static_cast<int>(part)].bytes += t.bytes;
        parts[static_cast<int>(part)].flop += t.flop;
    };
    const double n = c.n_canvas;
    add(Part::SoftEmbedding, product(w.embd, n));
    add(Part::SelfCond, product(w.self_cond_gate_up, n));
    add(Part::SelfCond, product(w.self_cond_down, n));
    add(Part::Head, product(w.output, n));
    for (int i = 0; i < c.n_layer; i++) {
        const LayerWeights& l = w.layers[i];
        for (const Weights* p : {&l.q, &l.k, &l.v}) add(Part::Qkv, product(*p, n));
        add(Part::Attention, attention_cost(l.shape, m.cache[i], c.n_canvas, n_prefix));
        add(Part::AttentionOut, product(l.o, n));
        add(Part::DenseUp, product(l.gate_up, n));
        add(Part::DenseDown, product(l.down, n));
        add(Part::ExpertUp, product(l.expert_gate_up, n * c.n_expert_used));
        add(Part::ExpertDown, product(l.expert_down, n * c.n_expert_used));
        add(Part::Router, {"", 0, 4.0 * c.n_expert * c.n_embd, 2.0 * c.n_expert * c.n_embd * n});
    }
    const double z = n * vocab_stride(c.n_vocab) * sizeof(T);
    add(Part::SoftEmbedding, {"", 0, z, 0});
    add(Part::Head, {"", 0, z, 0});
    add(Part::Sample, {"", 0, 2 * z, 0});  // read, and the probabilities written
    return parts;
}

// A canvas that does not end, step by step; its first step has no self-conditioning and is not counted.
template <class T>
void time_parts(const Measured<T>& m, const GenerateParams& params, int n_repeat, DeviceProfile& out) {
    Marks marks;
    m.begin(params);
    std::vector<std::vector<double>> times(kParts);
    for (int i = 0; i <= n_repeat; i++) {
        marks.clear();
        m.step(marks);
        const auto sums = marks.sums();
        for (int p = 0; p < kParts && i > 0; p++) times[p].push_back(sums[p]);
    }
    for (int p = 0; p < kParts; p++) out.parts[p].ms = median(times[p]);
}

// Averages over the layers: experts that have tokens, and the most tokens of an expert. Read after the router
// of each layer, in a step that is not timed.
template <class T>
void read_routing(const Measured<T>& m, const GenerateParams& params, DeviceProfile& out) {
    const Config& c = m.config;
    const int n = c.n_canvas * c.n_expert_used;
    std::vector<ExpertGroup> groups(n_group(c.n_expert, n, expert_group<T>(c.n_expert, n)));
    Marks marks;
    marks.on_mark = [&](Stream s, Part part) {
        if (part != Part::ExpertUp) return;
        copy_to_host(s, groups.data(), m.buffers.groups, groups.size() * sizeof(ExpertGroup));
        finish(s);
        std::vector<int> n_slot(c.n_expert);
        for (const ExpertGroup& g : groups) n_slot[g.expert] += g.end - g.begin;
        for (const int own : n_slot) out.experts_used += double(own > 0) / c.n_layer;
        out.expert_tokens += double(*std::max_element(n_slot.begin(), n_slot.end())) / c.n_layer;
    };
    m.begin(params);
    m.step(marks);
}

// Medians of three answers, after one that builds the graph. Of the steps of an answer, the first has no
// self-conditioning.
template <class T>
LoopTimes time_loop(const Measured<T>& m, const GenerateParams& params, bool graph) {
    if (!m.answer(params, graph).note.empty()) return {};
    std::vector<double> step, host;
    double n = 1;
    for (int i = 0; i < 3; i++) {
        const double start = thread_ms();
        const Answer answer = m.answer(params, graph);
        n = answer.steps.at(0);
        step.push_back(answer.denoise_ms / n);
        host.push_back((thread_ms() - start) / n);
    }
    return {median(step), median(host), graph ? 1 / n : m.n_launch()};
}

}  // namespace

Timing product(const Weights& w, double n_row) {
    if (!w.data) return {};
    return {"", 0, static_cast<double>(w.expert_bytes() * w.n_expert), 2.0 * w.n_row * w.n_col * n_row};
}

template <class T>
Timing attention_cost(const AttentionShape& shape, const KvLayer<T>& cache, int n_canvas, int n_prefix) {
    const double n_key = n_canvas + (shape.window ? std::min(n_prefix, shape.window - 1) : n_prefix);
    const int k_dim = cache.joint ? kJointRotated : shape.head_dim;
    return {"", 0, 1.0 * sizeof(T) * shape.n_head_kv * (k_dim + shape.head_dim) * n_key,
            4.0 * shape.n_head * shape.head_dim * n_canvas * n_key};
}

template <class T>
DeviceProfile measure(const Measured<T>& m, const ProfilePlan& plan) {
    DeviceProfile out;
    out.load = {m.load};
    if (!plan.step && !plan.kernels && plan.prefill.empty()) return out;
    measure_ceilings(m.stream, out);
    for (const int n : plan.prefill) {
        const double ms = time_prompt(m.backend, m.config.n_vocab, n, std::min(plan.n_repeat, 3));
        out.prefill.push_back({"encode", ms, 0, 0, n});
    }
    if (!plan.step && !plan.kernels) return out;

    m.backend.truncate(0);
    m.backend.encode(random_prompt(plan.n_prefix, m.config.n_vocab));
    GenerateParams params;
    params.sampler.max_steps = plan.n_repeat + 1;
    params.sampler.confidence = 0;
    check_generate(m.config, params, m.backend.n_cached(), m.room.n_context);
    out.parts = step_parts(m, plan.n_prefix);
    read_routing(m, params, out);
    if (plan.step) {
        out.host = time_loop(m, params, false);
        out.graph = time_loop(m, params, true);
        out.n_launch = m.n_launch();  // in order by now, if a graph of launches that overlap was refused
        out.overlap_refused = m.overlap_refused();
    }
    const LaunchesInOrder in_order;  // parts and kernels one after the other
    if (plan.step) {
        out.graph_in_order = time_loop(m, params, true);
        time_parts(m, params, plan.n_repeat, out);
    } else {
        out.parts.clear();
    }
    if (plan.kernels) out.kernels = time_kernels(m, plan.n_prefix, plan.n_repeat);
    return out;
}

template Timing attention_cost(const AttentionShape&, const KvLayer<F16>&, int, int);
template Timing attention_cost(const AttentionShape&, const KvLayer<float>&, int, int);
template DeviceProfile measure(const Measured<F16>&, const ProfilePlan&);
template DeviceProfile measure(const Measured<float>&, const ProfilePlan&);

}  // namespace easel
