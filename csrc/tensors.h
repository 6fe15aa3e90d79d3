// What both compiled back ends need: types and pointers of stable tensors, sizes rounded up.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <type_traits>

// Runs the block with scalar_t the storage type.
#define HYBRIDOPS_DISPATCH_DTYPE(type, name, ...)                                         \
    THO_DISPATCH_V2(type, name, AT_WRAP(([&] __VA_ARGS__)), AT_EXPAND(AT_FLOATING_TYPES), \
                    ::torch::headeronly::ScalarType::BFloat16, ::torch::headeronly::ScalarType::Half)

namespace hybridops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline ScalarType accumulator_type(const Tensor& x) {
    return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Without a call of PyTorch's dispatcher where it already is.
inline Tensor dense(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// data<const T> reads, data<T> writes; null when there are no elements or no tensor.
template <class T>
T* data(const Tensor& t) {
    if (t.numel() == 0) return nullptr;
    if constexpr (std::is_const_v<T>) {
        return static_cast<T*>(t.const_data_ptr());
    } else {
        return static_cast<T*>(t.mutable_data_ptr());
    }
}

template <class T>
T* data(const std::optional<Tensor>& t) {
    return t ? data<T>(*t) : nullptr;
}

}  // namespace hybridops
