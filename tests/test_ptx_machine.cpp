// test_ptx_machine.cpp: the interpreter of tests/ptx itself, on PTX written by hand.
#include "catch.h"
#include "files.h"
#include "ptx/code.h"

using namespace easel;

namespace {

// A kernel of one parameter, the address `out`, around these instructions.
std::string kernel(const std::string& body) {
    return ".version 9.0\n.target sm_90a\n.address_size 64\n"
           ".extern .shared .align 16 .b8 dynamic[];\n"
           ".visible .entry test(\n.param .u64 test_param_0\n)\n{\n"
           ".reg .pred %p<9>; .reg .b32 %r<99>; .reg .b64 %rd<9>;\n"
           ".shared .align 16 .b8 s[512];\n"
           "ld.param.u64 %rd1, [test_param_0];\n"
           "mov.u32 %r1, %tid.x;\nmov.u32 %r2, %ctaid.x;\n" +
           body + "\nret;\n}\n";
}
ptx::Code read(const std::string& text) {
    return ptx::read_file(TempDir().write("machine.ptx", text)).at(0);
}
// What the kernel leaves in `out` [n].
std::vector<uint32_t> run(const std::string& body, int n_block, int n_thread, size_t n, size_t shared = 0) {
    const ptx::Code code = read(kernel(body));
    const auto out = static_cast<uint32_t*>(sim::allocate(n * 4));
    static uint64_t launch = uint64_t{1} << 20;
    launch++;
    const struct Free {
        void* p;
        ~Free() { sim::deallocate(p); }
    } end{out};
    sim::launch("test", n_block, n_thread, shared, [&] {
        ptx::run(code, reinterpret_cast<const char*>(&out), {launch, launch - 1});
    });
    return {out, out + n};
}
// The result of instructions that leave it in %r9; %r1 is the lane.
uint32_t result(const std::string& body) {
    return run(body + "\nst.global.u32 [%rd1], %r9;", 1, 1, 1)[0];
}
std::string fault_of(const std::string& body, int n_block = 1, int n_thread = 64, size_t shared = 0) {
    try {
        run(body, n_block, n_thread, 64, shared);
    } catch (const sim::Fault& e) {
        return e.what();
    }
    return "none";
}

}  // namespace

TEST_CASE("ptx machine: bits") {
    CHECK(result("mov.b32 %r3, 0x80402010; prmt.b32 %r9, %r3, 0x11223344, 0xb740;") == 0xff114410);
    CHECK(result("mov.u32 %r3, 0xff; bfi.b32 %r9, %r3, 0, 28, 8;") == 0xf0000000);
    CHECK(result("mov.u32 %r3, -8; shr.s32 %r9, %r3, 40;") == 0xffffffff);
    CHECK(result("mov.u32 %r3, -8; shr.u32 %r9, %r3, 40;") == 0);
    CHECK(result("mov.u32 %r3, 0x80000001; shf.l.wrap.b32 %r9, %r3, %r3, 36;") == 0x18);
    CHECK(result("mov.u32 %r3, 0xf0; lop3.b32 %r9, %r3, 0xcc, 0xaa, 0xd8;") == 0xd8);
    CHECK(
        result(
            "{ .reg .b16 lo, hi; mov.u32 %r3, 0x12345678; mov.b32 {lo, hi}, %r3; mov.b32 %r9, {hi, lo}; }") ==
        0x56781234);
    CHECK(result("mov.u32 %r3, 1; bfind.shiftamt.u32 %r9, %r3;") == 31);
}

