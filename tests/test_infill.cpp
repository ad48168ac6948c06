// test_infill.cpp: canvases with holes: how their text is read and placed, and what the CPU backend and the
// Engine make of them. The same canvases on a GPU: test_device.cpp, test_sample.cpp.
#include <algorithm>

#include "catch.h"
#include "easel.h"
#include "golden.h"
#include "infill.h"
#include "models.h"
#include "text.h"

using namespace easel;

namespace {

const std::map<int, std::vector<std::string>> kNoChoices;

std::string parse_message(std::string_view text,
                          const std::map<int, std::vector<std::string>>& choices = {}) {
    try {
        parse_canvas(text, choices);
    } catch (const Error& e) {
        return e.what();
    }
    return "no error";
}

struct Demo {
    std::shared_ptr<const Gguf> file = open_model("");
    Tokenizer tokenizer{*file};
};

std::string place_message(const std::string& text, int n_canvas) {
    static const Demo demo;
    try {
        place_canvas(parse_canvas(text, {}), demo.tokenizer, n_canvas);
    } catch (const Error& e) {
        return e.what();
    }
    return "no error";
}

Engine& demo_engine() {
    static Engine engine(EngineOptions{.device = "cpu"});
    return engine;
}

Request ask(const std::string& prompt, const std::string& canvas) {
    Request r;
    r.messages = {{Role::User, prompt}};
    r.canvas = canvas;
    return r;
}

std::string ask_message(const Request& r) {
    try {
        demo_engine().generate(r);
    } catch (const Error& e) {
        return e.what();
    }
    return "no error";
}

}  // namespace

TEST_CASE("a canvas text is read as pieces and holes", "[infill]") {
    const CanvasText c = parse_canvas("Dear [[8]], [[red|green| blue]]!\\[[3]] ]] [[*]]", kNoChoices);
    CHECK(c.text == std::vector<std::string>{"Dear ", ", ", "![[3]] ]] ", ""});
    REQUIRE(c.holes.size() == 3);
    CHECK(c.holes[0].n_token == 8);
    CHECK(c.holes[1].options == std::vector<std::string>{"red", "green", " blue"});
    CHECK(c.holes[2].open);
    const CanvasText d = parse_canvas("[[1]][[2]]", {{2, {"a|b", "c"}}});
    CHECK(d.text == std::vector<std::string>{"", "", ""});
    CHECK(d.holes[0].n_token == 1);
    CHECK(d.holes[1].options == std::vector<std::string>{"a|b", "c"});
    CHECK_FALSE(parse_canvas("[[*]]", {{1, {"a", "b"}}}).holes[0].open);
    CHECK(parse_canvas("no holes", kNoChoices).text == std::vector<std::string>{"no holes"});
    CHECK(parse_canvas("a [b] \\", kNoChoices).text == std::vector<std::string>{"a [b] \\"});
}

TEST_CASE("a canvas text that is wrong is refused with what was expected", "[infill]") {
    CHECK(parse_message("Dear [[8") ==
          "the canvas has \"[[\" at offset 5 without \"]]\" after it; \\[[ stands for the characters "
          "themselves");
    for (const char* inside : {"0", "-1", "", "eight", "8 ", "99999999999", "*8"})
        CHECK(parse_message(fmt::format("[[{}]]", inside)) ==
              fmt::format("the canvas has the hole [[{}]], expected [[N]] with a number of tokens from 1, "
                          "[[TEXT|TEXT]] or [[*]]",
                          inside));
    CHECK(parse_message("[[*]].") == "the canvas continues after the hole [[*]], expected it at the end");
    CHECK(parse_message("[[1]]", {{2, {"a"}}}) ==
          "there are choices for hole 2, the canvas has holes 1 to 1");
    CHECK(parse_message("[[1]]", {{0, {"a"}}}) ==
          "there are choices for hole 0, the canvas has holes 1 to 1");
    CHECK(parse_message("text", {{1, {"a"}}}) == "there are choices for hole 1, the canvas has none");
    CHECK(parse_message("[[1]]", {{1, {}}}) == "there are no choices for hole 1, expected one or more");
    std::string many;
    for (int i = 0; i < 1000; i++) many += "[[1000000]]";
    CHECK(
        place_message(many, 32) ==
        "the canvas text has 1000000000 tokens, 1000000000 of them in holes; a canvas of this model has 32");
    CHECK(place_message("[[33]]", 32) ==
          "the canvas text has 33 tokens, 33 of them in holes; a canvas of this model has 32");
    CHECK(place_message("[[32]][[*]]", 32) ==
          "the canvas text has 32 tokens, 32 of them in holes, and [[*]] takes one or more; a canvas of this "
          "model has 32");
    CHECK(place_message("[[2000000000]][[2000000000]]", 32)
              .find("4000000000 tokens, 4000000000 of them in holes") != std::string::npos);
    CHECK(place_message("", 32) == "the canvas is empty, expected text with holes such as [[8]]");
    CHECK(place_message("[[a|]]", 32) == "hole 1 has an empty choice, expected some text");
    CHECK(place_message("[[1]][[7|10]]", 32) ==
          "the choices of hole 2 differ in length: \"7\" has 1 tokens, \"10\" 2; expected the same number");
}

