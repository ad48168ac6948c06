// test_sim.cpp: the simulator of cuda/ and the twins of ptx.h against their definitions, a GEMM that uses
// most of them, and kernels broken on purpose, each of which must be reported. The kernels compile with nvcc
// too
// (-x cu), which then sees nothing else of this file.
#include "ptx.h"

namespace sim_test {

using namespace easel;

// out [5, 32]: the four shuffles of 100 + lane, and of a double.
__global__ void shuffle_kernel(int* out, int x, int width) {
    int lane = threadIdx.x, v = 100 + lane;
    out[lane] = __shfl_sync(~0u, v, x, width);
    out[32 + lane] = __shfl_up_sync(~0u, v, x, width);
    out[64 + lane] = __shfl_down_sync(~0u, v, x, width);
    out[96 + lane] = __shfl_xor_sync(~0u, v, x, width);
    out[128 + lane] = static_cast<int>(__shfl_sync(~0u, 0.5 * v, x, width) * 2);
}

// out [12, 32]: votes and reductions of v [32], in two groups of lanes at once.
__global__ void vote_kernel(const int* v, unsigned* out) {
    int lane = threadIdx.x, x = v[lane], same;
    unsigned* o = out + lane;
    if (lane % 3 == 0) {
        o[0] = __ballot_sync(0x49249249, x & 1);
        o[32] = __any_sync(0x49249249, x == v[6]);
        o[64] = __all_sync(0x49249249, x < 0);
    } else {
        o[0] = __ballot_sync(0xb6db6db6, x & 1);
        o[32] = __any_sync(0xb6db6db6, x == v[6]);
        o[64] = __all_sync(0xb6db6db6, x < 0);
    }
    __syncwarp();
    o[96] = __match_any_sync(~0u, x);
    o[128] = __match_all_sync(~0u, x & 256, &same);
    o[160] = same;
    o[192] = __reduce_add_sync(~0u, x);
    o[224] = __reduce_min_sync(~0u, x);
    o[256] = __reduce_max_sync(~0u, static_cast<unsigned>(x));
    o[288] = __reduce_and_sync(~0u, x);
    o[320] = __reduce_or_sync(~0u, x);
    o[352] = __reduce_xor_sync(~0u, x);
}

// Threads past n_stay end at once; the rest meet at barriers that count. out [3, blockDim.x]
__global__ void count_kernel(int* out, int n_stay) {
    int t = threadIdx.x;
    if (t >= n_stay) return;
    out[t] = __syncthreads_count(t % 3 == 0);
    out[blockDim.x + t] = __syncthreads_and(t < 40) + 2 * __syncthreads_and(t < 50);
    out[2 * blockDim.x + t] = __syncthreads_or(t == 41) + 2 * __syncthreads_or(t < 50);
}

// Warp 0 writes, warps 1 and 2 read: barrier 1 says full, barrier 2 empty. out [n, 64]
__global__ void pipe_kernel(int* out, int n) {
    SHARED_ARRAY(int, slot, 32);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int i = 0; i < n; i++) {
        if (warp == 0) {
            if (i > 0) barrier_sync(2, 96);
            slot[lane] = 1000 * i + lane;
            barrier_arrive(1, 96);
        } else {
            barrier_sync(1, 96);
            out[64 * i + threadIdx.x - 32] = slot[31 - lane];
            if (i + 1 < n) barrier_arrive(2, 96);
        }
    }
}

__global__ void atomic_kernel(int* i, unsigned* u, unsigned long long* l, float* f) {
    unsigned t = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(i, 1);
    atomicMin(i + 1, 5 - static_cast<int>(t));
    atomicMax(i + 2, static_cast<int>(t) - 5);
    atomicOr(u, 1u << t % 32);
    atomicAnd(u + 1, ~(1u << t % 32));
    atomicExch(u + 2, 7u);
    if (atomicCAS(u + 3, 0u, 1u + t) == 0) atomicAdd(u + 4, 1u);
    atomicAdd(l, static_cast<unsigned long long>(t) << 32);
    atomicMax(l + 1, static_cast<unsigned long long>(t) << 40);
    atomicAdd(f, 0.25f);
}

