// test_gguf.cpp: the GGUF reader: every value type, what the accessors accept, and that a broken file gets
// one message that says what is wrong and where, never a crash.
#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "catch.h"
#include "check.h"
#include "files.h"
#include "gguf_tools.h"
#include "golden.h"
#include "make_gguf.h"
#include "model.h"

using namespace easel;

namespace {

// A file's fields one after the other; unlike MakeGguf it can say anything.
struct Raw {
    std::string s;

    // Counts of keys and tensors may be lies.
    static Raw header(uint64_t n_tensor, uint64_t n_key, uint32_t version = 3) {
        Raw r;
        r.s = "GGUF";
        return r.put(version).put(n_tensor).put(n_key);
    }
    template <class T>
    Raw& put(T v) {
        s.append(reinterpret_cast<const char*>(&v), sizeof v);
        return *this;
    }
    Raw& text(std::string_view t) {
        put<uint64_t>(t.size());
        s += t;
        return *this;
    }
    Raw& u32_key(std::string_view name, uint32_t value) { return text(name).put<uint32_t>(4).put(value); }
    Raw& tensor(std::string_view name, const std::vector<uint64_t>& ne, uint32_t type, uint64_t offset) {
        text(name).put(static_cast<uint32_t>(ne.size()));
        for (uint64_t n : ne) put(n);
        return put(type).put(offset);
    }
    Raw& pad(size_t alignment = 32) {
        s.resize((s.size() + alignment - 1) / alignment * alignment);
        return *this;
    }
    Raw& zeros(size_t n) {
        s.append(n, '\0');
        return *this;
    }
};

template <class T>
std::string typed(ValueType type, T v) {
    return Raw().put(static_cast<uint32_t>(type)).put(v).s;
}

template <class T>
std::string typed_array(ValueType item, const std::vector<T>& items) {
    Raw r;
    r.put(static_cast<uint32_t>(ValueType::Array)).put(static_cast<uint32_t>(item));
    r.put<uint64_t>(items.size());
    for (const T& v : items) r.put(v);
    return r.s;
}

template <class F>
std::string message_of(F&& f) {
    try {
        f();
    } catch (const Error& e) {
        return e.what();
    }
    return "(no error)";
}

// What opening `bytes` as "test" says.
std::string open_message(std::string_view bytes) {
    const Guarded guarded(bytes);
    return message_of([&] { read_everything(Gguf::from_memory(guarded.bytes(), "test")); });
}

std::string text_of(const std::vector<uint8_t>& bytes) {
    return {bytes.begin(), bytes.end()};
}

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

// Keys of several kinds and two tensors; the last ends with the file.
std::string small_file() {
    MakeGguf make;
    make.set("general.architecture", std::string("none"));
    make.set("a.number", uint32_t{7});
    make.set("a.strings", std::vector<std::string>{"one", "", "three"});
    make.set("a.floats", std::vector<float>{1, 2.5f});
    make.tensor("x.weight", Type::F32, {3}, std::string(12, 'x'));
    make.tensor("y.weight", Type::Q8_0, {32, 16}, std::string(34 * 16, 'y'));
    return text_of(make.bytes());
}

}  // namespace

TEST_CASE("gguf: versions 2 and 3 read the same") {
    std::string file = small_file();
    for (uint32_t version : {2u, 3u}) {
        file[4] = static_cast<char>(version);
        const Guarded bytes(file);
        const Gguf gguf = Gguf::from_memory(bytes.bytes(), "test");
        CHECK(gguf.version() == version);
        CHECK(gguf.name() == "test");
        CHECK(gguf.file_bytes() == file.size());
        CHECK(gguf.values().size() == 4);
        CHECK(gguf.string("general.architecture") == "none");
        CHECK(gguf.integer("a.number") == 7);
        CHECK(gguf.strings("a.strings") == std::vector<std::string_view>{"one", "", "three"});
        CHECK(gguf.numbers("a.floats") == std::vector<float>{1, 2.5f});
    }
}

