"""The process launcher: torchrun, with exit statuses that are kept and restarts that depend on them.

torchrun     the program: python -m bigtrain.cli.torchrun
  agent        the process on each node that starts the ranks, watches them and ends them
  restarts     whether ranks are started again
  interface    the network interface that the ports are bound to
"""
