// test_model.cpp: binding a file's keys and tensors: what is accepted, in both dialects and with other types
// of keys, gives the same logits; what does not fit is named with what was expected and found.
#include <cstring>
#include <functional>
#include <limits>

#include "backend.h"
#include "catch.h"
#include "check.h"
#include "golden.h"
#include "make_gguf.h"
#include "model.h"

using namespace easel;

namespace {

using Shape = std::vector<uint64_t>;

const std::string kArch = "diffusion-gemma.";

// tests/fixtures/tiny.gguf (all F32, six layers, the last one global), to be changed before it is bound.
struct Tiny {
    struct Part {
        std::string name;
        Type type;
        Shape ne;
        std::string data;
    };
    std::vector<std::pair<std::string, std::string>> keys;  // name, type and value
    std::vector<Part> tensors;

    Tiny() {
        static const Gguf file = Gguf::open(fixture("tiny.gguf"));
        for (const auto& [name, v] : file.values()) {
            std::string encoded;
            put(encoded, v.type);
            if (v.is_array()) {
                put(encoded, v.item);
                put(encoded, v.count);
            }
            encoded.append(reinterpret_cast<const char*>(v.data), v.end - v.data);
            keys.emplace_back(name, encoded);
        }
        for (const Tensor& t : file.tensors()) {
            const Shape ne(t.ne.begin(), t.ne.begin() + t.n_dims);
            tensors.push_back({std::string(t.name), t.type, ne,
                               std::string(reinterpret_cast<const char*>(t.data), t.bytes)});
        }
    }

    template <class T>
    static void put(std::string& out, T v) {
        out.append(reinterpret_cast<const char*>(&v), sizeof v);
    }
    template <class T>
    static std::string raw(ValueType type, T v) {
        std::string out;
        put(out, type);
        put(out, v);
        return out;
    }
    template <class T>
    static std::string raw_array(ValueType item, const std::vector<T>& items) {
        std::string out;
        put(out, ValueType::Array);
        put(out, item);
        put<uint64_t>(out, items.size());
        for (T v : items) put(out, v);
        return out;
    }
    static std::string u32(uint32_t v) { return raw(ValueType::U32, v); }
    static std::string f32(float v) { return raw(ValueType::F32, v); }
    static std::string text(const std::string& s) { return raw(ValueType::String, uint64_t{s.size()}) + s; }

    void set(const std::string& name, const std::string& encoded) {
        for (auto& [key, value] : keys)
            if (key == name) {
                value = encoded;
                return;
            }
        keys.emplace_back(name, encoded);
    }
    void drop_key(const std::string& name) {
        REQUIRE(std::erase_if(keys, [&](const auto& k) { return k.first == name; }) == 1);
    }
    Part& tensor(const std::string& name) {
        for (Part& t : tensors)
            if (t.name == name) return t;
        FAIL("tiny.gguf has no tensor " << name);
        std::abort();
    }
    void drop(const std::string& name) {
        REQUIRE(std::erase_if(tensors, [&](const Part& t) { return t.name == name; }) == 1);
    }
    // Changes the shape; the data is cut or continued with zeros.
    void reshape(const std::string& name, const Shape& ne) {
        Part& t = tensor(name);
        t.ne = ne;
        size_t n = sizeof(float);
        for (uint64_t d : ne) n *= d;
        t.data.resize(n);
    }
    void set_float(const std::string& name, size_t i, float v) {
        std::memcpy(tensor(name).data.data() + i * sizeof v, &v, sizeof v);
    }

