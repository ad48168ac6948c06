// main.cpp: the command line. Parses flags, runs one command, and reports the Error that ends it.
#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <vector>

#include "check.h"
#include "commands.h"
#include "help.h"
#include "sampler_settings.h"
#include "text.h"

namespace {

using namespace easel;

constexpr const char* kDevices = "{auto,cpu,cuda,cuda:N}";  // help.cpp reads the words there
constexpr const char* kModelText = "GGUF file or fetched model (default: built-in demo)";

// All of s as a decimal number; none with a leading 0 or 0x, as CLI11, which parses s again after the check,
// would take 010 for 8 and 0x10 for 16.
template <class T>
std::optional<T> parse_decimal(const std::string& s) {
    T value{};
    const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), value);
    const size_t first = s.starts_with('-');
    const bool octal = std::is_integral_v<T> && s.size() > first + 1 && s[first] == '0';
    if (error != std::errc() || end != s.data() + s.size() || octal) return std::nullopt;
    return value;
}
template <class T>
constexpr const char* number_text = std::is_integral_v<T> ? "whole number" : "number";

// Checks for CLI11, whose messages say what was expected, and what was given: in quotes, as it may be empty.
template <class T>
std::string check_number(const std::string& s) {
    return parse_decimal<T>(s) ? "" : fmt::format("\"{}\" is not a {}", s, number_text<T>);
}
template <class T>
CLI::Validator in_range(T low, T high) {
    const auto check = [=](const std::string& s) {
        const std::optional<T> value = parse_decimal<T>(s);
        const bool fits = value && *value >= low && *value <= high;
        return fits ? "" : fmt::format("\"{}\" is not a {} from {} to {}", s, number_text<T>, low, high);
    };
    return {check, ""};
}
CLI::Validator one_of(const std::vector<std::string>& words) {
    const auto check = [words](const std::string& s) {
        const bool found = std::find(words.begin(), words.end(), s) != words.end();
        return found ? "" : fmt::format("\"{}\" is none of {}", s, fmt::join(words, ", "));
    };
    return {check, fmt::format("{{{}}}", fmt::join(words, ","))};  // help.cpp reads the words there
}

// Every CLI flag that stands for a sampler setting. A flag that is given notes what it changes in the model's
// settings.
void add_sampler_flags(CLI::App& app, std::vector<std::function<void(SamplerConfig&)>>& changes) {
    constexpr const char* group = "Sampler settings (default: the model's)";
    for (const SamplerSetting& setting : kSamplerSettings) {
        std::string name = fmt::format("--{}", setting.name);
        std::replace(name.begin(), name.end(), '_', '-');
        const auto add = [&]<class T>(T SamplerConfig::*member) {
            const auto note = [&changes, member](const T& v) {
                changes.push_back([member, v](SamplerConfig& s) { s.*member = v; });
            };
            if constexpr (std::is_same_v<T, bool>)
                app.add_flag_callback(
                       name, [note] { note(true); }, setting.text)
                    ->group(group)
                    ->disable_flag_override();
            else
                app.add_option_function<T>(name, note, setting.text)->check(check_number<T>)->group(group);
        };
        std::visit(add, setting.member);
    }
}

// "16G", "16gb", "24576M" or bytes; units are powers of 1000.
int64_t parse_bytes(const std::string& given) {
    double value = 0;
    const std::string text = CLI::detail::to_lower(given);
    const char* last = text.data() + text.size();
    const auto [end, error] = std::from_chars(text.data(), last, value);
    std::string_view unit(end, static_cast<size_t>(last - end));
    if (unit.size() == 2 && unit[1] == 'b') unit.remove_suffix(1);
    const size_t power = unit.empty() ? 0 : std::string_view("kmgt").find(unit) + 1;
    const double bytes = value * std::pow(1000.0, static_cast<double>(power));
    require(
        error == std::errc() && unit.size() <= 1 && (unit.empty() || power > 0) && bytes >= 1 && bytes < 1e18,
        "--memory-limit is {}, expected bytes, or a number with K, M, G or T, such as 16G", given);
    return static_cast<int64_t>(bytes);
}

