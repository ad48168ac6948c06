// pipe_line.cpp: a request out of a line of `easel pipe`. All keys stand in one table, which also makes the
// text of --schema. Called by pipe.cpp.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>

#include "check.h"
#include "json_depth.h"
#include "pipe.h"
#include "sampler_settings.h"
#include "text.h"

namespace easel {

using Json = nlohmann::json;

static std::string brief(const std::string& text) {
    return text.size() <= 60 ? text : text.substr(0, 60) + "...";
}

std::string shown(const Json& v) {
    if (v.is_string()) return "\"" + brief(v.get_ref<const std::string&>()) + "\"";
    return v.is_array() ? "an array" : v.is_object() ? "an object" : v.dump();
}

namespace {

int read_int(const Json& v, const std::string& key, int low, int high) {
    const bool fits = v.is_number_integer() && (!v.is_number_unsigned() || v.get<uint64_t>() <= INT32_MAX);
    require(fits && v.get<int64_t>() >= low && v.get<int64_t>() <= high,
            "key {} is {}, expected an integer from {} to {}", key, shown(v), low, high);
    return v.get<int>();
}

// Ranges of sampler settings are check_sampler()'s; here only what a type cannot hold.
void read_value(const Json& v, const char* key, int& out) {
    out = read_int(v, key, INT32_MIN, INT32_MAX);
}
void read_value(const Json& v, const char* key, float& out) {
    require(v.is_number(), "key {} is {}, expected a number", key, shown(v));
    out = static_cast<float>(v.get<double>());
    require(std::isfinite(out), "key {} is {}, expected a number that a 32-bit float can hold", key,
            shown(v));
}
void read_value(const Json& v, const char* key, bool& out) {
    require(v.is_boolean(), "key {} is {}, expected true or false", key, shown(v));
    out = v.get<bool>();
}

const std::string& read_text(const Json& v, const std::string& key) {
    require(v.is_string(), "key {} is {}, expected a string", key, shown(v));
    return v.get_ref<const std::string&>();
}

Json read_id(const Json& v, const char* key) {
    require(v.is_string() || v.is_number_integer(),
            "key {} is {}, expected a string or an integer of 64 bits", key, shown(v));
    return v;
}

Message read_message(const Json& v, const std::string& where, PipeItem& item) {
    require(v.is_object(), "{} is {}, expected an object with role and content", where, shown(v));
    for (const char* key : {"role", "content"})
        require(v.contains(key), "{} has no {}, expected role and content", where, key);
    const std::optional<Role> role = role_by_name(read_text(v["role"], where + ".role"));
    require(role.has_value(), "{}.role is {}, expected system, user or assistant", where, shown(v["role"]));
    for (const auto& [key, unused] : v.items())
        if (key != "role" && key != "content")
            item.warnings.push_back(fmt::format("unknown key {}.{} is ignored", where, brief(key)));
    return {*role, read_text(v["content"], where + ".content")};
}

void read_messages(const Json& v, PipeItem& item) {
    require(v.is_array() && !v.empty(), "key messages is {}, expected a list of messages",
            v.is_array() ? "an empty list" : shown(v));
    for (const Json& message : v)
        item.request.messages.push_back(
            read_message(message, fmt::format("messages[{}]", item.request.messages.size()), item));
}

void read_ids(const Json& v, PipeItem& item) {
    require(v.is_array() && !v.empty(), "key prompt_ids is {}, expected a list of token ids",
            v.is_array() ? "an empty list" : shown(v));
    for (const Json& id : v) item.request.prompt_ids.push_back(read_int(id, "prompt_ids", 0, INT32_MAX));
}

void read_stop(const Json& v, PipeItem& item) {
    require(v.is_string() || v.is_array(), "key stop is {}, expected a string or a list of strings",
            shown(v));
    const auto add = [&](const Json& text) {
        require(!read_text(text, "stop").empty(), "key stop has an empty string, expected some text");
        item.request.stop.push_back(text);
    };
    if (v.is_string()) return add(v);
    for (const Json& text : v) add(text);
}

constexpr size_t kWarnings = 8;  // of a line; the others are counted

struct Key {
    const char *name, *type, *text;
    std::function<void(const Json& v, PipeItem& item)> read;  // null: parse_line() does it
};

void read_choices(const Json& v, PipeItem& item) {
    require(v.is_object(), "key choices is {}, expected an object with a list of texts for each hole",
            shown(v));
    for (const auto& [name, texts] : v.items()) {
        int hole = 0;
        const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), hole);
        require(error == std::errc() && end == name.data() + name.size(),
                "choices has the key {}, expected the number of a hole", brief(name));
        require(texts.is_array(), "choices of hole {} are {}, expected a list of texts", hole, shown(texts));
        const auto [choice, is_new] = item.request.choices.try_emplace(hole);  // an empty list is refused too
        require(is_new, "choices of hole {} appear twice", hole);
        for (const Json& text : texts) choice->second.push_back(read_text(text, "choices"));
    }
}

