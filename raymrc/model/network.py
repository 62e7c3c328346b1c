"""The model of one configuration: encoder, prompt and heads, what is trained, and at which rate.

B rows, S pieces, L labels
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raymrc.configuration import Configuration
from raymrc.errors import PromptError, TrainingError
from raymrc.model.heads import AddUp, ClassifyingHeads, SpanAnswer, SpanHeads
from raymrc.model.inputs import Inputs, PairTargets, SpanTargets, TagTargets, Targets
from raymrc.model.loading import Loaded
from raymrc.model.precision import precision
from raymrc.model.prompts import SoftPrompt, Start, word_ids
from raymrc.model.strategies import STRATEGIES

OWNERS = {"encoder.": "backbone", "prompt.": "prompt", "heads.": "heads"}
"""Parameter group by prefix of the parameter's name."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What is trained, in numbers.

    Args:
        counts: size of every trained tensor by name, in order.
        total: all numbers of the model.
        adapter_bytes: size of the trained state as one safetensors file.
    """

    counts: Mapping[str, int]
    total: int
    adapter_bytes: int

    @property
    def trained(self) -> int:
        return sum(self.counts.values())

    @property
    def by_kind(self) -> tuple[tuple[str, int], ...]:
        """(name, numbers), with equal tensors of all layers under one name: `layers.*`."""
        kinds: dict[str, int] = {}
        for name, count in self.counts.items():
            kind = re.sub(r"\.\d+\.", ".*.", name)
            kinds[kind] = kinds.get(kind, 0) + count
        return tuple(kinds.items())


class Model(nn.Module):
    """The model of a configuration, initialised by its seed, on the backbone's device.

    A frozen strategy uses the loaded encoder in place; a trained one works on a copy, so that the
    pretrained weights stay unchanged for the next model.

    Args:
        num_labels: labels that the task asks for.
        num_relations: relation questions that the task asks.
        start: what the prompt starts from, unless that is `random`.

    Raises:
        PromptError: the configuration's prompt does not fit the backbone.
    """

    prompt: SoftPrompt | None

    def __init__(
        self,
        configuration: Configuration,
        loaded: Loaded,
        num_labels: int,
        num_relations: int = 0,
        start: Start | None = None,
    ) -> None:
        super().__init__()
        strategy = STRATEGIES[configuration.cell.strategy]
        self.configuration = configuration
        self.strategy = strategy
        shape = loaded.shape
        device = loaded.encoder.word.weight.device
        self.encoder = loaded.encoder
        if strategy.trains_backbone:
            self.encoder = loaded.copy_to_train().requires_grad_(True)
            self.encoder.dropout = configuration.dropout
            self.encoder.computes_in = precision(device)
        # Drawn on the CPU, so that a seed means the same on any device; the global state is kept.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(configuration.seed)
            self.prompt = None
            if strategy.asks == "vectors":
                self.prompt = SoftPrompt(
                    num_labels + num_relations,
                    configuration.prompt_length,
                    shape,
                    configuration.prompt_depth,
                    configuration.first_layer,
                    configuration.reparametrisation,
                )
                words = word_ids(loaded.tokenizer, shape.vocab)
                self.prompt.initialise(loaded.encoder, words, _specials(loaded.tokenizer))
                # After random values were drawn, so that heads do not depend on the prompt's start.
                _begin(self.prompt, configuration.prompt_initialisation, loaded, start)
            self.heads: SpanHeads | ClassifyingHeads
            if strategy.answers == "tags":
                self.heads = ClassifyingHeads(
                    shape.hidden, num_labels, num_relations, configuration.dropout
                )
            else:
                self.heads = SpanHeads(
                    shape.hidden, configuration.match_width, configuration.dropout
                )
        self.to(device)
        self._claimed = self._claim()

    def hidden(self, inputs: Inputs) -> Tensor:
        """The encoder's output with this model's prompt, (B, S, D)."""
        prefix = self.prompt(inputs.label_B) if self.prompt is not None else None
        return self.encoder(inputs, prefix)

    def loss(
        self,
        inputs: Inputs,
        targets: Targets,
        generator: torch.Generator | None = None,
        add_up: AddUp | None = None,
    ) -> Tensor:
        """Mean loss of a batch, a scalar with a gradient.

        Args:
            generator: draws the dropout of span heads; None for torch's default, as for the backbone.
            add_up: see `heads.AddUp`; for a batch whose rows are spread over processes.
        """
        hidden_BSD = self.hidden(inputs)
        if not isinstance(targets, SpanTargets):
            assert isinstance(self.heads, ClassifyingHeads)
            return self.heads.loss(hidden_BSD, inputs, targets, add_up)
        assert isinstance(self.heads, SpanHeads)
        weights = self.configuration.loss_weights
        return self.heads.loss(hidden_BSD, inputs.window_BS, targets, weights, generator, add_up)

    @torch.no_grad()
    def predict(self, inputs: Inputs) -> list[SpanAnswer] | list[np.ndarray]:
        """Answers of every row, always without dropout.

        Span strategies give (start_S, end_S, pairs_K2, match_K): logits, -inf outside the window, and (first,
        last) pieces. Tagging gives tags (S, L), 0 outside, 1 begin, 2 inside. Pairs give logits of kinds.
        """
        was_training = self.training
        self.eval()
        try:
            hidden_BSD = self.hidden(inputs)
            if isinstance(self.heads, ClassifyingHeads):
                return self.heads.predict(hidden_BSD, inputs)
            return self.heads.predict(hidden_BSD, inputs.window_BS)
        finally:
            self.train(was_training)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for AdamW, with separate rates for backbone, prompt and heads.

        Only weight matrices decay: biases, LayerNorms and prompts have no reason to be near zero (a
        prompt's keys and values should be near those of words).
        """
        c = self.configuration
        rates = {
            "backbone": c.learning_rate,
            "prompt": c.prompt_learning_rate or c.learning_rate,
            "heads": c.head_learning_rate or c.learning_rate,
        }
        groups = []
        for owner, claimed in self._claimed.items():
            trained = [p for _, p in claimed if p.requires_grad]
            for decays in (True, False):
                parameters = [p for p in trained if (p.dim() > 1 and owner != "prompt") == decays]
                if parameters:
                    groups.append(
                        {
                            "name": owner if decays else f"{owner}, no decay",
                            "params": parameters,
                            "lr": rates[owner],
                            "weight_decay": c.weight_decay if decays else 0.0,
                        }
                    )
        return groups

    def statement(self) -> Trained:
        """What is trained, for the record."""
        trained = self.trained_parameters()
        return Trained(
            counts={name: p.numel() for name, p in trained.items()},
            total=sum(p.numel() for p in self.parameters()),
            adapter_bytes=_safetensors_bytes(trained),
        )

    def check_gradients(self, targets: Targets | None = None) -> None:
        """Check after a backward pass that every trained parameter got a gradient.

        The prompts of single labels may have zeros, because a batch need not ask every label. A
        prompt whose gradient is all zeros is not connected to the loss.

        Args:
            targets: targets of the batch; of two heads only theirs is checked.

        Raises:
            PromptError: a trained parameter got no gradient; the message names it.
        """
        unasked: set[nn.Parameter] = set()
        if isinstance(targets, TagTargets | PairTargets):
            assert isinstance(self.heads, ClassifyingHeads)
            others = self.heads.others(targets)
            unasked = set() if others is None else set(others.parameters())
        for owner, claimed in self._claimed.items():
            for name, parameter in claimed:
                if not parameter.requires_grad or parameter in unasked:
                    continue
                if parameter.grad is None:
                    raise PromptError(f"{name} is trained but got no gradient")
                if owner == "prompt" and not parameter.grad.any() and not self._is_idle(name):
                    raise PromptError(f"{name} is trained but its gradient is all zeros")

    def _is_idle(self, name: str) -> bool:
        """An LSTM that reads one vector has no previous step."""
        assert self.prompt is not None
        return "lstm.weight_hh" in name and self.prompt.prompt_length == 1

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def trained_state(self) -> dict[str, Tensor]:
        """Copies of the trained parameters on the CPU; of a sharded one this process's part."""
        return {
            name: local_part(p).detach().to("cpu", copy=True).contiguous()
            for name, p in self.trained_parameters().items()
        }

    @torch.no_grad()
    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """
        Raises:
            TrainingError: the state belongs to another configuration.
        """
        trained = {name: local_part(p) for name, p in self.trained_parameters().items()}
        if differing := sorted(trained.keys() ^ state.keys()):
            raise TrainingError(
                f"the saved state does not fit this configuration: {differing[0]} is only in one"
            )
        for name, parameter in trained.items():
            if parameter.shape != state[name].shape:
                raise TrainingError(
                    f"the saved state does not fit this configuration: {name} is "
                    f"{tuple(state[name].shape)}, not {tuple(parameter.shape)}"
                )
        for name, parameter in trained.items():
            parameter.copy_(state[name])

    def _claim(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Assign every parameter to exactly one owner, and train or freeze it by the strategy."""
        claimed: dict[str, list[tuple[str, nn.Parameter]]] = {o: [] for o in OWNERS.values()}
        for name, parameter in self.named_parameters(remove_duplicate=False):
            owners = [owner for start, owner in OWNERS.items() if name.startswith(start)]
            if len(owners) != 1:
                raise AssertionError(f"parameter {name} is claimed by {owners}, not by one group")
            claimed[owners[0]].append((name, parameter))
            parameter.requires_grad_(owners[0] != "backbone" or self.strategy.trains_backbone)
        everyone = [id(p) for group in claimed.values() for _, p in group]
        if len(everyone) != len(set(everyone)):
            raise AssertionError("a parameter is claimed under two names")
        return claimed


def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a `DTensor`; any other tensor whole."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def _begin(prompt: SoftPrompt, initialisation: str, loaded: Loaded, start: Start | None) -> None:
    """Start the prompt from words or an adapter."""
    if initialisation == "random":
        return
    assert start is not None, "the prompt has nothing to start from"
    if initialisation == "adapter":
        assert start.saved is not None
        prompt.start_from_saved(start.names, start.saved)
        return
    tokenizer = loaded.tokenizer
    pieces = [
        tokenizer(start.questions[name], add_special_tokens=False)["input_ids"]
        for name in start.names
    ]
    prompt.start_from_words(loaded.encoder, pieces, _specials(tokenizer))


def _specials(tokenizer: Any) -> tuple[int, int] | None:
    """First and last piece of a row, if the tokenizer has such pieces."""
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    return None if first is None or last is None else (first, last)


def _safetensors_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Size of these fp32 tensors as a safetensors file, without writing it.

    The file holds eight bytes, a JSON header padded to a multiple of eight, and the numbers by name.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in sorted(tensors.items()):
        start, end = end, end + math.prod(tensor.shape) * tensor.element_size()
        header[name] = {
            "dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end],
        }  # fmt: skip
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + math.ceil(length / 8) * 8 + end
