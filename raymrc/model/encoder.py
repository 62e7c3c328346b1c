"""One encoder for BERT, RoBERTa and Megatron-BERT; they differ in values of `Shape` alone.

    ids -> embeddings -> layers (from `prefix.first_layer` on with the prompt) -> hidden_BSD

B rows, U distinct rows, S pieces, P prompt positions, N heads, H head size, D hidden, T pieces of all rows
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from raymrc.errors import BackboneError, PromptError
from raymrc.model.attention import Packing, attend, has_packed_kernel, key_mask, make_packing
from raymrc.model.inputs import Inputs
from raymrc.model.prefix import Prefix
from raymrc.model.shapes import Shape

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class Layer(nn.Module):
    """Attention and feed-forward, each with a residual and a LayerNorm before or after it.

    Attributes:
        checkpoints: recompute activations in the backward pass instead of keeping them. A prompt's
            keys and values are inputs of the layer, so they still get a gradient.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        hidden = shape.hidden
        self.checkpoints = False
        self.num_heads = shape.num_heads
        self.pre_norm = shape.pre_norm
        self.activation = ACTIVATIONS[shape.activation]
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.attention_out = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=shape.eps)
        self.up = nn.Linear(hidden, shape.ffn)
        self.down = nn.Linear(shape.ffn, hidden)
        self.ffn_norm = nn.LayerNorm(hidden, eps=shape.eps)

    def project(self, hidden_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of a layer's input, each (B, N, S, H); packed rows (T, N, H)."""
        if self.pre_norm:
            hidden_BSD = self.attention_norm(hidden_BSD)
        qkv = self.qkv(hidden_BSD).unflatten(-1, (3, self.num_heads, -1))
        if hidden_BSD.dim() == 3:
            queries, keys, values = qkv.transpose(1, 3).unbind(2)
        else:
            queries, keys, values = qkv.unbind(1)
        return queries, keys, values

    def keys_and_values(self, hidden_BSD: Tensor) -> tuple[Tensor, Tensor]:
        return self.project(hidden_BSD)[1:]

    def forward(
        self,
        hidden_BSD: Tensor,
        mask: Tensor | Packing | None = None,
        prefix: tuple[Tensor, Tensor] | None = None,
        dropout: float = 0.0,
    ) -> Tensor:
        """
        Args:
            mask, prefix: see `attention.attend`.

        Shapes:
            hidden, returns: (B, S, D); packed rows (T, D)
        """
        if self.checkpoints and torch.is_grad_enabled():
            recomputed: Tensor = checkpoint(
                self._run, hidden_BSD, mask, prefix, dropout, use_reentrant=False
            )
            return recomputed
        return self._run(hidden_BSD, mask, prefix, dropout)

    def _run(
        self,
        hidden_BSD: Tensor,
        mask: Tensor | Packing | None,
        prefix: tuple[Tensor, Tensor] | None,
        dropout: float,
    ) -> Tensor:
        attended_BSD = attend(*self.project(hidden_BSD), mask, prefix)
        hidden_BSD = hidden_BSD + _drop(self.attention_out(attended_BSD), dropout)
        if not self.pre_norm:
            hidden_BSD = self.attention_norm(hidden_BSD)
        fed = self.ffn_norm(hidden_BSD) if self.pre_norm else hidden_BSD
        hidden_BSD = hidden_BSD + _drop(self.down(self.activation(self.up(fed))), dropout)
        return hidden_BSD if self.pre_norm else self.ffn_norm(hidden_BSD)


class Encoder(nn.Module):
    """Pieces in, one vector per piece out. Without a prompt it equals the Hugging Face forward pass.

    Args:
        dropout: on embeddings and on the outputs of attention and feed-forward, in training mode; 0.0 for a
            frozen backbone. Attention weights have none (see `attention`).

    Attributes:
        computes_in: dtype of a trained encoder's computation, if other than its weights' (see `precision`).
        packs: whether layers see rows without padding; None for where that is faster, which is on GPUs whose
            variable-length kernel supports it.

    A pre-norm encoder cut to `layers: k` still ends with the checkpoint's final LayerNorm, so that heads
    never see raw residual sums.
    """

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.dropout = dropout
        self.computes_in: torch.dtype | None = None
        self.packs: bool | None = None
        self.word = nn.Embedding(shape.vocab, shape.hidden)
        self.position = nn.Embedding(shape.positions, shape.hidden)
        self.segment = nn.Embedding(shape.types, shape.hidden)
        self.embedding_norm = (
            nn.LayerNorm(shape.hidden, eps=shape.eps) if shape.embedding_norm else nn.Identity()
        )
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.final_norm = (
            nn.LayerNorm(shape.hidden, eps=shape.eps) if shape.pre_norm else nn.Identity()
        )

    def forward(self, inputs: Inputs, prefix: Prefix | None = None) -> Tensor:
        """
        Args:
            prefix: trained vectors that layers from `prefix.first_layer` on see beside the row; the
                row's positions do not change. Layers below run once per distinct row
                (`inputs.share_B`), and not at all where `inputs.entry_BSD` is given.

        Shapes:
            returns: (B, S, D), fp32; values at padding are undefined

        Raises:
            BackboneError: rows are longer than the position table.
            PromptError: the prefix is on another device or was made for another backbone.
        """
        with self._computing():
            return self._encode(inputs, prefix).float()

    def _encode(self, inputs: Inputs, prefix: Prefix | None) -> Tensor:
        if prefix is None:
            if self._packs(inputs):
                return self._run_packed(self.embed(inputs), inputs)
            return self.final_norm(self.below(inputs, self.shape.num_layers))
        self._check(prefix, inputs)
        # Layers below the prompt need no gradient unless the backbone is trained.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.is_trained):
            hidden_BSD = self._enter(inputs, prefix.first_layer)
        if self._packs(inputs, prefix):
            return self._run_packed(hidden_BSD, inputs, prefix)
        # `input` vectors follow the special first piece, as a question in words would.
        behind = 0 if prefix.vectors_BPD is None else 1
        mask = None
        if inputs.is_padded or prefix.lengths is not None:
            mask = key_mask(inputs.mask_BS, prefix.mask_BP, behind=behind)
        if prefix.vectors_BPD is not None:
            vectors_BPD = prefix.vectors_BPD.to(hidden_BSD.dtype)
            hidden_BSD = torch.cat([hidden_BSD[:, :1], vectors_BPD, hidden_BSD[:, 1:]], dim=1)
        hidden_BSD = self.run(hidden_BSD, mask, prefix, start=prefix.first_layer)
        if prefix.vectors_BPD is not None:
            hidden_BSD = torch.cat([hidden_BSD[:, :1], hidden_BSD[:, 1 + prefix.length :]], dim=1)
        return self.final_norm(hidden_BSD)

    def _run_packed(
        self, hidden_BSD: Tensor, inputs: Inputs, prefix: Prefix | None = None
    ) -> Tensor:
        """The layers from the prompt on, without padding in rows or prompts."""
        num_pieces, device = hidden_BSD.shape[1], hidden_BSD.device
        if prefix is None:
            packing = make_packing(inputs.lengths, num_pieces, device)
            return packing.unpack(
                self.final_norm(self.run(packing.pack(hidden_BSD), packing)), num_pieces
            )
        vectors_BPD = prefix.vectors_BPD
        behind = 0 if vectors_BPD is None else 1
        packing = make_packing(
            inputs.lengths, num_pieces, device, prefix.row_lengths, prefix.length, behind=behind
        )
        hidden_TD = packing.pack(hidden_BSD)
        if vectors_BPD is None:
            hidden_TD = self.run(hidden_TD, packing, prefix, start=prefix.first_layer)
        else:
            hidden_XD = packing.join(vectors_BPD.to(hidden_TD.dtype), hidden_TD)
            hidden_XD = self.run(hidden_XD, packing.joined(), prefix, start=prefix.first_layer)
            hidden_TD = hidden_XD.index_select(0, packing.piece_keys_T)
        return packing.unpack(self.final_norm(hidden_TD), num_pieces)

    def _packs(self, inputs: Inputs, prefix: Prefix | None = None) -> bool:
        if self.packs is not None:
            return self.packs
        # Rows of equal length need no mask, and without a mask the padded path is as fast.
        has_padding = inputs.is_padded or (prefix is not None and prefix.lengths is not None)
        weight = self.word.weight
        dtype = self.computes_in or weight.dtype
        return has_padding and has_packed_kernel(weight.device, dtype, self.shape.head_size)

    def _computing(self) -> AbstractContextManager[object]:
        weight = self.word.weight
        if self.computes_in in (None, weight.dtype):
            return nullcontext()
        return torch.autocast(weight.device.type, self.computes_in)

    @property
    def is_trained(self) -> bool:
        return self.word.weight.requires_grad

    def below(self, inputs: Inputs, layer: int) -> Tensor:
        """Input of `layer` when the layers below see no prompt, (B, S, D)."""
        mask = key_mask(inputs.mask_BS) if inputs.is_padded else None
        return self.run(self.embed(inputs), mask, stop=layer)

    def _enter(self, inputs: Inputs, layer: int) -> Tensor:
        """`below`, taken from `inputs` where given, and computed once per distinct row."""
        if not layer:
            return self.embed(inputs)
        if inputs.entry_BSD is not None:
            assert inputs.entry_layer == layer, "the hidden states belong to another layer"
            return inputs.entry_BSD
        if inputs.share_B is None:
            return self.below(inputs, layer)
        # Equal rows share the dropout that a trained backbone draws below the prompt.
        first_U, place_B = inputs.share_B.unique(return_inverse=True)
        hidden_USD = self.below(inputs.take(first_U), layer)
        return hidden_USD.index_select(0, place_B.to(hidden_USD.device))

    def embed(self, inputs: Inputs) -> Tensor:
        """Input of the first layer, (B, S, D)."""
        num_pieces = inputs.input_ids_BS.shape[1]
        if num_pieces > self.shape.max_pieces:
            raise BackboneError(
                f"a row of {num_pieces} pieces exceeds the backbone's "
                f"{self.shape.max_pieces} positions; set a smaller window"
            )
        offset = self.shape.position_offset
        hidden_BSD = self.word(inputs.input_ids_BS)
        hidden_BSD = hidden_BSD + self.position.weight[offset : offset + num_pieces]
        if self.shape.types == 1:
            hidden_BSD = hidden_BSD + self.segment.weight[0]
        else:
            hidden_BSD = hidden_BSD + self.segment(inputs.type_ids_BS)
        return _drop(self.embedding_norm(hidden_BSD), self._dropout)

    def run(
        self,
        hidden_BSD: Tensor,
        mask: Tensor | Packing | None = None,
        prefix: Prefix | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> Tensor:
        """Layers `start` to `stop` (half-open; None for the end), without the final LayerNorm.

        Args:
            mask: key mask, prefix positions included (`attention.key_mask`); for packed rows (T, D)
                their packing.
        """
        for layer in range(start, self.shape.num_layers if stop is None else stop):
            keys_and_values = prefix.at(layer) if prefix is not None else None
            hidden_BSD = self.layer(layer)(hidden_BSD, mask, keys_and_values, self._dropout)
        return hidden_BSD

    def word_states(
        self, drawn_X: Tensor, specials: tuple[int, int] | None, first_layer: int
    ) -> tuple[Tensor, Tensor]:
        """The backbone's states for words without context.

        Args:
            drawn_X: piece ids.
            specials: first and last piece of a row; None if the tokenizer has none.

        Shapes:
            returns: hidden states at `first_layer` (X, D); keys and values of the n layers from
                there on (X, n * 2, N, H), keys before values
        """
        device = drawn_X.device
        around = 2 if specials else 0
        per_row = min(128, self.shape.max_pieces - around)
        hidden_parts, layer_parts = [], []
        for part in drawn_X.split(per_row):
            row = part.tolist()
            ids = torch.tensor(
                [[specials[0], *row, specials[1]] if specials else row], device=device
            )
            mask = torch.ones_like(ids, dtype=torch.bool)
            inputs = Inputs(ids, torch.zeros_like(ids), mask, mask, ids[:, 0], (ids.shape[1],))
            words = slice(around // 2, around // 2 + len(row))
            hidden_BSD = self.run(self.embed(inputs), stop=first_layer)
            hidden_parts.append(hidden_BSD[0, words])
            keys_and_values = []
            for number in range(first_layer, self.shape.num_layers):
                layer = self.layer(number)
                keys, values = layer.keys_and_values(hidden_BSD)
                keys_and_values += [keys[0, :, words], values[0, :, words]]
                hidden_BSD = layer(hidden_BSD)
            layer_parts.append(torch.stack(keys_and_values).permute(2, 0, 1, 3))
        return torch.cat(hidden_parts), torch.cat(layer_parts)

    def layer(self, layer: int) -> Layer:
        return cast(Layer, self.layers[layer])

    @property
    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0

    def _check(self, prefix: Prefix, inputs: Inputs) -> None:
        device = self.word.weight.device
        if prefix.device != device:
            raise PromptError(
                f"the prompt is on {prefix.device} and the backbone on {device}; "
                "move both to one device"
            )
        theirs = (prefix.num_layers, prefix.hidden)
        ours = (self.shape.num_layers, self.shape.hidden)
        if theirs != ours:
            raise PromptError(
                f"the prompt fits {theirs[0]} layers of size {theirs[1]}, and the backbone has "
                f"{ours[0]} of size {ours[1]}; train it on this backbone"
            )
        if prefix.num_rows != len(inputs.label_B):
            raise PromptError(
                f"the prompt has {prefix.num_rows} rows and the batch {len(inputs.label_B)}"
            )


def _drop(hidden: Tensor, dropout: float) -> Tensor:
    return F.dropout(hidden, dropout) if dropout else hidden
