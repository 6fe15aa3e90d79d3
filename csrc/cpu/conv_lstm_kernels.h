// The two recurrences of the ConvLSTM for one instruction set; included by every_isa.h inside its namespace.
//
// The four gates of a block of channels are in one register tile of the convolution, so the LSTM step is its epilogue; in
// the backward, the tile is N blocks of channels and the epilogue is the previous step's pointwise gradient.

#include "conv_lstm_epilogues.h"
#include "weight_gradient_kernels.h"

// The columns of a group are [gate][gate_width], for the channels [group * gate_width, ...).
template <class T>
struct GateWeights {
    ConvWeights<T> w_ih, w_hh;
    int64_t inputs, hidden, gate_width;

    KernelTaps<T> operator()(int64_t group, int64_t column, int64_t c) const {
        const int64_t h = group * gate_width + column % gate_width;
        const ConvWeights<T>& w = c < inputs ? w_ih : w_hh;
        const T* at = w.data + (column / gate_width * hidden + h) * w.out + (c < inputs ? c : c - inputs) * w.in;
        return {h < hidden ? at : nullptr, w.y, w.x};
    }
};

// The transposed convolution as a convolution: the kernel turned round, inputs and outputs exchanged.
template <class T>
struct TransposedWeights {
    ConvWeights<T> w;
    int64_t outputs, group_channels, last_y, last_x;

    KernelTaps<T> operator()(int64_t group, int64_t column, int64_t c) const {
        const int64_t o = group * group_channels + column;
        const T* last = w.data + c * w.out + o * w.in + last_y * w.y + last_x * w.x;
        return {o < outputs ? last : nullptr, -w.y, -w.x};
    }
};

// States and pre-activations saturate, so that an error is judged by itself; gradients are linear in each other, and an
// error is judged by the largest of them. A single large value is at least 4.8 times its tile's root mean square, normal
// noise hardly anywhere more than 4.5 times.
template <class A>
inline constexpr TileLimits<A> forward_limits{16, 4.5};
template <class A>
inline constexpr TileLimits<A> gradient_limits{std::numeric_limits<A>::infinity(), 0};

template <class T>
int64_t fastest_tile(const ConvShape& shape, int64_t channels, int64_t allowed) {
    if (has_tiles<T>() && allowed >= 0) return 0;
    return convolution_tile(shape, channels, allowed, has_dot_product<T>() ? 0.5 : 1);
}

// f(E{}): with the type of the factors of convolutions in tiles of that size.
template <class T, class A, class F>
void with_factors(int64_t tile, const F& f) {
    tile == 0 ? with_operands<T, A>(f) : f(A{});
}

// f(N): with the vectors of the forward's register tile, one a gate; fewer where the four gates of all channels go into them.
template <class A, class F>
void with_gate_vectors(int64_t hidden, const F& f) {
    if (hidden <= lanes<A> / 4) return f(std::integral_constant<int, 1>{});
    if (hidden <= lanes<A> / 2) return f(std::integral_constant<int, 2>{});
    f(std::integral_constant<int, 4>{});
}

template <class E, int N, class T, class A>
void run_conv_lstm_forward(const ConvLstmForwardArgs<T, A>& a, int64_t tile) {
    constexpr int64_t gate_width = N * lanes<A> / 4;
    const int64_t groups = ceil_div(a.hidden, gate_width), state = a.shape.pixels() * a.hidden;
    Buffer<A> bias(groups * 4 * gate_width);
    for (int64_t i = 0; i < groups * 4 * gate_width; ++i) {
        const int64_t gate = i / gate_width % 4, h = i / (4 * gate_width) * gate_width + i % gate_width;
        bias.data()[i] = a.bias && h < a.hidden ? a.bias[gate * a.hidden + h] : A(0);
    }
    const auto convolution = make_convolution<A, N, E>(a.shape, {a.inputs, a.hidden}, groups, tile, forward_limits<A>,
                                                       GateWeights<T>{a.w_ih, a.w_hh, a.inputs, a.hidden, gate_width});
    const T* h = a.h0;
    const A* c = a.c0;
    for (int64_t t = 0; t < a.steps; ++t) {
        const auto x = images_at<E>(a.x, t, a.inputs);
        const auto h_source = channels_last<E>(h, a.shape, a.hidden);
        ForwardEpilogue<T, A> epilogue;
        epilogue.hidden = a.hidden;
        epilogue.image_pixels = a.shape.height * a.shape.width;
        epilogue.gate_width = gate_width;
        epilogue.bias = bias.data();
        epilogue.peephole = a.peephole;
        epilogue.c_prev = c;
        epilogue.h = a.hs ? a.hs + t * state : nullptr;
        epilogue.c = a.cs ? a.cs + (a.all_cells ? t * state : 0) : nullptr;
        epilogue.gates = a.gates ? a.gates + t * 4 * state : nullptr;
        (*convolution)({&x, h ? &h_source : nullptr}, epilogue);  // no h: the first step from zeros
        h = a.given_hs ? a.given_hs + t * state : epilogue.h;
        c = a.given_cs ? a.given_cs + t * state : epilogue.c;
    }
}

