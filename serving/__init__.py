"""vLLM's own OpenAI server, with every adapter of a store offered beside the base model.

    python -m serving --model models/tiny-qwen2 --adapters adapters/store --port 8000

settings.py       what can be set, and where from
launch.py         settings -> vLLM's arguments -> vLLM's server
preloading.py     the engine's processes fork from one that has imported vLLM (CPU)
starting.py       503 until the engine is up
routes.py         routes and middleware put together, and their start
request.py        the one object that follows a request, from admission to its line in the log
middleware.py     the API key; refusals while the server shuts down; the shape of errors
well_formed.py    values that neither vLLM's request classes nor its engine refuse as such
grammars.py       schemas and grammars on which vLLM would hang or fail
admission.py      NAME and NAME:gated -> a version and how it runs
aliases.py        which version answers for a name, and how that changes
plain_folders.py  plain PEFT folders of the store become versions
engine_cache.py   versions in the engine: loaded, used, dropped
slots.py          fair turns where there are more adapters than slots
engines.py        what is asked of each engine behind the server
default_gate.py   the threshold of adapters that bring none, by the server's own traffic
shipped_prompts.py  and by the base's answers to prompts, where traffic has not measured it
prompts.py        the prompt that chats are rendered with
models_api.py     GET /v1/models
admin_api.py      /admin: states, loads, pins, moves
metrics.py        what is counted, by version and mode
metrics_page.py   GET /metrics
router_metrics.py what routers that know adapters read there
controller_api.py /v1/load_lora_adapter and its opposite, for controllers of clusters
controller_sources.py  from where they may load: an allow-list
playground/       GET /gate: a page that shows base, adapter and gated answers side by side
logs.py           the form of log lines
vllm_versions.py  which vLLM is installed, and where its functions lie
"""
