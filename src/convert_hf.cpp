// convert_hf.cpp: reads a Hugging Face DiffusionGemma folder for convert.cpp: config.json and
// generation_config.json become keys (SPEC 4.2), the checkpoint's tensors get their GGUF names and are
// checked against the config (SPEC 4.3).
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>

#include "check.h"
#include "convert_source.h"
#include "json_depth.h"
#include "safetensors.h"
#include "whole_file.h"

namespace easel {

namespace fs = std::filesystem;

bool is_there(const fs::path& path) {
    return fs::exists(fs::symlink_status(path));
}

std::string read_text(const std::string& path, const char* kind) {
    std::error_code error;
    const bool regular = fs::is_regular_file(path, error);  // a pipe would hang
    require(!error, "{}: cannot be read, expected a {} file: {}", path, kind, error.message());
    require(regular, "{}: is not a regular file, expected a {} file", path, kind);
    return read_file(path);
}

nlohmann::json read_json(const std::string& path) {
    const std::string text = read_text(path, "JSON");
    try {
        check_json(text, path);
        return nlohmann::json::parse(text);
    } catch (const nlohmann::json::exception& e) {
        const std::string_view what = e.what();  // "[json.exception.parse_error.101] parse error at ..."
        fail("{}: not JSON: {}", path, what.substr(std::min(what.find("] ") + 2, what.size())));
    }
}

namespace {

using nlohmann::json;

// One object of a JSON file; `where` names it in messages. A member that is null counts as absent.
struct Section {
    const json& object;
    std::string where;  // "dir/config.json: text_config."

