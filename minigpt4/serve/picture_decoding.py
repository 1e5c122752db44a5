"""Decodes what strangers send in other processes, which end at a deadline, or when nobody waits for it any more.

Such a process (`python -m minigpt4.serve.picture_decoding`) reads pickled calls from stdin. It answers with a line of
JSON and the pixels; as it handles a stranger's bytes, nothing of that is unpickled.
"""

import json
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from subprocess import PIPE, Popen
from threading import BoundedSemaphore, Thread
from typing import Any

import psutil
from PIL import Image

from minigpt4.common.errors import UserError, first_line
from minigpt4.common.limits import MAX_DECODE_SECONDS, MAX_IMAGE_PIXELS

_CHECK_EVERY = 0.2  # seconds
_BYTES, _BYTES_PER_PIXEL = 512_000_000, 32  # that decoding may take: a progressive JPEG takes about 17 per pixel
_CPU_SECONDS = 100  # on all cores; the server waits for less, but it may have been killed

_Process = Popen[bytes]
_Opener = Callable[..., list[Image.Image]]
_Answer = Future[tuple[list[Image.Image], str]]  # with what the opener complained of

_places = BoundedSemaphore(2)  # processes at once
idle: list[_Process] = []  # processes that wait for a file


class Decoder:
    """A reader (see `inference.pictures`) for the files of one question.

    Args:
        max_pixels: of a picture; from it follows how much memory may be taken.
        check: called again and again while others or the process are waited for; what it raises ends the process.
        seconds: how long the process may take for all files together.
    """

    def __init__(
        self,
        max_pixels: int = MAX_IMAGE_PIXELS,
        check: Callable[[], None] = lambda: None,
        seconds: float = MAX_DECODE_SECONDS,
    ):
        self._memory = _BYTES + _BYTES_PER_PIXEL * max_pixels
        self._check, self._seconds, self._left = check, seconds, seconds

    def __call__(self, opener: _Opener, *args: Any) -> list[Image.Image]:
        """Calls a function of a module, with arguments that can be pickled, in another process.

        Raises:
            UserError: the function did, or the process took too long or ended.
        """
        with self._place():
            process, answer = _waiting_process(), _Answer()
            start = time.monotonic()
            Thread(target=_ask, args=(process, (opener, args, self._memory), answer), daemon=True).start()
            try:
                while not wait([answer], _CHECK_EVERY).done:
                    self._check()
                    if time.monotonic() - start > self._left:
                        raise UserError(
                            f"the files take more than {self._seconds:g} s to decode. Make them smaller, or save them "
                            "in another format."
                        )
            finally:
                self._left -= time.monotonic() - start
                if answer.done() and answer.exception() is None:
                    idle.append(process)
                else:
                    process.kill()
                    process.wait()
        if answer.exception() is not None:
            raise UserError("the process that decoded the file has ended. Use another file.")
        images, error = answer.result()
        if error:
            raise UserError(error)
        return images

    @contextmanager
    def _place(self) -> Iterator[None]:
        while not _places.acquire(timeout=_CHECK_EVERY):
            self._check()
        try:
            yield
        finally:
            _places.release()


def _waiting_process() -> _Process:
    """One that is idle, or else a new one."""
    with suppress(IndexError):
        while True:
            if (process := idle.pop()).poll() is None:
                return process
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = Popen([sys.executable, "-m", __name__], stdin=PIPE, stdout=PIPE, env=environment)
    assert process.stdout is not None
    process.stdout.readline()  # it is ready
    return process


def _ask(process: _Process, call: Any, answer: _Answer) -> None:
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None and stdout is not None
    try:
        pickle.dump(call, stdin, pickle.HIGHEST_PROTOCOL)
        stdin.flush()
        head = json.loads(stdout.readline())
        images = []
        for size, before in head["sizes"]:
            images.append(Image.frombytes("RGB", size, stdout.read(3 * size[0] * size[1])))
            images[-1].info["size"] = before
        answer.set_result((images, head["error"]))
    except BaseException as error:
        answer.set_exception(error)


def _serve() -> None:
    """What the other process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's, which closes stdin at its end
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # for whoever prints
    stdout.write(b"\n")
    while True:
        stdout.flush()
        try:
            opener, args, memory = pickle.load(stdin)  # noqa: S301 (from the server)
        except EOFError:
            return
        images, error = list[Image.Image](), ""
        with _limited(memory):
            try:
                images = opener(*args)
            except Exception as failure:
                error = str(failure) if isinstance(failure, UserError) else f"can't be decoded: {first_line(failure)}"
            about = {"sizes": [(image.size, image.info.get("size")) for image in images], "error": error}
            stdout.write(json.dumps(about).encode() + b"\n")
            for image in images:
                stdout.write(image.tobytes())


@contextmanager
def _limited(memory: int) -> Iterator[None]:
    """Limits how many more bytes and seconds this process may take, where the system can do that."""
    try:
        import resource
    except ImportError:
        yield
        return
    most = {
        resource.RLIMIT_AS: psutil.Process().memory_info().vms + memory,
        resource.RLIMIT_CPU: int(time.process_time()) + _CPU_SECONDS,
    }
    before = {which: resource.getrlimit(which) for which in most}
    for which, limit in most.items():
        with suppress(ValueError, OSError):  # a lower limit is set already, or it can't be limited
            resource.setrlimit(which, (limit, before[which][1]))
    yield
    for which, limits in before.items():
        resource.setrlimit(which, limits)


if __name__ == "__main__":
    _serve()
