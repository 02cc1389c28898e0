"""The configuration: frozen, keyword-only, validated, with unknown keys refused by name.

May import: errors, common.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mess.common.framing import MOST_OVERLAP, OVERLAP, Fit, Framing
from mess.common.normalisation import (
    IMAGENET,
    Channels,
    Normalisation,
    as_deviations,
    as_means,
    as_range,
)
from mess.errors import ConfigError, nearest

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
Side = Annotated[int, Field(ge=1, le=16384)]


def _check_choices(section: BaseModel, names: Sequence[str]) -> None:
    """Refuse options that leave no choice or repeat one."""
    for name in names:
        values = getattr(section, name)
        if not values:
            # ValueError is what pydantic collects, so that all faults are told at once.
            raise ValueError(f"{name} is empty; it needs at least one value")
        if len(set(values)) < len(values):
            raise ValueError(f"{name} repeats a value: {list(values)}")


class _Section(BaseModel):
    # TOML can write nan and inf, which no setting means.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(_Section):
    """Where images and masks come from, and how training images are varied."""

    kind: str = "shapes"
    root: Path | None = None
    pairs: dict[Literal["images", "masks"], str] | None = None
    """Where `folder` finds images and masks below `root`: a pattern of paths each."""
    size: tuple[Side, Side] = (96, 128)
    """Height and width in pixels of what the network takes; every figure is at this size."""
    fit: Fit = "stretch"
    """How an image becomes that: scaled to it, scaled and padded, or cut into tiles unscaled."""
    overlap: Annotated[float, Field(ge=0.0, le=MOST_OVERLAP)] = OVERLAP
    """Of neighbouring tiles, as a share of their side."""
    mean: Annotated[tuple[float, ...], AfterValidator(as_means)] = IMAGENET.mean
    std: Annotated[tuple[float, ...], AfterValidator(as_deviations)] = IMAGENET.std
    """Three numbers each, in the order of `channels`; what the network was trained with."""
    channels: Channels = IMAGENET.channels
    """Order of the channels that the network takes."""
    range: Annotated[float, AfterValidator(as_range)] = IMAGENET.range
    """Pixels of 0..255 are scaled to 0..range before mean and std."""
    holdout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of the train split held out to watch training; the calibration split never is."""
    calibration_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Of the val of VOC and COCO, which have no test masks: what calibrates; the rest tests."""
    shapes: tuple[Count, Count, Count] = (480, 240, 240)
    """Images that `shapes` draws for train, calibration and test."""
    scale: tuple[Positive, Positive] = (0.5, 2.0)
    crop: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Side of the random crop as a share of `size`."""
    flip: Share = 0.5
    jitter: Share = 0.0
    """Strength of colour jitter (brightness, contrast, saturation; a tenth of it in hue)."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Data-loading processes."""
    groups: str | None = None
    """Which images depend on each other, such as frames of a video: a CSV file with the columns
    image_id and group, or a regular expression whose capture on the id is the group."""

    @model_validator(mode="after")
    def _ordered(self) -> DataConfig:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale is [smallest, largest], got {list(self.scale)}")
        return self

    @property
    def groups_file(self) -> Path | None:
        """The CSV file that `groups` names, where it is no expression."""
        return Path(self.groups) if self.groups and self.groups.endswith(".csv") else None

    @property
    def crop_size(self) -> tuple[int, int]:
        """Height and width of training images."""
        height, width = self.size
        return max(round(self.crop * height), 1), max(round(self.crop * width), 1)

    @property
    def framing(self) -> Framing:
        """From images of any size to those of `size`."""
        # What means nothing makes no difference.
        overlap = self.overlap if self.fit == "tile" else OVERLAP
        return Framing(size=self.size, fit=self.fit, overlap=overlap)

    @property
    def normalisation(self) -> Normalisation:
        """From pixels to what the network takes."""
        return Normalisation(mean=self.mean, std=self.std, channels=self.channels, range=self.range)