    const json* find(const char* key) const {
        const auto it = object.find(key);
        return it == object.end() || it->is_null() ? nullptr : &*it;
    }
    const json& need(const char* key) const {
        const json* value = find(key);
        require(value, "{}{} is missing", where, key);
        return *value;
    }
    // A whole number of at least `least`, at most 2^31 - 1: a count or an id.
    int64_t integer(const char* key, int64_t least = 1) const {
        const json& value = need(key);
        const bool whole = value.is_number_integer() ||
                           (value.is_number_float() && value == std::floor(value.get<double>()));
        const double number = value.is_number() ? value.get<double>() : NAN;
        require(whole && number >= double(least) && number <= double(INT32_MAX),
                "{}{} is {}, expected a whole number from {} to {}", where, key, value.dump(), least,
                INT32_MAX);
        return static_cast<int64_t>(number);
    }
    float number(const char* key, double least) const {
        const json& value = need(key);
        require(value.is_number() && value.get<double>() >= least && std::isfinite(value.get<float>()),
                "{}{} is {}, expected a number from {}", where, key, value.dump(), least);
        return value.get<float>();
    }
    float number_or(const char* key, double least, float absent) const {
        return find(key) ? number(key, least) : absent;
    }
    Section section(const char* key) const {
        const json& value = need(key);
        require(value.is_object(), "{}{} is {}, expected an object", where, key, value.type_name());
        return {value, where + key + "."};
    }
    // Refuses any value but `supported`. Absent is fine.
    void only(const char* key, const json& supported) const {
        const json* value = find(key);
        require(!value || *value == supported, "{}{} is {}, easel supports only {}", where, key,
                value ? value->dump() : "", supported.dump());
    }
};

// The numbers of config.json that tensors and keys depend on.
struct Shape {
    int64_t n_vocab, n_embd, n_ff, n_layer, n_head, n_expert, n_expert_used, n_ff_exp, window, context,
        canvas;
    std::vector<bool> sliding;  // [n_layer]
    std::vector<int32_t> n_head_kv;
    int64_t head_dim_swa, head_dim;  // of sliding and of global layers
    float rms_eps, softcap, rope_theta, rope_theta_swa, rotary_factor;
};

// Refuses what a text model can have and easel does not compute.
void refuse_unsupported(const Section& top, const Section& text) {
    top.only("tie_word_embeddings", true);
    text.only("tie_word_embeddings", true);
    text.only("hidden_activation", "gelu_pytorch_tanh");
    text.only("attention_bias", false);
    text.only("num_kv_shared_layers", 0);
    text.only("hidden_size_per_layer_input", 0);
    text.only("use_double_wide_mlp", false);
    text.only("enable_moe_block", true);
    text.only("attention_k_eq_v", true);
    text.only("use_bidirectional_attention", "vision");
}

// Fills sliding, n_head_kv and the two head dimensions. Two dialects say how the global layers differ:
// global_head_dim and num_global_key_value_heads, or (transformers >= 5.24) per_layer_config {"5": {head_dim,
// num_key_value_heads}}.
void read_layers(const Section& text, Shape& s) {
    s.sliding.resize(s.n_layer);
    const json* types = text.find("layer_types");
    require(!types || (types->is_array() && int64_t(types->size()) == s.n_layer),
            "{}layer_types has {} entries, expected num_hidden_layers = {}", text.where,
            types ? types->size() : 0, s.n_layer);
    for (int64_t l = 0; l < s.n_layer; l++) {
        s.sliding[l] = types ? (*types)[l] == "sliding_attention" : l % 6 != 5;
        require(!types || s.sliding[l] || (*types)[l] == "full_attention",
                "{}layer_types[{}] is {}, expected sliding_attention or full_attention", text.where, l,
                types ? (*types)[l].dump() : "");
    }
    s.sliding.back() = false;  // transformers forces the last layer to be global

    const bool per_layer = text.find("per_layer_config");
    const int64_t head_dim = text.integer("head_dim"), n_head_kv = text.integer("num_key_value_heads");
    int64_t global_dim = head_dim, global_kv = n_head_kv;
    if (!per_layer) {
        global_dim = text.find("global_head_dim") ? text.integer("global_head_dim") : 512;
        if (text.find("num_global_key_value_heads")) global_kv = text.integer("num_global_key_value_heads");
    }
    s.head_dim = s.head_dim_swa = 0;
    for (int64_t l = 0; l < s.n_layer; l++) {
        int64_t dim = s.sliding[l] ? head_dim : global_dim, kv = s.sliding[l] ? n_head_kv : global_kv;
        const std::string key = std::to_string(l);
        if (per_layer && text.section("per_layer_config").find(key.c_str())) {
            const Section layer = text.section("per_layer_config").section(key.c_str());
            for (const auto& [name, value] : layer.object.items())
                require(name == "head_dim" || name == "num_key_value_heads",
                        "{}{} is not supported, expected head_dim or num_key_value_heads", layer.where, name);
            if (layer.find("head_dim")) dim = layer.integer("head_dim");
            if (layer.find("num_key_value_heads")) kv = layer.integer("num_key_value_heads");
        }
        require(s.n_head % kv == 0,
                "{}num_attention_heads = {} is not a multiple of the {} key-value heads of layer {}",
                text.where, s.n_head, kv, l);
        int64_t& shared = s.sliding[l] ? s.head_dim_swa : s.head_dim;
        require((shared == 0 || shared == dim) && dim % 2 == 0,
                "{}layer {} has head_dim {}, expected an even number, the same for all {} layers", text.where,
                l, dim, s.sliding[l] ? "sliding" : "global");
        shared = dim;
        s.n_head_kv.push_back(static_cast<int32_t>(kv));
    }
    if (s.head_dim_swa == 0) s.head_dim_swa = head_dim;  // no sliding layer
}

void read_rope(const Section& text, Shape& s) {
    s.rope_theta = 1e6f;
    s.rope_theta_swa = 1e4f;
    s.rotary_factor = 0.25f;
    if (!text.find("rope_parameters")) return;
    const Section rope = text.section("rope_parameters");
    const Section global = rope.section("full_attention");
    s.rope_theta = global.number("rope_theta", 1);
    s.rotary_factor = global.number_or("partial_rotary_factor", 0, 1.0f);
    require(s.rotary_factor <= 1, "{}partial_rotary_factor is {}, expected at most 1", global.where,
            s.rotary_factor);
    // The plain kind divides by the rotated width instead of the whole: the same only when all of it rotates.
    if (s.rotary_factor < 1) global.only("rope_type", "proportional");
    if (global.find("rope_type") && global.need("rope_type") != "default")
        global.only("rope_type", "proportional");
    global.only("factor", 1.0);
    if (!rope.find("sliding_attention")) return;
    const Section sliding = rope.section("sliding_attention");
    s.rope_theta_swa = sliding.number("rope_theta", 1);
    sliding.only("rope_type", "default");
    sliding.only("partial_rotary_factor", 1.0);
    sliding.only("factor", 1.0);
}

Shape read_shape(const Section& top) {
    const Section text = top.section("text_config");
    refuse_unsupported(top, text);
    Shape s{};
    s.n_vocab = text.integer("vocab_size");
    s.n_embd = text.integer("hidden_size");
    s.n_ff = text.integer("intermediate_size");
    s.n_layer = text.integer("num_hidden_layers");
    s.n_head = text.integer("num_attention_heads");
    s.n_expert = text.integer("num_experts");
    s.n_expert_used = text.integer("top_k_experts");
    s.n_ff_exp = text.integer("moe_intermediate_size");
    s.window = text.integer("sliding_window");
    s.context = text.integer("max_position_embeddings");
    s.canvas = top.integer("canvas_length");
    s.rms_eps = text.number_or("rms_norm_eps", 0, 1e-6f);
    s.softcap = text.number_or("final_logit_softcapping", 0, 30.0f);
    require(s.n_layer <= 10000, "{}num_hidden_layers is {}, expected at most 10000", text.where, s.n_layer);
    require(s.n_expert_used <= s.n_expert, "{}top_k_experts is {}, expected at most num_experts = {}",
            text.where, s.n_expert_used, s.n_expert);
    read_layers(text, s);
    read_rope(text, s);
    return s;
}

uint32_t u32(int64_t n) {
    return static_cast<uint32_t>(n);
}

void add_shape_keys(const Shape& s, KeyValues& keys) {
    const auto add = [&](const char* key, KeyValue value) {
        keys.emplace_back(std::string("diffusion-gemma.") + key, std::move(value));
    };
    add("block_count", u32(s.n_layer));
    add("context_length", u32(s.context));
    add("embedding_length", u32(s.n_embd));
    add("feed_forward_length", u32(s.n_ff));
    add("expert_feed_forward_length", u32(s.n_ff_exp));
    add("expert_count", u32(s.n_expert));
    add("expert_used_count", u32(s.n_expert_used));
    add("attention.head_count", u32(s.n_head));
    add("attention.head_count_kv", s.n_head_kv);
    add("attention.key_length", u32(s.head_dim));
    add("attention.value_length", u32(s.head_dim));
    add("attention.key_length_swa", u32(s.head_dim_swa));
    add("attention.value_length_swa", u32(s.head_dim_swa));
    add("attention.sliding_window", u32(s.window));
    add("attention.sliding_window_pattern", s.sliding);
    add("attention.shared_kv_layers", u32(0));
    add("embedding_length_per_layer_input", u32(0));
    add("attention.layer_norm_rms_epsilon", s.rms_eps);
    add("attention.causal", false);
    add("final_logit_softcapping", s.softcap);
    add("rope.freq_base", s.rope_theta);
    add("rope.freq_base_swa", s.rope_theta_swa);
    add("rope.dimension_count", u32(s.head_dim));
    add("rope.dimension_count_swa", u32(s.head_dim_swa));
    keys.emplace_back("diffusion.canvas_length", u32(s.canvas));
}

// The sampler's settings that generation_config.json gives; a reader knows the defaults of the others.
void add_sampler_keys(const Section& generation, KeyValues& keys) {
    if (generation.find("max_denoising_steps"))
        keys.emplace_back("diffusion.eb_max_steps", u32(generation.integer("max_denoising_steps")));
    if (generation.find("t_min")) keys.emplace_back("diffusion.eb_t_min", generation.number("t_min", 0));
    if (generation.find("t_max")) keys.emplace_back("diffusion.eb_t_max", generation.number("t_max", 0));
    if (generation.find("sampler_config")) {
        const Section sampler = generation.section("sampler_config");
        sampler.only("_cls_name", "EntropyBoundSamplerConfig");
        if (sampler.find("entropy_bound"))
            keys.emplace_back("diffusion.eb_entropy_bound", sampler.number("entropy_bound", 0));
    }
    if (generation.find("stability_threshold"))
        keys.emplace_back("diffusion.eb_stability_threshold",
                          u32(generation.integer("stability_threshold", 0)));
    if (generation.find("confidence_threshold"))
        keys.emplace_back("diffusion.eb_confidence_threshold", generation.number("confidence_threshold", 0));
}

// An id, or a list of them, or absent.
void add_ids(const Section& section, const char* key, std::vector<int64_t>& ids) {
    const json* value = section.find(key);
    if (!value) return;
    for (const json& id : value->is_array() ? *value : json::array({*value})) {
        require(id.is_number_integer() && id >= 0 && id <= INT32_MAX, "{}{} is {}, expected token ids",
                section.where, key, value->dump());
        if (std::find(ids.begin(), ids.end(), id.get<int64_t>()) == ids.end())
            ids.push_back(id.get<int64_t>());
    }
}

// Takes tensors of the checkpoint by name, checks their shapes and remembers which were used.
class Taker {
  public:
    Taker(const SafeTensors& file, Source& out) : file_(file), out_(out) {}

