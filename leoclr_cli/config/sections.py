"""The sections of the settings that every run has: their types, ranges, only defaults, and what they mean.

The defaults are the paper's ImageNet recipe (LeOCLR, arXiv 2403.06813, section 4): ResNet-50, MoCo-v2's heads,
queue and augmentations, SGD at 0.03, batch 256. What the paper leaves open says so.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, FiniteFloat

from leoclr.backends.settings import (
    Count,
    Fraction,
    NonNegative,
    Positive,
    PositiveCount,
    PositiveFraction,
    Strict,
)
from leoclr.datasets.storage.addresses import WITHOUT_CREDENTIAL, carries_credential

# A gradient of torch's channels-last convolutions on a CPU is written past its end where there are fewer channels than
# a vector register holds float32: 8 with AVX2 (glibc's heap checks find it with 4 and 6 channels, not with 8 and 12),
# 16 with AVX-512 (aborts with 8). `encoder.width` 8 stays readable for the runs that have it.
LEAST_WIDTH = 16


def _plain(text: str) -> str:
    """Refuse what webdataset would run (`pipe:`), chain (`::`) or substitute (`${`), and what cannot be printed."""
    for refused in ("pipe:", "::", "${"):
        if refused in text.casefold():
            raise ValueError(f"must not contain {refused!r}: nothing named by a setting is ever run")
    if not text.strip() or not text.isprintable():
        raise ValueError("must be printable text, and not empty")
    return text


def _without_credential(text: str) -> str:
    if carries_credential(text):
        raise ValueError(WITHOUT_CREDENTIAL)
    return text


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise ValueError("must be auto, cpu, cuda or cuda:N")
    return text


def _going_up(pair: tuple[float, float]) -> tuple[float, float]:
    low, high = pair
    if low > high:
        raise ValueError("must be two numbers, low then high")
    return pair


Text = Annotated[str, AfterValidator(_plain)]
TextOrEmpty = Annotated[str, AfterValidator(lambda text: _plain(text) if text else text)]
Source = Annotated[Text, AfterValidator(_without_credential)]
Sigma = Annotated[float, Field(gt=0, le=20, allow_inf_nan=False)]  # beyond, the fast blur's weights of 8 bits fail
PositiveRange = Annotated[tuple[Positive, Positive], AfterValidator(_going_up)]
FractionRange = Annotated[tuple[PositiveFraction, PositiveFraction], AfterValidator(_going_up)]


class DataSettings(Strict):
    """Which images, and how they are read."""

    train: tuple[Source, ...] = Field(
        default=(),
        description="Shards: brace ranges, globs, folders or index files; also https:// and s3:// addresses.",
    )
    val: tuple[Source, ...] = Field(default=(), description="Labelled shards for the k-NN score during training.")
    batch_size: PositiveCount = Field(default=256, description="Images in an optimizer step, over all processes.")
    image_size: PositiveCount = Field(default=224, description="Side of every view, in pixels.")
    resident: Literal["auto", "yes", "no"] = Field(
        default="auto",
        description="Whether all images stay on the device, decoded, and are cropped there too; they must have one "
        "size. auto: on a GPU, for images of at most 128 px that take at most 4 GiB; a resumed run keeps its own.",
    )
    shuffle_window: Count = Field(
        default=0, description="Samples that are mixed at a time; 0 mixes the whole data set (best for local shards)."
    )
    max_bad_samples: Fraction = Field(
        default=0.001, description="Share of the data set that may be unreadable before the run stops."
    )


class AugmentationSettings(Strict):
    """MoCo-v2's augmentations. They apply to every view, the original included; only crops are also cropped."""

    executor: Literal["auto", "device", "fast", "pillow"] = Field(
        default="auto",
        description="What applies them: the processors (fast); the GPU, after the crop (device); Pillow, bit for bit "
        "as torchvision and several times slower. auto: device on a GPU, else fast; a resumed run keeps its own.",
    )
    reduced_decoding: bool = Field(
        default=False,
        description="Decode a JPEG at a half, a quarter or an eighth of its size where no view needs more: several "
        "times faster for large photographs, and not quite the same pixels. Not with pillow, not with data.resident.",
    )
    original: Literal["squash", "pad", "center"] = Field(
        default="squash",
        description="How the original becomes a square: resized to it (the paper), padded, or its centre.",
    )
    crop_scale: FractionRange = Field(
        default=(0.2, 1.0), description="Share of the area a crop covers. MoCo-v2's range; the paper gives none."
    )
    crop_ratio: PositiveRange = Field(default=(3 / 4, 4 / 3), description="Width over height of a crop.")
    flip: Fraction = Field(default=0.5, description="Probability of a horizontal flip.")
    jitter: Fraction = Field(default=0.8, description="Probability of colour jitter.")
    brightness: NonNegative = Field(default=0.4, description="Largest relative change of brightness.")
    contrast: NonNegative = Field(default=0.4, description="Largest relative change of contrast.")
    saturation: NonNegative = Field(default=0.4, description="Largest relative change of saturation.")
    hue: Annotated[FiniteFloat, Field(ge=0, le=0.5)] = Field(default=0.1, description="Largest turn of the hue circle.")
    grayscale: Fraction = Field(default=0.2, description="Probability of grayscale.")
    blur: Fraction = Field(default=0.5, description="Probability of Gaussian blur.")
    solarize: Fraction = Field(default=0.0, description="Probability of solarisation: levels from 128 on inverted.")
    blur_sigma: Annotated[tuple[Sigma, Sigma], AfterValidator(_going_up)] = Field(
        default=(0.1, 2.0), description="Standard deviation of the blur, pixels."
    )
    mean: tuple[Fraction, Fraction, Fraction] = Field(default=(0.485, 0.456, 0.406), description="Mean per channel.")
    std: tuple[Positive, Positive, Positive] = Field(
        default=(0.229, 0.224, 0.225), description="Deviation per channel."
    )


