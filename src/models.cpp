// models.cpp: the list of models, the folder of their files, and what -m means. Called by fetch.cpp and
// wherever a model is opened (engine.cpp, commands.cpp, bench.cpp).
#include "models.h"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <utility>

#include "check.h"
#include "model.h"
#include "text.h"
#include "whole_file.h"

// The list's text, linked in as it is; global labels as in demo.cpp.
asm(".section .rodata\n"
    ".globl easel_models_begin, easel_models_end\n"
    "easel_models_begin: .incbin \"models.txt\"\n"
    "easel_models_end:\n"
    ".previous\n");

extern "C" const char easel_models_begin[], easel_models_end[];

namespace easel {

namespace {

// An environment variable; empty is as good as not set.
std::string env(const char* name) {
    const char* value = std::getenv(name);
    return value ? value : "";
}

// The next word of `line`, which it is cut from.
std::string_view take_word(std::string_view& line) {
    line.remove_prefix(std::min(line.find_first_not_of(" \t\r"), line.size()));
    const std::string_view word = line.substr(0, line.find_first_of(" \t\r"));
    line.remove_prefix(word.size());
    return word;
}

// A name becomes a file's name: no folders, no hidden files, nothing that looks like a flag.
bool is_name(std::string_view s) {
    constexpr std::string_view letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    return !s.empty() && s.size() <= 100 && s[0] != '.' && s[0] != '-' &&
           s.find_first_not_of(letters) == s.npos;
}

ModelEntry parse_line(std::string_view line, const std::string& where) {
    ModelEntry m;
    m.name = take_word(line);
    require(is_name(m.name), "{}: the name is \"{}\", expected letters, digits, '.', '_' and '-'", where,
            shown(m.name));
    const std::string_view bytes = take_word(line);
    if (bytes != "-") {
        const auto [end, error] = std::from_chars(bytes.data(), bytes.data() + bytes.size(), m.bytes);
        require(error == std::errc() && end == bytes.data() + bytes.size() && m.bytes >= 0,
                "{}: the size is \"{}\", expected a number of bytes, or -", where, shown(bytes));
    }
    m.sha256 = take_word(line);
    std::transform(m.sha256.begin(), m.sha256.end(), m.sha256.begin(),
                   [](unsigned char c) { return std::tolower(c); });
    if (m.sha256 == "-")
        m.sha256.clear();
    else
        require(m.sha256.size() == 64 && m.sha256.find_first_not_of("0123456789abcdef") == m.sha256.npos,
                "{}: the sha256 is \"{}\", expected 64 hexadecimal digits, or -", where, shown(m.sha256));
    m.url = take_word(line);
    require(m.url.starts_with("https://") || m.url.starts_with("http://"),
            "{}: the url is \"{}\", expected http:// or https://", where, shown(m.url));
    m.note = shown(trim(line));
    return m;
}

}  // namespace

std::vector<ModelEntry> parse_models(std::string_view text, const std::string& list) {
    std::vector<ModelEntry> models;
    for (int n = 1; !text.empty(); n++) {
        const std::string_view line = text.substr(0, text.find('\n'));
        text.remove_prefix(std::min(line.size() + 1, text.size()));
        const size_t first = line.find_first_not_of(" \t\r");
        if (first == line.npos || line[first] == '#') continue;
        const std::string where = fmt::format("{} line {}", list, n);
        ModelEntry m = parse_line(line, where);
        require(!find_entry(models, m.name), "{}: the name {} appears twice", where, m.name);
        models.push_back(std::move(m));
    }
    return models;
}

std::vector<ModelEntry> known_models(const std::string& list) {
    const std::string path = list.empty() ? env("EASEL_MODELS_TXT") : list;
    if (path.empty()) return parse_models({easel_models_begin, easel_models_end}, "models.txt");
    std::string text;
    try {
        text = read_file(path);
    } catch (const Error& e) {
        fail("the list of models: {}", e.what());
    }
    return parse_models(without_mark(text), path);
}

std::string models_folder() {
    if (const std::string folder = env("EASEL_MODELS"); !folder.empty()) return folder;
    // A relative one is to be ignored (XDG base directories).
    if (const std::string cache = env("XDG_CACHE_HOME"); cache.starts_with('/')) return cache + "/easel";
    const std::string home = env("HOME");
    require(!home.empty(), "there is no folder for models: set EASEL_MODELS to one (HOME is not set either)");
    return home + "/.cache/easel";
}

std::string model_path(const ModelEntry& entry) {
    return models_folder() + "/" + entry.name + ".gguf";
}

const ModelEntry* find_entry(const std::vector<ModelEntry>& models, std::string_view name) {
    const auto m =
        std::find_if(models.begin(), models.end(), [&](const ModelEntry& e) { return e.name == name; });
    return m == models.end() ? nullptr : &*m;
}

std::string name_hint(const std::vector<ModelEntry>& models, std::string_view name) {
    constexpr size_t kShown = 3;
    std::vector<std::pair<int, std::string>> near;
    for (const ModelEntry& m : models) {
        const int distance = edit_distance(name.substr(0, 200), m.name);
        // A name that differs in more than half of its letters is no slip.
        if (distance <= static_cast<int>(m.name.size() / 2)) near.emplace_back(distance, m.name);
    }
    if (near.empty()) return "; `easel fetch` lists the names";
    std::stable_sort(near.begin(), near.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    std::vector<std::string> names;
    for (size_t i = 0; i < std::min(near.size(), kShown); i++) names.push_back(near[i].second);
    if (names.size() == 1) return "; the nearest name is " + names[0];
    const std::string last = names.back();
    names.pop_back();
    return fmt::format("; the nearest names are {} and {}", fmt::join(names, ", "), last);
}

std::string find_model(const std::string& model) {
    // What is written like a path is one; its Error comes from opening it.
    const bool is_path = model.find('/') != model.npos || model.ends_with(".gguf");
    if (is_path || access(model.c_str(), F_OK) == 0 || errno != ENOENT) return model;
    // A list of `fetch --list` has names that known_models() does not have.
    const std::string path = is_name(model) ? model_path({.name = model}) : "";
    if (access(path.c_str(), F_OK) == 0) return path;
    const std::vector<ModelEntry> models = known_models();
    const ModelEntry* entry = find_entry(models, model);
    require(entry, "{}: cannot open the model file: No such file, and no model has that name{}", shown(model),
            name_hint(models, model));
    fail("model {} is not downloaded yet: easel fetch {}{}", model, model,
         entry->bytes ? " (" + human_bytes(entry->bytes) + ")" : "");
}

std::shared_ptr<const Gguf> open_model(const std::string& model) {
    return std::make_shared<const Gguf>(model.empty() ? Gguf::from_memory(demo_model(), "demo model")
                                                      : Gguf::open(find_model(model)));
}

}  // namespace easel
