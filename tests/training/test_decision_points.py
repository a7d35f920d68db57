"""Decision points in packed batches, against one token at a time; and what holds them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_networks import NETWORKS, VOCAB, adapted, network
from transformers import DynamicCache

from training.base_cache import Budget, CacheStore, compute_caches
from training.decision_points import (
    PADDING,
    Points,
    batches_of,
    layer_windows,
    make_batch,
    pack,
    point_log_probs,
    point_states,
)
from training.hf_model import head


def rollouts(count: int, seed: int = 3) -> list[tuple[list[int], list[int], list[bool]]]:
    """(prompt, answer, decisions) of different lengths, with one decision point at least."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        decisions = rng.random(rng.integers(3, 15)) < 0.4
        decisions[rng.integers(len(decisions))] = True
        prompt = rng.integers(1, VOCAB, rng.integers(1, 9)).tolist()
        answer = rng.integers(1, VOCAB, len(decisions)).tolist()
        found.append((prompt, answer, decisions.tolist()))
    return found


def slowly(model, prompt: list[int], answer: list[int], decisions: list[bool]) -> torch.Tensor:
    """[n] log p at decision points: the cache cut to the point, its own new key hidden by hand.

    The sliding-window mask is spelled out position by position.
    """
    tokens, found = prompt + answer, []
    for t in np.flatnonzero(decisions):
        p = len(prompt) - 1 + int(t)
        cache = DynamicCache()
        with torch.no_grad(), model.disable_adapter():
            model(torch.tensor([tokens[: p + 1]]), past_key_values=cache, use_cache=True)
        masks = {}
        for kind, window in layer_windows(model.config).items():
            mask = torch.full((1, 1, 1, p + 2), torch.finfo(torch.float32).min)
            for position in range(p + 1):
                if window is None or p - position < window:
                    mask[..., position] = 0
            masks[kind] = mask
        with torch.no_grad():
            logits = model(
                torch.tensor([[tokens[p]]]),
                past_key_values=cache,
                attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
                position_ids=torch.tensor([[p]]),
                use_cache=True,
            ).logits[0, -1]
        found.append(logits.log_softmax(-1)[tokens[p + 1]])
    return torch.stack(found)


