// Products on tensor cores (mma.sync), and copies into shared memory that go on beside them (cp.async): sm_80 and later.
//
// A product's two factors stand in shared memory as rows of k, cut into chunks of 64 bytes: 32 values of half precision or
// 16 of float32, as two mma take them. A sum over k may be taken in any order, so long as both factors are in the same: so
// thread (g, q) = (lane / 4, lane % 4) of a warp takes the q-th 16 bytes of row g, in one access that touches no bank
// twice, and gives their four words to the registers that the PTX ISA ("Matrix Fragments for mma.m16n8k16", "... mma.m16n8k8")
// calls a thread's part of k. No ldmatrix, no swizzle.
#pragma once
#include "device.cuh"

namespace hybridops {

struct alignas(16) Words {
    uint32_t word[4];
};

template <class T>
constexpr int chunk = 64 / sizeof(T);  // values of k

// What a thread holds of a chunk: of each tile of 16 rows, rows g and g + 8; of each tile of 8 columns, column g.
template <int m_tiles, int n_tiles>
struct Fragments {
    Words a[m_tiles][2], b[n_tiles];
};

// What it sums, in each pair of tiles: row g, columns 2q and 2q + 1, and the same of row g + 8.
template <int m_tiles, int n_tiles>
struct Accumulators {
    float at[m_tiles][n_tiles][4];
};

}  // namespace hybridops

#ifdef __CUDACC__
namespace hybridops {

// Nothing before sm_80, where choose() in conv_lstm_sequence.cuh takes another way. The twin of mma.sync in
// tests/cuda_shim/mma_shim.h reads the registers of all lanes at once, and so is one of multiply().
#define HYBRIDOPS_MMA(shape_and_types)                                                                               \
    asm("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"       \
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                                     \
        : "r"(g.word[part]), "r"(g_8.word[part]), "r"(g.word[part + 1]), "r"(g_8.word[part + 1]), "r"(b.word[part]), \
          "r"(b.word[part + 1]))

template <class T>
HYBRIDOPS_INLINE void mma(float (&sum)[4], const Words& g, const Words& g_8, const Words& b, int part) {
#if __CUDA_ARCH__ >= 800
    if constexpr (std::is_same_v<T, float>) {
        HYBRIDOPS_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
    } else if constexpr (std::is_same_v<T, torch::headeronly::BFloat16>) {
        HYBRIDOPS_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
    } else {
        HYBRIDOPS_MMA("m16n8k16.row.col.f32.f16.f16.f32");
    }
#endif
}
#undef HYBRIDOPS_MMA

// sums += a b
template <class T, int m_tiles, int n_tiles>
HYBRIDOPS_INLINE void multiply_accumulate(Accumulators<m_tiles, n_tiles>& sums, const Fragments<m_tiles, n_tiles>& f) {
#pragma unroll
    for (int part = 0; part < 4; part += 2)
#pragma unroll
        for (int j = 0; j < n_tiles; ++j)
#pragma unroll
            for (int i = 0; i < m_tiles; ++i) mma<T>(sums.at[i][j], f.a[i][0], f.a[i][1], f.b[j], part);
}

// A float32 rounded to nearest in the 11 bits of it that a tensor core reads: left to it, the others are cut off.
HYBRIDOPS_INLINE uint32_t tf32(float x) {
    uint32_t bits = 0;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
#endif
    return bits;
}

// From global to shared memory by way of L2 alone, which all multiprocessors share; zeros where not `wanted`, and then
// nothing is read.
HYBRIDOPS_INLINE void copy_async(Words* to, const void* from, bool predicate) {
#if __CUDA_ARCH__ >= 800
    const auto shared = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(predicate ? 16 : 0)
                 : "memory");
#endif
}

// Closes a group of copies.
HYBRIDOPS_INLINE void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for this thread's groups, but for the newest n.
template <int n>
HYBRIDOPS_INLINE void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
#endif
}

}  // namespace hybridops
#else
#include "mma_shim.h"
#endif
