// profile.h: the CUDA backend as `easel bench` measures it: the names of a step's parts, and the backend's
// insides. backend.cpp opens up; profile.cpp and bench_kernels.cpp measure.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "bench.h"
#include "device.h"
#include "forward.h"
#include "layout.h"

namespace easel {

// The name of each Part.
constexpr const char* kPartNames[] = {"embedding",
                                      "soft embedding",
                                      "self-conditioning",
                                      "canvas norm, angles",
                                      "q, k, v",
                                      "q, k, v norms, rope",
                                      "attention",
                                      "attention output",
                                      "norms after attention",
                                      "dense gate, up",
                                      "dense down",
                                      "router, permutation",
                                      "experts gate, up",
                                      "experts down",
                                      "sums and norms",
                                      "lm head",
                                      "sample",
                                      "accept"};

// The insides of a backend; T as in backend.cpp.
template <class T>
struct Measured {
    Backend& backend;
    const Config& config;
    const Room& room;
    const ModelWeights& weights;
    const Buffers<T>& buffers;
    const std::vector<KvLayer<T>>& cache;
    Stream stream;
    LoadStats load;
    std::function<void(const GenerateParams&)> begin;  // a canvas whose steps the host launches
    std::function<void(Marks&)> step;                  // one of them; waits for its end
    // generate(), in the graph or by the host; with a note if the driver refuses the graph. In a graph whose
    // launches do not overlap while there is a LaunchesInOrder.
    std::function<Answer(const GenerateParams&, bool graph)> answer;
    std::function<int()> n_launch;                 // of a step
    std::function<std::string()> overlap_refused;  // why launches do not overlap in graphs; empty: they do
};

// All that the plan asks for.
template <class T>
DeviceProfile measure(const Measured<T>& m, const ProfilePlan& plan);

// Bytes and FLOP of a product with all of a matrix, all experts; n_row rows of activations.
Timing product(const Weights& weights, double n_row);
// Bytes and FLOP of a layer's attention in a denoise pass after n_prefix tokens.
template <class T>
Timing attention_cost(const AttentionShape& shape, const KvLayer<T>& cache, int n_canvas, int n_prefix);

// Times each kernel of a step alone (bench_kernels.cpp), on the buffers that a step has left; the cache holds
// n_prefix tokens. Weights are read from memory, not from the L2 cache: launches go through all layers, or
// the cache is flushed before each.
template <class T>
std::vector<Timing> time_kernels(const Measured<T>& m, int n_prefix, int n_repeat);

}  // namespace easel