    std::shared_ptr<const Model> model() const {
        MakeGguf make;
        for (const auto& [name, encoded] : keys) make.set_raw(name, encoded);
        for (const Part& t : tensors) make.tensor(t.name, t.type, t.ne, t.data);
        const auto bytes = std::make_shared<std::vector<uint8_t>>(make.bytes());
        // The file's views point into the bytes, so it takes them along.
        const std::shared_ptr<const Gguf> file(new Gguf(Gguf::from_memory(*bytes, "test")),
                                               [bytes](const Gguf* g) { delete g; });
        return std::make_shared<const Model>(file);
    }
};

std::string block(int l, const std::string& tail) {
    return fmt::format("blk.{}.{}", l, tail);
}

// What binding the changed file says.
std::string message(const std::function<void(Tiny&)>& change) {
    Tiny tiny;
    change(tiny);
    try {
        tiny.model();
    } catch (const Error& e) {
        return e.what();
    }
    return "(no error)";
}

std::string key_message(const std::string& name, const std::string& encoded) {
    return message([&](Tiny& t) { t.set(name, encoded); });
}

// Logits of a pass without and of one with self-conditioning, after a prompt longer than the window.
std::vector<float> logits(const Tiny& tiny) {
    static const auto golden = read_json(fixture("tiny.json"));
    const std::vector<int32_t> prompt = golden["prompt"], canvas = golden["canvas"];
    const auto model = tiny.model();
    const auto backend = make_cpu_backend(model, 256);
    backend->encode(prompt);
    const size_t n = size_t(model->config.n_canvas) * model->config.n_vocab;
    std::vector<float> out(2 * n);
    const std::span<float> first = std::span(out).first(n), second = std::span(out).last(n);
    backend->logits({canvas, {}, 1}, first);
    backend->logits({canvas, first, 0.8f}, second);
    return out;
}

const std::vector<float>& plain_logits() {
    static const std::vector<float> out = logits(Tiny());
    return out;
}

// What is only named differently must compute the very same.
void check_same(const std::function<void(Tiny&)>& change) {
    Tiny tiny;
    change(tiny);
    CHECK(logits(tiny) == plain_logits());
}

// The dialect's files have one scalar a layer; this is the same model in the published form.
void equal_scalars(Tiny& tiny) {
    for (int l = 0; l < 6; l++)
        tiny.tensor(block(l, "enc_layer_output_scale.weight")).data =
            tiny.tensor(block(l, "layer_output_scale.weight")).data;
}

}  // namespace

TEST_CASE("model: numbers and shapes of the tiny file") {
    const auto model = Tiny().model();
    const Config& c = model->config;
    CHECK(c.n_layer == 6);
    CHECK(c.n_embd == 64);
    CHECK(c.n_head == 4);
    CHECK(c.n_ff == 96);
    CHECK(c.n_ff_exp == 32);
    CHECK(c.n_expert == 8);
    CHECK(c.n_expert_used == 2);
    CHECK(c.n_vocab == 512);
    CHECK(c.n_canvas == 24);
    CHECK(c.n_context == 4096);
    CHECK(c.window == 16);
    CHECK(c.rms_eps == 1e-6f);
    CHECK(c.softcap == 30);
    CHECK(c.rope_theta == 1e6);
    CHECK(c.rope_theta_swa == 1e4);
    CHECK(c.max_head_dim() == 32);
    REQUIRE(c.layers.size() == 6);
    for (int l = 0; l < 6; l++) {
        CHECK(c.layers[l].global == (l == 5));
        CHECK(c.layers[l].n_head_kv == (l == 5 ? 1 : 2));
        CHECK(c.layers[l].head_dim == (l == 5 ? 32 : 16));
        CHECK(bool(model->layers[l].v) == (l != 5));
    }
    CHECK(model->output.data == model->token_embd.data);
    CHECK(model->rope_freqs.size() == 16);
    int64_t n = 0;
    for (const auto& t : Tiny().tensors) n += static_cast<int64_t>(t.data.size());
    CHECK(model->weight_bytes() == n);
    CHECK(model->n_parameters() == n / 4);
    Model made;
    made.storage = {std::vector<uint8_t>(5), std::vector<uint8_t>(7)};
    CHECK(made.weight_bytes() == 12);
}

TEST_CASE("model: scalars that differ between the passes are warned of") {
    Tiny tiny;
    equal_scalars(tiny);
    CHECK(tiny.model()->warnings.empty());
    tiny.set_float("blk.3.enc_layer_output_scale.weight", 0, 0.5f);
    const auto model = tiny.model();
    REQUIRE(model->warnings.size() == 1);
    CHECK(model->warnings[0] == "1 of 6 layers have different scalars for denoise and encode");
    CHECK(model->layers[3].enc_output_scale == 0.5f);
}

