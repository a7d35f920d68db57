"""The real server over a store in a bucket: a real S3 over HTTP, another machine that moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from cloud import BUCKET
from support import Reference, StartServer, make_adapter, until
from test_server_protocol import complete

if TYPE_CHECKING:
    from cloud import Cloud

PROMPT = "Question: 4 + 9 ="


def test_it_follows_the_bucket_and_serves_on_without_it(
    cloud: Cloud, start_server: StartServer, tmp_path: Path, base_folder: Path
) -> None:
    elsewhere = cloud.store("served", tmp_path / "elsewhere")
    made = [make_adapter(tmp_path / str(n), "alpha", base_folder, seed=40 + n) for n in range(2)]
    expected = [Reference(base_folder, one.parent).greedy("alpha", PROMPT, 16) for one in made]
    assert expected[0] != expected[1]
    old, new = (elsewhere.publish(folder, "alpha").id for folder in made)
    elsewhere.alias("alpha", old)
    flags = ("--adapters", f"s3://{BUCKET}/served", "--store-cache", str(tmp_path / "cache"))

    def serves(version: str) -> bool:
        name, content = version.split("@")
        line = f'adapter_info{{adapter="{name}",version="{content}",state="resident"}} 1'
        return line in server.page()

    def answer(model: str) -> list[int]:
        return complete(server, model, PROMPT, 16)

    def reached() -> bool:
        return bool(json.loads(server.page("/health"))["store"]["reached"])

    with start_server(base_folder, tmp_path, tmp_path, *flags) as server:
        assert answer("alpha")[: len(expected[0])] == expected[0]
        elsewhere.alias("alpha", new)
        until(lambda: serves(new) and not serves(old))  # nobody has asked for it
        assert answer("alpha")[: len(expected[1])] == expected[1]
        with cloud.away():
            until(lambda: not reached())
            assert answer("alpha")[: len(expected[1])] == expected[1]
        elsewhere.alias("alpha", old)
        until(lambda: reached() and serves(old))
        assert answer("alpha")[: len(expected[0])] == expected[0]
    assert "test-secret" not in server.log
