// The attention decoder's loop over the steps, forward and backward, for one instruction set; included by every_isa.h
// inside its namespace. Equations: hybridops/formulas/attention_decoder.py.
//
// A thread takes some rows of the batch through all steps: no thread waits for another, a row's numbers do not depend on
// which rows go with it, and memory of so many rows that it exceeds the caches is read a part after the other.

#include "../math/gru_gates.h"
#include "../math/lstm_gates.h"
#include "additive_attention_kernels.h"
#include "packed_product_kernels.h"

// Which rows of the batch go through the steps together: enough for full register tiles, and to read the weights seldom; not
// so many that their sums leave the L1 cache, or that what they attend to, and all threads read in every step, leaves the last
// one. On Zen 4 (32 MB) 25 MB of two threads' did, beside 9 MB of weights: half of it at a time took a tenth less. On an Intel
// Xeon (480 MB) that half took a fifth more, on one thread.
struct RowBlocks {
    int64_t batch, count;

    RowBlocks(int64_t batch, int64_t row_bytes) : batch(batch) {
        const int64_t threads = torch::stable::get_num_threads(), cached = last_cache_bytes() / (2 * threads);
        const int64_t max = std::clamp<int64_t>(cached / (row_bytes + 1), min_rows, max_rows);
        const int64_t rounds = ceil_div(batch, max * threads);
        count = std::min(batch, rounds * threads);
    }

    int64_t first(int64_t block) const { return block * batch / count; }
    int64_t rows() const { return ceil_div(batch, count); }  // at most

   private:
    static constexpr int64_t min_rows = 8, max_rows = 48;
};

// Of one entry of the memory: the keys that the mask lets through.
struct AttendedKeys {
    int64_t end;  // behind the last of them
    bool all;     // of those before

    AttendedKeys(const Broadcast<bool>& mask, int64_t entry, int64_t keys)
        : end(attended_end(mask, entry, 1, keys)), all(true) {
        for (int64_t t = 0; mask.data && t < end; ++t) all = all && mask.data[entry * mask.batch + t * mask.key];
    }
};

// Those rows of a block that are not behind their end at a step: their numbers in the batch and in the block.
struct LiveRows {
    int64_t *batch, *block;
    int64_t count;

    LiveRows(Arena& arena, int64_t rows)
        : batch(arena.take<int64_t>(rows)), block(arena.take<int64_t>(rows)), count(0) {}

    // dead(b) for each of the others
    template <class Dead>
    void choose(int64_t first, int64_t end, int64_t s, const int64_t* lengths, const Dead& dead) {
        count = 0;
        for (int64_t b = first; b < end; ++b) {
            if (lengths && lengths[b] <= s) {
                dead(b);
                continue;
            }
            batch[count] = b;
            block[count++] = b - first;
        }
    }
};

// Where the operands of the live rows begin.
template <class E>
struct RowPointers {
    const E** data;

    RowPointers(Arena& arena, int64_t rows) : data(arena.take<const E*>(rows)) {}

    template <class A>
    const E* const* operator()(const OperandRows<A, E>& operands, const LiveRows& live) const {
        for (int64_t i = 0; i < live.count; ++i) data[i] = operands[live.block[i]];
        return data;
    }
};

template <class T>
void clear_row(T* data, int64_t row, int64_t width) {
    if (data) std::fill(data + row * width, data + (row + 1) * width, T(0));
}

// The scores of one query and the keys [0, end), whatever the activation.
template <class A>
struct RowScores {
    std::function<void(const Pairs&, A* out, A* scratch)> run;
    int64_t scratch;
    A largest;  // none is larger

    template <class Scores>
    RowScores(const Scores& scores, A largest)
        : run([scores](const Pairs& pairs, A* out, A* scratch) { scores(pairs, out, 0, scratch); }),
          scratch(scores.scratch(1)),
          largest(largest) {}
};

