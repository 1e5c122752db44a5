"""Where the page and the API listen."""

import gradio as gr
import httpx
import pytest

from minigpt4.common.errors import UserError
from minigpt4.serve.address import bind, in_url
from minigpt4.serve.web import server


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", 70000), ("no.such.host.invalid", 8000), ("192.0.2.1", 8000), ("a..b", 8000)]
)
def test_addresses_that_can_not_be(host, port):
    with pytest.raises(UserError, match=f"--host {host} --port {port}: .*. Choose another"):
        bind(host, port)


def test_both_kinds_of_addresses():
    for host in ("127.0.0.1", "::1", "localhost"):
        with bind(host, 0) as place:
            assert place.getsockname()[1] > 0


def test_how_urls_write_them():
    assert [in_url(host) for host in ("::1", "127.0.0.1", "localhost")] == ["[::1]", "127.0.0.1", "localhost"]


@pytest.mark.slow
@pytest.mark.parametrize("host", ["::1", "localhost"])
def test_the_page_listens_there_too(host):
    place = bind(host, 0)
    with gr.Blocks() as page:
        pass
    server.launch(page, place, host)
    try:
        assert httpx.get(f"http://{in_url(host)}:{place.getsockname()[1]}/").status_code == 200
    finally:
        page.close()
