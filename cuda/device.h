// device.h: the GPU as the rest of this folder sees it: memory, copies, streams, graphs with loops. Two
// implementations, device_cuda.cpp and, for machines without a GPU, device_sim.cpp on the simulator (sim.h).
// Kernels are launched by the launchers of ops.h. Everything throws Error: what was tried, what CUDA said.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "ptx.h"

namespace easel {

// Makes a device the one that this thread works with.
void use_device(int index);
// Free memory of the device in use.
int64_t free_device_bytes();

// Device memory; its content is undefined. A zero size gives null.
void* device_alloc(size_t bytes);
void device_free(void* p) noexcept;
// Host memory that the device reads and writes too, and its address over there. Zeroed.
void* mapped_alloc(size_t bytes);
void* mapped_device_address(void* host);
void mapped_free(void* host) noexcept;
// Host memory for copies that run beside other work.
void* pinned_alloc(size_t bytes);
void pinned_free(void* host) noexcept;

Stream make_stream();
void free_stream(Stream stream) noexcept;
// In the order of the stream; `host` memory must live until then.
void copy_to_device(Stream stream, void* device, const void* host, size_t bytes);
void copy_to_host(Stream stream, void* host, const void* device, size_t bytes);
void copy_on_device(Stream stream, void* to, const void* from, size_t bytes);
void fill_zero(Stream stream, void* device, size_t bytes);
// Waits for all that the stream has been given.
void finish(Stream stream);
// Whether it has all been done; Error if something in it failed.
bool finished(Stream stream);

// A mark in a stream that the host can wait for; before the first record(), wait() returns at once.
class Event {
  public:
    explicit Event(bool timed = false);
    ~Event();
    Event(const Event&) = delete;
    void record(Stream stream);
    void wait();
    // Milliseconds of the stream from `start` to this one; both timed, recorded and waited for.
    double ms_since(const Event& start) const;

  private:
    void* handle_ = nullptr;
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

// A graph, built in order: what `launch` puts into the stream it is given; loops and branches whose body is
// built in the same way. Conditions begin every run with their default, and kernels change them with
// set_condition(). Instantiate once, run often.
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

    // Launches, copies and fills of the graph itself, without its loops' and branches'.
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
