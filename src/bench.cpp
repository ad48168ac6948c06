// bench.cpp: `easel bench`: encode and denoise passes beside what the machine's cores can do; on a GPU, every
// part of a step beside its floor. Called by main.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "check.h"
#include "commands.h"
#include "gemm.h"
#include "int8.h"
#include "models.h"
#include "parallel.h"

namespace easel {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> v) {
    std::sort(v.begin(), v.end());
    return v.empty() ? 0 : v[v.size() / 2];
}

// FLOP/s of fused multiply-adds that wait for nothing, on all cores: no program is faster.
double measure_fma_peak() {
    typedef float Vec8 __attribute__((vector_size(32)));
    constexpr int64_t kRounds = 20'000'000, kChains = 10;  // latency 4 to 5, two a clock
    const int n = n_threads();
    std::vector<float> sink(n);
    double best = 0;
    for (int repeat = 0; repeat < 3; repeat++) {
        const auto start = Clock::now();
        parallel_for(n, [&](int64_t i) {
            Vec8 sum[kChains];  // different ones: equal chains would be computed once
            for (int64_t c = 0; c < kChains; c++) sum[c] = Vec8{} + static_cast<float>(c);
            const Vec8 a = Vec8{} + 0.999f, b = Vec8{} + static_cast<float>(i);
            for (int64_t r = 0; r < kRounds; r++)
                for (auto& s : sum) s = s * a + b;
            for (auto& s : sum) sink[i] += s[0];
        });
        best = std::max(best, 2.0 * 8 * kChains * kRounds * n / seconds_since(start));
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

// Multiply-adds of the layers a token goes through, attention over `n_key` keys included (a window at most on
// sliding layers), times two.
double layer_flop(const Config& c, double n_key) {
    double n = 0;
    for (const LayerShape& l : c.layers) {
        const double hd = l.head_dim, d = c.n_embd;
        n += d * hd * (2.0 * c.n_head + (l.global ? 1 : 2) * l.n_head_kv);
        n += 2 * hd * c.n_head * (l.global ? n_key : std::min(n_key, double(c.window) + c.n_canvas));
        n += 3 * d * c.n_ff + 3.0 * d * c.n_ff_exp * c.n_expert_used + d * c.n_expert;
    }
    return 2 * n;
}

// A denoise step with self-conditioning: layers, its MLP, the soft embedding and the lm head.
double denoise_flop(const Config& c, int n_prefix) {
    const double per_token =
        layer_flop(c, n_prefix + c.n_canvas) + 2 * (2.0 * c.n_vocab * c.n_embd + 3.0 * c.n_embd * c.n_ff);
    return per_token * c.n_canvas;
}

// "26b-a4b:q8_0"; q4_k_m if no type is named.
std::shared_ptr<const Model> synthetic(const std::string& name) {
    const size_t colon = name.find(':');
    return synthetic_model(name.substr(0, colon),
                           colon == std::string::npos ? "q4_k_m" : name.substr(colon + 1));
}

struct Figures {
    double encode_ms, denoise_ms, encode_flop, denoise_flop;
};

Figures measure(const std::shared_ptr<const Model>& model, int n_prefix, int n_repeat, CpuMath math) {
    const Config& c = model->config;
    require(n_prefix + c.n_canvas <= c.n_context,
            "a prefix of {} and a canvas of {} exceed the context of {}", n_prefix, c.n_canvas, c.n_context);
    const auto backend = make_cpu_backend(model, c.n_context, math);
    std::mt19937 random(1);
    std::vector<int32_t> prompt(n_prefix);
    for (int32_t& id : prompt) id = static_cast<int32_t>(random() % c.n_vocab);
    std::vector<double> encode, denoise;
    for (int i = 0; i < n_repeat; i++) {
        backend->truncate(0);
        const auto start = Clock::now();
        backend->encode(prompt);
        encode.push_back(seconds_since(start));
    }
    // Steps of one canvas that never ends early; the first has no self-conditioning and is left out.
    GenerateParams params;
    params.sampler.max_steps = n_repeat + 1;
    params.sampler.confidence = 0;
    auto start = Clock::now();
    backend->generate(params, [&](const Frame& f) {
        if (f.step > 0) denoise.push_back(seconds_since(start));
        start = Clock::now();
        return true;
    });
    return {median(encode) * 1e3, median(denoise) * 1e3, layer_flop(c, n_prefix / 2.0) * n_prefix,
            denoise_flop(c, n_prefix)};
}

}  // namespace

// Encode and denoise passes of the CPU backend.
static nlohmann::ordered_json bench_cpu(const BenchFlags& flags) {
    const int n_repeat = flags.n_repeat ? flags.n_repeat : 5,
              n_prefix_asked = flags.n_prefix ? flags.n_prefix : 256;
    std::vector<std::pair<std::string, std::shared_ptr<const Model>>> models;
    if (!flags.model.empty()) {
        models.emplace_back(flags.model, std::make_shared<Model>(open_model(flags.model)));
    } else if (!flags.synthetic.empty()) {
        models.emplace_back(flags.synthetic, synthetic(flags.synthetic));
    } else {
        const auto demo = std::make_shared<Gguf>(Gguf::from_memory(demo_model(), "demo"));
        models.emplace_back("demo", std::make_shared<Model>(demo));
        models.emplace_back("mid Q4_K_M", synthetic_model("mid", "q4_k_m"));
    }
    const double fma = measure_fma_peak(), peak = measure_gemm_peak(n_repeat);
    nlohmann::ordered_json j{
        {"threads", n_threads()}, {"fma_peak_gflops", fma / 1e9}, {"gemm_peak_gflops", peak / 1e9}};
    fmt::print(
        "{} threads; float32 peak {:.0f} GFLOP/s (multiply-adds), {:.0f} GFLOP/s (large product); int8 by "
        "{}\n",
        n_threads(), fma / 1e9, peak / 1e9, int8_variants()[0].name);
    fmt::print("{:<16} {:<8} {:>7} {:>10} {:>10} {:>10} {:>10}\n", "model", "pass", "tokens", "ms", "tok/s",
               "GFLOP/s", "of product");
    for (size_t i = 0; i < 2 * models.size(); i++) {  // every model in float, then in int8
        const CpuMath math = i % 2 ? CpuMath::Int8 : CpuMath::Float;
        const auto& model = models[i / 2].second;
        const std::string name = models[i / 2].first + (math == CpuMath::Int8 ? " int8" : "");
        const int n_prefix = std::min(n_prefix_asked, model->config.n_context - model->config.n_canvas);
        const Figures f = measure(model, n_prefix, n_repeat, math);
        const auto row = [&](const char* pass, int n_token, double ms, double flop) {
            const double gflops = flop / ms / 1e6;
            fmt::print("{:<16} {:<8} {:>7} {:>10.2f} {:>10.0f} {:>10.1f} {:>9.0f}%\n", name, pass, n_token,
                       ms, n_token * 1e3 / ms, gflops, 100e9 * gflops / peak);
            j["models"][name][pass] = {
                {"tokens", n_token}, {"ms", ms}, {"tok_s", n_token * 1e3 / ms}, {"gflops", gflops}};
        };
        row("encode", n_prefix, f.encode_ms, f.encode_flop);
        row("denoise", model->config.n_canvas, f.denoise_ms, f.denoise_flop);
        std::fflush(stdout);
    }
    return j;
}

std::string profile_table(const StepProfile& p, int n_canvas, int n_prefix) {
    std::string out = fmt::format("copy {:.0f} GB/s, tensor cores {:.1f} TFLOP/s (mma.sync f16)\n",
                                  p.copy_gbs, p.mma_tflops);
    out += fmt::format("{:<24} {:>9} {:>9} {:>9} {:>8} {:>9} {:>9} {:>6}\n", "part of a step", "ms", "MB",
                       "GFLOP", "GB/s", "TFLOP/s", "floor ms", "of it");
    StepPart sum{"sum"};
    double floor_sum = 0;
    const auto row = [&](const StepPart& s, double floor) {
        out += fmt::format("{:<24} {:>9.3f} {:>9.1f} {:>9.2f} {:>8.0f} {:>9.2f} {:>9.3f} {:>5.0f}%\n", s.name,
                           s.ms, s.bytes / 1e6, s.flop / 1e9, s.bytes / s.ms / 1e6, s.flop / s.ms / 1e9,
                           floor, 100 * floor / s.ms);
    };
    for (const StepPart& s : p.parts) {
        const double floor = std::max(s.bytes / p.copy_gbs / 1e6, s.flop / p.mma_tflops / 1e9);
        row(s, floor);
        sum.ms += s.ms;
        sum.bytes += s.bytes;
        sum.flop += s.flop;
        floor_sum += floor;
    }
    row(sum, floor_sum);
    out += fmt::format(
        "a step inside an answer {:.3f} ms ({:.0f} tok/s at 16 steps a canvas, commits left out)\n",
        p.step_ms, n_canvas * 1e3 / (16 * p.step_ms));
    out += fmt::format(
        "encode {} tokens {:.1f} ms ({:.0f} tok/s); load {:.2f} GB in {:.2f} s ({:.1f} GB/s)\n", n_prefix,
        p.encode_ms, n_prefix * 1e3 / p.encode_ms, static_cast<double>(p.load_bytes) / 1e9, p.load_ms / 1e3,
        static_cast<double>(p.load_bytes) / p.load_ms / 1e6);
    return out;
}

// A denoise step on a GPU, part by part.
static nlohmann::ordered_json bench_step(const BenchFlags& flags, const DeviceInfo& device) {
    const std::string name = !flags.model.empty()       ? flags.model
                             : !flags.synthetic.empty() ? flags.synthetic
                                                        : "26b-a4b:q4_k_m";
    const std::shared_ptr<const Model> model =
        flags.model.empty() ? synthetic(name) : std::make_shared<Model>(open_model(flags.model));
    const int n_canvas = model->config.n_canvas, n_prefix = flags.n_prefix ? flags.n_prefix : 1024;
    DeviceOptions options;
    options.index = device.index;
    options.n_context = n_prefix + 2 * n_canvas;
    options.graph_loop = device.graph_loop;
    const StepProfile p = profile_cuda(model, options, n_prefix, flags.n_repeat ? flags.n_repeat : 20);
    fmt::print("{} (driver for CUDA {}.{}), {}, prefix {}, {}\n{}", device.name, device.driver / 1000,
               device.driver % 1000 / 10, name, n_prefix,
               device.graph_loop ? "an answer is one graph" : "steps launched by the host",
               profile_table(p, n_canvas, n_prefix));
    nlohmann::ordered_json j{{"device", device.name},      {"driver", device.driver},
                             {"built", backends()},        {"model", name},
                             {"prefix", n_prefix},         {"step_ms", p.step_ms},
                             {"encode_ms", p.encode_ms},   {"load_ms", p.load_ms},
                             {"load_bytes", p.load_bytes}, {"copy_gbs", p.copy_gbs},
                             {"mma_tflops", p.mma_tflops}};
    for (const StepPart& s : p.parts)
        j["parts"].push_back({{"name", s.name}, {"ms", s.ms}, {"bytes", s.bytes}, {"flop", s.flop}});
    return j;
}

int run_bench(const BenchFlags& flags) {
    require(flags.model.empty() || flags.synthetic.empty(), "both -m and --synthetic given, expected one");
    set_threads(flags.n_thread);
    nlohmann::ordered_json j;
    if (flags.what != "cpu") {
        std::string why;
        const auto devices = cuda_devices(&why);
        const auto device = std::find_if(devices.begin(), devices.end(), [&](const DeviceInfo& d) {
            return flags.device == "cuda" || flags.device == fmt::format("cuda:{}", d.index);
        });
        if (device != devices.end())
            j["step"] = bench_step(flags, *device);
        else if (flags.what == "step")
            fail("there is no device {}{}{}", flags.device, why.empty() ? "" : ": ", why);
        else
            fmt::print("step: SKIPPED, there is no device {}{}{}\n", flags.device, why.empty() ? "" : ": ",
                       why);
    }
    if (flags.what != "step") j["cpu"] = bench_cpu(flags);
    if (!flags.json.empty()) {
        std::ofstream out(flags.json);
        out << j.dump(2) << "\n";
        out.flush();
        require(out.good(), "{}: cannot be written", flags.json);
    }
    return 0;
}

}  // namespace easel
