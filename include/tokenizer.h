// tokenizer.h: text to token ids and back, for the "gemma4" tokenizer of a GGUF file (SPEC 5.1, 5.2).
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gguf.h"

namespace easel {

enum class TokenType : uint8_t {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6
};

// Which special-token strings in a text become their ids instead of plain text.
enum class Specials {
    None,         // none at all: text of a user inside a chat turn
    UserDefined,  // user-defined ones: plain `easel tokenize`
    All,          // control strings too: text that a program wrote as a template
};

class Tokenizer {
  public:
    // Reads the tokenizer.ggml.* keys. Throws Error naming the key when one is missing, of another kind or
    // size. The strings of `file` must outlive the tokenizer.
    explicit Tokenizer(const Gguf& file);
    ~Tokenizer();
    Tokenizer(Tokenizer&&) noexcept;

    // No bos is added. Text need not be valid UTF-8: stray bytes become byte tokens. Time is n log n in the
    // text's length, whatever the text.
    std::vector<int32_t> encode(std::string_view text, Specials specials) const;

    // The bytes that the ids stand for; the exact inverse of encode(). Control tokens are left out unless
    // asked for. Ids out of range throw Error.
    std::string decode(std::span<const int32_t> ids, bool show_control) const;

    int n_vocab() const;
    std::string_view text(int32_t id) const;                   // as the file spells it
    std::optional<int32_t> find(std::string_view text) const;  // the id of exactly this token text

    int32_t bos = -1, eos = -1, pad = -1;  // -1: the file has none
    // Ids that end an answer (SPEC section 3): eos, eot, `<turn|>`, `<|tool_response>`; ascending.
    std::vector<int32_t> end_of_generation;
    bool is_end(int32_t id) const;

  private:
    struct Tables;
    std::unique_ptr<Tables> tables_;
};

}  // namespace easel
