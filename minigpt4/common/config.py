"""Configuration: YAML layers merged in order and checked against the dataclasses of `config_schema`."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

import minigpt4
from minigpt4.common.aliases import NAMES, translate
from minigpt4.common.config_schema import (
    BuildInfo,
    Config,
    DatasetConfig,
    EnvConfig,
    EvaluationDatasetConfig,
    ModelConfig,
    PreprocessConfig,
    ProcessorConfig,
    ProcessorsConfig,
    QformerConfig,
    RunConfig,
    VitConfig,
)
from minigpt4.common.config_values import check_values, expand_home
from minigpt4.common.errors import UserError, did_you_mean

__all__ = [
    "BuildInfo",
    "Config",
    "DatasetConfig",
    "EnvConfig",
    "EvaluationDatasetConfig",
    "ModelConfig",
    "PreprocessConfig",
    "ProcessorConfig",
    "ProcessorsConfig",
    "QformerConfig",
    "RunConfig",
    "VitConfig",
    "load_config",
    "save_config",
]

# an item with ${...} in a list, which YAML reads only in quotes
_IN_LIST = re.compile(r"(?<=[\[, ])[^\s\[\],\"']*\$\{[^{}]*\}[^\s\[\],\"']*")
_CONFIGS = Path(minigpt4.__file__).parent / "configs"


def load_config(path: str | Path, options: list[str] | None = None) -> Config:
    """Merges default < model YAML < dataset YAMLs < the file < options, and checks keys and types.

    Args:
        path: the YAML file of a run.
        options: `key=value` pairs (or the original's `key value ...`), keys in dotted form.

    Raises:
        UserError: a file is missing, a key unknown, a type wrong, a dataset or model type unknown.
    """
    user = _translated(str(path), _read(Path(path)))
    overrides = _translated("--options", _parse_options(options or []))
    asked = _merge(_merge(OmegaConf.create(), [(str(path), user)]), [("--options", overrides)])
    model, datasets = _group(path, asked, "model"), _group(path, asked, "datasets")
    arch = _name("model.arch", model.get("arch", ModelConfig.arch))
    model_type = _name("model.model_type", model.get("model_type", ModelConfig.model_type))
    layers: list[tuple[str, Any]] = [("configs/default.yaml", _read(_CONFIGS / "default.yaml"))]
    layers.append(_model_layer(arch, model_type))
    frames = {name: {"build_info": {"n_frms": "${preprocess.n_frms}"}} for name in datasets}
    layers.append(("preprocess.n_frms", OmegaConf.create({"datasets": frames})))
    layers += [_dataset_layer(_name("datasets", name)) for name in datasets]
    layers += [(str(path), user), ("--options", overrides)]

    config = _merge(OmegaConf.structured(Config), layers)
    for dataset in config.datasets.values():
        for kind in ("vis_processor", "text_processor"):
            for split, default in config.preprocess[kind].items():
                dataset[kind][split] = _override(default, dataset[kind][split])
    try:
        checked = cast(Config, OmegaConf.to_object(config))
    except OmegaConfBaseException as error:
        place = str(error.full_key or "").partition("[")[0]
        raise UserError(f"{'--options' if place in _leaves(overrides) else path}: {_one_line(error)}") from None
    check_values(checked)
    expand_home(checked)
    return checked


def save_config(config: Config, path: str | Path) -> None:
    """Writes the resolved configuration as YAML; `load_config` reads it back to the same."""
    OmegaConf.save(OmegaConf.structured(config), path)


def _read(path: Path) -> DictConfig:
    if not path.is_file():
        raise UserError(f"config file '{path}' does not exist. Start from the repository's folder, or set --cfg-path.")
    try:
        content = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} is not valid YAML: {_one_line(error)}") from None
    if not isinstance(content, DictConfig):
        raise UserError(f"{path}: expected groups such as model:, datasets: and run:, found a list.")
    return content


def _translated(source: str, layer: DictConfig) -> DictConfig:
    plain = OmegaConf.to_container(layer, resolve=False)
    assert isinstance(plain, dict)
    translated = translate(source, cast(dict[str, Any], plain))
    _check_groups(source, "", translated, Config)
    return OmegaConf.create(translated)


def _check_groups(source: str, place: str, node: Any, schema: Any) -> None:
    """Refuses a value where a group of keys belongs. An empty group, which YAML reads as null, has no keys."""
    if isinstance(node, str) and node.startswith("${"):
        return
    if not isinstance(node, dict):
        raise UserError(f"{source}: {place}: expected keys and values below it, found '{node}'.")
    any_name = get_origin(schema) is dict
    types = dict.fromkeys(node, get_args(schema)[1]) if any_name else {f.name: f.type for f in fields(schema)}
    for key, value in node.items():
        group = types.get(key)
        if is_dataclass(group) or get_origin(group) is dict:
            node[key] = {} if value is None else value
            _check_groups(source, f"{place}.{key}".removeprefix("."), node[key], group)


def _parse_options(options: list[str]) -> DictConfig:
    if options and "=" not in options[0]:
        if len(options) % 2:
            raise UserError(f"--options: '{options[-1]}' has no value. Write key=value, for example run.max_epoch=2.")
        options = [f"{key}={value}" for key, value in zip(options[::2], options[1::2], strict=True)]
    for option in options:
        if "=" not in option:
            raise UserError(f"--options: '{option}' has no value. Write key=value, for example run.max_epoch=2.")
    quoted = [_IN_LIST.sub(r'"\g<0>"', option) if "=[" in option else option for option in options]
    try:
        return OmegaConf.from_dotlist(quoted)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"--options: {_one_line(error)}") from None


def _group(path: str | Path, layer: Any, key: str) -> dict[str, Any]:
    group = cast(dict[str, Any], OmegaConf.to_container(layer, resolve=False)).get(key) or {}
    if not isinstance(group, dict):
        raise UserError(f"{path}: {key}: expected keys and values below it, found '{group}'.")
    return group


def _name(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise UserError(f"{key}: expected a name, found '{value}'.")
    return value


def _model_layer(arch: str, model_type: str) -> tuple[str, DictConfig]:
    folder = _CONFIGS / "models" / arch
    if not folder.is_dir():
        known = {p.name for p in folder.parent.iterdir()} | NAMES["model.arch"].keys()
        raise UserError(f"model.arch: '{arch}' is unknown.{did_you_mean(arch, known)}")
    file = folder / f"{model_type}.yaml"
    if not file.is_file():
        known = {p.stem for p in folder.glob("*.yaml")}
        raise UserError(f"model.model_type: '{model_type}' is unknown for {arch}.{did_you_mean(model_type, known)}")
    return f"configs/models/{folder.name}/{file.name}", _read(file)


def _dataset_layer(name: str) -> tuple[str, DictConfig]:
    file = _CONFIGS / "datasets" / name / "defaults.yaml"
    if not file.is_file():
        known = {p.parent.name for p in (_CONFIGS / "datasets").glob("*/defaults.yaml")}
        raise UserError(f"datasets.{name}: no such dataset.{did_you_mean(name, known)}")
    return f"configs/datasets/{name}/defaults.yaml", _read(file)


def _merge(config: Any, layers: list[tuple[str, Any]]) -> Any:
    for source, layer in layers:
        try:
            config = OmegaConf.merge(config, layer)
        except OmegaConfBaseException as error:
            key = "" if error.full_key else _refused(config, layer)
            raise UserError(f"{source}: {key}{_one_line(error)}") from None
    return config


def _refused(config: Any, layer: Any) -> str:
    """The "key: value: " of a layer that can't be merged, where the error does not name it."""
    for key, value in _leaves(layer).items():
        alone = OmegaConf.create()
        OmegaConf.update(alone, key, value)
        try:
            OmegaConf.merge(config, alone)
        except OmegaConfBaseException:
            return f"{key}: {value}: "
    return ""


def _leaves(layer: Any, above: str = "") -> dict[str, Any]:
    """{dotted key: value} of a layer, lists as they are."""
    plain: Any = OmegaConf.to_container(layer, resolve=False) if isinstance(layer, DictConfig) else layer
    if not isinstance(plain, dict):
        return {above: plain}
    return {k: v for key, node in plain.items() for k, v in _leaves(node, f"{above}.{key}".removeprefix(".")).items()}


def _override(default: DictConfig, entry: DictConfig) -> DictConfig:
    """A dataset's processor: what it sets wins over the model's default; naming another processor starts anew."""
    if entry.name not in ("", default.name):
        return entry
    own = {key: value for key, value in entry.items() if value not in (None, "")}
    return cast(DictConfig, OmegaConf.merge(default, own))


def _one_line(error: Exception) -> str:
    """The full key and what is wrong with it, without the lines about internal object types."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    keys = [line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")]
    detail = [line for line in lines[1:] if not line.startswith(("full_key:", "object_type=", "reference_type="))]
    message = " ".join(lines[:1] + detail)
    if match := re.search(r"Invalid value '(.*)', expected one of (\[.*\])", message):  # of a Literal
        names = [name.strip(" '") for name in match[2].strip("[]").split(",")]
        message = f"'{match[1]}' is unknown.{did_you_mean(match[1], names)}"
    elif isinstance(error, ConfigKeyError) and (place := _places().get(error.key)):
        message = f"{message.partition('. Did you mean')[0]}. Did you mean '{place}'?"
    elif match := re.search(r"length (\d+) does not match type hint length (\d+)", message):
        message = f"expected {match[2]} values, found {match[1]}"
    elif match := re.search("Environment variable '(.*?)' not found", message):
        message = f"the environment variable {match[1]} is not set. Set it, or write a path."
    message = message.replace("Value '$VALUE' of type '$VALUE_TYPE'", "a value in it")
    return (f"{keys[0]}: " if keys and keys[0] else "") + message


def _places() -> dict[Any, str]:
    """{key: group.key}, for a key outside its group."""
    groups = [group for group in fields(Config) if is_dataclass(group.type)]
    return {key.name: f"{group.name}.{key.name}" for group in groups for key in fields(cast(Any, group.type))}
