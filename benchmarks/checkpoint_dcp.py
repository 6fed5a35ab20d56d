"""torch.distributed.checkpoint as routes of `benchmarks/checkpoint.py`, by its protocol for tensors in pieces."""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import Any

import torch
import torch.distributed as dist
from checkpoint_routes import Route
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions


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


BY_NAME: dict[str, type[Route]] = {route.name: route for route in (Dcp, DcpUnsynced, DcpAsync)}


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
