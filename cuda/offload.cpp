// offload.cpp: experts that stay in the host's memory, see offload.h.
#include "offload.h"

namespace easel {

ExpertStream::~ExpertStream() {
    for (const auto& k : kept_) pinned_free(k->host);
}

void ExpertStream::keep(Stream stream, const Offloaded& layer) {
    auto* host = static_cast<uint8_t*>(pinned_alloc(layer.bytes));
    kept_.push_back(std::make_unique<Kept>(layer.layer, host, layer.device, layer.bytes));
    copy_to_host(stream, host, layer.device, layer.bytes);
}

ExpertStream::Kept* ExpertStream::find(int layer) {
    for (const auto& k : kept_)
        if (k->layer == layer) return k.get();
    return nullptr;
}

// Starts the copy of the i-th offloaded layer's experts once `stream` has got here, which `after` marks.
// Nothing if this pass has no such layer: a capture must not end with a copy that nobody waits for.
void ExpertStream::send(size_t i, Stream stream, Event& after) {
    if (i >= kept_.size() || kept_[i]->layer >= n_layer_) return;
    Kept& k = *kept_[i];
    after.record(stream);
    after.hold(copies_.s);
    copy_to_device(copies_.s, k.device, k.host, k.bytes);
    k.ready.record(copies_.s);
}

void ExpertStream::begin(Stream stream, int n_layer) {
    n_layer_ = n_layer;
    if (kept_.empty()) return;
    send(0, stream, begun_);  // the pass before has been computed: both places are free
    send(1, stream, begun_);
}

void ExpertStream::need(Stream stream, int layer) {
    if (Kept* k = find(layer)) k->ready.hold(stream);
}

void ExpertStream::used(Stream stream, int layer) {
    for (size_t i = 0; i < kept_.size(); i++)
        if (kept_[i]->layer == layer) send(i + 2, stream, kept_[i]->free);
}

}  // namespace easel
