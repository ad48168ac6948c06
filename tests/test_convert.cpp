// Tests of convert(): the types of the published files, and Hugging Face folders and GGUF files converted in
// a folder of their own.
#include <sys/stat.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "catch.h"
#include "convert.h"
#include "files.h"
#include "gguf.h"
#include "tokenizer.h"
#include "whole_file.h"

using namespace easel;
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

// |a - b| / |a|
double distance(const std::vector<float>& a, const std::vector<float>& b) {
    REQUIRE(a.size() == b.size());
    double difference = 0, norm = 0;
    for (size_t i = 0; i < a.size(); i++) {
        difference += std::pow(double(a[i]) - double(b[i]), 2);
        norm += std::pow(double(a[i]), 2);
    }
    return std::sqrt(difference / std::max(norm, 1e-300));
}

struct Weights {
    std::vector<int64_t> shape;
    std::vector<float> values;
};

// A file of the named tensors, as F32 or BF16.
void write_safetensors(const std::string& path, const std::map<std::string, Weights>& tensors, bool bf16) {
    json header{{"__metadata__", {{"format", "pt"}}}};
    std::string data;
    for (const auto& [name, w] : tensors) {
        const size_t begin = data.size();
        for (const float f : w.values) {
            const uint16_t h = f32_to_bf16(f);
            data.append(bf16 ? reinterpret_cast<const char*>(&h) : reinterpret_cast<const char*>(&f),
                        bf16 ? 2 : 4);
        }
        header[name] = {
            {"dtype", bf16 ? "BF16" : "F32"}, {"shape", w.shape}, {"data_offsets", {begin, data.size()}}};
    }
    const std::string text = header.dump();
    const uint64_t length = text.size();
    write_file(path, std::string(reinterpret_cast<const char*>(&length), 8) + text + data);
}

// A small DiffusionGemma folder: 3 layers, the last global, 4 experts; members may be changed before write().
struct HfFolder {
    json config, generation, tokenizer;
    std::map<std::string, Weights> tensors;
    static constexpr int64_t d = 64, ff = 96, ff_exp = 32, n_vocab = 300, n_expert = 4, n_head = 4;

    HfFolder() {
        const json same{{"head_dim", 32}, {"num_key_value_heads", 1}};
        config = {{"model_type", "diffusion_gemma"}, {"canvas_length", 24}, {"tie_word_embeddings", true}};
        config["text_config"] = {
            {"vocab_size", n_vocab},
            {"hidden_size", d},
            {"intermediate_size", ff},
            {"num_hidden_layers", 3},
            {"num_attention_heads", n_head},
            {"num_key_value_heads", 2},
            {"head_dim", 16},
            {"layer_types", {"sliding_attention", "sliding_attention", "full_attention"}},
            {"per_layer_config", {{"2", same}}},
            {"num_experts", n_expert},
            {"top_k_experts", 2},
            {"moe_intermediate_size", ff_exp},
            {"sliding_window", 16},
            {"max_position_embeddings", 4096},
            {"hidden_activation", "gelu_pytorch_tanh"},
            {"bos_token_id", 2},
            {"eos_token_id", 1},
            {"pad_token_id", 0}};
        generation = {
            {"max_denoising_steps", 12}, {"t_min", 0.3}, {"t_max", nullptr}, {"eos_token_id", {1, 5, 7}}};
        generation["sampler_config"] = {{"_cls_name", "EntropyBoundSamplerConfig"}, {"entropy_bound", 0.2}};
        make_tokenizer();
        make_tensors();
    }

    void make_tokenizer() {
        const std::vector<std::string> special{"<pad>",  "<eos>",    "<bos>",      "<unk>",
                                               "<mask>", "<|stop|>", "<|channel>", "<turn|>"};
        json vocab = json::object(), added = json::array();
        for (size_t i = 0; i < special.size(); i++) {
            if (i != 4) vocab[special[i]] = i;  // one that only added_tokens knows
            added.push_back({{"id", i}, {"content", special[i]}, {"special", true}});
        }
        added.push_back({{"id", 274}, {"content", "plain"}, {"special", false}});
        for (int i = 0; i < 256; i++) vocab[fmt::format("<0x{:02X}>", i)] = 8 + i;
        int id = 264;
        for (const char* token : {"a", "b", "c", "ab", "abc", "\u2581", "\n", "\n\n"}) vocab[token] = id++;
        const json merges = json::array({json::array({"a", "b"}), "ab c", json::array({"\n", "\n"})});
        tokenizer = {{"added_tokens", added}};
        tokenizer["normalizer"] = {
            {"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\u2581"}};
        tokenizer["model"] = {{"type", "BPE"}, {"unk_token", "<unk>"}, {"vocab", vocab}, {"merges", merges}};
    }

    void add(const std::string& name, std::vector<int64_t> shape) {
        int64_t n = 1;
        for (const int64_t k : shape) n *= k;
        Weights w{std::move(shape), std::vector<float>(n)};
        for (float& v : w.values) {
            state_ = state_ * 6364136223846793005u + 1442695040888963407u;
            // 9 bits: exact as F32, F16 and BF16
            v = float(int(state_ >> 55) - 256) / 256.0f;
        }
        tensors["model." + name] = std::move(w);
    }

