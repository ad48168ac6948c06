// layout.cpp: places and sizes of everything in GPU memory, see layout.h. Plain host code.
#include "layout.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "check.h"
#include "memory_plan.h"

namespace easel {

// ---- weights ----------------------------------------------------------------------------------------------

namespace {

// Takes the places of matrices and notes where they come from.
template <class T>
struct WeightsLayout {
    Arena& arena;
    ModelWeights& out;

    float* floats(std::vector<float> values) {
        float* place = arena.take<float>(static_cast<int64_t>(values.size()));
        if (place) out.floats.push_back({std::move(values), place});
        return place;
    }
    float* floats(const Matrix& m) {
        if (arena.counts_only()) return arena.take<float>(m.n_row * m.n_col);
        std::vector<float> values(m.n_row * m.n_col);
        for (int64_t r = 0; r < m.n_row; r++)
            to_float(m.type, m.data + r * m.stride(), values.data() + r * m.n_col, m.n_col);
        return floats(std::move(values));
    }

    Weights plain(const Matrix& m) {
        Weights w = experts({m, 0}, 1);
        w.data = take(w);
        note_experts(w, {m, 0}, out.records);
        return w;
    }
    Weights gated(const Matrix& gate, const Matrix& up) {
        Weights w = gated_experts({gate, 0}, {up, 0}, 1);
        w.data = take(w);
        note_gated(w, {gate, 0}, {up, 0}, out.records);
        return w;
    }
    // A layer's experts, on the device for good or, offloaded, in `place` for a while.
    void experts_of(const Layer& m, int layer, LayerWeights& o, int n_expert, bool offloaded,
                    uint8_t* place) {
        o.expert_gate_up = gated_experts(m.gate_exps, m.up_exps, n_expert);
        o.expert_down = experts(m.down_exps, n_expert);
        if (offloaded) {
            out.offloaded.push_back({layer, place, offload_bytes(m, n_expert), {}});
            o.expert_gate_up.data = place;
            o.expert_down.data = place ? place + down_at(o.expert_gate_up) : nullptr;
        } else {
            o.expert_gate_up.data = take(o.expert_gate_up);
            o.expert_down.data = take(o.expert_down);
        }
        std::vector<RecordSource>& to = offloaded ? out.offloaded.back().records : out.records;
        note_gated(o.expert_gate_up, m.gate_exps, m.up_exps, to);
        note_experts(o.expert_down, m.down_exps, to);
    }
    static int64_t offload_bytes(const Layer& m, int n_expert) {
        const Weights down = experts(m.down_exps, n_expert);
        return down_at(gated_experts(m.gate_exps, m.up_exps, n_expert)) + down.expert_bytes() * n_expert;
    }

  private:
    static Weights experts(const ExpertMatrix& e, int n_expert) {
        return {record_type<T>(e.first.type), nullptr, int(e.first.n_row),
                int(e.first.n_col),           false,   n_expert};
    }
    static Weights gated_experts(const ExpertMatrix& gate, const ExpertMatrix& up, int n_expert) {
        // A record has one type: where gate and up differ, both are expanded.
        const Type type = gate.first.type == up.first.type ? gate.first.type : Type::F32;
        return {record_type<T>(type),  nullptr, int(2 * gate.first.n_row),
                int(gate.first.n_col), true,    n_expert};
    }
    static int64_t down_at(const Weights& gate_up) {
        return (gate_up.expert_bytes() * gate_up.n_expert + 255) / 256 * 256;
    }
    uint8_t* take(const Weights& w) { return arena.take<uint8_t>(w.expert_bytes() * w.n_expert); }

