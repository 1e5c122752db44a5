"""What can be known before gigabytes are read: paths, tokenizer, sizes that must fit, and the memory that it takes."""

import copy
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import psutil
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from minigpt4.common.distributed import pick_device, world_size
from minigpt4.common.errors import Problems, UserError
from minigpt4.common.registry import registry
from minigpt4.common.wrong_files import wrong_file
from minigpt4.config.schema import Config, ModelConfig
from minigpt4.conversation.prompter import Prompter, read_prompts
from minigpt4.models.checkpoint import ADAPTERS, absent_parts, file_name, fitting_weights, local_file
from minigpt4.models.llm import (
    add_lora,
    check_lora,
    dtype_of,
    embedding_of,
    llm_folder,
    load_tokenizer,
    quantization_of,
    quantizes_itself,
    window_of,
)
from minigpt4.models.pretrained import check_weight_files, reading
from minigpt4.models.quantized_linear import QuantizedLinear
from minigpt4.models.quantized_llm import layers_to_quantize
from minigpt4.models.tensor_files import TensorFiles, weight_files
from minigpt4.models.vision import VisionPart, vision_class

logger = logging.getLogger(__name__)

_LLAMA_ROWS = 32_000
_FEWEST_IDS = 0.9  # of the embedding's rows, below which the tokenizer may be another LLM's
_DELTA = 0.05  # mean size of a norm's weights, below which they are a difference of two; LLaMA's own is over 1


def preflight(
    config: Config,
    vision: VisionPart | None = None,
    problems: Problems | None = None,
    files: dict[str, Path] | None = None,
) -> dict[str, Path]:
    """Checks all that a model's config names, and logs what the weights will take.

    Args:
        vision: the part that will see, still without weights; None where it could not be built.
        problems: what was found elsewhere, to be reported with the model's; also takes what is in order, and warnings.
        files: takes what is returned, as far as it is there, even where something else is wrong.

    Returns:
        {config key: local file or folder} of the vision part, the checkpoints and the LLM.

    Raises:
        UserError: with one line for each problem, and its cure.
    """
    c, problems = config.model, Problems() if problems is None else problems
    sight = problems.attempt(lambda: vision_class(c).files(config)) or {}
    files = {} if files is None else files
    for key, path in (sight | checkpoint_paths(c)).items():
        with problems.collect(f"{key}: {path}"):
            files[key] = sound_file(key, path, config.env.cache_root)
    if vision is not None and files.keys() >= sight.keys():
        what = f"image tower {c.vision_kind}: {vision.rows} embeddings per image"
        problems.check(what, vision.check, config, files)
    prompts = f"prompts: {c.prompt_path or 'none but the template'}"
    if problems.check(prompts, read_prompts, c.prompt_path, c.prompt_template) is None:
        c = replace(c, prompt_path="")  # with which all else is looked at
    if c.plain_text is not None and not Path(c.plain_text).is_file():
        problems.append(f"model.plain_text: '{c.plain_text}' does not exist. Set it to a text file, or to null.")
    device = problems.check(f"run.device: {config.run.device}", pick_device, config.run.device)
    folder = problems.check(f"model.llama_model: {c.llama_model}", llm_folder, c.llama_model)
    llm = None if folder is None else problems.attempt(llm_outline, folder, c.trust_remote_code)
    if folder is not None:
        files["model.llama_model"] = folder
    if folder is not None and llm is not None:
        rows = 0 if vision is None else vision.rows
        with problems.collect():
            ids, words = check_tokenizer(c, folder, llm, rows), embedding_of(llm).num_embeddings
            text = f"tokenizer has {ids} ids, the LLM's embedding {words} rows"
            problems.passed.append(f"{text}; the template '{c.conversation}' fits")
            if ids < _FEWEST_IDS * words:
                problems.warnings.append(
                    f"model.llama_model: its {text}, of which it uses few: check that both are of one release"
                )
        problems.attempt(check_lora, c, llm)
        problems.check("LLM weights: all are there, in the shapes of config.json", check_llm_files, c, folder, llm)
        problems.warnings += suspicious_template(c, llm)
    if vision is not None and llm is not None:
        checkpoints = [files[key] for key in checkpoint_paths(c) if key in files]
        if checkpoints:
            what = f"trained weights: projection {vision.width} -> {embedding_of(llm).embedding_dim}, as in model.ckpt"
            problems.check(what, check_checkpoints, c, vision, llm, checkpoints)
        if device is not None:
            holders = world_size() if config.run.shards_weights else 1
            problems.attempt(check_memory, memory_of_devices(c, vision, llm, device), holders)
    for warning in problems.warnings:
        logger.warning(warning)
    problems.raise_all()
    return files


