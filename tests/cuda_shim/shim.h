// What csrc/cuda/device.cuh takes from CUDA, in plain C++: a kernel's blocks run one after the other on the CPU, each
// thread of a block as a fibre that runs until it waits at a barrier. Which fibre goes on first is chosen by the
// environment variable HYBRIDOPS_SHIM_ORDER = forward | reverse | random: what a missing barrier lets through in one
// order shows in another. Shared memory is NaN at first and exactly as large as the kernel says, for AddressSanitizer.
// A barrier that only some threads of a block or warp reach is an error.
#pragma once
#include <torch/csrc/stable/tensor.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <source_location>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#define HYBRIDOPS_INLINE inline
#define HYBRIDOPS_DISPATCH_KEY CPU

struct Index {
    unsigned x;
};
inline Index threadIdx, blockIdx;  // of the fibre that runs

namespace shim {

enum class State { ready, at_block_barrier, at_warp_barrier, done };

// A stack to run on, and where it was left.
class Context {
   public:
    // Goes on in `to`; returns when something goes on here.
    void switch_to(Context& to, bool forever = false) {
#ifdef __SANITIZE_ADDRESS__
        void* shadow = nullptr;
        __sanitizer_start_switch_fiber(forever ? nullptr : &shadow, to.bottom_, to.size_);
        swapcontext(&context_, &to.context_);
        __sanitizer_finish_switch_fiber(shadow, nullptr, nullptr);
#else
        (void)forever;
        swapcontext(&context_, &to.context_);
#endif
    }

    void start_at(void (*entry)(), char* stack, size_t size) {
        getcontext(&context_);
        bottom_ = context_.uc_stack.ss_sp = stack;
        size_ = context_.uc_stack.ss_size = size;
        context_.uc_link = nullptr;
        makecontext(&context_, entry, 0);
    }

    // To be called first thing by an entry: where it came from, which has no stack of its own here.
    void entered_from([[maybe_unused]] Context& from) {
#ifdef __SANITIZE_ADDRESS__
        __sanitizer_finish_switch_fiber(nullptr, &from.bottom_, &from.size_);
#endif
    }

   private:
    ucontext_t context_;
    const void* bottom_ = nullptr;
    size_t size_ = 0;
};

struct Fibre {
    static constexpr size_t stack_size = 64 * 1024;
    Context context;
    std::unique_ptr<char[]> stack{new char[stack_size]};
    State state;
    unsigned line;         // of the barrier it waits at
    uint64_t exchange[2];  // what it shows the others of its warp
    unsigned shuffles;
};

class Block {
   public:
    template <class Kernel>
    void run(const Kernel& kernel, unsigned block) {
        using Shared = typename Kernel::Shared;
        constexpr size_t alignment = std::max<size_t>(alignof(Shared), 16);
        std::unique_ptr<void, decltype(&std::free)> shared(
            std::aligned_alloc(alignment, (sizeof(Shared) + alignment - 1) / alignment * alignment), &std::free);
        std::memset(shared.get(), 0xFF, sizeof(Shared));
        struct Call {
            const Kernel& kernel;
            Shared& shared;
        } call{kernel, *static_cast<Shared*>(shared.get())};
        call_ = &call;
        body_ = [](void* c) { static_cast<Call*>(c)->kernel(static_cast<Call*>(c)->shared); };
        blockIdx = {block};
        run_threads(Kernel::threads);
    }

    void wait(State barrier, std::source_location at) {
        fibres_[threadIdx.x].state = barrier;
        fibres_[threadIdx.x].line = at.line();
        fibres_[threadIdx.x].context.switch_to(main_);
    }

    Fibre& fibre(unsigned thread) { return fibres_[thread]; }

   private:
    static void entry();

    void run_threads(unsigned threads) {
        fibres_.resize(std::max<size_t>(fibres_.size(), threads));
        for (unsigned i = 0; i < threads; ++i) {
            fibres_[i].state = State::ready;
            fibres_[i].shuffles = 0;
            fibres_[i].context.start_at(&entry, fibres_[i].stack.get(), Fibre::stack_size);
        }
        std::vector<unsigned> order(threads);
        std::iota(order.begin(), order.end(), 0);
        const char* wish = std::getenv("HYBRIDOPS_SHIM_ORDER");
        const std::string chosen = wish ? wish : "forward";
        if (chosen == "reverse") std::reverse(order.begin(), order.end());
        do {
            if (chosen == "random") std::shuffle(order.begin(), order.end(), random_);
            for (const unsigned i : order) {
                if (fibres_[i].state != State::ready) continue;
                threadIdx = {i};
                main_.switch_to(fibres_[i].context);
            }
        } while (release(threads));
    }

    // Lets those go on that wait together; false when all are done.
    bool release(unsigned threads) {
        bool released = release(0, threads, State::at_block_barrier);
        for (unsigned warp = 0; warp < threads; warp += 32)
            released |= release(warp, std::min(warp + 32, threads), State::at_warp_barrier);
        if (released) return true;
        for (unsigned i = 0; i < threads; ++i)
            if (fibres_[i].state != State::done)
                throw std::runtime_error("divergent barrier: thread " + std::to_string(i) + " of block " +
                                         std::to_string(blockIdx.x) + " waits for others in line " +
                                         std::to_string(fibres_[i].line));
        return false;
    }

    bool release(unsigned begin, unsigned end, State barrier) {
        for (unsigned i = begin; i < end; ++i)
            if (fibres_[i].state != barrier || fibres_[i].line != fibres_[begin].line) return false;
        for (unsigned i = begin; i < end; ++i) fibres_[i].state = State::ready;
        return true;
    }

    std::vector<Fibre> fibres_;
    Context main_;
    const void* call_ = nullptr;
    void (*body_)(void*) = nullptr;
    std::mt19937 random_{0};
};

inline Block block;

inline void Block::entry() {
    Fibre& self = block.fibres_[threadIdx.x];
    self.context.entered_from(block.main_);
    block.body_(const_cast<void*>(block.call_));
    self.state = State::done;
    self.context.switch_to(block.main_, true);
}

}  // namespace shim

inline void __syncthreads(std::source_location at = std::source_location::current()) {
    shim::block.wait(shim::State::at_block_barrier, at);
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int distance, std::source_location at = std::source_location::current()) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    const unsigned self = threadIdx.x;
    shim::Fibre& fibre = shim::block.fibre(self);
    const unsigned slot = fibre.shuffles++ % 2;  // of two: some may show the next before others have read this one
    std::memcpy(&fibre.exchange[slot], &value, sizeof(T));
    shim::block.wait(shim::State::at_warp_barrier, at);
    T other;
    std::memcpy(&other, &shim::block.fibre(self ^ distance).exchange[slot], sizeof(T));
    return other;
}

namespace hybridops {

class Device {
   public:
    explicit Device(const torch::stable::Tensor&) {}

    template <class Kernel>
    void launch(const Kernel& kernel, int64_t blocks) const {
        static_assert(sizeof(typename Kernel::Shared) <= 48 * 1024, "what every GPU gives a block without being asked");
        for (int64_t i = 0; i < blocks; ++i) shim::block.run(kernel, static_cast<unsigned>(i));
    }
};

inline float reciprocal(float x) { return 1 / x; }

}  // namespace hybridops
