// The pointwise half of the ConvLSTM's recurrences on a GPU: one step forward and one back, between convolutions that a
// library computes. Images stand channels-last; a thread takes n channels of a pixel. T storage type, A accumulator
// type.
#pragma once
#include "../conv_lstm_args.h"
#include "device.cuh"

namespace hybridops {

#include "../math/lstm_gates.h"

// Where a thread's channels stand.
struct Place {
    int64_t state;           // in a (pixels,H) tensor
    int64_t gate;            // in a (pixels,4H) one, of the first gate; the next is `hidden` further
    int64_t pixel, channel;  // within the image
};

struct StepShape {
    int64_t pixels, area, hidden;  // of all images, of one; H

    // False behind the last pixel.
    HYBRIDOPS_INLINE bool find(Place& place, int64_t state) const {
        place.state = state;
        const int64_t pixel = place.state / hidden;
        place.channel = place.state % hidden;
        place.gate = place.state + 3 * pixel * hidden;
        place.pixel = pixel % area;
        return pixel < pixels;
    }
};

template <class A, int n, class T>
HYBRIDOPS_INLINE Lanes<A, n> load_or_zeros(const T* from, int64_t at) {
    return from ? load<A, n>(from + at) : Lanes<A, n>{};
}

template <class A, int n>
struct PeepholeLanes {
    Lanes<A, n> f, i, o;

    HYBRIDOPS_INLINE PeepholeLanes(const PeepholeTensor<A>& p, const Place& at) {
        const A* row = p.data ? p.data + at.pixel * p.pixel + at.channel : nullptr;
        f = load_or_zeros<A, n>(row, 0);
        i = load_or_zeros<A, n>(row, p.row);
        o = load_or_zeros<A, n>(row, 2 * p.row);
    }
    HYBRIDOPS_INLINE Peephole<A> operator[](int lane) const { return {f[lane], i[lane], o[lane]}; }
};

template <class T, class A>
struct StepForwardArgs {
    StepShape shape;
    const T* from_x;  // (pixels,4H): W_ih * x
    const T* from_h;  // (pixels,4H): W_hh * h, null = zeros
    const A* bias;    // (4H), null = zeros
    PeepholeTensor<A> peephole;
    const A* c_prev;  // (pixels,H), null = zeros; may be c
    T* h;             // (pixels,H), null = not wanted
    A* c;             // (pixels,H), null = not wanted
    T* gates;         // (pixels,4H), null = not wanted; may be from_x
};

template <class T, class A, int n>
struct StepForward {
    static constexpr int threads = 256, resident = sizeof(A) == 4 ? 3 : 1;
    struct Shared {};
    StepForwardArgs<T, A> args;

    HYBRIDOPS_INLINE void operator()(Shared&) const {
        Place at;
        const int64_t hidden = args.shape.hidden;
        if (!args.shape.find(at, (int64_t{blockIdx.x} * threads + threadIdx.x) * n)) return;
        Lanes<A, n> a[4];
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) {
            a[gate] = load<A, n>(args.from_x + at.gate + gate * hidden);
            const auto from_h = load_or_zeros<A, n>(args.from_h, at.gate + gate * hidden);
            const auto bias = load_or_zeros<A, n>(args.bias, at.channel + gate * hidden);
#pragma unroll
            for (int i = 0; i < n; ++i) a[gate][i] += from_h[i] + bias[i];
        }
        const PeepholeLanes<A, n> peephole(args.peephole, at);
        const auto c_prev = load_or_zeros<A, n>(args.c_prev, at.state);
        Lanes<A, n> h, c;
#pragma unroll
        for (int i = 0; i < n; ++i) {
            const bool peeps = args.peephole.data != nullptr;
            const LstmCell<A> cell = lstm_cell(a[0][i], a[1][i], a[2][i], c_prev[i], peeps, peephole[i]);
            const LstmOutput<A> out = lstm_output(a[3][i], cell.c, peeps, peephole[i]);
            a[0][i] = cell.f;
            a[1][i] = cell.i;
            a[2][i] = cell.g;
            a[3][i] = out.o;
            c[i] = cell.c;
            h[i] = out.h;
        }
        if (args.h) store(args.h + at.state, h);
        if (args.c) store(args.c + at.state, c);
#pragma unroll
        for (int gate = 0; gate < 4; ++gate)
            if (args.gates) store(args.gates + at.gate + gate * hidden, a[gate]);
    }
};

template <class T, class A>
struct StepBackwardArgs {
    StepShape shape;
    const T* grad_h;      // (pixels,H): of this step's output, null = zeros
    const T* dh;          // (pixels,H): from the step behind, null = zeros
    const A* dh_last;     // (pixels,H): of the last step's state, null = zeros
    const T* gates;       // (pixels,4H), may be da
    const A *c, *c_prev;  // (pixels,H), c_prev null = zeros
    PeepholeTensor<A> peephole;
    A* dc;  // (pixels,H): of c by way of the later steps, then of c_prev
    T* da;  // (pixels,4H)
};

template <class T, class A, int n>
struct StepBackward {
    static constexpr int threads = 256, resident = sizeof(A) == 4 ? 3 : 1;
    struct Shared {};
    StepBackwardArgs<T, A> args;

    HYBRIDOPS_INLINE void operator()(Shared&) const {
        Place at;
        const int64_t hidden = args.shape.hidden;
        if (!args.shape.find(at, (int64_t{blockIdx.x} * threads + threadIdx.x) * n)) return;
        const auto grad_h = load_or_zeros<A, n>(args.grad_h, at.state), dh = load_or_zeros<A, n>(args.dh, at.state);
        const auto dh_last = load_or_zeros<A, n>(args.dh_last, at.state);
        const auto c = load<A, n>(args.c + at.state), c_prev = load_or_zeros<A, n>(args.c_prev, at.state);
        const PeepholeLanes<A, n> peephole(args.peephole, at);
        auto dc = load<A, n>(args.dc + at.state);
        Lanes<A, n> gates[4];
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) gates[gate] = load<A, n>(args.gates + at.gate + gate * hidden);
#pragma unroll
        for (int i = 0; i < n; ++i) {
            const LstmGradient<A> d =
                lstm_backward(grad_h[i] + dh[i] + dh_last[i], dc[i], gates[0][i], gates[1][i], gates[2][i], gates[3][i],
                              c[i], c_prev[i], args.peephole.data != nullptr, peephole[i]);
            gates[0][i] = d.da_f;
            gates[1][i] = d.da_i;
            gates[2][i] = d.da_g;
            gates[3][i] = d.da_o;
            dc[i] = d.dc_prev;
        }
        store(args.dc + at.state, dc);
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) store(args.da + at.gate + gate * hidden, gates[gate]);
    }
};

}  // namespace hybridops
