// Winograd's minimal filtering (../math/winograd.h) on vectors of channels: its transforms, and where it may be used.
// Included by convolution_kernels.h, so inside a namespace.

// Σ_k coefficients[k] x[k * stride], once inlined and unrolled without the zeros and ones.
template <int Count, class V>
HYBRIDOPS_INLINE V combine(const double* coefficients, const V* x, int stride) {
    V sum = {};
    bool first = true;
#pragma GCC unroll 8
    for (int k = 0; k < Count; ++k) {
        if (coefficients[k] == 0) continue;
        const V term = x[k * stride] * static_cast<Element<V>>(coefficients[k]);
        sum = first ? term : sum + term;
        first = false;
    }
    return sum;
}

// out = matrix * in * matrix^T
template <const auto& matrix, class V, int Rows, int Cols>
HYBRIDOPS_INLINE void transform(const V (&in)[Cols][Cols], V (&out)[Rows][Rows]) {
    V half[Rows][Cols];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < Cols; ++c) half[r][c] = combine<Cols>(matrix.at[r], &in[0][c], Cols);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < Rows; ++c) out[r][c] = combine<Cols>(matrix.at[c], half[r], 1);
}

// Outputs along a side of Winograd's tiles, at most `allowed`; 0 = direct. 4, and what is less exact than twice a plain sum's
// error, wait for that. So do tiles of 5 x 5 kernels, but for long sums: there the plain sum is less exact too.
inline int64_t winograd_tile(const ConvShape& shape, bool long_sums, int64_t allowed) {
    if (shape.kernel_h != shape.kernel_w) return 0;
    if (shape.kernel_h == 3) return allowed;
    return shape.kernel_h == 5 && (long_sums || allowed >= 4) ? std::min<int64_t>(allowed, 2) : 0;
}

// The same for a convolution that sums over so many channels: over few, the transforms take longer than the multiplications
// that they save.
inline int64_t convolution_tile(const ConvShape& shape, int64_t channels, int64_t allowed) {
    return channels < 15 ? 0 : winograd_tile(shape, channels >= 48, allowed);
}

// f(Winograd<M,R>{}) for square kernels of 3 or 5 taps and tiles of M x M outputs; nothing if there is none for them.
template <class F>
void with_winograd(int64_t taps, int64_t outputs, const F& f) {
    if (taps == 3 && outputs == 2) f(Winograd<2, 3>{});
    if (taps == 3 && outputs == 4) f(Winograd<4, 3>{});
    if (taps == 5 && outputs == 2) f(Winograd<2, 5>{});
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

// Between the points of tiles, which are written and read together: otherwise they often are a multiple of 4 KB apart, and
// compete for the same places in the L1 cache.
template <class A>
inline constexpr int64_t cache_line = 64 / sizeof(A);

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
