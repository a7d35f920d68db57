"""The table of everything in vLLM that this package replaces, wraps, overrides or relies on.

Each row names a function of vLLM, our code, and the SHA-256 of the source that our code was written
against. `install` is the only place that changes vLLM. It compares the hashes first, and a process
that does not use the gate never calls it.

    python -m vllm_gate.patches     # which rows the installed vLLM does not match; none: exit 0

docs/vllm-versions.md says how to move to a new vLLM.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from vllm_gate.errors import GateError, PatchError

WRITTEN_FOR = "0.32"

How = Literal[
    "replace",  # ours stands in its place
    "wrap",  # ours is called with vLLM's function and returns what stands in its place
    "instance",  # as "wrap", on single objects: see `wrap_instance`
    "override",  # a subclass of ours, which vLLM is asked to use, has a method of this name
    "rely",  # unchanged; ours depends on how it works inside
]
Group = Literal[
    "cpu",  # worker of the CPU build
    "cpu drafts",  # the same, with speculative decoding
    "cpu ngram",  # the same, with n-gram drafts
    "scheduler",  # engine core
    "runner v1",  # worker
    "runner v2",  # worker
    "outputs",  # front end
    "server",  # front end of our own server
]


class Patch(NamedTuple):
    """One function of vLLM."""

    group: Group
    owner: str  # "module" or "module:Class"
    name: str
    how: How
    ours: str  # "module:function" or "module:Class"; "" where nothing is replaced
    sha256: str  # of its source, decorators included
    reason: str
    until: str  # the upstream change that makes the row superfluous
    source: str = ""  # where the function is written, if not in `owner`

    def __str__(self) -> str:
        return f"{self.owner.replace(':', '.')}.{self.name}"


_KERNELS = "rows of the base (slot -1) read the last slot: they are answered by an adapter"
_KERNELS_UNTIL = "vLLM 0.33, whose kernels leave rows of slot -1 out"
_LAYERS = "no work for rows, modules and ranks that no adapter of the step needs"
_LAYERS_UNTIL = "LoRA layers upstream that skip modules without an adapter"
_SEEDS = "a seeded request whose prompt is computed in pieces ends the engine: CPU generators"
_SEEDS_UNTIL = "a runner upstream that rewinds no CPU generator by an offset"
_REPLAY = "replay: a position whose gate opened runs again, adapter on"
_REPLAY_UNTIL = "an interface upstream to run a position again"
_REPORT = "gated tokens are counted where they go out, after stop strings and aborts"
_REPORT_UNTIL = "a per-token field of EngineCoreOutput that reaches RequestOutput"

_LORA = "vllm.lora.layers"
_PUNICA = "vllm.lora.punica_wrapper"
_OPS = "vllm.lora.ops.torch_ops.lora_ops"
_SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
_V1 = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
_V2 = "vllm.v1.worker.gpu.model_runner:GPUModelRunner"
_OURS_V1, _OURS_V2 = "vllm_gate.runner_v1:GateRunnerV1", "vllm_gate.runner_v2:GateV2"
_KERNELS_OURS, _LAYERS_OURS = "vllm_gate.cpu.lora_kernels", "vllm_gate.cpu.lora_layers"
_DRAFTS_OURS = "vllm_gate.cpu.drafts"

# fmt: off
TABLE: tuple[Patch, ...] = (
    # ------------------------------------------------------------------ the CPU build, corrected
    Patch("cpu", f"{_PUNICA}.punica_cpu", "bgmv_shrink", "replace",
          f"{_KERNELS_OURS}:bgmv_shrink",
          "e7a5eafed74a2bc1b505dd46bfba7fefff868ac36985a5a5bc9ab1fda2f713e1",
          _KERNELS, _KERNELS_UNTIL, _OPS),
    Patch("cpu", f"{_PUNICA}.punica_cpu", "bgmv_expand", "replace",
          f"{_KERNELS_OURS}:bgmv_expand",
          "634dfed323317a2a7f920f09bb9ef8dc2d7e1843dcbe18a298053fd978f350a9",
          _KERNELS, _KERNELS_UNTIL, _OPS),
    Patch("cpu", f"{_PUNICA}.punica_cpu", "bgmv_expand_slice", "replace",
          f"{_KERNELS_OURS}:bgmv_expand_slice",
          "3534905281a25201f61e4177acd527287e2674f39fed391849078d46b5cbe044",
          _KERNELS, _KERNELS_UNTIL, _OPS),
    Patch("cpu", f"{_PUNICA}.punica_cpu:PunicaWrapperCPU", "_update_base_metadata", "replace",
          f"{_KERNELS_OURS}:update_base_metadata",
          "e0c8bab8013a624b798982229a585d7522ac548e23800bc2b44386db72a76a04",
          "the rows of each slot, found once a step and not once a layer", _LAYERS_UNTIL,
          f"{_PUNICA}.punica_base:PunicaWrapperBase"),
    Patch("cpu", f"{_PUNICA}.punica_cpu:PunicaWrapperCPU", "update_metadata", "replace",
          f"{_KERNELS_OURS}:update_metadata",
          "d495e482e77f030aef61b83f6cf90f2c4bde01d5ba5a050a6aa3c395eb886c62",
          "the rows of each slot, found once a step and not once a layer", _LAYERS_UNTIL,
          f"{_PUNICA}.punica_base:PunicaWrapperBase"),
    Patch("cpu", f"{_LORA}.base_linear:BaseLinearLayerWithLoRA", "_apply_lora_to_output", "replace",
          f"{_LAYERS_OURS}:apply_lora_to_output",
          "57c8604ccec2e37fcdb00fa37f84896d1a3d10c6913cf29f3a78ff0d20a32cd0",
          _LAYERS, _LAYERS_UNTIL),
    Patch("cpu", f"{_LORA}.base_linear:BaseLinearLayerWithLoRA", "reset_lora", "wrap",
          f"{_LAYERS_OURS}:forgetting",
          "496c868b12082f3bd1f9b7fa8dbe381f16fe3a3d9bf06ef23c944b8651668daa",
          "packed weights go when their slot is emptied", _LAYERS_UNTIL),
    Patch("cpu", "vllm.lora.model_manager:LoRAModelManager", "activate_adapter", "wrap",
          f"{_LAYERS_OURS}:keeping",
          "0661f9e08a07fe15dcfbf90445d235d4c2b098372228d6133894c5debefbe007",
          "an adapter that comes into a slot again is not packed again", _LAYERS_UNTIL),
    Patch("cpu", f"{_LORA}.column_parallel_linear:ColumnParallelLinearWithLoRA", "forward", "wrap",
          f"{_LAYERS_OURS}:linear",
          "8384ac3c13391a0bcf84c06252d0ab145fdf7ef7b092c434d0fae6dc79b6ac72",
          _LAYERS, _LAYERS_UNTIL),
    Patch("cpu", f"{_LORA}.row_parallel_linear:RowParallelLinearWithLoRA", "forward", "wrap",
          f"{_LAYERS_OURS}:linear",
          "8ad5c46718cee7c1551cb1a4be6b56d19706d9c03ab8f2f3058286f57e33d029",
          _LAYERS, _LAYERS_UNTIL),
    Patch("cpu", f"{_LORA}.replicated_linear:ReplicatedLinearWithLoRA", "forward", "wrap",
          f"{_LAYERS_OURS}:linear",
          "f6b4ab36b9c4aa0af40ffea7c424120e1cd2eb60bd01fce0b2fb6fc2ae16c57f",
          _LAYERS, _LAYERS_UNTIL),
    Patch("cpu", f"{_LORA}.vocab_parallel_embedding:VocabParallelEmbeddingWithLoRA", "forward",
          "wrap", f"{_LAYERS_OURS}:embedding",
          "5b169c35ea69b6e99123458c2af880166df339e81815f5ee7da6774f062dcde9",
          _LAYERS, _LAYERS_UNTIL),
    Patch("cpu", f"{_LORA}.vocab_parallel_embedding:VocabParallelEmbeddingWithLoRA", "reset_lora",
          "wrap", f"{_LAYERS_OURS}:forgetting",
          "040444261c0e790839ffda026e11fe1aab3de793b6b20413e0f07d7dd03361a1",
          "packed weights go when their slot is emptied", _LAYERS_UNTIL),
    Patch("cpu", f"{_LORA}.logits_processor:LogitsProcessorWithLoRA", "_get_logits", "wrap",
          f"{_LAYERS_OURS}:head",
          "e78cb65460f610615cbb8b0fcbf871330933394975992834e0d5f2debcf7da2c",
          _LAYERS, _LAYERS_UNTIL),
    Patch("cpu", f"{_LORA}.logits_processor:LogitsProcessorWithLoRA", "reset_lora", "wrap",
          f"{_LAYERS_OURS}:forgetting",
          "040444261c0e790839ffda026e11fe1aab3de793b6b20413e0f07d7dd03361a1",
          "packed weights go when their slot is emptied", _LAYERS_UNTIL),
    Patch("cpu", "vllm.v1.sample.ops.topk_topp_sampler", "apply_top_k_top_p_pytorch", "replace",
          "vllm_gate.cpu.sampling:apply_top_k_top_p_pytorch",
          "d6bcc4924866e6b9b049a7a908d77a07d396fa38d1bdb5334fc98ac55067365e",
          "top-p sorts the whole vocabulary, which takes longer than a small model",
          "a top-p upstream that does not sort the vocabulary"),
    Patch("cpu drafts", "vllm.v1.sample.rejection_sampler", "expand_batch_to_tokens", "replace",
          f"{_DRAFTS_OURS}:expand_batch_to_tokens",
          "ef896c2fe058ae7033bbb8916d1917c91e5f3724a66adf5a7e168e544449384d",
          "temperature, top-k and top-p of drafted rows are uninitialised memory",
          "vllm#55005, a kernel that writes to its output"),
    Patch("cpu drafts", "vllm.triton_utils.dispatcher", "_rebind_kernels", "replace",
          f"{_DRAFTS_OURS}:rebind_kernels",
          "68f705141997c1e39cf146242eaa0947ed059462017ac96461944d2329b74f64",
          "no second engine starts in a process that has loaded numba",
          "a search for kernels upstream that looks into dicts only"),
    Patch("cpu ngram", "vllm.v1.spec_decode.ngram_proposer:NgramProposer", "batch_propose",
          "replace", f"{_DRAFTS_OURS}:batch_propose",
          "1b418641103919961f8578724c7ab26267ad96e6b7e87cc655b454c6591f7b20",
          "numba takes the cores from the model, and compiles while the first request waits",
          "an n-gram drafter upstream that starts no threads of its own"),
    Patch("cpu", _V1, "_sample", "override", "vllm_gate.cpu.seeds:SeededRows",
          "5cb5c1da02cfdc689acb7bab51ca7eb56e2ef3b19bea4b92fc6ca4370be2cf5a",
          _SEEDS, _SEEDS_UNTIL),
    Patch("cpu", _V1, "_bookkeeping_sync", "override", "vllm_gate.cpu.seeds:SeededRows",
          "13c3e81003a7e168f5cd7a0a04bbc70b16d6c54c18ae4edbf41a45f73c3b6ea1",
          _SEEDS, _SEEDS_UNTIL),
    Patch("cpu", "vllm.v1.worker.cpu_worker:CPUWorker", "init_device", "override",
          "vllm_gate.cpu.worker:CorrectedCPUWorker",
          "11721464aeb0de34c17055fee454c78485fe0470af47cdbfe74ee7cd1a42474d",
          "the runner that it makes gets our class", "a hook of the CPU worker for its runner"),
    Patch("cpu", f"{_LORA}.base_linear:BaseLinearLayerWithLoRA", "set_lora", "rely", "",
          "c73fd59a99a6ae549a04e55d163a35742ac49bfc6e45c465a9d5a3f796adc861",
          "begins with reset_lora", _LAYERS_UNTIL),
    Patch("cpu", f"{_LORA}.column_parallel_linear:MergedColumnParallelLinearWithLoRA", "set_lora",
          "rely", "",
          "111b25b22b35b4acb7e54b4cd39340db473ed36ae1d63bcdf4f8a2ac51e395a4",
          "begins with reset_lora", _LAYERS_UNTIL),
    Patch("cpu", f"{_LORA}.vocab_parallel_embedding:VocabParallelEmbeddingWithLoRA", "set_lora",
          "rely", "",
          "38bf7c9b7e45e04146abdbba1a09fe001d9e7223d2dcb39c8b2b72c096e2de0f",
          "begins with reset_lora", _LAYERS_UNTIL),
    Patch("cpu", f"{_LORA}.logits_processor:LogitsProcessorWithLoRA", "set_lora", "rely", "",
          "e06c5b852bde66e79086845b757310e98bda097b94e89f5ee77104a11956128d",
          "begins with reset_lora", _LAYERS_UNTIL),
    Patch("cpu", f"{_PUNICA}.utils", "convert_mapping", "rely", "",
          "f95d398f21afb453d5ddaa0b117846606462a12147f6354a9f2180cc6e524d5c",
          "update_base_metadata computes the same without a GPU's buffers", _LAYERS_UNTIL),
    # --------------------------------------------------------------------- the engine's process
    Patch("scheduler", _SCHEDULER, "__init__", "override", "vllm_gate.scheduler:GateMixin",
          "c026802456720b432a00b7a4cc2dfb14e9e90d6a9a0711aa8c41c76bf0319703",
          _REPLAY, _REPLAY_UNTIL),
    Patch("scheduler", _SCHEDULER, "add_request", "override", "vllm_gate.scheduler:GateMixin",
          "fa2b51cd04a909775622d085b0f9ff4059cdf0c2e0d411f0aad2ff3c36e74acc",
          _REPLAY, _REPLAY_UNTIL),
    Patch("scheduler", _SCHEDULER, "schedule", "override", "vllm_gate.scheduler:GateMixin",
          "da4f2cf2fc39c39e76fdefa09b755d72d6b51d39fdc26830f0859ea688ded2ca",
          _REPLAY, _REPLAY_UNTIL),
    Patch("scheduler", _SCHEDULER, "update_from_output", "override",
          "vllm_gate.scheduler:GateMixin",
          "85b29db96051135c2e8efcb26637eb46d30b8b7707e947ccf4f86f6fdc613c49",
          _REPLAY, _REPLAY_UNTIL),
    Patch("scheduler", _SCHEDULER, "_free_request", "override", "vllm_gate.scheduler:GateMixin",
          "1b386dca84e6bb7308e3531e4ceb53789eab846db6211784eb49a8d9b4ebc7e7",
          _REPLAY, _REPLAY_UNTIL),
    Patch("scheduler", _SCHEDULER, "_preempt_request", "rely", "",
          "4113f5de8a84ec2532821578e8e3fb6ca4609b14d3d77b4a57d2b641ca427902",
          "takes all computed tokens back, so a decision point is forgotten", _REPLAY_UNTIL),
    Patch("scheduler", "vllm.v1.core.sched.async_scheduler:AsyncScheduler",
          "_update_request_with_output", "rely", "",
          "c4c4ccac872af0405757c4f8c7cccc489c7df04d626ca676eade8ad93870bf52",
          "counts placeholders as the roll-back of a position does", _REPLAY_UNTIL),
    Patch("scheduler", "vllm.v1.core.sched.async_scheduler:AsyncScheduler",
          "_update_after_schedule", "rely", "",
          "138d47daea23cdfd3ac33f3ead448b276e1636be02f3fbbc18ca59248abe7dba",
          "counts placeholders as the roll-back of a position does", _REPLAY_UNTIL),
    Patch("scheduler", "vllm.v1.engine.core:EngineCore", "collective_rpc", "wrap",
          "vllm_gate.pins:listening",
          "f0d85bf03430af63d87552f56bef8f06bf490da92d09e50d3006ba2e1bf79e8b",
          "the scheduler learns which adapters are pinned", "a pin_lora that asks the scheduler"),
    Patch("scheduler", "vllm.v1.core.block_pool:BlockPool", "_build_block_stored_event", "instance",
          "vllm_gate.scheduler:_tell_as_the_bases",
          "724a892fa09d35b76a4cefe66f95f16c4cc80aea67f22cce850e2eadc6107034",
          "KV events tell of a gated request's blocks as the base's", _REPLAY_UNTIL),
    # ----------------------------------------------------------------------- the model runners
    Patch("runner v1", "vllm.v1.worker.gpu_model_runner", "build_logitsprocs", "wrap",
          "vllm_gate.arguments:build_logitsprocs",
          "82609dd72304afee0b373e975011c3a628f45da6f3f6ba87bce92c0003d55391",
          "the request's gate arguments are checked with speculative decoding too",
          "logits processors upstream with speculative decoding",
          "vllm.v1.sample.logits_processor"),
    Patch("runner v1", "vllm.v1.sample.rejection_sampler:RejectionSampler", "forward", "rely", "",
          "c82e51bdd5a8dc3ce974766f6ce920280c348f94e3e58de45b2fce5cb32d92d7",
          "verifies draft by draft, so that a step may end at any of them", _REPLAY_UNTIL),
    Patch("runner v1", "vllm.v1.sample.rejection_sampler:RejectionSampler", "parse_output", "rely",
          "", "6090d9b983277064f4a03971da5d9311747506b482e6357787f28fbe9c2cb81c",
          "tokens set to -1 do not go out", _REPLAY_UNTIL),
    Patch("runner v1", _V1, "_calc_spec_decode_metadata", "rely", "",
          "6148d63fa0bff183f9189a09911ad22edfc01511fbcc7fab7bc1dd8418fdb053",
          "says which rows of logits belong to which request", _REPLAY_UNTIL),
    Patch("runner v1", _V1, "execute_model", "override", _OURS_V1,
          "e058bf791a298e988db79e75c180c5474cd4884623d87c8fe600a89b6289d1aa",
          _REPLAY, _REPLAY_UNTIL),
    Patch("runner v1", "vllm.v1.worker.lora_model_runner_mixin:LoRAModelRunnerMixin",
          "set_active_loras", "override", _OURS_V1,
          "b706b820550c0679f22583a6eea15cb15ec92a581cd36e9ce84e309ec527a973",
          _REPLAY, _REPLAY_UNTIL),
    Patch("runner v1", "vllm.v1.worker.lora_model_runner_mixin:LoRAModelRunnerMixin",
          "_set_active_loras", "rely", "",
          "9fc864a554db57469d4280a21af61de7ed7bbac5ff44981f17133671a2e3c85d",
          _REPLAY, _REPLAY_UNTIL),
    Patch("runner v1", _V1, "_prepare_inputs", "override", _OURS_V1,
          "c31a77c123a09a04971543d691b8ecce045820a05578494fc58eea2d3c665662",
          "guidance: a replay has further tokens, and a row of logits of its own", _REPLAY_UNTIL),
    Patch("runner v1", _V1, "_get_slot_mappings", "override", _OURS_V1,
          "a7830268c2582009b78018f410a45dc2b377eac4f0ede9cdba59772b9930d9ca",
          _REPLAY, _REPLAY_UNTIL),
    Patch("runner v1", _V1, "_sample", "override", _OURS_V1,
          "5cb5c1da02cfdc689acb7bab51ca7eb56e2ef3b19bea4b92fc6ca4370be2cf5a",
          _REPLAY, _REPLAY_UNTIL),
    Patch("runner v1", _V1, "_bookkeeping_sync", "rely", "",
          "13c3e81003a7e168f5cd7a0a04bbc70b16d6c54c18ae4edbf41a45f73c3b6ea1",
          "drops the tokens of rows in discard_request_mask", _REPLAY_UNTIL),
    Patch("runner v1", _V1, "sample_tokens", "override", _OURS_V1,
          "047e6a4738dead564fe9b997672e5737a9af3514a1b07fbc87c9f7df6a372d1b",
          _REPLAY, _REPLAY_UNTIL),
    Patch("runner v2", _V2, "load_model", "override", _OURS_V2,
          "53fc8c4d88ef20f2d063561399e01a3cfe62e86277c2a0f1c1785dd3f574a00b",
          _REPLAY, _REPLAY_UNTIL),
    Patch("runner v2", _V2, "execute_model", "override", _OURS_V2,
          "e1535583ba759cb3faf57f7dde6685136cf54a913756b63afb8e34c3bd87babf",
          _REPLAY, _REPLAY_UNTIL),
    Patch("runner v2", _V2, "add_requests", "override", _OURS_V2,
          "8321187d017efc9963387bd11d4943980b27c2782e4e210fd082f25bcdd147c3",
          _REPLAY, _REPLAY_UNTIL),
    Patch("runner v2", _V2, "prepare_inputs", "override", _OURS_V2,
          "bdd97f12ca571c07b0e5298f0662886a88bd3f7c97614d8f7878e07d6c572b89",
          _REPLAY, _REPLAY_UNTIL),
    Patch("runner v2", _V2, "prepare_attn", "override", _OURS_V2,
          "da2162a643e4e6c2f256159e84310ec145f1ebf20241291d1d3a10f2c7f4a0d5",
          _REPLAY, _REPLAY_UNTIL),
    Patch("runner v2", "vllm.v1.worker.lora_model_runner_mixin:LoRAModelRunnerMixin",
          "_set_active_loras", "override", _OURS_V2,
          "9fc864a554db57469d4280a21af61de7ed7bbac5ff44981f17133671a2e3c85d",
          _REPLAY, _REPLAY_UNTIL),
    Patch("runner v2", _V2, "sample_tokens", "override", _OURS_V2,
          "de7f3c7b008b9c1757dfb31a013043fd5bace66b3a24891457a9af3a2a3c2068",
          _REPLAY, _REPLAY_UNTIL),
    Patch("runner v2", "vllm.v1.worker.gpu.sample.sampler:Sampler", "__call__", "override",
          "vllm_gate.runner_v2:GateSampler",
          "8b2c419eca0ec79cbfd937b3de0c2c66a24cae99743d016a60980036322bd9b1",
          _REPLAY, _REPLAY_UNTIL),
    Patch("runner v2", "vllm.v1.worker.gpu.spec_decode.rejection_sampler:RejectionSampler",
          "__call__", "override", "vllm_gate.runner_v2:GateRejectionSampler",
          "e0a7285807218ef3d039ae57266615e01c257829cebf76073739a7fbc6aba475",
          _REPLAY, _REPLAY_UNTIL),
    Patch("runner v2", "vllm.v1.worker.gpu.input_batch", "_post_update_kernel", "rely", "",
          "1f8738a0c9e9928a4759df1b42a864d353daf89966051cc8abd96742fc99d4ec",
          "takes back the positions of rejected drafts, and a replay's", _REPLAY_UNTIL),
    Patch("runner v2", "vllm.v1.worker.gpu.block_table:BlockTables", "compute_slot_mappings",
          "rely", "",
          "d62049117725d6258ba3151770338ae49b270187aa7bb8893c3aa25eb96b8fbc",
          "fills the buffer in which a replay's slot is set to -1", _REPLAY_UNTIL),
    Patch("runner v2", f"{_PUNICA}.punica_base:PunicaWrapperBase", "_update_base_metadata",
          "instance", "vllm_gate.runner_v2:GateV2",
          "e0c8bab8013a624b798982229a585d7522ac548e23800bc2b44386db72a76a04",
          "tokens that do not replay lose their adapter", "a LoRA mapping kept on the device"),
    Patch("runner v2", "vllm.lora.ops.triton_ops.lora_kernel_metadata:LoRAKernelMeta",
          "prepare_tensors", "instance", "vllm_gate.device_state:prepare_on_device",
          "8da5aaba30a99add503626a9a47797ddf45843042326c3a343b0c537e5af72a0",
          "the host waits for the device some five times a step", "vllm#53309"),
    Patch("runner v2", f"{_PUNICA}.punica_gpu:PunicaWrapperGPU", "update_metadata", "rely", "",
          "79e3a33d5e3af38e4ae189bb3b22a43878bc6497a90bc2f90ee40c661b9fc47e",
          "calls prepare_tensors with the mapping that the gate has masked", "vllm#53309"),
    Patch("runner v2", _V2, "gather_batch_req_state", "override", _OURS_V2,
          "18da780f3c3ffdea5e38b6d663083792796b92e8bfe2159ae16b76d0af9db7ca",
          "a request may have two rows of a step", _REPLAY_UNTIL),
    Patch("runner v2", _V2, "sample", "rely", "",
          "78982d0f9f603fccb2deeb49466213c5c045fa30c72db0582ec528a023ba2db0",
          "takes the logits at logits_indices, those of second rows included", _REPLAY_UNTIL),
    Patch("runner v2", _V2, "_dummy_sampler_run", "override", _OURS_V2,
          "55436a421c4b5524e6c3a669ba74d567aaf3162187d50ab1f67863f673ced6e6",
          "the gate's memory is in vLLM's profile", _REPLAY_UNTIL),
    Patch("runner v2", "vllm.v1.worker.gpu.model_runner", "sort_batch_req_ids", "rely", "",
          "9ce40a1eba6a70383069dbe494b29b25ab226d7b227e96afb43e6a04ef0f7a98",
          "leaves second rows behind the others in steps that decode", _REPLAY_UNTIL),
    Patch("runner v2", "vllm.v1.worker.gpu.async_utils:AsyncOutput", "get_output", "instance",
          "vllm_gate.runner_v2:_attach",
          "9e71d499f9d9d432654dbbf8df0b3fb98d878bab13083b024a6852cd4babca26",
          "an asynchronous result brings what was seen of its decision points",
          "a free-form field of ModelRunnerOutput"),
    Patch("runner v2", "vllm.v1.worker.gpu_worker:Worker", "_make_model_runner", "override",
          "vllm_gate.gpu_worker:GateGPUWorker",
          "3817214704e1e262501988b3355525be27d1a61424ff9db1da1be11016fa2be4",
          _REPLAY, _REPLAY_UNTIL),
    # --------------------------------------------------------------------------- the front end
    Patch("outputs", "vllm.v1.engine.output_processor:RequestState", "from_new_request", "wrap",
          "vllm_gate.token_report:from_new_request",
          "eaf12c8b6422112bfba2cd411afb424454ff72c53f0e079e4b99fc0cb3001eb4",
          _REPORT, _REPORT_UNTIL),
    Patch("outputs", "vllm.v1.engine.output_processor:RequestState", "make_request_output", "wrap",
          "vllm_gate.token_report:make_request_output",
          "353cb96c5deaa3077e99e21bb8a747d2e026c90edce586f7bd5868fe1056a170",
          _REPORT, _REPORT_UNTIL),
    Patch("server", "vllm.entrypoints.serve.engine.serving:BaseServing", "_check_model", "wrap",
          "vllm_gate.model_check:check_model",
          "5a2f4707ffb7f367cd89c82699f96ea9c9d6c4aca0a95b72d9af23e801f6ebbd",
          "the server is asked before vLLM looks a name up",
          "a LoRA resolver upstream that is asked for known names too"),
    Patch("server", "vllm.v1.engine.async_llm:AsyncLLM", "shutdown", "instance", "",
          "bdbf42b739a6731d6553b015cc04bd2abeb907b5d0ae42ef19e75497f4b3745d",
          "new requests are refused once the engine drains", "a drain upstream that answers 503"),
    Patch("server", "vllm.v1.engine.async_llm:AsyncLLM", "check_admission", "instance", "",
          "80b2a1ef9d95874fb0837a14c34e0b7acb9c54e7aeefcf012273b89223e2b70b",
          "a draining engine takes nothing new: vLLM would answer with an empty text, as if it had "
          "ended", "a drain upstream that answers 503"),
    Patch("server", "vllm.v1.engine.core_client:DPLBAsyncMPClient", "get_core_engine_for_request",
          "rely", "", "964adc43fd38ab3250a1d96606a82d1c59a04baadc882e3b9c23431b9440c497",
          "a request goes to the engine that has its LoRA slot (data_parallel_rank)", ""),
    Patch("server", "vllm.v1.engine.core_client:AsyncMPClient", "call_utility_all_async", "rely",
          "", "477aad87bf49a96dd58709afad5ece22bbb58f32f6cf3f39c3144df3f9e85a5d",
          "all engines say which adapters they hold", ""),
    Patch("server", "vllm.v1.metrics.loggers:PrometheusStatLogger", "record", "rely", "",
          "a506cbde792854127d65c83c02060a5368d5b1eb1428fdd1f657323f25f6b29e",
          "without its gauge_lora_info there is no series for each set of adapters in flight",
          "a vllm:lora_requests_info upstream with one adapter to a series"),
    Patch("server", "vllm.v1.engine.utils:CoreEngineProcManager", "monitor_engine_liveness", "rely",
          "", "6e14b6a89de06485ae6d5034cff3f626b1585dc881cef0f108de35ee0b06b8eb",
          "the engine that has ended by itself is named", ""),
    Patch("server", "vllm.utils.system_utils", "get_mp_context", "rely", "",
          "8b045a017577026e90790f9cddb8eb05ed195508934e5e1667ce3ae91d6a45d3",
          "asks vllm.envs how processes start, where serving/preloading.py says it",
          "a CPU build that lets VLLM_WORKER_MULTIPROC_METHOD be chosen"),
)
# fmt: on


def supported() -> bool:
    """Whether the installed vLLM is the version that the table was written for."""
    from vllm.version import __version_tuple__

    major, minor = WRITTEN_FOR.split(".")
    return tuple(__version_tuple__[:2]) == (int(major), int(minor))


def check_version() -> None:
    """Raise GateError where the installed vLLM is another version."""
    from vllm.version import __version__

    if not supported():
        raise GateError(
            f"the gate was written for vLLM {WRITTEN_FOR}.x, and this is {__version__}; install "
            f"vllm=={WRITTEN_FOR}.0 or serve with --gate off"
        )


# ------------------------------------------------------------------------------------ the hashes


@cache
def _lines(path: Path) -> tuple[str, ...]:
    return tuple(path.read_text(encoding="utf-8").splitlines(keepends=True))


@cache
def _block(path: Path, start: int) -> str:
    return "".join(inspect.getblock(list(_lines(path)[start:])))


def _path(module: str) -> Path:
    """The file of a module of vLLM, found without importing it."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.submodule_search_locations
    whole = Path(spec.submodule_search_locations[0], *module.split(".")[1:])
    return whole / "__init__.py" if whole.is_dir() else whole.with_suffix(".py")