    void make_tensors() {
        add("decoder.embed_tokens.weight", {n_vocab, d});
        add("decoder.norm.weight", {d});
        add("decoder.self_conditioning.pre_norm.weight", {d});
        add("decoder.self_conditioning.gate_proj.weight", {ff, d});
        add("decoder.self_conditioning.up_proj.weight", {ff, d});
        add("decoder.self_conditioning.down_proj.weight", {d, ff});
        for (int l = 0; l < 3; l++) {
            const std::string p = fmt::format("decoder.layers.{}.", l);
            const int64_t dim = l == 2 ? 32 : 16, kv = l == 2 ? 1 : 2;
            for (const char* norm :
                 {"input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                  "post_feedforward_layernorm", "post_feedforward_layernorm_1", "pre_feedforward_layernorm_2",
                  "post_feedforward_layernorm_2"})
                add(p + norm + ".weight", {d});
            add(p + "self_attn.q_proj.weight", {n_head * dim, d});
            add(p + "self_attn.k_proj.weight", {kv * dim, d});
            if (l != 2) add(p + "self_attn.v_proj.weight", {kv * dim, d});
            add(p + "self_attn.o_proj.weight", {d, n_head * dim});
            add(p + "self_attn.q_norm.weight", {dim});
            add(p + "self_attn.k_norm.weight", {dim});
            add(p + "mlp.gate_proj.weight", {ff, d});
            add(p + "mlp.up_proj.weight", {ff, d});
            add(p + "mlp.down_proj.weight", {d, ff});
            add(p + "router.proj.weight", {n_expert, d});
            add(p + "router.scale", {d});
            add(p + "router.per_expert_scale", {n_expert});
            add(p + "experts.gate_up_proj", {n_expert, 2 * ff_exp, d});
            add(p + "experts.down_proj", {n_expert, d, ff_exp});
            add(p + "layer_scalar", {1});
            add(fmt::format("encoder.language_model.layers.{}.layer_scalar", l), {1});
        }
        add("encoder.vision_tower.std_bias", {8});
        add("encoder.language_model.norm.weight", {d});  // a tied copy
    }

    // In n_shard files; one is model.safetensors without an index.
    void write(const fs::path& dir, int n_shard = 1, bool bf16 = false) const {
        write_file(dir / "config.json", config.dump());
        if (!generation.is_null()) write_file(dir / "generation_config.json", generation.dump());
        write_file(dir / "tokenizer.json", tokenizer.dump());
        write_file(dir / "tokenizer_config.json", R"({"chat_template": "{{ messages }}"})");
        if (n_shard == 1) return write_safetensors(dir / "model.safetensors", tensors, bf16);
        std::vector<std::map<std::string, Weights>> shards(n_shard);
        json map;
        int i = 0;
        for (const auto& [name, w] : tensors) {
            const int shard = i++ % n_shard;
            shards[shard][name] = w;
            map[name] = fmt::format("model-{:05}-of-{:05}.safetensors", shard + 1, n_shard);
        }
        for (int k = 0; k < n_shard; k++)
            write_safetensors(dir / fmt::format("model-{:05}-of-{:05}.safetensors", k + 1, n_shard),
                              shards[k], bf16);
        write_file(dir / "model.safetensors.index.json", json{{"weight_map", map}}.dump());
    }

  private:
    uint64_t state_ = 1;
};

ConvertOptions as(const std::string& type) {
    return {type, true, {}};
}

// Writes the folder, converts it, and returns the error.
std::string convert_error(const HfFolder& folder, const std::string& type = "f32") {
    const TempDir dir;
    folder.write(dir.path());
    const std::string message = error_of([&] { convert(dir.path(), dir / "out.gguf", as(type)); });
    CHECK(!fs::exists(dir / "out.gguf"));
    CHECK(!fs::exists(dir / "out.gguf.part"));
    return message;
}

}  // namespace

