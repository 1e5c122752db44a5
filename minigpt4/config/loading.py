"""Configuration: YAML layers merged in order and checked against the dataclasses of `config.schema`."""

import os
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, cast, get_args, get_origin

from omegaconf import DictConfig, OmegaConf

from minigpt4.common.errors import UserError, did_you_mean
from minigpt4.common.files import replace_file
from minigpt4.config.compat import NAMES, translate
from minigpt4.config.finding import TINY, find_config, find_prompts, read_checkpoint
from minigpt4.config.schema import Config, EnvConfig, ModelConfig
from minigpt4.config.values import check_values, expand_home
from minigpt4.config.yaml_files import one_line, read_options, read_yaml, shortened

_DEFAULTS = Path(__file__).parent / "defaults"
_FILES_OF_MODEL = ("vit_model", "q_former_model", "llama_model", "ckpt", "plain_text", "prompt_path")
_READ_FIRST = ("model", "datasets")  # groups that name other layers


def load_config(name: str | Path, options: list[str] | None = None, checkpoint: str | Path | None = None) -> Config:
    """Merges default < model YAML < dataset YAMLs < the file < options, and checks keys and types.

    Args:
        name: the YAML file of a run, or the name of one that comes with the package.
        options: `key=value` pairs (or the original's `key value ...`), keys in dotted form.
        checkpoint: a folder that training wrote; the model there takes the place of the file's.

    Raises:
        UserError: a file is missing, a key unknown, a type wrong, a dataset or model type unknown.
    """
    try:
        return _load(find_config(name), options or [], Path(checkpoint) if checkpoint else None)
    except UserError as error:
        raise UserError(shortened(str(error))) from None


def load_model_config(model: str | Path, options: list[str] | None = None, base: str | Path = TINY) -> Config:
    """The config of a model that is to answer; raises as `load_config`.

    Args:
        model: a checkpoint folder that training wrote; or a config as `load_config` takes it.
        base: what says all but the model, where a checkpoint says that.
    """
    return load_config(base, options, checkpoint=model) if os.path.isdir(model) else load_config(model, options)


def _load(file: Path, options: list[str], checkpoint: Path | None) -> Config:
    path, given = str(file), _given_layers(file, options, checkpoint)
    asked = cast(dict[str, Any], OmegaConf.to_container(_merge(OmegaConf.create(), given), resolve=False))
    model, datasets = (asked.get(group, {}) for group in _READ_FIRST)
    arch = _name("model.arch", model.get("arch", ModelConfig.arch))
    model_type = _name("model.model_type", model.get("model_type", ModelConfig.model_type))
    layers: list[tuple[str, Any]] = [("config/defaults/default.yaml", read_yaml(_DEFAULTS / "default.yaml"))]
    layers.append(_model_layer(arch, model_type))
    frames = {name: {"build_info": {"n_frms": "${preprocess.n_frms}"}} for name in datasets}
    layers.append(("preprocess.n_frms", OmegaConf.create({"datasets": frames})))
    # in one layer: a merge copies all that there is
    defaults = {name: _dataset_defaults(_name("datasets", name), block) for name, block in datasets.items()}
    layers.append(("config/defaults/datasets", OmegaConf.create({"datasets": defaults})))

    config = _merge(OmegaConf.structured(Config), layers + given)
    try:
        for dataset in config.datasets.values():
            for kind in ("vis_processor", "text_processor"):
                for split, default in config.preprocess[kind].items():
                    dataset[kind][split] = _override(default, dataset[kind][split])
        checked = cast(Config, OmegaConf.to_object(config))
        OmegaConf.structured(checked)  # as it will be saved: this looks into lists, too
    except Exception as error:
        place = str(getattr(error, "full_key", None) or "").partition("[")[0]
        source = next((source for source, layer in reversed(given) if place in _leaves(layer)), path)
        # the error of a reference to another kind of group names nothing
        leaves = [leaf for _, layer in given for leaf in _leaves(layer).items()]
        references = [f"{key}: {value}: " for key, value in leaves if str(value).startswith("${")]
        raise UserError(f"{source}: {'' if place else ''.join(references[:1])}{one_line(error)}") from None
    check_values(checked)
    expand_home(checked)
    checked.model.prompt_path = find_prompts(checked.model.prompt_path)
    return checked


def _given_layers(file: Path, options: list[str], checkpoint: Path | None) -> list[tuple[str, Any]]:
    """What the user says, as (source, layer): the file, without what a checkpoint says instead, and the options."""
    given = [(str(file), _translated(str(file), read_yaml(file)))]
    if checkpoint:
        source, own = read_checkpoint(checkpoint)
        for key in own:
            given[0][1].pop(key, None)
        given.append((source, _translated(source, own)))
    return [*given, ("--options", _translated("--options", read_options(options)))]


