// Calls of PyTorch's own ops.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>

#include "../tensors.h"

namespace hybridops {

using MaybeTensor = std::optional<Tensor>;

// Calls the ATen op of that name and overload, which returns `results` tensors.
template <size_t results, class... Args>
std::array<Tensor, results> call(const char* op, const char* overload, const Args&... args) {
    std::array<StableIValue, std::max(results, sizeof...(Args))> stack{torch::stable::detail::from(args)...};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, overload, stack.data(), TORCH_ABI_VERSION));
    std::array<Tensor, results> out;
    for (size_t i = 0; i < results; ++i) out[i] = torch::stable::detail::to<Tensor>(stack[i]);
    return out;
}

}  // namespace hybridops
