// test_repack.cpp: records (repack.cu, records.h) against the file's blocks: every bit of the types that keep
// their own, read back by a second reading of the layout; decode() and all expansions against to_float().
#include <algorithm>

#include "check.h"
#include "decode.h"
#include "kernel.h"

using namespace easel;

namespace {

// out [16 n_tile, n_record N_K] X: all values of the records. Launch: grid (n_record, n_tile), 32 threads.
template <Type TYPE, class X>
__global__ void decode_kernel(X* out, const uint8_t* records) {
    using R = Record<TYPE>;
    const int lane = threadIdx.x, n_record = gridDim.x, ld = n_record * R::N_K;
    const uint8_t* record = records + (int64_t{blockIdx.y} * n_record + blockIdx.x) * R::bytes;
    for (int chunk = 0; chunk < R::n_chunk; chunk++) {
        const uint8_t* data = record + R::scale_bytes + chunk * R::chunk_bytes;
        X* tile = out + int64_t{16} * blockIdx.y * ld + blockIdx.x * R::N_K + chunk * kChunk;
        if constexpr (sizeof(X) == 4) {
            for (int i = lane; i < 16 * kChunk; i += 32)
                tile[i / kChunk * ld + i % kChunk] = reinterpret_cast<const float*>(data)[i];
        } else {
            uint32_t a[4][4];
            decode<TYPE>(a, record, data, chunk, lane);
            for (int s = 0; s < 4; s++)
                for (int i = 0; i < 4; i++)
                    for (int j = 0; j < 2; j++)
                        tile[(lane / 4 + i % 2 * 8) * ld + 16 * s + i / 2 * 8 + lane % 4 * 2 + j].bits =
                            static_cast<uint16_t>(a[s][i] >> (16 * j));
        }
    }
}

// X of the records' values: what can be read of them.
template <Type TYPE, class X>
constexpr bool can_decode = std::is_same_v<X, float> == (TYPE == Type::F32);

const Type all_types[] = {Type::F32,  Type::F16,    Type::BF16,   Type::Q4_0, Type::Q4_1, Type::Q5_0,
                          Type::Q5_1, Type::Q8_0,   Type::Q2_K,   Type::Q3_K, Type::Q4_K, Type::Q5_K,
                          Type::Q6_K, Type::IQ4_NL, Type::IQ4_XS, Type::MXFP4};
const Type record_types[] = {Type::F32,  Type::F16,  Type::Q4_0, Type::Q5_0, Type::Q5_1,
                             Type::Q8_0, Type::Q4_K, Type::Q5_K, Type::Q6_K, Type::IQ4_NL};

// Where a block has its 16-bit scales and minima.
std::vector<int> half_fields(Type type) {
    switch (type) {
        case Type::Q4_1:
        case Type::Q5_1:
        case Type::Q4_K:
        case Type::Q5_K:
            return {0, 2};
        case Type::Q2_K:
            return {80, 82};
        case Type::Q3_K:
            return {108};
        case Type::Q6_K:
            return {208};
        case Type::MXFP4:
            return {};
        default:
            return {0};
    }
}

// A matrix or a gated pair in a file: rows [n_row] of n_col values, at an address that is only even. A pair
// has n_row / 2 rows of gate, then as many of up.
struct File {
    Type type;
    int n_row, n_col;
    bool gated;
    std::vector<uint8_t> bytes = {};

