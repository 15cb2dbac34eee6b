"""VideoMAE's last layer for its first token alone.

Where only `last_hidden_state[:, 0]` is wanted, the last layer need not compute the other 1,567 tokens: they
matter only through the keys and values that the first token attends to. With one query per head, even those
need not be computed: q·(W x) = (Wᵀ q)·x, and Σ p (W x) = W Σ p x.
"""

from __future__ import annotations

from typing import Any


def keep_first_token(model: Any) -> None:
    """Make a `VideoMAEModel` give the state of its first token alone, as it was, in place."""
    model.encoder.layer[-1] = _first_token_layer(model.encoder.layer[-1])


def _first_token_layer(layer: Any) -> Any:
    import torch

    class FirstTokenLayer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.intermediate, self.output = layer.attention, layer.intermediate, layer.output
            self.layernorm_before, self.layernorm_after = layer.layernorm_before, layer.layernorm_after

        def forward(self, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
            """States (clips, 1, hidden size) of states (clips, tokens, hidden size)."""
            tokens, first = self.layernorm_before(hidden_states), hidden_states[:, :1]
            attended = self.attention.output(self._attend(tokens), first) + first
            return self.output(self.intermediate(self.layernorm_after(attended)), attended)  # type: ignore[no-any-return]

        def _attend(self, tokens: torch.Tensor) -> torch.Tensor:
            attention = self.attention.attention
            heads, size = attention.num_attention_heads, attention.attention_head_size
            clips = tokens.shape[0]
            query = attention.query(tokens[:, :1]).view(clips, heads, size) * attention.scaling
            # a key's bias adds the same to every score, and so nothing to their softmax
            asked = torch.einsum("chs,hsd->chd", query, attention.key.weight.view(heads, size, -1))
            scores = asked @ tokens.transpose(1, 2)
            seen = scores.softmax(dim=-1) @ tokens
            values = torch.einsum("chd,hsd->chs", seen, attention.value.weight.view(heads, size, -1))
            if attention.value.bias is not None:
                values = values + attention.value.bias.view(heads, size)
            return values.reshape(clips, 1, heads * size)

    return FirstTokenLayer()
