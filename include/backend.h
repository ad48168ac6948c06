// backend.h: what runs a model. The one seam between the plain C++ in src/ and the device code in cuda/.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
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
    // Forgets the cache past n_token, or all of it where what n_token needs has been overwritten (a GPU keeps
    // only a window of some layers). Returns the tokens that are left: n_token or 0.
    virtual int truncate(int n_token) = 0;
    virtual int n_cached() const = 0;
    // One denoise pass for tests and research: softcapped logits to out [n_canvas, n_vocab].
    virtual void logits(const LogitsRequest& request, std::span<float> out) = 0;
};

// Requests that no backend can serve: each throws Error, with what was asked for and what there is.
void check_tokens(const Config& config, std::span<const int32_t> tokens);
void check_append(int n_cached, size_t n_token, int n_context);
void check_room(const Config& config, int n_cached, int n_canvas, int n_context);
void check_truncate(int n_cached, int n_token);
void check_generate(const Config& config, const GenerateParams& params, int n_cached, int n_context);
void check_logits_request(const Config& config, const LogitsRequest& request, size_t n_out);

// The CPU backend: float32, the specification (src/reference.cpp). `n_context` bounds cached tokens plus
// canvas.
std::unique_ptr<Backend> make_cpu_backend(std::shared_ptr<const Model> model, int n_context);

struct DeviceInfo {
    int index = 0;
    std::string name;    // "NVIDIA H200"
    int capability = 0;  // 90: compute capability 9.0
    int n_sm = 0;
    int64_t total_bytes = 0;
    int driver = 0;           // the CUDA version that the driver has: 12040 for 12.4
    bool graph_loop = false;  // it runs conditional graph nodes: 12.4 or later
};
// What this program was built for: "CPU", or "CPU and CUDA 13.0 for 80 90a".
std::string backends();
// GPUs that this program can use, in the driver's order. If there is none, *why says in a clause why.
std::vector<DeviceInfo> cuda_devices(std::string* why = nullptr);

// Weight bytes that are on the device, of all. Returns false to stop, which throws Error.
using LoadProgressFn = std::function<bool(int64_t done, int64_t total)>;

struct DeviceOptions {
    int index = 0;           // of cuda_devices()
    int n_context = 0;       // cached tokens plus canvas
    int n_encode = 1024;     // tokens of an encode pass at most
    bool exact = false;      // float32 throughout, slow and large: for tests
    bool graph_loop = true;  // the whole answer in one graph; else the host launches each step
    LoadProgressFn on_load;
};
// The CUDA backend (cuda/engine.cpp). Error if the memory is too little, or CUDA reports one.
std::unique_ptr<Backend> make_cuda_backend(std::shared_ptr<const Model> model, const DeviceOptions& options);
// The same backend on the simulator: only in the tests.
std::unique_ptr<Backend> make_simulator_backend(std::shared_ptr<const Model> model,
                                                const DeviceOptions& options);

}  // namespace easel
