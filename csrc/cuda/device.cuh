// How a kernel is launched, its arithmetic, vector loads and stores: what kernels and launchers take from CUDA.
//
// A kernel is a struct of its arguments, with
//   threads              how many threads a block has
//   min_blocks_per_sm    how many blocks must fit on a multiprocessor. It limits the registers of a thread: there are
//                        65536, so 256 threads get 65536 / (256 * min_blocks_per_sm) each
//   entry()              the __global__ function that is launched
//   Shared               the shared memory of a block
//   operator()(Shared&)  the body
// Grids have one dimension, blockIdx.x.
//
// Only this file and mma.cuh need nvcc or a GPU. tests/cuda_shim/shim.h and mma_shim.h define the same in plain C++, so
// that the tests run the same bodies on a CPU.
#pragma once
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

#include "../tensors.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#define HYBRIDOPS_INLINE __device__ __forceinline__
#define HYBRIDOPS_HOST_DEVICE __host__ __device__ __forceinline__
#define HYBRIDOPS_DISPATCH_KEY CUDA

namespace hybridops {

// Defines an entry point, the function that is launched, under the name that profilers show.
#define HYBRIDOPS_ENTRY(name)                                                                                 \
    template <class Kernel>                                                                                   \
    __global__ void __launch_bounds__(Kernel::threads, Kernel::min_blocks_per_sm) name(const Kernel kernel) { \
        __shared__ typename Kernel::Shared shared;                                                            \
        kernel(shared);                                                                                       \
    }

// The same for launch_cooperative(). Shared memory is as large as the launch says: Shared may end with an array of no
// stated length.
#define HYBRIDOPS_COOPERATIVE_ENTRY(name)                                                                     \
    template <class Kernel>                                                                                   \
    __global__ void __launch_bounds__(Kernel::threads, Kernel::min_blocks_per_sm) name(const Kernel kernel) { \
        extern __shared__ __align__(16) char memory[];                                                        \
        kernel(*reinterpret_cast<typename Kernel::Shared*>(memory));                                          \
    }

// Waits until every block of a cooperative launch has been here `times` times, counted from 1. What any block wrote before
// is then visible to all of them, in L2. The counter is zero before the first time.
HYBRIDOPS_INLINE void grid_barrier(unsigned* barrier_counter, unsigned times) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(barrier_counter, 1u);
        // The sign of the difference stays right where the counter wraps around at 2^32.
        while (static_cast<int>(*const_cast<volatile unsigned*>(barrier_counter) - times * gridDim.x) < 0) {
        }
        __threadfence();
    }
    __syncthreads();
}

// The device of a tensor, which is the current device while this object lives, and the caller's stream on it.
class Device {
   public:
    explicit Device(const Tensor& x) : guard_(x.get_device_index()) {
        void* stream = nullptr;
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
        stream_ = static_cast<cudaStream_t>(stream);
    }

    template <class Kernel>
    void launch(const Kernel& kernel, int64_t blocks) const {
        STD_TORCH_CHECK(blocks <= INT32_MAX, "hybridops: too large for one launch: ", blocks, " blocks");
        if (blocks == 0) return;
        const auto entry = Kernel::entry();
        entry<<<static_cast<unsigned>(blocks), Kernel::threads, 0, stream_>>>(kernel);
        STD_CUDA_KERNEL_LAUNCH_CHECK();
    }

