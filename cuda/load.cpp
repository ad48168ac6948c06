// load.cpp: weights from the mapped file to records on the device, see load.h.
#include "load.h"

#include <algorithm>
#include <cstring>

#include "../src/parallel.h"
#include "check.h"

namespace easel {

using Clock = std::chrono::steady_clock;

static double ms_since(Clock::time_point start) {
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

struct Loader::Slot {
    uint8_t *host = nullptr, *device = nullptr;
    Event begun{true}, copied{true}, used{true};  // used: the device is done with it
    bool in_use = false;
    ~Slot() {
        pinned_free(host);
        device_free(device);
    }
};

Loader::Loader(Stream stream, int64_t slot_bytes, int64_t total, const LoadProgressFn& on_load)
    : stream_(stream),
      on_load_(on_load),
      slot_bytes_(slot_bytes),
      total_(total),
      start_(Clock::now()),
      slots_(std::make_unique<Slot[]>(kLoadSlots)) {
    for (int i = 0; i < kLoadSlots; i++) {
        slots_[i].host = static_cast<uint8_t*>(pinned_alloc(slot_bytes_));
        slots_[i].device = static_cast<uint8_t*>(device_alloc(slot_bytes_));
    }
}

Loader::~Loader() {
    for (Stream s : {copies_.s, stream_}) {
        try {
            finish(s);
        } catch (const Error&) {  // it has been reported, or will be by the next call
        }
    }
}

// The next of the slots in turn, when the device is done with it.
Loader::Slot& Loader::next_slot() {
    Slot& slot = slots_[n_used_++ % kLoadSlots];
    const auto start = Clock::now();
    take_times(slot);
    stats_.wait_ms += ms_since(start);
    return slot;
}

void Loader::take_times(Slot& slot) {
    if (!slot.in_use) return;
    slot.used.wait();
    stats_.copy_ms += slot.copied.ms_since(slot.begun);
    stats_.repack_ms += slot.used.ms_since(slot.copied);
    slot.in_use = false;
}

void Loader::load(const std::vector<RecordSource>& sources) {
    for (const RecordSource& r : sources) load(r);
}

LoadStats Loader::finish_all() {
    for (int i = 0; i < kLoadSlots; i++) take_times(slots_[i]);
    stats_.total_ms = ms_since(start_);
    return stats_;
}

static void copy(uint8_t* to, const uint8_t* from, int64_t bytes) {
    constexpr int64_t kPiece = 256 << 10;  // an expert of 2 MB keeps eight cores busy
    parallel_for((bytes + kPiece - 1) / kPiece, [&](int64_t i) {
        std::memcpy(to + i * kPiece, from + i * kPiece, std::min(kPiece, bytes - i * kPiece));
    });
}

void Loader::load(const RecordSource& source) {
    const int64_t low_bytes = row_bytes(source.from, source.n_col);
    const int64_t high_bytes = row_bytes(source.from_high, source.n_col);
    const bool expand = source.from != source.from_high;  // on the host; see gated_experts()
    const int64_t tile_bytes = 8 * (expand ? 2 * row_bytes(Type::F32, source.n_col) : low_bytes + high_bytes);
    require(tile_bytes + 256 <= slot_bytes_, "a weight matrix with rows of {} values is too wide",
            source.n_col);
    const int n_piece = static_cast<int>((slot_bytes_ - 256) / tile_bytes);
    const int64_t record_bytes = records_bytes(source.to, 16, source.n_col);
    for (int tile = 0; tile < source.n_tile; tile += n_piece) {
        const int n = std::min(n_piece, source.n_tile - tile);
        Slot& slot = next_slot();
        const auto start = Clock::now();
        RowTiles rows = source.rows;
        const int per_tile = source.gated ? 8 : 16;  // rows of low, and of high, to the next tile
        rows.n_low = std::min(rows.n_low - per_tile * tile, per_tile * n);
        rows.n_high = std::clamp(rows.n_high - per_tile * tile, 0, per_tile * n - (source.gated ? 0 : 8));
        Type from = source.from;
        int64_t bytes;
        if (source.gated) {
            const auto rows_in = [&](Type type, const uint8_t* data, int n_row, int64_t stride, int64_t at) {
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
            bytes = high_at + rows_in(source.from_high, source.rows.high, rows.n_high, high_bytes, high_at);
            rows.low = slot.device;
            rows.high = slot.device + high_at;
            rows.stride = 8 * row_bytes(from, source.n_col);
        } else {
            bytes = rows.n_low * low_bytes;
            copy(slot.host, source.rows.low + tile * source.rows.stride, bytes);
            rows.low = slot.device;
            rows.high = slot.device + 8 * low_bytes;
        }
        stats_.read_ms += ms_since(start);
        slot.begun.record(copies_.s);
        copy_to_device(copies_.s, slot.device, slot.host, bytes);
        slot.copied.record(copies_.s);
        slot.copied.hold(stream_);
        repack(stream_, from, source.to, rows, n, source.n_col, source.records + tile * record_bytes);
        slot.used.record(stream_);
        slot.in_use = true;
        stats_.bytes += bytes;
        require(!on_load_ || on_load_(std::min(stats_.bytes, total_), total_), "loading was stopped");
    }
}

}  // namespace easel
