// profile.h: where the time of a denoise step goes: the names of its parts, marks on the device's clock
// between them, and what each part has to move and compute. engine.cpp marks; `easel bench step` prints.
#pragma once
#include <memory>
#include <vector>

#include "backend.h"
#include "device.h"
#include "layout.h"

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
constexpr const char* kPartNames[] = {"embedding",
                                      "soft embedding",
                                      "self-conditioning",
                                      "canvas norm, angles",
                                      "q, k, v",
                                      "q, k, v norms, rope",
                                      "attention",
                                      "attention output",
                                      "norms after attention",
                                      "dense gate, up",
                                      "dense down",
                                      "router, permutation",
                                      "experts gate, up",
                                      "experts down",
                                      "sums and norms",
                                      "lm head",
                                      "sample",
                                      "accept"};
constexpr int kParts = static_cast<int>(Part::End);

// When each part of a step began, on the device's clock.
class Marks {
  public:
    void clear() { n_ = 0; }
    void add(Stream s, Part part) {
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

double median(std::vector<double> v);
// The device's ceilings into copy_gbs and mma_tflops: the best of some runs of a large copy and of mma.sync.
void measure_ceilings(Stream s, StepProfile& out);
// Bytes and products of each part of a step after n_prefix tokens; activations and KV of value_bytes each.
std::vector<StepPart> step_parts(const Config& config, const ModelWeights& weights, int n_prefix,
                                 int value_bytes);

}  // namespace easel
