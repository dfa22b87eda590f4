"""Every setting of a run: one frozen model per section, one line per field with its unit and range.

This module checks one field or one section at a time. Rules that need several sections or the world size are in
`rules.py`; reading YAML and overrides is in `load.py`. Nothing here reads files, the environment or a rank.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trainer.config.architectures import ArchitectureName

IGNORE_LABEL = 255
"""Label of pixels that no loss and no metric counts."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
MaskValue = int | str
"""A class id of a mask image (0-255), or a colour written '#rrggbb'."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassConfig(Section):
    """One class. Its label is its position in `data.classes`; the first one also takes all that is not annotated."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9_]+$")
    groups: tuple[str, ...] = ()
    """Annotation groups that carry this class: ASAP `PartOfGroup`, QuPath classification, ImageScope layer name."""
    mask_values: tuple[MaskValue, ...] = ()
    """Values of a mask image that carry this class: ids, or colours as '#rrggbb'."""


class DataConfig(Section):
    """Where slides and annotations are, and what their labels mean."""

    format: Literal["manifest", "camelyon16", "camelyon17"] = "manifest"
    path: Path
    """The manifest CSV, or the directory of a CAMELYON data set as it is published."""
    classes: tuple[ClassConfig, ...] = Field(min_length=2, max_length=250)
    exclusion_groups: tuple[str, ...] = ()
    """Annotation groups that are holes cut out of every class (CAMELYON16 `_2` and `Exclusion`)."""
    ignore_groups: tuple[str, ...] = ()
    """Annotation groups whose pixels no loss and no metric counts."""
    skip_groups: tuple[str, ...] = ()
    """Annotation groups that are passed over as if they had not been drawn."""
    ignore_mask_values: tuple[MaskValue, ...] = ()
    """Mask values whose pixels no loss and no metric counts."""
    mpp: float | None = Field(None, gt=0.0, le=100.0)
    """Micrometres per level-0 pixel of slides that do not say it; an `mpp` column in the manifest wins."""

    @model_validator(mode="after")
    def _names_and_values_are_unique(self) -> DataConfig:
        names = [c.name for c in self.classes]
        groups = [g for c in self.classes for g in c.groups] + [
            *self.exclusion_groups,
            *self.ignore_groups,
            *self.skip_groups,
        ]
        values = [str(v) for c in self.classes for v in c.mask_values] + [str(v) for v in self.ignore_mask_values]
        for what, items in (("class name", names), ("annotation group", groups), ("mask value", values)):
            twice = sorted({i for i in items if items.count(i) > 1})
            if twice:
                raise ValueError(f"{what} {', '.join(twice)} is given twice")
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.classes)


class ResolutionConfig(Section):
    """The resolution that patches are read at: a level of the pyramid, or micrometres per pixel."""

    level: int | None = Field(None, ge=0)
    """Pyramid level; 0 is full resolution."""
    mpp: float | None = Field(None, gt=0.0, le=100.0)
    """Micrometres per pixel, resampled from the next finer level. Slides that do not say theirs need data.mpp or an
    `mpp` column in the manifest."""

    @model_validator(mode="after")
    def _one_of_two(self) -> ResolutionConfig:
        if (self.level is None) == (self.mpp is None):
            raise ValueError("give exactly one of level and mpp")
        return self


