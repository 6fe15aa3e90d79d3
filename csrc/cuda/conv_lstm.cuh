// The pointwise part of a ConvLSTM step on a GPU, forward and backward. It runs as a kernel of its own on the result of a
// library convolution (StepForward, StepBackward), or as the epilogue of conv_lstm_step.cuh on sums in registers.
// Images are channels-last; a thread computes n channels of a pixel. T storage type, A accumulator type.
#pragma once
#include "../conv_lstm_args.h"
#include "gates.cuh"

namespace hybridops {

// Offsets of a thread's first channel.
struct Offsets {
    int64_t state;           // in a (pixels,H) tensor
    int64_t gate;            // in a (pixels,4H) tensor, of the first gate; gates are `hidden` apart
    int64_t pixel, channel;  // within the image
};

struct StepShape {
    int64_t pixels, area, hidden;  // pixels of all images, pixels of one image, H

    HYBRIDOPS_HOST_DEVICE int64_t states() const { return pixels * hidden; }
    HYBRIDOPS_INLINE Offsets offsets(int64_t pixel, int64_t channel) const {
        return {pixel * hidden + channel, 4 * pixel * hidden + channel, pixel % area, channel};
    }
};

// The start of step t in a tensor of `size` values a step; null stays null.
template <class T>
HYBRIDOPS_HOST_DEVICE T* at_step(T* first, int64_t t, int64_t size) {
    return first ? first + t * size : nullptr;
}

template <class A, int n, class T>
HYBRIDOPS_INLINE Vec<A, n> load_or_zeros(const T* from, int64_t at) {
    return from ? load<A, n>(from + at) : Vec<A, n>{};
}

template <class A, int n>
struct PeepholeVec {
    Vec<A, n> f, i, o;

    HYBRIDOPS_INLINE PeepholeVec(const PeepholeTensor<A>& p, const Offsets& at) {
        const A* row = p.data ? p.data + at.pixel * p.pixel + at.channel : nullptr;
        f = load_or_zeros<A, n>(row, 0);
        i = load_or_zeros<A, n>(row, p.row);
        o = load_or_zeros<A, n>(row, 2 * p.row);
    }
    HYBRIDOPS_INLINE Peephole<A> operator[](int lane) const { return {f[lane], i[lane], o[lane]}; }
};

template <class T, class A>
struct StepForwardArgs {
    static constexpr bool backward = false;
    StepShape shape;
    const T* from_x;  // (pixels,4H): W_ih * x, null = zeros
    const A* bias;    // (4H), null = zeros
    PeepholeTensor<A> peephole;
    const A* c_prev;  // (pixels,H), null = zeros; may be c
    T* h;             // (pixels,H), null = not wanted
    A* c;             // (pixels,H), null = not wanted
    T* gates;         // (pixels,4H), null = not wanted; may be from_x
    bool all_cells;   // in a sequence: whether c has every step, or is overwritten step by step

    // The arguments of step i, given those of the first step of a sequence.
    HYBRIDOPS_HOST_DEVICE StepForwardArgs at(int64_t i) const {
        const int64_t size = shape.states(), cells = all_cells ? size : 0;
        StepForwardArgs step = *this;
        step.from_x = at_step(from_x, i, 4 * size);
        step.c_prev = i > 0 ? at_step(c, i - 1, cells) : c_prev;
        step.h = at_step(h, i, size);
        step.c = at_step(c, i, cells);
        step.gates = at_step(gates, i, 4 * size);
        return step;
    }
    HYBRIDOPS_HOST_DEVICE const T* next_conv_input() const { return h; }  // what the next step convolves

    // a: in, the convolutions' part of the pre-activations; out, the gates
    template <int n>
    HYBRIDOPS_INLINE void operator()(const Offsets& at, Vec<A, n> (&a)[4]) const {
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) {
            const auto x = load_or_zeros<A, n>(from_x, at.gate + gate * shape.hidden);
            const auto b = load_or_zeros<A, n>(bias, at.channel + gate * shape.hidden);
#pragma unroll
            for (int i = 0; i < n; ++i) a[gate][i] += x[i] + b[i];
        }
        const PeepholeVec<A, n> peepholes(peephole, at);
        const auto before = load_or_zeros<A, n>(c_prev, at.state);
        Vec<A, n> h_out, c_out;
#pragma unroll
        for (int i = 0; i < n; ++i) {
            const bool has_peephole = peephole.data != nullptr;
            const LstmCell<A> cell = lstm_cell(a[0][i], a[1][i], a[2][i], before[i], has_peephole, peepholes[i]);
            const LstmOutput<A> out = lstm_output(a[3][i], cell.c, has_peephole, peepholes[i]);
            a[0][i] = cell.f;
            a[1][i] = cell.i;
            a[2][i] = cell.g;
            a[3][i] = out.o;
            c_out[i] = cell.c;
            h_out[i] = out.h;
        }
        if (h) store(h + at.state, h_out);
        if (c) store(c + at.state, c_out);
#pragma unroll
        for (int gate = 0; gate < 4; ++gate)
            if (gates) store(gates + at.gate + gate * shape.hidden, a[gate]);
    }
};

// 256 threads: three blocks leave a thread 85 registers, and in float32 vectors of four take up to 66 (sm_90, make
// cuda-check). In float64 they take 120.
template <class A>
constexpr int pointwise_blocks_per_sm = sizeof(A) == 4 ? 3 : 1;

