"""`minigpt4 convert-llama`: the weights of LLaMA as Meta gave them out become the folder of a Hugging Face model.

Each file of Meta's holds a share of every matrix: of most some rows, of others some columns. Facts from
convert_llama_weights_to_hf.py of transformers.
"""

import argparse
import json
import logging
import re
import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt4.common.errors import UserError, first_line
from minigpt4.common.files import replace_file
from minigpt4.common.wrong_files import wrong_file

if TYPE_CHECKING:  # slow to import
    from torch import Tensor

    from minigpt4.models.tensor_files import TensorFiles

logger = logging.getLogger(__name__)

_ROWS, _COLUMNS, _WHOLE = 0, 1, None  # what a file holds a share of
_LAYER = {
    "attention.wq": ("self_attn.q_proj", _ROWS),
    "attention.wk": ("self_attn.k_proj", _ROWS),
    "attention.wv": ("self_attn.v_proj", _ROWS),
    "attention.wo": ("self_attn.o_proj", _COLUMNS),
    "feed_forward.w1": ("mlp.gate_proj", _ROWS),
    "feed_forward.w2": ("mlp.down_proj", _COLUMNS),
    "feed_forward.w3": ("mlp.up_proj", _ROWS),
    "attention_norm": ("input_layernorm", _WHOLE),
    "ffn_norm": ("post_attention_layernorm", _WHOLE),
}
_OUTER = {
    "tok_embeddings": ("model.embed_tokens", _COLUMNS),
    "norm": ("model.norm", _WHOLE),
    "output": ("lm_head", _ROWS),
}
_SIZES = {"dim": int, "n_layers": int, "n_heads": int, "norm_eps": float}  # in params.json
_LLAMA_2_EPS = 1e-5  # LLaMA has 1e-6
_THETA = 10000.0
_TOKENIZER = {
    "tokenizer_class": "LlamaTokenizer",
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "clean_up_tokenization_spaces": False,
    "legacy": True,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(main=main)
    parser.add_argument("folder", type=Path, help="such as llama/7B: consolidated.*.pth and params.json")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="tokenizer.model (default: in the folder or above)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="to write, in safetensors")


def main(args: argparse.Namespace) -> None:
    """Writes the folder. A run that was ended continues.

    Raises:
        UserError: a file is missing or damaged, or it is not a LLaMA or Llama 2.
    """
    from minigpt4.models.tensor_files import Outline, resumable, write_tensors

    parts, params = read_meta(args.folder)
    tokenizer = _tokenizer(args)
    names = _names(parts[0], params["n_layers"], args.folder)
    heads = {"attention.wq": params["n_heads"], "attention.wk": params.get("n_kv_heads") or params["n_heads"]}

    @lru_cache(1)  # asked for some rows at a time
    def whole(name: str) -> "Tensor":
        theirs, dimension = names[name]
        found = _joined(parts, theirs, dimension)
        return next((_sliced(found, number) for key, number in heads.items() if f".{key}." in theirs), found)

    outlines = {}
    for name, (theirs, dimension) in names.items():
        shape = list(parts[0][theirs].shape)
        if dimension is not None:
            shape[dimension] = sum(part[theirs].shape[dimension] for part in parts)
        outlines[name] = Outline(tuple(shape), parts[0][theirs].dtype)
    _check_sizes(outlines["model.layers.0.self_attn.q_proj.weight"].shape, params, len(parts), args.folder)
    made_from = [[file.name, file.stat().st_size] for file in _files(args.folder)]
    with resumable("--out", args.out, {"folder": made_from}):
        write_tensors(args.out, outlines, lambda name, rows: whole(name)[rows], args.out.name)
        shutil.copyfile(tokenizer, args.out / "tokenizer.model")
        replace_file(args.out / "tokenizer_config.json", json.dumps(_TOKENIZER, indent=2).encode())
        replace_file(args.out / "config.json", json.dumps(_config(params, outlines), indent=2).encode())
    logger.info("%s: %d tensors of %d files", args.out, len(outlines), len(parts))


def read_meta(folder: Path) -> "tuple[list[TensorFiles], dict[str, Any]]":
    """The weight files, of which each has a share of all tensors, and the sizes in params.json.

    Raises:
        UserError: a file is missing or damaged, or of a model that is not made like LLaMA.
    """
    from minigpt4.models.tensor_files import TensorFiles

    files, settings = _files(folder), folder / "params.json"
    numbers = [int(file.suffixes[0][1:]) for file in files]
    if not files or numbers != list(range(len(files))):
        lacking = next(n for n in range(len(files) + 1) if n not in numbers)
        below = sorted({str(file.parent) for file in folder.glob("*/consolidated.00.pth")})
        if files:
            cure = "Download it to the others"
        elif below:
            cure = f"Name the folder of one size: {', '.join(below)}"
        else:
            cure = "Name the folder that Meta's files are in"
        raise UserError(f"'{folder}' lacks consolidated.{lacking:02}.pth. {cure}.")
    if wrong := wrong_file([settings, *files]):
        raise UserError(f"{wrong}.")
    params = _params(settings)
    sizes = {key: params[key] for key in _SIZES}
    known = all(
        type(size) in (int, kind) and size > 0 for size, kind in zip(sizes.values(), _SIZES.values(), strict=True)
    )
    if not known or params["dim"] % params["n_heads"]:
        raise UserError(f"'{settings}' holds impossible sizes: {sizes}. Put Meta's own file there.")
    if params.get("use_scaled_rope") or params.get("rope_theta", _THETA) == 500000.0:
        raise UserError(
            f"'{folder}' holds a Llama 3. Download it as a Hugging Face model, as which Meta gives it out too."
        )
    return [TensorFiles([file]) for file in files], params


def _params(settings: Path) -> dict[str, Any]:
    try:
        params = json.loads(settings.read_text())
    except OSError as error:
        raise UserError(f"'{settings}' can't be read ({error.strerror}). Put Meta's own file there.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{settings}' is not JSON ({first_line(error)}). Put Meta's own file there.") from None
    params = params.get("model", params) if isinstance(params, dict) else params
    if not isinstance(params, dict):
        raise UserError(f"'{settings}' is not a JSON object. Put Meta's own file there.")
    if lacking := [key for key in _SIZES if key not in params]:
        raise UserError(f"'{settings}' lacks {', '.join(lacking)}. Put Meta's own file there.")
    return params


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("consolidated.*.pth") if re.fullmatch(r"\.\d\d", file.suffixes[0]))


