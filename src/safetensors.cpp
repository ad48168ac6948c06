// safetensors.cpp: maps safetensors files and checks their headers. A file is a little-endian u64 header
// length, that many bytes of JSON {name: {dtype, shape, data_offsets: [begin, end]}, "__metadata__": {...}},
// and the data, which the offsets count from. Called by convert_hf.cpp.
#include "safetensors.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "check.h"
#include "convert_source.h"
#include "json_depth.h"
#include "mapping.h"

namespace easel {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the reference implementation
constexpr size_t kMaxDims = 8;

// Parses JSON and refuses a name that stands twice in the outermost object.
json parse_header(const std::string& path, std::string_view text) {
    const std::optional<std::string> twice = check_json(text, path, 1);
    json header;
    try {
        header = json::parse(text);
    } catch (const json::exception& e) {
        fail("{}: the safetensors header is not JSON: {}", path, e.what());
    }
    require(header.is_object(), "{}: the safetensors header is not a JSON object", path);
    require(!twice, "{}: tensor {} appears twice in the header", path, twice.value_or(""));
    return header;
}

Type dtype_of(const std::string& path, const std::string& name, const json& entry) {
    const auto it = entry.find("dtype");
    const std::string text = it != entry.end() && it->is_string() ? it->get<std::string>() : "missing";
    if (text == "F32") return Type::F32;
    if (text == "F16") return Type::F16;
    if (text == "BF16") return Type::BF16;
    fail("{}: tensor {} has dtype {}, expected F32, F16 or BF16", path, name, text);
}

// A list of whole numbers from 0 to 2^62; nothing else.
std::vector<int64_t> whole_numbers(const std::string& path, const std::string& name, const json& entry,
                                   const char* key) {
    const auto it = entry.find(key);
    const bool is_list = it != entry.end() && it->is_array();
    std::vector<int64_t> out;
    for (const json& item : is_list ? *it : json::array()) {
        const bool fits = item.is_number_unsigned() && item.get<uint64_t>() <= uint64_t{1} << 62;
        require(fits, "{}: tensor {} has {} with something else than whole numbers", path, name, key);
        out.push_back(item.get<int64_t>());
    }
    require(is_list, "{}: tensor {} has no list {}", path, name, key);
    return out;
}

SafeTensor read_entry(const std::string& path, const std::string& name, const json& entry,
                      const uint8_t* data, uint64_t data_bytes) {
    require(entry.is_object(), "{}: tensor {} is described by {}, expected an object", path, name,
            entry.type_name());
    SafeTensor t;
    t.name = name;
    t.type = dtype_of(path, name, entry);
    t.shape = whole_numbers(path, name, entry, "shape");
    require(t.shape.size() <= kMaxDims, "{}: tensor {} has {} dimensions, expected at most {}", path, name,
            t.shape.size(), kMaxDims);
    int64_t bytes = type_info(t.type).block_bytes;
    for (const int64_t n : t.shape)
        require(!__builtin_mul_overflow(bytes, n, &bytes), "{}: tensor {} has shape {}, which overflows",
                path, name, t.shape_text());
    const std::vector<int64_t> offsets = whole_numbers(path, name, entry, "data_offsets");
    require(offsets.size() == 2 && offsets[0] <= offsets[1] && uint64_t(offsets[1]) <= data_bytes,
            "{}: tensor {} has data_offsets [{}], expected a begin and an end within {} bytes", path, name,
            fmt::join(offsets, ", "), data_bytes);
    require(offsets[1] - offsets[0] == bytes,
            "{}: tensor {} has {} bytes at its data_offsets, expected {} for {} {}", path, name,
            offsets[1] - offsets[0], bytes, type_info(t.type).name, t.shape_text());
    t.data = data + offsets[0];
    t.bytes = static_cast<size_t>(bytes);
    return t;
}

void require_no_overlap(const std::string& path, const std::vector<SafeTensor>& tensors) {
    std::vector<const SafeTensor*> order;
    for (const SafeTensor& t : tensors)
        if (t.bytes) order.push_back(&t);
    std::sort(order.begin(), order.end(), [](auto* a, auto* b) { return a->data < b->data; });
    for (size_t i = 1; i < order.size(); i++)
        require(order[i - 1]->data + order[i - 1]->bytes <= order[i]->data,
                "{}: the bytes of tensors {} and {} overlap", path, order[i - 1]->name, order[i]->name);
}

// Shard file name -> the tensors that the index places there.
std::map<std::string, std::set<std::string>> read_index(const std::string& path) {
    const json index = read_json(path);
    const json* map = index.is_object() && index.contains("weight_map") ? &index["weight_map"] : nullptr;
    require(map && map->is_object() && !map->empty(), "{}: expected an object weight_map with tensor names",
            path);
    std::map<std::string, std::set<std::string>> shards;
    for (const auto& [name, file] : map->items()) {
        const std::string shard = file.is_string() ? file.get<std::string>() : "";
        // A shard lies beside its index; a path could point anywhere.
        require(!shard.empty() && shard == fs::path(shard).filename() && shard != "..",
                "{}: tensor {} is in {}, expected a file name without a path", path, name, file.dump());
        shards[shard].insert(name);
    }
    return shards;
}

}  // namespace

