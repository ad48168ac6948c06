// engine.cpp: from a request to an answer: prompt ids, the cached prefix, generation, splitting. Called by
// main.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <numeric>

#include "check.h"
#include "easel.h"
#include "infill.h"
#include "memory_plan.h"
#include "models.h"
#include "parallel.h"
#include "request_checks.h"
#include "text.h"

namespace easel {

namespace {

constexpr int kWorthTelling = 256;    // the user is told if more tokens than this are encoded again
constexpr int kDefaultTokens = 2048;  // answer tokens at most, unless a request says otherwise

uint64_t hash_ids(std::span<const int32_t> ids) {
    uint64_t h = 0xcbf29ce484222325;  // FNV-1a, 64 bits
    for (int32_t id : ids)
        for (int byte = 0; byte < 4; byte++)
            h = (h ^ (static_cast<uint32_t>(id) >> 8 * byte & 255)) * 0x100000001b3;
    return h;
}

double ms_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

// What the answer has in the holes of its canvas.
std::vector<Filled> filled_holes(const CanvasTokens& canvas, const Result& result,
                                 const Tokenizer& tokenizer) {
    std::vector<Filled> out;
    for (size_t i = 0; i < canvas.begin.size(); i++) {
        const int begin = canvas.begin[i],
                  end = std::min(begin + canvas.length[i], static_cast<int>(result.ids.size()));
        Filled filled{"", {result.ids.begin() + begin, result.ids.begin() + end}, 0};
        filled.text = tokenizer.decode(filled.ids, false);
        const double sum =
            std::accumulate(result.log_prob.begin() + begin, result.log_prob.begin() + end, 0.0);
        const auto& choices = canvas.given.choices;
        const bool is_choice =
            std::any_of(choices.begin(), choices.end(), [&](const Choice& c) { return c.begin == begin; });
        filled.confidence = static_cast<float>(std::exp(is_choice ? sum : sum / std::max(1, end - begin)));
        out.push_back(std::move(filled));
    }
    return out;
}

void check_tries(const Request& request) {
    require(request.n_best >= 1 && request.n_retry >= 0,
            "{} answers and {} retries requested, expected at least 1 and at least 0", request.n_best,
            request.n_retry);
}

// The flags for options that only a GPU has and that are set; then the same of a CPU.
std::string only_gpu(const EngineOptions& o) {
    std::vector<const char*> flags;
    if (o.n_offload > 0) flags.push_back("--expert-offload");
    if (o.exact) flags.push_back("--exact");
    if (!o.graph_loop) flags.push_back("--host-loop");
    if (!o.overlap) flags.push_back("--in-order");
    return fmt::format("{}", fmt::join(flags, ", "));
}
std::string only_cpu(const EngineOptions& o) {
    return o.cpu_math == CpuMath::Int8 ? "--cpu-math int8" : "";
}

// Error if the device's name is wrong, or an option is for the other kind of device; needs no model, no GPU.
void check_device(const EngineOptions& o) {
    device_number(o.device);
    const bool cpu = o.device == "cpu", any = o.device == "auto";
    const std::string other = any ? "" : cpu ? only_gpu(o) : only_cpu(o);
    require(other.empty(), "device is {}, expected {} or auto for {}", o.device, cpu ? "cuda, cuda:N" : "cpu",
            other);
}

}  // namespace

int device_number(const std::string& name) {
    int n = -1;
    if (name.starts_with("cuda:")) {
        const char *first = name.data() + 5, *last = name.data() + name.size();
        const auto [end, error] = std::from_chars(first, last, n);
        if (error != std::errc() || end != last) n = -1;
    }
    require(n >= 0 || name == "auto" || name == "cpu" || name == "cuda",
            "device is {}, expected auto, cpu, cuda or cuda:N", name);
    return n;
}

Engine::Engine(const EngineOptions& options) {
    if (!options.make_backend) check_device(options);
    set_threads(options.n_thread);
    const auto file = open_model(options.model);
    model_ = std::make_shared<const Model>(file);
    tokenizer_ = std::make_unique<Tokenizer>(*file);
    const Config& c = model_->config;
    require(tokenizer_->n_vocab() == c.n_vocab,
            "{}: key tokenizer.ggml.tokens has {} items, token_embd.weight {} rows", file->name(),
            tokenizer_->n_vocab(), c.n_vocab);
    require(options.n_context >= 0 && options.n_context <= c.n_context, "context is {}, expected 1 to {}",
            options.n_context, c.n_context);
    open_backend(options);
}

// Opens the backend that the options name; "auto" falls back to the CPU, with a note if there is a GPU.
void Engine::open_backend(const EngineOptions& options) {
    if (options.make_backend) {
        backend_ = options.make_backend(model_);
        n_context_ = backend_->n_context();
        return;
    }
    const std::string& name = options.device;
    const int model_context = model_->config.n_context, index = device_number(name);
    std::string why;
    if (name != "cpu") {
        const std::vector<DeviceInfo> devices = cuda_devices(&why);
        const auto device = std::find_if(devices.begin(), devices.end(),
                                         [&](const DeviceInfo& d) { return index < 0 || d.index == index; });
        if (device != devices.end()) {
            try {
                DeviceOptions o;
                o.index = device->index;
                o.n_context = options.n_context;
                o.memory_limit = options.memory_limit;
                o.n_offload = options.n_offload;
                o.exact = options.exact;
                o.graph_loop = options.graph_loop;
                o.overlap = options.overlap;
                o.hang_ms = kHangMs;
                o.on_load = options.on_load;
                backend_ = make_cuda_backend(model_, o);
                n_context_ = backend_->n_context();
                device_ = device->name;
                if (const MemoryPlan p = backend_->plan(); p.n_offload) note_ = offload_cost(p);
                if (const std::string lost = only_cpu(options); !lost.empty())
                    note_ += (note_.empty() ? "" : "; ") + ("ignored on a GPU: " + lost);
                return;
            } catch (const Error& e) {
                if (name != "auto") throw;
                note_ = fmt::format("the CPU is used, not the GPU: {}", e.what());
            }
        } else if (name != "auto") {
            std::vector<int> usable;
            for (const DeviceInfo& d : devices) usable.push_back(d.index);
            if (why.empty()) why = fmt::format("the devices are {}", fmt::join(usable, ", "));
            fail("there is no device {}: {}", name, why);
        }
    }
    if (const std::string lost = only_gpu(options); !lost.empty()) {
        if (note_.empty()) note_ = fmt::format("the CPU is used: {}", why);
        note_ += "; ignored on a CPU: " + lost;
    }
    n_context_ = options.n_context ? options.n_context : model_context;
    if (options.memory_limit) n_context_ = fit_cpu(*model_, options.n_context, options.memory_limit);
    backend_ = make_cpu_backend(model_, n_context_, options.cpu_math);
    device_ = "CPU";
}

std::vector<int32_t> Engine::prompt_ids(const Request& request) const {
    const int n_prompt = !request.messages.empty() + request.raw.has_value() + !request.prompt_ids.empty();
    require(n_prompt <= 1, "the request has {} prompts, expected one of messages, raw text and ids",
            n_prompt);
    std::vector<int32_t> ids;
    if (!request.prompt_ids.empty()) {
        ids = request.prompt_ids;
    } else if (request.raw) {
        require(!request.raw->empty(), "the prompt is empty, expected some text");
        require_utf8(*request.raw, "the prompt");
        ids = tokenizer_->encode(*request.raw, Specials::All);
        if (tokenizer_->bos >= 0 && (ids.empty() || ids[0] != tokenizer_->bos))
            ids.insert(ids.begin(), tokenizer_->bos);
    } else {
        for (const Message& m : request.messages)
            require_utf8(m.content, m.role == Role::System ? "the system prompt" : "the prompt");
        require(!request.messages.empty() && !is_blank(request.messages.back().content),
                "the prompt is empty, expected some text");
        ids = render_chat(*tokenizer_, model_->file->string_or("tokenizer.chat_template", ""),
                          request.messages, {request.think});
    }
    for (int32_t id : ids)
        require(id >= 0 && id < model_->config.n_vocab, "prompt id {} is out of range, expected 0 to {}", id,
                model_->config.n_vocab - 1);
    return ids;
}

double Result::mean_log_prob() const {
    const double sum = std::accumulate(log_prob.begin(), log_prob.end(), 0.0);
    return log_prob.empty() ? 0 : sum / static_cast<double>(log_prob.size());
}

int Result::n_step() const {
    return std::accumulate(steps.begin(), steps.end(), 0);
}

Result Engine::generate(const Request& request, const FrameFn& on_frame, const ProgressFn& on_progress) {
    check_tries(request);
    require(!busy_->exchange(true), "this Engine is still generating another answer; it makes one at a time");
    const std::unique_ptr<std::atomic<bool>, void (*)(std::atomic<bool>*)> idle(
        busy_.get(), [](std::atomic<bool>* busy) { *busy = false; });
    Result best;
    bool best_empty = true;
    for (int i = 0, n_try = request.n_best; i < n_try; i++) {
        Result r = answer(request, request.seed + static_cast<uint64_t>(i), on_frame, on_progress);
        if (i > 0) {  // later ones find the prompt in the cache: the first one tells what encoding it took
            r.n_reused = best.n_reused;
            r.n_lost = best.n_lost;
            r.encode_ms = best.encode_ms;
            if (r.note.empty()) r.note = best.note;
        }
        const bool empty = is_blank(r.text);
        const bool cancelled = r.finish == Finish::Cancelled;
        const bool likelier = r.mean_log_prob() > best.mean_log_prob();
        // An answer that was cancelled is no better than a whole one.
        if (i == 0 || (best_empty && !empty) || (!cancelled && best_empty == empty && likelier)) {
            best = std::move(r);
            best_empty = empty;
        }
        best.n_try = i + 1;
        if (cancelled) {
            best.finish = Finish::Cancelled;
            break;
        }
        if (empty && n_try < request.n_best + request.n_retry) n_try++;
    }
    return best;
}

// A request in tokens, as the backend is asked. answer() and its steps follow.
struct Engine::Job {
    std::vector<int32_t> prompt;
    int n_token = 0;  // of the answer at most
    CanvasTokens canvas;
    GenerateParams params;
};

Result Engine::answer(const Request& request, uint64_t seed, const FrameFn& on_frame,
                      const ProgressFn& on_progress) {
    Job job = prepare(request);
    job.params.seed = seed;
    Result result;
    result.seed = seed;
    if (encode(job.prompt, on_progress, result))
        read_answer(denoise(job, request, on_frame), job, request, result);
    else
        result.finish = Finish::Cancelled;
    return result;
}

int Engine::room(size_t n_prompt) const {
    const int n_canvas = model_->config.n_canvas;
    return std::max(0, n_context_ - static_cast<int>(n_prompt)) / n_canvas * n_canvas;
}

// The request in tokens. Error on what is wrong with it, or does not fit the context.
Engine::Job Engine::prepare(const Request& request) const {
    const int n_canvas = model_->config.n_canvas;
    Job job;
    GenerateParams& params = job.params;
    params.sampler = request.sampler.value_or(model_->config.sampler);
    check_sampler(params.sampler);
    require(request.n_token >= 0, "the answer's length is {}, expected 1 or more tokens", request.n_token);
    for (const std::string& s : request.stop)
        require(!s.empty(), "a stop string is empty, expected some text");
    if (!request.ignore_eos) params.end_tokens = tokenizer_->end_of_generation;
    if (request.canvas) {
        require(!request.think, "a canvas with holes cannot be combined with thinking");
        require_utf8(*request.canvas, "the canvas");
        job.canvas = place_canvas(parse_canvas(*request.canvas, request.choices), *tokenizer_, n_canvas);
        params.given = job.canvas.given;
        params.end_tokens.clear();  // where it ends is known, or looked for after the last of the given text
    } else {
        require(request.choices.empty(), "choices are given, but no canvas with holes for them");
    }

    job.prompt = prompt_ids(request);
    const size_t n_prompt = job.prompt.size();
    if (request.canvas)
        job.n_token = n_canvas;
    else if (request.n_token)
        job.n_token = request.n_token;
    else
        job.n_token = std::clamp(room(n_prompt), n_canvas, std::max(n_canvas, kDefaultTokens));
    params.max_canvases = static_cast<int>((int64_t{job.n_token} + n_canvas - 1) / n_canvas);
    const int64_t needed = static_cast<int64_t>(n_prompt) + int64_t{params.max_canvases} * n_canvas;
    require(needed <= n_context_,
            "{} and {} of {} tokens need {} tokens, the context has {}: shorten the prompt or ask for fewer "
            "tokens{}",
            counted(n_prompt, "prompt token"), counted(params.max_canvases, "canvas", "canvases"), n_canvas,
            needed, n_context_,
            n_context_ < model_->config.n_context ? ", or for a larger context (-c)" : "");
    check_given(model_->config, params);
    return job;
}

void Engine::check(const Request& request) const {
    check_tries(request);
    prepare(request);
}

// Encodes what the cache does not share with the prompt. False: cancelled.
bool Engine::encode(const std::vector<int32_t>& prompt, const ProgressFn& on_progress, Result& result) {
    const auto [end, unused] = std::mismatch(prompt.begin(), prompt.end(), cached_.begin(), cached_.end());
    const int n_shared = static_cast<int>(end - prompt.begin());
    result.n_prompt = static_cast<int>(prompt.size());
    result.n_reused = backend_->truncate(n_shared);
    result.n_lost = n_shared - result.n_reused;
    if (result.n_lost > kWorthTelling)
        result.note = fmt::format(
            "{} tokens of the prompt are encoded again: the sliding layers' cache does not reach that far "
            "back",
            result.n_lost);
    cached_.resize(result.n_reused);

    const auto start = std::chrono::steady_clock::now();
    while (cached_.size() < prompt.size()) {
        const size_t n = std::min<size_t>(backend_->n_encode(), prompt.size() - cached_.size());
        const auto chunk = std::span(prompt).subspan(cached_.size(), n);
        backend_->encode(chunk);
        cached_.insert(cached_.end(), chunk.begin(), chunk.end());
        result.encode_ms = ms_since(start);
        if (on_progress && !on_progress(static_cast<int>(cached_.size()), result.n_prompt)) return false;
    }
    return true;
}

// Denoises canvases after the prompt. Once the finished ones contain a stop string, the next one is cancelled
// at its first step.
Answer Engine::denoise(const Job& job, const Request& request, const FrameFn& on_frame) {
    std::vector<int32_t> finished;
    bool stopped = false;
    const auto frame_or_stop = [&](const Frame& f) {
        if (f.canvas > 0 && f.step == 0) {
            std::string text = split_reply(*tokenizer_, finished, request.ignore_eos).answer;
            stopped = !cut_at_stop(text, request.stop).empty();
        }
        if (f.last) finished.insert(finished.end(), f.argmax.begin(), f.argmax.end());
        return !stopped && (!on_frame || on_frame(f));
    };
    Answer answer = backend_->generate(job.params, request.stop.empty() ? on_frame : FrameFn(frame_or_stop));
    if (stopped) {
        answer.finish = Finish::Stop;
        answer.steps.pop_back();  // of the canvas that was begun
    }
    // Committed canvases stay in the cache: the next prompt, a chat's next turn, may have them.
    const size_t n_committed =
        std::min<size_t>(backend_->n_cached() - job.prompt.size(), answer.tokens.size());
    cached_.insert(cached_.end(), answer.tokens.begin(), answer.tokens.begin() + n_committed);
    require(
        std::all_of(answer.entropy.begin(), answer.entropy.end(), [](float x) { return std::isfinite(x); }),
        "the model computed NaN or infinity: its weights are damaged, or its activations overflow 16 bits, "
        "which a GPU uses without --exact");
    return answer;
}

// The backend's answer as text: cut where its canvas, its length or a stop string ends it.
void Engine::read_answer(Answer answer, const Job& job, const Request& request, Result& result) const {
    const CanvasTokens& canvas = job.canvas;
    const bool infilled = request.canvas && answer.finish != Finish::Cancelled;
    if (infilled) {
        const auto is_end = [&](int32_t id) { return tokenizer_->is_end(id); };
        const auto text_end = answer.tokens.begin() + canvas.n_token;
        const auto end = canvas.open ? std::find_if(text_end, answer.tokens.end(), is_end) : text_end;
        answer.finish = canvas.open && end == answer.tokens.end() ? Finish::Length : Finish::Stop;
        answer.tokens.erase(end, answer.tokens.end());
    }
    const size_t n = std::min(answer.tokens.size(), static_cast<size_t>(job.n_token));
    // An answer that is cut before its end has not stopped by itself.
    result.finish =
        answer.finish == Finish::Stop && n < answer.tokens.size() ? Finish::Length : answer.finish;
    result.ids.assign(answer.tokens.begin(), answer.tokens.begin() + n);
    result.log_prob.assign(answer.log_prob.begin(), answer.log_prob.begin() + n);
    result.entropy.assign(answer.entropy.begin(), answer.entropy.begin() + n);
    result.steps = std::move(answer.steps);
    result.denoise_ms = answer.denoise_ms;
    result.commit_ms = answer.commit_ms;
    result.hash = hash_ids(result.ids);
    if (!answer.note.empty()) result.note = std::move(answer.note);
    if (infilled) {
        result.text = tokenizer_->decode(result.ids, false);
        result.holes = filled_holes(canvas, result, *tokenizer_);
    } else {
        Reply reply = split_reply(*tokenizer_, result.ids, request.ignore_eos);
        result.text = std::move(reply.answer);
        result.thought = std::move(reply.thought);
    }
    result.stop = cut_at_stop(result.text, request.stop);
    if (!result.stop.empty() && result.finish != Finish::Cancelled) result.finish = Finish::Stop;
}

}  // namespace easel