    static constexpr int offset = 2;
    int64_t stride() const { return row_bytes(type, n_col); }
    uint8_t* row(int r) { return bytes.data() + offset + r * stride(); }
    const uint8_t* row(int r) const { return bytes.data() + offset + r * stride(); }
    int n_tile() const { return Weights{type, nullptr, n_row, n_col, gated, 1}.n_tile(); }
    std::vector<float> values(int r) const {
        std::vector<float> v(n_col);
        to_float(type, row(r), v.data(), n_col);
        return v;
    }
    // The row that row r of the tiles is; -1: none, zeros.
    int file_row(int r) const {
        const int half = n_row / 2, i = r / 16 * 8 + r % 8;
        if (!gated) return r < n_row ? r : -1;
        return i >= half ? -1 : r % 16 < 8 ? i : half + i;
    }
    RowTiles tiles(const uint8_t* base) const {
        base += offset;
        if (gated) return {base, base + n_row / 2 * stride(), 8 * stride(), n_row / 2, n_row / 2};
        return {base, base + 8 * stride(), 16 * stride(), n_row, n_row - 8};
    }
};

// Any bits, but finite scales of any size.
File any_file(Type type, int n_row, int n_col, bool gated, uint32_t seed) {
    std::mt19937 random(seed);
    File f{type, n_row, n_col, gated};
    f.bytes.resize(f.offset + n_row * f.stride());
    for (uint8_t& b : f.bytes) b = static_cast<uint8_t>(random());
    const TypeInfo& info = type_info(type);
    for (int r = 0; r < n_row; r++)
        for (int64_t b = 0; b < f.stride(); b += info.block_bytes) {
            uint8_t* block = f.row(r) + b;
            if (type == Type::F32 || type == Type::BF16) {  // the exponent ends in the last byte but one
                uint8_t* high = block + info.block_bytes - 2;
                if ((high[1] & 0x7f) == 0x7f && high[0] & 0x80) high[0] &= 0x7f;
                continue;
            }
            for (int field : half_fields(type))
                if ((block[field + 1] & 0x7c) == 0x7c) block[field + 1] ^= 0x40;
        }
    return f;
}

// Values of a model's size: blocks fitted to normal numbers, or any codes with scales about 1 / 64.
File usual_file(Type type, int n_row, int n_col, bool gated, uint32_t seed) {
    File f = any_file(type, n_row, n_col, gated, seed);
    const auto x = random_floats(size_t(n_row) * n_col, seed);
    for (int r = 0; r < n_row; r++)
        if (type_info(type).from_float)
            from_float(type, x.data() + int64_t{r} * n_col, f.row(r), n_col);
        else
            for (int64_t b = 0; b < f.stride(); b += type_info(type).block_bytes)
                for (int field : half_fields(type)) f.row(r)[b + field + 1] = 0x24;
    return f;
}

std::vector<uint8_t> repacked(const File& f, Type to) {
    return every_schedule([&] {
        const auto blocks = to_device(f.bytes);
        const DeviceArray<uint8_t> records(records_bytes(to, 16 * f.n_tile(), f.n_col));
        repack(Stream{}, f.type, to, f.tiles(blocks.data()), f.n_tile(), f.n_col, records.data());
        return to_host(records);
    });
}

int record_cols(Type type, int n_col) {
    const int n_k = record_info(type).n_k;
    return (n_col + n_k - 1) / n_k * n_k;
}

// [16 n_tile, record_cols]
template <class X>
std::vector<X> decoded(const std::vector<uint8_t>& records, Type type, int n_tile, int n_col) {
    const int ld = record_cols(type, n_col);
    return every_schedule([&] {
        const auto data = to_device(records);
        const DeviceArray<X> out(size_t(16) * n_tile * ld);
        with_record(type, [&](auto t) {
            constexpr Type TYPE = t.value;
            if constexpr (can_decode<TYPE, X>)
                EASEL_LAUNCH((decode_kernel<TYPE, X>), dim3(ld / Record<TYPE>::N_K, n_tile), 32, 0, Stream{},
                             out.data(), data.data());
        });
        return to_host(out);
    });
}

// The layout at the head of records.h, read once more: the bits of element (row, col) of a tile's record.
uint32_t code_at(Type type, const uint8_t* chunk, int row, int col) {
    const int lane = row % 8 * 4 + col % 8 / 2, s = col / 16, i = col / 8 % 2 * 2 + row / 8, j = col % 2;
    const auto word = [&](int index) {
        uint32_t w;
        std::memcpy(&w, chunk + 4 * index, 4);
        return w;
    };
    switch (type) {
        case Type::F32:
            return word(row * 64 + col);
        case Type::F16:
            return word((s * 32 + lane) * 4 + i) >> (16 * j) & 0xffff;
        case Type::Q8_0:
            return word(((s / 2) * 32 + lane) * 4 + s % 2 * 2 + i / 2) >> (i % 2 * 8 + 16 * j) & 0xff;
        default:
            break;
    }
    constexpr int upper[2][4] = {{0, 4, 2, 6}, {8, 12, 10, 14}};
    if (type == Type::Q5_0 || type == Type::Q5_1 || type == Type::Q5_K) {
        const auto five = [&](int w) { return word(w < 4 ? 4 * lane + w : 128 + lane) >> (16 * j); };
        const int p = 4 * s + i;
        if (p < 15) return five(p / 3) >> (p % 3 * 5) & 31;
        uint32_t code = 0;
        for (int bit = 0; bit < 5; bit++) code |= (five(bit) >> 15 & 1) << bit;
        return code;
    }
    uint32_t code = word(4 * lane + s) >> (4 * i + 16 * j) & 15;
    if (type == Type::Q6_K) code |= (word(128 + 2 * lane + s / 2) >> (upper[s % 2][i] + 16 * j) & 3) << 4;
    return code;
}

// The bytes of the file's block with these codes [block_elems]; record, block-in-record and row say where its
// scales are.
std::vector<uint8_t> block_of(Type type, const std::vector<uint32_t>& q, const uint8_t* record, int block,
                              int row) {
    std::vector<uint8_t> b(type_info(type).block_bytes, 0);
    const auto nibbles = [&](int at) {
        for (int k = 0; k < 32; k++) b[at + k % 16] |= static_cast<uint8_t>((q[k] & 15) << (k / 16 * 4));
    };
    const auto fifth = [&](int at) {
        for (int k = 0; k < 32; k++) b[at + k / 8] |= static_cast<uint8_t>(q[k] >> 4 << (k % 8));
    };
    const int place = row % 8 * 2 + row / 8;  // rows g and g + 8 are neighbours
    const uint8_t* d = record + 4 * place + 2 * block;
    switch (type) {
        case Type::F32:
        case Type::F16:
            std::memcpy(b.data(), q.data(), b.size());
            return b;
        case Type::Q4_0:
        case Type::IQ4_NL:
            nibbles(2);
            break;
        case Type::Q5_0:
            fifth(2);
            nibbles(6);
            break;
        case Type::Q5_1:
            std::memcpy(b.data() + 2, d + 64, 2);
            fifth(4);
            nibbles(8);
            break;
        case Type::Q8_0:
            for (int k = 0; k < 32; k++) b[2 + k] = static_cast<uint8_t>(q[k] - 128);
            break;
        case Type::Q4_K:
        case Type::Q5_K: {
            std::memcpy(b.data(), record + 256 + 4 * place, 4);
            for (int i = 0; i < 8; i++) {  // sub-block i's scale and minimum into their 6-bit places
                const uint8_t* two = record + i / 2 * 64 + 4 * place + i % 2;
                const int at[] = {4 + i % 4, 8 + i % 4};
                if (i < 4) {
                    b[at[0]] |= two[0], b[at[1]] |= two[2];
                } else {
                    b[12 + i % 4] |= static_cast<uint8_t>((two[0] & 15) | (two[2] & 15) << 4);
                    b[at[0]] |= static_cast<uint8_t>(two[0] >> 4 << 6);
                    b[at[1]] |= static_cast<uint8_t>(two[2] >> 4 << 6);
                }
            }
            uint8_t* qs = b.data() + (type == Type::Q5_K ? 48 : 16);
            for (int k = 0; k < 256; k++) {
                qs[k / 64 * 32 + k % 32] |= static_cast<uint8_t>((q[k] & 15) << (k / 32 % 2 * 4));
                if (type == Type::Q5_K) b[16 + k % 32] |= static_cast<uint8_t>(q[k] >> 4 << (k / 32));
            }
            return b;
        }
        case Type::Q6_K:
            for (int c = 0; c < 4; c++) std::memcpy(b.data() + 192 + 4 * c, record + 64 * c + 4 * place, 4);
            std::memcpy(b.data() + 208, record + 256 + 2 * place, 2);
            for (int h = 0; h < 2; h++)
                for (int l = 0; l < 128; l++) {
                    const uint32_t code = q[128 * h + l];
                    b[64 * h + l % 64] |= static_cast<uint8_t>((code & 15) << (l / 64 * 4));
                    b[128 + 32 * h + l % 32] |= static_cast<uint8_t>(code >> 4 << (l / 32 * 2));
                }
            return b;
        default:
            fail("bug: no records");
    }
    std::memcpy(b.data(), d, 2);
    return b;
}

// Blocks of the file that are not in its records, bit by bit.
int lost_blocks(const File& f, const std::vector<uint8_t>& records) {
    const TypeInfo& info = type_info(f.type);
    int n_lost = 0;
    with_record(f.type, [&](auto t) {
        using R = Record<t.value>;
        const int n_record = (f.n_col + R::N_K - 1) / R::N_K;
        for (int r = 0; r < 16 * f.n_tile(); r++) {
            if (f.file_row(r) < 0) continue;
            for (int first = 0; first < f.n_col; first += info.block_elems) {
                const uint8_t* record =
                    records.data() + int64_t{r / 16 * n_record + first / R::N_K} * R::bytes;
                std::vector<uint32_t> codes(info.block_elems);
                for (int k = 0; k < info.block_elems; k++) {
                    const int col = (first + k) % R::N_K;
                    codes[k] = code_at(f.type, record + R::scale_bytes + col / 64 * R::chunk_bytes, r % 16,
                                       col % 64);
                }
                const auto block = block_of(f.type, codes, record, first % R::N_K / 32, r % 16);
                n_lost += std::memcmp(block.data(),
                                      f.row(f.file_row(r)) + first / info.block_elems * info.block_bytes,
                                      block.size()) != 0;
            }
        }
    });
    return n_lost;
}

template <class X>
X rounded(float v) {
    if constexpr (std::is_same_v<X, F16>)
        return host_from_f32<F16>(std::clamp(v, -65504.0f, 65504.0f));
    else
        return host_from_f32<X>(v);
}

// Elements of the expansion of f to X whose bits are not those of to_float(), rounded; zeros where there is
// nothing.
template <class X>
int wrong_bits(const File& f, Type to) {
    const auto records = repacked(f, to);
    const auto found = decoded<X>(records, to, f.n_tile(), f.n_col);
    const int ld = record_cols(to, f.n_col);
    int n_wrong = 0;
    for (int r = 0; r < 16 * f.n_tile(); r++) {
        std::vector<float> values(f.n_col);
        if (f.file_row(r) >= 0) values = f.values(f.file_row(r));
        values.resize(ld);
        for (int c = 0; c < ld; c++) {
            const X expected = rounded<X>(values[c]);
            n_wrong += std::memcmp(&expected, &found[size_t(r) * ld + c], sizeof expected) != 0;
        }
    }
    return n_wrong;
}

// What minima take from each value of row r: its values with all codes 0, negated.
std::vector<float> minima(const File& f, int r) {
    std::vector<float> m(f.n_col, 0);
    const int code_begin = f.type == Type::Q5_1 ? 4 : f.type == Type::Q4_K || f.type == Type::Q5_K ? 16 : 0;
    if (code_begin == 0) return m;
    std::vector<uint8_t> row(f.row(r), f.row(r) + f.stride());
    const int block_bytes = type_info(f.type).block_bytes;
    for (int64_t b = 0; b < f.stride(); b += block_bytes)
        std::fill_n(row.begin() + b + code_begin, block_bytes - code_begin, uint8_t{0});
    to_float(f.type, row.data(), m.data(), f.n_col);
    return m;
}

struct Shape {
    int n_row, n_col;
    bool gated;
};

// Shapes whose rows are whole blocks of the type.
std::vector<Shape> shapes_of(Type type) {
    std::vector<Shape> shapes;
    for (auto [n_row, n_col, gated] : {Shape{1, 32, false},
                                       {16, 64, false},
                                       {17, 96, false},
                                       {400, 96, false},
                                       {8, 704, false},
                                       {17, 256, false},
                                       {400, 256, false},
                                       {25, 768, false},
                                       {3, 2816, false},
                                       {2, 32, true},
                                       {10, 96, true},
                                       {26, 256, true},
                                       {16, 512, true},
                                       {88, 704, true}})
        if (n_col % type_info(type).block_elems == 0) shapes.push_back({n_row, n_col, gated});
    if (type_info(type).block_elems == 1) shapes.push_back({19, 37, false});
    return shapes;
}

}  // namespace

