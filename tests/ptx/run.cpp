// run.cpp: threads that run PTX, and which kernel is which; see code.h.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "check.h"
#include "code.h"
#include "launch.h"

extern "C" void easel_ptx_here() {}  // a function whose name and address are known

namespace easel::ptx {

namespace {

std::atomic<uint64_t> n_launch = 0, n_instruction = 0;

LaunchNumber next_launch() {
    static std::mutex mutex;
    static uint64_t n_order = 0, overlapping = 0;
    const std::lock_guard lock(mutex);
    if (std::exchange(n_order, sim::n_order) != sim::n_order) overlapping = n_launch + 1;
    return {++n_launch, overlapping};
}

uint64_t value_of(const Fill& f, const char* params, const char* local) {
    const sim::Block& b = *sim::block;
    const auto axis = [&](const auto& v) { return f.offset == 0 ? v.x : f.offset == 1 ? v.y : v.z; };
    switch (f.kind) {
        case Fill::Tid:
            return axis(sim::fiber->tid);
        case Fill::Ctaid:
            return axis(b.idx);
        case Fill::Ntid:
            return axis(b.launch->block);
        case Fill::Nctaid:
            return axis(b.launch->grid);
        case Fill::Shared:
            return static_cast<char*>(sim::shared(&f, sim::round16(f.bytes))) - b.memory;
        case Fill::Dynamic:
            return b.dynamic - b.memory;
        case Fill::Param:
            return std::bit_cast<uint64_t>(params + f.offset);
        default:
            return std::bit_cast<uint64_t>(local + f.offset);
    }
}

}  // namespace

void run(const Code& code, const char* params, LaunchNumber number) {
    const uint64_t launch = number.launch;
    static thread_local std::pair<uint64_t, uint3> block;  // that was here last
    const uint3 idx = sim::block->idx;
    if (block.first != launch || block.second.x != idx.x || block.second.y != idx.y ||
        block.second.z != idx.z) {
        block = {launch, idx};
        watch_block(number);
    }
    // Registers and local memory of the threads of the block that this OS thread runs.
    static thread_local std::vector<std::vector<uint64_t>> memory(1024);
    auto& own = memory[sim::fiber->rank];
    const size_t n = code.n_slot + code.local_bytes / 8 + 4;
    if (own.size() < n) own.resize(n);
    memset(own.data(), sim::schedule.poison, n * 8);
    Thread t{own.data(), code};
    const uintptr_t end = reinterpret_cast<uintptr_t>(own.data() + code.n_slot);
    char* local = reinterpret_cast<char*>((end + 15) / 16 * 16);
    for (const auto& [slot, value] : code.constants) t.r[slot] = value;
    for (const Fill& f : code.fills) t.r[f.slot] = value_of(f, params, local);

    uint64_t count = 0;
    const Ins* const ins = code.ins.data();
    while (t.pc >= 0) {
        const Ins& i = ins[t.pc++];
        count++;
        if (i.guard >= 0 && (t.r[i.guard] & 1) != i.guard_is) continue;
        i.op(t, i);
    }
    n_instruction += count;
    if (code.waits && !t.waited)
        sim::fault(t.at(ins[code.ins.size() - 1]), "a thread ends that has not waited for the last launch");
}

namespace {

// The kernels of this program by name, as the linker has them, and where they are.
std::map<std::string, void*> own_symbols() {
    const std::string exe = std::filesystem::read_symlink("/proc/self/exe");
    FILE* nm = popen(fmt::format("nm '{}'", exe).c_str(), "r");
    require(nm, "nm does not run");
    std::map<std::string, uint64_t> file;
    char line[8192], name[8192], kind;
    unsigned long long address;
    while (fgets(line, sizeof line, nm))
        if (sscanf(line, "%llx %c %8191s", &address, &kind, name) == 3 && strchr("tTwW", kind))
            file[name] = address;
    require(pclose(nm) == 0, "nm {} failed", exe);
    const uint64_t base = std::bit_cast<uint64_t>(&easel_ptx_here) - file.at("easel_ptx_here");
    std::map<std::string, void*> out;
    for (const auto& [symbol, where] : file) out[symbol] = std::bit_cast<void*>(base + where);
    return out;
}

std::map<std::string, Code> by_name;
std::unordered_map<void*, const Code*> by_address;

// From now on kernels of the .ptx files in `folder` run from these.
void use_ptx(const std::string& folder) {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
        if (entry.path().extension() != ".ptx") continue;
        for (Code& code : read_file(entry.path())) {
            const std::string name = code.name;
            require(by_name.emplace(name, std::move(code)).second, "{}: two kernels are named {}", folder,
                    name);
        }
    }
    require(!by_name.empty(), "{}: no kernels in .ptx files", folder);
    // Compiled for 9.0 or later, all kernels but those of tests wait.
    const auto waits = [](const auto& kernel) { return kernel.second.waits; };
    const bool overlaps = std::any_of(by_name.begin(), by_name.end(), waits);
    for (const auto& [name, code] : by_name)
        require(!overlaps || code.waits || code.file.starts_with("test_"),
                "{}: {} does not begin with wait_for_last_launch()", code.file, name);
    const auto symbols = own_symbols();
    if (symbols.contains("__cudaLaunchKernel")) return;  // cudart.cpp asks for kernels by name
    for (const auto& [name, code] : by_name) {
        const auto found = symbols.find(name);
        require(found != symbols.end(), "{}: this program has no kernel of that name: {}", code.file, name);
        require(by_address.emplace(found->second, &code).second, "{} is another kernel too", name);
    }
    sim::compiled = [](void* kernel, const std::vector<sim::Param>& params) -> std::function<void()> {
        const auto found = by_address.find(kernel);
        if (found == by_address.end()) return nullptr;
        const Code& code = *found->second;
        const auto same = [](const sim::Param& p, const auto& q) { return p.bytes == q.second; };
        require(std::equal(params.begin(), params.end(), code.params.begin(), code.params.end(), same),
                "bug: {} has other parameters in {}", code.name, code.file);
        std::vector<const void*> addresses;
        for (const sim::Param& p : params) addresses.push_back(p.data);
        const std::vector<char> bytes = copy_params(code, addresses.data());
        return [&code, bytes, number = next_launch()] { run(code, bytes.data(), number); };
    };
}

// At the start of the program, and at its end.
const struct Start {
    const char* const folder = getenv("EASEL_PTX");
    Start() try {
        if (folder) use_ptx(folder);
        if (const char* kib = getenv("EASEL_PTX_SHARED_KIB")) sim::shared_capacity = std::stoul(kib) << 10;
    } catch (const std::exception& e) {
        fmt::print(stderr, "{}\n", e.what());
        exit(1);
    }
    ~Start() {
        if (!folder) return;
        fmt::print("{} launches ran as PTX, {} instructions\n", n_launch.load(), n_instruction.load());
        print_traffic();
    }
} start;

}  // namespace

