// What becomes of the sums of the ConvLSTM's convolutions: the step's pointwise half, forward and backward. For one
// instruction set: included by conv_lstm_kernels.h, so inside a namespace.

#include "../math/lstm_gates.h"
#include "convolution_kernels.h"

template <class A>
HYBRIDOPS_INLINE Peephole<Simd<A>> load_peephole(const PeepholeTensor<A>& p, int64_t pixel, int64_t channel,
                                                 int64_t count) {
    const A* at = p.data + pixel * p.pixel + channel;
    return {load_lanes<A>(at, count), load_lanes<A>(at + p.row, count), load_lanes<A>(at + 2 * p.row, count)};
}

// f(channels), as a constant where it is one of a few: loops over so few are then unrolled.
template <class F>
void with_few_channels(int64_t channels, const F& f) {
    if (channels == 1) return f(std::integral_constant<int64_t, 1>{});
    if (channels == 2) return f(std::integral_constant<int64_t, 2>{});
    if (channels == 4) return f(std::integral_constant<int64_t, 4>{});
    f(channels);
}

// The channels of some pixels one after the other: so few of them that more than one pixel's go into a vector.
template <class A>
struct FewChannels {
    static constexpr int64_t max = lanes<A> / 2, room = max_finished * max + lanes<A>;
    const int64_t* pixels;
    int64_t count, channels;

    int64_t size() const { return count * channels; }
    int64_t vectors_end() const { return round_up(size(), lanes<A>); }

    // out = those of from, which are `stride` apart: of a pixel's number, or with `in_order` of its place here
    template <class U>
    void gather(A* out, const U* from, int64_t stride, bool in_order = false) const {
        with_few_channels(channels, [&](auto channels) {
            A* to = out;
            for (int64_t i = 0; i < count; ++i, to += channels) {
                const U* at = from + (in_order ? i : pixels[i]) * stride;
                for (int64_t c = 0; c < channels; ++c) to[c] = static_cast<A>(at[c]);
            }
        });
        clear(out, size());
    }
    template <class U>
    void scatter(U* to, const A* in, int64_t stride) const {
        U converted[room];
        for (int64_t e = 0; e < size(); e += lanes<A>) store_all<A>(converted + e, load(in + e));
        with_few_channels(channels, [&](auto channels) {
            const U* from = converted;
            for (int64_t i = 0; i < count; ++i, from += channels) {
                U* at = to + pixels[i] * stride;
                for (int64_t c = 0; c < channels; ++c) at[c] = from[c];
            }
        });
    }
    void clear(A* out, int64_t from = 0) const { std::fill(out + from, out + vectors_end(), A(0)); }

    // rows f, i, o of a peephole
    void gather(A (&out)[3][room], const PeepholeTensor<A>& peephole, int64_t image_pixels) const {
        for (int row = 0; row < 3; ++row)
            for (int64_t i = 0; i < count; ++i) {
                const A* at = peephole.data + row * peephole.row + pixels[i] % image_pixels * peephole.pixel;
                std::copy(at, at + channels, out[row] + i * channels);
            }
        for (int row = 0; row < 3; ++row) clear(out[row], size());
    }
};

template <class T, class A>
struct ForwardEpilogue final : Epilogue<A> {
    int64_t hidden, image_pixels;  // pixels of one image, to find the peephole's
    int64_t gate_width;            // channels of a group: sums are [pixel][gate][gate_width]
    const A* bias;                 // [group][gate][gate_width]
    PeepholeTensor<A> peephole;
    const A* c_prev;  // null = zeros
    T* h;             // null = not wanted, and so the next two
    A* c;
    T* gates;

    void start(int64_t group, A* sums, int64_t width) const override {
        std::copy(bias + group * width, bias + (group + 1) * width, sums);
    }

    void finish(int64_t group, const int64_t* pixels, int64_t pixel_count, const A* sums) const override {
        if (hidden <= FewChannels<A>::max) return finish_few(pixels, pixel_count, sums);
        finish_vectors(group, pixels, pixel_count, sums);
    }

    void finish_few(const int64_t* pixels, int64_t pixel_count, const A* sums) const {
        const FewChannels<A> few{pixels, pixel_count, hidden};
        A a[4][few.room], cells[few.room], outputs[few.room], p[3][few.room];
        for (int gate = 0; gate < 4; ++gate) few.gather(a[gate], sums + gate * gate_width, 4 * gate_width, true);
        c_prev ? few.gather(cells, c_prev, hidden) : few.clear(cells);
        if (peephole.data) few.gather(p, peephole, image_pixels);
        for (int64_t e = 0; e < few.size(); e += lanes<A>) {
            Peephole<Simd<A>> at = {};
            if (peephole.data) at = {load(p[0] + e), load(p[1] + e), load(p[2] + e)};
            const auto cell =
                lstm_cell(load(a[0] + e), load(a[1] + e), load(a[2] + e), load(cells + e), peephole.data, at);
            const auto output = lstm_output(load(a[3] + e), cell.c, peephole.data, at);
            store(a[0] + e, cell.f);
            store(a[1] + e, cell.i);
            store(a[2] + e, cell.g);
            store(a[3] + e, output.o);
            store(cells + e, cell.c);
            store(outputs + e, output.h);
        }
        if (c) few.scatter(c, cells, hidden);
        if (h) few.scatter(h, outputs, hidden);
        for (int gate = 0; gate < (gates ? 4 : 0); ++gate) few.scatter(gates + gate * hidden, a[gate], 4 * hidden);
    }

