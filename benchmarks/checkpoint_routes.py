"""The ways to save and load a training state that `benchmarks/checkpoint.py` compares, behind one interface.

bigtrain             bigtrain.checkpoint: Saver (asynchronous), newest_verified and load
deepspeed            save_checkpoint and load_checkpoint of DeepSpeed's engine
deepspeed-universal  load_checkpoint of what ds_to_universal has made of that
dcp                  torch.distributed.checkpoint.save and load of the same pieces of tensors
dcp-unsynced         the same without the fsync that its writer does by default
dcp-async            torch.distributed.checkpoint.async_save, with a stager that keeps its memory from save to save
"""

from __future__ import annotations

import os
from pathlib import Path

from bigtrain.checkpoint import Cursor, Saver, StorageTiers, newest_verified
from bigtrain.checkpoint.folder import Folder
from bigtrain.config.settings import CheckpointSettings
from bigtrain.engine.engine import Engine
from bigtrain.engine.topology import Topology
from bigtrain.train.build import restore


class Route:
    """One way. Every rank makes the same calls."""

    name = ""
    asynchronous = False
    """Whether the training goes on before the save is done."""

    def __init__(self, engine: Engine, topology: Topology, work: Path) -> None:
        """Save into a folder of its own below `work`, or load from there."""
        self.engine, self.topology, self.work = engine, topology, work
        self.folder = work / self.name
        self.durable_seconds: float | None = None
        """From the begin of the save until it was durable, where the route knows it itself."""

    def prepare(self) -> None:
        """What a run does once at its start."""

    def save(self) -> None:
        """Returns when the training may go on."""
        raise NotImplementedError

    def done(self) -> bool:
        """Whether nothing of the save goes on behind the training."""
        return True

    def wait(self) -> None:
        """Until the save is done."""

    def make_durable(self) -> None:
        """fsync what the route has left to the kernel; the ranks share the files."""
        paths = sorted(self.folder.rglob("*"))
        for path in paths[self.topology.rank :: self.topology.world_size]:
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)

    def load(self) -> None:
        """Put the engine where the newest save of this route stands."""
        raise NotImplementedError

    def size(self) -> int:
        """Bytes of the newest save."""
        self.topology.barrier()
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


class Bigtrain(Route):
    name = "bigtrain"
    asynchronous = True

    def prepare(self) -> None:
        settings = CheckpointSettings(asynchronous=True, keep=2)
        self._saver = Saver(StorageTiers(Folder(self.folder)), self.topology.background(), settings)
        self._saver.reserve(self.engine.fragments(), self.engine.rng_state())
        self._saver.wait()

    def save(self) -> None:
        step = self.engine.optimizer_steps
        self.durable_seconds = None
        self._saver.save(
            Cursor(step, step, "benchmark", step),
            self.engine.fragments(),
            self.engine.rng_state(),
            mathematics={},
            zero_stage=self.engine._stage,
            state={"loss_scaler": self.engine.loss_scaler()},
        )

    def done(self) -> bool:
        for commit in self._saver.finished():
            self.durable_seconds = commit.seconds
        return self.durable_seconds is not None or self._saver.failed

    def wait(self) -> None:
        self._saver.wait()
        self.done()

    def make_durable(self) -> None:
        """It is."""

    def load(self) -> None:
        search = newest_verified(StorageTiers(Folder(self.folder)), ranks=self.topology)
        assert search.newest is not None and not search.rejected
        restore(self.engine, search.newest, self.topology)


class DeepSpeed(Route):
    name = "deepspeed"

    def save(self) -> None:
        # The client state is what ds_to_universal asks for.
        client_state = {"iteration": self.engine.optimizer_steps, "universal_checkpoint_info": {}}
        self.engine._deepspeed.save_checkpoint(str(self.folder), tag="newest", client_state=client_state)

    def load(self) -> None:
        path, _ = self.engine._deepspeed.load_checkpoint(str(self.folder))
        assert path is not None


class DeepSpeedUniversal(DeepSpeed):
    name = "deepspeed-universal"


SAVING = ("bigtrain", "deepspeed", "dcp", "dcp-unsynced", "dcp-async")
_BY_NAME: dict[str, type[Route]] = {route.name: route for route in (Bigtrain, DeepSpeed, DeepSpeedUniversal)}


def route_of(name: str) -> type[Route]:
    """The route of a name. Only dcp's import what it needs: a start-up counts."""
    if name.startswith("dcp"):
        from checkpoint_dcp import BY_NAME

        return BY_NAME[name]
    return _BY_NAME[name]
