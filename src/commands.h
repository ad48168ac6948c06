// commands.h: what `easel COMMAND` runs; each is one function that main() calls with its parsed flags.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "easel.h"

namespace easel {

// Exit codes: 0 done, 1 wrong input (main prints the Error), 130 stopped with Ctrl-C.
constexpr int kInterrupted = 130;

struct GenerateFlags {
    EngineOptions engine;
    std::optional<std::string> prompt;
    std::string prompt_file, system, prompt_ids, print = "text";
    bool think = false, raw = false, ignore_eos = false, show_steps = false;
    uint64_t seed = 0;
    int n_token = 0;
    std::vector<std::function<void(SamplerConfig&)>> sampler_changes;  // to the model's own settings
};
int run_generate(const GenerateFlags& flags);

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

int run_info(const std::string& model, int n_context);

struct ConvertFlags {
    std::string source, target, type;
};
int run_convert(const ConvertFlags& flags);

struct BenchFlags {
    std::string what = "all", model, synthetic, device = "cuda", commit;
    std::optional<std::string> json;  // file to write; empty: named after the device
    double router_skew = 0;
    int n_thread = 0, n_prefix = 0, n_repeat = 0;  // 0: what suits the device
};
int run_bench(const BenchFlags& flags);

struct FetchFlags {
    std::string name, list;  // of a model, or empty to list them; a file instead of models.txt
    bool quiet = false;
};
int run_fetch(const FetchFlags& flags);

// False: nobody reads stdout any more, which is no error (easel ... | head). Any other failure is one.
bool write_stdout(std::string_view text);

}  // namespace easel
