// What csrc/cuda/device.cuh takes from CUDA, in plain C++, to run kernels on the CPU. Each thread of a block is a fibre,
// which runs until it waits at a barrier. Blocks run one after the other; those of a cooperative launch run together.
//
// It finds errors: shared memory is NaN at first, and exactly as large as the kernel says, so AddressSanitizer sees accesses
// outside of it. A barrier that not all threads of a block or warp reach is an error. What a missing barrier hides in one
// order of the threads shows in another. Environment variables:
//   HYBRIDOPS_SHIM_ORDER               which fibre goes on first: forward, reverse or random
//   HYBRIDOPS_SHIM_MULTIPROCESSORS     how many the device has, with one block each
//   HYBRIDOPS_SHIM_COMPUTE_CAPABILITY  its major number: 8 for sm_80, sm_86, ...
#pragma once
#include <cxxabi.h>
#include <torch/csrc/stable/tensor.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <source_location>
#include <stdexcept>
#include <string>
#include <typeinfo>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#define HYBRIDOPS_INLINE inline
#define HYBRIDOPS_HOST_DEVICE inline
#define HYBRIDOPS_DISPATCH_KEY CPU

// An entry point is here the name it would have.
#define HYBRIDOPS_ENTRY(name)      \
    template <class Kernel>        \
    constexpr const char* name() { \
        return #name;              \
    }
#define HYBRIDOPS_COOPERATIVE_ENTRY HYBRIDOPS_ENTRY

struct Index {
    unsigned x;
};
inline Index threadIdx, blockIdx;  // of the fibre that runs

namespace shim {

enum class State { ready, at_grid_barrier, at_block_barrier, at_warp_barrier, done };

inline std::string setting(const char* name, const char* otherwise) {
    const char* wish = std::getenv(name);
    return wish ? wish : otherwise;
}
inline std::string launched;  // the names of the kernels, in lines

inline std::string order() { return setting("HYBRIDOPS_SHIM_ORDER", "forward"); }

// A stack, and where execution on it stopped.
class Context {
   public:
    // Continues in `to`; returns when something switches back here.
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

    // An entry calls this first, with the context that it was started from, whose stack is not known before.
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

// A copy of 16 bytes to shared memory that is not finished; from null = zeros.
struct Copy {
    void* to;
    const void* from;
    void run() const { from ? std::memcpy(to, from, 16) : std::memset(to, 0, 16); }
};

struct Fibre {
    static constexpr size_t stack_size = 64 * 1024;
    Context context;
    std::unique_ptr<char[]> stack{new char[stack_size]};
    State state;
    unsigned line;         // of the barrier it waits at
    uint64_t exchange[2];  // what the other lanes of its warp read in a shuffle
    unsigned shuffles;
    const void* shown;  // what they read in a matrix product
    std::vector<Copy> open_copies;
    std::deque<std::vector<Copy>> copies;  // in groups
};

struct Free {
    void operator()(char* memory) const { std::free(memory); }
};

// The blocks that run at the same time.
class Grid {
   public:
    template <class Kernel>
    void run(const Kernel& kernel, unsigned first_block, unsigned blocks, size_t extra_shared = 0) {
        using Shared = typename Kernel::Shared;
        const std::unique_ptr<char, Free> name(abi::__cxa_demangle(typeid(Kernel).name(), nullptr, nullptr, nullptr));
        if constexpr (requires { Kernel::entry(); }) launched.append(Kernel::entry()()).append(" ");
        launched.append(name.get()).append("\n");
        const auto body = [&](char* shared) { kernel(*reinterpret_cast<Shared*>(shared)); };
        call_ = &body;
        body_ = [](const void* call, char* shared) { (*static_cast<decltype(&body)>(call))(shared); };
        constexpr size_t alignment = std::max<size_t>(alignof(Shared), 16);
        const size_t size = sizeof(Shared) + extra_shared;
        shared_.clear();
        for (unsigned i = 0; i < blocks; ++i) {
            shared_.emplace_back(
                static_cast<char*>(std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment)));
            std::memset(shared_.back().get(), 0xFF, size);
        }
        threads_ = Kernel::threads;
        first_block_ = first_block;
        run_fibres(blocks * threads_);
    }

    void wait(State barrier, std::source_location at) {
        Fibre& self = fibre(threadIdx.x);
        self.state = barrier;
        self.line = at.line();
        self.context.switch_to(main_);
    }

    // A thread of the current block.
    Fibre& fibre(unsigned thread) { return fibres_[(blockIdx.x - first_block_) * threads_ + thread]; }