const Key kOwnKeys[] = {
    {"id", "string, integer", "identifies the request in all lines about it; default: the line number",
     nullptr},
    {"cancel", "string, integer", "cancels the waiting or running request of this id; on a line of its own",
     nullptr},
    {"prompt", "string", "one user turn; a request has exactly one of prompt, messages and prompt_ids",
     [](const Json& v, PipeItem& item) {
         item.request.messages.push_back({Role::User, read_text(v, "prompt")});
     }},
    {"messages", "list",
     "turns {\"role\": \"system|user|assistant\", \"content\": \"...\"}; the last is the user's",
     read_messages},
    {"prompt_ids", "list of integers", "the prompt as token ids; no chat template", read_ids},
    {"system", "string", "system prompt for prompt or messages", nullptr},
    {"think", "boolean", "let the model think first; default: false",
     [](const Json& v, PipeItem& item) { read_value(v, "think", item.request.think); }},
    {"max_tokens", "integer", "maximum answer tokens; default: 2048, or what fits",
     [](const Json& v, PipeItem& item) { item.request.n_token = read_int(v, "max_tokens", 1, 1 << 30); }},
    {"seed", "integer", "random seed, 64 bits; default: 0",
     [](const Json& v, PipeItem& item) {
         require(v.is_number_unsigned(), "key seed is {}, expected an integer from 0 to {}", shown(v),
                 UINT64_MAX);
         item.request.seed = v.get<uint64_t>();
     }},
    {"stop", "string, list", "the answer's text ends before the first of these texts; ids are not cut",
     read_stop},
    {"canvas", "string",
     "answer with holes to fill: [[8]] 8 tokens, [[A|B]] one of these texts, [[*]] the rest",
     [](const Json& v, PipeItem& item) { item.request.canvas = read_text(v, "canvas"); }},
    {"choices", "object", "choices by hole number, from 1: {\"2\": [\"A\", \"B\"]}", read_choices},
    {"retry_empty", "integer", "new seeds to try on an empty answer; default: 0",
     [](const Json& v, PipeItem& item) { item.request.n_retry = read_int(v, "retry_empty", 0, 1000); }},
    {"best_of", "integer", "answers to make; the most probable is kept; default: 1",
     [](const Json& v, PipeItem& item) { item.request.n_best = read_int(v, "best_of", 1, 1000); }},
    {"log_probs", "boolean", "add log_probs and entropies of the ids to the answer; default: false",
     [](const Json& v, PipeItem& item) { read_value(v, "log_probs", item.log_probs); }},
    {"ignore_eos", "boolean", "continue past end-of-generation tokens; default: false",
     [](const Json& v, PipeItem& item) { read_value(v, "ignore_eos", item.request.ignore_eos); }},
    {"frames", "boolean", "write a frame line per denoise step; default: false",
     [](const Json& v, PipeItem& item) { read_value(v, "frames", item.frames); }},
};

// And the sampler's settings; their flags have the same names.
const std::vector<Key> kKeys = [] {
    std::vector<Key> keys(std::begin(kOwnKeys), std::end(kOwnKeys));
    constexpr const char* types[] = {"integer", "number", "boolean"};  // as the member's alternatives
    for (const SamplerSetting& setting : kSamplerSettings)
        keys.push_back({setting.name, types[setting.member.index()], setting.text,
                        [&setting](const Json& v, PipeItem& item) {
                            SamplerConfig& s = *item.request.sampler;
                            std::visit([&](auto member) { read_value(v, setting.name, s.*member); },
                                       setting.member);
                        }});
    return keys;
}();

std::string unknown_key(const std::string& name) {
    std::vector<std::string> names;
    for (const Key& key : kKeys) names.push_back(key.name);
    // A part of a name, "tokens" for max_tokens, or a slip of the pen.
    const auto whole = std::find_if(names.begin(), names.end(), [&](const std::string& key) {
        return name.size() > 3 && key.ends_with("_" + name);
    });
    const std::string meant = whole != names.end() ? *whole : nearest_name(name, names);
    return fmt::format("unknown key {} is ignored{}", brief(name),
                       meant.empty() ? "" : fmt::format(", did you mean {}?", meant));
}

