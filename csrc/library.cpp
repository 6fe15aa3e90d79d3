// Every op of the library on one screen. No mathematics here: implementations register from csrc/cpu and csrc/cuda.
//
// These are private ops: the public functions are in hybridops/functional, gradients in hybridops/autograd. Images
// stand channels-last, (Y,X) after (T,B) and before the channels, so that one library call takes all T*B images.
// B batch, T time, C input channels, H hidden channels, (Y,X) space, (KY,KX) kernel; `acc` is float32, or float64 for
// float64 tensors. Gate order f, i, g, o. What is not said to have any strides is in one piece, or is copied so. Each op
// raises where a tensor is not as it says here: checks.h.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(hybridops, m) {
    // x (T,B,Y,X,C) any strides; h0 (B,Y,X,H), c0 (B,Y,X,H) acc; w_ih (4H,C,KY,KX), w_hh (4H,H,KY,KX); bias (4H) acc;
    // peephole (3,H) or (3,Y,X,H) acc; save: 0 nothing, 1 the cells of every step, 2 the gates too; reduced_precision:
    // whether a GPU may multiply float32 as TF32; winograd, on the CPU alone: outputs of the largest tiles allowed, 0 none,
    // 4, 8, 16, the fewer the more exact, of which the fastest is taken (-4, -8, -16: that one, for tests)
    // -> hs (T,B,Y,X,H), cs (T or 1,B,Y,X,H) acc, gates (T or 0,B,Y,X,4H) after their nonlinearity
    m.def(
        "conv_lstm_forward(Tensor x, Tensor? h0, Tensor? c0, Tensor w_ih, Tensor w_hh, Tensor? bias, Tensor? peephole, "
        "int save, bool reduced_precision, int winograd) -> (Tensor, Tensor, Tensor)");
    // grad_hs (T,B,Y,X,H) any strides; grad_hn, grad_cn (B,Y,X,H) acc; gates, cs, c0, w_hh, peephole as above
    // -> da (T,B,Y,X,4H), dh0 (B,Y,X,H) acc (0 elements unless need_dh0), dc0 (B,Y,X,H) acc
    m.def(
        "conv_lstm_backward(Tensor? grad_hs, Tensor? grad_hn, Tensor? grad_cn, Tensor gates, Tensor cs, Tensor? c0, "
        "Tensor w_hh, Tensor? peephole, bool need_dh0, bool reduced_precision, int winograd) -> (Tensor, Tensor, Tensor)");

    // the same where the gates were not saved: they are computed anew from the states of all steps
    m.def(
        "conv_lstm_backward_from_states(Tensor? grad_hs, Tensor? grad_hn, Tensor? grad_cn, Tensor x, Tensor? h0, "
        "Tensor hs, Tensor cs, Tensor? c0, Tensor w_ih, Tensor w_hh, Tensor? bias, Tensor? peephole, bool need_dh0, "
        "bool reduced_precision, int winograd) -> (Tensor, Tensor, Tensor)");

    // What da (T,B,Y,X,4H) means for the factors of W_x * x + W_h * h: written to dx (T,B,Y,X,C), and, for x (T,B,Y,X,C) and
    // h (T,B,Y,X,H) of any strides, added to dw_x (4H,C,KY,KX) acc and dw_h (4H,H,KY,KX) acc; all three are contiguous
    m.def("conv_input_gradient(Tensor da, Tensor weight, bool reduced_precision, int winograd, Tensor(a!) dx) -> ()");
    m.def(
        "conv_weight_gradient(Tensor da, Tensor x, Tensor? h, bool reduced_precision, int winograd, Tensor(a!) dw_x, "
        "Tensor(b!)? dw_h) -> ()");

    // k (B,T,A) -> its exponentials (B,T,width of the processor's vectors) acc, and max|k| (B,T) acc: what the two forward
    // ops below otherwise compute at every call; for tanh, and on the CPU alone
    m.def("additive_prepare_keys(Tensor k) -> (Tensor, Tensor)");
    // q (B,S,A), k (B,T,A), v (A); activation: 0 tanh, 1 relu, 2 leaky_relu -> scores (B,S,T) acc
    m.def(
        "additive_scores_forward(Tensor q, Tensor k, Tensor v, int activation, float negative_slope, "
        "Tensor? key_exponentials, Tensor? key_bounds) -> Tensor");
    // value (B,T,D), mask bool and score_bias acc expanded to (B,S,T) -> context (B,S,D), the values weighted by the softmax
    // of scale * scores + score_bias, and these weights (B,S,T), or (B,S,0) where they are not needed
    m.def(
        "additive_attention_forward(Tensor q, Tensor k, Tensor v, Tensor value, Tensor? mask, Tensor? score_bias, "
        "float scale, int activation, float negative_slope, Tensor? key_exponentials, Tensor? key_bounds, "
        "bool need_weights) -> (Tensor, Tensor)");
    // A step of decoding: attention of query (m B,Q) or (m B,S,Q), which projection (A,Q) and projection_bias (A) project
    // first; v (A) or (1,A); mask expanded to (B,m S,T); on the CPU alone
    // -> context (m B,D) or (m B,S,D), weights likewise, or with 0 in place of T
    m.def(
        "additive_attention_step(Tensor query, Tensor projection, Tensor? projection_bias, Tensor k, Tensor v, "
        "Tensor value, Tensor? mask, float scale, int activation, float negative_slope, Tensor? key_exponentials, "
        "Tensor? key_bounds, bool need_weights) -> (Tensor, Tensor)");
    // grad (B,S,T) acc -> dq (B,S,A), dk (B,T,A), dv (A)
    m.def(
        "additive_scores_backward(Tensor grad, Tensor q, Tensor k, Tensor v, int activation, float negative_slope) -> "
        "(Tensor, Tensor, Tensor)");

    // The weights of attention_decoder_forward as it otherwise packs them at every call, for calls of few steps while they do
    // not change -> bytes, for this instruction set, dtype and these sizes alone; on the CPU alone
    m.def("attention_decoder_pack(Tensor w_q, Tensor w_c, Tensor w_h, Tensor? w_beta, int cell) -> Tensor");
    // All steps of a recurrent decoder with additive attention: hybridops/formulas/attention_decoder.py. G gates, 4 of an
    // LSTM (cell 0; rows i f g o) or 3 of a GRU (1; r z n); H hidden, T positions of the memory, D its width, A that of the
    // attention. x_gates (B,S,GH), key (B,T,A), value (B,T,D), v (A), h0 (B,H), cell0 (B,H) acc of an LSTM, context0 (B,D),
    // which the first step is fed with query 1; w_q (A,H), b_q (A), w_c (GH,D), w_h (GH,H), b_h (GH) of a GRU; w_beta (D,H),
    // b_beta (D) of a context gate; mask (B,T), score_bias (B,S,T) acc, keep (B,S,T), by which weights are multiplied;
    // lengths (B) int64; prepared keys as above and, on the CPU alone, packed weights, in whose place w_* then only give
    // sizes. query: 0 of h_{s-1}, 1 of h_s. All weights any strides. key, value and mask may have fewer entries than B, which then share them,
    // B / entries next to each other
    // -> output (B,S,H), h_n (B,H), cell_n (B,H) acc, context (B,S,D), weights (B,S,T); with `save` cells (B,S,H) acc, gates
    // (B,S,GH) after their nonlinearity, hidden_n (B,S,H) of a GRU, queries (B,S,A), alpha (B,S,T), the weights before
    // keep, where there is one, beta and ungated (B,S,D), the gate and what it multiplies; what there is not has 0 elements
    m.def(
        "attention_decoder_forward(Tensor x_gates, Tensor key, Tensor value, Tensor v, Tensor h0, Tensor? cell0, "
        "Tensor? context0, Tensor w_q, Tensor? b_q, Tensor w_c, Tensor w_h, Tensor? b_h, Tensor? w_beta, "
        "Tensor? b_beta, Tensor? mask, Tensor? score_bias, Tensor? keep, Tensor? lengths, Tensor? key_exponentials, "
        "Tensor? key_bounds, Tensor? packed, float scale, int activation, float negative_slope, int cell, int query, "
        "bool save) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
    // grad_output (B,S,H), grad_h_n (B,H), grad_cell_n (B,H) acc, grad_context (B,S,D), grad_weights (B,S,T); what the
    // forward was given and gave
    // -> da (B,S,GH) of x_gates, da_h (B,S,GH) of W_h h + b_h of a GRU (an LSTM's is da), dq (B,S,A), dcontext (B,S,D) of
    // what the gate multiplies, dscores (B,S,T) acc of scale * scores + score_bias, dbeta (B,S,D) before the sigmoid,
    // dh0 (B,H), dcell0 (B,H) acc, dcontext0 (B,D) with query 1; what there is not has 0 elements
    m.def(
        "attention_decoder_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_cell_n, Tensor? grad_context, "
        "Tensor? grad_weights, Tensor key, Tensor value, Tensor v, Tensor h0, Tensor? cell0, Tensor w_q, Tensor w_c, "
        "Tensor w_h, Tensor? w_beta, Tensor? mask, Tensor? keep, Tensor? lengths, Tensor? key_exponentials, "
        "Tensor? key_bounds, Tensor output, Tensor? cells, Tensor gates, Tensor? hidden_n, Tensor queries, "
        "Tensor alpha, Tensor? beta, Tensor? ungated, float scale, int activation, float negative_slope, int cell, "
        "int query) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");

    // weight (N,K), any strides -> bytes: it packed for products of few rows, and what that is good for; on the CPU alone
    m.def("linear_pack(Tensor weight) -> Tensor");
    // x (M,K), packed of a weight (N,K), bias (N) -> x W^T + b (M,N)
    m.def("linear_packed(Tensor x, Tensor packed, Tensor? bias, int outputs) -> Tensor");
    // the `count` largest of log softmax of that, (M,count) acc, and where they are, int64
    m.def("linear_likeliest(Tensor x, Tensor packed, Tensor? bias, int outputs, int count) -> (Tensor, Tensor)");

    // the instruction set the CPU kernels run on: 0 portable, 1 avx2, 2 avx512, 3 avx512_bf16, 4 amx_bf16
    m.def("cpu_isa() -> int");
}