   private:
    static void entry();

    void run_fibres(unsigned count) {
        if (fibres_.size() < count) fibres_.resize(count);
        for (unsigned i = 0; i < count; ++i) {
            fibres_[i].state = State::ready;
            fibres_[i].shuffles = 0;
            fibres_[i].copies.clear();
            fibres_[i].context.start_at(&entry, fibres_[i].stack.get(), Fibre::stack_size);
        }
        std::vector<unsigned> order(count);
        std::iota(order.begin(), order.end(), 0);
        const std::string chosen = shim::order();
        if (chosen == "reverse") std::reverse(order.begin(), order.end());
        do {
            if (chosen == "random") std::shuffle(order.begin(), order.end(), random_);
            for (const unsigned i : order) {
                if (fibres_[i].state != State::ready) continue;
                threadIdx = {i % threads_};
                blockIdx = {first_block_ + i / threads_};
                main_.switch_to(fibres_[i].context);
            }
        } while (release(count));
    }

    // Releases the threads that have all reached their barrier. False when all are done.
    bool release(unsigned count) {
        bool released = release(0, count, State::at_grid_barrier);
        for (unsigned block = 0; block < count; block += threads_) {
            const unsigned end = block + threads_;
            released |= release(block, end, State::at_block_barrier);
            for (unsigned warp = block; warp < end; warp += 32)
                released |= release(warp, std::min(warp + 32, end), State::at_warp_barrier);
        }
        if (released) return true;
        for (unsigned i = 0; i < count; ++i)
            if (fibres_[i].state != State::done)
                throw std::runtime_error("divergent barrier: thread " + std::to_string(i % threads_) + " of block " +
                                         std::to_string(first_block_ + i / threads_) + " waits for others in line " +
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
    unsigned threads_ = 0, first_block_ = 0;
    std::vector<std::unique_ptr<char, Free>> shared_;  // of each block
    const void* call_ = nullptr;
    void (*body_)(const void*, char*) = nullptr;
    std::mt19937 random_{0};
};

inline Grid grid;

inline void Grid::entry() {
    Fibre& self = grid.fibre(threadIdx.x);
    self.context.entered_from(grid.main_);
    grid.body_(grid.call_, grid.shared_[blockIdx.x - grid.first_block_].get());
    self.state = State::done;
    self.context.switch_to(grid.main_, true);
}

}  // namespace shim

inline void __syncthreads(std::source_location at = std::source_location::current()) {
    shim::grid.wait(shim::State::at_block_barrier, at);
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int distance, std::source_location at = std::source_location::current()) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    const unsigned self = threadIdx.x;
    shim::Fibre& fibre = shim::grid.fibre(self);
    const unsigned slot =
        fibre.shuffles++ % 2;  // two slots: a lane may write the next value before others have read this one
    std::memcpy(&fibre.exchange[slot], &value, sizeof(T));
    shim::grid.wait(shim::State::at_warp_barrier, at);
    T other;
    std::memcpy(&other, &shim::grid.fibre(self ^ distance).exchange[slot], sizeof(T));
    return other;
}

namespace hybridops {

inline void grid_barrier(unsigned*, unsigned, std::source_location at = std::source_location::current()) {
    shim::grid.wait(shim::State::at_grid_barrier, at);
}

class Device {
   public:
    explicit Device(const torch::stable::Tensor&) {}

    template <class Kernel>
    void launch(const Kernel& kernel, int64_t blocks) const {
        static_assert(sizeof(typename Kernel::Shared) <= 48 * 1024, "what every GPU gives a block without being asked");
        for (int64_t i = 0; i < blocks; ++i) shim::grid.run(kernel, static_cast<unsigned>(i), 1);
    }

    template <class Kernel>
    int64_t max_cooperative_blocks(const Kernel&, int64_t extra_shared) const {
        return sizeof(typename Kernel::Shared) + extra_shared <= 163 * 1024 ? multiprocessors() : 0;  // as on sm_80
    }

    template <class Kernel>
    void launch_cooperative(const Kernel& kernel, int64_t blocks, int64_t extra_shared) const {
        shim::grid.run(kernel, 0, static_cast<unsigned>(blocks), extra_shared);
    }

    int multiprocessors() const { return std::stoi(shim::setting("HYBRIDOPS_SHIM_MULTIPROCESSORS", "16")); }
    int compute_capability_major() const { return std::stoi(shim::setting("HYBRIDOPS_SHIM_COMPUTE_CAPABILITY", "8")); }
};

inline float reciprocal(float x) { return 1 / x; }

}  // namespace hybridops
