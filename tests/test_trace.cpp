// test_trace.cpp: traces in parts: what is written is read again, broken files, and what may come into a page
// or a figure. tests/trace.sh drives the program and shows the page to a browser.
#include <limits>
#include <nlohmann/json.hpp>

#include "catch.h"
#include "files.h"
#include "sampler_settings.h"
#include "trace.h"

using namespace easel;
using Json = nlohmann::json;

namespace {

// A trace of two canvases of two tokens, three steps, as lines.
std::vector<std::string> small_trace() {
    return {
        R"({"easel_trace":1,"model":"m","device":"CPU","canvas":2,"vocabulary":8,"seed":18446744073709551615,)"
        R"("sampler":{"confidence":0.005},"end_ids":[1],"prompt":"p","prompt_ids":[2],"pieces":{"2":{"control":"<bos>"}}})",
        R"({"canvas":0,"step":0,"temperature":0.8,"mean_entropy":1.5,"last":false,"tokens":[3,4],"argmax":[3,5],)"
        R"("entropy":[0.5,2.5],"accepted":[1,0],"pieces":{"3":"a","4":{"bytes":[195]},"5":"b"}})",
        R"({"canvas":0,"step":1,"temperature":0.6,"mean_entropy":0.001,"last":true,"tokens":[3,4],"argmax":[3,4],)"
        R"("entropy":[0.0,0.002],"accepted":[1,1],"pieces":{}})",
        R"({"canvas":1,"step":0,"temperature":0.8,"mean_entropy":null,"last":true,"tokens":[1,3],"argmax":[1,3],)"
        R"("entropy":[null,0.1],"accepted":[0,1],"pieces":{"1":{"control":"<eos>"}},"a key of later":{}})",
        R"({"finish":"stop","text":"a","thought":"","ids":[3],"steps":[2,1],"hash":"0000000000000001"})"};
}

std::string joined(const std::vector<std::string>& lines) {
    return fmt::format("{}\n", fmt::join(lines, "\n"));
}

// The message for the small trace with line `n`, from 1, replaced.
std::string error_with(size_t n, const std::string& text) {
    auto lines = small_trace();
    lines[n - 1] = text;
    return error_of([&] { read_trace(joined(lines), "file"); });
}

// The small trace with `from` in line `n` replaced; it must be there.
std::string changed(size_t n, const std::string& from, const std::string& to) {
    std::string line = small_trace()[n - 1];
    REQUIRE(line.find(from) != std::string::npos);
    return error_with(n, line.replace(line.find(from), from.size(), to));
}

}  // namespace

TEST_CASE("trace: a file is read", "[trace]") {
    const Trace t = read_trace(joined(small_trace()), "file");
    CHECK(t.model == "m");
    CHECK(t.prompt == "p");
    CHECK(t.seed == UINT64_MAX);
    CHECK(t.confidence == 0.005f);
    CHECK(t.end_ids == std::vector<int32_t>{1});
    CHECK(t.finish == "stop");
    CHECK(t.text == "a");
    REQUIRE(t.steps.size() == 3);
    CHECK(t.steps[1].last);
    CHECK(t.steps[1].argmax == std::vector<int32_t>{3, 4});
    CHECK(t.steps[0].entropy == std::vector<float>{0.5f, 2.5f});
    CHECK(std::isnan(t.steps[2].entropy[0]));
    CHECK(t.pieces.at(4).bytes == "\xc3");
    CHECK(t.pieces.at(1).control);
    CHECK(t.canvases() == std::vector<std::pair<size_t, size_t>>{{0, 2}, {2, 3}});
    CHECK(t.settled(0, 2) == std::vector<int>{0, 1});
    CHECK(t.sampler == std::vector<std::pair<std::string, std::string>>{{"confidence", "0.005"}});
    CHECK_FALSE(t.canvas_text);
    CHECK(t.choices.empty());
    CHECK(t.stop.empty());
}