// Where a.given_hs is set, all states are known and only the gates are computed: the same ones as before, bit for bit.
template <class T, class A>
void conv_lstm_forward(const ConvLstmForwardArgs<T, A>& a) {
    const int64_t tile = fastest_tile<T>(a.shape, a.inputs + a.hidden, a.winograd);
    with_gate_vectors<A>(a.hidden, [&](auto n) {
        with_factors<T, A>(tile, [&](auto e) { run_conv_lstm_forward<decltype(e), n.value>(a, tile); });
    });
}

// How many vectors of outputs make the best register tile for this many.
template <class A, class F>
void with_group_vectors(int64_t outputs, const F& f) {
    if (outputs <= lanes<A>) return f(std::integral_constant<int, 1>{});
    if constexpr (HYBRIDOPS_REGISTERS == 32) {
        if (outputs > 2 * lanes<A>) return f(std::integral_constant<int, 4>{});
    }
    f(std::integral_constant<int, 2>{});
}

// f(convolution, E{}, width of its groups): W^T * images, for `outputs` channels and images of `inputs` channels
template <class A, class T, class F>
void with_transposed_convolution(const ConvShape& shape, const ConvWeights<T>& w, int64_t inputs, int64_t outputs,
                                 int64_t winograd, const F& f) {
    const int64_t tile = fastest_tile<T>(shape, inputs, winograd);
    with_group_vectors<A>(outputs, [&](auto n) {
        with_factors<T, A>(tile, [&](auto e) {
            constexpr int64_t width = n.value * lanes<A>;
            const TransposedWeights<T> weights{w, outputs, width, shape.kernel_h - 1, shape.kernel_w - 1};
            f(*make_convolution<A, n.value, decltype(e)>(shape, {inputs, 0}, ceil_div(outputs, width), tile,
                                                         gradient_limits<A>, weights),
              e, width);
        });
    });
}

template <class E, class T, class A>
void run_conv_lstm_backward(const ConvLstmBackwardArgs<T, A>& a, const Convolution<A, E>& convolution,
                            int64_t group_channels) {
    const int64_t pixels = a.shape.pixels(), state = pixels * a.hidden;
    const auto da = [&](int64_t t) { return channels_last<E>(a.da + t * 4 * state, a.shape, 4 * a.hidden); };
    for (int64_t t = a.steps - 1; t >= 0; --t) {
        BackwardEpilogue<T, A> epilogue;
        epilogue.hidden = a.hidden;
        epilogue.height = a.shape.height;
        epilogue.width = a.shape.width;
        epilogue.grad_hs = a.grad_hs;
        if (epilogue.grad_hs.data) epilogue.grad_hs.data += t * a.grad_hs.time;
        epilogue.gates = a.gates + t * 4 * state;
        epilogue.c = a.cs + t * state;
        epilogue.c_prev = t ? a.cs + (t - 1) * state : a.c0;
        epilogue.peephole = a.peephole;
        epilogue.da = a.da + t * 4 * state;
        epilogue.dc = a.dc;
        epilogue.group_channels = group_channels;
        if (t + 1 < a.steps) {
            const auto source = da(t + 1);
            convolution({&source, nullptr}, epilogue);
        } else {
            torch::stable::parallel_for(0, pixels, 256,
                                        [&](int64_t begin, int64_t end) { epilogue.last(begin, end, a.grad_hn); });
        }
    }
    if (a.dh0) {
        const auto source = da(0);
        convolution({&source, nullptr}, StoreEpilogue<A, A>(a.hidden, a.dh0, group_channels));
    }
}

template <class T, class A>
void conv_lstm_backward(const ConvLstmBackwardArgs<T, A>& a) {
    with_transposed_convolution<A>(a.shape, a.w_hh, 4 * a.hidden, a.hidden, a.winograd,
                                   [&](const auto& convolution, auto e, int64_t width) {
                                       run_conv_lstm_backward<decltype(e)>(a, convolution, width);
                                   });
}

// What da, the gradient of the pre-activations W * x, means for x and W.
template <class T, class A>
void conv_input_gradient(const ConvInputGradientArgs<T, A>& a) {
    with_transposed_convolution<A>(a.shape, a.weights, a.outputs, a.inputs, a.winograd,
                                   [&](const auto& convolution, auto e, int64_t width) {
                                       const auto source = channels_last<decltype(e)>(a.da, a.shape, a.outputs);
                                       convolution({&source, nullptr}, StoreEpilogue<A, T>(a.inputs, a.dx, width));
                                   });
}

template <class T, class A>
void conv_weight_gradient(const ConvWeightGradientArgs<T, A>& a) {
#ifdef HYBRIDOPS_WIDE
    if constexpr (is_bfloat16<T>)
        if (has_tiles<T>() && a.winograd >= 0) return AmxWeightGradient<T>(a).run();
#endif
    make_weight_gradient(a)->run();
}
