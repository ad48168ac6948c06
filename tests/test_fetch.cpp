// test_fetch.cpp: models.h and sha256.h: the list of models, their folder, what -m means, and the hash. What
// needs a server is in fetch.sh.
#include <cstdlib>
#include <optional>

#include "catch.h"
#include "files.h"
#include "models.h"
#include "sha256.h"
#include "text.h"

using namespace easel;

namespace {

// An environment variable that has another value, or none, while the object lives.
class Env {
  public:
    Env(const char* name, std::optional<std::string> value) : name_(name) {
        if (const char* old = std::getenv(name)) old_ = old;
        set(value);
    }
    ~Env() { set(old_); }
    Env(const Env&) = delete;
    Env& operator=(const Env&) = delete;

  private:
    void set(const std::optional<std::string>& value) {
        if (value)
            setenv(name_, value->c_str(), 1);
        else
            unsetenv(name_);
    }
    const char* name_;
    std::optional<std::string> old_;
};

std::string hash(std::string_view text, size_t piece = SIZE_MAX) {
    Sha256 sha;
    for (size_t at = 0; at < text.size(); at += std::min(piece, text.size() - at)) {
        const std::string_view part = text.substr(at, piece);
        sha.add({reinterpret_cast<const uint8_t*>(part.data()), part.size()});
    }
    return sha.hex();
}

const std::string kUrl = "https://example.org/m.gguf";
const std::string kSha = std::string(64, 'a');

}  // namespace

