// gguf.h: a GGUF file, mapped and checked (SPEC 4.1), and a writer of such files.
// Everything a file claims (counts, lengths, offsets, alignment) is checked when it is opened: after
// Gguf::open() every key and every tensor's bytes can be read without a further look.
#pragma once
#include <array>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "quant.h"

namespace easel {

enum class ValueType : uint32_t { U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64 };

const char* value_type_name(ValueType type);

// One key's value: a view into the mapped file.
struct Value {
    ValueType type = ValueType::U8;
    ValueType item = ValueType::U8;        // of an array; arrays of arrays are refused
    uint64_t count = 1;                    // of an array, or 1
    const uint8_t* data = nullptr;         // the value, or an array's first item
    const uint8_t* end = nullptr;          // past its last byte
    std::vector<std::string_view> string;  // its strings, if it has any: views into the file

    bool is_array() const { return type == ValueType::Array; }
    bool is_number() const;  // a scalar of any number type, or bool
};

// A tensor's place in the mapped file. ne[0] is the contiguous (input) dimension; unused dimensions are 1.
struct Tensor {
    std::string_view name;
    Type type = Type::F32;
    int n_dims = 0;
    std::array<int64_t, 4> ne{1, 1, 1, 1};
    const uint8_t* data = nullptr;
    size_t bytes = 0;

    int64_t n_values() const { return ne[0] * ne[1] * ne[2] * ne[3]; }
    // Rows of ne[0] values each.
    int64_t n_rows() const { return ne[1] * ne[2] * ne[3]; }
    std::string shape() const;  // "[2816, 1408, 128]"
};

class Gguf {
  public:
    // Maps `path`; of a split file (name-00001-of-0000N.gguf) any part may be named, all are read as one.
    // Throws Error with the path, what was expected, what was found and at which offset.
    static Gguf open(const std::string& path);
    // Whether open() would read a file of this name as one of several parts.
    static bool is_part(const std::string& path);
    // The same over bytes that outlive the object (the demo model, tests). `name` stands for the path in
    // messages.
    static Gguf from_memory(std::span<const uint8_t> bytes, std::string name);

    const std::string& name() const { return name_; }
    std::vector<std::string> files() const;  // paths of all parts; empty after from_memory()
    uint64_t file_bytes() const;             // over all parts
    uint32_t version() const { return version_; }

    // Null when absent.
    const Value* find(std::string_view key) const;
    // Scalars of any number type, or bool; Error when absent or of another type, with the key's name.
    int64_t integer(std::string_view key) const;
    double number(std::string_view key) const;
    std::string_view string(std::string_view key) const;
    int64_t integer_or(std::string_view key, int64_t fallback) const;
    double number_or(std::string_view key, double fallback) const;
    std::string_view string_or(std::string_view key, std::string_view fallback) const;
    // Arrays; a scalar is an array of one. Error as above.
    std::vector<int64_t> integers(std::string_view key) const;
    std::vector<float> numbers(std::string_view key) const;
    const std::vector<std::string_view>& strings(std::string_view key) const;

    const Tensor* find_tensor(std::string_view name) const;
    const std::vector<Tensor>& tensors() const { return tensors_; }
    const std::vector<std::pair<std::string_view, Value>>& values() const { return values_; }

  private:
    struct Part;  // one mapped file
    void read_part(std::shared_ptr<Part> part);

    std::string name_;
    uint32_t version_ = 0;
    std::vector<std::shared_ptr<Part>> parts_;
    std::vector<std::pair<std::string_view, Value>> values_;  // in file order
    std::vector<Tensor> tensors_;                             // in file order
    std::map<std::string_view, size_t> value_idx_, tensor_idx_;
};

// Reads a scalar number as double or as integer (bool as 0 or 1); the caller has checked is_number().
double to_double(const Value& value);
int64_t to_integer(const Value& value);
// Item i of an array of numbers.
double item_to_double(const Value& value, uint64_t i);

// What a key can be set to when writing.
using KeyValue = std::variant<bool, uint32_t, int32_t, uint64_t, float, std::string, std::vector<std::string>,
                              std::vector<int32_t>, std::vector<float>, std::vector<bool>>;

// Writes a version 3 file in one pass: keys and tensor shapes first, then each tensor's bytes in the declared
// order. The bytes go to `path`.part, which finish() renames; a writer that is destroyed before leaves no
// file.
class GgufWriter {
  public:
    explicit GgufWriter(const std::string& path);  // a symbolic link stands for the file that it names
    ~GgufWriter();
    GgufWriter(const GgufWriter&) = delete;
    GgufWriter& operator=(const GgufWriter&) = delete;

    void set(const std::string& key, KeyValue value);
    void copy(std::string_view key, const Value& value);  // a key of another file, its type kept
    void declare(const std::string& name, Type type, std::span<const int64_t> ne);
    // Writes the header; no set() or declare() after it.
    void begin();
    // The next bytes of the current tensor, any piece size; padding is added after its last byte.
    void write(std::span<const uint8_t> bytes);
    // Calls check() with the path of the complete `path`.part, then renames that. Error if bytes that were
    // declared are missing, the disk is full or check() throws.
    void finish(const std::function<void(const std::string& path)>& check = {});
    uint64_t total_bytes() const { return total_bytes_; }  // of all tensors, after begin()

  private:
    struct Declared {
        std::string name;
        Type type;
        std::vector<int64_t> ne;
        uint64_t bytes, offset;
    };
    void put(const void* data, size_t bytes);

    std::string path_, target_, part_path_;
    std::FILE* file_ = nullptr;
    std::map<std::string, size_t> key_idx_;
    std::vector<std::pair<std::string, std::string>> keys_;  // name, encoded type and value
    std::vector<Declared> tensors_;
    size_t current_ = 0;
    uint64_t current_done_ = 0, total_bytes_ = 0;
};

}  // namespace easel
