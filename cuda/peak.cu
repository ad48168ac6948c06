// peak.cu: what the tensor cores do when nothing else is asked of them: the ceiling that `easel bench`
// measures products against. Called by engine.cpp.
#include "ops.h"
#include "tile.h"

namespace easel {

namespace {

constexpr int kThreads = 256, kChains = 16;  // accumulators a warp that do not wait for each other

// out[thread of the grid] = a sum that depends on n_step * kChains products of 16 x 8 x 16 a warp, so that
// all are made: with wgmma where products with weights have it, else with mma, its sums in F16 where they
// have those. Launch: any grid, 256 threads. Check:  tests/test_linear.cpp counts.
__global__ void __launch_bounds__(kThreads) mma_peak_kernel(float* out, int n_step) {
    wait_for_last_launch();
    float acc[kChains][4] = {};
    const uint32_t one = 0x3c003c00;  // 1, 1 in F16
    if constexpr (kWgmma) {
        SHARED_ARRAY(uint4, shared, 1024 / 16 + kChains * 1024 / 16);
        uint4* const ones = shared + (-shared_address(shared) & 1023) / 16;
        for (int i = threadIdx.x; i < kChains * 1024 / 16; i += kThreads) ones[i] = {one, one, one, one};
        fence_proxy_async();
        __syncthreads();  // all of the matrix is there
        // Not constants, which the compiler would write anew while a product reads them.
        const uint4 v = load16(ones);
        const uint32_t a[4] = {v.x, v.y, v.z, v.w};
        for (int i = 0; i < n_step; i++) {
            wgmma_fence();
            wgmma_k16_f16(acc, a, wgmma_matrix(ones));
            wgmma_commit();
            wgmma_wait<1>();
        }
        wgmma_wait<0>();
        wgmma_done(acc);
    } else if constexpr (kHalfSums) {
        const uint32_t a[4] = {one, one, one, one};
        uint32_t sums[kChains][2] = {};
        for (int i = 0; i < n_step; i++) {
            UNROLL for (int c = 0; c < kChains; c++) mma_m16n8k16_f16_sums(sums[c], a, one, one);
        }
        UNROLL for (int c = 0; c < kChains; c++) add_halves(acc[c], sums[c]);
    } else {
        const uint32_t a[4] = {one, one, one, one};
        for (int i = 0; i < n_step; i++) {
            UNROLL for (int c = 0; c < kChains; c++) mma_m16n8k16_f16(acc[c], a, one, one);
        }
    }
    float sum = 0;
    UNROLL for (int c = 0; c < kChains; c++) sum += acc[c][0] + acc[c][1] + acc[c][2] + acc[c][3];
    out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

}  // namespace

void mma_peak(Stream stream, float* out, int n_block, int n_step) {
    EASEL_LAUNCH(mma_peak_kernel, n_block, kThreads, 0, stream, out, n_step);
}

}  // namespace easel