TEST_CASE("trace: what was asked for comes into the page", "[trace]") {
    auto lines = small_trace();
    Json header = Json::parse(lines[0]);
    header["sampler"] = {{"max_steps", 48}, {"confidence", 0.005}, {"greedy", true}, {"of later", 1}};
    header["canvas_text"] = "</[[1]] [[2]]";
    header["choices"] = {{"2", {"a", "b c"}}, {"10", {"\n"}}};
    header["stop"] = {"x", ""};
    lines[0] = header.dump();
    const Trace t = read_trace(joined(lines), "file");
    CHECK(t.sampler == std::vector<std::pair<std::string, std::string>>{
                           {"max_steps", "48"}, {"confidence", "0.005"}, {"greedy", "true"}});
    CHECK(t.canvas_text == "</[[1]] [[2]]");
    CHECK(t.choices == std::map<int, std::vector<std::string>>{{2, {"a", "b c"}}, {10, {"\n"}}});
    CHECK(t.stop == std::vector<std::string>{"x", ""});

    const std::string page = trace_page(t);
    const size_t begin = page.find("id=\"data\">") + 10;
    const Json data = Json::parse(page.substr(begin, page.find("</script>", begin) - begin));
    CHECK(data["sampler"].dump() == R"([["max_steps","48"],["confidence","0.005"],["greedy","true"]])");
    CHECK(data["canvas_text"] == "</[[1]] [[2]]");
    CHECK(data["choices"].dump() == R"([[2,["a","b c"]],[10,["\n"]]])");
    CHECK(data["stop"].dump() == R"(["x",""])");
}

TEST_CASE("trace: what the writer writes is read", "[trace]") {
    const TempDir dir;
    Engine engine({.model = "tests/fixtures/tiny.gguf", .device = "cpu"});
    Request request;
    request.messages = {{Role::System, "be brief"}, {Role::User, "hello </script> \xe2\x82\xac"}};
    request.n_token = 48;
    request.ignore_eos = true;
    request.seed = 7;
    std::vector<TraceStep> frames;
    TraceWriter writer(dir / "trace", engine, request);
    const Result result = engine.generate(request, [&](const Frame& f) {
        writer.step(f);
        frames.push_back({f.canvas,
                          f.step,
                          f.temperature,
                          f.mean_entropy,
                          f.last,
                          {f.tokens.begin(), f.tokens.end()},
                          {f.argmax.begin(), f.argmax.end()},
                          {f.entropy.begin(), f.entropy.end()},
                          {f.accepted.begin(), f.accepted.end()}});
        return true;
    });
    writer.end(result);
    writer.close();

    std::ifstream file(dir / "trace");
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    const Trace t = read_trace(text, "trace");
    CHECK(t.model == "tiny.gguf");
    CHECK(t.prompt == request.messages[1].content);
    CHECK(t.seed == 7);
    CHECK(t.finish == "length");
    CHECK(t.end_ids.empty());
    REQUIRE(t.steps.size() == frames.size());
    REQUIRE(t.canvases().size() == 2);
    for (size_t i = 0; i < frames.size(); i++) {
        const TraceStep &a = t.steps[i], &b = frames[i];
        INFO("step " << i);
        CHECK(std::tuple(a.canvas, a.step, a.temperature, a.last) ==
              std::tuple(b.canvas, b.step, b.temperature, b.last));
        CHECK(std::abs(a.mean_entropy - b.mean_entropy) <= 0.00005f);  // half of what it is rounded to
        CHECK(a.tokens == b.tokens);
        CHECK(a.argmax == b.argmax);
        CHECK(a.accepted == b.accepted);
        for (size_t p = 0; p < a.entropy.size(); p++)
            CHECK(std::abs(a.entropy[p] - b.entropy[p]) <= 0.00005f + 1e-6f);
    }
    // Every id has its text, and all texts together are the answer's.
    std::string bytes;
    for (const int32_t id : result.ids) {
        const TracePiece& piece = t.pieces.at(id);
        if (!piece.control) bytes += piece.bytes;
    }
    CHECK(bytes == engine.tokenizer().decode(result.ids, false));
    for (const TraceStep& s : t.steps)
        for (const int32_t id : s.tokens) CHECK(t.pieces.count(id) == 1);
}

