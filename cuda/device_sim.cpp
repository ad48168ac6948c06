// device_sim.cpp: device.h on the simulator: launches run at once, on the caller's thread; a graph is a list
// of recorded launches that runs in a thread of its own, as a GPU would beside the host.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <iterator>
#include <map>
#include <thread>
#include <variant>

#include "backend.h"
#include "check.h"
#include "device.h"
#include "ptx.h"

namespace easel {

namespace {

// A graph run in flight, by stream.
struct Flight {
    std::thread thread;
    std::atomic<bool> done = false;
    std::exception_ptr error;
};
std::mutex flights_mutex;
std::vector<std::pair<Stream, std::unique_ptr<Flight>>> flights;

std::unique_ptr<Flight> take_flight(Stream stream) {
    std::lock_guard lock(flights_mutex);
    for (auto& [s, flight] : flights)
        if (s == stream && flight) return std::move(flight);
    return nullptr;
}

// Blocks of pinned_alloc(): the only host memory that the body of a GPU's loop may copy from.
std::mutex pinned_mutex;
std::map<const char*, size_t> pinned;

bool is_pinned(const void* host, size_t bytes) {
    std::lock_guard lock(pinned_mutex);
    const char* p = static_cast<const char*>(host);
    const auto next = pinned.upper_bound(p);
    if (next == pinned.begin()) return false;
    const auto& [begin, size] = *std::prev(next);
    return p + bytes <= begin + size;
}

}  // namespace

std::string backends() {
    return "simulator";
}
std::vector<DeviceInfo> cuda_devices(std::string* why) {
    if (why) *why = "the simulator is no GPU";
    return {};
}

void use_device(int index) {
    require(index == 0, "there is no CUDA device {}, the simulator is device 0", index);
}
int max_shared_bytes() {
    return static_cast<int>(sim::shared_capacity);
}
int n_sm() {
    return sim::n_sm;
}
int64_t free_device_bytes() {
    return int64_t{1} << 40;
}

void abandon_device(Stream stream) noexcept {
    if (auto flight = take_flight(stream)) flight->thread.join();
}

void* device_alloc(size_t bytes) {
    if (!bytes) return nullptr;
    check_alloc(bytes);
    return count_alloc(sim::allocate(bytes), bytes);
}
void device_free(void* p) noexcept {
    if (!p) return;
    count_free(p);
    sim::deallocate(p);
}
void* mapped_alloc(size_t bytes) {
    void* p = sim::allocate(bytes);
    memset(p, 0, bytes);
    return p;
}
void* mapped_device_address(void* host) {
    return host;
}
void mapped_free(void* host) noexcept {
    device_free(host);
}
void* pinned_alloc(size_t bytes) {
    void* p = sim::allocate(bytes);
    std::lock_guard lock(pinned_mutex);
    pinned[static_cast<const char*>(p)] = bytes;
    return p;
}
void pinned_free(void* host) noexcept {
    {
        std::lock_guard lock(pinned_mutex);
        pinned.erase(static_cast<const char*>(host));
    }
    device_free(host);
}

Stream make_stream() {
    return new sim::Stream;
}
void free_stream(Stream stream) noexcept {
    if (auto flight = take_flight(stream)) flight->thread.join();
    delete stream;
}
void copy_to_device(Stream stream, void* device, const void* host, size_t bytes) {
    const auto copy = [=] {
        if (bytes) memcpy(device, host, bytes);
    };
    if (stream && stream->recording) {
        require(is_pinned(host, bytes), "bug: a captured copy from memory that is not pinned");
        return stream->recording->push_back(copy);
    }
    finish(stream);
    copy();
}
void copy_to_host(Stream stream, void* host, const void* device, size_t bytes) {
    finish(stream);
    if (bytes) memcpy(host, device, bytes);
}
void copy_on_device(Stream stream, void* to, const void* from, size_t bytes) {
    finish(stream);
    if (bytes) memcpy(to, from, bytes);
}
void fill_zero(Stream stream, void* device, size_t bytes) {
    const auto fill = [=] {
        if (bytes) memset(device, 0, bytes);
    };
    if (stream && stream->recording) return stream->recording->push_back(fill);
    finish(stream);
    fill();
}
void finish(Stream stream) {
    require(!stream || !stream->recording, "bug: waiting for a stream that is being captured");
    sim::n_order++;
    if (auto flight = take_flight(stream)) {
        flight->thread.join();
        if (flight->error) std::rethrow_exception(flight->error);
    }
}
bool finished(Stream stream) {
    {
        std::lock_guard lock(flights_mutex);
        for (auto& [s, flight] : flights)
            if (s == stream && flight && !flight->done) return false;
    }
    finish(stream);
    return true;
}

// What Event::record() marks: a time, or, in a capture, a position in the stream's launches.
struct Mark {
    std::chrono::steady_clock::time_point time;
    Stream stream = nullptr;  // null: in no capture
    size_t n_launch = 0;
};
static Mark& mark(void* handle) {
    return *static_cast<Mark*>(handle);
}
Event::Event(bool) : handle_(new Mark) {}
Event::~Event() {
    delete static_cast<Mark*>(handle_);
}
void Event::record(Stream stream) {
    const bool captured = stream && stream->recording;
    if (!captured) finish(stream);
    mark(handle_) = {std::chrono::steady_clock::now(), captured ? stream : nullptr,
                     captured ? stream->n_taken + stream->recording->size() : 0};
}
double Event::ms_since(const Event& start) const {
    return std::chrono::duration<double, std::milli>(mark(handle_).time - mark(start.handle_).time).count();
}
void Event::wait() {}

// A stream that joins a capture holds its launches back until the captured stream waits for them. As late as
// that, a missing wait shows.
void Event::hold(Stream stream) {
    const Mark& m = mark(handle_);
    if (!m.stream || m.stream == stream) return;
    if (!stream->recording) {  // it joins
        stream->recording = &stream->late;
        stream->n_taken = 0;
        m.stream->joined.push_back(stream);
    } else if (m.stream->recording == &m.stream->late) {
        auto& late = m.stream->late;
        const auto n = static_cast<std::ptrdiff_t>(m.n_launch - std::min(m.n_launch, m.stream->n_taken));
        std::move(late.begin(), late.begin() + n, std::back_inserter(*stream->recording));
        late.erase(late.begin(), late.begin() + n);
        m.stream->n_taken += n;
    }
}

struct Graph::Impl {
    struct Node;
    using Nodes = std::vector<Node>;
    struct Node {
        std::vector<std::function<void()>> launches;  // or, if empty:
        Condition condition = nullptr;
        bool loops = false;
        std::unique_ptr<Impl> body;
    };
    Nodes nodes;
    std::vector<std::pair<std::unique_ptr<bool>, bool>> conditions;  // and their defaults

