// convert_source.h: what convert.cpp needs of a Hugging Face folder to write a GGUF file. Filled by
// convert_hf.cpp (config and tensors) and convert_tokenizer.cpp.
#pragma once
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "gguf.h"

namespace easel {

using KeyValues = std::vector<std::pair<std::string, KeyValue>>;

// A tensor as the target names and shapes it, with the bytes of the source.
struct SourceTensor {
    std::string name;
    std::vector<int64_t> ne;  // GGUF order
    Type type = Type::F32;    // of `data`
    const uint8_t* data = nullptr;
    bool mapped = true;  // `data` is in a mapped file: its pages may be given back once they are used
};

struct Source {
    KeyValues keys;
    std::shared_ptr<Gguf> gguf;  // a GGUF source, whose own keys are copied; else null
    std::vector<SourceTensor> tensors;
    std::vector<std::string> notes;            // lines for the user
    std::vector<std::string> files;            // the source's: must not be overwritten
    std::vector<std::shared_ptr<void>> holds;  // keeps `data` alive
};

// Throws Error naming the file, and the key or tensor in it.
Source read_hf_folder(const std::string& folder);

// Ids that config.json and generation_config.json name; -1: none.
struct SpecialIds {
    int64_t bos = -1, pad = -1;
    std::vector<int64_t> eos;
};

// The tokenizer.* keys, from tokenizer.json and the chat template. n_vocab: rows of the embedding.
void add_tokenizer(const std::string& folder, int64_t n_vocab, const SpecialIds& ids, Source& out);

// Whether a folder has that name, be it of a link that leads nowhere: read_text() says so then.
bool is_there(const std::filesystem::path& path);
// The whole of a file; `kind` is for messages. Error when it is missing, no regular file or not readable.
std::string read_text(const std::string& path, const char* kind);
// The same as a value; Error when it is not JSON.
nlohmann::json read_json(const std::string& path);

}  // namespace easel
