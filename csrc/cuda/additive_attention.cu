// The additive_* ops on a GPU: they check arguments, allocate outputs and launch the kernels.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>

#include "../additive_attention_checks.h"
#include "additive_attention.cuh"
#include "additive_attention_launch.h"
#include "additive_gradient.cuh"

namespace hybridops {

// ---- launches --------------------------------------------------------------------------------------------------------

namespace {

// (BS,A) of (B,S,A), in one piece
Tensor rows_of(const Tensor& q) { return torch::stable::flatten(dense(q), 0, 1); }

// Of queries q (BS,A), whose rows may be apart, and keys k (B,T,A).
template <class T>
Pairs<T> make_pairs(const Tensor& q, const Tensor& k, const Tensor& v, bool keys_as_rows) {
    const int64_t batch = k.size(0), width = k.size(2);
    const Side<T> queries{data<const T>(q), batch ? q.size(0) / batch : 0, q.stride(0), k.size(1)};
    const Side<T> keys{data<const T>(k), k.size(1), width, 1};
    const bool vectors =
        width % 4 == 0 && queries.row % 4 == 0 && aligned<4>(queries.data, keys.data, data<const T>(v));
    return {keys_as_rows ? keys : queries, keys_as_rows ? queries : keys, data<const T>(v), batch, width, vectors};
}

// Fewer rows than this would leave more than half of a wide tile idle. Then others are read once for each row instead.
constexpr int64_t min_wide_rows = WideTile::rows / 2;

template <class F>
void with_tile(int64_t rows, const F& f) {
    if (rows < min_wide_rows) {
        f(NarrowTile{});
    } else {
        f(WideTile{});
    }
}

template <class Tile, class T, class A, class Act>
void launch_tiles(const Device& device, const ScoreTile<T, A, Act, Tile>& tile, const AttentionTensors& x,
                  const std::optional<Tensor>& score_bias, const AttentionWorkspace& workspace, const Tensor& context,
                  const Tensor& weights) {
    using Kernel = AttentionForward<T, A, Act, Tile>;
    const int64_t batch = tile.pairs.batch, queries = tile.pairs.rows.count, keys = tile.pairs.others.count;
    const int64_t width = x.value.size(2), keys_per_split = Kernel::keys_per_split(batch, queries, keys);
    const int64_t splits = ceil_div(keys, keys_per_split);
    const Broadcast<bool> allowed = broadcast_of<bool>(x.mask);
    constexpr int columns = Kernel::columns_per_thread;
    const bool vectors = width % columns == 0 && aligned<columns>(data<const T>(x.value));
    A *sums = data<A>(workspace.sums), *states = data<A>(workspace.states), *scores = data<A>(workspace.scores);
    device.launch(Kernel{tile,
                         {data<const T>(x.value), width, vectors, allowed, broadcast_of<A>(score_bias),
                          static_cast<A>(x.scale), splits, keys_per_split, scores, data<T>(context), sums, states}},
                  Kernel::blocks(batch, queries, splits));
    if (!states) return;
    const CombineSplits<T, A> combine{batch,
                                      queries,
                                      keys,
                                      width,
                                      splits,
                                      sums,
                                      states,
                                      scores,
                                      allowed,
                                      splits > 1 ? data<T>(context) : nullptr,
                                      data<T>(weights)};
    device.launch(combine, batch * queries * ceil_div(combine.columns(), combine.threads));
}

// How many blocks share the rows of a batch entry in the backward, whatever the activation.
template <class T>
int64_t backward_splits(int64_t batch, int64_t rows, int64_t width) {
    using Kernel = ScoresBackward<T, Accumulator<T>, Tanh>;
    const int64_t blocks = std::max<int64_t>(Kernel::blocks(batch, width, 1), 1);
    return std::min(Kernel::row_tiles(rows), ceil_div(4 * target_blocks, blocks));
}

template <class T, class A>
void launch_backward(const Device& device, const ScoresBackwardArgs<T, A>& args, Activation activation,
                     double negative_slope) {
    with_activation<A>(activation, negative_slope, [&](auto act) {
        using Kernel = ScoresBackward<T, A, decltype(act)>;
        device.launch(Kernel{args, act}, Kernel::blocks(args.pairs.batch, args.pairs.width, args.splits));
    });
}

// Of parts (number,count) acc, for an out whose rows of `width` are `row` apart
template <class T>
void launch_sum(const Device& device, const Tensor& parts, const T* v, int64_t width, T* out, int64_t row) {
    using A = Accumulator<T>;
    const SumParts<T, A> sum{data<const A>(parts), parts.size(0), parts.size(1), v, width, out, row};
    device.launch(sum, ceil_div(sum.count, sum.threads));
}

}  // namespace

AttentionWorkspace attention_workspace(const AttentionTensors& x, int64_t queries, bool need_weights) {
    const int64_t batch = x.k.size(0), keys = x.k.size(1), width = x.value.size(2);
    const ScalarType acc = accumulator_type(x.k);
    std::optional<AttentionWorkspace> made;
    HYBRIDOPS_DISPATCH_DTYPE(x.k.scalar_type(), "attention_workspace", {
        with_tile(queries, [&](auto tile) {
            // or of any other activation
            using Kernel = AttentionForward<scalar_t, Accumulator<scalar_t>, Tanh, decltype(tile)>;
            const int64_t keys_per_split = Kernel::keys_per_split(batch, queries, keys);
            const int64_t splits = ceil_div(keys, keys_per_split);
            const bool has_sums = keys_per_split > Kernel::key_block || splits > 1;
            const bool has_states = splits > 1 || need_weights;
            made = {torch::stable::new_empty(x.k, {has_sums ? splits : 0, batch, queries, width}, acc),
                    torch::stable::new_empty(x.k, {has_states ? splits : 0, batch, queries, Kernel::State::size}, acc),
                    torch::stable::new_empty(x.k, {batch, queries, need_weights ? keys : 0}, acc)};
        });
    });
    return *made;
}

void launch_attention(const Device& device, const AttentionTensors& x, const Tensor& q,
                      const std::optional<Tensor>& score_bias, const AttentionWorkspace& workspace,
                      const Tensor& context, const Tensor& weights) {
    HYBRIDOPS_DISPATCH_DTYPE(q.scalar_type(), "launch_attention", {
        using A = Accumulator<scalar_t>;
        const auto pairs = make_pairs<scalar_t>(q, x.k, x.v, false);
        with_activation<A>(x.activation, x.negative_slope, [&](auto act) {
            with_tile(pairs.rows.count, [&](auto tile) {
                const ScoreTile<scalar_t, A, decltype(act), decltype(tile)> scores{pairs, act};
                launch_tiles(device, scores, x, score_bias, workspace, context, weights);
            });
        });
    });
}

Tensor query_gradient_workspace(const Tensor& k) {
    int64_t splits = 0;
    HYBRIDOPS_DISPATCH_DTYPE(k.scalar_type(), "query_gradient_workspace",
                             { splits = backward_splits<scalar_t>(k.size(0), k.size(1), k.size(2)); });
    return torch::stable::new_empty(k, {splits, k.size(0) * k.size(2)}, accumulator_type(k));
}

void launch_query_gradient(const Device& device, const AttentionTensors& x, const Tensor& q, const Tensor& grad,
                           const Tensor& workspace, const Tensor& dq) {
    HYBRIDOPS_DISPATCH_DTYPE(q.scalar_type(), "launch_query_gradient", {
        using A = Accumulator<scalar_t>;
        const auto pairs = make_pairs<scalar_t>(q, x.k, x.v, true);
        const ScoresBackwardArgs<scalar_t, A> args{pairs,   data<const A>(grad), workspace.size(0),
                                                   nullptr, data<A>(workspace),  nullptr};
        launch_backward(device, args, x.activation, x.negative_slope);
        launch_sum(device, workspace, pairs.v, pairs.width, data<scalar_t>(dq), dq.stride(0));
    });
}

// ---- ops -------------------------------------------------------------------------------------------------------------

namespace {

// Exponentials of prepared keys are ignored: a GPU computes one faster than it reads it.
Tensor additive_scores_forward(const Tensor& q, const Tensor& k, const Tensor& v, int64_t activation,
                               double negative_slope, const std::optional<Tensor>&, const std::optional<Tensor>&) {
    check_pairs("additive_scores_forward", q, k, v, activation);
    const Device device(q);
    Tensor scores = torch::stable::new_empty(q, {q.size(0), q.size(1), k.size(1)}, accumulator_type(q));
    if (scores.numel() == 0) return scores;
    const Tensor qc = rows_of(q), kc = dense(k), vc = dense(v);
    HYBRIDOPS_DISPATCH_DTYPE(q.scalar_type(), "additive_scores_forward", {
        using A = Accumulator<scalar_t>;
        with_activation<A>(static_cast<Activation>(activation), negative_slope, [&](auto act) {
            const auto pairs = make_pairs<scalar_t>(qc, kc, vc, k.size(1) < q.size(1));
            with_tile(pairs.rows.count, [&](auto tile) {
                using Kernel = ScoresForward<scalar_t, A, decltype(act), decltype(tile)>;
                device.launch(Kernel{{pairs, act}, data<A>(scores)}, Kernel::blocks(pairs));
            });
        });
    });
    return scores;
}

std::tuple<Tensor, Tensor> additive_attention_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                      const Tensor& value, const std::optional<Tensor>& mask,
                                                      const std::optional<Tensor>& score_bias, double scale,
                                                      int64_t activation, double negative_slope,
                                                      const std::optional<Tensor>&, const std::optional<Tensor>&,
                                                      bool need_weights) {
    check_attention(q, k, v, value, mask, score_bias, activation);
    const Device device(q);
    Tensor context = torch::stable::new_empty(q, {q.size(0), q.size(1), value.size(2)});
    Tensor weights = torch::stable::new_empty(q, {q.size(0), q.size(1), need_weights ? k.size(1) : 0});
    if (k.size(1) == 0) torch::stable::zero_(context);
    if (k.size(1) == 0 || (context.numel() == 0 && weights.numel() == 0)) return {context, weights};
    const AttentionTensors x{dense(k),      dense(v), dense(value), mask, scale, static_cast<Activation>(activation),
                             negative_slope};
    launch_attention(device, x, rows_of(q), score_bias, attention_workspace(x, q.size(1), need_weights), context,
                     weights);
    return {context, weights};
}

std::tuple<Tensor, Tensor, Tensor> additive_scores_backward(const Tensor& grad, const Tensor& q, const Tensor& k,
                                                            const Tensor& v, int64_t activation,
                                                            double negative_slope) {
    check_scores_backward(grad, q, k, v, activation);
    const Device device(q);
    const int64_t batch = q.size(0), width = q.size(2);
    Tensor dq = torch::stable::new_empty(q, q.sizes()), dk = torch::stable::new_empty(k, k.sizes()),
           dv = torch::stable::new_empty(v, v.sizes());
    if (grad.numel() == 0 || width == 0) {
        for (Tensor* t : {&dq, &dk, &dv}) torch::stable::zero_(*t);
        return {dq, dk, dv};
    }
    const Tensor gc = dense(grad), qc = rows_of(q), kc = dense(k), vc = dense(v);
    const bool keys_as_rows = k.size(1) > q.size(1);  // a thread holds eight rows, so the longer side are the rows
    const Tensor &d_rows = keys_as_rows ? dk : dq, &d_others = keys_as_rows ? dq : dk;
    HYBRIDOPS_DISPATCH_DTYPE(q.scalar_type(), "additive_scores_backward", {
        using A = Accumulator<scalar_t>;
        const auto pairs = make_pairs<scalar_t>(qc, kc, vc, keys_as_rows);
        const int64_t splits = backward_splits<scalar_t>(batch, pairs.rows.count, width);
        const Tensor d_others_parts = torch::stable::new_empty(q, {splits, d_others.numel()}, accumulator_type(q));
        const Tensor dv_parts = torch::stable::new_empty(q, {splits * batch, width}, accumulator_type(q));
        const ScoresBackwardArgs<scalar_t, A> args{
            pairs, data<const A>(gc), splits, data<scalar_t>(d_rows), data<A>(d_others_parts), data<A>(dv_parts)};
        launch_backward(device, args, static_cast<Activation>(activation), negative_slope);
        launch_sum(device, d_others_parts, pairs.v, width, data<scalar_t>(d_others), width);
        launch_sum<scalar_t>(device, dv_parts, nullptr, width, data<scalar_t>(dv), width);
    });
    return {dq, dk, dv};
}

}  // namespace
}  // namespace hybridops

STABLE_TORCH_LIBRARY_IMPL(hybridops, HYBRIDOPS_DISPATCH_KEY, m) {
    m.impl("additive_scores_forward", TORCH_BOX(&hybridops::additive_scores_forward));
    m.impl("additive_attention_forward", TORCH_BOX(&hybridops::additive_attention_forward));
    m.impl("additive_scores_backward", TORCH_BOX(&hybridops::additive_scores_backward));
}
