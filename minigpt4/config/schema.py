"""What a config may hold, as dataclasses: every key, its type, with the range of a number, and its default."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from minigpt4.common.paths import ASSETS, PACKAGE
from minigpt4.common.registry import registry
from minigpt4.config.ranges import (
    FloatBelow1,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveUnitFloat,
    UnitFloat,
    WorkerCount,
)


@dataclass
class VitConfig:
    """Sizes of the vision tower; the defaults are EVA-ViT-g's."""

    patch_size: PositiveInt = 14
    embed_dim: PositiveInt = 1408
    depth: PositiveInt = 39  # blocks used; the 40th in the file is not
    num_heads: PositiveInt = 16
    mlp_ratio: PositiveFloat = 4.3637


@dataclass
class QformerConfig:
    """Sizes of the Q-Former; the defaults are BLIP-2's."""

    hidden_size: PositiveInt = 768
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt = 12
    intermediate_size: PositiveInt = 3072
    cross_attention_frequency: PositiveInt = 2


@dataclass
class VisionConfig:
    """The vision part. What is null is the kind's own default; a kind refuses keys that it does not read."""

    # eva_qformer, eva_patches, huggingface, onnx or cached_features; null: the first two, as model.has_qformer says
    name: str | None = None
    model: str | None = None  # of huggingface: folder or hub id of the tower; of onnx: its file
    provider: str | None = None  # of onnx: execution provider of ONNX Runtime; null: that of run.device, or the CPU's
    layer: int | None = None  # of huggingface: hidden state that is read, such as -2; null: the last, normed
    join: PositiveInt | None = None  # of eva_patches and huggingface: patch tokens in a row; null: 4 and 1
    rows: PositiveInt | None = None  # of cached_features: rows of a picture's features
    width: PositiveInt | None = None  # of cached_features: their width


@dataclass
class ProjectionConfig:
    """What maps the vision part's rows to the LLM's width: the part that trains."""

    name: str = "linear"  # or mlp


@dataclass
class ModelConfig:
    """The model: where its parts' weights are, how they are built, how prompts look."""

    arch: str = "mini_gpt4"
    model_type: str = "pretrain_vicuna0"

    vision: VisionConfig = field(default_factory=VisionConfig)
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)

    image_size: PositiveInt = 224
    vit_model: str = "eva_clip_g"  # file, or URL that `minigpt4 fetch` downloaded; eva_clip_g: the original's
    vit: VitConfig = field(default_factory=VitConfig)
    vit_precision: Literal["fp16", "bf16", "fp32"] = "fp16"
    drop_path_rate: FloatBelow1 = 0.0
    use_grad_checkpoint: bool = False  # ViT and LLM compute activations again for backward: less memory, more time
    freeze_vit: bool = True

    has_qformer: bool = True  # the original's spelling of model.vision.name: eva_qformer, False: eva_patches
    q_former_model: str = ""  # file or URL, as above; also holds ln_vision
    qformer: QformerConfig = field(default_factory=QformerConfig)
    num_query_token: PositiveInt = 32
    freeze_qformer: bool = True

    llama_model: str = ""  # folder, or downloaded hub id, of any Hugging Face causal LM
    trust_remote_code: bool = False  # run the code that its folder or hub page brings (the first Qwen needs it)
    llm_dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    low_resource: bool = False  # the original's spelling of quantization: 8bit
    quantization: Literal["8bit", "4bit", "none"] = "none"
    device_map: str | None = None  # auto: spread the LLM over all devices
    # a single answer without beams is decoded by a compiled step with a static cache: the first takes a minute or more
    compile: bool = False
    lora_r: NonNegativeInt = 0  # rank of the trained adapters on the LLM; 0: none
    lora_targets: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])  # names of its linear layers
    lora_alpha: PositiveInt = 16
    lora_dropout: FloatBelow1 = 0.05

    # trained besides the projection, in fp32 whatever the precision of what stays frozen
    unfreeze: list[Literal["llm", "qformer", "vit"]] = field(default_factory=list)
    # trained weights: file, URL or checkpoint folder; a list is loaded in order
    ckpt: Any = None  # in str | list[str] OmegaConf takes no ${...} within a list

    conversation: str = "vicuna_v0"  # the chat's template, minigpt4/conversation/templates.yaml
    # a paragraph that the LLM must find likely before training begins; null: not checked
    plain_text: str | None = str(ASSETS / "plain_text.txt")
    prompt_path: str = ""  # training prompts, one a line
    prompt_template: str = "{}"
    turn_template: str | None = None  # of later turns in training conversations; null: BOS and prompt_template
    chat_template: bool = False  # wrap a sample's own instruction in prompt_template too
    max_txt_len: PositiveInt = 32  # tokens of an answer that training reads
    max_context_len: PositiveInt | None = None  # tokens of prompt and answer together; null: the LLM's own window
    end_sym: str = "\n"

    @property
    def ckpts(self) -> list[str]:
        return [self.ckpt] if isinstance(self.ckpt, str) and self.ckpt else list(self.ckpt or [])

    @property
    def vision_kind(self) -> str:
        """`vision.name`, or what the original's key says."""
        return self.vision.name or ("eva_qformer" if self.has_qformer else "eva_patches")

    @property
    def trained(self) -> set[str]:
        """`unfreeze`, and what the original's keys say."""
        has_qformer = self.vision_kind == "eva_qformer"
        own = {"vit": not self.freeze_vit, "qformer": not self.freeze_qformer and has_qformer}
        return {*self.unfreeze, *(part for part, trains in own.items() if trains)}


