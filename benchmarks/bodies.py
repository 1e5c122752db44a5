"""What hostile request bodies do to the API: python benchmarks/bodies.py [--mb 10] [NAME ...]

Starts `minigpt4 serve` with the bundled tiny model and sends it one body after the other. While one is read, /health
is asked every 50 ms. Prints one JSON line for each body: its size, the status and the time of its answer, the longest
wait for /health, and by how much the server's memory grew at its peak, in MB and as a multiple of the body. Linux only:
memory is read from /proc. Where bodies are not bounded, --mb 20 can take all memory of the machine.
"""

import argparse
import base64
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

import httpx  # noqa: E402

MB = 1_000_000
NAME = "mini_gpt4-tiny"
JSON = {"Content-Type": "application/json"}


def request(**fields: bytes) -> bytes:
    """A body whose fields are JSON already; a field replaces the usual one."""
    usual = {"model": json.dumps(NAME).encode(), "messages": b'[{"role": "user", "content": "hello"}]'}
    return b"{" + b",".join(b'"%s":%s' % (name.encode(), text) for name, text in (usual | fields).items()) + b"}"


def many(item: bytes, size: int) -> bytes:
    """A list of so many bytes that repeats an item."""
    return b"[" + b",".join([item] * (size // (len(item) + 1))) + b"]"


def keys(size: int, value: bytes = b"1") -> bytes:
    """The inside of an object of many keys."""
    return b",".join(b'"%07x":%s' % (number, value) for number in range(size // (11 + len(value))))


def text(piece: bytes, size: int) -> bytes:
    """A string of so many bytes that repeats a piece."""
    return b'"' + piece * (size // len(piece)) + b'"'


def user(content: bytes) -> bytes:
    return b'[{"role":"user","content":' + content + b"}]"


def picture(data: bytes) -> bytes:
    return b'{"type":"image_url","image_url":{"url":"data:image/png;base64,' + data + b'"}}'


BODIES: dict[str, Callable[[int], bytes]] = {
    "numbers as messages": lambda n: request(messages=many(b"1", n)),
    "wrong parts": lambda n: request(messages=user(many(b'{"type":"x"}', n))),
    "unknown keys": lambda n: request()[:-1] + b"," + keys(n) + b"}",
    "unknown keys of a message": lambda n: request(messages=b'[{"role":"user","content":"a",' + keys(n) + b"}]"),
    "empty parts": lambda n: request(messages=user(many(b"{}", n))),
    "numbers as parts": lambda n: request(messages=user(many(b"1", n))),
    "metadata": lambda n: request(metadata=b"{" + keys(n, b'"1"') + b"}"),
    "wrong metadata": lambda n: request(metadata=b"{" + keys(n) + b"}"),
    "one long key": lambda n: request()[:-1] + b"," + text(b"k", n) + b":1}",
    "messages": lambda n: request(messages=many(b'{"role":"user","content":"a"}', n)),
    "messages with an unknown key": lambda n: request(messages=many(b'{"role":"user","content":"a","x":1}', n)),
    "parts": lambda n: request(messages=user(many(b'{"type":"text","text":"a"}', n))),
    "empty pictures": lambda n: request(messages=user(many(picture(b""), n))),
    "stop strings": lambda n: request(stop=many(b'"a"', n)),
    "empty stop strings": lambda n: request(stop=many(b'""', n)),
    "empty lists": lambda n: request(messages=many(b"[]", n)),
    "empty objects": lambda n: request(messages=many(b"{}", n)),
    "nested lists": lambda n: request(messages=b"[" * (n // 2) + b"]" * (n // 2)),
    "lists 900 deep": lambda n: request(messages=many(b"[" * 900 + b"]" * 900, n)),
    "objects 400 deep": lambda n: request(messages=many(b'{"a":' * 400 + b"1" + b"}" * 400, n)),
    "one integer": lambda n: request(seed=b"9" * n),
    "long integers": lambda n: request(messages=many(b"9" * 4000, n)),
    "floats": lambda n: request(messages=many(b"1e-300", n)),
    "text": lambda n: request(messages=user(text(b"a", n))),
    "text with one emoji": lambda n: request(messages=user(text(b"a", n)[:-1] + "\U0001f600".encode() + b'"')),
    "emoji": lambda n: request(messages=user(text("\U0001f600".encode(), n))),
    "escaped letters": lambda n: request(messages=user(text(b"\\u00e9", n))),
    "escaped pairs": lambda n: request(messages=user(text(b"\\ud83d\\ude00", n))),
    "escaped half pairs": lambda n: request(messages=user(text(b"\\ud800", n))),
    "escaped quotes": lambda n: request(messages=user(text(b'\\"\\\\', n))),
    "commas as text": lambda n: request(messages=user(text(b",", n))),
    "brackets as text": lambda n: request(messages=user(text(b"[{", n))),
    "places of pictures": lambda n: request(messages=user(text(b"<ImageHere>", n))),
    "quotes": lambda n: request(messages=b'"' * n),
    "a long role": lambda n: request(messages=b'[{"role":' + text(b"r", n) + b',"content":"a"}]'),
    "a long model": lambda n: request(model=text(b"m", n)),
    "a long stop string": lambda n: request(stop=text(b"s", n)),
    "a picture of zeros": lambda n: request(messages=user(b"[" + picture(base64.b64encode(bytes(n * 3 // 4))) + b"]")),
    "a picture that is not base64": lambda n: request(messages=user(b"[" + picture(b"*" * n) + b"]")),
    "spaces": lambda n: b" " * n,
    "numbers without an end": lambda n: request(messages=many(b"1", n))[:-2],
    "UTF-16": lambda n: request(messages=many(b"1", n // 2)).decode().encode("utf-16"),
    "UTF-32": lambda n: request(messages=many(b"1", n // 4)).decode().encode("utf-32"),
    "no UTF-8": lambda n: b"\xff" * n,
}


class Server:
    """`minigpt4 serve` on a free port."""

    def __enter__(self) -> "Server":
        command = [sys.executable, "-c", "from minigpt4.cli import main; main()", "serve", "--port", "0"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr
        for line in self.process.stderr:
            if found := re.search(r"(http://\S+)/v1", line):
                self.url = found[1]
                break
        threading.Thread(target=lambda: [None for _ in self.process.stderr or ()], daemon=True).start()
        while True:
            try:
                httpx.get(f"{self.url}/health", timeout=60)
                return self
            except httpx.ConnectError:
                time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def memory(self, key: str) -> int:
        """Bytes: VmRSS now, VmHWM at most since `reset`."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{key}:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]

    def reset(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


def measure(server: Server, body: bytes) -> dict[str, Any]:
    """Sends a body and watches the server meanwhile."""
    answer: dict[str, Any] = {}

    def send() -> None:
        start = time.perf_counter()
        try:
            got = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers=JSON, timeout=300)
            answer["status"], answer["said"] = got.status_code, got.text[:160]
            answer["answer_bytes"] = len(got.content)
        except httpx.HTTPError as error:
            answer["status"], answer["said"] = 0, repr(error)
        answer["seconds"] = round(time.perf_counter() - start, 2)

    server.reset()
    before, waits = server.memory("VmRSS"), []
    sender = threading.Thread(target=send)
    sender.start()
    while sender.is_alive() or len(waits) < 3:
        start = time.perf_counter()
        httpx.get(f"{server.url}/health", timeout=300)
        waits.append(time.perf_counter() - start)
        time.sleep(0.05)
    sender.join()
    growth = server.memory("VmHWM") - before
    return {
        "mb": round(len(body) / MB, 1),
        "longest_health_s": round(max(waits), 2),
        "grew_mb": round(growth / MB),
        "times_body": round(growth / len(body), 1),
    } | answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="bodies whose name holds one of these (default: all)")
    parser.add_argument(
        "--mb", type=float, default=10.0, help="of each body; 20 takes 5 minutes (default: %(default)s)"
    )
    options = parser.parse_args()
    size = int(options.mb * MB) - 500
    names = [name for name in BODIES if not options.names or any(part in name for part in options.names)]
    while names:
        with Server() as server:
            httpx.post(f"{server.url}/v1/chat/completions", content=request(), headers=JSON, timeout=300)  # warm up
            first = server.memory("VmRSS")
            while names and server.memory("VmRSS") < first + 50 * MB:  # what it keeps would hide how much it needs
                name = names.pop(0)
                print(json.dumps({"body": name} | measure(server, BODIES[name](size))), flush=True)


if __name__ == "__main__":
    main()
