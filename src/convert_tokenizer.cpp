// convert_tokenizer.cpp: tokenizer.json and the chat template of a Hugging Face folder as tokenizer.* keys
// (SPEC 4.2, 5.2). Called by convert_hf.cpp.
#include <algorithm>
#include <array>
#include <filesystem>
#include <map>

#include "check.h"
#include "convert_source.h"
#include "tokenizer.h"

namespace easel {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Marked special in tokenizer.json, yet part of the text that a model writes (SPEC 5.2).
constexpr std::array<std::string_view, 7> kVisible{"<|channel>",   "<channel|>",       "<|tool_call>",
                                                   "<tool_call|>", "<|tool_response>", "<tool_response|>",
                                                   "<|\"|>"};
// Every reader counts these among the ids that end an answer (SPEC section 3).
constexpr std::array<std::string_view, 2> kKnownEnds{"<turn|>", "<|tool_response>"};

constexpr float kControlScore = -1000.0f;  // as the published files have it; nothing reads it

struct Vocab {
    std::vector<std::string> tokens, merges;
    std::vector<int32_t> types;
    std::map<std::string, int64_t, std::less<>> ids;
};

bool is_byte_token(std::string_view t) {
    const auto is_hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F'); };
    return t.size() == 6 && t.starts_with("<0x") && t[5] == '>' && is_hex(t[3]) && is_hex(t[4]);
}

int32_t code(TokenType type) {
    return static_cast<int32_t>(type);
}

void place(const std::string& path, const std::string& token, const json& id, TokenType type, Vocab& v) {
    const int64_t n_vocab = static_cast<int64_t>(v.tokens.size());
    require(id.is_number_integer() && id >= 0 && id < n_vocab,
            "{}: token {} has id {}, expected 0 to {} (vocab_size - 1)", path, token, id.dump(), n_vocab - 1);
    const int64_t i = id.get<int64_t>();
    require(v.types[i] == code(TokenType::Unused) || v.tokens[i] == token, "{}: id {} is both {} and {}",
            path, i, v.tokens[i], token);
    const auto [it, is_new] = v.ids.emplace(token, i);
    require(is_new || it->second == i, "{}: token {} has the ids {} and {}", path, token, it->second, i);
    v.tokens[i] = token;
    v.types[i] = code(type);
}

// "A B" for both forms in use: ["A", "B"] and "A B". A reader splits at the first space past the first
// character.
std::string merge_text(const std::string& path, const json& merge) {
    if (merge.is_string()) return merge.get<std::string>();
    require(merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string(),
            "{}: a merge is {}, expected a pair of tokens", path, merge.dump());
    const std::string left = merge[0].get<std::string>(), right = merge[1].get<std::string>();
    require(left.find(' ', 1) == std::string::npos && !left.empty() && !right.empty(),
            "{}: the merge {} cannot be written: its first token is empty or has a space", path,
            merge.dump());
    return left + " " + right;
}

// The GGUF kind "gemma4" is BPE over characters, spaces written as U+2581, unknown characters as bytes.
void require_gemma(const std::string& path, const json& tokenizer) {
    const json model = tokenizer.value("model", json::object());
    require(model.is_object() && model.value("type", "BPE") == "BPE" && model.contains("vocab") &&
                model["vocab"].is_object() && model.contains("merges") && model["merges"].is_array(),
            "{}: expected a model of type BPE with vocab and merges", path);
    json normalizer = tokenizer.value("normalizer", json());
    if (normalizer.is_object() && normalizer.contains("normalizers") && normalizer["normalizers"].size() == 1)
        normalizer = json(normalizer["normalizers"][0]);
    const json expected{{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\u2581"}};
    require(normalizer == expected, "{}: normalizer is {}, easel supports only {}", path, normalizer.dump(),
            expected.dump());
}

Vocab read_vocab(const std::string& path, const json& tokenizer, int64_t n_vocab) {
    const json& model = tokenizer["model"];
    Vocab v;
    v.tokens.resize(n_vocab);
    v.types.assign(n_vocab, code(TokenType::Unused));
    for (const auto& [token, id] : model["vocab"].items())
        place(path, token, id, is_byte_token(token) ? TokenType::Byte : TokenType::Normal, v);
    const json unknown = model.value("unk_token", json());
    for (const json& added : tokenizer.value("added_tokens", json::array())) {
        require(added.is_object() && added.contains("id") && added.value("content", json()).is_string(),
                "{}: an entry of added_tokens lacks id or content", path);
        const std::string token = added["content"].get<std::string>();
        const bool visible = std::find(kVisible.begin(), kVisible.end(), token) != kVisible.end();
        const bool special = added.value("special", json(false)) == true;
        place(path, token, added["id"], special && !visible ? TokenType::Control : TokenType::UserDefined, v);
    }
    if (unknown.is_string() && v.ids.contains(unknown.get<std::string>()))
        v.types[v.ids.find(unknown.get<std::string>())->second] = code(TokenType::Unknown);
    // An embedding may have more rows than the tokenizer has tokens; each row needs a text of its own.
    for (int64_t i = 0; i < n_vocab; i++)
        if (v.types[i] == code(TokenType::Unused)) v.tokens[i] = fmt::format("[PAD{}]", i);
    for (const json& merge : model["merges"]) v.merges.push_back(merge_text(path, merge));
    return v;
}

// chat_template.jinja, or chat_template in tokenizer_config.json: a text, or a list of {name, template}.
std::string read_chat_template(const fs::path& dir) {
    const fs::path jinja = dir / "chat_template.jinja";
    if (is_there(jinja)) return read_text(jinja, "Jinja");
    for (const char* file : {"tokenizer_config.json", "chat_template.json"}) {
        if (!is_there(dir / file)) continue;
        const json config = read_json(dir / file);
        const json text = config.is_object() ? config.value("chat_template", json()) : json();
        if (text.is_string()) return text.get<std::string>();
        for (const json& item : text.is_array() ? text : json::array())
            if (item.is_object() && item.value("name", json()) == "default" &&
                item.value("template", json()).is_string())
                return item["template"].get<std::string>();
    }
    return "";
}

// Of several end ids, the first is eos; another that readers would not find by its text becomes eot.
void add_ends(const Vocab& v, const SpecialIds& ids, Source& out) {
    if (ids.eos.empty()) return;
    out.keys.emplace_back("tokenizer.ggml.eos_token_id", static_cast<uint32_t>(ids.eos[0]));
    std::vector<int64_t> others;
    for (size_t i = 1; i < ids.eos.size(); i++)
        if (std::find(kKnownEnds.begin(), kKnownEnds.end(), v.tokens[ids.eos[i]]) == kKnownEnds.end())
            others.push_back(ids.eos[i]);
    if (!others.empty())
        out.keys.emplace_back("tokenizer.ggml.eot_token_id", static_cast<uint32_t>(others[0]));
    if (others.size() > 1)
        out.notes.push_back(fmt::format("warning: the end-of-generation ids {} have no GGUF key",
                                        fmt::join(others.begin() + 1, others.end(), ", ")));
}

}  // namespace

void add_tokenizer(const std::string& folder, int64_t n_vocab, const SpecialIds& ids, Source& out) {
    const fs::path dir(folder);
    const std::string path = dir / "tokenizer.json";
    Vocab v;
    {
        const json tokenizer = read_json(path);
        require(tokenizer.is_object(), "{}: expected an object", path);
        try {
            require_gemma(path, tokenizer);
            v = read_vocab(path, tokenizer, n_vocab);
        } catch (const json::exception& e) {
            fail("{}: {}", path, e.what());
        }
    }
    for (const int64_t id : ids.eos)
        require(id < n_vocab, "{}: eos_token_id is {}, expected less than vocab_size = {}", folder, id,
                n_vocab);
    for (const int64_t id : {ids.bos, ids.pad})
        require(id < n_vocab, "{}: a special token has id {}, expected less than vocab_size = {}", folder, id,
                n_vocab);
    std::vector<float> scores(n_vocab, 0.0f);
    int64_t n_unused = 0;
    for (int64_t i = 0; i < n_vocab; i++) {
        if (v.types[i] == code(TokenType::Control) || v.types[i] == code(TokenType::Unknown))
            scores[i] = kControlScore;
        n_unused += v.types[i] == code(TokenType::Unused);
    }
    if (n_unused)
        out.notes.push_back(fmt::format("{} of {} ids have no token in tokenizer.json", n_unused, n_vocab));

    const auto add = [&](const char* key, KeyValue value) {
        out.keys.emplace_back(std::string("tokenizer.ggml.") + key, std::move(value));
    };
    const auto add_id = [&](const char* key, int64_t id) {
        if (id >= 0) add(key, static_cast<uint32_t>(id));
    };
    const auto find = [&](std::string_view token) {
        const auto it = v.ids.find(token);
        return it == v.ids.end() ? -1 : it->second;
    };
    add("model", "gemma4");
    add_id("bos_token_id", ids.bos >= 0 ? ids.bos : find("<bos>"));
    if (ids.eos.empty()) add_id("eos_token_id", find("<eos>"));
    add_ends(v, ids, out);
    const auto unknown = std::find(v.types.begin(), v.types.end(), code(TokenType::Unknown));
    if (unknown != v.types.end()) add_id("unknown_token_id", unknown - v.types.begin());
    add_id("padding_token_id", ids.pad >= 0 ? ids.pad : find("<pad>"));
    add_id("mask_token_id", find("<mask>"));
    add("add_bos_token", true);
    add("add_space_prefix", false);
    add("tokens", std::move(v.tokens));
    add("scores", std::move(scores));
    add("token_type", std::move(v.types));
    add("merges", std::move(v.merges));
    std::string chat_template = read_chat_template(dir);
    if (chat_template.empty())
        out.notes.push_back(folder + ": no chat template");
    else
        out.keys.emplace_back("tokenizer.chat_template", std::move(chat_template));
}

}  // namespace easel