template <class A, class T>
AdditiveScoresArgs<T, A> scores_args(const AttentionDecoderInputs<T, A>& a, const T* queries, int64_t steps,
                                     const KeyExponentials<A>& keys) {
    const DecoderShape& n = a.shape;
    const int64_t queries_per_entry = n.rows_per_entry() * steps;
    return {{n.entries, queries_per_entry, n.keys, n.width, n.activation, n.negative_slope},
            queries,
            a.key,
            a.v,
            keys,
            nullptr};
}

// ---- forward ---------------------------------------------------------------------------------------------------------

// Packed weights, side by side in one piece of memory.
template <class A, class E>
struct ForwardWeights {
    template <int gates>
    struct OfGates {
        PackedWeight<A, gates, E> context, h;  // of c', of h_{s-1}

        OfGates(Arena& arena, const DecoderShape& n)
            : context(arena, n.channels, ceil_div(n.hidden, lanes<A>)),
              h(arena, n.hidden, ceil_div(n.hidden, lanes<A>)) {}

        template <class T>
        void pack(const DecoderShape& n, const DecoderWeights<T>& w) const {
            context.pack(GateRows<A, T>{w.context, n.hidden});
            h.pack(GateRows<A, T>{w.h, n.hidden});
        }
    };

    PlainProduct<A, E> query;
    std::optional<PlainProduct<A, E>> gate;
    std::optional<OfGates<4>> lstm;
    std::optional<OfGates<3>> gru;

    ForwardWeights(Arena& arena, const DecoderShape& n, bool gated) : query(arena, n.width, n.hidden) {
        if (gated) gate.emplace(arena, n.channels, n.hidden);
        if (n.cell == CellType::lstm) lstm.emplace(arena, n);
        if (n.cell == CellType::gru) gru.emplace(arena, n);
    }

    static size_t bytes(const DecoderShape& n, bool gated) {
        Arena counted;
        ForwardWeights(counted, n, gated);
        return counted.size();
    }

    // In memory of that size
    static ForwardWeights in(std::byte* memory, const DecoderShape& n, bool gated) {
        Arena arena(memory);
        return ForwardWeights(arena, n, gated);
    }

    template <class T>
    void pack(const DecoderShape& n, const DecoderWeights<T>& w) const {
        query.pack(w.q);
        if (gate) gate->pack(w.beta);
        if (lstm) lstm->pack(n, w);
        if (gru) gru->pack(n, w);
    }
};

// What attention_decoder_pack needs: how much memory, and what goes there.
template <class T, class A = Accumulator<T>>
void set_packed_bytes(int64_t& bytes, const DecoderShape& n, bool gated) {
    with_operands<T, A>([&](auto e) { bytes = ForwardWeights<A, decltype(e)>::bytes(n, gated); });
}

template <class T, class A = Accumulator<T>>
void pack_weights(std::byte* to, const DecoderShape& n, const DecoderWeights<T>& w) {
    with_operands<T, A>([&](auto e) { ForwardWeights<A, decltype(e)>::in(to, n, w.gated).pack(n, w); });
}

template <class T, class A, class E>
class DecoderForward {
   public:
    using Args = AttentionDecoderForwardArgs<T, A>;

    DecoderForward(const Args& a, const RowScores<A>& scores, const ForwardWeights<A, E>& weights)
        : a(a), scores_(scores), w_(weights) {}

    void run() const {
        const int64_t entry_bytes = n.keys * (n.width * sizeof(A) + n.channels * sizeof(T));
        const RowBlocks blocks(n.batch, entry_bytes / n.rows_per_entry());
        parallel_for_dynamic(blocks.count, [&](WorkQueue& queue) {
            const ProductRegisters<E> registers;
            Scratch scratch = from_thread_scratch([&](Arena& arena) { return Scratch(arena, *this, blocks.rows()); });
            for (int64_t block; queue.take(block);) all_steps(blocks.first(block), blocks.first(block + 1), scratch);
        });
    }

   private:
    const Args& a;
    const DecoderShape& n = a.shape;
    const RowScores<A>& scores_;
    const ForwardWeights<A, E>& w_;

