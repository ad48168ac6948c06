// test_pipe.cpp: `easel pipe` in parts: lines of a stream, keys of a line, the queue, and whole runs over
// pipes inside the process. tests/pipe.sh drives the program itself.
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <ctime>
#include <thread>

#include "catch.h"
#include "files.h"
#include "lines.h"
#include "parallel.h"
#include "pipe.h"
#include "sampler_settings.h"

using namespace easel;
using Json = nlohmann::json;

namespace {

std::unique_ptr<PipeItem> parse(std::string_view text) {
    return parse_pipe_line(text, 7, SamplerConfig{});
}

std::vector<std::string> split(std::initializer_list<std::string_view> chunks, size_t limit = 10) {
    std::vector<std::string> out;
    LineSplitter lines(limit, [&](std::string_view text, bool too_long) {
        out.push_back(too_long ? "<too long>" : std::string(text));
    });
    for (std::string_view chunk : chunks) lines.feed(chunk);
    lines.finish();
    return out;
}

std::unique_ptr<PipeItem> item(const Json& id, std::vector<int32_t> ids = {1}) {
    auto i = std::make_unique<PipeItem>();
    i->id = id;
    i->request.prompt_ids = std::move(ids);
    return i;
}

// What serve_pipe() answers to `input`, a JSON value a line.
std::vector<Json> serve(Engine& engine, const std::string& input, const PipeOptions& options) {
    const TempDir dir;
    const int in = open(dir.write("in", input).c_str(), O_RDONLY);
    const int out = open((dir / "out").c_str(), O_WRONLY | O_CREAT, 0600);
    CHECK(serve_pipe(engine, options, in, out) == 0);
    close(in);
    close(out);
    std::vector<Json> lines;
    std::ifstream file(dir / "out");
    for (std::string line; std::getline(file, line);) lines.push_back(Json::parse(line));
    return lines;
}

}  // namespace

TEST_CASE("pipe: lines of a stream", "[pipe]") {
    using Lines = std::vector<std::string>;
    CHECK(split({"a\nbc\n", "d"}) == Lines{"a", "bc", "d"});
    CHECK(split({"a", "b", "\n", "\n", "c\n"}) == Lines{"ab", "", "c"});
    CHECK(split({}) == Lines{});
    CHECK(split({"0123456789\n01234567890\nx"}) == Lines{"0123456789", "<too long>", "x"});
    CHECK(split({"0123456", "7890", "1234\nx\n"}) == Lines{"<too long>", "x"});
    CHECK(split({"01234567890"}) == Lines{"<too long>"});
    // A byte-order mark is not of the text, where the text begins.
    CHECK(split({"\xef", "\xbb\xbf", "a\n\ufeffb\n"}) == Lines{"a", "\ufeffb"});
    CHECK(split({"\ufeff"}) == Lines{""});

    LineSplitter lines(kLineBytes, [](std::string_view, bool) {});
    const std::string chunk(1 << 20, 'x');
    for (int i = 0; i < 100; i++) lines.feed(chunk);
    CHECK(lines.n_kept() < 100);
}

TEST_CASE("pipe: an empty system prompt is none", "[pipe]") {
    const auto i = parse(R"({"prompt": "hi", "system": ""})");
    REQUIRE(i->error == "");
    CHECK(i->request.messages.size() == 1);
}

