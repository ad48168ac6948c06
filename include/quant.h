// quant.h: the block types a GGUF tensor can have, rows of them to float and back (SPEC section 6).
// Used by the model loader, the CPU GEMM, `easel convert` and, as the oracle, by the tests of the device
// kernels.
#pragma once
#include <cstdint>
#include <optional>
#include <string_view>

namespace easel {

// Numbers are those of the file format.
enum class Type : uint32_t {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    IQ4_NL = 20,
    IQ4_XS = 23,
    BF16 = 30,
    MXFP4 = 39,
};

struct TypeInfo {
    Type type;
    const char* name;  // "Q4_K"
    int block_elems;   // values in a block: 1, 32 or 256
    int block_bytes;
    bool from_float;  // whether from_float() can write it
};

// Null when `type` (a number read from a file) is not one that easel reads.
const TypeInfo* find_type(uint32_t type);
const TypeInfo& type_info(Type type);
// "q4_k", "Q4_K", "bf16": any case.
std::optional<Type> type_by_name(std::string_view name);

// Bytes of a row of n values; n must be a multiple of the type's block_elems.
int64_t row_bytes(Type type, int64_t n);

// src: n / block_elems blocks (any alignment); dst [n]. n must be a multiple of block_elems.
void to_float(Type type, const void* src, float* dst, int64_t n);

// The inverse, with a small squared error; only types with TypeInfo::from_float.
void from_float(Type type, const float* src, void* dst, int64_t n);

// The values of 4-bit codes: of IQ4_NL and IQ4_XS, and of MXFP4 (E2M1), doubled. T: float or int8_t.
template <class T>
inline constexpr T kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                     1,    13,   25,  38,  53,  69,  89,  113};
template <class T>
inline constexpr T kE2m1Doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// IEEE half and bfloat16, round to nearest even, infinities and NaN kept.
float f16_to_f32(uint16_t h);
uint16_t f32_to_f16(float f);
float bf16_to_f32(uint16_t h);
uint16_t f32_to_bf16(float f);

}  // namespace easel
