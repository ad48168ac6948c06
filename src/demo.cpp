// demo.cpp: the demo model's bytes, linked in as they are (made by tools/train_demo.py and `easel convert`).
#include "model.h"

// Global: on aarch64 the linker makes one address of both labels if they are local.
asm(".section .rodata\n"
    ".globl easel_demo_begin, easel_demo_end\n"
    ".balign 64\n"
    "easel_demo_begin: .incbin \"src/demo.gguf\"\n"
    "easel_demo_end:\n"
    ".previous\n");

extern "C" const unsigned char easel_demo_begin[], easel_demo_end[];

namespace easel {

std::span<const uint8_t> demo_model() {
    return {easel_demo_begin, easel_demo_end};
}

}  // namespace easel
