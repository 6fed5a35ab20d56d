# shellcheck shell=bash
# Settings of network, NCCL, gloo and rendezvous: every launcher reads them here, and this is the place to change them.
# What is set in your own environment wins. `launch/local.sh --dry-run CONFIG` shows what comes out.

default() { # NAME VALUE
  [[ -n ${!1+set} ]] || export "$1=$2"
}

# The network interface of the job. Empty: the one by which a machine reaches the first one, loopback where there is only
# one machine; `any`: all of them. The ports of the launchers are open there only, and gloo and NCCL are told its name
# (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME), unless those are set. InfiniBand is found by NCCL itself and not held back.
default BIGTRAIN_INTERFACE ''

# The port at which the machines meet, and the one after it for the preflight. Below the range from which Linux draws
# ports for outgoing connections, so that none of those can have taken it.
default BIGTRAIN_PORT 29400

# How long machines wait for each other, in seconds. join: until all are there, slow image pulls included. last_call:
# where fewer may do (--nodes MIN:MAX), how long to wait for more once there are enough. read: an answer of the store.
# A machine that has missed 3 signs of life, 5 s apart, counts as gone.
default BIGTRAIN_RENDEZVOUS join_timeout=900,last_call_timeout=30,read_timeout=60,keep_alive_interval=5,keep_alive_max_attempt=3

# How often ranks that died or hung are started again, without a checkpoint in between, before the job ends.
default BIGTRAIN_MAX_RESTARTS 3

# A collective that fails or times out ends its process without trying to clean up, which could hang in turn; the launcher
# starts it again. (How long a collective may take is engine.process_group_timeout_minutes.)
default TORCH_NCCL_ASYNC_ERROR_HANDLING 3
# Then the last 2,000 collectives of each rank are written to TORCH_NCCL_DEBUG_INFO_TEMP_FILE, for `torchfrtrace`.
default TORCH_FR_BUFFER_SIZE 2000
default TORCH_NCCL_DUMP_ON_TIMEOUT 1
# NCCL says why it failed, and no more.
default NCCL_DEBUG WARN

# OMP_NUM_THREADS is left alone: without it the ranks of a machine share its cores evenly.
