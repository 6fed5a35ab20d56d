# shellcheck shell=bash disable=SC2034,SC2154 # the scripts that source this read its variables, and set others
# What the jobs for Slurm have in common. Sourced after common.sh.

# Where the nodes of a job meet: at the first one, at the address by which Slurm itself reaches it, at a port of this job's
# own. Sets $job, $nodes, $first and $port; outside a job, for --dry-run, words in their place.
find_meeting_place() {
  local names name
  job=${SLURM_JOB_ID:-JOB} nodes=${SLURM_JOB_NUM_NODES:-1} first=FIRST-NODE port=$BIGTRAIN_PORT
  require_number SLURM_JOB_NUM_NODES "$nodes" 1 999999
  require_number SLURM_RESTART_COUNT "${SLURM_RESTART_COUNT:-0}" 0 999999
  if [[ -z ${SLURM_JOB_ID:-} ]]; then
    require_number BIGTRAIN_PORT "$port" 1 65534
    return
  fi
  require_number SLURM_JOB_ID "$job" 1 9999999999
  names=$(scontrol show hostnames "${SLURM_JOB_NODELIST:-}") && name=${names%%$'\n'*}
  first=$(scontrol show node "$name" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
  [[ -n $first ]] || refuse "Slurm does not say the address of the first node, '$name' of SLURM_JOB_NODELIST"
  port=$((10000 + 2 * (job % 10000)))
}

# Add to $start, an srun, what runs a launch script on the node, in $container with $mounts where one is given.
run_in_container() { # LAUNCH SCRIPT
  [[ $container != -* && $mounts != -* ]] || refuse "--container $container, --mounts $mounts: wanted an image, and A:B,C"
  local inside=/opt/bigtrain/launch/$2
  case $container in
    '') start+=("$1/$2") ;;
    *.sif) start+=(apptainer exec --nv --bind "$PWD${mounts:+,$mounts}" --pwd "$PWD" "$container" "$inside") ;;
    *) start+=("--container-image=$container" "--container-mounts=$PWD:$PWD${mounts:+,$mounts}"
      "--container-workdir=$PWD" "$inside") ;;
  esac
}
