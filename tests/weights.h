// weights.h: random weight matrices for kernel tests: as blocks, as the floats these stand for, and as
// records on the device.
#pragma once
#include "kernel.h"
#include "quant.h"
#include "records.h"

namespace easel {

struct TestWeights {
    std::vector<float>
        values;  // what the blocks mean: [n_expert n_row, n_col]; gated: gate rows, then up, an expert
    DeviceArray<uint8_t> records;
    Weights w;
};

// Random codes with small finite scales, for types that from_float() does not write.
inline void random_blocks(Type type, uint8_t* row, int64_t bytes, uint32_t seed) {
    std::mt19937 engine(seed);
    for (int64_t i = 0; i < bytes; i++) row[i] = static_cast<uint8_t>(engine());
    const TypeInfo& info = type_info(type);
    for (int64_t b = 0; b < bytes; b += info.block_bytes) {
        const auto put_half = [&](int offset) {
            const uint16_t d = f32_to_f16(0.0001f * static_cast<float>(1 + engine() % 100));
            std::memcpy(row + b + offset, &d, 2);
        };
        switch (type) {
            case Type::Q2_K:
                put_half(80), put_half(82);
                break;
            case Type::Q3_K:
                put_half(108);
                break;
            case Type::Q4_1:
                put_half(0), put_half(2);
                break;
            case Type::MXFP4:
                row[b] = static_cast<uint8_t>(120 + engine() % 4);
                break;
            default:
                put_half(0);
        }
    }
}

// X: the activations that it will be multiplied with. n_row of a gated pair counts both.
template <class X>
TestWeights make_weights(Type type, int n_row, int n_col, uint32_t seed, bool gated = false,
                         int n_expert = 1) {
    TestWeights out;
    const auto floats = random_floats(size_t(n_expert) * n_row * n_col, seed, 0.1f);
    const int64_t bytes = row_bytes(type, n_col);
    std::vector<uint8_t> blocks(size_t(n_expert) * n_row * bytes);
    out.values.resize(floats.size());
    for (int r = 0; r < n_expert * n_row; r++) {
        uint8_t* row = blocks.data() + r * bytes;
        if (type_info(type).from_float) {
            from_float(type, floats.data() + size_t(r) * n_col, row, n_col);
        } else {
            random_blocks(type, row, bytes, seed + r);
        }
        to_float(type, row, out.values.data() + size_t(r) * n_col, n_col);
    }
    const DeviceArray<uint8_t> file = to_device(blocks);
    out.w = {record_type<X>(type), nullptr, n_row, n_col, gated, n_expert};
    const int64_t expert_bytes = records_bytes(out.w.type, int64_t{16} * out.w.n_tile(), n_col);
    out.records = DeviceArray<uint8_t>(expert_bytes * n_expert);
    out.w.data = out.records.data();
    for (int e = 0; e < n_expert; e++) {
        const uint8_t* rows = file.data() + int64_t{e} * n_row * bytes;
        const int half = n_row / 2;
        const RowTiles tiles =
            gated ? RowTiles{rows, rows + half * bytes, 8 * bytes, half, half}
                  : RowTiles{rows, rows + 8 * bytes, 16 * bytes, n_row, std::max(n_row - 8, 0)};
        repack(Stream{}, type, out.w.type, tiles, out.w.n_tile(), n_col,
               out.records.data() + e * expert_bytes);
    }
    finish(Stream{});
    return out;
}

}  // namespace easel
