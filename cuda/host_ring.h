// host_ring.h: the host's end of the ring of frames that accept() writes (accept.cu), and what the frames add
// up to. Used by backend.cpp.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

#include "backend.h"
#include "device.h"
#include "ops.h"

namespace easel {

// A ring of frames in memory that host and device share.
class HostRing {
  public:
    explicit HostRing(int n_canvas) : n_canvas_(n_canvas), slot_bytes_(FrameSlot::bytes(n_canvas)) {
        memory_ = static_cast<uint8_t*>(mapped_alloc(kHeader + kSlots * slot_bytes_));
    }
    ~HostRing() { mapped_free(memory_); }
    HostRing(const HostRing&) = delete;

    Ring device() const {
        auto* p = static_cast<uint8_t*>(mapped_device_address(memory_));
        return {reinterpret_cast<RingHeader*>(p), p + kHeader, kSlots, slot_bytes_};
    }
    void reset() { *header() = {}; }
    void cancel() { word(&RingHeader::cancel).store(1); }
    // Whether the device has written the answer's last frame.
    bool ended() { return word(&RingHeader::ended).load(std::memory_order_acquire) != 0; }

    // Frames that have been read.
    uint32_t n_read() { return word(&RingHeader::tail).load(); }

    // Calls take(frame) for every frame that has come since the last time.
    template <class F>
    void poll(F take) {
        auto tail = word(&RingHeader::tail);
        for (uint32_t i = tail.load(); i != word(&RingHeader::head).load(std::memory_order_acquire); i++) {
            const FrameSlot f(memory_ + kHeader + i % kSlots * slot_bytes_, n_canvas_);
            const FrameHeader& h = *f.header;
            const size_t n = n_canvas_;
            take(Frame{h.canvas,
                       h.step,
                       {f.tokens, n},
                       {f.argmax, n},
                       {f.entropy, n},
                       {f.log_prob, n},
                       {f.accepted, n},
                       h.mean_entropy,
                       h.temperature,
                       h.dropped,
                       h.last != 0});
            tail.store(i + 1, std::memory_order_release);
        }
    }

  private:
    // Slots for several answers: a reader that pauses must not keep accept() waiting, as some drivers end a
    // kernel after seconds.
    static constexpr int kHeader = 64, kSlots = 1024;
    RingHeader* header() { return reinterpret_cast<RingHeader*>(memory_); }
    std::atomic_ref<uint32_t> word(uint32_t RingHeader::*member) {
        return std::atomic_ref(header()->*member);
    }

    const int n_canvas_, slot_bytes_;
    uint8_t* memory_;
};

// What the frames of an answer add up to.
struct Collector {
    const FrameFn& on_frame;
    const std::vector<int32_t>& end_tokens;
    Answer a{};
    bool cancelled = false, ended = false, canvas_ended = false;

    // False: the answer is cancelled; frames that come later do not count.
    bool take(const Frame& f) {
        if (cancelled) return false;
        if (f.step == 0) a.steps.push_back(0);
        a.steps.back() = f.step + 1;
        cancelled = on_frame && !on_frame(f);
        canvas_ended = f.last || cancelled;
        if (f.last && !cancelled)
            for (size_t i = 0; i < f.argmax.size(); i++) {
                const int32_t id = f.argmax[i];
                ended = ended || std::find(end_tokens.begin(), end_tokens.end(), id) != end_tokens.end();
                if (ended) break;
                a.tokens.push_back(id);
                a.log_prob.push_back(f.log_prob[i]);
                a.entropy.push_back(f.entropy[i]);
            }
        return !cancelled;
    }
    Answer answer() {
        a.finish = cancelled ? Finish::Cancelled : ended ? Finish::Stop : Finish::Length;
        return std::move(a);
    }
};

}  // namespace easel