TEST_CASE("ptx machine: numbers") {
    CHECK(result(
              "mov.s32 %r3, -3; mul.wide.s32 %rd3, %r3, 5; shr.u64 %rd3, %rd3, 32; cvt.u32.u64 %r9, %rd3;") ==
          0xffffffff);
    CHECK(result("cvt.rzi.s32.f32 %r9, 0f7F800000;") == 0x7fffffff);
    CHECK(result("cvt.rzi.s32.f32 %r9, 0f7FC00000;") == 0);
    CHECK(result("cvt.rni.s32.f32 %r9, 0fC0200000;") == 0xfffffffe);  // -2.5
    // 1 + 2^-25 is 1 to nearest; -1 - 2^-25 downwards is the next float.
    CHECK(result("fma.rn.f32 %r9, 0f33000000, 0f3F800000, 0f3F800000;") == 0x3f800000);
    CHECK(result("fma.rm.f32 %r9, 0fB3000000, 0f3F800000, 0fBF800000;") == 0xbf800001);
    CHECK(result("copysign.f32 %r9, 0fBF800000, 0f40000000;") == 0xc0000000);
    const auto compares = [](const std::string& how) {
        return result("setp." + how + ".f32 %p1, 0f7FC00000, 0f3F800000; selp.u32 %r9, 1, 0, %p1;");
    };
    CHECK(compares("ne") == 0);
    CHECK(compares("neu") == 1);
    CHECK(compares("ltu") == 1);
    CHECK(compares("nan") == 1);
    CHECK(result("setp.eq.s32 %p1, 1, 1; setp.lt.and.s32 %p2, 1, 2, !%p1; selp.u32 %r9, 1, 0, %p2;") == 0);
}

TEST_CASE("ptx machine: branches, guards and lanes") {
    // Lane l: the sum of 0 to l, by a loop; odd lanes that of their neighbour above, even ones their own.
    const auto out = run(R"(
        mov.u32 %r3, 0; mov.u32 %r4, 0;
        $L_loop:
        add.s32 %r3, %r3, %r4; add.s32 %r4, %r4, 1;
        setp.le.s32 %p1, %r4, %r1;
        @%p1 bra $L_loop;
        shfl.sync.down.b32 %r5|%p2, %r3, 1, 31, -1;
        and.b32 %r6, %r1, 1; setp.ne.s32 %p3, %r6, 0;
        @!%p3 mov.u32 %r5, %r3;
        selp.u32 %r7, 1000, 0, %p2; add.s32 %r5, %r5, %r7;
        mul.wide.u32 %rd3, %r1, 4; add.s64 %rd4, %rd1, %rd3; st.global.u32 [%rd4], %r5;)",
                         1, 32, 32);
    for (uint32_t l = 0; l < 32; l++) {
        const uint32_t of = l % 2 && l < 31 ? l + 1 : l;
        CHECK(out[l] == of * (of + 1) / 2 + (l < 31 ? 1000 : 0));
    }
}

TEST_CASE("ptx machine: races in shared memory") {
    const std::string own =
        "mov.u32 %r3, s; shl.b32 %r4, %r1, 2; add.s32 %r5, %r3, %r4; st.shared.u32 [%r5], %r1;";
    const std::string other = "xor.b32 %r6, %r4, {}; add.s32 %r7, %r3, %r6; ld.shared.u32 %r8, [%r7];";
    const auto read_other = [&](const std::string& barrier, int bytes) {
        return fault_of(own + barrier + fmt::format(fmt::runtime(other), bytes));
    };
    CHECK(read_other("", 4).find("race: ") != std::string::npos);
    CHECK(read_other("bar.warp.sync -1;", 4) == "none");
    CHECK(read_other("bar.warp.sync -1;", 128).find("race: ") != std::string::npos);  // another warp's
    CHECK(read_other("bar.sync 0;", 128) == "none");
    // Pairs of warps: barrier 1 is of the first two.
    const std::string pair = "shr.u32 %r10, %r1, 6; add.s32 %r10, %r10, 1; bar.sync %r10, 64;";
    CHECK(fault_of(own + pair + fmt::format(fmt::runtime(other), 128), 1, 128) == "none");
    CHECK(fault_of(own + pair + fmt::format(fmt::runtime(other), 256), 1, 128).find("race: ") !=
          std::string::npos);
    const std::string one_for_all = "bar.sync 1, 64;";
    CHECK(fault_of(own + one_for_all, 1, 128).find("more than 64 threads come to barrier 1") !=
          std::string::npos);
    // Written again while others may still read.
    const std::string again = "ld.shared.u32 %r8, [%r3+128]; {} st.shared.u32 [%r5], 7;";
    CHECK(fault_of(own + "bar.sync 0;" + fmt::format(fmt::runtime(again), "")).find("race: writes") !=
          std::string::npos);
    CHECK(fault_of(own + "bar.sync 0;" + fmt::format(fmt::runtime(again), "bar.sync 0;")) == "none");
    CHECK(fault_of("mov.u32 %r3, s; atom.shared.add.u32 %r4, [%r3], 1;") == "none");
}

