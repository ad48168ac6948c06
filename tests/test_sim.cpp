// test_sim.cpp: the simulator of cuda/: kernels broken on purpose, each of which must be reported, and its
// speed. What its twins of instructions compute is test_ptx.cpp's.
#include "ptx.h"

namespace sim_test {

using namespace easel;

enum class Broken {
    None,
    MissingBarrier,
    UnwrittenShared,
    MissingWait,
    InFlight,
    BarrierOrShuffle,
    TwoBarriers,
    BarrierOfSome,
    HalfNamedBarrier,
    OtherMask,
    NotInMask,
    FromOutsideMask,
    EndedLane,
    OtherOperation,
    MisalignedLoad,
    MisalignedLdmatrix,
    MisalignedAsync,
    LdmatrixOfGlobal,
    ReadPastEnd,
    WritePastEnd,
    WriteBefore,
    ReadPastShared,
    WritePastArray,
    WildPointer,
    DivideByZero,
    StackOverflow,
};

__device__ int deep(int n, volatile int* p) {
    volatile int pad[256];
    pad[n & 255] = n;
    *p = n;
    return n > 0 ? deep(n - 1, pad) + pad[n & 255] : 0;
}

// 64 threads, 1024 bytes of dynamic shared memory; in, out [64]. None: out is in, reversed.
__global__ void broken_kernel(Broken what, const int* in, int* out) {
    SHARED_ARRAY(int, s, 64);
    SHARED_DYNAMIC(int, dynamic);
    const int t = threadIdx.x;
    s[t] = in[t];
    if (what != Broken::MissingBarrier) __syncthreads();
    int v = s[63 - t];
    uint32_t r[4];
    switch (what) {
        case Broken::UnwrittenShared:
            v += dynamic[t] & 1;
            break;
        case Broken::MissingWait:
            cp_async<4>(dynamic + t, in + t);
            cp_async_commit();
            __syncthreads();
            v = dynamic[63 - t];
            cp_async_wait<0>();
            break;
        case Broken::InFlight:
            cp_async<4>(dynamic + t, in + t);
            break;
        case Broken::BarrierOrShuffle:
            if (t < 16)
                __syncthreads();
            else
                v += __shfl_xor_sync(~0u, v, 1);
            break;
        case Broken::TwoBarriers:
            if (t < 16)
                __syncthreads();
            else
                __syncthreads();
            break;
        case Broken::BarrierOfSome:
            if (t % 32) barrier_sync(1, 64);
            break;
        case Broken::HalfNamedBarrier:
            if (t % 2) barrier_sync(1, 32);
            break;
        case Broken::OtherMask:
            v += __shfl_xor_sync(t % 2 ? ~0u : 0x7fffffffu, v, 2);
            break;
        case Broken::NotInMask:
            v += __shfl_sync(0xffff, v, 0);
            break;
        case Broken::FromOutsideMask:
            if (t < 16) v += __shfl_sync(0xffff, v, 20);
            break;
        case Broken::EndedLane:
            if (t == 3) return;
            __syncwarp();
            break;
        case Broken::OtherOperation:
            if (t < 16)
                v += __any_sync(~0u, v);
            else
                v ^= static_cast<int>(__ballot_sync(~0u, v));
            break;
        case Broken::MisalignedLoad:
            v += load16(in + t % 4).x;
            break;
        case Broken::MisalignedLdmatrix:
            ldmatrix(r, dynamic + t % 32);
            v += r[0];
            break;
        case Broken::MisalignedAsync:
            cp_async<8>(dynamic + 2 * t, in + t);
            cp_async_commit();
            cp_async_wait<0>();
            break;
        case Broken::LdmatrixOfGlobal:
            ldmatrix(r, in);
            v += r[0];
            break;
        case Broken::ReadPastEnd:
            v += in[t + 1];
            break;
        case Broken::WritePastEnd:
            out[t + 1] = v;
            break;
        case Broken::WriteBefore:
            out[t - 1] = v;
            break;
        case Broken::ReadPastShared:
            v += dynamic[256 + t];
            break;
        case Broken::WritePastArray:
            s[t + 1] = v;
            break;
        case Broken::WildPointer:
            v += *reinterpret_cast<const int*>(static_cast<uintptr_t>(t + 1) * 4096);
            break;
        case Broken::DivideByZero:
            v /= in[0];
            break;
        case Broken::StackOverflow:
            v += deep(1000, out);
            break;
        default:
            break;
    }
    out[t] = v;
}

__global__ void switch_kernel(int n) {
    for (int i = 0; i < n; i++) __syncwarp();
}
__global__ void barrier_kernel(int n) {
    for (int i = 0; i < n; i++) __syncthreads();
}
__global__ void shuffle_time_kernel(int n, float* out) {
    float v = static_cast<float>(threadIdx.x);
    for (int i = 0; i < n; i++) v = __shfl_xor_sync(~0u, v, 5);
    out[threadIdx.x] = v;
}
__global__ void mma_time_kernel(int n, float* out) {
    uint32_t a[4] = {threadIdx.x, 1, 2, 3};
    float d[4] = {};
    for (int i = 0; i < n; i++) mma_m16n8k16_f16(d, a, 1, 2);
    out[threadIdx.x] = d[0] + d[1] + d[2] + d[3];
}
__global__ void ldmatrix_time_kernel(int n, float* out) {
    SHARED_ARRAY(uint16_t, rows, 256);
    uint32_t r[4];
    for (int i = 0; i < n; i++) ldmatrix(r, rows + threadIdx.x * 8);
    out[threadIdx.x] = static_cast<float>(r[0] + r[1] + r[2] + r[3]);
}

}  // namespace sim_test