// m [4, 8, 8] -> out [6, 4, 32]: x1, x2, x4, and transposed.
__global__ void ldmatrix_kernel(const uint16_t* m, uint32_t* out) {
    SHARED_ARRAY(uint16_t, rows, 4 * 8 * 8);
    int lane = threadIdx.x;
    for (int i = lane; i < 256; i += 32) rows[i] = m[i];
    __syncwarp();
    uint32_t r1[1], r2[2], r4[4];
    for (int trans = 0; trans < 2; trans++) {
        uint32_t* o = out + trans * 3 * 128 + lane;
        if (trans)
            ldmatrix_trans(r1, rows + lane % 8 * 8);
        else
            ldmatrix(r1, rows + lane % 8 * 8);
        if (trans)
            ldmatrix_trans(r2, rows + lane % 16 * 8);
        else
            ldmatrix(r2, rows + lane % 16 * 8);
        if (trans)
            ldmatrix_trans(r4, rows + lane * 8);
        else
            ldmatrix(r4, rows + lane * 8);
        o[0] = r1[0];
        for (int i = 0; i < 2; i++) o[128 + 32 * i] = r2[i];
        for (int i = 0; i < 4; i++) o[256 + 32 * i] = r4[i];
    }
}

// out [16, 8] += a [16, 16] b^T, b [8, 16]; 16-bit floats
__global__ void mma_kernel(const uint16_t* a, const uint16_t* b, float* out, bool bf16) {
    int g = threadIdx.x / 4, t = threadIdx.x % 4;
    auto two = [](const uint16_t* p) {
        return static_cast<uint32_t>(p[0]) | static_cast<uint32_t>(p[1]) << 16;
    };
    uint32_t fa[4], b0 = two(b + 16 * g + 2 * t), b1 = two(b + 16 * g + 2 * t + 8);
    for (int i = 0; i < 4; i++) fa[i] = two(a + 16 * (g + i % 2 * 8) + 2 * t + i / 2 * 8);
    float d[4];
    for (int i = 0; i < 4; i++) d[i] = out[8 * (g + i / 2 * 8) + 2 * t + i % 2];
    if (bf16)
        mma_m16n8k16_bf16(d, fa, b0, b1);
    else
        mma_m16n8k16_f16(d, fa, b0, b1);
    for (int i = 0; i < 4; i++) out[8 * (g + i / 2 * 8) + 2 * t + i % 2] = d[i];
}

// The same for bytes: a [16, 32], b [8, 32].
__global__ void mma_s8_kernel(const int8_t* a, const int8_t* b, int* out) {
    int g = threadIdx.x / 4, t = threadIdx.x % 4;
    auto four = [](const int8_t* p) {
        uint32_t r = 0;
        for (int i = 0; i < 4; i++) r |= static_cast<uint32_t>(static_cast<uint8_t>(p[i])) << 8 * i;
        return r;
    };
    uint32_t fa[4], b0 = four(b + 32 * g + 4 * t), b1 = four(b + 32 * g + 4 * t + 16);
    for (int i = 0; i < 4; i++) fa[i] = four(a + 32 * (g + i % 2 * 8) + 4 * t + i / 2 * 16);
    int d[4];
    for (int i = 0; i < 4; i++) d[i] = out[8 * (g + i / 2 * 8) + 2 * t + i % 2];
    mma_m16n8k32_s8(d, fa, b0, b1);
    for (int i = 0; i < 4; i++) out[8 * (g + i / 2 * 8) + 2 * t + i % 2] = d[i];
}