// ---- launch.h ---------------------------------------------------------------------------------------------

const Code* find(const std::string& name) {
    const auto found = by_name.find(plain_name(name));
    return found == by_name.end() ? nullptr : &found->second;
}
Needs needs(const Code& code) {
    size_t bytes = 0;
    for (const Fill& f : code.fills)
        if (f.kind == Fill::Shared) bytes += sim::round16(f.bytes);
    return {bytes, code.max_threads};
}
bool waits(const Code& code) {
    return code.waits;
}
void did_other() {
    sim::n_order++;
}
std::vector<char> copy_params(const Code& code, const void* const* params) {
    std::vector<char> bytes(code.param_bytes + 1);
    for (size_t i = 0; i < code.params.size(); i++)
        memcpy(bytes.data() + code.params[i].first, params[i], code.params[i].second);
    return bytes;
}
void launch(const Code& code, const LaunchShape& s, const std::vector<char>& params) {
    sim::launch(code.name.c_str(), dim3(s.grid[0], s.grid[1], s.grid[2]),
                dim3(s.block[0], s.block[1], s.block[2]), s.shared_bytes,
                [&, number = next_launch()] { run(code, params.data(), number); });
}
void* allocate(size_t bytes) {
    return sim::allocate(bytes);
}
void deallocate(void* p) {
    sim::deallocate(p);
}
void set_order(uint64_t seed) {
    sim::schedule.order = sim::Order::Random;
    sim::schedule.seed = seed;
}

}  // namespace easel::ptx