TEST_CASE("model: what the architecture must be") {
    CHECK(key_message("general.architecture", Tiny::text("llama")) ==
          "test: architecture is \"llama\", easel reads \"diffusion-gemma\"");
    CHECK(key_message("general.architecture", Tiny::u32(1)) ==
          "test: key general.architecture is of type u32, expected a string");
    CHECK(message([](Tiny& t) { t.drop_key("general.architecture"); }) ==
          "test: key general.architecture is missing, expected a string");
    // The other name has its keys under that name.
    CHECK(key_message("general.architecture", Tiny::text("diffusion-gemma4")) ==
          "test: key diffusion-gemma4.block_count is missing, expected an integer");
}

TEST_CASE("model: a missing key is named") {
    for (const char* name : {"block_count", "context_length", "embedding_length", "feed_forward_length",
                             "expert_count", "expert_used_count", "expert_feed_forward_length",
                             "attention.key_length", "attention.key_length_swa", "attention.sliding_window"})
        CHECK(message([&](Tiny& t) { t.drop_key(kArch + name); }) ==
              "test: key " + kArch + name + " is missing, expected an integer");
    for (const char* name : {"attention.layer_norm_rms_epsilon", "final_logit_softcapping", "rope.freq_base",
                             "rope.freq_base_swa"})
        CHECK(message([&](Tiny& t) { t.drop_key(kArch + name); }) ==
              "test: key " + kArch + name + " is missing, expected a number");
    for (const char* name :
         {"attention.head_count", "attention.head_count_kv", "attention.sliding_window_pattern"})
        CHECK(message([&](Tiny& t) { t.drop_key(kArch + name); }) ==
              "test: key " + kArch + name + " is missing, expected integers");
    CHECK(message([](Tiny& t) { t.drop_key("diffusion.canvas_length"); }) ==
          "test: key diffusion.canvas_length is missing, expected an integer");
}

TEST_CASE("model: keys that have a default") {
    check_same([](Tiny& t) {
        for (const char* name :
             {"attention.value_length", "attention.value_length_swa", "rope.dimension_count",
              "rope.dimension_count_swa", "attention.shared_kv_layers", "embedding_length_per_layer_input",
              "attention.causal"})
            t.drop_key(kArch + name);
    });
    Tiny tiny;
    for (const char* name :
         {"max_steps", "t_min", "t_max", "entropy_bound", "stability_threshold", "confidence_threshold"})
        tiny.drop_key(std::string("diffusion.eb_") + name);
    const SamplerConfig s = tiny.model()->config.sampler;
    CHECK(s.max_steps == 48);
    CHECK(s.t_min == 0.4f);
    CHECK(s.t_max == 0.8f);
    CHECK(s.entropy_bound == 0.1f);
    CHECK(s.stability == 1);
    CHECK(s.confidence == 0.005f);
}

TEST_CASE("model: the file's sampler settings are read and bounded") {
    Tiny tiny;
    tiny.set("diffusion.eb_max_steps", Tiny::u32(7));
    tiny.set("diffusion.eb_t_min", Tiny::f32(0.25f));
    tiny.set("diffusion.eb_t_max", Tiny::raw(ValueType::F64, 2.0));
    tiny.set("diffusion.eb_entropy_bound", Tiny::f32(0));
    tiny.set("diffusion.eb_stability_threshold", Tiny::u32(3));
    tiny.set("diffusion.eb_confidence_threshold", Tiny::f32(0.5f));
    const SamplerConfig s = tiny.model()->config.sampler;
    CHECK(s.max_steps == 7);
    CHECK(s.t_min == 0.25f);
    CHECK(s.t_max == 2);
    CHECK(s.entropy_bound == 0);
    CHECK(s.stability == 3);
    CHECK(s.confidence == 0.5f);
    Tiny hot;  // above the largest temperature that is the default
    hot.set("diffusion.eb_t_min", Tiny::f32(2));
    hot.drop_key("diffusion.eb_t_max");
    CHECK(hot.model()->config.sampler.t_max == 2);

    const auto refused = [](const std::string& tail, const std::string& encoded, const std::string& found) {
        const std::string key = "diffusion.eb_" + tail;
        INFO(key_message(key, encoded));
        CHECK(key_message(key, encoded).rfind("test: key " + key + " is " + found + ", expected ", 0) == 0);
    };
    refused("max_steps", Tiny::u32(0), "0");
    refused("max_steps", Tiny::u32(100001), "100001");
    refused("max_steps", Tiny::f32(8), "of type f32");
    refused("stability_threshold", Tiny::u32(100001), "100001");
    refused("stability_threshold", Tiny::raw(ValueType::I32, -1), "-1");
    refused("t_min", Tiny::f32(0), "0");
    refused("t_max", Tiny::f32(0.25f), "0.25");  // below t_min
    refused("t_max", Tiny::f32(101), "101");
    refused("t_max", Tiny::f32(std::numeric_limits<float>::infinity()), "inf");
    refused("entropy_bound", Tiny::f32(-1), "-1");
    refused("entropy_bound", Tiny::f32(2e9f), "2000000000");
    refused("confidence_threshold", Tiny::f32(2e9f), "2000000000");
    refused("confidence_threshold", Tiny::f32(std::numeric_limits<float>::quiet_NaN()), "nan");
    refused("confidence_threshold", Tiny::text("low"), "of type string");
}