    // In two passes, so that the long chains of one pixel's operations overlap with other pixels'.
    void finish_vectors(int64_t group, const int64_t* pixels, int64_t pixel_count, const A* sums) const {
        const int64_t channel = group * lanes<A>, count = lanes_of<A>(hidden - channel);
        Simd<A> cells[max_finished];
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
        if (hidden <= FewChannels<A>::max) return finish_few(pixels, pixel_count, sums, group_channels);
        const int64_t first = group * group_channels, end = std::min(first + group_channels, hidden);
        for (int64_t i = 0; i < pixel_count; ++i, sums += group_channels) {
            const T* grad = grad_at(pixels[i]);
            for (int64_t channel = first; channel < end; channel += lanes<A>)
                step(pixels[i], grad, channel, lanes_of<A>(end - channel), load(sums + channel - first));
        }
    }

    // sums (null = zeros): those of a pixel begin `stride` after the pixel's before
    void finish_few(const int64_t* pixels, int64_t pixel_count, const A* sums, int64_t stride) const {
        const FewChannels<A> few{pixels, pixel_count, hidden};
        A dh[few.room], d[few.room], a[4][few.room], cells[few.room], before[few.room], p[3][few.room];
        sums ? few.gather(dh, sums, stride, true) : few.clear(dh);
        if (grad_hs.data)
            for (int64_t i = 0; i < pixel_count; ++i) {
                const T* grad = grad_at(pixels[i]);
                for (int64_t channel = 0; channel < hidden; ++channel)
                    dh[i * hidden + channel] += static_cast<A>(grad[channel * grad_hs.channel]);
            }
        few.gather(d, dc, hidden);
        few.gather(cells, c, hidden);
        c_prev ? few.gather(before, c_prev, hidden) : few.clear(before);
        for (int gate = 0; gate < 4; ++gate) few.gather(a[gate], gates + gate * hidden, 4 * hidden);
        if (peephole.data) few.gather(p, peephole, height * width);
        for (int64_t e = 0; e < few.size(); e += lanes<A>) {
            Peephole<Simd<A>> at = {};
            if (peephole.data) at = {load(p[0] + e), load(p[1] + e), load(p[2] + e)};
            const auto gradient =
                lstm_backward(load(dh + e), load(d + e), load(a[0] + e), load(a[1] + e), load(a[2] + e), load(a[3] + e),
                              load(cells + e), load(before + e), peephole.data, at);
            store(a[0] + e, gradient.da_f);
            store(a[1] + e, gradient.da_i);
            store(a[2] + e, gradient.da_g);
            store(a[3] + e, gradient.da_o);
            store(d + e, gradient.dc_prev);
        }
        for (int gate = 0; gate < 4; ++gate) few.scatter(da + gate * hidden, a[gate], 4 * hidden);
        few.scatter(dc, d, hidden);
    }

    // The last step of pixels [begin, end): dh is the gradient of h_n, null = zeros.
    void last(int64_t begin, int64_t end, const A* grad_hn) const {
        if (hidden <= FewChannels<A>::max) {
            for (int64_t first = begin; first < end; first += max_finished) {
                int64_t pixels[max_finished];
                const int64_t count = std::min(max_finished, end - first);
                for (int64_t i = 0; i < count; ++i) pixels[i] = first + i;
                finish_few(pixels, count, grad_hn ? grad_hn + first * hidden : nullptr, hidden);
            }
            return;
        }
        for (int64_t pixel = begin; pixel < end; ++pixel) {
            const T* grad = grad_at(pixel);
            const A* dh = grad_hn ? grad_hn + pixel * hidden : nullptr;
            for (int64_t channel = 0; channel < hidden; channel += lanes<A>) {
                const int64_t count = lanes_of<A>(hidden - channel);
                step(pixel, grad, channel, count, dh ? load_lanes<A>(dh + channel, count) : Simd<A>{});
            }
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

    // by reference: GCC does not align the stack for vectors of two registers that are passed on it
    void step(int64_t pixel, const T* grad, int64_t channel, int64_t count, const Simd<A>& sums) const {
        Simd<A> dh = sums;
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
