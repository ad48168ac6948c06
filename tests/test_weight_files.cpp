// Tests of GgufWriter and SafeTensors: files that are written and read back, and files that must be refused.
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "../src/safetensors.h"
#include "catch.h"
#include "files.h"
#include "gguf.h"
#include "whole_file.h"

using namespace easel;
namespace fs = std::filesystem;

namespace {

std::span<const uint8_t> bytes_of(const std::vector<float>& v) {
    return {reinterpret_cast<const uint8_t*>(v.data()), v.size() * sizeof(float)};
}

}  // namespace

TEST_CASE("a written file reads back: keys of every kind, tensors, padding") {
    const TempDir dir;
    const std::string path = dir / "a.gguf";
    const std::vector<float> odd{1, 2, 3}, even(64, 0.5f);
    {
        GgufWriter writer(path);
        writer.set("general.architecture", std::string("x"));
        writer.set("k.bool", true);
        writer.set("k.u32", uint32_t{4000000000});
        writer.set("k.i32", int32_t{-5});
        writer.set("k.u64", uint64_t{1} << 40);
        writer.set("k.f32", 0.25f);
        writer.set("k.strings", std::vector<std::string>{"", "b c", "\u2581"});
        writer.set("k.i32s", std::vector<int32_t>{-1, 7});
        writer.set("k.f32s", std::vector<float>{});
        writer.set("k.bools", std::vector<bool>{true, false, true});
        writer.set("k.i32", int32_t{-6});  // the later value, in the earlier place
        writer.declare("odd", Type::F32, std::vector<int64_t>{3});
        writer.declare("even", Type::F32, std::vector<int64_t>{32, 2});
        writer.begin();
        CHECK(writer.total_bytes() == 12 + 256);
        writer.write(bytes_of(odd).first(5));
        writer.write(bytes_of(odd).subspan(5));
        writer.write(bytes_of(even));
        CHECK(!fs::exists(path));
        writer.finish();
    }
    CHECK(!fs::exists(path + ".part"));
    const Gguf file = Gguf::open(path);
    CHECK(file.version() == 3);
    CHECK(file.values().size() == 10);
    CHECK(file.values()[3].first == "k.i32");
    CHECK(file.string("general.architecture") == "x");
    CHECK(file.find("k.bool")->type == ValueType::Bool);
    CHECK(file.integer("k.bool") == 1);
    CHECK(file.integer("k.u32") == 4000000000);
    CHECK(file.integer("k.i32") == -6);
    CHECK(file.integer("k.u64") == int64_t{1} << 40);
    CHECK(file.number("k.f32") == 0.25);
    CHECK(file.strings("k.strings") == std::vector<std::string_view>{"", "b c", "\u2581"});
    CHECK(file.integers("k.i32s") == std::vector<int64_t>{-1, 7});
    CHECK(file.numbers("k.f32s").empty());
    CHECK(file.integers("k.bools") == std::vector<int64_t>{1, 0, 1});
    CHECK(file.find_tensor("odd")->shape() == "[3]");
    CHECK(values_of(*file.find_tensor("odd")) == odd);
    CHECK(values_of(*file.find_tensor("even")) == even);

    // Every key copied, into a file of another alignment: the same keys, byte for byte.
    {
        GgufWriter writer(dir / "b.gguf");
        for (const auto& [key, value] : file.values()) writer.copy(key, value);
        writer.set("general.alignment", uint32_t{128});
        writer.declare("odd", Type::F32, std::vector<int64_t>{3});
        writer.declare("even", Type::F32, std::vector<int64_t>{32, 2});
        writer.begin();
        writer.write(bytes_of(odd));
        writer.write(bytes_of(even));
        writer.finish();
    }
    const Gguf copy = Gguf::open(dir / "b.gguf");
    for (const auto& [key, value] : file.values()) {
        const Value* other = copy.find(key);
        REQUIRE(other);
        CHECK(other->type == value.type);
        CHECK(std::equal(value.data, value.end, other->data, other->end));
    }
    CHECK(values_of(*copy.find_tensor("even")) == even);
}

