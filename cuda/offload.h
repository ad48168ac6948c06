// offload.h: experts that stay in the host's memory, for cards that cannot hold them all. A pass has them
// copied to the device one offloaded layer ahead of its need, on a stream of their own beside the
// computation; captured into a graph, the copies are part of it. Used by forward.cpp.
#pragma once
#include <memory>
#include <vector>

#include "device.h"
#include "layout.h"

namespace easel {

class ExpertStream {
  public:
    ExpertStream() = default;
    ~ExpertStream();
    ExpertStream(const ExpertStream&) = delete;

    // Takes a layer's experts, as records on the device, to the host. Layers come in their order.
    void keep(Stream stream, const Offloaded& layer);

    // A pass over the layers below n_layer begins in `stream`: starts the copies of its first experts.
    void begin(Stream stream, int n_layer);
    // Holds the stream until the experts of `layer` are in their place; nothing if they are not offloaded.
    void need(Stream stream, int layer);
    // The stream is done with them: starts to copy those of the next offloaded layer but one to their place.
    void used(Stream stream, int layer);

  private:
    struct Kept {
        int layer;
        uint8_t *host, *device;
        int64_t bytes;
        Event ready, free;
        Kept(int l, uint8_t* h, uint8_t* d, int64_t n) : layer(l), host(h), device(d), bytes(n) {}
    };
    Kept* find(int layer);
    void send(size_t i, Stream stream, Event& after);

    std::vector<std::unique_ptr<Kept>> kept_;
    OwnStream copies_;
    Event begun_;
    int n_layer_ = 0;
};

}  // namespace easel
