"""What watches a run while it runs, and finds that something is wrong.

spikes          losses and gradient norms that are outliers, and what follows from them
watchdog        a rank that makes no progress: who is suspected, and when the run ends
  heartbeat       each rank writes down what it is doing
  hang            the diagnosis: which rank the others wait for, and where it is
  thread_dump     what each thread of a rank is doing
stragglers      ranks that are slower than the others
replicas        ranks whose copies of the weights are no longer equal
  fingerprint     a checksum of weights
out_of_memory   a step that does not fit, and which settings would make it fit
"""
