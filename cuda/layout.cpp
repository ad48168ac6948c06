// layout.cpp: places and sizes of everything in GPU memory, see layout.h. Plain host code.
#include "layout.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "check.h"
#include "easel.h"

namespace easel {

// ---- weights ----------------------------------------------------------------------------------------------

namespace {

// Takes the places of matrices and notes where they come from.
template <class T>
struct WeightsLayout {
    Arena& arena;
    ModelWeights& out;

    float* floats(std::vector<float> values) {
        float* place = arena.take<float>(static_cast<int64_t>(values.size()));
        out.floats.push_back({std::move(values), place});
        return place;
    }
    float* floats(const Matrix& m) {
        std::vector<float> values(m.n_row * m.n_col);
        for (int64_t r = 0; r < m.n_row; r++)
            to_float(m.type, m.data + r * m.stride(), values.data() + r * m.n_col, m.n_col);
        return floats(std::move(values));
    }

    Weights plain(const Matrix& m) { return experts({m, 0}, 1); }
    Weights experts(const ExpertMatrix& e, int n_expert) {
        Weights w{record_type<T>(e.first.type), nullptr, int(e.first.n_row),
                  int(e.first.n_col),           false,   n_expert};
        uint8_t* place = take(w);
        for (int i = 0; i < n_expert; i++) {
            const Matrix m = e.expert(i);
            const RowTiles rows{m.data, m.data + 8 * m.stride(), 16 * m.stride(), w.n_row,
                                std::max(w.n_row - 8, 0)};
            note(w, place, i, m.type, m.type, rows);
        }
        return w;
    }
    Weights gated(const Matrix& gate, const Matrix& up) { return gated_experts({gate, 0}, {up, 0}, 1); }
    Weights gated_experts(const ExpertMatrix& gate, const ExpertMatrix& up, int n_expert) {
        // Two types in one record do not go together: both are expanded then.
        const Type type = gate.first.type == up.first.type ? gate.first.type : Type::F32;
        Weights w{record_type<T>(type),  nullptr, int(2 * gate.first.n_row),
                  int(gate.first.n_col), true,    n_expert};
        uint8_t* place = take(w);
        for (int i = 0; i < n_expert; i++) {
            const Matrix g = gate.expert(i), u = up.expert(i);
            const int n = static_cast<int>(g.n_row);
            note(w, place, i, g.type, u.type, {g.data, u.data, 8 * g.stride(), n, n});
        }
        return w;
    }