TEST_CASE("trace: the first line has all that was asked for", "[trace]") {
    const TempDir dir;
    const Engine engine({.model = "tests/fixtures/tiny.gguf", .device = "cpu"});
    Request request;
    request.prompt_ids = {2};
    request.sampler = engine.model().config.sampler;
    request.sampler->self_cond_drop = 0.125f;
    request.sampler->top_k_tail_correction = true;
    const auto header = [&] {
        TraceWriter(dir / "trace", engine, request).close();
        std::ifstream file(dir / "trace");
        return Json::parse(file);
    };
    const Json plain = header();
    CHECK(plain["sampler"].size() == std::size(kSamplerSettings));
    CHECK(plain["sampler"]["max_steps"] == request.sampler->max_steps);
    CHECK(plain["sampler"]["self_cond_drop"] == 0.125);
    CHECK(plain["sampler"]["top_k_tail_correction"] == true);
    for (const char* key : {"canvas_text", "choices", "stop"}) CHECK_FALSE(plain.contains(key));
    request.canvas = "[[1]] and [[2]]";
    request.choices = {{2, {"a", "b"}}};
    request.stop = {"x"};
    const Json infill = header();
    CHECK(infill["canvas"] == engine.model().config.n_canvas);
    CHECK(infill["canvas_text"] == "[[1]] and [[2]]");
    CHECK(infill["choices"] == Json{{"2", {"a", "b"}}});
    CHECK(infill["stop"] == Json{"x"});
}

TEST_CASE("trace: a frame without numbers is written as valid JSON", "[trace]") {
    const TempDir dir;
    const Engine engine({.model = "tests/fixtures/tiny.gguf", .device = "cpu"});
    Request request;
    request.prompt_ids = {2};
    const int n = engine.model().config.n_canvas;
    const std::vector<int32_t> ids(n, 3);
    const std::vector<float> entropy(n, std::numeric_limits<float>::quiet_NaN());
    const std::vector<uint8_t> accepted(n, 0);
    TraceWriter writer(dir / "trace", engine, request);
    writer.step({0, 0, ids, ids, entropy, entropy, accepted, entropy[0], 0.8f, 0, true});
    writer.close();
    std::ifstream file(dir / "trace");
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    const Trace t = read_trace(text, "trace");
    CHECK(std::isnan(t.steps[0].entropy[0]));
    CHECK(t.finish.empty());
    CHECK(trace_page(t).find("\"entropy\":[null,null") != std::string::npos);
    CHECK(trace_svg(t).find("nan") == std::string::npos);
}

TEST_CASE("trace: a file that cannot be written", "[trace]") {
    const TempDir dir;
    std::filesystem::copy("tests/fixtures/tiny.gguf", dir / "tiny.gguf");
    const Engine engine({.model = dir / "tiny.gguf", .device = "cpu"});
    Request request;
    request.prompt_ids = {2};
    check_has(error_of([&] { TraceWriter("/nowhere/trace", engine, request); }),
              {"/nowhere/trace: cannot be written: No such file"});
    std::filesystem::create_symlink(dir / "tiny.gguf", dir / "link");
    check_has(error_of([&] { TraceWriter(dir / "link", engine, request); }), {"link: is the model itself"});
    CHECK(Gguf::open(dir / "tiny.gguf").tensors().size() > 0);

    // Of a model in parts, none of them is written over.
    const int64_t one = 1;
    for (const char* name : {"s-00001-of-00002.gguf", "s-00002-of-00002.gguf"}) {
        GgufWriter part(dir / name);
        const bool first = name[6] == '1';
        const Gguf& from = *engine.model().file;
        for (const auto& [key, value] : from.values()) part.copy(key, value);
        part.set("split.count", uint32_t{2});
        for (const Tensor& t : from.tensors())
            if (first) part.declare(std::string(t.name), t.type, std::span(t.ne).first(t.n_dims));
        if (!first) part.declare("more", Type::F32, {&one, 1});
        part.begin();
        for (const Tensor& t : from.tensors())
            if (first) part.write({t.data, t.bytes});
        if (!first) part.write(std::vector<uint8_t>(4));
        part.finish();
    }
    const Engine split({.model = dir / "s-00001-of-00002.gguf", .device = "cpu"});
    check_has(error_of([&] { TraceWriter(dir / "s-00002-of-00002.gguf", split, request); }),
              {"is the model itself"});

    TraceWriter other(dir / "trace", engine, request);
    check_has(error_of([&] { TraceWriter(dir / "trace", engine, request); }),
              {"trace: is being written by another"});
    if (access("/dev/full", W_OK) != 0) return;
    TraceWriter writer("/dev/full", engine, request);
    writer.end(Result{});  // says nothing
    check_has(error_of([&] { writer.close(); }), {"/dev/full: the trace cannot be written: No space left"});
}