TEST_CASE("model: a key of the wrong type is named") {
    CHECK(key_message(kArch + "block_count", Tiny::text("6")) ==
          "test: key diffusion-gemma.block_count is of type string, expected an integer");
    CHECK(key_message(kArch + "embedding_length", Tiny::f32(64)) ==
          "test: key diffusion-gemma.embedding_length is of type f32, expected an integer");
    CHECK(key_message(kArch + "expert_count", Tiny::raw_array<int32_t>(ValueType::I32, {8, 8})) ==
          "test: key diffusion-gemma.expert_count is of type an array of i32, expected an integer");
    CHECK(key_message(kArch + "rope.freq_base", Tiny::text("1e6")) ==
          "test: key diffusion-gemma.rope.freq_base is of type string, expected a number");
    CHECK(key_message(kArch + "attention.head_count_kv", Tiny::raw_array<float>(ValueType::F32, {2})) ==
          "test: key diffusion-gemma.attention.head_count_kv is an array of f32, expected an array of "
          "integers");
    CHECK(
        key_message(kArch + "attention.sliding_window_pattern", Tiny::text("tttttf")) ==
        "test: key diffusion-gemma.attention.sliding_window_pattern is of type string, expected an integer");
}

TEST_CASE("model: a value out of range is named with its range") {
    const auto check = [](const std::string& tail, const std::string& encoded, const std::string& rest) {
        CHECK(key_message(kArch + tail, encoded) == "test: key " + kArch + tail + " is " + rest);
    };
    const float nan = std::numeric_limits<float>::quiet_NaN();
    check("block_count", Tiny::u32(0), "0, expected 1 to 4096");
    check("block_count", Tiny::u32(4097), "4097, expected 1 to 4096");
    check("block_count", Tiny::raw(ValueType::I32, -6), "-6, expected 1 to 4096");
    check("block_count", Tiny::raw(ValueType::U64, UINT64_MAX),
          fmt::format("{}, expected 1 to 4096", INT64_MAX));
    check("embedding_length", Tiny::u32(0), "0, expected 1 to 1048576");
    check("feed_forward_length", Tiny::u32(UINT32_MAX), "4294967295, expected 1 to 1048576");
    check("expert_feed_forward_length", Tiny::u32(0), "0, expected 1 to 1048576");
    check("expert_count", Tiny::u32(0), "0, expected 1 to 65536");
    check("expert_used_count", Tiny::u32(9), "9, expected 1 to 8");
    check("context_length", Tiny::u32(UINT32_MAX), "4294967295, expected 1 to 1073741823");
    check("attention.key_length", Tiny::u32(0), "0, expected 2 to 65536");
    check("attention.key_length", Tiny::u32(33), "33, expected an even number");
    check("attention.value_length", Tiny::u32(16), "16, expected 32 as diffusion-gemma.attention.key_length");
    check("attention.value_length_swa", Tiny::u32(32),
          "32, expected 16 as diffusion-gemma.attention.key_length_swa");
    check("rope.dimension_count", Tiny::u32(8), "8, expected 32 as diffusion-gemma.attention.key_length");
    check("attention.sliding_window", Tiny::u32(0), "0, expected 1 to 1073741823");
    check("attention.layer_norm_rms_epsilon", Tiny::f32(-1), "-1, expected 0 to 1");
    check("attention.layer_norm_rms_epsilon", Tiny::f32(nan), "nan, expected 0 to 1");
    check("final_logit_softcapping", Tiny::f32(0), "0, expected 0.001 to 1000000");
    check("rope.freq_base", Tiny::f32(0), "0, expected 1 to 1000000000000");
    check("rope.freq_base_swa", Tiny::f32(nan), "nan, expected 1 to 1000000000000");
    check("attention.shared_kv_layers", Tiny::u32(2), "2, expected 0");
    check("embedding_length_per_layer_input", Tiny::u32(256), "256, expected 0");
    CHECK(key_message("diffusion.canvas_length", Tiny::u32(0)) ==
          "test: key diffusion.canvas_length is 0, expected 1 to 4096");
    CHECK(key_message("diffusion.canvas_length", Tiny::u32(4097)) ==
          "test: key diffusion.canvas_length is 4097, expected 1 to 4096");
    CHECK(message([](Tiny& t) {
              t.set(kArch + "context_length", Tiny::u32(100000));
              t.set("diffusion.canvas_length", Tiny::u32(65537));
          }) == "test: key diffusion.canvas_length is 65537, expected 1 to 65536");
}

