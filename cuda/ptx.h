// ptx.h: what a kernel file includes. One function a PTX instruction, sm_80 and up, each with a twin for the
// simulator in sim_ptx.h, in the same sections, and the few words that differ between the two worlds: DEVICE,
// UNROLL, SHARED, SHARED_ARRAY, SHARED_DYNAMIC, EASEL_LAUNCH. Fragment layouts are those of the PTX manual,
// "Matrix Fragments for mma.m16n8k16" and so on; 16-bit floats travel as their bits, two to a uint32_t, the
// first one low.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

#include "types.h"

#ifdef __CUDACC__

#include <cuda_fp16.h>

#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("unroll 1")

// Shared memory, 16-byte aligned: one value, an array of n, and the dynamic shared memory of the launch.
#define SHARED(type, name) __shared__ __align__(16) type name
#define SHARED_ARRAY(type, name, n) __shared__ __align__(16) type name[n]
#define SHARED_DYNAMIC(type, name)                                        \
    extern __shared__ __align__(16) unsigned char easel_dynamic_shared[]; \
    type* name = reinterpret_cast<type*>(easel_dynamic_shared)

// Launches a kernel on the stream, or into the graph that is captured from it; throws Error if the launch is
// refused. The name of a template needs parentheses if it has a comma: EASEL_LAUNCH((gemm<4, 2>), ...).
#define EASEL_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    easel::launch_kernel(#kernel, kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

namespace easel {

// Shared memory, static and dynamic, that a block may have on every GPU that runs code of this architecture:
// code for 8.0, which itself allows 163 KiB, also runs on 8.6 and 8.9, which allow 99. Host code asks
// max_shared_bytes() of device.h, which is never less.
#if __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1100
constexpr int kSharedBytes = 227 * 1024;
#else
constexpr int kSharedBytes = 99 * 1024;
#endif

// EASEL_LAUNCH. Without cudaFuncSetAttribute() a block has up to 48 KiB of shared memory, static and dynamic.
// In kernels that have both, static arrays stay below 16 KiB, so that 32 KiB of dynamic memory need no call.
template <class... P, class... A>
void launch_kernel(const char* name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                   Stream stream, A&&... args) {
    if (shared_bytes > (32u << 10)) allow_shared(reinterpret_cast<const void*>(kernel), name, shared_bytes);
    cudaLaunchAttribute overlap{};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    const cudaLaunchConfig_t config{grid, block, shared_bytes, stream, &overlap, overlaps_last(stream)};
    check_launch(cudaLaunchKernelEx(&config, kernel, std::forward<A>(args)...), name);
}

// Programmatic dependent launch: on 9.0 and 10.0 a kernel may begin before the launch ahead of it in the
// stream has ended. Every thread of every kernel of this folder calls this first, or nearly: it waits for the
// end of that launch. Code before the call writes nothing, and reads nothing that a launch or a copy may
// write: products load the first of their weights there. The launch behind may begin only after the call, so
// that when a kernel begins, at most the launch directly ahead of it has not ended.
DEVICE void wait_for_last_launch() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Nanoseconds since some moment.
DEVICE uint64_t clock_ns() {
    uint64_t t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
}

// Sets whether the graph node of condition `c` goes on (a loop) or runs (a branch). One thread calls it.
DEVICE void set_condition(Condition c, bool value) {
    if (c) cudaGraphSetConditional(c - 1, value);
}

// ---- loads and stores: p is a multiple of the size --------------------------------------------------------

DEVICE uint4 load16(const void* p) {
    return *static_cast<const uint4*>(p);
}
DEVICE uint2 load8(const void* p) {
    return *static_cast<const uint2*>(p);
}
DEVICE void store16(void* p, uint4 v) {
    *static_cast<uint4*>(p) = v;
}
DEVICE void store8(void* p, uint2 v) {
    *static_cast<uint2*>(p) = v;
}

DEVICE uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// p, a pointer to shared memory that is the same in all lanes. The shuffle hides from the compiler how it was
// computed, so that it stays in a register instead of being computed again at every use.
template <class T>
DEVICE T* kept(T* p) {
    return static_cast<T*>(__cvta_shared_to_generic(__shfl_sync(~0u, shared_address(p), 0)));
}

// Starts an asynchronous copy of BYTES from global to shared memory: 16, past L1, or 8 or 4, through L1.
template <int BYTES>
DEVICE void cp_async(void* dst_shared, const void* src) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16);
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(dst_shared)), "l"(src)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(dst_shared)), "l"(src),
                     "n"(BYTES)
                     : "memory");
}
// Copies only the first src_bytes and fills the rest of BYTES with zeros.
template <int BYTES>
DEVICE void cp_async(void* dst_shared, const void* src, int src_bytes) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16);
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(dst_shared)),
                     "l"(src), "r"(src_bytes)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(dst_shared)),
                     "l"(src), "n"(BYTES), "r"(src_bytes)
                     : "memory");
}
DEVICE void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most N of this thread's committed groups are in flight. Other threads see what has arrived
// after a barrier.
template <int N>
DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- named barriers 1-15, of n threads in whole warps -----------------------------------------------------

