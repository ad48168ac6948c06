// ops.h: every launcher of this folder: what forward.cpp builds its passes from, and backend.cpp the loop.
// One group per .cu file, where each launcher stands under its kernel.
//
// T is the type of activations that go into products: F16 (tensor cores), or float where exactness is asked
// for. Activations of type T have rows of padded(n) elements, finite past n, where weights are zero; float32
// ones have rows of n. [n] in a shape is the row without its padding. Launchers add to `stream` and return at
// once. What varies from step to step is in LoopState, in device memory, so that a captured launch stays
// valid.
#pragma once
#include <algorithm>

#include "backend.h"
#include "quant.h"
#include "sampler.h"
#include "types.h"

namespace easel {

// Elements of an activation row: whole chunks of a record (records.h).
EASEL_BOTH constexpr int padded(int n) {
    return (n + 63) / 64 * 64;
}

// The vocabulary goes in tiles; rows over it are whole tiles.
constexpr int kVocabTile = 128;
EASEL_BOTH constexpr int n_vocab_tile(int n_vocab) {
    return (n_vocab + kVocabTile - 1) / kVocabTile;
}
EASEL_BOTH constexpr int vocab_stride(int n_vocab) {
    return n_vocab_tile(n_vocab) * kVocabTile;
}

// A matrix, or one per expert, as records (records.h). `gated`: gate and up [n_row / 2, n_col] each; row tile
// i has rows 8 i to 8 i + 7 of gate as its rows 0-7 and the same rows of up as its rows 8-15.
struct Weights {
    Type type = Type::F32;
    const uint8_t* data = nullptr;
    int n_row = 0, n_col = 0;  // n_row of a gated pair counts both
    bool gated = false;
    int n_expert = 1;
    float scale = 1;  // of every result; see scale_products() in load.cpp

    int n_tile() const { return gated ? (n_row / 2 + 7) / 8 : (n_row + 15) / 16; }
    int64_t expert_bytes() const;  // n_tile() tiles of records
};

constexpr int kMaxHeadDim = 512;
constexpr int kMaxEndTokens = 64;
constexpr int kMaxCanvas = 1024;    // positions of a canvas: accept() has a thread for each, in one block
constexpr int kMaxExperts = 1024;   // of a layer: permute() counts them in shared memory
constexpr int kMaxUsed = 32;        // experts of a token: route() gives each to a lane of one warp
constexpr int kMaxVocab = 1 << 20;  // sample() adds up fixed-point numbers in 63 bits

// State of the generation loop. The host writes it before a launch; kernels update it.
struct LoopState {
    // The request.
    SamplerConfig sampler;
    uint64_t seed;
    int max_canvases;
    int n_free;     // positions of a canvas whose token is not given
    int has_given;  // whether GivenTokens is to be read
    int n_end;      // of end_tokens
    int32_t end_tokens[kMaxEndTokens];
    // Where it is.
    int n_cached;      // tokens in the KV cache: the position of the first row of the next pass
    int canvas, step;  // from 0; accept() counts the step up at its end
    int held;          // steps in a row whose argmax canvas equalled that of the step before: see StopRule
    int finish;        // Finish, once `done`
    int done;
    uint32_t n_frame;  // frames written to the ring
    uint64_t canvas_start_ns,
        denoise_ns;  // clock_ns() when the canvas began; time of the canvases that have ended
};

// What is known of the canvas beforehand, Given of backend.h.
struct GivenTokens {
    static constexpr int kFree = -1;
    struct Span {
        int begin, length;     // positions
        int n_option, option;  // the options' tokens are options[option + o length ..]
    };
    int32_t tokens[kMaxCanvas];  // a position's token, kFree, or -2 - the number of its choice
    Span choices[kMaxChoices];
    int32_t options[kMaxOptionTokens];
};

// Progress to the host and back: lives in memory that both sides see. The host reads frame i, in slot i %
// n_slot, once head > i, and then sets tail to i + 1; the device waits while the ring is full.
struct RingHeader {
    uint32_t head;  // frames that the device has published
    uint32_t tail;  // frames that the host has taken
    uint32_t cancel;
    uint32_t ended;  // by the device: the answer has no more frames
};
struct FrameHeader {
    int canvas, step;
    float mean_entropy, temperature, dropped;
    int last;
};
// What lies in a slot: the header, then [n_canvas] each.
struct FrameSlot {
    FrameHeader* header;
    int32_t *tokens, *argmax;
    float *entropy, *log_prob;
    uint8_t* accepted;