TEST_CASE("gguf: tensors have the shape, type and bytes of the file") {
    const std::string file = small_file();
    const Guarded bytes(file);
    const Gguf gguf = Gguf::from_memory(bytes.bytes(), "test");
    REQUIRE(gguf.tensors().size() == 2);
    CHECK(gguf.find_tensor("z.weight") == nullptr);
    const Tensor* x = gguf.find_tensor("x.weight");
    REQUIRE(x == &gguf.tensors()[0]);
    CHECK(x->name == "x.weight");
    CHECK(x->type == Type::F32);
    CHECK(x->n_dims == 1);
    CHECK(x->shape() == "[3]");
    CHECK(x->n_values() == 3);
    CHECK(x->n_rows() == 1);
    CHECK(x->bytes == 12);
    CHECK(std::string(reinterpret_cast<const char*>(x->data), x->bytes) == std::string(12, 'x'));
    const Tensor* y = gguf.find_tensor("y.weight");
    REQUIRE(y == &gguf.tensors()[1]);
    CHECK(y->type == Type::Q8_0);
    CHECK(y->shape() == "[32, 16]");
    CHECK(y->ne == std::array<int64_t, 4>{32, 16, 1, 1});
    CHECK(y->n_rows() == 16);
    CHECK(y->bytes == 34 * 16);
    CHECK(y->data + y->bytes == bytes.bytes().data() + file.size());
}

TEST_CASE("gguf: a file may be empty of keys and of tensors") {
    const Guarded bytes(Raw::header(0, 0).s);
    const Gguf gguf = Gguf::from_memory(bytes.bytes(), "test");
    CHECK(gguf.values().empty());
    CHECK(gguf.tensors().empty());
}

TEST_CASE("gguf: every number type, alone and in an array") {
    struct Case {
        const char* name;
        ValueType type;
        std::string one, many;
        double value, second;
    };
    const auto number = [](const char* name, ValueType type, auto a, auto b) {
        return Case{name, type, typed(type, a), typed_array<decltype(a)>(type, {a, b}), double(a), double(b)};
    };
    const Case cases[] = {
        number("u8", ValueType::U8, uint8_t{200}, uint8_t{0}),
        number("i8", ValueType::I8, int8_t{-100}, int8_t{127}),
        number("u16", ValueType::U16, uint16_t{60000}, uint16_t{1}),
        number("i16", ValueType::I16, int16_t{-30000}, int16_t{2}),
        number("u32", ValueType::U32, uint32_t{4000000000}, uint32_t{3}),
        number("i32", ValueType::I32, int32_t{-2000000000}, int32_t{4}),
        number("f32", ValueType::F32, 1.5f, -0.25f),
        number("bool", ValueType::Bool, uint8_t{1}, uint8_t{0}),
        number("u64", ValueType::U64, uint64_t{1} << 52, uint64_t{5}),
        number("i64", ValueType::I64, -(int64_t{1} << 52), int64_t{6}),
        number("f64", ValueType::F64, 1e300, -2.0),
    };
    MakeGguf make;
    for (const Case& c : cases) {
        make.set_raw(c.name, c.one);
        make.set_raw(std::string(c.name) + "s", c.many);
    }
    const Guarded bytes(text_of(make.bytes()));
    const Gguf gguf = Gguf::from_memory(bytes.bytes(), "test");
    for (const Case& c : cases) {
        INFO(c.name);
        const bool real = c.type == ValueType::F32 || c.type == ValueType::F64;
        const Value* v = gguf.find(c.name);
        REQUIRE(v);
        CHECK(v->type == c.type);
        CHECK(std::string(value_type_name(v->type)) == c.name);
        CHECK(v->is_number());
        CHECK_FALSE(v->is_array());
        CHECK(v->count == 1);
        CHECK(v->end - v->data == static_cast<ptrdiff_t>(c.one.size()) - 4);
        CHECK(to_double(*v) == c.value);
        CHECK(gguf.number(c.name) == c.value);
        CHECK(gguf.number_or(c.name, 9) == c.value);
        CHECK(gguf.numbers(c.name) == std::vector<float>{static_cast<float>(c.value)});

        const std::string many = std::string(c.name) + "s";
        const Value* a = gguf.find(many);
        REQUIRE(a);
        CHECK(a->is_array());
        CHECK_FALSE(a->is_number());
        CHECK(a->item == c.type);
        CHECK(a->count == 2);
        CHECK(a->end - a->data == static_cast<ptrdiff_t>(c.many.size()) - 16);
        CHECK(item_to_double(*a, 0) == c.value);
        CHECK(item_to_double(*a, 1) == c.second);
        CHECK(gguf.numbers(many) == std::vector<float>{float(c.value), float(c.second)});
        if (real) {
            CHECK(message_of([&] { gguf.integer(c.name); }) ==
                  fmt::format("test: key {} is of type {}, expected an integer", c.name, c.name));
            CHECK(message_of([&] { gguf.integers(many); }) ==
                  fmt::format("test: key {} is an array of {}, expected an array of integers", many, c.name));
        } else {
            CHECK(gguf.integer(c.name) == int64_t(c.value));
            CHECK(gguf.integer_or(c.name, 9) == int64_t(c.value));
            CHECK(gguf.integers(c.name) == std::vector<int64_t>{int64_t(c.value)});
            CHECK(gguf.integers(many) == std::vector<int64_t>{int64_t(c.value), int64_t(c.second)});
        }
    }
}

