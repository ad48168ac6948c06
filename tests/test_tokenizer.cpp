// test_tokenizer.cpp: tokenizer.h against the ids of a public engine, against a slow merge loop on random
// vocabularies, and on broken files.
#include <ctime>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <unordered_set>

#include "catch.h"
#include "check.h"
#include "make_gguf.h"
#include "tokenizer.h"

using namespace easel;

namespace {

using Ids = std::vector<int32_t>;
using Tokens = std::vector<std::pair<std::string, int32_t>>;

constexpr Specials kAllModes[] = {Specials::None, Specials::UserDefined, Specials::All};
const std::string kSpace = "\u2581";

// A vocabulary in memory and its tokenizer, which keeps views into the bytes.
struct Vocabulary {
    std::vector<uint8_t> bytes;
    Gguf file;
    Tokenizer tokenizer;

    explicit Vocabulary(const MakeGguf& make)
        : bytes(make.bytes()), file(Gguf::from_memory(bytes, "test")), tokenizer(file) {}
    Vocabulary(const Tokens& tokens, const std::vector<std::string>& merges)
        : Vocabulary(make(tokens, merges)) {}

    static MakeGguf make(const Tokens& tokens, const std::vector<std::string>& merges) {
        MakeGguf make;
        set_vocabulary(make, tokens, merges);
        return make;
    }
};

struct Tiny {
    Gguf file = Gguf::open("tests/fixtures/tiny.gguf");
    Tokenizer tokenizer{file};
};

std::string replace_all(std::string text, const std::string& from, const std::string& to) {
    for (size_t at = 0; (at = text.find(from, at)) != text.npos; at += to.size())
        text.replace(at, from.size(), to);
    return text;
}

// What must come back: the text, but a U+2581 of its own may have become a space.
void check_inverse(const Tokenizer& t, const std::string& text) {
    for (Specials specials : kAllModes) {
        const std::string back = t.decode(t.encode(text, specials), true);
        if (text.find(kSpace) == text.npos)
            REQUIRE(back == text);
        else
            REQUIRE(replace_all(back, kSpace, " ") == replace_all(text, kSpace, " "));
    }
}

double seconds_of(auto&& work) {
    const std::clock_t start = std::clock();  // of this process: other programs on the machine do not count
    work();
    return double(std::clock() - start) / CLOCKS_PER_SEC;
}

std::string random_bytes(std::mt19937& rng, size_t n) {
    std::string s(n, ' ');
    for (char& c : s) c = static_cast<char>(rng());
    return s;
}

void append_utf8(std::string& s, uint32_t c) {
    if (c < 0x80) {
        s += static_cast<char>(c);
        return;
    }
    const int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    const int lead[] = {0, 0xc0, 0xe0, 0xf0};
    s += static_cast<char>(lead[more] | c >> (6 * more));
    for (int i = more - 1; i >= 0; i--) s += static_cast<char>(0x80 | (c >> (6 * i) & 0x3f));
}

// Pieces that make special strings, merges, newline runs and broken characters likely.
std::string random_pieces(std::mt19937& rng, const std::vector<std::string>& pieces, size_t n) {
    std::string s;
    for (size_t i = 0; i < n; i++) s += pieces[rng() % pieces.size()];
    return s;
}

// The algorithm of SPEC 5.1 in its plainest form, quadratic, on strings.
struct Oracle {
    std::map<std::string, int32_t> plain;    // normal tokens
    std::map<std::string, int32_t> special;  // those of the mode
    std::map<std::pair<std::string, std::string>, size_t> ranks;

    Oracle(const Tokens& tokens, const std::vector<std::string>& merges, Specials mode) {
        for (size_t i = 0; i < tokens.size(); i++) {
            const auto& [text, type] = tokens[i];
            const int32_t id = static_cast<int32_t>(260 + i);
            if (type == 1 || (type == 4 && text.find_first_not_of('\n') == text.npos))
                plain.emplace(text, id);
            if ((type == 4 && mode != Specials::None) || (type == 3 && mode == Specials::All))
                special.emplace(text, id);
        }
        for (size_t i = 0; i < merges.size(); i++) {
            const size_t space = merges[i].find(' ', 1);
            ranks.emplace(std::pair{merges[i].substr(0, space), merges[i].substr(space + 1)}, i);
        }
    }

