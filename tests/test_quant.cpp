// test_quant.cpp: quant.h against a slow reading of SPEC section 6, one element at a time in double.
// A half, a scale and a code multiply exactly in double, and so does the one subtraction (50 bits), so
// rounding the double once gives the float32 that the formula of SPEC gives: everything that is read is
// compared bit by bit.
#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "catch.h"
#include "quant.h"

using namespace easel;

namespace {

constexpr Type all_types[] = {Type::F32,  Type::F16,    Type::BF16,   Type::Q4_0, Type::Q4_1, Type::Q5_0,
                              Type::Q5_1, Type::Q8_0,   Type::Q2_K,   Type::Q3_K, Type::Q4_K, Type::Q5_K,
                              Type::Q6_K, Type::IQ4_NL, Type::IQ4_XS, Type::MXFP4};
constexpr Type written_blocks[] = {Type::Q4_0, Type::Q4_1, Type::Q5_0, Type::Q5_1,
                                   Type::Q8_0, Type::Q4_K, Type::Q5_K, Type::Q6_K};

const float infinity = std::numeric_limits<float>::infinity();
const float not_a_number = std::numeric_limits<float>::quiet_NaN();

// ---------------------------------------------------------------- the slow reading

// The value of a binary format with a sign, n_exponent and n_fraction bits.
double slow_value(int code, int n_exponent, int n_fraction) {
    int exponent = code >> n_fraction & ((1 << n_exponent) - 1), fraction = code & ((1 << n_fraction) - 1);
    int bias = (1 << (n_exponent - 1)) - 1;
    double size;
    if (exponent == (1 << n_exponent) - 1)
        size = fraction ? double(not_a_number) : double(infinity);
    else if (exponent == 0)
        size = std::ldexp(fraction, 1 - bias - n_fraction);
    else
        size = std::ldexp((1 << n_fraction) + fraction, exponent - bias - n_fraction);
    return code >> (n_exponent + n_fraction) ? -size : size;
}
double slow_f16(int code) {
    return slow_value(code, 5, 10);
}
double slow_bf16(int code) {
    return slow_value(code, 8, 7);
}

// x to the nearest multiple of the format's spacing at x, ties to the even one; past `largest` it is
// infinite.
double slow_round(double x, int min_exponent, int n_fraction, double largest) {
    if (std::isnan(x) || std::isinf(x) || x == 0) return x;
    int exponent = std::max(std::ilogb(x), min_exponent);
    double spacing = std::ldexp(1, exponent - n_fraction);
    double rounded = std::nearbyint(x / spacing) * spacing;  // the default mode: ties to even
    return std::fabs(rounded) > largest ? std::copysign(double(infinity), x) : rounded;
}

int lo(uint8_t b) {
    return b & 15;
}
int hi(uint8_t b) {
    return b >> 4;
}
int u16(const uint8_t* p) {
    return p[0] + 256 * p[1];
}
double half(const uint8_t* p) {
    return slow_f16(u16(p));
}

// Nibble i of 32 as in all types of 32 elements.
int nibble(const uint8_t* qs, int i) {
    return i < 16 ? lo(qs[i]) : hi(qs[i - 16]);
}
int fifth_bit(const uint8_t* qh, int i) {
    return qh[i / 8] >> (i % 8) & 1;
}

int k_scale(const uint8_t* s, int i) {
    return i < 4 ? s[i] & 63 : (s[i + 4] & 15) | (s[i - 4] >> 6) << 4;
}
int k_min(const uint8_t* s, int i) {
    return i < 4 ? s[i + 4] & 63 : (s[i + 4] >> 4) | (s[i] >> 6) << 4;
}

// Element i of the block at b, as SPEC section 6 has it.
double slow_element(Type type, const uint8_t* b, int i) {
    static const int iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    static const int e2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    int h = i / 128, l = i % 32, quarter = i % 128 / 32, sub = i / 32;
    switch (type) {
        case Type::F32: {
            float f;
            std::memcpy(&f, b, 4);
            return f;
        }
        case Type::F16:
            return half(b);
        case Type::BF16:
            return slow_bf16(u16(b));
        case Type::Q4_0:
            return half(b) * (nibble(b + 2, i) - 8);
        case Type::Q4_1:
            return half(b) * nibble(b + 4, i) + half(b + 2);
        case Type::Q5_0:
            return half(b) * ((nibble(b + 6, i) | fifth_bit(b + 2, i) << 4) - 16);
        case Type::Q5_1:
            return half(b) * (nibble(b + 8, i) | fifth_bit(b + 4, i) << 4) + half(b + 2);
        case Type::Q8_0:
            return half(b) * static_cast<int8_t>(b[2 + i]);
        case Type::Q2_K: {
            int q = b[16 + 32 * h + l] >> (2 * quarter) & 3, s = b[i / 16];
            return half(b + 80) * (s & 15) * q - half(b + 82) * (s >> 4);
        }
        case Type::Q3_K: {
            const uint8_t* scales = b + 96;
            int m = 4 * h + quarter, q = (b[32 + 32 * h + l] >> (2 * quarter) & 3) - (b[l] >> m & 1 ? 0 : 4);
            int s = i / 16, low = s < 8 ? lo(scales[s]) : hi(scales[s - 8]);
            int sc = low | (scales[8 + s % 4] >> (2 * (s / 4)) & 3) << 4;
            return half(b + 108) * (sc - 32) * q;
        }
        case Type::Q4_K: {
            uint8_t byte = b[16 + 32 * (i / 64) + l];
            int q = sub % 2 ? hi(byte) : lo(byte);
            return half(b) * k_scale(b + 4, sub) * q - half(b + 2) * k_min(b + 4, sub);
        }
        case Type::Q5_K: {
            uint8_t byte = b[48 + 32 * (i / 64) + l];
            int q = (sub % 2 ? hi(byte) : lo(byte)) + 16 * (b[16 + l] >> sub & 1);
            return half(b) * k_scale(b + 4, sub) * q - half(b + 2) * k_min(b + 4, sub);
        }
        case Type::Q6_K: {
            uint8_t low = b[64 * h + (quarter % 2 ? l + 32 : l)], high = b[128 + 32 * h + l];
            int q = (quarter < 2 ? lo(low) : hi(low)) | (high >> (2 * quarter) & 3) << 4;
            return half(b + 208) * static_cast<int8_t>(b[192 + i / 16]) * (q - 32);
        }
        case Type::IQ4_NL:
            return half(b) * iq4[nibble(b + 2, i)];
        case Type::IQ4_XS: {
            int ls = (b[4 + sub / 2] >> (4 * (sub % 2)) & 15) | (u16(b + 2) >> (2 * sub) & 3) << 4;
            return half(b) * (ls - 32) * iq4[nibble(b + 8 + 16 * sub, l)];
        }
        case Type::MXFP4:
            return std::ldexp(e2m1[nibble(b + 1, i)], b[0] - 128);
    }
    return not_a_number;
}

float to_f32(
    double x) {  // a double past the range is infinite in float32; converting it as such is undefined
    return std::fabs(x) > double(FLT_MAX) && !std::isnan(x) ? std::copysign(infinity, float(x > 0) - 0.5f)
                                                            : float(x);
}

bool same(float a, float b) {
    return std::isnan(a) ? std::isnan(b) : std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

// ---------------------------------------------------------------- helpers of the writers' tests

std::vector<uint8_t> random_bytes(size_t n, uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<uint8_t> bytes(n);
    for (uint8_t& b : bytes) b = uint8_t(random());
    return bytes;
}

std::vector<float> normal_values(size_t n, uint32_t seed, float sigma = 0.02f, float mean = 0) {
    std::mt19937 random(seed);
    std::vector<float> x(n);
    for (float& v : x) {  // Box-Muller: std::normal_distribution differs between libraries
        double radius = std::sqrt(-2 * std::log((random() + 1.0) * 0x1p-32)), turn = random() * 0x1p-32;
        v = mean + sigma * float(radius * std::cos(2 * M_PI * turn));
    }
    return x;
}

std::vector<uint8_t> pack(Type type, const std::vector<float>& x) {
    std::vector<uint8_t> blocks(size_t(row_bytes(type, int64_t(x.size()))), 0xa5);
    from_float(type, x.data(), blocks.data(), int64_t(x.size()));
    return blocks;
}

std::vector<float> round_trip(Type type, const std::vector<float>& x) {
    std::vector<uint8_t> blocks = pack(type, x);
    std::vector<float> y(x.size(), not_a_number);
    to_float(type, blocks.data(), y.data(), int64_t(x.size()));
    return y;
}

double relative_rms(const std::vector<float>& x, const std::vector<float>& y) {
    double error = 0, size = 0;
    for (size_t i = 0; i < x.size(); i++) {
        error += (double(y[i]) - x[i]) * (double(y[i]) - x[i]);
        size += double(x[i]) * x[i];
    }
    return std::sqrt(error / size);
}

std::string name(Type type) {
    return type_info(type).name;
}

}  // namespace

TEST_CASE("quant: the type table", "[quant]") {
    struct Row {
        uint32_t number;
        const char* name;
        int elems, bytes;
        bool from_float;
    };
    const Row rows[] = {
        {0, "F32", 1, 4, true},        {1, "F16", 1, 2, true},          {2, "Q4_0", 32, 18, true},
        {3, "Q4_1", 32, 20, true},     {6, "Q5_0", 32, 22, true},       {7, "Q5_1", 32, 24, true},
        {8, "Q8_0", 32, 34, true},     {10, "Q2_K", 256, 84, false},    {11, "Q3_K", 256, 110, false},
        {12, "Q4_K", 256, 144, true},  {13, "Q5_K", 256, 176, true},    {14, "Q6_K", 256, 210, true},
        {20, "IQ4_NL", 32, 18, false}, {23, "IQ4_XS", 256, 136, false}, {30, "BF16", 1, 2, true},
        {39, "MXFP4", 32, 17, false}};
    uint32_t n_known = 0;
    for (uint32_t number = 0; number < 300; number++) n_known += find_type(number) != nullptr;
    CHECK(n_known == std::size(rows));
    CHECK(n_known == std::size(all_types));
    CHECK(find_type(4) == nullptr);  // removed from the format
    CHECK(find_type(0xffffffffu) == nullptr);
    for (const Row& row : rows) {
        INFO(row.name);
        const TypeInfo* info = find_type(row.number);
        REQUIRE(info != nullptr);
        CHECK(uint32_t(info->type) == row.number);
        CHECK(std::string(info->name) == row.name);
        CHECK(info->block_elems == row.elems);
        CHECK(info->block_bytes == row.bytes);
        CHECK(info->from_float == row.from_float);
        CHECK(&type_info(Type(row.number)) == info);
        CHECK(type_by_name(row.name) == Type(row.number));
        std::string lower = row.name;
        for (char& c : lower) c = char(std::tolower(c));
        CHECK(type_by_name(lower) == Type(row.number));
        CHECK(row_bytes(Type(row.number), row.elems * int64_t(11) << 30) == row.bytes * int64_t(11) << 30);
    }
    CHECK(type_by_name("Bf16") == Type::BF16);
    for (const char* unknown : {"", "Q4", "Q4_", "Q4_KM", "Q4_K ", " Q4_K", "Q4-K", "IQ2_S", "F64", "q9_0"})
        CHECK_FALSE(type_by_name(unknown).has_value());
    CHECK(row_bytes(Type::Q4_K, 2816) == 1584);  // of SPEC 4.4
    CHECK(row_bytes(Type::Q6_K, 2816) == 2310);
    CHECK(row_bytes(Type::Q5_0, 704) == 484);
    CHECK(row_bytes(Type::Q8_0, 2112) == 2244);
}

TEST_CASE("quant: random blocks of every type, bit by bit", "[quant]") {
    const int n_block = 2000;  // random scales: infinities and NaN in one of 32 blocks
    for (Type type : all_types) {
        INFO(name(type));
        const TypeInfo& info = type_info(type);
        std::vector<uint8_t> blocks = random_bytes(size_t(n_block * info.block_bytes), 7 + uint32_t(type));
        std::vector<float> y(size_t(n_block * info.block_elems) + 1, 12345.0f);
        to_float(type, blocks.data(), y.data(), int64_t(y.size()) - 1);
        CHECK(y.back() == 12345.0f);
        int n_wrong = 0;
        for (int i = 0; i < n_block * info.block_elems; i++) {
            const uint8_t* block = blocks.data() + i / info.block_elems * info.block_bytes;
            float expected = to_f32(slow_element(type, block, i % info.block_elems));
            if (!same(y[size_t(i)], expected) && n_wrong++ == 0)
                UNSCOPED_INFO("element " << i << ": " << y[size_t(i)] << ", expected " << expected);
        }
        CHECK(n_wrong == 0);
    }
}

TEST_CASE("quant: blocks worked out by hand", "[quant]") {
    float y[256];
    // Q4_0, d = -0.5: byte 0 = 0x0f, byte 15 = 0x80; all else 8.
    std::vector<uint8_t> b(18, 0x88);
    b[0] = 0x00, b[1] = 0xb8, b[2] = 0x0f, b[17] = 0x80;
    to_float(Type::Q4_0, b.data(), y, 32);
    CHECK(y[0] == -3.5f);
    CHECK(y[16] == 4.0f);
    CHECK(y[15] == 4.0f);
    CHECK(y[31] == 0.0f);
    CHECK(y[1] == 0.0f);
    // Q5_1, d = 2, m = -1: nibbles 0, fifth bits of elements 0, 9 and 31 alone.
    b.assign(24, 0);
    b[1] = 0x40, b[3] = 0xbc, b[4] = 0x01, b[5] = 0x02, b[7] = 0x80;
    to_float(Type::Q5_1, b.data(), y, 32);
    for (int i = 0; i < 32; i++) CHECK(y[i] == (i == 0 || i == 9 || i == 31 ? 31.0f : -1.0f));
    // Q8_0, d = the smallest half.
    b.assign(34, 0x80);
    b[0] = 1, b[1] = 0, b[2] = 127;
    to_float(Type::Q8_0, b.data(), y, 32);
    CHECK(y[0] == 127 * 0x1p-24f);
    CHECK(y[31] == -128 * 0x1p-24f);
    // MXFP4: e = 129 doubles the doubled values; e = 0 and 1 are subnormal; e = 255 overflows.
    b.assign(17, 0xf7);
    b[0] = 129;
    to_float(Type::MXFP4, b.data(), y, 32);
    CHECK(y[0] == 24.0f);
    CHECK(y[16] == -24.0f);
    b.assign(17, 0x21), b[0] = 0;
    to_float(Type::MXFP4, b.data(), y, 32);
    CHECK(y[0] == 0x1p-128f);
    CHECK(y[16] == 0x1p-127f);
    b[0] = 1;
    to_float(Type::MXFP4, b.data(), y, 32);
    CHECK(y[0] == 0x1p-127f);
    b.assign(17, 0x71), b[0] = 255;
    to_float(Type::MXFP4, b.data(), y, 32);
    CHECK(y[0] == 0x1p127f);
    CHECK(y[16] == infinity);
    // IQ4_NL, d = 1: code 0 = -127, code 15 = 113.
    b.assign(18, 0xf0);
    b[0] = 0, b[1] = 0x3c;
    to_float(Type::IQ4_NL, b.data(), y, 32);
    CHECK(y[3] == -127.0f);
    CHECK(y[19] == 113.0f);
    // Q4_K, d = 1, dmin = 0.5, all codes 1 low and 2 high. Sub-block 0: sc 63, mn 1. Sub-block 4: sc 16 * 3 +
    // 5, mn 16 * 2 + 7. The two top bits of sc 4 stand above sc 0, those of mn 4 above mn 0.
    b.assign(144, 0x21);
    std::fill(b.begin() + 4, b.begin() + 16, 0);
    b[0] = 0, b[1] = 0x3c, b[2] = 0, b[3] = 0x38, b[4] = 63 | 3 << 6, b[8] = 1 | 2 << 6, b[12] = 5 | 7 << 4;
    to_float(Type::Q4_K, b.data(), y, 256);
    CHECK(y[0] == 63 * 1 - 0.5f * 1);
    CHECK(y[31] == 62.5f);
    CHECK(y[32] == 0.0f);
    CHECK(y[128] == 53 * 1 - 0.5f * 39);
    CHECK(y[160] == 0.0f);
    // Q6_K, d = 1: ql = 0, qh = 0b11100100: the quarters of a half have codes 0, 16, 32, 48 less 32.
    b.assign(210, 0);
    std::fill(b.begin() + 128, b.begin() + 192, 0xe4);
    for (int i = 0; i < 16; i++) b[size_t(192 + i)] = uint8_t(i - 8);
    b[209] = 0x3c;
    to_float(Type::Q6_K, b.data(), y, 256);
    for (int i = 0; i < 256; i++) CHECK(y[i] == (i / 16 - 8) * (i / 32 % 4 * 16 - 32));
}

TEST_CASE("quant: sources and targets at any address", "[quant]") {
    for (Type type : all_types) {
        INFO(name(type));
        const TypeInfo& info = type_info(type);
        int64_t n = info.block_elems == 1 ? 99 : 3 * info.block_elems, bytes = row_bytes(type, n);
        std::vector<float> x = normal_values(size_t(n), 5), y(static_cast<size_t>(n)), z(y);
        std::vector<uint8_t> blocks = random_bytes(size_t(bytes), 3), moved(size_t(bytes) + 64);
        if (info.from_float) from_float(type, x.data(), blocks.data(), n);
        to_float(type, blocks.data(), y.data(), n);
        for (size_t shift = 0; shift < 33; shift++) {
            std::fill(moved.begin(), moved.end(), uint8_t(0x5a));
            if (info.from_float) {
                from_float(type, x.data(), moved.data() + shift, n);
                REQUIRE(std::equal(blocks.begin(), blocks.end(), moved.begin() + long(shift)));
                REQUIRE(moved[shift + size_t(bytes)] == 0x5a);
            }
            std::copy(blocks.begin(), blocks.end(), moved.begin() + long(shift));
            to_float(type, moved.data() + shift, z.data(), n);
            REQUIRE(std::equal(y.begin(), y.end(), z.begin(), same));
        }
    }
}

TEST_CASE("quant: all 65536 halves and bfloats to float", "[quant]") {
    std::vector<uint16_t> codes(65536);
    for (size_t i = 0; i < codes.size(); i++) codes[i] = uint16_t(i);
    std::vector<float> f16(65536), bf16(65536);
    to_float(Type::F16, codes.data(), f16.data(), 65536);
    to_float(Type::BF16, codes.data(), bf16.data(), 65536);
    int n_wrong = 0;
    for (uint32_t i = 0; i < 65536; i++) {
        uint16_t code = uint16_t(i);
        float h = f16_to_f32(code), b = bf16_to_f32(code);
        n_wrong += !same(h, float(slow_f16(code))) + !same(b, float(slow_bf16(code)));
        n_wrong += !same(h, f16[i]) + !same(b, bf16[i]);
        n_wrong += std::signbit(h) != (code >> 15) || std::signbit(b) != (code >> 15);
        // Back: the same code; a NaN stays one, of the same sign.
        uint16_t h2 = f32_to_f16(h), b2 = f32_to_bf16(b);
        n_wrong += std::isnan(h) ? !std::isnan(f16_to_f32(h2)) || (h2 ^ code) & 0x8000 : h2 != code;
        n_wrong += std::isnan(b) ? !std::isnan(bf16_to_f32(b2)) || (b2 ^ code) & 0x8000 : b2 != code;
    }
    CHECK(n_wrong == 0);
}

TEST_CASE("quant: float to half and bfloat, nearest and ties to even", "[quant]") {
    std::vector<float> x{0.0f,          -0.0f,    infinity,   -infinity,       not_a_number,
                         -not_a_number, FLT_MAX,  -FLT_MAX,   FLT_MIN,         FLT_TRUE_MIN,
                         -FLT_TRUE_MIN, 65504,    65519.996f, 65520,           65536,
                         0x1p-14f,      0x1p-24f, 0x1p-25f,   0x1.000002p-25f, 0x1p-26f};
    for (uint32_t u :
         {0x7f800001u, 0x7fffffffu, 0xff800001u, 0xffffffffu})  // NaN whose payload is only in low bits
        x.push_back(std::bit_cast<float>(u));
    // Each half and bfloat, the middle to the next one, and the floats beside these.
    for (uint32_t i = 0; i < 65536; i++) {
        float h = f16_to_f32(uint16_t(i)), next = f16_to_f32(uint16_t(i + 1));
        if (std::isfinite(h) && std::isfinite(next))
            for (float v : {h, (h + next) / 2})
                for (float w : {v, std::nextafter(v, infinity), std::nextafter(v, -infinity)}) x.push_back(w);
        for (uint32_t low : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu})
            x.push_back(std::bit_cast<float>(i << 16 | low));
    }
    std::mt19937 random(11);
    for (int i = 0; i < 300000; i++) x.push_back(std::bit_cast<float>(uint32_t(random())));
    std::vector<uint16_t> f16(x.size()), bf16(x.size());
    from_float(Type::F16, x.data(), f16.data(), int64_t(x.size()));
    from_float(Type::BF16, x.data(), bf16.data(), int64_t(x.size()));
    int n_wrong = 0;
    for (size_t i = 0; i < x.size(); i++) {
        float h = to_f32(slow_round(x[i], -14, 10, 65504));
        float b = to_f32(slow_round(x[i], -126, 7, 0x1.fep127));
        bool wrong = !same(f16_to_f32(f16[i]), h) || !same(bf16_to_f32(bf16[i]), b) ||
                     f16[i] != f32_to_f16(x[i]) || bf16[i] != f32_to_bf16(x[i]);
        if (wrong && n_wrong++ == 0)
            UNSCOPED_INFO(x[i] << ": half " << f16_to_f32(f16[i]) << ", expected " << h << "; bfloat "
                               << bf16_to_f32(bf16[i]) << ", expected " << b);
    }
    CHECK(n_wrong == 0);
}