TEST_CASE("gguf: numbers at the edges of their types") {
    MakeGguf make;
    make.set("big", UINT64_MAX);
    make.set_raw("bigs", typed_array<uint64_t>(ValueType::U64, {UINT64_MAX, uint64_t{1} << 63}));
    make.set_raw("low", typed(ValueType::I64, INT64_MIN));
    make.set_raw("odd bool", typed(ValueType::Bool, uint8_t{2}));
    make.set_raw("odd bools", typed_array<uint8_t>(ValueType::Bool, {255, 0}));
    make.set("nan", std::numeric_limits<float>::quiet_NaN());
    make.set_raw("huge", typed(ValueType::F64, 1e30));
    const Guarded bytes(text_of(make.bytes()));
    const Gguf gguf = Gguf::from_memory(bytes.bytes(), "test");
    CHECK(gguf.integer("big") == INT64_MAX);  // saturated: a range check downstream refuses it
    CHECK(gguf.integers("bigs") == std::vector<int64_t>{INT64_MAX, INT64_MAX});
    CHECK(gguf.integer("low") == INT64_MIN);
    CHECK(gguf.integer("odd bool") == 1);
    CHECK(gguf.integers("odd bools") == std::vector<int64_t>{1, 0});
    CHECK(std::isnan(gguf.number("nan")));
    CHECK(to_integer(*gguf.find("nan")) == INT64_MIN);
    CHECK(to_integer(*gguf.find("huge")) == INT64_MAX);
}