// Three groups in flight; out [4, 32] words: 16, 8, 4 bytes a thread, and 16 of which 5 are from `in`.
__global__ void async_kernel(const unsigned* in, unsigned* out) {
    SHARED_ARRAY(unsigned, s, 16);
    int t = threadIdx.x;
    if (t == 0) {
        cp_async<16>(s, in);
        cp_async_commit();
        cp_async<8>(s + 4, in + 4);
        cp_async<4>(s + 6, in + 6);
        cp_async<4>(s + 7, in + 7, 0);
        cp_async_commit();
        cp_async<16>(s + 8, in + 8, 5);
        cp_async<8>(s + 12, in + 12, 8);
        cp_async<8>(s + 14, in + 14, 2);
        cp_async_commit();
        cp_async_wait<2>();
        for (int i = 0; i < 4; i++) out[16 + i] = s[i];
        cp_async_wait<0>();
    }
    __syncthreads();
    if (t < 16) out[t] = s[t];
}

__global__ void half_kernel(const uint32_t* a, const uint32_t* b, const uint32_t* c, uint32_t* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[i] = hfma2(a[i], b[i], c[i]);
    out[n + i] = hsub2(a[i], b[i]);
    out[2 * n + i] = hmul2(a[i], b[i]);
    out[3 * n + i] = lop3<0xea>(a[i], b[i], c[i]);  // a & b | c
    out[4 * n + i] = pack_f16(__uint_as_float(a[i]), __uint_as_float(b[i]));
    out[5 * n + i] = pack_bf16(__uint_as_float(a[i]), __uint_as_float(b[i]));
    out[6 * n + i] = float_to_half(__uint_as_float(a[i])) |
                     static_cast<uint32_t>(float_to_bfloat(__uint_as_float(b[i]))) << 16;
    out[7 * n + i] = __float_as_uint(half_to_float(static_cast<uint16_t>(a[i])));
    out[8 * n + i] = __float_as_uint(bfloat_to_float(static_cast<uint16_t>(b[i])));
}

__global__ void copy_kernel(const uint4* in, uint4* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    uint4 v = i % 2 ? load16(in + i) : load16_stream(in + i);
    if (i % 3) {
        store16(out + i, v);
        return;
    }
    store8(out + i, make_uint2(v.x, v.y));
    store8(&out[i].z, load8(&in[i].z));
}

// gemm_bf16: c = a b^T
//   a [m, k], b [n, k] bf16   m, n multiples of 64, k of 32
//   c [m, n] float
// Tile:   64 x 64 a block, 32 x 32 a warp, k in steps of 32.
// Launch: grid (n / 64, m / 64), 128 threads.
// Shared: 2 stages x (a 64 x 32 + b 64 x 32) bf16 in rows of 40, so that ldmatrix meets no bank twice: 20
// KiB.
constexpr int gemm_row = 40, gemm_shared_bytes = 4 * 64 * gemm_row * 2;

DEVICE void gemm_load(uint16_t* stage, const uint16_t* a, const uint16_t* b, int k) {
    for (int i = threadIdx.x; i < 256; i += 128) {
        int row = i / 4, col = i % 4 * 8;
        cp_async<16>(stage + row * gemm_row + col, a + static_cast<size_t>(row) * k + col);
        cp_async<16>(stage + (64 + row) * gemm_row + col, b + static_cast<size_t>(row) * k + col);
    }
    cp_async_commit();
}

