"""Many visitors in bounded memory: the least recently used sessions lose their caches first."""

from threading import Lock
from weakref import WeakKeyDictionary

from minigpt4.common.errors import UserError
from minigpt4.common.limits import MAX_IMAGE_PIXELS, MAX_SESSIONS
from minigpt4.inference.chat import Chat
from minigpt4.inference.requests import Answerer

_PICTURES_PER_CACHE = 4  # an image's embedding is far smaller than the keys and values of its chat


class Sessions:
    """Opens sessions, and bounds what they keep on the device.

    The `max_sessions` that asked last keep their KV cache, four times as many their image embeddings. The others keep
    words and pictures in main memory, and the next question brings the rest back. A session ends when nobody refers
    to it any more.

    Args:
        engine, max_pixels: as for `Chat`.
        max_sessions: 1 or more. A KV cache takes 2 x layers x key-value heads x head size numbers per token: 0.5 MB in
            half precision for a LLaMA of 7B.
    """

    def __init__(self, engine: Answerer, max_sessions: int = MAX_SESSIONS, max_pixels: int = MAX_IMAGE_PIXELS):
        if max_sessions < 1:
            raise UserError(f"max_sessions: {max_sessions} is out of range. Set it to 1 or more.")
        self.engine = engine
        self.max_sessions = max_sessions
        self.max_pixels = max_pixels
        self._lock = Lock()
        self._used = WeakKeyDictionary[Chat, None]()  # the last one is the last that asked

    def open(self) -> Chat:
        return Chat(self.engine, self._note, self.max_pixels)

    def _note(self, chat: Chat) -> None:
        with self._lock:
            self._used.pop(chat, None)
            self._used[chat] = None
            for place, idle in enumerate(reversed(list(self._used))):
                if place >= self.max_sessions:
                    idle.forget_cache(pictures_too=place >= _PICTURES_PER_CACHE * self.max_sessions)