TEST_CASE("gguf: accessors name the key, what was expected and what was found") {
    MakeGguf make;
    make.set("s", std::string("text"));
    make.set("n", uint32_t{3});
    make.set("f", 0.5f);
    make.set("ss", std::vector<std::string>{"a"});
    make.set("ns", std::vector<int32_t>{1, 2});
    make.set("none", std::vector<int32_t>{});
    make.set("no text", std::vector<std::string>{});
    const Guarded bytes(text_of(make.bytes()));
    const Gguf g = Gguf::from_memory(bytes.bytes(), "test");

    CHECK(g.find("absent") == nullptr);
    CHECK(g.integer_or("absent", -4) == -4);
    CHECK(g.number_or("absent", 0.25) == 0.25);
    CHECK(g.string_or("absent", "else") == "else");
    CHECK(g.string_or("s", "else") == "text");
    CHECK(g.integers("none").empty());
    CHECK(g.numbers("none").empty());
    CHECK(g.strings("no text").empty());

    const auto check = [](const std::string& expected, auto f) { CHECK(message_of(f) == expected); };
    check("test: key absent is missing, expected an integer", [&] { g.integer("absent"); });
    check("test: key absent is missing, expected a number", [&] { g.number("absent"); });
    check("test: key absent is missing, expected a string", [&] { g.string("absent"); });
    check("test: key absent is missing, expected integers", [&] { g.integers("absent"); });
    check("test: key absent is missing, expected numbers", [&] { g.numbers("absent"); });
    check("test: key absent is missing, expected an array of strings", [&] { g.strings("absent"); });
    check("test: key s is of type string, expected an integer", [&] { g.integer("s"); });
    check("test: key s is of type string, expected an integer", [&] { g.integers("s"); });
    check("test: key s is of type string, expected a number", [&] { g.number("s"); });
    check("test: key s is of type string, expected a number", [&] { g.numbers("s"); });
    check("test: key s is string, expected an array of strings", [&] { g.strings("s"); });
    check("test: key f is of type f32, expected an integer", [&] { g.integer("f"); });
    check("test: key n is of type u32, expected a string", [&] { g.string("n"); });
    check("test: key ns is of type an array of i32, expected an integer", [&] { g.integer("ns"); });
    check("test: key ns is of type an array of i32, expected a number", [&] { g.number("ns"); });
    check("test: key ns is of type an array of i32, expected a string", [&] { g.string("ns"); });
    check("test: key ns is an array of i32, expected an array of strings", [&] { g.strings("ns"); });
    check("test: key ss is an array of string, expected an array of integers", [&] { g.integers("ss"); });
    check("test: key ss is an array of string, expected an array of numbers", [&] { g.numbers("ss"); });
    // A fallback is for what is absent, not for what is wrong.
    check("test: key s is of type string, expected an integer", [&] { g.integer_or("s", 1); });
    check("test: key s is of type string, expected a number", [&] { g.number_or("s", 1); });
    check("test: key n is of type u32, expected a string", [&] { g.string_or("n", ""); });
}

TEST_CASE("gguf: general.alignment moves the tensor data") {
    for (uint32_t alignment : {8u, 32u, 64u, 4096u, 1u << 20}) {
        Raw r = Raw::header(2, 1).u32_key("general.alignment", alignment);
        r.tensor("a", {2}, 0, 0).tensor("b", {2}, 0, alignment).pad(alignment);
        const size_t data_start = r.s.size();
        r.put(1.0f).put(2.0f).pad(alignment).put(3.0f).put(4.0f);
        const Guarded bytes(r.s);
        const Gguf gguf = Gguf::from_memory(bytes.bytes(), "test");
        CHECK(gguf.find_tensor("a")->data == bytes.bytes().data() + data_start);
        CHECK(gguf.find_tensor("b")->data == bytes.bytes().data() + data_start + alignment);
        read_everything(gguf);
    }
    const auto refused = [](const std::string& value) {
        return open_message(Raw::header(0, 1).text("general.alignment").s + value);
    };
    for (int64_t bad : {0, 1, 4, 7, 12, 33, 1 << 21, -32})
        CHECK(refused(typed(ValueType::I64, bad)) ==
              fmt::format("test: key general.alignment is {}, expected a power of two from 8 to 2^20", bad));
    CHECK(contains(refused(typed(ValueType::U64, UINT64_MAX)), "expected a power of two"));
    CHECK(refused(typed(ValueType::String, uint64_t{0})) ==
          "test: key general.alignment is of type string, expected a number");
}

TEST_CASE("gguf: a key or tensor that stands twice is refused") {
    CHECK(open_message(Raw::header(0, 2).u32_key("k", 1).u32_key("k", 1).s) == "test: key k appears twice");
    Raw r = Raw::header(2, 0).tensor("t", {2}, 0, 0).tensor("t", {2}, 0, 0).pad().zeros(8);
    CHECK(open_message(r.s) == "test: tensor t appears twice");
}

