// Winograd's minimal filtering (../math/winograd.h) on vectors of channels: its transforms, and where it may be used.
// Included by convolution_kernels.h, so inside a namespace.

// Σ_k coefficients[k] x[k], once inlined and unrolled without the zeros and ones.
template <int Count, class V>
HYBRIDOPS_INLINE V combine(const double* coefficients, const V* x) {
    V sum = {};
    bool first = true;
#pragma GCC unroll 8
    for (int k = 0; k < Count; ++k) {
        if (coefficients[k] == 0) continue;
        const V term = x[k] * static_cast<Element<V>>(coefficients[k]);
        sum = first ? term : sum + term;
        first = false;
    }
    return sum;
}

// out = matrix * in. The matrix of six inputs comes apart: all of its polynomials but those of the points ±1 have the factor
// x^2 - 1, and those two are (x ± 1) q, q = x^3 + 3/2 x^2 - x. So it takes 14 operations instead of 26.
template <const auto& matrix, class V>
HYBRIDOPS_INLINE void apply(const V (&in)[matrix.cols], V (&out)[matrix.rows]) {
    if constexpr (matrix.rows == 6 && matrix.cols == 6) {
        using E = Element<V>;
        const V e0 = in[2] - in[0], e1 = in[3] - in[1], e2 = in[4] - in[2], e3 = in[5] - in[3];  // x^2 - 1
        const V q = in[2] * E(1.5) + e1, xq = in[3] * E(1.5) + e2;
        out[0] = e1 * E(1.5) + (e2 - e0);
        out[1] = xq + q;
        out[2] = xq - q;
        out[3] = e1 * E(2) + e2;
        out[4] = e2 - e1 * E(0.5);
        out[5] = e2 * E(1.5) + (e3 - e1);
    } else {
#pragma GCC unroll 8
        for (int r = 0; r < matrix.rows; ++r) out[r] = combine<matrix.cols>(matrix.at[r], in);
    }
}

// out = y * in * x^T, element by element: in(row, col), out(row, col, value). A column at a time, for there are fewer
// registers than elements.
template <const auto& y, const auto& x, class V, class In, class Out>
HYBRIDOPS_INLINE void transform(const In& in, const Out& out) {
    V half[y.rows][x.cols];
#pragma GCC unroll 8
    for (int c = 0; c < x.cols; ++c) {
        V column[y.cols], result[y.rows];
#pragma GCC unroll 8
        for (int r = 0; r < y.cols; ++r) column[r] = in(r, c);
        apply<y>(column, result);
#pragma GCC unroll 8
        for (int r = 0; r < y.rows; ++r) half[r][c] = result[r];
    }
#pragma GCC unroll 8
    for (int r = 0; r < y.rows; ++r) {
        V result[x.rows];
        apply<x>(half[r], result);
#pragma GCC unroll 8
        for (int c = 0; c < x.rows; ++c) out(r, c, result[c]);
    }
}

// f(Winograd{}) for square kernels of 3 or 5 taps and such tiles; nothing if there is none for them. Of 5 x 5 kernels they have
// 2 x 2 outputs, from 42 products or, where 16 would do, from 36.
template <class F>
void with_winograd(int64_t taps, int64_t tile, const F& f) {
    if (taps == 3 && tile == 4) f(Winograd<MinimalFilter<2, 3>, MinimalFilter<2, 3>>{});
    if (taps == 3 && tile == 8) f(Winograd<MinimalFilter<2, 3>, MinimalFilter<4, 3>>{});
    if (taps == 3 && tile == 16) f(Winograd<MinimalFilter<4, 3>, MinimalFilter<4, 3>>{});
    if (taps == 5 && (tile == 4 || tile == 8)) f(Winograd<MinimalFilter<2, 3, 2>, MinimalFilter<2, 5>>{});
    if (taps == 5 && tile == 16) f(Winograd<MinimalFilter<2, 5>, MinimalFilter<2, 5>>{});
}

// The largest tile allowed that with_winograd takes for this kernel, 0 = none: 4, 8 or 16 outputs, the fewer the more exact.
// A negative number, which tests give, allows that one tile alone.
inline int64_t winograd_tile(const ConvShape& shape, int64_t allowed) {
    const bool fits = shape.kernel_h == shape.kernel_w && (shape.kernel_h == 3 || shape.kernel_h == 5);
    return fits ? std::abs(allowed) : 0;
}

// The fastest tile allowed for a convolution that sums over so many channels, 0 = direct, by a model of its time. The unit is
// one float32 multiplication for each pair of an input and an output channel. Multiplying takes one a point and tile, and
// transforming 0.15 more; direct, one (or direct_product) a tap and pixel. Each point or tap of the weights takes 20 to be
// prepared, which ten or so steps share, and to be read at every step. (Both were fitted to five shapes with each tile on Zen
// 4.) Under 15 channels the transforms take longer than the multiplications that they save: 20 images of 64 x 64 by 3 x 3
// kernels took 13.3 ms in tiles of 4 and 8.7 directly with 12 channels, 11.1 and 10.5 with 15, 14.3 and 18.9 with 18.
inline int64_t convolution_tile(const ConvShape& shape, int64_t channels, int64_t allowed, double direct_product) {
    constexpr double of_weight = 20, with_transforms = 1.15;
    if (allowed < 0) return winograd_tile(shape, allowed);
    if (channels < 15) return 0;
    const int64_t taps = shape.kernel_h * shape.kernel_w;
    int64_t fastest = 0;
    double least = static_cast<double>(taps) * (static_cast<double>(shape.pixels()) * direct_product + of_weight);
    for (int64_t tile = 4; tile <= winograd_tile(shape, allowed); tile *= 2)
        with_winograd(shape.kernel_h, tile, [&](auto w) {
            using W = decltype(w);
            const int64_t tiles = shape.batch * ceil_div(shape.height, W::rows) * ceil_div(shape.width, W::cols);
            const double cost = W::points * (static_cast<double>(tiles) * with_transforms + of_weight);
            if (cost < least) least = cost, fastest = tile;
        });
    return fastest;
}

// The same for the gradient of the weights. A plain sum over the pixels of a step is the more exact the fewer they are: with
// 5 x 5 kernels, tiles of 8 are off 2.2 times as much as PyTorch's own convolution at 256 pixels, 2.0 at 484, 1.4 at 1024.
inline int64_t weight_tile(const ConvShape& shape, int64_t allowed) {
    return shape.kernel_h == 5 && shape.pixels() < 512 && 0 <= allowed && allowed < 16 ? 0
                                                                                       : winograd_tile(shape, allowed);
}

// Beyond it, sums of a few values might overflow.
template <class A>
inline constexpr A largest_transformed = 1e30;

template <class A>
A largest_magnitude(const A* values, int64_t count) {
    LargestMagnitude<A> largest;
    int64_t i = 0;
    for (; i + lanes<A> <= count; i += lanes<A>) largest.see(load(values + i));
    largest.see(load_lanes<A>(values + i, count - i));
    return largest.value();
}

// Winograd's rounding error goes by the largest value of a tile, whichever outputs it is for, and an inf or NaN spreads over
// the whole tile. So tiles with values beyond these limits are summed directly.
template <class A>
struct TileLimits {
    A within;     // up to here all is well
    A times_rms;  // beyond it, up to so many times the tile's root mean square

    bool allow(A largest) const { return largest < largest_transformed<A> && largest <= within; }
    bool allow(A largest, A mean_square) const {
        return largest < largest_transformed<A> &&
               (largest <= within || largest * largest <= times_rms * times_rms * mean_square);
    }
};
