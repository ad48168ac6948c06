// gguf.cpp: maps GGUF files and checks every number in them before anybody uses it.
// Called by the model loader, `easel info` and `easel convert`.
#include "gguf.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>

#include "check.h"
#include "mapping.h"
#include "text.h"

namespace easel {

namespace {

constexpr uint64_t kMaxKeys = 1 << 16;         // published files have 44
constexpr uint64_t kMaxTensors = 1 << 20;      // and 692
constexpr uint64_t kMaxStringBytes = 1 << 26;  // a chat template is some kB; nothing needs 64 MiB
constexpr uint64_t kMaxParts = 10000;

// Bytes of one item; 0 for strings, whose length is in the file.
int scalar_bytes(ValueType type) {
    switch (type) {
        case ValueType::U8:
        case ValueType::I8:
        case ValueType::Bool:
            return 1;
        case ValueType::U16:
        case ValueType::I16:
            return 2;
        case ValueType::U32:
        case ValueType::I32:
        case ValueType::F32:
            return 4;
        case ValueType::U64:
        case ValueType::I64:
        case ValueType::F64:
            return 8;
        case ValueType::String:
        case ValueType::Array:
            break;
    }
    return 0;
}

// Reads little-endian fields one after the other, never past the end of the file.
struct Cursor {
    const std::string& name;
    std::span<const uint8_t> bytes;
    uint64_t at = 0;

    const uint8_t* take(uint64_t n, const char* what) {
        require(n <= bytes.size() - at, "{}: truncated: {} needs {} bytes at offset {}, the file has {} left",
                name, what, n, at, bytes.size() - at);
        const uint8_t* p = bytes.data() + at;
        at += n;
        return p;
    }
    template <class T>
    T number(const char* what) {
        T v;
        std::memcpy(&v, take(sizeof v, what), sizeof v);
        return v;
    }
    std::string_view string(const char* what) {
        const uint64_t start = at, length = number<uint64_t>(what);
        require(length <= kMaxStringBytes, "{}: the length of {} at offset {} is {}, expected at most {}",
                name, what, start, length, kMaxStringBytes);
        return {reinterpret_cast<const char*>(take(length, what)), length};
    }
};

ValueType read_value_type(Cursor& in, std::string_view key) {
    const uint64_t start = in.at;
    const uint32_t type = in.number<uint32_t>("a value type");
    require(type <= static_cast<uint32_t>(ValueType::F64),
            "{}: key {} has value type {} at offset {}, expected 0 to 12", in.name, shown(key), type, start);
    return static_cast<ValueType>(type);
}

void read_items(Cursor& in, std::string_view key, ValueType type, Value& v) {
    if (type == ValueType::String) {
        // 8 length bytes an item at least: a count past that cannot be true, and would only waste memory.
        require(v.count <= (in.bytes.size() - in.at) / 8,
                "{}: key {} claims {} strings at offset {}, more than the file can hold", in.name, shown(key),
                v.count, in.at);
        v.string.reserve(std::min<uint64_t>(v.count, 1 << 20));  // a mere claim: no more at once
        for (uint64_t i = 0; i < v.count; i++) v.string.push_back(in.string("a string"));
        return;
    }
    require(v.count <= (in.bytes.size() - in.at) / scalar_bytes(type),
            "{}: truncated: key {} claims {} items at offset {}, the file has {} bytes left", in.name,
            shown(key), v.count, in.at, in.bytes.size() - in.at);
    in.take(v.count * scalar_bytes(type), "a value");
}

Value read_value(Cursor& in, std::string_view key) {
    Value v;
    v.type = read_value_type(in, key);
    if (v.type == ValueType::Array) {
        v.item = read_value_type(in, key);
        require(v.item != ValueType::Array, "{}: key {} is an array of arrays, expected numbers or strings",
                in.name, shown(key));
        v.count = in.number<uint64_t>("an array's length");
    }
    v.data = in.bytes.data() + in.at;
    read_items(in, key, v.is_array() ? v.item : v.type, v);
    v.end = in.bytes.data() + in.at;
    return v;
}

Tensor read_tensor(Cursor& in, uint64_t& offset) {
    const uint64_t start = in.at;
    Tensor t;
    t.name = in.string("a tensor name");
    const uint32_t n_dims = in.number<uint32_t>("a dimension count");
    require(n_dims >= 1 && n_dims <= 4, "{}: tensor {} at offset {} has {} dimensions, expected 1 to 4",
            in.name, shown(t.name), start, n_dims);
    t.n_dims = static_cast<int>(n_dims);
    int64_t n_values = 1;
    for (int d = 0; d < t.n_dims; d++) {
        const uint64_t ne = in.number<uint64_t>("a dimension");
        require(
            ne >= 1 && ne <= (uint64_t{1} << 40) &&
                !__builtin_mul_overflow(n_values, int64_t(ne), &n_values) && n_values <= (int64_t{1} << 48),
            "{}: tensor {} has dimension {} of {} values at offset {}, expected a shape of 1 to 2^48 values",
            in.name, shown(t.name), d, ne, start);
        t.ne[d] = static_cast<int64_t>(ne);
    }
    const uint32_t type = in.number<uint32_t>("a tensor type");
    const TypeInfo* info = find_type(type);
    require(info, "{}: tensor {} has type {}, which easel does not read", in.name, shown(t.name), type);
    require(t.ne[0] % info->block_elems == 0,
            "{}: tensor {} has rows of {} values, expected a multiple of {} for {}", in.name, shown(t.name),
            t.ne[0], info->block_elems, info->name);
    t.type = info->type;
    t.bytes = static_cast<size_t>(row_bytes(t.type, t.ne[0]) * t.n_rows());
    offset = in.number<uint64_t>("a tensor offset");
    return t;
}

// "dir/name-00002-of-00005.gguf" -> "dir/name-", 2, 5; false for other names.
bool split_name(const std::string& path, std::string& stem, uint64_t& part, uint64_t& n_part) {
    constexpr size_t tail = sizeof("00001-of-00005.gguf") - 1;
    if (path.size() < tail + 1) return false;
    stem = path.substr(0, path.size() - tail);
    unsigned i = 0, n = 0;
    int used = 0;
    if (std::sscanf(path.c_str() + stem.size(), "%5u-of-%5u.gguf%n", &i, &n, &used) != 2 || used != int(tail))
        return false;
    part = i;
    n_part = n;
    return stem.back() == '-' && i >= 1 && i <= n;
}

}  // namespace

// The bytes of one file, and its name for messages.
struct Gguf::Part {
    std::string name;
    std::unique_ptr<const MappedFile> file;  // null: the bytes are from_memory()'s
    std::span<const uint8_t> bytes;

