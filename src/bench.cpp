// bench.cpp: `easel bench`: encode and denoise passes beside what the machine's cores can do; on a GPU, what
// bench.h measures there. Called by main.
#include "bench.h"

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "check.h"
#include "commands.h"
#include "float_tiles.h"
#include "gemm.h"
#include "int8.h"
#include "memory_plan.h"
#include "models.h"
#include "parallel.h"
#include "text.h"
#include "whole_file.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace easel {

namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

// n_round fused multiply-adds on each of kChains vectors, every one dependent on the one before on the same
// vector: ten chains fill two units with a latency of 4 to 5 clocks. The chains begin different, or the
// compiler would compute one for all, and tend to 1000: numbers that shrink for ever become subnormal, which
// some processors compute a hundred times as slowly.
constexpr int64_t kChains = 10;

float fma_chains(int64_t n_round) {
    typedef float Vec8 __attribute__((vector_size(32)));
    const Vec8 a = Vec8{} + 0.999f, b = Vec8{} + 1.0f;
    Vec8 sum[kChains];
    for (int c = 0; c < kChains; c++) sum[c] = Vec8{} + static_cast<float>(c);
    for (int64_t r = 0; r < n_round; r++)
        for (auto& s : sum) s = s * a + b;
    for (int c = 1; c < kChains; c++) sum[0] += sum[c];
    return sum[0][0];
}

#ifdef __x86_64__
__attribute__((target("avx512f"))) float fma_chains_avx512(int64_t n_round) {
    const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(1.0f);
    __m512 sum[kChains];
    for (int c = 0; c < kChains; c++) sum[c] = _mm512_set1_ps(static_cast<float>(c));
    for (int64_t r = 0; r < n_round; r++)
        for (auto& s : sum) s = _mm512_fmadd_ps(s, a, b);
    for (int c = 1; c < kChains; c++) sum[0] = _mm512_add_ps(sum[0], sum[c]);
    return _mm512_cvtss_f32(sum[0]);
}
#endif

// FLOP/s of fused multiply-adds on all cores, by the widest vectors there are: the machine's peak.
double measure_fma_peak() {
    constexpr int64_t kRounds = 20'000'000;
    float (*chains)(int64_t) = fma_chains;
    int64_t n_lane = 8;
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f")) chains = fma_chains_avx512, n_lane = 16;
#endif
    const int n = n_threads();
    std::vector<float> sink(n);
    double best = 0;
    for (int repeat = 0; repeat < 5; repeat++) {
        const auto start = Clock::now();
        parallel_for(n, [&](int64_t i) { sink[i] = chains(kRounds); });
        best =
            std::max(best, 2.0 * static_cast<double>(n_lane * kChains * kRounds * n) / seconds_since(start));
    }
    return best;
}

// FLOP/s of one large float32 product through the program's own GEMM.
double measure_gemm_peak(int n_repeat) {
    const int64_t n_token = 512, n_row = 2048, n_col = 2048;
    std::vector<float> x(n_token * n_col, 0.5f), w(n_row * n_col, 0.25f), y(n_token * n_row);
    const Matrix matrix{Type::F32, reinterpret_cast<const uint8_t*>(w.data()), n_row, n_col};
    std::vector<double> times;
    for (int i = 0; i <= n_repeat; i++) {
        const auto start = Clock::now();
        gemm(y.data(), {x.data(), n_token, n_col}, matrix);
        if (i > 0) times.push_back(seconds_since(start));
    }
    return 2.0 * static_cast<double>(n_token * n_row * n_col) / median(times);
}

// The model of -m, else a synthetic one, of --synthetic or else of `name`: "26b-a4b:q8_0", or q4_k_m if no
// type is named.
struct Named {
    std::string name;
    std::shared_ptr<const Model> model;
};
Named named_model(const BenchFlags& flags, const std::string& name) {
    if (!flags.model.empty()) return {flags.model, std::make_shared<Model>(open_model(flags.model))};
    const std::string s = flags.synthetic.empty() ? name : flags.synthetic;
    const size_t colon = s.find(':');
    return {s,
            synthetic_model(s.substr(0, colon), colon == std::string::npos ? "q4_k_m" : s.substr(colon + 1),
                            flags.router_skew)};
}