@dataclass
class ProcessorConfig:
    """One processor. What is null is the processor's own default."""

    name: str = ""
    image_size: PositiveInt | None = None
    min_scale: PositiveUnitFloat | None = None
    max_scale: PositiveUnitFloat | None = None
    random_resized_crop: bool | None = None
    mean: list[float] | None = None
    std: list[PositiveFloat] | None = None
    prompt: str | None = None
    max_words: PositiveInt | None = None

    def build(self) -> Any:
        """The processor, with the values that are set.

        Raises:
            UserError: the name is unknown, or a key is not one of that processor's.
        """
        own = {key: value for key, value in vars(self).items() if key != "name" and value is not None}
        return registry.build("processor", self.name, **own)


@dataclass
class ProcessorsConfig:
    train: ProcessorConfig = field(default_factory=ProcessorConfig)
    eval: ProcessorConfig = field(default_factory=ProcessorConfig)


@dataclass
class PreprocessConfig:
    """What the model was trained with: the default of every dataset, and what a chat uses."""

    vis_processor: ProcessorsConfig = field(default_factory=ProcessorsConfig)
    text_processor: ProcessorsConfig = field(default_factory=ProcessorsConfig)
    n_frms: PositiveInt = 8  # pictures taken of a video


@dataclass
class BuildInfo:
    storage: Any = ""  # where the training split lies; of some formats a list of files
    valid_storage: Any = None  # where the validation split lies
    dataset: str | None = None  # of refer and identify: the folder of its references
    splitBy: str | None = None  # of refer and identify: name in refs(NAME).p: unc, umd or google
    images: str | None = None  # folder of the images, where storage is a file that names them
    n_frms: PositiveInt = PreprocessConfig.n_frms  # of a video; if not set, as in preprocess
    # of shards: where a sample's picture and its caption are, the first that it has. FIELD, what follows the first dot
    # of a file's name, or FIELD:PATH, an entry of JSON whose keys are joined by dots
    image_keys: list[str] = field(default_factory=lambda: ["jpg", "jpeg", "png", "webp"])
    caption_keys: list[str] = field(default_factory=lambda: ["json:caption", "txt"])


@dataclass
class DatasetConfig:
    build_info: BuildInfo = field(default_factory=BuildInfo)
    vis_processor: ProcessorsConfig = field(default_factory=ProcessorsConfig)
    text_processor: ProcessorsConfig = field(default_factory=ProcessorsConfig)
    format: str = ""  # how its files are read; "": as the data set of this name is
    instructions: list[str] = field(default_factory=list)  # one is drawn for each sample; {} is its question's place
    sample_ratio: PositiveFloat = 1.0
    batch_size: PositiveInt | None = None  # null: run.batch_size_train


