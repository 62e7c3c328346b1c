"""Corpora as plain values: readers of each format, label maps, folds, validation, synthetic notes.

May import `errors` alone. Enter at `formats.read_corpus`, `note.Note` and `splits.make_folds`.
"""
