// The attention decoder's loop over the steps, forward and backward, for one instruction set; included by every_isa.h
// inside its namespace. Equations: hybridops/formulas/attention_decoder.py.
//
// A thread takes some rows of the batch through all steps: no thread waits for another, a row's numbers do not depend on
// which rows go with it, and memory of so many rows that it exceeds the caches is read a part after the other.

#include "../math/gru_gates.h"
#include "../math/lstm_gates.h"
#include "additive_attention_kernels.h"
#include "packed_product_kernels.h"

// Which rows of the batch go through the steps together. Enough for full register tiles; not so many that their sums leave
// the L1 cache.
struct RowBlocks {
    static constexpr int64_t max = 48;
    int64_t batch, count;

    explicit RowBlocks(int64_t batch) : batch(batch) {
        const int64_t threads = torch::stable::get_num_threads();
        const int64_t rounds = ceil_div(batch, max * threads);
        count = std::min(batch, rounds * threads);
    }

    int64_t first(int64_t block) const { return block * batch / count; }
    int64_t rows() const { return ceil_div(batch, count); }  // at most
};

// Of one row of the batch: the keys that the mask lets through.
struct AttendedKeys {
    int64_t end;  // behind the last of them
    bool all;     // of those before

    AttendedKeys(const Broadcast<bool>& mask, int64_t b, int64_t keys) : end(keys), all(true) {
        if (!mask.data) return;
        const bool* row = mask.data + b * mask.batch;
        while (end > 0 && !row[(end - 1) * mask.key]) --end;
        for (int64_t t = 0; t < end; ++t) all = all && row[t * mask.key];
    }
};

// Columns of the gates' product: [gate][unit] of lanes<A> units a group.
template <class A, class T>
struct GateColumns {
    WeightMatrix<T> w;
    int64_t hidden;

    HYBRIDOPS_INLINE KernelTaps<T> operator()(int64_t group, int64_t column, int64_t input) const {
        const int64_t unit = group * lanes<A> + column % lanes<A>, row = column / lanes<A> * hidden + unit;
        return {unit < hidden ? w.data + row * w.output + input * w.input : nullptr, 0, 0};
    }
};

// Those rows of a block that are not behind their end at a step: their numbers in the batch and in the block.
struct LiveRows {
    int64_t *batch, *block;
    int64_t count;

    LiveRows(Arena& arena, int64_t rows) : batch(arena.take<int64_t>(rows)), block(arena.take<int64_t>(rows)), count(0) {}

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
    return {{n.batch, steps, n.keys, n.width, n.activation, n.negative_slope}, queries, a.key, a.v, keys, nullptr};
}

// ---- forward ---------------------------------------------------------------------------------------------------------

template <class T, class A, class E>
class DecoderForward {
   public:
    using Args = AttentionDecoderForwardArgs<T, A>;

    DecoderForward(const Args& a, const RowScores<A>& scores)
        : a(a), scores_(scores), query_(a.shape.width, a.w_q, a.shape.hidden) {
        if (a.gated) gate_.emplace(n.channels, a.w_beta, n.hidden);
        const TwoFactors<GateColumns<A, T>> columns{{a.w_c, n.hidden}, {a.w_h, n.hidden}, n.channels};
        const int64_t groups = ceil_div(n.hidden, lanes<A>);
        if (n.cell == CellType::lstm) {
            lstm_.emplace(std::array{n.channels, n.hidden}, groups, columns);
        } else {
            gru_.emplace(std::array{n.channels, n.hidden}, groups, columns);
        }
    }

    void run() const {
        const RowBlocks blocks(n.batch);
        parallel_for_dynamic(blocks.count, [&](WorkQueue& queue) {
            Scratch scratch =
                from_thread_scratch([&](Arena& arena) { return Scratch(arena, *this, blocks.rows()); });
            for (int64_t block; queue.take(block);) all_steps(blocks.first(block), blocks.first(block + 1), scratch);
        });
    }