    void note_experts(const Weights& w, const ExpertMatrix& e, std::vector<RecordSource>& to) {
        for (int i = 0; i < w.n_expert; i++) {
            const Matrix m = e.expert(i);
            note(w, i, m.type, m.type,
                 {m.data, m.data + 8 * m.stride(), 16 * m.stride(), w.n_row, std::max(w.n_row - 8, 0)}, to);
        }
    }
    void note_gated(const Weights& w, const ExpertMatrix& gate, const ExpertMatrix& up,
                    std::vector<RecordSource>& to) {
        for (int i = 0; i < w.n_expert; i++) {
            const Matrix g = gate.expert(i), u = up.expert(i);
            const int n = static_cast<int>(g.n_row);
            note(w, i, g.type, u.type, {g.data, u.data, 8 * g.stride(), n, n}, to);
        }
    }
    void note(const Weights& w, int expert, Type low, Type high, const RowTiles& rows,
              std::vector<RecordSource>& to) {
        if (arena.counts_only()) return;
        to.push_back({low, high, w.type, rows, w.gated, w.n_tile(), w.n_col,
                      const_cast<uint8_t*>(w.data) + expert * w.expert_bytes()});
    }
};

}  // namespace

int64_t Weights::expert_bytes() const {
    return records_bytes(type, int64_t{16} * n_tile(), n_col);
}

template <class T>
ModelWeights lay_out_weights(const Model& m, int n_offload, Arena& arena) {
    const Config& c = m.config;
    ModelWeights out;
    WeightsLayout<T> lay{arena, out};
    int64_t place_bytes = 0;  // for the experts of any offloaded layer
    for (int l = 0; l < c.n_layer; l++)
        if (is_offloaded(l, c.n_layer, n_offload))
            place_bytes = std::max(place_bytes, lay.offload_bytes(m.layers[l], c.n_expert));
    uint8_t* place[2] = {};
    for (int i = 0; i < std::min(n_offload, 2); i++) place[i] = arena.take<uint8_t>(place_bytes);
    out.embd = lay.plain(m.token_embd);
    out.output = m.output.data == m.token_embd.data ? out.embd : lay.plain(m.output);
    out.output_norm = lay.floats(m.output_norm);
    out.self_cond_norm = lay.floats(m.self_cond_norm);
    out.self_cond_gate_up = lay.gated(m.self_cond_gate, m.self_cond_up);
    out.self_cond_down = lay.plain(m.self_cond_down);
    out.freq = arena.take<double>(c.max_head_dim() / 2);
    out.freq_swa = arena.take<double>(c.max_head_dim() / 2);
    for (int l = 0; l < c.n_layer; l++) {
        const Layer& w = m.layers[l];
        LayerWeights o{};
        o.shape = attention_shape(c, l);
        o.q = lay.plain(w.q);
        o.k = lay.plain(w.k);
        if (w.v) o.v = lay.plain(w.v);
        o.o = lay.plain(w.o);
        o.gate_up = lay.gated(w.gate, w.up);
        o.down = lay.plain(w.down);
        lay.experts_of(w, l, o, c.n_expert, is_offloaded(l, c.n_layer, n_offload),
                       place[out.offloaded.size() % 2]);
        o.attn_norm = lay.floats(w.attn_norm);
        o.q_norm = lay.floats(w.q_norm);
        o.k_norm = lay.floats(w.k_norm);
        o.post_attention_norm = lay.floats(w.post_attention_norm);
        o.ffn_norm = lay.floats(w.ffn_norm);
        o.post_ffw_norm_1 = lay.floats(w.post_ffw_norm_1);
        o.router_scale = lay.floats(w.router_scale);
        o.pre_ffw_norm_2 = lay.floats(w.pre_ffw_norm_2);
        o.post_ffw_norm_2 = lay.floats(w.post_ffw_norm_2);
        o.post_ffw_norm = lay.floats(w.post_ffw_norm);
        o.router = lay.floats(w.router);
        o.expert_scale = lay.floats(w.down_exps_scale);
        o.output_scale = w.output_scale;
        o.enc_output_scale = w.enc_output_scale;
        out.layers.push_back(o);
    }
    return out;
}

// ---- buffers ----------------------------------------------------------------------------------------------

AttentionShape attention_shape(const Config& c, int layer) {
    const LayerShape& l = c.layers[layer];
    return {c.n_head, l.n_head_kv, l.head_dim, l.global ? 0 : c.window};
}

KvSplits kv_splits(const Config& c, int layer, const Room& room) {
    const LayerShape& l = c.layers[layer];
    const int n_key = l.global ? room.n_context : std::min(room.n_context, c.window - 1 + c.n_canvas);
    // A wave is one block per SM. At most 8 splits: their results for the 26B model's canvas are 34 MB.
    const int n_row = attention_rows(l.head_dim);
    const int n_block = (c.n_canvas * (c.n_head / l.n_head_kv) + n_row - 1) / n_row * l.n_head_kv;
    KvSplits splits{.most = 8, .in_wave = std::max(1, room.n_sm / n_block)};
    splits.most = splits.used(n_key);
    return splits;
}

// One place for buffers that are needed at different times: each of `times` takes its own from an arena that
// begins at that place. Returns the bytes of the largest.
static int64_t share_place(Arena& arena, const std::vector<std::function<void(Arena&)>>& times) {
    int64_t bytes = 0;
    for (const auto& take_own : times) {
        Arena count;
        take_own(count);
        bytes = std::max(bytes, count.bytes());
    }
    if (uint8_t* const place = arena.take<uint8_t>(bytes)) {
        for (const auto& take_own : times) {
            Arena own([place](int64_t offset, int64_t) { return place + offset; });
            take_own(own);
        }
    }
    return bytes;
}

template <class T>
Buffers<T> lay_out_buffers(const Model& model, const Room& room, Arena& arena) {
    const Config& c = model.config;
    const int64_t n = room.n_token, d = c.n_embd, n_pair = n * c.n_expert_used;
    // Rows of a product's output: of all tokens, or of the canvas with its splits (split-K, see forward.cpp).
    const auto split_rows = [&](int n_row) {
        return std::max<int64_t>(n, int64_t{c.n_canvas} * linear_splits(n_row, c.n_canvas, room.n_sm));
    };
    int64_t q_in = 0, q_out = 0, k_out = 0, attention = 0;  // of the layer with most
    for (int l = 0; l < c.n_layer; l++) {
        const AttentionShape s = attention_shape(c, l);
        q_in = std::max(q_in, n * padded(s.n_head * s.head_dim));
        const int q_row = s.n_head * s.head_dim, k_row = s.n_head_kv * s.head_dim;
        const int64_t rows = split_rows(q_row + k_row);
        q_out = std::max(q_out, rows * q_row);
        k_out = std::max(k_out, rows * k_row);
        attention = std::max(attention, attention_scratch<T>(c.n_canvas, s, kv_splits(c, l, room).most));
    }
    Buffers<T> b{};
    // Two names of one place: the first's content is no longer needed when the second is written, or the
    // kernel that writes a row of the second has read that row of the first before.
    b.x = b.h = arena.take<float>(n * d);
    b.o = b.dense = arena.take<float>(split_rows(c.n_embd) * d);
    b.in = b.ffn_in = arena.take<T>(n * padded(c.n_embd));
    b.expert_in = arena.take<T>(n * padded(c.n_embd));
    b.middle_bytes =
        share_place(arena, {[&](Arena& a) { b.q_in = b.o_in = a.take<T>(q_in); },
                            [&](Arena& a) {  // the experts' and, beside them, the dense branch's
                                b.slot_middle = a.take<T>(n_pair * padded(c.n_ff_exp));
                                b.middle = a.take<T>(std::max(
                                    n * padded(c.n_ff), int64_t{c.n_canvas} * padded(c.n_ff_self_cond)));
                            }});
    share_place(arena, {[&](Arena& a) { b.loading = a.take<uint8_t>(kLoadSlots * load_slot_bytes(model)); },
                        [&](Arena& a) {  // from lm_head() to the soft embedding of the next step
                            b.z = a.take<T>(int64_t{c.n_canvas} * vocab_stride(c.n_vocab));
                            b.stats = a.take<TileStats>(int64_t{c.n_canvas} * n_vocab_tile(c.n_vocab));
                            b.soft =
                                a.take<float>(soft_scratch(c.n_canvas, c.n_embd, c.n_vocab,
                                                           soft_splits(c.n_canvas, c.n_embd, room.n_sm)));
                        },
                        [&](Arena& a) {  // until qkv_norm()
                            b.q = a.take<float>(q_out);
                            for (float** p : {&b.k, &b.v}) *p = a.take<float>(k_out);
                        },
                        [&](Arena& a) { b.attention = a.take<float>(attention); },
                        [&](Arena& a) {  // until route() has ended
                            b.router_in = a.take<float>(n * d);
                            b.routing = a.take<float>(route_scratch(room.n_token, c.n_embd, c.n_expert));
                        },
                        [&](Arena& a) { b.slot_out = a.take<float>(n_pair * d); }});
    for (int** p : {&b.chosen, &b.slot_of, &b.token_of}) *p = arena.take<int>(n_pair);
    b.weight = arena.take<float>(n_pair);
    b.groups = arena.take<ExpertGroup>(max_groups<T>(c.n_expert, room.n_token * c.n_expert_used));
    for (float** p : {&b.cos, &b.sin, &b.cos_swa, &b.sin_swa})
        *p = arena.take<float>(n * c.max_head_dim() / 2);
    b.live = arena.take<uint8_t>(n_vocab_tile(c.n_vocab));
    b.rows = arena.take<RowStats>(c.n_canvas);
    b.tokens = arena.take<int32_t>(c.n_canvas);
    b.argmax = arena.take<int32_t>(c.n_canvas);
    b.prompt = arena.take<int32_t>(n);
    b.given = arena.take<GivenTokens>(1);
    b.state = arena.take<LoopState>(1);
    b.max_square = arena.take<float>(1);
    return b;
}

// Whether a layer's K and V are kept jointly: see KvLayer. For that, columns from 64 on, of each half, must
// not rotate: at any position by less than 1e-6, far less than F16 shows.
template <class T>
static bool is_joint(const Model& m, int layer) {
    const Layer& l = m.layers[layer];
    if (sizeof(T) != 2 || l.v || !l.shape.global || l.shape.head_dim != kJointDim) return false;
    // q times both weights must stay within F16; a value of a normed row is at most sqrt(512) < 22.7.
    for (int i = 0; i < kJointDim; i++)
        if (!(std::fabs(l.q_norm[i] * l.k_norm[i]) < 65504 / 22.7f)) return false;
    return m.rope_freqs.size() == kJointDim / 2 &&
           std::all_of(m.rope_freqs.begin() + kJointRotated / 2, m.rope_freqs.end(), [&](float divisor) {
               return static_cast<float>(m.config.n_context) / divisor < 1e-6f;
           });
}

template <class T>
std::vector<KvLayer<T>> lay_out_cache(const Model& m, const Room& room, Arena& arena) {
    std::vector<KvLayer<T>> out;
    for (int i = 0; i < m.config.n_layer; i++) {
        const LayerShape& l = m.config.layers[i];
        const int kept =
            l.global ? room.n_context : std::min(room.n_context, m.config.window - 1 + room.n_token);
        const bool joint = is_joint<T>(m, i);
        const int64_t n_row = int64_t{l.n_head_kv} * kept;
        T* k = arena.take<T>(n_row * (joint ? kJointRotated : l.head_dim));
        T* v = arena.take<T>(n_row * l.head_dim);
        out.push_back({k, v, kept, joint});
    }
    return out;
}

// ---- the plan ---------------------------------------------------------------------------------------------

int64_t load_slot_bytes(const Model& m) {
    int64_t largest = 0;
    const auto matrix = [&](const Matrix& a, const Matrix& b, bool gated) {
        const int64_t rows = (a.n_row + 15) / 16 * 16;
        const bool expand = a.type != b.type;
        const int64_t low = expand ? row_bytes(Type::F32, a.n_col) : a.stride(),
                      high = expand ? low : b.stride();
        largest = std::max(largest, gated ? rows * (low + high) : rows * low);
    };
    const auto plain = [&](const Matrix& a) { matrix(a, a, false); };
    for (const Matrix* a : {&m.token_embd, &m.output, &m.self_cond_down}) plain(*a);
    matrix(m.self_cond_gate, m.self_cond_up, true);
    for (const Layer& l : m.layers) {
        for (const Matrix* a : {&l.q, &l.k, &l.v, &l.o, &l.down, &l.down_exps.first}) plain(*a);
        matrix(l.gate, l.up, true);
        matrix(l.gate_exps.first, l.up_exps.first, true);
    }
    // Two tiles' rows of the widest matrices anyone would make, and little enough to be pinned at once.
    constexpr int64_t kMost = 16 << 20;
    // The high rows begin at a multiple of 256, as the next slot does.
    return std::min(kMost, (largest + 256 + 255) / 256 * 256);
}

template <class T>
static MemoryPlan plan(const Model& model, const DeviceOptions& options) {
    const Room room(model.config, options);
    Arena weights, cache, buffers;
    const ModelWeights w = lay_out_weights<T>(model, options.n_offload, weights);
    lay_out_cache<T>(model, room, cache);
    lay_out_buffers<T>(model, room, buffers);
    int64_t host = 0;
    for (const Offloaded& o : w.offloaded) host += o.bytes;
    return {weights.bytes(), cache.bytes(), buffers.bytes(), host, options.n_offload, room.n_token};
}

MemoryPlan plan_gpu(const Model& model, const DeviceOptions& options) {
    require(options.n_offload >= 0 && options.n_offload <= model.config.n_layer,
            "--expert-offload is {} layers, expected 0 to {}", options.n_offload, model.config.n_layer);
    return options.exact ? plan<float>(model, options) : plan<F16>(model, options);
}

int largest_that_fits(int least, int most, const std::function<bool(int)>& fits) {
    if (!fits(least)) return 0;
    while (least < most) {
        const int middle = least + (most - least + 1) / 2;
        if (fits(middle))
            least = middle;
        else
            most = middle - 1;
    }
    return least;
}

DeviceOptions fit_gpu(const Model& model, const DeviceOptions& options, int64_t available) {
    constexpr int kComfortable = 8192;  // a context that is worth smaller encode passes
    constexpr int kEnough = 2048;       // one that will do if it leaves all experts on the device
    const Config& c = model.config;
    const int asked = options.n_context;
    const int least = std::min(c.n_canvas + 1, c.n_context);  // a prompt of one token

    int smallest = options.n_encode;  // halved twice, but not below a canvas
    for (int i = 0; i < 2 && smallest / 2 >= c.n_canvas; i++) smallest /= 2;
    const bool fewest = options.n_offload == kFewestOffloaded;

    // The largest context in [low, high] that fits, with the largest encode passes that leave room for one;
    // nothing if even the smallest passes leave none.
    const auto fit_between = [&](int n_offload, int n_encode, int low,
                                 int high) -> std::optional<DeviceOptions> {
        DeviceOptions o = options;
        o.n_offload = n_offload;
        for (o.n_encode = n_encode; o.n_encode >= smallest; o.n_encode /= 2) {
            o.n_context = largest_that_fits(low, high, [&](int n_context) {
                o.n_context = n_context;
                return plan_gpu(model, o).total() <= available;
            });
            if (o.n_context) return o;
        }
        return {};
    };
    const auto fit = [&](int n_offload, int from) {
        if (asked) return fit_between(n_offload, options.n_encode, asked, asked);
        const int n_encode = from == kComfortable ? options.n_encode : smallest;
        return fit_between(n_offload, n_encode, std::min(from, c.n_context), c.n_context);
    };
    for (const int from : {kComfortable, fewest ? kEnough : least})
        if (const auto found = fit(fewest ? 0 : options.n_offload, from)) return *found;
    const auto fit_fewest = [&]() -> std::optional<DeviceOptions> {
        for (const int from : {kComfortable, least})
            for (int n = 1; n <= c.n_layer; n++)
                if (const auto found = fit(n, from)) return found;
        return {};
    };
    const auto offloaded = fit_fewest();
    if (fewest && offloaded) return *offloaded;

    DeviceOptions o = options;
    o.n_offload = fewest ? c.n_layer : options.n_offload;
    const auto largest = fit_between(o.n_offload, smallest, least, c.n_context);
    o.n_context = largest ? asked : least;
    o.n_encode = smallest;
    const MemoryPlan p = plan_gpu(model, o);
    const auto gb = [](int64_t bytes) { return static_cast<double>(bytes) / 1e9; };
    const std::string needs = fmt::format(
        "a context of {} needs {:.3f} GB of GPU memory ({:.3f} weights, {:.3f} KV cache, {:.3f} buffers), "
        "{:.3f} GB are available",
        o.n_context, gb(p.total()), gb(p.weights), gb(p.kv), gb(p.scratch), gb(available));
    const std::string outside =
        offloaded
            ? fmt::format(", unless the experts of {} layers stay in the host's memory (--expert-offload {})",
                          offloaded->n_offload, offloaded->n_offload)
            : "";
    if (largest)
        fail("{}: the largest that fits is {} (-c {}){}", needs, largest->n_context, largest->n_context,
             outside);
    if (offloaded) fail("{}: no context fits{}", needs, outside);
    fail("{}: no context fits; a smaller quantisation might, or --device cpu", needs);
}

std::string offload_cost(const MemoryPlan& p) {
    const double gb = static_cast<double>(p.host) / 1e9;
    return fmt::format(
        "the experts of {} layers, {:.2f} GB, stay in the host's memory and cross the bus at every step: "
        "{:.0f} ms at 25 GB/s (PCIe 4.0 x16), {:.0f} ms at 55 GB/s (5.0 x16), by arithmetic",
        p.n_offload, gb, gb / 25 * 1e3, gb / 55 * 1e3);
}

template ModelWeights lay_out_weights<F16>(const Model&, int, Arena&);
template ModelWeights lay_out_weights<float>(const Model&, int, Arena&);
template Buffers<F16> lay_out_buffers(const Model&, const Room&, Arena&);
template Buffers<float> lay_out_buffers(const Model&, const Room&, Arena&);
template std::vector<KvLayer<F16>> lay_out_cache(const Model&, const Room&, Arena&);
template std::vector<KvLayer<float>> lay_out_cache(const Model&, const Room&, Arena&);

}  // namespace easel