TEST_CASE("sha256: the examples of FIPS 180-4", "[fetch]") {
    CHECK(hash("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(hash("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK(hash("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
          "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    CHECK(hash("abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopq"
               "klmnopqrlmnopqrsmnopqrstnopqrstu") ==
          "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
    CHECK(hash(std::string(1000000, 'a')) ==
          "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_CASE("sha256: pieces of any size give the same", "[fetch]") {
    std::string text;
    for (int i = 0; i < 400; i++) text += static_cast<char>(i * 37 + i / 7);
    for (size_t n = 0; n <= 200; n++) {  // every length about one and two blocks, padding included
        const std::string_view part = std::string_view(text).substr(0, n);
        const std::string whole = hash(part);
        for (size_t piece : {1, 3, 63, 64, 65}) CHECK(hash(part, piece) == whole);
    }
    Sha256 sha;  // hex() leaves the object as it is
    sha.add({reinterpret_cast<const uint8_t*>("ab"), 2});
    CHECK(sha.hex() == hash("ab"));
    sha.add({reinterpret_cast<const uint8_t*>("c"), 1});
    CHECK(sha.hex() == hash("abc"));
}

TEST_CASE("models: a list", "[fetch]") {
    const auto models = parse_models("# a comment\n\n  \t\n\tsmall 12 " + std::string(64, 'A') + " " + kUrl +
                                         "   two  words \r\nbig-1.b_c - - http://x/y",
                                     "list");
    REQUIRE(models.size() == 2);
    CHECK(models[0].name == "small");
    CHECK(models[0].bytes == 12);
    CHECK(models[0].sha256 == kSha);
    CHECK(models[0].url == kUrl);
    CHECK(models[0].note == "two  words");
    CHECK(models[1].name == "big-1.b_c");
    CHECK(models[1].bytes == 0);
    CHECK(models[1].sha256.empty());
    CHECK(models[1].note.empty());
    CHECK(parse_models("", "list").empty());
    CHECK(find_entry(models, "small") == &models[0]);
    CHECK(find_entry(models, "Small") == nullptr);
}

TEST_CASE("models: what is wrong with a list", "[fetch]") {
    const auto error = [](const std::string& text) {
        return error_of([&] { parse_models("# comment\n" + text, "list.txt"); });
    };
    check_has(error("../x 1 - " + kUrl), {"list.txt line 2", "the name is \"../x\", expected letters"});
    check_has(error(".x 1 - " + kUrl), {"the name is \".x\""});
    check_has(error("-x 1 - " + kUrl), {"the name is \"-x\""});
    check_has(error(std::string(101, 'x') + " 1 - " + kUrl), {"the name is \"xxx"});
    check_has(error("x"), {"the size is \"\", expected a number of bytes"});
    check_has(error("x 1e9 - " + kUrl), {"the size is \"1e9\""});
    check_has(error("x -1 - " + kUrl), {"the size is \"-1\""});
    check_has(error("x 9223372036854775808 - " + kUrl), {"the size is \"9223372036854775808\""});
    check_has(error("x 1"), {"the sha256 is \"\", expected 64 hexadecimal digits"});
    check_has(error("x 1 " + kSha + "a " + kUrl), {"the sha256 is \"aaa"});
    check_has(error("x 1 " + std::string(64, 'g') + " " + kUrl), {"the sha256 is \"ggg"});
    check_has(error("x 1 -"), {"the url is \"\", expected http:// or https://"});
    check_has(error("x 1 - file:///etc/passwd"), {"the url is \"file:///etc/passwd\""});
    check_has(error("x 1 - --output"), {"the url is \"--output\""});
    check_has(error("x 1 - " + kUrl + "\nx 1 - " + kUrl), {"line 3", "the name x appears twice"});
}

TEST_CASE("models: the built-in list", "[fetch]") {
    const Env none("EASEL_MODELS_TXT", std::nullopt);
    const auto models = known_models();
    const ModelEntry* recommended = find_entry(models, "q4_k_m");
    REQUIRE(recommended);
    CHECK(recommended->bytes == 16806810336);
    for (const ModelEntry& m : models) {
        INFO(m.name);
        CHECK(m.url.ends_with(".gguf"));
        CHECK(m.bytes > 0);
    }
    const TempDir dir;
    const Env list("EASEL_MODELS_TXT", dir.write("list", "one 1 - " + kUrl));
    CHECK(known_models().size() == 1);
    CHECK(known_models(dir.write("two", "a 1 - " + kUrl + "\nb 1 - " + kUrl)).size() == 2);
    CHECK(known_models(dir.write("marked", "\ufeffa 1 - " + kUrl)).at(0).name == "a");
    check_has(error_of([&] { known_models(dir / "none"); }),
              {"the list of models: ", "/none: cannot be opened: No such file"});
    check_has(error_of([&] { known_models(dir.path()); }), {"cannot be read: Is a directory"});
}

TEST_CASE("models: names that are nearly right", "[fetch]") {
    const auto models = parse_models(
        "q4_k_m - - http://x\nq5_k_m - - http://x\nq6_k - - http://x\n"
        "q8_0 - - http://x\nbf16 - - http://x\n",
        "list");
    CHECK(name_hint(models, "q4km") == "; the nearest names are q4_k_m and q5_k_m");
    CHECK(name_hint(models, "Q8_0") == "; the nearest names are q8_0 and q6_k");
    CHECK(name_hint(models, "bf32") == "; the nearest name is bf16");
    CHECK(name_hint(models, "q5_k") == "; the nearest names are q6_k, q5_k_m and q8_0");
    CHECK(name_hint(models, "banana-split") == "; `easel fetch` lists the names");
    CHECK(name_hint(models, std::string(100000, 'q')) == "; `easel fetch` lists the names");
    CHECK(name_hint({}, "x") == "; `easel fetch` lists the names");
}

TEST_CASE("models: the folder", "[fetch]") {
    const Env home("HOME", "/home/anna");
    const Env models("EASEL_MODELS", std::nullopt);
    const Env cache("XDG_CACHE_HOME", std::nullopt);
    CHECK(models_folder() == "/home/anna/.cache/easel");
    CHECK(model_path({.name = "q8_0"}) == "/home/anna/.cache/easel/q8_0.gguf");
    {
        const Env relative("XDG_CACHE_HOME", "cache");  // is to be ignored
        CHECK(models_folder() == "/home/anna/.cache/easel");
        const Env absolute("XDG_CACHE_HOME", "/cache");
        CHECK(models_folder() == "/cache/easel");
        const Env own("EASEL_MODELS", "own");
        CHECK(models_folder() == "own");
        const Env empty("EASEL_MODELS", "");
        CHECK(models_folder() == "/cache/easel");
    }
    const Env homeless("HOME", std::nullopt);
    check_has(error_of([] { models_folder(); }), {"there is no folder for models: set EASEL_MODELS"});
}

TEST_CASE("models: what -m means", "[fetch]") {
    const TempDir dir;
    const Env list("EASEL_MODELS_TXT",
                   dir.write("list", "one 2132192 - " + kUrl + "\ntwo - - " + kUrl + "\ntests 1 - " + kUrl));
    const Env models("EASEL_MODELS", dir.path());
    CHECK(error_of([] { find_model("one"); }) ==
          "model one is not downloaded yet: easel fetch one (2.13 MB)");
    CHECK(error_of([] { find_model("two"); }) == "model two is not downloaded yet: easel fetch two");
    dir.write("one.gguf.part", "x");
    check_has(error_of([] { find_model("one"); }), {"not downloaded yet"});
    dir.write("one.gguf", "x");
    CHECK(find_model("one") == dir / "one.gguf");
    CHECK(find_model("tests") == "tests");  // a path that exists
    CHECK(find_model("absent.gguf") == "absent.gguf");
    CHECK(find_model("./one") == "./one");
    check_has(error_of([] { find_model("won"); }),
              {"won: cannot open the model file: No such file", "no model has that name"});
    check_has(error_of([] { open_model("absent.gguf"); }), {"absent.gguf: cannot open the model file"});
    CHECK(open_model("")->name() == "demo model");
    CHECK(open_model("src/demo.gguf")->name() == "src/demo.gguf");
}

TEST_CASE("models: bytes as people read them", "[fetch]") {
    CHECK(human_bytes(0) == "0 B");
    CHECK(human_bytes(999) == "999 B");
    CHECK(human_bytes(999994) == "999.99 kB");
    CHECK(human_bytes(999999) == "1.00 MB");
    CHECK(human_bytes(2132192) == "2.13 MB");
    CHECK(human_bytes(16806810336) == "16.81 GB");
}
