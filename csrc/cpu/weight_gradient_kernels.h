// The gradient of a convolution's weights for one instruction set: direct, on AMX, or by Winograd's minimal filtering.
// Included by conv_lstm_kernels.h after convolution_kernels.h, so inside a namespace.

#include "amx_weight_gradient_kernels.h"
#include "winograd_weight_gradient_kernels.h"

template <class T, class A>
std::unique_ptr<WeightGradient<T, A>> make_weight_gradient(const ConvWeightGradientArgs<T, A>& args) {
    std::unique_ptr<WeightGradient<T, A>> gradient;
    if constexpr (sizeof(A) == 4)
        if (args.channels() >= lanes<A>)  // else most of a vector of transformed inputs would be empty
            with_winograd(args.shape.kernel_h, weight_tile(args.shape, args.winograd), [&](auto w) {
                gradient = std::make_unique<WinogradWeightGradient<T, A, decltype(w)>>(args);
            });
    if (!gradient) gradient = std::make_unique<DirectWeightGradient<T, A>>(args);
    return gradient;
}
