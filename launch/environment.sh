# shellcheck shell=bash
# Settings of network, NCCL, gloo and rendezvous. Every launcher reads them here; change them here, or set them in your own
# environment, which wins. `launch/local.sh --dry-run CONFIG` shows the result.

default() { # NAME VALUE
  [[ -n ${!1:-} || (-z $2 && -n ${!1+set}) ]] || export "$1=$2" # what is empty counts as not set
}

# The network interface of the job. Empty: the one by which a machine reaches the first one, loopback where there is only
# one machine; `any`: all of them. The ports of the launchers are open there only. gloo and NCCL get its name
# (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME) unless those are set. NCCL finds InfiniBand by itself, and may use it.
default BIGTRAIN_INTERFACE ''

# The port at which the machines meet; the preflight uses the next one. It is below the range from which Linux takes ports
# for outgoing connections, so that none of those can have taken it.
default BIGTRAIN_PORT 29400

# How long machines wait for each other, in seconds. join: until all are there, slow image pulls included. last_call: for
# more machines once MIN of --nodes MIN:MAX are there. read: for an answer of the store. A machine that has missed 3
# heartbeats, 5 s apart, counts as gone. The times suit any number of machines.
default BIGTRAIN_RENDEZVOUS join_timeout=900,last_call_timeout=30,read_timeout=60,keep_alive_interval=5,keep_alive_max_attempt=3

# How often ranks that died or hung are started again, without a checkpoint in between, before the job ends.
default BIGTRAIN_MAX_RESTARTS 3

# A collective that fails or times out ends its process without a clean-up, which could hang too; the launcher starts it
# again. engine.process_group_timeout_minutes sets how long a collective may take.
default TORCH_NCCL_ASYNC_ERROR_HANDLING 3
# The last 2,000 collectives of each rank are then written to TORCH_NCCL_DEBUG_INFO_TEMP_FILE, for `torchfrtrace`.
default TORCH_FR_BUFFER_SIZE 2000
default TORCH_NCCL_DUMP_ON_TIMEOUT 1
# gloo connects two ranks when they first speak to each other. It would connect all of them to each other at the start.
default TORCH_GLOO_LAZY_INIT 1
# NCCL logs only why it failed.
default NCCL_DEBUG WARN

# torch asks the name server for the name of each connection's other end, to show it in messages; the store asks for that
# of each rank, and answers nobody meanwhile. A question whose answer is lost is asked again after 1 s, not after 5.
default RES_OPTIONS 'timeout:1 attempts:3'

# Modules of the working directory (a user's secrets.py, wandb.py) do not replace Python's own.
default PYTHONSAFEPATH 1
# Files are UTF-8, whatever the locale.
default PYTHONUTF8 1

# OMP_NUM_THREADS is not set here: without it the ranks of a machine share its cores evenly.
