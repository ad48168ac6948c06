// make_gguf.h: small GGUF files in memory for tests: keys and tensors to bytes for Gguf::from_memory().
// Unlike GgufWriter it checks nothing, so that it can also write what a reader must refuse.
//   MakeGguf make;
//   make.set("tokenizer.ggml.model", std::string("gemma4"));
//   make.tensor("x.weight", Type::F32, {4, 2}, bytes);
//   const std::vector<uint8_t> file = make.bytes();  // must outlive the Gguf
//   Gguf gguf = Gguf::from_memory(file, "test");
#pragma once
#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "gguf.h"

namespace easel {

class MakeGguf {
  public:
    // A later set() of the same key replaces the earlier one, in its place.
    void set(const std::string& key, const KeyValue& value) {
        std::string out;
        std::visit([&](const auto& v) { put_typed(out, v); }, value);
        set_raw(key, out);
    }
    // `encoded`: the value's type as u32, then its bytes.
    void set_raw(const std::string& key, std::string encoded) {
        for (auto& [name, value] : keys_)
            if (name == key) {
                value = std::move(encoded);
                return;
            }
        keys_.emplace_back(key, std::move(encoded));
    }
    void erase(const std::string& key) {
        std::erase_if(keys_, [&](const auto& k) { return k.first == key; });
    }
    // `data` is row-major, ne[0] contiguous, in the type's blocks.
    void tensor(const std::string& name, Type type, std::vector<uint64_t> ne, std::string data) {
        tensors_.push_back({name, type, std::move(ne), std::move(data)});
    }

    std::vector<uint8_t> bytes() const {
        std::string out = "GGUF", data;
        put<uint32_t>(out, 3);
        put<uint64_t>(out, tensors_.size());
        put<uint64_t>(out, keys_.size());
        for (const auto& [name, value] : keys_) {
            put_string(out, name);
            out += value;
        }
        for (const TensorBytes& t : tensors_) {
            put_string(out, t.name);
            put(out, static_cast<uint32_t>(t.ne.size()));
            for (uint64_t n : t.ne) put(out, n);
            put(out, static_cast<uint32_t>(t.type));
            put<uint64_t>(out, data.size());
            data += t.data;
            pad(data);
        }
        pad(out);
        out += data;
        return {out.begin(), out.end()};
    }

  private:
    struct TensorBytes {
        std::string name;
        Type type;
        std::vector<uint64_t> ne;
        std::string data;
    };

    static void pad(std::string& s) { s.resize((s.size() + 31) / 32 * 32); }  // the default alignment
    template <class T>
    static void put(std::string& out, T v) {
        out.append(reinterpret_cast<const char*>(&v), sizeof v);
    }
    static void put_string(std::string& out, const std::string& s) {
        put<uint64_t>(out, s.size());
        out += s;
    }
    template <class T>
    static ValueType type_of() {
        if constexpr (std::is_same_v<T, bool>) return ValueType::Bool;
        if constexpr (std::is_same_v<T, uint32_t>) return ValueType::U32;
        if constexpr (std::is_same_v<T, int32_t>) return ValueType::I32;
        if constexpr (std::is_same_v<T, uint64_t>) return ValueType::U64;
        if constexpr (std::is_same_v<T, float>) return ValueType::F32;
        return ValueType::String;
    }
    template <class T>
    static void put_value(std::string& out, const T& v) {
        if constexpr (std::is_same_v<T, std::string>)
            put_string(out, v);
        else
            put(out, v);
    }
    template <class T>
    static void put_typed(std::string& out, const T& v) {
        put(out, static_cast<uint32_t>(type_of<T>()));
        put_value(out, v);
    }
    template <class T>
    static void put_typed(std::string& out, const std::vector<T>& v) {
        put(out, static_cast<uint32_t>(ValueType::Array));
        put(out, static_cast<uint32_t>(type_of<T>()));
        put<uint64_t>(out, v.size());
        for (const T& item : v) put_value<T>(out, item);
    }

    std::vector<std::pair<std::string, std::string>> keys_;  // name, type and value
    std::vector<TensorBytes> tensors_;
};

// Sets a "gemma4" vocabulary: <pad> 0, <eos> 1, <bos> 2, <unk> 3, byte tokens 4..259, then `tokens`, each
// with its type (1 normal, 3 control, 4 user-defined).
inline void set_vocabulary(MakeGguf& make, const std::vector<std::pair<std::string, int32_t>>& tokens,
                           const std::vector<std::string>& merges) {
    std::vector<std::string> texts = {"<pad>", "<eos>", "<bos>", "<unk>"};
    std::vector<int32_t> types = {3, 3, 3, 2};
    for (int b = 0; b < 256; b++) {
        texts.push_back(fmt::format("<0x{:02X}>", b));
        types.push_back(6);
    }
    for (const auto& [text, type] : tokens) {
        texts.push_back(text);
        types.push_back(type);
    }
    make.set("tokenizer.ggml.model", std::string("gemma4"));
    make.set("tokenizer.ggml.tokens", texts);
    make.set("tokenizer.ggml.scores", std::vector<float>(texts.size()));
    make.set("tokenizer.ggml.token_type", types);
    make.set("tokenizer.ggml.merges", merges);
    make.set("tokenizer.ggml.padding_token_id", uint32_t{0});
    make.set("tokenizer.ggml.eos_token_id", uint32_t{1});
    make.set("tokenizer.ggml.bos_token_id", uint32_t{2});
}

}  // namespace easel