TEST_CASE("gguf: what a broken header is told") {
    const std::string mib64 = std::to_string(1 << 26);
    const std::string big = std::to_string(UINT64_MAX);
    const auto check = [](const std::string& bytes, const std::string& expected) {
        CHECK(open_message(bytes) == "test: " + expected);
    };
    check("", "not a GGUF file: expected at least 24 bytes, found 0");
    check("GGUF", "not a GGUF file: expected at least 24 bytes, found 4");
    check(std::string("GGML").append(20, '\0'),
          "not a GGUF file: expected the bytes \"GGUF\" at offset 0, found 0x4c4d4747");
    check("<!DOCTYPE html><html>Not found</html>",
          "not a GGUF file: expected the bytes \"GGUF\" at offset 0, found 0x4f44213c");
    check(Raw::header(0, 0, 1).s, "GGUF version 1 at offset 4, expected 2 or 3");
    check(Raw::header(0, 0, 4).s, "GGUF version 4 at offset 4, expected 2 or 3");
    check(Raw::header(0, 0, 0x03000000).s,
          "GGUF version 50331648 at offset 4, expected 2 or 3 (a big-endian file?)");
    check(Raw::header(UINT64_MAX, 0).s, "claims " + big + " tensors at offset 8, expected at most 1048576");
    check(Raw::header(0, UINT64_MAX).s, "claims " + big + " keys at offset 16, expected at most 65536");
    check(Raw::header(0, 1).s, "truncated: a key needs 8 bytes at offset 24, the file has 0 left");
    check(Raw::header(1, 0).s, "truncated: a tensor name needs 8 bytes at offset 24, the file has 0 left");
    // Lengths of strings.
    check(Raw::header(0, 1).put(UINT64_MAX).s,
          "the length of a key at offset 24 is " + big + ", expected at most " + mib64);
    check(Raw::header(0, 1).put<uint64_t>(1000).s,
          "truncated: a key needs 1000 bytes at offset 32, the file has 0 left");
    check(Raw::header(0, 1).text("k").put<uint32_t>(8).put(UINT64_MAX - 7).s,
          "the length of a string at offset 37 is 18446744073709551608, expected at most " + mib64);
    check(Raw::header(0, 1).text("k").put<uint32_t>(8).put<uint64_t>(9).s,
          "truncated: a string needs 9 bytes at offset 45, the file has 0 left");
    // Value types.
    check(Raw::header(0, 1).text("k").put<uint32_t>(13).s,
          "key k has value type 13 at offset 33, expected 0 to 12");
    check(Raw::header(0, 1).text("k").put(UINT32_MAX).s,
          "key k has value type 4294967295 at offset 33, expected 0 to 12");
    check(Raw::header(0, 1).text("k").put<uint32_t>(9).put<uint32_t>(13).s,
          "key k has value type 13 at offset 37, expected 0 to 12");
    check(Raw::header(0, 1).text("k").put<uint32_t>(9).put<uint32_t>(9).put<uint64_t>(0).s,
          "key k is an array of arrays, expected numbers or strings");
    // Counts of arrays; the second would wrap around to 0 bytes.
    check(Raw::header(0, 1).text("k").put<uint32_t>(9).put<uint32_t>(4).put<uint64_t>(3).put(1).s,
          "truncated: key k claims 3 items at offset 49, the file has 4 bytes left");
    check(Raw::header(0, 1).text("k").put<uint32_t>(9).put<uint32_t>(10).put(uint64_t{1} << 61).s,
          "truncated: key k claims 2305843009213693952 items at offset 49, the file has 0 bytes left");
    check(Raw::header(0, 1).text("k").put<uint32_t>(9).put<uint32_t>(8).put(UINT64_MAX).s,
          "key k claims " + big + " strings at offset 49, more than the file can hold");
    check(Raw::header(0, 1)
              .text("k")
              .put<uint32_t>(9)
              .put<uint32_t>(8)
              .put<uint64_t>(2)
              .text("")
              .text("")
              .s.substr(0, 60),
          "key k claims 2 strings at offset 49, more than the file can hold");
    // Names are shown so that they cannot break the line, and not at any length.
    check(Raw::header(0, 1).text("a\nb\x7f").put<uint32_t>(13).s,
          "key a\\x0ab\\x7f has value type 13 at offset 36, expected 0 to 12");
    check(Raw::header(0, 1).text(std::string(300, 'k')).put<uint32_t>(13).s,
          "key " + std::string(64, 'k') + "... has value type 13 at offset 332, expected 0 to 12");
}

