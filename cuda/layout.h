// layout.h: what is in a GPU's memory: the weights as records, the KV cache, the buffers of a pass. The same
// functions count the bytes (plan_gpu(), which `easel info` prints) and hand out the places.
#pragma once
#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "bench.h"
#include "model.h"
#include "ops.h"
#include "records.h"

namespace easel {

// Hands out places one after the other and counts their bytes; without a Place function it only counts.
class Arena {
  public:
    // offset, bytes -> place; none: only count.
    using Place = std::function<void*(int64_t offset, int64_t bytes)>;
    explicit Arena(Place place = {}) : place_(std::move(place)) {}

    // n values, 256-byte aligned as a device allocation is. Null when only counting, or for none.
    template <class U>
    U* take(int64_t n) {
        const int64_t bytes = n * static_cast<int64_t>(sizeof(U)), offset = bytes_;
        bytes_ += (bytes + 255) / 256 * 256;
        return place_ && n ? static_cast<U*>(place_(offset, bytes)) : nullptr;
    }
    int64_t bytes() const { return bytes_; }
    bool counts_only() const { return !place_; }

  private:
    Place place_;
    int64_t bytes_ = 0;
};

// A matrix in the file, or a gated pair, that becomes row tiles of records.
struct RecordSource {
    Type from, from_high, to;  // types in the file of rows.low and rows.high, and of the records
    RowTiles rows;             // all of the matrix; host memory: the mapped file
    bool gated;                // low and high are two matrices
    int n_tile, n_col;
    uint8_t* records;

    int64_t bytes() const {
        return rows.n_low * row_bytes(from, n_col) + (gated ? rows.n_high * row_bytes(from_high, n_col) : 0);
    }
};
struct FloatSource {
    std::vector<float> values;
    float* place;
};
// The experts of a layer that stay in the host's memory. While they are needed, and at load while they are
// repacked, they lie in one of two places on the device; offloaded layers use these in turn.
struct Offloaded {
    int layer;
    uint8_t* device;  // gate_up, then down
    int64_t bytes;
    std::vector<RecordSource> records;
};

struct LayerWeights {
    AttentionShape shape;
    Weights q, k, v, o;  // no v.data: V is the raw k projection
    Weights gate_up, down, expert_gate_up, expert_down;
    float *attn_norm, *q_norm, *k_norm, *post_attention_norm, *ffn_norm, *post_ffw_norm_1, *router_scale,
        *pre_ffw_norm_2, *post_ffw_norm_2, *post_ffw_norm, *router, *expert_scale;
    float output_scale, enc_output_scale;
};

struct ModelWeights {
    Weights embd, output, self_cond_gate_up, self_cond_down;
    float *output_norm, *self_cond_norm;
    double *freq, *freq_swa;  // angle per position, [head_dim / 2]: of global and of sliding layers
    std::vector<LayerWeights> layers;
    std::vector<RecordSource> records;  // where the weights come from, until they are loaded
    std::vector<FloatSource> floats;
    std::vector<Offloaded> offloaded;  // in the order of layers
};

// How much there is to be room for.
struct Room {
    int n_context;  // cached tokens plus canvas
    int n_token;    // of one pass
    int n_sm;       // SMs that splits of products and of keys are to fill
    Room(const Config& c, const DeviceOptions& options)
        : n_context(options.n_context),
          n_token(std::max(c.n_canvas, std::min(options.n_encode, options.n_context))),
          n_sm(options.n_sm) {}
};
// Whether a layer is one of those n_offload whose experts stay in the host's memory: they are spread evenly,
// so that one comes over the bus while others are computed.
constexpr bool is_offloaded(int layer, int n_layer, int n_offload) {
    const auto before = [=](int l) { return (2 * l * n_offload + n_layer) / (2 * n_layer); };
    return before(layer + 1) != before(layer);
}

// Buffers of a pass of n tokens; [n] and [n_canvas] rows, activation rows padded. What is not needed at the
// same time lies in the same place: see lay_out_buffers().
template <class T>
struct Buffers {
    float *x, *h, *router_in, *dense, *o;  // [n, n_embd]; o: [n_split, n, n_embd]
    T *in, *ffn_in, *expert_in;            // [n, n_embd]
    float *q, *k, *v;                      // [n_split, n, n_head or n_head_kv, head_dim]
    T *q_in, *o_in;                        // [n, n_head head_dim]
    T* middle;                             // [n, n_ff], [n_canvas, n_ff_self_cond]
    float* routing;                        // route_scratch()
    int *chosen, *slot_of, *token_of;      // [n n_expert_used]
    float* weight;                         // the same
    ExpertGroup* groups;                   // [max_groups()]
    T* slot_middle;                        // [n n_expert_used, n_ff_exp]
    int64_t middle_bytes;                  // of q_in, o_in, slot_middle and middle together
    float* slot_out;                       // [n n_expert_used, n_embd]
    float *cos, *sin, *cos_swa, *sin_swa;  // [n, head_dim / 2]
    float* attention;                      // attention_scratch()
    float* soft;                           // soft_scratch()
    T* z;                                  // [n_canvas, vocab_stride]
    TileStats* stats;                      // [n_canvas, n_vocab_tile]
    uint8_t* live;                         // [n_vocab_tile]
    RowStats* rows;                        // [n_canvas]
    int32_t *tokens, *argmax, *prompt;     // [n_canvas] twice, [n]
    GivenTokens* given;
    LoopState* state;
    uint8_t* loading;   // [kLoadSlots, load_slot_bytes()]
    float* max_square;  // for scale_products() of load.cpp
};

// Notes where the values come from only if the arena gives places.
template <class T>
ModelWeights lay_out_weights(const Model& model, int n_offload, Arena& arena);
template <class T>
Buffers<T> lay_out_buffers(const Model& model, const Room& room, Arena& arena);
// Global layers keep all tokens; sliding ones their window and the tokens of a pass, which is also how far
// truncate() can go back: 2048 tokens are as long as an answer is by default.
template <class T>
std::vector<KvLayer<T>> lay_out_cache(const Model& model, const Room& room, Arena& arena);

// Buffers that weights go through while they are loaded, see load.h.
constexpr int kLoadSlots = 3;
// Of each of the loader's slots, in host and device memory: 16 MiB, or less for a model whose matrices are
// smaller.
int64_t load_slot_bytes(const Model& model);

AttentionShape attention_shape(const Config& config, int layer);
// Of the keys of a denoise pass.
KvSplits kv_splits(const Config& config, int layer, const Room& room);

}  // namespace easel
