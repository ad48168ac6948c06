// forward.cpp: the forward pass on a device; see forward.h. First the order of its ops, then what each reads
// and writes. Host code: the kernels are behind ops.h.
#include "forward.h"

#include <utility>

namespace easel {

template <class T>
void Forward<T>::encode(Stream s, const int32_t* tokens, int n) {
    embed(s, b_.x, tokens, n, w_.embd);  // no norm here: only the canvas has one
    layers(s, {Mask::Causal, n});
    advance(s, n, b_.state);
}

template <class T>
void Forward<T>::denoise(Stream s, float* logits) {
    const int n = c_.n_canvas;
    mark(s, Part::Embed);
    embed(s, b_.x, b_.tokens, n, w_.embd);
    mark(s, Part::SoftEmbedding);
    soft_embedding(s);
    mark(s, Part::SelfCond);
    gate_up(s, b_.middle, b_.in, w_.self_cond_gate_up, n);
    linear(s, b_.dense, b_.middle, w_.self_cond_down, n);
    mark(s, Part::CanvasNorm);
    canvas_norm(s);
    layers(s, {Mask::Canvas, n});
    mark(s, Part::Head);
    lm_head(s, logits);
}

// All layers over the rows of x; b_.in is rms(x) * output_norm afterwards (canvas only).
template <class T>
void Forward<T>::layers(Stream s, Pass pass) {
    const bool causal = pass.mask == Mask::Causal;
    rotations(s, pass);
    rms_norm(s, b_.in, b_.x, w_.layers[0].attn_norm, pass.n, c_.n_embd, c_.rms_eps);
    experts.begin(s, causal ? c_.n_layer - 1 : c_.n_layer);
    for (int l = 0; l < c_.n_layer; l++) {
        mark(s, Part::Qkv);
        project_qkv(s, l, pass);
        mark(s, Part::QkvNorm);
        qkv_norm(s, l, pass);
        if (keys_only(l, pass)) break;
        mark(s, Part::Attention);
        attention(s, l, pass);
        mark(s, Part::AttentionOut);
        linear(s, b_.o, b_.o_in, w_.layers[l].o, pass.n, output_splits(l, pass));
        mark(s, Part::PostAttention);
        post_attention(s, l, pass);
        feed_forward(s, l, pass);
        mark(s, Part::LayerEnd);
        layer_end(s, l, pass);
    }
}

// All that an encode pass leaves is K and V, so it ends with those of the last layer.
template <class T>
bool Forward<T>::keys_only(int layer, Pass pass) const {
    return pass.mask == Mask::Causal && layer == c_.n_layer - 1;
}

// The products for K and V would leave most of a GPU idle; beside that for Q they cost little.
template <class T>
void Forward<T>::project_qkv(Stream s, int layer, Pass pass) {
    const LayerWeights& w = w_.layers[layer];
    const int n_split = qkv_splits(layer, pass);
    linear(k_side_.fork(s), b_.k, b_.in, w.k, pass.n, n_split);
    if (w.v.data) linear(v_side_.fork(s), b_.v, b_.in, w.v, pass.n, n_split);
    if (!keys_only(layer, pass)) linear(s, b_.q, b_.in, w.q, pass.n, n_split);
    k_side_.join(s);
    if (w.v.data) v_side_.join(s);
}

// The dense branch into b_.dense, the experts' outputs into b_.slot_out; beside each other, unless parts are
// timed.
template <class T>
void Forward<T>::feed_forward(Stream s, int layer, Pass pass) {
    const LayerWeights& w = w_.layers[layer];
    const Stream dense = marks ? s : dense_side_.fork(s);
    mark(s, Part::DenseUp);
    gate_up(dense, b_.middle, b_.ffn_in, w.gate_up, pass.n);
    mark(s, Part::DenseDown);
    linear(dense, b_.dense, b_.middle, w.down, pass.n);
    mark(s, Part::Router);
    route(s, layer, pass);
    permute(s, pass);
    mark(s, Part::ExpertUp);
    experts.need(s, layer);
    expert_gate_up(s, layer, pass);
    mark(s, Part::ExpertDown);
    expert_down(s, layer, pass);
    experts.used(s, layer);
    if (!marks) dense_side_.join(s);
}

// ---- ops of the canvas ------------------------------------------------------------------------------------

template <class T>
void Forward<T>::soft_embedding(Stream s) {
    easel::soft_embedding(s, b_.in, b_.z, b_.live, w_.embd, w_.self_cond_norm, c_.rms_eps, c_.n_canvas,
                          soft_splits(c_.n_canvas, c_.n_embd, room_.n_sm), b_.soft, b_.state);
}

template <class T>
void Forward<T>::canvas_norm(Stream s) {
    easel::canvas_norm(s, b_.x, b_.dense, c_.n_canvas, c_.n_embd, c_.rms_eps, b_.state);
}

template <class T>
void Forward<T>::lm_head(Stream s, float* logits) {
    easel::lm_head(s, b_.z, b_.stats, b_.live, logits, b_.in, w_.output, c_.n_canvas, c_.softcap, b_.state);
}

template <class T>
void Forward<T>::sample(Stream s) {
    easel::sample(s, b_.rows, b_.z, b_.live, b_.stats, c_.n_canvas, c_.n_vocab, b_.given, b_.state);
}

// ---- ops of a layer ---------------------------------------------------------------------------------------

// One table of angles per kind of layer, global and sliding.
template <class T>
void Forward<T>::rotations(Stream s, Pass pass) {
    bool made[2] = {};
    for (const LayerShape& l : c_.layers)
        if (!std::exchange(made[l.global], true))
            rotation(s, l.global ? b_.cos : b_.cos_swa, l.global ? b_.sin : b_.sin_swa,
                     l.global ? w_.freq : w_.freq_swa, pass.n, l.head_dim / 2, b_.state);
}

template <class T>
int Forward<T>::qkv_splits(int layer, Pass pass) const {
    const LayerWeights& w = w_.layers[layer];
    const int n_row = w.q.n_row + w.k.n_row + (w.v.data ? w.v.n_row : 0);
    return pass.mask == Mask::Canvas ? linear_splits(n_row, pass.n, room_.n_sm) : 1;
}
template <class T>
int Forward<T>::output_splits(int layer, Pass pass) const {
    const int n_row = w_.layers[layer].o.n_row;
    return pass.mask == Mask::Canvas ? linear_splits(n_row, pass.n, room_.n_sm) : 1;
}

template <class T>
void Forward<T>::qkv_norm(Stream s, int layer, Pass pass) {
    const LayerWeights& w = w_.layers[layer];
    const bool global = w.shape.window == 0;
    AttentionShape shape = w.shape;
    if (keys_only(layer, pass)) shape.n_head = 0;
    easel::qkv_norm<T>(s, {.q_out = b_.q_in,
                           .cache = cache_[layer],
                           .q = b_.q,
                           .k = b_.k,
                           .v = w.v.data ? b_.v : b_.k,
                           .n_split = qkv_splits(layer, pass),
                           .q_norm = w.q_norm,
                           .k_norm = w.k_norm,
                           .cos = global ? b_.cos : b_.cos_swa,
                           .sin = global ? b_.sin : b_.sin_swa,
                           .n_token = pass.n,
                           .shape = shape,
                           .eps = c_.rms_eps,
                           .state = b_.state});
}

template <class T>
void Forward<T>::attention(Stream s, int layer, Pass pass) {
    const KvSplits splits = pass.mask == Mask::Canvas ? kv_splits(c_, layer, room_) : KvSplits{};
    easel::attention(s, b_.o_in, b_.q_in, cache_[layer], pass.n, w_.layers[layer].shape, pass.mask, splits,
                     b_.attention, b_.state);
}

template <class T>
void Forward<T>::post_attention(Stream s, int layer, Pass pass) {
    const LayerWeights& w = w_.layers[layer];
    easel::post_attention<T>(s, {.h = b_.h,
                                 .ffn_in = b_.ffn_in,
                                 .expert_in = b_.expert_in,
                                 .router_in = b_.router_in,
                                 .x = b_.x,
                                 .o = b_.o,
                                 .n_split = output_splits(layer, pass),
                                 .post_attention_norm = w.post_attention_norm,
                                 .ffn_norm = w.ffn_norm,
                                 .pre_ffw_norm_2 = w.pre_ffw_norm_2,
                                 .router_scale = w.router_scale,
                                 .n_row = pass.n,
                                 .n = c_.n_embd,
                                 .eps = c_.rms_eps});
}

template <class T>
void Forward<T>::route(Stream s, int layer, Pass pass) {
    const LayerWeights& w = w_.layers[layer];
    easel::route(s, b_.chosen, b_.weight, b_.router_in, w.router, w.expert_scale, pass.n, c_.n_embd,
                 c_.n_expert, c_.n_expert_used, b_.routing);
}

template <class T>
void Forward<T>::permute(Stream s, Pass pass) {
    easel::permute(s, b_.slot_of, b_.token_of, b_.groups, b_.chosen, pass.n, c_.n_expert_used, c_.n_expert,
                   expert_group<T>(c_.n_expert, pass.n * c_.n_expert_used));
}

template <class T>
void Forward<T>::expert_gate_up(Stream s, int layer, Pass pass) {
    easel::expert_gate_up(s, b_.slot_middle, b_.expert_in, w_.layers[layer].expert_gate_up, b_.token_of,
                          b_.groups, pass.n * c_.n_expert_used);
}

template <class T>
void Forward<T>::expert_down(Stream s, int layer, Pass pass) {
    easel::expert_down(s, b_.slot_out, b_.slot_middle, w_.layers[layer].expert_down, b_.groups,
                       pass.n * c_.n_expert_used);
}

template <class T>
void Forward<T>::layer_end(Stream s, int layer, Pass pass) {
    const LayerWeights& w = w_.layers[layer];
    const bool last = layer == c_.n_layer - 1;
    easel::layer_end<T>(s, {.x = b_.x,
                            .next_in = b_.in,
                            .h = b_.h,
                            .dense = b_.dense,
                            .slot_out = b_.slot_out,
                            .slot_of = b_.slot_of,
                            .weight = b_.weight,
                            .n_used = c_.n_expert_used,
                            .post_ffw_norm_1 = w.post_ffw_norm_1,
                            .post_ffw_norm_2 = w.post_ffw_norm_2,
                            .post_ffw_norm = w.post_ffw_norm,
                            .scale = pass.mask == Mask::Canvas ? w.output_scale : w.enc_output_scale,
                            .next_norm = last ? w_.output_norm : w_.layers[layer + 1].attn_norm,
                            .n_row = pass.n,
                            .n = c_.n_embd,
                            .eps = c_.rms_eps});
}

template class Forward<F16>;
template class Forward<float>;

}  // namespace easel