TEST_CASE("quant: F32 is copied bit by bit", "[quant]") {
    std::vector<uint8_t> bytes = random_bytes(4000, 1), copy(4000);
    std::vector<float> x(1000);
    to_float(Type::F32, bytes.data(), x.data(), 1000);
    from_float(Type::F32, x.data(), copy.data(), 1000);
    CHECK(copy == bytes);
}

TEST_CASE("quant: error of the written types on normal data", "[quant]") {
    struct Row {
        Type type;
        double limit;
    };
    // The limits are 0.2 % over what this data gives, and under what the usual quantisers of the format give
    // on such data: Q8_0 0.0054, Q6_K 0.0178, Q5_1 0.0380, Q5_0 0.0427, Q4_K 0.0713.
    const Row rows[] = {{Type::Q8_0, 0.005358}, {Type::Q6_K, 0.01670}, {Type::Q5_K, 0.03492},
                        {Type::Q5_1, 0.03365},  {Type::Q5_0, 0.04003}, {Type::Q4_K, 0.07071},
                        {Type::Q4_1, 0.07017},  {Type::Q4_0, 0.08128}};
    for (float sigma : {0.02f, 3.0f, 300.0f}) {
        std::vector<float> x = normal_values(256 * 1500, 42, sigma);
        for (const Row& row : rows) {
            INFO(name(row.type) << " sigma " << sigma);
            CHECK(relative_rms(x, round_trip(row.type, x)) < row.limit);
        }
    }
    // Data off centre, ten sigma: a minimum of its own pays. A K type has one only below 0; above, its codes
    // start at 0.
    struct OffCentre {
        Type type;
        double below, above;
    };
    for (const OffCentre& row :
         {OffCentre{Type::Q4_1, 0.00700, 0.00700}, OffCentre{Type::Q5_1, 0.00336, 0.00336},
          OffCentre{Type::Q4_K, 0.00734, 0.02083}, OffCentre{Type::Q5_K, 0.00375, 0.01024}}) {
        INFO(name(row.type));
        for (float mean : {-0.2f, 0.2f}) {
            std::vector<float> x = normal_values(256 * 200, 43, 0.02f, mean);
            CHECK(relative_rms(x, round_trip(row.type, x)) < (mean < 0 ? row.below : row.above));
        }
    }
}

