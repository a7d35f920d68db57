"""The contract between training and serving: what an adapter is, and where it lies.

    adapter.py           one PEFT folder, read and checked before any use
    base_checkpoint.py   the base model that an adapter belongs to: shapes and fingerprint
    manifest.py          what an adapter says of itself
    reference.py         NAME and NAME@HASH
    store.py             versions and the aliases that point at them (moves.py: their history)
    lease.py             who uses a version, and who writes
    collect.py           garbage collection
    audit.py             whether a store is sound
    exchange.py          import and export
    calibration.py       another gate for an adapter, as a new version
    calibration_prompts.py  prompts on which entropies are measured by default
    __main__.py          the store's commands, `python -m adapters`
    gate.py              entropy, threshold, calibration
    engine.py            how vLLM is told to gate
    prompt.py            the one place that renders a prompt
    recipe.py            how a family of bases is trained and prompted (recipes/*.yaml)
    files.py             atomic writes

Nothing heavy is imported here: no vllm, no transformers, no torch.
"""
