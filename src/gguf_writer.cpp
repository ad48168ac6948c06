// gguf_writer.cpp: writes GGUF files of version 3 (SPEC 4.1), to `path`.part first.
// Called by `easel convert` and by the tests that need a file of a certain shape.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>
#include <utility>

#include "check.h"
#include "gguf.h"
#include "whole_file.h"

namespace easel {

namespace {

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr uint32_t kVersion = 3;
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMaxAlignment = 1 << 20;  // what Gguf::open() accepts
constexpr char kZeros[4096] = {};

template <class T>
void append(std::string& out, T number) {
    out.append(reinterpret_cast<const char*>(&number), sizeof number);
}

void append_string(std::string& out, std::string_view s) {
    append<uint64_t>(out, s.size());
    out.append(s);
}

void append_type(std::string& out, ValueType type) {
    append(out, static_cast<uint32_t>(type));
}

template <class T>
constexpr ValueType type_of() {
    if constexpr (std::is_same_v<T, bool>) return ValueType::Bool;
    if constexpr (std::is_same_v<T, uint32_t>) return ValueType::U32;
    if constexpr (std::is_same_v<T, int32_t>) return ValueType::I32;
    if constexpr (std::is_same_v<T, uint64_t>) return ValueType::U64;
    if constexpr (std::is_same_v<T, float>) return ValueType::F32;
    return ValueType::String;
}

template <class T>
void append_item(std::string& out, const T& item) {
    if constexpr (std::is_same_v<T, std::string>)
        append_string(out, item);
    else if constexpr (std::is_same_v<T, bool>)
        append<uint8_t>(out, item);
    else
        append(out, item);
}

template <class T>
void append_value(std::string& out, const T& value) {
    append_type(out, type_of<T>());
    append_item(out, value);
}

template <class T>
void append_value(std::string& out, const std::vector<T>& items) {
    append_type(out, ValueType::Array);
    append_type(out, type_of<T>());
    append<uint64_t>(out, items.size());
    for (const T& item : items) append_item<T>(out, item);
}

uint64_t padded(uint64_t n, uint64_t alignment) {
    return (n + alignment - 1) / alignment * alignment;
}

}  // namespace

// Where a symbolic link leads. A device stands for itself; convert() refuses it before.
static std::string target_of(const std::string& path) {
    const std::string file = replaced(path);
    return file.empty() ? path : file;
}

GgufWriter::GgufWriter(const std::string& path)
    : path_(path),
      target_(target_of(path)),
      part_path_(target_ + ".part"),
      file_(open_alone(part_path_, path_)) {}

GgufWriter::~GgufWriter() {
    if (!file_) return;
    std::remove(part_path_.c_str());  // before the lock goes
    std::fclose(file_);
}

// A key that is set twice keeps its place and takes the later value.
static void store(std::map<std::string, size_t>& key_idx,
                  std::vector<std::pair<std::string, std::string>>& keys, const std::string& key,
                  std::string encoded) {
    const auto [it, is_new] = key_idx.emplace(key, keys.size());
    if (is_new)
        keys.emplace_back(key, std::move(encoded));
    else
        keys[it->second].second = std::move(encoded);
}

void GgufWriter::set(const std::string& key, KeyValue value) {
    std::string encoded;
    std::visit([&](const auto& v) { append_value(encoded, v); }, value);
    store(key_idx_, keys_, key, std::move(encoded));
}

void GgufWriter::copy(std::string_view key, const Value& value) {
    std::string encoded;
    append_type(encoded, value.type);
    if (value.is_array()) {
        append_type(encoded, value.item);
        append<uint64_t>(encoded, value.count);
    }
    encoded.append(reinterpret_cast<const char*>(value.data), value.end - value.data);
    store(key_idx_, keys_, std::string(key), std::move(encoded));
}

void GgufWriter::declare(const std::string& name, Type type, std::span<const int64_t> ne) {
    const TypeInfo& info = type_info(type);
    require(ne.size() >= 1 && ne.size() <= 4, "{}: tensor {} has {} dimensions, expected 1 to 4", path_, name,
            ne.size());
    int64_t n_values = 1;
    for (const int64_t n : ne)
        require(n >= 1 && !__builtin_mul_overflow(n_values, n, &n_values) && n_values <= int64_t{1} << 48,
                "{}: tensor {} has shape [{}], expected 1 to 2^48 values", path_, name, fmt::join(ne, ", "));
    require(ne[0] % info.block_elems == 0,
            "{}: tensor {} has rows of {} values, expected a multiple of {} for {}", path_, name, ne[0],
            info.block_elems, info.name);
    const uint64_t bytes = static_cast<uint64_t>(row_bytes(type, ne[0]) * (n_values / ne[0]));
    tensors_.push_back({name, type, {ne.begin(), ne.end()}, bytes, 0});
}

// A general.alignment that was copied applies to this file too. encoded: 4 bytes of its type, then its value.
static uint64_t alignment_of(const std::string& path, const std::string* encoded) {
    if (!encoded) return kDefaultAlignment;
    Value value;
    std::memcpy(&value.type, encoded->data(), sizeof value.type);
    value.data = reinterpret_cast<const uint8_t*>(encoded->data()) + 4;
    const int64_t a = value.is_number() ? to_integer(value) : 0;
    require(a >= 8 && a <= int64_t{kMaxAlignment} && (a & (a - 1)) == 0,
            "{}: key general.alignment is {}, expected a power of two from 8 to {}", path, a, kMaxAlignment);
    return static_cast<uint64_t>(a);
}

void GgufWriter::begin() {
    const auto key = key_idx_.find("general.alignment");
    const uint64_t alignment =
        alignment_of(path_, key == key_idx_.end() ? nullptr : &keys_[key->second].second);

    std::string header;
    append(header, kMagic);
    append(header, kVersion);
    append<uint64_t>(header, tensors_.size());
    append<uint64_t>(header, keys_.size());
    for (const auto& [name, encoded] : keys_) {
        append_string(header, name);
        header += encoded;
    }
    uint64_t offset = 0;
    total_bytes_ = 0;
    std::set<std::string_view> seen;
    for (Declared& t : tensors_) {
        require(seen.insert(t.name).second, "{}: tensor {} is declared twice", path_, t.name);
        t.offset = offset;
        append_string(header, t.name);
        append(header, static_cast<uint32_t>(t.ne.size()));
        for (const int64_t n : t.ne) append(header, static_cast<uint64_t>(n));
        append(header, static_cast<uint32_t>(t.type));
        append(header, t.offset);
        offset += padded(t.bytes, alignment);
        total_bytes_ += t.bytes;
    }
    header.resize(padded(header.size(), alignment));
    put(header.data(), header.size());
    // A sentinel without a shape: a tensor's padding is the gap between its end and the next one's offset.
    tensors_.push_back({"", Type::F32, {}, 0, offset});
}

void GgufWriter::write(std::span<const uint8_t> bytes) {
    require(!bytes.empty(), "{}: an empty piece of a tensor", path_);
    require(current_ + 1 < tensors_.size(), "{}: more bytes than were declared", path_);
    const Declared& t = tensors_[current_];
    require(bytes.size() <= t.bytes - current_done_,
            "{}: tensor {} was declared with {} bytes, got at least {}", path_, t.name, t.bytes,
            current_done_ + bytes.size());
    put(bytes.data(), bytes.size());
    current_done_ += bytes.size();
    if (current_done_ < t.bytes) return;
    for (uint64_t gap = tensors_[current_ + 1].offset - t.offset - t.bytes; gap > 0;) {
        const uint64_t n = std::min<uint64_t>(gap, sizeof kZeros);
        put(kZeros, n);
        gap -= n;
    }
    current_++;
    current_done_ = 0;
}

void GgufWriter::finish(const std::function<void(const std::string& path)>& check) {
    // begin() has appended the sentinel.
    require(file_ && !tensors_.empty() && tensors_.back().ne.empty(), "{}: finish() without begin()", path_);
    require(current_ + 1 == tensors_.size(), "{}: tensor {} has {} of {} bytes", path_,
            tensors_[current_].name, current_done_, tensors_[current_].bytes);
    if (check) {
        const int flushed = std::fflush(file_);
        require(flushed == 0, "{}: cannot be written: {}", path_, std::strerror(errno));
        check(part_path_);
    }
    move_into_place(std::exchange(file_, nullptr), part_path_, target_);
}

void GgufWriter::put(const void* data, size_t bytes) {
    require(file_, "{}: written to after finish()", path_);
    const bool ok = std::fwrite(data, 1, bytes, file_) == bytes;
    require(ok, "{}: cannot write {} bytes: {}", part_path_, bytes, std::strerror(errno));
}

}  // namespace easel
