"""A LLaMA of random weights through llama.cpp on a CPU: load, memory, a prompt, a token; beside benchmarks.quantized.

pip install llama-cpp-python gguf
python -m benchmarks.llama_cpp                          # 2 layers of 7B's
python -m benchmarks.llama_cpp --layers 32 --type q8_0  # 7B itself: the file is written to a temporary folder first
"""

import argparse
import json
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from llama_cpp import Llama
from transformers import LlamaConfig

from benchmarks.common import machine
from benchmarks.quantized import seconds

PROMPT = 80  # tokens


def weights(rows: int, columns: int, kind: Type) -> np.ndarray:
    """Random bytes that are weights of this type: blocks of a scale in float16 and integers, or bf16."""
    random = np.random.default_rng(0)
    if kind is Type.BF16:
        values = random.standard_normal((rows, columns), dtype=np.float32) * 0.02
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    of_block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(256, size=(rows, columns // of_block, size), dtype=np.uint8)
    blocks[..., :2] = np.array([0.02 / 8 if kind is Type.Q4_0 else 0.02 / 128], np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def write_llama(file: Path, layers: int, kind: Type) -> None:
    """A LLaMA as wide as 7B. All layers have the same weights, which changes no time and spares memory here."""
    sizes = LlamaConfig(num_hidden_layers=layers)
    width, inner, vocabulary = sizes.hidden_size, sizes.intermediate_size, sizes.vocab_size
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(sizes.max_position_embeddings)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(sizes.num_attention_heads)
    writer.add_layer_norm_rms_eps(sizes.rms_norm_eps)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("no_vocab")
    norm, square = np.ones(width, np.float32), weights(width, width, kind)
    up, down, words = weights(inner, width, kind), weights(width, inner, kind), weights(vocabulary, width, kind)
    layer = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), square)
    layer |= {"ffn_gate": up, "ffn_up": up, "ffn_down": down, "attn_norm": norm, "ffn_norm": norm}
    tensors = {f"blk.{i}.{name}": weight for i in range(layers) for name, weight in layer.items()}
    for name, weight in (tensors | {"token_embd": words, "output": words, "output_norm": norm}).items():
        writer.add_tensor(f"{name}.weight", weight, raw_dtype=None if weight is norm else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2, help="of the LLM; 32 for 7B")
    parser.add_argument("--type", choices=("q4_0", "q8_0", "bf16"), default="q4_0", help="of the weights in the file")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    found: dict[str, Any] = {}

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "llama.gguf"
        print("Writing the LLM", file=sys.stderr)
        write_llama(file, options.layers, Type[options.type.upper()])
        print("Measuring", file=sys.stderr)

        def load() -> None:
            found["llm"] = Llama(
                str(file), n_ctx=512, n_threads=options.threads, n_threads_batch=options.threads, verbose=False
            )

        times = {"load": seconds(load, 1)}
        llm, ids = found["llm"], np.random.default_rng(0).integers(3, 30000, PROMPT).tolist()

        def prompt() -> None:
            llm.reset()
            llm.eval(ids)

        times["prompt of 80"] = seconds(prompt, options.repeats + 1)[1:]  # the first reads the file's pages
        times["token"] = seconds(lambda: llm.eval([3]), 4 * options.repeats)
        peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
        print(json.dumps({"machine": machine(), options.type: times | {"peak_gb": peak}}, indent=1))


if __name__ == "__main__":
    main()
