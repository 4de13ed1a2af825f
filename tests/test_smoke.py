"""The main job, once, end to end."""

import httpx


async def test_a_streamed_answer_goes_through_unchanged(provider, sidecar):
    body = {"model": "m", "stream": True, "messages": []}
    async with httpx.AsyncClient() as client:
        direct = await client.post(provider.url + "/v1/chat/completions", json=body)
        through = await client.post(sidecar.url + "/v1/chat/completions", json=body)
    assert through.content == direct.content
    line = await sidecar.lines.request()
    assert line["outcome"] == "complete"
    assert line["ttft_kind"] == "content"