    struct Scratch {
        LiveRows live;
        OperandRows<A, E> h, context;
        RowPointers<E> h_rows, context_rows;
        A *sums, *other_sums;  // of a product
        A *weights, *attention;

        Scratch(Arena& arena, const DecoderForward& f, int64_t rows)
            : live(arena, rows),
              h(arena, rows, f.n.hidden),
              context(arena, rows, f.n.channels),
              h_rows(arena, rows),
              context_rows(arena, rows) {
            sums = arena.take<A>(rows * 4 * lanes<A>);
            other_sums = arena.take<A>(f.n.cell == CellType::gru ? rows * 3 * lanes<A> : 0);
            weights = arena.take<A>(round_up(f.n.keys, lanes<A>));
            const ContextArgs<T, A> values{{}, nullptr, nullptr, f.n.channels};
            attention = arena.take<A>(std::max(f.scores_.scratch, Context<A, T>{values, 1, f.n.keys}.scratch()));
        }
    };

    void all_steps(int64_t first, int64_t end, Scratch& x) const {
        for (int64_t b = first; b < end; ++b) {
            x.h.set(b - first, a.h0 + b * n.hidden);
            x.context.set(b - first, a.context0 ? a.context0 + b * n.channels : nullptr);
            if (a.cell_n) std::copy_n(a.cell0 + b * n.hidden, n.hidden, a.cell_n + b * n.hidden);
        }
        for (int64_t s = 0; s < n.steps; ++s) {
            x.live.choose(first, end, s, a.lengths, [&](int64_t b) { clear(b, s); });
            if (x.live.count == 0) continue;
            if (n.query == QuerySource::previous) attend(s, x);
            n.cell == CellType::lstm ? lstm(s, x) : gru(s, x);
            for (int64_t i = 0; i < x.live.count; ++i)
                x.h.set(x.live.block[i], a.output + (x.live.batch[i] * n.steps + s) * n.hidden);
            if (n.query == QuerySource::current) attend(s, x);
        }
        for (int64_t b = first; b < end; ++b) {
            const int64_t steps = a.lengths ? std::clamp<int64_t>(a.lengths[b], 0, n.steps) : n.steps;
            const T* last = steps ? a.output + (b * n.steps + steps - 1) * n.hidden : a.h0 + b * n.hidden;
            std::copy_n(last, n.hidden, a.h_n + b * n.hidden);
        }
    }

    // A step behind the end of a row
    void clear(int64_t b, int64_t s) const {
        const int64_t row = b * n.steps + s;
        clear_row(a.output, row, n.hidden);
        clear_row(a.context, row, n.channels);
        clear_row(a.weights, row, n.keys);
        clear_row(a.cells, row, n.hidden);
        clear_row(a.gates, row, n.gates());
        clear_row(a.hidden_n, row, n.hidden);
        clear_row(a.alpha, row, n.keys);
        for (const PerStep<T>& saved : {a.queries, a.beta, a.ungated})
            if (saved.steps == n.steps) clear_row(saved.data, row, saved.width);
    }

    void attend(int64_t s, Scratch& x) const {
        const E* const* h = x.h_rows(x.h, x.live);
        w_.query(x.sums, h, nullptr, x.live.count, [&](int64_t i, int64_t at, int64_t count, Simd<A> sum) {
            if (a.b_q) sum += load_lanes<A>(a.b_q + at, count);
            store_lanes<A>(a.queries.at(x.live.batch[i], s) + at, sum, count);
        });
        if (w_.gate)
            (*w_.gate)(x.sums, h, nullptr, x.live.count, [&](int64_t i, int64_t at, int64_t count, Simd<A> sum) {
                if (a.b_beta) sum += load_lanes<A>(a.b_beta + at, count);
                store_lanes<A>(a.beta.at(x.live.batch[i], s) + at, sigmoid(sum), count);
            });
        for (int64_t i = 0; i < x.live.count; ++i) {
            const int64_t b = x.live.batch[i];
            T* context = a.context + (b * n.steps + s) * n.channels;
            T* ungated = w_.gate ? a.ungated.at(b, s) : context;
            attend_row(b, s, ungated, x);
            if (w_.gate) {
                const T* beta = a.beta.at(b, s);
                for (int64_t d = 0; d < n.channels; d += lanes<A>) {
                    const int64_t count = lanes_of<A>(n.channels - d);
                    store_lanes<A>(context + d, load_lanes<A>(beta + d, count) * load_lanes<A>(ungated + d, count),
                                   count);
                }
            }
            x.context.set(x.live.block[i], context);
        }
    }

