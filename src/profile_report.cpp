// profile_report.cpp: what was measured on a GPU as tables and as JSON, and the operations of a pass, see
// bench.h. Called by bench.cpp.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "bench.h"
#include "check.h"

namespace easel {

namespace {

using Json = nlohmann::ordered_json;

// The least time for t's bytes and products, at the bandwidth and the rate that were measured.
double floor_ms(const DeviceProfile& p, const Timing& t) {
    return std::max(t.bytes / p.copy_gbs / 1e6, t.flop / p.mma_tflops / 1e9);
}

// Rows of times beside their floors; the last is their sum.
class FloorTable {
  public:
    FloorTable(const DeviceProfile& p, const char* title) : p_(p) {
        out_ = fmt::format("{:<32} {:>5} {:>9} {:>9} {:>9} {:>8} {:>8} {:>9} {:>8}\n", title, "times", "ms",
                           "MB", "GFLOP", "GB/s", "TFLOP/s", "floor ms", "of floor");
    }
    void add(const Timing& t, int n) {
        const double floor = floor_ms(p_, t);
        row(t.name, n, t.ms, t.bytes, t.flop, floor);
        ms_ += n * t.ms;
        bytes_ += n * t.bytes;
        flop_ += n * t.flop;
        floor_ += n * floor;
    }
    std::string end() {
        row("sum", 1, ms_, bytes_, flop_, floor_);
        return std::move(out_);
    }