// Median milliseconds of a denoise step, in a canvas that never ends early; the first step has no
// self-conditioning and is left out.
double time_denoise(Backend& backend, int n_repeat) {
    std::vector<double> times;
    GenerateParams params;
    params.sampler.max_steps = n_repeat + 1;
    params.sampler.confidence = 0;
    auto start = Clock::now();
    backend.generate(params, [&](const Frame& f) {
        if (f.step > 0) times.push_back(1e3 * seconds_since(start));
        start = Clock::now();
        return true;
    });
    return median(times);
}

// "nvidia-h200"
std::string file_name(const std::string& device) {
    std::string out;
    for (const unsigned char ch : device) {
        if (std::isalnum(ch))
            out += static_cast<char>(std::tolower(ch));
        else if (!out.empty() && out.back() != '-')
            out += '-';
    }
    while (!out.empty() && out.back() == '-') out.pop_back();
    return out;
}

// What Linux calls the processor, or "CPU".
std::string cpu_name() {
    std::ifstream in("/proc/cpuinfo");
    for (std::string line; std::getline(in, line);)
        if (line.starts_with("model name")) {
            const size_t at = line.find_first_not_of(": \t", line.find(':'));
            return at == std::string::npos ? "CPU" : line.substr(at);
        }
    return "CPU";
}

void require_room(const Config& c, int n_token, const char* what) {
    require(n_token <= c.n_context, "{} {} tokens, the model's context has {}", what, n_token, c.n_context);
}

}  // namespace

double median(std::vector<double> v) {
    std::sort(v.begin(), v.end());
    return v.empty() ? 0 : v[v.size() / 2];
}

std::vector<int32_t> random_prompt(int n, int n_vocab) {
    std::vector<int32_t> prompt(n);
    for (int i = 0; i < n; i++)
        prompt[i] = random_token(random_word(1, i, 0, 0, RandomStream::Init), n_vocab);
    return prompt;
}

double time_prompt(Backend& backend, int n_vocab, int n, int n_repeat) {
    const auto prompt = random_prompt(n, n_vocab);
    std::vector<double> times;
    for (int i = 0; i <= n_repeat; i++) {
        backend.truncate(0);
        const auto start = Clock::now();
        backend.encode(prompt);
        const double ms = 1e3 * seconds_since(start);
        if (i > 0 || ms > 2000) times.push_back(ms);
        if (ms > 2000) break;
    }
    return median(times);
}

