// backend.h: what runs a model. The one seam between the plain C++ in src/ and the device code in cuda/.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "model.h"
#include "sampler.h"

namespace easel {

// One denoise step, as it has just ended. All spans have n_canvas items and live until the callback returns.
struct Frame {
    int canvas, step;  // both from 0
    std::span<const int32_t>
        tokens;  // the canvas that the next step reads: accepted draws, fresh noise elsewhere
    std::span<const int32_t> argmax;  // what would be committed now
    std::span<const float> entropy;   // nats
    std::span<const uint8_t> accepted;
    float mean_entropy, temperature;
    bool last;  // the canvas ends with this step
};
// Returns false to cancel: the answer then ends with the canvases committed so far.
using FrameFn = std::function<bool(const Frame&)>;

struct GenerateParams {
    SamplerConfig sampler;
    uint64_t seed = 0;
    int n_canvas = 1;                 // canvases at most; whole ones are always computed
    std::vector<int32_t> end_tokens;  // end-of-generation ids; empty: none ends the answer
};

enum class Finish {
    Stop,
    Length,
    Cancelled
};  // an end-of-generation id; all canvases used; the callback said so

struct Answer {
    std::vector<int32_t> tokens;  // argmax canvases one after the other, up to the first end-of-generation id
    Finish finish = Finish::Length;
    std::vector<int> steps;  // a number a canvas, the cancelled one included
    double denoise_ms = 0, commit_ms = 0;

    int n_step() const {
        int n = 0;
        for (int s : steps) n += s;
        return n;
    }
};

struct LogitsRequest {
    std::span<const int32_t> canvas;     // [n_canvas]
    std::span<const float> prev_logits;  // softcapped logits of the step before [n_canvas, n_vocab], or empty
    float prev_temperature = 1;
};

struct Backend {
    virtual ~Backend() = default;
    // Causal pass over `tokens`, appended to the KV cache. Error past the context.
    virtual void encode(std::span<const int32_t> tokens) = 0;
    // Denoises up to n_canvas canvases after what is cached; commits (encodes) every one it moves past.
    virtual Answer generate(const GenerateParams& params, const FrameFn& on_frame) = 0;
    // Forgets the cache past n_token.
    virtual void truncate(int n_token) = 0;
    virtual int n_cached() const = 0;
    // One denoise pass for tests and research: softcapped logits to out [n_canvas, n_vocab].
    virtual void logits(const LogitsRequest& request, std::span<float> out) = 0;
};

// The CPU backend: float32, the specification (src/reference.cpp). `n_context` bounds cached tokens plus
// canvas.
std::unique_ptr<Backend> make_cpu_backend(std::shared_ptr<const Model> model, int n_context);

}  // namespace easel
