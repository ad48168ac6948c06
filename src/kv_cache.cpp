// kv_cache.cpp: see kv_cache.h.
#include "kv_cache.h"

#include <algorithm>
#include <functional>

#include "float_tiles.h"
#include "memory_plan.h"

namespace easel {

void grow(std::vector<float>& x, size_t n, size_t most) {
    if (n > x.capacity()) x.reserve(std::clamp(2 * x.capacity(), n, std::max(n, most)));
    x.resize(n);
}

KvCache::KvCache(const Config& config, int n_context) : config_(config), n_context_(n_context) {
    for (const LayerShape& l : config.layers) layers_.push_back({Heads(l.n_head_kv), Heads(l.n_head_kv)});
}

template <class F>
void KvCache::for_each_head(int layer, F f) {
    for (Heads* heads : {&layers_[layer].k, &layers_[layer].v})
        for (std::vector<float>& head : *heads) f(head);
}

void KvCache::extend(int layer, int n) {
    const LayerShape& shape = config_.layers[layer];
    const size_t n_row = n_token_ - first(layer) + n;
    const size_t most = shape.global ? n_context_ : cpu_sliding_rows(config_, n_context_);
    for_each_head(
        layer, [&](std::vector<float>& head) { grow(head, n_row * shape.head_dim, most * shape.head_dim); });
}

void KvCache::commit(int n) {
    n_token_ += n;
    drop_oldest();
}

void KvCache::discard() {
    for (int l = 0; l < config_.n_layer; l++) {
        const size_t n_float = size_t(n_token_ - first(l)) * config_.layers[l].head_dim;
        for_each_head(l, [&](std::vector<float>& head) { head.resize(std::min(head.size(), n_float)); });
    }
}

int KvCache::truncate(int n_token) {
    const bool kept = first_kept_ == 0 || first_kept_ <= n_token - (config_.window - 1);
    n_token_ = kept ? n_token : 0;
    if (!kept) first_kept_ = 0;
    discard();
    return n_token_;
}

// Drops at least a pass' worth at a time, as each time moves all that stays; and whole spans (kSpan), so that
// attention's sums over keys are cut at the same positions before and after.
void KvCache::drop_oldest() {
    if (std::all_of(config_.layers.begin(), config_.layers.end(), std::mem_fn(&LayerShape::global))) return;
    const int n = (n_token_ - (config_.window - 1) - kCpuReserve - first_kept_) / kSpan * kSpan;
    if (n < kCpuEncode) return;
    for (int l = 0; l < config_.n_layer; l++)
        if (!config_.layers[l].global)
            for_each_head(l, [&](std::vector<float>& head) {
                head.erase(head.begin(), head.begin() + int64_t{n} * config_.layers[l].head_dim);
            });
    first_kept_ += n;
}

}  // namespace easel
