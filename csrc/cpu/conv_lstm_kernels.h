// The two recurrences of the ConvLSTM for one instruction set; included by every_isa.h inside its namespace.
//
// The four gates of a block of channels are the N = 4 vectors of one register tile of the convolution, so the LSTM step is
// its epilogue; in the backward, the tile is N blocks of channels and the epilogue is the previous step's pointwise
// gradient.

#include "../math/lstm_gates.h"
#include "convolution_kernels.h"

// Gate n of the channels [group * lanes, ...): the forward's register tile.
template <class A, class T>
void pack_forward(A* out, const ConvWeights<T>& w, const ConvShape& shape, int64_t channels, int64_t hidden) {
    const int64_t groups = (hidden + lanes<A> - 1) / lanes<A>, taps = shape.kernel_h * shape.kernel_w;
    torch::stable::parallel_for(0, groups * taps, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t group = i / taps, ky = i % taps / shape.kernel_w, kx = i % shape.kernel_w;
            A* row = out + i * channels * 4 * lanes<A>;
            for (int64_t c = 0; c < channels; ++c)
                for (int gate = 0; gate < 4; ++gate)
                    for (int l = 0; l < lanes<A>; ++l) {
                        const int64_t h = group * lanes<A> + l;
                        *row++ =
                            h < hidden
                                ? static_cast<A>(w.data[(gate * hidden + h) * w.out + c * w.in + ky * w.y + kx * w.x])
                                : A(0);
                    }
        }
    });
}

template <class A>
HYBRIDOPS_INLINE Peephole<Simd<A>> load_peephole(const PeepholeTensor<A>& p, int64_t pixel, int64_t channel,
                                                 int64_t count) {
    const A* at = p.data + pixel * p.pixel + channel;
    return {load_lanes<A>(at, count), load_lanes<A>(at + p.row, count), load_lanes<A>(at + 2 * p.row, count)};
}

template <class T, class A>
struct ForwardEpilogue {
    int64_t hidden, image_pixels;  // pixels of one image, to find the peephole's
    const A* bias;                 // [group][gate][lane]
    PeepholeTensor<A> peephole;
    const A* c_prev;  // null = zeros
    T* h;
    A* c;
    T* gates;  // null = not wanted

    void start(int64_t group, A* sums, int64_t width) const {
        std::copy(bias + group * width, bias + (group + 1) * width, sums);
    }

    void operator()(int64_t group, const int64_t* pixels, int64_t pixel_count, const A* sums) const {
        const int64_t channel = group * lanes<A>, count = std::min<int64_t>(lanes<A>, hidden - channel);
        for (int64_t i = 0; i < pixel_count; ++i, sums += 4 * lanes<A>) {
            const int64_t pixel = pixels[i], at = pixel * hidden + channel;
            Peephole<Simd<A>> p = {};
            if (peephole.data) p = load_peephole(peephole, pixel % image_pixels, channel, count);
            const auto s =
                lstm_forward(load(sums), load(sums + lanes<A>), load(sums + 2 * lanes<A>), load(sums + 3 * lanes<A>),
                             c_prev ? load_lanes<A>(c_prev + at, count) : Simd<A>{}, peephole.data, p);
            store_lanes<A>(h + at, s.h, count);
            store_lanes<A>(c + at, s.c, count);
            if (gates) {
                T* g = gates + pixel * 4 * hidden + channel;
                store_lanes<A>(g, s.f, count);
                store_lanes<A>(g + hidden, s.i, count);
                store_lanes<A>(g + 2 * hidden, s.g, count);
                store_lanes<A>(g + 3 * hidden, s.o, count);
            }
        }
    }
};

template <class T, class A>
void conv_lstm_forward(const ConvLstmForwardArgs<T, A>& a) {
    const int64_t groups = (a.hidden + lanes<A> - 1) / lanes<A>, taps = a.shape.kernel_h * a.shape.kernel_w;
    const int64_t tap_size = groups * taps * 4 * lanes<A>, state = a.shape.pixels() * a.hidden;
    Buffer<A> w_ih(tap_size * a.inputs), w_hh(tap_size * a.hidden), bias(groups * 4 * lanes<A>);
    pack_forward(w_ih.data(), a.w_ih, a.shape, a.inputs, a.hidden);
    pack_forward(w_hh.data(), a.w_hh, a.shape, a.hidden, a.hidden);
    for (int64_t i = 0; i < groups * 4 * lanes<A>; ++i) {
        const int64_t gate = i / lanes<A> % 4, h = i / (4 * lanes<A>)*lanes<A> + i % lanes<A>;
        bias.data()[i] = a.bias && h < a.hidden ? a.bias[gate * a.hidden + h] : A(0);
    }
    const T* h = a.h0;
    const A* c = a.c0;
    for (int64_t t = 0; t < a.steps; ++t) {
        const int64_t row = a.shape.width * a.hidden;
        const Source<T, A> sources[2] = {
            {a.x.data + t * a.x.time, a.x.batch, a.x.channel, a.x.y, a.x.x, a.inputs, w_ih.data()},
            {h, a.shape.height * row, 1, row, a.hidden, a.hidden, w_hh.data()}};
        const ForwardEpilogue<T, A> epilogue{a.hidden,
                                             a.shape.height * a.shape.width,
                                             bias.data(),
                                             a.peephole,
                                             c,
                                             a.hs + t * state,
                                             a.cs + (a.all_cells ? t * state : 0),
                                             a.gates ? a.gates + t * 4 * state : nullptr};
        convolve<A, 4>(a.shape, sources, h ? 2 : 1, groups, epilogue);  // no h: the first step from zeros
        h = epilogue.h;
        c = epilogue.c;
    }
}

