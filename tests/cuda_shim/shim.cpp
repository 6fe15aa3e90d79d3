// The ops of csrc/cuda, launchers and kernels, compiled for the CPU as torch.ops.hybridops_shim.*. And kernels that are
// wrong on purpose, to show that the shim finds such errors.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#define hybridops hybridops_shim
#include "../../csrc/cuda/additive_attention.cu"
#include "../../csrc/cuda/attention_decoder.cu"
#include "../../csrc/cuda/conv_lstm.cu"
#include "../../csrc/library.cpp"

// The kernels launched since the last call, a line each.
extern "C" __attribute__((visibility("default"))) const char* hybridops_shim_launched() {
    static std::string last;
    last = std::move(shim::launched);
    shim::launched.clear();
    return last.c_str();
}

namespace hybridops {
namespace {

// Moves each of 64 values up by one place, through shared memory.
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

// A barrier that the first `stay` threads never reach.
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

// Copies 16 bytes a thread, through shared memory.
struct CopyAsync {
    static constexpr int threads = 32;
    struct Shared {
        Words x[threads];
    };
    const Words* from;
    Words* to;
    bool with_wait;

    void operator()(Shared& shared) const {
        copy_async(&shared.x[threadIdx.x], &from[threadIdx.x], threadIdx.x % 2 == 0);
        commit_copies();
        if (with_wait) wait_for_copies<0>();
        to[threadIdx.x] = shared.x[threadIdx.x];
    }
};

// Each block reads what the next block wrote. The last `leave` blocks never reach the barrier.
struct NextBlock {
    static constexpr int threads = 32;
    struct Shared {};
    float *given, *to;
    unsigned blocks, leave;
    bool with_barrier;

    void operator()(Shared&) const {
        if (threadIdx.x == 0) given[blockIdx.x] = 1.0f + blockIdx.x;
        if (blockIdx.x + leave >= blocks) return;
        if (with_barrier) grid_barrier(nullptr, 1);
        if (threadIdx.x == 0) to[blockIdx.x] = given[(blockIdx.x + 1) % blocks];
    }
};

// Reads past the end of shared memory.
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

Tensor copied(const Tensor& x, bool with_wait) {
    Tensor out = torch::stable::empty_like(x);
    const auto* from = reinterpret_cast<const Words*>(data<const float>(x));
    Device(x).launch(CopyAsync{from, reinterpret_cast<Words*>(data<float>(out)), with_wait}, 1);
    return out;
}

Tensor next_block(const Tensor& given, int64_t leave, bool with_barrier) {
    Tensor out = torch::stable::empty_like(given);
    const auto blocks = static_cast<unsigned>(given.numel());
    const NextBlock kernel{data<float>(given), data<float>(out), blocks, static_cast<unsigned>(leave), with_barrier};
    Device(given).launch_cooperative(kernel, blocks, 0);
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
    m.def("copied(Tensor x, bool with_wait) -> Tensor");
    m.def("next_block(Tensor given, int leave, bool with_barrier) -> Tensor");
    m.def("divergent(Tensor x, int stay, bool of_warp) -> ()");
    m.def("out_of_bounds(Tensor x) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(hybridops, CPU, m) {
    m.impl("shift", TORCH_BOX(&hybridops::shift));
    m.impl("copied", TORCH_BOX(&hybridops::copied));
    m.impl("next_block", TORCH_BOX(&hybridops::next_block));
    m.impl("divergent", TORCH_BOX(&hybridops::divergent));
    m.impl("out_of_bounds", TORCH_BOX(&hybridops::out_of_bounds));
}