def _tokenizer(args: argparse.Namespace) -> Path:
    places = (
        [args.tokenizer]
        if args.tokenizer
        else [args.folder / "tokenizer.model", args.folder.parent / "tokenizer.model"]
    )
    found = next((file for file in places if file.is_file()), None)
    if found is None:
        what = "is a folder" if places[0].is_dir() else "does not exist"
        raise UserError(f"--tokenizer: '{places[0]}' {what}. Set it to the tokenizer.model that came with LLaMA.")
    if wrong := wrong_file([found]):
        raise UserError(f"{wrong}.")
    return found


def _names(part: "TensorFiles", layers: int, folder: Path) -> dict[str, tuple[str, int | None]]:
    """{name at Hugging Face: (Meta's name, what dimension is shared out)}, in the order in which they are needed."""
    names = {f"{ours}.weight": (f"{theirs}.weight", shared) for theirs, (ours, shared) in _OUTER.items()}
    for layer in range(layers):
        names |= {
            f"model.layers.{layer}.{ours}.weight": (f"layers.{layer}.{theirs}.weight", shared)
            for theirs, (ours, shared) in _LAYER.items()
        }
    if lacking := [theirs for theirs, _ in names.values() if theirs not in part]:
        raise UserError(f"'{folder}' lacks {len(lacking)} tensors, such as {lacking[0]}. Name the folder of a LLaMA.")
    if any(name.startswith(f"layers.{layers}.") for name in part):
        raise UserError(
            f"'{folder / 'params.json'}': n_layers is {layers}, and the files hold more layers. Put "
            "Meta's own file there."
        )
    return names


def _joined(parts: "list[TensorFiles]", name: str, dimension: int | None) -> "Tensor":
    import torch

    shares = [part.read(name) for part in (parts if dimension is not None else parts[:1])]
    return shares[0] if len(shares) == 1 else torch.cat(shares, dimension or 0)


def _sliced(weight: "Tensor", heads: int) -> "Tensor":
    """A matrix of queries or keys: Meta rotates neighbouring pairs of a head's numbers, Hugging Face its two halves."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _check_sizes(queries: tuple[int, ...], params: Mapping[str, Any], parts: int, folder: Path) -> None:
    if queries[0] != params["dim"]:
        raise UserError(
            f"'{folder}': {parts} files have {queries[0]} of {params['dim']} rows of a matrix. Put all of Meta's "
            "consolidated.*.pth of this size, and its params.json, into the folder."
        )


def _config(params: Mapping[str, Any], outlines: Mapping[str, Any]) -> dict[str, Any]:
    head = params["dim"] // params["n_heads"]
    theta = params.get("rope_theta", _THETA)
    rows, _ = outlines["model.embed_tokens.weight"].shape
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": params["dim"],
        "intermediate_size": outlines["model.layers.0.mlp.gate_proj.weight"].shape[0],
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": params["n_heads"],
        "num_key_value_heads": outlines["model.layers.0.self_attn.k_proj.weight"].shape[0] // head,
        # Code Llama reads 16,384 tokens, Llama 2 4,096, LLaMA 2,048
        "max_position_embeddings": 16384 if theta > _THETA else 4096 if params["norm_eps"] >= _LLAMA_2_EPS else 2048,
        "rms_norm_eps": params["norm_eps"],
        "rope_theta": theta,
        "tie_word_embeddings": False,
        "torch_dtype": str(outlines["lm_head.weight"].dtype).removeprefix("torch."),
        "vocab_size": rows,
    }
