"""Sections of the settings that every run has: types, ranges, defaults (here and nowhere else) and descriptions.

The defaults are the paper's ImageNet recipe (LeOCLR, arXiv 2403.06813, section 4): ResNet-50, MoCo-v2's heads,
queue and augmentations, SGD at 0.03, batch 256. Descriptions say where the paper states no value.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, FiniteFloat

from leoclr.backends.settings import (
    STANDARD_WIDTH,
    Count,
    Fraction,
    NonNegative,
    Positive,
    PositiveCount,
    PositiveFraction,
    Strict,
)
from leoclr.datasets.policies.values import going_up
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


Text = Annotated[str, AfterValidator(_plain)]
TextOrEmpty = Annotated[str, AfterValidator(lambda text: _plain(text) if text else text)]
Source = Annotated[Text, AfterValidator(_without_credential)]
LARGEST_SIDE = 1 << 14  # of an image that a network is fed with; one of float32 would take 3 GiB
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
Sigma = Annotated[float, Field(gt=0, le=20, allow_inf_nan=False)]  # beyond, the fast blur's weights of 8 bits fail
PositiveRange = Annotated[tuple[Positive, Positive], AfterValidator(going_up)]
FractionRange = Annotated[tuple[PositiveFraction, PositiveFraction], AfterValidator(going_up)]


class DataSettings(Strict):
    """Training and validation images, and how they are read."""

    train: tuple[Source, ...] = Field(
        default=(),
        description="Shards: brace ranges, globs, folders or index files; also https:// and s3:// addresses. Or a "
        "folder of images, which is packed into the user's cache.",
    )
    val: tuple[Source, ...] = Field(default=(), description="Labelled data for the k-NN score during training.")
    batch_size: PositiveCount = Field(default=256, description="Images in an optimizer step, over all processes.")
    image_size: Side = Field(default=224, description="Side of every view, in pixels.")
    resident: Literal["auto", "yes", "no"] = Field(
        default="auto",
        description="Keep all images decoded on the device and crop them there; all must have the same size. auto: on "
        "a GPU, if images are at most 128 px and take at most 4 GiB. A resumed run keeps its value.",
    )
    shuffle_window: Count = Field(
        default=0, description="Samples shuffled together; 0 shuffles the whole data set (best for local shards)."
    )
    max_bad_samples: Fraction = Field(
        default=0.001, description="Largest share of unreadable images; the run stops above it."
    )


class AugmentationSettings(Strict):
    """Augmentations; defaults from MoCo-v2. Cropping applies to crops only, all others also to the original."""

    executor: Literal["auto", "device", "fast", "pillow"] = Field(
        default="auto",
        description="Implementation of the augmentations. fast: OpenCV on the CPU. device: crops on the CPU, the rest "
        "on the GPU. pillow: the pixels of torchvision, several times slower. auto: device on a GPU, else fast; a "
        "resumed run keeps its value.",
    )
    reduced_decoding: bool = Field(
        default=False,
        description="Decode JPEGs at 1/2, 1/4 or 1/8 of their size if no view needs more: several times faster for "
        "large photographs, with slightly different pixels. Not with pillow or data.resident.",
    )
    original: Literal["squash", "pad", "center"] = Field(
        default="squash",
        description="How the original becomes square. squash: resized (the paper); pad: borders; center: cropped.",
    )
    crop_scale: FractionRange = Field(
        default=(0.2, 1.0),
        description="Range of a crop's share of the image area; MoCo-v2's, as the paper states none.",
    )
    crop_ratio: PositiveRange = Field(default=(3 / 4, 4 / 3), description="Range of a crop's width / height.")
    flip: Fraction = Field(default=0.5, description="Probability of a horizontal flip.")
    jitter: Fraction = Field(default=0.8, description="Probability of colour jitter.")
    brightness: NonNegative = Field(default=0.4, description="Largest relative change of brightness.")
    contrast: NonNegative = Field(default=0.4, description="Largest relative change of contrast.")
    saturation: NonNegative = Field(default=0.4, description="Largest relative change of saturation.")
    hue: Annotated[FiniteFloat, Field(ge=0, le=0.5)] = Field(
        default=0.1, description="Largest shift of the hue, in turns."
    )
    grayscale: Fraction = Field(default=0.2, description="Probability of grayscale.")
    blur: Fraction = Field(default=0.5, description="Probability of Gaussian blur.")
    solarize: Fraction = Field(default=0.0, description="Probability of solarisation: levels >= 128 are inverted.")
    blur_sigma: Annotated[tuple[Sigma, Sigma], AfterValidator(going_up)] = Field(
        default=(0.1, 2.0), description="Range of the blur's standard deviation, in pixels."
    )
    mean: tuple[Fraction, Fraction, Fraction] = Field(
        default=(0.485, 0.456, 0.406), description="Channel means, of values from 0 to 1."
    )
    std: tuple[PositiveFraction, PositiveFraction, PositiveFraction] = Field(
        default=(0.229, 0.224, 0.225), description="Channel standard deviations, of values from 0 to 1."
    )


class EncoderSettings(Strict):
    """Backbone and projector."""

    backbone: Text = Field(
        default="resnet50", description="A torchvision classifier (resnet18, convnext_tiny, ...) or timm:NAME."
    )
    stem: Literal["imagenet", "cifar"] = Field(
        default="imagenet",
        description="First layers of ResNets. imagenet: 7x7, stride 2, max-pool. cifar: 3x3, stride 1 (32 px images).",
    )
    weights: TextOrEmpty = Field(
        default="",
        description="Initial weights of the backbone: a run, a checkpoint, an exported file or folder, a state dict, "
        "hf-hub:OWNER/NAME, timm:NAME or torchvision:NAME; empty for random weights.",
    )
    width: Annotated[int, Field(ge=8, multiple_of=8)] = Field(
        default=STANDARD_WIDTH,
        description="ResNet-18/34: channels of the first stage, a multiple of 8, at least 16; 64 is the standard.",
    )
    drop_path: Annotated[FiniteFloat, Field(ge=0, lt=1)] = Field(
        default=0.0, description="timm models: stochastic depth rate of the last block (ViTs: 0.1)."
    )
    freeze_patches: bool = Field(
        default=False, description="ViTs: freeze the random patch embedding, which stabilises training (MoCo-v3)."
    )
    projector_layers: PositiveCount = Field(
        default=2, description="Linear layers of the projector: 2 in MoCo-v2 and SimCLR, 1 in MoCo."
    )
    projector_hidden: Count = Field(
        default=0, description="Width of the projector's hidden layers; 0: the backbone's feature dimension."
    )
    projector_dim: PositiveCount = Field(default=128, description="Dimension of the embedding.")


class OptimizerSettings(Strict):
    """Optimizer and learning-rate schedule: linear warm-up, then half a cosine to `final_lr`."""

    name: Literal["sgd", "adamw", "lars"] = Field(default="sgd", description="Optimizer.")
    lr: Positive = Field(default=0.03, description="Peak learning rate; it is not scaled by the batch size.")
    momentum: Fraction = Field(default=0.9, description="Momentum of SGD and LARS; AdamW's betas are 0.9 and 0.999.")
    final_lr: Fraction = Field(default=0.0, description="Final learning rate as a share of the peak.")
    clip: NonNegative = Field(
        default=0.0, description="Largest norm of the gradient over all parameters; 0 disables clipping."
    )
    weight_decay: NonNegative = Field(
        default=1e-4,
        description="Weight decay: added to the gradient by SGD and LARS, decoupled in AdamW. AdamW and LARS exclude "
        "biases, normalisation, and class token and position embedding of ViTs.",
    )
    layer_decay: PositiveFraction = Field(
        default=1.0,
        description="Learning-rate factor per backbone layer, towards the input, for training from given weights; 1: "
        "the same rate in all layers.",
    )
    trust: Positive = Field(
        default=0.001, description="LARS: trust coefficient. A parameter's rate is trust x |w| / |g| x lr."
    )
    trust_clip: bool = Field(
        default=False, description="LARS: limit a parameter's rate to lr: min(trust x |w| / |g|, lr), as in LARC."
    )
    vector_lr: Positive = Field(default=1.0, description="LARS: learning-rate factor of biases and normalisation.")
    warmup_epochs: NonNegative = Field(default=0.0, description="Epochs of linear warm-up, part of train.epochs.")


class TrainSettings(Strict):
    """Length, seed, precision and execution of training."""

    epochs: PositiveCount = Field(
        default=200, description="Passes over the data. The paper: 800, in its ablations 200."
    )
    seed: Count = Field(default=0, description="Seed of the initial weights, the sample order and all augmentations.")
    precision: Literal["float32", "bf16", "fp16"] = Field(
        default="float32", description="Precision of the encoder's forward pass; loss and queue stay float32."
    )
    channels_last: bool = Field(default=True, description="Channels-last memory format; faster on most hardware.")
    compile: bool = Field(
        default=False,
        description="Compile the encoder with torch.compile. For GPUs: the first step takes a minute or more, results "
        "differ in the last bits, and a CPU gains nothing.",
    )
    graph: Literal["auto", "yes", "no"] = Field(
        default="auto",
        description="On one GPU, replay the step as one CUDA graph. auto: if the first replays match the plain step; "
        "yes: without this check.",
    )
    accumulation: PositiveCount = Field(
        default=1,
        description="Micro-batches per process and step; BatchNorm statistics are per micro-batch.",
    )


class RunSettings(Strict):
    """Settings that may change when a run is resumed. None changes what is computed; a GPU rounds otherwise."""

    device: Annotated[Text, AfterValidator(_device)] = Field(
        default="auto", description="Device: auto, cpu, cuda or cuda:N."
    )
    workers: Annotated[int, Field(ge=-1)] = Field(
        default=-1, description="Loader processes per training process; -1: chosen by the number of processors."
    )
    timeout_minutes: Annotated[FiniteFloat, Field(gt=0, le=1440)] = Field(
        default=30.0,
        description="Longest wait of processes for each other, indexing of shards and scoring included.",
    )
    checkpoint_minutes: NonNegative = Field(
        default=15.0, description="Minutes between checkpoints; one more is saved at the end."
    )
    checkpoint_epochs: Count = Field(default=0, description="Epochs between checkpoints that are always kept; 0: none.")
    keep: PositiveCount = Field(default=2, description="Number of newest checkpoints to keep.")
    keep_weights_only: bool = Field(
        default=False,
        description="After the last step, reduce the checkpoints to the encoder's weights, which scores and exports "
        "read. The run cannot be extended then.",
    )
    knn_epochs: Count = Field(default=10, description="Epochs between k-NN scores, if labelled data is given; 0: none.")
    on_collapse: Literal["stop", "warn"] = Field(
        default="stop",
        description="What to do where all embeddings stay nearly equal, or the loss stays at chance, for "
        "`run.collapse_steps`.",
    )
    collapse_steps: PositiveCount = Field(
        default=500, description="Steps for which signs of collapse may last; a dip in the first hundred may pass."
    )
    log_steps: PositiveCount = Field(default=20, description="Steps between lines of metrics.jsonl.")
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        default=("tensorboard",),
        description="Trackers that receive the metrics besides metrics.jsonl; wandb and mlflow must be installed.",
    )
    cache: Text = Field(
        default="auto", description="Cache folder for blocks of remote shards; auto: in the user's cache folder."
    )
    cache_gib: Positive = Field(default=20.0, description="Largest size of the cache of remote shards, in GiB.")
    deterministic: bool = Field(default=False, description="On a GPU, refuse nondeterministic operations; slower.")