// The CPU backend's passes beside the machine's peak: an encode and a denoise pass if `denoise`, prompts of
// several lengths if `prefill`.
static Json bench_cpu(const BenchFlags& flags, bool denoise, bool prefill) {
    const int n_repeat = flags.n_repeat ? flags.n_repeat : 5;
    std::vector<Named> models;
    if (denoise && flags.model.empty() && flags.synthetic.empty()) {
        const auto demo = std::make_shared<Gguf>(Gguf::from_memory(demo_model(), "demo"));
        models.push_back({"demo", std::make_shared<Model>(demo)});
    }
    models.push_back(named_model(flags, "mid"));
    const Config& largest = models.back().model->config;
    if (denoise && flags.n_prefix)
        require_room(largest, flags.n_prefix + largest.n_canvas, "the prefix and a canvas need");
    std::vector<int> prompts;
    if (prefill && flags.n_prefix) {
        require_room(largest, flags.n_prefix, "the prompt needs");
        prompts = {flags.n_prefix};
    } else if (prefill) {
        prompts = {128, 512, 2048};
    }
    const double fma = measure_fma_peak(), peak = measure_gemm_peak(n_repeat);
    Json j{{"device", cpu_name()},
           {"threads", n_threads()},
           {"fma_peak_gflops", fma / 1e9},
           {"gemm_peak_gflops", peak / 1e9}};
    if (flags.model.empty() && flags.router_skew > 0) j["router_skew"] = flags.router_skew;
    write_stdout(fmt::format(
        "{}; float32 peak {:.0f} GFLOP/s (multiply-adds), {:.0f} GFLOP/s (large GEMM); GEMM by {}, in int8 "
        "by {}\n",
        counted(n_threads(), "thread"), fma / 1e9, peak / 1e9, float_variants()[0].name,
        int8_variants()[0].name));
    write_stdout(fmt::format("{:<16} {:<8} {:>7} {:>10} {:>10} {:>10} {:>10}\n", "model", "pass", "tokens",
                             "ms", "tok/s", "GFLOP/s", "of GEMM"));
    for (size_t i = 0; i < 2 * models.size(); i++) {  // every model in float, then in int8
        const CpuMath math = i % 2 ? CpuMath::Int8 : CpuMath::Float;
        const auto& model = models[i / 2].model;
        const std::string name = models[i / 2].name + (math == CpuMath::Int8 ? " int8" : "");
        const Config& c = model->config;
        const auto row = [&](const char* pass, int n_token, double ms, double flop) {
            const double gflops = flop / ms / 1e6;
            write_stdout(fmt::format("{:<16} {:<8} {:>7} {:>10.2f} {:>10.0f} {:>10.1f} {:>9.0f}%\n", name,
                                     pass, n_token, ms, n_token * 1e3 / ms, gflops, 100e9 * gflops / peak));
            return Json{{"tokens", n_token},
                        {"ms", ms},
                        {"tok_s", n_token * 1e3 / ms},
                        {"gflops", gflops},
                        {"floor_ms", flop / peak * 1e3}};
        };
        Json& out = j["models"][name];
        if (denoise) {
            const int n_prefix = std::min(flags.n_prefix ? flags.n_prefix : 256, c.n_context - c.n_canvas);
            const auto backend = make_cpu_backend(model, n_prefix + c.n_canvas, math);
            out["encode"] = row("encode", n_prefix, time_prompt(*backend, c.n_vocab, n_prefix, n_repeat),
                                encode_flop(*model, n_prefix));
            out["denoise"] =
                row("denoise", c.n_canvas, time_denoise(*backend, n_repeat), denoise_flop(*model, n_prefix));
        }
        for (const int n : prompts) {
            if (n > c.n_context) continue;
            const auto backend = make_cpu_backend(model, n, math);
            out["prefill"].push_back(
                row("prefill", n, time_prompt(*backend, c.n_vocab, n, n_repeat), encode_flop(*model, n)));
        }
    }
    return j;
}

