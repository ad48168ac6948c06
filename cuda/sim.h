// sim.h: CUDA on the CPU, one fiber per CUDA thread, so that the kernels of this folder run, and are checked,
// where there is no GPU. ptx.h includes it when the compiler is not nvcc; a kernel file includes ptx.h only.
// The names that CUDA gives a kernel are in sim_cuda.h.
//
// A launch runs its blocks on all cores, each block on one core from start to end. A thread runs until it has
// to wait (barrier, warp operation); then the ready thread of the lowest rank goes on, or of the highest, or
// any (Order). So between two barriers every pair of threads meets in both orders.
//
// Reported, as a Fault thrown by launch(), with kernel, block, thread and source line:
//   - deadlock, with what each thread waits for; lanes of a warp at different operations, or with different
//     masks; __syncthreads at different lines; a named barrier that only a part of a warp has reached
//   - a shuffle from a lane outside the mask; mma and ldmatrix in less than a full warp; wgmma without
//     wgmma.fence, in flight at the end, or not the same in all four warps
//   - loads, stores, cp.async and ldmatrix of ptx.h at misaligned or non-shared addresses; a thread that ends
//     with a cp.async in flight; integer division by zero; stack overflow
//   - reads and writes past the end of a buffer from allocate() or of dynamic shared memory (sizes rounded up
//     to 16 bytes; 64 KiB far); writes up to 64 bytes before a buffer or 32 beside a shared array, when the
//     launch or block ends. AddressSanitizer builds see these to the byte, reads too, but end the process.
// Seen as poison (Schedule::poison; NaN as a float) in the results: buffers and shared memory read before
// they are written, cp.async destinations before their wait; sums of a wgmma come with its wait.
// run_schedules() finds these, and missing barriers, by comparing runs that differ in order and poison.
//
// Not covered, but found by tests/ptx: races between blocks, and where a shuffle or vote orders what lanes
// write and read, but CUDA wants __syncwarp. Not covered: blocks that wait for each other (they hang);
// updates without an atomic that get lost, as threads take turns only where they wait; fences (they do
// nothing); shared arrays of code that did not run, which count on a GPU; host pointers passed to kernels,
// TMA tensor maps, register limits, __launch_bounds__, speed. mma sums in float in order of k, which
// hardware does not, so results differ in the last bits.
#pragma once
#include <atomic>
#include <bit>
#include <functional>
#include <mutex>
#include <numeric>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../src/parallel.h"
#include "check.h"
#include "sim_host.h"

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace easel::sim {

// Thrown by launch() on the caller's thread. The simulator can go on with other launches afterwards.
struct Fault : Error {
    using Error::Error;
};

enum class Order { Forward, Reverse, Random };

// Applies to the launches and allocations that follow; not to be changed while a kernel runs.
struct Schedule {
    Order order = Order::Forward;  // of threads in a block, and of blocks
    uint64_t seed = 0;             // of Random
    uint8_t poison = 0xff;         // fills what nobody has written yet
};
inline Schedule schedule;

// Shared memory of a block, arrays included: without permission; on sm_86, 89 and 120; on sm_90 and 100.
constexpr size_t max_static_bytes = 48 << 10, small_shared_bytes = 99 << 10, max_shared_bytes = 227 << 10;
// What a block of the simulated GPU may have; for less, the kernels must be compiled for a smaller one.
inline size_t shared_capacity = max_shared_bytes;
// Multiprocessors that it says it has: an H200's. Blocks run one after the other.
inline int n_sm = 132;
// Dynamic shared memory for which EASEL_LAUNCH does not ask permission (cudaFuncSetAttribute()).
constexpr size_t unasked_bytes = 32 << 10;

// Source position of a call: the default argument of every operation that can wait or fail.
struct Site {
    const char* file = "";
    int line = 0;
    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
    bool operator==(const Site& o) const {
        return line == o.line && (file == o.file || !strcmp(file, o.file));
    }
    std::string text() const {
        const char* slash = strrchr(file, '/');
        return fmt::format("{}:{}", slash ? slash + 1 : file, line);
    }
};

// ---- a block and its threads ------------------------------------------------------------------------------

struct Launch {
    const char* kernel;
    dim3 grid, block;
    size_t shared_bytes;
    void (*call)(const void* body);
    const void* body;
};

// A cp.async that has been issued. `group` is the number of commits before it.
struct Copy {
    char* dst;
    const char* src;
    int bytes, src_bytes, group;
};

// A wgmma that has been issued. `group` is the number of commits before it.
struct Product {
    std::function<void()> finish;
    int group;
};

struct Wait {
    const char* op = nullptr;  // null: not waiting
    bool barrier = false;
    uint32_t arg = 0;  // number of the barrier, or mask of the lanes
    Site at;
    bool operator==(const Wait&) const = default;
};

struct Fiber : Stack {
    uint3 tid;
    int rank, warp, lane;
    bool ended;
    Wait wait;
    std::vector<Copy> copies;
    int n_commit;
    std::vector<Product> products;
    int n_product_commit;
    bool fenced;            // wgmma.fence, and no group committed since
    uint64_t all_products;  // hash of the matrices of all of them, to compare warps
};

// Lanes that have reached an operation on `mask`.
struct Collective {
    uint32_t mask, arrived;
    const char* op;
    Site at;
};

struct Warp {
    uint32_t lanes, ready;  // that exist; that can run
    void* arg[32];          // what each lane brought to its operation
    uint32_t n_active;      // operations under way: several, if their masks differ
    Collective active[32];
};

struct Barrier {
    uint32_t n_arrived, n_expected;
    uint32_t waiting[32];  // lanes of each warp
    Site at;
};

struct SharedArray {
    const void* key;
    char* data;
    size_t bytes;
};

// The block that an OS thread is running; stacks and memory are kept for the next one.
struct Block {
    static constexpr size_t memory_bytes = 2 * max_static_bytes + max_shared_bytes;  // with gaps

    const Launch* launch = nullptr;
    uint3 idx{};
    uint32_t n_thread = 0, n_live = 0, n_warp = 0, ready = 0;  // ready: warps with a ready lane
    std::vector<Fiber> fibers;                                 // as many as a block has had yet
    Warp warps[32]{};
    Barrier barriers[16]{};
    uint32_t n_vote = 0, votes = 0;  // of __syncthreads_or: so far, and at the last barrier
    uint64_t random = 0;
    Stacks stacks{1024};
    char* memory = map_guarded(memory_bytes);  // static shared arrays from its start, dynamic at its end
    char *static_end = nullptr, *dynamic = nullptr;
    std::vector<SharedArray> arrays;
    Stack main;
    std::string report;
    SignalStack signal_stack;

    Block() { fibers.reserve(1024); }
    ~Block() { unmap_guarded(memory, memory_bytes); }
    Block(const Block&) = delete;

    // Bytes behind dynamic shared memory, which begins at a multiple of 16.
    size_t tail() const { return memory + memory_bytes - dynamic - launch->shared_bytes; }
};

inline constinit thread_local Block* block = nullptr;
inline constinit thread_local Fiber* fiber = nullptr;

// From the running fiber to another, or to run_block() (null).
inline void switch_to(Fiber* next) {
    Fiber* self = std::exchange(fiber, next);
    trap.stack = next;
    switch_stack(*self, next ? *next : block->main, self->ended);
}

// Ends the launch with a report. The block's other threads are abandoned where they wait.
struct Stop {};
[[noreturn]] inline void fault(const std::string& text) {
    const uint3 b = block->idx, t = fiber->tid;
    block->report = fmt::format("kernel {}, block ({},{},{}), thread ({},{},{}): {}", block->launch->kernel,
                                b.x, b.y, b.z, t.x, t.y, t.z, text);
    throw Stop{};
}
template <class... Args>
[[noreturn]] void fault(Site at, fmt::format_string<Args...> text, Args&&... args) {
    fault(at.text() + ": " + fmt::format(text, std::forward<Args>(args)...));
}

inline std::string describe(const Fiber& f) {
    const Wait& w = f.wait;
    if (f.ended) return "ended";
    if (!w.op) return "can run";
    if (!w.barrier) return fmt::format("{} mask {:08x}, {}", w.op, w.arg, w.at.text());
    const Barrier& b = block->barriers[w.arg];
    return fmt::format("{} {}, {} of {} threads there, {}", w.op, w.arg, b.n_arrived,
                       w.arg ? b.n_expected : block->n_live, w.at.text());
}

[[noreturn]] inline void deadlock() {
    std::string text = "deadlock, every thread waits or has ended:";
    int n_line = 0;
    for (uint32_t i = 0, end; i < block->n_thread && n_line < 20; i = end, n_line++) {
        const Fiber& f = block->fibers[i];
        for (end = i + 1; end < block->n_thread; end++)
            if (const Fiber& g = block->fibers[end]; f.ended != g.ended || !(f.wait == g.wait)) break;
        text += fmt::format("\n  threads {}-{}: {}", i, end - 1, describe(f));
    }
    fault(text);
}

inline uint64_t next_random(uint64_t& state) {  // splitmix64
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

inline int choose(uint32_t mask) {
    if (schedule.order == Order::Forward) return std::countr_zero(mask);
    if (schedule.order == Order::Reverse) return 31 - std::countl_zero(mask);
    int first = next_random(block->random) & 31;
    return (std::countr_zero(std::rotr(mask, first)) + first) & 31;
}

// The ready thread that runs next; null if there is none.
inline Fiber* pick() {
    if (!block->ready) return nullptr;
    int warp = choose(block->ready);
    return &block->fibers[warp * 32 + choose(block->warps[warp].ready)];
}

inline void set_ready(int warp, uint32_t lanes) {
    block->warps[warp].ready |= lanes;
    if (lanes) block->ready |= 1u << warp;
}
inline void clear_ready(const Fiber& f) {
    if (!(block->warps[f.warp].ready &= ~(1u << f.lane))) block->ready &= ~(1u << f.warp);
}

// Lets others run until one of them calls set_ready() for this thread.
inline void wait(const Wait& what) {
    fiber->wait = what;
    clear_ready(*fiber);
    Fiber* next = pick();
    if (!next) deadlock();
    switch_to(next);
    fiber->wait.op = nullptr;
}

// For a thread that has made others ready: lets the one run whose turn it is.
inline void yield() {
    Fiber* next = pick();
    if (next != fiber) switch_to(next);
}

// ---- warps and barriers -----------------------------------------------------------------------------------

template <class F>
inline void for_lanes(uint32_t mask, F f) {
    for (; mask; mask &= mask - 1) f(std::countr_zero(mask));
}

// An operation of all lanes in `mask`: the last one to arrive calls finish(lanes, arg), arg[lane] being what
// that lane brought; finish writes each lane's result there.
template <class F>
void collective(const char* op, uint32_t mask, void* arg, Site at, F finish) {
    Warp& w = block->warps[fiber->warp];
    mask &= w.lanes;
    if (!(mask >> fiber->lane & 1)) fault(at, "{}: the lane is not in its own mask", op);
    uint32_t lane = 1u << fiber->lane, i = 0;
    for (uint32_t k = 0; k < w.n_active; k++) {
        const Collective& c = w.active[k];
        bool same = c.mask == mask && c.op == op && c.at == at;
        // Two different operations may be under way, unless each waits for a lane that is at the other.
        if (!same && (c.mask & lane) && (c.arrived & mask))
            fault(
                at,
                "lanes of a warp at different operations: {} mask {:08x}; lanes {:08x} at {} mask {:08x}, {}",
                op, mask, c.arrived, c.op, c.mask, c.at.text());
        i += !same && i == k;
    }
    if (i == w.n_active) w.active[w.n_active++] = {mask, 0, op, at};
    w.arg[fiber->lane] = arg;
    w.active[i].arrived |= lane;
    if (w.active[i].arrived != mask) return wait({op, false, mask, at});
    w.active[i] = w.active[--w.n_active];
    finish(mask, w.arg);
    set_ready(fiber->warp, mask);
    yield();
}

// The same for an instruction of a full warp.
template <class F>
void warp_collective(const char* op, void* arg, Site at, F finish) {
    if (block->warps[fiber->warp].lanes != ~0u) fault(at, "{}: the warp has less than 32 threads", op);
    collective(op, ~0u, arg, at, finish);
}

inline void release(Barrier& b) {
    for (uint32_t w = 0; w < block->n_warp; w++) {
        set_ready(w, b.waiting[w]);
        b.waiting[w] = 0;
    }
    b.n_arrived = 0;
    block->votes = std::exchange(block->n_vote, 0);
}

// Barrier 0 is that of __syncthreads, for all threads that have not ended. The others count `n` threads,
// which must make whole warps, as the hardware counts warps.
inline void arrive(const char* op, uint32_t id, uint32_t n, Site at) {
    Barrier& b = block->barriers[id];
    uint32_t lane = 1u << fiber->lane;
    if (!b.n_arrived)
        b.n_expected = n, b.at = at;
    else if (b.n_expected != n)
        fault(at, "{} {}: for {} threads, but {} at {}", op, id, n, b.n_expected, b.at.text());
    else if (!id && !(b.at == at))
        fault(at, "barrier in divergent code: {}, while other threads wait at {}", op, b.at.text());
    b.waiting[fiber->warp] |= lane;
    if (++b.n_arrived < (id ? n : block->n_live)) return wait({op, true, id, at});
    for (uint32_t w = 0; id && w < block->n_warp; w++)
        if (b.waiting[w] && b.waiting[w] != block->warps[w].lanes)
            fault(at, "barrier {} in divergent code: only lanes {:08x} of warp {} are there", id,
                  b.waiting[w], w);
    release(b);
    yield();
}

// __syncthreads, _or and _and; returns for how many threads `vote` was true.
inline int block_barrier(const char* op, bool vote, Site at) {
    block->n_vote += vote;
    arrive(op, 0, 0, at);
    return static_cast<int>(block->votes);
}

// bar.sync.
inline void named_barrier(const char* op, int id, int n, Site at) {
    if (id < 1 || id > 15 || n < 32 || n % 32 || n > static_cast<int>(block->n_thread))
        fault(at, "{} {}, {}: barriers are 1-15, threads a multiple of 32 and in the block", op, id, n);
    arrive(op, id, n, at);
}

// ---- memory -----------------------------------------------------------------------------------------------

constexpr size_t round16(size_t n) {
    return (n + 15) / 16 * 16;
}

// A buffer in device memory: canaries before it and after it, up to a multiple of 16 bytes, then the guard.
struct Allocation {
    static constexpr size_t front = 64;
    char* data;
    size_t bytes;
    size_t tail() const { return round16(bytes) - bytes; }
    void put_canaries() const { put_canary(data - front, front), put_canary(data + bytes, tail()); }
};
inline std::mutex allocations_mutex;
inline std::vector<Allocation> allocations;

// `bytes` of device memory, 16-byte aligned, filled with poison, its end at a guard.
inline void* allocate(size_t bytes) {
    Allocation a{map_guarded(Allocation::front + round16(bytes)) + Allocation::front, bytes};
    memset(a.data, schedule.poison, bytes);
    a.put_canaries();
    std::lock_guard lock(allocations_mutex);
    allocations.push_back(a);
    return a.data;
}

inline void deallocate(void* p) {
    std::lock_guard lock(allocations_mutex);
    auto a = std::find_if(allocations.begin(), allocations.end(), [&](auto& a) { return a.data == p; });
    if (a == allocations.end()) return;
    unmap_guarded(a->data - Allocation::front, Allocation::front + round16(a->bytes));
    allocations.erase(a);
}

// Which canary has been written over; empty: none. Puts it back.
inline std::string check_allocations() {
    std::lock_guard lock(allocations_mutex);
    std::string text;
    for (const Allocation& a : allocations) {
        bool front = intact(a.data - Allocation::front, Allocation::front);
        if (front && intact(a.data + a.bytes, a.tail())) continue;
        text = fmt::format("a write {} a buffer of {} bytes", front ? "past the end of" : "before", a.bytes);
        a.put_canaries();
    }
    return text;
}

// Storage of a shared array in the running block. `key` stands for its declaration.
inline void* shared(const void* key, size_t bytes) {
    for (const SharedArray& a : block->arrays)
        if (a.key == key) return a.data;
    char* data = block->static_end;
    size_t gap = round16(bytes) - bytes + 32;
    if (data + bytes + gap > block->memory + max_static_bytes)
        fault(fmt::format("more than {} bytes of static shared memory", max_static_bytes));
    show(data, bytes);
    memset(data, schedule.poison, bytes);
    put_canary(data + bytes, gap);
    block->static_end = data + bytes + gap;
    block->arrays.push_back({key, data, bytes});
    return data;
}

inline void check_aligned(const char* op, const void* p, size_t bytes, Site at) {
    if (reinterpret_cast<uintptr_t>(p) % bytes)
        fault(at, "{}: misaligned, {} is not a multiple of {}", op, p, bytes);
}
inline void check_shared(const char* op, const void* p, size_t bytes, Site at) {
    check_aligned(op, p, bytes, at);
    const char* c = static_cast<const char*>(p);
    if (c >= block->dynamic && c + bytes <= block->dynamic + block->launch->shared_bytes) return;
    for (const SharedArray& a : block->arrays)
        if (c >= a.data && c + bytes <= a.data + a.bytes) return;
    fault(at, "{}: {} is not in shared memory", op, p);
}

// cp.async: happens as late as it may, in async_wait(); until then the destination is poisoned.
inline void async_copy(void* dst, const void* src, int bytes, int src_bytes, Site at) {
    check_shared("cp.async", dst, bytes, at);
    check_aligned("cp.async", src, bytes, at);
    if (src_bytes < 0 || src_bytes > bytes) fault(at, "cp.async: {} of {} bytes", src_bytes, bytes);
    const auto* probe = static_cast<const volatile char*>(src);
    if (src_bytes)
        static_cast<void>(probe[0]), static_cast<void>(probe[src_bytes - 1]);  // a bad address shows here
    memset(dst, schedule.poison, bytes);
    fiber->copies.push_back(
        {static_cast<char*>(dst), static_cast<const char*>(src), bytes, src_bytes, fiber->n_commit});
}
inline void async_commit() {
    fiber->n_commit++;
}
inline void async_wait(int n_group) {  // until at most n_group committed groups are in flight
    auto& copies = fiber->copies;
    auto c = copies.begin();
    for (; c != copies.end() && c->group < fiber->n_commit - n_group; ++c) {
        memcpy(c->dst, c->src, c->src_bytes);
        memset(c->dst + c->src_bytes, 0, c->bytes - c->src_bytes);
    }
    copies.erase(copies.begin(), c);
}

// wgmma: happens as late as it may, in product_wait(); until then registers and shared memory must stay.
inline void product(std::function<void()> finish, uint64_t matrix, Site at) {
    if (!fiber->fenced) fault(at, "wgmma without a wgmma.fence after the last group");
    fiber->products.push_back({std::move(finish), fiber->n_product_commit});
    fiber->all_products = (fiber->all_products + matrix + 1) * 0x9e3779b97f4a7c15;
}
inline void product_commit() {
    fiber->n_product_commit++;
    fiber->fenced = false;
}
inline void product_wait(int n_group) {
    auto& products = fiber->products;
    size_t n = 0;
    for (; n < products.size() && products[n].group < fiber->n_product_commit - n_group; n++)
        products[n].finish();
    products.erase(products.begin(), products.begin() + static_cast<int64_t>(n));
}

// The address of a place in shared memory as instructions have it; and the place at the low 18 bits of an
// address, all that a matrix descriptor of wgmma has: of two with these bits, that in dynamic shared memory.
inline uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(static_cast<const char*>(p) - block->memory);
}
inline const char* shared_at(uint32_t low_bits) {
    const char* const p = block->memory + low_bits;
    return p + (1 << 18) >= block->dynamic && low_bits + (1 << 18) < Block::memory_bytes ? p + (1 << 18) : p;
}

// ---- running ----------------------------------------------------------------------------------------------

// What an invalid access was, for the report.
inline std::string describe_access() {
    const char* p = trap.address;
    if (trap.signal == SIGFPE) return "integer division by zero";
#ifdef SI_KERNEL
    if (trap.code == SI_KERNEL) return "misaligned vector access, or a wild address";
#endif
    if (block->stacks.guards(*fiber, p)) return "stack overflow";
    const char* shared_end = block->dynamic + block->launch->shared_bytes;
    if (p >= shared_end && p < shared_end + guard_bytes)
        return fmt::format("access {} bytes past the end of {} bytes of dynamic shared memory",
                           p - shared_end, block->launch->shared_bytes);
    std::lock_guard lock(allocations_mutex);
    for (const Allocation& a : allocations) {
        const char* end = a.data + a.bytes;
        if (p >= end && p < end + guard_bytes)
            return fmt::format("access {} bytes past the end of a buffer of {} bytes", p - end, a.bytes);
        if (p < a.data && p >= a.data - 2 * guard_bytes)
            return fmt::format("access {} bytes before a buffer of {} bytes", a.data - p, a.bytes);
    }
    return fmt::format("invalid address {}", static_cast<const void*>(p));
}

inline void run_thread() {
    Fiber* next = nullptr;  // after a Stop: run_block()
    try {
        block->launch->call(block->launch->body);
        if (!fiber->copies.empty()) fault("the thread ended with a cp.async in flight");
        if (!fiber->products.empty()) fault("the thread ended with a wgmma in flight");
        fiber->ended = true;
        clear_ready(*fiber);
        if (--block->n_live && block->barriers[0].n_arrived == block->n_live) release(block->barriers[0]);
        if (!block->ready && block->n_live) deadlock();
        next = pick();
    } catch (Stop) {
        fiber->ended = true;
    }
    switch_to(next);
    abort();  // an ended thread runs again
}

__attribute__((no_sanitize("address"))) inline void thread_main() {
    stack_entered(block->main);
    run_thread();
}

// Where a thread goes on after an invalid access, at the top of its stack.
__attribute__((no_sanitize("address"))) inline void after_access() {
    show(fiber->memory, fiber->bytes);
    try {
        fault(describe_access());
    } catch (Stop) {
        fiber->ended = true;
    }
    switch_to(nullptr);
}

inline void set_up(Block& b, const Launch& l, uint64_t index) {
    b.launch = &l;
    b.idx.x = static_cast<unsigned>(index % l.grid.x);
    b.idx.y = static_cast<unsigned>(index / l.grid.x % l.grid.y);
    b.idx.z = static_cast<unsigned>(index / l.grid.x / l.grid.y);
    b.n_thread = b.n_live = l.block.x * l.block.y * l.block.z;
    b.n_warp = (b.n_thread + 31) / 32;
    b.random = schedule.seed * 0x9e3779b97f4a7c15 + index;
    b.n_vote = b.votes = b.ready = 0;
    for (uint32_t w = 0; w < b.n_warp; w++) {
        b.warps[w].lanes = ~0u >> (32 - std::min(32u, b.n_thread - 32 * w));
        b.warps[w].ready = 0;
        set_ready(w, b.warps[w].lanes);
    }
    b.arrays.clear();
    b.static_end = b.memory;
    b.dynamic = b.memory + Block::memory_bytes - round16(l.shared_bytes);
    show(b.dynamic, l.shared_bytes);
    memset(b.dynamic, schedule.poison, l.shared_bytes);
    put_canary(b.dynamic - 32, 32);
    put_canary(b.dynamic + l.shared_bytes, b.tail());
    while (b.fibers.size() < b.n_thread) {
        Fiber& f = b.fibers.emplace_back();
        b.stacks.place(f, static_cast<int>(b.fibers.size()) - 1);
    }
    for (uint32_t i = 0; i < b.n_thread; i++) {
        Fiber& f = b.fibers[i];
        f.tid = {i % l.block.x, i / l.block.x % l.block.y, i / (l.block.x * l.block.y)};
        f.rank = static_cast<int>(i), f.warp = f.rank / 32, f.lane = f.rank % 32;
        f.ended = false;
        f.wait = {};
        f.copies.clear();
        f.n_commit = f.n_product_commit = 0;
        f.products.clear();
        f.fenced = false;
        f.all_products = 0;
        prepare(f, thread_main);
    }
    b.main.memory = nullptr;
}

// What a block has left behind that it should not; empty: nothing.
inline std::string leftovers(const Block& b) {
    for (const SharedArray& a : b.arrays)
        if (!intact(a.data + a.bytes, 32))
            return fmt::format("a write past the end of a shared array of {} bytes", a.bytes);
    if (!intact(b.dynamic - 32, 32) || !intact(b.dynamic + b.launch->shared_bytes, b.tail()))
        return "a write beside dynamic shared memory";
    size_t bytes = b.launch->shared_bytes;
    for (const SharedArray& a : b.arrays) bytes += round16(a.bytes);
    // The size that the launch's dynamic memory is meant for must have room for the static arrays, too.
    const size_t own = b.launch->shared_bytes, most = own <= unasked_bytes        ? max_static_bytes
                                                      : own <= small_shared_bytes ? small_shared_bytes
                                                                                  : shared_capacity;
    if (bytes > most)
        return fmt::format("{} bytes of shared memory, arrays included: with {} in the launch it may have {}",
                           bytes, own, most);
    for (uint32_t i = 0; i < b.n_thread; i++)
        if (b.fibers[i].all_products != b.fibers[i / 128 * 128].all_products)
            return fmt::format("warps {} and {} differ in their wgmma", i / 32, i / 128 * 4);
    return {};
}

// Returns the report of what went wrong, or nothing.
inline std::string run_block(const Launch& l, uint64_t index) {
    static thread_local Block storage;
    Block& b = *(block = &storage);
    set_up(b, l, index);
    b.signal_stack.use();
    trap.resume = after_access;
    trap.stack = fiber = pick();
    switch_stack(b.main, *fiber);
    b.signal_stack.restore();
    std::string report = std::exchange(b.report, {});
    if (report.empty()) {
        std::string text = leftovers(b);
        if (text.empty()) return text;
        report = fmt::format("kernel {}, block ({},{},{}): {}", l.kernel, b.idx.x, b.idx.y, b.idx.z, text);
    }
    std::fill(std::begin(b.warps), std::end(b.warps), Warp{});
    std::fill(std::begin(b.barriers), std::end(b.barriers), Barrier{});
    for (const Fiber& f : b.fibers) show(f.memory, f.bytes);
    return report;
}

inline void run(const Launch& l) {
    const dim3 g = l.grid, t = l.block;
    const uint64_t n_thread = uint64_t{t.x} * t.y * t.z, n_block = uint64_t{g.x} * g.y * g.z;
    if (n_thread < 1 || n_thread > 1024 || t.z > 64 || n_block < 1 || g.x >> 31 || g.y > 65535 ||
        g.z > 65535 || l.shared_bytes > shared_capacity)
        throw Fault(
            fmt::format("kernel {}: invalid launch, grid ({},{},{}), block ({},{},{}), {} bytes shared",
                        l.kernel, g.x, g.y, g.z, t.x, t.y, t.z, l.shared_bytes));
    TrapHandler handler;
    // Random: a walk whose step shares no factor with n_block meets each block once.
    uint64_t seed = schedule.seed, step = next_random(seed) % n_block, first = next_random(seed) % n_block;
    while (std::gcd(step, n_block) != 1) step++;
    std::atomic<bool> failed = false;
    std::mutex mutex;
    std::string report;
    parallel_for(static_cast<int64_t>(n_block), [&](int64_t i) {
        if (failed) return;
        uint64_t index = i;
        if (schedule.order == Order::Reverse) index = n_block - 1 - index;
        if (schedule.order == Order::Random)
            index = (static_cast<unsigned __int128>(index) * step + first) % n_block;
        std::string text = run_block(l, index);
        if (text.empty()) return;
        std::lock_guard lock(mutex);
        if (!failed.exchange(true)) report = std::move(text);
    });
    std::string text = check_allocations();
    if (report.empty() && !text.empty()) report = fmt::format("kernel {}: {}", l.kernel, text);
    if (!report.empty()) throw Fault(report);
}

// Calls body() once a CUDA thread; in it, threadIdx and all of sim_cuda.h work. Throws Fault.
template <class F>
void launch(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, const F& body) {
    run({kernel, grid, block, shared_bytes, [](const void* f) { (*static_cast<const F*>(f))(); }, &body});
}

// One argument of a launch: where it is, and its size.
struct Param {
    const void* data;
    size_t bytes;
};
// For tests/ptx: if set, gives what a thread runs instead of the kernel, or nothing: the kernel.
inline std::function<std::function<void()>(void* kernel, const std::vector<Param>&)> compiled;

template <class... P>
void launch_with(const char* name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                 const std::tuple<P...>& params) {
    std::function<void()> other;
    if (compiled)
        std::apply(
            [&](const P&... p) {
                other = compiled(reinterpret_cast<void*>(kernel), {Param{&p, sizeof p}...});
            },
            params);
    if (other) return launch(name, grid, block, shared_bytes, other);
    launch(name, grid, block, shared_bytes, [&] { std::apply(kernel, params); });
}

// A kernel function: arguments are converted to its parameters once, and copied for each thread.
template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, A&&... args) {
    launch_with(name, kernel, grid, block, shared_bytes, std::tuple<P...>(std::forward<A>(args)...));
}

