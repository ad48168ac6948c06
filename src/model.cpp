// model.cpp: binds a file's keys and tensors to Config and Layer (SPEC 4.2, 4.3). Called by the engine.
#include "model.h"

#include <algorithm>
#include <cstring>

#include "check.h"
#include "text.h"

namespace easel {

namespace {

// Reads keys and tensors of one file and says precisely what does not fit.
struct Binder {
    const Gguf& file;
    std::string arch;

    std::string key(const char* tail) const { return arch + "." + tail; }

    int integer(const std::string& name, int64_t low, int64_t high) const {
        const int64_t v = file.integer(name);
        require(v >= low && v <= high, "{}: key {} is {}, expected {} to {}", file.name(), name, v, low,
                high);
        return static_cast<int>(v);
    }
    double number(const std::string& name, double low, double high) const {
        const double v = file.number(name);
        require(v >= low && v <= high, "{}: key {} is {}, expected {} to {}", file.name(), name, v, low,
                high);
        return v;
    }
    // One number a layer; a scalar stands for all.
    std::vector<int64_t> per_layer(const std::string& name, int n_layer) const {
        std::vector<int64_t> v = file.integers(name);
        if (v.size() == 1) v.resize(n_layer, v[0]);
        require(v.size() == size_t(n_layer), "{}: key {} has {} items, expected 1 or one per layer ({})",
                file.name(), name, v.size(), n_layer);
        return v;
    }

