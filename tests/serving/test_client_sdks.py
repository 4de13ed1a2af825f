"""Clients' tokens and the sidecar's refusals as the official SDKs see them: a token where the API key goes, and
errors that are the SDK's own."""

import anthropic
import openai
import pytest
from google import genai
from google.genai import errors
from google.genai.types import HttpOptions

from tests.faults.clients import ALICE, client, upstream

# google-genai's own, when aiohttp is there.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")
TOKEN = ALICE.decode()
HELLO = [{"role": "user", "content": "hi"}]


async def begin(start_sidecar, provider, folder, **limits):
    tables = {"clients": [client("alice", ALICE, **limits)], "upstreams": [upstream(provider.url, folder)]}
    return (await start_sidecar(None, file=tables)).url


async def ask_openai(url, key):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as sdk:
        made = await sdk.chat.completions.create(model="m", messages=HELLO)
        return made.choices[0].message.content


async def ask_anthropic(url, key):
    async with anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=0) as sdk:
        made = await sdk.messages.create(model="m", max_tokens=9, messages=HELLO)
        return made.content[0].text


async def ask_gemini(url, key):
    sdk = genai.Client(api_key=key, http_options=HttpOptions(base_url=url)).aio
    try:
        return (await sdk.models.generate_content(model="m", contents="hi")).text
    finally:
        await sdk.aclose()


SDKS = {
    "openai": (ask_openai, openai.AuthenticationError, openai.RateLimitError),
    "anthropic": (ask_anthropic, anthropic.AuthenticationError, anthropic.RateLimitError),
    "gemini": (ask_gemini, errors.ClientError, errors.ClientError),
}


@pytest.mark.parametrize("name", SDKS)
async def test_the_token_is_the_api_key(provider, start_sidecar, tmp_path, name):
    ask, unauthorized, _ = SDKS[name]
    url = await begin(start_sidecar, provider, tmp_path)
    assert await ask(url, TOKEN)
    with pytest.raises(unauthorized, match="A token is required"):
        await ask(url, "sk-somebody-elses")
    assert provider.received == 1


@pytest.mark.parametrize("name", SDKS)
async def test_a_limit_is_the_sdks_own_error(provider, start_sidecar, tmp_path, name):
    ask, _, limited = SDKS[name]
    url = await begin(start_sidecar, provider, tmp_path, rate=0.01)
    assert await ask(url, TOKEN)
    with pytest.raises(limited, match="Too many requests"):
        await ask(url, TOKEN)


@pytest.mark.parametrize(("library", "suffix"), [(openai.AsyncOpenAI, "/v1"), (anthropic.AsyncAnthropic, "")])
async def test_sdks_wait_as_long_as_they_are_told(provider, start_sidecar, tmp_path, library, suffix):
    """One request per second -> the second one comes a second later, by itself."""
    url = await begin(start_sidecar, provider, tmp_path, rate=1)
    async with library(base_url=url + suffix, api_key=TOKEN, max_retries=2) as sdk:
        for _ in range(2):
            if library is openai.AsyncOpenAI:
                await sdk.chat.completions.create(model="m", messages=HELLO)
            else:
                await sdk.messages.create(model="m", max_tokens=9, messages=HELLO)
    # The one that was refused did not get that far.
    assert provider.received == 2