class EncoderSettings(Strict):
    """Backbone and projector."""

    backbone: Text = Field(
        default="resnet50", description="A torchvision classifier (resnet18, convnext_tiny, ...) or timm:NAME."
    )
    stem: Literal["imagenet", "cifar"] = Field(
        default="imagenet", description="ResNets: 7x7 stride 2 and max-pool, or 3x3 stride 1 (for 32 px images)."
    )
    weights: TextOrEmpty = Field(
        default="",
        description="Where the backbone's first weights are: a run, a checkpoint, an exported file or folder, a state "
        "dict, hf-hub:OWNER/NAME, timm:NAME or torchvision:NAME; empty for random ones.",
    )
    width: Annotated[int, Field(ge=8, multiple_of=8)] = Field(
        default=64,
        description="ResNet-18/34: channels of the first stage, a multiple of 8 from 16 on (64 is the standard).",
    )
    drop_path: Annotated[FiniteFloat, Field(ge=0, lt=1)] = Field(
        default=0.0, description="timm's models: largest probability that a residual branch is left out (ViTs: 0.1)."
    )
    freeze_patches: bool = Field(
        default=False, description="ViTs: keep the patch embedding as it begins, which steadies them (MoCo-v3)."
    )
    projector_layers: PositiveCount = Field(
        default=2, description="Linear layers of the projector: 2 in MoCo-v2 and SimCLR, 1 in MoCo."
    )
    projector_hidden: Count = Field(
        default=0, description="Width of the projector's hidden layers; 0 takes the backbone's."
    )
    projector_dim: PositiveCount = Field(default=128, description="Dimension of the embedding.")