TEST_CASE("trace: a cut file gives its whole lines", "[trace]") {
    const std::string whole = joined(small_trace());
    const size_t header = small_trace()[0].size(), first = header + 1 + small_trace()[1].size();
    for (size_t n = 0; n < whole.size(); n++) {
        INFO("the first " << n << " bytes");
        const std::string_view text = std::string_view(whole).substr(0, n);
        if (n <= first) {
            const std::string error = error_of([&] { read_trace(text, "file"); });
            check_has(error, {n == 0       ? "file: is empty"
                              : n < header ? "file: is not a trace"
                                           : "file: has no whole step"});
        } else {
            const Trace t = read_trace(text, "file");
            CHECK(t.steps.size() == size_t(std::count(text.begin(), text.end(), '\n')) - 1);
            CHECK(t.finish.empty());
            CHECK_FALSE(trace_page(t).empty());
            CHECK_FALSE(trace_svg(t).empty());
        }
    }
}

TEST_CASE("trace: files that are none say what is wrong", "[trace]") {
    check_has(error_with(1, "hello"), {"file: is not a trace", "{\"easel_trace\":1"});
    check_has(error_with(1, "[1]"), {"file: is not a trace"});
    check_has(error_with(1, "{\"easel_trace\":\"1\"}"), {"file: is not a trace"});
    check_has(changed(1, "e\":1", "e\":2"), {"file: is a trace of version 2, this program reads 1"});
    check_has(changed(1, "\"canvas\":2", "\"canvas\":0"),
              {"file line 1: key canvas has 0, expected an integer from 1"});
    check_has(changed(1, "\"seed\":", "\"sed\":"), {"line 1: key seed is missing"});
    check_has(changed(1, ":18446744073709551615", ":-1"), {"line 1: key seed is -1"});
    check_has(changed(1, "\"2\":{", "\"x\":{"), {"line 1: pieces has a key that is not a token id"});
    check_has(changed(1, "\"prompt\":\"p\"", "\"prompt\":7"),
              {"line 1: key prompt is number, expected a string"});
    check_has(changed(1, "{\"confidence\":0.005}", "7"),
              {"line 1: key sampler is number, expected an object"});
    const auto header = [](const std::string& members) {
        return changed(1, "\"prompt\":", members + ",\"prompt\":");
    };
    check_has(header(R"("canvas_text":7)"), {"line 1: key canvas_text is number, expected a string"});
    check_has(header(R"("stop":"x")"), {"line 1: key stop has \"x\", expected a list of strings"});
    check_has(header(R"("stop":[1])"), {"line 1: key stop has [1], expected a list of strings"});
    check_has(header(R"("choices":["a"])"), {"line 1: key choices is array, expected an object"});
    check_has(header(R"("choices":{"x":["a"]})"), {"line 1: choices has a key that is not a hole's number"});
    check_has(header(R"("choices":{"1":7})"), {"line 1: key choices has 7, expected a list of strings"});
    const std::string deep = std::string(1 << 20, '[') + std::string(1 << 20, ']');
    check_has(header("\"stop\":" + deep), {"file line 1: JSON nested more than 100 deep"});
    check_has(changed(1, ":18446744073709551615", ":" + deep), {"line 1: JSON nested more than 100 deep"});
    check_has(error_with(2, "{"), {"file line 2: is not a JSON object"});
    check_has(error_with(2, "\xff"), {"file line 2: is not a JSON object"});
    check_has(changed(2, "[3,5]", "[3]"), {"line 2: key argmax has 1 items, expected 2 numbers"});
    check_has(changed(2, "[3,5]", "[3,-5]"), {"line 2: key argmax has -5, expected an integer from 0"});
    check_has(changed(2, "[3,5]", "[3,99999999999999999999]"), {"line 2: key argmax has"});
    check_has(changed(2, "[1,0]", "[1,2]"), {"line 2: key accepted has 2, expected"});
    check_has(changed(2, "[195]", "[300]"), {"line 2: key bytes has 300, expected"});
    check_has(changed(2, "\"a\"", "7"), {"line 2: a piece is number, expected a string, control or bytes"});
    check_has(changed(2, "[0.5,2.5]", "[\"x\",2.5]"),
              {"line 2: key entropy has string, expected a number of 0 or more"});
    check_has(changed(2, "[0.5,2.5]", "[-0.5,2.5]"), {"line 2: key entropy has -0.5, expected"});
    check_has(changed(2, "false", "0"), {"line 2: key last is number, expected true or false"});
    check_has(changed(3, "\"step\":1", "\"step\":0"),
              {"line 3: canvas 0, step 0 comes after canvas 0, step 0"});
    check_has(error_with(3, small_trace()[4]), {"line 4: comes after the end line"});
    check_has(changed(5, "\"stop\"", "\"\""), {"line 5: key finish is"});
}

