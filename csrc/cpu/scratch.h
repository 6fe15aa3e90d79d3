// Working memory for kernels, 64-byte aligned.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace hybridops {

inline void* allocate_aligned(size_t bytes) {
    void* p = std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    if (!p) throw std::bad_alloc();
    return p;
}

// For the length of one call.
template <class A>
class Buffer {
   public:
    explicit Buffer(size_t count) : data_(static_cast<A*>(allocate_aligned(count * sizeof(A)))) {}
    A* data() const { return data_.get(); }

   private:
    struct Free {
        void operator()(A* p) const { std::free(p); }
    };
    std::unique_ptr<A, Free> data_;
};

// Of one thread, kept between calls, growing; valid until the same thread asks again.
inline void* thread_scratch(size_t bytes) {
    static thread_local std::unique_ptr<Buffer<char>> buffer;
    static thread_local size_t size = 0;
    if (bytes > size) {
        buffer.reset();
        size = 0;
        buffer = std::make_unique<Buffer<char>>(bytes);
        size = bytes;
    }
    return buffer->data();
}

}  // namespace hybridops
