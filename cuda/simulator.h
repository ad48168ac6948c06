// simulator.h: the CUDA backend on the simulator (sim.h), as make_cuda_backend() and profile_cuda() are on a
// GPU: for the tests.
#pragma once
#include <memory>

#include "backend.h"
#include "bench.h"

namespace easel {

std::unique_ptr<Backend> make_simulator_backend(std::shared_ptr<const Model> model,
                                                const DeviceOptions& options);
DeviceProfile profile_simulator(std::shared_ptr<const Model> model, const DeviceOptions& options,
                                const ProfilePlan& plan);

}  // namespace easel
