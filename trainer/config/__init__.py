"""The whole configuration of a run as typed, validated, frozen objects."""

from trainer.config.load import dump_config, load_config, load_run_config
from trainer.config.rules import check_groups, check_rules
from trainer.config.schema import Config

__all__ = ["Config", "check_groups", "check_rules", "dump_config", "load_config", "load_run_config"]
