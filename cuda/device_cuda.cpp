// device_cuda.cpp: device.h on the CUDA runtime, and the only file that calls it. Compiled by the C++
// compiler: kernels are in the .cu files. libcudart is linked statically and finds the driver when it is
// first used.
#include <fmt/format.h>

#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <sstream>
#include <string>

#include "backend.h"
#include "check.h"
#include "device.h"

namespace easel {

namespace {

constexpr int kOldestDriver = 12040;  // the first with conditional graph nodes that kernels set

// Throws DeviceError if the device cannot be used any more, as after a kernel's fault, else Error.
[[noreturn]] void fail_with(cudaError_t e, std::string text) {
    text += fmt::format(": {} ({})", cudaGetErrorString(e), cudaGetErrorName(e));
    size_t free = 0, total = 0;
    cudaGetLastError();  // or the next call would report it again
    const bool lost = cudaMemGetInfo(&free, &total) != cudaSuccess;
    cudaGetLastError();
    if (lost) throw DeviceError(text);
    throw Error(text);
}

void check(cudaError_t e, const char* what, const char* file, int line) {
    if (e != cudaSuccess) fail_with(e, fmt::format("CUDA: {} failed at {}:{}", what, file, line));
}
#define CUDA(call) check(call, #call, __FILE__, __LINE__)

std::atomic<bool> abandoned = false;

// For calls that free something: nobody can do anything about a failure, and no later launch is to report it.
template <class F>
void give_back(F f) noexcept {
    if (!abandoned && f() != cudaSuccess) cudaGetLastError();
}

// Streams to which a launch was given last.
std::mutex launched_mutex;
std::set<Stream> launched;
void order_other(Stream stream) {  // something else than a launch is given
    const std::lock_guard lock(launched_mutex);
    launched.erase(stream);
}

// Whether the device in use is to begin a launch while the one before it ends. Cards of 12.0 can, but are not
// asked to before it has been tried on one: they are said to hang in graphs of other programs that do so
// (llama.cpp #27330, #27102).
bool can_overlap() {
    thread_local int known = -1;
    thread_local bool can = false;
    int device = 0, major = 0;
    CUDA(cudaGetDevice(&device));
    if (device == known) return can;
    CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    known = device;
    return can = major == 9 || major == 10;
}

// Code of sm_XY runs on X.Y and later minor versions, but that of sm_90a only on 9.0, and on Jetson modules
// (8.7, 10.1) only their own. The program contains no PTX.
bool has_code(const cudaDeviceProp& p) {
    const bool jetson = (p.major == 8 && p.minor == 7) || (p.major == 10 && p.minor == 1);
    std::istringstream archs(EASEL_ARCHS);
    for (std::string arch; archs >> arch;) {
        const int n = std::stoi(arch), minor = n % 10;
        const bool exact = jetson || arch.back() == 'a';
        if (n / 10 == p.major && (exact ? minor == p.minor : minor <= p.minor)) return true;
    }
    return false;
}

}  // namespace

void check_launch(cudaError_t e, const char* kernel) {
    if (e == cudaSuccess) return;
    cudaGetLastError();  // or the next call would report it again
    if (e == cudaErrorNoKernelImageForDevice)
        fail("CUDA: this program has no code for this GPU, only for {}: build it with `make ARCH=native`",
             EASEL_ARCHS);
    // A fault of an earlier kernel is reported by any later call.
    fail_with(e, fmt::format("CUDA: kernel {} was not launched, or one before it failed", kernel));
}

void allow_shared(const void* kernel, const char* name, size_t bytes) {
    // What each kernel has on each device, for all threads: a smaller limit would break another's launch.
    static std::mutex mutex;
    static std::map<std::pair<const void*, int>, size_t> allowed;
    int device = 0;
    CUDA(cudaGetDevice(&device));
    const std::lock_guard lock(mutex);
    size_t& have = allowed[{kernel, device}];
    if (have >= bytes) return;
    const cudaError_t e =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (e == cudaErrorInvalidValue) {
        cudaGetLastError();
        fail("CUDA: kernel {} needs {} bytes of shared memory a block: {}", name, bytes,
             cudaGetErrorString(e));
    }
    check_launch(e, name);
    have = bytes;
}

// Never on the null stream: tests launch kernels of their own there, without wait_for_last_launch().
bool overlaps_last(Stream stream) {
    if (!stream) return false;
    const std::lock_guard lock(launched_mutex);
    const bool first = launched.insert(stream).second;
    return !first && !LaunchesInOrder::any() && can_overlap();
}

std::string backends() {
    return fmt::format("CPU and CUDA {}.{} for {}", CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10,
                       EASEL_ARCHS);
}

std::vector<DeviceInfo> cuda_devices(std::string* why) {
    std::string reason;
    std::vector<DeviceInfo> out;
    int n = 0, driver = 0;
    const cudaError_t e = cudaGetDeviceCount(&n);
    cudaDriverGetVersion(&driver);
    if (e != cudaSuccess) {
        cudaGetLastError();
        if (driver == 0)
            reason = "there is no NVIDIA driver";
        else
            reason = fmt::format("{} (driver for CUDA {}.{}, this program was built with {}.{})",
                                 cudaGetErrorString(e), driver / 1000, driver % 1000 / 10,
                                 CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
        n = 0;
    } else if (driver < kOldestDriver) {
        reason = fmt::format("the driver is for CUDA {}.{}, 12.4 or later is needed (driver 550)",
                             driver / 1000, driver % 1000 / 10);
        n = 0;
    }
    for (int i = 0; i < n; i++) {
        cudaDeviceProp p;
        if (const cudaError_t bad = cudaGetDeviceProperties(&p, i); bad != cudaSuccess) {
            cudaGetLastError();
            reason = fmt::format("GPU {} cannot be used: {}", i, cudaGetErrorString(bad));
            continue;
        }
        if (p.major < 8) {
            reason = fmt::format("{} has compute capability {}.{}, 8.0 or later is needed", p.name, p.major,
                                 p.minor);
            continue;
        }
        if (!has_code(p)) {
            reason = fmt::format(
                "{} has compute capability {}.{}, this program has code only for {}: build it with "
                "`make ARCH=native`",
                p.name, p.major, p.minor, EASEL_ARCHS);
            continue;
        }
        out.push_back({i, p.name, 10 * p.major + p.minor, static_cast<int64_t>(p.totalGlobalMem), driver,
                       p.multiProcessorCount});
    }
    if (why) *why = reason.empty() && out.empty() ? "there is no NVIDIA GPU" : reason;
    return out;
}

void use_device(int index) {
    CUDA(cudaSetDevice(index));
}
int max_shared_bytes() {
    int device = 0, bytes = 0;
    CUDA(cudaGetDevice(&device));
    CUDA(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    return bytes;
}
int n_sm() {
    int device = 0, n = 0;
    CUDA(cudaGetDevice(&device));
    CUDA(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device));
    return n;
}
int64_t free_device_bytes() {
    size_t free = 0, total = 0;
    CUDA(cudaMemGetInfo(&free, &total));
    return static_cast<int64_t>(free);
}

void abandon_device(Stream) noexcept {
    abandoned = true;
}

void* device_alloc(size_t bytes) {
    if (!bytes) return nullptr;
    check_alloc(bytes);
    void* p = nullptr;
    const cudaError_t e = cudaMalloc(&p, bytes);
    if (e == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        fail("out of GPU memory: {:.2f} GB asked for, {:.2f} GB free", bytes / 1e9,
             free_device_bytes() / 1e9);
    }
    check(e, "cudaMalloc", __FILE__, __LINE__);
    return count_alloc(p, bytes);
}
void device_free(void* p) noexcept {
    count_free(p);
    give_back([&] { return cudaFree(p); });
}
void* mapped_alloc(size_t bytes) {
    void* p = pinned_alloc(bytes);
    std::memset(p, 0, bytes);
    return p;
}
void* mapped_device_address(void* host) {
    void* p = nullptr;
    CUDA(cudaHostGetDevicePointer(&p, host, 0));
    return p;
}
void mapped_free(void* host) noexcept {
    pinned_free(host);
}
void* pinned_alloc(size_t bytes) {
    void* p = nullptr;
    // Mapped: the body of a graph's loop may copy only from such host memory.
    const cudaError_t e = cudaHostAlloc(&p, bytes, cudaHostAllocMapped);
    if (e == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        fail("out of host memory: {:.2f} GB asked for, pinned, so that the GPU reaches it", bytes / 1e9);
    }
    check(e, "cudaHostAlloc", __FILE__, __LINE__);
    return p;
}
void pinned_free(void* host) noexcept {
    give_back([&] { return cudaFreeHost(host); });
}

Stream make_stream() {
    Stream s = nullptr;
    CUDA(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    return s;
}
void free_stream(Stream stream) noexcept {
    order_other(stream);
    give_back([&] { return cudaStreamDestroy(stream); });
}
void copy_to_device(Stream stream, void* device, const void* host, size_t bytes) {
    order_other(stream);
    CUDA(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream));
}
void copy_to_host(Stream stream, void* host, const void* device, size_t bytes) {
    order_other(stream);
    CUDA(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream));
}
void copy_on_device(Stream stream, void* to, const void* from, size_t bytes) {
    order_other(stream);
    CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream));
}
void fill_zero(Stream stream, void* device, size_t bytes) {
    order_other(stream);
    CUDA(cudaMemsetAsync(device, 0, bytes, stream));
}
void finish(Stream stream) {
    CUDA(cudaStreamSynchronize(stream));
}
bool finished(Stream stream) {
    const cudaError_t e = cudaStreamQuery(stream);
    if (e == cudaErrorNotReady) {
        cudaGetLastError();  // or the next launch might be blamed for it
        return false;
    }
    check(e, "cudaStreamQuery", __FILE__, __LINE__);
    return true;
}