TEST_CASE("ptx machine: products of four warps") {
    // 64 x 64 += 64 x 16 times 16 x 64: each thread writes 64 bytes of the matrix, of which the last barrier
    // tells the others.
    std::string write =
        "mov.u32 %r3, dynamic; neg.s32 %r4, %r3; and.b32 %r4, %r4, 1023; add.s32 %r3, %r3, %r4;"
        "shl.b32 %r5, %r1, 6; add.s32 %r5, %r5, %r3; mov.u32 %r6, 0;";
    for (int i = 0; i < 64; i += 4) write += fmt::format("st.shared.u32 [%r5+{}], %r6;", i);
    const std::string fence = "fence.proxy.async.shared::cta;", barrier = "bar.sync 0;";
    std::string d, zero;
    for (int i = 0; i < 32; i++) {
        d += fmt::format("{}%r{}", i ? ", " : "", 40 + i);
        zero += fmt::format("mov.u32 %r{}, 0;", 40 + i);
    }
    const std::string registers = zero + "wgmma.fence.sync.aligned;";
    const auto product = [&](const char* stride) {
        return "and.b32 %r7, %r3, 0x3ffff; shr.u32 %r7, %r7, 4; cvt.u64.u32 %rd3, %r7; or.b64 %rd3, %rd3, " +
               std::string(stride) +
               "; setp.ne.b32 %p1, 1, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" + d +
               "}, {%r6, %r6, %r6, %r6}, %rd3, %p1, 1, 1, 0; wgmma.commit_group.sync.aligned;";
    };
    const std::string good = product("0x4000004000010000"), wait = "wgmma.wait_group.sync.aligned 0;";
    const auto fault = [](const std::string& body) { return fault_of(body, 1, 128, 64 * 128 + 1008); };
    const auto has = [](const std::string& text, const char* part) { return text.find(part) != text.npos; };
    CHECK(fault(write + fence + barrier + registers + good + wait) == "none");
    CHECK(has(fault(write + barrier + registers + good + wait), "with no fence.proxy.async"));
    CHECK(has(fault(write + fence + registers + good + wait), "race: "));
    CHECK(has(fault(write + fence + barrier + zero + good + wait), "without a wgmma.fence"));
    CHECK(has(fault(write + fence + barrier + registers + good + good + wait), "without a wgmma.fence"));
    CHECK(has(fault(write + fence + barrier + registers + good), "in flight"));
    CHECK(has(fault(write + fence + barrier + registers + product("0x8000004000010000") + wait),
              "not swizzled"));
    CHECK(has(fault(write + fence + barrier + registers + good + "st.shared.u32 [%r5], %r6;" + wait),
              "with no fence.proxy.async"));
    // One warp of the four does not take part.
    const std::string some = "setp.ge.u32 %p2, %r1, 96; @%p2 bra $L_end;";
    CHECK(has(fault(write + fence + barrier + registers + some + good + wait + "$L_end:"),
              "differ in their wgmma"));
}

