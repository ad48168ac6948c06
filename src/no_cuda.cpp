// no_cuda.cpp: what stands for the CUDA backend where the program is built without nvcc.
#include "bench.h"
#include "check.h"

namespace easel {

static const char* const kWhy = "this program was built without CUDA";

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

DeviceProfile profile_cuda(std::shared_ptr<const Model>, const DeviceOptions&, const ProfilePlan&) {
    fail("{}", kWhy);
}

}  // namespace easel