// --help only names the options of these groups.
constexpr const char* kDeviceGroup = "Device and memory";
constexpr const char* kDisplayGroup = "Display";

void add_offload_flag(CLI::App& app, int& n_offload, const std::string& by_default,
                      const std::string& group) {
    app.add_option(
           "--expert-offload", n_offload,
           "on a GPU: number of layers whose experts stay in host memory and are copied at every step "
           "(default: " +
               by_default + ")")
        ->check(in_range(0, 1 << 20))
        ->group(group);
}
void add_memory_flags(CLI::App& app, int64_t& limit, int& n_offload, const std::string& group) {
    const auto note = [&limit](const std::string& text) { limit = parse_bytes(text); };
    app.add_option_function<std::string>(
           "--memory-limit", note,
           "maximum memory to use, such as 16G: GPU memory or, on a CPU, memory besides the mapped file")
        ->type_name("BYTES")
        ->group(group);
    add_offload_flag(app, n_offload, "as few as needed", group);
}

void add_engine_flags(CLI::App& app, EngineOptions& e) {
    app.add_option("-m,--model", e.model, kModelText)->type_name(kModel);
    app.add_option("-t,--threads", e.n_thread, "CPU threads (default: all cores)")->check(in_range(1, 4096));
    app.add_option("-c,--context", e.n_context, "context length (default: the model's, or what fits)")
        ->check(in_range(1, 1 << 30));
    app.add_option("--device", e.device,
                   "where to run (default: auto, the first GPU if the model fits there, else the CPU)")
        ->type_name(kDevices)
        ->group(kDeviceGroup);
    add_memory_flags(app, e.memory_limit, e.n_offload, kDeviceGroup);
    app.add_option_function<std::string>(
           "--cpu-math",
           [&e](const std::string& name) { e.cpu_math = name == "int8" ? CpuMath::Int8 : CpuMath::Float; },
           "on a CPU: arithmetic (default: float); int8 is faster: 8-bit activations, nearly the same logits")
        ->check(one_of({"float", "int8"}))
        ->group(kDeviceGroup);
    app.add_flag("--exact", e.exact, "on a GPU: float32 throughout, for comparisons; slow, needs more memory")
        ->disable_flag_override()
        ->group(kDeviceGroup);
    app.add_flag("--host-loop{false}", e.graph_loop,
                 "on a GPU: the host launches every kernel, without CUDA graphs")
        ->disable_flag_override()
        ->group(kDeviceGroup);
    app.add_flag("--in-order{false}", e.overlap,
                 "on a GPU: kernels do not overlap (no programmatic dependent launch), for comparisons")
        ->disable_flag_override()
        ->group(kDeviceGroup);
}

void add_seed_flag(CLI::App& app, uint64_t& seed) {
    app.add_option("--seed", seed, "random seed, 64 bits (default: 0)")
        ->check(in_range<uint64_t>(0, UINT64_MAX));
}

void add_view_flags(CLI::App& app, ViewFlags& v) {
    app.add_option("--view", v.view,
                   "redraw the canvas in place while it settles (default: auto, on a terminal)")
        ->check(one_of({"auto", "on", "off"}))
        ->group(kDisplayGroup);
    app.add_option("--color", v.color, "use colours (default: auto, on a terminal unless $NO_COLOR is set)")
        ->check(one_of({"auto", "always", "never"}))
        ->group(kDisplayGroup);
    app.add_option("--view-delay", v.delay_ms, "milliseconds to pause after each step shown (default: 0)")
        ->check(in_range(0, 60000))
        ->group(kDisplayGroup);
}

// A command, and what runs it once its flags have been read.
struct Command {
    CLI::App* app;
    std::function<int()> run;
};