    EASEL_BOTH FrameSlot(uint8_t* slot, int n_canvas) {
        header = reinterpret_cast<FrameHeader*>(slot);
        tokens = reinterpret_cast<int32_t*>(header + 1);
        argmax = tokens + n_canvas;
        entropy = reinterpret_cast<float*>(argmax + n_canvas);
        log_prob = entropy + n_canvas;
        accepted = reinterpret_cast<uint8_t*>(log_prob + n_canvas);
    }
    static constexpr int bytes(int n_canvas) {
        return (static_cast<int>(sizeof(FrameHeader)) + (4 * 4 + 1) * n_canvas + 63) / 64 * 64;
    }
};
struct Ring {
    RingHeader* header;
    uint8_t* slots;
    int n_slot;
    int slot_bytes;  // FrameSlot::bytes(n_canvas)
};

// K and V of one layer: [n_head_kv, n_slot, head_dim] T, the token at `position` in slot position % n_slot.
// Joint: in a layer without a matrix for V, K and V are the same normed row, except that K is multiplied by
// k_norm and then rotated, in kJointRotated of its kJointDim columns. So k [n_head_kv, n_slot, kJointRotated]
// keeps these columns alone. For the others attention reads V in place of K, and q is multiplied by k_norm
// instead. The columns of q and V are then in the order of joint_place().
template <class T>
struct KvLayer {
    T *k, *v;
    int n_slot;
    bool joint = false;
};
constexpr int kJointDim = 512, kJointRotated = 128;
// The place of column i < 256 in a row of q or V; column 256 + i is 256 places on. Each quarter of the
// places, the share of a warp of attention(), is a quarter of the rotated columns (0-63 and 256-319), then a
// quarter of the others. k has the rotated columns in their own order, which is that of the quarters.
EASEL_BOTH constexpr int joint_place(int i) {
    return i < 64 ? i / 32 * 128 + i % 32 : (i - 64) / 96 * 128 + 32 + (i - 64) % 96;
}
// The column at a place.
EASEL_BOTH constexpr int joint_column(int place) {
    const int half = place / 256 * 256, quarter = place / 128 % 2, i = place % 128;
    return half + (i < 32 ? 32 * quarter + i : 64 + 96 * quarter + i - 32);
}

// Slots begin .. end - 1, all of one expert: pairs (token, i) that permute() has put next to each other.
struct alignas(16) ExpertGroup {
    int expert, begin, end;
};

struct AttentionShape {
    int n_head, n_head_kv, head_dim;
    int window;  // 0: global
};

// ---- peak.cu ----------------------------------------------------------------------------------------------

// Products at the tensor cores' peak rate: in each of n_step steps, an even number, each of the 8 warps of
// n_block blocks multiplies 16 pairs of matrices, [16, 16] x [16, 8]. words [kPeakWords], two F16 each: the
// first matrices of even steps, those of odd steps (kPeakWords / 6 each), then the second matrices.
// out [256 n_block]: the sum of each thread's results.
void mma_peak(Stream stream, float* out, int n_block, int n_step, const uint32_t* words);
constexpr int kPeakWords = 6 * 1024;

// Reads `bytes`, a multiple of 16, at p with n_block blocks, n_pass times; out [n_block]: the exclusive or of
// the 32-bit words that each block has read.
void read_memory(Stream stream, uint32_t* out, int n_block, const uint8_t* p, int64_t bytes, int n_pass = 1);

// ---- repack.cu --------------------------------------------------------------------------------------------

// Row tiles as they lie in a file: tile i has rows 0-7, contiguous, at low + i stride and rows 8-15 at high +
// i stride. A plain matrix: high = low + 8 rows, stride = 16 rows; a gated pair: low = gate, high = up,
// stride = 8 rows. n_low rows exist from low on and n_high from high on; rows past them become zero.
struct RowTiles {
    const uint8_t *low, *high;  // device memory
    int64_t stride;             // bytes
    int n_low, n_high;
};
// Blocks of type `from`, rows of n_col values, to n_tile tiles of records of type `to` at `records`. `to` is
// `from`, or F16 or F32, which any type can be expanded to.
void repack(Stream stream, Type from, Type to, const RowTiles& rows, int n_tile, int n_col, uint8_t* records);

// ---- embed.cu ---------------------------------------------------------------------------------------------

// x [n_token, n_embd] = E[token] * sqrt(n_embd)
void embed(Stream stream, float* x, const int32_t* tokens, int n_token, const Weights& embd);

// out [n_canvas, n_embd] = rms(probs E * sqrt(n_embd)) * norm: what self-conditioning's MLP reads. Zero at
// step 0 (probs are not read then). probs [n_canvas, vocab_stride(n_vocab)], 0 past n_vocab; live
// [n_vocab_tile(n_vocab)]: 0 for vocabulary tiles whose probabilities are all 0, which are not read.
// n_split: splits of the vocabulary, at most. scratch: soft_scratch() floats.
template <class T>
void soft_embedding(Stream stream, T* out, const T* probs, const uint8_t* live, const Weights& embd,
                    const float* norm, float eps, int n_canvas, int n_split, float* scratch,
                    const LoopState* state);
constexpr int kSoftTokens = 128, kSoftColumns = 128;  // of a block
// Splits of the vocabulary that make two waves on n_sm SMs with two blocks each, or four with one. At least
// 4, as a block lists the tiles of its split in shared memory.
constexpr int soft_splits(int n_canvas, int n_embd, int n_sm) {
    const int n_block =
        (n_canvas + kSoftTokens - 1) / kSoftTokens * ((padded(n_embd) + kSoftColumns - 1) / kSoftColumns);
    return std::clamp(4 * n_sm / n_block, 4, 64);
}
// Floats of the scratch that the list of live tiles takes, ahead of the partial sums.
constexpr int soft_list(int n_vocab) {
    return (1 + n_vocab_tile(n_vocab) + 3) / 4 * 4;
}
constexpr int64_t soft_scratch(int n_canvas, int n_embd, int n_vocab, int n_split) {
    return soft_list(n_vocab) + int64_t{n_split} * n_canvas * padded(n_embd);
}

// ---- norm.cu ----------------------------------------------------------------------------------------------

// out [n_row, n] T = x / rms(x) * weight; no weight if it is null.
template <class T>
void rms_norm(Stream stream, T* out, const float* x, const float* weight, int n_row, int n, float eps);

// x [n_row, n] = (x + add) / rms(x + add), in place; at step 0 `add` counts as 0. The canvas' own norm.
void canvas_norm(Stream stream, float* x, const float* add, int n_row, int n, float eps,
                 const LoopState* state);

// cos, sin [n_token, head_dim / 2] of (n_cached + row) * freq[i]; freq [head_dim / 2] double.
void rotation(Stream stream, float* cos, float* sin, const double* freq, int n_token, int half,
              const LoopState* state);

// From the projections of a layer into attention and its cache. q, k and v, float32, are each given as
// n_split addends (split-K), one after the other; v may be k.
template <class T>
struct QkvNorm {
    T* q_out;            // [n_token, n_head head_dim] = rope(rms(q) * q_norm), by head
    KvLayer<T> cache;    // rope(rms(k) * k_norm) and rms(v) go to positions n_cached + row
    const float* q;      // [n_split, n_token, n_head head_dim]
    const float *k, *v;  // [n_split, n_token, n_head_kv head_dim]
    int n_split = 1;
    const float *q_norm, *k_norm;  // [head_dim]
    const float *cos, *sin;        // [n_token, head_dim / 2], of rotation()
    int n_token;
    AttentionShape shape;  // n_head may be 0: no q
    float eps;
    const LoopState* state;
};
template <class T>
void qkv_norm(Stream stream, const QkvNorm<T>& p);

// What follows attention: the residual, and what the feed-forward branches read of it.
template <class T>
struct PostAttention {
    float* h;          // [n_row, n] = x + rms(o) * post_attention_norm
    T* ffn_in;         // [n_row, n] = rms(h) * ffn_norm
    T* expert_in;      // [n_row, n] = rms(h) * pre_ffw_norm_2
    float* router_in;  // [n_row, n] = rms(h) * router_scale / sqrt(n)
    const float* x;    // [n_row, n]
    const float* o;    // [n_split, n_row, n], summed
    int n_split = 1;
    const float *post_attention_norm, *ffn_norm, *pre_ffw_norm_2, *router_scale;  // [n]
    int n_row, n;
    float eps;
};
template <class T>
void post_attention(Stream stream, const PostAttention<T>& p);

// The end of a layer. Of the dense branch f1 = rms(dense) * post_ffw_norm_1; of the experts f2 = rms(sum of
// weight * slot_out[slot_of], in the router's order) * post_ffw_norm_2.
template <class T>
struct LayerEnd {
    float* x;                // [n_row, n] = (h + rms(f1 + f2) * post_ffw_norm) * scale
    T* next_in;              // [n_row, n] = rms(x) * next_norm
    const float *h, *dense;  // [n_row, n]
    const float* slot_out;   // [n_row n_used, n]
    const int* slot_of;      // [n_row, n_used]
    const float* weight;     // [n_row, n_used]
    int n_used;
    const float *post_ffw_norm_1, *post_ffw_norm_2, *post_ffw_norm;  // [n]
    float scale;
    const float* next_norm;  // [n]; null: nothing comes next, next_in is not written
    int n_row, n;
    float eps;
};
template <class T>
void layer_end(Stream stream, const LayerEnd<T>& p);

// ---- linear.cu --------------------------------------------------------------------------------------------

// out [n_token, w.n_row] float32 = x w^T; X is F16 or float. Split-K: out [n_split, n_token, w.n_row], the
// products of one range of the columns each, which the reader adds up.
template <class X>
void linear(Stream stream, float* out, const X* x, const Weights& w, int n_token, int n_split = 1);

// out [n_token, w.n_row / 2] T = gelu(x gate^T) * (x up^T)
template <class T>
void gate_up(Stream stream, T* out, const T* x, const Weights& w, int n_token);

// Rows of the matrix per block.
template <class T>
constexpr int kMatrixRows = sizeof(T) == 4 ? 64 : 256;
// Activation rows per block: kManyRows for products of all tokens and for experts of passes with many slots,
// kFewRows for experts of passes with few.
template <class T>
constexpr int kManyRows = sizeof(T) == 4 ? 64 : 128;
constexpr int kFewRows = 32;
// Splits with which a product of all tokens fills n_sm SMs, if it has fewer blocks; no more than eight, as
// the results of each have to be read again.
constexpr int linear_splits(int n_row, int n_token, int n_sm) {
    constexpr int ROWS = kMatrixRows<F16>, TOKENS = kManyRows<F16>;
    const int n_block = (n_row + ROWS - 1) / ROWS * ((n_token + TOKENS - 1) / TOKENS);
    return std::clamp(n_sm / n_block, 1, 8);
}
// The most slots that count as few: three quarters of kFewRows per expert on average.
constexpr int few_slots(int n_expert) {
    return n_expert * (kFewRows / 4 * 3);
}
// Slots of a group, at most: the activation rows per block of expert_gate_up() and expert_down(). Float,
// where speed does not matter, has one size.
template <class T>
constexpr int expert_group(int n_expert, int n_slot) {
    return sizeof(T) == 2 && n_slot <= few_slots(n_expert) ? kFewRows : kManyRows<T>;
}
// Groups of up to `group` slots that n_slot slots make, at most: each of the experts has one with a single
// slot, and all other groups are full.
constexpr int n_group(int n_expert, int n_slot, int group) {
    const int n_used = std::min(n_expert, n_slot);
    return n_used + (n_slot - n_used) / group;
}
// The most groups of any pass with up to n_slot slots: of the largest pass, or of the largest with few.
template <class T>
constexpr int max_groups(int n_expert, int n_slot) {
    const int few = std::min(n_slot, few_slots(n_expert));
    return std::max(n_group(n_expert, n_slot, expert_group<T>(n_expert, n_slot)),
                    n_group(n_expert, few, expert_group<T>(n_expert, few)));
}

// out [n_slot, n_ff_exp] T, slot s from row token_of[s] of x with the expert whose slot it is. groups as
// permute() makes them, of expert_group<T>(w.n_expert, n_slot).
template <class T>
void expert_gate_up(Stream stream, T* out, const T* x, const Weights& w, const int* token_of,
                    const ExpertGroup* groups, int n_slot);
// out [n_slot, n_embd] float32, slot s from row s of x.
template <class X>
void expert_down(Stream stream, float* out, const X* x, const Weights& w, const ExpertGroup* groups,
                 int n_slot);

// max = the largest sum of squares of a row of w, all experts, decoded to F16. See scale_products() in
// load.cpp.
void max_row_square(Stream stream, float* max, const Weights& w);

// ---- attention.cu -----------------------------------------------------------------------------------------

enum class Mask { Causal, Canvas };  // as in the CPU backend, SPEC 2.4

// Split-KV: the keys of a pass are split into ranges that blocks work on in parallel. A captured launch has
// blocks for the most splits that there may be; the number of keys when it runs decides how many have work.
struct KvSplits {
    int most = 1;
    int in_wave = 1;  // splits whose blocks the SMs hold at once
    int least = 256;  // keys that are worth a split, while the splits are at most one wave

