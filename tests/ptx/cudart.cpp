// cudart.cpp: a CUDA runtime without a GPU: those functions of it that the objects of unit-gpu call, and
// nvcc's own. A launch finds the kernel's PTX by the name that nvcc registered and runs it in the simulator
// (launch.h). `make test-fake-gpu` links the GPU tests with it: what they show of device_cuda.cpp, the
// launch stubs and the engine as it is built for CUDA is that the calls are right by CUDA's documentation.
//
// What the documentation leaves open goes as badly as it may. One thread is the device: of all that is next
// in some stream and may begin, it takes any; late, if the seed (EASEL_FAKE_GPU_SEED) says so: only once the
// host waits for it, or for what comes after it; but graphs begin by themselves. Copies read and write host
// memory when it is their turn, pageable memory too. Nodes of a graph run in any order that the edges allow,
// with work of other streams between them. In a capture, copies from or to pageable memory are refused. A
// capture to a graph that is broken off takes the graph along; destroying what that graph was the body of
// ends the process. EASEL_FAKE_GPU_REFUSES: "conditional", "instantiate" or "launch", of graphs with
// conditional nodes.
//
// Not here: two kernels at the same moment, and so their races; memory order between device and host; time.
#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

#include "check.h"
#include "launch.h"

using namespace easel;

namespace {

using Clock = std::chrono::steady_clock;
using Work = std::function<void()>;

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
    bool whole;  // the graph is the capture's own
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

}  // namespace

struct CUstream_st {
    std::deque<OpPtr> ops;
    OpPtr last;
    std::shared_ptr<Capture> capture;
    std::vector<cudaGraphNode_t> front, told;  // in a capture: what the next node comes after
};
struct CUevent_st {
    bool timed;
    OpPtr op;                          // of the last record(), or
    std::shared_ptr<Capture> capture;  // of that one, in a capture
    std::vector<cudaGraphNode_t> nodes;
};
struct CUgraphNode_st {
    Work run;
    std::vector<cudaGraphNode_t> after;
    std::shared_ptr<Handle> condition;
    bool loops = false;
    cudaGraph_t body[1] = {};
};
struct CUgraph_st {
    std::vector<std::unique_ptr<CUgraphNode_st>> nodes;
    std::vector<std::shared_ptr<Handle>> handles;
    cudaGraph_t parent = nullptr;  // of a body: the graph with its node
    bool lost = false, capturing = false;
};
struct CUgraphExec_st {
    std::shared_ptr<Program> program;
    OpPtr last;
};
struct CUkern_st {
    const char* name;
    const ptx::Code* code = nullptr;
    size_t allowed = 0;  // bytes of dynamic shared memory
};

namespace {

// That a broken capture has taken along, or the body of a node in it.
bool has_lost(cudaGraph_t g) {
    return g->lost || std::any_of(g->nodes.begin(), g->nodes.end(),
                                  [](auto& n) { return n->body[0] && has_lost(n->body[0]); });
}

constexpr size_t kMemory = size_t{5} << 29, kUnasked = 48 << 10, kMostShared = 227 << 10;

// ---- the device -------------------------------------------------------------------------------------------

// All that there is; used under its mutex, but for what runs. It outlives every other object.
struct Device {
    std::mutex mutex;
    std::condition_variable changed;
    std::thread thread;
    bool quits = false;
    cudaError_t lost = cudaSuccess;
    std::string refuses;
    uint64_t seed = 0, random = 0, n_launch = 0, n_copy = 0, n_graph = 0, n_capture = 0;

    std::map<char*, Memory> memory;
    size_t used = 0;
    CUstream_st null_stream;
    std::set<cudaStream_t> streams, ended_streams;
    std::set<cudaEvent_t> events;
    std::set<cudaGraph_t> graphs;
    std::set<cudaGraphExec_t> execs;
    std::set<std::shared_ptr<Capture>> captures;

    // Drawn by the seed: below n.
    uint64_t draw(uint64_t n) {
        uint64_t z = random += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return (z ^ (z >> 31)) % n;
    }

    // The stream whose first op runs next; null: none may.
    cudaStream_t choose(bool graphs_too) {
        std::vector<cudaStream_t> can;
        const bool late = seed % 3 == 0 || (seed % 3 == 1 && draw(4));
        const auto look = [&](cudaStream_t s) {
            if (s->ops.empty()) return;
            const Op& op = *s->ops.front();
            if (op.running || (late && !op.wanted) || (op.graph && !graphs_too)) return;
            if (std::all_of(op.after.begin(), op.after.end(), [](auto& o) { return o->done; }))
                can.push_back(s);
        };
        look(&null_stream);
        for (const auto* all : {&streams, &ended_streams})
            for (cudaStream_t s : *all) look(s);
        return can.empty() ? nullptr : can[draw(can.size())];
    }