HYBRIDOPS_ENTRY(conv_lstm_pointwise_kernel)

template <class T, class A, int n>
struct StepForward {
    static constexpr int threads = 256, min_blocks_per_sm = pointwise_blocks_per_sm<A>;
    static auto entry() { return &conv_lstm_pointwise_kernel<StepForward>; }
    struct Shared {};
    StepForwardArgs<T, A> args;
    const T* from_h;  // (pixels,4H): W_hh * h, null = zeros

    HYBRIDOPS_INLINE void operator()(Shared&) const {
        const int64_t state = (int64_t{blockIdx.x} * threads + threadIdx.x) * n, hidden = args.shape.hidden;
        if (state >= args.shape.states()) return;
        const Offsets at = args.shape.offsets(state / hidden, state % hidden);
        Vec<A, n> a[4];
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) a[gate] = load_or_zeros<A, n>(from_h, at.gate + gate * hidden);
        args(at, a);
    }
};

template <class T, class A>
struct StepBackwardArgs {
    static constexpr bool backward = true;
    StepShape shape;
    const T* grad_h;      // (pixels,H): of this step's output, null = zeros
    const A* dh_last;     // (pixels,H): of the last step's state, null = zeros
    const T* gates;       // (pixels,4H), may be da
    const A *c, *c_prev;  // (pixels,H), c_prev null = zeros
    PeepholeTensor<A> peephole;
    A* dc;          // (pixels,H): in, the gradient of c from the later steps; out, that of c_prev
    T* da;          // (pixels,4H)
    int64_t steps;  // in a sequence

    // The arguments of the i-th step from the end, given those of a sequence. Only the last step has dh_last.
    HYBRIDOPS_HOST_DEVICE StepBackwardArgs at(int64_t i) const {
        const int64_t size = shape.states(), t = steps - 1 - i;
        StepBackwardArgs step = *this;
        step.grad_h = at_step(grad_h, t, size);
        step.dh_last = i == 0 ? dh_last : nullptr;
        step.gates = at_step(gates, t, 4 * size);
        step.c = at_step(c, t, size);
        step.c_prev = t > 0 ? at_step(c, t - 1, size) : c_prev;
        step.da = at_step(da, t, 4 * size);
        return step;
    }
    HYBRIDOPS_HOST_DEVICE const T* next_conv_input() const { return da; }  // what the previous step convolves

    // dh: the gradient of h from the next step
    template <int n>
    HYBRIDOPS_INLINE void operator()(const Offsets& at, const Vec<A, n> (&dh)[1]) const {
        const auto grad = load_or_zeros<A, n>(grad_h, at.state), last = load_or_zeros<A, n>(dh_last, at.state);
        const auto cell = load<A, n>(c + at.state), before = load_or_zeros<A, n>(c_prev, at.state);
        const PeepholeVec<A, n> peepholes(peephole, at);
        auto dc_out = load<A, n>(dc + at.state);
        Vec<A, n> g[4];
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) g[gate] = load<A, n>(gates + at.gate + gate * shape.hidden);
#pragma unroll
        for (int i = 0; i < n; ++i) {
            const LstmGradient<A> d =
                lstm_backward(grad[i] + dh[0][i] + last[i], dc_out[i], g[0][i], g[1][i], g[2][i], g[3][i], cell[i],
                              before[i], peephole.data != nullptr, peepholes[i]);
            g[0][i] = d.da_f;
            g[1][i] = d.da_i;
            g[2][i] = d.da_g;
            g[3][i] = d.da_o;
            dc_out[i] = d.dc_prev;
        }
        store(dc + at.state, dc_out);
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) store(da + at.gate + gate * shape.hidden, g[gate]);
    }
};

HYBRIDOPS_ENTRY(conv_lstm_pointwise_backward_kernel)

template <class T, class A, int n>
struct StepBackward {
    static constexpr int threads = 256, min_blocks_per_sm = pointwise_blocks_per_sm<A>;
    static auto entry() { return &conv_lstm_pointwise_backward_kernel<StepBackward>; }
    struct Shared {};
    StepBackwardArgs<T, A> args;
    const T* dh;  // (pixels,H): the gradient of h from the next step, null = zeros

    HYBRIDOPS_INLINE void operator()(Shared&) const {
        const int64_t state = (int64_t{blockIdx.x} * threads + threadIdx.x) * n, hidden = args.shape.hidden;
        if (state >= args.shape.states()) return;
        args(args.shape.offsets(state / hidden, state % hidden), {load_or_zeros<A, n>(dh, state)});
    }
};

HYBRIDOPS_ENTRY(conv_lstm_add_weight_gradient_kernel)

// sum += part
template <class T, class A>
struct AddInPlace {
    static constexpr int threads = 256, min_blocks_per_sm = 4;  // takes 10 of 64 registers
    static auto entry() { return &conv_lstm_add_weight_gradient_kernel<AddInPlace>; }
    struct Shared {};
    const T* part;
    A* sum;
    int64_t count;

    HYBRIDOPS_INLINE void operator()(Shared&) const {
        const int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x;
        if (i < count) sum[i] += static_cast<A>(part[i]);
    }
};

}  // namespace hybridops
