// Which instruction set the CPU kernels run on, chosen once at run time.
#pragma once

#if (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(__clang__))
#define HYBRIDOPS_X86 1
#endif

#ifdef HYBRIDOPS_X86
#include <immintrin.h>  // here, outside any target pragma; the intrinsics carry their own targets
// What the avx512 namespace is compiled for. A test build (HYBRIDOPS_EMULATE_AVX512=1 in setup.py's environment) lowers it
// to AVX2, two registers a vector: so the 16-lane kernels are tested on machines without AVX-512, all but their reciprocal.
#ifdef HYBRIDOPS_EMULATE_AVX512
#define HYBRIDOPS_WIDE_TARGET "avx2,fma,f16c"
#else
#define HYBRIDOPS_WIDE_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"
#endif
// AMX as plain loops: in that build, and where AddressSanitizer should see what its instructions read and write.
#if defined(HYBRIDOPS_EMULATE_AVX512) || defined(__SANITIZE_ADDRESS__)
#define HYBRIDOPS_EMULATE_AMX 1
#endif
#define HYBRIDOPS_PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define HYBRIDOPS_TARGET_BEGIN(isa) \
    HYBRIDOPS_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define HYBRIDOPS_TARGET_END _Pragma("clang attribute pop")
#else
#define HYBRIDOPS_TARGET_BEGIN(isa) _Pragma("GCC push_options") HYBRIDOPS_PRAGMA(GCC target(isa))
#define HYBRIDOPS_TARGET_END _Pragma("GCC pop_options")
#endif
#endif

namespace hybridops {

// Each has all that those before it have. The last three run the kernels of the avx512 namespace.
enum class Isa { portable = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3, amx_bf16 = 4 };

// The widest set that this processor has; the environment variable HYBRIDOPS_CPU_ISA lowers it to one by its name.
Isa cpu_isa();

}  // namespace hybridops

#ifdef HYBRIDOPS_X86
#define HYBRIDOPS_ON_ISA(call)                                           \
    switch (::hybridops::cpu_isa()) {                                    \
        case ::hybridops::Isa::amx_bf16:                                 \
        case ::hybridops::Isa::avx512_bf16:                              \
        case ::hybridops::Isa::avx512: ::hybridops::avx512::call; break; \
        case ::hybridops::Isa::avx2: ::hybridops::avx2::call; break;     \
        default: ::hybridops::portable::call;                            \
    }
#else
#define HYBRIDOPS_ON_ISA(call) ::hybridops::portable::call
#endif
