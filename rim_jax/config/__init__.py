"""What a run is asked to do: keys, their limits, the stages of a curriculum, the grid of a sweep.

Never loads JAX, data or a model, so that a wrong configuration is refused in milliseconds.
schema.py has every key; rules.py what keys must agree on; parse.py reads, stages.py, grid.py run.
"""

from rim_jax.config.parse import (  # noqa: F401
    complete,
    find_problems,
    flatten,
    list_identity,
    list_types,
    make_config_dict,
    parse_config,
    replace_keys,
)
from rim_jax.config.schema import (  # noqa: F401
    HELD_KEYS,
    PATH_KEYS,
    RUNTIME_KEYS,
    RUNTIME_SECTIONS,
    ChainConfig,
    CheckpointConfig,
    CoconutConfig,
    Config,
    ControlsConfig,
    CurriculumConfig,
    DataConfig,
    EvalConfig,
    ExportConfig,
    IcotConfig,
    LayoutConfig,
    LogConfig,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    PerturbedConfig,
    ProsqaConfig,
    TokenizerConfig,
    TrainConfig,
    is_runtime,
)
from rim_jax.errors import UserError  # noqa: F401