    void run_first(std::unique_lock<std::mutex>& lock, cudaStream_t s) {
        const OpPtr op = s->ops.front();
        op->running = true;
        if (lost == cudaSuccess) {
            ptx::set_order(draw(1000));
            lock.unlock();
            std::string what;
            try {
                if (op->graph)
                    run_graph(*op->graph);
                else if (op->run)
                    op->run();
            } catch (const std::exception& e) {
                what = e.what();
            }
            lock.lock();
            if (!what.empty()) {
                lost = cudaErrorIllegalAddress;
                fmt::print(stderr, "fake GPU: {}\n", what);
            }
        }
        op->time = Clock::now();
        op->done = true;
        op->run = nullptr;
        op->graph = nullptr;
        op->after.clear();
        s->ops.pop_front();
        if (s->ops.empty() && ended_streams.erase(s)) delete s;
        changed.notify_all();
    }

    void run_graph(Program& p) {
        for (const auto& h : p.handles) h->value = h->assigns ? h->start : draw(2);
        run_nodes(p);
    }
    void run_nodes(Program& p) {
        std::vector<bool> done(p.steps.size());
        for (size_t n = 0; n < p.steps.size(); n++) {
            std::vector<size_t> can;
            for (size_t i = 0; i < p.steps.size(); i++)
                if (!done[i] && std::all_of(p.steps[i].after.begin(), p.steps[i].after.end(),
                                            [&](size_t k) { return done[k]; }))
                    can.push_back(i);
            std::unique_lock lock(mutex);
            const size_t i = can[draw(can.size())];
            if (cudaStream_t other = draw(2) ? choose(false) : nullptr) run_first(lock, other);
            lock.unlock();
            Program::Step& step = p.steps[i];
            if (!step.condition)
                step.run();
            else if (step.loops)
                while (step.condition->value) run_nodes(*step.body);
            else if (step.condition->value)
                run_nodes(*step.body);
            done[i] = true;
        }
    }

    void work() {
        std::unique_lock lock(mutex);
        while (!quits) {
            if (cudaStream_t s = choose(true))
                run_first(lock, s);
            else
                changed.wait_for(lock, std::chrono::milliseconds(1));
        }
    }

    OpPtr push(cudaStream_t s, Work run, std::shared_ptr<Program> graph = nullptr) {
        auto op = std::make_shared<Op>(Op{std::move(run), std::move(graph)});
        if (s->last && !s->last->done) op->after.push_back(s->last);
        s->ops.push_back(op);
        changed.notify_all();
        return s->last = op;
    }

    // From now on the device may get on with it.
    void want(const OpPtr& op) {
        for (std::vector<OpPtr> all{op}; !all.empty();) {
            const OpPtr o = all.back();
            all.pop_back();
            if (!o || o->done || std::exchange(o->wanted, true)) continue;
            all.insert(all.end(), o->after.begin(), o->after.end());
        }
        changed.notify_all();
    }
    void wait(std::unique_lock<std::mutex>& lock, const OpPtr& op) {
        want(op);
        changed.wait(lock, [&] { return !op || op->done; });
    }
    void wait_for_all(std::unique_lock<std::mutex>& lock) {
        std::vector<OpPtr> all{null_stream.last};
        for (const auto* set : {&streams, &ended_streams})
            for (cudaStream_t s : *set) all.push_back(s->last);
        for (const OpPtr& op : all) wait(lock, op);
    }

    // The block that p to p + bytes are in.
    const Memory* find(const void* p, size_t bytes) const {
        char* c = const_cast<char*>(static_cast<const char*>(p));
        const auto next = memory.upper_bound(c);
        if (next == memory.begin()) return nullptr;
        const auto& [begin, m] = *std::prev(next);
        return c + bytes <= begin + m.bytes ? &m : nullptr;
    }
    bool touches(const void* p, size_t bytes) const {
        return find(p, 1) || find(static_cast<const char*>(p) + bytes - 1, 1);
    }

