"""What the chat engine gains: python benchmarks/chat.py [--device cuda] [--width 4096 --layers 32]

Measured on a model with random weights: the time to the first token of turns 1 to 8 with and without the kept KV
cache, answers/s of a batch of 8 and of one by one, tokens/s, and images encoded per second; and the last two against
transformers' InstructBLIP around the same LLM. Prints one JSON object; times are medians in seconds.
"""

import argparse
import json
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
from torch import Tensor, nn  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig  # noqa: E402

from benchmarks.common import in_turn, machine  # noqa: E402
from benchmarks.instructblip import Rival, instructblip  # noqa: E402
from minigpt4.common.config import ModelConfig, ProcessorConfig, QformerConfig, VitConfig  # noqa: E402
from minigpt4.conversation.chat import Chat  # noqa: E402
from minigpt4.conversation.conversation import IMAGE, Turn  # noqa: E402
from minigpt4.models.llm import load_tokenizer, pick_dtype  # noqa: E402
from minigpt4.models.minigpt4 import MiniGPT4  # noqa: E402
from minigpt4.processors import build_processor  # noqa: E402

IMAGE_SIZE = 224
TURNS = 8
BATCH = 8


def random_model(width: int, layers: int, config: ModelConfig, device: torch.device) -> MiniGPT4:
    """MiniGPT-4 around a LLaMA of these sizes, all weights random."""
    tokenizer = load_tokenizer(ROOT / "minigpt4" / "assets" / "tiny" / "llm", trust_remote_code=False)
    sizes = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 128,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    dtype = pick_dtype("auto", device)
    with torch.device(device):
        llm = AutoModelForCausalLM.from_config(sizes, dtype=dtype)
    model = MiniGPT4(config, llm, tokenizer)
    for tower in (model.visual_encoder, model.Qformer):
        tower.to_empty(device=device)
        for tensor in (*tower.parameters(), *tower.buffers()):
            if tensor.is_floating_point():
                nn.init.normal_(tensor, std=0.02)
            else:
                tensor.zero_()
    model.query_tokens = nn.Parameter(torch.zeros(model.query_tokens.shape, device=device))
    return model.to(device).eval()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of one run."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def first_tokens(model: MiniGPT4, picture: Image.Image, processor, history: int, keep: bool) -> list[float]:
    """Time to the first token of each turn; all but the first have `history` tokens and image rows before them."""
    chat, times = Chat(model, processor), []
    chat.upload_img(picture)
    words = "word " * history  # cut to what is missing
    while words and len(model.layout(model.template.prompt([Turn(IMAGE + words)]))) > history:
        words = words[: -max(5, len(words) // 50)]
    for turn in range(TURNS):
        if not keep:
            chat.forget_cache()
        question = words if turn == 0 else f"Question {turn}: how many digits are there, and where?"
        ask = lambda question=question: chat.answer(question, max_new_tokens=1, min_new_tokens=1)  # noqa: E731
        times.append(seconds(ask, model.device))
    return times


def turns(model: MiniGPT4, picture: Image.Image, processor, history: int, repeats: int) -> dict[str, object]:
    """What the kept cache gains."""
    first_tokens(model, picture, processor, history, keep=True)  # warm up
    runs = {keep: [] for keep in (True, False)}
    for _ in range(repeats):
        for keep, times in runs.items():
            times.append(first_tokens(model, picture, processor, history, keep))
    kept, full = ([statistics.median(turn) for turn in zip(*runs[keep], strict=True)] for keep in (True, False))
    ratios = [f / k for f, k in zip(full, kept, strict=True)]
    return {
        "history": history,
        "first_token_kept": [round(t, 4) for t in kept],
        "first_token_full": [round(t, 4) for t in full],
        "first_token_full_over_kept": [round(ratio, 1) for ratio in ratios],
        "first_token_full_over_kept_turns_2_to_8": round(statistics.median(ratios[1:]), 1),
    }


def batches(model: MiniGPT4, config: ModelConfig, pixels: Tensor, new_tokens: int, repeats: int) -> dict[str, object]:
    """What batches gain, and InstructBLIP beside ours.

    InstructBLIP's Q-Former reads the question too, so that it sees a picture anew for each; ours keeps what it saw.
    """
    words = [4 * i for i in range(BATCH)]
    prompts = [model.template.prompt([Turn(f"{IMAGE} " + "word " * count)]) for count in words]
    images, length = model.encode_img(pixels), {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    rival = Rival(instructblip(config, model), pixels, [model.layout(prompt) for prompt in prompts], words)
    works = {
        "encode": lambda: model.encode_img(pixels),
        "encode_rival": rival.encode,
        "alone": lambda: [model.generate(images[i : i + 1], [p], **length) for i, p in enumerate(prompts)],
        "batch_seen": lambda: model.generate(images, prompts, **length),
        "batch": lambda: model.generate(pixels, prompts, **length),
        "batch_rival": lambda: rival.answer(new_tokens),
    }
    ways = {name: partial(seconds, work, model.device) for name, work in works.items()}
    times = in_turn(repeats + 1, ways)  # the first warms up
    took = {name: statistics.median(own[1:]) for name, own in times.items()}
    return {
        "answers_per_s_one_by_one": round(BATCH / took["alone"], 2),
        "answers_per_s_batch_of_8": round(BATCH / took["batch_seen"], 2),
        "answers_per_s_batch_over_one_by_one": round(took["alone"] / took["batch_seen"], 2),
        "tokens_per_s_one_by_one": round(BATCH * new_tokens / took["alone"], 1),
        "images_per_s": round(BATCH / took["encode"], 2),
        "images_per_s_over_instructblip": round(took["encode_rival"] / took["encode"], 2),
        "answers_per_s_new_pictures_over_instructblip": round(took["batch_rival"] / took["batch"], 2),
        "answers_per_s_seen_pictures_over_instructblip": round(took["batch_rival"] / took["batch_seen"], 2),
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--width", type=int, default=512, help="of the LLM; a multiple of 128")
    parser.add_argument("--layers", type=int, default=8, help="of the LLM")
    parser.add_argument("--vit-depth", type=int, default=2, help="39 for the whole ViT-g")
    parser.add_argument("--history", type=int, default=1000, help="tokens before turns 2 to 8")
    parser.add_argument("--new-tokens", type=int, default=32, help="of each answer in the batches")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    device = torch.device(options.device)
    config = ModelConfig(image_size=IMAGE_SIZE, vit=VitConfig(depth=options.vit_depth), qformer=QformerConfig())
    config.vit_precision = "fp32" if device.type == "cpu" else "fp16"
    model = random_model(options.width, options.layers, config, device)
    processor = build_processor(ProcessorConfig(name="blip2_image_eval", image_size=IMAGE_SIZE))
    picture = Image.effect_noise((640, 480), 64).convert("RGB")
    pixels = processor(picture).expand(BATCH, -1, -1, -1).to(device)
    result = {
        "machine": machine(),
        "device": f"{device}, {torch.get_num_threads()} threads",
        "llm": f"LLaMA {options.layers} x {options.width}, {model.llama_model.dtype}",
        **turns(model, picture, processor, options.history, options.repeats),
        **batches(model, config, pixels, options.new_tokens, options.repeats),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