Command generate_command(CLI::App& app) {
    const auto flags = std::make_shared<GenerateFlags>();
    GenerateFlags& f = *flags;
    CLI::App* c =
        app.add_subcommand("generate", "answer one prompt; the text goes to stdout, statistics to stderr");
    add_engine_flags(*c, f.engine);
    c->add_option("-p,--prompt", f.prompt, "the prompt; - reads it from stdin");
    c->add_option("-f,--file", f.prompt_file, "file with the prompt")->type_name(kFileOrStream);
    c->add_option("--prompt-ids", f.prompt_ids, "file with the prompt as token ids; no chat template")
        ->type_name(kFileOrStream);
    c->add_option("-s,--system", f.system, "system prompt");
    c->add_flag("--think,!--no-think", f.think, "let the model think first (default: no)");
    c->add_flag("--raw", f.raw, "no chat template; recognise control tokens")->disable_flag_override();
    c->add_option("-n,--tokens", f.n_token, "maximum answer tokens (default: 2048, or what fits)")
        ->check(in_range(1, 1 << 30));
    add_seed_flag(*c, f.seed);
    c->add_option("--stop", f.stop, "end the text before TEXT; may be repeated")->allow_extra_args(false);
    c->add_option("--canvas", f.canvas, "answer with holes to fill: [[8]], [[A|B]] or [[*]]");
    c->add_option("--choices", f.choices, "HOLE=A|B: choices for hole number HOLE; repeatable")
        ->allow_extra_args(false);
    c->add_option("--retry-empty", f.n_retry, "new seeds to try on an empty answer (default: 0)")
        ->check(in_range(0, 1000));
    c->add_option("--best-of", f.n_best, "answers to make; keep the most probable (default: 1)")
        ->check(in_range(1, 1000));
    c->add_flag("--ignore-eos", f.ignore_eos, "continue past end-of-generation tokens")
        ->disable_flag_override();
    c->add_flag("--show-steps", f.show_steps, "print the canvas to stderr, one line per step")
        ->disable_flag_override()
        ->group(kDisplayGroup);
    c->add_flag("-q,--quiet", f.quiet, "no progress and no statistics on stderr")->disable_flag_override();
    c->add_flag("-v,--verbose", f.verbose, "memory use and loading time on stderr")->disable_flag_override();
    c->add_option("--trace", f.trace, "write every step to FILE, for easel trace")->type_name(kFile);
    c->add_option("--print", f.print, "what to print to stdout (default: text)")
        ->check(one_of({"text", "ids", "json"}));
    add_view_flags(*c, f.view);
    add_sampler_flags(*c, f.sampler_changes);
    c->footer(
        "easel generate -p \"What is 47 + 35?\" --show-steps\n"
        "easel generate -m q4_k_m -f question.txt -n 512 --seed 7 --print json");
    return {c, [flags] { return run_generate(*flags); }};
}

Command chat_command(CLI::App& app) {
    const auto flags = std::make_shared<ChatFlags>();
    ChatFlags& f = *flags;
    CLI::App* c = app.add_subcommand("chat", "hold a conversation; /help there lists its commands");
    add_engine_flags(*c, f.engine);
    c->add_option("-s,--system", f.system, "system prompt");
    c->add_flag("--think,!--no-think", f.think, "let the model think first (default: no)");
    c->add_option("-n,--tokens", f.n_token, "maximum answer tokens (default: 2048, or what fits)")
        ->check(in_range(1, 1 << 30));
    add_seed_flag(*c, f.seed);
    c->add_flag("--history,!--no-history", f.history, "save typed lines to a history file (default: yes)");
    add_view_flags(*c, f.view);
    add_sampler_flags(*c, f.sampler_changes);
    c->footer("easel chat -m q4_k_m\neasel chat --system \"Answer in one word.\" --seed 7");
    return {c, [flags] { return run_chat(*flags); }};
}

