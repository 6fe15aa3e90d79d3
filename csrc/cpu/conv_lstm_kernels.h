// The two recurrences of the ConvLSTM for one instruction set; included by every_isa.h inside its namespace.
//
// The four gates of a block of channels are the N = 4 vectors of one register tile of the convolution, so the LSTM step is
// its epilogue; in the backward, the tile is N blocks of channels and the epilogue is the previous step's pointwise
// gradient.

#include "../math/lstm_gates.h"
#include "convolution_kernels.h"
#include "weight_gradient_kernels.h"

// Gate n of the channels [group * lanes, ...) is vector n of the forward's register tile.
template <class T, class A>
struct GateWeights {
    ConvWeights<T> w_ih, w_hh;
    int64_t inputs, hidden;

    KernelTaps<T> operator()(int64_t group, int64_t column, int64_t c) const {
        const int64_t h = group * lanes<A> + column % lanes<A>;
        const ConvWeights<T>& w = c < inputs ? w_ih : w_hh;
        const T* at = w.data + (column / lanes<A> * hidden + h) * w.out + (c < inputs ? c : c - inputs) * w.in;
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

template <class A>
HYBRIDOPS_INLINE Peephole<Simd<A>> load_peephole(const PeepholeTensor<A>& p, int64_t pixel, int64_t channel,
                                                 int64_t count) {
    const A* at = p.data + pixel * p.pixel + channel;
    return {load_lanes<A>(at, count), load_lanes<A>(at + p.row, count), load_lanes<A>(at + 2 * p.row, count)};
}

template <class T, class A>
struct ForwardEpilogue final : Epilogue<A> {
    int64_t hidden, image_pixels;  // pixels of one image, to find the peephole's
    const A* bias;                 // [group][gate][lane]
    PeepholeTensor<A> peephole;
    const A* c_prev;  // null = zeros
    T* h;             // null = not wanted, and so the next two
    A* c;
    T* gates;

    void start(int64_t group, A* sums, int64_t width) const override {
        std::copy(bias + group * width, bias + (group + 1) * width, sums);
    }

    // In two passes, so that the long chains of one pixel's operations overlap with other pixels'.
    void finish(int64_t group, const int64_t* pixels, int64_t pixel_count, const A* sums) const override {
        const int64_t channel = group * lanes<A>, count = lanes_of<A>(hidden - channel);
        Simd<A> cells[most_finished];
        for (int64_t i = 0; i < pixel_count; ++i) {
            const A* a = sums + i * 4 * lanes<A>;
            const int64_t at = pixels[i] * hidden + channel;
            const auto s = lstm_cell(load(a), load(a + lanes<A>), load(a + 2 * lanes<A>),
                                     c_prev ? load_lanes<A>(c_prev + at, count) : Simd<A>{}, peephole.data,
                                     peephole_at(pixels[i], channel, count));
            cells[i] = s.c;
            if (c) store_lanes<A>(c + at, s.c, count);
            if (gates) {
                T* g = gates + pixels[i] * 4 * hidden + channel;
                store_lanes<A>(g, s.f, count);
                store_lanes<A>(g + hidden, s.i, count);
                store_lanes<A>(g + 2 * hidden, s.g, count);
            }
        }
        for (int64_t i = 0; i < pixel_count; ++i) {
            const auto s = lstm_output(load(sums + (i * 4 + 3) * lanes<A>), cells[i], peephole.data,
                                       peephole_at(pixels[i], channel, count));
            if (h) store_lanes<A>(h + pixels[i] * hidden + channel, s.h, count);
            if (gates) store_lanes<A>(gates + pixels[i] * 4 * hidden + 3 * hidden + channel, s.o, count);
        }
    }

    Peephole<Simd<A>> peephole_at(int64_t pixel, int64_t channel, int64_t count) const {
        return peephole.data ? load_peephole(peephole, pixel % image_pixels, channel, count) : Peephole<Simd<A>>{};
    }
};

template <class T>
bool multiplies_itself() {  // the processor does, two products of T an instruction
#ifdef HYBRIDOPS_WIDE
    return is_bfloat16<T> && cpu_isa() == Isa::avx512_bf16;
#else
    return false;
#endif
}

template <class T>
int64_t fastest_tile(const ConvShape& shape, int64_t channels, int64_t allowed) {
    return convolution_tile(shape, channels, allowed, multiplies_itself<T>() ? 0.5 : 1);
}

// f(E{}): with the type of the factors of convolutions in tiles of that size, A or T where the processor multiplies T.
template <class T, class A, class F>
void with_factors(int64_t tile, const F& f) {
#ifdef HYBRIDOPS_WIDE
    if constexpr (is_bfloat16<T>) {
        if (tile == 0 && multiplies_itself<T>()) return f(T{});
    }
#endif
    (void)tile;
    f(A{});
}

template <class E, class T, class A>
void run_conv_lstm_forward(const ConvLstmForwardArgs<T, A>& a, int64_t tile) {
    const int64_t groups = ceil_div(a.hidden, lanes<A>), state = a.shape.pixels() * a.hidden;
    Buffer<A> bias(groups * 4 * lanes<A>);
    for (int64_t i = 0; i < groups * 4 * lanes<A>; ++i) {
        const int64_t gate = i / lanes<A> % 4, h = i / (4 * lanes<A>)*lanes<A> + i % lanes<A>;
        bias.data()[i] = a.bias && h < a.hidden ? a.bias[gate * a.hidden + h] : A(0);
    }
    const Convolution<A, 4, E> convolution(a.shape, {a.inputs, a.hidden}, groups, tile, forward_limits<A>,
                                           GateWeights<T, A>{a.w_ih, a.w_hh, a.inputs, a.hidden});
    const T* h = a.h0;
    const A* c = a.c0;
    for (int64_t t = 0; t < a.steps; ++t) {
        const auto x = images_at<E>(a.x, t, a.inputs);
        const auto h_source = channels_last<E>(h, a.shape, a.hidden);
        ForwardEpilogue<T, A> epilogue;
        epilogue.hidden = a.hidden;
        epilogue.image_pixels = a.shape.height * a.shape.width;
        epilogue.bias = bias.data();
        epilogue.peephole = a.peephole;
        epilogue.c_prev = c;
        epilogue.h = a.hs ? a.hs + t * state : nullptr;
        epilogue.c = a.cs ? a.cs + (a.all_cells ? t * state : 0) : nullptr;
        epilogue.gates = a.gates ? a.gates + t * 4 * state : nullptr;
        convolution({&x, h ? &h_source : nullptr}, epilogue);  // no h: the first step from zeros
        h = a.given_hs ? a.given_hs + t * state : epilogue.h;
        c = a.given_cs ? a.given_cs + t * state : epilogue.c;
    }
}

// Where a.given_hs is set, all states are known and only the gates are computed: the same ones as before, bit for bit.
template <class T, class A>
void conv_lstm_forward(const ConvLstmForwardArgs<T, A>& a) {
    const int64_t tile = fastest_tile<T>(a.shape, a.inputs + a.hidden, a.winograd);
    with_factors<T, A>(tile, [&](auto e) { run_conv_lstm_forward<decltype(e)>(a, tile); });
}

// The pointwise gradient of one step, behind the sums dh = W_hh^T * da of the step after it.
template <class T, class A>
struct BackwardEpilogue final : Epilogue<A> {
    int64_t hidden, height, width;
    Strided<T> grad_hs;  // data null = zeros; else at this step
    const T* gates;
    const A *c, *c_prev;  // c_prev null = zeros
    PeepholeTensor<A> peephole;
    T* da;
    A* dc;
    int64_t group_channels;

    void finish(int64_t group, const int64_t* pixels, int64_t pixel_count, const A* sums) const override {
        const int64_t first = group * group_channels, end = std::min(first + group_channels, hidden);
        for (int64_t i = 0; i < pixel_count; ++i, sums += group_channels) {
            const T* grad = grad_at(pixels[i]);
            for (int64_t channel = first; channel < end; channel += lanes<A>)
                step(pixels[i], grad, channel, lanes_of<A>(end - channel), load(sums + channel - first));
        }
    }

    // Where grad_hs has the first channel of a pixel. Divisions take as long as the arithmetic of a whole vector.
    const T* grad_at(int64_t pixel) const {
        if (!grad_hs.data) return nullptr;
        const int64_t image = height * width, b = pixel / image, at = pixel % image;
        const T* grad = grad_hs.data + b * grad_hs.batch;
        if (grad_hs.y == width * grad_hs.x) return grad + at * grad_hs.x;
        return grad + at / width * grad_hs.y + at % width * grad_hs.x;
    }

    void step(int64_t pixel, const T* grad, int64_t channel, int64_t count, Simd<A> dh) const {
        if (grad) dh += load_lanes<A>(grad + channel * grad_hs.channel, count, grad_hs.channel);
        const int64_t at = pixel * hidden + channel;
        const T* gate = gates + pixel * 4 * hidden + channel;
        Peephole<Simd<A>> p = {};
        if (peephole.data) p = load_peephole(peephole, pixel % (height * width), channel, count);
        const auto d = lstm_backward(dh, load_lanes<A>(dc + at, count), load_lanes<A>(gate, count),
                                     load_lanes<A>(gate + hidden, count), load_lanes<A>(gate + 2 * hidden, count),
                                     load_lanes<A>(gate + 3 * hidden, count), load_lanes<A>(c + at, count),
                                     c_prev ? load_lanes<A>(c_prev + at, count) : Simd<A>{}, peephole.data, p);
        T* out = da + pixel * 4 * hidden + channel;
        store_lanes<A>(out, d.da_f, count);
        store_lanes<A>(out + hidden, d.da_i, count);
        store_lanes<A>(out + 2 * hidden, d.da_g, count);
        store_lanes<A>(out + 3 * hidden, d.da_o, count);
        store_lanes<A>(dc + at, d.dc_prev, count);
    }
};

template <class A, class U>
struct StoreEpilogue final : Epilogue<A> {
    int64_t channels;
    U* out;  // (pixels, channels)
    int64_t group_channels;

    StoreEpilogue(int64_t channels, U* out, int64_t group_channels)
        : channels(channels), out(out), group_channels(group_channels) {}

    void finish(int64_t group, const int64_t* pixels, int64_t pixel_count, const A* sums) const override {
        const int64_t first = group * group_channels, end = std::min(group_channels, channels - first);
        for (int64_t i = 0; i < pixel_count; ++i, sums += group_channels)
            for (int64_t c = 0; c < end; c += lanes<A>)
                store_lanes<A>(out + pixels[i] * channels + first + c, load(sums + c), lanes_of<A>(end - c));
    }
};

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
            f(Convolution<A, n.value, decltype(e)>(shape, {inputs, 0}, ceil_div(outputs, width), tile,
                                                   gradient_limits<A>, weights),
              e, width);
        });
    });
}

template <class E, class T, class A>
void run_conv_lstm_backward(const ConvLstmBackwardArgs<T, A>& a, const auto& convolution, int64_t group_channels) {
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
        } else {  // nothing comes from behind but the gradient of h_n
            torch::stable::parallel_for(0, pixels, 256, [&](int64_t begin, int64_t end) {
                for (int64_t pixel = begin; pixel < end; ++pixel) {
                    const T* grad = epilogue.grad_at(pixel);
                    const A* dh = a.grad_hn ? a.grad_hn + pixel * a.hidden : nullptr;
                    for (int64_t channel = 0; channel < a.hidden; channel += lanes<A>) {
                        const int64_t count = lanes_of<A>(a.hidden - channel);
                        epilogue.step(pixel, grad, channel, count, dh ? load_lanes<A>(dh + channel, count) : Simd<A>{});
                    }
                }
            });
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
    WeightGradient<T, A>(a).run();
}
