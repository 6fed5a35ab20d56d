"""The process launcher: torchrun with restarts that know what they are for.

torchrun     the program: python -m bigtrain.cli.torchrun
  agent        the process on each node that starts the ranks, watches them and ends them
  restarts     whether ranks are started again
  interface    the network interface that the ports are bound to
"""