TEST_CASE("model: heads must divide") {
    const std::string kv = kArch + "attention.head_count_kv", q = kArch + "attention.head_count";
    const auto array = [](const std::vector<int32_t>& v) {
        return Tiny::raw_array<int32_t>(ValueType::I32, v);
    };
    CHECK(key_message(kv, array({2, 2, 3, 2, 2, 1})) ==
          "test: key " + kv + " is 3 for layer 2, expected a divisor of the 4 heads");
    CHECK(key_message(kv, array({2, 2, 2, 2, 0, 1})) ==
          "test: key " + kv + " is 0 for layer 4, expected a divisor of the 4 heads");
    CHECK(key_message(kv, array({-2, 2, 2, 2, 2, 1})) ==
          "test: key " + kv + " is -2 for layer 0, expected a divisor of the 4 heads");
    CHECK(key_message(kv, array({2, 2, 2, 2, 2, 8})) ==
          "test: key " + kv + " is 8 for layer 5, expected a divisor of the 4 heads");
    CHECK(key_message(kv, array({2, 2, 2, 2, 2})) ==
          "test: key " + kv + " has 5 items, expected 1 or one per layer (6)");
    CHECK(key_message(kv, array({})) == "test: key " + kv + " has 0 items, expected 1 or one per layer (6)");
    CHECK(key_message(q, Tiny::u32(0)) ==
          "test: key " + q + " is 0 for layer 0, expected the same number, 1 to 4096, for all");
    CHECK(key_message(q, Tiny::u32(4097)) ==
          "test: key " + q + " is 4097 for layer 0, expected the same number, 1 to 4096, for all");
    CHECK(key_message(q, array({4, 4, 4, 8, 4, 4})) ==
          "test: key " + q + " is 8 for layer 3, expected the same number, 1 to 4096, for all");
}

TEST_CASE("model: a pattern of the wrong length is refused") {
    const std::string key = kArch + "attention.sliding_window_pattern";
    for (size_t n : {0, 1, 5, 7}) {
        const std::string pattern = Tiny::raw_array(ValueType::Bool, std::vector<uint8_t>(n, 1));
        CHECK(key_message(key, pattern) ==
              fmt::format("test: key {} has {} items, expected one per layer (6)", key, n));
    }
    CHECK(key_message(key, Tiny::u32(7)) == "test: key " + key + " is 7, expected 0 to 6");
    CHECK(key_message(key, Tiny::raw(ValueType::I32, -1)) == "test: key " + key + " is -1, expected 0 to 6");
}

