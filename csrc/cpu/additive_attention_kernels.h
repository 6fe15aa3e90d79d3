// Additive scores and attention, forward and backward, for one instruction set; included by every_isa.h inside its
// namespace.

#include "../math/additive_score.h"
#include "additive_scores_kernels.h"
#include "context_kernels.h"
#include "projection_kernels.h"

// ---- forward ---------------------------------------------------------------------------------------------------------

// How the pairs are shared out. A unit of work has all keys where there are units enough: what it computes of a key serves
// all of its queries, and its scores never leave the caches. Else (a few queries over many keys) `key_block` of them.
// (Fewer queries a unit where keys are many, so that its scores stay in the L2 cache, took longer: 13.1 ms with 16 of them and
// 11.7 with 64, for 256 queries over 2048 keys of 256 channels, one thread of Zen 4.)
struct Partition {
    static constexpr int64_t max_queries = 64, min_queries = 16, key_block = 64;
    int64_t queries, down, across;  // of a unit; units of a batch entry: over its queries, over its keys

    explicit Partition(const AdditiveShape& n) {
        const int64_t wanted = 4 * static_cast<int64_t>(torch::stable::get_num_threads());
        down =
            std::clamp(ceil_div(wanted, n.batch), ceil_div(n.queries, max_queries), ceil_div(n.queries, min_queries));
        queries = ceil_div(n.queries, down);
        down = ceil_div(n.queries, queries);
        across = n.batch * down >= wanted ? 1 : ceil_div(n.keys, key_block);
    }
};

// Runs `work` on every unit, in parallel.
template <class Work>
void for_each_unit(const AdditiveShape& n, const Partition& of, const Work& work) {
    parallel_for_dynamic(n.batch * of.down * of.across, [&](WorkQueue& queue) {
        for (int64_t unit; queue.take(unit);) {
            const int64_t s0 = unit / of.across % of.down * of.queries, t0 = unit % of.across * Partition::key_block;
            work(Pairs{unit / (of.down * of.across), s0, std::min(s0 + of.queries, n.queries), t0,
                       of.across == 1 ? n.keys : std::min(t0 + Partition::key_block, n.keys)});
        }
    });
}

template <class A>
A* scratch_of(int64_t count) {
    return static_cast<A*>(thread_scratch(count * sizeof(A)));
}

template <class A, class T, class Scores>
void write_scores(const AdditiveScoresArgs<T, A>& a, const Partition& partition, const Scores& scores) {
    for_each_unit(a.shape, partition, [&](const Pairs& pairs) {
        A* out = a.scores + (pairs.b * a.shape.queries + pairs.s0) * a.shape.keys + pairs.t0;
        scores(pairs, out, a.shape.keys, scratch_of<A>(scores.scratch(pairs.s1 - pairs.s0)));
    });
}

// Behind the last key that a query of the batch entry may attend to.
inline int64_t attended_end(const Broadcast<bool>& mask, int64_t b, int64_t queries, int64_t keys) {
    if (!mask.data) return keys;
    int64_t end = 0;
    for (int64_t s = 0; s < (mask.query ? queries : 1); ++s) {
        const bool* row = mask.data + b * mask.batch + s * mask.query;
        int64_t t = keys;
        while (t > end && !row[(t - 1) * mask.key]) --t;
        end = t;
    }
    return end;
}

// Of each batch entry, behind the last key that a query of it may attend to. What is not finite counts as attended: its
// product with a weight of zero is NaN, which has to come.
template <class A>
class AttendedEnds {
   public:
    template <class T>
    AttendedEnds(const AdditiveScoresArgs<T, A>& a, const ContextArgs<T, A>& c) {
        const AdditiveShape& n = a.shape;
        const Broadcast<bool>& mask = c.softmax.mask;
        keys_ = n.keys;
        if (!mask.data) return;
        ends_.emplace(n.batch);
        torch::stable::parallel_for(0, n.batch, 4096 / (n.keys + 1) + 1, [&](int64_t begin, int64_t end) {
            for (int64_t b = begin; b < end; ++b) {
                const int64_t first = b * n.keys, attended = attended_end(mask, b, n.queries, n.keys);
                const bool finite =
                    (a.prepared_keys.values
                         ? all_finite(a.prepared_keys.bound + first + attended, n.keys - attended)
                         : all_finite(a.k + (first + attended) * n.width, (n.keys - attended) * n.width)) &&
                    all_finite(c.value + (first + attended) * c.channels, (n.keys - attended) * c.channels);
                ends_->data()[b] = finite ? attended : n.keys;
            }
        });
    }