@dataclass
class EvaluationDatasetConfig:
    """One benchmark. What is null is the benchmark's own default."""

    eval_file_path: str = ""  # the annotation file, or the folder that holds it
    img_path: str = ""
    max_new_tokens: PositiveInt = 20
    batch_size: PositiveInt = 10
    benchmark: str | None = None  # which one; null: the one that the block is named after, or else own
    split: str | None = None
    limit: PositiveInt | None = None  # only so many questions, the first; null: all
    prompt: str | None = None  # a template; the benchmark's page says what it may hold in braces
    scorer: str = "official"  # or original, MiniGPT-4's own, where that differs
    method: Literal["generate", "rank"] | None = None  # rank: the likeliest of a question's choices is its answer


@dataclass
class RunConfig:
    """How training and evaluation run. Learning rates are per step of the optimizer."""

    task: str = "image_text_pretrain"
    runner: str = "runner_base"
    output_dir: str = "output"
    save_path: str | None = None  # where evaluation writes; null: output_dir

    lr_sched: str = "linear_warmup_cosine_lr"
    init_lr: PositiveFloat = 1e-4
    min_lr: NonNegativeFloat = 0.0
    warmup_lr: float = -1.0  # negative: init_lr
    warmup_steps: NonNegativeInt = 0
    lr_decay_rate: PositiveFloat = 1.0  # per epoch, of linear_warmup_step_lr
    weight_decay: NonNegativeFloat = 0.05
    betas: tuple[FloatBelow1, FloatBelow1] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    max_grad_norm: PositiveFloat | None = None
    accum_grad_iters: PositiveInt = 1

    strategy: Literal["ddp", "fsdp", "deepspeed"] = "ddp"  # how several processes share the work
    zero_stage: Literal[0, 1, 2, 3] = 2  # of strategy deepspeed
    max_epoch: PositiveInt = 1
    iters_per_epoch: PositiveInt | None = None  # null: once through the data
    max_iters: PositiveInt | None = None  # of runner_iter, in place of max_epoch
    batch_size_train: PositiveInt = 64
    batch_size_eval: PositiveInt = 64
    num_workers: WorkerCount = 4
    log_freq: PositiveInt = 50

    seed: NonNegativeInt = 42
    amp: bool = True  # autocast to amp_dtype
    amp_dtype: Literal["auto", "bf16", "fp16"] = "auto"  # auto: bf16 where the device has it, else fp16
    device: str = "auto"
    valid_splits: list[Literal["val"]] = field(default_factory=list)
    # what evaluation repeats with sight taken away
    controls: list[Literal["untrained_projection", "shuffled_images", "blank_images"]] = field(default_factory=list)
    metric: str | None = None  # of evaluation_datasets, each epoch: decides the best checkpoint; null: val_loss
    resume: str | None = None  # auto: from the newest complete checkpoint of output_dir; or a checkpoint's folder
    save_steps: PositiveInt | None = None  # steps between checkpoints within an epoch; null: at its end only
    keep_last: PositiveInt | None = None  # checkpoints kept besides the best; null: all
    max_bad_steps: PositiveInt = 10  # steps in a row with a loss that is not a number, before training stops
    max_skip_rate: UnitFloat = 0.01  # part of the samples that may be unusable
    cache_features: str | None = None  # folder where the frozen towers' outputs are kept
    wandb_log: bool = False
    job_name: str = ""  # of wandb's run; empty: the last part of output_dir
    evaluate: bool = False  # legal in the original's files; True is for evaluate.py

    @property
    def shards_weights(self) -> bool:
        """Whether each of several processes holds a share of the weights."""
        return self.strategy == "fsdp" or (self.strategy == "deepspeed" and self.zero_stage == 3)

    @property
    def results(self) -> tuple[str, Path]:
        """The key and the folder that say where evaluation writes."""
        return ("run.save_path", Path(self.save_path)) if self.save_path else ("run.output_dir", Path(self.output_dir))


@dataclass
class EnvConfig:
    cache_root: str = "~/.cache/minigpt4"
    package_dir: str = str(PACKAGE)


@dataclass
class Config:
    """A whole run: `load_config` builds it, everything else only reads it."""

    model: ModelConfig = field(default_factory=ModelConfig)
    datasets: dict[str, DatasetConfig] = field(default_factory=dict)
    evaluation_datasets: dict[str, EvaluationDatasetConfig] = field(default_factory=dict)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    run: RunConfig = field(default_factory=RunConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
