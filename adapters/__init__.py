"""The contract between training and serving: what an adapter is, and where it lies.

    adapter.py           one PEFT folder, read and checked before any use
    peft_config.py       adapter_config.json, read strictly
    peft_folder.py       which files of a folder hold the adapter; its form as PEFT writes it
    tensor_names.py      names of LoRA tensors, as different programs write them
    safetensors_file.py  safetensors without torch: headers, finite weights, merged copies
    vllm_loader.py       what vLLM's own loader says of an adapter
    base_checkpoint.py   the base model that an adapter belongs to: shapes and fingerprint
    base_modules.py      names and shapes of its modules: tied, wrapped and quantised bases too
    manifest.py          what an adapter says of itself
    reference.py         NAME and NAME@HASH
    store.py             versions and the aliases that point at them (moves.py: their history)
    lease.py             who uses a version, and who writes
    collect.py           garbage collection (needed.py: what it must leave)
    audit.py             whether a store is sound
    bucket/              the store in object storage
    places.py            where a store is: a folder or a bucket
    exchange.py          import and export
    calibration.py       another gate for an adapter, as a new version
    calibration_prompts.py  prompts on which entropies are measured by default
    hub.py               push to the hub
    model_card.py        README.md: metadata that the hub accepts
    gguf_adapter.py      export for llama.cpp
    __main__.py          the store's commands, `python -m adapters`
    gate.py              entropy, threshold, calibration
    prompt.py            the one place that renders a prompt
    recipe.py            how a family of bases is trained and prompted (recipes/*.yaml)
    json_keys.py         each key of a JSON object once
    first_line.py        what an error says, in one line
    files.py             atomic writes

Nothing heavy is imported here: no vllm, no transformers, no torch.
"""