__global__ void __launch_bounds__(128)
    gemm_bf16_kernel(const uint16_t* a, const uint16_t* b, float* c, int n, int k) {
    SHARED_DYNAMIC(uint16_t, stages);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, m_warp = warp % 2 * 32,
              n_warp = warp / 2 * 32;
    a += static_cast<size_t>(blockIdx.y) * 64 * k;
    b += static_cast<size_t>(blockIdx.x) * 64 * k;
    float sum[2][4][4] = {};
    gemm_load(stages, a, b, k);
    for (int k0 = 0, s = 0; k0 < k; k0 += 32, s ^= 1) {
        if (k0 + 32 < k) {
            gemm_load(stages + (s ^ 1) * 128 * gemm_row, a + k0 + 32, b + k0 + 32, k);
            cp_async_wait<1>();
        } else {
            cp_async_wait<0>();
        }
        __syncthreads();  // everybody's part of stage s has arrived
        const uint16_t* a_smem = stages + s * 128 * gemm_row;
        const uint16_t* b_smem = a_smem + 64 * gemm_row;
        for (int kk = 0; kk < 32; kk += 16) {
            uint32_t fa[2][4], fb[2][4];
            for (int i = 0; i < 2; i++) {
                ldmatrix(fa[i], a_smem + (m_warp + i * 16 + lane % 16) * gemm_row + kk + lane / 16 * 8);
                ldmatrix(fb[i], b_smem + (n_warp + i * 16 + lane % 8 + lane / 16 * 8) * gemm_row + kk +
                                    lane / 8 % 2 * 8);
            }
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 4; j++)
                    mma_m16n8k16_bf16(sum[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
        }
        __syncthreads();  // nobody reads stage s any more, the next load may write it
    }
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++)
            for (int q = 0; q < 4; q++) {
                size_t row = blockIdx.y * 64 + m_warp + i * 16 + lane / 4 + q / 2 * 8;
                c[row * n + blockIdx.x * 64 + n_warp + j * 8 + lane % 4 * 2 + q % 2] = sum[i][j][q];
            }
}

inline void gemm_bf16(const uint16_t* a, const uint16_t* b, float* c, int m, int n, int k) {
    EASEL_LAUNCH(gemm_bf16_kernel, dim3(n / 64, m / 64), 128, gemm_shared_bytes, 0, a, b, c, n, k);
}

// ---- broken on purpose -----------------------------------------------------------------------------------

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
    IncompleteBarrier,
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
    uint32_t r[1];
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
        case Broken::IncompleteBarrier:
            if (t < 32) barrier_arrive(1, 64);
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
                v += __all_sync(~0u, v);
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
__global__ void mma_time_kernel(int n, int type, float* out) {
    uint32_t a[4] = {threadIdx.x, 1, 2, 3};
    float d[4] = {};
    int i32[4] = {};
    for (int i = 0; i < n; i++) {
        if (type == 0) mma_m16n8k16_bf16(d, a, 1, 2);
        if (type == 1) mma_m16n8k16_f16(d, a, 1, 2);
        if (type == 2) mma_m16n8k32_s8(i32, a, 1, 2);
    }
    out[threadIdx.x] = d[0] + d[1] + d[2] + d[3] + static_cast<float>(i32[0] + i32[1] + i32[2] + i32[3]);
}
__global__ void ldmatrix_time_kernel(int n, float* out) {
    SHARED_ARRAY(uint16_t, rows, 256);
    uint32_t r[4];
    for (int i = 0; i < n; i++) ldmatrix(r, rows + threadIdx.x * 8);
    out[threadIdx.x] = static_cast<float>(r[0] + r[1] + r[2] + r[3]);
}

}  // namespace sim_test

#ifndef __CUDACC__

#include <chrono>
#include <random>

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

template <class T>
std::vector<T> random_bits(size_t n, uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<T> v(n);
    for (T& x : v) x = static_cast<T>(random());
    return v;
}

std::vector<uint16_t> random_floats(size_t n, uint32_t seed, uint16_t (*round)(float)) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<uint16_t> v(n);
    for (uint16_t& x : v) x = round(normal(random));
    return v;
}

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

TEST_CASE("sim: shuffles read the lane that CUDA says") {
    for (int width : {1, 2, 8, 32})
        for (int x : {0, 1, 3, 7, 16, 31}) {
            auto out = sim::run_schedules([&] {
                Buffer<int> out(5 * 32);
                EASEL_LAUNCH(shuffle_kernel, 1, 32, 0, 0, out, x, width);
                return out.read();
            });
            for (int l = 0; l < 32; l++) {
                INFO("lane " << l << " x " << x << " width " << width);
                int first = l / width * width, other = l ^ x;
                CHECK(out[l] == 100 + first + x % width);
                CHECK(out[32 + l] == 100 + (l - x >= first ? l - x : l));
                CHECK(out[64 + l] == 100 + (l + x < first + width ? l + x : l));
                CHECK(out[96 + l] == 100 + (other < first + width ? other : l));
                CHECK(out[128 + l] == out[l]);
            }
        }
}

