// What the attention decoder's ops make sure of, on the CPU and on a GPU alike; sizes as in library.cpp.
#pragma once
#include "attention_decoder_args.h"
#include "checks.h"

namespace hybridops {

// As they come to both ops; the references live as long as the call.
struct DecoderTensors {
    const Tensor &key, &value, &v, &h0;
    const std::optional<Tensor>& cell0;
    const Tensor &w_q, &w_c, &w_h;
    const std::optional<Tensor>&w_beta, &mask, &keep, &lengths, &key_exponentials, &key_bounds;
};

// `first` (B,S,·) is the one that the others are held against. Gives the sizes. Where rows may share the memory, B may be a
// multiple of its entries.
inline DecoderShape check_decoder(const Arguments& arguments, const Tensor& first, const DecoderTensors& x,
                                  double scale, int64_t activation, double negative_slope, int64_t cell, int64_t query,
                                  bool may_share_memory) {
    arguments.require(activation >= 0 && activation <= 2, "activation", "be 0, 1 or 2", activation);
    arguments.require(cell == 0 || cell == 1, "cell", "be 0 or 1", cell);
    arguments.require(query == 0 || query == 1, "query", "be 0 or 1", query);
    arguments.dims("key", x.key, 3);
    arguments.dims("value", x.value, 3);
    arguments.dims("h0", x.h0, 2);
    const DecoderShape n{first.size(0),
                         first.size(1),
                         x.key.size(1),
                         x.h0.size(1),
                         x.value.size(2),
                         x.key.size(2),
                         may_share_memory ? x.key.size(0) : first.size(0),
                         static_cast<CellType>(cell),
                         static_cast<QuerySource>(query),
                         scale,
                         static_cast<Activation>(activation),
                         negative_slope};
    const bool lstm = n.cell == CellType::lstm;
    arguments.require(n.entries ? n.batch > 0 && n.batch % n.entries == 0 : n.batch == 0, "key",
                      "have an entry for each row, or for each so many", n.entries);
    arguments.like("key", x.key, {n.entries, n.keys, n.width});
    arguments.like("value", x.value, {n.entries, n.keys, n.channels});
    arguments.like("v", x.v, {n.width});
    arguments.like("h0", x.h0, {n.batch, n.hidden});
    arguments.given_or_not("cell0", x.cell0, lstm, "be given for an LSTM, and for no GRU");
    arguments.sums("cell0", x.cell0, {n.batch, n.hidden});
    arguments.like("w_q", x.w_q, {n.width, n.hidden});
    arguments.like("w_c", x.w_c, {n.gates(), n.channels});
    arguments.like("w_h", x.w_h, {n.gates(), n.hidden});
    arguments.like("w_beta", x.w_beta, {n.channels, n.hidden});
    arguments.booleans("mask", x.mask, {n.entries, n.keys});
    arguments.like("keep", x.keep, {n.batch, n.steps, n.keys});
    arguments.integers("lengths", x.lengths, {n.batch});
    return n;
}

inline DecoderShape check_decoder_forward(const Arguments& arguments, const Tensor& x_gates, const DecoderTensors& x,
                                          const std::optional<Tensor>& context0, const std::optional<Tensor>& b_q,
                                          const std::optional<Tensor>& b_h, const std::optional<Tensor>& b_beta,
                                          const std::optional<Tensor>& score_bias, double scale, int64_t activation,
                                          double negative_slope, int64_t cell, int64_t query) {
    const DecoderShape n = check_decoder(arguments, x_gates, x, scale, activation, negative_slope, cell, query, true);
    arguments.like("x_gates", x_gates, {n.batch, n.steps, n.gates()});
    arguments.like("context0", context0, {n.batch, n.channels});
    arguments.like("b_q", b_q, {n.width});
    arguments.like("b_h", b_h, {n.gates()});
    if (n.cell == CellType::lstm) arguments.given_or_not("b_h", b_h, false, "be in x_gates for an LSTM");
    arguments.like("b_beta", b_beta, {n.channels});
    if (!x.w_beta) arguments.given_or_not("b_beta", b_beta, false, "be None without w_beta");
    arguments.sums("score_bias", score_bias, {n.batch, n.steps, n.keys});
    return n;
}

// What is packed: of the shape, H, D, A and the cell are set.
inline DecoderShape check_decoder_pack(const Tensor& w_q, const Tensor& w_c, const Tensor& w_h,
                                       const std::optional<Tensor>& w_beta, int64_t cell) {
    const Arguments arguments("attention_decoder_pack", "w_q", w_q, {any_size, any_size});
    arguments.require(cell == 0 || cell == 1, "cell", "be 0 or 1", cell);
    arguments.dims("w_c", w_c, 2);
    DecoderShape n{};
    n.hidden = w_q.size(1);
    n.channels = w_c.size(1);
    n.width = w_q.size(0);
    n.cell = static_cast<CellType>(cell);
    arguments.like("w_c", w_c, {n.gates(), n.channels});
    arguments.like("w_h", w_h, {n.gates(), n.hidden});
    arguments.like("w_beta", w_beta, {n.channels, n.hidden});
    return n;
}

// What the forward saved.
struct DecoderSaved {
    const Tensor &output, &gates, &queries, &alpha;
    const std::optional<Tensor>&cells, &hidden_n, &beta, &ungated;
};

inline DecoderShape check_decoder_backward(const Arguments& arguments, const std::optional<Tensor>& grad_output,
                                           const std::optional<Tensor>& grad_h_n,
                                           const std::optional<Tensor>& grad_cell_n,
                                           const std::optional<Tensor>& grad_context,
                                           const std::optional<Tensor>& grad_weights, const DecoderTensors& x,
                                           const DecoderSaved& saved, double scale, int64_t activation,
                                           double negative_slope, int64_t cell, int64_t query) {
    const DecoderShape n =
        check_decoder(arguments, saved.gates, x, scale, activation, negative_slope, cell, query, false);
    const bool lstm = n.cell == CellType::lstm;
    arguments.like("gates", saved.gates, {n.batch, n.steps, n.gates()});
    arguments.like("output", saved.output, {n.batch, n.steps, n.hidden});
    arguments.like("queries", saved.queries, {n.batch, n.steps, n.width});
    arguments.like("alpha", saved.alpha, {n.batch, n.steps, n.keys});
    arguments.given_or_not("cells", saved.cells, lstm, "be given for an LSTM, and for no GRU");
    arguments.sums("cells", saved.cells, {n.batch, n.steps, n.hidden});
    arguments.given_or_not("hidden_n", saved.hidden_n, !lstm, "be given for a GRU, and for no LSTM");
    arguments.like("hidden_n", saved.hidden_n, {n.batch, n.steps, n.hidden});
    const bool gated = x.w_beta.has_value();
    arguments.given_or_not("beta", saved.beta, gated, "be given with w_beta, and not without");
    arguments.like("beta", saved.beta, {n.batch, n.steps, n.channels});
    arguments.given_or_not("ungated", saved.ungated, gated, "be given with w_beta, and not without");
    arguments.like("ungated", saved.ungated, {n.batch, n.steps, n.channels});
    arguments.like("grad_output", grad_output, {n.batch, n.steps, n.hidden});
    arguments.like("grad_h_n", grad_h_n, {n.batch, n.hidden});
    arguments.sums("grad_cell_n", grad_cell_n, {n.batch, n.hidden});
    if (!lstm) arguments.given_or_not("grad_cell_n", grad_cell_n, false, "be None for a GRU");
    arguments.like("grad_context", grad_context, {n.batch, n.steps, n.channels});
    arguments.like("grad_weights", grad_weights, {n.batch, n.steps, n.keys});
    return n;
}

}  // namespace hybridops
