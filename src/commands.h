// commands.h: what `easel COMMAND` runs; each is one function that main() calls with its parsed flags.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "easel.h"
#include "view.h"

namespace easel {

// Exit codes: 0 done, 1 wrong input (main prints the Error), 130 stopped with Ctrl-C, 143 with SIGTERM,
// 129 with SIGHUP.
constexpr int kInterrupted = 130;

// Opens the engine; shows progress on a terminal while weights go to a GPU, and its note on stderr.
Engine open_engine(EngineOptions options);

struct GenerateFlags {
    EngineOptions engine;
    std::optional<std::string> prompt, canvas;
    std::vector<std::string> choices, stop;  // choices: "HOLE=A|B"
    std::string prompt_file, system, prompt_ids, print = "text";
    bool think = false, raw = false, ignore_eos = false, show_steps = false, verbose = false, quiet = false;
    std::optional<std::string> trace;  // file for every step (trace.h)
    uint64_t seed = 0;
    int n_token = 0, n_retry = 0, n_best = 1;
    ViewFlags view;
    std::vector<std::function<void(SamplerConfig&)>> sampler_changes;  // to the model's own settings
};
int run_generate(const GenerateFlags& flags);

struct ChatFlags {
    EngineOptions engine;
    std::string system;
    bool think = false, history = true;
    uint64_t seed = 0;
    int n_token = 0;
    ViewFlags view;
    std::vector<std::function<void(SamplerConfig&)>> sampler_changes;
};
int run_chat(const ChatFlags& flags);

struct PipeFlags {
    EngineOptions engine;
    bool unordered = false, schema = false;
    int n_queue = 64;
    std::vector<std::function<void(SamplerConfig&)>> sampler_changes;
};
int run_pipe(const PipeFlags& flags);

struct LogitsFlags {
    EngineOptions engine;
    std::string prompt_ids, canvas_ids, prev_logits, output;
    float prev_temperature = 1;
};
int run_logits(const LogitsFlags& flags);

struct TokenizeFlags {
    std::string model;
    bool special = false, decode = false;
};
int run_tokenize(const TokenizeFlags& flags);

struct InfoFlags {
    std::string model, device = "all";                // cpu, cuda or all
    int n_context = 0, n_offload = kFewestOffloaded;  // as in EngineOptions
    int64_t memory_limit = 0;
};
int run_info(const InfoFlags& flags);

struct ConvertFlags {
    std::string source, target, type;
};
int run_convert(const ConvertFlags& flags);

struct BenchFlags {
    std::string what = "all", model, synthetic, device = "auto";
    std::optional<std::string> json;  // file to write; empty: named after the device
    double router_skew = 0;
    int n_offload = 0;
    int n_thread = 0, n_prefix = 0, n_repeat = 0;  // 0: what suits the device
};
int run_bench(const BenchFlags& flags);

struct FetchFlags {
    std::string name;  // a model's; empty: list all
    std::string list;  // file to read instead of models.txt
    bool quiet = false;
};
int run_fetch(const FetchFlags& flags);

struct TraceFlags {
    std::string file, output;  // no output: stdout
    bool svg = false;          // a figure instead of a page
};
int run_trace(const TraceFlags& flags);

std::string version_number();  // "0.1"
std::string version_commit();  // "1a2b3c4", "1a2b3c4-dirty" or "unknown"
std::string version_text();    // version, commit, devices, compilers: a line each

// False: nobody reads stdout any more, which is no error (easel ... | head). Any other failure throws Error.
bool write_stdout(std::string_view text);
// To stdout, if `path` is empty or "-", else to that file.
void write_output(const std::string& path, std::string_view text);
// Prints the model's warnings to stderr.
void warn(const Model& model);
// "stop", "length" or "cancelled".
const char* finish_name(Finish finish);

}  // namespace easel
