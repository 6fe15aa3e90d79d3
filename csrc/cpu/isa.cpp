#include "isa.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

namespace hybridops {

namespace {

Isa widest() {
#ifdef HYBRIDOPS_EMULATE_AVX512
    return Isa::avx512_bf16;
#elif defined(HYBRIDOPS_X86)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return __builtin_cpu_supports("avx512bf16") ? Isa::avx512_bf16 : Isa::avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
    return Isa::portable;
}

Isa choose() {
    const char* name = std::getenv("HYBRIDOPS_CPU_ISA");
    const std::string_view wanted = name ? name : "";
    Isa highest = widest();
    if (wanted == "portable") highest = Isa::portable;
    if (wanted == "avx2") highest = std::min(Isa::avx2, highest);
    if (wanted == "avx512") highest = std::min(Isa::avx512, highest);
    return highest;
}

}  // namespace

Isa cpu_isa() {
    static const Isa isa = choose();
    return isa;
}

int64_t cpu_isa_number() { return static_cast<int64_t>(cpu_isa()); }

}  // namespace hybridops

STABLE_TORCH_LIBRARY_IMPL(hybridops, CompositeExplicitAutograd, m) {
    m.impl("cpu_isa", TORCH_BOX(&hybridops::cpu_isa_number));
}
