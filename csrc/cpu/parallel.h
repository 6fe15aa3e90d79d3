// Work for all threads, which are not equally fast where a machine does other work too.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace hybridops {

// Numbers of units of work, each for whichever thread is free.
class WorkQueue {
   public:
    explicit WorkQueue(int64_t count) : count_(count) {}

    // The next one; false when there is none left.
    bool take(int64_t& unit) {
        unit = next_.fetch_add(1, std::memory_order_relaxed);
        return unit < count_;
    }

   private:
    const int64_t count_;
    std::atomic<int64_t> next_ = 0;
};

// f(queue) on as many threads as there are, or as there are units of work.
template <class F>
void parallel_for_dynamic(int64_t count, const F& f) {
    WorkQueue queue(count);
    const int64_t threads = std::min<int64_t>(count, torch::stable::get_num_threads());
    torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) { f(queue); });
}

}  // namespace hybridops
