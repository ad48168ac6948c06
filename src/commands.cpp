// commands.cpp: generate, logits, tokenize, info and convert as a user meets them: files in, text out, one
// line of statistics. Called by main.
#include "commands.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>

#include "check.h"
#include "convert.h"
#include "infill.h"
#include "memory_plan.h"
#include "models.h"
#include "text.h"
#include "trace.h"
#include "whole_file.h"

namespace easel {

namespace {

// Whitespace-separated decimals.
std::vector<int32_t> parse_ids(std::string_view text, const std::string& name) {
    text = without_mark(text);
    std::vector<int32_t> ids;
    for (size_t at = text.find_first_not_of(" \t\r\n"); at != text.npos;) {
        const size_t end = std::min(text.find_first_of(" \t\r\n", at), text.size());
        const std::string word(text.substr(at, end - at));
        const bool digits = word.size() <= 9 && word.find_first_not_of("0123456789") == std::string::npos;
        require(digits,
                "{}: \"{}\" at offset {} is not a token id, expected decimal numbers separated by whitespace",
                name, word.substr(0, 32), at);
        ids.push_back(std::stoi(word));
        at = text.find_first_not_of(" \t\r\n", end);
    }
    return ids;
}

std::vector<int32_t> read_ids(const std::string& path) {
    const std::string name = input_name(path);
    std::vector<int32_t> ids = parse_ids(read_input(path), name);
    require(!ids.empty(), "{}: holds no token ids, expected at least one", name);
    return ids;
}

volatile std::sig_atomic_t interrupted = 0;  // by this signal

// The first of these signals asks what runs to end soon; a second one ends the program at once. Those that
// are ignored stay so, as nohup has SIGHUP; but a script has Ctrl-C ignored by what it runs in the
// background.
void catch_interrupt(std::initializer_list<int> signals = {SIGINT}) {
    const auto handler = [](int number) {
        if (interrupted) {
            abandon_view();
            std::signal(number, SIG_DFL);
            std::raise(number);
        }
        interrupted = number;
    };
    for (const int number : signals)
        if (std::signal(number, handler) == SIG_IGN && number != SIGINT) std::signal(number, SIG_IGN);
}

double rate(double n, double ms) {
    return ms > 0 ? n * 1000 / ms : 0;
}

// "2=red|green": texts for hole 2.
void add_choices(const std::string& flag, std::map<int, std::vector<std::string>>& choices) {
    const size_t equals = flag.find('=');
    int hole = 0;
    const auto [end, error] = std::from_chars(flag.data(), flag.data() + std::min(equals, flag.size()), hole);
    require(equals != flag.npos && error == std::errc() && end == flag.data() + equals,
            "choices are \"{}\", expected HOLE=TEXT|TEXT with the hole's number", flag);
    std::vector<std::string>& texts = choices[hole];
    require(texts.empty(), "choices for hole {} are given twice", hole);
    texts = split_options(std::string_view(flag).substr(equals + 1));
}

// The request, as far as it can be made without the model.
Request make_request(const GenerateFlags& f) {
    const int n_source = f.prompt.has_value() + !f.prompt_file.empty() + !f.prompt_ids.empty();
    require(n_source == 1, "{} prompts given, expected one of -p TEXT, -f FILE and --prompt-ids FILE",
            n_source);
    Request r;
    if (!f.prompt_ids.empty()) {
        require(!f.raw && f.system.empty() && !f.think,
                "--prompt-ids cannot be combined with --raw, --system or --think");
        r.prompt_ids = read_ids(f.prompt_ids);
    } else {
        std::string text = f.prompt.value_or("");
        if (f.prompt == "-") text = without_mark(read_input("-"));
        if (!f.prompt_file.empty()) text = without_mark(read_input(f.prompt_file));
        if (f.raw) {
            require(f.system.empty() && !f.think, "--raw cannot be combined with --system or --think");
            r.raw = std::move(text);
        } else {
            if (!f.system.empty()) r.messages.push_back({Role::System, f.system});
            r.messages.push_back({Role::User, std::move(text)});
        }
    }
    r.think = f.think;
    r.seed = f.seed;
    r.n_token = f.n_token;
    r.ignore_eos = f.ignore_eos;
    r.stop = f.stop;
    r.canvas = f.canvas;
    for (const std::string& flag : f.choices) add_choices(flag, r.choices);
    require(!f.canvas || !f.n_token,
            "--canvas cannot be combined with -n: its text and holes set its length");
    r.n_retry = f.n_retry;
    r.n_best = f.n_best;
    return r;
}

std::string ids_text(std::span<const int32_t> ids) {
    return fmt::format("{}\n", fmt::join(ids, " "));
}

std::string result_json(const Result& r) {
    nlohmann::ordered_json j;
    j["text"] = r.text;
    j["thought"] = r.thought;
    j["ids"] = r.ids;
    j["log_probs"] = r.log_prob;
    j["entropies"] = r.entropy;
    j["mean_log_prob"] = r.mean_log_prob();
    for (const Filled& f : r.holes)
        j["holes"].push_back({{"text", f.text}, {"ids", f.ids}, {"confidence", f.confidence}});
    j["finish_reason"] = finish_name(r.finish);
    if (!r.stop.empty()) j["stop"] = r.stop;
    j["seed"] = r.seed;
    j["tries"] = r.n_try;
    j["prompt_tokens"] = r.n_prompt;
    j["canvases"] = r.steps.size();
    j["steps"] = r.n_step();
    j["steps_per_canvas"] = r.steps;
    j["timings_ms"] = {{"encode", r.encode_ms}, {"denoise", r.denoise_ms}, {"commit", r.commit_ms}};
    j["hash"] = fmt::format("{:016x}", r.hash);
    // A cut answer can end inside a character: such bytes are replaced, not refused.
    return j.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

void print_statistics(const Result& r) {
    const int n_step = r.n_step();
    const double n_canvases = static_cast<double>(std::max<size_t>(r.steps.size(), 1));
    const double total_ms = r.encode_ms + r.denoise_ms + r.commit_ms;
    tell(fmt::format(
        "prompt {}, {:.0f} tok/s | {}, {}, {:.2f} ms a step | answer {}, {:.0f} tok/s, {:.1f} steps a "
        "canvas, {} | {}hash {:016x}\n",
        counted(r.n_prompt, "token"), rate(r.n_prompt - r.n_reused, r.encode_ms),
        counted(r.steps.size(), "canvas", "canvases"), counted(n_step, "step"),
        n_step ? r.denoise_ms / n_step : 0.0, counted(r.ids.size(), "token"),
        rate(static_cast<double>(r.ids.size()), total_ms), n_step / n_canvases, finish_name(r.finish),
        r.n_try > 1 ? fmt::format("seed {}, of {} answers | ", r.seed, r.n_try) : "", r.hash));
}

// A step's canvas on one line: what was accepted, and a dot for every token that is still noise.
std::string step_line(const Tokenizer& tokenizer, const Frame& f) {
    std::string canvas;
    for (size_t i = 0; i < f.tokens.size(); i++) {
        const bool end = tokenizer.is_end(f.tokens[i]);
        if (f.accepted[i] && end) break;
        std::string text = f.accepted[i] ? tokenizer.decode(f.tokens.subspan(i, 1), false) : "\u00b7";
        std::replace(text.begin(), text.end(), '\n', ' ');
        canvas += text;
    }
    return fmt::format("step {:>2}  mean entropy {:.3f}  {}\n", f.step + 1, f.mean_entropy,
                       safe_line(canvas));
}

}  // namespace

void warn(const Model& model) {
    for (const std::string& text : model.warnings) tell(fmt::format("easel: warning: {}\n", text));
}

const char* finish_name(Finish finish) {
    return finish == Finish::Stop ? "stop" : finish == Finish::Length ? "length" : "cancelled";
}

bool write_stdout(std::string_view text) {
    const bool ok = std::fflush(stdout) == 0 && write_all(STDOUT_FILENO, text);
    require(ok || errno == EPIPE, "cannot write to stdout: {}", std::strerror(errno));
    return ok;
}

void write_output(const std::string& path, std::string_view text) {
    if (path.empty() || path == "-")
        write_stdout(text);
    else
        write_file(path, text);
}

Engine open_engine(EngineOptions options) {
    ProgressLine progress;
    options.on_load = [&](int64_t done, int64_t total) {
        progress.show(fmt::format("loading weights: {} of {}", human_bytes(done), human_bytes(total)));
        return true;
    };
    Engine engine(options);
    progress.clear();
    if (!engine.note().empty()) tell(fmt::format("easel: {}\n", engine.note()));
    return engine;
}

static std::string plan_text(const MemoryPlan& p) {
    return fmt::format("{:>10} = weights {} + KV {} + buffers {} (passes of {} tokens)",
                       human_bytes(p.total()), human_bytes(p.weights), human_bytes(p.kv),
                       human_bytes(p.scratch), p.n_encode);
}

// What -v tells before the answer.
static void print_memory(Engine& engine) {
    tell(fmt::format("{}, context {}: {}\n", engine.device(), engine.n_context(),
                     plan_text(engine.backend().plan())));
    const LoadStats s = engine.backend().load_stats();
    if (!s.bytes) return;
    const double gb = static_cast<double>(s.bytes) / 1e9;
    tell(fmt::format(
        "loaded {} in {:.2f} s ({:.1f} GB/s): the host read for {:.2f} s and waited for {:.2f} s, the "
        "bus took {:.2f} s ({:.1f} GB/s), repacking {:.2f} s\n",
        human_bytes(s.bytes), s.total_ms / 1e3, gb * 1e3 / s.total_ms, s.read_ms / 1e3, s.wait_ms / 1e3,
        s.copy_ms / 1e3, gb * 1e3 / s.copy_ms, s.repack_ms / 1e3));
}

int run_generate(const GenerateFlags& flags) {
    require(!flags.show_steps || flags.view.view != "on", "--show-steps cannot be combined with --view on");
    require(!flags.quiet || !flags.verbose, "--quiet cannot be combined with --verbose");
    require(!flags.trace || (flags.n_best == 1 && flags.n_retry == 0),
            "--trace cannot be combined with --best-of or --retry-empty: a trace is of one answer");
    if (flags.trace) require_other(*flags.trace, {flags.prompt_file, flags.prompt_ids}, "an input");
    Request request = make_request(flags);  // a wrong flag is told before a model is loaded
    set_utf8_locale();
    Engine engine = open_engine(flags.engine);
    if (flags.verbose) print_memory(engine);
    request.sampler = engine.model().config.sampler;
    for (const auto& change : flags.sampler_changes) change(*request.sampler);
    std::optional<TraceWriter> trace;
    if (flags.trace) {
        engine.check(request);  // before the trace replaces an older one
        trace.emplace(*flags.trace, engine, request);
    }
    catch_interrupt();
    ViewFlags view_flags = flags.view;
    if (flags.show_steps || (flags.quiet && view_flags.view == "auto")) view_flags.view = "off";
    View view(engine.tokenizer(), view_flags, request.sampler->max_steps, request.ignore_eos);
    ProgressLine progress;
    Result result = engine.generate(
        request,
        [&](const Frame& f) {
            if (trace) trace->step(f);
            if (flags.show_steps)
                tell(step_line(engine.tokenizer(), f));
            else if (view.on())
                view.frame(f);
            else if (!flags.quiet)
                progress.show(fmt::format("canvas {}, step {}, mean entropy {:.3f}", f.canvas + 1, f.step + 1,
                                          f.mean_entropy));
            return !interrupted;
        },
        [&](int done, int total) {
            if (view.on())
                view.encoding(done, total);
            else if (done < total && !flags.quiet)
                progress.show(fmt::format("encoding the prompt: {} of {} tokens", done, total));
            return !interrupted;
        });
    progress.clear();
    view.finish();
    if (trace) trace->end(result);
    result.denoise_ms = std::max(0.0, result.denoise_ms - view.paused_ms(result.seed - flags.seed));
    const bool to_terminal = isatty(STDOUT_FILENO);
    const std::string text = flags.print == "json"  ? result_json(result)
                             : flags.print == "ids" ? ids_text(result.ids)
                             : to_terminal          ? terminal_text(result.text) + "\n"
                                                    : result.text + "\n";
    if (!result.thought.empty() && flags.print == "text")
        tell(fmt::format("thought: {}\n", terminal_text(result.thought)));
    write_stdout(text);
    warn(engine.model());
    if (!result.note.empty()) tell(fmt::format("easel: {}\n", result.note));
    if (!flags.quiet) print_statistics(result);
    if (trace) trace->close();  // after the answer: a full disk does not lose it
    return result.finish == Finish::Cancelled ? kInterrupted : 0;
}

int run_logits(const LogitsFlags& flags) {
    require_other(flags.output, {flags.canvas_ids, flags.prompt_ids, flags.prev_logits}, "an input");
    const std::vector<int32_t> canvas = read_ids(flags.canvas_ids);
    std::vector<int32_t> prompt;
    if (!flags.prompt_ids.empty()) prompt = read_ids(flags.prompt_ids);
    EngineOptions options = flags.engine;
    // The least context that does: the most that fits would leave no memory for the logits.
    if (!options.n_context) options.n_context = static_cast<int>(prompt.size() + canvas.size());
    Engine engine = open_engine(options);
    require_other(flags.output, engine.model().file->files(), "the model itself");
    const Config& c = engine.model().config;
    const size_t n = size_t(c.n_canvas) * c.n_vocab;
    require(canvas.size() == size_t(c.n_canvas), "{}: holds {} ids, expected {} (the canvas)",
            input_name(flags.canvas_ids), canvas.size(), c.n_canvas);
    std::vector<float> prev, out(n);
    if (!flags.prev_logits.empty()) {
        const std::string bytes = read_file(flags.prev_logits);
        require(bytes.size() == n * sizeof(float), "{}: holds {} bytes, expected {} (float32 [{}, {}])",
                flags.prev_logits, bytes.size(), n * sizeof(float), c.n_canvas, c.n_vocab);
        prev.resize(n);
        std::memcpy(prev.data(), bytes.data(), bytes.size());
        for (float v : prev)
            require(std::isfinite(v), "{}: holds {}, expected finite numbers", flags.prev_logits, v);
    }
    engine.backend().encode(prompt);
    engine.backend().logits({canvas, prev, flags.prev_temperature}, out);
    write_output(flags.output, {reinterpret_cast<const char*>(out.data()), n * sizeof(float)});
    warn(engine.model());
    return 0;
}

int run_tokenize(const TokenizeFlags& flags) {
    const auto file = open_model(flags.model);
    const Tokenizer tokenizer(*file);
    const std::string input = read_input("-");
    if (flags.decode)
        write_stdout(tokenizer.decode(parse_ids(input, "stdin"), flags.special));
    else
        write_stdout(
            ids_text(tokenizer.encode(input, flags.special ? Specials::All : Specials::UserDefined)));
    return 0;
}

static std::string value_text(const Value& v) {
    constexpr uint64_t kShown = 8;
    if (v.type == ValueType::String) {
        return fmt::format("\"{}\"{}", safe_line(v.string[0].substr(0, 60)),
                           v.string[0].size() > 60 ? fmt::format("... ({} bytes)", v.string[0].size()) : "");
    }
    const auto number = [](ValueType type, double x) {  // a float as short as a float can be told
        return type == ValueType::F32 ? fmt::format("{}", static_cast<float>(x)) : fmt::format("{}", x);
    };
    if (v.type == ValueType::I64 || v.type == ValueType::U64) return fmt::format("{}", to_integer(v));
    if (!v.is_array()) return number(v.type, to_double(v));
    if (v.item == ValueType::String) return fmt::format("{} strings", v.count);
    std::string s;
    for (uint64_t i = 0; i < std::min(v.count, kShown); i++)
        s += (i ? ", " : "") + number(v.item, item_to_double(v, i));
    return fmt::format("[{}{}] {} x {}", s, v.count > kShown ? ", ..." : "", v.count,
                       value_type_name(v.item));
}

static std::string cpu_memory_text(const Model& model, const InfoFlags& flags, int& n_context) {
    if (flags.memory_limit) n_context = fit_cpu(model, flags.n_context, flags.memory_limit);
    return fmt::format("  CPU  {}; weights stay in the mapped file\n", plan_text(plan_cpu(model, n_context)));
}

static std::string gpu_memory_text(const Model& model, const InfoFlags& flags, int& n_context) {
    DeviceOptions options;
    options.n_context = flags.memory_limit ? flags.n_context : n_context;
    options.n_offload = flags.n_offload;
    if (const auto devices = cuda_devices(); !devices.empty()) options.n_sm = devices[0].n_sm;
    if (flags.memory_limit) options = fit_gpu(model, options, flags.memory_limit);
    n_context = options.n_context;
    options.n_offload = std::max(options.n_offload, 0);
    const MemoryPlan p = plan_gpu(model, options);
    return fmt::format("  GPU  {}, and {} for the driver\n", plan_text(p), human_bytes(kDeviceSlack)) +
           (p.host ? fmt::format("       {}\n", offload_cost(p)) : "");
}

// The memory figures of `easel info`. Within a limit, each device has the longest context that fits it.
static std::string memory_text(const Model& model, const InfoFlags& flags) {
    const Config& c = model.config;
    require(flags.n_context <= c.n_context, "context is {}, expected 1 to {}", flags.n_context, c.n_context);
    std::string out;
    int n_shown = 0;
    const auto add = [&](auto text_of) {
        int n_context = flags.n_context ? flags.n_context : std::min(8192, c.n_context);
        std::string text;
        try {
            text = text_of(model, flags, n_context);
        } catch (const Error& e) {  // the other device may have room
            if (flags.device != "all" || !flags.memory_limit) throw;
            out += fmt::format("no memory plan: {}\n", e.what());
            return;
        }
        if (n_context != n_shown) out += fmt::format("memory at a context of {} tokens\n", n_context);
        n_shown = n_context;
        out += text;
    };
    if (flags.device != "cuda") add(cpu_memory_text);
    if (flags.device != "cpu") add(gpu_memory_text);
    return out;
}

// What a GGUF file holds, whether or not it is a model.
static std::string file_text(const Gguf& file) {
    std::string out = fmt::format("{}: GGUF version {}, {}, {} keys, {} tensors\n", file.name(),
                                  file.version(), human_bytes(static_cast<int64_t>(file.file_bytes())),
                                  file.values().size(), file.tensors().size());
    for (const auto& [key, value] : file.values())
        out += fmt::format("  {} = {}\n", safe_line(key), value_text(value));

    std::map<std::string_view, std::pair<int, int64_t>> by_type;  // number of tensors, bytes
    for (const Tensor& t : file.tensors()) {
        auto& [n, bytes] = by_type[type_info(t.type).name];
        n++;
        bytes += static_cast<int64_t>(t.bytes);
    }
    out += "tensors by type\n";
    for (const auto& [name, sum] : by_type)
        out += fmt::format("  {:<7} {:>5}  {:>10}\n", name, sum.first, human_bytes(sum.second));
    return out;
}

static std::string model_text(const Model& model, const InfoFlags& flags) {
    const Config& c = model.config;
    const int64_t n_global =
        std::count_if(c.layers.begin(), c.layers.end(), [](const LayerShape& l) { return l.global; });
    std::string out = fmt::format(
        "model: {} layers ({} global), width {}, {} experts of {} ({} used), dense {}, canvas {}, window {}, "
        "vocabulary {}, {:.2f} M parameters\n",
        c.n_layer, n_global, c.n_embd, c.n_expert, c.n_ff_exp, c.n_expert_used, c.n_ff, c.n_canvas, c.window,
        c.n_vocab, static_cast<double>(model.n_parameters()) / 1e6);
    out += memory_text(model, flags);
    std::string why;
    const std::vector<DeviceInfo> devices = cuda_devices(&why);
    for (const DeviceInfo& d : devices)
        out += fmt::format("  cuda:{} {}, compute capability {}.{}, {}, driver for CUDA {}.{}\n", d.index,
                           d.name, d.capability / 10, d.capability % 10, human_bytes(d.total_bytes),
                           d.driver / 1000, d.driver % 1000 / 10);
    if (!why.empty()) out += fmt::format("  {} GPU in use: {}\n", devices.empty() ? "no" : "not every", why);
    for (const std::string& text : model.warnings) out += fmt::format("warning: {}\n", text);
    return out;
}

int run_info(const InfoFlags& flags) {
    require(flags.n_offload <= 0 || flags.device != "cpu",
            "device is cpu, expected cuda or all for --expert-offload");
    const auto file = open_model(flags.model);
    const std::string listing = file_text(*file);
    std::optional<Model> model;
    try {
        model.emplace(file);
    } catch (const Error&) {
        write_stdout(listing);
        throw;
    }
    write_stdout(listing + model_text(*model, flags));
    return 0;
}

int run_convert(const ConvertFlags& flags) {
    ProgressLine progress;
    ConvertOptions options;
    options.type = flags.type;
    options.progress = [&](uint64_t done, uint64_t total, std::string_view tensor) {
        progress.show(fmt::format("{:3.0f} % of {}  {}",
                                  total ? 100.0 * static_cast<double>(done) / static_cast<double>(total) : 0,
                                  human_bytes(static_cast<int64_t>(total)), safe_line(tensor)));
        return !interrupted;
    };
    catch_interrupt({SIGINT, SIGTERM, SIGHUP});  // all of them leave no half a file
    return convert(find_model(flags.source), flags.target, options) ? 0 : 128 + interrupted;
}

}  // namespace easel
