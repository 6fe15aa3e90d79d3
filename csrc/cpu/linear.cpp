// linear_pack, linear_packed and linear_likeliest: products of few rows with a weight that many calls share, as a decoder's
// vocabulary. On the CPU alone; the kernels of the processor's instruction set run.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <mutex>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "../attention_decoder_args.h"
#include "../checks.h"
#include "../tensors.h"
#include "parallel.h"
#include "scratch.h"

namespace hybridops {

template <class T>
struct LinearArgs {
    int64_t rows, outputs, inputs;
    const T* x;  // (rows,inputs)
    std::byte* packed;
    const T* bias;  // (outputs), null = zeros
};

}  // namespace hybridops

#define HYBRIDOPS_KERNELS "linear_kernels.h"
#include "every_isa.h"

#include "packed_bytes.h"

namespace hybridops {
namespace {

PackedHeader packed_header(ScalarType type, int64_t outputs, int64_t inputs) {
    return {static_cast<int64_t>(cpu_isa()), static_cast<int64_t>(type), outputs, inputs};
}

int64_t packed_bytes(ScalarType type, int64_t outputs, int64_t inputs) {
    int64_t bytes = 0;
    HYBRIDOPS_DISPATCH_DTYPE(type, "linear_pack",
                             { HYBRIDOPS_ON_ISA(set_linear_bytes<scalar_t>(bytes, outputs, inputs)); });
    return bytes;
}

Tensor linear_pack(const Tensor& weight) {
    const Arguments arguments("linear_pack", "weight", weight, {any_size, any_size});
    const ScalarType type = weight.scalar_type();
    const int64_t outputs = weight.size(0), inputs = weight.size(1);
    const Tensor packed = with_header(packed_header(type, outputs, inputs), packed_bytes(type, outputs, inputs));
    HYBRIDOPS_DISPATCH_DTYPE(type, "linear_pack", {
        const WeightMatrix<scalar_t> w{data<const scalar_t>(weight), weight.stride(0), weight.stride(1)};
        HYBRIDOPS_ON_ISA(pack_linear(behind_header(packed), w, outputs, inputs));
    });
    return packed;
}

struct LinearInputs {
    Arguments arguments;
    Tensor x, packed;
    std::optional<Tensor> bias;
    int64_t outputs;

    LinearInputs(const char* op, const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias,
                 int64_t outputs)
        : arguments(op, "x", x, {any_size, any_size}), x(dense(x)), packed(packed), bias(bias), outputs(outputs) {
        const ScalarType type = x.scalar_type();
        const int64_t inputs = x.size(1);
        arguments.require(outputs >= 0, "outputs", "be 0 or more", outputs);
        check_packed(arguments, packed, packed_header(type, outputs, inputs), packed_bytes(type, outputs, inputs));
        arguments.like("bias", bias, {outputs}, Memory::contiguous);
    }

    int64_t rows() const { return x.size(0); }

    template <class T>
    LinearArgs<T> args() const {
        return {rows(), outputs, x.size(1), data<const T>(x), behind_header(packed), data<const T>(bias)};
    }
};

Tensor linear_packed(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias, int64_t outputs) {
    const LinearInputs inputs("linear_packed", x, packed, bias, outputs);
    const ScalarType type = x.scalar_type();
    Tensor out = torch::stable::empty({inputs.rows(), outputs}, type);
    if (out.numel() > 0)
        HYBRIDOPS_DISPATCH_DTYPE(type, "linear_packed", {
            const auto args = inputs.args<scalar_t>();
            HYBRIDOPS_ON_ISA(linear(args, data<scalar_t>(out)));
        });
    return out;
}

std::tuple<Tensor, Tensor> linear_likeliest(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias,
                                            int64_t outputs, int64_t count) {
    const LinearInputs inputs("linear_likeliest", x, packed, bias, outputs);
    inputs.arguments.require(count >= 0 && count <= outputs, "count", "be from 0 to the number of outputs", count);
    const ScalarType type = x.scalar_type();
    Tensor values = torch::stable::empty({inputs.rows(), count}, accumulator_type(x));
    Tensor indices = torch::stable::empty({inputs.rows(), count}, ScalarType::Long);
    if (values.numel() > 0)
        HYBRIDOPS_DISPATCH_DTYPE(type, "linear_likeliest", {
            const auto args = inputs.args<scalar_t>();
            HYBRIDOPS_ON_ISA(likeliest(args, count, data<Accumulator<scalar_t>>(values), data<int64_t>(indices)));
        });
    return {values, indices};
}

}  // namespace
}  // namespace hybridops

STABLE_TORCH_LIBRARY_IMPL(hybridops, CPU, m) {
    m.impl("linear_pack", TORCH_BOX(&hybridops::linear_pack));
    m.impl("linear_packed", TORCH_BOX(&hybridops::linear_packed));
    m.impl("linear_likeliest", TORCH_BOX(&hybridops::linear_likeliest));
}