TEST_CASE("sim: votes, matches and reductions, of two masks at once") {
    auto v = random_bits<int>(32, 1);
    for (int l = 0; l < 32; l++) v[l] = v[l] % 7 - (l % 2);
    auto out = sim::run_schedules([&] {
        Buffer<int> in(v);
        Buffer<unsigned> out(12 * 32);
        EASEL_LAUNCH(vote_kernel, 1, 32, 0, 0, in, out);
        return out.read();
    });
    unsigned sum = 0, all_and = ~0u, all_or = 0, all_xor = 0, largest = 0;
    int smallest = INT32_MAX;
    bool same = true;
    for (int x : v) {
        sum += x, all_and &= x, all_or |= x, all_xor ^= x;
        largest = std::max(largest, static_cast<unsigned>(x));
        smallest = std::min(smallest, x);
        same = same && (x & 256) == (v[0] & 256);
    }
    for (int l = 0; l < 32; l++) {
        unsigned odd = 0, any = 0, all = 1, match = 0;
        for (int m = 0; m < 32; m++) {
            if (v[m] == v[l]) match |= 1u << m;
            if ((m % 3 == 0) != (l % 3 == 0)) continue;
            odd |= (v[m] & 1u) << m;
            any |= v[m] == v[6];
            all &= v[m] < 0;
        }
        std::vector<unsigned> expected = {
            odd,     any,     all,    match,  same ? ~0u : 0, same, sum, static_cast<unsigned>(smallest),
            largest, all_and, all_or, all_xor};
        for (size_t i = 0; i < expected.size(); i++) {
            INFO("lane " << l << " operation " << i);
            CHECK(out[32 * i + l] == expected[i]);
        }
    }
}

TEST_CASE("sim: barriers count the threads that have not ended") {
    for (int n_stay : {1, 33, 45, 70}) {
        auto out = sim::run_schedules([&] {
            Buffer<int> out(std::vector<int>(3 * 70));
            EASEL_LAUNCH(count_kernel, 1, dim3(70), 0, 0, out, n_stay);
            return out.read();
        });
        for (int t = 0; t < n_stay; t++) {
            CHECK(out[t] == (n_stay + 2) / 3);
            CHECK(out[70 + t] == (n_stay <= 40) + 2 * (n_stay <= 50));
            CHECK(out[140 + t] == (n_stay > 41) + 2);
        }
        for (int t = n_stay; t < 70; t++) CHECK(out[t] == 0);
    }
}

TEST_CASE("sim: named barriers pass data between warps") {
    auto out = sim::run_schedules([] {
        Buffer<int> out(5 * 64);
        EASEL_LAUNCH(pipe_kernel, 1, 96, 0, 0, out, 5);
        return out.read();
    });
    for (int i = 0; i < 5; i++)
        for (int t = 0; t < 64; t++) CHECK(out[64 * i + t] == 1000 * i + 31 - t % 32);
}

TEST_CASE("sim: atomics, from all blocks at once") {
    const unsigned n = 32 * 96;
    Buffer<int> i(std::vector<int>{0, 100, -100});
    Buffer<unsigned> u(std::vector<unsigned>{0, ~0u, 0, 0, 0});
    Buffer<unsigned long long> l(std::vector<unsigned long long>{0, 0});
    Buffer<float> f(std::vector<float>{0});
    EASEL_LAUNCH(atomic_kernel, 32, 96, 0, 0, i, u, l, f);
    CHECK(i.read() ==
          std::vector<int>{static_cast<int>(n), 5 - static_cast<int>(n - 1), static_cast<int>(n - 1) - 5});
    auto r = u.read();
    CHECK(r[0] == ~0u);
    CHECK(r[1] == 0);
    CHECK(r[2] == 7);
    CHECK((r[3] >= 1 && r[3] <= n));
    CHECK(r[4] == 1);
    CHECK(l.read() ==
          std::vector<unsigned long long>{uint64_t{n} * (n - 1) / 2 << 32, uint64_t{n - 1} << 40});
    CHECK(f.read()[0] == n / 4.0f);
}

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