    static int char_bytes(const std::string& s, size_t at) {
        const unsigned char c = s[at];
        const int n = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : c >= 0xc0 ? 2 : 1;
        for (int i = 1; i < n; i++)
            if (at + i >= s.size() || (s[at + i] & 0xc0) != 0x80) return 1;
        return n;
    }

    void line(const std::string& text, Ids& out) const {
        if (text[0] == '\n' && plain.count(text)) {
            out.push_back(plain.at(text));
            return;
        }
        std::vector<std::string> as_given, symbols;
        for (size_t at = 0; at < text.size(); at += as_given.back().size()) {
            as_given.push_back(text.substr(at, char_bytes(text, at)));
            symbols.push_back(as_given.back() == " " ? kSpace : as_given.back());
        }
        for (;;) {
            size_t best = symbols.size(), best_rank = SIZE_MAX;
            for (size_t i = 0; i + 1 < symbols.size(); i++) {
                auto found = ranks.find({symbols[i], symbols[i + 1]});
                if (found != ranks.end() && found->second < best_rank) best = i, best_rank = found->second;
            }
            if (best == symbols.size()) break;
            symbols[best] += symbols[best + 1];
            as_given[best] += as_given[best + 1];
            symbols.erase(symbols.begin() + best + 1);
            as_given.erase(as_given.begin() + best + 1);
        }
        for (size_t i = 0; i < symbols.size(); i++) {
            if (plain.count(symbols[i]))
                out.push_back(plain.at(symbols[i]));
            else
                for (unsigned char c : as_given[i]) out.push_back(4 + c);
        }
    }

    void text_without_specials(const std::string& text, Ids& out) const {
        for (size_t at = 0; at < text.size();) {
            size_t end = at;
            while (end < text.size() && (text[end] == '\n') == (text[at] == '\n')) end++;
            line(text.substr(at, end - at), out);
            at = end;
        }
    }

    // Of all occurrences of the longest string present the leftmost, then both sides of it likewise.
    void encode(const std::string& text, Ids& out) const {
        size_t best = text.npos;
        std::string which;
        for (const auto& [s, id] : special) {
            const size_t at = text.find(s);
            if (at != text.npos && (s.size() > which.size() || (s.size() == which.size() && at < best)))
                best = at, which = s;
        }
        if (which.empty()) return text_without_specials(text, out);
        encode(text.substr(0, best), out);
        out.push_back(special.at(which));
        encode(text.substr(best + which.size()), out);
    }
};

// Merges of random neighbours, some of whose results or parts are not in the vocabulary; special strings that
// overlap.
void random_vocabulary(std::mt19937& rng, Tokens& tokens, std::vector<std::string>& merges) {
    std::vector<std::string> known = {"a", "b", "c", "<", "|", "\n", "\u00e9", kSpace};
    for (const std::string& s : known)
        if (rng() % 8) tokens.push_back({s, 1});
    for (int i = 0; i < 40; i++) {
        const std::string left = known[rng() % known.size()], right = known[rng() % known.size()];
        if (left.size() + right.size() > 24) continue;
        merges.push_back(left + " " + right);
        known.push_back(left + right);
        if (rng() % 4) tokens.push_back({known.back(), 1});
    }
    const std::vector<std::string> letters = {"<", "a", "|", "b", " ", "\n"};
    for (int i = 0; i < 8; i++) {
        const std::string text = random_pieces(rng, letters, 2 + rng() % 4);
        auto same = [&](const auto& t) { return t.first == text; };
        if (std::none_of(tokens.begin(), tokens.end(), same)) tokens.push_back({text, rng() % 2 ? 3 : 4});
    }
}

}  // namespace

TEST_CASE("tokenizer: the ids of a public engine", "[tokenizer]") {
    const Tiny tiny;
    const nlohmann::json cases = nlohmann::json::parse(std::ifstream("tests/fixtures/tiny.tokenize.json"));
    REQUIRE(cases.size() > 100);
    const std::vector<int64_t> types = tiny.file.integers("tokenizer.ggml.token_type");
    for (const auto& c : cases) {
        const std::string text = c["text"];
        INFO(text);
        CHECK(tiny.tokenizer.encode(text, Specials::UserDefined) == c["ids"].get<Ids>());
        CHECK(tiny.tokenizer.encode(text, Specials::All) == c["ids_special"].get<Ids>());
        check_inverse(tiny.tokenizer, text);
        const Ids plain = tiny.tokenizer.encode(text, Specials::None);
        for (int32_t id : plain) CHECK((types[id] == 1 || types[id] == 6));  // normal, or a byte
        if (text.find("<|channel>") == text.npos && text.find("<channel|>") == text.npos &&
            text.find("<mask>") == text.npos)
            CHECK(plain == c["ids"].get<Ids>());
    }
}