DEVICE void barrier_sync(int id, int n) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory");
}

// ---- matrices ---------------------------------------------------------------------------------------------

// Four 8x8 matrices of 16-bit values: lane 8 m + i passes the address of row i of matrix m; lane l gets in
// r[m] the elements (row, column) (l / 4, 2 (l % 4)) and (l / 4, 2 (l % 4) + 1) of matrix m; transposed:
// (2 (l % 4), l / 4) and (2 (l % 4) + 1, l / 4).
DEVICE void ldmatrix(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
DEVICE void ldmatrix_trans(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The transpose of an 8x8 matrix of 16-bit values that the lanes hold as ldmatrix leaves it.
DEVICE uint32_t movmatrix_trans(uint32_t a) {
    uint32_t d;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(d) : "r"(a));
    return d;
}

// d [16, 8] float += a [16, 16] b [16, 8]. Lane l = 4 g + t holds d (g, 2t) (g, 2t+1) (g+8, 2t) (g+8, 2t+1);
// a (g, 2t..) (g+8, 2t..) (g, 2t+8..) (g+8, 2t+8..); b0 (2t.., g), b1 (2t+8.., g).
DEVICE void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// The same with accumulators in F16: d[0] is (g, 2t..), d[1] (g+8, 2t..). How often the hardware rounds them
// is not specified.
DEVICE void mma_m16n8k16_f16_sums(uint32_t (&d)[2], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%0, %1};"
        : "+r"(d[0]), "+r"(d[1])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Whether mma with accumulators in F16 has twice the rate of mma with float32 ones, as on GeForce cards from
// 8.6 on. `make HALF_SUMS=0`: no.
#if !defined(EASEL_NO_HALF_SUMS) && (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200)
constexpr bool kHalfSums = true;
#else
constexpr bool kHalfSums = false;
#endif

// ---- warpgroup products (wgmma), sm_90a -------------------------------------------------------------------

// Whether kernels use wgmma. `make WGMMA=0`: no.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) && !defined(EASEL_NO_WGMMA)
constexpr bool kWgmma = true;
#else
constexpr bool kWgmma = false;
#endif

#define EASEL_D1(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define EASEL_D4(n) EASEL_D1(n), EASEL_D1(n + 1), EASEL_D1(n + 2), EASEL_D1(n + 3)
#define EASEL_D8(n) EASEL_D4(n), EASEL_D4(n + 4)

// d [64, 8 N] float += a [64, 16] b [16, 8 N], by a warpgroup, warps 4 i to 4 i + 3: each warp has 16 rows of
// d and a in the layout of mma.m16n8k16; b is in shared memory, see wgmma_matrix(). Asynchronous: before
// wgmma_wait(), d and a must not be touched, nor b written. wgmma sees a write to b if the thread that wrote
// it called fence_proxy_async() and then a barrier followed.
DEVICE void wgmma_k16_f16(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, p, 1, 1, 0;}"
        : EASEL_D8(0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
DEVICE void wgmma_k16_f16(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, p, 1, 1, 0;}"
        : EASEL_D8(0), EASEL_D8(8)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
// Needed before a wgmma whose registers, d or a, have been accessed since the last one.
DEVICE void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
DEVICE void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most N of the warp's committed groups are in flight.
template <int N>
DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// After wgmma_wait(): keeps the compiler from moving reads of d before it.
template <int NT>
DEVICE void wgmma_done(float (&d)[NT][4]) {
    UNROLL for (int n = 0; n < NT; n++)
        UNROLL for (int i = 0; i < 4; i++) asm volatile("" : "+f"(d[n][i])::"memory");
}
DEVICE void fence_proxy_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- bits and 16-bit floats -------------------------------------------------------------------------------

// f(a, b, c) on each bit, for the bitwise function f with LUT = f(0xf0, 0xcc, 0xaa).
template <int LUT>
DEVICE uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(LUT));
    return d;
}

