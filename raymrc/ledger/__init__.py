"""The ledger: one immutable record per finished fold-run, in a folder or a bucket.

This room may import `scoring`, `corpora` and `configuration`; pyarrow is loaded for URLs alone. Enter at
`ledger.Ledger`, which reads and writes records, and at `record.Record`, which says what a record holds;
`storage.open_files` opens any folder of a study's storage.
"""
