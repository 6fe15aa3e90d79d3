// Matrix products on tensor cores (mma.sync) and asynchronous copies to shared memory (cp.async). For sm_80 and later.
//
// Both factors are in shared memory as rows along k, in chunks of 64 bytes: 32 values of half precision or 16 of float32,
// which is what two mma instructions take. Thread (g, q) = (lane / 4, lane % 4) of a warp loads the q-th 16 bytes of row
// g, in one access without bank conflicts. Its four words go to the registers that the PTX ISA calls the thread's part of
// k ("Matrix Fragments for mma.m16n8k16", "... mma.m16n8k8"). These are not the values of k that the ISA puts there, but
// the same ones for both factors, and a sum over k may be taken in any order. So neither ldmatrix nor a swizzle is needed.
#pragma once
#include "device.cuh"

namespace hybridops {

struct alignas(16) Words {
    uint32_t word[4];
};

template <class T>
constexpr int chunk = 64 / sizeof(T);  // values of k

// A thread's registers of a chunk: rows g and g + 8 of each tile of 16 rows, column g of each tile of 8 columns.
template <int m_tiles, int n_tiles>
struct Fragments {
    Words a[m_tiles][2], b[n_tiles];
};

// A thread's sums in each pair of tiles: row g, columns 2q and 2q + 1, then the same of row g + 8.
template <int m_tiles, int n_tiles>
struct Accumulators {
    float at[m_tiles][n_tiles][4];
};

}  // namespace hybridops

#ifdef __CUDACC__
namespace hybridops {

// Does nothing before sm_80, where choose() in conv_lstm_sequence.cuh never takes it. In tests/cuda_shim/mma_shim.h the
// stand-in reads the registers of all lanes at once, so it replaces multiply_accumulate(), not mma().
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

// A float32 rounded to the 11 significant bits that a tensor core reads. Without this it would truncate.
HYBRIDOPS_INLINE uint32_t tf32(float x) {
    uint32_t bits = 0;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
#endif
    return bits;
}

// Copies 16 bytes from global to shared memory, through L2 and not L1 (cp.async.cg). Without `predicate` it reads nothing
// and writes zeros.
HYBRIDOPS_INLINE void copy_async(Words* to, const void* from, bool predicate) {
#if __CUDA_ARCH__ >= 800
    const auto shared = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(predicate ? 16 : 0)
                 : "memory");
#endif
}

// Ends a group of copies.
HYBRIDOPS_INLINE void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most the newest n groups of this thread are unfinished.
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