TEST_CASE("tokenizer: ids by name, ends", "[tokenizer]") {
    const Tiny tiny;
    const Tokenizer& t = tiny.tokenizer;
    CHECK(t.n_vocab() == 512);
    CHECK(t.bos == 2);
    CHECK(t.eos == 1);
    CHECK(t.pad == 0);
    CHECK(t.end_of_generation == Ids{1, 361});
    CHECK(t.is_end(361));
    CHECK_FALSE(t.is_end(360));
    CHECK(t.find("<|turn>") == 360);
    CHECK(t.find("nothing like it") == std::nullopt);
    CHECK(t.find("") == std::nullopt);
    CHECK(t.text(360) == "<|turn>");
    CHECK_THROWS_AS(t.text(512), Error);
    CHECK_THROWS_AS(t.text(-1), Error);
    CHECK_THROWS_AS(t.decode(Ids{1, 512}, true), Error);
    CHECK_THROWS_AS(t.decode(Ids{-1}, false), Error);

    // `<|tool_response>` ends an answer too, whatever its type; eot comes from its key.
    MakeGguf make = Vocabulary::make({{"<|tool_response>", 4}, {"<turn|>", 3}, {"end", 1}}, {});
    make.set("tokenizer.ggml.eot_token_id", int32_t{262});
    CHECK(Vocabulary(make).tokenizer.end_of_generation == Ids{1, 260, 261, 262});
    make.erase("tokenizer.ggml.eos_token_id");
    make.erase("tokenizer.ggml.bos_token_id");
    make.erase("tokenizer.ggml.scores");
    const Vocabulary v(make);
    CHECK(v.tokenizer.eos == -1);
    CHECK(v.tokenizer.bos == -1);
    CHECK(v.tokenizer.end_of_generation == Ids{260, 261, 262});
    Tokenizer moved = Vocabulary(make).tokenizer.is_end(0) ? Tokenizer(v.file) : Tokenizer(v.file);
    CHECK(moved.n_vocab() == 263);
}

TEST_CASE("tokenizer: control tokens are hidden or shown, spaces kept", "[tokenizer]") {
    const Tiny tiny;
    const Tokenizer& t = tiny.tokenizer;
    const std::string text = " <bos> a<|turn>\n<|channel>\n\n";
    const Ids ids = t.encode(text, Specials::All);
    CHECK(t.decode(ids, true) == text);
    CHECK(t.decode(ids, false) == "  a\n<|channel>\n\n");
    CHECK(t.decode(t.encode(text, Specials::None), false) == text);
    CHECK(t.decode(Ids{5 + 0xf0, 5 + 0x9f, 5 + 0xa6, 5 + 0x99}, false) == "\U0001f999");
    CHECK(t.decode(t.encode("a\u2581b", Specials::All), true) ==
          "a b");  // the one case that does not come back
}

TEST_CASE("tokenizer: newline runs, longest special first, leftmost tie", "[tokenizer]") {
    const Vocabulary v({{"\n", 1},       // 260
                        {"\n\n\n", 1},   // 261
                        {"a", 1},        // 262
                        {"aa", 1},       // 263
                        {"ab", 4},       // 264
                        {"bcd", 4},      // 265
                        {"<t>", 3},      // 266
                        {"<t><t>", 4}},  // 267
                       {"a a"});
    const Tokenizer& t = v.tokenizer;
    const auto id = [](char c) { return 4 + c; };
    CHECK(t.encode("\n\n\n", Specials::None) == Ids{261});
    CHECK(t.encode("\n\n", Specials::None) == Ids{260, 260});
    CHECK(t.encode("a\n\n\na", Specials::None) == Ids{262, 261, 262});
    CHECK(t.encode("aaa", Specials::None) == Ids{263, 262});
    CHECK(t.encode("abcd", Specials::UserDefined) ==
          Ids{262, 265});  // the longer one, although it starts later
    CHECK(t.encode("abc", Specials::UserDefined) == Ids{264, id('c')});
    CHECK(t.encode("abc", Specials::None) == Ids{262, id('b'), id('c')});
    CHECK(t.encode("<t><t><t>", Specials::All) == Ids{267, 266});
    CHECK(t.encode("<t><t><t>", Specials::UserDefined) == Ids{267, id('<'), id('t'), id('>')});
    CHECK(t.encode("\xff"
                   "a\xc3",
                   Specials::All) == Ids{4 + 0xff, 262, 4 + 0xc3});
}