TEST_CASE("quant: near the best scale that exists", "[quant]") {
    // All 31744 scales for each sign, the codes rounded: the least squared error a block of Q4_0 or Q5_0 can
    // have.
    std::vector<float> x = normal_values(32 * 12, 77);
    for (Type type : {Type::Q4_0, Type::Q5_0}) {
        double half_range = type == Type::Q4_0 ? 8 : 16, found = 0, least = 0;
        std::vector<float> y = round_trip(type, x);
        for (size_t b = 0; b < x.size(); b += 32) {
            double best = INFINITY, error = 0;
            for (size_t j = b; j < b + 32; j++) error += std::pow(double(y[j]) - x[j], 2);
            for (int code = 0; code < 65536; code++) {
                double d = slow_f16(code), sum = 0;
                if (!(std::fabs(d) > 1e-4 && std::fabs(d) < 1e-1)) continue;
                for (size_t j = b; j < b + 32 && sum < best; j++) {
                    double q = std::clamp(std::nearbyint(x[j] / d), -half_range, half_range - 1);
                    sum += std::pow(q * d - x[j], 2);
                }
                best = std::min(best, sum);
            }
            CHECK(error > best * (1 - 1e-6));
            found += error, least += best;
        }
        INFO(name(type) << " found " << found << " least " << least);
        CHECK(found < 1.015 * least);
    }
}

