// test_transformers.cpp: small random models of the transformers class itself, converted here, against its
// own results (tests/fixtures/hf, made by tools/golden.py).
#include "golden.h"

using namespace easel;

// Both sides are float32: the difference is rounding.
TEST_CASE("transformers: logits, the loop and token ids") {
    for (const std::string name : {"hf_small", "hf_two", "hf_long"}) {
        INFO(name);
        const auto model = load_model(converted(name));
        const auto golden = read_json(fixture("hf/" + name + ".json"));
        const std::vector<int32_t> prompt = golden["prompt"];
        const auto backend = make_cpu_backend(model, model->config.n_context);
        backend->encode(prompt);
        check_logits("hf/" + name, *backend, 3e-6);
        if (golden.contains("committed")) {  // the canvas after one more was committed
            backend->encode(golden["committed"].get<std::vector<int32_t>>());
            const auto expected = read_f32(fixture("hf/" + name + ".logits2.f32"));
            std::vector<float> logits(expected.size());
            backend->logits({golden["canvas"].get<std::vector<int32_t>>(), {}, 1}, logits);
            CHECK(relative_error(logits, expected) < 3e-6);
        }
        check_generation("hf/" + name + ".json", *make_cpu_backend(model, model->config.n_context), *model,
                         2e-6);
        check_generation("hf/" + name + ".cut.json", *make_cpu_backend(model, model->config.n_context),
                         *model, 2e-6);

        const Tokenizer tokenizer(*model->file);
        for (const auto& row : read_json(fixture("hf/" + name + ".tokenize.json"))) {
            const std::string text = row["text"];
            INFO(text);
            CHECK(tokenizer.encode(text, Specials::All) == row["ids_special"].get<std::vector<int32_t>>());
        }
    }
}
