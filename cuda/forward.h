// forward.h: the forward pass on a device: the order of its ops, and what each reads and writes. backend.cpp
// runs passes; bench_kernels.cpp times the ops one by one.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "device.h"
#include "layout.h"
#include "offload.h"

namespace easel {

// The kinds of launches of a denoise step, in order.
enum class Part {
    Embed,
    SoftEmbedding,
    SelfCond,
    CanvasNorm,
    Qkv,
    QkvNorm,
    Attention,
    AttentionOut,
    PostAttention,
    DenseUp,
    DenseDown,
    Router,
    ExpertUp,
    ExpertDown,
    LayerEnd,
    Head,
    Sample,
    Accept,
    End
};
constexpr int kParts = static_cast<int>(Part::End);

// When each part of a step began, on the device's clock.
class Marks {
  public:
    // Called before each mark, if set: the time of what it launches counts to the part before.
    std::function<void(Stream, Part)> on_mark;

    void clear() { n_ = 0; }
    void add(Stream s, Part part) {
        if (on_mark) on_mark(s, part);
        if (n_ == events_.size()) events_.push_back(std::make_unique<Event>(true));
        events_[n_]->record(s);
        parts_.resize(n_ + 1);
        parts_[n_++] = part;
    }
    // Milliseconds of each part; the last mark is the end.
    std::vector<double> sums() const {
        std::vector<double> out(kParts + 1);
        for (size_t i = 0; i + 1 < n_; i++)
            out[static_cast<int>(parts_[i])] += events_[i + 1]->ms_since(*events_[i]);
        return out;
    }

  private:
    std::vector<std::unique_ptr<Event>> events_;
    std::vector<Part> parts_;
    size_t n_ = 0;
};

// A pass of n rows: n tokens that go into the KV cache (causal), or all of the canvas.
struct Pass {
    Mask mask;
    int n;
};

// T: F16, or float for exact results. The constructor's arguments have to outlive it.
template <class T>
class Forward {
  public:
    Forward(const Config& config, const Room& room, const ModelWeights& weights, const Buffers<T>& buffers,
            const std::vector<KvLayer<T>>& cache)
        : c_(config), room_(room), w_(weights), b_(buffers), cache_(cache) {}

    // Experts that stay in the host's memory: none at first, load_weights() adds them.
    ExpertStream experts;
    // While this is set, each part of a step is timed, and none runs beside another.
    Marks* marks = nullptr;
    void mark(Stream s, Part part) {
        if (marks) marks->add(s, part);
    }

    // n tokens into the KV cache, at the positions after what is cached.
    void encode(Stream s, const int32_t* tokens, int n);
    // Canvas tokens and the probabilities of the step before (in z) in; z and its statistics out, and the
    // softcapped logits [n_canvas, n_vocab] if they are not null.
    void denoise(Stream s, float* logits);
    // From z: a token of each row, and the probabilities for the next step.
    void sample(Stream s);

    // The ops of the canvas.
    void soft_embedding(Stream s);
    void canvas_norm(Stream s);
    void lm_head(Stream s, float* logits);
    // The ops of a layer, but for its plain products.
    void qkv_norm(Stream s, int layer, Pass pass);
    void attention(Stream s, int layer, Pass pass);
    void post_attention(Stream s, int layer, Pass pass);
    void route(Stream s, int layer, Pass pass);
    void permute(Stream s, Pass pass);
    void expert_gate_up(Stream s, int layer, Pass pass);
    void expert_down(Stream s, int layer, Pass pass);
    void layer_end(Stream s, int layer, Pass pass);
    // Splits (split-K) of the products for a layer's q, k and v, and of that with attention's output: more
    // than one only for the canvas, as K and V of a token are to be the same bits in whatever pass it comes.
    int qkv_splits(int layer, Pass pass) const;
    int output_splits(int layer, Pass pass) const;

  private:
    void layers(Stream s, Pass pass);
    void rotations(Stream s, Pass pass);
    bool keys_only(int layer, Pass pass) const;
    void project_qkv(Stream s, int layer, Pass pass);
    void feed_forward(Stream s, int layer, Pass pass);

    const Config& c_;
    const Room& room_;
    const ModelWeights& w_;
    const Buffers<T>& b_;
    const std::vector<KvLayer<T>>& cache_;
    SideStream k_side_, v_side_, dense_side_;
};

}  // namespace easel
