// golden.h: reading expected results from tests/fixtures (see tests/fixtures/README.md) and comparing with
// them.
#pragma once
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "backend.h"
#include "catch.h"
#include "check.h"
#include "convert.h"
#include "tokenizer.h"

inline std::string fixture(const std::string& name) {
    return "tests/fixtures/" + name;
}

inline nlohmann::json read_json(const std::string& path) {
    std::ifstream in(path);
    easel::require(in.good(), "{}: cannot be read; tests run from the project's root", path);
    return nlohmann::json::parse(in);
}

inline std::vector<float> read_f32(const std::string& path) {
    std::ifstream in(path, std::ios::binary | std::ios::ate);
    easel::require(in.good(), "{}: cannot be read; tests run from the project's root", path);
    std::vector<float> v(static_cast<size_t>(in.tellg()) / sizeof(float));
    in.seekg(0);
    in.read(reinterpret_cast<char*>(v.data()), static_cast<std::streamsize>(v.size() * sizeof(float)));
    return v;
}

// |a - b| / |b| in the Frobenius norm; infinite when sizes differ.
inline double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
    if (a.size() != b.size()) return INFINITY;
    double difference = 0, norm = 0;
    for (size_t i = 0; i < a.size(); i++) {
        difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
        norm += double{b[i]} * b[i];
    }
    return std::sqrt(difference / norm);
}

inline std::shared_ptr<const easel::Model> load_model(const std::string& path) {
    return std::make_shared<const easel::Model>(std::make_shared<easel::Gguf>(easel::Gguf::open(path)));
}

// tests/fixtures/hf/NAME as a float32 GGUF file under build/.
inline std::string converted(const std::string& name) {
    std::filesystem::create_directories("build/test");
    const std::string path = "build/test/" + name + ".gguf";
    easel::ConvertOptions options;
    options.type = "f32";
    options.quiet = true;
    easel::convert(fixture("hf/" + name), path, options);
    return path;
}

// NAME.json's canvas through one pass without (NAME.logits0.f32) and, reversed, one with self-conditioning
// (NAME.logits1.f32), after whatever `backend` has encoded.
inline void check_logits(const std::string& name, easel::Backend& backend, double tolerance) {
    std::vector<int32_t> canvas = read_json(fixture(name + ".json"))["canvas"];
    const auto expected0 = read_f32(fixture(name + ".logits0.f32"));
    const auto expected1 = read_f32(fixture(name + ".logits1.f32"));
    std::vector<float> logits0(expected0.size()), logits1(expected1.size());
    backend.logits({canvas, {}, 1}, logits0);
    CHECK(relative_error(logits0, expected0) < tolerance);
    std::reverse(canvas.begin(), canvas.end());
    backend.logits({canvas, logits0, 0.8f}, logits1);
    CHECK(relative_error(logits1, expected1) < tolerance);
}

// The whole loop: tokens, and every step's acceptance, argmax canvas and mean entropy, as `file` has them. An
// answer that the file shows cut short must end by an end-of-generation id.
inline void check_generation(const std::string& file, easel::Backend& backend, const easel::Model& model,
                             double entropy_tolerance) {
    INFO(file);
    const auto golden = read_json(fixture(file));
    const std::vector<int32_t> prompt = golden["prompt"], tokens = golden["tokens"];
    backend.encode(prompt);
    easel::GenerateParams params;
    params.sampler = model.config.sampler;
    params.seed = golden["seed"];
    params.max_canvases = golden["n_canvases"];
    params.end_tokens = easel::Tokenizer(*model.file).end_of_generation;
    size_t row = 0;
    const easel::Answer answer = backend.generate(params, [&](const easel::Frame& f) {
        const auto& step = golden["steps"].at(row++);
        CHECK(f.canvas == step["canvas"]);
        CHECK(f.step == step["step"]);
        CHECK(std::count(f.accepted.begin(), f.accepted.end(), 1) == step["accepted"]);
        CHECK(std::vector<int32_t>(f.argmax.begin(), f.argmax.end()) ==
              step["argmax"].get<std::vector<int32_t>>());
        CHECK(std::fabs(f.mean_entropy - step["mean_entropy"].get<double>()) < entropy_tolerance);
        return true;
    });
    CHECK(row == golden["steps"].size());
    CHECK(answer.tokens == tokens);
    const bool whole = tokens.size() == size_t(params.max_canvases) * model.config.n_canvas;
    CHECK(answer.finish == (whole ? easel::Finish::Length : easel::Finish::Stop));
}

// A callback that says stop ends the answer after that step, one that throws at once; the next answer is that
// of `fresh`, a backend like it.
inline void check_stopped(easel::Backend& backend, easel::Backend& fresh) {
    const std::vector<int32_t> prompt{2, 5, 9};
    backend.encode(prompt);
    easel::GenerateParams params;
    params.max_canvases = 2;
    params.sampler.max_steps = 3;
    int n = 0;
    const easel::Answer a = backend.generate(params, [&](const easel::Frame&) { return ++n < 2; });
    CHECK(n == 2);
    CHECK(a.finish == easel::Finish::Cancelled);
    CHECK(a.tokens.empty());
    CHECK(a.steps == std::vector<int>{2});
    CHECK(backend.n_cached() == 3);
    const auto enough = [](const easel::Frame&) -> bool { throw easel::Error("enough"); };
    CHECK_THROWS_WITH(backend.generate(params, enough), "enough");
    CHECK(backend.n_cached() == 3);
    params.max_canvases = 1;
    fresh.encode(prompt);
    CHECK(backend.generate(params, {}).tokens == fresh.generate(params, {}).tokens);
}

// What does not fit a context of 40 tokens is refused before anything is computed.
inline void check_refusals(easel::Backend& backend) {
    CHECK_THROWS_WITH(backend.encode(std::vector<int32_t>(41, 5)),
                      Catch::Contains("41 tokens") && Catch::Contains("40"));
    backend.encode(std::vector<int32_t>(17, 5));
    easel::GenerateParams params;
    params.sampler.max_steps = 2;
    CHECK_THROWS_WITH(backend.generate(params, {}), Catch::Contains("need 41 tokens, the context has 40"));
    backend.truncate(16);
    CHECK(backend.generate(params, {}).tokens.size() == 24);
    CHECK_THROWS_WITH(backend.encode(std::vector<int32_t>{512}), Catch::Contains("token id 512"));
    CHECK_THROWS_WITH(backend.encode(std::vector<int32_t>{-1}), Catch::Contains("token id -1"));
}

// A frame of a canvas with given tokens: they are as they were given, certain, and not in the mean.
inline void check_given(const easel::Frame& f, const easel::Given& given) {
    double sum = 0;
    int n_free = 0;
    for (size_t i = 0; i < f.tokens.size(); i++) {
        sum += f.entropy[i];
        n_free += given.tokens[i] < 0;
        if (given.tokens[i] < 0) continue;
        CHECK(f.tokens[i] == given.tokens[i]);
        CHECK(f.argmax[i] == given.tokens[i]);
        CHECK(f.accepted[i] == 1);
        CHECK(f.entropy[i] == 0);
        CHECK(f.log_prob[i] == 0);
    }
    CHECK(f.mean_entropy == Approx(sum / n_free).epsilon(1e-5));
}
