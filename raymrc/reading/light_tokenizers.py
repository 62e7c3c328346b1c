"""Tokenizers that need neither torch nor transformers: what a plan counts pieces with.

They answer as a Hugging Face tokenizer does where `windows.read_pieces` asks one.
"""

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
    """A backbone's own tokenizer: the same pieces as `transformers` reads.

    Args:
        tokenizer: of the library `tokenizers`; it cuts nothing off and fills nothing up from here on.
    """

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
    """Words and signs, long words in parts: about as many pieces as a vocabulary of 30,000 has.

    On clinical English it is within a tenth of BERT's number of pieces.
    """

    is_fast = True
    is_exact = False
    cls_token_id = sep_token_id = NOT_READ
    part = 6
    """Characters of a piece, at most."""

    def __call__(self, text: str, **_: Any) -> dict[str, Any]:
        offsets = [
            (start, min(start + self.part, match.end()))
            for match in _WORDS.finditer(text)
            for start in range(match.start(), match.end(), self.part)
        ]
        # Every piece another number: rows are only told apart by them.
        numbers = count()
        return {"input_ids": [next(numbers) for _ in offsets], "offset_mapping": offsets}


_WORDS = re.compile(r"\w+|[^\w\s]")


def read_tokenizer(folder: Path | None) -> FileTokenizer | RoughTokenizer:
    """A backbone's own where its folder is at hand and holds one, else a rough one.

    Raises:
        BackboneError: see `read_light_tokenizer`.
    """
    own = read_light_tokenizer(folder) if folder is not None else None
    return own or RoughTokenizer()


def read_light_tokenizer(folder: Path) -> FileTokenizer | None:
    """The tokenizer of a backbone's folder; None where it holds no tokenizer.json.

    Raises:
        BackboneError: there is one and it cannot be read.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        return FileTokenizer(Tokenizer.from_file(str(path)))
    except Exception as error:  # the library's errors have no class of their own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BackboneError(f"{path}: not a readable tokenizer ({reason})") from None
