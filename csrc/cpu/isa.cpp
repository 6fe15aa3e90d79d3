#include "isa.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <string_view>

#if defined(HYBRIDOPS_X86) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace hybridops {

namespace {

// The processor's, and the kernel's permission: a process has to ask for the state of the tile registers.
bool has_amx_bf16() {
#if defined(HYBRIDOPS_EMULATE_AMX)
    return true;
#elif defined(HYBRIDOPS_X86) && defined(__linux__) && defined(SYS_arch_prctl)
    constexpr unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24;
    constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & amx_bf16) && (d & amx_tile) &&
           syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

Isa widest() {
#ifdef HYBRIDOPS_EMULATE_AVX512
    return Isa::amx_bf16;
#elif defined(HYBRIDOPS_X86)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        if (!__builtin_cpu_supports("avx512bf16")) return Isa::avx512;
        return has_amx_bf16() ? Isa::amx_bf16 : Isa::avx512_bf16;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
    return Isa::portable;
}

Isa choose() {
    constexpr std::string_view names[] = {"portable", "avx2", "avx512", "avx512_bf16", "amx_bf16"};
    const char* name = std::getenv("HYBRIDOPS_CPU_ISA");
    const auto wanted = std::find(std::begin(names), std::end(names), std::string_view(name ? name : ""));
    const Isa highest = widest();
    return wanted == std::end(names) ? highest : std::min(static_cast<Isa>(wanted - std::begin(names)), highest);
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
