// What all devices share, csrc/math, and the vectors of csrc/cpu/simd.h, as a Python module on NumPy arrays: for plain
// numbers with the C library's functions (scalar), and for the vectors of each instruction set that this processor has.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "../../csrc/math/winograd.h"

namespace hybridops {

enum class Activation { tanh, relu, leaky_relu };

// A function of `inputs` arrays that gives `outputs` arrays, all of `count` numbers.
template <class A>
struct ArrayFunction {
    const char* name;
    int inputs, outputs;
    void (*call)(const A* const* in, A* const* out, int64_t count, double negative_slope);
};

}  // namespace hybridops

#define HYBRIDOPS_KERNELS "../../tests/math/array_functions.h"
#include "../../csrc/cpu/every_isa.h"

namespace hybridops::scalar {

template <class A>
using Simd = A;
template <class A>
inline constexpr int lanes = 1;
template <class A>
A load_lanes(const A* p, int64_t) {
    return *p;
}
template <class A>
void store_lanes(A* p, A x, int64_t) {
    *p = x;
}
template <class V>
V exp(V x) {
    return std::exp(x);
}
template <class V>
V sigmoid(V x) {
    return 1 / (1 + std::exp(-x));
}
template <class V>
V tanh(V x) {
    return std::tanh(x);
}

#include "array_functions.h"

}  // namespace hybridops::scalar

namespace hybridops {
namespace {

namespace py = pybind11;

template <class A>
py::object call(const ArrayFunction<A>& function, const py::args& arguments, double negative_slope) {
    std::vector<py::array_t<A, py::array::c_style>> in, out;
    std::vector<const A*> in_data;
    std::vector<A*> out_data;
    for (const auto& argument : arguments) {
        if (!py::isinstance<py::array_t<A>>(argument)) throw std::invalid_argument("arrays of more than one dtype");
        in.push_back(py::cast<py::array_t<A, py::array::c_style>>(argument));
        if (in.back().ndim() != 1 || in.back().size() != in[0].size()) throw std::invalid_argument("not of one length");
        in_data.push_back(in.back().data());
    }
    for (int k = 0; k < function.outputs; ++k) {
        out.emplace_back(in[0].size());
        out_data.push_back(out.back().mutable_data());
    }
    function.call(in_data.data(), out_data.data(), in[0].size(), negative_slope);
    return out.size() == 1 ? py::object(out[0]) : py::object(py::tuple(py::cast(out)));
}

// One Python function for both dtypes.
void define(py::module_& m, const ArrayFunction<float>& single, const ArrayFunction<double>& full) {
    const auto either = [single, full](const py::args& arguments, double negative_slope) {
        if (static_cast<int>(arguments.size()) != full.inputs) throw std::invalid_argument("wrong number of arrays");
        const bool is_single = py::isinstance<py::array_t<float>>(arguments[0]);
        return is_single ? call(single, arguments, negative_slope) : call(full, arguments, negative_slope);
    };
    m.def(full.name, either, py::arg("negative_slope") = 0.0);
}

template <size_t Count>
void define_all(py::module_ m, const ArrayFunction<float> (&single)[Count],
                const ArrayFunction<double> (&full)[Count]) {
    for (size_t i = 0; i < Count; ++i) define(m, single[i], full[i]);
}

template <int Rows, int Cols>
py::list rows_of(const Matrix<Rows, Cols>& matrix) {
    py::list rows;
    for (const auto& row : matrix.at) rows.append(std::vector<double>(row, row + Cols));
    return rows;
}

template <int M, int... Parts>
py::tuple name_of(const MinimalFilter<M, Parts...>&) {
    return py::make_tuple(M, Parts...);
}

template <class Filter>
void add_filter(py::dict& filters) {
    py::dict d;
    d["input"] = rows_of(Filter::input);
    d["kernel"] = rows_of(Filter::kernel);
    d["output"] = rows_of(Filter::output);
    d["kernel_gradient"] = rows_of(Filter::kernel_gradient);
    d["output_gradient"] = rows_of(Filter::output_gradient);
    filters[name_of(Filter{})] = d;
}

template <class W>
void add_tile(py::dict& tiles) {
    py::dict d;
    d["rows"] = W::rows;
    d["cols"] = W::cols;
    d["taps"] = W::taps;
    d["inputs"] = W::inputs;
    d["points"] = W::points;
    tiles[py::make_tuple(name_of(typename W::Y{}), name_of(typename W::X{}))] = d;
}

PYBIND11_MODULE(hybridops_math, m) {
    define_all(m.def_submodule("scalar"), scalar::array_functions<float>, scalar::array_functions<double>);
    define_all(m.def_submodule("portable"), portable::array_functions<float>, portable::array_functions<double>);
#ifdef HYBRIDOPS_X86
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has_avx2) define_all(m.def_submodule("avx2"), avx2::array_functions<float>, avx2::array_functions<double>);
    if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        define_all(m.def_submodule("avx512"), avx512::array_functions<float>, avx512::array_functions<double>);
#endif

    py::dict filters, tiles;
    add_filter<MinimalFilter<2, 3>>(filters);
    add_filter<MinimalFilter<4, 3>>(filters);
    add_filter<MinimalFilter<2, 5>>(filters);
    add_filter<MinimalFilter<2, 3, 2>>(filters);
    add_tile<Winograd<MinimalFilter<2, 3>, MinimalFilter<2, 3>>>(tiles);
    add_tile<Winograd<MinimalFilter<2, 3>, MinimalFilter<4, 3>>>(tiles);
    add_tile<Winograd<MinimalFilter<4, 3>, MinimalFilter<4, 3>>>(tiles);
    add_tile<Winograd<MinimalFilter<2, 3, 2>, MinimalFilter<2, 5>>>(tiles);
    add_tile<Winograd<MinimalFilter<2, 5>, MinimalFilter<2, 5>>>(tiles);
    m.attr("filters") = filters;
    m.attr("tiles") = tiles;
}

}  // namespace
}  // namespace hybridops