TEST_CASE("quant: a row is its blocks", "[quant]") {
    // Rows of any number of blocks (the real ones have 22 and 66) are written as block by block.
    for (Type type : written_blocks) {
        INFO(name(type));
        const TypeInfo& info = type_info(type);
        for (int n_block : {0, 1, 7, 8, 9, 22}) {
            std::vector<float> x = normal_values(size_t(n_block * info.block_elems), 9);
            std::vector<uint8_t> row = pack(type, x), parts(row.size());
            for (int b = 0; b < n_block; b++)
                from_float(type, x.data() + b * info.block_elems, parts.data() + b * info.block_bytes,
                           info.block_elems);
            CHECK(row == parts);
        }
    }
}

TEST_CASE("quant: written again, a block stays", "[quant]") {
    std::vector<float> x = normal_values(256 * 200, 21);
    for (Type type : written_blocks) {
        INFO(name(type));
        std::vector<float> once = round_trip(type, x), twice = round_trip(type, once);
        // Where the scale is a half, it is found again. In a K type a scale that was rounded to its code may
        // leave the end codes unused, and then another one can come out: what moves is a sixth of the first
        // error at most.
        bool two_levels = type_info(type).block_elems == 256;
        CHECK(relative_rms(once, twice) <= (two_levels ? relative_rms(x, once) / 6 : 0.0));
    }
}

