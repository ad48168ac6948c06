// test_ptx.cpp: the instructions of ptx.h and the CUDA functions that kernels use, against their definitions:
// in the simulator the twins (sim.h, sim_cuda.h), on a GPU the hardware. And a GEMM that uses most of them.
#include <algorithm>
#include <bit>

#include "kernel.h"
#include "ptx.h"

using namespace easel;

namespace {

// out [4, 32]: the three shuffles of 100 + lane, and of a double.
__global__ void shuffle_kernel(int* out, int x, int width) {
    int lane = threadIdx.x, v = 100 + lane;
    out[lane] = __shfl_sync(~0u, v, x, width);
    out[32 + lane] = __shfl_up_sync(~0u, v, x, width);
    out[64 + lane] = __shfl_xor_sync(~0u, v, x, width);
    out[96 + lane] = static_cast<int>(__shfl_sync(~0u, 0.5 * v, x, width) * 2);
}

// out [6, 32]: votes and reductions of v [32], the votes in two groups of lanes at once.
__global__ void vote_kernel(const int* v, unsigned* out) {
    int lane = threadIdx.x, x = v[lane];
    unsigned* o = out + lane;
    if (lane % 3 == 0) {
        o[0] = __ballot_sync(0x49249249, x & 1);
        o[32] = __any_sync(0x49249249, x == v[6]) != 0;
    } else {
        o[0] = __ballot_sync(0xb6db6db6, x & 1);
        o[32] = __any_sync(0xb6db6db6, x == v[6]) != 0;
    }
    __syncwarp();
    o[64] = __match_any_sync(~0u, x);
    o[96] = __reduce_add_sync(~0u, x);
    o[128] = __reduce_min_sync(~0u, x);
    o[160] = __reduce_max_sync(~0u, static_cast<unsigned>(x));
}

// Threads past n_stay end at once; the rest vote. out [2, blockDim.x]
__global__ void block_vote_kernel(int* out, int n_stay) {
    int t = threadIdx.x;
    if (t >= n_stay) return;
    out[t] = (__syncthreads_and(t < 40) != 0) + 2 * (__syncthreads_and(t < 50) != 0);
    out[blockDim.x + t] = (__syncthreads_or(t == 41) != 0) + 2 * (__syncthreads_or(t < 50) != 0);
}

// Of two pairs of warps the first one writes and the second one reads, at a barrier of the pair. out [2, n,
// 32]
__global__ void pair_kernel(int* out, int n) {
    SHARED_ARRAY(int, slot, 64);
    const int lane = threadIdx.x % 32, pair = threadIdx.x / 64, reads = threadIdx.x / 32 % 2;
    int* const own = slot + 32 * pair;
    for (int i = 0; i < n; i++) {
        if (!reads) own[lane] = 1000 * i + 100 * pair + lane;
        barrier_sync(1 + pair, 64);
        if (reads) out[32 * (pair * n + i) + lane] = own[31 - lane];
        barrier_sync(1 + pair, 64);
    }
}

__global__ void atomic_kernel(int* i, unsigned long long* l, float* f) {
    unsigned t = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(i, 1);
    atomicMax(i + 1, static_cast<int>(t) - 5);
    atomicAdd(l, static_cast<unsigned long long>(t) << 32);
    atomicMax(l + 1, static_cast<unsigned long long>(t) << 40);
    atomicAdd(f, 0.25f);
}

// m [4, 8, 8] -> out [9, 32]: as they are and transposed; the first one transposed in registers.
__global__ void ldmatrix_kernel(const uint16_t* m, uint32_t* out) {
    SHARED_ARRAY(uint16_t, rows, 4 * 8 * 8);
    int lane = threadIdx.x;
    for (int i = lane; i < 256; i += 32) rows[i] = m[i];
    __syncwarp();
    uint32_t r[4], t[4];
    ldmatrix(r, rows + lane * 8);
    ldmatrix_trans(t, rows + lane * 8);
    for (int i = 0; i < 4; i++) out[32 * i + lane] = r[i], out[32 * (4 + i) + lane] = t[i];
    out[32 * 8 + lane] = movmatrix_trans(r[0]);
}

// out [16, 8] += a [16, 16] b^T, b [8, 16]; 16-bit floats, and sums in float or in such.
__global__ void mma_kernel(const uint16_t* a, const uint16_t* b, float* out, bool f16_sums) {
    int g = threadIdx.x / 4, t = threadIdx.x % 4;
    auto two = [](const uint16_t* p) {
        return static_cast<uint32_t>(p[0]) | static_cast<uint32_t>(p[1]) << 16;
    };
    uint32_t fa[4], b0 = two(b + 16 * g + 2 * t), b1 = two(b + 16 * g + 2 * t + 8);
    for (int i = 0; i < 4; i++) fa[i] = two(a + 16 * (g + i % 2 * 8) + 2 * t + i / 2 * 8);
    float d[4];
    for (int i = 0; i < 4; i++) d[i] = out[8 * (g + i / 2 * 8) + 2 * t + i % 2];
    if (!f16_sums) {
        mma_m16n8k16_f16(d, fa, b0, b1);
    } else {
        uint32_t sums[2] = {pack_f16(d[0], d[1]), pack_f16(d[2], d[3])};
        mma_m16n8k16_f16_sums(sums, fa, b0, b1);
        for (int i = 0; i < 4; i++) d[i] = half_to_float(static_cast<uint16_t>(sums[i / 2] >> i % 2 * 16));
    }
    for (int i = 0; i < 4; i++) out[8 * (g + i / 2 * 8) + 2 * t + i % 2] = d[i];
}

// out [128, 8 NT] += a [128, 64] b^T, b [8 NT, 64]; 16-bit floats. Two times four warps. The last value of
// `out` becomes 1 where there are such instructions.
template <int NT>
__global__ void wgmma_kernel(const uint16_t* a, const uint16_t* b, float* out) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
    constexpr int N = 8 * NT;
    SHARED_DYNAMIC(uint16_t, shared);
    uint16_t* const rows = shared + (-shared_address(shared) & 1023) / 2;
    const int thread = threadIdx.x, g = thread % 32 / 4, t = thread % 4, row = thread / 32 * 16 + g;
    for (int i = thread; i < N * 8; i += 256)
        store16(rows + i / 8 * 64 + (i % 8 ^ i / 8 % 8) * 8, load16(b + i * 8));
    fence_proxy_async();
    uint32_t fa[4][4];
    for (int s = 0; s < 4; s++)
        for (int i = 0; i < 4; i++) {
            const uint16_t* p = a + 64 * (row + i % 2 * 8) + 16 * s + 2 * t + i / 2 * 8;
            fa[s][i] = static_cast<uint32_t>(p[0]) | static_cast<uint32_t>(p[1]) << 16;
        }
    float d[NT][4];
    for (int n = 0; n < NT; n++)
        for (int i = 0; i < 4; i++) d[n][i] = out[N * (row + i / 2 * 8) + 8 * n + 2 * t + i % 2];
    __syncthreads();  // all of b is there
    wgmma_fence();
    for (int s = 0; s < 4; s++) wgmma_k16_f16(d, fa[s], wgmma_matrix(rows + 16 * s));
    wgmma_commit();
    wgmma_wait<0>();
    for (int n = 0; n < NT; n++)
        for (int i = 0; i < 4; i++) out[N * (row + i / 2 * 8) + 8 * n + 2 * t + i % 2] = d[n][i];
    if (thread == 0) out[128 * N] = 1;
#endif
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
    out[5 * n + i] = float_to_half(__uint_as_float(a[i]));
    out[6 * n + i] = __float_as_uint(half_to_float(static_cast<uint16_t>(a[i])));
    out[7 * n + i] = twice<0>(a[i]);
    out[8 * n + i] = twice<1>(a[i]);
    out[9 * n + i] = hneg2(a[i]);
    out[10 * n + i] = lop3<0xca>(a[i], b[i], c[i]);  // a ? b : c
}