    void print_leaks() {
        {
            std::lock_guard lock(mutex);
            quits = true;
        }
        if (thread.joinable()) thread.join();
        fmt::print("fake GPU, seed {}: {} launches, {} copies and fills, {} captures, {} runs of graphs\n",
                   seed, n_launch, n_copy, n_capture, n_graph);
        bool leaks = false;
        size_t n_op = null_stream.ops.size(), n_graph_left = 0;
        for (const auto* set : {&streams, &ended_streams})
            for (cudaStream_t s : *set) n_op += s->ops.size();
        for (cudaGraph_t g : graphs) n_graph_left += !g->parent && !has_lost(g);
        const auto tell = [&](size_t n, const char* what) {
            if (!n || lost) return;
            fmt::print(stderr, "fake GPU: LEFT at the end: {} {}\n", n, what);
            leaks = true;
        };
        tell(memory.size(), "blocks of memory");
        tell(streams.size(), "streams");
        tell(events.size(), "events");
        tell(n_graph_left, "graphs");
        tell(execs.size(), "executable graphs");
        tell(captures.size(), "captures");
        tell(n_op, "operations that nobody waited for");
        if (leaks) fflush(nullptr), _exit(1);
    }
};

Device& device() {
    static Device& d = *[] {
        auto* made = new Device;
        if (const char* seed = getenv("EASEL_FAKE_GPU_SEED")) made->seed = strtoull(seed, nullptr, 10);
        if (const char* what = getenv("EASEL_FAKE_GPU_REFUSES")) made->refuses = what;
        made->random = made->seed;
        made->thread = std::thread([made] { made->work(); });
        atexit([] { device().print_leaks(); });
        return made;
    }();
    return d;
}

std::map<const void*, CUkern_st>& kernels() {
    static auto& all = *new std::map<const void*, CUkern_st>;
    return all;
}

thread_local cudaError_t last_error = cudaSuccess;

cudaError_t failed(cudaError_t e) {
    if (e != cudaSuccess) last_error = e;
    return e;
}
[[noreturn]] void die(const char* what) {
    fmt::print(stderr, "fake GPU: {}\n", what);
    abort();
}

// Of every function: the device under its mutex; ends the call if the device is lost, or if not `ok`.
#define BEGIN()                     \
    Device& d = device();           \
    std::unique_lock lock(d.mutex); \
    if (d.lost) return failed(d.lost)
#define CHECK_CALL(ok, error) \
    if (!(ok)) return failed(error)
#define GET_STREAM(s)           \
    if (!s) s = &d.null_stream; \
    CHECK_CALL(s == &d.null_stream || d.streams.contains(s), cudaErrorInvalidResourceHandle)

// ---- captures ---------------------------------------------------------------------------------------------

cudaError_t break_capture(Capture& c, cudaError_t e) {
    c.broken = true;
    return failed(e);
}
// Calls that may do more than they say: not while somebody captures in another mode than the relaxed one.
cudaError_t unsafe(Device& d) {
    for (const auto& c : d.captures)
        if (c->mode == cudaStreamCaptureModeGlobal ||
            (c->mode == cudaStreamCaptureModeThreadLocal && c->thread == std::this_thread::get_id()))
            return break_capture(*c, cudaErrorStreamCaptureUnsupported);
    return cudaSuccess;
}
#define CHECK_UNSAFE() \
    if (const cudaError_t bad = unsafe(d)) return bad

// Work for a stream, or a node of what it is captured for.
cudaError_t add(Device& d, cudaStream_t s, Work run) {
    s->told.assign(s->told.size(), nullptr);
    if (!s->capture) {
        d.push(s, std::move(run));
        return cudaSuccess;
    }
    CHECK_CALL(!s->capture->broken, cudaErrorStreamCaptureInvalidated);
    auto& nodes = s->capture->graph->nodes;
    nodes.push_back(std::make_unique<CUgraphNode_st>());
    nodes.back()->run = std::move(run);
    nodes.back()->after = s->front;
    s->front = {nodes.back().get()};
    return cudaSuccess;
}

bool has_nodes(cudaGraph_t g, const cudaGraphNode_t* nodes, size_t n) {
    std::set<cudaGraphNode_t> own;
    for (const auto& node : g->nodes) own.insert(node.get());
    return std::all_of(nodes, nodes + n, [&](auto node) { return own.erase(node); });  // and none twice
}

cudaError_t begin_capture(Device& d, cudaStream_t s, cudaGraph_t g, bool whole, cudaStreamCaptureMode mode) {
    d.n_capture++;
    g->capturing = true;
    s->capture =
        std::make_shared<Capture>(Capture{s, g, whole, mode, std::this_thread::get_id(), d.n_capture});
    s->capture->streams = {s};
    d.captures.insert(s->capture);
    return cudaSuccess;
}

// All that `nodes` come after, and they.
std::set<cudaGraphNode_t> with_all_before(std::vector<cudaGraphNode_t> nodes) {
    std::set<cudaGraphNode_t> out;
    while (!nodes.empty()) {
        const auto node = nodes.back();
        nodes.pop_back();
        if (out.insert(node).second) nodes.insert(nodes.end(), node->after.begin(), node->after.end());
    }
    return out;
}

// ---- graphs -----------------------------------------------------------------------------------------------

bool is_capturing(cudaGraph_t g) {
    return g->capturing || std::any_of(g->nodes.begin(), g->nodes.end(),
                                       [](auto& n) { return n->body[0] && is_capturing(n->body[0]); });
}
void destroy(Device& d, cudaGraph_t g) {
    for (const auto& n : g->nodes)
        if (n->body[0]) destroy(d, n->body[0]);
    d.graphs.erase(g);
    delete g;
}

std::unique_ptr<Program> compile(cudaGraph_t g) {
    auto p = std::make_unique<Program>();
    p->handles = g->handles;
    std::map<cudaGraphNode_t, size_t> index;
    for (const auto& n : g->nodes) {
        Program::Step& step = p->steps.emplace_back();
        step.run = n->run;
        for (cudaGraphNode_t before : n->after) step.after.push_back(index.at(before));
        step.condition = n->condition;
        step.loops = n->loops;
        if (n->body[0]) {
            step.body = compile(n->body[0]);
            p->handles.insert(p->handles.end(), step.body->handles.begin(), step.body->handles.end());
        }
        index[n.get()] = p->steps.size() - 1;
    }
    return p;
}

}  // namespace