TEST_CASE("tokenizer: decode undoes encode for any bytes", "[tokenizer]") {
    const Tiny tiny;
    std::mt19937 rng(1);
    for (int i = 0; i < 300; i++) check_inverse(tiny.tokenizer, random_bytes(rng, rng() % 200));
    for (int i = 0; i < 300; i++) {
        std::string text;
        for (size_t n = rng() % 100; n-- > 0;) {
            const uint32_t limits[] = {0x80, 0x800, 0x3000, 0x110000};
            append_utf8(text, rng() % limits[rng() % 4]);
        }
        check_inverse(tiny.tokenizer, text);
    }
    const std::vector<std::string> pieces = {"<|turn>", "<turn|>", "<|channel>", "<bos>",    "<",     "|",
                                             "tos",     "yya",     "jzw",        " ",        "\n",    "\t",
                                             "\u00e9",  "\u2581",  "\xe2",       "\x96\x81", "<0x41>"};
    for (int i = 0; i < 500; i++) check_inverse(tiny.tokenizer, random_pieces(rng, pieces, rng() % 40));
}

TEST_CASE("tokenizer: the same ids as a slow merge loop on random vocabularies", "[tokenizer]") {
    std::mt19937 rng(2);
    const std::vector<std::string> pieces = {"a",      "b", "c", "<",      "|",    " ", "\n",
                                             "\u00e9", "a", "b", "\u2581", "\xc3", "x"};
    for (int round = 0; round < 60; round++) {
        Tokens tokens;
        std::vector<std::string> merges;
        random_vocabulary(rng, tokens, merges);
        const Vocabulary v(tokens, merges);
        for (Specials mode : kAllModes) {
            const Oracle oracle(tokens, merges, mode);
            for (int i = 0; i < 20; i++) {
                const std::string text = random_pieces(rng, pieces, rng() % 80);
                Ids expected;
                oracle.encode(text, expected);
                INFO("round " << round << " text " << text);
                REQUIRE(v.tokenizer.encode(text, mode) == expected);
            }
        }
        for (int i = 0; i < 20; i++) check_inverse(v.tokenizer, random_pieces(rng, pieces, rng() % 80));
    }
}

TEST_CASE("tokenizer: what merging spells is never a control, user-defined or byte token", "[tokenizer]") {
    // Merges that lead to "<t>", "<u>" and "<0x41>".
    const Vocabulary v({{"<", 1}, {"t", 1}, {">", 1}, {"<t", 1}, {"<t>", 3}, {"<u>", 4}, {"A", 1}},
                       {"< t", "<t >", "< u", "<u >", "< 0", "<0 x", "<0x 4", "<0x4 1", "<0x41 >"});
    const Tokenizer& t = v.tokenizer;
    const auto bytes = [](std::string_view s) {
        Ids ids;
        for (unsigned char c : s) ids.push_back(4 + c);
        return ids;
    };
    CHECK(t.encode("<t>", Specials::None) == bytes("<t>"));
    CHECK(t.encode("<t>", Specials::UserDefined) == bytes("<t>"));
    CHECK(t.encode("<t>", Specials::All) == Ids{264});
    CHECK(t.encode("<u>", Specials::None) == bytes("<u>"));
    CHECK(t.encode("<u>", Specials::UserDefined) == Ids{265});
    CHECK(t.encode("<0x41>", Specials::All) == bytes("<0x41>"));
    CHECK(t.encode("<t", Specials::None) == Ids{263});
}