TEST_CASE("sim: ldmatrix spreads rows, or columns, over the lanes") {
    const auto m = random_bits<uint16_t>(256, 2);
    auto out = sim::run_schedules([&] {
        Buffer<uint16_t> in(m);
        Buffer<uint32_t> out(std::vector<uint32_t>(6 * 128));
        EASEL_LAUNCH(ldmatrix_kernel, 1, 32, 0, 0, in, out);
        return out.read();
    });
    for (int trans = 0; trans < 2; trans++)
        for (int x : {1, 2, 4})
            for (int i = 0; i < x; i++)
                for (int l = 0; l < 32; l++) {
                    int row = l / 4, col = l % 4 * 2;
                    uint32_t lo = m[64 * i + (trans ? 8 * col + row : 8 * row + col)];
                    uint32_t hi = m[64 * i + (trans ? 8 * (col + 1) + row : 8 * row + col + 1)];
                    CHECK(out[(3 * trans + x / 2) * 128 + 32 * i + l] == (lo | hi << 16));
                }
}

TEST_CASE("sim: mma of 16-bit floats") {
    for (bool bf16 : {false, true}) {
        auto round = bf16 ? f32_to_bf16 : f32_to_f16;
        auto value = bf16 ? bf16_to_f32 : f16_to_f32;
        auto a = random_floats(256, 3, round), b = random_floats(128, 4, round);
        a[0] = 1, a[17] = 0x8203;  // subnormal halves
        std::vector<float> c(128);
        for (int i = 0; i < 128; i++) c[i] = i / 16.0f - 3;
        auto run = [&] {
            Buffer<uint16_t> da(a), db(b);
            Buffer<float> out(c);
            EASEL_LAUNCH(mma_kernel, 1, 32, 0, 0, da, db, out, bf16);
            return out.read();
        };
        auto out = sim::run_schedules(run);
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 8; j++) {
                double sum = c[8 * i + j];
                for (int k = 0; k < 16; k++) sum += double{value(a[16 * i + k])} * value(b[16 * j + k]);
                // 17 roundings of sums below 32
                CHECK(std::fabs(out[8 * i + j] - sum) < 17 * 32 * 0x1p-24);
            }
        a[16 * 5 + 3] = round(INFINITY);
        a[16 * 6 + 3] = round(NAN);
        out = run();
        for (int j = 0; j < 8; j++) {
            CHECK(std::isinf(out[8 * 5 + j]));
            CHECK(std::isnan(out[8 * 6 + j]));
            CHECK(std::isfinite(out[8 * 7 + j]));
        }
    }
}

TEST_CASE("sim: mma of bytes is exact") {
    auto a = random_bits<int8_t>(512, 5), b = random_bits<int8_t>(256, 6);
    for (int k = 0; k < 32; k++) a[k] = b[k] = -128;
    auto c = random_bits<int>(128, 7);
    auto out = sim::run_schedules([&] {
        Buffer<int8_t> da(a), db(b);
        Buffer<int> out(c);
        EASEL_LAUNCH(mma_s8_kernel, 1, 32, 0, 0, da, db, out);
        return out.read();
    });
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            int64_t sum = c[8 * i + j];
            for (int k = 0; k < 32; k++) sum += a[32 * i + k] * b[32 * j + k];
            CHECK(out[8 * i + j] == static_cast<int>(sum));  // modulo 2^32
        }
}

TEST_CASE("sim: cp.async copies, fills with zeros, and waits for groups") {
    const auto in = random_bits<unsigned>(16, 8);
    auto out = sim::run_schedules([&] {
        Buffer<unsigned> d(in), out(20);
        EASEL_LAUNCH(async_kernel, 1, 32, 0, 0, d, out);
        return out.read();
    });
    std::vector<unsigned> expected = in;
    expected[7] = 0;
    expected[9] &= 0xff;
    expected[10] = expected[11] = 0;
    expected[14] &= 0xffff;
    expected[15] = 0;
    for (int i = 0; i < 4; i++) expected.push_back(in[i]);
    CHECK(out == expected);
}

