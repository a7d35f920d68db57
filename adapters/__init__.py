"""The contract between training and serving: what an adapter is, and where it lies.

    manifest.py   what an adapter says of itself
    version.py    one adapter folder, read and checked (weights.py: its numbers)
    reference.py  NAME and NAME@HASH
    store.py      versions and the aliases that point at them (moves.py: their history)
    lease.py      who uses a version, who writes
    collect.py    garbage collection       audit.py      is a store sound?
    exchange.py   import and export        __main__.py   all of it by hand
    base.py       the base model an adapter belongs to
    gate.py       entropy, threshold, calibration
    engine.py     how vLLM is told to gate
    prompt.py     the one place that renders a prompt
    recipe.py     how a family of bases is trained and prompted (recipes/*.yaml)
    files.py      atomic writes

Nothing heavy is imported here: no vllm, no transformers, no torch.
"""