__global__ void copy_kernel(const uint4* in, uint4* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const uint4 v = load16(in + i);
    if (i % 3) {
        store16(out + i, v);
        return;
    }
    store8(out + i, make_uint2(v.x, v.y));
    store8(&out[i].z, load8(&in[i].z));
}

// gemm: c = a b^T
//   a [m, k], b [n, k] F16   m, n multiples of 64, k of 32
//   c [m, n] float
// Tile:   64 x 64 a block, 32 x 32 a warp, k in steps of 32.
// Launch: grid (n / 64, m / 64), 128 threads.
// Shared: 2 stages x (a 64 x 32 + b 64 x 32) F16 in rows of 40, so that ldmatrix meets no bank twice: 20
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
    gemm_kernel(const uint16_t* a, const uint16_t* b, float* c, int n, int k) {
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
                    mma_m16n8k16_f16(sum[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
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

// x [7], read here so that nothing is computed before; out [6]
__global__ void integer_kernel(const uint32_t* x, uint32_t* out) {
    out[0] = __popc(x[0]);
    out[1] = __ffs(static_cast<int>(x[2]));
    out[2] = __ffs(static_cast<int>(x[3]));
    out[3] = __byte_perm(x[4], x[5], 0x7610);
    out[4] = __byte_perm(x[4], x[5], x[6]);
    out[5] = static_cast<uint32_t>(min(static_cast<int>(x[1]), static_cast<int>(x[3])));
}

// x [n] -> out [5, n] bits: exp, 1 / x, the larger of x and 1, as a finite F16, order_key().
__global__ void float_kernel(const float* x, uint32_t* out, int n) {
    const int i = threadIdx.x;
    if (i >= n) return;
    out[i] = __float_as_uint(exponential<F16>(x[i]));
    out[n + i] = __float_as_uint(reciprocal_approx(x[i]));
    out[2 * n + i] = __float_as_uint(max(x[i], 1.0f));
    out[3 * n + i] = __float_as_uint(to_f32(from_f32<F16>(x[i])));
    out[4 * n + i] = order_key(x[i]);
}

template <class T>
std::vector<T> random_bits(size_t n, uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<T> v(n);
    for (T& x : v) x = static_cast<T>(random());
    return v;
}

std::vector<uint16_t> random_halves(size_t n, uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<uint16_t> v(n);
    for (uint16_t& x : v) x = f32_to_f16(normal(random));
    return v;
}

}  // namespace

TEST_CASE("ptx: shuffles read the lane that CUDA says") {
    for (int width : {1, 2, 8, 32})
        for (int x : {0, 1, 3, 7, 16, 31}) {
            auto out = every_schedule([&] {
                const DeviceArray<int> out(4 * 32);
                EASEL_LAUNCH(shuffle_kernel, 1, 32, 0, Stream{}, out.data(), x, width);
                return to_host(out);
            });
            for (int l = 0; l < 32; l++) {
                INFO("lane " << l << " x " << x << " width " << width);
                int first = l / width * width, other = l ^ x;
                CHECK(out[l] == 100 + first + x % width);
                CHECK(out[32 + l] == 100 + (l - x >= first ? l - x : l));
                CHECK(out[64 + l] == 100 + (other < first + width ? other : l));
                CHECK(out[96 + l] == out[l]);
            }
        }
}

TEST_CASE("ptx: votes, matches and reductions, of two masks at once") {
    auto v = random_bits<int>(32, 1);
    for (int l = 0; l < 32; l++) v[l] = v[l] % 7 - (l % 2);
    auto out = every_schedule([&] {
        const auto in = to_device(v);
        const DeviceArray<unsigned> out(6 * 32);
        EASEL_LAUNCH(vote_kernel, 1, 32, 0, Stream{}, in.data(), out.data());
        return to_host(out);
    });
    unsigned sum = 0, largest = 0;
    int smallest = INT32_MAX;
    for (int x : v) {
        sum += x;
        largest = std::max(largest, static_cast<unsigned>(x));
        smallest = std::min(smallest, x);
    }
    for (int l = 0; l < 32; l++) {
        unsigned odd = 0, any = 0, match = 0;
        for (int m = 0; m < 32; m++) {
            if (v[m] == v[l]) match |= 1u << m;
            if ((m % 3 == 0) != (l % 3 == 0)) continue;
            odd |= (v[m] & 1u) << m;
            any |= v[m] == v[6];
        }
        std::vector<unsigned> expected = {odd, any, match, sum, static_cast<unsigned>(smallest), largest};
        for (size_t i = 0; i < expected.size(); i++) {
            INFO("lane " << l << " operation " << i);
            CHECK(out[32 * i + l] == expected[i]);
        }
    }
}

TEST_CASE("ptx: at barriers vote the threads that have not ended") {
    for (int n_stay : {1, 33, 45, 70}) {
        auto out = every_schedule([&] {
            const auto out = to_device(std::vector<int>(2 * 70));
            EASEL_LAUNCH(block_vote_kernel, 1, dim3(70), 0, Stream{}, out.data(), n_stay);
            return to_host(out);
        });
        for (int t = 0; t < n_stay; t++) {
            CHECK(out[t] == (n_stay <= 40) + 2 * (n_stay <= 50));
            CHECK(out[70 + t] == (n_stay > 41) + 2);
        }
        for (int t = n_stay; t < 70; t++) CHECK(out[t] == 0);
    }
}

TEST_CASE("ptx: named barriers pass data between two warps") {
    const int n = 5;
    const auto out = every_schedule([&] {
        const DeviceArray<int> out(2 * n * 32);
        EASEL_LAUNCH(pair_kernel, 1, 128, 0, Stream{}, out.data(), n);
        return to_host(out);
    });
    for (int pair = 0; pair < 2; pair++)
        for (int i = 0; i < n; i++)
            for (int l = 0; l < 32; l++)
                CHECK(out[32 * (pair * n + i) + l] == 1000 * i + 100 * pair + 31 - l);
}

TEST_CASE("ptx: atomics, from all blocks at once") {
    const unsigned n = 32 * 96;
    const auto i = to_device(std::vector<int>{0, -100});
    const auto l = to_device(std::vector<unsigned long long>{0, 0});
    const auto f = to_device(std::vector<float>{0});
    EASEL_LAUNCH(atomic_kernel, 32, 96, 0, Stream{}, i.data(), l.data(), f.data());
    CHECK(to_host(i) == std::vector<int>{static_cast<int>(n), static_cast<int>(n - 1) - 5});
    CHECK(to_host(l) ==
          std::vector<unsigned long long>{uint64_t{n} * (n - 1) / 2 << 32, uint64_t{n - 1} << 40});
    CHECK(to_host(f)[0] == n / 4.0f);
}

TEST_CASE("ptx: ldmatrix spreads rows, or columns, over the lanes") {
    const auto m = random_bits<uint16_t>(256, 2);
    auto out = every_schedule([&] {
        const auto in = to_device(m);
        const auto out = to_device(std::vector<uint32_t>(9 * 32));
        EASEL_LAUNCH(ldmatrix_kernel, 1, 32, 0, Stream{}, in.data(), out.data());
        return to_host(out);
    });
    for (int trans = 0; trans < 2; trans++)
        for (int i = 0; i < 4; i++)
            for (int l = 0; l < 32; l++) {
                int row = l / 4, col = l % 4 * 2;
                uint32_t lo = m[64 * i + (trans ? 8 * col + row : 8 * row + col)];
                uint32_t hi = m[64 * i + (trans ? 8 * (col + 1) + row : 8 * row + col + 1)];
                CHECK(out[32 * (4 * trans + i) + l] == (lo | hi << 16));
                if (trans && i == 0) CHECK(out[32 * 8 + l] == (lo | hi << 16));  // movmatrix
            }
}

TEST_CASE("ptx: mma of 16-bit floats") {
    for (const bool f16_sums : {false, true}) {
        auto a = random_halves(256, 3), b = random_halves(128, 4);
        a[0] = 1, a[17] = 0x8203;  // subnormal halves
        std::vector<float> c(128);
        for (int i = 0; i < 128; i++) c[i] = i / 16.0f - 3;
        auto run = [&] {
            const auto da = to_device(a), db = to_device(b);
            const auto out = to_device(c);
            EASEL_LAUNCH(mma_kernel, 1, 32, 0, Stream{}, da.data(), db.data(), out.data(), f16_sums);
            return to_host(out);
        };
        auto out = every_schedule(run);
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 8; j++) {
                double sum = c[8 * i + j];
                for (int k = 0; k < 16; k++)
                    sum += double{f16_to_f32(a[16 * i + k])} * f16_to_f32(b[16 * j + k]);
                // 17 roundings of sums below 32, and one to 11 bits
                const double last = f16_sums ? std::fabs(sum) * 0x1p-11 : 0;
                CHECK(std::fabs(out[8 * i + j] - sum) < 17 * 32 * 0x1p-24 + last);
            }
        a[16 * 5 + 3] = f32_to_f16(INFINITY);
        a[16 * 6 + 3] = f32_to_f16(NAN);
        out = run();
        for (int j = 0; j < 8; j++) {
            CHECK(std::isinf(out[8 * 5 + j]));
            CHECK(std::isnan(out[8 * 6 + j]));
            CHECK(std::isfinite(out[8 * 7 + j]));
        }
    }
}

TEST_CASE("ptx: wgmma of 16-bit floats") {
    const auto check = [](auto kernel, int n) {
        const auto a = random_halves(128 * 64, 8), b = random_halves(n * 64, 9);
        std::vector<float> c(128 * n + 1);
        for (int i = 0; i < 128 * n; i++) c[i] = static_cast<float>(i % 97) / 16 - 3;
        const auto out = every_schedule([&] {
            const auto da = to_device(a), db = to_device(b);
            const auto out = to_device(c);
            EASEL_LAUNCH(kernel, 1, 256, size_t(n) * 128 + 1008, Stream{}, da.data(), db.data(), out.data());
            return to_host(out);
        });
        if (out[128 * n] == 0) return;  // another architecture
        double worst = 0;
        for (int i = 0; i < 128; i++)
            for (int j = 0; j < n; j++) {
                double sum = c[n * i + j];
                for (int k = 0; k < 64; k++)
                    sum += double{f16_to_f32(a[64 * i + k])} * f16_to_f32(b[64 * j + k]);
                worst = std::max(worst, std::fabs(out[n * i + j] - sum));
            }
        CHECK(worst < 65 * 64 * 0x1p-24);  // 65 roundings of sums below 64
    };
    check(wgmma_kernel<8>, 64);
    check(wgmma_kernel<16>, 128);
}

TEST_CASE("ptx: cp.async copies, fills with zeros, and waits for groups") {
    const auto in = random_bits<unsigned>(16, 8);
    auto out = every_schedule([&] {
        const auto d = to_device(in);
        const DeviceArray<unsigned> out(20);
        EASEL_LAUNCH(async_kernel, 1, 32, 0, Stream{}, d.data(), out.data());
        return to_host(out);
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

TEST_CASE("ptx: arithmetic of 16-bit floats") {
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
    const auto a = to_device(va), b = to_device(vb), c = to_device(vc);
    const DeviceArray<uint32_t> out(11 * n);
    EASEL_LAUNCH(half_kernel, (n + 63) / 64, 64, 0, Stream{}, a.data(), b.data(), c.data(), out.data(), n);
    auto r = to_host(out);
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
            n_wrong += h(r[9 * n + i]) != (h(va[i]) ^ 0x8000);
        }
    for (int i = 0; i < n; i++) {
        float x = std::bit_cast<float>(va[i]), y = std::bit_cast<float>(vb[i]);
        n_wrong += r[3 * n + i] != ((va[i] & vb[i]) | vc[i]);
        n_wrong += r[4 * n + i] != (f32_to_f16(x) | uint32_t{f32_to_f16(y)} << 16);
        n_wrong += r[5 * n + i] != f32_to_f16(x);
        n_wrong += r[6 * n + i] != std::bit_cast<uint32_t>(f16_to_f32(static_cast<uint16_t>(va[i])));
        n_wrong += r[7 * n + i] != (va[i] & 0xffff) * 0x10001;
        n_wrong += r[8 * n + i] != (va[i] >> 16) * 0x10001;
        n_wrong += r[10 * n + i] != ((va[i] & vb[i]) | (~va[i] & vc[i]));
    }
    CHECK(n_wrong == 0);
    CHECK(n_tie > 0);
}

TEST_CASE("ptx: integer intrinsics") {
    const std::vector<uint32_t> x = {0xf0f00001, 0x80000000, 0, 8, 0x03020180, 0x0706057f, 0x8cb4};
    const auto out = every_schedule([&] {
        const auto in = to_device(x);
        const DeviceArray<uint32_t> out(6);
        EASEL_LAUNCH(integer_kernel, 1, 1, 0, Stream{}, in.data(), out.data());
        return to_host(out);
    });
    CHECK(out[0] == 9);
    CHECK(out[1] == 0);
    CHECK(out[2] == 4);
    CHECK(out[3] == 0x07060180);
    CHECK(out[4] == 0x807f037f);  // only the lower three bits of a digit select
    CHECK(out[5] == 0x80000000);
}

TEST_CASE("ptx: floats at the ends of their range") {
    const std::vector<float> x = {2.5f, -3.5f, 3e9f, -INFINITY,  INFINITY, 0,    -0.0f, 1e-3f,
                                  -90,  -100,  100,  0x1.8p127f, -1e30f,   7e4f, 65519, NAN};
    const int n = static_cast<int>(x.size());
    const auto out = every_schedule([&] {
        const auto in = to_device(x);
        const DeviceArray<uint32_t> out(5 * n);
        EASEL_LAUNCH(float_kernel, 1, 32, 0, Stream{}, in.data(), out.data(), n);
        return to_host(out);
    });
    for (int i = 0; i < n; i++) {
        const auto as_float = [&](int k) { return std::bit_cast<float>(out[k * n + i]); };
        INFO("x " << x[i]);
        const double v = x[i];
        CHECK(as_float(2) == (std::isnan(v) ? 1.0f : std::max(x[i], 1.0f)));
        if (std::isnan(v)) {
            for (int k : {0, 1, 3}) CHECK(std::isnan(as_float(k)));
            continue;
        }
        // Of exponential(), 2 + 1.173 |x| units in the last place, and 1 of a reciprocal; denormal is 0.
        const auto close = [](double got, double expected, double units) {
            if (std::fabs(expected) < 0x1p-126 || expected > 3.5e38 || std::isinf(expected))
                return got == (std::fabs(expected) < 1 ? 0 : expected < 0 ? -INFINITY : INFINITY);
            return std::fabs(got - expected) <= units * std::ldexp(1.0, std::ilogb(expected) - 23);
        };
        CHECK(close(as_float(0), std::exp(v), 2 + std::fabs(1.173 * v)));
        CHECK(close(as_float(1), 1 / v, 1));
        const float f16 = f16_to_f32(f32_to_f16(std::clamp(x[i], -65504.0f, 65504.0f)));
        CHECK(as_float(3) == f16);
        for (int j = 0; j < n; j++)
            if (!std::isnan(x[j])) CHECK((out[4 * n + i] < out[4 * n + j]) == (x[i] < x[j]));
    }
}

TEST_CASE("ptx: 8 and 16-byte loads and stores") {
    const auto words = random_bits<uint32_t>(400, 10);
    auto out = every_schedule([&] {
        const auto in = to_device(words);
        const DeviceArray<uint32_t> out(400);
        auto* from = reinterpret_cast<const uint4*>(in.data());
        auto* to = reinterpret_cast<uint4*>(out.data());
        EASEL_LAUNCH(copy_kernel, 4, 32, 0, Stream{}, from, to, 100);
        return to_host(out);
    });
    CHECK(out == words);
}

TEST_CASE("ptx: a tiled gemm is right under every schedule") {
    const int m = 128, n = 64, k = 96;
    const auto a = random_halves(m * k, 11), b = random_halves(n * k, 12);
    auto c = every_schedule([&] {
        const auto da = to_device(a), db = to_device(b);
        const DeviceArray<float> dc(m * n);
        EASEL_LAUNCH(gemm_kernel, dim3(n / 64, m / 64), 128, gemm_shared_bytes, Stream{}, da.data(),
                     db.data(), dc.data(), n, k);
        return to_host(dc);
    });
    double worst = 0;
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            double sum = 0;
            for (int p = 0; p < k; p++) sum += double{f16_to_f32(a[i * k + p])} * f16_to_f32(b[j * k + p]);
            worst = std::max(worst, std::fabs(c[i * n + j] - sum));
        }
    CHECK(worst < k * 64 * 0x1p-24);  // k roundings of sums below 64
}
