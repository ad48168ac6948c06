// vmath.h: exp, tanh and gelu as branch-free float formulas that a compiler turns into vector loops, checked
// against double over their whole range by tests/test_gemm.cpp; and sums and maxima in lanes, for the same
// reason.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace easel {

// exp(x) to 2e-7 relative; below -87.3 (where float results would be denormal) it gives 0, above 88 exp(88).
// x = n ln 2 + r, |r| <= ln(2)/2; Taylor polynomial of degree 7 in r; n goes into the exponent.
inline float exp_approx(float x) {
    const float y = x > 88.0f ? 88.0f : (x < -87.3f ? -87.3f : x);
    // 1.5 * 2^23: the sum's low bits are round(y / ln 2).
    const float shifted = y * 1.44269504f + 12582912.0f;
    const float n = shifted - 12582912.0f;
    // ln 2 in two parts: the first product is exact.
    const float r = (y - n * 0.693145751953125f) - n * 1.42860682e-6f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    // Unsigned, because of NaN, whose bits would overflow.
    const uint32_t bits = (std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(12582912.0f) + 127)
                          << 23;
    return x < -87.3f ? 0.0f : p * std::bit_cast<float>(bits);
}

// tanh(x) to 4e-7 relative: an odd polynomial near 0, where 1 - exp would cancel, and exponentials elsewhere.
inline float tanh_approx(float x) {
    const float a = std::fabs(x), s = x * x;
    const float small =
        x * (1.0f + s * (-1.0f / 3 + s * (2.0f / 15 + s * (-17.0f / 315 + s * (62.0f / 2835)))));
    const float e = exp_approx(-2 * a);
    const float large = std::copysign((1 - e) / (1 + e), x);
    return a < 0.2f ? small : large;
}

// gelu, tanh form: 0.5 x (1 + tanh(u)) = x / (1 + exp(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3).
inline float gelu(float x) {
    const float u = 0.7978845608f * (x + 0.044715f * x * x * x);
    return x / (1 + exp_approx(-2 * u));
}

// The sum of f(i), i < n, in double: eight sums side by side, which become vector code, then those in order.
template <class F>
double sum_of(int64_t n, F f) {
    constexpr int64_t kLanes = 8;
    double lane[kLanes] = {}, sum = 0;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        for (int64_t j = 0; j < kLanes; j++) lane[j] += f(i + j);
    for (; i < n; i++) sum += f(i);
    for (double s : lane) sum += s;
    return sum;
}

// The largest of x [n], n >= 1. NaNs are ignored, except x[0].
inline float largest(const float* x, int64_t n) {
    constexpr int64_t kLanes = 8;
    float lane[kLanes], max = x[0];
    std::fill_n(lane, kLanes, max);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        for (int64_t j = 0; j < kLanes; j++) lane[j] = std::max(lane[j], x[i + j]);
    for (float l : lane) max = std::max(max, l);
    for (; i < n; i++) max = std::max(max, x[i]);
    return max;
}

}  // namespace easel