TEST_CASE("pipe: every key of a line", "[pipe]") {
    const auto i = parse(
        R"({"id": "a", "prompt": "hi", "system": "be brief", "think": true, "max_tokens": 5,
            "seed": 18446744073709551615, "stop": ["x", "y"], "ignore_eos": true, "frames": true,
            "greedy": true, "max_steps": 3, "t_min": 0.5, "t_max": 1, "entropy_bound": 2, "stability": 4,
            "confidence": 0.25, "top_k": 6, "top_k_start": 9, "top_k_end": 8, "top_k_tail_correction": true,
            "self_cond_top_k": 10, "self_cond_drop": 0.125, "canvas": "[[1]] [[2]]",
            "choices": {"2": ["p", "q"]}, "retry_empty": 2, "best_of": 3, "log_probs": true})");
    REQUIRE(i->error == "");
    CHECK(i->warnings.empty());
    CHECK(i->id == "a");
    CHECK(i->line == 7);
    const Request& r = i->request;
    REQUIRE(r.messages.size() == 2);
    CHECK(r.messages[0].role == Role::System);
    CHECK(r.messages[0].content == "be brief");
    CHECK(r.messages[1].role == Role::User);
    CHECK(r.messages[1].content == "hi");
    CHECK(r.think);
    CHECK(r.n_token == 5);
    CHECK(r.seed == UINT64_MAX);
    CHECK(r.ignore_eos);
    CHECK(i->frames);
    CHECK(r.stop == std::vector<std::string>{"x", "y"});
    const SamplerConfig& s = *r.sampler;
    CHECK(s.greedy);
    CHECK(s.max_steps == 3);
    CHECK(s.t_min == 0.5f);
    CHECK(s.t_max == 1.0f);
    CHECK(s.entropy_bound == 2.0f);
    CHECK(s.stability == 4);
    CHECK(s.confidence == 0.25f);
    CHECK(s.top_k == 6);
    CHECK(s.top_k_start == 9);
    CHECK(s.top_k_end == 8);
    CHECK(s.top_k_tail_correction);
    CHECK(s.self_cond_top_k == 10);
    CHECK(s.self_cond_drop == 0.125f);
    CHECK(r.canvas == "[[1]] [[2]]");
    CHECK(r.choices == std::map<int, std::vector<std::string>>{{2, {"p", "q"}}});
    CHECK(r.n_retry == 2);
    CHECK(r.n_best == 3);
    CHECK(i->log_probs);

    const auto m = parse(
        R"({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"},
            {"role": "assistant", "content": "a"}, {"role": "user", "content": "v"}], "stop": "x"})");
    REQUIRE(m->error == "");
    CHECK(m->id == 7);
    REQUIRE(m->request.messages.size() == 4);
    CHECK(m->request.messages[2].role == Role::Model);
    CHECK(m->request.stop == std::vector<std::string>{"x"});
    CHECK(parse("{\"prompt\": \"\ufffd\"}")->error == "");  // a character as any other
    CHECK(parse(R"({"prompt_ids": [1, 2, 3]})")->request.prompt_ids == std::vector<int32_t>{1, 2, 3});

    const auto c = parse(R"({"cancel": "a"})");
    CHECK(c->error == "");
    CHECK(c->cancel == "a");
    CHECK(parse(R"({"cancel": -5})")->cancel == -5);

    SamplerConfig defaults;
    defaults.max_steps = 11;
    CHECK(parse_pipe_line(R"({"prompt": "x"})", 1, defaults)->request.sampler->max_steps == 11);
    CHECK(parse_pipe_line(R"({"prompt": "x", "max_steps": 2})", 1, defaults)->request.sampler->max_steps ==
          2);
    for (const SamplerSetting& setting : kSamplerSettings)
        check_has(pipe_schema(), {setting.name, setting.text});
    check_has(pipe_schema(), {"prompt_ids", "self_cond_top_k", "finish_reason", "--queue"});
}

