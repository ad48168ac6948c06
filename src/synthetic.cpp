// synthetic.cpp: models of real shapes with random weights, for `easel bench`: passes cost the same without a
// file or training.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "check.h"
#include "convert.h"
#include "model.h"
#include "parallel.h"

namespace easel {

namespace {

Config mid_config() {
    Config c;
    c.n_layer = 12;
    c.n_embd = 1024;
    c.n_head = 8;
    c.n_ff = c.n_ff_self_cond = 1536;
    c.n_ff_exp = 512;
    c.n_expert = 24;
    c.n_expert_used = 4;
    c.n_vocab = 32000;
    c.n_canvas = 256;
    c.n_context = 131072;
    c.window = 1024;
    c.rms_eps = 1e-6f;
    c.softcap = 30;
    c.rope_theta = 1e6;
    c.rope_theta_swa = 1e4;
    for (int l = 0; l < c.n_layer; l++)
        c.layers.push_back(l % 6 == 5 ? LayerShape{true, 2, 256} : LayerShape{false, 4, 128});
    return c;
}

// The published 26B-A4B model (SPEC section 1).
Config real_config() {
    Config c = mid_config();
    c.n_layer = 30;
    c.n_embd = 2816;
    c.n_head = 16;
    c.n_ff = c.n_ff_self_cond = 2112;
    c.n_ff_exp = 704;
    c.n_expert = 128;
    c.n_expert_used = 8;
    c.n_vocab = 262144;
    c.n_context = 262144;
    c.layers.clear();
    for (int l = 0; l < c.n_layer; l++)
        c.layers.push_back(l % 6 == 5 ? LayerShape{true, 2, 512} : LayerShape{false, 8, 256});
    return c;
}

// Small enough for a test, wide enough for every block type.
Config toy_config() {
    Config c = mid_config();
    c.n_layer = 2;
    c.n_embd = 256;
    c.n_head = 4;
    c.n_ff = c.n_ff_self_cond = 256;
    c.n_ff_exp = 256;
    c.n_expert = 16;
    c.n_expert_used = 2;
    c.n_vocab = 400;
    c.n_canvas = 32;
    c.n_context = 4096;
    c.window = 64;
    c.layers = {{false, 2, 64}, {true, 1, 512}};
    return c;
}

// The x between 0 and high where f, which rises, is y.
template <class F>
double solve(double high, double y, F f) {
    double low = 0;
    for (int i = 0; i < 200; i++) {
        const double middle = (low + high) / 2;
        (f(middle) < y ? low : high) = middle;
    }
    return low;
}

// Factors of the router's rows, in an order drawn with the seed, that give the expert of rank r a share of
// the tokens that falls as r^-skew, but at most 45 %. They assume that an expert's logits are normal, with
// its factor for standard deviation, and that it is chosen where its logit is above a bound common to all.
std::vector<float> router_scales(int n_expert, int n_used, double skew, uint32_t seed) {
    const auto share = [&](double c, int r) { return std::min(0.45, c * std::pow(r + 1, -skew)); };
    const double c = solve(n_expert * std::pow(n_expert, skew), n_used, [&](double c) {
        double sum = 0;
        for (int r = 0; r < n_expert; r++) sum += share(c, r);
        return sum;
    });
    const auto deviations = [](double p) {  // that a normal value exceeds with probability p, below a half
        return solve(40, -p, [](double x) { return -std::erfc(x / std::sqrt(2.0)) / 2; });
    };
    std::vector<float> out(n_expert);
    for (int r = 0; r < n_expert; r++)
        out[r] = static_cast<float>(deviations(double(n_used) / n_expert) / deviations(share(c, r)));
    std::shuffle(out.begin(), out.end(), std::mt19937(seed));
    return out;
}

// Makes tensors by name and remembers where each went.
class Maker {
  public:
    Maker(Model& model, std::string_view type) : model_(model), type_(type) {}

    // Declares; the data comes with make().
    void add(const std::string& name, Matrix* target, int64_t n_row, int64_t n_col, int64_t n_expert = 1) {
        std::vector<int64_t> ne{n_col, n_row};
        if (n_expert > 1) ne.push_back(n_expert);
        plans_.push_back({name, ne, Type::F32});
        targets_.push_back(target);
        rows_.push_back({});
    }
    // For the tensor added last: so many different rows; or all different, each times its factor.
    void distinct(int n) { rows_.back().n_distinct = n; }
    void scale(std::vector<float> factors) { rows_.back() = {factors.size(), std::move(factors)}; }

    void make(bool with_weights) {
        plan_types(type_, plans_);
        static const uint8_t none = 0;
        for (size_t i = 0; i < plans_.size(); i++)
            *targets_[i] = {plans_[i].type, &none, plans_[i].ne[1], plans_[i].ne[0]};
        if (!with_weights) return;
        model_.storage.resize(plans_.size());
        parallel_for(static_cast<int64_t>(plans_.size()), [&](int64_t i) {
            const TensorPlan& p = plans_[i];
            model_.storage[i] = random_rows(p, rows_[i], static_cast<uint32_t>(i));
            targets_[i]->data = model_.storage[i].data();
        });
    }

  private:
    struct RandomRows {
        size_t n_distinct = 16;
        std::vector<float> factors;
    };