TEST_CASE("a writer that does not finish leaves nothing, and says what is wrong") {
    const TempDir dir;
    const std::string path = dir / "a.gguf";
    const std::vector<float> values(8);
    {
        GgufWriter writer(path);
        writer.declare("t", Type::F32, std::vector<int64_t>{8});
        check_has(error_of([&] { writer.declare("u", Type::Q8_0, std::vector<int64_t>{33}); }),
                  {"u", "33", "Q8_0"});
        check_has(error_of([&] {
                      writer.declare("u", Type::F32, std::vector<int64_t>{1 << 30, 1 << 30});
                  }),
                  {"u", "2^48"});
        check_has(error_of([&] { writer.declare("u", Type::F32, std::vector<int64_t>{}); }),
                  {"u", "0 dimensions"});
        check_has(error_of([&] {
                      writer.declare("u", Type::F32, std::vector<int64_t>{4, 0});
                  }),
                  {"u", "[4, 0]", "1 to 2^48"});
        check_has(error_of([&] { writer.finish(); }), {"finish() without begin()"});
        for (const uint32_t alignment : {4u, 48u, 1u << 21}) {
            writer.set("general.alignment", alignment);
            check_has(error_of([&] { writer.begin(); }), {"general.alignment", "a power of two from 8"});
        }
        writer.set("general.alignment", uint32_t{32});
        writer.begin();
        check_has(error_of([&] { writer.write({}); }), {"an empty piece"});
        writer.write(bytes_of(values).first(12));
        check_has(error_of([&] { writer.finish(); }), {"a.gguf", "t", "12 of 32"});
        check_has(error_of([&] { writer.write(bytes_of(values)); }), {"t", "32"});
        writer.write(bytes_of(values).subspan(12));
        check_has(error_of([&] { writer.write(bytes_of(values)); }), {"more bytes than were declared"});
    }
    CHECK(fs::is_empty(dir.path()));
    check_has(error_of([&] { GgufWriter writer(dir / "no/such/a.gguf"); }),
              {"no/such/a.gguf: cannot be written"});

    GgufWriter twice(path);
    twice.declare("t", Type::F32, std::vector<int64_t>{8});
    twice.declare("t", Type::F32, std::vector<int64_t>{8});
    check_has(error_of([&] { twice.begin(); }), {"t", "twice"});
}

TEST_CASE("a file is written by one at a time") {
    const TempDir dir;
    const std::string path = dir / "a.gguf";
    const auto write = [&](GgufWriter& writer) {
        writer.declare("t", Type::F32, std::vector<int64_t>{1});
        writer.begin();
        writer.write(bytes_of(std::vector<float>{1}));
    };
    {
        GgufWriter first(path);
        write(first);
        check_has(error_of([&] { GgufWriter second(path); }), {"a.gguf: is being written by another"});
        first.finish();
    }
    CHECK(Gguf::open(path).tensors().size() == 1);
    GgufWriter(dir / "a.gguf");  // given up: the name is free
    GgufWriter third(path);
    write(third);
    third.finish();

    const auto open_text = [&] { return open_alone(dir / "text", "text"); };
    std::FILE* file = open_text();
    check_has(error_of([&] { open_text(); }), {"text: is being written by another"});
    std::fputs("long", file);
    std::fclose(file);
    std::fclose(open_text());
    CHECK(fs::file_size(dir / "text") == 0);
    // A name that a program makes up may be a link to somebody's file; one that a user gives is meant.
    fs::create_symlink(dir / "text", dir / "link");
    check_has(error_of([&] { open_alone(dir / "link", "text"); }),
              {"link: cannot be written: Too many levels"});
    std::fclose(open_alone(dir / "link", dir / "link"));
    std::FILE* null = open_alone("/dev/null", "null");  // a device is for all
    std::fclose(open_alone("/dev/null", "null"));
    std::fclose(null);
}

