// easel.h: the program as a library: a model, its tokenizer and a backend behind Engine::generate(). The one
// header that users of the library include; the commands answer requests with it too.
//
// Failures are thrown as Error (error.h); a DeviceError means that the GPU is lost, and with it the Engines
// of this process. One failure cannot be thrown: if a mapped model file is cut short or becomes unreadable,
// the process prints a line to stderr and exits with code 1. For that, mapping the first file installs a
// SIGBUS handler, which passes other bus errors on to the handler that was there.
#pragma once
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend.h"
#include "chat.h"
#include "error.h"
#include "model.h"
#include "tokenizer.h"

namespace easel {

struct EngineOptions {
    std::string model;  // a GGUF file; empty: the demo model that is part of the program
    int n_context = 0;  // tokens of prompt and answer together; 0: what the model was made for, or the most
                        // that memory allows
    int n_thread = 0;   // 0: one per core. A process has one pool of threads; the newest Engine sets its size
    // Where it runs: cpu, cuda (the first GPU), cuda:N, or auto: the first GPU, if there is one and the model
    // fits. An option below that is for the other kind of device is an Error; with auto it is ignored, and
    // Engine::note() says so.
    std::string device = "auto";
    // Bytes of device memory at most; on the CPU, of KV and buffers. 0: no limit.
    int64_t memory_limit = 0;
    int n_offload = kFewestOffloaded;   // on a GPU: layers whose experts stay in the host's memory
    CpuMath cpu_math = CpuMath::Float;  // on a CPU: int8 is faster, but draws can differ from float's
    bool exact = false;      // on a GPU: float32 throughout, slow and large; for comparing with the CPU
    bool graph_loop = true;  // on a GPU: the whole answer is one CUDA graph, if the driver can
    bool overlap = true;     // on a GPU: kernels start while the one before ends, if the driver can
    LoadProgressFn on_load;  // on a GPU: called while weights are loaded
    // Makes the backend, whatever the options above say; for tests.
    std::function<std::unique_ptr<Backend>(std::shared_ptr<const Model>)> make_backend;
};

struct Request {
    // The prompt: exactly one of these.
    std::vector<Message> messages;    // chat turns
    std::optional<std::string> raw;   // text in which control strings count; only bos is added
    std::vector<int32_t> prompt_ids;  // ids as they are

    bool think = false;                    // chat only: ask for a thought before the answer
    std::optional<SamplerConfig> sampler;  // default: the model's own settings
    uint64_t seed = 0;
    int n_token = 0;  // most answer tokens (canvases are computed whole); 0: 2048, or what there is room for
    bool ignore_eos = false;  // go on past end-of-generation ids
    // The text ends before the earliest of these in it, and no canvas follows. Result::ids are not cut.
    std::vector<std::string> stop;

    // Infill: the answer's text with holes. [[8]] is a hole of 8 tokens (where a model wants fewer, it fills
    // up with control tokens, which have no text), [[yes|no]] is one of these texts (of as many tokens each),
    // [[*]], at the end only, is whatever follows; \[[ stands for [[. All must fit one canvas. n_token and
    // ignore_eos have no effect; think must be false.
    std::optional<std::string> canvas;
    std::map<int, std::vector<std::string>> choices;  // by hole, from 1: texts that replace the hole's own

    int n_retry = 0;  // more tries while the answer is empty, with seeds seed + 1, seed + 2 ..
    int n_best = 1;   // answers to make, with such seeds; the one with the best mean_log_prob() is kept
};

// What fills a hole of Request::canvas.
struct Filled {
    std::string text;
    std::vector<int32_t> ids;
    // Geometric mean of its tokens' probabilities; of [[A|B]]: the probability of the choice.
    float confidence;
};

struct Result {
    std::string text, thought;
    std::vector<int32_t> ids;              // before the first end-of-generation id, at most n_token
    std::vector<float> log_prob, entropy;  // of each id, nats, at its canvas' last step
    Finish finish = Finish::Length;
    std::string stop;           // the one of Request::stop that ended the text; empty: none did
    std::vector<Filled> holes;  // of Request::canvas
    uint64_t seed = 0;          // that gave this answer
    // Answers made. What follows is of the kept one, but n_reused, n_lost and encode_ms are of the first.
    int n_try = 1;
    std::vector<int> steps;  // denoise steps of each canvas
    int n_prompt = 0;        // tokens of the prompt
    int n_reused = 0;        // of these, found in the cache
    int n_lost = 0;          // of these, encoded again, as sliding layers had dropped the window before them
    std::string note;        // what the user should know about how it was computed, or nothing
    double encode_ms = 0, denoise_ms = 0, commit_ms = 0;
    uint64_t hash = 0;  // FNV-1a of the ids: equal answers have equal hashes

    double mean_log_prob() const;  // nats; 0 without ids
    int n_step() const;
};

// Called after each pass over a part of the prompt; never, if the cache has all of it. done: prompt tokens
// encoded so far. Returns false to cancel.
using ProgressFn = std::function<bool(int done, int total)>;

class Engine {
  public:
    // Opens and checks the model. Error on anything wrong with the file.
    explicit Engine(const EngineOptions& options);

    const Model& model() const { return *model_; }
    const Tokenizer& tokenizer() const { return *tokenizer_; }
    int n_context() const { return n_context_; }
    // Answer tokens that fit after a prompt of n_prompt tokens: whole canvases, 0 if none fits.
    int room(size_t n_prompt) const;

    // The request's prompt as ids. Error on an empty prompt, on several, on text that is not UTF-8, on ids
    // out of range.
    std::vector<int32_t> prompt_ids(const Request& request) const;

    // Error where generate() would refuse the request; nothing is encoded.
    void check(const Request& request) const;

    // Answers one request. What the KV cache shares with the prompt is not encoded again. Error when prompt
    // and canvases exceed the context (nothing is generated then), a setting is out of range, or the Engine
    // still works on another answer: in another thread, or because a callback has called it.
    Result generate(const Request& request, const FrameFn& on_frame = {}, const ProgressFn& on_progress = {});

    Backend& backend() { return *backend_; }
    // "CPU", or the GPU's name; and what the user should know about that choice, or nothing.
    const std::string& device() const { return device_; }
    const std::string& note() const { return note_; }

  private:
    struct Job;
    void open_backend(const EngineOptions& options);
    Result answer(const Request& request, uint64_t seed, const FrameFn& on_frame,
                  const ProgressFn& on_progress);
    // The steps of answer().
    Job prepare(const Request& request) const;
    bool encode(const std::vector<int32_t>& prompt, const ProgressFn& on_progress, Result& result);
    Answer denoise(const Job& job, const Request& request, const FrameFn& on_frame);
    void read_answer(Answer answer, const Job& job, const Request& request, Result& result) const;

    std::shared_ptr<const Model> model_;
    std::unique_ptr<Tokenizer> tokenizer_;
    std::string device_, note_;
    std::unique_ptr<Backend> backend_;
    int n_context_;
    std::vector<int32_t> cached_;  // ids whose K and V the backend holds
    std::unique_ptr<std::atomic<bool>> busy_ = std::make_unique<std::atomic<bool>>(false);
};

}  // namespace easel
