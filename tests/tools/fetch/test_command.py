"""`minigpt4 fetch`: what it prints, and that a download is whole and right, or is not there."""

import errno
import hashlib
import io
import json
import re
import shlex
from http.client import HTTPResponse
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import torch

from minigpt4.config.loading import load_config
from minigpt4.models import published
from minigpt4.models.checkpoint import local_file
from minigpt4.models.published import Weights, published_models, published_weights
from minigpt4.models.vision import vision_class
from tests.tools.fetch.serving_files import serving

TINY = Path(published.__file__).parents[1] / "assets" / "tiny"


@pytest.fixture(scope="module")
def weights() -> bytes:
    torch.save({"llama_proj.weight": torch.ones(100, 100)}, stream := io.BytesIO())
    return stream.getvalue()


@pytest.fixture
def site(weights, monkeypatch):
    with serving() as own:
        own.files["/models/w.pth"] = weights
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("time.sleep", lambda _: None)
        yield own


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache"


@pytest.fixture
def fetch(minigpt4, cache):
    return lambda *words: minigpt4("fetch", *words, "--cache", cache)


def files(folder: Path) -> list[str]:
    """What lies below a folder, without locks."""
    return sorted(file.name for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))


def test_models_and_weights_are_listed(fetch):
    code, out, _ = fetch()
    assert code == 0
    for name in (*published_models(), *published_weights()):
        assert f"  {name} " in out


@pytest.mark.slow
def test_each_model_of_the_table_names_known_weights_and_keys_of_its_config(monkeypatch):
    for model in published_models().values():
        name = model.runs.split()[-1]
        config = load_config("minigpt4_tiny_eval" if name == "chat" else name, model.options)
        keys = {"model.llama_model", "model.ckpt", *vision_class(config.model).files(config)}
        assert set(model.needs) <= keys and set(model.needs.values()) <= published_weights().keys()
    for own in published_weights().values():
        assert bool(own.hub) != bool(own.urls) == bool(own.file)
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in own.sha256.values())


def test_what_a_model_needs_is_printed_with_the_command_that_uses_it(fetch, tmp_path):
    code, out, _ = fetch("minigpt4-vicuna-7b", "--target", tmp_path)
    assert code == 0
    for word in ("Vision-CAIR/vicuna-7b", "/eva_vit_g.pth", "13.5 GB", "LLaMA's, non-commercial", "is here  no"):
        assert word in out
    assert "99d2bb36c6b52c94fe6e2e12373afb27de57ae81378c3d8c53bf0e83b0f4275f" in out
    options = [f"model.llama_model={tmp_path}/vicuna-7b", f"model.vit_model={tmp_path}/eva_vit_g.pth"]
    options += [f"model.q_former_model={tmp_path}/blip2_pretrained_flant5xxl.pth"]
    options += [f"model.ckpt={tmp_path}/prerained_minigpt4_7b.pth"]
    assert out.rstrip().endswith(f"Then: minigpt4 chat minigpt4_eval --options {' '.join(options)}")


def test_json_names_the_same(fetch):
    code, out, _ = fetch("minigpt-v2", "tiny", "--json")
    first, second = map(json.loads, out.splitlines())
    assert code == 0 and second == {"name": "tiny", "weights": [], "command": "minigpt4 chat"}
    assert [own["key"] for own in first["weights"]] == ["model.llama_model", "model.vit_model", "model.ckpt"]
    assert first["weights"][0]["hub"] == "meta-llama/Llama-2-7b-chat-hf" and not first["weights"][0]["here"]


def test_a_name_that_is_unknown_is_refused(fetch):
    code, _, err = fetch("minigpt4-vicuna7b")
    assert code == 2 and "Did you mean 'minigpt4-vicuna-7b'?" in err
    assert fetch("--download")[0] == 2


def test_a_url_is_downloaded_to_where_configs_find_it(fetch, site, cache, weights):
    url = f"{site.url}/models/w.pth"
    assert fetch(url, "--download")[0] == 0
    assert local_file("model.ckpt", url, str(cache)).read_bytes() == weights
    assert fetch(url, "--download")[0] == 0 and len(site.asked) == 1  # it is there
    assert "is here  yes" in fetch(url)[1]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_off_is_made_again(fetch, site, cache, weights, ranges):
    site.ends, site.ranges = [1000, 2000], ranges
    assert fetch(f"{site.url}/models/w.pth", "--download")[0] == 0
    assert [begin for _, begin in site.asked] == [None, "bytes=1000-", "bytes=2000-"]
    assert files(cache) == ["w.pth"] and local_file("", f"{site.url}/models/w.pth", str(cache)).read_bytes() == weights


def test_what_was_interrupted_has_another_name_and_continues(fetch, site, cache, weights):
    site.ends = [1000] * 9
    code, _, err = fetch(f"{site.url}/models/w.pth", "--download")
    assert code == 2 and "it continues where it was interrupted" in err
    assert files(cache) == ["w.pth.part"]
    site.ends = []
    assert fetch(f"{site.url}/models/w.pth", "--download")[0] == 0
    assert site.asked[-1][1] == "bytes=1000-" and files(cache) == ["w.pth"]