#include <chrono>

#include "catch.h"

using namespace easel;
using namespace sim_test;

namespace {

// Device memory with a vector's contents.
template <class T>
struct Buffer {
    T* data;
    size_t n;
    explicit Buffer(size_t n) : data(static_cast<T*>(sim::allocate(n * sizeof(T)))), n(n) {}
    explicit Buffer(const std::vector<T>& v) : Buffer(v.size()) { memcpy(data, v.data(), n * sizeof(T)); }
    ~Buffer() { sim::deallocate(data); }
    Buffer(const Buffer&) = delete;
    operator T*() const { return data; }
    std::vector<T> read() const { return {data, data + n}; }
};

std::vector<int> run_broken(Broken what) {
    std::vector<int> v(64);
    for (int i = 0; i < 64; i++) v[i] = 2 * i;
    Buffer<int> in(v), out(64);
    EASEL_LAUNCH(broken_kernel, 1, 64, 1024, 0, what, in, out);
    return out.read();
}

bool works() {
    std::vector<int> out = sim::run_schedules([] { return run_broken(Broken::None); });
    for (int i = 0; i < 64; i++)
        if (out[i] != 2 * (63 - i)) return false;
    return true;
}

// What the simulator says of a kernel, under one schedule or by comparing several; then whether it still
// works.
template <class F>
std::string report_of(F f) {
    std::string text = "nothing";
    try {
        f();
    } catch (const sim::Fault& e) {
        text = e.what();
    }
    return works() ? text : text + "; and now nothing works";
}

void check_report(Broken what, std::initializer_list<const char*> parts) {
    for (auto order : {sim::Order::Forward, sim::Order::Reverse, sim::Order::Random}) {
        sim::schedule = {order, 1};
        std::string text = report_of([&] { run_broken(what); });
        INFO("got: " << text);
        for (const char* part : parts) {
            INFO("expected: " << part);
            CHECK(text.find(part) != std::string::npos);
        }
        CHECK(text.find("kernel broken_kernel") == 0);
        CHECK(text.find("now nothing works") == std::string::npos);
    }
    sim::schedule = {};
}

void check_schedules(Broken what) {
    std::string text = report_of([&] { sim::run_schedules([&] { return run_broken(what); }); });
    INFO("got: " << text);
    CHECK(text.find("differs from that of schedule forward") != std::string::npos);
}

}  // namespace