void parse_line(std::string_view text, PipeItem& item) {
    // JSON itself would let a key that comes again replace the one before.
    const std::optional<std::string> twice = check_json(text, "the line", SIZE_MAX);
    const Json object = Json::parse(text);
    require(object.is_object(), "the line is {}, expected a JSON object", shown(object));
    if (twice != "id") item.id = object.contains("id") ? read_id(object["id"], "id") : Json(item.line);
    require(!twice, "key {} appears twice", brief(twice.value_or("")));
    const bool is_cancel = object.contains("cancel");
    for (const auto& [name, value] : object.items()) {
        const auto known = [&name = name](const Key& key) { return name == key.name; };
        const auto key = std::find_if(kKeys.begin(), kKeys.end(), known);
        if (key == kKeys.end())  // those past kWarnings are only counted
            item.warnings.push_back(item.warnings.size() < kWarnings ? unknown_key(name) : "");
        else if (is_cancel && name != "cancel")
            item.warnings.push_back(fmt::format("key {} is ignored beside cancel", name));
        else if (key->read)
            key->read(value, item);
    }
    if (is_cancel) {
        item.cancel = read_id(object["cancel"], "cancel");
        return;
    }

    int n_prompt = 0;
    for (const char* key : {"prompt", "messages", "prompt_ids"}) n_prompt += object.contains(key);
    require(n_prompt == 1, "the line has {} prompts, expected exactly one of prompt, messages and prompt_ids",
            n_prompt);
    std::vector<Message>& messages = item.request.messages;
    if (object.contains("system")) {
        const std::string system = read_text(object["system"], "system");
        require(!object.contains("prompt_ids"), "key system cannot be combined with prompt_ids");
        require(messages[0].role != Role::System,
                "key system and a system message are both given, expected one");
        if (!system.empty())
            messages.insert(messages.begin(), {Role::System, system});  // "": none, as with -s
    }
    require(!item.request.think || !messages.empty(), "key think cannot be combined with prompt_ids");
    check_sampler(*item.request.sampler);
}

// The parser's own words, without the library's name for them.
std::string parse_error(const std::string& what) {
    const size_t at = what.find("] ");
    std::string text = what.substr(at == what.npos ? 0 : at + 2);
    std::replace(text.begin(), text.end(), '\n', ' ');
    return text.size() <= 200 ? text : text.substr(0, 200) + "...";
}

}  // namespace

std::unique_ptr<PipeItem> parse_pipe_line(std::string_view text, int64_t line,
                                          const SamplerConfig& defaults) {
    auto item = std::make_unique<PipeItem>();
    item->line = line;
    item->n_bytes = text.size();
    item->read_at = std::chrono::steady_clock::now();
    item->request.sampler = defaults;
    try {
        require_utf8(text, "the line");
        parse_line(text, *item);
    } catch (const Json::exception& e) {
        item->error = "the line is not valid JSON: " + parse_error(e.what());
    } catch (const Error& e) {
        item->error = e.what();
    }
    if (const size_t n = item->warnings.size(); n > kWarnings) {
        item->warnings.resize(kWarnings);
        item->warnings.push_back(fmt::format("{} more keys are ignored", n - kWarnings));
    }
    return item;
}

std::string pipe_schema() {
    std::string out =
        "easel pipe: JSON lines on stdin, an object of at most 16 MB on each; JSON lines on stdout.\n\n"
        "In: a request, or {\"cancel\": ID}. Sampler settings default to those of the flags, else of the "
        "model.\n";
    for (const Key& key : kKeys) out += fmt::format("  {:<22} {:<17} {}\n", key.name, key.type, key.text);
    out +=
        "\n"
        "Out: lines with a \"type\", in input order (with --unordered, in the order in which they are "
        "answered).\n"
        "  done     id, text, thought, ids, finish_reason (stop, length or cancelled), usage "
        "{prompt_tokens,\n"
        "           reused_tokens, answer_tokens}, canvases, steps, timings_ms {wait, encode, denoise, "
        "commit},\n"
        "           mean_log_prob, seed, tries, hash (of the ids: equal answers have equal hashes), line;\n"
        "           stop, if a text of the request's stop ended the answer: that text; with canvas: holes, "
        "a\n"
        "           list of {text, confidence}; with log_probs: log_probs and entropies of the ids, in nats\n"
        "  frame    id, canvas and step (from 0), text (the best guess at the answer), accepted (a number "
        "of\n"
        "           positions), mean_entropy (nats); with best_of or retry_empty, of every answer in turn\n"
        "  error    id (null if the line has no readable one), line, message; the lines after it are "
        "answered\n"
        "  warning  id, line, message: an ignored key, a cancel of an unknown id (id is null), a prompt of\n"
        "           which much had to be encoded again, or a GPU that does not run an answer as one graph\n"
        "\n"
        "At most --queue lines wait (64 MB of them); then stdin is not read, nor are the cancels in it.\n"
        "Exit code: 0 at the end of stdin or if nobody reads stdout; 1 if stdin cannot be read, stdout "
        "cannot\n"
        "be written, or a GPU is lost; 130 after Ctrl-C, 143 after SIGTERM. After these two, all requests\n"
        "that were read and not answered are reported as cancelled; if stdout accepts nothing for a second,\n"
        "their ids go to stderr instead.\n";
    return out;
}

}  // namespace easel
