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
            random_blocks(type, row, bytes, seed + r, 0.0001f);
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
