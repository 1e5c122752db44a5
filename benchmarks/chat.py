"""What the chat engine gains: python benchmarks/chat.py [--full] [--width 4096 --layers 32 --vit-depth 39 --compile]

Measured on a model with random weights: the time to the first token of turns 1 to 8 with and without the kept KV
cache, answers/s of a batch of 8 and of one by one, tokens/s, and images encoded per second; and the last two against
transformers' InstructBLIP around the same LLM. With --compile, the time of a token with and without a compiled step.

Prints one JSON object; times are medians in seconds. Ratios are given by the wall clock and, as `_cpu`, by this
process's CPU time, which other programs on a busy machine disturb less; on a GPU only the first mean anything. With
--full an answer has 128 tokens: the descriptions that MiniGPT-4 learned from have 80 and more (section 3.2).
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # so that it measures the checkout it lies in

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import LlamaConfig  # noqa: E402

from benchmarks.common import in_turn, machine, parse  # noqa: E402
from benchmarks.instructblip import Rival, instructblip, use_mkl  # noqa: E402
from minigpt4.config.schema import (  # noqa: E402
    Config,
    ModelConfig,
    ProcessorConfig,
    QformerConfig,
    RunConfig,
    VitConfig,
)
from minigpt4.conversation.conversation import Conversation, Part, Turn  # noqa: E402
from minigpt4.inference import random_engine as full_size  # noqa: E402
from minigpt4.inference.chat import Chat  # noqa: E402
from minigpt4.inference.compiled import CompiledDecoding  # noqa: E402
from minigpt4.inference.engine import Engine  # noqa: E402

IMAGE_SIZE = 224
TURNS = 8
BATCH = 8
Times = tuple[float, float]  # wall clock, CPU
WORDS = 32000  # as many as LLaMA's


def towers(vit_depth: int, device: torch.device) -> ModelConfig:
    """ViT-g with so many of its 39 blocks, and the Q-Former."""
    config = ModelConfig(image_size=IMAGE_SIZE, vit=VitConfig(depth=vit_depth), qformer=QformerConfig())
    config.vit_precision = "fp32" if device.type == "cpu" else "fp16"
    return config


def random_engine(width: int, layers: int, config: ModelConfig, device: torch.device) -> Engine:
    """MiniGPT-4 around a LLaMA of these sizes, all weights random."""
    sizes = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 128,
        max_position_embeddings=4096,
    )
    whole = Config(model=config, run=RunConfig(device=str(device)))
    whole.preprocess.vis_processor.eval = ProcessorConfig(name="blip2_image_eval", image_size=config.image_size)
    return full_size.random_engine(whole, sizes)


def read(engine: Engine, words: str) -> list[Part]:
    """What the LLM reads of words about a picture."""
    return engine.prompter.read(Conversation([Turn([None, words])]))


def seconds(work: Callable[[], object], device: torch.device) -> Times:
    """Wall-clock time and CPU time of one run."""
    synchronize = torch.accelerator.synchronize if device.type != "cpu" else lambda: None
    synchronize()
    start, cpu = time.perf_counter(), time.process_time()
    work()
    synchronize()
    return time.perf_counter() - start, time.process_time() - cpu


def medians(runs: list[Times]) -> Times:
    wall, cpu = zip(*runs, strict=True)
    return statistics.median(wall), statistics.median(cpu)


def ratio(name: str, slow: Times, fast: Times) -> dict[str, float]:
    """By the wall clock, and by CPU time."""
    return {name: round(slow[0] / fast[0], 2), f"{name}_cpu": round(slow[1] / fast[1], 2)}


def first_tokens(engine: Engine, picture: Image.Image, history: int, keep: bool) -> list[Times]:
    """Time to the first token of each turn; all but the first have `history` tokens and image rows before them."""
    chat, times = Chat(engine), []
    chat.upload_img(picture)
    words = "word " * history  # cut to what is missing
    while words and len(engine.prompter.layout(read(engine, words))) > history:
        words = words[: -max(5, len(words) // 50)]
    for turn in range(TURNS):
        if not keep:
            chat.forget_cache()
        question = words if turn == 0 else f"Question {turn}: how many digits are there, and where?"
        ask = lambda question=question: chat.answer(question, max_new_tokens=1, min_new_tokens=1)  # noqa: E731
        times.append(seconds(ask, engine.model.device))
    return times


def turns(engine: Engine, picture: Image.Image, history: int, repeats: int) -> dict[str, object]:
    """What the kept cache gains."""
    first_tokens(engine, picture, history, keep=True)  # warm up
    ways = {way: partial(first_tokens, engine, picture, history, way == "kept") for way in ("kept", "full")}
    runs = in_turn(repeats, ways)
    kept, full = ([medians(turn) for turn in zip(*runs[way], strict=True)] for way in ways)
    later = [[statistics.median(times) for times in zip(*turns[1:], strict=True)] for turns in (full, kept)]
    return {
        "history": history,
        "first_token_kept": [round(wall, 4) for wall, _ in kept],
        "first_token_full": [round(wall, 4) for wall, _ in full],
        **ratio("first_token_full_over_kept_turns_2_to_8", *later),
    }


def batches(engine: Engine, config: ModelConfig, pixels: Tensor, new_tokens: int, repeats: int) -> dict[str, object]:
    """What batches gain, and InstructBLIP beside ours.

    InstructBLIP's Q-Former reads the question too, so that it sees a picture again for each; ours keeps what it saw.
    """
    words, prompter, model = [4 * i for i in range(BATCH)], engine.prompter, engine.model
    parts = [read(engine, " " + "word " * count) for count in words]
    prompts = [prompter.text(own) for own in parts]
    images, length = model.encode_img(pixels), {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    rival = Rival(instructblip(config, model), pixels, [prompter.layout(own) for own in parts], words)
    works = {
        "encode_one": lambda: model.encode_img(pixels[:1]),
        "encode": lambda: model.encode_img(pixels),
        "encode_rival": rival.encode,
        "alone": lambda: [engine.generate(images[i : i + 1], [p], **length) for i, p in enumerate(prompts)],
        "batch_seen": lambda: engine.generate(images, prompts, **length),
        "batch": lambda: engine.generate(pixels, prompts, **length),
        "batch_rival": lambda: rival.answer(new_tokens),
    }
    ways = {name: partial(seconds, work, model.device) for name, work in works.items()}
    times = in_turn(repeats + 1, ways)  # the first warms up
    took = {name: medians(own[1:]) for name, own in times.items()}
    return {
        "answers_per_s_one_by_one": round(BATCH / took["alone"][0], 2),
        "answers_per_s_batch_of_8": round(BATCH / took["batch_seen"][0], 2),
        "tokens_per_s_one_by_one": round(BATCH * new_tokens / took["alone"][0], 1),
        "images_per_s": round(BATCH / took["encode"][0], 2),
        "ms_per_image_alone": round(1000 * took["encode_one"][0], 1),
        **ratio("answers_per_s_batch_over_one_by_one", took["alone"], took["batch_seen"]),
        **ratio("images_per_s_over_instructblip", took["encode_rival"], took["encode"]),
        **ratio("answers_per_s_new_pictures_over_instructblip", took["batch_rival"], took["batch"]),
        **ratio("answers_per_s_seen_pictures_over_instructblip", took["batch_rival"], took["batch_seen"]),
    }


def compiled(engine: Engine, pixels: Tensor, new_tokens: int, repeats: int) -> dict[str, object]:
    """What a token takes after the first, of one answer, with and without a compiled step."""
    prompt, images = engine.prompter.text(read(engine, " What is it?")), engine.encode_img(pixels[:1])
    kinds = {"usual": None, "compiled": CompiledDecoding(engine.model.llm)}

    def run(kind: str, tokens: int) -> Times:
        engine.compiled = kinds[kind]
        length = {"max_new_tokens": tokens, "min_new_tokens": tokens}
        return seconds(lambda: engine.generate(images, [prompt], **length), engine.model.device)

    ways = {(kind, tokens): partial(run, kind, tokens) for kind in kinds for tokens in (1, 1 + new_tokens)}
    # the first round compiles, the second records CUDA graphs
    took = {way: medians(own[2:]) for way, own in in_turn(repeats + 2, ways).items()}
    engine.compiled = None
    token = {}
    for kind in kinds:
        first, all_ = took[kind, 1], took[kind, 1 + new_tokens]
        token[kind] = (all_[0] - first[0]) / new_tokens, (all_[1] - first[1]) / new_tokens
    return {
        **{f"ms_per_token_{kind}": round(1000 * wall, 2) for kind, (wall, _) in token.items()},
        **ratio("token_usual_over_compiled", token["usual"], token["compiled"]),
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--width", type=int, default=512, help="of the LLM; a multiple of 128")
    parser.add_argument("--layers", type=int, default=4, help="of the LLM")
    parser.add_argument("--vit-depth", type=int, default=2, help="39 for the whole ViT-g")
    parser.add_argument("--history", type=int, default=500, help="tokens before turns 2 to 8")
    parser.add_argument("--new-tokens", type=int, default=16, help="of each answer in the batches")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--parts", nargs="*", choices=["turns", "batches"], default=["turns", "batches"])
    parser.add_argument("--compile", action="store_true", help="measure the compiled step too")
    parser.add_argument("--mkl", action="store_true", help="on a CPU, our linear layers too as PyTorch computes them")
    options = parse(parser, width=1024, layers=8, history=1000, new_tokens=128, repeats=3)

    device = torch.device(options.device)
    config = towers(options.vit_depth, device)
    engine = random_engine(options.width, options.layers, config, device)
    if options.mkl:
        use_mkl(engine.model)
    picture = Image.effect_noise((640, 480), 64).convert("RGB")
    pixels = engine.processor(picture).expand(BATCH, -1, -1, -1).to(device)
    result: dict[str, object] = {
        "machine": machine(),
        "device": f"{device}, {torch.get_num_threads()} threads",
        "load_before": os.getloadavg()[0],  # of a quiet machine it is near 0
        "sizes": f"ViT-g, {options.vit_depth} of 39 blocks; Q-Former; LLaMA {options.layers} x {options.width}, "
        f"{WORDS} words, {engine.model.llm.dtype}",
    }
    if "turns" in options.parts:
        result |= turns(engine, picture, options.history, options.repeats)
    if "batches" in options.parts:
        result |= batches(engine, config, pixels, options.new_tokens, options.repeats)
    if options.compile:
        result |= compiled(engine, pixels, options.new_tokens, options.repeats)
    if device.type != "cuda":
        result["open"] = "on an H100, 7B: <= 5.6 ms per token, compiled; <= 4 ms per image"
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