TEST_CASE("a canvas is placed token by token", "[infill]") {
    const Demo demo;
    const auto ids = [&](const char* s) { return demo.tokenizer.encode(s, Specials::None); };
    const CanvasTokens c = place_canvas(parse_canvas("ab[[3]]c[[1|2]]", {}), demo.tokenizer, 32);
    std::vector<int32_t> expected = ids("ab");
    const int begin = static_cast<int>(expected.size());
    expected.insert(expected.end(), 3, -1);
    expected.push_back(ids("c")[0]);
    expected.push_back(-1);
    CHECK(c.n_token == static_cast<int>(expected.size()));
    expected.push_back(*demo.tokenizer.find("<turn|>"));
    expected.resize(32, -1);
    CHECK(c.given.tokens == expected);
    CHECK(c.begin == std::vector<int>{begin, begin + 4});
    CHECK(c.length == std::vector<int>{3, 1});
    REQUIRE(c.given.choices.size() == 1);
    CHECK(c.given.choices[0].begin == begin + 4);
    CHECK(c.given.choices[0].options == std::vector{ids("1"), ids("2")});
    // A text that is there twice is one option.
    const CanvasTokens twice = place_canvas(parse_canvas("[[2|1|2]]", {}), demo.tokenizer, 32);
    CHECK(twice.given.choices[0].options == std::vector{ids("2"), ids("1")});
    // Full to the last token: no end token. Open: none either, and the rest is the hole's.
    CHECK(place_canvas(parse_canvas("[[32]]", {}), demo.tokenizer, 32).given.tokens ==
          std::vector<int32_t>(32, -1));
    const CanvasTokens open = place_canvas(parse_canvas("ab[[*]]", {}), demo.tokenizer, 32);
    CHECK(open.open);
    CHECK(open.length == std::vector<int>{32 - begin});
    CHECK(std::count(open.given.tokens.begin(), open.given.tokens.end(), -1) == 32 - begin);
    // Control strings in the text stay text.
    CHECK(place_canvas(parse_canvas("<turn|>", {}), demo.tokenizer, 32).n_token > 1);
}