TEST_CASE("types are those of the published 26B files, to the byte") {
    std::vector<TensorPlan> tensors;
    const auto add = [&](const std::string& name, std::vector<int64_t> ne) {
        tensors.push_back({name, std::move(ne)});
    };
    add("token_embd.weight", {2816, 262144});
    add("output_norm.weight", {2816});
    add("rope_freqs.weight", {256});
    add("self_cond_pre_norm.weight", {2816});
    add("self_cond_gate.weight", {2816, 2112});
    add("self_cond_up.weight", {2816, 2112});
    add("self_cond_down.weight", {2112, 2816});
    for (int l = 29; l >= 0; l--) {  // backwards: the rules count blocks, not the order of the list
        const std::string p = fmt::format("blk.{}.", l);
        const bool global = l % 6 == 5;
        for (const char* norm : {"attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm",
                                 "post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm_2"})
            add(p + norm + ".weight", {2816});
        add(p + "attn_q.weight", {2816, global ? 8192 : 4096});
        add(p + "attn_k.weight", {2816, global ? 1024 : 2048});
        if (!global) add(p + "attn_v.weight", {2816, 2048});
        add(p + "attn_output.weight", {global ? 8192 : 4096, 2816});
        add(p + "attn_q_norm.weight", {global ? 512 : 256});
        add(p + "attn_k_norm.weight", {global ? 512 : 256});
        add(p + "ffn_gate.weight", {2816, 2112});
        add(p + "ffn_up.weight", {2816, 2112});
        add(p + "ffn_down.weight", {2112, 2816});
        add(p + "ffn_gate_inp.weight", {2816, 128});
        add(p + "ffn_gate_inp.scale", {2816});
        add(p + "ffn_gate_up_exps.weight", {2816, 1408, 128});
        add(p + "ffn_down_exps.weight", {704, 2816, 128});
        add(p + "ffn_down_exps.scale", {128});
        add(p + "layer_output_scale.weight", {1});
        add(p + "enc_layer_output_scale.weight", {1});
    }
    REQUIRE(tensors.size() == 692);

    using Counts = std::map<std::string, int>;
    struct Published {
        const char* type;
        uint32_t file_type;
        int64_t file_bytes;  // SPEC 4.4
        Counts counts;
    };
    const std::vector<Published> published{
        {"Q4_K_M",
         15,
         16'806'810'336,
         {{"F32", 423}, {"Q4_K", 194}, {"Q5_0", 33}, {"Q6_K", 14}, {"Q8_0", 28}}},
        {"q5_k_m",
         17,
         19'145'543'392,
         {{"F32", 423}, {"Q5_K", 194}, {"Q5_1", 33}, {"Q6_K", 14}, {"Q8_0", 28}}},
        {"q6_k", 18, 22'654'490'592, {{"F32", 423}, {"Q6_K", 208}, {"Q8_0", 61}}},
        {"q8_0", 7, 26'878'831'328, {{"F32", 423}, {"Q8_0", 269}}},
        {"bf16", 32, 50'540'834'528, {{"F32", 423}, {"BF16", 269}}},
    };
    constexpr int64_t header_bytes = 15'824'736;  // keys, names and shapes of the published files
    for (const Published& p : published) {
        CHECK(plan_types(p.type, tensors) == p.file_type);
        Counts counts;
        int64_t bytes = header_bytes;
        for (const TensorPlan& t : tensors) {
            counts[type_info(t.type).name]++;
            int64_t rows = 1;
            for (size_t i = 1; i < t.ne.size(); i++) rows *= t.ne[i];
            bytes += (row_bytes(t.type, t.ne[0]) * rows + 31) / 32 * 32;
        }
        INFO(p.type);
        CHECK(counts == p.counts);
        CHECK(bytes == p.file_bytes);
    }

    plan_types("q4_k_m", tensors);
    std::vector<int> attn_v, ffn_down;
    for (const TensorPlan& t : tensors) {
        int l = -1;
        if (std::sscanf(t.name.c_str(), "blk.%d.", &l) != 1) continue;
        if (t.name.ends_with("attn_v.weight") && t.type == Type::Q6_K) attn_v.push_back(l);
        if (t.name.ends_with("ffn_down_exps.weight") && t.type == Type::Q8_0) ffn_down.push_back(l);
    }
    std::reverse(attn_v.begin(), attn_v.end());
    std::reverse(ffn_down.begin(), ffn_down.end());
    CHECK(attn_v == std::vector<int>{0, 1, 2, 6, 9, 13, 16, 20, 24, 25, 26, 27, 28});
    CHECK(ffn_down == std::vector<int>{0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29});
    check_has(error_of([&] { plan_types("q3_k_m", tensors); }), {"q3_k_m", "q4_k_m", "bf16"});
}

TEST_CASE("a Hugging Face folder becomes a GGUF file") {
    const TempDir dir;
    HfFolder folder;
    const int n_shard = GENERATE(1, 3);
    const bool bf16 = GENERATE(false, true);
    folder.write(dir.path(), n_shard, bf16);
    convert(dir.path(), dir / "out.gguf", as("f32"));
    const Gguf file = Gguf::open(dir / "out.gguf");

    CHECK(file.string("general.architecture") == "diffusion-gemma");
    CHECK(file.integer("general.file_type") == 0);
    CHECK(file.integer("diffusion-gemma.block_count") == 3);
    CHECK(file.integers("diffusion-gemma.attention.head_count_kv") == std::vector<int64_t>{2, 2, 1});
    CHECK(file.integers("diffusion-gemma.attention.sliding_window_pattern") == std::vector<int64_t>{1, 1, 0});
    CHECK(file.integer("diffusion-gemma.attention.key_length") == 32);
    CHECK(file.integer("diffusion-gemma.attention.key_length_swa") == 16);
    CHECK(file.string("general.size_label") == "4x157K");
    CHECK(file.number("diffusion-gemma.attention.layer_norm_rms_epsilon") == 1e-6f);
    CHECK(file.number("diffusion-gemma.final_logit_softcapping") == 30);
    CHECK(file.integer("diffusion.canvas_length") == 24);
    CHECK(file.integer("diffusion.eb_max_steps") == 12);
    CHECK(file.number("diffusion.eb_t_min") == 0.3f);
    CHECK(!file.find("diffusion.eb_t_max"));  // null: the reader's default
    CHECK(file.number("diffusion.eb_entropy_bound") == 0.2f);
    CHECK(file.string("tokenizer.chat_template") == "{{ messages }}");

    CHECK(file.tensors().size() == 7 + 3 * 23 - 1);
    CHECK(values_of(*file.find_tensor("rope_freqs.weight")) ==
          std::vector<float>{1, 1, 1, 1, 1e30f, 1e30f, 1e30f, 1e30f, 1e30f, 1e30f, 1e30f, 1e30f, 1e30f, 1e30f,
                             1e30f, 1e30f});
    const std::map<std::string, std::string> pairs{
        {"token_embd.weight", "model.decoder.embed_tokens.weight"},
        {"blk.1.attn_v.weight", "model.decoder.layers.1.self_attn.v_proj.weight"},
        {"blk.2.ffn_gate_up_exps.weight", "model.decoder.layers.2.experts.gate_up_proj"},
        {"blk.2.ffn_down_exps.weight", "model.decoder.layers.2.experts.down_proj"},
        {"blk.2.ffn_down_exps.scale", "model.decoder.layers.2.router.per_expert_scale"},
        {"blk.0.layer_output_scale.weight", "model.decoder.layers.0.layer_scalar"},
        {"blk.0.enc_layer_output_scale.weight", "model.encoder.language_model.layers.0.layer_scalar"},
    };
    for (const auto& [name, hf] : pairs) {
        INFO(name);
        REQUIRE(file.find_tensor(name));
        CHECK(values_of(*file.find_tensor(name)) == folder.tensors[hf].values);
    }
    CHECK(file.find_tensor("blk.0.ffn_gate_up_exps.weight")->shape() == "[64, 64, 4]");
    CHECK(file.find_tensor("blk.0.ffn_down_exps.weight")->shape() == "[32, 64, 4]");
    CHECK(!file.find_tensor("blk.2.attn_v.weight"));

    CHECK(file.strings("tokenizer.ggml.merges") == std::vector<std::string_view>{"a b", "ab c", "\n \n"});
    CHECK(file.strings("tokenizer.ggml.tokens").size() == 300);
    CHECK(file.integer("tokenizer.ggml.eos_token_id") == 1);
    CHECK(file.integer("tokenizer.ggml.eot_token_id") == 5);
    CHECK(file.integer("tokenizer.ggml.mask_token_id") == 4);
    const auto types = file.integers("tokenizer.ggml.token_type");
    CHECK(std::vector<int64_t>(types.begin(), types.begin() + 9) ==
          std::vector<int64_t>{3, 3, 3, 2, 3, 3, 4, 3, 6});
    CHECK(types[274] == 4);
    CHECK(types[275] == 5);  // a row of the embedding without a token
    const Tokenizer tokenizer(file);
    CHECK(tokenizer.encode("abc ab", Specials::None) == std::vector<int32_t>{268, 269, 267});
    CHECK(tokenizer.end_of_generation == std::vector<int32_t>{1, 5, 7});

    // Other types, each within its error; the progress ends with every byte written.
    for (const auto& [type, most] : std::map<std::string, double>{
             {"f16", 1e-7}, {"bf16", 1e-7}, {"q8_0", 0.01}, {"q6_k", 0.01}, {"q4_k_m", 0.1}}) {
        uint64_t last = 0, whole = 1;
        ConvertOptions options = as(type);
        options.progress = [&](uint64_t done, uint64_t total, std::string_view) {
            last = done, whole = total;
            return true;
        };
        convert(dir.path(), dir / "q.gguf", options);
        CHECK(last == whole);
        const Gguf q = Gguf::open(dir / "q.gguf");
        INFO(type);
        REQUIRE(q.tensors().size() == file.tensors().size());
        for (size_t i = 0; i < q.tensors().size(); i++)
            CHECK(distance(values_of(file.tensors()[i]), values_of(q.tensors()[i])) <= most);
    }

    // Stopped: what was there stays, nothing else does.
    ConvertOptions options = as("f16");
    options.progress = [](uint64_t, uint64_t, std::string_view) { return false; };
    const auto before = fs::file_size(dir / "q.gguf");
    CHECK(!convert(dir.path(), dir / "q.gguf", options));
    CHECK(fs::file_size(dir / "q.gguf") == before);
    CHECK(!fs::exists(dir / "q.gguf.part"));
}

TEST_CASE("the older dialect of config.json gives the same file") {
    const TempDir a, b;
    HfFolder folder;
    folder.write(a.path());
    json& text = folder.config["text_config"];
    text.erase("per_layer_config");
    text["global_head_dim"] = 32;
    text["num_global_key_value_heads"] = 1;
    // A file that names the encoder's copy of a tied tensor, and none of the model's own prefix.
    std::map<std::string, Weights> bare;
    for (const auto& [name, w] : folder.tensors) bare[name.substr(6)] = w;
    bare["encoder.language_model.norm.weight"] = bare["decoder.norm.weight"];
    bare.erase("decoder.norm.weight");
    folder.tensors = bare;
    folder.write(b.path());
    convert(a.path(), a / "out.gguf", as("q8_0"));
    convert(b.path(), b / "out.gguf", as("q8_0"));
    const Gguf x = Gguf::open(a / "out.gguf"), y = Gguf::open(b / "out.gguf");
    REQUIRE(x.tensors().size() == y.tensors().size());
    for (size_t i = 0; i < x.tensors().size(); i++) {
        const Tensor &s = x.tensors()[i], &t = y.tensors()[i];
        CHECK(s.name == t.name);
        CHECK(std::equal(s.data, s.data + s.bytes, t.data, t.data + t.bytes));
    }
    for (const auto& [key, value] : x.values())
        if (key != "general.name")
            CHECK(std::equal(value.data, value.end, y.find(key)->data, y.find(key)->end));
}

TEST_CASE("what a Hugging Face folder lacks or has wrong is named") {
    const auto with = [](auto change) {
        HfFolder folder;
        change(folder, folder.config["text_config"]);
        return convert_error(folder);
    };
    const std::string norm = "model.decoder.norm.weight", down = "model.decoder.layers.1.experts.down_proj";
    check_has(with([&](HfFolder& f, json&) { f.tensors.erase(down); }),
              {down.c_str(), "missing", "[4, 64, 32]"});
    check_has(with([&](HfFolder& f, json&) {
                  f.tensors[down].shape = {4, 32, 64};
              }),
              {down.c_str(), "[4, 32, 64]", "expected [4, 64, 32]"});
    check_has(with([&](HfFolder& f, json&) {
                  f.tensors.erase("model.encoder.language_model.layers.0.layer_scalar");
              }),
              {"model.encoder.language_model.layers.0.layer_scalar", "missing"});
    check_has(with([](HfFolder&, json& t) { t.erase("hidden_size"); }),
              {"config.json: text_config.hidden_size"});
    check_has(with([](HfFolder& f, json&) { f.config.erase("canvas_length"); }),
              {"canvas_length is missing"});
    check_has(with([](HfFolder& f, json&) { f.config.erase("text_config"); }), {"text_config is missing"});
    check_has(with([](HfFolder&, json& t) { t["num_experts"] = -1; }), {"num_experts is -1"});
    check_has(with([](HfFolder&, json& t) { t["num_experts"] = "many"; }), {"num_experts", "many"});
    check_has(with([](HfFolder&, json& t) { t["top_k_experts"] = 5; }),
              {"top_k_experts is 5", "num_experts = 4"});
    check_has(with([](HfFolder&, json& t) { t["hidden_activation"] = "silu"; }),
              {"silu", "gelu_pytorch_tanh"});
    check_has(with([](HfFolder&, json& t) { t["attention_bias"] = true; }), {"attention_bias"});
    check_has(with([](HfFolder&, json& t) { t["num_kv_shared_layers"] = 2; }), {"num_kv_shared_layers is 2"});
    check_has(with([](HfFolder&, json& t) { t["hidden_size_per_layer_input"] = 256; }),
              {"per_layer_input is 256"});
    check_has(with([](HfFolder&, json& t) { t["layer_types"] = {"full_attention"}; }), {"layer_types has 1"});
    check_has(with([](HfFolder&, json& t) { t["per_layer_config"]["2"]["head_dim"] = 33; }),
              {"layer 2", "33"});
    check_has(with([](HfFolder&, json& t) { t["num_key_value_heads"] = 3; }),
              {"4 is not a multiple of the 3"});
    check_has(with([](HfFolder& f, json&) { f.config["model_type"] = "gemma4"; }),
              {"gemma4", "diffusion_gemma"});
    check_has(with([](HfFolder& f, json&) { f.config["tie_word_embeddings"] = false; }),
              {"tie_word_embeddings"});
    check_has(with([](HfFolder& f, json&) { f.tokenizer["model"]["vocab"]["z"] = 300; }),
              {"z", "300", "0 to 299"});
    check_has(with([](HfFolder& f, json&) { f.tokenizer["model"]["vocab"]["z"] = 1; }), {"id 1 is both"});
    check_has(with([](HfFolder& f, json&) { f.tokenizer["model"]["type"] = "Unigram"; }),
              {"tokenizer.json", "BPE"});
    check_has(with([](HfFolder& f, json&) {
                  f.tokenizer["normalizer"] = {{"type", "NFC"}};
              }),
              {"normalizer", "NFC"});
    check_has(with([](HfFolder& f, json&) { f.generation["max_denoising_steps"] = 0; }),
              {"max_denoising_steps is 0"});
    check_has(with([](HfFolder& f, json&) { f.generation["sampler_config"]["_cls_name"] = "Other"; }),
              {"_cls_name is \"Other\""});
    check_has(with([](HfFolder&, json& t) { t["num_experts"] = 4.5; }), {"num_experts is 4.5"});
    check_has(with([](HfFolder&, json& t) { t["pad_token_id"] = 300; }), {"a special token has id 300"});
    check_has(with([](HfFolder& f, json&) {
                  f.tokenizer["added_tokens"].push_back({{"id", 290}, {"content", "abc"}});
              }),
              {"token abc has the ids 268 and 290"});
    check_has(with([](HfFolder& f, json&) {
                  f.tokenizer["model"]["merges"] = json::array({json::array({"a b", "c"})});
              }),
              {"the merge [\"a b\",\"c\"] cannot be written"});
    // What only easel's own limits refuse is found before the file has its name.
    check_has(with([](HfFolder&, json& t) { t["final_logit_softcapping"] = 0; }),
              {"out.gguf: not written", "final_logit_softcapping is 0"});
    check_has(with([](HfFolder& f, json&) { f.generation["max_denoising_steps"] = 1000000000; }),
              {"out.gguf: not written", "1000000000"});
    // What a config leaves out: every sixth layer is global, with heads of 512.
    check_has(with([](HfFolder&, json& t) {
                  t.erase("layer_types");
                  t.erase("per_layer_config");
                  t["num_hidden_layers"] = 12;
                  t["global_head_dim"] = 33;
              }),
              {"layer 5 has head_dim 33"});
    check_has(with([](HfFolder&, json& t) { t.erase("per_layer_config"); }),
              {"layers.2.self_attn.q_proj.weight has shape [128, 64], expected [2048, 64]"});
    const auto with_rope = [&](const char* global, const char* sliding) {
        return with([&](HfFolder&, json& t) {
            t["rope_parameters"] = {{"full_attention", json::parse(global)},
                                    {"sliding_attention", json::parse(sliding)}};
        });
    };
    check_has(with_rope(R"({"rope_theta": 1, "partial_rotary_factor": 0.5, "rope_type": "default"})", "null"),
              {"full_attention.rope_type is \"default\""});
    check_has(with_rope(R"({"rope_theta": 1, "factor": 2})", "null"), {"full_attention.factor is 2"});
    check_has(with_rope(R"({"rope_theta": 1})", R"({"rope_theta": 1, "rope_type": "linear"})"),
              {"sliding_attention.rope_type is \"linear\""});

    HfFolder folder;
    check_has(convert_error(folder, "q3"), {"unknown type q3", "q8_0"});
    folder.tensors["model.decoder.layers.1.mlp.up_proj.weight"].values[64 * 3 + 5] = 7e4f;
    check_has(convert_error(folder, "f16"), {"blk.1.ffn_up.weight", "70000", "row 3, column 5", "F16"});
    folder.tensors["model.decoder.layers.1.mlp.up_proj.weight"].values[64 * 3 + 5] = 65520;
    check_has(convert_error(folder, "f16"), {"the value 65520 ", "F16"});
    folder.tensors["model.decoder.layers.1.mlp.up_proj.weight"].values[64 * 3 + 5] = 1.2e6f;
    check_has(convert_error(folder, "q8_0"), {"the value 1200000 ", "Q8_0"});
    folder.tensors["model.decoder.layers.1.mlp.up_proj.weight"].values[64 * 3 + 5] = -7e4f;
    check_has(convert_error(folder, "q5_k_m"), {"blk.1.ffn_up.weight", "-70000", "row 3, column 5", "Q5_1"});
    folder.tensors["model.decoder.layers.1.mlp.up_proj.weight"].values[64 * 3 + 5] = NAN;
    for (const char* type : {"q8_0", "bf16", "f32"})
        check_has(convert_error(folder, type), {"blk.1.ffn_up.weight", "the value nan", "row 3, column 5"});
    folder.tensors["model.decoder.layers.1.mlp.up_proj.weight"].values[64 * 3 + 5] = 0x1.ffp127f;
    check_has(convert_error(folder, "bf16"), {"does not fit BF16"});

    const TempDir dir;
    check_has(error_of([&] { convert(dir.path(), dir / "a.gguf", as("f32")); }),
              {"config.json", "expected a JSON file: No such file"});
    // A pipe that nobody writes to does not hang.
    REQUIRE(mkfifo((dir / "config.json").c_str(), 0600) == 0);
    check_has(error_of([&] { convert(dir.path(), dir / "a.gguf", as("f32")); }),
              {"config.json: is not a regular file, expected a JSON file"});
    fs::remove(dir / "config.json");
    HfFolder().write(dir.path(), 1);
    // Nor does one as a file that a folder need not have; one that cannot be read is not as good as none.
    for (const char* name : {"chat_template.jinja", "generation_config.json", "tokenizer_config.json"}) {
        fs::remove(dir / name);
        REQUIRE(mkfifo((dir / name).c_str(), 0600) == 0);
        check_has(error_of([&] { convert(dir.path(), dir / "a.gguf", as("f32")); }),
                  {name, ": is not a regular file, expected a J"});
        fs::remove(dir / name);
        fs::create_symlink("gone", dir / name);
        check_has(error_of([&] { convert(dir.path(), dir / "a.gguf", as("f32")); }),
                  {name, ": cannot be read, expected a J", "No such file"});
        fs::remove(dir / name);
    }
    const std::string deep = std::string(1 << 20, '[') + std::string(1 << 20, ']');
    std::ofstream(dir / "tokenizer.json") << "{\"normalizer\":" << deep << "}";
    check_has(error_of([&] { convert(dir.path(), dir / "a.gguf", as("f32")); }),
              {"tokenizer.json", "100 deep"});
    const std::string header = "{\"a\":{\"shape\":" + deep + "}}";
    const uint64_t n = header.size();
    std::ofstream(dir / "model.safetensors").write(reinterpret_cast<const char*>(&n), 8) << header;
    check_has(error_of([&] { convert(dir.path(), dir / "a.gguf", as("f32")); }),
              {"model.safetensors", "100 deep"});
    fs::remove(dir / "model.safetensors");
    HfFolder().write(dir.path(), 2);
    fs::remove(dir / "model-00002-of-00002.safetensors");
    check_has(error_of([&] { convert(dir.path(), dir / "a.gguf", as("f32")); }),
              {"model-00002-of-00002.safetensors"});
    fs::remove(dir / "model.safetensors.index.json");
    check_has(error_of([&] { convert(dir.path(), dir / "a.gguf", as("f32")); }), {"missing"});
}

TEST_CASE("a Hugging Face folder may leave out and write otherwise") {
    const TempDir dir;
    HfFolder folder;
    json& text = folder.config["text_config"];
    text.erase("layer_types");  // the last layer is global whatever the period
    text["num_experts"] = 4.0;  // a whole number
    text["pad_token_id"] = 3;   // not the one of that name
    text["rope_parameters"] = {{"full_attention", {{"rope_theta", 5e5}}}};
    float& large = folder.tensors["model.decoder.layers.1.mlp.up_proj.weight"].values[0];
    large = 65519;  // rounds to the largest half
    folder.write(dir.path());
    write_file(
        dir / "tokenizer_config.json",
        R"({"chat_template": [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]})");
    convert(dir.path(), dir / "out.gguf", as("f16"));
    const Gguf file = Gguf::open(dir / "out.gguf");
    CHECK(file.integers("diffusion-gemma.attention.sliding_window_pattern") == std::vector<int64_t>{1, 1, 0});
    CHECK(file.integer("diffusion-gemma.expert_count") == 4);
    CHECK(file.integer("tokenizer.ggml.padding_token_id") == 3);
    CHECK(file.number("diffusion-gemma.rope.freq_base") == 5e5);
    CHECK(file.number("diffusion-gemma.rope.freq_base_swa") == 1e4);
    CHECK(values_of(*file.find_tensor("rope_freqs.weight")) == std::vector<float>(16, 1));
    CHECK(values_of(*file.find_tensor("blk.1.ffn_up.weight"))[0] == 65504);
    CHECK(file.string("tokenizer.chat_template") == "D");
}

TEST_CASE("the golden folders convert") {
    const fs::path fixtures = "tests/fixtures/hf";
    int n = 0;
    const TempDir dir;
    for (const auto& entry :
         fs::exists(fixtures) ? fs::directory_iterator(fixtures) : fs::directory_iterator()) {
        if (!fs::exists(entry.path() / "config.json")) continue;
        INFO(entry.path());
        convert(entry.path(), dir / "out.gguf", as("f32"));
        const Gguf file = Gguf::open(dir / "out.gguf");
        CHECK(file.find_tensor("token_embd.weight"));
        CHECK(Tokenizer(file).n_vocab() == file.find_tensor("token_embd.weight")->ne[1]);
        n++;
    }
    if (n == 0) WARN("SKIPPED: no Hugging Face folder under " << fixtures);
}

TEST_CASE("a GGUF file becomes one of another precision") {
    const TempDir dir;
    const std::string source = "tests/fixtures/tiny.gguf";
    convert(source, dir / "q.gguf", as("q8_0"));
    const Gguf from = Gguf::open(source), to = Gguf::open(dir / "q.gguf");
    CHECK(to.integer("general.file_type") == 7);
    for (const auto& [key, value] : from.values()) {
        INFO(key);
        const Value* other = to.find(key);
        REQUIRE(other);
        CHECK(other->type == value.type);
        if (key != "general.file_type") CHECK(std::equal(value.data, value.end, other->data, other->end));
    }
    REQUIRE(to.tensors().size() == from.tensors().size());
    int n_q8 = 0;
    for (size_t i = 0; i < to.tensors().size(); i++) {
        const Tensor &a = from.tensors()[i], &b = to.tensors()[i];
        INFO(a.name);
        CHECK(a.name == b.name);
        CHECK(a.shape() == b.shape());
        // Rounding to 1/254 of a block's largest value: 0.5 / 127 / sqrt(3) of it, and normal weights reach 2
        // to 3 sigma.
        CHECK(distance(values_of(a), values_of(b)) <= (b.type == Type::F32 ? 0 : 0.01));
        n_q8 += b.type == Type::Q8_0;
    }
    CHECK(n_q8 > 50);

    // To its own type: the very bytes. Over an existing file: replaced.
    convert(dir / "q.gguf", dir / "r.gguf", as("f16"));
    convert(dir / "q.gguf", dir / "r.gguf", as("q8_0"));
    std::ifstream a(dir / "q.gguf", std::ios::binary), b(dir / "r.gguf", std::ios::binary);
    CHECK(std::equal(std::istreambuf_iterator<char>(a), {}, std::istreambuf_iterator<char>(b), {}));

    // Of a split file the parts become one.
    const auto write_part = [&](const char* architecture, const char* name = "part.gguf", uint32_t n = 1) {
        GgufWriter writer(dir / name);
        for (const auto& [key, value] : from.values()) writer.copy(key, value);
        writer.set("general.architecture", std::string(architecture));
        writer.set("split.count", n);
        for (const Tensor& t : from.tensors())
            writer.declare(std::string(t.name), t.type, std::span(t.ne).first(t.n_dims));
        writer.begin();
        for (const Tensor& t : from.tensors()) writer.write({t.data, t.bytes});
        writer.finish();
    };
    write_part("gemma4");
    check_has(error_of([&] { convert(dir / "part.gguf", dir / "r.gguf", as("f16")); }),
              {"general.architecture is gemma4"});
    write_part("diffusion-gemma");
    convert(dir / "part.gguf", dir / "r.gguf", as("f16"));
    CHECK(Gguf::open(dir / "r.gguf").tensors().size() == from.tensors().size());
    CHECK(!Gguf::open(dir / "r.gguf").find("split.count"));

    // None of them is written over.
    write_part("diffusion-gemma", "s-00001-of-00002.gguf", 2);
    const int64_t one = 1;
    GgufWriter second(dir / "s-00002-of-00002.gguf");
    second.declare("more", Type::F32, {&one, 1});
    second.begin();
    second.write(std::vector<uint8_t>(4));
    second.finish();
    for (const char* target : {"s-00001-of-00002.gguf", "s-00002-of-00002.gguf"})
        check_has(error_of([&] { convert(dir / "s-00001-of-00002.gguf", dir / target, as("q8_0")); }),
                  {"overwrite the source"});

    // Of a link, the file that it names is replaced.
    std::ofstream(dir / "old.gguf") << "old";
    fs::create_symlink(dir / "old.gguf", dir / "to-old.gguf");
    convert(source, dir / "to-old.gguf", as("q8_0"));
    CHECK(fs::is_symlink(dir / "to-old.gguf"));
    CHECK(Gguf::open(dir / "old.gguf").tensors().size() == from.tensors().size());
    fs::create_symlink("new.gguf", dir / "to-new.gguf");  // which is not there yet
    convert(source, dir / "to-new.gguf", as("q8_0"));
    CHECK(fs::is_symlink(dir / "to-new.gguf"));
    CHECK(Gguf::open(dir / "new.gguf").tensors().size() == from.tensors().size());
    // The disk that has to have room is that of the file, not that of the link: /proc has none.
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> opened(
        std::fopen((dir / "opened.gguf").c_str(), "wb"), std::fclose);
    convert(source, fmt::format("/proc/self/fd/{}", fileno(opened.get())), as("q8_0"));
    CHECK(Gguf::open(dir / "opened.gguf").tensors().size() == from.tensors().size());

    check_has(error_of([&] { convert(dir / "q.gguf", dir / "q.gguf", as("f16")); }),
              {"overwrite the source"});
    fs::create_symlink(dir / "q.gguf", dir / "link.gguf");
    check_has(error_of([&] { convert(dir / "q.gguf", dir / "link.gguf", as("f16")); }),
              {"overwrite the source"});
    fs::copy(dir / "q.gguf", dir / "s.gguf.part");
    check_has(error_of([&] { convert(dir / "s.gguf.part", dir / "s.gguf", as("f16")); }),
              {"overwrite the source"});
    fs::create_directory(dir / "sub");
    fs::create_symlink(dir / "s.gguf", dir / "sub/far.gguf");
    check_has(error_of([&] { convert(dir / "s.gguf.part", dir / "sub/far.gguf", as("f16")); }),
              {"overwrite the source"});
    check_has(error_of([&] { convert(dir / "q.gguf", dir.path(), as("f16")); }), {"is a folder"});
    fs::create_symlink("loop.gguf", dir / "loop.gguf");
    check_has(error_of([&] { convert(dir / "q.gguf", dir / "loop.gguf", as("f16")); }),
              {"loop.gguf: cannot be written: Too many levels of symbolic links"});
    check_has(error_of([&] { convert(dir / "q.gguf", dir / "t-00001-of-00002.gguf", as("f16")); }),
              {"is the name of one part of a split file"});  // it could not be opened
    check_has(error_of([&] { convert(dir / "none.gguf", dir / "t.gguf", as("f16")); }), {"none.gguf"});
    check_has(error_of([&] { convert(source, dir / "t.gguf", as("q9")); }), {"unknown type q9"});
    CHECK(!fs::exists(dir / "t.gguf"));
}