extern "C" {

// ---- errors and devices -----------------------------------------------------------------------------------

#define ERRORS(X)                        \
    X(cudaSuccess)                       \
    X(cudaErrorInvalidValue)             \
    X(cudaErrorMemoryAllocation)         \
    X(cudaErrorInvalidConfiguration)     \
    X(cudaErrorInvalidDeviceFunction)    \
    X(cudaErrorInvalidDevice)            \
    X(cudaErrorInvalidResourceHandle)    \
    X(cudaErrorIllegalState)             \
    X(cudaErrorNotReady)                 \
    X(cudaErrorIllegalAddress)           \
    X(cudaErrorLaunchOutOfResources)     \
    X(cudaErrorNotSupported)             \
    X(cudaErrorStreamCaptureUnsupported) \
    X(cudaErrorStreamCaptureInvalidated) \
    X(cudaErrorStreamCaptureMerge)       \
    X(cudaErrorStreamCaptureUnmatched)   \
    X(cudaErrorStreamCaptureUnjoined)    \
    X(cudaErrorStreamCaptureImplicit)    \
    X(cudaErrorStreamCaptureIsolation)   \
    X(cudaErrorStreamCaptureWrongThread) \
    X(cudaErrorCapturedEvent)
const char* cudaGetErrorName(cudaError_t e) {
#define NAME(x) \
    case x:     \
        return #x;
    switch (e) {
        ERRORS(NAME)
        default:
            return "unrecognized error code";
    }
}
const char* cudaGetErrorString(cudaError_t e) {
    return cudaGetErrorName(e);
}
cudaError_t cudaGetLastError() {
    return std::exchange(last_error, device().lost);
}
cudaError_t cudaGetDeviceCount(int* n) {
    *n = 1;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int* index) {
    *index = 0;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int index) {
    BEGIN();
    CHECK_CALL(index == 0, cudaErrorInvalidDevice);
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int index) {
    CHECK_CALL(index == 0, cudaErrorInvalidDevice);
    *p = {};
    strcpy(p->name, "fake GPU");
    p->major = 9;
    p->multiProcessorCount = 132;
    p->totalGlobalMem = kMemory;
    return cudaSuccess;
}

// ---- memory -----------------------------------------------------------------------------------------------

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    BEGIN();
    *free = kMemory - d.used;
    *total = kMemory;
    return cudaSuccess;
}
static cudaError_t allocate(void** p, size_t bytes, bool on_device) {
    BEGIN();
    CHECK_UNSAFE();
    CHECK_CALL(p, cudaErrorInvalidValue);
    *p = nullptr;
    if (!bytes) return cudaSuccess;
    CHECK_CALL(!on_device || bytes <= kMemory - d.used, cudaErrorMemoryAllocation);
    *p = ptx::allocate(bytes);
    d.memory[static_cast<char*>(*p)] = {bytes, on_device};
    d.used += on_device ? bytes : 0;
    return cudaSuccess;
}
static cudaError_t release(void* p, bool on_device) {
    BEGIN();
    CHECK_UNSAFE();
    if (!p) return cudaSuccess;
    const auto m = d.memory.find(static_cast<char*>(p));
    CHECK_CALL(m != d.memory.end() && m->second.device == on_device, cudaErrorInvalidValue);
    d.wait_for_all(lock);  // as CUDA does
    CHECK_CALL(!d.lost, d.lost);
    d.used -= on_device ? m->second.bytes : 0;
    d.memory.erase(m);
    ptx::deallocate(p);
    return cudaSuccess;
}
cudaError_t cudaMalloc(void** p, size_t bytes) {
    return allocate(p, bytes, true);
}
cudaError_t cudaFree(void* p) {
    return release(p, true);
}
cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned flags) {
    CHECK_CALL(flags == cudaHostAllocMapped, cudaErrorNotSupported);
    return allocate(p, bytes, false);
}
cudaError_t cudaFreeHost(void* p) {
    return release(p, false);
}
cudaError_t cudaHostGetDevicePointer(void** out, void* host, unsigned flags) {
    BEGIN();
    const Memory* m = d.find(host, 1);
    CHECK_CALL(out && flags == 0 && m && !m->device, cudaErrorInvalidValue);
    *out = host;
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind kind, cudaStream_t s) {
    BEGIN();
    GET_STREAM(s);
    if (!n) return cudaSuccess;
    for (const bool source : {false, true}) {
        const void* p = source ? from : to;
        const Memory* m = d.find(p, n);
        if (kind == cudaMemcpyDeviceToDevice ||
            kind == (source ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice)) {
            CHECK_CALL(m && m->device, cudaErrorInvalidValue);
            continue;
        }
        CHECK_CALL(p && (m ? !m->device : !d.touches(p, n)), cudaErrorInvalidValue);
        if (s->capture && !m) return break_capture(*s->capture, cudaErrorStreamCaptureUnsupported);
    }
    d.n_copy++;
    return add(d, s, [=] { memcpy(to, from, n); });
}
cudaError_t cudaMemsetAsync(void* p, int value, size_t n, cudaStream_t s) {
    BEGIN();
    GET_STREAM(s);
    if (!n) return cudaSuccess;
    CHECK_CALL(d.find(p, n), cudaErrorInvalidValue);
    d.n_copy++;
    return add(d, s, [=] { memset(p, value, n); });
}