TEST_CASE("ptx machine: races between blocks") {
    const std::string write = "st.global.u32 [%rd1], {};", read = "ld.global.u32 %r3, [%rd1];";
    CHECK(fault_of(fmt::format(fmt::runtime(write), "%r2"), 2, 1).find("race: block") != std::string::npos);
    CHECK(fault_of(fmt::format(fmt::runtime(write), "7"), 2, 1) == "none");
    CHECK(fault_of(read, 2, 1) == "none");
    CHECK(fault_of(read + "add.s32 %r3, %r2, 5;" + fmt::format(fmt::runtime(write), "%r3"), 2, 1)
              .find("race: block") != std::string::npos);
    CHECK(fault_of("atom.global.add.u32 %r3, [%rd1], 1;", 2, 1) == "none");
    CHECK(fault_of("atom.global.add.u32 %r3, [%rd1], 1;" + read, 2, 1).find("race: block") !=
          std::string::npos);
}

TEST_CASE("ptx machine: what comes before the last launch has ended") {
    const std::string wait = "griddepcontrol.wait;", write = "st.global.u32 [%rd1], 7;",
                      next = "griddepcontrol.launch_dependents;", load = "ld.global.u32 %r3, [%rd1];";
    CHECK(fault_of(wait + next + load + write, 1, 1) == "none");
    CHECK(fault_of(write + wait, 1, 1).find("writes global memory before") != std::string::npos);
    CHECK(fault_of(next + wait, 1, 1).find("launch_dependents before") != std::string::npos);
    CHECK(fault_of("setp.eq.s32 %p1, %r1, 5; @%p1 ret;" + wait).find("has not waited") != std::string::npos);
    // A launch reads what the one before has written; it may where something lies between the two.
    const ptx::Code first = read(kernel(wait + write)), second = read(kernel(load + wait));
    const auto out = static_cast<uint32_t*>(sim::allocate(256));
    const auto launch = [&](const ptx::Code& code, ptx::LaunchNumber number) {
        sim::launch("test", 1, 1, 0, [&] { ptx::run(code, reinterpret_cast<const char*>(&out), number); });
    };
    constexpr uint64_t n = uint64_t{1} << 19;
    launch(first, {n, n});
    CHECK_THAT(error_of([&] { launch(second, {n + 1, n}); }), Catch::Contains("has not waited for it"));
    launch(first, {n + 2, n});
    launch(second, {n + 3, n + 3});
    sim::deallocate(out);
}

TEST_CASE("ptx machine: addresses are checked") {
    CHECK(fault_of("ld.global.u32 %r3, [%rd1+2];").find("misaligned") != std::string::npos);
    CHECK(fault_of("ld.global.u32 %r3, [%rd1+256];").find("past the end of a buffer") != std::string::npos);
    CHECK(fault_of("mov.u32 %r3, s; ld.shared.u32 %r4, [%r3+512];").find("not in shared memory") !=
          std::string::npos);
}

TEST_CASE("ptx machine: what it does not know is refused with its line") {
    const auto error = [](const std::string& text) {
        try {
            read(text);
        } catch (const Error& e) {
            return std::string(e.what());
        }
        return std::string("none");
    };
    for (const std::string unknown :
         {"tanh.approx.f32 %r3, %r4;", "add.rz.f32 %r3, %r4, %r5;", "cvt.rn.f32.f32 %r3, %r4;",
          "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 %r3, %r4;", "setp.xx.s32 %p1, 1, 2;"}) {
        const auto expected = fmt::format("machine.ptx:14: an instruction that is not known here: {}",
                                          unknown.substr(0, unknown.size() - 1));
        CHECK(error(kernel(unknown)).ends_with(expected));
        INFO(error(kernel(unknown)));
    }
    CHECK(error(kernel("bra $L_nowhere;")).find("no label $L_nowhere") != std::string::npos);
    CHECK(error(kernel("mov.u32 %r3, other;")).find("what is other?") != std::string::npos);
}
