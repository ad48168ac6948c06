// backend.h: Backend, which runs a model: on the CPU (src/reference.cpp) or on a GPU (cuda/backend.cpp). The
// one seam between the plain C++ in src/ and the device code in cuda/. Used by the engine.
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
    int canvas, step;                 // both from 0
    std::span<const int32_t> tokens;  // what the next step reads: accepted draws, fresh noise elsewhere
    std::span<const int32_t> argmax;  // what would be committed now
    std::span<const float> entropy;   // nats
    std::span<const float> log_prob;  // of argmax, nats
    std::span<const uint8_t> accepted;
    float mean_entropy;  // over positions whose token is not given
    float temperature;
    float dropped;  // the largest probability that self-conditioning left out at any position
    bool last;      // the canvas ends with this step
};
// Returns false to cancel: the answer then ends with the canvases committed so far.
using FrameFn = std::function<bool(const Frame&)>;

// What is known of a canvas before it is denoised (infill). Given tokens are certain: each step reads them,
// self-conditioning has them with probability 1, and they do not count in the mean entropy.
struct Given {
    std::vector<int32_t> tokens;  // [n_canvas]: the token given, -1 for none; empty: nothing is given
    std::vector<Choice> choices;  // over positions whose token is not given
};
// The most choices, options of a choice, and tokens of all options together.
constexpr int kMaxChoices = 64, kMaxOptions = 512, kMaxOptionTokens = 8192;

struct GenerateParams {
    SamplerConfig sampler;
    uint64_t seed = 0;
    int max_canvases = 1;             // canvases are always computed whole
    std::vector<int32_t> end_tokens;  // end-of-generation ids; empty: none ends the answer
    Given given;                      // infill; needs max_canvases = 1
};

enum class Finish {
    Stop,       // an end-of-generation id
    Length,     // all canvases are used
    Cancelled,  // the callback said so
};

struct Answer {
    std::vector<int32_t> tokens;  // argmax canvases one after the other, up to the first end-of-generation id
    std::vector<float> log_prob, entropy;  // of each token, at its canvas' last step
    Finish finish = Finish::Length;
    std::vector<int> steps;  // denoise steps of each canvas, a cancelled one included
    double denoise_ms = 0, commit_ms = 0;
    std::string note;  // what the user should know about how it was computed, or nothing
};

struct LogitsRequest {
    std::span<const int32_t> canvas;     // [n_canvas]
    std::span<const float> prev_logits;  // softcapped logits of the step before [n_canvas, n_vocab], or empty
    float prev_temperature = 1;
};

// Bytes that running a model takes.
struct MemoryPlan {
    int64_t weights = 0, kv = 0, scratch = 0;
    int64_t host = 0;   // on a GPU: in addition, pinned host memory for offloaded experts
    int n_offload = 0;  // layers whose experts those are
    int n_encode = 0;   // tokens of the largest encode pass that `scratch` and the sliding layers' KV allow
    int64_t total() const { return weights + kv + scratch; }
};

// Where the time of loading weights to a GPU went. The stages overlap.
struct LoadStats {
    int64_t bytes = 0;
    double total_ms = 0;
    double read_ms = 0;    // the host copied from the mapped file to pinned buffers
    double wait_ms = 0;    // the host waited for such a buffer to be free again
    double copy_ms = 0;    // over the bus
    double repack_ms = 0;  // on the device
};

struct Backend {
    virtual ~Backend() = default;
    // Causal pass over `tokens`, whose K and V are appended to the cache. Error past the context.
    virtual void encode(std::span<const int32_t> tokens) = 0;
    // Denoises up to max_canvases canvases after the cached tokens; commits (encodes) each before the next.
    virtual Answer generate(const GenerateParams& params, const FrameFn& on_frame) = 0;
    // Drops all but the first n_token tokens of the cache; or all, if sliding layers no longer have the
    // window before n_token: of older tokens they keep only some (kCpuReserve of memory_plan.h; on a GPU,
    // n_encode). Returns the tokens that are left: n_token or 0.
    virtual int truncate(int n_token) = 0;
    virtual int n_cached() const = 0;
    // The most tokens, cached plus canvas; and the most that encode() takes in one pass: who wants to report
    // progress or to cancel passes it that many at a time.
    virtual int n_context() const = 0;
    virtual int n_encode() const = 0;
    virtual MemoryPlan plan() const = 0;
    virtual LoadStats load_stats() const { return {}; }  // all 0 on a CPU, which loads nothing
    // One denoise pass for tests and research: softcapped logits to out [n_canvas, n_vocab].
    virtual void logits(const LogitsRequest& request, std::span<float> out) = 0;
};

// How the CPU multiplies with quantised weights: activations in float32, which is the specification, or
// rounded to int8 in blocks of 32, which is faster. Either gives the same answer with any number of threads.
enum class CpuMath { Float, Int8 };
// The CPU backend (src/reference.cpp). `n_context` bounds cached tokens plus canvas.
std::unique_ptr<Backend> make_cpu_backend(std::shared_ptr<const Model> model, int n_context,
                                          CpuMath math = CpuMath::Float);

struct DeviceInfo {
    int index = 0;
    std::string name;    // "NVIDIA H200"
    int capability = 0;  // 90: compute capability 9.0
    int64_t total_bytes = 0;
    int driver = 0;  // the newest CUDA version that the driver supports: 12040 for 12.4
    int n_sm = 0;    // multiprocessors
};
// What this program was built for: "CPU", or "CPU and CUDA 13.0 for 80 90a".
std::string backends();
// GPUs that this program can use, in the driver's order. If there is none, or one that it cannot use, *why
// says in a clause why.
std::vector<DeviceInfo> cuda_devices(std::string* why = nullptr);
// N of the device name cuda:N; -1 for auto, cpu and cuda. Error on any other name.
int device_number(const std::string& name);

// done: weight bytes that are on the device so far. Returns false to stop loading, which throws Error.
using LoadProgressFn = std::function<bool(int64_t done, int64_t total)>;

constexpr int kHangMs = 60'000;       // for hang_ms: a step takes seconds at most, on any card and bus
constexpr int kFewestOffloaded = -1;  // for n_offload: as few layers as make the context fit
struct DeviceOptions {
    int index = 0;             // DeviceInfo::index
    int n_context = 0;         // cached tokens plus canvas; 0: the largest that fits, at most the model's
    int n_encode = 2048;       // tokens of an encode pass at most; half or a quarter where memory is short
    int n_offload = 0;         // layers whose experts stay in the host's memory, or kFewestOffloaded
    int64_t memory_limit = 0;  // bytes of device memory at most; 0: what is free
    int n_sm = 132;           // multiprocessors to fill; 132, an H200's, is for plans: a backend asks its GPU
    bool exact = false;       // float32 throughout, slow and large: for tests
    bool graph_loop = true;   // the whole answer is one CUDA graph; else the host launches each kernel
    bool overlap = true;      // kernels start while the one before ends (PDL), where that is known to help
    int silence_ms = 60'000;  // give up an answer's graph if the GPU is idle, without a frame, for so long
    int hang_ms = 0;          // DeviceError if it is busy, without a frame, for so long; 0: wait for ever
    LoadProgressFn on_load;
};

// The CUDA backend (cuda/backend.cpp). Error if memory is short or CUDA reports an error.
std::unique_ptr<Backend> make_cuda_backend(std::shared_ptr<const Model> model, const DeviceOptions& options);

}  // namespace easel