Event::Event(bool timed) {
    cudaEvent_t e = nullptr;
    CUDA(cudaEventCreateWithFlags(&e, timed ? cudaEventDefault : cudaEventDisableTiming));
    handle_ = e;
}
Event::~Event() {
    give_back([&] { return cudaEventDestroy(static_cast<cudaEvent_t>(handle_)); });
}
void Event::record(Stream stream) {
    CUDA(cudaEventRecord(static_cast<cudaEvent_t>(handle_), stream));
}
void Event::wait() {
    CUDA(cudaEventSynchronize(static_cast<cudaEvent_t>(handle_)));
}

void Event::hold(Stream stream) {
    order_other(stream);
    CUDA(cudaStreamWaitEvent(stream, static_cast<cudaEvent_t>(handle_), 0));
}

double Event::ms_since(const Event& start) const {
    float ms = 0;
    CUDA(cudaEventElapsedTime(&ms, static_cast<cudaEvent_t>(start.handle_),
                              static_cast<cudaEvent_t>(handle_)));
    return ms;
}

// ---- graphs -----------------------------------------------------------------------------------------------

struct Graph::Impl {
    cudaGraph_t graph = nullptr;
    Impl* parent = nullptr;             // of a node's body: the graph with the node, which destroys the body
    bool lost = false;                  // a capture has failed: see end_capture()
    std::vector<cudaGraphNode_t> last;  // nodes that the next one depends on
    cudaGraphExec_t exec = nullptr;