TEST_CASE("gguf: what a broken tensor is told") {
    const auto check = [](Raw r, const std::string& expected) {
        CHECK(open_message(r.pad().zeros(256).s) == "test: " + expected);
    };
    const auto one = [](const std::vector<uint64_t>& ne, uint32_t type = 0, uint64_t offset = 0) {
        return Raw::header(1, 0).tensor("t", ne, type, offset);
    };
    CHECK(open_message(one({64}).pad().zeros(256).s) == "(no error)");
    check(one({}), "tensor t at offset 24 has 0 dimensions, expected 1 to 4");
    check(one({1, 1, 1, 1, 1}), "tensor t at offset 24 has 5 dimensions, expected 1 to 4");
    check(Raw::header(1, 0).text("t").put(UINT32_MAX),
          "tensor t at offset 24 has 4294967295 dimensions, expected 1 to 4");
    const auto shape = [](int d, uint64_t ne) {
        return fmt::format(
            "tensor t has dimension {} of {} values at offset 24, expected a shape of 1 to 2^48 values", d,
            ne);
    };
    const uint64_t one_ = 1;
    check(one({0}), shape(0, 0));
    check(one({4, 0}), shape(1, 0));
    check(one({UINT64_MAX}), shape(0, UINT64_MAX));
    check(one({one_ << 63}), shape(0, one_ << 63));
    check(one({(one_ << 40) + 1}), shape(0, (one_ << 40) + 1));
    check(one({one_ << 40, one_ << 9}), shape(1, one_ << 9));
    check(one({one_ << 32, one_ << 32}), shape(1, one_ << 32));  // 2^64 values: 0 after wrapping around
    check(one({one_ << 24, one_ << 24, one_ << 24, 4}), shape(2, one_ << 24));
    check(one({256}, 4), "tensor t has type 4, which easel does not read");
    check(one({256}, 16), "tensor t has type 16, which easel does not read");
    check(one({256}, UINT32_MAX), "tensor t has type 4294967295, which easel does not read");
    check(one({31}, 8), "tensor t has rows of 31 values, expected a multiple of 32 for Q8_0");
    check(one({32}, 12), "tensor t has rows of 32 values, expected a multiple of 256 for Q4_K");
    check(one({64}, 0, 16), "tensor t is at offset 16, expected a multiple of 32");
    check(one({64}, 0, UINT64_MAX), "tensor t is at offset 18446744073709551615, expected a multiple of 32");
    // Data of a tensor of one dimension starts at 64, of two at 96; 256 bytes of it.
    check(one({64}, 0, 32), "truncated: tensor t needs 256 bytes at offset 96, the file has 320 bytes");
    check(one({65}), "truncated: tensor t needs 260 bytes at offset 64, the file has 320 bytes");
    check(one({64}, 0, 1 << 20),
          "truncated: tensor t needs 256 bytes at offset 1048640, the file has 320 bytes");
    check(one({64}, 0, UINT64_MAX - 31),
          "truncated: tensor t needs 256 bytes at offset 18446744073709551615, the file has 320 bytes");
    check(one({one_ << 40, 256}),
          "truncated: tensor t needs 1125899906842624 bytes at offset 96, the file has 352 bytes");
    // A file that ends before its data begins.
    const Raw header = one({1});
    CHECK(open_message(header.s) ==
          fmt::format("test: truncated: tensor t needs 4 bytes at offset 64, the file has {} bytes",
                      header.s.size()));
}

