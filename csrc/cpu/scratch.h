// Working memory for kernels, 64-byte aligned.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace hybridops {

// For the length of one call: from PyTorch's allocator, so that its profiler counts it.
template <class A>
class Buffer {
   public:
    explicit Buffer(size_t count)
        : bytes_(torch::stable::empty({static_cast<int64_t>(count * sizeof(A))}, torch::headeronly::ScalarType::Byte)),
          data_(static_cast<A*>(bytes_.mutable_data_ptr())) {}
    A* data() const { return data_; }

   private:
    torch::stable::Tensor bytes_;
    A* data_;
};

// Of one thread, kept between calls, growing; valid until the same thread asks again.
inline void* thread_scratch(size_t bytes) {
    struct Free {
        void operator()(void* p) const { std::free(p); }
    };
    static thread_local std::unique_ptr<void, Free> memory;
    static thread_local size_t size = 0;
    if (bytes > size) {
        memory.reset();
        size = 0;
        memory.reset(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
        if (!memory) throw std::bad_alloc();
        size = bytes;
    }
    return memory.get();
}

}  // namespace hybridops
