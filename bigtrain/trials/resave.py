"""What ranks of `bigtrain verify-resume` do in another shape: save what they have loaded, then train on."""

from __future__ import annotations

from bigtrain.checkpoint import Cursor, StorageTiers, save, storage_at
from bigtrain.config import Settings, mathematics
from bigtrain.train import open_run, to_the_end


def resave_and_train(settings: Settings, location: str) -> int:
    """Open a run, save its state to another folder or URL, and go on as `train` does.

    Raises:
        BigtrainError: as `train` does.
    """
    with open_run(settings) as run:
        save(
            StorageTiers(storage_at(location)),
            Cursor(run.step, run.consumed_samples, run.data.plan.plan_id, run.training.engine.optimizer_steps),
            run.training.engine.fragments(),
            run.training.engine.rng_state(),
            mathematics=mathematics(settings.at_step(run.step)),
            zero_stage=settings.engine.zero_stage,
            state={},
            ranks=run.topology,
        )
        return to_the_end(run)