    // hf: the name below "model."; shape: row-major, as the checkpoint has it.
    void take(const std::string& name, const std::string& hf, const std::vector<int64_t>& shape) {
        const SafeTensor* t = find(hf);
        require(t, "tensor model.{} is missing, expected shape [{}] (for {})", hf, fmt::join(shape, ", "),
                name);
        // A scalar may be stored as [] or as [1].
        require(t->shape == shape || (t->shape.empty() && shape == std::vector<int64_t>{1}),
                "tensor {} has shape {}, expected [{}]", t->name, t->shape_text(), fmt::join(shape, ", "));
        out_.tensors.push_back({name, {shape.rbegin(), shape.rend()}, t->type, t->data, true});
        used_.insert(t->name);
    }

    // Says what was left: vision and audio, copies of tied weights, and what nobody knows.
    void note_leftovers() const {
        int n_vision = 0;
        std::vector<std::string> unknown;
        for (const SafeTensor& t : file_.tensors()) {
            if (used_.contains(t.name) || is_copy(t.name)) continue;
            bool vision = false;
            for (const char* part : {"vision", "audio"}) vision |= t.name.find(part) != std::string::npos;
            if (vision)
                n_vision++;
            else
                unknown.push_back(t.name);
        }
        if (n_vision) out_.notes.push_back(fmt::format("{} vision and audio tensors are left out", n_vision));
        if (unknown.empty()) return;
        const size_t n = std::min<size_t>(unknown.size(), 8);
        out_.notes.push_back(fmt::format("warning: {} unknown tensors are left out: {}{}", unknown.size(),
                                         fmt::join(unknown.begin(), unknown.begin() + n, ", "),
                                         n < unknown.size() ? ", ..." : ""));
    }

