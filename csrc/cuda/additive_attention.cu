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
#include "additive_gradient.cuh"

namespace hybridops {
namespace {

template <class T>
Pairs<T> make_pairs(const Tensor& q, const Tensor& k, const Tensor& v, bool keys_as_rows) {
    const Side<T> queries{data<const T>(q), q.size(1), k.size(1)}, keys{data<const T>(k), k.size(1), 1};
    const bool vectors = q.size(2) % 4 == 0 && aligned<4>(queries.data, keys.data, data<const T>(v));
    return {
        keys_as_rows ? keys : queries, keys_as_rows ? queries : keys, data<const T>(v), q.size(0), q.size(2), vectors};
}

// Fewer rows than this would leave more than half of a wide tile idle. Then others are read once for each row instead.
constexpr int64_t min_wide_rows = WideTile::rows / 2;

// Exponentials of prepared keys are ignored: a GPU computes one faster than it reads it.
Tensor additive_scores_forward(const Tensor& q, const Tensor& k, const Tensor& v, int64_t activation,
                               double negative_slope, const std::optional<Tensor>&, const std::optional<Tensor>&) {
    check_pairs("additive_scores_forward", q, k, v, activation);
    const Device device(q);
    Tensor scores = torch::stable::new_empty(q, {q.size(0), q.size(1), k.size(1)}, accumulator_type(q));
    if (scores.numel() == 0) return scores;
    const Tensor qc = dense(q), kc = dense(k), vc = dense(v);
    HYBRIDOPS_DISPATCH_DTYPE(q.scalar_type(), "additive_scores_forward", {
        using A = Accumulator<scalar_t>;
        with_activation<A>(static_cast<Activation>(activation), negative_slope, [&](auto act) {
            const auto pairs = make_pairs<scalar_t>(qc, kc, vc, k.size(1) < q.size(1));
            const auto launch = [&](auto tile) {
                using Kernel = ScoresForward<scalar_t, A, decltype(act), decltype(tile)>;
                device.launch(Kernel{{pairs, act}, data<A>(scores)}, Kernel::blocks(pairs));
            };
            if (pairs.rows.count < min_wide_rows) {
                launch(NarrowTile{});
            } else {
                launch(WideTile{});
            }
        });
    });
    return scores;
}

// Computes the context and, unless it is empty, the weights.
template <class Tile, class T, class A, class Act>
void launch_attention(const Device& device, const ScoreTile<T, A, Act, Tile>& tile, const Tensor& value,
                      const std::optional<Tensor>& mask, const std::optional<Tensor>& score_bias, double scale,
                      const Tensor& context, const Tensor& weights) {
    using torch::stable::new_empty;
    using Kernel = AttentionForward<T, A, Act, Tile>;
    const int64_t batch = context.size(0), queries = context.size(1), width = context.size(2), keys = value.size(1);
    const int64_t keys_per_split = Kernel::keys_per_split(tile.pairs), splits = ceil_div(keys, keys_per_split);
    const bool needs_partial_sums = keys_per_split > Kernel::key_block || splits > 1,
               needs_combine = splits > 1 || weights.numel() > 0;
    const ScalarType acc = accumulator_type(value);
    const Tensor sums = new_empty(value, {needs_partial_sums ? splits : 0, batch, queries, width}, acc);
    const Tensor states = new_empty(value, {needs_combine ? splits : 0, batch, queries, Kernel::State::size}, acc);
    const Tensor scores = new_empty(value, weights.sizes(), acc);
    const Broadcast<bool> allowed = broadcast_of<bool>(mask);
    constexpr int columns = Kernel::columns_per_thread;
    const bool vectors = width % columns == 0 && aligned<columns>(data<const T>(value));
    device.launch(
        Kernel{tile,
               {data<const T>(value), width, vectors, allowed, broadcast_of<A>(score_bias), static_cast<A>(scale),
                splits, keys_per_split, data<A>(scores), data<T>(context), data<A>(sums), data<A>(states)}},
        Kernel::blocks(tile.pairs, splits));
    if (!needs_combine) return;
    const CombineSplits<T, A> combine{batch,
                                      queries,
                                      keys,
                                      width,
                                      splits,
                                      data<const A>(sums),
                                      data<const A>(states),
                                      data<const A>(scores),
                                      allowed,
                                      splits > 1 ? data<T>(context) : nullptr,
                                      data<T>(weights)};
    device.launch(combine, batch * queries * ceil_div(combine.columns(), combine.threads));
}

std::tuple<Tensor, Tensor> additive_attention_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                      const Tensor& value, const std::optional<Tensor>& mask,
                                                      const std::optional<Tensor>& score_bias, double scale,
                                                      int64_t activation, double negative_slope,
                                                      const std::optional<Tensor>&, const std::optional<Tensor>&,
                                                      bool need_weights) {
    using torch::stable::new_empty;
    check_attention(q, k, v, value, mask, score_bias, activation);
    const Device device(q);
    Tensor context = new_empty(q, {q.size(0), q.size(1), value.size(2)});
    Tensor weights = new_empty(q, {q.size(0), q.size(1), need_weights ? k.size(1) : 0});
    if (k.size(1) == 0) torch::stable::zero_(context);
    if (k.size(1) == 0 || (context.numel() == 0 && weights.numel() == 0)) return {context, weights};
    const Tensor qc = dense(q), kc = dense(k), vc = dense(v), values = dense(value);
    HYBRIDOPS_DISPATCH_DTYPE(q.scalar_type(), "additive_attention_forward", {
        using A = Accumulator<scalar_t>;
        const auto pairs = make_pairs<scalar_t>(qc, kc, vc, false);
        with_activation<A>(static_cast<Activation>(activation), negative_slope, [&](auto act) {
            using Act = decltype(act);
            if (q.size(1) < min_wide_rows) {
                const ScoreTile<scalar_t, A, Act, NarrowTile> tile{pairs, act};
                launch_attention(device, tile, values, mask, score_bias, scale, context, weights);
            } else {
                const ScoreTile<scalar_t, A, Act, WideTile> tile{pairs, act};
                launch_attention(device, tile, values, mask, score_bias, scale, context, weights);
            }
        });
    });
    return {context, weights};
}

std::tuple<Tensor, Tensor, Tensor> additive_scores_backward(const Tensor& grad, const Tensor& q, const Tensor& k,
                                                            const Tensor& v, int64_t activation,
                                                            double negative_slope) {
    using torch::stable::new_empty;
    check_scores_backward(grad, q, k, v, activation);
    const Device device(q);
    const int64_t batch = q.size(0), width = q.size(2);
    Tensor dq = new_empty(q, q.sizes()), dk = new_empty(k, k.sizes()), dv = new_empty(v, v.sizes());
    if (grad.numel() == 0 || width == 0) {
        for (Tensor* t : {&dq, &dk, &dv}) torch::stable::zero_(*t);
        return {dq, dk, dv};
    }
    const Tensor gc = dense(grad), qc = dense(q), kc = dense(k), vc = dense(v);
    const bool keys_as_rows = k.size(1) > q.size(1);  // a thread holds eight rows, so the longer side are the rows
    const Tensor &d_rows = keys_as_rows ? dk : dq, &d_others = keys_as_rows ? dq : dk;
    HYBRIDOPS_DISPATCH_DTYPE(q.scalar_type(), "additive_scores_backward", {
        using A = Accumulator<scalar_t>;
        with_activation<A>(static_cast<Activation>(activation), negative_slope, [&](auto act) {
            using Kernel = ScoresBackward<scalar_t, A, decltype(act)>;
            using Sum = SumParts<scalar_t, A>;
            const auto pairs = make_pairs<scalar_t>(qc, kc, vc, keys_as_rows);
            const int64_t splits =
                std::min(Kernel::row_tiles(pairs), ceil_div(4 * target_blocks, Kernel::blocks(pairs, 1)));
            const int64_t others = batch * pairs.others.count * width;
            Tensor d_others_parts = new_empty(q, {splits, others}, accumulator_type(q));
            Tensor dv_parts = new_empty(q, {splits * batch, width}, accumulator_type(q));
            device.launch(Kernel{{pairs, data<const A>(gc), splits, data<scalar_t>(d_rows), data<A>(d_others_parts),
                                  data<A>(dv_parts)},
                                 act},
                          Kernel::blocks(pairs, splits));
            device.launch(Sum{data<const A>(d_others_parts), splits, others, pairs.v, width, data<scalar_t>(d_others)},
                          ceil_div(others, Sum::threads));
            device.launch(Sum{data<const A>(dv_parts), splits * batch, width, nullptr, width, data<scalar_t>(dv)},
                          ceil_div(width, Sum::threads));
        });
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