TEST_CASE("quant: odd rows", "[quant]") {
    for (Type type : written_blocks) {
        INFO(name(type));
        bool has_min = type == Type::Q4_1 || type == Type::Q5_1 || type == Type::Q4_K || type == Type::Q5_K;
        std::vector<float> x(256, 0.0f);

        // Zeros, of both signs, and what is too small for any half.
        for (float v : {0.0f, -0.0f, 1e-40f, -FLT_TRUE_MIN, 1e-12f, -2e-8f}) {
            std::fill(x.begin(), x.end(), v);
            for (float y : round_trip(type, x)) REQUIRE(y == 0.0f);
            if (type == Type::Q8_0)  // the one type whose code of 0 is 0: nothing is left to chance
                for (uint8_t byte : pack(type, x)) REQUIRE(byte == 0);
        }
        // Constants: within the precision of a half.
        for (float v : {1.0f, -1.0f, 50.0f, -777.0f, 40000.0f, -40000.0f}) {
            std::fill(x.begin(), x.end(), v);
            for (float y : round_trip(type, x)) REQUIRE(std::fabs(y - v) <= 0.001f * std::fabs(v));
        }
        // One outlier among small values: it stays within half a step, and the rest within a step.
        for (float outlier : {1000.0f, -1000.0f}) {
            x = normal_values(256, 31, 0.01f);
            x[77] = outlier;
            std::vector<float> y = round_trip(type, x);
            float step = std::fabs(outlier) / (type == Type::Q8_0 ? 127 : type == Type::Q6_K ? 31 : 7);
            CHECK(std::fabs(y[77] - outlier) <= step / 2);
            for (size_t i = 0; i < 256; i++) CHECK(std::fabs(y[i] - x[i]) <= step);
        }
        // Steps near the smallest half: no code saturates, so no value is off by more than 2^-24 (or the half
        // of a step).
        x = normal_values(256, 32, 1e-6f);
        {
            std::vector<float> y = round_trip(type, x);
            for (size_t i = 0; i < 256; i++) CHECK(std::fabs(y[i] - x[i]) <= 6e-7f);
            CHECK(relative_rms(x, y) < 0.2);
        }
        // Past the largest scale: finite, of the right sign, and at the block's end.
        for (float v : {1e9f, -1e9f, FLT_MAX, -FLT_MAX, infinity, -infinity}) {
            x.assign(256, 0.0f);
            x[3] = v, x[200] = v;
            std::vector<float> y = round_trip(type, x);
            for (size_t i = 0; i < 256; i++) REQUIRE(std::isfinite(y[i]));
            CHECK(std::signbit(y[3]) == std::signbit(v));
            CHECK(std::fabs(y[3]) >= 65504.0f * (type == Type::Q8_0 || !has_min ? 7 : 1));
            CHECK(y[3] == y[200]);
            if (type != Type::Q4_1 && type != Type::Q5_1) CHECK(y[4] == 0.0f);
        }
        // NaN counts as 0.
        x = normal_values(256, 33);
        x[5] = not_a_number, x[255] = -not_a_number;
        std::vector<float> y = round_trip(type, x);
        for (size_t i = 0; i < 256; i++) REQUIRE(std::isfinite(y[i]));
        CHECK(std::fabs(y[5]) < 0.005f);
        x[5] = x[255] = 0.0f;
        CHECK(y == round_trip(type, x));
        // Random bits.
        std::vector<uint8_t> bits = random_bytes(1024 * 100, 34);
        x.resize(256 * 100);
        std::memcpy(x.data(), bits.data(), bits.size());
        for (float v : round_trip(type, x)) REQUIRE(std::isfinite(v));
    }
}