Command pipe_command(CLI::App& app) {
    const auto flags = std::make_shared<PipeFlags>();
    PipeFlags& f = *flags;
    CLI::App* c = app.add_subcommand("pipe", "answer requests: JSON lines on stdin, JSON lines on stdout");
    add_engine_flags(*c, f.engine);
    c->add_option("--queue", f.n_queue, "maximum lines to read ahead (default: 64)")
        ->check(in_range(1, 1 << 20));
    c->add_flag("--unordered", f.unordered,
                "answer next the prompt that shares the longest prefix with the last one")
        ->disable_flag_override();
    c->add_flag("--schema", f.schema, "print the keys of requests and answers")->disable_flag_override();
    add_sampler_flags(*c, f.sampler_changes);
    c->footer(
        "echo '{\"id\": 1, \"prompt\": \"What is 47 + 35?\"}' | easel pipe\n"
        "easel pipe -m q4_k_m <requests.jsonl >answers.jsonl");
    return {c, [flags] { return run_pipe(*flags); }};
}

Command info_command(CLI::App& app) {
    const auto flags = std::make_shared<InfoFlags>();
    InfoFlags& f = *flags;
    CLI::App* c = app.add_subcommand("info", "show what a GGUF file holds and the memory it needs");
    c->add_option("file,-m,--model", f.model, kModelText)->type_name(kModel);
    c->add_option("-c,--context", f.n_context,
                  "context length to plan memory for (default: 8192, or the longest within --memory-limit)")
        ->check(in_range(1, 1 << 30));
    c->add_option("--device", f.device, "device to plan memory for (default: all)")
        ->check(one_of({"cpu", "cuda", "all"}));
    add_memory_flags(*c, f.memory_limit, f.n_offload, c->option_defaults()->get_group());
    c->footer("easel info q4_k_m -c 32768");
    return {c, [flags] { return run_info(*flags); }};
}

Command tokenize_command(CLI::App& app) {
    const auto flags = std::make_shared<TokenizeFlags>();
    TokenizeFlags& f = *flags;
    CLI::App* c = app.add_subcommand("tokenize", "convert text on stdin to token ids on stdout, or back");
    c->add_option("-m,--model", f.model, kModelText)->type_name(kModel);
    c->add_flag("--special", f.special, "recognise control tokens (with --decode: show them)")
        ->disable_flag_override();
    c->add_flag("--decode", f.decode, "convert token ids on stdin to text on stdout")
        ->disable_flag_override();
    c->footer("echo hello | easel tokenize -m q4_k_m\necho 9259 | easel tokenize -m q4_k_m --decode");
    return {c, [flags] { return run_tokenize(*flags); }};
}

Command logits_command(CLI::App& app) {
    const auto flags = std::make_shared<LogitsFlags>();
    LogitsFlags& f = *flags;
    CLI::App* c = app.add_subcommand(
        "logits", "write the softcapped logits of one denoise pass, float32 [canvas, vocabulary]");
    add_engine_flags(*c, f.engine);
    c->get_option("--context")->description("context length (default: prompt and canvas)");
    c->add_option("--prompt-ids", f.prompt_ids, "file with the prompt's token ids (default: no prompt)")
        ->type_name(kFileOrStream);
    c->add_option("--canvas-ids", f.canvas_ids, "file with the canvas's token ids")
        ->required()
        ->type_name(kFileOrStream);
    c->add_option("--prev-logits", f.prev_logits,
                  "logits of the previous step, as written by this command, for self-conditioning")
        ->type_name(kFile);
    c->add_option("--prev-temperature", f.prev_temperature, "temperature of that step (default: 1)")
        ->check(in_range(1e-3, 1e3));
    c->add_option("-o,--output", f.output, "file to write")->required()->type_name(kFileOrStream);
    c->footer("easel logits --prompt-ids prompt.txt --canvas-ids canvas.txt -o logits.f32");
    return {c, [flags] { return run_logits(*flags); }};
}