// ---- streams and events -----------------------------------------------------------------------------------

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned flags) {
    BEGIN();
    CHECK_CALL(s, cudaErrorInvalidValue);
    CHECK_CALL(flags == cudaStreamNonBlocking, cudaErrorNotSupported);  // others wait for the null stream
    d.streams.insert(*s = new CUstream_st);
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t s) {
    BEGIN();
    CHECK_CALL(d.streams.contains(s), cudaErrorInvalidResourceHandle);
    if (s->capture) die("a stream is destroyed while it is captured");
    d.streams.erase(s);
    d.want(s->last);
    if (s->ops.empty())
        delete s;
    else
        d.ended_streams.insert(s);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    BEGIN();
    GET_STREAM(s);
    if (s->capture) return break_capture(*s->capture, cudaErrorStreamCaptureUnsupported);
    d.wait(lock, s->last);
    return failed(d.lost);
}
cudaError_t cudaStreamQuery(cudaStream_t s) {
    BEGIN();
    GET_STREAM(s);
    if (s->capture) return break_capture(*s->capture, cudaErrorStreamCaptureUnsupported);
    d.want(s->last);
    return failed(!s->last || s->last->done ? cudaSuccess : cudaErrorNotReady);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned flags) {
    BEGIN();
    CHECK_CALL(e && (flags == cudaEventDefault || flags == cudaEventDisableTiming), cudaErrorInvalidValue);
    d.events.insert(*e = new CUevent_st{flags == cudaEventDefault});
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t e) {
    BEGIN();
    CHECK_CALL(d.events.erase(e), cudaErrorInvalidResourceHandle);
    delete e;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    BEGIN();
    GET_STREAM(s);
    CHECK_CALL(d.events.contains(e), cudaErrorInvalidResourceHandle);
    CHECK_CALL(!s->capture || !s->capture->broken, cudaErrorStreamCaptureInvalidated);
    e->capture = s->capture;
    e->nodes = s->front;
    e->op = s->capture ? nullptr : d.push(s, nullptr);
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags) {
    BEGIN();
    GET_STREAM(s);
    CHECK_CALL(d.events.contains(e), cudaErrorInvalidResourceHandle);
    CHECK_CALL(flags == 0, cudaErrorInvalidValue);
    if (s->capture && s->capture->broken) return failed(cudaErrorStreamCaptureInvalidated);
    if (!e->capture) {
        if (s->capture) return break_capture(*s->capture, cudaErrorStreamCaptureIsolation);
        if (e->op && !e->op->done) d.push(s, nullptr)->after.push_back(e->op);
        return cudaSuccess;
    }
    if (e->capture->ended) {
        if (s->capture) return break_capture(*s->capture, cudaErrorStreamCaptureIsolation);
        return failed(cudaErrorCapturedEvent);
    }
    CHECK_CALL(!e->capture->broken, cudaErrorStreamCaptureInvalidated);
    if (s->capture && s->capture != e->capture) {
        e->capture->broken = true;
        return break_capture(*s->capture, cudaErrorStreamCaptureMerge);
    }
    CHECK_CALL(s != &d.null_stream, cudaErrorStreamCaptureImplicit);
    if (!s->capture) {
        s->capture = e->capture;
        s->capture->streams.insert(s);
        s->front.clear();
    }
    for (cudaGraphNode_t n : e->nodes)
        if (std::find(s->front.begin(), s->front.end(), n) == s->front.end()) s->front.push_back(n);
    return cudaSuccess;
}
static cudaError_t use_captured(cudaEvent_t e) {
    if (!e->capture->ended) e->capture->broken = true;
    return failed(cudaErrorCapturedEvent);
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    BEGIN();
    CHECK_CALL(d.events.contains(e), cudaErrorInvalidResourceHandle);
    if (e->capture) return use_captured(e);
    const OpPtr op = e->op;
    d.wait(lock, op);
    return failed(d.lost);
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t end) {
    BEGIN();
    for (cudaEvent_t e : {start, end}) {
        CHECK_CALL(d.events.contains(e) && e->timed, cudaErrorInvalidResourceHandle);
        if (e->capture) return use_captured(e);
        CHECK_CALL(e->op, cudaErrorInvalidResourceHandle);
        CHECK_CALL(e->op->done, cudaErrorNotReady);
    }
    *ms = std::chrono::duration<float, std::milli>(end->op->time - start->op->time).count();
    return cudaSuccess;
}