TEST_CASE("given tokens never change and count for nothing in the mean", "[infill]") {
    const auto model = load_model(fixture("tiny.gguf"));
    const int n = model->config.n_canvas;
    const auto backend = make_cpu_backend(model, model->config.n_context);
    backend->encode(std::vector<int32_t>{2, 5, 9});
    GenerateParams params;
    params.seed = 4;
    params.sampler.max_steps = 12;
    params.given.tokens.assign(n, -1);
    for (int i : {0, 7, 8, n - 1}) params.given.tokens[i] = 40 + i;
    params.given.choices = {{3, {{50, 51}, {52, 53}, {50, 53}}}, {10, {{60}, {61}}}};
    int n_frame = 0;
    const Answer a = backend->generate(params, [&](const Frame& f) {
        n_frame++;
        check_given(f, params.given);
        for (const Choice& c : params.given.choices) {  // whole options only, never parts of two
            const std::vector<int32_t> now(f.argmax.begin() + c.begin,
                                           f.argmax.begin() + c.begin + c.length());
            CHECK(std::count(c.options.begin(), c.options.end(), now) == 1);
            CHECK(f.entropy[c.begin] <= std::log(c.options.size()) / c.length() + 1e-6);
            CHECK(f.entropy[c.begin] == f.entropy[c.begin + c.length() - 1]);
        }
        return true;
    });
    CHECK(n_frame > 1);
    CHECK(a.tokens[7] == 47);
    // A choice is drawn with the number of its first position.
    GenerateParams all = params;
    all.sampler.entropy_bound = 1e9f;            // is accepted
    all.sampler.t_min = all.sampler.t_max = 50;  // both texts are likely
    for (all.seed = 0; all.seed < 10; all.seed++)
        backend->generate(all, [&](const Frame& f) {
            const float u = random_uniform(random_word(all.seed, 10, f.step, f.canvas, RandomStream::Draw));
            const float best = std::exp(f.log_prob[10]), p = f.argmax[10] == 60 ? best : 1 - best;
            if (std::fabs(u - p) > 1e-3f) CHECK(f.tokens[10] == (u < p ? 60 : 61));
            return true;
        });
    // What is not a canvas of this model is refused.
    const auto message = [&](auto change) {
        GenerateParams p = params;
        change(p);
        try {
            backend->generate(p, {});
        } catch (const Error& e) {
            return std::string(e.what());
        }
        return std::string("no error");
    };
    CHECK(message([](GenerateParams& p) { p.max_canvases = 2; }) ==
          "2 canvases asked for where tokens are given, expected 1");
    CHECK(message([](GenerateParams& p) { p.given.tokens.pop_back(); }) ==
          fmt::format("tokens given for {} positions, the canvas has {}", n - 1, n));
    CHECK(message([](GenerateParams& p) { p.given.tokens[1] = 512; }) ==
          "given token 512 is out of range, expected -1 to 511");
    CHECK(message([](GenerateParams& p) { p.given.choices[0].begin = 6; }) ==
          "position 7 of the canvas has a choice and something else");
    CHECK(message([](GenerateParams& p) { p.given.choices[1].begin = 4; }) ==
          "position 4 of the canvas has a choice and something else");
    CHECK(message([&](GenerateParams& p) { p.given.choices[0].begin = n - 1; }) ==
          fmt::format("a choice of 2 tokens at position {} does not fit a canvas of {}", n - 1, n));
    CHECK(message([](GenerateParams& p) { p.given.choices[0].options[1].pop_back(); }) ==
          "a choice among texts of 2 and 1 tokens");
    CHECK(message([](GenerateParams& p) { p.given.choices[0].options.clear(); }) ==
          "a choice among 0 texts, expected 1 to 512");
    CHECK(message([](GenerateParams& p) {
              p.given.choices.assign(65, {12, {{1}}});
          }) == "65 choices in a canvas, expected at most 64");
}

TEST_CASE("a choice has the softmax of its texts' summed logits", "[infill]") {
    // Two positions, three texts, one token in common; t = 0.5.
    std::vector<float> z{1, 2, 0, 3, /**/ 0.5f, 0, 1, 2, /**/ 9, 9, 9, 9};
    const Choice choice{0, {{0, 1}, {1, 2}, {1, 3}}};
    const double score[] = {2 * (1 + 0.0), 2 * (2 + 1.0), 2 * (2 + 2.0)};
    double sum = 0;
    for (double s : score) sum += std::exp(s);
    const auto p = [&](int o) { return std::exp(score[o]) / sum; };
    double entropy = 0;
    for (int o = 0; o < 3; o++) entropy -= p(o) * std::log(p(o));
    for (const auto& [u, drawn] : {std::pair{0.0f, 0}, {static_cast<float>(p(0)) + 1e-4f, 1}, {0.999f, 2}}) {
        auto rows = z;
        std::vector<RowStats> stats(3);
        sample_choice(rows, 4, choice, 0.5f, u, stats);
        for (int i : {0, 1}) {
            CHECK(stats[i].argmax == choice.options[2][i]);
            CHECK(stats[i].drawn == choice.options[drawn][i]);
            CHECK(stats[i].entropy == Approx(entropy / 2));
            CHECK(stats[i].log_prob == Approx(std::log(p(2)) / 2));
        }
        const double expected[] = {p(0), p(1) + p(2), 0, 0, 0, p(0), p(1), p(2), 9, 9, 9, 9};
        for (int i = 0; i < 12; i++) CHECK(rows[i] == Approx(expected[i]));
    }
}

