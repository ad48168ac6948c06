// request_checks.h: refuses requests that no backend can serve. Called by every backend.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "backend.h"

namespace easel {

// Each throws Error, with what was asked for and what there is.
void check_tokens(const Config& config, std::span<const int32_t> tokens);
void check_append(int n_cached, size_t n_token, int n_context);
void check_room(const Config& config, int n_cached, int max_canvases, int n_context);
void check_truncate(int n_cached, int n_token);
void check_given(const Config& config, const GenerateParams& params);
void check_generate(const Config& config, const GenerateParams& params, int n_cached, int n_context);
void check_logits_request(const Config& config, const LogitsRequest& request, size_t n_out);

}  // namespace easel