TEST_CASE("model: integers of any type and scalars for arrays") {
    SECTION("a period for the pattern") {
        check_same([](Tiny& t) { t.set(kArch + "attention.sliding_window_pattern", Tiny::u32(6)); });
    }
    SECTION("a pattern of integers") {
        check_same([](Tiny& t) {
            t.set(kArch + "attention.sliding_window_pattern",
                  Tiny::raw_array<int32_t>(ValueType::I32, {1, 1, 1, 1, 1, 0}));
        });
        check_same([](Tiny& t) {
            t.set(kArch + "attention.sliding_window_pattern",
                  Tiny::raw_array<uint8_t>(ValueType::U8, {1, 1, 1, 1, 1, 0}));
        });
    }
    SECTION("heads as unsigned or wide integers") {
        check_same([](Tiny& t) {
            t.set(kArch + "attention.head_count_kv",
                  Tiny::raw_array<uint32_t>(ValueType::U32, {2, 2, 2, 2, 2, 1}));
            t.set(kArch + "attention.head_count",
                  Tiny::raw_array<int64_t>(ValueType::I64, {4, 4, 4, 4, 4, 4}));
        });
    }
    SECTION("other integer types of scalars") {
        check_same([](Tiny& t) {
            t.set(kArch + "block_count", Tiny::raw(ValueType::I32, 6));
            t.set(kArch + "embedding_length", Tiny::raw(ValueType::U64, uint64_t{64}));
            t.set(kArch + "expert_count", Tiny::raw(ValueType::U8, uint8_t{8}));
            t.set(kArch + "attention.shared_kv_layers", Tiny::raw(ValueType::Bool, uint8_t{0}));
            t.set(kArch + "attention.causal", Tiny::u32(0));
            t.set(kArch + "rope.freq_base", Tiny::u32(1000000));
            t.set(kArch + "final_logit_softcapping", Tiny::raw(ValueType::F64, 30.0));
        });
    }
    SECTION("one number of KV heads for all layers") {
        Tiny scalar, array;
        for (Tiny* t : {&scalar, &array}) {
            t->reshape("blk.5.attn_k.weight", {64, 64});
            t->set(kArch + "attention.head_count_kv",
                   Tiny::raw_array<int32_t>(ValueType::I32, {2, 2, 2, 2, 2, 2}));
        }
        scalar.set(kArch + "attention.head_count_kv", Tiny::u32(2));
        CHECK(scalar.model()->config.layers[5].n_head_kv == 2);
        CHECK(logits(scalar) == logits(array));
    }
}

TEST_CASE("model: which layers a period makes global") {
    // All layers alike, so that any of them can be global: only the shapes below are looked at.
    const std::string key = kArch + "attention.sliding_window_pattern";
    Tiny tiny;
    tiny.set(kArch + "attention.key_length", Tiny::u32(16));
    tiny.set(kArch + "attention.value_length", Tiny::u32(16));
    tiny.set(kArch + "rope.dimension_count", Tiny::u32(16));
    tiny.set(kArch + "attention.head_count_kv", Tiny::u32(2));
    tiny.drop("rope_freqs.weight");
    for (const char* tail : {"attn_q.weight", "attn_k.weight", "attn_output.weight", "attn_q_norm.weight",
                             "attn_k_norm.weight"}) {
        const Tiny::Part like = tiny.tensor(block(0, tail));
        tiny.tensor(block(5, tail)).ne = like.ne;
        tiny.tensor(block(5, tail)).data = like.data;
    }
    tiny.tensors.push_back(tiny.tensor("blk.0.attn_v.weight"));
    tiny.tensors.back().name = "blk.5.attn_v.weight";
    const auto global = [&](uint32_t period) {
        tiny.set(key, Tiny::u32(period));
        std::string out;
        const auto model = tiny.model();
        for (const LayerShape& l : model->config.layers) out += l.global ? 'g' : '.';
        return out;
    };
    CHECK(global(0) == "......");
    CHECK(global(1) == "gggggg");
    CHECK(global(2) == ".g.g.g");
    CHECK(global(4) == "...g..");
    CHECK(global(6) == ".....g");
    // One bool, unlike a number, is for all layers: true is sliding.
    for (bool sliding : {false, true}) {
        tiny.set(key, Tiny::raw(ValueType::Bool, uint8_t{sliding}));
        const auto model = tiny.model();
        for (const LayerShape& l : model->config.layers) CHECK(l.global != sliding);
    }
    // Without layers of a kind, the keys of that kind are not needed.
    for (const char* tail : {"attention.key_length", "attention.value_length", "rope.dimension_count"})
        tiny.drop_key(kArch + tail);
    CHECK(global(0) == "......");
    CHECK(tiny.model()->rope_freqs.empty());
}

