from __future__ import annotations

from torch import nn

from hybridops.layers import RNNEncoder
from hybridops.layers.encoders import RECURRENT


def torch_network(encoder: RNNEncoder, cell: str) -> nn.RNNBase:
    """PyTorch's own stacked network, in both directions if the encoder is, with its weights."""
    directions, layers = len(encoder.layers[0]), len(encoder.layers)
    sizes = encoder.input_dim, encoder.hidden_dim, layers
    network = RECURRENT[cell](*sizes, batch_first=True, bidirectional=directions == 2)
    network.to(next(encoder.parameters()))
    network.load_state_dict(
        {
            name.replace("_l0", f"_l{layer}{'_reverse' if direction else ''}"): weight
            for layer in range(layers)
            for direction in range(directions)
            for name, weight in encoder.layers[layer][direction].state_dict().items()
        }
    )
    return network