TEST_CASE("sim: every thread of every block runs once, in three dimensions") {
    const dim3 grid(3, 4, 5), threads(5, 3, 4);
    for (auto order : {sim::Order::Forward, sim::Order::Reverse, sim::Order::Random}) {
        sim::schedule = {order, 5};
        Buffer<int> seen(std::vector<int>(60 * 60));
        sim::launch("count", grid, threads, 0, [&] {
            int b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
            int t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
            atomicAdd(seen + b * 60 + t, 1);
        });
        CHECK(seen.read() == std::vector<int>(60 * 60, 1));
    }
    sim::schedule = {};
}

TEST_CASE("sim: a kernel without fault runs, and its faults are found") {
    CHECK(works());
    SECTION("missing barrier") {
        check_schedules(Broken::MissingBarrier);
    }
    SECTION("shared memory read before it is written") {
        check_schedules(Broken::UnwrittenShared);
    }
    SECTION("missing wait for cp.async") {
        check_schedules(Broken::MissingWait);
        auto out = run_broken(Broken::MissingWait);  // warp 0 is first, and reads what warp 1 loads: poison
        CHECK(std::vector<int>(out.begin(), out.begin() + 32) == std::vector<int>(32, -1));
    }
    SECTION("barrier in divergent code") {
        check_report(Broken::BarrierOrShuffle, {"test_sim.cpp", "__s"});
        check_report(Broken::TwoBarriers, {"barrier in divergent code: __syncthreads", "test_sim.cpp"});
        check_report(Broken::HalfNamedBarrier, {"barrier 1 in divergent code: only lanes aaaaaaaa of warp"});
    }
    SECTION("deadlock says who waits where") {
        check_report(Broken::BarrierOfSome,
                     {"deadlock", "threads 0-0: ended", "threads 1-31: bar.sync 1, 62 of 64",
                      "threads 33-63: bar.sync 1"});
        check_report(Broken::EndedLane,
                     {"deadlock", "threads 3-3: ended", "threads 4-31: __syncwarp mask ffffffff"});
        std::string text = report_of([] { run_broken(Broken::BarrierOrShuffle); });
        INFO(text);
        CHECK(text.find("threads 16-31: __shfl_xor_sync mask ffffffff, test_sim.cpp:") != std::string::npos);
    }
    SECTION("lanes that disagree") {
        check_report(Broken::OtherMask, {"different operations", "mask 7fffffff", "mask ffffffff"});
        check_report(Broken::NotInMask, {"the lane is not in its own mask"});
        check_report(Broken::FromOutsideMask, {"reads lane 20, which is not in mask 0000ffff"});
        check_report(Broken::OtherOperation, {"different operations", "__any_sync", "__ballot_sync"});
    }
    SECTION("cp.async in flight at the end") {
        check_report(Broken::InFlight, {"cp.async in flight"});
    }
    SECTION("misaligned and misplaced") {
        check_report(Broken::MisalignedLoad, {"load16: misaligned", "not a multiple of 16"});
        check_report(Broken::MisalignedLdmatrix, {"ldmatrix: misaligned"});
        check_report(Broken::MisalignedAsync, {"cp.async: misaligned"});
        check_report(Broken::LdmatrixOfGlobal, {"is not in shared memory"});
    }
    SECTION("out of bounds") {
        check_report(Broken::ReadPastEnd,
                     {"thread (63,0,0): access 0 bytes past the end of a buffer of 256 bytes"});
        check_report(Broken::WritePastEnd,
                     {"thread (63,0,0): access 0 bytes past the end of a buffer of 256"});
        check_report(Broken::ReadPastShared, {"past the end of 1024 bytes of dynamic shared memory"});
        check_report(Broken::WildPointer, {"invalid address 0x"});
        std::string text = report_of([] {  // ptxas would refuse this one
            sim::launch("large", 1, 32, 0, [] {
                SHARED_ARRAY(int, large, 12 * 1024);
                SHARED(int, one);
                large[0] = one = 1;
            });
        });
        CHECK(text.find("more than 49152 bytes of static shared memory") != std::string::npos);
    }
    SECTION("more shared memory, arrays included, than the launch may have") {
        const auto launch = [](size_t dynamic_bytes) {
            return report_of([&] {
                sim::launch("large", 1, 32, dynamic_bytes, [] {
                    SHARED_ARRAY(int, array, 5 * 1024);
                    array[threadIdx.x] = 1;
                });
            });
        };
        CHECK(launch(28 << 10) == "nothing");
        CHECK(launch(32 << 10).find("53248 bytes of shared memory") != std::string::npos);
        CHECK(launch(79 << 10) == "nothing");
        CHECK(launch(99 << 10).find("121856 bytes of shared memory") != std::string::npos);
        CHECK(launch(207 << 10) == "nothing");
        CHECK(launch(208 << 10).find("it may have 232448") != std::string::npos);
    }
#ifndef EASEL_SIM_ASAN  // the sanitizers end the process at these
    SECTION("out of bounds, found afterwards") {
        check_report(Broken::WriteBefore, {"a write before a buffer of 256 bytes"});
        check_report(Broken::WritePastArray,
                     {"block (0,0,0): a write past the end of a shared array of 256 bytes"});
    }
    SECTION("stack overflow") {
        check_report(Broken::StackOverflow, {"stack overflow"});
    }
    SECTION("division by zero") {
        check_report(Broken::DivideByZero, {"integer division by zero"});
    }
#endif
}

