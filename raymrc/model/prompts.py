"""Questions as trained vectors: one soft prompt per label.

B rows, S pieces, P prompt positions, N heads, H head size, D hidden, L labels,
n layers that have a prompt
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymrc.errors import PromptError
from raymrc.model.encoder import Encoder
from raymrc.model.prefix import Prefix
from raymrc.model.shapes import MAX_PROMPT_LENGTH, REPARAMETRISATION_WIDTH, Shape

MEASURED_WORDS = 256
"""How many words of the vocabulary tell a backbone's scale."""


@dataclass(frozen=True, eq=False)
class SavedPrompt:
    """The soft prompt of a trained model, for another one to start from.

    Args:
        names: of its questions, in order.
        prompt_length, depth, first_layer, reparametrisation: see `SoftPrompt`.
        state: its tensors, as `SoftPrompt.state_dict` has them.
        notes: that it has seen, see `adapters.Adapter`; whoever starts from it has seen them, too.
    """

    names: tuple[str, ...]
    prompt_length: int
    depth: str
    first_layer: int
    reparametrisation: str
    state: Mapping[str, Tensor]
    notes: frozenset[str] = frozenset()

    def vectors(self, shape: Shape) -> dict[str, Tensor]:
        """By name of the question, as `SoftPrompt.vectors` has them; computed, where they were.

        Args:
            shape: of the backbone that it was trained on.
        """
        with torch.random.fork_rng(devices=[]):  # what it draws is replaced
            prompt = SoftPrompt(
                len(self.names), self.prompt_length, shape, self.depth, self.first_layer,
                self.reparametrisation,
            )  # fmt: skip
        prompt.load_state_dict(dict(self.state))
        return dict(zip(self.names, prompt.vectors().detach(), strict=True))


@dataclass(frozen=True, eq=False)
class Start:
    """What soft prompts may start from, beside chance.

    Args:
        names: of the questions, in the order of prompts.
        questions: in words, by name.
        saved: a trained prompt; None where there is none.
    """

    names: Sequence[str]
    questions: Mapping[str, str]
    saved: SavedPrompt | None = None


