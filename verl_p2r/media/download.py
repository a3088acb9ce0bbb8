# SPDX-License-Identifier: Apache-2.0
"""Downloads media behind URLs, if the user allows it; no other module reads media from a network.

A redirect to another host or scheme is not followed, because it could point into the local network.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urljoin, urlsplit

from verl_p2r.media.deadline import Deadline, MediaError

MAX_BYTES = 1 << 28  # largest size of one medium
MAX_REDIRECTS = 5
BLOCK = 1 << 16


def download(url: str, deadline: Deadline) -> bytes:
    """Fetch a medium.

    Args:
        url: http or https.
        deadline: for the whole download.

    Raises:
        MediaError: it cannot be fetched in time, is larger than `MAX_BYTES`, or redirects to another host or scheme.
    """
    with ThreadPoolExecutor(1) as pool:  # the caller's thread may already run an event loop
        return pool.submit(asyncio.run, _download(url, deadline)).result()


async def _download(url: str, deadline: Deadline) -> bytes:
    import aiohttp  # slow to import and rarely needed

    timeout = aiohttp.ClientTimeout(total=deadline.remaining)
    try:
        async with aiohttp.ClientSession(timeout=timeout, trust_env=True) as session:
            for _ in range(1 + MAX_REDIRECTS):
                async with session.get(url, allow_redirects=False) as response:
                    location = response.headers.get("Location")
                    if response.status // 100 == 3 and location:
                        url = _redirected(url, location)
                        continue
                    response.raise_for_status()
                    return await _body(response.content, url)
        raise MediaError(f"{url}: redirects more than {MAX_REDIRECTS} times")
    except TimeoutError as error:
        raise MediaError(
            f"{url}: not read within {deadline.seconds:g} s: the server does not answer in time"
        ) from error
    except (aiohttp.ClientError, OSError, UnicodeError) as error:
        raise MediaError(f"{url}: cannot be fetched ({type(error).__name__}: {error})") from error


def _redirected(url: str, location: str) -> str:
    target = urljoin(url, location)
    if urlsplit(url)[:2] != urlsplit(target)[:2]:
        raise MediaError(f"{url}: redirects to another host or scheme: use the address it leads to, {target}")
    return target


async def _body(content: Any, url: str) -> bytes:
    body = bytearray()
    async for block in content.iter_chunked(BLOCK):
        body += block
        if len(body) > MAX_BYTES:
            raise MediaError(f"{url}: more than {MAX_BYTES} bytes: download the file yourself")
    return bytes(body)
