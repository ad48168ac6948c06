// fuzz_tokenizer.cpp: libFuzzer target: any bytes as a text, as chat messages and as a model's ids.
// sources: tokenizer.cpp chat.cpp gguf.cpp mapping.cpp text.cpp quant.cpp
#include "../make_gguf.h"
#include "chat.h"

using namespace easel;

namespace {

// Small, with overlapping special strings, merges that lead out of the vocabulary and into special strings.
const Gguf& vocabulary() {
    static const std::vector<uint8_t> bytes = [] {
        MakeGguf make;
        set_vocabulary(make, {{"<|turn>", 3},   {"<turn|>", 3}, {"<|channel>", 4}, {"<channel|>", 4},
                              {"<|think|>", 3}, {"<", 1},       {"|", 1},          {">", 1},
                              {"a", 1},         {"aa", 1},      {"ab", 1},         {"\n", 1},
                              {"\n\n", 1},      {"\u2581", 1},  {"\u2581a", 1},    {"\u2581\u2581", 1},
                              {"\u00e9", 1},    {"a<", 4},      {"|>a", 3},        {"<b>", 3},
                              {"", 4}},
                       {"a a", "a b", "\u2581 a", "\u2581 \u2581", "a \u00e9", "< b", "<b >", "< |", "aa aa",
                        "\n \n", "b a"});
        return make.bytes();
    }();
    static const Gguf file = Gguf::from_memory(bytes, "fuzz");
    return file;
}

void expect(bool ok) {
    if (!ok) __builtin_trap();
}

// U+2581 comes back as a space; nothing else may differ.
std::string without_2581(std::string s) {
    for (size_t at = 0; (at = s.find("\u2581", at)) != s.npos;) s.replace(at, 3, " ");
    return s;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const Tokenizer t(vocabulary());
    static const std::vector<int64_t> types = vocabulary().integers("tokenizer.ggml.token_type");
    const std::string text(reinterpret_cast<const char*>(data), size);
    for (Specials specials : {Specials::None, Specials::UserDefined, Specials::All}) {
        const std::vector<int32_t> ids = t.encode(text, specials);
        expect(without_2581(t.decode(ids, true)) == without_2581(text));
        if (specials == Specials::None)
            for (int32_t id : ids) expect(types[id] == 1 || types[id] == 6);  // normal, or a byte
        split_reply(t, ids);
    }

    // The text as three turns; its first byte says how.
    const size_t third = size / 3;
    const bool think = size && data[0] & 1, system = size && data[0] & 2;
    const Message messages[] = {{system ? Role::System : Role::User, text.substr(0, third)},
                                {Role::Model, text.substr(third, third)},
                                {Role::User, text.substr(2 * third)}};
    const std::vector<int32_t> prompt = render_chat(t, text, messages, {think});
    int turns = 0;
    for (int32_t id : prompt) turns += id == t.find("<|turn>");
    expect(turns == 4 + (think && !system));

    // The bytes as ids, all of the vocabulary.
    std::vector<int32_t> ids;
    for (size_t i = 0; i + 1 < size; i += 2) ids.push_back((data[i] << 8 | data[i + 1]) % t.n_vocab());
    const Reply reply = split_reply(t, ids);
    expect(reply.thought.size() + reply.answer.size() <= 8 * size);
    t.decode(ids, false);
    return 0;
}