Command convert_command(CLI::App& app) {
    const auto flags = std::make_shared<ConvertFlags>();
    ConvertFlags& f = *flags;
    CLI::App* c = app.add_subcommand("convert", "convert a Hugging Face folder or a GGUF file to GGUF");
    c->add_option("source", f.source,
                  "folder with config.json and model*.safetensors, a GGUF file, or a fetched model's name")
        ->required()
        ->type_name(kModel);
    c->add_option("target", f.target, "GGUF file to write")->required()->type_name(kFile);
    c->add_option("--type", f.type, "type of the weight matrices")
        ->required()
        ->transform([](const std::string& type) { return CLI::detail::to_lower(type); })
        ->check(one_of({"f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"}));
    c->footer("easel convert FOLDER model.gguf --type q4_k_m");
    return {c, [flags] { return run_convert(*flags); }};
}

Command bench_command(CLI::App& app) {
    const auto flags = std::make_shared<BenchFlags>();
    BenchFlags& f = *flags;
    CLI::App* c = app.add_subcommand(
        "bench", "time passes and the parts of a step against the machine's measured peaks");
    const std::vector<std::string> what = {"step", "kernels", "prefill", "load", "cpu", "all"};
    c->add_option("what", f.what,
                  "on a GPU: step (part by part), kernels (each alone), prefill (by prompt length) or load; "
                  "on a CPU: cpu (both passes) or prefill (default: all)")
        ->check(one_of(what));
    c->add_option("-m,--model", f.model, "GGUF file or fetched model (default: --synthetic)")
        ->type_name(kModel);
    c->add_option("--synthetic", f.synthetic,
                  "random weights in this model's shapes; append a type, as in mid:q8_0 (default: "
                  "26b-a4b:q4_k_m on a GPU, mid:q4_k_m on a CPU)")
        ->type_name("{26b-a4b,mid,toy}");
    c->add_option("--router-skew", f.router_skew,
                  "random weights only: the expert of rank r gets a share of the tokens proportional to r^-X "
                  "(default: 0, equal shares)")
        ->check(in_range(0.0, 8.0));
    c->add_option("--device", f.device,
                  "device to time (default: auto, the first GPU if there is one, else the CPU)")
        ->type_name(kDevices);
    add_offload_flag(*c, f.n_offload, "0", c->get_option("--device")->get_group());
    c->add_option("-t,--threads", f.n_thread, "CPU threads (default: all cores)")->check(in_range(1, 4096));
    c->add_option("--prefix", f.n_prefix,
                  "prompt length in tokens (default: 1024 on a GPU, 256 on a CPU; prefill: several lengths)")
        ->check(in_range(1, 1 << 20));
    c->add_option("--repeat", f.n_repeat,
                  "runs per measurement; the median is reported (default: 20 on a GPU, 5 on a CPU)")
        ->check(in_range(1, 1000));
    c->add_option("--json", f.json,
                  "also write the figures as JSON (without FILE: to bench/results/DEVICE.json)")
        ->expected(0, 1)
        ->check([what](const std::string& s) {  // which CLI11 takes for the file's name
            const bool found = std::find(what.begin(), what.end(), s) != what.end();
            return found ? fmt::format(
                               "\"{0}\" is something to measure, expected easel bench {0} --json, or "
                               "--json ./{0} for a file of that name",
                               s)
                         : "";
        })
        ->type_name(kFile);
    c->footer("easel bench step --synthetic 26b-a4b:q4_k_m\neasel bench cpu --json cpu.json");
    return {c, [flags] { return run_bench(*flags); }};
}

Command fetch_command(CLI::App& app) {
    const auto flags = std::make_shared<FetchFlags>();
    FetchFlags& f = *flags;
    CLI::App* c =
        app.add_subcommand("fetch", "download a model by name, for -m NAME; without a name, list the models");
    c->add_option("name", f.name, "name of a model in the list")->type_name(kListed);
    c->add_option("--list", f.list,
                  "file that lists the models (default: $EASEL_MODELS_TXT, else a built-in list)")
        ->type_name(kFile);
    c->add_flag("-q,--quiet", f.quiet, "no progress on stderr")->disable_flag_override();
    c->footer("easel fetch q4_k_m\neasel generate -m q4_k_m -p \"Why is the sky blue?\"");
    return {c, [flags] { return run_fetch(*flags); }};
}

