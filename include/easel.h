// easel.h: the program as a library: a model, its tokenizer and a backend behind one call. main, and whatever
// else answers requests, use this and nothing below it.
//
// What goes wrong is thrown as an Error (error.h); a DeviceError among them says that the GPU is lost, and
// this process' Engines with it. One thing cannot be thrown: where a model's file becomes shorter, or can no
// longer be read, while it is mapped, the process says so on stderr and ends with exit code 1. For that, the
// first file that is mapped sets a handler of SIGBUS; it leaves other bus errors to the handler that was
// there.
#pragma once
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
    int n_thread = 0;   // 0: one a core; all engines of a process share them, the last one decides
    // Where it runs: cpu, cuda (the first GPU), cuda:N, or auto: the first GPU, if there is one and the model
    // fits. Options below that only the other kind of device has are an Error; where auto comes to that kind,
    // Engine::note() names them.
    std::string device = "auto";
    // Bytes of device memory at most; on the CPU, of KV and buffers. 0: no limit.
    int64_t memory_limit = 0;
    int n_offload = kFewestOffloaded;   // on a GPU: layers whose experts stay in the host's memory
    CpuMath cpu_math = CpuMath::Float;  // on a CPU: int8 is faster, and a draw can differ from float's
    bool exact = false;      // on a GPU: float32 throughout, slow and large; for comparing with the CPU
    bool graph_loop = true;  // on a GPU: the whole answer in one graph, where the driver can
    bool overlap = true;     // on a GPU: launches begin while the ones before them end, where it can
    LoadProgressFn on_load;  // weights on their way to a GPU
    // Makes a backend of one's own (a test's), instead of what the options above say.
    std::function<std::unique_ptr<Backend>(std::shared_ptr<const Model>)> make_backend;
};

struct Request {
    // The prompt: exactly one of these.
    std::vector<Message> messages;    // chat turns
    std::optional<std::string> raw;   // text with control strings in it; nothing is added but bos
    std::vector<int32_t> prompt_ids;  // ids as they are

    bool think = false;                    // chat only: ask for a thought before the answer
    std::optional<SamplerConfig> sampler;  // default: the model's own settings
    uint64_t seed = 0;
    int n_token = 0;  // answer tokens at most; whole canvases are computed; 0: 2048 or what there is room for
    bool ignore_eos = false;  // go on past end-of-generation ids
    // The text ends before the first of these in it; the canvas that completes one is the last. Ids stay
    // whole.
    std::vector<std::string> stop;

    // Infill: the answer's text with holes. [[8]] is a hole of 8 tokens (control tokens among them, which
    // stand for no text, are how a model ends a shorter one), [[yes|no]] one of these texts
    // (equally long in tokens), [[*]] at the end whatever follows; \[[ stands for [[. It has to fit one
    // canvas; n_token and ignore_eos do not count, think goes without it.
    std::optional<std::string> canvas;
    std::map<int, std::vector<std::string>> choices;  // texts for holes by number, from 1, not their own

    int n_retry = 0;  // where the answer is empty: more tries, with seeds seed + 1, seed + 2 ..
    int n_best = 1;   // answers, with such seeds too, of which the one with the best mean_log_prob() is kept
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
    std::string stop;           // of Request::stop, the one that ended the text; empty: none has
    std::vector<Filled> holes;  // of Request::canvas
    uint64_t seed = 0;          // that gave this answer
    int n_try = 1;           // answers made. What follows is of the kept one, but the prompt's of the first
    std::vector<int> steps;  // a number a canvas
    int n_prompt = 0;        // tokens of the prompt
    int n_reused = 0;        // of these, found in the cache
    int n_lost = 0;          // had been encoded before, and were again: sliding layers no longer had them
    std::string note;        // what the user should know about how it was computed, or nothing
    double encode_ms = 0, denoise_ms = 0, commit_ms = 0;
    uint64_t hash = 0;  // FNV-1a of the ids: equal answers have equal hashes

    double mean_log_prob() const;  // nats; 0 without ids
    int n_step() const;
};

// Tokens of the prompt that are encoded, and all of them. Returns false to cancel.
using ProgressFn = std::function<bool(int done, int total)>;

class Engine {
  public:
    // Opens and checks the model. Error on anything wrong with the file.
    explicit Engine(const EngineOptions& options);

    const Model& model() const { return *model_; }
    const Tokenizer& tokenizer() const { return *tokenizer_; }
    int n_context() const { return n_context_; }
    // Tokens of an answer that fit after such a prompt: whole canvases, 0 if not even one does.
    int room(size_t n_prompt) const;

    // The request's prompt as ids. Error on an empty prompt, on text that is not UTF-8, on ids out of range.
    std::vector<int32_t> prompt_ids(const Request& request) const;

    // Error where generate() would refuse the request; nothing is encoded.
    void check(const Request& request) const;

    // Answers one request. What the KV cache shares with the prompt is not encoded again. Error when prompt
    // and canvases exceed the context (nothing is generated then) or a setting is out of range.
    Result generate(const Request& request, const FrameFn& on_frame = {}, const ProgressFn& on_progress = {});

    Backend& backend() { return *backend_; }
    // "CPU", or the GPU's name; and what the user should know about that choice, or nothing.
    const std::string& device() const { return device_; }
    const std::string& note() const { return note_; }

  private:
    struct Job;
    Result answer(const Request& request, uint64_t seed, const FrameFn& on_frame,
                  const ProgressFn& on_progress);
    // Its parts.
    Job prepare(const Request& request) const;
    bool encode(const std::vector<int32_t>& prompt, const ProgressFn& on_progress, Result& result);
    Answer denoise(const Job& job, const Request& request, const FrameFn& on_frame);
    void read_answer(Answer answer, const Job& job, const Request& request, Result& result) const;
    void open_backend(const EngineOptions& options);

    std::shared_ptr<const Model> model_;
    std::unique_ptr<Tokenizer> tokenizer_;
    std::string device_, note_;
    std::unique_ptr<Backend> backend_;
    int n_context_;
    std::vector<int32_t> cached_;  // ids whose K and V the backend holds
};

}  // namespace easel
