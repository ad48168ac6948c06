// load.h: the way of weights from the mapped file to records on the device. Used by engine.cpp.
#pragma once
#include <chrono>
#include <memory>
#include <vector>

#include "device.h"
#include "layout.h"

namespace easel {

// Through a few pinned buffers: reading the file, copying over and repacking on the device go on at the same
// time.
class Loader {
  public:
    // slot_bytes: load_slot_bytes(). `total`: of all that will be loaded, for on_load.
    Loader(Stream stream, int64_t slot_bytes, int64_t total, const LoadProgressFn& on_load);
    ~Loader();
    Loader(const Loader&) = delete;
    // On return the last of it may still be on its way in the stream.
    void load(const std::vector<RecordSource>& sources);
    // Waits for all of it; total_ms is since the construction.
    LoadStats finish_all();

  private:
    struct Slot;
    void load(const RecordSource& source);
    Slot& next_slot();
    void take_times(Slot& slot);

    Stream stream_;     // repacks
    OwnStream copies_;  // beside it, the next ones, so that the bus does not wait
    const LoadProgressFn& on_load_;
    const int64_t slot_bytes_, total_;
    std::chrono::steady_clock::time_point start_;
    LoadStats stats_;
    std::unique_ptr<Slot[]> slots_;
    int n_used_ = 0;
};

}  // namespace easel