// Time that grew with the square of what a line has would make this one take minutes, or hours.
TEST_CASE("pipe: a line of very many objects or keys", "[pipe]") {
    std::string objects = "{\"prompt\": \"x\", \"y\": [{}";
    for (int i = 0; i < 300'000; i++) objects += ",{}";
    const auto many = parse_pipe_line(objects + "]}", 1, {});
    CHECK(many->error == "");
    CHECK(many->warnings == std::vector<std::string>{"unknown key y is ignored"});

    std::string keys = "{\"prompt\": \"x\"";
    for (int i = 0; i < 100'000; i++) keys += fmt::format(", \"key{}\": {{}}", i);
    const auto unknown = parse_pipe_line(keys + "}", 1, {});
    CHECK(unknown->error == "");
    REQUIRE(unknown->warnings.size() == 9);
    CHECK(unknown->warnings[0] == "unknown key key0 is ignored");
    CHECK(unknown->warnings[8] == "99992 more keys are ignored");
}

TEST_CASE("pipe: what is wrong with a line", "[pipe]") {
    const std::string deep = "{\"prompt\": " + std::string(1 << 20, '[') + "}";
    const struct {
        const char *line, *error;
    } cases[] = {
        {"{bad", "not valid JSON"},
        {"", "not valid JSON"},
        {"{\"prompt\": \"x\"} {}", "not valid JSON"},
        {deep.c_str(), "JSON nested more than 100 deep"},
        {"{\"t_min\": 1e999, \"prompt\": \"x\"}", "not valid JSON: number overflow"},
        {"{\"prompt\": \"\xff\"}", "not valid UTF-8: byte 0xff at offset 12"},
        {"[1]", "the line is an array, expected a JSON object"},
        {"5", "the line is 5, expected a JSON object"},
        {"{\"id\": 1.5, \"prompt\": \"x\"}", "key id is 1.5, expected a string or an integer"},
        {"{\"id\": 18446744073709551616, \"prompt\": \"x\"}", "expected a string or an integer of 64 bits"},
        {"{}", "0 prompts, expected exactly one of prompt, messages and prompt_ids"},
        {"{\"prompt\": \"x\", \"prompt_ids\": [1]}", "2 prompts"},
        {"{\"prompt\": 5}", "key prompt is 5, expected a string"},
        {"{\"messages\": []}", "key messages is an empty list"},
        {"{\"messages\": {}}", "key messages is an object, expected a list"},
        {"{\"messages\": [5]}", "messages[0] is 5, expected an object with role and content"},
        {"{\"messages\": [{\"role\": \"user\"}]}", "messages[0] has no content"},
        {"{\"messages\": [{\"role\": \"tool\", \"content\": \"\"}]}",
         "messages[0].role is \"tool\", expected"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": []}]}", "messages[0].content is an array"},
        {"{\"prompt_ids\": []}", "key prompt_ids is an empty list"},
        {"{\"prompt_ids\": [1, -1]}", "key prompt_ids is -1, expected an integer from 0"},
        {"{\"prompt_ids\": [4294967297]}", "key prompt_ids is 4294967297, expected"},
        {"{\"prompt_ids\": [1], \"system\": \"x\"}", "key system cannot be combined with prompt_ids"},
        {"{\"prompt_ids\": [1], \"think\": true}", "key think cannot be combined with prompt_ids"},
        {"{\"system\": \"s\", \"messages\": [{\"role\": \"system\", \"content\": \"x\"}]}", "expected one"},
        {"{\"prompt\": \"x\", \"choices\": [1]}",
         "key choices is an array, expected an object with a list of texts"},
        {"{\"prompt\": \"x\", \"choices\": {\"a\": [\"b\"]}}", "choices has the key a, expected the number"},
        {"{\"prompt\": \"x\", \"choices\": {\"1\": \"b\"}}", "choices of hole 1 are \"b\", expected a list"},
        {"{\"prompt\": \"x\", \"choices\": {\"1\": [\"a\"], \"01\": [\"b\"]}}",
         "choices of hole 1 appear twice"},
        {"{\"prompt\": \"x\", \"best_of\": 0}", "key best_of is 0, expected an integer from 1"},
        {"{\"prompt\": \"x\", \"best_of\": 1001}", "key best_of is 1001, expected an integer from 1 to 1000"},
        {"{\"prompt\": \"x\", \"retry_empty\": 1001}", "key retry_empty is 1001, expected"},
        {"{\"prompt\": \"x\", \"max_tokens\": 0}", "key max_tokens is 0, expected an integer from 1"},
        {"{\"prompt\": \"x\", \"max_tokens\": 1.0}", "key max_tokens is 1.0"},
        {"{\"prompt\": \"x\", \"seed\": -1}",
         "key seed is -1, expected an integer from 0 to 18446744073709551615"},
        {"{\"prompt\": \"x\", \"seed\": 18446744073709551616}", "key seed is 1.8"},
        {"{\"prompt\": \"x\", \"stop\": \"\"}", "key stop has an empty string"},
        {"{\"prompt\": \"x\", \"stop\": [1]}", "key stop is 1, expected a string"},
        {"{\"prompt\": \"x\", \"greedy\": 1}", "key greedy is 1, expected true or false"},
        {"{\"prompt\": \"x\", \"t_min\": \"hot\"}", "key t_min is \"hot\", expected a number"},
        {"{\"prompt\": \"x\", \"t_min\": 1e300}", "that a 32-bit float can hold"},
        {"{\"prompt\": \"x\", \"top_k\": 5000000000}", "key top_k is 5000000000"},
        {"{\"prompt\": \"x\", \"max_steps\": 0}", "max steps is 0, expected 1 to 100000"},
        {"{\"cancel\": null}", "key cancel is null"},
        {"{\"prompt\": \"x\", \"seed\": 1, \"seed\": 1}", "key seed appears twice"},
        {"{\"prompt\": \"x\", \"\": 1, \"a\": {\"prompt\": 1}, \"\": 2}", "key  appears twice"},
        {"{\"prompt\": \"x\", \"seed\": 1, \"se\\u0065d\": 1}", "key seed appears twice"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"a\", \"content\": \"b\"}]}",
         "key content appears twice"},
        {"{\"prompt\": \"x\", \"choices\": {\"1\": [\"a\"], \"1\": [\"b\"]}}", "key 1 appears twice"},
    };
    for (const auto& c : cases) {
        INFO(c.line);
        check_has(parse(c.line)->error, {c.error});
    }
    // What is told has an end.
    CHECK(parse("{\"" + std::string(1000, 'x'))->error.size() < 300);
    CHECK(shown(Json(std::string(60, 'y'))) == "\"" + std::string(60, 'y') + "\"");
    CHECK(shown(Json(std::string(61, 'y'))) == "\"" + std::string(60, 'y') + "...\"");
    CHECK(parse("{bad")->id == nullptr);
    CHECK(parse(R"({"id": "a"})")->id == "a");
    CHECK(parse(R"({"id": [], "prompt": "x"})")->id == nullptr);
    CHECK(parse(R"({"seed": 1, "prompt": "x", "seed": 1, "id": "a"})")->id == "a");
    CHECK(parse(R"({"id": 1, "prompt": "x", "id": 2})")->id == nullptr);
    CHECK(parse(std::string(1 << 20, '['))->error != "");  // depth is no stack
    CHECK(parse("{\"id\": " + std::string(1 << 20, '[') + std::string(1 << 20, ']') + "}")->error != "");
}

TEST_CASE("pipe: unknown keys are named", "[pipe]") {
    const auto warnings = [](std::string_view text) { return parse(text)->warnings; };
    using Texts = std::vector<std::string>;
    CHECK(warnings(R"({"prompt": "x", "max_token": 5})") ==
          Texts{"unknown key max_token is ignored, did you mean max_tokens?"});
    CHECK(warnings(R"({"prompt": "x", "sead": 5})") ==
          Texts{"unknown key sead is ignored, did you mean seed?"});
    CHECK(warnings(R"({"prompt": "x", "tokens": 5})") ==
          Texts{"unknown key tokens is ignored, did you mean max_tokens?"});
    CHECK(warnings(R"({"prompt": "x", "temperature": 5})") == Texts{"unknown key temperature is ignored"});
    CHECK(warnings(R"({"prompt": "x", "": 5})") == Texts{"unknown key  is ignored"});
    CHECK(warnings(R"({"prompt": "x", "pxxxpt": 5})") ==
          Texts{"unknown key pxxxpt is ignored"});  // 3 letters
    CHECK(warnings(R"({"cancel": 1, "id": 2})") == Texts{"key id is ignored beside cancel"});
    CHECK(warnings(R"({"messages": [{"role": "user", "content": "x", "name": "y"}]})") ==
          Texts{"unknown key messages[0].name is ignored"});
    std::string many = "{\"prompt\": \"x\"";
    for (int i = 0; i < 1000; i++) many += fmt::format(", \"unknown{}\": 0", i);
    CHECK(warnings(many + "}").size() == 9);
    CHECK(warnings(many + "}").back() == "992 more keys are ignored");
}

TEST_CASE("pipe: the queue keeps the order and the ids", "[pipe]") {
    PipeQueue queue(3);
    queue.push(item(1));
    queue.push(item("1"));
    queue.push(item(1));  // twice: an error in its place
    CHECK(queue.cancel(1));
    CHECK(queue.cancel("1"));
    CHECK(!queue.cancel(2));
    const auto first = queue.pop(nullptr), second = queue.pop(nullptr), third = queue.pop(nullptr);
    CHECK(first->cancelled);
    CHECK(second->id == "1");
    CHECK(third->error == "id 1 is waiting or running already, expected another");
    queue.answered(*first);
    CHECK(queue.cancel(1));  // late, but it was there
    queue.push(item(1));
    CHECK(queue.pop(nullptr)->error == "");
    CHECK(queue.cancel(1));  // whose item nobody else holds any more
    queue.end();
    CHECK(queue.pop(nullptr) == nullptr);
}

TEST_CASE("pipe: the queue holds the reader back", "[pipe]") {
    PipeQueue queue(2, 100);
    std::atomic<int> n_pushed = 0;
    std::thread reader([&] {
        for (int i = 0; i < 20; i++) {
            auto next = item(i);
            next->n_bytes = i < 10 ? 1 : 80;  // two of 80 are over 100
            queue.push(std::move(next));
            n_pushed++;
        }
        queue.end();
    });
    int n = 0, most_ahead = 0;
    for (std::shared_ptr<PipeItem> i; (i = queue.pop(nullptr)); n++) {
        CHECK(i->id == n);
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
        CHECK(queue.size() <= (n < 9 ? 2u : 1u) + (n == 8));
        most_ahead = std::max(most_ahead, n_pushed - n);
        queue.answered(*i);
    }
    reader.join();
    CHECK(n == 20);
    CHECK(most_ahead <= 4);

    PipeQueue stopped(1);
    stopped.stop();
    for (int i = 0; i < 5; i++) stopped.push(item(i));  // waits for nobody
    CHECK(stopped.size() == 5);
}

TEST_CASE("pipe: unordered takes the longest common beginning", "[pipe]") {
    PipeQueue queue(8);
    queue.push(item("a", {9}));
    queue.push(item("b", {1, 2}));
    queue.push(item("c", {1, 2, 3}));
    auto bad = item("d");
    bad->error = "wrong";
    queue.push(std::move(bad));
    queue.push(item("e", {9}));
    CHECK(queue.cancel("e"));
    const std::vector<int32_t> cached = {1, 2, 3, 4};
    for (const char* id : {"d", "e", "c", "b", "a"}) CHECK(queue.pop(&cached)->id == id);
    // Nobody waits for ever.
    queue.push(item("last", {9}));
    int n_before = 0;
    for (int i = 0; i < 20; i++) {
        queue.push(item(i, {1, 2}));
        if (queue.pop(&cached)->id == "last") break;
        n_before++;
    }
    CHECK(n_before == 8);
}

TEST_CASE("pipe: answers are the engine's own", "[pipe]") {
    Engine engine({});
    PipeOptions options;
    options.sampler = engine.model().config.sampler;
    std::string input;
    for (int i = 0; i < 6; i++) {
        if (i == 3) input += "{bad\n\n";
        input += fmt::format("{{\"prompt\": \"What is {} + 35?\", \"seed\": {}}}\n", 10 + i % 2, i);
    }
    const std::vector<Json> lines = serve(engine, input, options);
    REQUIRE(lines.size() == 7);
    CHECK(lines[3]["type"] == "error");
    for (int i = 0; i < 6; i++) {
        const Json& found = lines[i < 3 ? i : i + 1];
        Request r;
        r.messages = {{Role::User, fmt::format("What is {} + 35?", 10 + i % 2)}};
        r.seed = i;
        const Result expected = engine.generate(r);
        CHECK(found["type"] == "done");
        CHECK(found["line"] == (i < 3 ? i + 1 : i + 3));
        CHECK(found["text"] == expected.text);
        CHECK(found["ids"] == Json(expected.ids));
        CHECK(found["hash"] == fmt::format("{:016x}", expected.hash));
        CHECK(found["steps"] == expected.n_step());
    }
    // What neighbours share is encoded once.
    CHECK(lines[1]["usage"]["reused_tokens"] > 0);
}

TEST_CASE("pipe: a stop string ends the canvases", "[pipe]") {
    EngineOptions tiny;
    tiny.model = "tests/fixtures/tiny.gguf";
    Engine engine(tiny);
    PipeOptions options;
    options.sampler = engine.model().config.sampler;
    const int n_canvas = engine.model().config.n_canvas;
    Json request = {
        {"prompt", "hello"}, {"ignore_eos", true}, {"max_steps", 2}, {"max_tokens", 10 * n_canvas}};
    const Json whole = serve(engine, request.dump() + "\n", options).at(0);
    CHECK(whole["canvases"] == 10);
    CHECK(whole["finish_reason"] == "length");
    const std::string text = whole["text"];
    const size_t at = text.find_first_of("abcdefghijklmnopqrstuvwxyz", 1);
    REQUIRE(at < 20);  // so it is in the first canvas
    request["stop"] = text.substr(at, 1);
    const Json cut = serve(engine, request.dump(), options).at(0);
    CHECK(cut["text"] == text.substr(0, text.find(text[at])));
    CHECK(cut["finish_reason"] == "stop");
    CHECK(cut["canvases"] == 1);
    CHECK(cut["steps"] == 2);
    CHECK(cut["usage"]["answer_tokens"] == n_canvas);
    request["best_of"] = 3;
    CHECK(serve(engine, request.dump(), options).at(0)["tries"] == 3);
}

// A backend that has something to tell of its answer, and whose device is lost with the second.
struct LostBackend : Backend {
    explicit LostBackend(std::shared_ptr<const Model> model) : cpu(make_cpu_backend(std::move(model), 64)) {}
    Answer generate(const GenerateParams& params, const FrameFn& on_frame) override {
        if (n_answer++) throw DeviceError("the device is gone");
        Answer a = cpu->generate(params, on_frame);
        a.note = "the host launches each step";
        return a;
    }
    void encode(std::span<const int32_t> tokens) override { cpu->encode(tokens); }
    int truncate(int n_token) override { return cpu->truncate(n_token); }
    int n_cached() const override { return cpu->n_cached(); }
    int n_context() const override { return cpu->n_context(); }
    int n_encode() const override { return cpu->n_encode(); }
    MemoryPlan plan() const override { return cpu->plan(); }
    void logits(const LogitsRequest& request, std::span<float> out) override { cpu->logits(request, out); }

    std::unique_ptr<Backend> cpu;
    int n_answer = 0;
};

TEST_CASE("pipe: a reader behind a socket that goes ends it", "[pipe]") {
    Engine engine({});
    PipeOptions options;
    options.sampler = engine.model().config.sampler;
    int in[2], out[2];
    REQUIRE(pipe(in) == 0);
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, out) == 0);
    close(out[1]);
    std::atomic<bool> done = false, late = false;
    std::thread closer([&] {  // an input that ends would end it too
        for (int i = 0; i < 1000 && !done; i++) std::this_thread::sleep_for(std::chrono::milliseconds(10));
        late = !done;
        close(in[1]);
    });
    CHECK(serve_pipe(engine, options, in[0], out[0]) == 0);
    done = true;
    closer.join();
    CHECK(!late);
    close(in[0]);
    close(out[0]);
}