TEST_CASE("gguf: a file cut at any length is refused") {
    const std::string file = small_file();
    REQUIRE(open_message(file) == "(no error)");
    for (size_t n = 0; n < file.size(); n++) {
        const std::string message = open_message(file.substr(0, n));
        INFO(n << " bytes: " << message);
        if (n < 24) {
            REQUIRE(message == fmt::format("test: not a GGUF file: expected at least 24 bytes, found {}", n));
            continue;
        }
        const bool cut =
            contains(message, ": truncated: ") || contains(message, "more than the file can hold");
        REQUIRE(cut);
        REQUIRE(contains(message, " at offset "));
    }
}

// A changed byte may well leave a valid file; then everything in it must be readable.
TEST_CASE("gguf: a file with any byte changed is refused or readable") {
    const std::string file = small_file();
    const size_t header = file.size() - 34 * 16;
    int n_refused = 0;
    for (size_t i = 0; i < header; i++)
        for (int change : {0x01, 0x80, 0xff}) {
            std::string changed = file;
            changed[i] = static_cast<char>(changed[i] ^ change);
            n_refused += open_message(changed) != "(no error)";
        }
    CHECK(n_refused > 200);
}

TEST_CASE("gguf: files that cannot be opened") {
    const TempDir dir;
    const auto message = [](const std::string& path) { return message_of([&] { Gguf::open(path); }); };
    CHECK(message(dir.path("absent.gguf")) ==
          dir.path("absent.gguf: cannot open the model file: No such file or directory"));
    CHECK(
        message(dir.path("")) ==
        dir.path("") +
            ": expected a GGUF file, found a folder; a Hugging Face folder is converted by `easel convert " +
            dir.path("") + " model.gguf --type q4_k_m`");
    CHECK(message("/dev/null") ==
          "/dev/null: expected a GGUF file, found something that is not a regular file");
    CHECK(message(dir.write("empty.gguf", "")) ==
          dir.path("empty.gguf: not a GGUF file: expected at least 24 bytes, found 0"));
    // Opening a pipe that nobody writes to must not wait for a writer.
    REQUIRE(mkfifo(dir.path("pipe").c_str(), 0600) == 0);
    CHECK(message(dir.path("pipe")) ==
          dir.path("pipe: expected a GGUF file, found something that is not a regular file"));
    CHECK(message(dir.write("whole.gguf", small_file())) == "(no error)");
}

namespace {

// One part of a split file: its tensor `name` holds `value`.
std::string part_bytes(int count, int n_tensor, const char* name, float value) {
    MakeGguf make;
    if (count) make.set("split.count", static_cast<uint32_t>(count));
    if (n_tensor) make.set("split.tensors.count", n_tensor);
    make.set("who", std::string(name));
    make.tensor(name, Type::F32, {1}, Raw().put(value).s);
    return text_of(make.bytes());
}

struct Split {
    TempDir dir;
    std::string path(int i) const { return dir.path(fmt::format("m-{:05}-of-00003.gguf", i)); }
    void write(int i, const std::string& bytes) { dir.write(fmt::format("m-{:05}-of-00003.gguf", i), bytes); }
    Split() {
        write(1, part_bytes(3, 3, "a", 1));
        write(2, part_bytes(3, 0, "b", 2));
        write(3, part_bytes(3, 0, "c", 3));
    }
    std::string message(int i = 1) const {
        return message_of([&] { Gguf::open(path(i)); });
    }
};

}  // namespace

TEST_CASE("gguf: of a split file any part may be named") {
    const Split split;
    for (int i : {1, 2, 3}) {
        const Gguf gguf = Gguf::open(split.path(i));
        REQUIRE(gguf.tensors().size() == 3);
        CHECK(gguf.files() == std::vector{split.path(1), split.path(2), split.path(3)});
        for (const auto& [name, value] : {std::pair{"a", 1.f}, {"b", 2.f}, {"c", 3.f}}) {
            float found = 0;
            std::memcpy(&found, gguf.find_tensor(name)->data, sizeof found);
            CHECK(found == value);
        }
        CHECK(gguf.string("who") == "a");  // keys are those of the first part
        CHECK(gguf.file_bytes() ==
              3 * std::filesystem::file_size(split.path(2)) +
                  (std::filesystem::file_size(split.path(1)) - std::filesystem::file_size(split.path(2))));
        read_everything(gguf);
    }
}