Command trace_command(CLI::App& app) {
    const auto flags = std::make_shared<TraceFlags>();
    TraceFlags& f = *flags;
    CLI::App* c =
        app.add_subcommand("trace", "make an HTML page or an SVG figure from a trace of generate --trace");
    c->add_option("file", f.file, "file written by generate --trace")->required()->type_name(kFileOrStream);
    c->add_option("-o,--output", f.output, "file to write (default: stdout)")->type_name(kFileOrStream);
    c->add_flag("--svg", f.svg, "write one SVG figure of all steps instead of an HTML page")
        ->disable_flag_override();
    c->footer(
        "easel generate -p \"What is 47 + 35?\" --trace steps.jsonl\n"
        "easel trace steps.jsonl -o steps.html");
    return {c, [flags] { return run_trace(*flags); }};
}

Command completion_command(CLI::App& app) {
    const auto shell = std::make_shared<std::string>();
    CLI::App* c = app.add_subcommand("completion", "print a script that completes easel's command line");
    c->add_option("shell", *shell, "the shell")->required()->check(one_of({"bash", "zsh", "fish"}));
    c->footer("eval \"$(easel completion bash)\"");
    return {c, [&app, shell] { return write_stdout(completion_script(app, *shell)), 0; }};
}

Command man_command(CLI::App& app) {
    CLI::App* c = app.add_subcommand("man", "print the manual page, for man -l -");
    c->footer("easel man | man -l -");
    return {c, [&app] { return write_stdout(manual_page(app, version_number())), 0; }};
}

// Refuses an empty name, of a shell variable that is not set perhaps, which would stand for the default, and
// "-" where it cannot be stdin or stdout, as it is in other programs.
void require_name(const CLI::Option& o) {
    const std::string type = o.get_type_name();
    const bool is_file = type == kFile || type == kFileOrStream;
    if ((!is_file && type != kModel && type != kListed) || o.get_expected_min() == 0) return;
    const char* expected = is_file ? "file" : "GGUF file or fetched model";
    for (const std::string& value : o.results()) {
        require(!value.empty(), "{}: the name is empty, expected that of a {}", o.get_name(), expected);
        require(value != "-" || type == kFileOrStream, "{}: expected the name of a {}, which - is not",
                o.get_name(), expected);
    }
}

// What is wrong with the command line, in words for its user where CLI11's are not.
std::string parse_error_text(const CLI::ParseError& e, const CLI::App& app,
                             const std::vector<std::string>& words) {
    std::string text = e.what();
    std::replace(text.begin(), text.end(), '\n', ' ');
    const auto has = [&](const char* part) { return text.find(part) != text.npos; };
    const std::string name = text.substr(0, text.find(':'));
    if (dynamic_cast<const CLI::ArgumentMismatch*>(&e)) {
        if (has("At Most")) return fmt::format("{} is given more than once", name);
        if (has("missing")) return fmt::format("{} needs a value", name);
    }
    if (!dynamic_cast<const CLI::ExtrasError*>(&e)) return text;
    const std::vector<std::string> extra = app.remaining(true);  // in any order; the first is enough
    const auto first = std::find_first_of(words.begin(), words.end(), extra.begin(), extra.end());
    if (first == words.end()) return text;
    if (!first->starts_with('-'))
        return fmt::format("\"{}\" was not expected{}", *first,
                           words[0] == "generate" ? ": a prompt is given with -p TEXT" : "");
    const std::string flag = first->substr(0, first->find('='));
    std::vector<std::string> flags;
    for (const CLI::Option* o : app.get_subcommands()[0]->get_options())
        for (const std::string& known : o->get_lnames()) flags.push_back("--" + known);
    const std::string nearest = nearest_name(flag, flags);
    return fmt::format("there is no flag {}{}", flag, nearest.empty() ? "" : ", the nearest is " + nearest);
}

