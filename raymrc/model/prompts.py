"""Questions as trained vectors: one soft prompt per label.

B rows, S pieces, P prompt positions, N heads, H head size, D hidden, L labels, X words,
n layers that have a prompt
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymrc.configuration import MAX_PROMPT_LENGTH
from raymrc.errors import PromptError
from raymrc.model.encoder import Encoder
from raymrc.model.prefix import Prefix
from raymrc.model.shapes import REPARAMETRISATION_WIDTH, Shape

MEASURED_WORDS = 256
"""Words of the vocabulary from which the scale of a backbone's states is measured."""


@dataclass(frozen=True, eq=False)
class SavedPrompt:
    """The soft prompt of a trained model, from which another one may start.

    Args:
        names: its questions, in order.
        prompt_length, depth, first_layer, reparametrisation: see `SoftPrompt`.
        state: `SoftPrompt.state_dict`.
        notes: marks of the notes that it has seen (see `adapters.Adapter`); a prompt that starts
            from it has seen them, too.
    """

    names: tuple[str, ...]
    prompt_length: int
    depth: str
    first_layer: int
    reparametrisation: str
    state: Mapping[str, Tensor]
    notes: frozenset[str] = frozenset()

    def vectors(self, shape: Shape) -> dict[str, Tensor]:
        """Rows of `SoftPrompt.vectors` by name of the question.

        Args:
            shape: the backbone that it was trained on.
        """
        with torch.random.fork_rng(devices=[]):  # the drawn values are replaced
            prompt = SoftPrompt(
                len(self.names), self.prompt_length, shape, self.depth, self.first_layer,
                self.reparametrisation,
            )  # fmt: skip
        prompt.load_state_dict(dict(self.state))
        return dict(zip(self.names, prompt.vectors().detach(), strict=True))


@dataclass(frozen=True, eq=False)
class Start:
    """What soft prompts may start from, other than random values.

    Args:
        names: names of the questions, in the order of prompts.
        questions: the questions in words, by name.
        saved: a trained prompt, or None.
    """

    names: Sequence[str]
    questions: Mapping[str, str]
    saved: SavedPrompt | None = None


