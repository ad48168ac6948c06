// load.h: a model's way onto the device: what of it fits, the memory that it lies in, its weights from the
// mapped file to records. Used by backend.cpp.
#pragma once
#include <vector>

#include "device.h"
#include "layout.h"
#include "offload.h"

namespace easel {

// The options with what fits into the device's memory. Error if nothing does, or for a model that the kernels
// are not made for.
DeviceOptions fit_device(const Model& model, const DeviceOptions& options);

// Device memory that an Arena deals out: one allocation, or, in the simulator, one per buffer, so that an
// access past the end of one is seen.
class ArenaMemory {
  public:
    explicit ArenaMemory(int64_t total_bytes) {
        if (kOneBlock) blocks_.push_back(device_alloc(total_bytes));
    }
    ~ArenaMemory() {
        for (void* p : blocks_) device_free(p);
    }
    ArenaMemory(const ArenaMemory&) = delete;
    Arena arena() {
        return Arena([this](int64_t offset, int64_t bytes) -> void* {
            if (kOneBlock) return static_cast<uint8_t*>(blocks_[0]) + offset;
            return blocks_.emplace_back(device_alloc(bytes));
        });
    }

  private:
#ifdef EASEL_CUDA
    static constexpr bool kOneBlock = true;
#else
    static constexpr bool kOneBlock = false;
#endif
    std::vector<void*> blocks_;
};

// Brings the weights, laid out by lay_out_weights<T>() with n_offload, by way of buffers.loading to their
// places, and the experts of offloaded layers from there to `experts`. Empties weights.records, .floats and
// .offloaded.
template <class T>
LoadStats load_weights(Stream stream, const Model& model, int n_offload, ModelWeights& weights,
                       const Buffers<T>& buffers, ExpertStream& experts, const LoadProgressFn& on_load);

// Makes the padding of activation rows zero. Later it may hold what another kind of row has left there,
// always finite values: products multiply them with the padding of weights, which is zero.
template <class T>
void clear_padding(Stream stream, const Config& config, const Room& room, const Buffers<T>& buffers);

}  // namespace easel