TEST_CASE("tokenizer: odd vocabularies that still work", "[tokenizer]") {
    // Duplicates (the lowest id wins), empty texts, a merge that comes twice, no plain space.
    const Vocabulary v({{"a", 1},
                        {"a", 1},
                        {"", 1},
                        {"", 4},
                        {"", 3},
                        {"<x>", 3},
                        {"<x>", 4},
                        {"x y", 1},
                        {"aa", 1},
                        {"<0x41>", 6}},
                       {"a a", "aa aa", "a a"});
    const Tokenizer& t = v.tokenizer;
    CHECK(t.encode("aaa", Specials::None) == Ids{268, 260});
    CHECK(t.encode("aaaa", Specials::None) == Ids{4 + 'a', 4 + 'a', 4 + 'a', 4 + 'a'});  // "aaaa" is no token
    CHECK(t.decode(Ids{261, 262, 263, 264, 260}, true) == "aa");
    CHECK(t.encode("<x>", Specials::All) == Ids{265});
    CHECK(t.encode("<x>", Specials::UserDefined) == Ids{266});
    CHECK(t.encode("x y", Specials::All) == Ids{4 + 'x', 4 + ' ', 4 + 'y'});
    CHECK(t.encode("A", Specials::None) == Ids{4 + 'A'});
    std::mt19937 rng(3);
    for (int i = 0; i < 100; i++)
        check_inverse(t, random_pieces(rng, {"a", "<x>", " ", "x", "y", "<"}, rng() % 30));
    // User-defined white space is plain text in every mode.
    const Vocabulary w({{kSpace, 1}, {kSpace + kSpace, 4}, {"\n\n", 4}, {"\n", 1}, {"\t\t", 4}},
                       {kSpace + " " + kSpace, "\t \t"});
    CHECK(w.tokenizer.encode("  \n\n", Specials::None) == Ids{261, 262});
    CHECK(w.tokenizer.encode("\t\t", Specials::None) == Ids{264});
    CHECK(w.tokenizer.decode(Ids{261, 262}, false) == "  \n\n");
}

TEST_CASE("tokenizer: a broken vocabulary is refused with the key's name", "[tokenizer]") {
    const auto refused = [](auto&& change, const char* expected) {
        MakeGguf make = Vocabulary::make({{"a", 1}, {"aa", 1}}, {"a a"});
        change(make);
        std::string message = "nothing was thrown";
        try {
            Vocabulary v(make);
        } catch (const Error& e) {
            message = e.what();
        }
        INFO(message);
        CHECK(message.find(expected) != message.npos);
        CHECK(message.find('\n') == message.npos);
    };
    using Strings = std::vector<std::string>;
    const std::string prefix = "tokenizer.ggml.";
    for (const char* key : {"model", "tokens", "token_type", "merges"})
        refused([&](MakeGguf& m) { m.erase(prefix + key); }, key);
    for (const char* key : {"model", "tokens", "token_type", "merges", "scores"})
        refused([&](MakeGguf& m) { m.set(prefix + key, 1.5f); }, key);
    for (const char* key : {"bos_token_id", "eos_token_id", "eot_token_id", "padding_token_id"}) {
        refused([&](MakeGguf& m) { m.set(prefix + key, uint32_t{262}); }, key);
        refused([&](MakeGguf& m) { m.set(prefix + key, int32_t{-1}); }, key);
        refused([&](MakeGguf& m) { m.set(prefix + key, std::string("2")); }, key);
    }
    refused([&](MakeGguf& m) { m.set(prefix + "model", std::string("llama\nx")); }, "found \"llama\\x0ax\"");
    refused([&](MakeGguf& m) { m.set(prefix + "model", std::string(100000, '\xff')); },
            "expected \"gemma4\"");
    refused([&](MakeGguf& m) { m.set(prefix + "tokens", Strings{}); }, "0 items");
    refused([&](MakeGguf& m) { m.set(prefix + "tokens", Strings{"a"}); }, "scores");
    refused([&](MakeGguf& m) { m.set(prefix + "token_type", std::vector<int32_t>(261, 1)); },
            "261 items, expected 262");
    refused([&](MakeGguf& m) { m.set(prefix + "token_type", std::vector<int32_t>(262, 1)); }, "<0x00>");
    refused([&](MakeGguf& m) { m.set(prefix + "token_type", std::vector<int32_t>(262, 0)); }, "[0] is 0");
    refused([&](MakeGguf& m) { m.set(prefix + "token_type", std::vector<int32_t>(262, 7)); }, "[0] is 7");
    refused([&](MakeGguf& m) { m.set(prefix + "token_type", std::vector<int32_t>(262, 6)); }, "\"<pad>\"");
    refused([&](MakeGguf& m) { m.set(prefix + "scores", std::vector<float>(261)); }, "scores");
    refused([&](MakeGguf& m) { m.set(prefix + "scores", Strings(262)); }, "scores");
    for (const char* merge : {"", " ", "aa", "a ", " a", "\n\n"})
        refused([&](MakeGguf& m) { m.set(prefix + "merges", Strings{"a a", merge}); }, "merges[1]");
    refused([&](MakeGguf& m) { set_vocabulary(m, {{std::string(257, 'x'), 3}}, {}); }, "257 bytes");
    const std::string longest(256, 'x');
    CHECK(Vocabulary({{longest, 3}}, {}).tokenizer.encode(longest, Specials::All) == Ids{260});
    for (const char* text : {"<0x41x", "<0x4G>", "<0x0041>", "(0x41>"})
        refused([&](MakeGguf& m) { set_vocabulary(m, {{text, 6}}, {}); }, text);
}