TEST_CASE("sim: launches that no GPU takes") {
    for (auto [grid, threads, bytes] : {std::tuple{dim3(1), dim3(1025), 0},
                                        {dim3(0), dim3(32), 0},
                                        {dim3(1, 65536), dim3(32), 0},
                                        {dim3(1), dim3(1, 1, 128), 0},
                                        {dim3(1), dim3(32), 228 << 10}})
        CHECK_THROWS_AS(sim::launch("k", grid, threads, bytes, [] {}), sim::Fault);
}

// Not run by default: build/unit "[speed]"
TEST_CASE("sim: speed", "[.speed]") {
    set_threads(1);
    Buffer<float> out(32);
    auto time = [](const char* what, double n, auto f) {
        f();
        double best = 1e9;
        for (int i = 0; i < 100; i++) {
            auto start = std::chrono::steady_clock::now();
            f();
            best = std::min(
                best,
                std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count());
        }
        WARN(what << ": " << best / n << " ns");
    };
    const int n = 500;
    time("switch, 1 warp", n * 32, [&] { EASEL_LAUNCH(switch_kernel, 1, 32, 0, 0, n); });
    time("switch, __syncthreads of 256", n / 10 * 256,
         [&] { EASEL_LAUNCH(barrier_kernel, 1, 256, 0, 0, n / 10); });
    time("shuffle of a warp", n, [&] { EASEL_LAUNCH(shuffle_time_kernel, 1, 32, 0, 0, n, out); });
    time("mma", n, [&] { EASEL_LAUNCH(mma_time_kernel, 1, 32, 0, 0, n, out); });
    time("ldmatrix", n, [&] { EASEL_LAUNCH(ldmatrix_time_kernel, 1, 32, 0, 0, n, out); });
    time("launch of 1 block of 256, a thread", 4 * 256, [&] {
        for (int i = 0; i < 4; i++) EASEL_LAUNCH(barrier_kernel, 1, 256, 0, 0, 0);
    });
    set_threads(0);
}