class SoftPrompt(nn.Module):
    """Trained vectors that stand in for the words of a question, one set per label.

    `deep`: keys and values that every layer from `first_layer` on attends to before the row's own.
    `input`: vectors that join the row at `first_layer`, after its special first piece, and pass
    through the layers with it; their outputs are dropped. Neither shifts the row's positions or
    depends on the window, so one frozen backbone answers many prompts in one batch.

    A reparametrised prompt trains a small network that computes the vectors: `mlp` from a trained
    table, `lstm` from that table read along the prompt in both directions.

    Args:
        prompt_length: positions per label, 1 to 512.
        depth: "deep" or "input".
        first_layer: layers below it see no prompt.
        reparametrisation: "none", "mlp" or "lstm".

    Raises:
        PromptError: an argument is out of range or unknown.

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
            # Stored in attention's order, so that a batch needs one look-up and no transpose.
            self.table = nn.Parameter(0.02 * torch.randn(num_labels, prompt_length * out))
        else:
            self.table = nn.Parameter(torch.randn(num_labels, prompt_length * hidden))
            if reparametrisation == "lstm":
                self.lstm = nn.LSTM(hidden, hidden // 2, 2, bidirectional=True, batch_first=True)
            self.up = nn.Linear(hidden, REPARAMETRISATION_WIDTH)
            self.out = nn.Linear(REPARAMETRISATION_WIDTH, out)

    def forward(self, label_B: Tensor) -> Prefix:
        """The prompts of a batch; row b gets the vectors of label `label_B[b]`.

        Raises:
            PromptError: `label_B` and the prompt are on different devices.
        """
        if label_B.device != self.table.device:
            raise PromptError(
                f"the prompt is on {self.table.device} and the batch on {label_B.device}; "
                "move both to one device"
            )
        return self.prefix(self.arrange(F.embedding(label_B, self.vectors())))

    def arrange(self, made_BX: Tensor) -> Tensor:
        """Reshape rows of `vectors` for the encoder.

        Shapes:
            returns: (B, P, D) for `input`; (B, n * 2, N, P, H) for `deep`
        """
        shape, length = self.shape, self.prompt_length
        if self.depth == "input":
            return made_BX.view(-1, length, shape.hidden)
        return made_BX.view(-1, 2 * self.num_prompted, shape.num_heads, length, shape.head_size)

    def prefix(self, arranged: Tensor, lengths: tuple[int, ...] | None = None) -> Prefix:
        """A `Prefix` of rows from `arrange`; see there for `lengths`."""
        pairs: tuple[tuple[Tensor, Tensor], ...] = ()
        if self.depth == "deep":
            each = arranged.unbind(1)
            pairs = tuple(zip(each[::2], each[1::2], strict=True))
        return Prefix(
            self.first_layer, self.shape.num_layers, self.shape.hidden,
            pairs, arranged if self.depth == "input" else None, lengths,
        )  # fmt: skip

    def vectors(self) -> Tensor:
        """Every label's prompt, one row per label.

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
        """Start at the scale of the backbone's words.

        A direct table is drawn from a normal distribution with the mean and spread, per channel, of
        the keys and values (or hidden states) that the backbone gives to its words; a reparametrised
        prompt gets an output layer with that mean and spread. A prompt at another scale costs epochs
        to correct. The vectors of words are a worse start: on PHEE, frozen MiniLM, 200 notes, 6
        epochs, their strict F1 on two folds was 0.22 and 0.26, against 0.36 and 0.36.

        Args:
            words: piece ids to draw from, with torch's CPU generator.
            specials: first and last piece of a row; None if the tokenizer has none.
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
        # The hidden layer's tanh has a spread of about 0.5, so the output's is about 0.3.
        self.out.bias.zero_()
        made = self.vectors()
        if self.depth == "deep":
            grid = made.view(self.num_labels, -1, shape.num_heads, length, shape.head_size)
            made = grid.permute(0, 3, 1, 2, 4)
        made = made.reshape(self.num_labels * length, -1)
        # The spread of a single vector is undefined.
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
        """Start from the backbone's states for each label's question.

        Each piece gives one vector: for `input` the hidden state that enters `first_layer`, for `deep` each
        layer's keys and values, to which a row that contains the question would attend. A longer question is
        cut to the prompt's length; a shorter one leaves the other vectors unchanged. See docs/decisions/0017.

        Args:
            pieces: piece ids of one question per label.
            specials: first and last piece of a row; None if the tokenizer has none.

        Source: Lester et al. 2021, arXiv:2104.08691 (word vectors at the input); Li and Liang 2021,
        arXiv:2101.00190 (activations of words at every layer).
        """
        assert self.reparametrisation == "none"
        rows = self.arrange(self.table)  # views of the table
        for row, question in zip(rows, pieces, strict=True):
            read = torch.tensor(question, device=encoder.word.weight.device)
            hidden_XD, layered = encoder.word_states(read, specials, self.first_layer)
            states = hidden_XD if self.depth == "input" else layered.permute(1, 2, 0, 3)
            length = min(len(question), self.prompt_length)
            row[..., :length, :].copy_(states[..., :length, :])

    @torch.no_grad()
    def start_from_saved(self, names: Sequence[str], saved: SavedPrompt) -> None:
        """Start from trained vectors of equal name; labels without one stay unchanged.

        Args:
            names: names of the labels, in order.
            saved: a prompt of equal length at the same layers of the same backbone.

        Source: Vu et al. 2022, SPoT, arXiv:2110.07904.
        """
        assert self.reparametrisation == "none"
        given = saved.vectors(self.shape)
        for label, name in enumerate(names):
            if name in given:
                self.table[label].copy_(given[name])


def word_ids(tokenizer: object, vocab: int) -> list[int]:
    """Ascending ids of pieces that are plain words, from which a prompt is initialised."""
    pieces: dict[str, int] = tokenizer.get_vocab()  # type: ignore[attr-defined]
    marks = "\u0120\u2581"  # word starts in byte-level and sentence-piece vocabularies
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
