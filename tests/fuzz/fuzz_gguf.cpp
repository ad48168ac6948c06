// fuzz_gguf.cpp: libFuzzer target: any bytes as a GGUF file. They are refused with an Error, or every key and
// tensor of them can be read; likewise for the model that they may describe. First inputs:
// tests/fixtures/broken.

// sources: gguf.cpp mapping.cpp text.cpp quant.cpp model.cpp sampler.cpp
#include <memory>

#include "check.h"
#include "gguf_tools.h"
#include "model.h"

using namespace easel;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    volatile uint64_t sink = 0;  // so that no read is optimised away
    try {
        const auto file = std::make_shared<const Gguf>(Gguf::from_memory({data, size}, "fuzz"));
        sink = sink + read_everything(*file);
        const Model model(file);
        // Rows of every matrix, as the forward pass would read them.
        std::vector<float> row;
        const auto read = [&](const Matrix& m) {
            row.resize(static_cast<size_t>(m.n_col));
            for (int64_t r : {int64_t{0}, m.n_row - 1}) {
                to_float(m.type, m.data + r * m.stride(), row.data(), m.n_col);
                sink = sink + (row[0] > 0);
            }
        };
        for (const Matrix& m :
             {model.token_embd, model.output, model.self_cond_gate, model.self_cond_up, model.self_cond_down})
            read(m);
        for (const Layer& l : model.layers) {
            for (const Matrix& m : {l.q, l.k, l.o, l.gate, l.up, l.down, l.router}) read(m);
            if (l.v) read(l.v);
            for (const ExpertMatrix& m : {l.gate_exps, l.up_exps, l.down_exps}) {
                read(m.expert(0));
                read(m.expert(model.config.n_expert - 1));
            }
        }
    } catch (const Error&) {
    }
    return 0;
}