// On a GPU: a denoise step, its kernels, prompts, loading, as flags.what says.
static Json bench_gpu(const BenchFlags& flags, const DeviceInfo& device) {
    const auto asked = [&](const char* what) { return flags.what == what || flags.what == "all"; };
    const auto [name, model] = named_model(flags, "26b-a4b");
    const Config& c = model->config;
    DeviceOptions options;
    options.index = device.index;
    options.n_sm = device.n_sm;
    options.n_offload = flags.n_offload;
    ProfilePlan plan;
    plan.step = asked("step");
    plan.kernels = asked("kernels");
    plan.n_prefix = flags.n_prefix ? flags.n_prefix : std::min(1024, c.n_context - 2 * c.n_canvas);
    plan.n_repeat = flags.n_repeat ? flags.n_repeat : 20;
    options.n_context = plan.n_prefix + 2 * c.n_canvas;
    require_room(c, options.n_context, "the prefix and two canvases need");
    if (flags.what == "prefill" && flags.n_prefix) {
        plan.prefill = {flags.n_prefix};
    } else if (asked("prefill")) {
        for (const int n : {512, 4096, 32768, 131072})
            if (DeviceOptions o = options; n + c.n_canvas <= c.n_context) {
                o.n_context = std::max(o.n_context, n + c.n_canvas);
                if (plan_gpu(*model, o).total() < 0.9 * static_cast<double>(device.total_bytes))
                    plan.prefill.push_back(n);
            }
    }
    for (const int n : plan.prefill) options.n_context = std::max(options.n_context, n + c.n_canvas);
    options.hang_ms = kHangMs;
    DeviceProfile p = profile_cuda(model, options, plan);
    if (flags.what == "load") p.load.push_back(profile_cuda(model, options, {}).load[0]);
    write_stdout(fmt::format("{} (driver for CUDA {}.{}), {}\n{}", device.name, device.driver / 1000,
                             device.driver % 1000 / 10, name, profile_tables(p, *model, plan)));
    Json j{{"device", device.name}, {"driver", device.driver}, {"built", backends()}, {"model", name}};
    if (flags.model.empty()) j["router_skew"] = flags.router_skew;
    if (flags.n_offload) j["expert_offload"] = flags.n_offload;
    j.update(Json::parse(profile_json(p, *model, plan)));
    return j;
}

int run_bench(const BenchFlags& flags) {
    require(flags.model.empty() || flags.synthetic.empty(), "both -m and --synthetic given, expected one");
    require(flags.model.empty() || flags.router_skew == 0,
            "--router-skew is for random weights, a model given with -m has its own");
    set_threads(flags.n_thread);
    const bool all = flags.what == "all", prefill = flags.what == "prefill", cpu = flags.what == "cpu";
    const int index = device_number(flags.device);
    require(!cpu || flags.device == "auto" || flags.device == "cpu",
            "bench cpu measures the CPU, --device is {}", flags.device);
    std::vector<DeviceInfo> devices;
    auto device = devices.end();
    std::string missing;
    if (!cpu && flags.device != "cpu") {
        std::string why;
        devices = cuda_devices(&why);
        device = std::find_if(devices.begin(), devices.end(),
                              [&](const DeviceInfo& d) { return index < 0 || d.index == index; });
        missing = fmt::format("there is no device {}{}{}", flags.device == "auto" ? "cuda" : flags.device,
                              why.empty() ? "" : ": ", why);
        require(device != devices.end() || all || prefill, "{}", missing);
    } else {
        require(cpu || all || prefill, "bench {} needs a GPU, --device is cpu", flags.what);
    }
    const bool on_gpu = device != devices.end();
    require(on_gpu || !flags.n_offload, "--expert-offload is for a GPU: {}",
            missing.empty() ? "the device is cpu" : missing);
    std::string path = flags.json.value_or("");
    if (flags.json && path.empty()) {
        std::error_code error;
        std::filesystem::create_directories("bench/results", error);
        require(!error, "bench/results: cannot be created: {}; --json FILE names another place",
                error.message());
        path = "bench/results/" + file_name(on_gpu ? device->name : cpu_name()) + ".json";
    }
    if (flags.json) check_writable(path);  // known before minutes of measuring
    if (flags.json && !flags.model.empty())
        require_other(path, open_model(flags.model)->files(), "the model itself");

    Json j{{"commit", version_commit()}};
    if (on_gpu) j["gpu"] = bench_gpu(flags, *device);
    if (!on_gpu && !missing.empty())
        write_stdout(
            fmt::format("{}, {}\n", all ? "step, kernels, load: SKIPPED" : "prefill on the CPU", missing));
    if (cpu || all || !on_gpu) j["cpu"] = bench_cpu(flags, cpu || all, !on_gpu && (all || prefill));
    if (flags.json) {
        write_file(path, j.dump(2) + "\n");
        tell(fmt::format("easel: figures are in {}\n", path));
    }
    return 0;
}

}  // namespace easel