    void run() {
        for (Node& n : nodes) {
            for (auto& launch : n.launches) launch();
            if (!n.body) continue;
            if (n.loops)
                while (*n.condition) n.body->run();
            else if (*n.condition)
                n.body->run();
        }
    }
    void check_refusal(sim::Refusal when) const {
        const bool conditional =
            std::any_of(nodes.begin(), nodes.end(), [](auto& n) { return n.body != nullptr; });
        require(!conditional || sim::refusal != when, "simulated: this driver refuses conditional nodes");
    }
    void add(Condition condition, bool loops, const Body& body) {
        Graph g(std::make_unique<Impl>());
        body(g);
        nodes.push_back({{}, condition, loops, std::move(g.impl_)});
    }
};

Graph::Graph() : impl_(std::make_unique<Impl>()) {}
Graph::Graph(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Graph::~Graph() = default;

Condition Graph::condition(bool at_start) {
    impl_->conditions.emplace_back(std::make_unique<bool>(at_start), at_start);
    return impl_->conditions.back().first.get();
}
void Graph::launch(const Launches& launches) {
    Impl::Node& node = impl_->nodes.emplace_back();
    sim::Stream stream{&node.launches};
    struct End {  // of the capture, for all streams that are in it
        sim::Stream& stream;
        ~End() {
            for (Stream s : stream.joined) {
                s->recording = nullptr;
                s->late.clear();
            }
        }
    } const end{stream};
    launches(&stream);
    for (Stream s : stream.joined)
        require(s->late.empty(), "bug: a capture ends, and {} launches of another stream were not waited for",
                s->late.size());
}
void Graph::loop(Condition while_true, const Body& body) {
    impl_->add(while_true, true, body);
}
void Graph::branch(Condition if_true, const Body& body) {
    impl_->add(if_true, false, body);
}
int Graph::n_launch() const {
    size_t n = 0;
    for (const auto& node : impl_->nodes) n += node.launches.size();
    return static_cast<int>(n);
}
void Graph::instantiate() {
    impl_->check_refusal(sim::Refusal::Instantiate);
}
void Graph::run(Stream stream) {
    impl_->check_refusal(sim::Refusal::Launch);
    finish(stream);
    auto flight = std::make_unique<Flight>();
    flight->thread = std::thread([this, f = flight.get()] {
        try {
            for (auto& [value, at_start] : impl_->conditions) *value = at_start;
            if (sim::refusal != sim::Refusal::Silent) impl_->run();
        } catch (...) {
            f->error = std::current_exception();
        }
        f->done = true;
    });
    std::lock_guard lock(flights_mutex);
    for (auto& [s, other] : flights)
        if (s == stream) {
            other = std::move(flight);
            return;
        }
    flights.emplace_back(stream, std::move(flight));
}

}  // namespace easel