// ---- launches ---------------------------------------------------------------------------------------------

void** __cudaRegisterFatBinary(void*) {
    static void* handle;
    return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* stub, char*, const char* name, int, uint3*, uint3*, dim3*,
                            dim3*, int*) {
    kernels()[stub] = {name};
}

static cudaKernel_t kernel_of(const void* stub) {
    const auto found = kernels().find(stub);
    if (found == kernels().end()) return nullptr;
    CUkern_st& k = found->second;
    if (!k.code) {
        k.code = ptx::find(k.name);
        if (!k.code) die(fmt::format("no .ptx file in $EASEL_PTX has {}", k.name).c_str());
        k.allowed = kUnasked - ptx::needs(*k.code).shared_bytes;
    }
    return &k;
}
cudaError_t __cudaGetKernel(cudaKernel_t* out, const void* stub) {
    BEGIN();
    *out = kernel_of(stub);
    CHECK_CALL(*out, cudaErrorInvalidDeviceFunction);
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* stub, cudaFuncAttribute attribute, int value) {
    BEGIN();
    const cudaKernel_t k = kernel_of(stub);
    CHECK_CALL(k, cudaErrorInvalidDeviceFunction);
    CHECK_CALL(attribute == cudaFuncAttributeMaxDynamicSharedMemorySize && value >= 0 &&
                   value + ptx::needs(*k->code).shared_bytes <= kMostShared,
               cudaErrorInvalidValue);
    k->allowed = value;
    return cudaSuccess;
}

