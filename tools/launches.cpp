// launches.cpp: with which threads and how much dynamic shared memory the large kernels are launched, at the
// shapes of the 26B-A4B model. One .cu file a program, -DSOURCE='"linear.cu"' -DLINEAR -DSHARED_KIB=227, what
// a block may have: its launchers run as they are, but a launch prints "kernel argument threads bytes",
// argument being what of a template's arguments matters here, and 0 for a kernel that is none. Used by
// ptxas.sh.
#include <cstdio>
#include <cstring>
#include <string>

#include "ptx.h"

namespace easel {
static std::string argument;  // what the table is to show for it
static void note(const char* kernel, dim3, dim3 block, size_t bytes) {
    kernel += *kernel == '(';
    const size_t n = std::strcspn(kernel, "<)");
    std::printf("%.*s %s %u %zu\n", static_cast<int>(n), kernel, kernel[n] == '<' ? argument.c_str() : "0",
                block.x, bytes);
}
void fill_zero(Stream, void*, size_t) {}  // device.h's, which is not linked
int max_shared_bytes() {
    return SHARED_KIB * 1024;
}
}  // namespace easel
#undef EASEL_LAUNCH
#define EASEL_LAUNCH(kernel, grid, block, shared_bytes, ...) note(#kernel, grid, block, shared_bytes)

#include SOURCE

using namespace easel;

int main() {
    constexpr int n = 256, d = 2816;
    Stream s{};
#if defined(LINEAR) || defined(HEAD) || defined(EMBED)
    for (const Type type : {Type::Q4_0, Type::Q5_0, Type::Q5_1, Type::Q8_0, Type::IQ4_NL, Type::Q4_K,
                            Type::Q5_K, Type::Q6_K, Type::F16}) {
        argument = std::to_string(static_cast<int>(type));
        Weights w{type, nullptr, 262144, d};
#if defined(LINEAR)
        const std::string of_type = argument;
        argument = of_type + "," + std::to_string(kMany<F16>);
        linear<F16>(s, nullptr, nullptr, w, n);
        argument = of_type + "," + std::to_string(kFew);
        w.n_expert = 128;
        const ExpertGroup some{};
        expert_down<F16>(s, nullptr, nullptr, w, &some, 8 * n);
#elif defined(HEAD)
        lm_head<F16>(s, nullptr, nullptr, nullptr, nullptr, nullptr, w, n, 30, nullptr);
#else
        soft_embedding<F16>(s, nullptr, nullptr, nullptr, w, nullptr, 1e-6f, n, soft_splits(n, d, 132), nullptr,
                            nullptr);
#endif
    }
#elif defined(ATTENTION)
    for (const int head_dim : {32, 64, 128, 256, 512}) {
        for (const bool joint : {false, true}) {
            if (joint && head_dim != kJointDim) continue;
            argument = fmt::format("{},{}", head_dim, joint);
            attention<F16>(s, nullptr, nullptr, {nullptr, nullptr, 1, joint}, n, {16, 8, head_dim, 1024},
                           Mask::Canvas, {}, nullptr, nullptr);
        }
    }
#elif defined(MOE)
    argument = "4";
    route(s, nullptr, nullptr, nullptr, nullptr, nullptr, n, d, 128, 8, nullptr);
    permute(s, nullptr, nullptr, nullptr, nullptr, n, 8, 128, kFewRows);
#elif defined(SAMPLE)
    argument = "F16";
    sample<F16>(s, nullptr, nullptr, nullptr, nullptr, n, 262144, nullptr, nullptr);
#endif
}