TEST_CASE("sim: arithmetic of 16-bit floats") {
    const int n = 20000;
    std::mt19937 random(9);
    // Exponents close to each other, or the sums would show nothing but the larger value.
    auto halves = [&](int lowest, int n_exponent) {
        std::vector<uint32_t> v(n);
        for (uint32_t& x : v)
            for (int shift : {0, 16})
                x |= ((random() & 0x83ff) | (lowest + random() % n_exponent) << 10) << shift;
        return v;
    };
    const auto va = halves(0, 25), vb = halves(8, 16), vc = halves(0, 30);
    Buffer<uint32_t> a(va), b(vb), c(vc), out(9 * n);
    EASEL_LAUNCH(half_kernel, (n + 63) / 64, 64, 0, 0, a, b, c, out, n);
    auto r = out.read();
    int n_wrong = 0, n_tie = 0;
    // The half that is nearest to x, by search: exact in long double.
    auto nearest = [&](long double x) -> uint16_t {
        uint16_t h = f32_to_f16(static_cast<float>(x)), best = h;
        for (int d : {-1, 1}) {
            uint16_t other = static_cast<uint16_t>(h + d);
            if ((h & 0x7fff) == 0 && d < 0) continue;
            // Beyond the largest half, infinity stands for the next one, 65536.
            auto value = [](uint16_t h) -> long double {
                return (h & 0x7fff) == 0x7c00 ? (h & 0x8000 ? -65536.0L : 65536.0L) : f16_to_f32(h);
            };
            if ((h & 0x7fff) == 0x7c00 && d > 0) continue;
            long double e = std::fabs(value(other) - x), e_best = std::fabs(value(best) - x);
            n_tie += e == e_best;
            if (e < e_best || (e == e_best && other % 2 == 0)) best = other;
        }
        return best;
    };
    for (int i = 0; i < n; i++)
        for (int shift : {0, 16}) {
            auto h = [&](uint32_t x) { return static_cast<uint16_t>(x >> shift); };
            long double x = f16_to_f32(h(va[i])), y = f16_to_f32(h(vb[i])), z = f16_to_f32(h(vc[i]));
            n_wrong += h(r[i]) != nearest(x * y + z);
            n_wrong += h(r[n + i]) != nearest(x - y);
            n_wrong += h(r[2 * n + i]) != nearest(x * y);
        }
    for (int i = 0; i < n; i++) {
        float x = std::bit_cast<float>(va[i]), y = std::bit_cast<float>(vb[i]);
        n_wrong += r[3 * n + i] != ((va[i] & vb[i]) | vc[i]);
        n_wrong += r[4 * n + i] != (f32_to_f16(x) | uint32_t{f32_to_f16(y)} << 16);
        n_wrong += r[5 * n + i] != (f32_to_bf16(x) | uint32_t{f32_to_bf16(y)} << 16);
        n_wrong += r[6 * n + i] != (f32_to_f16(x) | uint32_t{f32_to_bf16(y)} << 16);
        n_wrong += r[7 * n + i] != std::bit_cast<uint32_t>(f16_to_f32(static_cast<uint16_t>(va[i])));
        n_wrong += r[8 * n + i] != vb[i] << 16;
    }
    CHECK(n_wrong == 0);
    CHECK(n_tie > 0);
}

