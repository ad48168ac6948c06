// device.h: the GPU as the rest of this folder sees it: memory, copies, streams, graphs with loops. Two
// implementations, device_cuda.cpp and, for machines without a GPU, device_sim.cpp on the simulator (sim.h).
// Kernels are launched by the launchers of ops.h. Everything throws Error: what was tried, what CUDA said.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "types.h"

namespace easel {

// Makes a device the one that this thread works with.
void use_device(int index);
// Shared memory, static and dynamic, that a block may have on the device in use.
int max_shared_bytes();
// Multiprocessors of the device in use.
int n_sm();
// Free memory of the device in use, as the driver says.
int64_t free_device_bytes();

// For a device that hangs: from now on nothing is given back to it, as that would wait for it too. The end of
// the process does so. The simulator, where nothing hangs for ever, waits for the stream instead.
void abandon_device(Stream stream) noexcept;

// Bytes that device_alloc() has given out.
struct DeviceMemory {
    int64_t used = 0, peak = 0;  // now; at most since limit_device_memory()
    int64_t limit = 0;           // 0: none
};
DeviceMemory device_memory();
// From now on device_alloc() fails beyond `limit` bytes (0: none); the peak begins anew.
void limit_device_memory(int64_t limit);
// For the two implementations (device_memory.cpp): called before an allocation, after it, before it is freed.
void check_alloc(size_t bytes);
void* count_alloc(void* p, size_t bytes);
void count_free(void* p) noexcept;

// Device memory; its content is undefined. A zero size gives null. Error if there is too little, or beyond
// the limit.
void* device_alloc(size_t bytes);
void device_free(void* p) noexcept;
// Host memory that the device reads and writes, too; zeroed. mapped_device_address(): its device address.
void* mapped_alloc(size_t bytes);
void* mapped_device_address(void* host);
void mapped_free(void* host) noexcept;
// Host memory for copies that run beside other work, in graphs too. Its content is undefined.
void* pinned_alloc(size_t bytes);
void pinned_free(void* host) noexcept;

Stream make_stream();
void free_stream(Stream stream) noexcept;
// Copies in the order of the stream; `host` memory must live until they are done.
void copy_to_device(Stream stream, void* device, const void* host, size_t bytes);
void copy_to_host(Stream stream, void* host, const void* device, size_t bytes);
void copy_on_device(Stream stream, void* to, const void* from, size_t bytes);
void fill_zero(Stream stream, void* device, size_t bytes);
// Waits for all that the stream has been given.
void finish(Stream stream);
// Whether all that the stream has been given is done; Error if something of it failed.
bool finished(Stream stream);

// While one exists in the process, a launch begins only when the launch before it in its stream has ended,
// even on GPUs that would overlap them (ptx.h: wait_for_last_launch()); branches of a graph still run beside
// each other. For comparison, and where a driver refuses graphs with launches that overlap.
class LaunchesInOrder {
  public:
    LaunchesInOrder() { n_++; }
    ~LaunchesInOrder() { n_--; }
    LaunchesInOrder(const LaunchesInOrder&) = delete;
    static bool any() { return n_ > 0; }

  private:
    static inline std::atomic<int> n_ = 0;
};

// A mark in a stream that the host can wait for; before the first record(), wait() returns at once.
class Event {
  public:
    explicit Event(bool timed = false);
    ~Event();
    Event(const Event&) = delete;
    void record(Stream stream);
    void wait();
    // What `stream` is given from now on begins after the mark (cudaStreamWaitEvent). If the mark is in a
    // stream that a graph is captured from, `stream` joins the capture. Before the capture ends, the captured
    // stream must wait for all that `stream` was given.
    void hold(Stream stream);
    // Milliseconds from `start` to this event; both timed, recorded and waited for.
    double ms_since(const Event& start) const;

  private:
    void* handle_ = nullptr;
};

// A stream that ends with its owner.
struct OwnStream {
    Stream s = make_stream();
    OwnStream() = default;
    OwnStream(const OwnStream&) = delete;
    ~OwnStream() { free_stream(s); }
};

// A stream for work beside another stream's, from fork() to join(). In a capture, a branch of the graph.
class SideStream {
  public:
    // Returns the side stream: what that is given from now on comes after all that `stream` has been given.
    Stream fork(Stream stream) {
        forked_.record(stream);
        forked_.hold(side_.s);
        return side_.s;
    }
    // What `stream` is given from now on comes after all that the side stream has been given.
    void join(Stream stream) {
        joined_.record(side_.s);
        joined_.hold(stream);
    }

  private:
    OwnStream side_;
    Event forked_, joined_;
};

// A typed array in device memory.
template <class T>
class DeviceArray {
  public:
    DeviceArray() = default;
    explicit DeviceArray(size_t n) : data_(static_cast<T*>(device_alloc(n * sizeof(T)))), size_(n) {}
    DeviceArray(Stream stream, std::span<const T> values) : DeviceArray(values.size()) {
        copy_to_device(stream, data_, values.data(), values.size_bytes());
        finish(stream);
    }
    DeviceArray(Stream stream, const std::vector<T>& values) : DeviceArray(stream, std::span(values)) {}
    DeviceArray(DeviceArray&& o) noexcept
        : data_(std::exchange(o.data_, nullptr)), size_(std::exchange(o.size_, 0)) {}
    DeviceArray& operator=(DeviceArray&& o) noexcept {
        std::swap(data_, o.data_);
        std::swap(size_, o.size_);
        return *this;
    }
    ~DeviceArray() { device_free(data_); }

    T* data() const { return data_; }
    size_t size() const { return size_; }
    size_t bytes() const { return size_ * sizeof(T); }
    std::vector<T> to_host(Stream stream) const {
        std::vector<T> out(size_);
        copy_to_host(stream, out.data(), data_, bytes());
        finish(stream);
        return out;
    }

  private:
    T* data_ = nullptr;
    size_t size_ = 0;
};

// A graph, built in order: launch() adds what its argument puts into the stream that it is passed, loop() and
// branch() a body that is built in the same way. Conditions begin every run with their default, at_start, and
// kernels change them with set_condition(). Instantiate once, run often.
class Graph {
  public:
    using Launches = std::function<void(Stream)>;
    using Body = std::function<void(Graph&)>;

    Graph();
    ~Graph();
    Graph(const Graph&) = delete;

    Condition condition(bool at_start);
    void launch(const Launches& launches);
    void loop(Condition while_true, const Body& body);
    void branch(Condition if_true, const Body& body);

    // Launches, copies and fills of the graph itself, not of the bodies of its loops and branches.
    int n_launch() const;

    void instantiate();
    // Adds a run to the stream and returns; the simulator runs it in a thread of its own.
    void run(Stream stream);

  private:
    struct Impl;
    explicit Graph(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

}  // namespace easel
