"""Every number of a run, with its unit and source.

In: a preset's name and `--set` values. Out: a frozen `Config`, checked. Imports nothing but errors.
Read first: presets.py, then fields.py.
"""

from unfused_fast.config.audio import FrontendConfig, RandomResizeCropConfig, Store
from unfused_fast.config.checks import READ_BY, READ_WITH, Layer, feature_layers
from unfused_fast.config.fields import Config, DistillConfig, ModelConfig, OptimConfig
from unfused_fast.config.files import as_yaml, read_settings
from unfused_fast.config.methods import MethodName, PresetName
from unfused_fast.config.presets import (
    BASELINES,
    SHIPPED,
    Stage,
    chosen_fields,
    chosen_methods,
    differences,
    field_texts,
    flatten,
    from_flat,
    preset,
    with_values,
)
from unfused_fast.config.tasks import DECAR_TASKS, LAPE_TASKS, TASKS, Task, chosen_tasks
