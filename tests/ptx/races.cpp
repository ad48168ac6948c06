// races.cpp: accesses to memory that nothing puts in an order: of the threads of a block to shared memory, of
// the blocks of a launch to global memory; see code.h.
#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "code.h"

namespace easel::ptx {

namespace {

// ---- threads and shared memory ----------------------------------------------------------------------------

// When an access was: the thread, and how many barriers of its block, its group of warps and its warp it had
// behind it.
struct Moment {
    int thread = -1, line = 0;
    uint32_t barrier = 0, group_barrier = 0, warp_barrier = 0, n_fence = 0;
};
// Of a byte. Reads: the latest, and whether another group, another warp of the group, or another lane of the
// warp has read it since the barrier before.
struct Byte {
    Moment write, read;
    bool atomic = false, by_groups = false, by_warps = false, by_lanes = false;
};

struct SharedRaces {
    std::vector<Byte> bytes{sim::Block::memory_bytes};
    uint32_t first_barrier = 1, last_barrier = 1;  // numbers go on from block to block
    std::array<int, 1024> group{};                 // of a thread: its named barrier; 0: none yet
    std::array<uint32_t, 1024> n_fence{};          // and how many fence.proxy.async it had
    std::array<uint32_t, 16> warps{};              // that have come to a named barrier
};
thread_local SharedRaces races;

bool same_warp(const Moment& a, const Moment& b) {
    return a.thread / 32 == b.thread / 32;
}
bool same_group(const Moment& a, const Moment& b) {
    const int group = races.group[a.thread];
    return same_warp(a, b) || (group && group == races.group[b.thread]);
}
bool group_orders(const Moment& before, const Moment& now) {
    return before.barrier != now.barrier ||
           (same_group(before, now) && before.group_barrier < now.group_barrier);
}
bool orders(const Moment& before, const Moment& now) {
    return group_orders(before, now) || (same_warp(before, now) && before.warp_barrier < now.warp_barrier);
}
// Whether nothing puts `before`, if that was another thread, before `now`.
bool concurrent(const Moment& before, const Moment& now) {
    return before.thread >= 0 && before.thread != now.thread && !orders(before, now);
}
// The same of all that have read a byte.
bool readers_concurrent(const Byte& b, const Moment& now) {
    if (b.read.thread < 0 || b.read.barrier != now.barrier) return false;
    return b.by_groups || (b.by_warps && !group_orders(b.read, now)) ||
           (b.by_lanes && !orders(b.read, now)) || concurrent(b.read, now);
}
void add_reader(Byte& b, const Moment& now) {
    if (b.read.thread < 0 || b.read.barrier != now.barrier) {
        b.read = now;
        b.by_groups = b.by_warps = b.by_lanes = false;
    } else if (!same_group(b.read, now)) {
        b.by_groups = true;
    } else if (b.read.group_barrier != now.group_barrier) {
        if (b.read.group_barrier > now.group_barrier) return;
        b.read = now;
        b.by_warps = b.by_lanes = false;
    } else if (!same_warp(b.read, now)) {
        b.by_warps = true;
    } else if (b.read.warp_barrier < now.warp_barrier) {
        b.read = now;
        b.by_lanes = false;
    } else if (b.read.warp_barrier == now.warp_barrier && b.read.thread != now.thread) {
        b.by_lanes = true;
    }
}

[[noreturn]] void report(const Thread& t, const Ins& i, const char* what, const Moment& before,
                         const char* p) {
    sim::fault(t.at(i),
               "race: {} byte {} of shared memory that thread {} {} in line {}, with no barrier between",
               what, p - sim::block->memory, before.thread, what[0] == 'r' ? "writes" : "uses", before.line);
}

// ---- blocks and global memory -----------------------------------------------------------------------------

// Who has used a byte in the launch that did so last: bits of launch, block, value that was written, use.
enum Use : uint64_t { Read, ReadByMany, Written, Atomics };
constexpr int kLaunchBits = 22, kBlockBits = 32, kValueBits = 8, kUseBits = 2;

struct Page {
    static constexpr int bits = 12;
    std::array<std::atomic<uint64_t>, 1 << bits> bytes{};
};
std::mutex pages_mutex;
auto& pages = *new std::unordered_map<uint64_t, std::unique_ptr<Page>>;

Page& page(uint64_t number) {
    static thread_local std::array<std::pair<uint64_t, Page*>, 256> near{};  // found before
    auto& [known, p] = near[number % near.size()];
    if (p && known == number) return *p;
    std::lock_guard lock(pages_mutex);
    auto& own = pages[number];
    if (!own) own = std::make_unique<Page>();
    known = number, p = own.get();
    return *p;
}

thread_local uint64_t this_launch = 0, this_block = 0;
thread_local uint64_t n_overlapping = 0;  // launches before this one that may not have ended

// What an access makes of a byte's use; 0: it races with another block's.
uint64_t next_use(uint64_t old, Access access, uint8_t value) {
    const auto now = [&](Use use) {
        const uint64_t who = this_launch << kBlockBits | this_block;
        return (who << kValueBits | value) << kUseBits | use;
    };
    const Use fresh = access == Access::Read ? Read : access == Access::Write ? Written : Atomics;
    if (old >> (64 - kLaunchBits) != this_launch) return now(fresh);
    const bool mine = (old ^ now(fresh)) >> (kValueBits + kUseBits) == 0;
    switch (static_cast<Use>(old % 4)) {
        case Read:
            return mine ? now(fresh) : access == Access::Read ? now(ReadByMany) : 0;
        case ReadByMany:
            return access == Access::Read ? old : 0;
        case Written:
            if (mine) return access == Access::Read ? old : now(fresh);
            return access == Access::Write && static_cast<uint8_t>(old >> kUseBits) == value ? old : 0;
        default:
            return access == Access::Atomic ? old : 0;
    }
}

// Whether a launch that may not have ended has written a byte.
bool may_be_written(uint64_t use) {
    const uint64_t ago = (this_launch - (use >> (64 - kLaunchBits))) % (1 << kLaunchBits);
    return (use % 4 == Written || use % 4 == Atomics) && ago <= n_overlapping;
}

}  // namespace

void watch_block(LaunchNumber number) {
    races.first_barrier = ++races.last_barrier;
    races.group = {};
    races.n_fence = {};
    races.warps = {};
    const dim3 grid = sim::block->launch->grid;
    const uint3 idx = sim::block->idx;
    this_launch = number.launch % (1 << kLaunchBits);
    n_overlapping = number.launch - number.overlapping;
    this_block = idx.x + uint64_t{grid.x} * (idx.y + uint64_t{grid.y} * idx.z);
    count_block();
}

void watch_fence() {
    races.n_fence[sim::fiber->rank]++;
}

void watch_group(const Thread& t, const Ins& i, int barrier, int n) {
    int& group = races.group[sim::fiber->rank];
    if (group && group != barrier)
        sim::fault(t.at(i), "named barriers {} and {} in one thread: races could not be seen", group,
                   barrier);
    group = barrier;
    uint32_t& warps = races.warps[barrier];
    warps |= 1u << sim::fiber->warp;
    if (32 * std::popcount(warps) > n)
        sim::fault(t.at(i), "more than {} threads come to barrier {}, which counts so many", n, barrier);
}

void watch_shared(const Thread& t, const Ins& i, Access access, const char* p, size_t n) {
    const bool product = access == Access::Product;
    if (product) access = Access::Read;
    const int rank = sim::fiber->rank;
    const Moment now = {rank,
                        i.line,
                        races.first_barrier + t.n_barrier,
                        t.n_group_barrier,
                        t.n_warp_barrier,
                        races.n_fence[rank]};
    races.last_barrier = std::max(races.last_barrier, now.barrier);
    if (!product) count_access(t, i, true, access == Access::Read, p, n);
    for (Byte* b = &races.bytes[p - sim::block->memory]; n--; b++, p++) {
        if (concurrent(b->write, now) && !(access == Access::Atomic && b->atomic))
            report(t, i, access == Access::Read ? "reads" : "writes", b->write, p);
        if (product && b->write.thread >= 0 && b->write.barrier >= races.first_barrier &&
            races.n_fence[b->write.thread] == b->write.n_fence)
            sim::fault(t.at(i), "wgmma reads what thread {} has written in line {} with no fence.proxy.async",
                       b->write.thread, b->write.line);
        if (access == Access::Read) {
            add_reader(*b, now);
        } else {
            if (readers_concurrent(*b, now)) report(t, i, "writes", b->read, p);
            b->write = now;
            b->atomic = access == Access::Atomic;
        }
    }
}

void watch_global(const Thread& t, const Ins& i, Access access, const char* p, size_t n, const void* value) {
    count_access(t, i, false, access == Access::Read, p, n);
    const auto address = std::bit_cast<uint64_t>(p);
    const bool early = t.code.waits && !t.waited;
    if (early && access != Access::Read)
        sim::fault(t.at(i), "writes global memory before it has waited for the last launch");
    for (size_t k = 0; k < n; k++) {
        auto& byte = page((address + k) >> Page::bits).bytes[(address + k) % (1 << Page::bits)];
        for (uint64_t old = byte, now = 0;;) {
            if (early && may_be_written(old))
                sim::fault(t.at(i), "reads what a launch before has written, and has not waited for it");
            now = next_use(old, access, value ? static_cast<const uint8_t*>(value)[k] : 0);
            if (!now)
                sim::fault(t.at(i), "race: block {} of this launch uses this byte of global memory too",
                           old >> (kValueBits + kUseBits) & 0xffffffff);
            if (now == old || byte.compare_exchange_weak(old, now)) break;
        }
    }
}

}  // namespace easel::ptx
