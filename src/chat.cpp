// chat.cpp: chat turns to token ids as the model's template writes them, and a model's ids to thought and
// answer (SPEC 5.3). Used by the engine.
#include "chat.h"

#include <algorithm>

#include "check.h"
#include "text.h"

namespace easel {

namespace {

constexpr std::string_view kOpen = "<|channel>", kClose = "<channel|>";
constexpr std::string_view kThought = "thought";  // the only channel's name, on the first line inside

// A model's earlier answer without its thoughts: what stands between <|channel> and <channel|>, or the text's
// end, is removed, and so is a <channel|> alone.
std::string without_thoughts(std::string_view text) {
    std::string out;
    while (!text.empty()) {
        const size_t close = std::min(text.find(kClose), text.size());
        const std::string_view part = text.substr(0, close);
        out += part.substr(0, part.find(kOpen));
        text.remove_prefix(std::min(close + kClose.size(), text.size()));
    }
    return std::string(strip(out));
}

// Whether the template ends its prompt with an empty thought channel when it is not to think. Published files
// do; newer templates of the family leave it out (SPEC 7.7), and then the model was not trained to see it.
bool template_closes_thought(std::string_view chat_template) {
    if (chat_template.empty()) return true;
    const size_t prompt = chat_template.rfind("add_generation_prompt");
    if (prompt != chat_template.npos) chat_template.remove_prefix(prompt);
    for (std::string_view newline : {"\\n", "\n"}) {
        const size_t at = chat_template.find(fmt::format("{}{}{}", kOpen, kThought, newline));
        if (at != chat_template.npos && chat_template.find(kClose, at) != chat_template.npos) return true;
    }
    return false;
}

// Writes a prompt: control tokens by id, all other text as nothing but text.
struct Prompt {
    const Tokenizer& tokenizer;
    std::vector<int32_t> ids;

    void control(std::string_view token) {
        const std::optional<int32_t> id = tokenizer.find(token);
        require(id.has_value(), "this model cannot chat: its vocabulary lacks the token {}", token);
        ids.push_back(*id);
    }
    void text(std::string_view text) {
        for (const int32_t id : tokenizer.encode(text, Specials::None)) ids.push_back(id);
    }
    void end_turn() {
        control("<turn|>");
        text("\n");
    }
};

void check_order(std::span<const Message> messages) {
    require(!messages.empty(), "no chat messages, expected at least one");
    for (size_t i = 1; i < messages.size(); i++)
        require(messages[i].role != Role::System,
                "chat message {} is a system message, expected it to be the first", i + 1);
    require(messages.back().role != Role::Model, "the last chat message is the model's, expected the user's");
}

}  // namespace

const char* role_name(Role role) {
    return role == Role::System ? "system" : role == Role::User ? "user" : "assistant";
}

std::optional<Role> role_by_name(std::string_view name) {
    for (const Role role : {Role::System, Role::User, Role::Model})
        if (name == role_name(role)) return role;
    return {};
}

std::vector<int32_t> render_chat(const Tokenizer& tokenizer, std::string_view chat_template,
                                 std::span<const Message> messages, const ChatOptions& options) {
    check_order(messages);  // so the last message is the user's
    require(!options.think || tokenizer.find("<|think|>"),
            "this model cannot think: its vocabulary lacks the token <|think|>");
    Prompt prompt{tokenizer, {}};
    if (tokenizer.bos >= 0) prompt.ids.push_back(tokenizer.bos);

    const bool has_system = messages[0].role == Role::System;
    if (options.think || has_system) {
        const std::string_view system = has_system ? strip(messages[0].content) : std::string_view();
        prompt.control("<|turn>");
        if (options.think) {
            prompt.text("system\n");
            prompt.control("<|think|>");
            prompt.text(fmt::format("\n{}", system));
        } else {
            prompt.text(fmt::format("system\n{}", system));
        }
        prompt.end_turn();
    }
    for (size_t i = has_system; i < messages.size(); i++) {
        std::string turn;
        if (messages[i].role == Role::User) {
            turn = fmt::format("user\n{}", strip(messages[i].content));
        } else {  // the model's messages one after the other are one turn
            turn = "model\n" + without_thoughts(messages[i].content);
            while (messages[i + 1].role == Role::Model) turn += without_thoughts(messages[++i].content);
        }
        prompt.control("<|turn>");
        prompt.text(turn);
        prompt.end_turn();
    }
    prompt.control("<|turn>");
    prompt.text("model\n");
    if (!options.think && template_closes_thought(chat_template) && tokenizer.find(kOpen) &&
        tokenizer.find(kClose)) {
        prompt.control(kOpen);
        prompt.text(fmt::format("{}\n", kThought));
        prompt.control(kClose);
    }
    return std::move(prompt.ids);
}

namespace {

// Appends to `thought`; of several, each begins on a line of its own.
void add_thought(std::string& thought, std::string_view more) {
    more = strip(more);
    if (!thought.empty() && !more.empty()) thought += '\n';
    thought += more;
}

// A channel's text without its name's line.
std::string_view without_name(std::string_view channel) {
    if (!channel.starts_with(kThought)) return channel;
    const std::string_view rest = channel.substr(kThought.size());
    return rest.empty() || space_bytes(rest) ? rest : channel;
}

// Some fine-tuned models write <think>..</think> instead of a channel. Only in front of the answer: elsewhere
// the words may be what the answer is about.
void split_literal_think(Reply& reply) {
    constexpr std::string_view open = "<think>", close = "</think>";
    const std::string_view text = strip(reply.answer);
    if (!text.starts_with(open)) return;
    const size_t end = text.find(close);
    add_thought(reply.thought, text.substr(open.size(), end == text.npos ? end : end - open.size()));
    reply.answer = end == text.npos ? "" : std::string(strip(text.substr(end + close.size())));
}

}  // namespace

Reply split_reply(const Tokenizer& tokenizer, std::span<const int32_t> ids, bool ignore_end) {
    const auto ends = [&](int32_t id) { return !ignore_end && tokenizer.is_end(id); };
    ids = ids.first(std::find_if(ids.begin(), ids.end(), ends) - ids.begin());
    const std::optional<int32_t> open = tokenizer.find(kOpen), close = tokenizer.find(kClose);
    Reply reply;
    bool in_channel = false;
    // Decoded in one piece: a character's bytes may lie on both sides of a channel.
    std::vector<int32_t> answer;
    while (!ids.empty()) {
        // Markers that change nothing, such as a second opening one, are dropped.
        const auto mark =
            std::find_if(ids.begin(), ids.end(), [&](int32_t id) { return id == open || id == close; });
        const auto part = ids.first(mark - ids.begin());
        if (in_channel)
            add_thought(reply.thought, without_name(tokenizer.decode(part, false)));
        else
            answer.insert(answer.end(), part.begin(), part.end());
        if (mark != ids.end()) in_channel = *mark == open;
        ids = ids.subspan(part.size() + (mark != ids.end()));
    }
    reply.answer = tokenizer.decode(answer, false);
    split_literal_think(reply);
    return reply;
}

std::string cut_at_stop(std::string& text, std::span<const std::string> stop) {
    size_t first = text.npos;
    std::string found;
    for (const std::string& s : stop)
        if (const size_t at = text.find(s); at < first) first = at, found = s;
    if (!found.empty()) text.resize(first);
    return found;
}

}  // namespace easel