  private:
    uint8_t* take(Weights& w) {
        uint8_t* place = arena.take<uint8_t>(w.expert_bytes() * w.n_expert);
        w.data = place;
        return place;
    }
    void note(const Weights& w, uint8_t* place, int expert, Type low, Type high, const RowTiles& rows) {
        out.records.push_back({low, high, w.type, rows, w.gated, w.n_tile(), w.n_col,
                               place ? place + expert * w.expert_bytes() : nullptr});
    }
};

}  // namespace

int64_t Weights::expert_bytes() const {
    return records_bytes(type, int64_t{16} * n_tile(), n_col);
}

template <class T>
ModelWeights lay_out_weights(const Model& m, Arena& arena) {
    const Config& c = m.config;
    ModelWeights out;
    WeightsLayout<T> lay{arena, out};
    out.embd = lay.plain(m.token_embd);
    out.output = m.output.data == m.token_embd.data ? out.embd : lay.plain(m.output);
    out.output_norm = lay.floats(m.output_norm);
    out.self_cond_norm = lay.floats(m.self_cond_norm);
    out.self_cond_gate_up = lay.gated(m.self_cond_gate, m.self_cond_up);
    out.self_cond_down = lay.plain(m.self_cond_down);
    out.freq = arena.take<double>(c.max_head_dim() / 2);
    out.freq_swa = arena.take<double>(c.max_head_dim() / 2);
    for (int l = 0; l < c.n_layer; l++) {
        const Layer& w = m.layers[l];
        LayerWeights o{};
        o.shape = attention_shape(c, l);
        o.q = lay.plain(w.q);
        o.k = lay.plain(w.k);
        if (w.v) o.v = lay.plain(w.v);
        o.o = lay.plain(w.o);
        o.gate_up = lay.gated(w.gate, w.up);
        o.down = lay.plain(w.down);
        o.expert_gate_up = lay.gated_experts(w.gate_exps, w.up_exps, c.n_expert);
        o.expert_down = lay.experts(w.down_exps, c.n_expert);
        o.attn_norm = lay.floats(w.attn_norm);
        o.q_norm = lay.floats(w.q_norm);
        o.k_norm = lay.floats(w.k_norm);
        o.post_attention_norm = lay.floats(w.post_attention_norm);
        o.ffn_norm = lay.floats(w.ffn_norm);
        o.post_ffw_norm_1 = lay.floats(w.post_ffw_norm_1);
        o.router_scale = lay.floats(w.router_scale);
        o.pre_ffw_norm_2 = lay.floats(w.pre_ffw_norm_2);
        o.post_ffw_norm_2 = lay.floats(w.post_ffw_norm_2);
        o.post_ffw_norm = lay.floats(w.post_ffw_norm);
        o.router = lay.floats(w.router);
        o.expert_scale = lay.floats(w.down_exps_scale);
        o.output_scale = w.output_scale;
        o.enc_output_scale = w.enc_output_scale;
        out.layers.push_back(o);
    }
    return out;
}

// ---- buffers ----------------------------------------------------------------------------------------------

AttentionShape attention_shape(const Config& c, int layer) {
    const LayerShape& l = c.layers[layer];
    return {c.n_head, l.n_head_kv, l.head_dim, l.global ? 0 : c.window};
}

int n_attention_split(const Config& c, int layer, int n_context) {
    const int n_key = c.layers[layer].global ? n_context : std::min(n_context, c.window - 1 + c.n_canvas);
    return std::clamp((n_key + 511) / 512, 1, 8);
}

template <class T>
Buffers<T> lay_out_buffers(const Config& c, const Room& room, Arena& arena) {
    const int64_t n = room.n_token, d = c.n_embd, n_pair = n * c.n_expert_used;
    int64_t q = 0, kv = 0, attention = 0;  // widest of all layers
    for (int l = 0; l < c.n_layer; l++) {
        const AttentionShape s = attention_shape(c, l);
        q = std::max<int64_t>(q, padded(s.n_head * s.head_dim));
        kv = std::max<int64_t>(kv, s.n_head_kv * s.head_dim);
        attention =
            std::max(attention, attention_scratch(c.n_canvas, s, n_attention_split(c, l, room.n_context)));
    }
    const int64_t half = c.max_head_dim() / 2;
    Buffers<T> b{};
    for (float** p : {&b.x, &b.h, &b.router_in, &b.dense, &b.o}) *p = arena.take<float>(n * d);
    for (T** p : {&b.in, &b.ffn_in, &b.expert_in}) *p = arena.take<T>(n * padded(c.n_embd));
    b.q = arena.take<float>(n * q);
    b.k = arena.take<float>(n * kv);
    b.v = arena.take<float>(n * kv);
    b.q_in = arena.take<T>(n * q);
    b.o_in = arena.take<T>(n * q);
    b.middle = arena.take<T>(n * padded(c.n_ff));
    for (int** p : {&b.chosen, &b.slot_of, &b.token_of}) *p = arena.take<int>(n_pair);
    b.weight = arena.take<float>(n_pair);
    b.first = arena.take<int>(c.n_expert + 1);
    b.slot_middle = arena.take<T>(n_pair * padded(c.n_ff_exp));
    b.slot_out = arena.take<float>(n_pair * d);
    for (float** p : {&b.cos, &b.sin, &b.cos_swa, &b.sin_swa}) *p = arena.take<float>(n * half);
    b.attention = arena.take<float>(attention);
    b.soft = arena.take<float>(soft_scratch(c.n_canvas, c.n_embd, c.n_vocab));
    b.z = arena.take<T>(int64_t{c.n_canvas} * vocab_stride(c.n_vocab));
    b.stats = arena.take<TileStats>(int64_t{c.n_canvas} * n_vocab_tile(c.n_vocab));
    b.live = arena.take<uint8_t>(n_vocab_tile(c.n_vocab));
    b.rows = arena.take<RowStats>(c.n_canvas);
    b.tokens = arena.take<int32_t>(c.n_canvas);
    b.argmax = arena.take<int32_t>(c.n_canvas);
    b.prompt = arena.take<int32_t>(n);
    b.given = arena.take<GivenTokens>(1);
    b.state = arena.take<LoopState>(1);
    return b;
}

template <class T>
std::vector<KvLayer<T>> lay_out_cache(const Config& c, const Room& room, Arena& arena) {
    std::vector<KvLayer<T>> out;
    for (const LayerShape& l : c.layers) {
        const int kept = l.global ? room.n_context : std::min(room.n_context, c.window - 1 + room.n_token);
        const int64_t n = int64_t{l.n_head_kv} * kept * l.head_dim;
        T* k = arena.take<T>(n);
        T* v = arena.take<T>(n);
        out.push_back({k, v, kept});
    }
    return out;
}

MemoryPlan plan_gpu(const Model& model, int n_context) {
    const Room room(model.config, {.n_context = n_context});
    Arena weights, cache, buffers;
    lay_out_weights<F16>(model, weights);
    lay_out_cache<F16>(model.config, room, cache);
    lay_out_buffers<F16>(model.config, room, buffers);
    return {weights.bytes(), cache.bytes(), buffers.bytes()};
}

template ModelWeights lay_out_weights<F16>(const Model&, Arena&);
template ModelWeights lay_out_weights<float>(const Model&, Arena&);
template Buffers<F16> lay_out_buffers(const Config&, const Room&, Arena&);
template Buffers<float> lay_out_buffers(const Config&, const Room&, Arena&);
template std::vector<KvLayer<F16>> lay_out_cache(const Config&, const Room&, Arena&);
template std::vector<KvLayer<float>> lay_out_cache(const Config&, const Room&, Arena&);

}  // namespace easel
