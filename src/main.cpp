// main.cpp: the command line. Parses flags, runs one command, and is the only place that catches Error.
#include <CLI/CLI.hpp>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <iostream>

#include "check.h"
#include "commands.h"

#ifndef EASEL_COMMIT
#define EASEL_COMMIT "unknown"
#endif

namespace {

using namespace easel;

constexpr const char* kModelText =
    "GGUF file, or the name of a fetched model (default: the built-in demo model)";

// Every CLI flag that stands for a sampler setting. A flag that is given notes what it changes in the model's
// settings.
void add_sampler_flags(CLI::App& app, std::vector<std::function<void(SamplerConfig&)>>& changes) {
    constexpr const char* group = "Sampler (default: what the model file says)";
    const auto option = [&]<class T>(const char* name, T SamplerConfig::*setting, const char* text) {
        const auto note = [&changes, setting](const T& v) {
            changes.push_back([setting, v](SamplerConfig& s) { s.*setting = v; });
        };
        app.add_option_function<T>(name, note, text)->group(group);
    };
    option("--max-steps", &SamplerConfig::max_steps, "denoise steps a canvas at most");
    option("--t-min", &SamplerConfig::t_min, "temperature of the last step");
    option("--t-max", &SamplerConfig::t_max, "temperature of the first step");
    option("--entropy-bound", &SamplerConfig::entropy_bound, "nats of entropy accepted a step");
    option("--stability", &SamplerConfig::stability, "equal argmax canvases before a canvas may end");
    option("--confidence", &SamplerConfig::confidence, "mean entropy in nats below which it may end");
    option("--top-k", &SamplerConfig::top_k, "logits a position that take part (0: all, exact)");
    option("--top-k-start", &SamplerConfig::top_k_start, "top-k of the first step, changing evenly to ...");
    option("--top-k-end", &SamplerConfig::top_k_end, "... top-k of the last");
    option("--self-cond-top-k", &SamplerConfig::self_cond_top_k,
           "probabilities a position fed back (0: all, exact)");
    const auto flag = [&](const char* name, bool SamplerConfig::*setting, const char* text) {
        const auto note = [&changes, setting] {
            changes.push_back([setting](SamplerConfig& s) { s.*setting = true; });
        };
        app.add_flag_callback(name, note, text)->group(group)->disable_flag_override();
    };
    flag("--greedy", &SamplerConfig::greedy, "take the most likely token instead of drawing one");
    flag("--top-k-tail-correction", &SamplerConfig::top_k_tail_correction,
         "entropy over all logits although top-k draws from few");
}

void add_engine_flags(CLI::App& app, EngineOptions& e) {
    app.add_option("-m,--model", e.model, kModelText);
    app.add_option("-t,--threads", e.n_thread, "CPU threads (default: all cores)")
        ->check(CLI::Range(1, 4096));
    app.add_option("-c,--context", e.n_context,
                   "tokens of prompt and answer together (default: the model's, on a GPU at most 32768)")
        ->check(CLI::Range(1, 1 << 30));
    app.add_option("--device", e.device, "auto, cpu, cuda or cuda:N (default: auto, a GPU if there is one)");
    app.add_flag("--exact", e.exact, "on a GPU: float32 throughout, slow and large, for comparing")
        ->disable_flag_override();
    app.add_flag("--host-loop{false}", e.graph_loop,
                 "on a GPU: the host launches each step, not one graph all")
        ->disable_flag_override();
}

int run(int argc, char** argv) {
    CLI::App app{
        "easel: DiffusionGemma from a GGUF file. Denoises a canvas of tokens at once.\n"
        "Example: easel generate -p \"What is 47 + 35?\""};
    app.require_subcommand(1);
    app.set_version_flag("--version", std::string("easel (") + EASEL_COMMIT + ", " + backends() + ")");

    GenerateFlags generate;
    auto* g =
        app.add_subcommand("generate", "answer one prompt; the text goes to stdout, statistics to stderr");
    add_engine_flags(*g, generate.engine);
    g->add_option("-p,--prompt", generate.prompt, "the prompt; - reads it from stdin");
    g->add_option("-f,--file", generate.prompt_file, "read the prompt from a file");
    g->add_option("--prompt-ids", generate.prompt_ids, "file of token ids, used as they are");
    g->add_option("-s,--system", generate.system, "system text");
    g->add_flag("--think,!--no-think", generate.think, "let the model think first (default: no)");
    g->add_flag("--raw", generate.raw, "the prompt is plain text, not a chat turn")->disable_flag_override();
    g->add_option("-n,--tokens", generate.n_token,
                  "answer tokens at most (default: 2048, or what the context has room for)")
        ->check(CLI::Range(1, 1 << 30));
    g->add_option("--seed", generate.seed, "random seed, 64 bits (default: 0)")
        ->check([](const std::string& s) {  // CLI11 would take -1 and cap what is past 64 bits
            const bool fits = s.find_first_not_of("0123456789") == std::string::npos &&
                              (s.size() < 20 || (s.size() == 20 && s <= "18446744073709551615"));
            return fits ? "" : "seed is " + s + ", expected 0 to 18446744073709551615";
        });
    g->add_flag("--ignore-eos", generate.ignore_eos, "go on past the end of the answer")
        ->disable_flag_override();
    g->add_flag("--show-steps", generate.show_steps,
                "one line a denoise step on stderr: the canvas as it settles")
        ->disable_flag_override();
    g->add_option("--print", generate.print, "text, ids or json")
        ->check(CLI::IsMember({"text", "ids", "json"}));
    add_sampler_flags(*g, generate.sampler_changes);

    PipeFlags pipe;
    auto* p = app.add_subcommand("pipe", "JSON lines on stdin, answers as JSON lines on stdout");
    add_engine_flags(*p, pipe.engine);
    p->add_option("--queue", pipe.n_queue, "lines that may wait (default: 64); then stdin is left unread")
        ->check(CLI::Range(1, 1 << 20));
    p->add_flag("--unordered", pipe.unordered, "prompts that share most with the last one go first")
        ->disable_flag_override();
    p->add_flag("--schema", pipe.schema, "print all keys of the lines, in and out")->disable_flag_override();
    add_sampler_flags(*p, pipe.sampler_changes);

    std::string info_model;
    int info_context = 0;
    auto* i = app.add_subcommand("info", "what a GGUF file holds and the memory it needs");
    i->add_option("file,-m,--model", info_model, kModelText);
    i->add_option("-c,--context", info_context, "context for the memory figures")
        ->check(CLI::Range(1, 1 << 30));

    TokenizeFlags tokenize;
    auto* t = app.add_subcommand("tokenize", "text on stdin to token ids on stdout, or back");
    t->add_option("-m,--model", tokenize.model, kModelText);
    t->add_flag("--special", tokenize.special, "recognise (or, decoding, show) control tokens")
        ->disable_flag_override();
    t->add_flag("--decode", tokenize.decode, "ids on stdin to text on stdout")->disable_flag_override();

    LogitsFlags logits;
    auto* l =
        app.add_subcommand("logits", "one denoise pass: softcapped logits as float32 [canvas, n_vocab]");
    add_engine_flags(*l, logits.engine);
    l->add_option("--prompt-ids", logits.prompt_ids, "file of token ids to encode first");
    l->add_option("--canvas-ids", logits.canvas_ids, "file with the canvas' token ids")->required();
    l->add_option("--prev-logits", logits.prev_logits,
                  "an earlier output: the step before, for self-conditioning");
    l->add_option("--prev-temperature", logits.prev_temperature, "that step's temperature")
        ->check(CLI::Range(1e-3, 1e3));
    l->add_option("-o,--output", logits.output, "file to write")->required();

    ConvertFlags convert;
    auto* c = app.add_subcommand("convert", "a Hugging Face folder or a GGUF file to GGUF");
    c->add_option("source", convert.source,
                  "folder with config.json and model*.safetensors, a GGUF file, or a fetched model's name")
        ->required();
    c->add_option("target", convert.target, "GGUF file to write")->required();
    c->add_option("--type", convert.type, "f32, f16, bf16, q8_0, q6_k, q5_k_m or q4_k_m")->required();

    BenchFlags bench;
    bench.commit = EASEL_COMMIT;
    auto* b =
        app.add_subcommand("bench", "times passes, and the parts of a step, beside the machine's own peaks");
    b->add_option("what", bench.what,
                  "on a GPU: step, part by part; kernels, each alone; prefill, prompts by length; load; "
                  "on a CPU: cpu, prefill; all (default)")
        ->check(CLI::IsMember({"step", "kernels", "prefill", "load", "cpu", "all"}));
    b->add_option("-m,--model", bench.model, "GGUF file or name (default: models made up for the purpose)");
    b->add_option("--synthetic", bench.synthetic,
                  "26b-a4b, mid or toy, then :q4_k_m, :q8_0 ...: random weights of that shape (default: "
                  "26b-a4b:q4_k_m on a GPU, mid:q4_k_m on a CPU)");
    b->add_option("--router-skew", bench.router_skew,
                  "random weights only: an expert's share of the tokens falls as this power of its rank "
                  "(default: 0, all have the same)")
        ->check(CLI::Range(0.0, 8.0));
    b->add_option("--device", bench.device, "cuda, cuda:N, or cpu (default: cuda)");
    b->add_option("-t,--threads", bench.n_thread, "CPU threads (default: all cores)")
        ->check(CLI::Range(1, 4096));
    b->add_option("--prefix", bench.n_prefix,
                  "prompt tokens (default: 1024 on a GPU, 256 on a CPU; prefill: several)")
        ->check(CLI::Range(1, 1 << 20));
    b->add_option("--repeat", bench.n_repeat,
                  "passes a figure is the median of (default: 20 on a GPU, 5 on a CPU)")
        ->check(CLI::Range(1, 1000));
    b->add_option("--json", bench.json,
                  "also write the figures to this file (none named: bench/results/DEVICE.json)")
        ->expected(0, 1);

    FetchFlags fetch;
    auto* f = app.add_subcommand("fetch", "download a model by name, for -m NAME; without a name: list them");
    f->add_option("name", fetch.name, "a name of the list");
    f->add_option("--list", fetch.list,
                  "file with the models (default: $EASEL_MODELS_TXT, or a built-in list)");
    f->add_flag("-q,--quiet", fetch.quiet, "no progress on stderr")->disable_flag_override();

    // CLI11 would only say that a subcommand is missing.
    const auto commands = app.get_subcommands({});
    const auto named = [&](const CLI::App* command) { return command->check_name(argv[1]); };
    if (argc > 1 && argv[1][0] != '-' && std::none_of(commands.begin(), commands.end(), named))
        fail(
            "there is no command \"{}\", expected generate, info, tokenize, logits, convert, pipe, fetch or "
            "bench",
            argv[1]);
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& e) {
        if (e.get_exit_code() == 0) {  // --help, --version
            app.exit(e);
            require(std::cout.flush() || errno == EPIPE, "cannot write to stdout: {}", std::strerror(errno));
            return 0;
        }
        std::string text = e.what();
        std::replace(text.begin(), text.end(), '\n', ' ');
        throw Error(text + " (see easel --help)");
    }
    if (*g) return run_generate(generate);
    if (*p) return run_pipe(pipe);
    if (*i) return run_info(info_model, info_context);
    if (*t) return run_tokenize(tokenize);
    if (*l) return run_logits(logits);
    if (*c) return run_convert(convert);
    if (*f) return run_fetch(fetch);
    return run_bench(bench);
}

}  // namespace

int main(int argc, char** argv) {
    std::signal(SIGPIPE, SIG_IGN);  // a reader that went away is seen as a failed write
    try {
        return run(argc, argv);
    } catch (const std::bad_alloc&) {
        std::fprintf(stderr, "easel: out of memory\n");
    } catch (const std::exception& e) {
        // One line, whatever bytes a broken file put into the text.
        std::string text = e.what();
        std::replace_if(
            text.begin(), text.end(), [](unsigned char c) { return c < 32 || c == 127; }, '?');
        std::fprintf(stderr, "easel: %s\n", text.c_str());
    }
    return 1;
}