TEST_CASE("records hold exactly the bits of the file's blocks") {
    uint32_t seed = 1;
    for (Type type : record_types)
        for (auto [n_row, n_col, gated] : shapes_of(type)) {
            INFO(type_info(type).name << " " << n_row << "x" << n_col << (gated ? " gated" : ""));
            const File f = any_file(type, n_row, n_col, gated, seed++);
            const auto records = repacked(f, type);
            if (!gated) CHECK(int64_t(records.size()) == records_bytes(type, n_row, n_col));
            CHECK(lost_blocks(f, records) == 0);
        }
}

TEST_CASE("every type expands to F32 and F16 as to_float() and a rounding do") {
    uint32_t seed = 100;
    for (Type type : all_types)
        for (auto [n_row, n_col, gated] : shapes_of(type)) {
            if (n_row * n_col > 17 * 768 && n_row != 400) continue;  // the same again, only longer
            INFO(type_info(type).name << " " << n_row << "x" << n_col << (gated ? " gated" : ""));
            const File f = any_file(type, n_row, n_col, gated, seed++);
            CHECK(wrong_bits<float>(f, Type::F32) == 0);
            if (type != Type::F16) CHECK(wrong_bits<F16>(f, Type::F16) == 0);  // F16 is not rounded: above
        }
}