class BackboneConfig(_Section):
    """The network to start from."""

    name: str = "mobilenet_v2"
    weights: str = "none"
    """"none", "torchvision" (its download) or a safetensors file."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the backbone's factory, such as `width` of mobilenet_v2."""
    outputs: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of the network's channels in order, where they are not the data set's classes in order.
    Those that name no class, such as "void", are left out."""

    def channels(self, num_classes: int) -> int:
        """How many channels the network's own logits have."""
        return num_classes if self.outputs is None else len(self.outputs)


class ExitsConfig(_Section):
    """The candidate exits (MESS paper, §4.1 and Eq. 1)."""

    points: int | tuple[str, ...] = 6
    """N, the final point included; or the names of the early blocks."""
    crm: tuple[Count, ...] = (1, 2, 4, 8)
    blocks: tuple[Annotated[int, Field(ge=0, le=8)], ...] = (0, 1, 2, 3)
    """With rapid dilation the eighth block's taps are 256 positions apart."""
    rdi: tuple[bool, ...] = (False, True)
    heads: tuple[str, ...] = ("fcn", "dlb")
    skips: tuple[bool, ...] = (False,)
    """Whether exits read shallower features, too: those that the network keeps for its decoder."""
    skip_stride: Count = 4
    """Output stride of the finest features that they read so; label maps have it, too."""
    dlb_channels: Annotated[int, Field(ge=1, le=8192)] = 256
    dlb_rates: Literal["map", "papers"] | tuple[Side, Side, Side] = "map"
    """Dilations of DeepLab heads: as far across the feature map as the papers' 12, 24 and 36 across
    theirs, those themselves, or three numbers."""
    max_exit_cost: Positive = 1.0
    """Most that backbone up to the exit plus the exit may cost, in baselines."""
    max_exit_share: Positive | None = None
    """Most that the exit alone may cost, in baselines; no limit where it is not set."""

    @model_validator(mode="after")
    def _choices(self) -> ExitsConfig:
        _check_choices(self, ("crm", "blocks", "rdi", "heads", "skips"))
        if isinstance(self.points, int) and self.points < 1:
            raise ValueError(
                f"points counts the final exit too and is at least 1, got {self.points}"
            )
        return self


class StageConfig(_Section):
    """One training stage, with rates that fall (MESS supplement, §2.3)."""

    iterations: Count = 60_000
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """SGD with `training.momentum`, as in the papers, or AdamW, which takes far smaller rates."""
    learning_rate: Positive = 0.02
    warmup: Annotated[int, Field(ge=0)] = 0
    """First iterations over which rates rise to what the schedule gives."""
    min_learning_rate: Positive | None = None
    """No rate of the stage falls below it; without one they fall towards 0."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """"bfloat16": convolutions in it, weights, normalisation and losses in float32."""

    @model_validator(mode="after")
    def _rates(self) -> StageConfig:
        least = self.min_learning_rate
        for name, rate in self:
            if name.endswith("learning_rate") and least and rate and rate < least:
                raise ValueError(f"min_learning_rate {least:g} is above {name} {rate:g}")
        if self.iterations and self.warmup >= self.iterations:
            raise ValueError(
                f"warmup {self.warmup} leaves nothing of {self.iterations} iterations at full rate"
            )
        return self


class Stage1Config(StageConfig):
    """Stage 1, or the only stage of the schemes that train everything at once."""

    iterations: Annotated[int, Field(ge=0)] = 60_000
    """0 leaves backbone and final head as they start, such as from `training.start`."""
    head_learning_rate: Positive | None = None
    """Rate of the segmentation heads; the backbone's where it is not set."""
    exit_learning_rate: Positive | None = None
    """Rate of exits that are trained with the backbone; the heads' where it is not set."""
    exit_dropout: Literal["round-robin", "modulo"] = "round-robin"
    """Which early exits an iteration trains: one in turn, or Eq. 2 to the letter."""
    early_distillation: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of what early heads learn from the final one, beside their cross-entropy."""
    lovasz: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the Lovász-Softmax that the final exit learns from beside its cross-entropy, at
    the label pixels of `stage2.pixel_stride`. Of the two-stage schemes."""


