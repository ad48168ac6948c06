// models.h: the models that are known by name (models.txt, part of the program), where their files lie, and
// what -m accepts. `easel fetch` (src/fetch.cpp) brings the files there.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "gguf.h"

namespace easel {

// One line of models.txt: name, bytes, sha256, url, note.
struct ModelEntry {
    std::string name;
    int64_t bytes = 0;   // 0: not known
    std::string sha256;  // 64 lower-case hex digits; empty: not known
    std::string url, note;
};

// The lines of a list, in its order; # starts a comment line. Error with `list`, the line's number and what
// is wrong with it.
std::vector<ModelEntry> parse_models(std::string_view text, const std::string& list);
// The list in use: of file `list`, else of $EASEL_MODELS_TXT, else the one that is part of the program.
std::vector<ModelEntry> known_models(const std::string& list = "");

// $EASEL_MODELS, else $XDG_CACHE_HOME/easel, else ~/.cache/easel. Error when none of these is set.
std::string models_folder();
// NAME.gguf in that folder, whether it is there or not.
std::string model_path(const ModelEntry& entry);

const ModelEntry* find_entry(const std::vector<ModelEntry>& models, std::string_view name);
// "; the nearest names are a, b and c" by edit distance, or where models are listed: the end of an Error.
std::string name_hint(const std::vector<ModelEntry>& models, std::string_view name);

// The file that -m MODEL means: a path, or the fetched file of that name, from whatever list. Error for a
// model that has not been fetched, and for what is neither.
std::string find_model(const std::string& model);
// Opens it; empty: the demo model that is part of the program.
std::shared_ptr<const Gguf> open_model(const std::string& model);

}  // namespace easel
