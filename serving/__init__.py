"""vLLM's own OpenAI server, with every adapter of a store offered beside the base model.

python -m serving --model models/tiny-qwen2 --adapters adapters/store --port 8000

settings.py   what can be set, and where from
launch.py     settings -> vLLM arguments -> vLLM's server
routes.py     GET /v1/models, and the routes taken away
admin.py      /admin: states, loads, pins, moves
guard.py      --api-key
drain.py      shutting down
held.py       what a request holds until its answer is over
modes.py      NAME and NAME:gated: admission by the model's name
registry.py   which version answers for a name, and how that changes
slots.py      fair turns where there are more adapters than slots
residents.py  versions in the engine: loaded, used, dropped
default_gate.py     the threshold of adapters that bring none, by the server's own traffic
shipped_prompts.py  and by the base's answers to prompts, where traffic has not measured it
snapshot.py   an adapter's bytes, frozen while the engine may read them
admission.py  asks the registry before vLLM looks up a name
"""