int run(std::vector<std::string> words) {
    CLI::App app{"Runs DiffusionGemma, a text diffusion model, from a GGUF file."};
    app.formatter(help_formatter());
    app.footer(
        "Examples: easel generate -p \"What is 47 + 35?\"\n"
        "          easel COMMAND --help");
    app.require_subcommand(1);
    app.set_version_flag("--version", version_text(), "show version, devices and compilers");
    app.get_help_ptr()->description("show this help");
    const std::vector<Command> commands = {
        generate_command(app), chat_command(app),   pipe_command(app),       info_command(app),
        tokenize_command(app), logits_command(app), convert_command(app),    bench_command(app),
        fetch_command(app),    trace_command(app),  completion_command(app), man_command(app)};

    // Other programs have these as commands.
    if (!words.empty() && words[0] == "version") words[0] = "--version";
    if (!words.empty() && words[0] == "help") {
        words.erase(words.begin());
        words.insert(words.begin() + !words.empty(), "--help");
    }
    // CLI11 would only say that a subcommand is missing.
    const auto named = [&](const Command& c) { return c.app->check_name(words[0]); };
    if (words.empty() ||
        (!app.get_option_no_throw(words[0]) && std::none_of(commands.begin(), commands.end(), named))) {
        std::vector<std::string> names;
        for (const Command& c : commands) names.push_back(c.app->get_name());
        require(!words.empty(), "expected a command, one of {} (see easel --help)", fmt::join(names, ", "));
        require(!words[0].starts_with('-'), "expected a command before {}, one of {}", words[0],
                fmt::join(names, ", "));
        const std::string meant = nearest_name(words[0], names);
        fail("there is no command \"{}\"{}, expected one of {}", words[0],
             meant.empty() ? "" : fmt::format(" (the nearest is {})", meant), fmt::join(names, ", "));
    }
    try {
        app.parse(std::vector<std::string>(words.rbegin(), words.rend()));  // it takes them from the end
    } catch (const CLI::CallForHelp&) {
        return write_stdout(app.help()), 0;
    } catch (const CLI::CallForVersion& e) {
        return write_stdout(fmt::format("{}\n", e.what())), 0;
    } catch (const CLI::ParseError& e) {
        const bool in_command = !app.get_subcommands().empty();
        throw Error(fmt::format("{} (see easel {}--help)", parse_error_text(e, app, words),
                                in_command ? words[0] + " " : ""));
    }
    for (const CLI::Option* o : app.get_subcommands()[0]->get_options()) require_name(*o);
    const auto asked =
        std::find_if(commands.begin(), commands.end(), [](const Command& c) { return bool(*c.app); });
    return asked->run();
}

}  // namespace

// If stdin, stdout or stderr is closed, the next file opened would get its descriptor: a pipe inside the
// program, say, would be read as stdin. Opens /dev/null there first: stdin cannot be read then, stdout not
// written, and what goes to stderr is lost.
static void hold_standard_streams() {
    for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
        if (fcntl(fd, F_GETFD) < 0) open("/dev/null", fd == STDOUT_FILENO ? O_RDONLY : O_WRONLY);
}

int main(int argc, char** argv) {
    hold_standard_streams();
    std::signal(SIGPIPE, SIG_IGN);  // a reader that went away is seen as a failed write
    std::signal(SIGXFSZ, SIG_IGN);  // and so is a file that may not grow
    try {
        return run({argv + 1, argv + argc});
    } catch (const std::bad_alloc&) {
        std::fprintf(stderr, "easel: out of memory\n");
    } catch (const std::exception& e) {
        // One line, whatever bytes a broken file put into the text.
        std::fprintf(stderr, "easel: %s\n", safe_line(e.what()).c_str());
    }
    return 1;
}
