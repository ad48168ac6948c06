// synthetic.h: shapes without weights, beside synthetic_model() of model.h. Used by tests of memory plans.
#pragma once
#include <memory>
#include <string_view>

#include "model.h"

namespace easel {

// As synthetic_model(), but only shapes and types are there: no weight may be read.
std::shared_ptr<const Model> synthetic_shapes(std::string_view shape, std::string_view type);

}  // namespace easel
