// chat.h: chat turns to token ids, and a model's token ids to thought and answer (SPEC 5.3).
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer.h"

namespace easel {

enum class Role { System, User, Model };
// "system", "user" or "assistant", as JSON has it; and the role of such a name, or none.
const char* role_name(Role role);
std::optional<Role> role_by_name(std::string_view name);

struct Message {
    Role role;
    std::string content;
};

struct ChatOptions {
    bool think = false;  // ask for a thought channel before the answer
};

// Turns as the model was trained to read them, bos first, ending where the model is to go on. A system
// message may only come first. Control tokens are placed as ids: nothing inside a message's content can
// become one. Thoughts in earlier model turns are left out. Throws Error when the file's vocabulary lacks the
// turn tokens, on an empty list, on a system message that is not first, or when the last message is the
// model's.
std::vector<int32_t> render_chat(const Tokenizer& tokenizer, std::string_view chat_template,
                                 std::span<const Message> messages, const ChatOptions& options);

struct Reply {
    std::string thought, answer;
};

// `ids` may hold an end-of-generation id; what follows the first is ignored, unless `ignore_end`. Tolerant of
// a channel that never closes (all of it is thought), of a second channel and of literal <think>...</think>.
Reply split_reply(const Tokenizer& tokenizer, std::span<const int32_t> ids, bool ignore_end = false);

// Cuts `text` before the earliest stop string in it and returns that string; empty: there is none.
std::string cut_at_stop(std::string& text, std::span<const std::string> stop);

}  // namespace easel