    const Tensor& tensor(const std::string& name, std::initializer_list<int64_t> ne) const {
        const Tensor* t = file.find_tensor(name);
        const std::string expected = fmt::format("[{}]", fmt::join(ne.begin(), ne.end(), ", "));
        require(t, "{}: tensor {} is missing, expected shape {}", file.name(), name, expected);
        std::array<int64_t, 4> full{1, 1, 1, 1};
        std::copy(ne.begin(), ne.end(), full.begin());
        require(t->ne == full, "{}: tensor {} has shape {}, expected {}", file.name(), name, t->shape(),
                expected);
        return *t;
    }
    Matrix matrix(const std::string& name, int64_t n_row, int64_t n_col) const {
        const Tensor& t = tensor(name, {n_col, n_row});
        return {t.type, t.data, n_row, n_col};
    }
    ExpertMatrix experts(const std::string& name, int n_expert, int64_t n_row, int64_t n_col) const {
        const Tensor& t = tensor(name, {n_col, n_row, n_expert});
        const Matrix first{t.type, t.data, n_row, n_col};
        return {first, n_row * first.stride()};
    }
    std::vector<float> vector(const std::string& name, int64_t n) const {
        const Tensor& t = tensor(name, {n});
        std::vector<float> v(n);
        to_float(t.type, t.data, v.data(), n);
        for (float x : v)
            require(std::isfinite(x), "{}: tensor {} holds {}, expected finite numbers", file.name(), name,
                    x);
        return v;
    }
};

// Which layers are global: bools (true = sliding), one per layer or one for all; or a number n: every n-th is
// global.
std::vector<bool> global_layers(const Binder& b, int n_layer) {
    const std::string name = b.key("attention.sliding_window_pattern");
    std::vector<int64_t> v = b.file.integers(name);
    const Value& value = *b.file.find(name);
    std::vector<bool> global(n_layer);
    if (value.is_number() && value.type != ValueType::Bool) {
        require(v[0] >= 0 && v[0] <= n_layer, "{}: key {} is {}, expected 0 to {}", b.file.name(), name, v[0],
                n_layer);
        for (int l = 0; l < n_layer; l++) global[l] = v[0] > 0 && l % v[0] == v[0] - 1;
        return global;
    }
    if (value.is_number()) v.resize(n_layer, v[0]);
    require(v.size() == size_t(n_layer), "{}: key {} has {} items, expected one per layer ({})",
            b.file.name(), name, v.size(), n_layer);
    for (int l = 0; l < n_layer; l++) global[l] = !v[l];
    return global;
}

SamplerConfig read_sampler(const Binder& b) {
    SamplerConfig s;
    const Gguf& f = b.file;
    if (f.find("diffusion.eb_max_steps")) s.max_steps = b.integer("diffusion.eb_max_steps", 1, 100000);
    if (f.find("diffusion.eb_stability_threshold"))
        s.stability = b.integer("diffusion.eb_stability_threshold", 0, 100000);
    const auto real = [&](const char* name, float fallback, double low, double high) {
        return f.find(name) ? static_cast<float>(b.number(name, low, high)) : fallback;
    };
    s.t_min = real("diffusion.eb_t_min", s.t_min, 1e-3, 100);
    s.t_max = real("diffusion.eb_t_max", std::max(s.t_max, s.t_min), s.t_min, 100);
    s.entropy_bound = real("diffusion.eb_entropy_bound", s.entropy_bound, 0, 1e9);
    s.confidence = real("diffusion.eb_confidence_threshold", s.confidence, 0, 1e9);
    return s;
}

Config read_config(const Binder& b) {
    const int kMany = 1 << 20;  // far above any model, so that the product of two sizes cannot overflow
    Config c;
    c.n_layer = b.integer(b.key("block_count"), 1, 4096);
    c.n_embd = b.integer(b.key("embedding_length"), 1, kMany);
    c.n_ff = b.integer(b.key("feed_forward_length"), 1, kMany);
    c.n_ff_exp = b.integer(b.key("expert_feed_forward_length"), 1, kMany);
    c.n_expert = b.integer(b.key("expert_count"), 1, 65536);
    c.n_expert_used = b.integer(b.key("expert_used_count"), 1, c.n_expert);
    c.n_context = b.integer(b.key("context_length"), 1, INT32_MAX / 2);
    c.n_canvas = b.integer("diffusion.canvas_length", 1, std::min(c.n_context, 65536));
    c.rms_eps = static_cast<float>(b.number(b.key("attention.layer_norm_rms_epsilon"), 0, 1));
    c.softcap = static_cast<float>(b.number(b.key("final_logit_softcapping"), 1e-3, 1e6));
    c.rope_theta = b.number(b.key("rope.freq_base"), 1, 1e12);
    c.sampler = read_sampler(b);

    const std::vector<bool> global = global_layers(b, c.n_layer);
    const bool any_sliding = std::find(global.begin(), global.end(), false) != global.end();
    const bool any_global = std::find(global.begin(), global.end(), true) != global.end();
    int head_dim = 0, head_dim_swa = 0;
    const auto read_head_dim = [&](const char* k_name, const char* v_name, const char* rope_name) {
        const int n = b.integer(b.key(k_name), 2, 65536);
        require(n % 2 == 0, "{}: key {} is {}, expected an even number", b.file.name(), b.key(k_name), n);
        const int64_t v = b.file.integer_or(b.key(v_name), n), r = b.file.integer_or(b.key(rope_name), n);
        require(v == n, "{}: key {} is {}, expected {} as {}", b.file.name(), b.key(v_name), v, n,
                b.key(k_name));
        require(r == n, "{}: key {} is {}, expected {} as {}", b.file.name(), b.key(rope_name), r, n,
                b.key(k_name));
        return n;
    };
    if (any_global)
        head_dim = read_head_dim("attention.key_length", "attention.value_length", "rope.dimension_count");
    if (any_sliding) {
        head_dim_swa = read_head_dim("attention.key_length_swa", "attention.value_length_swa",
                                     "rope.dimension_count_swa");
        c.window = b.integer(b.key("attention.sliding_window"), 1, INT32_MAX / 2);
        c.rope_theta_swa = b.number(b.key("rope.freq_base_swa"), 1, 1e12);
    }

    const std::vector<int64_t> n_head = b.per_layer(b.key("attention.head_count"), c.n_layer);
    const std::vector<int64_t> n_head_kv = b.per_layer(b.key("attention.head_count_kv"), c.n_layer);
    for (int l = 0; l < c.n_layer; l++) {
        require(n_head[l] == n_head[0] && n_head[l] >= 1 && n_head[l] <= 4096,
                "{}: key {} is {} for layer {}, expected the same number, 1 to 4096, for all", b.file.name(),
                b.key("attention.head_count"), n_head[l], l);
        require(n_head_kv[l] >= 1 && n_head_kv[l] <= n_head[l] && n_head[l] % n_head_kv[l] == 0,
                "{}: key {} is {} for layer {}, expected a divisor of the {} heads", b.file.name(),
                b.key("attention.head_count_kv"), n_head_kv[l], l, n_head[l]);
        c.layers.push_back({global[l], static_cast<int>(n_head_kv[l]), global[l] ? head_dim : head_dim_swa});
    }
    c.n_head = static_cast<int>(n_head[0]);

    for (const char* name : {"attention.shared_kv_layers", "embedding_length_per_layer_input"})
        require(b.file.integer_or(b.key(name), 0) == 0, "{}: key {} is {}, expected 0", b.file.name(),
                b.key(name), b.file.integer_or(b.key(name), 0));
    const Tensor* embd = b.file.find_tensor("token_embd.weight");
    require(embd, "{}: tensor token_embd.weight is missing", b.file.name());
    require(embd->ne[1] >= 2 && embd->ne[1] <= (1 << 28),
            "{}: tensor token_embd.weight has shape {}, expected {} x n_vocab", b.file.name(), embd->shape(),
            c.n_embd);
    c.n_vocab = static_cast<int>(embd->ne[1]);
    return c;
}

Layer read_layer(const Binder& b, const Config& c, int l) {
    const auto name = [&](const char* tail) { return fmt::format("blk.{}.{}", l, tail); };
    Layer y;
    y.shape = c.layers[l];
    const int64_t hd = y.shape.head_dim, n_q = c.n_head * hd, n_kv = y.shape.n_head_kv * hd, d = c.n_embd;
    y.attn_norm = b.vector(name("attn_norm.weight"), d);
    y.q_norm = b.vector(name("attn_q_norm.weight"), hd);
    y.k_norm = b.vector(name("attn_k_norm.weight"), hd);
    y.post_attention_norm = b.vector(name("post_attention_norm.weight"), d);
    y.q = b.matrix(name("attn_q.weight"), n_q, d);
    y.k = b.matrix(name("attn_k.weight"), n_kv, d);
    // Global layers of the published model have no v projection.
    if (!y.shape.global || b.file.find_tensor(name("attn_v.weight")))
        y.v = b.matrix(name("attn_v.weight"), n_kv, d);
    y.o = b.matrix(name("attn_output.weight"), d, n_q);

    y.ffn_norm = b.vector(name("ffn_norm.weight"), d);
    y.post_ffw_norm_1 = b.vector(name("post_ffw_norm_1.weight"), d);
    y.gate = b.matrix(name("ffn_gate.weight"), c.n_ff, d);
    y.up = b.matrix(name("ffn_up.weight"), c.n_ff, d);
    y.down = b.matrix(name("ffn_down.weight"), d, c.n_ff);

    y.router = b.matrix(name("ffn_gate_inp.weight"), c.n_expert, d);
    y.router_scale = b.vector(name("ffn_gate_inp.scale"), d);
    y.pre_ffw_norm_2 = b.vector(name("pre_ffw_norm_2.weight"), d);
    y.post_ffw_norm_2 = b.vector(name("post_ffw_norm_2.weight"), d);
    if (b.file.find_tensor(name("ffn_gate_exps.weight"))) {
        y.gate_exps = b.experts(name("ffn_gate_exps.weight"), c.n_expert, c.n_ff_exp, d);
        y.up_exps = b.experts(name("ffn_up_exps.weight"), c.n_expert, c.n_ff_exp, d);
    } else {  // one tensor: an expert's gate rows, then its up rows
        const ExpertMatrix both =
            b.experts(name("ffn_gate_up_exps.weight"), c.n_expert, 2 * int64_t{c.n_ff_exp}, d);
        y.gate_exps = y.up_exps = both;
        y.gate_exps.first.n_row = y.up_exps.first.n_row = c.n_ff_exp;
        y.up_exps.first.data += c.n_ff_exp * both.first.stride();
    }
    y.down_exps = b.experts(name("ffn_down_exps.weight"), c.n_expert, d, c.n_ff_exp);
    y.down_exps_scale = b.vector(name("ffn_down_exps.scale"), c.n_expert);
    y.post_ffw_norm = b.vector(name("post_ffw_norm.weight"), d);
    y.output_scale = b.vector(name("layer_output_scale.weight"), 1)[0];
    y.enc_output_scale = y.output_scale;  // the dialect of #24427 has one scalar for both passes (SPEC 4.5)
    if (b.file.find_tensor(name("enc_layer_output_scale.weight")))
        y.enc_output_scale = b.vector(name("enc_layer_output_scale.weight"), 1)[0];
    return y;
}

}  // namespace

int Config::max_head_dim() const {
    int n = 0;
    for (const LayerShape& l : layers) n = std::max(n, l.head_dim);
    return n;
}

Model::Model(std::shared_ptr<const Gguf> source) : file(std::move(source)) {
    const std::string arch(file->string("general.architecture"));
    require(arch == "diffusion-gemma" || arch == "diffusion-gemma4",
            "{}: architecture is \"{}\", easel reads \"diffusion-gemma\"", file->name(), shown(arch));
    const Binder b{*file, arch};
    config = read_config(b);
    const Config& c = config;

    token_embd = b.matrix("token_embd.weight", c.n_vocab, c.n_embd);
    output = file->find_tensor("output.weight") ? b.matrix("output.weight", c.n_vocab, c.n_embd) : token_embd;
    output_norm = b.vector("output_norm.weight", c.n_embd);
    const char* dialect = "self_cond_norm.weight";  // of #24427 (SPEC 4.5)
    self_cond_norm = b.vector(file->find_tensor(dialect) ? dialect : "self_cond_pre_norm.weight", c.n_embd);
    const Tensor* gate = file->find_tensor("self_cond_gate.weight");
    const int64_t n_ff = gate ? gate->ne[1] : c.n_ff;
    self_cond_gate = b.matrix("self_cond_gate.weight", n_ff, c.n_embd);
    self_cond_up = b.matrix("self_cond_up.weight", n_ff, c.n_embd);
    self_cond_down = b.matrix("self_cond_down.weight", c.n_embd, n_ff);
    config.n_ff_self_cond = static_cast<int>(n_ff);

    int n_different = 0;
    for (int l = 0; l < c.n_layer; l++) {
        layers.push_back(read_layer(b, c, l));
        n_different += layers[l].output_scale != layers[l].enc_output_scale;
    }
    if (n_different)  // equal in the published model (SPEC 2.7)
        warnings.push_back(fmt::format("{} of {} layers have different scalars for denoise and encode",
                                       n_different, c.n_layer));
    for (const LayerShape& l : c.layers) {
        if (!l.global || !rope_freqs.empty()) continue;
        rope_freqs.assign(l.head_dim / 2, 1.0f);
        if (file->find_tensor("rope_freqs.weight"))
            rope_freqs = b.vector("rope_freqs.weight", l.head_dim / 2);
        for (float f : rope_freqs)
            require(f > 0, "{}: tensor rope_freqs.weight holds {}, expected positive divisors", file->name(),
                    f);
    }
}

int64_t Model::weight_bytes() const {
    int64_t n = 0;
    for (const auto& rows : storage) n += static_cast<int64_t>(rows.size());
    if (!file) return n;
    for (const Tensor& t : file->tensors()) n += static_cast<int64_t>(t.bytes);
    return n;
}

int64_t Model::n_parameters() const {
    int64_t n = 0;
    for (const Tensor& t : file->tensors()) n += t.n_values();
    return n;
}

}  // namespace easel
