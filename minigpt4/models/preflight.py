"""What can be known before gigabytes are read: paths, tokenizer, sizes that must fit, and the memory that it takes."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from minigpt4.common.checkpoint import check_shape, is_url, local_files, trained_weights
from minigpt4.common.config import Config, ModelConfig
from minigpt4.common.dist_utils import pick_device
from minigpt4.common.errors import UserError, first_line
from minigpt4.conversation.conversation import get_template
from minigpt4.models.llm import DTYPES, check_llm_path, is_hub_id, load_tokenizer, pick_dtype, quantization_of
from minigpt4.models.minigpt_base import embedding_of, read_prompts
from minigpt4.models.qformer import build_qformer
from minigpt4.models.vision import build_vit, convert_weights, feature_width

logger = logging.getLogger(__name__)

_WELL_KNOWN = {
    "eva_clip_g": "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/eva_vit_g.pth"
}


class _Problems(list[str]):
    """Collects the messages of failed checks."""

    @contextmanager
    def collect(self) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            self.append(str(error))


def preflight(config: Config) -> dict[str, Path]:
    """Checks all that a model's config names, logs what the weights will take, then downloads what is at a URL.

    Returns:
        {config key: local file or folder} of the towers and checkpoints.

    Raises:
        UserError: with one line for each problem, and its cure.
    """
    c, device = config.model, pick_device(config.run.device)
    paths, problems = weight_paths(c), _Problems()
    for key, path in paths.items():
        with problems.collect():
            check_path(key, path)
    with problems.collect():
        read_prompts(c.prompt_path, c.prompt_template)
    llm = None
    with problems.collect():
        llm = llm_outline(c.llama_model)
    if llm is not None:
        with problems.collect():
            check_tokenizer(c, llm)
        for path in c.ckpts:
            with problems.collect():
                check_projection(c, llm, path)
    if problems:
        raise UserError("\n".join(problems))
    parts = memory_of_parts(c, llm, device)
    sizes = ", ".join(f"{part} {size / 1e9:.2f} GB" for part, size in parts.items())
    logger.info("weights on %s: %s; together %.2f GB", device, sizes, sum(parts.values()) / 1e9)
    return local_files(paths, config.env.cache_root)


def weight_paths(config: ModelConfig) -> dict[str, str]:
    """{config key: path or URL} of the towers and checkpoints."""
    paths = {"model.vit_model": _WELL_KNOWN.get(config.vit_model, config.vit_model)}
    if config.has_qformer:
        paths["model.q_former_model"] = config.q_former_model
    single = isinstance(config.ckpt, str)
    return paths | {"model.ckpt" if single else f"model.ckpt[{i}]": path for i, path in enumerate(config.ckpts)}


def check_path(key: str, path: str) -> None:
    if not is_url(path) and not Path(path).expanduser().exists():
        raise UserError(f"{key}: '{path}' does not exist. Set it to a file or folder; see README 'Real weights'.")


def llm_outline(path: str) -> PreTrainedModel | None:
    """The LLM of a local folder without memory (on the meta device); None for a hub id."""
    check_llm_path(path)
    if is_hub_id(path):
        return None
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    except (OSError, ValueError, KeyError, RuntimeError, StrictDataclassError) as error:
        raise UserError(f"model.llama_model: no causal LM in '{path}': {first_line(error)}") from error


def check_tokenizer(config: ModelConfig, llm: PreTrainedModel) -> None:
    """Loads the tokenizer, and checks that the LLM embeds all its ids and that the conversation suits it."""
    tokenizer, rows = load_tokenizer(config.llama_model), embedding_of(llm).num_embeddings
    if len(tokenizer) > rows:
        raise UserError(
            f"model.llama_model: '{config.llama_model}' has a tokenizer of {len(tokenizer)} ids and an LLM that embeds "
            f"{rows}. Put tokenizer and weights of one release into the folder."
        )
    get_template(config.conversation, tokenizer)


def check_projection(config: ModelConfig, llm: PreTrainedModel, path: str) -> None:
    """Checks that a local checkpoint's projection, where it has one, joins this tower and this LLM."""
    name, file = "llama_proj.weight", Path(path).expanduser()
    if not is_url(path) and file.exists():
        weights, _ = trained_weights(file)
        if name in weights:
            check_shape(path, name, weights[name].shape, (embedding_of(llm).embedding_dim, feature_width(config)))


def memory_of_parts(config: ModelConfig, llm: PreTrainedModel | None, device: torch.device) -> dict[str, float]:
    """Bytes of each part's weights; `llm` is its outline."""
    with torch.device("meta"):
        vit = build_vit(config.vit, config.image_size)
        convert_weights(vit, DTYPES[config.vit_precision])
        parts = {"ViT": _bytes(vit)}
        if config.has_qformer:
            parts["Q-Former"] = _bytes(build_qformer(config.qformer, config.num_query_token, config.vit.embed_dim)[0])
    if llm is not None:
        quantization = quantization_of(config)
        dtype = pick_dtype(config.llm_dtype, device)
        size = _bytes(cast(nn.Module, llm).to(dtype))
        if quantization != "none":  # all linear layers but the output's
            head = llm.get_output_embeddings()
            linear = [m for m in llm.modules() if isinstance(m, nn.Linear) and m is not head]
            saved = 1 - int(quantization[0]) / 8 / dtype.itemsize
            size -= saved * sum(_bytes(m) for m in linear)
        parts[f"LLM ({str(dtype).removeprefix('torch.') if quantization == 'none' else quantization})"] = size
    return parts


def _bytes(module: nn.Module) -> float:
    return sum(p.numel() * p.element_size() for p in module.parameters())