// The pointwise gradient of one step, behind the sums dh = W_hh^T * da of the step after it.
template <class T, class A>
struct BackwardEpilogue {
    int64_t hidden, height, width;
    Strided<T> grad_hs;  // data null = zeros; else at this step
    const T* gates;
    const A *c, *c_prev;  // c_prev null = zeros
    PeepholeTensor<A> peephole;
    T* da;
    A* dc;
    int64_t group_channels;

    void start(int64_t, A* sums, int64_t width) const { std::fill(sums, sums + width, A(0)); }

    void operator()(int64_t group, const int64_t* pixels, int64_t pixel_count, const A* sums) const {
        const int64_t first = group * group_channels, end = std::min(first + group_channels, hidden);
        for (int64_t i = 0; i < pixel_count; ++i, sums += group_channels)
            for (int64_t channel = first; channel < end; channel += lanes<A>)
                step(pixels[i], channel, std::min<int64_t>(lanes<A>, end - channel), load(sums + channel - first));
    }

    void step(int64_t pixel, int64_t channel, int64_t count, Simd<A> dh) const {
        if (grad_hs.data) {
            const int64_t b = pixel / (height * width), y = pixel / width % height, x = pixel % width;
            dh += load_lanes<A>(
                grad_hs.data + b * grad_hs.batch + y * grad_hs.y + x * grad_hs.x + channel * grad_hs.channel, count,
                grad_hs.channel);
        }
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

template <class A, int N, class T>
void run_conv_lstm_backward(const ConvLstmBackwardArgs<T, A>& a) {
    constexpr int64_t group_channels = N * lanes<A>;
    const int64_t groups = (a.hidden + group_channels - 1) / group_channels;
    const int64_t pixels = a.shape.pixels(), state = pixels * a.hidden, row = a.shape.width * 4 * a.hidden;
    Buffer<A> w(groups * a.shape.kernel_h * a.shape.kernel_w * 4 * a.hidden * group_channels);
    pack_transposed<A, N>(w.data(), a.w_hh, a.shape, 4 * a.hidden, a.hidden);
    const auto da_source = [&](int64_t t) {
        return Source<T, A>{a.da + t * 4 * state, a.shape.height * row, 1, row, 4 * a.hidden, 4 * a.hidden, w.data()};
    };
    for (int64_t t = a.steps - 1; t >= 0; --t) {
        Strided<T> grad_hs = a.grad_hs;
        if (grad_hs.data) grad_hs.data += t * grad_hs.time;
        const BackwardEpilogue<T, A> epilogue{a.hidden,
                                              a.shape.height,
                                              a.shape.width,
                                              grad_hs,
                                              a.gates + t * 4 * state,
                                              a.cs + t * state,
                                              t ? a.cs + (t - 1) * state : a.c0,
                                              a.peephole,
                                              a.da + t * 4 * state,
                                              a.dc,
                                              group_channels};
        if (t + 1 < a.steps) {
            const Source<T, A> source = da_source(t + 1);
            convolve<A, N>(a.shape, &source, 1, groups, epilogue);
        } else {  // nothing comes from behind but the gradient of h_n
            torch::stable::parallel_for(0, pixels, 256, [&](int64_t begin, int64_t end) {
                for (int64_t pixel = begin; pixel < end; ++pixel)
                    for (int64_t channel = 0; channel < a.hidden; channel += lanes<A>) {
                        const int64_t count = std::min<int64_t>(lanes<A>, a.hidden - channel);
                        epilogue.step(
                            pixel, channel, count,
                            a.grad_hn ? load_lanes<A>(a.grad_hn + pixel * a.hidden + channel, count) : Simd<A>{});
                    }
            });
        }
    }
    if (a.dh0) {
        const Source<T, A> source = da_source(0);
        convolve<A, N>(a.shape, &source, 1, groups, StoreEpilogue<A, A>{a.hidden, a.dh0, group_channels});
    }
}

template <class T, class A>
void conv_lstm_backward(const ConvLstmBackwardArgs<T, A>& a) {
    with_group_vectors<A>(a.hidden, [&](auto n) { run_conv_lstm_backward<A, n.value>(a); });
}

// What da, the gradient of the pre-activations W * x, means for x and W.
template <class T, class A>
void conv_input_gradient(const ConvInputGradientArgs<T, A>& a) {
    with_group_vectors<A>(a.inputs, [&](auto n) {
        constexpr int64_t group_channels = n.value * lanes<A>;
        const int64_t groups = (a.inputs + group_channels - 1) / group_channels, row = a.shape.width * a.outputs;
        Buffer<A> w(groups * a.shape.kernel_h * a.shape.kernel_w * a.outputs * group_channels);
        pack_transposed<A, n.value>(w.data(), a.weights, a.shape, a.outputs, a.inputs);
        const Source<T, A> source{a.da, a.shape.height * row, 1, row, a.outputs, a.outputs, w.data()};
        convolve<A, n.value>(a.shape, &source, 1, groups, StoreEpilogue<A, T>{a.inputs, a.dx, group_channels});
    });
}

template <class T, class A>
void conv_weight_gradient(const ConvWeightGradientArgs<T, A>& a) {
    weight_gradient(a.dw, a.shape, a.da, a.outputs, a.x, a.steps, a.inputs);
}