TEST_CASE("model: a period in a file of one layer") {
    Tiny tiny;
    tiny.set(kArch + "block_count", Tiny::u32(1));
    tiny.set(kArch + "attention.head_count_kv", Tiny::u32(2));
    tiny.set(kArch + "attention.key_length", Tiny::u32(16));
    tiny.set(kArch + "attention.value_length", Tiny::u32(16));
    tiny.set(kArch + "rope.dimension_count", Tiny::u32(16));
    tiny.drop("rope_freqs.weight");
    tiny.set(kArch + "attention.sliding_window_pattern", Tiny::u32(1));
    CHECK(tiny.model()->config.layers[0].global);
    tiny.set(kArch + "attention.sliding_window_pattern", Tiny::u32(0));
    CHECK_FALSE(tiny.model()->config.layers[0].global);
    tiny.set(kArch + "attention.sliding_window_pattern", Tiny::raw_array<uint8_t>(ValueType::Bool, {1}));
    CHECK_FALSE(tiny.model()->config.layers[0].global);
}

TEST_CASE("model: every missing tensor is named") {
    // Those that may be absent: a default or another form stands for them.
    const auto optional = [](const std::string& name) {
        return name == "rope_freqs.weight" || name.find("enc_layer_output_scale") != std::string::npos;
    };
    for (const Tiny::Part& part : Tiny().tensors) {
        const bool first = part.name.rfind("blk.0.", 0) == 0, last = part.name.rfind("blk.5.", 0) == 0;
        if (part.name.rfind("blk.", 0) == 0 && !first && !last) continue;  // as layer 0
        const std::string found = message([&](Tiny& t) { t.drop(part.name); });
        if (optional(part.name))
            CHECK(found == "(no error)");
        else if (part.name == "token_embd.weight")
            CHECK(found == "test: tensor token_embd.weight is missing");
        else
            CHECK(found == fmt::format("test: tensor {} is missing, expected shape [{}]", part.name,
                                       fmt::join(part.ne, ", ")));
    }
}

TEST_CASE("model: every misshapen tensor is named") {
    for (const Tiny::Part& part : Tiny().tensors) {
        const bool first = part.name.rfind("blk.0.", 0) == 0, last = part.name.rfind("blk.5.", 0) == 0;
        if (part.name.rfind("blk.", 0) == 0 && !first && !last) continue;
        for (size_t d = 0; d < part.ne.size(); d++) {
            if (part.name == "token_embd.weight" && d == 1) continue;  // defines n_vocab
            Shape wrong = part.ne;
            wrong[d]++;
            const std::string found = message([&](Tiny& t) { t.reshape(part.name, wrong); });
            // This one defines the width of its three, so another is the odd one out.
            if (part.name == "self_cond_gate.weight" && d == 1)
                CHECK(found == "test: tensor self_cond_up.weight has shape [64, 96], expected [64, 97]");
            else
                CHECK(found == fmt::format("test: tensor {} has shape [{}], expected [{}]", part.name,
                                           fmt::join(wrong, ", "), fmt::join(part.ne, ", ")));
        }
    }
    // The same number of values does not make it fit; a further dimension of 1 does no harm.
    CHECK(message([](Tiny& t) {
              t.reshape("blk.0.attn_k.weight", {32, 64});
          }) == "test: tensor blk.0.attn_k.weight has shape [32, 64], expected [64, 32]");
    CHECK(message([](Tiny& t) { t.reshape("blk.0.attn_k.weight", {64, 32, 1, 1}); }) == "(no error)");
    CHECK(message([](Tiny& t) {
              t.reshape("token_embd.weight", {64, 1});
          }) == "test: tensor token_embd.weight has shape [64, 1], expected 64 x n_vocab");
}

