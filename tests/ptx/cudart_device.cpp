// cudart_device.cpp: see cudart_device.h.
#include "cudart_device.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "launch.h"

namespace easel::cudart {

uint64_t Device::draw(uint64_t n) {
    uint64_t z = random += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return (z ^ (z >> 31)) % n;
}

cudaStream_t Device::choose(bool graphs_too) {
    std::vector<cudaStream_t> can;
    const bool late = seed % 3 == 0 || (seed % 3 == 1 && draw(4));
    const auto look = [&](cudaStream_t s) {
        if (s->ops.empty()) return;
        const Op& op = *s->ops.front();
        if (op.running || (late && !op.wanted) || (op.graph && !graphs_too)) return;
        if (std::all_of(op.after.begin(), op.after.end(), [](auto& o) { return o->done; })) can.push_back(s);
    };
    look(&null_stream);
    for (const auto* all : {&streams, &ended_streams})
        for (cudaStream_t s : *all) look(s);
    return can.empty() ? nullptr : can[draw(can.size())];
}

void Device::run_first(std::unique_lock<std::mutex>& lock, cudaStream_t s) {
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

void Device::run_graph(Program& p) {
    ptx::did_other();
    for (const auto& h : p.handles) h->value = h->assigns ? h->start : draw(2);
    run_nodes(p);
}

void Device::run_nodes(Program& p) {
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

void Device::work() {
    std::unique_lock lock(mutex);
    while (!quits) {
        if (cudaStream_t s = choose(true))
            run_first(lock, s);
        else
            changed.wait_for(lock, std::chrono::milliseconds(1));
    }
}

OpPtr Device::push(cudaStream_t s, Work run, std::shared_ptr<Program> graph) {
    auto op = std::make_shared<Op>(Op{std::move(run), std::move(graph)});
    if (s->last && !s->last->done) op->after.push_back(s->last);
    s->ops.push_back(op);
    changed.notify_all();
    return s->last = op;
}

void Device::want(const OpPtr& op) {
    for (std::vector<OpPtr> all{op}; !all.empty();) {
        const OpPtr o = all.back();
        all.pop_back();
        if (!o || o->done || std::exchange(o->wanted, true)) continue;
        all.insert(all.end(), o->after.begin(), o->after.end());
    }
    changed.notify_all();
}

void Device::wait(std::unique_lock<std::mutex>& lock, const OpPtr& op) {
    want(op);
    changed.wait(lock, [&] { return !op || op->done; });
}

void Device::wait_for_all(std::unique_lock<std::mutex>& lock) {
    std::vector<OpPtr> all{null_stream.last};
    for (const auto* set : {&streams, &ended_streams})
        for (cudaStream_t s : *set) all.push_back(s->last);
    for (const OpPtr& op : all) wait(lock, op);
}

const Memory* Device::find(const void* p, size_t bytes) const {
    char* c = const_cast<char*>(static_cast<const char*>(p));
    const auto next = memory.upper_bound(c);
    if (next == memory.begin()) return nullptr;
    const auto& [begin, m] = *std::prev(next);
    return c + bytes <= begin + m.bytes ? &m : nullptr;
}

bool Device::touches(const void* p, size_t bytes) const {
    return find(p, 1) || find(static_cast<const char*>(p) + bytes - 1, 1);
}

void Device::print_leaks() {
    {
        std::lock_guard lock(mutex);
        quits = true;
    }
    if (thread.joinable()) thread.join();
    fmt::print(
        "fake GPU, seed {}: {} launches, {} of which may overlap, {} copies and fills, {} captures, {} runs "
        "of graphs\n",
        seed, n_launch, n_overlap, n_copy, n_capture, n_graph);
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

// ---- captures and graphs ----------------------------------------------------------------------------------

void begin_capture(Device& d, cudaStream_t s, cudaGraph_t g, cudaStreamCaptureMode mode) {
    d.n_capture++;
    g->capturing = true;
    s->capture = std::make_shared<Capture>(Capture{s, g, mode, std::this_thread::get_id(), d.n_capture});
    s->capture->streams = {s};
    d.captures.insert(s->capture);
}

bool has_nodes(cudaGraph_t g, const cudaGraphNode_t* nodes, size_t n) {
    std::set<cudaGraphNode_t> own;
    for (const auto& node : g->nodes) own.insert(node.get());
    return std::all_of(nodes, nodes + n, [&](auto node) { return own.erase(node); });
}

std::set<cudaGraphNode_t> with_all_before(std::vector<cudaGraphNode_t> nodes) {
    std::set<cudaGraphNode_t> out;
    while (!nodes.empty()) {
        const auto node = nodes.back();
        nodes.pop_back();
        if (out.insert(node).second) nodes.insert(nodes.end(), node->after.begin(), node->after.end());
    }
    return out;
}

bool has_lost(cudaGraph_t g) {
    return g->lost || std::any_of(g->nodes.begin(), g->nodes.end(),
                                  [](auto& n) { return n->body[0] && has_lost(n->body[0]); });
}

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
        p->overlaps |= n->kind == Kind::Overlap;
        for (cudaGraphNode_t before : n->after) step.after.push_back(index.at(before));
        step.condition = n->condition;
        step.loops = n->loops;
        if (n->body[0]) {
            step.body = compile(n->body[0]);
            p->overlaps |= step.body->overlaps;
            p->handles.insert(p->handles.end(), step.body->handles.begin(), step.body->handles.end());
        }
        index[n.get()] = p->steps.size() - 1;
    }
    return p;
}

}  // namespace easel::cudart
