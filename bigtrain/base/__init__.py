"""What every package may use: nothing here imports bigtrain or PyTorch.

exit_status         what each exit status means to a launcher
launcher_protocol   the environment variables, files and signals between a launcher and its ranks
faults              faults on order, for tests and rehearsals (BIGTRAIN_FAULT)
clock               clocks that processes of one machine share
format              numbers as a person writes them
version             the version of bigtrain
"""