def source(row: Patch) -> str:
    """The source of a row's function as it stands in the installed vLLM.

    Raises:
        LookupError: this vLLM has no such function there.
    """
    module, _, owner = (row.source or row.owner).partition(":")
    path = _path(module)
    if not path.is_file():
        raise LookupError(f"no module {module}")
    lines, first, indent = _lines(path), 0, ""
    if owner:
        begins = re.compile(rf"class {owner}\b")
        first = next((at for at, line in enumerate(lines) if begins.match(line)), -1) + 1
        if not first:
            raise LookupError(f"no class {owner} in {module}")
        indent = "    "
    begins = re.compile(rf"{indent}(async )?def {row.name}\(")
    for at in range(first, len(lines)):
        if owner and re.match(r"\S", lines[at]) and not lines[at].startswith(("#", ")")):
            break  # the class is over
        if begins.match(lines[at]):
            start = at
            while lines[start - 1].startswith(f"{indent}@"):
                start -= 1
            return _block(path, start)
    raise LookupError(f"no {row.name} in {row.source or row.owner}")


def sha256(row: Patch) -> str:
    """The SHA-256 of `source(row)`; empty where there is no such function."""
    try:
        return hashlib.sha256(source(row).encode()).hexdigest()
    except LookupError:
        return ""


