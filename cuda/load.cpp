// load.cpp: weights from the mapped file to records on the device, see layout.h. Called by engine.cpp.
#include <algorithm>
#include <chrono>
#include <cstring>

#include "../src/parallel.h"
#include "check.h"
#include "device.h"
#include "layout.h"

namespace easel {

namespace {

// The way of weights from the mapped file to records: through a few pinned buffers, so that reading the file,
// copying over and repacking on the device go on at the same time.
class Loader {
  public:
    Loader(Stream stream, const LoadProgressFn& progress, int64_t total)
        : stream_(stream), progress_(progress), total_(total) {
        for (Slot& s : slots_) {
            s.host = static_cast<uint8_t*>(pinned_alloc(kSlotBytes));
            s.device = static_cast<uint8_t*>(device_alloc(kSlotBytes));
        }
    }
    ~Loader() {
        try {
            finish(stream_);
        } catch (const Error&) {  // it has been reported, or will be by the next call
        }
    }
    Loader(const Loader&) = delete;

    void load(const RecordSource& source) {
        const int64_t low_bytes = row_bytes(source.from, source.n_col);
        const int64_t high_bytes = row_bytes(source.from_high, source.n_col);
        const bool expand = source.from != source.from_high;  // on the host; see gated_experts()
        const int64_t tile_bytes =
            8 * (expand ? 2 * row_bytes(Type::F32, source.n_col) : low_bytes + high_bytes);
        require(tile_bytes <= kSlotBytes, "a weight matrix with rows of {} values is too wide", source.n_col);
        const int n_piece = static_cast<int>(kSlotBytes / tile_bytes);
        const int64_t record_bytes = records_bytes(source.to, 16, source.n_col);
        for (int tile = 0; tile < source.n_tile; tile += n_piece) {
            const int n = std::min(n_piece, source.n_tile - tile);
            Slot& slot = slots_[n_used_++ % std::size(slots_)];
            take(slot);
            const auto start = Clock::now();
            RowTiles rows = source.rows;
            const int per_tile = source.gated ? 8 : 16;  // rows of low, and of high, to the next tile
            rows.n_low = std::min(rows.n_low - per_tile * tile, per_tile * n);
            rows.n_high = std::clamp(rows.n_high - per_tile * tile, 0, per_tile * n - (source.gated ? 0 : 8));
            Type from = source.from;
            int64_t bytes;
            if (source.gated) {
                const auto rows_in = [&](Type type, const uint8_t* data, int n_row, int64_t stride,
                                         int64_t at) {
                    const uint8_t* src = data + int64_t{8} * tile * stride;
                    if (!expand) return copy(slot.host + at, src, n_row * stride), n_row * stride;
                    parallel_for(n_row, [&](int64_t r) {
                        to_float(type, src + r * stride,
                                 reinterpret_cast<float*>(slot.host + at) + r * source.n_col, source.n_col);
                    });
                    return n_row * row_bytes(Type::F32, source.n_col);
                };
                if (expand) from = Type::F32;
                const int64_t high_at =
                    (rows_in(source.from, source.rows.low, rows.n_low, low_bytes, 0) + 255) / 256 * 256;
                bytes =
                    high_at + rows_in(source.from_high, source.rows.high, rows.n_high, high_bytes, high_at);
                rows.low = slot.device;
                rows.high = slot.device + high_at;
                rows.stride = 8 * row_bytes(from, source.n_col);
            } else {
                bytes = rows.n_low * low_bytes;
                copy(slot.host, source.rows.low + tile * source.rows.stride, bytes);
                rows.low = slot.device;
                rows.high = slot.device + 8 * low_bytes;
            }
            times_.read_ms += ms_since(start);
            slot.start.record(stream_);
            copy_to_device(stream_, slot.device, slot.host, bytes);
            slot.copied.record(stream_);
            repack(stream_, from, source.to, rows, n, source.n_col, source.records + tile * record_bytes);
            slot.used.record(stream_);
            slot.full = true;
            done_ += bytes;
            require(!progress_ || progress_(std::min(done_, total_), total_), "loading was stopped");
        }
    }

    // Waits for what is on its way.
    LoadTimes finished() {
        for (Slot& s : slots_) take(s);
        times_.bytes = total_;
        return times_;
    }

  private:
    using Clock = std::chrono::steady_clock;
    static double ms_since(Clock::time_point start) {
        return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
    }

    // Two tiles' rows of the widest matrices anyone would make, and little enough to be pinned at once.
    static constexpr int64_t kSlotBytes = 16 << 20;
    struct Slot {
        uint8_t *host = nullptr, *device = nullptr;
        bool full = false;
        Event start{true}, copied{true}, used{true};  // the device takes it, has it, is done with it
        ~Slot() {
            pinned_free(host);
            device_free(device);
        }
    };

    // Waits until the slot can be filled again.
    void take(Slot& slot) {
        const auto start = Clock::now();
        slot.used.wait();
        times_.wait_ms += ms_since(start);
        if (slot.full) {
            times_.transfer_ms += slot.copied.ms_since(slot.start);
            times_.repack_ms += slot.used.ms_since(slot.copied);
        }
        slot.full = false;
    }

    static void copy(uint8_t* to, const uint8_t* from, int64_t bytes) {
        constexpr int64_t kPiece = 1 << 20;
        parallel_for((bytes + kPiece - 1) / kPiece, [&](int64_t i) {
            std::memcpy(to + i * kPiece, from + i * kPiece, std::min(kPiece, bytes - i * kPiece));
        });
    }

    Stream stream_;
    const LoadProgressFn& progress_;
    const int64_t total_;
    int64_t done_ = 0;
    Slot slots_[3];
    LoadTimes times_;
    int n_used_ = 0;
};

}  // namespace

LoadTimes load_records(Stream stream, const std::vector<RecordSource>& sources,
                       const LoadProgressFn& on_load) {
    int64_t total = 0;
    for (const RecordSource& r : sources) total += r.bytes();
    Loader loader(stream, on_load, total);
    for (const RecordSource& r : sources) loader.load(r);
    return loader.finished();
}

}  // namespace easel
