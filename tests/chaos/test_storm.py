"""What the storm hands to its judge."""

import asyncio
from pathlib import Path
from typing import Any

import httpx2

from chaos.storm import PRINCIPAL, Storm
from tests.support import Server


def test_it_reads_a_stream_to_its_end(server: Server, tmp_path: Path):
    """A long storm leaves more events than one answer has."""
    api = server.client("system:dev-local")
    api.register()
    api.make_entity()
    api.send()
    claim = api.claim()
    claim.append(*[{"type": "handled"}] * 1000, token=claim.mint())
    storm = Storm(server.database, tmp_path, 0, print)

    async def read() -> list[Any]:
        async with httpx2.AsyncClient(base_url=server.url, headers=PRINCIPAL) as storm.http:
            return await storm._stream("/agent/e1")

    assert [each["type"] for each in asyncio.run(read())].count("handled") == 1000