TEST_CASE("hostile safetensors files are refused") {
    const TempDir dir;
    const auto open = [&](const std::string& header, size_t data_bytes, int64_t length = -1) {
        const uint64_t n = length < 0 ? header.size() : static_cast<uint64_t>(length);
        write_file(dir / "x.safetensors", std::string(reinterpret_cast<const char*>(&n), 8) + header +
                                              std::string(data_bytes, '\1'));
        return error_of([&] { SafeTensors::open_file(dir / "x.safetensors"); });
    };
    const std::string good = R"({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}})";
    CHECK(open(good, 24) == "");
    const SafeTensors file = SafeTensors::open_file(dir / "x.safetensors");
    REQUIRE(file.find("a"));
    CHECK(file.find("a")->shape == std::vector<int64_t>{2, 3});
    CHECK(file.find("a")->bytes == 24);
    CHECK(file.find("a")->data[0] == 1);
    CHECK(!file.find("b"));

    check_has(open(good, 24, 1 << 20), {"x.safetensors", "header length", "1048576"});
    check_has(open(good, 24, INT64_MAX), {"header length"});
    check_has(open(good, 24, 10), {"not JSON"});
    check_has(open(good, 23), {"a", "[0, 24]", "23"});
    check_has(open("[1, 2]", 0), {"not a JSON object"});
    check_has(open(R"({"a": 5})", 0), {"a", "object"});
    const auto entry = [&](const char* dtype, const char* shape, const char* offsets) {
        return open(fmt::format(R"({{"a": {{"dtype": "{}", "shape": {}, "data_offsets": {}}}}})", dtype,
                                shape, offsets),
                    24);
    };
    check_has(entry("F8_E4M3", "[24]", "[0, 24]"), {"a", "F8_E4M3", "F32, F16 or BF16"});
    check_has(entry("F32", "[2, 3]", "[0, 20]"), {"a", "20", "expected 24"});
    check_has(entry("F32", "[2, 3]", "[24, 0]"), {"a", "[24, 0]"});
    check_has(entry("F32", "[2, 3]", "[0]"), {"a", "[0]"});
    check_has(open(good, 24, static_cast<int64_t>(good.size()) + 24 + 1), {"header length"});
    check_has(entry("F32", "[2, -3]", "[0, 24]"), {"a", "shape", "whole numbers"});
    check_has(entry("F32", "[2.5]", "[0, 24]"), {"a", "shape", "whole numbers"});
    check_has(entry("F32", "6", "[0, 24]"), {"a", "no list shape"});
    check_has(entry("F32", "[4294967296, 4294967296, 4]", "[0, 24]"), {"a", "overflows"});
    check_has(entry("F32", "[1,1,1,1,1,1,1,1,6]", "[0, 24]"), {"a", "9 dimensions"});
    check_has(entry("F32", "[6]", "[18446744073709551592, 18446744073709551615]"), {"a", "whole numbers"});
    check_has(open(R"({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
                       "b": {"dtype": "F16", "shape": [4], "data_offsets": [12, 20]}})",
                   24),
              {"a and b overlap"});
    check_has(open(R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                       "a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}})",
                   24),
              {"a appears twice"});
    write_file(dir / "short.safetensors", "1234");
    check_has(error_of([&] { SafeTensors::open_file(dir / "short.safetensors"); }), {"at least 8 bytes"});
    check_has(error_of([&] { SafeTensors::open_folder(dir.path()); }), {"expected model.safetensors"});
    for (const char* shard : {"../x.safetensors", "..", ""}) {
        write_file(dir / "model.safetensors.index.json",
                   fmt::format(R"({{"weight_map": {{"a": "{}"}}}})", shard));
        check_has(error_of([&] { SafeTensors::open_folder(dir.path()); }), {"a", "without a path"});
    }
    write_file(dir / "model.safetensors.index.json", R"({"weight_map": {"b": "x.safetensors"}})");
    open(good, 24);
    check_has(error_of([&] { SafeTensors::open_folder(dir.path()); }), {"x.safetensors", "b", "not in it"});

    // A tensor counts where the index has it; without an index, all of model*.safetensors and no other file.
    fs::rename(dir / "x.safetensors", dir / "model-1.safetensors");
    fs::copy(dir / "model-1.safetensors", dir / "model-2.safetensors");
    open(R"({"c": {"dtype": "F16", "shape": [6], "data_offsets": [0, 12]},
             "a": {"dtype": "F16", "shape": [6], "data_offsets": [12, 24]}})",
         24);
    write_file(dir / "model.safetensors.index.json",
               R"({"weight_map": {"a": "model-1.safetensors", "c": "x.safetensors"}})");
    CHECK(SafeTensors::open_folder(dir.path()).tensors().size() == 2);
    fs::remove(dir / "model.safetensors.index.json");
    check_has(error_of([&] { SafeTensors::open_folder(dir.path()); }), {"a is in another file too"});
    fs::remove(dir / "model-2.safetensors");
    CHECK(SafeTensors::open_folder(dir.path()).tensors().size() == 1);
}

TEST_CASE("a file is read whole, up to so many bytes") {
    const TempDir dir;
    dir.write("five", "12345");
    CHECK(read_file(dir / "five", 5) == "12345");
    check_has(error_of([&] { read_file(dir / "five", 4); }), {"five: is longer than 4 bytes"});
    check_has(error_of([&] { read_file("/dev/zero", 1 << 20); }),
              {"/dev/zero: is longer than 1048576 bytes"});
}
