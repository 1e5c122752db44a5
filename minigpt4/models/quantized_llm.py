"""An LLM in 4 or 8 bits on a CPU, read weight by weight: no more of it is in memory than what is kept."""

from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from minigpt4.common.errors import UserError
from minigpt4.models.cpu_memory import release_freed_memory
from minigpt4.models.quantized_linear import QuantizedLinear
from minigpt4.models.tensor_files import TensorFiles

_HEAD_BITS = 8  # of the output layer: its errors are those of the words themselves
_BUFFERS = "rotary_emb.inv_freq"  # in files of old versions of transformers; it is computed


def load_quantized(folder: Path, bits: int, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel | None:
    """Loads a causal LM from a folder whose linear layers are `QuantizedLinear`; all else has the dtype.

    Returns:
        None where files are quantized, or name weights otherwise than the model
        does: transformers must read them.

    Raises:
        UserError: a weight file is damaged, or a weight has another shape than the config says.
    """
    files = TensorFiles.of_folder("model.llama_model", folder)
    settings = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    if getattr(settings, "quantization_config", None):  # it is so in its files
        return None
    with init_empty_weights():  # buffers have memory: nobody else would fill them
        llm = AutoModelForCausalLM.from_config(settings, dtype=dtype, trust_remote_code=trust_remote_code)
    llm.tie_weights()
    own = dict(llm.named_parameters())  # tied ones once
    prefix = f"{llm.base_model_prefix}."
    names = {name if name in own else prefix + name: name for name in files if not name.endswith(_BUFFERS)}
    if own.keys() - names.keys() or len(llm.state_dict()) != len(dict(llm.named_parameters(remove_duplicate=False))):
        return None
    for name, weight in own.items():
        if (found := files[names[name]].shape) != tuple(weight.shape):
            raise UserError(
                f"model.llama_model: '{folder}': {names[name]} is {list(found)}, its config.json asks for "
                f"{list(weight.shape)}. Put config.json and weights of one release into the folder."
            )
    for name, own_bits in layers_to_quantize(llm, bits).items():
        llm.set_submodule(name, QuantizedLinear(llm.get_submodule(name), own_bits))
    _fill(llm, files, {name: names[name] for name in own})
    llm.tie_weights()
    if (folder / "generation_config.json").is_file():
        llm.generation_config = GenerationConfig.from_pretrained(folder)
    llm.is_quantized = True  # as transformers says of its own
    return llm.requires_grad_(False).eval()


def layers_to_quantize(llm: PreTrainedModel, bits: int) -> dict[str, int]:
    """{name: bits} of the linear layers that `QuantizedLinear` takes the place of; none that embeds words too."""
    shared = {id(embedding.weight) for embedding in llm.modules() if isinstance(embedding, nn.Embedding)}
    head = llm.get_output_embeddings()
    found = {}
    for name, module in llm.named_modules():
        own = _HEAD_BITS if module is head else bits
        if isinstance(module, nn.Linear) and id(module.weight) not in shared and QuantizedLinear.fits(module, own):
            found[name] = own
    return found


def _fill(llm: PreTrainedModel, files: TensorFiles, names: dict[str, str]) -> None:
    """Reads all weights, {name in the model: name in the files}; the next piece is read while one is quantized."""
    pieces = [(name, rows) for name in names for rows in files[names[name]].pieces()]
    total = sum(files[name].bytes for name in names.values())

    def read(piece: tuple[str, slice]) -> Tensor:
        name, rows = piece
        return files.read(names[name], rows)

    with ThreadPoolExecutor(1) as reader, tqdm(total=total, desc="LLM", unit="B", unit_scale=True) as bar:
        ahead = reader.submit(read, pieces[0])
        for (name, rows), following in zip_longest(pieces, pieces[1:]):
            weight = ahead.result()
            if following:
                ahead = reader.submit(read, following)
            _put(llm, name, rows, weight)
            bar.update(weight.nbytes)
            release_freed_memory()


def _put(llm: PreTrainedModel, name: str, rows: slice, weight: Tensor) -> None:
    """Fills some rows of a weight."""
    place, _, kind = name.rpartition(".")
    module = llm.get_submodule(place)
    if isinstance(module, QuantizedLinear) and kind == "weight":
        module.quantize(rows.start, weight)
        return
    parameter = getattr(module, kind)
    if parameter.is_meta:
        parameter = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype), requires_grad=False)
        setattr(module, kind, parameter)
    parameter.data[rows] = weight.to(parameter.dtype)