    void attend_row(int64_t b, int64_t s, T* context, Scratch& x) const {
        const int64_t entry = b / n.rows_per_entry(), of_entry = b % n.rows_per_entry(), steps = a.queries.steps;
        const AttendedKeys keys(a.mask, entry, n.keys);
        const int64_t query = of_entry * steps + std::min(s, steps - 1), row = (b * n.steps + s) * n.keys;
        scores_.run(Pairs{entry, query, query + 1, 0, keys.end}, x.weights, x.attention);
        const SoftmaxArgs<T, A> options{
            {keys.all ? nullptr : a.mask.data + entry * a.mask.batch, 0, 0, a.mask.key},
            {a.score_bias.data ? a.score_bias.data + b * a.score_bias.batch + s * a.score_bias.query : nullptr, 0, 0,
             a.score_bias.key},
            static_cast<A>(n.scale),
            nullptr};
        Softmax<A, T>{options, 1, keys.end, scores_.largest}(x.weights, 0);
        const auto each = [&](const auto& f) {
            for (int64_t t = 0; t < keys.end; t += lanes<A>) f(t, lanes_of<A>(keys.end - t));
        };
        const auto write = [&](T* to) {
            each([&](int64_t t, int64_t count) { store_lanes<A>(to + t, load(x.weights + t), count); });
            std::fill(to + keys.end, to + n.keys, T(0));
        };
        if (a.keep.data) {
            if (a.alpha) write(a.alpha + row);
            const T* keep = a.keep.data + b * a.keep.batch + s * a.keep.query;
            each([&](int64_t t, int64_t count) {
                const Simd<A> kept = load_lanes<A>(keep + t * a.keep.key, count, a.keep.key);
                store(x.weights + t, load(x.weights + t) * kept);
            });
        }
        write(a.weights + row);
        const ContextArgs<T, A> values{{}, a.value + entry * n.keys * n.channels, context, n.channels};
        Context<A, T>{values, 1, keys.end}({0, 0, 1, 0, keys.end}, 0, n.channels, x.weights, 0, x.attention);
    }

    void lstm(int64_t s, Scratch& x) const {
        const E *const *context = x.context_rows(x.context, x.live), *const *h = x.h_rows(x.h, x.live);
        for (int64_t group = 0; group < w_.lstm->h.groups(); ++group) {
            multiply(x.sums, false, context, x.live.count, w_.lstm->context, group);
            multiply(x.sums, true, h, x.live.count, w_.lstm->h, group);
            const int64_t unit = group * lanes<A>, count = lanes_of<A>(n.hidden - unit);
            for (int64_t i = 0; i < x.live.count; ++i) {
                const int64_t b = x.live.batch[i], row = b * n.steps + s, at = row * n.hidden + unit;
                const auto gate = [&](int g) {
                    return load(x.sums + (i * 4 + g) * lanes<A>) +
                           load_lanes<A>(a.x_gates + (row * 4 + g) * n.hidden + unit, count);
                };
                A* running = a.cell_n + b * n.hidden + unit;
                const auto cell =
                    lstm_cell(gate(1), gate(0), gate(2), load_lanes<A>(running, count), false, Peephole<Simd<A>>{});
                const auto output = lstm_output(gate(3), cell.c, false, Peephole<Simd<A>>{});
                store_lanes<A>(running, cell.c, count);
                store_lanes<A>(a.output + at, output.h, count);
                if (a.cells) store_lanes<A>(a.cells + at, cell.c, count);
                if (!a.gates) continue;
                T* gates = a.gates + row * 4 * n.hidden + unit;
                store_lanes<A>(gates, cell.i, count);
                store_lanes<A>(gates + n.hidden, cell.f, count);
                store_lanes<A>(gates + 2 * n.hidden, cell.g, count);
                store_lanes<A>(gates + 3 * n.hidden, output.o, count);
            }
        }
    }