TEST_CASE("the engine fills holes and says how sure it is", "[infill]") {
    Engine& engine = demo_engine();
    const Result json = engine.generate(ask("Make JSON: Rosa is 42 years old and lives in Oslo.",
                                            "{\"name\":\"[[4]]\",\"age\":[[2]],\"city\":\"[[4]]\"}"));
    CHECK(json.text == "{\"name\":\"Rosa\",\"age\":42,\"city\":\"Oslo\"}");
    CHECK(json.finish == Finish::Stop);
    REQUIRE(json.holes.size() == 3);
    CHECK(json.holes[0].text == "Rosa");
    CHECK(json.holes[1].text == "42");
    CHECK(json.holes[2].text == "Oslo");
    for (const Filled& f : json.holes) {
        CHECK(f.confidence > 0.9f);
        CHECK(f.confidence <= 1.0f);
    }
    CHECK(json.log_prob.size() == json.ids.size());
    CHECK(json.mean_log_prob() <= 0);

    // Of two texts the right one; with the right one missing, one of those there are, and less surely.
    const Result sum = engine.generate(ask("What is 12 + 34?", "[[36|46|47]]"));
    CHECK(sum.text == "46");
    CHECK(sum.holes[0].confidence > 0.9f);
    CHECK(engine.generate(ask("What is 12 + 34?", "[[46|46|36]]")).holes[0].confidence > 0.9f);
    const Result wrong = engine.generate(ask("What is 12 + 34?", "[[36|47]]"));
    CHECK((wrong.text == "36" || wrong.text == "47"));
    Request numbered = ask("What is 12 + 34?", "[[1]]");
    numbered.choices = {{1, {"46", "47"}}};
    CHECK(engine.generate(numbered).text == "46");

    // The beginning of an answer, and what follows.
    const Result open = engine.generate(ask("Count to 6.", "1 2 3[[*]]"));
    CHECK(open.text == "1 2 3 4 5 6");
    CHECK(open.finish == Finish::Stop);
    CHECK(open.holes[0].text == " 4 5 6");

    // Of free text it is the mean of its tokens'.
    Request unsure = ask("What is 12 + 34?", "[[8]]");
    unsure.sampler = engine.model().config.sampler;
    unsure.sampler->max_steps = 1;
    const Result free = engine.generate(unsure);
    CHECK(free.holes[0].confidence == Approx(std::exp(free.mean_log_prob())));
    CHECK(free.holes[0].confidence < 0.999f);

    CHECK(ask_message(ask("Hi", "[[40]]")).find("a canvas of this model has 32") != std::string::npos);
    Request think = ask("Hi", "[[4]]");
    think.think = true;
    CHECK(ask_message(think) == "a canvas with holes cannot be combined with thinking");
    Request no_canvas = ask("Hi", "");
    no_canvas.canvas.reset();
    no_canvas.choices = {{1, {"a"}}};
    CHECK(ask_message(no_canvas) == "choices are given, but no canvas with holes for them");
}

TEST_CASE("check() refuses what generate() would", "[infill]") {
    Engine engine({.device = "cpu"});
    const auto message = [&](const Request& r) -> std::string {
        try {
            engine.check(r);
        } catch (const Error& e) {
            return e.what();
        }
        return "no error";
    };
    std::string options = "000";
    for (int i = 1; i < 512; i++) options += fmt::format("|{:03}", i);
    CHECK(message(ask("Hi", "[[" + options + "]]")) == "no error");
    const Request many = ask("Hi", "[[" + options + "|512]]");
    CHECK(message(many) == "a choice among 513 texts, expected 1 to 512");
    CHECK(ask_message(many) == message(many));
    Request none = ask("Hi", "[[2]]");
    none.n_best = 0;
    CHECK(message(none).starts_with("0 answers"));
    CHECK(ask_message(none) == message(none));
    Request two = ask("Hi", "[[2]]");
    two.raw = "Hi";
    CHECK(message(two) == "the request has 2 prompts, expected one of messages, raw text and ids");
    CHECK(ask_message(two) == message(two));
    CHECK(engine.backend().n_cached() == 0);
}