class Stage2Config(StageConfig):
    """Stage 2; `alpha` and `pixel_stride` are of the exits' loss in every scheme."""

    iterations: Annotated[int, Field(ge=0)] = 60_000
    """0 leaves exits as they start, which takes `start = "stage1"`."""
    alpha: Share = 0.5
    """Weight of the cross-entropy in positive filtering distillation (Eq. 3)."""
    pixel_stride: Count = 1
    """Loss on every n-th row and column of the label map, from a random offset each iteration."""
    start: Literal["seed", "stage1"] = "seed"
    """What plain FCN exits start from: new, or the early heads of stage 1, the same network."""
    groups: Count = 1
    """Exits are trained in so many groups, one after another, where memory does not hold all."""


class TrainingConfig(_Section):
    scheme: Literal["two-stage", "kd", "self-distill", "frozen", "e2e", "branches"] = "two-stage"
    """A named recipe, see `mess.training.stages.recipes`."""
    start: Path | None = None
    """A trained run whose backbone and final head training starts from."""
    adopted: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """sha256 of the weights that `--adopt` named: backbone and final exit are theirs for good."""
    loss: Literal["pfd", "ce", "kd", "self-distill", "lovasz"] | None = None
    """What the exits learn from; the scheme's own where it is not set."""
    keep: Literal["last", "best"] | None = None
    """Weights of the last iteration, or of the best epoch on the holdout; the scheme's own where
    it is not set. Exits on a frozen backbone have a best epoch each."""
    class_weights: tuple[Positive, ...] | None = None
    """Of the cross-entropy, by class; all 1 where they are not set."""
    batch_size: Annotated[int, Field(ge=2)] = 8
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    schedule: Literal["poly", "cosine"] = "poly"
    """How rates fall over a stage."""
    poly_power: Positive = 0.9
    batch_norm: Literal["global", "process"] = "global"
    """Statistics of a batch that processes share: of all of it, or of each one's part."""
    checkpoint_minutes: Positive = 2.0
    """Between two checkpoints at least; longer where writing them would take more than:"""
    checkpoint_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.02
    """Share of the time that writing checkpoints may take."""
    tensorboard: bool = False
    """Event files beside the metrics log; needs `pip install "mess[tensorboard]"`."""
    stage1: Stage1Config = Field(default_factory=Stage1Config)
    stage2: Stage2Config = Field(default_factory=Stage2Config)


class MemoiseConfig(_Section):
    """What the prediction cache keeps beside the counts."""

    signals: tuple[str, ...] = ("share", "mean-top1", "ne")
    """Names in `mess.signals.registry.SIGNALS`, or package.module:Class."""
    pixel_thresholds: tuple[Share, ...] = (0.5, 0.7, 0.8, 0.9)
    confidences: tuple[Literal["top1", "entropy"], ...] = ("top1",)
    """Names in `mess.signals.maps.CONFIDENCES`."""
    edges: tuple[bool, ...] = (False, True)
    resolutions: tuple[Literal["native", "full"], ...] = ("native",)
    label_maps: bool = True
    confidence_maps: tuple[str, ...] = ()
    batch_size: Count = 8

    @model_validator(mode="after")
    def _some_signal(self) -> MemoiseConfig:
        choices = ("signals", "pixel_thresholds", "confidences", "edges", "resolutions")
        _check_choices(self, choices)
        return self