    static std::shared_ptr<Part> map(const std::string& path) {
        std::error_code ignored;
        require(!std::filesystem::is_directory(path, ignored),
                "{0}: expected a GGUF file, found a folder; a Hugging Face folder is converted by "
                "`easel convert {0} model.gguf --type q4_k_m`",
                path);
        auto part = std::make_shared<Part>();
        part->name = path;
        part->file = std::make_unique<const MappedFile>(path, "GGUF");
        part->bytes = part->file->bytes();
        return part;
    }
};

const char* value_type_name(ValueType type) {
    static const char* const names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                        "bool", "string", "array", "u64", "i64", "f64"};
    return names[static_cast<uint32_t>(type)];
}

bool Value::is_number() const {
    return type != ValueType::String && type != ValueType::Array;
}

std::string Tensor::shape() const {
    return fmt::format("[{}]", fmt::join(ne.begin(), ne.begin() + std::max(n_dims, 1), ", "));
}

template <class T>
static T load(const uint8_t* p) {
    T v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

// Reads an item of `type` at p through `use`, which takes any number type.
template <class Use>
static auto visit_number(ValueType type, const uint8_t* p, Use use) {
    switch (type) {
        case ValueType::U8:
            return use(load<uint8_t>(p));
        case ValueType::I8:
            return use(load<int8_t>(p));
        case ValueType::U16:
            return use(load<uint16_t>(p));
        case ValueType::I16:
            return use(load<int16_t>(p));
        case ValueType::U32:
            return use(load<uint32_t>(p));
        case ValueType::I32:
            return use(load<int32_t>(p));
        case ValueType::F32:
            return use(load<float>(p));
        case ValueType::Bool:
            return use(static_cast<uint8_t>(load<uint8_t>(p) != 0));
        case ValueType::U64:
            return use(load<uint64_t>(p));
        case ValueType::I64:
            return use(load<int64_t>(p));
        default:
            return use(load<double>(p));
    }
}

double to_double(const Value& v) {
    return visit_number(v.type, v.data, [](auto x) { return static_cast<double>(x); });
}

// Numbers past int64 (and NaN) become the nearest int64, so that range checks downstream see and refuse them.
template <class T>
static int64_t saturate(T x) {
    if constexpr (std::is_floating_point_v<T>) {
        if (!(x > -9.2e18)) return INT64_MIN;
        if (x > 9.2e18) return INT64_MAX;
    } else if constexpr (std::is_same_v<T, uint64_t>) {
        if (x > uint64_t{INT64_MAX}) return INT64_MAX;
    }
    return static_cast<int64_t>(x);
}

int64_t to_integer(const Value& v) {
    return visit_number(v.type, v.data, [](auto x) { return saturate(x); });
}

double item_to_double(const Value& v, uint64_t i) {
    return visit_number(v.item, v.data + i * scalar_bytes(v.item),
                        [](auto x) { return static_cast<double>(x); });
}

Gguf Gguf::from_memory(std::span<const uint8_t> bytes, std::string name) {
    Gguf file;
    file.name_ = name;
    auto part = std::make_shared<Part>();
    part->name = std::move(name);
    part->bytes = bytes;
    file.read_part(part);
    return file;
}

bool Gguf::is_part(const std::string& path) {
    std::string stem;
    uint64_t part = 1, n_part = 1;
    return split_name(path, stem, part, n_part) && n_part > 1;
}

Gguf Gguf::open(const std::string& path) {
    Gguf file;
    file.name_ = path;
    std::string stem;
    uint64_t part = 1, n_part = 1;
    if (!split_name(path, stem, part, n_part)) {
        file.read_part(Part::map(path));
        const int64_t n_split = file.integer_or("split.count", 1);
        require(n_split <= 1, "{}: is one of {} parts, expected a name like NAME-00001-of-{:05}.gguf", path,
                n_split, n_split);
        return file;
    }
    require(n_part <= kMaxParts, "{}: names {} parts, expected at most {}", path, n_part, kMaxParts);
    for (uint64_t i = 1; i <= n_part; i++) {
        file.read_part(Part::map(fmt::format("{}{:05}-of-{:05}.gguf", stem, i, n_part)));
        if (i == 1) {
            const int64_t n_split = file.integer_or("split.count", n_part == 1);
            require(n_split == int64_t(n_part),
                    "{}: key split.count is {}, expected {} as the file's name says", path, n_split, n_part);
        }
    }
    const int64_t n_expected = file.integer_or("split.tensors.count", int64_t(file.tensors_.size()));
    require(n_expected == int64_t(file.tensors_.size()), "{}: the {} parts hold {} tensors, expected {}",
            path, n_part, file.tensors_.size(), n_expected);
    return file;
}

// Adds one file's keys (of the first part only) and tensors.
void Gguf::read_part(std::shared_ptr<Part> part) {
    Cursor in{part->name, part->bytes};
    const bool first = parts_.empty();
    require(part->bytes.size() >= 24, "{}: not a GGUF file: expected at least 24 bytes, found {}", part->name,
            part->bytes.size());
    const uint32_t magic = in.number<uint32_t>("the magic number");
    require(magic == 0x46554747,
            "{}: not a GGUF file: expected the bytes \"GGUF\" at offset 0, found 0x{:08x}", part->name,
            magic);
    const uint32_t version = in.number<uint32_t>("the version");
    require(version == 2 || version == 3, "{}: GGUF version {} at offset 4, expected 2 or 3{}", part->name,
            version, version > 0xffff ? " (a big-endian file?)" : "");
    const uint64_t n_tensor = in.number<uint64_t>("the tensor count");
    const uint64_t n_key = in.number<uint64_t>("the key count");
    require(n_tensor <= kMaxTensors, "{}: claims {} tensors at offset 8, expected at most {}", part->name,
            n_tensor, kMaxTensors);
    require(n_key <= kMaxKeys, "{}: claims {} keys at offset 16, expected at most {}", part->name, n_key,
            kMaxKeys);

    uint64_t alignment = 32;
    std::set<std::string_view> seen;
    for (uint64_t i = 0; i < n_key; i++) {
        const std::string_view key = in.string("a key");
        Value value = read_value(in, key);
        require(seen.insert(key).second, "{}: key {} appears twice", part->name, shown(key));
        if (key == "general.alignment") {
            require(value.is_number(), "{}: key general.alignment is of type {}, expected a number",
                    part->name, value_type_name(value.type));
            const int64_t a = to_integer(value);
            require(a >= 8 && a <= (1 << 20) && (a & (a - 1)) == 0,
                    "{}: key general.alignment is {}, expected a power of two from 8 to 2^20", part->name, a);
            alignment = static_cast<uint64_t>(a);
        }
        if (first) {
            value_idx_[key] = values_.size();
            values_.emplace_back(key, std::move(value));
        }
    }

    std::vector<uint64_t> offsets(n_tensor);
    const size_t base = tensors_.size();
    for (uint64_t i = 0; i < n_tensor; i++) {
        Tensor t = read_tensor(in, offsets[i]);
        require(tensor_idx_.emplace(t.name, tensors_.size()).second, "{}: tensor {} appears twice",
                part->name, shown(t.name));
        tensors_.push_back(t);
    }
    const uint64_t data_start = (in.at + alignment - 1) / alignment * alignment;
    for (uint64_t i = 0; i < n_tensor; i++) {
        Tensor& t = tensors_[base + i];
        const uint64_t size = part->bytes.size();
        require(offsets[i] % alignment == 0, "{}: tensor {} is at offset {}, expected a multiple of {}",
                part->name, shown(t.name), offsets[i], alignment);
        require(data_start <= size && offsets[i] <= size - data_start &&
                    t.bytes <= size - data_start - offsets[i],
                "{}: truncated: tensor {} needs {} bytes at offset {}, the file has {} bytes", part->name,
                shown(t.name), t.bytes, data_start + std::min(offsets[i], UINT64_MAX - data_start), size);
        t.data = part->bytes.data() + data_start + offsets[i];
    }
    version_ = version;
    parts_.push_back(std::move(part));
}

std::vector<std::string> Gguf::files() const {
    std::vector<std::string> paths;
    for (const auto& part : parts_)
        if (part->file) paths.push_back(part->name);
    return paths;
}

uint64_t Gguf::file_bytes() const {
    uint64_t n = 0;
    for (const auto& part : parts_) n += part->bytes.size();
    return n;
}

const Value* Gguf::find(std::string_view key) const {
    const auto it = value_idx_.find(key);
    return it == value_idx_.end() ? nullptr : &values_[it->second].second;
}

const Tensor* Gguf::find_tensor(std::string_view name) const {
    const auto it = tensor_idx_.find(name);
    return it == tensor_idx_.end() ? nullptr : &tensors_[it->second];
}

static std::string type_text(const Value& v) {
    return v.is_array() ? fmt::format("an array of {}", value_type_name(v.item)) : value_type_name(v.type);
}

// The value of `key`, which must be there.
static const Value& need(const Gguf& file, std::string_view key, const char* expected) {
    const Value* v = file.find(key);
    require(v, "{}: key {} is missing, expected {}", file.name(), key, expected);
    return *v;
}

int64_t Gguf::integer(std::string_view key) const {
    const Value& v = need(*this, key, "an integer");
    require(v.is_number() && v.type != ValueType::F32 && v.type != ValueType::F64,
            "{}: key {} is of type {}, expected an integer", name_, key, type_text(v));
    return to_integer(v);
}

double Gguf::number(std::string_view key) const {
    const Value& v = need(*this, key, "a number");
    require(v.is_number(), "{}: key {} is of type {}, expected a number", name_, key, type_text(v));
    return to_double(v);
}

std::string_view Gguf::string(std::string_view key) const {
    const Value& v = need(*this, key, "a string");
    require(v.type == ValueType::String, "{}: key {} is of type {}, expected a string", name_, key,
            type_text(v));
    return v.string[0];
}

int64_t Gguf::integer_or(std::string_view key, int64_t fallback) const {
    return find(key) ? integer(key) : fallback;
}
double Gguf::number_or(std::string_view key, double fallback) const {
    return find(key) ? number(key) : fallback;
}
std::string_view Gguf::string_or(std::string_view key, std::string_view fallback) const {
    return find(key) ? string(key) : fallback;
}

std::vector<int64_t> Gguf::integers(std::string_view key) const {
    const Value& v = need(*this, key, "integers");
    if (!v.is_array()) return {integer(key)};
    require(v.item != ValueType::String && v.item != ValueType::F32 && v.item != ValueType::F64,
            "{}: key {} is {}, expected an array of integers", name_, key, type_text(v));
    std::vector<int64_t> out(v.count);
    for (uint64_t i = 0; i < v.count; i++)
        out[i] = visit_number(v.item, v.data + i * scalar_bytes(v.item), [](auto x) { return saturate(x); });
    return out;
}

std::vector<float> Gguf::numbers(std::string_view key) const {
    const Value& v = need(*this, key, "numbers");
    if (!v.is_array()) return {static_cast<float>(number(key))};
    require(v.item != ValueType::String, "{}: key {} is {}, expected an array of numbers", name_, key,
            type_text(v));
    std::vector<float> out(v.count);
    for (uint64_t i = 0; i < v.count; i++) out[i] = static_cast<float>(item_to_double(v, i));
    return out;
}

const std::vector<std::string_view>& Gguf::strings(std::string_view key) const {
    const Value& v = need(*this, key, "an array of strings");
    require(v.is_array() && v.item == ValueType::String, "{}: key {} is {}, expected an array of strings",
            name_, key, type_text(v));
    return v.string;
}

}  // namespace easel
