"""Where the runs of a grid are done: in this process, in processes of this machine, or on a Dask cluster.

Each way takes configurations and gives, as they come, their places and what became of them; only the command that asked
writes results. How a run is done does not change what it gives.
"""
