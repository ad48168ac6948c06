// bench_kernels.cpp: each kernel of a denoise step alone, at the model's shapes, for `easel bench kernels`;
// see profile.h.
#include <fmt/format.h>

#include "profile.h"
#include "quant.h"

namespace easel {

namespace {

#ifdef EASEL_CUDA
constexpr int64_t kBeyondCache = 256 << 20;  // twice the largest L2 there is
constexpr int kReadBlocks = 1024;
#else
constexpr int64_t kBeyondCache = 1 << 20;
constexpr int kReadBlocks = 1;
#endif

using Launch = std::function<void(Stream)>;

// Launches of one kernel at one shape, one for each layer that has it.
struct Kernel {
    Timing cost;  // of one launch
    bool reads_weights;
    std::vector<Launch> launches;
    Launch prepare;  // if set: before each launch, not timed
};

template <class T>
class Kernels {
  public:
    Kernels(const Measured<T>& m, int n_prefix)
        : m_(m),
          c_(m.config),
          w_(m.weights),
          b_(m.buffers),
          canvas_{Mask::Canvas, c_.n_canvas},
          o_in_(b_.middle_bytes / sizeof(T)),
          h_(c_.n_canvas * c_.n_embd) {
        fill_zero(m.stream, o_in_.data(), o_in_.bytes());  // padding
        b_.o_in = o_in_.data();
        b_.h = h_.data();
        const double n = c_.n_canvas, z = n * vocab_stride(c_.n_vocab) * sizeof(T);
        // First of all: z still holds a step's probabilities.
        weights("soft_embedding", w_.embd, n, [this](Stream s) { ops_.soft_embedding(s); }).cost.bytes += z;
        const double row_bytes = double(w_.embd.expert_bytes()) / w_.embd.n_row;
        add("embed", {"", 0, n * row_bytes, 0}, false,
            [this](Stream s) { embed(s, b_.x, b_.tokens, canvas_.n, w_.embd); });
        gated(w_.self_cond_gate_up, b_.in);
        plain(b_.dense, b_.middle, w_.self_cond_down);
        add("canvas_norm", {}, false, [this](Stream s) { ops_.canvas_norm(s); });
        for (int l = 0; l < c_.n_layer; l++) layer(l, n_prefix);
        const Launch head = [this](Stream s) { ops_.lm_head(s, nullptr); };
        weights("lm_head", w_.output, n, head).cost.bytes += z;
        add("sample", {"", 0, 2 * z, 0}, false, [this](Stream s) { ops_.sample(s); }).prepare = head;
    }

    // Milliseconds per launch: the median of n_repeat rounds, after one that does not count.
    std::vector<Timing> time(int n_repeat) {
        std::vector<Timing> out;
        for (const Kernel& k : kernels_) {
            const double bytes = k.cost.bytes * static_cast<double>(k.launches.size());
            const bool flush = k.reads_weights && bytes < kBeyondCache;
            std::vector<double> times;
            for (int i = 0; i <= n_repeat; i++) {
                const double ms = flush || k.prepare ? one_by_one(k, flush) : in_a_row(k);
                if (i > 0) times.push_back(ms);
            }
            out.push_back(k.cost);
            out.back().ms = median(times);
            out.back().n = static_cast<int>(k.launches.size());
        }
        return out;
    }

  private:
    // Flushes the L2 cache by reads: nothing of the model remains in it, nor dirty lines, whose write-back
    // would be timed. While the device reads, the host launches what comes next.
    void read_other() { read_memory(m_.stream, sums_.data(), kReadBlocks, other_.data(), other_.bytes()); }

    double in_a_row(const Kernel& k) {
        read_other();
        start_.record(m_.stream);
        for (const Launch& launch : k.launches) launch(m_.stream);
        end_.record(m_.stream);
        end_.wait();
        return end_.ms_since(start_) / static_cast<double>(k.launches.size());
    }
    double one_by_one(const Kernel& k, bool flush) {
        double sum = 0;
        for (const Launch& launch : k.launches) {
            if (k.prepare) k.prepare(m_.stream);
            if (flush) read_other();
            start_.record(m_.stream);
            launch(m_.stream);
            end_.record(m_.stream);
            end_.wait();
            sum += end_.ms_since(start_);
        }
        return sum / static_cast<double>(k.launches.size());
    }