    ~Impl() {
        if (exec) give_back([&] { return cudaGraphExecDestroy(exec); });
        if (graph && !parent && !lost) give_back([&] { return cudaGraphDestroy(graph); });
    }

    void capture(const Launches& launches) {
        const OwnStream stream;
        // Relaxed: a kernel's first launch loads its code, which other modes may refuse during a capture.
        CUDA(cudaStreamBeginCaptureToGraph(stream.s, graph, last.data(), nullptr, last.size(),
                                           cudaStreamCaptureModeRelaxed));
        try {
            launches(stream.s);
            take_last(stream.s);
        } catch (...) {
            end_capture(stream.s);
            throw;
        }
        check(end_capture(stream.s), "ending a capture", __FILE__, __LINE__);
    }

    // A capture that fails destroys the graph that it was capturing into. If that is the body of a node, the
    // node does not know, and destroying the graph that has the node would end the process
    // (NVIDIA/cuda-python#2918): such graphs, `lost`, are leaked.
    cudaError_t end_capture(Stream s) {
        cudaGraph_t captured = nullptr;
        const cudaError_t e = cudaStreamEndCapture(s, &captured);
        if (e == cudaSuccess) return e;
        cudaGetLastError();
        for (Impl* i = this; i; i = i->parent) i->lost = true;
        return e;
    }

