// ops.cpp: what each instruction of PTX does; see code.h.
#include <algorithm>
#include <bit>
#include <cfenv>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <string_view>
#include <type_traits>

#include "code.h"

namespace easel::ptx {

namespace {

using Words = std::vector<std::string>;

// ---- values -----------------------------------------------------------------------------------------------

template <class T>
T get(uint64_t v) {
    if constexpr (std::is_same_v<T, bool>)
        return v & 1;
    else if constexpr (std::is_same_v<T, float>)
        return std::bit_cast<float>(static_cast<uint32_t>(v));
    else if constexpr (std::is_same_v<T, double>)
        return std::bit_cast<double>(v);
    else
        return static_cast<T>(v);
}
template <class T>
uint64_t put(T v) {
    if constexpr (std::is_same_v<T, float>)
        return std::bit_cast<uint32_t>(v);
    else if constexpr (std::is_same_v<T, double>)
        return std::bit_cast<uint64_t>(v);
    else
        return static_cast<uint64_t>(static_cast<int64_t>(v));
}
// Operand k; source k of an instruction with one destination, and that destination.
template <class T>
T operand(const Thread& t, const Ins& i, int k) {
    return get<T>(t.r[i.r[k]]);
}
template <class T>
T in(const Thread& t, const Ins& i, int k) {
    return operand<T>(t, i, k + 1);
}
template <class T>
void out(Thread& t, const Ins& i, T v) {
    t.r[i.r[0]] = put(v);
}

template <class T>
constexpr bool is_int = std::is_integral_v<T> && !std::is_same_v<T, bool>;
template <class T>
constexpr bool is_word = is_int<T> && sizeof(T) >= 4;
template <class T>
constexpr bool is_number = !std::is_same_v<T, bool>;
template <class T>
constexpr bool is_float = std::is_floating_point_v<T>;

// f.operator()<T>(), T the type of that name: an Op, or null.
template <class F>
Op of_type(std::string_view type, F f) {
    if (type == "pred") return f.template operator()<bool>();
    if (type == "f32") return f.template operator()<float>();
    if (type == "f64") return f.template operator()<double>();
    const bool is_signed = type[0] == 's';
    const auto bits = type.substr(1);
    if (type[0] != 's' && type[0] != 'u' && type[0] != 'b') return nullptr;
    if (bits == "8") return is_signed ? f.template operator()<int8_t>() : f.template operator()<uint8_t>();
    if (bits == "16") return is_signed ? f.template operator()<int16_t>() : f.template operator()<uint16_t>();
    if (bits == "32") return is_signed ? f.template operator()<int32_t>() : f.template operator()<uint32_t>();
    if (bits == "64") return is_signed ? f.template operator()<int64_t>() : f.template operator()<uint64_t>();
    return nullptr;
}

// An Op of these statements, with thread t and instruction i; one whose result is the expression; the same
// for types T that fulfil the condition, of sources a, b and c.
#define DO(...) []([[maybe_unused]] Thread & t, [[maybe_unused]] const Ins& i) __VA_ARGS__
#define RESULT(...) DO({ out(t, i, __VA_ARGS__); })
#define DO_FOR(condition, ...)      \
    []<class T>() -> Op {           \
        if constexpr (condition)    \
            return DO(__VA_ARGS__); \
        else                        \
            return nullptr;         \
    }
#define RESULT_FOR(condition, ...)                                                           \
    DO_FOR(condition, {                                                                      \
        [[maybe_unused]] const T a = in<T>(t, i, 0), b = in<T>(t, i, 1), c = in<T>(t, i, 2); \
        out(t, i, static_cast<T>(__VA_ARGS__));                                              \
    })

// Of integers: without overflow.
template <class T>
T add(T a, T b) {
    if constexpr (is_float<T>) return a + b;
    return static_cast<T>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}
template <class T>
T subtract(T a, T b) {
    if constexpr (is_float<T>) return a - b;
    return static_cast<T>(static_cast<uint64_t>(a) - static_cast<uint64_t>(b));
}
template <class T>
T multiply(T a, T b) {
    return static_cast<T>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
}
template <class T>
auto wide_product(T a, T b) {
    using Wide = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
    return static_cast<uint64_t>(Wide{a} * Wide{b});
}
template <class T>
T high_product(T a, T b) {
    using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return static_cast<T>((Wide{a} * Wide{b}) >> (8 * sizeof(T)));
}
template <class T>
T shift_left(T a, uint32_t by) {
    return by < 8 * sizeof(T) ? static_cast<T>(static_cast<uint64_t>(a) << by) : T{0};
}
template <class T>
T shift_right(T a, uint32_t by) {
    return static_cast<T>(by < 8 * sizeof(T) ? a >> by : a < 0 ? -1 : 0);
}
// b with the low `n` bits of a at `first`.
template <class T>
T insert_bits(T a, T b, uint32_t first, uint32_t n) {
    T mask{};
    for (uint32_t k = first; k < first + n && k < 8 * sizeof(T); k++) mask |= T{1} << k;
    return static_cast<T>((shift_left(a, first) & mask) | (b & ~mask));
}
uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
    uint32_t d = 0;
    for (int i = 0; i < 4; i++) {
        const uint32_t s = selector >> (4 * i), byte = (s & 4 ? b : a) >> (8 * (s & 3)) & 255;
        d |= (s & 8 ? (byte >> 7) * 255 : byte) << (8 * i);
    }
    return d;
}
uint32_t reverse_bits(uint32_t a) {
    uint32_t d = 0;
    for (int i = 0; i < 32; i++) d |= (a >> i & 1) << (31 - i);
    return d;
}
uint32_t lookup3(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
    uint32_t d = 0;
    for (int i = 0; i < 32; i++)
        d |= (table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1) << i;
    return d;
}

// a b + c rounded once, down. Volatile: neither before nor after the mode changes.
float fma_down(float a, float b, float c) {
    const int mode = fegetround();
    fesetround(FE_DOWNWARD);
    volatile float x = a, y = b, z = c;
    volatile float result = std::fma(x, y, z);
    fesetround(mode);
    return result;
}
// Saturates, NaN is 0. x is an integer already.
template <class D, class S>
D to_integer(S x) {
    using Limits = std::numeric_limits<D>;
    if (std::isnan(x)) return 0;
    if (x <= static_cast<long double>(Limits::min())) return Limits::min();
    if (x >= static_cast<long double>(Limits::max())) return Limits::max();
    return static_cast<D>(x);
}

enum Compare { Eq, Ne, Lt, Le, Gt, Ge, Num, Nan, OrNan = 16 };  // OrNan: true also if either is NaN
const std::map<std::string_view, int> compare_names = {
    {"eq", Eq},          {"ne", Ne},          {"lt", Lt},          {"le", Le},          {"gt", Gt},
    {"ge", Ge},          {"equ", Eq | OrNan}, {"neu", Ne | OrNan}, {"ltu", Lt | OrNan}, {"leu", Le | OrNan},
    {"gtu", Gt | OrNan}, {"geu", Ge | OrNan}, {"num", Num},        {"nan", Nan},        {"lo", Lt},
    {"ls", Le},          {"hi", Gt},          {"hs", Ge}};
template <class T>
bool compare(int64_t how, T a, T b) {
    bool nan = false;
    if constexpr (is_float<T>) nan = std::isnan(a) || std::isnan(b);
    if (nan) return how & OrNan || how == Nan;
    switch (how & 15) {
        case Eq:
            return a == b;
        case Ne:
            return a != b;
        case Lt:
            return a < b;
        case Le:
            return a <= b;
        case Gt:
            return a > b;
        case Ge:
            return a >= b;
        default:
            return how == Num;
    }
}

// ---- memory -----------------------------------------------------------------------------------------------

enum class Space { Shared, Global, Own };  // Own: parameters, local memory; and what is volatile

// Where n values of T are that operand k points to; `value` will be written there.
template <class T, Space SPACE>
char* address(Thread& t, const Ins& i, int k, size_t n, Access access, const T* value = nullptr) {
    const uint64_t a = t.r[i.r[k]] + static_cast<uint64_t>(i.imm);
    char* p = SPACE == Space::Shared ? t.shared(a) : std::bit_cast<char*>(a);
    const size_t bytes = n * sizeof(T);
    const char* op = access == Access::Read ? "ld" : access == Access::Write ? "st" : "atom";
    if constexpr (SPACE == Space::Shared) {
        sim::check_shared(op, p, bytes, t.at(i));
        watch_shared(t, i, access, p, bytes);
    } else {
        sim::check_aligned(op, p, bytes, t.at(i));
        if (SPACE == Space::Global) watch_global(t, i, access, p, bytes, value);
    }
    return p;
}
template <int N, Space SPACE>
Op load(const std::string& type) {
    return of_type(type, DO_FOR(is_number<T>, {
                       const char* p = address<T, SPACE>(t, i, N, N, Access::Read);
                       for (int k = 0; k < N; k++)
                           t.r[i.r[k]] = put(reinterpret_cast<const volatile T*>(p)[k]);
                   }));
}
template <int N, Space SPACE>
Op store(const std::string& type) {
    return of_type(type, DO_FOR(is_number<T>, {
                       T value[N];
                       for (int k = 0; k < N; k++) value[k] = operand<T>(t, i, k + 1);
                       char* p = address<T, SPACE>(t, i, 0, N, Access::Write, value);
                       for (int k = 0; k < N; k++) reinterpret_cast<volatile T*>(p)[k] = value[k];
                   }));
}
#define ATOMIC_FOR(condition, f) \
    RESULT_FOR(condition, f(reinterpret_cast<T*>(address<T, SPACE>(t, i, 1, 1, Access::Atomic)), b))
template <Space SPACE>
Op atomic(const std::string& name, const std::string& type) {
    if (name == "add") return of_type(type, ATOMIC_FOR((is_word<T> || std::is_same_v<T, float>), atomicAdd));
    if (name == "max") return of_type(type, ATOMIC_FOR(is_word<T>, atomicMax));
    return nullptr;
}
template <Space SPACE>
Op memory(const Words& w) {
    const std::string& type = w.back();
    const bool two = std::find(w.begin(), w.end(), "v2") != w.end(),
               four = std::find(w.begin(), w.end(), "v4") != w.end();
    if (w[0] == "ld") return two ? load<2, SPACE>(type) : four ? load<4, SPACE>(type) : load<1, SPACE>(type);
    if (w[0] == "st")
        return two ? store<2, SPACE>(type) : four ? store<4, SPACE>(type) : store<1, SPACE>(type);
    return w.size() == 4 ? atomic<SPACE>(w[2], type) : nullptr;
}

// [dst], [src], size (, bytes of src). Reaches its place in cp_async_wait().
void cp_async(Thread& t, const Ins& i) {
    const int bytes = operand<int>(t, i, 2), src_bytes = i.n > 3 ? operand<int>(t, i, 3) : bytes;
    char* dst = t.shared(t.r[i.r[0]]);
    const char* src = std::bit_cast<const char*>(t.r[i.r[1]] + static_cast<uint64_t>(i.imm));
    sim::async_copy(dst, src, bytes, src_bytes, t.at(i));
    watch_shared(t, i, Access::Write, dst, bytes);
    if (src_bytes > 0) watch_global(t, i, Access::Read, src, src_bytes);
}
void cp_async_wait(Thread& t, const Ins& i) {
    const int n_group = operand<int>(t, i, 0);
    for (const sim::Copy& c : sim::fiber->copies)
        if (c.group < sim::fiber->n_commit - n_group) watch_shared(t, i, Access::Write, c.dst, c.bytes);
    sim::async_wait(n_group);
}

// ---- warps and barriers -----------------------------------------------------------------------------------

template <bool TRANS>
void ldmatrix(Thread& t, const Ins& i) {
    uint32_t r[4];
    const char* row = t.shared(t.r[i.r[4]] + static_cast<uint64_t>(i.imm));
    sim::check_shared("ldmatrix", row, 16, t.at(i));
    watch_shared(t, i, Access::Read, row, 16);
    sim::ldmatrix<TRANS>("ldmatrix", r, row, t.at(i));
    for (int k = 0; k < 4; k++) t.r[i.r[k]] = r[k];
}

// d, a, b, c: 4, 4, 2 and 4 registers.
void mma(Thread& t, const Ins& i) {
    float d[4];
    uint32_t a[4];
    for (int k = 0; k < 4; k++) a[k] = operand<uint32_t>(t, i, 4 + k), d[k] = operand<float>(t, i, 10 + k);
    mma_m16n8k16_f16(d, a, operand<uint32_t>(t, i, 8), operand<uint32_t>(t, i, 9), t.at(i));
    for (int k = 0; k < 4; k++) t.r[i.r[k]] = put(d[k]);
}
// The same with sums in F16, d and c: 2 registers.
void mma_f16_sums(Thread& t, const Ins& i) {
    uint32_t d[2], a[4];
    for (int k = 0; k < 4; k++) a[k] = operand<uint32_t>(t, i, 2 + k);
    for (int k = 0; k < 2; k++) d[k] = operand<uint32_t>(t, i, 8 + k);
    mma_m16n8k16_f16_sums(d, a, operand<uint32_t>(t, i, 6), operand<uint32_t>(t, i, 7), t.at(i));
    for (int k = 0; k < 2; k++) t.r[i.r[k]] = put(d[k]);
}
Op matrix(const Words& w) {
    std::string opcode = w[0];
    for (size_t k = 1; k < w.size(); k++) opcode += "." + w[k];
    if (opcode == "ldmatrix.sync.aligned.m8n8.x4.shared.b16") return ldmatrix<false>;
    if (opcode == "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16") return ldmatrix<true>;
    if (opcode == "movmatrix.sync.aligned.m8n8.trans.b16")
        return RESULT(movmatrix_trans(in<uint32_t>(t, i, 0), t.at(i)));
    if (opcode == "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32") return mma;
    if (opcode == "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16") return mma_f16_sums;
    return nullptr;
}

// d, a, matrix, 1, 1, 1, 0: 4 registers of d for 8 columns, 4 of a. What it reads of shared memory is in use
// from now until its wait.
template <int NT>
void wgmma(Thread& t, const Ins& i) {
    const int* const r = i.all->data();
    for (int k : {1, 2, 3})
        if (t.r[r[4 * NT + 4 + k]] != 1) sim::fault(t.at(i), "wgmma that does not add, or negates");
    if (t.r[r[4 * NT + 8]]) sim::fault(t.at(i), "wgmma of a transposed matrix");
    const uint64_t b = t.r[r[4 * NT + 4]];
    const auto watch = [&t, &i, b] {
        for (int n = sim::fiber->lane; n < 8 * NT; n += 32)
            for (int k : {0, 8}) watch_shared(t, i, Access::Product, sim::matrix_row(b, n, k, t.at(i)), 16);
    };
    watch();
    const auto finish = [&t, &i, r, b, watch] {
        float d[NT][4];
        uint32_t a[4];
        for (int k = 0; k < 4; k++) a[k] = get<uint32_t>(t.r[r[4 * NT + k]]);
        for (int k = 0; k < 4 * NT; k++) d[k / 4][k % 4] = get<float>(t.r[r[k]]);
        watch();
        sim::multiply_matrix(d, NT, a, b, t.at(i));
        for (int k = 0; k < 4 * NT; k++) t.r[r[k]] = put(d[k / 4][k % 4]);
    };
    sim::product(finish, b, t.at(i));
}
Op warp_group(const Words& w, const Ins& i) {
    if (w[1] == "fence") return [](Thread&, const Ins&) { wgmma_fence(); };
    if (w[1] == "commit_group") return [](Thread&, const Ins&) { wgmma_commit(); };
    if (w[1] == "wait_group") return DO({ sim::product_wait(operand<int>(t, i, 0)); });
    std::string type;
    for (size_t k = 5; k < w.size(); k++) type += "." + w[k];
    if (w[1] != "mma_async" || type != ".f32.f16.f16") return nullptr;
    if (w[4] == "m64n64k16" && i.n == 8 * 4 + 9) return wgmma<8>;
    return w[4] == "m64n128k16" && i.n == 16 * 4 + 9 ? wgmma<16> : nullptr;
}

// d (|p), a, b, c, mask. imm: Up ..., and HasPredicate.
enum Shuffle { Up, Down, Bfly, Idx, HasPredicate };
void shuffle(Thread& t, const Ins& i) {
    const int first = i.imm & HasPredicate ? 2 : 1;
    const int lane = sim::fiber->lane, b = operand<int>(t, i, first + 1) & 31,
              c = operand<int>(t, i, first + 2);
    const int segment = c >> 8 & 31, least = lane & segment, most = least | (c & 31 & ~segment);
    int from = least | (b & ~segment);
    if ((i.imm & 3) == Up) from = lane - b;
    if ((i.imm & 3) == Down) from = lane + b;
    if ((i.imm & 3) == Bfly) from = lane ^ b;
    const bool valid = (i.imm & 3) == Up ? from >= most : from <= most;
    const uint32_t mask = operand<uint32_t>(t, i, first + 3), value = operand<uint32_t>(t, i, first);
    t.r[i.r[0]] = sim::shuffle("shfl.sync", mask, value, valid ? from : lane, 32, t.at(i));
    if (first == 2) t.r[i.r[1]] = valid;
}

// d, a, mask
Op warp_operation(const Words& w) {
    const std::string &name = w[0], &kind = w[0] == "match" ? w[1] : w[2], &type = w.back();
    if (name == "vote") {
        if (kind == "ballot")
            return RESULT(__ballot_sync(in<uint32_t>(t, i, 1), in<bool>(t, i, 0) != i.flip, t.at(i)));
        if (kind == "any")
            return RESULT(__any_sync(in<uint32_t>(t, i, 1), in<bool>(t, i, 0) != i.flip, t.at(i)));
    }
    if (name == "match" && kind == "any" && type == "b32")
        return RESULT(__match_any_sync(in<uint32_t>(t, i, 1), in<uint32_t>(t, i, 0), t.at(i)));
    if (name != "redux") return nullptr;
#define REDUX(f)                                        \
    of_type(type, DO_FOR((is_int<T> && sizeof(T) == 4), \
                         { out(t, i, T(f(in<uint32_t>(t, i, 1), in<T>(t, i, 0), t.at(i)))); }))
    if (kind == "add") return REDUX(__reduce_add_sync);
    if (kind == "min") return REDUX(__reduce_min_sync);
    if (kind == "max") return REDUX(__reduce_max_sync);
    return nullptr;
}

// bar.sync 0; bar.sync id, n; bar.warp.sync mask; bar.red.OP d, 0, p
Op barrier(const Words& w, int n) {
    if (w[1] == "warp")
        return DO({
            __syncwarp(operand<uint32_t>(t, i, 0), t.at(i));
            t.n_warp_barrier++;
        });
    if (w[1] == "sync" && n == 2)
        return DO({
            watch_group(t, i, operand<int>(t, i, 0), operand<int>(t, i, 1));
            barrier_sync(operand<int>(t, i, 0), operand<int>(t, i, 1), t.at(i));
            t.n_group_barrier++;
        });
    if (w[1] == "sync" && n == 1)
        return DO({
            if (t.r[i.r[0]]) sim::fault(t.at(i), "bar.sync {} of all threads", t.r[i.r[0]]);
            __syncthreads(t.at(i));
            t.n_barrier++;
        });
    if (w[1] != "red") return nullptr;
#define VOTE(f)                                             \
    DO({                                                    \
        out(t, i, f(in<bool>(t, i, 1) != i.flip, t.at(i))); \
        t.n_barrier++;                                      \
    })
    if (w[2] == "and") return VOTE(__syncthreads_and);
    if (w[2] == "or") return VOTE(__syncthreads_or);
    return nullptr;
}

// ---- arithmetic -------------------------------------------------------------------------------------------

bool has(const Words& w, std::string_view word) {
    return std::find(w.begin() + 1, w.end(), word) != w.end();
}

Op convert(const Words& w) {
    const std::string &to = w[w.size() - 2], &from = w.back();
    if (to == "f16x2" && has(w, "rn")) return RESULT(pack_f16(in<float>(t, i, 1), in<float>(t, i, 0)));
    if (to == "f16" && from == "f32" && has(w, "rn")) return RESULT(float_to_half(in<float>(t, i, 0)));
    if (to == "f32" && from == "f16") return RESULT(half_to_float(in<uint16_t>(t, i, 0)));
    if (to == "f32" && from == "f32" && has(w, "sat"))
        return DO({
            const float x = in<float>(t, i, 0);
            out(t, i, x > 0 ? std::min(x, 1.0f) : 0.0f);  // NaN is 0
        });
    if (has(w, "sat") || has(w, "ftz")) return nullptr;
    const bool trunc = has(w, "rzi"), nearest = has(w, "rni");
    return of_type(to, [&]<class D>() -> Op {
        return of_type(from, [&]<class S>() -> Op {
            if constexpr (!is_number<D> || !is_number<S> || std::is_same_v<D, S>) {
                return nullptr;
            } else if constexpr (is_int<D> && is_float<S>) {
                if (trunc) return RESULT(to_integer<D>(std::trunc(in<S>(t, i, 0))));
                if (nearest) return RESULT(to_integer<D>(std::nearbyint(in<S>(t, i, 0))));
                return nullptr;
            } else {
                return RESULT(static_cast<D>(in<S>(t, i, 0)));
            }
        });
    });
}

// What a GPU computes only nearly, here as exactly as the C library does.
Op approximate(const Words& w) {
    const std::string& name = w[0];
    if (name == "rcp" && w.back() == "f64")  // of the upper word; the lower is 0
        return RESULT(std::bit_cast<uint64_t>(1 / in<double>(t, i, 0)) & ~uint64_t{0xffffffff});
    if (w.back() != "f32") return nullptr;
    if (has(w, "ftz")) {
        if (name == "ex2") return RESULT(exp2_approx(in<float>(t, i, 0)));
        if (name == "rcp") return RESULT(reciprocal_approx(in<float>(t, i, 0)));
        return nullptr;
    }
    if (name == "ex2") return RESULT(std::exp2(in<float>(t, i, 0)));
    if (name == "rcp") return RESULT(1 / in<float>(t, i, 0));
    if (name == "rsqrt") return RESULT(static_cast<float>(1 / std::sqrt(in<float>(t, i, 0))));
    return nullptr;
}

Op two_halves(const std::string& name) {
    if (name == "fma")
        return RESULT(hfma2(in<uint32_t>(t, i, 0), in<uint32_t>(t, i, 1), in<uint32_t>(t, i, 2)));
    if (name == "sub") return RESULT(hsub2(in<uint32_t>(t, i, 0), in<uint32_t>(t, i, 1)));
    if (name == "mul") return RESULT(hmul2(in<uint32_t>(t, i, 0), in<uint32_t>(t, i, 1)));
    if (name == "neg") return RESULT(hneg2(in<uint32_t>(t, i, 0)));
    return nullptr;
}

// add, sub, mul, div, fma, rcp, sqrt ... of floats, rounded to nearest.
Op of_floats(const std::string& name, const std::string& type) {
    if (name == "add") return of_type(type, RESULT_FOR(is_float<T>, a + b));
    if (name == "sub") return of_type(type, RESULT_FOR(is_float<T>, a - b));
    if (name == "mul") return of_type(type, RESULT_FOR(is_float<T>, a * b));
    if (name == "div") return of_type(type, RESULT_FOR(is_float<T>, a / b));
    if (name == "fma") return of_type(type, RESULT_FOR(is_float<T>, std::fma(a, b, c)));
    if (name == "rcp") return of_type(type, RESULT_FOR(is_float<T>, 1 / a));
    if (name == "sqrt") return of_type(type, RESULT_FOR(is_float<T>, std::sqrt(a)));
    if (name == "abs") return of_type(type, RESULT_FOR(is_float<T>, std::fabs(a)));
    if (name == "neg") return of_type(type, RESULT_FOR(is_float<T>, -a));
    if (name == "min") return of_type(type, RESULT_FOR(is_float<T>, std::fmin(a, b)));
    if (name == "max") return of_type(type, RESULT_FOR(is_float<T>, std::fmax(a, b)));
    if (name == "copysign") return of_type(type, RESULT_FOR(is_float<T>, std::copysign(b, a)));
    return nullptr;
}

Op of_integers(const std::string& name, const std::string& type) {
    if (name == "add") return of_type(type, RESULT_FOR(is_int<T>, add(a, b)));
    if (name == "sub") return of_type(type, RESULT_FOR(is_int<T>, subtract(a, b)));
    if (name == "mul.lo") return of_type(type, RESULT_FOR(is_int<T>, multiply(a, b)));
    if (name == "mad.lo") return of_type(type, RESULT_FOR(is_int<T>, add(multiply(a, b), c)));
    if (name == "mul.hi") return of_type(type, RESULT_FOR(is_word<T>, high_product(a, b)));
    if (name == "mul.wide")
        return of_type(type, DO_FOR((is_int<T> && sizeof(T) <= 4),
                                    { out(t, i, wide_product(in<T>(t, i, 0), in<T>(t, i, 1))); }));
    if (name == "div") return of_type(type, RESULT_FOR(is_int<T>, a / b));
    if (name == "rem") return of_type(type, RESULT_FOR(is_int<T>, a % b));
    if (name == "abs") return of_type(type, RESULT_FOR(is_int<T>, a < 0 ? subtract<T>(0, a) : a));
    if (name == "neg") return of_type(type, RESULT_FOR(is_int<T>, subtract<T>(0, a)));
    if (name == "min") return of_type(type, RESULT_FOR(is_int<T>, std::min(a, b)));
    if (name == "max") return of_type(type, RESULT_FOR(is_int<T>, std::max(a, b)));
    if (name == "and") return of_type(type, RESULT_FOR(std::is_integral_v<T>, a & b));
    if (name == "or") return of_type(type, RESULT_FOR(std::is_integral_v<T>, a | b));
    if (name == "xor") return of_type(type, RESULT_FOR(std::is_integral_v<T>, a ^ b));
    if (name == "not" && type == "pred") return RESULT(!in<bool>(t, i, 0));
    if (name == "not") return of_type(type, RESULT_FOR(is_int<T>, ~a));
    if (name == "shl") return of_type(type, RESULT_FOR(is_int<T>, shift_left(a, in<uint32_t>(t, i, 1))));
    if (name == "shr") return of_type(type, RESULT_FOR(is_int<T>, shift_right(a, in<uint32_t>(t, i, 1))));
    if (name == "bfi")
        return of_type(type, RESULT_FOR(is_word<T>, insert_bits(a, b, in<uint32_t>(t, i, 2) & 255,
                                                                in<uint32_t>(t, i, 3) & 255)));
    if (name == "popc")
        return of_type(type, RESULT_FOR(is_word<T>, std::popcount(std::make_unsigned_t<T>(a))));
    if (name == "clz")
        return of_type(type, RESULT_FOR(is_word<T>, std::countl_zero(std::make_unsigned_t<T>(a))));
    if (name == "bfind.shiftamt" && type == "u32")
        return of_type(type, RESULT_FOR(is_word<T>, a ? std::countl_zero(std::make_unsigned_t<T>(a)) : -1));
    if (name == "shf.l.wrap" && type == "b32")
        return RESULT(uint32_t((uint64_t{in<uint32_t>(t, i, 1)} << 32 | in<uint32_t>(t, i, 0))
                                   << (in<uint32_t>(t, i, 2) & 31) >>
                               32));
    if (name == "brev" && type == "b32") return RESULT(reverse_bits(in<uint32_t>(t, i, 0)));
    if (name == "prmt" && type == "b32")
        return RESULT(permute_bytes(in<uint32_t>(t, i, 0), in<uint32_t>(t, i, 1), in<uint32_t>(t, i, 2)));
    if (name == "lop3" && type == "b32")
        return RESULT(lookup3(in<uint32_t>(t, i, 0), in<uint32_t>(t, i, 1), in<uint32_t>(t, i, 2),
                              in<uint32_t>(t, i, 3)));
    return nullptr;
}

// p, a, b (, c): whether a compares to b, and, or, xor c.
Op set_predicate(const Words& w, Ins& i) {
    const auto found = compare_names.find(w[1]);
    if (found == compare_names.end() || i.n != static_cast<int>(w.size())) return nullptr;
    i.imm = found->second;
    const std::string& type = w.back();
#define COMPARE(...)                                                            \
    of_type(type, DO_FOR(is_number<T>, {                                        \
                const bool ab = compare(i.imm, in<T>(t, i, 0), in<T>(t, i, 1)); \
                [[maybe_unused]] const bool c = in<bool>(t, i, 2) != i.flip;    \
                out(t, i, __VA_ARGS__);                                         \
            }))
    if (w.size() == 3) return COMPARE(ab);
    if (w[2] == "and") return COMPARE(ab && c);
    if (w[2] == "or") return COMPARE(ab || c);
    return w[2] == "xor" ? COMPARE(ab != c) : nullptr;
}

// mov.b32 d, {a, b} and mov.b32 {a, b}, d: two or four parts; imm: bits of one.
void pack(Thread& t, const Ins& i) {
    uint64_t whole = 0;
    for (int k = 1; k < i.n; k++)
        whole |= (t.r[i.r[k]] & (~uint64_t{0} >> (64 - i.imm))) << ((k - 1) * i.imm);
    t.r[i.r[0]] = whole;
}
void unpack(Thread& t, const Ins& i) {
    const uint64_t whole = t.r[i.r[i.n - 1]];
    for (int k = 0; k + 1 < i.n; k++) t.r[i.r[k]] = whole >> (k * i.imm) & (~uint64_t{0} >> (64 - i.imm));
}

// ---- the rest ---------------------------------------------------------------------------------------------

// cudaGraphSetConditional, with the simulator's Condition: see set_condition().
void set_conditional(Thread& t, const Ins& i) {
    const auto handle = *std::bit_cast<const uint64_t*>(t.r[i.r[0]]);
    *std::bit_cast<bool*>(handle + 1) = *std::bit_cast<const uint32_t*>(t.r[i.r[1]]) != 0;
}

Op operation(const Words& w, const std::string& operands, Ins& i) {
    const std::string &name = w[0], &type = w.back();
    if (name == "bra") return DO({ t.pc = static_cast<int>(i.imm); });
    if (name == "ret") return DO({ t.pc = -1; });
    if (name == "griddepcontrol" && w[1] == "wait") return DO({ t.waited = true; });
    if (name == "griddepcontrol")  // later launches count on those before the last to have ended
        return DO({
            if (!t.waited) sim::fault(t.at(i), "launch_dependents before wait");
        });
    if (name == "fence" && w[1] == "proxy") return [](Thread&, const Ins&) { watch_fence(); };
    if (name == "membar" || name == "fence") return [](Thread&, const Ins&) {};
    // Only cudaGraphSetConditional is called by what a test runs.
    if (name == "call")
        return operands.starts_with("cudaGraphSetConditional") ? set_conditional
                                                               : DO({ sim::fault(t.at(i), "a call"); });
    if (name == "ld" || name == "st" || name == "atom")
        return has(w, "shared")                                           ? memory<Space::Shared>(w)
               : has(w, "param") || has(w, "local") || has(w, "volatile") ? memory<Space::Own>(w)
                                                                          : memory<Space::Global>(w);
    if (name == "cp") {
        if (w[2] == "commit_group") return [](Thread&, const Ins&) { cp_async_commit(); };
        if (w[2] == "wait_group") return ptx::cp_async_wait;
        return w[3] == "shared" && w[4] == "global" ? ptx::cp_async : nullptr;
    }
    if (name == "cvta") {  // to global memory, or from it, an address stays
        if (!has(w, "shared"))
            return has(w, "global") || has(w, "local") ? of_type(type, RESULT_FOR(is_word<T>, a)) : nullptr;
        if (has(w, "to")) return RESULT(in<uint64_t>(t, i, 0) - std::bit_cast<uint64_t>(sim::block->memory));
        return RESULT(in<uint64_t>(t, i, 0) + std::bit_cast<uint64_t>(sim::block->memory));
    }
    if (name == "ldmatrix" || name == "mma" || name == "movmatrix") return matrix(w);
    if (name == "wgmma") return warp_group(w, i);
    if (name == "bar") return barrier(w, i.n);
    if (name == "vote" || name == "match" || name == "redux") return warp_operation(w);
    if (name == "shfl" && type == "b32") {
        i.imm = w[2] == "up" ? Up : w[2] == "down" ? Down : w[2] == "bfly" ? Bfly : Idx;
        if (operands.find('|') != operands.npos) i.imm |= HasPredicate;
        return shuffle;
    }
    if (name == "mov" && operands.find('{') != operands.npos) {
        i.imm = std::stoi(type.substr(1)) / (i.n - 1);
        return operands[0] == '{' ? unpack : pack;
    }
    if (name == "mov" && operands.ends_with("%globaltimer")) return RESULT(clock_ns());
    if (name == "mov") return of_type(type, RESULT_FOR(true, a));
    if (name == "selp")
        return of_type(type, DO_FOR(is_number<T>, {
                           out(t, i, in<bool>(t, i, 2) != i.flip ? in<T>(t, i, 0) : in<T>(t, i, 1));
                       }));
    if (name == "setp") return set_predicate(w, i);
    if (name == "cvt") return convert(w);
    if (type == "f16x2") return w.size() == 2 || w[1] == "rn" ? two_halves(name) : nullptr;
    if (has(w, "approx")) return approximate(w);
    if (type == "f32" || type == "f64") {
        if (name == "fma" && w[1] == "rm" && type == "f32")
            return RESULT(fma_down(in<float>(t, i, 0), in<float>(t, i, 1), in<float>(t, i, 2)));
        return w.size() == 2 || (w.size() == 3 && w[1] == "rn") ? of_floats(name, type) : nullptr;
    }
    std::string full = name;
    for (size_t k = 1; k + 1 < w.size(); k++) full += "." + w[k];
    return of_integers(full, type);
}

}  // namespace

bool decode(Ins& i, const Words& words, const std::string& operands) {
    i.op = operation(words, operands, i);
    return i.op != nullptr;
}

}  // namespace easel::ptx
