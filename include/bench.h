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
    int n_repeat = 1;          // times that a figure is the median of
};

// A time beside what it was needed for.
struct Timing {
    std::string name;
    double ms = 0;
    double bytes = 0;  // that must be read at least: weights, keys and values
    double flop = 0;   // of its products
    int n = 1;         // launches of a kernel in a step; tokens of a prompt
};

// A denoise step inside an answer, where nothing is measured in between.
struct LoopTimes {
    double ms = 0;        // by the device's clock
    double host_ms = 0;   // processor time of the host's thread
    double launches = 0;  // that the host makes
};

struct DeviceProfile {
    double copy_gbs = 0;          // a large copy on the device, bytes read and written
    double read_gbs = 0;          // a large read
    double l2_gbs = 0;            // reads of what stays in the L2 cache
    double mma_tflops = 0;        // mma.m16n8k16 in F16 and nothing else
    std::vector<LoadStats> load;  // one, or as many as bench.cpp asked for
    std::vector<Timing> parts;    // of a step: a kind of launches each, all layers together
    int n_launch = 0;             // of a step on the device
    // ms 0 in the first two: the driver has no conditional nodes. In order: no launch begins before the last
    // one has ended.
    LoopTimes graph, graph_in_order, host;
    std::string overlap_refused;  // by the driver, in graphs, and why: then all are in order
    // Routing in a step, means over the layers: experts that have tokens, tokens of the fullest.
    double experts_used = 0, expert_tokens = 0;
    std::vector<Timing> kernels;  // milliseconds a launch
    std::vector<Timing> prefill;  // no bytes or products: the tables know the model's
};

double median(std::vector<double> v);  // 0 of none
// Ids for a prompt of n tokens, always the same.
std::vector<int32_t> random_prompt(int n, int n_vocab);
// Milliseconds of such a prompt's pass from an empty cache: the median of n_repeat after one that warms up;
// what takes more than two seconds is not repeated.
double time_prompt(Backend& backend, int n_vocab, int n, int n_repeat);

// Operations, two for a multiply-add: of the causal pass over a prompt of n tokens, and of a denoise step
// with self-conditioning after a prefix.
double encode_flop(const Model& model, int n);
double denoise_flop(const Model& model, int n_prefix);

// A backend of its own, loaded and measured as the plan says.
DeviceProfile profile_cuda(std::shared_ptr<const Model> model, const DeviceOptions& options,
                           const ProfilePlan& plan);

// Tables of what the profile holds: each time beside the floor that bytes and products set on this device.
std::string profile_tables(const DeviceProfile& profile, const Model& model, const ProfilePlan& plan);
// The same as JSON text, without the tables' sums and shares.
std::string profile_json(const DeviceProfile& profile, const Model& model, const ProfilePlan& plan);

}  // namespace easel