  private:
    void row(const std::string& name, int n, double ms, double bytes, double flop, double floor) {
        out_ += fmt::format("{:<32} {:>5} {:>9.3f} {:>9.1f} {:>9.2f} {:>8.0f} {:>8.2f} {:>9.3f} {:>7.0f}%\n",
                            name, n, ms, bytes / 1e6, flop / 1e9, bytes / ms / 1e6, flop / ms / 1e9, floor,
                            100 * floor / ms);
    }
    const DeviceProfile& p_;
    std::string out_;
    double ms_ = 0, bytes_ = 0, flop_ = 0, floor_ = 0;
};

std::string step_tables(const DeviceProfile& p, const Config& c, const ProfilePlan& plan) {
    FloorTable parts(p, "part of a step");
    for (const Timing& t : p.parts) parts.add(t, 1);
    std::string out = parts.end() + "\n";
    out += fmt::format("{:<32} {:>9} {:>9} {:>14} {:>8}\n", "a step inside an answer", "ms", "launches",
                       "host launches", "host ms");
    const auto loop = [&](const char* name, const LoopTimes& t) {
        out += fmt::format("{:<32} {:>9.3f} {:>9} {:>14.2f} {:>8.3f}\n", name, t.ms, p.n_launch, t.launches,
                           t.host_ms);
    };
    if (p.graph.ms > 0) {
        loop("one graph per answer", p.graph);
        if (p.overlap_refused.empty()) loop("  launches do not overlap", p.graph_in_order);
    }
    if (!p.overlap_refused.empty())
        out += fmt::format("launches do not overlap: the graph of overlapping launches is refused: {}\n",
                           p.overlap_refused);
    loop("every launch by the host", p.host);
    const double ms = p.graph.ms > 0 ? p.graph.ms : p.host.ms;
    out += fmt::format(
        "{:.0f} tok/s at 16 steps per canvas of {}, without commits; prefix {}; {:.1f} of {} experts have "
        "tokens, the busiest {:.1f} of {}\n",
        c.n_canvas * 1e3 / (16 * ms), c.n_canvas, plan.n_prefix, p.experts_used, c.n_expert, p.expert_tokens,
        c.n_canvas);
    return out;
}

std::string load_table(const DeviceProfile& p) {
    std::string out = fmt::format("{:<12} {:>8} {:>8} {:>7} {:>9} {:>9} {:>12} {:>10}\n", "load", "GB", "s",
                                  "GB/s", "read s", "wait s", "copy s", "repack s");
    for (size_t i = 0; i < p.load.size(); i++) {
        const LoadStats& t = p.load[i];
        const double bytes = static_cast<double>(t.bytes);
        out += fmt::format("{:<12} {:>8.2f} {:>8.2f} {:>7.1f} {:>9.2f} {:>9.2f} {:>12.2f} {:>10.2f}\n",
                           i ? "again" : "first", bytes / 1e9, t.total_ms / 1e3, bytes / t.total_ms / 1e6,
                           t.read_ms / 1e3, t.wait_ms / 1e3, t.copy_ms / 1e3, t.repack_ms / 1e3);
    }
    return out;
}

Json timings(const DeviceProfile& p, const std::vector<Timing>& all) {
    Json out = Json::array();
    for (const Timing& t : all)
        out.push_back({{"name", t.name},
                       {"times", t.n},
                       {"ms", t.ms},
                       {"bytes", t.bytes},
                       {"flop", t.flop},
                       {"floor_ms", floor_ms(p, t)}});
    return out;
}

Json loop_json(const LoopTimes& t) {
    return {{"ms", t.ms}, {"host_ms", t.host_ms}, {"host_launches", t.launches}};
}

// Multiply-adds of w with one token.
double product(const Matrix& w) {
    return static_cast<double>(w.n_row) * static_cast<double>(w.n_col);
}

// Multiply-adds of a layer's matrices with one token, without k and v.
double layer_products(const Layer& l, const Config& c) {
    return product(l.q) + product(l.o) + product(l.gate) + product(l.up) + product(l.down) +
           product(l.router) +
           c.n_expert_used *
               (product(l.gate_exps.first) + product(l.up_exps.first) + product(l.down_exps.first));
}

// Multiply-adds of a token's query heads with one key and its value.
double key_products(const LayerShape& l, const Config& c) {
    return 2.0 * l.head_dim * c.n_head;
}

}  // namespace

double encode_flop(const Model& m, int n) {
    const Config& c = m.config;
    double per_token = 0, keys = 0;
    for (const Layer& l : m.layers) {
        per_token += product(l.k) + product(l.v);
        if (&l == &m.layers.back()) break;  // only its K and V are computed
        per_token += layer_products(l, c);
        const double full = l.shape.global ? n : std::min(n, c.window);  // keys of the last token
        keys += key_products(l.shape, c) * (full * (full + 1) / 2 + (n - full) * full);
    }
    return 2 * (per_token * n + keys);
}

// Layers attend to the prefix (its window on sliding ones) and the canvas; the soft embedding is a product.
double denoise_flop(const Model& m, int n_prefix) {
    const Config& c = m.config;
    double per_token = product(m.token_embd) + product(m.self_cond_gate) + product(m.self_cond_up) +
                       product(m.self_cond_down) + product(m.output);
    for (const Layer& l : m.layers) {
        const int n_key = c.n_canvas + (l.shape.global ? n_prefix : std::min(n_prefix, c.window - 1));
        per_token += product(l.k) + product(l.v) + layer_products(l, c) + key_products(l.shape, c) * n_key;
    }
    return 2 * per_token * c.n_canvas;
}

std::string profile_tables(const DeviceProfile& p, const Model& m, const ProfilePlan& plan) {
    std::string out;
    if (p.copy_gbs > 0)
        out += fmt::format(
            "copy {:.0f} GB/s, memory reads {:.0f} GB/s, L2 reads {:.0f} GB/s, tensor cores {:.1f} TFLOP/s "
            "(f16)\n\n",
            p.copy_gbs, p.read_gbs, p.l2_gbs, p.mma_tflops);
    if (!p.parts.empty()) out += step_tables(p, m.config, plan) + "\n";
    if (!p.kernels.empty()) {
        FloorTable kernels(p, "kernel alone (ms each)");
        for (const Timing& t : p.kernels) kernels.add(t, t.n);
        out += kernels.end() + "\n";
    }
    if (!p.prefill.empty()) {
        out +=
            fmt::format("{:<12} {:>9} {:>9} {:>9} {:>8}\n", "prefill", "ms", "tok/s", "TFLOP/s", "of peak");
        for (const Timing& t : p.prefill) {
            const double tflops = encode_flop(m, t.n) / t.ms / 1e9;
            out += fmt::format("{:<12} {:>9.1f} {:>9.0f} {:>9.2f} {:>7.0f}%\n", t.n, t.ms, t.n * 1e3 / t.ms,
                               tflops, 100 * tflops / p.mma_tflops);
        }
        out += "\n";
    }
    return out + load_table(p);
}

std::string profile_json(const DeviceProfile& p, const Model& m, const ProfilePlan& plan) {
    Json j;
    if (p.copy_gbs > 0)
        j = {{"copy_gbs", p.copy_gbs},
             {"read_gbs", p.read_gbs},
             {"l2_gbs", p.l2_gbs},
             {"mma_tflops", p.mma_tflops}};
    if (!p.parts.empty()) {
        Json& step = j["step"];
        step = {{"prefix", plan.n_prefix},
                {"canvas", m.config.n_canvas},
                {"launches", p.n_launch},
                {"experts_used", p.experts_used},
                {"expert_tokens", p.expert_tokens}};
        if (p.graph.ms > 0) {
            step["graph"] = loop_json(p.graph);
            step["graph_in_order"] = loop_json(p.graph_in_order);
        }
        if (!p.overlap_refused.empty()) step["overlap_refused"] = p.overlap_refused;
        step["host_loop"] = loop_json(p.host);
        step["parts"] = timings(p, p.parts);
    }
    if (!p.kernels.empty()) j["kernels"] = timings(p, p.kernels);
    for (const Timing& t : p.prefill)
        j["prefill"].push_back({{"tokens", t.n},
                                {"ms", t.ms},
                                {"tok_s", t.n * 1e3 / t.ms},
                                {"flop", encode_flop(m, t.n)},
                                {"floor_ms", encode_flop(m, t.n) / p.mma_tflops / 1e9}});
    for (const LoadStats& t : p.load)
        j["load"].push_back({{"bytes", t.bytes},
                             {"ms", t.total_ms},
                             {"read_ms", t.read_ms},
                             {"wait_ms", t.wait_ms},
                             {"copy_ms", t.copy_ms},
                             {"repack_ms", t.repack_ms}});
    return j.dump(2);
}

}  // namespace easel