def packed(model, rows) -> torch.Tensor:
    """The same by the trainer's way."""
    points = [Points.of(*row) for row in rows]
    tokens = [(p + a)[: one.reads] for (p, a, _), one in zip(rows, points, strict=True)]
    batch = make_batch(points, compute_caches(model, tokens), layer_windows(model.config))
    return point_log_probs(model, batch, [t for one in points for t in one.targets])[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_packed_points_equal_one_token_at_a_time(name: str) -> None:
    model = adapted(network(name))
    rows = rollouts(9)
    wanted = torch.cat([slowly(model, *row) for row in rows])
    torch.testing.assert_close(packed(model, rows), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_fresh_adapter_is_the_base(name: str) -> None:
    base, rows = network(name), rollouts(7)
    wanted = []
    for prompt, answer, decisions in rows:
        with torch.no_grad():
            logits = base(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        for t in np.flatnonzero(decisions):
            wanted.append(logits[len(prompt) - 1 + t, answer[t]])
    found = packed(adapted(base, scale=0.0), rows)
    torch.testing.assert_close(found, torch.stack(wanted), atol=1e-5, rtol=1e-5)


def test_keys_and_values_get_no_gradient_and_the_others_do() -> None:
    model = adapted(network("qwen2"))
    points = [Points.of(*row) for row in rollouts(4)]
    tokens = [(p + a)[: one.reads] for (p, a, _), one in zip(rollouts(4), points, strict=True)]
    batch = make_batch(points, compute_caches(model, tokens), layer_windows(model.config))
    head(model)(point_states(model, batch)).log_softmax(-1)[:, 5].sum().backward()
    moved = {
        name.split(".")[-4]: float(p.grad.abs().sum()) if p.grad is not None else 0.0
        for name, p in model.named_parameters()
        if "lora_B" in name
    }
    assert moved["k_proj"] == moved["v_proj"] == 0
    assert all(moved[m] > 0 for m in ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40))
def test_packing_takes_every_rollout_once_and_wastes_less_than_a_tenth(counts: list[int]) -> None:
    rows = pack(counts)
    assert sorted(index for row in rows for index in row) == list(range(len(counts)))
    longest = max(sum(counts[index] for index in row) for row in rows)
    assert sum(counts) >= (1 - PADDING) * len(rows) * longest


def test_a_batch_says_how_much_of_it_is_padding() -> None:
    points = [Points([1] * n, list(range(n)), [1] * n) for n in (10, 9, 1)]
    caches = [[(torch.ones(1, one.reads, 2), torch.ones(1, one.reads, 2))] for one in points]
    batch = make_batch(points, caches, {"full_attention": None})
    assert batch.ids.shape == (2, 10) and batch.padding == 0
    assert len(batch.places) == 20
    two = make_batch(points[:2], caches[:2], {"full_attention": None})
    assert two.padding == pytest.approx(1 / 20)


def test_points_are_the_positions_that_predict_the_decisions() -> None:
    points = Points.of([7, 8], [10, 11, 12], [True, False, True])
    assert points == Points([8, 11], [1, 3], [10, 12])
    assert points.reads == 4


def test_a_recurrent_state_is_refused_with_the_way_out() -> None:
    import transformers

    config = transformers.FalconH1Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        mamba_d_ssm=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_state=8,
        pad_token_id=0,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ValueError, match=r"recurrent state.*--mode always"):
        compute_caches(model, [[1, 2, 3]])


# ------------------------------------------------------------------------------- the store


# Three rollouts of one problem, two of another; the last answer is read nowhere.
PROMPTS = [[1, 2, 3], [1, 2, 3], [7, 8], [1, 2, 3], [7, 8]]
ANSWERS = [[4, 5, 6, 7], [5, 6], [9, 10, 11], [6], []]
ROWS = [prompt + answer for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]


@pytest.fixture(scope="module")
def model():
    return network("qwen2")


def filled(model, budget: Budget, folder, keep: bool = False) -> CacheStore:
    store = CacheStore(model, PROMPTS, ANSWERS, budget, folder, keep=keep)
    store.fill("base cache")
    return store


def size_of(cache) -> int:
    return sum(tensor.nbytes for layer in cache for tensor in layer)


def places(store: CacheStore) -> tuple[int, int]:
    return len(store._in_memory), len(store._on_disk)


def same(one, other) -> bool:
    return all(
        torch.allclose(a, b, atol=1e-6)
        for first, second in zip(one, other, strict=True)
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_a_cache_in_two_pieces_is_that_of_the_whole(name: str, tmp_path) -> None:
    """Sliding windows included: the prompt is longer than any."""
    base = network(name)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(1, VOCAB, n).tolist() for n in (9, 3, 9)]
    answers = [rng.integers(1, VOCAB, n).tolist() for n in (2, 8, 5)]
    prompts[2] = prompts[0]
    store = CacheStore(base, prompts, answers, Budget(2**30, 0), tmp_path / "cache")
    store.fill("base cache")
    whole = compute_caches(base, [p + a for p, a in zip(prompts, answers, strict=True)])
    assert all(same(a, b) for a, b in zip(store.get([0, 1, 2]), whole, strict=True))


def test_rollouts_of_one_problem_share_their_prompt(model, tmp_path) -> None:
    seen = []
    hook = model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    store = CacheStore(
        model, [[1, 2, 3, 4]] * 3, [[5, 6]] * 3, Budget(2**30, 0), tmp_path / "cache"
    )
    store.fill("base cache")
    hook.remove()
    assert seen == [(1, 4), (3, 2)]
    assert places(store) == (4, 0)


def test_caches_lie_in_memory_then_on_disk_and_the_rest_is_computed_again(model, tmp_path) -> None:
    wanted = compute_caches(model, ROWS)
    a_token = size_of(wanted[0]) // len(ROWS[0])
    # Both prompts fit into memory, with them the longest answer; the next one fits on disk.
    budget = Budget((3 + 2 + 4) * a_token, 3 * a_token)
    store = filled(model, budget, tmp_path / "cache")
    assert places(store) == (4, 1)  # the empty answer takes no room
    assert (budget.memory, budget.disk) == (0, 0)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    for order in ([0, 1, 2, 3, 4], [4, 0, 3], [2, 2]):
        found = store.get(order)
        assert all(same(cache, wanted[row]) for row, cache in zip(order, found, strict=True))
    store.close()
    assert not (tmp_path / "cache").exists()


def test_a_disk_that_is_full_ends_nothing(model, tmp_path, monkeypatch, caplog) -> None:
    from training import base_cache

    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(base_cache, "save_file", full)
    store = filled(model, Budget(0, 2**30), tmp_path / "cache")
    assert sum(len(store._tokens[piece]) for piece in store._in_memory) == 0
    assert list((tmp_path / "cache").iterdir()) == []  # nothing half-written
    assert caplog.text.count("the disk takes no more") == 1
    assert same(store.get([3])[0], compute_caches(model, [ROWS[3]])[0])


def test_what_a_killed_run_left_is_removed(model, tmp_path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "0.safetensors").write_bytes(b"of another run")
    store = filled(model, Budget(0, 2**30), tmp_path / "cache")
    assert same(store.get([0])[0], compute_caches(model, [ROWS[0]])[0])


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """The rows of each pass of the base, as they happen."""
    from training import base_cache

    seen: list[int] = []
    stock = base_cache.compute_caches
    monkeypatch.setattr(
        base_cache,
        "compute_caches",
        lambda m, rows, *before: seen.append(len(rows)) or stock(m, rows, *before),
    )
    return seen


def test_kept_caches_serve_the_next_store_at_other_positions(model, tmp_path, passes) -> None:
    """Whole rollouts are kept: another gate reads other positions of them."""
    wanted = compute_caches(model, ROWS)
    folder = tmp_path / "kept"
    filled(model, Budget(2**30, 2**30), folder, keep=True).close()
    assert not list(folder.glob("*.part"))
    passes.clear()

    rows, reads = [3, 1], [len(PROMPTS[3]) + 1, len(ROWS[1])]
    budget = Budget(0, 2**30)
    later = CacheStore(
        model,
        [PROMPTS[r] for r in rows],
        [ANSWERS[r] for r in rows],
        budget,
        folder,
        reads,
        keep=True,
    )
    later.fill("base cache")
    found = later.get([0, 1])
    assert passes == []
    assert budget.disk < 2**30  # what lies there counts
    for cache, row, count in zip(found, rows, reads, strict=True):
        assert same(cache, [(k[:, :count], v[:, :count]) for k, v in wanted[row]])


def test_a_damaged_kept_cache_is_computed_again(model, tmp_path, caplog) -> None:
    folder = tmp_path / "kept"
    filled(model, Budget(0, 2**30), folder, keep=True)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-3])
    later = filled(model, Budget(0, 2**30), folder, keep=True)
    wanted = compute_caches(model, ROWS)
    assert all(same(cache, wanted[row]) for row, cache in enumerate(later.get(range(len(ROWS)))))
    assert "is computed again" in caplog.text


