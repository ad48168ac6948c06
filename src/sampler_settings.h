// sampler_settings.h: the settings of the sampler by name. The flags (main.cpp), the keys of a pipe's line
// (pipe_line.cpp) and those of a trace (trace.cpp) are made from this table.
#pragma once
#include <iterator>
#include <variant>

#include "sampler.h"

namespace easel {

struct SamplerSetting {
    const char* name;  // the key; the flag of max_steps is --max-steps
    std::variant<int SamplerConfig::*, float SamplerConfig::*, bool SamplerConfig::*> member;
    const char* text;
};

inline constexpr SamplerSetting kSamplerSettings[] = {
    {"max_steps", &SamplerConfig::max_steps, "maximum denoise steps per canvas"},
    {"t_min", &SamplerConfig::t_min,
     "temperature that the schedule falls towards, linearly; the last step is still above it"},
    {"t_max", &SamplerConfig::t_max, "temperature of the first step"},
    {"entropy_bound", &SamplerConfig::entropy_bound,
     "entropy budget per step, in nats: the most certain tokens are accepted up to it"},
    {"stability", &SamplerConfig::stability,
     "consecutive steps without a change of any argmax token before a canvas may end"},
    {"confidence", &SamplerConfig::confidence, "mean entropy, in nats, below which a canvas may end"},
    {"greedy", &SamplerConfig::greedy, "take the most probable token instead of sampling one"},
    {"top_k", &SamplerConfig::top_k, "logits per position to sample from (0: all, exact)"},
    {"top_k_start", &SamplerConfig::top_k_start,
     "top-k of the first step; from there it changes linearly to that of the last"},
    {"top_k_end", &SamplerConfig::top_k_end, "top-k of the last step"},
    {"top_k_tail_correction", &SamplerConfig::top_k_tail_correction,
     "with top-k, still compute entropies over all logits"},
    {"self_cond_top_k", &SamplerConfig::self_cond_top_k,
     "probabilities per position that self-conditioning feeds back (0: all, exact)"},
    {"self_cond_drop", &SamplerConfig::self_cond_drop,
     "probability per position that self-conditioning may leave out (0: none; default: 2^-24 in float32, "
     "else 2^-10)"},
};
// Every member takes 4 bytes, bools with their padding.
static_assert(sizeof(SamplerConfig) == 4 * std::size(kSamplerSettings), "a setting is not in the table");

}  // namespace easel
