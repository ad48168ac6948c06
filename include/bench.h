// bench.h: what `easel bench` measures on a GPU (cuda/profile.cpp, cuda/bench_kernels.cpp), asked for by
// src/bench.cpp, and its tables (src/profile_report.cpp).
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "backend.h"

namespace easel {

struct ProfilePlan {
    bool step = false;         // a denoise step, part by part, and inside an answer
    bool kernels = false;      // each kernel alone
    std::vector<int> prefill;  // prompts of so many tokens, each from an empty cache
    int n_prefix = 0;          // random tokens before a step
    int n_repeat = 1;          // runs that each figure is the median of
};

// A time, and the work that was done in it.
struct Timing {
    std::string name;
    double ms = 0;
    double bytes = 0;  // the least that must be read: weights, keys and values
    double flop = 0;   // of its products, two for a multiply-add
    int n = 1;         // of a kernel: launches in a step; of a prompt: tokens
};

// A denoise step, averaged over an answer that is not interrupted to measure parts of it.
struct LoopTimes {
    double ms = 0;        // by the device's clock
    double host_ms = 0;   // processor time of the host's thread
    double launches = 0;  // that the host makes: of a graph, its share of the one
};

struct DeviceProfile {
    double copy_gbs = 0;          // of a large copy on the device, bytes read plus bytes written
    double read_gbs = 0;          // of a large read
    double l2_gbs = 0;            // of reads of what stays in the L2 cache
    double mma_tflops = 0;        // of F16 mma.m16n8k16 alone
    std::vector<LoadStats> load;  // one; bench.cpp adds a second one for `bench load`
    std::vector<Timing> parts;    // of a step, by Part (cuda/forward.h), each summed over the layers
    int n_launch = 0;             // launches that a step consists of
    // The loop as a graph, as a graph in which no launch begins before the previous one has ended, and
    // launched by the host. The first two have ms 0 if the driver refuses the graph.
    LoopTimes graph, graph_in_order, host;
    std::string overlap_refused;  // why the driver refuses overlapping launches in graphs; empty: it does not
    // Routing in a step, means over layers: experts with at least one token, and tokens of the fullest.
    double experts_used = 0, expert_tokens = 0;
    std::vector<Timing> kernels;  // ms is that of one launch
    std::vector<Timing> prefill;  // bytes and flop unset: the tables use encode_flop()
};

double median(std::vector<double> v);  // 0 of none
// Ids for a prompt of n tokens, always the same.
std::vector<int32_t> random_prompt(int n, int n_vocab);
// Milliseconds to encode such a prompt from an empty cache: the median of n_repeat runs after a warm-up. Ends
// with the first run of more than two seconds, which counts even as the warm-up.
double time_prompt(Backend& backend, int n_vocab, int n, int n_repeat);

// Operations, two for a multiply-add: of the causal pass over a prompt of n tokens, and of a denoise step
// with self-conditioning after a prefix.
double encode_flop(const Model& model, int n);
double denoise_flop(const Model& model, int n_prefix);

// Loads a backend of its own and measures what the plan asks for.
DeviceProfile profile_cuda(std::shared_ptr<const Model> model, const DeviceOptions& options,
                           const ProfilePlan& plan);

// The profile as tables: each time beside its floor, the least that its bytes and products take on this GPU.
std::string profile_tables(const DeviceProfile& profile, const Model& model, const ProfilePlan& plan);
// The same as JSON text, without the tables' sums and shares.
std::string profile_json(const DeviceProfile& profile, const Model& model, const ProfilePlan& plan);

}  // namespace easel
