// kv_cache.h: the CPU backend's KV cache. Owned by reference.cpp, which writes and reads its rows.
#pragma once
#include <vector>

#include "model.h"

namespace easel {

// Resizes x to n items. When they do not fit, its memory doubles, but not beyond the `most` items of the
// plan.
void grow(std::vector<float>& x, size_t n, size_t most);

// K and V of every layer and KV head, [n_token, head_dim] each, k normed and rotated. Sliding layers drop
// the tokens that no window reaches any more, except the newest kCpuReserve (memory_plan.h).
class KvCache {
  public:
    KvCache(const Config& config, int n_context);

    int n_token() const { return n_token_; }
    // Makes room in a layer for n tokens after the cached ones; the caller writes the rows. They are kept by
    // commit() and dropped by discard().
    void extend(int layer, int n);
    // The n tokens by which every layer was extended are cached from now on.
    void commit(int n);
    // Drops the rows that extend() has added.
    void discard();
    // Forgets the tokens from n_token on, or all if a sliding layer has dropped part of the window before
    // them. Returns the number of tokens left.
    int truncate(int n_token);

    // The row of position pos of one KV head; the rows of later positions follow it.
    float* k(int layer, int head, int pos) { return at(layers_[layer].k, layer, head, pos); }
    float* v(int layer, int head, int pos) { return at(layers_[layer].v, layer, head, pos); }

  private:
    using Heads = std::vector<std::vector<float>>;  // [n_head_kv]
    struct LayerRows {
        Heads k, v;
    };

    int first(int layer) const { return config_.layers[layer].global ? 0 : first_kept_; }
    float* at(Heads& heads, int layer, int head, int pos) {
        return heads[head].data() + int64_t{pos - first(layer)} * config_.layers[layer].head_dim;
    }
    template <class F>
    void for_each_head(int layer, F f);
    void drop_oldest();

    const Config& config_;
    const int n_context_;
    int n_token_ = 0;
    int first_kept_ = 0;  // the position of a sliding layer's first row
    std::vector<LayerRows> layers_;
};

}  // namespace easel