TEST_CASE("model: small tensors must hold finite numbers") {
    const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
    for (const char* name :
         {"output_norm.weight", "self_cond_pre_norm.weight", "blk.0.attn_norm.weight",
          "blk.5.attn_q_norm.weight", "blk.2.attn_k_norm.weight", "blk.1.ffn_norm.weight",
          "blk.1.post_attention_norm.weight", "blk.1.post_ffw_norm.weight", "blk.1.post_ffw_norm_1.weight",
          "blk.1.post_ffw_norm_2.weight", "blk.1.pre_ffw_norm_2.weight", "blk.3.ffn_gate_inp.scale",
          "blk.3.ffn_down_exps.scale", "blk.4.layer_output_scale.weight",
          "blk.4.enc_layer_output_scale.weight", "rope_freqs.weight"}) {
        CHECK(message([&](Tiny& t) { t.set_float(name, 0, nan); }) ==
              fmt::format("test: tensor {} holds nan, expected finite numbers", name));
        CHECK(message([&](Tiny& t) { t.set_float(name, t.tensor(name).data.size() / 4 - 1, -inf); }) ==
              fmt::format("test: tensor {} holds -inf, expected finite numbers", name));
    }
    // They divide angles.
    for (float bad : {0.0f, -1.0f})
        CHECK(message([&](Tiny& t) { t.set_float("rope_freqs.weight", 3, bad); }) ==
              fmt::format("test: tensor rope_freqs.weight holds {}, expected positive divisors", bad));
}

TEST_CASE("model: the other dialect gives the same logits") {
    Tiny published;
    equal_scalars(published);
    const std::vector<float> expected = logits(published);
    CHECK(expected != plain_logits());  // the two scalars of the fixture differ

    Tiny other = published;
    other.tensor("self_cond_pre_norm.weight").name = "self_cond_norm.weight";
    for (int l = 0; l < 6; l++) other.drop(block(l, "enc_layer_output_scale.weight"));
    CHECK(logits(other) == expected);
    CHECK(other.model()->warnings.empty());

    // Its first version had another name, which all keys begin with.
    other.set("general.architecture", Tiny::text("diffusion-gemma4"));
    for (auto& [key, value] : other.keys)
        if (key.rfind(kArch, 0) == 0) key = "diffusion-gemma4." + key.substr(kArch.size());
    CHECK(logits(other) == expected);
}

TEST_CASE("model: separate gate and up experts give the same logits") {
    const auto split = [](Tiny& t) {
        for (int l = 0; l < 6; l++) {
            const Tiny::Part both = t.tensor(block(l, "ffn_gate_up_exps.weight"));
            t.drop(both.name);
            const Shape ne = {both.ne[0], both.ne[1] / 2, both.ne[2]};
            const size_t half = sizeof(float) * ne[0] * ne[1];
            Tiny::Part gate{block(l, "ffn_gate_exps.weight"), Type::F32, ne, ""};
            Tiny::Part up{block(l, "ffn_up_exps.weight"), Type::F32, ne, ""};
            for (size_t e = 0; e < ne[2]; e++) {
                gate.data += both.data.substr(2 * e * half, half);
                up.data += both.data.substr((2 * e + 1) * half, half);
            }
            t.tensors.push_back(gate);
            t.tensors.push_back(up);
        }
    };
    check_same(split);
    CHECK(message([&](Tiny& t) {
              split(t);
              t.drop("blk.1.ffn_up_exps.weight");
          }) == "test: tensor blk.1.ffn_up_exps.weight is missing, expected shape [64, 32, 8]");
}

TEST_CASE("model: tensors that may be there or not") {
    SECTION("an output matrix of its own") {
        const auto own = [](Tiny& t) {
            t.tensors.push_back(t.tensor("token_embd.weight"));
            t.tensors.back().name = "output.weight";
        };
        check_same(own);
        Tiny tiny;
        own(tiny);
        tiny.set_float("output.weight", 0, 100);
        CHECK(logits(tiny) != plain_logits());
        CHECK(message([&](Tiny& t) {
                  own(t);
                  t.reshape("output.weight", {64, 511});
              }) == "test: tensor output.weight has shape [64, 511], expected [64, 512]");
    }
    SECTION("no rope_freqs: all divisors are 1") {
        Tiny ones, none;
        for (int i = 0; i < 16; i++) ones.set_float("rope_freqs.weight", i, 1);
        none.drop("rope_freqs.weight");
        CHECK(logits(none) == logits(ones));
    }
    SECTION("a v projection on a global layer, equal to its k projection") {
        check_same([](Tiny& t) {
            t.tensors.push_back(t.tensor("blk.5.attn_k.weight"));
            t.tensors.back().name = "blk.5.attn_v.weight";
        });
    }
    SECTION("tensors that easel does not know") {
        check_same([](Tiny& t) { t.tensors.push_back({"v.patch_embd.weight", Type::F32, {1}, "\1\2\3\4"}); });
    }
}