    // The nodes that the stream's next launch would depend on.
    void take_last(Stream s) {
        cudaStreamCaptureStatus status;
        const cudaGraphNode_t* nodes = nullptr;
        const cudaGraphEdgeData* edges = nullptr;  // without it, edges of overlapping launches are an error
        size_t n = 0;
#if CUDART_VERSION >= 13000
        CUDA(cudaStreamGetCaptureInfo(s, &status, nullptr, nullptr, &nodes, &edges, &n));
#else
        CUDA(cudaStreamGetCaptureInfo_v3(s, &status, nullptr, nullptr, &nodes, &edges, &n));
#endif
        require(status == cudaStreamCaptureStatusActive, "CUDA: a graph capture was broken off");
        last.assign(nodes, nodes + n);
    }

    void add(Condition condition, cudaGraphConditionalNodeType type, const Body& body) {
        cudaGraphNodeParams params{};
        params.type = cudaGraphNodeTypeConditional;
        params.conditional.handle = condition - 1;
        params.conditional.type = type;
        params.conditional.size = 1;
        cudaGraphNode_t node = nullptr;
#if CUDART_VERSION >= 13000
        CUDA(cudaGraphAddNode(&node, graph, last.data(), nullptr, last.size(), &params));
#else
        CUDA(cudaGraphAddNode(&node, graph, last.data(), last.size(), &params));
#endif
        auto inner = std::make_unique<Impl>();
        inner->graph = params.conditional.phGraph_out[0];
        inner->parent = this;
        Graph g(std::move(inner));
        body(g);
        require(g.n_launch() > 0, "bug: a loop or a branch without a body");  // some drivers hang in those
        last = {node};
    }
};

Graph::Graph() : impl_(std::make_unique<Impl>()) {
    CUDA(cudaGraphCreate(&impl_->graph, 0));
}
Graph::Graph(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Graph::~Graph() = default;

Condition Graph::condition(bool at_start) {
    cudaGraphConditionalHandle handle{};
    CUDA(cudaGraphConditionalHandleCreate(&handle, impl_->graph, at_start, cudaGraphCondAssignDefault));
    return handle + 1;
}
void Graph::launch(const Launches& launches) {
    impl_->capture(launches);
}
void Graph::loop(Condition while_true, const Body& body) {
    impl_->add(while_true, cudaGraphCondTypeWhile, body);
}
void Graph::branch(Condition if_true, const Body& body) {
    impl_->add(if_true, cudaGraphCondTypeIf, body);
}
int Graph::n_launch() const {
    size_t n = 0;
    CUDA(cudaGraphGetNodes(impl_->graph, nullptr, &n));
    return static_cast<int>(n);
}
void Graph::instantiate() {
    cudaGraphInstantiateParams params{};
    const cudaError_t e = cudaGraphInstantiateWithParams(&impl_->exec, impl_->graph, &params);
    // The error is "invalid argument" for most rules that a graph can break; the result tells which.
    const int result = params.result_out;
    check(e, fmt::format("cudaGraphInstantiateWithParams (result {})", result).c_str(), __FILE__, __LINE__);
}
void Graph::run(Stream stream) {
    order_other(stream);
    CUDA(cudaGraphLaunch(impl_->exec, stream));
}

}  // namespace easel
