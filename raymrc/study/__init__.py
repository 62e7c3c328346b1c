"""The study file: its sections, loading, checks, search spaces, and the notes that it names.

This room may import `racing` and all below it, pydantic and YAML; it knows neither torch nor rich. Enter at
`load.load_spec` for a checked `spec.Spec`; `sections` declares every field, `notes` reads the corpora.
"""
