// Working memory for kernels, 64-byte aligned.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace hybridops {

// For memory of many megabytes: its first touch, with a page fault for each 4 KB, would take longer than the work on it.
inline void ask_for_huge_pages(void* p, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr size_t page = 2 << 20;
    const size_t begin = (reinterpret_cast<size_t>(p) + page - 1) / page * page,
                 end = reinterpret_cast<size_t>(p) + bytes;
    if (begin + page <= end) madvise(reinterpret_cast<void*>(begin), (end - begin) / page * page, MADV_HUGEPAGE);
#else
    (void)p, (void)bytes;
#endif
}

// For the length of one call: from PyTorch's allocator, so that its profiler counts it.
template <class A>
class Buffer {
   public:
    explicit Buffer(size_t count)
        : bytes_(torch::stable::empty({static_cast<int64_t>(count * sizeof(A))}, torch::headeronly::ScalarType::Byte)),
          data_(static_cast<A*>(bytes_.mutable_data_ptr())) {
        ask_for_huge_pages(data_, count * sizeof(A));
    }
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

// Arrays side by side in one piece of memory, each at a multiple of 64 bytes. Without memory it only counts.
class Arena {
   public:
    explicit Arena(std::byte* memory = nullptr) : memory_(memory) {}

    template <class T>
    T* take(int64_t count) {
        const size_t begin = size_;
        size_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
        return memory_ ? reinterpret_cast<T*>(memory_ + begin) : nullptr;
    }
    size_t size() const { return size_; }

   private:
    std::byte* memory_;
    size_t size_ = 0;
};

// What plan(arena) takes, from this thread's scratch memory: it is called once to count, and once to be given.
template <class Plan>
auto from_thread_scratch(const Plan& plan) {
    Arena counted;
    plan(counted);
    Arena given(static_cast<std::byte*>(thread_scratch(counted.size())));
    return plan(given);
}

}  // namespace hybridops
