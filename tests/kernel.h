// kernel.h: what the tests of device kernels share: data to and from the device, random numbers, distances,
// and running a launch under every schedule (simulator) or twice (GPU). The same tests are built for both.
#pragma once
#include <cmath>
#include <cstring>
#include <vector>

#include "blocks.h"
#include "catch.h"
#include "device.h"
#include "ops.h"
#if !defined(__CUDACC__) && !defined(EASEL_CUDA)
#include "sim.h"
#endif

namespace easel {

template <class T>
DeviceArray<T> to_device(const std::vector<T>& v) {
    return DeviceArray<T>(Stream{}, v);
}
template <class T>
std::vector<T> to_host(const DeviceArray<T>& a) {
    return a.to_host(Stream{});
}

// Activation numbers on the host.
inline float host_f32(float v) {
    return v;
}
inline float host_f32(F16 v) {
    return f16_to_f32(v.bits);
}
template <class T>
T host_from_f32(float v) {
    if constexpr (std::is_same_v<T, float>)
        return v;
    else
        return {f32_to_f16(v)};
}
template <class T>
std::vector<float> host_f32(const std::vector<T>& v) {
    std::vector<float> out(v.size());
    for (size_t i = 0; i < v.size(); i++) out[i] = host_f32(v[i]);
    return out;
}

// Rows of n_col values as activation rows of padded(n_col), zero past n_col; and back.
template <class T>
std::vector<T> to_rows(const std::vector<float>& v, int n_col) {
    const size_t n_row = v.size() / n_col, ld = padded(n_col);
    std::vector<T> out(n_row * ld, host_from_f32<T>(0));
    for (size_t r = 0; r < n_row; r++)
        for (int c = 0; c < n_col; c++) out[r * ld + c] = host_from_f32<T>(v[r * n_col + c]);
    return out;
}
template <class T>
std::vector<float> from_rows(const std::vector<T>& v, int n_col) {
    const size_t ld = padded(n_col), n_row = v.size() / ld;
    std::vector<float> out(n_row * n_col);
    for (size_t r = 0; r < n_row; r++)
        for (int c = 0; c < n_col; c++) out[r * n_col + c] = host_f32(v[r * ld + c]);
    return out;
}

// |a - b| / |b| over all values (Frobenius), in double; infinite if sizes differ or a value is not finite.
template <class A, class B>
double distance(const std::vector<A>& a, const std::vector<B>& b) {
    if (a.size() != b.size()) return INFINITY;
    double difference = 0, norm = 0;
    for (size_t i = 0; i < a.size(); i++) {
        const double d = double(a[i]) - double(b[i]);
        if (!std::isfinite(d)) return INFINITY;
        difference += d * d;
        norm += double(b[i]) * double(b[i]);
    }
    return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

// f() sets up buffers, launches and returns its outputs as a vector: in the simulator under several orders of
// threads and poisons, on a GPU twice; all must be equal to the byte. Returns them.
template <class F>
auto every_schedule(F f, [[maybe_unused]] int n_random = 1) {
#if defined(__CUDACC__) || defined(EASEL_CUDA)
    const auto first = f(), second = f();
    REQUIRE(first.size() == second.size());
    REQUIRE(std::memcmp(first.data(), second.data(), first.size() * sizeof(first[0])) == 0);
    return first;
#else
    return sim::run_schedules(f, n_random);
#endif
}

}  // namespace easel