def mismatches(*groups: Group) -> list[Patch]:
    """Rows of these groups (default: all) whose source in vLLM is not the one in the table."""
    return [row for row in TABLE if row.group in (groups or _ALL) and sha256(row) != row.sha256]


def check(*groups: Group) -> None:
    """Raise PatchError where the installed vLLM differs from the table, in these groups."""
    for row in mismatches(*groups):
        raise PatchError(_differs(row, "is not the source that the gate was written against"))


def _differs(row: Patch, what: str) -> str:
    from vllm.version import __version__

    return (
        f"{row} {what} (vLLM {WRITTEN_FOR}; this is {__version__}); install "
        f"vllm=={WRITTEN_FOR}.0, or serve with --gate off"
    )


_ALL: tuple[Group, ...] = get_args(Group)

# ------------------------------------------------------------------------------- what is changed

_changed: dict[Patch, tuple[Any, Any]] = {}  # what vLLM had, and what stands there now


def install(*groups: Group, checked: bool = True) -> None:
    """Put our functions in place of vLLM's in this process; again is harmless, and costs nothing.

    Args:
        checked: False: sources may differ from the table, and another plugin may have been there.

    Raises:
        PatchError: a function is not the one that ours was written for.
    """
    changing = [row for row in TABLE if row.group in groups and row.how in ("replace", "wrap")]
    if changing and all(row in _changed for row in changing):
        return
    if checked:
        check(*groups)
    for row in changing:
        if row in _changed:
            continue
        owner = _owner(row)
        theirs = inspect.getattr_static(owner, row.name)
        bare = theirs.__func__ if isinstance(theirs, classmethod) else theirs
        if checked:
            _check_origin(row, bare)
        ours = _load(row.ours)
        made = ours(bare) if row.how == "wrap" else ours
        made = classmethod(made) if isinstance(theirs, classmethod) else made
        setattr(owner, row.name, made)
        _changed[row] = theirs, made


