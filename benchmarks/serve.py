"""How many answers the API gives: python benchmarks/serve.py [--full] [--width 4096 --layers 32 --vit-depth 39]

For the bundled tiny model and for one with random weights: requests/s at 1, 8 and 32 clients, each of which asks about
a picture of its own, one request after the other; how long a request waited for its batch, against the most that the
queue lets it wait (the batch under way and those before its own); and whether every answer is the one that it gets
alone. Prints one JSON object; times are in seconds.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # so that it measures the checkout it lies in

import httpx  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from tqdm import tqdm  # noqa: E402

from benchmarks.chat import random_engine, towers  # noqa: E402
from benchmarks.common import machine, parse  # noqa: E402
from minigpt4.config.loading import load_config  # noqa: E402
from minigpt4.inference.engine import Engine  # noqa: E402
from minigpt4.inference.loading import load_engine  # noqa: E402
from minigpt4.inference.pictures import Picture  # noqa: E402
from minigpt4.serve.address import bind  # noqa: E402
from minigpt4.serve.api.batching import QueuedRequest  # noqa: E402
from minigpt4.serve.api.routes import build_app  # noqa: E402
from minigpt4.serve.api.service import Limits, Service  # noqa: E402
from minigpt4.serve.http import Server  # noqa: E402

CLIENTS = (1, 8, 32)
NAME = "model"


class Watch:
    """The batches of a service: when each began and ended, and how long its answers had waited."""

    def __init__(self, service: Service):
        self.seconds: list[float] = []
        self.sizes: list[int] = []
        self.waits: list[float] = []
        service.metrics.note_batch = self.note  # type: ignore[method-assign]

    def note(self, batch: list[QueuedRequest], started: float) -> None:
        self.seconds.append(time.perf_counter() - started)
        self.sizes.append(len(batch))
        self.waits += [started - ask.asked for ask in batch]


@contextmanager
def running(service: Service) -> Iterator[str]:
    place = bind("127.0.0.1", 0)
    server = Server(build_app(service), place, log_level="error")
    server.run_in_thread()
    yield f"http://127.0.0.1:{place.getsockname()[1]}/v1/chat/completions"
    server.close()


def body_of(number: int, new_tokens: int) -> dict:
    """A request about picture `number`."""
    torch.manual_seed(number)
    pixels = torch.randint(256, (64, 64, 3), dtype=torch.uint8).numpy()
    picture = Picture(Image.fromarray(pixels)).to_url()
    content = [
        {"type": "image_url", "image_url": {"url": picture}},
        {"type": "text", "text": f"Describe this image in {number} words."},
    ]
    message = {"role": "user", "content": content}
    return {"model": NAME, "messages": [message], "max_tokens": new_tokens, "temperature": 0}


def ask(client: httpx.Client, url: str, body: dict) -> str:
    answer = client.post(url, json=body).raise_for_status().json()
    return answer["choices"][0]["message"]["content"]


def measure(service: Service, url: str, clients: int, requests: int, new_tokens: int) -> tuple[dict, list[str]]:
    """Figures of so many clients, and their answers to the same requests."""
    bodies, watch, limits = [body_of(number, new_tokens) for number in range(requests)], Watch(service), service.limits
    with httpx.Client(timeout=600) as client, ThreadPoolExecutor(clients) as pool:
        start = time.perf_counter()
        waiting = pool.map(lambda body: ask(client, url, body), bodies)
        answers = list(tqdm(waiting, f"{clients} clients", total=requests))
        seconds = time.perf_counter() - start
    batches = 1 + math.ceil(limits.queue / limits.max_batch)
    return {
        "requests_per_s": round(requests / seconds, 2),
        "mean_batch": round(requests / len(watch.sizes), 1),
        "longest_wait_s": round(max(watch.waits), 3),
        "bound_of_wait_s": round(batches * max(watch.seconds), 3),
    }, answers


def benchmark(engine: Engine, options: argparse.Namespace) -> dict:
    """Figures for each number of clients."""
    limits = Limits(max_batch=options.max_batch, queue=options.queue)
    service, results, alone = Service(engine, NAME, limits), {}, []
    with running(service) as url:
        measure(service, url, 8, 8, options.new_tokens)  # warm up
        for clients in CLIENTS:
            figures, answers = measure(service, url, clients, options.requests, options.new_tokens)
            alone = alone or answers
            results[f"{clients} clients"] = figures | {
                "answers_as_alone": sum(a == b for a, b in zip(answers, alone, strict=True)) / len(alone)
            }
    first = results["1 clients"]["requests_per_s"]
    for figures in results.values():
        figures["over_1_client"] = round(figures["requests_per_s"] / first, 2)
    return results


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--width", type=int, default=512, help="of the random LLM; a multiple of 128")
    parser.add_argument("--layers", type=int, default=4, help="of the random LLM")
    parser.add_argument("--vit-depth", type=int, default=2, help="of the random model; 39 for the whole ViT-g")
    parser.add_argument("--requests", type=int, default=32, help="for each number of clients")
    parser.add_argument("--new-tokens", type=int, default=16, help="most of an answer")
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--queue", type=int, default=64)
    options = parse(parser, layers=8, requests=64, new_tokens=32)

    device = torch.device(options.device)
    config = load_config(str(ROOT / "eval_configs/minigpt4_tiny_eval.yaml"), [f"run.device={options.device}"])
    result = {"machine": machine(), "max_batch": options.max_batch, "queue": options.queue}
    result["tiny"] = benchmark(load_engine(config), options)
    engine = random_engine(options.width, options.layers, towers(options.vit_depth, device), device)
    name = f"LLaMA {options.layers} x {options.width}, ViT-g of {options.vit_depth}, {engine.model.llm.dtype}"
    result[name] = benchmark(engine, options)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
