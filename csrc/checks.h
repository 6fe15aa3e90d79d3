// What every op makes sure of before it takes a pointer: that each tensor is on the device of the first, and of the dtype,
// the sizes and, where it is read in one piece, the memory layout that the kernels take for granted. What is wrong raises
// an error that names the op, the argument, what was expected and what came; a call that is right allocates nothing here.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>

#include "tensors.h"

namespace hybridops {

inline constexpr int64_t any_size = -1;
enum class Memory { any_strides, contiguous };

class Arguments {
   public:
    using Shape = std::initializer_list<int64_t>;

    // The others are held against the first one's device and dtype.
    Arguments(const char* op, const char* name, const Tensor& first, Shape shape, Memory memory = Memory::any_strides)
        : op_(op), first_name_(name), first_(first), type_(first.scalar_type()), on_cpu_(first.is_cpu()) {
        if (type_ != ScalarType::Float && type_ != ScalarType::Double && type_ != ScalarType::BFloat16 &&
            type_ != ScalarType::Half)
            fail(name, "have dtype Float, Double, BFloat16 or Half", torch::headeronly::toString(type_));
        check_layout(name, first, shape, memory);
    }

    // Of the first one's dtype
    void like(const char* name, const Tensor& t, Shape shape, Memory memory = Memory::any_strides) const {
        check(name, t, type_, shape, memory);
    }
    void like(const char* name, const std::optional<Tensor>& t, Shape shape,
              Memory memory = Memory::any_strides) const {
        if (t) check(name, *t, type_, shape, memory);
    }

    // Of the dtype that sums are kept in
    void sums(const char* name, const Tensor& t, Shape shape, Memory memory = Memory::any_strides) const {
        check(name, t, type_ == ScalarType::Double ? ScalarType::Double : ScalarType::Float, shape, memory);
    }
    void sums(const char* name, const std::optional<Tensor>& t, Shape shape,
              Memory memory = Memory::any_strides) const {
        if (t) sums(name, *t, shape, memory);
    }

    void booleans(const char* name, const std::optional<Tensor>& t, Shape shape) const {
        if (t) check(name, *t, ScalarType::Bool, shape, Memory::any_strides);
    }

    void integers(const char* name, const std::optional<Tensor>& t, Shape shape) const {
        if (t) check(name, *t, ScalarType::Long, shape, Memory::any_strides);
    }

    void bytes(const char* name, const std::optional<Tensor>& t, Shape shape) const {
        if (t) check(name, *t, ScalarType::Byte, shape, Memory::contiguous);
    }

    // Before its sizes are asked for
    void dims(const char* name, const Tensor& t, int64_t dims) const {
        if (t.dim() != dims) fail(name, "have " + std::to_string(dims) + " dimensions", spelt(t.sizes()));
    }

    void require(bool holds, const char* name, const char* expected, int64_t came) const {
        if (!holds) fail(name, expected, std::to_string(came));
    }

    // What only some calls have
    void given_or_not(const char* name, const std::optional<Tensor>& t, bool wanted, const char* expected) const {
        if (t.has_value() != wanted) fail(name, expected, t ? "a tensor" : "None");
    }

    void both_or_none(const char* name, bool given, const char* other, bool other_given) const {
        if (given != other_given) fail(given ? other : name, "be given together with the other of the two", "none");
    }

   private:
    void check(const char* name, const Tensor& t, ScalarType type, Shape shape, Memory memory) const {
        const ScalarType came = t.scalar_type();
        if (came != type)
            fail(name, std::string("have dtype ") + torch::headeronly::toString(type),
                 torch::headeronly::toString(came));
        if (t.is_cpu() != on_cpu_ || (!on_cpu_ && t.get_device_index() != first_.get_device_index()))
            fail(name, std::string("be on the device of ") + first_name_, "another");
        check_layout(name, t, shape, memory);
    }

    void check_layout(const char* name, const Tensor& t, Shape shape, Memory memory) const {
        const auto sizes = t.sizes();
        bool fits = sizes.size() == shape.size();
        for (size_t i = 0; fits && i < shape.size(); ++i)
            fits = shape.begin()[i] == any_size || shape.begin()[i] == sizes.begin()[i];
        if (!fits) fail(name, "have shape " + spelt(shape), spelt(sizes));
        if (memory == Memory::contiguous && !t.is_contiguous())
            fail(name, "be contiguous", "strides " + spelt(t.strides()));
    }

    template <class Numbers>
    static std::string spelt(const Numbers& numbers) {
        std::string text = "(";
        for (const int64_t n : numbers) {
            if (text.size() > 1) text += ", ";
            text += n == any_size ? "*" : std::to_string(n);
        }
        return text + ")";
    }

    [[noreturn]] void fail(const char* name, const std::string& expected, const std::string& came) const {
        throw std::runtime_error(std::string("hybridops::") + op_ + ": " + name + " must " + expected + ", got " +
                                 came);
    }

    const char *op_, *first_name_;
    const Tensor& first_;
    ScalarType type_;
    bool on_cpu_;
};

}  // namespace hybridops
