// cudart_device.h: the device of cudart.cpp, with its streams, events, captures and graphs: what it has been
// given, and what it does of that next. Whether a call is right is checked in cudart.cpp.
#pragma once
#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace easel::cudart {

using Clock = std::chrono::steady_clock;
using Work = std::function<void()>;
enum class Kind { Other, Launch, Overlap };  // the last: a launch that may begin while the one before it ends

// ---- graphs as they run -----------------------------------------------------------------------------------

// Where a conditional node looks. Kernels have the address of `value` as a handle + 1: see ops.cpp.
struct Handle {
    bool value = false, start = false, assigns = false;
    cudaGraphNode_t node = nullptr;
    cudaGraphConditionalHandle id() { return std::bit_cast<uint64_t>(&value) - 1; }
};

struct Program {
    struct Step {
        Work run;
        std::vector<size_t> after;
        std::shared_ptr<Handle> condition;  // of a conditional node, whose body that is:
        bool loops = false;
        std::unique_ptr<Program> body;
    };
    std::vector<Step> steps;
    std::vector<std::shared_ptr<Handle>> handles;
    bool overlaps = false;  // a launch may begin before the one ahead of it has ended

    bool conditional() const {
        return std::any_of(steps.begin(), steps.end(), [](auto& s) { return s.condition != nullptr; });
    }
};

// Something that a stream has been given.
struct Op {
    Work run;
    std::shared_ptr<Program> graph;
    std::vector<std::shared_ptr<Op>> after;
    bool wanted = false, running = false, done = false;
    Clock::time_point time;  // of its end
};
using OpPtr = std::shared_ptr<Op>;

struct Capture {
    cudaStream_t origin;
    cudaGraph_t graph;
    cudaStreamCaptureMode mode;
    std::thread::id thread;
    unsigned long long id;
    bool broken = false, ended = false;
    std::set<cudaStream_t> streams;
};

struct Memory {
    size_t bytes;
    bool device;  // or pinned
};

}  // namespace easel::cudart

// ---- CUDA's handles ---------------------------------------------------------------------------------------

struct CUstream_st {
    std::deque<easel::cudart::OpPtr> ops;
    easel::cudart::OpPtr last;
    std::shared_ptr<easel::cudart::Capture> capture;
    std::vector<cudaGraphNode_t> front, told;  // in a capture: what the next node comes after
    bool launched = false;                     // outside of one: the last order is a launch
};
struct CUevent_st {
    bool timed;
    easel::cudart::OpPtr op;                          // of the last record(), or
    std::shared_ptr<easel::cudart::Capture> capture;  // of that one, in a capture
    std::vector<cudaGraphNode_t> nodes;
};
struct CUgraphNode_st {
    easel::cudart::Work run;
    easel::cudart::Kind kind;
    std::vector<cudaGraphNode_t> after;
    std::shared_ptr<easel::cudart::Handle> condition;
    bool loops = false;
    cudaGraph_t body[1] = {};
};
struct CUgraph_st {
    std::vector<std::unique_ptr<CUgraphNode_st>> nodes;
    std::vector<std::shared_ptr<easel::cudart::Handle>> handles;
    cudaGraph_t parent = nullptr;  // of a body: the graph with its node
    bool lost = false, capturing = false;
};
struct CUgraphExec_st {
    std::shared_ptr<easel::cudart::Program> program;
    easel::cudart::OpPtr last;
};

namespace easel::cudart {

// ---- the device -------------------------------------------------------------------------------------------

constexpr size_t kMemory = size_t{5} << 29;

// All that there is; used under its mutex, but for what runs. It outlives every other object.
struct Device {
    std::mutex mutex;
    std::condition_variable changed;
    std::thread thread;
    bool quits = false;
    cudaError_t lost = cudaSuccess;
    std::string refuses;
    uint64_t seed = 0, random = 0, n_launch = 0, n_overlap = 0, n_copy = 0, n_graph = 0, n_capture = 0;

    std::map<char*, Memory> memory;
    size_t used = 0;
    CUstream_st null_stream;
    std::set<cudaStream_t> streams, ended_streams;
    std::set<cudaEvent_t> events;
    std::set<cudaGraph_t> graphs;
    std::set<cudaGraphExec_t> execs;
    std::set<std::shared_ptr<Capture>> captures;

    // Drawn by the seed: below n.
    uint64_t draw(uint64_t n);
    // The stream whose first op runs next; null: none may.
    cudaStream_t choose(bool graphs_too);
    // Runs it, without the lock, and whoever waits for it goes on.
    void run_first(std::unique_lock<std::mutex>& lock, cudaStream_t s);
    void run_graph(Program& p);
    void run_nodes(Program& p);
    void work();  // what the device's thread does
    // The stream's next op, a graph's run or other work.
    OpPtr push(cudaStream_t s, Work run, std::shared_ptr<Program> graph = nullptr);
    // From now on the device may get on with it.
    void want(const OpPtr& op);
    void wait(std::unique_lock<std::mutex>& lock, const OpPtr& op);
    void wait_for_all(std::unique_lock<std::mutex>& lock);
    // The block that p to p + bytes are in.
    const Memory* find(const void* p, size_t bytes) const;
    bool touches(const void* p, size_t bytes) const;
    // At the program's end: counts, and what has been left, which is a failure.
    void print_leaks();
};
Device& device();

// ---- captures and graphs ----------------------------------------------------------------------------------

void begin_capture(Device& d, cudaStream_t s, cudaGraph_t g, cudaStreamCaptureMode mode);
// Whether `nodes` are of the graph, and none is there twice.
bool has_nodes(cudaGraph_t g, const cudaGraphNode_t* nodes, size_t n);
// All that `nodes` come after, and they.
std::set<cudaGraphNode_t> with_all_before(std::vector<cudaGraphNode_t> nodes);
bool is_capturing(cudaGraph_t g);
// That a broken capture has taken along, or the body of a node in it.
bool has_lost(cudaGraph_t g);
void destroy(Device& d, cudaGraph_t g);
std::unique_ptr<Program> compile(cudaGraph_t g);

}  // namespace easel::cudart