TEST_CASE("trace: no token becomes markup", "[trace]") {
    auto lines = small_trace();
    Json j = Json::parse(lines[1]);
    j["pieces"]["3"] = "</script><script>alert(1)</script>";
    j["pieces"]["5"] = "<!-- & \" ' \x01 \xef\xbf\xbf";
    lines[1] = j.dump();
    j = Json::parse(lines[0]);
    j["prompt"] = "</script><b>&amp;";
    lines[0] = j.dump();
    const Trace t = read_trace(joined(lines), "file");

    const std::string page = trace_page(t);
    const size_t begin = page.find("id=\"data\">") + 10, end = page.find("</script>", begin);
    const std::string data = page.substr(begin, end - begin);
    CHECK(data.find('<') == std::string::npos);
    CHECK(Json::parse(data)["pieces"]["3"] == "</script><script>alert(1)</script>");
    CHECK(Json::parse(data)["pieces"]["4"]["bytes"] == Json{195});
    CHECK(Json::parse(data)["prompt"] == "</script><b>&amp;");
    CHECK(Json::parse(data)["seed"] == "18446744073709551615");

    const std::string svg = trace_svg(t);
    CHECK(svg.find("<script") == std::string::npos);
    CHECK(svg.find("&lt;/script") != std::string::npos);
    CHECK(svg.find('\x01') == std::string::npos);
    CHECK(svg.find(">C3<") != std::string::npos);
}

TEST_CASE("trace: the scale of entropy", "[trace]") {
    CHECK(entropy_level(0, 512) == 0);
    CHECK(entropy_level(0.001f, 512) < 1e-6);
    CHECK(std::abs(entropy_level(std::log(512.0f), 512) - 1) < 1e-6);
    CHECK(entropy_level(100, 512) == 1);
    CHECK(entropy_level(0.01f, 512) < entropy_level(0.1f, 512));
    CHECK(entropy_level(std::numeric_limits<float>::quiet_NaN(), 512) == 1);
    CHECK(entropy_level(0.5f, 1) <= 1);
}
