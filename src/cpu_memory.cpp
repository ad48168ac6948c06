// cpu_memory.cpp: what the host has, what the CPU backend takes of it, and the context that fits a limit;
// cuda/layout.cpp has the same for a GPU. Called by the engine, by reference.cpp and by `easel info`.
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "check.h"
#include "gemm.h"
#include "int8.h"
#include "memory_plan.h"
#include "parallel.h"
#include "text.h"

namespace easel {

int64_t host_memory(const std::filesystem::path& root) {
    int64_t bytes = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
    std::ifstream own(root / "proc/self/cgroup");
    for (std::string line; std::getline(own, line);) {
        if (!line.starts_with("0::/")) continue;  // "0::/a/b", of version 2
        const std::filesystem::path all = root / "sys/fs/cgroup";
        for (auto group = line.size() == 4 ? all : all / line.substr(4);; group = group.parent_path()) {
            int64_t limit = 0;
            if (std::ifstream(group / "memory.max") >> limit) bytes = std::min(bytes, limit);  // not if "max"
            if (group == all || !group.has_relative_path()) break;
        }
    }
    return bytes;
}

int cpu_sliding_rows(const Config& c, int n_context) {
    const int64_t n = int64_t{c.window} - 1 + kCpuReserve + kCpuEncode + std::max(kCpuEncode, c.n_canvas);
    return static_cast<int>(std::min<int64_t>(n_context, n));
}

// Bytes of the copies that gemm() keeps in passes of up to n tokens, in float or int8, whichever takes more.
static int64_t kept_copies(const Model& model, int64_t n) {
    const Config& c = model.config;
    int64_t most = 0;
    for (const CpuMath math : {CpuMath::Float, CpuMath::Int8}) {
        int64_t kept[2] = {};  // in float, in int8
        const auto product = [&](const Matrix& w, int64_t n_row, bool rounded = true) {
            const bool int8 = rounded && math == CpuMath::Int8 && has_int8(w.type);
            kept[int8] = std::max(kept[int8], copy_bytes(n_row, w.n_col, int8));
        };
        for (const Layer& l : model.layers) {
            for (const Matrix* w : {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down}) product(*w, n);
            for (const ExpertMatrix* w : {&l.gate_exps, &l.up_exps, &l.down_exps})
                product(w->first, n * c.n_expert_used);
            product(l.router, n, false);
        }
        for (const Matrix* w :
             {&model.self_cond_gate, &model.self_cond_up, &model.self_cond_down, &model.output})
            product(*w, c.n_canvas);
        most = std::max(most, kept[0] + kept[1]);
    }
    return most;
}

MemoryPlan plan_cpu(const Model& model, int n_context) {
    const Config& c = model.config;
    const int64_t n = std::max(kCpuEncode, c.n_canvas);  // tokens of the largest pass
    const int64_t n_sliding = cpu_sliding_rows(c, n_context);
    int64_t q = 0, kv = 0;
    for (const LayerShape& l : c.layers) {
        q = std::max(q, int64_t{c.n_head + l.n_head_kv} * 2 * l.head_dim);
        kv += 2 * int64_t{l.n_head_kv} * l.head_dim * (l.global ? n_context : n_sliding);
    }
    const int64_t n_ff = std::max(c.n_ff, c.n_ff_self_cond);
    const int64_t angles = 2 * int64_t{c.max_head_dim()};  // cos and sin, of global and of sliding layers
    const int64_t per_token = 5 * int64_t{c.n_embd} + q + angles + 2 * n_ff +
                              int64_t{c.n_expert_used} * 2 * (c.n_embd + c.n_ff_exp + 2) + c.n_expert;
    const int64_t probs = int64_t{c.n_canvas} * (c.n_vocab + c.n_embd);  // and their soft embedding
    const int64_t per_thread = int64_t{kCpuRows} * n_context +           // scores, and copies for products
                               copy_bytes(kCpuRows, c.max_head_dim(), false) / 4 +
                               kTransposedRows * std::max(kCpuRows, c.n_canvas);
    return {.weights = model.weight_bytes(),
            .kv = 4 * kv,
            .scratch = 4 * (n * per_token + probs + n_threads() * per_thread) + kept_copies(model, n),
            .n_encode = static_cast<int>(n)};
}

int fit_cpu(const Model& model, int n_context, int64_t limit) {
    const Config& c = model.config;
    const auto needed = [&](int n) {
        const MemoryPlan p = plan_cpu(model, n);
        return p.kv + p.scratch;
    };
    const int least = std::min(c.n_canvas + 1, c.n_context);  // a prompt of one token
    const int largest = largest_that_fits(least, c.n_context, [&](int n) { return needed(n) <= limit; });
    const int asked = n_context ? n_context : std::max(largest, least);
    if (needed(asked) <= limit) return asked;
    const std::string needs = fmt::format("a context of {} needs {} besides the mapped file, the limit is {}",
                                          asked, human_bytes(needed(asked)), human_bytes(limit));
    require(!largest, "{}: the largest that fits is {} (-c {})", needs, largest, largest);
    fail("{}: no context fits", needs);
}

}  // namespace easel