TEST_CASE("expansion rounds ties to even, saturates F16 and keeps what is subnormal") {
    const std::vector<float> values{
        0.0f,       -0.0f,     1.0f,   1 + 0x1p-11f, 1 + 3 * 0x1p-11f, 1 + 0x1p-8f,    65504,    65519.99f,
        65520,      -1e6f,     1e30f,  INFINITY,     0x1p-14f,         0x1p-15f,       0x1p-24f, 0x1p-25f,
        0x1.8p-25f, -0x1p-26f, 3e-39f, 0x1p-149f,    3.4e38f,          1 + 3 * 0x1p-8f};
    File f{Type::F32, 1, int(values.size()), false};
    f.bytes.resize(f.offset + f.stride());
    from_float(Type::F32, values.data(), f.row(0), f.n_col);
    CHECK(wrong_bits<float>(f, Type::F32) == 0);
    CHECK(wrong_bits<F16>(f, Type::F16) == 0);
}

TEST_CASE("decode() gives back the blocks' values") {
    uint32_t seed = 200;
    for (Type type : record_types)
        for (auto [n_row, n_col, gated] : shapes_of(type)) {
            INFO(type_info(type).name << " " << n_row << "x" << n_col << (gated ? " gated" : ""));
            const File f = usual_file(type, n_row, n_col, gated, seed++);
            const auto records = repacked(f, type);
            const int ld = record_cols(type, n_col);
            const auto decoded_values = type == Type::F32
                                            ? decoded<float>(records, type, f.n_tile(), n_col)
                                            : host_f32(decoded<F16>(records, type, f.n_tile(), n_col));
            double worst = 0;  // error, in units of what is allowed
            for (int r = 0; r < 16 * f.n_tile(); r++) {
                std::vector<float> values(ld), m(ld);
                if (f.file_row(r) >= 0) {
                    values = f.values(f.file_row(r)), m = minima(f, f.file_row(r));
                    values.resize(ld), m.resize(ld);
                }
                for (int c = 0; c < ld; c++) {
                    // F16: scale, minimum and the result are rounded, by 2^-11 each; beside 0 by 2^-25. So
                    // zero stays exactly zero where there are no rows and columns.
                    const double v = values[c], size = std::fabs(v) + std::fabs(m[c]);
                    const double allowed = 0x1p-10 * size + (size > 0 ? 0x1p-24 : 0);
                    const double error = std::fabs(decoded_values[size_t(r) * ld + c] - v);
                    worst = std::max(worst, error == 0 ? 0 : error / allowed);
                }
            }
            CHECK(worst <= 1);
        }
}

TEST_CASE("repack refuses what has no records") {
    uint8_t byte = 0;
    const RowTiles none{&byte, &byte, 0, 0, 0};
    CHECK_THROWS_AS(repack(Stream{}, Type::Q4_0, Type::Q8_0, none, 0, 32, &byte), Error);
    CHECK_THROWS_AS(repack(Stream{}, Type::Q2_K, Type::Q2_K, none, 0, 256, &byte), Error);
    CHECK_THROWS_AS(repack(Stream{}, Type::Q6_K, Type::F16, none, 1, 128, &byte), Error);
    CHECK_NOTHROW(repack(Stream{}, Type::Q6_K, Type::F16, none, 0, 256, &byte));
}