  private:
    // The decoder's, or the encoder's copy of it, with or without the outermost "model.".
    const SafeTensor* find(const std::string& hf) const {
        for (const std::string prefix : {"model.", ""}) {
            if (const SafeTensor* t = file_.find(prefix + hf)) return t;
            if (hf.starts_with("decoder.") && !hf.ends_with("layer_scalar"))
                if (const SafeTensor* t = file_.find(prefix + "encoder.language_model." + hf.substr(8)))
                    return t;
        }
        return nullptr;
    }
    bool is_copy(std::string name) const {
        if (name == "lm_head.weight") return true;
        const std::string encoder = "encoder.language_model.";
        const size_t at = name.find(encoder);
        return at != std::string::npos && used_.contains(name.replace(at, encoder.size(), "decoder."));
    }

    const SafeTensors& file_;
    Source& out_;
    std::set<std::string> used_;
};

void take_layer(Taker& taker, const Shape& s, int64_t l) {
    const int64_t d = s.n_embd, dim = s.sliding[l] ? s.head_dim_swa : s.head_dim, kv = s.n_head_kv[l];
    const auto take = [&](const char* name, const char* hf, const std::vector<int64_t>& shape) {
        taker.take(fmt::format("blk.{}.{}", l, name), fmt::format("decoder.layers.{}.{}", l, hf), shape);
    };
    take("attn_norm.weight", "input_layernorm.weight", {d});
    take("post_attention_norm.weight", "post_attention_layernorm.weight", {d});
    take("ffn_norm.weight", "pre_feedforward_layernorm.weight", {d});
    take("post_ffw_norm.weight", "post_feedforward_layernorm.weight", {d});
    take("post_ffw_norm_1.weight", "post_feedforward_layernorm_1.weight", {d});
    take("pre_ffw_norm_2.weight", "pre_feedforward_layernorm_2.weight", {d});
    take("post_ffw_norm_2.weight", "post_feedforward_layernorm_2.weight", {d});
    take("attn_q.weight", "self_attn.q_proj.weight", {s.n_head * dim, d});
    take("attn_k.weight", "self_attn.k_proj.weight", {kv * dim, d});
    // Global layers take V from the k projection.
    if (s.sliding[l]) take("attn_v.weight", "self_attn.v_proj.weight", {kv * dim, d});
    take("attn_output.weight", "self_attn.o_proj.weight", {d, s.n_head * dim});
    take("attn_q_norm.weight", "self_attn.q_norm.weight", {dim});
    take("attn_k_norm.weight", "self_attn.k_norm.weight", {dim});
    take("ffn_gate.weight", "mlp.gate_proj.weight", {s.n_ff, d});
    take("ffn_up.weight", "mlp.up_proj.weight", {s.n_ff, d});
    take("ffn_down.weight", "mlp.down_proj.weight", {d, s.n_ff});
    take("ffn_gate_inp.weight", "router.proj.weight", {s.n_expert, d});
    take("ffn_gate_inp.scale", "router.scale", {d});
    take("ffn_gate_up_exps.weight", "experts.gate_up_proj", {s.n_expert, 2 * s.n_ff_exp, d});
    take("ffn_down_exps.weight", "experts.down_proj", {s.n_expert, d, s.n_ff_exp});
    take("ffn_down_exps.scale", "router.per_expert_scale", {s.n_expert});
    take("layer_output_scale.weight", "layer_scalar", {1});
    taker.take(fmt::format("blk.{}.enc_layer_output_scale.weight", l),
               fmt::format("encoder.language_model.layers.{}.layer_scalar", l), {1});
}

// Divisors of the rotation angles of global layers: the first pairs rotate, the others stand still
// (SPEC 2.3).
void add_rope_freqs(const Shape& s, Source& out) {
    const int64_t n_pair = s.head_dim / 2;
    const int64_t n_rotate = static_cast<int64_t>(double(s.rotary_factor) * double(s.head_dim) / 2);
    auto freqs = std::make_shared<std::vector<float>>(n_pair, 1e30f);
    std::fill_n(freqs->begin(), n_rotate, 1.0f);
    out.tensors.push_back(
        {"rope_freqs.weight", {n_pair}, Type::F32, reinterpret_cast<const uint8_t*>(freqs->data()), false});
    out.holds.push_back(freqs);
}

void take_tensors(const SafeTensors& file, const Shape& s, Source& out) {
    Taker taker(file, out);
    const int64_t d = s.n_embd;
    taker.take("token_embd.weight", "decoder.embed_tokens.weight", {s.n_vocab, d});
    taker.take("output_norm.weight", "decoder.norm.weight", {d});
    add_rope_freqs(s, out);
    taker.take("self_cond_pre_norm.weight", "decoder.self_conditioning.pre_norm.weight", {d});
    taker.take("self_cond_gate.weight", "decoder.self_conditioning.gate_proj.weight", {s.n_ff, d});
    taker.take("self_cond_up.weight", "decoder.self_conditioning.up_proj.weight", {s.n_ff, d});
    taker.take("self_cond_down.weight", "decoder.self_conditioning.down_proj.weight", {d, s.n_ff});
    for (int64_t l = 0; l < s.n_layer; l++) take_layer(taker, s, l);
    taker.note_leftovers();
}

// "128x2.6B": the number of experts, and of parameters if every layer had only one.
std::string size_label(const Source& source, int64_t n_expert) {
    double n = 0;
    for (const SourceTensor& t : source.tensors) {
        double values = 1;
        for (const int64_t ne : t.ne) values *= double(ne);
        n += t.name.find("_exps.weight") == std::string::npos ? values : values / double(n_expert);
    }
    const char* unit = "K";
    n /= 1e3;
    for (const char* larger : {"M", "B", "T"})
        if (n >= 1e3) {
            n /= 1e3;
            unit = larger;
        }
    return fmt::format("{}x{:.{}f}{}", n_expert, n, n < 9.95 ? 1 : 0, unit);
}

}  // namespace

Source read_hf_folder(const std::string& folder) {
    const fs::path dir(folder);
    const json config = read_json(dir / "config.json");
    const Section top{config, (dir / "config.json").string() + ": "};
    require(config.is_object() && top.find("model_type"),
            "{}expected an object with model_type diffusion_gemma", top.where);
    top.only("model_type", "diffusion_gemma");  // first: nothing else matters in another model
    const Shape s = read_shape(top);
    const Section text = top.section("text_config");

    Source out;
    const fs::path generation_path = dir / "generation_config.json";
    const json generation = is_there(generation_path) ? read_json(generation_path) : json::object();
    require(generation.is_object(), "{}: expected an object", generation_path.string());
    const Section sampling{generation, generation_path.string() + ": "};

    const auto file = std::make_shared<SafeTensors>(SafeTensors::open_folder(folder));
    out.holds.push_back(file);
    try {
        take_tensors(*file, s, out);
    } catch (const Error& e) {
        fail("{}: {}", folder, e.what());
    }

    const std::string name = fs::weakly_canonical(dir).filename();
    out.keys.emplace_back("general.architecture", "diffusion-gemma");
    out.keys.emplace_back("general.type", "model");
    out.keys.emplace_back("general.name", name.empty() ? "model" : name);
    out.keys.emplace_back("general.size_label", size_label(out, s.n_expert));
    add_shape_keys(s, out.keys);
    add_sampler_keys(sampling, out.keys);

    SpecialIds ids;
    if (text.find("bos_token_id")) ids.bos = text.integer("bos_token_id", 0);
    if (text.find("pad_token_id")) ids.pad = text.integer("pad_token_id", 0);
    add_ids(text, "eos_token_id", ids.eos);
    add_ids(top, "eos_token_id", ids.eos);
    add_ids(sampling, "eos_token_id", ids.eos);
    add_tokenizer(folder, s.n_vocab, ids, out);

    // An earlier result in the same folder may be replaced.
    for (const auto& entry : fs::directory_iterator(dir))
        if (entry.path().extension() != ".gguf" && entry.path().extension() != ".part")
            out.files.push_back(entry.path());
    return out;
}

}  // namespace easel