// Half 0 (low) or 1 of a in both halves. As an operand of the F16 instructions below it costs nothing.
template <int HALF>
DEVICE uint32_t twice(uint32_t a) {
    uint32_t d;
    if constexpr (HALF == 0)
        asm("{.reg .b16 lo, hi; mov.b32 {lo, hi}, %1; mov.b32 %0, {lo, lo};}" : "=r"(d) : "r"(a));
    else
        asm("{.reg .b16 lo, hi; mov.b32 {lo, hi}, %1; mov.b32 %0, {hi, hi};}" : "=r"(d) : "r"(a));
    return d;
}
DEVICE uint32_t hneg2(uint32_t a) {
    uint32_t d;
    asm("neg.f16x2 %0, %1;" : "=r"(d) : "r"(a));
    return d;
}
DEVICE uint32_t hfma2(uint32_t a, uint32_t b, uint32_t c) {  // a b + c, rounded once
    uint32_t d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
DEVICE uint32_t hsub2(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
DEVICE uint32_t hmul2(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

// Two floats rounded to F16, to nearest, ties to even. `lo` goes to bits 0-15.
DEVICE uint32_t pack_f16(float lo, float hi) {
    uint32_t d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}
DEVICE float half_to_float(uint16_t h) {
    return __half2float(__ushort_as_half(h));
}
DEVICE uint16_t float_to_half(float f) {
    return __half_as_ushort(__float2half_rn(f));
}

// 2^x and 1 / x by one instruction, off by up to two units in the last place; denormals count as 0.
DEVICE float exp2_approx(float x) {
    float d;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
    return d;
}
DEVICE float reciprocal_approx(float x) {
    float d;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
    return d;
}

}  // namespace easel

#else

#include "sim_ptx.h"

#endif

// ---- numbers in memory ------------------------------------------------------------------------------------

namespace easel {

DEVICE float to_f32(float v) {
    return v;
}
DEVICE float to_f32(F16 v) {
    return half_to_float(v.bits);
}

// v rounded to nearest; beyond F16's range, its largest value with v's sign; NaN stays NaN.
template <class T>
DEVICE T from_f32(float v);
template <>
DEVICE float from_f32<float>(float v) {
    return v;
}
template <>
DEVICE F16 from_f32<F16>(float v) {
    return {float_to_half(fabsf(v) > 65504.0f ? copysignf(65504.0f, v) : v)};
}

constexpr float kLog2e = 1.44269504f;

// e^x; below -87.3, where it would be denormal, 0 as on the CPU. If T, the type that results end up in, is
// F16, the fast one: off by up to 2 + 1.2 |x| units in the last place of a float.
template <class T>
DEVICE float exponential(float x) {
    if constexpr (sizeof(T) == 2) return exp2_approx(x * kLog2e);
    return x < -87.3f ? 0 : expf(x);
}

// An unsigned key that orders as the float does, -0 as 0: for selection and integer maxima.
DEVICE uint32_t order_key(float x) {
    const uint32_t bits = __float_as_uint(x + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Descriptor of wgmma's matrix b in shared memory, K-major with the 128-byte swizzle. Row i is column i of b:
// 64 16-bit values along k, of which the product takes 16 from `p` on. It lies 128 i bytes after a multiple
// of 1024, its 16-byte piece j at place j ^ i % 8. `unused`: the leading offset, which this layout ignores.
DEVICE uint64_t wgmma_matrix(const void* p) {
    constexpr uint64_t swizzle = uint64_t{1} << 62, eight_rows = uint64_t{1024 / 16} << 32, unused = 1 << 16;
    return swizzle | eight_rows | unused | (shared_address(p) & 0x3ffff) >> 4;
}

}  // namespace easel
