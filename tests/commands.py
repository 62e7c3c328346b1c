"""Run commands as a user does, in a folder: each in its own process, or in this one, which is faster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from raymrc.cli import main

STUDY = """
study: tiny
task: concepts
corpus: {reader: brat, path: notes}
folds: {count: 2, validation_share: 0.3}
backbones:
  - {name: tiny, source: backbone}
strategies:
  frozen_soft_prompt: {learning_rate: 2.0e-2, prompt_length: 4}
training: {epochs: 1, window: 32, overlap: 8, match_width: 8}
storage: runs/tiny
"""


def raymrc(
    *arguments: str | Path,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    program: Sequence[str] = ("-m", "raymrc"),
) -> subprocess.CompletedProcess[str]:
    """Run `raymrc ARGUMENTS` in `folder`, or Python with another `program` instead."""
    return subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
    )


def call(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `raymrc ARGUMENTS` in `folder` without starting a process."""
    words, out, err = list(map(str, arguments)), StringIO(), StringIO()
    with chdir(folder), redirect_stdout(out), redirect_stderr(err):
        code = main(words)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def write_notes(folder: Path, notes: Mapping[str, tuple[str, str]]) -> None:
    """Write brat files; `notes` maps a note's id to its text and annotation lines."""
    folder.mkdir(parents=True)
    for note_id, (text, lines) in notes.items():
        (folder / f"{note_id}.txt").write_text(text, encoding="utf-8")
        (folder / f"{note_id}.ann").write_text(lines, encoding="utf-8")