struct Configuration {
    dim3 grid, block;
    size_t shared_bytes;
    cudaStream_t stream;
};
static thread_local std::vector<Configuration> configurations;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream) {
    configurations.push_back({grid, block, shared_bytes, stream});
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes, void* stream) {
    if (configurations.empty()) die("a launch without a configuration");
    const Configuration c = configurations.back();
    configurations.pop_back();
    *grid = c.grid, *block = c.block, *shared_bytes = c.shared_bytes;
    *static_cast<cudaStream_t*>(stream) = c.stream;
    return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void** args, size_t shared, cudaStream_t s) {
    BEGIN();
    GET_STREAM(s);
    CHECK_CALL(k, cudaErrorInvalidDeviceFunction);
    const uint64_t n_thread = uint64_t{b.x} * b.y * b.z;
    CHECK_CALL(g.x && g.y && g.z && g.x <= INT32_MAX && g.y <= 65535 && g.z <= 65535 && n_thread >= 1 &&
                   n_thread <= 1024 && b.z <= 64,
               cudaErrorInvalidConfiguration);
    const ptx::Needs needs = ptx::needs(*k->code);
    CHECK_CALL(n_thread <= needs.n_thread, cudaErrorLaunchOutOfResources);
    CHECK_CALL(shared <= k->allowed && shared + needs.shared_bytes <= kMostShared, cudaErrorInvalidValue);
    ptx::LaunchShape shape{{g.x, g.y, g.z}, {b.x, b.y, b.z}, shared};
    std::vector<char> params = ptx::copy_params(*k->code, args);
    if (strstr(k->name, "mma_peak_kernel")) {  // nobody reads its result, and it has work for a GPU
        shape.grid[0] = 1;
        const int n_step = 2;
        memcpy(params.data() + 8, &n_step, sizeof n_step);
    }
    d.n_launch++;
    return add(d, s, [code = k->code, shape, params] { ptx::launch(*code, shape, params); });
}

// ---- captures and graphs ----------------------------------------------------------------------------------

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode) {
    BEGIN();
    CHECK_CALL(d.streams.contains(s), s ? cudaErrorInvalidResourceHandle : cudaErrorStreamCaptureUnsupported);
    CHECK_CALL(!s->capture, cudaErrorIllegalState);
    const auto g = new CUgraph_st;
    d.graphs.insert(g);
    s->front.clear();
    return begin_capture(d, s, g, true, mode);
}
cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t s, cudaGraph_t g, const cudaGraphNode_t* after,
                                          const cudaGraphEdgeData*, size_t n, cudaStreamCaptureMode mode) {
    BEGIN();
    CHECK_CALL(d.streams.contains(s), s ? cudaErrorInvalidResourceHandle : cudaErrorStreamCaptureUnsupported);
    CHECK_CALL(!s->capture, cudaErrorIllegalState);
    CHECK_CALL(d.graphs.contains(g) && !g->lost && !g->capturing && has_nodes(g, after, n),
               cudaErrorInvalidValue);
    s->front.assign(after, after + n);
    return begin_capture(d, s, g, false, mode);
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph, const cudaGraphNode_t** nodes,
                                     const cudaGraphEdgeData** edges, size_t* n) {
    BEGIN();
    GET_STREAM(s);
    CHECK_CALL(status, cudaErrorInvalidValue);
    const Capture* c = s->capture.get();
    *status = !c          ? cudaStreamCaptureStatusNone
              : c->broken ? cudaStreamCaptureStatusInvalidated
                          : cudaStreamCaptureStatusActive;
    if (!c || c->broken) return cudaSuccess;
    s->told = s->front;  // good until the stream is given something
    if (id) *id = c->id;
    if (graph) *graph = c->graph;
    if (nodes) *nodes = s->told.data();
    if (edges) *edges = nullptr;
    if (n) *n = s->told.size();
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* out) {
    BEGIN();
    CHECK_CALL(d.streams.contains(s), cudaErrorInvalidResourceHandle);
    *out = nullptr;
    CHECK_CALL(s->capture, cudaErrorIllegalState);
    const std::shared_ptr<Capture> c = s->capture;
    if (c->origin != s) return break_capture(*c, cudaErrorStreamCaptureUnmatched);
    if (c->mode != cudaStreamCaptureModeRelaxed && c->thread != std::this_thread::get_id())
        return failed(cudaErrorStreamCaptureWrongThread);
    cudaError_t result = c->broken ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
    const auto joined = with_all_before(s->front);
    for (cudaStream_t other : c->streams)
        for (cudaGraphNode_t n : other->front)
            if (!result && !joined.contains(n)) result = cudaErrorStreamCaptureUnjoined;
    for (cudaStream_t other : c->streams) {
        other->capture = nullptr;
        other->front.clear();
        other->told.assign(other->told.size(), nullptr);
    }
    c->ended = true;
    c->graph->capturing = false;
    d.captures.erase(c);
    if (!result)
        *out = c->graph;
    else if (c->whole)
        destroy(d, c->graph);
    else
        c->graph->lost = true;
    return failed(result);
}

