"""Turns notes into rows and answers into notes: windows, questions, gold targets, rows, decoded answers.

It may import corpora, configuration, quantities and errors; it knows numpy and tokenizers, and no torch.
Enter at `rows.RowBuilder`, which asks windows their questions, and `answers.assemble`, which reads them back.
"""
