# SPDX-License-Identifier: Apache-2.0
"""Addresses in the forms that people copy; `cases/judge_addresses.json` lists them."""

import json

import pytest
from paths import TABLES

from verl_p2r.chat.addresses import read_addresses, route_to

TABLE = json.loads((TABLES / "judge_addresses.json").read_text(encoding="utf-8"))["addresses"]
GOOD = [pytest.param(case["base_urls"], case["chat"], id=repr(case["base_urls"])) for case in TABLE if "chat" in case]
BAD = [
    pytest.param(case["base_urls"], case["refused"], id=repr(case["base_urls"])) for case in TABLE if "refused" in case
]


@pytest.mark.parametrize(("base_urls", "chat"), GOOD)
def test_base_urls_become_chat_completion_addresses(base_urls, chat):
    addresses = read_addresses(base_urls, "the judge")
    assert [address.chat for address in addresses] == chat
    # A normalised address can be used as input again.
    assert [address.chat for address in read_addresses([a.base for a in addresses], "the judge")] == chat


@pytest.mark.parametrize(("base_urls", "refused"), BAD)
def test_refused_address_error_gives_reason_without_password(base_urls, refused):
    with pytest.raises(ValueError, match=r"^(one of )?the judge's ") as caught:
        read_addresses(base_urls, "the judge")
    assert refused in str(caught.value)
    assert "hunter2pw" not in str(caught.value)


def test_models_address_is_derived_from_base_url():
    (address,) = read_addresses("https://x/openai/deployments/y?api-version=1", "the judge")
    assert address.models == "https://x/openai/deployments/y/models?api-version=1"
    assert address.azure
    assert not address.bare
    assert read_addresses("http://x", "the judge")[0].bare


@pytest.fixture
def environment(monkeypatch):
    """Sets proxies; none is set otherwise."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return lambda **names: [monkeypatch.setenv(name, value) for name, value in names.items()]


@pytest.mark.parametrize(
    ("names", "url", "proxy", "login"),
    [
        ({}, "http://h/v1", None, {}),
        ({"http_proxy": "http://p:3128"}, "http://h/v1", "http://p:3128", {}),
        ({"HTTP_PROXY": "p:3128"}, "http://h/v1", "http://p:3128", {}),
        ({"http_proxy": "http://p:3128"}, "https://h/v1", None, {}),
        ({"https_proxy": "http://p:3128"}, "https://h/v1", "http://p:3128", {}),
        ({"all_proxy": "http://p:3128"}, "https://h/v1", "http://p:3128", {}),
        ({"http_proxy": "http://p:3128", "no_proxy": "h"}, "http://h:8000/v1", None, {}),
        ({"http_proxy": "http://p:3128", "no_proxy": ".lan,localhost"}, "http://h.lan/v1", None, {}),
        ({"http_proxy": "http://p:3128", "no_proxy": "*"}, "http://h/v1", None, {}),
        (
            {"http_proxy": "http://me:p%40ss@p:1"},
            "http://h/v1",
            "http://p:1",
            {"Proxy-Authorization": "Basic bWU6cEBzcw=="},
        ),
    ],
)
def test_proxy_is_taken_from_environment(environment, names, url, proxy, login):
    environment(**names)
    (address,) = read_addresses(url, "the judge")
    route = route_to(address)
    assert (route.proxy.url if route.proxy else None) == proxy
    assert (route.proxy.login if route.proxy else {}) == login
    assert route.name == (f"{url} through the proxy {proxy}" if proxy else url)
    assert route_to(address, use_proxy=False).proxy is None


def test_non_http_proxy_is_refused_with_remedy(environment):
    environment(all_proxy="socks5://me:hunter2pw@p:1080")
    (address,) = read_addresses("https://h/v1", "the judge")
    with pytest.raises(
        ValueError, match=r"socks5://p:1080, .* is not an HTTP proxy: .*add h to NO_PROXY or set use_proxy"
    ):
        route_to(address)