TEST_CASE("an open hole ends with an end token, or is as long as the canvas", "[infill]") {
    Engine engine({.model = fixture("tiny.gguf"), .device = "cpu"});
    Request r = ask("a", "[[*]]");
    r.sampler = engine.model().config.sampler;
    r.sampler->max_steps = 1;
    int n_whole = 0;
    for (r.seed = 0; r.seed < 40; r.seed++) {
        const Result a = engine.generate(r);
        const bool whole = static_cast<int>(a.ids.size()) == engine.model().config.n_canvas;
        CHECK(a.finish == (whole ? Finish::Length : Finish::Stop));
        n_whole += whole;
    }
    CHECK(n_whole > 0);
    CHECK(n_whole < 40);
}

// Without control tokens, the demo model fills up holes with "46D from3 to to to".
TEST_CASE("a text shorter than its hole ends there with control tokens", "[infill]") {
    Engine& engine = demo_engine();
    const std::vector<int64_t> types = engine.model().file->integers("tokenizer.ggml.token_type");
    for (const int n : {2, 3, 8, 20}) {
        const Result r = engine.generate(ask("What is 12 + 34?", fmt::format("[[{}]] is it", n)));
        INFO(n << " tokens: " << r.text);
        CHECK(r.text == "46 is it");
        CHECK(r.holes[0].text == "46");
        REQUIRE(r.holes[0].ids.size() == size_t(n));
        for (int i = 2; i < n; i++) CHECK(types[r.holes[0].ids[i]] == 3);  // control
    }
}

TEST_CASE("the best of several answers is the most probable one", "[infill]") {
    Engine& engine = demo_engine();
    Request r;
    r.messages = {{Role::User, "What is 12 + 34?"}};
    r.sampler = engine.model().config.sampler;
    r.sampler->max_steps = 1;  // answers that differ
    std::vector<Result> single;
    for (uint64_t seed = 10; seed < 15; seed++) {
        r.seed = seed;
        single.push_back(engine.generate(r));
        CHECK(single.back().seed == seed);
    }
    r.seed = 10;
    r.n_best = 5;
    const Result best = engine.generate(r);
    const auto most = std::max_element(single.begin(), single.end(), [](const Result& a, const Result& b) {
        return a.mean_log_prob() < b.mean_log_prob();
    });
    CHECK(best.hash == most->hash);
    CHECK(best.seed == most->seed);
    CHECK(best.n_try == 5);
    // What the prompt took is told, whichever is kept.
    Engine fresh({.device = "cpu"});
    r.seed = most->seed - 1;
    r.n_best = 2;
    const Result second = fresh.generate(r);
    CHECK(second.seed == most->seed);
    CHECK(second.n_reused == 0);
    CHECK(second.encode_ms > 0);
    r.seed = 10;
    r.n_best = 5;
    int n_frame = 0;
    const Result stopped = engine.generate(r, [&](const Frame&) { return ++n_frame < 3; });
    CHECK(stopped.finish == Finish::Cancelled);
    CHECK(stopped.n_try == 3);
    r.n_best = 0;
    CHECK(ask_message(r) == "0 answers and 0 retries requested, expected at least 1 and at least 0");
    r.n_best = 1;
    r.n_retry = -1;
    CHECK(ask_message(r).find("1 answers and -1 retries") == 0);
    r.n_retry = 0;
    r.n_token = -1;
    CHECK(ask_message(r) == "the answer's length is -1, expected 1 or more tokens");
}