def checkpoint_paths(config: ModelConfig) -> dict[str, str]:
    """{config key: path or URL} of the checkpoints."""
    single = isinstance(config.ckpt, str)
    return {"model.ckpt" if single else f"model.ckpt[{i}]": path for i, path in enumerate(config.ckpts)}


def sound_file(key: str, path: str, cache_root: str) -> Path:
    """The local file or folder of a path or URL, which is one of weights at first sight.

    Raises:
        UserError: it is not there, or is something else.
    """
    file = local_file(key, path, cache_root)
    if wrong := wrong_file([file]):
        raise UserError(f"{key}: {wrong}.")
    return file


def llm_outline(folder: Path, trust_remote_code: bool = False) -> PreTrainedModel:
    """The LLM of a folder without memory (on the meta device)."""
    with reading("model.llama_model", folder, "causal LM"), torch.device("meta"):
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
        return AutoModelForCausalLM.from_config(settings, trust_remote_code=trust_remote_code)


def check_tokenizer(config: ModelConfig, folder: Path, llm: PreTrainedModel, rows: int) -> int:
    """Loads the tokenizer, and checks that the LLM embeds all its ids and that conversation and prompts suit it.

    Args:
        rows: stand for one picture in a prompt.

    Returns:
        How many ids it has.
    """
    tokenizer, words = load_tokenizer(folder, config.trust_remote_code), embedding_of(llm).num_embeddings
    if len(tokenizer) > words:
        raise UserError(
            f"model.llama_model: '{config.llama_model}' has a tokenizer of {len(tokenizer)} ids and an LLM that embeds "
            f"{words}. Put tokenizer and weights of one release into the folder."
        )
    Prompter.of(config, tokenizer, rows, window_of(llm.config)).check_prompts()
    return len(tokenizer)


def suspicious_template(config: ModelConfig, llm: PreTrainedModel) -> list[str]:
    """A warning, if any, of an LLM that was hardly trained with the template: Vicuna v0 has a row more than LLaMA."""
    if config.conversation != "vicuna_v0" or llm.config.model_type != "llama" or llm.config.vocab_size != _LLAMA_ROWS:
        return []
    return [
        f"model.conversation: vicuna_v0 is the template of Vicuna v0, whose embedding has {_LLAMA_ROWS + 1} rows. "
        f"'{config.llama_model}' has {_LLAMA_ROWS}, as Vicuna v1.1, LLaMA and Llama 2 have, and may answer with "
        "'###Human' or nonsense. Set model.llama_model to Vicuna v0, or model.conversation to vicuna_v1.1 or llama2 "
        "with a checkpoint that was trained with it."
    ]


def check_llm_files(config: ModelConfig, folder: Path, llm: PreTrainedModel) -> None:
    """Looks at the weight files of the LLM, see `check_weight_files` and `check_applied`."""
    check_weight_files("model.llama_model", config.llama_model, folder, llm)
    check_applied(folder, llm)


def check_applied(folder: Path, llm: PreTrainedModel) -> None:
    """Refuses the difference between Vicuna and LLaMA in place of a model: an LLM with it answers nonsense."""
    if llm.config.model_type == "llama" and holds_delta(TensorFiles(weight_files(folder))):
        raise UserError(
            f"model.llama_model: '{folder}' holds a difference to LLaMA (a delta), not a model. Apply it: minigpt4 "
            f"apply-delta --base LLAMA --delta {folder} --target NEW, and set model.llama_model to NEW."
        )


def holds_delta(files: TensorFiles) -> bool:
    """Whether files are the difference of two LLaMAs, whose last norm has weights near zero, as no LLaMA's has."""
    return "model.norm.weight" in files and files.read("model.norm.weight").float().abs().mean().item() < _DELTA


