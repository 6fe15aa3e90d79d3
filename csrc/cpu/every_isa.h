// Compiles the file named by HYBRIDOPS_KERNELS once per instruction set, each time in a namespace of its own, so that no
// inline function exists under two instruction sets with one name. Include it once in a .cpp, after every other header
// (a standard header first seen under a target pragma would be compiled for that target), then call HYBRIDOPS_ON_ISA.
#include "isa.h"

#define HYBRIDOPS_VECTOR_BYTES 16
#define HYBRIDOPS_REGISTERS 16
namespace hybridops::portable {
#include "simd.h"
#include HYBRIDOPS_KERNELS
}  // namespace hybridops::portable
#undef HYBRIDOPS_VECTOR_BYTES
#undef HYBRIDOPS_REGISTERS

#ifdef HYBRIDOPS_X86
#define HYBRIDOPS_VECTOR_BYTES 32
#define HYBRIDOPS_REGISTERS 16
HYBRIDOPS_TARGET_BEGIN("avx2,fma,f16c")
namespace hybridops::avx2 {
#include "simd.h"
#include HYBRIDOPS_KERNELS
}  // namespace hybridops::avx2
HYBRIDOPS_TARGET_END
#undef HYBRIDOPS_VECTOR_BYTES
#undef HYBRIDOPS_REGISTERS

#define HYBRIDOPS_VECTOR_BYTES 64
#define HYBRIDOPS_WIDE 1
#define HYBRIDOPS_REGISTERS 32
HYBRIDOPS_TARGET_BEGIN(HYBRIDOPS_WIDE_TARGET)
namespace hybridops::avx512 {
#include "simd.h"
#include HYBRIDOPS_KERNELS
}  // namespace hybridops::avx512
HYBRIDOPS_TARGET_END
#undef HYBRIDOPS_WIDE
#undef HYBRIDOPS_VECTOR_BYTES
#undef HYBRIDOPS_REGISTERS
#endif
