"""The process launcher: torchrun, with exit statuses that are kept and restarts that depend on them.

torchrun     the program: python -m bigtrain.cli.torchrun
  agent        the process on each node that starts the ranks, watches them and ends them
  rendezvous   how the agents of all nodes meet before each start, in a store of the first node
  membership   which nodes form the next start: decisions only
  restarts     whether ranks are started again
  interface    the network interface that the ports are bound to
"""