    void gru(int64_t s, Scratch& x) const {
        const E *const *context = x.context_rows(x.context, x.live), *const *h = x.h_rows(x.h, x.live);
        for (int64_t group = 0; group < w_.gru->h.groups(); ++group) {
            multiply(x.sums, false, context, x.live.count, w_.gru->context, group);
            multiply(x.other_sums, false, h, x.live.count, w_.gru->h, group);  // r scales its part of n
            const int64_t unit = group * lanes<A>, count = lanes_of<A>(n.hidden - unit);
            for (int64_t i = 0; i < x.live.count; ++i) {
                const int64_t row = x.live.batch[i] * n.steps + s, at = row * n.hidden + unit;
                const auto of_x = [&](int g) {
                    return load(x.sums + (i * 3 + g) * lanes<A>) +
                           load_lanes<A>(a.x_gates + (row * 3 + g) * n.hidden + unit, count);
                };
                const auto of_h = [&](int g) {
                    const Simd<A> sum = load(x.other_sums + (i * 3 + g) * lanes<A>);
                    return a.b_h ? sum + load_lanes<A>(a.b_h + g * n.hidden + unit, count) : sum;
                };
                const Simd<A> hidden_n = of_h(2), h_prev = load_lanes<A>(h[i] + unit, count);
                const auto cell = gru_cell(of_x(0) + of_h(0), of_x(1) + of_h(1), of_x(2), hidden_n, h_prev);
                store_lanes<A>(a.output + at, cell.h, count);
                if (a.hidden_n) store_lanes<A>(a.hidden_n + at, hidden_n, count);
                if (!a.gates) continue;
                T* gates = a.gates + row * 3 * n.hidden + unit;
                store_lanes<A>(gates, cell.r, count);
                store_lanes<A>(gates + n.hidden, cell.z, count);
                store_lanes<A>(gates + 2 * n.hidden, cell.n, count);
            }
        }
    }
};

template <class T, class A>
void attention_decoder_forward(const AttentionDecoderForwardArgs<T, A>& a) {
    const DecoderShape& n = a.shape;
    const auto run = [&](const RowScores<A>& scores) {
        with_operands<T, A>([&](auto e) {
            using Weights = ForwardWeights<A, decltype(e)>;
            std::optional<Buffer<std::byte>> own;
            if (!a.packed) own.emplace(Weights::bytes(n, a.w.gated));
            const auto weights = Weights::in(own ? own->data() : a.packed, n, a.w.gated);
            if (own) weights.pack(n, a.w);
            DecoderForward<T, A, decltype(e)>(a, scores, weights).run();
        });
    };
    with_activation<A>(n.activation, n.negative_slope, [&](auto act) {
        if constexpr (std::is_same_v<decltype(act), Tanh>) {
            const ScoreVector<A> v(a.v, n.width);
            std::optional<OwnedExponentials<A>> keys;
            if (!a.prepared_keys.values) keys.emplace(a.key, n.entries * n.keys, n.width);
            const auto args = scores_args(a, static_cast<const T*>(a.queries.data), a.queries.steps, a.prepared_keys);
            run({TanhScores<A, T>{args, keys ? keys->rows : a.prepared_keys, v}, v.magnitude});
        } else {
            const auto args = scores_args(a, static_cast<const T*>(a.queries.data), a.queries.steps, a.prepared_keys);
            run({DirectScores<A, T, decltype(act)>{args, act}, std::numeric_limits<A>::infinity()});
        }
    });
}

#include "attention_decoder_gradient_kernels.h"