class Config(_Section):
    """Everything a run depends on; written to RUN/config.toml as it was resolved."""

    seed: int = 0
    data: DataConfig = Field(default_factory=DataConfig)
    backbone: BackboneConfig = Field(default_factory=BackboneConfig)
    exits: ExitsConfig = Field(default_factory=ExitsConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    memoise: MemoiseConfig = Field(default_factory=MemoiseConfig)

    def of_weights(self) -> Config:
        """The part of the configuration that trained weights depend on, the rest at defaults."""
        # What may change while a run goes on: places, and how work is divided, watched and saved.
        divided = {"root": None, "workers": 0, "groups": None}
        data = self.data.model_copy(update=divided | {"overlap": self.data.framing.overlap})
        backbone = self.backbone
        if backbone.weights not in ("none", "torchvision"):
            # A file may move; what was read from it is in the checkpoint.
            backbone = backbone.model_copy(update={"weights": Path(backbone.weights).name})
        stage2 = self.training.stage2.model_copy(update={"groups": 1})
        saved = {"checkpoint_minutes": 2.0, "checkpoint_share": 0.02}
        aside = {"tensorboard": False, "stage2": stage2} | saved
        training = self.training.model_copy(update=aside)
        if training.start is not None:
            training = training.model_copy(update={"start": Path(training.start.name)})
        rest = {
            "data": data, "backbone": backbone, "training": training, "memoise": MemoiseConfig(),
        }  # fmt: skip
        return self.model_copy(update=rest)

    def trains_as(self, other: Config) -> bool:
        """Whether both give the same weights, from the same places.

        Files elsewhere may be the same ones, moved, or other data of the same form: only who names
        the run can tell.
        """

        def places(config: Config) -> tuple[Path | None, str, Path | None]:
            return config.data.root, config.backbone.weights, config.training.start

        return self.of_weights() == other.of_weights() and places(self) == places(other)

    def to_toml(self) -> str:
        """The configuration as TOML that `load_config` reads back unchanged."""
        # TOML has no null: what is not set is left out, and comes back as its default, None.
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def read_toml(text: str) -> Config:
    """The inverse of `Config.to_toml`."""
    return parse_config(_toml(text, "the configuration"))


def shipped_configs() -> list[str]:
    """Names of the configurations that come with the package."""
    files = resources.files("mess.configs").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def load_config(source: str | Path = "quickstart", overrides: Sequence[str] = ()) -> Config:
    """Read a shipped configuration by name, or a TOML file, and apply `KEY=VALUE` overrides.

    Keys are dotted (`training.stage1.iterations=100`); values are TOML, and a bare word is a
    string. Raises ConfigError that names the key, the value and the known keys.
    """
    values = _read(source)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set takes KEY=VALUE, got {override!r}.")
        _assign(values, key.strip().split("."), _toml_value(key.strip(), text.strip()))
    return parse_config(values)


def parse_config(values: Mapping[str, Any]) -> Config:
    """Validate nested plain values; raises ConfigError with one line for each fault."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(fault) for fault in error.errors())) from None


def _read(source: str | Path) -> dict[str, Any]:
    path = Path(source)
    if path.suffix == ".toml":
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigError(f"configuration file {path} does not exist.") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not UTF-8 text: {error}. Save it as such.") from None
    else:
        shipped = shipped_configs()
        if str(source) not in shipped:
            raise ConfigError(
                f"no configuration is named {str(source)!r}; {nearest(str(source), shipped)} "
                "A file of your own ends in .toml."
            )
        # A name without .toml is never a file, or a folder's content would change what it means.
        text = (resources.files("mess.configs") / f"{source}.toml").read_text(encoding="utf-8")
    return _toml(text, str(source))


def _toml(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    # Python refuses numbers of thousands of digits by a plain ValueError, and brackets in thousands
    # of others by RecursionError.
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not valid TOML: {error}.") from None


def _assign(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {'.'.join(keys)}: {key} holds a value, not a section.")
    values[keys[-1]] = value


def _toml_value(key: str, text: str) -> Any:
    try:
        # A bare word is no TOML; its quotes would have to be quoted again in a shell.
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    # As in `_toml`.
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--set {key}: the value is not valid TOML: {error}.") from None


def _explain(fault: Any) -> str:
    location = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        section: Any = Config
        for part in fault["loc"][:-1]:
            section = section.model_fields[part].annotation
        hint = nearest(str(fault["loc"][-1]), section.model_fields)
        return f"unknown configuration key {location!r}; {hint}"
    # pydantic's own words before those of a ValueError.
    message = fault["msg"].removeprefix("Value error, ")
    return f"{location} = {fault['input']!r}: {message}."