TEST_CASE("gguf: what a broken split file is told") {
    SECTION("a missing part") {
        Split split;
        std::filesystem::remove(split.path(2));
        for (int i : {1, 2, 3})
            CHECK(split.message(i) ==
                  split.path(2) + ": cannot open the model file: No such file or directory");
    }
    SECTION("a count that is not the name's") {
        Split split;
        split.write(1, part_bytes(4, 3, "a", 1));
        CHECK(split.message() ==
              split.path(1) + ": key split.count is 4, expected 3 as the file's name says");
    }
    SECTION("no count") {
        Split split;
        split.write(1, part_bytes(0, 3, "a", 1));
        CHECK(split.message() ==
              split.path(1) + ": key split.count is 0, expected 3 as the file's name says");
    }
    SECTION("a wrong total of tensors") {
        Split split;
        split.write(1, part_bytes(3, 4, "a", 1));
        CHECK(split.message(2) == split.path(2) + ": the 3 parts hold 3 tensors, expected 4");
    }
    SECTION("a part that repeats another's tensors") {
        Split split;
        split.write(3, part_bytes(3, 0, "b", 3));
        CHECK(split.message() == split.path(3) + ": tensor b appears twice");
    }
    SECTION("a truncated part") {
        Split split;
        split.write(3, part_bytes(3, 0, "c", 3).substr(0, 100));
        CHECK(contains(split.message(), split.path(3) + ": truncated: "));
    }
    SECTION("a part under another name") {
        Split split;
        std::filesystem::rename(split.path(1), split.dir.path("other.gguf"));
        const std::string other = split.dir.path("other.gguf");
        CHECK(message_of([&] { Gguf::open(other); }) ==
              other + ": is one of 3 parts, expected a name like NAME-00001-of-00003.gguf");
    }
    SECTION("one of three that claims to be all") {
        Split split;
        const std::string only = split.dir.path("m-00001-of-00001.gguf");
        std::filesystem::copy(split.path(1), only);
        CHECK(contains(message_of([&] { Gguf::open(only); }), ": key split.count is 3, expected 1"));
    }
    SECTION("absurdly many parts") {
        const std::string path = "x-00001-of-99999.gguf";
        CHECK(message_of([&] { Gguf::open(path); }) == path + ": names 99999 parts, expected at most 10000");
    }
}

// Names that only look like those of parts are names of whole files.
TEST_CASE("gguf: a name like a part's is no part") {
    const TempDir dir;
    for (const char* name : {"00001-of-00003.gguf", "m-00004-of-00003.gguf", "m-00000-of-00003.gguf",
                             "m-00001-of-00003.gguf.bak", "m-0001-of-00003.gguf", "m00001-of-00003.gguf"}) {
        INFO(name);
        CHECK(message_of([&] { Gguf::open(dir.write(name, small_file())); }) == "(no error)");
    }
    CHECK(message_of([&] { Gguf::open(dir.write("m-00001-of-00001.gguf", small_file())); }) == "(no error)");
}

TEST_CASE("gguf: each file of the broken collection gets its message") {
    std::ifstream list(fixture("broken/messages.txt"));
    REQUIRE(list.good());
    int n = 0;
    for (std::string line; std::getline(list, line); n++) {
        const size_t tab = line.find('\t');
        REQUIRE(tab != std::string::npos);
        const std::string path = fixture("broken/" + line.substr(0, tab)), expected = line.substr(tab + 1);
        REQUIRE(std::filesystem::file_size(path) <= 4096);
        const std::string message = message_of([&] {
            const auto file = std::make_shared<const Gguf>(Gguf::open(path));
            read_everything(*file);
            const Model model(file);
        });
        INFO(message);
        CHECK(contains(message, path + ": "));
        CHECK(contains(message, expected));
        CHECK_FALSE(contains(message, "\n"));
    }
    CHECK(n >= 15);
}
