// How a sequence of steps is computed (choose), and the launches of our own kernels for it (run_sequence).
#pragma once
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <vector>

#include "aten.h"
#include "conv_lstm_persistent.cuh"

namespace hybridops {

using Weights = std::vector<Tensor>;

// Whether all that a step reads and writes can be accessed in vectors of four channels.
template <class T, class A>
bool can_vectorize(const StepForwardArgs<T, A>& a) {
    return a.shape.hidden % 4 == 0 && aligned<4>(a.from_x, a.bias, a.peephole.data, a.c_prev, a.h, a.c, a.gates);
}
template <class T, class A>
bool can_vectorize(const StepBackwardArgs<T, A>& a) {
    return a.shape.hidden % 4 == 0 &&
           aligned<4>(a.grad_h, a.dh_last, a.gates, a.c, a.c_prev, a.peephole.data, a.dc, a.da);
}

// The tiles of a fused step. A thread has up to 64 sums, and all stages fit into the 48 KiB of shared memory that a block
// can have without cudaFuncSetAttribute. Small tiles are for problems with fewer large tiles than multiprocessors.
template <class Args>
struct Tiles;
template <class T, class A>
struct Tiles<StepForwardArgs<T, A>> {
    using Large = Tile<4, 4, 2, 2, 1, 3>;  // 128 pixels × 32 channels
    using Small = Tile<4, 4, 1, 1, 1, 4>;  // 64 × 16
};
template <class T, class A>
struct Tiles<StepBackwardArgs<T, A>> {
    using Large = Tile<1, 4, 2, 2, 2, 4>;  // 128 × 64
    using Small = Tile<1, 4, 1, 1, 1, 4>;  // 64 × 16
};

// A sequence as our kernels take it: the first step, and the number of steps.
template <class T, class Args>
struct Sequence {
    using Large = typename Tiles<Args>::Large;
    using Small = typename Tiles<Args>::Small;
    using Persistent = PersistentSteps<T, Args, Small>;
    Convolution<T> convolution;
    Args args;
    int64_t steps;