   private:
    const Args& a;
    const DecoderShape& n = a.shape;
    const RowScores<A>& scores_;
    PlainProduct<A, E> query_;
    std::optional<PlainProduct<A, E>> gate_;
    std::optional<PackedProduct<A, 4, E>> lstm_;  // the gates' vectors
    std::optional<PackedProduct<A, 3, E>> gru_;

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
            const ContextArgs<T, A> none{};
            attention = arena.take<A>(std::max(f.scores_.scratch, Context<A, T>{none, 1, f.n.keys}.scratch()));
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
        query_(x.sums, h, nullptr, x.live.count, [&](int64_t i, int64_t at, int64_t count, Simd<A> sum) {
            if (a.b_q) sum += load_lanes<A>(a.b_q + at, count);
            store_lanes<A>(a.queries.at(x.live.batch[i], s) + at, sum, count);
        });
        if (gate_)
            (*gate_)(x.sums, h, nullptr, x.live.count, [&](int64_t i, int64_t at, int64_t count, Simd<A> sum) {
                if (a.b_beta) sum += load_lanes<A>(a.b_beta + at, count);
                store_lanes<A>(a.beta.at(x.live.batch[i], s) + at, sigmoid(sum), count);
            });
        for (int64_t i = 0; i < x.live.count; ++i) {
            const int64_t b = x.live.batch[i];
            T* context = a.context + (b * n.steps + s) * n.channels;
            T* ungated = gate_ ? a.ungated.at(b, s) : context;
            attend_row(b, s, ungated, x);
            if (gate_) {
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
        const AttendedKeys keys(a.mask, b, n.keys);
        const int64_t query = std::min(s, a.queries.steps - 1), row = (b * n.steps + s) * n.keys;
        scores_.run(Pairs{b, query, query + 1, 0, keys.end}, x.weights, x.attention);
        const SoftmaxArgs<T, A> options{
            {keys.all ? nullptr : a.mask.data + b * a.mask.batch, 0, 0, a.mask.key},
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
        const ContextArgs<T, A> values{{}, a.value + b * n.keys * n.channels, context, n.channels};
        Context<A, T>{values, 1, keys.end}({0, 0, 1, 0, keys.end}, 0, n.channels, x.weights, 0, x.attention);
    }

    void lstm(int64_t s, Scratch& x) const {
        const E* const *context = x.context_rows(x.context, x.live), *const *h = x.h_rows(x.h, x.live);
        for (int64_t group = 0; group < lstm_->groups(); ++group) {
            (*lstm_)(x.sums, false, 0, group, context, x.live.count);
            (*lstm_)(x.sums, true, 1, group, h, x.live.count);
            const int64_t unit = group * lanes<A>, count = lanes_of<A>(n.hidden - unit);
            for (int64_t i = 0; i < x.live.count; ++i) {
                const int64_t b = x.live.batch[i], row = b * n.steps + s, at = row * n.hidden + unit;
                const auto gate = [&](int g) {
                    return load(x.sums + (i * 4 + g) * lanes<A>) +
                           load_lanes<A>(a.x_gates + (row * 4 + g) * n.hidden + unit, count);
                };
                A* running = a.cell_n + b * n.hidden + unit;
                const auto cell = lstm_cell(gate(1), gate(0), gate(2), load_lanes<A>(running, count), false, Peephole<Simd<A>>{});
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
        const E* const *context = x.context_rows(x.context, x.live), *const *h = x.h_rows(x.h, x.live);
        for (int64_t group = 0; group < gru_->groups(); ++group) {
            (*gru_)(x.sums, false, 0, group, context, x.live.count);
            (*gru_)(x.other_sums, false, 1, group, h, x.live.count);  // r scales its part of n
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
        with_operands<T, A>([&](auto e) { DecoderForward<T, A, decltype(e)>(a, scores).run(); });
    };
    with_activation<A>(n.activation, n.negative_slope, [&](auto act) {
        if constexpr (std::is_same_v<decltype(act), Tanh>) {
            const ScoreVector<A> v(a.v, n.width);
            std::optional<OwnedExponentials<A>> keys;
            if (!a.prepared_keys.values) keys.emplace(a.key, n.batch * n.keys, n.width);
            const auto args =
                scores_args(a, static_cast<const T*>(a.queries.data), a.queries.steps, a.prepared_keys);
            run({TanhScores<A, T>{args, keys ? keys->rows : a.prepared_keys, v}, v.magnitude});
        } else {
            const auto args =
                scores_args(a, static_cast<const T*>(a.queries.data), a.queries.steps, a.prepared_keys);
            run({DirectScores<A, T, decltype(act)>{args, act}, std::numeric_limits<A>::infinity()});
        }
    });
}

// ---- backward --------------------------------------------------------------------------------------------------------

// The gradient of a query, without the factor v, from those of its scores with some keys:
//   dq = v sum_t ds_t act'(q + k_t)
// The gradient kernels' forms take several queries and a key. Here the keys take the queries' part, and the query the
// key's: what is antisymmetric in that, the value of a factored tanh, is only squared.
template <class A>
struct QueryGradient {
    A *dq, *q;         // (padded); q: as the form wants it
    const int* keys;   // (count) numbers of keys
    const A* ds;       // of each key's number
    int64_t count, padded;

    template <class Form, class Key>  // key(t, a): a vector of a key, as the form wants it
    void operator()(const Form& form, const Key& key) const {
        std::fill(dq, dq + padded, A(0));
        int64_t i = 0;
        for (; i + 4 <= count; i += 4) add<4>(form, key, i);
        for (; i < count; ++i) add<1>(form, key, i);
    }

   private:
    template <int rows, class Form, class Key>
    void add(const Form& form, const Key& key, int64_t first) const {
        Simd<A> of_score[rows];
        for (int i = 0; i < rows; ++i) of_score[i] = broadcast(ds[keys[first + i]]);
        for (int64_t at = 0; at < padded; at += lanes<A>) {
            Simd<A> k[rows], value[rows], sum = load(dq + at);
            const Simd<A> query = load(q + at);
            for (int i = 0; i < rows; ++i) k[i] = key(keys[first + i], at);
            form.values(value, k, query);
            for (int i = 0; i < rows; ++i)
                sum += form.chained(of_score[i], of_score[i] * value[i], k[i], query, value[i]);
            store(dq + at, sum);
        }
    }
};

template <class T, class A, class E>
class DecoderBackward {
   public:
    using Args = AttentionDecoderBackwardArgs<T, A>;

    DecoderBackward(const Args& a, const KeyExponentials<A>& keys)
        : a(a),
          keys_(keys),
          to_context_(n.channels, a.w_c.transposed(), n.gates()),
          to_hidden_(n.hidden, a.w_h.transposed(), n.gates()),
          from_attention_(n.hidden, a.w_q.transposed(), n.width, a.w_beta.transposed(),
                          a.gated ? n.channels : 0) {}

    void run() const {
        const RowBlocks blocks(n.batch);
        parallel_for_dynamic(blocks.count, [&](WorkQueue& queue) {
            Scratch scratch =
                from_thread_scratch([&](Arena& arena) { return Scratch(arena, *this, blocks.rows()); });
            for (int64_t block; queue.take(block);) all_steps(blocks.first(block), blocks.first(block + 1), scratch);
        });
    }

   private:
    const Args& a;
    const DecoderShape& n = a.shape;
    const KeyExponentials<A>& keys_;  // values null: not of tanh
    PlainProduct<A, E> to_context_, to_hidden_, from_attention_;

    struct Scratch {
        LiveRows live;
        OperandRows<A, E> da, da_h, dq, dbeta;
        RowPointers<E> rows, other_rows;
        int64_t *key_counts;
        int* keys;               // (rows,T): those that may be attended
        A* key_bounds;           // of them, for each row
        A *dh, *dfed;            // (rows,H), (rows,D): of h_s and of c', by way of what comes later
        A *sums, *dungated, *dalpha, *q, *dq_sum, *widened;

        Scratch(Arena& arena, const DecoderBackward& f, int64_t count)
            : live(arena, count),
              da(arena, count, f.n.gates()),
              da_h(arena, f.gru() ? count : 0, f.n.gates()),
              dq(arena, count, f.n.width),
              dbeta(arena, f.gated() ? count : 0, f.n.channels),
              rows(arena, count),
              other_rows(arena, count) {
            key_counts = arena.take<int64_t>(count);
            keys = arena.take<int>(count * f.n.keys);
            key_bounds = arena.take<A>(count);
            dh = arena.take<A>(count * f.n.hidden);
            dfed = arena.take<A>(count * f.n.channels);
            sums = arena.take<A>(PlainProduct<A, E>::sums(count));
            dungated = arena.take<A>(round_up(f.n.channels, lanes<A>));
            dalpha = arena.take<A>(round_up(f.n.keys, lanes<A>));
            q = arena.take<A>(padded_width<A>(f.n.width));
            dq_sum = arena.take<A>(padded_width<A>(f.n.width));
            widened = arena.take<A>(Projection<A, T, A>{1, 0, f.n.channels}.scratch_count());
        }
    };

    bool gru() const { return n.cell == CellType::gru; }
    bool gated() const { return a.gated; }

    void all_steps(int64_t first, int64_t end, Scratch& x) const {
        for (int64_t b = first; b < end; ++b) {
            A* dh = x.dh + (b - first) * n.hidden;
            if (a.grad_h_n) {
                Projection<A, T>::widen(dh, a.grad_h_n + b * n.hidden, n.hidden);
            } else {
                std::fill_n(dh, n.hidden, A(0));
            }
            std::fill_n(x.dfed + (b - first) * n.channels, n.channels, A(0));
            list_keys(b, b - first, x);
        }
        for (int64_t s = n.steps - 1; s >= 0; --s) {
            x.live.choose(first, end, s, a.lengths, [&](int64_t b) { clear(b, s); });
            if (x.live.count == 0) continue;
            if (n.query == QuerySource::current) attend(s, x);
            cell(s, x);
            if (n.query == QuerySource::previous) attend(s, x);
        }
        for (int64_t b = first; b < end; ++b) {
            write(a.dh0 + b * n.hidden, x.dh + (b - first) * n.hidden, n.hidden);
            if (a.dcontext0) write(a.dcontext0 + b * n.channels, x.dfed + (b - first) * n.channels, n.channels);
        }
    }

    static void write(T* to, const A* from, int64_t size) {
        for (int64_t i = 0; i < size; i += lanes<A>) {
            const int64_t count = lanes_of<A>(size - i);
            store_lanes<A>(to + i, load_lanes<A>(from + i, count), count);
        }
    }

    void list_keys(int64_t b, int64_t row, Scratch& x) const {
        int64_t count = 0;
        A bound = 0;
        for (int64_t t = 0; t < n.keys; ++t) {
            if (a.mask.data && !a.mask.data[b * a.mask.batch + t * a.mask.key]) continue;
            x.keys[row * n.keys + count++] = static_cast<int>(t);
            if (!keys_.values) continue;
            const A of_key = keys_.bound[b * n.keys + t];
            bound = of_key > bound || of_key != of_key ? of_key : bound;
        }
        x.key_counts[row] = count;
        x.key_bounds[row] = bound;
    }

    void clear(int64_t b, int64_t s) const {
        const int64_t row = b * n.steps + s;
        clear_row(a.da, row, n.gates());
        clear_row(a.da_h, row, n.gates());
        clear_row(a.dq, row, n.width);
        clear_row(a.dcontext, row, n.channels);
        clear_row(a.dbeta, row, n.channels);
        clear_row(a.dscores, row, n.keys);
    }

    // From dh of h_s: da, dfed of c' and dh of h_{s-1}, but for what comes to it from this step's query.
    void cell(int64_t s, Scratch& x) const {
        for (int64_t i = 0; i < x.live.count; ++i) {
            const int64_t b = x.live.batch[i], row = x.live.block[i], at = b * n.steps + s;
            gru() ? gru_gradient(b, s, row, x) : lstm_gradient(b, s, row, x);
            x.da.set(row, a.da + at * n.gates());
            if (gru()) x.da_h.set(row, a.da_h + at * n.gates());
        }
        const E* const* da = x.rows(x.da, x.live);
        to_context_(x.sums, da, nullptr, x.live.count, [&](int64_t i, int64_t at, int64_t count, Simd<A> sum) {
            store_lanes<A>(x.dfed + x.live.block[i] * n.channels + at, sum, count);
        });
        const E* const* da_h = gru() ? x.rows(x.da_h, x.live) : da;
        to_hidden_(x.sums, da_h, nullptr, x.live.count, adder(x.dh, n.hidden, x.live));
    }

    // Finish of a product whose sums are added to rows of a block.
    auto adder(A* to, int64_t width, const LiveRows& live) const {
        return [=, &live](int64_t i, int64_t at, int64_t count, Simd<A> sum) {
            A* out = to + live.block[i] * width + at;
            store_lanes<A>(out, load_lanes<A>(out, count) + sum, count);
        };
    }

    Simd<A> upstream(const T* grad, int64_t at, int64_t count) const {
        return grad ? load_lanes<A>(grad + at, count) : Simd<A>{};
    }

    void lstm_gradient(int64_t b, int64_t s, int64_t row, Scratch& x) const {
        const int64_t step = b * n.steps + s;
        const A* before = s ? a.cells + (step - 1) * n.hidden : a.cell0 + b * n.hidden;
        for (int64_t u = 0; u < n.hidden; u += lanes<A>) {
            const int64_t count = lanes_of<A>(n.hidden - u), at = step * n.hidden + u;
            const T* gates = a.gates + step * 4 * n.hidden + u;
            const auto gate = [&](int g) { return load_lanes<A>(gates + g * n.hidden, count); };
            A *dh = x.dh + row * n.hidden + u, *dcell = a.dcell + b * n.hidden + u;
            const auto d =
                lstm_backward(load_lanes<A>(dh, count) + upstream(a.grad_output, at, count),
                              load_lanes<A>(dcell, count), gate(1), gate(0), gate(2), gate(3),
                              load_lanes<A>(a.cells + at, count), load_lanes<A>(before + u, count), false, Peephole<Simd<A>>{});
            T* da = a.da + step * 4 * n.hidden + u;
            store_lanes<A>(da, d.da_i, count);
            store_lanes<A>(da + n.hidden, d.da_f, count);
            store_lanes<A>(da + 2 * n.hidden, d.da_g, count);
            store_lanes<A>(da + 3 * n.hidden, d.da_o, count);
            store_lanes<A>(dcell, d.dc_prev, count);
            store_lanes<A>(dh, Simd<A>{}, count);
        }
    }

    void gru_gradient(int64_t b, int64_t s, int64_t row, Scratch& x) const {
        const int64_t step = b * n.steps + s;
        const T* before = s ? a.output + (step - 1) * n.hidden : a.h0 + b * n.hidden;
        for (int64_t u = 0; u < n.hidden; u += lanes<A>) {
            const int64_t count = lanes_of<A>(n.hidden - u), at = step * n.hidden + u;
            const T* gates = a.gates + step * 3 * n.hidden + u;
            const auto gate = [&](int g) { return load_lanes<A>(gates + g * n.hidden, count); };
            A* dh = x.dh + row * n.hidden + u;
            const auto d =
                gru_backward(load_lanes<A>(dh, count) + upstream(a.grad_output, at, count), gate(0), gate(1), gate(2),
                             load_lanes<A>(a.hidden_n + at, count), load_lanes<A>(before + u, count));
            T *da = a.da + step * 3 * n.hidden + u, *da_h = a.da_h + step * 3 * n.hidden + u;
            for (T* out : {da, da_h}) {
                store_lanes<A>(out, d.da_r, count);
                store_lanes<A>(out + n.hidden, d.da_z, count);
            }
            store_lanes<A>(da + 2 * n.hidden, d.da_n, count);
            store_lanes<A>(da_h + 2 * n.hidden, d.dhidden_n, count);
            store_lanes<A>(dh, d.dh_prev, count);
        }
    }

    // From dfed: dcontext, dbeta, dscores, dq, and what they add to dh of h'.
    void attend(int64_t s, Scratch& x) const {
        for (int64_t i = 0; i < x.live.count; ++i) {
            const int64_t b = x.live.batch[i], row = x.live.block[i], step = b * n.steps + s;
            context_gradient(step, row, x);
            score_gradients(b, s, row, x);
            query_gradient(b, step, row, x);
            x.dq.set(row, a.dq + step * n.width);
            if (gated()) x.dbeta.set(row, a.dbeta + step * n.channels);
        }
        from_attention_(x.sums, x.rows(x.dq, x.live), gated() ? x.other_rows(x.dbeta, x.live) : nullptr, x.live.count,
                        adder(x.dh, n.hidden, x.live));
    }

    void context_gradient(int64_t step, int64_t row, Scratch& x) const {
        for (int64_t d = 0; d < n.channels; d += lanes<A>) {
            const int64_t count = lanes_of<A>(n.channels - d), at = step * n.channels + d;
            Simd<A> grad = load_lanes<A>(x.dfed + row * n.channels + d, count) + upstream(a.grad_context, at, count);
            if (gated()) {
                const Simd<A> beta = load_lanes<A>(a.beta + at, count);
                const Simd<A> dbeta = grad * load_lanes<A>(a.ungated + at, count) * beta * (1 - beta);
                store_lanes<A>(a.dbeta + at, dbeta, count);
                grad = grad * beta;
            }
            store(x.dungated + d, grad);
            store_lanes<A>(a.dcontext + at, grad, count);
        }
    }

    // Keys that may not be attended are left out, not multiplied by their weight of zero: their gradient may be infinite.
    void score_gradients(int64_t b, int64_t s, int64_t row, Scratch& x) const {
        const int64_t step = b * n.steps + s, count = x.key_counts[row];
        const int* keys = x.keys + row * n.keys;
        const Projection<A, T, A> products{
            1, count ? keys[count - 1] + 1 : 0, n.channels, x.dungated, a.value + b * n.keys * n.channels, nullptr,
            x.dalpha};
        products.run(0, products.outputs, x.widened);
        const T* alpha = a.alpha + step * n.keys;
        const T* keep = a.keep.data ? a.keep.data + b * a.keep.batch + s * a.keep.query : nullptr;
        A mean = 0;
        for (int64_t i = 0; i < count; ++i) {
            const int t = keys[i];
            A grad = x.dalpha[t];
            if (a.grad_weights) grad += static_cast<A>(a.grad_weights[step * n.keys + t]);
            if (keep) grad *= static_cast<A>(keep[t * a.keep.key]);
            x.dalpha[t] = grad;
            mean += static_cast<A>(alpha[t]) * grad;
        }
        A* dscores = a.dscores + step * n.keys;
        std::fill_n(dscores, n.keys, A(0));
        for (int64_t i = 0; i < count; ++i) {
            const int t = keys[i];
            dscores[t] = static_cast<A>(alpha[t]) * (x.dalpha[t] - mean);
            x.dalpha[t] = static_cast<A>(n.scale) * dscores[t];
        }
    }

    void query_gradient(int64_t b, int64_t step, int64_t row, Scratch& x) const {
        const int64_t padded = padded_width<A>(n.width);
        const QueryGradient<A> gradient{x.dq_sum, x.q, x.keys + row * n.keys, x.dalpha, x.key_counts[row], padded};
        const T* q = a.queries + step * n.width;
        const auto direct = [&](const auto& act) {
            for (int64_t at = 0; at < padded; at += lanes<A>)
                store(x.q + at, load_lanes<A>(q + at, lanes_of<A>(n.width - at)));
            gradient(Direct<A, std::decay_t<decltype(act)>>{act}, [&](int t, int64_t at) {
                return load_lanes<A>(a.key + (b * n.keys + t) * n.width + at, lanes_of<A>(n.width - at));
            });
        };
        with_activation<A>(n.activation, n.negative_slope, [&](auto act) {
            if constexpr (std::is_same_v<decltype(act), Tanh>) {
                const A bound = exponential_row<2>(x.q, q, n.width, padded);
                const auto within = [&](A range) { return bound <= range && x.key_bounds[row] <= range; };
                const auto key = [&](int t, int64_t at) { return load(keys_.values + (b * n.keys + t) * padded + at); };
                if (within(QuotientRange<A>::paired)) return gradient(FactoredTanh<A, true>{}, key);
                if (within(QuotientRange<A>::single)) return gradient(FactoredTanh<A, false>{}, key);
            }
            direct(act);
        });
        for (int64_t at = 0; at < n.width; at += lanes<A>) {
            const int64_t count = lanes_of<A>(n.width - at);
            store_lanes<A>(a.dq + step * n.width + at, load(x.dq_sum + at) * load_lanes<A>(a.v + at, count), count);
        }
    }
};

template <class T, class A>
void attention_decoder_backward(const AttentionDecoderBackwardArgs<T, A>& a) {
    const DecoderShape& n = a.shape;
    std::optional<OwnedExponentials<A>> own;
    if (n.activation == Activation::tanh && !a.prepared_keys.values) own.emplace(a.key, n.batch * n.keys, n.width);
    const KeyExponentials<A> keys = own ? own->rows : a.prepared_keys;
    with_operands<T, A>([&](auto e) { DecoderBackward<T, A, decltype(e)>(a, keys).run(); });
}
