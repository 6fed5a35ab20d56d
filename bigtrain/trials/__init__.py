"""Training that is started to find something out; none of it changes the run.

replay          one step of a run again, exactly, with the loss of each document
profile         where the time and the memory of a step go
  trace           the costs in a trace of torch.profiler
verify_resume   kill a run, resume it, and compare
  trial           the runs that this starts
  resave          what their ranks do in another shape
"""
