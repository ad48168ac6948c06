// profile.cpp: ceilings of the device, and the costs of a step's parts, see profile.h.
#include "profile.h"

#include <algorithm>

namespace easel {

double median(std::vector<double> v) {
    std::sort(v.begin(), v.end());
    return v.empty() ? 0 : v[v.size() / 2];
}

// The device's ceilings: GB/s of a copy, TFLOP/s of tensor cores. Best of some runs.
void measure_ceilings(Stream s, StepProfile& out) {
#ifdef EASEL_CUDA
    constexpr int64_t kCopy = int64_t{1} << 30;
    constexpr int kStep = 20000, kBlocks = 2048;
#else
    constexpr int64_t kCopy = 1 << 20;
    constexpr int kStep = 4, kBlocks = 2;
#endif
    constexpr int kRuns = 8;
    const int64_t bytes = std::min(kCopy, free_device_bytes() / 4);
    const DeviceArray<uint8_t> a(bytes), b(bytes);
    const DeviceArray<float> sums(size_t{256} * kBlocks);
    fill_zero(s, a.data(), a.bytes());
    for (int i = 0; i < kRuns; i++) {
        Event start(true), middle(true), end(true);
        start.record(s);
        copy_on_device(s, b.data(), a.data(), bytes);
        middle.record(s);
        mma_peak(s, sums.data(), kBlocks, kStep);
        end.record(s);
        end.wait();
        out.copy_gbs = std::max(out.copy_gbs, 2e-6 * static_cast<double>(bytes) / middle.ms_since(start));
        const double flop = 2.0 * 16 * 8 * 16 * 8 * 8 * kStep * kBlocks;
        out.mma_tflops = std::max(out.mma_tflops, 1e-9 * flop / end.ms_since(middle));
    }
}

// Bytes and products of each part of a step after n_prefix tokens.
std::vector<StepPart> step_parts(const Config& c, const ModelWeights& w, int n_prefix, int value_bytes) {
    std::vector<StepPart> parts(kParts);
    for (int p = 0; p < kParts; p++) parts[p].name = kPartNames[p];
    const auto weights = [&](Part part, const Weights& m, double n_row) {  // n_row rows of activations
        if (!m.data) return;
        parts[static_cast<int>(part)].bytes += static_cast<double>(m.expert_bytes() * m.n_expert);
        parts[static_cast<int>(part)].flop += 2.0 * m.n_row * m.n_col * n_row;
    };
    const double n = c.n_canvas;
    weights(Part::SoftEmbedding, w.embd, n);
    weights(Part::SelfCond, w.self_cond_gate_up, n);
    weights(Part::SelfCond, w.self_cond_down, n);
    weights(Part::Head, w.output, n);
    for (const LayerWeights& l : w.layers) {
        for (const Weights* m : {&l.q, &l.k, &l.v}) weights(Part::Qkv, *m, n);
        weights(Part::AttentionOut, l.o, n);
        weights(Part::DenseUp, l.gate_up, n);
        weights(Part::DenseDown, l.down, n);
        weights(Part::ExpertUp, l.expert_gate_up, n * c.n_expert_used);
        weights(Part::ExpertDown, l.expert_down, n * c.n_expert_used);
        parts[static_cast<int>(Part::Router)].bytes += 4.0 * c.n_expert * c.n_embd;
        parts[static_cast<int>(Part::Router)].flop += 2.0 * c.n_expert * c.n_embd * n;
        const double n_key = n + (l.shape.window ? std::min(n_prefix, l.shape.window - 1) : n_prefix);
        parts[static_cast<int>(Part::Attention)].bytes +=
            2.0 * value_bytes * l.shape.n_head_kv * l.shape.head_dim * n_key;
        parts[static_cast<int>(Part::Attention)].flop += 4.0 * l.shape.n_head * l.shape.head_dim * n * n_key;
    }
    const double z = n * vocab_stride(c.n_vocab) * value_bytes;
    parts[static_cast<int>(Part::SoftEmbedding)].bytes += z;
    parts[static_cast<int>(Part::Head)].bytes += z;
    parts[static_cast<int>(Part::Sample)].bytes += 2 * z;  // read, and the probabilities written
    return parts;
}

}  // namespace easel
