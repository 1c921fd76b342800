"""Options of the training loop, apart from it: who reads a config needs no Orbax."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """How long to train, and how often to look.

    Attributes:
        steps: steps in all.
        log_every: steps between rows of `metrics.jsonl`.
        validate_every: steps between validations; each is followed by a checkpoint.
        save_minutes: minutes between saves, besides one at every validation.
        early_stop: stop after so many validations without a better one; 0 never stops early.
        accumulate: work through each batch in so many parts: less memory, the same update.
        save_steps: steps between saves, besides those of `save_minutes`; 0: none.
        nonfinite: a batch with a NaN or infinite loss or gradient: stop, or skip its update.
        average: decay of a moving average of the weights, which is then validated, kept and used,
            such as 0.99; 0: none.
        start: a run or an exported model whose parameters the network starts from; empty: drawn.
    """

    steps: int = 1000
    log_every: int = 10
    validate_every: int = 250
    save_minutes: float = 10.0
    early_stop: int = 0
    accumulate: int = 1
    save_steps: int = 0
    nonfinite: Literal["stop", "skip"] = "stop"
    average: float = 0.0
    start: str = ""
