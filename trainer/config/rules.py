"""Rules across sections, checked once the world size is known and before anything slow starts."""

from __future__ import annotations

from trainer.config.architectures import ARCHITECTURES
from trainer.config.schema import Config, ModelConfig, SplitConfig
from trainer.errors import ConfigError


def check_rules(config: Config, world_size: int = 1) -> list[str]:
    """Check what one section alone cannot know.

    Returns:
      Warnings: settings that are allowed but have no effect or are often a mistake.
    Raises:
      ConfigError: naming the key and the value to give instead.
    """
    _check_patch_sizes(config)
    _check_class_weights(config)
    _check_recompute(config)
    return [
        *_norm_warnings(config, world_size),
        *_idle_model_settings(config.model),
        *_idle_settings(config, world_size),
    ]


def _check_patch_sizes(config: Config) -> None:
    architecture = config.model.architecture
    stride = ARCHITECTURES[architecture].patch_multiple
    for i, stage in enumerate(config.curriculum):
        for size in stage.size_shares:
            if size % stride:
                better = max(stride * 2, round(size / stride) * stride)
                is_mixture = stage.sizes is not None
                raise ConfigError(
                    f"a patch of {size} px does not divide by {stride}, which {architecture} needs",
                    where=f"curriculum[{i}].{'sizes' if is_mixture else 'patch_size'}",
                    fix=f"{better} instead of {size}" if is_mixture else f"curriculum.{i}.patch_size={better}",
                )


def check_groups(config: Config, world_size: int) -> None:
    """Whether every stage's groups of ranks that share a patch come out even.

    Raises:
      ConfigError: naming the stage and the numbers of ranks that would do.
    """
    for i, stage in enumerate(config.curriculum):
        spatial = stage.parallel.spatial
        if world_size % spatial:
            fits = [n for n in range(1, spatial + 1) if world_size % n == 0]
            raise ConfigError(
                f"{world_size} rank(s) cannot be put into groups of {spatial}",
                where=f"curriculum[{i}].parallel.spatial",
                fix=f"curriculum.{i}.parallel.spatial={fits[-1]}, or a multiple of {spatial} ranks",
            )


def _check_recompute(config: Config) -> None:
    if config.training.recompute != "none" and config.model.norm in ("batch", "sync_batch"):
        raise ConfigError(
            f"recompute={config.training.recompute} would count each batch twice in the statistics of "
            f"model.norm={config.model.norm}",
            where="training.recompute",
            fix="model.norm=group (or frozen), or training.recompute=none",
        )


def _check_class_weights(config: Config) -> None:
    weights, names = config.training.loss.class_weights, config.data.class_names
    if weights and len(weights) != len(names):
        raise ConfigError(
            f"{len(weights)} weights for {len(names)} classes ({', '.join(names)})",
            where="training.loss.class_weights",
            fix="give one weight per class, or [] for 1 each",
        )


def _norm_warnings(config: Config, world_size: int) -> list[str]:
    shared_by = world_size if config.model.norm == "sync_batch" else 1
    stages = enumerate(config.curriculum)
    batches = {i: s.local_batch_size * shared_by for i, s in stages if s.local_batch_size != "auto"}
    if config.model.norm in ("batch", "sync_batch") and min(batches.values(), default=4) < 4:
        stage = min(batches, key=batches.__getitem__)
        return [
            f"model.norm={config.model.norm}: in curriculum[{stage}] statistics come from {batches[stage]} patch(es), "
            "which is noisy; model.norm=group does not depend on the batch"
        ]
    if config.model.norm == "frozen" and "weights" in ARCHITECTURES[config.model.architecture].idle:
        return [f"model.norm=frozen: {config.model.architecture} has no stored statistics; its norms are group norms"]
    if config.model.norm == "frozen" and config.model.weights is None:
        return ["model.norm=frozen without model.weights: the frozen statistics are 0 and 1, i.e. no normalisation"]
    return []


def _idle_model_settings(model: ModelConfig) -> list[str]:
    """A default may be idle: nobody asked for it."""
    return [
        f"model.{name} has no effect with model.architecture={model.architecture}"
        for name in ARCHITECTURES[model.architecture].idle
        if getattr(model, name) != ModelConfig.model_fields[name].default
    ]


def _idle_settings(config: Config, world_size: int) -> list[str]:
    warnings = []
    if config.runtime.deterministic and config.runtime.horovod.autotune and world_size > 1:
        warnings.append(
            "runtime.horovod.autotune lets timing decide what is summed with what: runs differ in last bits"
        )
    if config.split.train_centres and config.split.by != "centre":
        warnings.append("split.by has no effect where train_centres and val_centres are given")
    if config.split.folds and config.split.val_fraction != SplitConfig().val_fraction:
        warnings.append("split.val_fraction has no effect where split.folds is given")
    grid_only = [name for name in ("overlap", "max_per_slide") if getattr(config.index, name)]
    if config.index.positions == "random" and grid_only:
        warnings.append(f"index.{grid_only[0]} has no effect with index.positions=random")
    if config.stores.kind == "slide" and config.stores.path:
        warnings.append("stores.path has no effect with stores.kind=slide: patches are read directly from the slides")
    return warnings