    // Adds a launch to the kernel of that name, or a new kernel.
    Kernel& add(const std::string& name, const Timing& cost, bool reads_weights, Launch launch) {
        for (Kernel& k : kernels_)
            if (k.cost.name == name) return k.launches.push_back(std::move(launch)), k;
        kernels_.push_back({cost, reads_weights, {std::move(launch)}, {}});
        kernels_.back().cost.name = name;
        return kernels_.back();
    }
    Kernel& weights(const char* name, const Weights& w, double n_row, Launch launch) {
        const std::string full = fmt::format("{} {} {}x{}", name, type_info(w.type).name, w.n_row, w.n_col);
        return add(full, product(w, n_row), true, std::move(launch));
    }
    void plain(float* out, const T* x, const Weights& w, int n_split = 1) {
        if (!w.data) return;
        weights("linear", w, c_.n_canvas,
                [=, this, &w](Stream s) { linear(s, out, x, w, c_.n_canvas, n_split); });
    }
    void gated(const Weights& w, const T* x) {
        weights("gate_up", w, c_.n_canvas,
                [this, x, &w](Stream s) { gate_up(s, b_.middle, x, w, c_.n_canvas); });
    }

    void layer(int l, int n_prefix) {
        const LayerWeights& w = w_.layers[l];
        const int n = c_.n_canvas, window = w.shape.window;
        const std::string shape = fmt::format(" {} heads {}", w.shape.n_head, w.shape.head_dim);
        const int n_split = ops_.qkv_splits(l, canvas_);
        plain(b_.q, b_.in, w.q, n_split);
        plain(b_.k, b_.in, w.k, n_split);
        plain(b_.v, b_.in, w.v, n_split);
        add("qkv_norm" + shape, {}, false, [=, this](Stream s) { ops_.qkv_norm(s, l, canvas_); });
        const int n_key = n + (window ? std::min(n_prefix, window - 1) : n_prefix);
        add(fmt::format("attention{} keys {}", shape, n_key),
            attention_cost(w.shape, m_.cache[l], n, n_prefix), true,
            [=, this](Stream s) { ops_.attention(s, l, canvas_); });
        plain(b_.o, b_.o_in, w.o, ops_.output_splits(l, canvas_));
        add("post_attention", {}, false, [=, this](Stream s) { ops_.post_attention(s, l, canvas_); });
        gated(w.gate_up, b_.ffn_in);
        plain(b_.dense, b_.middle, w.down);
        const double router = 1.0 * c_.n_expert * c_.n_embd, n_slot = 1.0 * n * c_.n_expert_used;
        add("route", {"", 0, 4 * router, 2 * router * n}, true,
            [=, this](Stream s) { ops_.route(s, l, canvas_); });
        add("permute", {}, false, [this](Stream s) { ops_.permute(s, canvas_); });
        weights("expert_gate_up", w.expert_gate_up, n_slot,
                [=, this](Stream s) { ops_.expert_gate_up(s, l, canvas_); });
        weights("expert_down", w.expert_down, n_slot,
                [=, this](Stream s) { ops_.expert_down(s, l, canvas_); });
        add("layer_end", {}, false, [=, this](Stream s) { ops_.layer_end(s, l, canvas_); });
    }

    const Measured<T>& m_;
    const Config& c_;
    const ModelWeights& w_;
    Buffers<T> b_;
    const Pass canvas_;
    // Outputs that in a pass lie in the place of an input: launches repeated there would read the previous
    // one's result.
    const DeviceArray<T> o_in_;
    const DeviceArray<float> h_;
    Forward<T> ops_{c_, m_.room, w_, b_, m_.cache};
    std::vector<Kernel> kernels_;
    const DeviceArray<uint8_t> other_{kBeyondCache};
    const DeviceArray<uint32_t> sums_{kReadBlocks};
    Event start_{true}, end_{true};
};

}  // namespace

template <class T>
std::vector<Timing> time_kernels(const Measured<T>& m, int n_prefix, int n_repeat) {
    return Kernels<T>(m, n_prefix).time(n_repeat);
}

template std::vector<Timing> time_kernels(const Measured<F16>&, int, int);
template std::vector<Timing> time_kernels(const Measured<float>&, int, int);

}  // namespace easel