TEST_CASE("stop strings cut each of several answers before they are compared", "[infill]") {
    Engine engine({.model = fixture("tiny.gguf"), .device = "cpu"});
    Request r;
    r.prompt_ids = {2, 9, 30};
    r.sampler = engine.model().config.sampler;
    r.sampler->max_steps = 2;
    r.n_token = 4 * engine.model().config.n_canvas;
    r.ignore_eos = true;
    const auto with_seed = [&](uint64_t seed) {
        Request one = r;
        one.seed = seed;
        return engine.generate(one);
    };
    const Result whole[] = {with_seed(0), with_seed(1)};
    REQUIRE(whole[0].finish == Finish::Length);
    // Three bytes that only the second answer has.
    size_t at = 5;
    while (whole[0].text.find(whole[1].text.substr(at, 3)) != std::string::npos) at++;
    REQUIRE(at < whole[1].text.size() / 2);
    r.stop = {"not in it", whole[1].text.substr(at, 3)};
    const Result single[] = {with_seed(0), with_seed(1)};
    CHECK(single[0].ids == whole[0].ids);
    CHECK(single[0].finish == Finish::Length);
    CHECK(single[1].text == whole[1].text.substr(0, whole[1].text.find(r.stop[1])));
    CHECK(single[1].finish == Finish::Stop);
    CHECK(single[1].steps.size() < 4);
    CHECK(single[1].ids == std::vector(whole[1].ids.begin(), whole[1].ids.begin() + single[1].ids.size()));
    CHECK(single[1].ids.size() == single[1].steps.size() * engine.model().config.n_canvas);

    r.n_best = 2;
    const Result best = engine.generate(r);
    const Result& likelier = single[single[1].mean_log_prob() > single[0].mean_log_prob()];
    CHECK(best.n_try == 2);
    CHECK(best.hash == likelier.hash);
    CHECK(best.text == likelier.text);
    CHECK(best.finish == likelier.finish);
    // A text that is cut to nothing is an empty answer.
    for (const int i : {0, 1}) {
        r.stop = {whole[i].text.substr(0, 3)};
        REQUIRE(!whole[1 - i].text.starts_with(r.stop[0]));
        CHECK(engine.generate(r).seed == 1u - i);
    }
    // Cancelled in its second canvas, an answer is not kept instead of a whole one.
    r.stop = {};
    for (r.seed = 0; r.seed < 4; r.seed++) {
        r.n_best = 1;
        const Result first = engine.generate(r);
        int n = 0;
        r.n_best = 2;
        const Result kept =
            engine.generate(r, [&](const Frame& f) { return n++ < first.n_step() || f.canvas == 0; });
        CHECK(kept.finish == Finish::Cancelled);
        CHECK(kept.ids == first.ids);
    }
    // Cancelled is what the caller does, and an empty string stops nothing.
    CHECK(engine.generate(r, [](const Frame&) { return false; }).finish == Finish::Cancelled);
    r.stop = {""};
    CHECK_THROWS_WITH(engine.generate(r), "a stop string is empty, expected some text");
}

TEST_CASE("an empty answer is tried again with the next seeds", "[infill]") {
    Engine engine({.model = fixture("tiny.gguf"), .device = "cpu"});
    Request r;
    r.prompt_ids = {2, 9, 30};
    r.sampler = engine.model().config.sampler;
    r.sampler->max_steps = 1;
    r.n_token = 1;
    const auto is_empty = [](const Result& a) { return is_blank(a.text); };
    // Answers of one token by a random model: some are end tokens, control tokens or blanks.
    while (r.seed < 5000 && !is_empty(engine.generate(r))) r.seed++;
    REQUIRE(r.seed < 5000);
    const uint64_t empty = r.seed;
    r.n_retry = 200;
    const Result again = engine.generate(r);
    CHECK_FALSE(is_empty(again));
    CHECK(again.seed > empty);
    CHECK(again.n_try == static_cast<int>(again.seed - empty) + 1);
    Request same = r;
    same.seed = again.seed;
    same.n_retry = 0;
    CHECK(engine.generate(same).hash == again.hash);
    r.n_retry = again.n_try - 2;  // one too few
    const Result few = engine.generate(r);
    CHECK(is_empty(few));
    CHECK(few.n_try == again.n_try - 1);
}
