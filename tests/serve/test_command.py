"""`minigpt4 serve` as it is typed."""

import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from minigpt4.common.errors import UserError
from minigpt4.serve.command import bind
from minigpt4.tools import cli
from tests.serve.asking import client_of, user

COMMAND = [sys.executable, "-c", "from minigpt4.tools.cli import main; main()", "serve"]


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["minigpt4", "serve", *arguments])
    cli.main()


def test_it_serves_until_it_is_told_to_stop():
    environment = os.environ | {"MINIGPT4_API_KEY": "secret", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*COMMAND, "--port", "0"], stderr=subprocess.PIPE, text=True, env=environment) as process:
        log = ""
        while not (found := re.search(r"(\S+) answers at (http://127.0.0.1:\d+)/v1", log)):
            assert (line := process.stderr.readline()), log
            log += line
        name, url = found.groups()
        for line in process.stderr:
            if "startup complete" in line:
                break
        client = client_of(url, "secret")
        answer = client.chat.completions.create(model=name, messages=[user("hello")], temperature=0)
        assert name == "mini_gpt4-tiny"
        assert answer.choices[0].message.content
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGTERM)


def test_all_problems_are_told_at_once(monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as ended:
        port = str(taken.getsockname()[1])
        run(monkeypatch, "--port", port, "--queue", "0", "--options", "run.device=npu", "model.vit_model=/no/vit")
    assert ended.value.code == 2
    keys = [line.removeprefix("error: ").split(":")[0] for line in capsys.readouterr().err.splitlines() if ":" in line]
    assert keys[-4:] == ["--queue", f"--host 127.0.0.1 --port {port}", "model.vit_model", "run.device"]


def test_what_is_not_installed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(SystemExit):
        run(monkeypatch)
    assert "serving needs prometheus_client. Install it: pip install 'minigpt4[serve]'" in capsys.readouterr().err


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70000), ("no.such.host.invalid", 8000), ("192.0.2.1", 8000)])
def test_addresses_that_can_not_be(host, port):
    with pytest.raises(UserError, match=f"--host {host} --port {port}: .*. Choose another"):
        bind(host, port)


def test_both_kinds_of_addresses():
    for host in ("127.0.0.1", "::1", "localhost"):
        with bind(host, 0) as place:
            assert place.getsockname()[1] > 0
