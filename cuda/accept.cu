// accept.cu: the loop between two passes: a canvas' noise, acceptance and stop rule after each step, the end
// of a canvas and of the answer (SPEC sections 3, 8), and the frames by which the host follows it. The graph
// of backend.cpp has these between the passes; each decision is that of the CPU backend, to the bit.
//
// All kernels are one block with a thread per position of the canvas, so barriers order everything. Thread 0
// writes what others read of the state, after a barrier that they pass when they have read it.
#include "check.h"
#include "ops.h"
#include "tile.h"

namespace easel {

namespace {

// Words that the host reads or writes while the kernel runs.
DEVICE uint32_t read_now(const uint32_t* p) {
    return *static_cast<const volatile uint32_t*>(p);
}
DEVICE void write_now(uint32_t* p, uint32_t value) {
    *static_cast<volatile uint32_t*>(p) = value;
}

int block_size(int n_canvas) {  // whole warps
    require(n_canvas >= 1 && n_canvas <= kMaxCanvas, "a canvas has 1 to 1024 positions");
    return (n_canvas + 31) / 32 * 32;
}

// Waits until the ring has a free slot for frame n_frame. False: the host cancelled before it had.
DEVICE bool wait_for_slot(const RingHeader* header, uint32_t n_frame, int n_slot) {
    while (n_frame - read_now(&header->tail) >= static_cast<uint32_t>(n_slot))
        if (read_now(&header->cancel)) return false;
    __threadfence_system();  // writes to the slot come after the host's reads that `tail` told of
    return true;
}

}  // namespace

// start_canvas: tokens = noise of canvas state->canvas, or what is given; step 0.
//   tokens [n_canvas]
//   given  see GivenTokens; read if state->has_given
// Tile:   a position per thread.
// Launch: 1 block, n_canvas threads, rounded up to warps.
// Shared: none.
// Why:    as above.
// Maths:  integers.
// Check:  tests/test_accept.cpp against a loop on the host.
__global__ void __launch_bounds__(kMaxCanvas)
    start_canvas_kernel(int32_t* tokens, int n_canvas, int n_vocab, const GivenTokens* given,
                        LoopState* state, LoopConditions conditions) {
    wait_for_last_launch();
    const int i = threadIdx.x;
    if (i < n_canvas) {
        const int32_t noise =
            random_token(random_word(state->seed, i, 0, state->canvas, RandomStream::Init), n_vocab);
        tokens[i] = state->has_given && given->tokens[i] >= 0 ? given->tokens[i] : noise;
    }
    if (i) return;
    state->step = state->held = 0;  // no barrier: no thread reads these
    state->canvas_start_ns = clock_ns();
    set_condition(conditions.denoise, true);
}

void start_canvas(Stream stream, int32_t* tokens, int n_canvas, int n_vocab, const GivenTokens* given,
                  LoopState* state, const LoopConditions& conditions) {
    EASEL_LAUNCH(start_canvas_kernel, 1, block_size(n_canvas), 0, stream, tokens, n_canvas, n_vocab, given,
                 state, conditions);
}

// accept: position i is accepted if the entropies of those before it, in order of (entropy, position), add up
// to the bound at most; then its token is the draw (greedy: the argmax), else noise. The canvas is finished
// if its argmax has stayed the same for `stability` steps and the mean entropy is below `confidence`, or
// after max_steps. A frame says so to the host.
//   tokens [n_canvas]  out
//   argmax [n_canvas]  in: of the step before, unless this is step 0; out: of this step
//   rows   [n_canvas]  of this step, from sample()
//   ring   see Ring, in memory shared with the host
// Tile:   a position per thread.
// Launch: 1 block, n_canvas threads, rounded up to warps.
// Shared: 12 KiB: all entropies, as floats to compare and as integers to add.
// Why:    each thread adds up the entropies that come before its own: n_canvas^2 comparisons, of values that
//         all lanes read at once (broadcast). A sort would need a barrier per stage, and padding.
// Maths:  int64 of 2^-40 nats, exact in any order; the mean in double.
// Check:  tests/test_accept.cpp against accept() and StopRule of sampler.h.
__global__ void __launch_bounds__(kMaxCanvas, 1)
    accept_kernel(int32_t* tokens, int32_t* argmax, const RowStats* rows, int n_canvas, int n_vocab,
                  LoopState* state, Ring ring, LoopConditions conditions) {
    wait_for_last_launch();
    SHARED_ARRAY(float, entropy, kMaxCanvas);
    SHARED_ARRAY(int64_t, fixed, kMaxCanvas);
    SHARED_ARRAY(float, most_dropped, kMaxCanvas / 32);  // of a warp's positions
    SHARED(bool, has_slot);
    const int i = threadIdx.x, step = state->step, canvas = state->canvas;
    const uint32_t n_frame = state->n_frame;
    const SamplerConfig& config = state->sampler;
    const bool in_canvas = i < n_canvas;
    RowStats row{};
    if (in_canvas) {
        row = rows[i];
        entropy[i] = row.entropy;
        fixed[i] = entropy_fixed(row.entropy);
    }
    const float dropped_in_warp = warp_max(row.dropped);
    if (i % 32 == 0) most_dropped[i / 32] = dropped_in_warp;
    __syncthreads();  // entropy, fixed, most_dropped are complete

    int64_t before = 0, total = 0;
    for (int j = 0; j < n_canvas; j++) {
        total += fixed[j];
        if (entropy[j] < row.entropy || (entropy[j] == row.entropy && j < i)) before += fixed[j];
    }
    const bool accepted = before <= entropy_fixed(fminf(config.entropy_bound, 1e5f));
    const float mean_entropy = static_cast<float>(entropy_nats(total) / max(state->n_free, 1));

    const bool same = __syncthreads_and(!in_canvas || (step > 0 && argmax[i] == row.argmax));
    const int held = same ? state->held + 1 : 0;
    const bool stable = held >= config.stability && mean_entropy < config.confidence;
    const bool last = stable || step + 1 >= config.max_steps;
    int32_t token = config.greedy ? row.argmax : row.drawn;
    if (!accepted)
        token = random_token(random_word(state->seed, i, step, canvas, RandomStream::Renoise), n_vocab);
    if (in_canvas) {
        tokens[i] = token;
        argmax[i] = row.argmax;
    }

    if (i == 0) has_slot = wait_for_slot(ring.header, n_frame, ring.n_slot);
    __syncthreads();  // has_slot is set, and the slot is free
    if (has_slot) {
        const uint32_t slot = n_frame % static_cast<uint32_t>(ring.n_slot);
        const FrameSlot frame(ring.slots + int64_t{slot} * ring.slot_bytes, n_canvas);
        if (in_canvas) {
            frame.tokens[i] = token;
            frame.argmax[i] = row.argmax;
            frame.entropy[i] = row.entropy;
            frame.log_prob[i] = row.log_prob;
            frame.accepted[i] = accepted;
        }
        if (i == 0) {
            float dropped = 0;
            for (int w = 0; 32 * w < n_canvas; w++) dropped = fmaxf(dropped, most_dropped[w]);
            *frame.header = {canvas, step, mean_entropy, temperature(config, step), dropped, last};
        }
    }
    __syncthreads();  // all have written their part of the frame, and have read the state
    if (i) return;
    if (has_slot) {
        __threadfence_system();  // the host sees the whole frame before it sees `head`
        write_now(&ring.header->head, n_frame + 1);
        state->n_frame = n_frame + 1;
    }
    state->step = step + 1;
    state->held = held;
    const bool cancelled = read_now(&ring.header->cancel);
    if (cancelled) {
        state->done = 1;
        state->finish = static_cast<int>(Finish::Cancelled);
    }
    set_condition(conditions.denoise, !(last || cancelled));
}

void accept(Stream stream, int32_t* tokens, int32_t* argmax, const RowStats* rows, int n_canvas, int n_vocab,
            LoopState* state, const Ring& ring, const LoopConditions& conditions) {
    require(ring.n_slot >= 1 && ring.slot_bytes >= FrameSlot::bytes(n_canvas),
            "bug: the ring is too small for accept()");
    EASEL_LAUNCH(accept_kernel, 1, block_size(n_canvas), 0, stream, tokens, argmax, rows, n_canvas, n_vocab,
                 state, ring, conditions);
}

// end_canvas: whether the answer goes on, and why it does not: cancelled, an end token in argmax, or this was
// the last canvas; then the ring says that it has ended.
//   argmax [n_canvas]
//   ring   see Ring, in memory shared with the host
// Tile:   a position per thread.
// Launch: 1 block, n_canvas threads, rounded up to warps.
// Shared: none.
// Why:    as above; the barrier is a vote.
// Maths:  integers.
// Check:  tests/test_accept.cpp against a loop on the host.
__global__ void __launch_bounds__(kMaxCanvas)
    end_canvas_kernel(const int32_t* argmax, int n_canvas, LoopState* state, Ring ring,
                      LoopConditions conditions) {
    wait_for_last_launch();
    const int i = threadIdx.x, n_end = state->n_end;
    bool is_end = false;
    if (i < n_canvas)
        for (int k = 0; k < n_end; k++) is_end = is_end || argmax[i] == state->end_tokens[k];
    const bool has_end = __syncthreads_or(is_end);
    if (i) return;
    state->denoise_ns += clock_ns() - state->canvas_start_ns;
    if (!state->done) {
        state->done = 1;
        if (read_now(&ring.header->cancel))
            state->finish = static_cast<int>(Finish::Cancelled);
        else if (has_end)
            state->finish = static_cast<int>(Finish::Stop);
        else if (state->canvas + 1 >= state->max_canvases)
            state->finish = static_cast<int>(Finish::Length);
        else {
            state->done = 0;
            state->canvas++;
        }
    }
    if (state->done) {
        __threadfence_system();  // the host sees the last frame before it sees `ended`
        write_now(&ring.header->ended, 1);
    }
    set_condition(conditions.more, !state->done);
    set_condition(conditions.commit, !state->done);
}

void end_canvas(Stream stream, const int32_t* argmax, int n_canvas, LoopState* state, const Ring& ring,
                const LoopConditions& conditions) {
    EASEL_LAUNCH(end_canvas_kernel, 1, block_size(n_canvas), 0, stream, argmax, n_canvas, state, ring,
                 conditions);
}

// advance: n_cached += n_token.
// Launch: 1 block, 1 thread. Why: a kernel, so that an encode pass can be part of a graph.
// Check:  tests/test_accept.cpp.
__global__ void advance_kernel(int n_token, LoopState* state) {
    wait_for_last_launch();
    state->n_cached += n_token;
}

void advance(Stream stream, int n_token, LoopState* state) {
    EASEL_LAUNCH(advance_kernel, 1, 1, 0, stream, n_token, state);
}

}  // namespace easel
