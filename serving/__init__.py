"""vLLM's own OpenAI server, with every adapter of a store offered beside the base model.

python -m serving --model models/tiny-qwen2 --adapters adapters/store --port 8000

settings.py   what can be set, and where from
launch.py     settings -> vLLM arguments -> vLLM's server
plugin.py     what every vLLM process loads
routes.py     GET /v1/models, and the routes taken away
guard.py      --api-key
drain.py      shutting down
registry.py   store adapters, by content, as the engine knows them
modes.py      NAME and NAME:gated: admission by the model's name
arguments.py  the gate's arguments of a request
snapshot.py   an adapter's bytes, frozen while the engine may read them
engine/       all that touches vLLM's private parts
"""