def save_config(config: Config, path: str | Path) -> None:
    """Writes the resolved configuration as YAML; `load_config` reads it back to the same, from any folder.

    The model's files are named by absolute paths, those in this package relative to it: it may be installed elsewhere.
    """
    plain = asdict(config)
    for key in _FILES_OF_MODEL:
        plain["model"][key] = _absolute(plain["model"][key], config.env.package_dir + os.sep)
    vision = plain["model"]["vision"]
    vision["model"] = _absolute(vision["model"], config.env.package_dir + os.sep)
    if plain["env"]["package_dir"] == EnvConfig.package_dir:
        del plain["env"]["package_dir"]
    replace_file(Path(path), OmegaConf.to_yaml(OmegaConf.create(plain)).encode())


def _absolute(value: Any, package: str) -> Any:
    """A path, or a list of them, so that it holds in any folder; hub ids, URLs and what is not there stay."""
    if isinstance(value, list):
        return [_absolute(path, package) for path in value]
    if not value or not os.path.exists(value):
        return value
    path = os.path.abspath(value)
    return path.replace(package, "${env.package_dir}" + os.sep, 1) if path.startswith(package) else path


def _translated(source: str, layer: DictConfig) -> DictConfig:
    plain = OmegaConf.to_container(layer, resolve=False)
    assert isinstance(plain, dict)
    translated = translate(source, cast(dict[str, Any], plain))
    _check_groups(source, "", translated, Config)
    return OmegaConf.create(translated)


def _check_groups(source: str, place: str, node: Any, schema: Any) -> None:
    """Refuses a value where a group of keys belongs. An empty group, which YAML reads as null, has no keys."""
    if isinstance(node, str) and node.startswith("${") and place not in _READ_FIRST:
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


def _name(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise UserError(f"{key}: expected a name, found '{value}'.")
    return value


def _model_layer(arch: str, model_type: str) -> tuple[str, DictConfig]:
    archs = {p.parent.name for p in (_DEFAULTS / "models").glob("*/*.yaml")}
    if arch not in archs:
        raise UserError(f"model.arch: '{arch}' is unknown.{did_you_mean(arch, archs | NAMES['model.arch'].keys())}")
    types = {p.stem: p for p in (_DEFAULTS / "models" / arch).glob("*.yaml")}
    if model_type not in types:
        raise UserError(f"model.model_type: '{model_type}' is unknown for {arch}.{did_you_mean(model_type, types)}")
    return f"config/defaults/models/{arch}/{model_type}.yaml", read_yaml(types[model_type])


def _dataset_defaults(name: str, block: Any) -> DictConfig:
    """The data set's own YAML; nothing for a data set of the user's, whose block names the format of its files."""
    files = {p.parent.name: p for p in (_DEFAULTS / "datasets").glob("*/defaults.yaml")}
    if name not in files and isinstance(block, dict) and block.get("format"):
        return OmegaConf.create()
    if name not in files:
        raise UserError(
            f"datasets.{name}: no such dataset. Set its format, if it is your own.{did_you_mean(name, files)}"
        )
    return read_yaml(files[name]).datasets[name]


def _merge(config: Any, layers: list[tuple[str, Any]]) -> Any:
    for source, layer in layers:
        try:
            config = OmegaConf.merge(config, layer)
        except Exception as error:  # of many kinds, some without the key
            key = "" if getattr(error, "full_key", None) else _refused(config, layer)
            raise UserError(f"{source}: {key}{one_line(error)}") from None
    return config


def _refused(config: Any, layer: Any) -> str:
    """The "key: value: " of a layer that can't be merged, where the error does not name it."""
    for key, value in _leaves(layer).items():
        alone = OmegaConf.create()
        try:
            OmegaConf.update(alone, key, value)
            OmegaConf.merge(config, alone)
        except Exception:
            return f"{key}: {value}: "
    return ""


def _leaves(layer: Any, above: str = "") -> dict[str, Any]:
    """{dotted key: value} of a layer, lists as they are."""
    plain: Any = OmegaConf.to_container(layer, resolve=False) if isinstance(layer, DictConfig) else layer
    if not isinstance(plain, dict):
        return {above: plain}
    return {k: v for key, node in plain.items() for k, v in _leaves(node, f"{above}.{key}".removeprefix(".")).items()}


def _override(default: DictConfig, entry: DictConfig) -> DictConfig:
    """A dataset's processor: what it sets wins over the model's default; naming another processor replaces it."""
    if entry.name not in ("", default.name):
        return entry
    own = {key: value for key, value in entry.items() if value not in (None, "")}
    return cast(DictConfig, OmegaConf.merge(default, own))
