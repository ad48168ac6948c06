// no_cuda.cpp: what stands for the CUDA backend where the program is built without nvcc.
#include "backend.h"
#include "check.h"

namespace easel {

static const char* const kWhy = "this program was built without CUDA (no nvcc was found)";

std::string backends() {
    return "CPU";
}

std::vector<DeviceInfo> cuda_devices(std::string* why) {
    if (why) *why = kWhy;
    return {};
}

std::unique_ptr<Backend> make_cuda_backend(std::shared_ptr<const Model>, const DeviceOptions&) {
    fail("{}", kWhy);
}

StepProfile profile_cuda(std::shared_ptr<const Model>, const DeviceOptions&, int, int) {
    fail("{}", kWhy);
}

}  // namespace easel