// What a graph layer records instead of running it (see device.h).
struct Stream {
    std::vector<std::function<void()>>* recording = nullptr;  // null: launches run at once
    // Of a capture (device_sim.cpp): the streams that have joined this one's; of one that has joined, its
    // launches that nobody has waited for yet, and how many went before.
    std::vector<Stream*> joined;
    std::vector<std::function<void()>> late;
    size_t n_taken = 0;
};
// How often a stream outside of captures has been given something else than a launch. On a GPU a launch after
// that begins when all before it has ended; one after a launch may begin before (wait_for_last_launch()).
inline std::atomic<uint64_t> n_order = 0;
// For tests: when graphs with loops and branches are refused, as by a driver that cannot make or run them;
// Silent: they are not, and do not run.
enum class Refusal { Never, Instantiate, Launch, Silent };
inline Refusal refusal = Refusal::Never;

// As launch(), or, if `stream` is recording, a step of the recording that launches with these arguments.
template <class... P, class... A>
void launch_on(Stream* stream, const char* name, void (*kernel)(P...), dim3 grid, dim3 block,
               size_t shared_bytes, A&&... args) {
    if (!stream || !stream->recording)
        return launch(name, kernel, grid, block, shared_bytes, std::forward<A>(args)...);
    std::tuple<P...> params(std::forward<A>(args)...);
    stream->recording->push_back([=] { launch_with(name, kernel, grid, block, shared_bytes, params); });
}

// Runs f() under Forward, Reverse and n_random other schedules, each with its own poison. f sets up its
// buffers, launches, and returns its outputs, a vector; all must be equal to the byte. Throws Fault.
template <class F>
auto run_schedules(F f, int n_random = 3) {
    struct Restore {
        Schedule saved = schedule;
        ~Restore() { schedule = saved; }
    } restore;
    schedule = {};
    auto expected = f();
    for (int i = 0; i <= n_random; i++) {
        schedule = {i ? Order::Random : Order::Reverse, static_cast<uint64_t>(i),
                    static_cast<uint8_t>(0x5a + 43 * i)};
        auto found = f();
        std::string name = i ? fmt::format("random({})", i) : "reverse";
        if (found.size() != expected.size())
            throw Fault(fmt::format("schedule {}: outputs differ in size", name));
        for (size_t k = 0; k < found.size(); k++)
            if (memcmp(&found[k], &expected[k], sizeof found[k]))
                throw Fault(
                    fmt::format("schedule {}: output {} differs from that of schedule forward: a missing "
                                "barrier or wait, or memory read that nobody has written",
                                name, k));
    }
    return expected;
}

}  // namespace easel::sim

#include "sim_cuda.h"
