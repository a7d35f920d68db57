"""The contract between training and serving: what an adapter is, and where it lies.

    manifest.py   what an adapter says of itself
    version.py    one adapter folder, read and checked
    store.py      the folder of adapters that a server offers
    base.py       the base model an adapter belongs to
    gate.py       entropy, threshold, calibration
    prompt.py     the one place that renders a prompt
    recipe.py     how a family of bases is trained and prompted (recipes/*.yaml)
    files.py      atomic writes

Nothing heavy is imported here: no vllm, no transformers, no torch.
"""