def test_a_page_at_the_second_source_leaves_what_the_first_gave(fetch, site, monkeypatch, cache, weights):
    site.files["/second/w.pth"], site.ends, site.ranges = b"<html>" + b"x" * 100, [1000] * 6, False
    own = Weights("w", file="w.pth", urls=(f"{site.url}/models/w.pth", f"{site.url}/second/w.pth"))
    monkeypatch.setattr(published, "published_weights", lambda: {"w": own})
    code, _, err = fetch("w", "--download")
    (part,) = cache.rglob("w.pth.part")
    assert code == 2 and "it may be a web page" in err and "it continues where" in err
    assert part.read_bytes() == weights[:1000]
    assert fetch("w", "--download")[0] == 0 and files(cache) == ["w.pth"]


def test_nothing_is_said_to_continue_where_nothing_is_left(fetch, site):
    code, _, err = fetch(f"{site.url}/none.pth", "--download")
    assert code == 2 and "continues" not in err


def test_a_page_that_is_there_already_is_refused(fetch, site, cache):
    url = f"{site.url}/models/w.pth"
    assert fetch(url, "--download")[0] == 0
    (file,) = cache.rglob("w.pth")
    file.write_text("<html>Quota exceeded</html>")
    assert "is here  no" in fetch(url)[1]
    code, out, err = fetch(url, "--download")
    assert code == 2 and f"'{file}' is a web page" in err and "is here  no" in out


def test_a_disk_that_fills_up_ends_it_at_once(fetch, site, monkeypatch):
    tried = []

    def full(request: Request, timeout: float) -> HTTPResponse:
        def read(_: int) -> bytes:
            if len(tried) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            tried.append("a block")
            return b"x"

        tried.append("a request")
        answer = urlopen(request, timeout=timeout)
        answer.read = read
        return answer

    monkeypatch.setattr("minigpt4.tools.fetch.downloading.urlopen", full)
    code, _, err = fetch(f"{site.url}/models/w.pth", "--download")
    assert code == 2 and "can't be written (No space left on device). Free space" in err
    assert tried == ["a request", "a block"]


def test_too_little_space_for_a_file_is_reported_before_it(fetch, site, cache, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    code, _, err = fetch(f"{site.url}/models/w.pth", "--download")
    assert code == 2 and "(no space left: " in err and files(cache) == []


def test_what_fails_does_not_keep_the_others(fetch, site, cache):
    code, out, err = fetch(f"{site.url}/none.pth", f"{site.url}/models/w.pth", "--download")
    assert code == 2 and "not found" in err and "is here  yes" in out and files(cache) == ["w.pth"]


@pytest.mark.parametrize("name", ["http://127.0.0.1:9/", "http://127.0.0.1:9/?file=w.pth"])
def test_a_url_without_a_files_name_is_refused(name, fetch):
    code, _, err = fetch(name, "--download")
    assert code == 2 and "names no file" in err


def test_a_query_is_not_in_the_files_name(fetch, site, tmp_path):
    assert fetch(f"{site.url}/models/w.pth?download=true", "--download", "--target", tmp_path / "new")[0] == 0
    assert files(tmp_path / "new") == ["w.pth"]


def test_the_printed_command_finds_the_files_wherever_they_are(minigpt4, tmp_path):
    _, out, _ = minigpt4("fetch", "minigpt4-vicuna-7b", "--cache", tmp_path / "a b")
    options = shlex.split(out.partition(" --options ")[2])
    config = load_config("minigpt4_eval", options)
    assert config.env.cache_root == str(tmp_path / "a b")
    assert Path(config.model.ckpt).is_relative_to(tmp_path / "a b")


def test_a_repository_says_which_files_go_where(fetch, tmp_path):
    _, out, _ = fetch("owner/name")
    assert "files    config.json and other small files; model*.safetensors, or else pytorch_model*.bin" in out
    assert f"goes to  {tmp_path}/hub/models--owner--name; or any folder" in out


@pytest.fixture
def known(monkeypatch, site, weights):
    """Weights that are published at two URLs, of which the first is gone."""

    def publish(digest: str = hashlib.sha256(weights).hexdigest()) -> None:
        urls = (f"{site.url}/gone/w.pth", f"{site.url}/models/w.pth")
        own = Weights("w", file="w.pth", urls=urls, sha256={"w.pth": digest})
        monkeypatch.setattr(published, "published_weights", lambda: {"w": own})

    publish()
    return publish


def test_the_second_source_is_asked_where_the_first_fails(fetch, site, known, tmp_path, weights):
    assert fetch("w", "--download", "--target", tmp_path / "new")[0] == 0
    assert (tmp_path / "new" / "w.pth").read_bytes() == weights
    assert [path for path, _ in site.asked] == ["/gone/w.pth", "/models/w.pth"]


def test_another_sha256_is_refused_and_deleted(fetch, known, cache):
    known("0" * 64)
    code, _, err = fetch("w", "--download")
    assert code == 2 and "what it gives has the sha256" in err and f"published is {'0' * 64}" in err
    assert "Delete it" not in err  # which was done
    assert files(cache) == []


def test_a_file_that_was_changed_is_refused(fetch, known, cache):
    assert fetch("w", "--download")[0] == 0
    (file,) = cache.rglob("w.pth")
    file.write_bytes(b"other")
    code, _, err = fetch("w", "--download")
    assert code == 2 and "Delete it and download it again" in err


def test_a_mirror_is_asked_first(fetch, site, known, cache, weights):
    site.files = {"/mirror/w.pth": weights}
    assert fetch("w", "--download", "--mirror", f"{site.url}/mirror/")[0] == 0
    assert [path for path, _ in site.asked] == ["/mirror/w.pth"]


@pytest.mark.parametrize("mirror", ["localhost:1", "ftp://example.org"])
def test_a_mirror_is_an_address(mirror, fetch):
    code, _, error = fetch("w", "--mirror", mirror)
    assert code == 2 and f"--mirror: '{mirror}' is not an address. Begin it with https://" in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html><title>Quota exceeded</title></html>", "what it gives is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "what it gives is a Git LFS pointer"),
        (b"PK\3\4" + bytes(2000), "what it gives is truncated (download incomplete)"),
        (b"", "what it gives is empty. Try again later"),
    ],
)
def test_what_is_not_weights_is_refused(content, message, fetch, site, cache):
    site.files["/models/w.pth"] = content
    code, _, error = fetch(f"{site.url}/models/w.pth", "--download")
    assert code == 2 and message in error and len(error.splitlines()) <= 4 and "Delete it" not in error
    assert files(cache) == []