std::string SafeTensor::shape_text() const {
    return fmt::format("[{}]", fmt::join(shape, ", "));
}

const SafeTensor* SafeTensors::find(std::string_view name) const {
    const auto it = tensor_idx_.find(name);
    return it == tensor_idx_.end() ? nullptr : &tensors_[it->second];
}

std::vector<SafeTensor> SafeTensors::read_file(const std::string& path) {
    const auto file = std::make_shared<const MappedFile>(path, "safetensors");
    const std::span<const uint8_t> bytes = file->bytes();
    require(bytes.size() >= 8, "{}: not a safetensors file: expected at least 8 bytes, found {}", path,
            bytes.size());
    uint64_t header_bytes;
    std::memcpy(&header_bytes, bytes.data(), sizeof header_bytes);
    const uint64_t most = std::min<uint64_t>(kMaxHeaderBytes, bytes.size() - 8);
    require(header_bytes <= most, "{}: the header length at offset 0 is {}, expected at most {}", path,
            header_bytes, most);
    const auto data = bytes.subspan(8 + header_bytes);
    const char* text = reinterpret_cast<const char*>(bytes.data()) + 8;
    const json header = parse_header(path, {text, header_bytes});
    std::vector<SafeTensor> tensors;
    for (const auto& [name, entry] : header.items()) {
        if (name == "__metadata__") continue;
        tensors.push_back(read_entry(path, name, entry, data.data(), data.size()));
    }
    require_no_overlap(path, tensors);
    files_.push_back(file);
    return tensors;
}

void SafeTensors::add(std::vector<SafeTensor> tensors, const std::string& path) {
    for (SafeTensor& t : tensors) {
        require(tensor_idx_.emplace(t.name, tensors_.size()).second, "{}: tensor {} is in another file too",
                path, t.name);
        tensors_.push_back(std::move(t));
    }
}

SafeTensors SafeTensors::open_file(const std::string& path) {
    SafeTensors set;
    set.add(set.read_file(path), path);
    return set;
}

SafeTensors SafeTensors::open_folder(const std::string& folder) {
    const fs::path dir(folder);
    const std::string single = dir / "model.safetensors", index = dir / "model.safetensors.index.json";
    if (fs::exists(single)) return open_file(single);
    SafeTensors set;
    if (fs::exists(index)) {
        for (const auto& [shard, names] : read_index(index)) {
            const std::string path = dir / shard;
            std::vector<SafeTensor> tensors = set.read_file(path);
            std::erase_if(tensors, [&names = names](const SafeTensor& t) { return !names.contains(t.name); });
            set.add(std::move(tensors), path);
            for (const std::string& name : names)
                require(set.find(name), "{}: tensor {} is not in it, though {} says so", path, name, index);
        }
        return set;
    }
    std::set<std::string> paths;
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(dir, ignored)) {
        const std::string name = entry.path().filename();
        if (name.starts_with("model") && name.ends_with(".safetensors")) paths.insert(entry.path());
    }
    require(!paths.empty(), "{}: expected model.safetensors, or model.safetensors.index.json and its shards",
            folder);
    for (const std::string& path : paths) set.add(set.read_file(path), path);
    return set;
}

}  // namespace easel
