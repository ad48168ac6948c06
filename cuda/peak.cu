// peak.cu: the ceilings that `easel bench` measures: tensor cores that do nothing else, and reads, from
// memory or from the L2 cache; a large one also leaves nothing else in that cache. Called by profile.cpp and
// bench_kernels.cpp.
#include "check.h"
#include "ops.h"
#include "tile.h"

namespace easel {

namespace {

constexpr int kThreads = 256, kChains = 16;  // independent accumulator tiles per warp
constexpr int kWordsA = 2 * kThreads * 4;    // of kPeakWords, for operand A: of even steps, of odd ones

// n_step * kChains products m16n8k16 per warp, with the instruction that products with weights use: wgmma
// (m64n128k16 per warpgroup is the same), or mma with accumulators in F16 or float32.
//   out    [256 blocks]  a sum of all results of the thread, so that no product can be left out
//   words  [kPeakWords]  the operands, see mma_peak()
// Tile:   16 accumulator tiles of 16 x 8 per warp.
// Launch: any grid, 256 threads.
// Shared: wgmma's operand b, 16 KiB and up to 1 KiB before it for its alignment.
// Why:    operands stay where they are, so that nothing but the tensor cores bounds it.
// Maths:  as the instruction; odd steps may take back what even ones add.
// Check:  tests/test_linear.cpp.
__global__ void __launch_bounds__(kThreads) mma_peak_kernel(float* out, int n_step, const uint32_t* words) {
    wait_for_last_launch();
    const int thread = threadIdx.x;
    float acc[kChains][4] = {};
    uint32_t a[2][4];
    UNROLL for (int i = 0; i < 2; i++) {
        const uint4 v = load16(words + (i * kThreads + thread) * 4);
        a[i][0] = v.x, a[i][1] = v.y, a[i][2] = v.z, a[i][3] = v.w;
    }
    words += kWordsA;
    if constexpr (kWgmma) {
        constexpr int N_LOAD = (kPeakWords - kWordsA) / 4;
        static_assert(N_LOAD == kChains * 8 * 128 / 16);  // 128 rows of 128 bytes
        SHARED_ARRAY(uint4, shared, 1024 / 16 + N_LOAD);
        uint4* const b = shared + (-shared_address(shared) & 1023) / 16;
        for (int i = thread; i < N_LOAD; i += kThreads) b[i] = load16(words + 4 * i);
        fence_proxy_async();
        __syncthreads();  // all of matrix b is there
        for (int i = 0; i < n_step; i += 2) {
            UNROLL for (int j = 0; j < 2; j++) {
                wgmma_fence();
                wgmma_k16_f16(acc, a[j], wgmma_matrix(b));
                wgmma_commit();
                wgmma_wait<1>();
            }
        }
        wgmma_wait<0>();
        wgmma_done(acc);
    } else {
        uint32_t b[kChains][2], sums[kChains][2] = {};
        UNROLL for (int c = 0; c < kChains; c++) UNROLL for (int i = 0; i < 2; i++) b[c][i] =
            words[(2 * c + i) * 32 + thread % 32];
        for (int i = 0; i < n_step; i += 2) {
            UNROLL for (int j = 0; j < 2; j++) {
                UNROLL for (int c = 0; c < kChains; c++) {
                    if constexpr (kHalfSums)
                        mma_m16n8k16_f16_sums(sums[c], a[j], b[c][0], b[c][1]);
                    else
                        mma_m16n8k16_f16(acc[c], a[j], b[c][0], b[c][1]);
                }
            }
        }
        UNROLL for (int c = 0; c < kChains; c++) add_halves(acc[c], sums[c]);
    }
    float sum = 0;
    UNROLL for (int c = 0; c < kChains; c++) sum += acc[c][0] + acc[c][1] + acc[c][2] + acc[c][3];
    out[blockIdx.x * kThreads + thread] = sum;
}

// out[block] = the exclusive or of the words that the block reads, a share of p in each of n_pass passes.
//   p   [n] pieces of 16 bytes
//   out [n_block]
// Tile:   a piece per thread, every kThreads n_block-th.
// Launch: any grid, 256 threads.
// Shared: a word per warp.
// Why:    in each pass a block has its neighbour's share of the pass before, so that what an SM's L1 holds is
//         not needed again soon. A result keeps the compiler from dropping the reads.
// Maths:  integers.
// Check:  tests/test_linear.cpp.
__global__ void __launch_bounds__(kThreads)
    read_kernel(uint32_t* out, const uint8_t* p, int64_t n, int n_pass) {
    wait_for_last_launch();
    SHARED_ARRAY(uint32_t, part, kThreads / 32);
    uint32_t all = 0;
    const int64_t stride = int64_t{gridDim.x} * kThreads;
    for (int pass = 0; pass < n_pass; pass++) {
        const int share = (blockIdx.x + pass) % gridDim.x;
        for (int64_t i = share * int64_t{kThreads} + threadIdx.x; i < n; i += stride) {
            const uint4 v = load16(p + 16 * i);
            all ^= v.x ^ v.y ^ v.z ^ v.w;
        }
    }
    UNROLL for (int i = 16; i; i /= 2) all ^= __shfl_xor_sync(~0u, all, i);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = all;
    __syncthreads();  // the parts are complete
    if (threadIdx.x) return;
    for (int w = 1; w < kThreads / 32; w++) all ^= part[w];
    out[blockIdx.x] = all;
}

}  // namespace

void mma_peak(Stream stream, float* out, int n_block, int n_step, const uint32_t* words) {
    require(n_step % 2 == 0, "bug: an odd number of steps");
    EASEL_LAUNCH(mma_peak_kernel, n_block, kThreads, 0, stream, out, n_step, words);
}

void read_memory(Stream stream, uint32_t* out, int n_block, const uint8_t* p, int64_t bytes, int n_pass) {
    EASEL_LAUNCH(read_kernel, n_block, kThreads, 0, stream, out, p, bytes / 16, n_pass);
}

}  // namespace easel