    // A few rows of normal values are quantised and repeated in random order: a second, not minutes.
    static std::vector<uint8_t> random_rows(const TensorPlan& p, const RandomRows& rows, uint32_t seed) {
        const int64_t n_col = p.ne[0], n_row = p.ne[1] * (p.ne.size() > 2 ? p.ne[2] : 1),
                      bytes = row_bytes(p.type, n_col);
        std::mt19937 random(seed);
        std::normal_distribution<float> normal(0, 1 / std::sqrt(static_cast<float>(n_col)));
        std::vector<float> row(n_col);
        std::vector<uint8_t> distinct(rows.n_distinct * bytes), out(n_row * bytes);
        for (size_t r = 0; r < rows.n_distinct; r++) {
            const float factor = rows.factors.empty() ? 1 : rows.factors[r];
            std::generate(row.begin(), row.end(), [&] { return factor * normal(random); });
            from_float(p.type, row.data(), distinct.data() + r * bytes, n_col);
        }
        if (!rows.factors.empty()) return distinct;
        for (int64_t r = 0; r < n_row; r++)
            std::memcpy(out.data() + r * bytes, distinct.data() + random() % rows.n_distinct * bytes, bytes);
        return out;
    }

    Model& model_;
    std::string_view type_;
    std::vector<TensorPlan> plans_;
    std::vector<Matrix*> targets_;
    std::vector<RandomRows> rows_;
};

}  // namespace

static std::shared_ptr<const Model> make_synthetic(std::string_view shape, std::string_view type,
                                                   double router_skew, bool with_weights) {
    require(shape == "toy" || shape == "mid" || shape == "26b-a4b",
            "no synthetic model \"{}\", expected toy, mid or 26b-a4b", shape);
    const bool real = shape == "26b-a4b";
    auto model = std::make_shared<Model>();
    model->config = real ? real_config() : shape == "mid" ? mid_config() : toy_config();
    // The experts of the large model are one and the same in host memory; on a GPU each has its own place.
    const int n_stored = real ? 1 : model->config.n_expert;
    const Config& c = model->config;
    const int64_t d = c.n_embd;
    Maker maker(*model, type);
    maker.add("token_embd.weight", &model->token_embd, c.n_vocab, d);
    maker.distinct(1024);  // with fewer, many tokens are equal and go to the same few experts
    maker.add("self_cond_gate.weight", &model->self_cond_gate, c.n_ff_self_cond, d);
    maker.add("self_cond_up.weight", &model->self_cond_up, c.n_ff_self_cond, d);
    maker.add("self_cond_down.weight", &model->self_cond_down, d, c.n_ff_self_cond);
    model->output_norm = model->self_cond_norm = std::vector<float>(d, 1.0f);
    model->layers.resize(c.n_layer);
    std::vector<Matrix> gate_up(c.n_layer);
    for (int l = 0; l < c.n_layer; l++) {
        Layer& y = model->layers[l];
        y.shape = c.layers[l];
        const int64_t hd = y.shape.head_dim, n_q = c.n_head * hd, n_kv = y.shape.n_head_kv * hd;
        const auto name = [&](const char* tail) { return fmt::format("blk.{}.{}.weight", l, tail); };
        maker.add(name("attn_q"), &y.q, n_q, d);
        maker.add(name("attn_k"), &y.k, n_kv, d);
        if (!y.shape.global) maker.add(name("attn_v"), &y.v, n_kv, d);
        maker.add(name("attn_output"), &y.o, d, n_q);
        maker.add(name("ffn_gate"), &y.gate, c.n_ff, d);
        maker.add(name("ffn_up"), &y.up, c.n_ff, d);
        maker.add(name("ffn_down"), &y.down, d, c.n_ff);
        maker.add(name("ffn_gate_inp"), &y.router, c.n_expert, d);
        maker.scale(router_scales(c.n_expert, c.n_expert_used, router_skew, l));
        maker.add(name("ffn_gate_up_exps"), &gate_up[l], 2 * int64_t{c.n_ff_exp}, d, n_stored);
        maker.add(name("ffn_down_exps"), &y.down_exps.first, d, c.n_ff_exp, n_stored);
        y.q_norm = y.k_norm = std::vector<float>(hd, 0.3f);  // scores of a trained model's size
        y.attn_norm = y.ffn_norm = y.post_ffw_norm_1 = y.router_scale = y.pre_ffw_norm_2 = y.post_ffw_norm_2 =
            y.post_ffw_norm = std::vector<float>(d, 1.0f);
        // Random attention adds nearly the same to all rows: at full size (1) that would send all of them to
        // the same experts.
        y.post_attention_norm.assign(d, 0.1f);
        y.down_exps_scale.assign(c.n_expert, 1.0f);
    }
    maker.make(with_weights);
    for (int l = 0; l < c.n_layer; l++) {
        Layer& y = model->layers[l];
        y.gate_exps = y.up_exps = {gate_up[l], n_stored > 1 ? gate_up[l].n_row * gate_up[l].stride() : 0};
        y.gate_exps.first.n_row = y.up_exps.first.n_row = c.n_ff_exp;
        y.up_exps.first.data += c.n_ff_exp * gate_up[l].stride();
        y.down_exps.expert_bytes = n_stored > 1 ? d * y.down_exps.first.stride() : 0;
    }
    model->output = model->token_embd;
    model->rope_freqs.assign(c.max_head_dim() / 2, 1e30f);  // as published: a quarter rotates
    std::fill_n(model->rope_freqs.begin(), model->rope_freqs.size() / 4, 1.0f);
    return model;
}

std::shared_ptr<const Model> synthetic_model(std::string_view shape, std::string_view type,
                                             double router_skew) {
    return make_synthetic(shape, type, router_skew, true);
}
std::shared_ptr<const Model> synthetic_shapes(std::string_view shape, std::string_view type) {
    return make_synthetic(shape, type, 0, false);
}

}  // namespace easel