TEST_CASE("pipe: a lost device ends it", "[pipe]") {
    EngineOptions lost;
    lost.make_backend = [](const auto& model) { return std::make_unique<LostBackend>(model); };
    Engine engine(lost);
    PipeOptions options;
    options.sampler = engine.model().config.sampler;
    const TempDir dir;
    const std::string line = "{\"prompt\": \"Count to 3.\", \"max_tokens\": 32}\n";
    const int in = open(dir.write("in", line + line + line).c_str(), O_RDONLY);
    const int out = open((dir / "out").c_str(), O_WRONLY | O_CREAT, 0600);
    CHECK_THROWS_WITH(serve_pipe(engine, options, in, out),
                      "line 2 and the lines after it were not answered: the device is gone");
    close(in);
    close(out);
    std::ifstream file(dir / "out");
    std::vector<Json> lines;
    for (std::string text; std::getline(file, text);) lines.push_back(Json::parse(text));
    REQUIRE(lines.size() == 3);
    CHECK(lines[0]["type"] == "warning");
    CHECK(lines[0]["message"] == "the host launches each step");
    CHECK(lines[1]["type"] == "done");
    CHECK(lines[2]["type"] == "error");
    CHECK(lines[2]["message"] == "the device is gone");
}

// The tests' machine may be shared: turns are short, and the best one counts on both sides.
TEST_CASE("pipe: at least 95 % of the engine's own speed", "[pipe][slow]") {
    EngineOptions one_thread;
    one_thread.n_thread = 1;
    Engine engine(one_thread);
    PipeOptions options;
    options.sampler = engine.model().config.sampler;
    constexpr int kRequests = 40;
    std::string input;
    std::vector<Request> requests(kRequests);
    for (int i = 0; i < kRequests; i++) {
        const std::string text = fmt::format("What is {} + 35?", 10 + i % 50);
        requests[i].messages = {{Role::User, text}};
        input += fmt::format("{{\"prompt\": \"{}\"}}\n", text);
    }
    const auto seconds = [](auto f) {  // of this process, all threads: other programs do not count
        const std::clock_t start = std::clock();
        f();
        return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    };
    double alone = 1e9, piped = 1e9;
    for (int turn = 0; turn < 40 && (turn < 5 || piped * 0.95 > alone); turn++) {
        alone = std::min(alone, seconds([&] {
                             for (const Request& r : requests) engine.generate(r);
                         }));
        piped = std::min(piped, seconds([&] { serve(engine, input, options); }));
    }
    INFO("engine " << alone << " s, pipe " << piped << " s");
    CHECK(piped * 0.95 <= alone);
    set_threads(0);
}
