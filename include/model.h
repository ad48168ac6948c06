// model.h: every number and tensor of a DiffusionGemma, bound by name and checked against the file (SPEC 1,
// 4.2, 4.3). Nothing is copied but the small vectors: weights stay as blocks in the mapped file.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "gguf.h"
#include "sampler.h"

namespace easel {

// Rows of one type: row r is n_col values at data + r * row_bytes().
struct Matrix {
    Type type = Type::F32;
    const uint8_t* data = nullptr;
    int64_t n_row = 0, n_col = 0;

    explicit operator bool() const { return data; }
    int64_t stride() const { return row_bytes(type, n_col); }
};

// One matrix per expert: that of expert e is at first.data + e * expert_bytes. A view: gate and up may share
// a tensor.
struct ExpertMatrix {
    Matrix first;
    int64_t expert_bytes = 0;

    Matrix expert(int e) const {
        Matrix m = first;
        m.data += e * expert_bytes;
        return m;
    }
};

struct LayerShape {
    bool global = false;  // tokens attend to all earlier ones; else only to a sliding window
    int n_head_kv = 0, head_dim = 0;
};

struct Config {
    int n_layer = 0, n_embd = 0, n_head = 0, n_ff = 0;
    int n_ff_self_cond = 0;  // of the self-conditioning MLP; the published model has n_ff there
    int n_ff_exp = 0, n_expert = 0, n_expert_used = 0;
    int n_vocab = 0, n_canvas = 0, n_context = 0, window = 0;
    float rms_eps = 0, softcap = 0;
    double rope_theta = 0, rope_theta_swa = 0;  // of global and of sliding layers
    std::vector<LayerShape> layers;
    SamplerConfig sampler;  // the file's settings

    int max_head_dim() const;
};

struct Layer {
    LayerShape shape;
    std::vector<float> attn_norm, q_norm, k_norm, post_attention_norm;  // [n_embd] or [head_dim]
    Matrix q, k, v, o;  // q [n_head * head_dim, n_embd], k and v [n_head_kv * head_dim, n_embd],
                        // o [n_embd, n_head * head_dim]. Without v, V is the raw k projection
    std::vector<float> ffn_norm, post_ffw_norm_1;
    Matrix gate, up, down;  // dense branch: [n_ff, n_embd] twice, [n_embd, n_ff]
    std::vector<float> router_scale, pre_ffw_norm_2, post_ffw_norm_2;
    Matrix router;                               // [n_expert, n_embd]
    ExpertMatrix gate_exps, up_exps, down_exps;  // [n_ff_exp, n_embd] twice, [n_embd, n_ff_exp]
    std::vector<float> down_exps_scale;          // [n_expert]
    std::vector<float> post_ffw_norm;
    float output_scale = 1, enc_output_scale = 1;  // in a denoise and in an encode pass
};

struct Model {
    Model() = default;  // empty, for synthetic_model() to fill
    // Checks every key and tensor; Error with the key or tensor, what was expected and what was found.
    explicit Model(std::shared_ptr<const Gguf> file);

    std::shared_ptr<const Gguf> file;
    Config config;
    Matrix token_embd;  // [n_vocab, n_embd]
    Matrix output;      // [n_vocab, n_embd]: token_embd, unless the file has an output.weight
    std::vector<float> output_norm, self_cond_norm;
    Matrix self_cond_gate, self_cond_up, self_cond_down;
    std::vector<float> rope_freqs;  // [head_dim / 2] divisors of the angle on global layers
    std::vector<Layer> layers;
    std::vector<std::string> warnings;          // oddities of the file that do not prevent running it
    std::vector<std::vector<uint8_t>> storage;  // a synthetic model's weights

    // Bytes of all weights as stored, and the number of parameters (of a file's model only).
    int64_t weight_bytes() const;
    int64_t n_parameters() const;
};

// A model of the given shape with random weights of the types that a file of `type` has (see plan_types()),
// made in memory: for timing, where only shapes and types matter. Shapes known: "toy" (for tests), "mid"
// (0.58 B parameters, for CPUs), "26b-a4b" (the published model; its experts share one expert's memory).
// router_skew: the expert of rank r gets a share of the tokens in proportion to r^-router_skew, at most 45 %;
// 0: all have the same.
std::shared_ptr<const Model> synthetic_model(std::string_view shape, std::string_view type,
                                             double router_skew = 0);
// The same without weights, which must not be read: for tests of memory plans.
std::shared_ptr<const Model> synthetic_shapes(std::string_view shape, std::string_view type);

// The model that is part of the program.
std::span<const uint8_t> demo_model();

}  // namespace easel
