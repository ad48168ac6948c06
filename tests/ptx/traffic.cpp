// traffic.cpp: what the accesses of a kernel to memory cost: passes over the banks of shared memory, sectors
// of global memory; see code.h.
#include <cxxabi.h>
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <unordered_map>

#include "code.h"

namespace easel::ptx {

namespace {

// An access that lanes of a warp make together: each for the k-th time that it is at the instruction.
struct Group {
    const Code* code;
    int line;
    bool shared, read;
    uint32_t lanes = 0;
    size_t bytes = 0;  // a lane
    std::array<uint64_t, 32> address;
};
// Of all that was in a line of the file, of a cp.async apart what it reads and what it writes: accesses of a
// warp; passes over the banks of shared memory or sectors of 32 bytes; as few as these bytes could do with.
struct Cost {
    bool shared, read;
    uint64_t n = 0, units = 0, least = 0;
};
using Costs = std::map<std::tuple<const Code*, int, bool>, Cost>;  // by line; of shared memory

struct Traffic {
    Costs costs;
    std::unordered_map<uint64_t, Group> groups;
    std::map<std::pair<int, const Ins*>, uint32_t> n_done;  // by thread

    // Lanes of 8 bytes go to shared memory in two turns, of 16 in four.
    void add(const Group& g) {
        Cost& cost = costs[{g.code, g.line, g.shared}];
        cost.shared = g.shared, cost.read = g.read, cost.n++;
        const int together = !g.shared || g.bytes <= 4 ? 32 : g.bytes == 8 ? 16 : 8;
        for (int first = 0; first < 32; first += together) {
            std::vector<uint64_t> bytes;
            for (int l = first; l < first + together; l++)
                for (size_t b = 0; g.lanes >> l & 1 && b < g.bytes; b++) bytes.push_back(g.address[l] + b);
            std::sort(bytes.begin(), bytes.end());
            bytes.erase(std::unique(bytes.begin(), bytes.end()), bytes.end());
            std::vector<uint64_t> units;  // words or sectors
            for (uint64_t b : bytes) units.push_back(b / (g.shared ? 4 : 32));
            units.erase(std::unique(units.begin(), units.end()), units.end());
            cost.least += ((g.shared ? units.size() : bytes.size()) + 31) / 32;
            std::array<uint64_t, 32> in_bank{};
            for (uint64_t u : units) in_bank[u % 32]++;
            cost.units += g.shared ? *std::max_element(in_bank.begin(), in_bank.end()) : units.size();
        }
    }
    void finish_block() {
        for (const auto& [key, group] : groups) add(group);
        groups.clear();
        n_done.clear();
    }
};

const bool counts = getenv("EASEL_PTX_TRAFFIC");
std::mutex all_mutex;
auto& all = *new std::vector<std::shared_ptr<Traffic>>;  // outlives what prints it

Traffic& traffic() {
    static thread_local const std::shared_ptr<Traffic> own = [] {
        std::lock_guard lock(all_mutex);
        return all.emplace_back(std::make_shared<Traffic>());
    }();
    return *own;
}

// "linear_kernel<...>" of the linker's name.
std::string short_name(const std::string& name) {
    int status;
    const std::unique_ptr<char, void (*)(void*)> text(
        abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status), free);
    std::string s = text ? text.get() : name;
    const size_t kernel = s.find("_kernel"), begin = s.rfind(':', kernel) + 1;
    size_t end = kernel + 7;
    for (int depth = 0; end < s.size() && (depth || s[end] == '<'); end++) {
        depth += (s[end] == '<') - (s[end] == '>');
        if (!depth) return s.substr(begin, end + 1 - begin);
    }
    return s.substr(begin, end - begin);
}

}  // namespace

void count_access(const Thread& t, const Ins& i, bool shared, bool read, const char* p, size_t bytes) {
    if (!counts) return;
    Traffic& all = traffic();
    const int warp = sim::fiber->warp, lane = sim::fiber->lane;
    const uint64_t k = all.n_done[{sim::fiber->rank, &i}]++;
    const uint64_t key = (static_cast<uint64_t>(&i - t.code.ins.data()) << 5 | warp) << 32 | k;
    Group& g = all.groups[key];
    if (!g.lanes) g = {&t.code, i.line, shared, read, 0, bytes, {}};
    g.lanes |= 1u << lane;
    g.address[lane] = std::bit_cast<uint64_t>(p) - (shared ? std::bit_cast<uint64_t>(sim::block->memory) : 0);
    if (g.lanes != sim::block->warps[warp].lanes) return;
    all.add(g);
    all.groups.erase(key);
}

void count_block() {
    if (counts) traffic().finish_block();
}

void print_traffic() {
    if (!counts) return;
    Costs sum;
    for (const auto& t : all) {
        t->finish_block();
        for (const auto& [line, c] : t->costs) {
            Cost& s = sum[line];
            s = {c.shared, c.read, s.n + c.n, s.units + c.units, s.least + c.least};
        }
    }
    fmt::print(
        "passes over shared memory, sectors of global memory: of all accesses of a warp, how many, and as "
        "few as\n"
        "their bytes could do with; the line that is most above\n");
    std::map<std::string, std::vector<std::pair<int, Cost>>> kernels;
    for (const auto& [of, c] : sum)
        kernels[fmt::format("{:60} {} {}", short_name(std::get<0>(of)->name), c.shared ? "shared" : "global",
                            c.read ? "read" : "write")]
            .emplace_back(std::get<1>(of), c);
    for (const auto& [name, lines] : kernels) {
        Cost whole{};
        std::pair<int, Cost> worst{};
        for (const auto& [line, c] : lines) {
            whole.n += c.n, whole.units += c.units, whole.least += c.least;
            if (c.units - c.least > worst.second.units - worst.second.least) worst = {line, c};
        }
        fmt::print("{:75} {:10} {:10} {:10} {:6.2f}", name, whole.n, whole.units, whole.least,
                   double(whole.units) / double(whole.least));
        if (worst.first)
            fmt::print("  line {}: {:.2f} of {:.2f}", worst.first,
                       double(worst.second.units) / double(worst.second.n),
                       double(worst.second.least) / double(worst.second.n));
        fmt::print("\n");
    }
}

}  // namespace easel::ptx
