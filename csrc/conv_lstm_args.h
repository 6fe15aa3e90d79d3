// What the ConvLSTM's ops hand to their kernels: sizes and raw pointers. T storage type, A accumulator type.
#pragma once
#include <cstdint>
#include <optional>

#include "tensors.h"

namespace hybridops {

enum class Save : int64_t { nothing, cells, gates };  // of a forward pass, for its backward

struct ConvShape {
    int64_t batch, height, width, kernel_h, kernel_w;
    int64_t pixels() const { return batch * height * width; }
    int64_t pixel(int64_t image, int64_t y, int64_t x) const { return (image * height + y) * width + x; }
};

// A (time, batch, channel, y, x) tensor by its strides.
template <class T>
struct Strided {
    const T* data;
    int64_t time, batch, channel, y, x;
};

// Weights (out, in, ky, kx) by their strides.
template <class T>
struct ConvWeights {
    const T* data;
    int64_t out, in, y, x;
};

template <class A>
struct PeepholeTensor {  // rows f, i, o; null = none
    const A* data;
    int64_t row, pixel;  // strides; pixel is 0 for one value a channel
};

template <class A>
PeepholeTensor<A> peephole_tensor(const std::optional<Tensor>& p) {  // (3,H) or (3,Y,X,H)
    if (!p) return {nullptr, 0, 0};
    return {data<const A>(p), p->stride(0), p->dim() == 2 ? 0 : p->size(-1)};
}

template <class T, class A>
struct ConvLstmForwardArgs {
    ConvShape shape;
    int64_t steps, inputs, hidden;
    Strided<T> x;
    const T* h0;  // (B,Y,X,H), null = zeros
    const A* c0;  // (B,Y,X,H), null = zeros
    ConvWeights<T> w_ih, w_hh;
    const A* bias;  // (4H), null = zeros
    PeepholeTensor<A> peephole;
    int64_t winograd;   // outputs of the largest tiles allowed
    T* hs;              // (T,B,Y,X,H), null = not wanted
    A* cs;              // (T,B,Y,X,H), or (1,B,Y,X,H) overwritten step by step, null = not wanted
    bool all_cells;     // which of the two
    T* gates;           // (T,B,Y,X,4H), null = not wanted
    const T* given_hs;  // null, or the states of a first pass: the gates are computed anew from them
    const A* given_cs;
};

template <class T, class A>
struct ConvLstmBackwardArgs {
    ConvShape shape;
    int64_t steps, hidden;
    Strided<T> grad_hs;  // data null = zeros
    const A* grad_hn;    // (B,Y,X,H), null = zeros
    const T* gates;      // (T,B,Y,X,4H), may be da
    const A* cs;         // (T,B,Y,X,H)
    const A* c0;         // (B,Y,X,H), null = zeros
    ConvWeights<T> w_hh;
    PeepholeTensor<A> peephole;
    int64_t winograd;
    T* da;   // (T,B,Y,X,4H)
    A* dh0;  // (B,Y,X,H), null = not wanted
    A* dc;   // (B,Y,X,H): in, the gradient of c_n; out, that of c0
};

template <class T, class A>
struct ConvInputGradientArgs {
    ConvShape shape;  // batch: of all steps
    int64_t inputs, outputs;
    const T* da;  // (N,Y,X,outputs)
    ConvWeights<T> weights;
    int64_t winograd;
    T* dx;  // (N,Y,X,inputs)
};

template <class T, class A>
struct ConvWeightGradientArgs {
    struct Factor {
        int64_t channels;  // 0 = there is no second one
        Strided<T> x;
        A* dw;  // (outputs,channels,KY,KX), added to
    };
    ConvShape shape;
    int64_t steps, outputs;
    const T* da;  // (T,B,Y,X,outputs)
    Factor factors[2];
    int64_t winograd;
    int64_t channels() const { return factors[0].channels + factors[1].channels; }
};

}  // namespace hybridops
