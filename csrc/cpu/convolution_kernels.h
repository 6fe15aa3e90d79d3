// 'Same' convolutions of images for one instruction set, with an epilogue: direct, on AMX, or by Winograd's minimal
// filtering. Included by conv_lstm_epilogues.h, so inside a namespace.

#include "amx_convolution_kernels.h"
#include "winograd_convolution_kernels.h"

// tile: outputs of Winograd's tiles (winograd_kernels.h), 0 = direct. Direct, too, where the transformed weights would not
// be finite.
// weight(group, column, c) -> KernelTaps: c counts through the sources' channels, column through a group's width.
template <class A, int N, class E, class Weight>
std::unique_ptr<Convolution<A, E>> make_convolution(const ConvShape& shape, std::array<int64_t, 2> channels,
                                                    int64_t groups, int64_t tile, TileLimits<A> limits,
                                                    const Weight& weight) {
    std::unique_ptr<Convolution<A, E>> convolution;
#ifdef HYBRIDOPS_WIDE
    if constexpr (is_bfloat16<E>)
        if (has_tiles<E>()) return std::make_unique<AmxConvolution<N>>(shape, channels, groups, weight);
#endif
    if constexpr (std::is_same_v<E, float>)
        with_winograd(shape.kernel_h, tile, [&](auto w) {
            using Tiled = WinogradConvolution<A, N, decltype(w)>;
            auto tiled = std::make_unique<Tiled>(shape, channels, groups, limits, weight);
            if (tiled->is_finite()) convolution = std::move(tiled);
        });
    if (!convolution) convolution = std::make_unique<DirectConvolution<A, N, E>>(shape, channels, groups, weight);
    return convolution;
}
