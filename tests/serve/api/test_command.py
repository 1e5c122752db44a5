"""`minigpt4 serve` as it is typed."""

import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from minigpt4 import cli
from minigpt4.serve.api.service import Limits
from tests.serve.asking import client_of, user
from tests.waiting import LIMIT

COMMAND = [sys.executable, "-c", "from minigpt4.cli import main; main()", "serve"]


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["minigpt4", "serve", *arguments])
    cli.main()


@pytest.mark.slow
def test_it_serves_until_it_is_stopped():
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
        assert process.wait(LIMIT) in (0, -signal.SIGTERM)


@pytest.mark.slow
def test_all_problems_are_reported_at_once(monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as ended:
        port = str(taken.getsockname()[1])
        wrong = ["run.device=npu", "model.vit_model=/no/vit"]
        run(monkeypatch, "--port", port, "--max-body-mb", "inf", "--options", *wrong)
    assert ended.value.code == 2
    keys = [line.removeprefix("error: ").split(":")[0] for line in capsys.readouterr().err.splitlines() if ":" in line]
    assert keys[-4:] == ["--max-body-mb", f"--host 127.0.0.1 --port {port}", "model.vit_model", "run.device"]


@pytest.mark.slow
def test_arguments_reach_the_server(monkeypatch, tiny):
    made = []
    monkeypatch.setattr("minigpt4.inference.loading.load_engine", lambda *_: tiny)
    monkeypatch.setattr("minigpt4.serve.api.routes.build_app", lambda *arguments: made.append(arguments))
    monkeypatch.setattr("minigpt4.serve.http.Server.run", lambda *_, **__: None)
    run(monkeypatch, "--port", "0")
    given = "--api-key k --max-batch 3 --queue 5 --max-image-pixels 7 --max-body-mb 0.5 "
    given += "--allow-remote-images a.example *.B.example --allowed-hosts chat.example"
    run(monkeypatch, "--port", "0", "--model-name", "org/tiny", *given.split())
    (default, no_key, hosts), (service, key, more_hosts) = made
    assert hosts == {"localhost", "127.0.0.1", "[::1]"} and more_hosts == hosts | {"chat.example"}
    assert (default.limits, no_key, default.name) == (Limits(), "", "mini_gpt4-tiny")
    assert (key, service.name) == ("k", "org/tiny")
    remote = ("a.example", "*.b.example")
    assert service.limits == Limits(max_batch=3, queue=5, max_image_pixels=7, max_body_mb=0.5, remote_images=remote)
    assert (service.batcher.max_batch, service.batcher.queue) == (3, 5)


@pytest.mark.parametrize("argument", ["--max-batch", "--queue", "--max-image-pixels"])
def test_counts_are_from_one_on(monkeypatch, capsys, argument):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, argument, "0")
    assert ended.value.code == 2
    assert f"argument {argument}: '0' is not a number from 1 on" in capsys.readouterr().err


@pytest.mark.parametrize("argument", ["--allow-remote-images", "--allowed-hosts"])
@pytest.mark.parametrize(
    "host", ["https://a.example", "a.example:80", "a.example/b", "", "*a.example", "a.*", "bücher"]
)
def test_hosts_are_written_alone(monkeypatch, capsys, argument, host):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, argument, host)
    assert ended.value.code == 2
    assert f"argument {argument}: {host!r} is not a host. Write it alone" in capsys.readouterr().err


@pytest.mark.slow
def test_hosts_of_remote_pictures_are_named(monkeypatch, capsys, tiny):
    monkeypatch.setattr("minigpt4.inference.loading.load_engine", lambda _, problems: problems.raise_all())
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "--port", "0", "--allow-remote-images")
    assert ended.value.code == 2
    assert "argument --allow-remote-images: expected at least one argument" in capsys.readouterr().err


def test_what_is_not_installed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(SystemExit):
        run(monkeypatch)
    assert "serving needs prometheus_client. Install it: pip install 'minigpt4[serve]'" in capsys.readouterr().err