    // Whether the channels of a pixel are whole, aligned vectors of 16 bytes.
    static bool is_vectorized(const Images<T>& images) {
        return images.channels % (16 / sizeof(T)) == 0 && aligned<16 / sizeof(T)>(images.data);
    }
    bool is_vectorized() const {
        return is_vectorized(convolution.x) && is_vectorized(convolution.h) && can_vectorize(args);
    }
    int64_t blocks() const { return TileCoord<Small>::blocks(args.shape); }
    int64_t large_blocks() const { return TileCoord<Large>::blocks(args.shape); }
};

// x (T,B,Y,X,C) and h (B,Y,X,H) are what the first step convolves. The backward has neither: its first step convolves
// nothing.
template <class T, class Args>
Sequence<T, Args> make_sequence(const Args& args, const Tensor& w_hh, int64_t height, int64_t width,
                                const MaybeTensor& x, const MaybeTensor& h, int64_t steps) {
    using Large = typename Tiles<Args>::Large;
    Convolution<T> c{};
    if (x) c.x = {data<const T>(x), static_cast<int>(x->size(4))};
    c.h = {data<const T>(h), static_cast<int>(w_hh.size(Large::gates == 4 ? 1 : 0))};
    c.groups = ceil_div(args.shape.hidden, channel_group * Large::groups) * Large::groups;
    c.height = static_cast<int>(height);
    c.width = static_cast<int>(width);
    c.kernel_h = static_cast<int>(w_hh.size(2));
    c.kernel_w = static_cast<int>(w_hh.size(3));
    return {c, args, steps};
}

enum class Plan {
    library,           // the library's convolutions, and a pointwise kernel after each
    persistent,        // W_ih * x of all steps by the library, then all steps in one kernel
    fused_recurrence,  // W_ih * x of all steps by the library, then one kernel a step
    fused,             // one kernel a step, W_ih * x in it
};

// From sm_90 on the library has faster instructions (wgmma, tcgen05) than mma.sync, which is taken to reach 0.6 of their
// rate. In exchange a fused step saves 16 bytes a pixel and hidden channel, which the library writes and a pointwise kernel
// reads. With k the channels times taps that are summed over, there are 8 k operations a pixel and hidden channel. At 700e12
// operations and 2.8e12 bytes a second, somewhat less than the 798e12 and 3.0e12 measured on an H100,
//   8 k / (0.6 * 700e12) - 8 k / 700e12 = 16 / 2.8e12
// gives k = 750. The bound is half as much again, because the library reaches that rate only with many channels. Our own
// kernels have not run on a GPU yet. Their instruction counts say that 0.6 is too high, and 0.30 to 0.35 more likely. That
// would lower the bound.
constexpr int64_t max_fused_k = 750 * 3 / 2;

// The reasons given here are arithmetic: none of it has run on a GPU yet.
template <class T, class Args>
Plan choose(const Device& device, Sequence<T, Args> sequence, bool reduced_precision) {
    if constexpr (!std::is_same_v<T, double>) {
        // Tensor cores multiply half precision, or 11 bits of a float32. These forms of mma.sync, and cp.async, need sm_80.
        if ((std::is_same_v<T, float> && !reduced_precision) || device.compute_capability_major() < 8)
            return Plan::library;

        Convolution<T>& c = sequence.convolution;
        if (sequence.large_blocks() >= device.multiprocessors()) {  // the blocks of a step fill the GPU
            if (device.compute_capability_major() >= 9 &&
                sequence.args.shape.hidden * c.kernel_h * c.kernel_w > max_fused_k)
                return Plan::library;
            // W_ih * x is as much work in the steps as ahead of them. Ahead of them it goes through memory, 16 bytes a
            // pixel, step and hidden channel, so it is computed in the steps. But not where the channels of x are no whole
            // vectors: a chunk of k would be mostly padding, and copied value by value.
            return sequence.is_vectorized(c.x) ? Plan::fused : Plan::fused_recurrence;
        }

        // Here a step takes as long as the loop over k of one block. W_ih * x is taken out of it, because for all steps at
        // once it does fill the GPU. If all blocks can run at once, with their weights in shared memory, one kernel computes
        // all steps: launching a step, and loading its weights again, would be a large part of its time. This needs whole
        // vectors, because cp.async reads them from L2: L1 may hold values from before the previous step.
        c.x = {};
        const typename Sequence<T, Args>::Persistent kernel{c, sequence.args, sequence.steps, nullptr};
        const bool fits = sequence.blocks() <= device.max_cooperative_blocks(kernel, kernel.weight_bytes());
        return fits && sequence.steps > 1 && sequence.is_vectorized() ? Plan::persistent : Plan::fused_recurrence;
    }
    return Plan::library;
}

// The weights, one after the other, as a fused step reads them. For the backward these are the weights of the transposed
// convolution: rotated by 180 degrees, and summed over the 4H channels of da.
template <class T, bool back>
Tensor pack_weights(const Device& device, const Weights& weights, int64_t groups) {
    std::vector<PackWeights<T>> parts;
    int64_t size = 0;
    for (const Tensor& w : weights) {
        PackWeights<T> part{};
        part.hidden = back ? w.size(1) : w.size(0) / 4;
        part.gates = back ? 1 : 4;
        part.channels = w.size(!back);
        part.kernel_h = w.size(2);
        part.kernel_w = w.size(3);
        part.groups = groups;
        part.channel = w.stride(back);
        part.gate = part.hidden * w.stride(0);
        part.k = w.stride(!back);
        part.y = back ? -w.stride(2) : w.stride(2);
        part.x = back ? -w.stride(3) : w.stride(3);
        part.from = data<const T>(w);
        if (back) part.from -= (part.kernel_h - 1) * part.y + (part.kernel_w - 1) * part.x;
        parts.push_back(part);
        size += part.size();
    }
    const Tensor all = torch::stable::new_empty(weights[0], {size});
    T* to = data<T>(all);
    for (PackWeights<T>& part : parts) {
        part.to = to;
        to += part.size();
        device.launch(part, ceil_div(part.size(), part.threads));
    }
    return all;
}

// Computes all steps, by any plan but Plan::library. `weights` has W_ih, if x is in the sequence, and W_hh.
template <class T, class Args>
void run_sequence(const Device& device, Plan plan, Sequence<T, Args> sequence, const Weights& weights) {
    if constexpr (!std::is_same_v<T, double>) {
        using Large = typename Sequence<T, Args>::Large;
        using Small = typename Sequence<T, Args>::Small;
        Convolution<T>& convolution = sequence.convolution;
        const Tensor all = pack_weights<T, Small::gates == 1>(device, weights, convolution.groups);
        convolution.weights = reinterpret_cast<const Words*>(data<const T>(all));
        if (plan == Plan::persistent) {
            const Tensor barrier_counter = torch::stable::new_zeros(all, {1}, ScalarType::Int);
            const typename Sequence<T, Args>::Persistent kernel{
                convolution, sequence.args, sequence.steps,
                reinterpret_cast<unsigned*>(data<int32_t>(barrier_counter))};
            device.launch_cooperative(kernel, sequence.blocks(), kernel.weight_bytes());
            return;
        }
        const bool vectors = sequence.is_vectorized(), large = sequence.large_blocks() >= device.multiprocessors();
        for (int64_t i = 0; i < sequence.steps; ++i) {
            const Args step = sequence.args.at(i);
            if (vectors && large) {
                device.launch(FusedStep<T, Args, Large, true>{convolution, step}, sequence.large_blocks());
            } else if (vectors) {
                device.launch(FusedStep<T, Args, Small, true>{convolution, step}, sequence.blocks());
            } else {
                device.launch(FusedStep<T, Args, Small, false>{convolution, step}, sequence.blocks());
            }
            convolution.x.data = at_step(convolution.x.data, 1, step.shape.pixels * convolution.x.channels);
            convolution.h.data = step.next_conv_input();
        }
    }
}

}  // namespace hybridops
