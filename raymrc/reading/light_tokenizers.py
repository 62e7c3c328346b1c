"""Tokenizers without torch and transformers, with which a plan counts pieces; see `windows.Tokenizer`."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymrc.errors import BackboneError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


NOT_READ = -1
"""Id of special pieces, which a plan counts and no model reads."""


class FileTokenizer:
    """A backbone's own tokenizer: the same pieces as `transformers` reads."""

    is_fast = True
    is_exact = True
    cls_token_id = sep_token_id = NOT_READ

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer

    def __call__(self, text: str, **_: Any) -> dict[str, Any]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return {"input_ids": encoding.ids, "offset_mapping": encoding.offsets}


class RoughTokenizer:
    """Words, parts of long words, and signs: within a tenth of BERT's piece count on clinical English."""

    is_fast = True
    is_exact = False
    cls_token_id = sep_token_id = NOT_READ
    max_characters = 6
    """Characters of a piece."""

    def __call__(self, text: str, **_: Any) -> dict[str, Any]:
        offsets = [
            (start, min(start + self.max_characters, match.end()))
            for match in _WORDS.finditer(text)
            for start in range(match.start(), match.end(), self.max_characters)
        ]
        # Ids only tell rows apart, so every piece has its own.
        numbers = count()
        return {"input_ids": [next(numbers) for _ in offsets], "offset_mapping": offsets}


_WORDS = re.compile(r"\w+|[^\w\s]")


def read_tokenizer(folder: Path | None) -> FileTokenizer | RoughTokenizer:
    """The backbone's own tokenizer if its folder is on this machine and holds one; otherwise a rough one.

    Raises:
        BackboneError: the tokenizer's file cannot be read.
    """
    path = folder / "tokenizer.json" if folder is not None else None
    if path is None or not path.is_file():
        return RoughTokenizer()
    from tokenizers import Tokenizer

    try:
        return FileTokenizer(Tokenizer.from_file(str(path)))
    except Exception as error:  # the library's errors have no class of their own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BackboneError(f"{path}: not a readable tokenizer ({reason})") from None