    // How many blocks launch_cooperative() can have; 0 where the device has not that much shared memory.
    template <class Kernel>
    int64_t max_cooperative_blocks(const Kernel&, int64_t extra_shared) const {
        const int64_t bytes = sizeof(typename Kernel::Shared) + extra_shared;
        if (!attribute(cudaDevAttrCooperativeLaunch) || bytes > attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin))
            return 0;
        int each = 0;
        STD_CUDA_CHECK(cudaFuncSetAttribute(Kernel::entry(), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            static_cast<int>(bytes)));
        STD_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, Kernel::entry(), Kernel::threads, bytes));
        return int64_t{each} * multiprocessors();
    }

    // All blocks run at once, so that they can wait for one another in grid_barrier(). `extra_shared` bytes of shared
    // memory follow Shared. To be called after max_cooperative_blocks() with as many.
    template <class Kernel>
    void launch_cooperative(Kernel kernel, int64_t blocks, int64_t extra_shared) const {
        void* arguments[] = {&kernel};
        const auto* entry = reinterpret_cast<const void*>(Kernel::entry());
        STD_CUDA_CHECK(cudaLaunchCooperativeKernel(entry, static_cast<unsigned>(blocks), Kernel::threads, arguments,
                                                   sizeof(typename Kernel::Shared) + extra_shared, stream_));
    }

    int multiprocessors() const { return attribute(cudaDevAttrMultiProcessorCount); }
    int compute_capability_major() const {
        return attribute(cudaDevAttrComputeCapabilityMajor);
    }  // 8: sm_80, sm_86, ...

   private:
    int attribute(cudaDeviceAttr which) const {
        int value = 0, device = 0;
        STD_CUDA_CHECK(cudaGetDevice(&device));
        STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
        return value;
    }

    torch::stable::accelerator::DeviceGuard guard_;
    cudaStream_t stream_;
};

// 1/x in one instruction, to 1 ulp, where a division takes about ten. Results below 2^-126 are flushed to zero (PTX ISA,
// rcp.approx.ftz.f32).
HYBRIDOPS_INLINE float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

}  // namespace hybridops
#else
#include "shim.h"
#endif

namespace hybridops {

HYBRIDOPS_INLINE double reciprocal(double x) { return 1 / x; }
HYBRIDOPS_INLINE float exp(float x) { return ::expf(x); }
HYBRIDOPS_INLINE double exp(double x) { return ::exp(x); }
HYBRIDOPS_INLINE float tanh(float x) { return ::tanhf(x); }
HYBRIDOPS_INLINE double tanh(double x) { return ::tanh(x); }
template <class A>
HYBRIDOPS_INLINE A sigmoid(A x) {
    return reciprocal(1 + exp(-x));
}

// max(largest, |x|). NaN, once seen, stays.
template <class A>
HYBRIDOPS_INLINE A max_magnitude(A largest, A x) {
    const A magnitude = x < 0 ? -x : x;
    return magnitude > largest || magnitude != magnitude ? magnitude : largest;
}

// n values of type A in registers. load() and store() move them from and to n consecutive values of type T in memory, up
// to 16 bytes an instruction.
template <class A, int n>
struct Vec {
    A lane[n];
    HYBRIDOPS_INLINE A& operator[](int i) { return lane[i]; }
    HYBRIDOPS_INLINE const A& operator[](int i) const { return lane[i]; }
};

template <class T, int n>
struct alignas(n * sizeof(T) < 16 ? n * sizeof(T) : 16) AlignedVec {
    T lane[n];
};

template <class A, int n, class T>
HYBRIDOPS_INLINE Vec<A, n> load(const T* from) {
    const AlignedVec<T, n> in = *reinterpret_cast<const AlignedVec<T, n>*>(from);
    Vec<A, n> out;
#pragma unroll
    for (int i = 0; i < n; ++i) out[i] = static_cast<A>(in.lane[i]);
    return out;
}

template <class A, int n, class T>
HYBRIDOPS_INLINE void store(T* to, const Vec<A, n>& values) {
    AlignedVec<T, n> out;
#pragma unroll
    for (int i = 0; i < n; ++i) out.lane[i] = static_cast<T>(values[i]);
    *reinterpret_cast<AlignedVec<T, n>*>(to) = out;
}

// Whether the addresses are aligned for load<A, n> and store. Null is.
template <int n, class... T>
bool aligned(const T*... address) {
    return ((reinterpret_cast<uintptr_t>(address) % alignof(AlignedVec<T, n>) == 0) && ...);
}

}  // namespace hybridops