TEST_CASE("sim: integer intrinsics") {
    CHECK(__popc(0xf0f00001) == 9);
    CHECK(__popcll(0x8000000000000001) == 2);
    CHECK(__clz(1) == 31);
    CHECK(__clz(0) == 32);
    CHECK(__ffs(0) == 0);
    CHECK(__ffs(8) == 4);
    CHECK(__brev(0x00000003) == 0xc0000000);
    CHECK(__brev(0x12345678) == 0x1e6a2c48);
    CHECK(__umulhi(0x80000000, 6) == 3);
    CHECK(__byte_perm(0x03020100, 0x07060504, 0x7610) == 0x07060100);
    CHECK(__byte_perm(0x80000000, 0x0000007f, 0x8cb4) == 0x0000ff7f);
    CHECK(__dp4a(0x01ff0280, 0x01020304, 10) == 10 - 512 + 6 - 2 + 1);
    CHECK(__float2int_rn(2.5f) == 2);
    CHECK(__float2int_rn(-3.5f) == -4);
    CHECK(min(-1, 2) == -1);
    CHECK(max(1.0f, NAN) == 1.0f);
    CHECK(rsqrtf(4.0f) == 0.5f);
}

TEST_CASE("sim: 8 and 16-byte loads and stores") {
    const auto words = random_bits<uint32_t>(400, 10);
    auto out = sim::run_schedules([&] {
        Buffer<uint32_t> in(words), out(400);
        auto* from = reinterpret_cast<const uint4*>(in.data);
        auto* to = reinterpret_cast<uint4*>(out.data);
        EASEL_LAUNCH(copy_kernel, 4, 32, 0, 0, from, to, 100);
        return out.read();
    });
    CHECK(out == words);
}

TEST_CASE("sim: a tiled bf16 gemm is right under every schedule") {
    const int m = 128, n = 64, k = 96;
    const auto a = random_floats(m * k, 11, f32_to_bf16), b = random_floats(n * k, 12, f32_to_bf16);
    auto c = sim::run_schedules([&] {
        Buffer<uint16_t> da(a), db(b);
        Buffer<float> dc(m * n);
        gemm_bf16(da, db, dc, m, n, k);
        return dc.read();
    });
    double worst = 0;
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            double sum = 0;
            for (int p = 0; p < k; p++) sum += double{bf16_to_f32(a[i * k + p])} * bf16_to_f32(b[j * k + p]);
            worst = std::max(worst, std::fabs(c[i * n + j] - sum));
        }
    CHECK(worst < k * 64 * 0x1p-24);  // k roundings of sums below 64
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
    SECTION("barrier left incomplete") {
        check_report(Broken::IncompleteBarrier,
                     {"32 threads counted in", "which the rest of 64 never reached"});
    }
    SECTION("lanes that disagree") {
        check_report(Broken::OtherMask, {"different operations", "mask 7fffffff", "mask ffffffff"});
        check_report(Broken::NotInMask, {"the lane is not in its own mask"});
        check_report(Broken::FromOutsideMask, {"reads lane 20, which is not in mask 0000ffff"});
        check_report(Broken::OtherOperation, {"different operations", "__any_sync", "__all_sync"});
    }
    SECTION("cp.async in flight at the end") {
        check_report(Broken::InFlight, {"cp.async in flight"});
    }
    SECTION("misaligned and misplaced") {
        check_report(Broken::MisalignedLoad, {"load16: misaligned", "not a multiple of 16"});
        check_report(Broken::MisalignedLdmatrix, {"ldmatrix.x1: misaligned"});
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
    time("mma bf16", n, [&] { EASEL_LAUNCH(mma_time_kernel, 1, 32, 0, 0, n, 0, out); });
    time("mma f16", n, [&] { EASEL_LAUNCH(mma_time_kernel, 1, 32, 0, 0, n, 1, out); });
    time("mma s8", n, [&] { EASEL_LAUNCH(mma_time_kernel, 1, 32, 0, 0, n, 2, out); });
    time("ldmatrix.x4", n, [&] { EASEL_LAUNCH(ldmatrix_time_kernel, 1, 32, 0, 0, n, out); });
    time("launch of 1 block of 256, a thread", 4 * 256, [&] {
        for (int i = 0; i < 4; i++) EASEL_LAUNCH(barrier_kernel, 1, 256, 0, 0, 0);
    });
    set_threads(0);
}

#endif
