"""Modules as they stand in training scripts: documents 001, and other projects' stated anew."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F

# ------------------------------------------------------------------------------- document 001, pasted as it stands


class ConvLSTMCell(nn.Module):
    def __init__(self, input_dim, hidden_dim, kernel_size):
        super(ConvLSTMCell, self).__init__()  # noqa: UP008
        self.hidden_dim = hidden_dim
        padding = kernel_size // 2

        # A single convolution to compute all gate values at once
        self.conv = nn.Conv2d(
            in_channels=input_dim + hidden_dim,
            out_channels=4 * hidden_dim,  # 4 gates
            kernel_size=kernel_size,
            padding=padding,
        )

    def forward(self, x_t, states):
        h_prev, c_prev = states

        # Concatenate along the channel dimension
        combined = torch.cat([x_t, h_prev], dim=1)
        gate_values = self.conv(combined)

        f_t_val, i_t_val, g_t_val, o_t_val = torch.chunk(gate_values, 4, dim=1)

        f_t = torch.sigmoid(f_t_val)
        i_t = torch.sigmoid(i_t_val)
        g_t = torch.tanh(g_t_val)
        o_t = torch.sigmoid(o_t_val)

        c_t = (f_t * c_prev) + (i_t * g_t)
        h_t = o_t * torch.tanh(c_t)

        return h_t, c_t


class Attention(nn.Module):
    def __init__(self, hidden_dim):
        super().__init__()
        # A linear layer to align the encoder and decoder hidden states
        self.attn = nn.Linear(hidden_dim * 2, hidden_dim)
        self.v = nn.Linear(hidden_dim, 1, bias=False)

    def forward(self, hidden, encoder_outputs):
        # hidden = [batch size, hid dim]
        # encoder_outputs = [batch size, src len, hid dim]
        src_len = encoder_outputs.shape[1]

        # Repeat decoder hidden state src_len times
        hidden = hidden.unsqueeze(1).repeat(1, src_len, 1)

        # Calculate energy
        energy = torch.tanh(self.attn(torch.cat((hidden, encoder_outputs), dim=2)))

        # Get attention scores
        attention = self.v(energy).squeeze(2)

        return F.softmax(attention, dim=1)


# --------------------------------------------------------------------- ConvLSTMs of other projects, stated anew


class NdrplzCell(nn.Module):
    """One convolution, gates i, f, o, g; the state is called cur_state."""

    def __init__(self, channels, hidden, kernel, bias=True):
        super().__init__()
        self.conv = nn.Conv2d(channels + hidden, 4 * hidden, kernel, padding="same", bias=bias)
        self.hidden = hidden

    def forward(self, input_tensor, cur_state):
        h, c = cur_state
        i, f, o, g = self.conv(torch.cat([input_tensor, h], 1)).split(self.hidden, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class Ndrplz(nn.Module):
    """A stack: states are never accepted, all layers or the last come back as lists."""

    def __init__(self, channels, hiddens, kernel, batch_first=False, return_all_layers=False):
        super().__init__()
        self.batch_first, self.return_all_layers = batch_first, return_all_layers
        inputs = [channels, *hiddens[:-1]]
        self.cell_list = nn.ModuleList(NdrplzCell(*dims, kernel) for dims in zip(inputs, hiddens, strict=True))

    def forward(self, input_tensor, hidden_state=None):
        if hidden_state is not None:
            raise NotImplementedError
        x = input_tensor if self.batch_first else input_tensor.transpose(0, 1)
        outputs, states = [], []
        for cell in self.cell_list:
            h = c = x.new_zeros(len(x), cell.hidden, *x.shape[3:])
            steps = []
            for t in range(x.shape[1]):
                h, c = cell(input_tensor=x[:, t], cur_state=[h, c])
                steps.append(h)
            x = torch.stack(steps, 1)
            outputs.append(x)
            states.append([h, c])
        return (outputs, states) if self.return_all_layers else (outputs[-1:], states[-1:])


class OpenSTLCell(nn.Module):
    """Two convolutions without biases, gates i, f, g, o; two more that are of no use."""

    def __init__(self, channels, hidden, kernel, norm_size=None):
        super().__init__()
        self.hidden = hidden

        def conv(inputs, outputs):
            layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
            return nn.Sequential(layer, *([nn.LayerNorm([outputs, *norm_size])] if norm_size else []))

        self.conv_x, self.conv_h = conv(channels, 4 * hidden), conv(hidden, 4 * hidden)
        self.conv_o = conv(2 * hidden, hidden)
        self.conv_last = nn.Conv2d(2 * hidden, hidden, 1, bias=False)

    def forward(self, x_t, h_t, c_t):
        i, f, g, o = (self.conv_x(x_t) + self.conv_h(h_t)).split(self.hidden, 1)
        c_new = torch.sigmoid(f) * c_t + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c_new), c_new


class OpenSTL(nn.Module):
    """Time outside, layers inside; behind the given frames its own predictions are fed back."""

    def __init__(self, channels, hiddens, kernel, given, norm_size=None):
        super().__init__()
        self.given = given
        inputs = [channels, *hiddens[:-1]]
        self.cell_list = nn.ModuleList(OpenSTLCell(*d, kernel, norm_size) for d in zip(inputs, hiddens, strict=True))
        self.conv_last = nn.Conv2d(hiddens[-1], channels, 1, bias=False)

    def forward(self, frames):
        state = [frames.new_zeros(2, len(frames), cell.hidden, *frames.shape[3:]).unbind() for cell in self.cell_list]
        predictions = []
        for t in range(frames.shape[1]):
            x = frames[:, t] if t < self.given else predictions[-1]
            for layer, cell in enumerate(self.cell_list):
                state[layer] = cell(x, *state[layer])
                x = state[layer][0]
            predictions.append(self.conv_last(x))
        return torch.stack(predictions, 1)


class SladewinterCell(nn.Module):
    """Peepholes that are parameters, the output's on the new cell; gates i, f, g, o."""

    def __init__(self, channels, hidden, kernel, frame_size, old_cell=False):
        super().__init__()
        self.conv = nn.Conv2d(channels + hidden, 4 * hidden, kernel, padding=kernel // 2)
        self.W_ci, self.W_co, self.W_cf = (nn.Parameter(torch.rand(hidden, *frame_size)) for _ in range(3))
        self.old_cell = old_cell

    def forward(self, X, H_prev, C_prev):
        i, f, g, o = self.conv(torch.cat([X, H_prev], 1)).chunk(4, 1)
        C = torch.sigmoid(f + self.W_cf * C_prev) * C_prev + torch.sigmoid(i + self.W_ci * C_prev) * torch.tanh(g)
        return torch.sigmoid(o + self.W_co * (C_prev if self.old_cell else C)) * torch.tanh(C), C


class Sladewinter(nn.Module):
    """Channels before time; only the output comes back."""

    def __init__(self, channels, hidden, kernel, frame_size):
        super().__init__()
        self.hidden, self.convLSTMcell = hidden, SladewinterCell(channels, hidden, kernel, frame_size)

    def forward(self, X):
        H = C = X.new_zeros(len(X), self.hidden, *X.shape[3:])
        output = X.new_zeros(len(X), self.hidden, *X.shape[2:])
        for t in range(X.shape[2]):
            H, C = self.convLSTMcell(X[:, :, t], H, C)
            output[:, :, t] = H
        return output


class Jhhuang96(nn.Module):
    """Time first, a number of steps that has to be told, states as a pair; with or without its norm."""

    def __init__(self, channels, hidden, kernel, norm=False):
        super().__init__()
        self.hidden = hidden
        conv = nn.Conv2d(channels + hidden, 4 * hidden, kernel, padding=(kernel - 1) // 2)
        self.conv = nn.Sequential(conv, *([nn.GroupNorm(2, 4 * hidden)] if norm else []))

    def forward(self, inputs=None, hidden_state=None, seq_len=10):
        if hidden_state is None:
            zeros = torch.zeros(inputs.size(1), self.hidden, *inputs.shape[3:], dtype=inputs.dtype)
            hidden_state = zeros, zeros
        h, c = hidden_state
        outputs = []
        for index in range(seq_len):
            x = torch.zeros_like(h[:, :1]).expand(-1, 3, -1, -1) if inputs is None else inputs[index]
            i, f, g, o = self.conv(torch.cat([x, h], 1)).split(self.hidden, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs), (h, c)


class Cell1d(nn.Module):
    """Of one's own: two convolutions with a bias each, the state comes back as a pair beside the output."""

    def __init__(self, channels, hidden, kernel):
        super().__init__()
        self.of_x = nn.Conv1d(channels, 4 * hidden, kernel, padding=kernel // 2)
        self.of_h = nn.Conv1d(hidden, 4 * hidden, kernel, padding=kernel // 2)

    def forward(self, x, state=None):
        h, c = state
        f, o, i, g = (self.of_x(x) + self.of_h(h)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return h, [h, c]


class Cell3d(nn.Module):
    def __init__(self, channels, hidden, kernel):
        super().__init__()
        self.gates = nn.Conv3d(channels + hidden, 4 * hidden, kernel, padding=kernel // 2)

    def forward(self, x, state):
        f, i, g, o = self.gates(torch.cat([x, state[0]], 1)).chunk(4, 1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return {"h": o.sigmoid() * c.tanh(), "c": c}


# ----------------------------------------------------------- additive attentions of other projects, stated anew


class Bentrevett(nn.Module):
    """Keys time first; queries and keys of different widths; optionally a mask."""

    def __init__(self, enc_hid_dim, dec_hid_dim):
        super().__init__()
        self.attn = nn.Linear(2 * enc_hid_dim + dec_hid_dim, dec_hid_dim)
        self.v = nn.Linear(dec_hid_dim, 1, bias=False)

    def forward(self, hidden, encoder_outputs, mask=None):
        keys = encoder_outputs.permute(1, 0, 2)
        query = hidden.unsqueeze(1).expand(-1, keys.shape[1], -1)
        attention = self.v(torch.tanh(self.attn(torch.cat([query, keys], 2)))).squeeze(2)
        if mask is not None:
            attention = attention.masked_fill(mask == 0, -1e10)
        return torch.softmax(attention, 1)


class Tutorial(nn.Module):
    """PyTorch's sequence to sequence tutorial: one query (B, 1, H), context and weights come back."""

    def __init__(self, hidden_size):
        super().__init__()
        self.Wa, self.Ua = nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, hidden_size)
        self.Va = nn.Linear(hidden_size, 1)

    def forward(self, query, keys):
        scores = self.Va(torch.tanh(self.Wa(query) + self.Ua(keys)))
        weights = F.softmax(scores.squeeze(2).unsqueeze(1), dim=-1)
        return torch.bmm(weights, keys), weights


class AllenNLP(nn.Module):
    def __init__(self, vector_dim, matrix_dim):
        super().__init__()
        self._w_matrix = nn.Parameter(torch.rand(vector_dim, vector_dim))
        self._u_matrix = nn.Parameter(torch.rand(matrix_dim, vector_dim))
        self._v_vector = nn.Parameter(torch.rand(vector_dim, 1))

    def forward(self, vector, matrix):
        intermediate = (vector @ self._w_matrix).unsqueeze(1) + matrix @ self._u_matrix
        return torch.softmax((torch.tanh(intermediate) @ self._v_vector).squeeze(2), dim=1)


class Gnmt(nn.Module):
    """Any number of queries, a normalised v; the mask is set beforehand."""

    def __init__(self, query_size, key_size, units):
        super().__init__()
        self.linear_q = nn.Linear(query_size, units, bias=False)
        self.linear_k = nn.Linear(key_size, units, bias=False)
        self.linear_att = nn.Parameter(torch.rand(units))
        self.normalize_scalar = nn.Parameter(torch.rand(1))
        self.normalize_bias = nn.Parameter(torch.rand(units))
        self.mask = None

    def set_mask(self, mask):
        self.mask = mask

    def forward(self, query, keys):
        v = self.linear_att / self.linear_att.norm() * self.normalize_scalar
        sums = self.linear_q(query).unsqueeze(2) + self.linear_k(keys).unsqueeze(1) + self.normalize_bias
        scores = torch.tanh(sums) @ v
        if self.mask is not None:
            scores = scores.masked_fill(self.mask.unsqueeze(1), -65504.0)
        weights = F.softmax(scores, dim=-1)
        return torch.bmm(weights, keys), weights


class Captioner(nn.Module):
    """Image captioning: keys come first, relu, biases everywhere."""

    def __init__(self, encoder_dim, decoder_dim, attention_dim):
        super().__init__()
        self.encoder_att = nn.Linear(encoder_dim, attention_dim)
        self.decoder_att = nn.Linear(decoder_dim, attention_dim)
        self.full_att = nn.Linear(attention_dim, 1)

    def forward(self, encoder_out, decoder_hidden):
        sums = self.encoder_att(encoder_out) + self.decoder_att(decoder_hidden).unsqueeze(1)
        alpha = torch.softmax(self.full_att(torch.relu(sums)).squeeze(2), dim=1)
        return (encoder_out * alpha.unsqueeze(2)).sum(dim=1), alpha


class Torchgeo(Ndrplz):
    """ndrplz's, but that it takes states, and gives tuples of them."""

    def forward(self, input_tensor, hidden_state=None):
        x = input_tensor if self.batch_first else input_tensor.transpose(0, 1)
        outputs, states = [], []
        for layer, cell in enumerate(self.cell_list):
            zeros = x.new_zeros(len(x), cell.hidden, *x.shape[3:])
            h, c = (zeros, zeros) if hidden_state is None else hidden_state[layer]
            steps = []
            for x_t in x.unbind(1):
                h, c = cell(x_t, (h, c))
                steps.append(h)
            x = torch.stack(steps, 1)
            outputs.append(x)
            states.append((h, c))
        return (outputs, states) if self.return_all_layers else (outputs[-1:], states[-1:])


class PeepholeCell(nn.Module):
    """Gates i, f, o, g; peepholes, if any, of a shape that broadcasts."""

    def __init__(self, channels, hidden, kernel, peephole=None):
        super().__init__()
        self.hidden, self.peephole, self.activation = hidden, peephole, torch.tanh
        self.conv = nn.Conv2d(channels + hidden, 4 * hidden, kernel, padding=kernel // 2)
        if peephole is not None:
            self.Wci, self.Wcf, self.Wco = (nn.Parameter(torch.rand(peephole)) for _ in range(3))

    def forward(self, input, prev_state):
        h, c = prev_state
        i, f, o, g = torch.split(self.conv(torch.cat((input, h), 1)), self.hidden, 1)
        p_i, p_f, p_o = (0, 0, 0) if self.peephole is None else (self.Wci, self.Wcf, self.Wco)
        c = torch.sigmoid(f + p_f * c) * c + torch.sigmoid(i + p_i * c) * self.activation(g)
        return torch.sigmoid(o + p_o * c) * self.activation(c), c


class Aserdega(nn.Module):
    """The output of the last layer, the states of all, which have to be given; metnet's is the same."""

    def __init__(self, channels, hidden, kernel, layers=2, batch_first=False, peephole=None):
        super().__init__()
        self.batch_first = batch_first
        inputs = [channels, *[hidden] * (layers - 1)]
        self.cell_list = nn.ModuleList(PeepholeCell(size, hidden, kernel, peephole) for size in inputs)

    def forward(self, input, hidden_state):
        frames, states = torch.unbind(input, int(self.batch_first)), []
        for cell, (h, c) in zip(self.cell_list, hidden_state, strict=True):
            outputs = []
            for frame in frames:
                h, c = cell(frame, [h, c])
                outputs.append(h)
            frames = outputs
            states.append((h, c))
        return torch.stack(frames, int(self.batch_first)), states


class Hzzone(nn.Module):
    """Peepholes that are plain tensors, or parameters; time first, and so many steps as are told."""

    def __init__(self, channels, hidden, kernel, size, parameters=False):
        super().__init__()
        self._conv = nn.Conv2d(channels + hidden, 4 * hidden, kernel, padding=kernel // 2)
        made = [torch.rand(1, hidden, *size) for _ in range(3)]
        self.Wci, self.Wcf, self.Wco = map(nn.Parameter, made) if parameters else made

    def forward(self, inputs=None, states=None, seq_len=5):
        h, c = states
        outputs = []
        for x in inputs[:seq_len]:
            i, f, g, o = self._conv(torch.cat([x, h], 1)).chunk(4, 1)
            i, f = torch.sigmoid(i + self.Wci * c), torch.sigmoid(f + self.Wcf * c)
            c = f * c + i * torch.tanh(g)
            h = torch.sigmoid(o + self.Wco * c) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs), (h, c)


class BentrevettFc(nn.Module):
    def __init__(self, keys, query):
        super().__init__()
        self.attn_fc, self.v_fc = nn.Linear(query + keys, query), nn.Linear(query, 1, bias=False)

    def forward(self, hidden, encoder_outputs):
        keys = encoder_outputs.transpose(0, 1)
        query = hidden.unsqueeze(1).repeat(1, keys.shape[1], 1)
        return F.softmax(self.v_fc(torch.tanh(self.attn_fc(torch.cat([query, keys], 2)))).squeeze(2), 1)


class OpenNMT(nn.Module):
    """One query or several, lengths, and a layer behind the attention."""

    def __init__(self, dim):
        super().__init__()
        self.attn_func = "softmax"
        self.linear_context, self.linear_query = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.v, self.linear_out = nn.Linear(dim, 1, bias=False), nn.Linear(2 * dim, dim)

    def forward(self, source, memory_bank, src_len=None, coverage=None):
        query = source.unsqueeze(1) if source.dim() == 2 else source
        energy = self.linear_query(query)[:, :, None] + self.linear_context(memory_bank)[:, None]
        align = self.v(torch.tanh(energy)).squeeze(3)
        if src_len is not None:
            mask = torch.arange(align.shape[2], device=align.device)[None] < src_len[:, None]
            align = align.masked_fill(~mask[:, None], -float("inf"))
        weights = F.softmax(align, -1)
        hidden = self.linear_out(torch.cat([torch.bmm(weights, memory_bank), query], 2))
        return (hidden.squeeze(1), weights.squeeze(1)) if source.dim() == 2 else (hidden, weights)


class JoeyNMT(nn.Module):
    """The keys are projected before."""

    def __init__(self, query, key, hidden):
        super().__init__()
        self.key_layer, self.query_layer = nn.Linear(key, hidden, bias=False), nn.Linear(query, hidden, bias=False)
        self.energy_layer = nn.Linear(hidden, 1, bias=False)
        self.proj_keys = self.proj_query = None

    def compute_proj_keys(self, keys):
        self.proj_keys = self.key_layer(keys)

    def forward(self, query, mask, values):
        self.proj_query = self.query_layer(query)
        scores = self.energy_layer(torch.tanh(self.proj_query + self.proj_keys)).squeeze(2).unsqueeze(1)
        scores = torch.where(mask > 0, scores, scores.new_full([1], -torch.inf))
        alphas = F.softmax(scores, dim=-1)
        return alphas @ values, alphas


class D2l(nn.Module):
    """Keys and values apart, valid lengths, dropout of the weights, which are kept."""

    def __init__(self, query, key, hidden, dropout=0.0):
        super().__init__()
        self.W_k, self.W_q = nn.Linear(key, hidden, bias=False), nn.Linear(query, hidden, bias=False)
        self.w_v, self.dropout = nn.Linear(hidden, 1, bias=False), nn.Dropout(dropout)

    def forward(self, queries, keys, values, valid_lens):
        sums = self.W_q(queries).unsqueeze(2) + self.W_k(keys).unsqueeze(1)
        scores = self.w_v(torch.tanh(sums)).squeeze(-1)
        if valid_lens is not None:
            lengths = valid_lens.repeat_interleave(scores.shape[1]) if valid_lens.dim() == 1 else valid_lens.reshape(-1)
            mask = torch.arange(scores.shape[2])[None] < lengths[:, None]
            scores = scores.masked_fill(~mask.reshape(scores.shape), -1e6)
        self.attention_weights = F.softmax(scores, dim=-1)
        return torch.bmm(self.dropout(self.attention_weights), values)


class KamoNaoyuki(nn.Module):
    """Called as nn.LSTM is; weights that are parameters of its own."""

    def __init__(self, channels, hidden, kernel, layers=2, batch_first=False):
        super().__init__()
        self.layers, self.batch_first, self.padding = layers, batch_first, kernel // 2
        for layer in range(layers):
            inputs = hidden if layer else channels
            for name, shape in {"ih": inputs, "hh": hidden}.items():
                weight = nn.Parameter(torch.randn(4 * hidden, shape, kernel, kernel) / 10)
                self.register_parameter(f"weight_{name}_l{layer}", weight)
                self.register_parameter(f"bias_{name}_l{layer}", nn.Parameter(torch.randn(4 * hidden)))

    def forward(self, input, hx=None):
        x = input if self.batch_first else input.transpose(0, 1)
        states = []
        for layer in range(self.layers):
            of_x, of_h = (
                (getattr(self, f"weight_{name}_l{layer}"), getattr(self, f"bias_{name}_l{layer}"))
                for name in ("ih", "hh")
            )
            h = c = x.new_zeros(len(x), len(of_h[1]) // 4, *x.shape[3:])
            h, c = (h, c) if hx is None else (hx[0][layer], hx[1][layer])
            steps = []
            for x_t in x.unbind(1):
                sums = F.conv2d(x_t, *of_x, padding=self.padding) + F.conv2d(h, *of_h, padding=self.padding)
                i, f, g, o = sums.chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                steps.append(h)
            x = torch.stack(steps, 1)
            states.append((h, c))
        h, c = map(torch.stack, zip(*states, strict=True))
        return (x if self.batch_first else x.transpose(0, 1).contiguous()), (h, c)


class SpeechBrain(nn.Module):
    """Keys and mask are kept from the first call to a reset."""

    def __init__(self, enc_dim, dec_dim, attn_dim, output_dim, scaling=1.0):
        super().__init__()
        self.mlp_enc, self.mlp_dec = nn.Linear(enc_dim, attn_dim), nn.Linear(dec_dim, attn_dim)
        self.mlp_attn, self.mlp_out = nn.Linear(attn_dim, 1, bias=False), nn.Linear(enc_dim, output_dim)
        self.scaling = scaling
        self.reset()

    def reset(self):
        self.enc_len = self.precomputed_enc_h = self.mask = None

    def forward(self, enc_states, enc_len, dec_states):
        if self.precomputed_enc_h is None:
            self.precomputed_enc_h = self.mlp_enc(enc_states)
            self.mask = torch.arange(enc_states.shape[1])[None] < enc_len[:, None]
        sums = self.precomputed_enc_h + self.mlp_dec(dec_states.unsqueeze(1))
        attn = self.mlp_attn(torch.tanh(sums)).squeeze(-1).masked_fill(self.mask == 0, -torch.inf)
        attn = F.softmax(attn * self.scaling, -1)
        return self.mlp_out(torch.bmm(attn.unsqueeze(1), enc_states).squeeze(1)), attn


class ESPnet(nn.Module):
    """The same, and the context is of the keys that are kept."""

    def __init__(self, eprojs, dunits, att_dim):
        super().__init__()
        self.mlp_enc, self.mlp_dec = nn.Linear(eprojs, att_dim), nn.Linear(dunits, att_dim, bias=False)
        self.gvec, self.han_mode = nn.Linear(att_dim, 1), False
        self.reset()

    def reset(self):
        self.h_length = self.enc_h = self.pre_compute_enc_h = self.mask = None

    def forward(self, enc_hs_pad, enc_hs_len, dec_z, att_prev, scaling=2.0):
        if self.pre_compute_enc_h is None:
            self.enc_h, self.h_length = enc_hs_pad, enc_hs_pad.shape[1]
            self.pre_compute_enc_h = self.mlp_enc(enc_hs_pad)
        if self.mask is None:
            self.mask = torch.arange(self.h_length)[None] >= torch.as_tensor(enc_hs_len)[:, None]
        dec_z = dec_z.view(len(enc_hs_pad), -1)
        e = self.gvec(torch.tanh(self.pre_compute_enc_h + self.mlp_dec(dec_z)[:, None])).squeeze(2)
        w = F.softmax(scaling * e.masked_fill(self.mask, -torch.inf), dim=1)
        return (self.enc_h * w.unsqueeze(2)).sum(1), w