    // Splits of n_key keys: as many as make one wave, if each has `least` keys; else one for each 512 keys,
    // in whole waves, `most` at most. More keys never make fewer.
    EASEL_BOTH constexpr int used(int n_key) const {
        const int worth = n_key / least < in_wave ? n_key / least : in_wave, needed = (n_key + 511) / 512;
        int n = worth < needed ? needed : worth;
        n = n < 1 ? 1 : n > most ? most : n;
        return n < in_wave ? n : n / in_wave * in_wave;
    }
};
// Rows of a block: query heads that share a KV head, of some tokens.
constexpr int attention_rows(int head_dim) {
    return head_dim <= 256 ? 128 : 64;
}
// out [n_token, n_head head_dim] T = softmax(q k^T) v for n_token rows, whose own K and V qkv_norm() has just
// put at positions n_cached .., over all keys that the mask lets them see. scratch: attention_scratch<T>()
// floats (none if splits.most is 1).
template <class T>
void attention(Stream stream, T* out, const T* q, const KvLayer<T>& cache, int n_token,
               const AttentionShape& shape, Mask mask, const KvSplits& splits, float* scratch,
               const LoopState* state);
template <class T>
constexpr int64_t attention_scratch(int n_token, const AttentionShape& shape, int n_split) {
    const int row = 2 + shape.head_dim * int{sizeof(T)} / 4;
    return n_split > 1 ? int64_t{n_split} * n_token * shape.n_head * row : 0;
}

// ---- moe.cu -----------------------------------------------------------------------------------------------

// The router: chosen [n_token, n_used] experts, the largest logits first (ties: the lower number); weight:
// the softmax over these, times expert_scale. x [n_token, n_embd] float32, router [n_expert, n_embd] float32.
// scratch: route_scratch() floats, logits in splits of the columns.
void route(Stream stream, int* chosen, float* weight, const float* x, const float* router,
           const float* expert_scale, int n_token, int n_embd, int n_expert, int n_used, float* scratch);
constexpr int kRouteColumns = 192;  // of a split
constexpr int64_t route_scratch(int n_token, int n_embd, int n_expert) {
    return int64_t{(n_embd + kRouteColumns - 1) / kRouteColumns} * n_token * n_expert;
}

// Sorts the pairs (token, i) by expert, in order of token, then i: pair p = token n_used + i goes to slot
// slot_of[p]; token_of[slot] is its token. groups [n_group(n_expert, n_token n_used, group)]: an expert's
// slots, `group` at a time, then the next expert's; those with most slots first (ties: the lower number), as
// they take longest. The rest is empty, begin = end.
void permute(Stream stream, int* slot_of, int* token_of, ExpertGroup* groups, const int* chosen, int n_token,
             int n_used, int n_expert, int group);

// ---- head.cu ----------------------------------------------------------------------------------------------

// Of z = softcapped logits / temperature, one canvas row over one tile of the vocabulary.
struct alignas(16) TileStats {  // one load or store
    float max;
    float sum;       // of exp(z - max)
    float weighted;  // of (z - max) exp(z - max)
    int32_t argmax;  // the lowest id of the largest z
};

// z [n_canvas, vocab_stride(n_vocab)]: softcapped logits / temperature of the step, less z_offset<T>() of the
// tile; -inf past n_vocab. stats [n_canvas, n_vocab_tile(n_vocab)]. x [n_canvas, n_embd], normed. logits
// [n_canvas, n_vocab]: where the softcapped logits go as well, or null. live [n_vocab_tile(n_vocab)] becomes
// 0, for sample().
template <class T>
void lm_head(Stream stream, T* z, TileStats* stats, uint8_t* live, float* logits, const T* x,
             const Weights& w, int n_canvas, float softcap, const LoopState* state);

// An F16 z is kept relative to its tile's maximum, for precision; a float as it is.
template <class T>
EASEL_BOTH inline float z_offset(const TileStats& s) {
    return sizeof(T) == 4 ? 0.0f : s.max;
}

// ---- sample.cu --------------------------------------------------------------------------------------------

// Each row of z: its statistics and draw (RowStats of sampler.h) into rows [n_canvas], and z becomes the
// probabilities that the next step is conditioned on, times prob_scale<T>(), with top-k, self-cond-top-k and
// self-cond-drop applied. live [n_vocab_tile(n_vocab)] becomes 1 for tiles that have one which is not 0. If
// state->has_given, rows whose token is given and choices are as `given` says.
template <class T>
void sample(Stream stream, RowStats* rows, T* z, uint8_t* live, const TileStats* stats, int n_canvas,
            int n_vocab, const GivenTokens* given, const LoopState* state);

// Probabilities in an F16 are scaled so that the small ones keep their bits.
template <class T>
EASEL_BOTH constexpr float prob_scale() {
    return sizeof(T) == 4 ? 1.0f : 32768.0f;
}

// probs = softmax(logits / temperature), as sample() leaves them; logits [n_canvas, n_vocab]. live becomes 1
// everywhere.
template <class T>
void probabilities(Stream stream, T* probs, uint8_t* live, const float* logits, float temperature,
                   int n_canvas, int n_vocab);

// ---- accept.cu --------------------------------------------------------------------------------------------

// The conditions of the graph's nodes; all 0 (none) where a host loop drives the steps.
struct LoopConditions {
    Condition more{};     // another canvas
    Condition commit{};   // the canvas before it has to be encoded first
    Condition denoise{};  // another step
};

// Begins canvas state->canvas: noise, or the given tokens, into tokens [n_canvas], step 0; condition denoise
// on.
void start_canvas(Stream stream, int32_t* tokens, int n_canvas, int n_vocab, const GivenTokens* given,
                  LoopState* state, const LoopConditions& conditions);

// Ends a step: acceptance and renoise into tokens, argmax into `argmax` [n_canvas], the stop rule, a frame
// into the ring, cancellation; condition denoise off when the canvas is finished or cancelled.
void accept(Stream stream, int32_t* tokens, int32_t* argmax, const RowStats* rows, int n_canvas, int n_vocab,
            LoopState* state, const Ring& ring, const LoopConditions& conditions);

// Ends a canvas: an end token in argmax, the last canvas or cancellation sets finish and done; else the next
// canvas' number, and conditions more and commit on.
void end_canvas(Stream stream, const int32_t* argmax, int n_canvas, LoopState* state, const Ring& ring,
                const LoopConditions& conditions);

// After an encode pass: n_cached += n_token.
void advance(Stream stream, int n_token, LoopState* state);

}  // namespace easel
