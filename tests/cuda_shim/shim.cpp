// The ops of csrc/cuda, launchers and kernels, compiled for the CPU as torch.ops.hybridops_shim.*; and kernels that are
// wrong on purpose, to show that it would be seen.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#define hybridops hybridops_shim
#include "../../csrc/cuda/additive_attention.cu"
#include "../../csrc/cuda/conv_lstm.cu"
#include "../../csrc/library.cpp"

// What ran since it was last asked for.
extern "C" const char* hybridops_shim_launched() {
    static std::string last;
    last = std::move(shim::launched);
    shim::launched.clear();
    return last.c_str();
}

namespace hybridops {
namespace {

// Each of 64 values moved up by one place, by way of shared memory.
struct Shift {
    static constexpr int threads = 64;
    struct Shared {
        float x[threads];
    };
    const float* from;
    float* to;
    bool with_barrier;

    void operator()(Shared& shared) const {
        shared.x[threadIdx.x] = from[threadIdx.x];
        if (with_barrier) __syncthreads();
        to[threadIdx.x] = shared.x[threadIdx.x == 0 ? 0 : threadIdx.x - 1];
    }
};

// A barrier that the first `stay` threads do not reach.
struct Divergent {
    static constexpr int threads = 64;
    struct Shared {};
    int64_t stay;
    bool of_warp;

    void operator()(Shared&) const {
        if (threadIdx.x < stay) return;
        if (of_warp) {
            __shfl_xor_sync(~0u, 0.0f, 1);
        } else {
            __syncthreads();
        }
    }
};

// Reads behind the end of shared memory.
struct OutOfBounds {
    static constexpr int threads = 32;
    struct Shared {
        float x[threads];
    };
    float* to;

    void operator()(Shared& shared) const {
        shared.x[threadIdx.x] = 1;
        __syncthreads();
        to[threadIdx.x] = shared.x[threadIdx.x + 1];
    }
};

Tensor shift(const Tensor& x, bool with_barrier) {
    Tensor out = torch::stable::empty_like(x);
    Device(x).launch(Shift{data<const float>(x), data<float>(out), with_barrier}, 1);
    return out;
}

void divergent(const Tensor& x, int64_t stay, bool of_warp) { Device(x).launch(Divergent{stay, of_warp}, 1); }

Tensor out_of_bounds(const Tensor& x) {
    Tensor out = torch::stable::empty_like(x);
    Device(x).launch(OutOfBounds{data<float>(out)}, 1);
    return out;
}

}  // namespace
}  // namespace hybridops

STABLE_TORCH_LIBRARY_FRAGMENT(hybridops, m) {
    m.def("shift(Tensor x, bool with_barrier) -> Tensor");
    m.def("divergent(Tensor x, int stay, bool of_warp) -> ()");
    m.def("out_of_bounds(Tensor x) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(hybridops, CPU, m) {
    m.impl("shift", TORCH_BOX(&hybridops::shift));
    m.impl("divergent", TORCH_BOX(&hybridops::divergent));
    m.impl("out_of_bounds", TORCH_BOX(&hybridops::out_of_bounds));
}
