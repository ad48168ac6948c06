// types.h: what host code and kernels both name: streams and conditions, CUDA's or the simulator's, and
// 16-bit floats. Host code includes this and never ptx.h.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(EASEL_CUDA) || defined(__CUDACC__)

#include <cuda_runtime.h>

namespace easel {

using Stream = cudaStream_t;
using Condition = cudaGraphConditionalHandle;  // of a conditional graph node, plus 1; 0: none

// For EASEL_LAUNCH (ptx.h), in device_cuda.cpp. Throws Error with the kernel's name and CUDA's text unless
// `e` is success.
void check_launch(cudaError_t e, const char* kernel);
// Lets a kernel have that much dynamic shared memory.
void allow_shared(const void* kernel, const char* name, size_t bytes);
// Whether the launch that is about to follow on the stream may overlap the end of the launch before it, and
// notes it as the stream's last one. No, if the stream has been given anything else since that launch, or if
// the GPU does not overlap launches.
bool overlaps_last(Stream stream);

}  // namespace easel

#else

namespace easel {

namespace sim {
struct Stream;
}
using Stream = sim::Stream*;  // null: launches run at once
using Condition = bool*;

}  // namespace easel

#endif

namespace easel {

// A 16-bit float as its bits: what tensor cores read.
struct F16 {
    uint16_t bits;
};

}  // namespace easel