@pytest.mark.parametrize(("path", "message"), [("/none.pth", "not found (HTTP 404)"), ("", "Connection refused")])
def test_what_can_not_be_had_is_one_line_with_a_cure(path, message, fetch, site):
    url = f"{site.url}{path}" if path else "http://127.0.0.1:9/w.pth"
    code, _, error = fetch(url, "--download")
    line = error.splitlines()[-1]
    assert code == 2 and message in line and "put it at" in line


MODEL = {"config.json": b"{}", "tokenizer.model": b"t" * 50, "model.safetensors": b"w" * 5000}
MODEL |= {"pytorch_model.bin": b"x", "README.md": b"r", "onnx/model.onnx": b"o"}


def test_a_repository_of_the_hub_is_downloaded_without_what_is_not_read(fetch, site, tmp_path):
    site.repositories["owner/name"], site.ends = MODEL, [1]
    code, out, _ = fetch("owner/name", "--download", "--target", tmp_path / "new", "--mirror", site.url)
    assert code == 0 and "is here  yes" in out
    folder = tmp_path / "new" / "name"
    assert {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()} == {
        name: MODEL[name] for name in ("config.json", "tokenizer.model", "model.safetensors")
    }


def test_the_hubs_cache_is_where_configs_find_it(fetch, site, tmp_path):
    site.repositories["owner/name"] = {
        file.name: file.read_bytes() for file in (TINY / "llm").iterdir() if file.is_file()
    }
    code, _, error = fetch("owner/name", "--download", "--mirror", site.url)
    assert code == 0, error
    from minigpt4.models.llm import llm_folder

    assert llm_folder("owner/name").is_relative_to(tmp_path / "hub")
    assert "is here  yes" in fetch("owner/name")[1]


def test_a_gated_or_unknown_repository_is_one_line_with_a_cure(fetch, site):
    site.repositories["meta-llama/Llama-2-7b-chat-hf"], site.gated = MODEL, True
    code, _, error = fetch("llama-2-7b-chat", "--download", "--mirror", site.url)
    assert code == 2 and "accept their licence" in error.splitlines()[-1] and "hf auth login" in error
    code, _, error = fetch("owner/none", "--download", "--mirror", site.url)
    assert code == 2 and "there is no such model" in error.splitlines()[-1]
    code, _, error = fetch("owner/none", "--download", "--mirror", "http://127.0.0.1:9")
    assert code == 2 and "--target DIR on another machine" in error.splitlines()[-1]


def test_a_full_disk_is_reported_before_the_download(fetch, site, monkeypatch):
    site.repositories["owner/name"] = MODEL
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    code, _, error = fetch("owner/name", "--download", "--mirror", site.url)
    assert code == 2 and "Free space" in error
    assert not any("resolve" in path for path, _ in site.asked)


def test_a_disk_that_fills_up_under_a_repository_is_reported_as_such(fetch, site, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    site.repositories["owner/name"] = MODEL
    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    code, _, error = fetch("owner/name", "--download", "--mirror", site.url)
    assert code == 2 and "can't be written (No space left on device). Free space there" in error
