// load.cpp: see load.h.
#include "load.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <type_traits>

#include "../src/parallel.h"
#include "check.h"
#include "memory_plan.h"

namespace easel {

// ---- what fits --------------------------------------------------------------------------------------------

// What the kernels are made for; a model beyond it is refused.
static void check_limits(const Config& c) {
    require(c.n_canvas <= kMaxCanvas, "a canvas of {} tokens: on a GPU at most {} are supported", c.n_canvas,
            kMaxCanvas);
    require(c.n_expert <= kMaxExperts && c.n_expert_used <= kMaxUsed,
            "{} experts of which {} are used: on a GPU at most {} and {} are supported", c.n_expert,
            c.n_expert_used, kMaxExperts, kMaxUsed);
    require(c.n_vocab <= kMaxVocab, "a vocabulary of {}: on a GPU at most {} are supported", c.n_vocab,
            kMaxVocab);
    require(c.max_head_dim() <= kMaxHeadDim, "heads of {} values: on a GPU at most {} are supported",
            c.max_head_dim(), kMaxHeadDim);
}

DeviceOptions fit_device(const Model& model, const DeviceOptions& options) {
    check_limits(model.config);
    require(options.n_encode >= 1 && options.n_encode <= 16384,
            "an encode pass of {} tokens, expected 1 to 16384",
            options.n_encode);  // kernels count in 32 bits
    require(options.memory_limit >= 0, "the memory limit is {} bytes, expected 0 (none) or more",
            options.memory_limit);
    limit_device_memory(options.memory_limit ? device_memory().used + options.memory_limit : 0);
    const int64_t free = free_device_bytes() - kDeviceSlack;
    DeviceOptions asked = options;
    asked.n_sm = n_sm();
    const DeviceOptions out =
        fit_gpu(model, asked, options.memory_limit ? std::min(options.memory_limit, free) : free);
    // Experts that the user has not asked to offload may pin at most half of the host's memory.
    const int64_t host = plan_gpu(model, out).host, there_is = host_memory();
    require(out.n_offload == options.n_offload || host <= there_is / 2,
            "the experts of {} layers do not fit the GPU's memory; {:.2f} GB of experts are more than half "
            "of the host's {:.2f} GB (--expert-offload {} keeps them there anyway)",
            out.n_offload, static_cast<double>(host) / 1e9, static_cast<double>(there_is) / 1e9,
            out.n_offload);
    return out;
}

// ---- from the file to records -----------------------------------------------------------------------------

using Clock = std::chrono::steady_clock;

namespace {

double ms_since(Clock::time_point start) {
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// Through a few pinned buffers: reading the file, copying over and repacking on the device go on at the same
// time.
class Loader {
  public:
    // device: [kLoadSlots, slot_bytes]. slot_bytes: load_slot_bytes(). `total`: of all that will be loaded,
    // for on_load.
    Loader(Stream stream, uint8_t* device, int64_t slot_bytes, int64_t total, const LoadProgressFn& on_load);
    ~Loader();
    Loader(const Loader&) = delete;
    // On return the last copies and repacks may still be in flight.
    void load(const std::vector<RecordSource>& sources);
    // Waits for all of it; total_ms is since the construction.
    LoadStats finish_all();

  private:
    struct Slot;
    void load(const RecordSource& source);
    Slot& next_slot();
    void take_times(Slot& slot);

    Stream stream_;     // repacks
    OwnStream copies_;  // copies the next slots meanwhile, so that the bus does not wait
    const LoadProgressFn& on_load_;
    const int64_t slot_bytes_, total_;
    std::chrono::steady_clock::time_point start_;
    LoadStats stats_;
    std::unique_ptr<Slot[]> slots_;
    int n_used_ = 0;
};

struct Loader::Slot {
    uint8_t *host = nullptr, *device = nullptr;
    Event begun{true}, copied{true};  // begin and end of the copy
    Event taken{true}, used{true};    // begin and end of repacking, which comes after that of earlier slots
    bool in_use = false;
    ~Slot() { pinned_free(host); }
};

Loader::Loader(Stream stream, uint8_t* device, int64_t slot_bytes, int64_t total,
               const LoadProgressFn& on_load)
    : stream_(stream),
      on_load_(on_load),
      slot_bytes_(slot_bytes),
      total_(total),
      start_(Clock::now()),
      slots_(std::make_unique<Slot[]>(kLoadSlots)) {
    for (int i = 0; i < kLoadSlots; i++) {
        slots_[i].host = static_cast<uint8_t*>(pinned_alloc(slot_bytes_));
        slots_[i].device = device + i * slot_bytes_;
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
    stats_.repack_ms += slot.used.ms_since(slot.taken);
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

void copy(uint8_t* to, const uint8_t* from, int64_t bytes) {
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
        slot.taken.record(stream_);
        repack(stream_, from, source.to, rows, n, source.n_col, source.records + tile * record_bytes);
        slot.used.record(stream_);
        slot.in_use = true;
        stats_.bytes += bytes;
        require(!on_load_ || on_load_(std::min(stats_.bytes, total_), total_), "loading was stopped");
    }
}

}  // namespace

// ---- all weights ------------------------------------------------------------------------------------------

// Angles per position of a kind of layer: theta^(-2 i / head_dim) / divisors[i].
static void load_angles(Stream stream, double* place, int head_dim, double theta,
                        const std::vector<float>& divisors) {
    if (head_dim == 0) return;
    std::vector<double> freq(head_dim / 2);
    for (int i = 0; i < head_dim / 2; i++)
        freq[i] = std::pow(theta, -2.0 * i / head_dim) / (divisors.empty() ? 1.0 : double{divisors[i]});
    copy_to_device(stream, place, freq.data(), freq.size() * sizeof(double));
    finish(stream);
}

// Scales gelu(gate) * up so that it fits F16, and the product with down so that it undoes that. For rows g, u
// and an input x = rms(h) * norm the value is at most |g| |u| |x|^2 (Cauchy-Schwarz), where
// |x|^2 <= n max(norm)^2: true whatever the activations are. The bound is far from what occurs, but F16 has
// 40 binary orders and half of them suffice.
static void scale_products(Stream stream, float* max_square, Weights& gate_up, Weights& down,
                           const std::vector<float>& norm) {
    float square = 0;
    max_row_square(stream, max_square, gate_up);
    copy_to_host(stream, &square, max_square, sizeof square);
    finish(stream);
    double norm2 = 0;
    for (float w : norm) norm2 = std::max(norm2, double{w} * w);
    const double bound = square * norm2 * static_cast<double>(norm.size());
    if (!(bound > 0) || !std::isfinite(bound)) return;
    const int exponent = static_cast<int>(std::floor(std::log2(32000 / bound)));  // 2x room for rounding
    gate_up.scale = static_cast<float>(std::ldexp(1.0, std::clamp(exponent, -60, 60)));
    down.scale = 1 / gate_up.scale;
}

template <class T>
LoadStats load_weights(Stream stream, const Model& model, int n_offload, ModelWeights& weights,
                       const Buffers<T>& buffers, ExpertStream& experts, const LoadProgressFn& on_load) {
    const Config& c = model.config;
    for (const LayerShape& l : c.layers)
        load_angles(stream, l.global ? weights.freq : weights.freq_swa, l.head_dim,
                    l.global ? c.rope_theta : c.rope_theta_swa,
                    l.global ? model.rope_freqs : std::vector<float>());
    for (const FloatSource& f : weights.floats)
        copy_to_device(stream, f.place, f.values.data(), f.values.size() * sizeof(float));
    finish(stream);

    int64_t total = 0;
    for (const RecordSource& r : weights.records) total += r.bytes();
    for (const Offloaded& o : weights.offloaded)
        for (const RecordSource& r : o.records) total += r.bytes();
    Loader loader(stream, buffers.loading, load_slot_bytes(model), total, on_load);
    loader.load(weights.records);
    const auto scale = [&](Weights& gate_up, Weights& down, const std::vector<float>& norm) {
        if constexpr (std::is_same_v<T, F16>) scale_products(stream, buffers.max_square, gate_up, down, norm);
    };
    const auto scale_experts = [&](int l) {
        scale(weights.layers[l].expert_gate_up, weights.layers[l].expert_down,
              model.layers[l].pre_ffw_norm_2);
    };
    for (const Offloaded& o : weights.offloaded) {  // while they are on the device
        loader.load(o.records);
        scale_experts(o.layer);
        experts.keep(stream, o);
    }
    scale(weights.self_cond_gate_up, weights.self_cond_down, model.self_cond_norm);
    for (int l = 0; l < c.n_layer; l++) {
        scale(weights.layers[l].gate_up, weights.layers[l].down, model.layers[l].ffn_norm);
        if (!is_offloaded(l, c.n_layer, n_offload)) scale_experts(l);
    }
    const LoadStats stats = loader.finish_all();
    weights.records.clear();
    weights.floats.clear();
    weights.offloaded.clear();
    finish(stream);
    return stats;
}
template LoadStats load_weights(Stream, const Model&, int, ModelWeights&, const Buffers<F16>&, ExpertStream&,
                                const LoadProgressFn&);
template LoadStats load_weights(Stream, const Model&, int, ModelWeights&, const Buffers<float>&,
                                ExpertStream&, const LoadProgressFn&);

template <class T>
void clear_padding(Stream stream, const Config& c, const Room& room, const Buffers<T>& b) {
    const size_t n = room.n_token;
    for (T* p : {b.in, b.expert_in}) fill_zero(stream, p, n * padded(c.n_embd) * sizeof(T));
    fill_zero(stream, b.q_in, b.middle_bytes);
}
template void clear_padding<F16>(Stream, const Config&, const Room&, const Buffers<F16>&);
template void clear_padding<float>(Stream, const Config&, const Room&, const Buffers<float>&);

}  // namespace easel