cudaError_t cudaGraphCreate(cudaGraph_t* g, unsigned flags) {
    BEGIN();
    CHECK_CALL(g && flags == 0, cudaErrorInvalidValue);
    d.graphs.insert(*g = new CUgraph_st);
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t g) {
    BEGIN();
    CHECK_CALL(d.graphs.contains(g) && !g->parent && !is_capturing(g), cudaErrorInvalidValue);
    if (has_lost(g)) die("a graph is destroyed that a broken capture has taken along");
    destroy(d, g);
    return cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t* nodes, size_t* n) {
    BEGIN();
    CHECK_CALL(d.graphs.contains(g) && !g->lost && n && !nodes, cudaErrorInvalidValue);
    *n = g->nodes.size();
    return cudaSuccess;
}
cudaError_t cudaGraphConditionalHandleCreate(cudaGraphConditionalHandle* out, cudaGraph_t g, unsigned start,
                                             unsigned flags) {
    BEGIN();
    CHECK_CALL(d.refuses != "conditional", cudaErrorNotSupported);
    CHECK_CALL(out && d.graphs.contains(g) && !g->lost && flags <= cudaGraphCondAssignDefault,
               cudaErrorInvalidValue);
    auto h = std::make_shared<Handle>();
    h->start = start;
    h->assigns = flags == cudaGraphCondAssignDefault;
    *out = h->id();
    g->handles.push_back(std::move(h));
    return cudaSuccess;
}
cudaError_t cudaGraphAddNode(cudaGraphNode_t* out, cudaGraph_t g, const cudaGraphNode_t* after,
                             const cudaGraphEdgeData*, size_t n, cudaGraphNodeParams* params) {
    BEGIN();
    CHECK_CALL(out && params && d.graphs.contains(g) && !g->lost && !g->capturing && has_nodes(g, after, n),
               cudaErrorInvalidValue);
    CHECK_CALL(params->type == cudaGraphNodeTypeConditional, cudaErrorNotSupported);
    cudaConditionalNodeParams& p = params->conditional;
    std::shared_ptr<Handle> handle;  // of the graph, or of one that it is in
    for (cudaGraph_t i = g; i; i = i->parent)
        for (const auto& h : i->handles)
            if (h->id() == p.handle) handle = h;
    CHECK_CALL(handle && !handle->node && p.size == 1 && p.type <= cudaGraphCondTypeWhile,
               cudaErrorInvalidValue);
    auto node = std::make_unique<CUgraphNode_st>();
    node->after.assign(after, after + n);
    node->condition = handle;
    node->loops = p.type == cudaGraphCondTypeWhile;
    d.graphs.insert(node->body[0] = new CUgraph_st);
    node->body[0]->parent = g;
    p.phGraph_out = node->body;
    *out = handle->node = node.get();
    g->nodes.push_back(std::move(node));
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithParams(cudaGraphExec_t* out, cudaGraph_t g,
                                           cudaGraphInstantiateParams* p) {
    BEGIN();
    CHECK_CALL(out && p && p->flags == 0 && d.graphs.contains(g), cudaErrorInvalidValue);
    p->result_out = cudaGraphInstantiateInvalidStructure;
    CHECK_CALL(!g->parent && !has_lost(g) && !is_capturing(g), cudaErrorInvalidValue);
    std::shared_ptr<Program> program = compile(g);
    p->result_out = cudaGraphInstantiateConditionalHandleUnused;
    for (const auto& h : program->handles) CHECK_CALL(h->node, cudaErrorInvalidValue);
    p->result_out = cudaGraphInstantiateError;
    CHECK_CALL(!program->conditional() || d.refuses != "instantiate", cudaErrorNotSupported);
    p->result_out = cudaGraphInstantiateSuccess;
    d.execs.insert(*out = new CUgraphExec_st{program});
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    BEGIN();
    CHECK_CALL(d.execs.erase(exec), cudaErrorInvalidValue);
    delete exec;
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) {
    BEGIN();
    GET_STREAM(s);
    CHECK_CALL(d.execs.contains(exec), cudaErrorInvalidValue);
    if (s->capture) return break_capture(*s->capture, cudaErrorNotSupported);  // CUDA makes a node of it
    CHECK_CALL(!exec->program->conditional() || d.refuses != "launch", cudaErrorNotSupported);
    d.n_graph++;
    const OpPtr before = std::exchange(exec->last, d.push(s, nullptr, exec->program));
    if (before && !before->done) exec->last->after.push_back(before);
    d.want(exec->last);  // it may be that the host looks at nothing but memory
    return cudaSuccess;
}

}  // extern "C"