// Measured at a tenth to a quarter of these limits, and the best of five counts where others slow the caches
// down; sanitizers slow things down too much for them.
TEST_CASE("tokenizer: a megabyte of anything within a second", "[tokenizer]") {
    Tokens tokens = {{"<", 1}, {kSpace, 1}, {"\n", 1}, {"<|turn>", 3}, {"<|channel>", 4}, {"<turn|>", 3}};
    std::vector<std::string> merges;
    for (std::string s : {"a", "b"})
        for (int i = 0; i < 8; i++, s += s) {
            tokens.push_back({s, 1});
            merges.push_back(s + " " + s);
        }
    const Vocabulary v(tokens, merges);
    const Tiny tiny;
    std::mt19937 rng(4);
    constexpr size_t n = 1 << 20;
    std::vector<std::string> texts;
    for (char c : {'a', '<', '\n', ' ', '\xe2'}) texts.push_back(std::string(n, c));
    texts.push_back(random_bytes(rng, n));
    texts.push_back(random_pieces(rng, {"a", "b", "a", "tos", "yya", "jzw", "abzw", " ppm", "zq"}, n / 3));
    texts.push_back(random_pieces(rng, {"<|turn", ">", "<|channel>", "<"}, n / 6));
    texts.push_back(random_pieces(rng, {"a", "\n"}, n));
    for (const std::string& text : texts)
        for (const Tokenizer* t : {&v.tokenizer, &tiny.tokenizer})
            for (Specials mode : kAllModes) {
                Ids ids;
                std::string back;
                double encode = 1e9, decode = 1e9;
                for (int i = 0; i < 5 && (encode >= 1 || decode >= 0.5); i++) {
                    encode = std::min(encode, seconds_of([&] { ids = t->encode(text, mode); }));
                    decode = std::min(decode, seconds_of([&] { back = t->decode(ids, true); }));
                }
                INFO("first byte " << int(text[0]) << " encode " << encode << " decode " << decode);
                CHECK(back == text);
#if !defined(__SANITIZE_ADDRESS__)
                CHECK(encode < 1);
                CHECK(decode < 0.5);
#endif
            }
}

TEST_CASE("tokenizer: a vocabulary of the real size loads at once", "[tokenizer]") {
    // As converters make it: a token is two earlier ones, more often frequent (early) ones, and merges are
    // all the splits of the tokens into tokens.
    constexpr size_t n_tokens = 262144 - 260, n_merges = 514906;
    std::mt19937 rng(5);
    Tokens tokens;
    std::vector<std::string> merges;
    std::unordered_set<std::string> known;
    for (char c = 'a'; c <= 'z'; c++) tokens.push_back({*known.insert(std::string(1, c)).first, 1});
    const auto early = [&] {
        const double u = double(rng()) / 4294967296.0;
        return tokens[size_t(u * u * u * double(tokens.size()))].first;
    };
    while (tokens.size() < n_tokens) {
        const std::string text = early() + early();
        if (text.size() > 14 || !known.insert(text).second) continue;
        tokens.push_back({text, 1});
        for (size_t i = 1; i < text.size(); i++)
            if (known.count(text.substr(0, i)) && known.count(text.substr(i)))
                merges.push_back(text.substr(0, i) + " " + text.substr(i));
    }
    while (merges.size() < n_merges) merges.push_back(merges[rng() % merges.size()]);
    const std::vector<uint8_t> bytes = Vocabulary::make(tokens, merges).bytes();
    const Gguf file = Gguf::from_memory(bytes, "test");
    // The best of five. A quarter of a second on a quiet machine, some times that where other programs use
    // the cache, by which it is bound; if every string were compared with every other, minutes.
    double seconds = 1e9;
    for (int i = 0; i < 5 && seconds >= 0.5; i++)
        seconds = std::min(seconds, seconds_of([&] { Tokenizer t(file); }));
    INFO("load " << seconds);
    CHECK(seconds > 0);
#if !defined(__SANITIZE_ADDRESS__)
    CHECK(seconds < 3);
#endif
}