class OptimizerSettings(Strict):
    """Optimizer and schedule: linear warm-up, then half a cosine to zero."""

    name: Literal["sgd", "adamw", "lars"] = Field(default="sgd", description="The update rule.")
    lr: Positive = Field(
        default=0.03, description="Peak learning rate for the batch size as it is: nothing rescales it."
    )
    momentum: Fraction = Field(default=0.9, description="SGD and LARS; AdamW's betas are 0.9 and 0.999.")
    final_lr: Fraction = Field(default=0.0, description="Share of the peak learning rate that the cosine ends at.")
    clip: NonNegative = Field(
        default=0.0, description="Largest norm of the gradient of all parameters together; 0 clips nothing."
    )
    weight_decay: NonNegative = Field(
        default=1e-4,
        description="SGD and LARS add it to the gradient, AdamW decouples it. AdamW and LARS leave out biases, "
        "normalisation, and class token and position embedding of ViTs.",
    )
    layer_decay: PositiveFraction = Field(
        default=1.0,
        description="Factor of the learning rate from a layer of the backbone to the one before it, for going on from "
        "given weights; 1 gives all the same.",
    )
    trust: Positive = Field(default=0.001, description="LARS: a parameter's rate is trust x |w| / |g| x lr.")
    trust_clip: bool = Field(
        default=False, description="LARS: a parameter's rate is at most lr: min(trust x |w| / |g|, lr), as in LARC."
    )
    vector_lr: Positive = Field(
        default=1.0, description="LARS: rate of biases and normalisation, as a share of the others'."
    )
    warmup_epochs: NonNegative = Field(default=0.0, description="Epochs of linear warm-up, counted in train.epochs.")


class TrainSettings(Strict):
    """How long and in what precision."""

    epochs: PositiveCount = Field(
        default=200, description="Passes over the data. The paper: 800, and 200 in its ablations."
    )
    seed: Count = Field(
        default=0, description="Of the initial weights, the order of the samples and every augmentation."
    )
    precision: Literal["float32", "bf16", "fp16"] = Field(
        default="float32", description="Of the encoder's forward pass. Loss, normalisation and queue stay float32."
    )
    channels_last: bool = Field(default=True, description="Memory format of the encoder; faster on most hardware.")
    compile: bool = Field(
        default=False,
        description="Compile the encoder with torch.compile: for GPUs. The first step takes a minute or more, sums "
        "differ in their last bits, and on a CPU it is no faster.",
    )
    graph: Literal["auto", "yes", "no"] = Field(
        default="auto",
        description="On one GPU, replay the step as one CUDA graph. auto: if the first replays give what the step "
        "gives; yes: without this check.",
    )
    accumulation: PositiveCount = Field(
        default=1,
        description="Micro-batches that a process splits its share of a step into; BatchNorm sees one at a time.",
    )


class RunSettings(Strict):
    """What may differ when a run is resumed: nothing here changes the weights."""

    device: Annotated[Text, AfterValidator(_device)] = Field(default="auto", description="auto, cpu, cuda or cuda:N.")
    workers: Annotated[int, Field(ge=-1)] = Field(default=-1, description="Loader processes per process; -1 chooses.")
    timeout_minutes: Annotated[FiniteFloat, Field(gt=0, le=1440)] = Field(
        default=30.0,
        description="How long processes wait for each other; the first may index shards or score meanwhile.",
    )
    checkpoint_minutes: NonNegative = Field(
        default=15.0, description="Time between checkpoints; there is one more at the end."
    )
    checkpoint_epochs: Count = Field(default=0, description="Also save every so many epochs, and keep those; 0 never.")
    keep: PositiveCount = Field(default=2, description="Newest checkpoints that are kept.")
    knn_epochs: Count = Field(
        default=10, description="Epochs between k-NN scores, when labelled data is given; 0 never."
    )
    log_steps: PositiveCount = Field(default=20, description="Steps between lines of metrics.jsonl.")
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        default=("tensorboard",),
        description="Where metrics go besides metrics.jsonl; wandb and mlflow must be installed.",
    )
    cache: Text = Field(
        default="auto", description="Folder for blocks of remote shards; auto: in the user's cache folder."
    )
    cache_gib: Positive = Field(default=20.0, description="Most GiB that blocks of remote shards take there.")
    deterministic: bool = Field(
        default=False, description="On a GPU, refuse operations whose result differs from run to run; slower."
    )