class TissueConfig(Section):
    """What counts as tissue. White glass, black (not scanned) and pen marks never do."""

    saturation: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Saturation (0-1) from which a pixel is tissue; None: Otsu's threshold of each slide, between 0.05 and 0.2. Has no
    effect on slides without colour, which are judged by their darkness, nor on fluorescence, judged by brightness."""
    black: int = Field(20, ge=0, le=254)
    """Pixels whose brightest channel (0-255) is not above this are black: not scanned."""
    exclude_pen: bool = True
    """Leave out pen marks: green, turquoise, blue and black strokes (red ink cannot be told from blood and eosin). Turn
    it off for stains that are green or blue themselves."""
    min_area_px: int = Field(16, ge=0)
    """Connected tissue up to this area is dust; in pixels of the mask, about 8 um each."""
    max_hole_px: int = Field(64, ge=0)
    """Connected holes up to this area are filled; in pixels of the mask."""


class IndexConfig(Section):
    """Which positions of a slide become patches."""

    resolution: ResolutionConfig = ResolutionConfig(level=0)
    positions: Literal["grid", "random"] = "grid"
    """Where training patches lie: on a grid, or drawn with the seed. Validation and test are always a grid."""
    overlap: float = Field(0.0, ge=0.0, lt=1.0)
    """grid: overlap of neighbouring training patches as a share of the patch size; validation never overlaps."""
    random_per_class: Positive = 100
    """random: training patches drawn per slide, patch size and class (a patch has a class from
    `sampling.min_tumour_fraction` of its pixels; it has the first class where it has no other)."""
    max_per_slide: Positive | None = None
    """grid: at most so many positive and so many negative training patches per slide and size, drawn with the seed."""
    min_tissue_fraction: Fraction = 0.3
    """Patches with less tissue than this are left out. 0 keeps every position and computes no tissue mask."""
    tissue: TissueConfig = TissueConfig()
    max_unreadable_fraction: Fraction = 0.0
    """Indexing goes on past slides that do not open while they are at most this share of all; they are listed."""


class SplitConfig(Section):
    """Which slides validate. A `split` column in the manifest (train / val / test) overrides this for its slide."""

    by: Literal["patient", "slide", "centre"] = "patient"
    """What may not be on both sides. A slide without a patient (or centre) stands for itself."""
    val_fraction: float = Field(0.2, ge=0.0, lt=1.0)
    """Share of groups that validate; at least one group when above 0."""
    train_centres: tuple[str, ...] = ()
    val_centres: tuple[str, ...] = ()
    """Centres that validate; given together with train_centres, they replace val_fraction."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Cross-validation: groups are dealt out to so many folds, those that the manifest has on train or val too; test
    stays test. Replaces val_fraction; `widefield crossval` trains a run for each fold."""
    fold: Positive | None = None
    """The fold that validates, from 1 to folds."""

    @model_validator(mode="after")
    def _centres_are_disjoint(self) -> SplitConfig:
        both = sorted(set(self.train_centres) & set(self.val_centres))
        if both:
            raise ValueError(f"centre {', '.join(both)} is in both train_centres and val_centres")
        if bool(self.train_centres) != bool(self.val_centres):
            raise ValueError("give train_centres and val_centres together, or neither")
        return self

    @model_validator(mode="after")
    def _a_fold_is_one_of_several(self) -> SplitConfig:
        if (self.folds is None) != (self.fold is None):
            raise ValueError("give fold and folds together, or neither")
        if self.folds and self.train_centres:
            raise ValueError("folds and train_centres both say who validates: set train_centres and val_centres to []")
        if self.folds and self.fold and self.fold > self.folds:
            raise ValueError(f"there is no fold {self.fold} of {self.folds}: they count from 1")
        return self


class SamplingConfig(Section):
    """Which training patches one epoch shows."""

    min_tumour_fraction: Fraction = 0.01
    """A patch is positive from this share of pixels of any class but the first (1 %: the poster's)."""
    positive_share: Fraction | None = None
    """Share of positive patches in an epoch; patches of the larger side are drawn less. None takes all as they are."""
    patches_per_epoch: Positive | None = None
    """Patches in one epoch over all ranks; None takes the whole training set."""
    hard_negatives: Path | None = None
    """CSV with the columns slide, x, y (level-0 pixels of a point): negative training patches that hold one of the
    points are hard."""
    hard_negative_share: Fraction = 0.5
    """Share of hard patches among the negative ones of an epoch; has no effect without `hard_negatives`."""


class AugmentConfig(Section):
    """Random changes of a training patch, each a pure function of (seed, epoch, patch)."""

    flip: bool = True
    """Mirror and quarter turns: the eight symmetries of the square."""
    brightness: float = Field(0.1, ge=0.0, le=1.0)
    contrast: float = Field(0.1, ge=0.0, le=1.0)
    saturation: float = Field(0.1, ge=0.0, le=1.0)
    """Largest relative change of each; 0 turns it off."""
    scale: float = Field(0.0, ge=0.0, le=0.5)
    """Largest relative zoom: a patch is magnified by a factor from 1 / (1 + this) to 1 + this; 0 turns it off."""
    elastic: float = Field(0.0, ge=0.0, le=0.1)
    """Elastic deformation (Simard et al. 2003): largest shift of a pixel as a share of the patch size; 0: off."""
    hed: float = Field(0.0, ge=0.0, le=0.5)
    """Stain jitter in haematoxylin-eosin-DAB space (Tellez et al. 2018): largest change of each stain's amount, as a
    factor 1 +- this and an offset of +- this (optical density, base 10); 0.05 is light, 0.2 strong, 0 turns it off."""


class StainConfig(Section):
    """Stain normalisation, for training, validation and prediction alike."""

    normalise: Literal["none", "macenko"] = "none"
    """macenko: the two stains of each slide, estimated while indexing, become reference ones (Macenko et al. 2009)."""


class StoresConfig(Section):
    """Where pixels of patches come from while training."""

    kind: Literal["slide", "hdf5", "tfrecord"] = "slide"
    """slide: directly from the slides. hdf5, tfrecord: from what `widefield extract` wrote."""
    path: Path | None = None
    """Folder of the extracted patches; hdf5 and tfrecord need it."""
    image: Literal["jpeg", "lossless"] = "jpeg"
    """How extracted images are coded; lossless is PNG, about five times larger."""
    jpeg_quality: int = Field(90, ge=1, le=100)
    stage_to: str | None = None
    """Node-local folder such as $TMPDIR: each rank copies the training patches it will read there before it starts
    (hdf5 and tfrecord)."""

    @model_validator(mode="after")
    def _extracted_patches_have_a_folder(self) -> StoresConfig:
        if self.kind != "slide" and self.path is None:
            raise ValueError(f"kind={self.kind} needs stores.path, the folder that `widefield extract` fills")
        if self.kind == "slide" and self.stage_to:
            raise ValueError("stage_to copies extracted patches; it needs kind=hdf5 or tfrecord")
        return self


class ModelConfig(Section):
    """The network. What has no effect in an architecture (`config/architectures.py`) is warned of when it is set."""

    architecture: ArchitectureName = "deeplabv3plus"
    """resunet has an encoder of its own; the others are put on `backbone`."""
    backbone: str = "resnet50"
    """A segmentation-models backbone (resnet*, seresnet*, seresnext*, mobilenet*, efficientnetb*, ...) or xception."""
    output_stride: Literal[8, 16] = 16
    """deeplabv3plus, pspnet: ratio of patch to deepest feature map; 8 is finer and about three times dearer."""
    norm: Literal["group", "batch", "sync_batch", "frozen"] = "group"
    """group: right at any batch size. batch: per-rank statistics. sync_batch: statistics over all ranks.
    frozen: the statistics stored in the backbone's weights."""
    weights: str | None = None
    """Backbone weights: none, `imagenet` (downloads), or a local file in Keras HDF5."""
    aspp_channels: Positive = 256
    """deeplabv3plus: of its pyramid."""
    decoder_channels: Positive = 256
    """Of each map of the decoder; in unet and resunet of its coarsest, and half as many at each finer one. Those of
    linknet are the backbone's."""
    dropout: float = Field(0.1, ge=0.0, lt=1.0)
    """Dropout after the spatial pyramid pooling (deeplabv3plus, pspnet), or of the encoder's deepest map."""
    decoder_dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Dropout of whole channels before the classifier."""
    stochastic_depth: float = Field(0.0, ge=0.0, lt=1.0)
    """Probability that the encoder's last residual block is left out for a patch while training; earlier blocks less,
    in proportion to their depth (Huang et al. 2016). Needs a backbone with residual blocks, or resunet."""


class LossConfig(Section):
    cross_entropy: float = Field(1.0, ge=0.0)
    dice: float = Field(1.0, ge=0.0)
    """Weights of the two terms."""
    class_weights: tuple[float, ...] = ()
    """One weight per class for the cross-entropy; empty is 1 for each."""

    @model_validator(mode="after")
    def _something_to_minimise(self) -> LossConfig:
        if self.cross_entropy == 0 and self.dice == 0:
            raise ValueError("cross_entropy and dice are both 0: there is nothing to minimise")
        if any(w < 0 for w in self.class_weights):
            raise ValueError("class_weights must not be negative")
        return self


class OptimizerConfig(Section):
    name: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = Field(1e-3, gt=0.0)
    """Rate for one rank, before scaling by the world size."""
    scale_with_world_size: Literal["linear", "sqrt", "none"] = "linear"
    warmup_steps: int = Field(0, ge=0)
    """Global steps over which the rate rises linearly to its full value."""
    schedule: Literal["constant", "poly", "cosine"] = "constant"
    poly_power: float = Field(0.9, gt=0.0)
    epsilon: float = Field(1e-7, gt=0.0)
    """Adam's epsilon (the poster used 0.1)."""
    momentum: float = Field(0.9, ge=0.0, lt=1.0)
    """SGD only."""
    weight_decay: float = Field(0.0, ge=0.0)
    """Decoupled (Loshchilov and Hutter 2019), for any optimiser, of kernels only: norms and biases are left alone."""
    clip_norm: float | None = Field(None, gt=0.0)
    """Largest global norm of the averaged gradient; None leaves it as it is."""


class TrainingConfig(Section):
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """mixed_bfloat16: activations take half the memory, and steps are faster where the processor is good at it (AMX, or
    AVX512-BF16 of AMD; not that of Intel, see results/bench). mixed_float16 is for GPUs."""
    compression: Literal["none", "fp16", "bf16"] = "fp16"
    """What gradients are cast to on the wire."""
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    recompute: Literal["none", "blocks"] = "none"
    """blocks: keep only what passes between blocks of the network and compute the rest again in the backward pass
    (Chen et al. 2016, arXiv 1604.06174): about half the memory or less, about a quarter more time."""
    ema_decay: float = Field(0.0, ge=0.0, lt=1.0)
    """Decay per step of the averaged weights that are scored and kept beside the trained ones; early steps are
    forgotten faster, so 0.999 serves short runs too. 0 turns it off."""
    log_every_steps: Positive = 10
    checkpoint_every_steps: Positive | None = None
    checkpoint_every_minutes: float | None = Field(15.0, gt=0.0)
    """Beside the checkpoint at the end of each stage; steps and minutes may both be given."""
    keep_checkpoints: Positive = 3
    """How many of the latest checkpoints stay; the last of every stage and the best always do."""
    best_by: Literal["common_miou", "common_dice", "common_auc", "common_accuracy"] = "common_miou"
    """Score by which the best checkpoint is chosen."""
    check_every_steps: Positive | None = 100
    """Compare all ranks' weights, settings and position, beside the start and every stage; None: only there."""
    rollbacks: int = Field(2, ge=0)
    """How often a run whose loss is not finite goes back to its newest checkpoint before it stops."""
    rollback_rate_factor: float = Field(0.5, gt=0.0, le=1.0)
    """What the learning rate is multiplied by at each rollback."""


class PlateauConfig(Section):
    """A stage that ends when scoring no longer rises. Every `every_steps` the common footprint is scored."""

    every_steps: Positive
    patience: Positive = 3
    """Scorings in a row without a new best after which the stage ends, on all ranks together."""
    min_delta: float = Field(0.002, ge=0.0)
    """A new best is one that is better by more than this (of `training.best_by`)."""
    max_steps: Positive
    """The stage ends here at the latest. Learning-rate schedules count on this length until it has ended earlier."""


class ParallelConfig(Section):
    """How the ranks share the work of a stage."""

    spatial: Positive = 1
    """Consecutive ranks that share each patch, every one with a slab of its rows: for patches larger than one rank's
    memory. They count as one where ranks are counted (batch, learning rate); the others are data-parallel to them."""
    within_node: bool = False
    """Refuse to start where ranks that share a patch are on different nodes."""


class StageConfig(Section):
    """One stage of the curriculum. Its length is given in exactly one unit."""

    patch_size: int | None = Field(None, ge=32)
    """Width and height in pixels of `index.resolution`."""
    sizes: dict[Annotated[int, Field(ge=32)], Annotated[float, Field(gt=0.0)]] | None = None
    """Instead of `patch_size`: a mixture, {size: share of the steps}. Shares are relative to their sum."""
    local_batch_size: Positive | Literal["auto"]
    """Patches per rank and forward pass; in a mixture those of the largest size, smaller ones get as many as keep the
    pixels. auto: as many pixels as the largest patch of the curriculum, as far as `runtime.memory_gb` allows."""
    accumulate: Positive = 1
    """Forward passes per optimiser step; their gradients are averaged."""
    epochs: float | None = Field(None, gt=0.0)
    """Times that all training patches (of the largest size) are seen."""
    images: Positive | None = None
    """Patches (of the largest size) over all ranks."""
    steps: Positive | None = None
    """Optimiser steps."""
    plateau: PlateauConfig | None = None
    learning_rate_factor: float = Field(1.0, gt=0.0)
    parallel: ParallelConfig = ParallelConfig()

    @model_validator(mode="after")
    def _one_of_each(self) -> StageConfig:
        if (self.patch_size is None) == (self.sizes is None) or self.sizes == {}:
            raise ValueError("give exactly one of patch_size and sizes")
        if [self.epochs, self.images, self.steps, self.plateau].count(None) != 3:
            raise ValueError("give exactly one of epochs, images, steps and plateau")
        return self

    @property
    def size_shares(self) -> dict[int, float]:
        """Patch size -> share of the stage's steps, ascending by size; shares add up to 1."""
        sizes = self.sizes or {self.patch_size or 0: 1.0}
        return {size: sizes[size] / sum(sizes.values()) for size in sorted(sizes)}

    @property
    def largest_size(self) -> int:
        """The size that the stage is scored at."""
        return max(self.size_shares)


class EvaluationConfig(Section):
    max_patches: Positive | None = None
    """Validation patches scored per size, drawn with the seed; None scores all."""
    max_regions: Positive | None = None
    """Regions of the common footprint (one patch of the largest size each); None scores all."""
    auc_bins: int = Field(4096, ge=16, le=1 << 20)
    """Bins of the streaming ROC histogram; the report states the error bound that follows."""
    figure_regions: int = Field(3, ge=0, le=12)
    """Validation regions drawn beside their truth and prediction in the report."""


class HorovodConfig(Section):
    """How gradients are put together for the all-reduce. Have no effect with backend=mpi."""

    bucket_mb: float = Field(32.0, gt=0.0)
    """Gradients (float32 megabytes) that travel together. Smaller starts earlier in the backward pass, larger wastes
    less on latency."""
    cycle_ms: float = Field(1.0, gt=0.0)
    """How often Horovod looks for gradients that are ready."""
    autotune: bool = False
    """Let Horovod choose what travels together and the cycle while training. Sums then depend on timing: two runs with
    fp16, or on more than two ranks, differ in their last bits."""


class RuntimeConfig(Section):
    backend: Literal["horovod", "mpi"] = "horovod"
    """What carries gradients under mpirun or srun; a process that no launcher started needs neither."""
    horovod: HorovodConfig = HorovodConfig()
    deterministic: bool = True
    """TensorFlow's deterministic operations: the same run twice gives the same bits."""
    memory_gb: float | None = Field(None, gt=0.0)
    """Memory one rank may take, for local_batch_size=auto. None: 85 % of its share of what the node has, which is what
    prediction may be wrong by; on a GPU it must be given."""
    read_threads: Positive = 2
    """Threads per rank that read and augment patches."""
    prefetch_batches: Positive = 3
    """Batches kept ready per rank."""
    intra_op_threads: Positive | None = None
    """TensorFlow's threads per rank; None takes the rank's cores, less one for Horovod from eight on."""
    affinity: Literal["stop", "warn"] = "stop"
    """What to do when ranks share cores, run on two sockets, have more threads than CPUs, or unequal cores."""


class Config(Section):
    """One run."""

    name: str = Field(min_length=1)
    output: Path
    """Run directory; nothing else may hold or have used it."""
    seed: int = Field(1, ge=0, lt=1 << 31)
    data: DataConfig
    index_file: Path | None = None
    """Parquet file of the patch index: used when its settings match, else built there; None: inside `output`."""
    index_parts: Path | None = None
    """Folder that keeps the patches of single slides, which several indexes may share; None: beside the index."""
    index: IndexConfig = IndexConfig()
    split: SplitConfig = SplitConfig()
    sampling: SamplingConfig = SamplingConfig()
    augment: AugmentConfig = AugmentConfig()
    stain: StainConfig = StainConfig()
    stores: StoresConfig = StoresConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    curriculum: tuple[StageConfig, ...] = Field(min_length=1)
    evaluation: EvaluationConfig = EvaluationConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @property
    def patch_sizes(self) -> tuple[int, ...]:
        """The distinct patch sizes of the curriculum, ascending."""
        return tuple(sorted({size for s in self.curriculum for size in s.size_shares}))

    @property
    def has_groups(self) -> bool:
        """Some stage lets ranks share patches."""
        return any(s.parallel.spatial > 1 for s in self.curriculum)

    @property
    def index_path(self) -> Path:
        """Where the patch index of this run lies or will lie."""
        return self.index_file or self.output / "index.parquet"