def wrap_instance(owner: str, name: str, instance: Any, ours: Callable[..., Any]) -> None:
    """Replace a method of one object with `ours`. The table has a row for it, which says why."""
    assert any((row.owner, row.name, row.how) == (owner, name, "instance") for row in TABLE)
    setattr(instance, name, ours)


def theirs(owner: Any, name: str) -> Any:
    """vLLM's `owner.name`, whether we have replaced it or not."""
    for row, (stock, _) in _changed.items():
        if row.name == name and _owner(row) is owner:
            return stock
    return getattr(owner, name)


@contextmanager
def stock(*groups: Group) -> Iterator[None]:
    """vLLM's own functions for a while, to measure and test against.

    Begin and end between two requests.
    """
    changed = [(row, both) for row, both in _changed.items() if row.group in groups]
    for row, (before, _) in changed:
        setattr(_owner(row), row.name, before)
    try:
        yield
    finally:
        for row, (_, after) in changed:
            setattr(_owner(row), row.name, after)


def _owner(row: Patch) -> Any:
    module, _, name = row.owner.partition(":")
    loaded = importlib.import_module(module)
    return getattr(loaded, name) if name else loaded


def _load(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def _check_origin(row: Patch, function: Any) -> None:
    """Another plugin may have replaced the function before us."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    written = _path((row.source or row.owner).partition(":")[0])
    if code is None or Path(code.co_filename).resolve() != written.resolve():
        where = getattr(function, "__module__", "elsewhere")
        raise PatchError(_differs(row, f"has been replaced by {where}"))


def main(argv: Iterable[str]) -> int:
    """List the rows that the installed vLLM does not match. Returns 1 where there are some."""
    from vllm.version import __version__

    if list(argv):
        print("python -m vllm_gate.patches takes no arguments", file=sys.stderr)
        return 2
    odd = mismatches()
    for row in odd:
        what = "changed" if sha256(row) else "not there"
        print(f"{row.group:10} {row.how:9} {what:10} {row}")
    print(f"vLLM {__version__}: {len(odd)} of {len(TABLE)} rows differ from {WRITTEN_FOR}")
    return 1 if odd else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
