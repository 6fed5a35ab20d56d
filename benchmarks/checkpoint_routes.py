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
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from bigtrain.checkpoint import Cursor, Places, Saver, newest_verified
from bigtrain.checkpoint.folder import Folder
from bigtrain.config.settings import CheckpointSettings
from bigtrain.engine.engine import Engine
from bigtrain.engine.topology import Topology
from bigtrain.run.setup import restore


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
        self._saver = Saver(Places(Folder(self.folder)), self.topology.behind(), settings)
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
        search = newest_verified(Places(Folder(self.folder)), ranks=self.topology)
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


class Dcp(Route):
    name = "dcp"
    sync_files = True

    def _state(self) -> dict[str, Any]:
        pieces = {f"{f.kind}/{f.name}": FlatPiece(f.size, f.offset, f.data) for f in self.engine.fragments()}
        return {**pieces, "optimizer_steps": self.engine.optimizer_steps}

    def _writer(self) -> FileSystemWriter:
        return FileSystemWriter(self.folder, sync_files=self.sync_files)

    def save(self) -> None:
        state_dict_saver.save(self._state(), storage_writer=self._writer(), planner=SavePieces())

    def load(self) -> None:
        state = self._state()
        state_dict_loader.load(state, checkpoint_id=self.folder, planner=LoadPieces())
        self.engine.restore(state["optimizer_steps"])


class DcpUnsynced(Dcp):
    name = "dcp-unsynced"
    sync_files = False


class DcpAsync(Dcp):
    name = "dcp-async"
    asynchronous = True

    def prepare(self) -> None:
        # Its own group: the writer's collectives must not meet those of the training.
        self._group = dist.new_group(backend="gloo", timeout=self.topology.timeout)
        self._stager = DefaultStager(StagingOptions(False, False, False, False))

    def save(self) -> None:
        self.durable_seconds, started = None, time.perf_counter()
        future = state_dict_saver.async_save(
            self._state(),
            storage_writer=self._writer(),
            planner=SavePieces(),
            process_group=self._group,
            async_stager=self._stager,
        )
        assert isinstance(future, Future)
        self._future = future
        future.add_done_callback(lambda _: setattr(self, "durable_seconds", time.perf_counter() - started))

    def done(self) -> bool:
        return self._future.done()

    def wait(self) -> None:
        self._future.result()


ROUTES: dict[str, type[Route]] = {
    route.name: route for route in (Bigtrain, DeepSpeed, DeepSpeedUniversal, Dcp, DcpUnsynced, DcpAsync)
}
SAVING = ("bigtrain", "deepspeed", "dcp", "dcp-unsynced", "dcp-async")


class FlatPiece:
    """Elements [offset, offset + length) of a flattened tensor, as dcp's protocol for tensors in pieces has it."""

    def __init__(self, whole: int, offset: int, data: torch.Tensor) -> None:
        self.whole, self.offset, self.data = whole, offset, data.detach()

    def size(self) -> torch.Size:
        """Of the whole tensor."""
        return torch.Size([self.whole])

    def _chunk(self) -> ChunkStorageMetadata:
        return ChunkStorageMetadata(torch.Size([self.offset]), self.data.size())

    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(self.data)
        data = TensorWriteData(chunk=self._chunk(), properties=properties, size=self.size())
        index = MetadataIndex(fqn, torch.Size([self.offset]))
        return [WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data)]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [self._chunk()]


class SavePieces(DefaultSavePlanner):
    """Knows where a FlatPiece has its data."""

    def lookup_object(self, index: MetadataIndex) -> Any:
        found = self.state_dict[index.fqn]
        return found.data if isinstance(found, FlatPiece) else found


class LoadPieces(DefaultLoadPlanner):
    """Knows where a FlatPiece has its data, and loads there; the planner beneath would load into copies."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        self.state_dict = self.original_state_dict = state_dict
        self.metadata, self.is_coordinator = metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        data: torch.Tensor = self.state_dict[index.fqn].data
        return data
