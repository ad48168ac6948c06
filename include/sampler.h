// sampler.h: the numbers of one denoise step: random draws, temperature, acceptance, the stop rule (SPEC
// sections 3, 8). Plain functions that the CPU loop calls and that device kernels share or are checked
// against.
#pragma once
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#ifdef __CUDACC__
#define EASEL_BOTH __host__ __device__
#else
#define EASEL_BOTH
#endif

namespace easel {

struct SamplerConfig {
    int max_steps = 48;  // denoise steps a canvas at most, >= 1
    float t_min = 0.4f;  // the temperature falls from t_max towards t_min, both > 0
    float t_max = 0.8f;
    float entropy_bound = 0.1f;  // nats; >= 0
    int stability = 1;           // equal argmax canvases before this one; >= 0
    float confidence = 0.005f;   // mean entropy in nats; >= 0
    bool greedy = false;         // the argmax instead of a draw
    // Approximations, all but the last one off by default: see sample_row() and keep_largest().
    int top_k = 0;        // logits a position that take part at all; 0 = all
    int top_k_start = 0;  // both > 0: top_k changes evenly from start (first step) to end (last step)
    int top_k_end = 0;
    bool top_k_tail_correction = false;  // entropy over the full vocabulary although top_k draws from fewer
    int self_cond_top_k = 0;             // probabilities a position that feed self-conditioning; 0 = all
    // How much of a position's probability self-conditioning may leave out, of its least likely tokens; 0:
    // none; < 0: as little as the backend's activations round away, see soft_drop().
    float self_cond_drop = -1;
};

// Throws Error naming the first setting that is out of range.
void check_sampler(const SamplerConfig& config);

// What a random number is for (SPEC section 8).
enum class RandomStream : uint32_t { Init = 0, Draw = 1, Renoise = 2 };

// Word 0 of Philox4x32-10 (Salmon et al., SC 2011); key = the seed's halves, counter = (position, step,
// canvas, stream).
EASEL_BOTH inline uint32_t random_word(uint64_t seed, uint32_t position, uint32_t step, uint32_t canvas,
                                       RandomStream stream) {
    uint32_t c0 = position, c1 = step, c2 = canvas, c3 = static_cast<uint32_t>(stream);
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
        const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0,
                       n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
        c1 = static_cast<uint32_t>(p1);
        c3 = static_cast<uint32_t>(p0);
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;  // Weyl constants of the paper
        k1 += 0xBB67AE85u;
    }
    return c0;
}

// A uniform token id, and a uniform number in [0, 1) with 24 bits.
EASEL_BOTH inline int32_t random_token(uint32_t word, int n_vocab) {
    return static_cast<int32_t>((uint64_t{word} * static_cast<uint64_t>(n_vocab)) >> 32);
}
EASEL_BOTH inline float random_uniform(uint32_t word) {
    return static_cast<float>(word >> 8) * 0x1p-24f;
}

// Temperature of `step`, counted up from 0: t_max first, t_min + (t_max - t_min) / max_steps last.
EASEL_BOTH inline float temperature(const SamplerConfig& c, int step) {
    return static_cast<float>(c.t_min + (double{c.t_max} - c.t_min) * (c.max_steps - step) / c.max_steps);
}

// The top_k in force at `step`, or 0 for all.
EASEL_BOTH inline int step_top_k(const SamplerConfig& c, int step) {
    if (c.top_k_start <= 0 || c.top_k_end <= 0) return c.top_k;
    if (c.max_steps < 2) return c.top_k_start;
    return c.top_k_start +
           static_cast<int>(static_cast<int64_t>(c.top_k_end - c.top_k_start) * step / (c.max_steps - 1));
}

// The self_cond_drop in force for activations with a significand of n_bit bits: 24 (float32), or 11 (F16, and
// whatever is coarser).
EASEL_BOTH inline float soft_drop(const SamplerConfig& c, int n_bit) {
    return c.self_cond_drop >= 0 ? c.self_cond_drop : n_bit == 24 ? 0x1p-24f : 0x1p-10f;
}

// Entropies are added as integers of 2^-40 nats, so that a sum is the same in any order (256 x ln 2^18 fits
// easily). NaN and infinity count as 0: the engine refuses the answer that they are in.
EASEL_BOTH inline int64_t entropy_fixed(float nats) {
    const bool finite = nats - nats == 0;
    return finite ? static_cast<int64_t>(double{nats} * 0x1p40) : 0;
}
EASEL_BOTH inline double entropy_nats(int64_t fixed) {
    return static_cast<double>(fixed) * 0x1p-40;
}

struct RowStats {
    float entropy;   // nats, of softmax(logits / t)
    int32_t argmax;  // ties: the lowest id
    int32_t drawn;   // the smallest v with cumsum(p)[v] > u, p in vocabulary order; n_vocab - 1 if none
    float log_prob;  // of argmax, nats
    float dropped;   // probability that self_cond_drop leaves out; the backend sets it
};

// One position. logits [n_vocab] softcapped logits in; probabilities softmax(logits / t) out, in place.
// top_k > 0: only the top_k largest logits (ties: the lowest ids) take part; the others get probability 0,
// and the entropy is theirs alone unless tail_correction asks for that of the full vocabulary.
RowStats sample_row(std::span<float> logits, float t, float u, int top_k, bool tail_correction);

// Leaves the k largest of probs [n_vocab] (ties: the lowest ids), sets the others to 0; the rest is not
// rescaled.
void keep_largest(std::span<float> probs, int k);

// Sets probabilities of probs [n_vocab] below drop / n_vocab to 0. Returns what they add up to: less than
// `drop`.
float drop_unlikely(std::span<float> probs, float drop);

// A place of the canvas that one of several texts of equal length fills.
struct Choice {
    int begin;                                  // its first position
    std::vector<std::vector<int32_t>> options;  // ids, one or more each; positions begin, begin + 1 ..
    int length() const { return static_cast<int>(options[0].size()); }
};

// All positions of a choice at once: option o has probability softmax over o of (the sum of its tokens'
// logits / t). logits [n_canvas, n_vocab] softcapped logits in; the choice's rows become the probabilities of
// their tokens. stats [n_canvas]: the choice's rows get the tokens of the likeliest option (ties: the first)
// and of the drawn one, and equal shares of the entropy and of the log probability.
void sample_choice(std::span<float> logits, int n_vocab, const Choice& choice, float t, float u,
                   std::span<RowStats> stats);

// Positions in ascending order of entropy (ties: by position) are accepted while the entropies before them
// add up to at most `bound`; the first always is. Returns the mean entropy, over n_free positions: all but
// those whose token is given, which have no entropy. entropy, accepted [n_canvas].
float accept(std::span<const float> entropy, float bound, int n_free, std::span<uint8_t> accepted);

// Whether the canvas is finished: the argmax canvas equals each of the `stability` before it, and the mean
// entropy is below `confidence`.
class StopRule {
  public:
    StopRule(int stability, float confidence) : stability_(stability), confidence_(confidence) {}
    bool update(std::span<const int32_t> argmax, float mean_entropy);

  private:
    int stability_;
    float confidence_;
    int held_ = 0;  // consecutive steps whose argmax canvas equalled the one before
    std::vector<int32_t> last_;
};

}  // namespace easel
