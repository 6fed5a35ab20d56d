"""Submitting a run to a cluster: what `bigtrain submit` hands to Slurm or Kubernetes.

`job` is what is to be started and whether it can work; `slurm` makes it a command for sbatch, `kubernetes` a manifest
for kubectl. What runs on the nodes then are the scripts in launch/.
"""