def test_without_room_nothing_is_computed_in_advance(model, tmp_path, passes) -> None:
    store = filled(model, Budget(0, 0), tmp_path / "cache")
    assert passes == []
    store.get([0, 1])
    assert passes == [1, 2]  # the prompt once, then both answers


def test_long_prompts_behind_short_answers_make_small_batches(model, tmp_path, passes) -> None:
    prompts = [[n] * 20 for n in (1, 2) for _ in range(4)]
    answers = [[5, n] for n in range(8)]
    stores = [
        CacheStore(model, prompts, answers, budget, tmp_path / str(number), batch_tokens=40)
        for number, budget in enumerate((Budget(2**30, 0), Budget(0, 0)))
    ]
    stores[0].fill("base cache")
    # Both prompts at once. Of the answers, 80 // 22 = 3 with their prompts, where 20 fit alone.
    assert passes == [2, 3, 3, 2]
    passes.clear()
    found = stores[1].get(range(8))  # what is not kept is computed likewise
    assert passes == [2, 3, 3, 2]
    assert all(same(a, b) for a, b in zip(found, stores[0].get(range(8)), strict=True))


def test_batches_are_bounded_by_points_and_by_what_they_read() -> None:
    def of(count: int, reads: int) -> Points:
        return Points([1] * count, list(range(reads - count, reads)), [1] * count)

    # 13 points of 5 % of 256 tokens, behind a prompt of 60: 39 of them have 507 points.
    assert [len(b) for b in batches_of([of(13, 316)] * 80)] == [39, 39, 2]
    # One point each, behind a prompt of 600: 54 of them read 32,670 positions.
    assert [len(b) for b in batches_of([of(1, 605)] * 120)] == [54, 54, 12]
    assert list(batches_of([of(1, 40000), of(600, 700), of(1, 9)])) == [[2], [1], [0]]


@pytest.mark.parametrize("keep", [False, True])
def test_stores_one_after_another_share_a_budget(model, tmp_path, keep: bool) -> None:
    """A later round of training has the room that the first one had."""
    total = sum(map(size_of, compute_caches(model, ROWS)))
    budget = Budget(total, total)
    rooms = []
    for _ in range(3):
        store = filled(model, budget, tmp_path / "cache", keep=keep)
        assert len(store._in_memory) + len(store._on_disk) == len(store._tokens)
        rooms.append((budget.memory, budget.disk))
        store.close()
    assert len(set(rooms)) == 1
    assert budget.memory == total and (budget.disk == total) is not keep