def check_checkpoints(config: ModelConfig, vision: VisionPart, llm: PreTrainedModel, files: Sequence[Path]) -> None:
    """Checks that the checkpoints that are there hold what the model trains, as `load_checkpoints` does."""
    with torch.device("meta"):
        kind = registry.get_projection_class(config.projection.name)
        projection = kind(vision.width, embedding_of(llm).embedding_dim)
        llm = add_lora(copy.deepcopy(llm).requires_grad_("llm" in config.trained), config)  # it changes the LLM
    model = nn.ModuleDict({"llm": llm, "vision": vision, "projection": projection})
    trainable = {file_name(name): weight for name, weight in model.named_parameters() if weight.requires_grad}
    origins = ["llm", ADAPTERS, *(f"vision.{name.partition('.')[0]}" for name, _ in vision.named_parameters())]
    weights, _ = fitting_weights(trainable, files, outline=True)
    if len(files) == len(config.ckpts):
        absent_parts(trainable, weights, files, {file_name(part) for part in origins})


def memory_of_devices(
    config: ModelConfig, vision: VisionPart, llm: PreTrainedModel, device: torch.device
) -> dict[torch.device, dict[str, float]]:
    """{device: {part: bytes of its weights}}; the parts are outlines."""
    parts = {"vision": vision.weight_bytes}
    quantization, dtype = quantization_of(config), dtype_of(config, device)
    size = _bytes(cast(nn.Module, llm).to(dtype))
    if quantizes_itself(config, device):
        for name, bits in layers_to_quantize(llm, int(quantization[0])).items():
            layer = cast(nn.Linear, llm.get_submodule(name))
            size += QuantizedLinear.bytes_of(layer, bits) - layer.weight.nbytes
    elif quantization != "none":  # all linear layers but the output's
        head = llm.get_output_embeddings()
        linear = [m for m in llm.modules() if isinstance(m, nn.Linear) and m is not head]
        size -= (1 - int(quantization[0]) / 8 / dtype.itemsize) * sum(_bytes(m) for m in linear)
    part = f"LLM ({str(dtype).removeprefix('torch.') if quantization == 'none' else quantization})"
    devices = [device]
    if config.device_map and device.type != "cpu":  # in about equal parts
        devices += [torch.device(device.type, i) for i in range(torch.accelerator.device_count()) if i != device.index]
    llm_share = {part: size / len(devices)}
    return {d: parts | llm_share if d == device else llm_share for d in devices}


def check_memory(devices: dict[torch.device, dict[str, float]], holders: int = 1) -> None:
    """Logs what the weights, of which each of so many processes holds a share, take of each device's free memory.

    Raises:
        UserError: a single accelerator has less. A CPU may swap and a device map spill over: those are warned of.
    """
    for device, whole in devices.items():
        # ranks share the CPU; accelerators have one each
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cpu" else 1
        parts = {part: size / holders for part, size in whole.items()}
        needed, free = ranks * sum(parts.values()), free_memory(device)
        sizes = ", ".join(f"{part} {size / 1e9:.2f}" for part, size in parts.items())
        message = f"{device}: the weights take {needed / 1e9:.2f} GB ({sizes}) of {free / 1e9:.2f} GB that are free"
        if needed <= free:
            logger.info(message)
            continue
        cure = "Set model.quantization=8bit or 4bit, model.device_map=auto for several devices, or a smaller LLM; in "
        cure += "training, run.strategy=fsdp shares it out to several processes."
        message += ". " + (cure if holders == 1 else "Start more processes on further devices, or set a smaller LLM.")
        if device.type != "cpu" and len(devices) == 1:
            raise UserError(message)
        logger.warning(message)


def free_memory(device: torch.device) -> float:
    """Bytes; infinite where it is not known (MPS)."""
    if device.type == "cpu":
        return psutil.virtual_memory().available
    ask = getattr(torch.get_device_module(device), "mem_get_info", None)
    return ask(device)[0] if ask else float("inf")


def _bytes(module: nn.Module) -> float:
    return sum(p.numel() * p.element_size() for p in module.parameters())
