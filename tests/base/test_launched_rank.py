"""A process finds out which rank it is, whatever started it, or refuses; it never trains alone beside its peers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base import BigtrainError, launched_rank

MEETING = {"MASTER_ADDR": "n1", "MASTER_PORT": "29400"}
STEP = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
}
ONE_NODE, TWO_NODES = {"SLURM_NNODES": "1"}, {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "localhost,n[2-3]"}


def open_mpi(rank: int, size: int, local_rank: int, local_size: int) -> dict[str, str]:
    values = {"RANK": rank, "SIZE": size, "LOCAL_RANK": local_rank, "LOCAL_SIZE": local_size}
    return {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in values.items()} | {"PMIX_NAMESPACE": "j1"}


@pytest.mark.parametrize(
    ("environment", "rank", "world", "local_rank", "local_world", "address"),
    [
        ({}, 0, 1, 0, 1, None),
        ({"RANK": "", "WORLD_SIZE": " "}, 0, 1, 0, 1, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, 0, 1, 0, 1, None),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", **MEETING}, 3, 4, 1, None, "n1"),  # DeepSpeed
        ({"RANK": "3", "WORLD_SIZE": "4", **MEETING, "PET_NNODES": "4"}, 3, 4, None, None, "n1"),  # PyTorchJob
        (open_mpi(1, 2, 1, 2), 1, 2, 1, 2, "127.0.0.1"),
        (open_mpi(1, 4, 1, 2) | MEETING, 1, 4, 1, 2, "n1"),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", **MEETING}, 1, 2, None, None, "n1"),
        (STEP | ONE_NODE, 5, 8, 1, 8, "127.0.0.1"),
        (STEP | TWO_NODES, 5, 8, 1, None, "localhost"),
        (STEP | TWO_NODES | MEETING, 5, 8, 1, None, "n1"),
        (STEP | ONE_NODE | {"PMI_RANK": "5", "PMI_SIZE": "8"}, 5, 8, 1, 8, "127.0.0.1"),  # srun --mpi=pmi2
        (open_mpi(1, 2, 1, 2) | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, 1, 2, 1, 2, "127.0.0.1"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, 0, 1, 0, 1, None),
        ({"SLURM_NTASKS": "8"}, 0, 1, 0, 1, None),  # the shell of salloc
    ],
)
def test_a_rank_is_what_its_launcher_says(environment, rank, world, local_rank, local_world, address):
    found = launched_rank(environment)
    assert (found.rank, found.world_size, found.local_rank, found.local_world_size) == (
        rank, world, local_rank, local_world,
    )  # fmt: skip
    assert found.address == address and found.alone == (world == 1)
    assert (found.port or 0) > 1024 or world == 1


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"RANK": "1"}, "no WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "no RANK"),
        ({"LOCAL_RANK": "1"}, "no RANK"),
        ({"RANK": "2", "WORLD_SIZE": "2", **MEETING}, "RANK=2"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "no MASTER_ADDR"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "n1"}, "no MASTER_PORT"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "n1", "MASTER_PORT": "70000"}, "MASTER_PORT=70000"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "2", **MEETING}, "LOCAL_RANK=3"),
        ({"RANK": "0", "WORLD_SIZE": "2", "BIGTRAIN_STORE": "nowhere"}, "BIGTRAIN_STORE=nowhere"),
        ({"PET_NNODES": "2"}, "PET_NNODES=2"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, "no SLURM_STEP_ID"),
        (STEP | ONE_NODE | {"RANK": "0", "WORLD_SIZE": "1"}, "WORLD_SIZE=1"),
        (STEP | {"SLURM_PROCID": "8"}, "SLURM_PROCID=8"),
        (STEP | {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "no-such-node.invalid"}, "no-such-node.invalid"),
        (open_mpi(1, 4, 1, 2), "no MASTER_ADDR"),
        (open_mpi(4, 4, 1, 2), "OMPI_COMM_WORLD_RANK=4"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "no MASTER_ADDR"),
    ],
)
def test_a_rank_that_would_train_alone_is_refused_with_what_is_missing(environment, named):
    with pytest.raises(BigtrainError) as caught:
        launched_rank(environment)
    assert named in str(caught.value.found) and caught.value.fix


@given(st.sampled_from(["RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_SIZE"]), st.text())
def test_any_value_is_a_number_or_refused_by_name(name, value):
    environment = {"RANK": "0", "WORLD_SIZE": "2", **MEETING, **STEP, **open_mpi(0, 2, 0, 2), name: value}
    if not name.startswith(("RANK", "WORLD", "LOCAL")):
        del environment["RANK"], environment["WORLD_SIZE"]
    try:
        found = launched_rank(environment)
    except BigtrainError as error:
        assert name in str(error)
    else:
        assert not value.strip() or value.strip().removeprefix("-").isdecimal()
        assert 0 <= found.rank < found.world_size


def test_ranks_of_one_job_derive_one_port_and_those_of_others_another():
    ports = {launched_rank(STEP | ONE_NODE | {"SLURM_PROCID": str(rank)}).port for rank in range(8)}
    others = {launched_rank(STEP | ONE_NODE | {"SLURM_JOB_ID": str(job)}).port for job in range(8, 40)}
    assert len(ports) == 1 and len(others - ports) > 28