class SoftPrompt(nn.Module):
    """Trained vectors that stand in for the words of a question, one set per label.

    `deep`: keys and values that every layer from `first_layer` on attends to before the row's own.
    `input`: vectors that join the row at `first_layer`, behind its special first piece, and pass
    through the layers with it; their outputs are dropped. Neither moves the row's positions, and
    neither depends on the window, so one frozen backbone answers many prompts in one batch.

    A reparametrised prompt trains a small network that makes the vectors: `mlp` from a table of
    its own, `lstm` from that table read along the prompt in both directions.

    Args:
        prompt_length: positions per label, 1 to 512.
        depth: "deep" or "input".
        first_layer: layers below it see no prompt.
        reparametrisation: "none", "mlp" or "lstm".

    Raises:
        PromptError: a length outside 1 to 512, a `first_layer` that is not a layer of this
            backbone, an unknown depth or reparametrisation.

    Source: P-tuning v2, arXiv:2110.07602 (deep); P-tuning, arXiv:2103.10385 (input, lstm);
    prefix-tuning, arXiv:2101.00190 (mlp).
    """

    def __init__(
        self,
        num_labels: int,
        prompt_length: int,
        shape: Shape,
        depth: str = "deep",
        first_layer: int = 0,
        reparametrisation: str = "none",
    ) -> None:
        super().__init__()
        _check(prompt_length, shape, depth, first_layer, reparametrisation)
        self.num_labels = num_labels
        self.prompt_length = prompt_length
        self.shape = shape
        self.depth = depth
        self.first_layer = first_layer
        self.reparametrisation = reparametrisation
        hidden = shape.hidden
        self.num_prompted = shape.num_layers - first_layer
        out = hidden if depth == "input" else 2 * self.num_prompted * hidden
        if reparametrisation == "none":
            # Stored as attention reads it, so that a batch is one look-up and no transpose.
            self.table = nn.Parameter(0.02 * torch.randn(num_labels, prompt_length * out))
        else:
            self.table = nn.Parameter(torch.randn(num_labels, prompt_length * hidden))
            if reparametrisation == "lstm":
                self.lstm = nn.LSTM(hidden, hidden // 2, 2, bidirectional=True, batch_first=True)
            self.up = nn.Linear(hidden, REPARAMETRISATION_WIDTH)
            self.out = nn.Linear(REPARAMETRISATION_WIDTH, out)

    def forward(self, label_B: Tensor) -> Prefix:
        """The prompts of a batch: row b gets the vectors of label `label_B[b]`.

        Raises:
            PromptError: `label_B` is on another device than the prompt.
        """
        if label_B.device != self.table.device:
            raise PromptError(
                f"the prompt is on {self.table.device} and the batch on {label_B.device}; "
                "move both to one device"
            )
        return self.prefix(self.arrange(F.embedding(label_B, self.vectors())))

    def arrange(self, made_BX: Tensor) -> Tensor:
        """Rows of `vectors` in the dimensions that the encoder reads.

        Shapes:
            returns: (B, P, D) for `input`; (B, n * 2, N, P, H) for `deep`
        """
        shape, length = self.shape, self.prompt_length
        if self.depth == "input":
            return made_BX.view(-1, length, shape.hidden)
        return made_BX.view(-1, 2 * self.num_prompted, shape.num_heads, length, shape.head_size)

    def prefix(
        self,
        arranged: Tensor,
        mask_BP: Tensor | None = None,
        lengths: tuple[int, ...] | None = None,
    ) -> Prefix:
        """What the encoder takes, of rows as `arrange` gives them; see `Prefix` for the others."""
        pairs: tuple[tuple[Tensor, Tensor], ...] = ()
        if self.depth == "deep":
            each = arranged.unbind(1)
            pairs = tuple(zip(each[::2], each[1::2], strict=True))
        return Prefix(
            self.first_layer, self.shape.num_layers, self.shape.hidden,
            pairs, arranged if self.depth == "input" else None, mask_BP, lengths,
        )  # fmt: skip

    def vectors(self) -> Tensor:
        """Every label's prompt, a row each.

        Shapes:
            returns: (L, P * D) for `input`; (L, n * 2 * N * P * H), keys before values, for `deep`
        """
        if self.reparametrisation == "none":
            return self.table
        made_LPD = self.table.view(self.num_labels, self.prompt_length, self.shape.hidden)
        if self.reparametrisation == "lstm":
            made_LPD = self.lstm(made_LPD)[0]
        made = self.out(torch.tanh(self.up(made_LPD)))
        if self.depth == "deep":
            shape = self.shape
            made = made.unflatten(-1, (2 * self.num_prompted, shape.num_heads, shape.head_size))
            made = made.permute(0, 2, 3, 1, 4)
        return made.flatten(1)

    @torch.no_grad()
    def initialise(
        self, encoder: Encoder, words: Sequence[int], specials: tuple[int, int] | None
    ) -> None:
        """Start at the scale of the backbone's own words.

        A direct table is drawn from a normal distribution with the mean and spread, channel by
        channel, of the keys and values (or hidden states) that the backbone gives to its words; a
        reparametrised one gets an output layer with that mean and spread. From another scale a
        frozen backbone first has to be pulled back, which costs epochs. The words' own vectors are
        no better a start: on PHEE, frozen MiniLM, 200 notes, 6 epochs, they gave a strict F1 of
        0.22 and 0.26 on two folds where this gave 0.36 and 0.36.

        Args:
            words: piece ids to draw from, with torch's CPU generator.
            specials: first and last piece of a row, around the words; None where there are none.
        """
        drawn = torch.tensor(words)[torch.randint(len(words), (MEASURED_WORDS,))]
        drawn = drawn.to(encoder.word.weight.device)
        hidden_XD, layered = encoder.word_states(drawn, specials, self.first_layer)
        shape, length = self.shape, self.prompt_length
        states = hidden_XD if self.depth == "input" else layered  # (X, n * 2, N, H)
        states = states.float()
        if self.reparametrisation == "none":
            mean, spread = states.mean(0).cpu(), states.std(0).cpu()
            made = mean + spread * torch.randn(self.num_labels * length, *mean.shape)
            by_label = made.unflatten(0, (self.num_labels, length))
            if self.depth == "deep":
                by_label = by_label.permute(0, 2, 3, 1, 4)
            self.table.copy_(by_label.reshape(self.num_labels, -1))
            return
        flat = states.reshape(states.shape[0], -1)
        device = self.out.weight.device
        # The hidden layer's tanh has a spread of about 0.5, and so its mix below one of about 0.3.
        self.out.bias.zero_()
        made = self.vectors()
        if self.depth == "deep":
            grid = made.view(self.num_labels, -1, shape.num_heads, length, shape.head_size)
            made = grid.permute(0, 3, 1, 2, 4)
        made = made.reshape(self.num_labels * length, -1)
        # A prompt of one vector has no spread to be brought to the words'.
        spread = flat.std(0).to(device) / made.std(0) if len(made) > 1 else torch.ones_like(made[0])
        self.out.weight.mul_(spread[:, None])
        self.out.bias.copy_(flat.mean(0).to(device) - spread * made.mean(0))

    @torch.no_grad()
    def start_from_words(
        self,
        encoder: Encoder,
        pieces: Sequence[Sequence[int]],
        specials: tuple[int, int] | None,
    ) -> None:
        """Start as what the backbone makes of each label's question, read by itself.

        A vector a piece: for `input` the hidden state that enters `first_layer` (at layer 0 word,
        position and segment embedding after their LayerNorm), for `deep` each layer's keys and values,
        which are what a row with the question in it attends to. Of a question that is longer than the
        prompt the first pieces are taken; where it is shorter the other vectors stay as they are. See
        docs/decisions/0017.

        Args:
            pieces: ids, a question each label.
            specials: first and last piece of a row, around the words; None where there are none.

        Source: Lester et al. 2021, arXiv:2104.08691 (word vectors at the input); Li and Liang 2021,
        arXiv:2101.00190 (activations of words at every layer).
        """
        assert self.reparametrisation == "none"
        rows = self.arrange(self.table)  # views: what is written to them is in the table
        for row, question in zip(rows, pieces, strict=True):
            read = torch.tensor(question, device=encoder.word.weight.device)
            hidden_XD, layered = encoder.word_states(read, specials, self.first_layer)
            states = hidden_XD if self.depth == "input" else layered.permute(1, 2, 0, 3)
            length = min(len(question), self.prompt_length)
            row[..., :length, :].copy_(states[..., :length, :])

    @torch.no_grad()
    def start_from_saved(self, names: Sequence[str], saved: SavedPrompt) -> None:
        """Start with trained vectors, where there are some under a label's name; the others stay.

        Args:
            names: of the labels, in order.
            saved: as long, and at the same layers of the same backbone.

        Source: Vu et al. 2022, SPoT, arXiv:2110.07904.
        """
        assert self.reparametrisation == "none"
        given = saved.vectors(self.shape)
        for label, name in enumerate(names):
            if name in given:
                self.table[label].copy_(given[name])


def word_ids(tokenizer: object, vocab: int) -> list[int]:
    """Ids of pieces that are plain words, ascending: what a prompt is initialised from."""
    pieces: dict[str, int] = tokenizer.get_vocab()  # type: ignore[attr-defined]
    marks = "\u0120\u2581"  # what byte-level and sentence-piece vocabularies put before a word
    words = sorted(
        index
        for piece, index in pieces.items()
        if index < vocab and len(piece.strip(marks)) > 2 and piece.strip(marks).isalpha()
    )
    return words or list(range(vocab))


def _check(
    prompt_length: int, shape: Shape, depth: str, first_layer: int, reparametrisation: str
) -> None:
    if not 1 <= prompt_length <= MAX_PROMPT_LENGTH:
        raise PromptError(
            f"prompt_length: {prompt_length} is not a whole number from 1 to {MAX_PROMPT_LENGTH}"
        )
    if not 0 <= first_layer < shape.num_layers:
        raise PromptError(
            f"first_layer: {first_layer} is not a layer of this backbone; "
            f"choose 0 to {shape.num_layers - 1}"
        )
    if depth not in ("deep", "input"):
        raise PromptError(f"prompt depth {depth!r} is unknown; choose deep or input")
    if reparametrisation not in ("none", "mlp", "lstm"):
        raise PromptError(
            f"reparametrisation {reparametrisation!r} is unknown; choose none, mlp or lstm"
        )