    int64_t operator()(int64_t b) const { return ends_ ? ends_->data()[b] : keys_; }

   private:
    int64_t keys_;
    std::optional<Buffer<int64_t>> ends_;

    template <class E>
    static bool all_finite(const E* x, int64_t count) {
        LargestMagnitude<A> most;
        for (int64_t i = 0; i < count; i += lanes<A>) most.see(load_lanes<A>(x + i, lanes_of<A>(count - i)));
        return most.value() - most.value() == 0;
    }
};

template <class A, class T, class Scores>
void attend(const AdditiveScoresArgs<T, A>& a, const Partition& partition, const Scores& scores,
            const ContextArgs<T, A>& c, A largest_score) {
    const AdditiveShape& n = a.shape;
    const AttendedEnds<A> ends(a, c);
    const int64_t row = round_up(n.keys, lanes<A>);
    const Softmax<A, T> softmax{c.softmax, n.queries, n.keys, largest_score};
    const Context<A, T> context{c, n.queries, n.keys};
    if (partition.across == 1) {  // all of it while the unit's scores are in the cache
        return for_each_unit(n, partition, [&](const Pairs& pairs) {
            const int64_t count = pairs.s1 - pairs.s0;
            A* weights = scratch_of<A>(count * row + std::max(scores.scratch(count), context.scratch()));
            A* scratch = weights + count * row;
            const Pairs attended = before(pairs, ends(pairs.b));
            scores(attended, weights, row, scratch);
            for (int64_t i = 0; i < count; ++i) softmax(weights + i * row, pairs.b * n.queries + pairs.s0 + i);
            context(attended, 0, c.channels, weights, row, scratch);
        });
    }
    const Buffer<A> all(n.batch * n.queries * row);
    const auto weights = [&](const Pairs& pairs) { return all.data() + (pairs.b * n.queries + pairs.s0) * row; };
    for_each_unit(n, partition, [&](const Pairs& pairs) {
        scores(before(pairs, ends(pairs.b)), weights(pairs) + pairs.t0, row,
               scratch_of<A>(scores.scratch(pairs.s1 - pairs.s0)));
    });
    torch::stable::parallel_for(0, n.batch * n.queries, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) softmax(all.data() + i * row, i);
    });
    const int64_t strips = ceil_div(c.channels, context.strip);
    parallel_for_dynamic(n.batch * strips, [&](WorkQueue& queue) {
        for (int64_t i; queue.take(i);) {
            const Pairs pairs{i / strips, 0, n.queries, 0, ends(i / strips)};
            const int64_t d0 = i % strips * context.strip;
            context(pairs, d0, std::min(d0 + context.strip, c.channels), weights(pairs), row,
                    scratch_of<A>(context.scratch()));
        }
    });
}

// Scores, or where `c` is not null the attention.
template <class T, class A>
void additive_forward(const AdditiveScoresArgs<T, A>& a, const ContextArgs<T, A>* c) {
    const AdditiveShape& n = a.shape;
    const Partition partition(n);
    const auto run = [&](const auto& scores, A largest_score) {
        c ? attend(a, partition, scores, *c, largest_score) : write_scores(a, partition, scores);
    };
    with_activation<A>(n.activation, n.negative_slope, [&](auto act) {
        if constexpr (std::is_same_v<decltype(act), Tanh>) {
            const ScoreVector<A> v(a.v, n.width);
            // Keys that several units meet, all at once; else each unit those of its own
            std::optional<OwnedExponentials<A>> keys;
            if (partition.down > 1 && !a.prepared_keys.values) keys.emplace(a.k, n.batch * n.keys, n.width);
            run(TanhScores<A, T>{a, keys ? keys->rows : a.prepared_keys, v}, v.magnitude);
        } else {
            run(DirectScores<A, T, decltype(act)>{a, act}, std::numeric_limits<A>::infinity());
        }
    });
}

#include "additive_gradient_kernels.h"
